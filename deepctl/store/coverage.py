"""The coverage rules of a project: which of its files a checkpoint covers.

Covered is what git would list, that is tracked files and files that are not ignored, besides the ignored files that
`snapshot.include` names. Nested repositories are one entry for git, so their contents are not covered. In a directory
without a repository, or in one that its repository ignores, everything is covered except `snapshot.exclude`. `.git` is
never covered.

A snapshot reads the rules of a directory (`read_rules`), follows them from directory to directory (`DirectoryRules`),
and stores them with the tree. They contain every .gitignore that the snapshot met, so a rewind knows for every
checkpoint which paths were covered at that time.
"""

from __future__ import annotations

import bisect
import json
import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from types import NoneType
from typing import Any, NamedTuple

from deepctl.errors import StoreDamaged
from deepctl.files import atomic, git, gitignore
from deepctl.files.git import GitFailed, Worktree
from deepctl.files.gitignore import Level, Pattern

FORMAT = 1
LARGEST_FILE = 100 << 20
"""The default of `snapshot.max_file` in projects, in bytes."""
_GIT = b".git"
_GITIGNORE = b".gitignore"
LARGEST_TEXT = 1 << 20
"""Bytes of a file with patterns. A larger one counts as empty, so more files are covered."""
_OF_USER = ("system", "global", "command")
"""Scopes of git's settings that are not those of a repository."""
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
            key = name.lower() if self.ignore_case else name
            if level.ignored([key], are_directories=True):
                return None
            level = level.below(key)
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
    """The rules of a repository for a directory, and its tracked files. `problem` says why these are unknown.

    `refused` is a file with patterns that the repository names and that is not read (`_may_name`).
    """

    rules: GitRules
    tracked: TrackedPaths
    problem: str
    refused: str


def read_git(directory: str) -> GitState | None:
    """The rules of the repository that contains a directory; `None` without a repository."""
    place = git.worktree(directory)
    if place is None:
        return None
    base = os.fsencode(os.path.relpath(os.path.realpath(directory), place.top))
    base = b"" if base == b"." else base
    problem = ""
    try:
        excludes_file, ignore_case, refused = _settings(place)
    except GitFailed as error:
        excludes_file, ignore_case, refused, problem = _default_excludes_file(), False, "", str(error)
    exclude = os.path.join(place.common, "info", "exclude")
    if not _may_name(place, exclude):
        exclude, refused = "", exclude
    general = tuple(_text(path, follow=True) for path in (excludes_file, exclude))
    texts = ((above, _text(os.path.join(place.top, os.fsdecode(above), ".gitignore"))) for above, _ in _steps(base))
    above = {directory: text for directory, text in texts if text}
    tracked = TrackedPaths([])
    try:
        index = _signature(os.path.join(place.directory, "index"))
        tracked = _tracked(os.path.realpath(directory), place.directory, index) if index is not None else tracked
    except GitFailed as error:
        problem = str(error)
    return GitState(GitRules(base, ignore_case, general, above), tracked, problem, refused)


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


def _settings(place: Worktree) -> tuple[str, bool, str]:
    """`core.excludesFile`, `core.ignoreCase`, and a file that was not accepted. Raises `GitFailed`."""
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
) -> tuple[str, bool, str]:
    excludes_file, ignore_case, refused = _default_excludes_file(), False, ""
    for scope, entry in _scoped_settings(place.top):
        key, separator, value = entry.partition("\n")
        if key == "core.excludesfile":
            path = os.path.join(place.top, os.path.expanduser(value)) if value else ""
            if not path or scope in _OF_USER or _may_name(place, path):
                excludes_file, refused = path, ""
            else:
                refused = path
        elif key == "core.ignorecase":
            ignore_case = (value.lower() if separator else None) in _TRUE
    return excludes_file, ignore_case, refused


def _scoped_settings(top: str) -> Iterator[tuple[str, str]]:
    """The settings of git in a directory, each with its scope. Those of a git before 2.26 have no scope."""
    try:
        words = os.fsdecode(git.run(top, "config", "-z", "--show-scope", "--includes", "--list")).split("\0")
        yield from zip(words[::2], words[1::2], strict=False)
    except GitFailed:
        for entry in os.fsdecode(git.run(top, "config", "-z", "--includes", "--list")).split("\0"):
            yield "", entry


