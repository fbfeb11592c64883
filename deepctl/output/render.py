"""The one renderer: a result as text or as one JSON document; notices, errors and progress on stderr.

Notices and errors name shell commands in backquotes: `deepctl checkpoints undo --user alice`. In a chat this command is
`/undo`, so a chat enters `conversing`, and messages of this thread are reworded inside it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from deepctl.errors import DeepctlError, Interrupted, StorageError
from deepctl.output.text import has_colour, is_terminal, printable, wrap
from deepctl.quantities import size

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
