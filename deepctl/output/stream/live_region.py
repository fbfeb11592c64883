"""The lowest lines of the terminal, drawn anew as long as they may change; what is settled scrolls away above them.

Between two frames the cursor, hidden, stands at the beginning of the first of these lines, not behind the last: a
terminal that wraps its lines anew when its window changes takes the cursor along, so the next frame begins where it
should, whatever became of the lines below. While they are drawn, the terminal does not wrap: a character that is
wider there than here cannot put the count of lines out. A frame is one write.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepctl.output.render import write

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # synchronized output: shown as one, where the terminal knows it
_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_ERASE_LINE = "\r\x1b[2K"
# From the second column on: tmux takes erasing from the very first for clearing the screen, and keeps what was on it.
_ERASE_BELOW = f"{_ERASE_LINE}\x1b[C\x1b[J\r"


class LiveRegion:
    """Draws rows, each as it is to be written. Raises `StorageError` if stdout cannot be written."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._size = (0, 0)

    def draw(self, settled: Sequence[str], rows: Sequence[str], size: tuple[int, int]) -> None:
        """Print `settled` for good, and below it `rows`, which the next call replaces.

        Each of `rows` must fit a row of the terminal, and all of them its window, which has `size`.
        """
        if not settled and rows and len(rows) == len(self._rows) and size == self._size:
            frame = self._changed(rows)
        elif settled or rows or self._rows:
            frame = _ERASE_BELOW + "".join(f"{line}\r\n" for line in settled) + _lowest(rows)
        else:
            frame = ""
        if frame:
            write(f"{_BEGIN}{_HIDE if rows else ''}{frame}{'' if rows else _SHOW}{_END}")
        self._rows = list(rows)
        self._size = size

    def _changed(self, rows: Sequence[str]) -> str:
        """What replaces the rows that are others than before."""
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
