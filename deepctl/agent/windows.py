"""The context window in force at a server of your own, in tokens: the server is asked.

The window that a model was trained with is no help: the server decides at its start, or when it loads the model, how
much memory the context gets. Each kind of server reports this window in another place, and no reply says what kind it
is, so the places are tried in turn. The providers' own servers are never asked: their windows are known.

A window is cached for an hour by address and model: in this process, and for chats of one turn in a file of the
profile's cache. An older window is used only while the server reports none, which a server does before it has loaded
the model. The file is never evidence: without it, or with an invalid one, the server is asked again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
from pydantic_ai.models import Model
from pydantic_ai.models.wrapper import WrapperModel

from deepctl.domain.addresses import without_passwords
from deepctl.domain.providers import is_openais
from deepctl.errors import DeepctlError
from deepctl.files import atomic

FRESH = 3600.0
"""Seconds for which a window is not asked for again."""
_SECONDS = 2.0
"""The longest time for all questions to one server. A chat must not wait for a server that does not answer them."""
_ATTEMPTS, _PAUSE = 2, 300.0
"""Questions to a server that reports no window, and the seconds after which it is asked again: one question before the
first request, and one after it, because the request loads the model.
"""
_PLAUSIBLE = range(256, 10**9)
"""A smaller number is not the window of a model that can call tools, but, for example, a field that is not set."""
_BYTES = 1 << 20
_STORED = 20
"""Windows in the file; the oldest are dropped."""
_OWN = ("openai", "ollama", "vllm")
"""Providers whose address can be a server of your own."""

LARGER = "llama-server --ctx-size, OLLAMA_CONTEXT_LENGTH, vLLM --max-model-len"
"""The options of servers for a larger window."""

_Key = tuple[str, str]


class _Entry(NamedTuple):
    window: int
    at: float
    """Seconds since the epoch."""

    @property
    def is_fresh(self) -> bool:
        return 0 <= time.time() - self.at < FRESH


_known_windows: dict[_Key, _Entry] = {}
_silent: dict[_Key, list[float]] = {}
"""The times of questions without an answer."""


def is_own(model: Model) -> bool:
    """Whether a model is at a server of your own."""
    return _key(model) is not None


def known(model: Model) -> int | None:
    """The window of a model at a server of your own, as far as it is cached; nothing is asked."""
    key = _key(model)
    entry = _known_windows.get(key) if key is not None else None
    return entry.window if entry is not None else None


async def ask(model: Model, cache: str | None = None, *, is_urgent: bool = True) -> int | None:
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
        window = await _asked(_unwrapped(model), key)
        if window is not None:
            _known_windows[key] = entry = _Entry(window, now)
            _silent.pop(key)
            if cache is not None:
                _store(cache, key, entry)
        else:
            attempts.append(now)
    return entry.window if entry is not None else None


def forget(model: Model) -> None:
    """Ask again at the next opportunity, because the cached window has proved wrong."""
    key = _key(model)
    if key is not None:
        _silent.pop(key, None)
        if key in _known_windows:
            _known_windows[key] = _known_windows[key]._replace(at=0)


def _unwrapped(model: Model) -> Model:
    while isinstance(model, WrapperModel):
        model = model.wrapped
    return model


def _key(model: Model) -> _Key | None:
    """The address and the name of a model at a server of your own; `None` for the model of a provider."""
    model = _unwrapped(model)
    address = (model.base_url or "").rstrip("/")
    if model.system not in _OWN or not address or is_openais(address):
        return None
    return without_passwords(address), model.model_name


async def _asked(model: Model, key: _Key) -> int | None:
    address, name = (model.base_url or "").rstrip("/"), key[1]
    places = {"address": address, "root": address.removesuffix("/v1"), "model": quote(name, safe="")}
    # Ollama also answers in the forms of other servers, with the window that the model was trained with.
    forms = _FORMS[-1:] if model.system == "ollama" else _FORMS
    client = getattr(model, "client", None)
    try:
        async with (
            asyncio.timeout(_SECONDS),
            # Proxies and certificates come from the same variables as for the requests. The client of the requests
            # itself is not used, because its last response explains failures.
            httpx2.AsyncClient(headers=getattr(client, "auth_headers", None), timeout=_SECONDS) as http,
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
            if len(body) > _BYTES:
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


def _stored(cache: str) -> dict[_Key, _Entry]:
    try:
        rows = json.loads(atomic.read_file(cache))
        now = time.time()
        return {
            (str(address), str(name)): _Entry(window, float(at))
            for address, name, window, at in rows
            if isinstance(window, int) and window in _PLAUSIBLE and 0 <= float(at) <= now
        }
    except (OSError, ValueError, TypeError, RecursionError, DeepctlError):
        return {}


def _store(cache: str, key: _Key, entry: _Entry) -> None:
    entries = {**_stored(cache), key: entry}
    newest = sorted(entries.items(), key=lambda item: item[1].at)[-_STORED:]
    rows = [[*key, *entry] for key, entry in newest]
    with suppress(OSError, DeepctlError):
        atomic.replace_unsynced(cache, json.dumps(rows).encode() + b"\n")
