"""The options of `create_deep_agent`, deps, stores and backends for applications with many users."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.workspaces import LocalWorkspaceBackend, SupportsCommands, Workspace

from deepctl import (
    Checkpoint,
    CheckpointStore,
    DeepAgentDeps,
    FileCheckpointStore,
    InMemoryCheckpointStore,
    LocalBackend,
    NoSandbox,
    RewindRequested,
    StateBackend,
    create_deep_agent,
    fork_from_checkpoint,
    layout,
    user_directory,
)
from deepctl.agent.checkpoint_stores import new_checkpoint
from deepctl.errors import BadName, BadPath, BadSetting, NotFound, Refused, UsageError
from deepctl.files import sealed_lines
from deepctl.store import log_file, prune
from deepctl.store.ledger import newest_record
from deepctl.store.lookup import CheckpointNotFound
from deepctl.store.rewind import RewindConflicts
from tests.store.faults import in_child, kill

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"  # read now: tests run without any DEEPCTL_ variable

Make = Callable[[], Any]


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes a store; the one in files is another object each time."""
    memory = InMemoryCheckpointStore()
    return (lambda: FileCheckpointStore(tmp_path / "store")) if request.param == "file" else lambda: memory


def _run(operation: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(operation)


def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse(parts=[TextPart("answer")])


def test_the_model_is_that_of_the_environment_when_the_agent_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCTL_MODEL", "offline")
    agent = create_deep_agent()
    named = create_deep_agent(FunctionModel(_answer))
    monkeypatch.delenv("DEEPCTL_MODEL")
    assert "offline model" in _run(agent.run("hello", deps=DeepAgentDeps())).output
    assert _run(named.run("hello", deps=DeepAgentDeps())).output == "answer"


@pytest.mark.parametrize("value", [None, ""])
def test_an_agent_without_a_model_names_the_ways_to_set_one_before_it_stores_anything(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("DEEPCTL_MODEL", value)
    agent, store = create_deep_agent(), InMemoryCheckpointStore()
    deps = DeepAgentDeps(checkpoint_store=store)
    with pytest.raises(UsageError) as caught:
        _run(agent.run("hello", deps=deps))
    assert (caught.value.code, caught.value.exit_code) == ("no_model", 2)
    hint = str(caught.value.hint)
    assert all(way in hint for way in ("create_deep_agent(model)", "DEEPCTL_MODEL", "model=", '"offline"'))
    assert _run(store.count()) == 0
    with agent.override(model=FunctionModel(_answer)):
        assert _run(agent.run("hello", deps=deps)).output == "answer"


def test_deps_without_a_backend_have_one_in_memory_each() -> None:
    agent = create_deep_agent("offline")
    alice, bob = DeepAgentDeps(), DeepAgentDeps()
    _run(agent.run("write a.txt: alice", deps=alice))
    assert "alice" in _run(agent.run("read a.txt", deps=alice)).output
    assert "alice" not in _run(agent.run("read a.txt", deps=bob)).output


class _City(NamedTuple):
    name: str
    population: int


def test_an_answer_may_be_of_another_type() -> None:
    agent = create_deep_agent(
        TestModel(call_tools=[], custom_output_args={"name": "Bern", "population": 5}), output_type=_City
    )
    result = _run(agent.run("which?", deps=DeepAgentDeps(checkpoint_store=InMemoryCheckpointStore())))
    assert result.output == _City("Bern", 5)


def test_the_store_of_an_agent_is_for_deps_without_one(tmp_path: Path) -> None:
    shared, own = InMemoryCheckpointStore(), InMemoryCheckpointStore()
    agent = create_deep_agent("offline", checkpoint_store=shared)
    other = create_deep_agent("offline", checkpoint_store=FileCheckpointStore(tmp_path / "other"))
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"))
    _run(agent.run("write a.txt: x", deps=DeepAgentDeps(checkpoint_store=own)))
    assert (_run(shared.count()), _run(own.count())) == (0, 3)
    _run(agent.run("write a.txt: x", deps=deps))
    assert _run(shared.count()) == 3
    _run(other.run("write a.txt: y", deps=deps))
    assert _run(shared.count()) == 3
    assert all(checkpoint.has_files for checkpoint in _run(FileCheckpointStore(tmp_path / "other").list_all()))

    def rewinding(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart("rewind_to", {"checkpoint": "turn-0"})])

    with pytest.raises(RewindRequested) as caught:
        _run(agent.run("again", deps=deps, model=FunctionModel(rewinding)))
    assert caught.value.messages == []


def test_a_rewind_request_names_its_checkpoint() -> None:
    request = RewindRequested("abc", "good", [])
    assert str(request) == "Rewind requested to checkpoint 'good' (abc)"
    assert str(RewindRequested("abc", "", [])) == "Rewind requested to checkpoint 'abc'"
    assert (request.checkpoint_id, request.label, request.messages, request.reason) == ("abc", "good", [], "")


def test_a_fork_has_the_messages_and_no_more(make: Make) -> None:
    async def story() -> None:
        agent, deps = create_deep_agent("offline"), DeepAgentDeps(checkpoint_store=make())
        await agent.run("write a.txt: x", deps=deps)
        checkpoint = (await make().list_all())[-1]
        messages = await fork_from_checkpoint(make(), checkpoint.id)
        messages.clear()
        assert await fork_from_checkpoint(make(), checkpoint.id) == checkpoint.messages != []
        with pytest.raises(NotFound, match="not found") as caught:
            await fork_from_checkpoint(make(), "nope")
        assert isinstance(caught.value, ValueError)
        assert (caught.value.code, caught.value.exit_code) == ("checkpoint_not_found", 3)

    _run(story())


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"last_tool": "execute", "extra": 42},
        {"workspace": "mine", "project_dir": "/x"},
        {"run": "my-run", "ended": False},
        {"deepctl": {"project_dir": "/x", "given": 1}},
        {"deepctl": None},
    ],
)
def test_metadata_are_returned_as_given(make: Make, tmp_path: Path, metadata: dict[str, Any]) -> None:
    """And those of an application never make the author of a change unknown."""
    work, project = tmp_path / "profile", tmp_path / "project"
    work.mkdir()
    project.mkdir()

    async def story() -> None:
        store = make()
        await store.save(new_checkpoint("a", 1, [], dict(metadata)))
        options: dict[str, Any] = {"workspace": work, "project": project} if hasattr(store, "damaged") else {}
        await store.save(new_checkpoint("b", 1, [], dict(metadata)), **options)
        (work / "f").write_text("agent")
        await store.save(new_checkpoint("c", 1, [], dict(metadata)), **options)
        for label in "abc":
            found = await make().get_by_label(label)
            assert found is not None
            assert found.metadata == metadata
            assert found.has_files == (bool(options) and label != "a")
            assert found.project_dir == (str(project) if found.has_files else None)
        if options:
            first = await store.get_by_label("b")
            assert await store.rewind(first.id, work) == ["f"]

    _run(story())


