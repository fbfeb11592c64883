"""Rules and limits in settings files: what is read, what is refused, and who wins."""

from __future__ import annotations

import os
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

from deepctl.domain import settings
from deepctl.domain.permissions import OPERATIONS, Rule, Rules, about_file, parse
from deepctl.errors import BadSetting
from deepctl.layout import Root
from tests.support.command import InProcess


def _parsed(toml: str) -> dict[str, Rules]:
    return parse(tomllib.loads(toml).get("permissions", {}), "config.toml")


def _config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_an_action_alone_is_a_default_without_rules() -> None:
    for action in ("allow", "ask", "deny"):
        assert _parsed(f'[permissions]\nwrite = "{action}"') == {"write": Rules(action)}


def test_a_table_has_a_default_and_rules_in_their_order() -> None:
    found = _parsed(
        """
        [permissions.execute]
        default = "ask"
        rules = [
            { pattern = "git **", action = "allow" },
            { pattern = "git push**", action = "deny", description = "not from here" },
        ]
        [[permissions.read.rules]]
        pattern = "secrets/**"
        action = "deny"
        """
    )
    assert found == {
        "execute": Rules("ask", (Rule("git **", "allow"), Rule("git push**", "deny", "not from here"))),
        "read": Rules(None, (Rule("secrets/**", "deny"),)),
    }


def test_what_is_not_named_has_no_rules() -> None:
    assert _parsed("") == {}
    assert _parsed("[permissions]") == {}
    assert _parsed("[permissions.read]") == {"read": Rules()}
    assert {operation for name in OPERATIONS for operation in _parsed(f'[permissions]\n{name} = "ask"')} == set(
        OPERATIONS
    )


MISSPELLED = {
    "no table": 'permissions = "ask"',
    "a list": 'permissions = ["ask"]',
    "operation": '[permissions]\nwriet = "ask"',
    "operation in capitals": '[permissions]\nWrite = "ask"',
    "an operation that has no rules here": '[permissions]\ngrep = "deny"',
    "action": '[permissions]\nwrite = "denny"',
    "action in capitals": '[permissions]\nwrite = "Deny"',
    "empty action": '[permissions]\nwrite = ""',
    "action with a blank": '[permissions]\nwrite = "deny "',
    "number": "[permissions]\nwrite = 3",
    "boolean": "[permissions]\nwrite = false",
    "list of actions": '[permissions]\nwrite = ["deny"]',
    "key of an operation": '[permissions.write]\ndefualt = "deny"',
    "default": '[permissions.write]\ndefault = "no"',
    "default that is no text": "[permissions.write]\ndefault = false",
    "default that is a table": '[permissions.write.default]\naction = "deny"',
    "rules that are a table": '[permissions.write.rules]\n"x" = "deny"',
    "rules that are text": '[permissions.write]\nrules = "deny"',
    "rule that is text": '[permissions.write]\nrules = ["x"]',
    "key of a rule": '[permissions.write]\nrules = [{ patern = "x", action = "deny" }]',
    "more keys of a rule": '[permissions.write]\nrules = [{ pattern = "x", action = "deny", when = "now" }]',
    "no pattern": '[permissions.write]\nrules = [{ action = "deny" }]',
    "empty pattern": '[permissions.write]\nrules = [{ pattern = "", action = "deny" }]',
    "pattern that is a list": '[permissions.write]\nrules = [{ pattern = ["x"], action = "deny" }]',
    "no action": '[permissions.write]\nrules = [{ pattern = "x" }]',
    "action of a rule": '[permissions.write]\nrules = [{ pattern = "x", action = "forbid" }]',
    "description": '[permissions.write]\nrules = [{ pattern = "x", action = "deny", description = 3 }]',
}


@pytest.mark.parametrize("toml", MISSPELLED.values(), ids=MISSPELLED.keys())
def test_what_is_misspelled_is_refused_and_the_file_named(toml: str) -> None:
    with pytest.raises(BadSetting, match=r"config\.toml"):
        _parsed(toml)


