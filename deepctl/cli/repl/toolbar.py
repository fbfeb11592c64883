"""The line under the prompt: who talks with which model, where, and what it took so far."""

from __future__ import annotations

from typing import NamedTuple

from deepctl.output.text import cells, clipped, printable

NO_SANDBOX, NEW_SESSION = "no sandbox", "new session"
_GAP = "   "
_MOST_TOKENS, _MOST_DOLLARS = 999 * 10**9, 999_999.0
"""What is shown of more."""


class Toolbar(NamedTuple):
    """What the line says. `sandbox` is `None` while it is being found out, `context` a share from 0 to 1, `tokens` are
    those sent and received so far, `cost` is in US dollars; `None` where it is not known. `note` is for passing words.
    """

    profile: str
    session: str | None
    model: str
    sandbox: str | None
    context: float | None
    tokens: tuple[int, int] | None
    cost: float | None
    note: str = ""


def fitted(bar: Toolbar, width: int) -> str:
    """The line, in at most `width` cells: the least important goes first, and what is left is cut."""
    names = {
        "profile": printable(bar.profile),
        "session": _session(bar),
        # The provider is what everybody knows who chose the model.
        "model": printable(bar.model.partition(":")[2] or bar.model),
        "sandbox": printable(bar.sandbox or ""),
    }
    numbers = {
        "context": f"context {_percent(bar.context)}" if bar.context is not None else "",
        "tokens": f"{_count(bar.tokens[0])} in {_count(bar.tokens[1])} out" if bar.tokens is not None else "",
        "cost": _dollars(bar.cost) if bar.cost is not None else "",
    }
    note = printable(bar.note)
    line = _joined(names, numbers, note)
    least_first = ["cost", "tokens", "session", "context", "model", "note"]
    # That nothing is around commands is what to know longest.
    least_first.insert(len(least_first) if bar.sandbox == NO_SANDBOX else 2, "sandbox")
    for least in least_first:
        if cells(line) <= width:
            return line
        names.pop(least, None)
        numbers.pop(least, None)
        line = _joined(names, numbers, "" if least == "note" else note)
    return _cut(line, width)


def _session(bar: Toolbar) -> str:
    if bar.session is None:
        return ""
    return bar.session if bar.session == NEW_SESSION else f"session {printable(bar.session)}"


def _joined(names: dict[str, str], numbers: dict[str, str], note: str) -> str:
    left = " · ".join(text for text in names.values() if text)
    right = "  ".join(text for text in numbers.values() if text)
    # What passes is none of the names.
    return _GAP.join(part for part in (left, right, note) if part)


def _cut(line: str, width: int) -> str:
    if cells(line) <= width:
        return line
    return f"{clipped(line, width - 1)}…" if width > 0 else ""


def _percent(share: float) -> str:
    return f"{min(max(share, 0.0), 9.99):.0%}"


def _count(tokens: int) -> str:
    """A number of tokens in at most four characters, and a sign for what it counts."""
    tokens = min(tokens, _MOST_TOKENS)
    for size, sign in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if tokens >= size:
            number = tokens / size
            return f"{number:.1f}{sign}" if number < 10 else f"{number:.0f}{sign}"
    return str(tokens)


def _dollars(cost: float) -> str:
    cost = min(cost, _MOST_DOLLARS)
    if 0 < cost < 0.01:
        return "<$0.01"
    return f"${cost:.2f}" if cost < 100 else f"${cost:.0f}"
