"""Limits and cost of one turn (requests, tokens and money), and the share of a window that a conversation takes.

A limit that has been reached prevents the next request. So the answer that exceeds it is complete, its tools have run,
and a turn exceeds a limit by one answer at most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, NamedTuple

from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse, ThinkingPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RequestUsage, RunUsage, UsageLimits
from pydantic_ai_harness.compaction import estimate_context_tokens, estimate_token_count, resolve_context_window

from deepctl.agent import windows
from deepctl.domain.settings import Value
from deepctl.errors import UsageError

_FREE = ("ollama",)
"""Providers without a price for tokens."""
_PLACES = 6

_CORRECTED = {"anthropic:claude-sonnet-4-5": 200_000}
"""Windows that are wrong in the registry of prices (it has that of a beta version); the harness' README measured
them.
"""

COMPACT_AT = 80
"""The default percentage of the context window at which a conversation is compacted."""

MOST = 10**9
"""Maximum of tokens and of USD, more than any request takes. A provider can report any number, and later calculations
with it must not fail.
"""

_SHORT = 6_000
"""Tokens of a request that is sent without asking its server for the window first: the window is needed before long
requests only, and a server that cannot answer is better reported by the request itself.
"""
_REPEATED = re.compile(r"(\W)\1+")


class LimitPlace(NamedTuple):
    """The place of a limit: the file of a `profile` if one is named, else the file for all profiles."""

    setting: str
    profile: str | None = None
    is_fixed: bool = False
    """Whether there is no place, because no files are read."""

    def to_set(self, value: int | Decimal) -> str:
        """The command that sets another value."""
        return f"deepctl config set {self.setting} {value}{self._whose}"

    def to_unset(self) -> str:
        """The command that removes the limit."""
        return f"deepctl config unset {self.setting}{self._whose}"

    @property
    def _whose(self) -> str:
        return f" --user {self.profile}" if self.profile is not None else ""


class ConfiguredLimits(NamedTuple):
    """The limits of a turn: requests to the model, tokens sent and received, USD. `None` means unlimited."""

    requests: int | None = 100
    tokens: int | None = None
    cost: Decimal | None = None
    places: Mapping[str, LimitPlace] = {}
    """The place of each limit, by its setting."""


def read_limits(resolve: Callable[[str], Value], profile: str | None) -> ConfiguredLimits:
    """The limits in the settings; `resolve` returns a setting by its name.

    `profile` owns the settings, `None` for a chat that reads no files.
    """
    values = {name: resolve(name) for name in ("max_requests", "max_tokens", "max_cost")}
    requests, tokens, cost = (value.value for value in values.values())
    return ConfiguredLimits(
        int(requests) if requests else None,
        int(tokens) if tokens else None,
        Decimal(cost) if cost else None,
        {
            name: LimitPlace(name, profile if value.source == "profile" else None, profile is None)
            for name, value in values.items()
        },
    )


class ContextUsage(NamedTuple):
    """The use of the model's context window by a conversation, in tokens; `window` is `None` if it is unknown."""

    tokens: int
    window: int | None


class CompactionPolicy(NamedTuple):
    """When conversations are compacted: at `share` percent of the window, or never (`None`).

    `window` is the model's context window in tokens, if the model's own value must not be used. `cache` is the file
    with the windows that servers have reported, `None` if nothing may be stored.
    """

    share: int | None = COMPACT_AT
    window: int | None = None
    cache: str | None = None

    async def window_of(self, model: Model, tokens: int = MOST) -> int | None:
        """The context window in force; a server of your own is asked for it before a request of many `tokens`."""
        if self.window is None:
            await windows.ask(model, self.cache, is_urgent=tokens > _SHORT)
        return window_of(model, self.window)


class LimitReached(UsageLimitExceeded):
    """The next request is not sent. `limit` is the value of the limit, `used` the usage."""

    def __init__(self, place: LimitPlace, limit: int | Decimal, amount: int | Decimal | None) -> None:
        super().__init__(f"{place.setting} is {limit}")
        self.place = place
        self.limit = limit
        self.used = amount
        """`None` if the provider does not report it."""

    @property
    def enough(self) -> int | Decimal:
        """Twice the limit or the usage, whichever is more, rounded to two digits: a possible new limit."""
        least = 2 * Decimal(max(self.limit, self.used or 0))
        step = Decimal(1).scaleb(least.adjusted() - 1)
        limit = (least / step).to_integral_value(ROUND_CEILING) * step
        if isinstance(self.limit, int):
            return int(limit)
        return Decimal(f"{limit:f}")


