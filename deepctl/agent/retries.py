"""Requests that are sent again when the provider is busy, failing or out of reach.

This is the one place that retries: the providers' own clients, which would do so in silence, are told not to. Only what
can pass is tried again, and only before anything of the answer has come: what has been shown cannot be taken back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic_ai import exceptions
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from deepctl.agent.limits import bounded
from deepctl.agent.provider_errors import passes

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


def wait(error: BaseException, attempt: int) -> float | None:
    """Seconds until a request that failed for the `attempt`th time (from 1) is sent again; `None` if it is not."""
    if not passes(error):
        return None
    retry_after = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    if retry_after is not None:
        return retry_after if retry_after <= MOST_ASKED_FOR else None
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(attempt - 1, 32) * random.uniform(1, 1.5))


class RetryingModel(WrapperModel):
    """A model whose requests are sent again when they fail in passing, and whose answers report no absurd usage."""

    def __init__(self, wrapped: Model, retries: Retries) -> None:
        super().__init__(wrapped)
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
                return replace(answer, usage=bounded(answer.usage))
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
                    await _begun(response)
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
        seconds = wait(error, attempt) if attempt <= self._retries.most else None
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


async def _begun(response: StreamedResponse) -> None:
    """Wait for the first event of an answer, which `response` then begins with all the same.

    A provider may accept a request and only then find that it cannot answer. Raises what the stream raises.
    """
    events = _bounded(response, aiter(response))
    try:
        first = await anext(events)
    except StopAsyncIteration:
        return
    # `StreamedResponse` gives whoever iterates it the iterator that it keeps here.
    response._event_iterator = _replayed(first, events)


async def _bounded(
    response: StreamedResponse, events: AsyncIterator[ModelResponseStreamEvent]
) -> AsyncIterator[ModelResponseStreamEvent]:
    """The events, with the usage bounded before anybody can see it: most providers report it behind the last one.

    An answer of the Responses API that has neither a beginning nor an end is no job in the background: those have ids.
    """
    try:
        async for event in events:
            response._usage = bounded(response._usage)
            yield event
        if response.state == "suspended" and response.provider_response_id is None:
            # There is nothing to go on with: pydantic-ai would send the same request ten times more.
            response.state = "incomplete"
    finally:
        response._usage = bounded(response._usage)


async def _replayed(
    first: ModelResponseStreamEvent, events: AsyncIterator[ModelResponseStreamEvent]
) -> AsyncIterator[ModelResponseStreamEvent]:
    yield first
    async for event in events:
        yield event


if not {"_event_iterator", "_usage"} <= StreamedResponse.__dataclass_fields__.keys():
    raise ImportError("this version of pydantic-ai keeps the events of an answer in a way that deepctl does not know")
