"""Repairing sessions and their message logs; see `repair`. Works in a copy, and writes whole files only.

Offsets into a log do not change: the replacement of a damaged line has the same length.

A session whose directory is missing can be created again if other sessions still have message logs of it. The ledger
knows the session by its checkpoints. `deepctl sessions delete` removes these from the ledger, as 0.1 did, so a deleted
session is not created again. If no other session has a log of it, its checkpoints show the missing logs.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from deepctl import layout, quantities
from deepctl.errors import Damaged, DeepctlError, NewerFormat
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store import (
    checkpoint_store,
    ledger,
    log_chain,
    log_file,
    lookup,
    records,
    repair_report,
    session_catalogue,
)
from deepctl.store.ledger import MESSAGES, Ledger
from deepctl.store.log_file import Point
from deepctl.store.lookup import Positions
from deepctl.store.records import CONVERSATION, Record
from deepctl.store.repair_report import Findings


class VanishedSession(NamedTuple):
    """A missing session: its id, its logs in other sessions, and the names of those sessions."""

    id: str
    logs: list[str]
    having: list[str]


def vanished_sessions(paths: ProfilePaths, checkpoint_ledger: Ledger) -> list[VanishedSession]:
    """The missing sessions of a profile that can be created again, in the order of their start."""
    holders: dict[str, list[str]] = {}
    for name in session_catalogue.all_names(paths):
        for log_id in log_file.logs_in(os.path.join(paths.sessions, name)):
            holders.setdefault(log_id, []).append(name)
    session_ids = _session_ids(paths, checkpoint_ledger)
    vanished_logs: dict[str, list[str]] = {}
    for record in checkpoint_ledger.records.values():
        is_own = checkpoint_ledger.logs.get(record.log) == record.session and log_file.is_id(record.session)
        if is_own and record.session not in session_ids and not record.has_lost_conversation:
            vanished_logs.setdefault(record.session, [])
    for log_id, identity in checkpoint_ledger.logs.items():
        if identity in vanished_logs and log_id in holders:
            vanished_logs[identity].append(log_id)
    return [
        VanishedSession(identity, logs, sorted({name for log_id in logs for name in holders[log_id]}))
        for identity, logs in vanished_logs.items()
        if logs
    ]


def _session_ids(paths: ProfilePaths, checkpoint_ledger: Ledger) -> set[str]:
    """The ids of the existing sessions, with every session that one with a damaged record may be."""
    session_ids: set[str] = set()
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
        except (DeepctlError, OSError):
            session = None
        if session is not None:
            # If the ledger does not know the id of the session, the log at its head is used as the id.
            session_ids |= {session.id, checkpoint_ledger.logs.get(session.id, session.id)}
        if session is None or session.damage is not None:
            logs = log_file.logs_in(os.path.join(paths.sessions, name))
            session_ids |= {checkpoint_ledger.logs[log_id] for log_id in logs if log_id in checkpoint_ledger.logs}
    return session_ids


def vanished_reason(paths: ProfilePaths, checkpoint_ledger: Ledger, session: VanishedSession) -> str:
    """The problem, as a sentence without its full stop."""
    name = vanished_name(paths, checkpoint_ledger, session)
    subject = f"session {name}" if name is not None else f"a session (id {session.id})"
    verb = "has" if len(session.having) == 1 else "have"
    return (
        f"{subject} is missing: it was not deleted with deepctl, and {' and '.join(session.having)} still {verb} "
        f"{counted(len(session.logs), 'message log')} of it"
    )


def vanished_name(paths: ProfilePaths, checkpoint_ledger: Ledger, session: VanishedSession) -> str | None:
    """The former name of the session, if the index for shells has it; only its directory had the name for certain."""
    session_names = checkpoint_store.indexed_session_names(paths)
    for record in checkpoint_ledger.records.values():
        if record.session == session.id and layout.is_good_name(session_names.get(record.id, "")):
            return session_names[record.id]
    return None


def name_again(paths: ProfilePaths, old_name: str | None, checkpoint_ledger: Ledger, session: VanishedSession) -> str:
    """A free name for the session: the old one, that of a profile's first session, or one made of its id."""
    first = next(iter(checkpoint_ledger.logs.values()), None)
    for name in (old_name, session_catalogue.FIRST if session.id == first else None):
        if name is not None and session_catalogue.stored_name(paths, name) is None:
            return name
    name = f"session-{session.id[:8]}"
    return name if session_catalogue.stored_name(paths, name) is None else session_catalogue.free_name(paths)


