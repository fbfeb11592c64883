"""How usage looks: a table with bars at a terminal, lines for a pipe, JSON, and CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.render import Cell, is_terminal, notice, print_sentence, table, terminal_width
from deepctl.quantities import counted

if TYPE_CHECKING:
    from deepctl.domain.usage_report import Counts, UsageReport, UsageRow

_BAR = 16
"""Cells of the longest bar."""
_BAR_FROM = 72
"""The narrowest terminal with bars."""
_BLOCKS = " ▏▎▍▌▋▊▉█"
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""The first characters of a cell that a spreadsheet takes for a formula."""
_HEADINGS = {"day": "DAY", "profile": "PROFILE", "session": "SESSION", "model": "MODEL"}


def dollars(amount: float | None) -> str:
    """A cost in USD for people: at least two decimal places, `-` without a price."""
    if amount is None:
        return "-"
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}" if amount >= 0.0001 else "<$0.0001"


class UsageView(NamedTuple):
    """The usage of a profile, or of all (`None`), sent at `since` or later."""

    profile: str | None
    since: datetime | None
    report: UsageReport

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "since": self.since.strftime("%Y-%m-%dT%H:%M:%SZ") if self.since is not None else None,
            "rows": [{**self._key(row), **_numbers(row)} for row in self.report.rows],
            "total": _numbers(self.report.total),
        }

    def _key(self, row: UsageRow) -> dict[str, Any]:
        key: dict[str, Any] = {self.report.by: row.key}
        return {"profile": row.profile, **key} if self._names_profiles else key

    @property
    def _names_profiles(self) -> bool:
        """Whether a row needs the profile of its session."""
        return self.report.by == "session" and self.profile is None

    def print(self) -> None:
        rows, total = self.report.rows, self.report.total
        if not is_terminal(sys.stdout):
            table((), [self._piped(row) for row in rows])
            return
        if not rows:
            whose = f"Profile {self.profile} has" if self.profile is not None else "The profiles have"
            notice(f"{whose} sent no request to a model{' in this time' if self.since is not None else ''}.")
            return
        has_bars = (terminal_width() or 0) >= _BAR_FROM
        profiles = ("PROFILE",) if self._names_profiles else ()
        columns = (
            *profiles,
            _HEADINGS[self.report.by],
            "REQUESTS",
            "INPUT",
            "CACHED",
            "OUTPUT",
            "COST",
            *(("",) if has_bars else ()),
        )
        values = [row.every.usd or 0.0 for row in rows]
        if not any(values):
            values = [float(row.every.tokens) for row in rows]
        bars = [bar(value / max(max(values), 1e-12)) for value in values]
        cells = [
            (*self._cells(row, _name(row)), *((Cell(bars[place], "good"),) if has_bars else ()))
            for place, row in enumerate(rows)
        ]
        sums = [Cell(str(text), "strong") for text in self._cells(total, "total")]
        if profiles:
            sums[0], sums[1] = Cell("total", "strong"), Cell("", "")
        table(
            columns,
            [*cells, (*sums, *(("",) if has_bars else ()))],
            dispensable=("CACHED", "OUTPUT", "INPUT"),
            numbers=("REQUESTS", "INPUT", "CACHED", "OUTPUT", "COST"),
        )
        for sentence in self._remarks():
            print_sentence(sentence)

    def _cells(self, row: UsageRow, name: str) -> tuple[str, ...]:
        every = row.every
        mark = "~" if row.estimated.requests else ""
        cost = f"{mark}{dollars(every.cost)}" if every.cost is not None else "-"
        return (
            *((row.profile or "",) if self._names_profiles else ()),
            name,
            f"{every.requests:,}",
            f"{mark}{every.input_tokens:,}",
            f"{every.cached_tokens:,}",
            f"{mark}{every.output_tokens:,}",
            cost,
        )

    def _remarks(self) -> Iterator[str]:
        estimated, unpriced = self.report.total.estimated, self.report.total.every.unpriced
        if estimated.requests:
            cost = f" and {dollars(estimated.cost)}" if estimated.cost is not None else ""
            yield (
                f"~ {counted(estimated.requests, 'request')} with {counted(estimated.tokens, 'token')}{cost} "
                f"{'is' if estimated.requests == 1 else 'are'} estimated."
            )
        if unpriced:
            verb = "has" if unpriced == 1 else "have"
            yield f"{counted(unpriced, 'request')} {verb} no price, and no part in the cost."

    def _piped(self, row: UsageRow) -> tuple[str, ...]:
        return (
            *((row.profile or "-",) if self._names_profiles else ()),
            row.key or "-",
            *(_plain(value) or "-" for value in _flat(row).values()),
        )


class UsageCsvView(NamedTuple):
    """The same as comma-separated values, with a heading. A text that looks like a formula begins with `'`."""

    view: UsageView

    def document(self) -> dict[str, Any]:
        return self.view.document()

    def print(self) -> None:
        view = self.view
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        profiles = ("profile",) if view._names_profiles else ()
        empty = _flat(view.report.total)
        writer.writerow([*profiles, view.report.by, *empty])
        for row in view.report.rows:
            names = [row.profile or "", row.key or ""] if profiles else [row.key or ""]
            writer.writerow([*map(_safe, names), *map(_plain, _flat(row).values())])
        sys.stdout.write(file.getvalue())


def bar(share: float) -> str:
    """A bar for a share from 0 to 1, in characters that stdout can write."""
    eighths = round(min(max(share, 0.0), 1.0) * _BAR * 8)
    if not _has_blocks():
        return "#" * round(eighths / 8)
    whole, remainder = divmod(eighths, 8)
    return _BLOCKS[8] * whole + (_BLOCKS[remainder] if remainder else "")


def _has_blocks() -> bool:
    try:
        _BLOCKS.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _name(row: UsageRow) -> str:
    if row.key is None:
        return "(no session)"
    return f"(deleted {row.key[:8]})" if row.is_deleted else row.key


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "requests": counts.requests,
        "input_tokens": counts.input_tokens,
        "cached_tokens": counts.cached_tokens,
        "output_tokens": counts.output_tokens,
        "cost": counts.cost,
    }


def _numbers(row: UsageRow) -> dict[str, Any]:
    """The numbers of a row as JSON."""
    return {**_counts(row.every), "estimated": _counts(row.estimated)}


def _flat(row: UsageRow) -> dict[str, Any]:
    """The numbers of a row, by column."""
    return {**_counts(row.every), **{f"estimated_{name}": value for name, value in _counts(row.estimated).items()}}


def _plain(value: float | None) -> str:
    """A number without an exponent; empty for `None`."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9f}".rstrip("0").rstrip(".")


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULAS) else text
