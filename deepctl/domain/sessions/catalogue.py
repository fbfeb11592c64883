"""The sessions of a profile: finding, starting and describing them.

A session is the directory `sessions/<name>/`: `session.json` (one sealed line: the session's own random id, when
it began, which log is its head and from which checkpoint it was forked) and its message logs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from deepctl.domain import formats, layout, names, times
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import log
from deepctl.errors import Damaged, DeepctlError, Refused, SessionNotFound
from deepctl.files import durable, removing, sealed

FORMAT = formats.SESSION.current
FIRST = "main"
"""The session a profile starts with."""

_RECORD = "session.json"
_TITLE_LENGTH = 80


class Session(NamedTuple):
    """Where a session is kept. `log` is the id of the log at its head, `forked_from` the checkpoint it began at."""

    name: str
    directory: str
    id: str
    created_at: str
    log: str
    forked_from: str | None = None


class Summary(NamedTuple):
    """One session as lists show it. `head` is the id of its latest checkpoint; `problem` why it cannot be read."""

    name: str
    created_at: str | None
    updated_at: str | None
    turns: int
    message_count: int
    head: str | None
    title: str
    damage: int = 0
    problem: str | None = None


def all_names(paths: ProfilePaths) -> list[str]:
    """The names of a profile's sessions, sorted: of the directories there that have the name of a session."""
    try:
        with os.scandir(paths.sessions) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if names.is_good(name))


def spelled(paths: ProfilePaths, name: str) -> str | None:
    """How the session called `name`, in whatever case, is spelled; `None` if there is none."""
    folded = names.fold(names.check(name, "session"))
    return next((entry for entry in all_names(paths) if names.fold(entry) == folded), None)


def latest(paths: ProfilePaths) -> str | None:
    """The name of the session that was written to last, or `None` if there is none yet."""
    return max(all_names(paths), key=lambda name: _written(os.path.join(paths.sessions, name)), default=None)


def newest_first(paths: ProfilePaths) -> list[str]:
    """The names of a profile's sessions, the one written to last first."""
    return sorted(all_names(paths), key=lambda name: _written(os.path.join(paths.sessions, name)), reverse=True)


def _written(directory: str) -> int:
    """When a session was written to, in nanoseconds: its record or the log at its head, as others may be shared."""
    try:
        files = [_RECORD, _load(directory).log + log.SUFFIX]
    except (DeepctlError, OSError):
        files = []
    newest = 0
    for file in files or os.listdir(directory):
        try:
            newest = max(newest, os.lstat(os.path.join(directory, file)).st_mtime_ns)
        except OSError:
            continue
    return newest


def find(paths: ProfilePaths, name: str) -> Session:
    """The session called `name`. Raises `SessionNotFound`, `Damaged` or `NewerFormat`."""
    found = spelled(paths, name)
    if found is None:
        raise SessionNotFound(name, paths.name)
    return _load(os.path.join(paths.sessions, found))


def _load(directory: str) -> Session:
    name = os.path.basename(directory)
    path = os.path.join(directory, _RECORD)
    try:
        record = sealed.unseal(durable.read_file(path).rstrip(b"\n"))
        formats.bring_up(formats.SESSION, record, path)
    except (FileNotFoundError, ValueError) as error:
        return _without_record(name, directory, str(error) if isinstance(error, ValueError) else "missing")
    match record:
        case {"id": str(identity), "created_at": str(at), "log": str(head)} if (
            log.is_id(head) and identity.isprintable()
        ):
            origin = record.get("forked_from")
            forked_from = origin if isinstance(origin, str) and origin.isprintable() else None
            return Session(name, directory, identity, times.known(at), head, forked_from)
        case _:
            return _without_record(name, directory, "not the record of a session")


