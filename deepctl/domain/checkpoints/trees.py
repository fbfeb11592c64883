r"""Trees: a directory as an object, and the snapshot that makes one of a workspace.

A tree is `deepctl tree 1\n` and an entry for each name, in the order of the names' bytes: the kind (`f`, `l` or `d`),
the permission bits, the size in bytes, the hash of the content (of a file: its bytes; of a link: what it says; of a
directory: its tree) and the name. So two trees are the same if and only if their hashes are.

Owner, times, extended attributes and ACLs are not kept. Sockets, FIFOs, devices and what cannot be read are reported.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from deepctl.domain.checkpoints.cache import Cache
from deepctl.domain.checkpoints.objects import Batch, Objects
from deepctl.errors import Damaged

FILE, LINK, DIRECTORY = b"f", b"l", b"d"

_HEADER = b"deepctl tree 1\n"
_ENTRY = struct.Struct(">cHQ32sH")
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TICK = 20_000_000
"""Nanoseconds within which two changes can bear the same time: twice the slowest kernel's clock tick."""


class Entry(NamedTuple):
    """One name in a tree. `mode` is the permission bits, `size` in bytes, 0 for directories."""

    kind: bytes
    mode: int
    size: int
    digest: bytes
    name: bytes


class Unkept(NamedTuple):
    """Something that a snapshot could not keep: its path, relative to the workspace, and why."""

    path: bytes
    reason: str


class Snapshot(NamedTuple):
    """A workspace at one point in time: the hash of its tree, how many files and bytes are in it, what is not."""

    tree: bytes
    files: int
    bytes: int
    unkept: list[Unkept]


def encode(entries: list[Entry]) -> bytes:
    """A tree as bytes."""
    parts = [_HEADER]
    for entry in sorted(entries, key=lambda entry: entry.name):
        parts.append(_ENTRY.pack(entry.kind, entry.mode, entry.size, entry.digest, len(entry.name)))
        parts.append(entry.name)
    return b"".join(parts)


def decode(data: bytes) -> list[Entry]:
    """A tree from bytes. Raises `Damaged` if it is none."""
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
            entries.append(Entry(kind, mode, size, digest, name))
    except (struct.error, ValueError) as error:
        raise Damaged(f"A tree is damaged: {error}.") from None
    return entries


