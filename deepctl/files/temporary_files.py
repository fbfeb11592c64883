"""Temporary files in a workspace have one rule for their names, `.deepctl-*.tmp`, so that what a kill leaves is known.

They lie beside what they replace, because only there a rename is sure to work. So checkpoints and listings leave out
every file of that name, and what is ours, and whose writer is gone, is removed by the next writer that looks there.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import suppress

PATTERN = ".deepctl-*.tmp"
"""The names, as a shell's pattern."""
_OURS = re.compile(rb"\.deepctl-([0-9a-z]+-)?[0-9a-f]{12}\.tmp")


def new_name(mark: str = "") -> str:
    """A name for a temporary file; `mark` tells those of one operation."""
    return f"{prefix(mark)}{os.urandom(6).hex()}.tmp"


def prefix(mark: str = "") -> str:
    """How the names of temporary files begin, those with a mark or all."""
    return f".deepctl-{mark}-" if mark else ".deepctl-"


def is_temporary(name: str | bytes) -> bool:
    """Whether a file of this name is passed over."""
    raw = os.fsencode(name)
    return raw.startswith(b".deepctl-") and raw.endswith(b".tmp")


def hold(descriptor: int) -> None:
    """Mark an open temporary file as one that is being written, until it is closed or its writer is killed."""
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_dead(directory: int, name: bytes) -> None:
    """Remove a temporary file of ours from an open directory, if its writer is gone.

    Ours is what has a name that we make, belongs to us and has no other name: links are never followed. What cannot be
    removed stays.
    """
    with suppress(OSError):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not _OURS.fullmatch(name) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            return
        is_file = stat.S_ISREG(status.st_mode)
        if stat.S_ISLNK(status.st_mode) or (is_file and not _is_held(directory, name, status)):
            os.unlink(name, dir_fd=directory)


def _is_held(directory: int, name: bytes, status: os.stat_result) -> bool:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags | (os.O_RDONLY if status.st_mode & 0o400 else os.O_WRONLY), dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not os.path.samestat(status, os.fstat(descriptor))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
