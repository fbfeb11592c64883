"""Real providers' code paths, against servers on 127.0.0.1 that speak their formats."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess
from tests.support.loopback import Broken, Provider, Status, Text, ToolCalls, provider

KEY = "sk-canary-0123456789abcdef"
KINDS = ("openai", "anthropic")
QUICKLY = {"retry-after-ms": "5"}


def _point_at(server: Provider, kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return _point(server.address, kind, monkeypatch)


def _point(address: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make provider `kind` the server at `address`; returns the model to ask for."""
    if kind == "openai":
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        return "openai-chat:loopback"
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    return "anthropic:loopback"


@pytest.mark.parametrize("kind", KINDS)
def test_text_arrives_piece_by_piece(process: Command, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The server sends the next piece only after the one before it has come out of deepctl."""
    shown = threading.Semaphore(0)

    def gate() -> None:
        assert shown.acquire(timeout=20), "the piece before has not been shown"

    pieces = ["one ", "two ", "three"]
    with provider(Text(pieces, gate=gate)) as server:
        model = _point_at(server, kind, monkeypatch)
        running = process.start("chat", "--json", "--model", model, "count")
        assert running.stdout is not None
        seen = []
        for line in running.stdout:
            event = json.loads(line)
            if event["type"] == "text":
                seen.append(event["delta"])
                shown.release()
        assert running.wait(30) == 0
    assert seen == pieces
    assert (event["type"], event["output"]) == ("result", "one two three")
    assert (event["usage"]["input_tokens"], event["usage"]["output_tokens"]) == (11, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tool_call_runs_and_its_result_goes_back(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    calls = ToolCalls(
        [("write_file", {"path": "a.txt", "content": "from the model"}), ("read_file", {"path": "a.txt"})]
    )
    monkeypatch.setenv("DEEPCTL_BWRAP", "/nonexistent")
    with provider(calls, Text(["Done."])) as server:
        model = _point_at(server, kind, monkeypatch)
        result = deepctl("chat", "--json", "--model", model, "write it").ok()
    assert (home / "profiles/default/workspace/a.txt").read_text() == "from the model"
    assert [e["ok"] for e in result.events if e["type"] == "tool_result"] == [True, True]
    sent_back = json.dumps(server.requests[1])
    assert "from the model" in sent_back
    assert "Wrote 1 lines" in sent_back
    offered = json.dumps(server.requests[0]["tools"])
    for tool in ("write_memory", "save_plan", "write_plan", "read_tool_result", "edit_file", "grep"):
        assert tool in offered
    assert '"execute"' not in offered, "there is no sandbox"
    assert result.events[-1]["output"] == "Done."


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_process_sends_the_whole_history(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(Text(["Hello Alice."]), Text(["You are Alice."])) as server:
        model = _point_at(server, kind, monkeypatch)
        deepctl("chat", "--model", model, "I am Alice").ok()
        deepctl("chat", "--model", model, "who am I").ok()
    sent = json.dumps(server.requests[1]["messages"])
    assert sent.index("I am Alice") < sent.index("Hello Alice.") < sent.index("who am I")


FAILURES = [
    (Status(401, f"bad key {KEY}"), "model_key_refused", False),
    (Status(429, "slow down", QUICKLY), "model_rate_limited", True),
    (Status(500, "oops", QUICKLY), "model_provider_failed", True),
    (Status(400, "nonsense"), "model_request_refused", False),
    (Broken("cut"), "model_connection", True),
    (Broken("clean"), "model_failed", True),
    (Broken("json"), "model_failed", True),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("answer", "code", "retryable"), FAILURES, ids=lambda value: str(value)[:40])
def test_a_failing_provider_is_one_clear_line_and_exit_7_and_the_conversation_is_kept(
    deepctl: InProcess,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    answer: Status | Broken,
    code: str,
    retryable: bool,
) -> None:
    with provider(Text(["Welcome."]), answer, repeat_last=True) as server:
        model = _point_at(server, kind, monkeypatch)
        deepctl("chat", "--model", model, "first").ok()
        result = deepctl("chat", "--json", "--model", model, "second")
        error = result.events[-1]
        assert (result.code, error["code"], error["retryable"]) == (7, code, retryable), error
        assert "\n" not in error["message"]
        assert KEY not in result.stdout
        plain = deepctl("chat", "--model", model, "third")
        assert plain.code == 7
        assert plain.stderr.startswith("Error: ")
        assert len(plain.stderr.splitlines()) <= 2
        assert "Traceback" not in plain.stderr
    transcript = deepctl("sessions", "show").ok().stdout
    for said in ("first", "Welcome.", "second", "third", *(answer.pieces if isinstance(answer, Broken) else ())):
        assert said.strip() in transcript
    with provider(Text(["Back again."])) as server:
        model = _point_at(server, kind, monkeypatch)
        assert deepctl("chat", "--model", model, "fourth").ok().stdout == "Back again.\n"
    sent = json.dumps(server.requests[0]["messages"])
    assert all(said in sent for said in ("first", "Welcome.", "second", "third", "fourth"))
    _no_key_below(home)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_connection_is_exit_7(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    deepctl("config", "set", "retries", "0").ok()
    result = deepctl("chat", "--json", "--model", _point("http://127.0.0.1:9", kind, monkeypatch), "hello")
    error = result.events[-1]
    assert (result.code, error["code"], error["retryable"]) == (7, "model_connection", True)


def test_base_url_of_the_profile_names_the_server(deepctl: InProcess, home: Path) -> None:
    with provider(Text(["Local."])) as server:
        deepctl("profiles", "create", "alice").ok()
        deepctl("config", "set", "base_url", f"{server.address}/v1", "--user", "alice").ok()
        deepctl("config", "set", "model", "openai-chat:tiny", "--user", "alice").ok()
        assert deepctl("chat", "--user", "alice", "hello").ok().stdout == "Local.\n"
    assert server.requests[0]["model"] == "tiny"


def test_debug_output_shows_where_and_no_key(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCTL_DEBUG", "1")
    with provider(Status(401, f"bad key {KEY}")) as server:
        result = deepctl("chat", "--model", _point_at(server, "openai", monkeypatch), "hello")
    assert "Traceback" in result.stderr
    assert KEY not in result.stderr


def test_calls_that_are_wrong_are_failed_results_and_the_turn_goes_on(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ("write_file", {"path": "a.txt", "content": "x"})
    wrong = [ToolCalls([("no_such_tool", {}), good, ("write_memory", {"content": "x", "file": "../x"})])] * 5
    with provider(*wrong, Text(["Done."])) as server:
        result = deepctl("chat", "--json", "--model", _point_at(server, "openai", monkeypatch), "go").ok()
    assert [event["ok"] for event in result.events if event["type"] == "tool_result"] == [False, True, False] * 5
    assert result.events[-1]["output"] == "Done."
    deepctl("chat", "and now").ok()


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_a_command_finds_is_told_nobody(
    process: Command, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    command = "tr '\\0' '\\n' </proc/$PPID/environ; echo; seq 9000; cat /proc/$PPID/environ"
    calls = ToolCalls([("execute", {"command": command.replace("; seq 9000", "")}), ("execute", {"command": command})])
    process.forked = False  # /proc has the environment that a process was started with
    with provider(calls, Text(["Done."])) as server:
        model = _point_at(server, kind, monkeypatch)
        result = process("chat", "--json", "--sandbox", "none", "--approve", "auto", "--model", model, "go").ok()
    assert "_API_KEY=[" in result.stdout, "the command did find it"
    assert KEY not in result.stdout
    assert KEY not in json.dumps(server.requests)
    assert (home / "profiles/default/workspace/large_tool_results").is_dir()
    _no_key_below(home)


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_is_in_any_file(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    calls = ToolCalls([("execute", {"command": "env; cat /proc/self/environ"})])
    with provider(calls, Text(["Done."])) as server:
        model = _point_at(server, kind, monkeypatch)
        deepctl("chat", "--sandbox", "none", "--approve", "auto", "--model", model, "go").ok()
    assert any(KEY in value for headers in server.headers for value in headers.values()), "the key was used"
    _no_key_below(home)


def _no_key_below(home: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path


def test_a_traceback_has_nothing_in_it_that_a_terminal_would_obey_and_no_short_key(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(Status(400, "bad \x1b[2J\x9b2J key: hunter2")) as server:
        model = _point_at(server, "openai", monkeypatch)
        monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
        monkeypatch.setenv("DEEPCTL_DEBUG", "1")
        failed = deepctl("chat", "--model", model, "hello")
    assert failed.code == 7
    assert "Traceback" in failed.stderr
    assert not {"\x1b", "\x9b"} & set(failed.stderr)
    assert "hunter2" not in failed.stderr
    assert "[OPENAI_API_KEY]" in failed.stderr
