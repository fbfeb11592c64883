"""The work of tools, for a person who watches the turn: the changes of files, and the output of a running command.

Only a display of a terminal asks for these events (`Options.shows_work`). Without it, nothing is read or compared.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability, CapabilityOrdering, WrapToolExecuteHandler
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai_backends import StateBackend

from deepctl.agent.interruption import Emit
from deepctl.agent.sandboxes import heard_by
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.redaction import redact
from deepctl.store.records import COMMAND

MAX_COMPARED = 1 << 20
"""Bytes of the largest content that is shown as a difference."""
_BINARY_PEEK = 8000
_SECONDS = 0.05
"""The time between two events about the output of a command."""
_MAX_PARTIAL = 4096
"""Characters of an incomplete line that are passed on."""
_MEMORY_TOOLS = frozenset({"delete_memory", "write_memory"})
_SHOWN_TOOLS = frozenset({"edit_file", "save_plan", "write_file"}) | _MEMORY_TOOLS
"""Tools whose changes are shown. `write_plan` also writes a file, but its list is shown."""


class FileContent(NamedTuple):
    """The content of a file: `raw` is `None` without a file, and empty if the content is too large to be shown."""

    raw: bytes | None
    is_large: bool = False


TellChange = Callable[[str, FileContent, FileContent], None]
"""Receives the path of a file as its tool knows it, and its content before and after."""

CHANGE_LISTENER: ContextVar[TellChange | None] = ContextVar("deepctl_change_listener", default=None)
"""The receiver of changes in this context, if there is one."""


@contextmanager
def changes_told_to(tell: TellChange) -> Iterator[None]:
    """Inside this context, `tell` receives each change of a file by a method of a workspace."""
    token = CHANGE_LISTENER.set(tell)
    try:
        yield
    finally:
        CHANGE_LISTENER.reset(token)


def bounded(raw: bytes) -> FileContent:
    """The content of a file in memory, without its text if it is too large to compare."""
    return FileContent(raw) if len(raw) <= MAX_COMPARED else FileContent(b"", is_large=True)


def present_content(tree: DirectoryTree, path: str) -> FileContent:
    """The content of the file `path`; without one that can be read, that of no file."""
    try:
        if (tree.entry(path).size or 0) > MAX_COMPARED:
            return FileContent(b"", is_large=True)
        return bounded(tree.read(path))
    except OSError:
        return FileContent(None)


class ReportingState(StateBackend):
    """A state in memory that reports its changes."""

    def write_bytes(self, path: str, data: bytes) -> None:
        tell = CHANGE_LISTENER.get()
        before = bounded(self.read_bytes(path)) if tell is not None and self.is_file(path) else FileContent(None)
        super().write_bytes(path, data)
        if tell is not None:
            tell(path.lstrip("/"), before, bounded(data))


@dataclass
class WorkEvents(AbstractCapability[Any]):
    """Emits the events `change`, `command` (one starts) and `output` of tools. API keys in `environment` are removed
    from outputs.
    """

    emit: Emit
    environment: Mapping[str, str]

    def get_ordering(self) -> CapabilityOrdering:
        """Closest to the tool: an approval request is no work of the tool."""
        return CapabilityOrdering(position="innermost")

    async def before_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        """Reached only if the command is not refused."""
        if call.tool_name == COMMAND:
            self.emit({"type": "command", "id": call.tool_call_id})
        return args

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Any],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: WrapToolExecuteHandler,
    ) -> Any:
        if call.tool_name == COMMAND:
            output = _RunningOutput(call.tool_call_id, self.emit, self.environment)
            try:
                with heard_by(output.add):
                    return await handler(args)
            finally:
                output.flush()
        if call.tool_name in _SHOWN_TOOLS:
            with changes_told_to(partial(self._changed, call)):
                return await handler(args)
        return await handler(args)

    def _changed(self, call: ToolCallPart, path: str, before: FileContent, after: FileContent) -> None:
        if call.tool_name in _MEMORY_TOOLS and not path.endswith(".md"):
            return  # the receipts of the memory store
        event = {"type": "change", "id": call.tool_call_id, "path": path, "remark": "", "before": None, "after": None}
        contents = (before, after)
        if any(content.is_large for content in contents):
            event["remark"] = "too large to compare"
        elif any(content.raw is not None and b"\0" in content.raw[:_BINARY_PEEK] for content in contents):
            event["remark"] = "binary"
        for key, content in (("before", before), ("after", after)):
            if content.raw is not None:
                event[key] = "" if event["remark"] else content.raw.decode("utf-8", "replace")
        self.emit(event)


class _RunningOutput:
    """The output of a running command, in lines. A carriage return starts a line again, as at a terminal.

    Events are emitted some times a second: a command may print thousands of lines in that time, one by one.
    """

    def __init__(self, call_id: str, emit: Emit, environment: Mapping[str, str]) -> None:
        self._call_id = call_id
        self._emit = emit
        self._environment = environment
        self._decoders = tuple(codecs.getincrementaldecoder("utf-8")(errors="replace") for _ in range(2))
        self._new: list[str] = []
        self._partial = ""
        self._next: asyncio.TimerHandle | None = None

    def add(self, out: bytes, err: bytes) -> None:
        """Take new output, in the event loop of the command."""
        self._new += [decoder.decode(piece) for decoder, piece in zip(self._decoders, (out, err), strict=True)]
        if self._next is None:
            self._next = asyncio.get_running_loop().call_later(_SECONDS, self.flush)

    def flush(self) -> None:
        """Emit the lines that are complete now, and the present form of the last one."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        text = "".join(self._new)
        self._new.clear()
        if not text:
            return
        *lines, partial_line = (self._partial + text).split("\n")
        self._partial = _last_form(partial_line)[-_MAX_PARTIAL:]
        complete = "".join(f"{_last_form(line.removesuffix(chr(13)))}\n" for line in lines)
        self._emit(
            {
                "type": "output",
                "id": self._call_id,
                # Whole lines, because half a key would not be recognised.
                "lines": redact(complete, self._environment),
                "partial": redact(self._partial.removesuffix("\r"), self._environment),
            }
        )


def _last_form(line: str) -> str:
    """The part of a line behind its last carriage return. One at the end may belong to the end of the line."""
    start = line.rfind("\r", 0, len(line) - 1) + 1
    return line[start:]
