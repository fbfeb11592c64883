"""The files of a conversation: a log and the logs that it continues, for each the copy that contains the position.

If the hard link by which forks share a log is broken (by a copy or an archive), the copies diverge. A position is
looked up in the session's own directory first, then in the profile's others.

The first line of a log names the log that it continues. The ledger, or the session's record, has it too, and is used if
that line is damaged. In the same way, ledger and logs describe a session whose record is damaged or missing
(`recover_session`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from deepctl import layout, quantities
from deepctl.errors import DeepctlError
from deepctl.files import sealed_lines
from deepctl.store import ledger, log_file
from deepctl.store.ledger import Ledger
from deepctl.store.log_file import (
    ANOTHER,
    KNOWN_ORIGIN,
    MISSING,
    NO_ORIGIN,
    START,
    UNREADABLE,
    LogDamage,
    Point,
    digests,
    has_header,
    header_parent,
    log_missing,
    log_path,
    logs_in,
    parent_in,
    parse,
    siblings,
    upgrade,
)
from deepctl.store.records import SESSION_RECORD, SessionBeginning, SessionProject, SessionRecord, begins_in


class Link(NamedTuple):
    """The part of one log of a chain that is read: its file, the lines, and the digest after each of them.

    `is_whole` says that no line is damaged.
    """

    path: str
    lines: list[sealed_lines.SealedLine]
    digests: list[str]
    is_whole: bool


class Chain(NamedTuple):
    """A log and those that it continues, the oldest first. `damaged_line` is the reason if a part of it has changed."""

    links: list[Link]
    digest: str
    damage: list[LogDamage]
    damaged_line: LogDamage | None


class _Copy(NamedTuple):
    """A file with a log, read up to the requested offset; `is_short` if that is not the end of a line of it."""

    path: str
    raw: bytes
    lines: list[sealed_lines.SealedLine]
    is_short: bool
    is_whole: bool

    @property
    def has_header(self) -> bool:
        return has_header(self.lines, self.path)


def _copy(path: str, end: int | None, files: dict[str, bytes]) -> _Copy:
    if path not in files:
        files[path] = log_file.read_lines(path)
    raw = files[path]
    content = raw if end is None else raw[:end]
    lines = [upgrade(line, path) for line in parse(content)]
    is_short = end is not None and (len(raw) < end or not lines or lines[-1].problem == "cut short")
    is_whole = all(line.problem is None or line.problem == "cut short" for line in lines)
    return _Copy(path, content, lines, is_short, is_whole)


def _copies(directory: str, log: str, end: int | None, files: dict[str, bytes]) -> Iterator[_Copy]:
    """The differing files of a log: the session's own, then those of other sessions."""
    inodes: set[tuple[int, int]] = set()
    for place in [directory, *siblings(directory)]:
        path = log_path(place, log)
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) not in inodes:
                inodes.add((status.st_dev, status.st_ino))
                yield _copy(path, end, files)
        except (FileNotFoundError, NotADirectoryError):
            continue


class _ChainLevel:
    """One log of a chain during its construction: the position to which it is read, and the chosen copy."""

    def __init__(self, directory: str, point: Point, files: dict[str, bytes], *, is_open: bool) -> None:
        self.point = point
        self._copies = _copies(directory, point.log, None if is_open else point.offset, files)
        self._read: list[_Copy] = []
        try:
            self.copy = next(self._candidates())
        except StopIteration:
            if not self._read:
                raise log_missing(log_path(directory, point.log)) from None
            self.copy = max(self._read, key=lambda copy: (copy.has_header, len(copy.raw)))

    def _candidates(self) -> Iterator[_Copy]:
        for copy in self._copies:
            self._read.append(copy)
            if not copy.is_short and copy.has_header:
                yield copy

    def tie(self, before: str) -> list[str]:
        """Choose the copy that has the digest, if one has; returns the digests after the lines of the chosen copy."""
        behind = digests(self.copy.raw, self.copy.lines, before)
        if self.is_tied(behind):
            return behind
        for copy in self._candidates():
            candidate = digests(copy.raw, copy.lines, before)
            if candidate and candidate[-1] == self.point.digest:
                self.copy = copy
                return candidate
        return behind

    def is_tied(self, behind: list[str]) -> bool:
        """Whether the last digest equals that of the position, if it has one."""
        return not self.point.digest or (bool(behind) and behind[-1] == self.point.digest)


