"""The files that a prompt can name, in directories or in memory, and how they are read.

A file is looked up only inside the directories of a workspace or in memory; a link that leads out is refused. A file
elsewhere is looked up by its real path, without following any link.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from deepctl.domain.mention_syntax import LineRange
from deepctl.domain.outside_files import OutsideFile
from deepctl.domain.permissions import OWN
from deepctl.files.paths_beneath import DirectoryEntry, DirectoryTree, MountTable, OutsideTree
from deepctl.quantities import size
from deepctl.sandbox.policy import MOUNT, PROFILE_MOUNT

if TYPE_CHECKING:
    from pydantic_ai_backends import StateBackend

_PIECE = 1 << 20
MAX_SCAN = 256 << 20
"""Bytes of a file in which lines are looked for."""


class DirectoryListing(NamedTuple):
    """The contents of a directory: the first names, and the number of the others."""

    first_entries: list[DirectoryEntry]
    more_count: int


class MentionTarget(NamedTuple):
    """A file or directory that a prompt names: its path in the workspace, and functions to read it. `size` is in bytes.

    `problem` is the reason why it is not sent. The functions raise `OSError`, because it may no longer exist.
    """

    path: str
    is_directory: bool
    size: int
    pieces: Callable[[], Generator[bytes, None, None]]
    """The content of a file, from its start."""
    entries: Callable[[int], DirectoryListing]
    problem: str | None = None
    real_path: str | None = None
    """The path of a file outside the workspace, which the agent cannot reach with its tools."""
    written_path: str | None = None
    """The path as it was written, if it differs from `path` because of a link."""
    is_private: bool = False
    """Whether it is in a private workspace, whose files are those of the profile."""

    @property
    def rule_paths(self) -> set[str]:
        """The paths to which rules apply: relative to the project, or below `/profile/`."""
        if self.real_path is not None:
            return {self.real_path.lstrip("/")}
        return {
            OWN + path if self.is_private and not path.startswith("/") else path
            for path in (self.path, self.written_path or self.path)
        }

    def read(self, most: int) -> bytes:
        """At most this many first bytes."""
        content = bytearray()
        with closing(self.pieces()) as pieces:
            for piece in pieces:
                content += piece[: most - len(content)]
                if len(content) == most:
                    break
        return bytes(content)


class SelectedLines(NamedTuple):
    """Lines of a file: their text, and the range that they are. `line_count` is the number of all lines, if the end of
    the file was reached.
    """

    data: bytes
    lines: LineRange
    line_count: int | None


class NoLines(Exception):
    """Lines of a file cannot be had: why, without a full stop."""


def select(target: MentionTarget, lines: LineRange, most: int) -> SelectedLines:
    """The lines of a text file. At most `most` bytes and one more are returned.

    Raises `NoLines`, and `OSError`.
    """
    first, last = lines
    if first < 1 or last == 0:
        raise NoLines("lines are counted from 1")
    if last is not None and last < first:
        raise NoLines(f"line {first} comes after line {last}")
    if target.is_directory:
        raise NoLines("a directory has no lines")
    line, scanned, content, is_line_end = 1, 0, bytearray(), True
    with closing(target.pieces()) as pieces:
        for piece in pieces:
            if b"\0" in piece:
                raise NoLines("it is not text, so it has no lines")
            is_line_end = piece.endswith(b"\n")
            scanned += len(piece)
            newlines = piece.count(b"\n")
            if line + newlines < first:
                line += newlines
            else:
                for text in _lines_of(piece):
                    if line >= first:
                        content += text
                    line += text.endswith(b"\n")
                    if len(content) > most or (last is not None and line > last):
                        return SelectedLines(bytes(content[: most + 1]), LineRange(first, last), None)
            if scanned >= MAX_SCAN:
                raise NoLines(f"only the first {size(MAX_SCAN)} of a file are searched for lines")
    count = line - is_line_end if scanned else 0
    if count < first:
        raise NoLines(f"the file has {count:,} line{'' if count == 1 else 's'}")
    return SelectedLines(bytes(content), LineRange(first, count), count)


def _lines_of(piece: bytes) -> list[bytes]:
    """The lines of a piece with their ends. A carriage return ends no line."""
    lines = [text + b"\n" for text in piece.split(b"\n")]
    last = lines.pop()[:-1]
    return [*lines, last] if last else lines


class Files(Protocol):
    """The files that there are. `kind` is the name of their place in notices: the workspace, or the project."""

    @property
    def kind(self) -> str: ...

    def find(self, path: str) -> MentionTarget | None:
        """The entry at `path`; `None` if it does not exist, or leads out."""
        ...

    def leads_out(self, path: str) -> bool:
        """Whether a path is one of another place: it is absolute, below a home directory, or leads up with `..`."""
        ...


class DirectoryFiles:
    """The files of a workspace in a directory; in a project, the files of the project, and the workspace as `/profile`.

    A file of a project has its path relative to it, and a file of the profile has one below `/profile`.
    """

    def __init__(self, workspace: str, project: str | None = None) -> None:
        self._is_private = project is None
        if project is None:
            self._trees = MountTable(DirectoryTree(workspace, follow=True, mount=MOUNT))
        else:
            self._trees = MountTable(
                DirectoryTree(project, follow=True, aliases=(MOUNT,), kind="project"),
                DirectoryTree(workspace, follow=True, mount=PROFILE_MOUNT),
            )

    @property
    def kind(self) -> str:
        return self._trees.first.kind

    def find(self, path: str) -> MentionTarget | None:
        tree = self._trees.tree_of(path)
        try:
            entry, real_path = tree.entry(path), tree.real_path(path)
        except OutsideTree:
            # An existing link causes a notice; a word that is not in the workspace is only a word.
            if self.leads_out(path):
                return None
            return refused(path, f"a symbolic link leads out of the {tree.kind}")
        except (OSError, ValueError):
            return None
        name = self._name(real_path)
        written_path = self._name(self._trees.mounted_path(os.path.normpath(os.path.join(tree.mount, path))))
        if not entry.is_directory and entry.size is None:
            return refused(name, "it is not a regular file")
        return MentionTarget(
            name,
            entry.is_directory,
            entry.size or 0,
            partial(_pieces, tree, real_path),
            partial(_list, tree, real_path),
            written_path=written_path,
            is_private=self._is_private,
        )

    def _name(self, path: str) -> str:
        """A path of a table as it is shown: relative to the first directory, if it is in it."""
        relative = os.path.relpath(path, self._trees.first.mount)
        return path if relative == ".." or relative.startswith("../") else relative

    def leads_out(self, path: str) -> bool:
        normal_path = os.path.normpath(path)
        if not path.startswith("/"):
            return path.startswith("~") or normal_path == ".." or normal_path.startswith("../")
        return all(tree.prefix_of(normal_path) is None for tree in self._trees.trees)


def outside(name: str, file: OutsideFile) -> MentionTarget:
    """A file outside the workspace, which is called `name`."""
    if file.problem is not None:
        return refused(name, file.problem)
    tree = DirectoryTree("/", follow=False)
    try:
        entry = tree.entry(file.path)
    except OSError as error:
        return refused(name, (error.strerror or str(error)).lower())
    return MentionTarget(
        name,
        entry.is_directory,
        entry.size or 0,
        partial(_pieces, tree, file.path),
        partial(_list, tree, file.path),
        real_path=file.path,
    )


def _pieces(tree: DirectoryTree, path: str) -> Generator[bytes, None, None]:
    with tree.opened(path) as (descriptor, is_directory):
        if is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        while piece := os.read(descriptor, _PIECE):
            yield piece


def _list(tree: DirectoryTree, path: str, most: int) -> DirectoryListing:
    entries = tree.entries(path)
    return DirectoryListing(entries[:most], max(0, len(entries) - most))


class StateFiles:
    """The files of a workspace in memory."""

    kind = "workspace"

    def __init__(self, state: StateBackend) -> None:
        self._state = state

    def find(self, path: str) -> MentionTarget | None:
        full_path = posixpath.normpath(posixpath.join("/", path))
        if not self._state.exists(full_path):
            return None
        is_directory = self._state.is_dir(full_path)
        return MentionTarget(
            full_path.lstrip("/") or ".",
            is_directory,
            0 if is_directory else self._state.size(full_path),
            lambda: self._pieces(full_path),
            lambda most: self._entries(full_path, most),
        )

    def leads_out(self, path: str) -> bool:
        # The files have no place on the disk, so each absolute path is one in memory.
        return path.startswith("~")

    def _pieces(self, path: str) -> Generator[bytes, None, None]:
        yield self._state.read_bytes(path)

    def _entries(self, path: str, most: int) -> DirectoryListing:
        entries = self._state.list_dir(path)
        first_entries = [
            DirectoryEntry(
                name, is_directory, None if is_directory else self._state.size(posixpath.join(path, name)), 0.0
            )
            for name, is_directory in entries[:most]
        ]
        return DirectoryListing(first_entries, max(0, len(entries) - most))


def refused(path: str, problem: str | None) -> MentionTarget:
    """A file that is not sent, for this reason."""

    def nothing(*_: object) -> NoReturn:
        raise OSError(errno.EINVAL, problem, path)

    return MentionTarget(path, False, 0, nothing, nothing, problem)
