"""A template process that has imported all of deepctl, and the commands that are forked off it.

Starting Python and importing the agent stack takes a second of processor time; a fork takes milliseconds. A forked
command is a process of its own, with its own streams, terminal, signals and end. Only the start of the interpreter and
the imports are not its own: tests whose subject is the start use `Command.cold` or `Terminal(forked=False)`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.support import tool_schemas

_ROOT = Path(__file__).parents[2]
_LIMIT = 60.0
"""Seconds after which a template process that does not answer is a failure."""

_MESSAGE_BYTES = 1 << 20
_FIXED_AT_THE_START = ("PYTHON", "LC_", "LANG", "COVERAGE_")
"""Beginnings of the names of variables that only the start of an interpreter reads."""

_IMPORTED_AT_FIRST_USE = (
    *("anyio._backends._asyncio", "encodings.utf_8_sig", "markdown_it", "mdurl", "prompt_toolkit.input.vt100"),
    *("prompt_toolkit.shortcuts", "rich.console", "tarfile", "tomllib"),
    *("genai_prices.decompose", "genai_prices.validation", "jiter", "opentelemetry.propagate"),
    *("openai.resources.chat", "openai.resources.responses", "anthropic.resources.beta.messages"),
    *(f"pydantic_ai.{kind}.{provider}" for kind in ("models", "providers") for provider in ("openai", "anthropic")),
    *(f"deepctl.agent.{name}" for name in ("chat", "mcp")),
    *(f"deepctl.cli.{name}" for name in ("chat", "checkpoints", "main", "memory", "profiles", "repl.repl", "sessions")),
    *(f"deepctl.domain.{name}" for name in ("memory.changes", "wipe.trash")),
    *(f"deepctl.domain.transfer.{name}" for name in ("profile_export", "profile_import")),
    *(f"deepctl.output.{name}" for name in ("rewind", "stream.display", "stream.turn_view")),
)
"""Modules that a command would import when it needs them."""


class ForkedProcess(subprocess.Popen[bytes]):
    """What `subprocess.Popen` is, for `deepctl ARGUMENTS` forked off the template process.

    Each of `streams` (stdin, stdout and stderr) is None to inherit this process's, a descriptor, or `PIPE` or
    `DEVNULL`. With `terminal`, stdin is a terminal, and becomes the controlling one of a session of the command's own.
    `first` is code that the command runs before anything else, `program` code that is run instead of a command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        streams: tuple[Any, Any, Any],
        *,
        environment: Mapping[str, str],
        directory: str | None = None,
        terminal: bool = False,
        first: str = "",
        program: str = "",
    ) -> None:
        # `Popen.__init__` is not called: it would start the process. These are the attributes that `communicate` uses.
        self.args = ["deepctl", *arguments]
        self.returncode: Any = None
        self.encoding = self.errors = self.text_mode = None
        self._input = None
        self._communication_started = False
        self._sigint_wait_secs = 0.0
        ends, own, opened = [], [], []
        for number, stream in enumerate(streams):
            here, there = None, stream
            if stream is subprocess.PIPE:
                pair = os.pipe()
                here, there = (pair[1], pair[0]) if number == 0 else pair
                opened.append(there)
            elif stream is subprocess.DEVNULL:
                there = os.open(os.devnull, os.O_RDWR)
                opened.append(there)
            elif stream is None:
                there = number
            elif not isinstance(stream, int):
                there = stream.fileno()
            ends.append(there)
            own.append(None if here is None else open(here, "wb" if number == 0 else "rb"))  # noqa: SIM115
        self.stdin, self.stdout, self.stderr = own
        request = {
            "arguments": [*arguments],
            "environment": dict(environment),
            "directory": directory or os.getcwd(),
            "terminal": terminal,
            "first": first,
            "program": program,
        }
        try:
            self.pid, self._status = _template().fork(request, ends)
        finally:
            for descriptor in opened:
                os.close(descriptor)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, once the command has ended."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal; waits for it."""
        if self._ended(timeout) is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        code: int = self.returncode
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            raw = self._status.recv(64)
            self._status.close()
            assert raw, "the template process has ended"
            self.returncode = os.waitstatus_to_exitcode(int(raw))
        code: int | None = self.returncode
        return code

    def __del__(self, *_: Any) -> None:
        # Not Popen's, which waits for a child of this process.
        self._status.close()


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a command with that environment differs from one that was started anew in nothing but its start."""
    return _fixed(environment) == _template().fixed


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_FIXED_AT_THE_START)}


class _Template:
    """The process that forks, a request at a time; what it forks runs at once."""

    def __init__(self) -> None:
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
        self._socket.settimeout(_LIMIT)
        self.fixed = _fixed(os.environ)
        environment = {**os.environ, "PYTHONPATH": f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")}
        with there:
            # A session of its own: a signal that is meant for a test does not come here.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.support.template", str(there.fileno())],
                pass_fds=[there.fileno()], start_new_session=True, cwd="/", env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self._stop)

    def fork(self, request: dict[str, Any], streams: Sequence[int]) -> tuple[int, socket.socket]:
        """Fork a command. Returns its process id, and a socket that says its status when it has ended."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        here.settimeout(_LIMIT)
        with there:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [there.fileno(), *streams])
        pid = here.recv(64)
        assert pid, "the template process has ended"
        return int(pid), here

    def _stop(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


@functools.cache
def _template() -> _Template:
    return _Template()


def _serve(requests: socket.socket) -> NoReturn:
    """Fork what is asked for, and say how each ended, until there is no one left to ask."""
    import gc

    for name in _IMPORTED_AT_FIRST_USE:
        importlib.import_module(name)
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    from deepctl.agent.factory import create_deep_agent

    tool_schemas.remember()
    ModelMessagesTypeAdapter.validate_python([])  # its schema is made at its first use
    for include_execute in (False, True):
        create_deep_agent("offline", include_execute=include_execute)
    waker, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(waker, False)
    gc.collect()
    gc.freeze()
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    while True:
        readable = select.select([requests.fileno(), waker], [], [])[0]
        if waker in readable:
            os.read(waker, 4096)
            for pid in [*running]:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    with running.pop(pid) as waiting:
                        _say(waiting, status)
        if requests.fileno() in readable:
            raw, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES, 4)
            if not raw:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                _become(json.loads(raw), descriptors[1:])
            for descriptor in descriptors[1:]:
                os.close(descriptor)
            running[pid] = socket.socket(fileno=descriptors[0])
            _say(running[pid], pid)


def _say(waiting: socket.socket, number: int) -> None:
    try:
        waiting.send(str(number).encode())
    except OSError:
        pass  # The test that started it is not interested any more.


def _become(request: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Be the command, in a process that has just been forked."""
    import fcntl
    import tempfile
    import termios

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request["terminal"]:
        os.setsid()
        fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 1 << 16)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None
    os.chdir(request["directory"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        # A file object of its own: it knows whether it is a terminal now.
        stream = open(number, "w" if number else "r", encoding=before.encoding, errors=before.errors)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if request["program"]:
        sys.argv = ["-c", *request["arguments"]]
        _run_program(request["program"])
    sys.argv = ["deepctl", *request["arguments"]]
    if request["first"]:
        exec(request["first"], {})
    from deepctl.__main__ import run

    run()


def _run_program(program: str) -> NoReturn:
    """Run code as `python -c` does, and end."""
    code = 0
    try:
        exec(program, {"__name__": "__main__"})
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
