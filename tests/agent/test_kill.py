"""SIGKILL at any moment of a turn: the next command continues, and nothing that was complete is lost."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from deepctl.store import log_file
from tests.support.command import Command, InProcess

ROUNDS = 50 if os.environ.get("DEEPCTL_SOAK") == "1" else 10


@pytest.mark.timeout(600)
def test_a_turn_of_three_tools_killed_at_random_moments(process: Command, home: Path) -> None:
    """What has come out as an event was complete, so it must be in the log; the next turn must go through."""
    randomness = random.Random(20261122)
    prompt = "write a.txt: one\nremember two\nread a.txt"
    process("chat", "--user", "warm", prompt).ok()  # so that the template process has started
    began = time.monotonic()
    process("chat", "--user", "warm", prompt).ok()
    whole = time.monotonic() - began
    cut_short = 0
    for number in range(ROUNDS):
        user = f"u{number}"
        out = home.parent / f"out{number}"
        with open(out, "wb") as stdout:
            running = process.start("chat", "--user", user, "--json", prompt, stdout=stdout)
            if number % 2:
                # Most of the time goes into imports; aim at the turn itself, however busy the machine is.
                while not out.stat().st_size and running.poll() is None:
                    time.sleep(0.001)
                time.sleep(randomness.uniform(0.0, 0.1) * whole)
            else:
                time.sleep(randomness.uniform(0.4, 1.1) * whole)
            running.kill()
            running.wait()
        seen = [json.loads(line) for line in out.read_bytes().split(b"\n")[:-1]]
        cut_short += bool(seen) and seen[-1]["type"] != "result"
        if not (home / "profiles" / user).exists():
            assert seen == []
            continue
        if any(event["type"] == "start" for event in seen):
            shown = process("sessions", "show", "--user", user, "--json").ok().json
            _nothing_is_missing(shown["messages"], seen, prompt)
            assert all(damage["torn"] for damage in shown["damaged"])
        after = process("chat", "--user", user, "--json", "hello").ok()
        assert after.events[-1]["type"] == "result"
        shown = process("sessions", "show", "--user", user, "--json").ok().json
        _nothing_is_missing(shown["messages"], seen, prompt)
        assert shown["damaged"] == []
    print(f"{ROUNDS} kills, {cut_short} of them in the middle of the turn")
    assert cut_short >= ROUNDS // 10, "the kills missed the turn; aim again"


def _nothing_is_missing(messages: list[dict[str, object]], seen: list[dict[str, object]], prompt: str) -> None:
    logged = json.dumps([entry["message"] for entry in messages])
    for event in seen:
        if event["type"] in ("tool_call", "tool_result"):
            assert json.dumps(event["id"]) in logged
            assert json.dumps(prompt)[1:-1] in logged
        if event["type"] == "tool_result" and event["name"] == "read_file":
            assert json.dumps(event["content"])[1:-1] in logged
        if event["type"] == "result":
            assert json.dumps(event["output"])[1:-1] in logged


@pytest.mark.parametrize("calls", [2, 3])
def test_a_turn_killed_in_a_later_call_of_one_answer_is_never_left_silently(
    deepctl: InProcess, process: Command, home: Path, calls: int
) -> None:
    deepctl("chat", "hello").ok()
    workspace = home / "profiles" / "default" / "workspace"
    lines = [f"write {number}.txt: agent" for number in range(1, calls)]
    command = "run echo agent > last.txt; sleep 60"
    running = process.start("chat", "--sandbox", "none", "--approve", "auto", "\n".join([*lines, command]))
    while not (workspace / "last.txt").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    (workspace / "mine.txt").write_text("the user's")
    names = {path.name for path in workspace.iterdir()}
    foretold = deepctl("checkpoints", "rewind", "~1", "--dry-run", "--json")
    refused = deepctl("checkpoints", "rewind", "~1", "--json")
    assert (foretold.code, refused.code) == (6, 6)
    assert foretold.error == refused.error
    assert refused.error["paths"] == foretold.json["files"]["conflicts"]
    assert {"last.txt", "mine.txt"} <= set(refused.error["paths"])
    assert {path.name for path in workspace.iterdir()} == names
    deepctl("checkpoints", "rewind", "~1", "--force").ok()
    assert list(workspace.iterdir()) == []
    deepctl("checkpoints", "undo").ok()
    assert {path.name for path in workspace.iterdir()} == names


def test_a_turn_that_was_stopped_has_its_end_and_what_comes_after_it_is_the_users(
    deepctl: InProcess, home: Path
) -> None:
    workspace = home / "profiles" / "default" / "workspace"
    stopped = ("--sandbox", "none", "--approve", "auto", "--timeout", "1")
    assert deepctl("chat", *stopped, "write a.txt: agent\nrun echo agent > b.txt; sleep 60").code == 124
    (workspace / "mine.txt").write_text("the user's")
    deepctl("checkpoints", "rewind", "~1").ok()
    assert [path.name for path in workspace.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("limit", [13, 17])
def test_too_few_open_files_never_lose_a_note(deepctl: InProcess, process: Command, home: Path, limit: int) -> None:
    deepctl("chat", "write d/e/f/note.txt: agent").ok()
    note = home / "profiles/default/workspace/d/e/f/note.txt"
    note.write_text("the user's")
    process.argv = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *process.argv)  # type: ignore[assignment]
    result = process("checkpoints", "rewind", "~1", "--force")
    if result.code == 0:
        assert not note.exists()
        deepctl("checkpoints", "undo").ok()
    else:
        assert result.code == 8
    assert note.read_text() == "the user's"


def test_a_log_cut_at_every_byte_of_its_last_lines_is_read_and_continued(process: Command, home: Path) -> None:
    from deepctl import layout
    from deepctl.store import session_catalogue, session_log

    process("chat", "write a.txt: one\nread a.txt").ok()
    paths = layout.root(os.environ).profile("default")
    session = session_catalogue.find(paths, "main")
    path = Path(log_file.log_path(session.directory, session.log))
    raw = path.read_bytes()
    start = raw.rindex(b"\n", 0, len(raw) - 1) + 1
    whole = len(session_catalogue.read(session).messages)
    for cut in range(start, len(raw) + 1, 7):
        path.write_bytes(raw[:cut])
        # The newline alone can be missing: the line before it is complete all the same.
        assert len(session_catalogue.read(session).messages) == (whole if cut >= len(raw) - 1 else whole - 1)
        session_log.LogWriter(session.directory, session.log, 2).close()
        assert session_catalogue.read(session).damage == []
