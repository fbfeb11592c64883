"""Placeholders: empty files and directories that exist only so that something can be mounted on them.

A command in a project must not create `.envrc`, so a read-only mount has to lie there, and a mount needs something to
lie on. `held` creates it, and removes it afterwards. A placeholder carries the sticky bit and nobody may write to it;
no program creates files like this by itself. So a placeholder that a killed process left is recognised: snapshots leave
it out, and the next command that locks the project removes it (`sweep`). Those in other places than `sweep` looks at
are removed by the next turn, which knows where they can be.

A placeholder in a working tree is a directory, because git lists no empty directories: an empty file would be in the
next `git add`.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

_MODE = 0o1555
_MARK = stat.S_ISVTX
_WRITABLE = 0o222

_lock = threading.Lock()
_holders: Counter[str] = Counter()
"""How many commands of this process need a placeholder."""


class Placeholder(NamedTuple):
    """A path that does not exist, and what stands there while a command runs."""

    path: str
    is_directory: bool = True


def is_placeholder(status: os.stat_result) -> bool:
    """Whether a file or directory with this status, of `lstat`, looks like a placeholder."""
    mode = status.st_mode
    if not mode & _MARK or mode & _WRITABLE:
        return False
    return stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and status.st_size == 0)


def is_empty_placeholder(descriptor: int, name: bytes, status: os.stat_result) -> bool:
    """Whether the entry `name` of an open directory, with this status, is a placeholder in which nothing lies."""
    if not is_placeholder(status):
        return False
    if not stat.S_ISDIR(status.st_mode):
        return True
    try:
        directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    except OSError:
        return False
    try:
        return not os.listdir(directory)
    finally:
        os.close(directory)


@contextmanager
def held(placeholders: Iterable[Placeholder]) -> Iterator[None]:
    """Create what is missing, and remove it when no other command of this process needs it. Raises `OSError`."""
    held_names: list[str] = []
    try:
        for placeholder in placeholders:
            with _lock:
                _create(placeholder)
                _holders[placeholder.path] += 1
                held_names.append(placeholder.path)
        yield
    finally:
        for path in reversed(held_names):
            with _lock:
                _holders[path] -= 1
                if not _holders[path]:
                    del _holders[path]
                    remove(path)


def remove_left(placeholders: Iterable[Placeholder]) -> None:
    """Remove those that a killed process left; those of commands of this process stay."""
    with _lock:
        for placeholder in placeholders:
            if placeholder.path not in _holders:
                remove(placeholder.path)


def sweep(root: str) -> None:
    """Remove those that a killed process left in a project, and in its git directory. The caller has locked it."""
    directories = [root, *(os.path.join(root, name) for name in (".git", ".git/info"))]
    with suppress(OSError), os.scandir(os.path.join(root, ".git", "worktrees")) as entries:
        directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for directory in directories:
        with suppress(OSError), os.scandir(directory) as entries:
            names = [entry.name for entry in entries if is_placeholder(entry.stat(follow_symlinks=False))]
            remove_left(Placeholder(os.path.join(directory, name)) for name in names)


def _create(placeholder: Placeholder) -> None:
    with suppress(FileExistsError):  # of a killed process, or of a command that runs at the same time
        if placeholder.is_directory:
            os.mkdir(placeholder.path, _MODE)
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(placeholder.path, flags, _MODE & ~0o111))


def remove(path: str) -> None:
    """Remove a placeholder. Something else at the path stays; so does a placeholder in which something was created,
    which becomes an ordinary directory.
    """
    with suppress(OSError):
        status = os.lstat(path)
        if not is_placeholder(status):
            return
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(path)
            return
        try:
            os.rmdir(path)
        except OSError:
            os.chmod(path, 0o755)
