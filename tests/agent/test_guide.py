"""The patterns of pydantic-deep's guide to multi-user applications, with deepctl's parts: A in memory, B a directory a
user (also in `test_agent.py` and `test_checkpoint_stores.py`), C a container a user.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from deepctl import (
    Bubblewrap,
    DeepAgentDeps,
    Docker,
    FileCheckpointStore,
    InMemoryCheckpointStore,
    Limits,
    LocalBackend,
    NoSandbox,
    StateBackend,
    create_deep_agent,
    offline_model,
)
from deepctl.agent.sandboxes import Sandbox
from deepctl.errors import Refused
from deepctl.sandbox import container as containers
from tests.support import docker

agent = create_deep_agent(offline_model(), include_execute=True)


async def _said(deps: DeepAgentDeps, message: str) -> str:
    return (await agent.run(message, deps=deps)).output


def test_pattern_a_a_fresh_backend_in_memory_a_session(tmp_path: Path) -> None:
    async def handle_request() -> None:
        alice, again, bob = (
            DeepAgentDeps(backend=StateBackend(), checkpoint_store=InMemoryCheckpointStore()) for _ in range(3)
        )
        await _said(alice, "remember tea\nwrite a.txt: hers")
        assert "tea" in await _said(alice, "recall tea")
        assert "hers" in await _said(alice, "read a.txt")
        for other in (again, bob):
            assert "tea" not in await _said(other, "recall tea")
            assert "not found" in await _said(other, "read a.txt")
            assert isinstance(other.checkpoint_store, InMemoryCheckpointStore)
        assert isinstance(alice.checkpoint_store, InMemoryCheckpointStore)
        assert await alice.checkpoint_store.count() > 4

    asyncio.run(handle_request())
    assert {path.name for path in tmp_path.iterdir()} == {"cwd", "user"}


@pytest.fixture
def loop() -> Iterator[None]:
    """`run_sync` runs in the thread's event loop, and leaves one that it had to make open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    made.close()
    asyncio.set_event_loop(None)


def _scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """What a test of an application says instead of a model: no stream anywhere."""
    if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
        return ModelResponse(parts=[TextPart("written")])
    return ModelResponse(parts=[ToolCallPart("write_file", {"path": "a.txt", "content": "x"})])


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("store", [InMemoryCheckpointStore, None, "file"])
def test_an_applications_tests_need_no_model_that_streams(tmp_path: Path, store: Any) -> None:
    kept = FileCheckpointStore(tmp_path / "kept") if store == "file" else store() if store else None
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=kept)
    agent = create_deep_agent(FunctionModel(_scripted))
    assert agent.run_sync("write it", deps=deps).output == "written"
    assert (tmp_path / "work" / "a.txt").read_text() == "x"
    tester = create_deep_agent(TestModel(call_tools=["ls", "write_memory", "write_plan"]))
    assert "a.txt" in tester.run_sync("go", deps=deps).output

    async def every_way() -> None:
        assert (await agent.run("write it", deps=deps)).output == "written"
        async with agent.iter("write it", deps=deps) as run:
            async for _ in run:
                pass
        assert run.result is not None
        assert run.result.output == "written"
        async with tester.run_stream("go", deps=deps) as stream:
            assert "a.txt" in await stream.get_output()

    asyncio.get_event_loop().run_until_complete(every_way())


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("has_commands", [False, True])
def test_a_test_model_that_calls_every_tool_once_comes_to_an_end(tmp_path: Path, has_commands: bool) -> None:
    backend = LocalBackend(tmp_path / "work", sandbox=NoSandbox()) if has_commands else StateBackend()
    deps = DeepAgentDeps(backend=backend)
    agent = create_deep_agent(TestModel(), include_execute=True, approve="never")
    called = json.loads(agent.run_sync("go", deps=deps).output)
    assert {"read_file", "read_memory", "write_plan"} <= called.keys()
    assert ("execute" in called) == has_commands


@pytest.mark.usefixtures("loop")
@pytest.mark.parametrize("deps", [None, StateBackend(), {}], ids=["none", "a backend", "a dict"])
def test_a_run_without_deps_says_what_it_takes(deps: Any) -> None:
    with pytest.raises(TypeError, match=r"deps=DeepAgentDeps\(backend=…\)"):
        create_deep_agent(FunctionModel(_scripted)).run_sync("go", deps=deps)


