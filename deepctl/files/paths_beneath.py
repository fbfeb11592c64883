"""Files inside a directory that others may be changing: a workspace.

Every path is walked component by component relative to a directory descriptor, and the kernel never follows a link. So
no `..`, no link, and no link swapped in between check and use leads outside. Two ways to treat a link:

- `follow=True`, for the agent's file tools: links are resolved here, and those that lead out are refused;
- `follow=False`, for deepctl's own files: any link is refused.

A `MountTable` has several such directories: that of a project and that of its profile. A link never leads from one into
another.

Only regular files are opened, without waiting: a FIFO or a device is an error, never a hang.

`walk` lists everything below a directory in the same way. Four other walkers exist, because each keeps an order or a
promise that this one does not: `store.trees` (a cache of directories), `rmtree` (opens closed directories, at any
depth), `domain.wipe.wipe_plan` (places within places) and `domain.transfer.profile_export` (the order of an archive).

Source of the resolution of paths: `openat2(RESOLVE_BENEATH)` of the kernel, here in user space, because Python has no
binding for it and macOS has no such call.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NamedTuple

from deepctl.files import atomic
from deepctl.files.atomic import OPEN_DIRECTORY

_MAX_LINKS = 40
_MAX_PARTS = 200
_MAX_WHOLE = 64 << 20
"""Bytes of the largest file that is read at once, because a huge sparse file must not exhaust the memory."""
_SMALL = 64 << 10
"""Bytes of the largest file that `read_cached` reads."""
_FEW = 32
"""The most names of a directory that `few_entries` lists."""
_NO_WAIT = getattr(os, "RWF_NOWAIT", None)
"""A read with this flag fails if the bytes are not in memory; only Linux has it."""

_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_within(path: str, directory: str) -> bool:
    """Whether a path is a directory, or in it, by their names. Both are absolute and normalised."""
    return path == directory or path.startswith(f"{directory.rstrip('/')}/")


def is_within_on_disk(path: str, directory: str) -> bool:
    """The same also for other names of the directory: a bind mount, or on some file systems another case of letters.

    Both are real paths. What does not exist yet is compared by its name.
    """
    if is_within(path, directory):
        return True
    try:
        status = os.stat(directory)
    except OSError:
        return False
    while True:
        with suppress(OSError):
            if os.path.samestat(os.stat(path), status):
                return True
        if path == os.path.dirname(path):
            return False
        path = os.path.dirname(path)


class OutsideTree(PermissionError):
    """A path leads out of the tree, or through a link where links are refused."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(errno.EPERM, reason, path)


class DirectoryEntry(NamedTuple):
    """One name in a directory. `size` is in bytes, `None` except for regular files; `modified` in seconds since the
    epoch.

    Links are described by their target.
    """

    name: str
    is_directory: bool
    size: int | None
    modified: float


class _PathEnd(NamedTuple):
    """The end of a path: the descriptor of its parent, the last name (empty for the root itself), and the real path."""

    parent: int
    name: str
    real: tuple[str, ...]


