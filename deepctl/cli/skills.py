"""`deepctl skills`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import projects, session_choice, skills
from deepctl.domain.skills import Skill
from deepctl.output.render import Cell, is_terminal, notice, show, table
from deepctl.store import projects as stored

app = typer.Typer(
    help="Instructions with files that the agent loads when it needs them.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)


class SkillListView(NamedTuple):
    """The skills of a profile, used or not."""

    profile: str
    skills: Sequence[Skill]

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "skills": [_document(skill) for skill in self.skills]}

    def print(self) -> None:
        rows: list[tuple[str | Cell, ...]] = [
            (
                skill.name,
                Cell(skill.source, "faint"),
                skill.description if skill.problem is None else Cell(f"off: {skill.problem}", "bad"),
            )
            for skill in self.skills
        ]
        if rows:
            table(("SKILL", "SOURCE", "DESCRIPTION"), rows)
        if is_terminal(sys.stdout):
            notice("A skill is a directory with a SKILL.md: docs/extend.md." if rows else "There are no skills yet.")


def _document(skill: Skill) -> dict[str, Any]:
    document = {
        "name": skill.name,
        "source": skill.source,
        "description": skill.description,
        "enabled": skill.enabled,
        "path": os.path.join(skill.library, skill.name),
    }
    return document if skill.problem is None else {**document, "problem": skill.problem}


@app.callback()
def _group() -> None:
    # With a single command and no callback, Typer would make the command the group.
    pass


@app.command("list", epilog="Example: deepctl skills list --user alice")
def list_(
    user: options.User = None,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            "-C",
            metavar="DIR",
            help="List those of this project, too. Default: the setting project.",
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the skills of the profile, of all profiles, and of a project, and why one is off."""
    profile, in_force = options.profile_and_settings(user)
    root = options.root()
    path = projects.locate(project) if project is not None else session_choice.of_settings(in_force)
    if path:
        projects.check(root, path, os.environ, profile)
    stored_project = stored.by_path(profile, path) if path else None
    trusted = stored_project.trusted if stored_project is not None else ""
    libraries = skills.libraries(root, profile, path or None, trusted)
    show(SkillListView(profile.name, skills.read(libraries, in_force.patterns(skills.SETTING))), as_json)
