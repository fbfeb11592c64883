"""Checkpoints as pydantic-deep's `FileCheckpointStore` writes them (one `<id>.json` each), and importing them.

An import makes a session with the conversations, and their checkpoints. The files are only read. Existing checkpoints
are skipped, so an interrupted import can be repeated.

Source of the format: pydantic-deep 0.3.50, `features/checkpointing/store.py`.
"""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

from deepctl import layout
from deepctl.errors import BadName, Damaged, DeepctlError, NotFound, Refused
from deepctl.files import atomic
from deepctl.store import (
    checkpoint_store,
    log_file,
    lookup,
    message_chains,
    session_catalogue,
    session_reader,
)
from deepctl.store.ledger import Ledger
from deepctl.store.lookup import CheckpointProblem
from deepctl.store.message_chains import MessageChains
from deepctl.store.records import OTHER, Position, Record, check_label
from deepctl.store.repository import Repository
from deepctl.unicode import whole_value

_SUFFIX = ".json"
_AUTOMATIC = re.compile(r"(turn|tool|auto)-\d+.*")
_SHOWN = 5
_NO_FILES = "it was imported from pydantic-deep, which stores no files"


class CheckpointHeader(NamedTuple):
    """A checkpoint without its messages. `created_at` is RFC 3339."""

    id: str
    label: str
    turn: int
    created_at: str


class ForeignCheckpoint(NamedTuple):
    """One checkpoint: `messages` are pydantic-ai's JSON."""

    header: CheckpointHeader
    messages: list[dict[str, Any]]
    metadata: dict[str, Any]


def find(directory: str) -> dict[str, str]:
    """The paths of the checkpoints in a directory by their file names, which are their ids."""
    try:
        file_names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {name.removesuffix(_SUFFIX): os.path.join(directory, name) for name in file_names if name.endswith(_SUFFIX)}


def headers(directory: str) -> list[CheckpointHeader]:
    """The readable checkpoints in a directory."""
    readable = []
    for path in find(directory).values():
        try:
            readable.append(read(path).header)
        except (DeepctlError, OSError):
            continue
    return readable


def read(path: str) -> ForeignCheckpoint:
    """One checkpoint. Raises `Damaged` if the file is not a checkpoint, or cannot be read."""
    try:
        raw = atomic.read_file(path)
    except Refused as error:  # its hint is only correct for deepctl's own files
        raise Damaged(error.message) from None
    except OSError as error:
        if atomic.is_of_machine(error):
            raise
        raise Damaged(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    try:
        value = whole_value(json.loads(raw))
        datetime.fromisoformat(value["created_at"])
        match value:
            case {
                "id": str(identity),
                "label": str(label),
                "turn": int(turn),
                "messages": list(messages),
                "created_at": str(at),
            } if all(_is_message(message) for message in messages):
                metadata = value.get("metadata")
                name = os.path.basename(path).removesuffix(_SUFFIX)
                if identity != name or not identity.isprintable() or len(identity) > 200:
                    raise Damaged(f"{path} contains checkpoint {identity!r}.")
                in_utc(at)
                return ForeignCheckpoint(
                    CheckpointHeader(identity, label, turn, at),
                    messages,
                    metadata if isinstance(metadata, dict) else {},
                )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise Damaged(f"{path} is not a checkpoint of pydantic-deep: {error}.") from None
    raise Damaged(f"{path} is not a checkpoint of pydantic-deep.")


def in_utc(at: str) -> str:
    """A time of pydantic-deep as RFC 3339 in UTC; a time without a zone is taken for UTC."""
    time = datetime.fromisoformat(at)
    if time.tzinfo is not None:
        time = time.astimezone(timezone.utc)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("kind") in ("request", "response")
        and isinstance(value.get("parts"), list)
    )


class Import(NamedTuple):
    """The imported data: the session's name, the checkpoints, and the unreadable files."""

    session: str
    records: list[Record]
    problems: list[CheckpointProblem]


