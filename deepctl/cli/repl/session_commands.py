"""`/new`, `/switch` and `/export`: which session the conversation is in, and taking one along."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import TYPE_CHECKING

from deepctl import names
from deepctl.cli.options import UNNAMED
from deepctl.cli.repl import run_cli_command
from deepctl.errors import NotFound, Refused, UsageError
from deepctl.quantities import counted
from deepctl.store import session_catalogue

if TYPE_CHECKING:
    from deepctl.cli.repl.repl import Conversation

_TAKE_A_VALUE = ("-f", "--format", "-o", "--output")
_MARKDOWN = (".md", ".markdown")


def new(conversation: Conversation, rest: str) -> None:
    """Let the next prompt begin a session."""
    words = run_cli_command.split(rest)
    if not words:
        _go(conversation, conversation.session, UNNAMED)
        conversation.talk.display.notice("Your next prompt begins a new session.")
        return
    if len(words) > 1:
        raise UsageError(
            f"/new takes one name; this is too much: {' '.join(words[1:])}.",
            "The prompt that begins the session is the next thing you type.",
        )
    name = names.check(words[0], "session")
    taken = session_catalogue.spelled(run_cli_command.profile(conversation), name)
    if taken is not None:
        raise Refused(
            f"There is a session {taken!r} already.", f"/switch {taken} goes on in it.", code="session_exists"
        )
    _go(conversation, conversation.session, name)
    conversation.talk.display.notice(f"Your next prompt begins session {name}.")


def switch(conversation: Conversation, rest: str) -> None:
    """Go on in another session, or list them."""
    words = run_cli_command.split(rest)
    if not words or words[0].startswith("-"):
        run_cli_command.run(conversation, "sessions", "list", *words)
        return
    if len(words) > 1:
        raise UsageError(f"/switch takes one name; this is too much: {' '.join(words[1:])}.", "/sessions lists them.")
    name = names.check(words[0], "session")
    paths = run_cli_command.profile(conversation)
    spelled = session_catalogue.spelled(paths, name)
    if spelled is None:
        near = get_close_matches(name, session_catalogue.all_names(paths), 1, 0.5)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise NotFound(
            f"There is no session {name!r}.",
            f"{meant}/sessions lists them; /new {name} begins it.",
            code="session_not_found",
        )
    session_catalogue.find(paths, spelled)
    _go(conversation, spelled, None)
    summary = session_catalogue.summary(paths, spelled)
    about = f": {summary.title}" if summary.title else ""
    conversation.talk.display.notice(f"Session {spelled}, {counted(summary.turns, 'turn')}{about}")


def _go(conversation: Conversation, session: str | None, new: str | None) -> None:
    """The next turn is in another session, or begins it."""
    conversation.session, conversation.new, conversation.asked = session, new, None


def export(conversation: Conversation, rest: str) -> None:
    """`sessions export` of the session at hand; a name ending in `.md` means Markdown."""
    words = run_cli_command.split(rest)
    if "--help" in words or "-h" in words:
        run_cli_command.run(conversation, "sessions", "export", *words)
        return
    files, options = _separated(words)
    if len(files) > 1:
        raise UsageError(
            f"/export takes one FILE; this is too much: {' '.join(files[1:])}.", "/switch NAME goes to another session."
        )
    if not files and not any(word in ("-o", "--output") or word.startswith("--output=") for word in options):
        raise UsageError(
            "/export needs a FILE.", "/export talk.md is for reading, /export talk.json for sessions import."
        )
    if files:
        # No shell has done this.
        path = os.path.expanduser(files[0])
        options += ["--output", path]
        if path.lower().endswith(_MARKDOWN) and not any(word.startswith(("-f", "--format")) for word in options):
            options += ["--format", "markdown"]
    run_cli_command.run(conversation, "sessions", "export", run_cli_command.at_hand(conversation).name, *options)


def _separated(words: list[str]) -> tuple[list[str], list[str]]:
    """Arguments and options."""
    files: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            files += rest
        elif word in _TAKE_A_VALUE:
            options += [word, *(value for value in (next(rest, None),) if value is not None)]
        elif word.startswith("-") and word != "-":
            options.append(word)
        else:
            files.append(word)
    return files, options
