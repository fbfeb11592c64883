"""To-do lists: one a session, which rewinds, forks and goes with it, and which people can look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider

Say = Callable[..., str]


@pytest.fixture
def say(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Say]:
    """A turn of alice's in a session: the model writes these steps as its list, or only answers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    with provider() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")

        def turn(session: str, *steps: str) -> str:
            items = [{"content": step, "status": "in_progress" if step.endswith("!") else "pending"} for step in steps]
            server._answers += [ToolCalls([("write_plan", {"items": items})])] if steps else []
            server._answers.append(Text(["Done."]))
            server.requests.clear()
            options = ("-u", "alice", "--session", session, "--model", "openai-chat:loopback")
            deepctl("chat", *options, "go on").ok()
            return json.dumps(server.requests[0])

        yield turn


def _shown(deepctl: InProcess, session: str) -> list[str] | None:
    todo = deepctl("sessions", "show", session, "-u", "alice", "--json").ok().json["todo"]
    return None if todo is None else [step["content"] for step in todo]


@pytest.fixture
def workspace(home: Path) -> Path:
    return home / "profiles/alice/workspace"


def test_a_session_is_reminded_of_its_own_list_and_of_no_other(say: Say, deepctl: InProcess, workspace: Path) -> None:
    say("first", "water the plants", "feed the cat!")
    assert "water the plants" in say("first")
    assert "plants" not in say("second")
    say("second", "call Bob")
    assert "plants" not in say("second")
    assert "call Bob" not in say("first")
    assert _shown(deepctl, "first") == ["water the plants", "feed the cat!"]
    assert _shown(deepctl, "second") == ["call Bob"]
    assert not (workspace / ".deep/todo.json").exists()
    assert len(list((workspace / ".deep/todo").iterdir())) == 2
    text = deepctl("sessions", "show", "first", "-u", "alice").ok().stdout
    assert text.endswith("--- to-do list\n[ ] water the plants\n[>] feed the cat!\n")


def test_a_deleted_session_takes_its_list_along(say: Say, deepctl: InProcess, workspace: Path) -> None:
    say("first", "water the plants")
    say("second", "call Bob")
    deepctl("sessions", "delete", "first", "-u", "alice", "--yes").ok()
    (left,) = (workspace / ".deep/todo").iterdir()
    assert "call Bob" in left.read_text()
    assert "plants" not in say("third")
    deepctl("checkpoints", "verify", "-u", "alice").ok()


def test_the_list_rewinds_with_its_session(say: Say, deepctl: InProcess) -> None:
    say("main", "one")
    say("main", "one", "two")
    say("other", "theirs")
    deepctl("checkpoints", "rewind", "~1", "--session", "main", "-u", "alice").ok()
    assert _shown(deepctl, "main") == ["one"]
    assert _shown(deepctl, "other") == ["theirs"]
    deepctl("checkpoints", "undo", "--session", "main", "-u", "alice").ok()
    assert _shown(deepctl, "main") == ["one", "two"]


def test_a_fork_begins_with_the_list_as_it_was_then_and_goes_its_own_way(say: Say, deepctl: InProcess) -> None:
    say("main", "one")
    then = deepctl("checkpoints", "list", "-u", "alice", "--json").ok().json["checkpoints"][0]["id"]
    say("main", "one", "two")
    deepctl("checkpoints", "fork", then, "branch", "-u", "alice").ok()
    assert _shown(deepctl, "branch") == ["one"]
    say("branch", "three")
    assert (_shown(deepctl, "main"), _shown(deepctl, "branch")) == (["one", "two"], ["three"])
    deepctl("sessions", "rename", "branch", "twig", "-u", "alice").ok()
    assert _shown(deepctl, "twig") == ["three"]


def _as_up_to_0_1(workspace: Path, *steps: str) -> Path:
    old = workspace / ".deep/todo.json"
    old.parent.mkdir(exist_ok=True)
    items: list[Any] = [{"id": f"{number:08x}", "content": step} for number, step in enumerate(steps)]
    old.write_text(json.dumps({"version": 1, "items": items}))
    return old


def test_a_list_of_0_1_is_that_of_the_session_written_to_last(say: Say, deepctl: InProcess, workspace: Path) -> None:
    say("first")
    say("second")
    old = _as_up_to_0_1(workspace, "from before")
    assert _shown(deepctl, "first") == []
    assert _shown(deepctl, "second") == ["from before"]
    assert old.exists(), "reading moves nothing"
    assert ".deep/todo.json" in deepctl("doctor", "-u", "alice").stdout
    assert "from before" not in say("first")
    assert not old.exists()
    assert "from before" in say("second")
    assert "from before" not in say("third")
    assert "todo.json" not in deepctl("doctor", "-u", "alice").stdout


def test_what_an_agent_of_0_1_wrote_can_be_rewound_after_its_list_has_moved(
    say: Say, deepctl: InProcess, workspace: Path
) -> None:
    deepctl("chat", "-u", "alice", "--sandbox", "none", "--approve", "auto", "hello").ok()
    write = 'mkdir -p .deep; echo \'{"version": 1, "items": [{"id": "1", "content": "old"}]}\' > .deep/todo.json'
    deepctl("chat", "-u", "alice", "--sandbox", "none", "--approve", "auto", f"run {write}").ok()
    say("main", "new")
    assert deepctl("checkpoints", "rewind", "~2", "-u", "alice", "--json").ok().json["files"]["conflicts"] == []
    assert _shown(deepctl, "main") == []
    assert not (workspace / ".deep/todo.json").exists()


def test_a_deleted_session_takes_a_list_of_0_1_along(say: Say, deepctl: InProcess, workspace: Path) -> None:
    say("first")
    say("second")
    old = _as_up_to_0_1(workspace, "from before")
    deepctl("sessions", "delete", "second", "-u", "alice", "--yes").ok()
    assert not old.exists()
    assert "from before" not in say("first")


@pytest.mark.parametrize("part", ["plans", "sessions"])
def test_a_wipe_takes_the_lists_along(say: Say, deepctl: InProcess, workspace: Path, part: str) -> None:
    say("main", "one")
    deepctl("wipe", "--only", part, "-u", "alice", "--yes").ok()
    assert not (workspace / ".deep/todo").exists()


def test_a_list_that_is_none_is_named_and_left_alone(say: Say, deepctl: InProcess, workspace: Path) -> None:
    say("main", "zebra")
    (kept,) = (workspace / ".deep/todo").iterdir()
    kept.write_text("[")
    assert "<plan-reminder>" not in say("main")
    assert _shown(deepctl, "main") is None
    assert "cannot be read" in deepctl("sessions", "show", "main", "-u", "alice").ok().stderr
    assert kept.name in deepctl("doctor", "-u", "alice").stdout
    assert kept.read_text() == "["
    kept.write_text(json.dumps({"version": 1, "items": [{"content": "x\x1b[31m", "status": "cancelled"}]}))
    assert "[-] x\\x1b[31m" in deepctl("sessions", "show", "main", "-u", "alice").ok().stdout
