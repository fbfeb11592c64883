"""The checkpoints of an agent's runs: the classes that make them, and the agent's tools for them.

`Checkpointing` is a capability of every agent. It reports the events of a run to its checkpoints. `StoreCheckpoints`
are those of an application, in any `CheckpointStore`; `TurnCheckpoints` are those of a profile's session, which
`deepctl chat` makes. Both are `AgentCheckpoints`, which the tools of `checkpoints_toolset` use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import anyio
from pydantic_ai import FunctionToolset, RunContext
from pydantic_ai.capabilities import (
    AbstractCapability,
    CapabilityOrdering,
    WrapRunHandler,
    WrapToolExecuteHandler,
)
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    TextContent,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    repair_messages,
)
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import ToolDefinition

from deepctl.agent import delegation
from deepctl.agent.backend import LocalBackend, failure_in_words
from deepctl.agent.checkpoint_stores import (
    Checkpoint,
    CheckpointFrequency,
    CheckpointStore,
    before_tool,
    check_keep,
    new_checkpoint,
    prune,
)
from deepctl.agent.file_checkpoint_store import FileCheckpointStore
from deepctl.agent.interruption import STOPPED, Blocking, Emit, directly, storing
from deepctl.agent.message_filters import has_typed_text
from deepctl.errors import DeepctlError, Interrupted, Refused
from deepctl.quantities import counted
from deepctl.store import diff, lookup, not_covered, rewind, session_log, trees, workspaces
from deepctl.store.lookup import CheckpointNotFound
from deepctl.store.not_covered import Look, NotCovered
from deepctl.store.records import OTHER, Position, Record, SessionRecord, check_label
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindRequest
from deepctl.store.tool_calls import ToolCall
from deepctl.store.trees import TreeChange
from deepctl.unicode import one_line

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestContext

READ_ONLY_TOOLS = frozenset(
    {
        "glob",
        "grep",
        "list_checkpoints",
        "load_capability",
        "ls",
        "read_file",
        "read_memory",
        "read_tool_result",
        "save_checkpoint",
        "search_memory",
        "search_sessions",
        "ask_user",
        "web_fetch",
        "web_search",
    }
)
"""Tools that do not change the workspace."""
FILE_TOOLS = frozenset({"delete_memory", "edit_file", "save_plan", "write_file", "write_memory", "write_plan"})
"""Tools that change only files, and only by the methods of the workspace, which announces each change."""
_SHOWN = 50
_UNKEPT_SHOWN = 3
_NAMES_SHOWN = 5


_LISTENER: ContextVar[Emit | None] = ContextVar("deepctl_checkpoint_listener", default=None)


@contextmanager
def reported_to(emit: Emit) -> Iterator[None]:
    """Inside this context, `emit` receives an event for each checkpoint that `StoreCheckpoints` make."""
    token = _LISTENER.set(emit)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class RewindRequested(Exception):
    """The agent requests a rewind to a checkpoint: its run has ended, and the caller starts it again from there.

    `deepctl chat` handles this itself. An application catches it around `agent.run`. If the checkpoint has files, they
    are already restored.

    Attributes:
        checkpoint_id: The checkpoint.
        label: Its label, which may be empty.
        messages: The conversation up to it, for `message_history`.
        reason: The agent's note for itself about the undone work.
    """

    def __init__(self, checkpoint_id: str, label: str, messages: list[ModelMessage], reason: str = "") -> None:
        name = f"{label!r} ({checkpoint_id})" if label else repr(checkpoint_id)
        super().__init__(f"Rewind requested to checkpoint {name}")
        self.checkpoint_id = checkpoint_id
        self.label = label
        self.messages = messages
        self.reason = reason

    def prompt(self, prompt: str | Sequence[UserContent]) -> list[UserContent]:
        """The prompt for the new start: the user's prompt, and a note about the undone work."""
        note = f"You rewound to checkpoint {self.label or self.checkpoint_id}; your later work is undone."
        if self.reason:
            note += f" You noted: {self.reason}"
        items = [prompt] if isinstance(prompt, str) else prompt
        return [*items, TextContent(content=note, metadata={"deepctl": "rewound"})]


