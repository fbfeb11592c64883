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

from deepctl.layout import Root
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


def asked(window: Tmux, prompt: str, count: int) -> str:
    """Wait until the line for an answer is there so many times below this prompt: what is typed before it is discarded.

    Returns what is below the prompt. The window may break its rows in the middle of a word, so nothing has spaces.
    """
    end = time.monotonic() + 30
    while True:
        _, is_there, below = "".join(window.scrolled.split()).rpartition(prompt)
        if is_there and below.count("leavesittotheagent:") >= count:
            return below
        assert time.monotonic() < end, window.scrolled
        time.sleep(0.05)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_questions_are_answered_with_numbers_in_words_and_not_at_all(
    tmux: Open, deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "ask_user", "on").ok()
    turns = [(ToolCalls([("ask_user", QUESTIONS)]), Text([f"I use SQLite, {size}."])) for size in SIZES]
    ask = ToolCalls([("ask_user", {"questions": QUESTIONS["questions"][:1]})])
    answers: list[Answer] = [*(answer for turn in turns for answer in turn), ask, ask, Text(["Done."])]
    answers += [ask, Text(["Here."])]
    with conversation(tmux, monkeypatch, SIZES[0], *answers) as (window, server):
        for number, (columns, rows) in enumerate(SIZES):
            prompt = f">setitup,{number}"
            window.resize(columns, rows)
            enter(window, f"set it up, {number}")
            request = asked(window, prompt, 1)
            assert "Theagentasks(1of2):WhichdatabaseshallIuseforthenotesoftheusers?" in request
            window.resize(columns + 7, rows)
            enter(window, "3")
            assert "Typeonenumberfrom1to2" in asked(window, prompt, 2)
            enter(window, "1")
            asked(window, prompt, 3)
            enter(window, "4")
            asked(window, prompt, 4)
            enter(window, "1, 3")
            window.expect(f"I use SQLite, {columns, rows}.")
        enter(window, "go")
        asked(window, ">go", 1)
        enter(window, "DuckDB, please")
        asked(window, ">go", 2)
        window.press("Enter")
        window.expect("The agent decides.")
        window.expect("Done.")
        enter(window, "again")
        asked(window, ">again", 1)
        window.press("C-c")
        window.match("(?i)interrupted|stopped")
        enter(window, "on")
        window.expect("Here.")
    texts = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "tool"]
    chosen = {"store": ["SQLite"], "extras": ["tests", "CI"]}
    assert [json.loads(text) for text in texts[:4]] == [*[chosen] * 3, {"store": ["DuckDB, please"]}]
    assert "declined" in texts[4]


def test_the_work_of_a_sub_agent_is_folded_and_asks_in_its_name(
    tmux: Open, deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "subagents", "on").ok()
    go_on = threading.Semaphore(0)

    def gate() -> None:
        assert go_on.acquire(timeout=30)

    task = ("delegate_task", {"agent_name": "explorer", "task": "Find \x1b[2J the tea."})
    answers: list[Answer] = []
    for size in SIZES:
        looks = ToolCalls([("ls", {"path": "."}), ("glob", {"pattern": "*.tea"})])
        answers += [ToolCalls([task]), looks, Text(["No tea", " here."], gate), Text([f"No match, {size}."])]
    answers.append(ToolCalls([("delegate_task", {"agent_name": "self", "task": "Do it."})]))
    answers += [ToolCalls([("execute", {"command": command})]) for command in ("wc -l f", "touch b; sleep 300")]
    answers.append(Text(["Here."]))
    with conversation(tmux, monkeypatch, SIZES[0], *answers) as (window, _):
        for size in SIZES:
            window.resize(*size)
            enter(window, f"look {size}")
            window.match(r"│ \S glob")
            screen = window.settled_rows()
            assert screen.count("│") == 2
            assert re.search(r"delegate_task\s+explorer", screen)
            window.resize(size[0] + 5, size[1])
            go_on.release()
            window.expect(f"No match, {size}.")
            shown = window.scrolled.rpartition(f"look {size}")[2]
            assert "│" not in shown
            assert re.search(r"✓ delegate_task .*→ 2 calls", shown)
            if size[0] >= 80:
                assert "explorer: Find \\x1b[2J the tea." in shown
        enter(window, "/details")
        window.match(r"^ +✓ glob")
        enter(window, "do it")
        window.match(r"why not:$")
        request = flat(window.scrolled).rpartition("alice> do it")[2]
        assert "The sub-agent self wants to run a command" in request
        assert "[e]very command of this session, [k]ind `wc`" in request
        time.sleep(0.4)  # keys that follow at once are not an answer
        window.press("e")
        workspace = Path(Root(str(home)).profile("alice").workspace)
        end = time.monotonic() + 30
        while not (workspace / "b").exists():
            assert time.monotonic() < end, window.screen
            time.sleep(0.05)
        window.press("C-c")
        window.match("(?i)interrupted|stopped")
        assert window.scrolled.count("wants to") == 1
        enter(window, "on")
        window.expect("Here.")
