"""Turns: a prompt, everything the agent does to answer it, and its record in the session's log.

What is complete is logged at once: the prompt's request before it is sent, the answer before its tools run, every
tool result before the next tool starts. So a kill loses at most what was being received.

A `TurnRunner` has a model and an agent ready for any number of turns, with the event loop that they run in, and says
what their failures are called.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import (
    AgentStreamEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolReturnPart,
    UserContent,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage, UsageLimits
from pydantic_ai.workspaces import WorkspaceError

from deepctl.agent import compaction, interruption, provider_errors
from deepctl.agent.approvals import Approve, Ask
from deepctl.agent.checkpoints import RewindRequested
from deepctl.agent.compaction import COMPACT_AT, Compacted, Compaction, Policy, Shortened, window_of
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.interruption import KEPT, Abandoned, Emit, Event, Interruption, storing
from deepctl.agent.limits import Context, Limits, context, cost, limits_of
from deepctl.agent.mcp import McpServers
from deepctl.agent.mentions import Attaching
from deepctl.agent.message_filters import MediaFilterModel
from deepctl.agent.message_places import History, Places
from deepctl.agent.models import resolve
from deepctl.agent.retries import Retries, RetryingModel
from deepctl.agent.sandboxes import Sandbox
from deepctl.domain.mcp_servers import Server
from deepctl.domain.permissions import Permissions
from deepctl.errors import DeepctlError, StorageError
from deepctl.unicode import whole_value


class Usage(NamedTuple):
    """What a turn used. Tokens as the provider counts them."""

    input_tokens: int
    output_tokens: int
    requests: int


class Outcome(NamedTuple):
    """A finished turn. `cost` is in USD, `None` where no price is known."""

    output: str
    usage: Usage
    cost: float | None = None
    context: Context = Context(0, None)

    def document(self) -> dict[str, Any]:
        """What the event `result` says of a turn."""
        return {
            "output": self.output,
            "usage": self.usage._asdict(),
            "cost": self.cost,
            "context": self.context._asdict(),
        }


class TurnRecord(Protocol):
    """Where a turn is recorded: `deepctl.store.session_log.Writer`, or memory."""

    def result(self, part: dict[str, Any]) -> None: ...

    def message(self, message: dict[str, Any]) -> None: ...

    def compacted(self, summary: dict[str, Any], keeps: int) -> None: ...


def to_json(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Messages as pydantic-ai's own JSON, which is valid Unicode whatever tools and prompts brought into them."""
    dumped: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return whole_value(dumped)


async def run_turn(
    agent: Agent[DeepAgentDeps, str],
    deps: DeepAgentDeps,
    prompt: str | Sequence[UserContent],
    *,
    model: Model,
    history: History,
    record: TurnRecord,
    emit: Emit,
    tool_done: Callable[[str], None],
    retries: Retries,
    usage_limits: UsageLimits,
    used: RunUsage,
    policy: Policy,
    explain: Callable[[Exception], DeepctlError | None],
) -> Outcome:
    """Run one turn, telling `emit` of every event and `record` of every message as soon as it is complete.

    `tool_done` is told the name of a tool once its result has been recorded and before the next one starts. `used` is
    what the turn has used before, which is added to. The history is compacted by `policy`; `explain` tells of an
    exception whether it is the model's.
    Raises what pydantic-ai raises; what was complete by then is recorded. Raises `StorageError` if it cannot be.
    """
    recorder = _Recorder(record, history, emit)
    # Written down first and once, however often it is sent.
    filtered = MediaFilterModel(RetryingModel(model, retries))
    recorded_model = _RecordedModel(filtered, recorder)
    compaction = Compaction(filtered, policy, recorder, explain, lambda text: emit({"type": "notice", "message": text}))
    async with agent.iter(
        prompt,
        deps=deps,
        model=recorded_model,
        message_history=list(history.messages),
        capabilities=[compaction],
        usage_limits=usage_limits,
        usage=used,
    ) as run:
        recorder.run = run
        try:
            node = run.next_node
            while not Agent.is_end_node(node):
                if Agent.is_model_request_node(node):
                    async with node.stream(run.ctx) as stream:
                        await _forward(stream, emit)
                        _check_end(stream.response, model)
                elif Agent.is_call_tools_node(node):
                    recorder.catch_up()
                    async with node.stream(run.ctx) as events:
                        await _forward(events, emit, recorder, tool_done)
                node = await run.next(node)
        finally:
            recorder.catch_up()
        assert run.result is not None
        return Outcome(
            run.result.output,
            Usage(used.input_tokens, used.output_tokens, used.requests),
            cost(used, model),
            context(run.all_messages(), model)._replace(window=window_of(model, policy.window)),
        )


