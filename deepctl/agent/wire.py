"""What a provider's server has answered, as it came: the clients pass over what they do not understand.

A page of HTML, a JSON error with status 200, or an error in the midst of a stream end in "no content" there. So the
beginning and the end of the last response are kept, and looked at only when a request has failed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
from pydantic_ai.providers import Provider

_KEPT = 16 << 10
_TEXTS = ("error", "message", "detail", "msg", "error_description", "title")
"""Where the text of an error may be, the surest first."""


class LastResponse:
    """The last response of one model's server: its status, its type, and the bytes at its beginning and its end."""

    def __init__(self) -> None:
        self._status: int | None = None
        self._kind = ""
        self._begin = b""
        self._end = b""

    async def begin(self, response: Any) -> None:
        """Keep what comes of a response from now on, in the place of the one before; a hook of the HTTP client."""
        self._status = response.status_code
        self._kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._begin = self._end = b""
        is_plain = response.headers.get("content-encoding", "identity") == "identity"
        if is_plain and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _Kept(response.stream, self._more)

    def _more(self, piece: bytes) -> None:
        if len(self._begin) < _KEPT:
            self._begin += piece[: _KEPT - len(self._begin)]
        self._end = (self._end + piece)[-_KEPT:]

    @property
    def is_page(self) -> bool:
        """Whether it is a page for a browser."""
        return self._kind in ("text/html", "application/xhtml+xml") or is_page(self._begin.decode(errors="replace"))

    @property
    def is_empty(self) -> bool:
        """Whether a response has come without a body."""
        return self._status is not None and not self._begin.strip()

    @property
    def is_whole(self) -> bool:
        """Whether it is one JSON document, and no stream of them."""
        return self._kind == "application/json" and isinstance(_parsed(self._begin), dict)

    def error(self) -> str | None:
        """The text of an error in a body that was to be an answer: as JSON, or as an event of a stream."""
        if (text := _text_of_error(_parsed(self._begin))) is not None:
            return text
        for line in reversed(self._end.splitlines()):
            field, _, value = line.partition(b":")
            parsed = _parsed(value) if field in (b"data", b"error") else None
            # The field is `error` in streams of llama.cpp.
            text = error_text(parsed) if field == b"error" else _text_of_error(parsed)
            if text is not None:
                return text
        return None


class _Kept(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, keep: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._keep = keep

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._keep(piece)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def watch(provider: Provider[Any]) -> LastResponse:
    """Keep the last response of the server that a provider's client speaks to, as long as that is the one it made."""
    last = LastResponse()
    make = provider._http_client_factory
    if make is None or not isinstance(provider._own_http_client, httpx2.AsyncClient):
        return last

    def watched() -> Any:
        client = make()
        client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], last.begin]}
        return client

    client = provider._own_http_client
    client.event_hooks = {**client.event_hooks, "response": [*client.event_hooks["response"], last.begin]}
    provider._http_client_factory = watched
    return last


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def is_page(text: str) -> bool:
    """Whether a text is HTML."""
    return text[:500].lstrip().lower().startswith(("<!doctype", "<html", "<head", "<body", "<?xml"))


def _text_of_error(body: object) -> str | None:
    """What a body says if it is that of an error, and not of an answer."""
    if not isinstance(body, dict):
        return None
    is_error = body.get("error") is not None or "error" in (body.get("object"), body.get("type"))
    return error_text(body) if is_error else None


def error_text(body: object) -> str | None:
    """What the body of an error says, in any of the usual forms; `None` if it has none of them."""
    if isinstance(body, str):
        return body
    if isinstance(body, list):
        return next((text for text in map(error_text, body) if text), None)
    if not isinstance(body, dict):
        return None
    return next((text for name in _TEXTS if (text := error_text(body.get(name)))), None)


if not {"_own_http_client", "_http_client_factory"} <= set(Provider.__annotations__):
    raise ImportError("this version of pydantic-ai keeps its HTTP clients in a way that deepctl does not know")