def _saved(number: int, label: str = "", metadata: dict[str, Any] | None = None) -> Checkpoint:
    at = datetime(2026, 1, 1, 0, number // 60, number % 60, tzinfo=timezone.utc)
    return replace(new_checkpoint(label, number, [], metadata), id=f"c{number}", created_at=at)


def test_the_newest_and_the_labelled_checkpoints_stay(make: Make) -> None:
    tool, turn = {"kind": "tool", "run": "r"}, {"kind": "turn", "run": "r"}

    async def story() -> None:
        store = make()
        saved = [
            _saved(1, "turn-0", turn),
            _saved(2, "before-ls", {**tool, "next_tool": "ls"}),
            _saved(3, "before-ls", tool),  # of 0.1
            _saved(4, "tool-1-ls", {**tool, "last_tool": "ls"}),
            _saved(5, "before-refactor", {**tool, "last_tool": "ls"}),
            _saved(6, "before-refactor", {**tool, "next_tool": "ls"}),
            _saved(7, "good", {"kind": "manual"}),
            _saved(8, "turn-key"),
            _saved(9),
            _saved(10, "auto-2"),
            _saved(11, "turn-1", turn),
        ]
        for checkpoint in saved:
            await store.save(checkpoint)
        assert await make().prune(20) == []
        assert await make().prune(2) == ["c1", "c2", "c3", "c4", "c9"]
        assert [checkpoint.id for checkpoint in await store.list_all()] == ["c5", "c6", "c7", "c8", "c10", "c11"]
        assert await make().prune(2) == []
        for keep in (0, -1):
            with pytest.raises(BadSetting):
                await store.prune(keep)

    _run(story())


@pytest.mark.parametrize("how", ["label", "save"])
def test_another_label_keeps_the_files_and_the_place_of_a_checkpoint(tmp_path: Path, how: str) -> None:
    place = tmp_path / "files"
    place.mkdir()
    messages: list[ModelMessage] = [ModelResponse(parts=[TextPart("héllo \ud83d")])]

    async def story() -> None:
        for number in (1, 2, 3):
            (place / "a.txt").write_text(str(number))
            checkpoint = replace(_saved(number, f"turn-{number}", {"key": [1]}), messages=messages, message_count=1)
            await FileCheckpointStore(tmp_path / "store").save(checkpoint, workspace=place)
        store = FileCheckpointStore(tmp_path / "store")
        for label in ("good", "good", "", "good, again/1"):
            if how == "label":
                await store.label("c1", label)
            else:
                first = await store.get("c1")
                assert first is not None
                await store.save(replace(first, label=label))
            for each in (store, FileCheckpointStore(tmp_path / "store")):
                first = await each.get("c1")
                assert first is not None
                assert (first.label, first.has_files, first.metadata) == (label, True, {"key": [1]})
                assert [item.id for item in await each.list_all()] == ["c1", "c2", "c3"]
                newest = await each.newest()
                assert newest is not None
                assert newest.id == "c3"
        # A checkpoint of the agent that is held in memory, and not read from the store, is the same.
        await store.save(replace(_saved(2, "second", {"key": [1]}), messages=messages, message_count=1))
        assert await store.prune(1) == []
        assert [item.label for item in await FileCheckpointStore(tmp_path / "store").list_all()][:2] == [
            "good, again/1",
            "second",
        ]
        assert await store.rewind("c1", place) == ["a.txt"]
        assert (place / "a.txt").read_text() == "1"

    _run(story())


def test_files_are_not_lost_to_a_save_without_a_workspace(tmp_path: Path) -> None:
    place = tmp_path / "files"
    place.mkdir()
    (place / "a.txt").write_text("1")
    store = FileCheckpointStore(tmp_path / "store")

    async def story() -> None:
        await store.save(_saved(1, "one"), workspace=place)
        messages: list[ModelMessage] = [ModelResponse(parts=[TextPart("hello")])]
        later = _saved(1, "one").created_at + timedelta(seconds=1)
        for change in (
            {"metadata": {"key": 1}},
            {"turn": 2},
            {"created_at": later},
            {"messages": messages, "message_count": 1},
        ):
            with pytest.raises(Refused) as caught:
                await store.save(replace(_saved(1, "two"), **change))
            assert (caught.value.code, caught.value.exit_code) == ("has_files", 6)
            assert "label" in str(caught.value.hint)
        first = await store.get("c1")
        assert first is not None
        assert (first.label, first.has_files, first.metadata) == ("one", True, {})
        await store.save(replace(_saved(1, "two"), metadata={"key": 1}), workspace=place)
        first = await store.get("c1")
        assert first is not None
        assert (first.label, first.has_files, first.metadata) == ("two", True, {"key": 1})

    _run(story())


def test_a_label_is_for_a_checkpoint_that_exists(make: Make) -> None:
    async def story() -> None:
        store = make()
        await store.save(_saved(1))
        await store.label("c1", "good")
        assert (await make().get_by_label("good")).id == "c1"
        with pytest.raises(CheckpointNotFound):
            await store.label("c2", "good")

    _run(story())


class _Own:
    """A store of an application, which has only what the protocol asks for."""

    def __init__(self) -> None:
        store = InMemoryCheckpointStore()
        self.save, self.get, self.get_by_label = store.save, store.get, store.get_by_label
        self.list_all, self.remove, self.remove_oldest = store.list_all, store.remove, store.remove_oldest
        self.count, self.clear = store.count, store.clear


def test_runs_leave_as_many_checkpoints_as_the_agent_may_have(make: Make, tmp_path: Path) -> None:
    agent = create_deep_agent("offline", max_checkpoints=3)

    def labelling(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        is_first = len(messages) == 1
        call = ToolCallPart("save_checkpoint", {"label": "good"})
        return ModelResponse(parts=[call if is_first else TextPart("done")])

    async def story(store: CheckpointStore) -> None:
        deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=store)
        await agent.run("label it", deps=deps, model=FunctionModel(labelling))
        for number in range(6):
            await agent.run(f"write a.txt: {number}\nwrite b.txt: {number}", deps=deps)
        found = await store.list_all()
        assert [checkpoint.label for checkpoint in found] == [
            "good",
            "tool-1-write_file",
            "tool-1-write_file",
            "turn-1",
        ]
        assert "write a.txt: 5" in repr(found[-1].messages)
        assert "write a.txt: 4" not in repr([checkpoint.messages for checkpoint in found])

    _run(story(make()))
    _run(story(_Own()))
    for number in (0, -3):
        with pytest.raises(BadSetting):
            create_deep_agent("offline", max_checkpoints=number)


def test_an_answer_is_not_lost_to_a_retention_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    store = InMemoryCheckpointStore()
    keep = store.prune

    async def failing(count: int) -> list[str]:
        raise Refused("not now")

    agent = create_deep_agent("offline", max_checkpoints=1)
    monkeypatch.setattr(store, "prune", failing)
    assert "Wrote" in _run(agent.run("write a.txt: x", deps=DeepAgentDeps(checkpoint_store=store))).output
    assert _run(store.count()) == 3
    monkeypatch.setattr(store, "prune", keep)
    _run(agent.run("list", deps=DeepAgentDeps(checkpoint_store=store)))
    assert _run(store.count()) == 1


def test_after_retention_files_come_back_and_removed_contents_are_gone(tmp_path: Path) -> None:
    agent = create_deep_agent("offline", max_checkpoints=4)
    store = FileCheckpointStore(tmp_path / "store")
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=store)
    first = os.urandom(40_000).hex()

    async def story() -> None:
        await agent.run(f"write a.txt: {first}", deps=deps)
        (tmp_path / "work" / "mine.txt").write_text("the user's")
        for number in range(5):
            await agent.run(f"write a.txt: {number}", deps=deps)
        (target,) = [one for one in await store.list_all() if one.label == "turn-1"][:1]
        assert await store.rewind(target.id, tmp_path / "work") == ["a.txt"]

    _run(story())
    assert (tmp_path / "work" / "a.txt").read_text() == "3\n" or (tmp_path / "work" / "a.txt").read_text() == "3"
    assert (tmp_path / "work" / "mine.txt").exists()
    assert sum(path.stat().st_size for path in (tmp_path / "store" / "packs").iterdir()) < 20_000


