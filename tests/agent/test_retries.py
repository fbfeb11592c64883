"""Requests that fail in passing are sent again, against servers that speak the providers' formats."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import exceptions

from deepctl.agent import model_wrappers
from tests.support.command import Command, InProcess, Result
from tests.support.loopback import Broken, Provider, Status, Text, ToolCalls, provider
from tests.support.terminal import Terminal

KINDS = {"chat": "openai-chat:gpt-4o", "responses": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-4-6"}
QUICKLY = {"retry-after-ms": "5"}
BUSY = Status(429, "slow down", QUICKLY)
KEY = "sk-canary-0123456789abcdef"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_wrappers, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def _point(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)


def _retries(result: Result) -> list[dict[str, Any]]:
    return [event for event in result.events if event["type"] == "retry"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "failure",
    [BUSY, Status(500, "oops"), Status(503, "away"), Status(529, "busy"), Broken("reset"), Broken("refused")],
    ids=["429", "500", "503", "529", "reset", "refused in the stream"],
)
def test_what_fails_in_passing_is_sent_again_and_answered(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, failure: Status | Broken
) -> None:
    with provider(failure, Text(["Here ", "I am."])) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS[kind], "hello").ok()
    assert result.events[-1]["output"] == "Here I am."
    (retry,) = _retries(result)
    assert (retry["attempt"], retry["attempts"]) == (1, 3)
    assert retry["reason"]
    assert server.requests[0] == server.requests[1]
    assert result.events[-1]["usage"]["requests"] == 1
    said = deepctl("sessions", "show", "--json").ok().json["messages"]
    assert json.dumps(said).count('"hello"') == 1, "the prompt is in the log once"


@pytest.mark.parametrize("kind", KINDS)
def test_a_provider_that_goes_on_failing_is_exit_7_after_as_many_retries_as_the_setting_says(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    deepctl("config", "set", "retries", "2").ok()
    with provider(Status(500, f"oops {KEY}"), repeat_last=True) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS[kind], "hello")
    assert (result.code, result.events[-1]["code"]) == (7, "model_provider_failed")
    assert len(server.requests) == 3, "the client does not retry on its own as well"
    assert [(one["attempt"], one["attempts"]) for one in _retries(result)] == [(1, 2), (2, 2)]
    assert KEY not in result.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_without_retries_a_request_is_sent_once(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    deepctl("config", "set", "retries", "0").ok()
    with provider(BUSY, repeat_last=True) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS[kind], "hello")
    assert result.code == 7
    assert len(server.requests) == 1
    assert not _retries(result)


@pytest.mark.parametrize("failure", [Status(400, "nonsense"), Status(401, "who"), Status(402, "pay")], ids=str)
def test_what_does_not_pass_is_not_sent_again(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, failure: Status
) -> None:
    with provider(failure, repeat_last=True) as server:
        _point(server.address, monkeypatch)
        assert deepctl("chat", "--json", "--model", KINDS["chat"], "hello").code == 7
    assert len(server.requests) == 1


def test_a_provider_that_says_not_to_try_again_is_believed(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Status(500, "no", {"x-should-retry": "false"}), repeat_last=True) as server:
        _point(server.address, monkeypatch)
        assert deepctl("chat", "--model", KINDS["chat"], "hello").code == 7
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_breaks_off_is_not_begun_again(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(Broken("cut"), Text(["again"])) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS[kind], "hello")
    assert (result.code, result.events[-1]["retryable"]) == (7, True)
    assert result.events[-1]["hint"]
    assert len(server.requests) == 1
    assert [event["delta"] for event in result.events if event["type"] == "text"] == ["Half an "]


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_at_the_address_is_tried_again_and_said(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _point("http://127.0.0.1:9", monkeypatch)
    result = deepctl("chat", "--json", "--model", KINDS[kind], "hello")
    assert (result.code, result.events[-1]["code"]) == (7, "model_connection")
    assert [one["attempt"] for one in _retries(result)] == [1, 2, 3]
    said = "127.0.0.1:9: Connection refused"
    assert [one["reason"] for one in _retries(result)] == [said] * 3
    assert f"({said})" in result.events[-1]["message"]


def test_the_address_of_a_server_that_cannot_be_reached_is_told_without_the_key_in_it(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    monkeypatch.setenv("OPENAI_BASE_URL", "https://someone:hunter2@nowhere.invalid/v1")
    deepctl("config", "set", "retries", "0").ok()
    error = deepctl("chat", "--json", "--model", "openai-chat:gpt-4o", "hello").events[-1]
    assert "nowhere.invalid" in error["message"]
    assert "someone" not in str(error)
    assert "hunter2" not in str(error)


def test_a_request_after_tools_is_retried_without_running_them_again(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = ToolCalls([("write_file", {"path": "a.txt", "content": "once"})])
    with provider(calls, BUSY, Text(["Done."])) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS["anthropic"], "write").ok()
    assert len([event for event in result.events if event["type"] == "tool_call"]) == 1
    assert (home / "profiles/default/workspace/a.txt").read_text() == "once"


def test_a_wait_that_the_provider_asks_for_is_kept_to(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Status(429, "slow", {"retry-after-ms": "400"}), Text(["Now."])) as server:
        _point(server.address, monkeypatch)
        begun = time.monotonic()
        result = deepctl("chat", "--json", "--model", KINDS["chat"], "hello").ok()
    assert time.monotonic() - begun >= 0.4
    assert _retries(result)[0]["seconds"] == 0.4


def test_who_would_have_to_wait_for_more_than_a_minute_is_told_instead(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (429, 503):
        with provider(Status(code, "later", {"Retry-After": "61"}), repeat_last=True) as server:
            _point(server.address, monkeypatch)
            result = deepctl("chat", "--model", KINDS["chat"], "hello")
        assert (result.code, len(server.requests)) == (7, 1)
        assert "It asks to wait 61 s." in result.stderr


def _waiting(process: Command, server: Provider, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """A chat that waits for half a minute to send its request again."""
    _point(server.address, monkeypatch)
    running = process.start("chat", "--json", "--model", KINDS["chat"], *options, "hello")
    assert running.stdout is not None
    for line in running.stdout:
        if json.loads(line)["type"] == "retry":
            return running
    raise AssertionError("it did not come to a wait")


LONG = Status(503, "later", {"Retry-After": "30"})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_a_wait_at_once(
    process: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    with provider(LONG, repeat_last=True) as server:
        running: subprocess.Popen[bytes] = _waiting(process, server, monkeypatch)
        begun = time.monotonic()
        running.send_signal(number)
        assert running.wait(20) == code
        assert time.monotonic() - begun < 10
    assert len(server.requests) == 1


def test_the_timeout_ends_a_wait(process: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(LONG, repeat_last=True) as server:
        running: subprocess.Popen[bytes] = _waiting(process, server, monkeypatch, "--timeout", "2")
        assert running.wait(20) == 124


def test_who_watches_is_told_of_a_retry_in_a_line_and_a_pipe_is_not(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(BUSY, Text(["Here."]), BUSY, Text(["Here."])) as server:
        _point(server.address, monkeypatch)
        piped = deepctl("chat", "--model", KINDS["chat"], "hello").ok()
        assert (piped.stdout, "slow down" in piped.stderr) == ("Here.\n", False)
        terminal = Terminal("chat", "--model", KINDS["chat"], "hello", columns=120)
        try:
            terminal.expect("slow down")
            terminal.expect("Here.")
        finally:
            terminal.close()


def test_waits_double_up_to_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_wrappers, "FIRST_WAIT", 0.5)
    error = exceptions.ModelConnectionError("m", "gone")
    for attempt, least in ((1, 0.5), (2, 1), (3, 2), (4, 4)):
        waits = [model_wrappers.wait_before_retry(error, attempt) for _ in range(50)]
        assert all(one is not None and least <= one <= 1.5 * least for one in waits)
        assert len(set(waits)) > 1, "not all at the same moment"
    assert model_wrappers.wait_before_retry(error, 1000) == model_wrappers.LONGEST_WAIT
