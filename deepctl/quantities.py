"""Quantities as text: points in time as they are stored, sizes and counts for people.

A stored time is RFC 3339 in UTC, `2026-01-31T09:30:00.123456Z`. A time that is read may come from an archive or from a
damaged file. It is checked once, where it is read, so all other code can rely on it.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""Stands for an unknown time: the beginning of the Unix epoch, which is before every stored time."""

_STORED_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


def now() -> str:
    """The time, to the microsecond."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now_in_seconds() -> str:
    """The time, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_at(seconds: float) -> str:
    """A time in seconds since the epoch, to the second."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_time(text: str) -> bool:
    """Whether `text` is a valid stored time."""
    if _STORED_TIME.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def known_time(value: object) -> str:
    """`value` if it is a valid stored time, else `UNKNOWN_TIME`."""
    return value if isinstance(value, str) and is_time(value) else UNKNOWN_TIME


def counted(count: int, noun: str) -> str:
    """A count with its noun: `1 turn`, `2,000 turns`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """A number of bytes for people: `512 B`, `1.5 KiB`."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        amount /= 1024
        if amount < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} TiB"
