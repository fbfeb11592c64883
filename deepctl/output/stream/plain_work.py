"""The work of tools on stderr, without a live region: for one turn from a shell, and for terminals that only print.

A change is printed when it happens, the to-do list and the summary at the end of the turn.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepctl.output import render
from deepctl.output.stream import checklist
from deepctl.output.stream.checklist import Checklist
from deepctl.output.stream.file_diff import FileDiff
from deepctl.output.stream.lines import TerminalCaps
from deepctl.output.stream.turn_summary import TurnSummary
from deepctl.store.records import COMMAND

if TYPE_CHECKING:
    from rich.text import Text


class PlainWork:
    """Prints the work of each turn."""

    def __init__(self) -> None:
        self._caps = TerminalCaps(render.has_colour(sys.stderr), sys.stderr.encoding or "ascii")
        self._plans: dict[str, Checklist | None] = {}
        self._checklist: Checklist | None = None
        self._summary = TurnSummary()

    def event(self, event: Mapping[str, Any]) -> None:
        """Process an event of the turn."""
        match event["type"]:
            case "change":
                change = FileDiff.of(event)
                self._summary.changed(change)
                render.notice(f"  {change.path}: {change.outcome()}")
                self._print(change.preview(self._caps, _width(), ""))
            case "tool_call" if event["name"] == checklist.TOOL:
                self._plans[event["id"]] = Checklist.of(event["args"])
            case "tool_result" if event["name"] == checklist.TOOL:
                self._checklist = (self._plans.pop(event["id"], None) if event["ok"] else None) or self._checklist
            case "tool_result" if event["name"] == COMMAND:
                self._summary.command_ended()
            case "work":
                self._summary.work(event)
            case "result":
                self.end(event.get("cost"))

    def end(self, cost: float | None = None) -> None:
        """Print the end of the turn, if that has not been done."""
        if self._checklist is not None:
            self._print(self._checklist.rows(self._caps, _width()))
        if line := self._summary.line(cost, ", "):
            render.notice(f"{line}.")
        self._checklist, self._summary = None, TurnSummary()

    def _print(self, rows: list[Text]) -> None:
        render.say_part("".join(f"{self._caps.ansi(row)}\n" for row in rows))


def _width() -> int:
    """The columns of the terminal at stderr: stdout may be a file."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
