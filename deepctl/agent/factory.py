"""The agent, put together once: for `deepctl chat` and for applications that use deepctl as a library.

It owns what surrounds every run and every tool call of such an agent: which backend it works in, the order of tool
calls, failures that stay failures of the tool, and secrets kept out of results.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_ai import Agent, FunctionToolset, RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering, WrapToolExecuteHandler
from pydantic_ai.exceptions import ModelRetry, ToolFailed, UserError
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
from pydantic_ai.workspaces import Workspace, WorkspaceBackend, WorkspaceError, WorkspaceRef
from pydantic_ai_backends import PermissionAskError, PermissionDeniedError, StateBackend, create_console_toolset
from pydantic_ai_backends.capability import MUTATING_TOOLS
from pydantic_ai_harness.memory import Memory
from pydantic_ai_harness.planning import Planning
from pydantic_ai_harness.tool_output_limits import Band, Spill, ToolOutputLimits, Truncate

from deepctl import layout
from deepctl.agent import workspace_stores
from deepctl.agent.approvals import Approvals, Approve, Ask
from deepctl.agent.backend import told
from deepctl.agent.checkpoint_stores import CheckpointFrequency, CheckpointStore
from deepctl.agent.checkpoints import (
    AgentCheckpoints,
    Checkpointing,
    StoreCheckpoints,
    checkpoints_toolset,
    directory_of,
)
from deepctl.agent.models import OFFLINE, CollectingModel, UnicodeFilterModel, offline_model
from deepctl.agent.search_tools import replace_glob, replace_grep
from deepctl.domain.permissions import Permissions
from deepctl.redaction import redact
from deepctl.unicode import whole, whole_value

_EVICT_OVER = 20_000
_EVICT_FILE_OVER = 100_000

_INSTRUCTIONS = (
    "You work for one user, in a workspace that is theirs alone and that keeps what you write from one conversation "
    "to the next. Paths are relative to it; nothing outside it can be reached."
)
_FILE_TOOLS = "You have file tools (ls, read_file, write_file, edit_file, glob, grep)"
_WITH_SHELL = f"{_FILE_TOOLS} and a shell (execute)."
_WITHOUT_SHELL = f"{_FILE_TOOLS}; there is no shell."


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
            layout.check_name(self.session, "session")
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


UNLIMITED_RETRIES = 1_000_000
"""More than any turn has requests: pydantic-ai ends a run at the limit, and has no word for none."""

_FAILURES = (
    OSError,
    MemoryError,
    RecursionError,
    ValueError,
    UserError,
    WorkspaceError,
    PermissionAskError,
    PermissionDeniedError,
)


def _failure_text(error: Exception, workspace: object) -> str:
    """What the model is told of a failure."""
    return told(error, workspace) or type(error).__name__


@dataclass
class _RunBoundary(AbstractCapability[DeepAgentDeps]):
    """What surrounds every run: the deps' backend, a model of valid text, and tools that fail without ending the run.

    It is one capability, because pydantic-ai copies the run's context for every capability at every hook.
    """

    environment: Mapping[str, str]
    """Where the keys are that results of tools are rid of."""

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="outermost")

    def get_workspace(self, ctx: RunContext[DeepAgentDeps], *, ref: WorkspaceRef | None) -> WorkspaceBackend:
        """The backend of the run's deps, whatever place the message history was made in."""
        deps: object = ctx.deps
        if not isinstance(deps, DeepAgentDeps):
            # `Agent.run` has `deps=None` by default, whatever type they are of.
            raise TypeError(
                f"a run of this agent takes deps=DeepAgentDeps(backend=…), not deps={deps!r}: "
                "all it keeps is in that backend; StateBackend() is one in memory"
            )
        return deps.workspace

    def get_wrapper_model(self, model: Model) -> Model:
        """A model that neither gets nor gives invalid text.

        A `FunctionModel` with nothing but a `stream_function` can be used by `Agent.run`, too.
        """
        is_streaming_only = isinstance(model, FunctionModel) and model.function is None
        return UnicodeFilterModel(CollectingModel(model) if is_streaming_only else model)

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        return _GuardedTools(toolset, self.environment)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """What fails around a tool, in a capability's hook, is the tool's failure and ends no run."""
        try:
            return await handler(args)
        except _FAILURES as error:
            raise ToolFailed(_failure_text(error, ctx.workspace)) from error


