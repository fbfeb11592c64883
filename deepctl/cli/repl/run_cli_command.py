"""Runs shell commands in a conversation: profile, session and `--wait` are filled in, the process is the same.

So every option of a command works as it does in a shell, with the same error messages.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from deepctl.cli.repl import help
from deepctl.cli.repl.command_names import SEARCHES_ALL_SESSIONS, TAKES_SESSION_NAME, parameters, resolve
from deepctl.cli.repl.state import ReplState
from deepctl.errors import DeepctlError, NoSession, UsageError
from deepctl.layout import UNNAMED, ProfilePaths
from deepctl.store import session_catalogue
from deepctl.store.records import SessionRecord

_RENAMING = (("sessions", "rename"), ("sessions", "delete"))


def split(text: str) -> list[str]:
    """The words of a command, split as a shell does. Raises `UsageError` for a quote that is not closed."""
    try:
        return shlex.split(text)
    except ValueError:
        raise UsageError(
            "A quote is not closed, or nothing follows the last backslash.",
            "Words are split as in a shell: quotes hold several words together, and \\' is an apostrophe.",
        ) from None


def has_help_option(words: Sequence[str]) -> bool:
    """Whether the words ask for help instead."""
    return "--help" in words or "-h" in words


def run(state: ReplState, *words: str) -> None:
    """Run the shell command `deepctl WORDS…` on the profile and the current session. Raises what it raises.

    If it renames or deletes the current session, the conversation follows.
    """
    from deepctl.cli import main

    command, count = resolve(words)
    name, arguments = words[:count], words[count:]
    if has_help_option(arguments):
        help.show_shell_command(state, name)
        return
    paths = state.profile()
    defaults = _filled(state, paths, name, command, arguments)
    # Parsed, because --user has many spellings: in one word with other options, or behind a `--` as an option's value.
    if "user" in parameters(command) and _parsed(command, [*defaults, *arguments]).get("user") != paths.name:
        raise UsageError(
            f"This is a chat of profile {paths.name!r}, so its commands use that profile.",
            f"For another profile, use a shell: deepctl {' '.join(name)} --user NAME",
        )
    session = state.current_session_if_any() if name in _RENAMING else None
    try:
        main.call([*name, *defaults, *arguments])
    finally:
        if session is not None:
            _follow(state, paths, session)


def parse(*words: str) -> Mapping[str, Any]:
    """The values of a shell command's arguments and options, by their names; `None` if they are left out."""
    command, count = resolve(words)
    return _parsed(command, words[count:])


def _parsed(command: Any, arguments: Sequence[str]) -> Mapping[str, Any]:
    # `main.call` reports what is wrong with them.
    with command.make_context("", list(arguments), resilient_parsing=True) as context:
        values: dict[str, Any] = context.params
        return values


def _filled(
    state: ReplState, paths: ProfilePaths, name: Sequence[str], command: Any, arguments: Sequence[str]
) -> list[str]:
    """The options and arguments that the conversation adds to a command."""
    if hasattr(command, "commands"):
        return []  # the group itself reports that it has no such command
    names = parameters(command)
    values = _parsed(command, arguments)
    defaults = ["--user", paths.name] if "user" in names else []
    wait = state.profile_chat().wait
    if "wait" in names and wait:
        defaults += ["--wait", str(wait)]
    if "session" in names and values.get("session") is None and tuple(name) not in SEARCHES_ALL_SESSIONS:
        session = _session_name(state)
        defaults += ["--session", session] if session is not None else []
    if tuple(name) in TAKES_SESSION_NAME and values.get("name") is None:
        session = _session_name(state)
        defaults += [session] if session is not None else []
    return defaults


def _session_name(state: ReplState) -> str | None:
    """The current session; `None` where the command itself reports that there is none."""
    try:
        return state.current_session().name
    except NoSession:
        return None


def _follow(state: ReplState, paths: ProfilePaths, session: SessionRecord) -> None:
    """Keep the conversation in a session that a command may have renamed or deleted."""
    try:
        name = session_catalogue.by_id(paths).get(session.id)
    except (DeepctlError, OSError):
        return
    if name == session.name:
        return
    state.session, state.last_prompt = name, None
    if name is None:
        state.new = UNNAMED
        state.chat.display.notice(f"Session {session.name} no longer exists: your next prompt starts a new session.")
