"""Text for a terminal: what the terminal can show, escapes for unsafe characters, widths, tables and colours."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO

from deepctl import quantities
from deepctl.unicode import IGNORABLE

_DEFAULT_SIZE = (80, 24)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is looking at `stream`."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def is_dumb(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal can only print, without escape sequences."""
    return environment.get("TERM", "dumb") in ("dumb", "unknown", "")


def has_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to use colours on `stream`: NO_COLOR, FORCE_COLOR and a dumb terminal decide, in this order."""
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and not is_dumb(environment)


def terminal_width() -> int | None:
    """The number of characters on a line of stdout; `None` if stdout is not a terminal."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None if is_terminal(sys.stdout) else None
    except (OSError, ValueError):
        return None


def terminal_size() -> tuple[int, int]:
    """The present columns and lines of the terminal at stdout; 80 by 24 if they are unknown."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return _DEFAULT_SIZE
    return columns or _DEFAULT_SIZE[0], lines or _DEFAULT_SIZE[1]


# Direction marks and invisible characters, except those that join emoji and letters.
_UNSEEN = "\xad\u061c\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff\U000e0000-\U000e007f"
_CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_UNSEEN}]")
_CONTROL_OR_BREAK = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_UNSEEN}]")

_INVISIBLE = re.compile(f"[{IGNORABLE}\u2800]")
"""Invisible characters, and the Braille sign without dots."""
_RUN = re.compile(r" {40,}")


def _escaped(match: re.Match[str]) -> str:
    return _escaped_character(match[0])


def _escaped_character(character_text: str) -> str:
    character = ord(character_text)
    if 0xDC80 <= character <= 0xDCFF:
        character -= 0xDC00
    if character > 0xFFFF:
        return f"\\U{character:08x}"
    return f"\\x{character:02x}" if character < 0x100 else f"\\u{character:04x}"


def printable(text: str) -> str:
    """`text` on one line, with escapes for characters that could move a cursor or reverse text."""
    if text.isprintable():
        return text
    return _CONTROL_OR_BREAK.sub(_escaped, text)


def visible(text: str) -> str:
    """`text` on one line, with escapes for everything that is not visible: invisible characters, unusual spaces, and
    runs of spaces long enough to push text out of sight.
    """
    escaped_text = "".join(
        character if character.isprintable() else _escaped_character(character) for character in text
    )
    escaped_text = _INVISIBLE.sub(_escaped, escaped_text)
    return _RUN.sub(lambda run: f" …{len(run[0])} spaces… ", escaped_text)


def printable_lines(text: str) -> str:
    """The same for text that may have several lines: newlines and tabs stay."""
    return _CONTROL.sub(_escaped, text)


def ago(at: str | None) -> str:
    """A time in RFC 3339 for people: `3 minutes ago`; `never` for `None`, `unknown` for the unknown time."""
    if not at:
        return "never"
    if at == quantities.UNKNOWN_TIME:
        return "unknown"
    from datetime import datetime, timezone

    seconds = (datetime.now(timezone.utc) - datetime.fromisoformat(at)).total_seconds()
    if seconds < 60:
        return "just now"
    for unit, length in (("year", 31557600), ("month", 2629800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def home(path: str) -> str:
    """A path with the home directory as `~`."""
    start = os.path.expanduser("~")
    return "~" + path[len(start) :] if path == start or path.startswith(start + os.sep) else path


# One cell each in every terminal: Latin letters, dashes, quotation marks, the ellipsis. Not the soft hyphen.
_NARROW = re.compile("[ -~\xa0-\xac\xae-\u02ff\u2010-\u2027]*")


def cells(text: str) -> int:
    """The number of terminal cells of `text`, without control characters: the one measure for all drawing.

    A grapheme cluster takes the cells of one character: 2 for a flag or a family.
    """
    if _NARROW.fullmatch(text):
        return len(text)
    # The import takes as long as a small command, and nearly all text consists of the characters above.
    from wcwidth import wcswidth, wcwidth

    count = wcswidth(text)
    return count if count >= 0 else sum(max(wcwidth(character), 0) for character in text)


def clip(text: str, room: int, *, from_end: bool = False) -> str:
    """The whole grapheme clusters of `text` that fit into `room` cells: the first ones, or the last."""
    if text.isascii():
        return text[max(len(text) - room, 0) :] if from_end else text[: max(room, 0)]
    from wcwidth import iter_graphemes, iter_graphemes_reverse

    width = length = 0
    for grapheme in iter_graphemes_reverse(text) if from_end else iter_graphemes(text):
        width += cells(grapheme)
        if width > room:
            break
        length += len(grapheme)
    return text[len(text) - length :] if from_end else text[:length]


def fit(line: str, room: int | None = None) -> str:
    """`line`, cut to this number of cells; the default is the width of stdout's terminal."""
    room = terminal_width() if room is None else room
    if room is None or cells(line) <= room:
        return line
    return clip(line, room - 1).rstrip() + "…"


