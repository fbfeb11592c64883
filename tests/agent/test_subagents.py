"""Sub-agents: their tools, limits, costs, checkpoints and events are those of the turn of their parent."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits

from deepctl.agent import subagents
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest
from deepctl.agent.backend import LocalBackend
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.file_checkpoint_store import FileCheckpointStore
from deepctl.agent.sandboxes import NoSandbox
from deepctl.agent.subagents import BUILT_IN, SubAgents
from deepctl.domain import permissions
from deepctl.layout import Root
from deepctl.store import usage_log
from tests.support.command import InProcess, Result
from tests.support.loopback import Answer, Provider, Text, ToolCalls, provider

MCP_SERVER = str(Path(__file__).parents[1] / "support" / "mcp_stdio_server.py")
Chat = Callable[..., Result]


def task(agent: str, text: str = "Look for tea.") -> tuple[str, dict[str, Any]]:
    return "delegate_task", {"agent_name": agent, "task": text}


@pytest.fixture
def alice(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "subagents", "on", "-u", "alice").ok()
    deepctl("config", "set", "approve", "auto", "-u", "alice").ok()
    return Root(str(home))


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> Iterator[Provider]:
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        yield server


def chat(deepctl: InProcess, prompt: str = "go", *options: str) -> Result:
    return deepctl("chat", "-u", "alice", "--model", "openai-chat:gpt-4o", "--json", *options, prompt)


def tool_names(request: dict[str, Any]) -> set[str]:
    return {tool["function"]["name"] for tool in request.get("tools", [])}


def inner(result: Result) -> list[dict[str, Any]]:
    return [event["event"] for event in result.events if event["type"] == "subagent"]


def test_off_there_is_no_tool_and_no_import(deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "unset", "subagents", "-u", "alice").ok()
    with answering(monkeypatch, Text(["Hello."])) as server:
        chat(deepctl).ok()
    assert "delegate_task" not in json.dumps(server.requests)


def test_a_sub_agent_sees_its_task_only_and_its_report_is_the_result(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(
        monkeypatch,
        ToolCalls([("write_file", {"path": "a.txt", "content": "green tea\n"}), task("explorer")]),
        ToolCalls([("grep", {"pattern": "tea", "output_mode": "content"})]),
        Text(["a.txt, line 1"]),
        Text(["It is in a.txt."]),
    ) as server:
        result = chat(deepctl, "a secret wish").ok()
    parent, child, child_2, parent_2 = server.requests
    assert "delegate_task" in tool_names(parent)
    assert "a secret wish" not in json.dumps(child)
    assert child["messages"][-1]["content"].endswith("Look for tea.")
    assert "You search" in child["messages"][0]["content"]
    assert tool_names(child) == {"ls", "read_file", "glob", "grep", "read_tool_result", "read_memory", "search_memory"}
    assert "green tea" in json.dumps(child_2["messages"][-1])
    assert parent_2["messages"][-1]["content"] == "a.txt, line 1"
    assert [event["type"] for event in inner(result)] == ["tool_call", "tool_result", "end"]
    end = inner(result)[-1]
    assert end["usage"] == {"input_tokens": 22, "cached_tokens": 0, "output_tokens": 14, "requests": 2}
    assert end["cost"] > 0
    usage = result.events[-1]["usage"]
    assert usage["requests"] == 4
    assert usage["input_tokens"] == 44
    entries = usage_log.read(alice.profile("alice")).entries
    assert [entry.purpose for entry in entries] == ["answer", "subagent", "subagent", "answer"]


def test_another_self_has_all_tools_for_work_and_starts_no_further_one(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(
        monkeypatch,
        ToolCalls([task("self")]),
        ToolCalls([("write_file", {"path": "b.txt", "content": "b\n"}), task("explorer"), ("rewind_to", {})]),
        Text(["Done."]),
        Text(["Well."]),
    ) as server:
        result = chat(deepctl).ok()
    parent, child, child_2, _ = server.requests
    assert tool_names(parent) - tool_names(child) == {
        *("delegate_task", "list_checkpoints", "rewind_to", "save_checkpoint", "save_plan", "write_plan")
    }
    assert "`delegate_task` gives a task" not in json.dumps(child)
    assert Path(alice.profile("alice").workspace, "b.txt").read_text() == "b\n"
    answers = [message["content"] for message in child_2["messages"] if message["role"] == "tool"]
    assert ["Unknown tool" in answer or "unknown tool" in answer.lower() for answer in answers] == [False, True, True]
    # One writer: the checkpoint of the inner call is there before the next one starts.
    kinds = [event["type"] for event in result.events]
    assert "checkpoint" in kinds


def test_every_change_of_a_sub_agent_is_a_checkpoint_that_can_be_rewound_to(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = [ToolCalls([("write_file", {"path": f"{name}.txt", "content": f"{name}\n"})]) for name in ("one", "two")]
    with answering(monkeypatch, ToolCalls([task("self")]), *writes, Text(["Done."]), Text(["Well."]), Text(["Again."])):
        chat(deepctl).ok()
        listing = deepctl("checkpoints", "list", "-u", "alice", "--all", "--json").ok().json["checkpoints"]
        inside = [checkpoint["id"] for checkpoint in listing if checkpoint["kind"] == "tool"]
        assert len(inside) == 2
        workspace = Path(alice.profile("alice").workspace)
        deepctl("checkpoints", "rewind", inside[-1], "-u", "alice").ok()
        assert (workspace / "one.txt").exists()
        assert not (workspace / "two.txt").exists()
        # The call has no report there, and the conversation goes on.
        chat(deepctl, "and now").ok()
    deepctl("checkpoints", "verify", "-u", "alice").ok()


def test_the_limits_of_the_turn_hold_in_a_sub_agent(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "max_requests", "3", "-u", "alice").ok()
    looking = ToolCalls([("ls", {"path": "."})])
    with answering(monkeypatch, ToolCalls([task("explorer")]), looking, looking, looking) as server:
        result = chat(deepctl)
    assert result.code == 7
    assert result.events[-1]["code"] == "usage_limit"
    assert len(server.requests) == 3


def test_more_than_fifty_requests_are_possible(tmp_path: Path) -> None:
    steps: list[ToolCallPart | TextPart] = [
        ToolCallPart(*task("explorer")),
        *(ToolCallPart("ls", {"path": "."}) for _ in range(55)),
        TextPart("inner"),
        TextPart("outer"),
    ]
    model = FunctionModel(lambda messages, info: ModelResponse(parts=[steps.pop(0)]))
    agent = create_deep_agent(model, capabilities=[SubAgents()])
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"))
    # `None` is what a chat passes where no setting limits a turn.
    limits = UsageLimits(request_limit=None)
    assert asyncio.run(agent.run("go", deps=deps, usage_limits=limits)).output == "outer"


def test_a_budget_holds_inside(deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "set", "max_tokens_day", "20000", "-u", "alice").ok()
    looking = ToolCalls([("ls", {"path": "."})], used=(15_000, 10))
    with answering(monkeypatch, ToolCalls([task("explorer")]), looking, looking, Text(["No."])) as server:
        result = chat(deepctl)
    assert result.events[-1]["code"] == "budget"
    assert len(server.requests) < 4


def test_a_full_context_is_a_failure_of_the_task_only(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.loopback import Status

    full = Status(400, '{"error": {"message": "too long", "code": "context_length_exceeded"}}')
    with answering(monkeypatch, ToolCalls([task("explorer")]), full, Text(["Smaller then."])) as server:
        chat(deepctl).ok()
    assert "context of the sub-agent explorer is full" in json.dumps(server.requests[-1])


def test_an_unknown_sub_agent_is_a_failure_of_the_call(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(monkeypatch, ToolCalls([task("nobody")]), Text(["Sorry."])) as server:
        chat(deepctl).ok()
    assert "explorer" in server.requests[-1]["messages"][-1]["content"]


def test_a_role_is_a_sub_agent_with_its_instructions_and_notebooks(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "bob").ok()
    deepctl("config", "set", "instructions", "Speak as a herbalist.", "-u", "bob").ok()
    deepctl("memory", "add", "Nettle is green.", "-u", "bob").ok()
    deepctl("config", "set", "disabled_tools", "execute", "-u", "bob").ok()
    deepctl("roles", "create", "herbalist", "--from", "bob").ok()
    with answering(monkeypatch, ToolCalls([task("herbalist")]), Text(["Nettle."]), Text(["Good."])) as server:
        chat(deepctl).ok()
    system = server.requests[1]["messages"][0]["content"]
    assert "Speak as a herbalist." in system
    assert "Nettle is green." in system
    assert {"herbalist", "coder", "reviewer"} <= set(
        next(tool for tool in server.requests[0]["tools"] if tool["function"]["name"] == "delegate_task")["function"][
            "parameters"
        ]["properties"]["agent_name"]["enum"]
    )
    assert "execute" not in tool_names(server.requests[1])


def test_the_rules_hold_and_the_question_names_the_sub_agent(tmp_path: Path) -> None:
    asked: list[ApprovalRequest] = []

    async def ask(request: ApprovalRequest) -> ApprovalAnswer:
        asked.append(request)
        return ApprovalAnswer(allow=len(asked) == 1, always=True)

    steps: list[ToolCallPart | TextPart] = [
        ToolCallPart(*task("self")),
        ToolCallPart("execute", {"command": "echo 1"}),
        ToolCallPart("read_file", {"path": "secret.txt"}),
        TextPart("inner"),
        ToolCallPart("execute", {"command": "echo 1"}),
        ToolCallPart("execute", {"command": "echo 2"}),
        TextPart("outer"),
    ]
    results: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        results.extend(str(part.content) for part in messages[-1].parts if isinstance(part, ToolReturnPart))
        return ModelResponse(parts=[steps.pop(0)])

    (tmp_path / "secret.txt").write_text("s")
    rules = permissions.parse({"read": {"rules": [{"pattern": "secret.txt", "action": "deny"}]}}, "test")
    agent = create_deep_agent(
        FunctionModel(answer), include_execute=True, ask=ask, permissions=rules, capabilities=[SubAgents()]
    )
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path, sandbox=NoSandbox()))
    assert asyncio.run(agent.run("go", deps=deps)).output == "outer"
    # `always` of the sub-agent's request holds for its parent.
    assert [(request.target, request.agent) for request in asked] == [("echo 1", "self"), ("echo 2", "")]
    assert "do not allow" in results[1]


def test_checkpoints_of_an_application_have_no_conversation_of_a_sub_agent(tmp_path: Path) -> None:
    steps: list[ToolCallPart | TextPart] = [
        ToolCallPart(*task("self", "inner task")),
        ToolCallPart("write_file", {"path": "a.txt", "content": "a"}),
        ToolCallPart("write_file", {"path": "b.txt", "content": "b"}),
        TextPart("inner"),
        TextPart("outer"),
    ]
    agent = create_deep_agent(
        FunctionModel(lambda messages, info: ModelResponse(parts=[steps.pop(0)])), capabilities=[SubAgents()]
    )
    store = FileCheckpointStore(tmp_path / "checkpoints")
    deps = DeepAgentDeps(backend=LocalBackend(tmp_path / "work"), checkpoint_store=store)

    async def work() -> list[str]:
        await agent.run("outer prompt", deps=deps)
        checkpoints = await store.list_all()
        return [str((await store.get(checkpoint.id)).messages) for checkpoint in checkpoints]  # type: ignore[union-attr]

    conversations = asyncio.run(work())
    assert conversations
    assert not any("UserPromptPart(content='inner task'" in conversation for conversation in conversations)
    assert all("outer prompt" in conversation for conversation in conversations if conversation != "[]")


def test_an_interrupted_sub_agent_ends_with_the_turn(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.loopback import Stalled

    calls: list[Answer] = [ToolCalls([task("self")]), ToolCalls([("write_file", {"path": "a.txt", "content": "a"})])]
    with answering(monkeypatch, *calls, Stalled(["Half"]), Text(["Here."])) as server:
        result = chat(deepctl, "go", "--timeout", "2")
        assert result.code == 124
        assert inner(result)[-1]["type"] == "end"
        chat(deepctl, "go on").ok()
    assert len(server.requests) == 4
    deepctl("checkpoints", "verify", "-u", "alice").ok()
    assert Path(alice.profile("alice").workspace, "a.txt").exists()


def test_a_sub_agent_uses_the_running_mcp_servers_and_the_explorer_none(
    deepctl: InProcess, alice: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("mcp", "add", "one", "-u", "alice", "--", sys.executable, MCP_SERVER, "--tools", "pid,die").ok()
    with answering(
        monkeypatch,
        ToolCalls([("one__pid", {}), task("self"), task("explorer"), ("one__pid", {})]),
        ToolCalls([("one__pid", {}), ("one__die", {})]),
        Text(["It has ended."]),
        Text(["I have no such tool."]),
        Text(["done"]),
    ) as server:
        chat(deepctl).ok()
    offered = [{name for name in tool_names(request) if "__" in name} for request in server.requests]
    assert offered[1:4] == [{"one__pid", "one__die"}, {"one__pid", "one__die"}, set()]
    process, ended = (message["content"] for message in server.requests[2]["messages"][-2:])
    results = [message["content"] for message in server.requests[4]["messages"] if message["role"] == "tool"]
    assert results[0] == process
    assert "MCP server 'one' failed: it ended with exit code 7" in ended
    assert "MCP server 'one' is no longer running." in results[3]


def test_the_tools_of_the_explorer_change_nothing() -> None:
    from deepctl.agent.checkpoints import READ_ONLY_TOOLS

    (explorer, itself) = BUILT_IN
    assert explorer.tools is not None
    assert explorer.tools <= READ_ONLY_TOOLS
    assert itself.tools is None
    assert subagents.TOOL in permissions.EXTENSION_TOOLS
