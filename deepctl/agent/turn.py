"""Turns: a prompt, everything the agent does to answer it, and its record in the session's log.

Complete messages are logged at once: the prompt's request before it is sent, the answer before its tools run, every
tool result before the next tool starts. So a kill loses at most the message that was being received.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic_ai import Agent, ModelRequestNode, RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering
from pydantic_ai.messages import (
    AgentStreamEvent,
    BinaryContent,
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
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
    UserContent,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage, UsageLimits

from deepctl.agent import delegation
from deepctl.agent.answer_ends import AnswerCut, Finish, finish_of, not_run
from deepctl.agent.compaction import Compactor, ShortenedHistory
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.interruption import Blocking, Emit, Event, storing
from deepctl.agent.limits import CompactionPolicy, ContextUsage, context_tokens, cost, window_of
from deepctl.agent.media_filter import MediaFilterModel
from deepctl.agent.message_filters import Places, SentHistory
from deepctl.agent.metering import purpose
from deepctl.agent.model_wrappers import Retries, RetryingModel
from deepctl.agent.tools import has_succeeded
from deepctl.agent.turn_context import TurnContext, large_context_files
from deepctl.agent.wire import tool_call_hint
from deepctl.errors import CONTEXT_OVERFLOW, DeepctlError
from deepctl.quantities import size
from deepctl.unicode import whole_value

if TYPE_CHECKING:
    from pydantic_ai.models import ModelRequestContext

ACTIVITY: Event = {"type": "activity"}
"""A piece of a tool call has arrived. Only the status line of a terminal uses this event."""


class TokenUsage(NamedTuple):
    """The usage of a turn, with tokens as the provider counts them.

    `cached_tokens` are those of the `input_tokens` that the provider read from its cache, 0 if it reports none.
    """

    input_tokens: int
    cached_tokens: int
    output_tokens: int
    requests: int

    @classmethod
    def of(cls, usage: RunUsage) -> TokenUsage:
        """The usage of a run of pydantic-ai."""
        return cls(usage.input_tokens, usage.cache_read_tokens, usage.output_tokens, usage.requests)


class Outcome(NamedTuple):
    """A finished turn. `output` is of the output type of the agent. `cost` is in USD, `None` if no price is known.

    If the last answer is not whole, `output` is its text, `finish` the reason, and `failure` the error of the turn or
    `notice` a sentence for the user.
    """

    output: Any
    usage: TokenUsage
    cost: float | None = None
    context: ContextUsage = ContextUsage(0, None)
    finish: Finish = "stop"
    failure: DeepctlError | None = None
    notice: str | None = None
    messages: Sequence[ModelMessage] = ()
    """The messages of the turn, without the history."""

    def document(self) -> dict[str, Any]:
        """The fields of the event `result` about a turn."""
        return {
            "output": self.output,
            "usage": self.usage._asdict(),
            "cost": self.cost,
            "context": self.context._asdict(),
            "finish": self.finish,
        }


class TurnRecord(Protocol):
    """The record of a turn: `deepctl.store.session_log.LogWriter`, or memory. `turn` is its number in the session."""

    turn: int

    def result(self, part: dict[str, Any]) -> None: ...

    def message(self, message: dict[str, Any]) -> None: ...

    def compacted(self, summary: dict[str, Any], keeps: int) -> None: ...


def to_json(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Messages as pydantic-ai's own JSON, in valid Unicode even if tools or prompts contained invalid text."""
    values: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return whole_value(values)