@pytest.mark.parametrize("name", ["../bob", "/etc", "", ".", "..", "a/../b", "a//b", "nul\0", "a/", "a/./b", "\ud800"])
def test_a_path_with_a_name_that_is_a_path_is_refused_before_anything_is_created(tmp_path: Path, name: str) -> None:
    place = tmp_path / "users"
    makers: list[Callable[[str], object]] = [
        LocalBackend,
        FileCheckpointStore,
        lambda path: LocalBackend(tmp_path, profile_dir=path),
        lambda path: FileCheckpointStore(tmp_path / "store", cache=path),
    ]
    for make in makers:
        with pytest.raises(BadPath) as caught:
            make(f"{place}/{name}")
        assert (caught.value.code, caught.value.exit_code) == ("bad_path", 2)
        assert "user_directory" in str(caught.value.hint)
    with pytest.raises(BadPath):
        LocalBackend(place / ".." / "users")
    assert not place.exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", [".", "./work", "work", "a.b/..c"])
def test_a_path_of_the_programmer_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert LocalBackend(name).root_dir == str((tmp_path / name).resolve())
    FileCheckpointStore(name)


@pytest.mark.parametrize("first", ["a", "a/b", "a/b/c"])
def test_a_store_is_never_inside_another_one(tmp_path: Path, first: str) -> None:
    _run(FileCheckpointStore(tmp_path / first).save(_saved(1)))
    for name in {"a", "a/b", "a/b/c"} - {first}:
        with pytest.raises(BadPath, match="store"):
            FileCheckpointStore(tmp_path / name)
    beside = FileCheckpointStore(tmp_path / "ab")
    _run(beside.save(_saved(1)))
    assert _run(FileCheckpointStore(tmp_path / first).count()) == 1
    early, late = FileCheckpointStore(tmp_path / "x"), FileCheckpointStore(tmp_path / "x" / "y")
    _run(early.save(_saved(1)))
    with pytest.raises(BadPath):
        _run(late.save(_saved(1)))


