"""Habits of other editors and agents in a real terminal: the keys of vi, `/todo`, `/cost`, `/init` and `/help`."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from deepctl.layout import Root
from tests.cli.test_work_in_tmux import SIZES, Open, conversation, enter, plan, unwrapped
from tests.support.loopback import Text, ToolCalls
from tests.support.tmux import Tmux

MODES = r"^(NORMAL|INSERT|REPLACE|VISUAL)"


def _mode(window: Tmux, mode: str) -> None:
    """The toolbar begins with this mode of vi."""
    window.match(rf"^{mode}   alice")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_line_is_edited_with_the_keys_of_vi(
    tmux: Open, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    go_on = threading.Semaphore(0)

    def gate() -> None:
        assert go_on.acquire(timeout=30)

    with conversation(
        tmux, monkeypatch, size, Text(["First half. ", "Second half."], gate), Text(["Again."])
    ) as window:
        assert re.search(MODES, window.screen, re.MULTILINE) is None
        enter(window, "/vim")
        _mode(window, "INSERT")
        assert "deepctl config set editing_mode vi --user alice" in unwrapped(window.screen)
        window.type("one two three")
        window.press("Escape")
        _mode(window, "NORMAL")
        window.type("bdwx")
        window.match(r"^alice> one two$")
        window.type("0ce")
        _mode(window, "INSERT")
        window.type("uno")
        window.press("Escape")
        _mode(window, "NORMAL")
        window.type("A")
        window.press("C-j")
        window.type("due")
        window.match(r"^       due$")
        window.press("Escape")
        _mode(window, "NORMAL")
        # Escape and Enter one after the other send the entry.
        window.press("Escape", "Enter")
        window.expect("First half.")
        window.resize(100, 30)
        # Escape stops no turn here.
        window.press("Escape")
        window.settled_rows()
        go_on.release()
        window.expect("Second half.")
        window.resize(*size)
        window.match(f"{MODES}   alice")
        assert "Stopped" not in window.scrolled
        window.press("Escape")
        _mode(window, "NORMAL")
        window.type("kk")  # the entry before, which has two lines
        window.match(r"^alice> uno two$")
        window.type("dG")
        enter(window, "i/vim")
        window.match("^alice · ")
        assert "keys of emacs" in unwrapped(window.scrolled)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_commands_of_other_agents_are_there(
    tmux: Open, home: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    init = ToolCalls([("write_file", {"path": "AGENTS.md", "content": "Run make test.\n"})])
    answers = (ToolCalls([plan("completed", "in_progress", "pending")]), Text(["Planned."]), init, Text(["Written."]))
    with conversation(tmux, monkeypatch, size, *answers) as window:
        enter(window, "/todo")
        window.expect("The session has no to-do list.")
        enter(window, "do it")
        window.expect("Planned.")
        enter(window, "/todo")
        window.expect("[x] Read the parser\n[>] Change the parser\n[ ] Run the tests")
        window.resize(60, 20)
        enter(window, "/cost")
        window.expect("Today")
        shown = unwrapped(window.screen.rpartition("/cost")[2])
        window.resize(*size)
        assert re.search(r"Session main: 2 requests, 36 tokens, \$0\.\d+ Today 36 tokens, \$0\.\d+", shown), shown
        enter(window, "/init mind the tests")
        window.expect("Written.")
        assert (Path(Root(str(home)).profile("alice").workspace) / "AGENTS.md").read_text() == "Run make test.\n"
        enter(window, "/clear")
        window.expect("Your next prompt starts a new session.")
        enter(window, "/help")
        window.match("/help COMMAND explains a command, /help\\s+all")
        # All of it is in the window, unless that is tiny.
        shown = window.settled() if size[1] > 15 else window.scrolled
        for name in ("/rewind", "/vim", "/quit", "@path"):
            assert name in shown.rpartition("alice> /help")[2]
