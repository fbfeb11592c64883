"""Logs that sessions share: one file with several names, until a copy or an archive makes several files of it.

Each of these files would then be written to alone. So where one has all of another, the other name gets the same file
again. Nothing is lost by that, because what a log has is only ever added to.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from deepctl.errors import Refused
from deepctl.files import atomic
from deepctl.store import session_catalogue
from deepctl.store.log_chain import SUFFIX, is_id

_STAGING = ".link."


def join(directories: Iterable[str]) -> list[str]:
    """Let sessions share again what is one log; returns the paths that are other files now.

    Where the file system has no hard links, nothing is done. The caller holds the profile's lock.
    """
    joined: list[str] = []
    for paths in parted(directories).values():
        try:
            joined += _joined(paths)
        except (OSError, Refused):
            continue
    return joined


def parted(directories: Iterable[str]) -> dict[str, list[str]]:
    """The logs that are in several of the directories as different files: their paths by their ids."""
    found: dict[str, dict[str, int]] = {}
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and is_id(entry.name.removesuffix(SUFFIX)):
                        found.setdefault(entry.name, {})[entry.path] = entry.inode()
        except (FileNotFoundError, NotADirectoryError):
            continue
    return {name: sorted(paths) for name, paths in found.items() if len(set(paths.values())) > 1}


def _joined(paths: list[str]) -> list[str]:
    """Give these paths the longest of their files, where it begins with all that the others have."""
    longest = max(paths, key=lambda path: os.lstat(path).st_size)
    inode = os.lstat(longest).st_ino
    whole: bytes | None = None
    joined: list[str] = []
    for path in paths:
        if os.lstat(path).st_ino == inode:
            continue
        staged = os.path.join(os.path.dirname(path), f"{_STAGING}{os.path.basename(path)}.tmp")
        try:
            os.unlink(staged)
        except FileNotFoundError:
            pass
        try:
            os.link(longest, staged)
        except OSError as error:
            if error.errno in session_catalogue.NO_LINKS or error.errno == errno.ENOSPC:
                return joined
            raise
        whole = whole if whole is not None else atomic.read_file(longest)
        if whole.startswith(atomic.read_file(path)):
            os.rename(staged, path)
            atomic.sync_directory(os.path.dirname(path))
            joined.append(path)
        else:
            os.unlink(staged)
    return joined
