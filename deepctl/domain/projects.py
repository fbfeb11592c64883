"""Projects: which directories of the user an agent may work in, how large one is, and where searches look in it.

A project is a directory that the user names. deepctl writes nothing into it; its checkpoints are in the profile. So a
directory that contains the profile, or all files of the user, cannot be one.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.domain import project_trust
from deepctl.errors import DeepctlError, NotFound, Refused, UsageError
from deepctl.files import git_directories
from deepctl.files.atomic import OPEN_DIRECTORY
from deepctl.files.paths_beneath import is_within_on_disk
from deepctl.layout import ProfilePaths, Root
from deepctl.quantities import counted, size
from deepctl.store import coverage, session_catalogue
from deepctl.store import projects as stored
from deepctl.store.coverage import CoverageSettings, DirectoryRules, read_rules

MAX_FILES = 20_000
MAX_BYTES = 1 << 30
"""Files and bytes above which the first snapshot of a project needs a confirmation."""

_MARKERS = (
    *(".git", ".hg", ".jj", ".svn", "AGENTS.md", "CLAUDE.md", "CMakeLists.txt", "Cargo.toml", "Gemfile", "Makefile"),
    *("Package.swift", "build.gradle", "build.gradle.kts", "build.sbt", "composer.json", "deno.json", "go.mod"),
    *("meson.build", "mix.exs", "package.json", "pom.xml", "pubspec.yaml", "pyproject.toml", "setup.py"),
)
"""Names in a directory by which it looks like a project."""
_OF_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys"),
    *("/usr/bin", "/usr/include", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/local/bin"),
    *("/usr/local/lib", "/usr/sbin", "/usr/share", "/var/cache", "/var/lib", "/var/log", "/var/spool"),
)
"""Directories of the operating system (File System Hierarchy 3.0). Root owns them, so the check of the owner does not
refuse them to root. `/usr/src` and `/var/www` may have projects.
"""
_REMOVABLE = "/run/media"
"""Where desktops mount the disks of a user."""
_CHOOSE_ANOTHER = "Name a directory of your own, such as the clone of a repository."
_BELOW = "Name a directory in it."


def locate(directory: str, relative_to: str | None = None) -> str:
    """The real path of a directory that a user has named; `~` is the home directory. It need not exist.

    A relative path counts from the current directory, or from `relative_to`. Raises `UsageError`.
    """
    if not directory:
        raise UsageError("The directory of a project must not be empty.", "`-C .` is the current directory.")
    path = os.path.expanduser(directory)
    if path.startswith("~") and not os.path.lexists(path):
        name = path.partition("/")[0]
        raise UsageError(f"There is no user {name[1:]!r}, whose home directory {name} would be.")
    try:
        return os.path.realpath(os.path.join(relative_to if relative_to is not None else os.getcwd(), path))
    except FileNotFoundError:
        raise _missing(".", "The current directory was deleted. Name the project by its absolute path.") from None


def check(root: Root, path: str, environment: Mapping[str, str], profile: ProfilePaths | None = None) -> None:
    """Raise the error for a directory in which no agent may work; `path` is a real path.

    If it is a moved project of `profile`, the hint has the command for that.

    Raises `NotFound`, also if a link has taken its place since, `UsageError` if it is not a directory, and `Refused`.
    """
    user = profile.name if profile is not None else ""
    if (real_path := os.path.realpath(path)) != path:
        raise NotFound(
            f"{path} is no longer the directory of the project: a link leads to {real_path}.",
            f"If it was moved: `{stored.command_to_move(user, path, real_path)}`.",
            code="directory_not_found",
        )
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path, stored.hint_of_missing(profile, path) if profile is not None else None) from None
    except PermissionError:
        raise _refused(path, "you may not enter a directory above it", None, "project_not_writable") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(
            f"{path} is not a directory.",
            "A project is a directory. Name the one with the file.",
            code="not_a_directory",
        )
    if (problem := _of_place(root, path, environment)) is not None:
        raise problem
    if status.st_uid != os.geteuid():
        reason = f"it belongs to another user of this machine (uid {status.st_uid})"
        raise _refused(path, reason, _CHOOSE_ANOTHER, "project_not_owned")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        reason = f"you may not read and change it (mode {stat.S_IMODE(status.st_mode):04o})"
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            reason = "its file system is read-only"
        raise _refused(path, reason, None, "project_not_writable")
    if git_directories.looks_like_git({name.lower() for name in os.listdir(path)}):
        reason = "it is a git directory, which a rewind must not change"
        raise _refused(path, reason, "`git clone` makes a directory with the files.")


def _of_place(root: Root, path: str, environment: Mapping[str, str]) -> Refused | None:
    """The reason why a directory cannot be a project because of what it is, contains or lies in."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _refused(path, "its path is not UTF-8 text, so that the agent could not name it", _CHOOSE_ANOTHER)
    if path == "/":
        return _refused(path, "it is the root of the file system", _CHOOSE_ANOTHER)
    homes = list(_homes(environment))
    if (place := _of_system(path, homes)) is not None:
        relation = (
            "is" if path == place else f"contains {place}," if is_within_on_disk(place, path) else f"is in {place},"
        )
        return _refused(path, f"it {relation} a directory of the operating system", _CHOOSE_ANOTHER)
    if ".git" in path.lower().split("/"):
        return _refused(path, "it is in a .git, which a rewind must not change", "Name the directory with the .git.")
    for home in homes:
        if is_within_on_disk(home, path):
            is_home = is_within_on_disk(path, home)
            return _refused(path, "it is your home directory" if is_home else "it contains your home directory", _BELOW)
    own = os.path.realpath(root.path)
    if is_within_on_disk(path, own):
        return _refused(path, f"it is in {own}, where deepctl keeps its state", _CHOOSE_ANOTHER)
    if is_within_on_disk(own, path):
        return _refused(path, f"it contains {own}, where deepctl keeps its state", _BELOW)
    settings_file = layout.config_file(environment)
    directory = os.path.dirname(settings_file)
    if os.path.basename(directory) == "deepctl" and is_within_on_disk(path, directory):
        return _refused(path, f"{directory} has the settings of deepctl", _CHOOSE_ANOTHER)
    if is_within_on_disk(directory, path):
        return _refused(path, f"it contains the settings of deepctl, {settings_file}", _BELOW)
    return None


