"""Removing checkpoints, and with them what only they needed.

    what stays -> which objects are needed -> packs that hold none go; packs with much that is not needed, and small
    ones, are written anew into one -> one line in the ledger -> the old packs and logs are deleted

On a full disk, what only those that go needed is dropped first, and then what fits is written anew.

What the line calls gone and a kill left on the disk is deleted by whoever opens the profile next. Where something that
stays cannot be read, nothing but the records goes: unreadable never means deletable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from deepctl import times
from deepctl.errors import Damaged, DeepctlError, Refused
from deepctl.files import atomic
from deepctl.layout import ProfilePaths
from deepctl.store import completion_index, log_file, rewind_plan, session_catalogue, session_log, trees
from deepctl.store.checkpoint_store import Checkpoints
from deepctl.store.ledger import Ledger
from deepctl.store.pack_store import PackStore
from deepctl.store.records import Record, Rewind, State
from deepctl.store.repository import Repository
from deepctl.store.snapshot import Report
from deepctl.store.trees import DIRECTORY

_SMALL = 1 << 20
_MANY_SMALL = 8
_DEAD = 4
_REST = "The next command that changes something in this profile removes what is left of them."


class Removal(NamedTuple):
    """Checkpoints that go or went, and the bytes on disk that this frees.

    `is_blocked` says that nothing but the records goes, because something that stays cannot be read. On a full disk,
    `bytes_left` could not be freed, and `records_left` are checkpoints that could not be removed.
    """

    records: list[Record]
    bytes: int
    is_blocked: bool = False
    bytes_left: int = 0
    records_left: Sequence[Record] = ()


class _Repacking(NamedTuple):
    """Packs that go with everything in them, those that are written anew, and the bytes that either frees.

    `moved` has the objects that stay of each pack that is written anew. Many `small` ones become one, which frees
    nothing to speak of.
    """

    dead: dict[str, int]
    again: dict[str, int]
    small: list[str]
    moved: dict[str, list[bytes]]
    is_blocked: bool = False

    @property
    def freed(self) -> int:
        return sum(self.dead.values()) + sum(self.again.values())


class _Reading:
    """Counts the objects that are read."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._count = 0

    def one_more(self) -> None:
        self._count += 1
        if self._report is not None:
            self._report(self._count)


Merged = dict[str, list[tuple[str | None, list[str]]]]


def to_prune(found: Ledger, keep: int | None, older_than: datetime | None = None) -> list[Record]:
    """The checkpoints beyond the latest `keep`, or made before `older_than`; with both, those that are both.

    Tool-level ones count, and are as old, as the one after them. Labelled ones stay, the newest stays, and so does what
    the last rewind of a session can be undone with.
    """
    stay = set(found.labels) | {rewind.safety for rewind in _last_rewinds(found)}
    if found.unfinished is not None:
        stay |= {found.unfinished.safety, found.unfinished.to}
    left = max(keep, 1) if keep is not None else 0
    is_old = older_than is None
    gone = []
    for record in reversed(found.records.values()):
        if older_than is not None and record.kind != "tool":
            is_old = _is_before(record, older_than)
        if left == 0 and is_old and record.id not in stay:
            gone.append(record)
        if left and record.kind != "tool":
            left -= 1
    newest = next(reversed(found.records), None)
    return [record for record in reversed(gone) if record.id != newest]


def _is_before(record: Record, time: datetime) -> bool:
    """Whether a checkpoint was made before a time; where that is not known, it was not."""
    return record.created_at != times.UNKNOWN and datetime.fromisoformat(record.created_at) < time


def _last_rewinds(found: Ledger) -> list[Rewind]:
    return [last for session in found.heads if (last := found.last_rewind(session)) is not None]


def check_removable(found: Ledger, records: Iterable[Record]) -> None:
    """Raises `Refused` if one of the checkpoints is labelled, or the newest."""
    newest = next(reversed(found.records), None)
    for record in records:
        if record.id in found.labels:
            raise Refused(
                f"Checkpoint {record.id} is labelled {found.labels[record.id]!r}.",
                f"`deepctl checkpoints label {record.id} ''` takes the label away.",
                code="labelled",
            )
        if record.id == newest:
            raise Refused(f"Checkpoint {record.id} is the newest, which always stays.", code="newest")


def forecast(found: Ledger, objects: PackStore, records: Sequence[Record], report: Report | None = None) -> Removal:
    """What removing checkpoints would free. `report` is told how many objects have been read."""
    if not records:
        return Removal([], 0)
    identities = {record.id for record in records}
    foreseen = _repacking(found, objects, _after(found, identities)[0], identities, _Reading(report).one_more)
    return Removal(list(records), foreseen.freed, foreseen.is_blocked)


