"""How far something that takes long is: one line at a terminal, from the second second on, gone when it is done."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from deepctl.output.render import say_part
from deepctl.output.text import is_terminal

_AFTER = 1.0
_EVERY = 0.1


class Progress:
    """Counts files that are looked at. Shows nothing where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = False
        self._watched = is_terminal(sys.stderr)
        self._next = time.monotonic() + _AFTER

    def __call__(self, count: int) -> None:
        """So many files have been looked at."""
        if not self._watched or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        self._shown = True
        say_part(f"\r{self._what}: {count:,} files read…\x1b[K")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            say_part("\r\x1b[K")
