"""A session's conversation: each log is read once, and only the needed messages are decoded.

Decoding every message of a long session takes longer than all other steps of a list or a rewind. So a turn, which must
decode all messages, leaves a summary in the profile's cache: the number of messages and turns up to an offset in each
file, the running digest there, and the CRC-32 of these bytes. The next reader compares the bytes with that checksum and
decodes only the bytes after them.

`cache/conversations` has one sealed line per session. It is never evidence: it may be deleted at any time, and if it is
missing, damaged, or does not match the bytes, the whole log is decoded. It contains no text of a conversation: prompts
are stored as their positions in the log. It is a separate file because opening the SQLite cache takes too long for a
list.
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from typing import Any, NamedTuple

from deepctl import quantities
from deepctl.errors import Refused
from deepctl.files import atomic, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import log_chain, log_file
from deepctl.store.ledger import Ledger
from deepctl.store.log_file import (
    Compaction,
    LogDamage,
    LogReader,
    Message,
    MessageList,
    Point,
    log_path,
)
from deepctl.store.records import SESSION_RECORD, Position, Record, SessionRecord

_VERSION = 1
_SESSIONS = 200
"""Maximum number of sessions in the file; the latest summaries are kept."""


class Span(NamedTuple):
    """The position of a line: the number of the file in the chain, and the offsets in it."""

    file: int
    start: int
    end: int


class LogExtent(NamedTuple):
    """The first `end` bytes of the file of a log, and their CRC-32."""

    log: str
    end: int
    crc: int


class KnownConversation(NamedTuple):
    """A conversation up to a position. `files` are its files, the oldest first.

    `first` and `last` are the lines with its first and its last prompt.
    """

    files: list[LogExtent]
    digest: str
    messages: int
    turns: int
    last_turn: int
    updated_at: str
    first: Span | None
    last: Span | None


class Tail(NamedTuple):
    """The log after that position: its messages, and the offset and the digest at its end."""

    messages: list[Message]
    last_turn: int
    end: int
    digest: str


class Outline(NamedTuple):
    """The values of a conversation for lists. `title` is its first prompt, `updated_at` its last message's time."""

    turns: int
    messages: int
    updated_at: str | None
    title: str
    damage: int = 0


