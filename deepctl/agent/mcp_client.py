"""One connected MCP server: started, asked for its tools, called, ended.

The client is the one that pydantic-ai's own MCP toolset is built on. A failure of a server is reported as text, in
`UnusableServer` or as the result of the call. No failure of a server ends a turn.

Results are in the form of `deepctl.agent.mcp_content`. A server with resources has one more tool, which lists and reads
them; approvals and the lists of tools in its table hold for this tool as for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import mcp_types
from fastmcp.client import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import McpError
from pydantic import ValidationError
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.tools import ToolDefinition

from deepctl import distribution
from deepctl.agent import mcp_content
from deepctl.agent.mcp_content import Content
from deepctl.agent.mcp_tools import tool_offer
from deepctl.agent.mcp_transports import Remote, Stdio
from deepctl.domain import mcp_prompts, mcp_servers
from deepctl.domain.mcp_prompts import ServerPrompt
from deepctl.domain.mcp_servers import McpServer
from deepctl.redaction import redact

if TYPE_CHECKING:
    from deepctl.agent.mcp_oauth import Login

_T = TypeVar("_T")

_CHANGES = (
    mcp_types.ToolListChangedNotification,
    mcp_types.PromptListChangedNotification,
    mcp_types.ResourceListChangedNotification,
)
MOST_PROMPTS = 200
_MOST_PAGES = 10
_LONGEST_REASON = 300
_LONGEST_FAILURE = 20_000
_SHORTEST_SECRET = 4
_ANSWERS = (*range(-32603, -32599), -32002)
"""Codes for a server's own error about a request: the server is running, and the error is intended. The last code is
for a resource that does not exist.
"""


class UnusableServer(Exception):
    """An unusable server; the text continues "…: " and has no full stop."""


class Connection:
    """A server's connection, in the event loop in which it was opened. `login` is that to a remote server."""

    def __init__(
        self,
        server: McpServer,
        environment: Mapping[str, str],
        login: Login | None = None,
    ) -> None:
        self.server = server
        self._login = login
        self._environment = environment
        self._client: Client[Any] | None = None
        self._stdio: Stdio | None = None
        self._doubtful = False
        self._remote = Remote()
        self._stale = False
        self.tools: dict[str, ToolDefinition] = {}
        self.prompts: list[mcp_types.Prompt] = []
        self.resources: list[mcp_types.Resource] = []
        """The first page of them, as of the start."""
        self.remarks: list[str] = []

    @property
    def is_alive(self) -> bool:
        """Whether the connection is open, so that a call can arrive."""
        return (
            self._client is not None
            and self._client.is_connected()
            and not self._doubtful
            and (self._stdio is None or self._stdio.is_running)
        )

    async def open(self) -> None:
        """Start the server, or reach it, and ask it for its tools. Raises `UnusableServer`."""
        server = self.server
        seconds = server.startup_timeout + (self._login.seconds if self._login is not None else 0)
        self._client = client = Client(
            self._transport(),
            name="deepctl",
            # For every request, also those at the start, which may take longer than a tool call.
            timeout=max(server.tool_timeout, seconds),
            init_timeout=seconds,
            log_handler=_ignore,
            progress_handler=_ignore_progress,
            message_handler=self._heard,
            client_info=mcp_types.Implementation(name="deepctl", version=distribution.__version__),
            cache=False,
        )
        try:
            async with asyncio.timeout(seconds):
                await client.__aenter__()  # type: ignore[no-untyped-call]
                await self._ask()
        except asyncio.CancelledError:
            await self.close()
            raise
        except Exception as error:  # a server or its client may raise any exception
            reason = await self._why(error)
            if _timed_out(error) and (self._stdio is None or not await self._stdio.failure()):
                reason = f"it was not ready within {server.startup_timeout:g} s{self._said()}"
        else:
            return
        await self.close()
        raise UnusableServer(reason)

    async def refresh(self) -> None:
        """Request the tools again if the server has reported a change of them. Raises `UnusableServer`."""
        if not self._stale:
            return
        try:
            async with asyncio.timeout(self.server.startup_timeout):
                await self._ask()
        except Exception as error:  # as above
            self._doubtful = True
            raise UnusableServer(await self._why(error)) from error

    async def _ask(self) -> None:
        assert self._client is not None
        self._stale = False
        capabilities = self._client.server_capabilities or mcp_types.ServerCapabilities()
        # A server that has only prompts or resources need not answer a request for its tools.
        listing = await self._client.list_tools() if capabilities.tools is not None else []
        has_resources = capabilities.resources is not None and await self._has_resources()
        self.prompts = await self._prompts() if capabilities.prompts is not None else []
        # In a thread, because checking the largest allowed answer takes seconds.
        self.tools, remarks = await asyncio.to_thread(tool_offer, self.server, listing, has_resources=has_resources)
        self.remarks = [self._shown(remark) for remark in remarks]

    async def _has_resources(self) -> bool:
        """Whether the server has a resource or a template. Most servers that can have some have none."""
        assert self._client is not None
        try:
            self.resources = (await self._client.list_resources_mcp()).resources
            return bool(self.resources or (await self._client.list_resource_templates_mcp()).resource_templates)
        except McpError:
            return bool(self.resources)

    async def _prompts(self) -> list[mcp_types.Prompt]:
        assert self._client is not None
        try:
            return (await self._client.list_prompts(max_pages=_MOST_PAGES))[:MOST_PROMPTS]
        except McpError:
            return []

    def _transport(self) -> Stdio | StreamableHttpTransport:
        if self.server.url is not None:
            headers = mcp_servers.headers(self.server, self._environment)
            return self._remote.transport(self.server.url, headers, self._login)
        program = mcp_servers.program(self.server, self._environment)
        if program is None:
            raise UnusableServer(f"its command {self.server.command!r} was not found")
        path = mcp_servers.where_agents_write(self.server, program, self._environment)
        if path is not None:
            raise UnusableServer(f"{path} is where agents can write, so it may be theirs")
        directory = mcp_servers.directory(self.server, self._environment)
        variables = mcp_servers.variables(self.server, self._environment)
        self._stdio = Stdio([program, *self.server.args], variables, directory)
        return self._stdio

    @property
    def needs_login(self) -> bool:
        """Whether the last request failed because a person has to log in."""
        if self._login is not None:
            return self._login.is_needed
        return self._remote.status == 401 and mcp_servers.takes_login(self.server)

    async def call(self, tool: str, arguments: dict[str, Any]) -> Content:
        """The result of a tool. Raises `ToolFailed`, for the model, for every other outcome."""
        result = await self._answered(lambda client: client.call_tool_mcp(name=tool, arguments=arguments))
        content = mcp_content.of_result(result, self.hidden)
        if result.is_error:
            text = mcp_content.text_of(content)
            raise ToolFailed(text[:_LONGEST_FAILURE] or "It failed without a message.")
        return content

    async def read_resource(self, uri: str | None) -> Content:
        """The contents of a resource; without a `uri`, the list of resources. Raises like `call`."""
        if uri is None:
            return self.hidden(await self._answered(_listing))
        result = await self._answered(lambda client: client.read_resource_mcp(uri))
        return mcp_content.of_resource(result.contents, self.hidden)

    def described_prompts(self) -> list[ServerPrompt]:
        """The prompts of the server, as commands need them."""
        return [
            mcp_prompts.described(
                self.server.name,
                prompt.name,
                prompt.description or prompt.title or "",
                [(argument.name, bool(argument.required)) for argument in prompt.arguments or ()],
            )
            for prompt in self.prompts
        ]

    async def prompt(self, name: str, arguments: dict[str, str]) -> Content:
        """The messages of a prompt. Raises like `call`."""
        result = await self._answered(lambda client: client.get_prompt_mcp(name, arguments))
        return mcp_content.of_messages(result.messages, self.hidden)

    async def _answered(self, request: Callable[[Client[Any]], Awaitable[_T]]) -> _T:
        """The server's answer to a request. Raises `ToolFailed` for every other outcome."""
        name, client = self.server.name, self._client
        if client is None or not self.is_alive:
            raise ToolFailed(f"MCP server {name!r} is no longer running. {_AGAIN}")
        try:
            async with asyncio.timeout(self.server.tool_timeout):
                return await request(client)
        except Exception as error:  # as above
            if _timed_out(error):
                raise ToolFailed(
                    f"MCP server {name!r} did not answer within {self.server.tool_timeout:g} s. It is unknown "
                    "whether the call had an effect."
                ) from error
            is_answer = isinstance(error, McpError) and error.error.code in _ANSWERS and self._remote.status < 300
            if is_answer and self.is_alive:
                raise ToolFailed(self.hidden(_message(error))[:_LONGEST_FAILURE] or "It failed.") from error
            self._doubtful = self._doubtful or self._stdio is None
            reason = await self._why(error)
            raise ToolFailed(f"MCP server {name!r} failed: {reason}. {_AGAIN}") from error

    async def end(self) -> str:
        """Why a local server is no longer usable, in one line and without secrets; empty if it may be usable."""
        return self._shown(await self._stdio.failure()) if self._stdio is not None else ""

    async def close(self) -> None:
        """End the connection, and a local server with it."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):  # as above; the connection has ended also after an error
                await client.close()  # type: ignore[no-untyped-call]

    def kill(self) -> None:
        """End a local server, without its connection."""
        if self._stdio is not None:
            self._stdio.kill()

    async def _heard(self, message: object) -> None:
        if isinstance(message, _CHANGES):
            self._stale = True

    def hidden(self, text: str) -> str:
        """`text` without the server's secrets."""
        for name, value in mcp_servers.secrets(self.server, self._environment).items():
            if len(value) >= _SHORTEST_SECRET:
                text = text.replace(value, f"[{name}]")
        return redact(text, {**self._environment, **self.server.env})

    async def _why(self, error: BaseException) -> str:
        """Why the server failed, in one line and without secrets."""
        failure = await self._stdio.failure() if self._stdio is not None else ""
        if failure:
            return self._shown(failure)
        if self._login is not None and self._login.problem:
            return f"its login failed: {self._shown(self._login.problem)}"
        if self.needs_login:
            return f"it needs a login: `deepctl mcp test {self.server.name}` at a terminal logs in"
        if self._remote.failure:
            return self._remote.failure
        # The client wraps the cause, and so do task groups.
        while isinstance(error, BaseExceptionGroup) or (type(error) is RuntimeError and error.__cause__):
            error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            return self._shown(f"{where}{error.strerror.lower()}")
        return self._shown(_message(error) or type(error).__name__)

    def last_lines(self, count: int) -> list[str]:
        """The last lines of a local server's stderr, without secrets."""
        return self.hidden("\n".join(self._stdio.last_lines(count))).splitlines() if self._stdio is not None else []

    def _said(self) -> str:
        return f"; {self._shown(self._stdio.said)}" if self._stdio is not None else ""

    def _shown(self, text: str) -> str:
        plain = "".join(character if character.isprintable() else " " for character in self.hidden(text))
        line = " ".join(plain.split()).rstrip(".")
        return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"


async def _listing(client: Client[Any]) -> str:
    """The resources of a server and their templates, one a line."""
    resources = await client.list_resources(max_pages=_MOST_PAGES)
    try:
        templates = (await client.list_resource_templates_mcp()).resource_templates
    except McpError:
        templates = []
    lines = [mcp_content.described(resource) for resource in resources]
    lines += [f"{template.uri_template} (a template) {template.description or template.name}" for template in templates]
    return "\n".join(lines) or "This server has no resources now."


_AGAIN = "It is started again in the next turn; continue without it."


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        return f"it violates the protocol ({where}: {first['msg']})"
    return error.error.message if isinstance(error, McpError) else str(error)


def _timed_out(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_timed_out(inner) for inner in error.exceptions)
    cause = error.__cause__
    code = error.error.code if isinstance(error, McpError) else None
    return isinstance(error, TimeoutError) or code == mcp_types.REQUEST_TIMEOUT or isinstance(cause, TimeoutError)


async def _ignore(message: object) -> None:
    """A server's log is for its operator."""


async def _ignore_progress(progress: float, total: float | None, message: str | None) -> None:
    """A tool result is final when it is returned."""
