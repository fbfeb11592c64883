"""Markdown as it arrives: final lines are returned once, and the rest can be shown as it is now.

The returned lines do not depend on how the text is cut into deltas, at one width. A block is final when the next one
has started. Of a list, a quotation, a block of code and a plain paragraph, the upper lines are final earlier. Only text
that is not final is parsed again, so the cost does not grow with the length of the answer. In a block that is longer
than `_BLOCK`, the rest is plain text.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from deepctl.output.stream.highlight import Highlighter
from deepctl.output.stream.lines import TAB, TerminalCaps, wrap
from deepctl.output.stream.markdown_blocks import Blocks, is_list, parser

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markdown_it.tree import SyntaxTreeNode
    from rich.text import Text

_ITEMS = 8
"""Number of items of a list that are parsed again before the first ones become final."""
_PIECE = 8_000
"""Characters of complete lines that are laid out at once."""
_PIECES = 4
"""Number of pieces that are processed at once; in between, a person can stop it."""
_BLOCK = 20_000
"""Layout takes time that grows with the square of the length. In a longer line, and in the rest of a longer block or
list item, marks are plain text.
"""
_LIST = 3 * _BLOCK
"""The same for a whole list whose items cannot become final one by one."""
_GOES_ON = {
    **dict.fromkeys(("paragraph", "table"), re.compile(r"[ \t]*[^ \t\n]")),
    **dict.fromkeys(("bullet_list", "ordered_list", "code_block"), re.compile(r"[ \t]|$")),
    "blockquote": re.compile(r" {0,3}>"),
}
"""The start of a line that continues a block."""
_MARKS = " \t>#`~*_+=|:-"
_LONGEST_MARK = 12
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class _Fence(NamedTuple):
    """An open block of code: its fence, its indentation in columns, and its colouring."""

    mark: str
    indent: int
    highlighter: Highlighter

    def is_closed_by(self, line: str) -> bool:
        fence = _FENCE.match(line)
        return fence is not None and fence[1].startswith(self.mark) and not line[fence.end() :].strip(" \t")

    def content(self, line: str) -> str:
        """A line without the fence's indentation, if it has that."""
        column = start = 0
        while start < len(line) and column < self.indent and line[start] in " \t":
            column += 1 if line[start] == " " else TAB - column % TAB
            start += 1
        return " " * (column - self.indent) + line[start:]


