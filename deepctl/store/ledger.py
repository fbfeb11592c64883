"""The ledger: the checkpoints of a profile, as an append-only file of sealed lines.

`checkpoints/ledger.jsonl` has one line for every change of checkpoints. A line is synced before it counts:

- `{v, record: {…}}`: a checkpoint was made;
- `{v, record: {…}, rewind: {…}}`: a rewind is about to change the workspace; the record is its safety checkpoint;
  `{v, rewound: id}`: the rewind is done; `{v, abandoned: id}`: it could not be done, and nothing has changed;
  `{v, gave_up: id}`: it could be neither done nor undone;
- `{v, label: {id, label}}`: a checkpoint got a label, or lost it (`null`);
- `{v, removed: [id, …], merged: {…}, gone: [pack, …], pack}`: checkpoints were removed, and packs were replaced;
- `{v, tied: {id: digest}}`: digests of positions that 0.1 wrote without one; empty if the position is not a line's end;
- `{v, gap: id}`: the place of an unreadable line that a repair replaced; `id` is its checkpoint (`null` if unknown);
- `{v, repaired: {id: {field: value}}, packs: [pack, …], gone: [pack, …]}`: corrections of checkpoints by a repair, and
  the packs that count since then.

So an interrupted rewind lacks its second line, and the ledger has the whole history of rewinds and the data for their
undo. Every pack is named by the line that makes it count. A pack without a line is garbage, or the ledger has lost
lines (`pack_store.UNCOUNTED` distinguishes the two).

A line that a kill cut short does not count; a damaged line affects only itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from deepctl import layout
from deepctl.errors import Refused
from deepctl.files import atomic, sealed_lines
from deepctl.store import ledger_fold, log_file
from deepctl.store.ledger_fold import Fold
from deepctl.store.log_file import Point
from deepctl.store.records import (
    UNKNOWN,
    Record,
    RecordDamage,
    Rewind,
    SessionRecord,
    WorkspaceState,
    check_fields,
    check_label,
    state_author,
)

FORMAT = layout.LEDGER_FORMAT.current

LEDGER = "ledger.jsonl"
MESSAGES = "messages"
"""The directory beside the ledger with the conversations of applications."""
_AMENDED = {"log", "offset", "digest", "tree", "lost", "unkept", "files", "bytes"}
_ID = re.compile(rb'"record":\{"id":"([^"\\]{1,200})"')


def run_of(metadata: dict[str, Any]) -> str | None:
    """The run of an application's agent that made a checkpoint with this metadata.

    An application may have a `run` of its own in its metadata, but then no `kind`.
    """
    match metadata:
        case {"kind": "turn" | "tool" | "manual", "run": str(run)}:
            return run
        case _:
            return None


class Ledger:
    """The state that the ledger describes: records and rewinds in the order of their creation, labels by checkpoint,
    damage.

    `heads` is the checkpoint at which each session stands, `unfinished` the interrupted rewind, `packs` the packs that
    count, `states` the workspace through time, `ends` the end of each log's checkpointed part, `open_turns` the logs
    whose latest checkpoint is within a turn, `open_runs` the unfinished runs of applications, `removed` the records of
    removed checkpoints, and `torn` whether the last line is incomplete; `ends_in_removal` says that removed data may
    still be on the disk.

    The following include removed checkpoints: `origins` has the position that each log of a rewind continues, `logs`
    the session by each log that it was the first to use, `current` the log in which a session continues, `forked` the
    checkpoint of another session at which it started, and `projects` the project of each session that has one.
    """

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.labels: dict[str, str] = {}
        self.rewinds: dict[str, Rewind] = {}
        self.heads: dict[str, str] = {}
        self.damage: list[RecordDamage] = []
        self.packs: set[str] = set()
        self.gone: set[str] = set()
        self.unfinished: Rewind | None = None
        self.torn = False
        self.ends: dict[str, int] = {}
        self.open_turns: set[str] = set()
        self.open_runs: set[str] = set()
        self.removed: dict[str, Record] = {}
        self.origins: dict[str, Point | None] = {}
        self.logs: dict[str, str] = {}
        self.current: dict[str, str] = {}
        self.forked: dict[str, str | None] = {}
        self.projects: dict[str, str] = {}
        self.untieable: set[str] = set()
        self._abandoned: dict[str, Record] = {}
        self.ends_in_removal = False
        self.is_short = False
        self._gap = False
        self._before_rewind: tuple[int | None, bool] = (None, False)
        self._states: list[WorkspaceState] = []
        self._folded_states = b""

    @property
    def states(self) -> list[WorkspaceState]:
        """The workspace through time. Lists do not need it, so the states of a fold are decoded only on demand."""
        if self._folded_states:
            self._states[:0] = ledger_fold.states_in(self._folded_states)
            self._folded_states = b""
        return self._states

    def values(self) -> dict[str, Any]:
        """All values of this object, for a fold (`ledger_fold.Fold`)."""
        return {**vars(self), "_states": [], "_folded_states": ledger_fold.packed_states(self.states)}

    def head(self, session: SessionRecord) -> str | None:
        """The checkpoint at which a session stands."""
        return self.heads.get(session.id, session.forked_from)

    def untied(self) -> list[Record]:
        """The checkpoints whose positions have no digest, because 0.1 wrote them."""
        return [
            record
            for record in self.records.values()
            if record.log and not record.digest and record.id not in self.untieable and not record.has_lost_conversation
        ]

    def line(self, start: str | None) -> Iterator[Record]:
        """The checkpoints that led to `start`, the latest first; rewound ones are not among them."""
        identities: set[str] = set()
        while start is not None and start not in identities:
            identities.add(start)
            if start in self.records:
                yield self.records[start]
            start = self._parent_of(start)

    def line_of(self, start: str | None) -> list[Record]:
        """The same as a list."""
        return list(self.line(start))

    def line_with_removed(self, start: str | None) -> Iterator[tuple[Record, bool]]:
        """The same with removed ones, and for each whether it still exists."""
        identities: set[str] = set()
        while start is not None and start not in identities:
            identities.add(start)
            if start in self.records:
                yield self.records[start], True
            elif start in self.removed:
                yield self.removed[start], False
            start = self._parent_of(start)

    def point(self, identity: str) -> Point | None:
        """The position of an existing or removed checkpoint."""
        record = self._known(identity)
        return record.point if record is not None else None

    def _known(self, identity: str | None) -> Record | None:
        """An existing or removed checkpoint."""
        if identity is None:
            return None
        return self.records.get(identity) or self.removed.get(identity) or self._abandoned.get(identity)

    def _parent_of(self, identity: str) -> str | None:
        record = self._known(identity)
        return record.parent if record is not None else None

    def parent(self, record: Record) -> str | None:
        """The nearest earlier checkpoint that still exists."""
        before = next(self.line(record.parent), None)
        return before.id if before is not None else None

    def labelled(self, label: str) -> Record | None:
        """The checkpoint with that label, in any case."""
        folded_label = layout.folded_name(label)
        identity = next(
            (
                identity
                for identity, other_label in self.labels.items()
                if layout.folded_name(other_label) == folded_label
            ),
            None,
        )
        return self.records.get(identity) if identity is not None else None

    def last_rewind(self, session: str) -> Rewind | None:
        """The latest finished rewind of a session, undos included."""
        rewinds = [
            rewind for rewind in self.rewinds.values() if rewind.session == session and rewind != self.unfinished
        ]
        return rewinds[-1] if rewinds else None

    def lose(self, damage: RecordDamage) -> None:
        """A line cannot be read. Its state of the workspace is lost, so the author of the next change is unknown."""
        self.damage.append(damage)
        self._gap = True

    def shorten(self, raw: bytes) -> None:
        """Lines are missing at the end of `raw`, the bytes of this ledger."""
        self.is_short = True
        self.lose(RecordDamage(None, raw.count(b"\n") + 1, "lines are missing at its end"))

    def apply(self, line: sealed_lines.SealedLine, path: str) -> None:
        """Process one line. Raises `NewerFormat`."""
        entry = line.value or {}
        self.ends_in_removal = "removed" in entry
        try:
            layout.bring_up(layout.LEDGER_FORMAT, entry, path)
            record = entry.get("record")
            if type(record) is dict and "rewind" not in entry:
                # Most lines are of this kind. Its writer has finished an open rewind before it, even if the line about
                # the end of the rewind is damaged.
                self._add(check_fields(Record(**record)))
                self._finish(self.unfinished)
            else:
                self._applied(entry)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.lose(RecordDamage(None, line.number, "not an entry of a ledger"))

    def _applied(self, entry: dict[str, Any]) -> None:
        match entry:
            case {"record": dict(fields), "rewind": dict(intent)}:
                rewind, safety = check_fields(Rewind(**intent)), check_fields(Record(**fields))
                self._before_rewind = (self.ends.get(safety.log), safety.log in self.open_turns)
                self._add(safety)
                self.rewinds[rewind.id] = rewind
                self._pack(rewind.pack)
                self.unfinished = rewind
                point = self.point(rewind.to)
                if rewind.log != safety.log and point is not None:
                    self.origins[rewind.log] = point if point.log else None
            case {"rewound": str(identity)}:
                self._finish(self.rewinds[identity])
            case {"abandoned": str(identity)}:
                self._abandon(self.rewinds.pop(identity))
            case {"gave_up": str(identity)}:
                self.unfinished = None
                self.rewinds.pop(identity)
            case {"label": {"id": str(identity), "label": str(label)}}:
                self.labels[identity] = label
            case {"label": {"id": str(identity), "label": None}}:
                self.labels.pop(identity, None)
            case {"removed": list(identities), "merged": dict(accounts), "gone": list(packs), "pack": str(pack)}:
                self._remove(identities, accounts)
                self._pack(pack)
                self.packs.difference_update(packs)
                self.gone.update(packs)
            case {"tied": dict(digests)}:
                for identity, digest in digests.items():
                    self._amend(identity, {"digest": digest})
                    if not digest:
                        self.untieable.add(identity)
            case {"gap": str() | None}:
                self._gap = True
            case {"repaired": dict(amendments), "packs": list(packs), "gone": list(old_packs)}:
                for identity, fields in amendments.items():
                    self._amend(identity, fields)
                self.packs.update(packs)
                self.packs.difference_update(old_packs)
                self.gone.update(old_packs)
                self.gone.difference_update(packs)
            case _:
                raise ValueError("unknown entry")

    def _amend(self, identity: str, fields: dict[str, Any]) -> None:
        """Corrections of a checkpoint by a repair, or a later writer. Raises `TypeError` or `ValueError`."""
        if not fields.keys() <= _AMENDED:
            raise ValueError("a field that no repair changes")
        self._amend_state(identity, fields)
        if identity not in self.records:
            return
        after = check_fields(self.records[identity]._replace(**fields))
        if after.has_lost_files:
            after = after._replace(files=0, bytes=0)
        self.records[identity] = after

    def _amend_state(self, identity: str, fields: dict[str, Any]) -> None:
        for number, state in enumerate(self.states):
            if state.id != identity or "tree" not in fields:
                continue
            if fields["tree"]:
                self.states[number] = state._replace(tree=fields["tree"], unkept=fields.get("unkept", state.unkept))
                continue
            # Its state is lost, and so is the author of later changes.
            del self.states[number]
            if number < len(self.states):
                self.states[number] = self.states[number]._replace(by=None, merged=[])
            else:
                self._gap = True
            break

    def _pack(self, pack: str) -> None:
        if pack:
            self.packs.add(pack)

    def _add(self, record: Record) -> None:
        self.records.pop(record.id, None)  # an application may save an id again: it is the newest then
        self.records[record.id] = record
        self.removed.pop(record.id, None)
        self.heads[record.session] = record.id
        if record.label:
            self.labels[record.id] = record.label
        else:
            self.labels.pop(record.id, None)
        self.ends[record.log] = max(record.offset, self.ends.get(record.log, 0))
        if record.kind == "tool":
            self.open_turns.add(record.log)
        else:
            self.open_turns.discard(record.log)
        if record.log:
            self.logs.setdefault(record.log, record.session)
        if record.session not in self.forked:
            parent = self._known(record.parent)
            is_own = parent is None or parent.session == record.session
            self.forked[record.session] = None if is_own else record.parent
        self.current[record.session] = record.log
        if record.project:
            self.projects[record.session] = record.project
        self._pack(record.pack)
        self._run(record)
        if record.tree:
            by = state_author(record.author, record.session) if not self._gap else None
            self._gap = False
            self._states.append(WorkspaceState(record.id, record.tree, by, record.unkept, record.exclude, []))

    def _run(self, record: Record) -> None:
        """A run of an application continues, or has ended. A killed run is over once its changes are stored."""
        if record.author == UNKNOWN:
            self.open_runs.clear()
        run = run_of(record.metadata)
        if run is not None and record.metadata.get("ended") is True:
            self.open_runs.discard(run)
        elif run is not None:
            self.open_runs.add(run)

    def _finish(self, rewind: Rewind | None) -> None:
        if rewind is None or rewind != self.unfinished:
            return
        self.unfinished = None
        if rewind.root:
            self.open_runs.clear()
        self.heads[rewind.session] = rewind.head
        self.current[rewind.session] = rewind.log
        if rewind.tree:
            before = self.states[-1] if self.states else None
            unkept = before.unkept if before else []
            exclude = before.exclude if before else []
            by = rewind.session if not self._gap else None
            self._gap = False
            self.states.append(WorkspaceState(rewind.id, rewind.tree, by, unkept, exclude, []))

    def _abandon(self, rewind: Rewind) -> None:
        """As if the run had never started: the stored state before it is dropped too."""
        self.unfinished = None
        safety = self._abandoned[rewind.safety] = self.records.pop(rewind.safety)
        if safety.parent is not None:
            self.heads[rewind.session] = safety.parent
        else:
            self.heads.pop(rewind.session, None)
        self._states = [state for state in self.states if state.id != safety.id]
        end, was_open = self._before_rewind
        self.ends[safety.log] = end if end is not None else 0
        if was_open:
            self.open_turns.add(safety.log)
        self.packs.discard(rewind.pack)
        self.gone.add(rewind.pack)

    def _remove(self, identities: list[str], accounts: dict[str, list[list[Any]]]) -> None:
        for identity in identities:
            self.drop(identity)
        dropped_ids = set(identities)
        states: list[WorkspaceState] = []
        is_gap = False
        for number, state in enumerate(self.states, 1):
            # The last state always stays, because the present state is compared with it.
            if state.id in dropped_ids and number < len(self.states):
                is_gap = True
                continue
            # If an application saved an id again, the accounts belong only to the state after the gap.
            states.append(_joined(state, accounts) if is_gap else state)
            is_gap = False
        self._states = states

    def drop(self, identity: str) -> None:
        """A checkpoint was removed. Its ancestors stay known."""
        record = self.records.pop(identity, None)
        self.labels.pop(identity, None)
        if record is not None:
            self.removed[identity] = record


def _joined(state: WorkspaceState, accounts: dict[str, list[list[Any]]]) -> WorkspaceState:
    """A state after a gap; an empty account of the gap means that it could not be read."""
    if state.id not in accounts:
        return state
    account = [(by, paths) for by, paths in accounts[state.id]]
    return state._replace(merged=account, by=state.by if account else None)


def read(directory: str, cache: str | None = None) -> Ledger:
    """The ledger below `directory`; empty if it does not exist. Raises `NewerFormat`.

    `cache` is the file with the fold of the start of the ledger, if there may be one (`ledger_fold.Fold`).
    """
    path = os.path.join(directory, LEDGER)
    last_size = log_file.read_ledger_size(directory)
    try:
        raw = log_file.read_lines(path)
    except FileNotFoundError:
        raw = b""
    ledger = parse(raw, path, _fold_of(raw, cache))
    if last_size.is_short or len(raw) < last_size.size:
        ledger.shorten(raw)
    return ledger


def _fold_of(raw: bytes, cache: str | None) -> Fold | None:
    is_long = len(raw) >= ledger_fold.SMALLEST_LEDGER
    return ledger_fold.read(cache, raw) if cache is not None and is_long else None


def parse(raw: bytes, path: str, fold: Fold | None = None) -> Ledger:
    """The state of the ledger at `path` with the bytes `raw`; `fold` is the fold of its start.

    Raises `NewerFormat`.
    """
    ledger = Ledger()
    start = 0
    if fold is not None and fold.values.keys() != vars(ledger).keys():
        fold = None  # of another version of this class
    if fold is not None:
        vars(ledger).update(fold.values)
        raw = raw[fold.size :]
    for line in sealed_lines.parse(raw):
        if fold is not None:
            line = line._replace(number=line.number + fold.lines)
        if line.value is not None:
            ledger.apply(line, path)
            if line.problem is not None:
                ledger.damage.append(RecordDamage(None, line.number, line.problem))
        elif line.problem == "cut short":
            ledger.torn = True
        else:
            match = _ID.search(raw, start, line.end)
            identity = match[1].decode("ascii", "replace") if match else None
            ledger.lose(RecordDamage(identity, line.number, line.problem or "unreadable"))
        start = line.end
    return ledger


_END = 16 << 10
"""Bytes of the end of a ledger that are read first for the newest checkpoint."""


def newest_record(directory: str) -> tuple[Record, str] | None:
    """The record of the checkpoint that was saved last, and its label, from the end of the ledger.

    `None` if that is not enough: the ledger is empty or damaged, or its last lines are of an unfinished rewind or of a
    repair. Raises `NewerFormat`.
    """
    path = os.path.join(directory, LEDGER)
    last_size = log_file.read_ledger_size(directory)
    count = _END
    while True:
        try:
            raw, length = log_file.read_end(path, count)
        except FileNotFoundError:
            return None
        if last_size.is_short or length < last_size.size:
            return None
        is_whole = len(raw) == length
        try:
            is_found, record = _newest_in(raw if is_whole else raw[raw.find(b"\n") + 1 :], path)
        except (KeyError, TypeError, ValueError):
            return None
        if is_found or is_whole:
            return record
        count *= 8


def _newest_in(raw: bytes, path: str) -> tuple[bool, tuple[Record, str] | None]:
    """Whether these last lines of a ledger are enough for `newest_record`, and its result."""
    removed_ids: set[str] = set()
    labels: dict[str, str] = {}
    is_finished = False
    for line in reversed(list(sealed_lines.parse(raw))):
        if line.value is None or line.problem is not None:
            return True, None
        layout.bring_up(layout.LEDGER_FORMAT, line.value, path)
        match line.value:
            case {"removed": list(identities)}:
                removed_ids.update(identities)
            case {"label": {"id": str(identity), "label": label}}:
                labels.setdefault(identity, label or "")
            case {"rewound": str()}:
                is_finished = True
            case {"record": dict(fields)}:
                if "rewind" in line.value and not is_finished:
                    return True, None
                is_finished = False
                record = check_fields(Record(**fields))
                if record.id not in removed_ids:
                    return True, (record, labels.get(record.id, record.label))
            case _:
                return True, None
    return False, None


class LedgerWriter:
    """Appends to the ledger below `directory`, and updates `ledger`. The caller holds the profile's lock.

    `cache` is the file for the fold of the start of a long ledger.
    """

    def __init__(self, directory: str, cache: str | None = None) -> None:
        atomic.make_root(directory)
        self._directory = directory
        self._cache = cache
        self._path = os.path.join(directory, LEDGER)
        atomic.make_private_file(self._path)
        last_size = log_file.read_ledger_size(directory)
        self._is_short = last_size.is_short or os.path.getsize(self._path) < last_size.size
        self._appender = log_file.open_lines(self._path)
        self.ledger = read(directory, cache)

    def is_current(self, status: os.stat_result) -> bool:
        """Whether `status`, of the ledger at its path, is that of the ledger as this object last wrote it."""
        return self._appender.is_current(status)

    def add(self, record: Record) -> None:
        """Add a checkpoint; everything that it refers to is on disk already."""
        self._append({"record": shortened(record)}, "The checkpoint is made")

    def label(self, identity: str, label: str | None) -> None:
        """Set or remove the label of a checkpoint. Raises `BadName`, or `Refused` if another has that label."""
        if label is not None:
            self.check_free(label, identity)
        self.set_label(identity, label)

    def set_label(self, identity: str, label: str | None) -> None:
        """Set or remove the label of a checkpoint. It may be any text, and that of another checkpoint."""
        self._append({"label": {"id": identity, "label": label}})

    def check_free(self, label: str, identity: str | None = None) -> None:
        """Raises `BadName`, or `Refused` if a checkpoint other than `identity` has that label."""
        owner = self.ledger.labelled(check_label(label))
        if owner is not None and owner.id != identity:
            raise Refused(f"Checkpoint {owner.id} already has the label {label!r}.", code="label_exists")

    def remove(
        self,
        identities: list[str],
        accounts: dict[str, list[tuple[str | None, list[str]]]],
        old_packs: list[str],
        pack: str,
    ) -> None:
        """Checkpoints were removed; `accounts` has the authors of the states after them, `pack` replaces
        `old_packs`.
        """
        self._append({"removed": identities, "merged": accounts, "gone": old_packs, "pack": pack})

    def begin(self, safety: Record, rewind: Rewind) -> None:
        """A rewind is about to change the workspace; all required data is on disk."""
        entry = {"record": shortened(safety), "rewind": rewind._asdict()}
        self._append(entry, "The rewind has begun", atomic.FINISHED_NEXT)

    def finish(self, rewind: Rewind) -> None:
        """The rewind is done."""
        self._append({"rewound": rewind.id})

    def give_up(self, rewind: Rewind) -> None:
        """The rewind can be neither done nor undone; the state before it is stored."""
        self._append({"gave_up": rewind.id})

    def abandon(self, rewind: Rewind) -> None:
        """The rewind could not be done; nothing has changed."""
        self._append({"abandoned": rewind.id}, "Nothing has changed")

    def tie(self, digests: dict[str, str]) -> None:
        """The digests of positions that had none; an empty one says that there is no line end at the position."""
        self._append({"tied": digests})

    def content(self) -> bytes:
        """The bytes of the whole ledger on the disk."""
        return log_file.read_lines(self._path)

    def replace(self, raw: bytes) -> None:
        """Replace the whole ledger; only a purge does that.

        After an error, either ledger may be in place.
        """
        after = parse(raw, self._path)
        if self._cache is not None:
            # The text that a purge removes may be in the fold, too.
            with suppress(FileNotFoundError):
                os.unlink(self._cache)
        log_file.write_ledger_size(self._directory, 0, is_short=self._is_short)
        log_file.write_lines(self._path, raw)
        self._appender.close()
        self._appender = log_file.open_lines(self._path)
        if self._is_short:
            after.shorten(raw)
        self.ledger = after
        log_file.write_ledger_size(self._directory, log_file.start_of_last_line(raw), is_short=self._is_short)

    def _append(self, entry: dict[str, Any], outcome: str = "It is done", rest: str = atomic.NOTHING_LEFT) -> None:
        """Write a line. `outcome` is true once the line exists, and is part of the error if the disk fails and cannot
        undo the write.
        """
        start = self._appender.end
        try:
            end = self._appender.append({"v": FORMAT, **entry})
            self.ledger.apply(sealed_lines.SealedLine(0, end, {"v": FORMAT, **entry}, None), self._path)
            log_file.write_ledger_size(self._directory, start, is_short=self._is_short)
        except BaseException as error:
            # An interrupted writer cannot know whether the line was written, but the disk can.
            self.ledger = read(self._directory)
            if isinstance(error, OSError) and self._appender.end > start:
                with atomic.after_commit(outcome, rest):
                    raise
            raise

    def close(self) -> None:
        """Close the file."""
        self._appender.close()
        is_long = self._appender.end >= ledger_fold.SMALLEST_LEDGER
        if self._cache is not None and is_long and ledger_fold.is_due(self._cache, self._appender.end):
            self._write_fold(self._cache)

    def _write_fold(self, cache: str) -> None:
        raw = self.content()
        ledger = parse(raw, self._path, _fold_of(raw, cache))
        if raw.endswith(b"\n") and not ledger.damage:
            ledger_fold.write(cache, raw, ledger.values())


def shortened(record: Record) -> dict[str, Any]:
    """The fields of a record without those that have their usual value."""
    usual = Record._field_defaults
    return {key: value for key, value in record._asdict().items() if key not in usual or value != usual[key]}