def test_the_directory_of_a_user_is_one_part_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "users"
    assert user_directory(root, "Alice@example.com") == str(root / "alice@example.com")
    assert user_directory("users", "alice") == "users/alice"
    for name in ("a/b", "..", ".", "", "/etc", "a\\b", "a\0", ".deep", "x" * 65, "\ud83d", "CON"):
        with pytest.raises(BadName):
            user_directory(root, name)
    with pytest.raises(BadPath):
        user_directory("users/../others", "alice")
    assert not root.exists()


def test_a_backend_without_a_sandbox_does_not_claim_to_run_commands(tmp_path: Path) -> None:
    plain, confined = LocalBackend(tmp_path / "a"), LocalBackend(tmp_path / "b", sandbox=NoSandbox())
    assert not isinstance(plain, SupportsCommands)
    assert not isinstance(plain.backend, SupportsCommands)
    assert isinstance(confined, SupportsCommands)
    assert isinstance(confined.backend, SupportsCommands)


def _tools(backend: Any, **options: Any) -> list[str]:
    names: list[str] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        names[:] = [tool.name for tool in info.function_tools]
        return ModelResponse(parts=[TextPart(f"{info.instructions}")])

    text = _run(
        create_deep_agent(FunctionModel(model), **options).run("hello", deps=DeepAgentDeps(backend=backend))
    ).output
    assert ("There is no shell" in text) == ("execute" not in names)
    return names


