"""[model_settings], [model_profile] and --thinking in the requests, against servers on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.command import InProcess, Result
from tests.support.loopback import Provider, Raw, Status, Text, provider

SETTINGS = {
    "temperature": "0.25",
    "top_p": "0.5",
    "max_tokens": "4000",
    "seed": "7",
    "presence_penalty": "1",
    "frequency_penalty": "0.5",
    "stop_sequences": '["END", "a, b"]',
    "parallel_tool_calls": "false",
    "service_tier": "default",
    "extra_body": '{"min_p": 0.125, "chat_template_kwargs": {"enable_thinking": false}}',
}
EXTRA = {"min_p": 0.125, "chat_template_kwargs": {"enable_thinking": False}}
CHAT = {
    "temperature": 0.25,
    "top_p": 0.5,
    "max_tokens": 4000,
    "seed": 7,
    "presence_penalty": 1,
    "frequency_penalty": 0.5,
    "stop": ["END", "a, b"],
    "parallel_tool_calls": False,
    "service_tier": "default",
    **EXTRA,
}
RESPONSES = {
    "temperature": 0.25,
    "top_p": 0.5,
    "max_output_tokens": 4000,
    "parallel_tool_calls": False,
    "service_tier": "default",
    **EXTRA,
}
ANTHROPIC = {
    "temperature": 0.25,
    "top_p": 0.5,
    "max_tokens": 4000,
    "stop_sequences": ["END", "a, b"],
    "service_tier": "standard_only",
    **EXTRA,
}

Ask = Callable[..., tuple[Result, dict[str, Any]]]


@pytest.fixture
def ask(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Sends one prompt to a model of the server; returns the result and the body of the first request."""

    def ask(model: str, *options: str, answer: Text | Status | Raw | None = None) -> tuple[Result, dict[str, Any]]:
        with provider(answer or Text(["Hello."]), repeat_last=True) as server:
            _point_at(server, monkeypatch)
            result = deepctl("chat", "--json", "--model", model, *options, "hello")
        return result, server.requests[0]

    return ask


def _point_at(server: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary-0123456789abcdef")
    monkeypatch.setenv("OLLAMA_BASE_URL", server.address)


def _set(deepctl: InProcess, table: str, values: dict[str, str]) -> None:
    for key, value in values.items():
        deepctl("config", "set", f"{table}.{key}", value).ok()


def _notices(result: Result) -> str:
    return " ".join(event["message"] for event in result.events if event["type"] == "notice")


@pytest.mark.parametrize(
    ("model", "expected", "not_sent"),
    [
        ("openai-chat:loopback", CHAT, set()),
        ("ollama:loopback", CHAT, set()),
        ("openai:loopback", RESPONSES, {"seed", "presence_penalty", "frequency_penalty", "stop_sequences"}),
        ("anthropic:loopback", ANTHROPIC, {"seed", "presence_penalty", "frequency_penalty"}),
    ],
)
def test_each_setting_is_in_the_request_or_named_in_a_notice(
    deepctl: InProcess, ask: Ask, model: str, expected: dict[str, Any], not_sent: set[str]
) -> None:
    _, before = ask(model)
    _set(deepctl, "model_settings", SETTINGS)
    result, body = ask(model)
    result.ok()
    assert {key: body.get(key) for key in expected} == expected
    assert body.keys() - before.keys() <= expected.keys() | {"tool_choice"}
    assert result.stderr == ""
    assert {key for key in SETTINGS if f"model_settings.{key}" in _notices(result)} == not_sent


@pytest.mark.parametrize(
    ("model", "level", "field", "value"),
    [
        ("openai-chat:gpt-5.1", "off", "reasoning_effort", "none"),
        ("openai-chat:gpt-5", "high", "reasoning_effort", "high"),
        ("openai:gpt-5", "low", "reasoning", {"effort": "low"}),
        ("openai:gpt-5.1", "off", "reasoning", {"effort": "none"}),
        ("anthropic:claude-opus-4-1", "low", "thinking", {"type": "enabled", "budget_tokens": 2048}),
        ("ollama:deepseek-r1", "medium", "reasoning_effort", "medium"),
    ],
)
def test_thinking_has_the_form_of_the_provider(
    deepctl: InProcess, ask: Ask, model: str, level: str, field: str, value: object
) -> None:
    deepctl("config", "set", "model_settings.thinking", "minimal").ok()
    result, body = ask(model, "--thinking", level)
    assert _notices(result.ok()) == ""
    sent = body[field]
    assert ({key: sent.get(key) for key in value} if isinstance(value, dict) else sent) == value


def test_the_offline_model_says_which_settings_it_ignores(deepctl: InProcess) -> None:
    assert "Not sent" not in _notices(deepctl("chat", "--json", "--model", "offline", "hello").ok())
    deepctl("config", "set", "model_settings.seed", "7").ok()
    result = deepctl("chat", "--json", "--model", "offline", "--thinking", "high", "hello").ok()
    (notice,) = (event["message"] for event in result.events if event["type"] == "notice" and "Not sent" in str(event))
    start, _, names = notice.partition(": ")
    assert start == "Not sent to offline, which does not support it"
    assert sorted(names.removesuffix(".").split(", ")) == ["model_settings.seed", "model_settings.thinking"]


def test_thinking_is_sent_to_an_unknown_model_if_its_profile_says_so(deepctl: InProcess, ask: Ask) -> None:
    result, body = ask("openai-chat:loopback", "--thinking", "low")
    assert "reasoning_effort" not in body
    assert "If the model can think: `deepctl config set model_profile.supports_thinking true`." in _notices(result)
    deepctl("config", "set", "model_profile.supports_thinking", "true").ok()
    result, body = ask("openai-chat:loopback", "--thinking", "low")
    assert body["reasoning_effort"] == "low"
    assert _notices(result.ok()) == ""


def test_a_wrong_level_is_exit_2_and_names_the_levels(deepctl: InProcess) -> None:
    refused = deepctl("chat", "--thinking", "huge", "hello")
    assert refused.code == 2
    for level in ("off", "minimal", "low", "medium", "high", "xhigh", "max", "on"):
        assert level in refused.stderr


def test_a_setting_that_pydantic_ai_leaves_out_is_a_notice_and_nothing_on_stderr(deepctl: InProcess, ask: Ask) -> None:
    deepctl("config", "set", "model_settings.temperature", "0.5").ok()
    result, body = ask("openai-chat:gpt-5")
    assert "temperature" not in body
    assert "Sampling parameters ['temperature']" in _notices(result.ok())
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("profile", "is_in_force"),
    [
        ({"openai_chat_supports_max_completion_tokens": "true"}, lambda body: body["max_completion_tokens"] == 9),
        ({"openai_unsupported_model_settings": '["max_tokens"]'}, lambda body: "max_tokens" not in body),
        ({"openai_system_prompt_role": "developer"}, lambda body: body["messages"][0]["role"] == "developer"),
    ],
)
def test_a_profile_overrides_what_pydantic_ai_assumes(
    deepctl: InProcess, ask: Ask, profile: dict[str, str], is_in_force: Callable[[dict[str, Any]], bool]
) -> None:
    deepctl("config", "set", "model_settings.max_tokens", "9").ok()
    assert not is_in_force(ask("openai-chat:loopback")[1] | {"max_completion_tokens": None})
    _set(deepctl, "model_profile", profile)
    result, body = ask("openai-chat:loopback")
    result.ok()
    assert is_in_force(body)


