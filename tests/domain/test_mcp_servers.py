"""Tables of MCP servers: what they may say, which of two wins, and what a server gets of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.domain import mcp_servers, profiles, settings
from deepctl.domain.mcp_servers import McpServer
from deepctl.errors import BadSetting
from deepctl.layout import Root
from deepctl.store import projects
from tests.support.command import InProcess

CANARY = "canary-0123456789"
SCHEME, BOX, WITH_PASSWORD = "http://", "http://x", "https://me:pw@x"
FAR, REMOTE = "http://far.example/mcp", "https://x.example/mcp"


def _parse(**table: Any) -> McpServer:
    return mcp_servers.parse({"docs": table}, "config.toml")["docs"]


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def test_a_program_and_an_address_with_everything_that_can_be_said_of_them() -> None:
    server = _parse(
        command="npx",
        args=["-y", "a-server"],
        cwd="~/here",
        env={"MODE": "quiet"},
        env_vars=["TOKEN"],
        enabled_tools=["one", "two"],
        disabled_tools=["two"],
        startup_timeout_sec=3,
        tool_timeout_sec=1.5,
        default_tools_approval_mode="approve",
        tools={"two": {"approval_mode": "prompt"}},
    )
    assert (server.command, server.args, server.target) == ("npx", ("-y", "a-server"), "npx")
    assert [name for name in ("one", "two", "three") if server.offers(name)] == ["one"]
    assert (server.startup_timeout, server.tool_timeout) == (3.0, 1.5)
    assert [server.asks(name) for name in ("one", "two")] == [False, True]
    remote = _parse(url=f"{REMOTE}?key=hidden", http_headers={"X-A": "b"}, env_http_headers={"X-K": "KEY"})
    assert remote.target == "https://x.example/mcp"
    assert remote.asks("anything")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"command": "x", "comand": "y"}, "Did you mean 'command'?"),
        ({"url": BOX, "headers": {}}, "Did you mean 'http_headers'?"),
        ({"url": BOX, "bearer_token": "t"}, "Did you mean 'bearer_token_env_var'?"),
        ({"command": "x", "weather": 1}, "Keys are:"),
        ({"command": "x", "url": BOX}, "both command and url"),
        ({}, "neither command nor url"),
        ({"command": ["npx"]}, "needs text for command"),
        ({"command": ""}, "needs text for command"),
        ({"command": "bin/x"}, "name of a program in $PATH"),
        ({"command": "../x"}, "name of a program in $PATH"),
        ({"command": "x", "args": "one"}, "list of texts for args"),
        ({"command": "x", "args": [1]}, "list of texts for args"),
        ({"command": "x", "env": ["A=b"]}, "table of texts for env"),
        ({"command": "x", "env": {"A": 1}}, "table of texts for env"),
        ({"command": "x", "env": {"A B": "1"}}, "an invalid name in env"),
        ({"command": "x", "env": {"TOKEN": "$TOKEN"}}, 'env_vars = ["TOKEN"]'),
        ({"command": "x", "env": {"TOKEN": "${OTHER:-x}"}}, 'env_vars = ["OTHER"]'),
        ({"url": BOX, "http_headers": {"K": "${KEY}"}}, 'env_http_headers = { K = "KEY" }'),
        ({"command": "x", "cwd": "here"}, "begin with / or ~/"),
        ({"command": "x", "bearer_token_env_var": "T"}, "can only be used with url"),
        ({"url": BOX, "args": []}, "can only be used with command"),
        ({"url": "ftp://x"}, "a url that cannot be used"),
        ({"url": SCHEME}, "a url that cannot be used"),
        ({"url": f"{SCHEME}[x"}, "a url that cannot be used"),
        ({"url": WITH_PASSWORD}, "a password in its url"),
        ({"url": BOX, "http_headers": {"A: b": "c"}}, "an invalid name in http_headers"),
        ({"url": BOX, "http_headers": {"A": "b\r\nEvil: yes"}}, "a header that cannot be sent"),
        ({"url": BOX, "enabled": "no"}, "needs true or false"),
        ({"url": BOX, "tool_timeout_sec": True}, "a number of seconds"),
        ({"url": BOX, "tool_timeout_sec": float("nan")}, "a number of seconds"),
        ({"url": BOX, "startup_timeout_sec": -1}, "a number of seconds"),
        ({"url": BOX, "default_tools_approval_mode": "auto"}, "prompt, approve"),
        ({"url": BOX, "tools": {"a": {"approval": "approve"}}}, "Did you mean 'approval_mode'?"),
        ({"url": BOX, "tools": {"a": "approve"}}, "must be a table"),
        ({"url": BOX, "tools": []}, "tools that are not a table"),
    ],
)
def test_what_is_misspelled_or_impossible_is_refused(table: dict[str, Any], said: str) -> None:
    with pytest.raises(BadSetting) as caught:
        _parse(**table)
    assert "[mcp_servers.docs" in caught.value.message
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_secret_where_the_name_of_a_variable_belongs_is_not_repeated() -> None:
    for table in ({"bearer_token_env_var": f"sk-{CANARY}"}, {"env_http_headers": {"A": f"sk-{CANARY}"}}):
        with pytest.raises(BadSetting) as caught:
            _parse(url=BOX, **table)
        assert CANARY not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a__b", "a_", "_a", "1a", "a/b", "ä", "a" * 33])
def test_a_name_from_which_no_tools_name_could_be_made_is_refused(name: str) -> None:
    with pytest.raises(BadSetting):
        mcp_servers.parse({name: {"url": BOX}}, "config.toml")


def test_a_profiles_table_replaces_that_of_config_and_can_switch_it_off(home: Path) -> None:
    profile = profiles.create(layout.root(os.environ), "alice")
    both = f'[mcp_servers.one]\ncommand = "x"\nargs = ["a"]\n[mcp_servers.two]\nurl = "{BOX}"\n'
    _write(os.environ["DEEPCTL_CONFIG"], both)
    _write(profile.settings, '[mcp_servers.one]\ncommand = "y"\n[mcp_servers.two]\nenabled = false\n')
    one, two = settings.load(os.environ, profile).mcp_servers()
    assert (one.command, one.args, one.source) == ("y", (), "profile")
    assert not two.enabled
    assert mcp_servers.notice([one, two]) == "MCP servers outside the sandbox, with your rights: one."
    assert [server.command for server in settings.load(os.environ).mcp_servers()] == ["x", None]


def test_a_local_server_gets_what_any_program_needs_and_what_its_table_names() -> None:
    environment = {
        "PATH": "/bin",
        "HOME": "/home/alice",
        "OPENAI_API_KEY": CANARY,
        "DEEPCTL_HOME": "/root",
        "TOKEN": "t",
        "LD_PRELOAD": "x.so",
    }
    server = _parse(command="x", env={"MODE": "quiet", "HOME": "/elsewhere"}, env_vars=["TOKEN"])
    assert mcp_servers.variables(server, environment) == {
        "PATH": "/bin",
        "HOME": "/elsewhere",
        "TOKEN": "t",
        "MODE": "quiet",
    }
    assert mcp_servers.directory(server, environment) == "/elsewhere"
    assert mcp_servers.missing_variables(server, environment) == []
    assert mcp_servers.missing_variables(server, {**environment, "TOKEN": ""}) == ["TOKEN"]


def test_a_program_is_not_looked_for_where_one_happens_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "a-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    server = _parse(command="a-server")
    for path in (".", "", ":.:"):
        assert mcp_servers.program(server, {"PATH": path}) is None
    assert mcp_servers.program(server, {"PATH": str(tmp_path)}) == str(program)
    assert mcp_servers.program(_parse(command="~/a-server"), {"HOME": str(tmp_path)}) == str(program)


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ({"command": "{workspace}/server"}, "its command"),
        ({"cwd": "{workspace}"}, "its cwd"),
        ({"cwd": "~/profiles/alice/workspace"}, "its cwd"),
        ({"cwd": "{elsewhere}/link"}, "its cwd"),
        ({"args": ["-u", "{workspace}/s.py"]}, "an argument of it"),
        ({"args": ["~/profiles/alice/workspace/s.py"]}, "an argument of it"),
        ({"args": ["{elsewhere}/../profiles/alice/workspace"]}, "an argument of it"),
        ({"args": ["{elsewhere}/link/s.py"]}, "an argument of it"),
        ({"args": ["--config={workspace}/c.toml"]}, "an argument of it"),
        ({"args": ["alice/workspace/s.py"], "cwd": "~/profiles"}, "an argument of it"),
        ({"args": ["profiles/alice/workspace/s.py"]}, "an argument of it"),
        ({"args": ["{elsewhere}/s.py", "stdio", "", "--port=80"], "cwd": "{elsewhere}"}, None),
    ],
)
def test_nothing_that_a_server_is_made_of_lies_where_agents_write(
    tmp_path: Path, table: dict[str, Any], part: str | None
) -> None:
    workspace, elsewhere = tmp_path / "profiles" / "alice" / "workspace", tmp_path / "elsewhere"
    workspace.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "link").symlink_to(workspace)

    def placed(text: str) -> str:
        return text.replace("{workspace}", str(workspace)).replace("{elsewhere}", str(elsewhere))

    given = {key: [placed(one) for one in value] if key == "args" else placed(value) for key, value in table.items()}
    server = _parse(**{"command": "/bin/sh", **given})
    environment = {"HOME": str(tmp_path), "DEEPCTL_HOME": str(tmp_path)}
    assert mcp_servers.where_agents_write(server, server.command or "", environment) == part


def test_nothing_that_a_server_runs_lies_in_a_project_of_any_profile(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    (shop / ".venv" / "bin").mkdir(parents=True)
    python = shop / ".venv" / "bin" / "python"
    python.symlink_to("/bin/sh")
    (tmp_path / "link").symlink_to(python)
    environment = {"HOME": str(tmp_path), "DEEPCTL_HOME": str(tmp_path / "root")}

    def part(**table: Any) -> str | None:
        server = _parse(**{"command": "/bin/sh", **table})
        return mcp_servers.where_agents_write(server, server.command or "", environment)

    assert part(command=str(python)) is None
    projects.ensure(profiles.create(Root(str(tmp_path / "root")), "bob"), str(shop))
    # The interpreter of a virtual environment is a link, which the agent could replace.
    assert part(command=str(python)) == "its command"
    assert part(command=str(tmp_path / "link")) == "its command"
    assert part(cwd=str(shop)) == "its cwd"
    assert part(args=["-u", str(shop / "server.py")]) == "an argument of it"
    assert part(args=["--repository", str(shop)]) is None
    assert part(args=[f"{shop}-server/server.py"]) is None


def test_config_show_names_servers_and_no_secret(deepctl: InProcess) -> None:
    _write(
        os.environ["DEEPCTL_CONFIG"],
        f"""