@pytest.mark.parametrize("operation", ["read", "write", "edit"])
@pytest.mark.parametrize("pattern", ["/etc/passwd", "/", "../x", "./../x", "~/x", "~", "/workspace/../etc", "//x"])
def test_a_pattern_that_leads_out_is_refused(operation: str, pattern: str) -> None:
    with pytest.raises(BadSetting, match="cannot match anything"):
        parse({operation: {"rules": [{"pattern": pattern, "action": "deny"}]}}, "config.toml")


NEVER_MATCHING = [
    "..",
    "././../x",
    "a/../../x",
    "a/../b",
    "a//b",
    "a/./b",
    "/workspace/",
    "./",
    ".",
    "/profile/",
    "/profile/../x",
]


@pytest.mark.parametrize("pattern", NEVER_MATCHING)
def test_a_pattern_that_no_path_can_match_is_refused_or_understood(pattern: str) -> None:
    """Paths come to the rules normalised: what has `//`, `.`, `..` or a slash at its end is a rule without effect."""
    with pytest.raises(BadSetting):
        parse({"read": {"rules": [{"pattern": pattern, "action": "deny"}]}}, "config.toml")


@pytest.mark.parametrize("written", ["secrets/**", "./secrets/**", "/workspace/secrets/**", "/workspace/./secrets/**"])
def test_a_pattern_is_relative_to_the_workspace_however_it_is_written(written: str) -> None:
    found = parse({"read": {"rules": [{"pattern": written, "action": "deny"}]}}, "config.toml")
    assert found["read"].rules == (Rule("secrets/**", "deny"),)


def test_a_pattern_below_profile_is_for_files_of_the_profile_only() -> None:
    rules = [{"pattern": "/profile/./notes/", "action": "ask"}, {"pattern": "notes/**", "action": "deny"}]
    found = parse({"read": {"rules": rules}}, "config.toml")
    assert found["read"].rules[0] == Rule("/profile/notes/**", "ask")
    # The first rule decides, so the second one is left for the project.
    assert about_file(found, "read", ["/profile/notes/a"]).action == "ask"
    assert about_file(found, "read", ["notes/a"]).action == "deny"
    assert about_file(found, "read", ["/profile/a"]).action == "allow"
    slashes = parse({"read": {"rules": [{"pattern": "*/*/a", "action": "deny"}]}}, "config.toml")
    assert about_file(slashes, "read", ["/profile/x/a"]).action == "allow"


def test_a_pattern_for_commands_is_taken_as_it_is() -> None:
    for pattern in ("/usr/bin/env **", "./configure", "~/bin/x", "../x", "/workspace/run"):
        found = parse({"execute": {"rules": [{"pattern": pattern, "action": "ask"}]}}, "config.toml")
        assert found["execute"].rules == (Rule(pattern, "ask"),)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("pattern", ["[\\]", "[z-a]", "ok/[\\]"])
def test_a_pattern_that_would_silently_match_nothing_is_refused(operation: str, pattern: str) -> None:
    with pytest.raises(BadSetting, match="is invalid"):
        parse({operation: {"rules": [{"pattern": pattern, "action": "deny"}]}}, "config.toml")


def test_a_pattern_with_two_brackets_is_refused_without_a_warning() -> None:
    warnings.simplefilter("error")  # for this test: pytest puts the filters back
    with pytest.raises(BadSetting, match="is invalid"):
        parse({"read": {"rules": [{"pattern": "[[q]x", "action": "deny"}]}}, "config.toml")


def test_a_directory_is_all_that_is_in_it() -> None:
    found = parse({"read": {"rules": [{"pattern": "secrets/", "action": "deny"}]}}, "config.toml")
    assert found["read"].rules[0].pattern == "secrets/**"


