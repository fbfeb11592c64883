"""Ctrl-C, SIGTERM and the time limit at any moment of a turn: the turn ends, and the next one goes on.

Signals are real ones, which this process sends to itself; where one comes is chosen by what the turn does just then.
At random moments of a turn in a large workspace too, many with DEEPCTL_SOAK=1.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.agent import interruption
from deepctl.agent.chat import Chat, EphemeralChat, TurnRunner
from deepctl.agent.turn_engine import Options
from deepctl.domain import profiles
from deepctl.errors import DeepctlError, Interrupted, Terminated, TimedOut
from deepctl.store import session_catalogue
from deepctl.store.repository import Repository
from tests.support.command import Command

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_TRIES, _FILES = (200, 6_000) if _SOAK else (4, 600)
_PROMPT = "write a.txt: one\nread a.txt\nremember two"


def _press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


class _Scene:
    """A profile's session, and an agent that goes on from turn to turn."""

    def __init__(self, options: Options) -> None:
        self.running = TurnRunner(options, environment=os.environ)
        self._root = layout.root(os.environ)
        self.profile = profiles.create(self._root, "alice")
        self.workspace = Path(self.profile.workspace)
        self._name = session_catalogue.start(self.profile, "main").name

    def many(self, count: int = 200) -> None:
        """So much that the next snapshot says how far it is."""
        directory = self.workspace / "many"
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (directory / str(number)).write_text(f"{number} {time.monotonic_ns()}")

    def turn(
        self, emit: Callable[[dict[str, Any]], None] = lambda event: None, report: Callable[[int], None] | None = None
    ) -> str:
        with (
            profiles.lock(self._root, "alice", command="chat", wait=0),
            Repository.open(profiles.find(self._root, "alice"), report=report) as work,
        ):
            return str(Chat(self.running).turn(work, self._name, _PROMPT, emit).outcome.output)


@contextmanager
def _scene(options: Options | None = None) -> Iterator[_Scene]:
    scene = _Scene(options or Options("offline"))
    with closing(scene.running):
        yield scene


