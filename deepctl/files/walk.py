"""Going over a directory that its owner may change meanwhile: by descriptors, without following a link.

What needs only names, sizes or contents uses this. Four walks are their own, because each keeps an order or a promise
that this one does not: `store.trees` (a cache of directories), `rmtree` (opens what is closed, at any depth),
`domain.wipe.wipe_plan` (places within places) and `domain.transfer.profile_export` (the order of an archive).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from deepctl.files.atomic import OPEN_DIRECTORY

MAX_DEPTH = 200
"""How many directories are open at once; those that lie deeper count as unreadable."""


class WalkEntry(NamedTuple):
    """One name below a root: its path from there, and its directory, which is open until the next entry is asked for.

    `status` is `None` where it cannot be looked at, or is a directory that cannot be looked into. Such a directory may
    come twice: first with its status. The root itself, if it cannot be looked into, has an empty path.
    """

    path: str
    parent: int
    name: str
    status: os.stat_result | None
    is_directory: bool

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.status is not None and stat.S_ISREG(self.status.st_mode)


def walk(root: str, skip: Callable[[str], bool] = lambda path: False) -> Iterator[WalkEntry]:
    """Everything below `root`, in the order of names, directories before what is in them; nothing if it is missing.

    What `skip` is true of is left out, with everything in it. What vanishes meanwhile is left out, too.
    """
    way: list[tuple[int, str, Iterator[os.DirEntry[str]]]] = []
    try:
        try:
            way.append(_listed(root, None, ""))
        except FileNotFoundError:
            return
        except OSError:
            yield WalkEntry("", -1, "", None, True)
            return
        while way:
            descriptor, prefix, entries = way[-1]
            entry = next(entries, None)
            if entry is None:
                os.close(descriptor)
                way.pop()
                continue
            path = prefix + entry.name
            if skip(path):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError:
                yield WalkEntry(path, descriptor, entry.name, None, entry.is_dir(follow_symlinks=False))
                continue
            is_directory = stat.S_ISDIR(status.st_mode)
            yield WalkEntry(path, descriptor, entry.name, status, is_directory)
            if not is_directory:
                continue
            try:
                if len(way) > MAX_DEPTH:
                    raise RecursionError
                way.append(_listed(entry.name, descriptor, f"{path}/"))
            except FileNotFoundError:
                continue
            except (OSError, RecursionError):
                yield WalkEntry(path, descriptor, entry.name, None, True)
    finally:
        for descriptor, _, _ in way:
            os.close(descriptor)


def _listed(name: str, parent: int | None, prefix: str) -> tuple[int, str, Iterator[os.DirEntry[str]]]:
    """A directory, open, and what is in it. Raises `OSError`."""
    descriptor = os.open(name, OPEN_DIRECTORY, dir_fd=parent)
    try:
        with os.scandir(descriptor) as entries:
            return descriptor, prefix, iter(sorted(entries, key=lambda entry: entry.name))
    except OSError:
        os.close(descriptor)
        raise