@dataclass(repr=False, kw_only=True)
class TurnLimits(UsageLimits):
    """The limits of a turn, which pydantic-ai checks before each request.

    pydantic-ai's own limits are not used: they are also checked during an answer, and would cut off paid text.
    """

    request_limit: int | None = None
    turn: ConfiguredLimits
    free: bool = False
    """Whether the model costs nothing."""

    def check_before_request(self, usage: RunUsage) -> None:
        limits, place = self.turn, self._place
        if limits.requests is not None and usage.requests >= limits.requests:
            raise LimitReached(place("max_requests"), limits.requests, usage.requests)
        unknown = usage.unmeasured_requests > 0
        if limits.tokens is not None and (unknown or usage.total_tokens >= limits.tokens):
            raise LimitReached(place("max_tokens"), limits.tokens, None if unknown else usage.total_tokens)
        if limits.cost is not None and usage.requests and not self.free:
            amount = None if unknown else usage.cost
            if amount is None or amount >= limits.cost:
                raise LimitReached(place("max_cost"), limits.cost, amount)

    def _place(self, setting: str) -> LimitPlace:
        return self.turn.places.get(setting, LimitPlace(setting))


_MONEY = LimitPlace("max_cost")


def limits_of(limits: ConfiguredLimits, model: Model, name: str) -> TurnLimits:
    """The limits of turns with a model, called `name`.

    Raises `UsageError` if money is limited and the price is unknown, because the limit would have no effect.
    """
    free = is_free(model)
    if limits.cost is not None and not free and not _has_price(model):
        raise UsageError(
            f"There is no price for {name}, so max_cost cannot be enforced.",
            f"Limit max_tokens instead, and remove max_cost: {limits.places.get('max_cost', _MONEY).to_unset()}",
            code="no_price",
        )
    return TurnLimits(turn=limits, free=free)


def is_scripted(model: Model) -> bool:
    """Whether a model is code of this process: a `FunctionModel`, such as the offline model, or a `TestModel`.

    Such a model gives no reason to stop.
    """
    while isinstance(model, WrapperModel):
        model = model.wrapped
    # The module of `TestModel` is not imported for this.
    return any(kind.__name__ in ("FunctionModel", "TestModel") for kind in type(model).__mro__)


def is_free(model: Model) -> bool:
    """Whether tokens of a model are free: those of the offline model, and of Ollama."""
    return is_scripted(model) or model.system in _FREE


def _has_price(model: Model) -> bool:
    """Whether genai-prices, which pydantic-ai uses, has a price for a model."""
    response = ModelResponse(
        parts=[],
        usage=RequestUsage(input_tokens=1, output_tokens=1),
        model_name=model.model_name,
        provider_name=model.system,
        provider_url=model.base_url,
    )
    try:
        response.cost()
    except (LookupError, ValueError):
        return False
    return True


def cost(usage: RunUsage, model: Model) -> float | None:
    """The cost of a turn in USD, as far as prices are known; `None` if they are not."""
    if is_free(model):
        return 0.0
    if usage.cost is None or usage.unmeasured_requests:
        return None
    try:
        return float(round(usage.cost, _PLACES))
    except InvalidOperation:  # it has more digits than the decimal context
        return None


def bounded_usage(usage: RequestUsage) -> RequestUsage:
    """The same with every count limited to 0…`MOST`; a cost beyond that is unknown."""
    counts = {name: _bounded(value) for name, value in vars(usage).items()}
    counts["details"] = {name: _bounded(value) for name, value in usage.details.items()}
    return RequestUsage(**counts)


def _bounded(value: Any) -> Any:
    if isinstance(value, Decimal):
        return value if value.is_finite() and 0 <= value <= MOST else None
    return max(0, min(value, MOST)) if isinstance(value, int | float) else value


def window_of(model: Model, setting: int | None = None) -> int | None:
    """A model's context window in tokens: `setting`, or what its server has reported (`deepctl.agent.windows`), or the
    value in the registry of prices; `None` if it is unknown.
    """
    return setting or windows.known(model) or _CORRECTED.get(model.model_id) or resolve_context_window(model)


def context_tokens(messages: Sequence[ModelMessage], parameters: ModelRequestParameters | None = None) -> int:
    """The tokens of a conversation, and with `parameters` of the tools that are sent with it; at most `MOST`.

    Some answers report the number separately from their usage, in the metadata, which is not bounded.
    """
    tokens = estimate_context_tokens(messages, model_request_parameters=parameters)
    # A reported number includes the tools of its request.
    if parameters is not None and not any(
        isinstance(message, ModelResponse) and message.usage.input_tokens for message in messages
    ):
        tokens += _tool_tokens(parameters)
    return max(0, min(tokens, MOST))


def sent_tokens(messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> int:
    """A low estimate of the tokens of a request, from its texts alone: without thinking, which most servers drop, and
    without repeated marks, of which a token can contain many.
    """
    texts: list[ModelMessage] = [
        replace(message, parts=[part for part in message.parts if not isinstance(part, ThinkingPart)])
        if isinstance(message, ModelResponse)
        else message
        for message in messages
    ]
    return estimate_token_count(texts, lambda text: len(_REPEATED.sub(r"\1", text)) // 4) + _tool_tokens(parameters)


def _tool_tokens(parameters: ModelRequestParameters) -> int:
    tools = parameters.tool_defs.values()
    texts = (tool.name + (tool.description or "") + json.dumps(tool.parameters_json_schema) for tool in tools)
    return sum(map(len, texts)) // 4
