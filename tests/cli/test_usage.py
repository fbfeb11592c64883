"""`deepctl usage`: the sums, their forms, and the life of `usage.jsonl`."""

from __future__ import annotations

import csv
import io
import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from deepctl.layout import Root
from deepctl.store import usage_log
from deepctl.store.usage_log import UsageEntry
from tests.samples import make_root
from tests.support.command import InProcess
from tests.support.terminal import Terminal

COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "cost")


def add(home: Path, user: str, *, ago: float = 0.0, is_new: bool = True, **fields: Any) -> UsageEntry:
    """Record a request that was sent `ago` days ago."""
    at = (datetime.now(timezone.utc) - timedelta(days=ago)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    values: dict[str, Any] = {
        "id": usage_log.new_id(),
        "at": at,
        "session": None,
        "turn": 1,
        "model": "openai:gpt-4o",
        "purpose": "answer",
        "input": 1000,
        "cached": 100,
        "output": 50,
        "cost": 0.25,
        "estimated": False,
    }
    entry = UsageEntry(**{**values, **fields})
    paths = Root(str(home)).profile(user)
    with usage_log.lock(paths):
        usage_log.sync(usage_log.append(paths, [entry.line()]), is_durable=False)
    return entry


@pytest.fixture
def bill(deepctl: InProcess, home: Path) -> Path:
    """Two profiles with requests of several days, models and kinds."""
    for user in ("alice", "bob"):
        deepctl("profiles", "create", user).ok()
    add(home, "alice", ago=40)
    add(home, "alice", ago=3, input=2000, cost=1.0)
    add(home, "alice", ago=3, model="anthropic:claude-sonnet-4-6", cost=2.5)
    add(home, "alice", estimated=True, input=300, cached=0, output=0, cost=0.125)
    add(home, "alice", model="openai-chat:local", cost=None)
    add(home, "bob", cost=0.5)
    return home


def test_the_sums_are_those_of_the_requests(deepctl: InProcess, bill: Path) -> None:
    shown = deepctl("usage", "--user", "alice", "--json").ok().json
    assert (shown["version"], shown["profile"], shown["since"]) == (1, "alice", None)
    assert list(shown["rows"][0])[:6] == ["day", *COUNTS]
    assert [row["requests"] for row in shown["rows"]] == [1, 2, 2], "the oldest day first"
    total = shown["total"]
    assert [total[name] for name in COUNTS] == [5, 5300, 400, 200, 3.875]
    assert [total["estimated"][name] for name in COUNTS] == [1, 300, 0, 0, 0.125]
    recent = deepctl("usage", "--user", "alice", "--since", "30d", "--json").ok().json
    assert recent["total"]["requests"] == 4
    assert recent["since"] < datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    models = deepctl("usage", "--user", "alice", "--by", "model", "--json").ok().json["rows"]
    assert [(row["model"], row["cost"]) for row in models] == [
        ("anthropic:claude-sonnet-4-6", 2.5),
        ("openai:gpt-4o", 1.375),
        ("openai-chat:local", None),
    ]
    everyone = deepctl("usage", "--all", "--json").ok().json
    assert everyone["profile"] is None
    assert [(row["profile"], row["requests"]) for row in everyone["rows"]] == [("alice", 5), ("bob", 1)]


def test_a_profile_without_requests_has_no_rows_and_one_that_is_missing_is_an_error(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    assert deepctl("usage", "--user", "alice").ok().stdout == ""
    shown = deepctl("usage", "--user", "alice", "--json").ok().json
    assert (shown["rows"], shown["total"]["requests"], shown["total"]["cost"]) == ([], 0, 0.0)
    assert deepctl("usage", "--user", "alice", "--csv").ok().stdout.count("\n") == 1
    assert deepctl("usage", "--user", "nobody").code == 3
    assert deepctl("usage", "--all", "--since", "1d").ok().stdout == ""


def test_a_spreadsheet_takes_no_text_for_a_formula(deepctl: InProcess, bill: Path) -> None:
    for model in ("=1+1", "@SUM(A1)", "-2", '+cmd|"/c calc"', "\tx", 'a,"b"'):
        add(bill, "bob", model=model)
    shown = deepctl("usage", "--user", "bob", "--by", "model", "--csv").ok().stdout
    rows = list(csv.DictReader(io.StringIO(shown)))
    names = {row["model"] for row in rows}
    assert names == {"'=1+1", "'@SUM(A1)", "'-2", '\'+cmd|"/c calc"', "'\tx", 'a,"b"', "openai:gpt-4o"}
    assert {(row["requests"], row["cost"], row["estimated_requests"]) for row in rows} == {
        ("1", "0.25", "0"),
        ("1", "0.5", "0"),
    }


def test_a_person_sees_bars_and_what_is_estimated(deepctl: InProcess, bill: Path) -> None:
    wide = Terminal("usage", "--user", "alice", "--by", "model", columns=100)
    assert wide.wait() == 0
    lines = wide.screen.splitlines()
    (first,) = [line for line in lines if "claude" in line]
    (second,) = [line for line in lines if "gpt-4o" in line]
    (local,) = [line for line in lines if "local" in line]
    assert first.count("█") == 16
    assert second.count("█") == 8, "1.375 of 2.5 is 8.8 of 16 cells"
    assert "█" not in local
    assert "~$1.38" in second
    assert "~" not in first
    (total,) = [line for line in lines if line.startswith("total")]
    assert total.split() == ["total", "5", "~5,300", "400", "~200", "~$3.88"]
    assert "~ 1 request with 300 tokens and $0.1250 is estimated." in wide.screen
    assert "1 request has no price, and no part in the cost." in wide.screen
    narrow = Terminal("usage", "--user", "alice", columns=40)
    assert narrow.wait() == 0
    assert max(map(len, narrow.screen.splitlines())) <= 40
    assert "█" not in narrow.screen
    assert "~$3.88" in narrow.screen


def test_a_pipe_gets_plain_lines(deepctl: InProcess, bill: Path) -> None:
    (line,) = deepctl("usage", "--user", "bob").ok().stdout.splitlines()
    day = datetime.now().astimezone().strftime("%Y-%m-%d")
    assert line.split("\t") == [day, "1", "1000", "100", "50", "0.5", "0", "0", "0", "0", "0"]


def test_the_usage_survives_everything_but_a_wipe(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    alice = ("--user", "alice")
    deepctl("chat", *alice, "--session", "main", "remember tea").ok()
    deepctl("chat", *alice, "--session", "other", "write a.txt: x").ok()
    before = deepctl("usage", *alice, "--json").ok().json["total"]
    assert before["requests"] == 4
    identity = json.loads((home / "profiles/alice/sessions/other/session.json").read_text())["id"]
    for words in (
        ("checkpoints", "rewind", "~1", "--session", "main", *alice),
        ("sessions", "rename", "main", "first", *alice),
        ("sessions", "delete", "other", "--yes", *alice),
        ("memory", "forget", "tea", "--purge", "--yes", *alice),
        ("checkpoints", "prune", "--keep", "1", *alice),
        ("wipe", "--only", "sessions,workspace,history", "--yes", *alice),
        ("profiles", "rename", "alice", "anna"),
    ):
        deepctl(*words)
    anna = ("--user", "anna")
    assert deepctl("usage", *anna, "--json").ok().json["total"] == before
    rows = deepctl("usage", *anna, "--by", "session", "--json").ok().json["rows"]
    assert identity in [row["session"] for row in rows], "a deleted session has its id"
    archive = tmp_path / "anna.deepctl"
    shown = deepctl("profiles", "export", str(archive), *anna).ok()
    assert "usage" not in shown.stderr
    deepctl("profiles", "import", str(archive), "--as", "carol").ok()
    assert deepctl("usage", "--user", "carol", "--json").ok().json["total"]["requests"] == 0
    deepctl("chat", "--user", "carol", "hello").ok()
    assert deepctl("usage", "--user", "carol", "--json").ok().json["total"]["requests"] == 1
    removed = deepctl("wipe", *anna, "--dry-run", "--json").ok().json["removed"]
    assert [row["part"] for row in removed if row["path"].endswith("usage.jsonl")] == ["usage"]
    deepctl("wipe", *anna, "--yes").ok()
    assert not (home / "profiles/anna").exists()


@pytest.mark.parametrize("user", ["alice", "carol"])
def test_the_usage_of_0_1_comes_from_the_message_logs_once(deepctl: InProcess, home: Path, user: str) -> None:
    make_root.unpack(home)
    file = home / "profiles" / user / "usage.jsonl"
    before = deepctl("usage", "--user", user, "--json").ok().json["total"]
    assert not file.exists(), "a command that reads writes nothing"
    assert before["requests"] > 5
    assert before["estimated"] == {name: before[name] for name in COUNTS}
    sessions = deepctl("usage", "--user", user, "--by", "session", "--json").ok().json["rows"]
    assert {"main", "other"} <= {row["session"] for row in sessions}
    deepctl("chat", "--user", user, "--session", "main", "hello").ok()
    header = json.loads(file.read_bytes().splitlines()[0])
    assert header["from_logs"]["requests"] == before["requests"]
    after = deepctl("usage", "--user", user, "--json").ok().json["total"]
    assert after["requests"] == before["requests"] + 1
    assert after["estimated"] == before["estimated"]
    deepctl("sessions", "delete", "other", "--yes", "--user", user).ok()
    assert deepctl("usage", "--user", user, "--json").ok().json["total"] == after
    deepctl("checkpoints", "verify", "--user", user).ok()


def test_verify_finds_damage_and_a_repair_loses_no_other_line(deepctl: InProcess, bill: Path) -> None:
    alice = ("--user", "alice")
    file = bill / "profiles/alice/usage.jsonl"
    before = deepctl("usage", *alice, "--json").ok().json["total"]
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    flipped = lines[1].replace(b"1000", b"1001")
    file.write_bytes(b"".join([lines[0], flipped, *lines[2:]]))
    found = deepctl("checkpoints", "verify", *alice, "--json")
    assert found.code == 5
    assert [row["file"] for row in found.json["damaged"]] == [f"{file} line 2"]
    shown = deepctl("usage", *alice).ok()
    assert "1 damaged line" in shown.stderr
    deepctl("checkpoints", "repair", "--dry-run", *alice)
    assert file.read_bytes() != whole
    repaired = deepctl("checkpoints", "repair", *alice, "--json").ok().json
    assert (repaired["lost"], repaired["repaired"][0]["what"]) == ([], "usage")
    assert file.read_bytes() == whole
    file.write_bytes(b"".join([lines[0], b"#" * 40 + lines[1][40:], *lines[2:]]))
    repaired = deepctl("checkpoints", "repair", *alice, "--json").ok().json
    assert [row["what"] for row in repaired["lost"]] == ["line of the usage"]
    assert file.read_bytes() == b"".join([lines[0], *lines[2:]])
    deepctl("checkpoints", "verify", *alice).ok()
    assert deepctl("usage", *alice, "--json").ok().json["total"]["requests"] == before["requests"] - 1
    assert "lost+found" in repaired["moved"][0]
    file.write_bytes(b"#" * 40 + lines[2][40:])
    text = deepctl("checkpoints", "repair", *alice).ok().stdout
    assert "In the usage:\n  1 line, of one request each" in text
    deepctl("checkpoints", "verify", *alice).ok()


def test_all_leaves_out_what_cannot_be_read(deepctl: InProcess, bill: Path) -> None:
    os.rename(bill / "profiles/bob", bill / "elsewhere")
    (bill / "profiles/bob").symlink_to(bill / "elsewhere")
    shown = deepctl("usage", "--all", "--json").ok()
    assert [row["profile"] for row in shown.json["rows"]] == ["alice"]
    assert "bob is left out" in shown.stderr


def test_today_is_the_day_of_the_local_calendar(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "--user", "alice", "hello").ok()
    today = deepctl("usage", "--user", "alice", "--since", "today", "--json").ok().json
    assert today["total"]["requests"] == 1
    midnight = datetime.fromisoformat(today["since"]).astimezone()
    assert (midnight.hour, midnight.minute, midnight.date()) == (0, 0, datetime.now().astimezone().date())
