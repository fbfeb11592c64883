"""The events of the work of tools: contents before and after, output of commands, and the changes of a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai_backends import StateBackend

from deepctl.agent import work_events
from deepctl.agent.backend import LocalBackend
from deepctl.agent.chat import Chat, TurnRunner
from deepctl.agent.checkpoints import TurnCheckpoints
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.model_wrappers import with_both_ways
from deepctl.agent.models import ResolvedModel
from deepctl.agent.sandboxes import NoSandbox
from deepctl.agent.turn_engine import Options
from deepctl.agent.work_events import ReportingState, WorkEvents
from deepctl.domain import profiles
from deepctl.layout import Root
from deepctl.store import session_catalogue
from deepctl.store.repository import Repository

Event = dict[str, Any]
Call = tuple[str, dict[str, Any]]
SECRET = "sk-canary-0123456789abcdef"


def calling(*calls: Call) -> FunctionModel:
    """A model that calls these tools, one after another."""
    remaining = iter([*calls])

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        call = next(remaining, None)
        return ModelResponse([TextPart("done") if call is None else ToolCallPart(*call)])

    return FunctionModel(answer)


def events_of(backend: LocalBackend | StateBackend, *calls: Call) -> list[Event]:
    events: list[Event] = []
    agent = create_deep_agent(
        calling(*calls), approve="auto", capabilities=[WorkEvents(events.append, {"OPENAI_API_KEY": SECRET})]
    )
    asyncio.run(agent.run("go", deps=DeepAgentDeps(backend=backend)))
    return events


def write(path: str, content: str) -> Call:
    return "write_file", {"path": path, "content": content}


def edit(path: str, old: str, new: str) -> Call:
    return "edit_file", {"path": path, "old_string": old, "new_string": new}


@pytest.fixture(params=["directory", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> LocalBackend | StateBackend:
    return LocalBackend(tmp_path / "work") if request.param == "directory" else ReportingState()


def test_a_change_has_what_the_file_was_and_is(backend: LocalBackend | StateBackend) -> None:
    events = events_of(
        backend,
        write("src/a.py", "one\ntwo\n"),
        edit("src/a.py", "two", "2"),
        write("src/a.py", ""),
        edit("b", "x", "y"),
    )
    assert [(event["path"], event["before"], event["after"]) for event in events] == [
        ("src/a.py", None, "one\ntwo\n"),
        ("src/a.py", "one\ntwo\n", "one\n2\n"),
        ("src/a.py", "one\n2\n", ""),
    ]
    assert {event["remark"] for event in events} == {""}
    assert len({event["id"] for event in events}) == 3


def test_of_a_huge_or_binary_file_no_content_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_events, "MAX_COMPARED", 100)
    backend = LocalBackend(tmp_path)
    (tmp_path / "large").write_text("x" * 101)
    (tmp_path / "binary").write_bytes(b"\0\1")
    events = events_of(backend, write("large", "y"), write("small", "x" * 101), write("binary", "text"))
    assert [(event["remark"], event["before"], event["after"]) for event in events] == [
        ("too large to compare", "", ""),
        ("too large to compare", None, ""),
        ("binary", "", ""),
    ]


def test_notebooks_are_told_and_deepctls_own_files_are_not(tmp_path: Path) -> None:
    events = events_of(
        LocalBackend(tmp_path),
        ("write_memory", {"content": "- tea\n"}),
        ("write_plan", {"items": [{"content": "a"}]}),
        ("save_plan", {"title": "T", "content": "c"}),
        ("write_memory", {"file": "people", "content": "- Bob\n"}),
        ("delete_memory", {"file": "people.md"}),
    )
    told = [(event["path"].rpartition("/")[2][:9], event["before"], event["after"]) for event in events]
    assert told == [
        ("MEMORY.md", None, "- tea\n"),
        (told[1][0], None, "# T\n\nc\n"),
        ("people.md", None, "- Bob\n"),
        ("people.md", "- Bob\n", None),
    ]


def test_the_output_of_a_command_is_told_in_lines_without_keys(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, sandbox=NoSandbox())
    script = (
        f"printf 'a\\r\\nb'; sleep 0.3; printf 'c\\n10 %%\\r20 %%'; sleep 0.3; printf '\\n{SECRET[:12]}'; sleep 0.3; "
        f"echo {SECRET[12:]}; echo e >&2; printf '\\xf0\\x9f'; sleep 0.3; printf '\\x8e\\x89'"
    )
    started, *events = events_of(backend, ("execute", {"command": script}))
    assert started["type"] == "command"
    assert {(event["type"], event["id"]) for event in events} == {("output", started["id"])}
    assert "".join(event["lines"] for event in events) == "a\nbc\n20 %\n[OPENAI_API_KEY]\ne\n"
    partials = [event["partial"] for event in events]
    assert "b" in partials
    assert "20 %" in partials
    assert partials[-1] == "🎉"


def test_a_refused_command_has_no_event(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, sandbox=NoSandbox())
    agent = create_deep_agent(
        calling(("execute", {"command": "echo"})), approve="never", capabilities=[WorkEvents(_fail, {})]
    )
    asyncio.run(agent.run("go", deps=DeepAgentDeps(backend=backend)))


def _fail(event: Event) -> None:
    raise AssertionError(event)


def test_a_command_that_prints_line_by_line_makes_few_events(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, sandbox=NoSandbox())
    _, *events = events_of(
        backend, ("execute", {"command": "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done"})
    )
    assert "".join(event["lines"] for event in events) == "".join(f"{number}\n" for number in range(1, 3001))
    assert len(events) < 300


def test_without_a_display_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*_: object) -> object:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(work_events, "bounded", unread)
    monkeypatch.setattr("deepctl.agent.backend.present_content", unread)
    agent = create_deep_agent(calling(write("a", "x"), edit("a", "x", "y")))
    asyncio.run(agent.run("go", deps=DeepAgentDeps(backend=LocalBackend(tmp_path))))
    assert (tmp_path / "a").read_text() == "y"


Turn = Callable[..., list[Event]]


@pytest.fixture
def turn(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Turn]:
    """Run a turn of alice's session with these calls; returns its events."""
    with ExitStack() as stack:
        paths = profiles.create(Root(str(home)), "alice")
        session_catalogue.start(paths, "main")

        def play(*calls: Call, shows_work: bool = True) -> list[Event]:
            options = Options("offline", sandbox=NoSandbox(), approve="auto", shows_work=shows_work)
            model = ResolvedModel(with_both_ways(calling(*calls)), None)
            monkeypatch.setattr("deepctl.agent.turn_engine._resolve", lambda *_, **__: model)
            runner = TurnRunner(options, environment={})
            stack.callback(runner.close)
            events: list[Event] = []
            with Repository.open(paths) as work:
                Chat(runner).turn(work, "main", "go", events.append)
            return events

        yield play


