"""The tools of every agent: the code around each call, and deepctl's own tools.

`grep` and `glob` match no pattern in this process, and `grep` shows no line of a file that the agent may not read. A
pattern of the model can take unlimited time. In this process, it would block the event loop for every user of an
application, and no time limit or signal could end it. So searches are processes: `find` and `grep` in workspaces with
files or commands. For a workspace in memory, `grep` receives the lines, and a child process matches the names.

The pattern of `grep` is always an extended regular expression: `grep -E` takes linear time, also for `(a+)+$`. Each
search has a limit of time and memory.

A file name can contain `:12:`, so that its line looks like a line of another file. In a `LocalBackend`, names end in
NUL; in other workspaces, every possible name of a line must be allowed.

The descriptions of the tools are deepctl's own, because they are part of every request. Libraries describe their tools
for agents in general, with features that do not exist here, in three times as many tokens. Names and types of
parameters stay those of the library, because it checks the calls.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import re
import subprocess
import sys
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from pydantic_ai import FunctionToolset, RunContext
from pydantic_ai.exceptions import ModelRetry, ToolFailed, UserError
from pydantic_ai.models import Model
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, ToolsetTool, WrapperToolset
from pydantic_ai.toolsets._instruction_collection import RELAYS, InstructionContribution
from pydantic_ai.workspaces import SupportsCommands, Workspace, WorkspaceError
from pydantic_ai_backends import (
    ConfinedWorkspace,
    PermissionAskError,
    PermissionDeniedError,
    WorkspacePathError,
    create_console_toolset,
)
from pydantic_ai_backends.capability import MUTATING_TOOLS
from pydantic_ai_backends.toolsets._workspace import WorkspaceOps
from pydantic_ai_backends.toolsets.console import GLOB_RESULT_LIMIT, GREP_LINE_WIDTH, GREP_RESULT_LIMIT
from wcmatch import glob as wcglob
from wcmatch._wcparse import PatternLimitException

from deepctl import layout
from deepctl.agent import delegation
from deepctl.agent.approvals import rule_paths
from deepctl.agent.backend import FileLine, LocalBackend, failure_in_words, files_of, own_path
from deepctl.agent.media_filter import recordable
from deepctl.domain.permissions import Permissions, about_file
from deepctl.redaction import redact
from deepctl.sandbox.policy import VARIABLES
from deepctl.store.records import COMMAND
from deepctl.unicode import whole, whole_value

UNLIMITED_RETRIES = 1_000_000
"""More than the requests of any turn: pydantic-ai ends a run at this limit, and has no value for unlimited."""

FAILURES = (
    OSError,
    MemoryError,
    RecursionError,
    ValueError,
    UserError,
    WorkspaceError,
    PermissionAskError,
    PermissionDeniedError,
)


CAPABILITY = "deepctl"
"""The id of the capability to which the agent's own tools belong."""


def failure_text(error: Exception, workspace: object) -> str:
    """The text about a failure for the model."""
    return failure_in_words(error, workspace) or type(error).__name__


@dataclass
class GuardedTools(WrapperToolset[Any]):
    """All tools of an agent: they run in the model's order, their failures are results, and no result contains a key.

    In parallel, a read overtook the write before it in tests. Without this class, a workspace error or a denial in a
    tool would end the run, and so would more retries than the tool allows; the limits of a run are its usage limits.
    Results and failures become valid text without the keys in `environment` before the model, the log, checkpoints and
    eviction to a file receive them. Commands do not get these keys. An unsandboxed command can still find them, for
    example in `/proc`.
    """

    environment: Mapping[str, str]
    disabled: frozenset[str] = frozenset()
    """Tools that are not offered."""
    shell: bool | None = True
    """Whether the command tool is offered, as in `runs_commands`."""

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """The tools without their limits of retries (mostly 1), because the number of requests limits the retries.

        A read-only workspace would refuse the tools that change files, and one without commands the command tool, so
        they are not offered.
        """
        hidden_tools = self.disabled | MUTATING_TOOLS if ctx.workspace.read_only else self.disabled
        if not runs_commands(ctx.workspace, self.shell):
            hidden_tools |= {COMMAND}
        tools = {
            name: _in_order(tool) for name, tool in (await super().get_tools(ctx)).items() if name not in hidden_tools
        }
        if (task := delegation.current()) is not None:
            return {name: tool for name, tool in tools.items() if task.offers(name)}
        return tools

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        try:
            result = await super().call_tool(name, tool_args, ctx, tool)
        except (ToolFailed, ModelRetry) as error:
            # A request for another call becomes a failure, because `TestModel` would repeat the call without end.
            raise ToolFailed(redact(whole(error.message), self.environment)) from error
        except FAILURES as error:
            raise ToolFailed(redact(whole(failure_text(error, ctx.workspace)), self.environment)) from error
        if isinstance(result, str):
            return redact(whole(result), self.environment)
        model = ctx.model
        return await recordable(whole_value(result), model) if isinstance(model, Model) else whole_value(result)


