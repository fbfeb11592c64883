"""One connected MCP server: started, asked for its tools, called, ended.

The client is the one that pydantic-ai's own MCP toolset is built on. A failure of a server is reported as text, in
`UnusableServer` or as the result of the call. No failure of a server ends a turn.

The tools of a server are adapted for the agent: names are changed to the form that providers accept, descriptions cut,
and a tool whose parameters a provider would refuse is left out, because a provider refuses the whole request for it.
Results become text.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mcp_types
from fastmcp.client import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import McpError
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import ValidationError
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.tools import ToolDefinition

from deepctl import distribution
from deepctl.agent.mcp_transports import Remote, Stdio
from deepctl.domain import mcp_servers
from deepctl.domain.mcp_servers import METADATA, SEPARATOR, McpServer
from deepctl.redaction import redact
from deepctl.sandbox.policy import OUTPUT_BYTES

_LONGEST_REASON = 300
_LONGEST_FAILURE = 20_000
_SHORTEST_SECRET = 4
_ANSWERS = range(-32603, -32599)
"""Codes of JSON-RPC for a server's own error about a request: the server is running, and the error is intended."""


class UnusableServer(Exception):
    """An unusable server; the text continues "…: " and has no full stop."""


class Connection:
    """A server's connection, which lives in the event loop in which it was opened."""

    def __init__(self, server: McpServer, environment: Mapping[str, str]) -> None:
        self.server = server
        self._environment = environment
        self._client: Client[Any] | None = None
        self._stdio: Stdio | None = None
        self._doubtful = False
        self._remote = Remote()
        self._stale = False
        self.tools: dict[str, ToolDefinition] = {}
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
        self._client = client = Client(
            self._transport(),
            name="deepctl",
            # For every request, also those at the start, which may take longer than a tool call.
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
        # In a thread, because checking the largest allowed answer takes seconds.
        listing = await self._client.list_tools()
        self.tools, remarks = await asyncio.to_thread(tool_offer, self.server, listing)
        self.remarks = [self._shown(remark) for remark in remarks]

    def _transport(self) -> Stdio | StreamableHttpTransport:
        if self.server.url is not None:
            return self._remote.transport(self.server.url, mcp_servers.headers(self.server, self._environment))
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

    async def call(self, tool: str, arguments: dict[str, Any]) -> str:
        """The result of a tool. Raises `ToolFailed`, for the model, for every other outcome."""
        name, client = self.server.name, self._client
        if client is None or not self.is_alive:
            raise ToolFailed(f"MCP server {name!r} is no longer running. {_AGAIN}")
        try:
            async with asyncio.timeout(self.server.tool_timeout):
                result = await client.call_tool_mcp(name=tool, arguments=arguments)
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
        text = self.hidden(text_of(result))
        if result.is_error:
            raise ToolFailed(text[:_LONGEST_FAILURE] or "It failed without a message.")
        return text

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
        if isinstance(message, mcp_types.ToolListChangedNotification):
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
        if self._remote.failure:
            return self._remote.failure
        # The client wraps the cause, and so do task groups.
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


MOST_TOOLS = 100
"""Tools of one server. Providers accept about 128 in total."""

_LONGEST_NAME = 64
_LONGEST_DESCRIPTION = 4096
_LARGEST_SCHEMA = 64 << 10
_MOST_VALUES = 4_000
_MOST_VALUES_ALTOGETHER = 20_000
"""Values of a tool's parameters, and of those of all tools of a server: checking one takes up to half a millisecond."""

_DEEPEST_SCHEMA = 40
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_DEFINITIONS = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")


class ToolOffer(NamedTuple):
    """The tools of a server by their names for the model, and notices about the others."""

    tools: dict[str, ToolDefinition]
    remarks: list[str]


class _UnusableParameters(Exception):
    """Parameters that cannot be passed to a provider."""


def tool_offer(server: McpServer, listing: Sequence[mcp_types.Tool]) -> ToolOffer:
    """The tools for the agent among those of a server."""
    remarks = []
    names = {tool.name for tool in listing}
    unknown = [name for name in (*(server.enabled_tools or ()), *server.disabled_tools) if name not in names]
    if unknown:
        remarks.append(f"has no tool {_first_few(unknown)}, but its settings name it")
    chosen_tools = [tool for tool in listing if server.offers(tool.name)]
    if len(chosen_tools) > MOST_TOOLS:
        remarks.append(
            f"has {len(chosen_tools)} tools; only the first {MOST_TOOLS} are used. Select tools with enabled_tools"
        )
    tools: dict[str, ToolDefinition] = {}
    unusable = []
    room = _MOST_VALUES_ALTOGETHER
    for tool in chosen_tools[:MOST_TOOLS]:
        try:
            parameters, values = _parameters(tool.input_schema, min(_MOST_VALUES, room))
            room -= values
            _check_schema(parameters)
        except _UnusableParameters:
            unusable.append(tool.name)
            continue
        name = _tool_name(server.name, tool.name, tools)
        tools[name] = ToolDefinition(
            name=name,
            description=_tool_description(tool.description or tool.title or ""),
            parameters_json_schema=parameters,
            metadata={METADATA: {"server": server.name, "tool": tool.name, "asks": server.asks(tool.name)}},
        )
    if unusable:
        problem = "in a way that providers do not accept, or too long"
        remarks.append(f"describes the parameters of {_first_few(unusable)} {problem}; left out")
    return ToolOffer(tools, remarks)


def _first_few(names: Sequence[str]) -> str:
    remainder = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:_LONGEST_NAME] for name in names[:3]) + remainder


