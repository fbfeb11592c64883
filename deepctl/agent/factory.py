"""The agent, put together once: for `deepctl chat` and for applications that use deepctl as a library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.workspaces import Workspace, WorkspaceBackend, WorkspaceRef
from pydantic_ai_backends import ConsoleCapability, StateBackend, create_console_toolset
from pydantic_ai_harness.memory import Memory
from pydantic_ai_harness.planning import Planning
from pydantic_ai_harness.tool_output_limits import Band, Spill, ToolOutputLimits, Truncate

from deepctl import layout, names
from deepctl.agent import workspace_stores
from deepctl.agent.approvals import Approvals, Approve, Ask
from deepctl.agent.checkpoint_capability import Checkpointing, StoreCheckpoints, directory_of
from deepctl.agent.checkpoint_stores import CheckpointFrequency, CheckpointStore
from deepctl.agent.checkpoint_tools import AgentCheckpoints, checkpoints_toolset
from deepctl.agent.offline_model import NAME, CollectingModel, offline_model
from deepctl.agent.plans import plans_toolset
from deepctl.agent.search_tools import replace_glob, replace_grep
from deepctl.agent.tool_guards import UNLIMITED_RETRIES, RedactSecrets, SequentialTools, ToolErrorsAsResults
from deepctl.agent.unicode_filter import UnicodeFilter
from deepctl.domain.permissions import Permissions
from deepctl.unicode import whole

_EVICT_OVER = 20_000
_EVICT_FILE_OVER = 100_000

_INSTRUCTIONS = (
    "You work for one user, in a workspace that is theirs alone and that keeps what you write from one conversation "
    "to the next. Paths are relative to it; nothing outside it can be reached."
)


@dataclass(kw_only=True)
class DeepAgentDeps:
    """What one run works with: the state of one user. Two users need two of these.

    `backend` is a `LocalBackend` (kept in a directory), a `StateBackend` (kept in this object) or any workspace
    backend of pydantic-ai; memory, plans, files and evicted results all lie in it. `checkpoint_store` keeps the
    conversation and, of a backend with a directory here, the files. `session` is the name of one conversation among
    several in the same backend: the to-do list is its own then, in `.deep/todo/<session>.json`, and otherwise that of
    the backend, in `.deep/todo.json`.
    """

    backend: WorkspaceBackend | StateBackend
    checkpoint_store: CheckpointStore | AgentCheckpoints | None = None
    session: str | None = None

    def __post_init__(self) -> None:
        if self.session is not None:
            names.check(self.session, "session")
        self._workspace = workspace_stores.workspace_of(self.backend)
        store = self.checkpoint_store
        if store is not None and not isinstance(store, AgentCheckpoints):
            store = StoreCheckpoints(store, directory_of(self.backend))
        self._checkpoints = store

    @property
    def checkpoints(self) -> AgentCheckpoints | None:
        """The checkpoints as the agent's tools reach them."""
        return self._checkpoints

    @property
    def workspace(self) -> Workspace:
        """The backend as tools see it."""
        return self._workspace


Instruction = str | Callable[[RunContext[DeepAgentDeps]], str | None]
"""A text, or a function of the run that returns one."""


@dataclass
class _BackendOfDeps(AbstractCapability[DeepAgentDeps]):
    """Gives each run the backend in its deps, whatever place the message history was made in."""

    def get_workspace(self, ctx: RunContext[DeepAgentDeps], *, ref: WorkspaceRef | None) -> WorkspaceBackend:
        deps: object = ctx.deps
        if not isinstance(deps, DeepAgentDeps):
            # `Agent.run` has `deps=None` by default, whatever type they are of.
            raise TypeError(
                f"a run of this agent takes deps=DeepAgentDeps(backend=…), not deps={deps!r}: "
                "all it keeps is in that backend; StateBackend() is one in memory"
            )
        return deps.workspace


@dataclass
class _StreamedAnswers(AbstractCapability[Any]):
    """A `FunctionModel` with nothing but a `stream_function` can be used by `Agent.run`, too."""

    def get_wrapper_model(self, model: Model) -> Model | None:
        return CollectingModel(model) if isinstance(model, FunctionModel) and model.function is None else None


