"""What a session is: its record `session.json`, or, where that is damaged or gone, what ledger and message logs tell.

The record is one sealed line: the session's own random id, when it began, which log is its head, from which checkpoint
it was forked, and what its first log continues.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from deepctl import layout, quantities
from deepctl.errors import Damaged, DeepctlError
from deepctl.files import sealed_lines
from deepctl.store import ledger, log_file
from deepctl.store.ledger import Ledger
from deepctl.store.log_file import Point, is_id, log_path, logs_in, parent_in, siblings, upgraded

FORMAT = layout.SESSION_FORMAT.current
RECORD = "session.json"
"""The file with what a session is, in its directory."""


class Begins(NamedTuple):
    """What the first log of a session continues; its first line says it, too, and may be damaged."""

    log: str
    continues: Point


class Session(NamedTuple):
    """Where a session is kept. `log` is the id of the log at its head, `forked_from` the checkpoint it began at.

    `begins` is where it goes on from, if that is known. `damage` is what is wrong with its record, where everything in
    it was found out from elsewhere.
    """

    name: str
    directory: str
    id: str
    created_at: str
    log: str
    forked_from: str | None = None
    begins: Begins | None = None
    damage: str | None = None


def load(directory: str) -> Session:
    """The session in `directory`. Raises `Damaged` or `NewerFormat`."""
    name = os.path.basename(directory)
    path = os.path.join(directory, RECORD)
    try:
        record = sealed_lines.unseal(log_file.documents(directory).read(RECORD).rstrip(b"\n"))
        layout.bring_up(layout.SESSION_FORMAT, record, path)
    except (FileNotFoundError, ValueError) as error:
        return _without_record(name, directory, str(error) if isinstance(error, ValueError) else "missing")
    match record:
        case {"id": str(identity), "created_at": str(at), "log": str(head)} if is_id(head) and identity.isprintable():
            origin = record.get("forked_from")
            forked_from = origin if isinstance(origin, str) and origin.isprintable() else None
            return Session(
                name, directory, identity, quantities.known_time(at), head, forked_from, _begins(record.get("begins"))
            )
        case _:
            return _without_record(name, directory, "not the record of a session")


def _begins(value: object) -> Begins | None:
    """What the record of a session says of where it goes on from."""
    match value:
        case {"log": str(first), "continues": {"log": str(other), "offset": int(offset), "digest": str(digest)}}:
            return Begins(first, Point(other, offset, digest))
        case _:
            return None


def _without_record(name: str, directory: str, reason: str) -> Session:
    session = recovered(name, directory, reason)
    if session is None:
        raise Damaged(
            f"Session {name!r} is damaged: {os.path.join(directory, RECORD)}: {reason}.",
            "Its message logs are still there; `deepctl checkpoints repair` makes the latest its conversation.",
        )
    return session


def write(session: Session, directory: str | None = None) -> None:
    """Replace the record of a session, in its own directory or another. The caller holds the profile's lock."""
    record: dict[str, Any] = {
        "v": FORMAT,
        "id": session.id,
        "created_at": session.created_at,
        "log": session.log,
    }
    if session.forked_from is not None:
        record["forked_from"] = session.forked_from
    if session.begins is not None:
        record["begins"] = {"log": session.begins.log, "continues": session.begins.continues._asdict()}
    log_file.documents(directory or session.directory).replace(RECORD, sealed_lines.seal(record))


class _LogSummary(NamedTuple):
    """When the first line of a log was written, what it continues if that can be read, when its last line was."""

    at: str
    parent: Point | None
    last: str


def recovered(name: str, directory: str, reason: str, *, choose: bool = False) -> Session | None:
    """The session in `directory`, as far as ledger and logs tell; `None` if nothing tells which log is its head.

    With `choose`, it is the log that was written to last then.
    """
    known = _ledger(directory)
    return _recovered(name, directory, known, _identity(directory, known, choose=choose), reason, choose=choose)


def made_again(name: str, directory: str, identity: str) -> Session | None:
    """The session `identity`, of which nothing is left but the logs in `directory`."""
    return _recovered(name, directory, _ledger(directory), identity, "missing", choose=True)


