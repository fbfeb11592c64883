"""The models that are available here: configured models, providers with keys, and models of your own servers.

Only your own servers are contacted: the OpenAI-compatible one of the settings or `$OPENAI_BASE_URL`, and Ollama. They
are not trusted: their answers are bounded in time and size, and redirections are not followed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urlsplit

from deepctl.domain import env_variables, provider_keys
from deepctl.domain.addresses import address_problem, header_problem, without_passwords
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, Refused, UsageError
from deepctl.files import atomic

if TYPE_CHECKING:
    from http.client import HTTPResponse

    from deepctl.domain.keys import KeyRing

_MODULES = {
    "anthropic": "anthropic",
    "bedrock": "boto3",
    "cohere": "cohere",
    "google": "google.genai",
    "google-cloud": "google.genai",
    "groq": "groq",
    "huggingface": "huggingface_hub",
    "mistral": "mistralai",
    "xai": "xai_sdk",
}
"""The import name of a provider's client; the others use OpenAI's protocol."""
_EXTRAS = {**{name: name for name in provider_keys.CLIENTS}, "google-cloud": "google"}
_SECONDS = 1.0
_BYTES = 1 << 20
_MODELS = 1000
_NAME = 200
_LISTED = 5


class KeyVariable(NamedTuple):
    """The variable that a provider's key is in, or would be.

    `source` is `environment`, or that of a reference to the key: `profile`, `config` or `stored`. A key that only a
    command or a keyring has counts as set.
    """

    variable: str
    set: bool
    source: str = "environment"

    @property
    def meaning(self) -> str:
        """Where the key is, for display."""
        if self.source == "environment":
            return f"${self.variable} is {'' if self.set else 'not '}set"
        place = "stored" if self.source == "stored" else f"in [keys] of {self.source}.toml"
        return f"{self.variable} is {place}{'' if self.set else ', and cannot be used'}"


class Provider(NamedTuple):
    """A provider: whether its client is installed, its extra, and whether a chat could use it."""

    name: str
    installed: bool
    extra: str | None
    key: KeyVariable | None
    usable: bool


class Address(NamedTuple):
    """The possible address of your own server; kind is `openai` or `ollama`."""

    url: str
    kind: str
    key: str | None = None


class ModelServer(NamedTuple):
    """The result of asking a server: its models, or the reason why there are none."""

    url: str
    kind: str
    reachable: bool
    reason: str | None
    models: tuple[str, ...]


class Offer(NamedTuple):
    """A name for the choice of a model, and its meaning."""

    name: str
    meaning: str


def all_providers(environment: Mapping[str, str], settings: Settings) -> list[Provider]:
    """Every provider of a plain installation or an extra, usable ones first."""
    base_url, ring = _base_url(environment, settings), settings.keys(environment)
    providers = [Provider(provider_keys.OFFLINE, True, None, None, True)]
    providers += [_provider(name, environment, base_url, ring) for name in sorted(provider_keys.VARIABLES)]
    return sorted(providers, key=lambda provider: not provider.usable)


def _provider(name: str, environment: Mapping[str, str], base_url: str | None, ring: KeyRing) -> Provider:
    is_installed = _is_there(_MODULES.get(name, "openai"))
    look = provider_keys.look(name, environment)
    assert look is not None
    key = KeyVariable((look.set_names or look.names)[0], bool(look.set_names))
    if ring.has_reference(name):
        key = _key_by_reference(name, ring)
    needless = (name == "openai" and base_url is not None) or name == "ollama" or name in provider_keys.ELSEWHERE
    return Provider(name, is_installed, _EXTRAS.get(name), key, is_installed and (key.set or needless))


def _key_by_reference(provider: str, ring: KeyRing) -> KeyVariable:
    """The key of a provider that has a reference. Runs no command, so a key that only a command has counts as set."""
    try:
        references = ring.of_provider(provider)
    except UsageError:
        references = None
    if references is None:
        name = next(name for name in provider_keys.names_of(provider) if name in ring.references)
        return KeyVariable(name, False, ring.references[name].source)
    return KeyVariable(references.key.name, ring.state(references.key).ok is not False, references.key.source)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def own_servers(environment: Mapping[str, str], settings: Settings) -> list[Address]:
    """The possible servers of your own."""
    addresses = []
    base_url = _base_url(environment, settings)
    if base_url is not None and not is_openais(base_url):
        addresses.append(Address(base_url, "openai", _key_of_own_server(environment, settings)))
    return [*addresses, Address(env_variables.ollama_address(environment), "ollama")]


def _key_of_own_server(environment: Mapping[str, str], settings: Settings) -> str | None:
    """The key for a server like OpenAI's.

    If there is a reference whose key only a command or a keyring has, the server is asked without a key.
    """
    ring = settings.keys(environment)
    if not ring.has_reference("openai"):
        return env_variables.value(environment, "OPENAI_API_KEY")
    with suppress(UsageError):
        references = ring.of_provider("openai")
        return ring.value_without_program(references.key) if references is not None else None
    return None


def _base_url(environment: Mapping[str, str], settings: Settings) -> str | None:
    return settings.get("base_url") or env_variables.value(environment, "OPENAI_BASE_URL")


def is_variable_ignored(environment: Mapping[str, str], settings: Settings) -> bool:
    """Whether `$OPENAI_BASE_URL` is ignored because of a different base_url, which takes precedence."""
    address, variable = settings.get("base_url"), env_variables.value(environment, "OPENAI_BASE_URL")
    return address is not None and variable is not None and address.rstrip("/") != variable.rstrip("/")


def hints(environment: Mapping[str, str], settings: Settings, model: str) -> Iterator[str]:
    """What may be wrong with the address or the name of `model`. Asks its server for its models, if that is yours."""
    provider = provider_keys.provider(model)
    base_url = settings.resolve("base_url")
    if model == provider_keys.OFFLINE and base_url.value is not None:
        yield "The offline model does not use base_url: `deepctl config set model openai-chat:NAME` selects the server."
    if provider not in ("openai", "ollama"):
        return
    if provider == "openai" and is_variable_ignored(environment, settings):
        address = without_passwords(base_url.value)
        yield f"$OPENAI_BASE_URL is ignored, because base_url is set: {address} (from {base_url.source})."
    name = model.partition(":")[2]
    for server in ask([address for address in own_servers(environment, settings) if address.kind == provider]):
        # Ollama adds the tag.
        if server.models and not {name, f"{name}:latest"} & {*server.models}:
            names = ", ".join(model_name(server, listed_model) for listed_model in server.models[:_LISTED])
            ellipsis = ", …" if len(server.models) > _LISTED else ""
            yield f"The server at {server.url} does not list the model {name!r}. Its models are: {names}{ellipsis}."


def is_openais(url: str) -> bool:
    """Whether an address is that of OpenAI, and not of a server of your own that speaks OpenAI's protocol."""
    try:
        return urlsplit(url).hostname == "api.openai.com"
    except ValueError:
        return False


