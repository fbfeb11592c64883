"""What a profile's checkpoints are, read from the ledger and the logs: no lock, and none of the contents.

Lists need no more than this, so it imports nothing that takes long; `reader` has the contents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from deepctl import locks
from deepctl.errors import Damaged, NoSession
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store import ledger, ledger_size, log_chain, session_catalogue, session_log
from deepctl.store.ledger import MESSAGES, Ledger
from deepctl.store.log_chain import Chain, Point
from deepctl.store.packs import is_uncounted
from deepctl.store.pending_deletion import leaving
from deepctl.store.records import BOTH, CONVERSATION, FILES, Position, Record
from deepctl.store.reference import resolve
from deepctl.store.session_catalogue import Session

OTHERS = "`deepctl checkpoints list` shows the others."
REPAIR = "`deepctl checkpoints repair` looks for it in every copy, and says what is lost for good."


class Listed(NamedTuple):
    """One checkpoint with what lists tell beside its record: label, name of the session, the one before it."""

    record: Record
    label: str | None
    session: str
    parent: str | None


class Problem(NamedTuple):
    """Something that is damaged: the checkpoint if it can be told, the file, and why."""

    id: str | None
    file: str
    reason: str


def read(paths: ProfilePaths) -> Ledger:
    """What checkpoints a profile has; without those of a session that is being deleted."""
    found = ledger.read(paths.checkpoints)
    if gone := leaving(paths):
        for record in [one for one in found.records.values() if one.session in gone]:
            found.drop(record.id)
    return found


def heads(paths: ProfilePaths) -> dict[str, str]:
    """The checkpoint at which each session stands, by the session's id. Damage is for others to report."""
    try:
        return read(paths).heads
    except Damaged:
        return {}


def session_at_hand(paths: ProfilePaths, name: str | None) -> Session:
    """The session called `name`; without a name, the one written to last. Raises `NoSession` if there is none."""
    wanted = name if name is not None else session_catalogue.latest(paths)
    if wanted is None:
        raise NoSession(paths.name)
    return session_catalogue.find(paths, wanted)


def described(found: Ledger, names: dict[str, str]) -> Callable[[Record], Listed]:
    """What lists tell of a record; `names` are those of the sessions by their ids."""

    def describe(record: Record) -> Listed:
        session = names.get(record.session, record.session)
        return Listed(record, found.labels.get(record.id), session, found.parent(record))

    return describe


def listed(paths: ProfilePaths, found: Ledger, record: Record) -> Listed:
    """What lists tell of one record."""
    return described(found, session_catalogue.by_id(paths))(record)


def find(paths: ProfilePaths, found: Ledger, reference: str, session: str | None) -> Record:
    """The checkpoint that `reference` means; `~N` counts in the session called `session`, or the latest."""
    if not reference.startswith("~"):
        return resolve(found, reference, None, 0)
    at_hand = session_at_hand(paths, session)
    turns = session_catalogue.read(at_hand).last_turn
    return resolve(found, reference, head(found, at_hand), turns)


def head(found: Ledger, session: Session) -> str | None:
    """The checkpoint at which a session stands."""
    return found.heads.get(session.id, session.forked_from)


def position(session: Session, conversation: session_log.MessageList) -> Position:
    """Where a session's conversation stands."""
    messages = conversation.messages
    typed = [text for entry in messages if (text := session_catalogue.prompt(entry.message)) is not None]
    return Position(
        session.id,
        conversation.last_turn,
        session.log,
        conversation.end,
        len(messages),
        typed[-1] if typed else "",
        Point(session.log, conversation.end, conversation.digest),
    )


def tied(session: Session, position: Position) -> Position:
    """A position with its digest; the log is read for one that has none."""
    if position.digest or not position.log:
        return position
    found = log_chain.resolve(session.directory, Point(position.log, position.offset))
    return position._replace(tied=Point(position.log, position.offset, found.digest)) if not found.lost else position


def conversation_at(paths: ProfilePaths, record: Record) -> session_log.MessageList:
    """The conversation up to a checkpoint. Raises `Damaged` if it is not what was written."""
    return (
        session_log.of_chain(chain_of(paths, record))
        if record.log or record.lost
        else session_log.MessageList([], [], 0)
    )


