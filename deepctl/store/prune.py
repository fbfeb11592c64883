"""Removing checkpoints, and the data that only they needed.

    choose the checkpoints that stay -> write packs again without unneeded objects (`repack`), with one line in the
    ledger -> delete unneeded logs

On a full disk, packs without needed objects are deleted first; then packs are written again as space allows.

If remaining data cannot be read, only the records are removed, and no contents: unreadable never means deletable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from deepctl import quantities
from deepctl.errors import Damaged, DeepctlError, Refused
from deepctl.files import atomic, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import (
    checkpoint_store,
    log_file,
    repack,
    rewind_plan,
    session_catalogue,
    session_log,
    trees,
    workspaces,
)
from deepctl.store import ledger as ledgers
from deepctl.store.checkpoint_store import Checkpoints, ProfileStore
from deepctl.store.ledger import LEDGER, Ledger
from deepctl.store.object_store import ObjectReader
from deepctl.store.pack_store import PackStore
from deepctl.store.records import AGENT, Record, Rewind, WorkspaceState, state_author
from deepctl.store.repack import Repacking, Tell
from deepctl.store.rewind_plan import StoredRules
from deepctl.store.trees import Report


class CheckpointRemoval(NamedTuple):
    """Removed checkpoints, and the bytes on disk that this frees.

    `is_blocked` says that only the records are removed, because remaining data cannot be read. On a full disk,
    `bytes_left` could not be freed, and `records_left` are checkpoints that could not be removed.
    """

    records: list[Record]
    bytes: int
    is_blocked: bool = False
    bytes_left: int = 0
    records_left: Sequence[Record] = ()


Merged = dict[str, list[tuple[str | None, list[str]]]]


def to_prune(ledger: Ledger, keep: int | None, older_than: datetime | None = None) -> list[Record]:
    """The checkpoints beyond the latest `keep`, or made before `older_than`; with both, those that meet both
    conditions.

    A checkpoint of a tool call counts together with the checkpoint after it, and has its age. Labelled checkpoints, the
    newest checkpoint, and those that can undo the last rewind of a session stay.
    """
    stay = set(ledger.labels) | {rewind.safety for rewind in _last_rewinds(ledger)}
    if ledger.unfinished is not None:
        stay |= {ledger.unfinished.safety, ledger.unfinished.to}
    keep_count = max(keep, 1) if keep is not None else 0
    is_old = older_than is None
    candidates = []
    for record in reversed(ledger.records.values()):
        if older_than is not None and record.kind != "tool":
            is_old = _is_before(record, older_than)
        if keep_count == 0 and is_old and record.id not in stay:
            candidates.append(record)
        if keep_count and record.kind != "tool":
            keep_count -= 1
    newest = next(reversed(ledger.records), None)
    return [record for record in reversed(candidates) if record.id != newest]


def _is_before(record: Record, time: datetime) -> bool:
    """Whether a checkpoint was made before a time; false if its time is unknown."""
    return record.created_at != quantities.UNKNOWN_TIME and datetime.fromisoformat(record.created_at) < time


def _last_rewinds(ledger: Ledger) -> list[Rewind]:
    return [last for session in ledger.heads if (last := ledger.last_rewind(session)) is not None]


def check_removable(ledger: Ledger, records: Iterable[Record]) -> None:
    """Raises `Refused` if one of the checkpoints is labelled, or the newest."""
    newest = next(reversed(ledger.records), None)
    for record in records:
        if record.id in ledger.labels:
            raise Refused(
                f"Checkpoint {record.id} has the label {ledger.labels[record.id]!r}.",
                f"`deepctl checkpoints label {record.id} ''` removes the label.",
                code="labelled",
            )
        if record.id == newest:
            raise Refused(f"Checkpoint {record.id} is the newest one and cannot be removed.", code="newest")


def forecast(
    ledger: Ledger, packs: PackStore, records: Sequence[Record], report: Report | None = None
) -> CheckpointRemoval:
    """The space that removing checkpoints would free. `report` receives the number of read objects."""
    if not records:
        return CheckpointRemoval([], 0)
    identities = {record.id for record in records}
    repacking = _repacking(ledger, packs, _after(ledger, identities)[0], identities, repack.counter(report))
    return CheckpointRemoval(list(records), repacking.freed, repacking.is_blocked)


def remove(repository: ProfileStore, records: Sequence[Record], report: Report | None = None) -> CheckpointRemoval:
    """Remove checkpoints of a profile. The caller has called `check_removable`.

    Without checkpoints, free the space that a removal on a full disk could not free.
    """
    store = repository.store
    removal = remove_from(store, records, report) if records else _free_what_was_left(store, report)
    with atomic.after_commit(rest=repack.REST):
        collect_logs(repository.paths, repository.ledger)
        checkpoint_store.rewrite_index(repository.paths, repository.ledger)
    return removal


def remove_from(store: Checkpoints, records: Sequence[Record], report: Report | None = None) -> CheckpointRemoval:
    """Remove any checkpoints, with all data that only they needed."""
    if not records:
        return CheckpointRemoval([], 0)
    tell = repack.counter(report)
    repacking, commit = _planned(store, records, tell)
    try:
        repack.run(store, repacking, commit, tell)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        return _remove_on_full_disk(store, records, tell)
    return CheckpointRemoval(list(records), repacking.freed, repacking.is_blocked)


def _planned(
    store: Checkpoints, records: Sequence[Record], tell: Tell
) -> tuple[Repacking, Callable[[list[str], str], None]]:
    """The changes of packs without these checkpoints, and the function that writes their removal to the ledger."""
    identities = {record.id for record in records}
    states, accounts = _after(store.ledger, identities, store.objects)
    repacking = _repacking(store.ledger, store.packs, states, identities, tell)
    dropped_ids = {state.id for state in store.ledger.states} - {state.id for state in states}

    def commit(old_packs: list[str], pack: str) -> None:
        store.writer.remove(sorted(identities | dropped_ids), accounts, old_packs, pack)

    return repacking, commit


def _remove_on_full_disk(store: Checkpoints, records: Sequence[Record], tell: Tell) -> CheckpointRemoval:
    """Remove checkpoints on a full disk: unneeded packs are deleted first, and make room for moved objects.

    The lines of the ledger take at most the space of the reserve, or the space that the half before has freed.
    """
    store.release_reserve()
    repacking, commit = _planned(store, records, tell)
    try:
        bytes_left = repack.run_on_full_disk(store, repacking, commit)
    except OSError as error:
        if not atomic.is_full(error) or len(records) == 1:
            raise
        half = len(records) // 2
        first = _remove_on_full_disk(store, records[:half], tell)
        try:
            second = _remove_on_full_disk(store, records[half:], tell)
        except OSError:
            return first._replace(records_left=[*first.records_left, *records[half:]])
        return CheckpointRemoval(
            [*first.records, *second.records],
            first.bytes + second.bytes - min(first.bytes_left, second.bytes),
            second.is_blocked,
            second.bytes_left,
            [*first.records_left, *second.records_left],
        )
    return CheckpointRemoval(list(records), repacking.freed - bytes_left, repacking.is_blocked, bytes_left)


def _free_what_was_left(store: Checkpoints, report: Report | None) -> CheckpointRemoval:
    """Drop and write again the packs with many unneeded objects."""
    repacking = _repacking(store.ledger, store.packs, store.ledger.states, set(), repack.counter(report))

    def commit(old_packs: list[str], pack: str) -> None:
        if old_packs:
            store.writer.remove([], {}, old_packs, pack)

    bytes_left = repack.run_on_full_disk(store, repacking, commit)
    return CheckpointRemoval([], repacking.freed - bytes_left, repacking.is_blocked, bytes_left)


def _after(
    ledger: Ledger, identities: set[str], objects: ObjectReader | None = None
) -> tuple[list[WorkspaceState], Merged]:
    """The remaining states, and for each after a gap the authors of the changes in the gap, if there were several."""
    dropped_ids = identities | {rewind.id for rewind in ledger.rewinds.values() if rewind.safety in identities}
    dropped_ids |= {state.id for state in ledger.states} - ledger.records.keys() - ledger.rewinds.keys()
    states: list[WorkspaceState] = []
    accounts: Merged = {}
    gap: list[WorkspaceState] = []
    for number, state in enumerate(ledger.states):
        is_last = number == len(ledger.states) - 1
        gap.append(state)
        if state.id in dropped_ids and not is_last:
            continue
        is_mixed = len({state.by for state in gap}) > 1 or any(state.merged or state.unkept for state in gap)
        if states and objects is not None and len(gap) > 1 and (is_mixed or _rules_differ(objects, [states[-1], *gap])):
            _add_account(accounts, state.id, _authors(objects, [states[-1], *gap]))
        states.append(state)
        gap = []
    return states, accounts


def _add_account(accounts: Merged, identity: str, account: list[tuple[str | None, list[str]]]) -> None:
    """Record the authors of the changes before the state `identity`. If an application saved an id again, they apply to
    both of its states.
    """
    earlier = accounts.get(identity)
    accounts[identity] = [] if earlier == [] else (earlier or []) + account


def _rules_differ(objects: ObjectReader, states: list[WorkspaceState]) -> bool:
    """Whether these states cover different paths of a project, so that each interval has to be read."""
    try:
        rules = [workspaces.all_rules(objects, tree) for tree in {bytes.fromhex(state.tree) for state in states}]
    except Damaged:
        return True
    return any(digest != rules[0] for digest in rules)


def _authors(objects: ObjectReader, states: list[WorkspaceState]) -> list[tuple[str | None, list[str]]]:
    """The authors of the changed paths from the first of these states to the last; nothing if that cannot be read."""
    by: dict[str | None, set[str]] = {}
    rules = StoredRules(objects)
    try:
        for before, after in pairwise(states):
            stretch = rewind_plan.interval(before, after, rules)
            for change in trees.changes(objects, stretch.before, stretch.after):
                authors = stretch.authors(change.path)
                path, is_directory = change.path, change.is_directory
                if stretch.hidden(path, is_directory) or stretch.hidden_after(path, is_directory):
                    # Between two snapshots without the path, any author may have changed it.
                    authors = authors | {None}
                for author in authors:
                    by.setdefault(author, set()).add(os.fsdecode(change.path))
    except Damaged:
        return []
    return [(author, sorted(paths)) for author, paths in by.items()]


def _repacking(
    ledger: Ledger, packs: PackStore, states: list[WorkspaceState], identities: set[str], tell: Tell
) -> Repacking:
    """The changes of packs when only these states, and checkpoints other than `identities`, are needed."""
    roots = {state.tree for state in states}
    if ledger.unfinished is not None and ledger.unfinished.tree:
        roots.add(ledger.unfinished.tree)
    roots |= {record.tree for record in ledger.records.values() if record.tree and record.id not in identities}
    try:
        if ledger.damage:
            raise Damaged("The ledger is damaged.")
        needed_digests, unreadable = repack.reachable(packs, map(bytes.fromhex, roots), tell)
        if unreadable:
            return Repacking({}, {}, is_blocked=True)
        tables = {name: packs.table(name) for name in packs.names() & ledger.packs}
    except Damaged:
        return Repacking({}, {}, is_blocked=True)
    return repack.plan(packs, tables, needed_digests)


_SMALLEST_LEDGER = 64 << 10
_LEAST_GAIN = 4
"""A ledger is written again if that makes it so many times smaller."""


def compact(store: Checkpoints) -> bool:
    """Write the ledger of an application again without the lines of removed checkpoints, if these are most of it.

    Otherwise it would grow with every checkpoint, although few of them stay. Returns whether it was written. Nothing is
    written if the new ledger would not describe the same checkpoints, states, authors and packs.
    """
    ledger = store.ledger
    path = os.path.join(store.directory, LEDGER)
    size = os.path.getsize(path)
    if size < _SMALLEST_LEDGER or ledger.damage or ledger.unfinished is not None:
        return False
    # Records name packs that were replaced since.
    gone = ledger.gone & (store.packs.names() | {record.pack for record in ledger.records.values()})
    packs = {"repaired": {}, "packs": sorted(ledger.packs), "gone": []}
    entries = [{"v": ledgers.FORMAT, **entry} for entry in (packs, *_live_entries(ledger, sorted(gone)))]
    raw = b"".join(map(sealed_lines.seal, entries))
    after = ledgers.parse(raw, path)
    if len(raw) * _LEAST_GAIN > size or not all(getattr(after, key) == getattr(ledger, key) for key in _SAME):
        return False
    store.writer.replace(raw)
    return True


_SAME = ("records", "labels", "heads", "damage", "packs", "unfinished", "torn", "open_runs", "states")


def _live_entries(ledger: Ledger, gone: list[str]) -> Iterator[dict[str, Any]]:
    """The entries of the existing checkpoints and of the states of the workspace, in their order."""
    states = ledger.states
    last_state = {state.id: number for number, state in enumerate(states)}
    removed_ids: list[str] = []
    accounts: Merged = {}
    number = 0

    def of_state(state: WorkspaceState, record: Record) -> Iterator[dict[str, Any]]:
        if state.merged or state.by != state_author(record.author, record.session):
            # Authors of several changes belong to a state after a removed one.
            gap = record._replace(id=f"{state.id}-before", label="", metadata={}, pack="", author=AGENT)
            removed_ids.append(gap.id)
            accounts[state.id] = state.merged
            yield {"record": ledgers.shortened(gap)}

    def states_before(end: int) -> Iterator[dict[str, Any]]:
        nonlocal number
        while number < end:
            state = states[number]
            number += 1
            record = ledger.records.get(state.id) or ledger.removed.get(state.id)
            if record is None:
                continue  # of a rewind: the comparison finds that it is missing
            if state.id not in ledger.records:
                removed_ids.append(state.id)
            record = record._replace(tree=state.tree, unkept=state.unkept, exclude=state.exclude, label="", pack="")
            yield from of_state(state, record)
            yield {"record": ledgers.shortened(record)}

    for record in ledger.records.values():
        own = last_state.get(record.id)
        if own is not None:
            yield from states_before(own if record.tree else own + 1)
            if record.tree:
                yield from of_state(states[own], record)
                number = own + 1
        yield {"record": ledgers.shortened(record._replace(label=ledger.labels.get(record.id, "")))}
    yield from states_before(len(states))
    yield {"removed": removed_ids, "merged": accounts, "gone": gone, "pack": ""}


def collect_messages(directory: str, ledger: Ledger) -> None:
    """Delete the conversations of an application that no checkpoint needs; none if anything is damaged."""
    if ledger.damage or not os.path.isdir(directory):
        return
    logs = {entry.removesuffix(log_file.SUFFIX) for entry in os.listdir(directory) if entry.endswith(log_file.SUFFIX)}
    try:
        needed_logs = _with_parents(directory, {record.log for record in ledger.records.values()} & logs)
    except Damaged:
        return
    for log_id in logs - needed_logs:
        os.unlink(log_file.log_path(directory, log_id))


def _with_parents(directory: str, logs: Iterable[str]) -> set[str]:
    """These logs and those that they continue. Raises `Damaged`."""
    logs_and_parents: set[str] = set()
    pending = list(logs)
    while pending:
        log_id = pending.pop()
        if log_id not in logs_and_parents:
            logs_and_parents.add(log_id)
            parent = session_log.parent_of(directory, log_id)
            pending += [parent[0]] if parent is not None else []
    return logs_and_parents


def collect_logs(paths: ProfilePaths, ledger: Ledger) -> None:
    """Delete message logs that no checkpoint and no session needs; none if anything is damaged."""
    if ledger.damage:
        return
    record_logs = {record.log for record in ledger.records.values()}
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            logs = {
                entry.removesuffix(log_file.SUFFIX)
                for entry in os.listdir(session.directory)
                if entry.endswith(log_file.SUFFIX)
            }
            needed_logs = _with_parents(session.directory, {session.log, *(record_logs & logs)})
        except (DeepctlError, OSError):
            continue
        for log_id in logs - needed_logs:
            os.unlink(log_file.log_path(session.directory, log_id))
