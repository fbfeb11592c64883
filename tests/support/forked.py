"""Commands on pseudo-terminals, each forked off a process that has imported everything already.

Importing the agent stack takes a second of processor time. What is forked is a process as any other, with its own
session, its own terminal and its own end; only the start of the interpreter is not its own.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
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
from pathlib import Path
from typing import Any

import pexpect

_LIMIT = 30.0
"""Seconds after which something that does not come is a failure."""

_TEMPLATE = """
import fcntl, json, os, sys, termios
sys.path.insert(0, sys.argv[1])
from tests.support import tool_schemas
del sys.path[0]
import deepctl.agent.chat, deepctl.agent.mcp, deepctl.cli.chat, deepctl.cli.repl.repl
import deepctl.output.stream.display, deepctl.output.stream.turn_view, prompt_toolkit.shortcuts, rich.console
from deepctl.agent.factory import create_deep_agent
from deepctl.cli.main import run
tool_schemas.remember()
for execute in (False, True):
    create_deep_agent("offline", include_execute=execute)
requests = sys.stdin
for line in requests:
    wanted = json.loads(line)
    if "wait" in wanted:
        pid, status = os.waitpid(wanted["wait"], wanted["flags"])
        print(json.dumps([pid, status]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        os.setsid()
        terminal = os.open(wanted["terminal"], os.O_RDWR)
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(terminal, number)
        if terminal > 2:
            os.close(terminal)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["directory"])
        encoding = sys.stdout.encoding
        sys.stdin = sys.__stdin__ = open(0, encoding=encoding)
        sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding)
        sys.stderr = sys.__stderr__ = open(2, "w", encoding=encoding, errors="backslashreplace")
        sys.argv = ["deepctl", *wanted["arguments"]]
        run()
    print(json.dumps([child, 0]), flush=True)
"""


class _Template:
    def __init__(self) -> None:
        # A session of its own: no signal that is meant for a test comes here.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TEMPLATE, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/",
        )  # fmt: skip
        atexit.register(self._stop)

    def ask(self, **wanted: Any) -> tuple[int, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._process.stdin.flush()
        assert select.select([self._process.stdout], [], [], _LIMIT)[0], "nothing comes from what forks"
        pid, status = json.loads(self._process.stdout.readline())
        return pid, status

    def _stop(self) -> None:
        self._process.kill()
        self._process.communicate()  # which closes its pipes


@functools.cache
def _template() -> _Template:
    return _Template()


class Forked:
    """What `pexpect.spawn` is to `Terminal`, for `deepctl ARGUMENTS`."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], dimensions: tuple[int, int]) -> None:
        self.child_fd, terminal = pty.openpty()
        self.setwinsize(*dimensions)
        self.exitstatus: int | None = None
        self.signalstatus: int | None = None
        self.before = b""
        self._ended = self._closed = False
        self.pid, _ = _template().ask(
            terminal=os.ttyname(terminal), arguments=[*arguments], environment=environment, directory=os.getcwd()
        )
        # It is open there as well before this end of it goes: reading would be at an end otherwise.
        self._terminal: int | None = terminal

    def setwinsize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.child_fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, raw: bytes) -> None:
        while raw:
            raw = raw[os.write(self.child_fd, raw) :]

    def isalive(self) -> bool:
        if not self._ended:
            self._note(*_template().ask(wait=self.pid, flags=os.WNOHANG))
        return not self._ended

    def _note(self, pid: int, status: int) -> None:
        if pid == 0:
            return
        self._ended = True
        code = os.waitstatus_to_exitcode(status)
        self.exitstatus, self.signalstatus = (code, None) if code >= 0 else (None, -code)

    def read_nonblocking(self, size: int, seconds: float) -> bytes:
        end = time.monotonic() + seconds
        raw = bytearray()
        while len(raw) < size:
            # A terminal hands out 4 KiB at most at a time.
            wait = 0.0 if raw else min(0.05, max(0.0, end - time.monotonic()))
            if select.select([self.child_fd], [], [], wait)[0]:
                piece = self._piece(size - len(raw))
                if not piece and not raw:
                    raise pexpect.EOF("the terminal has no other end any more")
                if not piece:
                    break
                raw += piece
            elif raw:
                break
            elif time.monotonic() >= end:
                raise pexpect.TIMEOUT("nothing comes")
            elif self._terminal is not None and not self.isalive():
                os.close(self._terminal)
                self._terminal = None
        return bytes(raw)

    def _piece(self, size: int) -> bytes:
        try:
            return os.read(self.child_fd, size)
        except OSError:
            return b""

    def expect(self, _end: type[pexpect.EOF]) -> None:
        """Take what comes until the end."""
        self.before = b""
        end = time.monotonic() + _LIMIT
        while time.monotonic() < end:
            with suppress(pexpect.TIMEOUT):
                try:
                    self.before += self.read_nonblocking(65536, 1.0)
                except pexpect.EOF:
                    return
        raise pexpect.TIMEOUT(f"it does not end: {self.before!r}")

    def close(self, force: bool = True) -> None:
        if self._closed:
            return
        self._closed = True
        if self._terminal is not None:
            os.close(self._terminal)
        os.close(self.child_fd)
        if not self._ended:
            end = time.monotonic() + 0.5
            while self.isalive() and time.monotonic() < end:
                time.sleep(0.02)
        if not self._ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._note(*_template().ask(wait=self.pid, flags=0))
