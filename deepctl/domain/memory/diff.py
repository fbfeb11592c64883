"""How the notebooks differ between two checkpoints, or between one and now, as a unified diff of their exact bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

from deepctl import layout
from deepctl.domain.memory.directory import Memory
from deepctl.domain.memory.history import Past, check_seen, kept
from deepctl.errors import Damaged, NotFound
from deepctl.store.contents_reader import ReadOnlyRepository
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record
from deepctl.store.trees import FILE, TreeEntry
from deepctl.unified_diff import unified


class NotebookDifference(NamedTuple):
    """One notebook that differs; `change` is `added`, `deleted` or `modified`.

    `diff` is unified, for `patch -p1` in a workspace; `remark` says why there is none.
    """

    name: str
    path: str
    change: str
    added: int | None
    removed: int | None
    diff: bytes
    remark: str | None


class Comparison(NamedTuple):
    """The notebooks that differ between two checkpoints, or one and what is now (`after` is `None`)."""

    before: Record
    after: Record | None
    differences: list[NotebookDifference]


def compare(reader: ReadOnlyRepository, memory: Memory, before: str | None, after: str | None) -> Comparison:
    """Compare the notebooks of two checkpoints; the latest without `before`, what is now without `after`.

    Raises `NotFound` if there is no checkpoint, `Damaged`, or `Refused` if one does not have the notebooks.
    """
    first = kept(reader, before) if before is not None else _latest(reader.ledger)
    second = kept(reader, after) if after is not None else None
    past = Past(reader.objects)
    old = _then(reader, past, memory, first)
    new = _then(reader, past, memory, second) if second is not None else _present(memory)
    found = []
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if (was and was.digest) != (now and now.digest):
            found.append(_difference(name, memory.path(name), was, now))
    return Comparison(first, second, found)


def _latest(found: Ledger) -> Record:
    latest = next((record for record in reversed(found.records.values()) if record.tree), None)
    if latest is None:
        raise NotFound(
            "There is no checkpoint to compare with.",
            "`deepctl checkpoints save` makes one.",
            code="checkpoint_not_found",
        )
    return latest


class _Side(NamedTuple):
    """A notebook on one side of a comparison; its content is read when it is needed."""

    digest: bytes
    content: Callable[[], bytes]


def _then(reader: ReadOnlyRepository, past: Past, memory: Memory, record: Record) -> dict[str, _Side]:
    check_seen(past, record, memory.path(layout.NOTEBOOK))
    objects = reader.objects

    def side(entry: TreeEntry) -> _Side:
        return _Side(entry.digest, lambda: objects.read(entry.digest))

    return {
        os.fsdecode(entry.name): side(entry)
        for entry in past.entries(bytes.fromhex(record.tree), memory.directory)
        if entry.kind == FILE and entry.name.endswith(b".md") and not entry.name.startswith(b".")
    }


def _present(memory: Memory) -> dict[str, _Side]:
    found = {}
    for listed in memory.notebooks():
        notebook = memory.find(listed.name)
        if notebook is not None:
            found[listed.name] = _of(notebook.content)
    return found


def _of(content: bytes) -> _Side:
    return _Side(hashlib.sha256(content).digest(), lambda: content)


def _difference(name: str, path: str, was: _Side | None, now: _Side | None) -> NotebookDifference:
    change = "added" if was is None else "deleted" if now is None else "modified"
    try:
        before, after = (side.content() if side is not None else b"" for side in (was, now))
    except Damaged as error:
        return NotebookDifference(name, path, change, None, None, b"", error.message)
    found = unified(path, before if was is not None else None, after if now is not None else None)
    if found is None:
        return NotebookDifference(name, path, change, None, None, b"", "too many lines to compare")
    return NotebookDifference(name, path, change, *found, None)
