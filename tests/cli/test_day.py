"""A day of work in one profile: at its end, the sessions have what was typed and what was shown."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deepctl.layout import Root
from tests.support.command import InProcess
from tests.support.loopback import Answer, Provider, Text, ToolCalls
from tests.support.tmux import Tmux

MODEL = "openai-chat:gpt-4o"
WORKING = "· Ctrl-C "
"""A part of the line that is there while a turn runs or waits."""
ASKS = "why not:"
"""The end of an approval request."""
_ANSWER = re.compile(r"Answer\d+to'[^']*'\.|Part1ofanswer\d+\.(Part[234]ofanswer\d+\.)*")


class DayModel(Provider):
    """A provider that follows the last line of a prompt, and gives every answer a number.

    `story WORDS` is an answer in four pieces, of which each but the first waits for `go_on`. `do TOOL ARGUMENTS`, or
    `again do TOOL ARGUMENTS`, calls a tool with this JSON. Everything else is answered at once.
    """

    def __init__(self) -> None:
        super().__init__([], repeat_last=False)
        self._pieces = threading.Semaphore(0)
        self._number = 0

    def go_on(self, pieces: int = 3) -> None:
        self._pieces.release(pieces)

    def forget(self) -> None:
        """The answer that waits has lost its reader: let it end, and hold the next one again."""
        self.go_on()
        time.sleep(0.1)
        while self._pieces.acquire(blocking=False):
            pass

    def _gate(self) -> None:
        assert self._pieces.acquire(timeout=60)

    def _answer(self, body: dict[str, Any]) -> Answer:
        last = body["messages"][-1]
        content = last["content"]
        text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
        line = text.rstrip().rpartition("\n")[2]
        call = re.fullmatch(r"(?:again )?do (\w+) (.*)", line)
        if last["role"] == "user" and call is not None:
            return ToolCalls([(call[1], json.loads(call[2]))])
        self._number += 1
        if last["role"] == "user" and line.startswith("story "):
            return Text([f"Part {part} of answer {self._number}. " for part in range(1, 5)], self._gate)
        subject = re.sub(r"\W+", " ", line)[:30].strip()
        return Text([f"Answer {self._number}", f" to '{subject}'."])


class Turn(NamedTuple):
    """A prompt, and the answer to it without its blanks, because a narrow window breaks words.

    The answer of a turn without one is empty.
    """

    prompt: str
    answer: str


class Day:
    """What is done in windows, and what the sessions must have by that: the turns as they were typed and shown."""

    def __init__(self, place: Path, model: DayModel) -> None:
        self._place = place
        self._opened: list[Tmux] = []
        self.model = model
        self.sessions: dict[str, list[Turn]] = {}
        self.prompts = 0

    def open(self, session: str, *arguments: str, size: tuple[int, int] = (120, 40)) -> None:
        """A new window, whose chat continues a session; its prompt is there."""
        place = self._place / str(len(self._opened))
        place.mkdir()
        self.window = Tmux(place, "--model", MODEL, "--approve", "ask", *arguments, size=size)
        self._opened.append(self.window)
        self.use(session)
        self.window.expect("no sandbox")

    def use(self, session: str) -> None:
        self.turns = self.sessions.setdefault(session, [])

    def close(self) -> None:
        for window in self._opened:
            window.close()

    def enter(self, line: str) -> None:
        self.window.type(line)
        self.window.press("Enter")

    def command(self, line: str, outcome: str) -> None:
        """A slash command, and what it says."""
        self.enter(line)
        self._since(line, re.escape(without_blanks(outcome)))
        self._is_idle()

    def send(self, prompt: str, *keys: str) -> str:
        """One whole turn, with a key for each approval request. Returns what is shown of it."""
        self.begin(prompt)
        for key in keys:
            self.answer(prompt, key)
        return self.end(prompt)

    def begin(self, prompt: str) -> None:
        self.prompts += 1
        self.enter(prompt)

    def answer(self, prompt: str, key: str) -> None:
        """Answer the approval request of a turn."""
        self._since(prompt, f"{without_blanks(ASKS)}$")
        time.sleep(0.4)  # keys that follow at once are not an answer
        self.window.press(key)

    def close_window(self) -> None:
        """Close the window, and wait for the end of its program."""
        program = self._program()
        self.window.close()
        wait_until(lambda: not os.path.exists(f"/proc/{program}"))

    def kill(self) -> None:
        """Kill the program of the window."""
        os.kill(self._program(), signal.SIGKILL)

    def _program(self) -> int:
        return int(self.window.tell("display-message", "-p", "#{pane_pid}"))

    def end(self, prompt: str, below: str | None = None) -> str:
        """Wait for the whole answer to a prompt, and note it as shown. The answer is below the prompt or that line."""
        whole = r"Part4ofanswer\d+\." if prompt.startswith("story ") else r"Answer\d+to'[^']*'\."
        shown = self._since(below or prompt, whole)
        self._is_idle()
        self._note(prompt, shown)
        return shown

    def is_cut(self, prompt: str, pattern: str) -> str:
        """Wait for the end of a turn that was stopped, and note what is shown of its answer."""
        shown = self._since(prompt, pattern)
        self._is_idle()
        self._note(prompt, shown)
        return shown

    def begin_story(self, prompt: str) -> str:
        """Begin an answer that waits after its first piece. Returns what is shown of the turn."""
        self.begin(prompt)
        return self.has(prompt, 1)

    def has(self, prompt: str, pieces: int) -> str:
        """Wait for so many pieces of a story."""
        return self._since(prompt, f"Part{pieces}ofanswer")

    def note_cut(self, prompt: str, shown: str) -> None:
        """Note what is shown of an answer whose window is about to be gone."""
        self._note(prompt, shown)

    def _note(self, prompt: str, shown: str) -> None:
        answer = _ANSWER.search(shown.partition("alice>")[0])
        self.turns.append(Turn(prompt, answer[0] if answer is not None else ""))

    def _since(self, prompt: str, pattern: str) -> str:
        """What is below a prompt, without blanks, once the pattern is there."""
        end = time.monotonic() + 30
        first_words = without_blanks(f"alice> {prompt}")[:60]
        while True:
            _, prompt_line, shown = without_blanks(self.window.scrolled).rpartition(first_words)
            if prompt_line and re.search(pattern, shown) is not None:
                return shown
            assert time.monotonic() < end, f"{pattern!r} is not there:\n{self.window.scrolled}"
            time.sleep(0.05)

    def _is_idle(self) -> None:
        end = time.monotonic() + 30
        while WORKING in (screen := self.window.screen) or re.search(r"^alice> ?", screen, re.MULTILINE) is None:
            assert time.monotonic() < end, screen
            time.sleep(0.05)


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Day]:
    model = DayModel()
    model.start()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("OPENAI_BASE_URL", f"{model.address}/v1")
    monkeypatch.setenv("DEEPCTL_MODEL", MODEL)
    day = Day(tmp_path, model)
    yield day
    day.close()
    model.stop()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def without_blanks(text: str) -> str:
    return "".join(text.split())


def execute(command: str) -> str:
    return f"do execute {json.dumps({'command': command})}"


def write(path: str, content: str) -> str:
    return f"do write_file {json.dumps({'path': path, 'content': content})}"


def morning(day: Day, workspace: Path) -> None:
    """Approvals, a window that changes, a stopped answer, a queue and an interruption."""
    day.open("main")
    day.send("good morning")
    day.send(write("prices.py", "one\n"))
    day.send(execute("echo ran >> log"), "y")
    assert (workspace / "log").read_text() == "ran\n"
    day.send(execute("echo no >> log"), "n")
    assert (workspace / "log").read_text() == "ran\n"

    prompt = "story of a window"
    day.begin(prompt)
    for part, size in enumerate([(80, 24), (40, 15), (120, 40)], 1):
        day.has(prompt, part)
        day.window.resize(*size)
        time.sleep(0.6)  # tmux tells of it a quarter of a second later at most
        day.model.go_on(1)
    day.end(prompt)

    prompt = "story that is stopped"
    day.begin_story(prompt)
    day.window.type("and this draft stays")
    day.window.expect("alice> and this draft stays")
    day.window.press("C-c")
    day.is_cut(prompt, "Stopped")
    day.model.forget()
    day.window.expect("alice> and this draft stays")
    day.window.press("Enter")
    day.prompts += 1
    day.end("and this draft stays")

    day.begin_story("story with a queue")
    for number, prompt in enumerate(["first of the queue", write("queued.py", "two\n")], 1):
        day.begin(prompt)
        day.window.expect(f"{number}. {prompt[:20]}")
    day.model.go_on()
    day.end("story with a queue")
    day.end("first of the queue")
    day.end(write("queued.py", "two\n"))
    assert (workspace / "queued.py").read_text() == "two\n"

    day.begin_story("story that is interrupted")
    day.prompts += 1
    day.enter("/now answer at once")
    day.is_cut("story that is interrupted", "Stopped")
    day.model.forget()
    day.end("answer at once")


def noon(day: Day, workspace: Path) -> None:
    """A rewind and its undo, a new session, a fork, and a window that is closed in the middle of an answer."""
    day.command("/rewind ~1", "alice> answer at once")
    day.window.press("C-c")
    undone = day.turns.pop()
    day.command("/undo", "Undid")
    day.turns.append(undone)
    day.send("after the undo")

    day.command("/new trip", "trip")
    day.use("trip")
    day.send("where to go")
    day.send(write("trip.txt", "north\n"))
    day.send(execute("echo again >> trip.txt"), "a")
    assert without_blanks(ASKS) not in day.send(f"again {execute('echo again >> trip.txt')}")
    assert (workspace / "trip.txt").read_text() == "north\nagain\nagain\n"
    day.command("/rewind ~2", "alice> do execute")
    day.window.press("C-c")
    del day.turns[-2:]
    assert (workspace / "trip.txt").read_text() == "north\n"
    day.send("south is better")

    day.command("/fork copy", "copy")
    day.sessions["copy"] = list(day.turns)
    day.use("copy")
    day.send(write("trip.txt", "south\n"))
    prompt = "story in a window that is closed"
    day.note_cut(prompt, day.begin_story(prompt))
    day.close_window()
    day.model.forget()


def afternoon(day: Day, workspace: Path, project: Path) -> None:
    """A killed process, another session, a session of a project, and two windows at once."""
    day.open("copy", size=(80, 24))
    day.window.expect("story in a window that is closed")
    day.send("back again")
    day.send("this one twice")
    day.turns.pop()
    day.prompts += 1
    day.enter("/retry")
    day.end("this one twice", below="/retry")

    day.command("/switch main", "main")
    day.use("main")
    day.send("main goes on")
    command = "echo begun > begun; sleep 60"
    day.begin(execute(command))
    day.answer(execute(command), "y")
    wait_until((workspace / "begun").exists)
    day.kill()
    day.turns.append(Turn(execute(command), ""))

    day.open("main", size=(80, 24))
    day.send("after the kill")
    day.window.press("C-d")
    day.open("work", "-C", str(project), "--new", "work")
    day.send("what is this project")
    day.send(write("code.py", "first\n"))
    day.send(write("code.py", "second\n"))
    assert (project / "code.py").read_text() == "second\n"
    day.command("/rewind ~1", "alice> do write_file")
    day.window.press("C-c")
    day.turns.pop()
    assert (project / "code.py").read_text() == "first\n"
    day.send("that was better")


def evening(day: Day) -> None:
    """Two windows at once, a list to choose from, and a script."""
    first, first_turns = day.window, day.turns
    day.begin_story("story in the first window")
    day.enter("taken back from the queue")
    day.window.expect("1. taken back from the queue")
    day.window.press("Up")
    day.window.expect("alice> taken back from the queue")
    day.begin(", and sent")
    day.window.expect("1. taken back from the queue, and sent")
    day.open("night", "--new", "night", size=(80, 24))
    second, second_turns = day.window, day.turns
    day.begin("does this one wait")
    day.window.expect("waiting")
    day.window, day.turns = first, first_turns
    day.model.go_on()
    day.end("story in the first window")
    day.end("taken back from the queue, and sent")
    day.window.press("C-d")
    day.window, day.turns = second, second_turns
    day.end("does this one wait")
    day.begin_story("story that Esc stops")
    day.window.press("Escape")
    day.is_cut("story that Esc stops", "Stopped")
    day.model.forget()
    day.window.type("it did,")
    day.window.press("C-j")
    day.begin("in two lines")
    day.end("it did,\nin two lines")

    day.enter("/resume")
    day.window.expect("where to go")
    day.window.type("trip")
    day.window.settled()
    day.window.press("Enter")
    day.use("trip")
    day.window.expect("south is better")
    day.send("on with the trip")
    day.send(write("trip.txt", "west\n"))
    day.window.press("C-d")


def script(day: Day, prompt: str, *arguments: str) -> None:
    """A turn from the shell, without a terminal."""
    day.prompts += 1
    day.use("notes")
    program = [sys.executable, "-m", "deepctl", "chat", "--user", "alice", *arguments]
    done = subprocess.run(program, input=prompt, capture_output=True, text=True, check=True, timeout=60)
    day.turns.append(Turn(prompt, without_blanks(done.stdout)))


def test_the_sessions_of_a_day_are_what_was_typed_and_shown(
    day: Day, home: Path, tmp_path: Path, deepctl: InProcess
) -> None:
    workspace = Path(Root(str(home)).profile("alice").workspace)
    project = tmp_path / "project"
    project.mkdir()
    morning(day, workspace)
    noon(day, workspace)
    afternoon(day, workspace, project)
    evening(day)
    script(day, "a line of a script", "--new", "notes")
    script(day, "another line of it", "--session", "notes")
    day.open("notes", "--continue", size=(40, 15))
    day.send("a line of a person")

    assert (day.prompts, len(day.sessions)) == (40, 6)
    for name, turns in day.sessions.items():
        shown = deepctl("sessions", "show", name, "--user", "alice", "--json").ok().json
        assert turns_of(shown["messages"]) == turns, name
    deepctl("checkpoints", "verify", "--user", "alice").ok()


def turns_of(messages: list[dict[str, Any]]) -> list[Turn]:
    turns: list[Turn] = []
    for message in messages:
        for part in message["message"]["parts"]:
            if part["part_kind"] == "user-prompt":
                content = part["content"] if isinstance(part["content"], str) else part["content"][-1]
                turns.append(Turn(content, ""))
            elif part["part_kind"] == "text":
                turns[-1] = Turn(turns[-1].prompt, without_blanks(part["content"]))
    return turns
