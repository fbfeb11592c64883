"""Asking the person at the terminal before something is done: the command or the change, and one key for the answer."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from deepctl.cli import tty_modes
from deepctl.output import render
from deepctl.output.terminal_caps import has_colour
from deepctl.output.text import visible, wrapped

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from deepctl.agent.approvals import ApprovalAnswer, ApprovalRequest, Ask
    from deepctl.output.stream.turn_events import Display

_MAX_LINES = 20
_MAX_DIFF = 100
_MAX_WIDTH = 600
_WANTS = {"execute": "run a command", "write": "write a file", "edit": "edit a file", "read": "read a file"}
_FOR_GOOD = {"execute": "this command", "mcp": "this tool"}
_MOST_READ = 4096
_READING = 0.3
"""Seconds in which nobody has read what it is about: whoever presses a key means something else."""
_TYPING = 0.5
"""Seconds after which somebody who was typing has stopped."""
_QUIET = 0.03
"""Seconds in which a person does not press a second key, and a terminal has sent the rest of a paste."""


@runtime_checkable
class _Pausable(Protocol):
    def paused(self) -> AbstractContextManager[None]: ...


def ask_at_terminal(display: Display) -> Ask:
    """Who is asked: the person in front of the terminal that `display` draws on."""

    async def ask(question: ApprovalRequest) -> ApprovalAnswer:
        with _undisturbed(display):
            return await _ask(question)

    return ask


@contextmanager
def _undisturbed(display: Display) -> Iterator[None]:
    with tty_modes.quiet():
        if isinstance(display, _Pausable):
            with display.paused():
                yield
        else:
            yield


async def _ask(question: ApprovalRequest) -> ApprovalAnswer:
    """Show what it is about and wait for a key; Enter and Escape are no, and so is the end of the terminal."""
    from deepctl.agent.approvals import ApprovalAnswer

    wants = f"The agent wants to {_WANTS.get(question.operation, 'use a tool outside the sandbox')}:"
    render.say(wrapped(wants, sys.stderr))
    _show(question, _MAX_LINES, _MAX_DIFF)
    await _no_longer_typing()
    for_good = _FOR_GOOD.get(question.operation, "this file")
    is_cut = _is_cut(question.target, _MAX_LINES) or _is_cut(question.preview, _MAX_DIFF)
    more = ", [s]how all" if is_cut else ""
    while True:
        keys = f"Allow it? [y]es, [a]lways {for_good}, [N]o, [t]ell why not{more}:"
        render.say_part(f"{wrapped(keys, sys.stderr)} ")
        key = await _key()
        # Who is used to it presses Enter as well.
        match key.rstrip("\r\n") or key[:1]:
            case "y" | "Y":
                render.say("yes")
                return ApprovalAnswer(allow=True)
            case "a" | "A":
                render.say("always")
                return ApprovalAnswer(allow=True, always=True)
            case "t" | "T":
                render.say("no")
                return ApprovalAnswer(allow=False, word=await _reason())
            case "s" | "S" if is_cut:
                render.say("all of it")
                _show(question, sys.maxsize, sys.maxsize)
            case "n" | "N" | "\r" | "\n" | "\x1b" | "\x04" | "":
                render.say("no")
                return ApprovalAnswer(allow=False)
            case _:
                # Any other key, or several that were pasted: neither a yes nor a no.
                render.say("one of these keys, please")


def _show(question: ApprovalRequest, most: int, most_of_diff: int) -> None:
    for line in _shown(question.target, most):
        render.say(f"  {line}")
    colours = has_colour(sys.stderr)
    for line in _shown(question.preview, most_of_diff):
        code = {"+": 32, "-": 31, "@": 36}.get(line[:1]) if colours and question.operation != "mcp" else None
        render.say(f"  {line}" if code is None else f"  \x1b[{code}m{line}\x1b[0m")


def _shown(text: str, most: int) -> list[str]:
    """What is asked about, so that it is what is seen: no line is out of sight, and nothing in one is invisible."""
    lines = [visible(line) for line in text.split("\n")] if text else []
    left_out = len(lines) - most
    if left_out > 0:
        half = most // 2
        lines = [*lines[:half], f"… {left_out} lines are not shown here; s shows them …", *lines[-half:]]
    if most == sys.maxsize:
        return lines
    return [line if len(line) <= _MAX_WIDTH else _cut(line) for line in lines]


def _is_cut(text: str, most: int) -> bool:
    return _shown(text, most) != _shown(text, sys.maxsize)


def _cut(line: str) -> str:
    half = _MAX_WIDTH // 2
    return f"{line[:half]} … {len(line) - _MAX_WIDTH} characters are not shown here; s shows them … {line[-half:]}"


async def _no_longer_typing() -> None:
    """What was typed before the question could be read is no answer to it, and neither is the rest of that."""
    await asyncio.sleep(_READING)
    while select.select([sys.stdin], [], [], 0)[0]:
        try:
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        except termios.error:
            return  # the terminal is gone, which reading from it finds out
        await asyncio.sleep(_TYPING)


async def _key() -> str:
    """What the next key sends; nothing where the terminal is gone."""
    # Not a thread that reads: it could not be stopped by Ctrl-C and would take the next line away from the editor.
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    descriptor = sys.stdin.fileno()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    pressed = b""
    try:
        # All that is there, so that no end of a paste, or of what a terminal reports, is taken for a key.
        while select.select([descriptor], [], [], _QUIET if pressed else 0)[0]:
            some = os.read(descriptor, _MOST_READ)
            if not some:
                break
            pressed = (pressed + some)[-_MOST_READ:] if len(pressed) + len(some) > _MOST_READ else pressed + some
    except OSError:
        return ""
    return pressed.decode(errors="replace")


async def _reason() -> str:
    """A line for the agent."""
    with tty_modes.plain():
        render.say_part("What should the agent know? ")
        line = await _key()
    if not line.endswith("\n"):
        render.say("")
    return line.strip()
