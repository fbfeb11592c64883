"""A web application in processes of its own: an ASGI application under uvicorn on 127.0.0.1."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
_STARTED = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")
_SECONDS_TO_START = 60.0
_SECONDS_TO_STOP = 20.0


class WebServer:
    """A running application.

    Attributes:
        url: Its address.
        log: What it has printed so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, workers: int) -> None:
        self._process = process
        self._log = log
        self._workers = workers
        self.url = ""

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pids(self) -> list[int]:
        """The processes that answer requests."""
        if self._workers == 1:
            return [self._process.pid]
        with open(f"/proc/{self._process.pid}/task/{self._process.pid}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split() if _is_worker(int(pid))]

    def peak_memory(self) -> int:
        """The sum of the most bytes of memory that each of these processes has had at once."""
        return sum(_peak(pid) for pid in self.pids)

    def await_start(self) -> None:
        """Wait until all workers answer. Fails with the log if the server ends."""
        deadline = time.monotonic() + _SECONDS_TO_START
        while (log := self.log).count("Application startup complete") < self._workers or not _STARTED.search(log):
            assert self._process.poll() is None, log
            assert "Traceback" not in log, log
            assert time.monotonic() < deadline, log
            time.sleep(0.05)
        self.url = _STARTED.findall(log)[0]

    def stop(self) -> None:
        """End it as a service manager does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise


def _is_worker(pid: int) -> bool:
    # The other child is the resource tracker of multiprocessing.
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"spawn_main" in file.read()


def _peak(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@contextmanager
def served(
    app: str,
    log: Path,
    environment: Mapping[str, str],
    *,
    workers: int = 1,
    python: str = sys.executable,
    directory: Path = EXAMPLES,
) -> Iterator[WebServer]:
    """Serve `app`, as `module:name` of a module in `directory`, until the end of the context.

    The server prints into `log`, whose directory is its current one. `environment` is added to that of this process.
    """
    arguments = ["--app-dir", str(directory), app, "--port", "0", "--no-access-log", "--timeout-graceful-shutdown", "5"]
    # A client that sends a request on a connection that the server is closing gets an error.
    arguments += ["--timeout-keep-alive", "120"]
    if workers > 1:
        arguments += ["--workers", str(workers)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", "uvicorn", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=log.parent,
            env={**os.environ, **environment},
        )
    server = WebServer(process, log, workers)
    try:
        server.await_start()
        yield server
    finally:
        server.stop()
