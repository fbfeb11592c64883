"""Limits and cost of one turn (requests, tokens and money), and the share of a window that a conversation takes.

A limit that has been reached prevents the next request. So the answer that exceeds it is complete, its tools have run,
and a turn exceeds a limit by one answer at most.

The context window in force at a server of your own is asked of the server. The window that a model was trained with is
no help: the server decides at its start, or when it loads the model, how much memory the context gets. Each kind of
server reports this window in another place, and no reply says what kind it is, so the places are tried in turn. The
providers' own servers are never asked: their windows are known.

A window is cached for an hour by address and model: in this process, and for chats of one turn in a file of the
profile's cache. An older window is used only while the server reports none, which a server does before it has loaded
the model. The file is never evidence: without it, or with an invalid one, the server is asked again.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelResponse, ThinkingPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RequestUsage, RunUsage, UsageLimits
from pydantic_ai_harness.compaction import estimate_context_tokens, estimate_token_count, resolve_context_window

from deepctl.domain.addresses import without_passwords
from deepctl.domain.providers import is_openais
from deepctl.domain.settings import Value
from deepctl.errors import DeepctlError, UsageError
from deepctl.files import atomic

_FREE = ("ollama",)
"""Providers without a price for tokens."""
_PLACES, _PLACES_OF_REQUEST = 6, 9
"""Decimal places of the cost of a turn, and of a single request, in USD."""

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
            await ask_window(model, self.cache, is_urgent=tokens > _SHORT)
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
    if limits.cost is not None:
        check_price(model, name, "max_cost", "max_tokens", limits.places.get("max_cost", _MONEY).to_unset())
    return TurnLimits(turn=limits, free=is_free(model))


def check_price(model: Model, name: str, setting: str, substitute: str, command: str) -> None:
    """Raises `UsageError` if the price of a model, called `name`, is unknown.

    `setting` is the limit that needs the price, `substitute` one without a price, and `command` removes the limit.
    """
    if not is_free(model) and not _has_price(model):
        raise UsageError(
            f"There is no price for {name}, so {setting} cannot be enforced.",
            f"Limit {substitute} instead, and remove {setting}: {command}",
            code="no_price",
        )


def is_scripted(model: Model) -> bool:
    """Whether a model is code of this process: a `FunctionModel`, such as the offline model, or a `TestModel`.

    Such a model gives no reason to stop.
    """
    # The module of `TestModel` is not imported for this.
    return any(kind.__name__ in ("FunctionModel", "TestModel") for kind in type(unwrapped(model)).__mro__)


def is_free(model: Model) -> bool:
    """Whether tokens of a model are free: those of the offline model, and of Ollama."""
    return is_scripted(model) or model.system in _FREE


def _has_price(model: Model) -> bool:
    """Whether genai-prices, which pydantic-ai uses, has a price for a model."""
    return _price(RequestUsage(input_tokens=1, output_tokens=1), model, None) is not None


def _price(usage: RequestUsage, model: Model, answer: ModelResponse | None) -> Decimal | None:
    """The price of a request in USD; `answer` has the name of the model that has answered."""
    response = ModelResponse(
        parts=[], usage=usage, model_name=model.model_name, provider_name=model.system, provider_url=model.base_url
    )
    answers = [response] if answer is None else [replace(answer, parts=[], usage=usage), response]
    for priced_answer in answers:
        with suppress(LookupError, ValueError, AssertionError):
            return priced_answer.cost().total_price
    return None


def request_cost(usage: RequestUsage, model: Model, answer: ModelResponse | None = None) -> float | None:
    """The cost of one request in USD, `None` without a price. `usage` is bounded."""
    if is_free(model):
        return 0.0
    price = usage.cost if usage.cost is not None else _price(usage, model, answer)
    try:
        return float(round(price, _PLACES_OF_REQUEST)) if price is not None and price.is_finite() else None
    except InvalidOperation:  # it has more digits than the decimal context
        return None


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
    """A model's context window in tokens: `setting`, or what its server has reported (`ask_window`), or the
    value in the registry of prices; `None` if it is unknown.
    """
    return setting or reported_window(model) or _CORRECTED.get(model.model_id) or resolve_context_window(model)


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


WINDOW_FRESH = 3600.0
"""Seconds for which a window is not asked for again."""
_QUESTION_SECONDS = 2.0
"""The longest time for all questions to one server. A chat must not wait for a server that does not answer them."""
_ATTEMPTS, _PAUSE = 2, 300.0
"""Questions to a server that reports no window, and the seconds after which it is asked again: one question before the
first request, and one after it, because the request loads the model.
"""
_PLAUSIBLE = range(256, 10**9)
"""A smaller number is not the window of a model that can call tools, but, for example, a field that is not set."""
_REPLY_BYTES = 1 << 20
_STORED_WINDOWS = 20
"""Windows in the file; the oldest are dropped."""
_OWN_SERVERS = ("openai", "ollama", "vllm")
"""Providers whose address can be a server of your own."""

LARGER_WINDOW = "llama-server --ctx-size, OLLAMA_CONTEXT_LENGTH, vLLM --max-model-len"
"""The options of servers for a larger window."""

_ServerModel = tuple[str, str]


class _ReportedWindow(NamedTuple):
    window: int
    at: float
    """Seconds since the epoch."""

    @property
    def is_fresh(self) -> bool:
        return 0 <= time.time() - self.at < WINDOW_FRESH


_known_windows: dict[_ServerModel, _ReportedWindow] = {}
_silent: dict[_ServerModel, list[float]] = {}
"""The times of questions without an answer."""


def has_own_server(model: Model) -> bool:
    """Whether a model is at a server of your own."""
    return _key(model) is not None


def reported_window(model: Model) -> int | None:
    """The window of a model at a server of your own, as far as it is cached; nothing is asked."""
    key = _key(model)
    entry = _known_windows.get(key) if key is not None else None
    return entry.window if entry is not None else None


async def ask_window(model: Model, cache: str | None = None, *, is_urgent: bool = True) -> int | None:
    """The window of a model at a server of your own, from the cache or the server; `None` if it is unknown.

    `cache` is the path of the cache file; with `None`, no file is read or written. Takes at most two seconds, and
    never fails. If it is not urgent, the server is not asked. The caller holds the lock of the profile.
    """
    key = _key(model)
    if key is None:
        return None
    if key not in _known_windows and cache is not None:
        _known_windows.update({**_stored(cache), **_known_windows})
    entry = _known_windows.get(key)
    if not is_urgent or (entry is not None and entry.is_fresh):
        return entry.window if entry is not None else None
    now = time.time()
    _silent[key] = attempts = [at for at in _silent.get(key, ()) if 0 <= now - at < _PAUSE]
    if len(attempts) < _ATTEMPTS:
        window = await _asked(unwrapped(model), key)
        if window is not None:
            _known_windows[key] = entry = _ReportedWindow(window, now)
            _silent.pop(key)
            if cache is not None:
                _store(cache, key, entry)
        else:
            attempts.append(now)
    return entry.window if entry is not None else None


def forget_window(model: Model) -> None:
    """Ask again at the next opportunity, because the cached window has proved wrong."""
    key = _key(model)
    if key is not None:
        _silent.pop(key, None)
        if key in _known_windows:
            _known_windows[key] = _known_windows[key]._replace(at=0)


def profile_of(model: object) -> Mapping[str, Any]:
    """The profile of a model: what it supports. A `FallbackModel` has none, so that of its first model is returned."""
    try:
        profile: Mapping[str, Any] = getattr(model, "profile", {})
    except NotImplementedError:
        choices = getattr(unwrapped(model), "models", []) if isinstance(model, Model) else []
        return profile_of(choices[0]) if choices else {}
    return profile


def unwrapped(model: Model) -> Model:
    """The model inside all wrappers."""
    while isinstance(model, WrapperModel):
        model = model.wrapped
    return model


def _key(model: Model) -> _ServerModel | None:
    """The address and the name of a model at a server of your own; `None` for the model of a provider."""
    model = unwrapped(model)
    address = (model.base_url or "").rstrip("/")
    if model.system not in _OWN_SERVERS or not address or is_openais(address):
        return None
    return without_passwords(address), model.model_name


async def _asked(model: Model, key: _ServerModel) -> int | None:
    address, name = (model.base_url or "").rstrip("/"), key[1]
    places = {"address": address, "root": address.removesuffix("/v1"), "model": quote(name, safe="")}
    # Ollama also answers in the forms of other servers, with the window that the model was trained with.
    forms = _FORMS[-1:] if model.system == "ollama" else _FORMS
    client = getattr(model, "client", None)
    try:
        async with (
            asyncio.timeout(_QUESTION_SECONDS),
            # Proxies and certificates come from the same variables as for the requests. The client of the requests
            # itself is not used, because its last response explains failures.
            httpx2.AsyncClient(headers=getattr(client, "auth_headers", None), timeout=_QUESTION_SECONDS) as http,
        ):
            for url, read in forms:
                document = await _fetched(http, url.format_map(places))
                if document is None:
                    continue
                with suppress(LookupError, TypeError, AttributeError):
                    window = read(document, name)
                    if isinstance(window, int) and window in _PLAUSIBLE:
                        return window
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, TimeoutError):
        pass
    return None


async def _fetched(http: httpx2.AsyncClient, url: str) -> Any:
    """The JSON document at an address; `None` without a valid document."""
    body = b""
    async with http.stream("GET", url, headers={"Accept": "application/json", "Accept-Encoding": "identity"}) as reply:
        if reply.status_code != 200:
            return None
        async for piece in reply.aiter_raw():
            body += piece
            if len(body) > _REPLY_BYTES:
                return None
    with suppress(ValueError, RecursionError):
        return json.loads(body)


def _vllm(document: Any, name: str) -> Any:
    return _named(document["data"], name, "id")["max_model_len"]


def _llama_cpp(document: Any, name: str) -> Any:
    # The window of one slot. `n_ctx` of the whole server is shared by its slots.
    return document["default_generation_settings"]["n_ctx"]


def _lm_studio(document: Any, name: str) -> Any:
    # The key is missing while the model is not loaded; `max_context_length` is that of the training.
    return _named(document["data"], name, "id")["loaded_context_length"]


def _ollama(document: Any, name: str) -> Any:
    # The list of the loaded models. A name without a tag means `latest`.
    names = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return _named(document["models"], names, "name")["context_length"]


def _named(entries: Any, name: str, key: str) -> Any:
    return {entry.get(key): entry for entry in entries}[name]


_FORMS: tuple[tuple[str, Callable[[Any, str], Any]], ...] = (
    ("{address}/models", _vllm),
    # In llama.cpp's router mode, a question about a model would load it.
    ("{root}/props?model={model}&autoload=false", _llama_cpp),
    ("{root}/api/v0/models", _lm_studio),
    ("{root}/api/ps", _ollama),
)
"""The address, and the function that reads its document. Sources: docs/api.md of Ollama,
tools/server/README.md of llama.cpp, the API servers of vLLM, and the REST API v0 of LM Studio.
"""


def _stored(cache: str) -> dict[_ServerModel, _ReportedWindow]:
    try:
        rows = json.loads(atomic.read_file(cache))
        now = time.time()
        return {
            (str(address), str(name)): _ReportedWindow(window, float(at))
            for address, name, window, at in rows
            if isinstance(window, int) and window in _PLAUSIBLE and 0 <= float(at) <= now
        }
    except (OSError, ValueError, TypeError, RecursionError, DeepctlError):
        return {}


def _store(cache: str, key: _ServerModel, entry: _ReportedWindow) -> None:
    entries = {**_stored(cache), key: entry}
    newest = sorted(entries.items(), key=lambda item: item[1].at)[-_STORED_WINDOWS:]
    rows = [[*key, *entry] for key, entry in newest]
    with suppress(OSError, DeepctlError):
        atomic.replace_unsynced(cache, json.dumps(rows).encode() + b"\n")