def take_over(repository: Repository, directory: str, name: str | None) -> Import:
    """Import the checkpoints in `directory`, into a new session.

    Raises `NotFound` if there are none (or no new ones), and `Refused` if there is a session called `name`.
    """
    checkpoints: list[ForeignCheckpoint] = []
    problems: list[CheckpointProblem] = []
    existing = repository.ledger.records
    for identity, path in find(directory).items():
        try:
            checkpoint = read(path)
            if identity not in existing:
                checkpoints.append(checkpoint)
            elif not _is_kept(repository, checkpoint):
                problems.append(
                    CheckpointProblem(identity, path, f"{path}: this profile has another checkpoint {identity}.")
                )
        except Damaged as error:
            problems.append(CheckpointProblem(identity, path, error.message))
    if not checkpoints:
        kind = "new checkpoints" if find(directory) else "checkpoints (<id>.json)"
        left_out = " ".join(f"Left out: {problem.reason}" for problem in problems[:_SHOWN]) or None
        raise NotFound(f"There are no {kind} in {directory}.", left_out, code="nothing_to_import")
    checkpoints.sort(key=lambda checkpoint: checkpoint.header.created_at)
    session = session_catalogue.start(repository.paths, name if name is not None else _free_name(repository))
    logs = MessageChains(session.directory)
    records: list[Record] = []
    for checkpoint in checkpoints:
        place = _kept(logs, checkpoint)
        if place.log:
            session = session_catalogue.branch(session, place.log, None)
        prompts = [text for message in checkpoint.messages if (text := log_file.prompt(message)) is not None]
        label = _label(repository.ledger, checkpoint.header.label)
        records += repository.store.save(
            Position(
                session.id,
                len(prompts),
                place.log,
                place.offset,
                place.messages,
                prompts[-1] if prompts else "",
                place.point,
            ),
            "manual",
            author=OTHER,
            workspace=None,
            id=checkpoint.header.id,
            created_at=in_utc(checkpoint.header.created_at),
            label=label,
            metadata={**checkpoint.metadata, "label": checkpoint.header.label},
            unkept=[["", _NO_FILES]],
        )
    if place.log and place.offset != session_reader.end_of(session.directory, place.log)[1]:
        # The log continues after the last conversation, so the session continues in a new log.
        session_catalogue.branch(session, os.urandom(8).hex(), place.point)
    checkpoint_store.rewrite_index(repository.paths, repository.ledger)
    return Import(session.name, records, problems)


def _is_kept(repository: Repository, checkpoint: ForeignCheckpoint) -> bool:
    """Whether the checkpoint of that id here is the same one, as far as it can be read."""
    record = repository.ledger.records[checkpoint.header.id]
    if record.message_count != len(checkpoint.messages):
        return False
    try:
        conversation = lookup.conversation_at(repository.paths, record)
    except Damaged:
        return True
    return [entry.message for entry in conversation.messages] == checkpoint.messages


def _kept(logs: MessageChains, checkpoint: ForeignCheckpoint) -> message_chains.ChainEnd:
    chain = [message_chains.START]
    turns = [0]
    for message in checkpoint.messages:
        chain.append(message_chains.continued(chain[-1], message)[0])
        turns.append(turns[-1] + (log_file.prompt(message) is not None))
    known_length, _ = logs.find(chain[1:])
    return logs.keep(chain[1:], checkpoint.messages[known_length:], turns[known_length + 1 :])


def _label(ledger: Ledger, label: str) -> str:
    """The label, if a user gave it and it is valid here; otherwise none."""
    try:
        check_label(label)
    except BadName:
        return ""
    return "" if _AUTOMATIC.fullmatch(label) or ledger.labelled(label) is not None else label


def _free_name(repository: Repository) -> str:
    folded_names = {layout.folded_name(name) for name in session_catalogue.all_names(repository.paths)}
    number = 1
    while (name := "imported" if number == 1 else f"imported-{number}") in folded_names:
        number += 1
    return name
