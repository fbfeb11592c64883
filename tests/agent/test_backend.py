"""Tools that fail tell the model why, and not where on this machine its workspace is."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, RetryPromptPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.workspaces import WorkspaceError

from deepctl import DeepAgentDeps, FileCheckpointStore, LocalBackend, NoSandbox, create_deep_agent
from deepctl.agent.backend import text_for_model
from deepctl.errors import Damaged
from deepctl.files.paths_beneath import DirectoryTree, MountTable

_CODES = (
    errno.EACCES,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOENT,
    errno.EROFS,
)
_FILE_TOOLS = {"ls", "read_file", "write_file", "edit_file", "glob", "grep", "execute", "save_plan", "write_memory"}
_VALUES = {"boolean": False, "integer": 1, "number": 1.0, "array": [], "object": {}}
_PYTHON = re.compile(r"\b[A-Z]\w+\(|<\w[\w.]* object")


async def _every_tool(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """A model that calls every tool once, with whatever its parameters take, and has no more to say."""
    if len(messages) > 1:
        yield "done"
        return
    for number, tool in enumerate(info.function_tools):
        parameters = tool.parameters_json_schema
        arguments = {
            name: _VALUES.get(parameters["properties"][name].get("type", "string"), "a.txt")
            for name in parameters.get("required", [])
        }
        yield {number: DeltaToolCall(tool.name, json.dumps(arguments), tool_call_id=f"c{number}")}


def _results(backend: LocalBackend, **deps: Any) -> dict[str, str]:
    agent = create_deep_agent(FunctionModel(stream_function=_every_tool), include_execute=True, approve="auto")
    messages = anyio.run(lambda: agent.run("go", deps=DeepAgentDeps(backend=backend, **deps))).all_messages()
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return {
        str(part.tool_name): part.model_response_str() if isinstance(part, ToolReturnPart) else part.model_response()
        for part in parts
        if isinstance(part, ToolReturnPart | RetryPromptPart)
    }


@pytest.mark.parametrize("code", _CODES, ids=errno.errorcode.get)
def test_no_tool_says_where_the_workspace_is_however_the_file_system_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    root = tmp_path / "profile" / "workspace"
    backend = LocalBackend(root, sandbox=NoSandbox())
    (root / "a.txt").write_text("a.txt")

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), root)  # a `Path`, as `open_process` is given it

    @contextmanager
    def fails_on_the_way(*_: Any, **__: Any) -> Iterator[Any]:
        yield fails()

    monkeypatch.setattr(DirectoryTree, "_place", fails_on_the_way)
    monkeypatch.setattr(anyio, "open_process", fails)
    results = _results(backend)
    assert results.keys() >= _FILE_TOOLS
    for tool, said in results.items():
        assert str(tmp_path) not in said, (tool, said)
        assert not _PYTHON.search(said), (tool, said)
    assert os.strerror(code) in results["execute"]
    assert os.strerror(code) in results["save_plan"]
    assert "/workspace" in results["save_plan"]


def test_a_workspace_that_is_gone_is_not_named_by_its_place_on_this_machine(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "workspace", sandbox=NoSandbox())
    (tmp_path / "workspace").rmdir()
    operations: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: backend.read_bytes("a.txt"),
        lambda: backend.run("ls", shell=True),
        lambda: backend.grep("x", ".", None, with_hidden=True),
    )
    for operation in operations:
        with pytest.raises(WorkspaceError) as told:
            anyio.run(operation)
        assert str(told.value) == "the workspace directory does not exist"


def test_tools_for_checkpoints_tell_of_damage_without_the_directory_of_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileCheckpointStore(tmp_path / "checkpoints")

    def damaged(*_: Any, **__: Any) -> Any:
        raise Damaged(f"{tmp_path}/checkpoints/ledger.jsonl line 2 is damaged.")

    backend = LocalBackend(tmp_path / "workspace", sandbox=NoSandbox())
    for name in ("list_all", "get"):
        monkeypatch.setattr(FileCheckpointStore, name, damaged)
    results = _results(backend, checkpoint_store=store)
    for tool in ("list_checkpoints", "rewind_to"):
        assert '"checkpoints/ledger.jsonl line 2 is damaged."' in results[tool]
    assert str(tmp_path) not in repr(results)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'/p/ws/a' is there", "'/workspace/a' is there"),
        ("nothing at /p/ws.", "nothing at /workspace."),
        ("/p/ws2 and /p/ws.old and /p/ws-1", "ws2 and ws.old and ws-1"),
        ("/q/p/ws/a and /p", "/q/p/ws/a and /p"),
    ],
)
def test_only_whole_names_are_hidden(text: str, shown: str) -> None:
    assert text_for_model(text, MountTable(DirectoryTree("/p/ws", follow=True, mount="/workspace"))) == shown


def test_a_missing_file_is_reported_without_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LocalBackend(root_dir=tmp_path)
    monkeypatch.setattr("anyio.to_thread.run_sync", None)

    async def use() -> None:
        for operation in (backend.read_bytes, backend.list_dir):
            with pytest.raises(FileNotFoundError):
                await operation("missing/file")

    asyncio.run(use())


@pytest.mark.parametrize("kind", ["a large file", "content on a disk", "many names"])
def test_what_may_wait_for_a_disk_is_read_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    work = tmp_path / "work"
    backend = LocalBackend(root_dir=work)
    names = [f"file-{number:02}" for number in range(40 if kind == "many names" else 4)]
    for name in names:
        (work / name).write_bytes(b"x" * (100_000 if kind == "a large file" else 5))
    if kind == "content on a disk":

        def not_cached(*_: object) -> int:
            raise BlockingIOError

        monkeypatch.setattr("os.preadv", not_cached)
    threads = 0
    in_thread = anyio.to_thread.run_sync

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal threads
        threads += 1
        return await in_thread(*arguments, **options)

    monkeypatch.setattr("anyio.to_thread.run_sync", counted)

    async def use() -> None:
        assert [entry.name for entry in await backend.list_dir(".")] == names
        assert await backend.read_bytes(names[0]) == (work / names[0]).read_bytes()

    asyncio.run(use())
    # Only Linux reads without waiting, and not on every file system.
    assert threads >= 1
    if kind != "many names":
        assert threads == 1
