"""Purging: lines are removed from every stored notebook. The one rewrite of otherwise immutable data.

    the data of checkpoints is read and checked, and becomes other trees; unreadable data ends the purge here
    one pack is written and synced: new objects, and those still needed of the removed packs; nothing names it yet
    the notebooks in the workspace lose the lines, as by forgetting them without a purge
    the new ledger is renamed into place: other trees, and which packs are removed              <- done
    the removed packs and the cache are deleted

A kill before the rename does not change checkpoints; after it, the next opener of the profile deletes the packs that
the ledger calls removed. Ids, labels, order and authors stay. The workspace and the last state lose the same lines, so
no change by another author appears between them that would block a rewind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from deepctl.domain.purge.notebooks import (
    Contents,
    LostLines,
    PurgeSelector,
    Rewriter,
    RewrittenTree,
    WorkspaceNotebooks,
    ledger_with,
    memory_changed,
)
from deepctl.errors import Damaged, Interrupted, NewerFormat, Refused
from deepctl.files import atomic
from deepctl.files.atomic import storage_error
from deepctl.layout import ProfilePaths
from deepctl.store import repack, repair_report
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.ledger import Ledger
from deepctl.store.object_store import ObjectBatch, ObjectWriter
from deepctl.store.pack_store import PackEntry, PackStore
from deepctl.store.repack import Repacking
from deepctl.store.repository import ReadOnlyRepository, Repository
from deepctl.store.trees import DIRECTORY, decode, walk

Report = Callable[[int], None]


class PurgeResult(NamedTuple):
    """The data that a purge removes, or removed.

    `workspace_lines` are lines in the workspace, `checkpoint_lines` the distinct ones in checkpoints, each with the
    name of its notebook. The text is in `notebooks` versions of notebooks in `checkpoints`; `leftovers` is the number
    of contents with the text that no checkpoint needs. `unread_packs` are packs that stay although they cannot be read
    completely, and `contents` caches which objects contain the text.
    """

    workspace_lines: list[LostLines]
    checkpoint_lines: list[tuple[str, bytes]]
    checkpoints: int
    notebooks: int
    leftovers: int
    unread_packs: list[str]
    contents: Contents

    @property
    def is_nothing(self) -> bool:
        """Whether no notebook, no version in a checkpoint and no leftover content contains the text."""
        return not self.workspace_lines and not self.notebooks and not self.leftovers


class _PurgePlan(NamedTuple):
    """The plan of a purge; `trees` maps the trees of the ledger to their new form."""

    trees: Mapping[str, RewrittenTree]
    packs: Repacking
    result: PurgeResult


def preview(reader: ReadOnlyRepository, selector: PurgeSelector, report: Report | None = None) -> PurgeResult:
    """The preview of a purge, without changes. Raises `Damaged` and `Refused` like `purge`."""
    return _plan(reader.paths, reader.ledger, reader.packs, reader.sink, selector, report).result


def purge(
    repository: Repository,
    selector: PurgeSelector,
    *,
    confirmed_purge: PurgeResult | None = None,
    report: Report | None = None,
) -> PurgeResult:
    """Remove lines from the notebooks, in the workspace and in every checkpoint; does nothing if there are none.

    `confirmed_purge` is the preview that the user has confirmed. Raises `Refused` if other lines would be removed now,
    or if a notebook is invalid, and `Damaged` if required data cannot be read, all before any change. Raises
    `StorageError` or `Interrupted` with the progress in the message.
    """
    store = repository.store
    with store.new_batch() as batch:
        plan = _plan(repository.paths, store.ledger, store.packs, batch, selector, report)
        if plan.result.is_nothing:
            batch.drop()
            return plan.result
        if confirmed_purge is not None and not set(plan.result.checkpoint_lines) <= set(
            confirmed_purge.checkpoint_lines
        ):
            batch.drop()
            raise memory_changed()
        repack.copy(batch, plan.packs, plan.result.contents.looked)
    _commit(
        repository,
        batch,
        WorkspaceNotebooks(repository.paths, selector),
        plan,
        (confirmed_purge or plan.result).workspace_lines,
    )
    _clean_up(store, plan.packs.gone)
    if os.path.lexists(repository.paths.lost_and_found):
        repair_report.empty_lost_and_found(repository.paths)
    return plan.result


def _plan(
    paths: ProfilePaths,
    ledger: Ledger,
    objects: PackStore,
    sink: ObjectWriter,
    selector: PurgeSelector,
    report: Report | None,
) -> _PurgePlan:
    live = WorkspaceNotebooks(paths, selector)
    lines = live.look()
    contents = Contents(objects, selector.matcher, report)
    rewriter = Rewriter(objects, sink, contents, selector, live.intact)
    trees = rewritten_trees(ledger, rewriter)
    # If lines are lost, there may be checkpoints that the ledger does not name.
    strays = objects.names() - ledger.packs - ledger.gone
    has_lost = bool(ledger.damage or strays)
    packs, leftovers, unread = PackSelection(ledger, objects, trees, contents, keep_strays=has_lost).plan(rewriter)
    checkpoints = sum(bool(record.tree) and trees[record.tree].is_purged for record in ledger.records.values())
    summary = PurgeResult(lines, rewriter.lines, checkpoints, rewriter.notebooks, leftovers, unread, contents)
    return _PurgePlan(trees, packs, summary)


def _commit(
    repository: Repository,
    batch: ObjectBatch,
    live: WorkspaceNotebooks,
    plan: _PurgePlan,
    expected_lines: list[LostLines],
) -> None:
    """Change the workspace, then the ledger. After a failure, checkpoints are in the old or in the new state."""
    store = repository.store
    raw = b""
    try:
        with store.counting(batch):
            live.forget(expected_lines)
            if plan.packs.gone or batch.pack:
                raw = ledger_with(store.writer.content(), plan.trees, plan.packs.gone, batch.pack)
                store.writer.replace(raw)
    except BaseException as error:
        is_done = _is_in_place(store, raw)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"Interrupted. {_DONE if is_done else _NOT_DONE}") from None
        if isinstance(error, OSError):
            raise storage_error(error, _DONE if is_done else _NOT_DONE) from error
        raise


_DONE = "The checkpoints are purged. The next command that changes something deletes the leftover data from the disk."
_NOT_DONE = "The checkpoints did not change. Notebooks in the workspace may have lost the lines already."


def _is_in_place(store: Checkpoints, raw: bytes) -> bool:
    """Whether the new ledger is the one on the disk."""
    try:
        return bool(raw) and store.writer.content() == raw
    except OSError:
        return False


def _clean_up(store: Checkpoints, old_packs: list[str]) -> None:
    try:
        store.packs.forget()
        for name in old_packs:
            store.packs.remove_pack(name)
        if old_packs:
            atomic.sync_directory(store.packs.directory)
    except OSError as error:
        raise storage_error(error, _DONE) from error
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. {_DONE}") from None


_LARGE = 16 << 20
"""Bytes of the largest pack that is rewritten only because trees in it have a new form."""
_NAMED = 8

_Tables = dict[str, Sequence[PackEntry] | None]


def rewritten_trees(ledger: Ledger, rewriter: Rewriter) -> dict[str, RewrittenTree]:
    """The new form of every tree that the ledger needs. Raises `Damaged` with the checkpoints that prevent it."""
    trees: dict[str, RewrittenTree] = {}
    errors: dict[str, Damaged] = {}
    for tree in dict.fromkeys(_roots(ledger)):
        try:
            trees[tree] = rewriter.rewrite(bytes.fromhex(tree))
        except NewerFormat:
            raise
        except Damaged as error:
            errors[tree] = error
    if errors:
        raise _in_the_way(ledger, errors, next(iter(errors.values())).message)
    return trees


def _roots(ledger: Ledger) -> Iterator[str]:
    yield from (state.tree for state in ledger.states)
    yield from (record.tree for record in ledger.records.values() if record.tree)


class PackSelection:
    """The packs of a store whose trees change.

    With `keep_strays`, there may be unknown checkpoints, so objects that no tree needs stay too, unless they contain
    the text.
    """

    def __init__(
        self,
        ledger: Ledger,
        objects: PackStore,
        trees: Mapping[str, RewrittenTree],
        contents: Contents,
        *,
        keep_strays: bool,
    ) -> None:
        self._ledger = ledger
        self._objects = objects
        self._trees = trees
        self._contents = contents
        self._keep_strays = keep_strays

    def plan(self, rewriter: Rewriter) -> tuple[Repacking, int, list[str]]:
        """The changes of packs; the number of unneeded contents with the text; the packs that stay although their
        content is unknown.

        Raises `Damaged`, naming the checkpoints to remove, if needed data cannot be read.
        """
        needed_digests, unread_digests = repack.reachable(self._objects, (tree.tree for tree in self._trees.values()))
        if unread_digests:
            raise self._damaged(unread_digests)
        tables = self._tables(needed_digests)
        for table in tables.values():
            for entry in table or ():
                self._contents.hold(entry.digest)
        old_packs = {name for name, table in tables.items() if self._goes(name, table, needed_digests, rewriter)}
        moves: dict[str, list[bytes]] = {}
        for digest in needed_digests if old_packs else ():
            # Not by the tables, which may be damaged.
            location = self._objects.find(digest)
            if location is not None and location.pack in old_packs:
                moves.setdefault(location.pack, []).append(digest)
        for name in old_packs if self._keep_strays else ():
            dead = [entry.digest for entry in tables[name] or () if entry.digest not in needed_digests]
            strays = [digest for digest in dead if not self._is_to_go(digest, rewriter) and not self._is_unread(digest)]
            moves.setdefault(name, []).extend(strays)
        repack_plan = Repacking({name: os.lstat(self._objects.path(name)).st_size for name in old_packs}, moves)
        for digest in repack_plan.objects:
            self._contents.hold(digest)
        if unread_digests := self._contents.unread.intersection(repack_plan.objects):
            raise self._damaged(unread_digests)
        leftovers = (
            {entry.digest for table in tables.values() for entry in table or ()} - needed_digests - rewriter.gone
        )
        unknown = [
            name
            for name in tables.keys() - old_packs
            if tables[name] is None or any(self._is_unread(entry.digest) for entry in tables[name] or ())
        ]
        return repack_plan, sum(map(self._is_leftover, leftovers)), sorted(unknown)

    def _tables(self, needed_digests: set[bytes]) -> _Tables:
        """The tables of all packs, `None` for unreadable ones."""
        tables: _Tables = {}
        for name in sorted(self._objects.names()):
            try:
                tables[name] = self._objects.table(name)
            except NewerFormat:
                raise
            except (Damaged, Refused):
                tables[name] = None
        if None in tables.values() and (
            missing := {digest for digest in needed_digests if not self._objects.has(digest)}
        ):
            raise self._damaged(missing)
        return tables

    def _goes(
        self, name: str, table: Sequence[PackEntry] | None, needed_digests: set[bytes], rewriter: Rewriter
    ) -> bool:
        if table is None:
            return not self._keep_strays  # all needed objects are elsewhere
        dead = [entry.digest for entry in table if entry.digest not in needed_digests]
        if any(self._is_to_go(digest, rewriter) for digest in dead):
            return True
        if self._keep_strays:
            return False
        if any(map(self._is_unread, dead)):
            return True  # its content is unknown, and not needed
        # Leftover trees contain hashes of notebooks. That is worth rewriting a small pack, but not a huge one.
        is_small = os.path.getsize(self._objects.path(name)) <= _LARGE
        is_whole = not any(map(self._is_unread, (entry.digest for entry in table)))
        return is_small and is_whole and not rewriter.replaced.isdisjoint(dead)

    def _is_to_go(self, digest: bytes, rewriter: Rewriter) -> bool:
        return digest in rewriter.gone or self._is_leftover(digest)

    def _is_leftover(self, digest: bytes) -> bool:
        """Whether an unneeded object is a content with the text; names in a tree do not count."""
        if not self._contents.hold(digest):
            return False
        try:
            decode(self._objects.read(digest))
        except Damaged:
            return True
        return False

    def _is_unread(self, digest: bytes) -> bool:
        return digest in self._contents.unread

    def _damaged(self, unread_digests: set[bytes]) -> Damaged:
        """The error for objects that cannot be read."""
        flaws: dict[bytes, bool] = {}

        def is_flawed(tree: bytes) -> bool:
            if tree not in flaws:
                entries = decode(self._objects.read(tree)) if tree not in unread_digests else []
                flaws[tree] = tree in unread_digests or any(
                    is_flawed(entry.digest) if entry.kind == DIRECTORY else entry.digest in unread_digests
                    for entry in entries
                )
            return flaws[tree]

        trees = [tree for tree, to in self._trees.items() if is_flawed(to.tree)]
        first = min(unread_digests).hex()[:16]
        reason = f"Object {first} in {self._objects.directory} is missing or damaged."
        return _in_the_way(self._ledger, trees, reason, self._path_of(unread_digests))

    def _path_of(self, unread_digests: set[bytes]) -> str | None:
        """The path of the first of these objects in the newest checkpoint."""
        newest = next(reversed(self._ledger.records.values()), None)
        if newest is None or not newest.tree:
            return None
        try:
            for path, entry in walk(self._objects, self._trees[newest.tree].tree):
                if entry.digest in unread_digests:
                    return os.fsdecode(path)
        except Damaged:
            pass
        return None


def _in_the_way(ledger: Ledger, trees: Iterable[str], reason: str, path: str | None = None) -> Damaged:
    """The error for trees that cannot be read completely; its hint names the checkpoints to remove.

    `path` is the workspace path of the damaged data in the newest checkpoint.
    """
    damaged_trees = set(trees)
    safety = {rewind.id: rewind.safety for rewind in ledger.rewinds.values()}
    ids = [record.id for record in ledger.records.values() if record.tree in damaged_trees]
    ids += [safety.get(state.id, state.id) for state in ledger.states if state.tree in damaged_trees]
    ids = [identity for identity in dict.fromkeys(ids) if identity in ledger.records]
    id_list = " ".join(ids[:_NAMED])
    remainder = f" and {len(ids) - _NAMED} more (`deepctl checkpoints verify` names them)" if len(ids) > _NAMED else ""
    first = ""
    if next(reversed(ledger.records), None) in ids:
        # A checkpoint of the same state would need the same data.
        change = f"change {path!r} in the workspace, " if path is not None else ""
        first = f"The newest checkpoint also needs it: {change}`deepctl checkpoints save`. "
    hint = f"{first}`deepctl checkpoints remove {id_list}`{remainder} removes the damaged data; then try again."
    return Damaged(f"{reason.removesuffix('.')}, so nothing was changed.", hint if ids else None)
