"""How a line finds what it has drawn when the window changes, which terminals that break long rows anew make hard."""

from __future__ import annotations

import os
from bisect import bisect
from typing import TYPE_CHECKING, Any, TextIO

from deepctl.cli.repl import clusters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prompt_toolkit.application import Application
    from prompt_toolkit.layout.screen import Char, Screen
    from prompt_toolkit.output.vt100 import Vt100_Output


def output(stream: TextIO) -> Vt100_Output:
    """The terminal at `stream` as it is written to."""
    from prompt_toolkit.output.vt100 import Vt100_Output

    class Output(Vt100_Output):
        def write(self, data: str) -> None:
            if clusters.has_stand_ins(data):
                self.write_raw(clusters.written(data))
            else:
                super().write(data)

        def erase_down(self) -> None:
            # From the first column of the window on, tmux takes it for clearing the window, and keeps what was there.
            self.erase_end_of_line()
            self.cursor_forward(1)
            super().erase_down()
            self.cursor_backward(1)

    made = Output.from_pty(stream, term=os.environ.get("TERM"), enable_bell=False)
    made.enable_cpr = False
    return made


def application(**how: Any) -> Application[str | None]:
    """An application made `how`, which knows where its cursor is after the window has changed."""
    from prompt_toolkit.application import Application

    class Found(Application[str | None]):
        def _on_resize(self) -> None:
            _find(self)
            super()._on_resize()

    # The signal of a resize may be late.
    return Found(before_render=_find, **how)


def erase(application: Application[str | None]) -> None:
    """Erase what is drawn."""
    _find(application)
    application.renderer.erase()


def _find(application: Application[str | None]) -> None:
    columns = application.output.get_size().columns
    drawn, size = application.renderer.last_rendered_screen, application.renderer._last_size
    if drawn is not None and size is not None and size.columns != columns and _reflows():
        cursor = application.renderer._cursor_pos
        application.renderer._cursor_pos = cursor._replace(y=_rows_above(drawn, cursor.x, cursor.y, columns))


def _reflows() -> bool:
    """Whether the terminal breaks long rows anew: known of tmux.

    No other says so in a way to rely on, and taken for one that does, a terminal would lose what stands above the
    line; the other way round a row of the line stays there once more.
    """
    return bool(os.environ.get("TMUX")) and os.environ.get("TERM", "").startswith(("tmux", "screen"))


def _rows_above(drawn: Screen, x: int, y: int, columns: int) -> int:
    """How many rows there are above the one at `x`, `y` once each is broken at `columns`."""
    above = sum(len(_starts(drawn.data_buffer[number], columns)) for number in range(y))
    return above + bisect(_starts(drawn.data_buffer[y], columns), x) - 1


def _starts(row: Mapping[int, Char], columns: int) -> list[int]:
    """The columns at which begin what a row is broken into. A wide character is not broken."""
    end = max((column for column, cell in row.items() if cell.char.strip()), default=-1)
    starts = [0]
    column = 0
    while column <= end:
        width = row[column].width or 1
        if column + width - starts[-1] > columns:
            starts.append(column)
        column += width
    return starts
