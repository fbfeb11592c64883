r"""Trees: directories as objects. Also snapshots, the differences of two trees, and the tree after a set of changes.

A tree is `deepctl tree 1\n` and an entry for each name, in the order of the names' bytes: the kind (`f`, `l` or `d`),
the permission bits, the size in bytes, the hash of the content (the bytes of a file, the target of a link, the tree of
a directory) and the name. So two trees are equal if and only if their hashes are equal.

A snapshot is the whole workspace as a tree; a second snapshot costs little. Owner, times, extended attributes and ACLs
are not stored. Sockets, FIFOs, devices and unreadable entries are reported.
"""

from __future__ import annotations

import errno
import hashlib
import marshal
import os
import posixpath
import stat
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from deepctl import cancellation, layout
from deepctl.errors import StoreDamaged
from deepctl.files import atomic, gitignore, sparse_files
from deepctl.files.placeholders import is_empty_placeholder
from deepctl.store.index_db import Cache
from deepctl.store.object_store import ObjectReader, ObjectWriter

FILE, LINK, DIRECTORY = b"f", b"l", b"d"

_HEADER = layout.format_header(layout.TREE_FORMAT)
_ENTRY = struct.Struct(">cHQ32sH")


_WORDS = {FILE: "file", LINK: "link", DIRECTORY: "directory"}


class TreeEntry(NamedTuple):
    """One name in a tree. `mode` is the permission bits, `size` in bytes, 0 for directories."""

    kind: bytes
    mode: int
    size: int
    digest: bytes
    name: bytes

    @property
    def what(self) -> str:
        """The kind as a word."""
        return _WORDS[self.kind]


def encode(entries: list[TreeEntry]) -> bytes:
    """A tree as bytes."""
    parts = [_HEADER]
    for entry in sorted(entries, key=lambda entry: entry.name):
        parts.append(_ENTRY.pack(entry.kind, entry.mode, entry.size, entry.digest, len(entry.name)))
        parts.append(entry.name)
    return b"".join(parts)


def decode(data: bytes) -> list[TreeEntry]:
    """A tree from bytes. Raises `Damaged` if it is not one, or `NewerFormat`."""
    layout.check_format_header(layout.TREE_FORMAT, data, "The list of a directory in a checkpoint")
    entries = []
    position = len(_HEADER)
    try:
        if not data.startswith(_HEADER):
            raise ValueError("no header")
        while position < len(data):
            kind, mode, size, digest, length = _ENTRY.unpack_from(data, position)
            position += _ENTRY.size
            name = data[position : position + length]
            position += length
            if kind not in (FILE, LINK, DIRECTORY) or name in (b"", b".", b"..") or b"/" in name or len(name) != length:
                raise ValueError("not an entry")
            entries.append(TreeEntry(kind, mode, size, digest, name))
    except (struct.error, ValueError) as error:
        raise StoreDamaged(f"A tree is damaged: {error}.") from None
    return entries


def walk(objects: ObjectReader, tree: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, TreeEntry]]:
    """All entries below a tree with their paths, a directory before its entries."""
    for entry in decode(objects.read(tree)):
        path = prefix + entry.name
        yield path, entry
        if entry.kind == DIRECTORY:
            yield from walk(objects, entry.digest, path + b"/")


_EMPTY = hashlib.sha256(_HEADER).digest()
"""The hash of the empty tree."""

MADE_BY_DEEPCTL = frozenset({layout.OWN.encode(), layout.HOME_DIRECTORY.encode()})
"""Directories of a workspace that deepctl makes before each command, so a rewind leaves them.

With a project in a tree, `.deep` is in it even before a command has run (`deepctl.store.workspaces`).
"""