class DirectoryTree:
    """The directory `root` and everything below it. Paths are relative to it, or absolute and below it.

    `mount` is another absolute path of it, and the prefix of `real_path`; `aliases` are further ones. `reserved` is a
    path in it that does not exist for users of the tree. `kind` is its name in errors. Users of a `read_only` tree
    cannot change it.

    The directory is opened again for every operation, so that a deleted tree is noticed. Operations raise the usual
    `OSError`s, and `OutsideTree` for a path that leads out.
    """

    def __init__(
        self,
        root: str,
        *,
        follow: bool,
        mount: str | None = None,
        aliases: Sequence[str] = (),
        reserved: str = "",
        kind: str = "workspace",
        read_only: bool = False,
    ) -> None:
        self.kind = kind
        self.read_only = read_only
        self.root = os.path.realpath(root)
        self.mount = mount or self.root
        self._spellings = (self.root, os.path.abspath(root), self.mount, *aliases)
        self._follow = follow
        self._reserved = tuple(reserved.lower().split("/")) if reserved else None

    def check_writable(self, path: str) -> None:
        """Raise `OSError` in a read-only tree."""
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def prefix_of(self, path: str) -> str | None:
        """The longest of the absolute paths of the tree that contains `path`, a normalised one; `None` if none does."""
        roots = [root for root in self._spellings if path == root or path.startswith(root.rstrip("/") + "/")]
        return max(roots, key=len, default=None)

    def _parts(self, path: str) -> list[str]:
        if "\0" in path:
            raise ValueError("a path cannot contain a null character")
        if path.startswith("/"):
            normal = os.path.normpath(path)
            root = self.prefix_of(normal)
            if root is None:
                raise OutsideTree(path, f"outside the {self.kind}")
            path = normal[len(root) :]
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if len(parts) > _MAX_PARTS:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path[:100] + "…")
        return parts

    @contextmanager
    def _place(
        self, path: str, *, make_parents: bool = False, last_link: bool = True, missing_ok: bool = False
    ) -> Iterator[_PathEnd]:
        """Walk to the parent of `path`. With `last_link`, a link at the end is resolved (or refused) too.

        With `missing_ok`, the walk ends at a part that is no directory. The real path then has the rest as it is.
        """
        pending = self._parts(path)[::-1]
        descriptors = [os.open(self.root, _DIRECTORY)]
        names: list[str] = []
        links = 0
        try:
            while pending:
                part = pending.pop()
                if part == "..":
                    if len(descriptors) == 1:
                        raise OutsideTree(path, f"outside the {self.kind}")
                    os.close(descriptors.pop())
                    names.pop()
                    continue
                is_last = not pending
                if not is_last or last_link:
                    target = _link(descriptors[-1], part)
                    if target is not None:
                        links += 1
                        if not self._follow:
                            raise OutsideTree(path, "a symbolic link is in the way")
                        if links > _MAX_LINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                        if target.startswith("/"):
                            while len(descriptors) > 1:
                                os.close(descriptors.pop())
                            names.clear()
                        pending.extend(reversed(self._parts(target)))
                        continue
                if is_last:
                    yield self._end(path, descriptors[-1], part, (*names, part))
                    return
                try:
                    descriptors.append(self._step(descriptors[-1], part, path, make_parents))
                except (FileNotFoundError, NotADirectoryError):
                    if not missing_ok:
                        raise
                    yield self._end(path, descriptors[-1], part, (*names, part, *reversed(pending)))
                    return
                names.append(part)
            # The path ends at a directory that was entered: the root, or the target of `..` or a link.
            if not names:
                yield _PathEnd(descriptors[-1], "", ())
                return
            name = names.pop()
            yield self._end(path, descriptors[-2], name, (*names, name))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _end(self, path: str, parent: int, name: str, real: tuple[str, ...]) -> _PathEnd:
        reserved = self._reserved
        if reserved is not None and tuple(part.lower() for part in real[: len(reserved)]) == reserved:
            raise OutsideTree(path, "reserved for deepctl")
        return _PathEnd(parent, name, real)

    def _step(self, parent: int, part: str, path: str, make: bool) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
            try:
                os.mkdir(part, dir_fd=parent)
            except FileExistsError:
                pass
            return os.open(part, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ELOOP:
                # It was not a link before: another process is swapping names.
                raise OutsideTree(path, "a symbolic link is in the way") from None
            raise

    @contextmanager
    def _regular(self, path: str, flags: int, place: _PathEnd) -> Iterator[int]:
        if not place.name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        try:
            descriptor = os.open(place.name, flags | _FILE, 0o666, dir_fd=place.parent)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OutsideTree(path, "a symbolic link is in the way") from None
            if error.errno == errno.ENXIO:
                raise OSError(errno.EINVAL, "not a regular file", path) from None
            raise
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, path: str) -> bytes:
        """The content of a regular file of at most 64 MiB."""
        with self._place(path) as place, self._regular(path, os.O_RDONLY, place) as descriptor:
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(_MAX_WHOLE + 1)
        if len(data) > _MAX_WHOLE:
            raise OSError(errno.EFBIG, "too large to be read whole", path)
        return data

    def read_cached(self, path: str) -> bytes | None:
        """The content of a regular file, `None` if it is large, or must be read from a disk. Raises as `read`."""
        with self._place(path) as place, self._regular(path, os.O_RDONLY, place) as descriptor:
            size = os.fstat(descriptor).st_size
            if _NO_WAIT is None or size > _SMALL:
                return None
            buffer = bytearray(size + 1)
            try:
                count = os.preadv(descriptor, [buffer], 0, _NO_WAIT)
            except OSError:
                return None  # not in memory, or the file system does not support it
        return bytes(buffer[:size]) if count == size else None

    def write(self, path: str, data: bytes) -> None:
        """Replace or create a file, with its missing parents. A failed write leaves the old content.

        An existing file keeps its mode. A file with several hard links, or in a read-only directory, is rewritten in
        place.
        """
        self.check_writable(path)
        with self._place(path, make_parents=True) as place:
            try:
                with atomic.naming(path), self._regular(path, os.O_WRONLY, place) as descriptor:
                    status = os.fstat(descriptor)
                    if status.st_nlink > 1 or not self._replace(place, data, stat.S_IMODE(status.st_mode)):
                        os.ftruncate(descriptor, 0)
                        atomic.write_all(descriptor, data)
            except FileNotFoundError:
                with atomic.naming(path):
                    is_new = self._replace(place, data, None)
                if not is_new:
                    with self._regular(path, os.O_WRONLY | os.O_CREAT, place) as descriptor:
                        atomic.write_all(descriptor, data)

    def _replace(self, place: _PathEnd, data: bytes, mode: int | None) -> bool:
        name = atomic.temporary_name()
        try:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o666, dir_fd=place.parent)
        except PermissionError:
            return False
        try:
            try:
                atomic.hold_temporary(descriptor)
                if mode is not None:
                    os.fchmod(descriptor, mode)
                atomic.write_all(descriptor, data)
                os.rename(name, place.name, src_dir_fd=place.parent, dst_dir_fd=place.parent)
            finally:
                os.close(descriptor)
        except BaseException:
            # Already renamed, if a signal arrived right after the rename.
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=place.parent)
            raise
        return True

    def entry(self, path: str) -> DirectoryEntry:
        """The entry at `path`. Raises `FileNotFoundError` if it does not exist."""
        with self._place(path) as place:
            if not place.name:
                return _entry(os.path.basename(self.root), os.stat(place.parent))
            return _entry(place.name, os.stat(place.name, dir_fd=place.parent, follow_symlinks=False))

    def entries(self, path: str = ".") -> list[DirectoryEntry]:
        """The entries of a directory, sorted by name; a link that leads out or dangles has no size.

        Temporary files are left out.
        """
        entries = self._entries(path, None)
        assert entries is not None
        return entries

    def few_entries(self, path: str) -> list[DirectoryEntry] | None:
        """The same, `None` if the directory has many names: each of them takes a lookup."""
        return self._entries(path, _FEW)

    def _entries(self, path: str, most: int | None) -> list[DirectoryEntry] | None:
        with self._place(path) as place:
            descriptor = os.open(
                place.name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=place.parent
            )
            try:
                with os.scandir(descriptor) as dir_entries:
                    items = list(dir_entries if most is None else islice(dir_entries, most + 1))
                    if most is not None and len(items) > most:
                        return None
                    entries = []
                    for item in items:
                        if atomic.is_temporary(item.name) and not item.is_dir(follow_symlinks=False):
                            continue
                        if item.is_symlink():
                            entries.append(self._described(path, item.name))
                        else:
                            entries.append(_entry(item.name, item.stat(follow_symlinks=False)))
            finally:
                os.close(descriptor)
        return sorted(entries)

    def _described(self, path: str, name: str) -> DirectoryEntry:
        try:
            return self.entry(f"{path}/{name}")._replace(name=name)
        except OSError:
            return DirectoryEntry(name, False, None, 0.0)

    @contextmanager
    def opened(self, path: str) -> Iterator[tuple[int, bool]]:
        """The directory or regular file at `path` as a descriptor, and whether it is a directory.

        A starting point for a search: the descriptor stays valid even if the names of the path change.
        """
        with self._place(path) as place:
            try:
                descriptor = os.open(place.name or ".", _DIRECTORY, dir_fd=place.parent)
            except NotADirectoryError:
                with self._regular(path, os.O_RDONLY, place) as descriptor:
                    yield descriptor, False
                return
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise OutsideTree(path, "a symbolic link is in the way") from None
                raise
            try:
                yield descriptor, True
            finally:
                os.close(descriptor)

    def link_target(self, path: str) -> str:
        """The target text of the link at `path`."""
        with self._place(path, last_link=False) as place:
            return os.readlink(place.name, dir_fd=place.parent)

    def make_directory(self, path: str) -> None:
        """Create a directory and its missing parents, if they do not exist."""
        self.check_writable(path)
        with self._place(path, make_parents=True) as place:
            if place.name:
                os.close(self._step(place.parent, place.name, path, True))

    def remove(self, path: str) -> None:
        """Remove a file, a link (not its target) or a directory with its contents."""
        self.check_writable(path)
        with self._place(path, last_link=False) as place:
            if not place.name:
                raise ValueError("the workspace itself cannot be removed")
            if stat.S_ISDIR(os.stat(place.name, dir_fd=place.parent, follow_symlinks=False).st_mode):
                shutil.rmtree(place.name, dir_fd=place.parent)
            else:
                os.unlink(place.name, dir_fd=place.parent)

    def real_path(self, path: str) -> str:
        """The absolute target of `path`, or `/` if it leads, or could lead, out of the tree."""
        try:
            with self._place(path, missing_ok=True) as place:
                # The target of `..` after a missing name depends on the future kind of that name.
                return "/" if ".." in place.real else os.path.join(self.mount, *place.real)
        except OutsideTree:
            return "/"