def remove(work: Repository, records: Sequence[Record], report: Report | None = None) -> Removal:
    """Remove checkpoints of a profile. The caller has asked `check_removable`.

    Without any, what a removal on a full disk had to leave is freed.
    """
    removal = remove_from(work.store, records, report) if records else _free_what_was_left(work.store, report)
    with atomic.after_commit(rest=_REST):
        collect_logs(work.paths, work.ledger)
        completion_index.rewrite(work.paths, work.ledger)
    return removal


def remove_from(store: Checkpoints, records: Sequence[Record], report: Report | None = None) -> Removal:
    """Remove checkpoints, whichever they are, with everything that only they needed."""
    if not records:
        return Removal([], 0)
    identities = {record.id for record in records}
    tell = _Reading(report).one_more
    states, merged = _after(store.ledger, identities, store.packs)
    repacked = _repacking(store.ledger, store.packs, states, identities, tell)
    dropped = {state.id for state in store.ledger.states} - {state.id for state in states}
    gone = sorted([*repacked.dead, *repacked.again, *repacked.small])
    try:
        with store.new_batch() as batch:
            for digest in sorted({one for moved in repacked.moved.values() for one in moved}):
                batch.copy(digest)
                tell()
        with store.counting(batch):
            store.writer.remove(sorted(identities | dropped), merged, gone, batch.pack)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        return _remove_on_full_disk(store, records, tell)
    _remove_packs(store, gone)
    return Removal(list(records), repacked.freed, repacked.is_blocked)


def _remove_on_full_disk(store: Checkpoints, records: Sequence[Record], tell: Callable[[], None]) -> Removal:
    """Remove checkpoints where there is no room: what only they need goes first, and makes room for what is moved.

    The lines of the ledger take up to what the reserve has, or what the half before has freed.
    """
    store.release_reserve()
    identities = {record.id for record in records}
    states, merged = _after(store.ledger, identities, store.packs)
    repacked = _repacking(store.ledger, store.packs, states, identities, tell)
    dropped = {state.id for state in store.ledger.states} - {state.id for state in states}
    try:
        store.writer.remove(sorted(identities | dropped), merged, sorted(repacked.dead), "")
    except OSError as error:
        if not atomic.is_full(error) or len(records) == 1:
            raise
        half = len(records) // 2
        first = _remove_on_full_disk(store, records[:half], tell)
        try:
            second = _remove_on_full_disk(store, records[half:], tell)
        except OSError:
            return first._replace(records_left=[*first.records_left, *records[half:]])
        return Removal(
            [*first.records, *second.records],
            first.bytes + second.bytes - min(first.bytes_left, second.bytes),
            second.is_blocked,
            second.bytes_left,
            [*first.records_left, *second.records_left],
        )
    _remove_packs(store, repacked.dead)
    left = _write_all_anew(store, repacked)
    return Removal(list(records), repacked.freed - left, repacked.is_blocked, left)


def _free_what_was_left(store: Checkpoints, report: Report | None) -> Removal:
    """Drop and write anew the packs with much that is not needed."""
    tell = _Reading(report).one_more
    repacked = _repacking(store.ledger, store.packs, store.ledger.states, set(), tell)
    if repacked.dead:
        store.writer.remove([], {}, sorted(repacked.dead), "")
        _remove_packs(store, repacked.dead)
    left = _write_all_anew(store, repacked)
    return Removal([], repacked.freed - left, repacked.is_blocked, left)


def _write_all_anew(store: Checkpoints, repacked: _Repacking) -> int:
    """Write anew the packs that there is room for. Returns how many bytes that leaves."""
    left = 0
    for name, freed in sorted(repacked.again.items(), key=lambda pack: -pack[1]):
        if not _write_anew(store, name, repacked.moved[name]):
            left += freed
    return left


def _write_anew(store: Checkpoints, name: str, moved: Iterable[bytes]) -> bool:
    """Replace a pack by one with what is still needed of it. False if there is no room for that."""
    try:
        with store.new_batch() as batch:
            for digest in moved:
                location = store.packs.find(digest)
                if location is None or location.pack == name or location.pack not in store.ledger.packs:
                    batch.copy(digest)
        with store.counting(batch):
            store.writer.remove([], {}, [name], batch.pack)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        return False
    _remove_packs(store, [name])
    return True


def _remove_packs(store: Checkpoints, gone: Iterable[str]) -> None:
    """Delete what the ledger calls gone by now."""
    with atomic.after_commit(rest=_REST):
        for name in gone:
            store.packs.remove_pack(name)


def _after(found: Ledger, identities: set[str], objects: PackStore | None = None) -> tuple[list[State], Merged]:
    """The states that stay, and for each after a gap who changed what in the gap, where that was not one alone."""
    gone = identities | {rewind.id for rewind in found.rewinds.values() if rewind.safety in identities}
    gone |= {state.id for state in found.states} - found.records.keys() - found.rewinds.keys()
    states: list[State] = []
    merged: Merged = {}
    gap: list[State] = []
    for number, state in enumerate(found.states):
        is_last = number == len(found.states) - 1
        gap.append(state)
        if state.id in gone and not is_last:
            continue
        is_mixed = len({one.by for one in gap}) > 1 or any(one.merged or one.unkept for one in gap)
        if states and objects is not None and len(gap) > 1 and is_mixed:
            _add_account(merged, state.id, _authors(objects, [states[-1], *gap]))
        states.append(state)
        gap = []
    return states, merged


