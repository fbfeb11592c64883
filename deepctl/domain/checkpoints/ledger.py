"""The ledger: what checkpoints there are, as an append-only file of sealed lines.

`checkpoints/ledger.jsonl` holds a line for everything that happened to checkpoints, each synced before it counts:

- `{v, record: {…}}`: a checkpoint was made;
- `{v, label: {id, label}}`: one got a name, or lost it (`null`);
- `{v, removed: [id, …]}`: some are gone;
- `{v, rewind: {…}}`: a rewind is about to change the workspace; `{v, rewound: id}`: it is done.

So a rewind that a kill interrupted is one without its second line, and the whole history of what was rewound, and how
to take it back, is here.

A line that a kill cut short never happened; a damaged one takes only itself down.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from deepctl.domain import names
from deepctl.errors import BadName, NewerFormat, Refused
from deepctl.files import durable, sealed

FORMAT = 1
KINDS = ("turn", "tool", "manual", "rewind")

_LEDGER = "ledger.jsonl"
_ID = re.compile(rb'"id":"([0-9a-f]{16})"')
_LIKE_AN_ID = re.compile(r"[0-9a-f]{4,}", re.IGNORECASE)


class Record(NamedTuple):
    """One checkpoint. Times are RFC 3339 in UTC, sizes bytes, hashes lower-case hex.

    `log` and `offset` say where the conversation stands, `tree` what the workspace is. `parent` is the checkpoint
    before it in its session; `previous` the one before it in the workspace, whichever session's, and `author` who
    changed the workspace in between: `agent`, or `other` for anybody else. `unkept` lists paths and reasons.
    """

    id: str
    kind: str
    session: str
    turn: int
    created_at: str
    log: str
    offset: int
    message_count: int
    parent: str | None
    previous: str | None
    author: str
    tree: str
    files: int
    bytes: int
    added_bytes: int
    prompt: str
    unkept: list[list[str]]


class Rewind(NamedTuple):
    """One rewind: from the checkpoint `safety`, made just before it, to the checkpoint `to`, of the session `session`.

    `tree` is what the workspace becomes and `log` the id of the log in which the session goes on.
    """

    id: str
    at: str
    session: str
    safety: str
    to: str
    tree: str
    log: str


class Damage(NamedTuple):
    """One line that could not be used. `id` is the checkpoint's if it can still be told."""

    id: str | None
    line: int
    reason: str


class Ledger(NamedTuple):
    """What the ledger says: records and rewinds in the order they were made, labels by checkpoint, what is damaged.

    `heads` is the checkpoint at which each session stands, and `unfinished` the rewind that a kill interrupted.
    """

    records: dict[str, Record]
    labels: dict[str, str]
    rewinds: dict[str, Rewind]
    heads: dict[str, str]
    damage: list[Damage]
    unfinished: Rewind | None = None

    def line_of(self, session: str) -> list[Record]:
        """The checkpoints that led to where a session stands, the latest first; what was rewound is not among them."""
        found = []
        seen: set[str] = set()
        identity = self.heads.get(session)
        while identity is not None and identity not in seen and identity in self.records:
            seen.add(identity)
            found.append(self.records[identity])
            identity = found[-1].parent
        return found

    def labelled(self, label: str) -> Record | None:
        """The checkpoint of that name, in whatever case."""
        folded = names.fold(label)
        found = next((identity for identity, given in self.labels.items() if names.fold(given) == folded), None)
        return self.records.get(found) if found is not None else None


def new_id() -> str:
    """A random id: 16 hex digits, so that four of them nearly always tell two apart."""
    return os.urandom(8).hex()


def check_label(label: str) -> str:
    """`label` if it may be one: a name that does not look like an id. Raises `BadName`."""
    names.check(label, "label")
    if _LIKE_AN_ID.fullmatch(label):
        raise BadName(f"{label!r} looks like the id of a checkpoint.", "A label has a letter after f, or a dash.")
    return label


def read(directory: str) -> Ledger:
    """The ledger below `directory`; empty if there is none. Raises `NewerFormat`."""
    path = os.path.join(directory, _LEDGER)
    try:
        raw = durable.read_file(path)
    except FileNotFoundError:
        raw = b""
    found = Ledger({}, {}, {}, {}, [])
    start = 0
    for line in sealed.parse(raw):
        if line.value is None:
            identity = _ID.search(raw, start, line.end)
            torn = line.problem == "cut short"
            if not torn:
                known = identity[1].decode() if identity else None
                found.damage.append(Damage(known, line.number, line.problem or "unreadable"))
        else:
            found = _applied(found, line, path)
        start = line.end
    return found


def _applied(ledger: Ledger, line: sealed.Line, path: str) -> Ledger:
    match line.value:
        case {"v": int(version)} if version > FORMAT:
            raise NewerFormat(path, version, FORMAT)
        case {"record": dict(fields)} if fields.keys() == set(Record._fields):
            record = Record(**fields)
            ledger.records[record.id] = record
            ledger.heads[record.session] = record.id
        case {"rewind": dict(fields)} if fields.keys() == set(Rewind._fields):
            rewind = Rewind(**fields)
            ledger.rewinds[rewind.id] = rewind
            return ledger._replace(unfinished=rewind)
        case {"rewound": str(identity)} if identity in ledger.rewinds:
            ledger.heads[ledger.rewinds[identity].session] = ledger.rewinds[identity].to
            return ledger._replace(unfinished=None)
        case {"label": {"id": str(identity), "label": str(label)}}:
            ledger.labels[identity] = label
        case {"label": {"id": str(identity), "label": None}}:
            ledger.labels.pop(identity, None)
        case {"removed": list(identities)}:
            for identity in identities:
                ledger.records.pop(identity, None)
                ledger.labels.pop(identity, None)
        case _:
            ledger.damage.append(Damage(None, line.number, "not an entry of a ledger"))
    return ledger


class Writer:
    """Adds to the ledger below `directory`, and keeps `ledger` what it says. The caller holds the profile's lock."""

    def __init__(self, directory: str) -> None:
        durable.make_root(directory)
        self._path = os.path.join(directory, _LEDGER)
        durable.make_private_file(self._path)
        self._appender = sealed.Appender(self._path)
        self.ledger = read(directory)

    def add(self, record: Record) -> None:
        """A checkpoint was made; everything it points at is on disk already."""
        self._append({"record": record._asdict()})

    def label(self, identity: str, label: str | None) -> None:
        """Name a checkpoint, or take its name away. Raises `BadName`, or `Refused` if another has that name."""
        if label is not None:
            taken = self.ledger.labelled(check_label(label))
            if taken is not None and taken.id != identity:
                raise Refused(f"Checkpoint {taken.id} is labelled {label!r} already.", code="label_exists")
        self._append({"label": {"id": identity, "label": label}})

    def remove(self, identities: list[str]) -> None:
        """Checkpoints are gone. What only they pointed at is rubbish from now on."""
        self._append({"removed": identities})

    def begin(self, rewind: Rewind) -> None:
        """A rewind is about to change the workspace; all it needs is on disk."""
        self._append({"rewind": rewind._asdict()})

    def finish(self, rewind: Rewind) -> None:
        """The workspace and the session are what the rewind made of them."""
        self._append({"rewound": rewind.id})

    def _append(self, entry: dict[str, Any]) -> None:
        end = self._appender.append({"v": FORMAT, **entry})
        self.ledger = _applied(self.ledger, sealed.Line(0, end, {"v": FORMAT, **entry}, None), self._path)

    def close(self) -> None:
        self._appender.close()
