"""What git knows about the ignored files of a directory, besides the .gitignore files in it.

These are the files with patterns for all repositories and for this one, the .gitignore files above the directory, and
the paths in git's index: tracked files are covered even if a pattern matches them.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Collection, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from deepctl.files import git, gitignore
from deepctl.files.git import GitFailed, Worktree
from deepctl.files.gitignore import Level, Pattern

LARGEST_TEXT = 1 << 20
"""Bytes of a file with patterns. A larger one counts as empty, so more files are covered."""
_TRUE = (None, "true", "yes", "on", "1")

_Signature = tuple[int, int, int, int]


@lru_cache(maxsize=512)
def patterns(text: bytes, ignore_case: bool) -> tuple[Pattern, ...]:
    """The patterns of a text, read once."""
    return gitignore.parse(text, ignore_case=ignore_case)


class TrackedPaths:
    """The paths in git's index, relative to a directory and in the order of their bytes.

    `ignored` are those that patterns match, with the patterns for which they were computed.
    """

    def __init__(self, paths: list[bytes]) -> None:
        self._paths = paths
        self.ignored: tuple[object, list[bytes]] | None = None

    def has(self, path: bytes) -> bool:
        """Whether a file is tracked."""
        at = bisect.bisect_left(self._paths, path)
        return at < len(self._paths) and self._paths[at] == path

    def has_below(self, path: bytes) -> bool:
        """Whether a file in a directory, or in one below it, is tracked."""
        prefix = path + b"/"
        at = bisect.bisect_left(self._paths, prefix)
        return at < len(self._paths) and self._paths[at].startswith(prefix)

    def directories(self) -> Iterator[tuple[bytes, list[bytes]]]:
        """The directories of tracked files, empty for the top, each with the names in it."""
        names: dict[bytes, list[bytes]] = {}
        for path in self._paths:
            directory, _, name = path.rpartition(b"/")
            names.setdefault(directory, []).append(name)
        yield from names.items()


class GitRules(NamedTuple):
    """The rules of a repository for one of its directories, `base`, which is empty for the top of the working tree.

    `general` are the texts of the files with patterns for the whole repository, and `above` those of the .gitignore
    files above the directory, by the directory relative to the top. Later ones precede.
    """

    base: bytes
    ignore_case: bool
    general: tuple[bytes, ...]
    above: dict[bytes, bytes]

    def level(self) -> Level | None:
        """The level of the directory; `None` if the repository ignores the directory itself."""
        level = gitignore.level(tuple(pattern for text in self.general for pattern in patterns(text, self.ignore_case)))
        for directory, name in _steps(self.base):
            level = level.extended(patterns(self.above.get(directory, b""), self.ignore_case))
            folded = name.lower() if self.ignore_case else name
            if level.ignored([folded], are_directories=True):
                return None
            level = level.below(folded)
        return level

    def to_document(self) -> dict[str, Any]:
        """The rules as JSON values."""
        return {
            "base": os.fsdecode(self.base),
            "ignore_case": self.ignore_case,
            "general": [os.fsdecode(text) for text in self.general],
            "above": {os.fsdecode(path): os.fsdecode(text) for path, text in sorted(self.above.items())},
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> GitRules:
        """The rules from `to_document`. Raises `KeyError`, `TypeError` or `AttributeError`."""
        return cls(
            os.fsencode(document["base"]),
            bool(document["ignore_case"]),
            tuple(map(os.fsencode, document["general"])),
            {os.fsencode(path): os.fsencode(text) for path, text in document["above"].items()},
        )


def _steps(base: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The directories from the top to `base`, each with the name of the next one."""
    directory = b""
    for name in base.split(b"/") if base else ():
        yield directory, name
        directory = directory + b"/" + name if directory else name


class GitState(NamedTuple):
    """The rules of a repository for a directory, and its tracked files. `problem` says why these are unknown."""

    rules: GitRules
    tracked: TrackedPaths
    problem: str


def read(directory: str) -> GitState | None:
    """The rules of the repository that contains a directory; `None` without a repository."""
    place = git.worktree(directory)
    if place is None:
        return None
    base = os.fsencode(os.path.relpath(os.path.realpath(directory), place.top))
    base = b"" if base == b"." else base
    problem = ""
    try:
        excludes_file, ignore_case = _settings(place)
    except GitFailed as error:
        excludes_file, ignore_case, problem = _default_excludes_file(), False, str(error)
    sources = (excludes_file, os.path.join(place.common, "info", "exclude"))
    general = tuple(_text(path, follow=True) for path in sources)
    texts = ((above, _text(os.path.join(place.top, os.fsdecode(above), ".gitignore"))) for above, _ in _steps(base))
    above = {directory: text for directory, text in texts if text}
    tracked = TrackedPaths([])
    try:
        index = _signature(os.path.join(place.directory, "index"))
        tracked = _tracked(os.path.realpath(directory), place.directory, index) if index is not None else tracked
    except GitFailed as error:
        problem = str(error)
    return GitState(GitRules(base, ignore_case, general, above), tracked, problem)


def _text(path: str, *, follow: bool = False) -> bytes:
    """The text of a file with patterns; empty without a file. Like git, deepctl follows no link called .gitignore."""
    return (git.read_file(path, LARGEST_TEXT, follow=follow) if path else None) or b""


def _signature(path: str) -> _Signature | None:
    """Values that change with a file; `None` without a file."""
    try:
        status = os.stat(path)
    except OSError as error:
        git.check_missing(error)
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


@lru_cache(maxsize=4)
def _tracked(directory: str, git_directory: str, index: _Signature) -> TrackedPaths:
    """The tracked files of a directory; git is asked again when its index has changed."""
    return TrackedPaths(git.run(directory, "ls-files", "-z", "--cached").split(b"\0")[:-1])


def _settings(place: Worktree) -> tuple[str, bool]:
    """`core.excludesFile` and `core.ignoreCase`. Raises `GitFailed`."""
    home = os.path.expanduser("~")
    paths = (
        os.path.join(place.common, "config"),
        os.path.join(place.directory, "config.worktree"),
        os.path.join(home, ".gitconfig"),
        os.path.join(_configuration(), "config"),
        os.environ.get("GIT_CONFIG_GLOBAL", ""),
    )
    return _read_settings(place, _configuration(), paths, tuple(_signature(path) for path in paths))


def _configuration() -> str:
    directory = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(directory, "git")


def _default_excludes_file() -> str:
    return os.path.join(_configuration(), "ignore")


@lru_cache(maxsize=4)
def _read_settings(
    place: Worktree, configuration: str, paths: tuple[str, ...], signatures: tuple[_Signature | None, ...]
) -> tuple[str, bool]:
    excludes_file, ignore_case = _default_excludes_file(), False
    for entry in os.fsdecode(git.run(place.top, "config", "-z", "--includes", "--list")).split("\0"):
        key, separator, value = entry.partition("\n")
        if key == "core.excludesfile":
            excludes_file = os.path.join(place.top, os.path.expanduser(value)) if value else ""
        elif key == "core.ignorecase":
            ignore_case = (value.lower() if separator else None) in _TRUE
    return excludes_file, ignore_case


def select(level: Level, names: Collection[bytes], *, are_directories: bool, ignore_case: bool) -> set[bytes]:
    """Those of the names that a level ignores."""
    if not ignore_case:
        return level.ignored(names, are_directories=are_directories) if names else set()
    folded: dict[bytes, list[bytes]] = {}
    for name in names:
        folded.setdefault(name.lower(), []).append(name)
    ignored = level.ignored(folded.keys(), are_directories=are_directories)
    return {name for key in ignored for name in folded[key]}