def _of_system(path: str, homes: Iterable[str]) -> str | None:
    """The directory of the operating system that `path` is, lies in or contains. A service may have its home in one."""
    own_places = [_REMOVABLE, *(home for home in homes if home not in ("/", *_OF_SYSTEM))]
    if any(path != own_place and is_within_on_disk(path, own_place) for own_place in own_places):
        return None
    return next(
        (place for place in _OF_SYSTEM if is_within_on_disk(path, place) or is_within_on_disk(place, path)), None
    )


def _homes(environment: Mapping[str, str]) -> Iterator[str]:
    """The home directories of the user: by `$HOME` and by the user database."""
    if os.path.isabs(home := environment.get("HOME", "")):
        yield os.path.realpath(home)
    try:
        yield os.path.realpath(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return


def _missing(path: str, hint: str | None = None) -> NotFound:
    return NotFound(f"There is no directory {path}.", hint or "Check the path.", code="directory_not_found")


def _refused(path: str, reason: str, hint: str | None, code: str = "project_refused") -> Refused:
    return Refused(f"{path} cannot be a project: {reason}.", hint, code=code)


def looks_like_one(root: Root, environment: Mapping[str, str]) -> str | None:
    """The current directory, if it looks like a project and can be one; otherwise `None`."""
    try:
        path = os.path.realpath(os.getcwd())
        if not any(os.path.lexists(os.path.join(path, name)) for name in _MARKERS):
            return None
        check(root, path, environment)
    except (DeepctlError, OSError):
        return None
    return path


def paths_of_all(root: Root) -> Iterator[str]:
    """The directories of the projects of all profiles, as far as they can be read."""
    with suppress(FileNotFoundError):
        for name in os.listdir(root.profiles):
            with suppress(DeepctlError, OSError):
                yield from (project.path for project in stored.read(root.profile(name)) if project.path)


class ProjectSize(NamedTuple):
    """Files and bytes of a project that checkpoints cover. `is_large` means that counting ended at a limit."""

    files: int
    bytes: int
    is_large: bool = False

    def __str__(self) -> str:
        if not self.is_large:
            return f"{counted(self.files, 'file')}, {size(self.bytes)}"
        return f"more than {counted(MAX_FILES, 'file')}" if self.files > MAX_FILES else f"more than {size(MAX_BYTES)}"


def measure(sizes: Iterable[int]) -> ProjectSize:
    """Count files by their `sizes`, until there are more than `MAX_FILES` of them or more than `MAX_BYTES`."""
    files = total = 0
    for number in sizes:
        files, total = files + 1, total + number
        if files > MAX_FILES or total > MAX_BYTES:
            return ProjectSize(files, total, True)
    return ProjectSize(files, total)


def covered_sizes(path: str, settings: CoverageSettings) -> Iterator[int]:
    """The sizes of the files of a project that a checkpoint covers, one by one.

    Not by `paths_beneath.walk`: the rules of a directory need all of its names. Directories that cannot be read have no
    files.
    """
    pending = [(os.fsencode(path), coverage.read_rules(path, settings).top())]
    while pending:
        directory, rules = pending.pop()
        try:
            descriptor = os.open(directory, OPEN_DIRECTORY)
        except OSError:
            continue
        try:
            with os.scandir(descriptor) as entries:
                entry_by_name = {os.fsencode(entry.name): entry for entry in entries}
            directories = {name for name, entry in entry_by_name.items() if entry.is_dir(follow_symlinks=False)}
            files = entry_by_name.keys() - directories
            if not rules.enter(descriptor, files, directories):
                continue
            left_out = rules.left_out(files, directories)
            for name in files - left_out:
                status = entry_by_name[name].stat(follow_symlinks=False)
                if settings.max_file is None or status.st_size <= settings.max_file:
                    yield status.st_size
            pending += [(os.path.join(directory, name), rules.below(name)) for name in directories - left_out]
        except OSError:
            continue
        finally:
            os.close(descriptor)


class ProjectDescription(NamedTuple):
    """One project as lists show it. `bytes` are those that its checkpoints added to the profile.

    `trusted` means that skills and commands in it are in force. `moved_to` is a directory that may be the project, if
    its own is missing.
    """

    path: str
    sessions: int
    checkpoints: int
    bytes: int
    exists: bool
    trusted: bool
    moved_to: str | None


def describe_all(profile: ProfilePaths) -> list[ProjectDescription]:
    """The projects of a profile, in the order of their first use. Raises `Damaged` if the ledger cannot be read."""
    projects = stored.read(profile)
    sessions = Counter(project for _, project in _projects_of_sessions(profile))
    checkpoints, added_bytes = Counter[str](), Counter[str]()
    for record in session_catalogue.read_ledger(profile).records.values() if projects else ():
        checkpoints[record.project] += 1
        added_bytes[record.project] += record.added_bytes
    return [
        ProjectDescription(
            project.path,
            sessions[project.id],
            checkpoints[project.id],
            added_bytes[project.id],
            stored.is_available(project.path),
            project_trust.is_trusted(project.path, project.trusted),
            stored.moved_to(project, projects),
        )
        for project in projects
    ]


def sessions_of(profile: ProfilePaths, project: str) -> list[str]:
    """The names of the sessions of a project, by its id."""
    return [name for name, identity in _projects_of_sessions(profile) if identity == project]


def _projects_of_sessions(profile: ProfilePaths) -> Iterator[tuple[str, str]]:
    """The names of the readable sessions in projects, and the ids of these."""
    for name in session_catalogue.all_names(profile):
        try:
            session = session_catalogue.find(profile, name)
        except DeepctlError:
            continue
        if session.project is not None:
            yield name, session.project.id


_MOST_DEPTH = 200
_MOST_NAMES = 200
"""Directory names that are passed to a search program."""


class SearchScope(NamedTuple):
    """What a search below the directory `base` leaves out. Paths are relative to the project."""

    base: str = ""
    left_out: frozenset[str] = frozenset()
    directory_names: tuple[str, ...] = ()
    """Names that only left out directories have."""

    def covers(self, path: str) -> bool:
        """Whether a path below `base`, relative to it, is part of the search."""
        if not self.left_out:
            return True
        parts = [part for part in f"{self.base}/{path}".split("/") if part not in ("", ".")]
        return not any("/".join(parts[:count]) in self.left_out for count in range(1, len(parts) + 1))


WHOLE_PROJECT = SearchScope()


def search_scope(root: str, where: str) -> SearchScope:
    """The scope of a search in the project `root` below `where`, a path relative to it, empty for the project itself.

    What git ignores is left out, unless the search names it: a search of a project covers what git would list. A
    directory that is left out is not entered, as far as its name alone tells it from the others: `find` and `grep`
    compare names and not paths. The results are filtered by path.

    A search in a directory that is left out, or for such a file, covers everything there. Raises `OSError`.
    """
    way = [part for part in where.split("/") if part not in ("", ".")]
    walk = _SearchWalk(root, way)
    rules = read_rules(root, CoverageSettings())
    rules.root = root
    if not walk.directory("", rules.top(), 0):
        return WHOLE_PROJECT
    names = walk.left_out_names - walk.names
    return SearchScope("/".join(way), frozenset(walk.left_out), tuple(sorted(names)[:_MOST_NAMES]))


class _SearchWalk:
    """A walk over the directories of a project: those on the way to a search, and all below it."""

    def __init__(self, root: str, way: list[str]) -> None:
        self._root = root
        self._way = way
        self.left_out: set[str] = set()
        self.left_out_names: set[str] = set()
        self.names: set[str] = set()

    def directory(self, path: str, rules: DirectoryRules, depth: int) -> bool:
        """Look at a directory and what is below it; returns whether the search is in nothing that is left out."""
        descriptor = os.open(os.path.join(self._root, path), OPEN_DIRECTORY)
        try:
            files: list[bytes] = []
            directories: list[bytes] = []
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    (directories if entry.is_dir(follow_symlinks=False) else files).append(os.fsencode(entry.name))
            if not rules.enter(descriptor, files, directories):
                return self._leave_out(path, depth)
            left_out_names = rules.left_out(files, directories)
        finally:
            os.close(descriptor)
        prefix = f"{path}/" if path else ""
        is_on_way = depth < len(self._way)
        if is_on_way and os.fsencode(self._way[depth]) in left_out_names:
            return False
        if not is_on_way:
            self.left_out |= {prefix + os.fsdecode(name) for name in left_out_names}
            self.left_out_names |= {os.fsdecode(name) for name in left_out_names.intersection(directories)}
        for name in directories:
            text = os.fsdecode(name)
            if name in left_out_names or (is_on_way and text != self._way[depth]):
                continue
            self.names.add(text)
            if depth < _MOST_DEPTH:
                # It can be unreadable, or gone; the search says so itself.
                with suppress(OSError):
                    if not self.directory(prefix + text, rules.below(name), depth + 1):
                        return False
        return True

    def _leave_out(self, path: str, depth: int) -> bool:
        """Leave out a nested repository; a search in it covers everything there."""
        self.left_out.add(path)
        return depth > len(self._way)
