"""A home directory for commands that nothing stands around: empty at first, and gone when it is closed.

What a sandboxed command wrote to its own home (`.gitconfig`, `.profile`, …) would run with the user's rights outside,
so the two are never the same directory, and neither is the user's.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from contextlib import suppress

from deepctl.files import atomic, rmtree


class PrivateHome:
    """A directory that is made when it is first asked for: at `path`, else somewhere temporary."""

    def __init__(self, path: str | None = None) -> None:
        self._wanted = path
        self._remove: weakref.finalize[[str], PrivateHome] | None = None
        self._path = ""

    def path(self) -> str:
        """Where it is. Whatever a killed process left there has gone."""
        if self._remove is None or not self._remove.alive:
            if self._wanted is None:
                self._path = tempfile.mkdtemp(prefix="deepctl-home-")
            else:
                atomic.make_root(os.path.dirname(self._wanted))
                rmtree.make_anew(self._wanted)
                self._path = self._wanted
            self._remove = weakref.finalize(self, _remove, self._path)
        return self._path

    def close(self) -> None:
        """Remove it. Asked for again, it is another."""
        if self._remove is not None:
            self._remove()


def _remove(path: str) -> None:
    # What cannot go is emptied again before the next use, and wiped with the profile.
    with suppress(OSError):
        rmtree.remove_tree(path)
