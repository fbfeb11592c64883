"""`open_profile`: an application and the command line, as separate processes, share a profile.

The application is this process, or for kills a process of its own; `deepctl` is always another process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ModelAuthenticationError, ModelUnavailableError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from deepctl import DeepAgentDeps, OpenProfile, StateBackend, create_deep_agent, open_profile, run, stream
from deepctl.domain import profiles
from deepctl.errors import (
    BadName,
    BadPath,
    DeepctlError,
    Locked,
    ModelFailed,
    ProfileNotFound,
    Refused,
    SessionNotFound,
    UsageError,
)
from deepctl.layout import Root
from tests.agent.test_runs import Trip, rewinding
from tests.support.command import Command
from tests.support.loopback import Provider, Status, Text, ToolCalls, provider

T = TypeVar("T")
Say = Callable[[OpenProfile], Awaitable[T]]


def with_alice(work: Say[T], **options: Any) -> T:
    """What `work` returns for the open profile alice."""

    async def main() -> T:
        async with open_profile("alice", **options) as profile:
            return await work(profile)

    return asyncio.run(main())


def of_texts(*texts: str) -> FunctionModel:
    """A model that answers these, one after the other, and cannot stream."""
    rest = list(texts)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart(rest.pop(0))])

    return FunctionModel(answer)


def workspace(home: Path) -> Path:
    return home / "profiles/alice/workspace"


def test_a_turn_of_an_application_is_one_of_the_command_line_and_the_other_way_round(
    process: Command, home: Path
) -> None:
    result = with_alice(lambda alice: alice.run(None, "write a.txt: one\nremember tea"))
    assert result.output == "Wrote 1 line to a.txt\nRemembered."
    assert (result.session, result.cost) == ("main", 0.0)
    assert (workspace(home) / "a.txt").read_text() == "one"
    shown = process("sessions", "show", "--user", "alice", "--json").ok().json
    assert len(shown["messages"]) == len(result.messages) == 4
    listed = process("checkpoints", "list", "--user", "alice", "--json").ok().json["checkpoints"]
    assert [one["id"] for one in listed] == [one.id for one in with_alice(lambda alice: alice.checkpoints())]
    assert listed[0]["id"] == result.checkpoint
    assert "tea" in process("memory", "show", "--user", "alice").ok().stdout

    assert "1 earlier turn" in process("chat", "--user", "alice", "hello").ok().stdout
    history = with_alice(lambda alice: alice.history())
    prompts = [part.content for message in history for part in message.parts if isinstance(part, UserPromptPart)]
    assert "hello" in str(prompts[-1])
    assert "2 earlier turns" in with_alice(lambda alice: alice.run(None, "hello")).output
    assert process("sessions", "list", "--user", "alice", "--json").ok().json["sessions"][0]["turns"] == 3
    process("checkpoints", "verify", "--user", "alice").ok()


def test_a_rewind_by_one_is_seen_by_the_other(process: Command, home: Path) -> None:
    async def two_turns(alice: OpenProfile) -> None:
        await alice.run(None, "write a.txt: one")
        await alice.run(None, "write a.txt: two")

    with_alice(two_turns)
    process("checkpoints", "rewind", "~1", "--user", "alice").ok()
    assert (workspace(home) / "a.txt").read_text() == "one"
    assert len(with_alice(lambda alice: alice.history())) == 4
    undone = with_alice(lambda alice: alice.undo())
    assert (undone.restored_paths, undone.session) == (["a.txt"], "main")
    assert process("sessions", "list", "--user", "alice", "--json").ok().json["sessions"][0]["turns"] == 2

    rewound = with_alice(lambda alice: alice.rewind("~2"))
    assert (rewound.deleted_paths, rewound.messages_removed) == (["a.txt"], 8)
    assert rewound.safety is not None
    listed = process("checkpoints", "list", "--user", "alice", "--json").ok().json["checkpoints"]
    assert listed[0]["id"] == rewound.safety
    assert not (workspace(home) / "a.txt").exists()
    assert "0 earlier turns" in process("chat", "--user", "alice", "hello").ok().stdout


def test_a_conflict_is_refused_with_a_code_and_a_hint_and_changes_nothing(home: Path) -> None:
    with_alice(lambda alice: alice.run(None, "write a.txt: one"))
    (workspace(home) / "a.txt").write_text("mine")
    with pytest.raises(Refused) as caught:
        with_alice(lambda alice: alice.rewind("~1"))
    assert (caught.value.code, caught.value.exit_code) == ("conflicts", 6)
    assert caught.value.hint
    assert (workspace(home) / "a.txt").read_text() == "mine"
    assert with_alice(lambda alice: alice.rewind("~1", force=True)).deleted_paths == ["a.txt"]


def test_sessions_are_chosen_as_in_a_chat(process: Command, home: Path) -> None:
    async def story(alice: OpenProfile) -> list[str]:
        first = await alice.run(None, "hello", session="work")
        second = await alice.run(None, "hello", new=True)
        third = await alice.run(None, "hello")
        fourth = await alice.run(None, "hello", session="work")
        with pytest.raises(Refused, match="already a session") as caught:
            await alice.run(None, "hello", new="work")
        assert caught.value.code == "session_exists"
        with pytest.raises(SessionNotFound):
            await alice.history("nowhere")
        assert "1 earlier turn" in fourth.output
        return [result.session for result in (first, second, third, fourth)]

    assert with_alice(story) == ["work", "session-2", "session-2", "work"]
    sessions = with_alice(lambda alice: alice.sessions())
    assert [(one.name, one.turns) for one in sessions] == [("work", 2), ("session-2", 2)]


def test_reading_creates_nothing(home: Path) -> None:
    async def read(alice: OpenProfile) -> None:
        assert (await alice.history(), await alice.checkpoints(), await alice.sessions()) == ([], [], [])
        with pytest.raises(ProfileNotFound):
            await alice.rewind()
        with pytest.raises(ProfileNotFound):
            await alice.wipe()

    with_alice(read)
    assert not (home / "profiles/alice").exists()
    with pytest.raises(BadName):
        asyncio.run(open_profile("../bob").__aenter__())
    with pytest.raises(BadName):
        with_alice(lambda alice: alice.run(None, "hello", new="../x"))
    assert not (home / "profiles/alice").exists()


def test_an_application_removes_old_checkpoints_as_the_command_line_does(process: Command, home: Path) -> None:
    async def story(alice: OpenProfile) -> None:
        assert await alice.prune(3) == 0
        assert not (home / "profiles/alice").exists()
        for number in range(5):
            await alice.run(None, f"write a.txt: {number}")
        count = len(await alice.checkpoints(tools=True))
        assert await alice.prune(2, older_than=timedelta(days=1)) == 0
        assert await alice.prune(older_than=timedelta(days=1)) == 0
        removed_count = await alice.prune(2)
        assert removed_count > 3
        checkpoints = await alice.checkpoints(tools=True)
        assert len(checkpoints) == count - removed_count
        assert [checkpoint.turn for checkpoint in checkpoints if checkpoint.kind == "turn"] == [5, 4]
        assert await alice.prune(2) == 0
        assert (await alice.rewind("~1")).restored_paths == ["a.txt"]
        with pytest.raises(UsageError):
            await alice.prune()
        with pytest.raises(UsageError):
            await alice.prune(0)

    with_alice(story)
    assert (workspace(home) / "a.txt").read_text() == "3"
    process("checkpoints", "verify", "--user", "alice").ok()


def test_a_wipe_leaves_nothing_and_the_next_turn_begins_anew(home: Path) -> None:
    async def story(alice: OpenProfile) -> str:
        await alice.run(None, "remember tea")
        await alice.wipe()
        assert not [path for path in home.rglob("*") if path.is_file() and b"tea" in path.read_bytes()]
        return (await alice.run(None, "hello")).output

    assert "0 earlier turns" in with_alice(story)


def test_the_profiles_of_another_root_are_its_own(home: Path, tmp_path: Path) -> None:
    with_alice(lambda alice: alice.run(None, "remember tea"), root=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere/profiles/alice").is_dir()
    assert not home.exists() or not (home / "profiles").exists()


def test_a_project_is_worked_in_as_with_chat_c(process: Command, home: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    result = with_alice(lambda alice: alice.run(None, "write a.txt: one"), project=project)
    assert (project / "a.txt").read_text() == "one"
    shown = process("sessions", "list", "--user", "alice", "-C", str(project), "--json").ok().json["sessions"]
    assert [one["name"] for one in shown] == [result.session]
    process("checkpoints", "rewind", "--user", "alice", "-C", str(project)).ok()
    assert not (project / "a.txt").exists()


@pytest.mark.parametrize("how", ["function", "test"])
def test_an_agent_of_an_application_needs_no_model_that_streams(home: Path, how: str) -> None:
    model = of_texts("first", "second") if how == "function" else TestModel(call_tools=["write_memory"])
    agent = create_deep_agent(model)

    async def story(alice: OpenProfile) -> list[str]:
        return [(await alice.run(agent, "go")).output, (await alice.run(agent, "on")).output]

    first, second = with_alice(story)
    assert (first, second) == ("first", "second") if how == "function" else "write_memory" in first
    assert len(with_alice(lambda alice: alice.history())) >= 4


def test_the_model_of_an_agent_can_be_overridden_as_in_its_tests(home: Path) -> None:
    agent = create_deep_agent(of_texts())
    with agent.override(model=of_texts("overridden")):
        result = with_alice(lambda alice: alice.run(agent, "go"))
    assert result.output == "overridden"
    assert len(with_alice(lambda alice: alice.history())) == 2


def test_an_agent_without_a_model_has_that_of_the_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent[DeepAgentDeps, str](deps_type=DeepAgentDeps)
    assert "offline model" in with_alice(lambda alice: alice.run(agent, "hello")).output


@pytest.mark.parametrize("made", ["without checkpoints", "by pydantic-ai"])
def test_what_an_agent_without_checkpoints_of_its_own_changes_can_be_rewound(
    process: Command, home: Path, made: str
) -> None:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) > 1:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart("put", {"name": name}) for name in ("a.txt", "b.txt")])

    model, running = FunctionModel(answer), list[str]()
    plain = Agent(model, deps_type=DeepAgentDeps)
    agent = create_deep_agent(model, include_checkpoints=False) if made == "without checkpoints" else plain

    @agent.tool
    async def put(ctx: RunContext[DeepAgentDeps], name: str) -> str:
        running.append(name)
        await asyncio.sleep(0.1)
        assert running == [name], "tools run one after another"
        await ctx.deps.workspace.write_bytes(name, b"agent")
        running.remove(name)
        return "put"

    with_alice(lambda alice: alice.run(agent, "go"))
    listed = process("checkpoints", "list", "--all", "--user", "alice", "--json").ok().json["checkpoints"]
    assert [one["kind"] for one in listed] == ["turn", "tool", "tool", "turn"]
    rewound = process("checkpoints", "rewind", "--user", "alice", "--json").ok().json
    assert sorted(rewound["files"]["deleted"]) == ["a.txt", "b.txt"]


def test_outputs_are_of_the_type_of_the_agent(process: Command, home: Path) -> None:
    agent = create_deep_agent(
        TestModel(call_tools=[], custom_output_args={"city": "Rome", "nights": 3}), output_type=Trip
    )

    async def story(alice: OpenProfile) -> tuple[Trip, list[dict[str, Any]]]:
        result = await alice.run(agent, "where?")
        return result.output, [event async for event in alice.stream(agent, "where?")]

    output, events = with_alice(story)
    assert output == Trip(city="Rome", nights=3)
    assert events[-1]["output"] == {"city": "Rome", "nights": 3}
    assert json.loads(json.dumps(events)) == events
    assert "2 earlier turns" in process("chat", "--user", "alice", "hello").ok().stdout, "the conversation goes on"


def test_a_rewind_by_the_agent_is_hidden_and_restores_files_and_conversation(process: Command, home: Path) -> None:
    agent = create_deep_agent(FunctionModel(rewinding))
    result = with_alice(lambda alice: alice.run(agent, "go"))
    assert "a.txt is wrong" in result.output
    assert not (workspace(home) / "a.txt").exists()
    assert result.usage.requests == 4
    kinds = [
        one["kind"] for one in process("checkpoints", "list", "--user", "alice", "--json").ok().json["checkpoints"]
    ]
    assert "rewind" in kinds

    async def streamed() -> list[dict[str, Any]]:
        async with open_profile("bob") as bob:
            return [event async for event in bob.stream(agent, "go")]

    events = asyncio.run(streamed())
    assert (events[0]["type"], events[-1]["type"]) == ("start", "result")
    assert "a.txt is wrong" in events[-1]["output"]
    assert "rewind" in [event["kind"] for event in events if event["type"] == "checkpoint"]


def test_events_are_those_of_chat_with_json(process: Command, home: Path) -> None:
    prompt = "write a.txt: one\nrun true"

    async def streamed(alice: OpenProfile) -> list[dict[str, Any]]:
        return [event async for event in alice.stream(None, prompt)]

    ours = with_alice(streamed)
    theirs = process("chat", "--user", "bob", "--json", prompt).ok().events

    def shape(events: list[dict[str, Any]]) -> list[tuple[str, set[str]]]:
        return [(event["type"], set(event)) for event in events if event["type"] not in ("notice", "start")]

    assert shape(ours) == shape(theirs)
    assert set(ours[0]) <= set(theirs[0])


def test_a_prompt_may_contain_a_picture(process: Command, home: Path) -> None:
    seen: list[ModelMessage] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.extend(messages)
        return ModelResponse(parts=[TextPart("nice")])

    picture = BinaryContent(bytes.fromhex("89504e470d0a1a0a"), media_type="image/png")
    agent = create_deep_agent(FunctionModel(answer))
    with_alice(lambda alice: alice.run(agent, ["look at this", picture]))
    assert "look at this" in process("sessions", "show", "--user", "alice").ok().stdout
    assert any(
        isinstance(item, BinaryContent) or "file of type image/png" in str(item)
        for message in seen
        if isinstance(message, ModelRequest)
        for part in message.parts
        if isinstance(part, UserPromptPart)
        for item in part.content
    )


def test_failures_of_the_model_are_retried_and_then_errors_with_a_code(home: Path) -> None:
    failures = [ModelUnavailableError("m", "busy"), ModelAuthenticationError("m", "who?")]

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if failures:
            raise failures.pop(0)
        return ModelResponse(parts=[TextPart("well")])

    agent = create_deep_agent(FunctionModel(answer))
    seen: list[str] = []

    async def story(alice: OpenProfile) -> None:
        async for event in alice.stream(agent, "go"):
            seen.append(event["type"])

    with pytest.raises(ModelFailed) as caught:
        with_alice(story)
    assert (caught.value.code, caught.value.exit_code) == ("model_key_refused", 7)
    assert caught.value.hint
    assert "retry" in seen
    assert with_alice(lambda alice: alice.run(agent, "again")).output == "well"


def test_a_silent_model_is_given_up_after_the_time_of_the_settings(process: Command, home: Path) -> None:
    process("profiles", "create", "alice").ok()
    process("config", "set", "first_answer_timeout", "1", "--user", "alice").ok()

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        await asyncio.sleep(30)
        return ModelResponse(parts=[TextPart("late")])

    with pytest.raises(ModelFailed) as caught:
        with_alice(lambda alice: alice.run(create_deep_agent(FunctionModel(answer)), "go"))
    assert (caught.value.code, caught.value.exit_code) == ("idle_timeout", 7)
    assert caught.value.hint


def test_text_is_valid_from_the_moment_it_arrives(process: Command, home: Path) -> None:
    agent = create_deep_agent(of_texts("half \ud83d", "well"))

    async def story(alice: OpenProfile) -> list[str]:
        return [(await alice.run(agent, "go \udce4")).output, (await alice.run(agent, "on")).output]

    assert with_alice(story) == ["half \ufffd", "well"]
    process("sessions", "export", "--user", "alice").ok()


def test_a_long_conversation_is_compacted(process: Command, home: Path) -> None:
    process("profiles", "create", "alice").ok()
    process("config", "set", "context_window", "6000", "--user", "alice").ok()
    events: list[dict[str, Any]] = []

    async def story(alice: OpenProfile) -> None:
        for number in range(5):
            async for event in alice.stream(None, f"write f{number}.txt: {'word ' * 1500}"):
                events.append(event)

    with_alice(story)
    assert "compaction" in [event["type"] for event in events]


def test_runs_of_one_profile_wait_for_each_other_and_other_profiles_do_not(home: Path) -> None:
    order: list[str] = []

    def agent_of(name: str) -> Agent[DeepAgentDeps, str]:
        async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            order.append(f"{name} begins")
            await asyncio.sleep(0.3)
            order.append(f"{name} ends")
            return ModelResponse(parts=[TextPart(name)])

        return create_deep_agent(FunctionModel(answer))

    async def main() -> None:
        async with open_profile("alice") as alice, open_profile("ALICE") as again, open_profile("bob") as bob:
            await asyncio.gather(
                alice.run(agent_of("first"), "go"),
                again.run(agent_of("second"), "go"),
                alice.run(agent_of("third"), "go"),
                bob.run(agent_of("other"), "go"),
            )
            assert len(await alice.history()) == 6

    asyncio.run(main())
    assert [entry for entry in order if "other" not in entry] == [
        f"{name} {step}" for name in ("first", "second", "third") for step in ("begins", "ends")
    ]
    assert order.index("other begins") < order.index("second begins")


_HOLD = """
import sys
from deepctl.domain import profiles
from deepctl.layout import Root
with profiles.lock(Root(sys.argv[1]), "alice", command="chat"):
    print("held", flush=True)
    sys.stdin.readline()