async def run_turn(
    agent: Agent[DeepAgentDeps, Any],
    deps: DeepAgentDeps,
    prompt: str | Sequence[UserContent],
    *,
    model: Model,
    metered_model: Model,
    history: SentHistory,
    record: TurnRecord,
    emit: Emit,
    tool_done: Callable[[str], Awaitable[None]] | None,
    blocking: Blocking,
    retries: Retries,
    usage_limits: UsageLimits,
    run_usage: RunUsage,
    policy: CompactionPolicy,
    explain: Callable[[Exception], DeepctlError | None],
    explain_cut: Callable[[AnswerCut, ContextUsage], DeepctlError | str],
    capabilities: Sequence[AbstractCapability[DeepAgentDeps]] = (),
) -> Outcome:
    """Run one turn. `emit` receives every event, and `record` every message as soon as it is complete.

    Requests are sent by `metered_model`, which is `model` with a record of its usage.
    `tool_done` receives the name of a tool after its result was recorded and before the next tool starts. `blocking`
    runs the calls of `record`. `run_usage` is the earlier usage of the turn; the new usage is added to it. `policy`
    says when the history is compacted, and `explain` returns the error for an exception of the model, `None` for any
    other. `explain_cut` returns the error for an answer that is not whole, or a notice if the user has chosen its
    length.
    Raises the errors of pydantic-ai after complete messages were recorded, and `StorageError` if recording fails.
    """

    def notify(text: str) -> None:
        emit({"type": "notice", "message": text})

    recorder = _TurnRecorder(record, history, emit, blocking)
    # A request is recorded once, before it is first sent, and not again for a retry.
    media_filter = MediaFilterModel(RetryingModel(metered_model, retries), notify, retries.reason)
    recorded_model = _RecordedModel(media_filter, recorder)
    compactor = Compactor(media_filter, recorder, policy, explain, notify)
    fits = _FitsContext(compactor)
    cut: AnswerCut | None = None
    observer = delegation.TurnObserver(emit, tool_done, explain)
    try:
        async with _started(
            agent,
            recorded_model,
            prompt,
            deps=deps,
            message_history=list(history.messages),
            capabilities=[fits, *capabilities],
            usage_limits=usage_limits,
            usage=run_usage,
        ) as run:
            recorder.run = run
            try:
                node = run.next_node
                while not Agent.is_end_node(node):
                    if Agent.is_model_request_node(node):
                        node, response, finish = await _answer(node, run, emit, compactor, model)
                        if finish != "stop":
                            raise AnswerCut(response, finish)
                    elif Agent.is_call_tools_node(node):
                        await recorder.catch_up()
                        # A tool may run an agent of its own with the model of its context.
                        with purpose("subagent"), delegation.observed_by(observer):
                            async with node.stream(run.ctx) as events:
                                await _forward(events, emit, recorder, tool_done)
                    node = await run.next(node)
            except AnswerCut as error:
                if (results := not_run(error.response, error.finish)) is not None:
                    run.ctx.state.message_history.append(results)
                raise
            except Exception as error:  # every client has its own exceptions
                failure = explain(error)
                if failure is None or failure.code != CONTEXT_OVERFLOW:
                    raise
                tokens = context_tokens(run.all_messages(), fits.parameters)
                names = large_context_files(run.all_messages(), min(window_of(model, policy.window) or tokens, tokens))
                if not names:
                    raise
                files = (f"{name} takes more than a quarter of the window: shorten it." for name in names)
                failure.hint = " ".join([*files, failure.hint or ""])
                raise failure from error
            finally:
                await recorder.catch_up()
    except AnswerCut as error:
        cut = error
    context = ContextUsage(context_tokens(run.all_messages(), fits.parameters), await policy.window_of(model))
    usage = TokenUsage.of(run_usage)
    turn_cost = cost(run_usage, model)
    if cut is not None:
        explanation = explain_cut(cut, context)
        failure, notice = (None, explanation) if isinstance(explanation, str) else (explanation, None)
        return Outcome(
            cut.response.text or "", usage, turn_cost, context, cut.finish, failure, notice, run.new_messages()
        )
    assert run.result is not None
    output = run.result.output
    if isinstance(output, str) and (hint := tool_call_hint(output)) is not None:
        emit({"type": "notice", "message": hint})
    return Outcome(output, usage, turn_cost, context, messages=run.new_messages())


@asynccontextmanager
async def _started(
    agent: Agent[DeepAgentDeps, Any], model: Model, prompt: str | Sequence[UserContent], **options: Any
) -> AsyncIterator[AgentRun[DeepAgentDeps, Any]]:
    """A run with this model, also if an application has overridden the model of its agent, as tests do.

    Tools run one after another, also those of an agent that an application made without `create_deep_agent`.
    """
    with agent.override(model=model), agent.parallel_tool_call_execution_mode("sequential"):
        async with agent.iter(prompt, **options) as run:
            yield run


async def _answer(
    node: ModelRequestNode[DeepAgentDeps, Any],
    run: AgentRun[DeepAgentDeps, Any],
    emit: Emit,
    compactor: Compactor,
    model: Model,
) -> tuple[ModelRequestNode[DeepAgentDeps, Any], ModelResponse, Finish]:
    """Receive one answer; returns the node that has received it, the answer, and how it has ended.

    A request that is too long is sent once more, by another node, with a compacted history.
    """
    while True:
        try:
            async with node.stream(run.ctx) as stream:
                await _forward(stream, emit)
                finish = finish_of(stream.response, model)
            return node, stream.response, finish
        except Exception as error:  # every client has its own exceptions
            history = run.ctx.state.message_history
            partial = history[-1] if isinstance(history[-1], ModelResponse) else None
            if (partial is not None and partial.parts) or not compactor.may_repeat(node.request, error):
                raise
            if partial is not None:
                # A response without parts stands for the failed request.
                history.pop()
            node = ModelRequestNode(node.request)


