"""The whole conversation on real pseudo-terminals: what is on the screen, in the middle of things and after them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.domain import profiles
from deepctl.errors import Refused
from tests.support.command import InProcess
from tests.support.loopback import Answer, Broken, Provider, Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal

KINDS = {"chat": "openai-chat:gpt-4o", "responses": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-4-6"}
ANSWER = """# Plan of the work

Some **bold** words, `code` and 日本語.

- one
  - nested

| name | size |
|---|---|
| a.txt | 12 |

```python
def double(x):
    return 2 * x
```

The end. 🎉
"""
ALL_IS_SHOWN = "[y]es,[a]lwaysthisfile,[e]verywriteofthissession,[N]o,[t]ellwhynot:"
NO_SANDBOX = ("--sandbox", "none")

Open = Callable[..., Terminal]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open alice's conversation with these further arguments."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")
    terminals: list[Terminal] = []

    def open_one(*arguments: str, server: Provider | None = None, kind: str = "chat", **how: Any) -> Terminal:
        if server is not None:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
            arguments = ("--model", KINDS[kind], *arguments)
        terminals.append(Terminal("chat", "--user", "alice", *arguments, **how))
        return terminals[-1]

    yield open_one
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What holds an answer back until it is set."""
    event = threading.Event()
    yield event
    event.set()


def _in_pieces(text: str) -> list[str]:
    return [text[start : start + 7] for start in range(0, len(text), 7)]


def _wait_for(event: threading.Event) -> None:
    assert event.wait(20)


def _ends_in_order(terminal: Terminal, code: int = 0) -> None:
    """Ctrl-D ends it, and the shell finds its terminal as it was: settings, cursor, wrapping, pastes."""
    assert terminal.leave() == code
    _is_in_order(terminal)


def _is_in_order(terminal: Terminal) -> None:
    assert terminal.after == terminal.before
    for mode, usual in ((b"?25", b"h"), (b"?7", b"h"), (b"?2004", b"l"), (b"?2026", b"l")):
        switched = re.findall(rb"\x1b\[" + re.escape(mode) + b"([hl])", terminal.bytes)
        assert not switched or switched[-1] == usual, mode


def _errors(terminal: Terminal) -> tuple[int, int]:
    text = terminal.scrolled
    return text.count("Error: "), text.count("Hint: ")


def test_the_prompt_is_there_at_once_and_what_is_typed_while_loading_is_run(opened: Open) -> None:
    terminal = opened(*NO_SANDBOX, columns=80, rows=24, forked=False)
    terminal.expect("alice>")
    terminal.expect("loading…")
    assert terminal.screen.splitlines()[-1] == "alice · session main · offline   loading…"
    terminal.type("hello\r")
    terminal.expect("0 earlier turns")
    terminal.prompt()
    order = ["alice> hello", "is not an LLM", "earlier turns"]
    assert sorted(order, key=terminal.screen.index) == order, "who answers is said before the answer"
    terminal.type("/approve auto\r")
    terminal.prompt()
    terminal.type("and now?\r")
    terminal.expect("1 earlier turn")
    terminal.prompt()
    assert terminal.screen.splitlines()[-1].startswith("alice · session main · offline · no sandbox   ")
    assert terminal.screen.count("is not an LLM") == 1
    assert "loading" not in terminal.scrolled, "the toolbar left something behind"
    _ends_in_order(terminal)


