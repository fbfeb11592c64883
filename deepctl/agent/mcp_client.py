"""One MCP server while it is connected: started, asked for its tools, called, ended.

The client is the one that pydantic-ai's own MCP toolset is built on. What a server does wrong is told in words, as
`Unusable` or as the result of the call; nothing that it says or does ends a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx2
import mcp_types
from fastmcp.client import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import McpError
from pydantic import ValidationError
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.tools import ToolDefinition

from deepctl import distribution
from deepctl.agent import mcp_tools
from deepctl.agent.mcp_stdio import MOST_BYTES, Stdio
from deepctl.domain import mcp_servers
from deepctl.domain.mcp_servers import Server
from deepctl.redaction import redact
from deepctl.unicode import whole_json_bytes

_HTTP_SECONDS = 30.0
_LONGEST_REASON = 300
_LONGEST_FAILURE = 20_000
_SHORTEST_SECRET = 4
_ANSWERS = range(-32603, -32599)
"""Codes of JSON-RPC for what the server itself says of a request: it is there, and means it."""


class Unusable(Exception):
    """A server that cannot be used now; says why, in words that go on "…: " and have no full stop."""


class Connection:
    """A server's connection, which lives in the event loop that it was opened in."""

    def __init__(self, server: Server, environment: Mapping[str, str]) -> None:
        self.server = server
        self._environment = environment
        self._client: Client[Any] | None = None
        self._stdio: Stdio | None = None
        self._doubtful = False
        self._status = 200
        """What a remote server has answered last; the client only tells that it was an error."""
        self._broken = ""
        """What a remote server has sent that is not taken."""
        self._stale = False
        self.tools: dict[str, ToolDefinition] = {}
        self.remarks: list[str] = []

    @property
    def is_alive(self) -> bool:
        """Whether there is any reason to think that a call would not arrive."""
        return (
            self._client is not None
            and self._client.is_connected()
            and not self._doubtful
            and (self._stdio is None or self._stdio.is_running)
        )

    async def open(self) -> None:
        """Start the server, or reach it, and ask it for its tools. Raises `Unusable`."""
        server = self.server
        self._client = client = Client(
            self._transport(),
            name="deepctl",
            # Of every request: of those at the start, too, which may take longer than a call of a tool.
            timeout=max(server.tool_timeout, server.startup_timeout),
            init_timeout=server.startup_timeout,
            log_handler=_ignore,
            progress_handler=_ignore_progress,
            message_handler=self._heard,
            client_info=mcp_types.Implementation(name="deepctl", version=distribution.__version__),
            cache=False,
        )
        try:
            async with asyncio.timeout(server.startup_timeout):
                await client.__aenter__()  # type: ignore[no-untyped-call]
                await self._ask()
        except asyncio.CancelledError:
            await self.close()
            raise
        except Exception as error:  # what a server or its client fails with is anybody's guess
            reason = await self._why(error)
            if _timed_out(error) and (self._stdio is None or not await self._stdio.failure()):
                reason = f"it was not ready within {server.startup_timeout:g} s{self._said()}"
        else:
            return
        await self.close()
        raise Unusable(reason)

    async def refresh(self) -> None:
        """Ask for the tools again, if the server has said that they are others now. Raises `Unusable`."""
        if not self._stale:
            return
        try:
            async with asyncio.timeout(self.server.startup_timeout):
                await self._ask()
        except Exception as error:  # as above
            self._doubtful = True
            raise Unusable(await self._why(error)) from error

    async def _ask(self) -> None:
        assert self._client is not None
        self._stale = False
        # Elsewhere, because to check what a server may send at most takes seconds.
        listing = await self._client.list_tools()
        self.tools, remarks = await asyncio.to_thread(mcp_tools.offered, self.server, listing)
        self.remarks = [self._shown(remark) for remark in remarks]

    def _transport(self) -> Stdio | StreamableHttpTransport:
        if self.server.url is not None:
            return StreamableHttpTransport(
                self.server.url,
                headers=mcp_servers.headers(self.server, self._environment),
                httpx_client_factory=self._http,
                max_sse_event_size=MOST_BYTES,
            )
        program = mcp_servers.program(self.server, self._environment)
        if program is None:
            raise Unusable(f"its command {self.server.command!r} was not found")
        planted = mcp_servers.where_agents_write(self.server, program, self._environment)
        if planted is not None:
            raise Unusable(f"{planted} lies where agents write, and could be theirs")
        directory = mcp_servers.directory(self.server, self._environment)
        variables = mcp_servers.variables(self.server, self._environment)
        self._stdio = Stdio([program, *self.server.args], variables, directory)
        return self._stdio

    def _http(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
        **_: object,
    ) -> httpx2.AsyncClient:
        """A client that follows no redirect by itself: it would take the headers along, to whatever place it is."""
        hooks = {"response": [self._answered]}
        request_headers = httpx2.Headers(headers)
        request_headers["Accept-Encoding"] = "identity"
        return httpx2.AsyncClient(
            headers=request_headers, timeout=timeout or _HTTP_SECONDS, auth=auth, event_hooks=hooks
        )

    async def _answered(self, response: httpx2.Response) -> None:
        """Before a body is read. It is not unpacked, for a little could become much, and taken up to a size."""
        if response.request.method == "POST":
            self._status = response.status_code
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            self._broken = "it sent what is compressed, which it was not asked for"
            raise httpx2.StreamError(self._broken)
        # Events have a limit of their own each, and go on as long as the chat.
        if not response.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, self._too_long)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Valid(response.stream)

    def _too_long(self) -> Exception:
        self._broken = f"it sent a message of more than {MOST_BYTES >> 20} MiB"
        return httpx2.StreamError(self._broken)

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """What a tool returns. Raises `ToolFailed`, for the model, whatever else happens."""
        name, client = self.server.name, self._client
        if client is None or not self.is_alive:
            raise ToolFailed(f"MCP server {name!r} is not there any more. {_AGAIN}")
        try:
            async with asyncio.timeout(self.server.tool_timeout):
                result = await client.call_tool_mcp(name=tool, arguments=arguments)
        except Exception as error:  # as above
            if _timed_out(error):
                raise ToolFailed(
                    f"MCP server {name!r} did not answer within {self.server.tool_timeout:g} s. "
                    "Whether it has done what it was called for is not known."
                ) from error
            answered = isinstance(error, McpError) and error.error.code in _ANSWERS and self._status < 300
            if answered and self.is_alive:
                raise ToolFailed(self.hidden(_message(error))[:_LONGEST_FAILURE] or "It failed.") from error
            self._doubtful = self._doubtful or self._stdio is None
            reason = await self._why(error)
            raise ToolFailed(f"MCP server {name!r} failed: {reason}. {_AGAIN}") from error
        text = self.hidden(mcp_tools.text_of(result))
        if result.is_error:
            raise ToolFailed(text[:_LONGEST_FAILURE] or "It failed, and does not say why.")
        return text

    async def close(self) -> None:
        """End the connection, and a local server with it."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):  # as above; it is gone then, too
                await client.close()  # type: ignore[no-untyped-call]

    def kill(self) -> None:
        """End a local server, without its connection."""
        if self._stdio is not None:
            self._stdio.kill()

    async def _heard(self, message: object) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self._stale = True

    def hidden(self, text: str) -> str:
        """`text` without the secrets that the server was given."""
        for name, value in mcp_servers.secrets(self.server, self._environment).items():
            if len(value) >= _SHORTEST_SECRET:
                text = text.replace(value, f"[{name}]")
        return redact(text, {**self._environment, **self.server.env})

    async def _why(self, error: BaseException) -> str:
        """Why the server failed, in one line and without secrets."""
        failure = await self._stdio.failure() if self._stdio is not None else ""
        if failure:
            return self._shown(failure)
        if self._status >= 300:
            return f"it answered with HTTP status {self._status}"
        if self._broken:
            return self._broken
        # The client wraps what happened, and so do groups of tasks.
        while isinstance(error, BaseExceptionGroup) or (type(error) is RuntimeError and error.__cause__):
            error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            return self._shown(f"{where}{error.strerror.lower()}")
        return self._shown(_message(error) or type(error).__name__)

    def _said(self) -> str:
        return f"; {self._shown(self._stdio.said)}" if self._stdio is not None else ""

    def _shown(self, text: str) -> str:
        plain = "".join(character if character.isprintable() else " " for character in self.hidden(text))
        line = " ".join(plain.split()).rstrip(".")
        return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"


class _Bounded(httpx2.AsyncByteStream):
    """A body, as long as a message may be. The client would keep all of a longer one in memory."""

    def __init__(self, body: httpx2.AsyncByteStream, too_long: Callable[[], Exception]) -> None:
        self._body = body
        self._too_long = too_long

    async def __aiter__(self) -> AsyncIterator[bytes]:
        room = MOST_BYTES
        async for part in self._body:
            room -= len(part)
            if room < 0:
                raise self._too_long()
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()


class _Valid(httpx2.AsyncByteStream):
    """A body of JSON without lone surrogates, which the client would refuse a whole message for.

    It comes line by line: a line is at most a message, and events are delivered at an empty line only.
    """

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pending: list[bytes] = []
        size = 0
        async for part in self._body:
            end = part.rfind(b"\n") + 1
            size += len(part)
            if end or size > MOST_BYTES:
                yield whole_json_bytes(b"".join([*pending, part[:end] if end else part]))
                pending, size = ([part[end:]], len(part) - end) if end else ([], 0)
            else:
                pending.append(part)
        if pending:
            yield whole_json_bytes(b"".join(pending))

    async def aclose(self) -> None:
        await self._body.aclose()


_AGAIN = "It is tried again at the next turn; go on without it."


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        return f"it does not keep to the protocol ({where}: {first['msg']})"
    return error.error.message if isinstance(error, McpError) else str(error)


def _timed_out(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_timed_out(nested) for nested in error.exceptions)
    cause = error.__cause__
    code = error.error.code if isinstance(error, McpError) else None
    return isinstance(error, TimeoutError) or code == mcp_types.REQUEST_TIMEOUT or isinstance(cause, TimeoutError)


async def _ignore(message: object) -> None:
    """What a server logs is for whoever runs it."""


async def _ignore_progress(progress: float, total: float | None, message: str | None) -> None:
    """A tool is done when it is done."""