def _in_order(tool: ToolsetTool[Any]) -> ToolsetTool[Any]:
    """The same tool, run in the model's order and without a limit of retries."""
    if tool.tool_def.sequential and tool.max_retries == UNLIMITED_RETRIES:
        return tool
    return replace(tool, max_retries=UNLIMITED_RETRIES, tool_def=replace(tool.tool_def, sequential=True))


@dataclass
class FixedTools(WrapperToolset[Any]):
    """The agent's own tools: they stay the same, so they are prepared once and not in every step."""

    _ready: dict[str, ToolsetTool[Any]] | None = field(default=None, init=False)

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        if self._ready is None:
            self._ready = {name: _complete(tool) for name, tool in (await super().get_tools(ctx)).items()}
        return dict(self._ready)


def _complete(tool: ToolsetTool[Any]) -> ToolsetTool[Any]:
    """The tool with the values that would be added to it in every step."""
    toolset_id = tool.tool_def.toolset_id or tool.toolset.id
    definition = replace(
        described(tool.tool_def),
        sequential=True,
        toolset_id=toolset_id,
        # Only tools of a capability can report events, as `write_plan` does.
        capability_id=CAPABILITY,
        # pydantic-ai would remove it in every step, because a model is not told what these tools return.
        return_schema=None,
        include_return_schema=False,
    )
    return replace(tool, max_retries=UNLIMITED_RETRIES, tool_def=definition)


