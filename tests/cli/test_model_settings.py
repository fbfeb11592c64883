"""The tables [model_settings] and [model_profile]: their keys, their values, and where they come from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.settings import ModelSettings, ThinkingEffort

from deepctl.domain.setting_table import SETTINGS, THINKING, Setting, to_value
from tests.support.command import InProcess

_VALUES = {
    "model_settings.temperature": ("0.25", 0.25),
    "model_settings.seed": ("-7", -7),
    "model_settings.max_tokens": ("4000", 4000),
    "model_settings.thinking": ("high", "high"),
    "model_settings.parallel_tool_calls": ("false", False),
    "model_settings.stop_sequences": ('["a, b", "\\n"]', ["a, b", "\n"]),
    "model_settings.extra_body": ('{"a": {"b": [1, {"c": true}]}, "d": 0.1}', {"a": {"b": [1, {"c": True}]}, "d": 0.1}),
    "model_profile.supports_tools": ("false", False),
    "model_profile.thinking_tags": ('["<t>", "</t>"]', ["<t>", "</t>"]),
    "model_profile.tool_call_id_length": ("9", 9),
    "model_profile.openai_chat_send_back_thinking_parts": ("false", False),
    "disabled_tools": ("execute,ls", ["execute", "ls"]),
    "tools": ("lean", "lean"),
    "idle_timeout": ("5", 5),
    "first_answer_timeout": ("7", 7),
}  # fmt: skip


def _in_tables(values: dict[str, Any]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        (tables.setdefault(table, {}) if table else tables)[name] = value
    return tables


def test_each_value_is_stored_in_its_own_type_and_read_as_it_was_set(deepctl: InProcess, tmp_path: Path) -> None:
    config = tmp_path / "config" / "config.toml"
    for key, (text, _) in _VALUES.items():
        deepctl("config", "set", key, "--", text).ok()
    assert tomllib.loads(config.read_text()) == _in_tables({key: value for key, (_, value) in _VALUES.items()})
    shown = {row["key"]: row for row in deepctl("config", "show", "--json").ok().json["settings"]}
    for key, (text, _) in _VALUES.items():
        assert shown[key] == {"key": key, "value": text, "source": "config"}
        assert deepctl("config", "get", key).ok().stdout == f"{text}\n"
        deepctl("config", "unset", key).ok()
    assert not any(tomllib.loads(config.read_text()).values())
    shown_keys = {row["key"] for row in deepctl("config", "show", "--json").ok().json["settings"]}
    assert shown_keys == {key for key in SETTINGS if not key.startswith("model_profile.")}


def test_a_profile_overrides_single_keys_of_a_table(deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "model_settings.temperature", "1").ok()
    deepctl("config", "set", "model_settings.seed", "1").ok()
    deepctl("config", "set", "model_settings.seed", "2", "--user", "alice").ok()
    shown = {row["key"]: row for row in deepctl("config", "show", "--user", "alice", "--json").ok().json["settings"]}
    assert shown["model_settings.temperature"]["source"] == "config"
    assert shown["model_settings.seed"] == {"key": "model_settings.seed", "value": "2", "source": "profile"}


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("model_settings.temprature", "1", "'model_settings.temperature'"),
        ("model_settings.zzz", "1", "Keys of [model_settings] are: temperature, top_p, "),
        ("model_settings.temperature", "hot", "a number from 0 to 10"),
        ("model_settings.temperature", "nan", "a number from 0 to 10"),
        ("model_settings.temperature", "\u0661", "a number from 0 to 10"),
        ("model_settings.temperature", "1_0", "a number from 0 to 10"),
        ("model_settings.top_p", "1.1", "a number from 0 to 1"),
        ("model_settings.seed", "1.5", "a whole number from"),
        ("model_settings.max_tokens", "0", "a whole number from 1"),
        ("model_settings.thinking", "huge", "off, minimal, low, medium, high, xhigh, max, on"),
        ("model_settings.stop_sequences", "END", "list of texts"),
        ("model_settings.stop_sequences", '["END", 5]', "list of texts"),
        ("model_settings.extra_body", "[1]", "JSON object"),
        ("model_settings.extra_body", '{"a": null}', "without null"),
        ("model_settings.extra_body", '{"a": NaN}', "JSON object"),
        ("model_settings.extra_body", '{"a": "\\ud800"}', "JSON object"),
        ("model_settings.extra_body", '{"messages": []}', "deepctl sets 'messages' itself"),
        ("model_settings.parallel_tool_calls", "yes", "true, false"),
        ("model_profile.supports_tool", "true", "'model_profile.supports_tools'"),
        ("model_profile.thinking_tags", '["<think>"]', "two texts"),
        ("model_profile.openai_system_prompt_role", "boss", "system, developer, user"),
        ("tools", "few", "full, lean"),
        ("disabled_tools", "ls;rm", "names of tools"),
        ("idle_timeout", "0", "at least 1"),
        ("first_answer_timeout", "soon", "a whole number"),
        ("idle_timout", "5", "'idle_timeout'"),
    ],
)
def test_wrong_keys_and_values_are_exit_2_and_change_nothing(
    deepctl: InProcess, tmp_path: Path, key: str, value: str, hint: str
) -> None:
    refused = deepctl("config", "set", key, value, "--json")
    assert (refused.code, refused.error["code"]) == (2, "bad_setting")
    assert repr(key) in refused.error["message"]
    assert hint in refused.error["hint"]
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[model_settings]\ntemprature = 1\n", "'model_settings.temprature' in"),
        ("[model_settings]\ntemperature = true\n", "'model_settings.temperature' in"),
        ("[model_settings]\nmax_tokens = [5]\n", "'model_settings.max_tokens' in"),
        ("[model_settings]\nextra_body = { at = 2026-01-01 }\n", "'model_settings.extra_body' in"),
        ("model_settings = 5\n", "'model_settings' in"),
        ("[model-settings]\nseed = 1\n", "[model-settings] in"),
        ("[model_profile]\nsupports_tool = true\n", "'model_profile.supports_tool' in"),
        ("[model_profile]\nsupports_tools = 1\n", "'model_profile.supports_tools' in"),
        ("[modelprofile]\nsupports_tools = true\n", "[modelprofile] in"),
        ('disabled_tools = ["a b"]\n', "'disabled_tools' in"),
    ],
)
def test_a_wrong_file_is_exit_2_for_a_chat_and_names_the_key_and_the_file(
    deepctl: InProcess, home: Path, toml: str, message: str
) -> None:
    deepctl("profiles", "create", "alice").ok()
    path = home / "profiles" / "alice" / "profile.toml"
    path.write_text(toml)
    for command in (("chat", "hello"), ("config", "show")):
        refused = deepctl(*command, "--user", "alice")
        assert refused.code == 2
        assert f"{message} {path}" in refused.stderr
    assert "Hint: " in refused.stderr
    assert "profile.toml" in deepctl("doctor", "--user", "alice").stdout


def test_on_and_off_are_also_true_and_false(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    for value, text in (("true", "on"), ("false", "off")):
        (tmp_path / "config" / "config.toml").write_text(f"[model_settings]\nthinking = {value}\n")
        assert deepctl("config", "get", "model_settings.thinking").ok().stdout == f"{text}\n"


def test_passwords_in_extra_body_are_masked(deepctl: InProcess) -> None:
    address = "http://u:geheim@server.test"
    body = json.dumps({"base_url": address, "deep": [{"url": address}]})
    said = [
        deepctl("config", "set", "model_settings.extra_body", body).ok(),
        deepctl("config", "show").ok(),
        deepctl("config", "get", "model_settings.extra_body").ok(),
        deepctl("config", "set", "model_settings.extra_body", body.replace("}]}", "}")),
    ]
    for result in said:
        assert "u:…@server.test" in result.stdout + result.stderr
        assert "geheim" not in result.stdout + result.stderr


def test_a_profile_of_0_1_with_every_setting_stays_valid(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    (home / "profiles" / "alice" / "profile.toml").write_text(_OF_0_1)
    deepctl("chat", "--user", "alice", "hello").ok()
    assert deepctl("config", "show", "--user", "alice", "--json").ok().json["unknown"] == []


_OF_0_1 = """\
version = 1
model = "offline"
base_url = "http://localhost:8000"
instructions = "Be brief."
context_window = 32768
compact_at = 70
approve = "never"
sandbox = "none"
checkpoints = "every_turn"
max_requests = 10
max_tokens = 100000
max_cost = 0.5
retries = 1

