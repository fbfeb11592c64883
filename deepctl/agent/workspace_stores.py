"""Where the harness' capabilities keep their state: in the workspace, so that it is rewound with everything else.

All of these reach the workspace through a view that follows no links.
"""

from __future__ import annotations

import json
import posixpath
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any

from pydantic_ai import FunctionToolset
from pydantic_ai.exceptions import ToolFailed, UserError
from pydantic_ai.tools import RunContext
from pydantic_ai.workspaces import Workspace, WorkspaceBackend, WorkspaceError, WorkspaceRef, WrapperWorkspace
from pydantic_ai_backends import StateBackend
from pydantic_ai_backends.workspaces import StateWorkspaceBackend
from pydantic_ai_harness.memory import FileStore, MemorySearchMatch, MemorySearchResult
from pydantic_ai_harness.planning import InMemoryPlanStore, PlanItem
from pydantic_ai_harness.repo_context import RepoContext
from pydantic_ai_harness.tool_output_limits import WorkspaceStore

from deepctl import layout, notebook_text
from deepctl.agent.backend import LocalBackend
from deepctl.store import todo
from deepctl.unicode import folded, spans

STATE_PROVIDER = "state"
"""What pydantic-ai-backend calls workspaces that are a `StateBackend`."""

_MAX_CONTEXT_BYTES = 256 * 1024
_TAG = re.compile(r"<(?=\s*/?\s*\w)")
_BLOCK = re.compile(r"<(?=\s*/?\s*(context-file|context|memory|plan-reminder|stdin|system)\b)", re.IGNORECASE)
_MAX_SLUG = 50
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def workspace_of(backend: object) -> Workspace:
    """What tools see of a backend. Takes a `LocalBackend`, a `StateBackend` or any workspace backend."""
    if isinstance(backend, Workspace):
        return backend
    if isinstance(backend, StateBackend):
        reference = WorkspaceRef(provider=STATE_PROVIDER, id=STATE_PROVIDER)
        return Workspace(StateWorkspaceBackend({reference.id: backend}, ref=reference))
    if isinstance(backend, WorkspaceBackend):
        return Workspace(backend)
    raise UserError(f"{type(backend).__name__} is not a backend an agent can work in.")


def files_of(workspace: Workspace) -> Workspace:
    """The same place as deepctl's own stores see it: files only, and no links where there can be any."""
    return Workspace(workspace.files) if isinstance(workspace, LocalBackend) else workspace


def memory_store(ctx: RunContext[Any]) -> FileStore:
    """The Markdown notebooks below `.deep/memory`."""
    return _MemoryStore(layout.MEMORY_DIRECTORY, workspace=_Notebooks(files_of(ctx.workspace)))


class _MemoryStore(FileStore):
    """Searches as `memory search` does: text is compared as `deepctl.unicode.folded`, the harness' by `lower()`."""

    async def search(
        self, prefix: str, query: str, *, limit: int, max_files: int, max_chars: int, max_file_chars: int
    ) -> MemorySearchResult:
        words = [folded(word) for word in query.split()]
        # Those in a directory below it belong to others.
        paths = await self._list_paths(prefix, limit=max_files + 1, nested=False)
        truncated = len(paths) > max_files
        hits: list[tuple[float, str, str]] = []
        for path in paths[:max_files]:
            try:
                notebook = await self.read(path, max_chars=max_file_chars)
            except ValueError:
                continue  # it leads out of the directory
            if notebook is None:
                truncated = True
                continue
            truncated = truncated or notebook.truncated
            text, name = folded(notebook.content), folded(path.removeprefix(prefix))
            count = sum(text.count(word) + 2 * name.count(word) for word in words)
            if count:
                hits.append((float(count), path, notebook.content))
        hits.sort(key=lambda hit: (-hit[0], hit[1]))
        matches: list[MemorySearchMatch] = []
        room = max_chars
        for score, path, content in hits[:limit]:
            room -= len(path.removeprefix(prefix))
            if room <= 0:
                break
            matches.append(MemorySearchMatch(path, _around(content, words, room), score))
            room -= len(matches[-1].snippet)
        return MemorySearchResult(matches, len(paths[:max_files]), truncated or len(matches) < len(hits))