class MountTable:
    """Several trees by their absolute paths. Relative paths belong to the first one.

    An absolute path belongs to the tree with the longest matching path: a project at `/workspace/project` keeps its own
    path, although `/workspace` is another name of it.
    """

    def __init__(self, first: DirectoryTree, *others: DirectoryTree) -> None:
        self.first = first
        self.trees = (first, *others)

    def tree_of(self, path: str) -> DirectoryTree:
        """The tree of a path; the first one for a path outside all of them, which that tree then refuses."""
        if len(self.trees) == 1 or not path.startswith("/"):
            return self.first
        normal = os.path.normpath(path)
        # Of two equally long paths, the first tree's counts.
        return max(self.trees, key=lambda tree: len(tree.prefix_of(normal) or ""))

    def mounted_path(self, path: str) -> str:
        """A normalised absolute path by the mount of its tree; the path itself if it is outside of all trees."""
        tree = self.tree_of(path)
        prefix = tree.prefix_of(path)
        return path if prefix is None else os.path.normpath(tree.mount + "/" + path[len(prefix) :])


def _link(parent: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError:
        return None


def _entry(name: str, status: os.stat_result) -> DirectoryEntry:
    size = status.st_size if stat.S_ISREG(status.st_mode) else None
    return DirectoryEntry(name, stat.S_ISDIR(status.st_mode), size, status.st_mtime)


MAX_DEPTH = 200
"""Maximum number of directories that `walk` has open at once; deeper ones count as unreadable."""


class WalkEntry(NamedTuple):
    """One name below a root: its path from there, and its directory, which is open until the next entry.

    `status` is `None` if it cannot be read, or is an unreadable directory. Such a directory may come twice, first with
    its status. An unreadable root has an empty path.
    """

    path: str
    parent: int
    name: str
    status: os.stat_result | None
    is_directory: bool

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.status is not None and stat.S_ISREG(self.status.st_mode)


def walk(root: str, skip: Callable[[str], bool] = lambda path: False) -> Iterator[WalkEntry]:
    """Everything below `root`, in the order of names, directories before their contents; nothing if it is missing.

    Entries for which `skip` is true are left out, with their contents. Entries that vanish during the walk are left out
    too.
    """
    way: list[tuple[int, str, Iterator[os.DirEntry[str]]]] = []
    try:
        try:
            way.append(_listed(root, None, ""))
        except FileNotFoundError:
            return
        except OSError:
            yield WalkEntry("", -1, "", None, True)
            return
        while way:
            descriptor, prefix, entries = way[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(descriptor)
                way.pop()
                continue
            path = prefix + entry.name
            if skip(path):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:
                yield WalkEntry(path, descriptor, entry.name, None, entry.is_dir(follow_symlinks=False))
                continue
            is_directory = stat.S_ISDIR(status.st_mode)
            yield WalkEntry(path, descriptor, entry.name, status, is_directory)
            if not is_directory:
                continue
            try:
                if len(way) > MAX_DEPTH:
                    raise RecursionError
                way.append(_listed(entry.name, descriptor, f"{path}/"))
            except FileNotFoundError:
                continue
            except (OSError, RecursionError):
                yield WalkEntry(path, descriptor, entry.name, None, True)
    finally:
        for descriptor, _, _ in way:
            os.close(descriptor)


def _listed(name: str, parent: int | None, prefix: str) -> tuple[int, str, Iterator[os.DirEntry[str]]]:
    """An open directory and its entries. Raises `OSError`."""
    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    try:
        with os.scandir(descriptor) as entries:
            return descriptor, prefix, iter(sorted(entries, key=lambda entry: entry.name))
    except OSError:
        os.close(descriptor)
        raise
