"""Removing a directory and its contents, for any owner, mode and depth; and temporary home directories.

Descriptors are used, so that no swapped link is followed. There is no recursion, and very deep directories are moved up
first, so that any depth works. Unreadable and read-only directories get permissions first. A failure does not stop the
removal of the rest. `shutil.rmtree` recurses, and stops at the first error.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from contextlib import suppress

from deepctl.files import atomic

_ALL = 0o700
_DEEP = 64
"""Maximum number of open directories."""
_ROUNDS = 100
"""Maximum number of attempts to empty a directory in which others create new names."""
_OFTEN = 0x3FF

Report = Callable[[int], None]


def remove_tree(path: str, report: Report | None = None) -> int:
    """Remove a directory with its contents, or a file or a link (never its target), if it exists.

    Returns the number of removed names, `path` itself included; `report` receives the progress. Raises the first
    `OSError`, naming the file, after everything else was removed; a second call continues. Links in the path to `path`
    are followed, so the caller must check them.
    """
    above = os.path.dirname(path)
    parent = os.open(above or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _TreeRemoval(above, report).run(parent, os.path.basename(path))
    finally:
        os.close(parent)


def make_anew(path: str) -> None:
    """Replace any entry by an empty private directory. Raises `OSError`."""
    remove_tree(path)
    atomic.make_new_directory(path)


def remove_entry(parent: int, name: str, report: Report | None = None) -> int:
    """The same for `name` in the directory that `parent` is a descriptor of."""
    return _TreeRemoval("", report).run(parent, name)


def move_entry(parent: int, name: str, to: int, new_name: str) -> None:
    """Rename `name` in the directory `parent` to `new_name` in the directory `to`, for any kind. Raises `OSError`."""
    try:
        os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=to)
    except PermissionError as error:
        # Moving a directory writes its `..`, which needs write permission on it.
        try:
            allow(parent, name)
        except OSError:
            raise error from None
        os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=to)


def allow(parent: int, name: str) -> None:
    """Give the owner all permissions on a directory. A link in its place is an `OSError`."""
    if not hasattr(os, "O_PATH"):
        os.chmod(name, _ALL, dir_fd=parent, follow_symlinks=False)
        return
    descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{descriptor}", _ALL)
    finally:
        os.close(descriptor)


class _OpenDirectory:
    """A directory during the removal: its remaining subdirectories, and whether an entry has to stay."""

    __slots__ = ("descriptor", "directories", "name", "rounds", "stays")

    def __init__(self, descriptor: int, name: str, rounds: int) -> None:
        self.descriptor = descriptor
        self.name = name
        self.directories: list[str] = []
        self.rounds = rounds
        self.stays = False


class _TreeRemoval:
    def __init__(self, place: str, report: Report | None) -> None:
        self._place = place
        self._report = report
        self._count = 0
        self._way: list[_OpenDirectory] = []
        self._problem: OSError | None = None

    def run(self, parent: int, name: str) -> int:
        try:
            self._enter(parent, name)
            while self._way:
                level = self._way[-1]
                if level.directories:
                    self._go_below(level, level.directories.pop())
                else:
                    self._leave(level, self._way[-2].descriptor if len(self._way) > 1 else parent)
        finally:
            for level in self._way:
                os.close(level.descriptor)
        if self._problem is not None:
            raise self._problem
        return self._count

    def _enter(self, parent: int, name: str, rounds: int = 0) -> None:
        """Remove everything in a directory except subdirectories, which are queued."""
        try:
            level = _OpenDirectory(_opened(parent, name), name, rounds)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                self._unlink(parent, name)
            else:
                self._keep(error, name)
            return
        self._way.append(level)
        try:
            with os.scandir(level.descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        level.directories.append(entry.name)
                    else:
                        self._unlink(level.descriptor, entry.name)
        except OSError as error:
            self._keep(error, "")
        if self._report is not None:
            self._report(self._count)

    def _unlink(self, parent: int, name: str) -> None:
        try:
            os.unlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.EISDIR and self._way:
                self._way[-1].directories.append(name)  # it was not a directory before
            else:
                self._keep(error, name)
            return
        self._count += 1
        if self._report is not None and not self._count & _OFTEN:
            self._report(self._count)

    def _go_below(self, level: _OpenDirectory, name: str) -> None:
        if len(self._way) < _DEEP:
            self._enter(level.descriptor, name)
            return
        up = f".deep-{os.urandom(8).hex()}"
        top = self._way[0]
        try:
            move_entry(level.descriptor, name, top.descriptor, up)
        except OSError as error:
            self._keep(error, name)
        else:
            top.directories.append(up)

    def _leave(self, level: _OpenDirectory, parent: int) -> None:
        """Remove an empty directory."""
        self._way.pop()
        os.close(level.descriptor)
        if level.stays:
            self._mark()
            return
        try:
            os.rmdir(level.name, dir_fd=parent)
            self._count += 1
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and level.rounds < _ROUNDS:
                # Another process created new names in it, or replaced it.
                self._enter(parent, level.name, level.rounds + 1)
            else:
                self._keep(error, level.name)

    def _keep(self, error: OSError, name: str) -> None:
        """An entry cannot be removed, so its parent cannot be removed either. An entry that another process removed is
        no error.
        """
        if isinstance(error, FileNotFoundError):
            return
        self._mark()
        if self._problem is None:
            error.filename = os.path.join(self._place, *(level.name for level in self._way), name).rstrip("/")
            error.filename2 = None
            self._problem = error

    def _mark(self) -> None:
        if self._way:
            self._way[-1].stays = True


def _opened(parent: int, name: str) -> int:
    """A descriptor of a directory with all permissions for its owner."""
    try:
        descriptor = os.open(name, atomic.OPEN_DIRECTORY, dir_fd=parent)
    except PermissionError:
        allow(parent, name)
        descriptor = os.open(name, atomic.OPEN_DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_mode & 0o300 != 0o300:
            os.fchmod(descriptor, _ALL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class PrivateHome:
    """A directory that is created on first use: at `path`, else in a temporary place."""

    def __init__(self, path: str | None = None) -> None:
        self._wanted = path
        self._remove: weakref.finalize[[str], PrivateHome] | None = None
        self._path = ""

    def path(self) -> str:
        """Its path. Leftovers of a killed process have been removed."""
        if self._remove is None or not self._remove.alive:
            if self._wanted is None:
                import tempfile  # which many commands do not need

                self._path = tempfile.mkdtemp(prefix="deepctl-home-")
            else:
                atomic.make_root(os.path.dirname(self._wanted))
                make_anew(self._wanted)
                self._path = self._wanted
            self._remove = weakref.finalize(self, _remove_if_possible, self._path)
        return self._path

    def close(self) -> None:
        """Remove it. The next use creates another one."""
        if self._remove is not None:
            self._remove()


def _remove_if_possible(path: str) -> None:
    # Entries that cannot be removed are removed before the next use, and wiped with the profile.
    with suppress(OSError):
        remove_tree(path)
