"""No output of a setting shows the password of an address, whatever it is in, and the real value is what is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepctl.domain.addresses import without_passwords
from tests.support.command import InProcess

SECRETS = ("geheim", "ge%heim", "ge@heim", "ge/heim", "ge:heim", "ge heim", "ge?heim", "ge#heim", "ge\\heim", "8o")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("start", ["http://alice", "HTTPS://", "http://alice%40example.com"])
def test_an_address_is_shown_without_its_password(start: str, secret: str) -> None:
    shown = without_passwords(f"{start}:{secret}@example.com:8080/v1?x=y")
    assert shown == f"{start}:…@example.com:8080/v1?x=y"


@pytest.mark.parametrize(
    "text",
    [
        "http://example.com:8080/v1",
        "http://127.0.0.1:11434/@scope/v1",
        "http://[::1]:8080/v1",
        "https://alice@example.com",
        "openai:gpt-5",
        "google-cloud:claude@20260101",
        "Read alice@example.com: it matters.",
        "C:\\Users\\me:x",
        "**.py,**/*.md",
    ],
)
def test_whatever_has_no_password_is_shown_as_it_is(text: str) -> None:
    assert without_passwords(text) == text


def test_passwords_are_found_in_texts_lists_and_tables() -> None:
    address = "http://u:geheim@h/"
    value = {"a": [f"curl {address} | sh", 1, None], address: {"b": address}}
    assert "geheim" not in str(without_passwords(value))
    assert without_passwords({"a": [1, True]}) == {"a": [1, True]}


def test_no_command_shows_the_password_in_base_url(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "http://alice:geheim@127.0.0.1:9/v1"
    config = tmp_path / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text("[mcp_servers.h]\ncommand = 'http://alice:geheim@h/'\nenabled = false\n")
    deepctl("profiles", "create", "alice").ok()
    said = [deepctl("config", "set", "base_url", address, "--user", "alice", *more) for more in ((), ("--json",))]
    assert address in (home / "profiles" / "alice" / "profile.toml").read_text()
    monkeypatch.setenv("OPENAI_API_KEY", "x" * 10)
    for command in (
        ("config", "show"),
        ("config", "get", "base_url"),
        ("profiles", "show"),
        ("models",),
        ("doctor",),
        ("sandbox", "show"),
        ("config", "set", "base_url", "ftp://alice:geheim@h/"),
        ("config", "set", "sandbox", address),
        ("config", "set", "retries", address),
        ("config", "set", "max_cost", address),
        ("config", "set", "compact_at", address),
        ("config", "set", "model", address),
        ("config", "set", address, "x"),
        ("config", "get", address),
        ("config", "unset", address),
    ):
        for more in ((), ("--json",)):
            said.append(deepctl(*command, "--user", "alice", *more))
    for line in ("sandbox = 'X'", "limits.memory = 'X'", "limits = 'X'", "mcp_servers = 'X'", "permissions = 'X'"):
        (home / "profiles" / "alice" / "profile.toml").write_text(line.replace("X", address))
        for command in (("config", "show"), ("doctor",), ("sandbox", "show"), ("chat", "--model", "offline", "hello")):
            said.append(deepctl(*command, "--user", "alice"))
    for table in (
        "command = 'x'\ncwd = 'X'",
        "command = 'x'\nenv = 'X'",
        "url = 'X'",
        "comand = 'X'",
        "command = 'x'\ntool_timeout_sec = 'X'",
        "command = 'x'\ndefault_tools_approval_mode = 'X'",
        "command = 'x'\nargs = [['X']]",
    ):
        text = f"[mcp_servers.h]\n{table}\n".replace("X", address)
        (home / "profiles" / "alice" / "profile.toml").write_text(text)
        said += [deepctl("config", "show", "--user", "alice"), deepctl("doctor", "--user", "alice")]
    for rules in ("read = 'X'", "X = 'ask'", "write = { rules = ['X'] }", "edit = { rules = [{ pattern = 'X' }] }"):
        (home / "profiles" / "alice" / "profile.toml").write_text(f"[permissions]\n{rules}\n".replace("X", address))
        said += [deepctl("sandbox", "show", "--user", "alice"), deepctl("doctor", "--user", "alice")]
    assert [result for result in said if "geheim" in result.stdout + result.stderr] == []
    assert {result.code for result in said} <= {0, 2, 3, 5}
