"""What is looked at before and after a command: what it left for git, and why it could not change a file.

A person who runs git in a workspace runs the hooks in there, and the programs that the settings name. So what a
sandboxed command left there is set aside (`deepctl.files.git_directories`). In a project, the settings and hooks of the
project itself are read-only for commands, so a change of them is the user's own, and stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deepctl.files import git_directories
from deepctl.files.git_directories import ASIDE, Addition, GitSurvey
from deepctl.sandbox import project as projects
from deepctl.sandbox.policy import MOUNT, PROFILE_MOUNT, ProjectMounts
from deepctl.sandbox.project import ProjectLayout

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
_MOST_TEXT = 256 << 10
"""Characters of the output that are searched for refusals."""


class Before(NamedTuple):
    """The state before a command."""

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

    def before(self) -> Before:
        """The state now."""
        if self._project is None:
            return Before([git_directories.survey(self._root, MOUNT)], None, {})
        layout = projects.layout(self._project)
        if not self._confined:
            # Only the repositories are of interest.
            return Before([GitSurvey(self._root, MOUNT, {}, set(), _repositories(self._root))], None, {})
        places = [(self._root, MOUNT), (self._project.workspace, PROFILE_MOUNT), *((path, path) for path in layout.git)]
        surveys = [git_directories.survey(*place) for place in places]
        return Before(surveys, layout, projects.file_identities(layout))

    def after(self, before: Before, printed: str) -> str:
        """Set aside what the command left for git; a notice about that and about refusals, which may be empty.

        `printed` is the output of the command. Raises `OSError`.
        """
        read_only: list[str] = []
        if before.layout is not None:
            # The mount on a file ends when the user replaces the file, and the command can write to the new one.
            files = projects.file_identities(before.layout)
            read_only = [path for path in before.layout.read_only if files[path] == before.files[path]]
        notices = [self._look(survey, read_only) for survey in before.surveys]
        if before.layout is not None and self._project is not None:
            notices.append(refusals(self._project, before.layout, printed[-_MOST_TEXT:]))
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
        left = [
            addition
            for addition in git_directories.additions(before, now)
            if not any(addition.path == path or addition.path.startswith(f"{path}/") for path in read_only)
        ]
        return self._disarm(before, left) if left else ""

    def _disarm(self, before: GitSurvey, left: Sequence[Addition]) -> str:
        """Set aside the files that a command left for git, unless a person typed the command. Returns a notice."""
        if not self._by_user:
            git_directories.set_aside(left)
        descriptions = git_directories.describe(before, left)
        remainder = [f"and {len(descriptions) - _MOST_NAMED:,} more"] if len(descriptions) > _MOST_NAMED else []
        return f"{_LEFT if self._by_user else _SET_ASIDE}{'; '.join([*descriptions[:_MOST_NAMED], *remainder])}\n"


def _repositories(root: str) -> frozenset[str]:
    return git_directories.paths(root, MOUNT).repositories


def refusals(project: ProjectMounts, layout: ProjectLayout, printed: str) -> str:
    """Lines about the read-only files that a command tried to change, from the errors in its output."""
    refused = [line for line in printed.splitlines() if any(words in line for words in _REFUSALS)]
    if not refused:
        return ""
    lines = []
    if layout.has_git and any(_GIT_REFUSED.search(line) for line in refused):
        lines.append(_READ_ONLY_SETTINGS)
    names = [name.rstrip("/") for name in project.protected]
    named = [name for name in names if any(_names(line, name) for line in refused)]
    if named:
        lines.append(f"{_PROTECTED}{', '.join(named)}\n")
    return "".join(lines)


def _names(line: str, path: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", line) is not None