def wrap(text: str, stream: TextIO) -> str:
    """`text` wrapped between words if `stream` is a terminal."""
    try:
        room = os.get_terminal_size(stream.fileno()).columns if is_terminal(stream) else 0
    except (OSError, ValueError):
        return text
    if not room or (text.isascii() and len(text) <= room):
        return text
    lines, width = [""], 0
    for word in re.findall(r" *[^ ]+", text):
        if lines[-1] and width + cells(word) > room:
            word, width = word.lstrip(), 0
            lines.append("")
        lines[-1] += word
        width += cells(word)
    return "\n".join(lines)


def print_sentence(sentence: str) -> None:
    """Print a sentence to stdout, wrapped between words at a terminal."""
    print(wrap(printable(sentence), sys.stdout))


MEANINGS = {"name": "cyan", "good": "green", "warning": "yellow", "bad": "red", "faint": "dim", "strong": "bold"}
"""The meaning of each colour, the same in every list."""


class Cell(NamedTuple):
    """A cell of a table with a colour from `MEANINGS`."""

    text: str
    meaning: str


_WIDEST = 24
_LAST = 16
_GAP = 2


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    dispensable: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> None:
    """Print rows: at a terminal as a table that fits, otherwise tab-separated, complete and without a heading.

    In a narrow window the last column, which is prose or a path, shrinks first; then the `dispensable` columns; then
    columns that are wider than usual names. Columns of `numbers` are right-aligned.
    """
    shown_rows = [[cell if isinstance(cell, Cell) else Cell(cell, "") for cell in row] for row in rows]
    if not is_terminal(sys.stdout):
        sys.stdout.write("".join("\t".join([printable(cell.text) for cell in row]) + "\n" for row in shown_rows))
        return
    # Rich takes as long to import as Typer, and piped output does not need it.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=terminal_width())
    last = len(columns) - 1
    widths = [
        max([cells(column), *(cells(printable(row[number].text)) for row in shown_rows)])
        for number, column in enumerate(columns)
    ]
    column_numbers = list(range(len(columns)))

    def room() -> int:
        return console.width - sum(widths[number] + _GAP for number in column_numbers if number != last)

    for name in dispensable:
        if room() < min(widths[last], _LAST):
            column_numbers.remove(columns.index(name))
    for number in sorted(column_numbers, key=lambda number: -widths[number]):
        if number != last and room() < min(widths[last], _LAST):
            widths[number] = min(widths[number], _WIDEST)
    # Otherwise Rich would shrink any column.
    widths[last] = max(1, min(widths[last], room()))
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for number in column_numbers:
        grid.add_column(
            columns[number],
            overflow="ellipsis",
            no_wrap=True,
            width=widths[number],
            style=MEANINGS["name"] if number == 0 else "",
            justify="right" if columns[number] in numbers else "left",
        )
    for row in shown_rows:
        grid.add_row(
            *(
                Text(printable(row[number].text), style=MEANINGS.get(row[number].meaning, ""))
                for number in column_numbers
            )
        )
    console.print(grid)


def tint(text: str, meaning: str) -> str:
    """`text` for stdout in the colour of its meaning, if colours are on."""
    if not has_colour(sys.stdout):
        return text
    code = {"name": 36, "good": 32, "warning": 33, "bad": 31, "faint": 2, "strong": 1}[meaning]
    return f"\x1b[{code}m{text}\x1b[0m"
