"""A conversation in tmux, which breaks long rows anew when its window changes: nothing is there twice, nothing lost."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable

import pytest

from tests.support.loopback import Text, provider
from tests.support.tmux import Tmux

ABOVE = "Ctrl-Dleaves."
"""The end of what is printed above the first prompt, without its blanks."""


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("moves", [0, 5, 40])
def test_the_line_is_there_once_however_the_window_changes(tmux: Callable[..., Tmux], seed: int, moves: int) -> None:
    chance = random.Random(seed)
    window = tmux()
    window.expect("no sandbox")
    for _ in range(chance.randint(1, 3)):
        words = [chance.choice(["word ", "日本語", "x" * 37, "a b ", "🎉"]) for _ in range(chance.randint(5, 20))]
        window.type("".join(words))
        window.press("M-Enter")
    window.type("the end")
    for _ in range(moves):
        window.press(chance.choice(["Left", "Up", "Home"]))
    window.settled()
    for _ in range(4):
        window.resize(chance.randint(24, 110), 60)
        shown = window.settled()
        assert shown.count("alice> ") == 1, shown
        assert shown.count("the end") == 1, shown
        assert ABOVE in "".join(window.scrolled.split()), window.scrolled


def test_flags_and_families_do_not_corrupt_the_line(tmux: Callable[..., Tmux]) -> None:
    window = tmux()
    window.expect("no sandbox")
    # tmux makes the last two narrower than most terminals.
    window.type("JP 🇯🇵 x 👨\u200d👩\u200d👧 y 1\ufe0f\u20e3 z ☺\ufe0f end")
    window.press("Left", "Left", "Left", "Left", "BSpace", "BSpace", "a")
    window.settled()
    assert int(window.tell("display-message", "-p", "#{cursor_x}")) == len("alice> JP ## x ## y ## za")
    window.press("Home", "Right", "q")
    shown = window.settled()
    assert "alice> JqP 🇯🇵 x 👨\u200d👩\u200d👧 y 1" in shown
    assert "zaend" in shown.replace(" ", "")
    assert int(window.tell("display-message", "-p", "#{cursor_x}")) == len("alice> Jq")


def test_an_answer_is_there_once_however_the_window_changes(
    tmux: Callable[..., Tmux], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = [95, 70, 52, 81, 44, 30, 100, 60]
    pieces = ["".join(f"word{part * 40 + number} " for number in range(40)) for part in range(len(widths) + 1)]
    go_on = threading.Semaphore(0)

    def gate() -> None:
        assert go_on.acquire(timeout=20)

    with provider(Text(pieces, gate=gate)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        window = tmux("--model", "openai-chat:gpt-4o")
        window.expect("no sandbox")
        window.type("hello")
        window.press("Enter")
        for number, width in enumerate(widths, 1):
            window.expect(f"word{number * 40 - 1}")
            window.resize(width, 60)
            time.sleep(0.6)  # tmux tells of it a quarter of a second later at most
            go_on.release()
        window.expect("alice · ")
        words = "".join(pieces).split()
        shown = re.findall(r"word\d+", window.settled())
        assert len(shown) > 100
        assert shown == words[-len(shown) :], "rows that tmux has moved to its history stay there, but nothing else"
        assert "alice> hello\nword0 " in window.scrolled
        assert re.findall(r"word\d+", "word0 " + window.scrolled.rpartition("word0 ")[2]) == words
