"""The tools that a model is offered, what their descriptions take, and which an agent can do without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import FunctionToolset
from pydantic_ai.capabilities import Toolset
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai_backends import StateBackend

from deepctl.agent import tools
from deepctl.agent.backend import LocalBackend
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.runs import run
from deepctl.agent.sandboxes import NoSandbox
from deepctl.domain import permissions
from deepctl.errors import BadSetting, UsageError
from tests.support.command import InProcess
from tests.support.loopback import Provider, Text, provider
from tests.support.tokens import request_tokens, tokens


def _offered(
    backend: Any = None, *calls: tuple[str, dict[str, Any]], **options: Any
) -> tuple[list[ToolDefinition], str]:
    """The tools that a model is offered, and the last messages that it gets, after these calls."""
    offered: list[ToolDefinition] = []
    sent = ""
    left = [ToolCallPart(tool, arguments) for tool, arguments in calls]

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal sent
        offered[:] = info.function_tools
        sent = f"{info.instructions}\n{messages!r}"
        return ModelResponse(parts=[left.pop(0) if left else TextPart("done")])

    agent = create_deep_agent(FunctionModel(answer), **{"include_execute": True, **options})
    asyncio.run(agent.run("hello", deps=DeepAgentDeps(backend=backend or StateBackend())))
    return offered, sent


def _names(backend: Any = None, **options: Any) -> set[str]:
    return {tool.name for tool in _offered(backend, **options)[0]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    with provider(Text(["Hello."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        yield server


@pytest.mark.parametrize(("tools", "most", "count"), [("full", 2000, 17), ("lean", 1400, 11)])
def test_the_first_hello_takes_few_tokens(
    deepctl: InProcess, home: Path, server: Provider, tools: str, most: int, count: int
) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "tools", tools, "-u", "alice").ok()
    deepctl("chat", "-u", "alice", "--sandbox", "bubblewrap", "--model", "openai-chat:loopback", "hello").ok()
    (request,) = server.requests
    assert len(request["tools"]) == count
    taken = request_tokens(request)
    # The limits are 3,000 and 1,500. These are lower, so that an increase is noticed.
    assert sum(taken.values()) <= most, taken


def test_the_names_in_the_settings_are_those_of_the_tools(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path / "work", sandbox=NoSandbox())
    assert _names(backend) == set(permissions.ALL_TOOLS) == tools.DESCRIPTIONS.keys()
    assert _names(backend, tools="lean") == set(permissions.LEAN_TOOLS)


def test_parameters_keep_their_names_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    short, _ = _offered()
    monkeypatch.setattr(tools, "DESCRIPTIONS", {})
    for tool, long in zip(short, _offered()[0], strict=True):
        assert tool.name == long.name
        assert _size(tool) < _size(long) or tool.name == "list_checkpoints"
        for key in ("type", "required", "additionalProperties"):
            assert tool.parameters_json_schema.get(key) == long.parameters_json_schema.get(key)
        if tool.name != "write_plan":
            assert _types(tool) == _types(long)


def _size(tool: ToolDefinition) -> int:
    return tokens([tool.description, tool.parameters_json_schema])


def _types(tool: ToolDefinition) -> dict[str, Any]:
    properties = tool.parameters_json_schema["properties"]
    return {name: {key: value[key] for key in value if key != "description"} for name, value in properties.items()}


def test_every_described_parameter_exists() -> None:
    for tool in _offered()[0]:
        described = tools.DESCRIPTIONS[tool.name][1]
        assert described.keys() <= tool.parameters_json_schema["properties"].keys(), tool.name


def test_the_whole_list_is_written_with_the_steps_that_are_offered(tmp_path: Path) -> None:
    (tool,) = (tool for tool in _offered()[0] if tool.name == "write_plan")
    steps = tool.parameters_json_schema["properties"]["items"]["items"]["properties"]
    items = [{"content": status, "status": status} for status in steps["status"]["enum"]]
    _, sent = _offered(LocalBackend(tmp_path), ("write_plan", {"items": items}))
    assert "Plan updated: 4 step(s)." in sent
    stored = json.loads((tmp_path / ".deep/todo.json").read_text())["items"]
    assert [(step["content"], step["status"]) for step in stored] == [(s, s) for s in steps["status"]["enum"]]


def test_disabled_tools_are_gone_and_nothing_speaks_of_them(tmp_path: Path) -> None:
    names = ["execute", "write_plan", "write_memory", "save_plan"]
    assert _names(disabled_tools=names) == set(permissions.ALL_TOOLS) - set(names)
    (tmp_path / ".deep").mkdir()
    (tmp_path / ".deep/todo.json").write_text('{"version": 1, "items": [{"id": "1", "content": "old"}]}')
    _, sent = _offered(LocalBackend(tmp_path), ("write_plan", {"items": []}), disabled_tools=names)
    assert "There is no shell." in sent
    assert "Unknown tool name: 'write_plan'" in sent
    assert "<plan-reminder>" not in sent
    assert not any(f"`{name}`" in sent for name in names)


def test_checkpoints_are_made_without_their_tools(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "tools", "lean", "-u", "alice").ok()
    deepctl("chat", "-u", "alice", "write a.txt: x").ok()
    assert deepctl("checkpoints", "list", "-u", "alice", "--json").ok().json["checkpoints"]
    assert "There is no tool 'save_plan' here" in deepctl("chat", "-u", "alice", "plan Trip: go").ok().stdout


def test_without_its_reader_a_large_result_is_named_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("line\n" * 40_000)
    call = ("read_file", {"path": "big.txt", "limit": 40_000})
    assert "Read it with read_tool_result(" in _offered(LocalBackend(tmp_path), call)[1]
    _, sent = _offered(LocalBackend(tmp_path), call, tools="lean")
    assert "read_tool_result" not in sent
    assert " It is a file: large_tool_results/" in sent


@pytest.mark.parametrize(
    ("name", "hint"),
    [("read_fil", "Did you mean 'read_file'"), ("x", "Tools are: delete_memory, "), ("x", "are called SERVER__TOOL")],
)
def test_an_unknown_tool_is_exit_2_with_near_names(deepctl: InProcess, home: Path, name: str, hint: str) -> None:
    deepctl("profiles", "create", "alice").ok()
    failed = deepctl("config", "set", "disabled_tools", f"ls,{name}", "-u", "alice")
    assert failed.code == 2
    assert f"There is no tool {name!r}." in failed.stderr
    assert hint in failed.stderr
    settings = home / "profiles/alice/profile.toml"
    settings.write_text(f'{settings.read_text()}disabled_tools = ["{name}"]\n')
    failed = deepctl("chat", "-u", "alice", "hello")
    assert failed.code == 2
    assert hint in failed.stderr
    with pytest.raises(BadSetting, match=f"no tool '{name}'"):
        create_deep_agent(disabled_tools=[name])


def test_an_application_gets_an_error_for_another_set_of_tools_and_may_disable_a_single_one() -> None:
    with pytest.raises(BadSetting, match="tools cannot be 'none'"):
        create_deep_agent(tools="none")  # type: ignore[arg-type]
    assert permissions.disabled_tools("full", "execute") == {"execute"}


def test_tools_of_mcp_servers_can_be_disabled_by_name(deepctl: InProcess) -> None:
    deepctl("config", "set", "disabled_tools", "tracker__delete_issue,execute").ok()
    assert deepctl("config", "get", "disabled_tools").ok().stdout == "tracker__delete_issue,execute\n"


def test_a_list_of_tools_is_an_error_that_says_how_to_add_a_tool() -> None:
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    with pytest.raises(UsageError) as raised:
        create_deep_agent("offline", tools=[weather])  # type: ignore[arg-type]
    assert "capabilities=[Toolset(FunctionToolset([f]))]" in str(raised.value.hint)
    model = TestModel(call_tools=["weather"])
    agent = create_deep_agent(model, capabilities=[Toolset(FunctionToolset([weather]))])
    assert "sunny in" in asyncio.run(run(agent, "hello", deps=DeepAgentDeps())).output