@pytest.mark.parametrize("moment", ["tool_call", "tool_result", "text", "checkpoint"])
@pytest.mark.parametrize("key", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_turn_in_the_middle_of_whatever_it_does(home: Path, moment: str, key: signal.Signals) -> None:
    before = signal.getsignal(key)
    with _scene() as scene:

        def emit(event: dict[str, Any]) -> None:
            if event["type"] == moment:
                _press(key)

        if key == signal.SIGTERM:
            signal.signal(key, signal.SIG_DFL)
        try:
            with pytest.raises(Interrupted if key == signal.SIGINT else Terminated):
                scene.turn(emit)
            assert signal.getsignal(key) == (signal.SIG_DFL if key == signal.SIGTERM else before)
        finally:
            signal.signal(key, before)
        assert "Remembered." in scene.turn(), "the next turn goes on, in the same event loop"


@pytest.mark.parametrize("which", ["before the turn", "before a tool", "after a tool", "at the end"])
def test_ctrl_c_while_a_checkpoint_is_made_ends_the_turn(home: Path, which: str) -> None:
    with _scene() as scene:
        scene.turn()
        wanted = {"before the turn": None, "before a tool": "text", "after a tool": "tool_call", "at the end": "end"}
        at = wanted[which]
        is_armed = at is None
        seen: list[str] = []

        def emit(event: dict[str, Any]) -> None:
            nonlocal is_armed
            seen.append(event["type"])
            # The offline model speaks last, and the tool runs between its call and its result.
            is_moment = event["type"] == at or (at == "end" and "Remembered" in str(event.get("delta")))
            if (at == "text" and event["type"] == "tool_call") or (at != "text" and is_moment):
                is_armed = True
                scene.many()

        def report(count: int) -> None:
            if is_armed:
                pressed.append(count)
                _press()

        pressed: list[int] = []
        scene.many() if at is None else None
        with pytest.raises(Interrupted):
            scene.turn(emit, report)
        assert pressed == [64], "it stops at the next file, and is not made again"
        assert "Remembered." in scene.turn()


def test_the_time_limit_holds_while_a_checkpoint_is_made(home: Path) -> None:
    with _scene(Options("offline", timeout=0.5)) as scene:
        scene.many()

        def report(count: int) -> None:
            time.sleep(0.6)

        with pytest.raises(TimedOut):
            scene.turn(report=report)


def test_a_turn_that_does_not_end_is_left_behind_by_another_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_PRESS", 0.0)
    monkeypatch.setattr(interruption, "_CLOSING_SECONDS", 0.05)

    async def stubborn() -> None:
        for _ in range(2):
            with suppress(asyncio.CancelledError):
                _press()
                await asyncio.sleep(30)

    running = TurnRunner(Options("offline"), environment={})
    with closing(running):
        chat = EphemeralChat(running)
        chat.turn("hello", lambda event: None)
        with pytest.raises(Interrupted):
            running._guarded(stubborn())
        assert "offline model" in chat.turn("hello", lambda event: None).output


def test_work_that_holds_up_the_event_loop_is_broken_off_by_another_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_PRESS", 0.0)

    async def busy() -> None:
        for _ in range(3):
            _press()
            time.sleep(0.01)

    running = TurnRunner(Options("offline"), environment={})
    with closing(running):
        with pytest.raises(Interrupted):
            running._guarded(busy())
        assert "offline model" in EphemeralChat(running).turn("hello", lambda event: None).output


def test_an_application_keeps_the_signal_handlers_it_has() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    running = TurnRunner(Options("offline"), environment={})
    try:
        with closing(running):

            def emit(event: dict[str, Any]) -> None:
                if not seen:
                    _press()

            assert EphemeralChat(running).turn("hello", emit).output
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_a_signal_that_comes_too_late_for_the_turn_still_ends_deepctl() -> None:
    watch = interruption.Interruption()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Terminated), watch.watched():
            _press(signal.SIGTERM)
        with watch.watched():
            _press()
    except DeepctlError:  # pragma: no cover
        pytest.fail("Ctrl-C had nothing left to stop")
    finally:
        signal.signal(signal.SIGTERM, before)


_FORKING = """
import os, sys
import deepctl.agent.chat, deepctl.cli.chat, deepctl.output.stream.display
from deepctl.cli.main import run
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        out = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((nothing, out, out)):
            os.dup2(descriptor, number)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
        sys.argv = ["deepctl", "chat", line.strip().replace(";", chr(10))]
        run()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.timeout(1800)
def test_ctrl_c_at_random_moments_of_a_turn_in_a_large_workspace(process: Command, home: Path, tmp_path: Path) -> None:
    process("chat", "hello").ok()
    many = home / "profiles/default/workspace/many"
    many.mkdir()
    for number in range(_FILES):
        (many / str(number)).write_text(f"{number}\n" * 3)
    prompt = ";".join([*(f"write a{number}.txt: {number}" for number in range(6)), "read a1.txt", "list many"])
    randomness = random.Random(20261128)
    codes: Counter[int] = Counter()
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", _FORKING, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forking:
        assert forking.stdin is not None
        assert forking.stdout is not None

        def begin() -> int:
            print(prompt, file=forking.stdin, flush=True)
            return int(forking.stdout.readline()) if forking.stdout else 0

        begin()
        began = time.monotonic()
        assert int(forking.stdout.readline()) == 0
        whole = time.monotonic() - began
        for number in range(_TRIES):
            for path in (home / "profiles/default/cache").iterdir():
                path.unlink()
            if number % 2:
                for path in many.iterdir():
                    path.touch()
            pid = begin()
            time.sleep(randomness.uniform(0.02, 1.5 * whole))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            code = int(forking.stdout.readline())
            assert code in (0, 130, -signal.SIGINT), out.read_text()
            codes[code] += 1
        forking.stdin.close()
    print(dict(codes))
    if _SOAK:
        assert codes[0] < _TRIES // 2, "the signals missed the turn; aim again"
    process("checkpoints", "verify").ok()
