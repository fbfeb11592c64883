"""The agent's own checkpoints in a session: saved, listed, and gone back to in the middle of a turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest

from deepctl.store import workspaces
from deepctl.store.trees import Snapshot
from tests.support.command import InProcess, Result
from tests.support.loopback import Answer, Text, ToolCalls, provider

T = TypeVar("T")


@pytest.fixture
def chat(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")

    def turn(prompt: str, *answers: Answer, options: Sequence[str] = ()) -> tuple[Result, list[str]]:
        """One turn with these answers; returns what came of it and the requests the model got, as text."""
        with provider(*answers) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            done = deepctl("chat", "--json", "--model", "openai-chat:loopback", *options, prompt)
            return done, [json.dumps(request["messages"]) for request in server.requests]

    return turn


def _write(text: str) -> tuple[str, dict[str, str]]:
    return ("write_file", {"path": "a.txt", "content": text})


def test_the_agent_goes_back_in_mid_turn_and_is_asked_again(deepctl: InProcess, home: Path, chat) -> None:  # type: ignore[no-untyped-def]
    deepctl("chat", "remember I like tea").ok()
    done, requests = chat(
        "improve it",
        ToolCalls([_write("good"), ("save_checkpoint", {"label": "good"})]),
        ToolCalls([_write("bad"), ("list_checkpoints", {})]),
        ToolCalls([("rewind_to", {"checkpoint": "good", "reason": "bad was worse"})]),
        ToolCalls([("rewind_to", {"checkpoint": "good"})]),
        Text(["Done."]),
    )
    assert done.ok().events[-1]["output"] == "Done."
    workspace = home / "profiles/default/workspace"
    assert (workspace / "a.txt").read_text() == "good"
    assert "good turn 2" in requests[2]
    assert "bad was worse" in requests[3]
    assert '"content": "bad"' not in requests[3]
    assert "once for this request" in requests[4]
    kinds = [event["kind"] for event in done.events if event["type"] == "checkpoint"]
    assert kinds[0] == "tool"
    assert "manual" in kinds
    assert kinds.count("rewind") == 1
    prompts = deepctl("sessions", "show").ok().stdout
    assert prompts.count("> improve it") == 2, "asked once before the checkpoint, and again"
    deepctl("checkpoints", "undo").ok()
    assert (workspace / "a.txt").read_text() == "bad", "the agent's rewind can be taken back like any other"
    deepctl("checkpoints", "rewind", "good").ok()
    assert deepctl("checkpoints", "verify").code == 0


def test_what_the_agent_cannot_do_with_checkpoints_it_is_told(deepctl: InProcess, home: Path, chat) -> None:  # type: ignore[no-untyped-def]
    deepctl("chat", "write a.txt: first").ok()
    deepctl("chat", "write a.txt: second").ok()
    deepctl("chat", "--new", "other", "hello").ok()
    (home / "profiles/default/workspace/a.txt").write_text("the user's")
    foreign = deepctl("checkpoints", "list", "--session", "other", "--json").ok().json["checkpoints"][0]["id"]
    target = deepctl("checkpoints", "list", "--session", "main", "--json").ok().json["checkpoints"][1]["id"]
    deepctl("chat", "--session", "main", "hello").ok()
    done, requests = chat(
        "go",
        ToolCalls([("save_checkpoint", {"label": "../bad"}), ("rewind_to", {"checkpoint": "nope"})]),
        ToolCalls([("rewind_to", {"checkpoint": target}), ("rewind_to", {"checkpoint": foreign})]),
        Text(["Never mind."]),
    )
    assert done.ok().events[-1]["output"] == "Never mind."
    told = [event["content"] for event in done.events if event["type"] == "tool_result"]
    assert "cannot be" in told[0] or "label" in told[0]
    assert "no checkpoint 'nope'" in told[1]
    assert "Another author changed a.txt after the agent. Nothing was rewound." in told[2]
    assert "another session" in told[3]
    assert not any(event["ok"] for event in done.events if event["type"] == "tool_result")
    assert (home / "profiles/default/workspace/a.txt").read_text() == "the user's"
    assert len(requests) == 3


def test_what_you_edit_while_the_model_thinks_is_yours(deepctl: InProcess, home: Path, chat) -> None:  # type: ignore[no-untyped-def]
    workspace = home / "profiles/default/workspace"
    deepctl("chat", "write old.txt: old").ok()

    def edit() -> None:
        (workspace / "mine.txt").write_text("the user's")
        (workspace / "old.txt").write_text("the user's")

    chat("go", ToolCalls([_write("agent")]), Text(["Let me ", "think."], gate=edit))[0].ok()
    done = deepctl("checkpoints", "rewind", "--json").ok().json
    assert done["files"]["deleted"] == ["a.txt"]
    assert {path.name: path.read_text() for path in workspace.iterdir()} == {
        "mine.txt": "the user's",
        "old.txt": "the user's",
    }


def test_what_you_edit_after_the_agent_in_the_same_turn_is_a_conflict(deepctl: InProcess, home: Path, chat) -> None:  # type: ignore[no-untyped-def]
    workspace = home / "profiles/default/workspace"
    deepctl("chat", "hello").ok()

    def edit() -> None:
        (workspace / "a.txt").write_text("the user's")

    chat("go", ToolCalls([_write("agent")]), Text(["Let me ", "think."], gate=edit))[0].ok()
    refused = deepctl("checkpoints", "rewind", "--json")
    assert (refused.code, refused.error["paths"]) == (6, ["a.txt"])
    assert (workspace / "a.txt").read_text() == "the user's"


class _Edited(ToolCalls):
    """An answer with calls of tools, before which the user has edited something: the model has been asked already."""

    def __init__(self, edit: Callable[[], object], calls: list[tuple[str, dict[str, Any]]]) -> None:
        super().__init__(calls)
        self._edit = edit

    def pieces(self) -> Iterator[tuple[int, str, list[str]]]:
        self._edit()
        return super().pieces()


_PLAN = {"items": [{"content": "pack", "status": "pending"}]}
_FILE_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("write_file", {"path": "new/deep/a.txt", "content": "agent"}),
    ("write_file", {"path": "a.txt", "content": "agent"}),
    ("edit_file", {"path": "old.txt", "old_string": "old", "new_string": "agent"}),
    ("edit_file", {"path": "link.txt", "old_string": "target", "new_string": "agent"}),
    ("write_memory", {"content": "- likes tea"}),
    ("save_plan", {"title": "Move", "content": "1. pack"}),
    ("write_plan", _PLAN),
    ("read_file", {"path": "large.txt"}),
]


@pytest.mark.parametrize("call", _FILE_CALLS, ids=lambda call: f"{call[0]} {call[1].get('path', '')}")
@pytest.mark.parametrize("in_project", [False, True])
def test_a_file_tool_is_the_author_of_what_it_changes_alone(  # type: ignore[no-untyped-def]
    deepctl: InProcess,
    home: Path,
    tmp_path: Path,
    chat,
    call: tuple[str, dict[str, Any]],
    in_project: bool,
) -> None:
    directory = tmp_path / "shop" if in_project else home / "profiles/default/workspace"
    options = ("-C", str(directory)) if in_project else ()
    deepctl("profiles", "create", "default").ok()
    directory.mkdir(exist_ok=True)
    (directory / "old.txt").write_text("old")
    (directory / "target.txt").write_text("target")
    (directory / "link.txt").symlink_to("target.txt")
    (directory / "large.txt").write_text("x" * 70 + "\n" + ("y" * 70 + "\n") * 3000)
    deepctl("chat", *options, "hello").ok()
    before = _files(directory)

    def edit() -> None:
        (directory / "mine.txt").write_text("the user's")
        (directory / "mine").mkdir()

    walks, turn = _counted(lambda: chat("go", _Edited(edit, [call]), Text(["Done."]), options=options))
    turn[0].ok()
    assert walks == 3
    assert all(event["ok"] for event in turn[0].events if event["type"] == "tool_result")
    kinds = [event["kind"] for event in turn[0].events if event["type"] == "checkpoint"]
    assert kinds == ["tool", "tool", "turn"], "the user's changes, the agent's, the end"
    deepctl("checkpoints", "rewind", *options, "--json").ok()
    assert _files(directory) == {**before, "mine": None, "mine.txt": "the user's"}
    assert deepctl("checkpoints", "verify").code == 0


def test_what_you_save_before_the_agent_overwrites_it_is_kept(deepctl: InProcess, home: Path, chat) -> None:  # type: ignore[no-untyped-def]
    workspace = home / "profiles/default/workspace"
    deepctl("chat", "write a.txt: old").ok()

    def edit() -> None:
        (workspace / "a.txt").write_text("the user's")

    walks, (done, _) = _counted(lambda: chat("go", _Edited(edit, [_write("agent")]), Text(["Done."])))
    assert done.ok().code == 0
    assert walks == 4
    assert (workspace / "a.txt").read_text() == "agent"
    deepctl("checkpoints", "rewind").ok()
    assert (workspace / "a.txt").read_text() == "the user's"


def test_a_call_that_fails_or_is_denied_does_not_make_your_edits_the_agents(  # type: ignore[no-untyped-def]
    deepctl: InProcess,
    home: Path,
    chat,
) -> None:
    workspace = home / "profiles/default/workspace"
    deepctl("chat", "write a.txt: old").ok()

    def edit() -> None:
        (workspace / "a.txt").write_text("the user's")

    calls: list[tuple[str, dict[str, Any]]] = [
        ("edit_file", {"path": "a.txt", "old_string": "nowhere", "new_string": "agent"}),
        ("write_file", {"path": ".git/config", "content": "agent"}),
        ("write_file", {"path": "../a.txt", "content": "agent"}),
    ]
    walks, (done, _) = _counted(lambda: chat("go", _Edited(edit, calls), Text(["Done."])))
    assert done.ok().code == 0
    assert walks == 2
    deepctl("checkpoints", "rewind").ok()
    assert (workspace / "a.txt").read_text() == "the user's"


def _files(directory: Path) -> dict[str, str | None]:
    """The user's and the agent's files below a directory; `None` for a directory."""
    return {
        str(path.relative_to(directory)): path.read_text() if path.is_file() else None
        for path in directory.rglob("*")
        if ".deep" not in path.relative_to(directory).parts
    }


def _counted(action: Callable[[], T]) -> tuple[int, T]:
    """The walks of workspaces during an action, projects of the same snapshot not counted."""
    walks = 0
    real = workspaces.snapshot

    def snapshot(*arguments: Any, **options: Any) -> Snapshot:
        nonlocal walks
        walks += 1
        return real(*arguments, **options)

    with mock.patch.object(workspaces, "snapshot", snapshot):
        result = action()
    return walks, result


def test_a_large_result_that_reading_put_into_a_file_is_the_agents(deepctl: InProcess, home: Path) -> None:
    workspace = home / "profiles/default/workspace"
    deepctl("chat", "hello").ok()
    (workspace / "large.txt").write_text("x" * 70 + "\n" + ("y" * 70 + "\n") * 3000)
    deepctl("chat", "read large.txt").ok()
    assert list((workspace / "large_tool_results").iterdir())
    deepctl("checkpoints", "rewind").ok()
    assert [path.name for path in workspace.iterdir()] == ["large.txt"]
