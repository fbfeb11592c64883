"""Models that are silent: the wait ends by two settings, and neither pings nor the client's own limits change that."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
from pydantic_ai.messages import PartStartEvent, TextPart, ThinkingPart, ToolCallPart

from deepctl.agent import model_wrappers
from deepctl.output.stream import turn_view
from deepctl.output.stream.lines import TerminalCaps
from tests.agent.test_answer_ends import KINDS, _point
from tests.support.command import InProcess, Result
from tests.support.loopback import Stalled, Text, provider


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-nothing")


def _limits(deepctl: InProcess, first: int, idle: int) -> None:
    deepctl("config", "set", "first_answer_timeout", str(first)).ok()
    deepctl("config", "set", "idle_timeout", str(idle)).ok()


def _timed(deepctl: InProcess, *arguments: str) -> tuple[Result, float]:
    began = time.monotonic()
    result = deepctl("chat", "--json", *arguments)
    return result, time.monotonic() - began


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "answer", [Stalled([], headers=False), Stalled([]), Stalled([], pings=True)], ids=["no head", "silence", "pings"]
)
def test_an_answer_that_does_not_begin_ends_by_the_first_limit(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, answer: Stalled
) -> None:
    _limits(deepctl, 1, 60)
    with provider(answer, repeat_last=True) as server:
        _point(server, monkeypatch)
        result, seconds = _timed(deepctl, "--model", KINDS[kind], "hello")
    error = result.events[-1]
    assert (result.code, error["code"], error["retryable"]) == (7, "idle_timeout", True)
    assert "first_answer_timeout" in error["message"]
    assert 1 <= seconds < 15
    assert len(server.requests) == 1, "it is not sent again"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pings", [False, True], ids=["silence", "pings"])
def test_an_answer_that_does_not_continue_ends_by_the_second_limit(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, pings: bool
) -> None:
    _limits(deepctl, 60, 1)
    with provider(Stalled(["Half an "], pings=pings), Text(["Whole."])) as server:
        _point(server, monkeypatch)
        result, seconds = _timed(deepctl, "--model", KINDS[kind], "hello")
        shown = deepctl("sessions", "show").ok().stdout
        deepctl("chat", "--json", "--model", KINDS[kind], "go on").ok()
    error = result.events[-1]
    assert (result.code, error["code"], error["retryable"]) == (7, "idle_timeout", True)
    assert "idle_timeout" in error["message"]
    assert 1 <= seconds < 15
    assert [event["delta"] for event in result.events if event["type"] == "text"] == ["Half an "]
    assert "Half an \n(no complete answer" in shown
    assert len(server.requests) == 2


def test_a_slow_answer_is_not_ended_as_long_as_it_continues(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    _limits(deepctl, 2, 2)
    with provider(Text(list("slowly"), gate=lambda: time.sleep(0.8))) as server:
        _point(server, monkeypatch)
        result, seconds = _timed(deepctl, "--model", KINDS["chat"], "hello")
    assert result.ok().events[-1]["output"] == "slowly"
    assert seconds > 4


@pytest.fixture
def held() -> Iterator[str]:
    """The address of a server that accepts connections and never says anything."""
    connections = []

    def accept() -> None:
        while True:
            try:
                connections.append(server.accept())
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    for connection, _ in connections:
        connection.close()


@pytest.mark.parametrize("scheme", ["socks5", "http"])
def test_a_proxy_that_says_nothing_is_a_silent_model(
    deepctl: InProcess, held: str, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    _limits(deepctl, 1, 60)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://{held}")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://model.invalid/v1")
    result, seconds = _timed(deepctl, "--model", KINDS["chat"], "hello")
    assert (result.code, result.events[-1]["code"]) == (7, "idle_timeout")
    assert 1 <= seconds < 15


def test_a_compaction_waits_no_longer(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    _limits(deepctl, 1, 60)
    deepctl("config", "set", "context_window", "4000").ok()
    deepctl("config", "set", "compact_at", "50").ok()
    answers = Text(["One."]), Text(["Two."], used=(3000, 7)), Stalled([]), Text(["Three."])
    with provider(*answers) as server:
        _point(server, monkeypatch)
        for prompt in ("one", "two"):
            deepctl("chat", "--json", "--model", KINDS["chat"], prompt).ok()
        result, seconds = _timed(deepctl, "--model", KINDS["chat"], "three")
    assert result.ok().events[-1]["output"] == "Three."
    assert any("has not begun to answer for 1 s" in str(event.get("message")) for event in result.events)
    assert seconds < 15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "expected"), [(600, 1200), (3600, 3660)])
def test_the_clients_own_limit_for_silence_is_longer_and_that_for_connecting_as_before(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, first: int, expected: float
) -> None:
    _limits(deepctl, first, 120)
    limits: list[dict[str, float]] = []
    send = httpx2.AsyncClient._send_single_request

    async def watched(client: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":  # the window is asked with GET
            limits.append(request.extensions["timeout"])
        return await send(client, request)

    monkeypatch.setattr(httpx2.AsyncClient, "_send_single_request", watched)
    with provider(Text(["Here."])) as server:
        _point(server, monkeypatch)
        deepctl("chat", "--json", "--model", KINDS[kind], "hello").ok()
    assert [(limit["read"], limit["connect"]) for limit in limits] == [(expected, 5)]


def test_only_pieces_of_an_answer_end_a_silence() -> None:
    parts = {"": False, "x": True}
    for text, expected in parts.items():
        for part in (TextPart(text), ThinkingPart(text)):
            assert model_wrappers._has_content(PartStartEvent(index=0, part=part)) == expected
    assert model_wrappers._has_content(PartStartEvent(index=0, part=ToolCallPart("ls")))


def test_the_status_line_counts_the_seconds_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = turn_view.TurnView(TerminalCaps(colour=False, encoding="utf-8"), now)

    def status() -> str:
        return view.tail(100, 20)[-1].plain

    now = 114.9
    assert "no answer" not in status()
    now = 115.0
    assert "Waiting, no answer for 15 s" in status()
    now = 137.0
    assert "Waiting, no answer for 37 s" in status()
    view.event({"type": "text", "delta": "Half"}, now, 100)
    assert "no answer" not in status()
    now = 160.0
    assert "Writing, no answer for 23 s" in status()
    view.event({"type": "activity"}, now, 100)
    assert "no answer" not in status(), "a tool call is being written"
    view.event({"type": "tool_call", "id": "1", "name": "execute", "args": {}}, now, 100)
    now = 300.0
    assert "no answer" not in status(), "a tool is running"
