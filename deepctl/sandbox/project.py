"""What commands may change: the mounts of a project, of its git directories, and of protected files.

The project is writable. On top of it lie mounts of single files and directories that are read-only: protected files,
and the parts of a git directory from which git runs programs. A file that does not exist yet gets a placeholder, so
that a command cannot create it. Every directory between two mounts is a mount of its own, because the kernel refuses to
rename a mount point, but not a directory that contains one.

The git directory of a linked worktree or of a submodule lies outside of the project. It is mounted only if it names the
project in turn: a `.git` file alone can name any directory of the user.

A symbolic link cannot be mounted on. `ProjectLayout.links` has those that commands could replace; `restore_links` puts
them back.

A person who runs git in a workspace runs the hooks in there, and the programs that the settings name. So `CommandGuard`
looks at the directories before and after a command, and sets aside what a sandboxed command left for git
(`deepctl.files.git_directories`). In a project, the settings and hooks of the project itself are read-only for
commands, so a change of them is the user's own, and stays.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from deepctl.files import git_directories, git_settings, placeholders
from deepctl.files.git_directories import ASIDE, Addition, GitSurvey
from deepctl.files.paths_beneath import is_within
from deepctl.files.placeholders import Placeholder
from deepctl.layout import HOME_DIRECTORY
from deepctl.sandbox.policy import CACHE_MOUNT, MOUNT, PROFILE_MOUNT, SKILLS_MOUNT, ProjectMounts, Unavailable
from deepctl.sandbox.read_only import Bind

_SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/tmp")
_SYSTEM_PLACES = (*_SYSTEM, "/usr", "/usr/bin", "/var", "/var/tmp")
_OWN_PLACES = (PROFILE_MOUNT, CACHE_MOUNT, SKILLS_MOUNT)

_GIT_FILES = ("config", "config.worktree", "info/attributes")
_WORKTREE_FILES = ("gitdir", "commondir", "config.worktree")
_MOST_BYTES = 1 << 20
_MOST_LINKS = 40
_MOST_MODULES = 200
"""Submodules whose git directories are writable: bwrap takes 9,000 arguments. Those of further ones are read-only."""
_MOST_WORKTREES = 200
"""Linked worktrees that are protected from pruning."""
_MOST_DIRECTORIES = 10_000
"""Directories in which submodules are searched."""

CACHE_VARIABLES: Mapping[str, str] = {
    "XDG_CACHE_HOME": "",
    "BUN_INSTALL_CACHE_DIR": "bun",
    "BUNDLE_USER_CACHE": "bundle",
    "CARGO_HOME": "cargo",
    "COMPOSER_CACHE_DIR": "composer",
    "GOCACHE": "go-build",
    "GOPATH": "go",
    "GRADLE_USER_HOME": "gradle",
    "NUGET_PACKAGES": "nuget",
    "PIP_CACHE_DIR": "pip",
    "UV_CACHE_DIR": "uv",
    "YARN_CACHE_FOLDER": "yarn",
    "npm_config_cache": "npm",
    "npm_config_store_dir": "pnpm",
}
"""Variables by which package managers find their caches, and a directory for each among the package caches."""

_SET_ASIDE = (
    "deepctl: this command left settings from which git would run programs. They were moved to files called "
    f"…{ASIDE} (docs/isolation.md): "
)
_LEFT = (
    "deepctl: unsandboxed git runs programs from settings that this line left. They stay, because you typed the "
    "line (docs/isolation.md): "
)
_MOST_NAMED = 20

_READ_ONLY_SETTINGS = (
    "deepctl: the settings and hooks of this repository are read-only for commands (docs/isolation.md). The user can "
    "change them in a terminal outside of deepctl.\n"
)
_PROTECTED = (
    "deepctl: commands cannot change or create this protected path (the setting `protected`, docs/isolation.md): "
)
_REFUSALS = (
    *("Read-only file system", "Device or resource busy", "Is a directory", "File exists", "Permission denied"),
    *("cannot overwrite", "Directory not empty", "Not a directory"),
)
_GIT_REFUSED = re.compile(
    r"could not (?:lock|write) config file"
    r"|(?:^|[\s/'\"\u2018])\.git/(?:\S*/)?(?:config|hooks|info|modules)\b"
    r"|(?:^|[\s'\"\u2018])(?:config|hooks)['/:\u2019]"
)
"""The settings and hooks in messages of git, shells and coreutils, which have typographic quotation marks."""
_MISSING_PROGRAM = re.compile(
    r"([^\s:'\"\u2018\u2019]+)['\u2019]?: "
    r"(?:(?:command )?not found|No such file|bad interpreter|cannot execute: required file)"
)
"""A program that a shell, or make, did not find."""
_VENVS = (".venv", "venv")
_PROGRAM_PLACES = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr")
_MOST_PROGRAMS = 5
"""Missing programs that are looked at after a command."""
_MOST_TEXT = 256 << 10
"""Characters of the output that are searched for refusals."""


class ProjectLayout(NamedTuple):
    """The mounts of a project at one moment, those of parents first."""

    root: str
    binds: tuple[Bind, ...]
    missing: tuple[Placeholder, ...]
    """What has to be created before the mounts are made."""
    links: Mapping[str, str]
    """Protected symbolic links, and what they lead to."""
    git: tuple[str, ...]
    """The git directories outside of the project that commands can change."""
    has_git: bool = False
    """Whether commands see a git directory of the project."""

    @property
    def read_only(self) -> list[str]:
        return [bind.target for bind in self.binds if not bind.writable]


def check(project: ProjectMounts) -> None:
    """Raise `Unavailable` for a project at a path that means something else to commands."""
    for place in (*_SYSTEM_PLACES, *_OWN_PLACES):
        if is_within(place, project.root) or (place in _OWN_PLACES and is_within(project.root, place)):
            raise Unavailable(
                f"{place} has a meaning of its own for commands, so they cannot work in {project.root}",
                "Work in another directory, or use --sandbox none.",
            )
    for path in project.protected:
        if ".." in path.split("/"):
            raise Unavailable(f"the protected path {path!r} leads out of the project", "Use a path in the project.")


def prepare(project: ProjectMounts) -> None:
    """Check a project before its first command, and remove what a killed deepctl left in it. Raises `Unavailable`."""
    check(project)
    if os.path.isdir(project.root):
        placeholders.remove_left(layout(project).missing)


def has_alias(root: str) -> bool:
    """Whether `/workspace` can be another name of the project `root`: not if it contains it."""
    return not is_within(root, MOUNT)


def variables(project: ProjectMounts) -> dict[str, str]:
    """The variables of commands in a project, in addition to those of every command."""
    return {
        "HOME": f"{PROFILE_MOUNT}/{HOME_DIRECTORY}",
        # A branch that follows another one would be a setting, which a command cannot save.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "branch.autoSetupMerge",
        "GIT_CONFIG_VALUE_0": "false",
        **(cache_variables(CACHE_MOUNT) if project.cache is not None else {}),
    }


def unsandboxed_cache(project: ProjectMounts) -> str | None:
    """The directory of package caches of unsandboxed commands.

    It is another one: package managers run and obey what they find there, and sandboxed commands can write anything.
    """
    return f"{project.cache}-unsandboxed" if project.cache is not None else None


def cache_variables(directory: str) -> dict[str, str]:
    """The variables that have package managers keep their caches in `directory`."""
    places = {name: os.path.join(directory, place) if place else directory for name, place in CACHE_VARIABLES.items()}
    # A Python that uv downloads exists only in the sandbox, and so would the virtual environments made with it.
    return {**places, "UV_PYTHON_PREFERENCE": "system"}


@contextmanager
def mounted(project: ProjectMounts) -> Iterator[ProjectLayout]:
    """The mounts of a project, as they are needed now; afterwards, placeholders are gone and links are back.

    Raises `OSError`.
    """
    if project.cache is not None:
        os.makedirs(project.cache, mode=0o700, exist_ok=True)
    now = layout(project)
    with placeholders.held(now.missing):
        try:
            yield now
        finally:
            restore_links(now)


def layout(project: ProjectMounts) -> ProjectLayout:
    """The mounts of a project. Creates nothing."""
    mounts = _Mounts(project.root)
    mounts.add(project.root, True)
    place = git_place(project.root)
    outside = []
    if place is not None:
        _protect_git(mounts, place)
        outside = [path for path in (place.common, place.own) if not is_within(path, project.root)]
    pointer = os.path.join(project.root, ".git")
    if os.path.lexists(pointer) and (os.path.islink(pointer) or not os.path.isdir(pointer)):
        mounts.protect(project.root, ".git", is_directory=False)
    for name in project.protected:
        mounts.protect(project.root, name.rstrip("/"), is_directory=True)
    binds = [Bind(path, path, writable) for path, writable in mounts.writable.items()]
    binds.sort(key=lambda bind: bind.target.count("/"))
    binds.append(Bind(project.workspace, PROFILE_MOUNT))
    if project.cache is not None:
        binds.append(Bind(project.cache, CACHE_MOUNT))
    return ProjectLayout(
        project.root,
        tuple(binds),
        tuple(mounts.missing),
        mounts.links,
        tuple(dict.fromkeys(outside)),
        place is not None,
    )


def doubled(now: ProjectLayout) -> tuple[Bind, ...]:
    """The mounts, with every one in the project a second time below `/workspace`, where a link is impossible."""
    if not has_alias(now.root):
        return now.binds
    inside = [bind for bind in now.binds if is_within(bind.target, now.root)]
    return (*now.binds, *(bind._replace(target=MOUNT + bind.target[len(now.root) :]) for bind in inside))


def file_identities(now: ProjectLayout) -> dict[str, tuple[int, int] | None]:
    """The file at each read-only path. If somebody puts another file there, the mount on the first one is gone."""
    statuses = {path: _lstat(path) for path in now.read_only}
    missing = {placeholder.path for placeholder in now.missing}
    return {
        path: (status.st_dev, status.st_ino) if status is not None and path not in missing else None
        for path, status in statuses.items()
    }


def restore_links(before: ProjectLayout) -> None:
    """Put back protected links that a command replaced; the replacement is kept beside it as `NAME.disabled`."""
    for path, target in before.links.items():
        git_directories.restore_link(path, target)


class _Mounts:
    """The mounts of this machine's files under their own paths, while they are collected."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.writable: dict[str, bool] = {}
        self.missing: list[Placeholder] = []
        self.links: dict[str, str] = {}
        self.modules = 0

    def add(self, path: str, writable: bool) -> None:
        self.writable[path] = self.writable.get(path, True) and writable

    def protect(self, base: str, relative: str, *, is_directory: bool, contents_only: bool = False) -> None:
        """Make a path below `base`, a mount, read-only. `is_directory` is the kind of a placeholder.

        With `contents_only` the path stays writable and only becomes a mount.
        """
        path = base
        parts = [part for part in relative.split("/") if part]
        for number, part in enumerate(parts, 1):
            path = os.path.join(path, part)
            is_last = number == len(parts)
            status = _lstat(path)
            if self.writable.get(path) is False:
                return
            if status is None and _is_closed(os.path.dirname(path)):
                return
            if status is None or placeholders.is_placeholder(status):
                self.missing.append(Placeholder(path, is_directory or not is_last))
                self.add(path, False)
                return
            if stat.S_ISLNK(status.st_mode):
                self._protect_link(path, "/".join(parts[number:]), is_directory)
                return
            is_directory_now = stat.S_ISDIR(status.st_mode)
            self.add(path, (contents_only or not is_last) and is_directory_now)
            if not is_directory_now:
                return

    def _protect_link(self, path: str, rest: str, is_directory: bool) -> None:
        if path in self.links or len(self.links) >= _MOST_LINKS:
            return
        self.links[path] = os.readlink(path)
        real = os.path.realpath(path)
        for base in sorted(self.writable, key=len, reverse=True):
            if real != base and is_within(real, base):
                self.protect(base, os.path.join(os.path.relpath(real, base), rest), is_directory=is_directory)
                return


