"""After a turn was stopped or failed, the conversation goes on where it was, with what it had."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from deepctl.agent.chat import EphemeralChat, TurnRunner
from deepctl.agent.turn_engine import Options
from tests.support import docker
from tests.support.command import InProcess
from tests.support.loopback import Provider, Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


Talking = Callable[..., tuple[Terminal, Provider]]


@pytest.fixture
def talking(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, home: Path) -> Talking:
    """A conversation with a model that gives these answers, one after the other."""

    def begun(*answers: Text | ToolCalls | Status, arguments: tuple[str, ...] = ()) -> tuple[Terminal, Provider]:
        server = stack.enter_context(provider(*answers))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        chat = Terminal("chat", "--user", "alice", "--model", "openai-chat:loopback", *arguments, columns=100, rows=40)
        stack.callback(chat.close)
        chat.prompt()
        return chat, server

    return begun


def held_back(stack: ExitStack) -> Text:
    """An answer that begins to come and does not go on."""
    gate = threading.Event()
    stack.callback(gate.set)

    def wait() -> None:
        gate.wait(30)

    return Text(["The first line.\n\n", "The second."], wait)


def ask(chat: Terminal, prompt: str, until: str) -> None:
    chat.type(f"{prompt}\r")
    chat.expect(until)


def stop(chat: Terminal) -> None:
    chat.type("\x03")
    chat.expect("Stopped")
    chat.prompt()


def test_connections_that_were_kept_alive_do_not_outlive_a_stopped_turn(talking: Talking, stack: ExitStack) -> None:
    """Those of the turn before lie idle while a command runs, and are of an event loop that is closed then."""
    at_work = ToolCalls([("execute", {"command": "sleep 30"})])
    chat, server = talking(
        Text(["Good morning."]), at_work, Text(["Still here."]), arguments=("--sandbox", "none", "--approve", "auto")
    )
    ask(chat, "hello", "Good morning.")
    chat.prompt()
    ask(chat, "wait", "Running execute")
    stop(chat)
    ask(chat, "and now?", "Still here.")
    chat.prompt()
    assert "Error" not in chat.screen
    assert len(server.requests) == 3


@pytest.mark.parametrize("begin", ["--new", "/new second", "/new"])
def test_a_session_whose_first_turn_was_stopped_is_gone_on_with(
    talking: Talking, stack: ExitStack, deepctl: InProcess, begin: str
) -> None:
    arguments = ("--new", "second") if begin == "--new" else ()
    chat, server = talking(held_back(stack), Text(["Well."]), arguments=arguments)
    if begin != "--new":
        chat.type(f"{begin}\r")
        chat.expect("Your next prompt starts")
        chat.prompt()
    ask(chat, "an unusual question", "The first line.")
    stop(chat)
    ask(chat, "and now?", "Well.")
    assert "an unusual question" in str(server.requests[1]["messages"])
    listed = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
    assert [session["turns"] for session in listed] == [2]
    assert begin == "/new" or listed[0]["name"] == "second"


def test_a_file_goes_with_one_prompt_whether_or_not_that_turn_ended(
    talking: Talking, stack: ExitStack, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "table.csv").write_text("a,b\n")
    chat, server = talking(
        held_back(stack), Text(["Well."]), arguments=("--file", str(tmp_path / "table.csv"), "--approve", "auto")
    )
    ask(chat, "what is in it?", "The first line.")
    stop(chat)
    ask(chat, "and now?", "Well.")
    chat.prompt()
    assert [path.name for path in (home / "profiles/alice/workspace").glob("*.csv")] == ["table.csv"]
    assert "table.csv" not in str(server.requests[1]["messages"][-1])


def test_a_burst_of_ctrl_c_in_an_answer_leaves_a_conversation_that_goes_on(talking: Talking, stack: ExitStack) -> None:
    """As when the key is stuck: some of them come while what the turn had open is being closed."""
    answers = [(held_back(stack), Text([f"Answer {time}."])) for time in range(4)]
    chat, server = talking(*(answer for both in answers for answer in both))
    for time in range(4):
        chat.type("a question\r")
        docker.until(lambda: len(server.requests) == 2 * time + 1, 20, "it is asked")  # noqa: B023 (called here and now)
        chat.settle(0.5)
        chat.type("\x03\x03\x03" * (time + 1))
        chat.settle(1.0)
        chat.prompt()
        ask(chat, "and now?", f"Answer {time}.")
        chat.prompt()


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("runs", ["!touch begun; sleep 0.5; touch done", "use the tool"])
def test_ctrl_d_while_something_runs_leaves_after_it(
    talking: Talking, monkeypatch: pytest.MonkeyPatch, home: Path, term: str, runs: str
) -> None:
    monkeypatch.setenv("TERM", term)
    done = home / "profiles/alice/workspace/done"
    at_work = ToolCalls([("execute", {"command": "touch begun; sleep 0.5; touch done"})])
    chat, _ = talking(at_work, Text(["That is it."]), arguments=("--sandbox", "none", "--approve", "auto"))
    chat.type(f"{runs}\r")
    docker.until(lambda: (done.parent / "begun").exists(), 20, "it runs")
    chat.type("\x04")
    assert chat.wait() == 0
    assert done.exists(), "it was not stopped"
    if runs.startswith("use"):
        assert "That is it." in chat.screen


def test_what_is_typed_before_ctrl_d_is_run_first(talking: Talking) -> None:
    chat, _ = talking(Text(["Hello there."]))
    chat.type("!sleep 0.5\r")
    chat.expect("Running")
    chat.type("greet me\r\x04")
    assert chat.wait() == 0
    assert "Hello there." in chat.screen


def test_ctrl_d_in_an_answer_that_is_stopped_does_not_leave_after_it(talking: Talking, stack: ExitStack) -> None:
    chat, _ = talking(held_back(stack), Text(["Still here."]))
    ask(chat, "hello", "The first line.")
    chat.type("\x04\x1aand then")
    chat.settle(0.2)
    chat.type("\x03")
    chat.expect("Stopped")
    chat.prompt("and then")
    chat.type("\r")
    chat.expect("Still here.")


def test_another_ctrl_c_while_what_was_stopped_is_closed_does_not_break_the_next_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stopped() -> None:
        raise KeyboardInterrupt

    close = asyncio.Runner.close

    def interrupted(runner: asyncio.Runner) -> None:
        close(runner)
        raise KeyboardInterrupt

    running = TurnRunner(Options("offline"), environment={})
    with closing(running):
        chat = EphemeralChat(running)
        chat.turn("hello", lambda event: None)
        with monkeypatch.context() as closing_takes_long:
            closing_takes_long.setattr(asyncio.Runner, "close", interrupted)
            with pytest.raises(KeyboardInterrupt):
                running._guarded(stopped())
        assert "offline model" in chat.turn("hello", lambda event: None).output
