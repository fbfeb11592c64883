"""The MCP servers of a chat: started before its first turn, kept running between turns, ended with it.

An unusable server causes a notice, and its tools are missing; the chat continues. A server that has died is started
again before the next turn. The protocol's client is imported only if there is a server to start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, Toolset
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

from deepctl import distribution
from deepctl.domain import mcp_prompts, mcp_servers, stored_keys
from deepctl.domain.keys import NO_KEYS, KeyRing
from deepctl.domain.mcp_prompts import ServerPrompt
from deepctl.domain.mcp_servers import McpServer
from deepctl.errors import McpPromptFailed, McpServerFailed, UsageError

if TYPE_CHECKING:
    from deepctl.agent.mcp_client import Connection
    from deepctl.agent.mcp_content import Content
    from deepctl.agent.mcp_oauth import Login

Emit = Callable[[dict[str, Any]], None]

_PATIENCE = 1.5
"""Seconds of waiting for a server after which a notice is shown, because a server that is installed on start takes
long.
"""
_LAST_LINES = 12
"""Lines of a server's stderr that a failed test shows."""
_TRIES = 2
"""Maximum number of consecutive failed starts of a server in a chat."""

_ANY_ARGUMENTS = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))
"""The server checks them, because only it knows all of its rules."""


class ServerReport(NamedTuple):
    """What a server has: its tools by their names for the model with the tokens that each costs, its prompts, its
    resources (the first page), and notices. `seconds` is the time of its start.
    """

    server: McpServer
    seconds: float
    tools: list[tuple[str, int]]
    prompts: list[ServerPrompt]
    resources: list[str]
    remarks: list[str]