class SessionReader:
    """The conversation of a session at the time of this object's creation. Raises `Damaged` or `NewerFormat`.

    For a list (`is_for_list`), the summarized bytes are only compared with their checksum and not kept in memory; then
    only `outline` may be called.
    """

    def __init__(self, paths: ProfilePaths, session: SessionRecord, *, is_for_list: bool = False) -> None:
        self.paths = paths
        self.session = session
        self._is_for_list = is_for_list
        self.files: dict[str, bytes] = {}
        """The logs that have been read, by their paths."""
        self._path = os.path.join(paths.cache, "conversations")
        self._chain: log_chain.Chain | None = None
        self._whole: MessageList | None = None
        self._first_prompt = b""
        self._behind = b""
        self._known = self._confirmed() if session.damage is None else None
        self._tail = self._read_tail(self._known) if self._known is not None else None

    def is_current(self, session: SessionRecord) -> bool:
        """Whether `session` is the session of this reader, and its log has not grown."""
        path = log_file.log_path(session.directory, session.log)
        try:
            return session == self.session and path in self.files and os.path.getsize(path) == len(self.files[path])
        except FileNotFoundError:
            return False

    def whole(self) -> MessageList:
        """The whole conversation."""
        if self._whole is None:
            start = Point(self.session.log, 0)
            self._chain = log_chain.resolve(self.session.directory, start, is_open=True, files=self.files)
            self._whole = with_record_damage(self.session, messages_of_chain(self._chain))
        return self._whole

    def ends(self) -> tuple[int, int]:
        """The offsets after the first line of the session's own log and after its last whole line."""
        raw = self._own_log()
        return raw.find(b"\n") + 1, sealed_lines.whole_length(raw)

    @property
    def size(self) -> int | None:
        """The length of the session's own log; `None` if it does not end with a newline."""
        raw = self._own_log()
        return len(raw) if raw.endswith(b"\n") else None

    def _own_log(self) -> bytes:
        return self.files.get(log_file.log_path(self.session.directory, self.session.log), b"")

    @property
    def last_turn(self) -> int:
        """The number of the last turn."""
        if self._known is None or self._tail is None:
            return self.whole().last_turn
        return max(self._known.last_turn, self._tail.last_turn)

    def position(self) -> Position:
        """The position at the end of the conversation."""
        if self._known is None or self._tail is None:
            return position(self.session, self.whole())
        count = self._known.messages + len(self._tail.messages)
        end = Point(self.session.log, self._tail.end, self._tail.digest)
        last = _last_prompt(self._tail.messages)
        prompt = last if last is not None else self._prompt_at(self._known.last)
        return Position(self.session.id, self.last_turn, self.session.log, end.offset, count, prompt, end)

    def outline(self) -> Outline:
        """The values of the conversation for lists."""
        summary, tail = self._known, self._tail
        new_turns = {message.turn for message in tail.messages} if tail is not None else set()
        if summary is None or tail is None or min(new_turns, default=summary.last_turn) < summary.last_turn:
            return outline(self.whole())
        title = _prompt_of(self._first_prompt) if summary.first is not None else outline_title(tail.messages)
        return Outline(
            summary.turns + len(new_turns - {summary.last_turn} if summary.turns else new_turns),
            summary.messages + len(tail.messages),
            tail.messages[-1].at if tail.messages else summary.updated_at or None,
            title,
        )

    def since(self, checkpoint: Record) -> list[dict[str, Any]] | None:
        """The messages after a checkpoint in the session's own log; `None` if the whole log is needed for them.

        The digest of the checkpoint, continued to the end of the log, must equal the digest there. Then the lines
        before the checkpoint are unchanged.
        """
        raw = self._own_log()
        offset = checkpoint.offset
        is_here = checkpoint.log == self.session.log and checkpoint.digest and not checkpoint.lost
        if self._tail is None or not is_here or not 0 < offset <= len(raw) or raw[offset - 1 : offset] != b"\n":
            return None
        try:
            before = sealed_lines.unseal(raw[raw.rfind(b"\n", 0, offset - 1) + 1 : offset - 1])
        except ValueError:
            return None
        if "result" in before:
            return None  # the request with this result comes after the checkpoint
        tail = self._decoded(raw[offset:], len(raw), checkpoint.digest)
        return [entry.message for entry in tail.messages] if tail and tail.digest == self._tail.digest else None

    def _decoded(self, content: bytes, end: int, digest: str) -> Tail | None:
        """The last lines (`content`) of the session's own log, which ends at `end`; `None` if they are not regular."""
        path = log_file.log_path(self.session.directory, self.session.log)
        lines = [log_file.upgrade(line, path) for line in log_file.parse(content)]
        if any(line.problem is not None for line in lines):
            return None
        reader = LogReader(os.path.basename(path))
        for line in lines:
            reader.take(line)
        reader.finish()
        if reader.damage or reader.lacks_instructions:
            return None
        behind = log_file.digests(content, lines, digest)
        return Tail(reader.messages, reader.last_turn, end, behind[-1] if behind else digest)

    def _read_tail(self, summary: KnownConversation) -> Tail | None:
        return self._decoded(self._behind, summary.files[-1].end + len(self._behind), summary.digest)

    def _confirmed(self) -> KnownConversation | None:
        """The summary of the session in the cache, if it matches the first bytes of the session's files."""
        summary = _parsed(_entries(self._path).get(self.session.id))
        if summary is None or summary.files[-1].log != self.session.log:
            return None
        for number, extent in enumerate(summary.files):
            path = log_file.log_path(self.session.directory, extent.log)
            first = summary.first if summary.first is not None and summary.first.file == number else None
            try:
                if self._is_for_list:
                    start, end = (first.start, first.end) if first is not None else (0, 0)
                    parts = log_file.read_behind(path, extent.end, extent.crc, start, end)
                else:
                    parts = self._read(path, extent, first)
            except (OSError, Refused):
                return None
            if parts is None:
                return None
            self._first_prompt = parts[0] or self._first_prompt
            self._behind = parts[1]
        return summary

    def _read(self, path: str, extent: LogExtent, first: Span | None) -> tuple[bytes, bytes] | None:
        """As `log_file.read_behind`, but the whole log is kept in memory."""
        raw = self.files[path] = log_file.read_lines(path)
        if len(raw) < extent.end or zlib.crc32(memoryview(raw)[: extent.end]) != extent.crc:
            return None
        return raw[first.start : first.end] if first is not None else b"", raw[extent.end :]

    def _prompt_at(self, span: Span | None) -> str:
        """The prompt in a line whose bytes have been compared with their checksum."""
        if span is None or self._known is None:
            return ""
        raw = self.files[log_file.log_path(self.session.directory, self._known.files[span.file].log)]
        return _prompt_of(raw[span.start : span.end])

    def remember(self) -> None:
        """Store a summary in the cache, if the whole conversation has been read and is regular.

        The caller holds the profile's lock. A disk error loses only the summary.
        """
        summary = self._summarized()
        self._chain = None  # frees the memory of the lines during a long turn
        if summary is None:
            return
        entries = {key: value for key, value in _entries(self._path).items() if key != self.session.id}
        entries[self.session.id] = {"v": _VERSION, "session": self.session.id, "known": summary}
        raw = b"".join(map(sealed_lines.seal, list(entries.values())[-_SESSIONS:]))
        with suppress(OSError, Refused):
            atomic.make_root(os.path.dirname(self._path))
            atomic.replace_unsynced(self._path, raw)

    def _summarized(self) -> KnownConversation | None:
        chain, whole = self._chain, self._whole
        if chain is None or whole is None or whole.damage or chain.damaged_line is not None:
            return None
        last_line = chain.links[-1].lines[-1]
        if last_line.value is None or "result" in last_line.value:
            return None
        files: list[LogExtent] = []
        prompts: list[Span] = []
        for number, link in enumerate(chain.links):
            log = os.path.basename(link.path).removesuffix(log_file.SUFFIX)
            end = link.lines[-1].end if link.lines else 0
            raw = self.files.get(link.path, b"")
            if link.path != log_file.log_path(self.session.directory, log) or not raw[:end].endswith(b"\n"):
                return None
            files.append(LogExtent(log, end, zlib.crc32(memoryview(raw)[:end])))
            start = 0
            for line in link.lines:
                if _prompt_in(line) is not None:
                    prompts.append(Span(number, start, line.end))
                start = line.end
        return KnownConversation(
            files,
            whole.digest,
            len(whole.messages),
            len({entry.turn for entry in whole.messages}),
            whole.last_turn,
            whole.messages[-1].at if whole.messages else "",
            prompts[0] if prompts else None,
            prompts[-1] if prompts else None,
        )