_HOLE = sealed_lines.seal({"v": log_file.LOG_FORMAT, "lost": ""})

Amended = dict[str, dict[str, Any]]
"""Corrections of checkpoints for the ledger: fields by their ids."""


class LogRepair:
    """The sessions of the profile at `paths`, which is a copy of `real`."""

    def __init__(self, paths: ProfilePaths, real: ProfilePaths, findings: Findings) -> None:
        self._paths = paths
        self._real = real
        self._found = findings
        self._ledger: Ledger = session_catalogue.read_ledger(paths)
        self._changed: set[str] = set()
        self._shifts: dict[str, int] = {}

    def repair(self) -> Amended:
        """Repair everything; returns the new positions of checkpoints."""
        before = Positions(self._paths)
        good = {record.id for record in self._with_positions() if before.find(record).problem is None}
        self._join()
        for name in session_catalogue.all_names(self._paths):
            self._strays(name)
            self._record(name)
        for session in vanished_sessions(self._paths, self._ledger):
            self._make_again(session)
        for paths in list(self._files().values()):
            self._lines(paths)
        self._join()  # copies with different damage may be equal now
        for log_id, paths in self._parents_first():
            self._parent(log_id, paths)
        for name in session_catalogue.all_names(self._paths):
            self._head(name)
        return self._positions(good)

    def _join(self) -> None:
        for path in session_catalogue.join_logs(session_catalogue.directories(self._paths)):
            self._found.repair("message log", path, "shared with another session again")

    def _with_positions(self) -> list[Record]:
        return [record for record in self._ledger.records.values() if record.log and not record.has_lost_conversation]

    def _directories(self) -> list[str]:
        messages_directory = os.path.join(self._paths.checkpoints, MESSAGES)
        return session_catalogue.directories(self._paths) + (
            [messages_directory] if os.path.isdir(messages_directory) else []
        )

    def _files(self) -> dict[tuple[str, int], list[str]]:
        """The paths of every log, by its id and the file they lead to."""
        files: dict[tuple[str, int], list[str]] = {}
        for directory in self._directories():
            for log in log_file.logs_in(directory):
                path = log_file.log_path(directory, log)
                files.setdefault((log, os.lstat(path).st_ino), []).append(path)
        return files

    def _strays(self, name: str) -> None:
        """Put aside damaged files that look like a record but are not the record of the session."""
        directory = os.path.join(self._paths.sessions, name)
        for entry in sorted(os.listdir(directory)):
            path = os.path.join(directory, entry)
            if entry.endswith(".json") and entry != records.SESSION_RECORD:
                raw = atomic.read_file(path)
                if not raw.endswith(b"\n") or any(line.problem is not None for line in sealed_lines.parse(raw)):
                    self._found.move(path)
                    self._found.repair("session", path, "damaged, or not the record of the session")

    def _record(self, name: str) -> None:
        directory = os.path.join(self._paths.sessions, name)
        path = os.path.join(directory, records.SESSION_RECORD)
        try:
            raw = atomic.read_file(path)
        except FileNotFoundError:
            raw = b""
        new_content = sealed_lines.mend(raw)
        if raw and new_content != raw and sealed_lines.is_whole(new_content.removesuffix(b"\n")):
            self._found.keep(path)
            atomic.write_file(path, new_content)
            self._found.repair("session", path, "a changed byte is as it was")
            return
        if raw and not raw.endswith(b"\n") and sealed_lines.is_whole(raw):
            atomic.write_file(path, raw + b"\n")
            self._found.repair("session", path, "cut short")
            return
        try:
            session = session_catalogue.find(self._paths, name)
        except NewerFormat:
            raise
        except Damaged as error:
            recovered_session = log_chain.recover_session(name, directory, error.message, choose=True)
            if recovered_session is None:
                self._give_up(name, directory, error.message)
                return
            session = recovered_session
        if session.damage is not None:
            self._found.keep(path)
            session_catalogue.write_record(session)
            self._found.repair("session", path, f"written again from the ledger and its logs ({session.damage})")

    def _give_up(self, name: str, directory: str, reason: str) -> None:
        for entry in sorted(os.listdir(directory)):
            self._found.move(os.path.join(directory, entry))
        rmtree.remove_tree(directory)
        self._found.lose(repair_report.SESSION, name, reason, [name])

    def _make_again(self, vanished: VanishedSession) -> None:
        """Create a missing session from the ledger and the logs that other sessions share with it."""
        old_name = vanished_name(self._real, self._ledger, vanished)
        name = name_again(self._paths, old_name, self._ledger, vanished)
        directory = os.path.join(self._paths.sessions, name)
        atomic.make_directory(directory)
        copies: dict[str, list[str]] = {}
        for (log, _), paths in self._files().items():
            copies.setdefault(log, []).extend(paths)
        log_ids = list(vanished.logs)
        for log in log_ids:  # with the logs that they continue
            longest = max(copies[log], key=os.path.getsize)
            log_file.share(longest, log_file.log_path(directory, log))
            parent = _parent_of(longest)
            if parent is not None and parent.log in copies and parent.log not in log_ids:
                log_ids.append(parent.log)
        session = log_chain.made_again(name, directory, vanished.id)
        if session is None:
            rmtree.remove_tree(directory)
            return
        session_catalogue.write_record(session)
        path = os.path.join(directory, records.SESSION_RECORD)
        self._found.repair(
            repair_report.MISSING_SESSION, path, "created again from the ledger and the logs that other sessions share"
        )
        latest = self._ledger.current.get(vanished.id, "")
        if latest and not log_file.is_in(directory, latest):
            turns = [record.turn for record in self._ledger.records.values() if record.log == latest]
            self._found.lose(repair_report.ALL_MESSAGES, latest, f"the message log {latest} is missing", [name], turns)

    def _lines(self, paths: list[str]) -> None:
        """Make every line of a log readable: repaired, or replaced by a hole."""
        path = paths[0]
        raw = atomic.read_file(path)
        good_content = sealed_lines.without_copies(sealed_lines.mend(raw))
        log = os.path.basename(path).removesuffix(log_file.SUFFIX)
        lines = [log_file.upgrade(line, path) for line in sealed_lines.parse(good_content)]
        if not log_file.has_header(lines, path) or lines[0].problem is not None:
            good_content = self._with_header(path, log, good_content, lines)
            lines = [log_file.upgrade(line, path) for line in sealed_lines.parse(good_content)]
        new_content = b""
        start = hole = 0
        for number, line in enumerate(lines):
            piece, start = good_content[start : line.end], line.end
            if line.value is None and line.problem != "cut short":
                reason = f"line {line.number} of {os.path.basename(path)}: {line.problem}"
                self._found.lose_of_log(repair_report.MESSAGE, log, reason, _turn(lines[:number], lines[number + 1 :]))
                hole += len(piece)
            else:
                new_content, hole = new_content + _after_hole(hole, piece), 0
        new_content += _after_hole(hole, b"")
        if new_content != raw:
            self._write(log, paths, new_content, "damaged lines are mended, or are holes now")

    def _with_header(self, path: str, log: str, raw: bytes, lines: list[sealed_lines.SealedLine]) -> bytes:
        """A log whose first line is unreadable, with a first line from the ledger and the session."""
        origins = log_chain.origins_of(os.path.dirname(path))
        if log not in origins:
            reason = f"{os.path.basename(path)}: {log_file.NO_ORIGIN}"
            self._found.lose_of_log(repair_report.EARLIER_MESSAGES, log, reason, _turns(lines)[:1])
        end = lines[0].end if lines else 0
        times = [line.value["at"] for line in lines[1:] if line.value is not None and "at" in line.value]
        first = _header(log, origins.get(log), str(times[0]) if times else quantities.now(), end)
        self._shifts[log] = len(first) - end
        return first + raw[end:]

    def _write(self, log: str, paths: list[str], raw: bytes, reason: str) -> None:
        self._found.keep(paths[0])
        atomic.write_file(paths[0], raw)
        for path in paths[1:]:
            os.unlink(path)
            log_file.share(paths[0], path)
        self._changed.add(log)
        self._found.repair("message log", paths[0], reason)

    def _parents_first(self) -> list[tuple[str, list[str]]]:
        files = self._files()
        parents = {key: _parent_of(paths[0]) for key, paths in files.items()}
        result: list[tuple[str, list[str]]] = []
        placed_logs: set[str] = set()
        pending = dict(files)
        while pending:
            ready = [
                key
                for key in pending
                if (parent := parents[key]) is None
                or parent.log in placed_logs
                or parent.log not in {k[0] for k in pending}
            ]
            for key in ready or list(pending):
                result.append((key[0], pending.pop(key)))
                placed_logs.add(key[0])
        return result

    def _parent(self, log: str, paths: list[str]) -> None:
        """Check that the position that a log continues exists; otherwise name the last remaining position before it."""
        parent = _parent_of(paths[0])
        if parent is None:
            return
        directory = os.path.dirname(paths[0])
        if _resolved(directory, parent) is not None:
            return
        position = _resolved(directory, parent._replace(digest=""))
        if position is not None and parent.log in self._changed:
            point: Point | None = parent._replace(digest=position.digest)
        elif (new_point := self._shifted(directory, parent)) is not None:
            point = new_point
        else:
            point = self._nearest(directory, parent)
            reason = f"{parent.log}{log_file.SUFFIX} has changed at {parent.offset}"
            raw = atomic.read_file(paths[0])
            lines = [log_file.upgrade(line, paths[0]) for line in sealed_lines.parse(raw)]
            self._found.lose_of_log(repair_report.EARLIER_MESSAGES, log, reason, _turns(lines)[:1])
        raw = atomic.read_file(paths[0])
        end = raw.index(b"\n") + 1
        at = str(sealed_lines.unseal(raw[: end - 1]).get("at", ""))
        first = _header(log, point, at, end)
        self._shifts[log] = len(first) - end
        self._write(log, paths, first + raw[end:], "says what is left of the log that it continues")

    def _shifted(self, directory: str, point: Point) -> Point | None:
        shift = self._shifts.get(point.log, 0)
        if not shift:
            return None
        new_point = point._replace(offset=point.offset + shift, digest="")
        position = _resolved(directory, new_point)
        return new_point._replace(digest=position.digest) if position is not None else None

    def _nearest(self, directory: str, point: Point) -> Point | None:
        """The end of the last line before a position that no longer exists."""
        try:
            chain = log_chain.resolve(directory, Point(point.log, 0), is_open=True)
        except Damaged:
            return None
        last = chain.links[-1]
        ends = [
            Point(point.log, line.end, digest)
            for line, digest in zip(last.lines, last.digests, strict=True)
            if line.problem != "cut short" and line.end <= point.offset
        ]
        return ends[-1] if ends else None

    def _head(self, name: str) -> None:
        """Check that the log at the head of a session exists."""
        session = session_catalogue.find(self._paths, name)
        if log_file.is_in(session.directory, session.log):
            return
        for directory in log_file.siblings(session.directory):
            if log_file.is_in(directory, session.log):
                path = log_file.log_path(session.directory, session.log)
                log_file.share(log_file.log_path(directory, session.log), path)
                self._found.repair("message log", path, "another session still had it")
                return
        turns = [record.turn for record in self._ledger.records.values() if record.log == session.log]
        reason = f"the message log {session.log} is missing"
        self._found.lose(repair_report.ALL_MESSAGES, session.log, reason, [name], turns)
        recovered_session = log_chain.recover_session(name, session.directory, "", choose=True)
        if recovered_session is not None:
            session = session._replace(log=recovered_session.log)
        else:
            atomic.write_file(
                log_file.log_path(session.directory, session.log), sealed_lines.seal(log_file.header(session.log))
            )
        session_catalogue.write_record(session)
        path = os.path.join(session.directory, records.SESSION_RECORD)
        self._found.repair("session", path, "continues with the remaining messages")

    def _positions(self, good: set[str]) -> Amended:
        amendments: Amended = {}
        positions = Positions(self._paths)
        digests: dict[str, Point] | None = None
        for record in self._with_positions():
            problem = positions.find(record).problem
            if problem is None:
                if self._has_hole(record):
                    amendments[record.id] = {"lost": CONVERSATION}
                    self._found.lose_of_checkpoint(repair_report.CONVERSATION, record, "a message of it is lost")
                continue
            position = self._again(record, positions) if record.id in good else None
            if position is None:
                digests = self._all_digests() if digests is None else digests
                position = digests.get(record.digest) if record.digest else None
            if position is not None:
                amendments[record.id] = position._asdict()
                directory = lookup.directory_of(self._paths, position.log) or self._paths.sessions
                path = log_file.log_path(directory, position.log)
                self._found.repair("position of a checkpoint", path, f"{record.id} is at {position.offset}")
            else:
                amendments[record.id] = {"lost": CONVERSATION}
                self._found.lose_of_checkpoint(repair_report.CONVERSATION, record, problem)
        return amendments

    def _again(self, record: Record, positions: Positions) -> Point | None:
        """The new offset of a position in a log that was written again."""
        for shift in dict.fromkeys((0, self._shifts.get(record.log, 0))):
            point = Point(record.log, record.offset + shift)
            position = positions.find(record._replace(offset=point.offset, digest=""))
            if position.problem is None:
                return point._replace(digest=position.digest)
        return None

    def _all_digests(self) -> dict[str, Point]:
        """Every existing position, by its digest."""
        digests: dict[str, Point] = {}
        for log, _ in self._files():
            directory = lookup.directory_of(self._paths, log)
            if directory is not None:
                try:
                    chain = log_chain.resolve(directory, Point(log, 0), is_open=True)
                except Damaged:
                    continue
                last = chain.links[-1]
                for line, digest in zip(last.lines, last.digests, strict=True):
                    digests.setdefault(digest, Point(log, line.end, digest))
        return digests

    def _has_hole(self, record: Record) -> bool:
        """Whether a conversation that an application passed as a whole lacks a message."""
        if lookup.directory_of(self._paths, record.log) != os.path.join(self._paths.checkpoints, MESSAGES):
            return False
        chain = lookup.chain_of(self._paths, record)
        return any("lost" in (line.value or {}) for link in chain.links for line in link.lines)