@pytest.mark.parametrize("columns", [80, 200])
def test_an_entry_of_several_lines_and_an_answer_in_markdown_are_on_the_screen_once(opened: Open, columns: int) -> None:
    with provider(Text(_in_pieces(ANSWER)), Text(["Short."])) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=columns, rows=40)
        terminal.expect("approval request.")  # the notice at the start
        terminal.prompt()
        terminal.type("見て 🎉\x1b\rsecond line\r")
        terminal.expect("The end. 🎉")
        terminal.prompt()
        shown = terminal.screen
        said = [message["content"] for message in server.requests[0]["messages"] if message["role"] == "user"]
        assert said[-1].endswith("\n\n見て 🎉\nsecond line")
        assert "alice> 見て 🎉\n       second line\nPlan of the work\n\nSome bold words, code and 日本語.\n" in shown
        assert re.search(r"\n• one\n {1,4}• nested\n\nname +size *\n─+\na\.txt +12\n", shown), shown
        assert "\ndef double(x):\n    return 2 * x\n" in shown
        assert not re.search(r"\*\*|```|\|---|^#", shown, re.MULTILINE)
        for once in ("Plan of the work", "nested", "a.txt", "def double", "The end."):
            assert terminal.scrolled.count(once) == 1, once
        # The line editor has drawn its toolbar under the answer, and the one before is gone.
        toolbar = "alice · session main · gpt-4o · no sandbox   context 0%  11 in 7 out  <$0.01"
        assert shown.splitlines()[-1] == toolbar
        assert terminal.scrolled.count("alice · ") == 1
        assert "\n\n\n" not in shown
        terminal.type("more\r")
        terminal.expect("Short.")
        terminal.prompt()
        assert "22 in 14 out" in terminal.screen.splitlines()[-1]
        _ends_in_order(terminal)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_seen_while_it_is_written_and_what_is_typed_meanwhile_stands_below_it(
    opened: Open, gate: threading.Event, kind: str
) -> None:
    words = [f"word{number} " for number in range(30)]
    with provider(Text([*words[:10], *words[10:]], _after(10, gate))) as server:
        terminal = opened(*NO_SANDBOX, server=server, kind=kind, columns=80, rows=24)
        terminal.prompt()
        terminal.type("go\r")
        terminal.expect("word9")
        terminal.expect("Writing · ")
        assert "word10" not in terminal.screen
        terminal.type("and then")
        terminal.resize(60, 24)
        terminal.expect(" s · Ctrl-C stops\nalice> and then")
        gate.set()
        terminal.expect("word29")
        terminal.expect("alice> and then\nalice · ")
        for word in words:
            assert terminal.scrolled.count(word.strip() + " ") + terminal.scrolled.count(word.strip() + "\n") == 1
        assert "Writing" not in terminal.scrolled
        assert terminal.scrolled.count("and then") == 1
        assert terminal.screen.count("alice · ") == 1
        terminal.type("\x15")
        terminal.prompt()
        _ends_in_order(terminal)


def _after(pieces: int, gate: threading.Event) -> Callable[[], None]:
    """Hold an answer back after so many pieces."""
    passed = iter(range(1, 10_000))

    def held() -> None:
        if next(passed) >= pieces:
            _wait_for(gate)

    return held


def test_thoughts_stand_before_the_answer(opened: Open, gate: threading.Event) -> None:
    with provider(Text(["<think>", "I ponder ", "this matter.", "</think>", "The answer."], _after(3, gate))) as server:
        terminal = opened(*NO_SANDBOX, server=server, rows=24, columns=80)
        terminal.expect("approval request.")  # the notice at the start
        terminal.prompt()
        terminal.type("why\r")
        terminal.expect("I ponder")
        terminal.expect("Thinking · ")
        gate.set()
        terminal.expect("The answer.")
        terminal.prompt()
        assert "alice> why\nI ponder this matter.\n\nThe answer.\n" in terminal.screen
        _ends_in_order(terminal)


def test_ctrl_c_in_mid_answer_keeps_what_came_and_says_so(opened: Open, gate: threading.Event) -> None:
    with provider(Text(["First words. ", "Never."], lambda: _wait_for(gate)), Text(["Here again."])) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=80, rows=24)
        terminal.expect("approval request.")  # the notice at the start
        terminal.prompt()
        terminal.type("go\r")
        terminal.expect("First words.")
        terminal.type("\x03")
        terminal.expect("Stopped")
        terminal.prompt()
        assert "alice> go\nFirst words.\n\nStopped; completed steps are kept.\n\nalice>" in terminal.screen
        # Said once, in place of the toolbar, and gone with the next key.
        assert terminal.screen.count("Ctrl-C again leaves") == 1
        gate.set()
        terminal.type("again\r")
        terminal.expect("Here again.")
        terminal.prompt()
        assert "Ctrl-C again leaves" not in terminal.scrolled
        terminal.type("\x03")
        terminal.expect("Ctrl-C again leaves")
        terminal.type("\x03")
        assert terminal.wait() == 0
        _is_in_order(terminal)