class GitPlace(NamedTuple):
    """The git directory of a project, and the one that it shares with other working trees; the same without those."""

    own: str
    common: str


def git_place(root: str) -> GitPlace | None:
    """The git directory of the project `root`; `None` if there is none that commands may see."""
    path = os.path.join(root, ".git")
    status = _lstat(path)
    if status is None:
        return None
    if stat.S_ISREG(status.st_mode):
        return _named_place(root, path)
    directory = os.path.realpath(path)
    if not os.path.isdir(directory) or not is_within(directory, root):
        return None
    return GitPlace(directory, directory)


def _named_place(root: str, path: str) -> GitPlace | None:
    """The git directory that a `.git` file names, if it is in the project, or names the project."""
    target = _text(path)
    if target is None or not target.startswith("gitdir: "):
        return None
    own = os.path.realpath(os.path.join(root, target.removeprefix("gitdir: ").rstrip("\r\n")))
    if not os.path.isdir(own):
        return None
    if is_within(own, root):
        return GitPlace(own, own)
    if not _is_own(own):
        return None
    shared = _text(os.path.join(own, "commondir"))
    if shared is not None:
        common = os.path.realpath(os.path.join(own, shared.rstrip("\r\n")))
        back = _text(os.path.join(own, "gitdir")) or ""
        is_linked = (
            os.path.dirname(own) == os.path.join(common, "worktrees")
            and os.path.realpath(os.path.join(own, back.rstrip("\r\n"))) == path
            and _is_repository(common)
        )
        return GitPlace(own, common) if is_linked else None
    if _is_repository(own) and _worktree_of(own) == root:
        return GitPlace(own, own)
    return None


