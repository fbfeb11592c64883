"""What changed in a project during a turn although no checkpoint covers it.

The paths that a snapshot left out are looked at when a turn begins and when it ends (`look`): the status of each file,
up to a number of entries. The difference (`changes`) tells which of them changed, so that the turn can name them. No
content is read, and no link is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from deepctl import cancellation
from deepctl.files import atomic
from deepctl.store import coverage
from deepctl.store.coverage import CoverageRules, CoverageSettings

MOST_ENTRIES = 20_000
"""Entries of excluded files and directories that are looked at."""

_Status = tuple[int, int, int, int, int]
"""Mode, size, mtime and ctime in ns, inode. For a directory only its kind counts: its entries have their own."""


class Look(NamedTuple):
    """The status of the entries that are not covered, by path, for each covered directory's excluded entry (`tops`).

    `unseen` are the excluded directories with too many entries.
    """

    tops: dict[bytes, dict[bytes, _Status]]
    unseen: frozenset[bytes]


class NotCovered(NamedTuple):
    """Changes that no checkpoint covers: their paths, in order, and the excluded directories that were not looked at.

    An excluded directory that is new, or gone, is one path and ends in a slash.
    """

    paths: list[bytes]
    unseen: list[bytes]


def look(root: str, settings: CoverageSettings, limit: int = MOST_ENTRIES, *, is_walked: bool = True) -> Look:
    """Look at what a checkpoint of the project `root` does not cover, at most at `limit` entries.

    This uses the rules of the last snapshot in this process, so that the project is not walked once more, unless
    `is_walked` is false.
    """
    rules = coverage.walked(root, settings) if is_walked else None
    tops: dict[bytes, dict[bytes, _Status]] = {}
    unseen: set[bytes] = set()
    # A directory that is too large must not hide the others, so its entries do not count; all attempts together are
    # limited too.
    paths_left, attempts = limit, 2 * limit
    for path, is_directory in sorted((rules or _walk(root, settings)).uncovered.items()):
        cancellation.look()
        statuses: dict[bytes, _Status] = {}
        most = min(paths_left, attempts)
        for entry, status in _entries(os.fsencode(root), path, is_directory):
            if len(statuses) >= most:
                unseen.add(path)
                break
            statuses[entry] = status
        else:
            tops[path] = statuses
            paths_left -= len(statuses)
        attempts -= len(statuses)
    return Look(tops, frozenset(unseen))


def _walk(root: str, settings: CoverageSettings) -> CoverageRules:
    """The rules after a walk through the covered directories. Entries that cannot be read are passed over."""
    rules = coverage.read_rules(root, settings)
    pending = [(root, rules.top())]
    while pending:
        directory, names = pending.pop()
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            with os.scandir(descriptor) as items:
                kinds = {os.fsencode(item.name): item.is_dir(follow_symlinks=False) for item in items}
            most = settings.max_file
            large = [name for name in kinds if most is not None and _size(descriptor, name) > most]
            directories = [name for name, is_directory in kinds.items() if is_directory]
            files = [name for name, is_directory in kinds.items() if not is_directory and not atomic.is_temporary(name)]
            if not names.enter(descriptor, files, directories):
                continue
            left_out = names.left_out(files, directories)
            names.note([*left_out, *large], directories)
        finally:
            os.close(descriptor)
        for name in directories:
            if name not in left_out:
                pending.append((os.path.join(directory, os.fsdecode(name)), names.below(name)))
    return rules


def _size(directory: int, name: bytes) -> int:
    """The bytes of a regular file in an open directory; 0 for everything else."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _entries(root: bytes, top: bytes, is_directory: bool) -> Iterator[tuple[bytes, _Status]]:
    """The paths at and below an excluded entry, each with its status. Git directories are left out."""
    path = os.path.join(root, top)
    try:
        status = os.lstat(path)
    except OSError:
        return
    yield top, _status(status)
    if not is_directory or not stat.S_ISDIR(status.st_mode):
        return
    pending = [(path, top)]
    while pending:
        directory, relative = pending.pop()
        try:
            with os.scandir(directory) as items:
                for item in items:
                    if item.name == b".git" or atomic.is_temporary(item.name):
                        continue
                    inner = relative + b"/" + item.name
                    status = item.stat(follow_symlinks=False)
                    yield inner, _status(status)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((item.path, inner))
        except OSError:
            continue


def _status(status: os.stat_result) -> _Status:
    if stat.S_ISDIR(status.st_mode):
        return stat.S_IFMT(status.st_mode), 0, 0, 0, 0
    return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def changes(before: Look, after: Look) -> NotCovered:
    """What changed between two looks."""
    paths: list[bytes] = []
    unseen = before.unseen | after.unseen
    for top in (before.tops.keys() | after.tops.keys()) - unseen:
        old, new = before.tops.get(top, {}), after.tops.get(top, {})
        if old == new:
            continue
        if top in old and top in new:
            paths += [path for path in old.keys() | new.keys() if old.get(path) != new.get(path)]
        else:
            is_directory = stat.S_ISDIR((old or new)[top][0])
            paths.append(top + b"/" if is_directory else top)
    return NotCovered(sorted(paths), sorted(unseen))