def test_a_failing_provider_is_one_error_a_turn_and_the_conversation_goes_on(opened: Open) -> None:
    quickly = {"retry-after-ms": "5"}
    broken = Status(500, "oops\x1b]0;owned\x07\x1b[2J", quickly)
    answers: list[Answer] = [Status(401, "bad key"), *[broken] * 4, Broken("cut"), Text(["Well again."])]
    with provider(*answers) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=80, rows=50)
        terminal.prompt()
        for number, shown in enumerate(("refused the key (HTTP 401", "HTTP 500: oops", "The connection"), 1):
            terminal.type(f"turn {number}\r")
            terminal.expect(shown)
            terminal.prompt()
            assert _errors(terminal) == (number, number), terminal.scrolled
        assert terminal.screen.count("HTTP 500: oops\\x1b]0;owned\\x07\\x1b[2J: tried again 3 times") == 1
        assert terminal.screen.count("Half an") == 1
        terminal.type("turn 4\r")
        terminal.expect("Well again.")
        terminal.prompt()
        assert _errors(terminal) == (3, 3)
        assert b"owned" in terminal.bytes
        assert b"\x1b]0;" not in terminal.bytes
        assert b"\x1b[2J" not in terminal.bytes
        assert "Traceback" not in terminal.scrolled
        _ends_in_order(terminal)


def test_the_retries_of_a_compaction_leave_one_line(opened: Open) -> None:
    broken = Status(500, "oops", {"retry-after-ms": "5"})
    with provider(Text(["Here."]), *[broken] * 4, Text(["Well again."])) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=80, rows=30)
        terminal.prompt()
        for typed, shown in (("go", "Here."), ("/compact", "Error: "), ("on", "Well again.")):
            terminal.type(f"{typed}\r")
            terminal.expect(shown)
            terminal.prompt()
        assert terminal.screen.count("HTTP 500: oops: tried again") == 1
        assert "HTTP 500: oops: tried again 3 times\nError: " in terminal.screen
        _ends_in_order(terminal)


def test_a_retry_is_shown_while_it_is_waited_for(opened: Open) -> None:
    with provider(Status(429, "slow down", {"retry-after": "2"}), Text(["Here."])) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=80, rows=24)
        terminal.expect("approval request.")  # the notice at the start
        terminal.prompt()
        terminal.type("go\r")
        terminal.expect("slow down: trying again in 2 s (1 of 3)")
        terminal.expect("Here.")
        terminal.prompt()
        assert "alice> go\nHTTP 429: slow down: tried again after 2 s (1 of 3)\n\nHere.\n" in terminal.screen
        _ends_in_order(terminal)


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (20, 30)])
def test_a_change_is_shown_and_one_key_answers(
    opened: Open, home: Path, tmp_path: Path, columns: int, rows: int
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('[permissions]\nwrite = "ask"\n')
    command = "\n".join(f": line {number}" for number in range(40))
    calls = [ToolCalls([("write_file", {"path": "a.txt", "content": text})]) for text in ("one", "two")]
    calls.insert(0, ToolCalls([("execute", {"command": f"{command}\ntouch a.txt"})]))
    done = Text(["Done."])
    with provider(calls[0], done, calls[1], done, calls[2], done, calls[2], done) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=columns, rows=rows)
        file = home / "profiles/alice/workspace/a.txt"

        def asked(number: int) -> None:
            terminal.type(f"turn {number}\r")
            _until(terminal, lambda: "".join(terminal.scrolled.split()).count("Allowit?") >= number, "no question")

        terminal.prompt()
        asked(1)
        if columns == 80:
            assert terminal.line == "[t]ell why not, [s]how all:"
            keys = "Allow it? [y]es, [a]lways this command, [e]very command of this session, [N]o,"
            assert f"\n{keys}\n" in terminal.screen
        else:
            assert (
                "\nAllow it? [y]es,\n[a]lways this\ncommand, [e]very\ncommand of this\nsession, [N]o,\n"
                in terminal.screen
            )
        assert ": line 20" not in terminal.scrolled
        terminal.type("s")
        _until(terminal, lambda: ": line 20" in terminal.scrolled, "not all is shown")
        terminal.type("n")
        terminal.expect("Done.")
        terminal.prompt()
        assert not file.exists()
        asked(3)  # the question was put twice
        terminal.type("y")
        terminal.prompt()
        assert file.read_text() == "one"
        asked(4)
        assert "  -one\n" in terminal.scrolled
        assert "  +two\n" in terminal.scrolled
        # There is no more of it than that.
        assert "".join(terminal.scrolled.rpartition("Allow it?")[2].split()).startswith(ALL_IS_SHOWN)
        terminal.type("a")
        terminal.prompt()
        terminal.type("not asked any more\r")
        _until(terminal, lambda: len(server.requests) == 8, "asked again")
        terminal.prompt()
        assert file.read_text() == "two"
        _ends_in_order(terminal)