@dataclass
class _FitsContext(AbstractCapability[Any]):
    """Compacts the history before a request that would not fit, and reports a server that has cut a request."""

    compactor: Compactor
    parameters: ModelRequestParameters | None = None
    """Those of the last request."""

    def get_ordering(self) -> CapabilityOrdering:
        """Before the context, which is sent again when a compaction has dropped it."""
        return CapabilityOrdering(wraps=[TurnContext])

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        self.parameters = request_context.model_request_parameters
        return await self.compactor.before_request(ctx, request_context)

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        await self.compactor.check_report(request_context, response)
        return response


class _TurnRecorder:
    """Records the new messages of a run. `blocking` runs the calls of the record.

    New messages are added at the end of a run's list; only a compaction replaces the list. The messages of the old list
    are recorded first, then the summary, so the record has either both or no compaction yet.
    """

    def __init__(self, record: TurnRecord, history: SentHistory, emit: Emit, blocking: Blocking) -> None:
        self._record = record
        self._emit = emit
        self._blocking = blocking
        self._known = len(history.messages)
        self._compaction: tuple[ShortenedHistory, Event] | None = None
        self.places = Places(history)
        self.run: AgentRun[DeepAgentDeps, Any] | None = None

    async def catch_up(self) -> None:
        """Record the messages since the last call, and then a compaction of the messages before them."""
        if self.run is None:
            return
        messages = self.run.all_messages()
        if self._compaction is not None or len(messages) > self._known:
            await self._blocking(partial(self._catch_up, messages))

    def _catch_up(self, messages: Sequence[ModelMessage]) -> None:
        self._messages(messages)
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

    async def compacting(self, before: Sequence[ModelMessage], short_history: ShortenedHistory, event: Event) -> None:
        """A compaction replaces the run's list. A last message that was not sent is not recorded yet: it may grow."""
        # A request that was refused as too long has been recorded already.
        is_recorded = self._known == len(before)
        await self._blocking(partial(self._messages, before[:-1]))
        self._known = len(short_history.messages) - (not is_recorded)
        self.places.compacted(short_history.begins, before, short_history.tail)
        self._compaction = (short_history, event)

    async def result(self, part: ToolReturnPart) -> None:
        """Record a single tool result, before the request that will contain it is complete."""
        await self._blocking(partial(self._result, part))

    def _result(self, part: ToolReturnPart) -> None:
        value = to_json([ModelRequest(parts=[part])])[0]["parts"][0]
        with storing():
            self._record.result(value)


class _RecordedModel(WrapperModel):
    """A model whose requests are on disk before they are sent."""

    def __init__(self, model: Model, recorder: _TurnRecorder) -> None:
        super().__init__(model)
        self._recorder = recorder

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        await self._recorder.catch_up()
        return await self.wrapped.request(messages, model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        await self._recorder.catch_up()
        async with self.wrapped.request_stream(
            messages, model_settings, model_request_parameters, run_context
        ) as response:
            yield response


async def _forward(
    events: AsyncIterable[AgentStreamEvent],
    emit: Emit,
    recorder: _TurnRecorder | None = None,
    tool_done: Callable[[str], Awaitable[None]] | None = None,
) -> None:
    async for event in events:
        if recorder is not None and isinstance(event, FunctionToolResultEvent):
            await recorder.result(event.part)
        for output_event in events_of(event):
            emit(whole_value(output_event))
        if tool_done is not None and isinstance(event, FunctionToolResultEvent):
            await tool_done(event.part.tool_name)


def _result_text(part: ToolReturnPart) -> str:
    """The text of a tool's result for display; pictures and other files among texts are described."""
    if isinstance(part.content, str):
        return part.content
    items: list[Any] = part.content if isinstance(part.content, list) else []
    is_mixed = any(isinstance(item, BinaryContent) for item in items)
    if is_mixed and all(isinstance(item, str | BinaryContent) for item in items):
        return "\n".join(item if isinstance(item, str) else _described(item) for item in items)
    return part.model_response_str()


def _described(item: BinaryContent) -> str:
    noun = "image" if item.media_type.startswith("image/") else item.media_type
    return f"[{noun}, {size(len(item.data))}]"


def events_of(event: AgentStreamEvent) -> list[Event]:
    """What an event of pydantic-ai is for `emit`."""
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
        case PartStartEvent(part=ToolCallPart()) | PartDeltaEvent(delta=ToolCallPartDelta()):
            return [ACTIVITY]
        case FunctionToolCallEvent(part=part):
            return [{"type": "tool_call", "id": part.tool_call_id, "name": part.tool_name, "args": part.args_as_dict()}]
        case FunctionToolResultEvent(part=part):
            content = _result_text(part)
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
