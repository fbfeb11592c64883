"""Which lines are to go, and taking them out of the notebooks in the workspace."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from deepctl import layout
from deepctl.domain.memory.directory import Memory
from deepctl.domain.purge.text_matcher import TextMatcher
from deepctl.errors import Refused
from deepctl.files.paths_beneath import Entry, Outside, Tree
from deepctl.layout import ProfilePaths
from deepctl.notebook_text import lines_with, without

_BESIDE = (b".memory-operations.json", b".memory-store.sqlite3", b".memory-tmp-")
"""How what the harness' memory store keeps beside the notebooks begins: receipts, once a journal, unfinished files."""


def is_beside(name: bytes) -> bool:
    """Whether a file in `.deep/memory` itself is the memory store's own."""
    return name.startswith(_BESIDE)


class PurgeSelector(NamedTuple):
    """The lines that hold a text: of all an agent's notebooks, or of `file` (with its `.md`) alone."""

    sought: TextMatcher
    agent: str = layout.AGENT
    file: str | None = None

    def covers(self, path: str) -> bool:
        """Whether what lies at a path of the workspace is rewritten, or goes."""
        above, _, name = path.rpartition("/")
        if above == layout.MEMORY_DIRECTORY and is_beside(os.fsencode(name)):
            return True
        directory = f"{layout.MEMORY_DIRECTORY}/{self.agent}"
        return path.startswith(f"{directory}/") if self.file is None else path == f"{directory}/{self.file}"

    def means(self, name: bytes) -> bool:
        """Whether what is called `name` in the agent's directory is meant."""
        return self.file is None or name == os.fsencode(self.file)


class Forgotten(NamedTuple):
    """The lines that a notebook in the workspace loses, or lost: its name, and each with its number from 1.

    One in a directory of the agent's is named with that: `trips/lisbon.md`.
    """

    file: str
    lines: list[tuple[int, bytes]]


def changed() -> Refused:
    """The error for lines that would go and that nobody has agreed to."""
    return Refused(
        "The notebooks were changed by somebody else meanwhile, so nothing was done.",
        "Say it again to see what would go now.",
        code="memory_changed",
    )


class Live:
    """The notebooks in the workspace: every regular file in an agent's directory, and in the directories there."""

    def __init__(self, paths: ProfilePaths, doomed: PurgeSelector) -> None:
        self._tree = Tree(paths.workspace, follow=False)
        self._memory = Memory(paths, doomed.agent)
        self._doomed = doomed

    def look(self) -> list[Forgotten]:
        """The lines that would go. Raises `Refused` where a link, or what is too large or too deep, is in the way."""
        try:
            found = [Forgotten(file, self._lines(self._read(file))) for file in self._files()]
        except OSError as error:
            if not isinstance(error, Outside) and error.errno not in (errno.EFBIG, errno.ENAMETOOLONG):
                raise
            raise Refused(
                f"Memory cannot be read: {error.filename}: {error.strerror}.",
                "deepctl follows no links in a workspace. Look at what was put there."
                if isinstance(error, Outside)
                else "Take it away by hand; `deepctl wipe --only memory` takes everything there.",
                code="memory_refused",
            ) from None
        return [one for one in found if one.lines]

    def intact(self, digest: bytes) -> bytes | None:
        """The content of this hash, if a notebook has it: what is damaged in a checkpoint may be whole here."""
        contents = (self._read(file) for file in self._files())
        return next((content for content in contents if hashlib.sha256(content).digest() == digest), None)

    def forget(self, expected: list[Forgotten]) -> None:
        """Take the lines out, and what the memory store keeps beside the notebooks. Synced when it returns.

        Raises `Refused`, before anything is changed, if other lines would go than are expected.
        """
        if self.look() != expected:
            raise changed()
        for file, _ in expected:
            before = self._read(file)
            after = without(before, self._doomed.sought.text, ignore_case=self._doomed.sought.ignore_case)
            if "/" in file or not file.endswith(".md") or file.startswith("."):
                self._tree.write(self._memory.path(file), after)
            else:
                self._memory.write(file, after, expected=before)
        beside = [entry.name for entry in self._entries(layout.MEMORY_DIRECTORY) if _is_file_beside(entry)]
        for name in beside:
            self._tree.remove(f"{layout.MEMORY_DIRECTORY}/{name}")
        if expected or beside:
            os.sync()

    def _read(self, file: str) -> bytes:
        return self._tree.read(self._memory.path(file))

    def _lines(self, content: bytes) -> list[tuple[int, bytes]]:
        return lines_with(content, self._doomed.sought.text, ignore_case=self._doomed.sought.ignore_case)

    def _files(self, below: str = "") -> Iterator[str]:
        for entry in self._entries(self._memory.path(below) if below else self._memory.directory):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_directory and self._doomed.file is None:
                yield from self._files(name)
            elif entry.size is not None and self._doomed.means(os.fsencode(name)):
                yield name

    def _entries(self, directory: str) -> list[Entry]:
        try:
            return self._tree.entries(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _is_file_beside(entry: Entry) -> bool:
    return entry.size is not None and is_beside(os.fsencode(entry.name))
