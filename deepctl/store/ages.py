"""How long ago something has to be: `90m`, `12h`, `30d`, `2w`, `6mo`, `1y`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from deepctl.errors import UsageError

_AGE = re.compile(r"([0-9]{1,9})(mo|m|h|d|w|y)", re.ASCII)
_UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "mo": timedelta(days=30),
    "y": timedelta(days=365),
}


def before(age: str, now: datetime | None = None) -> datetime:
    """The time that is so long ago, in UTC. A month is 30 days, a year 365. Raises `UsageError` if it is no age."""
    found = _AGE.fullmatch(age)
    if found is None or not int(found[1]):
        raise UsageError(
            f"{age!a} is not an age.",
            "Give a number and its unit, such as 90m (minutes), 12h, 30d, 2w, 6mo (months) or 1y.",
            code="bad_age",
        )
    try:
        return (now or datetime.now(timezone.utc)) - int(found[1]) * _UNITS[found[2]]
    except OverflowError:
        raise UsageError(f"{age} ago, there was no calendar yet.", "Give a shorter age.", code="bad_age") from None