class TreeChange(NamedTuple):
    """One path at which two trees differ: the old and the new entry, `None` for no entry."""

    path: bytes
    before: TreeEntry | None
    after: TreeEntry | None

    @property
    def is_directory(self) -> bool:
        """Whether the path is a directory in the last tree that has it."""
        entry = self.after or self.before
        return entry is not None and entry.kind == DIRECTORY

    @property
    def is_whole_directory(self) -> bool:
        """Whether a directory was made or deleted. A change of its mode is not, nor a file in its place."""
        return self.is_directory and None in (self.before, self.after)

    @property
    def is_made_by_deepctl(self) -> bool:
        """Whether a directory that deepctl makes itself appeared or is missing: no author did that."""
        return self.is_whole_directory and self.path in MADE_BY_DEEPCTL


def changes(
    objects: ObjectReader, before: bytes | None, after: bytes | None, prefix: bytes = b""
) -> Iterator[TreeChange]:
    """Every path at which two trees differ, in the order of paths; a directory before its entries.

    Equal directories are not read, so the cost depends on the difference.
    """
    if before == after:
        return
    old = {entry.name: entry for entry in decode(objects.read(before))} if before else {}
    new = {entry.name: entry for entry in decode(objects.read(after))} if after else {}
    for name in sorted(old.keys() | new.keys()):
        old_entry, now = old.get(name), new.get(name)
        if old_entry == now:
            continue
        path = prefix + name
        was_tree = old_entry.digest if old_entry is not None and old_entry.kind == DIRECTORY else None
        now_tree = now.digest if now is not None and now.kind == DIRECTORY else None
        if old_entry is None or now is None or old_entry[:3] != now[:3] or was_tree is None or now_tree is None:
            yield TreeChange(path, old_entry, now)
        if was_tree or now_tree:
            yield from changes(objects, was_tree, now_tree, path + b"/")


def patch(objects: ObjectReader, sink: ObjectWriter, tree: bytes | None, changes: Iterable[TreeChange]) -> bytes:
    """The tree after `changes`: every path gets its `after`, as in `WorkingTree.apply` of `restore`.

    Entries without a change stay; so a directory that should be deleted but contains such an entry stays. New trees are
    stored in `sink`.
    """
    own_changes: dict[bytes, TreeChange] = {}
    below: dict[bytes, list[TreeChange]] = {}
    for change in changes:
        first, _, inner_path = change.path.partition(b"/")
        if inner_path:
            below.setdefault(first, []).append(change._replace(path=inner_path))
        else:
            own_changes[first] = change
    entries = {entry.name: entry for entry in decode(objects.read(tree))} if tree is not None else {}
    for name in own_changes.keys() | below.keys():
        current = entries.get(name)
        target = own_changes[name].after if name in own_changes else current
        was_directory = current is not None and current.kind == DIRECTORY
        inner = patch(objects, sink, current.digest if current and was_directory else None, below.get(name, ()))
        if target is not None and target.kind != DIRECTORY:
            stays = current is not None and was_directory and inner != _EMPTY
            entries[name] = current._replace(digest=inner) if current and stays else target._replace(name=name)
            continue
        if target is not None:
            entries[name] = TreeEntry(DIRECTORY, target.mode, 0, inner, name)
        elif current is not None and was_directory and inner != _EMPTY:
            entries[name] = current._replace(digest=inner)
        else:
            entries.pop(name, None)
    return sink.add(encode(list(entries.values())))


def is_same(first: TreeEntry | None, second: TreeEntry | None) -> bool:
    """Whether two entries are equal; the contents of directories are not compared."""
    if first is None or second is None:
        return first is second
    return first[:2] == second[:2] and (first.kind == DIRECTORY or first.digest == second.digest)


class TreeReader:
    """Entries of one tree by path, each directory read once."""

    def __init__(self, objects: ObjectReader, tree: bytes) -> None:
        self._objects = objects
        self._read: dict[bytes, dict[bytes, TreeEntry]] = {b"": self._entries(tree)}

    def _entries(self, tree: bytes) -> dict[bytes, TreeEntry]:
        return {entry.name: entry for entry in decode(self._objects.read(tree))}

    def entry(self, path: bytes) -> TreeEntry | None:
        """The entry at `path`, or `None`."""
        directory, name = posixpath.split(path)
        if directory not in self._read:
            above = self.entry(directory)
            is_directory = above is not None and above.kind == DIRECTORY
            self._read[directory] = self._entries(above.digest) if above is not None and is_directory else {}
        return self._read[directory].get(name)


