"""Models by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from pydantic_ai import exceptions
from pydantic_ai.models import KnownModelName, Model, infer_model
from pydantic_ai.providers import Provider, infer_provider

from deepctl import distribution
from deepctl.agent import offline_model
from deepctl.agent.provider_errors import MAX_DETAIL, first_sentence, is_clients, shown_text
from deepctl.agent.response_recorder import LastResponse, watch
from deepctl.domain import env_variables
from deepctl.domain.env_variables import ollama_address
from deepctl.errors import ModelFailed, UsageError

_FIRST = ("openai", "anthropic", "google")
"""Providers that are meant first, where several have a model of that name."""
_ALIKE = 0.8
_OPENAI = ("openai", "openai-chat", "openai-responses")
_EXTRA = re.compile(r"pydantic-ai-slim\[([a-z-]+)\]")


class Resolved(NamedTuple):
    """A model, and what its server has answered last."""

    model: Model
    last: LastResponse


def resolve(name: str, *, base_url: str | None, environment: Mapping[str, str]) -> Resolved:
    """The model called `name`: `offline`, or any model string of pydantic-ai.

    `base_url` is the address of an OpenAI-compatible server; without it, the provider's own environment variable
    counts. Raises `UsageError` for a name nobody knows or a provider that is not installed, and `ModelFailed` where
    the provider's key is missing.
    """
    if name == offline_model.NAME:
        return Resolved(offline_model.offline_model(), LastResponse())
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
        if "socksio" in str(error):
            proxy = env_variables.socks_proxy(environment)
            raise UsageError(
                f"${proxy} names a SOCKS proxy, and the package that speaks to one is not installed.",
                f"Install it with: {distribution.to_install_packages('socksio')}",
                code="bad_address",
            ) from None
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
            missing = f"${variable[1]} is not set" if variable else first_sentence(text)
            own = ", or for a server of your own the setting base_url," if name.startswith("openai") else ""
            raise ModelFailed(
                f"Model {name!r} cannot be used: {missing}.",
                f"Set it{own} and try again; `--model offline` needs neither network nor key.",
                code="model_key_missing",
            ) from None
        raise _unknown(name, error, environment) from None
    except Exception as error:  # every client has exceptions of its own
        if not is_clients(error):
            raise
        # Not its text: an address can have a password in it.
        raise UsageError(
            f"Model {name!r} cannot be used: the address of its server is no URL.",
            "Look at base_url, and at the variable that the provider's address is in, such as $OPENAI_BASE_URL.",
            code="bad_address",
        ) from None
    last = watch(providers[-1]) if providers else LastResponse()
    return Resolved(_strict_about_ends(model, providers), last)


def _unknown(name: str, error: Exception, environment: Mapping[str, str]) -> UsageError:
    shown = shown_text(str(error), environment)
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
    wanted = name[:MAX_DETAIL].lower()
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