class McpServers:
    """The enabled servers of one chat.

    `logins` is the directory with the tokens of logins to servers, `prompt_cache` the file for the prompts of servers.
    """

    def __init__(
        self,
        servers: Sequence[McpServer],
        environment: Mapping[str, str],
        keys: KeyRing = NO_KEYS,
        logins: str | None = None,
        prompt_cache: str | None = None,
    ) -> None:
        self._prompt_cache = prompt_cache
        self._servers = [server for server in servers if server.enabled]
        self._logins = logins
        self._environment = environment
        self._keys = keys
        self._values: dict[str, str] = {}
        """The keys that have been read, by the names of the variables."""
        self._unread: dict[str, str] = {}
        """The reasons why the others cannot be read."""
        self._connections: dict[str, Connection] = {}
        self._failed: dict[str, int] = {}
        self._said: dict[str, str] = {}

    def read_keys(self) -> None:
        """Read the keys by reference that the servers need, once. A key that cannot be read is reported by `ready`."""
        for name in {name for server in self._servers for name in server.named_variables}:
            reference = self._keys.references.get(name)
            if reference is not None and name not in self._values and name not in self._unread:
                try:
                    self._values[name] = self._keys.value(reference)
                except UsageError as error:
                    self._unread[name] = error.message.rstrip(".")

    def _environment_of(self, server: McpServer) -> Mapping[str, str]:
        """The variables for a server: those that its table names come from the keys first."""
        names = server.named_variables
        hidden = {name for name in names if name in self._keys.references}
        variables = {name: text for name, text in self._environment.items() if name not in hidden}
        return {**variables, **{name: self._values[name] for name in hidden if name in self._values}}

    def capability(self) -> AbstractCapability[Any]:
        """The toolset with the tools of the servers, as of the start of a run."""
        return Toolset(_Tools(self._connections))

    async def ready(self, emit: Emit) -> None:
        """Start the servers that are not running, at the same time, and report the unusable ones to `emit`."""
        candidates = [server for server in self._servers if self._failed.get(server.name, 0) < _TRIES]
        if candidates and not self._load(emit):
            return
        tasks = [asyncio.create_task(self._one_ready(server, emit), name=server.name) for server in candidates]
        try:
            if tasks:
                _, late = await asyncio.wait(tasks, timeout=_PATIENCE)
                if late:
                    names = ", ".join(sorted(repr(task.get_name()) for task in late))
                    servers = "server" if len(late) == 1 else "servers"
                    emit({"type": "notice", "message": f"Waiting for MCP {servers} {names} to start."})
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            # Each task ends its own processes, and the event loop does not run between two turns.
            await asyncio.gather(*tasks, return_exceptions=True)

    def _load(self, emit: Emit) -> bool:
        try:
            load()
        except ImportError:
            names = ", ".join(server.name for server in self._servers)
            command = distribution.to_install("mcp")
            self._tell(emit, "", f"MCP servers need packages that are not installed ({command}): {names}.")
            return False
        return True

    async def _one_ready(self, server: McpServer, emit: Emit) -> None:
        from deepctl.agent.mcp_client import Connection, UnusableServer

        environment = self._environment_of(server)
        if (problem := self._problem(server, environment)) is not None:
            self._tell(emit, server.name, f"{_stderr_of(server)} is left out: {problem}.")
            return
        connection = self._connections.get(server.name)
        try:
            if connection is not None and connection.is_alive:
                await connection.refresh()
            else:
                end = ""
                if connection is not None:
                    end = await connection.end()
                    del self._connections[server.name]
                    await connection.close()
                connection = Connection(server, environment, self._login(server))
                await connection.open()
                self._connections[server.name] = connection
                if end:
                    # Its state is lost, so each time counts.
                    emit({"type": "notice", "message": f"{_stderr_of(server)} was started again: {end}."})
        except UnusableServer as error:
            failures = self._failed[server.name] = self._failed.get(server.name, 0) + 1
            addition = " It is not started again in this chat." if failures >= _TRIES else ""
            self._tell(emit, server.name, f"{_stderr_of(server)} is left out: {error}.{addition}")
            return
        self._failed.pop(server.name, None)
        if self._prompt_cache is not None:
            mcp_prompts.store(self._prompt_cache, server, connection.described_prompts())
        remarks = "; ".join(connection.remarks)
        if remarks:
            self._tell(emit, server.name, f"{_stderr_of(server)} {remarks}.")
        else:
            self._said.pop(server.name, None)

    def _problem(self, server: McpServer, environment: Mapping[str, str]) -> str | None:
        """Why a server cannot be started with these variables; continues a sentence."""
        unread = [self._unread[name] for name in server.named_variables if name in self._unread]
        if unread:
            return unread[0]
        unset = mcp_servers.missing_variables(server, environment)
        return _unset(unset) if unset else mcp_servers.unfit_variable(server, environment)

    def _login(self, server: McpServer, person: Callable[[str], None] | None = None) -> Login | None:
        """The login to a remote server, if there is one, or if a `person` is there to log in."""
        if self._logins is None or server.url is None or not mcp_servers.takes_login(server):
            return None
        path = stored_keys.login_file(self._logins, server.name)
        if person is None and not os.path.lexists(path):
            return None
        from deepctl.agent.mcp_oauth import Login, TokenFile  # most servers have none

        return Login(server.url, TokenFile(path), person)

    def prompts(self) -> list[ServerPrompt]:
        """The prompts of the running servers, as far as they are known: no server is started."""
        return [prompt for connection in self._connections.values() for prompt in connection.described_prompts()]

    async def prompt(self, prompt: ServerPrompt, values: Mapping[str, str]) -> Content:
        """The text and the pictures of a prompt; `ready` has been called. Raises `McpServerFailed`, and
        `McpPromptFailed` if only this prompt does not work.
        """
        connection = self._connections.get(prompt.server)
        if connection is None:
            raise McpServerFailed(prompt.server, "it is not running")
        try:
            return await connection.prompt(prompt.name, dict(values))
        except ToolFailed as error:
            problem = error.message.rstrip(".")
            if connection.is_alive:
                raise McpPromptFailed(prompt.server, prompt.name, problem) from error
            raise McpServerFailed(prompt.server, problem) from error

    async def probe(self, name: str, person: Callable[[str], None] | None) -> ServerReport:
        """Start one server, ask it what it has, and end it. `person` is shown the address of a login.

        Raises `McpServerFailed`.
        """
        from deepctl.agent.mcp_client import Connection, UnusableServer
        from deepctl.agent.mcp_tools import estimated_tokens

        [server] = [server for server in self._servers if server.name == name]
        environment = self._environment_of(server)
        if (problem := self._problem(server, environment)) is not None:
            raise McpServerFailed(server.name, problem)
        connection = Connection(server, environment, self._login(server, person))
        start = time.monotonic()
        try:
            await connection.open()
        except UnusableServer as error:
            raise McpServerFailed(
                server.name, str(error), connection.last_lines(_LAST_LINES), needs_login=connection.needs_login
            ) from error
        try:
            seconds = time.monotonic() - start
            return ServerReport(
                server,
                seconds,
                [(tool.name, estimated_tokens(tool)) for tool in connection.tools.values()],
                connection.described_prompts(),
                [str(resource.uri) for resource in connection.resources],
                connection.remarks,
            )
        finally:
            await connection.close()

    def _tell(self, emit: Emit, name: str, message: str) -> None:
        """Emit a notice about a server, once until the notice changes."""
        if self._said.get(name) != message:
            self._said[name] = message
            emit({"type": "notice", "message": message})

    async def close(self) -> None:
        """End all servers."""
        connections = list(self._connections.values())
        self._connections.clear()
        await asyncio.gather(*(connection.close() for connection in connections))

    @property
    def are_connected(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._connections)

    def kill(self) -> None:
        """Kill all servers, because their event loop can no longer be used. The next turn starts them again."""
        for connection in self._connections.values():
            connection.kill()
        self._connections.clear()


