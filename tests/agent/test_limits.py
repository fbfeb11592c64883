"""What a turn may use: requests, tokens, money; and what it says it has used."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic_ai._context_size import mark_context_input_tokens
from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RequestUsage

from deepctl.agent.limits import MOST, bounded_usage, context_tokens
from deepctl.cli.repl.status import Toolbar, fit_toolbar
from deepctl.domain import settings
from deepctl.errors import BadSetting
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider

KINDS = {"chat": "openai-chat:gpt-4o", "responses": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-4-6"}
LIST = ToolCalls([("ls", {"path": "."})], used=(1000, 100))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")


def _point(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("setting", "value", "requests"),
    [("max_requests", "3", 3), ("max_tokens", "2000", 2), ("max_tokens", "2200", 2), ("max_cost", "0.006", 2)],
)
def test_a_limit_that_is_reached_keeps_the_next_request_from_being_sent(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, setting: str, value: str, requests: int
) -> None:
    if kind != "anthropic" and setting == "max_cost":
        value = "0.005"
    deepctl("config", "set", setting, value).ok()
    with provider(LIST, repeat_last=True) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS[kind], "look around")
    error = result.events[-1]
    assert (result.code, error["code"], error["retryable"]) == (7, "usage_limit", False), error
    assert len(server.requests) == requests
    assert f"({setting})" in error["message"]
    assert f"config set {setting}" in error["hint"]
    results = [event for event in result.events if event["type"] == "tool_result"]
    assert len(results) == requests, "what was called for has been done"
    kept = json.dumps(deepctl("sessions", "show", "--json").ok().json["messages"])
    assert kept.count('"tool-return"') == requests


@pytest.mark.parametrize(
    ("place", "setting"),
    [
        (("config", "set", "max_tokens", "20"), "deepctl config set max_tokens 130"),
        (("config", "set", "max_tokens", "20", "--user", "alice"), "deepctl config set max_tokens 130 --user alice"),
        (
            ("config", "set", "max_cost", "0.0001", "--user", "alice"),
            "deepctl config set max_cost 0.00051 --user alice",
        ),
    ],
)
def test_what_raises_a_limit_is_what_set_it_and_enough_for_what_was_used(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, place: tuple[str, ...], setting: str
) -> None:
    deepctl("chat", "--user", "alice", "hello").ok()
    deepctl(*place).ok()
    with provider(ToolCalls(LIST.calls, used=(50, 13)), repeat_last=True) as server:
        _point(server.address, monkeypatch)
        arguments = ["--json", "--user", "alice", "--model", KINDS["chat"], "look around"]
        error = deepctl("chat", *arguments).events[-1]
        assert setting in error["hint"], error
        assert len(server.requests) == 1
        deepctl(*error["hint"].partition("deepctl ")[2].split()).ok()
        deepctl("chat", *arguments)
        assert len(server.requests) > 2, "what is suggested lets another request through"


def test_a_chat_that_reads_no_settings_names_none(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = settings.SETTINGS["max_requests"]._replace(default="5")  # 100 take seconds
    monkeypatch.setitem(settings.SETTINGS, "max_requests", fewer)
    with provider(LIST, repeat_last=True) as server:
        _point(server.address, monkeypatch)
        error = deepctl("chat", "--ephemeral", "--json", "--model", KINDS["chat"], "look around").events[-1]
    assert (error["code"], error["hint"]) == ("usage_limit", "Tell the agent to continue.")
    assert len(server.requests) == 5


def test_an_answer_that_passes_a_limit_is_whole_and_no_error(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "max_tokens", "10").ok()
    with provider(Text(["All of it."])) as server:
        _point(server.address, monkeypatch)
        assert deepctl("chat", "--model", KINDS["chat"], "hello").ok().stdout == "All of it.\n"


def test_the_next_turn_begins_to_count_anew(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "set", "max_requests", "2").ok()
    with provider(LIST, Text(["One."]), LIST, Text(["Two."])) as server:
        _point(server.address, monkeypatch)
        for said in ("One.\n", "Two.\n"):
            assert deepctl("chat", "--model", KINDS["chat"], "look").ok().stdout == said


def test_a_turn_that_goes_back_and_begins_again_is_still_one_turn(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", "write a.txt: one").ok()
    first = deepctl("checkpoints", "list", "--json").ok().json["checkpoints"][-1]["id"]
    deepctl("config", "set", "max_requests", "2").ok()
    back = ToolCalls([("rewind_to", {"checkpoint": first, "reason": "to begin again"})])
    with provider(back, LIST, repeat_last=False) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS["chat"], "go back")
    assert (result.code, result.events[-1]["code"]) == (7, "usage_limit"), result
    assert len(server.requests) == 2


@pytest.mark.parametrize("setting", ["max_tokens", "max_cost"])
def test_a_limit_that_cannot_be_kept_to_stops_the_turn(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, setting: str, recwarn: pytest.WarningsRecorder
) -> None:
    deepctl("config", "set", setting, "1000").ok()
    with provider(ToolCalls(LIST.calls, used=None), repeat_last=True) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--model", KINDS["chat"], "hello")
    assert (result.code, len(server.requests)) == (7, 1)
    assert "does not report" in result.stderr
    assert "Warning" not in result.stderr
    assert not [one for one in recwarn if "usage" in str(one.message).lower()]


def test_money_is_not_limited_where_nobody_knows_the_price(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "set", "max_cost", "0.50").ok()
    with provider(Text(["never"])) as server:
        _point(server.address, monkeypatch)
        result = deepctl("chat", "--json", "--model", "openai-chat:nobody-knows", "hello")
    assert (result.code, result.events[-1]["code"]) == (2, "no_price")
    assert not server.requests
    assert deepctl("chat", "hello").ok(), "the offline model costs nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_says_what_a_turn_cost_and_how_full_the_context_is(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(LIST, Text(["Done."], used=(2000, 50))) as server:
        _point(server.address, monkeypatch)
        result: dict[str, Any] = deepctl("chat", "--json", "--model", KINDS[kind], "look").ok().events[-1]
    assert result["usage"] == {"input_tokens": 3000, "cached_tokens": 0, "output_tokens": 150, "requests": 2}
    price = (3.0, 15.0) if kind == "anthropic" else (2.5, 10.0)
    assert result["cost"] == pytest.approx((3000 * price[0] + 150 * price[1]) / 1e6)
    assert result["context"] == {"tokens": 2050, "window": 1_000_000 if kind == "anthropic" else 128_000}


def test_what_nobody_knows_is_null_and_the_offline_model_costs_nothing(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(Text(["Done."])) as server:
        _point(server.address, monkeypatch)
        unknown = deepctl("chat", "--json", "--model", "openai-chat:nobody-knows", "hello").ok().events[-1]
    assert (unknown["cost"], unknown["context"]["window"]) == (None, None)
    for options in ((), ("--ephemeral",)):
        result = deepctl("chat", "--json", *options, "hello", "--model", "offline").ok().events[-1]
        assert (result["cost"], result["context"]["window"]) == (0.0, None)
        assert result["context"]["tokens"] > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [10**400, 10**30], ids=["no float", "no price"])
def test_a_provider_that_reports_an_absurd_usage_spoils_neither_the_turn_nor_the_session(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    # The second turn begins with a summary: by what was reported, the window is full.
    honest = Text(["Two."], used=(2000, 50))
    with provider(Text(["One."], used=(number, number)), honest, honest) as server:
        _point(server.address, monkeypatch)
        first, second = (deepctl("chat", "--json", "--model", KINDS[kind], "hello").ok().events[-1] for _ in range(2))
    assert first["usage"] == {"input_tokens": MOST, "cached_tokens": 0, "output_tokens": MOST, "requests": 1}
    assert first["context"]["tokens"] == MOST
    assert second["context"]["tokens"] == 2050
    kept = json.dumps(deepctl("sessions", "show", "--json").ok().json["messages"])
    assert str(number) not in kept, "it is not written down"


def test_usage_is_bounded_in_all_that_it_counts() -> None:
    absurd = RequestUsage(
        input_tokens=-1, audio_seconds=float("nan"), web_searches=10**400, details={"reasoning_tokens": 10**400}
    )
    assert bounded_usage(absurd) == RequestUsage(
        input_tokens=0, audio_seconds=0, web_searches=MOST, details={"reasoning_tokens": MOST}
    )
    honest = RequestUsage(input_tokens=11, output_tokens=7, audio_seconds=0.5, cost=Decimal("0.25"))
    assert bounded_usage(honest) == honest
    for cost in ("NaN", "Infinity", "-1", "1e400"):
        assert bounded_usage(RequestUsage(cost=Decimal(cost))).cost is None


def test_a_context_is_bounded_that_an_answer_tells_apart_from_its_usage() -> None:
    answer = ModelResponse([], usage=RequestUsage(input_tokens=1, output_tokens=1))
    mark_context_input_tokens(answer, 10**400)
    assert context_tokens([answer]) == MOST


def test_the_toolbar_has_room_for_any_number() -> None:
    bar = Toolbar("alice", None, "offline", None, 1e300, (10**400, 5 * 10**9), 1e300)
    assert fit_toolbar(bar, 200) == "alice · offline   context 999%  999G in 5.0G out  $999999"


@pytest.mark.parametrize("key", ["max_requests", "max_tokens", "max_cost", "retries"])
@pytest.mark.parametrize("value", ["-1", "many", "1e3", "1,5", "", " 1", "nan", "0x10", "1000000000000000000"])
def test_what_is_no_number_is_no_limit(key: str, value: str) -> None:
    with pytest.raises(BadSetting):
        settings.validate(key, value)


def test_nothing_at_all_is_no_limit_but_no_retries_are() -> None:
    for key, value in (("max_requests", "0"), ("max_tokens", "0"), ("max_cost", "0"), ("max_cost", "0.00")):
        with pytest.raises(BadSetting):
            settings.validate(key, value)
    assert settings.validate("retries", "0") == "0"


def test_a_sum_stands_in_a_settings_file_as_it_was_typed(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deepctl("config", "path").ok().stdout.strip()
    deepctl("config", "set", "max_cost", "0.50").ok()
    with open(path) as file:
        assert "max_cost = 0.50" in file.read()
    assert deepctl("config", "get", "max_cost").ok().stdout == "0.5\n"
    for wrong in ("-0.5", "0", "inf", "nan", "1e-9", "true", "[1]"):
        with open(path, "w") as file:
            file.write(f"max_cost = {wrong}\n")
        assert deepctl("config", "get", "max_cost").code == 2, wrong
