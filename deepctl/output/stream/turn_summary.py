"""What a turn has done: `TurnSummary` says it in one line, and `PlainWork` prints the work on stderr as it happens.

`PlainWork` has no live region: it is for one turn from a shell, and for terminals that only print. A tool call has its
line, with its changes below, when it has ended; a command also has one when it starts. The to-do list and the summary
follow at the end of the turn.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output import render
from deepctl.output.stream import checklist
from deepctl.output.stream.checklist import Checklist
from deepctl.output.stream.file_diff import FileDiff
from deepctl.output.stream.lines import TerminalCaps
from deepctl.output.stream.tool_lines import ShownCall, dollars
from deepctl.quantities import counted

if TYPE_CHECKING:
    from rich.text import Text

_ID = 8
"""Characters of the id of a checkpoint that are shown."""


class TurnSummary:
    """Collects what the events of a turn say."""

    def __init__(self) -> None:
        self._commands = 0
        self._changes: dict[str, tuple[int, int]] = {}
        self._work: Mapping[str, Any] | None = None

    def command_started(self) -> None:
        """A command runs."""
        self._commands += 1

    def changed(self, change: FileDiff) -> None:
        """A tool has changed a file. It counts only if no checkpoints tell all changes."""
        added, removed = self._changes.get(change.path, (0, 0))
        self._changes[change.path] = (added + (change.added or 0), removed + (change.removed or 0))

    def work(self, event: Mapping[str, Any]) -> None:
        """The event `work`: the changes of the turn, from its checkpoints; `undo` is the command to take it back."""
        self._work = event

    def line(self, cost: float | None, separator: str) -> str:
        """The line; empty if the turn has changed no file and run no command. `cost` is in USD.

        Without a changed file, nothing is said about files: there may be some that checkpoints do not cover.
        """
        files, added, removed = self._counts()
        if not files and not self._commands:
            return ""
        lines = f", +{added:,} -{removed:,}" if files and added is not None else ""
        parts = [
            f"{counted(files, 'file')} changed{lines}" if files else "",
            counted(self._commands, "command") if self._commands else "",
            dollars(cost) if cost else "",
            f"{self._work['undo']} takes it back" if self._work is not None and files else "",
        ]
        return separator.join(part for part in parts if part)

    def _counts(self) -> tuple[int, int | None, int | None]:
        if self._work is not None:
            return self._work["files"], self._work["added_lines"], self._work["removed_lines"]
        added, removed = (
            (sum(counts) for counts in zip(*self._changes.values(), strict=True)) if self._changes else (0, 0)
        )
        return len(self._changes), added, removed


def with_undo(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """The event `work` with the command that takes the turn back, by the name that it has in the present context."""
    command = f"deepctl checkpoints rewind {event['checkpoint'][:_ID]} --user {event['profile']}"
    if event["session"] is not None and not render.is_conversation():
        command += f" --session {event['session']}"
    return {**event, "undo": render.with_command_names(f"`{command}`")}


class _MarkedCall(NamedTuple):
    """A call that has no result yet, and the text before its line: the name of the sub-agent that makes it."""

    call: ShownCall
    mark: str


def _with_mark(mark: str, row: Text) -> Text:
    from rich.text import Text

    return Text.assemble(mark, row) if mark else row


class PlainWork:
    """Prints the work of each turn, in the notation of the live display."""

    kinds = ("tool_call", "tool_result", "subagent", "change", "command", "retry", "work", "result")
    """The events that it prints or counts."""

    def __init__(self) -> None:
        self._caps = TerminalCaps(render.has_colour(sys.stderr), sys.stderr.encoding or "ascii")
        self._calls: dict[str, _MarkedCall] = {}
        self._checklist: Checklist | None = None
        self._summary = TurnSummary()
        self._is_previewed = False

    def event(self, event: Mapping[str, Any]) -> None:
        """Process an event of the turn."""
        match event["type"]:
            case "tool_call":
                self._call(event)
            case "tool_result":
                self._result(event)
            case "subagent":
                inner = event["event"]
                if inner["type"] == "tool_call":
                    self._call(inner, f"  {render.printable(event['agent'])} ")
                elif inner["type"] == "tool_result":
                    self._result(inner)
            case "command":
                self._summary.command_started()
                self._started(event)
            case "change":
                change = FileDiff.of(event)
                self._summary.changed(change)
                if (marked_call := self._calls.get(event.get("id", ""))) is not None:
                    marked_call.call.changes.append(change)
            case "retry":
                wait = f"{event['seconds']:.1f} s"
                count = f"({event['attempt']} of {event['attempts']})"
                render.notice(f"↻ {event['reason']}: trying again in {wait} {count}")
            case "work":
                self._summary.work(with_undo(event))
            case "result":
                self.end(event.get("cost"))

    def asked(self) -> None:
        """An approval request has shown what the running call changes."""
        self._is_previewed = True

    def _call(self, event: Mapping[str, Any], mark: str = "") -> None:
        self._calls[event["id"]] = _MarkedCall(ShownCall(event["name"], event["args"], time.monotonic()), mark)

    def _started(self, event: Mapping[str, Any]) -> None:
        """A command runs, which can take long: its line comes twice."""
        marked_call = self._calls.get(event.get("id", ""))
        if marked_call is not None:
            marked_call.call.began = time.monotonic()
            row = marked_call.call.line(self._caps, _width(), self._caps.sign("·", "-"), is_waiting=True)
            self._print([_with_mark(marked_call.mark, row)])

    def _result(self, event: Mapping[str, Any]) -> None:
        marked_call = self._calls.pop(event["id"], None)
        call, mark = marked_call or (ShownCall(event["name"], {}, time.monotonic()), "")
        call.ended(event["ok"], event["content"], time.monotonic())
        is_previewed, self._is_previewed = self._is_previewed, False
        plan = Checklist.of(call.arguments) if call.name == checklist.TOOL and call.ok else None
        if plan is not None:
            self._checklist = plan
            return
        rows = [_with_mark(mark, call.line(self._caps, _width() - len(mark), ""))]
        if call.ok and not is_previewed:
            rows += [row for change in call.changes for row in change.preview(self._caps, _width(), "")]
        self._print(rows)

    def end(self, cost: float | None = None) -> None:
        """Print the end of the turn, if that has not been done."""
        if self._checklist is not None:
            self._print(self._checklist.rows(self._caps, _width()))
        if line := self._summary.line(cost, ", "):
            render.notice(f"{line}.")
        self._calls.clear()
        self._checklist, self._summary = None, TurnSummary()

    def _print(self, rows: list[Text]) -> None:
        render.say_part("".join(f"{self._caps.ansi(row)}\n" for row in rows))


def _width() -> int:
    """The columns of the terminal at stderr: stdout may be a file."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