def _resolved(directory: str, point: Point) -> log_chain.Chain | None:
    try:
        chain = log_chain.resolve(directory, point)
    except NewerFormat:
        raise
    except Damaged:
        return None
    return chain if chain.damaged_line is None else None


def _parent_of(path: str) -> Point | None:
    raw = atomic.read_file(path)
    first = next(sealed_lines.parse(raw), None)
    return log_file.parent_in([log_file.upgrade(first, path)], path) if first is not None else None


def _header(log: str, parent: Point | None, at: str, length: int) -> bytes:
    """The first line of a log, with its old length if possible."""
    line = b""
    for digest, time in (("keep", at), ("", at), ("", "")):
        point = parent if digest or parent is None else parent._replace(digest="")
        line = sealed_lines.seal({**log_file.header(log, point), "at": time})
        if len(line) <= length:
            return sealed_lines.pad(line, length - len(line))
    return sealed_lines.seal({**log_file.header(log, parent), "at": at})


def _after_hole(length: int, line: bytes) -> bytes:
    """A line, preceded by a hole as long as the lost lines there.

    A hole that is too short becomes blanks of the line; at the end of a log, no lost line is that short.
    """
    if length >= len(_HOLE):
        return sealed_lines.pad(_HOLE, length - len(_HOLE)) + line
    return sealed_lines.indent(line, length) if line and length else line


