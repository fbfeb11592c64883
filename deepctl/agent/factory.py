"""Building an agent: for `deepctl chat`, and for applications that use deepctl as a library.

This module has the parts around every run of such an agent, and the stores of its capabilities. The stores keep their
state in the workspace, so that it is rewound with everything else, and use a view that follows no links. The parts
around its tools are in `deepctl.agent.tools`.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any, Literal, TypeVar, cast

from pydantic_ai import Agent, FunctionToolset, RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering, WrapToolExecuteHandler
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import BinaryContent, InstructionPart, ModelMessage, ModelResponse, ToolCallPart, ToolReturn
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.output import OutputDataT, OutputSpec
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset
from pydantic_ai.workspaces import Workspace, WorkspaceBackend, WorkspaceRef, WrapperWorkspace
from pydantic_ai_backends import StateBackend
from pydantic_ai_harness.memory import FileStore, Memory, MemorySearchMatch, MemorySearchResult, MemoryToolset
from pydantic_ai_harness.planning import InMemoryPlanStore, PlanItem, Planning, PlanningToolset, PlanStore
from pydantic_ai_harness.tool_output_limits import (
    READ_TOOL_RESULT_KIND,
    Band,
    Spill,
    ToolOutputLimits,
    Truncate,
    WorkspaceStore,
)

from deepctl import layout, migration
from deepctl.agent import tasks
from deepctl.agent.approvals import Approvals
from deepctl.agent.approver import Approve, Ask
from deepctl.agent.backend import files_of, own_path, workspace_of
from deepctl.agent.checkpoint_stores import CheckpointFrequency, CheckpointStore
from deepctl.agent.checkpoints import (
    AgentCheckpoints,
    Checkpointing,
    StoreCheckpoints,
    checkpoints_toolset,
    directories_of,
)
from deepctl.agent.limits import window_of
from deepctl.agent.media_filter import with_media_filter
from deepctl.agent.model_wrappers import UnicodeFilterModel, with_both_ways
from deepctl.agent.offline import OFFLINE, offline_model
from deepctl.agent.shared_memory import SharedMemoryToolset
from deepctl.agent.tools import (
    CAPABILITY,
    FAILURES,
    UNLIMITED_RETRIES,
    FixedTools,
    GuardedTools,
    console_toolset,
    failure_text,
    one_by_one,
    plans_toolset,
    runs_commands,
)
from deepctl.agent.turn_context import (
    EVICT_FILE_OVER,
    EVICT_OVER,
    TurnContext,
    fixed_instructions,
    large_size,
    workspace_instructions,
)
from deepctl.agent.wire import with_chat_shape
from deepctl.domain.memory.directory import as_bytes
from deepctl.domain.memory.shared import SharedMemory
from deepctl.domain.permissions import Permissions
from deepctl.domain.permissions import disabled_tools as names_of_disabled
from deepctl.errors import UsageError
from deepctl.store import todo
from deepctl.unicode import as_text, fold, spans, whole


@dataclass(kw_only=True)
class DeepAgentDeps:
    """The dependencies of a run: the state of one user. Two users need two of these.

    `backend` is a `LocalBackend` (in a directory), a `StateBackend` (in this object) or any workspace backend of
    pydantic-ai; memory, plans, files and evicted results are in it. By default, it is a new `StateBackend`.
    `checkpoint_store` stores the conversation and, for
    a backend with a directory here, the files. `session` is the name of one conversation among several in the same
    backend: it then has its own to-do list in `.deep/todo/<session>.json`; otherwise the list is that of the backend,
    in `.deep/todo.json`.
    """

    backend: WorkspaceBackend | StateBackend = field(default_factory=StateBackend)
    checkpoint_store: CheckpointStore | AgentCheckpoints | None = None
    session: str | None = None

    def __post_init__(self) -> None:
        if self.session is not None:
            layout.check_name(self.session, "session")
        self._workspace = workspace_of(self.backend)
        self._checkpoints: list[StoreCheckpoints] = []

    def checkpoints_or(self, default: CheckpointStore | None) -> AgentCheckpoints | None:
        """The checkpoints for the agent's tools: in the store of these deps, else in `default`."""
        store = self.checkpoint_store if self.checkpoint_store is not None else default
        # Every hook of a run asks this, and a check of a protocol takes long.
        checkpoints = next((checkpoints for checkpoints in self._checkpoints if checkpoints.store is store), None)
        if checkpoints is None:
            if store is None or isinstance(store, AgentCheckpoints):
                return store
            checkpoints = StoreCheckpoints(store, directories_of(self.backend))
            self._checkpoints.append(checkpoints)
        return checkpoints

    @property
    def workspace(self) -> Workspace:
        """The tools' view of the backend."""
        return self._workspace