def _tool_name(server: str, tool: str, names: Mapping[str, Any]) -> str:
    """`SERVER__TOOL` with the characters and the length that providers accept; all names are different."""
    name = f"{server}{SEPARATOR}{_UNFIT.sub('_', tool)}"
    if len(name) <= _LONGEST_NAME and name not in names:
        return name
    number = 0
    while True:
        digest = hashlib.sha256(f"{number}{tool}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
        unlike = f"{name[: _LONGEST_NAME - 9]}_{digest}"
        if unlike not in names:
            return unlike
        number += 1


def _tool_description(text: str) -> str:
    plain = "".join(character for character in text if character.isprintable() or character in "\n\t")
    return plain if len(plain) <= _LONGEST_DESCRIPTION else f"{plain[:_LONGEST_DESCRIPTION]}…"


def _parameters(schema: Mapping[str, Any], most: int) -> tuple[dict[str, Any], int]:
    """The schema of a tool's arguments for providers, and the number of its values, at most `most`.

    Raises `_UnusableParameters`.
    """
    try:
        raw = json.dumps(schema, allow_nan=False)
        if len(raw) > _LARGEST_SCHEMA or schema.get("type") != "object":
            raise _UnusableParameters
        schema_copy = _SchemaInliner(schema, most)
        parameters = schema_copy.whole()
    except (ValueError, TypeError, RecursionError):
        raise _UnusableParameters from None
    if _is_too_large(parameters):
        raise _UnusableParameters
    return parameters, schema_copy.values


def _is_too_large(schema: Mapping[str, Any]) -> bool:
    """Whether a schema is too large after references were replaced. At most the allowed size is encoded."""
    room = _LARGEST_SCHEMA
    for part in json.JSONEncoder().iterencode(schema):
        room -= len(part)
        if room < 0:
            return True
    return False


def _check_schema(parameters: Mapping[str, Any]) -> None:
    """Raises `_UnusableParameters` if it is not a schema."""
    try:
        Draft202012Validator.check_schema(parameters)
    except (SchemaError, ValueError, TypeError, RecursionError, OverflowError):  # the last for a pattern such as a{9e9}
        raise _UnusableParameters from None


class _SchemaInliner:
    """A schema in which references lead only to its definitions; other references are replaced by their target."""

    def __init__(self, schema: Mapping[str, Any], most: int) -> None:
        self._schema = schema
        self._most = most
        """Maximum number of written values, because references to references can grow without end."""
        self.values = 0
        """Number of written values. Each character of a pattern counts as one, because compiling it takes as long."""

    def whole(self) -> dict[str, Any]:
        schema: dict[str, Any] = self._copy(self._schema, 0)
        return schema

    def _copy(self, value: Any, depth: int) -> Any:
        self.values += 1
        if depth > _DEEPEST_SCHEMA or self.values > self._most:
            raise _UnusableParameters
        if isinstance(value, list):
            return [self._copy(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if isinstance(reference, str):
            match = _DEFINITIONS.fullmatch(reference)
            definitions = self._schema.get(match[1]) if match else None
            if match is None:
                return self._copy(self._named(reference), depth + 1)
            if not isinstance(definitions, dict) or not isinstance(definitions.get(match[2]), dict):
                raise _UnusableParameters
        self.values += _characters_of_patterns(value)
        if not all(map(_are_names, _lists_of_names(value))):
            raise _UnusableParameters
        return {key: self._copy(item, depth + 1) for key, item in value.items()}

    def _named(self, reference: str) -> Any:
        """The target of a pointer into the schema. Raises `_UnusableParameters`, also for a target in another
        document.
        """
        if not reference.startswith("#/"):
            raise _UnusableParameters
        target: Any = self._schema
        for step in reference[2:].split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise _UnusableParameters
        return target


def _characters_of_patterns(schema: Mapping[str, Any]) -> int:
    patterns = [schema.get("pattern"), *_table(schema, "patternProperties")]
    return sum(len(pattern) for pattern in patterns if isinstance(pattern, str))


def _lists_of_names(schema: Mapping[str, Any]) -> list[Any]:
    dependencies = [*_table(schema, "dependencies").values(), *_table(schema, "dependentRequired").values()]
    return [schema.get("type"), schema.get("required"), *dependencies]


def _table(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    table = schema.get(key)
    return table if isinstance(table, dict) else {}


def _are_names(value: Any) -> bool:
    """Whether a list contains only texts. For others, the check for duplicates would compare all pairs."""
    return not isinstance(value, list) or all(isinstance(item, str) for item in value)


def text_of(result: mcp_types.CallToolResult) -> str:
    """A tool's result as text; other content is described. At most as long as the output of a command."""
    parts = [_part_text(part) for part in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return _cut(parts)


def _cut(parts: Iterable[str]) -> str:
    text = "\n".join(parts)
    if len(text) <= OUTPUT_BYTES:
        return text
    return f"{text[:OUTPUT_BYTES]}\n[{len(text) - OUTPUT_BYTES} more characters are left out]"


def _part_text(part: mcp_types.ContentBlock) -> str:
    match part:
        case mcp_types.TextContent():
            return part.text
        case mcp_types.ImageContent() | mcp_types.AudioContent():
            return f"[{part.mime_type}, {len(part.data) * 3 // 4} bytes, left out: only text is passed on]"
        case mcp_types.ResourceLink():
            return f"[resource {part.uri}]"
        case mcp_types.EmbeddedResource(resource=mcp_types.TextResourceContents() as resource):
            return f"[resource {resource.uri}]\n{resource.text}"
        case mcp_types.EmbeddedResource(resource=resource):
            return f"[resource {resource.uri}, left out: only text is passed on]"
        case _:
            return f"[{part.type}, left out: only text is passed on]"
