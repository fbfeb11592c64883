"""Sub-agents: the tool `delegate_task` gives a task to a run of the same agent with a conversation of its own.

The list of sub-agents and the tool are the harness' `SubAgents`. Each sub-agent is the running agent itself, so its
calls have the same rules, approvals, sandbox, sizes of results and checkpoints, and its requests count in the same turn
and the same budgets. `deepctl.agent.delegation` has what differs: fewer tools, and more instructions.

Tools run one after another, and `delegate_task` is a tool. So a sub-agent and its parent never work at the same time,
and only one of them changes files. A sub-agent cannot start another one.

The conversation of a sub-agent is in memory. The session has the call with the task, and the report as its result.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

from pydantic_ai import AgentStreamEvent, RunContext
from pydantic_ai.agent import AbstractAgent, AgentRunResult, WrapperAgent
from pydantic_ai.capabilities import WrapToolExecuteHandler
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import FunctionToolResultEvent, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, PreparedToolset
from pydantic_ai_harness import subagents as harness

from deepctl.agent import delegation
from deepctl.agent.delegation import Delegation
from deepctl.agent.interruption import Event
from deepctl.agent.limits import cost
from deepctl.agent.turn import ACTIVITY, TokenUsage, events_of
from deepctl.domain import permissions
from deepctl.domain.roles import catalogue
from deepctl.domain.roles.role import MEMORY, Role
from deepctl.errors import CONTEXT_OVERFLOW, DeepctlError
from deepctl.layout import CONTEXT_FILES, Root
from deepctl.unicode import as_text, whole, whole_value

TOOL = "delegate_task"
EXPLORER, SELF = "explorer", "self"
_DESCRIPTION = "Give a task to a sub-agent, and wait for its report. It knows nothing but `task`."
_LISTING = (
    f"`{TOOL}` gives a task to a sub-agent, which has a context of its own: use it for a search through many files and "
    "for work that can be separated, not for a single look. State the goal, the paths, and what the report must have. "
    "Sub-agents:"
)
_REPORT = (
    "You are a sub-agent. The prompt is a task of the agent that works for the user. Do only this task. Your last "
    "answer is the report, and the agent sees nothing else of your work."
)
_SEARCH = (
    f"{_REPORT} You search: you have no tools that change anything. Report what you found with paths and line numbers, "
    "and what you did not look at."
)
EXPLORER_TOOLS = frozenset(
    {
        *("ls", "read_file", "glob", "grep", "read_tool_result", "read_memory", "search_memory"),
        *("search_sessions", "web_fetch", "web_search"),
    }
)
"""The tools of the sub-agent `explorer`, as far as its parent has them."""
_MOST_KNOWLEDGE = 20_000
"""Characters of the context files and notebooks of a role that its sub-agent gets."""


class SubAgent(NamedTuple):
    """A sub-agent: its name and description for the model, and its own instructions.

    `tools` are the only tools that it has, `None` for all of its parent; it never has one of `disabled`.
    """

    name: str
    description: str
    instructions: str = ""
    tools: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()


BUILT_IN = (
    SubAgent(EXPLORER, "searches files and reads; changes nothing", _SEARCH, EXPLORER_TOOLS),
    SubAgent(SELF, "you, with all of your tools for work", _REPORT),
)
"""The sub-agents of every agent."""


def of_roles(root: Root, environment: Mapping[str, str]) -> list[SubAgent]:
    """The usable roles as sub-agents, without those whose names are built in. Damaged roles are left out."""
    names = {agent.name for agent in BUILT_IN}
    agents = []
    for description in catalogue.describe_all(root, environment):
        if description.problem is None and description.name not in names:
            try:
                role = catalogue.find(root, description.name, environment)
                agents.append(_of_role(role))
            except (DeepctlError, OSError):
                continue
    return agents


def _of_role(role: Role) -> SubAgent:
    tools, disabled = role.tables.get("tools", "full"), role.tables.get("disabled_tools", ())
    texts = [_REPORT, str(role.tables.get("instructions", "")).strip()]
    knowledge = "\n\n".join(
        f"<{path}>\n{as_text(content).strip()}\n</{path}>"
        for path, content in sorted(role.files.items())
        if path in CONTEXT_FILES or path.startswith(f"{MEMORY}/")
    )
    texts += [f"Files of your role:\n{knowledge[:_MOST_KNOWLEDGE]}"] if knowledge else []
    return SubAgent(
        role.name,
        role.description or "a role of the user",
        whole("\n\n".join(text for text in texts if text)),
        disabled=permissions.disabled_tools(tools, disabled),
    )


class _Call(NamedTuple):
    """The call of `delegate_task` that is being executed."""

    ctx: RunContext[Any]
    call_id: str


_CALL: ContextVar[_Call | None] = ContextVar("deepctl_delegating_call", default=None)


@dataclass
class SubAgents(harness.SubAgents[Any]):
    """The capability with the tool `delegate_task`. `known` are the sub-agents.

    Unlike the harness', it takes no agents of its own: each sub-agent is the agent that has this capability.
    """

    known: Sequence[SubAgent] = BUILT_IN

    def __post_init__(self) -> None:
        self.max_depth = 2
        self.agents = [
            harness.SubAgent(_SameAgent(agent), name=agent.name, description=agent.description) for agent in self.known
        ]
        super().__post_init__()

    def get_instructions(self) -> str | None:
        if self._delegation_off:
            return None
        return "\n".join([_LISTING, *(f"- {agent.name}: {agent.description}" for agent in self.known)])

    def get_toolset(self) -> AbstractToolset[Any] | None:
        toolset = super().get_toolset()
        return None if toolset is None else PreparedToolset(cast("AbstractToolset[Any]", toolset), self._described)

    async def _described(self, ctx: RunContext[Any], definitions: list[ToolDefinition]) -> list[ToolDefinition]:
        schema = {
            "type": "object",
            "properties": {
                "agent_name": {"type": "string", "enum": [agent.name for agent in self.known]},
                "task": {"type": "string"},
            },
            "required": ["agent_name", "task"],
        }
        return [
            replace(definition, description=_DESCRIPTION, parameters_json_schema=schema) for definition in definitions
        ]

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Note whose call it is, for the run of the sub-agent."""
        if call.tool_name != TOOL or delegation.current() is not None:
            return await handler(args)
        with _called(_Call(ctx, call.tool_call_id)):
            return await handler(args)


