"""The conversation at a terminal, as a plain loop: read a line, run a turn."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from deepctl.domain import profiles
from deepctl.errors import DeepctlError, Interrupted, Terminated
from deepctl.files import durable
from deepctl.output import render
from deepctl.output.text import printable_lines

if TYPE_CHECKING:
    from deepctl.cli.chat import Talk


def converse(talk: Talk, session: str | None, new: str | None) -> None:
    """Talk until Ctrl-D. Ctrl-C stops a turn, or empties the line that is being typed.

    The lock is held during turns only, so an idle conversation keeps nobody waiting.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory

    with profiles.lock(talk.root, talk.user, command="chat", wait=talk.wait):
        profile = talk.profile()
    durable.make_private_file(profile.prompt_history)
    editor: PromptSession[str] = PromptSession(history=FileHistory(profile.prompt_history))
    talk.display.notice("Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            prompt = editor.prompt(f"{profile.name}> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if not prompt.strip():
            continue
        try:
            session, new = talk.turn(prompt, session, new), None
        except Terminated:
            raise
        except Interrupted:
            talk.display.notice("\nStopped; what was complete is kept.")
        except DeepctlError as error:
            render.error(error, as_json=False)


async def ask_at_terminal(command: str) -> bool:
    """Show a command and wait for y or n; anything but yes is no."""
    print(f"The agent wants to run:\n  {printable_lines(command)}", file=sys.stderr)
    print("Run it? [y/N] ", end="", file=sys.stderr, flush=True)
    # Not a thread that reads: it could not be stopped by Ctrl-C and would take the next line away from the editor.
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    answer = sys.stdin.readline()
    return answer.strip().lower() in ("y", "yes")