[mcp_servers.local]
command = "a-server"
args = ["--key", "{CANARY}"]
env = {{ KEY = "{CANARY}" }}
env_vars = ["TOKEN"]
[mcp_servers.remote]
url = "{REMOTE}?key={CANARY}"
http_headers = {{ Key = "{CANARY}" }}
bearer_token_env_var = "OTHER"
[mcp_servers.off]
enabled = false
""",
    )
    text = deepctl("config", "show").ok().stdout
    document = deepctl("config", "show", "--json").ok()
    assert CANARY not in text + document.stdout
    assert "mcp_servers.remote\thttps://x.example/mcp\tconfig" in text
    assert "mcp_servers.off\tswitched off\tconfig" in text
    found = {one["name"]: one for one in document.json["mcp_servers"]}
    assert found["local"]["variables"] == ["TOKEN"]
    assert found["remote"] == {
        "name": "remote",
        "source": "config",
        "enabled": True,
        "command": None,
        "url": REMOTE,
        "variables": ["OTHER"],
    }
    assert document.json["unknown"] == []


def test_doctor_tells_what_stands_in_the_way_of_each_server(deepctl: InProcess, home: Path) -> None:
    profile = profiles.create(layout.root(os.environ), "alice")
    planted = Path(profile.workspace) / "server"
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o755)

    def checks() -> list[tuple[str, str]]:
        found = deepctl("doctor", "--user", "alice", "--json").json["checks"]
        return [(check["status"], check["found"]) for check in found if check["name"] == "mcp"]

    assert checks() == []
    _write(
        profile.settings,
        f"""
[mcp_servers.a]
command = "no-such-program"
[mcp_servers.b]
command = "sh"
env_vars = ["TOKEN_ONE", "TOKEN_TWO"]
cwd = "/no/such/place"
[mcp_servers.c]
url = "{FAR}"
[mcp_servers.d]
command = "{planted}"
""",
    )
    assert checks() == [
        ("problem", "a: its command 'no-such-program' was not found"),
        ("problem", "b: $TOKEN_ONE and $TOKEN_TWO are not set"),
        ("problem", "b: its cwd /no/such/place is not a directory"),
        ("warning", "c: the connection to http://far.example/mcp is not encrypted"),
        ("problem", "d: agents can write its command, so it may be theirs"),
    ]
    _write(profile.settings, '[mcp_servers.a]\ncommand = "sh"\n')
    ((status, found),) = checks()
    assert (status, found[:8]) == ("ok", "1 server")