def _is_repository(directory: str) -> bool:
    try:
        return _is_own(directory) and git_directories.looks_like_git({name.lower() for name in os.listdir(directory)})
    except OSError:
        return False


def _worktree_of(directory: str) -> str | None:
    """The working tree that a git directory names in its settings, as that of a submodule does."""
    text = _text(os.path.join(directory, "config"))
    worktree = None
    for setting in git_settings.parse_settings(text or ""):
        if setting.name == "core.worktree" and setting.value:
            worktree = os.path.realpath(os.path.join(directory, setting.value))
    return worktree


def _protect_git(mounts: _Mounts, place: GitPlace) -> None:
    own, common = place
    if is_within(common, mounts.root):
        mounts.protect(mounts.root, os.path.relpath(common, mounts.root), is_directory=True, contents_only=True)
    else:
        mounts.add(common, True)
    _protect_repository(mounts, common)
    if own != common:
        relative = os.path.relpath(own, common)
        for name in _WORKTREE_FILES:
            mounts.protect(common, f"{relative}/{name}", is_directory=False)
    for name in _hidden_worktrees(mounts.root, place):
        mounts.protect(common, f"worktrees/{name}/locked", is_directory=False)


def _hidden_worktrees(root: str, place: GitPlace) -> Iterator[str]:
    """The names of linked worktrees outside of the project `root`, which exist although commands do not see them.

    `git worktree prune`, which `git gc` runs, would delete their index and HEAD, unless they have a file `locked`.
    """
    directory = os.path.join(place.common, "worktrees")
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return
    for name in names[:_MOST_WORKTREES]:
        own = os.path.join(directory, name)
        pointer = (_text(os.path.join(own, "gitdir")) or "").rstrip("\r\n")
        tree = os.path.realpath(os.path.dirname(os.path.join(own, pointer)))
        if pointer and own != place.own and os.path.isdir(tree) and not is_within(tree, root):
            yield name


