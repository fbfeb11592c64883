"""A profile in the making: what is imported is written to `profiles/.import-<random>`, where no command sees it.

Whoever writes there holds a kernel lock on that directory, so that the next command can tell what a killed one left.
Everything is opened relative to the directory above it, without following links and only if it is new. So a name that
comes twice, a file where a directory must be and a link in the way are errors, never writes to another place.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Self

from deepctl.domain.transfer.archive import Entry, raw
from deepctl.files import atomic, rmtree
from deepctl.layout import IMPORT, Root

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Misplaced(Exception):
    """An entry that does not follow the directory it belongs in."""


def _held(path: str) -> int | None:
    """A descriptor that holds the lock of the directory at `path`, or `None` if somebody else does, or it is gone."""
    try:
        descriptor = os.open(path, _DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


class Staging:
    """A private directory for one profile; a context manager that removes it unless it has been moved to its place.

    Entries come as in an archive: a directory right before everything in it. Raises `Misplaced` where they do not, and
    `OSError`; `EEXIST` is a name that comes twice.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._descriptor = -1
        self.path = ""
        self._open: list[tuple[int, Entry]] = []

    def __enter__(self) -> Self:
        # Between its making and its locking, somebody who cleans up may take it for one that was left.
        while self._descriptor < 0:
            self.path = os.path.join(self._root.profiles, IMPORT + os.urandom(8).hex())
            try:
                atomic.make_new_directory(self.path)
                held = _held(self.path)
            except BaseException:
                with suppress(OSError):
                    os.rmdir(self.path)
                raise
            self._descriptor = held if held is not None else -1
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            os.close(self._open.pop()[0])
        try:
            if os.path.lexists(self.path):
                rmtree.remove_tree(self.path)
        finally:
            os.close(self._descriptor)

    def directory(self, entry: Entry) -> None:
        """Make a directory; it gets its mode and its time when everything in it is there."""
        parent, name = self._parent(entry)
        os.mkdir(name, 0o700, dir_fd=parent)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        os.fchmod(descriptor, 0o700)
        self._open.append((descriptor, entry))

    def link(self, entry: Entry) -> None:
        """Make a symbolic link."""
        parent, name = self._parent(entry)
        os.symlink(raw(entry.target), name, dir_fd=parent)

    def file(self, entry: Entry, pieces: Iterable[bytes]) -> None:
        """Make a file."""
        parent, name = self._parent(entry)
        with _closing(os.open(name, _NEW, 0o600, dir_fd=parent)) as descriptor:
            for piece in pieces:
                atomic.write_all(descriptor, piece)
            _dress(descriptor, entry)

    def _parent(self, entry: Entry) -> tuple[int, bytes]:
        above, _, name = entry.path.rpartition("/")
        while self._open and not _is_in(above, self._open[-1][1].path):
            self._leave()
        if above != (self._open[-1][1].path if self._open else ""):
            raise Misplaced
        return self._open[-1][0] if self._open else self._descriptor, raw(name)

    def _leave(self) -> None:
        descriptor, entry = self._open.pop()
        with _closing(descriptor):
            _dress(descriptor, entry)

    def complete(self) -> None:
        """Everything is there; make it last."""
        while self._open:
            self._leave()
        os.sync()
        os.fsync(self._descriptor)

    def move(self, directory: str) -> None:
        """Let it be the profile in `directory`, where nothing is. The caller holds that profile's lock."""
        os.rename(self.path, directory)
        atomic.sync_directory(self._root.profiles)


def _is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def _dress(descriptor: int, entry: Entry) -> None:
    """Give a file or directory its mode and its time; no more than a mode may be that comes from elsewhere."""
    os.fchmod(descriptor, wanted_mode(entry))
    # A time that this file system cannot hold is no reason to do without the file.
    with suppress(OverflowError, OSError):
        os.utime(descriptor, ns=(entry.modified, entry.modified))


def wanted_mode(entry: Entry) -> int:
    """What an entry's mode becomes: deepctl's own are private, the workspace's keep theirs but for setuid and such."""
    if entry.path.startswith("workspace/"):
        return entry.mode & 0o777
    return atomic.DIRECTORY_MODE if entry.kind == "directory" else atomic.FILE_MODE


def is_stripped(entry: Entry) -> bool:
    """Whether an entry has a setuid, setgid or sticky bit that it does not get here."""
    return entry.path.startswith("workspace/") and bool(entry.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX))


@contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