def resolve(directory: str, point: Point, *, is_open: bool = False, files: dict[str, bytes] | None = None) -> Chain:
    """The files of a conversation, up to a position in the log of a session in `directory`; `is_open`: to its end.

    `files` are files that have been read already, by path; further ones are added. Raises `Damaged` if a log is
    missing, and `NewerFormat` if a later deepctl wrote one.
    """
    files = files if files is not None else {}
    levels: list[_ChainLevel] = []
    damage: list[LogDamage] = []
    losses: list[LogDamage] = []
    logs: set[str] = set()
    origins: dict[str, Point | None] | None = None
    while True:
        logs.add(point.log)
        level = _ChainLevel(directory, point, files, is_open=is_open)
        is_open = False
        levels.append(level)
        copy = level.copy
        parent = header_parent(copy.lines[0], copy.path) if copy.lines else UNREADABLE
        if parent is UNREADABLE:
            origins = origins_of(directory) if origins is None else origins
            is_known = point.log in origins
            parent = origins.get(point.log)
            damage.append(LogDamage(os.path.basename(copy.path), 1, KNOWN_ORIGIN if is_known else NO_ORIGIN, False))
            if not is_known:
                losses.append(damage[-1])
        if parent is None:
            break
        if parent.log in logs:
            damage.append(LogDamage(os.path.basename(copy.path), 1, NO_ORIGIN, False))
            losses.append(damage[-1])
            break
        point = parent
    links: list[Link] = []
    before, is_sure = START, True
    for level in reversed(levels):
        behind = level.tie(before)
        copy = level.copy
        is_sure = is_sure and copy.is_whole and copy.has_header
        if copy.is_short:
            losses.append(LogDamage(os.path.basename(copy.path), len(copy.lines) + 1, MISSING, False))
            damage.append(losses[-1])
        elif is_sure and not level.is_tied(behind):
            losses.append(LogDamage(os.path.basename(copy.path), len(copy.lines), ANOTHER, False))
            damage.append(losses[-1])
        start = 0 if copy.has_header else 1
        links.append(Link(copy.path, copy.lines[start:], behind[start:], copy.is_whole))
        before = behind[-1] if behind else before
    return Chain(links, before, damage, losses[0] if losses else None)


class _LogSummary(NamedTuple):
    """The time of the first line of a log, the position that it continues if that is readable, and the time of its last
    line.
    """

    at: str
    parent: Point | None
    last: str


def recover_session(name: str, directory: str, reason: str, *, choose: bool = False) -> SessionRecord | None:
    """The session in `directory`, as far as ledger and logs describe it; `None` if its head log is unknown.

    With `choose`, the most recently written log is used in that case.
    """
    checkpoint_ledger = _ledger(directory)
    return _recover_session(
        name,
        directory,
        checkpoint_ledger,
        _identity(directory, checkpoint_ledger, choose=choose),
        reason,
        choose=choose,
    )


def made_again(name: str, directory: str, identity: str) -> SessionRecord | None:
    """The session `identity`, of which only the logs in `directory` remain."""
    return _recover_session(name, directory, _ledger(directory), identity, "missing", choose=True)


def _recover_session(
    name: str, directory: str, checkpoint_ledger: Ledger, identity: str | None, reason: str, *, choose: bool
) -> SessionRecord | None:
    logs = {log: _log_summary(directory, log) for log in logs_in(directory)}
    head = _head(logs, checkpoint_ledger, identity, choose=choose)
    if head is None:
        return None
    own_logs = [log for log in logs if checkpoint_ledger.logs.get(log) == identity] if identity is not None else []
    first = next((log for log in checkpoint_ledger.logs if log in own_logs), head)
    origin = checkpoint_ledger.forked.get(identity) if identity is not None else None
    point = checkpoint_ledger.point(origin) if origin is not None else None
    begins = SessionBeginning(first, point) if point is not None else None
    # As in 0.1, the id of the head log is used as the id of a session that the ledger does not know.
    return SessionRecord(
        name,
        directory,
        identity or head,
        quantities.known_time(logs[first].at),
        head,
        origin,
        begins,
        reason,
        SessionProject(project, "") if (project := checkpoint_ledger.projects.get(identity or "")) else None,
    )


