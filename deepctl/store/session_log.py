"""The message log of a session: what its lines mean, and what writes them. `session_reader` reads them.

Every line is sealed (`deepctl.files.sealed_lines`) and carries `v`, the version of the format:

- the first: `{v, log, parent, at}`: the log's id and, where it continues another, `{log, offset}` of that one;
- `{v, turn, at, message}`: one message, as pydantic-ai's own JSON. `"same_instructions": true` stands for the
  instructions of the request before, which would otherwise repeat kilobytes a message;
- `{v, turn, at, result}`: one tool result, written as soon as the tool is done. The request that sends the results
  to the model follows as a message whose `"results": n` says that it begins with the last n of them, or, where it
  was put together differently, `"replaces": n` that it takes their place;
- `{v, turn, at, message, keeps}`: a compaction. The message is a summary of what came before; from here on the model
  sees it, and the last `keeps` messages before it, instead of all of them (`compacted_context`);
- `{v, lost}`: a message was here that is lost; a repair put this in its place.

A compaction takes nothing out of a log: a reader of the conversation has all of it, and the log up to an earlier
offset, which is what a checkpoint names, is the conversation before the compaction.

Text in a log is valid Unicode: lone surrogates are replaced when it is written, and when it is read, since deepctl 0.1
wrote them as they came.

What a kill leaves is a prefix of what would have been written, at worst with a torn last line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

from deepctl import layout, quantities
from deepctl.errors import Damaged
from deepctl.files import sealed_lines
from deepctl.store import log_file
from deepctl.store.log_file import (
    LOG_FORMAT,
    Compaction,
    Message,
    MessageList,
    Point,
    is_id,
    log_path,
)
from deepctl.store.session_reader import SessionReader, read_log
from deepctl.unicode import whole_value


def lines(messages: Iterable[Message], compactions: Iterable[Compaction] = ()) -> Iterator[bytes]:
    """Whole messages as the lines of a log, without its first."""
    instructions = None
    keeps = {compaction.place: compaction.keeps for compaction in compactions}
    for place, (turn, at, message) in enumerate(messages):
        message = whole_value(message)
        entry: dict[str, Any] = {"v": LOG_FORMAT, "turn": turn, "at": at, "message": message}
        if place in keeps:
            entry["keeps"] = keeps[place]
        if message["kind"] == "request":
            if message.get("instructions") is not None and message["instructions"] == instructions:
                entry["message"] = {**message, "instructions": None}
                entry["same_instructions"] = True
            instructions = message.get("instructions")
        yield sealed_lines.seal(entry)


def parent_of(directory: str, log: str) -> tuple[str, int] | None:
    """The log that a log continues, and from which offset, if it continues one. Raises `Damaged` if it is unknown."""
    path = log_path(directory, log)
    first = next(sealed_lines.parse(log_file.read_lines(path)), None)
    match log_file.upgrade(first, path).value if first is not None else None:
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
        line = log_file.upgrade(line, path)
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


class LogWriter:
    """Appends messages to a log, each on disk when the call returns. The caller holds the profile's lock.

    `digest` is that of the position at the log's end (`MessageList.digest`), and carried on; without it, the log is
    read for it. `size` is the length of the log if it has been read and ends with a whole line. `torn` is how many
    bytes of an unfinished last line were cut off on opening.
    """

    def __init__(
        self, directory: str, log: str, turn: int, digest: str | None = None, *, size: int | None = None
    ) -> None:
        self.digest = digest if digest is not None else read_log(directory, log).digest
        self._appender = log_file.open_lines(log_path(directory, log), size)
        self._log = log
        self.turn = turn
        self.torn = self._appender.torn
        self._results: list[dict[str, Any]] = []
        self._instructions: str | None = None
        self._written = 0

    @classmethod
    def after(cls, reader: SessionReader, turn: int) -> Self:
        """The writer of the log that `reader` has read; it is not read again."""
        session = reader.session
        return cls(session.directory, session.log, turn, reader.whole().digest, size=reader.size)

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
            result_count = len(self._results)
            if result_count and message["parts"][:result_count] == self._results:
                message = {**message, "parts": message["parts"][result_count:]}
                entry = {"message": message, "results": result_count}
            elif result_count:
                # The request was put together differently: it stands for itself.
                entry["replaces"] = result_count
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
        line = sealed_lines.seal({"v": LOG_FORMAT, "turn": self.turn, "at": quantities.now(), **entry})
        self._appender.write([line])
        self.digest = log_file.chain_digest(self.digest, line)

    def close(self) -> None:
        self._appender.close()


class CompactedContext(NamedTuple):
    """The places of the messages that the model sees, in the order in which it sees them.

    `begins` is the place from which on it sees all that was said. Of what is before, it sees the summary (`summary` is
    the place of that, `None` where there is none), and the prompt of the turn in the middle of which that was written.
    """

    places: list[int]
    begins: int = 0
    summary: int | None = None


def compacted_context(conversation: MessageList) -> CompactedContext:
    """What the model sees of a conversation; of several compactions the last one counts."""
    messages = conversation.messages
    if not conversation.compactions:
        return CompactedContext(list(range(len(messages))))
    summary, keeps = conversation.compactions[-1]
    summaries = {compaction.place for compaction in conversation.compactions}
    begins = max(summary - keeps, 0)
    tail = [place for place in range(begins, summary) if place not in summaries]
    goes_on = bool(tail) and messages[tail[-1]].message["kind"] == "request"
    prompt = _prompt_of(conversation, tail[0], messages[summary].turn) if goes_on else []
    return CompactedContext([summary, *prompt, *tail, *range(summary + 1, len(messages))], begins, summary)


def _prompt_of(conversation: MessageList, place: int, turn: int) -> list[int]:
    """The place of a turn's prompt, if the message at `place` is of that turn and comes after it."""
    messages = conversation.messages
    first = place
    while messages[place].turn == turn and first and messages[first - 1].turn == turn:
        first -= 1
    return [index for index in range(first, place) if log_file.prompt(messages[index].message) is not None][:1]
