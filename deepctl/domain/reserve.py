"""The reserve: 64 KiB that a profile holds back, so that what frees space can begin on a disk that is full.

It is one file, `cache/reserve`, written with random bytes: a sparse file holds nothing, and a file system that
compresses makes nothing of zeros. The commands that remove something release it where the disk is full; the next writer
that finds room makes it anew. That it is missing is never an error: it lies in the cache, which can go at any time.
"""

from __future__ import annotations

import os
from contextlib import suppress

from deepctl.domain.layout import ProfilePaths
from deepctl.errors import Refused
from deepctl.files import durable

SIZE = 64 << 10
"""Bytes held back."""
_ROOM = 4 * SIZE
"""Bytes that must be free for it to be made: a disk that has just been emptied a little is not filled again."""
_FEW = 8
"""So few files that can still be made count as none: taking parts of a profile out of sight makes some."""


def hold(paths: ProfilePaths) -> None:
    """See to it that the reserve is there, if there is room for it. The caller holds the profile's lock."""
    if held(paths) == SIZE:
        return
    try:
        free, files = _free(paths)
        if free < _ROOM or files < _FEW:
            return
        durable.make_root(paths.cache)
        _write(paths.reserve)
    except (OSError, Refused):
        release(paths)  # half of one would be taken for room that is there


def _write(path: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, durable.FILE_MODE)
    try:
        os.fchmod(descriptor, durable.FILE_MODE)
        durable.write_all(descriptor, os.urandom(SIZE))
    finally:
        os.close(descriptor)


def release(paths: ProfilePaths) -> bool:
    """Give the reserve back to the disk. Returns whether there was one."""
    try:
        os.unlink(paths.reserve)
    except OSError:
        return False
    return True


def held(paths: ProfilePaths) -> int:
    """How many bytes are held back."""
    try:
        return os.lstat(paths.reserve).st_size
    except OSError:
        return 0


def make_room(paths: ProfilePaths) -> None:
    """Before something is removed: release the reserve if the disk is full, and the cache where it is full of files.

    The caller holds the profile's lock and has nothing of the profile open. A quota does not show here: who removes
    something releases the reserve when that fails, too.
    """
    try:
        free, files = _free(paths)
    except OSError:
        return
    if free < SIZE or files < _FEW:
        release(paths)
    if files < _FEW:
        with suppress(OSError):
            for name in os.listdir(paths.cache):
                with suppress(OSError):
                    os.unlink(os.path.join(paths.cache, name))


def _free(paths: ProfilePaths) -> tuple[int, int]:
    """Bytes, and files, for which there is room where the profile lies."""
    found = os.statvfs(paths.directory)
    # Some file systems have no fixed number of files, and say none.
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else _FEW
