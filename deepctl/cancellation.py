"""Long work that can be stopped: it calls `look` between two files, and between two pieces of a large one.

`look` raises what the work is stopped by. So no signal handler has to raise in the middle of other code, and a time
limit holds for work that gives nobody else a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Look = Callable[[], None]
"""Returns if the work may go on; otherwise raises `Interrupted`, `Terminated` or `TimedOut`."""

_LOOK: ContextVar[Look | None] = ContextVar("deepctl_look", default=None)


@contextmanager
def stoppable(by: Look) -> Iterator[None]:
    """Meanwhile `by` decides whether long work goes on."""
    token = _LOOK.set(by)
    try:
        yield
    finally:
        _LOOK.reset(token)


def look() -> None:
    """Raise what the work is to be stopped by, if anything."""
    by = _LOOK.get()
    if by is not None:
        by()
