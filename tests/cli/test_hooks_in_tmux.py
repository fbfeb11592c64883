"""Hooks in a real terminal: a refusal, a time limit during a resize, and Ctrl-C while a hook runs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.layout import Root
from tests.support.command import InProcess
from tests.support.loopback import Answer, Text, ToolCalls, provider
from tests.support.tmux import Tmux

HOOKS = r"""
[hooks]
before_tool = [
    { tools = "write_file", command = '''
grep -q password || exit 0
printf 'no \033[2J\033[31mpasswords\007 \342\200\256here' >&2; exit 2''' },
    { command = "touch slow; sleep 30", tools = "read_file", timeout = 1.5 },
    { command = "touch hangs; sleep 30", tools = "ls" },
]
"""


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_hooks_are_seen_and_stopped(
    tmux: Callable[..., Tmux], deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    paths = Root(str(home)).profile("alice")
    with open(paths.settings, "a") as file:
        file.write(HOOKS)
    workspace = Path(paths.workspace)
    (workspace / "f").write_text("one line\n")
    write = ToolCalls([("write_file", {"path": "a", "content": "the password"})])
    read, listing = ToolCalls([("read_file", {"path": "f"})]), ToolCalls([("ls", {"path": "."})])
    # The turn that is stopped sends no second request.
    answers: list[Answer] = [write, Text(["Done."]), read, Text(["Done."]), listing, Text(["Done."])]
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        window = tmux("--sandbox", "bubblewrap", "--model", "openai-chat:gpt-4o", size=(120, 40))
        window.match("loading|alice · ")

        def turn(number: int, pattern: str) -> str:
            """What is below a prompt, once the pattern is there."""
            window.type(f"turn {number}")
            window.press("Enter")
            return since(number, pattern)

        def since(number: int, pattern: str) -> str:
            end = time.monotonic() + 30
            while True:
                shown = unwrapped(window.scrolled.partition(f"turn {number}")[2])
                if re.search(pattern, shown):
                    return shown
                assert time.monotonic() < end, f"{pattern!r} is not there:\n{window.scrolled}"
                time.sleep(0.05)

        def starts(name: str) -> None:
            end = time.monotonic() + 30
            while not (workspace / name).exists():
                assert time.monotonic() < end, window.scrolled
                time.sleep(0.05)

        shown = turn(1, r"Done\.")
        assert "→ refused: no passwords here" in shown
        assert not (workspace / "a").exists()
        assert "it was not done. no passwords here" in json.dumps(server.requests[1]["messages"][-1])

        window.resize(80, 24)
        window.type("turn 2")
        window.press("Enter")
        starts("slow")
        window.resize(40, 15)
        shown = since(2, r"Done\.")
        assert shown.count("Warning: it took longer than 1.5 s and was ended") == 1
        assert "one line" in json.dumps(server.requests[3]["messages"][-1])

        window.type("turn 3")
        window.press("Enter")
        starts("hangs")
        window.press("C-c")
        since(3, "Stopped; completed steps are kept.")
        assert "Done." in turn(4, r"Done\.")
        assert not list((workspace / ".deep/home").glob(".deepctl*"))
