"""What a repair tells: what it mended, what is lost, and what it put aside."""

from __future__ import annotations

import os
from typing import NamedTuple

from deepctl.domain.checkpoints import lost_and_found
from deepctl.domain.layout import ProfilePaths


class Repaired(NamedTuple):
    """Something that is whole again: what it is, its path in the profile, and what was wrong or was done."""

    what: str
    path: str
    reason: str


class Lost(NamedTuple):
    """Something that nothing brings back: what it is, its id, and why."""

    what: str
    id: str
    reason: str


class Findings:
    """Collects what is found and done in the profile at `paths`; paths are told relative to it."""

    def __init__(self, paths: ProfilePaths) -> None:
        self._paths = paths
        self.repaired: list[Repaired] = []
        self.lost: list[Lost] = []
        self.moved: list[str] = []

    def repair(self, what: str, path: str, reason: str) -> None:
        """Something is whole again."""
        self.repaired.append(Repaired(what, os.path.relpath(path, self._paths.directory), reason))

    def lose(self, what: str, identity: str, reason: str) -> None:
        """Something is lost."""
        self.lost.append(Lost(what, identity, reason))

    def keep(self, path: str) -> None:
        """The damaged original of what is about to be written anew."""
        kept = lost_and_found.keep(self._paths, path)
        if kept is not None:
            self.moved.append(os.path.relpath(kept, self._paths.directory))

    def move(self, path: str) -> None:
        """A file that has no place in the profile any more."""
        self.moved.append(os.path.relpath(lost_and_found.move(self._paths, path), self._paths.directory))
