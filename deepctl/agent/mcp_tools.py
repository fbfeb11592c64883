"""What an MCP server offers, as tools of the agent, and what its tools return, as text.

All of it is somebody else's: names are made fit, descriptions cut, and a tool whose parameters a provider would refuse
is left out, because a provider refuses the whole request for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mcp_types
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic_ai.tools import ToolDefinition

from deepctl.domain.mcp_servers import METADATA, SEPARATOR, Server
from deepctl.sandbox.policy import OUTPUT_BYTES

MOST_TOOLS = 100
"""Of one server. Providers take 128 altogether, or little more."""

_LONGEST_NAME = 64
_LONGEST_DESCRIPTION = 4096
_LARGEST_SCHEMA = 64 << 10
_MOST_VALUES = 4_000
_MOST_VALUES_ALTOGETHER = 20_000
"""Of a tool's parameters, and of those of all tools of a server: to check one takes up to half a millisecond."""

_DEEPEST_SCHEMA = 40
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")
_DEFINITIONS = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")


class Offered(NamedTuple):
    """The tools of a server by the names the model calls them by, and what there is to say about the others."""

    tools: dict[str, ToolDefinition]
    remarks: list[str]


class _Unusable(Exception):
    """Parameters that cannot be passed on to a provider."""


def offered(server: Server, listing: Sequence[mcp_types.Tool]) -> Offered:
    """The tools that the agent gets of those a server has."""
    remarks = []
    names = {tool.name for tool in listing}
    unknown = [name for name in (*(server.enabled_tools or ()), *server.disabled_tools) if name not in names]
    if unknown:
        remarks.append(f"has no tool {_some(unknown)}, which its settings name")
    chosen_tools = [tool for tool in listing if server.offers(tool.name)]
    if len(chosen_tools) > MOST_TOOLS:
        remarks.append(f"has {len(chosen_tools)} tools; the first {MOST_TOOLS} are there. Choose by enabled_tools")
    tools: dict[str, ToolDefinition] = {}
    unusable = []
    room = _MOST_VALUES_ALTOGETHER
    for tool in chosen_tools[:MOST_TOOLS]:
        try:
            parameters, values = _parameters(tool.input_schema, min(_MOST_VALUES, room))
            room -= values
            _check(parameters)
        except _Unusable:
            unusable.append(tool.name)
            continue
        name = _name(server.name, tool.name, tools)
        tools[name] = ToolDefinition(
            name=name,
            description=_description(tool.description or tool.title or ""),
            parameters_json_schema=parameters,
            metadata={METADATA: {"server": server.name, "tool": tool.name, "asks": server.asks(tool.name)}},
        )
    if unusable:
        problem = "in a way no provider takes, or too long"
        remarks.append(f"describes the parameters of {_some(unusable)} {problem}; left out")
    return Offered(tools, remarks)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:_LONGEST_NAME] for name in names[:3]) + more


def _name(server: str, tool: str, existing: Mapping[str, Any]) -> str:
    """`SERVER__TOOL` in the characters and the length that providers take; no two are the same."""
    name = f"{server}{SEPARATOR}{_UNFIT.sub('_', tool)}"
    if len(name) <= _LONGEST_NAME and name not in existing:
        return name
    number = 0
    while True:
        digest = hashlib.sha256(f"{number}{tool}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
        unlike = f"{name[: _LONGEST_NAME - 9]}_{digest}"
        if unlike not in existing:
            return unlike
        number += 1


def _description(text: str) -> str:
    plain = "".join(character for character in text if character.isprintable() or character in "\n\t")
    return plain if len(plain) <= _LONGEST_DESCRIPTION else f"{plain[:_LONGEST_DESCRIPTION]}…"


def _parameters(schema: Mapping[str, Any], most: int) -> tuple[dict[str, Any], int]:
    """The schema of a tool's arguments, as providers take it, and its values, `most` at most. Raises `_Unusable`."""
    try:
        raw = json.dumps(schema, allow_nan=False)
        if len(raw) > _LARGEST_SCHEMA or schema.get("type") != "object":
            raise _Unusable
        inlined = _Inlined(schema, most)
        parameters = inlined.whole()
    except (ValueError, TypeError, RecursionError):
        raise _Unusable from None
    if _is_too_large(parameters):
        raise _Unusable
    return parameters, inlined.values


def _is_too_large(schema: Mapping[str, Any]) -> bool:
    """Whether it has become so by what was written in place of references; no more of it is written than may be."""
    room = _LARGEST_SCHEMA
    for part in json.JSONEncoder().iterencode(schema):
        room -= len(part)
        if room < 0:
            return True
    return False


def _check(parameters: Mapping[str, Any]) -> None:
    """Raises `_Unusable` for what is no schema."""
    try:
        Draft202012Validator.check_schema(parameters)
    except (SchemaError, ValueError, TypeError, RecursionError, OverflowError):  # the last for a pattern such as a{9e9}
        raise _Unusable from None


class _Inlined:
    """A schema in which references lead to its definitions only: others in it are replaced by what they name."""

    def __init__(self, schema: Mapping[str, Any], most: int) -> None:
        self._schema = schema
        self._most = most
        """How many values may be written: references to references grow without end."""
        self.values = 0
        """How many have been. Each character of a pattern is one more: to compile it takes as long."""

    def whole(self) -> dict[str, Any]:
        schema: dict[str, Any] = self._copy(self._schema, 0)
        return schema

    def _copy(self, value: Any, depth: int) -> Any:
        self.values += 1
        if depth > _DEEPEST_SCHEMA or self.values > self._most:
            raise _Unusable
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
                raise _Unusable
        self.values += _characters_of_patterns(value)
        if not all(map(_are_names, _lists_of_names(value))):
            raise _Unusable
        return {key: self._copy(item, depth + 1) for key, item in value.items()}

    def _named(self, reference: str) -> Any:
        """What a pointer into the schema names. Raises `_Unusable`, for what is in another document too."""
        if not reference.startswith("#/"):
            raise _Unusable
        target: Any = self._schema
        for step in reference[2:].split("/"):
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, dict) and key in target:
                target = target[key]
            elif isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            else:
                raise _Unusable
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
    """Whether a list is of texts. Of others, the check would compare each with each to see that no two are the same."""
    return not isinstance(value, list) or all(isinstance(item, str) for item in value)


def text_of(result: mcp_types.CallToolResult) -> str:
    """What a tool returned, as text; of what is none, what it was. At most as long as what a command may print."""
    parts = [_part(part) for part in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return _bounded(parts)


def _bounded(parts: Iterable[str]) -> str:
    text = "\n".join(parts)
    if len(text) <= OUTPUT_BYTES:
        return text
    return f"{text[:OUTPUT_BYTES]}\n[{len(text) - OUTPUT_BYTES} more characters are left out]"


def _part(part: mcp_types.ContentBlock) -> str:
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
