"""The sessions of a profile: finding, starting and describing them.

A session is the directory `sessions/<name>/` with its record and its message logs. The record, `session.json`, is one
sealed line: the session's own random id, the time of its start, the log at its head, the checkpoint from which it was
forked, and the position that its first log continues. If the record is damaged or missing, these fields are read from
ledger and logs as far as possible (`log_chain.recover_session`).

Forks share logs by hard links. A copy or an archive makes several files of one log, and each of them would then grow
separately. So if one file contains all of another, `join_logs` links both names to the same file again. This loses no
data, because logs are append-only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from deepctl import layout, quantities
from deepctl.errors import Damaged, DeepctlError, Refused, SessionNotFound
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import ledger, log_chain, log_file, session_reader
from deepctl.store.ledger import Ledger
from deepctl.store.log_chain import Chain
from deepctl.store.log_file import NO_LINKS, START, SUFFIX, Point, chain_digest, is_id, log_path, share
from deepctl.store.records import (
    SESSION_FORMAT,
    SESSION_RECORD,
    SessionBeginning,
    SessionProject,
    SessionRecord,
    begins_in,
    project_in,
)
from deepctl.store.session_reader import Outline, SessionReader

_LINK_STAGING = ".link."

FIRST = "main"
"""The name of a profile's first session."""


class SessionSummary(NamedTuple):
    """One session in the form for lists. `head` is the id of its latest checkpoint, `problem` the reason if it cannot
    be read. `project` is the id of the project in which it works.
    """

    name: str
    created_at: str | None
    updated_at: str | None
    turns: int
    message_count: int
    head: str | None
    title: str
    damage: int = 0
    problem: str | None = None
    project: str | None = None


def all_names(paths: ProfilePaths) -> list[str]:
    """The names of a profile's sessions, sorted: all directories with a valid name for a session."""
    try:
        with os.scandir(paths.sessions) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if layout.is_good_name(name))


def directories(paths: ProfilePaths) -> list[str]:
    """The directories of a profile's sessions."""
    return [os.path.join(paths.sessions, name) for name in all_names(paths)]


def stored_name(paths: ProfilePaths, name: str) -> str | None:
    """The stored spelling of the session called `name` (in any case); `None` if there is no such session."""
    folded_name = layout.folded_name(layout.check_name(name, "session"))
    return next((entry for entry in all_names(paths) if layout.folded_name(entry) == folded_name), None)


def latest_session(paths: ProfilePaths, project: str | None = None) -> str | None:
    """The name of the session that was used last in a project (an id), or in the private workspace without one.

    A session whose project cannot be read counts as private. `None` if there is no such session yet.
    """
    sessions = [_use(paths, name) for name in all_names(paths)]
    own = [session for session in sessions if session.project == project]
    return max(own, key=lambda session: session.written).name if own else None


def newest_first(paths: ProfilePaths, project: str | None = None) -> list[str]:
    """The names of a profile's sessions, the one that was used last first; only those of a project, by its id."""
    sessions = [_use(paths, name) for name in all_names(paths)]
    if project is not None:
        sessions = [session for session in sessions if session.project == project]
    return [session.name for session in sorted(sessions, key=lambda session: session.written, reverse=True)]


class _SessionUse(NamedTuple):
    """The last use of a session: the time in nanoseconds, and its project."""

    name: str
    written: int
    project: str | None


def _use(paths: ProfilePaths, name: str) -> _SessionUse:
    """The last write to a session's record or head log; other logs may be shared."""
    directory = os.path.join(paths.sessions, name)
    project = None
    try:
        session = load(directory)
        files = [SESSION_RECORD, session.log + SUFFIX]
        project = session.project.id if session.project is not None else None
    except (DeepctlError, OSError):
        files = []
    newest = 0
    for file in files or os.listdir(directory):
        try:
            newest = max(newest, os.lstat(os.path.join(directory, file)).st_mtime_ns)
        except OSError:
            continue
    return _SessionUse(name, newest, project)


def find(paths: ProfilePaths, name: str) -> SessionRecord:
    """The session called `name`. Raises `SessionNotFound`, `Damaged` or `NewerFormat`."""
    entry_name = stored_name(paths, name)
    if entry_name is None:
        raise SessionNotFound(name, paths.name)
    return load(os.path.join(paths.sessions, entry_name))


