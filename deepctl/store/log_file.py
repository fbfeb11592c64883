"""Files of lines: message logs with the positions in them, the ledger's length, and small documents.

The protocols here are the seam that a second engine replaces: `AppendedLines` for logs and the ledger, `Documents` for
small documents. Local files are their only engine today.

A log is `<id>.jsonl` in a session's directory, a file of sealed lines. Its first line names the position in another log
that it continues, or none; `session_log` describes the other lines. `LogReader` joins them to messages.

A position is an offset after a line, and a digest of everything before it: `chain_digest(d, line)` from line to line,
beginning with the digest of the position that the log continues, or with `START`. The digest distinguishes the log of
the position from a log that was restored from a backup, cut short and continued, or replaced by another. Positions of
0.1 have no digest; the end of any line is accepted for them.

`checkpoints/ledger.size` has the length of the ledger without its last line, so that a shorter ledger is recognised. It
is one sealed line of fixed length, `{v, size, short}`, overwritten in place after each line of the ledger and not
synced: after a power cut it may be less than the real length, never more. The last line is not counted, because a kill
can leave a ledger without it. `short` means that a writer found a shorter ledger; it stays until a repair. A missing
file means nothing, and the next writer creates it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from deepctl import layout, quantities
from deepctl.errors import Refused, StoreDamaged
from deepctl.files import atomic, sealed_lines
from deepctl.store import log_file
from deepctl.unicode import whole_value

LOG_FORMAT = layout.LOG_FORMAT.current
_NUMBERS = ("turn", "keeps", "results", "replaces")
_LARGEST = 1 << 63


class AppendedLines(Protocol):
    """A log or a ledger, open for appending; each line is durable when the call returns.

    `end` is the offset in bytes after the last line, and `torn` the number of bytes of an incomplete line that were cut
    off on opening. The caller holds the lease of the profile.
    """

    torn: int
    end: int

    def is_current(self, status: os.stat_result) -> bool:
        """Whether no other process has appended to it, and it is still the file at its path."""

    def append(self, value: dict[str, Any]) -> int:
        """Write one line. Returns the offset after it."""

    def write(self, lines: Sequence[bytes]) -> list[int]:
        """Write several sealed lines together. Returns the offset after each."""

    def close(self) -> None:
        """Close the file."""


class Documents(Protocol):
    """Small documents that are replaced as a whole, by their names."""

    def read(self, name: str) -> bytes:
        """The document. Raises `FileNotFoundError` if it does not exist, and `Refused` if an entry of another kind is
        there.
        """

    def replace(self, name: str, content: bytes, *, is_last: bool = False) -> None:
        """Replace a document: durable when this returns, and never partial.

        `is_last` says that this ends the command, so an error after the rename says that the change is done.
        """


class LocalDocuments:
    """The documents in a directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def read(self, name: str) -> bytes:
        """See `Documents`."""
        return atomic.read_file(os.path.join(self._directory, name))

    def replace(self, name: str, content: bytes, *, is_last: bool = False) -> None:
        """See `Documents`."""
        write = atomic.commit_file if is_last else atomic.write_file
        write(os.path.join(self._directory, name), content)


def documents(directory: str) -> Documents:
    """The documents of a session or profile, by its directory."""
    return LocalDocuments(directory)


def open_lines(path: str, size: int | None = None) -> AppendedLines:
    """A log or ledger for appending. `size` is its length if it has been read and ends with a whole line."""
    return sealed_lines.Appender(path, size)


def read_lines(path: str) -> bytes:
    """All the bytes of a log or ledger. Raises `FileNotFoundError`, or `Refused` if an entry of another kind is
    there.
    """
    return atomic.read_file(path)


def read_end(path: str, count: int) -> tuple[bytes, int]:
    """At most the last `count` bytes of a log or ledger, and its whole length. Raises as `read_lines`."""
    descriptor = atomic.open_regular(path, os.O_RDONLY)
    try:
        length = os.fstat(descriptor).st_size
        return os.pread(descriptor, count, max(0, length - count)), length
    finally:
        os.close(descriptor)


def read_part(path: str, count: int, end: int | None = None, *, from_end: bool = False) -> tuple[bytes, bool]:
    """The whole lines in the first `count` bytes of a log, or in the last ones, and whether these are all.

    Only the bytes before the offset `end` count. Raises as `read_lines`.
    """
    descriptor = atomic.open_regular(path, os.O_RDONLY)
    try:
        length = os.fstat(descriptor).st_size
        length = length if end is None else min(end, length)
        start = max(0, length - count) if from_end else 0
        raw = os.pread(descriptor, min(count, length), start)
    finally:
        os.close(descriptor)
    if count >= length:
        return raw, True
    # The line at the cut is not whole.
    return (raw[raw.find(b"\n") + 1 or len(raw) :] if from_end else raw[: raw.rfind(b"\n") + 1]), False


