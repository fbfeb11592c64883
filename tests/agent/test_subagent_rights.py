"""The rights of sub-agents: none can do what its turn, its profile or the answers of a person do not allow."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.models.function import FunctionModel

from deepctl import DeepAgentDeps, LocalBackend, NoSandbox, create_deep_agent
from deepctl.agent.approver import ApprovalAnswer
from deepctl.agent.subagents import BUILT_IN, SubAgents
from deepctl.layout import Root
from tests.agent.test_agent import Call, Script
from tests.agent.test_approver import Answers, commands, results_of
from tests.support.command import InProcess
from tests.support.loopback import Answer, Provider, Text, ToolCalls, provider

YES, NO = ApprovalAnswer(allow=True), ApprovalAnswer(allow=False)
SESSION = ApprovalAnswer(allow=True, choice="session")
Ask = Callable[..., Provider]


def task(agent: str) -> Call:
    return "delegate_task", {"agent_name": agent, "task": "Do it."}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/f").write_text("one line\n")
    return tmp_path / "work"


def turn(work: Path, person: Answers, *answers: list[Call], **options: Any) -> list[bool]:
    """Whether each call of the parent did something, in a turn of an agent with sub-agents."""
    script = Script()
    model = FunctionModel(stream_function=script)
    agent = create_deep_agent(model, ask=person, include_execute=True, capabilities=[SubAgents()], **options)
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()), session="one")
    return results_of(agent, script, deps, *answers)


@pytest.mark.parametrize(
    ("choice", "asked_later"),
    [("session", []), ("kind wc", ["touch b", "touch c"]), ("always", ["wc -c f", "touch b", "touch c"])],
)
def test_an_answer_holds_for_the_sub_agent_and_its_parent(work: Path, choice: str, asked_later: list[str]) -> None:
    person = Answers(ApprovalAnswer(allow=True, choice=choice), *[YES] * 4)
    inner = commands("wc -l f", "wc -c f", "touch b")
    assert all(turn(work, person, [task("self")], *inner, [], *commands("wc -l f", "touch c")))
    assert person.targets == ["wc -l f", *asked_later]
    assert [request.agent for request in person.asked if request.target != "touch c"] == ["self"] * max(
        1, len(asked_later)
    )
    assert [request.agent for request in person.asked if request.target == "touch c"] in ([], [""])


def test_an_answer_to_the_parent_and_the_allowed_kinds_hold_for_the_sub_agent(work: Path) -> None:
    person = Answers(SESSION)
    assert turn(work, person, *commands("touch a"), [task("self")], *commands("touch b"), []) == [True, True]
    assert (work / "b").exists()
    person = Answers(NO)
    allowed = {"allowed_commands": ["wc"]}
    assert turn(work, person, [task("self")], *commands("wc -l f", "touch c"), [], **allowed) == [True]
    assert person.targets == ["touch c"]
    assert not (work / "c").exists()


@pytest.mark.parametrize("agent", [agent.name for agent in BUILT_IN])
def test_without_a_person_nothing_is_allowed(work: Path, agent: str) -> None:
    person = Answers()
    calls = commands("touch a") if agent == "self" else []
    assert turn(work, person, [task(agent)], *calls, [], approve="never") == [True]
    assert person.asked == []
    assert not (work / "a").exists()


@pytest.fixture
def ask(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Runs a turn of alice in bubblewrap, in which a sub-agent makes these calls."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    for name in ("alice", "bob"):
        deepctl("profiles", "create", name).ok()
    deepctl("config", "set", "subagents", "on", "-u", "alice").ok()

    def turn_with(agent: str, *calls: Call) -> Provider:
        answers: list[Answer] = [ToolCalls([task(agent)]), ToolCalls(list(calls)), Text(["Report."]), Text(["Done."])]
        with provider(*answers) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            deepctl("chat", "-u", "alice", "--model", "openai-chat:gpt-4o", "--approve", "auto", "--json", "go").ok()
        return server

    return turn_with


def answers_to(server: Provider) -> list[str]:
    """What the sub-agent got from its calls."""
    return [message["content"] for message in server.requests[2]["messages"] if message["role"] == "tool"]


def attempts(home: Path, port: int) -> list[Call]:
    """Calls that would read another profile, change the settings, and reach a server on this machine."""
    bob, alice = (Root(str(home)).profile(name) for name in ("bob", "alice"))
    secret = str(Path(bob.workspace) / "secret.txt")
    return [
        ("execute", {"command": f"cat {secret} {bob.settings} ../../bob/workspace/secret.txt"}),
        ("read_file", {"path": secret}),
        ("read_file", {"path": "../../bob/workspace/secret.txt"}),
        ("grep", {"pattern": "canary", "path": str(Path(bob.workspace))}),
        ("write_file", {"path": alice.settings, "content": "approve = 'auto'"}),
        ("execute", {"command": f"echo 'network = true' >> {alice.settings}; echo gone >/dev/tcp/127.0.0.1/{port}"}),
        ("read_memory", {"agent": "bob", "file": "../../bob/workspace/secret.txt"}),
    ]


@pytest.mark.parametrize("agent", ["self", "traveller"])
def test_a_sub_agent_reaches_no_other_profile_no_settings_and_no_network(
    deepctl: InProcess, home: Path, ask: Ask, agent: str
) -> None:
    root = Root(str(home))
    Path(root.profile("bob").workspace, "secret.txt").write_text("canary-7c1f\n")
    # A role does not bring rights along.
    for key, value in (("network", "on"), ("sandbox", "none"), ("approve", "auto")):
        deepctl("config", "set", key, value, "-u", "bob").ok()
    deepctl("roles", "create", "traveller", "--from", "bob").ok()
    settings = Path(root.profile("alice").settings)
    before = settings.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = ask(agent, *attempts(home, listener.getsockname()[1]))
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert len(answers_to(server)) == 7
    assert not any("canary-7c1f" in answer for answer in answers_to(server))
    assert settings.read_bytes() == before


def test_rules_and_removed_tools_of_the_profile_hold(deepctl: InProcess, home: Path, ask: Ask) -> None:
    paths = Root(str(home)).profile("alice")
    deepctl("config", "set", "disabled_tools", "glob,write_memory", "-u", "alice").ok()
    with open(paths.settings, "a") as file:
        file.write('\n[permissions]\nexecute = "deny"\nwrite = {rules = [{pattern = "*.key", action = "deny"}]}\n')
    calls: list[Call] = [
        ("execute", {"command": "touch a"}),
        ("glob", {"pattern": "*"}),
        ("write_file", {"path": "a.key", "content": "a"}),
        ("write_file", {"path": "a.txt", "content": "a"}),
    ]
    server = ask("self", *calls)
    offered = {tool["function"]["name"] for tool in server.requests[1]["tools"]}
    assert offered.isdisjoint({"execute", "glob", "write_memory"})
    assert "do not allow this" in answers_to(server)[2]
    workspace = Path(paths.workspace)
    assert sorted(path.name for path in workspace.iterdir() if path.name != ".deep") == ["a.txt"]


def test_an_explorer_that_makes_up_tools_changes_nothing(deepctl: InProcess, home: Path, ask: Ask) -> None:
    workspace = Path(Root(str(home)).profile("alice").workspace)
    (workspace / "f").write_text("one\n")
    calls: list[Call] = [
        ("write_file", {"path": "a.txt", "content": "a"}),
        ("edit_file", {"path": "f", "old_string": "one", "new_string": "two"}),
        ("execute", {"command": "touch b"}),
        ("write_memory", {"content": "a note"}),
        ("save_plan", {"title": "a", "content": "b"}),
        ("rewind_to", {"checkpoint": "~1"}),
        task("self"),
        task("explorer"),
    ]
    server = ask("explorer", *calls)
    answers = answers_to(server)
    assert len(answers) == len(calls)
    assert all("unknown tool" in answer.lower() for answer in answers), answers
    assert len(server.requests) == 4
    assert (workspace / "f").read_text() == "one\n"
    assert [path.name for path in workspace.iterdir() if path.name != ".deep"] == ["f"]
    assert "a note" not in deepctl("memory", "show", "-u", "alice").ok().stdout
