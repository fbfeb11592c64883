"""Ctrl-C twice: the first on an empty line is answered with how to leave, the second leaves."""

from __future__ import annotations

import time

HINT = "Ctrl-C again leaves, Ctrl-D too."
_SAME_PRESS = 0.7
"""Seconds after something was stopped in which Ctrl-C is still meant to stop it."""


class DoubleCtrlC:
    """Whether one more Ctrl-C leaves. Any other key takes that back."""

    def __init__(self) -> None:
        self.armed = False
        self._before = False
        self._stopped_at: float | None = None

    def stopped(self) -> None:
        """Ctrl-C has just stopped what ran: once more leaves, unless it comes so soon that it was for that, too."""
        self.armed = True
        self._stopped_at = time.monotonic()

    def key(self) -> None:
        """A key is about to do what it does."""
        self._before, self.armed = self.armed, False

    def sent(self) -> None:
        """An entry was sent."""
        self._stopped_at = None

    def is_late(self) -> bool:
        """Whether Ctrl-C, after `key`, is still meant for what was stopped, and has nothing to do any more."""
        if self._stopped_at is None or time.monotonic() - self._stopped_at >= _SAME_PRESS:
            return False
        self.armed = self._before
        return True

    def ctrl_c(self) -> bool:
        """Ctrl-C on an empty line, after `key`, that is not late: whether it leaves."""
        self.armed = not self._before
        return self._before