@runtime_checkable
class AgentCheckpoints(Protocol):
    """The checkpoints of a run for its agent. Methods raise `DeepctlError` for an impossible operation."""

    async def tool_starts(self, ctx: RunContext[Any], name: str) -> None:
        """A tool is about to run; it is not the author of earlier changes."""
        ...

    async def save_labelled(self, ctx: RunContext[Any], label: str) -> str:
        """Make a checkpoint called `label`; returns its id."""
        ...

    async def describe_all(self, ctx: RunContext[Any]) -> list[str]:
        """A line for each checkpoint, oldest first."""
        ...

    async def rewind(self, ctx: RunContext[Any], reference: str, reason: str) -> NoReturn:
        """Raises `RewindRequested`."""
        ...


def _of_run(ctx: RunContext[Any], default: CheckpointStore | None) -> AgentCheckpoints | None:
    """The checkpoints of a run: those of its deps, or else those in the store of the agent."""
    deps = ctx.deps
    return deps.checkpoints_or(default) if hasattr(deps, "checkpoints_or") else None


@contextmanager
def _failing(ctx: RunContext[Any]) -> Iterator[None]:
    """An impossible operation is a failure of the tool."""
    try:
        yield
    except DeepctlError as error:
        raise ToolFailed(failure_in_words(error.message, ctx.workspace)) from error


def checkpoints_toolset(default: CheckpointStore | None = None) -> FunctionToolset[Any]:
    """The toolset with the three tools; `default` is the store of runs whose deps have none."""
    toolset: FunctionToolset[Any] = FunctionToolset(id="checkpoints")

    def _checkpoints(ctx: RunContext[Any]) -> AgentCheckpoints:
        checkpoints = _of_run(ctx, default)
        if checkpoints is None:
            raise ToolFailed("There are no checkpoints in this run.")
        return checkpoints

    @toolset.tool
    async def save_checkpoint(ctx: RunContext[Any], label: str) -> str:
        """Save the conversation and the workspace as they are, before something risky, to be able to go back.

        Args:
            ctx: The run context.
            label: A short name: letters, digits, dashes and dots.
        """
        with _failing(ctx):
            return f"Saved checkpoint {await _checkpoints(ctx).save_labelled(ctx, label)} as {label}"

    @toolset.tool
    async def list_checkpoints(ctx: RunContext[Any]) -> str:
        """List the checkpoints there are, oldest first."""
        with _failing(ctx):
            return "\n".join(await _checkpoints(ctx).describe_all(ctx)) or "There are no checkpoints yet."

    @toolset.tool
    async def rewind_to(ctx: RunContext[Any], checkpoint: str, reason: str = "") -> str:
        """Go back to a checkpoint: what you did since then, in files, memory and conversation, is undone.

        This ends what you are doing; the user's request is then put to you again.

        Args:
            ctx: The run context.
            checkpoint: The id or the label of the checkpoint.
            reason: What you learned and should do differently; it is all you will remember of what is undone.
        """
        with _failing(ctx):
            await _checkpoints(ctx).rewind(ctx, checkpoint, reason)

    return toolset


def _rewound_already(identity: str) -> Refused:
    return Refused(f"You have already rewound to {identity} once for this request. Continue from here.")


class BackendDirectories(NamedTuple):
    """The directories on this machine that a backend works in, as far as there are any: with a `project`, the
    `workspace` is that of its profile.
    """

    workspace: str | None = None
    project: str | None = None


def directories_of(backend: object) -> BackendDirectories:
    """The directories of a backend."""
    root = getattr(backend, "root_dir", None)
    if root is None or not os.path.isdir(root):
        return BackendDirectories()
    profile = getattr(backend, "profile_dir", None)
    return BackendDirectories(os.fspath(root)) if profile is None else BackendDirectories(profile, os.fspath(root))


def _turns(conversation: list[ModelMessage]) -> int:
    """The number of prompts; text that capabilities add in the user's role carries metadata."""
    return sum(any(map(has_typed_text, message.parts)) for message in conversation if isinstance(message, ModelRequest))


