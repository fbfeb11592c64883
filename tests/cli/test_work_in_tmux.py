"""The work of a turn in a real terminal: changes, a running command, the to-do list, thinking and the last line."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepctl.layout import Root
from tests.support.loopback import Answer, Text, ToolCalls, provider
from tests.support.tmux import Tmux

Open = Callable[..., Tmux]
SIZES = [(120, 40), (80, 24), (40, 15)]
STEPS = ("Read the parser", "Change the parser", "Run the tests")
BEFORE = "".join(f"line {number}\n" for number in range(1, 8))
COMMAND = "for i in 1 2 3 4 5 6 7 8 9; do echo test $i passed; done; until [ -e go ]; do sleep 0.1; done; echo end"


def plan(*statuses: str) -> tuple[str, dict[str, object]]:
    steps = [{"content": content, "status": status} for content, status in zip(STEPS, statuses, strict=True)]
    return "write_plan", {"items": steps}


@contextmanager
def conversation(
    tmux: Open, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], *answers: Answer
) -> Iterator[Tmux]:
    """A chat in a window, ready for a prompt."""
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        window = tmux("--model", "openai-chat:gpt-4o", "--approve", "auto", size=size)
        window.expect("no sandbox")
        yield window


def enter(window: Tmux, line: str) -> None:
    window.type(line)
    window.press("Enter")


def rows(text: str) -> list[str]:
    return text.split("\n")


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def edits() -> list[Answer]:
    return [
        ToolCalls([plan("in_progress", "pending", "pending"), ("write_file", {"path": "a.py", "content": BEFORE})]),
        ToolCalls(
            [
                plan("completed", "in_progress", "pending"),
                ("read_file", {"path": "a.py"}),
                ("edit_file", {"path": "a.py", "old_string": "line 3\n", "new_string": "three \x1b[2J\nmore\n"}),
            ]
        ),
        ToolCalls([plan("completed", "completed", "in_progress"), ("execute", {"command": COMMAND})]),
        ToolCalls([plan("completed", "completed", "completed")]),
        Text(["The parser ", "is changed."]),
    ]


def check_running(window: Tmux) -> None:
    """A command runs: its last lines and its time are shown, and the list below is there once."""
    window.expect("│ test 9 passed")
    window.match(r"^\S execute .*  \d+ s$")
    screen = window.settled_rows()
    assert "test 1 passed" not in screen
    shown = [row for row in rows(screen) if "│ test" in row]
    assert 1 <= len(shown) <= 5
    assert shown == [f"  │ test {number} passed" for number in range(10 - len(shown), 10)]
    assert screen.count("To-do list: 2 of 3 done") == 1
    assert screen.count("▸ Run the tests") == 1


def check_end(window: Tmux) -> str:
    """The turn has ended; returns the command that takes it back."""
    window.expect("alice · ")
    scrolled = window.scrolled.partition("alice> do it")[2]
    assert "│" not in scrolled
    assert re.search(r"^✓ execute .* → 10 lines  \d+ s$", scrolled, re.MULTILINE)
    assert scrolled.count("To-do list: ") == 1
    assert [row for row in rows(scrolled) if row.strip().endswith(STEPS)] == [f"  ✓ {step}" for step in STEPS]
    assert "write_plan" not in scrolled
    diff = ["   1   line 1", "   2   line 2", "   3 - line 3", "   3 + three \\x1b[2J", "   4 + more", "   5   line 4"]
    assert "\n".join(["✓ edit_file  a.py  → +2 -1", *diff, "   6   line 5", ""]) in scrolled
    assert "✓ write_file  a.py  → new file, +7\n   1 + line 1\n" in scrolled
    # The file `go`, which appeared while the command ran, counts as its work.
    summary = re.search(
        r"2 files changed, \+8 -0 · 1 command · \$0\.0\d+ · (/rewind [0-9a-f]{8}) takes it back", unwrapped(scrolled)
    )
    assert summary is not None, scrolled
    return summary[1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_work_of_a_turn_is_seen_in_every_window(
    tmux: Open, home: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    go_on = threading.Semaphore(0)

    def gate() -> None:
        assert go_on.acquire(timeout=30)

    thinking = Text(["I have a plan."], gate, thinking=["".join(f"thought {number}\n" for number in range(1, 10))])
    workspace = Path(Root(str(home)).profile("alice").workspace)
    with conversation(tmux, monkeypatch, size, thinking, *edits()) as window:
        enter(window, "think")
        window.expect("thought 9")
        screen = window.screen
        assert "thought 6" in screen
        assert "thought 5" not in screen
        assert re.search(r"\x1b\[(0;)?2m(\x1b\[\d+m)*thought 6", window.colours)
        go_on.release()
        window.expect("I have a plan.")
        window.expect("alice · ")
        assert re.search(r"Thought( for \d+ s)?, 9 lines; /details shows it\.", unwrapped(window.scrolled))
        assert "thought 9" not in window.scrolled

        enter(window, "do it")
        check_running(window)
        (workspace / "go").touch()
        undo = check_end(window)
        coloured = window.tell("capture-pane", "-p", "-e", "-S", "-")
        assert re.search(r"\x1b\[(\d+;)*31m(\x1b\[49m)?- line 3", coloured)
        assert re.search(r"\x1b\[(\d+;)*32m(\x1b\[49m)?\+ more", coloured)

        enter(window, "/details")
        window.expect("Tokens of the last turn")
        details = window.scrolled.rpartition("/details")[2]
        assert "   a.py: +2 -1" in details
        assert "     test 1 passed\n" in details
        assert details.count("To-do list: ") == 4

        enter(window, undo)
        window.expect("alice> do it")
        assert not (workspace / "a.py").exists()


def test_a_window_that_changes_in_mid_answer_repeats_and_loses_nothing(
    tmux: Open, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Path(Root(str(home)).profile("alice").workspace)
    with conversation(tmux, monkeypatch, (120, 40), *edits()) as window:
        enter(window, "do it")
        check_running(window)
        for size in ((40, 15), (80, 24), (52, 40)):
            window.resize(*size)
            window.expect("│ test 9 passed")
            check_running(window)
        (workspace / "go").touch()
        check_end(window)


def test_thinking_is_folded_also_if_the_window_has_changed(tmux: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Semaphore(0)

    def gate() -> None:
        assert go_on.acquire(timeout=30)

    thinking = [f"thought {number} {'words ' * 12}\n" for number in range(3)]
    with conversation(tmux, monkeypatch, (120, 40), Text(["Yes."], gate, thinking=thinking)) as window:
        enter(window, "think")
        for number, size in enumerate([(40, 15), (80, 24), (60, 40)]):
            window.expect(f"thought {number}")
            window.resize(*size)
            window.settled_rows()
            go_on.release()
        window.expect("Yes.")
        window.expect("alice · ")
        scrolled = window.scrolled.partition("alice> think")[2]
        assert "thought" not in scrolled.replace("Thought", "")
        assert scrolled.count("Thought") == 1
