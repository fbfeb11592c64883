"""The last response of a provider's server, unchanged, because the clients ignore content that they do not understand.

For a page of HTML, a JSON error with status 200, or an error within a stream, the clients report "no content". So the
beginning and the end of the last response are kept. They are read only after a failed request.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import httpx2
from pydantic_ai.providers import Provider

_KEPT = 16 << 10
_TEXTS = ("error", "errors", "message", "detail", "msg", "error_description", "title")
"""Keys that may have the text of an error, the most reliable first."""
_ANSWERS = {"choices", "output", "content", "candidates", "delta", "finish_reason", "response"}
"""Keys of answers and of their events; next to one of them, only `error` is the text of an error."""
_MARKUP = re.compile(
    r"\s*(<!--.*?-->\s*)*<(!doctype|\?xml|(html|head|body|title|meta|link|style|script|h[1-6]|p|div|span|center|table|pre"
    r"|main|section|article|header|b|i|em|strong|a|br|hr|ul|ol|font|img|form|iframe|svg)[\s/>])",
    re.IGNORECASE | re.DOTALL,
)
_COMPRESSED = ("gzip", "x-gzip", "deflate")
_EVENTS = (b"data:", b"event:", b"error:", b"id:", b":")


class LastResponse:
    """The last response of one model's server: its status, its type, and the bytes at its beginning and its end."""

    def __init__(self) -> None:
        self._status: int | None = None
        self._kind = ""
        self._begin = b""
        self._end = b""
        self._read: Callable[[bytes], bytes] | None = None

    async def begin(self, response: Any) -> None:
        """A hook of the HTTP client: record a new response instead of the one before."""
        self._status = response.status_code
        self._kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._begin = self._end = b""
        self._read = _reader(response.headers.get("content-encoding", "identity").strip().lower())
        if self._read is not None and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _RecordedBody(response.stream, self._more)

    def _more(self, piece: bytes) -> None:
        if self._read is None:
            return
        try:
            piece = self._read(piece)
        except zlib.error:
            self._read = None  # earlier bytes are kept
            return
        if len(self._begin) < _KEPT:
            self._begin += piece[: _KEPT - len(self._begin)]
        self._end = (self._end + piece)[-_KEPT:]

    @property
    def is_page(self) -> bool:
        """Whether the response is a page for a browser."""
        return self._kind in ("text/html", "application/xhtml+xml") or is_page(self._begin.decode(errors="replace"))

    @property
    def is_empty(self) -> bool:
        """Whether a response has arrived without a body."""
        return self._status is not None and self._read is not None and not self._begin.strip()

    @property
    def is_done(self) -> bool:
        """Whether the response is a stream that its server has ended with OpenAI's last event."""
        return self._end.rstrip().endswith(b"[DONE]")

    @property
    def is_whole(self) -> bool:
        """Whether the response is an answer in one JSON document, and not a stream."""
        return _is_answer(_parsed(self._begin))

    @property
    def is_no_answer(self) -> bool:
        """Whether a response has arrived that is neither an answer nor the beginning of one."""
        return self.is_empty or (self._status is not None and (self.is_page or self.error() is not None))

    def error(self) -> str | None:
        """The server's own text in a body that is not an answer: an error in a usual form, otherwise the whole body.

        `None` for answers and parts of them, pages, and bodies that are not text.
        """
        if self.is_page or not self._begin.strip():
            return None
        if any(line.startswith(_EVENTS) for line in self._begin.splitlines()):
            return self._error_event()
        document = _parsed(self._begin)
        text = _text_of_error(document)
        if text is None and not _is_answer(document):
            try:
                text = self._begin.decode().strip()
            except UnicodeDecodeError:
                return None
        return text

    def _error_event(self) -> str | None:
        for line in reversed(self._end.splitlines()):
            field, _, value = line.partition(b":")
            # The field is `error` in streams of llama.cpp.
            if field == b"error":
                text = error_text(_parsed(value))
            else:
                text = _text_of_error(_parsed(value)) if field == b"data" else None
            if text is not None:
                return text
        data = [line[5:].strip() for line in self._begin.splitlines() if line.startswith(b"data:")]
        if not data or data[0] == b"[DONE]" or _is_answer(_parsed(data[0])):
            return None
        return data[0].decode(errors="replace")


def _reader(encoding: str) -> Callable[[bytes], bytes] | None:
    """The function that decodes received bytes of a body; `None` for an encoding that only the client knows."""
    if encoding in ("", "identity"):
        return bytes
    return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress if encoding in _COMPRESSED else None


class _RecordedBody(httpx2.AsyncByteStream):
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
    """Record the last response for a provider's client; record nothing if pydantic-ai did not create the client."""
    last = LastResponse()
    if isinstance(provider._own_http_client, httpx2.AsyncClient):
        add_hook(provider, "response", last.begin)
    return last


def add_hook(provider: Provider[Any], kind: Literal["request", "response"], hook: Callable[..., Any]) -> None:
    """Call `hook` with every request or response of a provider's client, if pydantic-ai created its HTTP client."""
    make = provider._http_client_factory
    if make is None or not hasattr(provider._own_http_client, "event_hooks"):
        return

    def hooked(client: Any) -> Any:
        client.event_hooks = {**client.event_hooks, kind: [*client.event_hooks[kind], hook]}
        return client

    hooked(provider._own_http_client)
    provider._http_client_factory = lambda: hooked(make())


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def is_page(text: str) -> bool:
    """Whether a text is HTML."""
    return _MARKUP.match(text[:2000]) is not None


def _text_of_error(body: object) -> str | None:
    """The text of the error in a body, or in the data of an event; `None` if it belongs to an answer."""
    return error_text(body.get("error") if isinstance(body, dict) and _is_answer(body) else body)


def _is_answer(body: object) -> bool:
    return isinstance(body, dict) and (
        bool(_ANSWERS & body.keys()) or str(body.get("type")).startswith(("response.", "message_", "content_", "ping"))
    )


def error_text(body: object) -> str | None:
    """The text in the body of an error, in any usual form; `None` if it has no such form."""
    if isinstance(body, str):
        return body.strip() or None
    if isinstance(body, list):
        return next((text for text in map(error_text, body) if text), None)
    if not isinstance(body, dict):
        return None
    return next((text for name in _TEXTS if (text := error_text(body.get(name)))), None)


if not {"_own_http_client", "_http_client_factory"} <= set(Provider.__annotations__):
    raise ImportError("deepctl does not support how this version of pydantic-ai stores its HTTP clients")