@dataclass
class _Console(ConsoleCapability):
    """The console tools, described as they are offered here.

    A tool that has to ask is put off until after the other calls of the same answer, so these ask for nothing:
    `Approvals` asks inside the call instead.
    """

    rules: Permissions = field(default_factory=dict)
    """What files `grep` may show lines of."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._toolset = create_console_toolset(
            include_execute=self.include_execute,
            require_execute_approval=False,
            profile=self.profile,
        )
        replace_glob(self._toolset)
        replace_grep(self._toolset, self.rules)

    def get_instructions(self) -> str:
        shell = " and a shell (execute)" if self.include_execute else "; there is no shell"
        return f"You have file tools (ls, read_file, write_file, edit_file, glob, grep){shell}."


def create_deep_agent(
    model: Model | str | None = None,
    *,
    instructions: Instruction | Sequence[Instruction] | None = None,
    include_memory: bool = True,
    include_plans: bool = True,
    include_execute: bool = False,
    include_checkpoints: bool = True,
    checkpoint_frequency: CheckpointFrequency = "every_tool",
    approve: Approve = "ask",
    ask: Ask | None = None,
    permissions: Permissions | None = None,
    environment: Mapping[str, str] | None = None,
    agent_name: str = layout.AGENT,
    capabilities: Sequence[AbstractCapability[DeepAgentDeps]] = (),
) -> Agent[DeepAgentDeps, str]:
    """An agent with files, memory, plans, a to-do list, eviction of large results and context files.

    It holds no user's state: every run takes `deps=DeepAgentDeps(backend=…)` and works in that backend only.

    Args:
        model: A pydantic-ai model, its name, or `offline`; without one, every run has to name its own.
        instructions: What the agent is told in addition, as pydantic-ai's `Agent` takes it.
        include_memory: Whether there are notebooks, in `.deep/memory/<agent_name>/`.
        include_plans: Whether there are `save_plan` and the to-do list.
        include_execute: Whether there is a shell. It runs where the backend runs commands.
        include_checkpoints: Whether there are `save_checkpoint`, `list_checkpoints` and `rewind_to`, and checkpoints
            are made in the `checkpoint_store` of the run's deps, if it has one.
        checkpoint_frequency: When: `every_turn`, `every_tool` (when it starts and ends, and after every tool call that
            could have changed something) or `manual_only`.
        approve: What happens to commands outside a sandbox, and to what `permissions` mark so: `ask` (by `ask`; without
            one, no), `auto` (yes) or `never` (no).
        ask: Shows a command, or the diff of a change, to a person and returns the answer.
        permissions: Rules for reading, writing, editing and commands; `deepctl.domain.permissions.parse` reads them.
        environment: Where the keys are that results of tools are rid of; this process's own environment by default.
        agent_name: Whose memory it is.
        capabilities: More capabilities of pydantic-ai.
    """
    parts: list[AbstractCapability[Any]] = [
        ToolErrorsAsResults(),
        UnicodeFilter(),
        SequentialTools(),
        _BackendOfDeps(),
        _StreamedAnswers(),
        _Console(include_execute=include_execute, rules=permissions or {}),
        workspace_stores.ContextFiles(),
        _eviction(),
        # Behind eviction, so that what goes into a file is rid of them too.
        RedactSecrets(os.environ if environment is None else environment),
    ]
    parts.append(Approvals(approve=approve, ask=ask, permissions=permissions or {}))
    if include_memory:
        parts.append(Memory(store_resolver=workspace_stores.memory_store, agent_name=agent_name))
    toolsets = [plans_toolset()] if include_plans else []
    if include_checkpoints:
        parts.append(Checkpointing(checkpoint_frequency))
        toolsets.append(checkpoints_toolset())
    if include_plans:
        parts.append(
            Planning(
                store_resolver=lambda ctx: workspace_stores.TodoStore(
                    workspace_stores.files_of(ctx.workspace), ctx.deps.session
                )
            )
        )
    return Agent(
        offline_model() if model == NAME else model,
        name=agent_name,
        deps_type=DeepAgentDeps,
        instructions=[_INSTRUCTIONS, *_listed(instructions)],
        toolsets=toolsets,
        capabilities=[*parts, *capabilities],
        retries={"tools": UNLIMITED_RETRIES},
        defer_model_check=True,
    )


def _listed(instructions: Instruction | Sequence[Instruction] | None) -> list[Instruction]:
    if instructions is None:
        return []
    listed = [instructions] if isinstance(instructions, str) or callable(instructions) else list(instructions)
    # pydantic-ai takes a digest of them before any model sees them.
    return [whole(one) if isinstance(one, str) else one for one in listed]


def _eviction() -> ToolOutputLimits[Any]:
    """Results over 20,000 characters go to a file; files themselves, which can be read in pages, over 100,000."""
    action = Spill(then=Truncate())
    return ToolOutputLimits(
        bands=[Band(over=_EVICT_OVER, action=action)],
        per_tool={"read_file": [Band(over=_EVICT_FILE_OVER, action=action)]},
        store=workspace_stores.EvictedResults(),
    )
