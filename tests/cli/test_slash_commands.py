"""The slash commands of a conversation, on real pseudo-terminals."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepctl.cli import options
from deepctl.cli.chat_session import ChatSession, EphemeralChatSession, ProfileChat
from deepctl.cli.chat_setup import ChatSetup
from deepctl.cli.repl import command_names, run_cli_command, slash_commands
from deepctl.cli.repl.completer import ConversationCandidates, matches
from deepctl.cli.repl.state import ReplState
from deepctl.domain.settings import load, without_files
from deepctl.errors import NotFound, ProfileGone, Refused, UsageError
from deepctl.layout import UNNAMED
from deepctl.output.stream.display import TextDisplay
from tests.support.command import Command, InProcess
from tests.support.terminal import Terminal


class Chat:
    """A conversation, and what a person sees of each entry."""

    def __init__(self, *arguments: str, name: str = "alice", columns: int = 120) -> None:
        self.name = name
        self.terminal = Terminal("chat", *(arguments or ("--user", name)), columns=columns)
        self.terminal.prompt(name=name)

    def __call__(self, entry: str) -> str:
        """Enter something, wait for the next prompt, and give what was shown in between."""
        self.terminal.type(f"{entry}\r")
        self.terminal.prompt(name=self.name)
        return self._shown(entry)

    def enter(self, entry: str) -> None:
        """Enter something."""
        self.terminal.type(f"{entry}\r")

    def until(self, entry: str, text: str) -> None:
        """Enter something, and wait for a text, which may have been there before."""
        times = self.terminal.scrolled.count(text)
        self.enter(entry)
        end = time.monotonic() + 30
        while self.terminal.scrolled.count(text) <= times:
            assert time.monotonic() < end, self.terminal.screen
            self.terminal._read(0.2)

    def draft(self, text: str) -> None:
        """Wait until this is in the input line, and empty it."""
        end = time.monotonic() + 30
        while self._line() != f"{self.name}> {text}":
            assert time.monotonic() < end, self.terminal.screen
            self.terminal._read(0.2)
        self.terminal.type("\x15")
        self.terminal.prompt(name=self.name)

    def _line(self) -> str:
        lines = self.terminal.screen.splitlines()
        return next((line for line in reversed(lines) if line.startswith(f"{self.name}>")), "")

    def _shown(self, entry: str) -> str:
        shown = self.terminal.screen.rpartition(f"{self.name}> {entry}")[2]
        return shown.rpartition(f"\n{self.name}>")[0]

    @property
    def toolbar(self) -> str:
        return self.terminal.screen.splitlines()[-1]


@pytest.fixture
def opened() -> Iterator[Callable[..., Chat]]:
    chats: list[Chat] = []

    def open_one(*arguments: str, **how: Any) -> Chat:
        chats.append(Chat(*arguments, **how))
        return chats[-1]

    yield open_one
    for chat in chats:
        chat.terminal.close()


def test_going_back_and_forth_moves_files_and_puts_the_prompt_back(
    opened: Callable[..., Chat], deepctl: InProcess, home: Path
) -> None:
    workspace = home / "profiles/alice/workspace"
    chat = opened()
    assert "There is no turn to undo" in chat("/retry")
    assert "no sessions yet" in chat("/rewind ~1")
    chat("write a.txt: one")
    chat("write b.txt: two")
    assert "turn 2: write b.txt: two" in chat("/diff ~1")
    listed = chat("/checkpoints")
    assert "write b.txt: two" in listed
    assert "main" in listed
    chat("/checkpoints save both")
    assert "both" in chat("/checkpoints --limit 1")
    chat.enter("/rewind ~1")
    chat.draft("write b.txt: two")
    assert not (workspace / "b.txt").exists()
    # It says so in the conversation's own words; the prompt is in the line, and nowhere else.
    assert "To undo this: /undo." in chat.terminal.screen
    assert "undone:" not in chat.terminal.screen
    assert "came back" in chat("/undo")
    assert (workspace / "b.txt").exists()
    # Escape in the list of checkpoints leaves everything as it is.
    chat.until("/rewind", "Enter selects, Esc leaves")
    chat.terminal.expect("1 turn would leave")
    chat.terminal.type("\x1b")
    chat.terminal.prompt()
    assert "No checkpoint was chosen" in chat.terminal.screen
    chat.until("/rewind", "Enter selects, Esc leaves")
    chat.terminal.expect("1 turn would leave")
    chat.terminal.type("j\r")
    chat.draft("write a.txt: one")
    assert not (workspace / "a.txt").exists()
    chat("/undo")
    # Files alone: the conversation stays, so nothing comes back into the line.
    assert "Rewound" in chat("/rewind ~1 --only files")
    assert not (workspace / "b.txt").exists()
    chat("/undo")
    assert "no longer exists" not in chat("/checkpoints verify")
    # What somebody else changed is not lost.
    (workspace / "b.txt").write_text("mine")
    refused = chat("/retry")
    assert "Error:" in refused
    assert "b.txt" in refused
    assert (workspace / "b.txt").read_text() == "mine"
    assert deepctl("sessions", "list", "--user", "alice", "--json").json["sessions"][0]["turns"] == 2
    assert chat.terminal.leave() == 0


def test_undo_asks_before_turns_said_since_go(opened: Callable[..., Chat], deepctl: InProcess, home: Path) -> None:
    def prompts() -> list[str]:
        shown = deepctl("sessions", "show", "--user", "alice").ok().stdout
        return [line.removeprefix("> ") for line in shown.splitlines() if line.startswith("> ")]

    for prompt in ("one", "two"):
        deepctl("chat", "--user", "alice", prompt).ok()
    chat = opened()
    chat.enter("/rewind ~1")
    chat.draft("two")
    # Nothing was said since: neither the undo nor the undo of it is asked about.
    assert "came back" in chat("/undo")
    assert "1 turn (2 messages) left" in chat("/undo")
    for prompt in ("three", "four"):
        chat(prompt)
    question = "Undo the last rewind of session main? 2 turns made since then would leave the session. [y/N]"
    chat.until("/checkpoints undo", question)
    chat.terminal.type("n\r")
    chat.terminal.expect("Declined; nothing was done.")
    chat.terminal.prompt()
    assert prompts() == ["one", "three", "four"]
    assert "2 turns" in chat("/undo --dry-run")
    chat.until("/undo", question)
    chat.terminal.type("y\r")
    chat.terminal.expect("came back")
    chat.terminal.prompt()
    assert prompts() == ["one", "two"]
    chat("/undo")
    chat("five")
    assert "left the conversation" in chat("/undo --force")
    # Files alone were rewound: no turn goes.
    chat("write a.txt: a")
    chat("/rewind ~1 --only files")
    chat("six")
    assert "Error" not in chat("/undo")
    assert "six" in prompts()
    assert chat.terminal.leave() == 0


def test_the_last_turn_is_said_again(opened: Callable[..., Chat], deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "--user", "alice", "remember tea").ok()
    chat = opened()
    # It was said in another conversation.
    again = chat("/retry")
    assert "Remembered." in again
    assert "Sending the prompt again: remember tea" in again
    assert "Rewound" not in again
    assert deepctl("memory", "show", "--user", "alice").stdout == "- tea\n"
    chat("hello")
    assert "1 earlier turn " in chat("/retry")
    with (home / "locks/alice").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        chat.until("hello", "waiting · ")
        chat.terminal.type("\x03")
        chat.draft("hello")
    # The turn that did not even begin is not in the session, and the one before it stays there.
    again = chat("/retry")
    assert "No part of the last turn was stored" in again
    assert "2 earlier turns" in again
    deepctl("chat", "--user", "alice", "from elsewhere").ok()
    assert "another prompt was sent since" in chat("/retry")
    titles = deepctl("sessions", "show", "--user", "alice").stdout
    assert titles.count("> hello") == 2
    assert "> from elsewhere" in titles
    assert chat.terminal.leave() == 0


def test_a_turn_whose_model_failed_is_said_again_by_another_model(
    opened: Callable[..., Chat], deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "retries", "0", "--user", "alice").ok()
    chat = opened("--user", "alice", "--model", "openai-chat:none")
    chat("hello")
    assert "failed" in chat.terminal.screen
    assert "The model is now offline" in chat("/model offline")
    assert "0 earlier turns" in chat("/retry")
    assert deepctl("sessions", "show", "--user", "alice").stdout.count("> hello") == 1
    assert chat.terminal.leave() == 0


def test_sessions_are_begun_switched_forked_renamed_and_deleted(
    opened: Callable[..., Chat], deepctl: InProcess, tmp_path: Path
) -> None:
    chat = opened()
    assert "starts a new session" in chat("/new")
    assert "starts session first" in chat("/new first")
    assert "session first (new)" in chat.toolbar
    assert "has not started yet" in chat("/rewind ~1")
    assert "has not started yet" in chat("/compact")
    chat("hello")
    assert "session first" in chat.toolbar
    assert "already" in chat("/new FIRST")
    assert "continues in session second" in chat("/fork second")
    assert "session second" in chat.toolbar
    chat("only here")
    forked = chat("/fork '~1' third")
    assert "continues in session third" in forked
    assert "The workspace did not change." in forked
    assert "/switch" not in forked
    assert "Did you mean second" in chat("/switch secnd")
    assert "session third" in chat.toolbar
    assert "Session second, 2 turns: hello" in chat("/switch SECOND")
    chat("/new later")
    assert "session later (new) · offline" in chat.toolbar
    assert " in " not in chat.toolbar
    assert "/switch second continues it" in chat("/fork '~1' second --session first")
    chat("/switch second")
    assert "second" in chat("/switch")
    assert "only here" in chat("/sessions show")
    assert "only here" in chat("/sessions search only")
    chat("/sessions rename second renamed")
    assert "session renamed" in chat.toolbar
    assert "2 earlier turns" in chat("hello again")
    file = tmp_path / "talk.md"
    assert str(file) in chat(f"/export {file}")
    assert file.read_text().startswith("# Session renamed")
    file.write_text("mine")
    assert "--force" in chat(f"/export {file}")
    assert file.read_text() == "mine"
    chat(f"/export {tmp_path / 'talk.json'} --redact")
    assert deepctl("sessions", "import", str(tmp_path / "talk.json"), "--user", "bob").code == 0
    chat.until("/sessions delete renamed", "permanently? [y/N]")
    chat.terminal.type("n\r")
    chat.terminal.expect("Declined")
    chat.terminal.prompt()
    assert "session renamed" in chat.toolbar
    assert "your next prompt starts a new session" in chat("/sessions delete renamed --yes")
    assert "0 earlier turns" in chat("anew")
    names = {one["name"] for one in deepctl("sessions", "list", "--user", "alice", "--json").json["sessions"]}
    assert names == {"first", "third", "session-3"}
    assert chat.terminal.leave() == 0


def test_memory_is_shown_noted_and_forgotten_and_ctrl_c_stops_a_question(
    opened: Callable[..., Chat], deepctl: InProcess
) -> None:
    chat = opened()
    chat("hello")
    assert "The memory of profile alice is empty" in chat("/memory")
    chat('/remember Alice\'s "seat" -- is by the window')
    assert deepctl("memory", "show", "--user", "alice").stdout == 'Alice\'s "seat" -- is by the window\n'
    assert "no TEXT to remember" in chat("/remember -")
    assert "window" in chat("/memory search window")
    chat("/memory add 'another line'")
    chat.until("/memory forget window", "[y/N]")
    chat.terminal.type("\x03")
    chat.terminal.expect("Ctrl-C again leaves")
    chat.terminal.prompt()
    assert "Stopped; nothing was changed." in chat.terminal.screen
    assert "completed steps are kept" not in chat.terminal.screen
    assert "window" in deepctl("memory", "show", "--user", "alice").stdout
    chat.until("/memory forget window", "[y/N]")
    chat.terminal.type("y\r")
    chat.terminal.prompt()
    assert deepctl("memory", "show", "--user", "alice").stdout == "another line\n"
    assert chat.terminal.leave() == 0


def test_the_network_changes_for_this_conversation(opened: Callable[..., Chat]) -> None:
    chat = opened("--user", "alice", "--sandbox", "bubblewrap")
    assert "in bubblewrap, without the network. Selected: off (the default)." in " ".join(chat("/network").split())
    changed = " ".join(chat("/network on").split())
    assert "Commands run in bubblewrap, with the network." in changed
    assert "deepctl config set network on --user alice" in changed
    assert "bubblewrap with network" in chat.terminal.screen
    assert "without the network" in " ".join(chat("/network off").split())
    assert "bubblewrap with network" not in chat.terminal.screen.splitlines()[-1]
    assert chat.terminal.leave() == 0


def test_model_approval_and_sandbox_change_for_this_conversation(
    opened: Callable[..., Chat], deepctl: InProcess, home: Path
) -> None:
    chat = opened("--user", "alice", "--sandbox", "none")
    assert "Selected: none (chosen for this conversation)" in " ".join(chat("/sandbox").split())
    assert "ask (the default)" in chat("/approve")
    assert "are refused. Everything else runs as before. /approve ask turns approval requests on." in " ".join(
        chat("/approve never").split()
    )
    assert "Thinking is as the model does by default." in chat("/thinking")
    changed = " ".join(chat("/thinking HIGH").split())
    assert "config set model_settings.thinking high --user alice" in changed
    assert "Not sent to offline, which does not support it: model_settings.thinking" in changed
    assert "Thinking is high (chosen for this conversation)." in chat("/thinking")
    assert "off, minimal, low, medium, high, xhigh, max, on" in " ".join(chat("/thinking huge").split())
    assert "Not sent to offline" in " ".join(chat("run touch never.txt").split())
    assert "run at once" in chat("/approve AUTO")
    chat("run touch auto.txt")
    workspace = home / "profiles/alice/workspace"
    assert [entry.name for entry in workspace.glob("*.txt")] == ["auto.txt"]
    chat("hello")
    assert "touch auto.txt" in chat("/details")
    assert "there is no number 7" in chat("/details 7")
    assert "There is no model 'nonsense'" in chat("/model nonsense")
    assert "Did you mean openai:gpt-4o?" in chat("/model gpt-4o")
    assert "offline" in chat.toolbar
    assert "3 earlier turns" in chat("hello")
    assert "Server" not in chat("/status")
    chat("/model ollama:tiny")
    assert "http://127.0.0.1:11434" in chat("/status")
    assert "deepctl config set model offline --user alice" in chat("/model offline")
    for command in ("/model", "/models"):
        assert "The model of this chat is offline (chosen for this conversation)" in chat(command)
    deepctl("config", "set", "compact_at", "50", "--user", "alice").ok()
    status = chat("/status")
    for text in (
        "Profile",
        "profiles/alice/workspace",
        "main, 4 turns",
        "offline (chosen for this conversation)",
        "auto (chosen",
        "your rights",
        "high (chosen",
        "full (the default)",
    ):
        assert text in status
    assert "compacted" in chat("/compact the seat")
    assert "1 earlier turn " in chat("how many")
    # The summary is no prompt.
    assert "Sending the prompt again: how many" in chat("/retry")
    assert chat.terminal.leave() == 0


def test_a_prompt_is_written_in_an_editor(
    opened: Callable[..., Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf " edited" >> "$1"\n')
    editor.chmod(0o700)
    monkeypatch.setenv("EDITOR", str(editor))
    chat = opened()
    chat("write a.txt: one")
    chat.enter("/edit some  'text")
    chat.draft("some  'text edited")
    chat.enter("/rewind ~1")
    chat.draft("write a.txt: one")
    chat.enter("/edit")
    chat.draft("write a.txt: one edited")
    editor.write_text("#!/bin/sh\nexit 3\n")
    chat.until("/edit kept", "The editor failed (exit status 3)")
    chat.draft("kept")


def test_reading_works_while_another_process_has_the_lock(opened: Callable[..., Chat], home: Path) -> None:
    chat = opened()
    chat("remember tea")
    with (home / "locks/alice").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write('{"pid": 1, "command": "chat", "since": "2026-01-01T00:00:00Z"}\n')
        lock.flush()
        assert "remember tea" in chat("/checkpoints")
        assert "remember tea" in chat("/sessions")
        assert "tea" in chat("/memory")
        assert "Error" not in chat("/diff --stat")
        assert "main, 1 turn" in chat("/status")
        for command in ("/undo", "/rewind ~1", "/fork other", "/remember no", "/compact", "/checkpoints save"):
            assert "Another process is working" in chat(command), command
        told = " ".join(chat("/compact").split())
        assert "`deepctl chat`" in told, "what the other process is called, in a shell's words"
        assert "the Up key brings the line back" in told
    assert chat.terminal.leave() == 0


def test_what_is_wrong_is_said_and_the_conversation_goes_on(opened: Callable[..., Chat]) -> None:
    chat = opened()
    chat("hello")
    for entry, said in {
        "/rewnd": "Did you mean /rewind?",
        "/re": "There is no command /re.",
        "/zzzzzz": "/help lists the commands.",
        "/": "/ is not a command. Hint: /help lists the commands",
        "/!": "/! is not a command.",
        "/!ls": "!COMMAND runs a shell command in the workspace",
        "/..": "/.. is not a command.",
        "/help zzzzzz": "There is no command /zzzzzz.",
        "/help a b": "takes one command",
        "/rewind nothere": "There is no checkpoint 'nothere'",
        "/rewind ~1 --only all": "Hint:",
        "/rewind ~1 ~2": "fewer arguments",
        "/rewind ~1 --user bob": "is a chat of profile 'alice'",
        "/memory forget -yu bob SECRET": "is a chat of profile 'alice'",
        "/sessions export main -o -- --user bob": "is a chat of profile 'alice'",
        "/rewind 'x": "A quote is not closed",
        "/checkpoints lst": "Error: /checkpoints has no command 'lst'. Hint: Did you mean 'list'? /checkpoints --help",
        "/checkpoints show": "REF is missing",
        "/undo --nothere": "/undo has no option --nothere. Hint: /undo --help shows",
        "/retry now": "takes no argument",
        "/diff a b c": "fewer arguments",
        "/sessions delete": "NAME is missing",
        "/new a b": "takes one name",
        "/new ..": "Error:",
        "/switch a/b": "Error:",
        "/switch a b": "takes one name",
        "/fork": "is missing",
        "/fork .. ..": "Error:",
        "/export": "needs a FILE",
        "/export a b": "takes one FILE",
        "/memory show nothere.md": "Error:",
        "/memory edit --agent": "Error:",
        "/remember": "no TEXT to remember",
        "/model a b": "takes one word",
        "/models --nothere": "has no option --nothere",
        "/approve maybe": "ask, auto, never",
        "/sandbox moon": "auto, bubblewrap, docker, none",
        "/network maybe": "off, on",
        "/status x": "takes no argument",
        "/details x": "is not the number",
        "/details 99999999999999999999": "is not the number",
        "/quit now": "takes no argument",
    }.items():
        assert said.lower() in " ".join(chat(entry).lower().split()), entry
    assert "1 earlier turn " in chat("/etc/passwd is a file")
    for helped in (chat("/HELP Rewind"), chat("/rewind --help")):
        assert "[REF]" in helped
        assert "--only" in helped
        assert "Example: /rewind ~1 --dry-run" in helped
        assert "deepctl" not in helped
        assert "  --wait" not in helped
    assert "/export FILE" in chat("/export --help")
    assert "Undo the last turn" in chat("/retry -h")
    chat.terminal.type("/Exit\r")
    assert chat.terminal.wait() == 0


@pytest.mark.parametrize("columns", [80, 200])
def test_wide_characters_fit_the_window(opened: Callable[..., Chat], columns: int) -> None:
    chat = opened(columns=columns)
    chat("旅行の計画を立てて" * 6)
    for command in ("/sessions", "/checkpoints", "/status", "/switch main"):
        shown = chat(command)
        assert "旅行の計画" in shown or command == "/status", command
    *overview, empty, turn = chat("/help").strip("\n").splitlines()
    assert (empty, turn) == ("", "A turn is one prompt and all work to answer it.")
    assert all(line[:1] == " " or line in ("Going back", "Sessions", "Memory", "The agent", "Here", "More")
               for line in overview)  # fmt: skip
    # None of them wraps.
    assert sum(line.startswith("  /") for line in overview) == len(slash_commands.ALL)
    assert len(overview) == len(slash_commands.ALL) + 6 + 7


def test_in_a_narrow_window_the_status_is_broken_between_words(opened: Callable[..., Chat]) -> None:
    shown = opened(columns=40)("/status")
    assert "\nTokens       0 sent, 0 received since\n             the chat started\n" in f"{shown}\n", shown


def test_in_a_narrow_window_the_last_sentence_of_the_help_is_broken_between_words(opened: Callable[..., Chat]) -> None:
    shown = opened(columns=40)("/help all").rstrip().splitlines()
    assert shown[-2:] == ["A turn is one prompt and all work to", "answer it."]


def test_an_ephemeral_conversation_has_what_makes_sense_there(opened: Callable[..., Chat], home: Path) -> None:
    chat = opened("--ephemeral", name="ephemeral")
    chat("hello")
    helped = chat("/help")
    assert "/rewind" not in helped
    assert "/model" in helped
    for command in ("/rewind", "/memory", "/sessions", "/retry", "/export x.md"):
        assert "needs stored state, and an --ephemeral chat stores nothing" in chat(command)
    assert "no directory for commands" in chat("/sandbox none")
    assert "There is no shell here" in chat("/sandbox")
    assert "no directory for commands" in chat("/network on")
    assert "The model is now offline." in chat("/model offline")
    assert "run at once" in chat("/approve auto")
    assert "1 earlier turn " in chat("hello")
    assert "compacted" in chat("/compact")
    assert "this chat is not stored" in chat("/status")
    assert chat.terminal.leave() == 0
    assert not home.exists()


def test_files_are_attached_listed_taken_back_and_sent_once(
    opened: Callable[..., Chat], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = tmp_path / "documents"
    (documents / "my dir").mkdir(parents=True)
    for name in ("my dir/f.txt", "a.txt", "b.txt", "c.txt"):
        (documents / name).write_text(f"in {name}\n")
    monkeypatch.setenv("HOME", str(documents))
    monkeypatch.chdir(documents)
    chat = opened()
    assert "No file is attached. /file PATH attaches one to the next prompt." in chat("/file")
    assert r"With the next prompt: ~/my dir/f.txt (16 B), ~/a.txt (9 B)" in chat(r"/file my\ dir/f.txt ~/a.txt")
    assert "2 files attached" in chat.toolbar
    listed = "With the next prompt: ~/my dir/f.txt (16 B), ~/a.txt (9 B), ~/b.txt (9 B)"
    assert listed in chat(f'/file "b.txt" {documents}/a.txt')
    shown = chat("/file c.txt none.txt")
    assert f"There is no file '{documents}/none.txt'." in shown
    assert "/file lists the attached files; /file --remove PATH takes one back." in shown
    assert "is a directory." in chat("/file .")
    assert listed in chat("/file")
    assert "'c.txt' is not attached." in chat("/file --remove a.txt c.txt")
    assert "With the next prompt: ~/my dir/f.txt (16 B), ~/b.txt (9 B)" in chat("/file --remove a.txt")
    assert "With the next prompt: ~/my dir/f.txt (16 B), ~/b.txt (9 B)" in chat("/file my dir/f.txt")
    assert "/file has no option '--drop' here." in chat("/file --drop a.txt")
    assert "Attached" in chat("/status")
    chat.terminal.type("/file --remove \t")
    chat.terminal.expect("b.txt", times=2)
    chat.terminal.type("\x15")
    chat.terminal.prompt()
    (documents / "b.txt").rename(documents / "moved")
    assert "There is no file" in chat("hello")
    assert "~/b.txt (missing)" in chat("/file")
    assert "With the next prompt: ~/my dir/f.txt (16 B)" in chat("/file --remove b.txt")
    chat("hello")
    assert (home / "profiles/alice/workspace/f.txt").read_text() == "in my dir/f.txt\n"
    assert "attached" not in chat.toolbar
    assert "No file is attached." in chat("/file")
    chat("/file a.txt c.txt")
    assert "No file is attached." in chat("/file --remove")
    monkeypatch.chdir("/")


def test_tab_offers_what_there_is(opened: Callable[..., Chat]) -> None:
    chat = opened()
    chat("write a.txt: one")
    chat("hello")
    chat.terminal.type("/rewind ~\t")
    chat.terminal.expect("before write a.txt: one")


def _state(chat: ChatSession, session: str | None = None, new: str | None = None) -> ReplState:
    return ReplState(chat, slash_commands.catalogue(chat), session, new)


def _candidates(chat: ChatSession, session: str | None = None, new: str | None = None) -> ConversationCandidates:
    return ConversationCandidates(_state(chat, session, new))


def _chat(name: str = "alice") -> ProfileChat:
    return ProfileChat(ChatSetup(name, load(os.environ)), options.root(), 0.0, TextDisplay())


def _texts(text: str, candidates: ConversationCandidates) -> list[tuple[str, str]]:
    return [(match.text, match.description) for match in matches(text, candidates)]


def test_offers_are_checkpoints_labels_sessions_models_and_files(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "--user", "alice", "write notes.txt: one").ok()
    deepctl("checkpoints", "save", "good", "--user", "alice").ok()
    deepctl("chat", "--user", "alice", "second").ok()
    deepctl("chat", "--user", "alice", "third", "--new", "other").ok()
    candidates = _candidates(_chat(), session="main")
    assert _texts("/rewind ~", candidates) == [
        ("~1", "just now, before second"),
        ("~2", "just now, before write notes.txt: one"),
    ]
    assert [text for text, _ in _texts("/rewind g", candidates)] == ["good"]
    ids = [one["id"][:8] for one in deepctl("checkpoints", "list", "--session", "main", "--user", "alice", "--json")
           .json["checkpoints"]]  # fmt: skip
    assert [text for text, _ in _texts("/rewind ", candidates)] == ["~1", "~2", "good", *ids]
    assert [text for text, _ in _texts("/switch ", candidates)] == ["other", "main"]
    assert "third" in _texts("/switch oth", candidates)[0][1]
    assert ("offline", "the model in force") in _texts("/model off", candidates)
    assert [text for text, _ in _texts("look at @no", candidates)] == ["@notes.txt"]
    assert [text for text, _ in _texts("/approve a", candidates)] == ["ask", "auto"]
    assert [text for text, _ in _texts("/chec", candidates)] == ["/checkpoints "]
    new = _candidates(_chat(), session="main", new=UNNAMED)
    assert _texts("/rewind ", new) == []


def test_files_that_are_offered_are_those_of_the_directory_of_the_next_turn(
    deepctl: InProcess, home: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "code.py").write_text("")
    deepctl("chat", "--user", "alice", "write notes.txt: one").ok()
    deepctl("chat", "--user", "alice", "-C", str(project), "--session", "work", "hello").ok()
    for session, names in (("work", ["@code.py"]), ("main", ["@notes.txt"]), (None, ["@notes.txt"])):
        assert [text for text, _ in _texts("see @", _candidates(_chat(), session))] == names
    assert [text for text, _ in _texts("see @/profile/n", _candidates(_chat(), "work"))] == ["@/profile/notes.txt"]
    assert _state(_chat(), "work").project() == str(project)
    assert _state(_chat(), "work", new=UNNAMED).project() is None


def test_the_model_in_force_is_the_one_that_the_conversation_was_switched_to(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    talk = _chat()
    candidates = _candidates(talk)
    assert _texts("/model ", candidates)[0] == ("offline", "the model in force")
    talk.setup = talk.setup.changed(talk.root, model="openai-chat:tiny")
    talk._names = None
    assert _texts("/model ", candidates)[:2] == [
        ("openai-chat:tiny", "the model in force"),
        ("offline", "follows a few commands; needs neither network nor key"),
    ]


def test_nothing_is_offered_of_a_profile_that_is_gone_or_of_nobody(home: Path) -> None:
    candidates = _candidates(_chat("nobody"))
    for text in ("/switch ", "/model ", "@"):
        with pytest.raises(ProfileGone):
            _texts(text, candidates)
    nobody = _candidates(EphemeralChatSession(ChatSetup("ephemeral", without_files(os.environ)), TextDisplay()))
    assert _texts("/rewind ", nobody) == _texts("/switch ", nobody) == _texts("@", nobody) == []
    assert "offline" in [text for text, _ in _texts("/model ", nobody)]
    assert not home.exists()


def test_a_profile_that_is_wiped_meanwhile_ends_the_conversation(
    opened: Callable[..., Chat], deepctl: InProcess, home: Path
) -> None:
    chat = opened()
    chat("hello")
    deepctl("wipe", "--yes", "--user", "alice").ok()
    chat.enter("/status")
    assert chat.terminal.wait() == 3
    assert "no longer exists" in chat.terminal.screen
    assert not (home / "profiles/alice").exists()


def test_words_are_split_as_in_a_shell() -> None:
    assert run_cli_command.split("~2 --only 'files and' a\\ b # c") == ["~2", "--only", "files and", "a b", "#", "c"]
    for text in ("'", '"a', "a\\"):
        with pytest.raises(UsageError):
            run_cli_command.split(text)


@pytest.mark.parametrize(
    ("words", "files", "given"),
    [
        (["a.md"], ["a.md"], []),
        (["--redact", "a.md", "-f", "json"], ["a.md"], ["--redact", "-f", "json"]),
        (["-o", "x", "--format=json"], [], ["-o", "x", "--format=json"]),
        (["--", "-x"], ["-x"], []),
        (["-f"], [], ["-f"]),
    ],
)
def test_options_of_an_export_are_told_from_its_file(words: list[str], files: list[str], given: list[str]) -> None:
    assert slash_commands._separated(words) == (files, given)


def test_what_a_shell_command_is_given_is_told_from_what_it_is_not() -> None:
    assert run_cli_command.parse("checkpoints", "fork", "name").get("name") is None
    both = run_cli_command.parse("checkpoints", "fork", "--session", "s", "~1", "name")
    assert (both["ref"], both["name"], both["session"]) == ("~1", "name", "s")
    assert run_cli_command.parse("checkpoints", "rewind", "--nothere").get("ref") is None


def test_profile_session_and_wait_are_filled_in_where_a_command_takes_them(deepctl: InProcess) -> None:
    deepctl("chat", "--user", "alice", "hello").ok()
    talk = ProfileChat(ChatSetup("alice", load(os.environ)), options.root(), 2.5, TextDisplay())
    state = _state(talk, session="MAIN")

    def filled(*words: str) -> list[str]:
        command, count = command_names.resolve(words)
        return run_cli_command._filled(state, talk.paths(), words[:count], command, words[count:])

    user, wait, session = ["--user", "alice"], ["--wait", "2.5"], ["--session", "main"]
    assert filled("checkpoints", "undo") == [*user, *wait, *session]
    assert filled("checkpoints", "list", "--limit", "3") == [*user, *session]
    assert filled("checkpoints", "diff", "-s", "other", "~1") == user
    assert filled("checkpoints", "import", "somewhere") == [*user, *wait]
    assert filled("sessions", "show", "--full") == [*user, "main"]
    assert filled("sessions", "show", "other") == user
    assert filled("sessions", "search", "word") == user
    assert filled("memory", "add", "--", "--session") == [*user, *wait]
    assert filled("checkpoints", "nothere") == []


def test_without_a_terminal_that_can_draw_a_rewind_needs_a_reference(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", "--user", "alice", "hello").ok()
    monkeypatch.setenv("TERM", "dumb")
    with pytest.raises(UsageError, match="needs a REF"):
        slash_commands.run(_state(_chat(), session="main"), "/rewind", "--force")


def test_every_command_has_a_line_of_help_and_a_name_of_its_own() -> None:
    names = [command.name for command in slash_commands.ALL]
    assert len(set(names)) == len(names)
    for command in slash_commands.ALL:
        assert command.help.endswith("."), command
        assert len(f"{command.name} {command.usage}") <= 23, command
        assert len(command.help) <= 53, command
    for name in ("/exit", "/?"):
        with pytest.raises((NotFound, UsageError, Refused)):
            slash_commands.run(_state(_chat()), f"{name}x", "")


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("`deepctl checkpoints undo --user alice` takes this back.", "/undo takes this back."),
        ("Try `deepctl checkpoints rewind '~1' --dry-run`.", "Try /rewind ~1 --dry-run."),
        ("`deepctl sessions list --user Alice` shows them.", "/sessions list shows them."),
        ("`deepctl chat --user alice --session a` continues it.", "/switch a continues it."),
        ("`deepctl chat --new` begins one; `--session b` goes on.", "/new begins one; /switch b goes on."),
        ("None yet. `deepctl chat --user alice` starts one.", "None yet. Your next prompt starts one."),
        ("It is there; `deepctl chat` begins one.", "It is there; your next prompt begins one."),
        ("`deepctl checkpoints label 3fa2 ''` takes it away.", "/checkpoints label 3fa2 '' takes it away."),
        ("`deepctl sessions export NAME --output FILE`", "/sessions export NAME --output FILE"),
        ("`deepctl memory search 'a b'`", "/memory search 'a b'"),
        ("  deepctl checkpoints rewind 3fa2 --exact --user alice --session a", "  /rewind 3fa2 --exact --session a"),
        ("deepctl chat hello there is no command", "deepctl chat hello there is no command"),
        *((same, same) for same in (
            "`deepctl chat --user bob` uses it.", "`deepctl profiles list` lists the profiles.",
            "`deepctl config set model provider:name`", "`deepctl` is it", "`deepctl checkpoints show 'x`",
            "`deepctl checkpoints undo --user`", "`--exact` needs it", "So deepctl doctor", "`deepctl chat a b`",
        )),
    ],
)  # fmt: skip
def test_shell_commands_are_told_by_their_names_in_the_conversation(text: str, here: str) -> None:
    assert slash_commands.catalogue(_chat()).names.reword(text) == here


def test_every_shell_command_that_is_told_is_one_that_can_be_typed() -> None:
    for words, slash in slash_commands.catalogue(_chat()).names.commands.items():
        assert command_names.resolve(words)[1] == len(words), slash
        assert slash in [one.name for one in slash_commands.ALL]


def test_a_command_of_another_profile_is_refused_in_every_spelling(deepctl: InProcess, process: Command) -> None:
    deepctl("chat", "--user", "alice", "hello").ok()
    deepctl("chat", "--user", "bob", "hello").ok()
    state = _state(_chat(), session="main")
    for words in (["--user", "bob"], ["--user=bob"], ["-u", "bob"], ["-ubob"], ["--profile", "bob"]):
        with pytest.raises(UsageError, match="is a chat of profile 'alice'"):
            run_cli_command.run(state, "checkpoints", "list", *words)
    assert os.listdir() == []