class StoreCheckpoints:
    """The checkpoints of a store for an agent, made during its runs.

    `directories` contain the backend's files on this machine; only a `FileCheckpointStore` stores files.
    """

    def __init__(self, store: CheckpointStore, directories: BackendDirectories) -> None:
        self.store = store
        self._directory, self._project = directories
        self._rewound: set[tuple[str, str]] = set()
        self._results: dict[str | None, list[ToolReturnPart]] = {}
        self._at_work: set[str | None] = set()
        self._requests: dict[str | None, RunContext[Any]] = {}
        self.frequency: CheckpointFrequency = "manual_only"
        """The policy for automatic checkpoints."""
        self.max_checkpoints: int | None = None
        """The number of checkpoints that stay after a run besides the labelled ones; `None` for all."""

    @property
    def _between_tools(self) -> bool | None:
        """Whether changes between tool calls are the agent's; `None` if that is unknown.

        If the files are stored around every tool call, they are not. If they are stored only for turns, all changes of
        a turn are the agent's; otherwise the last snapshot may be older than the turn.
        """
        return {"every_tool": False, "every_turn": True}.get(self.frequency)

    async def tool_starts(self, ctx: RunContext[Any], name: str) -> None:
        """Store changes by another author since the last tool call."""
        if name in READ_ONLY_TOOLS or self.frequency != "every_tool":
            return
        if self._directory is not None and isinstance(self.store, FileCheckpointStore):
            label, metadata = before_tool(name, {"run": ctx.run_id})
            checkpoint = new_checkpoint(label, _turns(ctx.messages), self.conversation(ctx), metadata)
            await self.store.save(
                checkpoint, workspace=self._directory, by_agent=False, only_changed=True, project=self._project
            )
        self._at_work.add(ctx.run_id)

    def tool_done(self, ctx: RunContext[Any], part: ToolReturnPart) -> None:
        """A tool has returned; pydantic-ai adds its result to the messages only when all results of the same answer are
        complete.
        """
        self._at_work.discard(ctx.run_id)
        self._results.setdefault(ctx.run_id, []).append(part)

    def answered(self, ctx: RunContext[Any]) -> None:
        """A prompt has its answer: if the prompt is sent again, the agent may rewind again."""
        prompt = _asked(ctx)
        self._rewound = {rewind for rewind in self._rewound if rewind[0] != prompt}

    def request_starts(self, ctx: RunContext[Any]) -> None:
        """A request is about to be sent. Its context has the messages that follow; that of the whole run has not."""
        self._requests[ctx.run_id] = ctx

    def run_done(self, ctx: RunContext[Any]) -> None:
        """A run has ended."""
        self._results.pop(ctx.run_id, None)
        self._requests.pop(ctx.run_id, None)
        self._at_work.discard(ctx.run_id)

    async def run_starts(self, ctx: RunContext[Any], conversation: list[ModelMessage]) -> None:
        """Store the state before a run, which is the user's."""
        metadata = {"kind": "turn", "run": ctx.run_id}
        await self.save(f"turn-{_turns(conversation)}", conversation, metadata, by_agent=False)

    async def run_ends(self, ctx: RunContext[Any], conversation: list[ModelMessage]) -> None:
        """Store the state after a run, also after an interruption in the middle of a tool."""
        by_agent = True if ctx.run_id in self._at_work else self._between_tools
        metadata = {"kind": "turn", "run": ctx.run_id, "ended": True}
        await self.save(f"turn-{_turns(conversation)}", conversation, metadata, by_agent=by_agent)
        if self.max_checkpoints is not None:
            # The run has its answer. What cannot be removed now is removed after the next run.
            with suppress(DeepctlError, OSError):
                await prune(self.store, self.max_checkpoints)

    async def run_broke_off(self, ctx: RunContext[Any]) -> None:
        """Store the state after a failed or cancelled run; its error is reported, not an error of this method."""
        with anyio.CancelScope(shield=True), suppress(DeepctlError, OSError):
            await self.run_ends(ctx, self.conversation(self._requests.get(ctx.run_id, ctx)))

    def conversation(self, ctx: RunContext[Any]) -> list[ModelMessage]:
        """The messages of a run with the results so far."""
        so_far = list(ctx.messages)
        last = so_far[-1] if so_far else None
        call_ids = {part.tool_call_id for part in last.parts if isinstance(part, ToolCallPart)} if last else set()
        results = [part for part in self._results.get(ctx.run_id, ()) if part.tool_call_id in call_ids]
        return [*so_far, ModelRequest(parts=results)] if results else so_far

    async def save(
        self, label: str, conversation: list[ModelMessage], metadata: dict[str, Any], *, by_agent: bool | None = True
    ) -> str:
        """Make a checkpoint; returns its id."""
        checkpoint = new_checkpoint(label, _turns(conversation), conversation, metadata)
        if isinstance(self.store, FileCheckpointStore):
            await self.store.save(checkpoint, workspace=self._directory, by_agent=by_agent, project=self._project)
        else:
            await self.store.save(checkpoint)
        if (emit := _LISTENER.get()) is not None:
            emit({"type": "checkpoint", "id": checkpoint.id, "kind": metadata["kind"]})
        return checkpoint.id

    async def save_labelled(self, ctx: RunContext[Any], label: str) -> str:
        """Make a checkpoint that the agent asked for. Raises `BadName`, or `Refused` if the label is taken."""
        check_label(label)
        if await self.store.get_by_label(label) is not None:
            raise Refused(f"There is already a checkpoint called {label!r}.", code="label_exists")
        metadata: dict[str, Any] = {"kind": "manual"}
        if self.frequency != "manual_only":
            metadata["run"] = ctx.run_id
        return await self.save(label, self.conversation(ctx), metadata, by_agent=self._between_tools)

    async def describe_all(self, ctx: RunContext[Any]) -> list[str]:
        """A line for each checkpoint, oldest first."""
        return [
            f"{checkpoint.id} {checkpoint.label} turn {checkpoint.turn}, "
            f"{counted(checkpoint.message_count, 'message')}, {checkpoint.created_at:%F %T %z}"
            for checkpoint in await self.store.list_all()
        ]

    async def rewind(self, ctx: RunContext[Any], reference: str, reason: str) -> NoReturn:
        """Restore the files and raise `RewindRequested`; refused the second time for the same prompt."""
        target = await self.store.get(reference) or await self.store.get_by_label(reference)
        if target is None:
            raise CheckpointNotFound(f"There is no checkpoint {reference!r}.", "`list_checkpoints` lists them.")
        rewind_key = (_asked(ctx), target.id)
        if rewind_key in self._rewound:
            raise _rewound_already(target.id)
        await self._restore(target)
        self._rewound.add(rewind_key)
        raise RewindRequested(target.id, target.label, repair_messages(target.messages), reason)

    async def _restore(self, target: Checkpoint) -> None:
        if isinstance(self.store, FileCheckpointStore) and self._directory and target.has_files:
            by_agent = None if self.frequency == "manual_only" else True
            await self.store.rewind(target.id, self._directory, by_agent=by_agent)