def entry_at(objects: ObjectReader, tree: bytes, path: bytes) -> TreeEntry | None:
    """The entry at `path` in a tree, or `None`."""
    return TreeReader(objects, tree).entry(path)


_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_TICK = 20_000_000
"""Nanoseconds in which two changes can have the same time: twice the slowest kernel's clock tick."""


NO_CONTENT = ("a FIFO", "a socket", "a device", "in the place of a directory of deepctl")
"""Reasons of unkept entries without content; an earlier file at such a path has really been deleted."""

TOO_LARGE = "larger than snapshot.max_file"
"""The reason of a file that a project does not cover because of its size. A rewind does not touch it."""

_REPLACED = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ENODEV)
"""Errors of opening an entry that was of another kind a moment ago."""

_MOUNTS = layout.PROJECTS_DIRECTORY.encode()
"""The directory of mounted trees in the tree of a workspace (`deepctl.store.workspaces`). A real one is left out."""
_OWN, _MOUNTS_NAME = _MOUNTS.split(b"/")

_REPORT_EVERY = 64
_MAX_DEPTH = 200


class UnkeptPath(NamedTuple):
    """An entry that a snapshot could not store: its path, relative to the workspace, and the reason."""

    path: bytes
    reason: str

    @property
    def is_content(self) -> bool:
        """Whether the entry has content that could not be read."""
        return self.reason not in NO_CONTENT and self.reason != TOO_LARGE


class Snapshot(NamedTuple):
    """A workspace at one point in time: the hash of its tree, its numbers of files and bytes, and unkept entries."""

    tree: bytes
    files: int
    bytes: int
    unkept: list[UnkeptPath]


Report = Callable[[int], None]
"""Receives the number of processed files from time to time."""


class LeaveOut(Protocol):
    """The rules for the names in one directory of a snapshot: which of them it leaves out."""

    def enter(self, descriptor: int, files: Collection[bytes], directories: Collection[bytes]) -> bool:
        """Read what the rules need from the directory, which is open and has these names. Whether it is stored."""
        ...

    def left_out(self, files: Collection[bytes], directories: Collection[bytes]) -> set[bytes]:
        """Those of the names that are not stored."""
        ...

    def note(self, names: Iterable[bytes], directories: Collection[bytes]) -> None:
        """Remember names that were left out."""
        ...

    def below(self, name: bytes) -> LeaveOut:
        """The rules for the names in the directory `name`."""
        ...


class Excluded:
    """The paths that `snapshot.exclude` leaves out, below one directory. Calling it tells whether it has a path."""

    def __init__(self, level: gitignore.Level) -> None:
        self._level = level

    def __call__(self, path: bytes, is_directory: bool) -> bool:
        level = self._level
        *parents, name = path.split(b"/")
        for parent in parents:
            if level.ignored((parent,), are_directories=True):
                return True
            level = level.below(parent)
        return bool(level.ignored((name,), are_directories=is_directory))

    def enter(self, descriptor: int, files: Collection[bytes], directories: Collection[bytes]) -> bool:
        return True

    def left_out(self, files: Collection[bytes], directories: Collection[bytes]) -> set[bytes]:
        names = self._level.ignored(files, are_directories=False)
        return names | self._level.ignored(directories, are_directories=True)

    def note(self, names: Iterable[bytes], directories: Collection[bytes]) -> None:
        pass

    def below(self, name: bytes) -> Excluded:
        level = self._level.below(name)
        return self if level is self._level else Excluded(level)