@contextmanager
def _called(call: _Call) -> Iterator[None]:
    token = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(token)


class _SameAgent(WrapperAgent[Any, Any]):
    """The agent that makes the call, in another run."""

    def __init__(self, agent: SubAgent) -> None:
        self._agent = agent

    @property
    def wrapped(self) -> AbstractAgent[Any, Any]:  # type: ignore[override]
        call = _CALL.get()
        assert call is not None, "a sub-agent runs inside a call of its tool"
        assert call.ctx.agent is not None, "a run has an agent"
        return call.ctx.agent

    @property
    def model(self) -> None:
        """None of its own: it uses that of the run."""

    async def run(self, user_prompt: Any = None, **options: Any) -> AgentRunResult[Any]:
        call, agent = _CALL.get(), self._agent
        assert call is not None
        # Without these, a sub-agent would have pydantic-ai's own limit of requests, and none of the turn.
        options |= {"usage_limits": call.ctx.usage_limits, "event_stream_handler": self._forward}
        if agent.instructions:
            options["instructions"] = agent.instructions
        observer = delegation.observer()
        began, usage = time.monotonic(), copy(call.ctx.usage)
        try:
            with delegation.working_on(Delegation(agent.name, call.call_id, agent.tools, agent.disabled)):
                return await self.wrapped.run(user_prompt, **options, output_type=str)
        except Exception as error:  # every client has its own exceptions
            failure = observer.explain(error) if observer is not None else None
            if failure is None or failure.code != CONTEXT_OVERFLOW:
                raise
            raise ToolFailed(
                f"The context of the sub-agent {agent.name} is full, and its work is lost. Give it smaller tasks."
            ) from error
        finally:
            difference = call.ctx.usage - usage
            model = call.ctx.model
            self._emit(
                {
                    "type": "end",
                    "seconds": round(time.monotonic() - began, 3),
                    "usage": TokenUsage.of(difference)._asdict(),
                    "cost": cost(difference, model) if isinstance(model, Model) else None,
                }
            )

    def _emit(self, event: Event) -> None:
        observer, call = delegation.observer(), _CALL.get()
        if observer is not None and call is not None:
            observer.emit({"type": "subagent", "id": call.call_id, "agent": self._agent.name, "event": event})

    async def _forward(self, ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        """Report the tool calls of the sub-agent, as `run_turn` does with those of its parent."""
        observer = delegation.observer()
        async for event in events:
            if observer is None:
                continue
            for output_event in events_of(event):
                if output_event["type"] in ("tool_call", "tool_result"):
                    self._emit(whole_value(output_event))
                else:
                    observer.emit(ACTIVITY)
            if observer.tool_done is not None and isinstance(event, FunctionToolResultEvent):
                await observer.tool_done(event.part.tool_name)
