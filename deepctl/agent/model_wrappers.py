"""Wrappers around a model that every request of an agent passes: valid Unicode, retries, a stream for a whole answer.

Requests and answers, whole or streamed, contain no lone surrogates (`deepctl.unicode`), even if an old session log, a
tool or an application put some into the history.

This is also the one place that retries a request: `RetryingModel` sends it again if the provider is busy, fails or
cannot be reached. The providers' own clients would retry silently, so their retries are switched off. A request is sent
again only if the failure is temporary and no part of the answer has arrived, because shown text cannot be removed.
`RetryingModel` also limits how long a model may be silent. After such a silence a request is not sent again: the user
has waited as long as allowed, and a slow server would compute the same answer a second time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from pydantic_ai import exceptions
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponsePartDelta,
    ModelResponseStreamEvent,
    NativeToolCallPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from deepctl.agent.limits import bounded_usage, unwrapped
from deepctl.agent.request_failures import SilentModel, is_temporary
from deepctl.unicode import PieceDecoder, whole_value

_T = TypeVar("_T")


class FilterModel(WrapperModel):
    """A model that changes the messages before they are sent, and the answers before they are returned.

    This class changes nothing; subclasses override the methods for their changes.
    """

    def sent(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        """The messages for the wrapped model."""
        return messages

    def received(self, response: ModelResponse) -> ModelResponse:
        """The changed form of a whole answer."""
        return response

    def streamed(self, response: StreamedResponse) -> None:
        """Change a streamed answer in place before its first event."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        return self.received(await self.wrapped.request(self.sent(messages), model_settings, model_request_parameters))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        async with self.wrapped.request_stream(
            self.sent(messages), model_settings, model_request_parameters, run_context
        ) as response:
            self.streamed(response)
            yield response


class CollectingModel(WrapperModel):
    """Returns a whole answer from a model that can only stream."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        async with self.wrapped.request_stream(messages, model_settings, model_request_parameters) as response:
            async for _ in response:
                pass
        return response.get()


class ReplayingModel(WrapperModel):
    """Streams the whole answer of a model that cannot stream."""

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        response = await self.wrapped.request(messages, model_settings, model_request_parameters)
        yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters, replay_events=True)


def with_both_ways(model: Model) -> Model:
    """A model that can stream, and can return a whole answer. Some `FunctionModel`s can do only one of these."""
    if isinstance(model, FunctionModel) and model.function is None:
        return CollectingModel(model)
    if isinstance(model, FunctionModel) and model.stream_function is None:
        return ReplayingModel(model)
    return model


@dataclass
class UnicodeFilter(AbstractCapability[Any]):
    """Wraps the model of an agent in a `UnicodeFilterModel`."""

    def get_wrapper_model(self, model: Model) -> Model | None:
        return UnicodeFilterModel(model)


class UnicodeFilterModel(FilterModel):
    """A model that neither receives nor returns invalid Unicode text."""

    def sent(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        return whole_value(messages)

    def received(self, response: ModelResponse) -> ModelResponse:
        return whole_value(response)

    def streamed(self, response: StreamedResponse) -> None:
        get, events = response.get, aiter(response)
        # Callers read the answer so far from this object, also in mid-stream and after a failure.
        response.get = lambda: whole_value(get())  # type: ignore[method-assign]
        response._event_iterator = _valid_events(events)


_DELTAS: dict[str, Callable[[str], ModelResponsePartDelta]] = {
    "content": TextPartDelta,
    "thinking": lambda text: ThinkingPartDelta(content_delta=text),
    "args": lambda text: ToolCallPartDelta(args_delta=text),
}
"""The event for a piece of text, by the field of the part to which the piece belongs."""


async def _valid_events(events: AsyncIterator[ModelResponseStreamEvent]) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events of an answer; half a character is delayed until the other half arrives or the text ends."""
    texts: dict[int, tuple[str, PieceDecoder]] = {}
    try:
        async for event in events:
            if isinstance(event, PartEndEvent):
                for end_event in _rest(texts, event.index):
                    yield end_event
            yield whole_value(_joined(event, texts))
    except Exception:
        # The connection was lost between the halves. A consumer that stops raises GeneratorExit, and gets no event.
        for index in list(texts):
            for end_event in _rest(texts, index):
                yield end_event
        raise
    for index in list(texts):
        for end_event in _rest(texts, index):
            yield end_event


