"""Coming back: the last exchange, a turn that was cut off, the list of sessions, and the bell of a long turn."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.store import session_catalogue, session_ends, session_titles
from tests.store.scene import Scene
from tests.support.command import InProcess
from tests.support.loopback import Answer, Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal
from tests.support.tmux import Tmux

Open = Callable[..., Tmux]
SIZES = LARGE, USUAL, SMALL = [(120, 40), (80, 24), (40, 15)]
WORK = ToolCalls(
    [
        ("write_file", {"path": "hours.md", "content": "9:30\n"}),
        ("execute", {"command": "echo one > late.md; echo started; sleep 60"}),
    ]
)
ANSWER = "\n\n".join(f"Paragraph {number} of the answer." for number in range(1, 21))


def unwrapped(text: str) -> str:
    return " ".join(text.split())


def fits(window: Tmux, size: tuple[int, int]) -> str:
    """The screen: nothing is wider than the window, and the prompt is there once."""
    screen = window.settled()
    assert all(len(row) <= size[0] for row in screen.split("\n"))
    assert screen.count("alice> ") + screen.count("alice>\n") + screen.endswith("alice>") == 1, screen
    return screen


def test_a_chat_begins_with_the_last_exchange_and_with_what_a_stopped_turn_left(
    tmux: Open, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Answer] = [Text([ANSWER]), WORK, WORK]
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")

        window = tmux("--model", "openai-chat:gpt-4o", "--approve", "auto", size=LARGE)
        window.tell("set-option", "-g", "remain-on-exit", "on")

        def again(size: tuple[int, int]) -> str:
            window.resize(*size)
            window.tell("respawn-pane", "-k")
            window.tell("clear-history")
            window.expect("no sandbox")
            return fits(window, size)

        window.expect("no sandbox")
        window.type("plan the days")
        window.press("Enter")
        window.expect("Paragraph 20")
        window.expect("alice · ")

        screen = again(LARGE)
        assert shown_paragraphs(screen) == [18, 19, 20]
        screen = again(SMALL)
        assert shown_paragraphs(screen) == [20]
        screen = again(USUAL)
        assert "Session main, 1 turn, just now" in unwrapped(screen)
        assert "> plan the days\n  …\n" in screen
        assert shown_paragraphs(screen) == [18, 19, 20]
        assert "is not complete" not in screen
        window.type("add the hours")
        window.press("Enter")
        window.expect("│ started")
        window.press("C-c")
        window.expect("Stopped; completed steps")

        screen = unwrapped(again(SMALL))
        assert "Title: plan the days" in screen
        assert "The last turn is not complete: it was stopped with Ctrl-C. 2 files differ from before it;" in screen
        undo = re.search(r"; (/rewind [0-9a-f]{8}) takes it back\.", screen)
        assert undo is not None, screen
        window.type(undo[1])
        window.press("Enter")
        window.expect("alice> add the hours")
        assert not list((home / "profiles/alice/workspace").glob("*.md"))
        window.press("C-c")
        window.type("once more")
        window.press("Enter")
        window.expect("│ started")
        os.kill(int(window.tell("display-message", "-p", "#{pane_pid}")), signal.SIGKILL)
        end = time.monotonic() + 10
        while window.tell("display-message", "-p", "#{pane_dead}").strip() != "1":
            assert time.monotonic() < end
            time.sleep(0.05)

        screen = unwrapped(again(USUAL))
        assert "The last turn is not complete: its process was killed. 2 files differ from before it;" in screen
        undo = re.search(r"and (/rewind [0-9a-f]{8} --force) takes it back\.", screen)
        assert undo is not None, screen
        window.resize(60, 20)
        window.type(undo[1])
        window.press("Enter")
        window.expect("alice> once more")
        assert not list((home / "profiles/alice/workspace").glob("*.md"))


def shown_paragraphs(screen: str) -> list[int]:
    return [int(number) for number in re.findall(r"^  Paragraph (\d+) of", screen, re.MULTILINE)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Status(400, "no"), "the model or its provider failed"),
        (Text(["Half an answer"], finish="length"), "not the whole answer: it reached its maximum length"),
    ],
)
def test_the_reason_of_a_failed_turn_is_told(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, answer: Answer, reason: str
) -> None:
    with provider(answer) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        assert deepctl("chat", "hello", "--user", "alice", "--model", "openai-chat:m").code == 7
    chat = Terminal("chat", "--user", "alice")
    chat.expect(f"The last turn is not complete: {reason}.")
    chat.expect("No file differs from before it.")
    chat.close()


def test_a_turn_of_another_process_is_not_called_stopped(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "hello", "--user", "alice").ok()
    other = Terminal("chat", "--user", "alice", "--sandbox", "none", "--approve", "auto")
    other.prompt()
    other.type("run echo started; sleep 60\r")
    other.expect("│ started")
    chat = Terminal("chat", "--user", "alice")
    chat.expect("> run echo started; sleep 60")
    chat.prompt()
    assert "is not complete" not in chat.screen
    chat.close()
    other.close()


@pytest.fixture
def sessions(deepctl: InProcess, tmp_path: Path) -> Path:
    """Three sessions, of which one is in a project."""
    project = tmp_path / "shop"
    project.mkdir()
    deepctl("chat", "plan Lisbon: pack; fly", "--user", "alice").ok()
    deepctl("chat", "write z.txt: in the shop", "--user", "alice", "-C", str(project)).ok()
    deepctl("chat", "remember I like 日本語", "--user", "alice", "--new", "tea").ok()
    return project


def test_a_session_is_chosen_from_a_list_that_typing_filters(tmux: Open, sessions: Path) -> None:
    window = tmux("--resume", size=LARGE)
    window.expect("> tea ")
    for size in (LARGE, SMALL, USUAL):
        window.resize(*size)
        screen = window.settled()
        names = [row.lstrip("> ").split()[0] for row in screen.split("\n")[1:4]]
        assert names == ["tea", "session-2", "main"]
        assert screen.count("> tea ") == 1
        assert re.search(r"^1 turn, just now, in the private work", screen, re.MULTILINE)
        assert "  remember I like 日本語" in screen
        assert all(len(row) <= size[0] for row in screen.split("\n"))
    window.press("Down")
    window.match(r"^> session-2 ")
    assert "Wrote 1 line to z.txt" in window.settled()
    window.type("LISBON")
    window.expect("Filter: LISBON  1 of 3")
    window.match(r"^> main ")
    window.resize(50, 18)
    assert window.settled().count("Filter: LISBON") == 1
    window.press(*["BSpace"] * 6)
    window.type("nothing like it")
    window.expect("None of them.")
    window.press("Enter")
    window.press("C-u")
    window.type("shop")
    window.match(r"^> session-2 ")
    window.press("Enter")
    window.expect("alice>")
    shown = unwrapped(window.settled())
    assert "Session session-2, 1 turn, just now, in " in shown
    assert "Filter" not in shown
    window.type("write z.txt: once more")
    window.press("Enter")
    window.match(r"once more[\s\S]*Wrote 1 line")
    assert (sessions / "z.txt").read_text() == "once more"


def test_resume_in_a_chat_moves_it_and_leaving_the_list_does_not(deepctl: InProcess, sessions: Path) -> None:
    chat = Terminal("chat", "--user", "alice", columns=100, rows=30)
    chat.prompt()
    chat.type("/resume\r")
    chat.expect("Enter selects, Esc leaves")
    chat.type("\x1b")
    chat.expect("No session was chosen.")
    chat.prompt()
    chat.type("/resume\r")
    chat.expect("Enter selects, Esc leaves", 1)
    chat.type("lisbon\r")
    chat.expect("Session main, 1 turn, just now")
    chat.expect("> plan Lisbon: pack; fly")
    chat.prompt()
    chat.type("hello\r")
    chat.expect("offline model, not an LLM")
    assert chat.leave() == 0
    found = json.loads(deepctl("sessions", "list", "--user", "alice", "--json").ok().stdout)["sessions"]
    assert {session["name"]: session["turns"] for session in found} == {"main": 2, "session-2": 1, "tea": 1}


def test_only_sessions_of_a_named_directory_are_offered(deepctl: InProcess, sessions: Path) -> None:
    chat = Terminal("chat", "--user", "alice", "--resume", "-C", str(sessions), columns=100)
    chat.expect("> session-2")
    assert "main" not in chat.screen
    chat.type("\x1b")
    assert chat.wait() == 130
    chat = Terminal("chat", "--user", "alice", "--resume", "--no-project", columns=100)
    chat.expect("> tea")
    chat.expect("main")
    assert "session-2" not in chat.screen
    chat.close()


@pytest.mark.parametrize("option", ["--session=x", "--new", "--ephemeral"])
@pytest.mark.parametrize("how", ["--resume", "--continue"])
def test_two_choices_of_a_session_are_refused(deepctl: InProcess, home: Path, how: str, option: str) -> None:
    result = deepctl("chat", "hello", how, option, "--user", "alice")
    assert result.code == 2
    assert f"{how} and {option.partition('=')[0]} cannot be used together." in result.stderr
    assert not home.exists()


def test_continue_is_the_default(deepctl: InProcess) -> None:
    deepctl("chat", "hello", "--user", "alice", "--continue").ok()
    deepctl("chat", "hello", "--user", "alice", "--continue").ok()
    assert len(json.loads(deepctl("sessions", "list", "--user", "alice", "--json").ok().stdout)["sessions"]) == 1


BELL = b"\a\x1b]9;deepctl: the agent of alice "


def _late(monkeypatch: pytest.MonkeyPatch, deepctl: InProcess, **settings: str) -> None:
    for key, value in {"notify_after": "1", **settings}.items():
        deepctl("config", "set", key, value, "--user", "alice").ok()


@pytest.mark.parametrize(
    ("how", "expected"),
    [("auto", BELL + b"has finished a turn\a"), ("bell", b"\a"), ("off", b"")],
)
def test_the_end_of_a_long_turn_rings(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, how: str, expected: bytes
) -> None:
    deepctl("profiles", "create", "alice").ok()
    _late(monkeypatch, deepctl, notify=how)
    chat = Terminal("chat", "--user", "alice", "--sandbox", "none", "--approve", "auto", environment={"TMUX": ""})
    chat.prompt()
    chat.type("hello\r")
    chat.expect("offline model, not an LLM")
    chat.prompt()
    assert b"\a" not in chat.bytes, "a short turn is silent"
    chat.type("run sleep 1.2\r")
    chat.expect("sleep 1.2  →")
    chat.prompt()
    assert re.findall(rb"\a(?:\x1b\]9;[^\a]*\a)?", chat.bytes) == ([expected] if expected else [])
    if how != "auto":
        chat.close()
        return
    before = len(chat.bytes)
    chat.type("run echo started; sleep 60\r")
    chat.expect("│ started")
    chat.settle(1.2)
    chat.type("\x03")
    chat.expect("Stopped; completed steps")
    chat.prompt()
    assert b"\a" not in chat.bytes[before:], "the person has stopped it"
    chat.close()


def test_a_late_approval_request_rings_but_not_the_end_right_after_it(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    _late(monkeypatch, deepctl)
    profile = Path(deepctl("profiles", "path", "alice").ok().stdout.strip())
    (profile / "profile.toml").write_text((profile / "profile.toml").read_text() + '\n[permissions]\nwrite = "ask"\n')
    calls = [ToolCalls([("execute", {"command": "sleep 1.2"}), ("write_file", {"path": "a", "content": "x"})])]
    with provider(*calls, Text(["Done."])) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        chat = Terminal("chat", "--user", "alice", "--model", "openai-chat:m", environment={"TMUX": ""})
        chat.prompt()
        chat.type("do it\r")
        chat.expect("[y]es")
        chat.settle(1.2)
        chat.type("y")
        chat.expect("Done.")
        chat.prompt()
        assert re.findall(rb"\a(?:\x1b\]9;[^\a]*\a)?", chat.bytes) == [BELL + b"waits for an approval\a"]
        chat.close()


def test_tmux_marks_its_window_and_shows_nothing_of_a_notification(
    tmux: Open, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    _late(monkeypatch, deepctl)
    window = tmux("--approve", "auto", size=(80, 24))
    window.tell("set-option", "-g", "bell-action", "any")
    window.tell("new-window", "-d", "cat")
    window.expect("no sandbox")
    window.type("run sleep 1.2")
    window.press("Enter")
    window.tell("select-window", "-t", ":1")
    end = time.monotonic() + 20
    while window.tell("display-message", "-p", "-t", ":0", "#{window_bell_flag}").strip() != "1":
        assert time.monotonic() < end, "no bell"
        time.sleep(0.1)
    window.tell("select-window", "-t", ":0")
    window.expect("alice · ")
    assert "the agent of" not in window.scrolled
    assert "]9;" not in window.scrolled


def test_a_turn_from_a_shell_is_silent(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("profiles", "create", "alice").ok()
    _late(monkeypatch, deepctl)
    command = Terminal("chat", "run sleep 1.2", "--user", "alice", "--sandbox", "none", "--approve", "auto")
    assert command.wait() == 0
    assert b"\a" not in command.bytes
    command.close()


def _titles(deepctl: InProcess) -> dict[str, str]:
    sessions = json.loads(deepctl("sessions", "list", "--user", "alice", "--json").ok().stdout)["sessions"]
    return {session["name"]: session["title"] for session in sessions}


def test_a_model_writes_the_title_only_if_it_is_set_and_nobody_waits_for_it(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "title_model", "openai-chat:small", "--user", "alice").ok()
    go_on = threading.Event()

    def gate() -> None:
        assert go_on.wait(30)

    key = "sk-canary-0123456789abcdef"
    with provider(Text(['"Days', ' in\x1b[2J Lisbon."\nmore'], gate), Status(400)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        chat = Terminal("chat", "--user", "alice", "--sandbox", "none")
        chat.prompt()
        chat.type(f"plan the days, my key is {key}\r")
        chat.expect("offline model, not an LLM")
        chat.prompt()
        chat.type("second\r")
        chat.expect("can see 1 earlier turn")
        chat.prompt()
        assert _titles(deepctl) == {"main": f"plan the days, my key is {key}"}
        go_on.set()
        end = time.monotonic() + 20
        while _titles(deepctl) != {"main": "Days in [2J Lisbon."}:
            assert time.monotonic() < end, _titles(deepctl)
            time.sleep(0.05)
        chat.type("/new\r")
        chat.prompt()
        chat.type("the request for this title fails\r")
        chat.expect("can see 0 earlier turns", 2)
        chat.prompt()
        while len(server.requests) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        chat.settle(0.5)
        assert "title" not in chat.screen.partition("the request for this title fails")[2]
        assert chat.leave() == 0
    assert key not in json.dumps(server.requests)
    assert server.requests[0]["model"] == "small"
    assert _titles(deepctl)["session-2"] == "the request for this title fails"
    usage = (home / "profiles/alice/usage.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in usage[1:]]
    titles = {line["id"]: line for line in lines if line["purpose"] == "title"}
    assert len(titles) == 2
    assert sorted((line["model"], line["input"] > 0) for line in titles.values()) == [
        ("openai-chat:small", False),
        ("openai-chat:small", True),
    ]
    deepctl("sessions", "delete", "main", "--user", "alice", "--yes").ok()
    assert "Lisbon" not in (home / "profiles/alice/cache/titles").read_text()


def test_a_title_of_a_model_ends_with_the_prompt_that_it_is_about(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.agent("notes", "one")
    session_titles.remember(scene.session(), "write notes one", "About notes")
    assert session_catalogue.summary(scene.paths, "main").title == "About notes"
    assert session_ends.read(scene.session()).title == "About notes"
    scene.rewind("~1")
    scene.agent("notes", "two")
    assert session_catalogue.summary(scene.paths, "main").title == "write notes two"
    path = Path(scene.paths.cache) / "titles"
    path.write_bytes(path.read_bytes()[:-5])
    assert session_catalogue.summary(scene.paths, "main").title == "write notes two"
