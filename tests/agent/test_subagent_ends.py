"""How the work of a sub-agent ends: with its report, with Ctrl-C, with SIGKILL. What was paid for and done is known."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepctl.layout import Root
from deepctl.store import usage_log
from tests.agent.test_subagents import task
from tests.support.command import Command, InProcess
from tests.support.loopback import Answer, Provider, Stalled, Text, ToolCalls, provider

ROUNDS = 20 if os.environ.get("DEEPCTL_SOAK") == "1" else 1
CHAT = ("chat", "-u", "alice", "--model", "openai-chat:gpt-4o", "--sandbox", "none", "--approve", "auto", "--json")


@pytest.fixture
def workspace(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "subagents", "on", "-u", "alice").ok()
    return Path(Root(str(home)).profile("alice").workspace)


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> Iterator[Provider]:
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        yield server


def until(condition: Callable[[], bool], running: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def execute(command: str) -> ToolCalls:
    return ToolCalls([("execute", {"command": command})])


def write(path: str, content: str) -> ToolCalls:
    return ToolCalls([("write_file", {"path": path, "content": content})])


def test_its_requests_are_in_the_cost_of_the_turn_and_have_a_purpose(
    deepctl: InProcess, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(monkeypatch, ToolCalls([task("self")]), write("a", "a"), Text(["Report."]), Text(["Done."])):
        result = deepctl(*CHAT, "go").ok()
    entries = usage_log.read(Root(os.environ["DEEPCTL_HOME"]).profile("alice")).entries
    assert [(entry.purpose, entry.turn, entry.session) for entry in entries] == [
        (purpose, 1, entries[0].session) for purpose in ("answer", "subagent", "subagent", "answer")
    ]
    assert all(entry.cost is not None and entry.cost > 0 and not entry.estimated for entry in entries)
    total = sum(entry.cost or 0 for entry in entries)
    assert result.events[-1]["cost"] == pytest.approx(total)
    assert deepctl("usage", "-u", "alice", "--json").ok().json["total"]["cost"] == pytest.approx(total)


def test_a_rewind_of_the_turn_takes_back_what_a_sub_agent_changed(
    deepctl: InProcess, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "mine.txt").write_text("mine\n")
    edit = ToolCalls([("edit_file", {"path": "mine.txt", "old_string": "mine", "new_string": "its"})])
    inner = (write("a.txt", "a\n"), execute("mkdir d; echo b > d/b.txt"), edit)
    outer = (write("c.txt", "c\n"), Text(["Done."]))
    with answering(monkeypatch, ToolCalls([task("self")]), *inner, Text(["Report."]), *outer):
        deepctl(*CHAT, "go").ok()
    assert (workspace / "mine.txt").read_text() == "its\n"
    rewound = deepctl("checkpoints", "rewind", "~1", "-u", "alice", "--json").ok().json
    assert rewound["files"]["conflicts"] == []
    assert [path.name for path in workspace.iterdir() if path.name != ".deep"] == ["mine.txt"]
    assert (workspace / "mine.txt").read_text() == "mine\n"
    deepctl("checkpoints", "undo", "-u", "alice").ok()
    assert (workspace / "d/b.txt").read_text() == "b\n"


@pytest.mark.parametrize("moment", ["a command", "an answer"])
def test_ctrl_c_ends_the_sub_agent_and_stores_the_turn(
    process: Command, deepctl: InProcess, workspace: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    last = execute("echo $$ > pid; sleep 300 & wait") if moment == "a command" else Stalled(["Half a"])
    answers: list[Answer] = [ToolCalls([task("self")]), write("a.txt", "a\n"), last, Text(["Here."])]
    with answering(monkeypatch, *answers) as server:
        running = process.start(*CHAT, "go")
        until(lambda: (workspace / "pid").exists() if moment == "a command" else len(server.requests) == 3, running)
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
        assert running.returncode == 130
        events = [json.loads(line) for line in out.splitlines()]
        assert [event["event"]["type"] for event in events if event["type"] == "subagent"][-1] == "end"
        if moment == "a command":
            assert not is_running(int((workspace / "pid").read_text()))
        # As after any interrupted turn, the prompt and the call are stored, and the next request says how it ended.
        shown = deepctl("sessions", "show", "-u", "alice", "--json").ok().json["messages"]
        kinds = [part["part_kind"] for entry in shown for part in entry["message"]["parts"]]
        assert kinds == ["user-prompt", "tool-call"]
        deepctl(*CHAT, "go on").ok()
        assert len(server.requests) == 4
        (result,) = [message["content"] for message in server.requests[3]["messages"] if message["role"] == "tool"]
        assert "interrupted" in result
    deepctl("checkpoints", "verify", "-u", "alice").ok()
    entries = usage_log.read(Root(os.environ["DEEPCTL_HOME"]).profile("alice")).entries
    assert [entry.purpose for entry in entries] == ["answer", "subagent", "subagent", "answer"]
    deepctl("checkpoints", "rewind", "~2", "-u", "alice").ok()
    assert [path.name for path in workspace.iterdir() if path.name != ".deep"] == []


@pytest.mark.timeout(600)
def test_sigkill_in_its_work_loses_no_recorded_request(
    process: Command, deepctl: InProcess, home: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    randomness = random.Random(20261201)
    paths = Root(str(home)).profile("alice")
    for number in range(ROUNDS):
        inner = [write(f"{number}-{step}.txt", "a\n") for step in range(30)]
        earlier = len(usage_log.read(paths).entries)
        with answering(monkeypatch, ToolCalls([task("self")]), *inner, Text(["Report."]), Text(["Done."])) as server:
            running = process.start(*CHAT, "go")
            until(lambda server=server: len(server.requests) >= 3, running)  # type: ignore[misc]
            time.sleep(randomness.uniform(0, 0.2))
            running.kill()
            running.wait()
            sent = len(server.requests)
        entries = usage_log.read(paths).entries[earlier:]
        # Each is recorded before it is sent, so the last one may be recorded only.
        assert sent <= len(entries) <= sent + 1
        assert [entry.purpose for entry in entries[:3]] == ["answer", "subagent", "subagent"]
        assert all(not entry.estimated for entry in entries[:2])
        with answering(monkeypatch, Text(["Here."])) as server:
            deepctl(*CHAT, "go on").ok()
            assert len(server.requests) == 1
        deepctl("checkpoints", "verify", "-u", "alice").ok()
        assert len(usage_log.read(paths).entries) == earlier + len(entries) + 1
        rewound = deepctl("checkpoints", "rewind", "~2", "-u", "alice", "--json")
        if rewound.code != 0:
            # As in any killed turn: the call whose checkpoint is missing has no author, so it does not count as the
            # agent's.
            assert len(rewound.error["paths"]) == 1
            deepctl("checkpoints", "rewind", "~2", "-u", "alice", "--force").ok()
        assert [path.name for path in workspace.iterdir() if path.name != ".deep"] == []
