"""Markdown blocks as lines, and how many of them no further text can change.

Rich's own renderer lays out whole documents: the width of a numbered list depends on its last number, links hide where
they lead, and nothing says which lines are final. This one takes the same parser, and Rich's text and tables.

What is different from CommonMark, because what is printed stays: line breaks are kept; a line of `===` or `---` below
text makes no heading of it; a link is written out where it is, and one that is defined elsewhere stays as written.
HTML is shown, not interpreted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deepctl.output.stream.highlight import Highlighter
from deepctl.output.stream.lines import NARROWEST, TAB, TerminalCaps, wrapped

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode
    from rich.text import Text

_OPENERS = frozenset("*_~`[<")
"""What may begin something that later text ends."""
_INLINE = {"strong": "bold", "em": "italic", "s": "strike"}
_RULE = 40
_LARGEST = 40_000
"""Code inside a list or a quotation is coloured up to so many characters; it is drawn as a whole each time."""


class Lines(NamedTuple):
    """Lines, and how many of the first are as they will always be."""

    lines: list[Text]
    stable: int


def parser() -> MarkdownIt:
    """The parser of what models write."""
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

    def __init__(self, look: TerminalCaps, width: int) -> None:
        self._look = look
        self._width = width

    def lines(
        self, nodes: Sequence[SyntaxTreeNode], *, is_open: bool, gap: bool = False, passed: int = 0
    ) -> tuple[Lines, list[int]]:
        """The lines of `nodes`, and where each node begins. `is_open`: more may be added to the last one.

        `gap`: an empty line goes before the first, too. `passed`: so many items of the first, a list, are left out.
        """
        from rich.text import Text

        lines: list[Text] = []
        stable, starts = 0, []
        for number, node in enumerate(nodes):
            starts.append(len(lines))
            last = is_open and number == len(nodes) - 1
            block = self._block(node, last, passed if not number else 0)
            if block.lines and (gap or lines) and _apart(nodes[number - 1] if number else None, node):
                lines.append(Text())
            stable = len(lines) + block.stable if block.stable else starts[-1]
            lines += block.lines
            if not last:
                stable = len(lines)
        return Lines(lines, stable), starts

    def items(self, node: SyntaxTreeNode, count: int, passed: int) -> int:
        """How many lines the first `count` items of a list take, with what separates them from the next."""
        first = self._list(node, False, passed, count + 1).lines
        return len(first) - len(self._item(node, count, False, passed).lines)

    def _narrower(self, columns: int) -> Blocks:
        return Blocks(self._look, max(self._width - columns, NARROWEST))

    def _block(self, node: SyntaxTreeNode, is_open: bool, passed: int = 0) -> Lines:
        match node.type:
            case "paragraph":
                return self._paragraph(node, is_open)
            case "heading":
                lines = wrapped(self._heading(node), self._width)
            case "fence" | "code_block":
                return self._code(node, is_open)
            case "blockquote":
                return self._quotation(node, is_open)
            case "bullet_list" | "ordered_list":
                return self._list(node, is_open, passed, len(node.children))
            case "hr":
                from rich.text import Text

                rule = self._look.sign("─", "-") * min(self._width, _RULE)
                lines = [Text(rule, "dim")]
            case "table":
                from deepctl.output.stream.markdown_tables import table

                lines = table(node, self._width, self._look, self.inline)
            case kind:
                raise AssertionError(kind)
        return Lines(lines, 0 if is_open else len(lines))

    def _paragraph(self, node: SyntaxTreeNode, is_open: bool) -> Lines:
        pieces = node.children[0].children
        lines = wrapped(self.inline(pieces), self._width)
        if not is_open:
            return Lines(lines, len(lines))
        # Its last line can become the head of a table; a backslash before that is then no break any more.
        breaks = [number for number, piece in enumerate(pieces) if piece.type == "softbreak"]
        if not breaks or any(_may_open(piece) for piece in pieces[: breaks[-1]]):
            return Lines(lines, 0)
        return Lines(lines, len(wrapped(self.inline(pieces[: breaks[-1]]), self._width)))

    def _heading(self, node: SyntaxTreeNode) -> Text:
        from rich.text import Text

        level = int(node.tag[1:])
        text = self.inline(node.children[0].children if node.children else (), "bold")
        return text if self._look.colour else Text("#" * level + " ") + text

    def _code(self, node: SyntaxTreeNode, is_open: bool) -> Lines:
        code = node.content.split("\n")
        while code and not code[-1].strip():
            code.pop()
        info = node.info if len(node.content) <= _LARGEST else ""
        lines = Highlighter(info, self._look).lines(code)
        # Indented code can be the first line of a list, and that the head of a table if a line of dashes follows.
        return Lines(lines, len(lines) - 1 if lines and is_open and node.type == "code_block" else len(lines))

    def _quotation(self, node: SyntaxTreeNode, is_open: bool) -> Lines:
        from rich.text import Text

        inner, _ = self._narrower(2).lines(node.children, is_open=is_open)
        bar = Text(self._look.sign("│", ">") + " ", "dim")
        return Lines([_prefixed(bar, line) for line in inner.lines], inner.stable)

    def _list(self, node: SyntaxTreeNode, is_open: bool, passed: int, count: int) -> Lines:
        from rich.text import Text

        lines: list[Text] = []
        stable = 0
        for number in range(count):
            last = is_open and number == count - 1
            if number and _is_long(node.children[number - 1]):
                lines.append(Text())
            item = self._item(node, number, last, passed)
            stable = len(lines) + item.stable
            lines += item.lines
        return Lines(lines, stable)

    def _item(self, node: SyntaxTreeNode, number: int, is_open: bool, passed: int) -> Lines:
        from rich.text import Text

        mark = self._look.sign("•", "*") + " "
        if node.type == "ordered_list":
            mark = f"{int(node.attrs.get('start', 1)) + passed + number}. "
        inner, _ = self._narrower(len(mark)).lines(node.children[number].children, is_open=is_open)
        first, other = Text(mark, "cyan"), Text(" " * len(mark))
        lines = [_prefixed(other if row else first, line) for row, line in enumerate(inner.lines)]
        if not lines:
            first.rstrip()
            return Lines([first], 0 if is_open else 1)
        return Lines(lines, inner.stable)

    def inline(self, pieces: Iterable[SyntaxTreeNode], style: str = "") -> Text:
        """What stands inside a paragraph, with newlines where lines break."""
        from rich.text import Text

        text = Text()
        for piece in pieces:
            match piece.type:
                case "text":
                    text.append(self._look.safe(piece.content).expandtabs(TAB), style)
                case "softbreak" | "hardbreak":
                    text.append("\n")
                case "code_inline":
                    mark = "" if self._look.colour else piece.markup
                    text.append(mark + self._look.safe(piece.content) + mark, f"{style} cyan")
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
        """`text` and where it really leads, unless that is what it says."""
        shown = self._look.safe(str(address)).replace("\n", " ")
        if text.plain not in (shown, shown.removeprefix("mailto:")):
            text.append(f" ({shown})" if text.plain else shown, "dim")
        return text


def _may_open(piece: SyntaxTreeNode) -> bool:
    """Whether a piece has something that text behind it could complete."""
    if piece.type == "text":
        return not _OPENERS.isdisjoint(piece.content)
    return any(_may_open(child) for child in piece.children)


def _apart(before: SyntaxTreeNode | None, node: SyntaxTreeNode) -> bool:
    """Whether an empty line goes between two blocks: not between a list and what introduces it inside an item."""
    inside = node.parent is not None and node.parent.type == "list_item"
    return not (inside and before is not None and before.type == "paragraph" and is_list(node))


def _is_long(item: SyntaxTreeNode) -> bool:
    """Whether an item has more than a paragraph and a list below it, so that the next one needs some distance."""
    kinds = [child.type for child in item.children]
    return len(kinds) > 2 or "fence" in kinds or kinds.count("paragraph") > 1


def _prefixed(prefix: Text, line: Text) -> Text:
    from rich.text import Text

    joined = Text.assemble(prefix, line)
    joined.rstrip()
    return joined
