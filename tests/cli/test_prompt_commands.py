"""Prompt commands in one-shot and interactive chats: what is sent, what is stored, and whose command it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_slash_commands import Chat
from tests.support.command import InProcess


@pytest.fixture
def opened() -> Iterator[Callable[..., Chat]]:
    chats: list[Chat] = []

    def open_one(*arguments: str, **how: Any) -> Chat:
        chats.append(Chat(*arguments, **how))
        return chats[-1]

    yield open_one
    for chat in chats:
        chat.terminal.close()


def _write(directory: Path, name: str, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.md").write_text(text)


def test_a_script_sends_the_text_and_the_session_shows_what_was_typed(deepctl: InProcess, home: Path) -> None:
    _write(home / "commands", "greet", "write $1.txt: $ARGUMENTS")
    sent = deepctl("chat", "--user", "alice", "/greet bob 'from here'", stdin=b"read x.txt\n").ok()
    assert "Sending the text of <root>/commands/greet.md." in sent.stderr
    assert (home / "profiles/alice/workspace/bob.txt").read_text() == "bob 'from here'"
    shown = deepctl("sessions", "show", "--user", "alice").ok().stdout
    assert "/greet bob 'from here'" in shown
    assert "write bob.txt: bob 'from here'" in shown
    assert "read x.txt" in shown
    (session,) = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
    assert session["title"] == "/greet bob 'from here'"
    # The answer of the offline model to the piped line would be a failure to read x.txt.
    events = deepctl("chat", "--user", "alice", "--json", "/root:greet eve").ok().events
    assert [event["name"] for event in events if event["type"] == "tool_call"] == ["write_file"]


def test_the_profile_comes_before_the_root_and_a_project_counts_when_it_is_trusted(
    deepctl: InProcess, home: Path, tmp_path: Path
) -> None:
    project = tmp_path / "shop"
    for directory, source in ((home / "commands", "root"), (project / ".deepctl/commands", "project")):
        _write(directory, "note", f"write note.txt: {source}")
        _write(directory, "rewind", f"write rewind.txt: {source}")
    note = project / "note.txt"
    deepctl("chat", "--user", "alice", "-C", str(project), "/note").ok()
    assert note.read_text() == "root"
    # An unknown command is a prompt, as it was before there were such commands.
    deepctl("chat", "-u", "alice", "-C", str(project), "/project:note").ok()
    assert note.read_text() == "root"
    deepctl("projects", "trust", str(project), "--user", "alice", "--yes").ok()
    deepctl("chat", "--user", "alice", "-C", str(project), "/project:note").ok()
    assert note.read_text() == "project"
    deepctl("chat", "--user", "alice", "-C", str(project), "/note").ok()
    assert note.read_text() == "root"
    _write(home / "profiles/alice/commands", "note", "write note.txt: profile")
    deepctl("chat", "--user", "alice", "-C", str(project), "/note").ok()
    assert note.read_text() == "profile"
    failed = deepctl("chat", "--user", "alice", "-C", str(project), "/rewind ~1")
    assert (failed.code, (project / "rewind.txt").exists()) == (2, False)
    deepctl("chat", "--user", "alice", "-C", str(project), "/project:rewind").ok()
    assert (project / "rewind.txt").read_text() == "project"


def test_a_command_of_the_interactive_chat_cannot_be_a_prompt(deepctl: InProcess, home: Path) -> None:
    failed = deepctl("chat", "--user", "alice", "--json", "/undo --force")
    assert failed.code == 2
    error = failed.events[-1]
    assert error["message"] == "/undo is a command of the interactive chat, so it cannot be a prompt."
    assert error["hint"] == "In a shell: `deepctl checkpoints undo`"
    assert not (home / "profiles/alice").exists()
    # Neither is one of them, and text from stdin is never a command.
    for prompt in ("/no_think hello", "/etc/passwd is odd", "//"):
        deepctl("chat", "--user", "alice", prompt).ok()
    deepctl("chat", "--user", "alice", stdin=b"/undo").ok()


def test_in_a_conversation_a_new_file_is_a_command_at_once_and_rewinds_to_the_typed_line(
    opened: Callable[..., Chat], home: Path
) -> None:
    chat = opened()
    assert "There is no command /note." in chat("/note")
    _write(home / "profiles/alice/commands", "note", "---\ndescription: Take a note\n---\nwrite note.txt: $ARGUMENTS")
    _write(home / "profiles/alice/commands", "bad name", "x")
    assert "bad name.md is not used as a command" in chat("/bad")
    helped = chat("/help")
    assert "bad name.md" not in helped
    assert "Commands of this profile\n  /note [TEXT]" in helped
    assert "Take a note" in helped
    assert "Take a note" in chat("/help note")
    assert "Did you mean /note?" in chat("/noet")
    chat("/note one two")
    note = home / "profiles/alice/workspace/note.txt"
    assert note.read_text() == "one two"
    _write(home / "profiles/alice/commands", "note", "write other.txt: $ARGUMENTS")
    chat("/retry")
    assert note.read_text() == "one two"
    chat.enter("/rewind ~1")
    chat.draft("/note one two")
    assert not note.exists()
