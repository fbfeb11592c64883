"""Models by name, and what their failures mean to the person who asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_ai import exceptions
from pydantic_ai.models import Model, infer_model
from pydantic_ai.providers import Provider, infer_provider

from deepctl.agent import offline
from deepctl.domain.doctor.keys import VARIABLES
from deepctl.errors import DeepctlError, ModelFailed, UsageError
from deepctl.redaction import redact

_OPENAI = ("openai", "openai-chat", "openai-responses")
_EXTRA = re.compile(r"pydantic-ai-slim\[([a-z-]+)\]")
_MAX_DETAIL = 300
_EXTRAS = ("bedrock", "cohere", "google", "groq", "huggingface", "mistral", "xai")
"""Extras of deepctl itself; pyproject.toml defines them."""

_RETRYABLE = (
    exceptions.ModelRateLimitError,
    exceptions.ModelUnavailableError,
    exceptions.ModelServerError,
    exceptions.ModelConnectionError,
)
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
        else:
            providers.append(infer_provider(provider))
        return providers[-1]

    try:
        # Asked first with pydantic-ai's own factory in mind: an unknown provider is an unknown model.
        model = infer_model(name, provider_of)
    except ImportError as error:
        extra = _EXTRA.search(str(error))
        wanted = extra[1] if extra else name.partition(":")[0]
        package = "deepctl" if wanted in _EXTRAS else "pydantic-ai-slim"
        raise UsageError(
            f"Model {name!r} needs the client of its provider, which is not installed.",
            f"Install it with: pip install '{package}[{wanted}]'",
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
    return UsageError(
        f"There is no model {name!r}{why}.",
        "Models are named provider:name, such as anthropic:claude-sonnet-4-5, openai:gpt-5 or ollama:llama3.2; "
        "`offline` needs no provider.",
        code="unknown_model",
    )


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


def failure(error: BaseException, model: str, environment: Mapping[str, str]) -> DeepctlError | None:
    """A failed run in one line, with exit 7 and whether a retry can help; `None` if it is no model's failure."""
    # Before it is cut, so that no half of a key is left at the end.
    shown = _one_line(redact(_detail(error), environment))
    if isinstance(error, exceptions.ModelHTTPError):
        shown = f"HTTP {error.status_code}: {shown}"
    retryable = isinstance(error, _RETRYABLE)
    hint = "Trying again later can help." if retryable else None
    if isinstance(error, exceptions.ModelAuthenticationError):
        return ModelFailed(
            f"The provider of {model} refused the key ({shown}).", "Check the API key.", code="model_key_refused"
        )
    if isinstance(error, exceptions.ModelRateLimitError):
        wait = f" It asks to wait {error.retry_after:g} s." if error.retry_after else ""
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
    if isinstance(error, _RETRYABLE):
        return ModelFailed(
            f"The provider of {model} failed ({shown}).", hint, code="model_provider_failed", retryable=True
        )
    if isinstance(error, exceptions.ModelContextWindowExceededError):
        return ModelFailed(
            f"The conversation is too long for {model} ({shown}).",
            "Start a new session with --new.",
            code="model_context_full",
        )
    if isinstance(error, _FINAL):
        return ModelFailed(f"The provider of {model} refused the request ({shown}).", code="model_request_refused")
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


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL else line[: _MAX_DETAIL - 1] + "…"


def _first_sentence(text: str) -> str:
    return _one_line(text).partition(". ")[0].rstrip(".")
