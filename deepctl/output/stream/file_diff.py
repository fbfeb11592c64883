"""The difference between two contents of a file as coloured rows, with line numbers.

The cost is bounded: equal lines at both ends are not compared, and no difference is computed for too many lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from deepctl.output.render import printable
from deepctl.output.stream.lines import TAB, TerminalCaps, cut_line, fold
from deepctl.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from difflib import SequenceMatcher
    from typing import Any

    from rich.text import Text

SHOWN_AS_CHANGE = {
    "edit_file": ("old_string", "new_string"),
    "save_plan": ("content",),
    "write_file": ("content",),
    "write_memory": ("content", "old_text"),
}
"""For each tool that changes a file, the arguments whose text is in the change."""
PREVIEW_ROWS = 12
"""The most rows of a difference that is shown without a request."""
_CONTEXT = 2
_MOST_LINES = 3000
"""Two contents with more differing lines than this together are not compared, because it would take too long."""
_LONGEST = 2000
"""Characters of a line that are shown."""
_NUMBERED = 32
"""Columns of the narrowest window in which lines have numbers."""
_STYLES = {"+": "green", "-": "red", " ": "dim"}


class _DiffLine(NamedTuple):
    """A line with its number in the file (for a removed line, in the file before) and `+`, `-` or a space."""

    number: int
    sign: str
    text: str


class FileDiff:
    """A change of the file `path`. A content is `None` without a file. A `remark` is the reason if it is not shown."""

    def __init__(self, path: str, before: str | None, after: str | None, remark: str = "") -> None:
        self.path = path
        self.remark = remark
        self.added: int | None = None
        self.removed: int | None = None
        self._is_new, self._is_deleted = before is None, after is None
        self._old, self._new = _lines(before or ""), _lines(after or "")
        self._blocks: list[tuple[str, int, int, int, int]] = []
        if not remark:
            self._compare(before, after)

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> FileDiff:
        """The difference in an event `change`."""
        return cls(event["path"], event["before"], event["after"], event["remark"])

    def _compare(self, before: str | None, after: str | None) -> None:
        old, new = self._old, self._new
        if old and new and all(line.endswith("\r") for line in (*old, *new)):
            old, new = [line[:-1] for line in old], [line[:-1] for line in new]
            self._old, self._new = old, new
        start = _common(old, new)
        end = _common(old[start:][::-1], new[start:][::-1])
        first, last = old[start : len(old) - end], new[start : len(new) - end]
        if first and last and len(first) + len(last) > _MOST_LINES:
            self.remark = "too many lines to compare"
            return
        self._blocks = [
            (tag, i + start, j + start, k + start, m + start)
            for tag, i, j, k, m in _matcher(first, last).get_opcodes()
            if tag != "equal"
        ]
        self.removed = sum(j - i for _, i, j, _, _ in self._blocks)
        self.added = sum(m - k for _, _, _, k, m in self._blocks)
        if not self._blocks and before != after and before is not None and after is not None:
            self.remark = "only the line endings change"

    def outcome(self) -> str:
        """The change in a few words, as `+3 -1`."""
        words = "new file" if self._is_new else "deleted" if self._is_deleted else ""
        counts = " ".join(f"{sign}{count}" for sign, count in (("+", self.added), ("-", self.removed)) if count)
        return ", ".join(filter(None, (words, self.remark or counts))) or "unchanged"

    def preview(self, caps: TerminalCaps, width: int, more: str) -> list[Text]:
        """At most `PREVIEW_ROWS` rows. If there are more lines, the last row says so, with the words `more` behind it.

        With less room there is less context, and then less of each block: old and new lines are both seen.
        """
        from rich.text import Text

        change_count = (self.added or 0) + (self.removed or 0)
        for context in range(_CONTEXT, -1, -1) if change_count <= PREVIEW_ROWS else ():
            lines = self._shown(context)
            if len(lines) <= PREVIEW_ROWS:
                return self._rows(lines, caps, width, is_cut=True)
        room = PREVIEW_ROWS - 1
        most = next((most for most in range(room, 0, -1) if len(self._shown(0, most)) <= room), 1)
        lines = self._shown(0, most)[:room]
        left_out_count = change_count - sum(line is not None for line in lines)
        note = f"   {caps.sign('…', '...')} {counted(left_out_count, 'more line')}{more}"
        return [*self._rows(lines, caps, width, is_cut=True), cut_line(Text(note, "dim"), width, caps)]

    def details(self, caps: TerminalCaps, width: int) -> list[Text]:
        """All of it, with the path."""
        from rich.text import Text

        heading = f"   {caps.safe(printable(self.path))}: {self.outcome()}"
        return [
            *fold(Text(heading, "bold"), width),
            *self._rows(self._shown(_CONTEXT), caps, width, is_cut=False),
        ]

    def _shown(self, context: int, most: int | None = None) -> list[_DiffLine | None]:
        """The changed lines with `context` around them, of each block at most `most`; `None` where lines are left
        out.
        """
        shown_lines: list[_DiffLine | None] = []
        at = 0  # in the old lines
        for number, (_, i, j, k, m) in enumerate(self._blocks):
            following = self._blocks[number + 1][1] if number + 1 < len(self._blocks) else len(self._old)
            start = max(i - context, at)
            if start > at and shown_lines:
                shown_lines.append(None)
            shown_lines += self._context(start, i, k - i)
            shown_lines += [_DiffLine(line + 1, "-", self._old[line]) for line in range(i, j)[:most]]
            shown_lines += [_DiffLine(line + 1, "+", self._new[line]) for line in range(k, m)[:most]]
            at = min(j + context, following)
            shown_lines += self._context(j, at, m - j)
        return shown_lines

    def _context(self, start: int, end: int, shift: int) -> Iterator[_DiffLine]:
        """Lines that both contents have, with their numbers in the new one."""
        return (_DiffLine(line + shift + 1, " ", self._old[line]) for line in range(start, end))

    def _rows(self, lines: Sequence[_DiffLine | None], caps: TerminalCaps, width: int, *, is_cut: bool) -> list[Text]:
        from rich.text import Text

        digits = max((len(str(line.number)) for line in lines if line is not None), default=1)
        rows: list[Text] = []
        for line in lines:
            if line is None:
                rows.append(Text(f"   {' ' * digits if width >= _NUMBERED else ''} {caps.sign('⋯', '...')}", "dim"))
                continue
            number = f"   {line.number:>{digits}} " if width >= _NUMBERED else "   "
            text = line.text[:_LONGEST] + (caps.sign("…", "...") if len(line.text) > _LONGEST else "")
            head = Text.assemble((number, "dim"), (f"{line.sign} ", _STYLES[line.sign]))
            body = Text(caps.safe(text).expandtabs(TAB), _STYLES[line.sign])
            if is_cut:
                rows.append(cut_line(Text.assemble(head, body), width, caps))
                continue
            first, *others = fold(body, max(width - len(head.plain), 1))
            rows.append(Text.assemble(head, first))
            rows += [Text.assemble(" " * len(head.plain), row) for row in others]
        for row in rows:
            row.rstrip()
        return rows


def _lines(text: str) -> list[str]:
    # `splitlines` would also split a line at a form feed.
    return text.removesuffix("\n").split("\n") if text else []


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """The number of equal lines at the start of both."""
    most = min(len(first), len(second))
    return next((number for number in range(most) if first[number] != second[number]), most)


def _matcher(first: Sequence[str], second: Sequence[str]) -> SequenceMatcher[str]:
    from difflib import SequenceMatcher

    return SequenceMatcher(None, first, second)
