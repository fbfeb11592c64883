"""How two states of a workspace differ, file by file and line by line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from deepctl.domain.checkpoints.objects import Objects
from deepctl.domain.checkpoints.trees import DIRECTORY, LINK, Change, Entry
from deepctl.errors import Damaged
from deepctl.files.beneath import Tree

_LARGE = 1 << 20
_MANY_LINES = 20_000
_BINARY_PEEK = 8000

Content = Callable[[bytes, Entry], bytes]
"""Reads what is at a path. Raises `Damaged` or `OSError`."""


class Difference(NamedTuple):
    """One path at which two states differ.

    `change` is `added`, `deleted`, `modified`, `mode` (only the permission bits) or `type` (a file became a link, …).
    Lines are counted, and `lines` are those of a unified diff, where both sides are text; `remark` says why not.
    """

    path: str
    change: str
    before: Entry | None
    after: Entry | None
    added_lines: int | None
    removed_lines: int | None
    lines: list[str]
    remark: str | None


def kept(objects: Objects) -> Content:
    """Reads from the store."""
    return lambda path, entry: objects.read(entry.digest)


def present(root: str, objects: Objects) -> Content:
    """Reads from the workspace itself, without following links."""
    tree = Tree(root, follow=False)

    def read(path: bytes, entry: Entry) -> bytes:
        if entry.kind == LINK:
            return os.fsencode(tree.link_target(os.fsdecode(path)))
        if objects.find(entry.digest) is not None:
            return objects.read(entry.digest)
        return tree.read(os.fsdecode(path))

    return read


def differences(changes: Iterable[Change], before: Content, after: Content) -> Iterator[Difference]:
    """Every path that differs, in order; directories only where they are all there is to tell."""
    for change in changes:
        if _is_dull(change):
            continue
        yield _difference(change, before, after)


def _is_dull(change: Change) -> bool:
    _, before, after = change
    return before is not None and after is not None and before[:2] == after[:2] and before.digest == after.digest


def _difference(change: Change, before: Content, after: Content) -> Difference:
    path, old, new = change
    name = os.fsdecode(path)
    kind = _change(old, new)
    if kind == "mode" or DIRECTORY in (old and old.kind, new and new.kind):
        return Difference(name, kind, old, new, 0, 0, [], None)
    remark: str | None = None
    if any(entry is not None and entry.size > _LARGE for entry in (old, new)):
        remark = "too large to compare line by line"
    else:
        try:
            texts = [
                _text(side(path, entry)) if entry is not None else [] for side, entry in ((before, old), (after, new))
            ]
        except (Damaged, OSError) as error:
            remark = str(error)
        else:
            if texts[0] is None or texts[1] is None:
                remark = "binary files differ"
            elif len(texts[0]) + len(texts[1]) > _MANY_LINES:
                remark = "too many lines to compare"
            else:
                return _compared(name, kind, old, new, texts[0], texts[1])
    return Difference(name, kind, old, new, None, None, [], remark)


def _change(before: Entry | None, after: Entry | None) -> str:
    if before is None:
        return "added"
    if after is None:
        return "deleted"
    if before.kind != after.kind:
        return "type"
    return "modified" if before.digest != after.digest and before.kind != DIRECTORY else "mode"


def _text(data: bytes) -> list[str] | None:
    """The lines of a text, each with its newline; `None` if it is none."""
    if b"\0" in data[:_BINARY_PEEK]:
        return None
    return data.decode("utf-8", "surrogateescape").splitlines(keepends=True)


def _compared(
    name: str, kind: str, old: Entry | None, new: Entry | None, before: list[str], after: list[str]
) -> Difference:
    quoted = name if name.isprintable() else repr(name)
    labels = (f"a/{quoted}" if old else "/dev/null", f"b/{quoted}" if new else "/dev/null")
    lines: list[str] = []
    added = removed = 0
    for number, line in enumerate(difflib.unified_diff(before, after, *labels)):
        if number > 1:
            added += line.startswith("+")
            removed += line.startswith("-")
        lines.append(line.rstrip("\n"))
        if not line.endswith("\n"):
            lines.append("\\ No newline at end of file")
    return Difference(name, kind, old, new, added, removed, lines, None)
