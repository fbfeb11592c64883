"""What uses the space of a profile, and whether its checkpoints take more than they should.

`limits.checkpoints` refuses nothing and deletes nothing: whoever passes it is told so, once, until they are below it
again or it is another number. That it has been told is in `cache/budget`, so deleting the cache may tell it again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from deepctl.errors import Refused
from deepctl.files import atomic
from deepctl.files.walk import walk
from deepctl.layout import ProfilePaths
from deepctl.store import reserve

_NAMED = ("workspace", "sessions", "checkpoints", "cache")


class Passed(NamedTuple):
    """Checkpoints take more than they should: what they take and what they should at most, in bytes."""

    bytes: int
    limit: int


class Part(NamedTuple):
    """One part of a profile: bytes of file content, how many files, and directories that could not be read.

    Files with several names count once, as do the logs that a fork shares with its origin.
    """

    name: str
    bytes: int
    files: int
    unread: int


def checkpoint_bytes(paths: ProfilePaths) -> int:
    """What the checkpoints of a profile take: their contents and the ledger. One directory is looked through."""
    total = 0
    for directory in (paths.packs, paths.checkpoints):
        try:
            with os.scandir(directory) as entries:
                total += sum(
                    entry.stat(follow_symlinks=False).st_size
                    for entry in entries
                    if entry.is_file(follow_symlinks=False)
                )
        except OSError:
            continue  # there are none yet; what is wrong, if anything is, others say
    return total


def passed(paths: ProfilePaths, limit: int) -> Passed | None:
    """Whether checkpoints take more than `limit` bytes and nobody has been told. It counts as told from now on.

    The caller holds the profile's lock and tells it. Trouble with the disk is no reason not to tell it twice.
    """
    size = checkpoint_bytes(paths)
    marker = os.path.join(paths.cache, "budget")
    if size <= limit:
        try:
            os.unlink(marker)
        except OSError:
            pass
        return None
    if _told(marker) == limit:
        return None
    try:
        atomic.make_root(paths.cache)
        atomic.write_file(marker, b"%d\n" % limit)
    except OSError:
        pass
    return Passed(size, limit)


def _told(path: str) -> int | None:
    try:
        return int(atomic.read_file(path)[:32])
    except (OSError, ValueError, Refused):
        return None


def parts(paths: ProfilePaths) -> list[Part]:
    """What uses the space of a profile, the biggest part first. Links are not followed; never raises."""
    inodes: set[tuple[int, int]] = set()
    counted: dict[str, Part] = {name: Part(name, 0, 0, 0) for name in (*_NAMED, "other")}
    try:
        descriptor = os.open(paths.directory, atomic.OPEN_DIRECTORY)
    except OSError:
        return [Part("other", 0, 0, 1)]
    try:
        names = os.listdir(descriptor)
    finally:
        os.close(descriptor)
    for name in names:
        kind = name if name in _NAMED else "other"
        found = _measured(os.path.join(paths.directory, name), kind, inodes)
        before = counted[kind]
        counted[kind] = Part(kind, before.bytes + found.bytes, before.files + found.files, before.unread + found.unread)
    if held := reserve.held(paths):
        cache = counted["cache"]
        counted["cache"] = cache._replace(bytes=cache.bytes - held, files=cache.files - 1)
    return sorted((part for part in counted.values() if part.files or part.unread), key=lambda part: -part.bytes)


def _measured(path: str, name: str, inodes: set[tuple[int, int]]) -> Part:
    total = files = unread = 0
    for status in _statuses(path):
        if status is None:
            unread += 1
        elif status.st_nlink == 1 or (status.st_dev, status.st_ino) not in inodes:
            files += 1
            total += status.st_size
            if status.st_nlink > 1:
                inodes.add((status.st_dev, status.st_ino))
    return Part(name, total, files, unread)


def _statuses(path: str) -> Iterator[os.stat_result | None]:
    """The status of every regular file at or below `path`, and `None` for each directory that cannot be read."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError:
        yield None
        return
    if stat.S_ISREG(status.st_mode):
        yield status
    for entry in walk(path) if stat.S_ISDIR(status.st_mode) else ():
        if entry.is_file or (entry.is_directory and entry.status is None):
            yield entry.status
