"""A session as one document: all messages of the conversation, and no other data of this machine.

    {"version": 1, "kind": "deepctl session", "format": 2, "session": {"name", "created_at"},
     "messages": [{"turn", "at", "message"}], "damaged": [{"line", "reason"}], "sha256"}

The summary of a compaction also has `keeps`: see `deepctl.store.session_log`. Format 1 had no compactions.

The same session always gives the same bytes, in ASCII, one message per line. `sha256` is the hash of the other fields
in a canonical form (`digest`), so indentation and order of keys may change. `session_import` reads the document.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, NamedTuple

from deepctl import layout, quantities
from deepctl.layout import ProfilePaths
from deepctl.redaction import Redaction
from deepctl.store import export_target, projects, session_catalogue
from deepctl.store.log_file import Compaction, Message, MessageList
from deepctl.store.records import SessionRecord

KIND = "deepctl session"
VERSION = 1
FORMAT = layout.Format("session export", 2, key="format")


class LostLine(NamedTuple):
    """A line of the session's log that could not be read, and is not in the export."""

    line: int
    reason: str


class ExportDocument(NamedTuple):
    """The contents of an export. Times are RFC 3339 in UTC. `project` is the directory of the session's project."""

    name: str
    created_at: str
    messages: list[Message]
    damaged: list[LostLine] = []
    compactions: list[Compaction] = []
    project: str = ""


def export(paths: ProfilePaths, name: str) -> ExportDocument:
    """The session called `name` as it is now. Raises `SessionNotFound` or `Damaged`; damaged lines are only listed."""
    session = session_catalogue.find(paths, name)
    conversation = session_catalogue.read(session)
    messages = [entry._replace(message=_finite(entry.message)) for entry in conversation.messages]
    created_at = _created(session, conversation)
    project = projects.directory_of(paths, session.project) if session.project is not None else ""
    return ExportDocument(session.name, created_at, messages, _lost(conversation), conversation.compactions, project)


def _created(session: SessionRecord, conversation: MessageList) -> str:
    """The time of a session's start; if its record is damaged, the time of its first message."""
    if session.created_at != quantities.UNKNOWN_TIME:
        return session.created_at
    return next((entry.at for entry in conversation.messages), quantities.UNKNOWN_TIME)


def _lost(conversation: MessageList) -> list[LostLine]:
    """The damaged lines. A line that a kill cut short does not count."""
    return [LostLine(damage.line, damage.reason) for damage in conversation.damage if not damage.torn]


def _finite(value: Any) -> Any:
    """`value` with null for numbers that JSON does not have (NaN and the infinities)."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def redact(export: ExportDocument, redaction: Redaction) -> ExportDocument:
    """The same without secrets and home directories, in every string; `redaction` counts them."""
    name = redaction.text(export.name)
    return export._replace(
        name=name if layout.is_good_name(name) else "redacted",
        messages=[entry._replace(message=redaction.value(entry.message)) for entry in export.messages],
        damaged=[damage._replace(reason=redaction.text(damage.reason)) for damage in export.damaged],
        project=redaction.text(export.project),
    )


def as_json(export: ExportDocument) -> str:
    """The document, with a newline at its end."""
    head = {
        "version": VERSION,
        "kind": KIND,
        FORMAT.key: FORMAT.current,
        "session": {
            "name": export.name,
            "created_at": export.created_at,
            **({"project": export.project} if export.project else {}),
        },
    }
    messages = [entry._asdict() for entry in export.messages]
    for compaction in export.compactions:
        # A damaged log may have fewer messages than the compaction kept.
        messages[compaction.place]["keeps"] = min(compaction.keeps, compaction.place)
    damage_list = [damage._asdict() for damage in export.damaged]
    checksum = digest({**head, "messages": messages, "damaged": damage_list})
    lines = ",\n".join(json.dumps(message, allow_nan=False) for message in messages)
    return (
        f'{json.dumps(head)[:-1]}, "messages": [{f"{chr(10)}{lines}{chr(10)}" if lines else ""}], '
        f'"damaged": {json.dumps(damage_list)}, "sha256": "{checksum}"}}\n'
    )


def digest(document: dict[str, Any]) -> str:
    """SHA-256 over a document without its `sha256`: as ASCII JSON with sorted keys and no blanks."""
    other_fields = {key: value for key, value in document.items() if key != "sha256"}
    canonical = json.dumps(other_fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write(path: str, content: bytes, *, replace: bool) -> str:
    """Write an export to a private file, completely or not at all. Returns its absolute path.

    Raises the errors of `export_target.open_target`; `export_target.check` checks the path beforehand.
    """
    with export_target.open_target(path, force=replace) as file:
        file.write(content)
    return export_target.absolute(path)


def lost_note(export: ExportDocument) -> str | None:
    """A note about lines that the export does not contain; `None` if it is complete."""
    if not export.damaged:
        return None
    lines = ", ".join(str(damage.line) for damage in export.damaged[:5]) + (", …" if len(export.damaged) > 5 else "")
    return f"Session {export.name} is damaged. The export does not contain line {lines} of its log, and says so."
