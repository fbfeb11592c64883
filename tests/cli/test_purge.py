"""`deepctl memory forget --purge`, as a person and as a script use it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess, Result
from tests.support.terminal import Terminal

_TEXT = "code is 4711"


class Alice:
    """Alice, whose agent was told a code, and something else."""

    def __init__(self, deepctl: InProcess, home: Path) -> None:
        self._deepctl = deepctl
        self.profile = home / "profiles" / "alice"
        for prompt in (f"remember the {_TEXT}", "remember I like tea", f"write a.txt: the {_TEXT}"):
            deepctl("chat", prompt, "--user", "alice").ok()

    def __call__(self, *arguments: str) -> Result:
        return self._deepctl(*arguments, "--user", "alice")

    def purge(self, *options: str, text: str = _TEXT) -> Result:
        return self("memory", "forget", text, "--purge", *options)

    def everything(self) -> dict[str, bytes]:
        return {
            str(path): path.read_bytes()
            for path in sorted(self.profile.rglob("*"))
            if path.is_file() and "cache" not in path.parts
        }


@pytest.fixture
def alice(deepctl: InProcess, home: Path) -> Alice:
    return Alice(deepctl, home)


def test_the_lines_go_from_everywhere_and_where_the_text_still_is_is_said(alice: Alice) -> None:
    checkpoints = alice("checkpoints", "list", "--all", "--json").ok().json["checkpoints"]
    done = alice.purge("--yes", "--json").ok().json
    assert done == {
        "version": 1,
        "profile": "alice",
        "agent": "main",
        "dry_run": False,
        "text": _TEXT,
        "removed": [{"file": "MEMORY.md", "line": 1, "text": f"- the {_TEXT}"}],
        "checkpoint": None,
        "after": None,
        "undo": None,
        "notes": [],
        "purged": {
            "checkpoints": 6,
            "notebooks": 2,
            "leftovers": 0,
            "lines": [{"file": "MEMORY.md", "text": "- the code is 4711"}],
        },
        "still_in": [
            {"place": "session", "name": "main", "count": 5},
            {"place": "file", "name": "a.txt", "count": 1},
            {"place": "checkpoint_file", "name": "a.txt", "count": 2},
            {"place": "ledger", "name": "prompts", "count": 4},
        ],
    }
    after = alice("checkpoints", "list", "--all", "--json").ok().json["checkpoints"]
    same = ("id", "label", "kind", "turn", "created_at", "message_count", "parent", "prompt")
    assert [[one[key] for key in same] for one in after] == [[one[key] for key in same] for one in checkpoints]
    assert alice("memory", "show").ok().stdout == "- I like tea\n"
    for one in checkpoints:
        shown = alice("memory", "show", "--at", one["id"])
        assert _TEXT not in shown.stdout
    alice("checkpoints", "rewind", "~2").ok()
    assert _TEXT not in alice("memory", "show").ok().stdout
    alice("checkpoints", "undo").ok()
    assert alice("memory", "show").ok().stdout == "- I like tea\n"
    assert alice("checkpoints", "verify").ok().stdout.rstrip().endswith("nothing is damaged.")


def test_a_dry_run_says_the_same_and_changes_nothing(alice: Alice) -> None:
    before = alice.everything()
    told = alice.purge("--dry-run", "--json").ok().json
    text = alice.purge("--dry-run").ok().stdout
    assert alice.everything() == before
    done = alice.purge("--yes", "--json").ok().json
    assert {**told, "dry_run": False} == done
    assert text.splitlines() == [
        f"MEMORY.md:1: - the {_TEXT}",
        "Would purge 1 line in 1 notebook and 2 versions of notebooks in 6 checkpoints.",
        "The text would still be in:",
        "  session main: 5 messages",
        "  file a.txt",
        "  file a.txt in checkpoints: 2 checkpoints",
        "  beginnings of prompts in the list of checkpoints: 4 lines",
    ]


def test_without_a_terminal_it_needs_yes(alice: Alice) -> None:
    before = alice.everything()
    for options in ((), ("--json",)):
        assert alice.purge(*options).code == 6
    assert alice.purge("--json").error["code"] == "needs_yes"
    assert alice.everything() == before
    assert "not overwritten" in alice.purge("--yes").ok().stderr


def test_what_was_forgotten_before_is_purged_too(alice: Alice) -> None:
    alice("memory", "forget", _TEXT, "--yes").ok()
    assert alice("memory", "forget", _TEXT, "--yes").code == 3
    done = alice.purge("--yes", "--json").ok().json
    assert done["removed"] == []
    assert done["purged"]["checkpoints"] > 0
    again = alice.purge("--yes", "--json")
    assert (again.code, again.error["code"]) == (3, "memory_text_not_found")


def test_what_is_nowhere_is_exit_3_and_nonsense_exit_2(alice: Alice) -> None:
    before = alice.everything()
    assert alice.purge("--yes", text="nothing like it").code == 3
    assert alice.purge("--yes", text="CODE IS 4711").code == 3
    assert alice.purge("--yes", "--file", "other", "--json").error["code"] == "memory_text_not_found"
    for wrong in ("", "  ", "tea\ncoffee"):
        assert alice.purge("--yes", text=wrong).code == 2
    assert alice.purge("--yes", "--agent", "../x").code == 2
    assert alice.everything() == before
    assert alice.purge("--yes", "--ignore-case", text="CODE IS 4711").code == 0


def test_damage_is_exit_5_names_what_to_let_go_of_and_then_it_works(alice: Alice) -> None:
    note = f"- the {_TEXT}\n- I like tea\n".encode()
    alice("memory", "add", "coffee").ok()
    packs = (alice.profile / "checkpoints/packs").iterdir()
    pack = next(path for path in packs if note in path.read_bytes() and b"coffee" not in path.read_bytes())
    raw = bytearray(pack.read_bytes())
    raw[raw.index(note)] ^= 1
    pack.write_bytes(raw)
    before = alice.everything()
    failed = alice.purge("--yes", "--json")
    assert (failed.code, failed.error["code"]) == (5, "damaged")
    assert alice.everything() == before
    hint = failed.error["hint"].split("`")[1].split()
    assert hint[:3] == ["deepctl", "checkpoints", "remove"]
    alice(*hint[1:]).ok()
    alice.purge("--yes").ok()
    assert alice("checkpoints", "verify").code == 0


def test_at_a_terminal_the_profiles_name_is_typed(alice: Alice) -> None:
    before = alice.everything()
    for answer in ("y\r", "\r", "\x04"):
        declined = Terminal("memory", "forget", _TEXT, "--purge", "--user", "alice")
        declined.expect("type alice to continue")
        declined.type(answer)
        assert declined.wait() == 6
        declined.close()
    stopped = Terminal("memory", "forget", _TEXT, "--purge", "--user", "alice")
    stopped.expect("type alice to continue")
    stopped.type("\x03")
    assert stopped.wait() == 130
    stopped.close()
    assert alice.everything() == before
    agreed = Terminal("memory", "forget", _TEXT, "--purge", "--user", "alice")
    agreed.expect(f"MEMORY.md:1: - the {_TEXT}")
    agreed.expect("Remove the text permanently from 1 notebook and 6 checkpoints?")
    agreed.type("alice\r")
    agreed.expect("Purged 1 line in 1 notebook")
    agreed.expect("session main: 5 messages")
    assert agreed.wait() == 0
    agreed.close()
    assert alice("memory", "show").ok().stdout == "- I like tea\n"


def test_names_and_lines_cannot_command_the_terminal(alice: Alice) -> None:
    workspace = alice.profile / "workspace"
    (workspace / "\x1b[2J.txt").write_text(_TEXT)
    (workspace / os.fsdecode(b"\xff.txt")).write_text(_TEXT)
    notebook = workspace / ".deep/memory/main/\x1b]0;x\x07.md"
    notebook.write_bytes(b"\x1b[2J" + _TEXT.encode() + b"\r\n")
    shown = Terminal("memory", "forget", _TEXT, "--purge", "--yes", "--user", "alice")
    shown.expect("Purged 2 lines")
    assert shown.wait() == 0
    assert b"\x1b[2J" not in shown.bytes
    assert b"\x1b]0" not in shown.bytes
    assert "\\x1b[2J.txt" in shown.screen
    shown.close()


def test_names_that_are_not_utf_8_keep_their_bytes_in_json(alice: Alice) -> None:
    name = os.fsdecode(b"\xff.txt")
    (alice.profile / "workspace" / name).write_text(_TEXT)
    done = alice.purge("--yes", "--json").ok()
    assert done.stdout.isascii()
    assert {"place": "file", "name": name, "count": 1} in json.loads(done.stdout)["still_in"]


def test_nobody_else_works_meanwhile(alice: Alice, process: Command, home: Path) -> None:
    from deepctl.domain import profiles
    from deepctl.layout import Root

    with profiles.lock(Root(str(home)), "alice", command="chat", wait=0):
        refused = process("memory", "forget", _TEXT, "--purge", "--yes", "--json", "--user", "alice")
        assert (refused.code, refused.error["code"]) == (4, "locked")
        assert process("memory", "forget", _TEXT, "--purge", "--dry-run", "--user", "alice").code == 0
