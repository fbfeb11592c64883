"""The message log of a session: what its lines mean, read and written.

Every line is sealed (`deepctl.files.sealed_lines`) and carries `v`, the version of the format:

- the first: `{v, log, parent, at}`: the log's id and, where it continues another, `{log, offset}` of that one;
- `{v, turn, at, message}`: one message, as pydantic-ai's own JSON. `"same_instructions": true` stands for the
  instructions of the request before, which would otherwise repeat kilobytes a message;
- `{v, turn, at, result}`: one tool result, written as soon as the tool is done. The request that sends the results
  to the model follows as a message whose `"results": n` says that it begins with the last n of them, or, where it
  was put together differently, `"replaces": n` that it takes their place;
- `{v, turn, at, message, keeps}`: a compaction. The message is a summary of what came before; from here on the model
  sees it, and the last `keeps` messages before it, instead of all of them (`deepctl.store.compacted_context`);
- `{v, lost}`: a message was here that is lost; a repair put this in its place.

Text in a log is valid Unicode: lone surrogates are replaced when it is written, and when it is read, since deepctl 0.1
wrote them as they came.

What a kill leaves is a prefix of what would have been written, at worst with a torn last line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from deepctl import layout, quantities
from deepctl.errors import Damaged
from deepctl.files import atomic, sealed_lines
from deepctl.store import log_chain, log_file
from deepctl.store.log_file import LogDamage, Point, is_id, log_path
from deepctl.unicode import whole_value

FORMAT = layout.LOG_FORMAT.current
_NUMBERS = ("turn", "keeps", "results", "replaces")
_LARGEST = 1 << 63


class Message(NamedTuple):
    """One message of a conversation. `at` is RFC 3339 in UTC, `message` pydantic-ai's JSON of it."""

    turn: int
    at: str
    message: dict[str, Any]


class Compaction(NamedTuple):
    """Where a conversation was compacted: the place of the summary among its messages, and how many before it stay."""

    place: int
    keeps: int


class MessageList(NamedTuple):
    """What a log, together with those it continues, holds.

    `end` is the offset in the log behind its last line, and `digest` that of this position. `lost` is why a
    part of it is not what was written.
    """

    messages: list[Message]
    damage: list[LogDamage]
    last_turn: int
    compactions: list[Compaction] = []
    end: int = 0
    digest: str = ""
    lost: LogDamage | None = None


def header(log: str, parent: Point | None = None) -> dict[str, Any]:
    """The first line of a log. `parent` is where in which other log it goes on."""
    return {
        "v": FORMAT,
        "log": log,
        "parent": parent.document() if parent is not None else None,
        "at": quantities.now(),
    }


def lines(messages: Iterable[Message], compactions: Iterable[Compaction] = ()) -> Iterator[bytes]:
    """Whole messages as the lines of a log, without its first."""
    instructions = None
    keeps = {compaction.place: compaction.keeps for compaction in compactions}
    for place, (turn, at, message) in enumerate(messages):
        message = whole_value(message)
        entry: dict[str, Any] = {"v": FORMAT, "turn": turn, "at": at, "message": message}
        if place in keeps:
            entry["keeps"] = keeps[place]
        if message["kind"] == "request":
            if message.get("instructions") is not None and message["instructions"] == instructions:
                entry["message"] = {**message, "instructions": None}
                entry["same_instructions"] = True
            instructions = message.get("instructions")
        yield sealed_lines.seal(entry)


def parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message, without what is no object."""
    value = message.get("parts")
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


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


def read(directory: str, log: str, end: int | None = None, digest: str = "") -> MessageList:
    """The conversation in a log and in those it continues, up to offset `end` in bytes.

    With `digest`, it is read from the copies that have it there, if there are any. Raises `Damaged` if a log's file is
    missing and `NewerFormat` if a later deepctl wrote it.
    """
    return of_chain(log_chain.resolve(directory, Point(log, end or 0, digest), is_open=end is None))


def of_chain(chain: log_chain.Chain) -> MessageList:
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
    return MessageList(messages, damage, last_turn, compactions, _end(chain), chain.digest, chain.lost)


def _end(chain: log_chain.Chain) -> int:
    """The offset behind the last whole line of the last log, with its newline or only lacking that."""
    whole = [line for line in chain.links[-1].lines if line.problem != "cut short"]
    return whole[-1].end - (whole[-1].value is not None and whole[-1].problem is not None) if whole else 0


def parent_of(directory: str, log: str) -> tuple[str, int] | None:
    """The log that a log continues, and from which offset, if it continues one. Raises `Damaged` if nobody can tell."""
    path = log_path(directory, log)
    first = next(sealed_lines.parse(log_file.read_lines(path)), None)
    match log_file.upgraded(first, path).value if first is not None else None:
        case {"parent": {"log": str(parent), "offset": int(offset)}} if is_id(parent):
            return parent, offset
        case {"parent": None}:
            return None
        case _:
            raise Damaged(f"The first line of {path} is damaged.")


class Plain(NamedTuple):
    """One line of a log that has whole messages only: the offset and the digest behind it, and its message.

    The first line has no message.
    """

    end: int
    message: dict[str, Any] | None
    digest: str


def plain_lines(directory: str, log: str, before: str = log_file.START) -> Iterator[Plain]:
    """The lines of a log without results of their own, up to the first that is damaged.

    `before` is the digest of the position that the log continues.
    """
    instructions = None
    path = log_path(directory, log)
    raw = log_file.read_lines(path)
    lines = list(log_file.parse(raw))
    for line, digest in zip(lines, log_file.digests(raw, lines, before), strict=True):
        if line.value is not None and layout.is_newer(layout.LOG_FORMAT, line.value):
            return
        line = log_file.upgraded(line, path)
        match line.value:
            case {"log": str()}:
                yield Plain(line.end, None, digest)
            case {"message": {"kind": str(kind), "parts": list()} as message} if line.value is not None:
                if line.value.get("same_instructions"):
                    message["instructions"] = instructions
                if kind == "request":
                    instructions = message.get("instructions")
                yield Plain(line.end, message, digest)
            case _:
                return


def end_of(directory: str, log: str) -> tuple[int, int]:
    """The offsets behind the first line of a log, which says what it continues, and behind its last whole line.

    Raises `Damaged` if its file is missing.
    """
    path = log_path(directory, log)
    try:
        descriptor = atomic.open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        raise log_file.missing(path) from None
    try:
        return os.pread(descriptor, 4096, 0).find(b"\n") + 1, sealed_lines.whole(descriptor)
    finally:
        os.close(descriptor)


def _fits(entry: dict[str, Any]) -> bool:
    """Whether the numbers of an entry make sense: its turn, and what it says of results and of a compaction."""
    return all(type(number := entry.get(key, 0)) is int and 0 <= number < _LARGEST for key in _NUMBERS)


class LogReader:
    """Puts the lines of one log together again."""

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
        """Whether a request has the instructions of one before the first line that was taken."""

    def take(self, line: sealed_lines.Line) -> None:
        """Take the next line into account."""
        entry = line.value
        if entry is None:
            torn = line.problem == "cut short"
            self.damage.append(LogDamage(self._file, line.number, line.problem or "unreadable", torn))
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
        joined = entry.get("results", 0)
        if replaced := entry.get("replaces", 0):
            del self._results[-replaced:]
        if message["kind"] == "response" or joined < len(self._results):
            # Results whose request was never written: a kill, or a line lost to damage.
            self._flush(len(self._results) - joined)
        if joined:
            message["parts"] = self._results[-joined:] + message["parts"]
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


class LogWriter:
    """Appends messages to a log, each on disk when the call returns. The caller holds the profile's lock.

    `digest` is that of the position at the log's end (`MessageList.digest`), and carried on; without it, the log is
    read for it. `size` is the length of the log if it has been read and ends with a whole line. `torn` is how many
    bytes of an unfinished last line were cut off on opening.
    """

    def __init__(
        self, directory: str, log: str, turn: int, digest: str | None = None, *, size: int | None = None
    ) -> None:
        self.digest = digest if digest is not None else read(directory, log).digest
        self._appender = log_file.open_lines(log_path(directory, log), size)
        self._log = log
        self.turn = turn
        self.torn = self._appender.torn
        self._results: list[dict[str, Any]] = []
        self._instructions: str | None = None
        self._written = 0

    @property
    def count(self) -> int:
        """How many messages have been written; results whose request is yet to come are one."""
        return self._written + bool(self._results)

    @property
    def end(self) -> int:
        """The offset in bytes behind the last line."""
        return self._appender.end

    @property
    def point(self) -> Point:
        """The position behind the last line."""
        return Point(self._log, self.end, self.digest)

    def result(self, part: dict[str, Any]) -> None:
        """Log one tool result."""
        part = whole_value(part)
        self._append({"result": part})
        self._results.append(part)

    def message(self, message: dict[str, Any]) -> None:
        """Log one message; the results it begins with, if logged already, are not written twice."""
        message = whole_value(message)
        entry: dict[str, Any] = {"message": message}
        if message["kind"] == "request":
            joined = len(self._results)
            if joined and message["parts"][:joined] == self._results:
                message = {**message, "parts": message["parts"][joined:]}
                entry = {"message": message, "results": joined}
            elif joined:
                # The request was put together differently: it stands for itself.
                entry["replaces"] = joined
            self._results = []
            instructions = message.get("instructions")
            if instructions is not None and instructions == self._instructions:
                entry["message"] = {**message, "instructions": None}
                entry["same_instructions"] = True
            self._instructions = instructions
        self._append(entry)
        self._written += 1

    def compacted(self, summary: dict[str, Any], keeps: int) -> None:
        """Log that from here on the model sees `summary` and the last `keeps` messages instead of all before it."""
        summary = whole_value(summary)
        self._append({"message": summary, "keeps": keeps})
        self._instructions = summary.get("instructions")
        self._written += 1

    def _append(self, entry: dict[str, Any]) -> None:
        line = sealed_lines.seal({"v": FORMAT, "turn": self.turn, "at": quantities.now(), **entry})
        self._appender.write([line])
        self.digest = log_file.chained(self.digest, line)

    def close(self) -> None:
        self._appender.close()