def chain_of(paths: ProfilePaths, record: Record) -> Chain:
    """The files that the conversation of a checkpoint is read from. Raises `Damaged` if none have it."""
    if record.lost in (CONVERSATION, BOTH):
        hint = "`--only files` goes back to its files." if record.tree else OTHERS
        raise Damaged(f"The conversation of checkpoint {record.id} is lost.", hint)
    directory = directory_of(paths, record.log)
    if directory is None:
        raise Damaged(f"The message log {record.log} of checkpoint {record.id} is missing.", REPAIR)
    found = log_chain.resolve(directory, record.point)
    if found.lost is not None and found.lost.reason == log_chain.MISSING:
        raise Damaged(f"The message log {record.log} of checkpoint {record.id} is cut short.", REPAIR)
    if found.lost is not None:
        raise Damaged(
            f"The conversation of checkpoint {record.id} is lost: {found.lost.file}: {found.lost.reason}.", REPAIR
        )
    return found


def lost_files(records: Iterable[Record]) -> str | None:
    """A sentence on those whose files are known to be lost, `None` if there are none."""
    lost = [record.id for record in records if record.lost in (FILES, BOTH)]
    if not lost:
        return None
    shown = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
    return f"The files of {counted(len(lost), 'checkpoint')} are lost: {shown}."


_SHOWN = 3


def check_files(record: Record, hint: str) -> None:
    """Raises `Damaged` if the files of a checkpoint are known to be lost."""
    if record.lost in (FILES, BOTH):
        raise Damaged(f"The files of checkpoint {record.id} are lost.", hint)


def directory_of(paths: ProfilePaths, wanted: str) -> str | None:
    """The directory of a session that has the log `wanted`, or `None`."""
    if not session_log.is_id(wanted):
        return None
    own = os.path.join(paths.checkpoints, MESSAGES)
    if os.path.exists(session_log.log_path(own, wanted)):
        return own
    for name in session_catalogue.all_names(paths):
        directory = os.path.join(paths.sessions, name)
        if os.path.exists(session_log.log_path(directory, wanted)):
            return directory
    return None


def structural(paths: ProfilePaths, found: Ledger) -> list[Problem]:
    """What is damaged as far as one can tell without reading contents: lines, missing or cut packs and logs."""
    path = os.path.join(paths.checkpoints, ledger.LEDGER)
    problems = [Problem(damage.id, f"{path} line {damage.line}", damage.reason) for damage in found.damage]
    sizes: dict[str, int] = {}
    own = os.path.join(paths.checkpoints, MESSAGES)
    for directory in session_catalogue.directories(paths) + ([own] if os.path.isdir(own) else []):
        with os.scandir(directory) as entries:
            for entry in entries:
                # Where a link is broken, one of the copies may be shorter.
                size = entry.stat(follow_symlinks=False).st_size
                sizes[entry.name] = max(size, sizes.get(entry.name, 0))
    packs: dict[str, os.stat_result] = {}
    if os.path.isdir(paths.packs):
        with os.scandir(paths.packs) as entries:
            packs = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    for record in found.records.values():
        is_kept = record.log and record.lost not in (CONVERSATION, BOTH)
        if is_kept and sizes.get(record.log + session_log.SUFFIX, -1) < record.offset:
            reason = "cut short" if record.log + session_log.SUFFIX in sizes else "missing"
            problems.append(Problem(record.id, record.log + session_log.SUFFIX, f"its message log is {reason}"))
        elif record.pack in found.packs and (
            record.pack not in packs or packs[record.pack].st_size < record.added_bytes
        ):
            reason = "cut short" if record.pack in packs else "missing"
            problems.append(Problem(record.id, os.path.join(paths.packs, record.pack), f"its pack is {reason}"))
    if (unread := ledger_size.read(paths.checkpoints).problem) is not None:
        problems.append(Problem(None, os.path.join(paths.checkpoints, ledger_size.NAME), unread))
    unnamed = {name for name, status in packs.items() if name.endswith(".pack") and not is_uncounted(status)}
    unnamed -= found.packs | found.gone
    if len(unnamed) > 1:
        problems.append(Problem(None, path, f"lines are missing: nothing names {len(unnamed)} packs"))
    return problems


def goes_on(session: Session, found: Ledger) -> bool:
    """Whether a session's last turn was killed, or has no checkpoints.

    It has messages that no checkpoint covers; or its latest checkpoint was made within a turn, so that a tool may have
    been at work when it was killed. Of several calls in one answer, the second writes nothing before it is done.
    """
    first, end = session_log.end_of(session.directory, session.log)
    return session.log in found.open_turns or end > max(first, found.ends.get(session.log, 0))


def last_author(paths: ProfilePaths, found: Ledger) -> str | None:
    """Who changed the workspace since it was last looked at (`State.by`): nobody can tell after a killed turn.

    A turn that is at work now is not killed: what it changes is its own.
    """
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            if goes_on(session, found):
                holder = locks.holder(paths.lock)
                return session.id if holder is not None and holder.command == "chat" else None
        except Damaged:
            continue
    return ""
