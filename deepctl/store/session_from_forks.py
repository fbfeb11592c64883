"""Sessions whose directory is gone though other sessions still have message logs of theirs.

The ledger knows them by their checkpoints. `deepctl sessions delete` takes those out of the ledger, as 0.1 did, so a
deleted session is not among them. Where no other session has a log of it, its checkpoints tell of the missing logs.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import DeepctlError
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store import checkpoint_store, log_file, session_catalogue
from deepctl.store.ledger import Ledger


class Vanished(NamedTuple):
    """A session that is gone: its id, its logs that others still have, and the names of those sessions."""

    id: str
    logs: list[str]
    having: list[str]


def find(paths: ProfilePaths, found: Ledger) -> list[Vanished]:
    """The sessions of a profile that are gone and can be made again, in the order in which they began."""
    having: dict[str, list[str]] = {}
    for name in session_catalogue.all_names(paths):
        for one in log_file.logs_in(os.path.join(paths.sessions, name)):
            having.setdefault(one, []).append(name)
    there = _identities(paths, found)
    gone: dict[str, list[str]] = {}
    for record in found.records.values():
        is_own = found.logs.get(record.log) == record.session and log_file.is_id(record.session)
        if is_own and record.session not in there and not record.has_lost_conversation:
            gone.setdefault(record.session, [])
    for one, identity in found.logs.items():
        if identity in gone and one in having:
            gone[identity].append(one)
    return [
        Vanished(identity, logs, sorted({name for one in logs for name in having[one]}))
        for identity, logs in gone.items()
        if logs
    ]


def _identities(paths: ProfilePaths, found: Ledger) -> set[str]:
    """The ids of the sessions that are there, with every session that one with a damaged record may be."""
    there: set[str] = set()
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
        except (DeepctlError, OSError):
            session = None
        if session is not None:
            # Where the ledger did not tell its id, the log at its head stands for it.
            there |= {session.id, found.logs.get(session.id, session.id)}
        if session is None or session.damage is not None:
            logs = log_file.logs_in(os.path.join(paths.sessions, name))
            there |= {found.logs[one] for one in logs if one in found.logs}
    return there


def reason(paths: ProfilePaths, found: Ledger, one: Vanished) -> str:
    """What is wrong, as a sentence without its full stop."""
    name = old_name(paths, found, one)
    what = f"session {name}" if name is not None else f"a session (id {one.id})"
    has = "has" if len(one.having) == 1 else "have"
    return (
        f"{what} is missing: it was not deleted with deepctl, and {' and '.join(one.having)} still {has} "
        f"{counted(len(one.logs), 'message log')} of it"
    )


def old_name(paths: ProfilePaths, found: Ledger, one: Vanished) -> str | None:
    """What the session was called, if the index for shells still tells; only its directory had the name for sure."""
    known = checkpoint_store.indexed_session_names(paths)
    for record in found.records.values():
        if record.session == one.id and layout.is_good_name(known.get(record.id, "")):
            return known[record.id]
    return None


def new_name(paths: ProfilePaths, wanted: str | None, found: Ledger, one: Vanished) -> str:
    """A free name for the session: the old one, that of a profile's first session, or one made of its id."""
    first = next(iter(found.logs.values()), None)
    for name in (wanted, session_catalogue.FIRST if one.id == first else None):
        if name is not None and session_catalogue.spelled(paths, name) is None:
            return name
    name = f"session-{one.id[:8]}"
    return name if session_catalogue.spelled(paths, name) is None else session_catalogue.free_name(paths)
