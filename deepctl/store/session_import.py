"""Importing a session from an export. All data is checked before anything is created.

A file that is not an export is the caller's mistake (`UsageError`, `bad_file`). An export that has changed, or has
invalid values, is damage. No data of the file is trusted without the checks here; the agent layer checks whether the
messages are valid (`deepctl.agent.message_codec.check`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

from deepctl import layout, quantities
from deepctl.cancellation import interruptible
from deepctl.errors import BadName, Damaged, NewerFormat, NotFound, Refused, UsageError
from deepctl.layout import ProfilePaths
from deepctl.store import session_catalogue, session_log
from deepctl.store.log_file import Compaction, Message
from deepctl.store.records import SessionRecord
from deepctl.store.session_export import FORMAT, KIND, VERSION, ExportDocument, LostLine, digest

MAX_BYTES = 256 << 20
MAX_MESSAGES = 250_000
MAX_VALUES = 16_000_000
MAX_DEPTH = 200
"""Maximum nesting; pydantic itself cannot write a deeper message."""
_MAX_DIGITS = 300
_MAX_TURN = 1_000_000_000

_MARK = re.compile(rb'"kind"\s*:\s*"deepctl session"')
_BEGINS = 400
"""The number of first bytes of an export that contain its kind."""


def read(source: str | BinaryIO) -> bytes:
    """The bytes of a file or an open stream, at most `MAX_BYTES + 1`. Raises `NotFound` or `UsageError`."""
    if not isinstance(source, str):
        return interruptible(source).read(MAX_BYTES + 1)
    try:
        # The file may also be a pipe from the shell, such as `<(…)`.
        with open(source, "rb") as file:
            return interruptible(file).read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"There is no file {source!r}.", code="file_not_found") from None
    except (IsADirectoryError, ValueError):
        raise _foreign(repr(source), "it is not a file") from None


def parse(raw: bytes, subject: str) -> ExportDocument:
    """The session in an export; `subject` names the file. Raises `UsageError`, `Damaged` or `NewerFormat`."""
    document = _document(raw, subject)
    for form in (layout.Format("export", VERSION, key="version"), FORMAT):
        try:
            version = layout.format_number(form, document)
        except layout.BadVersion:
            raise _damaged(subject, "it does not name its format") from None
        if version > form.current:
            raise NewerFormat(subject, version, form.current)
    _check_depth(document, subject)
    if document.get("sha256") != digest(document):
        raise _damaged(subject, "its checksum does not match")
    return _export(document, subject)


def _damaged(subject: str, reason: str) -> Damaged:
    return Damaged(f"{subject} is damaged: {reason}.", "Nothing was imported. Export the session again.")


def _foreign(subject: str, reason: str) -> UsageError:
    return UsageError(
        f"{subject} is not a session that `deepctl sessions export` wrote: {reason}.",
        "`deepctl sessions export NAME --output FILE` writes one.",
        code="bad_file",
    )


class _NotJson(ValueError):
    """Data that is not JSON, or JSON with values that are not accepted."""


def _document(raw: bytes, subject: str) -> dict[str, Any]:
    """The JSON object in a file, if it has the kind of an export."""
    if len(raw) > MAX_BYTES:
        raise _foreign(subject, f"it has more than {MAX_BYTES:,} bytes")
    is_ours = _MARK.search(raw[:_BEGINS]) is not None
    try:
        if sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
            raise _NotJson("it has too many values")
        document = json.loads(
            raw.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
    except RecursionError:
        reason = "it is nested too deeply"
    except _NotJson as error:
        reason = str(error)
    else:
        if isinstance(document, dict) and document.get("kind") == KIND:
            return document
        reason, is_ours = "it is JSON of another kind", False
    raise _damaged(subject, reason) if is_ours else _foreign(subject, reason)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _NotJson("a key occurs twice in the same object")
    return result


def _constant(name: str) -> Any:
    raise _NotJson(f"it contains {name}, which is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _NotJson("it contains a number that is too large")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _NotJson("it contains a number that is too large")
    return int(text)


def _check_depth(document: dict[str, Any], subject: str) -> None:
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            items = value.values() if isinstance(value, dict) else value
            below += [item for item in items if isinstance(item, dict | list)]
        if not below:
            return
        level = below
    raise _damaged(subject, "it is nested too deeply")


def _is_project(fields: Mapping[Any, Any]) -> bool:
    """Whether these fields of a session are a project, or none."""
    return not fields or (fields.keys() == {"project"} and isinstance(fields["project"], str))


def _export(document: dict[str, Any], subject: str) -> ExportDocument:
    """The values of a document with a valid checksum. They are checked too, because a user may have edited them."""
    match document:
        case {
            "version": _,
            "kind": _,
            "format": _,
            "session": {"name": str(name), "created_at": str(created_at), **extra_fields},
            "messages": list(entries),
            "damaged": list(damage_list),
            "sha256": _,
            **other_fields,
        } if _is_project(extra_fields) and not other_fields:
            pass  # the session works in the workspace, whatever its project was
        case _:
            raise _damaged(subject, "it does not have the parts of a session")
    try:
        layout.check_name(name, "session")
    except BadName as error:
        raise _damaged(subject, error.message.rstrip(".")) from None
    if not quantities.is_time(created_at):
        raise _damaged(subject, "the start time of the session is invalid")
    if len(entries) > MAX_MESSAGES:
        raise _damaged(subject, f"it has more than {MAX_MESSAGES:,} messages")
    messages: list[Message] = []
    compactions: list[Compaction] = []
    for number, entry in enumerate(entries, 1):
        message = _message(entry)
        if message is None or (messages and message.turn < messages[-1].turn):
            raise _damaged(subject, f"message {number} is invalid")
        if isinstance(entry, dict) and "keeps" in entry:
            if not _is_summary(message, entry["keeps"], len(messages)):
                raise _damaged(subject, f"message {number} is not a summary of the messages before it")
            compactions.append(Compaction(len(messages), entry["keeps"]))
        messages.append(message)
    return ExportDocument(name, created_at, messages, [_lost(entry, subject) for entry in damage_list], compactions)


def _is_summary(message: Message, keeps: object, before: int) -> bool:
    """Whether a message can replace the `before` messages before it, except for the last `keeps` of them."""
    fits = isinstance(keeps, int) and not isinstance(keeps, bool) and 0 <= keeps <= before
    return fits and message.message["kind"] == "request"


def _message(entry: object) -> Message | None:
    match entry:
        case {"turn": int(turn), "at": str(at), "message": dict(message), **extra_fields}:
            extra_fields.pop("keeps", None)
            fits = not extra_fields and not isinstance(turn, bool) and 0 <= turn <= _MAX_TURN and quantities.is_time(at)
            is_one = message.get("kind") in ("request", "response") and isinstance(message.get("parts"), list)
            return Message(turn, at, message) if fits and is_one else None
        case _:
            return None


def _lost(entry: object, subject: str) -> LostLine:
    match entry:
        case {"line": int(line), "reason": str(reason)}:
            return LostLine(line, reason)
        case _:
            raise _damaged(subject, "its list of damaged lines is invalid")


class SessionImport(NamedTuple):
    """An imported session: its number of turns and messages, and the number of messages lost before the export."""

    session: str
    turns: int
    message_count: int
    lost: int


def take_over(paths: ProfilePaths, export: ExportDocument, name: str | None = None) -> SessionImport:
    """Start a session with the contents of an export; `name` replaces the name in the export.

    The caller holds the profile's lock, and has checked the messages. Raises `Refused` if the name is taken.
    """
    new_name = name if name is not None else export.name
    if (existing_name := session_catalogue.stored_name(paths, new_name)) is not None:
        raise Refused(
            f"There is already a session {existing_name!r}.",
            "--as NAME imports it under another name.",
            code="session_exists",
        )
    session: SessionRecord = session_catalogue.bring(
        paths, new_name, session_log.lines(export.messages, export.compactions), export.created_at
    )
    turns = len({message.turn for message in export.messages})
    return SessionImport(session.name, turns, len(export.messages), len(export.damaged))