def _stderr_of(server: McpServer) -> str:
    return f"MCP server {server.name!r}"


def _unset(names: Sequence[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(f'${name}' for name in names)} {verb} not set"


def load() -> None:
    """Import the protocol's client, which takes as long as the agent libraries. Raises `ImportError` without the
    extra.
    """
    with _without_program_settings():
        import deepctl.agent.mcp_client  # noqa: F401


@contextlib.contextmanager
def _without_program_settings() -> Iterator[None]:
    """Inside this context, the client ignores the settings of its own programs: its variables, and a `.env` here.

    By default the client also writes its log to the terminal.
    """
    names = [name for name in os.environ if name.upper().startswith("FASTMCP_")]
    old_values = {name: os.environ.pop(name) for name in names}
    new_values = {
        "FASTMCP_ENV_FILE": os.devnull,
        "FASTMCP_LOG_ENABLED": "false",
        "FASTMCP_DEPRECATION_WARNINGS": "false",
    }
    os.environ.update(new_values)
    try:
        yield
    finally:
        for name in new_values:
            os.environ.pop(name, None)
        os.environ.update(old_values)


class _Tools(AbstractToolset[Any]):
    """The tools of all servers that are connected."""

    def __init__(self, connections: Mapping[str, Connection]) -> None:
        self._connections = connections

    @property
    def id(self) -> str:
        return "mcp"

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        return {
            name: ToolsetTool(toolset=self, tool_def=definition, max_retries=1, args_validator=_ANY_ARGUMENTS)
            for _, connection in sorted(self._connections.items())
            for name, definition in connection.tools.items()
        }

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Content:
        origin = (tool.tool_def.metadata or {})[mcp_servers.METADATA]
        connection = self._connections.get(origin["server"])
        if connection is None:
            raise ToolFailed(f"MCP server {origin['server']!r} is no longer running. Continue without it.")
        if origin.get("reads"):
            uri = tool_args.get("uri")
            return await connection.read_resource(str(uri) if uri else None)
        return await connection.call(origin["tool"], tool_args)
