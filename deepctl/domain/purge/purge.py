"""Purging: lines leave every notebook that is kept, too. The one rewrite of what is otherwise immutable.

    what checkpoints keep is read and checked, and becomes other trees; nothing is changed if anything cannot be read
    one pack: what is new, and what is still needed of the packs that go, synced; nothing names it yet
    the notebooks in the workspace lose the lines, as by forgetting them without a purge
    the ledger, anew as a whole, is renamed into place: other trees, and which packs are gone   <- done
    the packs that are gone are deleted, and the cache

A kill before the rename leaves checkpoints as they were; after it, whoever opens the profile next deletes what the
ledger calls gone. Ids, labels, order and attribution stay. The workspace and the last state lose the same lines, so
between them there is no change that would be somebody's, and in the way of a rewind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from deepctl.domain.purge import repack
from deepctl.domain.purge.repack import PurgedPacks, Repacking
from deepctl.domain.purge.rewrite import Rewriter, Rewritten, ledger_with
from deepctl.domain.purge.selector import Forgotten, Live, PurgeSelector, changed
from deepctl.domain.purge.text_matcher import Contents
from deepctl.errors import Interrupted
from deepctl.files import atomic
from deepctl.files.atomic import storage_error
from deepctl.layout import ProfilePaths
from deepctl.store import lost_and_found
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.contents_reader import ReadOnlyRepository
from deepctl.store.ledger import Ledger
from deepctl.store.object_store import ObjectBatch, ObjectWriter
from deepctl.store.pack_store import PackStore
from deepctl.store.repository import Repository

Report = Callable[[int], None]


class Purged(NamedTuple):
    """What a purge takes away, or took.

    `live` are lines in the workspace, `kept` the different ones in checkpoints, each with the name of its notebook. In
    `checkpoints`, notebooks hold the text, in so many versions (`notebooks`); `leftovers` is how many contents
    hold it that no checkpoint needs any more. `unread` are packs that stay although they cannot be read in full, and
    `contents` knows what else holds the text.
    """

    live: list[Forgotten]
    kept: list[tuple[str, bytes]]
    checkpoints: int
    notebooks: int
    leftovers: int
    unread: list[str]
    contents: Contents

    @property
    def is_nothing(self) -> bool:
        """Whether no notebook, no checkpoint of one and nothing left of one holds the text."""
        return not self.live and not self.notebooks and not self.leftovers


class _Plan(NamedTuple):
    """What there is to do; `trees` are what those of the ledger become."""

    trees: Mapping[str, Rewritten]
    packs: Repacking
    purged: Purged


def foretell(reader: ReadOnlyRepository, doomed: PurgeSelector, report: Report | None = None) -> Purged:
    """What a purge would take away, changing nothing. Raises `Damaged` and `Refused` as `purge` does."""
    return _plan(reader.paths, reader.ledger, reader.packs, reader.sink, doomed, report).purged


def purge(
    work: Repository, doomed: PurgeSelector, *, expected: Purged | None = None, report: Report | None = None
) -> Purged:
    """Take lines out of the notebooks, in the workspace and in every checkpoint; nothing is done if there are none.

    `expected` is what the user has agreed to. Raises `Refused` if others would go by now,
    and for what is no notebook, and `Damaged` if something cannot be read that has to be, all before anything is
    changed; and `StorageError` or `Interrupted`, which say how far it has come.
    """
    store = work.store
    with store.new_batch() as batch:
        plan = _plan(work.paths, store.ledger, store.packs, batch, doomed, report)
        if plan.purged.is_nothing:
            batch.drop()
            return plan.purged
        if expected is not None and not set(plan.purged.kept) <= set(expected.kept):
            batch.drop()
            raise changed()
        for digest in plan.packs.moved:
            batch.copy(digest)
            plan.purged.contents.looked()
    _commit(work, batch, Live(work.paths, doomed), plan, (expected or plan.purged).live)
    _clean_up(store, plan.packs.gone)
    lost_and_found.empty(work.paths)
    return plan.purged


def _plan(
    paths: ProfilePaths,
    found: Ledger,
    objects: PackStore,
    sink: ObjectWriter,
    doomed: PurgeSelector,
    report: Report | None,
) -> _Plan:
    live = Live(paths, doomed)
    lines = live.look()
    contents = Contents(objects, doomed.sought, report)
    rewriter = Rewriter(objects, sink, contents, doomed, live.intact)
    trees = repack.rewritten(found, rewriter)
    # Where lines are lost, there may be checkpoints that the ledger does not tell of.
    strays = objects.names() - found.packs - found.gone
    has_lost = bool(found.damage or strays)
    packs = PurgedPacks(found, objects, trees, contents, keep_strays=has_lost).plan(rewriter)
    checkpoints = sum(bool(record.tree) and trees[record.tree].is_purged for record in found.records.values())
    purged = Purged(lines, rewriter.lines, checkpoints, rewriter.notebooks, packs.leftovers, packs.unread, contents)
    return _Plan(trees, packs, purged)


def _commit(work: Repository, batch: ObjectBatch, live: Live, plan: _Plan, expected: list[Forgotten]) -> None:
    """Change the workspace, then the ledger. Where that fails, checkpoints are as they were, or as they are to be."""
    store = work.store
    raw = b""
    try:
        with store.counting(batch):
            live.forget(expected)
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


_DONE = "The checkpoints are purged; what is left on the disk goes with the next command that changes something."
_NOT_DONE = "The checkpoints are as they were; notebooks in the workspace may have lost the lines already."


def _is_in_place(store: Checkpoints, raw: bytes) -> bool:
    """Whether the new ledger is the one on the disk."""
    try:
        return bool(raw) and store.writer.content() == raw
    except OSError:
        return False


def _clean_up(store: Checkpoints, gone: list[str]) -> None:
    try:
        store.packs.forget()
        for name in gone:
            store.packs.remove_pack(name)
        if gone:
            atomic.sync_directory(store.packs.directory)
    except OSError as error:
        raise storage_error(error, _DONE) from error
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted. {_DONE}") from None
