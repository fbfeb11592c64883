"""The client of a model's provider, with the key of a profile.

A key by reference is an argument of the client's class. The client then uses nothing of the environment that says who
asks: no key, no organisation and no further headers. Addresses and proxies still count.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx2
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from deepctl.agent.response_recorder import add_hook
from deepctl.domain import provider_keys
from deepctl.domain.env_variables import ollama_address
from deepctl.domain.keys import KeyRing, ProviderReferences
from deepctl.errors import UsageError

NOT_READ = "not-read-yet"
"""In the place of a key that only a command or a keyring has, until there is a request."""
_GATEWAY = "gateway/"
_ARGUMENTS = ("api_key", "token")
_OF_OPENAI = {"OPENAI_ORG_ID": "openai-organization", "OPENAI_PROJECT_ID": "openai-project"}
"""Variables of OpenAI's client, and their headers. The client sends them to providers like OpenAI, too."""
_CUSTOM_HEADERS = "_CUSTOM_HEADERS"


class ProviderKey(NamedTuple):
    """The key of a provider, its reference, and the values of further headers by the names of their variables."""

    value: str
    references: ProviderReferences
    headers: Mapping[str, str]
    is_read: bool


def key_of(ring: KeyRing, provider: str, *, reads: bool) -> ProviderKey | None:
    """The key of a provider; `None` if its key comes from the environment.

    Without `reads`, a key that needs a command or a keyring is `NOT_READ`. Raises `UsageError`.
    """
    references = ring.of_provider(provider)
    if references is None:
        return None
    # The gateway's address follows from its key.
    value_of = ring.value if reads or provider.startswith(_GATEWAY) else ring.value_at_hand
    value = value_of(references.key)
    headers = {name: value_of(reference) for name, reference in references.headers.items()}
    is_read = value is not None and None not in headers.values()
    texts = {name: text if text is not None else NOT_READ for name, text in headers.items()}
    return ProviderKey(value if value is not None else NOT_READ, references, texts, is_read)


def client_of(
    provider: str, base_url: str | None, environment: Mapping[str, str], key: ProviderKey | None
) -> Provider[Any]:
    """The provider of that name. `base_url` is the address of an OpenAI-compatible server.

    Raises the exceptions of the client, and `UsageError` if a key by reference cannot be given to it.
    """
    arguments: dict[str, Any] = {}
    if provider in provider_keys.OPENAI and base_url:
        arguments["base_url"] = base_url
    elif provider == "ollama":
        # Without $OLLAMA_BASE_URL, the default address of Ollama.
        arguments["base_url"] = f"{ollama_address(environment)}/v1"
    if key is None:
        return infer_provider_class(provider)(**arguments) if arguments else infer_provider(provider)
    client = _with_key(provider, arguments, key)
    _without_environment(client, key, environment)
    return client


def _with_key(provider: str, arguments: dict[str, Any], key: ProviderKey) -> Provider[Any]:
    if provider.startswith(_GATEWAY):
        from pydantic_ai.providers.gateway import gateway_provider

        return gateway_provider(provider.removeprefix(_GATEWAY), api_key=key.value)
    make = infer_provider_class(provider)
    accepted = inspect.signature(make.__init__).parameters
    argument = next((name for name in _ARGUMENTS if name in accepted), None)
    if argument is None:
        raise UsageError(
            f"The client of {provider} cannot be given a key: {key.references.key}.",
            "Remove the reference; the client then looks in the environment and in its own files.",
            code="key_not_supported",
        )
    return make(**arguments, **{argument: key.value})


def _without_environment(provider: Provider[Any], key: ProviderKey, environment: Mapping[str, str]) -> None:
    """Send nothing of the environment that says who asks.

    The clients of OpenAI and Anthropic, and those generated like them, add the headers of variables such as
    `$OPENAI_CUSTOM_HEADERS`, which may contain another person's key. Some of them read the variables again for every
    request, so the headers are corrected just before a request is sent.
    """
    if not hasattr(provider._own_http_client, "event_hooks"):
        return  # the client of another protocol, which has no such variables; some need an event loop to be made
    auth_headers: Mapping[str, str] = getattr(provider.client, "auth_headers", {})
    own_headers = {name.lower(): text for name, text in auth_headers.items()}

    async def correct(request: httpx2.Request) -> None:
        headers = request.headers
        for name, text in _headers_of_variables(environment):
            if headers.get(name) == text:
                del headers[name]
                # Not otherwise: a client leaves the key out where it follows a redirection to another server.
                if name in own_headers:
                    headers[name] = own_headers[name]
        for variable, name in _OF_OPENAI.items():
            if variable in key.headers:
                headers[name] = key.headers[variable]
            elif headers.get(name) == environment.get(variable, "").strip():
                headers.pop(name, None)

    add_hook(provider, "request", correct)


def _headers_of_variables(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers in variables such as `$OPENAI_CUSTOM_HEADERS`, in lower case."""
    lines = [line for name, text in environment.items() if name.endswith(_CUSTOM_HEADERS) for line in text.split("\n")]
    return [(line.partition(":")[0].strip().lower(), line.partition(":")[2].strip()) for line in lines if ":" in line]
