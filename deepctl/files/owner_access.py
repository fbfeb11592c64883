"""Directories that are deepctl's own and lie where an agent can change their modes: the owner gets back in.

A command such as `chmod 0 .` in a workspace would otherwise close the profile to every later turn, and to its undoing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

_PLACE = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_OWNER = 0o700


def regain(root: str, below: Iterable[str]) -> None:
    """Let the owner read, write and enter the directory `root` and those below it, as far as they are there.

    A path that ends in `/*` stands for every directory in one. Links are never followed, and what cannot be changed
    stays as it is: what needs it says so.
    """
    try:
        top = _entered(None, root)
    except OSError:
        return
    try:
        for path in below:
            _regain(top, path.split("/"))
    finally:
        os.close(top)


def _regain(parent: int, parts: list[str]) -> None:
    try:
        if parts[0] == "*":
            names = os.listdir(reading := os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent))
            os.close(reading)
        else:
            names = parts[:1]
    except OSError:
        return
    for name in names:
        try:
            descriptor = _entered(parent, name)
        except OSError:
            continue  # not there, or no directory
        try:
            if parts[1:]:
                _regain(descriptor, parts[1:])
        finally:
            os.close(descriptor)


def _entered(parent: int | None, name: str) -> int:
    """A directory, open, once its owner may use it. Raises `OSError`."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    closed = stat.S_ISDIR(status.st_mode) and mode & _OWNER != _OWNER and status.st_uid == os.geteuid()
    if closed and not hasattr(os, "O_PATH"):
        os.chmod(name, mode | _OWNER, dir_fd=parent, follow_symlinks=False)
    descriptor = os.open(name, _PLACE, dir_fd=parent)
    if closed and hasattr(os, "O_PATH"):
        # By the descriptor's name: a link that was swapped in meanwhile is not what is open.
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", mode | _OWNER)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor
