"""The conversation at a terminal, on a real pseudo-terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.terminal import Terminal


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal("chat", "--user", "alice")
    yield opened
    opened.close()


def test_a_conversation_of_two_turns_and_ctrl_d(process: Command) -> None:
    terminal = Terminal("chat", "--user", "alice", forked=False)
    terminal.prompt()
    terminal.type("remember I like tea\r")
    terminal.expect("Remembered.")
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("1 earlier turn ")
    terminal.prompt()
    assert terminal.leave() == 0
    assert process("memory", "show", "--user", "alice").ok().stdout == "- I like tea\n"
    assert process("sessions", "list", "--user", "alice", "--json").ok().json["sessions"][0]["turns"] == 2


def test_history_is_the_profiles_own_and_private(terminal: Terminal, home: Path) -> None:
    terminal.prompt()
    terminal.type("secret plan\r")
    terminal.expect("offline model, not an LLM")
    terminal.prompt()
    terminal.leave()
    history = home / "profiles" / "alice" / "prompt_history"
    assert "secret plan" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
    again = Terminal("chat", "--user", "alice")
    again.prompt()
    again.type("\x1b[A")
    again.expect("secret plan")
    again.close()
    other = Terminal("chat", "--user", "bob")
    other.prompt(name="bob")
    other.type("\x1b[A\r")
    other.type("hello\r")
    other.expect("0 earlier turns")
    other.close()


def test_ctrl_c_empties_the_line_and_stops_a_turn(process: Command) -> None:
    terminal = Terminal("chat", "--user", "alice", "--sandbox", "none", "--approve", "auto")
    terminal.prompt()
    terminal.type("half a line\x03")
    terminal.prompt()
    terminal.type("run sleep 44.4\r")
    terminal.expect("execute")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.expect("Stopped")
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("1 earlier turn ")
    terminal.prompt()
    assert terminal.leave() == 0


def test_commands_are_asked_for_and_no_is_the_default(home: Path) -> None:
    terminal = Terminal("chat", "--user", "alice", "--sandbox", "none")
    terminal.prompt()
    terminal.type("run touch yes.txt\r")
    terminal.expect("Allow it?")
    terminal.type("y\r")
    terminal.expect("no output")
    terminal.prompt()
    terminal.type("run touch no.txt\r")
    terminal.expect("Allow it?", times=2)
    terminal.type("\r")
    terminal.expect("did not run")
    terminal.prompt()
    terminal.type("run touch stopped.txt\r")
    terminal.expect("Allow it?", times=3)
    terminal.type("\x03")
    terminal.expect("Stopped")
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("3 earlier turns")
    terminal.prompt()
    assert terminal.leave() == 0
    assert (home / "profiles/alice/workspace/yes.txt").exists()
    assert not (home / "profiles/alice/workspace/stopped.txt").exists()
    assert not (home / "profiles/alice/workspace/no.txt").exists()


def test_an_idle_conversation_blocks_nobody_and_sees_what_another_process_did(
    terminal: Terminal, process: Command
) -> None:
    terminal.prompt()
    process("chat", "--user", "alice", "from a script").ok()
    terminal.type("hello\r")
    terminal.expect("1 earlier turn ")
    terminal.prompt()
    assert terminal.leave() == 0


@pytest.mark.parametrize("command", [("wipe", "--yes", "--user", "alice"), ("profiles", "rename", "alice", "carol")])
def test_a_profile_that_is_wiped_or_renamed_meanwhile_is_not_made_anew(
    terminal: Terminal, process: Command, home: Path, command: tuple[str, ...]
) -> None:
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("0 earlier turns")
    terminal.prompt()
    process(*command).ok()
    terminal.type("a secret that is typed too late\r")
    assert terminal.wait() == 3
    assert "Profile 'alice' no longer exists" in terminal.screen
    assert "Traceback" not in terminal.screen
    assert not (home / "profiles" / "alice").exists()
    for path in home.rglob("*"):
        assert path.is_dir() or b"too late" not in path.read_bytes(), path


def test_a_session_that_is_renamed_meanwhile_goes_on_under_its_new_name(terminal: Terminal, process: Command) -> None:
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("0 earlier turns")
    terminal.prompt()
    process("sessions", "rename", "main", "first", "--user", "alice").ok()
    terminal.type("hello\r")
    terminal.expect("1 earlier turn ")
    terminal.prompt()
    terminal.leave()
    found = process("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
    assert [(one["name"], one["turns"]) for one in found] == [("first", 2)]


def test_a_prompt_waits_for_another_process_until_ctrl_c(terminal: Terminal, process: Command) -> None:
    terminal.prompt()
    busy = process.start("chat", "--user", "alice", "--json", "--sandbox", "none", "--approve", "auto", "run sleep 20")
    assert busy.stdout is not None
    # By then its prompt is in the log.
    assert any("tool_call" in str(line) for line in busy.stdout)
    waiting = f" alice is in use by another deepctl (pid {busy.pid}): waiting · "
    terminal.type("hello\r")
    terminal.expect(f"{waiting}0 s · Ctrl-C to stop waiting")
    terminal.type("more")
    terminal.expect("alice> more")
    terminal.expect(f"{waiting}1 s")
    terminal.type("\x03")
    terminal.expect("Stopped; nothing was sent.")
    terminal.expect("alice> hello\n       more\n")
    assert "waiting ·" not in terminal.screen
    terminal.type("\r")
    terminal.expect(waiting)
    busy.kill()
    busy.wait()
    terminal.expect("1 earlier turn ")
    terminal.prompt()
    assert terminal.leave() == 0
    shown = process("sessions", "show", "--user", "alice", "--json").ok().stdout
    assert shown.count("hello\\nmore") == 1


def test_escape_sequences_in_answers_do_not_reach_the_terminal(terminal: Terminal, process: Command) -> None:
    terminal.prompt()
    process("chat", "--user", "alice", stdin=b"write evil.txt: \x1b]0;owned\x07").ok()
    terminal.type("read evil.txt\r")
    terminal.expect("\\x1b]0;owned\\x07")
    terminal.prompt()
    assert b"\x1b]0;" not in terminal.bytes
    assert terminal.leave() == 0
