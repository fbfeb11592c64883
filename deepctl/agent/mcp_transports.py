"""Transports of MCP servers: a local one as a process (`Stdio`), a remote one at an address (`Remote`).

A local server speaks the protocol on its stdin and stdout, one message per line. It has its own process session, so
neither the terminal nor its Ctrl-C reach it. Its stderr is kept only as far as it explains a failure, and is not shown
otherwise. It ends with this process, however that ends, and so do all its child processes that have not left its
process group.

Source: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports and …/lifecycle#shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import anyio
import httpx2
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.client.transports.base import ClientTransport, SessionKwargs, TransportOptions
from mcp import ClientSession
from mcp.shared.message import SessionMessage
from mcp_types import CallToolResult, jsonrpc_message_adapter
from pydantic import ValidationError
from typing_extensions import Unpack

from deepctl.unicode import whole_json_bytes

MOST_BYTES = 16 << 20
"""The longest accepted message of a server."""

_KEPT_BYTES = 4096
_NPM_ERRORS = ("npm error ", "npm ERR! ")
_MOST_NONSENSE = 1000
_SECONDS_TO_LEAVE = 1.0
_SECONDS_TO_DIE = 0.5
_SECONDS_BETWEEN_LOOKS = 0.2

_LAUNCH = """exec 3<"$1" || exit 126
shift
(trap '' TERM INT HUP
{ read -r _ <&3; sleep 1; kill -TERM 0; sleep 1; kill -KILL 0; } </dev/null >/dev/null 2>&1 &)
exec "$@" 3<&-
"""
"""A guard in the server's process group, which is not a child of the server, then the server replaces this shell.

The guard reads from a pipe whose other end only this process holds. After this process has died, by any signal, the
guard gives the server a second to notice the end of its stdin, then ends the group. While the guard exists, the number
of the group cannot be reused.
"""


class _UncheckedSession(ClientSession):
    """A session in which structured content is not checked against the schema that the server gave for it.

    Only text is passed on. The check would block the event loop, with a pattern of the server for as long as the server
    likes.
    """

    async def validate_tool_result(self, name: str, result: CallToolResult) -> None:
        pass


class Stdio(ClientTransport):
    """Starts a local server and exchanges messages with it, for one connection."""

    # The later form of the protocol has no handshake and is served over HTTP. A local server that ignores unknown
    # requests would not answer a request for it, and would use up its time limit for the start.
    legacy_only = True

    def __init__(self, argv: list[str], variables: Mapping[str, str], directory: str) -> None:
        self._argv = argv
        self._variables = dict(variables)
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = b""
        self._nonsense: list[str] = []
        self._broken: str | None = None
        self._silent = False
        self._closing = False
        self._ended: int | None = None
        """Its exit status, when we were about to end it."""

    @contextlib.asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Unpack[SessionKwargs]
    ) -> AsyncGenerator[ClientSession, None]:
        """Start the server; it has ended after this context. Raises `OSError` if it cannot be started."""
        async with (
            self._running() as (stdin, stdout, stderr),
            _streams() as (incoming, received, sending, outgoing),
            anyio.create_task_group() as pumps,
        ):
            pumps.start_soon(self._receive, stdout, incoming)
            pumps.start_soon(self._send, outgoing, stdin)
            pumps.start_soon(self._listen, stderr)
            pumps.start_soon(self._watch, incoming)
            try:
                async with _UncheckedSession(received, sending, **session_kwargs) as session:
                    yield session
            finally:
                pumps.cancel_scope.cancel()

    @property
    def is_running(self) -> bool:
        is_open = self._process is not None and not self._closing and self._broken is None
        return is_open and self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill the server and the processes in its process group."""
        if self._process is not None and not self._closing:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def failure(self) -> str:
        """The reason why the server is no longer usable; empty if it may be usable. The text may contain secrets."""
        if self._silent and self._process is not None:
            # The server's stdout ends before its process.
            await _gone(self._process, _SECONDS_TO_DIE)
        if self._broken is not None:
            return self._broken
        code = self._ended if self._closing or self._process is None else self._process.poll()
        if code is None:
            return ""
        status = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return f"it ended with {status}{self._last_words}"

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the server's stderr. They may contain secrets."""
        return self._stderr.decode("utf-8", "replace").strip().splitlines()[-count:]

    @property
    def said(self) -> str:
        """The server's output outside the protocol, which may explain why it does not answer."""
        if self._nonsense:
            return f"its output is not MCP: {self._nonsense[0]!r}"
        return f"it says{self._last_words or ' nothing'}"

    @property
    def _last_words(self) -> str:
        lines = self._stderr.decode("utf-8", "replace").strip().splitlines()
        if not lines:
            return ""
        # npm writes the code of an error first, then the reason, and last the path of its log.
        reasons = [line for line in lines if line.startswith(_NPM_ERRORS) and line.split()[2:3] != ["code"]]
        return f": {reasons[0] if reasons and lines[-1].startswith('npm ') else lines[-1]}"

    @contextlib.asynccontextmanager
    async def _running(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamReader]]:
        read_end, write_end = os.pipe()
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", f"/dev/fd/{read_end}", *self._argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._variables,
                cwd=self._directory,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        transports: list[asyncio.BaseTransport] = []
        try:
            stdin = await _writer(process.stdin, transports)
            stdout = await _reader(process.stdout, transports)
            stderr = await _reader(process.stderr, transports)
            try:
                yield stdin, stdout, stderr
            finally:
                if self._silent:
                    with anyio.CancelScope(shield=True):
                        await _gone(process, _SECONDS_TO_DIE)
                self._ended = process.poll()
                self._closing = True
                stdin.close()
                with anyio.CancelScope(shield=True):
                    await _ended(process)
        finally:
            # After any interruption, no process of the server may remain.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            os.close(write_end)
            process.wait()
            for transport in transports:
                transport.close()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError):
                    pipe.close()

    async def _receive(self, stdout: asyncio.StreamReader, incoming: MemoryObjectSendStream[Any]) -> None:
        async with incoming:
            while True:
                try:
                    line = await stdout.readline()
                except ValueError:
                    self._broken = f"it sent a message of more than {MOST_BYTES >> 20} MiB"
                    return
                except OSError:
                    return
                if not line.strip():
                    if line:
                        continue
                    self._silent = True
                    return
                try:
                    message = jsonrpc_message_adapter.validate_json(whole_json_bytes(line), by_name=False)
                except ValidationError:
                    # Some servers print a greeting or a log to stdout. Output that is not a message is not passed on.
                    self._nonsense.append(line[:80].decode("utf-8", "replace").strip())
                    if len(self._nonsense) > _MOST_NONSENSE:
                        self._broken = f"its output is not MCP: {self._nonsense[0]!r}"
                        return
                    continue
                try:
                    await incoming.send(SessionMessage(message))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return

    async def _send(self, outgoing: MemoryObjectReceiveStream[SessionMessage], stdin: asyncio.StreamWriter) -> None:
        async with outgoing:
            async for message in outgoing:
                stdin.write(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
                try:
                    await stdin.drain()
                except OSError:
                    return  # it has ended, as its stdout shows

    async def _watch(self, incoming: MemoryObjectSendStream[Any]) -> None:
        """Report the server's end to the session, because a child of it may keep its stdout open."""
        while self.is_running:
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)  # its earlier output may still arrive
        incoming.close()

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await stderr.read(65536):
                self._stderr = (self._stderr + data)[-_KEPT_BYTES:]