@pytest.mark.parametrize("include", [None, True, False])
def test_the_command_tool_is_there_where_commands_run(tmp_path: Path, include: bool | None) -> None:
    backends = {
        "memory": StateBackend(),
        "files": LocalBackend(tmp_path / "a"),
        "sandbox": LocalBackend(tmp_path / "b", sandbox=NoSandbox()),
        "machine": Workspace(LocalWorkspaceBackend(tmp_path)),
    }
    options = {} if include is None else {"include_execute": include}
    has_tool = {name for name, backend in backends.items() if "execute" in _tools(backend, **options)}
    assert has_tool == {None: {"sandbox"}, True: {"sandbox", "machine"}, False: set()}[include]


def test_one_agent_has_the_command_tool_in_some_runs_only(tmp_path: Path) -> None:
    agent = create_deep_agent("offline", approve="auto")
    backends = LocalBackend(tmp_path / "a"), LocalBackend(tmp_path / "b", sandbox=NoSandbox())

    async def story() -> list[str]:
        runs = (agent.run("run echo $((6 * 7))", deps=DeepAgentDeps(backend=backend)) for backend in backends * 2)
        return [result.output for result in await asyncio.gather(*runs)]

    assert ["42" in output for output in _run(story())] == [False, True, False, True]


@pytest.mark.parametrize("has_store", [False, True])
def test_a_run_streams_only_if_asked_to(has_store: bool) -> None:
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "streamed"

    deps = DeepAgentDeps(checkpoint_store=InMemoryCheckpointStore() if has_store else None)
    agent = create_deep_agent(FunctionModel(_answer, stream_function=stream))
    assert _run(agent.run("hello", deps=deps)).output == "answer"
    assert _run(_streamed(agent, deps)) == "streamed"
    assert _run(create_deep_agent(FunctionModel(_answer)).run("hello", deps=deps)).output == "answer"