def _check_end(response: ModelResponse, model: Model) -> None:
    """Tell an answer from one whose stream ended too early.

    Anthropic's adapter, like others, takes a stream that is closed cleanly in mid-answer for complete.
    """
    if response.finish_reason is None and not isinstance(model, FunctionModel):
        raise ModelAPIError(model.model_name, "the answer ended without a reason to stop")


class _Recorder:
    """Brings the record up to date with the messages of a run.

    Messages only come at the end of a run's list, but for a compaction, which replaces the list. What the list had by
    then is recorded as it was, and then the summary; so the record has both, or not yet the compaction.
    """

    def __init__(self, record: TurnRecord, history: History, emit: Emit) -> None:
        self._record = record
        self._emit = emit
        self._known = len(history.messages)
        self._compaction: tuple[Shortened, Event] | None = None
        self.places = Places(history)
        self.run: AgentRun[DeepAgentDeps, str] | None = None

    def catch_up(self) -> None:
        """Record the messages that have come since, and that those before them have been compacted."""
        if self.run is None:
            return
        self._messages(self.run.all_messages())
        if self._compaction is not None:
            shortened, event = self._compaction
            with storing():
                self._record.compacted(to_json([shortened.summary])[0], self.places.total - shortened.begins)
            self._compaction = None
            self.places.summarized()
            self._emit(event)

    def _messages(self, messages: Sequence[ModelMessage]) -> None:
        new = messages[self._known :]
        for message, dumped in zip(new, to_json(new), strict=True):
            with storing():
                self._record.message(dumped)
            self._known += 1
            self.places.add(message)

    def compacting(self, before: Sequence[ModelMessage], shortened: Shortened, event: Event) -> None:
        """The run's list becomes another one. The last message is still to be sent, and may be added to until then."""
        self._messages(before[:-1])
        self._known = len(shortened.messages) - 1
        self.places.compacted(shortened.begins, before, shortened.kept)
        self._compaction = (shortened, event)

    def result(self, part: ToolReturnPart) -> None:
        """Record a tool result on its own, before the request that will carry it is complete."""
        dumped = to_json([ModelRequest(parts=[part])])[0]["parts"][0]
        with storing():
            self._record.result(dumped)


class _RecordedModel(WrapperModel):
    """A model whose requests are on disk before they are sent."""

    def __init__(self, wrapped: Model, recorder: _Recorder) -> None:
        super().__init__(wrapped)
        self._recorder = recorder

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        self._recorder.catch_up()
        async with self.wrapped.request_stream(
            messages, model_settings, model_request_parameters, run_context
        ) as response:
            yield response


async def _forward(
    events: AsyncIterable[AgentStreamEvent],
    emit: Emit,
    recorder: _Recorder | None = None,
    tool_done: Callable[[str], None] | None = None,
) -> None:
    async for event in events:
        if recorder is not None and isinstance(event, FunctionToolResultEvent):
            recorder.result(event.part)
        for output_event in _told(event):
            emit(whole_value(output_event))
        if tool_done is not None and isinstance(event, FunctionToolResultEvent):
            tool_done(event.part.tool_name)