def origins_of(directory: str) -> dict[str, Point | None]:
    """The positions that the logs of a session continue (`None`: none), as far as other files have them."""
    checkpoint_ledger = _ledger(directory)
    origins = dict(checkpoint_ledger.origins)
    record = _record(directory)
    identity = record.get("id")
    if not isinstance(identity, str):
        identity = _identity(directory, checkpoint_ledger, choose=True)
    if (begins := begins_in(record.get("begins"))) is not None:
        origins.setdefault(begins.log, begins.continues)
    for session in dict.fromkeys(checkpoint_ledger.logs.values()):
        first = next(log for log, owner in checkpoint_ledger.logs.items() if owner == session)
        if first in origins:
            continue
        origin = checkpoint_ledger.forked.get(session)
        if origin is not None:
            if (point := checkpoint_ledger.point(origin)) is not None:
                origins[first] = point
        elif session != identity or (origin_point := _imported(directory, checkpoint_ledger, first)) is None:
            origins[first] = None
        else:
            origins[first] = origin_point
    return origins


def _imported(directory: str, checkpoint_ledger: Ledger, first: str) -> Point | None:
    """The end of the log into which 0.1 imported a conversation; nothing was ever appended to it."""
    other_logs = [
        log
        for log in logs_in(directory)
        if log != first and log not in checkpoint_ledger.logs and log not in checkpoint_ledger.origins
    ]
    if len(other_logs) != 1:
        return None
    return Point(other_logs[0], os.path.getsize(log_path(directory, other_logs[0])))


def _ledger(directory: str) -> Ledger:
    profile = os.path.dirname(os.path.dirname(directory))
    try:
        return ledger.read(os.path.join(profile, "checkpoints"))
    except (DeepctlError, OSError):
        return Ledger()


def _record(directory: str) -> dict[str, object]:
    try:
        record = sealed_lines.unseal(log_file.documents(directory).read(SESSION_RECORD).rstrip(b"\n"))
        layout.bring_up(layout.SESSION_FORMAT, record, directory)
    except (ValueError, OSError, DeepctlError):
        return {}
    return record


def _log_summary(directory: str, log: str) -> _LogSummary:
    path = log_path(directory, log)
    lines = [upgrade(line, path) for line in sealed_lines.parse(log_file.read_lines(path))]
    stamps = [at for line in lines if line.value is not None and isinstance(at := line.value.get("at"), str)]
    return _LogSummary(stamps[0] if stamps else "", parent_in(lines, path), stamps[-1] if stamps else "")


def _identity(directory: str, checkpoint_ledger: Ledger, *, choose: bool) -> str | None:
    """The id of the session in `directory`: a session that was the first to use a log there, and has no other
    directory.
    """
    own_logs = set(logs_in(directory))
    other_logs = {place: set(logs_in(place)) for place in siblings(directory) if os.path.isdir(place)}
    other_ids = {_record(place).get("id") for place in other_logs}
    candidates = list(
        dict.fromkeys(
            checkpoint_ledger.logs[log]
            for log in checkpoint_ledger.logs
            if log in own_logs and checkpoint_ledger.logs[log] not in other_ids
        )
    )
    live_sessions = {record.session for record in checkpoint_ledger.records.values()}
    shared_logs = set().union(*other_logs.values())
    sole_sessions = {checkpoint_ledger.logs[log] for log in own_logs - shared_logs if log in checkpoint_ledger.logs}
    for sessions in (live_sessions, sole_sessions):
        if len(candidates) > 1:
            candidates = [session for session in candidates if session in sessions] or candidates
    return candidates[-1] if len(candidates) == 1 or (choose and candidates) else None


def _head(logs: dict[str, _LogSummary], checkpoint_ledger: Ledger, identity: str | None, *, choose: bool) -> str | None:
    """The log at the head of a session: the one that the ledger names, or the only one that no other continues."""
    if identity is not None and (head := checkpoint_ledger.current.get(identity)) in logs:
        # An imported session continues in a log that the ledger does not know yet.
        after = [log for log, summary in logs.items() if summary.parent is not None and summary.parent.log == head]
        unknown = [log for log in after if log not in checkpoint_ledger.logs and log not in checkpoint_ledger.origins]
        return unknown[0] if len(unknown) == 1 else head
    parent_logs = {summary.parent.log for summary in logs.values() if summary.parent is not None}
    leaves = [log for log in logs if log not in parent_logs and checkpoint_ledger.logs.get(log) in (None, identity)]
    if len(leaves) == 1 or (choose and leaves):
        return max(leaves, key=lambda log: logs[log].last)
    return None
