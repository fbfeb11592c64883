"""Answers that hold for later requests: what they cover, and in which session."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import FunctionToolset, RunContext
from pydantic_ai.capabilities import Toolset
from pydantic_ai.messages import ModelMessage, ModelRequest, ToolReturnPart
from pydantic_ai.models.function import FunctionModel

from deepctl import DeepAgentDeps, LocalBackend, NoSandbox, StateBackend, create_deep_agent
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest, Approver, always
from deepctl.domain.permissions import parse
from tests.agent.test_agent import Call, Script

YES, NO = ApprovalAnswer(allow=True), ApprovalAnswer(allow=False)
ALWAYS = ApprovalAnswer(allow=True, choice="always")
SESSION = ApprovalAnswer(allow=True, choice="session")
RULES = [
    {"pattern": "rm **", "action": "ask"},
    {"pattern": "git push**", "action": "deny"},
    {"pattern": "echo said", "action": "allow"},
]


class Answers:
    """Answers requests in this order, and remembers them."""

    def __init__(self, *answers: ApprovalAnswer) -> None:
        self._answers = list(answers)
        self.asked: list[ApprovalRequest] = []

    async def __call__(self, request: ApprovalRequest) -> ApprovalAnswer:
        self.asked.append(request)
        return self._answers.pop(0)

    @property
    def targets(self) -> list[str]:
        return [request.target for request in self.asked]


def results_of(agent: Any, script: Script, deps: DeepAgentDeps, *answers: list[Call]) -> list[bool]:
    """Whether each call of a run did something."""
    script.__init__(*answers)  # type: ignore[misc]

    async def run() -> list[ModelMessage]:
        async with agent.run_stream("go", deps=deps) as result:
            await result.get_output()
            return list(result.all_messages())

    messages = asyncio.run(run())
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    return [part.outcome == "success" for part in parts if isinstance(part, ToolReturnPart)]


def commands(*texts: str) -> list[list[Call]]:
    return [[("execute", {"command": text})] for text in texts]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def made(person: Answers, **options: Any) -> tuple[Any, Script]:
    script = Script()
    model = FunctionModel(stream_function=script)
    return create_deep_agent(model, ask=person, include_execute=True, **options), script


def test_a_session_is_allowed_what_no_rule_is_about(work: Path) -> None:
    person = Answers(SESSION, NO, NO)
    agent, script = made(person, permissions=parse({"execute": {"rules": RULES}}, "config.toml"))
    texts = ["touch a", "touch b; touch c", "rm a", "sh -c 'rm b'", "git push", "touch d"]
    backend = LocalBackend(work, sandbox=NoSandbox())
    done = results_of(agent, script, DeepAgentDeps(backend=backend, session="one"), *commands(*texts))
    assert done == [True, True, False, False, False, True]
    assert person.targets == ["touch a", "rm a", "sh -c 'rm b'"]
    assert [[choice.key for choice in request.choices] for request in person.asked] == [["a", "e"], ["a"], ["a"]]
    assert sorted(path.name for path in work.iterdir() if path.name != ".deep") == ["a", "b", "c", "d"]


def test_an_answer_that_was_not_offered_allows_the_action_once(work: Path) -> None:
    person = Answers(SESSION, SESSION)
    agent, script = made(person, permissions=parse({"execute": {"rules": RULES}}, "config.toml"))
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    assert results_of(agent, script, deps, *commands("rm -f a", "rm -f b")) == [True, True]
    assert person.targets == ["rm -f a", "rm -f b"]


def test_a_session_is_not_allowed_files_that_programs_of_the_user_obey(work: Path) -> None:
    person = Answers(SESSION, NO)
    agent, script = made(person, permissions=parse({"write": "ask"}, "config.toml"))
    (work / ".git").mkdir()
    calls: list[list[Call]] = [
        [("write_file", {"path": path, "content": "x"})] for path in ("a", "b", ".git/config", "c")
    ]
    done = results_of(agent, script, DeepAgentDeps(backend=LocalBackend(work)), *calls)
    assert done == [True, True, False, True]
    assert person.targets == ["a", ".git/config"]


@pytest.mark.parametrize("answer", [ALWAYS, SESSION], ids=["exact", "session"])
def test_an_answer_holds_for_one_session_of_one_user(tmp_path: Path, answer: ApprovalAnswer) -> None:
    """One agent of an application has several users."""
    person = Answers(answer, NO, NO, NO)
    agent, script = made(person)
    for directory, session, is_done in (
        ("alice", "one", True),
        ("alice", "one", True),
        ("alice", "two", False),
        ("bob", "one", False),
        ("alice", "one", True),
        ("alice", None, False),
    ):
        (tmp_path / directory).mkdir(exist_ok=True)
        deps = DeepAgentDeps(backend=LocalBackend(tmp_path / directory, sandbox=NoSandbox()), session=session)
        assert results_of(agent, script, deps, *commands("touch a")) == [is_done], (directory, session)
    assert len(person.asked) == 4


def test_a_tool_of_an_application_asks_in_its_call() -> None:
    """Grants, a sentence and a key of its own; answers in memory are of one backend, too."""
    person = Answers(ALWAYS, NO, NO)
    approver = Approver("ask", person)

    async def fetch(ctx: RunContext[Any], domain: str, page: str) -> str:
        request = ApprovalRequest(
            "fetch", f"https://{domain}/{page}", wish=f"read a page of {domain}", choices=(always(f"of {domain}"),)
        )
        await approver.check(ctx, request, [f"fetch {domain}"], refusal="to read this page")
        return "read"

    script = Script()
    agent = create_deep_agent(FunctionModel(stream_function=script), capabilities=[Toolset(FunctionToolset([fetch]))])
    deps = DeepAgentDeps(backend=StateBackend())
    pages = [("a.example", "1"), ("a.example", "2"), ("b.example", "1")]
    calls: list[list[Call]] = [[("fetch", {"domain": domain, "page": page})] for domain, page in pages]
    assert results_of(agent, script, deps, *calls) == [True, True, False]
    assert results_of(agent, script, deps, calls[0]) == [True]
    assert results_of(agent, script, DeepAgentDeps(backend=StateBackend()), calls[0]) == [False]
    assert person.targets == ["https://a.example/1", "https://b.example/1", "https://a.example/1"]
    assert person.asked[0].choices[0].text == "[a]lways of a.example"
