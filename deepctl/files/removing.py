"""Removing a directory and all that is in it, whoever made it and however it looks.

By descriptors, so that no link is followed, whatever is swapped meanwhile; without recursion, and with what lies very
deep moved up first, so that no depth is too much; and a directory that may not be read or written is made so first.
`shutil.rmtree` recurses and stops at those.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEP = 64
"""How many directories are open at once."""

Report = Callable[[int], None]


def remove_tree(path: str, report: Report | None = None) -> int:
    """Remove a directory with all that is in it, or a file or a link (never its target); nothing if it is gone.

    Returns how many names went, `path` itself included; `report` hears of it on the way. Raises `OSError`; what has
    gone by then is gone, and a second call goes on.
    """
    parent = os.open(os.path.dirname(path) or ".", _DIRECTORY)
    try:
        return remove_entry(parent, os.path.basename(path), report)
    finally:
        os.close(parent)


def remove_entry(parent: int, name: str, report: Report | None = None) -> int:
    """The same for `name` in the directory that `parent` is a descriptor of."""
    count = 0
    # The way down to the directory at hand: its descriptor, and the names of directories in it that are still to go.
    way: list[tuple[int, str, list[str]]] = []
    try:
        if not _is_directory(parent, name):
            return _unlink(parent, name)
        way.append((*_opened(parent, name), []))
        while way:
            descriptor, here, pending = way[-1]
            if not pending:
                # The second time round, there is nothing in it any more.
                count += _empty(descriptor, pending)
                if report is not None:
                    report(count)
            if pending:
                below = pending.pop()
                if len(way) >= _DEEP:
                    up = f".deep-{os.urandom(8).hex()}"
                    os.rename(below, up, src_dir_fd=descriptor, dst_dir_fd=way[0][0])
                    way[0][2].append(up)
                    continue
                way.append((*_opened(descriptor, below), []))
                continue
            os.close(descriptor)
            way.pop()
            os.rmdir(here, dir_fd=way[-1][0] if way else parent)
            count += 1
    except FileNotFoundError:
        pass  # somebody else is removing it, too
    finally:
        for descriptor, _, _ in way:
            os.close(descriptor)
    return count


def _empty(descriptor: int, directories: list[str]) -> int:
    """Unlink everything in a directory but directories, which are added to `directories`; how many names went."""
    count = 0
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                count += _unlink(descriptor, entry.name)
    return count


def _unlink(parent: int, name: str) -> int:
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return 0
    return 1


def _is_directory(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _opened(parent: int, name: str) -> tuple[int, str]:
    """A directory as a descriptor, with all that its owner may do to it."""
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        _allow(parent, name)
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    if os.fstat(descriptor).st_mode & 0o300 != 0o300:
        os.fchmod(descriptor, 0o700)
    return descriptor, name


def _allow(parent: int, name: str) -> None:
    """Let the owner of a directory read it; a link in its place is left alone."""
    if not hasattr(os, "O_PATH"):
        os.chmod(name, 0o700, dir_fd=parent, follow_symlinks=False)
        return
    held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{held}", 0o700)
    finally:
        os.close(held)
