"""Stopping long work: the work calls `look` between two files, and between two pieces of a large file.

`look` raises the reason for the stop. So no signal handler has to raise in the middle of other code, and a time limit
holds for work that does not yield to the event loop.

A read that waits for a pipe or a terminal is stopped by `interruptible`.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import BinaryIO, cast

Look = Callable[[], None]
"""Returns if the work may continue; otherwise raises `Interrupted`, `Terminated` or `TimedOut`."""

_LOOK: ContextVar[Look | None] = ContextVar("deepctl_look", default=None)

_BUFFER_BYTES = 1 << 16


@contextmanager
def stoppable(by: Look) -> Iterator[None]:
    """Inside this context `by` decides whether long work continues."""
    token = _LOOK.set(by)
    try:
        yield
    finally:
        _LOOK.reset(token)


def look() -> None:
    """Raise the reason to stop the work, if there is one."""
    by = _LOOK.get()
    if by is not None:
        by()


def interruptible(stream: BinaryIO) -> BinaryIO:
    """`stream`, read so that no signal is lost. Reading starts at the position of the descriptor and bypasses any
    buffer.

    Python runs the handler of a signal when a read returns or fails with `EINTR`. A signal that arrives just before the
    read starts to wait does neither, so Ctrl-C would have no effect while the other end of the pipe stays open, or
    until the next key.
    """
    try:
        descriptor = stream.fileno()
    except OSError:
        return stream
    is_write_only = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    if is_write_only or threading.current_thread() is not threading.main_thread():
        return stream
    return cast("BinaryIO", io.BufferedReader(_SignalAwareReader(stream), _BUFFER_BYTES))


class _SignalAwareReader(io.RawIOBase):
    """Waits for data and for signals at once, and reads only available data."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream  # keeps the descriptor open
        self._wakes, self._waker = os.pipe()
        for descriptor in (self._wakes, self._waker):
            os.set_blocking(descriptor, False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._wait()
        return os.readv(self._stream.fileno(), [buffer])

    def _wait(self) -> None:
        """Return when there is data or the end, or raise the error of a signal handler."""
        descriptor = self._stream.fileno()
        before = signal.set_wakeup_fd(-1)
        try:
            signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
            while descriptor not in (ready := select.select([descriptor, self._wakes], [], [])[0]):
                if self._wakes in ready:
                    os.read(self._wakes, 4096)
        finally:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        if not self.closed:
            os.close(self._wakes)
            os.close(self._waker)
        super().close()