[snapshot]
exclude = ["*.log"]

[docker]
image = "python:3.12-slim"

[limits]
seconds = 60
memory = "1G"
processes = 64
tmp = "64M"
disk = "1G"
checkpoints = "1G"

[permissions]
execute = "allow"
"""


def _table(name: str) -> dict[str, Setting]:
    return {key.removeprefix(f"{name}."): item for key, item in SETTINGS.items() if key.startswith(f"{name}.")}


@pytest.mark.parametrize(("table", "type_"), [("model_settings", ModelSettings), ("model_profile", OpenAIModelProfile)])
def test_the_keys_and_types_are_those_of_pydantic_ai(table: str, type_: Any) -> None:
    kinds: dict[str, set[Any]] = {
        "flag": {bool},
        "integer": {int},
        "decimal": {float},
        "texts": {list, tuple, Sequence},
        "table": {dict, object},
        "text": {str, Literal},
    }
    hints = get_type_hints(type_)
    for name, setting in _table(table).items():
        types = (hints[name], *get_args(hints[name]))
        assert kinds[setting.kind] & {get_origin(hint) or hint for hint in types}, name
        literals = {value for hint in types if get_origin(hint) is Literal for value in get_args(hint)}
        if literals and name != "thinking":
            assert {to_value(setting, choice) for choice in setting.choices} == literals, name


def test_the_levels_of_thinking_are_those_of_pydantic_ai() -> None:
    assert set(THINKING) == {"off", "on", *get_args(ThinkingEffort)}
