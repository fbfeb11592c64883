"""Where the files are that a prompt can name: a workspace's directory, or memory. Nothing outside, and no links."""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, NoReturn, Protocol

from pydantic_ai_backends import StateBackend

from deepctl.files.paths_beneath import Entry, Outside, Tree
from deepctl.sandbox.policy import MOUNT


class Entries(NamedTuple):
    """What is in a directory: the first by name, and how many there are more."""

    shown: list[Entry]
    more: int


class Found(NamedTuple):
    """What a prompt names: its path from the workspace's top, and ways to read it. `size` is in bytes.

    `problem` says why it is nothing that is sent. The functions raise `OSError`: it may be gone by now.
    """

    path: str
    is_directory: bool
    size: int
    read: Callable[[int], bytes]
    """The first bytes, at most so many."""
    entries: Callable[[int], Entries]
    problem: str | None = None


class Files(Protocol):
    """The files that there are."""

    def find(self, path: str) -> Found | None:
        """What is at `path`; `None` if nothing is, or it leads out."""
        ...


class DirectoryFiles:
    """The files of a workspace in a directory."""

    def __init__(self, root: str) -> None:
        self._tree = Tree(root, follow=False, mount=MOUNT)

    def find(self, path: str) -> Found | None:
        try:
            entry = self._tree.entry(path)
        except Outside as error:
            # A link that is there is told about; what is not in the workspace is just a word.
            return _refused(path, error.strerror) if "link" in (error.strerror or "") else None
        except (OSError, ValueError):
            return None
        found = self._tree.real_path(path).removeprefix(MOUNT).lstrip("/") or "."
        if not entry.is_directory and entry.size is None:
            return _refused(found, "it is not a regular file")
        return Found(found, entry.is_directory, entry.size or 0, partial(self._read, found), partial(self._list, found))

    def _read(self, path: str, most: int) -> bytes:
        pieces = []
        with self._tree.opened(path) as (descriptor, is_directory):
            if is_directory:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            while most > 0 and (piece := os.read(descriptor, most)):
                pieces.append(piece)
                most -= len(piece)
        return b"".join(pieces)

    def _list(self, path: str, most: int) -> Entries:
        found = self._tree.entries(path)
        return Entries(found[:most], max(0, len(found) - most))


class StateFiles:
    """The files of a workspace in memory."""

    def __init__(self, state: StateBackend) -> None:
        self._state = state

    def find(self, path: str) -> Found | None:
        inside = posixpath.normpath(posixpath.join("/", path))
        if not self._state.exists(inside):
            return None
        is_directory = self._state.is_dir(inside)
        return Found(
            inside.lstrip("/") or ".",
            is_directory,
            0 if is_directory else self._state.size(inside),
            lambda most: self._state.read_bytes(inside)[:most],
            lambda most: self._entries(inside, most),
        )

    def _entries(self, path: str, most: int) -> Entries:
        found = self._state.list_dir(path)
        shown = [
            Entry(name, is_directory, None if is_directory else self._state.size(posixpath.join(path, name)), 0.0)
            for name, is_directory in found[:most]
        ]
        return Entries(shown, max(0, len(found) - most))


def _refused(path: str, problem: str | None) -> Found:
    def nothing(most: int) -> NoReturn:
        raise OSError(errno.EINVAL, problem, path)

    return Found(path, False, 0, nothing, nothing, problem)
