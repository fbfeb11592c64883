"""The tools `search_sessions` and `ask_user`: what they find and ask, and when they are there."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from deepctl.agent import past_sessions
from deepctl.agent.extensions import AgentExtensions
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.past_sessions import SearchSessions
from deepctl.agent.questions import AskUser, UserQuestion
from deepctl.layout import Root
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider

QUESTION = {"header": "store", "question": "Which?", "options": [{"label": "one"}, {"label": "two"}]}


def result_of(capability: Any, name: str, arguments: dict[str, Any]) -> str:
    steps: list[ToolCallPart | TextPart] = [ToolCallPart(name, arguments), TextPart("done")]
    results: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        results.extend(part.model_response_str() for part in messages[-1].parts if isinstance(part, ToolReturnPart))
        return ModelResponse(parts=[steps.pop(0)])

    agent = create_deep_agent(FunctionModel(answer), capabilities=[capability])
    asyncio.run(agent.run("go", deps=DeepAgentDeps()))
    return results[0]


def test_earlier_sessions_are_found_and_the_running_turn_is_not(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-canary-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    project = tmp_path / "shop"
    project.mkdir()
    deepctl("chat", "-u", "bob", "a window seat of bob").ok()
    deepctl("chat", "-u", "alice", "--session", "trip", f"the Window is {key}, and a seat").ok()
    deepctl("chat", "-u", "alice", "-C", str(project), "--session", "shop", "no seat, no window").ok()
    deepctl("config", "set", "search_sessions", "on", "-u", "alice").ok()
    calls = [("search_sessions", {"query": "window seat"}), ("search_sessions", {"query": "nothing like it"})]
    calls += [("search_sessions", {"query": "x", "session": "none"}), ("search_sessions", {"query": " "})]
    with provider(ToolCalls(calls), Text(["Found."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        options = ("-u", "alice", "--no-project", "--session", "trip", "--model", "openai-chat:gpt-4o")
        deepctl("chat", *options, "where is the window seat?").ok()
    results = [message["content"] for message in server.requests[1]["messages"] if message["role"] == "tool"]
    assert "Session trip, 20" in results[0]
    assert f"Session shop, in {project}, 20" in results[0]
    assert "turn 1, user: no seat, no window" in results[0]
    assert "where is" not in results[0]
    assert "bob" not in results[0]
    assert key not in json.dumps(results)
    assert "No earlier conversation" in results[1]
    assert "no session" in results[2].lower()
    assert "query is empty" in results[3]


def test_a_result_is_short(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = f"{'a' * 5000} tea \x1b[2J {'b' * 5000}"
    deepctl("chat", "-u", "alice", "\n".join([line] * 40)).ok()
    paths = Root(str(home)).profile("alice")
    result = result_of(SearchSessions(paths), "search_sessions", {"query": "TEA"})
    assert len(result) < past_sessions.MOST_RESULT + 200
    assert "There are more matches" in result
    assert "\x1b" not in result
    assert "tea \\x1b[2J bbb" in result


@pytest.mark.parametrize("query", ["before", "behind"])
def test_no_part_of_a_key_is_left_where_a_line_is_cut(deepctl: InProcess, home: Path, query: str) -> None:
    key = "sk-canary-0123456789abcdef"
    line = f"before {'a ' * 140}{key} {'b ' * 40}behind {'c ' * 200}"
    deepctl("chat", "-u", "alice", line).ok()
    search = SearchSessions(Root(str(home)).profile("alice"), {"OPENAI_API_KEY": key})
    result = result_of(search, "search_sessions", {"query": query})
    assert query in result
    assert "canary" not in result
    assert "abcdef" not in result


def test_every_form_of_an_answer_reaches_the_model() -> None:
    asked: list[UserQuestion] = []
    answers: list[list[str] | str | None] = [["two"], "my own", None]

    async def answer(question: UserQuestion) -> list[str] | str | None:
        asked.append(question)
        return answers.pop(0)

    questions = [QUESTION, {**QUESTION, "header": "b", "question": "And?"}]
    result = result_of(AskUser(answer), "ask_user", {"questions": questions})
    assert json.loads(result) == {"store": ["two"], "b": ["my own"]}
    assert [(question.text, question.number, question.total) for question in asked] == [
        ("Which?", 1, 2),
        ("And?", 2, 2),
    ]
    assert "declined" in result_of(AskUser(answer), "ask_user", {"questions": questions})
    assert len(asked) == 3


def test_an_answer_that_is_none_of_the_choices_is_a_failure_of_the_tool() -> None:
    async def answer(question: UserQuestion) -> list[str]:
        return ["three"]

    assert "does not offer" in result_of(AskUser(answer), "ask_user", {"questions": [QUESTION]})


def test_the_tool_is_there_only_if_somebody_can_answer(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(question: UserQuestion) -> None: ...

    extensions = AgentExtensions(ask_user=True)
    for approve, answerer, offered in (("ask", answer, 1), ("auto", answer, 1), ("never", answer, 0), ("ask", None, 0)):
        options: Any = {"approve": approve, "answerer": answerer, "ask": None, "environment": {}}
        assert len(extensions.capabilities(**options)) == offered
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    deepctl("config", "set", "ask_user", "on").ok()
    with provider(Text(["Hello."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        deepctl("chat", "--model", "openai-chat:gpt-4o", "hello").ok()
    assert "ask_user" not in json.dumps(server.requests)