class Markdown:
    """One text in progress. `width` may change from call to call; an open block keeps its own width."""

    def __init__(self, caps: TerminalCaps) -> None:
        self._caps = caps
        self._parser = parser()
        self._deltas: list[str] = []
        self._ahead = ""
        self._source = ""
        self._rest: re.Pattern[str] | None = None
        self._fence: _Fence | None = None
        self._parsed = 0
        self._given = 0
        self._width = 0
        self._passed = 0
        self._gap = False
        self._empty_lines: list[Text] = []
        self._code_begun = False
        self._tail: tuple[int, list[Text]] | None = None

    def feed(self, delta: str) -> None:
        """The next piece of the text."""
        self._deltas.append(delta)

    def settled(self, width: int) -> list[Text]:
        """The lines that have become final since the last call."""
        self._take(whole=False)
        return self._settle(width, _PIECES)

    def tail(self, width: int) -> list[Text]:
        """The lines after the final ones, in their present form."""
        if self._tail is None or self._tail[0] != width:
            self._tail = width, self._unsettled(width)
        return self._tail[1]

    def _unsettled(self, width: int) -> list[Text]:
        # If complete lines are still waiting, the text after them is not part of this frame.
        line = "" if "\n" in self._ahead else self._ahead
        if self._fence is not None:
            return self._code_tail(self._fence, line)
        if self._rest is not None or len(line) > _BLOCK:
            return self._plain([line[-_PIECE:]], width)
        source = self._source + ("" if _is_half(line) else line)
        blocks = Blocks(self._caps, self._measure(width))
        layout, _ = blocks.lines(self._parse(source), is_open=True, gap=self._gap, offset=self._passed)
        return layout.lines[self._given :]

    def finish(self, width: int) -> list[Text]:
        """The text is complete: returns the remaining lines."""
        self._take(whole=True)
        return self._settle(width) + self._close(width)

    def break_off(self, width: int) -> list[Text]:
        """The text ended early: returns the remaining lines quickly, with much of it as plain text."""
        self._take(whole=True)
        lines = self._settle(width, _PIECES) + self._close(width)
        remainder, self._ahead = self._ahead, ""
        return lines + self._plain(remainder.splitlines(), width)

    def _close(self, width: int) -> list[Text]:
        """The lines of the open block that were not returned yet; the block is complete."""
        lines: list[Text] = []
        if self._fence is None:
            blocks = Blocks(self._caps, self._measure(width))
            layout, _ = blocks.lines(self._parse(self._source), is_open=False, gap=self._gap, offset=self._passed)
            lines = layout.lines[self._given :]
            self._gap = self._gap or bool(layout.lines)
        self._source = ""
        self._given = self._parsed = self._passed = 0
        return lines

    def _take(self, *, whole: bool) -> None:
        """Take the text that has arrived, with the newlines of this system; half a newline has to wait."""
        text = "".join(self._deltas)
        self._deltas.clear()
        if text.endswith("\r") and not whole:
            self._deltas.append("\r")
            text = text[:-1]
        if text:
            self._tail = None
        self._ahead += self._caps.safe(text)
        if whole and self._ahead and not self._ahead.endswith("\n"):
            self._ahead += "\n"

    def _piece(self) -> str:
        """The next complete lines: a few, or one that is longer than `_PIECE`."""
        end = self._ahead.rfind("\n", 0, _PIECE) + 1 or self._ahead.find("\n") + 1
        piece, self._ahead = self._ahead[:end], self._ahead[end:]
        return piece

    def _parse(self, source: str) -> Sequence[SyntaxTreeNode]:
        from markdown_it.tree import SyntaxTreeNode

        return SyntaxTreeNode(self._parser.parse(source)).children

    def _measure(self, width: int) -> int:
        """The width of the open block: that of its returned lines, if there are any."""
        if not self._given:
            self._width = width
        return self._width

    def _settle(self, width: int, pieces: int | None = None) -> list[Text]:
        """Return the final part of the complete lines: all of it, or a number of pieces."""
        lines: list[Text] = []
        pieces_taken = 0
        while (pieces is None or pieces_taken < pieces) and (piece := self._piece()):
            pieces_taken += 1
            if self._rest is not None:
                lines += self._rest_of(self._rest, piece, width)
            elif self._fence is None and len(piece) > _BLOCK:
                lines += [
                    *self._close(width),
                    *([self._text()] if self._gap else []),
                    *self._plain([piece[:-1]], width),
                ]
                self._gap = True
            else:
                self._source += piece
                lines += self._settle_source(width)
        return lines

    def _plain(self, source: Sequence[str], width: int) -> list[Text]:
        """Lines as they are, in which no mark means anything."""
        return [row for line in source for row in wrap(self._text(line.expandtabs(TAB)), width)]

    def _text(self, line: str = "") -> Text:
        from rich.text import Text

        return Text(line)

    def _rest_of(self, goes_on: re.Pattern[str], piece: str, width: int) -> list[Text]:
        """Those of the lines with which a block goes on that is too long; the others are still ahead."""
        source = piece.split("\n")[:-1]
        end = next((number for number, line in enumerate(source) if not goes_on.match(line)), None)
        if end is not None:
            self._rest = None
            self._ahead = "\n".join([*source[end:], self._ahead])
        return self._plain(source[:end], width)

    def _find_long_block(self, nodes: Sequence[SyntaxTreeNode]) -> tuple[int, re.Pattern[str]] | None:
        """Where the source of a block has become too long, and how its rest looks.

        Not before a line behind that belongs to the block, too: that shows what the one before it means.
        """
        if self._parsed <= _BLOCK:
            return None
        offsets = [0]
        for line in self._source.split("\n"):
            offsets.append(offsets[-1] + len(line) + 1)
        for node in nodes:
            if node.type not in _GOES_ON:
                continue
            parts = [(node, _LIST), *((item, _BLOCK) for item in node.children)] if is_list(node) else [(node, _BLOCK)]
            for part, most in parts:
                assert part.map is not None
                first, behind = part.map
                number = bisect_right(offsets, offsets[first] + most)
                if number < behind:
                    return offsets[number], _GOES_ON[node.type]
        return None

    def _settle_source(self, width: int) -> list[Text]:
        lines: list[Text] = []
        while True:
            if self._fence is not None:
                lines += self._code(self._fence)
            else:
                lines += self._blocks(width)
            end = self._source.rfind("\n") + 1
            if (self._fence is None and end == self._parsed) or (self._fence is not None and not end):
                return lines

    def _blocks(self, width: int) -> list[Text]:
        """Return the final part of the complete lines, and drop its source."""
        end = self._source.rfind("\n") + 1
        if end == self._parsed:
            return []
        nodes = self._parse(self._source[:end])
        blocks = Blocks(self._caps, self._measure(width))
        self._parsed = end
        if not nodes:
            return []
        long_block = self._find_long_block(nodes)
        if long_block is not None:
            start, self._rest = long_block
            self._ahead = self._source[start:] + self._ahead
            self._source = self._source[:start]
            return self._close(width)
        fence = self._open_fence(nodes[-1])
        layout, starts = blocks.lines(
            nodes[:-1] if fence else nodes, is_open=not fence, gap=self._gap, offset=self._passed
        )
        lines = layout.lines[self._given : layout.stable]
        self._given = max(self._given, layout.stable)
        if fence is not None:
            self._begin_code(fence, nodes[-1], has_lines=bool(layout.lines))
        else:
            self._let_go(nodes, starts, blocks)
        return lines

    def _let_go(self, nodes: Sequence[SyntaxTreeNode], starts: list[int], blocks: Blocks) -> None:
        """Drop the source of returned text: every block except the last, and its items."""
        last = nodes[-1]
        if len(nodes) > 1:
            self._forget(last, starts[-1])
            self._gap = self._gap or starts[-1] > 0
            self._passed = 0
            nodes = self._parse(self._source[: self._parsed])
            last = nodes[0]
        if not is_list(last) or len(last.children) <= _ITEMS or self._given == 0:
            return
        count = len(last.children) - 2
        remaining_source = self._source[: self._parsed].split("\n", _first_line(last.children[count]))[-1]
        # A line can mean something else if it comes first; in that case nothing is dropped.
        new_nodes = self._parse(remaining_source)
        if len(new_nodes) != 1 or new_nodes[0].type != last.type or len(new_nodes[0].children) != 2:
            return
        start = _first_line(last.children[count])
        if [_first_line(item) + start for item in new_nodes[0].children] != [
            _first_line(i) for i in last.children[count:]
        ]:
            return
        gap = 1 if self._gap else 0
        height = blocks.items(last, count, self._passed)
        if int(new_nodes[0].attrs.get("start", 1)) != int(last.attrs.get("start", 1)):
            self._passed += int(last.attrs.get("start", 1)) - int(new_nodes[0].attrs.get("start", 1))
        self._passed += count
        self._forget(last.children[count], height + gap)
        self._gap = False

    def _forget(self, before: SyntaxTreeNode, lines: int) -> None:
        """Drop the source before a node, which produced this many lines."""
        length = sum(map(len, self._source[: self._parsed].split("\n")[: _first_line(before)])) + _first_line(before)
        self._source = self._source[length:]
        self._parsed -= length
        self._given -= lines

    def _open_fence(self, node: SyntaxTreeNode) -> _Fence | None:
        """The fence of an open block of code, with all its lines."""
        if node.type != "fence":
            return None
        assert node.map is not None
        lines = self._source[: self._parsed].split("\n")[node.map[0] : node.map[1]]
        indent = len(lines[0]) - len(lines[0].lstrip(" "))
        fence = _Fence(node.markup, indent, Highlighter(node.info, self._caps))
        # With a line of dashes below, the first one would be the head of a table.
        if len(lines) < 2 and "|" in lines[0]:
            return None
        return None if len(lines) > 1 and fence.is_closed_by(lines[-1]) else fence

    def _begin_code(self, fence: _Fence, node: SyntaxTreeNode, *, has_lines: bool) -> None:
        first = _first_line(node)
        self._source = self._source.split("\n", first + 1)[-1]
        self._gap = self._gap or has_lines
        self._fence = fence
        self._empty_lines = []
        self._code_begun = False
        self._given = self._parsed = self._passed = 0

    def _code(self, fence: _Fence) -> list[Text]:
        """Return the complete lines of an open block of code; empty lines only when text follows them."""
        *complete, last_line = self._source.split("\n")
        end = next((number for number, line in enumerate(complete) if fence.is_closed_by(line)), None)
        self._source = "\n".join([*complete[len(complete) if end is None else end + 1 :], last_line])
        lines: list[Text] = []
        for line in fence.highlighter.lines([fence.content(line) for line in complete[:end]]):
            if not line.plain.strip():
                self._empty_lines.append(line)
                continue
            lines += self._code_gap()
            lines.append(line)
            self._empty_lines = []
            self._code_begun = True
        if end is not None:
            self._fence = None
            self._gap = self._gap or self._code_begun
        return lines

    def _code_gap(self) -> list[Text]:
        from rich.text import Text

        gap = [Text()] if self._gap and not self._code_begun else []
        return gap + self._empty_lines

    def _code_tail(self, fence: _Fence, line: str) -> list[Text]:
        if not line.strip(" \t" + fence.mark[0]):
            return []
        return [*self._code_gap(), fence.highlighter.peek(fence.content(line))]


def _is_half(line: str) -> bool:
    """Whether the meaning of a last line is still open, because it consists of marks only."""
    text = line.strip(_MARKS).rstrip(".)")
    return not text or (text.isdecimal() and len(line) <= _LONGEST_MARK)


def _first_line(node: SyntaxTreeNode) -> int:
    assert node.map is not None
    return node.map[0]
