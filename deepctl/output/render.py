"""The one renderer: a result as text or as one JSON document; notices, errors and progress on stderr.

All text for a terminal passes the functions here that escape unsafe characters, measure widths, draw tables and choose
colours.

Notices and errors name shell commands in backquotes: `deepctl checkpoints undo --user alice`. In a chat this command is
`/undo`, so a chat enters `conversing`, and messages of this thread are reworded inside it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TextIO

from deepctl.errors import DeepctlError, Interrupted, StorageError
from deepctl.quantities import UNKNOWN_TIME, size
from deepctl.unicode import IGNORABLE
from deepctl.unicode import cells as cells
from deepctl.unicode import clip as clip

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

VERSION = 1
"""Version of every JSON document on stdout."""


_reword: ContextVar[Callable[[str], str] | None] = ContextVar("reword", default=None)


@contextmanager
def conversing(reword: Callable[[str], str]) -> Iterator[None]:
    """Inside this context, messages belong to a chat, and `reword` replaces shell commands by slash commands."""
    token = _reword.set(reword)
    try:
        yield
    finally:
        _reword.reset(token)


def is_conversation() -> bool:
    """Whether messages belong to a chat."""
    return _reword.get() is not None


def with_command_names(text: str) -> str:
    """`text` with the names that its commands have in the present context."""
    reword = _reword.get()
    return reword(text) if reword is not None else text


class View(Protocol):
    """A result of a command: its JSON document for scripts, and its text for people."""

    def document(self) -> dict[str, Any]:
        """The result as JSON, without the version."""
        ...

    def print(self) -> None:
        """Write the result to stdout as text."""
        ...


def show(view: View, as_json: bool) -> None:
    """Print a result to stdout, as one JSON document or as text.

    Raises `StorageError` (exit 8) if stdout cannot be written, and `BrokenPipeError` if its reader has ended.
    """
    try:
        if as_json:
            print(json.dumps({"version": VERSION, **view.document()}))
        else:
            view.print()
    except BrokenPipeError:
        raise
    except OSError as problem:
        if problem.filename is not None:
            raise
        discard_stdout()
        raise _unwritable(problem) from None


def write(text: str) -> bool:
    """Write to stdout at once. Returns false if its reader has ended; further output is then discarded without an
    error.

    Raises `StorageError` (exit 8) if stdout cannot be written for another reason.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        return False
    except OSError as problem:
        discard_stdout()
        raise _unwritable(problem) from None
    return True


def _unwritable(problem: OSError) -> StorageError:
    return StorageError(f"stdout cannot be written: {problem.strerror}.", code="stdout")


def discard_stdout() -> None:
    """Discard further output to a broken stdout, and its buffer, so that the command can continue."""
    _to_nowhere(sys.stdout.fileno())


def notice(message: str) -> None:
    """Print a message for the user on stderr that is not part of the answer."""
    text = wrap(printable(with_command_names(message)), sys.stderr)
    say(f"\x1b[2m{text}\x1b[0m" if has_colour(sys.stderr) else text)


def say(line: str) -> None:
    """Write a line to stderr. A closed stderr is not an error."""
    say_part(line + "\n")


def say_part(text: str) -> None:
    """Write to stderr without ending the line. Buffered output of stdout is written first, because both may have one
    target.
    """
    with suppress(OSError):  # the next write to stdout reports it
        sys.stdout.flush()
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        _to_nowhere(sys.stderr.fileno())


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def new_line() -> None:
    """End the line in which the terminal has just echoed a key such as ^C."""
    if is_terminal(sys.stderr):
        say("")


def error(problem: DeepctlError, as_json: bool, *, as_event: bool = False) -> None:
    """Report an error: `Error: …` and `Hint: …`, or one line of JSON, on stderr; as a chat's last event on stdout."""
    if as_event:
        write(json.dumps({"type": "error", **problem.document()}) + "\n")
        return
    if as_json:
        say(json.dumps({"error": problem.document()}))
        return
    if isinstance(problem, Interrupted):
        new_line()
    red, plain = ("\x1b[31m", "\x1b[0m") if has_colour(sys.stderr) else ("", "")
    message = wrap(f"Error: {printable(with_command_names(problem.message))}", sys.stderr)
    say(f"{red}Error:{plain}{message.removeprefix('Error:')}")
    if problem.hint:
        say(wrap(f"Hint: {printable(with_command_names(problem.hint))}", sys.stderr))


def notification(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The sequence that shows `text` as a notification of the desktop (OSC 9). Other terminals ignore it.

    tmux hands it to its terminal only with the option allow-passthrough, and drops it without.
    """
    sequence = f"\x1b]9;{printable(text)}\x07"
    if environment.get("TMUX"):
        return f"\x1bPtmux;{sequence.replace(_ESCAPE, _ESCAPE * 2)}{_ESCAPE}\\"
    return sequence


_ESCAPE = "\x1b"
_BAR_AFTER = 1.0
_BAR_EVERY = 0.1

BYTES = "bytes"
"""The unit whose counts are shown as sizes."""


class Progress:
    """Counts finished work, of `total` if that is known. Shows nothing if stderr is not a terminal.

    `activity` is the first word of the line, `unit` the counted unit.
    """

    def __init__(self, activity: str, unit: str = "files read", total: int | None = None) -> None:
        self._what = activity
        self._unit = unit
        self._total = total
        self._bar: Bar | None = None
        self._watched = is_terminal(sys.stderr)
        self._next = time.monotonic() + _BAR_AFTER

    def __call__(self, count: int) -> None:
        """Set the amount of finished work since the start."""
        if not self._watched or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _BAR_EVERY
        if self._bar is None:
            self._bar = self._begin()
        self._bar.update(self._bar.task_ids[0], completed=count, counted=self._counted(count))
        self._bar.refresh()

    def _counted(self, count: int) -> str:
        form = size if self._unit == BYTES else "{:,}".format
        of = f" of {form(self._total)}" if self._total is not None else ""
        return f"{form(count)}{of}" if self._unit == BYTES else f"{form(count)}{of} {self._unit}"

    def _begin(self) -> Bar:
        # Drawing needs Rich, which takes a tenth of a second to import, so only long work imports it.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counted]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        bar.add_task(self._what, total=self._total, counted="")
        bar.start()
        return bar

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


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
    if at == UNKNOWN_TIME:
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
    return "\n".join(wrapped(text, room)) if room else text


def wrapped(text: str, room: int) -> list[str]:
    """`text`, which is one line, as lines of at most `room` cells; a longer word is not broken."""
    if text.isascii() and len(text) <= room:
        return [text]
    lines, width = [""], 0
    for word in re.findall(r" *[^ ]+", text):
        if lines[-1] and width + cells(word) > room:
            word, width = word.lstrip(), 0
            lines.append("")
        lines[-1] += word
        width += cells(word)
    return lines


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