def _rest(texts: dict[int, tuple[str, PieceDecoder]], index: int) -> Iterator[PartDeltaEvent]:
    field, pieces = texts.pop(index, ("", None))
    if pieces is not None and (text := pieces.finish()):
        yield PartDeltaEvent(index=index, delta=_DELTAS[field](text))


def _joined(event: ModelResponseStreamEvent, texts: dict[int, tuple[str, PieceDecoder]]) -> ModelResponseStreamEvent:
    """`event` with its text decoded by the `PieceDecoder` of the part."""
    match event:
        case PartStartEvent(index=index, part=TextPart(content=text) as part):
            return replace(event, part=replace(part, content=_begin_decoder(texts, index, "content").feed(text)))
        case PartStartEvent(index=index, part=ThinkingPart(content=text) as part):
            return replace(event, part=replace(part, content=_begin_decoder(texts, index, "thinking").feed(text)))
        case PartStartEvent(
            index=index, part=(ToolCallPart(args=str(text)) | NativeToolCallPart(args=str(text))) as part
        ):
            return replace(event, part=replace(part, args=_begin_decoder(texts, index, "args").feed(text)))
        case PartDeltaEvent(index=index, delta=TextPartDelta(content_delta=text) as delta):
            return replace(event, delta=replace(delta, content_delta=_decoder_of(texts, index, "content").feed(text)))
        case PartDeltaEvent(index=index, delta=ThinkingPartDelta(content_delta=str(text)) as delta):
            return replace(event, delta=replace(delta, content_delta=_decoder_of(texts, index, "thinking").feed(text)))
        case PartDeltaEvent(index=index, delta=ToolCallPartDelta(args_delta=str(text)) as delta):
            return replace(event, delta=replace(delta, args_delta=_decoder_of(texts, index, "args").feed(text)))
        case _:
            return event


def _begin_decoder(texts: dict[int, tuple[str, PieceDecoder]], index: int, field: str) -> PieceDecoder:
    texts.pop(index, None)
    return _decoder_of(texts, index, field)


def _decoder_of(texts: dict[int, tuple[str, PieceDecoder]], index: int, field: str) -> PieceDecoder:
    return texts.setdefault(index, (field, PieceDecoder()))[1]


FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
"""Seconds before the first retry, and the maximum. Each wait is twice the one before, and randomly up to half longer:
many clients that were refused at the same moment do not retry at the same moment.
"""
MOST_ASKED_FOR = 60.0
"""The longest wait in seconds that a provider may request. For a longer one, the turn fails with an error at once."""


_CLIENT_TIMEOUT, _CLIENT_MARGIN = 1200.0, 60.0
"""The client's own limit for silence on the connection, in seconds, and its least excess over the limits here. It is a
substitute for no limit, because not every client accepts that. 1200 is the largest default of a client (Google's, which
sends it to the server too).
"""


class Retries(NamedTuple):
    """The maximum number of retries (0: none), the receiver of the event for each wait, and the text for a failure.

    `first_answer` and `idle` are the longest silence of the model, in seconds, before its first text, thinking or tool
    call, and after it. `None` means unlimited.
    """

    most: int = 0
    emit: Callable[[dict[str, Any]], None] = lambda event: None
    reason: Callable[[BaseException], str] = str
    first_answer: float | None = None
    idle: float | None = None


def wait_before_retry(error: BaseException, attempt: int) -> float | None:
    """Seconds until the retry of a request that failed for the `attempt`th time (from 1); `None` for no retry."""
    if not is_temporary(error):
        return None
    retry_after = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    if retry_after is not None:
        return retry_after if retry_after <= MOST_ASKED_FOR else None
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 32) * random.uniform(1, 1.5))


class _SilenceLimit:
    """Raises `SilentModel` if one request waits for its answer for too long. Time between two waits does not count."""

    def __init__(self, model: Model, retries: Retries) -> None:
        self._model = model
        self._limit = self._rest = retries.first_answer
        self._idle = retries.idle
        self._has_begun = False

    async def wait(self, work: Awaitable[_T]) -> _T:
        """The result of `work`, in the remaining time."""
        began = time.monotonic()
        deadline = asyncio.timeout(self._rest)
        try:
            async with deadline:
                return await work
        except TimeoutError as error:
            if not deadline.expired():
                raise
            assert self._limit is not None
            raise SilentModel(self._model.model_name, self._limit, has_begun=self._has_begun) from error
        finally:
            if self._rest is not None:
                self._rest -= time.monotonic() - began

    async def limited(self, events: AsyncIterator[ModelResponseStreamEvent]) -> AsyncIterator[ModelResponseStreamEvent]:
        """The events of an answer, with a limit for the time between two pieces of it."""
        while True:
            try:
                event = await self.wait(anext(events))
            except StopAsyncIteration:
                return
            if _has_content(event):
                self._has_begun, self._limit, self._rest = True, self._idle, self._idle
            yield event