class SessionReaders:
    """The readers of a command: a reader is used again for the same session as long as its log has not grown."""

    def __init__(self, paths: ProfilePaths) -> None:
        self._paths = paths
        self._latest: SessionReader | None = None

    def of(self, session: SessionRecord) -> SessionReader:
        """The conversation of a session as it is now. Raises `Damaged` or `NewerFormat`."""
        if self._latest is None or not self._latest.is_current(session):
            self._latest = SessionReader(self._paths, session)
        return self._latest

    def ends(self, session: SessionRecord) -> tuple[int, int]:
        """The result of `end_of` for a session, without opening its log again if it has been read. Raises `Damaged`."""
        if self._latest is not None and self._latest.is_current(session):
            return self._latest.ends()
        return end_of(session.directory, session.log)

    def has_unfinished_turn(self, session: SessionRecord, ledger: Ledger) -> bool:
        """Whether a session's last turn was killed, or has no checkpoints.

        The session has messages that no checkpoint covers, or its latest checkpoint was made within a turn, so that a
        tool may have been running when the turn was killed. The second of several calls in one answer writes no line
        before it is done.
        """
        first, end = self.ends(session)
        return session.log in ledger.open_turns or end > max(first, ledger.ends.get(session.log, 0))


def with_record_damage(session: SessionRecord, conversation: MessageList) -> MessageList:
    """The conversation of a session, with its damage and the damage of the session's record."""
    if session.damage is None:
        return conversation
    return conversation._replace(damage=[LogDamage(SESSION_RECORD, 1, session.damage, False), *conversation.damage])


def position(session: SessionRecord, conversation: MessageList) -> Position:
    """The position at the end of a conversation that has been read already."""
    return Position(
        session.id,
        conversation.last_turn,
        session.log,
        conversation.end,
        len(conversation.messages),
        _last_prompt(conversation.messages) or "",
        Point(session.log, conversation.end, conversation.digest),
    )


def outline(conversation: MessageList) -> Outline:
    """The values for lists of a conversation that has been read already."""
    messages = conversation.messages
    return Outline(
        len({entry.turn for entry in messages}),
        len(messages),
        messages[-1].at if messages else None,
        outline_title(messages),
        len(conversation.damage),
    )


