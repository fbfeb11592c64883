"""The `grep` and `glob` tools, which match no pattern in this process.

`grep` shows no line of a file that may not be read without a question.

pydantic-ai-backend's takes a name apart from its line at colons, so that a name with `:12:` in it passes for another's.
Where the workspace is a `LocalBackend`, names end in NUL here; elsewhere every reading of a name has to be allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic_ai import FunctionToolset, RunContext
from pydantic_ai.workspaces import Workspace, WorkspaceError
from pydantic_ai_backends.toolsets._workspace import WorkspaceOps
from pydantic_ai_backends.toolsets.console import GLOB_RESULT_LIMIT, GREP_LINE_WIDTH, GREP_RESULT_LIMIT

from deepctl.agent import pattern_matching
from deepctl.agent.approvals import may_be_read, spellings
from deepctl.agent.backend import Line, LocalBackend
from deepctl.domain.permissions import Permissions

_NUMBER = re.compile(r":\d+:")
_MAX_NAMES = 20
"""Readings of one line that are looked at; a longer name than that is not one of a file."""


def replace_grep(toolset: FunctionToolset[Any], permissions: Permissions) -> None:
    """Put `grep` in the place of the console's, with the same parameters and description."""
    described = toolset.tools.pop("grep")

    async def grep(
        ctx: RunContext[Any],
        pattern: str,
        path: str | None = None,
        glob_pattern: str | None = None,
        output_mode: Literal["content", "files_with_matches", "count"] = "files_with_matches",
        ignore_hidden: bool = True,
    ) -> str:
        try:
            lines = await _lines(ctx.workspace, pattern, path, glob_pattern, ignore_hidden)
        except WorkspaceError as error:
            return f"Error: {error}"
        shown = await _readable(lines, ctx.workspace, permissions)
        if not shown:
            return f"No matches for {pattern!r}"
        if output_mode == "count":
            return f"Found {len(shown)} match(es) for {pattern!r}"
        if output_mode == "files_with_matches":
            return _listed(f"Files containing {pattern!r}:", sorted({line.path for line in shown}), "more files")
        texts = [f"{line.path}:{line.number}: {line.text[:GREP_LINE_WIDTH]}" for line in shown]
        return _listed(f"Matches for {pattern!r}:", texts, "more matches")

    grep.__doc__ = described.function.__doc__
    toolset.add_function(grep, name="grep", description=described.description)


def replace_glob(toolset: FunctionToolset[Any]) -> None:
    """Put `glob` in the place of the console's, with the same parameters and description."""
    described = toolset.tools.pop("glob")
    by_commands = described.function

    async def glob(ctx: RunContext[Any], pattern: str, path: str = ".") -> str:
        if pattern_matching.runs_commands(ctx.workspace):
            return str(await by_commands(ctx, pattern, path))
        try:
            found = await pattern_matching.paths(ctx.workspace, pattern, path)
        except WorkspaceError as error:
            return f"Error: {error}"
        if not found:
            return f"No files matching '{pattern}' in {path}"
        return _listed(f"Found {len(found)} file(s) matching '{pattern}':", found, "more", GLOB_RESULT_LIMIT)

    glob.__doc__ = described.function.__doc__
    toolset.add_function(glob, name="glob", description=described.description)


async def _lines(
    workspace: Workspace, pattern: str, path: str | None, names: str | None, ignore_hidden: bool
) -> list[Line]:
    """The lines that match, but for those in hidden files where they are to be ignored."""
    where = path or "."
    if isinstance(workspace, LocalBackend):
        lines = await workspace.grep(pattern, where, names, hidden=not ignore_hidden)
        return [line for line in lines if not (ignore_hidden and _is_hidden(line.path, where))]
    if not pattern_matching.runs_commands(workspace):
        return await pattern_matching.lines(workspace, pattern, where, names, hidden=not ignore_hidden)
    found = await WorkspaceOps(workspace).grep_raw(pattern, path, names, ignore_hidden)
    if isinstance(found, str):
        raise WorkspaceError(found.removeprefix("Error: "))
    return [Line(match["path"], match["line_number"], match["line"]) for match in found]


def _is_hidden(path: str, where: str) -> bool:
    """Whether a part of a path below the place that is searched begins with a dot."""
    below = path[len(where) :] if path.startswith(where) else path
    return any(part.startswith(".") and part not in (".", "..") for part in below.split("/"))


async def _readable(lines: list[Line], workspace: Workspace, permissions: Permissions) -> list[Line]:
    """The lines of files that may be read without a question."""
    if "read" not in permissions:
        return lines
    readable: dict[str, bool] = {}
    for line in lines:
        for name in _names(line, workspace):
            if name not in readable:
                readable[name] = may_be_read(permissions, await spellings(workspace, name)) == "allow"
    return [line for line in lines if all(readable[name] for name in _names(line, workspace))]


def _names(line: Line, workspace: Workspace) -> Iterator[str]:
    """What the name of a line's file may be."""
    yield line.path
    if not isinstance(workspace, LocalBackend):
        whole = f"{line.path}:{line.number}:{line.text}"
        for match in list(_NUMBER.finditer(whole, len(line.path) + 1))[:_MAX_NAMES]:
            yield whole[: match.start()]


def _listed(heading: str, items: list[str], rest: str, limit: int = GREP_RESULT_LIMIT) -> str:
    lines = [heading, *(f"  {item}" for item in items[:limit])]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} {rest}")
    return "\n".join(lines)