def _recovered(
    name: str, directory: str, known: Ledger, identity: str | None, reason: str, *, choose: bool
) -> Session | None:
    logs = {log: _log_summary(directory, log) for log in logs_in(directory)}
    head = _head(logs, known, identity, choose=choose)
    if head is None:
        return None
    own = [log for log in logs if known.logs.get(log) == identity] if identity is not None else []
    first = next((log for log in known.logs if log in own), head)
    origin = known.forked.get(identity) if identity is not None else None
    begins = Begins(first, known.points[origin]) if origin in known.points and origin is not None else None
    # As with 0.1, the log of a session that the ledger does not know stands for the session.
    return Session(
        name, directory, identity or head, quantities.known_time(logs[first].at), head, origin, begins, reason
    )


def origins_of(directory: str) -> dict[str, Point | None]:
    """What the logs of a session continue (`None`: nothing), as far as it is written elsewhere than in the logs."""
    known = _ledger(directory)
    origins = dict(known.origins)
    record = _record(directory)
    identity = record.get("id")
    if not isinstance(identity, str):
        identity = _identity(directory, known, choose=True)
    if (begins := _begins(record.get("begins"))) is not None:
        origins.setdefault(begins.log, begins.continues)
    for session in dict.fromkeys(known.logs.values()):
        first = next(log for log, owner in known.logs.items() if owner == session)
        if first in origins:
            continue
        origin = known.forked.get(session)
        if origin is not None:
            if origin in known.points:
                origins[first] = known.points[origin]
        elif session != identity or (imported := _imported(directory, known, first)) is None:
            origins[first] = None
        else:
            origins[first] = imported
    return origins


def _imported(directory: str, known: Ledger, first: str) -> Point | None:
    """The end of the log in which 0.1 put a conversation from elsewhere; nothing was ever added to it."""
    others = [log for log in logs_in(directory) if log != first and log not in known.logs and log not in known.origins]
    if len(others) != 1:
        return None
    return Point(others[0], os.path.getsize(log_path(directory, others[0])))


def _ledger(directory: str) -> Ledger:
    profile = os.path.dirname(os.path.dirname(directory))
    try:
        return ledger.read(os.path.join(profile, "checkpoints"))
    except (DeepctlError, OSError):
        return Ledger()


def _record(directory: str) -> dict[str, object]:
    try:
        record = sealed_lines.unseal(log_file.documents(directory).read(RECORD).rstrip(b"\n"))
        layout.bring_up(layout.SESSION_FORMAT, record, directory)
    except (ValueError, OSError, DeepctlError):
        return {}
    return record


def _log_summary(directory: str, log: str) -> _LogSummary:
    path = log_path(directory, log)
    lines = [upgraded(line, path) for line in sealed_lines.parse(log_file.read_lines(path))]
    stamps = [at for line in lines if line.value is not None and isinstance(at := line.value.get("at"), str)]
    return _LogSummary(stamps[0] if stamps else "", parent_in(lines, path), stamps[-1] if stamps else "")


def _identity(directory: str, known: Ledger, *, choose: bool) -> str | None:
    """The id of the session in `directory`: one that used a log there first, and is none of another directory's."""
    own = set(logs_in(directory))
    others = {place: set(logs_in(place)) for place in siblings(directory) if os.path.isdir(place)}
    taken = {_record(place).get("id") for place in others}
    candidates = list(
        dict.fromkeys(known.logs[log] for log in known.logs if log in own and known.logs[log] not in taken)
    )
    alive = {record.session for record in known.records.values()}
    elsewhere = set().union(*others.values())
    alone = {known.logs[log] for log in own - elsewhere if log in known.logs}
    for preferred in (alive, alone):
        if len(candidates) > 1:
            candidates = [session for session in candidates if session in preferred] or candidates
    return candidates[-1] if len(candidates) == 1 or (choose and candidates) else None


def _head(logs: dict[str, _LogSummary], known: Ledger, identity: str | None, *, choose: bool) -> str | None:
    """The log at the head of a session: the one the ledger names, or the only one that no other continues."""
    if identity is not None and (head := known.current.get(identity)) in logs:
        # A session that was taken over goes on in a log of which the ledger does not know yet.
        after = [log for log, summary in logs.items() if summary.parent is not None and summary.parent.log == head]
        unknown = [log for log in after if log not in known.logs and log not in known.origins]
        return unknown[0] if len(unknown) == 1 else head
    continued = {summary.parent.log for summary in logs.values() if summary.parent is not None}
    leaves = [log for log in logs if log not in continued and known.logs.get(log) in (None, identity)]
    if len(leaves) == 1 or (choose and leaves):
        return max(leaves, key=lambda log: logs[log].last)
    return None