def read_behind(path: str, end: int, crc: int, first: int, last: int) -> tuple[bytes, bytes] | None:
    """The bytes of a log between two offsets and those after `end`; `None` if those before `end` have another CRC-32.

    The bytes before `end` are not kept in memory, because lists read long logs. Raises as `read_lines`.
    """
    descriptor = atomic.open_regular(path, os.O_RDONLY)
    try:
        buffer = memoryview(bytearray(_CHUNK))
        checksum, bytes_left = 0, end
        while bytes_left and (count := os.readv(descriptor, [buffer[:bytes_left]])):
            checksum = zlib.crc32(buffer[:count], checksum)
            bytes_left -= count
        if bytes_left or checksum != crc:
            return None
        between = os.pread(descriptor, max(0, min(last, end) - first), first)
        return between, b"".join(iter(lambda: os.read(descriptor, _CHUNK), b""))
    finally:
        os.close(descriptor)


def write_lines(path: str, raw: bytes) -> None:
    """Create a log, or replace a ledger, with these lines: durable when this returns, and never partial."""
    atomic.write_file(path, raw)


SUFFIX = ".jsonl"
SESSIONS = "sessions"
START = ""
"""The digest before the first line of a log that continues no other."""
MISSING = "messages are missing at its end"
NO_ORIGIN = "its previous log is unknown"
KNOWN_ORIGIN = "damaged; its previous log is known from another source"
ANOTHER = "it is not the original log: its earlier lines are different"
NO_ENTRY = "not an entry of a message log"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)
"""The errors of a file system that cannot make a hard link."""
_CHUNK = 1 << 18
_DIGEST = 32
"""Hex digits of a digest: the first half of a SHA-256."""


class LogDamage(NamedTuple):
    """One line that could not be used: its file and number, and the reason. `torn` marks an incomplete line after a
    kill.
    """

    file: str
    line: int
    reason: str
    torn: bool


class Point(NamedTuple):
    """A position in a log: the offset in bytes after a line, and the digest there, empty if it is unknown."""

    log: str
    offset: int
    digest: str = ""

    def document(self) -> dict[str, Any]:
        """The position as the first line of a log names it."""
        entry: dict[str, Any] = {"log": self.log, "offset": self.offset}
        return {**entry, "digest": self.digest} if self.digest else entry


UNREADABLE = Point("", -1)
"""The position that a log continues if its first line cannot be read."""


def is_id(text: str) -> bool:
    """Whether `text` is a valid log id: a plain word, never a path."""
    return re.fullmatch(r"[0-9a-z]{1,64}", text) is not None


def log_path(directory: str, log: str) -> str:
    return os.path.join(directory, log + SUFFIX)


def is_in(directory: str, log: str) -> bool:
    """Whether a session's directory has this log."""
    return is_id(log) and os.path.exists(log_path(directory, log))


def logs_in(directory: str) -> list[str]:
    """The ids of the logs in a session's directory, sorted."""
    names = (entry.removesuffix(SUFFIX) for entry in os.listdir(directory) if entry.endswith(SUFFIX))
    return sorted(name for name in names if is_id(name))


def siblings(directory: str) -> list[str]:
    """The directories of the profile's other sessions; `directory` is that of one session."""
    parent, own_name = os.path.split(directory)
    if os.path.basename(parent) != SESSIONS:
        return []
    return [
        os.path.join(parent, name)
        for name in sorted(os.listdir(parent))
        if name != own_name and not name.startswith(".")
    ]


def log_missing(path: str) -> StoreDamaged:
    """The error for a log that is not there."""
    return StoreDamaged(f"The message log {path} is missing.")


def chain_digest(before: str, line: bytes) -> str:
    """The digest after `line`, with its newline; `before` is the digest before it."""
    return hashlib.sha256(before.encode() + line).hexdigest()[:_DIGEST]


def digests(raw: bytes, lines: list[sealed_lines.SealedLine], before: str) -> list[str]:
    """The digest after each line of a file; after an incomplete line, that of the line before."""
    behind = []
    start = 0
    for line in lines:
        piece, start = raw[start : line.end], line.end
        if line.problem != "cut short":
            if not piece.endswith(b"\n"):
                # The next writer adds the newline.
                piece = (piece if line.problem is None else piece[:-1]) + b"\n"
            before = chain_digest(before, piece)
        behind.append(before)
    return behind


def parse(raw: bytes) -> Iterator[sealed_lines.SealedLine]:
    """The lines of a log, in valid Unicode. Only escapes can stand for lone surrogates, and few logs have any."""
    lines = sealed_lines.parse(raw)
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return lines
    return (line._replace(value=whole_value(line.value)) for line in lines)


