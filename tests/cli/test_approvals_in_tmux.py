"""Approval requests in a real terminal: the keys, a rule for a kind of commands, and a resize while one is open."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.domain.settings import read
from deepctl.layout import Root
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider
from tests.support.tmux import Tmux

SIZES = [(120, 40), (80, 24), (40, 15)]


def unwrapped(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_key_answers_in_every_window(
    tmux: Callable[..., Tmux],
    deepctl: InProcess,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
) -> None:
    deepctl("profiles", "create", "alice").ok()
    paths = Root(str(home)).profile("alice")
    with open(paths.settings, "a") as file:
        file.write('\n# a comment that stays\nallowed_commands = ["ls"]  # my kinds\n')
    workspace = Path(paths.workspace)
    (workspace / "f").write_text("one line\n")
    calls = ["ls", "wc -l f", "touch a; sleep 30", "touch b", "touch c"]
    turns = [part for command in calls for part in (ToolCalls([("execute", {"command": command})]), Text(["Done."]))]
    # The turn that is stopped sends no second request.
    del turns[2 * calls.index("touch a; sleep 30") + 1]
    with provider(*turns) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        window = tmux("--model", "openai-chat:gpt-4o", size=size)
        window.match("loading|alice · ")

        def since(number: int, pattern: str) -> str:
            """What is below a prompt, once the pattern is there."""
            end = time.monotonic() + 30
            while True:
                shown = unwrapped(window.scrolled.partition(f"turn {number}")[2])
                if re.search(pattern, shown):
                    # Keys that follow at once are not an answer.
                    time.sleep(0.4)
                    return shown
                assert time.monotonic() < end, f"{pattern!r} is not there:\n{window.scrolled}"
                time.sleep(0.05)

        def turn(number: int) -> str:
            """What is below a prompt, once something is asked, or the turn has ended."""
            window.type(f"turn {number}")
            window.press("Enter")
            return since(number, r"why not:$|Done\.")

        assert "Allow it?" not in turn(1)

        assert "[e]very command of this session, [k]ind `wc`, [N]o, [t]ell why not:" in turn(2)
        window.resize(size[0] - 7, size[1] + 3)
        window.press("k")
        shown = since(2, r"\[N\]o:$")
        assert "Rule: `wc` needs no approval from now on, with options -l -w -c -m -L" in shown
        assert "`deepctl config unset allowed_commands --user alice` removes all of them." in shown
        window.press("n")
        since(2, "why not:$")
        assert read("profile", paths.settings).values["allowed_commands"] == "ls"
        window.press("k")
        since(2, r"\[N\]o:$")
        window.resize(*size)
        window.press("y")
        assert since(2, r"Done\.").count("Done.") == 1
        assert read("profile", paths.settings).values["allowed_commands"] == "ls,wc"
        settings = Path(paths.settings).read_text()
        assert "# a comment that stays" in settings
        assert re.search(r'allowed_commands = \["ls", *"wc"\]', settings)
        assert "Allow it?" in turn(3)
        window.press("C-c")
        since(3, "Stopped; completed steps are kept.")
        assert not (workspace / "a").exists()

        assert "Allow it?" in turn(4)
        window.press("Enter")
        assert " no " in since(4, r"Done\.")
        assert not (workspace / "b").exists()

        assert "Allow it?" in turn(5)
        window.press("e")
        assert "why not: session " in since(5, r"Done\.")
        assert (workspace / "c").exists()
    shown = deepctl("config", "show", "--user", "alice").ok().stdout
    assert re.search(r"allowed_commands\s+ls,wc\s+profile", shown)