async def _streamed(agent: Any, deps: DeepAgentDeps) -> str:
    async with agent.run_stream("hello", deps=deps) as stream:
        return str(await stream.get_output())


def test_every_exported_name_can_be_imported() -> None:
    code = "import deepctl; print(all(getattr(deepctl, name) is not None for name in deepctl.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    import deepctl

    assert sorted(deepctl._MODULES) == sorted(deepctl.__all__)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("create_default_deps", "`DeepAgentDeps(backend=backend)`"),
        ("HooksCapability", "`Hooks` of `pydantic_ai.capabilities`, in `capabilities=`"),
        ("load_memory", "no counterpart"),
    ],
)
def test_the_import_of_a_name_of_pydantic_deep_says_what_to_use_instead(name: str, text: str) -> None:
    import deepctl

    message = f"cannot import name '{name}' of pydantic-deep from 'deepctl'; in deepctl: {text}"
    with pytest.raises(ImportError) as caught:
        exec(f"from deepctl import create_deep_agent, {name}", {})
    assert (str(caught.value), caught.value.name) == (message, "deepctl")
    assert not hasattr(deepctl, name)
    assert getattr(deepctl, name, "default") == "default"
    with pytest.raises(AttributeError) as missing:
        getattr(deepctl, name)
    assert str(missing.value) == message


@pytest.mark.parametrize("name", ["nonsense", "Nonsense", "more_nonsense", "_private", "__wrapped__"])
def test_a_name_of_neither_package_is_an_error_as_in_every_module(name: str) -> None:
    import deepctl

    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'deepctl'"):
        exec(f"from deepctl import {name}", {})
    assert not hasattr(deepctl, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("toolsets", "in deepctl: `capabilities=[Toolset(t)]`, with `Toolset` of `pydantic_ai.capabilities`"),
        ("subagents", "in deepctl: no counterpart"),
        ("instruction", "`help(deepctl.create_deep_agent)` lists its arguments"),
    ],
)
def test_an_argument_of_pydantic_deep_says_what_to_use_instead(name: str, text: str) -> None:
    arguments: dict[str, Any] = {name: []}
    with pytest.raises(TypeError) as caught:
        create_deep_agent("offline", **arguments)
    assert str(caught.value) == f"create_deep_agent() got an unexpected keyword argument '{name}'; {text}"


def _read_bytes() -> int:
    """Bytes that this process has read so far."""
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


def _many(directory: Path, count: int) -> None:
    """A store of so many checkpoints of one short conversation."""
    messages: list[ModelMessage] = [ModelResponse(parts=[TextPart("hello")])]
    _run(FileCheckpointStore(directory).save(replace(_saved(0), id="first", messages=messages, message_count=1)))
    path = directory / "ledger.jsonl"
    entry = sealed_lines.unseal(path.read_bytes().splitlines()[-1])
    lines = [sealed_lines.seal({**entry, "record": {**entry["record"], "id": f"c{n}"}}) for n in range(count - 1)]
    path.write_bytes(path.read_bytes() + b"".join(lines))
    path.chmod(0o600)


