"""Logging in to remote MCP servers with OAuth: the tokens of a profile, and the redirect to a port on 127.0.0.1.

Only `deepctl mcp test` logs in, at a terminal. A chat uses the stored tokens and refreshes them; it opens no browser.
The tokens of a server are in one file beside the stored keys of the profile (`<root>/keys/<profile>/SERVER.oauth`), so
no export and no copy of a profile contains them.

The flow is that of the client: discovery, registration, PKCE, refresh. Source: RFC 8252, and
https://modelcontextprotocol.io/specification/2025-11-25/basic/authorization.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, SupportsFloat, cast
from urllib.parse import parse_qs, urlsplit

import httpx2
from fastmcp.client.auth.oauth import ClientNotFoundError, OAuth
from mcp.client.auth import AuthorizationCodeResult, OAuthFlowError
from mcp.shared.auth import OAuthMetadata
from pydantic import ValidationError

from deepctl import redaction
from deepctl.domain import mcp_servers, stored_keys
from deepctl.files import atomic

if TYPE_CHECKING:
    from key_value.aio.protocols import AsyncKeyValue

Person = Callable[[str], None]
"""Shows the address of a login to the person at the terminal, and opens it."""

SECONDS_TO_LOG_IN = 300.0
_SECONDS_TO_ASK = 10.0
_LONGEST_REQUEST = 16 << 10
_PAST = 1.0
_METADATA = "authorization-server"
_TOKENS = ("access_token", "refresh_token", "client_secret")
_ANSWER = (
    "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n"
    "Referrer-Policy: no-referrer\r\nConnection: close\r\n\r\n{text}"
)


class LoginNeeded(Exception):
    """The server needs a login, and no person is asked for it here."""


class TokenFile:
    """The tokens and the registration of one server, in the file at `path`, as the client's key-value store."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None

    @property
    def is_changed(self) -> bool:
        """Whether another process has changed the file since it was last read or written here."""
        return self._now() != self._stamp

    def _now(self) -> tuple[int, int] | None:
        try:
            status = os.lstat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _entries(self) -> dict[str, Any]:
        self._stamp = self._now()
        try:
            entries = json.loads(atomic.read_file(self.path))
        except (OSError, ValueError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _replace(self, entries: dict[str, Any]) -> None:
        stored_keys.write_login(self.path, json.dumps(entries).encode())
        self._stamp = self._now()

    async def get(self, key: str, *, collection: str | None = None) -> dict[str, Any] | None:
        """The stored value; `None` if there is none, or if it has expired."""
        entry = self._entries().get(f"{collection} {key}")
        if not isinstance(entry, dict) or not isinstance(value := entry.get("value"), dict):
            return None
        expires_at = entry.get("expires_at")
        if isinstance(expires_at, int | float) and expires_at <= time.time():
            return None
        for name in _TOKENS:
            if isinstance(token := value.get(name), str):
                redaction.remember("MCP_TOKEN", token)
        return value

    async def put(
        self, key: str, value: Mapping[str, Any], *, collection: str | None = None, ttl: SupportsFloat | None = None
    ) -> None:
        """Store a value for `ttl` seconds."""
        expires_at = time.time() + float(ttl) if ttl is not None else None
        self._replace({**self._entries(), f"{collection} {key}": {"value": dict(value), "expires_at": expires_at}})

    async def delete(self, key: str, *, collection: str | None = None) -> bool:
        """Delete a value. Returns whether there was one."""
        entries = self._entries()
        was_there = entries.pop(f"{collection} {key}", None) is not None
        if was_there:
            self._replace(entries)
        return was_there


class Login(OAuth):
    """The login to one server. Without a `person`, it raises `LoginNeeded` where one would have to log in."""

    def __init__(self, url: str, store: TokenFile, person: Person | None) -> None:
        self._store = store
        self._person = person
        self._listener: asyncio.Server | None = None
        self._metadata: OAuthMetadata | None = None
        """The stored addresses of the authorization server."""
        self._answer: asyncio.Future[dict[str, str]] | None = None
        self.seconds = SECONDS_TO_LOG_IN if person is not None else 0.0
        """The longest time that the login waits for a person."""
        self.is_needed = False
        """Whether a request has failed because a person would have to log in."""
        self.problem = ""
        """Why the last login or refresh failed; empty if it did not."""
        super().__init__(
            url,
            client_name="deepctl",
            token_storage=cast("AsyncKeyValue", store),  # the client needs no other methods of it
            callback_host="127.0.0.1",
            callback_timeout=SECONDS_TO_LOG_IN,
        )

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        # Some servers accept a refresh token once, so the tokens of another chat count.
        if self._store.is_changed:
            self._initialized = False
        flow = super().async_auth_flow(request)
        try:
            sent = await flow.asend(None)  # type: ignore[arg-type]
            response = yield sent
            if sent is request and response.status_code == 401 and self.context.can_refresh_token():
                # A server may end a token early, or tell no time. The client itself would ask for a login.
                await flow.aclose()
                self.context.token_expiry_time = _PAST
                flow = super().async_auth_flow(request)
                response = None  # type: ignore[assignment]
            while True:
                response = yield await flow.asend(response)
        except StopAsyncIteration:
            await self._store_metadata()
        except LoginNeeded:
            raise
        except Exception as error:  # the client has many kinds
            self.problem = str(error) or type(error).__name__
            raise
        finally:
            await flow.aclose()

    async def _initialize(self) -> None:
        """Load the tokens, and the addresses of their authorization server, which the client does not store.

        Without these, it would send the refresh token to the MCP server itself.
        """
        await super()._initialize()
        value = await self._store.get(_METADATA, collection=_METADATA)
        with contextlib.suppress(ValidationError):
            self.context.oauth_metadata = OAuthMetadata.model_validate(value) if value is not None else None
        self._metadata = self.context.oauth_metadata

    async def _store_metadata(self) -> None:
        metadata = self.context.oauth_metadata
        if metadata is not None and metadata is not self._metadata and self.context.current_tokens is not None:
            self._metadata = metadata
            await self._store.put(_METADATA, metadata.model_dump(mode="json", exclude_none=True), collection=_METADATA)

    async def redirect_handler(self, authorization_url: str) -> None:
        """Show the address at which the person logs in. Raises `LoginNeeded` without a person."""
        if self._person is None:
            self.is_needed = True
            raise LoginNeeded
        if not _is_safe(authorization_url):
            raise OAuthFlowError("its login page has an address that is neither https nor on this machine")
        async with self.httpx_client_factory() as client:
            response = await client.get(authorization_url, follow_redirects=False)
        if response.status_code == 400:
            raise ClientNotFoundError("the registration of deepctl is no longer valid there")
        # The redirect may arrive at once.
        self._answer = asyncio.get_running_loop().create_future()
        self._listener = await asyncio.start_server(
            self._connected, "127.0.0.1", self.redirect_port, limit=_LONGEST_REQUEST
        )
        self._person(authorization_url)

    async def callback_handler(self) -> AuthorizationCodeResult:
        """Wait for the redirect of the login page. Raises `OAuthFlowError` if there is none in time, or if it was
        declined.
        """
        assert self._answer is not None
        assert self._listener is not None
        try:
            async with asyncio.timeout(SECONDS_TO_LOG_IN):
                parameters = await self._answer
        except TimeoutError:
            raise OAuthFlowError(f"there was no login within {SECONDS_TO_LOG_IN:g} s") from None
        finally:
            self._listener.close()
        if "code" not in parameters:
            raise OAuthFlowError(f"the login was declined ({parameters['error']})")
        return AuthorizationCodeResult(
            code=parameters["code"], state=parameters.get("state"), iss=parameters.get("iss")
        )

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of a browser; the first redirect is the result."""
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(_SECONDS_TO_ASK):
                parameters = _parameters(await reader.readline())
                text = "You are logged in. You can close this page." if "code" in parameters else "There is no login."
                status = "200 OK" if parameters else "404 Not Found"
                writer.write(_ANSWER.format(status=status, length=len(text), text=text).encode())
                await writer.drain()
            if parameters and self._answer is not None and not self._answer.done():
                self._answer.set_result(parameters)
        writer.close()


def _parameters(line: bytes) -> dict[str, str]:
    """The parameters of the redirect in the first line of a request; empty for any other request."""
    words = line.decode("latin-1").split()
    parts = urlsplit(words[1]) if len(words) == 3 and words[0] == "GET" else None
    if parts is None or parts.path != "/callback":
        return {}
    parameters = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return parameters if "code" in parameters or "error" in parameters else {}


def _is_safe(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in mcp_servers.LOOPBACK)
