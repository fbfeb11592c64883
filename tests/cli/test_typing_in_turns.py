"""Typing while a turn runs, in a real terminal: the line below the answer, the queue, and what stops an answer."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.domain import profiles
from tests.support.loopback import Answer, Provider, Text, ToolCalls, provider
from tests.support.tmux import Tmux

Open = Callable[..., Tmux]
SIZES = [(120, 40), (80, 24), (40, 15)]
HELD = "Enter sends them; Up takes one back."


class Gate:
    """Holds answers back after their first piece."""

    def __init__(self) -> None:
        self._open = threading.Semaphore(0)

    def answer(self, text: str) -> Text:
        return Text([f"{text} begins. ", f"{text} ends."], self._wait)

    def _wait(self) -> None:
        assert self._open.acquire(timeout=30)

    def open(self, times: int = 1) -> None:
        self._open.release(times)


@pytest.fixture
def gate() -> Iterator[Gate]:
    one = Gate()
    yield one
    one.open(20)


@contextmanager
def conversation(
    tmux: Open, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], *answers: Answer
) -> Iterator[tuple[Tmux, Provider]]:
    """A chat in a window, ready for a prompt."""
    with provider(*answers, repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        window = tmux("--model", "openai-chat:gpt-4o", size=size)
        window.expect("no sandbox")
        yield window, server


def enter(window: Tmux, *lines: str) -> None:
    for line in lines:
        window.type(line)
        window.press("Enter")


def prompts(server: Provider) -> list[str]:
    """The prompts that the model got, in their order."""
    return [last_prompt(request) for request in server.requests]


def last_prompt(request: dict[str, Any]) -> str:
    texts = [message["content"] for message in request["messages"] if message["role"] == "user"]
    assert isinstance(texts[-1], str)
    return texts[-1].rpartition("\n\n")[2]


def at_prompt(window: Tmux, line: str = "") -> None:
    """Wait for the prompt with this text and with the toolbar below it."""
    window.match(rf"^{re.escape(f'alice> {line}'.rstrip())}\nalice · ")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_typed_text_is_seen_edited_queued_and_sent_in_its_order(
    tmux: Open, monkeypatch: pytest.MonkeyPatch, gate: Gate, size: tuple[int, int]
) -> None:
    with conversation(tmux, monkeypatch, size, gate.answer("It")) as (window, server):
        enter(window, "hello")
        window.expect("It begins.")
        window.match(r" s · Ctrl-C stops\nalice>$")
        window.type("firxt 日本")
        window.press("Left", "Left", "Left", "Left", "BSpace")
        window.type("s")
        window.match(r"^alice> first 日本$")
        enter(window, "", "second", f"a long third one {'x' * 130}", "/status", "last")
        window.expect("\n1. first 日本\n2. second\n3. a long third one xxx")
        window.match(r"xxx…\n4. /status\n5. last\nalice>$")
        window.press("Up")
        window.match(r"^4. /status\nalice> last$")
        window.type("ly")
        window.press("Enter")
        window.match(r"^5. lastly\nalice>$")
        window.resize(64, 20)
        window.match(r"^3. a long third one x{42}…\n4. /status\n5. lastly\nalice>$")
        assert window.screen.count("It begins.") == 1
        window.type("a draft")
        window.match(r"^alice> a draft$")
        gate.open(5)
        at_prompt(window, "a draft")
        entries = ["hello", "first 日本", "second", f"a long third one {'x' * 130}", "lastly"]
        assert prompts(server) == entries
        scrolled = window.scrolled.replace("\n       ", "")
        shown = [line.removeprefix("alice> ") for line in scrolled.split("\n") if line.startswith("alice> ")]
        assert shown == [*entries[:4], "/status", "lastly", "a draft"]
        assert scrolled.count("It begins. It ends.") == 5
        assert "Profile" in scrolled
        assert "1. " not in scrolled
        assert "Writing" not in scrolled


def test_what_stops_an_answer_loses_no_text(tmux: Open, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    with conversation(tmux, monkeypatch, (80, 24), gate.answer("It")) as (window, server):
        enter(window, "hello")
        window.expect("It begins.")
        enter(window, "first", "second")
        window.type("half a line")
        window.match(r"^2. second\nalice> half a line$")
        window.press("C-c")
        window.expect("Stopped; completed steps are kept.")
        window.match(rf"^1. first\n2. second\n{HELD}\nalice> half a line$")
        time.sleep(0.5)
        assert prompts(server) == ["hello"], "nothing is sent by itself"
        # Enter sends the line, then the queue. `/now` and Alt-Enter stop what runs, and go before the queue.
        window.press("Enter")
        window.match(r"\n\nalice> half a line\nIt begins.\n")
        enter(window, "/now hurry")
        window.match(r"^alice> hurry\nIt begins.\n")
        window.match(r"^1. first\n2. second\nalice>$")
        window.type("more hurry")
        window.press("M-Enter")
        window.match(r"^alice> more hurry\nIt begins.\n")
        window.press("M-Enter")
        window.match(r"^alice> first\nIt begins.\n")
        window.match(r"^1. second\nalice>$")
        window.type("x")
        window.match(r"^alice> x$")
        window.press("Escape")
        time.sleep(0.5)
        window.press("BSpace")
        window.match(r"^1. second\nalice>$")
        assert "Stopped" not in window.scrolled.rpartition("alice> first")[2], "Esc stops nothing if there is text"
        window.press("Escape")
        window.match(rf"^Stopped; completed steps are kept.\n\n1. second\n{HELD}\nalice>$")
        window.press("Enter")
        window.match(r"^alice> second\nIt begins.\n")
        gate.open(6)  # the stopped answers wait too
        at_prompt(window)
        assert prompts(server) == ["hello", "half a line", "hurry", "more hurry", "first", "second"]
        assert window.scrolled.count("Stopped; completed steps are kept.") == 5


def test_a_question_takes_the_keyboard_and_the_draft_comes_back(
    tmux: Open, home: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    call = ToolCalls([("execute", {"command": "until [ -e go ]; do sleep 0.1; done; echo done"})])
    with conversation(tmux, monkeypatch, (40, 15), gate.answer("It"), call, gate.answer("That")) as (window, server):
        enter(window, "hello")
        window.expect("It begins.")
        enter(window, "work")
        window.type("a dra")
        window.match(r"^1. work\nalice> a dra$")
        gate.open()
        window.expect("The agent wants to run a command")
        assert "a dra" not in window.screen
        # Whoever is typing then does not answer the question.
        window.type("f")
        window.press("Enter")
        window.expect("[t]ell why not:")
        window.press("y")
        window.match(r"^\S execute ")
        window.match(r"^alice> a draf$")
        window.type("t")
        window.match(r"^alice> a draft$")
        (Path(layout.Root(str(home)).profile("alice").workspace) / "go").touch()
        window.expect("That begins.")
        window.resize(60, 15)
        window.match(r"^alice> a draft$")
        gate.open()
        at_prompt(window, "a draft")
        assert prompts(server)[:2] == ["hello", "work"]
        assert "a dra\n" not in window.scrolled


def test_a_prompt_waits_for_another_process_in_a_narrow_window(
    tmux: Open, home: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    gate.open(5)
    with conversation(tmux, monkeypatch, (40, 15), gate.answer("It")) as (window, server):
        with profiles.lock(layout.Root(str(home)), "alice", command="chat", wait=0):
            enter(window, "hello", "next")
            window.match(
                r"^\S alice is in use by another deepctl\n\(pid \d+\): waiting · 1 s · Ctrl-C to\nstop waiting"
            )
            window.match(r"^stop waiting\n1. next\nalice>$")
            window.resize(60, 15)
            window.match(r"\(pid \d+\): waiting ·\n\d s · Ctrl-C to stop waiting\n1. next\nalice>$")
            assert window.screen.count("in use") == 1
        at_prompt(window)
        assert prompts(server) == ["hello", "next"]