def one_by_one(toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
    """The same tools; toolsets of functions are called one after another.

    pydantic-ai starts a task for each, which takes longer than their work.
    """
    if type(toolset) is CombinedToolset:
        leaves: list[AbstractToolset[Any]] = []
        toolset.apply(leaves.append)
        parts = [one_by_one(part) for part in toolset.toolsets]
        is_local = all(isinstance(leaf, FunctionToolset | WrapperToolset) for leaf in leaves)
        return _OneByOne(parts) if is_local else CombinedToolset(parts)
    if not isinstance(toolset, WrapperToolset) or isinstance(toolset, FixedTools):
        return toolset
    return replace(toolset, wrapped=one_by_one(toolset.wrapped))


class _OneByOne(CombinedToolset[Any]):
    """Toolsets that are called one after another."""

    async def for_run(self, ctx: RunContext[Any]) -> AbstractToolset[Any]:
        return replace(self, toolsets=[await toolset.for_run(ctx) for toolset in self.toolsets])

    async def for_run_step(self, ctx: RunContext[Any]) -> AbstractToolset[Any]:
        toolsets = [await toolset.for_run_step(ctx) for toolset in self.toolsets]
        is_same = all(new is old for new, old in zip(toolsets, self.toolsets, strict=True))
        return self if is_same else replace(self, toolsets=toolsets)

    async def _collect_child_instruction_contributions(
        self, ctx: RunContext[Any]
    ) -> list[InstructionContribution[Any]]:
        if RELAYS.get() is not None:
            return await super()._collect_child_instruction_contributions(ctx)
        parts = [await toolset._collect_instruction_contributions(ctx) for toolset in self.toolsets]
        return [contribution for contributions in parts for contribution in contributions]

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        tools: dict[str, ToolsetTool[Any]] = {}
        for toolset in self.toolsets:
            # For one toolset, no task is started.
            new_tools = await CombinedToolset([toolset]).get_tools(ctx)
            if tools.keys() & new_tools.keys():
                return await super().get_tools(ctx)  # which raises the error of two tools of one name
            tools |= new_tools
        return tools


_PRIVATE = {"_collect_child_instruction_contributions", "_collect_instruction_contributions"}
if not vars(AbstractToolset).keys() >= _PRIVATE:
    raise ImportError("deepctl does not support how this version of pydantic-ai collects instructions")


def console_toolset(include_execute: bool, rules: Permissions) -> FunctionToolset[Any]:
    """The console tools of pydantic-ai-backend, with deepctl's `glob` and `grep`; `grep` obeys `rules` for reading.

    A tool that requests approval itself is delayed until after the other calls of the same answer. So these tools
    request none: `Approvals` does so inside the call.
    """
    toolset = create_console_toolset(include_execute=include_execute, require_execute_approval=False)
    _replace_glob(toolset)
    _replace_grep(toolset, rules)
    return toolset


_NUMBER = re.compile(r":\d+:")
_MAX_NAMES = 20
"""Maximum number of possible file names of one line; no file has a name with more `:NUMBER:` parts."""

_SECONDS = 120.0
_MEMORY = 2 << 30
_LIBRARIES = "LD_LIBRARY_PATH"
"""The variable that a Python with a shared library may need to start; no other variable is passed on."""

_BOUNDED = f'ulimit -t {int(_SECONDS)}; ulimit -v {_MEMORY // 1024}; exec "$@"'

_MATCH_NAMES = """
import json, re, sys
task = json.load(sys.stdin.buffer)
include, exclude = ([re.compile(pattern) for pattern in task[kind]] for kind in ("include", "exclude"))
places = []
for place, name in enumerate(task["names"]):
    if any(one.match(name) for one in include) and not any(one.match(name) for one in exclude):
        places.append(place)
sys.stdout.write(json.dumps(places))
"""


def _replace_grep(toolset: FunctionToolset[Any], permissions: Permissions) -> None:
    """Replace the console's `grep` by deepctl's own, with the same parameters and description."""
    original = toolset.tools.pop("grep")

    async def grep(
        ctx: RunContext[Any],
        pattern: str,
        path: str | None = None,
        glob_pattern: str | None = None,
        output_mode: Literal["content", "files_with_matches", "count"] = "files_with_matches",
        ignore_hidden: bool = True,
    ) -> str:
        try:
            lines = await _lines(ctx.workspace, pattern, path or ".", glob_pattern, ignore_hidden)
        except WorkspaceError as error:
            return f"Error: {error}"
        readable = await _readable(lines, ctx.workspace, permissions)
        if not readable:
            return f"No matches for {pattern!r}"
        if output_mode == "count":
            return f"Found {len(readable)} match(es) for {pattern!r}"
        if output_mode == "files_with_matches":
            return _listed(f"Files containing {pattern!r}:", sorted({line.path for line in readable}), "more files")
        texts = [f"{line.path}:{line.number}: {line.text[:GREP_LINE_WIDTH]}" for line in readable]
        return _listed(f"Matches for {pattern!r}:", texts, "more matches")

    grep.__doc__ = original.function.__doc__
    toolset.add_function(grep, name="grep", description=original.description)


def _replace_glob(toolset: FunctionToolset[Any]) -> None:
    """Replace the console's `glob` by deepctl's own, with the same parameters and description."""
    original = toolset.tools.pop("glob")
    by_commands = original.function

    async def glob(ctx: RunContext[Any], pattern: str, path: str = ".") -> str:
        workspace = ctx.workspace
        try:
            if isinstance(workspace, LocalBackend):
                paths = await workspace.glob(pattern, path)
            elif runs_commands(workspace, True):
                return str(await by_commands(ctx, pattern, path))
            else:
                paths = await _paths_in_memory(workspace, pattern, path)
        except WorkspaceError as error:
            return f"Error: {error}"
        if not paths:
            return f"No files matching '{pattern}' in {path}"
        return _listed(f"Found {len(paths)} file(s) matching '{pattern}':", paths, "more", GLOB_RESULT_LIMIT)

    glob.__doc__ = original.function.__doc__
    toolset.add_function(glob, name="glob", description=original.description)


def runs_commands(workspace: Workspace, shell: bool | None) -> bool:
    """Whether an agent can run commands in a workspace.

    `shell` is the application's choice. Without one, only a `LocalBackend` with a sandbox runs commands: for another
    workspace, it is unknown whether its commands reach the whole machine.
    """
    if shell is False or workspace.read_only or not isinstance(workspace.backend, SupportsCommands):
        return False
    return shell is True or isinstance(workspace, LocalBackend)


async def _lines(
    workspace: Workspace, pattern: str, where: str, names: str | None, ignore_hidden: bool
) -> list[FileLine]:
    """The matching lines, with `ignore_hidden` without those in hidden files. Raises `WorkspaceError`."""
    if isinstance(workspace, LocalBackend):
        lines = await workspace.grep(pattern, where, names, with_hidden=not ignore_hidden)
    elif runs_commands(workspace, True):
        lines = await _lines_by_command(workspace, pattern, where, names, ignore_hidden)
    else:
        return await _lines_in_memory(workspace, pattern, where, names, ignore_hidden)
    return [line for line in lines if not (ignore_hidden and _is_hidden(line.path, where))]


async def _lines_by_command(
    workspace: Workspace, pattern: str, where: str, names: str | None, ignore_hidden: bool
) -> list[FileLine]:
    """The lines that the `grep` of a workspace finds, from GNU or BSD."""
    if isinstance(workspace, ConfinedWorkspace) and not await workspace.contains(where):
        raise WorkspacePathError(f"{where!r} is outside the workspace")
    # GNU's `grep` compares the name with the first pattern, BSD's compares the path with the second.
    options = ["--exclude-dir=.[!./]*", "--exclude-dir=*/.[!.]*"] if ignore_hidden else []
    options += [f"--include={names}"] if names else []
    result = await workspace.run(["grep", "-rnHE", *options, "-e", pattern, "--", where], timeout=_SECONDS)
    if result.exit_code > 1 and not result.stdout:
        raise WorkspaceError(result.stderr.strip() or f"grep ended with {result.exit_code}")
    rows = (line.split(":", 2) for line in result.stdout.split("\n"))
    return [FileLine(parts[0], int(parts[1]), parts[2]) for parts in rows if len(parts) == 3 and parts[1].isdecimal()]


async def _lines_in_memory(
    workspace: Workspace, pattern: str, where: str, names: str | None, ignore_hidden: bool
) -> list[FileLine]:
    """The matching lines in a workspace without commands: its files are read here, and their lines sent to `grep`."""
    base = await workspace.resolve(where)
    try:
        is_file = not (await workspace.stat(base)).is_dir
    except OSError as error:
        raise WorkspaceError(str(error)) from error
    files = [base] if is_file else await WorkspaceOps(workspace)._files_under(base)
    if not is_file and ignore_hidden:
        files = [file for file in files if not _is_hidden(f"/{posixpath.relpath(file, base)}", "")]
    if names:
        places = await _matching([posixpath.basename(file) for file in files], names, wcglob.BRACE)
        files = [files[place] for place in places]
    lines: list[str] = []
    line_counts: list[tuple[str, int]] = []
    for file in files:
        try:
            text = (await workspace.read_bytes(file)).decode()
        except (OSError, UnicodeDecodeError):
            continue
        if text and "\0" not in text:
            new = text.removesuffix("\n").split("\n")
            line_counts.append((file, len(new)))
            lines += new
    if not lines:
        return []
    ends = list(accumulate(count for _, count in line_counts))
    matches: list[FileLine] = []
    for number in await _matching_lines(lines, pattern):
        place = bisect_right(ends, number)
        file, count = line_counts[place]
        matches.append(FileLine(file, number - ends[place] + count + 1, lines[number]))
    return matches


async def _matching_lines(lines: Sequence[str], pattern: str) -> list[int]:
    """The places of the lines that match an extended regular expression."""
    variables = {**VARIABLES, "HOME": "/", "LC_ALL": VARIABLES["LANG"]}
    process = await _start(["/bin/sh", "-c", _BOUNDED, "sh", "grep", "-anE", "-e", pattern], variables)
    output = await _answer(process, "".join(f"{line}\n" for line in lines).encode(), exit_codes=(0, 1))
    # No line contains a newline, so neither does a printed line.
    return [int(line.partition(b":")[0]) - 1 for line in output.split(b"\n") if line]


async def _paths_in_memory(workspace: Workspace, pattern: str, where: str) -> list[str]:
    """The files below `where` that match `pattern` at any depth, sorted."""
    base = await workspace.resolve("." if where.strip() in ("", "/", ".") else where)
    files = await WorkspaceOps(workspace)._files_under(base)
    names = [posixpath.relpath(file, base) for file in files]
    places = await _matching(names, f"**/{pattern.removeprefix('**/')}", wcglob.GLOBSTAR)
    return sorted(files[place] for place in places)


async def _matching(names: Sequence[str], pattern: str, flags: int) -> list[int]:
    """The places of the names that match a glob."""
    try:
        include, exclude = wcglob.translate(pattern, flags=flags)
    except PatternLimitException as error:
        raise WorkspaceError(str(error)) from error
    process = await _start(
        ["/bin/sh", "-c", _BOUNDED, "sh", sys.executable, "-I", "-S", "-c", _MATCH_NAMES],
        {_LIBRARIES: os.environ[_LIBRARIES]} if _LIBRARIES in os.environ else {},
    )
    task = {"include": include, "exclude": exclude, "names": list(names)}
    places: list[int] = json.loads(await _answer(process, json.dumps(task).encode()))
    return places


async def _start(words: Sequence[str], variables: dict[str, str]) -> asyncio.subprocess.Process:
    # In its own process session, so that Ctrl-C does not reach it directly; deepctl ends it.
    return await asyncio.create_subprocess_exec(
        *words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        cwd="/",
        start_new_session=True,
    )


async def _answer(process: asyncio.subprocess.Process, data: bytes, exit_codes: Sequence[int] = (0,)) -> bytes:
    """The output of a search process that receives `data`; the process has ended when this returns or raises."""
    try:
        async with asyncio.timeout(_SECONDS):
            output, errors = await process.communicate(data)
    except TimeoutError:
        raise WorkspaceError(f"the search took longer than {_SECONDS:g} s and was ended") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 2 and errors.startswith(b"grep: "):
        raise WorkspaceError(
            f"Invalid regex pattern: {errors.decode('utf-8', 'replace').removeprefix('grep: ').strip()}"
        )
    if process.returncode not in exit_codes:
        raise WorkspaceError("the system ended the search: it took too long, or too much memory")
    return output


def _is_hidden(path: str, where: str) -> bool:
    """Whether a part of a path below the searched place begins with a dot."""
    below = path[len(where) :] if path.startswith(where) else path
    return any(part.startswith(".") and part not in (".", "..") for part in below.split("/"))


async def _readable(lines: list[FileLine], workspace: Workspace, permissions: Permissions) -> list[FileLine]:
    """The lines of files that the agent may read without approval."""
    if "read" not in permissions:
        return lines
    readable: dict[str, bool] = {}
    for line in lines:
        for name in _names(line, workspace):
            if name not in readable:
                verdict = about_file(permissions, "read", await rule_paths(workspace, name))
                readable[name] = verdict.action == "allow"
    return [line for line in lines if all(readable[name] for name in _names(line, workspace))]


def _names(line: FileLine, workspace: Workspace) -> Iterator[str]:
    """The possible names of a line's file."""
    yield line.path
    if not isinstance(workspace, LocalBackend):
        whole = f"{line.path}:{line.number}:{line.text}"
        for match in list(_NUMBER.finditer(whole, len(line.path) + 1))[:_MAX_NAMES]:
            yield whole[: match.start()]


def _listed(heading: str, items: list[str], noun: str, limit: int = GREP_RESULT_LIMIT) -> str:
    lines = [heading, *(f"  {item}" for item in items[:limit])]
    if len(items) > limit:
        lines.append(f"  ... and {len(items) - limit} {noun}")
    return "\n".join(lines)


_MAX_SLUG = 50


def _slug(title: str) -> str:
    """`title` as a file name: ASCII letters, digits and dashes, at most 50 characters."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower())[:_MAX_SLUG].strip("-") or "plan"


def plans_toolset() -> FunctionToolset[Any]:
    """The toolset with `save_plan`: plans as Markdown files, `plans/<slug>-<uuid>.md`."""
    toolset: FunctionToolset[Any] = FunctionToolset(id="plans")

    @toolset.tool
    async def save_plan(ctx: RunContext[Any], title: str, content: str) -> str:
        """Save a plan for the user as a Markdown file, to be read and followed later.

        Args:
            ctx: The run context.
            title: What the plan is for, in a few words.
            content: The plan as Markdown, without the title.
        """
        path = posixpath.join(layout.PLANS_DIRECTORY, f"{_slug(title)}-{uuid.uuid4()}.md")
        heading = " ".join(title.split())
        await files_of(ctx.workspace).write_bytes(path, f"# {heading}\n\n{content.rstrip()}\n".encode())
        return f"Saved the plan as {own_path(ctx.workspace, path)}"

    return toolset


def has_succeeded(tool: str, content: str, outcome: str = "success") -> bool:
    """Whether a tool call succeeded.

    The console tools of pydantic-ai-backend report their last failure, and a command's exit code, as text.
    """
    if outcome != "success":
        return False
    return not content.startswith("Command failed (exit code " if tool == "execute" else "Error: ")


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
