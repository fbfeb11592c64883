"""Taking over what pydantic-deep's `FileCheckpointStore` kept: a session with the conversations, and their checkpoints.

The files are only read. Checkpoints that are there already are passed over, so an import that was interrupted can be
done again.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from deepctl import names
from deepctl.errors import BadName, Damaged, NotFound
from deepctl.store import completion_index, lookup, message_chains, pydantic_deep, session_catalogue, session_log
from deepctl.store.ledger import Ledger
from deepctl.store.lookup import Problem
from deepctl.store.message_chains import Messages
from deepctl.store.pydantic_deep import ForeignCheckpoint
from deepctl.store.records import OTHER, Position, Record, check_label
from deepctl.store.repository import Repository

_AUTOMATIC = re.compile(r"(turn|tool|auto)-\d+.*")
_SHOWN = 5
_NO_FILES = "it was taken over from pydantic-deep, which keeps no files"


class Taken(NamedTuple):
    """What was taken over: the session's name, the checkpoints, and the files that could not be read."""

    session: str
    records: list[Record]
    problems: list[Problem]


def take_over(work: Repository, directory: str, name: str | None) -> Taken:
    """Take over the checkpoints in `directory`, into a new session.

    Raises `NotFound` if there are none (or no new ones), and `Refused` if there is a session called `name`.
    """
    found: list[ForeignCheckpoint] = []
    problems: list[Problem] = []
    known = work.ledger.records
    for identity, path in pydantic_deep.find(directory).items():
        try:
            one = pydantic_deep.read(path)
            if identity not in known:
                found.append(one)
            elif not _is_kept(work, one):
                problems.append(Problem(identity, path, f"{path}: this profile has another checkpoint {identity}."))
        except Damaged as error:
            problems.append(Problem(identity, path, error.message))
    if not found:
        what = "new checkpoints" if pydantic_deep.find(directory) else "checkpoints (<id>.json)"
        left_out = " ".join(f"Left out: {problem.reason}" for problem in problems[:_SHOWN]) or None
        raise NotFound(f"There are no {what} in {directory}.", left_out, code="nothing_to_import")
    found.sort(key=lambda one: one.header.created_at)
    session = session_catalogue.start(work.paths, name if name is not None else _free_name(work))
    logs = Messages(session.directory)
    records = []
    for one in found:
        place = _kept(logs, one)
        if place.log:
            session = session_catalogue.branch(session, place.log, None)
        typed = [text for message in one.messages if (text := session_catalogue.prompt(message)) is not None]
        label = _label(work.ledger, one.header.label)
        saved = work.store.save(
            Position(
                session.id,
                len(typed),
                place.log,
                place.offset,
                place.messages,
                typed[-1] if typed else "",
                place.point,
            ),
            "manual",
            author=OTHER,
            workspace=None,
            id=one.header.id,
            created_at=pydantic_deep.in_utc(one.header.created_at),
            label=label,
            metadata={**one.metadata, "label": one.header.label},
            unkept=[["", _NO_FILES]],
        )
        assert saved is not None
        records.append(saved)
    if place.log and place.offset != session_log.end_of(session.directory, place.log)[1]:
        # The last conversation is the beginning of another.
        session_catalogue.branch(session, os.urandom(8).hex(), place.point)
    completion_index.rewrite(work.paths, work.ledger)
    return Taken(session.name, records, problems)


def _is_kept(work: Repository, one: ForeignCheckpoint) -> bool:
    """Whether the checkpoint of that id here is the same one, as far as it can be read."""
    record = work.ledger.records[one.header.id]
    if record.message_count != len(one.messages):
        return False
    try:
        conversation = lookup.conversation_at(work.paths, record)
    except Damaged:
        return True
    return [kept.message for kept in conversation.messages] == one.messages


def _kept(logs: Messages, one: ForeignCheckpoint) -> message_chains.Place:
    chain = [message_chains.START]
    turns = [0]
    for message in one.messages:
        chain.append(message_chains.digest(chain[-1], message))
        turns.append(turns[-1] + (session_catalogue.prompt(message) is not None))
    kept, _ = logs.find(chain[1:])
    return logs.keep(chain[1:], one.messages[kept:], turns[kept + 1 :])


def _label(ledger: Ledger, label: str) -> str:
    """The label, if somebody gave it and it may be one here; otherwise none."""
    try:
        check_label(label)
    except BadName:
        return ""
    return "" if _AUTOMATIC.fullmatch(label) or ledger.labelled(label) is not None else label


def _free_name(work: Repository) -> str:
    taken = {names.fold(name) for name in session_catalogue.all_names(work.paths)}
    number = 1
    while (name := "imported" if number == 1 else f"imported-{number}") in taken:
        number += 1
    return name