def ask(addresses: Sequence[Address], seconds: float = _SECONDS) -> list[ModelServer]:
    """The models of servers, all asked at once. Takes at most `seconds`, whatever the servers do."""
    answers: dict[int, ModelServer] = {}

    def one(number: int) -> None:
        answers[number] = _asked(addresses[number], seconds)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(len(addresses))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        # A slow answer, or a name that does not resolve, is abandoned.
        thread.join(max(0.0, end - time.monotonic()))
    late = f"no answer within {seconds:g} s"
    return [
        answers.get(number) or ModelServer(without_passwords(address.url), address.kind, False, late, ())
        for number, address in enumerate(addresses)
    ]


class _NoAnswer(Exception):
    """The reason why a server gives no models."""


def _asked(address: Address, seconds: float) -> ModelServer:
    url = without_passwords(address.url)
    try:
        models = _names(address.kind, _fetched(address, seconds))
    except _NoAnswer as problem:
        return ModelServer(url, address.kind, False, str(problem), ())
    return ModelServer(url, address.kind, True, None, models)


def _fetched(address: Address, seconds: float) -> bytes:
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    place = "/models" if address.kind == "openai" else "/api/tags"
    if (problem := address_problem(address.url)) is not None:
        raise _NoAnswer(f"this address {problem}")
    if address.key is not None and (problem := header_problem(address.key)) is not None:
        raise _NoAnswer(f"$OPENAI_API_KEY cannot be used: it {problem}")
    url: SplitResult = urlsplit(address.url.rstrip("/") + place)
    host, port = url.hostname or "", url.port
    make = HTTPSConnection if url.scheme == "https" else HTTPConnection
    headers = {"Accept": "application/json"}
    if address.key is not None:
        headers["Authorization"] = f"Bearer {address.key}"
    connection = make(host, port, timeout=seconds)
    try:
        connection.request("GET", url.path + (f"?{url.query}" if url.query else ""), headers=headers)
        return _body(connection.getresponse())
    except TimeoutError:
        raise _NoAnswer(f"no answer within {seconds:g} s") from None
    except OSError as error:
        raise _NoAnswer(error.strerror or type(error).__name__) from None
    except (HTTPException, UnicodeError, ValueError):
        raise _NoAnswer("the server does not speak HTTP") from None
    finally:
        connection.close()


