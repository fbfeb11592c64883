"""The message log of a session: the meaning of its lines, and their writer. `session_reader` reads them.

Every line is sealed (`deepctl.files.sealed_lines`) and contains `v`, the version of the format:

- the first line, `{v, log, parent, at}`: the log's id and, if it continues another log, `{log, offset}` of that log;
- `{v, turn, at, message}`: one message, as pydantic-ai's own JSON. `"same_instructions": true` replaces instructions
  that equal those of the request before, which would repeat kilobytes in every message;
- `{v, turn, at, result}`: one tool result, written as soon as the tool is done. The request that sends the results
  to the model follows as a message with `"results": n` if it starts with the last n results. If its results differ, it
  has `"replaces": n` and replaces them;
- `{v, turn, at, message, keeps}`: a compaction. The message is a summary of the conversation so far; from here on the
  model receives it and the last `keeps` messages before it, instead of all of them (`compacted_context`);
- `{v, lost}`: the replacement for a lost message, written by a repair.

A compaction removes nothing from a log: readers of the conversation receive all messages. The log up to an earlier
offset, such as that of a checkpoint, is the conversation before the compaction.

Text in a log is valid Unicode: lone surrogates are replaced on writing, and on reading, because deepctl 0.1 wrote them
unchanged.

A kill leaves a prefix of the complete log, at worst with an incomplete last line.
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
    """Whole messages as the lines of a log, without its first line."""
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
    """The log that a log continues, and the offset in it; `None` if it continues no log. Raises `Damaged` if that is
    unknown.
    """
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
    """One line of a log with whole messages only: the offset and the digest after it, and its message.

    The first line has no message.
    """

    end: int
    message: dict[str, Any] | None
    digest: str


def plain_lines(directory: str, log: str, before: str = log_file.START) -> Iterator[Plain]:
    """The lines of a log with whole messages, up to the first line that is damaged or has a single result.

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

    `digest` is that of the position at the log's end (`MessageList.digest`), and updated with every line; without it,
    the log is read. `size` is the length of the log if it has been read and ends with a whole line. `torn` is the
    number of bytes of an incomplete last line that were cut off on opening.
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
        """The number of written messages; results without their request count as one message."""
        return self._written + bool(self._results)

    @property
    def end(self) -> int:
        """The offset in bytes after the last line."""
        return self._appender.end

    @property
    def point(self) -> Point:
        """The position after the last line."""
        return Point(self._log, self.end, self.digest)

    def result(self, part: dict[str, Any]) -> None:
        """Log one tool result."""
        part = whole_value(part)
        self._append({"result": part})
        self._results.append(part)

    def message(self, message: dict[str, Any]) -> None:
        """Log one message; logged results at its start are not written twice."""
        message = whole_value(message)
        entry: dict[str, Any] = {"message": message}
        if message["kind"] == "request":
            result_count = len(self._results)
            if result_count and message["parts"][:result_count] == self._results:
                message = {**message, "parts": message["parts"][result_count:]}
                entry = {"message": message, "results": result_count}
            elif result_count:
                # The request does not start with the logged results, so it is written completely.
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
        """Log that the model now receives `summary` and the last `keeps` messages instead of all messages before it."""
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
    """The places of the messages that the model receives, in this order.

    It receives all messages from the place `begins` on. Before them come the summary (`summary` is its place, `None` if
    there is none) and, if the summary was written in the middle of a turn, the prompt of that turn.
    """

    places: list[int]
    begins: int = 0
    summary: int | None = None


def compacted_context(conversation: MessageList) -> CompactedContext:
    """The part of a conversation that the model receives; of several compactions the last one counts."""
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
    """The place of a turn's prompt, if the message at `place` belongs to that turn and comes after the prompt."""
    messages = conversation.messages
    first = place
    while messages[place].turn == turn and first and messages[first - 1].turn == turn:
        first -= 1
    return [index for index in range(first, place) if log_file.prompt(messages[index].message) is not None][:1]