def excluding(patterns: Sequence[str]) -> Excluded | None:
    """The paths that the patterns of `snapshot.exclude` leave out, as in a .gitignore; `None` without patterns."""
    if not patterns:
        return None
    return Excluded(gitignore.level(gitignore.parse(os.fsencode("\n".join(patterns)))))


def snapshot(
    root: str,
    sink: ObjectWriter,
    cache: Cache,
    *,
    leave_out: LeaveOut | None = None,
    report: Report | None = None,
    tidy: bool = False,
    mount: bytes = b"",
    max_file: int | None = None,
) -> Snapshot:
    """Store a whole directory. The tree's hash is valid only after the caller has committed the batch.

    `mount` is the place of the directory in a larger tree (`deepctl.store.workspaces`): the prefix of its paths in
    `cache` and in the unkept entries. The paths that `leave_out` receives are relative to `root`. Files of more than
    `max_file` bytes are not stored.

    Links are never followed, and a directory is opened relative to the one above it, so nothing outside `root` is
    stored, even if entries are replaced meanwhile. Only entries that may not be read are left out. Raises `OSError` if
    `root` cannot be opened, or the machine fails. deepctl's temporary files are ignored; with `tidy`, for which the
    caller holds the lock, leftovers of killed writers are removed.
    """
    reader = _SnapshotWriter(sink, cache, report, tidy=tidy, mount=mount, max_file=max_file)
    descriptor = os.open(root, _OPEN_DIRECTORY)
    try:
        tree = reader.directory(descriptor, mount, leave_out) or sink.add(encode([]))
    finally:
        os.close(descriptor)
    sink.afterwards(reader.remember)
    return Snapshot(tree, reader.files, reader.bytes, reader.unkept)


_Status = tuple[bytes, int, int, int, int, int]
"""The values by which a changed file is recognised: name, mode, size, mtime and ctime in ns, inode."""


