"""The two ends of a session: its title, from the first prompt, and its last exchange, and why that is not complete.

Lists read whole logs to count and check everything. The start of a chat, and the list to choose a session from, read
only the ends of the logs, so that they do not become slower with the length of a session.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

from deepctl import locks
from deepctl.errors import DeepctlError, Refused
from deepctl.files.sealed_lines import SealedLine
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store import log_file, lookup, session_catalogue, session_titles, transcript
from deepctl.store.coverage import CoverageSettings
from deepctl.store.log_file import LogReader, Message
from deepctl.store.records import KILLED, STOPPED, SessionRecord
from deepctl.store.session_reader import SessionReaders, outline_title

_FIRST_READ = 1 << 16
"""Bytes of an end of a log that are read first."""
_READ_FACTOR = 8
_HEADER = 1 << 12
"""Bytes that contain the first line of a log."""
_MAX_LOGS = 200
"""Logs of a session that are followed: each rewind makes one."""


_REASONS = {
    KILLED: "its process was killed",
    "interrupted": "it was stopped with Ctrl-C",
    "terminated": "its process was ended",
    "timeout": "it reached its time limit",
    "budget": "a budget was reached",
    "idle_timeout": "the model sent nothing for too long",
    "storage": "the storage could not be used",
    "model_connection": "the connection to the model failed",
    "model_rate_limited": "the provider limits the number of requests",
}
"""The reasons by the code of the error."""
_FAILED = "the model or its provider failed"
_UNKNOWN = "it was interrupted or failed"


class LastExchange(NamedTuple):
    """The last turn of a session: its number, the typed prompt, the text of its last answer (both may be empty), and
    the time of its last message in RFC 3339. `problem` is the reason why it is not complete, `None` if it is.
    """

    turn: int
    prompt: str
    answer: str
    at: str
    problem: str | None


class SessionEnds(NamedTuple):
    """The title of a session, which may be empty, and its last exchange, `None` without messages."""

    title: str
    last: LastExchange | None


def read(session: SessionRecord) -> SessionEnds:
    """The ends of a session. Raises `Damaged` or `NewerFormat`.

    The positions in the logs are not compared with their digests, because this is only for display. If an end is not
    regular, the whole conversation is read.
    """
    first, messages = (_start_of_logs(session), _end_of_logs(session)) if session.damage is None else (None, None)
    if first is None or messages is None:
        messages = session_catalogue.read(session).messages
        first = outline_title(messages)
    return SessionEnds(session_titles.of_session(session, first), _last(messages))


def first_prompt(session: SessionRecord) -> str:
    """The first prompt of a session, empty without one. Raises as `read`."""
    prompt = _start_of_logs(session) if session.damage is None else None
    return prompt if prompt is not None else outline_title(session_catalogue.read(session).messages)


def _last(messages: list[Message]) -> LastExchange | None:
    if not messages:
        return None
    last = messages[-1]
    own = [entry.message for entry in messages if entry.turn == last.turn]
    prompts = [text for message in own if (text := log_file.prompt(message)) is not None]
    texts = [
        "".join(piece.text for piece in transcript.pieces(message) if piece.kind == "text")
        for message in own
        if message.get("kind") == "response"
    ]
    problem = transcript.problem(messages, len(messages) - 1)
    prompt = log_file.typed_part(prompts[-1]).strip() if prompts else ""
    return LastExchange(last.turn, prompt, next(filter(str.strip, reversed(texts)), ""), last.at, problem)


class _LogPart(NamedTuple):
    """The part of a log that belongs to a session: all before `end`, or the whole log."""

    path: str
    end: int | None


def _parts(session: SessionRecord) -> Iterator[_LogPart]:
    """The logs of a session, the last one first. Raises `_Irregular`, and `OSError` for a missing log."""
    log, end = session.log, None
    for _ in range(_MAX_LOGS):
        part = _LogPart(log_file.log_path(session.directory, log), end)
        yield part
        first, _ = log_file.read_part(part.path, _HEADER, end)
        parent = log_file.header_parent(_checked(part.path, first)[0], part.path)
        if parent is None:
            return
        log, end = parent.log, parent.offset
    raise _Irregular


class _Irregular(Exception):
    """Something that cannot be read."""


def _checked(path: str, raw: bytes) -> list[SealedLine]:
    """The lines of a part of a log. Raises `_Irregular`, also without lines."""
    lines = [log_file.upgrade(line, path) for line in log_file.parse(raw)]
    if not lines or any(line.problem not in (None, "cut short") for line in lines):
        raise _Irregular
    return lines


def _messages(path: str, raw: bytes) -> list[Message]:
    reader = LogReader(os.path.basename(path))
    for line in _checked(path, raw):
        reader.take(line)
    reader.finish()
    return reader.messages


def _reads(part: _LogPart, *, from_end: bool) -> Iterator[list[Message]]:
    """The messages at one end of a part, more and more of them until there are no more."""
    count = _FIRST_READ
    while True:
        raw, is_all = log_file.read_part(part.path, count, part.end, from_end=from_end)
        if raw or is_all:
            yield _messages(part.path, raw)
        if is_all:
            return
        count *= _READ_FACTOR


def _start_of_logs(session: SessionRecord) -> str | None:
    """The first prompt, empty without one; `None` if it cannot be found in this way."""
    try:
        for part in reversed(list(_parts(session))):
            for messages in _reads(part, from_end=False):
                if title := outline_title(messages):
                    return title
    except (_Irregular, OSError, Refused):
        return None
    return ""


def _end_of_logs(session: SessionRecord) -> list[Message] | None:
    """The last messages, with at least those of the last turn; `None` if they cannot be found in this way."""
    after: list[Message] = []
    messages: list[Message] = []
    try:
        for part in _parts(session):
            for read_messages in _reads(part, from_end=True):
                messages = read_messages + after
                if _has_last_turn(messages):
                    return messages
            after = messages
    except (_Irregular, OSError, Refused):
        return None
    return messages


def _has_last_turn(messages: list[Message]) -> bool:
    """Whether the messages begin before the last turn, or have its prompt."""
    if not messages:
        return False
    turn = messages[-1].turn
    return messages[0].turn != turn or any(log_file.prompt(entry.message) is not None for entry in messages)


class StoppedTurn(NamedTuple):
    """A turn that did not end by itself. `undo` is the id of the checkpoint before it, `None` without one.

    `files` is the number of files that a rewind to there would change, `None` if that cannot be told. `needs_force`
    means that another author may have changed them too.
    """

    reason: str
    undo: str | None = None
    files: int | None = None
    needs_force: bool = False

    def notice(self) -> str:
        """The sentences for a chat."""
        start = f"The last turn is not complete: {self.reason}."
        if self.undo is None:
            return f"{start} /retry sends its prompt again."
        command = f"/rewind {self.undo[:8]}"
        if not self.files:
            changes = " No file differs from before it." if self.files == 0 else ""
            return f"{start}{changes} {command} takes it back; /retry also sends its prompt again."
        files = f"{counted(self.files, 'file')} differ{'s' if self.files == 1 else ''} from before it"
        if self.needs_force:
            return (
                f"{start} {files}; some may be your changes. {command} --dry-run lists them, and {command} --force "
                "takes it back."
            )
        return f"{start} {files}; {command} takes it back."


def stopped_turn(
    paths: ProfilePaths, session: SessionRecord, exchange: LastExchange, coverage: CoverageSettings
) -> StoppedTurn | None:
    """What is known of the last turn, which is not complete; `None` while it is running. Takes no lock."""
    checkpoints = session_catalogue.read_ledger(paths)
    if SessionReaders(paths).has_unfinished_turn(session, checkpoints):
        if locks.holder(paths.lock) is not None:
            return None
        reason = _REASONS[KILLED]
    else:
        records = checkpoints.line(checkpoints.head(session))
        own = takewhile(lambda record: record.turn >= exchange.turn, records)
        reason = _reason(next((code for record in own if (code := record.metadata.get(STOPPED))), None), exchange)
    with suppress(DeepctlError, OSError):
        return _with_changes(paths, session, coverage, StoppedTurn(reason))
    return StoppedTurn(reason)


def _reason(code: object, exchange: LastExchange) -> str:
    if isinstance(code, str):
        return _REASONS.get(code, _FAILED)
    # 0.1 stored no reason, and without automatic checkpoints there is no place for one.
    return _UNKNOWN if exchange.problem in (None, transcript.INTERRUPTED) else exchange.problem


def _with_changes(
    paths: ProfilePaths, session: SessionRecord, coverage: CoverageSettings, stopped: StoppedTurn
) -> StoppedTurn:
    """With the changes since the checkpoint before the turn. Raises the errors of a preview."""
    from deepctl.store import rewind  # only for such a turn
    from deepctl.store.repository import Repository

    with Repository.read_only(paths, coverage=coverage) as reader:
        target = lookup.find_checkpoint(paths, reader.ledger, "~1", session.name, reader.readers.of(session))
        stopped = stopped._replace(undo=target.id)
        with suppress(DeepctlError, OSError):
            plan = rewind.preview(reader, session, rewind.RewindRequest(target))
            return stopped._replace(files=len(plan.changes), needs_force=bool(plan.conflicts))
        return stopped
