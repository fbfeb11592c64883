"""Reading lines at a terminal that can do nothing but print (TERM=dumb): the kernel edits them, nothing is drawn."""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import sys
from collections import deque
from collections.abc import Callable

from deepctl.cli import tty_modes
from deepctl.cli.repl import input
from deepctl.cli.repl.double_ctrl_c import HINT, DoubleCtrlC
from deepctl.errors import Interrupted, Terminated
from deepctl.output.text import printable


class PlainLine:
    """Entries as the kernel hands them over, line by line; a backslash at the end of a line continues it."""

    def __init__(
        self, remember: Callable[[str], None], prompt: Callable[[], str], leaving: DoubleCtrlC, told: deque[str]
    ) -> None:
        self._remember = remember
        self._prompt = prompt
        self._leaving = leaving
        self._told = told
        self._descriptor = sys.stdin.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._typed = ""
        self._entry: list[str] = []
        self._ended: asyncio.Future[str | None] | None = None

    @property
    def text(self) -> str:
        """What was typed of the entry so far, as far as the kernel has handed it over."""
        return "\n".join([*self._entry, self._typed])

    async def read(self, text: str) -> str | None:
        """One entry, or `None` if it was stopped. `text` cannot be put into the line here: it is shown."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._entry = []
        if text:
            for line in text.split("\n"):
                self._write(f"(was: {printable(line)})\n")
        if self._leaving.armed:
            self._write(f"{HINT}\n")
        self._write(self._pending() + self._prompt())
        self._take()
        if not self._ended.done():
            loop.add_reader(self._descriptor, self._ready)
        try:
            return await self._ended
        finally:
            loop.remove_reader(self._descriptor)
            self._ended = None

    def _ready(self) -> None:
        try:
            piece = os.read(self._descriptor, 65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(Terminated(signal.SIGHUP))
            return
        if not piece:
            if not self._typed and not self._entry:
                self._write("\n")
                self._end(EOFError())
            elif tty_modes.attributes(self._descriptor) is None:
                self._end(Terminated(signal.SIGHUP))
            return
        self._typed += self._decoder.decode(piece).replace("\r\n", "\n").replace("\r", "\n")
        self._take()

    def _take(self) -> None:
        """Take lines of what was typed until the entry is whole."""
        if self._typed.startswith(input.CTRL_D) and not self._entry:
            # Typed while something ran, when it was no more than a character to the kernel.
            self._typed = self._typed.lstrip(input.CTRL_D)
            self._write("\n")
            self._end(EOFError())
            return
        while "\n" in self._typed:
            line, _, self._typed = self._typed.partition("\n")
            self._leaving.key()
            if continues(line):
                self._entry.append(line[:-1])
                continue
            entry = input.whole("\n".join([*self._entry, line]))
            self._entry = []
            self._remember(entry)
            self._end(entry)
            return

    def _end(self, outcome: str | BaseException | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if isinstance(outcome, BaseException):
            self._ended.set_exception(outcome)
        else:
            self._ended.set_result(outcome)

    def stop(self) -> None:
        """End `read`, which returns `None`."""
        self._end(None)

    def ctrl_c(self) -> None:
        """Ctrl-C. The kernel has dropped what was typed of the line, and does not say whether that was anything."""
        self._leaving.key()
        was_typed = bool(self._entry or self._typed)
        self._entry, self._typed = [], ""
        if not self._leaving.is_late() and not was_typed and self._leaving.ctrl_c():
            self._write("\n")
            self._end(Interrupted("Interrupted."))
            return
        self._write(f"\n{HINT}\n{self._prompt()}" if self._leaving.armed else f"\n{self._prompt()}")

    def resumed(self) -> None:
        """The process goes on after it was stopped."""
        self._write(self._prompt())

    def refresh(self) -> None:
        """There is nothing to draw anew."""

    def show_told(self) -> None:
        """Print what was told, and the prompt after it."""
        lines = self._pending()
        if lines:
            self._write(f"\n{lines}{self._prompt()}")

    def _pending(self) -> str:
        lines = ""
        while self._told:
            lines += f"{self._told.popleft()}\n"
        return lines

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            self._end(Terminated(signal.SIGHUP))


def continues(line: str) -> bool:
    """Whether a line that is ended goes on in the next: it ends in a backslash that is not itself escaped."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def is_remembered(entry: str) -> bool:
    """Whether an entry goes into the history: not if it begins with a space, as in shells."""
    return bool(entry.strip()) and not entry.startswith(" ")
