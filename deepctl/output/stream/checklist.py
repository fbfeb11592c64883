"""The agent's to-do list as a checklist."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepctl.output.render import printable
from deepctl.output.stream.lines import TAB, TerminalCaps, cut_line

if TYPE_CHECKING:
    from rich.text import Text

TOOL = "write_plan"
"""The tool that writes the whole list."""
_SIGNS = {
    "completed": ("✓", "x", "green"),
    "in_progress": ("▸", ">", "cyan"),
    "cancelled": ("✗", "-", "dim"),
    "blocked": ("!", "!", "red"),
}
_PENDING = ("☐", ".", "")
_DONE = ("completed", "cancelled")


class Checklist:
    """A list of steps and their states, as the tool gets them: text from a model, of any form."""

    def __init__(self, steps: list[tuple[str, str]]) -> None:
        self._steps = steps

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Checklist | None:
        """The list in the arguments of a call; `None` if they have none."""
        items = arguments.get("items")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return None
        return cls([(" ".join(str(item.get("content", "")).split()), str(item.get("status", ""))) for item in items])

    def rows(self, caps: TerminalCaps, width: int, room: int | None = None) -> list[Text]:
        """A heading and a row for each step, at most `room` rows: then the steps from the first open one on."""
        from rich.text import Text

        done_count = sum(status in _DONE for _, status in self._steps)
        if not self._steps or (room is not None and room < 1):
            return []
        heading = Text(f"To-do list: {done_count} of {len(self._steps)} done", "bold")
        first, last = 0, len(self._steps)
        if room is not None and len(self._steps) > room - 1:
            count = max(room - 2, 0)  # a row says how many are left out
            open_step = next((place for place, step in enumerate(self._steps) if step[1] not in _DONE), 0)
            first = max(min(open_step, len(self._steps) - count), 0)
            last = first + count
        rows = [heading, *(self._row(place, caps) for place in range(first, last))]
        if (left_out_count := len(self._steps) - (last - first)) and len(rows) < (room or 0):
            rows.append(Text(f"  {caps.sign('…', '...')} {left_out_count} more", "dim"))
        return [cut_line(row, width, caps) for row in rows]

    def _row(self, place: int, caps: TerminalCaps) -> Text:
        from rich.text import Text

        content, status = self._steps[place]
        sign, plain_sign, style = _SIGNS.get(status, _PENDING)
        text_style = "dim" if status in _DONE else "bold" if status == "in_progress" else ""
        text = caps.safe(printable(content)).expandtabs(TAB)
        return Text.assemble("  ", (caps.sign(sign, plain_sign), style), " ", (text, text_style))
