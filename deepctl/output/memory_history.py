"""How notebooks through time look, what differs in them, and what was found."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain.memory.diff import NotebookDifference
from deepctl.domain.memory.history import NOW, REWOUND, History, Version
from deepctl.domain.memory.search import Match, Span
from deepctl.output.checkpoints import document
from deepctl.output.diff import print_diff
from deepctl.output.render import notice
from deepctl.output.terminal_caps import has_colour, is_terminal
from deepctl.output.text import ago, printable, printable_lines, table
from deepctl.quantities import size
from deepctl.store.lookup import CheckpointInfo

_SHORT = 8


class Versions(NamedTuple):
    """The versions of a notebook, the newest first."""

    profile: str
    agent: str
    history: History

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "file": self.history.file,
            "versions": [
                {
                    "checkpoint": one.checkpoint,
                    "kind": one.kind,
                    "session": one.session,
                    "at": one.at,
                    "bytes": one.size,
                    "added_lines": one.added,
                    "removed_lines": one.removed,
                }
                for one in self.history.versions
            ],
            "damaged": [problem._asdict() for problem in self.history.damaged],
        }

    def print(self) -> None:
        if not is_terminal(sys.stdout):
            table((), [_row(one) for one in self.history.versions])
        elif self.history.versions:
            rows = [_row_at_terminal(one) for one in self.history.versions]
            table(("WHEN", "CHECKPOINT", "LINES", "SIZE", "SESSION"), rows, numbers=("LINES", "SIZE"))
        elif not self.history.damaged:
            notice(f"Nothing was ever noted in {self.history.file} of profile {self.profile}.")
        first: dict[str, list[str]] = {}
        for problem in self.history.damaged:
            first.setdefault(problem.reason, []).append(problem.id or "a checkpoint")
        for reason, ids in first.items():
            more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
            notice(f"Damaged: {ids[0]}{more} ({reason.rstrip('.')}).")


def _row(one: Version) -> tuple[str, ...]:
    counts = ("" if count is None else str(count) for count in (one.added, one.removed, one.size))
    return (one.at or "", one.checkpoint or one.kind, one.session or "", *counts)


def _row_at_terminal(one: Version) -> tuple[str, ...]:
    at = ago(one.at) if one.at is not None else ""
    name = one.checkpoint[:_SHORT] if one.checkpoint is not None else ""
    if one.kind == REWOUND:
        name = f"back to {name}" if name else "rewound"
    lines = f"+{one.added} -{one.removed}" if one.added is not None else "?"
    return (
        at,
        NOW if one.kind == NOW else name,
        lines,
        size(one.size) if one.size is not None else "gone",
        one.session or "",
    )


class Compared(NamedTuple):
    """What differs in the notebooks; `after` is `None` for now. Piped, the exact bytes, for `patch -p1`."""

    profile: str
    agent: str
    before: CheckpointInfo
    after: CheckpointInfo | None
    differences: list[NotebookDifference]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "from": document(self.before),
            "to": document(self.after) if self.after is not None else None,
            "files": [
                {
                    "path": one.path,
                    "change": one.change,
                    "added_lines": one.added,
                    "removed_lines": one.removed,
                    "remark": one.remark,
                    "diff": one.diff.decode("utf-8", "surrogateescape"),
                }
                for one in self.differences
            ],
        }

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.differences:
            since = self.after.record.id if self.after is not None else "now"
            notice(f"The notebooks are the same at checkpoint {self.before.record.id} and {since}.")
        for one in self.differences:
            if one.remark is not None:
                notice(f"{one.path}: {one.remark}.")
            elif not one.diff:
                notice(f"{one.path}: {one.change}, empty.")
            print_diff(one.diff)


class Found(NamedTuple):
    """The lines that were found, as `grep -n` prints them."""

    profile: str
    agent: str
    query: str
    matches: list[Match]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "query": self.query,
            "matches": [
                {"file": one.file, "line": one.line, "text": one.text, "before": one.before, "after": one.after}
                for one in self.matches
            ],
        }

    def print(self) -> None:
        if not self.matches and is_terminal(sys.stdout):
            notice("Nothing was found.")
        colour = has_colour(sys.stdout)
        context = any(one.before or one.after for one in self.matches)
        lines: dict[tuple[str, int], str] = {}
        for one in self.matches:
            around = [*enumerate(one.before, one.line - len(one.before)), *enumerate(one.after, one.line + 1)]
            for number, text in around:
                lines.setdefault((one.file, number), f"{printable(one.file)}-{number}-{printable_lines(text)}")
            where = f"{printable(one.file)}:{one.line}:"
            # A line found stands for itself, also where it was in the neighbourhood of another.
            lines[one.file, one.line] = where + _marked(one.text, one.spans if colour else [])
        last: tuple[str, int] | None = None
        for (file, number), line in sorted(lines.items()):
            if context and last is not None and (file, number) != (last[0], last[1] + 1):
                print("--")
            print(line)
            last = file, number


def _marked(text: str, spans: list[Span]) -> str:
    """A line with what was looked for in bold red."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [printable_lines(text[position:start]), f"\x1b[1;31m{printable_lines(text[start:end])}\x1b[0m"]
        position = end
    return "".join([*pieces, printable_lines(text[position:])])
