"""The conversation at a terminal, as a plain loop: read a line, run a turn."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from deepctl.domain import profiles
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import catalogue
from deepctl.errors import DeepctlError, Interrupted, Terminated
from deepctl.files import durable
from deepctl.output import render
from deepctl.output.text import printable_lines

if TYPE_CHECKING:
    from deepctl.cli.chat import Talk


_HELP = "Ctrl-C stops an answer; Ctrl-D or /exit leaves."


def converse(talk: Talk, session: str | None, new: str | None) -> None:
    """Talk until Ctrl-D. Ctrl-C stops a turn, or empties the line that is being typed.

    The lock is held during turns only, so an idle conversation keeps nobody waiting.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    with profiles.lock(talk.root, talk.user, command="chat", wait=talk.wait):
        profile = talk.profile()
    durable.make_private_file(profile.prompt_history)
    editor: PromptSession[str] = PromptSession(history=FileHistory(profile.prompt_history), enable_suspend=True)
    talk.introduce()
    talk.display.notice(f"{_where(profile, session, new)}, model {talk.model}. {_HELP}")
    while True:
        try:
            prompt = editor.prompt(f"{profile.name}> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        word = prompt.strip()
        if word in ("/exit", "/quit", "exit", "quit"):
            return
        if word.startswith("/") and " " not in word:
            # Never to the model: it would cost a turn and mean nothing there.
            talk.display.notice(_HELP if word == "/help" else f"There is no command {word}. {_HELP}")
            continue
        if not word:
            continue
        try:
            session, new = talk.turn(prompt, session, new), None
        except Terminated:
            raise
        except Interrupted:
            render.new_line()
            talk.display.notice("Stopped; what was complete is kept.")
        except DeepctlError as error:
            render.error(error, as_json=False)


def _where(profile: ProfilePaths, session: str | None, new: str | None) -> str:
    """Which session the conversation goes on in, and how long it is."""
    if new is not None:
        return "A new session"
    name = session if session is not None else catalogue.latest(profile) or catalogue.FIRST
    found = catalogue.spelled(profile, name)
    turns = catalogue.summary(profile, found).turns if found else 0
    return f"Session {found or name}, {turns} turn{'' if turns == 1 else 's'}"


async def ask_at_terminal(command: str) -> bool:
    """Show a command and wait for y or n; Enter alone is no, and anything else is asked again."""
    print(f"The agent wants to run:\n  {printable_lines(command)}", file=sys.stderr)
    while True:
        print("Run it? [y/N] ", end="", file=sys.stderr, flush=True)
        answer = await _line()
        if not answer:
            render.new_line()
        word = answer.strip().lower()
        if word in ("", "y", "yes", "n", "no"):
            return word in ("y", "yes")


async def _line() -> str:
    """A line from the terminal, or nothing at its end (Ctrl-D)."""
    # Not a thread that reads: it could not be stopped by Ctrl-C and would take the next line away from the editor.
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline()