def test_without_a_system_role_the_instructions_are_before_the_first_prompt(deepctl: InProcess, ask: Ask) -> None:
    _, usual = ask("openai-chat:loopback", "--session", "a")
    deepctl("config", "set", "model_profile.openai_system_prompt_role", "user").ok()
    _, first = ask("openai-chat:loopback", "--session", "b")
    _, second = ask("openai-chat:loopback")
    system, prompt = usual["messages"]
    assert first["messages"] == [{"role": "user", "content": f"{system['content']}\n\n{prompt['content']}"}]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][2]["content"].endswith("hello")


def test_a_model_without_tools_gets_none(deepctl: InProcess, ask: Ask) -> None:
    assert ask("openai-chat:loopback")[1]["tools"]
    deepctl("config", "set", "model_profile.supports_tools", "false").ok()
    result, body = ask("openai-chat:loopback")
    assert "tools" not in body
    assert result.ok().events[-1]["output"] == "Hello."


def test_thinking_tags_of_the_profile_separate_thinking_from_the_answer(deepctl: InProcess, ask: Ask) -> None:
    answer = Text(["<hm>", "a secret thought", "</hm>", "Hello."])
    assert "secret" in ask("openai-chat:loopback", answer=answer)[0].ok().events[-1]["output"]
    deepctl("config", "set", "model_profile.thinking_tags", '["<hm>", "</hm>"]').ok()
    result = ask("openai-chat:loopback", answer=answer)[0].ok()
    assert result.events[-1]["output"] == "Hello."
    assert "a secret thought" in "".join(e["delta"] for e in result.events if e["type"] == "thinking")


def test_settings_of_a_profile_that_exclude_each_other_are_exit_2(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
    deepctl("config", "set", "model_profile.openai_chat_send_back_thinking_parts", "field").ok()
    refused = deepctl("chat", "--model", "openai-chat:m", "hello", "--json")
    assert (refused.code, refused.events[-1]["code"]) == (2, "bad_setting")
    assert "[model_profile]" in refused.events[-1]["message"]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", "0.5", "Unsupported value: 'temperature' does not support 0.5 with this model."),
        ("max_tokens", "999999", "max_output_tokens: 999999 > 8192, which is the maximum"),
        ("thinking", "high", "Unrecognized request argument supplied: reasoning_effort"),
        ("extra_body", '{"min_p": 0.1}', "Unrecognized request argument supplied: min_p"),
    ],
)
def test_an_error_about_a_setting_names_it(
    deepctl: InProcess, ask: Ask, setting: str, value: str, message: str
) -> None:
    deepctl("config", "set", "model_profile.supports_thinking", "true").ok()
    deepctl("config", "set", f"model_settings.{setting}", value).ok()
    refused, _ = ask("openai-chat:loopback", answer=Status(400, message))
    assert (refused.code, refused.events[-1]["code"]) == (7, "model_request_refused")
    assert f"change or remove model_settings.{setting}." in refused.events[-1]["hint"]
    deepctl("config", "unset", f"model_settings.{setting}").ok()
    refused, _ = ask("openai-chat:loopback", answer=Status(400, message))
    assert refused.events[-1]["hint"] is None


def test_an_ephemeral_chat_reads_no_settings_but_takes_the_option(deepctl: InProcess, ask: Ask) -> None:
    deepctl("config", "set", "model_settings.temperature", "0.5").ok()
    result, body = ask("openai-chat:gpt-5", "--ephemeral", "--thinking", "high")
    assert _notices(result.ok()) == ""
    assert body["reasoning_effort"] == "high"
    assert "temperature" not in body
