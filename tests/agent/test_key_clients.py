"""Every provider's client gets the key of a reference, and sends nothing of the environment that says who asks."""

from __future__ import annotations

import asyncio
import importlib.metadata
from typing import Any

import httpx
import httpx2
import pytest
from pydantic_ai import exceptions
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelRequest

from deepctl.agent.models import resolve
from deepctl.domain import provider_keys
from deepctl.domain.keys import KeyReference, KeyRing
from deepctl.errors import UsageError

_KEY = "key-of-the-profile-0123456789"
_FOREIGN = "of-the-environment"
_ADDRESSES = {
    "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
    "OLLAMA_BASE_URL": "http://127.0.0.1:9/v1",
    "OPENAI_API_VERSION": "2026-01-01",
    "PYDANTIC_AI_GATEWAY_BASE_URL": "http://127.0.0.1:9",
    "SNOWFLAKE_ACCOUNT": "account",
    "VLLM_BASE_URL": "http://127.0.0.1:9/v1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_MODELS = {
    "gateway": "gateway/openai-chat:m",
    "github": "github:openai/m",
    "openrouter": "openrouter:openai/m",
    "vercel": "vercel:openai/m",
}


def _is_installed(provider: str) -> bool:
    distribution = provider_keys.CLIENTS.get(provider.removesuffix("-cloud"))
    return distribution is None or any(importlib.metadata.distributions(name=distribution))


# CI has the clients of OpenAI and Anthropic, which most providers use. With the others installed, they are tested too.
_INSTALLED = [provider for provider in sorted(provider_keys.VARIABLES) if _is_installed(provider)]
_NAMES = [
    (provider, name)
    for provider in _INSTALLED
    for name in [name for name in provider_keys.names_of(provider) if provider_keys.is_handed_over(name)][:1]
]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Every variable of a key or a header has another person's value."""
    headers = f"Authorization: Bearer {_FOREIGN}\nX-Api-Key: {_FOREIGN}\nApi-Key: {_FOREIGN}\nX-Who: {_FOREIGN}"
    variables = {
        **dict.fromkeys((*provider_keys.all_names(), "OPENAI_ADMIN_KEY", "OPENAI_WEBHOOK_SECRET"), _FOREIGN),
        **dict.fromkeys(("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS", "GROQ_CUSTOM_HEADERS"), headers),
        **_ADDRESSES,
        "MY_KEY": _KEY,
    }
    del variables["AWS_PROFILE"]  # the name of a profile that must exist
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.mark.filterwarnings("ignore:.*GitHubProvider. is deprecated")
@pytest.mark.parametrize(("provider", "name"), _NAMES)
def test_a_request_has_the_key_of_the_reference_only(provider: str, name: str, environment: dict[str, str]) -> None:
    ring = KeyRing({name: KeyReference(name, "env", "MY_KEY", "profile")}, environment)
    model = _MODELS.get(provider, f"{provider}:m")
    sent: list[Any] = []

    resolved = resolve(model, base_url=None, environment=environment, keys=ring)
    own_provider: Any = getattr(resolved.model, "wrapped", resolved.model)._provider
    http_client = own_provider._own_http_client
    if not isinstance(http_client, httpx.AsyncClient | httpx2.AsyncClient):
        # A client of another kind, which does not add headers of variables.
        async def look() -> str:
            return _texts(own_provider.client)

        texts = asyncio.run(look())
        assert _KEY in texts or provider == "xai"  # its channel keeps the key to itself
        assert _FOREIGN not in texts
        return
    library: Any = httpx if isinstance(http_client, httpx.AsyncClient) else httpx2

    def record(request: Any) -> Any:
        sent.append(request)
        return library.Response(401, json={"error": {"message": "no"}})

    http_client._transport = library.MockTransport(record)
    http_client._mounts = {}

    async def ask() -> None:
        with pytest.raises(exceptions.ModelAPIError):
            await model_request(resolved.model, [ModelRequest.user_text_prompt("hello")])

    asyncio.run(ask())
    assert sent
    for request in sent:
        headers = dict(request.headers)
        assert _KEY in " ".join(headers.values()), headers
        assert _FOREIGN not in str(headers), headers
        assert _FOREIGN not in str(request.url)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("bedrock", "AWS_ACCESS_KEY_ID"),
        ("google-cloud", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("azure", "AZURE_OPENAI_AD_TOKEN"),
    ],
)
def test_a_key_that_a_client_does_not_take_is_refused_by_its_reference(
    provider: str, name: str, environment: dict[str, str]
) -> None:
    ring = KeyRing({name: KeyReference(name, "env", "MY_KEY", "profile")}, environment)
    with pytest.raises(UsageError, match=name) as caught:
        resolve(f"{provider}:m", base_url=None, environment=environment, keys=ring)
    assert (caught.value.code, caught.value.exit_code) == ("key_not_supported", 2)


def _texts(thing: object, depth: int = 6) -> str:
    """All texts in an object, as far as they can be reached."""
    found: list[str] = []
    seen: set[int] = set()

    def go(value: object, left: int) -> None:
        if id(value) in seen or not left:
            return
        seen.add(id(value))
        if isinstance(value, str | bytes):
            found.append(str(value))
        elif isinstance(value, dict):
            for key, inner in value.items():
                go(key, left - 1)
                go(inner, left - 1)
        elif isinstance(value, list | tuple | set | frozenset):
            for inner in value:
                go(inner, left - 1)
        elif hasattr(value, "__dict__") and not callable(value):
            go(vars(value), left - 1)

    go(thing, depth)
    return "\n".join(found)