class _SnapshotWriter:
    """A snapshot during its creation.

    A directory has its old tree if the status of its files and the trees of its subdirectories are unchanged: one
    digest per directory is compared, not one entry per file. If it differs, only files with a different status are
    read.
    """

    def __init__(
        self,
        sink: ObjectWriter,
        cache: Cache,
        report: Report | None,
        *,
        tidy: bool,
        mount: bytes,
        max_file: int | None,
    ) -> None:
        self._tidy = tidy
        self._max_file = max_file
        self._is_mount = bool(mount)
        self._sink = sink
        self._cache = cache
        self._report = report
        self._before = cache.directories(mount, _MOUNTS)
        self._stored = sink.stored(tree for key, tree in self._before.values() if key is not None)
        self._seen: set[bytes] = set()
        self._changed: list[tuple[bytes, bytes | None, bytes, bytes]] = []
        # A change within one tick after the file was read can leave its status unchanged.
        self._trusted_before = time.time_ns() - _TICK
        self._linked: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._looked = 0
        self.files = 0
        self.bytes = 0
        self.unkept: list[UnkeptPath] = []

    def directory(self, descriptor: int, path: bytes, leave_out: LeaveOut | None) -> bytes | None:
        """Store one directory and everything below it.

        Returns the hash of its tree; `None` if the rules leave it out.
        """
        cancellation.look()
        prefix = path + b"/" if path else b""
        files: dict[bytes, _Status] = {}
        directories: dict[bytes, int] = {}
        reasons: dict[bytes, str] = {}
        passed_over: list[bytes] = []
        encoding, errors = _ENCODING, _ERRORS
        with os.scandir(descriptor) as items:
            # A step here takes a measurable part of a snapshot in which nothing has changed.
            for item in items:
                name = item.name.encode(encoding, errors)
                try:
                    info = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except PermissionError as error:
                    reasons[name] = error.strerror or "cannot be read"
                    continue
                mode = info.st_mode
                if mode & 0o1000 and self._is_mount and is_empty_placeholder(descriptor, name, info):
                    continue
                kind = mode & 0o170000
                if kind == 0o040000:
                    directories[name] = mode & 0o7777
                elif name[0] == 0x2E and atomic.is_temporary(name):
                    passed_over.append(name)
                elif kind == 0o100000 or kind == 0o120000:
                    files[name] = (name, mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
                else:
                    reasons[name] = _kind(mode)
        if path == _OWN and not self._is_mount:
            for names in (files, directories, reasons):
                names.pop(_MOUNTS_NAME, None)
        if leave_out is not None and not self._select(descriptor, leave_out, files, directories, reasons):
            return None
        self._seen.add(path)
        self.unkept += [UnkeptPath(prefix + name, reason) for name, reason in reasons.items()]
        sizes = [file_status[2] for file_status in files.values()]
        if self._max_file is not None and sizes and max(sizes) > self._max_file:
            sizes = self._without_large(prefix, files, leave_out)
        below: list[tuple[bytes, int, bytes]] = []
        for name, mode in directories.items():
            tree = self._below(descriptor, name, prefix, leave_out)
            if tree is not None:
                below.append((name, mode, tree))
        for name in passed_over if self._tidy else ():
            atomic.remove_dead_temporary(descriptor, name)
        # Not sorted: a directory whose order differs is encoded again, with the same tree.
        status = list(files.values())
        self.files += len(status)
        self.bytes += sum(sizes)
        key = hashlib.blake2b(marshal.dumps((status, below)), digest_size=16).digest()
        entry = self._before.get(path)
        if entry is not None and entry[0] == key and (entry[1] in self._stored or self._sink.has(entry[1])):
            return entry[1]
        return self._afresh(descriptor, path, status, below, key)

    def _select(
        self,
        descriptor: int,
        leave_out: LeaveOut,
        files: dict[bytes, _Status],
        directories: dict[bytes, int],
        reasons: dict[bytes, str],
    ) -> bool:
        """Remove the names that the rules leave out. Whether the directory is stored at all."""
        if not leave_out.enter(descriptor, files, directories):
            return False
        left_out = leave_out.left_out({**files, **reasons} if reasons else files, directories)
        if left_out:
            leave_out.note(left_out, directories)
            for name in left_out:
                for names in (files, directories, reasons):
                    names.pop(name, None)
        return True

    def _without_large(self, prefix: bytes, files: dict[bytes, _Status], leave_out: LeaveOut | None) -> list[int]:
        """Remove files that are too large. Returns the sizes of the others."""
        for name, mode, size, *_ in list(files.values()):
            if self._max_file is not None and size > self._max_file and stat.S_ISREG(mode):
                del files[name]
                self.unkept.append(UnkeptPath(prefix + name, TOO_LARGE))
                if leave_out is not None:
                    leave_out.note((name,), ())
        return [file_status[2] for file_status in files.values()]

    def _below(self, parent: int, name: bytes, prefix: bytes, leave_out: LeaveOut | None) -> bytes | None:
        if prefix.count(b"/") >= _MAX_DEPTH:
            self.unkept.append(UnkeptPath(prefix + name, f"more than {_MAX_DEPTH} nested directories"))
            return None
        try:
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.unkept.append(UnkeptPath(prefix + name, _unreadable(error)))
            return None
        try:
            return self.directory(descriptor, prefix + name, leave_out.below(name) if leave_out is not None else None)
        finally:
            os.close(descriptor)

    def _afresh(
        self,
        descriptor: int,
        path: bytes,
        status: list[_Status],
        below: list[tuple[bytes, int, bytes]],
        key: bytes,
    ) -> bytes:
        is_trusted = True
        raw = self._cache.files(path) if path in self._before else None
        before: dict[_Status, bytes] = _loaded(raw)
        after: dict[_Status, bytes] = {}
        entries = [TreeEntry(DIRECTORY, mode, 0, tree, name) for name, mode, tree in below]
        prefix = path + b"/" if path else b""
        for file_status in status:
            name, mode, size, modified_at, changed_at, _ = file_status
            digest = before.get(file_status)
            if digest is None or not self._sink.has(digest):
                cancellation.look()
                self._looked += 1
                if self._report is not None and not self._looked % _REPORT_EVERY:
                    self._report(self._looked)
                content = self._keep(descriptor, prefix, file_status)
                if content is None:
                    is_trusted = False
                    continue
                digest, real = content
                self.bytes += real - size
                if real != size:
                    is_trusted = False
                size = real
            if max(modified_at, changed_at) < self._trusted_before:
                after[file_status] = digest
            else:
                is_trusted = False
            kind = LINK if stat.S_ISLNK(mode) else FILE
            entries.append(TreeEntry(kind, 0 if kind == LINK else mode & 0o7777, size, digest, name))
        tree = self._sink.add(encode(entries))
        self._changed.append((path, key if is_trusted else None, tree, marshal.dumps(after)))
        return tree

    def _keep(self, parent: int, prefix: bytes, file_status: _Status) -> tuple[bytes, int] | None:
        name, mode, size = file_status[:3]
        try:
            if stat.S_ISLNK(mode):
                target = os.fsencode(os.readlink(name, dir_fd=parent))
                return self._sink.add(target), len(target)
            descriptor = os.open(name, _OPEN_FILE, dir_fd=parent)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.unkept.append(UnkeptPath(prefix + name, _unreadable(error)))
            return None
        try:
            status = os.fstat(descriptor)
            kind = status.st_mode
            if not stat.S_ISREG(kind):
                # It was a file a moment ago. Reading a FIFO could take for ever.
                self.unkept.append(
                    UnkeptPath(prefix + name, "is being replaced" if stat.S_ISDIR(kind) else _kind(kind))
                )
                return None
            if status.st_nlink == 1:
                return self._sink.add_file(descriptor, size)
            # A file with several names (hard links) is read once.
            inode = (status.st_dev, status.st_ino)
            if inode not in self._linked:
                self._linked[inode] = self._sink.add_file(descriptor, size)
            return self._linked[inode]
        finally:
            os.close(descriptor)

    def remember(self) -> None:
        """Store in the cache the directories and files that the next snapshot need not read."""
        removed_directories = self._before.keys() - self._seen
        if self._changed or removed_directories:
            self._cache.put_directories(self._changed, removed_directories)


def _loaded(raw: bytes | None) -> dict[_Status, bytes]:
    try:
        statuses = marshal.loads(raw) if raw else {}
    except (ValueError, EOFError, TypeError):
        return {}  # the value comes from a cache, so it may be invalid
    return statuses if isinstance(statuses, dict) else {}


def _unreadable(error: OSError) -> str:
    """The reason why an entry could not be opened. Raises the error if its cause is not the entry itself.

    Otherwise too many open files, no memory or a failing disk would look like an unreadable file, and the checkpoint
    would lack its content.
    """
    if error.errno in _REPLACED:
        return "is being replaced"
    if not isinstance(error, PermissionError):
        raise error
    return error.strerror or "cannot be read"


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return NO_CONTENT[0]
    return NO_CONTENT[1] if stat.S_ISSOCK(mode) else NO_CONTENT[2]


class ScratchWriter:
    """For a snapshot that is not stored: its trees can be read as long as `objects` exists, its files cannot."""

    def __init__(self, objects: ObjectReader) -> None:
        self._objects = objects

    @cached_property
    def _hasher(self) -> sparse_files.Hasher:
        return sparse_files.Hasher()

    def add(self, data: bytes) -> bytes:
        """Keep `data` in memory; returns its hash."""
        digest = hashlib.sha256(data).digest()
        self._objects.scratch[digest] = data
        return digest

    def has(self, digest: bytes) -> bool:
        """Whether an object can be read."""
        return digest in self._objects.scratch or self._objects.has(digest)

    def stored(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the objects that are stored."""
        return self._objects.stored(digests)

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """The hash and the size of an open file."""
        return self._hasher.hashed(descriptor)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Does nothing, because nothing is stored."""
