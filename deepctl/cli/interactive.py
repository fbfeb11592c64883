"""The conversation at a terminal, as a plain loop: read a line, run a turn."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from deepctl.errors import DeepctlError, Interrupted, Terminated
from deepctl.output import render
from deepctl.output.text import printable

if TYPE_CHECKING:
    from deepctl.agent.approvals import Answer, Question
    from deepctl.cli.talking import Talk


_HELP = "Ctrl-C stops an answer; Ctrl-D or /exit leaves."


def converse(talk: Talk, session: str | None, new: str | None) -> None:
    """Talk until Ctrl-D. Ctrl-C stops a turn, or empties the line that is being typed.

    The lock is held during turns only, so an idle conversation keeps nobody waiting.
    """
    from prompt_toolkit import PromptSession

    talk.display.notice(f"{talk.begin(session, new)} {_HELP}")
    editor: PromptSession[str] = PromptSession(history=talk.history(), enable_suspend=True)
    while True:
        try:
            prompt = editor.prompt(f"{talk.name}> ")
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


_WANTS = {"execute": "run", "write": "write", "edit": "edit", "read": "read"}


async def ask_at_terminal(question: Question) -> Answer:
    """Show a command, or what changes in a file, and wait for an answer; Enter alone is no."""
    from deepctl.agent.approvals import Answer

    what = "this command" if question.operation == "execute" else "this file"
    render.say(f"The agent wants to {_WANTS[question.operation]}:")
    for line in [*question.target.splitlines(), *question.preview.splitlines()]:
        render.say(f"  {printable(line)}")
    while True:
        print(
            "Allow it? [y]es, [a]lways " + what + ", [N]o, or n and a word to the agent: ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        answer = await _line()
        if not answer:
            render.new_line()
        first, _, word = answer.strip().partition(" ")
        match first.lower():
            case "y" | "yes" if not word:
                return Answer(allow=True)
            case "a" | "always" if not word:
                return Answer(allow=True, always=True)
            case "" | "n" | "no":
                return Answer(allow=False, word=word.strip())


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