def _body(response: HTTPResponse) -> bytes:
    if 300 <= response.status < 400:
        raise _NoAnswer(f"it redirects to another address (HTTP {response.status}); redirects are not followed")
    if response.status != 200:
        raise _NoAnswer(f"HTTP {response.status}")
    body = response.read(_BYTES + 1)
    if len(body) > _BYTES:
        raise _NoAnswer("its list of models is too large")
    return body


def _names(kind: str, body: bytes) -> tuple[str, ...]:
    """Names of models in the answer of OpenAI's `/v1/models` or Ollama's `/api/tags`."""
    list_key, name_key = ("data", "id") if kind == "openai" else ("models", "name")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise _NoAnswer("its answer is not JSON") from None
    entries = answer.get(list_key) if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise _NoAnswer("its answer is not a list of models")
    names = [entry.get(name_key) for entry in entries[:_MODELS] if isinstance(entry, dict)]
    return tuple(name for name in names if isinstance(name, str) and 0 < len(name) <= _NAME and name.isprintable())


def model_name(server: ModelServer, model: str) -> str:
    """The model name that tells a chat to use a server's model."""
    return f"{'openai-chat' if server.kind == 'openai' else 'ollama'}:{model}"


def known_models(
    environment: Mapping[str, str],
    settings: Settings,
    servers: Sequence[ModelServer] = (),
    now: str | None = None,
) -> list[Offer]:
    """Names to choose from, without network access: `servers` are the results of an earlier `ask`, and `now` is the
    model in force if the settings do not have it.

    A name that ends in a colon is a provider, to be followed by the name of one of its models.
    """
    now = now or settings.get("model")
    offers = [Offer(now, "the model in force")] if now else []
    offers += [Offer(model_name(server, model), f"at {server.url}") for server in servers for model in server.models]
    if (address := _base_url(environment, settings)) is not None and not is_openais(address):
        offers.append(Offer("openai-chat:", f"at {without_passwords(address)}"))
    offers.append(Offer(provider_keys.OFFLINE, "follows a few commands; needs neither network nor key"))
    for provider in all_providers(environment, settings):
        if provider.usable and provider.key is not None:
            meaning = provider.key.meaning if provider.key.set else "needs no variable"
            offers.append(Offer(f"{provider.name}:", meaning))
    names: set[str] = set()
    return [offer for offer in offers if not (offer.name in names or names.add(offer.name))]  # type: ignore[func-returns-value]


def remember_names(path: str, offers: Sequence[Offer]) -> None:
    """Write the names to the file `path` of the cache, one a line, for completion in a shell, which asks no server.

    Does nothing if the file cannot be written.
    """
    names = "".join(f"{offer.name}\n" for offer in offers if without_passwords(offer.name) == offer.name)
    with suppress(OSError, DeepctlError):
        atomic.replace_unsynced(path, names.encode(errors="replace"))


def remembered_names(path: str) -> list[str]:
    """The names in that file; none if it cannot be read."""
    try:
        return atomic.read_file(path).decode("utf-8", "replace").splitlines()
    except (OSError, Refused):
        return []
