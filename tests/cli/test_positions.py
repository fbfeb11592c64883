"""A checkpoint's place in a message log is tied to what stands before it, and found in whichever copy has it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deepctl.files import sealed_lines
from tests.support.command import InProcess

ALICE = ("--user", "alice")


@pytest.fixture(autouse=True)
def place(deepctl: InProcess, home: Path) -> Path:
    for text in ("one", "two", "three"):
        deepctl("chat", *ALICE, f"write a.txt: {text}").ok()
    return home / "profiles" / "alice"


def _log(place: Path, session: str = "main") -> Path:
    return max((place / "sessions" / session).glob("*.jsonl"), key=os.path.getsize)


def _flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x01
    path.write_bytes(raw)


def test_a_log_that_was_cut_short_and_continued_is_told_from_the_one_that_was_written(
    deepctl: InProcess, place: Path
) -> None:
    """K4.3"""
    newest = deepctl("checkpoints", "list", *ALICE, "--json").ok().json["checkpoints"][0]["id"]
    log = _log(place)
    raw = log.read_bytes()
    lines = raw.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: len(lines) // 2]))
    for _ in range(6):
        deepctl("chat", *ALICE, "hello " + "x" * 400).ok()
    assert log.stat().st_size > len(raw)
    assert deepctl("checkpoints", "verify", *ALICE).code == 5
    for words in (("show", newest), ("fork", newest, "other"), ("rewind", newest, "--force")):
        refused = deepctl("checkpoints", *words, *ALICE, "--json")
        assert refused.code == 5
        assert "checkpoints repair" in refused.error["hint"]
    deepctl("checkpoints", "show", "~1", *ALICE).ok()
    deepctl("checkpoints", "repair", *ALICE).ok()
    deepctl("checkpoints", "verify", *ALICE).ok()


def test_a_damaged_first_line_of_a_log_loses_no_turn(deepctl: InProcess, place: Path) -> None:
    """K4.4"""
    before = set((place / "sessions/main").glob("*.jsonl"))
    deepctl("checkpoints", "rewind", "~1", *ALICE).ok()
    deepctl("chat", *ALICE, "write a.txt: four").ok()
    (after,) = set((place / "sessions/main").glob("*.jsonl")) - before
    whole = len(deepctl("sessions", "show", "main", *ALICE, "--json").ok().json["messages"])
    _flip(after, 5)
    shown = deepctl("sessions", "show", "main", *ALICE, "--json").ok().json
    assert len(shown["messages"]) == whole
    assert shown["damaged"]
    assert "can see 3 earlier turns" in deepctl("chat", *ALICE, "hello").ok().stdout
    deepctl("checkpoints", "repair", *ALICE).ok()
    deepctl("checkpoints", "verify", *ALICE).ok()
    assert deepctl("sessions", "show", "main", *ALICE, "--json").ok().json["damaged"] == []


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_session_whose_record_is_damaged_goes_on(deepctl: InProcess, place: Path, damage: str) -> None:
    """K4.6"""
    deepctl("checkpoints", "rewind", "~1", *ALICE).ok()
    record = place / "sessions/main/session.json"
    before = record.read_bytes()
    _flip(record, 8) if damage == "flipped" else record.unlink()
    assert deepctl("sessions", "show", "main", *ALICE, "--json").ok().json["damaged"]
    assert deepctl("checkpoints", "verify", *ALICE).code == 5
    deepctl("chat", *ALICE, "hello").ok()
    deepctl("checkpoints", "verify", *ALICE).ok()
    whole, again = (sealed_lines.unseal(raw.removesuffix(b"\n")) for raw in (before, record.read_bytes()))
    assert (again["id"], again["log"]) == (whole["id"], whole["log"])


def test_sessions_go_on_sharing_a_log_after_a_copy_and_after_an_export(
    deepctl: InProcess, place: Path, tmp_path: Path
) -> None:
    """K4.9"""
    deepctl("checkpoints", "fork", "~0", "fork", *ALICE).ok()
    archive = tmp_path / "alice.deepctl"
    deepctl("profiles", "export", str(archive), *ALICE).ok()
    deepctl("profiles", "import", str(archive), "--as", "bob").ok()
    shutil.copytree(place, place.parent / "carol", symlinks=True)
    for user in ("bob", "carol"):
        for text in ("four", "five"):
            deepctl("chat", "--user", user, "--session", "main", f"write a.txt: {text}").ok()
        deepctl("checkpoints", "rewind", "~1", "--session", "main", "--user", user).ok()
        deepctl("checkpoints", "verify", "--user", user).ok()
        assert (place.parent / user / "workspace/a.txt").read_text() == "four"


def test_no_byte_of_the_cache_changes_a_verdict(deepctl: InProcess, place: Path) -> None:
    """K5.3"""
    for path in (place / "cache").iterdir():
        raw = path.read_bytes()
        for at in range(0, len(raw), max(1, len(raw) // 5)):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x01]) + raw[at + 1 :])
            deepctl("checkpoints", "verify", *ALICE).ok()
    deepctl("checkpoints", "save", *ALICE).ok()
    deepctl("checkpoints", "verify", *ALICE).ok()
