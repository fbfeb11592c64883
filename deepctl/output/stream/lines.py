"""Lines as they are drawn at a terminal: safe text, colours, wrapping and cutting.

A line is Rich's `Text` without a newline. It is wider than the window only if the terminal itself must wrap it: code,
which people copy.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

from deepctl.output.render import cells, clip, has_colour, printable_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NARROWEST = 8
"""Lines are laid out for at least this many columns; in a narrower window the terminal wraps or cuts them."""
TAB = 4
_LONGEST_ROW = 4096
"""Code points that are measured for a row."""

_SEPARATORS = str.maketrans({"\u2028": "\\u2028", "\u2029": "\\u2029"})
_CARRIAGE_RETURN = re.compile("\r\n")


class TerminalCaps(NamedTuple):
    """How lines are drawn. Without `colour` there is no SGR sequence at all, not even bold."""

    colour: bool
    encoding: str

    @property
    def unicode(self) -> bool:
        return self.encoding.lower().replace("-", "").startswith("utf")

    def sign(self, sign: str, otherwise: str) -> str:
        """`sign`, or its ASCII replacement."""
        return sign if self.unicode else otherwise

    def safe(self, text: str) -> str:
        """`text` with escapes for characters that could move a cursor or reverse text, or that cannot be encoded.

        Newlines and tabs stay.
        """
        safe_text = printable_lines(_CARRIAGE_RETURN.sub("\n", text)).translate(_SEPARATORS)
        if self.unicode or safe_text.isascii():
            return safe_text
        return safe_text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def ansi(self, line: Text) -> str:
        """The bytes of a line for the terminal."""
        if not self.colour:
            return line.plain
        from rich.color import ColorSystem

        if line.style and not line.spans:
            # Rich's `render` uses the style of a whole line only beside those of its parts.
            line = line.copy()
            line.stylize(line.style)
        return "".join(
            segment.style.render(segment.text, color_system=ColorSystem.STANDARD) if segment.style else segment.text
            for segment in line.render(console(), end="")
        )


def of_stdout() -> TerminalCaps:
    """How lines on stdout are drawn."""
    return TerminalCaps(has_colour(sys.stdout), sys.stdout.encoding or "ascii")


def wrap(line: Text, width: int) -> list[Text]:
    """`line`, which may have newlines, wrapped between words so that every row fits."""
    rows = line.wrap(console(), max(width, NARROWEST), overflow="fold", tab_size=TAB)
    for row in rows:
        row.rstrip()
    return list(rows)


def fold(line: Text, width: int) -> list[Text]:
    """`line` wrapped at each full row, as the terminal does it."""
    if cells(line.plain) <= width:
        return [line]
    offsets, end = [], 0
    while end < len(line.plain):
        # At least one, even in a very narrow window.
        end += max(len(clip(line.plain[end : end + _LONGEST_ROW], max(width, 2))), 1)
        offsets.append(end)
    return list(line.divide(offsets[:-1]))


def cut_line(line: Text, width: int, caps: TerminalCaps) -> Text:
    """`line` with an ellipsis if it does not fit on a row of `width` cells."""
    if cells(line.plain) <= width:
        return line
    dots = caps.sign("…", "...")
    short_line = line.copy()
    short_line.right_crop(len(line.plain) - len(clip(line.plain, width - len(dots)).rstrip()))
    return short_line.append(dots)


_CONSOLES: list[Console] = []


def console(width: int | None = None) -> Console:
    """Rich's console, only for layout: it never prints."""
    from rich.console import Console

    if width is not None:
        return Console(width=width, color_system="standard", force_terminal=True, legacy_windows=False)
    if not _CONSOLES:
        _CONSOLES.append(Console(width=80, color_system="standard", force_terminal=True, legacy_windows=False))
    return _CONSOLES[0]