def _asked(ctx: RunContext[Any]) -> str:
    prompt = ctx.prompt
    if isinstance(prompt, str):
        return prompt
    return "\n".join(item for item in prompt or () if isinstance(item, str))


@dataclass
class Checkpointing(AbstractCapability[Any]):
    """Makes checkpoints in the store of a run's deps: at its start, after tool calls, and at its end.

    `frequency` is `every_tool`, `every_turn` (not after tool calls) or `manual_only`. `store` is for deps without one.
    Without any store, or with one that makes its own checkpoints, nothing is made. After a run, `max_checkpoints` stay,
    and the labelled ones.
    """

    frequency: CheckpointFrequency = "every_tool"
    store: CheckpointStore | None = None
    max_checkpoints: int | None = None

    def __post_init__(self) -> None:
        if self.max_checkpoints is not None:
            check_keep(self.max_checkpoints)

    def _store(self, ctx: RunContext[Any]) -> StoreCheckpoints | None:
        checkpoints = _of_run(ctx, self.store)
        if not isinstance(checkpoints, StoreCheckpoints) or delegation.current() is not None:
            # The conversation of a sub-agent is not one to return to. Its work is that of its parent's call.
            return None
        checkpoints.frequency = self.frequency
        checkpoints.max_checkpoints = self.max_checkpoints
        return checkpoints if self.frequency != "manual_only" else None

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        """Store the end of an interrupted run, and drop its state."""
        try:
            return await handler()
        except BaseException as error:
            store = self._store(ctx)
            # A rewind stores the end itself. A discarded run (GeneratorExit) must not wait.
            if store is not None and not isinstance(error, RewindRequested | GeneratorExit):
                await store.run_broke_off(ctx)
            raise
        finally:
            store = self._store(ctx)
            if store is not None:
                store.run_done(ctx)

    async def before_run(self, ctx: RunContext[Any]) -> None:
        """Store the state before the turn, which is the user's."""
        store = self._store(ctx)
        if store is not None:
            before = [message for message in ctx.messages if message.run_id != ctx.run_id]
            await store.run_starts(ctx, before)

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        """Note the messages of the run, for the case that it breaks off."""
        store = self._store(ctx)
        if store is not None:
            store.request_starts(ctx)
        return request_context

    def get_ordering(self) -> CapabilityOrdering:
        """Closest to the tool, because an approval request may take long."""
        return CapabilityOrdering(position="innermost")

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        """Report the start of a tool to the checkpoints of the run."""
        checkpoints = _of_run(ctx, self.store)
        is_inside = isinstance(checkpoints, StoreCheckpoints) and delegation.current() is not None
        if checkpoints is not None and not is_inside:
            await checkpoints.tool_starts(ctx, call.tool_name)
        return await handler(args)

    async def after_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any], result: Any
    ) -> Any:
        """Store the state after a tool call that could have changed something, with its result."""
        store = self._store(ctx)
        if store is not None:
            store.tool_done(ctx, ToolReturnPart(call.tool_name, result, call.tool_call_id))
            if self.frequency == "every_tool" and call.tool_name not in READ_ONLY_TOOLS:
                conversation = store.conversation(ctx)
                label = f"tool-{_turns(conversation)}-{call.tool_name}"
                metadata = {"kind": "tool", "last_tool": call.tool_name, "run": ctx.run_id}
                await store.save(label, conversation, metadata)
        return result

    async def after_run(self, ctx: RunContext[Any], *, result: AgentRunResult[Any]) -> AgentRunResult[Any]:
        """Store the state after the turn."""
        store = self._store(ctx)
        if store is not None:
            store.answered(ctx)
            await store.run_ends(ctx, result.all_messages())
        return result


