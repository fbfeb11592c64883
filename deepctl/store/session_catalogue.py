"""The sessions of a profile: finding, starting and describing them.

A session is the directory `sessions/<name>/`: `session.json` (one sealed line: the session's own random id, when
it began, which log is its head, from which checkpoint it was forked, and what its first log continues) and its message
logs. Where that line is damaged, the ledger and the logs tell all of it (`recovering`).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from deepctl import formats, layout, names, times
from deepctl.errors import Damaged, DeepctlError, Refused, SessionNotFound
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import session_log
from deepctl.store.log_chain import START, Chain, Point, chained

FORMAT = formats.SESSION.current
FIRST = "main"
"""The session a profile starts with."""

RECORD = "session.json"
"""The file with what a session is, in its directory."""
_TITLE_LENGTH = 80


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


def directories(paths: ProfilePaths) -> list[str]:
    """Where the sessions of a profile are kept."""
    return [os.path.join(paths.sessions, name) for name in all_names(paths)]


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
        files = [RECORD, _load(directory).log + session_log.SUFFIX]
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
    path = os.path.join(directory, RECORD)
    try:
        record = sealed_lines.unseal(atomic.read_file(path).rstrip(b"\n"))
        formats.bring_up(formats.SESSION, record, path)
    except (FileNotFoundError, ValueError) as error:
        return _without_record(name, directory, str(error) if isinstance(error, ValueError) else "missing")
    match record:
        case {"id": str(identity), "created_at": str(at), "log": str(head)} if (
            session_log.is_id(head) and identity.isprintable()
        ):
            origin = record.get("forked_from")
            forked_from = origin if isinstance(origin, str) and origin.isprintable() else None
            begins = begins_of(record.get("begins"))
            return Session(name, directory, identity, times.known(at), head, forked_from, begins)
        case _:
            return _without_record(name, directory, "not the record of a session")


def begins_of(value: object) -> Begins | None:
    """What the record of a session says of where it goes on from."""
    match value:
        case {"log": str(first), "continues": {"log": str(other), "offset": int(offset), "digest": str(digest)}}:
            return Begins(first, Point(other, offset, digest))
        case _:
            return None


def _without_record(name: str, directory: str, reason: str) -> Session:
    """A session whose record is damaged or gone, as the ledger and the logs tell of it."""
    from deepctl.store.session_recovery import recovered

    found = recovered(name, directory, reason)
    if found is None:
        raise Damaged(
            f"Session {name!r} is damaged: {os.path.join(directory, RECORD)}: {reason}.",
            "Its message logs are still there; `deepctl checkpoints repair` makes the latest its conversation.",
        )
    return found


def start(paths: ProfilePaths, name: str) -> Session:
    """Begin a new session. The caller holds the profile's lock. Raises `Refused` if the name is taken."""
    return _begin(paths, name, lambda staging: None)


def fork(paths: ProfilePaths, name: str, source: Chain, origin: str, point: Point) -> Session:
    """Begin a new session that goes on from a position in a log, which `source` has the files of.

    The logs are shared by hard links, so nothing is copied and either can be deleted. `origin` is the checkpoint. The
    caller holds the profile's lock.
    """

    def fill(staging: str) -> Point:
        for shared in source.links:
            share(shared.path, os.path.join(staging, os.path.basename(shared.path)))
        return point

    return _begin(paths, name, fill, origin)


def share(source: str, target: str) -> None:
    """Give a file another name; where there are no hard links, a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)
"""Why a file system makes no hard link."""


def bring(paths: ProfilePaths, name: str, lines: Iterable[bytes], created_at: str) -> Session:
    """Begin a session with a conversation from elsewhere: the lines of a log after its first one.

    It goes on in a log of its own, so that what came from elsewhere is not taken for a turn that was killed. The caller
    holds the profile's lock. Raises `Refused` if the name is taken.
    """

    def fill(staging: str) -> Point:
        brought = os.urandom(8).hex()
        written = [sealed_lines.seal(session_log.header(brought)), *lines]
        digest = START
        for line in written:
            digest = chained(digest, line)
        raw = b"".join(written)
        atomic.write_file(session_log.log_path(staging, brought), raw)
        return Point(brought, len(raw), digest)

    return _begin(paths, name, fill, created_at=created_at)


def _begin(
    paths: ProfilePaths,
    name: str,
    fill: Callable[[str], Point | None],
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
    atomic.make_directory(paths.sessions)
    staging = os.path.join(paths.sessions, layout.NEW + names.fold(name))
    rmtree.make_anew(staging)
    identity, first_log = os.urandom(16).hex(), os.urandom(8).hex()
    continues = fill(staging)
    atomic.write_file(
        session_log.log_path(staging, first_log), sealed_lines.seal(session_log.header(first_log, continues))
    )
    directory = os.path.join(paths.sessions, name)
    begins = Begins(first_log, continues) if continues is not None else None
    session = Session(name, directory, identity, created_at or session_log.now(), first_log, origin, begins)
    _write_record(session, staging)
    os.rename(staging, directory)
    with atomic.after_commit(f"Session {name!r} is made"):
        atomic.sync_directory(paths.sessions)
    return session


def branch(session: Session, log_id: str, parent: Point | None) -> Session:
    """Let a session go on in the log `log_id`, from the position `parent`. Doing it again changes nothing.

    The old log stays. The caller holds the profile's lock.
    """
    if session.log == log_id:
        return session
    path = session_log.log_path(session.directory, log_id)
    if not os.path.exists(path):
        atomic.write_file(
            path, sealed_lines.seal(session_log.header(log_id, parent if parent and parent.log else None))
        )
    moved = session._replace(log=log_id)
    _write_record(moved, session.directory)
    return moved


def unbranch(session: Session, log_id: str, unused: str) -> None:
    """Let a session go on in the log `log_id` after all; the log `unused`, if it is another, goes."""
    _write_record(session._replace(log=log_id), session.directory)
    if unused != log_id:
        try:
            os.unlink(session_log.log_path(session.directory, unused))
        except FileNotFoundError:
            pass


def tidy(paths: ProfilePaths) -> None:
    """Remove what writers that were killed left. The caller holds the profile's lock."""
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


def write_anew(session: Session) -> None:
    """Put the record of a session whose own is damaged in its place. The caller holds the profile's lock."""
    _write_record(session, session.directory)


def _write_record(session: Session, directory: str) -> None:
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
    atomic.write_file(os.path.join(directory, RECORD), sealed_lines.seal(record))


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
            if atomic.is_of_machine(error):
                raise
    return found


def read(session: Session) -> session_log.MessageList:
    """The whole conversation of a session. Raises `Damaged` or `NewerFormat`."""
    found = session_log.read(session.directory, session.log)
    if session.damage is None:
        return found
    return found._replace(damage=[session_log.LogDamage(RECORD, 1, session.damage, False), *found.damage])


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


def summarize(session: Session, conversation: session_log.MessageList, heads: Mapping[str, str]) -> Summary:
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


def _title(conversation: session_log.MessageList) -> str:
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
