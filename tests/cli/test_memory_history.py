"""`deepctl memory show --at`, `memory history` and `memory diff`: notebooks through time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Command, InProcess
from tests.support.terminal import Terminal

_ODD = b"crlf\r\nform\x0cfeed \xff\nbare\rreturn\nline\xe2\x80\xa8separator\n\x00 nul\nno end"


@pytest.fixture
def notebook(deepctl: InProcess, home: Path) -> Path:
    """MEMORY.md after a turn, a note by hand and another turn."""
    deepctl("chat", "remember tea").ok()
    deepctl("memory", "add", "by hand").ok()
    deepctl("chat", "remember coffee").ok()
    return home / "profiles/default/workspace/.deep/memory/main/MEMORY.md"


def _piped(process: Command, *arguments: str) -> bytes:
    return subprocess.run(
        [*process.argv, "memory", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60
    ).stdout


def _versions(deepctl: InProcess, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deepctl("memory", "history", *arguments, "--json").ok().json["versions"]
    return found


def _newest(deepctl: InProcess) -> dict[str, Any]:
    found: dict[str, Any] = deepctl("checkpoints", "list", "--all", "--json").ok().json["checkpoints"][0]
    return found


# show --at


def test_a_notebook_is_shown_as_it_was_byte_for_byte(deepctl: InProcess, process: Command, notebook: Path) -> None:
    assert deepctl("memory", "show", "--at", "~1").ok().stdout == "- tea\nby hand\n"
    notebook.write_bytes(_ODD)
    deepctl("checkpoints", "save", "odd").ok()
    notebook.write_bytes(b"else\n")
    assert _piped(process, "show", "--at", "odd") == _ODD
    shown = deepctl("memory", "show", "MEMORY", "--at", "odd", "--json").ok()
    assert shown.stdout.isascii()
    (file,) = shown.json["files"]
    assert file["content"].encode("utf-8", "surrogateescape") == _ODD
    assert (shown.json["checkpoint"], file["modified_at"]) == (_newest(deepctl)["id"], _newest(deepctl)["created_at"])
    assert "checkpoint" not in deepctl("memory", "show", "--json").ok().json


def test_what_was_not_there_then_is_not_found(deepctl: InProcess, notebook: Path) -> None:
    deepctl("memory", "add", "Lisbon", "--file", "trip").ok()
    missing = deepctl("memory", "show", "trip", "--at", "~1", "--json")
    assert (missing.code, missing.error["code"]) == (3, "memory_not_found")
    missing = deepctl("memory", "show", "--at", "nope", "--json")
    assert (missing.code, missing.error["code"]) == (3, "checkpoint_not_found")
    notebook.unlink()
    deepctl("checkpoints", "save", "none").ok()
    empty = deepctl("memory", "show", "--at", "none").ok()
    assert (empty.stdout, "was empty at checkpoint" in empty.stderr) == ("", True)


def test_what_was_no_notebook_then_is_refused(deepctl: InProcess, notebook: Path) -> None:
    notebook.unlink()
    notebook.symlink_to("/etc/passwd")
    deepctl("checkpoints", "save", "link").ok()
    notebook.unlink()
    os.mkfifo(notebook)
    deepctl("checkpoints", "save", "fifo").ok()
    notebook.unlink()
    notebook.parent.rmdir()
    notebook.parent.symlink_to("/etc")
    deepctl("checkpoints", "save", "above").ok()
    for reference, word in (("link", "a link"), ("fifo", "a FIFO"), ("above", "a link")):
        refused = deepctl("memory", "show", "--at", reference, "--json")
        assert (refused.code, refused.error["code"]) == (6, "memory_refused"), reference
        assert word in refused.error["message"]
    assert deepctl("memory", "show", "--at", "~1").ok().stdout == "- tea\nby hand\n"


def test_a_checkpoint_that_leaves_memory_out_cannot_tell(deepctl: InProcess, notebook: Path) -> None:
    before = _versions(deepctl)
    deepctl("config", "set", "snapshot.exclude", ".deep/", "--user", "default").ok()
    deepctl("checkpoints", "save", "without").ok()
    for command in (("show", "--at", "without"), ("diff",), ("diff", "~1", "without")):
        refused = deepctl("memory", *command, "--json")
        assert (refused.code, refused.error["code"]) == (6, "not_kept"), command
    assert _versions(deepctl) == before, "it only seems to be gone"


# history


def test_every_version_is_told_with_the_checkpoint_that_has_it(
    deepctl: InProcess, process: Command, notebook: Path
) -> None:
    deepctl("chat", "write other.txt: x").ok()
    versions = _versions(deepctl)
    assert [(one["bytes"], one["added_lines"], one["removed_lines"]) for one in versions] == [
        (23, 1, 0),
        (14, 1, 0),
        (6, 1, 0),
    ]
    assert [one["kind"] for one in versions] == ["tool", "manual", "tool"]
    assert {one["session"] for one in versions} == {"main"}
    assert versions[0]["at"] > versions[1]["at"] > versions[2]["at"]
    assert [len(_piped(process, "show", "--at", one["checkpoint"])) for one in versions] == [23, 14, 6]
    rows = [line.split("\t") for line in deepctl("memory", "history", "MEMORY").ok().stdout.splitlines()]
    assert rows == [
        [one["at"], one["checkpoint"], "main", str(one["added_lines"]), str(one["removed_lines"]), str(one["bytes"])]
        for one in versions
    ]


def test_what_no_checkpoint_has_yet_is_called_now(deepctl: InProcess, notebook: Path) -> None:
    notebook.write_bytes(b"- coffee\nnew")
    now, before, *_ = _versions(deepctl)
    assert (now["checkpoint"], now["kind"], now["session"]) == (None, "now", None)
    assert (now["bytes"], now["added_lines"], now["removed_lines"]) == (12, 1, 2)
    assert before["checkpoint"] is not None
    notebook.unlink()
    gone = _versions(deepctl)[0]
    assert (gone["kind"], gone["bytes"], gone["removed_lines"], gone["at"]) == ("now", None, 3, None)
    terminal = Terminal("memory", "history")
    assert terminal.wait() == 0
    heading, first, second, *_ = terminal.screen.splitlines()
    assert ("WHEN" in heading, "now" in first, "gone" in first, before["checkpoint"][:8] in second) == (True,) * 4


def test_a_rewind_brings_a_version_back(deepctl: InProcess, notebook: Path) -> None:
    target = _versions(deepctl)[1]
    deepctl("checkpoints", "rewind", "~1").ok()
    back, *_ = _versions(deepctl)
    assert (back["kind"], back["bytes"], back["removed_lines"]) == ("rewound", 14, 1)
    # The rewind went to a checkpoint that has the same notebook.
    content = deepctl("memory", "show", "--at", back["checkpoint"]).ok().stdout
    assert content == deepctl("memory", "show", "--at", target["checkpoint"]).ok().stdout == notebook.read_text()
    deepctl("checkpoints", "undo").ok()
    again, *_ = _versions(deepctl)
    assert (again["kind"], again["bytes"], again["added_lines"]) == ("rewound", 23, 1)


def test_a_merged_notebook_is_a_version_of_its_own(deepctl: InProcess, notebook: Path) -> None:
    deepctl("memory", "add", "later").ok()
    deepctl("checkpoints", "rewind", "~1").ok()
    assert notebook.read_text() == "- tea\nby hand\nlater\n"
    merged, *_ = _versions(deepctl)
    assert (merged["kind"], merged["checkpoint"], merged["bytes"]) == ("rewound", None, 20)


def test_a_notebook_that_never_was_is_not_found_and_one_that_is_gone_has_a_history(
    deepctl: InProcess, notebook: Path
) -> None:
    missing = deepctl("memory", "history", "nope", "--json")
    assert (missing.code, missing.error["code"]) == (3, "memory_not_found")
    deepctl("memory", "add", "Lisbon", "--file", "trip").ok()
    (notebook.parent / "trip.md").unlink()
    deepctl("checkpoints", "save").ok()
    assert [one["bytes"] for one in _versions(deepctl, "trip")] == [None, 7]
    deepctl("profiles", "create", "bob").ok()
    assert deepctl("memory", "history", "--user", "bob", "--json").ok().json["versions"] == []


def test_damage_is_named_and_the_rest_goes_on(deepctl: InProcess, home: Path, notebook: Path) -> None:
    """One pack lost: what it alone had cannot be told, everything else can."""
    before = _versions(deepctl)
    lost = before[1]["checkpoint"]
    ledger = home / "profiles/default/checkpoints/ledger.jsonl"
    records = [json.loads(line).get("record", {}) for line in ledger.read_text().splitlines()]
    pack = next(record["pack"] for record in records if record.get("id") == lost)
    (home / "profiles/default/checkpoints/packs" / pack).unlink()
    told = deepctl("memory", "history", "--json").ok().json
    assert lost in [problem["id"] for problem in told["damaged"]]
    kept = [one["checkpoint"] for one in told["versions"]]
    assert {before[0]["checkpoint"], before[2]["checkpoint"]} <= set(kept)
    assert "Damaged: " in deepctl("memory", "history").ok().stderr
    damaged = deepctl("memory", "show", "--at", lost, "--json")
    assert (damaged.code, damaged.error["code"]) == (5, "damaged")
    assert deepctl("memory", "show", "--at", before[2]["checkpoint"]).ok().stdout == "- tea\n"


# diff


def test_the_latest_checkpoint_is_compared_with_now(deepctl: InProcess, notebook: Path) -> None:
    assert deepctl("memory", "diff").ok().stdout == ""
    with open(notebook, "a") as file:
        file.write("more")
    (notebook.parent / "trip.md").write_text("Lisbon\n")
    told = deepctl("memory", "diff", "--json").ok().json
    assert (told["to"], told["from"]["id"]) == (None, _newest(deepctl)["id"])
    assert [(one["path"], one["change"], one["added_lines"], one["removed_lines"]) for one in told["files"]] == [
        (".deep/memory/main/MEMORY.md", "modified", 1, 0),
        (".deep/memory/main/trip.md", "added", 1, 0),
    ]
    assert deepctl("memory", "diff").ok().stdout == "".join(one["diff"] for one in told["files"])
    older = deepctl("memory", "diff", "~1", "~0", "--json").ok().json
    assert [(one["change"], one["added_lines"]) for one in older["files"]] == [("modified", 1)]
    back = deepctl("memory", "diff", "~0", "~1", "--json").ok().json
    assert [(one["change"], one["removed_lines"]) for one in back["files"]] == [("modified", 1)]


def test_a_diff_makes_the_exact_bytes_with_patch(
    deepctl: InProcess, process: Command, notebook: Path, tmp_path: Path
) -> None:
    place = notebook.parent
    (place / "gone.md").write_bytes(b"going \xff")
    (place / "a b.md").write_bytes(b"x\n")
    deepctl("checkpoints", "save", "before").ok()
    was = tmp_path / "was"
    shutil.copytree(place, was / ".deep/memory/main")
    notebook.write_bytes(_ODD)
    (place / "gone.md").unlink()
    (place / "new.md").write_bytes(_ODD + b"\n")
    (place / "a b.md").write_bytes(b"y\xff")
    (place / "naïve.md").write_bytes(b"z\n")
    diff = _piped(process, "diff")
    subprocess.run(["patch", "-p1", "--binary"], cwd=was, input=diff, check=True, stdout=subprocess.DEVNULL, timeout=30)
    names = ["MEMORY.md", "a b.md", "naïve.md", "new.md"]
    assert sorted(path.name for path in (was / ".deep/memory/main").glob("*.md")) == names
    for name in names:
        assert (was / ".deep/memory/main" / name).read_bytes() == (place / name).read_bytes(), name


def test_without_a_checkpoint_there_is_nothing_to_compare_with(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    missing = deepctl("memory", "diff", "--user", "alice", "--json")
    assert (missing.code, missing.error["code"]) == (3, "checkpoint_not_found")


def test_at_a_terminal_a_diff_without_a_difference_says_so(notebook: Path) -> None:
    terminal = Terminal("memory", "diff")
    assert terminal.wait() == 0
    assert "The notebooks are the same" in terminal.screen
