"""The reserve: 64 KiB on the disk of a profile, so that commands that free space can start on a full disk.

It is one file, `cache/reserve`, with random bytes, because a sparse file reserves nothing, and a file system with
compression stores zeros without space. Commands that remove data release it on a full disk. At their end they reserve
as much as possible again, because the next command may find the disk full, too. Otherwise the next writer with enough
space creates it again. A missing reserve is never an error: it is in the cache, which may be deleted at any time.
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
"""Bytes of the reserve."""
_ROOM = 4 * SIZE
"""Bytes that must be free to create the reserve, so that a disk with little new space is not filled again."""
_PIECE = 4 << 10
FEW_FILES = 8
"""If fewer files can be created, the disk counts as full, because removing parts of a profile creates a few."""


def hold(paths: ProfilePaths) -> None:
    """Create the reserve if it is missing and there is space for it. The caller holds the profile's lock."""
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
    """Reserve as much of `SIZE` as there is space for, after a removal. The caller holds the profile's lock."""
    try:
        atomic.make_root(paths.cache)
        descriptor = atomic.open_regular(paths.reserve, os.O_WRONLY | os.O_CREAT)
    except (OSError, Refused):
        return
    try:
        with suppress(OSError):
            os.fchmod(descriptor, atomic.FILE_MODE)
            for start in range(os.fstat(descriptor).st_size // _PIECE * _PIECE, SIZE, _PIECE):
                # Written pieces stay, even if there is no space for the next one.
                os.pwrite(descriptor, os.urandom(_PIECE), start)
    finally:
        os.close(descriptor)


def release(paths: ProfilePaths) -> bool:
    """Delete the reserve, which frees its space. Returns whether there was one."""
    try:
        os.unlink(paths.reserve)
    except OSError:
        return False
    return True


def held_bytes(paths: ProfilePaths) -> int:
    """The number of reserved bytes."""
    try:
        return os.lstat(paths.reserve).st_size
    except OSError:
        return 0


def shrink(paths: ProfilePaths) -> None:
    """Free one piece of the reserve, if there is one."""
    with suppress(OSError, Refused):
        descriptor = atomic.open_regular(paths.reserve, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - _PIECE))
        finally:
            os.close(descriptor)


def lend(paths: ProfilePaths, path: str, data: bytes) -> None:
    """Turn the reserve into the new file `path`, which starts with `data`; this needs no free space.

    Raises `OSError` if the reserve is smaller than `data`.
    """
    with atomic.naming(path):
        if held_bytes(paths) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        _overwrite(paths.reserve, data)
        os.rename(paths.reserve, path)
    atomic.sync_directory(os.path.dirname(path))


def give_back(paths: ProfilePaths, path: str) -> None:
    """Turn the file from `lend` into the reserve again, or remove it if that is not possible. Raises `OSError`."""
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
    """A context for removals: release the reserve on a full disk, and empty the cache if no more files can be created.

    At the end, the reserve is created again as far as there is space. The caller holds the profile's lock, and has no
    file of the profile open before and after. This function cannot see a quota, so the code that removes data releases
    the reserve after its own failure, too.
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
    """Remove the files of the cache except the reserve. The cache may be deleted at any time."""
    with suppress(OSError):
        for name in os.listdir(paths.cache):
            if name != os.path.basename(paths.reserve):
                with suppress(OSError):
                    os.unlink(os.path.join(paths.cache, name))
