"""A command on a pseudo-terminal, and what a person would see on it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyte

from tests.support.clusters import ClusterScreen, HistoryScreen, TwoScreens
from tests.support.template import ForkedProcess, can_fork

_LIMIT = 30.0
"""Seconds after which something that does not come is a failure."""

_ON_TERMINAL = 'exec "$@" <>"$0" >&0 2>&0'
"""A session leader without a terminal gets the first that it opens as its controlling one."""


class _Screen(TwoScreens, ClusterScreen, HistoryScreen):
    """A screen that answers where its cursor is, which the line editor asks."""

    def __init__(self, columns: int, lines: int, send: Callable[[bytes], None]) -> None:
        super().__init__(columns, lines, history=2000)
        self._send = send

    def write_process_input(self, data: str) -> None:
        self._send(data.encode())


class Terminal:
    """`deepctl ARGUMENTS` on a terminal; `screen` is what a person would see of its last `rows` lines.

    Unless `forked` is false, it is forked off the template process, after which it runs the code `first`.
    """

    def __init__(
        self,
        *arguments: str,
        columns: int = 120,
        rows: int = 60,
        environment: Mapping[str, str] | None = None,
        forked: bool = True,
        first: str = "",
    ) -> None:
        variables = {**os.environ, "TERM": "xterm-256color", **(environment or {})}
        self._master, there = pty.openpty()
        self._is_open = True
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(there)
        """How the terminal was set at the start."""
        self.after: list[Any] = []
        """How it was left by `leave` and `wait`."""
        self.bytes = b""
        self._typed = -1
        """How many of them had come when a key was pressed last."""
        self._screen = _Screen(columns, rows, self._send)
        self._stream = pyte.ByteStream(self._screen)
        self.process: subprocess.Popen[bytes]
        if forked and can_fork(variables):
            self.process = ForkedProcess(
                arguments, (there, there, there), environment=variables, terminal=True, first=first
            )
        else:
            assert not first
            command = [sys.executable, "-m", "deepctl", *arguments]
            self.process = subprocess.Popen(
                ["sh", "-c", _ON_TERMINAL, os.ttyname(there), *command],
                env=variables, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        # A command that is started anew opens it later. Until then, this is its only other end.
        self._there: int | None = there
        if isinstance(self.process, ForkedProcess):
            self._let_go()

    def _let_go(self) -> None:
        if self._there is not None:
            os.close(self._there)
            self._there = None

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

    def attributes(self) -> list[Any]:
        """How the terminal is set now."""
        return termios.tcgetattr(self._master)

    def resize(self, columns: int, rows: int) -> None:
        """The window gets another size."""
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_past_the_screen(self, seconds: float, size: int = 1 << 20) -> bytes:
        """What comes within that time, which neither `bytes` nor the screen gets.

        The screen takes a minute for what a terminal draws in a second.
        """
        if not self._is_open or not select.select([self._master], [], [], seconds)[0]:
            return b""
        raw = bytearray()
        # A terminal hands out 4 KiB at most at a time.
        while len(raw) < size and (not raw or select.select([self._master], [], [], 0.0)[0]):
            try:
                raw += os.read(self._master, size)
            except OSError:  # Its other end is closed.
                break
        if raw:
            self._let_go()
        else:
            time.sleep(min(seconds, 0.02))
        return bytes(raw)

    def _read(self, seconds: float) -> bool:
        """Take what comes within that time; whether something did."""
        raw = self.read_past_the_screen(seconds, 65536)
        self.bytes += raw
        self._stream.feed(raw)
        return bool(raw)

    def expect(self, text: str, times: int = 1) -> None:
        """Wait until `text` is on the screen, so many times."""
        end = time.monotonic() + _LIMIT
        while self.screen.count(text) < times:
            assert time.monotonic() < end, f"{text!r} is not on the screen:\n{self.screen}"
            self._read(0.2)

    def prompt(self, line: str = "", *, name: str = "alice") -> None:
        """Wait until the line editor is ready with `line` in it; not as it was before a key was pressed."""
        wanted = f"{name}> {line}".rstrip()
        end = time.monotonic() + _LIMIT
        while self._read(0.15) or len(self.bytes) == self._typed or self.line != wanted:
            assert time.monotonic() < end, f"no {wanted!r}:\n{self.screen}"

    def settle(self, seconds: float = 0.3) -> None:
        """Take what comes in that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.05)

    def type(self, text: str) -> None:
        self._typed = len(self.bytes)
        self._send(text.encode())

    def _send(self, raw: bytes) -> None:
        while raw:
            raw = raw[os.write(self._master, raw) :]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        os.kill(self.process.pid, number)

    def hang_up(self) -> None:
        """The terminal's window is closed."""
        self._let_go()
        os.close(self._master)
        self._is_open = False

    def has_ended(self, seconds: float) -> bool:
        """Whether the command has ended by itself after that time, or before."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            self._read(0.02)
        return self.process.poll() is not None

    def wait(self) -> int:
        """Wait for the end; the exit code, or the negative number of the signal that ended the command."""
        end = time.monotonic() + _LIMIT
        while self.process.poll() is None:
            assert time.monotonic() < end, f"the command does not end:\n{self.screen}"
            self._read(0.02)
        while self._read(0.0):
            pass
        if self._is_open:
            self.after = termios.tcgetattr(self._master)
        code: int = self.process.returncode
        return code

    def leave(self) -> int:
        """Press Ctrl-D and wait for the end."""
        self.type("\x04")
        return self.wait()

    def close(self) -> None:
        """Close the window, and end what does not end by itself then."""
        if self._is_open:
            self.hang_up()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        self.process.kill()
        self.process.wait()

    def __del__(self) -> None:
        if self._is_open:
            os.close(self._master)