def _may_name(place: Worktree, path: str) -> bool:
    """Whether a repository may name `path` as a file with patterns, whose text is stored with checkpoints.

    A hostile repository could name a file with keys. So it is a file of the repository, or one of the user that is
    called like a file with patterns.
    """
    real_path = os.path.realpath(path)
    if any(real_path.startswith(f"{directory}/") for directory in (place.top, place.common, place.directory)):
        return True
    directory, name = os.path.split(real_path)
    own = os.path.realpath(os.path.expanduser("~")), os.path.realpath(_configuration())
    return directory in own and ("ignore" in name.lower() or "exclude" in name.lower())


def select(level: Level, names: Collection[bytes], *, are_directories: bool, ignore_case: bool) -> set[bytes]:
    """Those of the names that a level ignores."""
    if not ignore_case:
        return level.ignored(names, are_directories=are_directories) if names else set()
    names_by_key: dict[bytes, list[bytes]] = {}
    for name in names:
        names_by_key.setdefault(name.lower(), []).append(name)
    ignored_keys = level.ignored(names_by_key.keys(), are_directories=are_directories)
    return {name for key in ignored_keys for name in names_by_key[key]}


class CoverageSettings(NamedTuple):
    """The settings of the coverage of a project.

    `include` are patterns of ignored files that are covered all the same, `exclude` the patterns of `snapshot.exclude`.
    `max_file` is the size in bytes above which a file is not covered; `None` means no limit.
    """

    include: Sequence[str] = ()
    max_file: int | None = LARGEST_FILE
    exclude: Sequence[str] = ()


DEFAULT_COVERAGE = CoverageSettings()
"""The coverage without settings."""


