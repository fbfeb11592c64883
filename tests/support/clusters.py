"""A screen for tests that knows grapheme clusters, as newer terminals do; pyte's own goes by code point."""

from __future__ import annotations

from typing import Any

import pyte
from wcwidth import iter_graphemes, wcswidth


class ClusterScreen(pyte.Screen):
    """A flag, a family and a letter with its accents take the cells of one character."""

    def draw(self, data: str) -> None:
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

    @property
    def display(self) -> list[str]:
        return ["".join(self._cells(line)) for line in range(self.lines)]

    def _cells(self, line: int) -> list[str]:
        found, x = [], 0
        while x < self.columns:
            data = self.buffer[line][x].data
            found.append(data or " ")
            x += max(wcswidth(data), 1)
        return found
