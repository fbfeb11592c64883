"""Restoring a workspace from a tree, path by path.

Only the given paths are changed, and only if they differ: a file that already has the bytes and the mode keeps its
inode and its times. Repeating a restore after a kill finishes it. Every path is opened relative to the directory above
it, without following links, so nothing outside the workspace can be reached.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

from deepctl import cancellation
from deepctl.errors import Damaged
from deepctl.files import atomic, sparse_files
from deepctl.files.sparse_files import Hasher
from deepctl.store.object_store import ObjectReader
from deepctl.store.trees import DIRECTORY, FILE, LINK, TreeChange, TreeEntry

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FEW = 8
"""Up to this number, changed paths are synced one by one; if there are more, all at once."""


IN_USE = "another entry is in its place"
"""The reason why a directory that should be deleted stays."""


class RestoreResult(NamedTuple):
    """The result: paths that were written or changed, deleted paths, and unchanged paths with the reason."""

    written_paths: list[bytes]
    deleted_paths: list[bytes]
    kept_paths: list[tuple[bytes, str]]


class WorkingTree(Protocol):
    """A workspace that can be restored from trees: the seam between rewinds and the storage of the files."""

    def check_writable(self, changes: Iterable[TreeChange]) -> None:
        """Raises `OSError` if the directory of a change is not writable and cannot be made writable."""
        ...

    def apply(self, changes: Iterable[TreeChange], mark: str = "restore") -> RestoreResult:
        """Restore every path of `changes` to its `after`; delete it if that is `None`. `before` is ignored.

        A directory that should be deleted but contains an entry without a change stays and is reported. The caller has
        checked that the objects can be read (`check_readable`). Names of temporary files contain `mark`, so that
        `sweep` recognises those that a kill leaves. Raises `OSError` and `Damaged`.
        """
        ...

    def sweep(self, paths: Iterable[bytes], mark: str) -> None:
        """Remove the temporary files of a killed `apply` of these paths with this `mark`."""
        ...

    def unmet(self, changes: Iterable[TreeChange]) -> list[bytes]:
        """The paths of `changes` that differ from their `after`."""
        ...


def working_tree(root: str, objects: ObjectReader) -> WorkingTree:
    """The workspace in the directory `root`, with the objects that trees name."""
    return _LocalWorkingTree(root, objects)


class _LocalWorkingTree:
    """A directory on this machine."""

    def __init__(self, root: str, objects: ObjectReader) -> None:
        self._root = root
        self._objects = objects

    def check_writable(self, changes: Iterable[TreeChange]) -> None:
        for above in sorted({os.path.dirname(change.path) for change in changes}):
            try:
                with directory(self._root, above) as descriptor:
                    _check_writable(descriptor, os.path.join(os.fsencode(self._root), above))
            except (FileNotFoundError, NotADirectoryError):
                continue  # `apply` creates it

    def apply(self, changes: Iterable[TreeChange], mark: str = "restore") -> RestoreResult:
        entries = {change.path: change.after for change in changes}
        restore = _Restore(self._root, self._objects, mark)
        # Deletions come first, from the bottom up, because a file may be in the place of a directory, or the reverse.
        for path in sorted(entries, reverse=True):
            restore.clear(path, entries[path])
        for path in sorted(entries):
            entry = entries[path]
            if entry is not None:
                restore.make(path, entry)
        for path in sorted(entries, reverse=True):
            entry = entries[path]
            if entry is not None and entry.kind == DIRECTORY:
                restore.set_mode(path, entry.mode)
        restore.finish()
        return RestoreResult(restore.written, restore.deleted, restore.kept)

    def sweep(self, paths: Iterable[bytes], mark: str) -> None:
        start = os.fsencode(atomic.temporary_prefix(mark))
        for above in sorted({os.path.dirname(path) for path in paths}):
            try:
                with directory(self._root, above) as descriptor:
                    for name in os.listdir(descriptor):
                        if os.fsencode(name).startswith(start):
                            _unlink_file(name, descriptor)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue

    def unmet(self, changes: Iterable[TreeChange]) -> list[bytes]:
        unmet = []
        for change in changes:
            try:
                with directory(self._root, os.path.dirname(change.path)) as parent:
                    if not _is(parent, os.path.basename(change.path), change.after, self._objects):
                        unmet.append(change.path)
            except (FileNotFoundError, NotADirectoryError):
                if change.after is not None:
                    unmet.append(change.path)
        return unmet


def check_readable(objects: ObjectReader, changes: Iterable[TreeChange]) -> None:
    """Read all contents that `changes` need. Raises `Damaged` if a content cannot be read."""
    for change in changes:
        if change.after is not None and change.after.kind != DIRECTORY:
            for _ in objects.chunks(change.after.digest):
                pass


def check_saved(
    objects: ObjectReader, changes: Iterable[TreeChange], shown: Callable[[bytes], bytes] = lambda path: path
) -> None:
    """Read the stored contents that the changes replace. Raises `Damaged` if one cannot be read.

    `shown` returns a path in the form for the user.
    """
    for change in changes:
        before = change.before
        if before is None or before.kind == DIRECTORY or not objects.has(before.digest):
            continue
        try:
            for _ in objects.chunks(before.digest):
                pass
        except Damaged as error:
            error.hint = f"Move {os.fsdecode(shown(change.path))!r} elsewhere; deepctl cannot save its present state."
            raise


def _check_writable(descriptor: int, path: bytes) -> None:
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    if os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor, effective_ids=os.access in os.supports_effective_ids):
        return
    status = os.fstat(descriptor)
    # Missing permissions of the owner are added during the restore, so they are no problem.
    if status.st_uid != os.geteuid() or status.st_mode & 0o300 == 0o300:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _is(parent: int, name: bytes, entry: TreeEntry | None, objects: ObjectReader) -> bool:
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return entry is None
    if entry is None or kind_of(mode) != entry.kind:
        return False
    if entry.kind == LINK:
        return os.fsencode(os.readlink(name, dir_fd=parent)) == objects.read(entry.digest)
    if stat.S_IMODE(mode) != entry.mode:
        return False
    if entry.kind == DIRECTORY:
        return True
    descriptor = os.open(name, _OPEN_FILE, dir_fd=parent)
    try:
        return digest_of(descriptor, entry.size) == entry.digest
    finally:
        os.close(descriptor)


def _unlink_file(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        pass  # a directory is not a temporary file, whatever its name is


class _Restore:
    """The state of one `apply`."""

    def __init__(self, root: str, objects: ObjectReader, mark: str) -> None:
        self._mark = mark
        self._root = root
        self._objects = objects
        self._blocked: set[bytes] = set()
        self._loosened: dict[bytes, int] = {}
        self._touched: set[bytes] = set()
        self.written: list[bytes] = []
        self.deleted: list[bytes] = []
        self.kept: list[tuple[bytes, str]] = []

    @contextmanager
    def _parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory above `path`, open and writable, and the last name."""
        *above, name = path.split(b"/")
        descriptor = os.open(self._root, _OPEN_DIRECTORY)
        try:
            for number, part in enumerate(above):
                inner = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                if mode & 0o300 != 0o300:
                    self._loosened.setdefault(b"/".join(above[: number + 1]), mode)
                    os.fchmod(descriptor, mode | 0o300)
            yield descriptor, name
        finally:
            os.close(descriptor)

    def clear(self, path: bytes, entry: TreeEntry | None) -> None:
        """Remove the entry at `path` if it should be deleted, or has another kind than `entry`."""
        try:
            with self._parent(path) as (parent, name):
                mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
                if entry is not None and kind_of(mode) == entry.kind:
                    return
                if stat.S_ISDIR(mode):
                    os.rmdir(name, dir_fd=parent)
                elif kind_of(mode) is None:
                    self._keep(path, "it is not a file, link or directory")
                    return
                else:
                    os.unlink(name, dir_fd=parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._keep(path, IN_USE)
            return
        self._touched.add(os.path.dirname(path))
        if entry is None:
            self.deleted.append(path)

    def _keep(self, path: bytes, reason: str) -> None:
        self._blocked.add(path)
        self.kept.append((path, reason))

    def make(self, path: bytes, entry: TreeEntry) -> None:
        """Restore `path` to `entry` if it differs. Directories get their mode later."""
        if path in self._blocked:
            return
        if any(path.startswith(above + b"/") for above in self._blocked):
            self._keep(path, "another entry is in the place of its directory")
            return
        with self._parent(path) as (parent, name):
            if entry.kind == DIRECTORY:
                is_changed = _make_directory(parent, name)
            elif entry.kind == LINK:
                is_changed = self._make_link(parent, name, entry)
            else:
                is_changed = self._make_file(parent, name, path, entry)
        if is_changed:
            self._touched.add(os.path.dirname(path))
            self.written.append(path)

    def _temporary(self) -> bytes:
        return os.fsencode(atomic.temporary_name(self._mark))

    def _make_link(self, parent: int, name: bytes, entry: TreeEntry) -> bool:
        target = self._objects.read(entry.digest)
        try:
            if os.fsencode(os.readlink(name, dir_fd=parent)) == target:
                return False
        except FileNotFoundError:
            pass
        temporary_name = self._temporary()
        os.symlink(target, temporary_name, dir_fd=parent)
        try:
            os.rename(temporary_name, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            # Already renamed, if a signal arrived right after the rename.
            with suppress(FileNotFoundError):
                os.unlink(temporary_name, dir_fd=parent)
            raise
        return True

    def _make_file(self, parent: int, name: bytes, path: bytes, entry: TreeEntry) -> bool:
        try:
            descriptor = os.open(name, _OPEN_FILE, dir_fd=parent)
        except (FileNotFoundError, PermissionError):
            descriptor = -1
        if descriptor >= 0:
            try:
                status = os.fstat(descriptor)
                is_right = stat.S_IMODE(status.st_mode) == entry.mode
                # A file with other hard links has one mode for all of them, and they may lie outside the workspace.
                if (is_right or status.st_nlink == 1) and digest_of(descriptor, entry.size) == entry.digest:
                    return self._set_mode(descriptor, path, entry.mode)
            finally:
                os.close(descriptor)
        temporary_name = self._temporary()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with atomic.naming(os.fsdecode(path)):
            descriptor = os.open(temporary_name, flags, 0o600, dir_fd=parent)
        try:
            try:
                atomic.hold_temporary(descriptor)
                sparse_files.write(descriptor, self._objects.chunks(entry.digest))
                self._set_mode(descriptor, path, entry.mode)
                if len(self.written) < _FEW:
                    os.fsync(descriptor)
                os.rename(temporary_name, name, src_dir_fd=parent, dst_dir_fd=parent)
            finally:
                os.close(descriptor)
        except BaseException:
            # Already renamed, if a signal arrived right after the rename.
            with suppress(FileNotFoundError):
                os.unlink(temporary_name, dir_fd=parent)
            raise
        return True

    def set_mode(self, path: bytes, mode: int) -> None:
        """Set the mode of a directory, after everything in it is in place."""
        if path in self._blocked:
            return
        mode_before = self._loosened.pop(path, None)
        with self._parent(path) as (parent, name):
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
            try:
                if self._set_mode(descriptor, path, mode) and mode_before != mode and path not in self.written:
                    self.written.append(path)
            finally:
                os.close(descriptor)

    def _set_mode(self, descriptor: int, path: bytes, mode: int) -> bool:
        """Set a mode; returns whether it was different. A bit that the user may not set is reported."""
        if stat.S_IMODE(os.fstat(descriptor).st_mode) == mode:
            return False
        os.fchmod(descriptor, mode)
        real = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if real != mode:
            self.kept.append((path, f"its mode is {real:04o}, because {mode:04o} is not allowed"))
        return True

    def finish(self) -> None:
        """Restore the modes of directories that were made writable, and sync all changes."""
        for path, mode in sorted(self._loosened.items(), reverse=True):
            try:
                with self._parent(path) as (parent, name):
                    descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
                    os.fchmod(descriptor, mode)
                    os.close(descriptor)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it was made writable to be emptied, and has been deleted
        if len(self.written) > _FEW or len(self._touched) > _FEW:
            os.sync()
            return
        for path in self._touched:
            try:
                with directory(self._root, path) as descriptor:
                    os.fsync(descriptor)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it is no longer a directory; the directory above it is in the set


@contextmanager
def directory(root: str, path: bytes) -> Iterator[int]:
    """A directory of a workspace, opened without following links."""
    descriptor = os.open(root, _OPEN_DIRECTORY)
    try:
        for part in filter(None, path.split(b"/")):
            inner = os.open(part, _OPEN_DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _make_directory(parent: int, name: bytes) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def kind_of(mode: int) -> bytes | None:
    """The kind of an entry with this mode in a tree; `None` if it is neither file, link nor directory."""
    if stat.S_ISDIR(mode):
        return DIRECTORY
    if stat.S_ISLNK(mode):
        return LINK
    return FILE if stat.S_ISREG(mode) else None


def digest_of(descriptor: int, size: int) -> bytes | None:
    """The hash of an open file; `None` if its size differs from `size`."""
    if os.fstat(descriptor).st_size != size:
        return None
    with cancellation.stoppable(lambda: None):  # no cancellation: a started rewind must be finished or undone
        return Hasher().hashed(descriptor)[0]