def start(paths: ProfilePaths, name: str, project: SessionProject | None = None) -> SessionRecord:
    """Begin a new session, in a project or in the workspace. The caller holds the profile's lock.

    Raises `Refused` if the name is taken.
    """
    return _begin(paths, name, lambda staging: None, project=project)


def fork(
    paths: ProfilePaths, name: str, source: Chain, origin: str, point: Point, project: SessionProject | None = None
) -> SessionRecord:
    """Start a new session that continues from a position in a log; `source` are the files of that conversation.

    The logs are shared by hard links, so nothing is copied, and either session can be deleted. `origin` is the
    checkpoint. The caller holds the profile's lock.
    """

    def fill(staging: str) -> Point:
        for link in source.links:
            share(link.path, os.path.join(staging, os.path.basename(link.path)))
        return point

    return _begin(paths, name, fill, origin, project=project)


def bring(paths: ProfilePaths, name: str, lines: Iterable[bytes], created_at: str) -> SessionRecord:
    """Start a session with an imported conversation: `lines` are the lines of a log after its first line.

    It continues in a second log, so that the imported messages do not look like a killed turn. The caller holds the
    profile's lock. Raises `Refused` if the name is taken.
    """

    def fill(staging: str) -> Point:
        log_id = os.urandom(8).hex()
        log_lines = [sealed_lines.seal(log_file.header(log_id)), *lines]
        digest = START
        for line in log_lines:
            digest = chain_digest(digest, line)
        raw = b"".join(log_lines)
        log_file.write_lines(log_path(staging, log_id), raw)
        return Point(log_id, len(raw), digest)

    return _begin(paths, name, fill, created_at=created_at)


def _begin(
    paths: ProfilePaths,
    name: str,
    fill: Callable[[str], Point | None],
    origin: str | None = None,
    *,
    created_at: str | None = None,
    project: SessionProject | None = None,
) -> SessionRecord:
    if (existing_name := stored_name(paths, name)) is not None:
        raise Refused(
            f"There is already a session {existing_name!r}.",
            f"`--session {existing_name}` continues it; choose another name for a new session.",
            code="session_exists",
        )
    atomic.make_directory(paths.sessions)
    staging = os.path.join(paths.sessions, layout.NEW + layout.folded_name(name))
    rmtree.make_anew(staging)
    identity, first_log = os.urandom(16).hex(), os.urandom(8).hex()
    continues = fill(staging)
    log_file.write_lines(log_path(staging, first_log), sealed_lines.seal(log_file.header(first_log, continues)))
    directory = os.path.join(paths.sessions, name)
    begins = SessionBeginning(first_log, continues) if continues is not None else None
    started_at = created_at or quantities.now()
    session = SessionRecord(name, directory, identity, started_at, first_log, origin, begins, project=project)
    write_record(session, staging)
    os.rename(staging, directory)
    with atomic.after_commit(f"Session {name!r} was created"):
        atomic.sync_directory(paths.sessions)
    return session


def branch(session: SessionRecord, log_id: str, parent: Point | None) -> SessionRecord:
    """Let a session continue in the log `log_id`, from the position `parent`. Repeating it changes nothing.

    The old log stays. The caller holds the profile's lock.
    """
    if session.log == log_id:
        return session
    path = log_path(session.directory, log_id)
    if not os.path.exists(path):
        log_file.write_lines(
            path, sealed_lines.seal(log_file.header(log_id, parent if parent and parent.log else None))
        )
    new_session = session._replace(log=log_id)
    write_record(new_session)
    return new_session


def unbranch(session: SessionRecord, log_id: str, unused_log: str) -> None:
    """Let a session continue in the log `log_id` again, and delete the log `unused_log` if it is a different one."""
    write_record(session._replace(log=log_id))
    if unused_log != log_id:
        try:
            os.unlink(log_path(session.directory, unused_log))
        except FileNotFoundError:
            pass