def _without_record(name: str, directory: str, reason: str) -> Session:
    """A session whose record is gone, known by its only log; with several logs nobody can tell which is the head."""
    logs = [entry for entry in os.listdir(directory) if entry.endswith(log.SUFFIX)]
    if len(logs) != 1:
        raise Damaged(
            f"Session {name!r} is damaged: {os.path.join(directory, _RECORD)}: {reason}.",
            "Its message logs are still there, and so are the profile's other sessions.",
        )
    identity = logs[0].removesuffix(log.SUFFIX)
    first = next(iter(sealed.parse(durable.read_file(os.path.join(directory, logs[0])))), None)
    at = first.value.get("at") if first and first.value else None
    return Session(name, directory, identity, times.known(at), identity)


def start(paths: ProfilePaths, name: str) -> Session:
    """Begin a new session. The caller holds the profile's lock. Raises `Refused` if the name is taken."""
    return _begin(paths, name, lambda staging: None)


def fork(paths: ProfilePaths, name: str, source: str, origin: str, log_id: str, offset: int) -> Session:
    """Begin a new session that goes on from `offset` of a log in the directory `source`.

    The logs are shared by hard links, so nothing is copied and either can be deleted. `origin` is the checkpoint. The
    caller holds the profile's lock.
    """

    def share(staging: str) -> dict[str, Any]:
        for shared in log.chain(source, log_id, offset):
            path = log.log_path(staging, shared)
            try:
                os.link(log.log_path(source, shared), path)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
                    raise
                durable.write_file(path, durable.read_file(log.log_path(source, shared)))
        return {"log": log_id, "offset": offset}

    return _begin(paths, name, share, origin)


def bring(paths: ProfilePaths, name: str, lines: Iterable[bytes], created_at: str) -> Session:
    """Begin a session with a conversation from elsewhere: the lines of a log after its first one.

    It goes on in a log of its own, so that what came from elsewhere is not taken for a turn that was killed. The caller
    holds the profile's lock. Raises `Refused` if the name is taken.
    """

    def fill(staging: str) -> dict[str, Any]:
        brought = os.urandom(8).hex()
        raw = b"".join([sealed.seal(log.header(brought)), *lines])
        durable.write_file(log.log_path(staging, brought), raw)
        return {"log": brought, "offset": len(raw)}

    return _begin(paths, name, fill, created_at=created_at)


def _begin(
    paths: ProfilePaths,
    name: str,
    fill: Callable[[str], dict[str, Any] | None],
    origin: str | None = None,
    *,
    created_at: str | None = None,
) -> Session:
    if (taken := spelled(paths, name)) is not None:
        raise Refused(
            f"There is a session {taken!r} already.",
            f"`--session {taken}` continues it; choose another name for a new one.",
            code="session_exists",
        )
    durable.make_directory(paths.sessions)
    staging = os.path.join(paths.sessions, layout.NEW + names.fold(name))
    removing.make_anew(staging)
    identity, first_log = os.urandom(16).hex(), os.urandom(8).hex()
    durable.write_file(log.log_path(staging, first_log), sealed.seal(log.header(first_log, fill(staging))))
    directory = os.path.join(paths.sessions, name)
    session = Session(name, directory, identity, created_at or log.now(), first_log, origin)
    _write_record(session, staging)
    os.rename(staging, directory)
    with durable.after_commit(f"Session {name!r} is made"):
        durable.sync_directory(paths.sessions)
    return session


def branch(session: Session, log_id: str, parent: str, offset: int) -> Session:
    """Let a session go on in the log `log_id`, from `offset` of the log `parent`. Doing it again changes nothing.

    The old log stays. The caller holds the profile's lock.
    """
    if session.log == log_id:
        return session
    path = log.log_path(session.directory, log_id)
    if not os.path.exists(path):
        begins = {"log": parent, "offset": offset} if parent else None
        durable.write_file(path, sealed.seal(log.header(log_id, begins)))
    moved = session._replace(log=log_id)
    _write_record(moved, session.directory)
    return moved


