"""How two states of a workspace differ, file by file and line by line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from deepctl.errors import Damaged
from deepctl.files.atomic import is_of_machine
from deepctl.files.paths_beneath import Tree
from deepctl.store.object_store import ObjectReader
from deepctl.store.trees import DIRECTORY, LINK, TreeChange, TreeEntry
from deepctl.unified_diff import unified

_LARGE = 1 << 20
_BINARY_PEEK = 8000

Content = Callable[[bytes, TreeEntry], bytes]
"""Reads what is at a path. Raises `Damaged` or `OSError`."""


class FileDifference(NamedTuple):
    """One path at which two states differ.

    `change` is `added`, `deleted`, `modified`, `mode` (only the permission bits) or `type` (a file became a link, …).
    Where both sides are text, lines are counted, and `diff` is a unified one; `remark` says why not.
    """

    path: str
    change: str
    before: TreeEntry | None
    after: TreeEntry | None
    added_lines: int | None
    removed_lines: int | None
    diff: bytes
    remark: str | None


def kept(objects: ObjectReader) -> Content:
    """Reads from the store."""
    return lambda path, entry: objects.read(entry.digest)


def present(root: str, objects: ObjectReader) -> Content:
    """Reads from the workspace itself, without following links."""
    tree = Tree(root, follow=False)

    def read(path: bytes, entry: TreeEntry) -> bytes:
        if entry.kind == LINK:
            return os.fsencode(tree.link_target(os.fsdecode(path)))
        if objects.has(entry.digest):
            return objects.read(entry.digest)
        return tree.read(os.fsdecode(path))

    return read


def differences(changes: Iterable[TreeChange], before: Content, after: Content) -> Iterator[FileDifference]:
    """Every path that differs, in order; directories only where they are all there is to tell."""
    for change in changes:
        if _is_dull(change):
            continue
        yield _difference(change, before, after)


def unread(change: TreeChange) -> FileDifference:
    """A path whose content before cannot be read, so that how it differs is unknown."""
    kind = "modified" if change.after is not None else "deleted"
    return FileDifference(os.fsdecode(change.path), kind, None, change.after, None, None, b"", "cannot be read")


def _is_dull(change: TreeChange) -> bool:
    _, before, after = change
    return before is not None and after is not None and before[:2] == after[:2] and before.digest == after.digest


def _difference(change: TreeChange, before: Content, after: Content) -> FileDifference:
    path, old, new = change
    name = os.fsdecode(path)
    kind = _change(old, new)
    if kind == "mode" or DIRECTORY in (old and old.kind, new and new.kind):
        return FileDifference(name, kind, old, new, 0, 0, b"", None)
    remark: str | None = None
    if any(entry is not None and entry.size > _LARGE for entry in (old, new)):
        remark = "too large to compare line by line"
    else:
        try:
            texts = [side(path, entry) if entry is not None else None for side, entry in ((before, old), (after, new))]
        except (Damaged, OSError) as error:
            if isinstance(error, OSError) and is_of_machine(error):
                raise
            remark = str(error)
        else:
            if any(text is not None and b"\0" in text[:_BINARY_PEEK] for text in texts):
                remark = "binary files differ"
            elif (found := unified(name, *texts)) is not None:
                return FileDifference(name, kind, old, new, *found, None)
            else:
                remark = "too many lines to compare"
    return FileDifference(name, kind, old, new, None, None, b"", remark)


def _change(before: TreeEntry | None, after: TreeEntry | None) -> str:
    if before is None:
        return "added"
    if after is None:
        return "deleted"
    if before.kind != after.kind:
        return "type"
    return "modified" if before.digest != after.digest and before.kind != DIRECTORY else "mode"