class CoverageRules:
    """The rules at one time. Paths are relative to the project.

    `nested` are nested repositories. `uncovered` are the paths that a snapshot left out or could not read, each with
    whether it is a directory that was left out; nothing below such a directory is in it. `problem` is the reason why
    tracked files are unknown. `refused` is a file with patterns that the repository names and that is not read.
    """

    def __init__(self, settings: CoverageSettings, repository: GitRules | None, texts: dict[bytes, bytes]) -> None:
        self.settings = settings
        self.nested: set[bytes] = set()
        self.uncovered: dict[bytes, bool] = {}
        self.problem = ""
        self.refused = ""
        self.root = ""
        self._tracked = TrackedPaths([])
        self._texts = texts
        level = repository.level() if repository is not None else None
        self._repository = repository if level is not None else None
        self._level = level if level is not None else _level(settings.exclude)
        self._directories: dict[bytes, DirectoryRules | None] = {}

    @property
    def problem_sentence(self) -> str:
        """The sentences for the user about `problem` and `refused`; empty if there is neither."""
        sentences = []
        if self.problem:
            sentences.append(
                f"git cannot list the tracked files of {self.root} ({self.problem}), so checkpoints do not cover "
                "tracked files that match a pattern of a .gitignore. "
                f"`git -C {shlex.quote(self.root)} ls-files` says more."
            )
        if self.refused:
            sentences.append(
                f"The repository of {self.root} names {self.refused} as its file with patterns of ignored files. This "
                "file is outside of the repository, so checkpoints do not use its patterns."
            )
        return " ".join(sentences)

    @property
    def ignore_case(self) -> bool:
        """Whether git ignores the case of letters in this directory."""
        return self._repository is not None and self._repository.ignore_case

    @property
    def has_git(self) -> bool:
        """Whether the rules of a repository decide."""
        return self._repository is not None

    def top(self) -> DirectoryRules:
        """The rules for the names in the directory of the project."""
        return DirectoryRules(self, b"", self._level, _level(self.settings.include))

    def hides(self, path: bytes, is_directory: bool) -> bool:
        """Whether `path` is not covered because of itself or of a directory above it. Sizes do not count."""
        directory, _, name = path.rpartition(b"/")
        rules = self._directory(directory)
        files, directories = ((), (name,)) if is_directory else ((name,), ())
        return rules is None or path in self.nested or bool(rules.left_out(files, directories))

    def covers(self, path: bytes, is_directory: bool, size: int | None = None) -> bool:
        """Whether a checkpoint covers `path`; `size` is in bytes."""
        limit = self.settings.max_file
        return not (size is not None and limit is not None and size > limit) and not self.hides(path, is_directory)

    def _directory(self, path: bytes) -> DirectoryRules | None:
        """The rules for the names in a directory, or `None` if it is not covered."""
        if path not in self._directories:
            if not path:
                self._directories[path] = self.top().entered()
            else:
                above, _, name = path.rpartition(b"/")
                rules = self._directory(above)
                is_hidden = rules is None or path in self.nested or bool(rules.left_out((), (name,)))
                self._directories[path] = rules.below(name).entered() if rules is not None and not is_hidden else None
        return self._directories[path]

    def text(self, directory: bytes) -> bytes:
        """The text of the .gitignore in a directory, empty if there was none."""
        return self._texts.get(directory, b"")

    def met(self, directory: bytes, text: bytes) -> None:
        """Remember the .gitignore of a directory."""
        if patterns(text, self.ignore_case):
            self._texts[directory] = text
            self._directories.clear()

    @property
    def tracked(self) -> TrackedPaths:
        """The tracked files; in stored rules only those that a pattern matches."""
        return self._tracked

    def _tracked_and_ignored(self) -> list[bytes]:
        """The tracked files that a pattern matches, also those that a snapshot did not meet because they are gone."""
        if self._repository is None:
            return []
        key = (
            self._repository.base,
            self._repository.general,
            *self._repository.above.items(),
            *sorted(self._texts.items()),
        )
        if self._tracked.ignored is not None and self._tracked.ignored[0] == key:
            return self._tracked.ignored[1]
        bare = CoverageRules(CoverageSettings(), self._repository, self._texts)
        bare.nested = self.nested
        ignored_paths: list[bytes] = []
        for directory, names in self._tracked.directories():
            rules = bare._directory(directory)
            prefix = directory + b"/" if directory else b""
            hidden_names = rules.left_out(names, ()) if rules is not None else names
            ignored_paths += [prefix + name for name in hidden_names]
        self._tracked.ignored = key, sorted(ignored_paths)
        return self._tracked.ignored[1]

    def to_json(self) -> bytes:
        """The rules as they are stored with a checkpoint."""
        document = {
            "v": FORMAT,
            "git": self._repository.to_document() if self._repository is not None else None,
            "texts": {os.fsdecode(path): os.fsdecode(text) for path, text in self._texts.items()},
            "tracked": list(map(os.fsdecode, self._tracked_and_ignored())),
            "nested": list(map(os.fsdecode, sorted(self.nested))),
            "include": list(self.settings.include),
            "exclude": list(self.settings.exclude),
            "max_file": self.settings.max_file,
        }
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> CoverageRules:
        """The rules from the result of `to_json`. Raises `StoreDamaged`."""
        try:
            document: dict[str, Any] = json.loads(data)
            settings = CoverageSettings(document["include"], document["max_file"], document["exclude"])
            if type(settings.max_file) not in (int, NoneType):
                raise ValueError("not a number of bytes")
            _level(settings.include)
            repository = GitRules.from_document(document["git"]) if document["git"] is not None else None
            texts = {os.fsencode(path): os.fsencode(text) for path, text in document["texts"].items()}
            rules = cls(settings, repository, texts)
            rules.nested = set(map(os.fsencode, document["nested"]))
            rules._tracked = TrackedPaths(sorted(map(os.fsencode, document["tracked"])))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StoreDamaged("The coverage rules of a checkpoint are damaged.") from None
        return rules