@dataclass
class _GuardedTools(WrapperToolset[Any]):
    """All tools of an agent: they run in the model's order, their failures are results, and no result has a key in it.

    In parallel, a read was seen to overtake the write before it. A workspace error or a denial raised in a tool would
    end the run, and so would asking for a retry once more often than the tool allows; what bounds a run are its usage
    limits. Results and failures are valid text without the keys in `environment` before anything else sees them: the
    model, the log, checkpoints, and eviction to a file. Commands do not get these keys; where nothing is around
    commands, one can still find them, in `/proc` for instance.
    """

    environment: Mapping[str, str]

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """Every toolset has a limit of retries, most of them 1; here a model may be wrong as often as it has requests.

        A workspace that is read-only would refuse the tools that change files, so they are not offered.
        """
        hidden = MUTATING_TOOLS if ctx.workspace.read_only else frozenset()
        return {
            name: replace(tool, max_retries=UNLIMITED_RETRIES, tool_def=replace(tool.tool_def, sequential=True))
            for name, tool in (await super().get_tools(ctx)).items()
            if name not in hidden
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        try:
            result = await super().call_tool(name, tool_args, ctx, tool)
        except (ToolFailed, ModelRetry) as error:
            # A tool that asks for another call has failed: `TestModel` obeys without end.
            raise ToolFailed(redact(whole(error.message), self.environment)) from error
        except _FAILURES as error:
            raise ToolFailed(redact(whole(_failure_text(error, ctx.workspace)), self.environment)) from error
        return redact(whole(result), self.environment) if isinstance(result, str) else whole_value(result)


class _FixedTools(FunctionToolset[Any]):
    """Tools that are the same in every step of every run, so that they are made ready once."""

    _ready: dict[str, ToolsetTool[Any]] | None = None

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        if self._ready is None:
            self._ready = await super().get_tools(ctx)
        return dict(self._ready)


def _console_tools(include_execute: bool, rules: Permissions) -> FunctionToolset[Any]:
    """The console tools of pydantic-ai-backend, with our `glob` and `grep`; `rules` say what `grep` may show lines of.

    A tool that has to ask is put off until after the other calls of the same answer, so these ask for nothing:
    `Approvals` asks inside the call instead.
    """
    toolset = create_console_toolset(include_execute=include_execute, require_execute_approval=False)
    replace_glob(toolset)
    replace_grep(toolset, rules)
    return toolset


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
    rules = permissions or {}
    parts: list[AbstractCapability[Any]] = [
        _RunBoundary(os.environ if environment is None else environment),
        workspace_stores.ContextFiles(),
        _eviction(),
        Approvals(approve=approve, ask=ask, permissions=rules),
    ]
    toolsets = [_console_tools(include_execute, rules)]
    if include_memory:
        parts.append(Memory(store_resolver=workspace_stores.memory_store, agent_name=agent_name))
    if include_checkpoints:
        parts.append(Checkpointing(checkpoint_frequency))
        toolsets.append(checkpoints_toolset())
    if include_plans:
        toolsets.append(workspace_stores.plans_toolset())
        parts.append(
            Planning(
                store_resolver=lambda ctx: workspace_stores.TodoStore(
                    workspace_stores.files_of(ctx.workspace), ctx.deps.session
                )
            )
        )
    return Agent(
        offline_model() if model == OFFLINE else model,
        name=agent_name,
        deps_type=DeepAgentDeps,
        instructions=[_INSTRUCTIONS, *_listed(instructions), _WITH_SHELL if include_execute else _WITHOUT_SHELL],
        toolsets=[_FixedTools([tool for toolset in toolsets for tool in toolset.tools.values()], id="deepctl")],
        capabilities=[*parts, *capabilities],
        retries={"tools": UNLIMITED_RETRIES},
        defer_model_check=True,
    )


def _listed(instructions: Instruction | Sequence[Instruction] | None) -> list[Instruction]:
    if instructions is None:
        return []
    entries = [instructions] if isinstance(instructions, str) or callable(instructions) else list(instructions)
    # pydantic-ai takes a digest of them before any model sees them.
    return [whole(entry) if isinstance(entry, str) else entry for entry in entries]


def _eviction() -> ToolOutputLimits[Any]:
    """Results over 20,000 characters go to a file; files themselves, which can be read in pages, over 100,000."""
    action = Spill(then=Truncate())
    return ToolOutputLimits(
        bands=[Band(over=_EVICT_OVER, action=action)],
        per_tool={"read_file": [Band(over=_EVICT_FILE_OVER, action=action)]},
        store=workspace_stores.EvictedResults(),
    )
