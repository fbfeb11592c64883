"""The thinking of a model: its last rows while it arrives, then folded to one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepctl.output.stream.lines import TAB, TerminalCaps, wrap
from deepctl.quantities import counted

if TYPE_CHECKING:
    from rich.text import Text

_LIVE_ROWS = 4
_SHORT_ROWS = 2
"""Thinking of so few rows is not folded."""
_MOST_READ = 4000
"""Characters at the end of the text that are laid out while it arrives."""
_INDENT = "  "


class FoldedThinking:
    """A stream of thinking. `began` is its start in seconds of the monotonic clock."""

    def __init__(self, caps: TerminalCaps, began: float) -> None:
        self._caps = caps
        self._began = self._heard = began
        self._text = ""

    def feed(self, delta: str, at: float) -> None:
        """The next piece of the text."""
        self._text += delta
        self._heard = at

    def tail(self, width: int) -> list[Text]:
        """The last rows as they are now."""
        text = self._text.strip()
        is_cut = len(text) > _MOST_READ
        return self._rows(text[-_MOST_READ:] if is_cut else text, width)[-_LIVE_ROWS:]

    def finish(self, width: int) -> list[Text]:
        """The thinking is complete, or was stopped: the permanent rows."""
        from rich.text import Text

        rows = self._rows(self._text.strip(), width)
        if len(rows) <= _SHORT_ROWS:
            return rows
        seconds = int(self._heard - self._began + 0.5)
        duration = f" for {seconds} s" if seconds else ""
        lines = counted(len(self._text.strip().splitlines()), "line")
        return wrap(Text(f"Thought{duration}, {lines}; /details shows it.", "dim italic"), width)

    def details(self, width: int) -> list[Text]:
        """All of it."""
        from rich.text import Text

        rows = self._rows(self._text.strip(), width - len(_INDENT))
        return [Text("Thinking", "dim bold"), *(Text.assemble(_INDENT, row) for row in rows)]

    def _rows(self, text: str, width: int) -> list[Text]:
        from rich.text import Text

        # Each line on its own: the rows of a text with many lines are only final line by line.
        safe_lines = self._caps.safe(text.replace("\r", "")).expandtabs(TAB).split("\n") if text else []
        return [row for line in safe_lines for row in wrap(Text(line, "dim"), width)]