def _until(terminal: Terminal, seen: Callable[[], bool], otherwise: str) -> None:
    for _ in range(150):
        if seen():
            return
        terminal._read(0.2)
    raise AssertionError(f"{otherwise}:\n{terminal.scrolled}")


def test_tools_are_a_line_each_and_details_show_all_of_them(opened: Open) -> None:
    commands = ToolCalls([("execute", {"command": "echo out; exit 3"}), ("ls", {"path": "."})])
    with provider(commands, Text(["Done."])) as server:
        terminal = opened(*NO_SANDBOX, "--approve", "auto", server=server, columns=80, rows=50)
        terminal.prompt()
        terminal.type("/details\r")
        terminal.expect("No tool has been called in this chat yet.")
        terminal.prompt()
        terminal.type("go\r")
        terminal.expect("Done.")
        terminal.prompt()
        assert re.search(
            r"\n✗ execute  echo out; exit 3  → exit code 3: out\n✓ ls  \.  → .+\n\nDone\.\n", terminal.screen
        )
        terminal.type("/details 1\r")
        terminal.expect("1. ✗ execute")
        terminal.prompt()
        assert "command: echo out; exit 3" in terminal.screen
        assert "2. " not in terminal.screen
        _ends_in_order(terminal)


def test_a_conversation_that_is_compacted_says_so(opened: Open, deepctl: InProcess) -> None:
    deepctl("config", "set", "context_window", "4000").ok()
    deepctl("config", "set", "compact_at", "50").ok()
    long = Text(["many words " * 300], used=(3500, 200))
    with provider(long, Text(["The gist."]), Text(["Short."], used=(900, 20))) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=80, rows=24)
        terminal.prompt()
        terminal.type("tell me\r")
        terminal.expect("many words")
        terminal.prompt()
        terminal.type("again\r")
        terminal.expect("Short.")
        terminal.prompt()
        assert "The conversation was compacted: " in terminal.screen
        assert not re.search(r"^.{80}$", terminal.screen, re.MULTILINE), "broken in the middle of a word"
        assert re.search(r"context \d\d%", terminal.screen.splitlines()[-1])
        _ends_in_order(terminal)


@pytest.mark.parametrize("kind", ["chat", "anthropic"])
def test_a_model_without_a_key_is_told_above_the_prompt_and_another_one_mends_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    terminal = opened(*NO_SANDBOX, "--model", KINDS[kind], columns=80, rows=24,
                      environment={"OPENAI_API_KEY": "", "ANTHROPIC_API_KEY": ""})  # fmt: skip
    terminal.expect("Hint: /model NAME")
    terminal.prompt()
    assert _errors(terminal) == (1, 1)
    terminal.type("hello\r")
    terminal.expect("Hint: /model NAME", times=2)
    terminal.prompt()
    terminal.type("/model offline\r")
    terminal.expect("The model is now offline.")
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("earlier turn")
    terminal.prompt()
    assert _errors(terminal) == (2, 2)
    assert "offline · no sandbox" in terminal.screen.splitlines()[-1]
    _ends_in_order(terminal)


def test_a_sandbox_that_is_asked_for_and_missing_ends_it_with_the_terminal_in_order(opened: Open) -> None:
    terminal = opened("--sandbox", "bubblewrap", columns=80, rows=24, environment={"DEEPCTL_BWRAP": "/nonexistent"})
    assert terminal.wait() == Refused.exit_code
    assert _errors(terminal)[0] == 1
    assert "Traceback" not in terminal.scrolled
    assert "loading" not in terminal.screen
    _is_in_order(terminal)


