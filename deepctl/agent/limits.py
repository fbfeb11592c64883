"""What one turn may use and what it has cost (requests, tokens and money), and what a conversation takes of a window.

A limit that has been reached keeps the next request from being sent. So the answer that passes it is whole, its tools
have run, and a turn passes a limit by one answer at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, NamedTuple

from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.usage import RequestUsage, RunUsage, UsageLimits
from pydantic_ai_harness.compaction import estimate_context_tokens, resolve_context_window

from deepctl.domain.settings import Value
from deepctl.errors import UsageError

_FREE = ("ollama",)
"""Providers that take no money for tokens."""
_PLACES = 6

_CORRECTED = {"anthropic:claude-sonnet-4-5": 200_000}
"""Windows that the registry of prices has wrong (it has the one of a beta); the harness' README measured it."""

COMPACT_AT = 80
"""At how many percent of the context window a conversation is compacted, if nobody says otherwise."""

MOST = 10**9
"""More tokens, and USD, than any request takes. A provider can report any number, and what is reckoned with it, now and
whenever the conversation goes on, is to come out."""


class LimitPlace(NamedTuple):
    """Where a limit is set: in the file of a `profile` if one is named, else in the one for all."""

    setting: str
    profile: str | None = None
    is_fixed: bool = False
    """Whether it is nowhere, because no files are read."""

    def to_set(self, value: int | Decimal) -> str:
        """The command that has another value count the next time."""
        return f"deepctl config set {self.setting} {value}{self._whose}"

    def to_unset(self) -> str:
        """The command that has none count."""
        return f"deepctl config unset {self.setting}{self._whose}"

    @property
    def _whose(self) -> str:
        return f" --user {self.profile}" if self.profile is not None else ""


class ConfiguredLimits(NamedTuple):
    """What a turn may use: requests to the model, tokens sent and received, USD. `None` is as much as it likes."""

    requests: int | None = 100
    tokens: int | None = None
    cost: Decimal | None = None
    places: Mapping[str, LimitPlace] = {}
    """Where each is set, by its setting."""


def configured(resolve: Callable[[str], Value], profile: str | None) -> ConfiguredLimits:
    """The limits that settings say; `resolve` gives a setting by its name.

    `profile` is whose settings they are, `None` for a chat that reads no files.
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
    """What of the model's context window a conversation takes, in tokens; `window` is `None` where nobody knows it."""

    tokens: int
    window: int | None


class CompactionPolicy(NamedTuple):
    """When conversations are compacted: at `share` percent of the window, or never (`None`).

    `window` is the model's context window in tokens, if it is not to be asked.
    """

    share: int | None = COMPACT_AT
    window: int | None = None


class LimitReached(UsageLimitExceeded):
    """The next request is not sent. `limit` is the value of the limit, `used` what has been used of it."""

    def __init__(self, place: LimitPlace, limit: int | Decimal, amount: int | Decimal | None) -> None:
        super().__init__(f"{place.setting} is {limit}")
        self.place = place
        self.limit = limit
        self.used = amount
        """`None` where the provider does not say."""

    @property
    def enough(self) -> int | Decimal:
        """Twice the limit or what has been used, whichever is more, in two digits: what could be allowed instead."""
        least = 2 * Decimal(max(self.limit, self.used or 0))
        step = Decimal(1).scaleb(least.adjusted() - 1)
        limit = (least / step).to_integral_value(ROUND_CEILING) * step
        if isinstance(self.limit, int):
            return int(limit)
        return Decimal(f"{limit:f}")


@dataclass(repr=False, kw_only=True)
class TurnLimits(UsageLimits):
    """The limits of a turn, asked about by pydantic-ai before each request.

    Its own are left open: they are looked at while an answer comes in, too, and would cut short what is paid for.
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

    Raises `UsageError` if money is limited and nobody knows the price: the limit would hold nothing.
    """
    free = is_free(model)
    if limits.cost is not None and not free and not _has_price(model):
        raise UsageError(
            f"There is no price for {name}, so max_cost cannot be enforced.",
            f"Limit max_tokens instead, and remove max_cost: {limits.places.get('max_cost', _MONEY).to_unset()}",
            code="no_price",
        )
    return TurnLimits(turn=limits, free=free)


def is_free(model: Model) -> bool:
    """Whether tokens of a model cost no money: the offline model's, and those of Ollama."""
    return isinstance(model, FunctionModel) or model.system in _FREE


def _has_price(model: Model) -> bool:
    """Whether genai-prices, by which pydantic-ai counts, has a price for a model."""
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
    """What a turn has cost in USD, as far as prices are known; `None` where they are not."""
    if is_free(model):
        return 0.0
    if usage.cost is None or usage.unmeasured_requests:
        return None
    try:
        return float(round(usage.cost, _PLACES))
    except InvalidOperation:  # it has more digits than decimals are reckoned with
        return None


def bounded(usage: RequestUsage) -> RequestUsage:
    """The same with every count from 0 to `MOST`; a cost beyond that is not known."""
    counts = {name: _bounded(value) for name, value in vars(usage).items()}
    counts["details"] = {name: _bounded(value) for name, value in usage.details.items()}
    return RequestUsage(**counts)


def _bounded(value: Any) -> Any:
    if isinstance(value, Decimal):
        return value if value.is_finite() and 0 <= value <= MOST else None
    return max(0, min(value, MOST)) if isinstance(value, int | float) else value


def window_of(model: Model, setting: int | None = None) -> int | None:
    """A model's context window in tokens: `setting`, or what is known of it; `None` if nothing is."""
    return setting or _CORRECTED.get(model.model_id) or resolve_context_window(model)


def context_tokens(messages: Sequence[ModelMessage], parameters: ModelRequestParameters | None = None) -> int:
    """What a conversation takes, and with `parameters` the tools that are sent with it; not more than `MOST`.

    Some answers tell it apart from their usage, in the metadata, which is not bounded.
    """
    return max(0, min(estimate_context_tokens(messages, model_request_parameters=parameters), MOST))
