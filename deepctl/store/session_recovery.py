"""What ledger and message logs tell of a session whose record is damaged or gone, and of what its logs continue."""

from __future__ import annotations

import os
from typing import NamedTuple

from deepctl import formats, times
from deepctl.errors import DeepctlError
from deepctl.files import atomic, sealed_lines
from deepctl.store import ledger, session_log
from deepctl.store.ledger import Ledger
from deepctl.store.log_chain import Point, beside, parent_in, present
from deepctl.store.session_catalogue import RECORD, Begins, Session, begins_of


class _Header(NamedTuple):
    """The first line of a log, if it can be read, and when its last line was written."""

    at: str
    parent: Point | None
    last: str


def recovered(name: str, directory: str, reason: str, *, choose: bool = False) -> Session | None:
    """The session in `directory`, as far as anything else tells; `None` if nothing tells which log is its head.

    With `choose`, it is the log that was written to last then.
    """
    found = _ledger(directory)
    return _recovered(name, directory, found, _identity(directory, found, choose=choose), reason, choose=choose)


def made_again(name: str, directory: str, identity: str) -> Session | None:
    """The session `identity`, of which nothing is left but the logs in `directory`."""
    return _recovered(name, directory, _ledger(directory), identity, "missing", choose=True)


def _recovered(
    name: str, directory: str, found: Ledger, identity: str | None, reason: str, *, choose: bool
) -> Session | None:
    headers = {one: _header(directory, one) for one in logs_in(directory)}
    head = _head(headers, found, identity, choose=choose)
    if head is None:
        return None
    own = [one for one in headers if found.logs.get(one) == identity] if identity is not None else []
    first = next((one for one in found.logs if one in own), head)
    origin = found.forked.get(identity) if identity is not None else None
    begins = Begins(first, found.points[origin]) if origin in found.points and origin is not None else None
    # As with 0.1, the log of a session that the ledger does not know stands for the session.
    return Session(name, directory, identity or head, times.known(headers[first].at), head, origin, begins, reason)


def origins_of(directory: str) -> dict[str, Point | None]:
    """What the logs of a session continue (`None`: nothing), as far as it is written elsewhere than in the logs."""
    found = _ledger(directory)
    origins = dict(found.origins)
    record = _record(directory)
    identity = record.get("id")
    if not isinstance(identity, str):
        identity = _identity(directory, found, choose=True)
    if (begins := begins_of(record.get("begins"))) is not None:
        origins.setdefault(begins.log, begins.continues)
    for session in dict.fromkeys(found.logs.values()):
        first = next(one for one, owner in found.logs.items() if owner == session)
        if first in origins:
            continue
        origin = found.forked.get(session)
        if origin is not None:
            if origin in found.points:
                origins[first] = found.points[origin]
        elif session != identity or (brought := _brought(directory, found, first)) is None:
            origins[first] = None
        else:
            origins[first] = brought
    return origins


def _brought(directory: str, found: Ledger, first: str) -> Point | None:
    """The end of the log in which 0.1 put a conversation from elsewhere; nothing was ever added to it."""
    others = [one for one in logs_in(directory) if one != first and one not in found.logs and one not in found.origins]
    if len(others) != 1:
        return None
    return Point(others[0], os.path.getsize(session_log.log_path(directory, others[0])))


def logs_in(directory: str) -> list[str]:
    """The ids of the logs in a session's directory."""
    names = (
        entry.removesuffix(session_log.SUFFIX) for entry in os.listdir(directory) if entry.endswith(session_log.SUFFIX)
    )
    return sorted(name for name in names if session_log.is_id(name))


def _ledger(directory: str) -> Ledger:
    profile = os.path.dirname(os.path.dirname(directory))
    try:
        return ledger.read(os.path.join(profile, "checkpoints"))
    except (DeepctlError, OSError):
        return Ledger()


def _record(directory: str) -> dict[str, object]:
    try:
        found = sealed_lines.unseal(atomic.read_file(os.path.join(directory, RECORD)).rstrip(b"\n"))
        formats.bring_up(formats.SESSION, found, directory)
    except (ValueError, OSError, DeepctlError):
        return {}
    return found


def _header(directory: str, one: str) -> _Header:
    path = session_log.log_path(directory, one)
    lines = [present(line, path) for line in sealed_lines.parse(atomic.read_file(path))]
    times = [at for line in lines if line.value is not None and isinstance(at := line.value.get("at"), str)]
    parent = parent_in(lines, path)
    return _Header(times[0] if times else "", parent, times[-1] if times else "")


def _identity(directory: str, found: Ledger, *, choose: bool) -> str | None:
    """The id of the session in `directory`: one that used a log there first, and is none of another directory's."""
    own = set(logs_in(directory))
    others = {place: set(logs_in(place)) for place in beside(directory) if os.path.isdir(place)}
    taken = {_record(place).get("id") for place in others}
    candidates = list(
        dict.fromkeys(found.logs[one] for one in found.logs if one in own and found.logs[one] not in taken)
    )
    alive = {record.session for record in found.records.values()}
    elsewhere = set().union(*others.values())
    alone = {found.logs[one] for one in own - elsewhere if one in found.logs}
    for wanted in (alive, alone):
        if len(candidates) > 1:
            candidates = [one for one in candidates if one in wanted] or candidates
    return candidates[-1] if len(candidates) == 1 or (choose and candidates) else None


def _head(headers: dict[str, _Header], found: Ledger, identity: str | None, *, choose: bool) -> str | None:
    """The log at the head of a session: the one the ledger names, or the only one that no other continues."""
    if identity is not None and (head := found.current.get(identity)) in headers:
        # A session that was taken over goes on in a log of which the ledger does not know yet.
        after = [one for one, header in headers.items() if header.parent is not None and header.parent.log == head]
        unknown = [one for one in after if one not in found.logs and one not in found.origins]
        return unknown[0] if len(unknown) == 1 else head
    continued = {header.parent.log for header in headers.values() if header.parent is not None}
    leaves = [one for one in headers if one not in continued and found.logs.get(one) in (None, identity)]
    if len(leaves) == 1 or (choose and leaves):
        return max(leaves, key=lambda one: headers[one].last)
    return None