def test_a_file_goes_with_the_first_prompt_only(opened: Open, home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hay and needle")
    terminal = opened(*NO_SANDBOX, "--file", str(tmp_path / "notes.txt"), columns=200, rows=40)
    terminal.prompt()
    assert f"With the next prompt: {tmp_path}/notes.txt (14 B)\n" in terminal.screen
    workspace = home / "profiles/alice/workspace"
    terminal.type("read notes.txt\r")
    terminal.expect("hay and needle")
    terminal.prompt()
    (workspace / "notes.txt").unlink()
    terminal.type("list\r")
    terminal.prompt()
    assert not (workspace / "notes.txt").exists()
    _ends_in_order(terminal)


def test_a_file_that_is_named_and_not_there_is_told_about(opened: Open, home: Path) -> None:
    terminal = opened(*NO_SANDBOX, columns=250, rows=40)
    terminal.prompt()
    terminal.type("write here.txt: x\r")
    terminal.expect("here.txt")
    terminal.prompt()
    terminal.type('look at @here.txt, me@there.org, @alice, @nothere.md and @"not here.txt".\r')
    terminal.expect('No such file, so sent unchanged: @nothere.md, @"not here.txt" (/file PATH attaches a file)')
    terminal.expect("earlier turn")
    terminal.prompt()
    _ends_in_order(terminal)


def test_a_file_elsewhere_is_sent_after_a_question_for_its_directory(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = tmp_path / "person"
    for name in ("docs/a.txt", "docs/b.txt", "docs/deep/c.txt", "other/d.txt", ".ssh/id"):
        (user / name).parent.mkdir(parents=True, exist_ok=True)
        (user / name).write_text(f"content of {name}\n")
    monkeypatch.setenv("HOME", str(user))
    question = (
        "Send {} to the model? {} outside the workspace. A yes is valid for this directory until the chat ends. [y/N]"
    )
    with provider(Text(["Fine."]), repeat_last=True) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=150, rows=40)
        terminal.prompt()
        terminal.type("see @~/docs/a.txt and @~/docs/b.txt:1\r")
        terminal.expect(question.format("~/docs/a.txt, ~/docs/b.txt", "They are"))
        terminal.type("y\r")
        terminal.expect("~/docs/b.txt:1 (22 B) is sent. It is outside the workspace.")
        terminal.prompt()
        terminal.type("again @~/docs/a.txt and @~/docs/deep/c.txt\r")
        terminal.expect(question.format("~/docs/deep/c.txt", "It is"))
        terminal.type("\r")
        terminal.expect("~/docs/deep/c.txt is not sent: you declined.")
        terminal.prompt()
        terminal.type("see @~/.ssh/id\r")
        terminal.expect("~/.ssh/id is not sent: ~/.ssh is a directory for keys.")
        terminal.prompt()
        terminal.type("see @~/docs/none.txt\r")
        terminal.expect("~/docs/none.txt is not sent: there is no such file.")
        terminal.prompt()
        terminal.type("draft @~/other/d.txt\r")
        terminal.expect(question.format("~/other/d.txt", "It is"))
        terminal.type("\x03")
        terminal.expect("Stopped; nothing was changed.")
        terminal.prompt("draft @~/other/d.txt")
        terminal.type("\x15")
        terminal.prompt()
        _ends_in_order(terminal)
        sent = [str(body["messages"][-1]) for body in server.requests]
    assert len(sent) == 4
    assert "content of docs/a.txt" in sent[0]
    assert "content of docs/b.txt" in sent[0]
    assert "content of docs/a.txt" in sent[1]
    assert "content of docs/deep" not in "".join(sent)
    assert "content of .ssh" not in "".join(sent)


def test_what_is_typed_while_a_command_works_is_first_shown_at_the_prompt(opened: Open, home: Path) -> None:
    terminal = opened(*NO_SANDBOX, "--wait", "20", columns=100, rows=40)
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("of this conversation.")
    terminal.prompt()
    with profiles.lock(layout.Root(str(home)), "alice", command="another", wait=0):
        terminal.type("/checkpoints save mine\r")
        _until(terminal, lambda: terminal.line == "", "the command has not begun")
        terminal.type("typed meanwhile")
        for _ in range(3):
            terminal._read(0.1)
        assert "typed" not in terminal.screen
    terminal.expect("alice> typed meanwhile")
    assert terminal.scrolled.count("typed meanwhile") == 1
    terminal.type("\x15")
    terminal.prompt()
    _ends_in_order(terminal)


def test_the_toolbar_counts_a_turn_that_failed_and_each_session_for_itself(opened: Open) -> None:
    call = ToolCalls([("ls", {"path": "."})])
    with provider(
        call, Status(401, "bad key"), Text(["Well."], used=(500, 60), cached=400), Text(["Other."])
    ) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=100, rows=40)
        terminal.prompt()
        terminal.type("one\r")
        terminal.expect("bad key")
        terminal.prompt()
        assert "   11 in 7 out" in terminal.screen.splitlines()[-1]
        terminal.type("two\r")
        terminal.expect("Well.")
        terminal.prompt()
        assert "context 0%  511 in 67 out" in terminal.screen.splitlines()[-1]
        terminal.type("/new other\r")
        terminal.prompt()
        assert " in " not in terminal.screen.splitlines()[-1]
        terminal.type("three\r")
        terminal.expect("Other.")
        terminal.prompt()
        assert "  11 in 7 out" in terminal.screen.splitlines()[-1]
        terminal.type("/switch main\r")
        terminal.prompt()
        assert "session main · gpt-4o · no sandbox   context 0%  511 in 67 out" in terminal.screen.splitlines()[-1]
        terminal.type("/status\r")
        terminal.prompt()
        assert "522 sent (77% from the cache), 74 received since the chat started" in terminal.screen
        _ends_in_order(terminal)


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"TERM": "dumb"}, "**bold** words, `code` and 日本語."),
        ({"NO_COLOR": "1"}, "Some bold words, `code` and 日本語."),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"code and \u65e5\u672c\u8a9e."),
    ],
    ids=["dumb", "no colour", "ASCII"],
)
def test_a_terminal_gets_only_what_it_can_show(opened: Open, environment: dict[str, str], shown: str) -> None:
    call = ToolCalls([("execute", {"command": "echo 日本"})])
    with provider(Text(_in_pieces(ANSWER)), call, Text(["Done."])) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=80, rows=50, environment=environment)
        terminal.prompt()
        terminal.type("go\r")
        terminal.expect(shown)
        terminal.prompt()
        terminal.type("next\r")
        terminal.expect("[t]ell why not:")
        terminal.type("y\r" if "TERM" in environment else "y")
        terminal.expect("Done.")
        terminal.prompt()
        assert terminal.scrolled.count("Plan of the work") == 1
        assert "Traceback" not in terminal.scrolled
        if "TERM" in environment:
            assert b"\x1b" not in terminal.bytes
        if "NO_COLOR" in environment:
            assert not [one for one in re.findall(rb"\x1b\[([\d;]*)m", terminal.bytes) if one.strip(b"0;")]
        if "LC_ALL" in environment:
            assert terminal.bytes.isascii()
        _ends_in_order(terminal)


