"""A container that runs for as long as somebody holds it: its start, its commands, and its end.

The container's main process does nothing but read its stdin, and this process holds the other end. When the end
is closed, by `Held.close` or because the process died of whatever cause, the main process ends, and with it, as
the kernel has it, every process in the container's pid namespace. The container itself stays, stopped.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from deepctl.sandbox.daemon import connect, sdk, translated
from deepctl.sandbox.policy import MOUNT, Unavailable

# What `docker start` by anyone but us starts ends by itself, as nobody greets it. The answer proves, before any
# command runs, that our end of stdin is the one that keeps the container up.
MAIN = "timeout 5 head -n 1 >/dev/null && echo held && exec cat >/dev/null"
"""What the main process is told, as a script of `sh`."""

_GREETING = b"\n"
_ANSWER = b"held"
_STDERR = 2
_SECONDS_TO_END = 10
_HEAD = struct.Struct(">BxxxL")
"""What is before each piece of what a command prints: where it was written to, and how many bytes there are."""
_PIECE = 1 << 16


class Held:
    """A running container that lives no longer than this object, or this process. Safe to use from any thread."""

    def __init__(self, name: str, identity: str, api: Any) -> None:
        """Of `open_container` only: starts the container `identity`, and keeps `api` until `close`."""
        self.name = name
        self._identity = identity
        self._api = api
        self._lock = threading.Lock()
        self._closed = False
        self._line = _start(api, name, identity)

    def close(self) -> None:
        """End every process in the container, and wait until they are gone. The container stays, stopped.

        Closing it again does nothing. Raises `Unavailable` if the daemon does not confirm the end; stdin is closed
        even then, so that the container ends all the same if the daemon still works.
        """
        with self._lock:
            if self._closed:
                return
            try:
                with translated():
                    self._line.close()
                    end(self._api, self._identity)
                self._closed = True
            finally:
                self._api.close()

    def kill_all(self) -> None:
        """End every process in the container, and start it again: empty, under the same name and id.

        `/tmp` is empty afterwards. Does nothing once closed. Raises `Unavailable` if that fails; nothing runs
        in the container then, as far as the daemon can be told anything, and `close` is still to be called.
        """
        with self._lock:
            if self._closed:
                return
            with translated():
                self._line.close()
                end(self._api, self._identity)
                self._line = _start(self._api, self.name, self._identity)

    def execute(self, argv: list[str], variables: Mapping[str, str], sink: Sink) -> int | None:
        """Run a command as the user this process belongs to, what it prints going to `sink`. Returns its exit code.

        `None` if it was broken off: because `sink` had enough, or because the container ended, by `kill_all` for
        instance. Raises `Unavailable` if it could not be started.
        """
        with translated():
            api = connect()
            try:
                made = api.exec_create(
                    self._identity,
                    argv,
                    environment=dict(variables),
                    workdir=MOUNT,
                    user=f"{os.getuid()}:{os.getgid()}",
                )
                stream = api.exec_start(made["Id"], socket=True)
                try:
                    for number, data in _frames(stream):
                        if not sink(*((b"", data) if number == _STDERR else (data, b""))):
                            return None
                finally:
                    _close(stream)
                code = api.exec_inspect(made["Id"])["ExitCode"]
                return None if code is None else int(code)
            finally:
                api.close()


Sink = Callable[[bytes, bytes], bool]
"""Takes what came on stdout and on stderr; whether it wants more."""


class _Line:
    """The connection that carries the container's stdin, and its first words back."""

    def __init__(self, api: Any, identity: str) -> None:
        stream = api.attach_socket(identity, params={"stdin": 1, "stdout": 1, "stream": 1})
        # The SDK hands out a reader of the socket, the socket itself (TLS) or an SSH channel; the last two send.
        self._sending = getattr(stream, "_sock", stream)
        self._stream = stream

    def greet(self, seconds: float) -> bool:
        """Say the word the main process waits for. True once it has answered, False if it ended instead.

        Raises `TimeoutError` if neither happens.
        """
        heard = b""
        deadline = time.monotonic() + seconds
        try:
            self._sending.sendall(_GREETING)
            while _ANSWER not in heard:
                self._sending.settimeout(max(deadline - time.monotonic(), 0.001))
                some = self._sending.recv(4096)
                if not some:
                    return False
                heard += some
        except (BrokenPipeError, ConnectionResetError):
            return False  # it ended before it could be told, or before the daemon had read it
        return True

    def close(self) -> None:
        """Close stdin, now: the daemon is told even if something else still refers to the connection."""
        try:
            self._sending.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The other end was first.
        _close(self._stream)


def _frames(stream: Any) -> Iterator[tuple[int, bytes]]:
    """What comes from a command, in pieces, each with the number of what it was written to.

    Read where the SDK has read the head of the answer. Its own reader goes past that, to the socket, and never sees
    what came along with the head: all that a quick command prints, if this process was late.
    """
    # The SDK's timeout is for answers; a command may be silent for as long as it likes.
    getattr(stream, "_sock", stream).settimeout(None)
    reader = stream._response.raw._fp.fp
    read = getattr(reader, "read1", reader.read)
    while len(head := reader.read(_HEAD.size)) == _HEAD.size:
        number, left = _HEAD.unpack(head)
        while left:
            data = read(min(left, _PIECE))
            if not data:
                return
            left -= len(data)
            yield number, data


def _close(stream: Any) -> None:
    """Close a connection that the SDK has handed out."""
    # Each of these keeps it open on its own. The response goes first: it fails on a closed stream.
    for held in (getattr(stream, "_response", None), getattr(stream, "_sock", None), stream):
        if held is not None:
            held.close()


def _start(api: Any, name: str, identity: str) -> _Line:
    """Start a stopped container. Attached first, so that it never runs without somebody to hold it."""
    line = _Line(api, identity)
    try:
        api.start(identity)
        if line.greet(_SECONDS_TO_END):
            return line
    except BaseException:
        # Where the start did succeed, this ends it.
        line.close()
        raise
    line.close()
    raise Unavailable(
        f"The container {name} ended at once.",
        "Its image needs the commands sh, timeout, head and cat; choose another.",
    )


def end(api: Any, identity: str) -> None:
    """Kill the container, if there is one and it runs, and wait until it has ended."""
    errors = sdk().errors
    try:
        try:
            api.kill(identity)
        except errors.APIError as error:
            if error.status_code != 409:  # 409: it does not run.
                raise
        api.wait(identity, timeout=_SECONDS_TO_END, condition="not-running")
    except errors.NotFound:
        pass