def tidy(paths: ProfilePaths) -> None:
    """Remove leftovers of killed writers. The caller holds the profile's lock."""
    for entry in _listed(paths.sessions):
        if entry.startswith(layout.NEW):
            rmtree.remove_tree(os.path.join(paths.sessions, entry))
    for name in all_names(paths):
        directory = os.path.join(paths.sessions, name)
        for entry in os.listdir(directory):
            if entry.startswith(".") and entry.endswith(".tmp"):
                os.unlink(os.path.join(directory, entry))


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def first_name(paths: ProfilePaths) -> str:
    """A free name for the first session in a directory: `main`, or as `free_name`."""
    return FIRST if stored_name(paths, FIRST) is None else free_name(paths)


def free_name(paths: ProfilePaths) -> str:
    """A free name for a new session: `session-2`, `session-3`, …"""
    folded_names = {layout.folded_name(entry) for entry in all_names(paths)}
    number = len(folded_names) + 1
    while f"session-{number}" in folded_names:
        number += 1
    return f"session-{number}"


def by_id(paths: ProfilePaths) -> dict[str, str]:
    """The names of a profile's sessions by their ids; unreadable sessions are left out.

    Raises `OSError` if the machine fails, because the session still exists then.
    """
    names = {}
    for name in all_names(paths):
        try:
            names[load(os.path.join(paths.sessions, name)).id] = name
        except DeepctlError:
            continue
        except OSError as error:
            if atomic.is_of_machine(error):
                raise
    return names


def read(session: SessionRecord) -> log_file.MessageList:
    """The whole conversation of a session. Raises `Damaged` or `NewerFormat`."""
    conversation = session_reader.read_log(session.directory, session.log)
    return session_reader.with_record_damage(session, conversation)


def summaries(paths: ProfilePaths, heads: Mapping[str, str]) -> list[SessionSummary]:
    """All sessions of a profile, the one that was used last first. Damage affects only its own session.

    `heads` has the checkpoint at which each session stands, by the session's id.
    """
    return [summary(paths, name, heads) for name in newest_first(paths)]


def summary(paths: ProfilePaths, name: str, heads: Mapping[str, str] = {}) -> SessionSummary:
    """One session in the form for lists; never raises for damage inside it."""
    try:
        session = find(paths, name)
        outline = SessionReader(paths, session, is_for_list=True).outline()
    except SessionNotFound:
        raise
    except (DeepctlError, OSError) as error:
        return SessionSummary(name, None, None, 0, 0, None, "", problem=str(error))
    return summarize(session, outline, heads)


def summarize(session: SessionRecord, outline: Outline, heads: Mapping[str, str]) -> SessionSummary:
    """The summary of a conversation that has been read already."""
    # Imported here: every list of profiles or checkpoints imports this module, and none of them has titles.
    from deepctl.store import session_titles

    return SessionSummary(
        session.name,
        session.created_at,
        max(outline.updated_at or "", session.created_at),
        outline.turns,
        outline.messages,
        heads.get(session.id, session.forked_from),
        session_titles.of_session(session, outline.title),
        outline.damage,
        project=session.project.id if session.project is not None else None,
    )


def join_logs(directories: Iterable[str]) -> list[str]:
    """Link the separate files of one log to one file again; returns the changed paths.

    Does nothing if the file system has no hard links. The caller holds the profile's lock.
    """
    shared_paths: list[str] = []
    for paths in parted_logs(directories).values():
        try:
            shared_paths += _joined(paths)
        except (OSError, Refused):
            continue
    return shared_paths


def parted_logs(directories: Iterable[str]) -> dict[str, list[str]]:
    """The logs with different files in several of the directories: the paths by file name."""
    inodes: dict[str, dict[str, int]] = {}
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and is_id(entry.name.removesuffix(SUFFIX)):
                        inodes.setdefault(entry.name, {})[entry.path] = entry.inode()
        except (FileNotFoundError, NotADirectoryError):
            continue
    return {name: sorted(paths) for name, paths in inodes.items() if len(set(paths.values())) > 1}


