"""Turns: a prompt, everything the agent does to answer it, and its record in the session's log.

Complete messages are logged at once: the prompt's request before it is sent, the answer before its tools run, every
tool result before the next tool starts. So a kill loses at most the message that was being received.

This is also the one place that retries a request: `RetryingModel` sends it again if the provider is busy, fails or
cannot be reached. The providers' own clients would retry silently, so their retries are switched off. A request is sent
again only if the failure is temporary and no part of the answer has arrived, because shown text cannot be removed.
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
    """The usage of a turn, with tokens as the provider counts them."""

    input_tokens: int
    output_tokens: int
    requests: int


class Outcome(NamedTuple):
    """A finished turn. `cost` is in USD, `None` if no price is known."""

    output: str
    usage: TokenUsage
    cost: float | None = None
    context: ContextUsage = ContextUsage(0, None)

    def document(self) -> dict[str, Any]:
        """The fields of the event `result` about a turn."""
        return {
            "output": self.output,
            "usage": self.usage._asdict(),
            "cost": self.cost,
            "context": self.context._asdict(),
        }


class TurnRecord(Protocol):
    """The record of a turn: `deepctl.store.session_log.LogWriter`, or memory."""

    def result(self, part: dict[str, Any]) -> None: ...

    def message(self, message: dict[str, Any]) -> None: ...

    def compacted(self, summary: dict[str, Any], keeps: int) -> None: ...


def to_json(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Messages as pydantic-ai's own JSON, in valid Unicode even if tools or prompts contained invalid text."""
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
    """Run one turn. `emit` receives every event, and `record` every message as soon as it is complete.

    `tool_done` receives the name of a tool after its result was recorded and before the next tool starts. `run_usage`
    is the earlier usage of the turn; the new usage is added to it. `policy` says when the history is compacted, and
    `explain` returns the error for an exception of the model, `None` for any other.
    Raises the errors of pydantic-ai after complete messages were recorded, and `StorageError` if recording fails.
    """
    recorder = _TurnRecorder(record, history, emit)
    # A request is recorded once, before it is first sent, and not again for a retry.
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
    """Raise `ModelAPIError` if the stream of an answer ended too early.

    Anthropic's adapter, like others, treats a stream that is closed cleanly in mid-answer as complete.
    """
    if response.finish_reason is None and not isinstance(model, FunctionModel):
        raise ModelAPIError(model.model_name, "the answer ended without a reason to stop")


@dataclass
class _CompactIfLong(AbstractCapability[Any]):
    """Compacts the history before a request that would exceed the policy's share of the model's window."""

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
    """Records the new messages of a run.

    New messages are added at the end of a run's list; only a compaction replaces the list. The messages of the old list
    are recorded first, then the summary, so the record has either both or no compaction yet.
    """

    def __init__(self, record: TurnRecord, history: SentHistory, emit: Emit) -> None:
        self._record = record
        self._emit = emit
        self._known = len(history.messages)
        self._compaction: tuple[ShortenedHistory, Event] | None = None
        self.places = Places(history)
        self.run: AgentRun[DeepAgentDeps, str] | None = None

    def catch_up(self) -> None:
        """Record the messages since the last call, and then a compaction of the messages before them."""
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
        """A compaction replaces the run's list. The last message is not recorded yet: it may grow until it is sent."""
        self._messages(before[:-1])
        self._known = len(short_history.messages) - 1
        self.places.compacted(short_history.begins, before, short_history.tail)
        self._compaction = (short_history, event)

    def result(self, part: ToolReturnPart) -> None:
        """Record a single tool result, before the request that will contain it is complete."""
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
"""Seconds before the first retry, and the maximum. Each wait is twice the one before, and randomly up to half longer:
many clients that were refused at the same moment do not retry at the same moment.
"""
MOST_ASKED_FOR = 60.0
"""The longest wait in seconds that a provider may request. For a longer one, the turn fails with an error at once."""


class Retries(NamedTuple):
    """The maximum number of retries (0: none), the receiver of the event for each wait, and the text for a failure."""

    most: int = 0
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    reason: Callable[[BaseException], str] = str


def wait_before_retry(error: BaseException, attempt: int) -> float | None:
    """Seconds until the retry of a request that failed for the `attempt`th time (from 1); `None` for no retry."""
    if not is_temporary(error):
        return None
    retry_after = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    if retry_after is not None:
        return retry_after if retry_after <= MOST_ASKED_FOR else None
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 32) * random.uniform(1, 1.5))


class RetryingModel(WrapperModel):
    """A model whose requests are retried after temporary failures, and whose answers report bounded usage."""

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
            # The connection of the failed attempt is closed or returned to its pool here.
            await asyncio.sleep(seconds)
            attempt += 1

    def _announced(self, error: exceptions.ModelAPIError, attempt: int) -> float | None:
        """The seconds to wait, after an event about the wait; `None` if there is no retry."""
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

        pydantic-ai cannot pass this setting to some clients (Bedrock, Hugging Face, xAI). Their retries are additional.
        """
        if "max_retries" in type(self.wrapped).unsupported_settings:
            return settings
        return ModelSettings(**{**(settings or {}), "max_retries": 0})


async def _first_event(response: StreamedResponse) -> None:
    """Wait for the first event of an answer; `response` still begins with this event.

    A provider may accept a request and only then fail. Raises the errors of the stream.
    """
    events = _bounded_events(response, aiter(response))
    try:
        first = await anext(events)
    except StopAsyncIteration:
        return
    # `StreamedResponse` returns the iterator in this field to its caller.
    response._event_iterator = _replayed(first, events)


async def _bounded_events(
    response: StreamedResponse, events: AsyncIterator[ModelResponseStreamEvent]
) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events, with the usage bounded before other code reads it. Most providers report it after the last event.

    An answer of the Responses API with neither a beginning nor an end is not a background job, which has an id.
    """
    try:
        async for event in events:
            response._usage = bounded_usage(response._usage)
            yield event
        if response.state == "suspended" and response.provider_response_id is None:
            # The answer cannot be continued: pydantic-ai would send the same request ten times more.
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