def _add_account(merged: Merged, identity: str, account: list[tuple[str | None, list[str]]]) -> None:
    """Say who changed what before the state `identity`; before both where an application saved an id again."""
    known = merged.get(identity)
    merged[identity] = [] if known == [] else (known or []) + account


def _authors(objects: PackStore, states: list[State]) -> list[tuple[str | None, list[str]]]:
    """Who changed which paths from the first of these states to the last; nothing where that cannot be read."""
    by: dict[str | None, set[str]] = {}
    try:
        for before, after in pairwise(states):
            stretch = rewind_plan.interval(before, after)
            for change in trees.changes(objects, stretch.before, stretch.after):
                authors = stretch.authors(change.path)
                if stretch.hidden(change.path) or stretch.hidden_after(change.path):
                    # Between two looks that did not see it, anybody may have changed it.
                    authors = authors | {None}
                for author in authors:
                    by.setdefault(author, set()).add(os.fsdecode(change.path))
    except Damaged:
        return []
    return [(author, sorted(paths)) for author, paths in by.items()]


def _repacking(
    found: Ledger, objects: PackStore, states: list[State], identities: set[str], tell: Callable[[], None]
) -> _Repacking:
    roots = {state.tree for state in states}
    if found.unfinished is not None and found.unfinished.tree:
        roots.add(found.unfinished.tree)
    roots |= {record.tree for record in found.records.values() if record.tree and record.id not in identities}
    try:
        if found.damage:
            raise Damaged("The ledger is damaged.")
        needed = _needed(objects, roots, tell)
        tables = {name: objects.table(name) for name in objects.names() & found.packs}
    except Damaged:
        return _Repacking({}, {}, [], {}, True)
    dead: dict[str, int] = {}
    again: dict[str, int] = {}
    small: list[str] = []
    for name, table in tables.items():
        size = os.path.getsize(os.path.join(objects.directory, name))
        stay = [entry for entry in table if entry.digest in needed]
        live = sum(entry.stored for entry in stay)
        if not stay:  # not `live`: the empty file takes no bytes
            dead[name] = size
        elif (size - live) * _DEAD > size and len(stay) < len(table):
            again[name] = size - live
        elif size < _SMALL:
            small.append(name)
    if len(small) < _MANY_SMALL:
        small = []
    moved = {
        name: sorted({entry.digest for entry in tables[name] if entry.digest in needed}) for name in (*again, *small)
    }
    return _Repacking(dead, again, small, moved)


def _needed(objects: PackStore, roots: Iterable[str], tell: Callable[[], None]) -> set[bytes]:
    """Every object that the trees `roots` consist of."""
    needed: set[bytes] = set()
    pending = [bytes.fromhex(root) for root in roots]
    while pending:
        tree = pending.pop()
        if tree in needed:
            continue
        needed.add(tree)
        tell()
        for entry in trees.decode(objects.read(tree)):
            if entry.kind == DIRECTORY:
                pending.append(entry.digest)
            else:
                needed.add(entry.digest)
    return needed


def collect_messages(directory: str, found: Ledger) -> None:
    """Delete the conversations of an application that no checkpoint needs; none where anything is damaged."""
    if found.damage or not os.path.isdir(directory):
        return
    logs = {entry.removesuffix(log_file.SUFFIX) for entry in os.listdir(directory) if entry.endswith(log_file.SUFFIX)}
    try:
        needed = _with_parents(directory, {record.log for record in found.records.values()} & logs)
    except Damaged:
        return
    for one in logs - needed:
        os.unlink(log_file.log_path(directory, one))


def _with_parents(directory: str, logs: Iterable[str]) -> set[str]:
    """These logs and those they continue. Raises `Damaged`."""
    needed: set[str] = set()
    pending = list(logs)
    while pending:
        one = pending.pop()
        if one not in needed:
            needed.add(one)
            parent = session_log.parent_of(directory, one)
            pending += [parent[0]] if parent is not None else []
    return needed


def collect_logs(paths: ProfilePaths, found: Ledger) -> None:
    """Delete message logs that no checkpoint and no session needs; none where anything is damaged."""
    if found.damage:
        return
    wanted = {record.log for record in found.records.values()}
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            logs = {
                entry.removesuffix(log_file.SUFFIX)
                for entry in os.listdir(session.directory)
                if entry.endswith(log_file.SUFFIX)
            }
            needed = _with_parents(session.directory, {session.log, *(wanted & logs)})
        except (DeepctlError, OSError):
            continue
        for one in logs - needed:
            os.unlink(log_file.log_path(session.directory, one))
