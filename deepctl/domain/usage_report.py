"""Reports about the usage of profiles: the requests to models, summed by day, profile, session or model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from deepctl.layout import ProfilePaths
from deepctl.store import usage_log, usage_sums
from deepctl.store.usage_log import UsageEntry

By = Literal["day", "profile", "session", "model"]


class Counts(NamedTuple):
    """A number of requests, their tokens, and their cost in USD; `unpriced` is the number of those without a price."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0

    @property
    def cost(self) -> float | None:
        """The cost of the requests with a price; `None` if there are only others."""
        return round(self.usd, 9) if not self.requests or self.unpriced < self.requests else None

    @property
    def tokens(self) -> int:
        """The tokens sent and received."""
        return self.input_tokens + self.output_tokens

    def plus(self, entry: UsageEntry) -> Counts:
        """The sums with one more request."""
        return Counts(
            self.requests + 1,
            self.input_tokens + entry.input,
            self.cached_tokens + entry.cached,
            self.output_tokens + entry.output,
            self.usd + (entry.cost or 0.0),
            self.unpriced + (entry.cost is None),
        )


class UsageRow(NamedTuple):
    """The requests of one day, profile, session or model. `estimated` are those of `every` that are estimates.

    `key` is the day, the name or the model. A deleted session has its id instead of a name, and requests without a
    session have `None`. `profile` is the profile of a session.
    """

    key: str | None
    every: Counts = Counts()
    estimated: Counts = Counts()
    profile: str | None = None
    is_deleted: bool = False

    def plus(self, entry: UsageEntry) -> UsageRow:
        """The sums with one more request."""
        estimated = self.estimated.plus(entry) if entry.estimated else self.estimated
        return self._replace(every=self.every.plus(entry), estimated=estimated)


class UsageReport(NamedTuple):
    """The rows, in order of the day or with the highest cost first, and the sum of all. `problems` are unreadable lines
    by their files.
    """

    by: By
    rows: list[UsageRow]
    total: UsageRow
    problems: list[tuple[str, int]]


def report(profiles: Sequence[ProfilePaths], by: By, since: datetime | None = None) -> UsageReport:
    """The requests of profiles, only those sent at `since` or later. Takes no lock and changes nothing.

    Raises `NewerFormat` and `Refused`.
    """
    rows: dict[tuple[str | None, ...], UsageRow] = {}
    total = UsageRow(None)
    problems = []
    days: dict[str, str] = {}
    earliest = since.strftime("%Y-%m-%dT%H:%M:%S") if since is not None else ""
    for paths in profiles:
        usage = usage_log.read(paths)
        if usage.problems:
            problems.append((paths.usage, len(usage.problems)))
        names = _session_names(paths) if by == "session" and usage.entries else {}
        for entry in usage.entries:
            if entry.at < earliest:
                continue
            key: tuple[str | None, ...]
            match by:
                case "day":
                    minute = entry.at[:16]
                    day = days.get(minute) or days.setdefault(minute, usage_sums.day_of(entry.at))
                    key, row = (day,), UsageRow(day)
                case "profile":
                    key, row = (paths.name,), UsageRow(paths.name)
                case "model":
                    key, row = (entry.model,), UsageRow(entry.model)
                case "session":
                    name = names.get(entry.session or "", entry.session)
                    is_deleted = entry.session is not None and entry.session not in names
                    key, row = (paths.name, entry.session), UsageRow(name, profile=paths.name, is_deleted=is_deleted)
            rows[key] = rows.get(key, row).plus(entry)
            total = total.plus(entry)
    order = sorted(
        rows.values(),
        key=lambda row: row.key or "" if by == "day" else (-row.every.usd, -row.every.tokens, row.key or ""),
    )
    return UsageReport(by, order, total, problems)


def of_session(paths: ProfilePaths, identity: str) -> Counts:
    """The requests of the session with this id. Raises `NewerFormat` and `Refused`."""
    counts = Counts()
    for entry in usage_log.read(paths).entries:
        if entry.session == identity:
            counts = counts.plus(entry)
    return counts


def _session_names(paths: ProfilePaths) -> dict[str, str]:
    """The names of the sessions by their ids."""
    from deepctl.store import session_catalogue  # the other reports do not need it

    return session_catalogue.by_id(paths)