class DirectoryRules:
    """The rules for the names in one directory.

    `git` is the level of git's patterns, `None` below an ignored directory; `include` is that of `snapshot.include`,
    `None` below a directory that it names: everything there is covered.
    """

    __slots__ = ("_git", "_include", "_looked_into", "_path", "_prefix", "_rules")

    def __init__(self, rules: CoverageRules, path: bytes, level: Level | None, include: Level | None) -> None:
        self._rules = rules
        self._path = path
        self._prefix = path + b"/" if path else b""
        self._git = level
        self._include = include
        self._looked_into: set[bytes] = set()

    def entered(self) -> DirectoryRules:
        """The same with the .gitignore of this directory, if the rules know one."""
        if self._git is not None and self._rules.has_git and (text := self._rules.text(self._path)):
            self._git = self._git.extended(patterns(text, self._rules.ignore_case))
        return self

    def enter(self, descriptor: int, files: Collection[bytes], directories: Collection[bytes]) -> bool:
        """Read what the rules need from this directory, which is open and has these names.

        Returns whether it is covered: a nested repository is not.
        """
        if not self._rules.has_git or self._git is None or self._include is None:
            return True
        if self._path and (_GIT in directories or _GIT in files):
            path = os.path.join(self._rules.root, os.fsdecode(self._path), ".git")
            if not self._rules.tracked.has_below(self._path) and git.is_nested(path):
                self._rules.nested.add(self._path)
                self._rules.uncovered[self._path] = True
                return False
        if _GITIGNORE in files:
            text = git.read_file(".gitignore", LARGEST_TEXT, descriptor=descriptor)
            self._rules.met(self._path, text or b"")
            self.entered()
        return True

    def left_out(self, files: Collection[bytes], directories: Collection[bytes]) -> set[bytes]:
        """Those of the names in this directory that are not covered."""
        is_git = _GIT in files or _GIT in directories
        if self._include is None:
            return {_GIT} if is_git else set()
        ignored_names: set[bytes] = set()
        for names, are_directories in ((files, False), (directories, True)):
            if names and self._git is not None:
                candidates = select(
                    self._git, names, are_directories=are_directories, ignore_case=self._rules.ignore_case
                )
            else:
                candidates = set(names)
            if candidates:
                ignored_names |= {name for name in candidates if not self._is_kept(name, are_directories)}
        return ignored_names | {_GIT} if is_git else ignored_names

    def _is_kept(self, name: bytes, is_directory: bool) -> bool:
        """Whether something ignored is covered, or a directory is looked into because something in it is."""
        include, path, tracked = self._include, self._prefix + name, self._rules.tracked
        if include is None or include.ignored((name,), are_directories=is_directory):
            return True
        if not is_directory:
            return tracked.has(path)
        is_kept = tracked.has_below(path) or include.below(name).leads_on
        if is_kept:
            self._looked_into.add(name)
        return is_kept

    def below(self, name: bytes) -> DirectoryRules:
        """The rules for the names in the directory `name`, about which `left_out` was asked, and which is covered."""
        level, include = self._git, self._include
        if include is not None:
            if name in self._looked_into:
                level = None
            elif level is not None:
                level = level.below(name.lower() if self._rules.ignore_case else name)
            include = None if include.ignored((name,), are_directories=True) else include.below(name)
        return DirectoryRules(self._rules, self._prefix + name, level, include)

    def note(self, names: Iterable[bytes], directories: Collection[bytes]) -> None:
        """Remember names in this directory that a snapshot left out."""
        for name in names:
            if name != _GIT:
                self._rules.uncovered[self._prefix + name] = name in directories


def _level(lines: Sequence[str]) -> Level:
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return gitignore.level(patterns(text, False))


def read_rules(root: str, settings: CoverageSettings) -> CoverageRules:
    """The rules that hold in the directory `root` now, as far as they do not depend on the files in it."""
    state = read_git(root)
    rules = CoverageRules(settings, state.rules if state is not None else None, {})
    if state is not None:
        rules._tracked, rules.problem, rules.refused = state.tracked, state.problem, state.refused
    rules.root = root
    return rules


def hides_now(root: str, settings: CoverageSettings, path: bytes) -> bool:
    """Whether an existing file of the directory `root` is not covered at present. Sizes do not count.

    Only the directories above the file are read. Raises `OSError` if that is not possible.
    """
    rules = read_rules(root, settings)
    names, place = rules.top(), os.fsencode(root)
    *directories, name = path.split(b"/")
    for directory in (*directories, None):
        descriptor = os.open(place, atomic.OPEN_DIRECTORY)
        try:
            present = [name for name in (_GIT, _GITIGNORE) if _exists(descriptor, name)]
            if not names.enter(descriptor, present, ()):
                return True
        finally:
            os.close(descriptor)
        if directory is None:
            break
        if names.left_out((), (directory,)):
            return True
        names, place = names.below(directory), os.path.join(place, directory)
    return bool(names.left_out((name,), ()))


def _exists(descriptor: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


_walked: dict[str, CoverageRules] = {}


def remember(root: str, rules: CoverageRules) -> None:
    """Remember the rules of the last snapshot of a project, for `walked`."""
    _walked.clear()
    _walked[root] = rules


def walked(root: str, settings: CoverageSettings) -> CoverageRules | None:
    """The rules of the last snapshot in this process, if it was one of this directory with these settings."""
    rules = _walked.get(root)
    return rules if rules is not None and rules.settings == settings else None