def _protect_repository(mounts: _Mounts, directory: str) -> None:
    """Protect the settings and hooks of a git directory, and those of its submodules. No new ones can be added."""
    for name in _GIT_FILES:
        mounts.protect(directory, name, is_directory=False)
    mounts.protect(directory, "hooks", is_directory=True)
    modules = os.path.join(directory, "modules")
    inner = list(_modules(modules, _MOST_MODULES - mounts.modules))
    mounts.modules += len(inner)
    mounts.protect(directory, "modules", is_directory=True)
    for module in inner:
        mounts.add(module, True)
        _protect_repository(mounts, module)


def _modules(directory: str, most: int) -> Iterator[str]:
    """The git directories of submodules below `directory`, whose names may contain slashes."""
    pending, looked, count = [directory], 0, 0
    while pending and looked < _MOST_DIRECTORIES and count < most:
        looked += 1
        try:
            with os.scandir(pending.pop()) as entries:
                children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        for child in sorted(children):
            if os.path.lexists(os.path.join(child, "HEAD")):
                count += 1
                if count <= most:
                    yield child
            else:
                pending.append(child)


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _text(path: str) -> str | None:
    """The text of a small regular file; `None` for anything else. A FIFO does not block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = file.read(_MOST_BYTES)
    return None if b"\0" in content else os.fsdecode(content)


def _is_closed(directory: str) -> bool:
    """Whether the user, and so a command, cannot create anything in a directory, nor change that."""
    return not os.access(directory, os.W_OK) and not _is_own(directory)


def _is_own(directory: str) -> bool:
    return os.stat(directory).st_uid == os.geteuid()


class BeforeCommand(NamedTuple):
    """The state of the directories before a command."""

    surveys: Sequence[GitSurvey]
    layout: ProjectLayout | None
    files: Mapping[str, tuple[int, int] | None]
    """The files at the read-only paths of `layout`."""


class CommandGuard:
    """Looks at the directories of a backend before and after every command.

    `confined` is whether commands run in a sandbox. Nothing is set aside after a command that `by_user` typed.
    """

    def __init__(self, root: str, project: ProjectMounts | None, *, confined: bool, by_user: bool) -> None:
        self._root = root
        self._project = project
        self._confined = confined
        self._by_user = by_user
        self._created: dict[str, None] = {}

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look at: unsandboxed commands have the user's rights."""
        return not self._confined and self._project is None

    def before(self) -> BeforeCommand:
        """The state now."""
        if self._project is None:
            return BeforeCommand([git_directories.survey(self._root, MOUNT)], None, {})
        mounts = layout(self._project)
        if not self._confined:
            # Only the repositories are of interest.
            return BeforeCommand([GitSurvey(self._root, MOUNT, {}, set(), _repositories(self._root))], None, {})
        places = [(self._root, MOUNT), (self._project.workspace, PROFILE_MOUNT), *((path, path) for path in mounts.git)]
        surveys = [git_directories.survey(*place) for place in places]
        return BeforeCommand(surveys, mounts, file_identities(mounts))

    def after(self, before: BeforeCommand, output: str) -> str:
        """Set aside what the command left for git; a notice about that and about refusals, which may be empty.

        `output` is that of the command. Raises `OSError`.
        """
        read_only: list[str] = []
        if before.layout is not None:
            # The mount on a file ends when the user replaces the file, and the command can write to the new one.
            files = file_identities(before.layout)
            read_only = [path for path in before.layout.read_only if files[path] == before.files[path]]
        notices = [self._look(survey, read_only) for survey in before.surveys]
        if before.layout is not None and self._project is not None:
            notices.append(_refusals_in(self._project, before.layout, output[-_MOST_TEXT:]))
            notices.append(_hidden_programs(before.layout, output[-_MOST_TEXT:]))
        return "".join(notices)

    def take_created(self) -> list[str]:
        """The nested repositories that commands of a project created since the last call, and that still exist.

        Paths are relative to the project. The one of the project itself is ".".
        """
        created, self._created = self._created, {}
        return [path for path in created if os.path.isdir(os.path.join(self._root, path))]

    def _look(self, before: GitSurvey, read_only: Sequence[str]) -> str:
        now = git_directories.paths(before.root, before.mount)
        if self._project is not None and before.root == self._root:
            new = (os.path.relpath(path, self._root) for path in sorted(now.repositories - before.repositories))
            # Those of submodules and worktrees lie in the git directory; their working trees are named.
            self._created |= dict.fromkeys(path for path in new if ".git" not in path.split("/"))
        if not self._confined:
            return ""
        additions = [
            addition
            for addition in git_directories.additions(before, now)
            if not any(addition.path == path or addition.path.startswith(f"{path}/") for path in read_only)
        ]
        return self._disarm(before, additions) if additions else ""

    def _disarm(self, before: GitSurvey, additions: Sequence[Addition]) -> str:
        """Set aside the files that a command left for git, unless a person typed the command. Returns a notice."""
        if not self._by_user:
            git_directories.set_aside(additions)
        descriptions = git_directories.describe(before, additions)
        remainder = [f"and {len(descriptions) - _MOST_NAMED:,} more"] if len(descriptions) > _MOST_NAMED else []
        return f"{_LEFT if self._by_user else _SET_ASIDE}{'; '.join([*descriptions[:_MOST_NAMED], *remainder])}\n"