def _joined(paths: list[str]) -> list[str]:
    """Link these paths to the longest of their files, except for files with which it does not start."""
    longest = max(paths, key=lambda path: os.lstat(path).st_size)
    inode = os.lstat(longest).st_ino
    whole: bytes | None = None
    shared_paths: list[str] = []
    for path in paths:
        if os.lstat(path).st_ino == inode:
            continue
        temporary_path = os.path.join(os.path.dirname(path), f"{_LINK_STAGING}{os.path.basename(path)}.tmp")
        try:
            os.unlink(temporary_path)
        except FileNotFoundError:
            pass
        try:
            os.link(longest, temporary_path)
        except OSError as error:
            if error.errno in NO_LINKS or error.errno == errno.ENOSPC:
                return shared_paths
            raise
        whole = whole if whole is not None else atomic.read_file(longest)
        if whole.startswith(atomic.read_file(path)):
            os.rename(temporary_path, path)
            atomic.sync_directory(os.path.dirname(path))
            shared_paths.append(path)
        else:
            os.unlink(temporary_path)
    return shared_paths


def load(directory: str) -> SessionRecord:
    """The session in `directory`. Raises `Damaged` or `NewerFormat`."""
    name = os.path.basename(directory)
    path = os.path.join(directory, SESSION_RECORD)
    try:
        record = sealed_lines.unseal(log_file.documents(directory).read(SESSION_RECORD).rstrip(b"\n"))
        layout.bring_up(layout.SESSION_FORMAT, record, path)
    except (FileNotFoundError, ValueError) as error:
        return _without_record(name, directory, str(error) if isinstance(error, ValueError) else "missing")
    match record:
        case {"id": str(identity), "created_at": str(at), "log": str(head)} if is_id(head) and identity.isprintable():
            origin = record.get("forked_from")
            forked_from = origin if isinstance(origin, str) and origin.isprintable() else None
            return SessionRecord(
                name,
                directory,
                identity,
                quantities.known_time(at),
                head,
                forked_from,
                begins_in(record.get("begins")),
                project=project_in(record.get("project")),
            )
        case _:
            return _without_record(name, directory, "not the record of a session")


def _without_record(name: str, directory: str, reason: str) -> SessionRecord:
    session = log_chain.recover_session(name, directory, reason)
    if session is None:
        raise Damaged(
            f"Session {name!r} is damaged: {os.path.join(directory, SESSION_RECORD)}: {reason}.",
            "Its message logs still exist; `deepctl checkpoints repair` restores the conversation from the latest one.",
        )
    return session


def write_record(session: SessionRecord, directory: str | None = None) -> None:
    """Replace the record of a session, in its own directory or another. The caller holds the profile's lock."""
    record: dict[str, Any] = {
        "v": SESSION_FORMAT,
        "id": session.id,
        "created_at": session.created_at,
        "log": session.log,
    }
    if session.forked_from is not None:
        record["forked_from"] = session.forked_from
    if session.begins is not None:
        record["begins"] = {"log": session.begins.log, "continues": session.begins.continues._asdict()}
    if session.project is not None:
        record["project"] = session.project._asdict()
    log_file.documents(directory or session.directory).replace(SESSION_RECORD, sealed_lines.seal(record))


_DELETED = ".deleted-"


def put_away(paths: ProfilePaths, name: str, identity: str) -> str:
    """Rename the session spelled `name` in one step; from then on it counts as deleted. Returns its new path."""
    directory = os.path.join(paths.sessions, _DELETED + identity)
    os.rename(os.path.join(paths.sessions, name), directory)
    with atomic.after_commit("The session is deleted", atomic.FINISHED_NEXT):
        atomic.sync_directory(paths.sessions)
    return directory


def pending_deletions(paths: ProfilePaths) -> dict[str, str]:
    """The directories of deleted sessions that are not completely removed yet, by the ids of the sessions."""
    try:
        entries = os.listdir(paths.sessions)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        name.removeprefix(_DELETED): os.path.join(paths.sessions, name) for name in entries if name.startswith(_DELETED)
    }


def read_ledger(paths: ProfilePaths) -> Ledger:
    """The ledger of a profile, without the checkpoints of a session that is being deleted."""
    checkpoints = ledger.read(paths.checkpoints, paths.ledger_cache)
    if pending_ids := pending_deletions(paths):
        for record in [record for record in checkpoints.records.values() if record.session in pending_ids]:
            checkpoints.drop(record.id)
    return checkpoints
