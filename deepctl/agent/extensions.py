"""The extensions of a profile's agent: its skills, and capabilities that its settings switch on.

Each extension is a capability that `create_deep_agent(capabilities=…)` takes too. Its module is imported when the
extension is on, so an agent without extensions starts, and asks its model, as if they did not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic_ai.capabilities import AbstractCapability

from deepctl.agent.approver import Approve, Ask
from deepctl.domain.skills import MountedSkill
from deepctl.layout import ProfilePaths, Root

if TYPE_CHECKING:
    from deepctl.agent.questions import Answerer

Web = Literal["off", "ask", "auto"]


class AgentExtensions(NamedTuple):
    """The extensions in the settings. `root` has the roles, and `paths` the sessions; without a profile, both are
    `None`, and there are neither.
    """

    root: Root | None = None
    paths: ProfilePaths | None = None
    subagents: bool = False
    search_sessions: bool = False
    ask_user: bool = False
    web: Web = "off"
    web_domains: Sequence[str] = ()

    def capabilities(
        self, *, approve: Approve, ask: Ask | None, answerer: Answerer | None, environment: Mapping[str, str]
    ) -> list[AbstractCapability[Any]]:
        """The capabilities of the extensions that are on and of use: without a person, there are no questions."""
        capabilities: list[AbstractCapability[Any]] = []
        if self.search_sessions and self.paths is not None:
            from deepctl.agent.past_sessions import SearchSessions

            capabilities.append(SearchSessions(self.paths, environment))
        if self.ask_user and answerer is not None and approve != "never":
            from deepctl.agent.questions import AskUser

            capabilities.append(AskUser(answerer))
        if self.web == "auto" or (self.web == "ask" and (approve == "auto" or (approve == "ask" and ask is not None))):
            from deepctl.agent.web import WebAccess

            capabilities.append(WebAccess(self.web, ask, approve, environment, self.web_domains))
        if self.subagents:
            from deepctl.agent.subagents import BUILT_IN, SubAgents, of_roles

            roles = of_roles(self.root, environment) if self.root is not None else []
            capabilities.append(SubAgents(known=[*BUILT_IN, *roles]))
        return capabilities


class SkillCapability(AbstractCapability[Any]):
    """A skill, which the model loads when it needs it. Its text is fixed for the run: the agent cannot change it
    meanwhile.

    The model sees names and descriptions in its instructions, and gets the text by the tool `load_capability`.
    """

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


def skill_capabilities(skills: Sequence[MountedSkill]) -> list[AbstractCapability[Any]]:
    """The capabilities of a run with these skills."""
    return [SkillCapability(skill) for skill in skills]
