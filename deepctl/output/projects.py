"""The views of `deepctl projects`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from deepctl.domain.project_trust import TrustedFile
from deepctl.domain.projects import ProjectDescription
from deepctl.output.render import notice
from deepctl.output.text import Cell, home, is_terminal, print_sentence, table, visible
from deepctl.quantities import counted, size
from deepctl.store.projects import command_to_move


class ProjectListView(NamedTuple):
    profile: str
    projects: list[ProjectDescription]

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "projects": [project._asdict() for project in self.projects]}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.projects:
            notice(f"Profile {self.profile} has no projects; `deepctl chat -C DIR --user {self.profile}` starts one.")
            return
        rows = [_row_at_terminal(project) if terminal else _row(project) for project in self.projects]
        table(
            ("SESSIONS", "CHECKPOINTS", "SIZE", "STATE", "PROJECT"), rows, numbers=("SESSIONS", "CHECKPOINTS", "SIZE")
        )
        for project in self.projects:
            if project.moved_to is not None:
                command = command_to_move(self.profile, project.path, project.moved_to)
                notice(f"{project.path} may be {project.moved_to} now: `{command}`.")


def _row_at_terminal(project: ProjectDescription) -> tuple[str | Cell, ...]:
    state = Cell("missing", "bad") if not project.exists else Cell("trusted" if project.trusted else "", "good")
    path = home(project.path)
    return str(project.sessions), str(project.checkpoints), size(project.bytes), state, path


def _row(project: ProjectDescription) -> tuple[str, ...]:
    state = "missing" if not project.exists else "trusted" if project.trusted else "-"
    return project.path, str(project.sessions), str(project.checkpoints), str(project.bytes), state


class ProjectMoveView(NamedTuple):
    """`in_settings` is whether the setting `project` still names the old directory."""

    profile: str
    old: str
    new: str
    sessions: int
    in_settings: bool

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "old": self.old, "new": self.new, "sessions": self.sessions}

    def print(self) -> None:
        print_sentence(f"{counted(self.sessions, 'session')} of {visible(self.old)} now in {visible(self.new)}.")
        if self.in_settings:
            command = f"deepctl config set project {shlex.quote(self.new)} --user {self.profile}"
            notice(f"The setting project still names {self.old}: `{command}`.")


class ProjectForgetView(NamedTuple):
    """Forgetting a project, done or as a preview; `bytes` is the space that is freed."""

    profile: str
    dry_run: bool
    path: str
    sessions: Sequence[str]
    checkpoints: int
    labels: Sequence[str]
    bytes: int

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "path": self.path,
            "sessions": list(self.sessions),
            "checkpoints": self.checkpoints,
            "labels": list(self.labels),
            "bytes": self.bytes,
        }

    def _contents(self) -> str:
        labels = f" (labelled {', '.join(self.labels)})" if self.labels else ""
        names = f" ({', '.join(self.sessions)})" if self.sessions else ""
        return (
            f"{counted(len(self.sessions), 'session')}{names}, {counted(self.checkpoints, 'checkpoint')}{labels}, "
            f"{size(self.bytes)}"
        )

    def foretell(self) -> None:
        """Print on stderr, before a question, what would be deleted."""
        notice(f"Of {self.path} in profile {self.profile}: {self._contents()}.")
        notice("The directory itself does not change.")

    def print(self) -> None:
        verb = "Would forget" if self.dry_run else "Forgot"
        print_sentence(f"{verb} {visible(self.path)}: {self._contents()}.")


class ProjectTrustView(NamedTuple):
    """What of a project needs trust, and whether it is trusted now.

    `is_shown` means that the user has seen the list, `is_revoked` that the trust was withdrawn.
    """

    profile: str
    path: str
    files: Sequence[TrustedFile]
    trusted: bool
    is_shown: bool = False
    is_revoked: bool = False

    def document(self) -> dict[str, Any]:
        files = [{"path": file.path, "bytes": file.bytes} for file in self.files]
        return {"profile": self.profile, "path": self.path, "files": files, "trusted": self.trusted}

    def lines(self) -> list[str]:
        """The files, one a line."""
        return [f"  {visible(file.path)}  {size(file.bytes)}" for file in self.files]

    def print(self) -> None:
        path = visible(self.path)
        if self.is_revoked:
            print_sentence(f"Nothing in {path} is trusted any more.")
            return
        if not self.files:
            print_sentence(f"Nothing in {path} needs trust.")
            return
        if not self.is_shown:
            for line in self.lines():
                print(line)
        if self.trusted:
            print_sentence(f"{path} is trusted with {counted(len(self.files), 'file')}, until one changes.")
        else:
            print_sentence(f"{path} is not trusted, so the agent does not follow these files.")
