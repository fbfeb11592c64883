"""A Markdown table, as one if the window holds it, and otherwise as a record a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, cast

from deepctl.output.stream.lines import TerminalCaps, console, wrapped

if TYPE_CHECKING:
    from markdown_it.tree import SyntaxTreeNode
    from rich.console import JustifyMethod
    from rich.text import Text

_GAP = 2
_LEAST = 8
"""A column is not made narrower than this; a table that would need it becomes records."""
_MOST_COLUMNS = 40
"""More than anybody reads side by side; laying them out takes seconds."""


def table(
    node: SyntaxTreeNode, width: int, look: TerminalCaps, inline: Callable[[Iterable[SyntaxTreeNode]], Text]
) -> list[Text]:
    """The lines of a table in `width` columns. No text is left out."""
    rows = [
        [inline(cell.children[0].children if cell.children else ()) for cell in row.children]
        for part in node.children
        for row in part.children
    ]
    headings, records = rows[0], rows[1:]
    columns = list(zip(*rows, strict=True))
    needed = [min(_LEAST, max(cell.cell_len for cell in column)) for column in columns]
    if len(needed) > _MOST_COLUMNS or sum(needed) + _GAP * len(needed) > width:
        return _records(headings, records, width)
    return _drawn(headings, records, [_side(cell) for cell in node.children[0].children[0].children], width, look)


def _side(heading: SyntaxTreeNode) -> JustifyMethod:
    side = str(heading.attrs.get("style", "")).removeprefix("text-align:")
    return cast("JustifyMethod", side) if side in ("right", "center") else "left"


def _drawn(
    headings: list[Text], records: list[list[Text]], sides: list[JustifyMethod], width: int, look: TerminalCaps
) -> list[Text]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        box=box.SIMPLE_HEAD if look.unicode else box.MARKDOWN,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
        header_style="bold",
        border_style="dim",
    )
    for heading, side in zip(headings, sides, strict=True):
        drawn.add_column(heading, overflow="fold", justify=side)
    for record in records:
        drawn.add_row(*record)
    lines = []
    for row in console(width).render_lines(drawn, pad=False):
        line = Text()
        for segment in row:
            line.append(segment.text, segment.style)
        line.rstrip()
        lines.append(line)
    return lines


def _records(headings: list[Text], records: list[list[Text]], width: int) -> list[Text]:
    """Every row as lines of `heading: value`."""
    from rich.text import Text

    lines: list[Text] = []
    for number, record in enumerate(records or [[Text() for _ in headings]]):
        if number:
            lines.append(Text())
        for heading, value in zip(headings, record, strict=True):
            lines += wrapped(Text.assemble((f"{heading.plain}: ", "bold"), value), width)
    return lines
