"""The records: checkpoints, rewinds, the states of a workspace that they form, and sessions."""

from __future__ import annotations

import os
import re
from types import NoneType
from typing import Any, NamedTuple, TypeVar

from deepctl import layout, quantities
from deepctl.errors import BadName
from deepctl.store.log_file import Point

SESSION_FORMAT = layout.SESSION_FORMAT.current
SESSION_RECORD = "session.json"
"""The file with the record of a session, in its directory."""

AGENT, OTHER, UNKNOWN = "agent", "other", "unknown"

_LIKE_AN_ID = re.compile(r"[0-9a-f]{4,}", re.IGNORECASE)


class Record(NamedTuple):
    """One checkpoint. Times are RFC 3339 in UTC, sizes bytes, hashes lower-case hex.

    `log`, `offset` and `message_count` are the position of the conversation, `turn` is its number of turns, and
    `prompt` the start of the last prompt. `tree` is the workspace, empty if it was not stored. `author` is the author
    of the changes since the checkpoint before: `agent` for the session's own turn, `other` for another author, or
    `unknown`. `parent` is the checkpoint before it in its session. `pack` contains its new objects, in `added_bytes`.
    `unkept` lists paths and reasons, `exclude` the patterns of left out files. `digest` ties the offset to the lines
    before it (`deepctl.store.log_chain`); 0.1 wrote none. `lost` is the loss that a repair found.

    `project` is the id of the session's project, empty for the workspace of the profile. `git` has the `head` and the
    `branch` of its repository (`deepctl.files.git.GitHead`); it is empty without one. `not_covered` are changed paths
    that no checkpoint covers: the first `MOST_NOT_COVERED` of them, and `not_covered_count` is their number.
    """

    id: str
    kind: str
    session: str
    turn: int
    created_at: str
    log: str
    offset: int
    message_count: int
    author: str
    tree: str = ""
    parent: str | None = None
    files: int = 0
    bytes: int = 0
    added_bytes: int = 0
    pack: str = ""
    prompt: str = ""
    label: str = ""
    unkept: list[list[str]] = []
    exclude: list[str] = []
    metadata: dict[str, Any] = {}
    digest: str = ""
    lost: str = ""
    project: str = ""
    git: dict[str, str] = {}
    not_covered: list[str] = []
    not_covered_count: int = 0

    @property
    def point(self) -> Point:
        """The position of the conversation."""
        return Point(self.log, self.offset, self.digest)

    @property
    def has_lost_conversation(self) -> bool:
        """Whether the conversation is lost."""
        return self.lost in (CONVERSATION, BOTH)

    @property
    def has_lost_files(self) -> bool:
        """Whether the files are lost."""
        return self.lost in (FILES, BOTH)


MOST_NOT_COVERED = 200

LAST_TOOL = "last_tool"
"""The key in `Record.metadata` with the name of the tool that changed the workspace before the checkpoint."""
STOPPED = "stopped"
"""The key in `Record.metadata` of a turn that did not end by itself: the code of its error, or `KILLED`."""
KILLED = "killed"
COMMAND = "execute"
"""The name of the tool that runs commands."""
MCP_SEPARATOR = "__"
"""A part of the name of every tool of an MCP server, and of no other tool."""

CONVERSATION, FILES, BOTH = "conversation", "files", "conversation and files"
"""The possible losses of a checkpoint."""


class Rewind(NamedTuple):
    """One rewind of the session `session`: from the checkpoint `safety`, made just before it, to the checkpoint `to`.

    `only` is the rewound part, empty for everything. `tree` is the new workspace, `log` the id of the log in which the
    session continues, and `head` the checkpoint at which it stands then. `pack` contains its new objects. `root` is the
    workspace of an application; a profile has its own.
    """

    id: str
    at: str
    session: str
    safety: str
    to: str
    only: str
    tree: str
    log: str
    head: str
    pack: str = ""
    root: str = ""


_Checked = TypeVar("_Checked", Record, Rewind)


class WorkspaceState(NamedTuple):
    """The workspace at one time, after a checkpoint or a rewind (`id`), and the author of its changes.

    `by` is a session, empty for another author, `None` if it is unknown. `merged` has the authors by path if
    checkpoints in between were removed: `[by, [path, …]]`.
    """

    id: str
    tree: str
    by: str | None
    unkept: list[list[str]]
    exclude: list[str]
    merged: list[tuple[str | None, list[str]]]


def state_author(author: str, session: str) -> str | None:
    """`WorkspaceState.by` for the `author` of a record of `session`."""
    return {AGENT: session, OTHER: ""}.get(author)


class Position(NamedTuple):
    """A point in a conversation: the session's id, turns and messages up to there, position, last prompt.

    `tied` is a position in that log with its digest; one of another offset does not count.
    """

    session: str
    turn: int
    log: str
    offset: int
    message_count: int
    prompt: str
    tied: Point | None = None

    @property
    def digest(self) -> str:
        """The digest of the lines before the offset, empty if it is unknown."""
        tied = self.tied
        return tied.digest if tied is not None and (tied.log, tied.offset) == (self.log, self.offset) else ""


class RecordDamage(NamedTuple):
    """One line that could not be used. `id` is the checkpoint's if it is still readable."""

    id: str | None
    line: int
    reason: str