def walk(objects: Objects, tree: bytes, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
    """Everything below a tree with its path, directories before what is in them."""
    for entry in decode(objects.read(tree)):
        path = prefix + entry.name
        yield path, entry
        if entry.kind == DIRECTORY:
            yield from walk(objects, entry.digest, path + b"/")


_EMPTY = hashlib.sha256(_HEADER).digest()
"""The hash of the tree with nothing in it."""


class Change(NamedTuple):
    """One path at which two trees differ: what was there and what is there, `None` for nothing."""

    path: bytes
    before: Entry | None
    after: Entry | None


def changes(objects: Objects, before: bytes | None, after: bytes | None, prefix: bytes = b"") -> Iterator[Change]:
    """Every path at which two trees differ, in the order of paths; a directory before what is in it.

    Directories that are the same in both are not looked into, so the cost is that of the difference.
    """
    if before == after:
        return
    old = {entry.name: entry for entry in decode(objects.read(before))} if before else {}
    new = {entry.name: entry for entry in decode(objects.read(after))} if after else {}
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was == now:
            continue
        path = prefix + name
        was_tree = was.digest if was is not None and was.kind == DIRECTORY else None
        now_tree = now.digest if now is not None and now.kind == DIRECTORY else None
        if was is None or now is None or was[:3] != now[:3] or was_tree is None or now_tree is None:
            yield Change(path, was, now)
        if was_tree or now_tree:
            yield from changes(objects, was_tree, now_tree, path + b"/")


def patched(objects: Objects, batch: Batch, tree: bytes | None, changes: Iterable[Change]) -> bytes:
    """The tree that `tree` becomes when every path of `changes` is made its `after`, as `restore.apply` would.

    Directories keep what is in them and in no change; so one that is to go but holds such a thing stays. New trees go
    into `batch`.
    """
    here: dict[bytes, Change] = {}
    below: dict[bytes, list[Change]] = {}
    for change in changes:
        first, _, rest = change.path.partition(b"/")
        if rest:
            below.setdefault(first, []).append(change._replace(path=rest))
        else:
            here[first] = change
    entries = {entry.name: entry for entry in decode(objects.read(tree))} if tree is not None else {}
    for name in here.keys() | below.keys():
        current = entries.get(name)
        wanted = here[name].after if name in here else current
        was_directory = current is not None and current.kind == DIRECTORY
        if wanted is not None and wanted.kind != DIRECTORY:
            entries[name] = wanted._replace(name=name)
            continue
        inner = patched(objects, batch, current.digest if current and was_directory else None, below.get(name, ()))
        if wanted is not None:
            entries[name] = Entry(DIRECTORY, wanted.mode, 0, inner, name)
        elif current is not None and was_directory and inner != _EMPTY:
            entries[name] = current._replace(digest=inner)
        else:
            entries.pop(name, None)
    return batch.add(encode(list(entries.values())))


def snapshot(
    root: str, batch: Batch, cache: Cache, *, leave_out: Callable[[bytes], bool] = lambda path: False
) -> Snapshot:
    """Keep the whole of a directory. The caller commits the batch before the tree's hash means anything.

    Links are never followed, and a directory is opened relative to the one above it, so nothing outside `root` gets
    in, whatever is swapped meanwhile. `leave_out` tells which paths are none of the snapshot's business.
    """
    taking = _Taking(batch, cache, leave_out)
    descriptor = os.open(root, _OPEN_DIRECTORY)
    try:
        tree = taking.directory(descriptor, b"")
    finally:
        os.close(descriptor)
    taking.remember()
    return Snapshot(tree, taking.files, taking.bytes, taking.unkept)


_Status = tuple[bytes, int, int, int, int, int]
"""What tells whether a file has changed: name, mode, size, mtime and ctime in ns, inode."""


class _Taking:
    """A snapshot in the making.

    A directory whose files' status and whose subdirectories' trees are what they were has the tree it had: one digest
    is compared a directory, not one entry a file. Where it differs, only files whose own status differs are read.
    """

    def __init__(self, batch: Batch, cache: Cache, leave_out: Callable[[bytes], bool]) -> None:
        self._batch = batch
        self._cache = cache
        self._leave_out = leave_out
        self._before = cache.directories()
        self._seen: set[bytes] = set()
        self._changed: list[tuple[bytes, bytes | None, bytes, bytes]] = []
        # Whoever changes a file within a tick of our look at it can leave its status as it is.
        self._trusted_before = time.time_ns() - _TICK
        self.files = 0
        self.bytes = 0
        self.unkept: list[Unkept] = []

    def directory(self, descriptor: int, path: bytes) -> bytes:
        """Keep one directory and everything below it; returns the hash of its tree."""
        self._seen.add(path)
        status: list[_Status] = []
        below: list[tuple[bytes, int, bytes]] = []
        prefix = path + b"/" if path else b""
        odd = len(self.unkept)
        with os.scandir(descriptor) as found:
            for item in found:
                name = os.fsencode(item.name)
                if self._leave_out(prefix + name):
                    continue
                try:
                    info = item.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mode = info.st_mode
                kind = mode & 0o170000
                if kind == 0o040000:
                    tree = self._below(descriptor, name, prefix)
                    if tree is not None:
                        below.append((name, mode & 0o7777, tree))
                elif kind in (0o100000, 0o120000):
                    status.append((name, mode, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino))
                    self.bytes += info.st_size
                else:
                    self.unkept.append(Unkept(prefix + name, _kind(mode)))
        self.files += len(status)
        status.sort()
        below.sort()
        key = hashlib.blake2b(marshal.dumps((status, below)), digest_size=16).digest()
        known = self._before.get(path)
        if known is not None and known[0] == key:
            return known[1]
        return self._afresh(descriptor, path, status, below, key, trusted=len(self.unkept) == odd)

    def _below(self, parent: int, name: bytes, prefix: bytes) -> bytes | None:
        try:
            descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
        except OSError as error:
            self.unkept.append(Unkept(prefix + name, error.strerror or "cannot be opened"))
            return None
        try:
            return self.directory(descriptor, prefix + name)
        finally:
            os.close(descriptor)

    def _afresh(
        self,
        descriptor: int,
        path: bytes,
        status: list[_Status],
        below: list[tuple[bytes, int, bytes]],
        key: bytes,
        *,
        trusted: bool,
    ) -> bytes:
        raw = self._cache.files(path) if path in self._before else None
        before: dict[_Status, bytes] = marshal.loads(raw) if raw else {}
        after: dict[_Status, bytes] = {}
        entries = [Entry(DIRECTORY, mode, 0, tree, name) for name, mode, tree in below]
        prefix = path + b"/" if path else b""
        for one in status:
            name, mode, size, modified, changed, _ = one
            digest = before.get(one)
            if digest is None:
                kept = self._keep(descriptor, prefix, one)
                if kept is None:
                    trusted = False
                    continue
                digest, real = kept
                self.bytes += real - size
                if real != size:
                    trusted = False
                size = real
            if max(modified, changed) < self._trusted_before:
                after[one] = digest
            else:
                trusted = False
            kind = LINK if stat.S_ISLNK(mode) else FILE
            entries.append(Entry(kind, 0 if kind == LINK else mode & 0o7777, size, digest, name))
        tree = self._batch.add(encode(entries))
        self._changed.append((path, key if trusted else None, tree, marshal.dumps(after)))
        return tree

    def _keep(self, parent: int, prefix: bytes, one: _Status) -> tuple[bytes, int] | None:
        name, mode, size = one[:3]
        try:
            if stat.S_ISLNK(mode):
                target = os.fsencode(os.readlink(name, dir_fd=parent))
                return self._batch.add(target), len(target)
            descriptor = os.open(name, _OPEN_FILE, dir_fd=parent)
        except OSError as error:
            self.unkept.append(Unkept(prefix + name, error.strerror or "cannot be read"))
            return None
        try:
            return self._batch.add_file(descriptor, size)
        finally:
            os.close(descriptor)

    def remember(self) -> None:
        """Write down what the next snapshot need not look at."""
        gone = self._before.keys() - self._seen
        if self._changed or gone:
            self._cache.put_directories(self._changed, gone)


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
