"""Halves of characters: whatever sends them, a conversation goes on, is shown, exported and taken over."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, DeltaThinkingCalls, DeltaThinkingPart, FunctionModel

from deepctl import DeepAgentDeps, FileCheckpointStore, StateBackend, create_deep_agent
from deepctl.agent.checkpoint_stores import new_checkpoint
from deepctl.agent.model_wrappers import UnicodeFilterModel
from deepctl.files import sealed_lines
from tests.support.command import InProcess
from tests.support.loopback import Answer, Broken, Provider, Text, ToolCalls, provider

KINDS = {"openai": "openai-chat:loopback", "anthropic": "anthropic:loopback", "responses": "openai:loopback"}
HALF, PAIR = "\ud83d", ("\ud83d", "\ude00")


def _point(server: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, end in (("OPENAI", "/v1"), ("ANTHROPIC", "")):
        monkeypatch.setenv(f"{name}_BASE_URL", server.address + end)
        monkeypatch.setenv(f"{name}_API_KEY", "sk-canary-0123456789")


def _deltas(events: list[dict[str, Any]]) -> list[str]:
    return [event["delta"] for event in events if event["type"] == "text" and event["delta"]]


def _logs(home: Path) -> list[Path]:
    return sorted(home.glob("profiles/*/sessions/*/*.jsonl"))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        *((kind, Text([f"hi {HALF}"])) for kind in KINDS),
        ("openai", Broken("cut", ["hi ", HALF])),
        ("anthropic", Broken("clean", [f"hi {HALF}"])),
    ],
    ids=str,
)
def test_a_session_goes_on_after_an_answer_that_ends_in_half_a_character(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, answer: Answer
) -> None:
    with provider(answer, Text(["two"]), repeat_last=True) as server:
        _point(server, monkeypatch)
        deepctl("config", "set", "retries", "0").ok()
        first = deepctl("chat", "--json", "--model", KINDS[kind], "one")
        assert "".join(_deltas(first.events)) == "hi \ufffd"
        assert deepctl("chat", "--model", KINDS[kind], "two").ok().stdout == "two\n"
        assert "hi \ufffd" in json.dumps(server.requests[-1], ensure_ascii=False)
        export = str(tmp_path / "one.json")
        deepctl("sessions", "export", "--output", export).ok()
        deepctl("sessions", "import", export, "--as", "other").ok()
        assert deepctl("chat", "--model", KINDS[kind], "-s", "other", "three").ok().stdout == "two\n"
    for path in _logs(home):
        assert b"\\ud83d" not in path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_that_comes_in_two_deltas_is_shown_as_one(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(Text(["a", PAIR[0], PAIR[1] + "b", f"c{PAIR[0]}", PAIR[1]]), repeat_last=True) as server:
        _point(server, monkeypatch)
        events = deepctl("chat", "--json", "--model", KINDS[kind], "one").ok().events
        assert _deltas(events) == ["a", "😀b", "c", "😀"]
        assert events[-1]["output"] == "a😀bc😀"
        assert deepctl("chat", "--model", KINDS[kind], "two").ok().stdout == "a😀bc😀\n"


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_of_a_tool_are_valid_text_and_the_tool_runs(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    call = ("write_file", {"path": "a.txt", "content": f"x{HALF} \U0001f600"})
    odd = ("write_file", {"path": "b.txt", "content": "x", f"k{HALF}": HALF})
    with provider(ToolCalls([call, odd]), Text(["done"]), repeat_last=True) as server:
        _point(server, monkeypatch)
        events = deepctl("chat", "--json", "--model", KINDS[kind], "one").ok().events
        assert [event["args"] for event in events if event["type"] == "tool_call"] == [
            {"path": "a.txt", "content": "x\ufffd 😀"},
            {"path": "b.txt", "content": "x", "k\ufffd": "\ufffd"},
        ]
        assert (home / "profiles/default/workspace/a.txt").read_text() == "x\ufffd 😀"
        assert deepctl("chat", "--model", KINDS[kind], "two").ok().stdout == "done\n"


def test_a_log_that_deepctl_0_1_wrote_with_half_a_character_can_be_used(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.1 wrote the half as it came, in an ASCII-only line."""
    with provider(Text(["hi ", "there"]), repeat_last=True) as server:
        _point(server, monkeypatch)
        deepctl("chat", "--model", KINDS["openai"], "one").ok()
        (path,) = _logs(home)
        lines = [line.value for line in sealed_lines.parse(path.read_bytes())]
        assert lines[-1] is not None
        lines[-1]["message"]["parts"] = [
            {"part_kind": "text", "content": f"hi {HALF}"},
            {"part_kind": "tool-call", "tool_name": "ls", "args": '{"path": "\\ud83d"}', "tool_call_id": "1"},
        ]
        path.write_bytes(b"".join(sealed_lines.seal(line) for line in lines if line is not None))
        assert b"\\ud83d" in path.read_bytes()
        deepctl("checkpoints", "save", "old").ok()
        assert deepctl("chat", "--model", KINDS["openai"], "two").ok().stdout == "hi there\n"
        assert "\\ud83d" not in json.dumps(server.requests[-1])
        for command in (("show",), ("show", "--json"), ("export", "--format", "markdown"), ("search", "hi")):
            assert "\\ud83d" not in deepctl("sessions", *command).ok().stdout
        archive = str(tmp_path / "profile.tar")
        deepctl("profiles", "export", archive).ok()
        deepctl("profiles", "import", archive, "--as", "other").ok()
        assert deepctl("chat", "-u", "other", "--model", KINDS["openai"], "three").ok().stdout == "hi there\n"


