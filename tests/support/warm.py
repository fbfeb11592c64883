"""Chats on pseudo-terminals, each a process of its own that has imported everything already.

Importing the agent stack takes a second, and many chats are ended here. So one process imports it and then forks: what
a test talks to is a process as any other, with its own session, its own terminal and its own end.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from fcntl import ioctl
from typing import Any

import pyte

_LIMIT = 30.0
"""Seconds after which something that does not come is a failure."""

_FORKING = """
import json, os, sys
import deepctl.agent.chat, deepctl.agent.mcp, deepctl.cli.chat, deepctl.cli.repl.repl
import deepctl.output.stream.display, deepctl.output.stream.turn_view, prompt_toolkit.shortcuts, rich.console
from deepctl.cli.main import run
for line in sys.stdin:
    wanted = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        terminal = os.open(wanted["terminal"], os.O_RDWR)
        for number in range(3):
            os.dup2(terminal, number)
        if terminal > 2:
            os.close(terminal)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["directory"])
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        sys.argv = ["deepctl", *wanted["arguments"]]
        exec(wanted["first"])
        run()
    print(json.dumps(child), flush=True)
    print(json.dumps(os.waitpid(child, 0)[1]), flush=True)
"""


class Warm:
    """The process that forks; one chat at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, terminal: str, arguments: Sequence[str], first: str) -> int:
        """Start `deepctl ARGUMENTS` at a terminal after running the code `first`; returns the process's id."""
        assert self._process.stdin is not None
        wanted = {
            "terminal": terminal,
            "arguments": [*arguments],
            "environment": {**os.environ, "TERM": "xterm-256color"},
            "directory": os.getcwd(),
            "first": first,
        }
        print(json.dumps(wanted), file=self._process.stdin, flush=True)
        return int(self._line())

    def status(self) -> int:
        """How the chat ended, as `waitpid` has it; waits for that."""
        return int(self._line())

    def has_ended(self) -> bool:
        """Whether `status` would not wait."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def _line(self) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], _LIMIT)[0], "the chat does not end"
        raw = b""
        while not raw.endswith(b"\n"):
            # Not by a reader with a buffer, in which `select` could not see the next line.
            raw += os.read(self._process.stdout.fileno(), 1)
        return json.loads(raw)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Chat:
    """A chat at a pseudo-terminal of 40 by 100: what it writes, what a person sees, and how it ends."""

    def __init__(self, warm: Warm, *arguments: str, first: str = "") -> None:
        self._master, terminal = pty.openpty()
        self._closed = False
        self._status: int | None = None
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self.before = termios.tcgetattr(terminal)
        self._warm = warm
        self.pid = warm.start(os.ttyname(terminal), ("chat", *arguments), first)
        os.close(terminal)
        self.bytes = b""
        self._typed = -1
        self._screen = pyte.HistoryScreen(100, 40, history=1000)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def attributes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._master)

    def _read(self, seconds: float) -> bool:
        if self._closed or not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:
            # Nobody has the other end open any more: the process ends, or has not begun.
            time.sleep(min(seconds, 0.02))
            return False
        self.bytes += piece
        self._stream.feed(piece)
        return True

    def expect(self, text: str, times: int = 1) -> None:
        """Wait until `text` is on the screen, so many times."""
        end = time.monotonic() + _LIMIT
        while self.screen.count(text) < times:
            assert time.monotonic() < end, f"{text!r} is not on the screen:\n{self.screen}"
            self._read(0.05)

    def settle(self, seconds: float = 0.3) -> None:
        """Take what comes in that time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read(0.05)

    def prompt(self, line: str = "") -> None:
        """Wait until the line editor is ready, with `line` in it; not as it was before a key was pressed."""
        wanted = f"alice> {line}".rstrip()
        end = time.monotonic() + _LIMIT
        while (
            self._read(0.05)
            or len(self.bytes) == self._typed
            or self._screen.display[self._screen.cursor.y].rstrip() != wanted
        ):
            assert time.monotonic() < end, f"no {wanted!r}:\n{self.screen}"

    def type(self, text: str) -> None:
        self._typed = len(self.bytes)
        os.write(self._master, text.encode())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def hang_up(self) -> None:
        """The terminal's window is closed."""
        os.close(self._master)
        self._closed = True

    def status(self) -> int:
        """The exit code, or the negative number of the signal that ended it; waits for that."""
        if self._status is None:
            end = time.monotonic() + _LIMIT
            while not self._warm.has_ended():
                assert time.monotonic() < end, f"the chat does not end:\n{self.screen}"
                self._read(0.02)
            while self._read(0.0):
                pass
            self._status = os.waitstatus_to_exitcode(self._warm.status())
        return self._status

    def has_ended(self, seconds: float) -> bool:
        """Whether it has ended by itself after that time, or before."""
        end = time.monotonic() + seconds
        while not self._warm.has_ended() and time.monotonic() < end:
            self._read(0.02)
        return self._warm.has_ended()

    def close(self) -> None:
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._warm.status()
        if not self._closed:
            os.close(self._master)