@pytest.mark.parametrize(("columns", "rows"), [(90, 2), (20, 10)])
def test_a_tiny_window_shows_every_line_of_an_answer_once(opened: Open, columns: int, rows: int) -> None:
    numbered = "".join(f"- item {number} 日本\n" for number in range(30))
    with provider(Text(_in_pieces(numbered))) as server:
        terminal = opened(*NO_SANDBOX, server=server, columns=columns, rows=rows)
        terminal.prompt()
        terminal.type("日本 go\r")
        _until(terminal, lambda: "item 29" in terminal.scrolled, "no answer")
        terminal.prompt()
        found = re.findall(r"• item (\d+) 日本\n", terminal.scrolled)
        assert found == [str(number) for number in range(30)], terminal.scrolled
        assert "Writing" not in terminal.scrolled
        _ends_in_order(terminal)


def test_a_window_that_changes_at_the_prompt_keeps_what_is_typed(opened: Open) -> None:
    terminal = opened(*NO_SANDBOX, columns=100, rows=24)
    terminal.prompt()
    terminal.expect("no sandbox")
    terminal.type("hello 日本")
    terminal.expect("alice> hello 日本")
    terminal.resize(60, 12)
    terminal.type("語")
    terminal.expect("alice> hello 日本語")
    terminal.resize(120, 30)
    terminal.type("!")
    terminal.expect("alice> hello 日本語!")
    assert terminal.screen.count("alice · ") == 1
    terminal.type("\r")
    terminal.expect("0 earlier turns")
    terminal.prompt()
    _ends_in_order(terminal)