def upgrade(line: sealed_lines.SealedLine, path: str) -> sealed_lines.SealedLine:
    """A line in the present format; a line without a number is damaged. Raises `NewerFormat`."""
    if line.value is not None:
        try:
            layout.bring_up(layout.LOG_FORMAT, line.value, path)
        except layout.BadVersion:
            return line._replace(value=None, problem=NO_ENTRY)
    return line


def header_parent(line: sealed_lines.SealedLine, path: str) -> Point | None:
    """The position that the first line of a log continues; `UNREADABLE` if it is not a first line of this log."""
    log = os.path.basename(path).removesuffix(SUFFIX)
    match line.value:
        case {"log": str(log_id), "parent": {"log": str(parent), "offset": int(offset)} as point} if log_id == log:
            digest = point.get("digest", "")
            return Point(parent, offset, digest) if is_id(parent) and isinstance(digest, str) else UNREADABLE
        case {"log": str(log_id), "parent": None} if log_id == log:
            return None
        case _:
            return UNREADABLE


def has_header(lines: list[sealed_lines.SealedLine], path: str) -> bool:
    """Whether the first line of a log is readable."""
    return bool(lines) and header_parent(lines[0], path) is not UNREADABLE


def parent_in(lines: list[sealed_lines.SealedLine], path: str) -> Point | None:
    """The position that a log continues, by its lines; `None` also if its first line cannot be read."""
    parent = header_parent(lines[0], path) if lines else None
    return parent if parent is not UNREADABLE else None


def share(source: str, target: str) -> None:
    """Link a file under another name; copy it if the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


LEDGER_SIZE = "ledger.size"
_SIZE_DIGITS = 16


class LedgerSize(NamedTuple):
    """The minimum length of the ledger in bytes, whether it was found shorter, and the error of reading that."""

    size: int = 0
    is_short: bool = False
    problem: str | None = None


def read_ledger_size(directory: str) -> LedgerSize:
    """The recorded length of the ledger in `directory`."""
    try:
        raw = atomic.read_file(os.path.join(directory, LEDGER_SIZE))
    except (OSError, Refused):
        return LedgerSize()
    try:
        entry = sealed_lines.unseal(raw.removesuffix(b"\n"))
        if entry["v"] != 1 or not raw.endswith(b"\n"):
            raise ValueError
        return LedgerSize(int(entry["size"]), bool(entry["short"]))
    except (ValueError, KeyError, TypeError):
        return LedgerSize(problem="the recorded length of the ledger cannot be read")


def ledger_size_line(size: int, *, is_short: bool) -> bytes:
    """The content of the file."""
    return sealed_lines.seal({"v": 1, "size": f"{size:0{_SIZE_DIGITS}}", "short": int(is_short)})


def start_of_last_line(raw: bytes) -> int:
    """The start of the last line of a ledger with the bytes `raw`."""
    return raw.rfind(b"\n", 0, len(raw) - 1) + 1 if raw else 0


def write_ledger_size(directory: str, size: int, *, is_short: bool) -> None:
    """Record the minimum length of the ledger. A disk error loses only this record."""
    path = os.path.join(directory, LEDGER_SIZE)
    content = ledger_size_line(size, is_short=is_short)
    try:
        try:
            descriptor = atomic.open_regular(path, os.O_RDWR)
        except FileNotFoundError:
            atomic.write_file(path, content)
            return
        try:
            os.pwrite(descriptor, content, 0)
            if os.fstat(descriptor).st_size != len(content):
                os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)
    except (OSError, Refused):
        pass


class Message(NamedTuple):
    """One message of a conversation. `at` is RFC 3339 in UTC, `message` pydantic-ai's JSON of it."""

    turn: int
    at: str
    message: dict[str, Any]


class Compaction(NamedTuple):
    """A compaction of a conversation: the index of the summary among its messages, and the number of messages that stay
    before it.
    """

    place: int
    keeps: int


class MessageList(NamedTuple):
    """The contents of a log, together with those that it continues.

    `end` is the offset in the log after its last line, and `digest` that of this position. `lost` is the reason if a
    part of it has changed.
    """

    messages: list[Message]
    damage: list[LogDamage]
    last_turn: int
    compactions: list[Compaction] = []
    end: int = 0
    digest: str = ""
    lost: LogDamage | None = None


def header(log: str, parent: Point | None = None) -> dict[str, Any]:
    """The first line of a log. `parent` is the position in another log that it continues."""
    return {
        "v": LOG_FORMAT,
        "log": log,
        "parent": parent.document() if parent is not None else None,
        "at": quantities.now(),
    }


def parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message, without invalid ones."""
    value = message.get("parts")
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def prompt(message: dict[str, Any]) -> str | None:
    """The typed text, if this message is the request with the prompt.

    Memory snapshots and other text of capabilities are user-role parts too; they carry metadata.
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


def _fits(entry: dict[str, Any]) -> bool:
    """Whether the numbers of an entry are valid: its turn, and its references to results and a compaction."""
    return all(type(number := entry.get(key, 0)) is int and 0 <= number < _LARGEST for key in _NUMBERS)


class LogReader:
    """Reads the lines of one log into messages."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._results: list[dict[str, Any]] = []
        self._instructions: str | None = None
        self._turn = 0
        self._at = ""
        self.messages: list[Message] = []
        self.compactions: list[Compaction] = []
        self.damage: list[LogDamage] = []
        self.last_turn = 0
        self.lacks_instructions = False
        """Whether a request has the instructions of an earlier one, from before the first processed line."""

    def take(self, line: sealed_lines.SealedLine) -> None:
        """Process the next line."""
        entry = line.value
        if entry is None:
            is_torn = line.problem == "cut short"
            self.damage.append(LogDamage(self._file, line.number, line.problem or "unreadable", is_torn))
            return
        if "log" in entry or "lost" in entry:
            return
        match entry:
            case {"turn": int(turn), "at": str(at), "result": {"part_kind": str()} as result} if _fits(entry):
                self._begin(turn, at)
                self._results.append(result)
            case {"turn": int(turn), "at": str(at), "message": {"kind": str(), "parts": list()} as message} if _fits(
                entry
            ):
                self._begin(turn, at)
                self._message(dict(message), entry)
                if "keeps" in entry:
                    self.compactions.append(Compaction(len(self.messages) - 1, entry["keeps"]))
            case _:
                self.damage.append(LogDamage(self._file, line.number, log_file.NO_ENTRY, False))
                return
        self.last_turn = max(self.last_turn, self._turn)

    def _begin(self, turn: int, at: str) -> None:
        if turn != self._turn:
            self._flush(len(self._results))
        self._turn, self._at = turn, quantities.known_time(at)

    def _message(self, message: dict[str, Any], entry: dict[str, Any]) -> None:
        result_count = entry.get("results", 0)
        if replaced_count := entry.get("replaces", 0):
            del self._results[-replaced_count:]
        if message["kind"] == "response" or result_count < len(self._results):
            # Results whose request was never written: after a kill, or with a damaged line.
            self._flush(len(self._results) - result_count)
        if result_count:
            message["parts"] = self._results[-result_count:] + message["parts"]
            self._results = []
        if message["kind"] == "request":
            if entry.get("same_instructions"):
                self.lacks_instructions |= self._instructions is None
                message["instructions"] = self._instructions
            self._instructions = message.get("instructions")
        self.messages.append(Message(self._turn, self._at, message))

    def _flush(self, count: int) -> None:
        if count > 0:
            request = {"kind": "request", "parts": self._results[:count]}
            self.messages.append(Message(self._turn, self._at, request))
            del self._results[:count]

    def finish(self) -> None:
        """There are no more lines."""
        self._flush(len(self._results))


_TAGS = (
    *("attached-file", "context-file", "context", "memory", "plan-reminder", "shared-memory"),
    *("slash-command", "stdin", "system"),
    # The other blocks of pydantic-ai.
    *("assistant_thinking", "context_diff", "conversation_summary", "retry_feedback", "tool_result"),
    "validation_errors",
)
# Not `\s*/?\s*`, which takes quadratic time for a long run of spaces.
_TAG = re.compile(rf"<(?=\s*(?:/\s*)?(?:{'|'.join(_TAGS)})\b)", re.IGNORECASE)


PIPED = "\n\n<stdin>\n"
"""Separates the typed text from piped or printed text."""


COMMAND, COMMAND_END = '\n\n<slash-command name="', "</slash-command>"
"""The beginning of the block with the text of a prompt command, behind the typed line, and its end."""
_ADDITION = re.compile(f"{re.escape(PIPED)}|{re.escape(COMMAND)}")


def split_typed(text: str) -> tuple[str, str]:
    """The typed text of a prompt, and what was added to it: the text of a command, and piped or printed text."""
    addition = _ADDITION.search(text)
    return (text, "") if addition is None else (text[: addition.start()], text[addition.start() :])


def typed_part(text: str) -> str:
    """The typed text of a prompt; if nothing was typed, the whole prompt."""
    return split_typed(text)[0].rstrip() or text


def escaped_tags(text: str) -> str:
    """A text for use inside a block: it can neither end the block nor start another one."""
    return _TAG.sub("&lt;", text)