def _shapes(kind: Any, **other_types: type) -> set[tuple[type, ...]]:
    """The types of the fields of a `Record` or `Rewind`: text except `other_types`, and a `parent` or none."""
    fields: tuple[str, ...] = kind._fields
    return {tuple({**other_types, "parent": parent}.get(name, str) for name in fields) for parent in (str, NoneType)}


_SHAPES: dict[type, set[tuple[type, ...]]] = {
    Record: _shapes(
        Record,
        turn=int,
        offset=int,
        message_count=int,
        files=int,
        bytes=int,
        added_bytes=int,
        unkept=list,
        exclude=list,
        metadata=dict,
        git=dict,
        not_covered=list,
        not_covered_count=int,
    ),
    Rewind: _shapes(Rewind),
}


_KINDS = ("turn", "tool", "manual", "rewind")
_LARGEST = 1 << 63
_TREE = re.compile(r"([0-9a-f]{64})?")


def check_fields(value: _Checked) -> _Checked:
    """A record or rewind with valid fields; an invalid time becomes the unknown time.

    Raises `TypeError` for a field of another type, and `ValueError` for a path in the place of an id, for an
    unprintable id, and for an impossible number or kind.
    """
    if tuple(map(type, value)) not in _SHAPES[type(value)]:
        raise TypeError("a field is not of its type")
    if "/" in value.log or "/" in value.pack:
        # Ids become names of files, so the author of this line must not choose the path.
        raise ValueError("a path in the place of an id")
    if _TREE.fullmatch(value.tree) is None:
        raise ValueError("a tree that is not a hash")
    if isinstance(value, Rewind):
        ids = (value.id, value.session, value.safety, value.to, value.only, value.log, value.head, value.pack)
        if not "".join(ids).isprintable():
            raise ValueError("an id that cannot be printed")
        return value if quantities.is_time(value.at) else value._replace(at=quantities.UNKNOWN_TIME)
    _check_record(value)
    return value if quantities.is_time(value.created_at) else value._replace(created_at=quantities.UNKNOWN_TIME)


def _check_record(record: Record) -> None:
    ids = (record.id, record.session, record.log, record.author, record.parent or "", record.pack)
    if not "".join(ids).isprintable():
        raise ValueError("an id that cannot be printed")
    if record.kind not in _KINDS:
        raise ValueError("an unknown kind of checkpoint")
    sizes = (record.files, record.bytes, record.added_bytes, record.not_covered_count)
    numbers = (record.turn, record.offset, record.message_count, *sizes)
    if min(numbers) < 0 or max(numbers) >= _LARGEST:
        raise ValueError("a number that nothing has")
    if record.unkept and not all(
        type(item) is list and len(item) == 2 and type(item[0]) is type(item[1]) is str for item in record.unkept
    ):
        raise TypeError("not a list of paths and reasons")
    if not all(type(item) is str for item in (*record.exclude, *record.not_covered)):
        raise TypeError("not a list of patterns or paths")
    if record.project and not is_project_id(record.project):
        raise ValueError("an id that no project has")
    if record.git and not (
        record.git.keys() == {"head", "branch"} and all(type(value) is str for value in record.git.values())
    ):
        raise TypeError("not a head and a branch")


def new_id() -> str:
    """A random id: 16 hex digits, so that four of them nearly always distinguish two."""
    return os.urandom(8).hex()


def is_id(text: str) -> bool:
    """Whether `text` is an id as `new_id` makes them; an application's own may look different."""
    return re.fullmatch(r"[0-9a-f]{16}", text) is not None


def check_label(label: str) -> str:
    """`label` if it is valid: a name that does not look like an id. Raises `BadName`."""
    layout.check_name(label, "label")
    if _LIKE_AN_ID.fullmatch(label):
        raise BadName(
            f"{label!r} looks like the id of a checkpoint.", "Use a letter from g to z, or a dash, in the label."
        )
    return label


class SessionBeginning(NamedTuple):
    """The position that the first log of a session continues; its first line has it too, and may be damaged."""

    log: str
    continues: Point


class SessionProject(NamedTuple):
    """The project of a session: its id, and its directory when the record was written.

    `projects.json` has the present directory (`deepctl.store.projects`). The path is empty if only the id is known.
    """

    id: str
    path: str


_PROJECT_ID = re.compile(r"[0-9a-f]{8}")


def is_project_id(text: str) -> bool:
    """Whether `text` is the id of a project; it becomes a name in trees."""
    return _PROJECT_ID.fullmatch(text) is not None


def project_in(value: object) -> SessionProject | None:
    """The project in the record of a session."""
    match value:
        case {"id": str(identity), "path": str(path)} if is_project_id(identity):
            return SessionProject(identity, path if os.path.isabs(path) else "")
        case _:
            return None


class SessionRecord(NamedTuple):
    """The record of a session. `log` is the id of the log at its head, `forked_from` the checkpoint at which it
    started.

    `begins` is the position that it continues, if that is known. `damage` is the problem of its record, if its fields
    come from other files. `project` is the directory in which it works, `None` for the workspace of the profile.
    """

    name: str
    directory: str
    id: str
    created_at: str
    log: str
    forked_from: str | None = None
    begins: SessionBeginning | None = None
    damage: str | None = None
    project: SessionProject | None = None


def begins_in(value: object) -> SessionBeginning | None:
    """The position in the record of a session at which it started."""
    match value:
        case {"log": str(first), "continues": {"log": str(parent), "offset": int(offset), "digest": str(digest)}}:
            return SessionBeginning(first, Point(parent, offset, digest))
        case _:
            return None