def unbranch(session: Session, log_id: str, unused: str) -> None:
    """Let a session go on in the log `log_id` after all; the log `unused`, if it is another, goes."""
    _write_record(session._replace(log=log_id), session.directory)
    if unused != log_id:
        try:
            os.unlink(log.log_path(session.directory, unused))
        except FileNotFoundError:
            pass


def tidy(paths: ProfilePaths) -> None:
    """Remove what writers that were killed left. The caller holds the profile's lock."""
    for entry in _listed(paths.sessions):
        if entry.startswith(layout.NEW):
            removing.remove_tree(os.path.join(paths.sessions, entry))
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


def _write_record(session: Session, directory: str) -> None:
    record: dict[str, Any] = {
        "v": FORMAT,
        "id": session.id,
        "created_at": session.created_at,
        "log": session.log,
    }
    if session.forked_from is not None:
        record["forked_from"] = session.forked_from
    durable.write_file(os.path.join(directory, _RECORD), sealed.seal(record))


def free_name(paths: ProfilePaths) -> str:
    """A name for a new session that nobody gave one: `session-2`, `session-3`, …"""
    taken = {names.fold(entry) for entry in all_names(paths)}
    number = len(taken) + 1
    while f"session-{number}" in taken:
        number += 1
    return f"session-{number}"


def by_id(paths: ProfilePaths) -> dict[str, str]:
    """The names of a profile's sessions by their ids; those that cannot be read are left out.

    Raises `OSError` where the machine fails: a session is not gone for that.
    """
    found = {}
    for name in all_names(paths):
        try:
            found[_load(os.path.join(paths.sessions, name)).id] = name
        except DeepctlError:
            continue
        except OSError as error:
            if durable.is_of_machine(error):
                raise
    return found


def read(session: Session) -> log.Conversation:
    """The whole conversation of a session. Raises `Damaged` or `NewerFormat`."""
    return log.read(session.directory, session.log)


def summaries(paths: ProfilePaths, heads: Mapping[str, str]) -> list[Summary]:
    """All sessions of a profile, the one written to last first. Damage takes only its own session down.

    `heads` has the checkpoint at which each stands, by its id.
    """
    return [summary(paths, name, heads) for name in newest_first(paths)]


def summary(paths: ProfilePaths, name: str, heads: Mapping[str, str] = {}) -> Summary:
    """One session as lists show it; never raises for damage inside it."""
    try:
        session = find(paths, name)
        conversation = read(session)
    except SessionNotFound:
        raise
    except (DeepctlError, OSError) as error:
        return Summary(name, None, None, 0, 0, None, "", problem=str(error))
    return summarize(session, conversation, heads)


def summarize(session: Session, conversation: log.Conversation, heads: Mapping[str, str]) -> Summary:
    """The summary of a conversation that has been read already."""
    messages = conversation.messages
    return Summary(
        session.name,
        session.created_at,
        max(messages[-1].at, session.created_at) if messages else session.created_at,
        len({entry.turn for entry in messages}),
        len(messages),
        heads.get(session.id, session.forked_from),
        _title(conversation),
        len(conversation.damage),
    )


def _title(conversation: log.Conversation) -> str:
    for entry in conversation.messages:
        text = prompt(entry.message)
        if text is not None:
            line = " ".join(text.strip().partition("\n")[0].split())
            return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1] + "…"
    return ""


def parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message that are any."""
    found = message.get("parts")
    return [part for part in found if isinstance(part, dict)] if isinstance(found, list) else []


def prompt(message: dict[str, Any]) -> str | None:
    """The text the user typed, if this message is the request that brought it.

    Memory snapshots and other text that capabilities add are user-role parts too; they carry metadata.
    """
    if message.get("kind") != "request":
        return None
    for part in parts(message):
        if part.get("part_kind") != "user-prompt":
            continue
        content = part.get("content")
        if isinstance(content, str):
            return content
        texts = [item for item in content if isinstance(item, str)] if isinstance(content, list) else []
        if texts:
            return "\n".join(texts)
    return None
