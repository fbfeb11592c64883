"""The lowest lines of the terminal, which are drawn again while they may change. Settled lines scroll away above them.

Between two frames the hidden cursor is at the start of the first of these lines, not after the last one. When a window
changes, a terminal that wraps its lines again moves the cursor along, so the next frame starts at the right place.
During drawing the terminal does not wrap, so a character that is wider there than expected cannot change the number of
lines. A frame is one write.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepctl.output.render import write

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # synchronized output: shown at once, if the terminal supports it
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_ERASE_LINE = "\r\x1b[2K"
# From the second column on, because tmux takes erasing from the first column for clearing the screen, and stores its
# content.
_ERASE_BELOW = f"{_ERASE_LINE}\x1b[C\x1b[J\r"


class LiveRegion:
    """Draws rows, each ready to be written. Raises `StorageError` if stdout cannot be written."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._size = (0, 0)

    def draw(self, lines: Sequence[str], rows: Sequence[str], size: tuple[int, int]) -> None:
        """Print `lines` permanently, and below it `rows`, which the next call replaces.

        Each row must fit the width of the terminal, and all rows its window, which has `size`.
        """
        if not lines and rows and len(rows) == len(self._rows) and size == self._size:
            frame = self._changed(rows)
        elif lines or rows or self._rows:
            frame = _ERASE_BELOW + "".join(f"{line}\r\n" for line in lines) + _lowest(rows)
        else:
            frame = ""
        if frame:
            write(f"{_BEGIN}{_HIDE if rows else ''}{frame}{'' if rows else _SHOW}{_END}")
        self._rows = list(rows)
        self._size = size

    def _changed(self, rows: Sequence[str]) -> str:
        """The output that replaces the changed rows."""
        frame = ""
        for number, (row, before) in enumerate(zip(rows, self._rows, strict=True)):
            if row != before:
                frame += f"{_down(number)}{_ERASE_LINE}{row}\r{_up(number)}"
        return f"{_NO_WRAP}{frame}{_WRAP}" if frame else ""


def _lowest(rows: Sequence[str]) -> str:
    return _NO_WRAP + "\r\n".join(rows) + "\r" + _up(len(rows) - 1) + _WRAP if rows else ""


def _up(count: int) -> str:
    return f"\x1b[{count}A" if count > 0 else ""


def _down(count: int) -> str:
    return f"\x1b[{count}B" if count > 0 else ""
