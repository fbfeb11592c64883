"""One writer per profile: a kernel lock, so that a killed process leaves no lock behind.

The lock file is outside the profile (`<root>/locks/<name>`), so that wiping the profile does not delete its lock. The
lock file also contains the holder: process id, command and start time, and the project in which it works.

A project is locked too, by `DirectoryLock`: two profiles, or two roots, can have the same project.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import ClassVar, NamedTuple, Protocol, Self

from deepctl import quantities
from deepctl.errors import DeepctlError, Locked
from deepctl.files import atomic
from deepctl.files.paths_beneath import is_within

_POLL_SECONDS = 0.05
APPLICATION = "library"
"""The command of a holder that is an application with deepctl as a library."""

_HINT = "Wait for it to finish, or give --wait SECONDS."
_NO_LOCKS = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that cannot lock a directory: NFS wants it open for writing, which a directory cannot be."""
_KERNEL_LOCKS = "/proc/locks"
_MAX_TEXT = 65536
"""Bytes of the longest text of a lock file: a path can have 4,096 characters, each of them escaped."""


class Holder(NamedTuple):
    """The holder of a lock. `since` is RFC 3339 in UTC. `directory` is the project in which it works, if any."""

    pid: int
    command: str
    since: str
    directory: str | None = None

    def __str__(self) -> str:
        work = "an application" if self.command == APPLICATION else f"`deepctl {self.command}`"
        return f"pid {self.pid}, {work}, since {self.since}"


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
            _write_holder(descriptor, holder)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return self

    def _acquire(self, descriptor: int) -> None:
        for _ in _attempts(self._wait):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                continue
        holder = _parse(os.pread(descriptor, _MAX_TEXT, 0))
        message = f"Another process is {self._work}{f' ({holder})' if holder else ''}."
        raise Locked(message, _HINT).of(holder.pid if holder else None)

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


class DirectoryLock:
    """The exclusive lock of a directory of the user in which an agent works, as a context manager.

    The directory itself is locked exclusively, and each directory above it shared. So two processes never work in one
    directory, nor one of them above the other. Only directories above that belong to the user are locked: others are
    no projects, and their owner could keep every lock from being taken. A file system that cannot lock directories is
    no error; the lock has no effect there.

    `path` is absolute and without links. `lock_file` is that of the profile, which the caller has locked; the directory
    is added to its text. `wait` is in seconds; 0 does not wait. Raises `Locked` (exit 4), naming the holder if it is
    known. While a process holds it for a profile, a second one of that profile in or above the directory does nothing:
    a turn may have to finish a killed rewind.
    """

    _held: ClassVar[list[tuple[str, str]]] = []
    """The locks of this process: the lock file of the profile, and the directory."""

    def __init__(self, path: str, *, lock_file: str, wait: float = 0.0) -> None:
        self._path = path
        self._lock_file = lock_file
        self._wait = wait
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        if any(lock_file == self._lock_file and _are_near(self._path, path) for lock_file, path in self._held):
            return self
        problem = None
        for _ in _attempts(self._wait):
            problem = self._take()
            if problem is None:
                break
        if problem is not None:
            raise self._locked(problem)
        self._held.append((self._lock_file, self._path))
        self._name_directory()
        return self

    def _take(self) -> str | None:
        """Take all locks; returns the directory whose lock another process has, and then holds none."""
        try:
            for path in (self._path, *_above(self._path)):
                if not self._take_one(path):
                    self._release()
                    return path
        except BaseException:
            self._release()
            raise
        return None

    def _take_one(self, path: str) -> bool:
        is_own = path == self._path
        try:
            descriptor = os.open(path, atomic.OPEN_DIRECTORY)
        except OSError:
            if is_own:
                raise
            return True  # it cannot be listed, so no agent can work in it
        self._descriptors.append(descriptor)
        if not is_own and os.fstat(descriptor).st_uid != os.geteuid():
            return True
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if is_own else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        return True

    def _locked(self, other_path: str) -> Locked:
        """The error; `other_path` is the directory whose lock was not free."""
        holder = next(_holders_near(self._path, self._lock_file), None)
        pid = _pid_by_kernel(other_path) if holder is None else None
        owner = f" ({holder})" if holder is not None else f" (pid {pid})" if pid is not None else ""
        place = holder.directory if holder is not None and holder.directory is not None else other_path
        if place == self._path:
            where = place if holder is not None else f"{place}, or in a directory in it"
        elif is_within(self._path, place):
            where = f"{place}, which contains {self._path}"
        else:
            where = f"{place}, which is in {self._path}"
        return Locked(f"Another process is working in {where}{owner}.", _HINT).of(holder.pid if holder else pid)

    def _name_directory(self) -> None:
        """Add the directory to the text of the profile's lock."""
        with suppress(OSError):
            descriptor = atomic.open_regular(self._lock_file, os.O_RDWR)
            try:
                holder = _parse(os.pread(descriptor, _MAX_TEXT, 0))
                if holder is not None:
                    _write_holder(descriptor, holder._replace(directory=self._path))
            finally:
                os.close(descriptor)

    def _release(self) -> None:
        while self._descriptors:
            with suppress(OSError):
                os.close(self._descriptors.pop())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._descriptors:
            self._held.remove((self._lock_file, self._path))
        self._release()


def _attempts(wait: float) -> Iterator[None]:
    """One attempt at once, and further ones until `wait` seconds have passed."""
    deadline = time.monotonic() + wait
    while True:
        yield
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 0:
            return
        time.sleep(min(_POLL_SECONDS, seconds_left))


def _above(path: str) -> Iterator[str]:
    """The directories above a path, the nearest first; not the root of the file system."""
    while (path := os.path.dirname(path)) != os.path.dirname(path):
        yield path


def _are_near(path: str, other_path: str) -> bool:
    """Whether one of two directories is the other one, or in it."""
    return is_within(other_path, path) or is_within(path, other_path)


def _holders_near(path: str, own_lock: str) -> Iterator[Holder]:
    """The holders of the locks beside `own_lock` that work in the directory `path`, above it, or in it."""
    locks, own_name = os.path.split(own_lock)
    with suppress(OSError):
        for name in os.listdir(locks):
            if name == own_name:
                continue
            with suppress(OSError, DeepctlError):
                found = _parse(atomic.read_file(os.path.join(locks, name)))
                if found is None or found.directory is None:
                    continue
                # The text of a killed process stays.
                if _are_near(found.directory, path) and holder(os.path.join(locks, name)) == found:
                    yield found


def _pid_by_kernel(path: str) -> int | None:
    """The process that has locked a directory, if the kernel tells it: a line for each lock, such as
    `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234 0 EOF`.
    """
    with suppress(OSError, ValueError, IndexError):
        inode = os.stat(path).st_ino
        with open(_KERNEL_LOCKS, "rb") as lines:
            for line in lines:
                words = line.split()
                # The numbers of a device differ from those of `stat` on some file systems.
                if b"FLOCK" in words and int(words[-3].split(b":")[-1]) == inode:
                    pid = int(words[-4])
                    return pid if pid > 0 else None
    return None


def _write_holder(descriptor: int, holder: Holder) -> None:
    """Write the holder into a lock file. A full disk must not prevent the lock, as the text is only for messages."""
    fields = {name: value for name, value in holder._asdict().items() if value is not None}
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(fields).encode() + b"\n", 0)


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
            return _parse(os.pread(descriptor, _MAX_TEXT, 0)) or Holder(0, "?", "?")
        return None
    finally:
        os.close(descriptor)
