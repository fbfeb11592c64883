"""The tools of an MCP server, adapted for the agent: names in the form that providers accept, descriptions cut.

A tool whose parameters a provider would refuse is left out, because a provider refuses the whole request for it. So is
a tool that can only run as a task: deepctl does not support tasks.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mcp_types
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic_ai.tools import ToolDefinition

from deepctl.domain.mcp_servers import METADATA, SEPARATOR, McpServer

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


READ_RESOURCE = "read_resource"
"""The name of the tool that lists and reads the resources of a server, if the server has no tool of this name."""
_RESOURCE_DESCRIPTION = "Read a resource of this server by its URI. Without a URI: list its resources."
_RESOURCE_PARAMETERS = {"type": "object", "properties": {"uri": {"type": "string"}}}


def tool_offer(server: McpServer, listing: Sequence[mcp_types.Tool], *, has_resources: bool = False) -> ToolOffer:
    """The tools for the agent among those of a server, and one for its resources."""
    remarks = []
    names = {tool.name for tool in listing}
    if has_resources := has_resources and READ_RESOURCE not in names:
        names.add(READ_RESOURCE)
    unknown = [name for name in (*(server.enabled_tools or ()), *server.disabled_tools) if name not in names]
    if unknown:
        remarks.append(f"has no tool {_first_few(unknown)}, but its settings name it")
    chosen_tools = [tool for tool in listing if server.offers(tool.name)]
    tasks = [tool.name for tool in chosen_tools if _needs_task(tool)]
    if tasks:
        remarks.append(
            f"has tools that only run as tasks, which deepctl does not support: {_first_few(tasks)}; left out"
        )
        chosen_tools = [tool for tool in chosen_tools if not _needs_task(tool)]
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
    if has_resources and server.offers(READ_RESOURCE):
        name = _tool_name(server.name, READ_RESOURCE, tools)
        metadata = {"server": server.name, "tool": READ_RESOURCE, "asks": server.asks(READ_RESOURCE), "reads": True}
        tools[name] = ToolDefinition(
            name=name,
            description=_RESOURCE_DESCRIPTION,
            parameters_json_schema=_RESOURCE_PARAMETERS,
            metadata={METADATA: metadata},
        )
    if unusable:
        problem = "in a way that providers do not accept, or too long"
        remarks.append(f"describes the parameters of {_first_few(unusable)} {problem}; left out")
    return ToolOffer(tools, remarks)


def estimated_tokens(tool: ToolDefinition) -> int:
    """The tokens of a tool's definition in every request, estimated from its length."""
    definition = {"name": tool.name, "description": tool.description, "parameters": tool.parameters_json_schema}
    return len(json.dumps(definition, ensure_ascii=False)) // 4


def _needs_task(tool: mcp_types.Tool) -> bool:
    return tool.execution is not None and tool.execution.task_support == "required"


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
