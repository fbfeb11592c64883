"""To-do lists: one per session, in the workspace, so that they are checkpointed and rewound with everything else.

Up to 0.1 there was one list per profile. It belongs to the session that was used last, and becomes the list of that
session before the next turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from deepctl import layout
from deepctl.errors import Damaged
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.layout import ProfilePaths
from deepctl.store import log_file, session_catalogue
from deepctl.store.records import SessionRecord

if TYPE_CHECKING:
    from deepctl.store.ledger import Ledger
    from deepctl.store.object_store import ObjectReader
    from deepctl.store.records import Record

FORMAT = 1
MAX_BYTES = 1024 * 1024


class TodoItem(NamedTuple):
    """A step of a list; `status` is `pending`, `in_progress`, `completed`, `cancelled` or `blocked`."""

    content: str
    status: str


def parse(raw: bytes) -> list[dict[str, object]]:
    """The stored items of a list. Raises `ValueError` if the bytes are not a list."""
    if len(raw) > MAX_BYTES:
        raise ValueError("it is too large")
    match json.loads(raw):
        case {"version": int(version), "items": [*items]} if all(isinstance(item, dict) for item in items):
            if version > FORMAT:
                raise ValueError("it was written by a later version")
            return items
        case _:
            raise ValueError("it has no items")


def read(paths: ProfilePaths, session: SessionRecord) -> list[TodoItem] | None:
    """A session's list; empty if there is none, `None` if it cannot be read."""
    files = _files(paths)
    try:
        raw = _content(files, layout.todo_file(session.id)) if log_file.is_id(session.id) else None
        if raw is None and (old := _content(files, layout.TODO_FILE)) is not None:
            raw = old if owner(paths) == session.id else None
        items = parse(raw) if raw is not None else []
    except (OSError, ValueError, RecursionError):
        return None
    return [TodoItem(str(item.get("content", "")), str(item.get("status", "pending"))) for item in items]


def owner(paths: ProfilePaths, checkpoints: Ledger | None = None) -> str | None:
    """The id of the session that was used last; `None` without a session."""
    names = session_catalogue.by_id(paths)
    try:
        checkpoints = checkpoints or session_catalogue.read_ledger(paths)
    except Damaged:
        checkpoints = None
    for record in reversed(checkpoints.records.values() if checkpoints is not None else ()):
        if record.session in names:
            return record.session
    sessions = {name: identity for identity, name in names.items()}
    for name in session_catalogue.newest_first(paths):
        if name in sessions and session_catalogue.summary(paths, name).message_count:
            return sessions[name]
    return None


def old_lists_owner(paths: ProfilePaths, checkpoints: Ledger | None) -> SessionRecord | None:
    """The session that gets the one list of a profile of 0.1; `None` if there is no such list, or no such session."""
    identity = owner(paths, checkpoints) if has_shared_list(paths) else None
    if identity is None or not log_file.is_id(identity):
        return None
    return session_catalogue.find(paths, session_catalogue.by_id(paths)[identity])


def give(paths: ProfilePaths, session: SessionRecord) -> bool:
    """Give the one list of a profile to a session; returns whether that was done.

    It is not done if the session has its own list, or if the file is not a list: `doctor` reports it.
    """
    files = _files(paths)
    try:
        raw, own_content = files.read(layout.TODO_FILE), _content(files, layout.todo_file(session.id))
        if own_content not in (None, raw):
            return False
        parse(raw)
        files.write(layout.todo_file(session.id), raw)
        files.remove(layout.TODO_FILE)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def remove(paths: ProfilePaths, identity: str) -> None:
    """Remove the list of a deleted session, if it has one."""
    if log_file.is_id(identity):
        with suppress(OSError):
            _files(paths).remove(layout.todo_file(identity))


def remove_old(paths: ProfilePaths, checkpoints: Ledger, identity: str) -> None:
    """Remove the one list of a profile if it belongs to a session that is about to be deleted."""
    if has_shared_list(paths) and owner(paths, checkpoints) == identity:
        with suppress(OSError):
            _files(paths).remove(layout.TODO_FILE)


def copy(paths: ProfilePaths, objects: ObjectReader, record: Record, fork: SessionRecord) -> None:
    """Start the list of a fork with the list of its source at a checkpoint. Raises `Damaged` or `OSError`."""
    for path in (layout.todo_file(record.session), layout.TODO_FILE) if record.tree else ():
        raw = _kept(objects, bytes.fromhex(record.tree), path)
        if raw is not None:
            _files(paths).write(layout.todo_file(fork.id), raw)
            return


def _kept(objects: ObjectReader, tree: bytes, path: str) -> bytes | None:
    """The content of a file in a tree, or `None`."""
    from deepctl.store.trees import FILE, entry_at

    entry = entry_at(objects, tree, path.encode())
    return objects.read(entry.digest) if entry is not None and entry.kind == FILE else None


def has_shared_list(paths: ProfilePaths) -> bool:
    """Whether there is still one list for all sessions."""
    return _is_there(_files(paths), layout.TODO_FILE)


def unreadable(paths: ProfilePaths) -> list[str]:
    """The files of lists that do not contain a valid list."""
    files = _files(paths)
    unreadable_paths = []
    for path in _listed(files):
        try:
            parse(files.read(path))
        except (OSError, ValueError, RecursionError):
            unreadable_paths.append(path)
    return unreadable_paths


def orphans(paths: ProfilePaths) -> list[str]:
    """The files of lists whose session does not exist."""
    try:
        session_files = {layout.todo_file(identity) for identity in session_catalogue.by_id(paths)}
    except OSError:
        return []  # other checks report the problem with the directory of the sessions
    return [path for path in _listed(_files(paths)) if path not in session_files]


def _listed(files: DirectoryTree) -> Sequence[str]:
    try:
        names = [entry.name for entry in files.entries(layout.TODO_DIRECTORY)]
    except OSError:
        return []
    return sorted(f"{layout.TODO_DIRECTORY}/{name}" for name in names if name.endswith(".json"))


def _content(files: DirectoryTree, path: str) -> bytes | None:
    try:
        return files.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_there(files: DirectoryTree, path: str) -> bool:
    try:
        files.entry(path)
    except OSError:
        return False
    return True


def _files(paths: ProfilePaths) -> DirectoryTree:
    return DirectoryTree(paths.workspace, follow=False)
