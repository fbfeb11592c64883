"""Deleting a session with its checkpoints: the preview (`plan`), and the deletion (`delete`).

    sessions/<name> becomes sessions/.deleted-<id>      <- from here on it is deleted
    its checkpoints and their texts are removed from the ledger; data that only they needed is freed
    the directory is removed

The next command that opens the profile finishes an interrupted deletion. Readers do not see the session after the first
step (`session_catalogue.all_names`, `session_catalogue.read_ledger`). The workspace does not change.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from deepctl.errors import Damaged, DeepctlError, Interrupted, NewerFormat, Refused, SessionNotFound, StorageError
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import (
    checkpoint_store,
    log_file,
    prune,
    records,
    session_catalogue,
    session_log,
    session_titles,
    todo,
)
from deepctl.store.checkpoint_store import ProfileStore
from deepctl.store.ledger import Ledger
from deepctl.store.pack_store import PackStore
from deepctl.store.records import Record
from deepctl.store.session_catalogue import pending_deletions, put_away


class SessionDeletion(NamedTuple):
    """The data that is deleted with a session, and the bytes on disk that this frees.

    `labels` are the labels of its checkpoints, by their ids. `forks` are sessions that start at one of them: they stay,
    but can no longer be rewound to before their start. `is_blocked` says that contents of checkpoints are not freed,
    because remaining data cannot be read; `problem` is the reason if the session itself cannot be read.
    """

    session: str
    id: str
    turns: int
    message_count: int
    records: list[Record]
    labels: dict[str, str]
    forks: list[str]
    bytes: int
    is_blocked: bool = False
    problem: str | None = None

    def is_as(self, other_deletion: SessionDeletion) -> bool:
        """Whether both delete the same data; the freed bytes are not compared."""
        return self._replace(bytes=0) == other_deletion._replace(bytes=0)


def plan(paths: ProfilePaths, ledger: Ledger, objects: PackStore, name: str) -> SessionDeletion:
    """The data that deleting the session called `name` would remove. A damaged session can be deleted, too.

    Raises `SessionNotFound`, `NewerFormat`, or `Damaged` if its own checkpoints are unknown.
    """
    existing_name = session_catalogue.stored_name(paths, name)
    if existing_name is None:
        raise SessionNotFound(name, paths.name)
    directory = os.path.join(paths.sessions, existing_name)
    identity, problem, turns, messages = None, None, 0, 0
    try:
        session = session_catalogue.find(paths, existing_name)
        identity = session.id if log_file.is_id(session.id) else None
        problem = session.damage
        conversation = session_catalogue.read(session)
        turns, messages = len({entry.turn for entry in conversation.messages}), len(conversation.messages)
    except NewerFormat:
        raise
    except (Damaged, Refused) as error:
        problem = error.message
    other_sessions = _others(paths, existing_name)
    if identity is None:
        identity = _known_by_logs(ledger, directory, other_sessions)
    elif identity in other_sessions:
        # A copy of another session: its checkpoints also belong to the other session, so they stay.
        identity = None
    records = [record for record in ledger.records.values() if record.session == identity]
    record_ids = {record.id for record in records}
    removal = prune.forecast(ledger, objects, records) if records else prune.CheckpointRemoval([], 0)
    return SessionDeletion(
        existing_name,
        identity or f"copy{os.urandom(8).hex()}",
        turns,
        messages,
        records,
        {record_id: label for record_id, label in ledger.labels.items() if record_id in record_ids},
        sorted(session.name for session in other_sessions.values() if session.forked_from in record_ids),
        removal.bytes + _own_bytes(directory),
        removal.is_blocked,
        problem,
    )


def _others(paths: ProfilePaths, name: str) -> dict[str, records.SessionRecord]:
    """The readable other sessions of the profile by their ids."""
    sessions = {}
    for other_name in session_catalogue.all_names(paths):
        if other_name != name:
            try:
                session = session_catalogue.find(paths, other_name)
            except Damaged:
                continue
            sessions[session.id] = session
    return sessions


def _known_by_logs(ledger: Ledger, directory: str, other_sessions: dict[str, records.SessionRecord]) -> str | None:
    """The id of a session with a lost record, from the checkpoints in its logs; `None` if there are none.

    Raises `Damaged` if the logs belong to several sessions.
    """
    logs = _logs(directory)
    candidates = {record.session for record in ledger.records.values() if record.log in logs} - other_sessions.keys()
    candidates = {candidate for candidate in candidates if log_file.is_id(candidate)}
    if len(candidates) > 1:
        raise Damaged(
            f"The record of session {os.path.basename(directory)!r} is damaged, and its logs belong to several "
            "sessions.",
            "First delete its forks, or the session from which it was forked.",
        )
    return candidates.pop() if candidates else None


def _own_bytes(directory: str) -> int:
    """The bytes that removing a session's directory frees; logs that a fork shares stay on the disk."""
    return sum(status.st_size for status in _files(directory) if status.st_nlink == 1)


def _files(directory: str) -> Iterator[os.stat_result]:
    with os.scandir(directory) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                yield status


def check_same(preview: SessionDeletion, now: SessionDeletion) -> None:
    """Raises `Refused` if the deletion is not the one that was confirmed."""
    if not preview.is_as(now):
        raise Refused(
            f"Session {now.session!r} changed in the meantime, so nothing was done.",
            "Run the command again to see what it would delete now.",
            code="changed",
        )


