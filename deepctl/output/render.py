"""The one renderer: a result as text or as one JSON document, notices and errors to stderr.

Notices and errors name commands as a shell knows them, in backquotes: `deepctl checkpoints undo --user alice`. A
conversation, where that is `/undo`, says so once (`conversing`), and what is told meanwhile in this thread is reworded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol

from deepctl.errors import DeepctlError, Interrupted, StorageError
from deepctl.output.terminal_caps import has_colour, is_terminal
from deepctl.output.text import printable, wrapped

VERSION = 1
"""Version of every JSON document on stdout."""


_reword: ContextVar[Callable[[str], str] | None] = ContextVar("reword", default=None)


@contextmanager
def conversing(reword: Callable[[str], str]) -> Iterator[None]:
    """Meanwhile it is in a conversation that things are told, and `reword` gives them the names of its commands."""
    token = _reword.set(reword)
    try:
        yield
    finally:
        _reword.reset(token)


def is_conversation() -> bool:
    """Whether what is told is told in a conversation."""
    return _reword.get() is not None


def worded(text: str) -> str:
    """`text` with the commands named as they are where it is told."""
    reword = _reword.get()
    return reword(text) if reword is not None else text


class View(Protocol):
    """A result of a command: what it says to scripts, and how it prints itself for people."""

    def document(self) -> dict[str, Any]:
        """The result as JSON, without the version."""
        ...

    def print(self) -> None:
        """Write the result to stdout as text."""
        ...


def show(view: View, as_json: bool) -> None:
    """Print a result to stdout, as one JSON document or as text.

    Raises `StorageError` (exit 8) if stdout cannot be written, and `BrokenPipeError` if nobody reads it any more.
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
    """Write to stdout at once. False once whoever read it has left: what follows goes nowhere, and nothing stops.

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
    """Send what is written to, or still buffered for, a broken stdout nowhere, so that everything else can go on."""
    _to_nowhere(sys.stdout.fileno())


def notice(message: str) -> None:
    """Tell the user something on stderr that is not the answer."""
    text = wrapped(printable(worded(message)), sys.stderr)
    say(f"\x1b[2m{text}\x1b[0m" if has_colour(sys.stderr) else text)


def say(line: str) -> None:
    """Write a line to stderr. Nobody reading it is no reason for anything to stop."""
    say_part(line + "\n")


def say_part(text: str) -> None:
    """Write to stderr without ending the line. What stdout has so far comes first, where both go to the same place."""
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
    """Leave the line in which the terminal has just echoed a key such as ^C."""
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
    message = wrapped(f"Error: {printable(worded(problem.message))}", sys.stderr)
    say(f"{red}Error:{plain}{message.removeprefix('Error:')}")
    if problem.hint:
        say(wrapped(f"Hint: {printable(worded(problem.hint))}", sys.stderr))
