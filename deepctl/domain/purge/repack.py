"""Which packs go in a purge, and what of them is still needed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from deepctl.domain.purge.rewrite import Rewriter, Rewritten
from deepctl.domain.purge.text_matcher import Contents
from deepctl.errors import Damaged, NewerFormat, Refused
from deepctl.store.ledger import Ledger
from deepctl.store.pack_store import PackStore
from deepctl.store.packs import PackEntry
from deepctl.store.trees import DIRECTORY, decode, walk

_LARGE = 16 << 20
"""Bytes of the largest pack that is written anew only because trees in it have become others."""
_NAMED = 8

_Tables = dict[str, Sequence[PackEntry] | None]


def rewritten(found: Ledger, rewriter: Rewriter) -> dict[str, Rewritten]:
    """What every tree that the ledger still needs becomes. Raises `Damaged`, naming the checkpoints in the way."""
    trees: dict[str, Rewritten] = {}
    unread: dict[str, Damaged] = {}
    for tree in dict.fromkeys(_roots(found)):
        try:
            trees[tree] = rewriter.rewrite(bytes.fromhex(tree))
        except NewerFormat:
            raise
        except Damaged as error:
            unread[tree] = error
    if unread:
        raise _in_the_way(found, unread, next(iter(unread.values())).message)
    return trees


def _roots(found: Ledger) -> Iterator[str]:
    yield from (state.tree for state in found.states)
    yield from (record.tree for record in found.records.values() if record.tree)


class Repacking(NamedTuple):
    """The packs that go, and the objects of theirs that are to be kept elsewhere.

    `leftovers` is how many contents hold the text that nothing needed before, either; `unread` are packs that stay
    although nobody can tell what they hold.
    """

    gone: list[str]
    moved: list[bytes]
    leftovers: int
    unread: list[str]


class PurgedPacks:
    """The packs of a store whose trees become others.

    With `keep_strays`, there may be checkpoints that nobody can tell of, so what no tree needs stays, too, unless it
    holds the text.
    """

    def __init__(
        self,
        found: Ledger,
        objects: PackStore,
        trees: Mapping[str, Rewritten],
        contents: Contents,
        *,
        keep_strays: bool,
    ) -> None:
        self._found = found
        self._objects = objects
        self._trees = trees
        self._contents = contents
        self._keep_strays = keep_strays

    def plan(self, rewriter: Rewriter) -> Repacking:
        """Which packs go. Raises `Damaged`, naming the checkpoints to let go of, if something needed cannot be read."""
        needed, unread = self._needed()
        if unread:
            raise self._damaged(unread)
        tables = self._tables(needed)
        for table in tables.values():
            for entry in table or ():
                self._contents.hold(entry.digest)
        gone = {name for name, table in tables.items() if self._goes(name, table, needed, rewriter)}
        moved = {one for one in needed if self._is_in(one, gone)} if gone else set()
        if self._keep_strays:
            dead = {entry.digest for name in gone for entry in tables[name] or ()} - needed
            moved |= {one for one in dead if not self._is_to_go(one, rewriter) and not self._is_unread(one)}
        for digest in moved:
            self._contents.hold(digest)
        if unread := moved & self._contents.unread:
            raise self._damaged(unread)
        held = {entry.digest for table in tables.values() for entry in table or ()} - needed - rewriter.gone
        odd = [
            name
            for name in tables.keys() - gone
            if tables[name] is None or any(self._is_unread(entry.digest) for entry in tables[name] or ())
        ]
        return Repacking(sorted(gone), sorted(moved), sum(map(self._is_leftover, held)), sorted(odd))

    def _needed(self) -> tuple[set[bytes], set[bytes]]:
        """Every object that the trees will consist of, and which of the trees cannot be read."""
        needed: set[bytes] = set()
        unread: set[bytes] = set()
        pending = [to.tree for to in self._trees.values()]
        while pending:
            tree = pending.pop()
            if tree in needed:
                continue
            needed.add(tree)
            try:
                entries = decode(self._objects.read(tree))
            except NewerFormat:
                raise
            except Damaged:
                unread.add(tree)
                continue
            pending += [entry.digest for entry in entries if entry.kind == DIRECTORY]
            needed.update(entry.digest for entry in entries if entry.kind != DIRECTORY)
        return needed, unread

    def _tables(self, needed: set[bytes]) -> _Tables:
        """The tables of all packs, `None` for those that cannot be read."""
        tables: _Tables = {}
        for name in sorted(self._objects.names()):
            try:
                tables[name] = self._objects.table(name)
            except NewerFormat:
                raise
            except (Damaged, Refused):
                tables[name] = None
        if None in tables.values() and (missing := {one for one in needed if self._objects.find(one) is None}):
            raise self._damaged(missing)
        return tables

    def _is_in(self, digest: bytes, packs: set[str]) -> bool:
        """Whether the place that is known of an object is in one of these packs: their tables may be damaged."""
        location = self._objects.find(digest)
        return location is not None and location.pack in packs

    def _goes(self, name: str, table: Sequence[PackEntry] | None, needed: set[bytes], rewriter: Rewriter) -> bool:
        if table is None:
            return not self._keep_strays  # everything that is needed was found elsewhere
        dead = [entry.digest for entry in table if entry.digest not in needed]
        if any(self._is_to_go(one, rewriter) for one in dead):
            return True
        if self._keep_strays:
            return False
        if any(map(self._is_unread, dead)):
            return True  # nobody can tell what it holds, and nothing needs it
        # What is left of trees has the hashes of notebooks. That is worth writing a small pack anew, not a huge one.
        is_small = os.path.getsize(os.path.join(self._objects.directory, name)) <= _LARGE
        is_whole = not any(map(self._is_unread, (entry.digest for entry in table)))
        return is_small and is_whole and not rewriter.replaced.isdisjoint(dead)

    def _is_to_go(self, digest: bytes, rewriter: Rewriter) -> bool:
        return digest in rewriter.gone or self._is_leftover(digest)

    def _is_leftover(self, digest: bytes) -> bool:
        """Whether an object that nothing needs is a content with the text; the names in a tree are none."""
        if not self._contents.hold(digest):
            return False
        try:
            decode(self._objects.read(digest))
        except Damaged:
            return True
        return False

    def _is_unread(self, digest: bytes) -> bool:
        return digest in self._contents.unread

    def _damaged(self, unread: set[bytes]) -> Damaged:
        """The error for objects that cannot be read."""
        flawed: dict[bytes, bool] = {}

        def is_flawed(tree: bytes) -> bool:
            if tree not in flawed:
                entries = decode(self._objects.read(tree)) if tree not in unread else []
                flawed[tree] = tree in unread or any(
                    is_flawed(entry.digest) if entry.kind == DIRECTORY else entry.digest in unread for entry in entries
                )
            return flawed[tree]

        trees = [tree for tree, to in self._trees.items() if is_flawed(to.tree)]
        one = min(unread).hex()[:16]
        reason = f"Object {one} in {self._objects.directory} is missing or damaged."
        return _in_the_way(self._found, trees, reason, self._path_of(unread))

    def _path_of(self, unread: set[bytes]) -> str | None:
        """Where the newest checkpoint has the first of these objects."""
        newest = next(reversed(self._found.records.values()), None)
        if newest is None or not newest.tree:
            return None
        try:
            for path, entry in walk(self._objects, self._trees[newest.tree].tree):
                if entry.digest in unread:
                    return os.fsdecode(path)
        except Damaged:
            pass
        return None


def _in_the_way(found: Ledger, trees: Iterable[str], reason: str, path: str | None = None) -> Damaged:
    """The error for trees that cannot be read in full; its hint says which checkpoints to let go of.

    `path` is where in the workspace the newest has what is damaged.
    """
    wanted = set(trees)
    safety = {rewind.id: rewind.safety for rewind in found.rewinds.values()}
    ids = [record.id for record in found.records.values() if record.tree in wanted]
    ids += [safety.get(state.id, state.id) for state in found.states if state.tree in wanted]
    ids = [one for one in dict.fromkeys(ids) if one in found.records]
    named = " ".join(ids[:_NAMED])
    more = f" and {len(ids) - _NAMED} more (`deepctl checkpoints verify` names them)" if len(ids) > _NAMED else ""
    first = ""
    if next(reversed(found.records), None) in ids:
        # One that keeps the same would need the same.
        change = f"change {path!r} in the workspace, " if path is not None else ""
        first = f"The newest checkpoint needs it, too: {change}`deepctl checkpoints save`. "
    hint = f"{first}`deepctl checkpoints remove {named}`{more} lets go of what is damaged; then try again."
    return Damaged(f"{reason.removesuffix('.')}, so nothing was changed.", hint if ids else None)
