"""The sums of a profile's usage by day, for budgets: a long file is not read again for each request.

Days and months are those of the local calendar. The sums are kept in this process, and in `cache/usage` of the
profile, with the offset in `usage.jsonl` up to which they count and a checksum of the bytes before it. Only what
follows is read. Sums that do not fit to the file, or were computed in another time zone, are computed again. The file
in the cache is never evidence: it may be deleted at any time.
"""

from __future__ import annotations

import json
import os
import threading
import time
import zlib
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

from deepctl.errors import DeepctlError
from deepctl.files import atomic, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import usage_log
from deepctl.store.usage_log import UsageEntry

_VERSION = 1
_CHECKED = 512
"""Bytes before the offset whose checksum is compared."""
_STORED_AFTER = 32 << 10
"""Bytes that are read again by each process, before the file in the cache is written anew."""


class Sums(NamedTuple):
    """The sums of a time: USD, as far as prices are known, and tokens sent and received."""

    cost: float = 0.0
    tokens: int = 0

    def plus(self, cost: float, tokens: int) -> Sums:
        """The sums with an addition."""
        return Sums(self.cost + cost, self.tokens + tokens)


class CalendarSums(NamedTuple):
    """The sums of the present day and of the present month."""

    day: Sums = Sums()
    month: Sums = Sums()

    def plus(self, sums: CalendarSums) -> CalendarSums:
        """The sums of both."""
        return CalendarSums(self.day.plus(*sums.day), self.month.plus(*sums.month))


def now() -> datetime:
    """The present time in the local time zone."""
    return datetime.now().astimezone()


def today() -> str:
    """The present day of the local calendar, such as `2026-11-30`."""
    return now().strftime("%Y-%m-%d")


def day_of(at: str) -> str:
    """The day of the local calendar of a stored time."""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d")


def of_entries(entries: list[UsageEntry]) -> CalendarSums:
    """The sums of requests that are in no file."""
    state = _State()
    for entry in entries:
        state.add(entry)
    return state.sums(today())


class _State:
    """The sums of a file up to an offset. Open requests count with their estimates until they end."""

    def __init__(self) -> None:
        self.end = 0
        self.check = 0
        self.inode = 0
        self.days: dict[str, Sums] = {}
        self.open: dict[str, tuple[str, float, int]] = {}
        self._minutes: dict[str, str] = {}

    def add(self, entry: UsageEntry) -> None:
        before = self.open.pop(entry.id, None)
        if before is not None:
            day, cost, tokens = before
            self.days[day] = self.days[day].plus(-cost, -tokens)
        minute = entry.at[:16]
        day = self._minutes.get(minute) or self._minutes.setdefault(minute, day_of(entry.at))
        cost, tokens = entry.cost or 0.0, entry.input + entry.output
        self.days[day] = self.days.get(day, Sums()).plus(cost, tokens)
        if entry.is_open:
            self.open[entry.id] = (day, cost, tokens)

    def sums(self, day: str) -> CalendarSums:
        month = Sums()
        for other_day, sums in self.days.items():
            if other_day.startswith(day[:7]):
                month = month.plus(*sums)
        return CalendarSums(self.days.get(day, Sums()), month)

    def document(self) -> dict[str, Any]:
        return {
            "v": _VERSION,
            "zone": _zone(),
            "end": self.end,
            "check": self.check,
            "days": self.days,
            "open": self.open,
        }

    @classmethod
    def of_document(cls, document: Any) -> _State:
        """Raises `LookupError`, `TypeError` or `ValueError` for anything else."""
        if document["v"] != _VERSION or document["zone"] != _zone():
            raise ValueError
        state = cls()
        state.end, state.check = int(document["end"]), int(document["check"])
        state.days = {str(day): Sums(float(cost), int(tokens)) for day, (cost, tokens) in document["days"].items()}
        state.open = {
            str(identity): (str(day), float(cost), int(tokens))
            for identity, (day, cost, tokens) in document["open"].items()
        }
        return state


_states: dict[str, tuple[str, _State]] = {}
"""The sums that this process has computed, with their time zone, by the path of the file."""
_states_lock = threading.Lock()
"""Threads that only read have no lock of the usage, and a budget of all profiles reads the files of others."""


def _zone() -> str:
    return f"{time.tzname} {time.timezone} {time.altzone}"


def read(paths: ProfilePaths) -> CalendarSums:
    """The sums of a profile's file; 0 without the file. The caller holds the lock of the usage, or only reads.

    Never writes. Raises `NewerFormat`, `Refused` and `OSError`.
    """
    with _states_lock:
        state = _update(paths)[0]
        return state.sums(today()) if state is not None else CalendarSums()


def read_and_store(paths: ProfilePaths) -> CalendarSums:
    """The same, and store the sums if much of the file had to be read. The caller holds the lock of the usage."""
    with _states_lock:
        state, read_bytes = _update(paths)
        if state is None:
            return CalendarSums()
        if read_bytes > _STORED_AFTER:
            with suppress(OSError, DeepctlError):
                atomic.make_root(paths.cache)
                atomic.replace_unsynced(paths.usage_sums, json.dumps(state.document()).encode() + b"\n")
        return state.sums(today())


def _update(paths: ProfilePaths) -> tuple[_State | None, int]:
    """The sums up to the end of the file, and the number of bytes that were read for them."""
    try:
        descriptor = atomic.open_regular(paths.usage, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None, 0
    try:
        status = os.fstat(descriptor)
        state = _known(paths, descriptor, status)
        # If reading breaks off, the lines that count already would count again.
        _states.pop(paths.usage, None)
        start = state.end
        raw = os.pread(descriptor, status.st_size - start, start) if status.st_size > start else b""
        raw = raw[: raw.rfind(b"\n") + 1]
        for line in sealed_lines.parse(raw):
            entry, _ = usage_log.entry_of(line, paths.usage)
            if entry is not None:
                state.add(entry)
        state.end = start + len(raw)
        state.check, state.inode = _checksum(descriptor, state.end), status.st_ino
        _states[paths.usage] = (_zone(), state)
        return state, len(raw)
    finally:
        os.close(descriptor)


def _known(paths: ProfilePaths, descriptor: int, status: os.stat_result) -> _State:
    """The sums that fit to the file: those of this process, or those in the cache, or none."""
    zone, state = _states.get(paths.usage, ("", None))
    if state is not None and (zone, state.inode) == (_zone(), status.st_ino) and _fits(state, descriptor, status):
        return state
    with suppress(OSError, DeepctlError, LookupError, TypeError, ValueError, AttributeError, RecursionError):
        stored = _State.of_document(json.loads(atomic.read_file(paths.usage_sums)))
        if _fits(stored, descriptor, status):
            return stored
    return _State()


def _fits(state: _State, descriptor: int, status: os.stat_result) -> bool:
    return state.end <= status.st_size and state.check == _checksum(descriptor, state.end)


def _checksum(descriptor: int, end: int) -> int:
    start = max(0, end - _CHECKED)
    return zlib.crc32(os.pread(descriptor, end - start, start))
