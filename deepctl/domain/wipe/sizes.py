"""How much lies at certain places of a directory: counted in one walk, by descriptors, without following a link."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import NamedTuple

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 200
"""How many directories are open at once; what lies deeper is not counted."""
_OCTAL = re.compile(rb"\\([0-7]{3})")


class LinkInTheWay(Exception):
    """Where a directory leads on to a place, there is a symbolic link."""

    def __init__(self, link: str, place: str) -> None:
        super().__init__(link, place)
        self.link = link
        self.place = place


class Weight(NamedTuple):
    """How much there is at a place.

    `files` counts everything but directories, `bytes` the content of regular files. `uncounted` are directories that
    cannot be looked into. `newest` is when anything there changed last, in nanoseconds since the epoch.
    """

    files: int = 0
    bytes: int = 0
    directories: int = 0
    uncounted: int = 0
    newest: int = 0


def weigh(directory: str, places: set[str]) -> dict[str, Weight]:
    """How much there is at each of the places that there are, by their paths relative to `directory`.

    Places may lie in one another; everything is counted once, at the innermost, and the empty path is the directory
    itself. Raises `LinkInTheWay`, and `OSError` for the directory itself.
    """
    walk = _Walk(places)
    walk.go(os.open(directory, _DIRECTORY), "", "" if "" in places else None, 0)
    return {place: Weight(*tally) for place, tally in walk.tallies.items()}


class _Walk:
    def __init__(self, places: set[str]) -> None:
        self.tallies: dict[str, list[int]] = {}
        self._places = places
        self._above = {place[: match.start()] for place in places for match in re.finditer("/", place)} | {""}

    def go(self, descriptor: int, path: str | None, place: str | None, depth: int) -> None:
        """Count an open directory, and close it. `path` is what it is called where places may lie in it."""
        try:
            if place is not None:
                tally = self._tally(place)
                tally[2] += 1
                tally[4] = max(tally[4], os.fstat(descriptor).st_ctime_ns)
            if path in self._above:
                below = self._among_places(descriptor, path, place)
            else:
                assert place is not None
                below = [(name, None, place) for name in self._plain(descriptor, place)]
            for name, inner_path, inner_place in below:
                inner = self._opened(descriptor, name, depth + 1)
                if inner is None:
                    self._uncounted(inner_path, inner_place)
                else:
                    self.go(inner, inner_path, inner_place, depth + 1)
        finally:
            os.close(descriptor)

    def _opened(self, parent: int, name: str, depth: int) -> int | None:
        try:
            return os.open(name, _DIRECTORY, dir_fd=parent) if depth <= _MAX_DEPTH else None
        except OSError:
            return None

    def _tally(self, place: str) -> list[int]:
        return self.tallies.setdefault(place, [0, 0, 0, 0, 0])

    def _uncounted(self, path: str | None, place: str | None) -> None:
        """A directory cannot be looked into, so nobody can tell which places there are in it."""
        affected = {one for one in self._places if path is not None and one.startswith(f"{path}/")}
        for one in affected | ({place} if place is not None else set()):
            self._tally(one)[3] += 1

    def _plain(self, descriptor: int, place: str) -> list[str]:
        """Count what is in a directory that has no places in it; returns the directories in it."""
        below = []
        files = size = newest = 0
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                    continue
                files += 1
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone, or in a directory that may be listed and not entered
                if stat.S_ISREG(status.st_mode):
                    size += status.st_size
                if status.st_ctime_ns > newest:
                    newest = status.st_ctime_ns
        tally = self._tally(place)
        tally[0] += files
        tally[1] += size
        tally[4] = max(tally[4], newest)
        return below

    def _count(self, place: str, entry: os.DirEntry[str]) -> None:
        tally = self._tally(place)
        tally[0] += 1
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            tally[1] += status.st_size if stat.S_ISREG(status.st_mode) else 0
            tally[4] = max(tally[4], status.st_ctime_ns)

    def _among_places(self, descriptor: int, path: str, place: str | None) -> list[tuple[str, str | None, str | None]]:
        """The same for one that has; each directory with its path and the place it belongs to."""
        below: list[tuple[str, str | None, str | None]] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                here = f"{path}/{entry.name}" if path else entry.name
                its = here if here in self._places else place
                leads_on = here in self._above
                if entry.is_dir(follow_symlinks=False):
                    if its is not None or leads_on:
                        below.append((entry.name, here if leads_on else None, its))
                elif its is not None:
                    self._count(its, entry)
                elif leads_on and entry.is_symlink():
                    raise LinkInTheWay(here, min(one for one in self._places if one.startswith(f"{here}/")))
        return below


def mounts(directory: str) -> list[str]:
    """The paths at or below a directory at which something is mounted, where the system tells (Linux)."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            raw = file.read()
    except OSError:
        return []
    real = os.fsencode(os.path.realpath(directory))
    if real not in raw and b"\\" not in raw:
        return []
    points = [_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4]) for line in raw.splitlines()]
    return sorted(
        os.fsdecode(point) for point in set(points) if point == real or point.startswith(real.rstrip(b"/") + b"/")
    )
