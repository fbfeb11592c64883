"""One writer a profile: a kernel lock, so that a killed process leaves nothing to clean up.

The lock file lies beside the profile (`<root>/locks/<name>`), so that wiping the profile does not delete
the lock it holds. Beside the lock, in the same file, stands who holds it: pid, subcommand and since when.
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
    """Who holds a lock. `since` is RFC 3339 in UTC."""

    pid: int
    command: str
    since: str


class Lease(Protocol):
    """The right to change a profile, as a context manager: one of the seams that `docs/design.md` lists."""

    def __enter__(self) -> Self:
        """Take it. Raises `Locked`."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give it back."""


class Lock:
    """The exclusive lock of one profile, as a context manager.

    `wait` is in seconds; 0 gives up at once. Raises `Locked` (exit 4), naming the holder, when time is up.
    """

    def __init__(self, path: str, *, profile: str, command: str, wait: float = 0.0) -> None:
        self._path = path
        self._profile = profile
        self._command = command
        self._wait = wait
        self._descriptor = -1

    def __enter__(self) -> Self:
        atomic.make_root(os.path.dirname(self._path))
        descriptor = atomic.open_regular(self._path, os.O_RDWR | os.O_CREAT)
        try:
            self._acquire(descriptor)
            holder = Holder(os.getpid(), self._command, quantities.now_in_seconds())
            # Only for the message of whoever finds it taken: on a full disk there must be a way to free space.
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
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise self._locked(descriptor) from None
                time.sleep(min(_POLL_SECONDS, remaining))

    def _locked(self, descriptor: int) -> Locked:
        holder = _parse(os.pread(descriptor, 4096, 0))
        owner = f" (pid {holder.pid}, `deepctl {holder.command}`, since {holder.since})" if holder else ""
        return Locked(
            f"Another process is working on profile {self._profile!r}{owner}.",
            "Wait for it, or give --wait SECONDS.",
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The holder is erased while the lock is still ours; closing the descriptor releases it.
        # What was done under it does not fail with it: the kernel frees it in any case.
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
    """Who holds the lock now, or `None` if nobody does. Takes no lock that anyone could notice for long."""
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
