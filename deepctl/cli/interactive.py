"""The conversation at a terminal, as a plain loop: read a line, run a turn."""

from __future__ import annotations

import asyncio
import sys
import termios
from typing import TYPE_CHECKING

from deepctl.errors import DeepctlError, Interrupted, ProfileGone, Terminated
from deepctl.output import render
from deepctl.output.text import visible

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
        except (Terminated, ProfileGone):
            raise
        except Interrupted:
            render.new_line()
            talk.display.notice("Stopped; what was complete is kept.")
        except DeepctlError as error:
            render.error(error, as_json=False)


def _shown(text: str, most: int) -> list[str]:
    """What is asked about, so that it is what is seen: no line is out of sight, and nothing in one is invisible."""
    lines = [visible(line) for line in text.split("\n")] if text else []
    left_out = len(lines) - most
    if left_out > 0:
        half = most // 2
        lines = [*lines[:half], f"… {left_out} lines are not shown here; say no if that matters …", *lines[-half:]]
    return [line if len(line) <= _MAX_WIDTH else _cut(line) for line in lines]


def _cut(line: str) -> str:
    half = _MAX_WIDTH // 2
    return f"{line[:half]} … {len(line) - _MAX_WIDTH} characters are not shown … {line[-half:]}"


_MAX_LINES = 20
_MAX_DIFF = 100
_MAX_WIDTH = 600
_WANTS = {"execute": "run", "write": "write", "edit": "edit", "read": "read"}


async def ask_at_terminal(question: Question) -> Answer:
    """Show a command, or what changes in a file, and wait for an answer; Enter alone is no."""
    from deepctl.agent.approvals import Answer

    what = "this command" if question.operation == "execute" else "this file"
    render.say(f"The agent wants to {_WANTS[question.operation]}:")
    for line in [*_shown(question.target, _MAX_LINES), *_shown(question.preview, _MAX_DIFF)]:
        render.say(f"  {line}")
    # What was typed before the question could be read is no answer to it.
    termios.tcflush(sys.stdin, termios.TCIFLUSH)
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
