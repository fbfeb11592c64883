"""One turn: a prompt, everything the agent does to answer it, and its record in the session's log.

What is complete is logged at once: the prompt's request before it is sent, the answer before its tools run, every
tool result before the next tool starts. So a kill loses at most what was being received.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol

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

from deepctl.agent import limits
from deepctl.agent.compaction import Compaction, Policy, Shortened, window_of
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.limits import Context
from deepctl.agent.message_filters import MediaFilterModel
from deepctl.agent.message_places import History, Places
from deepctl.agent.retries import Retries, RetryingModel
from deepctl.errors import DeepctlError
from deepctl.files.atomic import storage_error
from deepctl.unicode import whole_value

Event = dict[str, Any]
Emit = Callable[[Event], None]

KEPT = "The conversation up to here is kept."
"""What is said of a turn that broke off."""


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
    sent = MediaFilterModel(RetryingModel(model, retries))
    recorded_model = _RecordedModel(sent, recorder)
    compaction = Compaction(sent, policy, recorder, explain, lambda text: emit({"type": "notice", "message": text}))
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
            limits.cost(used, model),
            limits.context(run.all_messages(), model)._replace(window=window_of(model, policy.window)),
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


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Keeps trouble with the disk apart from trouble with the network or a tool."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, KEPT) from error


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
        for told in _told(event):
            emit(whole_value(told))
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
