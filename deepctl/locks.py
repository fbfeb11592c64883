"""One writer per profile: a kernel lock, so that a killed process leaves no lock behind.

The lock file is outside the profile (`<root>/locks/<name>`), so that wiping the profile does not delete its lock. The
lock file also contains the holder: process id, command and start time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from deepctl import quantities
from deepctl.errors import Locked
from deepctl.files import atomic

_POLL_SECONDS = 0.05


class Holder(NamedTuple):
    """The holder of a lock. `since` is RFC 3339 in UTC."""

    pid: int
    command: str
    since: str


class Lease(Protocol):
    """The right to change a profile, as a context manager: one of the seams that `docs/design.md` lists."""

    def __enter__(self) -> Self:
        """Take the lock. Raises `Locked`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock."""


class Lock:
    """The exclusive lock of one profile, as a context manager.

    `wait` is in seconds; 0 does not wait. Raises `Locked` (exit 4), naming the holder, after this time. `work` tells in
    this error what the holder does, if it is not work on a profile.
    """

    def __init__(self, path: str, *, command: str, profile: str = "", work: str = "", wait: float = 0.0) -> None:
        self._path = path
        self._work = work or f"working on profile {profile!r}"
        self._command = command
        self._wait = wait
        self._descriptor = -1

    def __enter__(self) -> Self:
        atomic.make_root(os.path.dirname(self._path))
        descriptor = atomic.open_regular(self._path, os.O_RDWR | os.O_CREAT)
        try:
            self._acquire(descriptor)
            holder = Holder(os.getpid(), self._command, quantities.now_in_seconds())
            # The text is only for error messages of other processes, so a full disk must not prevent the lock.
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(holder._asdict()).encode() + b"\n", 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def _acquire(self, descriptor: int) -> None:
        deadline = time.monotonic() + self._wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    raise self._locked(descriptor) from None
                time.sleep(min(_POLL_SECONDS, seconds_left))

    def _locked(self, descriptor: int) -> Locked:
        holder = _parse(os.pread(descriptor, 4096, 0))
        owner = f" (pid {holder.pid}, `deepctl {holder.command}`, since {holder.since})" if holder else ""
        return Locked(
            f"Another process is {self._work}{owner}.",
            "Wait for it to finish, or give --wait SECONDS.",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The holder is erased before the descriptor is closed, which releases the lock. An error here does not fail the
        # finished work, because the kernel releases the lock in any case.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1


def _parse(raw: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(raw))
    except (ValueError, TypeError):
        return None


def holder(path: str) -> Holder | None:
    """The present holder of the lock, or `None`. The lock is taken only for a moment."""
    try:
        descriptor = atomic.open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(os.pread(descriptor, 4096, 0)) or Holder(0, "?", "?")
        return None
    finally:
        os.close(descriptor)
