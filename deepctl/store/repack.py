"""Repacking: writing packs again without unneeded objects. This is the only way to delete contents from the disk.

    find the needed objects -> choose the packs to delete -> copy their needed objects into one new pack -> the ledger
    names the new pack, and calls the others removed -> delete these

Removing checkpoints and purging memory differ in the needed objects and in the lines of the ledger; see `prune` and
`domain.purge`. A kill before the ledger is written leaves a pack without a line; after it, packs that a line calls
removed. The next command that opens the profile deletes these packs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

from deepctl.errors import Damaged, NewerFormat
from deepctl.files import atomic
from deepctl.store import trees
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.object_store import ObjectBatch, ObjectReader
from deepctl.store.pack_store import PackEntry, PackStore

Tell = Callable[[], None]
"""Called for every object that has been read."""

REST = "The next command that changes this profile removes the rest of them."
_SMALL = 1 << 20
_MANY_SMALL = 8
_DEAD = 4
"""A pack is written again if more than this fraction of it is not needed."""


class Repacking(NamedTuple):
    """The deleted packs, and the bytes on disk that this frees; `moved` are their objects that are stored elsewhere.

    Small packs that are merged free nothing. `is_blocked` says that no pack is deleted, because remaining data cannot
    be read.
    """

    packs: Mapping[str, int]
    moved: Mapping[str, Sequence[bytes]]
    is_blocked: bool = False

    @property
    def gone(self) -> list[str]:
        """The packs that are deleted."""
        return sorted(self.packs)

    @property
    def dead(self) -> list[str]:
        """Deleted packs without needed objects."""
        return [name for name in self.gone if name not in self.moved]

    @property
    def freed(self) -> int:
        """Bytes on disk that become free."""
        return sum(self.packs.values())

    @property
    def objects(self) -> list[bytes]:
        """The objects that are copied."""
        return sorted({digest for digests in self.moved.values() for digest in digests})


def counter(report: Callable[[int], None] | None) -> Tell:
    """Passes the number of its calls to `report`."""
    if report is None:
        return lambda: None
    numbers = itertools.count(1)
    return lambda: report(next(numbers))


def reachable(
    objects: ObjectReader, roots: Iterable[bytes], tell: Tell = lambda: None
) -> tuple[set[bytes], set[bytes]]:
    """Every object of the trees `roots`, and of the trees that cannot be read.

    Raises `NewerFormat`.
    """
    digests: set[bytes] = set()
    unreadable: set[bytes] = set()
    pending = list(roots)
    while pending:
        tree = pending.pop()
        if tree in digests:
            continue
        digests.add(tree)
        tell()
        try:
            entries = trees.decode(objects.read(tree))
        except NewerFormat:
            raise
        except Damaged:
            unreadable.add(tree)
            continue
        pending += [entry.digest for entry in entries if entry.kind == trees.DIRECTORY]
        digests.update(entry.digest for entry in entries if entry.kind != trees.DIRECTORY)
    return digests, unreadable


def plan(packs: PackStore, tables: Mapping[str, Sequence[PackEntry]], needed_digests: Container[bytes]) -> Repacking:
    """Delete the packs without needed objects; write packs with many unneeded objects again, and merge many small
    ones.
    """
    freed: dict[str, int] = {}
    small: list[str] = []
    for name, table in tables.items():
        size = os.path.getsize(packs.path(name))
        live_entries = [entry for entry in table if entry.digest in needed_digests]
        live = sum(entry.stored_size for entry in live_entries)
        if not live_entries:  # not `live`: the empty file takes no bytes
            freed[name] = size
        elif (size - live) * _DEAD > size and len(live_entries) < len(table):
            freed[name] = size - live
        elif size < _SMALL:
            small.append(name)
    if len(small) >= _MANY_SMALL:
        freed |= dict.fromkeys(small, 0)
    moves = {name: sorted({entry.digest for entry in tables[name] if entry.digest in needed_digests}) for name in freed}
    return Repacking(freed, {name: digests for name, digests in moves.items() if digests})


def copy(batch: ObjectBatch, repacking: Repacking, tell: Tell) -> None:
    """Copy the needed objects of the packs that are deleted. Raises `Damaged`."""
    for digest in repacking.objects:
        batch.copy(digest)
        tell()


def run(store: Checkpoints, repacking: Repacking, commit: Callable[[list[str], str], None], tell: Tell) -> None:
    """Do all of it; `commit` writes the removed packs, and the one that replaces them, to the ledger."""
    with store.new_batch() as batch:
        copy(batch, repacking, tell)
    with store.counting(batch):
        commit(repacking.gone, batch.pack)
    delete_packs(store, repacking.gone)


def delete_packs(store: Checkpoints, names: Iterable[str]) -> None:
    """Delete packs that the ledger calls removed."""
    with atomic.after_commit(rest=REST):
        for name in names:
            store.packs.remove_pack(name)


def run_on_full_disk(store: Checkpoints, repacking: Repacking, commit: Callable[[list[str], str], None]) -> int:
    """Do as much as the space allows: unneeded packs are deleted first, and make room for copies.

    `commit` is called for the deleted packs. Returns the number of bytes that could not be freed. Raises `OSError`
    before anything is deleted.
    """
    commit(repacking.dead, "")
    delete_packs(store, repacking.dead)
    bytes_left = 0
    for name, byte_count in sorted(repacking.packs.items(), key=lambda pack: -pack[1]):
        if byte_count and name in repacking.moved and not _write_anew(store, name, repacking.moved[name]):
            bytes_left += byte_count
    return bytes_left


def _write_anew(store: Checkpoints, name: str, digests: Iterable[bytes]) -> bool:
    """Replace a pack by one with its needed objects. Returns false if there is no space for that."""
    try:
        with store.new_batch() as batch:
            for digest in digests:
                location = store.packs.find(digest)
                if location is None or location.pack == name or location.pack not in store.ledger.packs:
                    batch.copy(digest)
        with store.counting(batch):
            store.writer.remove([], {}, [name], batch.pack)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        return False
    delete_packs(store, [name])
    return True
