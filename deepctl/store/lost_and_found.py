"""`checkpoints/lost+found/`: what a repair could not place, and the damaged originals of what it wrote anew.

Nothing reads it. Archives leave it out; `deepctl wipe` and `deepctl memory forget --purge` empty it.
"""

from __future__ import annotations

import hashlib
import os

from deepctl.errors import Refused
from deepctl.files import atomic, rmtree
from deepctl.layout import ProfilePaths


def place(paths: ProfilePaths, path: str) -> str:
    """Where a file of the profile has its place there: under its own name and a part of its hash."""
    content = hashlib.sha256(atomic.read_file(path)).hexdigest()[:8]
    relative = os.path.relpath(path, paths.directory).replace("/", "-")
    return os.path.join(paths.lost_and_found, f"{relative}.{content}")


def keep(paths: ProfilePaths, path: str) -> str | None:
    """Put a copy of a file there, if it is not there already; returns its path, `None` if there is no such file."""
    try:
        target = place(paths, path)
        if not os.path.exists(target):
            atomic.make_root(paths.lost_and_found)
            atomic.write_file(target, atomic.read_file(path))
    except (FileNotFoundError, Refused):
        return None
    return target


def move(paths: ProfilePaths, path: str) -> str:
    """Put a file there that nothing names; returns its path."""
    target = place(paths, path)
    atomic.make_root(paths.lost_and_found)
    os.rename(path, target)
    atomic.sync_directory(paths.lost_and_found)
    atomic.sync_directory(os.path.dirname(path))
    return target


def count(paths: ProfilePaths) -> int:
    """How many files are there."""
    try:
        return len(os.listdir(paths.lost_and_found))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def empty(paths: ProfilePaths) -> None:
    """Delete everything there."""
    if os.path.lexists(paths.lost_and_found):
        rmtree.remove_tree(paths.lost_and_found)
        atomic.sync_directory(paths.checkpoints)
