"""Metering: every request to a model is recorded in the usage of the profile, and budgets hold before it is sent.

`MeteredModel` is the lowest wrapper of a model, below retries, so each attempt is a request of its own. A request is
recorded twice: with an estimate before it is sent, and with the tokens that the provider has reported when its answer
has ended, which is before the tools of the answer run. Without such a report the second record is an estimate too:

- A request that the provider has refused (an HTTP status of an error), or that has reached no server, costs nothing.
- A request that failed otherwise, or was cancelled, costs its input and the received part of the answer.

A request whose process was killed has its first record only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic_ai import exceptions
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage
from pydantic_ai_harness.compaction import estimate_token_count

from deepctl import quantities
from deepctl.agent.interruption import Blocking, Emit, directly, storing
from deepctl.agent.limits import bounded_usage, check_price, context_tokens, request_cost
from deepctl.agent.request_failures import causes_of
from deepctl.domain.budgets import Budget, BudgetState, Spending
from deepctl.store import usage_log
from deepctl.store.usage_log import UsageEntry

_purpose: ContextVar[str] = ContextVar("purpose", default="answer")
_UNSENT = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")
"""The exceptions of HTTP clients for a request of which no byte has reached the server."""


@contextmanager
def purpose(name: str) -> Iterator[None]:
    """Requests inside this context have this purpose: see `deepctl.store.usage_log.PURPOSES`."""
    token = _purpose.set(name)
    try:
        yield
    finally:
        _purpose.reset(token)


Traced = Callable[..., AbstractContextManager[None]]


def _untraced(name: str, **marks: str | int | None) -> AbstractContextManager[None]:
    return nullcontext()


class Meter:
    """Records the requests of one engine. Without `spending`, nothing is recorded.

    `name` is the model's name in the records. `emit` receives notices, and `blocking` runs the work of the disk.
    `traced` makes a span of a trace.
    """

    def __init__(self, spending: Spending | None, model: Model, name: str, traced: Traced = _untraced) -> None:
        self.spending = spending
        self._traced = traced
        self.session: str | None = None
        self.turn: int | None = None
        self.emit: Emit = lambda event: None
        self.blocking: Blocking = directly
        self._model = model
        self._name = name
        self._problem: str | None = None
        self._priced: tuple[Budget, ...] = ()
        self.check_prices()

    def around(self, model: Model) -> Model:
        """The model with a record of its requests."""
        return MeteredModel(model, self) if self.spending is not None else model

    def span(self) -> AbstractContextManager[None]:
        """A span around a request for a summary. Other requests have spans of pydantic-ai."""
        name = _purpose.get()
        return self._traced("summary", model=self._name) if name == "compaction" else nullcontext()

    def set_budgets(self, budgets: Sequence[Budget]) -> None:
        """Use these budgets from now on."""
        if self.spending is not None:
            self.spending.budgets = tuple(budgets)

    def check_prices(self) -> None:
        """Raises `UsageError` if a budget in USD cannot hold because the model has no price."""
        budgets = self.spending.budgets if self.spending is not None else ()
        if budgets != self._priced:
            for budget in budgets:
                if budget.is_money:
                    unset = f"deepctl config unset {budget.setting}{budget.place}"
                    check_price(self._model, self._name, budget.setting, "max_tokens_day", unset)
            self._priced = budgets

    async def begin(self, messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> UsageEntry:
        """Record a request before it is sent. Raises `BudgetReached`, and the other errors of `Spending.begin`."""
        assert self.spending is not None
        self.check_prices()
        tokens = context_tokens(messages, parameters)
        estimate = request_cost(RequestUsage(input_tokens=tokens), self._model)
        entry = UsageEntry(
            usage_log.new_id(),
            quantities.now(),
            self.session,
            self.turn,
            self._name,
            _purpose.get(),
            tokens,
            0,
            0,
            estimate,
            estimated=True,
        )
        try:
            with storing():
                await self.blocking(partial(self.spending.begin, entry))
        except BaseException as error:
            if not isinstance(error, Exception):
                self.spending.end(entry._replace(input=0, cost=0.0))  # it was cancelled, and is not sent
            raise
        return entry

    async def ended(self, entry: UsageEntry, answer: ModelResponse, *, is_whole: bool) -> None:
        """Record the end of a request."""
        await self.blocking(partial(self._end, self._with_usage(entry, answer, is_whole=is_whole)))

    def failed(
        self, entry: UsageEntry, answer: ModelResponse | None, error: BaseException, *, is_whole: bool = False
    ) -> None:
        """Record a request that failed or was cancelled. `answer` is its received part."""
        if answer is None and _is_refused(error):
            self._end(entry._replace(input=0, cost=0.0))
        else:
            self._end(self._with_usage(entry, answer, is_whole=is_whole))

    def _with_usage(self, entry: UsageEntry, answer: ModelResponse | None, *, is_whole: bool) -> UsageEntry:
        """The entry with the tokens that the provider has reported; with an estimate if it has not reported them."""
        usage = bounded_usage(answer.usage) if answer is not None else RequestUsage()
        has_report = not usage.unmeasured_requests and (usage.input_tokens > 0 or usage.output_tokens > 0)
        if not (is_whole and has_report):
            received = estimate_token_count([replace(answer, usage=RequestUsage())]) if answer is not None else 0
            sent = usage.input_tokens or entry.input
            usage = _estimated(usage, sent, max(usage.output_tokens, received))
        cost = request_cost(usage, self._model, answer)
        return entry._replace(
            input=usage.input_tokens,
            cached=usage.cache_read_tokens,
            output=usage.output_tokens,
            cost=cost,
            estimated=not (is_whole and has_report),
        )

    def _end(self, entry: UsageEntry) -> None:
        assert self.spending is not None
        for state in self.spending.end(entry):
            self.emit(_warning(state))
        problem = self.spending.problem
        if problem is not None and problem != self._problem:
            self.emit(
                {
                    "type": "notice",
                    "message": f"The usage of this request is not stored yet. {problem} It is stored with the next "
                    "request, if that is possible.",
                }
            )
        self._problem = problem


def _estimated(usage: RequestUsage, sent: int, received: int) -> RequestUsage:
    """The usage with other totals, and without a cost that does not belong to them."""
    return RequestUsage(input_tokens=sent, cache_read_tokens=min(usage.cache_read_tokens, sent), output_tokens=received)


def _warning(state: BudgetState) -> dict[str, Any]:
    sentence = state.sentence()
    message = f"{state.share:.0%} of a budget is spent: {sentence}."
    return {"type": "notice", "message": message, "budget": state.document()}


def _is_refused(error: BaseException) -> bool:
    """Whether a request has certainly cost nothing."""
    if isinstance(error, exceptions.ModelHTTPError):
        return not error.in_stream
    return any(type(cause).__name__ in _UNSENT for cause in causes_of(error))


def _received(response: StreamedResponse | None) -> ModelResponse | None:
    """The received part of an answer; `None` if it cannot be read, or no answer has begun."""
    try:
        return response.get() if response is not None else None
    except Exception:  # of any client: the failure of the request is reported, not this one
        return None


class MeteredModel(WrapperModel):
    """A model whose requests are recorded by a meter."""

    def __init__(self, model: Model, meter: Meter) -> None:
        super().__init__(model)
        self._meter = meter

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        entry = await self._meter.begin(messages, model_request_parameters)
        try:
            with self._meter.span():
                answer = await self.wrapped.request(messages, model_settings, model_request_parameters)
        except BaseException as error:
            self._meter.failed(entry, None, error)
            raise
        await self._meter.ended(entry, answer, is_whole=True)
        return answer

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        entry = await self._meter.begin(messages, model_request_parameters)
        response: StreamedResponse | None = None
        try:
            with self._meter.span():
                async with self.wrapped.request_stream(
                    messages, model_settings, model_request_parameters, run_context
                ) as response:
                    yield response
        except BaseException as error:
            # An answer that has ended is paid for as a whole, whatever its consumer raises.
            is_whole = response is not None and response._finished
            self._meter.failed(entry, _received(response), error, is_whole=is_whole)
            raise
        await self._meter.ended(entry, response.get(), is_whole=response._finished)