def delete(work: ProfileStore, deletion: SessionDeletion) -> SessionDeletion:
    """Delete a session. After a kill, it is deleted completely or not at all when the profile is opened next.

    Returns the deleted data. Raises `StorageError` or `Interrupted`: then the session is deleted, but some of its data
    is not removed yet.
    """
    todo.remove_old(work.paths, work.ledger, deletion.id)
    directory = put_away(work.paths, deletion.session, deletion.id)
    try:
        with atomic.after_commit("The session is deleted", atomic.FINISHED_NEXT):
            is_freed = _finish(work, deletion.id, directory)
    except StorageError as error:
        error.hint = atomic.FINISHED_NEXT
        raise
    except KeyboardInterrupt:
        raise Interrupted("Interrupted during the deletion.", _REST) from None
    return deletion if is_freed else deletion._replace(is_blocked=True)


_REST = "The session is deleted; the next command that changes the profile removes the rest of it."


def _finish(work: ProfileStore, identity: str, directory: str) -> bool:
    """Remove all data of a session. Returns false if contents of checkpoints stay, because other data is damaged."""
    paths, store = work.paths, work.store
    records = [record for record in work.ledger.records.values() if record.session == identity]
    is_freed = True
    try:
        if prune.remove_from(store, records).records_left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), work.paths.checkpoints)
    except Damaged:
        _remove_records(work, {record.id for record in records})
        is_freed = False
    try:
        _silence(work, identity)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        _remove_own_logs(directory)
        _silence(work, identity)
    prune.collect_logs(paths, work.ledger)
    checkpoint_store.rewrite_index(paths, work.ledger)
    _cut_shared(work, directory)
    todo.remove(paths, identity)
    session_titles.forget(paths, identity)
    rmtree.remove_tree(directory)
    atomic.sync_directory(paths.sessions)
    return is_freed


def _silence(work: ProfileStore, identity: str) -> None:
    """Remove a deleted session's texts from the ledger."""
    raw = work.store.writer.content()
    silent = _without_words(raw, identity)
    if silent != raw:
        work.store.writer.replace(silent)


def _remove_own_logs(directory: str) -> None:
    """Remove the logs that no fork shares, which frees space on a full disk."""
    for log_id in _logs(directory):
        path = log_file.log_path(directory, log_id)
        if os.lstat(path).st_nlink == 1:
            os.unlink(path)


def _cut_shared(work: ProfileStore, directory: str) -> None:
    """Cut shared logs at the last position that a fork needs; later messages belong only to the deleted session.

    The forks still share the remaining logs.
    """
    own_logs = _logs(directory)
    needed_sizes: dict[str, int] = {}
    heads: set[str] = set()
    places: dict[str, list[str]] = {}
    for place in session_catalogue.directories(work.paths):
        logs = _logs(place)
        for log_id in own_logs & logs:
            places.setdefault(log_id, []).append(place)
        try:
            heads.add(session_catalogue.find(work.paths, os.path.basename(place)).log)
            points = [parent for log_id in logs if (parent := session_log.parent_of(place, log_id)) is not None]
        except (DeepctlError, OSError):
            heads |= logs  # it is unknown how much of them the session needs
            continue
        for log_id, offset in points:
            needed_sizes[log_id] = max(offset, needed_sizes.get(log_id, 0))
    for record in work.ledger.records.values():
        needed_sizes[record.log] = max(record.offset, needed_sizes.get(record.log, 0))
    for log_id in (places.keys() & needed_sizes.keys()) - heads:
        for place in places[log_id]:
            path = log_file.log_path(place, log_id)
            if os.lstat(path).st_size > needed_sizes[log_id]:
                atomic.write_file(path, atomic.read_file(path)[: needed_sizes[log_id]])
    session_catalogue.join_logs(session_catalogue.directories(work.paths))


def _logs(directory: str) -> set[str]:
    return {entry.removesuffix(log_file.SUFFIX) for entry in os.listdir(directory) if entry.endswith(log_file.SUFFIX)}


def _remove_records(work: ProfileStore, identities: set[str]) -> None:
    """Remove checkpoints, but none of their contents, because remaining data cannot be read.

    Changes in the resulting gaps have an unknown author, so that a rewind does not undo them without `--force`.
    """
    accounts: dict[str, list[tuple[str | None, list[str]]]] = {}
    is_gap = False
    for state in work.ledger.states:
        if is_gap and state.id not in identities:
            accounts[state.id] = []
        is_gap = state.id in identities
    work.store.writer.remove(sorted(identities), accounts, [], "")


def _without_words(raw: bytes, identity: str) -> bytes:
    """The bytes of a ledger without the starts of prompts and the labels of a deleted session.

    Every other line stays unchanged byte for byte, including damaged lines.
    """
    parts = []
    own_ids: set[str] = set()
    start = 0
    for line in sealed_lines.parse(raw):
        original, start = raw[start : line.end], line.end
        entry = line.value or {}
        match entry:
            case {"record": {"id": str(checkpoint), "session": str(session)} as record} if session == identity:
                own_ids.add(checkpoint)
                fields = {key: value for key, value in record.items() if key not in ("prompt", "label", "metadata")}
                parts.append(sealed_lines.seal({**entry, "record": fields}) if fields != record else original)
            case {"label": {"id": str(checkpoint), "label": str()}} if checkpoint in own_ids:
                parts.append(sealed_lines.seal({**entry, "label": {"id": checkpoint, "label": None}}))
            case _:
                parts.append(original)
    return b"".join(parts)


def recover(work: ProfileStore) -> list[str]:
    """Finish interrupted deletions; returns notes for the user. A deletion that fails is tried again later."""
    notes = []
    for identity, directory in pending_deletions(work.paths).items():
        try:
            _finish(work, identity, directory)
            notes.append("An interrupted deletion of a session has been finished.")
        except (OSError, DeepctlError) as error:
            reason = error.message if isinstance(error, DeepctlError) else atomic.storage_error(error).message
            notes.append(f"A deleted session has not been removed completely yet: {reason}")
    return notes
