"""How the state of deepctl on this machine looks."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain.doctor import Check
from deepctl.output.text import has_colour, printable

_MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}
_COLOURS = {"ok": "32", "warning": "33", "problem": "31"}


class Diagnosis(NamedTuple):
    """All checks."""

    checks: list[Check]

    def document(self) -> dict[str, Any]:
        return {
            "ok": all(check.status != "problem" for check in self.checks),
            "checks": [check._asdict() for check in self.checks],
        }

    def print(self) -> None:
        coloured = has_colour(sys.stdout)
        behind = max(len(check.name) for check in self.checks)
        for check in self.checks:
            mark = _MARKS[check.status]
            if coloured:
                mark = f"\x1b[{_COLOURS[check.status]}m{mark}\x1b[0m"
            print(f"{mark} {check.name:<{behind}}  {printable(check.found)}")
            if check.hint and check.status != "ok":
                print(f"  {'':<{behind}}  {printable(check.hint)}")