def _turns(lines: list[sealed_lines.SealedLine]) -> list[int]:
    """The turns of a log, in its order."""
    turns = (line.value.get("turn") for line in lines if line.value is not None)
    return list(dict.fromkeys(turn for turn in turns if isinstance(turn, int)))


def _turn(before: list[sealed_lines.SealedLine], after: list[sealed_lines.SealedLine]) -> list[int]:
    """The turn of a lost line, from the lines around it, if there are any."""
    next_value = next((line.value for line in after if line.value is not None and "turn" in line.value), None)
    if next_value is not None and log_file.prompt(_message(next_value)) is None:
        return [next_value["turn"]]
    last = next((line.value for line in reversed(before) if line.value is not None and "turn" in line.value), None)
    if last is None:
        return [next_value["turn"]] if next_value is not None else []
    calls = any(part.get("part_kind") == "tool-call" for part in log_file.parts(_message(last)))
    is_answer = _message(last).get("kind") == "response" and not calls
    return [last["turn"] + 1 if is_answer and next_value is None else last["turn"]]


def _message(value: dict[str, Any]) -> dict[str, Any]:
    message = value.get("message")
    return message if isinstance(message, dict) else {}


def gap(identity: str | None) -> bytes:
    """The replacement of an unreadable line of the ledger."""
    return sealed_lines.seal({"v": ledger.FORMAT, "gap": identity})
