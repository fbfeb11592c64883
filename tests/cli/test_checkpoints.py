"""`deepctl checkpoints`, as a person and as a script use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from deepctl.store import log_file
from tests.support.command import Command, InProcess, Result
from tests.support.terminal import Terminal

_SHELL = ("--sandbox", "none", "--approve", "auto")


class Alice:
    """Alice at the command line."""

    def __init__(self, deepctl: InProcess, home: Path) -> None:
        self._deepctl = deepctl
        self.profile = home / "profiles" / "alice"
        self.workspace = self.profile / "workspace"

    def __call__(self, *arguments: str) -> Result:
        return self._deepctl("checkpoints", *arguments, "--user", "alice")

    def says(self, prompt: str, *options: str) -> None:
        self._deepctl("chat", prompt, "--user", "alice", *options).ok()

    def records(self, *options: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self("list", "--json", *options).ok().json["checkpoints"]
        return found

    def prompts(self, session: str = "main") -> list[str]:
        shown = self._deepctl("sessions", "show", session, "--user", "alice", "--json").ok().json
        return [text for entry in shown["messages"] if (text := log_file.prompt(entry["message"])) is not None]

    def files(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.workspace)): path.read_text()
            for path in sorted(self.workspace.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def alice(deepctl: InProcess, home: Path) -> Alice:
    """Three turns: two files, a note."""
    found = Alice(deepctl, home)
    found.says("write a.txt: one")
    found.says("write a.txt: two\nwrite b.txt: new")
    found.says("remember I like tea")
    return found


def test_every_turn_can_be_gone_back_to(alice: Alice) -> None:
    records = alice.records()
    assert [(one["kind"], one["turn"], one["session"], one["label"]) for one in records] == [
        ("turn", turn, "main", None) for turn in (3, 2, 1, 0)
    ]
    assert records[0].keys() == {
        "id", "label", "kind", "session", "turn", "created_at", "message_count", "parent", "files", "bytes",
        "added_bytes", "prompt",
    }  # fmt: skip
    assert records[0]["prompt"] == "remember I like tea"
    assert (records[3]["files"], records[3]["message_count"], records[3]["parent"]) == (0, 0, None)
    everything = alice.records("--all")
    assert {one["kind"] for one in everything} == {"turn", "tool"}
    by_id = {one["id"]: one for one in everything}
    assert all(one["parent"] in by_id for one in everything if one["turn"])


def test_rewind_takes_back_conversation_files_and_memory_and_undo_brings_them_again(alice: Alice) -> None:
    now = (alice.files(), alice.prompts())
    done = alice("rewind", "~2", "--json").ok().json
    assert alice.files() == {"a.txt": "one"}
    assert alice.prompts() == ["write a.txt: one"]
    assert done["rewound_to"]["turn"] == 1
    assert done["safety"]["kind"] == "rewind"
    assert done["dry_run"] is False
    assert done["messages_removed"] == 8
    assert done["prompt"] == "write a.txt: two\nwrite b.txt: new"
    assert done["files"]["restored"] == ["a.txt"]
    assert {"b.txt", ".deep/memory/main/MEMORY.md"} <= set(done["files"]["deleted"])
    assert (done["files"]["kept"], done["files"]["conflicts"]) == ([], [])
    undone = alice("undo", "--json").ok().json
    assert undone["rewound_to"]["id"] == done["safety"]["id"]
    assert (alice.files(), alice.prompts()) == now
    alice("undo").ok()
    assert alice.files() == {"a.txt": "one"}, "undoing an undo redoes it"
    assert alice("verify").ok().stdout.rstrip().endswith("nothing is damaged.")


def test_without_a_reference_a_script_goes_back_one_turn(alice: Alice) -> None:
    shown = alice("rewind").ok()
    assert alice.prompts() == ["write a.txt: one", "write a.txt: two\nwrite b.txt: new"]
    assert "> remember I like tea" in shown.stdout
    assert "checkpoints undo" in shown.stderr


def test_dry_run_says_what_would_happen_and_touches_nothing(alice: Alice) -> None:
    before = _everything(alice.profile)
    told = alice("rewind", "~2", "--dry-run", "--json").ok().json
    assert told["dry_run"] is True
    assert told["safety"] is None
    assert told["files"]["restored"] == ["a.txt"]
    lines = {one["path"]: (one["change"], one["added_lines"], one["removed_lines"]) for one in told["preview"]}
    assert lines["a.txt"] == ("modified", 1, 1)
    assert lines["b.txt"] == ("deleted", 0, 1)
    assert "a.txt  +1 -1" in alice("rewind", "~2", "--dry-run").ok().stdout
    assert _everything(alice.profile) == before


def _everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_an_edit_of_yours_after_the_agents_is_a_conflict_and_force_takes_it_back(alice: Alice) -> None:
    (alice.workspace / "a.txt").write_text("mine")
    (alice.workspace / "mine.txt").write_text("mine")
    before = _everything(alice.profile / "workspace")
    refused = alice("rewind", "~2", "--json")
    assert (refused.code, refused.error["code"]) == (6, "conflicts")
    assert "a.txt" in refused.error["message"]
    assert _everything(alice.profile / "workspace") == before
    assert len(alice.records()) == 4
    told = alice("rewind", "~2", "--dry-run", "--json")
    assert (told.code, told.error) == (6, refused.error), "it exits as the rewind does"
    assert told.json["files"]["conflicts"] == ["a.txt"]
    lines = alice("rewind", "~2", "--dry-run").stdout.splitlines()
    assert lines[0].startswith("The rewind of session main to ")
    assert lines[0].endswith(" would be refused because of conflicts. With --force it would be done.")
    assert [line for line in lines if line.startswith("  ") and "a.txt" in line] == [
        "  modified  a.txt  +1 -1  (conflict)"
    ]
    assert alice("rewind", "~2", "--dry-run", "--force", "--json").ok().json["files"]["conflicts"] == ["a.txt"]
    assert "--dry-run" not in alice("rewind", "~2", "--dry-run").stderr, "it has just listed them"
    forced = alice("rewind", "~2", "--force", "--json").ok().json
    assert alice.files() == {"a.txt": "one", "mine.txt": "mine"}
    assert forced["files"]["kept"] == ["mine.txt"]
    alice("undo").ok()
    assert alice.files()["a.txt"] == "mine", "the safety checkpoint has kept it"


def test_exact_makes_the_whole_workspace_what_it_was(alice: Alice) -> None:
    (alice.workspace / "mine.txt").write_text("mine")
    alice("rewind", "~2", "--exact").ok()
    assert alice.files() == {"a.txt": "one"}
    alice("undo").ok()
    assert alice.files()["mine.txt"] == "mine"


@pytest.mark.parametrize(
    ("only", "files", "turns"),
    [
        ("conversation", {".deep/memory", "a.txt: two", "b.txt"}, 1),
        ("files", {".deep/memory", "a.txt: one"}, 3),
        ("memory", {"a.txt: two", "b.txt"}, 3),
    ],
)
def test_a_part_can_be_rewound_alone(alice: Alice, only: str, files: set[str], turns: int) -> None:
    now = (alice.files(), alice.prompts())
    alice("rewind", "~2", "--only", only).ok()
    found = alice.files()
    assert len(alice.prompts()) == turns
    assert (".deep/memory/main/MEMORY.md" in found) == (".deep/memory" in files)
    assert ("b.txt" in found) == ("b.txt" in files)
    assert f"a.txt: {found['a.txt']}" in files
    alice("undo").ok()
    assert (alice.files(), alice.prompts()) == now


def test_after_the_conversation_alone_the_files_can_be_taken_back_later(alice: Alice) -> None:
    target = alice.records()[2]["id"]
    alice("rewind", target, "--only", "conversation").ok()
    alice.says("hello again")
    alice("rewind", target, "--only", "files").ok()
    assert alice.files()["a.txt"] == "one"
    assert alice.prompts() == ["write a.txt: one", "hello again"]


def test_labels_name_checkpoints_and_protect_them(alice: Alice) -> None:
    saved = alice("save", "good", "--json").ok().json["checkpoint"]
    assert (saved["label"], saved["kind"]) == ("good", "manual")
    assert alice("save", "good", "--json").error["code"] == "label_exists"
    assert alice("save", "abcd").code == 2
    alice("label", "~2", "start").ok()
    assert alice("show", "start", "--json").ok().json["checkpoint"]["turn"] == 1
    alice.says("write c.txt: x")
    gone = alice("prune", "--keep", "1", "--json").ok().json
    assert len(gone["removed"]) >= 4
    assert {one["label"] for one in alice.records()} == {"good", "start", None}
    refused = alice("remove", "good", "--json")
    assert (refused.code, refused.error["code"]) == (6, "labelled")
    newest = alice("remove", alice.records()[0]["id"], "--json")
    assert (newest.code, newest.error["code"]) == (6, "newest")
    alice("label", "good", "").ok()
    alice("remove", saved["id"]).ok()
    alice("rewind", "start").ok()
    assert alice.files() == {"a.txt": "one"}
    assert alice("verify").code == 0


def test_save_prints_the_id_for_scripts(alice: Alice) -> None:
    identity = alice("save").ok().stdout.strip()
    assert alice.records()[0]["id"] == identity
    assert alice("show", identity[:6], "--json").ok().json["checkpoint"]["id"] == identity


def test_prune_says_beforehand_what_goes_and_frees_it(alice: Alice) -> None:
    alice.says("write big.txt: " + "x" * 100 + os.urandom(50_000).hex())
    alice.says("write big.txt: small")
    alice.says("hello")
    size = _size(alice.profile / "checkpoints")
    told = alice("prune", "--keep", "1", "--dry-run", "--json").ok().json
    assert _size(alice.profile / "checkpoints") == size
    done = alice("prune", "--keep", "1", "--json").ok().json
    assert done["removed"] == told["removed"]
    freed = size - _size(alice.profile / "checkpoints")
    assert freed > 50_000
    assert abs(freed - told["bytes"]) < 4096
    assert alice("verify").code == 0


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_diff_shows_files_and_turns(alice: Alice) -> None:
    told = alice("diff", "~2", "--json").ok().json
    assert {one["path"]: one["change"] for one in told["files"]}["a.txt"] == "modified"
    assert [turn["turn"] for turn in told["turns"]["added"]] == [2, 3]
    shown = alice("diff", "~2", "~1").ok().stdout
    assert "--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-one\n" in shown
    assert "# + turn 2: write a.txt: two write b.txt: new" in shown
    assert "MEMORY.md" not in shown
    assert (alice("diff").ok().stdout, alice("diff").ok().stderr) == ("", "")
    (alice.workspace / "a.txt").write_bytes(b"\0\1")
    os.chmod(alice.workspace / "b.txt", 0o600)
    stat = alice("diff", "--stat").ok().stdout
    assert "modified  a.txt  binary files differ" in stat
    assert "mode      b.txt  0644 to 0600" in stat


def test_at_a_terminal_it_is_said_that_nothing_differs(alice: Alice) -> None:
    for stat in ((), ("--stat",)):
        terminal = Terminal("checkpoints", "diff", "--user", "alice", *stat)
        assert terminal.wait() == 0
        newest = alice("list", "--json").ok().json["checkpoints"][0]["id"]
        assert terminal.screen.splitlines() == [
            f"Nothing differs from checkpoint {newest} until now.",
            "`~1` is the state before the last turn.",
        ]
    terminal = Terminal("checkpoints", "diff", "~1", "--user", "alice")
    assert terminal.wait() == 0
    assert "Nothing differs" not in terminal.screen


def test_what_a_rewind_did_is_broken_between_words_in_a_narrow_window(alice: Alice) -> None:
    terminal = Terminal("checkpoints", "rewind", "~2", "--user", "alice", columns=40)
    assert terminal.wait() == 0
    first, second, removed, rest, *_ = terminal.screen.splitlines()
    assert first == "Rewound session main to"
    assert re.fullmatch(r"[0-9a-f]{16}, turn 1\.", second)
    assert [removed, rest] == ["2 turns (8 messages) left the", "conversation."]


def test_show_has_the_record_the_files_and_the_conversation(alice: Alice) -> None:
    shown = alice("show", "~1", "--json").ok().json
    assert {one["path"] for one in shown["files"]} >= {"a.txt", "b.txt"}
    assert len(shown["messages"]) == shown["checkpoint"]["message_count"]
    assert "> write a.txt: one" in alice("show", "~1").ok().stdout


def test_a_fork_goes_on_from_there_and_leaves_the_first_session_and_the_files_alone(alice: Alice) -> None:
    forked = alice("fork", "~2", "other", "--json").ok().json
    assert forked["session"] == "other"
    assert alice.prompts("other") == ["write a.txt: one"]
    assert alice.files()["a.txt"] == "two"
    alice.says("write c.txt: forked", "--session", "other")
    assert alice.prompts("other") == ["write a.txt: one", "write c.txt: forked"]
    assert len(alice.prompts("main")) == 3
    alice("rewind", "~1", "--session", "other").ok()
    assert alice.prompts("other") == ["write a.txt: one"]
    assert "c.txt" not in alice.files()
    alice("rewind", "~1", "--session", "other", "--only", "conversation").ok()
    assert alice.prompts("other") == []
    assert len(alice.prompts("main")) == 3
    assert alice("fork", "~1", "other", "--session", "main").code == 6
    assert alice("verify").code == 0


def test_another_sessions_checkpoint_needs_its_session(alice: Alice) -> None:
    alice.says("write z.txt: z", "--new", "other")
    of_main = alice.records("--session", "main")[1]["id"]
    refused = alice("rewind", of_main, "--json")
    assert (refused.code, refused.error["code"]) == (2, "other_session")
    assert refused.error["hint"] == "Add --session main."
    alice("rewind", of_main, "--session", "main").ok()
    assert "z.txt" in alice.files(), "the other session's work stays"


def test_references_that_mean_nothing_or_too_much(alice: Alice) -> None:
    for wrong in ("nope", "~9", "ffffffffffffffff", "../x", ""):
        assert alice("show", wrong, "--json").error["code"] == "checkpoint_not_found"
        assert alice("rewind", wrong).code == 3
    assert alice("undo", "--json").error["code"] == "nothing_to_undo"
    assert alice("diff", "~9").code == 3
    before = len(alice.records())
    assert alice("fork", "~1", "bad name").code == 2
    assert alice("rewind", "--only", "everything").code == 2
    assert alice("prune").code == 2
    assert len(alice.records()) == before


def test_the_picture_of_a_rewind_has_both_branches(alice: Alice) -> None:
    alice("rewind", "~1").ok()
    alice.says("write c.txt: other way")
    shown = alice("list", "--graph").ok().stdout.splitlines()
    assert shown[0].startswith("* ")
    assert any(line.startswith("| *") for line in shown)
    assert "| /" in shown
    assert len([line for line in shown if "*" in line]) == len(alice.records())


def test_the_picture_sets_off_names_and_labels_at_a_terminal_and_is_plain_elsewhere(
    alice: Alice, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice("label", "~1", "good").ok()
    plain = alice("list", "--graph").ok().stdout
    assert "\x1b" not in plain
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = alice("list", "--graph").ok().stdout
    newest = alice.records()[0]["id"]
    assert coloured.splitlines()[0].startswith(f"* \x1b[36m{newest}\x1b[0m turn main:3\x1b[1m <- main is here\x1b[0m: ")
    assert "\x1b[1m (good)\x1b[0m" in coloured
    assert re.sub(r"\x1b\[\d*m", "", coloured) == plain, "only the colours are added"
    monkeypatch.setenv("NO_COLOR", "1")
    assert alice("list", "--graph").ok().stdout == plain
    monkeypatch.delenv("NO_COLOR")
    plain = re.sub(r"\b([0-9a-f]{8})[0-9a-f]{8}\b", r"\1", plain)
    for columns in (20, 44, 60):
        terminal = Terminal("checkpoints", "list", "--graph", "--user", "alice", columns=columns)
        assert terminal.wait() == 0
        assert terminal.screen.splitlines() == [
            line if len(line) <= columns else line[: columns - 1].rstrip() + "…" for line in plain.splitlines()
        ]


def test_the_list_is_short_if_you_like(alice: Alice) -> None:
    assert len(alice.records("--limit", "2")) == 2
    row = alice("list", "--limit", "1").ok().stdout.rstrip("\n").split("\t")
    assert (len(row), row[2], row[3]) == (9, "turn", "main")


def test_the_index_for_shells_has_a_line_for_each(alice: Alice) -> None:
    index = alice.profile / "cache" / "index"

    def line(record: dict[str, Any]) -> str:
        minute = f"{datetime.fromisoformat(record['created_at']).astimezone():%Y-%m-%d %H:%M}"
        about = f"{minute}  {record['prompt']}".rstrip()
        return f"{record['id']}\t{record['label'] or ''}\t{record['session']}\t@{about}"

    def expected() -> list[str]:
        return [line(record) for record in reversed(alice.records("--all"))]

    assert index.read_text().splitlines() == expected()
    alice("save", "good").ok()
    alice("label", "~2", "start").ok()
    alice("rewind", "~1").ok()
    alice("prune", "--keep", "2").ok()
    assert index.read_text().splitlines() == expected()
    index.unlink()
    alice("save").ok()
    assert index.read_text().splitlines() == expected()


def test_manual_only_makes_none_by_itself(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "checkpoints", "manual_only", "--user", "alice").ok()
    alice = Alice(deepctl, home)
    alice.says("write a.txt: one")
    assert alice.records("--all") == []
    alice("save", "here").ok()
    alice.says("write a.txt: two")
    assert alice("rewind", "~2", "--json").error["code"] == "checkpoint_not_found"
    refused = alice("rewind", "here", "--json")
    assert refused.error["code"] == "conflicts", "nobody can tell whose change it was"
    alice("rewind", "here", "--exact").ok()
    assert alice.files() == {"a.txt": "one"}


def test_every_turn_makes_none_after_tools(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "checkpoints", "every_turn", "--user", "alice").ok()
    alice = Alice(deepctl, home)
    alice.says("write a.txt: one\nwrite b.txt: two")
    assert [one["kind"] for one in alice.records("--all")] == ["turn", "turn"]


def test_what_is_excluded_is_neither_kept_nor_touched(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "snapshot.exclude", "node_modules/, *.log", "--user", "alice").ok()
    assert 'exclude = ["node_modules/", "*.log"]' in (home / "profiles/alice/profile.toml").read_text()
    alice = Alice(deepctl, home)
    alice.says("write a.txt: one")
    alice.says("run mkdir -p node_modules/x; echo 1 > node_modules/x/y; echo 2 > out.log; echo 3 > b.txt", *_SHELL)
    shown = alice("show", alice.records()[0]["id"], "--json").ok().json
    assert [one["path"] for one in shown["files"] if one["kind"] == "file"] == ["a.txt", "b.txt"]
    assert shown["excluded"] == ["node_modules/", "*.log"]
    alice("rewind", "~1").ok()
    assert alice.files() == {"a.txt": "one", "node_modules/x/y": "1\n", "out.log": "2\n"}
    alice("rewind", "~1", "--exact").ok()
    assert alice.files() == {"node_modules/x/y": "1\n", "out.log": "2\n"}
    deepctl("config", "unset", "snapshot.exclude", "--user", "alice").ok()
    alice("undo").ok()
    assert alice.files() == {"a.txt": "one", "node_modules/x/y": "1\n", "out.log": "2\n"}


def test_what_cannot_be_kept_is_said(alice: Alice) -> None:
    os.mkfifo(alice.workspace / "fifo")
    saved = alice("save").ok()
    assert "Not stored: fifo (a FIFO)." in saved.stderr
    assert alice("show", saved.stdout.strip(), "--json").ok().json["unkept"] == [{"path": "fifo", "reason": "a FIFO"}]
    alice("rewind", "~3", "--exact").ok()
    assert (alice.workspace / "fifo").exists()


def test_odd_names_survive_in_json(alice: Alice) -> None:
    (alice.workspace / os.fsdecode(b"new\nline \xff")).write_text("x")
    shown = alice("show", alice("save").ok().stdout.strip(), "--json").ok()
    assert shown.stdout.isascii()
    assert os.fsdecode(b"new\nline \xff") in {one["path"] for one in shown.json["files"]}


def test_profiles_and_sessions_tell_of_them(deepctl: InProcess, alice: Alice) -> None:
    (profile,) = deepctl("profiles", "show", "alice", "--json").ok().json["profiles"]
    assert profile["checkpoints"] == len(alice.records("--all"))
    assert profile["bytes"]["checkpoints"] > 0
    (session,) = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
    assert session["head"] == alice.records()[0]["id"]


def test_readers_work_and_writers_wait_while_a_turn_is_running(alice: Alice, process: Command) -> None:
    running = process.start("chat", "--user", "alice", *_SHELL, "run echo started > started; sleep 30")
    while not (alice.workspace / "started").exists():
        assert running.poll() is None
    for command in (("list",), ("show", "~1"), ("diff", "~2"), ("verify",), ("rewind", "~1", "--dry-run")):
        assert alice(*command).code == 0, command
    for command in (("save",), ("rewind", "~1"), ("undo",), ("prune", "--keep", "1"), ("label", "~1", "x")):
        refused = alice(*command, "--json")
        assert (refused.code, refused.error["code"]) == (4, "locked"), command
        assert str(running.pid) in refused.error["message"]


def test_after_a_killed_turn_its_work_is_a_conflict_that_force_takes_back(alice: Alice, process: Command) -> None:
    running = process.start("chat", "--user", "alice", *_SHELL, "run echo agent > a.txt; sleep 30")
    while (alice.workspace / "a.txt").read_text() != "agent\n":
        assert running.poll() is None
    running.kill()
    running.wait()
    refused = alice("rewind", "~1", "--json")
    assert (refused.code, refused.error["code"]) == (6, "conflicts")
    alice("rewind", "~1", "--force").ok()
    assert alice.files()["a.txt"] == "two"
    assert len(alice.prompts()) == 3


def test_import_takes_over_what_pydantic_deep_kept(alice: Alice, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    for number, label in ((1, "turn-1"), (2, "before-refactor"), (3, "tool-3-write")):
        conversation = [_theirs(kind, n) for n in range(number) for kind in ("request", "response")]
        _write_theirs(place, f"0000-{number}", label, number, conversation)
    (place / "bad.json").write_text("{")
    taken = alice("import", str(place), "--json").ok().json
    assert taken["session"] == "imported"
    assert [(one["label"], one["turn"], one["message_count"]) for one in taken["checkpoints"]] == [
        (None, 1, 2), ("before-refactor", 2, 4), (None, 3, 6),
    ]  # fmt: skip
    assert [one["id"] for one in taken["damaged"]] == ["bad"]
    assert alice.prompts("imported") == ["prompt 0", "prompt 1", "prompt 2"]
    alice("rewind", "before-refactor", "--session", "imported").ok()
    assert alice.prompts("imported") == ["prompt 0", "prompt 1"]
    assert alice("rewind", "0000-1", "--session", "imported", "--only", "files", "--json").error["code"] == "no_files"
    assert alice("import", str(place), "--json").error["code"] == "nothing_to_import"
    assert alice("verify").code == 0
    assert sorted(path.name for path in place.iterdir()) == ["0000-1.json", "0000-2.json", "0000-3.json", "bad.json"]


def _theirs(kind: str, number: int) -> dict[str, Any]:
    if kind == "request":
        return {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": f"prompt {number}"}]}
    return {"kind": "response", "parts": [{"part_kind": "text", "content": f"answer {number}"}]}


def _write_theirs(place: Path, identity: str, label: str, turn: int, messages: list[dict[str, Any]]) -> None:
    document = {
        "id": identity,
        "label": label,
        "turn": turn,
        "messages": messages,
        "message_count": len(messages),
        "created_at": f"2026-01-0{turn}T00:00:00+00:00",
        "metadata": {},
    }
    (place / f"{identity}.json").write_text(json.dumps(document))


def test_a_rewind_that_was_interrupted_is_not_followed_by_another_unasked(alice: Alice, process: Command) -> None:
    ledger = alice.profile / "checkpoints" / "ledger.jsonl"
    alice("rewind", "~1").ok()
    lines = ledger.read_bytes().splitlines(keepends=True)
    assert b'"rewound"' in lines[-1]
    ledger.write_bytes(b"".join(lines[:-1]))
    assert "was interrupted" in alice("list").ok().stderr
    assert alice("list", "--json").ok().json["notes"]
    assert alice("rewind", "--dry-run", "--json").error["code"] == "interrupted_rewind"
    again = alice("rewind", "--json")
    assert (again.code, again.error["code"]) == (6, "rewind_finished")
    assert len(alice.prompts()) == 2
    assert alice("list").ok().stderr == ""


def test_a_file_that_force_takes_back_is_listed_once(alice: Alice) -> None:
    (alice.workspace / "a.txt").write_text("mine")
    lines = alice("rewind", "~2", "--force").ok().stdout.splitlines()
    listed = [line.strip() for line in lines if line.startswith("  ") and "a.txt" in line]
    safety = alice("list", "--json").ok().json["checkpoints"][0]
    assert safety["kind"] == "rewind"
    assert listed == [f"restored  a.txt (checkpoint {safety['id']} contains the earlier version)"]


def test_dry_run_merges_notebooks_as_the_rewind_does(alice: Alice) -> None:
    notebook = alice.workspace / ".deep/memory/main/MEMORY.md"
    alice.says("remember coffee")
    with notebook.open("a") as file:
        file.write("- my own note\n")
    told = alice("rewind", "--dry-run", "--json").ok().json
    assert told["files"]["conflicts"] == []
    alice("rewind").ok()
    assert notebook.read_text() == "- I like tea\n- my own note\n"


def test_the_dry_run_of_an_undo_exits_as_the_undo_does(alice: Alice) -> None:
    alice("rewind", "~2").ok()
    (alice.workspace / "b.txt").write_text("mine")
    foretold, refused = alice("undo", "--dry-run", "--json"), alice("undo", "--json")
    assert (foretold.code, refused.code) == (6, 6)
    assert foretold.error == refused.error
    assert foretold.json["files"]["conflicts"] == refused.error["paths"] == ["b.txt"]
    alice("undo", "--dry-run", "--force").ok()
    alice("undo", "--force").ok()


def test_a_pattern_that_means_nothing_is_refused(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    for wrong in ("!", "\\"):
        refused = deepctl("config", "set", "snapshot.exclude", wrong, "--user", "alice")
        assert refused.code == 2, wrong
    (file,) = deepctl("config", "path", "--user", "alice").ok().stdout.splitlines()
    Path(file).write_text('[snapshot]\nexclude = ["!"]\n')
    assert deepctl("checkpoints", "save", "--user", "alice").code == 2


def test_an_import_of_odd_things_says_what_is_wrong(alice: Alice, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    _write_theirs(place, "good", "", 1, [_theirs("request", 0), _theirs("response", 0)])
    _write_theirs(place, "empty", "", 2, [])
    _write_theirs(place, "nonsense", "", 3, [{"foo": 1}])
    (place / "early.json").write_text(
        (place / "good.json")
        .read_text()
        .replace("2026-01-01T00", "0001-01-01T00")
        .replace('"good"', '"early"')
        .replace("+00:00", "+14:00")
    )
    taken = alice("import", str(place), "--json").ok().json
    assert {one["id"] for one in taken["checkpoints"]} == {"good", "empty"}
    assert {one["id"] for one in taken["damaged"]} == {"nonsense", "early"}
    assert alice("fork", "empty", "other").code == 6
    alice("rewind", "empty", "--session", "imported").ok()
    assert alice.prompts("imported") == []
    alice("undo", "--session", "imported").ok()
    assert "only the turns are" in alice("diff", "good", "empty").ok().stderr
    assert alice("import", str(place / "good.json")).code == 3
    assert alice("verify").code == 0


def test_an_import_leaves_out_what_is_no_file_and_ids_that_are_taken(alice: Alice, tmp_path: Path) -> None:
    place = tmp_path / "theirs"
    place.mkdir()
    first = {**_theirs("request", 0), "instructions": "Be brief."}
    _write_theirs(place, "good", "", 1, [first, _theirs("response", 0)])
    (place / "d.json").mkdir()
    (place / "l.json").symlink_to("good.json")
    os.mkfifo(place / "f.json")
    taken = alice("import", str(place), "--json").ok().json
    assert [one["id"] for one in taken["checkpoints"]] == ["good"]
    odd = {one: f"{place}/{one}.json is not a regular file." for one in ("d", "f", "l")}
    assert {one["id"]: one["reason"] for one in taken["damaged"]} == odd
    assert "another" not in str(alice("import", str(place), "--json").error["hint"])
    _write_theirs(place, "good", "", 1, [_theirs("request", 7), _theirs("response", 0)])
    told = f"{place}/good.json: this profile has another checkpoint good."
    error = alice("import", str(place), "--json").error
    assert (error["code"], told in str(error["hint"])) == ("nothing_to_import", True)
    _write_theirs(place, "new", "", 1, [_theirs("request", 8)])
    taken = alice("import", str(place), "--json").ok().json
    assert {one["id"]: one["reason"] for one in taken["damaged"]} == {**odd, "good": told}


def test_verify_reads_the_conversations_of_applications_too(alice: Alice) -> None:
    import asyncio
    from datetime import timezone

    from pydantic_ai.messages import ModelRequest, UserPromptPart

    from deepctl import Checkpoint, FileCheckpointStore

    store = FileCheckpointStore(alice.profile / "checkpoints")
    made = Checkpoint("app", "", 1, [ModelRequest(parts=[UserPromptPart("hello")])], 1, datetime.now(timezone.utc))
    asyncio.run(store.save(made))
    assert alice("verify").code == 0
    (path,) = (alice.profile / "checkpoints" / "messages").iterdir()
    path.write_bytes(path.read_bytes().replace(b"hello", b"hallo"))
    assert alice("verify").code == 5


def test_a_piped_diff_is_exact_bytes_for_patch(alice: Alice, process: Command, tmp_path: Path) -> None:
    odd = b"one\x0cstill one\rand still\r\ntwo \xff\xe2\x80\xa8two\nno end"
    before = tmp_path / "before"
    before.mkdir()
    for place in (alice.workspace, before):
        (place / "odd.txt").write_bytes(odd)
    alice("save", "odd").ok()
    (alice.workspace / "odd.txt").write_bytes(odd.replace(b"two \xff", b"2 \xfe") + b"\n")
    (alice.workspace / "new file").write_bytes(b"\x0c\n")
    piped = subprocess.run(
        [sys.executable, "-m", "deepctl", "checkpoints", "diff", "odd", "--user", "alice"],
        capture_output=True,
        check=True,
    ).stdout
    subprocess.run(["patch", "-p1", "--binary", "--quiet"], cwd=before, input=piped, check=True)
    assert {path.name: path.read_bytes() for path in before.iterdir()} == {
        name: (alice.workspace / name).read_bytes() for name in ("odd.txt", "new file")
    }
    told = alice("diff", "odd", "--json").ok().json["files"]
    assert "".join(one["diff"] for one in told).encode("utf-8", "surrogateescape") == piped
