"""A conversation that is ended or stopped in mid-work, whatever that is: state, terminal and processes are whole."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import random
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from deepctl.cli import tty_modes
from tests.support import docker, processes
from tests.support.command import Command, InProcess
from tests.support.loopback import Status, Text, provider
from tests.support.terminal import Terminal

SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
TRIES, FILES = (100, 6_000) if SOAK else (2, 300)
NUMBERS = itertools.count()
NO_SANDBOX = ("--sandbox", "none", "--approve", "auto")
DELIBERATE = 0.8
"""Seconds after which another Ctrl-C is not of the same press any more."""
FAULT_OF_THE_DISPLAY = """
from deepctl.output.stream.display import LiveDisplay
def broken(*_): raise ValueError("no such colour")
LiveDisplay.event = broken
"""
FAULT_OF_THE_DRAWING = """
from deepctl.output.stream import turn_view
def broken(*_): raise ValueError("no such colour")
turn_view.TurnView.tail = turn_view.TurnView.settled = broken
"""
FAULT_OF_THE_TOOLBAR = """
from deepctl.cli.repl import repl
def broken(*_): raise ValueError("no such colour")
repl.Repl._toolbar = broken
"""
FAULT_OF_THE_LINE = """
from deepctl.cli.repl import turn_line
def broken(*_): raise ValueError("no such colour")
turn_line._written_rows = broken
"""
FAULT_OF_THE_TURN = """
from deepctl.agent.chat import Chat
def broken(*_): raise ValueError("no such colour")
Chat.turn = broken
"""


class Scene:
    """Alice has said something before, and talks again; `close` lets everything go."""

    def __init__(self, patch: pytest.MonkeyPatch, deepctl: InProcess, home: Path) -> None:
        self._patch = patch
        self.deepctl = deepctl
        self.home = home
        self.stack = ExitStack()
        self.sleep = f"sleep 61.{os.getpid()}{next(NUMBERS)}"
        """A command that no other test runs."""
        self.gate = threading.Event()
        """What the rest of an answer waits for."""
        self.stack.callback(self.gate.set)
        self.temporary = home.parent / "temporary"
        self.temporary.mkdir()
        patch.setenv("TMPDIR", str(self.temporary))
        patch.setenv("OPENAI_API_KEY", "sk-nothing")
        deepctl("chat", "--user", "alice", "write before.txt: one").ok()

    def chat(self, *arguments: str, first: str = "") -> Terminal:
        opened = Terminal("chat", "--user", "alice", *arguments, columns=100, rows=40, first=first)
        self.stack.callback(opened.close)
        return opened

    def answered_by(self, *answers: Text | Status) -> tuple[str, str]:
        """The arguments for a model that answers so."""
        server = self.stack.enter_context(provider(*answers, repeat_last=True))
        self._patch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        return "--model", "openai-chat:loopback"

    def streaming(self) -> Terminal:
        """A chat whose answer has begun to come and does not go on."""
        answer = Text(["The first line.\n\n", "The second."], self._held_back)
        return said(self.chat(*self.answered_by(answer)), "hello", "The first line.")

    def _held_back(self) -> None:
        self.gate.wait(30)

    def at_work(self) -> list[int]:
        """The processes of the command that is running."""
        return processes.with_command(*self.sleep.split())

    def begins_work(self) -> None:
        docker.until(lambda: bool(self.at_work()), 20, "the command has started")

    def is_whole(self) -> None:
        """What was complete is there and can be gone on with, and nothing is left of what was not."""
        deepctl = self.deepctl
        deepctl("checkpoints", "verify", "--user", "alice").ok()
        shown = deepctl("sessions", "show", "--user", "alice", "--json").ok().json
        assert "write before.txt: one" in json.dumps(shown["messages"][0])
        turns = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"][0]["turns"]
        again = deepctl("chat", "--user", "alice", "hello\nread before.txt").ok().stdout
        assert "one" in again
        after = deepctl("sessions", "show", "--user", "alice", "--json").ok().json
        assert after["damaged"] == []
        assert after["messages"][: len(shown["messages"])] == shown["messages"]
        listed = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
        assert [one["turns"] for one in listed] == [turns + 1]
        docker.until(lambda: not self.at_work(), 10, "the commands are gone")
        assert list(self.temporary.iterdir()) == []
        left = [path for path in self.home.rglob("*") if path.name.startswith((".deepctl", ".new", ".tmp"))]
        assert left == []


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, deepctl: InProcess, home: Path) -> Iterator[Scene]:
    made = Scene(monkeypatch, deepctl, home)
    with made.stack:
        yield made


def said(chat: Terminal, prompt: str, text: str) -> Terminal:
    """Say something, and wait until this is on the screen."""
    chat.prompt()
    chat.type(f"{prompt}\r")
    chat.expect(text)
    return chat


def typing(scene: Scene) -> Terminal:
    chat = scene.chat()
    chat.prompt()
    chat.type("half a line")
    chat.prompt("half a line")
    return chat


def running(*arguments: str) -> Callable[[Scene], Terminal]:
    def begun(scene: Scene) -> Terminal:
        prompt = f"\x1b[200~write kept.txt: two\nrun {scene.sleep}\x1b[201~"
        chat = said(scene.chat(*arguments), prompt, "Running execute")
        scene.begins_work()
        return chat

    return begun


def waiting_for_a_yes(scene: Scene) -> Terminal:
    prompt = "\x1b[200~write kept.txt: two\nrun touch never.txt\x1b[201~"
    return said(scene.chat("--sandbox", "none"), prompt, "Allow it?")


def waiting_to_try_again(scene: Scene) -> Terminal:
    chat = scene.chat(*scene.answered_by(Status(429, "slow down", {"Retry-After": "25"})))
    return said(chat, "hello", "trying again in")


def choosing(scene: Scene) -> Terminal:
    return said(scene.chat(), "/rewind", "write before.txt")


def command_of_the_user(scene: Scene) -> Terminal:
    chat = scene.chat(*NO_SANDBOX)
    chat.prompt()
    chat.type(f"!{scene.sleep}\r")
    scene.begins_work()
    return chat


class Phase(NamedTuple):
    """Something a conversation can be at, and a word that its log must have afterwards."""

    begin: Callable[[Scene], Terminal]
    logged: str | None = None
    outlives: bool = False
    """Whether what it runs goes on after a SIGKILL of deepctl, as nothing is around it that could end it."""


PHASES = {
    "typing": Phase(typing),
    "streaming": Phase(Scene.streaming),
    "in bubblewrap": Phase(running("--sandbox", "bubblewrap"), "kept.txt"),
    "without sandbox": Phase(running(*NO_SANDBOX), "kept.txt", outlives=True),
    "approval": Phase(waiting_for_a_yes, "kept.txt"),
    "retry": Phase(waiting_to_try_again),
    "picker": Phase(choosing),
    "own command": Phase(command_of_the_user, outlives=True),
}
ENDINGS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, None]
IDS = ["killed", "terminated", "hung-up", "window-closed"]


@pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)
@pytest.mark.parametrize("ending", ENDINGS, ids=IDS)
def test_whatever_ends_a_conversation_leaves_all_that_was_complete(
    scene: Scene, phase: Phase, ending: signal.Signals | None
) -> None:
    chat = phase.begin(scene)
    if ending is None:
        chat.hang_up()
        assert chat.wait() == -signal.SIGHUP
    else:
        chat.signal(ending)
        assert chat.wait() == -ending
    if phase.logged is not None:
        assert phase.logged in scene.deepctl("sessions", "show", "--user", "alice", "--json").ok().stdout
    if ending in (signal.SIGTERM, signal.SIGHUP):
        terminal_is_set_back(chat)
        assert "Traceback" not in chat.screen
    if phase.outlives and ending == signal.SIGKILL:
        for pid in scene.at_work():
            os.kill(pid, signal.SIGKILL)
    scene.is_whole()
    assert not (scene.home / "profiles/alice/workspace/never.txt").exists()


def terminal_is_set_back(chat: Terminal) -> None:
    assert chat.attributes() == chat.before
    for on, off in [(b"\x1b[?2004h", b"\x1b[?2004l"), (b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?7l", b"\x1b[?7h")]:
        assert chat.bytes.rfind(on) <= chat.bytes.rfind(off), (on, chat.bytes[-200:])


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_conversation_that_is_ended_while_the_agent_is_still_loading(
    process: Command, home: Path, ending: signal.Signals
) -> None:
    terminal = Terminal("chat", "--user", "alice", forked=False)
    terminal.prompt()
    terminal.signal(ending)
    assert terminal.wait() == -ending
    terminal.close()
    assert "turn" not in process("sessions", "list", "--user", "alice").ok().stdout
    process("checkpoints", "verify", "--user", "alice").ok()


@pytest.mark.parametrize("phase", ["streaming", "in bubblewrap", "without sandbox", "approval", "retry"])
def test_ctrl_c_stops_the_turn_and_twice_leaves(scene: Scene, phase: str) -> None:
    chat = PHASES[phase].begin(scene)
    chat.type("\x03")
    chat.expect("Stopped")
    chat.prompt()
    assert chat.attributes() != chat.before
    time.sleep(DELIBERATE)
    chat.type("\x03")
    assert chat.wait() == 0
    terminal_is_set_back(chat)
    scene.is_whole()


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("phase", ["without sandbox", "streaming"])
def test_ctrl_c_of_somebody_nervous_stops_the_turn_and_does_not_leave(scene: Scene, phase: str, pause: float) -> None:
    chat = PHASES[phase].begin(scene)
    for _ in range(3):
        chat.type("\x03")
        time.sleep(pause)
    chat.expect("Stopped")
    assert not chat.has_ended(0.3)
    chat.prompt()
    assert chat.screen.count("Stopped") == 1
    chat.type("\x04")
    assert chat.wait() == 0
    terminal_is_set_back(chat)
    scene.is_whole()


@pytest.mark.timeout(1800)
def test_ctrl_c_at_random_moments_in_a_large_workspace_stops_no_more_than_the_turn(scene: Scene) -> None:
    many = scene.home / "profiles/alice/workspace/many"
    many.mkdir()
    for number in range(FILES):
        (many / str(number)).write_text(f"{number}\n" * 3)
    prompt = "\n".join(f"write a{number}.txt: {number}" for number in range(8))
    randomness = random.Random(20261128)
    chat = scene.chat(*NO_SANDBOX)
    chat.prompt()
    chat.type(f"\x1b[200~{prompt}\x1b[201~\r")
    began = time.monotonic()
    chat.prompt()
    whole = time.monotonic() - began
    stopped = 0
    for number in range(TRIES):
        if number % 2:
            for path in many.iterdir():
                path.touch()
        chat.type(f"\x1b[200~{prompt}\x1b[201~\r")
        chat.settle(randomness.uniform(0.05, 0.8 * whole))
        chat.type("\x03")
        chat.prompt()
        assert not chat.has_ended(0)
        assert "Error" not in chat.screen
        stopped += "Stopped" in chat.screen
        chat.type("\x0c")
        chat.prompt()
    chat.type("hello\r")
    chat.prompt()
    assert "offline model" in chat.screen
    chat.type("\x04")
    assert chat.wait() == 0
    print(f"{stopped} of {TRIES} tries stopped a turn")
    assert not SOAK or stopped > TRIES // 2, "the keys missed the turn; aim again"
    terminal_is_set_back(chat)
    scene.is_whole()


def test_what_is_pasted_during_a_turn_is_in_the_line_below_it(scene: Scene) -> None:
    chat = scene.streaming()
    chat.type("\x1b[200~one line\nand another\x1b[201~ and an end")
    chat.expect("alice> one line\n       and another and an end")
    scene.gate.set()
    chat.expect("The second.")
    chat.expect("alice> one line\n       and another and an end\nalice · ")
    chat.type("\x03")
    chat.prompt()
    chat.type("\x04")
    assert chat.wait() == 0


def test_what_is_typed_during_a_turn_that_is_stopped_is_in_the_line_and_not_sent(scene: Scene) -> None:
    chat = scene.streaming()
    chat.type("not this")
    chat.expect("alice> not this")
    chat.type("\x03")
    chat.prompt("not this")
    assert "Stopped" in chat.screen
    assert chat.screen.count("The first line.") == 1
    # Somebody nervous does not lose it.
    chat.type("\x03")
    chat.settle()
    chat.prompt("not this")
    time.sleep(DELIBERATE)
    chat.type("\x03")
    chat.prompt()
    chat.type("\x04")
    assert chat.wait() == 0


@pytest.mark.parametrize(
    "fault",
    [FAULT_OF_THE_DISPLAY, FAULT_OF_THE_DRAWING, FAULT_OF_THE_TOOLBAR, FAULT_OF_THE_LINE, FAULT_OF_THE_TURN],
    ids=["display", "drawing", "toolbar", "line", "turn"],
)
def test_a_bug_is_told_in_one_line_and_the_terminal_is_set_back(scene: Scene, fault: str) -> None:
    chat = scene.chat(first=fault)
    if fault != FAULT_OF_THE_TOOLBAR:
        chat.prompt()
        chat.type("hello\r")
    assert chat.wait() == 1
    assert "Error: Unexpected ValueError: no such colour." in chat.screen
    assert "Traceback" not in chat.screen
    terminal_is_set_back(chat)
    scene.is_whole()


def test_settings_that_break_in_mid_conversation_are_told_and_it_goes_on(scene: Scene) -> None:
    settings = Path(os.environ["DEEPCTL_CONFIG"])
    chat = said(scene.chat(), "hello", "of this conversation.")
    chat.prompt()
    settings.parent.mkdir(exist_ok=True)
    settings.write_text("model = [")
    chat.type("/model\r")
    chat.expect("Error: ")
    chat.prompt()
    chat.type("hello\r")
    chat.prompt()
    settings.unlink()
    chat.type("hello\r")
    chat.expect("earlier turns")
    chat.prompt()
    chat.type("\x04")
    assert chat.wait() == 0
    assert "Traceback" not in chat.screen
    terminal_is_set_back(chat)
    scene.is_whole()


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_conversation_that_is_ended_while_it_waits_to_begin(scene: Scene, ending: signal.Signals) -> None:
    lock = os.open(scene.home / "locks" / "bob", os.O_RDWR | os.O_CREAT, 0o600)
    scene.stack.callback(os.close, lock)
    fcntl.flock(lock, fcntl.LOCK_EX)
    chat = scene.chat("--user", "bob", "--wait", "60")
    docker.until(lambda: chat.attributes() != chat.before, 20, "it waits")
    chat.settle(0.3)
    chat.signal(ending)
    assert chat.wait() == (130 if ending == signal.SIGINT else -ending)
    terminal_is_set_back(chat)


def test_who_is_given_the_terminal_keeps_it_after_being_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line-based editor, for one, which Ctrl-Z stops with deepctl, and `fg` has go on."""
    master, slave = pty.openpty()
    with open(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        found = termios.tcgetattr(slave)
        with tty_modes.without_echo():
            hushed = termios.tcgetattr(slave)
            assert hushed != found
            with tty_modes.shell_mode():
                signal.raise_signal(signal.SIGCONT)
                assert termios.tcgetattr(slave) == found
            assert termios.tcgetattr(slave) == hushed
            termios.tcsetattr(slave, termios.TCSANOW, found)
            signal.raise_signal(signal.SIGCONT)
            assert termios.tcgetattr(slave) == hushed
        assert termios.tcgetattr(slave) == found
    os.close(master)
