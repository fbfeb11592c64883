"""The one renderer: a result as text or as one JSON document, notices and errors to stderr."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol

from deepctl.errors import DeepctlError
from deepctl.output.text import has_colour, printable

VERSION = 1
"""Version of every JSON document on stdout."""


class View(Protocol):
    """A result of a command: what it says to scripts, and how it prints itself for people."""

    def document(self) -> dict[str, Any]:
        """The result as JSON, without the version."""
        ...

    def print(self) -> None:
        """Write the result to stdout as text."""
        ...


def show(view: View, as_json: bool) -> None:
    """Print a result to stdout, as one JSON document or as text."""
    if as_json:
        print(json.dumps({"version": VERSION, **view.document()}))
    else:
        view.print()


def notice(message: str) -> None:
    """Tell the user something on stderr that is not the answer."""
    text = printable(message)
    print(f"\x1b[2m{text}\x1b[0m" if has_colour(sys.stderr) else text, file=sys.stderr)


def error(problem: DeepctlError, as_json: bool) -> None:
    """Report an error on stderr: `Error: …` and `Hint: …`, or one line of JSON."""
    if as_json:
        print(json.dumps({"error": problem.document()}), file=sys.stderr)
        return
    red, plain = ("\x1b[31m", "\x1b[0m") if has_colour(sys.stderr) else ("", "")
    print(f"{red}Error:{plain} {printable(problem.message)}", file=sys.stderr)
    if problem.hint:
        print(f"Hint: {printable(problem.hint)}", file=sys.stderr)