def _told(event: AgentStreamEvent) -> list[Event]:
    match event:
        case (
            PartStartEvent(part=TextPart(content=content)) | PartDeltaEvent(delta=TextPartDelta(content_delta=content))
        ):
            return [{"type": "text", "delta": content}] if content else []
        case (
            PartStartEvent(part=ThinkingPart(content=content))
            | PartDeltaEvent(delta=ThinkingPartDelta(content_delta=content))
        ):
            return [{"type": "thinking", "delta": content}] if content else []
        case FunctionToolCallEvent(part=part):
            return [{"type": "tool_call", "id": part.tool_call_id, "name": part.tool_name, "args": part.args_as_dict()}]
        case FunctionToolResultEvent(part=part):
            content = part.content if isinstance(part.content, str) else part.model_response_str()
            return [
                {
                    "type": "tool_result",
                    "id": part.tool_call_id,
                    "name": part.tool_name,
                    "ok": succeeded(part.tool_name, content, part.outcome),
                    "content": content,
                }
            ]
        case _:
            return []


def succeeded(tool: str, content: str, outcome: str = "success") -> bool:
    """Whether a tool did what it was called for.

    The console tools of pydantic-ai-backend report their last failure, and a command's exit code, as text.
    """
    if outcome != "success":
        return False
    return not content.startswith("Command failed (exit code " if tool == "execute" else "Error: ")


_T = TypeVar("_T")


class Options(NamedTuple):
    """What a chat was started with, settings resolved. `timeout` is in seconds.

    `compact_at` is the share of the context window, in percent, at which conversations are compacted, `None` for never;
    `context_window` is that window in tokens, if the model is not to be asked.
    """

    model: str
    base_url: str | None = None
    instructions: str | None = None
    sandbox: Sandbox | None = None
    approve: Approve = "ask"
    permissions: Permissions = {}
    timeout: float | None = None
    compact_at: int | None = COMPACT_AT
    context_window: int | None = None
    retries: int = 3
    limits: Limits = Limits()
    mcp_servers: Sequence[Server] = ()