def _around(content: str, words: list[str], room: int) -> str:
    """Up to `room` characters of a notebook, with the first that was searched for."""
    first = next((start for start, _ in spans(content, words)), 0)
    start = max(0, min(first - room // 3, len(content) - room))
    snippet = content[start : start + room]
    if room > 6:
        snippet = f"...{snippet[3:]}" if start else snippet
        snippet = f"{snippet[:-3]}..." if start + room < len(content) else snippet
    return snippet


class _Notebooks(WrapperWorkspace):
    """Reads and writes notebooks as text, even those that are not UTF-8."""

    async def read_text(self, path: str, *, encoding: str = "utf-8") -> str:
        return notebook_text.as_text(await self.read_bytes(path))

    async def write_text(self, path: str, content: str, *, encoding: str = "utf-8") -> None:
        try:
            before = await self.read_bytes(path)
        except OSError:
            before = b""  # there is none yet, or writing says what is in its place
        await self.write_bytes(path, notebook_text.as_bytes(content, before))


class TodoStore(InMemoryPlanStore):
    """The to-do list of a session, or of a workspace without any: read before and written after every change.

    A file that is not such a list reads as an empty one, so that it does not keep the agent from answering, and is
    never overwritten: a change to it is a failure the model is told of.
    """

    def __init__(self, workspace: Workspace, session: str | None = None) -> None:
        super().__init__()
        self._workspace = workspace
        self._path = layout.todo_file(session) if session is not None else layout.TODO_FILE

    async def _load(self, *, to_change: bool = True) -> None:
        self._items = []
        try:
            if ((await self._workspace.stat(self._path)).size or 0) > todo.MAX_BYTES:
                raise ValueError("it is too large")
            items = todo.parsed(await self._workspace.read_bytes(self._path))
            self._items = [PlanItem.model_validate(item) for item in items]
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if to_change:
                raise ToolFailed(f"{self._path} is not a to-do list: {error}. Repair or remove it.") from None

    async def _save(self) -> None:
        document = {"version": todo.FORMAT, "items": [item.model_dump(mode="json") for item in self._items]}
        await self._workspace.write_bytes(self._path, json.dumps(document, indent=1).encode() + b"\n")

    async def get_items(self) -> list[PlanItem]:
        await self._load(to_change=False)
        items = await super().get_items()
        # They are shown to the model in a block, which they cannot end.
        return [item.model_copy(update={"content": _TAG.sub("&lt;", item.content)}) for item in items]

    async def get_item(self, item_id: str) -> PlanItem | None:
        await self._load(to_change=False)
        return await super().get_item(item_id)

    async def set_items(self, items: list[PlanItem]) -> None:
        await self._load()
        await super().set_items(items)
        await self._save()

    async def add_item(self, item: PlanItem) -> PlanItem:
        await self._load()
        new_item = await super().add_item(item)
        await self._save()
        return new_item

    async def update_item(self, item_id: str, **changes: Any) -> PlanItem | None:
        await self._load()
        updated = await super().update_item(item_id, **changes)
        await self._save()
        return updated

    async def remove_item(self, item_id: str) -> bool:
        await self._load()
        is_removed = await super().remove_item(item_id)
        await self._save()
        return is_removed


@dataclass
class EvictedResults(WorkspaceStore):
    """Tool results too large for the context, as `large_tool_results/<call_id>`."""

    async def write(self, workspace: Workspace, key: str, data: bytes) -> str:
        files = files_of(workspace)
        # The key is `<run>/<call id>.<retry>` with `.content` behind it for a result's second half.
        call, _, number_part = key.rpartition("/")[2].rpartition(".")
        name = _UNSAFE.sub("_", call if number_part.isdigit() else key.rpartition("/")[2]).lstrip(".") or "result"
        path = posixpath.join(layout.EVICTED_DIRECTORY, name)
        number = 2
        while await files.exists(path):
            # Some providers count their call ids anew in every answer.
            path = posixpath.join(layout.EVICTED_DIRECTORY, f"{name}-{number}")
            number += 1
        await files.write_bytes(path, data)
        return path

    async def read(self, workspace: Workspace, handle: str) -> bytes:
        directory, name = posixpath.split(posixpath.normpath(handle))
        if posixpath.basename(directory) != layout.EVICTED_DIRECTORY or not name:
            raise PermissionError(f"{handle!r} is no evicted result")
        return await files_of(workspace).read_bytes(posixpath.join(layout.EVICTED_DIRECTORY, name))


@dataclass
class ContextFiles(RepoContext[Any]):
    """`AGENTS.md` and `DEEP.md` of the workspace as instructions.

    What is not a regular file, or is larger than 256 KiB, is left out: a planted link, FIFO or giant must not
    keep the agent from starting.
    """

    @property
    def has_on_event(self) -> bool:
        """No: it listens for directories that tools look into, which is switched off. With a listener, every run would
        have to stream, and models that cannot (`TestModel`, a `FunctionModel` of an application's tests) would fail.
        """
        return False

    async def before_run(self, ctx: RunContext[Any]) -> None:
        files = files_of(ctx.workspace)
        usable = []
        for name in layout.CONTEXT_FILES:
            try:
                entry = await files.stat(name)
            except OSError:
                continue
            if entry.size is not None and entry.size <= _MAX_CONTEXT_BYTES:
                usable.append(name)
        self.filenames = usable
        try:
            await super().before_run(replace(ctx, workspace=files))
        except (OSError, WorkspaceError):
            pass  # somebody is swapping it: none this time
        # The harness sees to it that a file does not end its block; nor can it begin another.
        self._context_files = [
            replace(file, content=_BLOCK.sub("&lt;", file.content)) for file in self._context_files or []
        ]


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
        return f"Saved the plan as {path}"

    return toolset
