"""The capabilities of the terminal: whether there is one, whether it can draw, its colours and its size."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

_DEFAULT_SIZE = (80, 24)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person is looking at `stream`."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def is_dumb(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the terminal can do nothing but print: it obeys no escape sequences."""
    return environment.get("TERM", "dumb") in ("dumb", "unknown", "")


def has_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to colour what goes to `stream`: NO_COLOR, FORCE_COLOR and a dumb terminal decide, in this order."""
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and not is_dumb(environment)


def width() -> int | None:
    """How many characters fit on a line of stdout; `None` where it is no terminal."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None if is_terminal(sys.stdout) else None
    except (OSError, ValueError):
        return None


def size() -> tuple[int, int]:
    """Columns and lines of the terminal at stdout, now; 80 by 24 where they are not known."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return _DEFAULT_SIZE
    return columns or _DEFAULT_SIZE[0], lines or _DEFAULT_SIZE[1]
