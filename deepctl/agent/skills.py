"""The skills of an agent as capabilities of pydantic-ai that the model loads when it needs them.

The model sees names and descriptions in its instructions, and gets the text of a skill by the tool `load_capability`.
A run without skills has neither, and does not import this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_ai.capabilities import AbstractCapability

from deepctl.domain.skills import MountedSkill


class SkillCapability(AbstractCapability[Any]):
    """One skill. Its text is fixed for the run, so that the agent cannot change it meanwhile."""

    def __init__(self, mounted: MountedSkill) -> None:
        skill = mounted.skill
        self.id = skill.name
        self.description = skill.description
        self.defer_loading = True
        place = f"Its directory is `{mounted.directory}/`. Relative paths in it start there."
        self._text = f"# Skill: {skill.name}\n\n{place}\n\n{skill.text}".rstrip()

    def get_instructions(self) -> str:
        """The text of the skill."""
        return self._text


def capabilities(skills: Sequence[MountedSkill]) -> list[AbstractCapability[Any]]:
    """The capabilities of a run with these skills."""
    return [SkillCapability(skill) for skill in skills]
