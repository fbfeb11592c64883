"""The names of the agent's own tools, for the settings `tools` and `disabled_tools`."""

from __future__ import annotations

from collections.abc import Iterable

from deepctl.errors import BadSetting

LEAN = (
    *("ls", "read_file", "write_file", "edit_file", "glob", "grep", "execute"),
    *("read_memory", "write_memory", "search_memory", "delete_memory"),
)
"""The tools with `tools = "lean"`."""
ALL = (
    *LEAN,
    *("save_plan", "write_plan", "read_tool_result", "save_checkpoint", "list_checkpoints", "rewind_to"),
)
OF_SERVER = "__"
"""Separates the name of an MCP server from the name of its tool."""


def unknown(names: Iterable[str]) -> str | None:
    """The first name of no tool. Names of tools of MCP servers are not checked."""
    return next((name for name in names if name not in ALL and OF_SERVER not in name), None)


def hint(name: str) -> str:
    """The names that an unknown name could be."""
    from difflib import get_close_matches

    near = get_close_matches(name, ALL, 3, 0.6)
    names = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Tools are: {', '.join(sorted(ALL))}."
    return f"{names} Tools of MCP servers are called SERVER{OF_SERVER}TOOL."


def disabled(tools: str, names: Iterable[str]) -> frozenset[str]:
    """The tools that an agent does not have, with the settings `tools` and `disabled_tools`.

    Raises `BadSetting` for an unknown name, with the most similar ones, and for another value of `tools`.
    """
    if tools not in ("full", "lean"):
        raise BadSetting(f"tools cannot be {tools!r}.", "It must be full or lean.")
    names = (names,) if isinstance(names, str) else tuple(names)
    if (name := unknown(names)) is not None:
        raise BadSetting(f"There is no tool {name!r}.", hint(name))
    return frozenset(names) | (frozenset(ALL) - frozenset(LEAN) if tools == "lean" else frozenset())