def test_the_newest_checkpoint_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    costs = []
    for count in (10, 10_000):
        directory = tmp_path / str(count)
        _many(directory, count)
        _run(FileCheckpointStore(directory).newest())  # imports
        store, before = FileCheckpointStore(directory), _read_bytes()
        newest = _run(store.newest())
        costs.append(_read_bytes() - before)
        assert (newest.id, len(newest.messages)) == (f"c{count - 2}", 1)
        assert _run(store.count()) == count
    assert 0 < costs[1] < costs[0] + (16 << 10), costs


def test_the_newest_checkpoint_is_the_one_saved_last(make: Make) -> None:
    async def story() -> None:
        assert await make().newest() is None
        for number in (1, 3, 2):
            await make().save(_saved(number))
            assert (await make().newest()).id == f"c{number}"
        assert (await make().list_all())[-1].id == "c3"
        await make().save(_saved(1, "again"))
        newest = await make().newest()
        assert (newest.id, newest.label) == ("c1", "again")
        for left in ("c2", "c3", None):
            await make().remove(newest.id)
            newest = await make().newest()
            assert (newest.id if newest is not None else None) == left

    _run(story())


@pytest.mark.parametrize("tail", ["torn", "damaged", "repair", "short", "foreign"])
def test_the_newest_checkpoint_is_found_if_the_end_of_the_ledger_is_not_enough(tmp_path: Path, tail: str) -> None:
    directory = tmp_path / "store"
    path = directory / "ledger.jsonl"
    if tail == "foreign":
        directory.mkdir()
        for number in (1, 2):
            document = {"id": f"c{number}", "label": "", "turn": 1, "messages": [], "message_count": 0}
            document |= {"created_at": f"2026-01-0{number}T00:00:00+00:00", "metadata": {}}
            (directory / f"c{number}.json").write_text(json.dumps(document))
        assert _run(FileCheckpointStore(directory).newest()).id == "c2"
        return
    _many(directory, 3)
    raw = path.read_bytes()
    line = sealed_lines.seal({"v": layout.LEDGER_FORMAT.current, "gap": None})
    path.write_bytes({"torn": raw + b'{"v":', "damaged": raw + b'{"v":1}\n', "repair": raw + line, "short": raw}[tail])
    if tail == "short":
        log_file.write_ledger_size(str(directory), len(raw) + 10, is_short=False)
    assert newest_record(str(directory)) is None
    assert _run(FileCheckpointStore(directory).newest()).id == "c1"


def test_after_a_rewind_the_newest_checkpoint_has_its_conversation(tmp_path: Path) -> None:
    agent, store = create_deep_agent("offline"), FileCheckpointStore(tmp_path / "store")
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=store)

    async def story() -> None:
        first = await agent.run("write a.txt: 1", deps=deps)
        target = await store.newest()
        assert target is not None
        await agent.run("write a.txt: 2", deps=deps, message_history=first.all_messages())
        await store.rewind(target.id, tmp_path / "work")
        newest = await FileCheckpointStore(tmp_path / "store").newest()
        assert newest is not None
        assert newest.messages == target.messages
        assert newest_record(str(tmp_path / "store")) is not None

    _run(story())


def test_retention_keeps_the_whole_store_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "_SMALLEST_LEDGER", 12 << 10)
    store = FileCheckpointStore(tmp_path / "store")
    work = tmp_path / "work"
    work.mkdir()

    async def story() -> list[int]:
        sizes = []
        for number in range(60):
            (work / "a").write_text(f"{number}")
            await store.save(_saved(number, "first" if number == 0 else ""), workspace=work)
            await store.prune(3)
            sizes.append(sum(path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file()))
        assert await FileCheckpointStore(tmp_path / "store").rewind("c0", work, by_agent=True) == ["a"]
        assert (await store.list_all())[0].id == "c0"
        return sizes

    sizes = _run(story())
    assert (work / "a").read_text() == "0"
    assert max(sizes) < 24_000, "12 KiB of the ledger, and the rest"
    assert sizes[-1] < max(sizes)