def outline_title(messages: list[Message]) -> str:
    """The first prompt of a conversation, empty if there is none."""
    return next((text for entry in messages if (text := log_file.prompt(entry.message)) is not None), "")


def _last_prompt(messages: list[Message]) -> str | None:
    return next((text for entry in reversed(messages) if (text := log_file.prompt(entry.message)) is not None), None)


def _prompt_of(raw: bytes) -> str:
    """The prompt in the bytes of a line; empty if it has none."""
    return next((text for line in log_file.parse(raw) if (text := _prompt_in(line)) is not None), "")


def _prompt_in(line: sealed_lines.SealedLine) -> str | None:
    """The prompt in a line of a log, if it has one."""
    message = line.value.get("message") if line.value is not None else None
    return log_file.prompt(message) if isinstance(message, dict) else None


def _entries(path: str) -> dict[str, dict[str, Any]]:
    """The valid lines of the cache, by the ids of the sessions."""
    try:
        raw = atomic.read_file(path)
    except (OSError, Refused):
        return {}
    values = [line.value for line in sealed_lines.parse(raw) if line.value is not None and line.problem is None]
    return {session: value for value in values if isinstance(session := value.get("session"), str)}


def _parsed(entry: dict[str, Any] | None) -> KnownConversation | None:
    """A line of the cache as a value; `None` if it is not valid."""
    match entry:
        case {
            "v": int(version),
            "known": [
                [_, *_] as files,
                str(digest),
                int(messages),
                int(turns),
                int(last_turn),
                str(updated_at),
                first,
                last,
            ],
        } if version == _VERSION and quantities.is_time(updated_at or quantities.UNKNOWN_TIME):
            extents = [_extent(value) for value in files]
            spans = [_span(value, len(files)) for value in (first, last)]
            if None in extents or min(messages, turns, last_turn) < 0:
                return None
            file_extents = [extent for extent in extents if extent is not None]
            return KnownConversation(file_extents, digest, messages, turns, last_turn, updated_at, spans[0], spans[1])
        case _:
            return None


def _extent(value: object) -> LogExtent | None:
    match value:
        case [str(log), int(end), int(crc)] if log_file.is_id(log) and end > 0:
            return LogExtent(log, end, crc)
        case _:
            return None


def _span(value: object, files: int) -> Span | None:
    match value:
        case [int(file), int(start), int(end)] if 0 <= file < files and 0 <= start < end:
            return Span(file, start, end)
        case _:
            return None


def read_log(directory: str, log: str, end: int | None = None, digest: str = "") -> MessageList:
    """The conversation in a log and in the logs that it continues, up to offset `end` in bytes.

    With `digest`, it is read from copies that have this digest at `end`, if there are any. Raises `Damaged` if a log's
    file is missing, and `NewerFormat` if a later deepctl wrote it.
    """
    return messages_of_chain(log_chain.resolve(directory, Point(log, end or 0, digest), is_open=end is None))


def messages_of_chain(chain: log_chain.Chain) -> MessageList:
    """The conversation in the files of a chain."""
    messages: list[Message] = []
    compactions: list[Compaction] = []
    damage = list(chain.damage)
    last_turn = 0
    for link in chain.links:
        reader = LogReader(os.path.basename(link.path))
        for line in link.lines:
            reader.take(line)
        reader.finish()
        compactions += [Compaction(len(messages) + place, keeps) for place, keeps in reader.compactions]
        messages += reader.messages
        damage += reader.damage
        last_turn = max(last_turn, reader.last_turn)
    return MessageList(messages, damage, last_turn, compactions, _end_of_chain(chain), chain.digest, chain.damaged_line)


def _end_of_chain(chain: log_chain.Chain) -> int:
    """The offset after the last whole line of the last log; its newline may be missing."""
    whole = [line for line in chain.links[-1].lines if line.problem != "cut short"]
    return whole[-1].end - (whole[-1].value is not None and whole[-1].problem is not None) if whole else 0


def end_of(directory: str, log: str) -> tuple[int, int]:
    """The offsets after the first line of a log, which names the log that it continues, and after its last whole line.

    Raises `Damaged` if its file is missing.
    """
    path = log_path(directory, log)
    try:
        descriptor = atomic.open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        raise log_file.log_missing(path) from None
    try:
        return os.pread(descriptor, 4096, 0).find(b"\n") + 1, sealed_lines.end_of_whole_lines(descriptor)
    finally:
        os.close(descriptor)
