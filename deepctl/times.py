"""Points in time as they are kept, `2026-01-31T09:30:00.123456Z`: RFC 3339 in UTC.

What is read may come from an archive, or from a damaged file. It is checked once, where it is read: everything above
can rely on a time being one.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone

UNKNOWN = "1970-01-01T00:00:00Z"
"""Stands for a time that is not known: the beginning of the Unix epoch, which is before anything that is kept."""

_FORM = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z")


def now() -> str:
    """The time, to the microsecond."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now_in_seconds() -> str:
    """The time, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def at(seconds: float) -> str:
    """A time in seconds since the epoch, to the second."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_valid(text: str) -> bool:
    """Whether `text` is a point in time as it is kept."""
    if _FORM.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def known(value: object) -> str:
    """`value` if it is a point in time as it is kept, else `UNKNOWN`."""
    return value if isinstance(value, str) and is_valid(value) else UNKNOWN
