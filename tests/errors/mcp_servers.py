"""Errors of the tables of MCP servers in settings files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.errors.situation import Situation, case
from tests.support.command import Result
from tests.support.loopback import Text
from tests.support.mcp_http_server import mcp_server

_PROGRAM = str(Path(__file__).parents[1] / "support" / "mcp_stdio_server.py")
_BOX, _WITH_PASSWORD = "http://x", "https://a:b@x"


def with_config(s: Situation, text: str) -> list[str]:
    """`config show` with this config.toml."""
    path = Path(os.environ["DEEPCTL_CONFIG"])
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return ["config", "show"]


@case("config show", "`mcp_servers` is misspelled")
def _(s: Situation) -> list[str]:
    return with_config(s, f'[mcpServers.a]\nurl = "{_BOX}"')


@case("config show", "`mcp_servers` is not a table")
def _(s: Situation) -> list[str]:
    return with_config(s, "mcp_servers = 5")


@case("config show", "the name of an MCP server is invalid")
def _(s: Situation) -> list[str]:
    return with_config(s, f'[mcp_servers."a b"]\nurl = "{_BOX}"')


@case("config show", "an MCP server is not a table")
def _(s: Situation) -> list[str]:
    return with_config(s, "[mcp_servers]\na = 5")


@case("config show", "an MCP server has an unknown key")
def _(s: Situation) -> list[str]:
    return with_config(s, "[mcp_servers.a]\nxyz = 5")


@case("config show", "a key of an MCP server is misspelled")
def _(s: Situation) -> list[str]:
    return with_config(s, '[mcp_servers.a]\ncomand = "x"')


@case("config show", "an MCP server has both a program and an address")
def _(s: Situation) -> list[str]:
    return with_config(s, f'[mcp_servers.a]\ncommand = "x"\nurl = "{_BOX}"')


@case("config show", "an MCP server has neither a program nor an address")
def _(s: Situation) -> list[str]:
    return with_config(s, "[mcp_servers.a]")


@case("config show", "a key is not allowed for this kind of MCP server")
def _(s: Situation) -> list[str]:
    return with_config(s, '[mcp_servers.a]\ncommand = "x"\nhttp_headers = {}')


@case("config show", "a value of an MCP server is not text")
def _(s: Situation) -> list[str]:
    return with_config(s, "[mcp_servers.a]\ncommand = 5")


@case("config show", "a value in `env` of an MCP server refers to a variable")
def _(s: Situation) -> list[str]:
    return with_config(s, '[mcp_servers.a]\ncommand = "x"\nenv = { TOKEN = "$TOKEN" }')


@case("config show", "the name of a variable is invalid")
def _(s: Situation) -> list[str]:
    return with_config(s, '[mcp_servers.a]\ncommand = "x"\nenv_vars = ["sk-0"]')


@case("config show", "the address of an MCP server is invalid")
def _(s: Situation) -> list[str]:
    return with_config(s, '[mcp_servers.a]\nurl = "x"')


@case("config show", "the address of an MCP server contains a password")
def _(s: Situation) -> list[str]:
    return with_config(s, f'[mcp_servers.a]\nurl = "{_WITH_PASSWORD}"')


@case("config show", "a time of an MCP server is invalid")
def _(s: Situation) -> list[str]:
    return with_config(s, f'[mcp_servers.a]\nurl = "{_BOX}"\ntool_timeout_sec = 0')


@case("config show", "the approval mode of an MCP server is invalid")
def _(s: Situation) -> list[str]:
    return with_config(s, f'[mcp_servers.a]\nurl = "{_BOX}"\ndefault_tools_approval_mode = "auto"')


def _add(s: Situation, *arguments: str) -> list[str]:
    s.alice()
    return ["mcp", "add", "one", "--user", "alice", *arguments]


@case("mcp add", "there is neither a command nor an address")
def _(s: Situation) -> list[str]:
    return _add(s)


@case("mcp add", "an argument looks like a key")
def _(s: Situation) -> list[str]:
    return _add(s, "--", "server", "--api-key", "0123456789abcdef")


@case("mcp add", "`--header` has no variable")
def _(s: Situation) -> list[str]:
    return _add(s, "--url", _BOX, "--header", "X-Key")


@case("mcp add", "the profile has a server of this name")
def _(s: Situation) -> list[str]:
    assert s.run(*_add(s, "--url", _BOX)).code == 0
    return _add(s, "--", "server")


@case("mcp test", "the profile has no such server")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["mcp", "test", "one", "--user", "alice"]


@case("mcp test", "the server does not start")
def _(s: Situation) -> list[str]:
    assert s.run(*_add(s, "--", "/bin/sh", "-c", "echo no >&2; exit 4")).code == 0
    return ["mcp", "test", "one", "--user", "alice"]


@case("mcp test", "a variable of the server is not set")
def _(s: Situation) -> list[str]:
    assert s.run(*_add(s, "--env-var", "NOWHERE", "--", "server")).code == 0
    return ["mcp", "test", "one", "--user", "alice"]


@case("mcp test", "the server needs a login, and there is no terminal")
def _(s: Situation) -> Result:
    with mcp_server() as remote:
        remote.status = 401
        assert s.run(*_add(s, "--url", remote.url)).code == 0
        return s.run("mcp", "test", "one", "--user", "alice")


@case("mcp test", "the MCP client is not installed")
def _(s: Situation) -> list[str]:
    assert s.run(*_add(s, "--url", _BOX)).code == 0
    s.patch.setitem(sys.modules, "deepctl.agent.mcp_client", None)
    return ["mcp", "test", "one", "--user", "alice"]


@case("chat", "an MCP server refuses the arguments of its prompt")
def _(s: Situation) -> list[str]:
    assert s.run(*_add(s, "--", sys.executable, _PROGRAM, "--prompts")).code == 0
    options = ["--user", "alice", *s.provider(Text(["Hello."]))]
    assert s.run("chat", "hello", *options).code == 0
    return ["chat", "/review gone.py", *options]


@case("mcp remove", "the server is in `config.toml`")
def _(s: Situation) -> list[str]:
    s.alice()
    s.configure(f'[mcp_servers.one]\nurl = "{_BOX}"\n')
    return ["mcp", "remove", "one", "--user", "alice"]
