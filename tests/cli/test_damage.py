"""Damage is contained: it takes only itself down, and is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepctl.files import sealed_lines
from tests.support.command import InProcess


@pytest.fixture
def sessions(deepctl: InProcess, home: Path) -> Path:
    """A profile with the sessions `good` and, damaged by each test, `bad`."""
    deepctl("chat", "--session", "bad", "write a.txt: x\nread a.txt").ok()
    deepctl("chat", "--session", "good", "hello").ok()
    return home / "profiles/default/sessions"


RECORDS: list[Any] = [
    {"v": 1},
    {"v": "1", "id": "x", "created_at": "x", "log": "a"},
    {"v": None},
    {"v": 1, "id": "x", "created_at": "x", "log": 3},
    {"v": 1, "id": "x", "created_at": "x", "log": "../../../b"},
    b"",
    b"rubbish",
]


@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_bad_record_of_a_session_leaves_the_session_readable_by_its_log(
    deepctl: InProcess, sessions: Path, record: Any
) -> None:
    (sessions / "bad" / "session.json").write_bytes(record if isinstance(record, bytes) else sealed_lines.seal(record))
    shown = deepctl("sessions", "show", "bad", "--json").ok().json
    assert len(shown["messages"]) == 4
    listed = deepctl("sessions", "list", "--json").ok().json["sessions"]
    assert sorted(session["name"] for session in listed) == ["bad", "good"]
    deepctl("chat", "--session", "good", "hello").ok()


def test_a_session_whose_log_is_gone_is_damaged_and_the_others_are_not(deepctl: InProcess, sessions: Path) -> None:
    for path in (sessions / "bad").glob("*.jsonl"):
        path.unlink()
    assert deepctl("sessions", "show", "bad").code == 5
    assert deepctl("chat", "--session", "bad", "hello").code == 5
    problems = {s["name"]: "problem" in s for s in deepctl("sessions", "list", "--json").ok().json["sessions"]}
    assert problems == {"bad": True, "good": False}
    deepctl("chat", "--session", "good", "hello").ok()


LINES: list[dict[str, Any]] = [
    {"v": 1, "turn": "x", "at": "x", "message": {"kind": "request", "parts": []}},
    {"v": 1, "turn": 1, "at": 5, "message": {"kind": "request", "parts": []}},
    {"v": 1, "turn": 1, "at": "x", "message": {"kind": "request", "parts": 5}},
    {"v": 1, "turn": 1, "at": "x", "message": 5},
    {"v": 1, "turn": 1, "at": "x", "result": 5},
    {"v": 1},
    {"something": "else"},
]


@pytest.mark.parametrize("line", LINES, ids=json.dumps)
def test_a_line_that_makes_no_sense_is_named_and_left_out(
    deepctl: InProcess, sessions: Path, line: dict[str, Any]
) -> None:
    (path,) = (sessions / "bad").glob("*.jsonl")
    path.write_bytes(path.read_bytes() + sealed_lines.seal(line))
    shown = deepctl("sessions", "show", "bad", "--json").ok().json
    assert len(shown["messages"]) == 4
    assert [damage["reason"] for damage in shown["damaged"]] == ["not an entry of a message log"]
    assert deepctl("sessions", "show", "bad").code == 0
    assert "left out" in deepctl("chat", "--session", "bad", "hello").ok().stderr


@pytest.mark.parametrize(
    "parts", [["s"], [{"part_kind": "text", "content": 5}], [{"part_kind": "user-prompt", "content": 5}]]
)
def test_a_message_that_is_not_one_is_left_out(deepctl: InProcess, sessions: Path, parts: list[Any]) -> None:
    (path,) = (sessions / "bad").glob("*.jsonl")
    entry = {"v": 1, "turn": 1, "at": "2026-01-01T00:00:00Z", "message": {"kind": "request", "parts": parts}}
    path.write_bytes(path.read_bytes() + sealed_lines.seal(entry))
    assert deepctl("sessions", "show", "bad").code == 0
    assert deepctl("sessions", "list").code == 0
    assert "invalid message" in deepctl("chat", "--session", "bad", "hello").ok().stderr


@pytest.mark.parametrize("parent", ["x", {"log": 5, "offset": 1}, {"log": "a"}, {"log": "../x", "offset": 1}])
def test_a_parent_that_cannot_be_told_costs_only_what_it_had(deepctl: InProcess, sessions: Path, parent: Any) -> None:
    (path,) = (sessions / "bad").glob("*.jsonl")
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(sealed_lines.seal({**sealed_lines.unseal(first[:-1]), "parent": parent}) + b"".join(rest))
    shown = deepctl("sessions", "show", "bad", "--json").ok().json
    assert len(shown["messages"]) == 4
    assert len(shown["damaged"]) == 1


def test_one_damaged_profile_does_not_hide_the_others(deepctl: InProcess, home: Path) -> None:
    for name in ("file-for-sessions", "number", "brackets", "linked", "good"):
        deepctl("profiles", "create", name).ok()
    profiles = home / "profiles"
    (profiles / "file-for-sessions" / "sessions").rmdir()
    (profiles / "file-for-sessions" / "sessions").write_text("x")
    (profiles / "number" / "profile.toml").write_text("x = " + "9" * 5000)
    (profiles / "brackets" / "profile.toml").write_text("x = " + "[" * 5000)
    (profiles / "linked" / "workspace").rmdir()
    (profiles / "linked" / "workspace").symlink_to(home)
    listed = {p["name"]: p for p in deepctl("profiles", "list", "--json").ok().json["profiles"]}
    assert sorted(listed) == ["brackets", "file-for-sessions", "good", "linked", "number"]
    assert "problem" not in listed["good"]
    assert "not valid TOML" in listed["number"]["problem"]
    assert "not valid TOML" in listed["brackets"]["problem"]
    assert deepctl("chat", "--user", "number", "hi").code == 5
    assert deepctl("chat", "--user", "linked", "hi").code == 6
    assert deepctl("chat", "--user", "file-for-sessions", "hi").code in (5, 8)
