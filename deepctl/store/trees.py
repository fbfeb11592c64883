r"""Trees: a directory as an object; what is in one, how two differ, and what one becomes.

A tree is `deepctl tree 1\n` and an entry for each name, in the order of the names' bytes: the kind (`f`, `l` or `d`),
the permission bits, the size in bytes, the hash of the content (of a file: its bytes; of a link: what it says; of a
directory: its tree) and the name. So two trees are the same if and only if their hashes are.
"""

from __future__ import annotations

import hashlib
import posixpath
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import StoreDamaged
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
        """What it is, in a word."""
        return _WORDS[self.kind]


def encode(entries: list[TreeEntry]) -> bytes:
    """A tree as bytes."""
    parts = [_HEADER]
    for entry in sorted(entries, key=lambda entry: entry.name):
        parts.append(_ENTRY.pack(entry.kind, entry.mode, entry.size, entry.digest, len(entry.name)))
        parts.append(entry.name)
    return b"".join(parts)


def decode(data: bytes) -> list[TreeEntry]:
    """A tree from bytes. Raises `Damaged` if it is none, or `NewerFormat`."""
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
    """Everything below a tree with its path, directories before what is in them."""
    for entry in decode(objects.read(tree)):
        path = prefix + entry.name
        yield path, entry
        if entry.kind == DIRECTORY:
            yield from walk(objects, entry.digest, path + b"/")


_EMPTY = hashlib.sha256(_HEADER).digest()
"""The hash of the tree with nothing in it."""


class TreeChange(NamedTuple):
    """One path at which two trees differ: what was there and what is there, `None` for nothing."""

    path: bytes
    before: TreeEntry | None
    after: TreeEntry | None


def changes(
    objects: ObjectReader, before: bytes | None, after: bytes | None, prefix: bytes = b""
) -> Iterator[TreeChange]:
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
            yield TreeChange(path, was, now)
        if was_tree or now_tree:
            yield from changes(objects, was_tree, now_tree, path + b"/")


def patched(objects: ObjectReader, sink: ObjectWriter, tree: bytes | None, changes: Iterable[TreeChange]) -> bytes:
    """The tree that `tree` becomes when every path of `changes` is made its `after`, as `restore.apply` would.

    Directories keep what is in them and in no change; so one that is to go but holds such a thing stays. New trees go
    into `sink`.
    """
    here: dict[bytes, TreeChange] = {}
    below: dict[bytes, list[TreeChange]] = {}
    for change in changes:
        first, _, inner_path = change.path.partition(b"/")
        if inner_path:
            below.setdefault(first, []).append(change._replace(path=inner_path))
        else:
            here[first] = change
    entries = {entry.name: entry for entry in decode(objects.read(tree))} if tree is not None else {}
    for name in here.keys() | below.keys():
        current = entries.get(name)
        target = here[name].after if name in here else current
        was_directory = current is not None and current.kind == DIRECTORY
        inner = patched(objects, sink, current.digest if current and was_directory else None, below.get(name, ()))
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


def same(first: TreeEntry | None, second: TreeEntry | None) -> bool:
    """Whether two entries are the same thing; of directories, whatever is in them."""
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
        """What is at `path`, or `None`."""
        directory, name = posixpath.split(path)
        if directory not in self._read:
            above = self.entry(directory)
            is_directory = above is not None and above.kind == DIRECTORY
            self._read[directory] = self._entries(above.digest) if above is not None and is_directory else {}
        return self._read[directory].get(name)


def entry_at(objects: ObjectReader, tree: bytes, path: bytes) -> TreeEntry | None:
    """What is at `path` in a tree, or `None`."""
    return TreeReader(objects, tree).entry(path)
