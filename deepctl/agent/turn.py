"""Turns: a prompt, everything the agent does to answer it, and its record in the session's log.

What is complete is logged at once: the prompt's request before it is sent, the answer before its tools run, every
tool result before the next tool starts. So a kill loses at most what was being received.

This is also the one place that retries a request: `RetryingModel` sends it again when the provider is busy, failing or
out of reach. The providers' own clients, which would do so in silence, are told not to. A request is sent again only if
the failure can pass and nothing of the answer has come, because what has been shown cannot be taken back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic_ai import Agent, RunContext, exceptions
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import (
    AgentStreamEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ModelResponseStreamEvent,
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
from pydantic_ai_harness.compaction import DEFAULT_CONTEXT_WINDOW
from pydantic_ai_harness.memory import Memory

from deepctl.agent.compaction import Compactor, ShortenedHistory
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.interruption import Emit, Event, storing
from deepctl.agent.limits import CompactionPolicy, ContextUsage, bounded_usage, context_tokens, cost, window_of
from deepctl.agent.message_filters import MediaFilterModel, Places, SentHistory
from deepctl.agent.provider_errors import is_temporary
from deepctl.agent.tools import has_succeeded
from deepctl.errors import DeepctlError
from deepctl.unicode import whole_value

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestContext


class TokenUsage(NamedTuple):
    """What a turn used. Tokens as the provider counts them."""

    input_tokens: int
    output_tokens: int
    requests: int


class Outcome(NamedTuple):
    """A finished turn. `cost` is in USD, `None` where no price is known."""

    output: str
    usage: TokenUsage
    cost: float | None = None
    context: ContextUsage = ContextUsage(0, None)

    def document(self) -> dict[str, Any]:
        """What the event `result` says of a turn."""
        return {
            "output": self.output,
            "usage": self.usage._asdict(),
            "cost": self.cost,
            "context": self.context._asdict(),
        }


class TurnRecord(Protocol):
    """Where a turn is recorded: `deepctl.store.session_log.LogWriter`, or memory."""

    def result(self, part: dict[str, Any]) -> None: ...

    def message(self, message: dict[str, Any]) -> None: ...

    def compacted(self, summary: dict[str, Any], keeps: int) -> None: ...


def to_json(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Messages as pydantic-ai's own JSON, which is valid Unicode whatever tools and prompts brought into them."""
    values: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return whole_value(values)


async def run_turn(
    agent: Agent[DeepAgentDeps, str],
    deps: DeepAgentDeps,
    prompt: str | Sequence[UserContent],
    *,
    model: Model,
    history: SentHistory,
    record: TurnRecord,
    emit: Emit,
    tool_done: Callable[[str], None],
    retries: Retries,
    usage_limits: UsageLimits,
    run_usage: RunUsage,
    policy: CompactionPolicy,
    explain: Callable[[Exception], DeepctlError | None],
) -> Outcome:
    """Run one turn, telling `emit` of every event and `record` of every message as soon as it is complete.

    `tool_done` is told the name of a tool once its result has been recorded and before the next one starts. `run_usage`
    is what the turn has used before, which is added to. The history is compacted by `policy`; `explain` tells of an
    exception whether it is the model's.
    Raises what pydantic-ai raises; what was complete by then is recorded. Raises `StorageError` if it cannot be.
    """
    recorder = _TurnRecorder(record, history, emit)
    # Written down first and once, however often it is sent.
    media_filter = MediaFilterModel(RetryingModel(model, retries))
    recorded_model = _RecordedModel(media_filter, recorder)
    compaction = Compactor(media_filter, recorder, explain, lambda text: emit({"type": "notice", "message": text}))
    async with agent.iter(
        prompt,
        deps=deps,
        model=recorded_model,
        message_history=list(history.messages),
        capabilities=[_CompactIfLong(compaction, policy)],
        usage_limits=usage_limits,
        usage=run_usage,
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
            TokenUsage(run_usage.input_tokens, run_usage.output_tokens, run_usage.requests),
            cost(run_usage, model),
            ContextUsage(context_tokens(run.all_messages()), window_of(model, policy.window)),
        )