def _told(place: Path, seed: int) -> None:
    """Saves, relabellings and removals of a store in `place`, whose files several authors change."""
    rng, work, store = random.Random(seed), place / "work", FileCheckpointStore(place / "store")
    work.mkdir()

    async def story() -> None:
        for number in range(40):
            for name in rng.sample("abcd", rng.randint(0, 2)):
                (work / name).write_text(f"{number}")
            identity = rng.choice(["", f"c{rng.randint(0, 40)}"]) or f"c{number}"
            options: dict[str, Any] = {"workspace": work} if rng.random() < 0.8 else {}
            checkpoint = replace(_saved(number, rng.choice(["", "", f"l{number}"])), id=identity)
            earlier = await store.get(identity)
            if earlier is not None and earlier.has_files and not options:
                await store.label(identity, checkpoint.label)
                continue
            await store.save(checkpoint, by_agent=rng.choice([True, False, None]), **options)
            if rng.random() < 0.3:
                await store.prune(rng.randint(1, 4))
            if rng.random() < 0.1:
                await store.remove(f"c{rng.randint(0, 40)}")

    _run(story())


def _outcomes(place: Path) -> dict[str, Any]:
    """What there is in a store, and what a rewind to each checkpoint does."""
    outcomes: dict[str, Any] = {}
    for checkpoint in _run(FileCheckpointStore(place / "store").list_all()):
        copy = place / f"copy-{checkpoint.id}"
        for name in ("work", "store"):
            shutil.copytree(place / name, copy / name)
        try:
            changed = _run(FileCheckpointStore(copy / "store").rewind(checkpoint.id, copy / "work"))
        except RewindConflicts as error:
            changed = sorted(error.paths)
        except Refused as error:
            changed = error.code
        files = {path.name: path.read_text() for path in (copy / "work").iterdir()}
        outcomes[checkpoint.id] = (checkpoint, changed, files)
    return outcomes


def test_a_smaller_ledger_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    compact = prune.compact

    def counting(store: Any) -> bool:
        nonlocal written
        is_written = compact(store)
        written += is_written
        return is_written

    def never(store: Any) -> bool:
        return False

    conflicts = 0
    for seed in range(40 if _SOAK else 4):
        outcomes = []
        for name, function in (("small", counting), ("long", never)):
            monkeypatch.setattr(prune, "compact", function)
            monkeypatch.setattr(prune, "_SMALLEST_LEDGER", 0)
            monkeypatch.setattr(prune, "_LEAST_GAIN", 0)
            place = tmp_path / f"{seed}-{name}"
            place.mkdir()
            _told(place, seed)
            outcomes.append(_outcomes(place))
        assert outcomes[0] == outcomes[1]
        conflicts += sum(any(isinstance(path, bytes) for path in changed) for _, changed, _ in outcomes[0].values())
    assert written > 15
    assert conflicts > 2


def test_a_kill_while_a_ledger_is_written_again_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune, "_SMALLEST_LEDGER", 0)
    monkeypatch.setattr(prune, "_LEAST_GAIN", 0)
    work, source = tmp_path / "work", tmp_path / "store"
    work.mkdir()
    names = [f"c{number}" for number in range(6)]
    for number in range(6):
        (work / "a").write_text(f"{number}")
        _run(FileCheckpointStore(source).save(_saved(number), workspace=work))
    before = _run(FileCheckpointStore(source).list_all())
    killed = 0
    for at in range(1, 400, 1 if _SOAK else 9):
        copy = tmp_path / f"copy-{at}"
        shutil.copytree(source, copy)
        ended = in_child(lambda directory=copy: _run(FileCheckpointStore(directory).prune(2)), at, kill)  # type: ignore[misc]
        found = _run(FileCheckpointStore(copy).list_all())
        left = [checkpoint.id for checkpoint in found]
        assert left in (names, names[-2:]), (at, left)
        assert found == before[-len(found) :]
        assert _run(FileCheckpointStore(copy).damaged()) == []
        assert _run(FileCheckpointStore(copy).newest()).id == "c5"
        shutil.rmtree(copy)
        killed += ended == "killed"
        if ended != "killed":
            break
    assert killed > 5