def test_a_profiles_rules_for_an_operation_win_and_others_stay(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    _config(
        tmp_path,
        '[permissions]\nwrite = "deny"\nedit = "ask"\n[permissions.read]\ndefault = "ask"\n'
        'rules = [{ pattern = "s/**", action = "deny" }]\n',
    )
    profile = Root(str(home)).profile("alice")
    with open(profile.settings, "a") as file:
        file.write('\n[permissions]\nwrite = "allow"\nread = "allow"\nexecute = "ask"\n')
    both = settings.load(os.environ, profile).permissions()
    assert both == {"write": Rules("allow"), "edit": Rules("ask"), "read": Rules("allow"), "execute": Rules("ask")}
    assert settings.load(os.environ).permissions()["write"] == Rules("deny")


def test_a_mistake_in_config_toml_is_found_though_the_profile_has_rules_of_its_own(
    deepctl: InProcess, home: Path, tmp_path: Path
) -> None:
    deepctl("profiles", "create", "alice").ok()
    config = _config(tmp_path, '[permissions]\nwrite = "denny"\n')
    profile = Root(str(home)).profile("alice")
    with open(profile.settings, "a") as file:
        file.write('\n[permissions]\nwrite = "allow"\n')
    result = deepctl("chat", "--user", "alice", "hello")
    assert result.code == 2
    assert str(config) in result.stderr


@pytest.mark.parametrize("toml", MISSPELLED.values(), ids=MISSPELLED.keys())
def test_a_chat_with_bad_rules_is_exit_2_names_the_file_and_makes_nothing(
    deepctl: InProcess, home: Path, tmp_path: Path, toml: str
) -> None:
    config = _config(tmp_path, toml)
    result = deepctl("chat", "--user", "alice", "hello")
    assert result.code == 2
    assert result.stderr.startswith("Error: ")
    assert str(config) in result.stderr
    assert not home.exists()


def test_bad_rules_are_the_last_event_of_json(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    _config(tmp_path, '[permissions]\nwrite = "denny"\n')
    result = deepctl("chat", "--json", "hello")
    (event,) = result.events
    assert (result.code, event["type"], event["exit_code"]) == (2, "error", 2)
    assert result.stderr == ""
    assert not home.exists()


def test_a_chat_with_a_pattern_that_is_none_names_the_file(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    config = _config(tmp_path, "[permissions.read]\nrules = [{ pattern = '[\\]', action = 'deny' }]\n")
    result = deepctl("chat", "hello")
    assert result.code == 2
    assert not home.exists()
    assert str(config) in result.stderr


@pytest.mark.parametrize("table", ["permission", "Permissions", "permisions"])
def test_a_misspelled_table_of_rules_is_not_ignored_in_silence(deepctl: InProcess, tmp_path: Path, table: str) -> None:
    _config(tmp_path, f'[{table}]\nwrite = "deny"\n')
    result = deepctl("chat", "write a.txt: x")
    assert table in result.stderr


@pytest.mark.parametrize(
    ("key", "value", "written"),
    [
        ("limits.memory", "512M", 'memory = "512M"'),
        ("limits.memory", "16777216", 'memory = "16777216"'),
        ("limits.disk", "1M", 'disk = "1M"'),
        ("limits.tmp", "2G", 'tmp = "2G"'),
        ("limits.processes", "4", "processes = 4"),
        ("limits.seconds", "1", "seconds = 1"),
    ],
)
def test_a_limit_is_set_and_read_back(deepctl: InProcess, tmp_path: Path, key: str, value: str, written: str) -> None:
    deepctl("config", "set", key, value).ok()
    assert written in (tmp_path / "config" / "config.toml").read_text()
    assert deepctl("config", "get", key).ok().stdout == f"{value}\n"


BAD_LIMITS = [
    *(
        ("limits.memory", value)
        for value in ("0", "1", "15M", "512m", "512MB", "512 M", "1.5G", "lots", "99999999999G")
    ),
    *(("limits.processes", value) for value in ("0", "3", "1K", "1.5", "many", "99999999999999999999")),
    *(("limits.seconds", value) for value in ("0", "1.5", "10s", "1e3")),
    *(("limits.tmp", value) for value in ("0", "1023K", "x")),
    *(("limits.disk", value) for value in ("0", "1K", "")),
    ("docker.image", ""),
]


@pytest.mark.parametrize(("key", "value"), BAD_LIMITS)
def test_a_limit_that_is_none_is_refused_and_nothing_written(
    deepctl: InProcess, tmp_path: Path, key: str, value: str
) -> None:
    result = deepctl("config", "set", key, value)
    assert result.code == 2
    assert key in result.stderr
    assert not (tmp_path / "config" / "config.toml").exists()


@pytest.mark.parametrize("value", ["٣٣", "1_0", "+5", " 7 "])
def test_a_whole_number_is_written_in_plain_digits(deepctl: InProcess, value: str) -> None:
    assert deepctl("config", "set", "limits.processes", value).code == 2


def test_the_limits_of_a_size_are_told_as_sizes(deepctl: InProcess) -> None:
    told = deepctl("config", "set", "limits.memory", "1").stderr
    assert "It must be at least 16M." in told


def test_a_limit_that_is_too_large_is_not_called_too_small(deepctl: InProcess) -> None:
    assert "at least" not in deepctl("config", "set", "limits.seconds", "1125899906842624").stderr


@pytest.mark.parametrize("toml", ["memory = true", "memory = 1.5", "memory = -1", "memory = 0", "memory = [1]"])
def test_a_chat_with_a_bad_limit_is_exit_2_and_names_the_file(
    deepctl: InProcess, home: Path, tmp_path: Path, toml: str
) -> None:
    config = _config(tmp_path, f"[limits]\n{toml}\n")
    result = deepctl("chat", "hello")
    assert result.code == 2
    assert str(config) in result.stderr
    assert "limits.memory" in result.stderr
    assert not home.exists()


def test_toml_integers_are_limits_and_the_profile_wins(deepctl: InProcess, home: Path, tmp_path: Path) -> None:
    deepctl("profiles", "create", "alice").ok()
    _config(tmp_path, "[limits]\nmemory = 536870912\nprocesses = 64\nseconds = 5\n")
    deepctl("config", "set", "--user", "alice", "limits.seconds", "9").ok()
    found = settings.load(os.environ, Root(str(home)).profile("alice")).limits()
    assert found == (9, 512 << 20, 64, 256 << 20, 10 << 30)
    assert all(isinstance(one, int) for one in found)


def test_config_show_lists_every_limit_and_where_it_comes_from(deepctl: InProcess, tmp_path: Path) -> None:
    _config(tmp_path, "[limits]\nmemory = 536870912\n[docker]\nimage = 'debian'\n[permissions]\nwrite = 'ask'\n")
    shown: dict[str, Any] = deepctl("config", "show", "--json").ok().json
    values = {one["key"]: (one["value"], one["source"]) for one in shown["settings"]}
    assert values["limits.memory"] == ("536870912", "config")
    assert values["limits.seconds"] == ("600", "default")
    assert values["limits.processes"] == ("256", "default")
    assert values["limits.tmp"] == ("256M", "default")
    assert values["limits.disk"] == ("10G", "default")
    assert values["docker.image"] == ("debian", "config")
    assert shown["unknown"] == []


def test_setting_something_else_leaves_the_rules_as_they_are_written(deepctl: InProcess, tmp_path: Path) -> None:
    config = _config(tmp_path, '[permissions.write]  # mine\ndefault = "ask"\n')
    deepctl("config", "set", "limits.memory", "64M").ok()
    assert '[permissions.write]  # mine\ndefault = "ask"\n' in config.read_text()
    assert settings.load(os.environ).permissions() == {"write": Rules("ask")}


@pytest.mark.parametrize("action", [("set", "limits.memory", "64M"), ("unset", "limits.memory")])
def test_a_table_that_is_none_is_no_bug_of_deepctl(deepctl: InProcess, tmp_path: Path, action: tuple[str, ...]) -> None:
    _config(tmp_path, "limits = 5\n")
    assert "bug in deepctl" not in deepctl("config", *action).stderr
