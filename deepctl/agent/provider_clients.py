"""The client of a model's provider, with the key of a profile.

A key by reference is an argument of the client's class. The client then uses nothing of the environment that says who
asks: no key, no organisation and no further headers. Addresses and proxies still count.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from deepctl.domain import env_variables, provider_keys
from deepctl.domain.env_variables import ollama_address
from deepctl.domain.keys import KeyRing, ProviderReferences
from deepctl.errors import UsageError

NOT_READ = "not-read-yet"
"""In the place of a key that only a command or a keyring has, until there is a request."""
_GATEWAY = "gateway/"
_ARGUMENTS = ("api_key", "token")
_ORGANISATION, _PROJECT = provider_keys.HEADER_NAMES["openai"]


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

    Raises the exceptions of the client, and `UsageError` if a key by reference cannot be given to it, or if it would be
    sent together with something of the environment.
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
    _without_environment(client, key)
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


def _without_environment(provider: Provider[Any], key: ProviderKey) -> None:
    """Take away what the client has read from the environment.

    The clients of OpenAI and Anthropic, and those generated like them, add the headers of a variable such as
    `$OPENAI_CUSTOM_HEADERS`, which may contain another person's key.
    """
    client = provider.client
    if hasattr(client, "organization") and hasattr(client, "project"):
        client.organization = key.headers.get(_ORGANISATION)
        client.project = key.headers.get(_PROJECT)
    if hasattr(client, "admin_api_key"):
        client.admin_api_key = None
    foreign_headers = _headers_of_variables(os.environ)
    custom_headers = getattr(client, "_custom_headers", None)
    if isinstance(custom_headers, Mapping):
        client._custom_headers = {
            name: text for name, text in custom_headers.items() if foreign_headers.get(name.lower()) != text
        }
    sent_headers = getattr(client, "default_headers", None)
    for name, text in sent_headers.items() if isinstance(sent_headers, Mapping) else ():
        if isinstance(text, str) and foreign_headers.get(name.lower()) == text:
            variable = " and ".join(
                f"${variable}" for variable in env_variables.LINES_OF_HEADERS if variable in os.environ
            )
            raise UsageError(
                f"The header {name} of {variable} would be sent with another key: {key.references.key}.",
                f"Unset {variable}.",
                code="bad_key",
            )


def _headers_of_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The headers in variables such as `$OPENAI_CUSTOM_HEADERS`, by their names in lower case."""
    lines = [line for name in env_variables.LINES_OF_HEADERS for line in environment.get(name, "").split("\n")]
    return {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in lines if ":" in line}
