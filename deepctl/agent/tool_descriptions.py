"""The descriptions of the agent's tools, which are part of every request.

Libraries describe their tools for agents in general, with features that do not exist here, in three times as many
tokens. Names and types of parameters stay those of the library, because it checks the calls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic_ai.tools import ToolDefinition

_Parameters = dict[str, str]

DESCRIPTIONS: dict[str, tuple[str, _Parameters]] = {
    "ls": ("List a directory, with the sizes of files. Use `glob` to look deeper.", {}),
    "read_file": (
        "Read a text file, with line numbers. Read a file before you edit it.",
        {"offset": "lines to skip", "limit": "most lines"},
    ),
    "write_file": (
        "Create a file with its directories, or replace all of its content. For a change, use `edit_file`.",
        {},
    ),
    "edit_file": (
        "Replace text in a file that you have read. `old_string` must be exact and occur once, unless `replace_all`. "
        "If the file has changed since, read it again.",
        {},
    ),
    "execute": (
        "Run a command in the shell, without input. For reading, writing and searching files, use the file tools. "
        "Redirect long output to a file. The result has stdout, then stderr.",
        {"timeout": "seconds until it is ended"},
    ),
    "glob": ("Find files below a directory, at any depth, whose path matches a pattern, such as `*.py`.", {}),
    "grep": (
        "Search the lines of files for an extended regular expression (as `grep -E`), case-sensitively. At most 50 "
        "results.",
        {"glob_pattern": "only files with such names, e.g. `*.py`"},
    ),
    "save_checkpoint": (
        "Save the conversation and the workspace before something risky, for `rewind_to`.",
        {"label": "letters, digits, dashes, dots"},
    ),
    "list_checkpoints": ("List the checkpoints, oldest first.", {}),
    "rewind_to": (
        "Undo what you did since a checkpoint, in files, memory and conversation. Your work ends here; then you get "
        "the request of the user again.",
        {"checkpoint": "id or label", "reason": "what to do differently; you remember nothing else of it"},
    ),
    "save_plan": (
        "Save a plan for the user as a Markdown file.",
        {"content": "Markdown without the title"},
    ),
    "write_plan": (
        "Write your to-do list. Always give the whole list in its order, with the finished and unchanged steps.",
        {},
    ),
    "read_tool_result": (
        "Read lines of a tool result that was cut.",
        {
            "handle": "as the cut result names it",
            "offset": "lines to skip",
            "from_end": "count from the end",
            "pattern": "only lines with this text",
        },
    ),
    "write_memory": (
        "Append to a memory file, or create it. With `old_text`, replace that text; an empty `content` removes it.",
        {"old_text": "must occur exactly once"},
    ),
    "read_memory": ("Read a memory file.", {}),
    "delete_memory": ("Delete a memory file other than MEMORY.md.", {}),
    "search_memory": ("Search the names and texts of the memory files for words.", {}),
}
"""For each tool its description, and the descriptions of the parameters whose names do not say enough."""

_STATUSES = ["pending", "in_progress", "completed", "cancelled"]
_STEPS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "content": {"type": "string"},
            "status": {"type": "string", "enum": _STATUSES, "default": _STATUSES[0]},
        },
        "required": ["content"],
    },
}
"""The steps of `write_plan`. The library's own schema also has ids and subtasks, which only tools use that are left
out here."""


def described(definition: ToolDefinition) -> ToolDefinition:
    """The definition with its description here; that of an unknown tool is unchanged."""
    if definition.name not in DESCRIPTIONS:
        return definition
    description, parameters = DESCRIPTIONS[definition.name]
    schema = definition.parameters_json_schema
    properties = {name: _described(value, parameters.get(name)) for name, value in schema.get("properties", {}).items()}
    if definition.name == "write_plan":
        properties["items"] = _STEPS
    schema = {key: value for key, value in schema.items() if key != "$defs"} | {"properties": properties}
    return replace(definition, description=description, parameters_json_schema=schema)


def _described(schema: dict[str, Any], text: str | None) -> dict[str, Any]:
    fields = {key: value for key, value in schema.items() if key != "description"}
    return fields if text is None else {**fields, "description": text}