def run(command: str) -> Call:
    return "execute", {"command": command}


def _work(events: list[Event]) -> tuple[int, int | None, int | None]:
    (event,) = [event for event in events if event["type"] == "work"]
    assert (event["profile"], event["session"]) == ("alice", None)
    return event["files"], event["added_lines"], event["removed_lines"]


def test_the_work_of_a_turn_is_the_net_change_of_tools_and_commands(turn: Turn) -> None:
    assert _work(turn(write("a", "1\n2\n3\n"), edit("a", "2", "two"), run("seq 5 > b; mkdir d"))) == (2, 8, 0)
    assert _work(turn(run("rm a; touch c; rm c"), write("b", "1\n"), write("b", "1\n2\n3\n4\n5\n"))) == (1, 0, 3)
    assert _work(turn(run("head -c 100 /dev/zero > zeros"), ("write_plan", {"items": [{"content": "x"}]}))) == (1, 0, 0)
    assert _work(turn()) == (0, 0, 0)


def test_too_much_to_count_has_no_lines(turn: Turn) -> None:
    assert _work(turn(run("for i in $(seq 201); do echo $i > f$i; done"))) == (201, None, None)


def test_changes_of_others_do_not_count(turn: Turn, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Path(Root(str(home)).profile("alice").workspace)
    done = TurnCheckpoints.tool_done

    async def with_a_user(self: TurnCheckpoints, name: str) -> None:
        await done(self, name)
        (workspace / "mine").write_text("x\n" * 10)

    monkeypatch.setattr(TurnCheckpoints, "tool_done", with_a_user)
    assert _work(turn(write("a", "1\n"), run("echo 2 >> a"))) == (1, 2, 0)


def test_without_a_display_no_turn_tells_its_work(turn: Turn) -> None:
    kinds = {event["type"] for event in turn(write("a", "1\n"), run("echo"), shows_work=False)}
    assert not kinds & {"work", "change", "command", "output"}