def _repositories(root: str) -> frozenset[str]:
    return git_directories.paths(root, MOUNT).repositories


def _refusals_in(project: ProjectMounts, layout: ProjectLayout, output: str) -> str:
    """Lines about the read-only files that a command tried to change, from the errors in its output."""
    refusals = [line for line in output.splitlines() if any(words in line for words in _REFUSALS)]
    if not refusals:
        return ""
    lines = []
    if layout.has_git and any(_GIT_REFUSED.search(line) for line in refusals):
        lines.append(_READ_ONLY_SETTINGS)
    names = [name.rstrip("/") for name in project.protected]
    protected_names = [name for name in names if any(_names(line, name) for line in refusals)]
    if protected_names:
        lines.append(f"{_PROTECTED}{', '.join(protected_names)}\n")
    return "".join(lines)


def _hidden_programs(layout: ProjectLayout, output: str) -> str:
    """A line about a program that a command did not find, because a link in the project leads to a hidden place.

    Only links in places that commands see are read, so the line says nothing that a command could not find out.
    """
    names = dict.fromkeys(match[1] for match in _MISSING_PROGRAM.finditer(output))
    for name in list(names)[-_MOST_PROGRAMS:]:
        places = [name] if "/" in name else [f"{venv}/bin/{name}" for venv in _VENVS]
        for place in places:
            if place.startswith(f"{MOUNT}/") and has_alias(layout.root):
                place = place.removeprefix(f"{MOUNT}/")
            link = _hidden_link(layout, os.path.join(layout.root, place))
            if link is not None:
                path, target = link
                return (
                    f"deepctl: {os.path.relpath(path, layout.root)} leads to {target}, which commands do not see. The "
                    f"user can add {os.path.dirname(os.path.dirname(target))} to the setting `read_only_paths` "
                    "(docs/sandbox.md).\n"
                )
    return ""


def _hidden_link(layout: ProjectLayout, program: str) -> tuple[str, str] | None:
    """The link of the project on the way to a program that leads to a place hidden from commands, and that place."""
    path = os.path.normpath(program)
    for _ in range(_MOST_LINKS):
        if not is_within(path, layout.root):
            return None
        status = _lstat(path)
        if status is None:
            return None
        if stat.S_ISLNK(status.st_mode):
            target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
        else:
            # A script of a virtual environment names its interpreter in the first line.
            first_line = (_text(path) or "").partition("\n")[0]
            target = first_line.removeprefix("#!").strip().split(" ")[0] if first_line.startswith("#!/") else ""
        if not target:
            return None
        shown_places = [*_PROGRAM_PLACES, *_OWN_PLACES, *(bind.target for bind in layout.binds)]
        if not any(is_within(target, place) for place in shown_places):
            return path, target
        path = target
    return None


def _names(line: str, path: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", line) is not None