def _check_end(response: ModelResponse, model: Model) -> None:
    """Tell an answer from one whose stream ended too early.

    Anthropic's adapter, like others, takes a stream that is closed cleanly in mid-answer for complete.
    """
    if response.finish_reason is None and not isinstance(model, FunctionModel):
        raise ModelAPIError(model.model_name, "the answer ended without a reason to stop")


@dataclass
class _CompactIfLong(AbstractCapability[Any]):
    """Has the history compacted whenever a request would pass the policy's share of the model's window."""

    compaction: Compactor
    policy: CompactionPolicy

    def get_ordering(self) -> CapabilityOrdering:
        """Before memory, which puts its snapshot into the request again when a compaction has dropped it."""
        return CapabilityOrdering(wraps=[Memory])

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if self.policy.share is None:
            return request_context
        window = window_of(self.compaction.model, self.policy.window) or DEFAULT_CONTEXT_WINDOW
        tokens = context_tokens(ctx.messages, request_context.model_request_parameters)
        if tokens <= max(window * self.policy.share / 100, self.compaction.least):
            return request_context
        return await self.compaction.compact(ctx, request_context, tokens, window)


class _TurnRecorder:
    """Brings the record up to date with the messages of a run.

    Messages only come at the end of a run's list, but for a compaction, which replaces the list. What the list had by
    then is recorded as it was, and then the summary; so the record has both, or not yet the compaction.
    """

    def __init__(self, record: TurnRecord, history: SentHistory, emit: Emit) -> None:
        self._record = record
        self._emit = emit
        self._known = len(history.messages)
        self._compaction: tuple[ShortenedHistory, Event] | None = None
        self.places = Places(history)
        self.run: AgentRun[DeepAgentDeps, str] | None = None

    def catch_up(self) -> None:
        """Record the messages that have come since, and that those before them have been compacted."""
        if self.run is None:
            return
        self._messages(self.run.all_messages())
        if self._compaction is not None:
            short_history, event = self._compaction
            with storing():
                self._record.compacted(to_json([short_history.summary])[0], self.places.total - short_history.begins)
            self._compaction = None
            self.places.summarized()
            self._emit(event)

    def _messages(self, messages: Sequence[ModelMessage]) -> None:
        new = messages[self._known :]
        for message, value in zip(new, to_json(new), strict=True):
            with storing():
                self._record.message(value)
            self._known += 1
            self.places.add(message)

    def compacting(self, before: Sequence[ModelMessage], short_history: ShortenedHistory, event: Event) -> None:
        """The run's list becomes another one. The last message is still to be sent, and may be added to until then."""
        self._messages(before[:-1])
        self._known = len(short_history.messages) - 1
        self.places.compacted(short_history.begins, before, short_history.tail)
        self._compaction = (short_history, event)

    def result(self, part: ToolReturnPart) -> None:
        """Record a tool result on its own, before the request that will carry it is complete."""
        value = to_json([ModelRequest(parts=[part])])[0]["parts"][0]
        with storing():
            self._record.result(value)


class _RecordedModel(WrapperModel):
    """A model whose requests are on disk before they are sent."""

    def __init__(self, model: Model, recorder: _TurnRecorder) -> None:
        super().__init__(model)
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
    recorder: _TurnRecorder | None = None,
    tool_done: Callable[[str], None] | None = None,
) -> None:
    async for event in events:
        if recorder is not None and isinstance(event, FunctionToolResultEvent):
            recorder.result(event.part)
        for output_event in _events_of(event):
            emit(whole_value(output_event))
        if tool_done is not None and isinstance(event, FunctionToolResultEvent):
            tool_done(event.part.tool_name)


def _events_of(event: AgentStreamEvent) -> list[Event]:
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
                    "ok": has_succeeded(part.tool_name, content, part.outcome),
                    "content": content,
                }
            ]
        case _:
            return []


FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds before the first retry, and before any: each wait is twice the one before, and up to half as long again, so
that many who were refused at the same moment do not come back at the same moment.
"""
MOST_ASKED_FOR = 60.0
"""Seconds that are waited because the provider asks for it. Who is to wait longer is told, rather than kept."""


class Retries(NamedTuple):
    """How often a request is sent again (0: never), who is told of each wait, and how a failure is put in words."""

    most: int = 0
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    reason: Callable[[BaseException], str] = str


def wait_before_retry(error: BaseException, attempt: int) -> float | None:
    """Seconds until a request that failed for the `attempt`th time (from 1) is sent again; `None` if it is not."""
    if not is_temporary(error):
        return None
    retry_after = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    if retry_after is not None:
        return retry_after if retry_after <= MOST_ASKED_FOR else None
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 32) * random.uniform(1, 1.5))


class RetryingModel(WrapperModel):
    """A model whose requests are sent again when they fail in passing, and whose answers report no absurd usage."""

    def __init__(self, model: Model, retries: Retries) -> None:
        super().__init__(model)
        self._retries = retries

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        settings = self._without_own_retries(model_settings)
        attempt = 1
        while True:
            try:
                answer = await self.wrapped.request(messages, settings, model_request_parameters)
                return replace(answer, usage=bounded_usage(answer.usage))
            except exceptions.ModelAPIError as error:
                seconds = self._announced(error, attempt)
                if seconds is None:
                    raise
            await asyncio.sleep(seconds)
            attempt += 1

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        settings = self._without_own_retries(model_settings)
        attempt = 1
        while True:
            async with AsyncExitStack() as stack:
                try:
                    response = await stack.enter_async_context(
                        self.wrapped.request_stream(messages, settings, model_request_parameters, run_context)
                    )
                    await _first_event(response)
                except exceptions.ModelAPIError as error:
                    seconds = self._announced(error, attempt)
                    if seconds is None:
                        raise
                else:
                    yield response
                    return
            # The failed attempt's connection has been given back by now.
            await asyncio.sleep(seconds)
            attempt += 1

    def _announced(self, error: exceptions.ModelAPIError, attempt: int) -> float | None:
        """How long to wait, having said so; `None` if that was the last attempt."""
        seconds = wait_before_retry(error, attempt) if attempt <= self._retries.most else None
        if seconds is not None:
            self._retries.emit(
                {
                    "type": "retry",
                    "attempt": attempt,
                    "attempts": self._retries.most,
                    "seconds": round(seconds, 3),
                    "reason": self._retries.reason(error),
                }
            )
        return seconds

    def _without_own_retries(self, settings: ModelSettings | None) -> ModelSettings | None:
        """Settings with which the provider's client sends a request once.

        Where pydantic-ai cannot tell the client (Bedrock, Hugging Face, xAI), what that does by itself comes on top.
        """
        if "max_retries" in type(self.wrapped).unsupported_settings:
            return settings
        return ModelSettings(**{**(settings or {}), "max_retries": 0})


async def _first_event(response: StreamedResponse) -> None:
    """Wait for the first event of an answer, which `response` then begins with all the same.

    A provider may accept a request and only then find that it cannot answer. Raises what the stream raises.
    """
    events = _bounded_events(response, aiter(response))
    try:
        first = await anext(events)
    except StopAsyncIteration:
        return
    # `StreamedResponse` gives its caller the iterator that it keeps here.
    response._event_iterator = _replayed(first, events)


async def _bounded_events(
    response: StreamedResponse, events: AsyncIterator[ModelResponseStreamEvent]
) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events, with the usage bounded before any other code sees it: most providers report it behind the last one.

    An answer of the Responses API that has neither a beginning nor an end is no job in the background: those have ids.
    """
    try:
        async for event in events:
            response._usage = bounded_usage(response._usage)
            yield event
        if response.state == "suspended" and response.provider_response_id is None:
            # There is nothing to go on with: pydantic-ai would send the same request ten times more.
            response.state = "incomplete"
    finally:
        response._usage = bounded_usage(response._usage)


async def _replayed(
    first: ModelResponseStreamEvent, events: AsyncIterator[ModelResponseStreamEvent]
) -> AsyncIterator[ModelResponseStreamEvent]:
    yield first
    async for event in events:
        yield event


if not {"_event_iterator", "_usage"} <= StreamedResponse.__dataclass_fields__.keys():
    raise ImportError("deepctl does not support how this version of pydantic-ai stores the events of an answer")
