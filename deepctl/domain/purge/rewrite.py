"""What trees, and the ledger that names them, become when lines leave the notebooks in them.

A tree is changed only below `.deep/memory`: the notebooks that are meant lose the lines that hold a text, and what the
memory store keeps beside them (receipts with hashes of notebooks, and files it left behind) goes. Every tree above
becomes another one with that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from deepctl import formats, layout
from deepctl.domain.purge.selector import PurgeSelector, is_beside
from deepctl.domain.purge.text_matcher import Contents
from deepctl.errors import Damaged
from deepctl.files import sealed_lines
from deepctl.notebook_text import lines_with, without
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.trees import DIRECTORY, FILE, TreeEntry, decode, encode

_MEMORY = tuple(part.encode() for part in layout.MEMORY_DIRECTORY.split("/"))


class Rewritten(NamedTuple):
    """What a tree became: its hash, how many files and bytes fewer are in it, whether notebooks lost lines."""

    tree: bytes
    files: int = 0
    bytes: int = 0
    is_purged: bool = False


class Rewriter:
    """Rewrites trees, each distinct object once; what is new goes into `sink`.

    `intact` finds the content of a notebook that is damaged in a checkpoint somewhere else.

    `gone` are the contents that nothing is to hold any more, `replaced` the trees that others take the place of, and
    `notebooks` how many different contents of notebooks lost lines.
    """

    def __init__(
        self,
        objects: ObjectReader,
        sink: ObjectWriter,
        contents: Contents,
        doomed: PurgeSelector,
        intact: Callable[[bytes], bytes | None],
    ) -> None:
        self._intact = intact
        self._objects = objects
        self._sink = sink
        self._contents = contents
        self._doomed = doomed
        self._above: dict[tuple[int, bytes], Rewritten] = {}
        self._below: dict[bytes, Rewritten] = {}
        self._contents_of: dict[bytes, tuple[bytes, int]] = {}
        self._lines: dict[tuple[str, bytes], None] = {}
        self.gone: set[bytes] = set()
        self.replaced: set[bytes] = set()

    @property
    def notebooks(self) -> int:
        """How many different contents of notebooks lost lines."""
        return sum(before != after for before, (after, _) in self._contents_of.items())

    @property
    def lines(self) -> list[tuple[str, bytes]]:
        """The different lines that go, each with the name of its notebook."""
        return list(self._lines)

    def rewrite(self, root: bytes) -> Rewritten:
        """The tree of a workspace without the lines. Raises `Damaged`."""
        return self._on_the_way(root, 0)

    def _on_the_way(self, tree: bytes, depth: int) -> Rewritten:
        known = self._above.get((depth, tree))
        if known is None:
            found = [self._entry_on_the_way(entry, depth) for entry in decode(self._objects.read(tree))]
            known = self._above[depth, tree] = self._put(tree, found)
        return known

    def _entry_on_the_way(self, entry: TreeEntry, depth: int) -> tuple[TreeEntry | None, Rewritten]:
        same = entry, Rewritten(entry.digest)
        if depth < len(_MEMORY):
            is_next = entry.kind == DIRECTORY and entry.name == _MEMORY[depth]
            return self._moved(entry, self._on_the_way(entry.digest, depth + 1)) if is_next else same
        if entry.kind == FILE and is_beside(entry.name):
            self.gone.add(entry.digest)
            return None, Rewritten(b"", 1, entry.size)
        if entry.kind == DIRECTORY and entry.name == self._doomed.agent.encode():
            return self._moved(entry, self._inside(entry.digest))
        return same

    def _moved(self, entry: TreeEntry, to: Rewritten) -> tuple[TreeEntry, Rewritten]:
        return entry._replace(digest=to.tree), to

    def _inside(self, tree: bytes) -> Rewritten:
        """A directory with notebooks, all of it."""
        known = self._below.get(tree)
        if known is None:
            found = [self._entry_inside(entry) for entry in decode(self._objects.read(tree))]
            known = self._below[tree] = self._put(tree, found)
        return known

    def _entry_inside(self, entry: TreeEntry) -> tuple[TreeEntry, Rewritten]:
        if entry.kind == DIRECTORY and self._doomed.file is None:
            return self._moved(entry, self._inside(entry.digest))
        if entry.kind != FILE or not self._doomed.means(entry.name):
            return entry, Rewritten(entry.digest)
        digest, size = self._notebook(entry)
        changed = entry._replace(digest=digest, size=size)
        return changed, Rewritten(digest, 0, entry.size - size, digest != entry.digest)

    def _notebook(self, entry: TreeEntry) -> tuple[bytes, int]:
        before = entry.digest
        if before not in self._contents_of:
            content = self._held(entry)
            after = before, entry.size
            if content is not None:
                text, ignore_case = self._doomed.sought
                left = without(content, text, ignore_case=ignore_case)
                name = os.fsdecode(entry.name)
                self._lines |= {(name, line): None for _, line in lines_with(content, text, ignore_case=ignore_case)}
                after = self._sink.add(left), len(left)
                self.gone.add(before)
            self._contents_of[before] = after
        return self._contents_of[before]

    def _held(self, entry: TreeEntry) -> bytes | None:
        """The content of a notebook that holds the text, or `None`. Raises `Damaged` if nobody can tell."""
        if self._contents.hold(entry.digest):
            return self._objects.read(entry.digest)
        if entry.digest not in self._contents.unread:
            return None
        content = self._intact(entry.digest)
        if content is None:
            raise Damaged(f"A notebook ({os.fsdecode(entry.name)}, object {entry.digest.hex()[:16]}) cannot be read.")
        return content if self._doomed.sought.is_in([content]) else None

    def _put(self, tree: bytes, found: Sequence[tuple[TreeEntry | None, Rewritten]]) -> Rewritten:
        files = sum(one.files for _, one in found)
        is_purged = any(one.is_purged for _, one in found)
        if not files and not is_purged:
            return Rewritten(tree)
        self.replaced.add(tree)
        after = self._sink.add(encode([entry for entry, _ in found if entry is not None]))
        return Rewritten(after, files, sum(one.bytes for _, one in found), is_purged)


def ledger_with(raw: bytes, trees: Mapping[str, Rewritten], gone: list[str], pack: str) -> bytes:
    """The bytes of a ledger in which these trees have become others, and a pack has taken the place of those `gone`.

    A line that names none of the trees stays byte for byte what it is, damaged ones among them.
    """
    parts = []
    start = 0
    for line in sealed_lines.parse(raw):
        original = raw[start : line.end]
        start = line.end
        parts.append(original if line.value is None else _line_with(line.value, original, trees))
    parts.append(
        sealed_lines.seal({"v": formats.LEDGER.current, "removed": [], "merged": {}, "gone": gone, "pack": pack})
    )
    return b"".join(parts)


def _line_with(entry: dict[str, Any], original: bytes, trees: Mapping[str, Rewritten]) -> bytes:
    is_changed = False
    try:
        formats.bring_up(formats.LEDGER, entry, "the ledger")
    except formats.BadVersion:
        return original  # damaged, however whole it is
    for key in ("record", "rewind"):
        if isinstance(fields := entry.get(key), dict):
            is_changed |= _replace(fields, trees)
    return sealed_lines.seal(entry) if is_changed else original


def _replace(fields: dict[str, Any], trees: Mapping[str, Rewritten]) -> bool:
    tree = fields.get("tree")
    to = trees.get(tree) if isinstance(tree, str) else None
    if to is None or to.tree.hex() == tree:
        return False
    fields["tree"] = to.tree.hex()
    for key, fewer in (("files", to.files), ("bytes", to.bytes)):
        if isinstance(count := fields.get(key), int):
            fields[key] = count - fewer
    return True
