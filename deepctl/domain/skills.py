"""Skills: instructions for a kind of work, with files, that an agent loads when it needs them.

A skill is a directory `skills/NAME` with the file `SKILL.md`: front matter with `name` and `description`, then the
instructions as Markdown. The other files of the directory are for the agent to read or to run. The form is that of the
Agent Skills specification (https://agentskills.io).

Skills are those of the profile, of the root, and of a project whose content the user trusts. Of several with one name,
the first one counts. No link is followed to a skill or in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from deepctl.domain import front_matter, project_trust
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.layout import ProfilePaths, Root
from deepctl.quantities import size
from deepctl.unicode import one_line, whole

DIRECTORY = project_trust.SKILLS
SKILL_FILE = project_trust.SKILL_FILE
PROJECT_DIRECTORIES = (*(f"{owner}/{DIRECTORY}" for owner in project_trust.OWNERS), DIRECTORY)
"""The directories of a project with skills, the one with the highest priority first."""
MAX_BYTES = 128 << 10
"""Bytes of the largest SKILL.md: its text becomes part of the conversation."""
MAX_SKILLS = 100
"""Directories of one library that are read."""
MAX_DESCRIPTION = 1024
"""Characters of a description, as in the specification. The descriptions are in every request."""
SETTING = "disabled_skills"

NAME = re.compile(r"(?=.{1,64}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")

SkillSource = Literal["profile", "root", "project"]


class SkillLibrary(NamedTuple):
    """A directory with skills. `name` is its name in notices, `is_trusted` whether its skills may be used."""

    source: SkillSource
    directory: str
    name: str
    is_trusted: bool = True


class Skill(NamedTuple):
    """A skill. `description` is printable and on one line. `problem` is the reason why it is not used, a clause."""

    name: str
    source: SkillSource
    library: str
    """The directory of its library."""
    path: str
    """Its directory, as notices name it."""
    description: str
    text: str
    """The instructions."""
    problem: str | None = None

    @property
    def enabled(self) -> bool:
        """Whether the agent has it."""
        return self.problem is None


class MountedSkill(NamedTuple):
    """A skill, and its directory for the tools and the commands of the agent."""

    skill: Skill
    directory: str


def libraries(root: Root, paths: ProfilePaths | None, project: str | None, trusted: str) -> list[SkillLibrary]:
    """The libraries of a profile whose agent works in `project`, the one with the highest priority first.

    `trusted` is the digest of the trusted content of the project.
    """
    result = [SkillLibrary("profile", paths.skills, DIRECTORY)] if paths is not None else []
    result.append(SkillLibrary("root", root.skills, f"<root>/{DIRECTORY}"))
    if project is not None:
        places = [SkillLibrary("project", f"{project}/{name}", name, False) for name in PROJECT_DIRECTORIES]
        places = [place for place in places if os.path.isdir(place.directory)]
        if places and project_trust.is_trusted(project, trusted):
            places = [place._replace(is_trusted=True) for place in places]
        result += places
    return result


def read(skill_libraries: Sequence[SkillLibrary], disabled: Collection[str] = ()) -> list[Skill]:
    """The skills in these libraries; those named in `disabled` and those that cannot be used have a `problem`."""
    skills: list[Skill] = []
    sources: dict[str, Skill] = {}
    for library in skill_libraries:
        for skill in _skills(library):
            if skill.enabled:
                first = sources.get(skill.name)
                if not library.is_trusted:
                    skill = skill._replace(problem="the content of the project is not trusted")
                elif skill.name in disabled:
                    skill = skill._replace(problem=f"the setting {SETTING} names it")
                elif first is not None:
                    skill = skill._replace(problem=f"{first.path} has the same name")
                else:
                    sources[skill.name] = skill
            skills.append(skill)
    return skills


def _skills(library: SkillLibrary) -> list[Skill]:
    # A directory of a repository that is a link is left out, as its trust leaves it out.
    if os.path.islink(library.directory) or os.path.islink(os.path.dirname(library.directory)):
        return []
    tree = DirectoryTree(library.directory, follow=False, kind="skills directory")
    try:
        entries = tree.entries()
    except OSError:
        return []
    skills: list[Skill] = []
    for entry in entries:
        is_link = os.path.islink(os.path.join(library.directory, entry.name))
        if not (entry.is_directory or is_link) or entry.name.startswith("."):
            continue
        if not is_link and not os.path.lexists(os.path.join(library.directory, entry.name, SKILL_FILE)):
            continue
        name = one_line(entry.name)
        skill = Skill(name, library.source, library.directory, f"{library.name}/{name}", "", "")
        if len(skills) == MAX_SKILLS:
            skills.append(skill._replace(problem=f"only {MAX_SKILLS} skills of a directory are read"))
            break
        try:
            skills.append(_read(tree, entry.name, skill))
        except ValueError as error:
            skills.append(skill._replace(problem=str(error)))
        except OSError as error:
            skills.append(skill._replace(problem=(error.strerror or "it cannot be read").lower()))
    return skills


def _read(tree: DirectoryTree, directory: str, skill: Skill) -> Skill:
    """The skill with its description and text. Raises `ValueError` with a clause, and `OSError`."""
    if not NAME.fullmatch(directory):
        raise ValueError("its name must have 1 to 64 lower-case letters, digits and single dashes")
    path = f"{directory}/{SKILL_FILE}"
    length = tree.entry(path).size
    if length is not None and length > MAX_BYTES:
        raise ValueError(f"its {SKILL_FILE} has more than {size(MAX_BYTES)}")
    try:
        text = tree.read(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ValueError(f"its {SKILL_FILE} is not UTF-8") from None
    fields, body = front_matter.split(text)
    if fields is None:
        raise ValueError(f"its {SKILL_FILE} does not begin with front matter, a line ---")
    name = fields.get("name", directory)
    if name != directory:
        raise ValueError(f"its {SKILL_FILE} has another name, {one_line(name)[:64]!r}")
    description = one_line(" ".join(whole(fields.get("description", "")).split()))
    if not description:
        raise ValueError(f"its {SKILL_FILE} has no description")
    if fields.get("disable-model-invocation", "").lower() == "true":
        raise ValueError("its author does not want agents to load it (disable-model-invocation)")
    if len(description) > MAX_DESCRIPTION:
        description = f"{description[: MAX_DESCRIPTION - 1]}…"
    return skill._replace(description=description, text=whole(body))
