"""`deepctl chat --ephemeral`: a conversation that reads nothing and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess
from tests.support.loopback import Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal

EVERYTHING = "remember tea\nwrite notes/a.txt: hello\nread notes/a.txt\nplan Trip: pack; go\nrecall tea\nlist"


@pytest.fixture
def untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing below the test's directory is made, changed or removed; temporary files go there as well."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    before = _listing(tmp_path)
    yield
    assert _listing(tmp_path) == before


def _listing(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """Every file and directory, with what changes when it is touched."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode)
    return found


@pytest.fixture
def broken(home: Path, tmp_path: Path) -> None:
    """Settings that are not TOML, and a profile that nobody can read."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("model = [")
    for name in ("alice", "default", "ephemeral"):
        profile = home / "profiles" / name
        profile.mkdir(parents=True)
        (profile / "profile.toml").write_text("model = [")
        (profile / "sessions").write_text("not a directory")
        (profile / "workspace").write_text("not a directory")


def test_nothing_is_written_and_the_answer_is_there(process: Command, untouched: None) -> None:
    result = process("chat", "--ephemeral", EVERYTHING).ok()
    assert "Remembered." in result.stdout
    assert "1\thello" in result.stdout
    assert "- tea" in result.stdout
    assert "notes/" in result.stdout
    assert "plans/" in result.stdout


def test_nothing_is_written_to_a_profile_that_is_there(
    deepctl: InProcess, process: Command, home: Path, tmp_path: Path
) -> None:
    deepctl("chat", "--user", "alice", "remember coffee\nwrite a.txt: alice").ok()
    before = _listing(tmp_path)
    result = process("chat", "--ephemeral", "--user", "alice", "recall coffee\nread a.txt\nremember tea").ok()
    assert "- coffee" not in result.stdout
    assert "1\talice" not in result.stdout
    assert _listing(tmp_path) == before
    assert deepctl("memory", "show", "--user", "alice").ok().stdout == "- coffee\n"


def test_settings_and_profiles_are_not_read(process: Command, broken: None, untouched: None) -> None:
    assert process("chat", "hello").code == 5
    for user in ((), ("--user", "alice")):
        assert "offline model" in process("chat", "--ephemeral", *user, "hello").ok().stdout


def test_budgets_that_cannot_be_read_are_an_event_and_not_a_line_on_stderr(process: Command, broken: None) -> None:
    result = process("chat", "--ephemeral", "--json", "hello").ok()
    assert result.stderr == ""
    assert [event["type"] for event in result.events][:2] == ["start", "notice"]
    assert "Budgets cannot be read" in result.events[1]["message"]


def test_rules_and_settings_do_not_count(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text(
        'model = "nobody:x"\napprove = "never"\nsandbox = "docker"\n'
        '[limits]\nmemory = 1\n[permissions]\nwrite = "deny"\n'
    )
    assert "Wrote 1 line " in deepctl("chat", "--ephemeral", "write a.txt: x").ok().stdout


def test_it_works_where_no_state_can_be_kept(process: Command, tmp_path: Path) -> None:
    for env in ({"DEEPCTL_HOME": "/proc/nowhere", "DEEPCTL_CONFIG": "/proc/nowhere/config.toml"}, {"DEEPCTL_HOME": ""}):
        assert "Remembered." in process("chat", "--ephemeral", "remember tea", env=env).ok().stdout


def test_one_command_does_not_know_of_another(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "--ephemeral", "remember tea").ok()
    assert "tea" not in deepctl("chat", "--ephemeral", "recall tea").ok().stdout
    assert "0 earlier turns" in deepctl("chat", "--ephemeral", "hello").ok().stdout
    assert not home.exists()


def test_two_turns_at_a_terminal_know_of_each_other_and_nothing_is_kept(untouched: None) -> None:
    terminal = Terminal("chat", "--ephemeral")
    terminal.prompt(name="ephemeral")
    assert "Nothing in this chat is stored" in terminal.screen
    terminal.type("remember tea\r")
    terminal.expect("Remembered.")
    terminal.prompt(name="ephemeral")
    terminal.type("recall tea\r")
    terminal.expect("• tea")
    terminal.prompt(name="ephemeral")
    terminal.type("write a.txt: kept for now\r")
    terminal.expect("Wrote 1 line ")
    terminal.prompt(name="ephemeral")
    terminal.type("read a.txt\r")
    terminal.expect("kept for now", times=2)
    terminal.prompt(name="ephemeral")
    terminal.type("hello\r")
    terminal.expect("4 earlier turns")
    terminal.prompt(name="ephemeral")
    assert terminal.leave() == 0


def test_the_second_turn_sees_one_earlier_turn_and_the_line_before(untouched: None) -> None:
    terminal = Terminal("chat", "--ephemeral", "--user", "alice")
    terminal.prompt()
    terminal.type("hello\r")
    terminal.expect("0 earlier turns")
    terminal.prompt()
    terminal.type("\x1b[A")
    terminal.expect("alice> hello", times=2)
    terminal.type("\r")
    terminal.expect("1 earlier turn ")
    terminal.prompt()
    assert terminal.leave() == 0
    again = Terminal("chat", "--ephemeral", "--user", "alice")
    again.prompt()
    again.type("\x1b[A")
    again.prompt()
    again.type("hello\r")
    again.expect("0 earlier turns")
    again.close()


def test_a_turn_that_fails_leaves_the_conversation_going(monkeypatch: pytest.MonkeyPatch, untouched: None) -> None:
    calls = ToolCalls([("write_file", {"path": "a.txt", "content": "here"})])
    read = ToolCalls([("read_file", {"path": "a.txt"})])
    with provider(calls, Text(["Wrote it."]), Status(400), read, Text(["Read it."])) as server:
        model = _point_at(server.address, monkeypatch)
        terminal = Terminal("chat", "--ephemeral", "--model", model)
        terminal.prompt(name="ephemeral")
        for said, shown in (("first", "Wrote it."), ("second", "Error: "), ("third", "Read it.")):
            terminal.type(f"{said}\r")
            terminal.expect(shown)
            terminal.prompt(name="ephemeral")
        assert terminal.leave() == 0
    sent = json.dumps(server.requests[-1]["messages"])
    assert [said in sent for said in ("first", "Wrote it.", "second", "third", "1\\there")] == [True] * 5


REFUSED = [
    ("--session", "x"),
    ("--new",),
    ("--new=x",),
    ("--sandbox", "bubblewrap"),
    ("--sandbox", "docker"),
    ("--sandbox", "none"),
    ("--network",),
    ("--user", "../x"),
    ("--model", "nonsense"),
    ("--approve", "maybe"),
]


@pytest.mark.parametrize("options", REFUSED, ids=" ".join)
def test_what_means_nothing_there_is_exit_2(deepctl: InProcess, untouched: None, options: tuple[str, ...]) -> None:
    plain = deepctl("chat", "hello", "--ephemeral", *options)
    assert (plain.code, plain.stdout) == (2, "")
    assert plain.stderr.startswith("Error: ")
    events = deepctl("chat", "hello", "--ephemeral", "--json", *options)
    assert events.code == 2
    assert "ephemeral" in plain.stderr or options[0] in ("--user", "--model", "--approve")


def test_json_has_no_profile_session_or_checkpoint(deepctl: InProcess, untouched: None) -> None:
    result = deepctl("chat", "--ephemeral", "--json", "--user", "alice", "write a.txt: hello\nread a.txt").ok()
    assert result.stderr == ""
    first, *events, last = result.events
    assert first == {
        "type": "start",
        "profile": None,
        "session": None,
        "project": None,
        "model": "offline",
        "sandbox": None,
        "network": False,
        "questions": "denied",
        "notice": None,
    }
    assert [event["name"] for event in events if event["type"] == "tool_call"] == ["write_file", "read_file"]
    assert [event["name"] for event in events if event["type"] == "tool_result"] == ["write_file", "read_file"]
    assert {event["type"] for event in events} == {"tool_call", "tool_result", "text"}
    assert all(event["ok"] for event in events if event["type"] == "tool_result")
    assert (last["type"], last["session"], last["checkpoint"]) == ("result", None, None)
    assert last["output"] == "Wrote 1 line to a.txt\n     1\thello"
    assert set(last) == {"type", "output", "session", "checkpoint", "usage", "cost", "context", "finish"}


def test_there_is_no_shell(deepctl: InProcess, untouched: None) -> None:
    result = deepctl("chat", "--ephemeral", "--approve", "auto", "run touch owned").ok()
    assert "no tool 'execute'" in result.stdout


def test_no_path_leads_to_a_file_of_this_machine(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside secret")
    before = _listing(tmp_path)
    prompts = [f"read {tmp_path}/outside", f"write {tmp_path}/outside: x", "read ../../outside", "read /etc/passwd"]
    result = deepctl("chat", "--ephemeral", "\n".join(prompts)).ok()
    assert "outside secret" not in result.stdout
    assert "root:" not in result.stdout
    assert _listing(tmp_path) == before


def test_the_model_is_the_options_or_the_environments(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    with provider(Text(["By option."]), Text(["By environment."])) as server:
        model = _point_at(server.address, monkeypatch)
        assert deepctl("chat", "--ephemeral", "--model", model, "hi").ok().stdout == "By option.\n"
        monkeypatch.setenv("DEEPCTL_MODEL", model)
        events = deepctl("chat", "--ephemeral", "--json", "hi").ok().events
        assert (events[0]["model"], events[-1]["output"]) == (model, "By environment.")
        assert "offline model" in deepctl("chat", "--ephemeral", "--model", "offline", "hi").ok().stdout
    monkeypatch.setenv("DEEPCTL_MODEL", "nonsense")
    assert deepctl("chat", "--ephemeral", "hi").code == 2


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_failing_provider_is_exit_7(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None, status: int
) -> None:
    with provider(Status(status, f"no {os.environ.get('OPENAI_API_KEY')}"), repeat_last=True) as server:
        model = _point_at(server.address, monkeypatch)
        result = deepctl("chat", "--ephemeral", "--json", "--model", model, "hi")
        assert (result.code, result.events[-1]["type"]) == (7, "error")
        assert result.events[-1]["retryable"] is (status != 401)
        plain = deepctl("chat", "--ephemeral", "--model", model, "hi")
    assert plain.code == 7
    assert plain.stderr.startswith("Error: ")
    assert "Traceback" not in plain.stderr


def test_a_missing_key_and_a_refused_connection_are_exit_7(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    assert deepctl("chat", "--ephemeral", "--model", "anthropic:claude-sonnet-4-6", "hi").code == 7
    assert deepctl("chat", "--ephemeral", "--model", _point_at("http://127.0.0.1:9", monkeypatch), "hi").code == 7


def test_nothing_is_said_to_be_kept_when_it_fails(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    with provider(Status(500), repeat_last=True) as server:
        plain = deepctl("chat", "--ephemeral", "--model", _point_at(server.address, monkeypatch), "hi")
    assert "kept" not in plain.stderr


def test_nothing_is_said_to_be_kept_when_it_takes_too_long(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    ended = threading.Event()
    with provider(Text(["Half", " of it"], gate=lambda: _wait(ended))) as server:
        model = _point_at(server.address, monkeypatch)
        result = deepctl("chat", "--ephemeral", "--timeout", "1", "--model", model, "hi")
        ended.set()
    assert result.code == 124
    assert "kept" not in result.stderr


def test_a_large_result_is_evicted_into_memory_and_read_back(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    text = "\n".join(f"line {number} {'.' * 80}" for number in range(1500))
    write = ToolCalls([("write_file", {"path": "big.txt", "content": text}), ("read_file", {"path": "big.txt"})])
    listing = ToolCalls([("ls", {"path": "large_tool_results"})])
    with provider(write, listing, Text(["Done."])) as server:
        deepctl("chat", "--ephemeral", "--model", _point_at(server.address, monkeypatch), "go").ok()
    sent = json.dumps(server.requests[-1]["messages"])
    assert "large_tool_results/call_read_file_1" in sent
    assert "Contents of large_tool_results" in sent


def test_a_turn_that_goes_back_to_its_own_checkpoint_ends(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, untouched: None
) -> None:
    save = ToolCalls([("save_checkpoint", {"label": "here"})])
    back = ToolCalls([("rewind_to", {"checkpoint": "here", "reason": "learned"})])
    with provider(save, back, Text(["Again, then."])) as server:
        result = deepctl("chat", "--ephemeral", "--model", _point_at(server.address, monkeypatch), "go").ok()
    assert result.stdout.endswith("Again, then.\n")
    assert "learned" in json.dumps(server.requests[-1]["messages"])


def _wait(event: threading.Event) -> None:
    event.wait(20)


def _point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    return "openai-chat:loopback"


@pytest.mark.parametrize("how", ["timeout", "SIGTERM"])
def test_a_search_that_never_ends_is_ended(process: Command, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    glob = ("glob", {"pattern": "**/a/" * 12 + "b"})
    write = ("write_file", {"path": "a/" * 60 + "f", "content": "a"})
    with provider(ToolCalls([write, glob]), Text(["Done."])) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        arguments = ("chat", "--ephemeral", "--json", "--model", "openai-chat:loopback", "go")
        if how == "timeout":
            assert process(*arguments, "--timeout", "1").code == 124
            return
        with process.start(*arguments, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            while b'"tool_call"' not in (line := running.stdout.readline()) or b'"glob"' not in line:
                assert line
            running.terminate()
            assert running.wait(20) == -signal.SIGTERM