class TurnRunner:
    """An agent that runs one turn after the other.

    Raises `UsageError` or `ModelFailed` at once if the model cannot be used, or has no price and money is limited, and
    `BadSetting` if a rule cannot be used.
    """

    def __init__(
        self,
        options: Options,
        *,
        environment: Mapping[str, str],
        ask: Ask | None = None,
        kept: str | None = KEPT,
    ) -> None:
        self.options = options
        self._kept = kept
        self._environment = environment
        resolved = resolve(options.model, base_url=options.base_url, environment=environment)
        self._model = resolved.model
        self._asked = provider_errors.asked(
            options.model, options.base_url, self._model.base_url or "", environment, resolved.last
        )
        self._servers = McpServers(options.mcp_servers, environment) if options.mcp_servers else None
        self.attaching = Attaching(self._model, options.permissions, environment)
        self._limits = limits_of(options.limits, self._model, options.model)
        self._used = RunUsage()
        self._spent = RunUsage()
        self._agent: Agent[DeepAgentDeps, str] = create_deep_agent(
            instructions=options.instructions,
            include_execute=options.sandbox is not None,
            approve=options.approve,
            ask=ask,
            permissions=options.permissions,
            environment=environment,
            capabilities=[self._servers.capability()] if self._servers is not None else [],
        )
        self._runner = asyncio.Runner()
        self._entered = False
        self.stops = Interruption(options.timeout, kept)
        """What stops a turn. Whoever does more for it than `run` does enters `watched` around all of it."""

    def close(self) -> None:
        """Close what the turns left open: MCP servers, connections to the provider and the event loop."""
        if self._servers is not None and self._servers.are_connected:
            self._runner.run(self._servers.close())
        if self._entered:
            self._runner.run(self._model.__aexit__(None, None, None))
        self._runner.close()

    def _restart(self) -> None:
        """Go on with another event loop: in the old one something does not end."""
        old, self._runner = self._runner, asyncio.Runner()
        entered, self._entered = self._entered, False
        if self._servers is not None:
            self._servers.kill()
        # A signal that comes now has nothing left to stop, and the turn is over in any case. Every client has
        # exceptions of its own.
        with suppress(Exception):
            interruption.close(old, self._model.__aexit__(None, None, None) if entered else None)

    def run(
        self,
        deps: DeepAgentDeps,
        user_content: str | Sequence[UserContent],
        history: History,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], None] = lambda name: None,
    ) -> Outcome:
        """Run a turn; whatever can go wrong with providers and workspaces becomes an error of ours.

        Raises `RewindRequested` if the agent wants it to begin again from before.
        """
        used, self._used = self._used, RunUsage()
        self._spent = used
        return self._guarded(self._run(deps, user_content, history, record, emit, tool_done, used))

    @property
    def model(self) -> Model:
        """The model that answers."""
        return self._model

    def again(self) -> None:
        """What comes next is the same turn, begun again, and counts against the same limits."""
        self._used = self._spent

    def spent(self) -> tuple[Usage, float | None]:
        """What was used since this was asked last, however the turn ended, and what it cost in USD, if that is known.

        What a turn began anew after a rewind of the agent's has used is counted with the whole turn.
        """
        used, self._spent = self._spent, RunUsage()
        usage = Usage(used.input_tokens, used.output_tokens, used.requests)
        return usage, cost(used, self._model) if used.input_tokens or used.output_tokens else 0.0

    def compact(self, history: History, focus: str | None, emit: Emit) -> tuple[Compacted, Shortened]:
        """Summarise a conversation between two turns. Raises as `run` does, or `NotFound` if that makes no sense."""
        model = RetryingModel(self._model, Retries(self.options.retries, emit, self._reason))
        compacted, shortened = self._guarded(compaction.by_hand(model, history, self._policy, focus))
        return compacted._replace(cost=cost(compacted.usage, self._model)), shortened

    @property
    def _policy(self) -> Policy:
        return Policy(self.options.compact_at, self.options.context_window)

    def _explain(self, error: Exception) -> DeepctlError | None:
        """What a failure of the model is called; `None` for whatever else went wrong."""
        return provider_errors.failure(error, self._asked)

    def _guarded(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self.stops.run(self._runner, self._entering(work))
        except (Abandoned, KeyboardInterrupt):
            self._restart()
            raise self.stops.reason() from None
        except DeepctlError:
            raise
        except WorkspaceError as error:
            raise StorageError(f"The workspace cannot be used: {error}.", self._kept, code="workspace") from error
        except RewindRequested:
            raise
        except Exception as error:  # every client has exceptions of its own; what is not theirs goes on
            if self.stops.is_stopped:
                raise self.stops.reason() from error
            failure = self._explain(error)
            if failure is None:
                raise
            raise failure from error
        finally:
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()  # it was stopped before it began

    async def _run(
        self,
        deps: DeepAgentDeps,
        user_content: str | Sequence[UserContent],
        history: History,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], None],
        used: RunUsage,
    ) -> Outcome:
        if self._servers is not None:
            await self._servers.ready(emit)
        return await run_turn(
            self._agent,
            deps,
            user_content,
            model=self._model,
            history=history,
            record=record,
            emit=emit,
            tool_done=tool_done,
            retries=Retries(self.options.retries, emit, self._reason),
            usage_limits=self._limits,
            used=used,
            policy=self._policy,
            explain=self._explain,
        )

    async def _entering(self, work: Coroutine[Any, Any, _T]) -> _T:
        if not self._entered:
            await self._model.__aenter__()
            self._entered = True
        return await work

    def _reason(self, error: BaseException) -> str:
        return provider_errors.reason(error, self._asked)
