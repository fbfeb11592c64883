"""Prompt caching: the cache markers of providers, and requests that begin with the bytes of the request before."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise, starmap, takewhile
from operator import eq
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai_backends import StateBackend

from deepctl.agent import turn_context
from deepctl.agent.chat import Chat, TurnRunner
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.offline import offline_model
from deepctl.agent.turn_engine import Options
from deepctl.domain import profiles
from deepctl.layout import ProfilePaths, Root
from deepctl.store import session_catalogue
from deepctl.store.repository import Repository
from tests.support.command import InProcess
from tests.support.loopback import Answer, Provider, Text, ToolCalls, provider

MODELS = ("openai-chat:m", "anthropic:claude-sonnet-4-6")
MARKER = {"type": "ephemeral", "ttl": "5m"}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")


@pytest.fixture
def alice(home: Path) -> ProfilePaths:
    return profiles.create(Root(str(home)), "alice")


def _point_at(server: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)


def test_anthropic_gets_markers_after_the_tools_the_instructions_and_the_conversation(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(Text(["Hi."]), repeat_last=True) as server:
        _point_at(server, monkeypatch)
        deepctl("chat", "--model", "anthropic:claude-sonnet-4-6", "hello").ok()
    (request,) = server.requests
    assert [tool.get("cache_control") for tool in request["tools"]] == [
        *[None] * (len(request["tools"]) - 1),
        MARKER,
    ]
    # Instructions that another run may change come after the marker.
    assert [block.get("cache_control") for block in request["system"]].count(MARKER) == 1
    assert request["cache_control"] == MARKER, "the conversation, marked by the server"


@pytest.mark.parametrize("model", [*MODELS, "openai:m"])
def test_the_result_says_how_many_tokens_were_cached(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    with provider(Text(["Hi."], used=(1000, 20), cached=800), Text(["Bye."], used=(1100, 20))) as server:
        _point_at(server, monkeypatch)
        for prompt, cached in (("hello", 800), ("bye", 0)):
            usage = deepctl("chat", "--json", "--model", model, prompt).ok().events[-1]["usage"]
            assert usage == {
                "input_tokens": 1000 if cached else 1100,
                "cached_tokens": cached,
                "output_tokens": 20,
                "requests": 1,
            }


class _Recording(WrapperModel):
    """Records the settings of requests."""

    def __init__(self, settings: ModelSettings | None = None) -> None:
        super().__init__(offline_model())
        self.wrapped._settings = settings
        self.recorded: list[ModelSettings | None] = []

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        self.recorded.append(model_settings)
        return await super().request(messages, model_settings, model_request_parameters)


@pytest.mark.parametrize(
    ("own", "of_run", "cache"),
    [
        (None, None, True),
        (ModelSettings(temperature=0.5), None, True),
        (ModelSettings(cache=False), None, False),
        (ModelSettings(cache="1h"), None, "1h"),
        (None, ModelSettings(cache=False), False),
    ],
)
def test_settings_of_the_model_and_of_a_run_have_priority(
    own: ModelSettings | None, of_run: ModelSettings | None, cache: object
) -> None:
    model = _Recording(own)
    agent = create_deep_agent(model)
    asyncio.run(agent.run("hello", deps=DeepAgentDeps(backend=StateBackend()), model_settings=of_run))
    assert [(settings or {}).get("cache") for settings in model.recorded] == [cache]


def _script() -> list[tuple[str, list[Answer]]]:
    """30 prompts, each with the answers to its requests."""
    turns: list[tuple[str, list[Answer]]] = []
    for number in range(30):
        answers: list[Answer] = [Text([f"Answer {number}."])]
        match number % 5:
            case 1:
                answers.insert(0, ToolCalls([("write_file", {"path": f"{number}.txt", "content": "x" * number})]))
            case 2:
                answers.insert(0, ToolCalls([("ls", {"path": "."}), ("read_file", {"path": f"{number - 1}.txt"})]))
                answers.insert(1, ToolCalls([("grep", {"pattern": "x"})]))
            case 3:
                answers.insert(0, ToolCalls([("write_memory", {"content": f"Fact {number}."})]))
            case 4:
                plan = [{"content": f"Step {number}", "status": "pending"}]
                answers.insert(0, ToolCalls([("write_plan", {"items": plan})]))
        turns.append((f"Prompt {number}", answers))
    return turns


def _pieces(request: dict[str, Any]) -> list[str]:
    """A request as JSON texts: all but the messages, then each message. Markers move, and are left out."""
    without = {key: value for key, value in request.items() if key not in ("messages", "cache_control")}
    return [json.dumps(_unmarked(piece)) for piece in (without, *request["messages"])]


def _unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unmarked(item) for key, item in value.items() if key != "cache_control"}
    return [_unmarked(item) for item in value] if isinstance(value, list) else value


def _common(before: str, text: str) -> int:
    """The number of characters with which both texts begin."""
    return sum(takewhile(bool, map(eq, before, text)))


@pytest.mark.parametrize("model", MODELS)
def test_a_request_begins_with_the_bytes_of_the_request_before(
    deepctl: InProcess, alice: ProfilePaths, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """30 turns with tools, memory, plans, other processes, a new day, and a rewind."""
    start = datetime(2026, 12, 31, 22, tzinfo=UTC)
    turns = _script()
    with provider(*[answer for _, answers in turns for answer in answers]) as server:
        _point_at(server, monkeypatch)
        before: list[str] = []
        ends: list[list[str]] = []
        for number, (prompt, _) in enumerate(turns):
            if number % 10 == 0:
                runner = TurnRunner(Options(model, retries=0), environment=os.environ)
            monkeypatch.setattr(turn_context, "now", lambda hours=number // 5: start + timedelta(hours=hours))
            first = len(server.requests)
            with Repository.open(alice) as work:
                if number == 0:
                    session_catalogue.start(alice, "main")
                Chat(runner).turn(work, "main", prompt, lambda event: None)
            for request in server.requests[first:]:
                pieces = _pieces(request)
                assert pieces[: len(before)] == before, (number, pieces[: len(before)][-1], before[-1])
                before = pieces
            ends.append(before)
            if number % 10 == 9:
                runner.close()
            if number == 21:
                deepctl("checkpoints", "rewind", "~3", "--user", "alice", "--only", "conversation").ok()
                before = ends[number - 3]
    assert len(server.requests) == sum(len(answers) for _, answers in turns)
    for told in ("2026-12-31", "2027-01-01", "Fact 28.", "Step 29"):
        assert told in str(server.requests[-1])
    texts = ["".join(_pieces(request)) for request in server.requests]
    # docs/models.md has this figure.
    assert sum(starmap(_common, pairwise(texts))) / sum(map(len, texts)) >= 0.97
