"""The agent's own checkpoints in a session: saved, listed, and gone back to in the middle of a turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import InProcess, Result
from tests.support.loopback import Answer, Text, ToolCalls, provider


@pytest.fixture
def chat(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")

    def turn(prompt: str, *answers: Answer) -> tuple[Result, list[str]]:
        """One turn with these answers; returns what came of it and the requests the model got, as text."""
        with provider(*answers) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            done = deepctl("chat", "--json", "--model", "openai-chat:loopback", prompt)
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


def test_a_large_result_that_reading_put_into_a_file_is_the_agents(deepctl: InProcess, home: Path) -> None:
    workspace = home / "profiles/default/workspace"
    deepctl("chat", "hello").ok()
    (workspace / "large.txt").write_text("x" * 70 + "\n" + ("y" * 70 + "\n") * 3000)
    deepctl("chat", "read large.txt").ok()
    assert list((workspace / "large_tool_results").iterdir())
    deepctl("checkpoints", "rewind").ok()
    assert [path.name for path in workspace.iterdir()] == ["large.txt"]