def test_a_checkpoint_of_pydantic_deep_with_half_a_character_can_be_gone_on_with(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir()
    message = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": f"hello {HALF}"}]}
    answer = {"kind": "response", "parts": [{"part_kind": "text", "content": f"hi {HALF}"}]}
    (directory / "a1.json").write_text(
        json.dumps(
            {
                "id": "a1",
                "label": "x",
                "turn": 1,
                "messages": [message, answer],
                "message_count": 2,
                "created_at": "2026-01-01T00:00:00+00:00",
                "metadata": {"note": HALF},
            }
        )
    )
    with provider(Text(["two"]), repeat_last=True) as server:
        _point(server, monkeypatch)
        deepctl("profiles", "create", "default").ok()
        deepctl("checkpoints", "import", str(directory)).ok()
        deepctl("chat", "--model", KINDS["openai"], "two").ok()
        assert "hi \ufffd" in json.dumps(server.requests[-1], ensure_ascii=False)


def test_what_tools_of_mcp_servers_return_is_valid_text(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.mcp_http_server import mcp_server

    program = Path(__file__).parent.parent / "support" / "mcp_stdio_server.py"
    with (
        mcp_server() as remote,
        provider(ToolCalls([("here__half", {}), ("there__whoami", {})]), Text(["done"]), repeat_last=True) as server,
    ):
        remote.said = f"{HALF} and \U0001f600"
        _point(server, monkeypatch)
        deepctl("profiles", "create", "default").ok()
        with open(home / "profiles/default/profile.toml", "a") as file:
            file.write(f'\n[mcp_servers.here]\ncommand = "{sys.executable}"\nargs = ["{program}", "--tools", "half"]\n')
            file.write(f'[mcp_servers.there]\nurl = "{remote.url}"\n')
        ran = deepctl("chat", "--json", "--approve", "auto", "--model", KINDS["openai"], "one").ok()
        results = [(event["ok"], event["content"]) for event in ran.events if event["type"] == "tool_result"]
        assert results == [(True, "\ufffd and 😀"), (True, "\ufffd and 😀")]


def _asked(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    assert "\\ud83d" not in repr(messages)
    return ModelResponse(parts=[TextPart(f"hi {HALF}")])


def test_an_application_gets_valid_text_from_any_model_and_its_checkpoints_have_it(tmp_path: Path) -> None:
    agent = create_deep_agent(FunctionModel(_asked), instructions=f"be kind {HALF}")
    store = FileCheckpointStore(tmp_path / "checkpoints")
    deps = DeepAgentDeps(backend=StateBackend(), checkpoint_store=store)
    history: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(f"before {HALF}")]),
        ModelResponse(parts=[TextPart(HALF), ToolCallPart("ls", {f"k{HALF}": HALF}, "1")]),
        ModelRequest(parts=[ToolReturnPart("ls", {"names": [HALF]}, "1")]),
    ]

    async def run() -> None:
        result = await agent.run(f"hello {HALF}", deps=deps, message_history=list(history))
        assert result.output == "hi \ufffd"
        made = new_checkpoint("odd", 1, history)
        await store.save(made)
        await store.save(new_checkpoint("again", 1, history))
        kept = await FileCheckpointStore(tmp_path / "checkpoints").get(made.id)
        assert kept is not None
        assert "\\ud83d" not in repr(kept.messages)
        assert len(kept.messages) == 3
        logs = list((tmp_path / "checkpoints" / "messages").iterdir())
        assert logs
        assert not any(b"\\ud83d" in log.read_bytes() for log in logs)

    asyncio.run(run())


async def _thinks(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaThinkingCalls]:
    for piece in ("a", PAIR[0], PAIR[1], "b", HALF):
        yield {0: DeltaThinkingPart(content=piece)}


def test_thinking_comes_in_whole_characters_too() -> None:
    async def run() -> None:
        model = UnicodeFilterModel(FunctionModel(stream_function=_thinks))
        asked: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("x")])]
        said = []
        async with model.request_stream(asked, None, ModelRequestParameters()) as response:
            async for event in response:
                match event:
                    case PartStartEvent(part=ThinkingPart(content=text)):
                        said.append(text)
                    case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=str(text))):
                        said.append(text)
        assert said == ["a", "", "😀", "b", "", "\ufffd"]
        assert response.get().parts == [ThinkingPart("a😀b\ufffd")]

    asyncio.run(run())
