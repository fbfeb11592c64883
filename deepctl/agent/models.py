"""Models by name, and what their failures mean to the person who asked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic_ai import exceptions
from pydantic_ai.models import KnownModelName, Model, infer_model
from pydantic_ai.providers import Provider, infer_provider

from deepctl import distribution
from deepctl.agent import offline
from deepctl.agent.limits import LimitReached
from deepctl.agent.retrying import PASSING
from deepctl.domain.doctor.keys import VARIABLES
from deepctl.domain.providers import ollama_address
from deepctl.errors import DeepctlError, ModelFailed, UsageError
from deepctl.redaction import redact

_FIRST = ("openai", "anthropic", "google")
"""Providers that are meant first, where several have a model of that name."""
_ALIKE = 0.8
_OPENAI = ("openai", "openai-chat", "openai-responses")
_EXTRA = re.compile(r"pydantic-ai-slim\[([a-z-]+)\]")
_MAX_DETAIL = 300
_FINAL = (exceptions.ModelQuotaExceededError, exceptions.ModelRequestRejectedError)


def resolve(name: str, *, base_url: str | None, environment: Mapping[str, str]) -> Model:
    """The model called `name`: `offline`, or any model string of pydantic-ai.

    `base_url` is the address of an OpenAI-compatible server; without it, the provider's own environment variable
    counts. Raises `UsageError` for a name nobody knows or a provider that is not installed, and `ModelFailed` where
    the provider's key is missing.
    """
    if name == offline.NAME:
        return offline.offline_model()
    _check_key(name, base_url, environment)
    providers: list[Provider[Any]] = []

    def provider_of(provider: str) -> Provider[Any]:
        if provider in _OPENAI and base_url:
            from pydantic_ai.providers.openai import OpenAIProvider

            providers.append(OpenAIProvider(base_url=base_url))
        elif provider == "ollama":
            from pydantic_ai.providers.ollama import OllamaProvider

            # Without $OLLAMA_BASE_URL, where Ollama is unless somebody moves it.
            providers.append(OllamaProvider(base_url=f"{ollama_address(environment)}/v1"))
        else:
            providers.append(infer_provider(provider))
        return providers[-1]

    try:
        # Asked first with pydantic-ai's own factory in mind: an unknown provider is an unknown model.
        model = infer_model(name, provider_of)
    except ImportError as error:
        extra = _EXTRA.search(str(error))
        wanted = extra[1] if extra else name.partition(":")[0]
        raise UsageError(
            f"Model {name!r} needs the client of its provider, which is not installed.",
            f"Install it with: {distribution.to_install(wanted)}",
            code="model_extra_missing",
        ) from None
    except ValueError as error:
        raise _unknown(name, error, environment) from None
    except exceptions.UserError as error:
        text = str(error)
        if "environment variable" in text or "api_key" in text or "API key" in text:
            variable = re.search(r"`([A-Z][A-Z0-9_]+)`", text)
            missing = f"${variable[1]} is not set" if variable else _first_sentence(text)
            own = ", or for a server of your own the setting base_url," if name.startswith("openai") else ""
            raise ModelFailed(
                f"Model {name!r} cannot be used: {missing}.",
                f"Set it{own} and try again; `--model offline` needs neither network nor key.",
                code="model_key_missing",
            ) from None
        raise _unknown(name, error, environment) from None
    except Exception as error:  # every client has exceptions of its own
        if not _is_clients(error):
            raise
        # Not its text: an address can have a password in it.
        raise UsageError(
            f"Model {name!r} cannot be used: the address of its server is no URL.",
            "Look at base_url, and at the variable that the provider's address is in, such as $OPENAI_BASE_URL.",
            code="bad_address",
        ) from None
    return _strict_about_ends(model, providers)


def _check_key(name: str, base_url: str | None, environment: Mapping[str, str]) -> None:
    """Raises `ModelFailed` for a key that is set but empty: every client fails about that in its own way."""
    provider = name.partition(":")[0].removesuffix("-chat").removesuffix("-responses")
    found = [variable for variable in VARIABLES.get(provider, ()) if variable in environment]
    if found and not any(environment[variable] for variable in found) and not (provider == "openai" and base_url):
        raise ModelFailed(
            f"Model {name!r} cannot be used: ${found[0]} is empty.",
            "Give it a value and try again; `--model offline` needs neither network nor key.",
            code="model_key_missing",
        )


def _unknown(name: str, error: Exception, environment: Mapping[str, str]) -> UsageError:
    shown = _one_line(redact(str(error), environment)).rstrip(".")
    why = "" if name in shown else f": {shown[:1].lower()}{shown[1:]}"
    near = _nearest(name)
    return UsageError(
        f"There is no model {name!r}{why}.",
        f"{f'Did you mean {near}? ' if near else ''}Models are named provider:name, such as "
        "anthropic:claude-sonnet-4-6, openai:gpt-5 or ollama:llama3.2; `offline` needs no provider.",
        code="unknown_model",
    )


def _nearest(name: str) -> str | None:
    """The model that pydantic-ai knows and somebody may have meant: of this name without its provider, or nearly so."""
    known = [one for one in get_args(KnownModelName.__value__) if ":" in one and "/" not in one.partition(":")[0]]
    known.sort(key=lambda one: one.partition(":")[0] not in _FIRST)
    wanted = name[:_MAX_DETAIL].lower()
    if ":" in wanted:
        return next(iter(get_close_matches(wanted, known, 1, _ALIKE)), None)
    bare: dict[str, str] = {}
    for one in known:
        bare.setdefault(one.partition(":")[2], one)
    return next((bare[one] for one in get_close_matches(wanted, bare, 1, _ALIKE)), None)


def _strict_about_ends(model: Model, providers: list[Provider[Any]]) -> Model:
    """The same model, which takes an OpenAI-style stream without a finish reason for what it is: cut off."""
    if not providers or type(model).__module__.rpartition(".")[2] in ("anthropic", "google"):
        return model
    try:
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.profiles.openai import OpenAIModelProfile
    except ImportError:
        return model
    if not isinstance(model, OpenAIChatModel):
        return model
    strict = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)
    return type(model)(model.model_name, provider=providers[-1], profile=strict)


def failure(
    error: BaseException, model: str, environment: Mapping[str, str], address: str | None = None
) -> DeepctlError | None:
    """A failed run in one line, with exit 7 and whether a retry can help; `None` if it is no model's failure.

    `address` is the URL that the model is asked at.
    """
    shown = reason(error, environment, address)
    retryable = isinstance(error, PASSING)
    hint = "Trying again later can help." if retryable else None
    asked = error.retry_after if isinstance(error, exceptions.ModelAPIError) else None
    wait = f" It asks to wait {asked:g} s." if asked and asked >= 1 else ""
    if isinstance(error, exceptions.ModelAuthenticationError):
        return ModelFailed(
            f"The provider of {model} refused the key ({shown}).", "Check the API key.", code="model_key_refused"
        )
    if isinstance(error, exceptions.ModelRateLimitError):
        return ModelFailed(
            f"The provider of {model} limits the rate of requests ({shown}).{wait}",
            hint,
            code="model_rate_limited",
            retryable=True,
        )
    if isinstance(error, exceptions.ModelConnectionError):
        return ModelFailed(
            f"The connection to the provider of {model} failed ({shown}).",
            "Check the network and base_url; trying again later can help.",
            code="model_connection",
            retryable=True,
        )
    if retryable:
        return ModelFailed(
            f"The provider of {model} failed ({shown}).{wait}", hint, code="model_provider_failed", retryable=True
        )
    if isinstance(error, exceptions.ModelContextWindowExceededError):
        return ModelFailed(
            f"The conversation is too long for {model} ({shown}).",
            "Set context_window to what the model takes, so that conversations are summarised in time, or start a new "
            "session with --new.",
            code="model_context_full",
        )
    if isinstance(error, _FINAL):
        return ModelFailed(f"The provider of {model} refused the request ({shown}).", code="model_request_refused")
    if isinstance(error, LimitReached):
        return _at_limit(error, model)
    if isinstance(error, exceptions.UsageLimitExceeded):
        return ModelFailed(
            f"The turn was stopped at a limit ({_first_sentence(shown)}).",
            "Tell the agent to go on, or give it less to do at a time.",
            code="usage_limit",
        )
    if isinstance(error, exceptions.AgentRunError) or _is_clients(error):
        return ModelFailed(
            f"The answer of {model} could not be used ({shown}).",
            "Trying again can help.",
            code="model_failed",
            retryable=True,
        )
    return None


def reason(error: BaseException, environment: Mapping[str, str], address: str | None = None) -> str:
    """What a failure of a request says, on one line and without secrets.

    Of a connection that failed: where to, and why, which the clients say in their causes only.
    """
    if isinstance(error, exceptions.ModelConnectionError):
        why = _cause(error) or _one_line(redact(_detail(error), environment)).removesuffix(".")
        where = _host(address) if address else ""
        return f"{where}: {why}" if where else why
    # Before it is cut, so that no half of a key is left at the end.
    shown = _one_line(redact(_detail(error), environment)).removesuffix(".")
    return f"HTTP {error.status_code}: {shown}" if isinstance(error, exceptions.ModelHTTPError) else shown


def _at_limit(reached: LimitReached, model: str) -> ModelFailed:
    setting, limit = reached.place.setting, reached.limit
    hint = "Tell the agent to go on."
    if not reached.place.is_fixed:
        hint = f"Tell the agent to go on, or raise the limit: {reached.place.to_set(reached.enough)}"
    if setting == "max_requests":
        said = f"The turn was stopped after {reached.used} requests to {model}, the most it may make ({setting})."
    elif reached.used is None:
        what = "how many tokens it takes" if setting == "max_tokens" else "what it costs"
        said = f"The turn was stopped: {model} does not say {what}, and the limit is {limit} ({setting})."
        hint = f"Take the limit out to use this model: {reached.place.to_unset()}"
    elif setting == "max_tokens":
        said = f"The turn was stopped: it has used {reached.used} tokens, and the limit is {limit} ({setting})."
    else:
        said = f"The turn was stopped: it has cost {reached.used:.6f} USD, and the limit is {limit} ({setting})."
    return ModelFailed(said, hint, code="usage_limit")


def _is_clients(error: BaseException) -> bool:
    """Whether an exception comes from a provider's client: connection trouble its adapter did not translate."""
    package = type(error).__module__.partition(".")[0]
    return package in ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2", "json", "google", "groq")


def _detail(error: BaseException) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping) and isinstance(inner.get("message"), str):
            return str(inner["message"])
    return str(error) or type(error).__name__


def _host(address: str) -> str:
    try:
        return urlsplit(address).netloc.rpartition("@")[2]
    except ValueError:
        return ""


def _cause(error: BaseException) -> str | None:
    """What the system said of a connection, if that is at the bottom of it."""
    found = None
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno is not None:
            # asyncio puts words of its own in the place of the system's.
            found = os.strerror(error.errno) if error.errno > 0 else error.strerror
        error = error.__cause__ or error.__context__ or error
    return found


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL else line[: _MAX_DETAIL - 1] + "…"


def _first_sentence(text: str) -> str:
    return _one_line(text).partition(". ")[0].rstrip(".")