def _has_content(event: ModelResponseStreamEvent) -> bool:
    """Whether an event is a piece of text, thinking or a tool call. Servers can send empty pieces to stay connected."""
    match event:
        case PartStartEvent(part=TextPart(content="") | ThinkingPart(content="")):
            return False
        case PartDeltaEvent(delta=TextPartDelta(content_delta="")):
            return False
        case _:
            return isinstance(event, PartStartEvent | PartDeltaEvent)


class RetryingModel(WrapperModel):
    """A model whose requests are retried after temporary failures, and whose answers report bounded usage.

    Raises `SilentModel` if an answer does not begin, or does not continue, in time.
    """

    def __init__(self, model: Model, retries: Retries) -> None:
        super().__init__(model)
        self._retries = retries

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        settings = self._without_own_limits(model_settings)
        attempt = 1
        while True:
            try:
                limit = _SilenceLimit(self.wrapped, self._retries)
                answer = await limit.wait(self.wrapped.request(messages, settings, model_request_parameters))
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
        settings = self._without_own_limits(model_settings)
        attempt = 1
        while True:
            limit = _SilenceLimit(self.wrapped, self._retries)
            async with AsyncExitStack() as stack:
                try:
                    stream = self.wrapped.request_stream(messages, settings, model_request_parameters, run_context)
                    response = await limit.wait(stack.enter_async_context(stream))
                    await _first_event(response, limit)
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

    def _without_own_limits(self, settings: ModelSettings | None) -> ModelSettings:
        """Settings with which the provider's client sends a request once, and waits longer than the limits here.

        pydantic-ai cannot pass these settings to some clients (Bedrock, Hugging Face, xAI). Their retries are
        additional, and their own limits stay.
        """
        longest = max(self._retries.first_answer or 0, self._retries.idle or 0)
        own = {"max_retries": 0, "timeout": max(_CLIENT_TIMEOUT, longest + _CLIENT_MARGIN)}
        unsupported = type(unwrapped(self.wrapped)).unsupported_settings
        supported = {name: value for name, value in own.items() if name not in unsupported}
        return ModelSettings(**{**(settings or {}), **supported})  # type: ignore[typeddict-item]


async def _first_event(response: StreamedResponse, limit: _SilenceLimit) -> None:
    """Wait for the first event of an answer; `response` still begins with this event.

    A provider may accept a request and only then fail. Raises the errors of the stream.
    """
    events = _bounded_events(response, limit.limited(_well_formed(aiter(response))))
    try:
        first = await anext(events)
    except StopAsyncIteration:
        return
    # `StreamedResponse` returns the iterator in this field to its caller.
    response._event_iterator = _replayed(first, events)


async def _well_formed(events: AsyncIterator[ModelResponseStreamEvent]) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events of an answer. The clients do not check types, so a field of another type fails where it is used."""
    try:
        async for event in events:
            yield event
    except (AttributeError, LookupError, TypeError) as error:
        raise exceptions.UnexpectedModelBehavior(
            f"it is not in the form of its protocol, {type(error).__name__}: {error}"
        ) from error


async def _bounded_events(
    response: StreamedResponse, events: AsyncIterator[ModelResponseStreamEvent]
) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events, with the usage bounded before other code reads it. Most providers report it after the last event.

    The text of a refusal, which OpenAI sends apart from the text of the answer, follows as text, so that it is shown
    and recorded. An answer of the Responses API with neither a beginning nor an end is not a background job, which has
    an id.
    """
    try:
        async for event in events:
            response._usage = bounded_usage(response._usage)
            yield event
        if refusal := (response.provider_details or {}).get("refusal"):
            for event in response._parts_manager.handle_text_delta(vendor_part_id="refusal", content=str(refusal)):
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


_USED = {"_event_iterator", "_finished", "_parts_manager", "_usage"}
if not {*StreamedResponse.__dataclass_fields__, *vars(StreamedResponse)} >= _USED:
    raise ImportError("deepctl does not support how this version of pydantic-ai stores the events of an answer")
