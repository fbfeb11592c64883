"""A pseudo-terminal, and what a person would see on it."""

from __future__ import annotations

import os
import sys
import termios
import time
from collections.abc import Mapping
from typing import Any

import pexpect
import pyte

from tests.support.clusters import ClusterScreen
from tests.support.forked import Forked


class _Screen(ClusterScreen, pyte.HistoryScreen):
    """A screen that answers where its cursor is, which the line editor asks."""

    def __init__(self, columns: int, lines: int, child: Any) -> None:
        super().__init__(columns, lines, history=2000)
        self._child = child

    def write_process_input(self, data: str) -> None:
        self._child.send(data.encode())


class Terminal:
    """A command on a pseudo-terminal; `screen` is what a person would see of its last `rows` lines.

    Unless `forked` is false, the start of the interpreter and the imports are not its own.
    """

    def __init__(
        self,
        *arguments: str,
        columns: int = 120,
        rows: int = 60,
        environment: Mapping[str, str] | None = None,
        forked: bool = True,
    ) -> None:
        environment = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        self._child: Any
        if forked:
            self._child = Forked(arguments, environment, (rows, columns))
        else:
            self._child = pexpect.spawn(
                sys.executable,
                ["-m", "deepctl", *arguments],
                env=environment,
                dimensions=(rows, columns),
                timeout=30,
            )
        self.before = termios.tcgetattr(self._child.child_fd)
        """How the terminal was set at the start."""
        self.after: list[Any] = []
        """How it was left by `leave` and `wait`."""
        self.bytes = b""
        self._typed = -1
        """How many of them had come when a key was pressed last."""
        self._screen = _Screen(columns, rows, self._child)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def scrolled(self) -> str:
        """What a person would see who scrolls up to the beginning."""
        columns = range(self._screen.columns)
        above = ["".join(line[column].data for column in columns).rstrip() for line in self._screen.history.top]
        return "\n".join([*above, self.screen])

    @property
    def line(self) -> str:
        """The row with the cursor."""
        return str(self._screen.display[self._screen.cursor.y]).rstrip()

    def resize(self, columns: int, rows: int) -> None:
        """The window gets another size."""
        self._screen.resize(rows, columns)
        self._child.setwinsize(rows, columns)

    def _read(self, seconds: float) -> bool:
        try:
            piece = self._child.read_nonblocking(65536, seconds)
        except (pexpect.TIMEOUT, pexpect.EOF):
            return False
        self.bytes += piece
        self._stream.feed(piece)
        return True

    def expect(self, text: str, times: int = 1) -> None:
        """Wait until `text` is on the screen, so many times."""
        end = time.monotonic() + 30
        while self.screen.count(text) < times:
            assert time.monotonic() < end, f"{text!r} is not on the screen:\n{self.screen}"
            self._read(0.2)

    def prompt(self, name: str = "alice") -> None:
        """Wait until the line editor is ready and its line empty; not the line there was before a key was pressed."""
        end = time.monotonic() + 30
        while self._read(0.15) or len(self.bytes) == self._typed or self.line != f"{name}>":
            assert time.monotonic() < end, f"no prompt:\n{self.screen}"

    def type(self, text: str) -> None:
        self._typed = len(self.bytes)
        self._child.send(text.encode())

    def close(self) -> None:
        self._child.close(force=True)

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        while self._read(5.0):
            pass
        self._child.expect(pexpect.EOF)
        self.bytes += self._child.before
        self.after = termios.tcgetattr(self._child.child_fd)
        self._child.close()
        return int(self._child.exitstatus)

    def leave(self) -> int:
        """Press Ctrl-D and return the exit code."""
        self.type("\x04")
        self._child.expect(pexpect.EOF)
        self.bytes += self._child.before
        self.after = termios.tcgetattr(self._child.child_fd)
        self._child.close()
        return int(self._child.exitstatus if self._child.exitstatus is not None else -self._child.signalstatus)
