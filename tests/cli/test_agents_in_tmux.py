"""Questions of the model and work of sub-agents in a real terminal."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import InProcess
from tests.support.loopback import Answer, Provider, Text, ToolCalls, provider
from tests.support.tmux import Tmux

Open = Callable[..., Tmux]
SIZES = [(120, 40), (80, 24), (40, 15)]
QUESTIONS = {
    "questions": [
        {
            "header": "store",
            "question": "Which database shall I use for the notes of the users?",
            "options": [
                {"label": "SQLite", "description": "one file beside the program, nothing to install"},
                {"label": "PostgreSQL", "description": "a server"},
            ],
        },
        {
            "header": "extras",
            "question": "Which of these?",
            "options": [{"label": "tests"}, {"label": "docs"}, {"label": "CI"}],
            "multi_select": True,
        },
    ]
}


@contextmanager
def conversation(
    tmux: Open, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], *answers: Answer
) -> Iterator[tuple[Tmux, Provider]]:
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        window = tmux("--model", "openai-chat:gpt-4o", size=size)
        window.expect("no sandbox")
        yield window, server


def enter(window: Tmux, line: str) -> None:
    window.type(line)
    window.press("Enter")


def asked(window: Tmux, count: int) -> None:
    """Wait until the line for an answer is there so many times: what is typed before it is discarded."""
    end = time.monotonic() + 30
    while flat(window.scrolled).count("leaves it to the agent:") < count:
        assert time.monotonic() < end, window.scrolled
        time.sleep(0.05)


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_questions_are_answered_with_the_keyboard(
    tmux: Open, deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    deepctl("config", "set", "ask_user", "on").ok()
    answers: list[Answer] = [ToolCalls([("ask_user", QUESTIONS)]), Text(["I use SQLite."])]
    with conversation(tmux, monkeypatch, size, *answers) as (window, server):
        enter(window, "set it up")
        window.expect("2. PostgreSQL: a server")
        assert "The agent asks (1 of 2): Which database shall I use for the notes of the users?" in flat(window.screen)
        columns, rows = size
        window.resize(columns + 7, rows)
        asked(window, 1)
        enter(window, "3")
        window.match("Type one number from 1 to 2")
        asked(window, 2)
        enter(window, "1")
        window.expect("3. CI")
        asked(window, 3)
        enter(window, "1, 3")
        window.expect("I use SQLite.")
    results = [message for message in server.requests[1]["messages"] if message["role"] == "tool"]
    assert json.loads(results[0]["content"]) == {"store": ["SQLite"], "extras": ["tests", "CI"]}


def test_an_answer_in_words_no_answer_and_ctrl_c(
    tmux: Open, deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "ask_user", "on").ok()
    one = {"questions": QUESTIONS["questions"][:1]}
    ask = ToolCalls([("ask_user", one)])
    answers: list[Answer] = [ask, ask, Text(["Done."]), ask, Text(["Here."])]
    with conversation(tmux, monkeypatch, (80, 24), *answers) as (window, server):
        enter(window, "go")
        asked(window, 1)
        enter(window, "DuckDB, please")
        asked(window, 2)
        window.press("Enter")
        window.expect("The agent decides.")
        window.expect("Done.")
        enter(window, "again")
        asked(window, 3)
        window.press("C-c")
        window.match("(?i)interrupted|stopped")
        enter(window, "on")
        window.expect("Here.")
    texts = [message["content"] for message in server.requests[2]["messages"] if message["role"] == "tool"]
    assert json.loads(texts[0]) == {"store": ["DuckDB, please"]}
    assert "declined" in texts[1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_calls_of_a_sub_agent_are_folded_below_its_task(
    tmux: Open, deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    deepctl("config", "set", "subagents", "on").ok()
    go_on = threading.Semaphore(0)

    def gate() -> None:
        assert go_on.acquire(timeout=30)

    task = ("delegate_task", {"agent_name": "explorer", "task": "Find \x1b[2J the tea."})
    answers: list[Answer] = [
        ToolCalls([task]),
        ToolCalls([("ls", {"path": "."}), ("glob", {"pattern": "*.tea"})]),
        Text(["No tea", " here."], gate),
        Text(["There is none."]),
    ]
    with conversation(tmux, monkeypatch, size, *answers) as (window, _):
        enter(window, "look")
        window.match(r"│ \S glob")
        screen = window.settled_rows()
        assert screen.count("│") == 2
        assert re.search(r"delegate_task\s+explorer", screen)
        window.resize(size[0] + 5, size[1])
        go_on.release()
        window.expect("There is none.")
        scrolled = window.scrolled
        assert "│" not in scrolled.rpartition("look")[2]
        assert re.search(r"✓ delegate_task .*→ 2 calls", scrolled)
        if size[0] >= 80:
            assert "explorer: Find \\x1b[2J the tea." in scrolled
        enter(window, "/details")
        window.match(r"^ +✓ glob")
