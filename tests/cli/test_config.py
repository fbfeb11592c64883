"""`deepctl config`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import InProcess


def test_set_keeps_comments_and_the_order_of_the_file(deepctl: InProcess, tmp_path: Path) -> None:
    path = tmp_path / "config" / "config.toml"
    path.parent.mkdir()
    path.write_text('# mine\nmodel = "openai:gpt-5"  # the good one\n\n# later\n')
    deepctl("config", "set", "model", "anthropic:claude-sonnet-4-6").ok()
    deepctl("config", "set", "approve", "never").ok()
    assert path.read_text() == (
        '# mine\nmodel = "anthropic:claude-sonnet-4-6"  # the good one\n\n# later\napprove = "never"\n'
    )
    deepctl("config", "unset", "approve").ok()
    deepctl("config", "unset", "model").ok()
    assert path.read_text() == "# mine\n\n# later\n"
    deepctl("config", "set", "model", "offline").ok()
    assert path.read_text().startswith("# mine\n")


def test_a_settings_file_that_is_a_link_stays_one(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "config" / "config.toml").symlink_to(tmp_path / "dotfiles" / "deepctl.toml")
    deepctl("config", "set", "model", "offline").ok()
    assert (tmp_path / "config" / "config.toml").is_symlink()
    assert (tmp_path / "dotfiles" / "deepctl.toml").read_text() == 'model = "offline"\n'


def test_option_environment_profile_config_default_win_in_this_order(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(*options: str) -> tuple[str, str]:
        found = deepctl("config", "get", "model", "--json", *options).ok().json
        return found["value"], found["source"]

    deepctl("profiles", "create", "alice").ok()
    assert model() == ("offline", "default")
    deepctl("config", "set", "model", "a:config").ok()
    assert model("--user", "alice") == ("a:config", "config")
    deepctl("config", "set", "model", "a:profile", "--user", "alice").ok()
    assert model("--user", "alice") == ("a:profile", "profile")
    assert model() == ("a:config", "config")
    monkeypatch.setenv("DEEPCTL_MODEL", "a:environment")
    assert model("--user", "alice") == ("a:environment", "environment")
    assert deepctl("chat", "--user", "alice", "--model", "offline", "hello").code == 0


def test_default_user_and_environment_name_the_profile(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", "hello").ok()
    deepctl("config", "set", "default_user", "carol").ok()
    deepctl("chat", "hello").ok()
    monkeypatch.setenv("DEEPCTL_USER", "dave")
    deepctl("chat", "hello").ok()
    deepctl("chat", "--profile", "erin", "hello").ok()
    assert sorted(os.listdir(home / "profiles")) == ["carol", "dave", "default", "erin"]


def test_unknown_settings_and_bad_values_are_exit_2(deepctl: InProcess, tmp_path: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    mistyped = deepctl("config", "set", "modle", "x")
    assert mistyped.code == 2
    assert "'model'" in mistyped.stderr
    assert deepctl("config", "set", "approve", "maybe").code == 2
    assert deepctl("config", "set", "model", "").code == 2
    assert deepctl("config", "get", "modle").code == 2
    assert deepctl("config", "set", "default_user", "x", "--user", "alice").code == 2
    assert deepctl("config", "get", "base_url").code == 3
    assert deepctl("config", "unset", "model").code == 3
    (tmp_path / "config").mkdir(exist_ok=True)
    (tmp_path / "config" / "config.toml").write_text('approve = "maybe"\nfuture = 1\n')
    bad = deepctl("chat", "hello")
    assert bad.code == 2
    assert "config.toml" in bad.stderr


def test_show_names_sources_and_keys_that_mean_nothing(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text('model = "x:y"\nfuture = 1\n')
    shown = deepctl("config", "show", "--json").ok().json
    assert {"key": "model", "value": "x:y", "source": "config"} in shown["settings"]
    assert shown["unknown"] == ["future"]
    assert deepctl("config", "path").ok().stdout == f"{tmp_path}/config/config.toml\n"


def test_broken_toml_is_exit_5_and_commands_without_settings_go_on(deepctl: InProcess, home: Path) -> None:
    deepctl("chat", "--user", "alice", "remember tea").ok()
    (home / "profiles" / "alice" / "profile.toml").write_text('model = "unclosed\n')
    broken = deepctl("chat", "--user", "alice", "hello")
    assert broken.code == 5
    assert "profile.toml" in broken.stderr
    assert "line 1" in broken.stderr
    assert deepctl("config", "set", "model", "offline", "--user", "alice").code == 5
    assert (home / "profiles" / "alice" / "profile.toml").read_text() == 'model = "unclosed\n'
    assert "tea" in deepctl("memory", "show", "--user", "alice").ok().stdout
    assert deepctl("sessions", "list", "--user", "alice").code == 0
    assert deepctl("profiles", "list", "--json").ok().json["profiles"][0]["problem"]


def test_a_later_format_of_profile_toml_is_refused(deepctl: InProcess, home: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    path = home / "profiles" / "alice" / "profile.toml"
    path.write_text(path.read_text().replace("version = 1", "version = 2"))
    before = path.read_bytes()
    result = deepctl("chat", "--user", "alice", "hello", "--json")
    assert (result.code, result.events[-1]["code"]) == (5, "newer_format")
    assert deepctl("config", "set", "model", "offline", "--user", "alice").code == 5
    assert path.read_bytes() == before


def test_get_and_show_tell_what_a_chat_would_use(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "model", "a:alice", "--user", "alice").ok()
    assert deepctl("config", "get", "model").ok().stdout == "offline\n"
    monkeypatch.setenv("DEEPCTL_USER", "alice")
    assert deepctl("config", "get", "model").ok().stdout == "a:alice\n"
    assert {"key": "model", "value": "a:alice", "source": "profile"} in deepctl("config", "show", "--json").ok().json[
        "settings"
    ]


def test_what_would_only_fail_later_is_refused_by_set(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in (("default_user", "a b"), ("model", "gpt"), ("base_url", "localhost:8000")):
        assert deepctl("config", "set", key, value).code == 2, key
    monkeypatch.setenv("DEEPCTL_USER", "a b")
    refused = deepctl("memory", "show")
    assert refused.code == 2
    assert "$DEEPCTL_USER" in refused.stderr


def test_an_unknown_key_can_be_taken_out(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "config.toml"
    path.write_text('modle = "x"\nmodel = "offline"\n')
    deepctl("config", "unset", "modle").ok()
    assert path.read_text() == 'model = "offline"\n'
    assert deepctl("config", "unset", "modle").code == 2


def test_a_mark_of_byte_order_in_settings_is_no_part_of_them(
    deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config" / "config.toml"
    config.parent.mkdir()
    config.write_bytes('\ufeffapprove = "never"\n'.encode())
    assert deepctl("config", "get", "approve").ok().stdout == "never\n"
    deepctl("config", "set", "sandbox", "none").ok()
    assert deepctl("config", "get", "approve").ok().stdout == "never\n"


def test_set_unset_and_path_use_config_toml_without_user_whatever_profile_is_the_default(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("profiles", "create", "dan").ok()
    monkeypatch.setenv("DEEPCTL_USER", "dan")
    changed = deepctl("config", "set", "approve", "never", "--json").ok().json
    assert changed["profile"] is None
    assert changed["path"] == deepctl("config", "path").ok().stdout.strip()
    assert deepctl("config", "unset", "approve", "--json").ok().json["profile"] is None
    for command in ("set", "unset", "path"):
        shown = " ".join(deepctl("config", command, "--help").ok().stdout.split())
        assert "Default: config.toml, the settings of all profiles." in shown
        assert "$DEEPCTL_USER" not in shown


def test_set_says_that_a_variable_overrides_the_setting(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    assert deepctl("config", "set", "model", "a:b").ok().stderr == ""
    monkeypatch.setenv("DEEPCTL_MODEL", "offline")
    assert deepctl("config", "set", "model", "a:b").ok().stderr == (
        "$DEEPCTL_MODEL is set, and overrides the setting model.\n"
    )
    assert deepctl("config", "set", "model", "a:b", "--json").ok().stderr == ""
    assert deepctl("config", "set", "approve", "ask").ok().stderr == ""
    assert deepctl("config", "unset", "model").ok().stderr == ""


def test_a_table_of_a_settings_file_is_named_as_in_toml(deepctl: InProcess, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("[model_settings]\nseed = 1\n[model_settings]\nseed = 2\n")
    assert "Cannot declare model_settings twice (at line 3" in deepctl("config", "show").stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("temperature", "model_settings.temperature"), ("processes", "limits.processes"), ("max_token", "max_tokens")],
)
def test_a_setting_without_its_table_is_recognised(deepctl: InProcess, typed: str, meant: str) -> None:
    assert f"Did you mean '{meant}'?" in deepctl("config", "set", typed, "1").stderr
