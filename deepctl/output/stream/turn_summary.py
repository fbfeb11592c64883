"""What a turn has done, in one line: files, lines, commands, cost, and how to take it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepctl.output import render
from deepctl.output.stream.file_diff import FileDiff
from deepctl.quantities import counted

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


def dollars(cost: float) -> str:
    """A cost in USD."""
    return f"${cost:.2f}" if cost >= 0.01 else f"${cost:.4f}" if cost >= 0.0001 else "less than $0.0001"
