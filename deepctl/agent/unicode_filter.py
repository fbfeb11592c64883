"""The edge at which text of a model and text for a model becomes valid Unicode (`deepctl.unicode`).

`UnicodeFilter` wraps every model of an agent. Answers come out of it without lone surrogates, streamed or whole, and
requests go into it without any, whatever an old session log, a tool or an application put into the history.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

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
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from deepctl.unicode import Pieces, whole_value


@dataclass
class UnicodeFilter(AbstractCapability[Any]):
    """Has every request of an agent go through a `UnicodeFilterModel`."""

    def get_wrapper_model(self, model: Model) -> Model | None:
        return UnicodeFilterModel(model)


class UnicodeFilterModel(WrapperModel):
    """A model that neither gets nor gives text that is not valid Unicode."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        return whole_value(await self.wrapped.request(whole_value(messages), model_settings, model_request_parameters))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        async with self.wrapped.request_stream(
            whole_value(messages), model_settings, model_request_parameters, run_context
        ) as response:
            get, events = response.get, aiter(response)
            # What is asked for the answer so far, in mid-stream and after a failure too, is this object.
            response.get = lambda: whole_value(get())  # type: ignore[method-assign]
            response._event_iterator = _valid_events(events)
            yield response


_DELTAS: dict[str, Callable[[str], ModelResponsePartDelta]] = {
    "content": TextPartDelta,
    "thinking": lambda text: ThinkingPartDelta(content_delta=text),
    "args": lambda text: ToolCallPartDelta(args_delta=text),
}
"""How a piece of a part's text is told, by what it is a piece of."""


async def _valid_events(events: AsyncIterator[ModelResponseStreamEvent]) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events of an answer; the first half of a character is held back until the second comes or the text ends."""
    texts: dict[int, tuple[str, Pieces]] = {}
    try:
        async for event in events:
            if isinstance(event, PartEndEvent):
                for rest in _rest(texts, event.index):
                    yield rest
            yield whole_value(_joined(event, texts))
    except Exception:
        # The connection was lost between the halves. A consumer that leaves raises GeneratorExit and gets nothing.
        for index in list(texts):
            for rest in _rest(texts, index):
                yield rest
        raise
    for index in list(texts):
        for rest in _rest(texts, index):
            yield rest


def _rest(texts: dict[int, tuple[str, Pieces]], index: int) -> Iterator[PartDeltaEvent]:
    what, pieces = texts.pop(index, ("", None))
    if pieces is not None and (rest := pieces.finish()):
        yield PartDeltaEvent(index=index, delta=_DELTAS[what](rest))


def _joined(event: ModelResponseStreamEvent, texts: dict[int, tuple[str, Pieces]]) -> ModelResponseStreamEvent:
    """`event` with the text it adds to a part as `Pieces` has it."""
    match event:
        case PartStartEvent(index=index, part=TextPart(content=text) as part):
            return replace(event, part=replace(part, content=_begun(texts, index, "content").feed(text)))
        case PartStartEvent(index=index, part=ThinkingPart(content=text) as part):
            return replace(event, part=replace(part, content=_begun(texts, index, "thinking").feed(text)))
        case PartStartEvent(
            index=index, part=(ToolCallPart(args=str(text)) | NativeToolCallPart(args=str(text))) as part
        ):
            return replace(event, part=replace(part, args=_begun(texts, index, "args").feed(text)))
        case PartDeltaEvent(index=index, delta=TextPartDelta(content_delta=text) as delta):
            return replace(event, delta=replace(delta, content_delta=_of(texts, index, "content").feed(text)))
        case PartDeltaEvent(index=index, delta=ThinkingPartDelta(content_delta=str(text)) as delta):
            return replace(event, delta=replace(delta, content_delta=_of(texts, index, "thinking").feed(text)))
        case PartDeltaEvent(index=index, delta=ToolCallPartDelta(args_delta=str(text)) as delta):
            return replace(event, delta=replace(delta, args_delta=_of(texts, index, "args").feed(text)))
        case _:
            return event


def _begun(texts: dict[int, tuple[str, Pieces]], index: int, what: str) -> Pieces:
    texts.pop(index, None)
    return _of(texts, index, what)


def _of(texts: dict[int, tuple[str, Pieces]], index: int, what: str) -> Pieces:
    return texts.setdefault(index, (what, Pieces()))[1]
