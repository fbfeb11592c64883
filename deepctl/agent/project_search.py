"""The part of a project in which searches look: what git ignores is left out, unless a search names it.

The rules are those of the coverage of checkpoints (`deepctl.store.coverage`), with the settings of git alone. So a
search of a project finds what git would list. A directory that is left out is not entered, as far as its name alone
tells it from the others: `find` and `grep` compare names and not paths. The results are filtered by path.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from deepctl.files.atomic import OPEN_DIRECTORY
from deepctl.store.coverage import CoverageSettings, DirectoryRules, read_rules

_MOST_DEPTH = 200
_MOST_NAMES = 200
"""Directory names that are passed to a search program."""


class SearchScope(NamedTuple):
    """What a search below the directory `base` leaves out. Paths are relative to the project."""

    base: str = ""
    left_out: frozenset[str] = frozenset()
    directory_names: tuple[str, ...] = ()
    """Names that only left out directories have."""

    def covers(self, path: str) -> bool:
        """Whether a path below `base`, relative to it, is part of the search."""
        if not self.left_out:
            return True
        parts = [part for part in f"{self.base}/{path}".split("/") if part not in ("", ".")]
        return not any("/".join(parts[:count]) in self.left_out for count in range(1, len(parts) + 1))


EVERYTHING = SearchScope()


def scope(root: str, where: str) -> SearchScope:
    """The scope of a search in the project `root` below `where`, a path relative to it, empty for the project itself.

    A search in a directory that is left out, or for such a file, covers everything there. Raises `OSError`.
    """
    way = [part for part in where.split("/") if part not in ("", ".")]
    walk = _Walk(root, way)
    rules = read_rules(root, CoverageSettings())
    rules.root = root
    if not walk.directory("", rules.top(), 0):
        return EVERYTHING
    names = walk.left_out_names - walk.names
    return SearchScope("/".join(way), frozenset(walk.left_out), tuple(sorted(names)[:_MOST_NAMES]))


class _Walk:
    """A walk over the directories of a project: those on the way to a search, and all below it."""

    def __init__(self, root: str, way: list[str]) -> None:
        self._root = root
        self._way = way
        self.left_out: set[str] = set()
        self.left_out_names: set[str] = set()
        self.names: set[str] = set()

    def directory(self, path: str, rules: DirectoryRules, depth: int) -> bool:
        """Look at a directory and what is below it; returns whether the search is in nothing that is left out."""
        descriptor = os.open(os.path.join(self._root, path), OPEN_DIRECTORY)
        try:
            files: list[bytes] = []
            directories: list[bytes] = []
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    (directories if entry.is_dir(follow_symlinks=False) else files).append(os.fsencode(entry.name))
            if not rules.enter(descriptor, files, directories):
                return self._leave_out(path, depth)
            hidden = rules.left_out(files, directories)
        finally:
            os.close(descriptor)
        prefix = f"{path}/" if path else ""
        is_on_way = depth < len(self._way)
        if is_on_way and os.fsencode(self._way[depth]) in hidden:
            return False
        if not is_on_way:
            self.left_out |= {prefix + os.fsdecode(name) for name in hidden}
            self.left_out_names |= {os.fsdecode(name) for name in hidden.intersection(directories)}
        for name in directories:
            text = os.fsdecode(name)
            if name in hidden or (is_on_way and text != self._way[depth]):
                continue
            self.names.add(text)
            if depth < _MOST_DEPTH:
                # It can be unreadable, or gone; the search says so itself.
                with suppress(OSError):
                    if not self.directory(prefix + text, rules.below(name), depth + 1):
                        return False
        return True

    def _leave_out(self, path: str, depth: int) -> bool:
        """Leave out a nested repository; a search in it covers everything there."""
        self.left_out.add(path)
        return depth > len(self._way)