"""


_HOLD_PROJECT = """
import sys
from deepctl.layout import Root
from deepctl.locks import DirectoryLock
with DirectoryLock(sys.argv[2], lock_file=Root(sys.argv[1]).profile("bob").lock):
    print("held", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that has the lock of alice, or of a project."""

    def __init__(self, home: Path, code: str = _HOLD, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(home), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"

    def release(self) -> None:
        assert self._process.stdin is not None
        self._process.communicate("\n", timeout=20)


def test_another_process_is_waited_for_in_the_event_loop(home: Path) -> None:
    holder = Holder(home)

    async def main() -> float:
        async with open_profile("alice", wait=20) as alice, open_profile("bob") as bob:
            waiting = [asyncio.create_task(alice.run(None, "hello")) for _ in range(60)]
            await asyncio.sleep(0.5)
            longest, last = 0.0, time.monotonic()
            began = time.monotonic()
            other = asyncio.create_task(bob.run(None, "hello"))
            while not other.done():
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            assert time.monotonic() - began < 10, "bob waits for no worker thread"
            assert not any(task.done() for task in waiting)
            for task in waiting[1:]:
                task.cancel()
            holder.release()
            assert "offline model" in (await waiting[0]).output
            return longest

    assert asyncio.run(main()) < 2


def test_after_the_time_to_wait_the_lock_is_an_error(home: Path) -> None:
    holder = Holder(home)
    try:
        with pytest.raises(Locked) as caught:
            with_alice(lambda alice: alice.run(None, "hello"), wait=0.2)
    finally:
        holder.release()
    assert (caught.value.code, caught.value.exit_code, caught.value.retryable) == ("locked", 4, True)
    assert "deepctl chat" in caught.value.message
    assert "open_profile(…, wait=SECONDS)" in (caught.value.hint or "")
    assert not (home / "profiles/alice").exists()


def test_the_lock_of_a_project_is_waited_for_too(home: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    with_alice(lambda alice: alice.run(None, "hello"), project=project)
    holder = Holder(home, _HOLD_PROJECT, str(project))
    try:
        with pytest.raises(Locked, match="working in"):
            with_alice(lambda alice: alice.run(None, "hello"), project=project, wait=0.2)
    finally:
        holder.release()
    with_alice(lambda alice: alice.run(None, "hello"), project=project, wait=0.2)


def test_an_open_profile_that_does_nothing_blocks_nobody(process: Command, home: Path) -> None:
    async def story(alice: OpenProfile) -> list[ModelMessage]:
        await alice.run(None, "hello")
        said = await asyncio.to_thread(process, "chat", "--user", "alice", "hello")
        assert "1 earlier turn" in said.ok().stdout
        assert "2 earlier turns" in (await alice.run(None, "hello")).output, "it sees what the other process did"
        return await alice.history()

    assert len(with_alice(story)) == 6


def test_a_chat_waits_for_a_run_of_the_application(process: Command, home: Path) -> None:
    async def story(alice: OpenProfile) -> None:
        is_refused = asyncio.Event()

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            await is_refused.wait()
            return ModelResponse(parts=[TextPart("hi")])

        async with aclosing(alice.stream(create_deep_agent(FunctionModel(answer)), "hello")) as events:
            await anext(events)
            refused = await asyncio.to_thread(process, "chat", "--user", "alice", "--json", "hello")
            assert refused.code == 4
            assert refused.events[-1]["code"] == "locked"
            assert f"(pid {os.getpid()}, an application, since " in refused.events[-1]["message"]
            is_refused.set()
            async for _ in events:
                pass
        (await asyncio.to_thread(process, "chat", "--user", "alice", "hello")).ok()

    with_alice(story)


def _slow(in_tool: asyncio.Event) -> Agent[DeepAgentDeps, str]:
    """An agent that writes a file, and then waits in a tool."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        calls = [part for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
        if not calls:
            return ModelResponse(parts=[ToolCallPart("write_file", {"path": "a.txt", "content": "agent"})])
        return ModelResponse(parts=[ToolCallPart("wait", {})])

    agent = create_deep_agent(FunctionModel(answer))

    @agent.tool_plain
    async def wait() -> str:
        in_tool.set()
        await asyncio.sleep(60)
        return ""

    return agent


@pytest.mark.parametrize("how", ["cancel", "aclose", "timeout", "scope", "the whole loop"])
def test_a_turn_that_is_cancelled_is_stored_to_its_end(process: Command, home: Path, how: str) -> None:
    async def story(alice: OpenProfile) -> None:
        in_tool = asyncio.Event()
        agent = _slow(in_tool)
        if how == "aclose":
            events = alice.stream(agent, "go")
            async for event in events:
                if event["type"] == "tool_call" and event["name"] == "wait":
                    break
            await in_tool.wait()
            await events.aclose()
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2):
                    await alice.run(agent, "go")
        elif how == "scope":
            with anyio.CancelScope() as scope:
                async with aclosing(alice.stream(agent, "go")) as events:
                    async for event in events:
                        if event["type"] == "tool_call" and event["name"] == "wait":
                            scope.cancel()
            assert scope.cancelled_caught
        else:
            task = asyncio.create_task(alice.run(agent, "go"))
            await in_tool.wait()
            for other in (asyncio.all_tasks() - {asyncio.current_task()}) if how == "the whole loop" else {task}:
                other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert len(asyncio.all_tasks()) == 1, "nothing of the run goes on"
        assert (await alice.checkpoints())[0].kind == "turn", "when the call returns, the end is stored"

    with_alice(story)
    assert (workspace(home) / "a.txt").read_text() == "agent"
    shown = process("sessions", "show", "--user", "alice", "--json").ok().json
    assert "a.txt" in json.dumps(shown["messages"])
    assert process("checkpoints", "list", "--user", "alice", "--json").ok().json["checkpoints"][0]["kind"] == "turn"
    process("checkpoints", "rewind", "--user", "alice").ok()
    assert not (workspace(home) / "a.txt").exists(), "the author of the changes is known"
    process("chat", "--user", "alice", "hello").ok()


