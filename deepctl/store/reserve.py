"""The reserve: 64 KiB that a profile holds back, so that what frees space can begin on a disk that is full.

It is one file, `cache/reserve`, written with random bytes: a sparse file holds nothing, and a file system that
compresses makes nothing of zeros. The commands that remove something release it where the disk is full, and take back
what they can when they are done, because the next one may find the disk as full. Otherwise the next writer that finds
room makes it anew. That it is missing is never an error: it lies in the cache, which can go at any time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deepctl.errors import Refused
from deepctl.files import atomic
from deepctl.layout import ProfilePaths

SIZE = 64 << 10
"""Bytes held back."""
_ROOM = 4 * SIZE
"""Bytes that must be free for it to be made: a disk that has just been emptied a little is not filled again."""
_PIECE = 4 << 10
FEW_FILES = 8
"""So few files that can still be made count as none: taking parts of a profile out of sight makes some."""


def hold(paths: ProfilePaths) -> None:
    """See to it that the reserve is there, if there is room for it. The caller holds the profile's lock."""
    if held_bytes(paths) == SIZE:
        return
    try:
        free, files = atomic.free_space(paths.directory)
        if free < _ROOM or files < FEW_FILES:
            return
        take_back(paths)
    except OSError:
        return


def take_back(paths: ProfilePaths) -> None:
    """Hold back as much as there is room for, after something has been removed. The caller holds the profile's lock."""
    try:
        atomic.make_root(paths.cache)
        descriptor = atomic.open_regular(paths.reserve, os.O_WRONLY | os.O_CREAT)
    except (OSError, Refused):
        return
    try:
        with suppress(OSError):
            os.fchmod(descriptor, atomic.FILE_MODE)
            for start in range(os.fstat(descriptor).st_size // _PIECE * _PIECE, SIZE, _PIECE):
                # What is written is there, even where the next piece finds no room.
                os.pwrite(descriptor, os.urandom(_PIECE), start)
    finally:
        os.close(descriptor)


def release(paths: ProfilePaths) -> bool:
    """Give the reserve back to the disk. Returns whether there was one."""
    try:
        os.unlink(paths.reserve)
    except OSError:
        return False
    return True


def held_bytes(paths: ProfilePaths) -> int:
    """How many bytes are held back."""
    try:
        return os.lstat(paths.reserve).st_size
    except OSError:
        return 0


def shrink(paths: ProfilePaths) -> None:
    """Give one piece of the reserve back to the disk, if there is any."""
    with suppress(OSError, Refused):
        descriptor = atomic.open_regular(paths.reserve, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - _PIECE))
        finally:
            os.close(descriptor)


def lend(paths: ProfilePaths, path: str, data: bytes) -> None:
    """Make the reserve itself the new file `path`, which begins with `data`: that needs not one new byte.

    Raises `OSError` where the reserve is smaller than that.
    """
    with atomic.naming(path):
        if held_bytes(paths) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        _overwrite(paths.reserve, data)
        os.rename(paths.reserve, path)
    atomic.sync_directory(os.path.dirname(path))


def give_back(paths: ProfilePaths, path: str) -> None:
    """Make what was lent the reserve again, or remove it if that is no place for it. Raises `OSError`."""
    if os.lstat(path).st_size >= _PIECE and not os.path.lexists(paths.reserve):
        with suppress(OSError):
            atomic.make_directory(paths.cache)
            _overwrite(path, os.urandom(_PIECE))
            os.rename(path, paths.reserve)
            return
    os.unlink(path)


def _overwrite(path: str, data: bytes) -> None:
    descriptor = atomic.open_regular(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, data, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def room(paths: ProfilePaths) -> Iterator[None]:
    """Around something that removes: release the reserve if the disk is full, and the cache where it is full of files.

    In the end, what was released is taken back, as far as there is room. The caller holds the profile's lock and has
    nothing of the profile open before and after. A quota does not show here: who removes something releases the reserve
    when that fails, too.
    """
    before = held_bytes(paths)
    is_full = _make_room(paths)
    try:
        yield
    finally:
        if is_full or held_bytes(paths) < before:
            take_back(paths)


def _make_room(paths: ProfilePaths) -> bool:
    try:
        free, files = atomic.free_space(paths.directory)
    except OSError:
        return False
    is_full = free < SIZE or files < FEW_FILES
    if is_full and (not release(paths) or files < FEW_FILES):
        empty_cache(paths)  # deepctl 0.1 had no reserve
    return is_full


def empty_cache(paths: ProfilePaths) -> None:
    """Remove the files of the cache but for the reserve: it can be deleted at any time."""
    with suppress(OSError):
        for name in os.listdir(paths.cache):
            if name != os.path.basename(paths.reserve):
                with suppress(OSError):
                    os.unlink(os.path.join(paths.cache, name))
