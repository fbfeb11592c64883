"""Conversations that an application passes completely with every checkpoint, stored without repetition.

Their logs have the form of a session's log (`deepctl.store.session_log`). A digest over the chain identifies, at every
message, all messages before it. So only new messages of a conversation are written, and a conversation that branches
from the middle of another gets a log that continues it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from deepctl import quantities
from deepctl.errors import Damaged
from deepctl.files import atomic, sealed_lines
from deepctl.store import log_file, session_log, session_reader
from deepctl.store.log_file import START as START_DIGEST
from deepctl.store.log_file import Point, chain_digest
from deepctl.unicode import whole_value

START = b""
"""The digest of the empty conversation."""


class ChainEnd(NamedTuple):
    """The end of a conversation: the log, the offset in bytes after its last message, and the number of messages.

    `digest` is that of the position (`deepctl.store.log_chain`).
    """

    log: str
    offset: int
    messages: int
    digest: str = ""

    @property
    def point(self) -> Point:
        """The same as a position in a log."""
        return Point(self.log, self.offset, self.digest)


def continued(before: bytes, message: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The digest of a conversation that continues with `message`, and the message in valid Unicode."""
    raw = _encoded(message)
    if b"\\ud" in raw or b"\\uD" in raw:
        # Only escapes can stand for lone surrogates, and few messages have any.
        message = whole_value(message)
        raw = _encoded(message)
    return hashlib.blake2b(before + raw, digest_size=16).digest(), message


def _encoded(message: dict[str, Any]) -> bytes:
    return json.dumps(message, sort_keys=True, separators=(",", ":")).encode()


class _LogStatus(NamedTuple):
    """What shows that a log was replaced or changed: its inode, its size in bytes and its time in nanoseconds."""

    inode: int
    size: int
    modified: int


class MessageChains:
    """The conversations below `directory`. The caller holds its lock."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._known: dict[bytes, ChainEnd] = {}
        self._ends: dict[str, bytes] = {}
        self._instructions: dict[str, Any] = {}
        self._statuses: dict[str, _LogStatus] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self._tails: dict[str, str] = {}
        if os.path.isdir(directory):
            pending = {
                name.removesuffix(log_file.SUFFIX) for name in os.listdir(directory) if name.endswith(log_file.SUFFIX)
            }
            chains: dict[tuple[str, int], bytes] = {}
            for log_id in pending:
                self._statuses[log_id] = self._status(log_id)
            while pending:
                self._load(pending.pop(), pending, chains)

    def __len__(self) -> int:
        """The number of stored messages."""
        return len(self._known)

    def _load(self, log_id: str, pending: set[str], chains: dict[tuple[str, int], bytes]) -> None:
        try:
            parent = session_log.parent_of(self.directory, log_id)
        except Damaged:
            return
        chain, count, instructions, end, before = START, 0, None, 0, ""
        if parent is not None:
            if parent[0] in pending:
                pending.discard(parent[0])
                self._load(parent[0], pending, chains)
            if parent not in chains:
                return  # the log that it continues is damaged: it is read, but nothing is appended to it
            chain = chains[parent]
            count, before = self._known[chain].messages, self._digests[parent]
        for line in session_log.plain_lines(self.directory, log_id, before):
            end = line.end
            if line.message is not None:
                if line.message["kind"] == "request":
                    instructions = line.message.get("instructions")
                chain, count = continued(chain, line.message)[0], count + 1
                self._known.setdefault(chain, ChainEnd(log_id, end, count, line.digest))
            chains[log_id, end] = chain
            self._digests[log_id, end] = self._tails[log_id] = line.digest
        if end == session_reader.end_of(self.directory, log_id)[1]:
            self._ends[log_id] = chain
            self._instructions[log_id] = instructions

    def is_current(self, chain: Sequence[bytes]) -> bool:
        """Whether the log at the end of a conversation is as this object knows it.

        A process that writes to a log also writes to the ledger, which is checked first. It may have been killed
        between the two.
        """
        _, place = self.find(chain)
        if place is None:
            return True
        try:
            return self._status(place.log) == self._statuses.get(place.log)
        except OSError:
            return False

    def is_unchanged(self) -> bool:
        """Whether all logs are as this object knows them."""
        try:
            return all(self._status(log_id) == status for log_id, status in self._statuses.items())
        except OSError:
            return False

    def _status(self, log_id: str) -> _LogStatus:
        status = os.lstat(log_file.log_path(self.directory, log_id))
        return _LogStatus(status.st_ino, status.st_size, status.st_mtime_ns)

    def find(self, chain: Sequence[bytes]) -> tuple[int, ChainEnd | None]:
        """The stored part of a conversation, given by the digests up to each message, and its end."""
        for count in range(len(chain), 0, -1):
            if (place := self._known.get(chain[count - 1])) is not None:
                return count, place
        return 0, None

    def keep(self, chain: Sequence[bytes], new: Sequence[dict[str, Any]], turns: Sequence[int]) -> ChainEnd:
        """Store a conversation; `new` are its messages beyond the result of `find`, each in one of `turns`.

        Synced when it returns.
        """
        common_length, place = self.find(chain)
        if not new:
            return place or ChainEnd("", 0, 0)
        before = chain[common_length - 1] if common_length else START
        goes_on = place is not None and self._ends.get(place.log) == before
        log_id = place.log if place is not None and goes_on else os.urandom(8).hex()
        entries = []
        for message, turn in zip(new, turns, strict=True):
            entry: dict[str, Any] = {"v": log_file.LOG_FORMAT, "turn": turn, "at": quantities.now(), "message": message}
            if message.get("kind") == "request":
                instructions = message.get("instructions")
                if instructions is not None and instructions == self._instructions.get(log_id):
                    entry["message"] = {**message, "instructions": None}
                    entry["same_instructions"] = True
                self._instructions[log_id] = instructions
            entries.append(entry)
        lines = [sealed_lines.seal(entry) for entry in entries]
        ends = self._add(log_id, lines) if goes_on else self._begin(log_id, place, lines)
        for number, (line, end) in enumerate(zip(lines, ends, strict=True), common_length):
            self._tails[log_id] = chain_digest(self._tails[log_id], line)
            self._known[chain[number]] = ChainEnd(log_id, end, number + 1, self._tails[log_id])
        self._ends[log_id] = chain[-1]
        self._statuses[log_id] = self._status(log_id)
        return self._known[chain[-1]]

    def _add(self, log_id: str, lines: list[bytes]) -> list[int]:
        """Write lines to a log. Returns the offset after each."""
        appender = log_file.open_lines(log_file.log_path(self.directory, log_id))
        try:
            return appender.write(lines)
        finally:
            appender.close()

    def _begin(self, log_id: str, place: ChainEnd | None, lines: list[bytes]) -> list[int]:
        """The same for a new log, which continues from `place`."""
        atomic.make_root(self.directory)
        first = sealed_lines.seal(log_file.header(log_id, place.point if place is not None else None))
        log_file.write_lines(log_file.log_path(self.directory, log_id), b"".join([first, *lines]))
        self._tails[log_id] = chain_digest(place.digest if place is not None else START_DIGEST, first)
        return list(accumulate(map(len, lines), initial=len(first)))[1:]