def test_a_stream_that_is_closed_in_an_answer_keeps_what_has_arrived(process: Command, home: Path) -> None:
    async def pieces(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        for number in range(1000):
            yield f"piece{number} "
            await asyncio.sleep(0.01)

    async def story(alice: OpenProfile) -> None:
        events = alice.stream(create_deep_agent(FunctionModel(stream_function=pieces)), "go")
        async for event in events:
            if "piece9" in event.get("delta", ""):
                break
        await events.aclose()
        assert "piece5" in str(await alice.history())

    with_alice(story)
    assert "piece5" in process("sessions", "show", "--user", "alice").ok().stdout


_APPLICATION = """
import asyncio
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from deepctl import create_deep_agent, open_profile

def answer(messages, info):
    if len(messages) < 3:
        return ModelResponse(parts=[ToolCallPart("write_file", {"path": "a.txt", "content": "agent"})])
    return ModelResponse(parts=[ToolCallPart("wait", {})])

agent = create_deep_agent(FunctionModel(answer))

@agent.tool_plain
async def wait() -> str:
    print("in the tool", flush=True)
    await asyncio.sleep(60)
    return ""

async def main():
    async with open_profile("alice") as alice:
        await alice.run(None, "write before.txt: one")
        await alice.run(agent, "go")

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_application_that_is_killed_in_a_turn_leaves_a_profile_to_go_on_with(
    process: Command, home: Path, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _APPLICATION], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as application:
        assert application.stdout is not None
        assert application.stdout.readline() == "in the tool\n"
        application.send_signal(number)
        application.wait(30)
    listed = process("checkpoints", "list", "--user", "alice", "--json").ok().json
    assert listed["damaged"] == []
    process("checkpoints", "rewind", "--user", "alice", *(["--force"] if number == signal.SIGKILL else [])).ok()
    assert sorted(path.name for path in workspace(home).glob("*.txt")) == ["before.txt"]
    process("checkpoints", "verify", "--user", "alice").ok()
    assert "1 earlier turn" in with_alice(lambda alice: alice.run(None, "hello")).output


def test_deps_share_files_and_memory_with_runs_outside_of_sessions(process: Command, home: Path) -> None:
    async def story(alice: OpenProfile) -> str:
        await alice.run(None, "remember tea")
        deps = await alice.deps()
        return (await run(await alice.agent(), "recall tea", deps=deps)).output

    assert "tea" in with_alice(story)
    assert len(with_alice(lambda alice: alice.history())) == 4
    process("checkpoints", "verify", "--user", "alice").ok()


def test_every_error_is_of_deepctl_where_the_disk_fails(home: Path) -> None:
    with_alice(lambda alice: alice.run(None, "hello"))
    sessions = home / "profiles/alice/sessions"
    os.rename(sessions, home / "kept")
    sessions.write_text("not a directory")
    with pytest.raises(DeepctlError) as caught:
        with_alice(lambda alice: alice.run(None, "hello"))
    assert caught.value.code
    sessions.unlink()
    os.rename(home / "kept", sessions)
    with_alice(lambda alice: alice.run(None, "hello"))


def test_the_lock_is_released_after_an_error(home: Path) -> None:
    def failing(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise ValueError("a bug of the application")

    with pytest.raises(ValueError, match="a bug"):
        with_alice(lambda alice: alice.run(create_deep_agent(FunctionModel(failing)), "go"))
    with profiles.lock(Root(str(home)), "alice", command="test"):
        pass


def test_request_handlers_that_wait_in_threads_of_a_framework_leave_threads_to_their_runs(home: Path) -> None:
    """A web framework calls its synchronous handlers in anyio's worker threads."""
    count = 3

    async def turn(number: int) -> str:
        async with open_profile(f"user{number}") as profile:
            return (await profile.run(create_deep_agent("offline"), "write a.txt: one")).output

    async def main() -> list[str]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = count

        def handler(number: int) -> str:
            return anyio.from_thread.run(turn, number)

        return await asyncio.gather(
            *(anyio.to_thread.run_sync(handler, number, abandon_on_cancel=True) for number in range(count))
        )

    assert asyncio.run(asyncio.wait_for(main(), 30)) == ["Wrote 1 line to a.txt"] * count


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_an_open_profile_can_be_used_in_several_event_loops(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCTL_MODEL", "openai-chat:loopback")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with provider(Text(["one"]), Text(["two"]), Text(["three"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        profile = asyncio.run(open_profile("alice").__aenter__())
        assert [asyncio.run(profile.run(None, "hello")).output for _ in range(3)] == ["one", "two", "three"]
    # A loop that ends before its profile is closed leaves its connections to the garbage collector.
    del profile
    gc.collect()


def own_model(server: Provider) -> OpenAIChatModel:
    """A model object of an application, which requests answers of this server."""
    return OpenAIChatModel("loopback", provider=OpenAIProvider(base_url=f"{server.address}/v1", api_key="key"))


@pytest.mark.parametrize("is_fallback", [False, True])
def test_a_model_of_an_application_that_another_running_event_loop_uses_is_an_error_at_once(
    home: Path, is_fallback: bool
) -> None:
    """pydantic-ai's lock of a provider is never released across event loops, so the request would wait for ever."""
    has_begun, may_end = threading.Event(), threading.Event()

    def gate() -> None:
        has_begun.set()
        may_end.wait(30)

    async def turn(name: str) -> str:
        async with open_profile(name, wait=0) as profile:
            return (await profile.run(agent, "hello")).output

    async def without_a_profile() -> None:
        async with aclosing(stream(agent, "hello", deps=DeepAgentDeps(backend=StateBackend()))) as events:
            async for _ in events:
                pass

    with provider(Text(["one ", "two"], gate), Text(["three"]), repeat_last=True) as server:
        model: Model = own_model(server)
        agent = create_deep_agent(FallbackModel(model, own_model(server)) if is_fallback else model)
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(asyncio.run, turn("alice"))
            try:
                assert has_begun.wait(30)
                for work in (turn("bob"), without_a_profile()):
                    with pytest.raises(UsageError) as caught:
                        asyncio.run(asyncio.wait_for(work, 10))
                    assert (caught.value.code, caught.value.exit_code) == ("event_loop", 2)
                    assert "another event loop" in caught.value.message
                    assert "the name of the model" in str(caught.value.hint)
            finally:
                may_end.set()
            assert first.result(30) == "one two"
        assert not (home / "profiles/bob").exists(), "the error comes before a lock is taken"
        assert asyncio.run(turn("bob")) == "three", "the first event loop has ended"


def test_a_fallback_model_answers_if_the_first_one_fails(home: Path) -> None:
    with (
        provider(Status(503), Status(503)) as busy,
        provider(ToolCalls([("ls", {"path": "."})]), Text(["two"])) as server,
    ):
        agent = create_deep_agent(FallbackModel(own_model(busy), own_model(server)))
        result = with_alice(lambda alice: alice.run(agent, "list the files"))
    assert result.output == "two"
    assert [len(busy.requests), len(server.requests)] == [2, 2]
    assert server.requests[0]["tools"]


def test_many_event_loops_with_one_model_neither_hang_nor_keep_a_lock(process: Command, home: Path) -> None:
    """Six threads, each with an event loop and a profile of its own: 6 of 6 such runs hung before."""
    errors: list[DeepctlError] = []

    async def turns(name: str) -> None:
        async with open_profile(name, wait=0) as profile:
            for number in range(4):
                try:
                    await profile.run(agent, f"hello {number}")
                except DeepctlError as error:
                    errors.append(error)

    names = [f"user{number}" for number in range(6)]
    with provider(Text(["one ", "two"]), repeat_last=True) as server:
        agent = create_deep_agent(own_model(server))
        # Daemons, so that a hang fails the test and does not stop it.
        threads = [threading.Thread(target=asyncio.run, args=(turns(name),), daemon=True) for name in names]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads)
    assert {error.code for error in errors} <= {"event_loop"}
    for name in names:
        process("chat", "--user", name, "--model", "offline", "hello").ok()


def test_an_agent_with_the_name_of_a_model_can_be_used_in_several_running_event_loops(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    both = threading.Barrier(2, timeout=30)

    def meet() -> None:
        both.wait()

    async def turn(name: str) -> list[str]:
        async with open_profile(name) as profile:
            return [(await profile.run(agent, "hello")).output for _ in range(3)]

    with provider(Text(["one ", "two"], meet), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        agent = create_deep_agent("openai-chat:loopback")
        with ThreadPoolExecutor(2) as threads:
            results = [threads.submit(asyncio.run, turn(name)) for name in ("alice", "bob")]
            assert [result.result(60) for result in results] == [["one two"] * 3] * 2


def test_contradicting_and_invalid_arguments_are_errors_and_change_nothing(home: Path) -> None:
    async def story(alice: OpenProfile) -> None:
        with pytest.raises(SessionNotFound):
            await alice.history("nowhere")
        with pytest.raises(SessionNotFound):
            await alice.checkpoints("nowhere")
        assert not (home / "profiles/alice").exists()
        await alice.run(None, "write a.txt: one")
        before = await alice.checkpoints()
        for call in (
            lambda: alice.run(None, "hello", session="main", new="second"),
            lambda: alice.run(None, "hello", session="main", new=True),
            lambda: alice.rewind("~1", only="everything"),  # type: ignore[arg-type]
            lambda: alice.checkpoints(limit=-1),
        ):
            with pytest.raises(UsageError) as caught:
                await call()
            assert (caught.value.code, caught.value.exit_code) == ("usage", 2)
            assert caught.value.hint
        assert await alice.checkpoints() == before
        assert [session.name for session in await alice.sessions()] == ["main"]

    with_alice(story)
    for root in ("a\ud800", "a\0"):
        with pytest.raises(BadPath) as caught:
            with_alice(lambda alice: alice.history(), root=home / root)
        assert caught.value.code == "bad_path"


def test_a_turn_without_a_model_says_that_the_offline_model_answers(
    process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def turns(alice: OpenProfile) -> tuple[list[str], list[dict[str, Any]]]:
        async with aclosing(alice.stream(create_deep_agent(), "hello")) as stream:
            events = [event async for event in stream]
        return (await alice.run(None, "hello")).notices, events

    monkeypatch.delenv("DEEPCTL_MODEL", raising=False)
    (notice,), events = with_alice(turns)
    assert "the offline model answers" in notice
    assert [event["message"] for event in events if event["type"] == "notice"] == [notice]
    assert events[0]["model"] == "offline"

    async def chosen(alice: OpenProfile) -> tuple[list[str], str]:
        async with aclosing(alice.stream(create_deep_agent("offline"), "hello")) as stream:
            start = await anext(stream)
        return (await alice.run(create_deep_agent("offline"), "hello")).notices, start["model"]

    assert with_alice(chosen) == ([], "offline")
    process("config", "set", "model", "offline", "--user", "alice").ok()
    assert with_alice(lambda alice: alice.run(None, "hello")).notices == []


def test_the_name_of_a_model_is_no_agent() -> None:
    with pytest.raises(DeepctlError) as raised:
        with_alice(lambda alice: alice.run("offline", "hello"))  # type: ignore[call-overload]
    assert raised.value.code == "usage"
    assert "create_deep_agent(model)" in str(raised.value.hint)


def test_an_application_that_makes_an_agent_for_each_run_does_not_grow(home: Path) -> None:
    async def work(alice: OpenProfile) -> None:
        models = [of_texts("first", "again"), *(of_texts(f"answer {number}") for number in range(12))]
        agents = [create_deep_agent(model) for model in models]
        references = [weakref.ref(agent) for agent in agents]
        first = agents[0]
        for agent in agents:
            await alice.run(agent, "hello")
        del agents, agent
        gc.collect()
        assert sum(reference() is not None for reference in references) <= 10
        assert (await alice.run(first, "hello")).output == "again"
        assert len(await alice.history()) == 28

    with_alice(work)