@pytest.mark.usefixtures("loop")
def test_the_offline_model_has_a_name_in_an_application_too() -> None:
    agent = create_deep_agent("offline")
    deps = DeepAgentDeps(backend=StateBackend())
    assert "1 line" in agent.run_sync("write a.txt: x", deps=deps).output
    bare = Agent(offline_model())
    assert "offline model" in bare.run_sync("hello").output

    async def streamed() -> str:
        async with agent.run_stream("read a.txt", deps=deps) as stream:
            return await stream.get_output()

    assert "x" in asyncio.get_event_loop().run_until_complete(streamed())


@pytest.mark.usefixtures("loop")
def test_a_model_that_can_only_stream_can_be_run_all_the_same() -> None:
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        yield "in "
        yield "pieces"

    agent = create_deep_agent(FunctionModel(stream_function=stream))
    assert agent.run_sync("go", deps=DeepAgentDeps(backend=StateBackend())).output == "in pieces"


@pytest.fixture
def container() -> Iterator[str]:
    """The beginning of the names of a test's containers, which are removed afterwards."""
    docker.require()
    name = containers.container_name("/test-of-the-guide")
    yield name
    for user in ("alice", "bob"):
        containers.remove(f"{name}-{user}")


def test_pattern_c_a_container_a_user(tmp_path: Path, container: str) -> None:
    def sandbox(user: str) -> Sandbox:
        return Docker(f"{container}-{user}", docker.IMAGE, limits=Limits(memory=128 << 20))

    asyncio.run(_isolated_and_kept(tmp_path, sandbox))


def test_pattern_b_with_commands_in_bubblewrap(tmp_path: Path) -> None:
    asyncio.run(_isolated_and_kept(tmp_path, lambda user: Bubblewrap()))


async def _isolated_and_kept(tmp_path: Path, sandbox: object) -> None:
    def deps(user: str) -> DeepAgentDeps:
        return DeepAgentDeps(
            backend=LocalBackend(root_dir=tmp_path / "workspaces" / user, sandbox=sandbox(user)),  # type: ignore[operator]
            checkpoint_store=FileCheckpointStore(tmp_path / "checkpoints" / user),
        )

    alice, bob = deps("alice"), deps("bob")
    try:
        assert "made" in await _said(alice, "run echo made > made; cat made")
        assert "tea" not in await _said(alice, "remember tea")
        looked = await _said(
            bob, f"run ls -A /workspace; cat ../alice/made {tmp_path}/workspaces/alice/made\nrecall tea"
        )
        assert "made\n" not in looked
        assert "tea" not in looked
        store = alice.checkpoint_store
        assert isinstance(store, FileCheckpointStore)
        before = (await store.list_all())[-1]
        await _said(alice, "run rm -f made; echo new > new")
        await store.rewind(before.id, tmp_path / "workspaces/alice", by_agent=True)
        assert sorted(path.name for path in (tmp_path / "workspaces/alice").iterdir()) == [".deep", "made"]
        again = deps("alice")
        assert "made" in await _said(again, "run cat made"), "another request finds it"
        assert isinstance(again.backend, LocalBackend)
        again.backend.close()
    finally:
        for one in (alice, bob):
            assert isinstance(one.backend, LocalBackend)
            one.backend.close()


def test_a_sandbox_that_is_missing_is_refused_where_the_backend_is_made(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="bubblewrap sandbox cannot be used"):
        LocalBackend(tmp_path / "w", sandbox=Bubblewrap(variables={"DEEPCTL_BWRAP": "/nonexistent"}))


def test_commands_of_several_users_at_once_do_not_mix(tmp_path: Path) -> None:
    async def all_at_once() -> list[str]:
        backends = [
            LocalBackend(tmp_path / str(n), sandbox=Bubblewrap(limits=Limits(processes=8 + n))) for n in range(8)
        ]
        results = await asyncio.gather(
            *(
                backend.run(f"echo {n} > mine; sleep 0.2; cat mine; grep processes /proc/self/limits", shell=True)
                for n, backend in enumerate(backends)
            )
        )
        return [result.stdout for result in results]

    for number, stdout in enumerate(asyncio.run(all_at_once())):
        first, limit = stdout.splitlines()
        assert first == str(number)
        assert limit.split()[2] == str(8 + number)