Instruction = str | Callable[[RunContext[DeepAgentDeps]], str | None]
"""A text, or a function of the run that returns one."""


@dataclass
class _RunBoundary(AbstractCapability[DeepAgentDeps]):
    """The parts around every run: the deps' backend, a model of valid text, tools that fail without ending the run,
    approvals before a tool call and the limit of its result.

    It is one capability, because pydantic-ai copies the run's context for every capability at every hook.
    """

    environment: Mapping[str, str]
    """The environment with the keys to remove from results of tools."""
    approvals: Approvals
    eviction: ToolOutputLimits[Any]
    disabled: frozenset[str]
    """The tools that the agent does not have."""
    shell: bool | None
    """Whether the agent has the command tool, as in `create_deep_agent`."""

    def get_ordering(self) -> CapabilityOrdering:
        return CapabilityOrdering(position="outermost")

    def get_workspace(self, ctx: RunContext[DeepAgentDeps], *, ref: WorkspaceRef | None) -> WorkspaceBackend:
        """The backend of the run's deps, even if the message history names another workspace."""
        deps: object = ctx.deps
        if not isinstance(deps, DeepAgentDeps):
            # `Agent.run` has `deps=None` by default, for any type of deps.
            raise TypeError(
                f"a run of this agent takes deps=DeepAgentDeps(backend=…), not deps={deps!r}; all state of a run "
                "is in that backend, and StateBackend() is one in memory"
            )
        if ctx.model is NO_MODEL:
            raise UsageError(
                "No model is set for this agent.",
                "Use create_deep_agent(model), the variable DEEPCTL_MODEL before it, or agent.run(…, model=…). A model "
                'is a name such as "anthropic:claude-sonnet-4-6", or "offline", which needs no network.',
                code="no_model",
            )
        return deps.workspace

    def get_wrapper_model(self, model: Model) -> Model:
        """A model that neither receives nor returns invalid text, in the shape and with the files that it accepts.

        A `FunctionModel` can be used with and without a stream, even if it has only one of its two functions. Raises
        `UsageError` if another event loop uses the model.
        """
        tasks.check_event_loop(model)
        return UnicodeFilterModel(with_media_filter(with_chat_shape(with_both_ways(model))))

    def get_model_settings(self) -> Callable[[RunContext[Any]], ModelSettings]:
        """Prompt caching, where pydantic-ai knows how a provider marks it, unless settings of the model say otherwise.

        The tools, the fixed instructions and the conversation are marked. Settings of a run have priority.
        """
        return lambda ctx: ModelSettings() if "cache" in (ctx.model_settings or {}) else ModelSettings(cache=True)

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        # To decode the variables of a process takes longer than to search a result for their values.
        return GuardedTools(one_by_one(toolset), dict(self.environment), self.disabled, self.shell)

    async def prepare_tools(
        self, ctx: RunContext[DeepAgentDeps], tool_defs: list[ToolDefinition]
    ) -> list[ToolDefinition]:
        return await self.approvals.prepare_tools(ctx, tool_defs)

    async def before_tool_execute(
        self, ctx: RunContext[DeepAgentDeps], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        return await self.approvals.before_tool_execute(ctx, call=call, tool_def=tool_def, args=args)

    async def after_tool_execute(
        self,
        ctx: RunContext[DeepAgentDeps],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        result: Any,
    ) -> Any:
        return await self.eviction.after_tool_execute(ctx, call=call, tool_def=tool_def, args=args, result=result)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """A failure around a tool, in a capability's hook, is a failure of the tool and ends no run."""
        try:
            return await handler(args)
        except FAILURES as error:
            raise ToolFailed(failure_text(error, ctx.workspace)) from error


def _no_model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    raise AssertionError("a run refuses this model")


NO_MODEL = FunctionModel(_no_model, model_name="none")
"""The model of an agent without one."""


_F = TypeVar("_F", bound=Callable[..., Any])


def _explains_arguments(function: _F) -> _F:
    """Make the TypeError for an unknown argument say what to use instead of an argument of pydantic-deep."""
    code = function.__code__
    names = frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for name in options:
            if name not in names:
                raise TypeError(migration.about_argument(name))
        return function(*args, **options)

    return cast("_F", call)


@_explains_arguments
def create_deep_agent(
    model: Model | str | None = None,
    *,
    instructions: Instruction | Sequence[Instruction] | None = None,
    include_memory: bool = True,
    include_plans: bool = True,
    include_execute: bool | None = None,
    include_checkpoints: bool = True,
    checkpoint_frequency: CheckpointFrequency = "every_tool",
    checkpoint_store: CheckpointStore | None = None,
    max_checkpoints: int | None = None,
    approve: Approve = "ask",
    ask: Ask | None = None,
    permissions: Permissions | None = None,
    allowed_commands: Collection[str] | None = (),
    environment: Mapping[str, str] | None = None,
    agent_name: str = layout.AGENT,
    tools: Literal["full", "lean"] = "full",
    disabled_tools: Collection[str] = (),
    context_window: int | None = None,
    shared_memory: SharedMemory | None = None,
    capabilities: Sequence[AbstractCapability[DeepAgentDeps]] = (),
    output_type: OutputSpec[OutputDataT] = str,  # type: ignore[assignment]
) -> Agent[DeepAgentDeps, OutputDataT]:
    """An agent with files, memory, plans, a to-do list, eviction of large results and context files.

    It holds no user's state: every run takes `deps=DeepAgentDeps(backend=…)` and works in that backend only.

    Args:
        model: A pydantic-ai model, its name, or `offline`. By default the name in `$DEEPCTL_MODEL`, which is read now;
            without it, a run that names no model raises `UsageError`.
        instructions: Additional instructions, in the forms that pydantic-ai's `Agent` accepts.
        include_memory: Whether the agent has notebooks, in `.deep/memory/<agent_name>/`.
        include_plans: Whether the agent has `save_plan` and the to-do list.
        include_execute: Whether the agent has a shell. The backend decides where its commands run; without commands of
            the backend, the agent has no shell. By default, it has one in a `LocalBackend` with a sandbox only.
        include_checkpoints: Whether the agent has `save_checkpoint`, `list_checkpoints` and `rewind_to`, and
            checkpoints are made in the `checkpoint_store` of the run's deps, if it has one.
        checkpoint_frequency: The time of checkpoints: `every_turn`, `every_tool` (at the start and end of a turn, and
            after every tool call that could have changed something) or `manual_only`.
        checkpoint_store: The store for runs whose deps have none. All such runs share it, so that it is only right
            for an agent of one user.
        max_checkpoints: The number of checkpoints that stay after a run; by default all. Checkpoints with a label that
            the agent or the application chose stay, too. Runs of a profile ignore it; see `OpenProfile.prune`. Raises
            `BadSetting` if it is not at least 1.
        approve: The answer to approval requests, for unsandboxed commands and for operations with the rule `ask` in
            `permissions`: `ask` (the function `ask`; without one, no), `auto` (yes) or `never` (no).
        ask: Shows a command, or the diff of a change, to a person and returns the answer.
        permissions: Rules for reading, writing, editing and commands; `deepctl.domain.permissions.parse` reads them.
        allowed_commands: Kinds of commands that need no approval, such as `git log`: `deepctl.domain.commands.kinds`
            has the list. An `ask` that answers with the choice of a kind allows it in this backend while the agent
            exists. With `None`, no kind can be allowed.
        environment: The variables with the keys that are removed from results of tools; by default those of this
            process.
        agent_name: The name of the agent, which selects its memory.
        tools: `full`, or `lean` for the tools for files, commands and memory only, whose descriptions take fewer
            tokens. Raises `UsageError` for a list: tools of the application are `capabilities`.
        disabled_tools: Names of more tools that the agent does not have. Raises `BadSetting` for an unknown one.
        context_window: The context window of the model in tokens, if the model's own value must not be used. A result
            of a tool that would take more than about a quarter of the window goes to a file.
        shared_memory: The notebooks of other profiles that the agent of a profile may read.
        capabilities: More capabilities of pydantic-ai. `Toolset(FunctionToolset([f]))` adds the function `f` as a tool.
        output_type: The type of the answer, as in pydantic-ai's `Agent`.
    """
    if not isinstance(tools, str):
        raise UsageError(
            f"tools= of create_deep_agent is 'full' or 'lean', not {type(tools).__name__}: it selects built-in tools.",
            "Add tools of your own by `capabilities=[Toolset(FunctionToolset([f]))]`, with `Toolset` of "
            "pydantic_ai.capabilities and `FunctionToolset` of pydantic_ai, or by the decorator `agent.tool`.",
        )
    disabled = names_of_disabled(tools, disabled_tools)
    rules = permissions or {}
    secrets = os.environ if environment is None else environment
    eviction = _eviction(context_window)
    toolsets: list[object] = [console_toolset(include_execute is not False, rules)]
    if include_checkpoints:
        toolsets.append(checkpoints_toolset(checkpoint_store))
    if include_plans:
        toolsets.append(plans_toolset())
    toolsets.append(eviction.get_toolset())
    if include_memory:
        memory = Memory(store_resolver=memory_store, agent_name=agent_name, inject_memory=False)
        toolsets.append(MemoryToolset(memory) if shared_memory is None else SharedMemoryToolset(memory, shared_memory))
    if include_plans:
        toolsets.append(PlanningToolset(_Planning(tools=["write_plan"])))
    own_tools = _OwnTools(
        [
            tool
            for toolset in toolsets
            for name, tool in (toolset.tools.items() if isinstance(toolset, FunctionToolset) else ())
            if name not in disabled
        ],
        id="deepctl",
    )
    own_tools.shell = include_execute
    names = frozenset(own_tools.tools)
    parts: list[AbstractCapability[Any]] = [
        _RunBoundary(
            secrets,
            Approvals(approve=approve, ask=ask, permissions=rules, allowed_commands=allowed_commands),
            eviction,
            disabled,
            include_execute,
            id=CAPABILITY,
        ),
        TurnContext(
            secrets,
            approve,
            ask is not None,
            rules,
            agent_name,
            names,
            memory=memory_store if include_memory else None,
            shared=shared_memory if include_memory else None,
            plan=(lambda ctx: _todo_store(ctx).valid_items()) if "write_plan" in names else None,
        ),
    ]
    if include_checkpoints:
        parts.append(Checkpointing(checkpoint_frequency, checkpoint_store, max_checkpoints))
    model = model or os.environ.get("DEEPCTL_MODEL") or NO_MODEL
    return Agent(
        offline_model() if model == OFFLINE else model,
        name=agent_name,
        deps_type=DeepAgentDeps,
        output_type=output_type,
        instructions=[*fixed_instructions(names), *_listed(instructions)],
        toolsets=[FixedTools(own_tools)],
        capabilities=[*parts, *capabilities],
        retries={"tools": UNLIMITED_RETRIES},
        defer_model_check=True,
    )


class _OwnTools(FunctionToolset[Any]):
    """The agent's own tools, with the instructions about the workspace of the run."""

    shell: bool | None = None
    """Whether the agent has the command tool, as in `create_deep_agent`."""

    async def get_instructions(self, ctx: RunContext[Any]) -> list[InstructionPart]:
        """A part that is not dynamic, because it is the same in a session, so it is before the cache marker."""
        has_shell = "execute" in self.tools and runs_commands(ctx.workspace, self.shell)
        return [InstructionPart(await workspace_instructions(ctx, has_shell=has_shell))]


def _listed(instructions: Instruction | Sequence[Instruction] | None) -> list[Instruction]:
    if instructions is None:
        return []
    entries = [instructions] if isinstance(instructions, str) or callable(instructions) else list(instructions)
    # pydantic-ai makes a digest of them before the model sees them.
    return [whole(entry) if isinstance(entry, str) else entry for entry in entries]


def _eviction(window: int | None) -> ToolOutputLimits[Any]:
    """Results of more than 20,000 characters are stored in a file; those of `read_file`, which can read in pages, above
    100,000. No result takes more than about a quarter of the context window.
    """
    action = Spill(then=Truncate())
    return _Eviction(
        bands=[Band(over=EVICT_OVER, action=action)],
        per_tool={"read_file": [Band(over=EVICT_FILE_OVER, action=action)]},
        store=EvictedResults(),
        window=window,
    )


_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def memory_store(ctx: RunContext[Any]) -> FileStore:
    """The Markdown notebooks below `.deep/memory`."""
    return _MemoryStore(layout.MEMORY_DIRECTORY, workspace=_Notebooks(files_of(ctx.workspace)))


class _MemoryStore(FileStore):
    """Searches like `memory search`: text is compared as by `deepctl.unicode.fold`; the harness uses `lower()`."""

    async def search(
        self, prefix: str, query: str, *, limit: int, max_files: int, max_chars: int, max_file_chars: int
    ) -> MemorySearchResult:
        words = [fold(word) for word in query.split()]
        # Notebooks in a subdirectory belong to other agents.
        paths = await self._list_paths(prefix, limit=max_files + 1, nested=False)
        is_truncated = len(paths) > max_files
        hits: list[tuple[float, str, str]] = []
        for path in paths[:max_files]:
            try:
                notebook = await self.read(path, max_chars=max_file_chars)
            except ValueError:
                continue  # the path leads out of the directory
            if notebook is None:
                is_truncated = True
                continue
            is_truncated = is_truncated or notebook.truncated
            text, name = fold(notebook.content), fold(path.removeprefix(prefix))
            count = sum(text.count(word) + 2 * name.count(word) for word in words)
            if count:
                hits.append((float(count), path, notebook.content))
        hits.sort(key=lambda hit: (-hit[0], hit[1]))
        matches: list[MemorySearchMatch] = []
        room = max_chars
        for score, path, content in hits[:limit]:
            room -= len(path.removeprefix(prefix))
            if room <= 0:
                break
            matches.append(MemorySearchMatch(path, _around(content, words, room), score))
            room -= len(matches[-1].snippet)
        return MemorySearchResult(matches, len(paths[:max_files]), is_truncated or len(matches) < len(hits))


def _around(content: str, words: list[str], room: int) -> str:
    """Up to `room` characters of a notebook, with the first match."""
    first = next((start for start, _ in spans(content, words)), 0)
    start = max(0, min(first - room // 3, len(content) - room))
    snippet = content[start : start + room]
    if room > 6:
        snippet = f"...{snippet[3:]}" if start else snippet
        snippet = f"{snippet[:-3]}..." if start + room < len(content) else snippet
    return snippet


class _Notebooks(WrapperWorkspace):
    """Reads and writes notebooks as text, even those that are not UTF-8."""

    async def read_text(self, path: str, *, encoding: str = "utf-8") -> str:
        return as_text(await self.read_bytes(path))

    async def write_text(self, path: str, content: str, *, encoding: str = "utf-8") -> None:
        try:
            before = await self.read_bytes(path)
        except OSError:
            before = b""  # it does not exist yet, or the write reports the problem
        await self.write_bytes(path, as_bytes(content, before))


class TodoStore(InMemoryPlanStore):
    """The to-do list of a session, or of a workspace without sessions: read before and written after every change.

    An invalid file reads as an empty list, so that the agent can still answer, and is never overwritten: a change to it
    is a failure that the model sees.
    """

    def __init__(self, workspace: Workspace, session: str | None = None) -> None:
        super().__init__()
        self._workspace = files_of(workspace)
        self._path = layout.todo_file(session) if session is not None else layout.TODO_FILE
        self._shown_path = own_path(workspace, self._path)

    async def _load(self, *, to_change: bool = True) -> None:
        self._items = []
        try:
            if ((await self._workspace.stat(self._path)).size or 0) > todo.MAX_BYTES:
                raise ValueError("it is too large")
            items = todo.parse(await self._workspace.read_bytes(self._path))
            self._items = [PlanItem.model_validate(item) for item in items]
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if to_change:
                raise ToolFailed(f"{self._shown_path} is not a to-do list: {error}. Repair or remove it.") from None

    async def _save(self) -> None:
        document = {"version": todo.FORMAT, "items": [item.model_dump(mode="json") for item in self._items]}
        await self._workspace.write_bytes(self._path, json.dumps(document, indent=1).encode() + b"\n")

    async def get_items(self) -> list[PlanItem]:
        await self._load(to_change=False)
        return await super().get_items()

    async def valid_items(self) -> list[PlanItem]:
        """The list. Raises `ToolFailed` if the file is invalid."""
        await self._load()
        return await super().get_items()

    async def get_item(self, item_id: str) -> PlanItem | None:
        await self._load(to_change=False)
        return await super().get_item(item_id)

    async def set_items(self, items: list[PlanItem]) -> None:
        await self._load()
        await super().set_items(items)
        await self._save()

    async def add_item(self, item: PlanItem) -> PlanItem:
        await self._load()
        new_item = await super().add_item(item)
        await self._save()
        return new_item

    async def update_item(self, item_id: str, **changes: Any) -> PlanItem | None:
        await self._load()
        item = await super().update_item(item_id, **changes)
        await self._save()
        return item

    async def remove_item(self, item_id: str) -> bool:
        await self._load()
        is_removed = await super().remove_item(item_id)
        await self._save()
        return is_removed


def _todo_store(ctx: RunContext[DeepAgentDeps]) -> TodoStore:
    return TodoStore(ctx.workspace, ctx.deps.session)


class _Planning(Planning[Any]):
    """Only for its toolset, so it is not a capability of a run, and all runs share this object."""

    def resolve_store(self, ctx: RunContext[Any]) -> PlanStore:
        """The store of this run. The harness would keep the one of the first run for all users."""
        return _todo_store(ctx)


@dataclass
class _Eviction(ToolOutputLimits[Any]):
    """Lowers the sizes to the context window in force, as far as it is known.

    Names no tool for reading a large result if the agent has no tool `read_tool_result`.
    """

    window: int | None = None
    """The context window in tokens, if the model's own value must not be used."""

    async def after_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any], result: Any
    ) -> Any:
        # At each call, because the window of your own server becomes known during a run.
        window = window_of(ctx.model, self.window) if isinstance(ctx.model, Model) else self.window
        limits = self
        if window is not None:
            most = large_size(window)
            if tool_def.tool_kind == READ_TOOL_RESULT_KIND.id and isinstance(result, str) and len(result) > most:
                # The harness does not limit this result by `bands`.
                return f"{result[:most]}\n[cut; read fewer lines at once]"
            per_tool = {name: _lowered(bands, most) for name, bands in self.per_tool.items()}
            limits = replace(self, bands=_lowered(self.bands, most), per_tool=per_tool)
        reduce = partial(super(_Eviction, limits).after_tool_execute, ctx, call=call, tool_def=tool_def, args=args)
        if not isinstance(result, list) or not any(isinstance(item, BinaryContent) for item in result):
            return await reduce(result=result)
        # The limit is for text. As text, a picture would always be too large.
        text = "\n".join(item for item in result if isinstance(item, str))
        reduced = await reduce(result=text)
        if isinstance(reduced, str) and reduced == text:
            return result
        files = [item for item in result if not isinstance(item, str)]
        if isinstance(reduced, ToolReturn):
            return replace(reduced, return_value=[reduced.return_value, *files])
        return [reduced, *files]

    def _read_hint(self, ctx: RunContext[Any], handle: str) -> str:
        if ctx.tool_name_for_kind(READ_TOOL_RESULT_KIND) is None:
            return f" It is a file: {handle}"
        return super()._read_hint(ctx, handle)


def _lowered(bands: Sequence[Band], most: int) -> list[Band]:
    return [replace(band, over=min(band.over, most)) for band in bands]


if "_read_hint" not in vars(ToolOutputLimits):
    raise ImportError("deepctl does not support how this version of pydantic-ai-harness names large results")


@dataclass
class EvictedResults(WorkspaceStore):
    """Tool results that are too large for the context, as `large_tool_results/<call_id>`."""

    async def write(self, workspace: Workspace, key: str, data: bytes) -> str:
        files = files_of(workspace)
        # The key is `<run>/<call id>.<retry>`, followed by `.content` for a result's second half.
        call, _, number_part = key.rpartition("/")[2].rpartition(".")
        name = _UNSAFE.sub("_", call if number_part.isdigit() else key.rpartition("/")[2]).lstrip(".") or "result"
        path = posixpath.join(layout.EVICTED_DIRECTORY, name)
        number = 2
        while await files.exists(path):
            # Some providers restart their call ids in every answer.
            path = posixpath.join(layout.EVICTED_DIRECTORY, f"{name}-{number}")
            number += 1
        await files.write_bytes(path, data)
        return own_path(workspace, path)

    async def read(self, workspace: Workspace, handle: str) -> bytes:
        directory, name = posixpath.split(posixpath.normpath(handle))
        if posixpath.basename(directory) != layout.EVICTED_DIRECTORY or not name:
            raise PermissionError(f"{handle!r} is not an evicted result")
        return await files_of(workspace).read_bytes(posixpath.join(layout.EVICTED_DIRECTORY, name))
