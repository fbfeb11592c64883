"""What a rewind has to change: the agent's own work is taken back, and nobody else's.

The time between a target and now is a row of intervals, each between two snapshots: what changed in it was done either
by the session's own turns or by somebody else (the user's editor, another session). A path goes back to what it was
before the session changed it first. Where somebody else changed it after that, going back would lose their edit: a
conflict.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from typing import NamedTuple

from deepctl.domain.checkpoints.objects import Objects
from deepctl.domain.checkpoints.trees import DIRECTORY, Change, Entry, changes, decode


class Interval(NamedTuple):
    """The time between two snapshots: the trees before and after, and whether the session's own turns fill it."""

    before: bytes
    after: bytes
    own: bool


class Plan(NamedTuple):
    """The changes that a rewind makes, and the paths at which it would lose somebody's edit."""

    changes: list[Change]
    conflicts: list[bytes]


def exact(objects: Objects, now: bytes, target: bytes) -> Plan:
    """Make the whole workspace what it was, whoever changed it."""
    return Plan(list(changes(objects, now, target)), [])


def own_work(
    objects: Objects, intervals: Iterable[Interval], now: bytes, *, wanted: Callable[[bytes], bool] = lambda path: True
) -> Plan:
    """Take back what the session did in `intervals`, which lie in the order of time and end at the tree `now`.

    `wanted` tells which paths are meant at all. The changes are what to do in spite of conflicts; whoever does not
    want to lose anything does nothing where there are any.
    """
    goal: dict[bytes, Entry | None] = {}
    conflicts: set[bytes] = set()
    for interval in intervals:
        for change in changes(objects, interval.before, interval.after):
            if not wanted(change.path):
                continue
            if interval.own:
                goal.setdefault(change.path, change.before)
            elif change.path in goal:
                conflicts.add(change.path)
    present = _Lookup(objects, now)
    found: dict[bytes, Change] = {}
    for path, entry in goal.items():
        current = present.entry(path)
        if _same(current, entry):
            conflicts.discard(path)
            continue
        found[path] = Change(path, current, entry)
    for path in list(found):
        for above in _above(path):
            current = present.entry(above)
            if above in found or above in goal:
                continue
            if found[path].after is not None and (current is None or current.kind != DIRECTORY):
                # What is to come back has no place any more: somebody else took its directory away.
                conflicts.add(path)
            elif current is not None and current.kind == DIRECTORY:
                # Named so that its mode is right in the end, whatever had to be opened up on the way.
                found[above] = Change(above, current, current)
    return Plan([found[path] for path in sorted(found)], sorted(conflicts))


def _same(one: Entry | None, other: Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return one[:2] == other[:2] and (one.kind == DIRECTORY or one.digest == other.digest)


def _above(path: bytes) -> list[bytes]:
    found = []
    while path := posixpath.dirname(path):
        found.append(path)
    return found


class _Lookup:
    """Entries of one tree by path, each directory read once."""

    def __init__(self, objects: Objects, tree: bytes) -> None:
        self._objects = objects
        self._read: dict[bytes, dict[bytes, Entry]] = {b"": self._entries(tree)}

    def _entries(self, tree: bytes) -> dict[bytes, Entry]:
        return {entry.name: entry for entry in decode(self._objects.read(tree))}

    def entry(self, path: bytes) -> Entry | None:
        """What is at `path`, or `None`."""
        directory, name = posixpath.split(path)
        if directory not in self._read:
            above = self.entry(directory)
            is_directory = above is not None and above.kind == DIRECTORY
            self._read[directory] = self._entries(above.digest) if above is not None and is_directory else {}
        return self._read[directory].get(name)
