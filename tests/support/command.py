"""Running deepctl as its users do, and reading what it says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

from deepctl.cli.main import main
from tests.support.template import ForkedProcess, can_fork


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.stdout)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of `chat --json`."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The error of a command with `--json`: the only line on stderr."""
        (line,) = self.stderr.splitlines()
        found: dict[str, Any] = json.loads(line)["error"]
        return found

    def ok(self) -> Result:
        """The result itself, if the command succeeded."""
        assert self.code == 0, self
        return self


class InProcess:
    """Calls `main`; stdin is empty or what is given, and no stream is a terminal."""

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Result:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        previous = sys.stdin
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), "utf-8")
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(list(arguments))
        finally:
            sys.stdin = previous
        out.flush()
        err.flush()
        return Result(code, _text(out), _text(err))


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", "surrogateescape")


class Command:
    """Runs `deepctl` in a process of its own, forked off the template process.

    It starts Python anew where `forked` is false or a test has changed `argv`, and where a fork would not do: other
    options of `Popen` than streams, or variables that Python reads at its start.
    """

    argv = (sys.executable, "-m", "deepctl")

    def __init__(self) -> None:
        self.forked = True
        self._started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
        running = self.start(*arguments, env=env, stdin=subprocess.PIPE)
        out, err = running.communicate(stdin, timeout=60)
        return Result(running.returncode, out.decode(), err.decode())

    def start(self, *arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command and leave it running; stdout and stderr are pipes unless `options` say otherwise."""
        streams = {
            "stdin": options.pop("stdin", subprocess.DEVNULL),
            "stdout": options.pop("stdout", subprocess.PIPE),
            "stderr": options.pop("stderr", subprocess.PIPE),
        }
        environment = {**os.environ, **(env or {})}
        if options or not self.forked or self.argv != Command.argv or not can_fork(environment):
            running = subprocess.Popen([*self.argv, *arguments], env=environment, **streams, **options)
        else:
            running = ForkedProcess(arguments, (*streams.values(),), environment=environment)
        self._started.append(running)
        return running

    def stop(self) -> None:
        """End what `start` started, and close its pipes."""
        for running in self._started:
            running.kill()
            running.wait()
            for pipe in (running.stdin, running.stdout, running.stderr):
                if pipe is not None:
                    pipe.close()