def _names(paths: Iterable[str]) -> str:
    """The first of some paths, each on one line, and the number of the others."""
    names = [one_line(path) for path in paths]
    remainder = [f"and {len(names) - _NAMES_SHOWN:,} more"] if len(names) > _NAMES_SHOWN else []
    return ", ".join([*names[:_NAMES_SHOWN], *remainder])


class TurnWork(NamedTuple):
    """The changes of a turn: numbers of files and lines (`None` if there is too much to count), and the id of the
    checkpoint before it.
    """

    files: int
    added_lines: int | None
    removed_lines: int | None
    checkpoint: str


class TurnCheckpoints:
    """The checkpoints of one turn of a profile's session.

    `attempt` starts the turn, and starts it again after the agent has rewound it. `blocking` runs what the methods do
    in the middle of the run. Other methods block.
    """

    def __init__(self, work: Repository, prompt: str, emit: Emit, blocking: Blocking = directly) -> None:
        self._work = work
        self._prompt = prompt
        self._blocking = blocking
        self.emit = emit
        self.workspace = work.paths.workspace
        self._rewound: set[str] = set()
        self._first: Record | None = None
        self._call: ToolCall | None = None
        self._look: Look | None = None
        self._had_repository = False
        self._not_covered = NotCovered([], [])
        self._start: Record | None = None
        """The checkpoint of the state before the turn."""
        self._records: list[Record] = []
        """The checkpoints of the turn, after `_start`."""
        self.created_repositories: list[str] = []
        """Nested repositories that commands of the turn created, relative to the project."""
        self.latest: Record | None = None

    def attempt(self, session: SessionRecord, before: Position, writer: session_log.LogWriter) -> None:
        """The turn starts, or starts again, with the conversation at `before`."""
        self._session = session
        self._before = before
        self._writer = writer
        self._is_over = False
        self._call = None

    def started(self, session: SessionRecord, before: Position) -> None:
        """Store the state before the turn."""
        self._first = self._work.head(session)
        self._tell_all(self._work.before_turn(session, before))
        self._start = self.latest or self._first
        self._records.clear()
        self._had_repository = self._start is not None and bool(self._start.git)
        self._look = self._looked(session)

    async def tool_starts(self, ctx: RunContext[Any], name: str) -> None:
        """A tool is about to run. If it could change any file, store what another author has changed before."""
        call, workspace = ToolCall(name, self._position()), ctx.workspace
        # A read-only tool writes a large result into a file.
        if name in READ_ONLY_TOOLS | FILE_TOOLS and isinstance(workspace, LocalBackend):
            call.paths = set()
            workspace.announce_changes(self._before_change)
        await self._stored(lambda: self._work.before_tool(self._session, call))
        self._call = call

    async def _before_change(self, root: str, path: str) -> None:
        """The workspace announces a change of a file."""
        call = self._call
        if call is not None:
            await self._stored(lambda: self._work.before_change(self._session, call, self._position(), root, path))

    async def tool_done(self, name: str) -> None:
        """Store the state after a tool call that changed something."""
        call, self._call = self._call, None
        if call is not None:
            await self._stored(lambda: self._work.after_tool(self._session, call, self._position()))

    async def _stored(self, save: Callable[[], list[Record]]) -> None:
        """Make checkpoints in the middle of the run, and report them."""

        def stored() -> list[Record]:
            with storing():
                return save()

        with self._stoppable():
            self._tell_all(await self._blocking(stored))

    def ended(self, stopped: str = "") -> None:
        """Store the state after the turn, unless the turn was empty or has been rewound.

        `stopped` is the code of the error that ended the turn.
        """
        if self._writer.count and not self._is_over:
            with self._stoppable():
                self._end(stopped)

    def _end(self, stopped: str) -> None:
        look = self._looked(self._session) if self._look is not None else None
        if self._look is not None and look is not None:
            self._not_covered = not_covered.changes(self._look, look)
        paths = [os.fsdecode(path) for path in self._not_covered.paths]
        position = self._position()
        records = self._work.after_turn(self._session, position, call=self._call, not_covered=paths, stopped=stopped)
        self._tell_all(records, [os.fsdecode(path) for path in self._not_covered.unseen])

    def _looked(self, session: SessionRecord) -> Look | None:
        """The state of what checkpoints do not cover, `None` without a project, or if its directory is gone."""
        try:
            return self._work.look(session)
        except OSError:
            return None

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """After an interruption inside this context, the turn gets no checkpoint at its end.

        In a workspace full of huge files, another try would take as long.
        """
        try:
            yield
        except STOPPED:
            self._is_over = True
            raise

    def work(self) -> TurnWork | None:
        """What the agent has changed since the start of the turn, from its checkpoints; `None` if they do not tell."""
        start, end = self._start, self.latest
        if start is None or end is None or end is start or not (start.tree and end.tree):
            return None
        objects = self._work.objects
        try:
            net = list(trees.changes(objects, bytes.fromhex(start.tree), bytes.fromhex(end.tree)))
            if any(record.author == OTHER for record in self._records):
                own = {change.path for change in self._own_changes()}
                net = [change for change in net if change.path in own]
            counts = diff.totals(net, diff.read_from_store(objects), end.project)
        except (DeepctlError, OSError):
            return None
        return TurnWork(*counts, start.id)

    def _own_changes(self) -> Iterator[TreeChange]:
        """The changes between two checkpoints of the turn whose author is the agent."""
        for record in self._records:
            parent = self._work.ledger.records.get(record.parent or "")
            if record.author != OTHER and parent is not None and parent.tree and record.tree:
                yield from trees.changes(self._work.objects, bytes.fromhex(parent.tree), bytes.fromhex(record.tree))

    def unkept(self) -> list[str]:
        """Notes for the user about files that the last checkpoint could not store, without those that were unkept at
        the start of the turn.
        """
        at_start = workspaces.shown_unkept(self._first) if self._first is not None else []
        at_end = workspaces.shown_unkept(self.latest) if self.latest is not None else []
        new = [entry for entry in at_end if entry not in at_start][:_UNKEPT_SHOWN]
        notes = [f"Not stored in checkpoints: {path} ({reason})." for path, reason in new]
        nested = [path for path in self.created_repositories if path != "."]
        # These have a note of their own.
        named_paths = {path for path, _ in new} | {f"{path}/" for path in nested}
        if paths := [path for path in map(os.fsdecode, self._not_covered.paths) if path not in named_paths]:
            notes.append(f"Changed, and not covered by checkpoints: {_names(paths)}.")
        if unseen := self._not_covered.unseen:
            notes.append(f"Not looked at: {_names(map(os.fsdecode, unseen))}.")
        if self._had_repository and self.latest is not None and not self.latest.git:
            notes.append("The project is no longer a git repository. A rewind does not bring its .git back.")
        if "." in self.created_repositories:
            notes.append("The project is a git repository now. Checkpoints do not cover what git ignores.")
        if nested:
            notes.append(f"Nested repositories, whose files checkpoints do not cover: {_names(nested)}.")
        return notes

    def broke_off(self, error: BaseException) -> None:
        """Store the state after a turn that `error` ended. That error is reported, not an error of this method."""
        try:
            # Another exception that is no `Exception` cancels the task of an application.
            kind = DeepctlError if isinstance(error, Exception) else Interrupted
            self.ended(error.code if isinstance(error, DeepctlError) else kind.code)
        except (DeepctlError, OSError):
            pass  # the turn has no last checkpoint, so the next command handles it as killed

    def _position(self) -> Position:
        before, writer = self._before, self._writer
        return Position(
            before.session,
            writer.turn,
            self._session.log,
            writer.end,
            before.message_count + writer.count,
            self._prompt,
            writer.point,
        )

    def _tell(self, record: Record | None, unseen: Sequence[str] = ()) -> None:
        if record is not None:
            self.latest = record
            self._records.append(record)
            event: dict[str, Any] = {"type": "checkpoint", "id": record.id, "kind": record.kind}
            if record.not_covered:
                event |= {"not_covered": record.not_covered, "not_covered_count": record.not_covered_count}
            if unseen:
                event["not_looked_at"] = list(unseen)
            self.emit(event)

    def _tell_all(self, records: Sequence[Record], unseen: Sequence[str] = ()) -> None:
        for record in records:
            self._tell(record, unseen if record is records[-1] else ())

    async def save_labelled(self, ctx: RunContext[Any], label: str) -> str:
        """Make a checkpoint in the middle of the turn."""
        record = await self._blocking(partial(self._save_labelled, label))
        self._tell(record)
        return record.id

    def _save_labelled(self, label: str) -> Record:
        self._work.store.writer.check_free(label)
        with storing():
            author = self._work.in_turn(tool_at_work=False)
            return self._work.save(self._session, "manual", self._position(), author=author, label=label)

    async def describe_all(self, ctx: RunContext[Any]) -> list[str]:
        """A line for each checkpoint in the history of the session's head, oldest first."""
        return await self._blocking(self._describe_all)

    def _describe_all(self) -> list[str]:
        ledger = self._work.ledger
        line = ledger.line_of(ledger.head(self._session))[:_SHOWN]
        return [
            f"{record.id} {ledger.labels.get(record.id, '')} turn {record.turn}, "
            f"{counted(record.message_count, 'message')}, {counted(record.files, 'file')}, "
            f"{record.created_at}: {record.prompt[:60]}"
            for record in reversed(line)
        ]

    async def rewind(self, ctx: RunContext[Any], reference: str, reason: str) -> NoReturn:
        """End the turn for a rewind; refused if that would lose an edit, or for the second time."""
        target = await self._blocking(partial(self._check_rewind, reference))
        self._rewound.add(target.id)
        raise RewindRequested(target.id, self._work.ledger.labels.get(target.id, ""), [], reason)

    def _check_rewind(self, reference: str) -> Record:
        """The target of a rewind that would not be refused."""
        work = self._work
        target = lookup.find_checkpoint(work.paths, work.ledger, reference, self._session.name)
        rewind.check_session(work.ledger, self._session, target, {})
        if target.id in self._rewound:
            raise _rewound_already(target.id)
        rewind.preview(
            work,
            self._session,
            RewindRequest(target),
            position=self._position(),
            author=work.in_turn(tool_at_work=True),
        ).check()
        return target

    def go_back(self, request: RewindRequested) -> None:
        """Do the rewind that the agent asked for."""
        self._is_over = True
        target = self._work.ledger.records[request.checkpoint_id]
        author = self._work.in_turn(tool_at_work=True)
        result = rewind.run(self._work, self._session, RewindRequest(target), position=self._position(), author=author)
        self._tell(result.safety)