@contextlib.asynccontextmanager
async def _streams() -> AsyncIterator[
    tuple[
        MemoryObjectSendStream[SessionMessage | Exception],
        MemoryObjectReceiveStream[SessionMessage | Exception],
        MemoryObjectSendStream[SessionMessage],
        MemoryObjectReceiveStream[SessionMessage],
    ]
]:
    """The streams from which the session reads, and to which it writes, with both ends each."""
    incoming, received = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    sending, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    with incoming, received, sending, outgoing:
        yield incoming, received, sending, outgoing


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for a server whose stdin has been closed; if it stays, terminate it."""
    for ask in (None, signal.SIGTERM):
        if ask is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, ask)
        if await _gone(process, _SECONDS_TO_LEAVE):
            return


async def _gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether a process ends by itself within this number of seconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while process.poll() is None and loop.time() < deadline:
        await asyncio.sleep(0.005)
    return process.poll() is not None


async def _reader(pipe: Any, transports: list[asyncio.BaseTransport]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=MOST_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    transports.append(transport)
    return reader


async def _writer(pipe: Any, transports: list[asyncio.BaseTransport]) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    transports.append(transport)
    return asyncio.StreamWriter(transport, protocol, None, loop)


class _Http(StreamableHttpTransport):
    @contextlib.asynccontextmanager
    async def connect_session(
        self, *, transport_options: TransportOptions | None = None, **session_kwargs: Unpack[SessionKwargs]
    ) -> AsyncGenerator[ClientSession, None]:
        options = replace(transport_options or TransportOptions(), session_class=_UncheckedSession)
        async with super().connect_session(transport_options=options, **session_kwargs) as session:
            yield session


_HTTP_SECONDS = 30.0


class Remote:
    """The access to a remote server, for one connection."""

    def __init__(self) -> None:
        self.status = 200
        """The status of its last answer; the client only reports an error."""
        self.broken = ""
        """The rejected content of its last answer."""

    def transport(
        self, url: str, headers: Mapping[str, str], auth: httpx2.Auth | None = None
    ) -> StreamableHttpTransport:
        """The transport of the client, to the server at `url`."""
        return _Http(
            url, headers=dict(headers), auth=auth, httpx_client_factory=self._client, max_sse_event_size=MOST_BYTES
        )

    @property
    def failure(self) -> str:
        """The reason why the server's last answer is unusable; empty if it may be usable."""
        return f"it answered with HTTP status {self.status}" if self.status >= 300 else self.broken

    def _client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
        **_: object,
    ) -> httpx2.AsyncClient:
        """A client that follows no redirect by itself, because it would send the headers to any target."""
        hooks = {"response": [self._answered]}
        request_headers = httpx2.Headers(headers)
        request_headers["Accept-Encoding"] = "identity"
        return httpx2.AsyncClient(
            headers=request_headers, timeout=timeout or _HTTP_SECONDS, auth=auth, event_hooks=hooks
        )

    async def _answered(self, response: httpx2.Response) -> None:
        """Check a response before its body is read: its size is limited, and compressed data, which could become much
        more, is refused.
        """
        if response.request.method == "POST":
            self.status = response.status_code
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            self.broken = "it sent compressed data without being asked"
            raise httpx2.StreamError(self.broken)
        # Each event has its own limit, and events continue as long as the chat.
        if not response.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedBody(response.stream, self._too_long)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _ValidJsonBody(response.stream)

    def _too_long(self) -> Exception:
        self.broken = f"it sent a message of more than {MOST_BYTES >> 20} MiB"
        return httpx2.StreamError(self.broken)


class _BoundedBody(httpx2.AsyncByteStream):
    """A body, limited to the length of a message. The client would keep all of a longer one in memory."""

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


class _ValidJsonBody(httpx2.AsyncByteStream):
    """A body of JSON without lone surrogates, which the client would refuse a whole message for.

    It comes line by line: a line is at most a message, and events are delivered only at an empty line.
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
