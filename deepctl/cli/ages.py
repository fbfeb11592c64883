"""Ages on the command line, such as `30d`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from deepctl.errors import UsageError

_AGE = re.compile(r"([0-9]{1,9})(mo|m|h|d|w|y)", re.ASCII)
_DAY = 24 * 60
_MINUTES = {"m": 1, "h": 60, "d": _DAY, "w": 7 * _DAY, "mo": 30 * _DAY, "y": 365 * _DAY}


def day_or_age(text: str) -> datetime:
    """The begin of the day in local time for `today`; else like `time_before`."""
    if text == "today":
        return datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
    return time_before(text, instead="today, or ")


def time_before(age: str, now: datetime | None = None, *, instead: str = "") -> datetime:
    """The time that was `age` ago, in UTC. A month is 30 days, a year 365.

    Raises `UsageError` for an invalid age; `instead` names what else is valid.
    """
    match = _AGE.fullmatch(age)
    if match is None or not int(match[1]):
        raise UsageError(
            f"{age!a} is not an age.",
            f"Give {instead}a number and its unit, such as 90m (minutes), 12h, 30d, 2w, 6mo (months) or 1y.",
            code="bad_age",
        )
    try:
        return (now or datetime.now(timezone.utc)) - timedelta(minutes=int(match[1]) * _MINUTES[match[2]])
    except OverflowError:
        raise UsageError(f"The age {age} is too long.", "Give a shorter age.", code="bad_age") from None
