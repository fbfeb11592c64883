"""How the state of deepctl on this machine looks."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from deepctl.domain.doctor import Check
from deepctl.output.terminal_caps import has_colour, is_terminal, width
from deepctl.output.text import printable

_MARKS = {"ok": "✓", "warning": "!", "problem": "✗"}
_COLOURS = {"ok": "32", "warning": "33", "problem": "31"}
_DIM, _BOLD = "2", "1"


class Diagnosis(NamedTuple):
    """All checks. With `in_full`, profiles that are well are shown check by check, not in a line."""

    checks: Sequence[Check]
    in_full: bool = True

    @property
    def has_problems(self) -> bool:
        """Whether something does not work."""
        return any(check.status == "problem" for check in self.checks)

    def document(self) -> dict[str, Any]:
        return {"ok": not self.has_problems, "checks": [_document(check) for check in self.checks]}

    def print(self) -> None:
        groups = [(profile, list(checks)) for profile, checks in groupby(self.checks, lambda check: check.profile)]
        shown: list[tuple[str | None, list[Check]]] = []
        well: list[str] = []
        for profile, checks in groups:
            if profile is None or self.in_full:
                shown.append((profile, checks))
            elif amiss := [check for check in checks if check.status != "ok"]:
                shown.append((profile, amiss))
            else:
                well.append(profile)
        page = _Page(max((len(check.name) for _, checks in shown for check in checks), default=0))
        for profile, checks in shown:
            page.heading("This machine" if profile is None else f"Profile {profile}")
            for check in checks:
                page.check(check)
        if well:
            page.heading("Nothing amiss in")
            page.text(", ".join(well))
        page.text(self._summary(), indent="")

    def _summary(self) -> str:
        numbers = {status: sum(check.status == status for check in self.checks) for status in ("problem", "warning")}
        told = [f"{number} {what}{'' if number == 1 else 's'}" for what, number in numbers.items() if number]
        return f"\n{' and '.join(told)}." if told else "\nEverything is as it should be."


def _document(check: Check) -> dict[str, Any]:
    found = check._asdict()
    if check.profile is None:
        del found["profile"]
    return found


class _Page:
    """Text with columns that line up, wrapped where a terminal ends; nothing is wrapped where there is none."""

    def __init__(self, names: int) -> None:
        self._names = names
        self._terminal = is_terminal(sys.stdout)
        self._coloured = has_colour(sys.stdout)
        self._width = width()
        self._begun = False

    def heading(self, text: str) -> None:
        if self._begun:
            print()
        self._begun = True
        print(self._in(_BOLD, printable(text)))

    def check(self, check: Check) -> None:
        indent = " " * (self._names + 6)
        mark = self._in(_COLOURS[check.status], _MARKS[check.status])
        first, *rest = self._wrapped(check.found, len(indent))
        print(f"  {mark} {check.name:<{self._names}}  {first}")
        for line in rest:
            print(indent + line)
        if check.hint and check.status != "ok":
            # As it is: it may be a command, and quotes keep a shell from knowing `~`.
            for line in self._wrapped(check.hint, len(indent), at_home=False):
                print(indent + self._in(_DIM, line))

    def text(self, text: str, indent: str = "  ") -> None:
        blank, text = ("\n", text[1:]) if text.startswith("\n") else ("", text)
        print(blank + "\n".join(indent + line for line in self._wrapped(text, len(indent))))

    def _wrapped(self, text: str, indent: int, *, at_home: bool = True) -> list[str]:
        shown = printable(text)
        if not self._terminal:
            return [shown]
        shown = _at_home(shown) if at_home else shown
        room = max(20, (self._width or 80) - indent)
        return textwrap.wrap(shown, room, break_long_words=False, break_on_hyphens=False) or [""]

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


def _at_home(text: str) -> str:
    """`text` with `~` for the home directory wherever a path in it begins there."""
    start = printable(os.path.expanduser("~"))
    return re.sub(rf"(?<![\w/.~-]){re.escape(start)}(?=/|\s|$|[,;:)])", "~", text) if len(start) > 1 else text
