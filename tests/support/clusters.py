"""A screen for tests that knows grapheme clusters, as newer terminals do; pyte's own goes by code point."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import pyte
from wcwidth import iter_graphemes, wcswidth


class QuickScreen(pyte.Screen):
    """A screen that is read again and again; pyte's own looks at every cell in the dearest way."""

    @property
    def display(self) -> list[str]:
        buffer: Any = self.buffer
        return [_text(buffer[line], self.columns) for line in range(self.lines)]


class ClusterScreen(QuickScreen):
    """A flag, a family and a letter with its accents take the cells of one character."""

    def draw(self, data: str) -> None:
        if data.isascii():
            super().draw(data)
            return
        for one in iter_graphemes(data):
            width = wcswidth(one)
            if len(one) == 1 or width not in (1, 2):
                super().draw(one)
                continue
            # pyte breaks the line where it has to.
            super().draw("日" if width == 2 else "x")
            row: Any = self.buffer[self.cursor.y]
            place = self.cursor.x - width
            row[place] = row[place]._replace(data=one)


_ALTERNATE = 1049
"""The private mode of the second screen, on which a program draws that leaves the first one as it was."""


class TwoScreens(pyte.Screen):
    """A screen with a second one; pyte has only the first."""

    _first: tuple[Any, Any] | None = None

    def set_mode(self, *modes: int, **how: Any) -> None:
        super().set_mode(*modes, **how)
        if how.get("private") and _ALTERNATE in modes:
            self._first = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)

    def reset_mode(self, *modes: int, **how: Any) -> None:
        super().reset_mode(*modes, **how)
        if how.get("private") and _ALTERNATE in modes and self._first is not None:
            (buffer, cursor), self._first = self._first, None
            self.buffer.clear()
            self.buffer.update(buffer)
            self.cursor.x, self.cursor.y = cursor.x, cursor.y
            self.dirty.update(range(self.lines))


def _text(row: Mapping[int, Any], columns: int) -> str:
    """What the cells of a row show."""
    if not row:
        return " " * columns
    shown, x = [], 0
    while x < columns:
        data = row[x].data if x in row else " "
        shown.append(data or " ")
        x += 1 if data.isascii() else _width(data)
    return "".join(shown)


@functools.cache
def _width(data: str) -> int:
    return max(wcswidth(data), 1)


class HistoryScreen(pyte.HistoryScreen):
    """A screen that keeps what has scrolled away, and that nobody pages through."""

    # pyte's own, which watches for pages, is in Python and takes most of the time of a test at a terminal.
    __getattribute__ = object.__getattribute__
