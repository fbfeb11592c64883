"""prompt_toolkit at a terminal: its output, attributes, and an application whose window can change.

The line editor and the picker of a rewind use it.
"""

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
    from prompt_toolkit.styles import Style


def style(has_colours: bool) -> Style:
    """Attributes only. The chosen completion is reversed even without colours, since nothing else marks it."""
    from prompt_toolkit.styles import Style

    dim, bold = ("dim", "bold") if has_colours else ("", "")
    return Style.from_dict(
        {
            "prompt": bold,
            "toolbar": dim,
            "hint": bold,
            "search": "underline",
            "incsearch.current": "underline noreverse",
            "completion-menu": "",
            "completion-menu.completion.current": "reverse",
            "completion-menu.meta.completion": dim,
            "completion-menu.meta.completion.current": "reverse",
            "scrollbar.background": "",
            "scrollbar.button": "reverse",
        }
    )


def output(stream: TextIO) -> Vt100_Output:
    """prompt_toolkit's output for the terminal at `stream`, which writes clusters and asks for no cursor position."""
    from prompt_toolkit.output.vt100 import Vt100_Output

    class Output(Vt100_Output):
        def write(self, data: str) -> None:
            if clusters.has_stand_ins(data):
                self.write_raw(clusters.without_stand_ins(data))
            else:
                super().write(data)

        def erase_down(self) -> None:
            # Erasing from the first column of the window on, tmux would keep the old lines in its scrollback.
            self.erase_end_of_line()
            self.cursor_forward(1)
            super().erase_down()
            self.cursor_backward(1)

    terminal = Output.from_pty(stream, term=os.environ.get("TERM"), enable_bell=False)
    terminal.enable_cpr = False
    return terminal


def application(**options: Any) -> Application[str | None]:
    """An application that knows where its cursor is after the window has changed."""
    from prompt_toolkit.application import Application

    class ReflowingApplication(Application[str | None]):
        def _on_resize(self) -> None:
            _find_cursor(self)
            super()._on_resize()

    # The signal of a resize may be late.
    return ReflowingApplication(before_render=_find_cursor, **options)


def erase(application: Application[str | None]) -> None:
    """Erase the drawn line."""
    _find_cursor(application)
    application.renderer.erase()


def _find_cursor(application: Application[str | None]) -> None:
    """Correct the row of the cursor after a resize that made the terminal break long rows anew."""
    columns = application.output.get_size().columns
    screen, size = application.renderer.last_rendered_screen, application.renderer._last_size
    if screen is not None and size is not None and size.columns != columns and _reflows():
        cursor = application.renderer._cursor_pos
        application.renderer._cursor_pos = cursor._replace(y=_rows_above(screen, cursor.x, cursor.y, columns))


def _reflows() -> bool:
    """Whether the terminal breaks long rows anew after a resize, which is known of tmux only.

    No other terminal announces it reliably. If it were assumed wrongly, lines above the prompt would be erased; now a
    row of the line may remain.
    """
    return bool(os.environ.get("TMUX")) and os.environ.get("TERM", "").startswith(("tmux", "screen"))


def _rows_above(screen: Screen, x: int, y: int, columns: int) -> int:
    """How many rows are above the position `x`, `y` once each row is broken at `columns`."""
    above = sum(len(_row_starts(screen.data_buffer[number], columns)) for number in range(y))
    return above + bisect(_row_starts(screen.data_buffer[y], columns), x) - 1


def _row_starts(row: Mapping[int, Char], columns: int) -> list[int]:
    """The columns at which a row is broken. A wide character is not broken."""
    end = max((column for column, cell in row.items() if cell.char.strip()), default=-1)
    starts = [0]
    column = 0
    while column <= end:
        width = row[column].width or 1
        if column + width - starts[-1] > columns:
            starts.append(column)
        column += width
    return starts
