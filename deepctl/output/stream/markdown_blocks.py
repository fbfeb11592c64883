"""Markdown blocks as lines, and the number of these lines that further text cannot change.

Rich's own renderer lays out whole documents: the width of a numbered list depends on its last number, links hide their
target, and nothing says which lines are final. This module uses the same parser, and Rich's text and tables.

It differs from CommonMark, because printed text cannot change: line breaks are kept; a line of `===` or `---` below
text makes no heading of it; the target of a link is written beside it, and a link that is defined elsewhere stays as
written. HTML is shown, not interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from deepctl.output.stream.highlight import Highlighter
from deepctl.output.stream.lines import NARROWEST, TAB, TerminalCaps, console, wrap

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode
    from rich.console import JustifyMethod
    from rich.text import Text

_OPENERS = frozenset("*_~`[<")
"""Characters that may start a construct that later text ends."""
_INLINE = {"strong": "bold", "em": "italic", "s": "strike"}
_RULE = 40
_MAX_CODE = 40_000
"""Code inside a list or a quotation is coloured up to this length, because it is drawn as a whole each time."""
_COLUMN_GAP = 2
_MIN_COLUMN = 8
"""Minimum width of a column; a table that does not fit then is printed as records."""
_MAX_COLUMNS = 40
"""A table of more columns takes seconds to lay out, and is printed as records."""


class Lines(NamedTuple):
    """Lines, and the number of final lines at the start."""

    lines: list[Text]
    stable: int


def parser() -> MarkdownIt:
    """The parser for the Markdown of models."""
    from markdown_it import MarkdownIt

    return (
        MarkdownIt("commonmark", {"html": False})
        .enable(["table", "strikethrough"])
        .disable(["reference", "lheading", "html_block", "html_inline"])
    )


def is_list(node: SyntaxTreeNode) -> bool:
    return node.type in ("bullet_list", "ordered_list")


class Blocks:
    """Lays out blocks in `width` columns."""

    def __init__(self, caps: TerminalCaps, width: int) -> None:
        self._caps = caps
        self._width = width

    def lines(
        self, nodes: Sequence[SyntaxTreeNode], *, is_open: bool, gap: bool = False, offset: int = 0
    ) -> tuple[Lines, list[int]]:
        """The lines of `nodes`, and the start of each node. `is_open`: the last node may grow.

        `gap`: an empty line goes before the first, too. `offset`: so many items of the first, a list, are left out.
        """
        from rich.text import Text

        lines: list[Text] = []
        stable, starts = 0, []
        for number, node in enumerate(nodes):
            starts.append(len(lines))
            last = is_open and number == len(nodes) - 1
            block = self._block(node, last, offset if not number else 0)
            if block.lines and (gap or lines) and _apart(nodes[number - 1] if number else None, node):
                lines.append(Text())
            stable = len(lines) + block.stable if block.stable else starts[-1]
            lines += block.lines
            if not last:
                stable = len(lines)
        return Lines(lines, stable), starts

    def items(self, node: SyntaxTreeNode, count: int, offset: int) -> int:
        """The number of lines of the first `count` items of a list, with the separation from the next item."""
        first = self._list(node, False, offset, count + 1).lines
        return len(first) - len(self._item(node, count, False, offset).lines)

    def _narrower(self, columns: int) -> Blocks:
        return Blocks(self._caps, max(self._width - columns, NARROWEST))

    def _block(self, node: SyntaxTreeNode, is_open: bool, offset: int = 0) -> Lines:
        match node.type:
            case "paragraph":
                return self._paragraph(node, is_open)
            case "heading":
                lines = wrap(self._heading(node), self._width)
            case "fence" | "code_block":
                return self._code(node, is_open)
            case "blockquote":
                return self._quotation(node, is_open)
            case "bullet_list" | "ordered_list":
                return self._list(node, is_open, offset, len(node.children))
            case "hr":
                from rich.text import Text

                rule = self._caps.sign("─", "-") * min(self._width, _RULE)
                lines = [Text(rule, "dim")]
            case "table":
                lines = _table(node, self._width, self._caps, self.inline)
            case kind:
                raise AssertionError(kind)
        return Lines(lines, 0 if is_open else len(lines))

    def _paragraph(self, node: SyntaxTreeNode, is_open: bool) -> Lines:
        pieces = node.children[0].children
        lines = wrap(self.inline(pieces), self._width)
        if not is_open:
            return Lines(lines, len(lines))
        # Its last line can become the head of a table; a backslash before it is then no line break.
        breaks = [number for number, piece in enumerate(pieces) if piece.type == "softbreak"]
        if not breaks or any(_may_open(piece) for piece in pieces[: breaks[-1]]):
            return Lines(lines, 0)
        return Lines(lines, len(wrap(self.inline(pieces[: breaks[-1]]), self._width)))

    def _heading(self, node: SyntaxTreeNode) -> Text:
        from rich.text import Text

        level = int(node.tag[1:])
        text = self.inline(node.children[0].children if node.children else (), "bold")
        return text if self._caps.colour else Text("#" * level + " ") + text

    def _code(self, node: SyntaxTreeNode, is_open: bool) -> Lines:
        code = node.content.split("\n")
        while code and not code[-1].strip():
            code.pop()
        info = node.info if len(node.content) <= _MAX_CODE else ""
        lines = Highlighter(info, self._caps).lines(code)
        # Indented code can be the first line of a list, and the list the head of a table if a line of dashes follows.
        return Lines(lines, len(lines) - 1 if lines and is_open and node.type == "code_block" else len(lines))

    def _quotation(self, node: SyntaxTreeNode, is_open: bool) -> Lines:
        from rich.text import Text

        inner, _ = self._narrower(2).lines(node.children, is_open=is_open)
        bar = Text(self._caps.sign("│", ">") + " ", "dim")
        return Lines([_prefixed(bar, line) for line in inner.lines], inner.stable)

    def _list(self, node: SyntaxTreeNode, is_open: bool, offset: int, count: int) -> Lines:
        from rich.text import Text

        lines: list[Text] = []
        stable = 0
        for number in range(count):
            last = is_open and number == count - 1
            if number and _is_long(node.children[number - 1]):
                lines.append(Text())
            item = self._item(node, number, last, offset)
            stable = len(lines) + item.stable
            lines += item.lines
        return Lines(lines, stable)

    def _item(self, node: SyntaxTreeNode, number: int, is_open: bool, offset: int) -> Lines:
        from rich.text import Text

        mark = self._caps.sign("•", "*") + " "
        if node.type == "ordered_list":
            mark = f"{int(node.attrs.get('start', 1)) + offset + number}. "
        inner, _ = self._narrower(len(mark)).lines(node.children[number].children, is_open=is_open)
        first_mark, indent = Text(mark, "cyan"), Text(" " * len(mark))
        lines = [_prefixed(indent if row else first_mark, line) for row, line in enumerate(inner.lines)]
        if not lines:
            first_mark.rstrip()
            return Lines([first_mark], 0 if is_open else 1)
        return Lines(lines, inner.stable)

    def inline(self, pieces: Iterable[SyntaxTreeNode], style: str = "") -> Text:
        """The text of a paragraph, with newlines for line breaks."""
        from rich.text import Text

        text = Text()
        for piece in pieces:
            match piece.type:
                case "text":
                    text.append(self._caps.safe(piece.content).expandtabs(TAB), style)
                case "softbreak" | "hardbreak":
                    text.append("\n")
                case "code_inline":
                    mark = "" if self._caps.colour else piece.markup
                    text.append(mark + self._caps.safe(piece.content) + mark, f"{style} cyan")
                case "strong" | "em" | "s":
                    text += self.inline(piece.children, f"{style} {_INLINE[piece.type]}")
                case "link":
                    text += self._pointing(self.inline(piece.children, f"{style} underline"), piece.attrs["href"])
                case "image":
                    text += self._pointing(self.inline(piece.children, style), piece.attrs["src"])
                case kind:
                    raise AssertionError(kind)
        return text

    def _pointing(self, text: Text, address: object) -> Text:
        """`text` and the real target of a link, unless the text names the target."""
        target = self._caps.safe(str(address)).replace("\n", " ")
        if text.plain not in (target, target.removeprefix("mailto:")):
            text.append(f" ({target})" if text.plain else target, "dim")
        return text


def _may_open(piece: SyntaxTreeNode) -> bool:
    """Whether later text could complete a construct in a piece."""
    if piece.type == "text":
        return not _OPENERS.isdisjoint(piece.content)
    return any(_may_open(child) for child in piece.children)


def _apart(before: SyntaxTreeNode | None, node: SyntaxTreeNode) -> bool:
    """Whether an empty line separates two blocks: not between a list and its introduction inside an item."""
    is_inside = node.parent is not None and node.parent.type == "list_item"
    return not (is_inside and before is not None and before.type == "paragraph" and is_list(node))


def _is_long(item: SyntaxTreeNode) -> bool:
    """Whether an item has more than a paragraph and a list below it, so that the next item needs a gap."""
    kinds = [child.type for child in item.children]
    return len(kinds) > 2 or "fence" in kinds or kinds.count("paragraph") > 1


def _prefixed(prefix: Text, line: Text) -> Text:
    from rich.text import Text

    text = Text.assemble(prefix, line)
    text.rstrip()
    return text


def _table(
    node: SyntaxTreeNode, width: int, caps: TerminalCaps, inline: Callable[[Iterable[SyntaxTreeNode]], Text]
) -> list[Text]:
    """The lines of a table in `width` columns: a grid if it fits, otherwise one record for each row. No text is left
    out.
    """
    rows = [
        [inline(cell.children[0].children if cell.children else ()) for cell in row.children]
        for part in node.children
        for row in part.children
    ]
    headings, records = rows[0], rows[1:]
    columns = list(zip(*rows, strict=True))
    min_widths = [min(_MIN_COLUMN, max(cell.cell_len for cell in column)) for column in columns]
    if len(min_widths) > _MAX_COLUMNS or sum(min_widths) + _COLUMN_GAP * len(min_widths) > width:
        return _records(headings, records, width)
    return _grid(headings, records, [_side(cell) for cell in node.children[0].children[0].children], width, caps)


def _side(heading: SyntaxTreeNode) -> JustifyMethod:
    side = str(heading.attrs.get("style", "")).removeprefix("text-align:")
    return cast("JustifyMethod", side) if side in ("right", "center") else "left"


def _grid(
    headings: list[Text], records: list[list[Text]], sides: list[JustifyMethod], width: int, caps: TerminalCaps
) -> list[Text]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rich_table = Table(
        box=box.SIMPLE_HEAD if caps.unicode else box.MARKDOWN,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
        header_style="bold",
        border_style="dim",
    )
    for heading, side in zip(headings, sides, strict=True):
        rich_table.add_column(heading, overflow="fold", justify=side)
    for record in records:
        rich_table.add_row(*record)
    lines = []
    for row in console(width).render_lines(rich_table, pad=False):
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
            lines += wrap(Text.assemble((f"{heading.plain}: ", "bold"), value), width)
    return lines
