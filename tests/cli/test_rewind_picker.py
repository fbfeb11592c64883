"""Choosing where to rewind to, at a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import InProcess
from tests.support.terminal import Terminal


@pytest.fixture
def workspace(deepctl: InProcess, home: Path) -> Path:
    for text in ("write a.txt: one", "write a.txt: two\nwrite b.txt: new", "remember I like tea"):
        deepctl("chat", text, "--user", "alice").ok()
    return home / "profiles/alice/workspace"


@pytest.fixture(params=[120, 60])
def picker(workspace: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal("checkpoints", "rewind", "--user", "alice", columns=request.param)
    terminal.expect("Enter selects, Esc leaves")
    yield terminal
    terminal.close()


def test_what_a_narrow_window_does_not_hold_is_cut_with_a_sign(workspace: Path) -> None:
    terminal = Terminal("checkpoints", "rewind", "--user", "alice", columns=36)
    terminal.expect("1 turn would…")
    lines = terminal.screen.splitlines()
    assert any(line.startswith("Where? (Enter selects, Esc leaves)") for line in lines)
    assert all(line.endswith("…") for line in lines if "turn 2, after" in line or "would change" in line)
    terminal.type("q")
    assert terminal.wait() == 130
    terminal.close()


def test_the_turn_before_the_last_is_offered_first_and_enter_takes_it(
    picker: Terminal, workspace: Path, deepctl: InProcess
) -> None:
    picker.expect("1 turn would leave the conversation")
    picker.expect("MEMORY.md  +0 -1")
    picker.type("\r")
    picker.expect("Rewound session main")
    picker.expect("> remember I like tea")
    assert picker.wait() == 0
    assert "Enter selects" not in picker.screen, "the list is gone when something was chosen"
    assert (workspace / "b.txt").exists()
    assert "like tea" not in deepctl("memory", "show", "--user", "alice").ok().stdout


def test_arrows_move_and_the_preview_follows(picker: Terminal, workspace: Path) -> None:
    picker.expect("1 turn would")
    picker.type("\x1b[B")
    picker.expect("2 turns would")
    picker.expect("b.txt  +0 -1")
    picker.expect("a.txt  +1 -1")
    picker.type("k")
    picker.expect("1 turn would")
    picker.type("j\r")
    picker.expect("Rewound session main")
    assert picker.wait() == 0
    assert (workspace / "a.txt").read_text() == "one"


@pytest.mark.parametrize("key", ["q", "\x03", "\x1b"])
def test_leaving_touches_nothing(picker: Terminal, workspace: Path, key: str) -> None:
    picker.expect("1 turn would")
    picker.type(key)
    picker.expect("No checkpoint was chosen")
    assert picker.wait() == 130
    assert (workspace / "a.txt").read_text() == "two"


@pytest.mark.parametrize("columns", [50, 80])
def test_labels_and_turns_can_be_read_in_a_narrow_window(workspace: Path, deepctl: InProcess, columns: int) -> None:
    deepctl("checkpoints", "label", "~1", "before-refactoring", "--user", "alice").ok()
    terminal = Terminal("checkpoints", "list", "--user", "alice", columns=columns)
    assert terminal.wait() == 0
    (line,) = [line for line in terminal.screen.splitlines() if "before-refactoring" in line]
    assert "  2  " in line
    assert "write a.t" in line
    assert all(len(line) <= columns for line in terminal.screen.splitlines())
    terminal.close()


def test_a_file_that_stays_is_counted_in_the_preview(workspace: Path, deepctl: InProcess) -> None:
    (workspace / "mine.txt").write_text("mine")
    deepctl("checkpoints", "save", "--user", "alice").ok()
    picker = Terminal("checkpoints", "rewind", "--user", "alice")
    picker.expect("1 other file differs and stays: not changed by this session")
    picker.type("q")
    assert picker.wait() == 130
    picker.close()
