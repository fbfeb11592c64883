"""`run` and `stream`: an agent with rewinds hidden, any model and output type, and consumers that stop early."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextContent, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage, UsageLimits

from deepctl import (
    DeepAgentDeps,
    FileCheckpointStore,
    InMemoryCheckpointStore,
    LocalBackend,
    StateBackend,
    create_deep_agent,
    end_runs,
    run,
    stream,
)


class Trip(BaseModel):
    """An output type of an application."""

    city: str
    nights: int


def rewinding(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Writes a file, goes back to before it, and then answers what it noted."""
    notes = [
        item.content
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
        if not isinstance(getattr(part, "content", ""), str)
        for item in getattr(part, "content", ())
        if isinstance(item, TextContent) and (item.metadata or {}).get("deepctl") == "rewound"
    ]
    if notes:
        return ModelResponse(parts=[TextPart(notes[-1])])
    calls = [part.tool_name for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
    steps = {
        0: ToolCallPart("save_checkpoint", {"label": "start"}),
        1: ToolCallPart("write_file", {"path": "a.txt", "content": "x"}),
        2: ToolCallPart("rewind_to", {"checkpoint": "start", "reason": "a.txt is wrong"}),
    }
    return ModelResponse(parts=[steps[len(calls)]])


def on_disk(place: Path) -> DeepAgentDeps:
    return DeepAgentDeps(
        backend=LocalBackend(place / "workspace"), checkpoint_store=FileCheckpointStore(place / "checkpoints")
    )


async def events_of(events: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event async for event in events]


def test_a_rewind_by_the_agent_is_hidden(tmp_path: Path) -> None:
    agent = create_deep_agent(FunctionModel(rewinding))
    usage = RunUsage()
    result = asyncio.run(run(agent, "go", deps=on_disk(tmp_path), usage=usage))
    assert "a.txt is wrong" in result.output
    assert not (tmp_path / "workspace/a.txt").exists()
    assert usage.requests == 4, "three before the rewind and one after it"
    assert "go" in str(result.all_messages())


def test_a_rewind_in_a_stream_is_followed_by_the_events_of_the_new_start(tmp_path: Path) -> None:
    agent = create_deep_agent(FunctionModel(rewinding))
    events = asyncio.run(events_of(stream(agent, "go", deps=on_disk(tmp_path))))
    assert [event["name"] for event in events if event["type"] == "tool_call"] == [
        "save_checkpoint",
        "write_file",
        "rewind_to",
    ]
    assert "a.txt is wrong" in "".join(event["delta"] for event in events if event["type"] == "text")
    assert events[-1]["type"] == "result"
    assert events[-1]["usage"]["requests"] == 4
    assert json.loads(json.dumps(events)) == events


def test_limits_count_every_start(tmp_path: Path) -> None:
    agent = create_deep_agent(FunctionModel(rewinding))
    with pytest.raises(UsageLimitExceeded):
        asyncio.run(run(agent, "go", deps=on_disk(tmp_path), usage_limits=UsageLimits(request_limit=3)))


def test_events_are_those_of_the_command_line() -> None:
    agent = create_deep_agent(TestModel(call_tools=["write_memory"]))
    deps = DeepAgentDeps(backend=StateBackend(), checkpoint_store=InMemoryCheckpointStore())
    events = asyncio.run(events_of(stream(agent, "go", deps=deps)))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "checkpoint"
    assert {"tool_call", "tool_result", "checkpoint", "text", "result"} == set(kinds)
    made = asyncio.run(deps.checkpoint_store.list_all())  # type: ignore[union-attr]
    assert {event["id"] for event in events if event["type"] == "checkpoint"} == {one.id for one in made}


def test_an_output_of_another_type_is_returned_as_it_is_and_streamed_as_json() -> None:
    agent: Agent[DeepAgentDeps, Any] = create_deep_agent(
        TestModel(call_tools=[], custom_output_args={"city": "Rome", "nights": 3})
    )
    result = asyncio.run(run(agent, "go", deps=DeepAgentDeps(backend=StateBackend()), output_type=Trip))
    assert result.output == Trip(city="Rome", nights=3)
    events = asyncio.run(events_of(stream(agent, "go", deps=DeepAgentDeps(backend=StateBackend()), output_type=Trip)))
    assert events[-1]["output"] == {"city": "Rome", "nights": 3}


async def _pieces(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    if len(messages) == 1:
        yield {0: DeltaToolCall("write_file", '{"path": "a.txt", "content": "x"}')}
        return
    for number in range(1000):
        yield f"{number} "
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["aclose", "break", "cancel"])
def test_a_consumer_that_stops_ends_the_run_and_its_end_is_stored(tmp_path: Path, how: str) -> None:
    agent = create_deep_agent(FunctionModel(stream_function=_pieces))
    deps = on_disk(tmp_path)

    async def consume(events: AsyncIterator[dict[str, Any]]) -> None:
        async for event in events:
            if event["type"] == "text":
                if how == "cancel":
                    await asyncio.sleep(30)
                return

    async def main() -> None:
        events = stream(agent, "go", deps=deps)
        task = asyncio.create_task(consume(events))
        if how == "cancel":
            await asyncio.sleep(1)
            task.cancel()
        await asyncio.wait([task])
        await events.aclose()
        assert len(asyncio.all_tasks()) == 1, "nothing of the run goes on"

    asyncio.run(main())
    store = deps.checkpoint_store
    assert isinstance(store, FileCheckpointStore)
    last = asyncio.run(store.list_all())[-1]
    assert last.metadata["ended"] is True
    assert "a.txt" in str(last.messages)


def test_an_error_of_the_model_is_raised_after_the_events_before_it() -> None:
    def failing(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) > 1:
            raise ValueError("broken")
        return ModelResponse(parts=[ToolCallPart("ls", {})])

    seen: list[str] = []

    async def main() -> None:
        async for event in stream(
            create_deep_agent(FunctionModel(failing)), "go", deps=DeepAgentDeps(backend=StateBackend())
        ):
            seen.append(event["type"])

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(main())
    assert seen == ["tool_call", "tool_result"]


@pytest.mark.parametrize("how", ["run", "stream"])
def test_the_end_of_an_application_stores_the_ends_of_runs(tmp_path: Path, how: str) -> None:
    async def story() -> None:
        await end_runs()  # there are none
        may_end, has_begun = asyncio.Event(), asyncio.Event()
        agent = create_deep_agent(FunctionModel(write_and_wait))

        @agent.tool_plain
        async def wait() -> str:
            has_begun.set()
            await may_end.wait()
            return ""

        deps = DeepAgentDeps(
            backend=LocalBackend(tmp_path / "files"), checkpoint_store=FileCheckpointStore(tmp_path / "s")
        )

        async def streamed() -> None:
            async with aclosing(stream(agent, "go", deps=deps)) as events:
                async for _ in events:
                    pass

        task = asyncio.ensure_future(streamed() if how == "stream" else run(agent, "go", deps=deps))
        await asyncio.wait_for(has_begun.wait(), 30)
        await asyncio.wait_for(end_runs(), 30)
        # The run has stored its end before its caller has noticed anything.
        newest = await FileCheckpointStore(tmp_path / "s").newest()
        assert newest is not None
        assert "write_file" in str(newest.messages)
        with pytest.raises(asyncio.CancelledError):
            await task

    def write_and_wait(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        name, arguments = ("write_file", {"path": "a.txt", "content": "x"}) if len(messages) < 2 else ("wait", {})
        return ModelResponse(parts=[ToolCallPart(name, arguments)])

    asyncio.run(story())
