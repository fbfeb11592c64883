"""How far something that takes long is: a bar at a terminal, from the second second on, gone when it is done."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deepctl.output.terminal_caps import is_terminal
from deepctl.quantities import size

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

_AFTER = 1.0
_EVERY = 0.1

BYTES = "bytes"
"""The unit whose counts are shown as sizes."""


class Progress:
    """Counts what has been done so far, of `total` if that is known. Shows nothing where stderr is no terminal.

    `what` is the first word of the line, `unit` what is counted.
    """

    def __init__(self, what: str, unit: str = "files read", total: int | None = None) -> None:
        self._what = what
        self._unit = unit
        self._total = total
        self._bar: Bar | None = None
        self._watched = is_terminal(sys.stderr)
        self._next = time.monotonic() + _AFTER

    def __call__(self, count: int) -> None:
        """So much has been done, from the start."""
        if not self._watched or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        if self._bar is None:
            self._bar = self._begin()
        self._bar.update(self._bar.task_ids[0], completed=count, counted=self._counted(count))
        self._bar.refresh()

    def _counted(self, count: int) -> str:
        spelled = size if self._unit == BYTES else "{:,}".format
        of = f" of {spelled(self._total)}" if self._total is not None else ""
        return f"{spelled(count)}{of}" if self._unit == BYTES else f"{spelled(count)}{of} {self._unit}"

    def _begin(self) -> Bar:
        # Drawing is Rich's, which takes a tenth of a second to import: only what takes long pays for it.
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
