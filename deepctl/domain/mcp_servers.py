"""MCP servers of a profile: what one is, and what it is given of this process's environment.

Secrets are named in the settings, not written down: they come from variables of the person's own environment. A local
server gets the few variables that any program needs and those its table names, nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from deepctl import layout
from deepctl.domain.addresses import header_problem
from deepctl.sandbox.policy import COMMAND_PATH

SEPARATOR = "__"
"""Between a server's name and a tool's, in the name that the model calls it by."""

METADATA = "deepctl_mcp"
"""The key in the metadata of an MCP tool: its `server`, its name there (`tool`), whether a person is asked (`asks`)."""

APPROVALS = ("prompt", "approve")
STARTUP_SECONDS = 10.0
TOOL_SECONDS = 60.0

PASSED_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""Variables that every local server gets from this process's environment; no others, but those its table names."""

_SECRET_HEADER = ("auth", "key", "token", "secret", "cookie")


class Server(NamedTuple):
    """One MCP server: a program (`command`) that is started, or an address (`url`). Neither if it is switched off.

    Times are in seconds. `enabled_tools` is `None` where all are. `approvals` is by tool, `approval` for the others.
    """

    name: str
    source: str
    """`config` or `profile`: the file that it is in."""
    command: str | None = None
    args: tuple[str, ...] = ()
    cwd: str | None = None
    env: Mapping[str, str] = {}
    env_vars: tuple[str, ...] = ()
    url: str | None = None
    http_headers: Mapping[str, str] = {}
    env_http_headers: Mapping[str, str] = {}
    bearer_token_env_var: str | None = None
    enabled: bool = True
    enabled_tools: tuple[str, ...] | None = None
    disabled_tools: tuple[str, ...] = ()
    startup_timeout: float = STARTUP_SECONDS
    tool_timeout: float = TOOL_SECONDS
    approval: str = "prompt"
    approvals: Mapping[str, str] = {}

    @property
    def target(self) -> str:
        """What is started or spoken to, without what could be a secret: no arguments, and no query."""
        if self.url is None:
            return self.command or ""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    def offers(self, tool: str) -> bool:
        """Whether the agent gets the tool that the server calls `tool`."""
        return tool not in self.disabled_tools and (self.enabled_tools is None or tool in self.enabled_tools)

    def asks(self, tool: str) -> bool:
        """Whether a person is asked before the tool is used."""
        return self.approvals.get(tool, self.approval) != "approve"


def named(server: Server) -> list[str]:
    """The variables whose values the server gets because its table names them."""
    bearer = [server.bearer_token_env_var] if server.bearer_token_env_var else []
    return list(dict.fromkeys([*server.env_vars, *bearer, *server.env_http_headers.values()]))


def missing(server: Server, environment: Mapping[str, str]) -> list[str]:
    """Those of them that are not set, or empty."""
    return [name for name in named(server) if not environment.get(name, "").strip()]


def unfit(server: Server, environment: Mapping[str, str]) -> str | None:
    """Which of the variables that become headers cannot be one, and why; `None` if all can."""
    bearer = [server.bearer_token_env_var] if server.bearer_token_env_var else []
    for name in (*bearer, *server.env_http_headers.values()):
        if (problem := header_problem(environment.get(name, ""))) is not None:
            return f"${name} cannot be used: it {problem}"
    return None


def secrets(server: Server, environment: Mapping[str, str]) -> dict[str, str]:
    """What is certainly a secret, whatever it is called: the values of what goes into headers, by name."""
    found = {name: value for name, value in server.http_headers.items() if _is_secret(name)}
    variables_of_headers = [*server.env_http_headers.values(), server.bearer_token_env_var or ""]
    return {**found, **{name: environment[name] for name in variables_of_headers if environment.get(name)}}


def _is_secret(header: str) -> bool:
    return any(word in header.lower() for word in _SECRET_HEADER)


def variables(server: Server, environment: Mapping[str, str]) -> dict[str, str]:
    """All the variables that a local server gets."""
    passed = {name: environment[name] for name in (*PASSED_ON, *server.env_vars) if name in environment}
    return {"PATH": COMMAND_PATH, **passed, **server.env}


def headers(server: Server, environment: Mapping[str, str]) -> dict[str, str]:
    """The headers that a remote server gets with every request, besides those of HTTP and the protocol."""
    found = {**server.http_headers, **{name: environment[one].strip() for name, one in server.env_http_headers.items()}}
    if server.bearer_token_env_var is not None:
        found["Authorization"] = f"Bearer {environment[server.bearer_token_env_var].strip()}"
    return found


def program(server: Server, environment: Mapping[str, str]) -> str | None:
    """The file that a local server's command is; `None` if there is none that can be run."""
    given = variables(server, environment)
    # What is relative would depend on where deepctl was started, and could be somebody else's.
    path = os.pathsep.join(one for one in given["PATH"].split(os.pathsep) if os.path.isabs(one))
    return shutil.which(_at_home(server.command or "", given), path=path)


def where_agents_write(server: Server, program: str, environment: Mapping[str, str]) -> str | None:
    """What of a local server lies where an agent could put its own in its place, and so leave its sandbox."""
    if is_where_agents_write(program, environment):
        return "its command"
    where = directory(server, environment)
    if is_where_agents_write(where, environment):
        return "its cwd"
    # An argument may be what an interpreter runs: as a path, or behind the name of an option.
    given = [part for one in server.args for part in (one, one.partition("=")[2])]
    paths = [os.path.join(where, _at_home(part, variables(server, environment))) for part in given]
    # It is not named: arguments could be secrets.
    return "an argument of it" if any(is_where_agents_write(path, environment) for path in paths) else None


def is_where_agents_write(path: str, environment: Mapping[str, str]) -> bool:
    """Whether a path leads below deepctl's profiles."""
    writable = os.path.realpath(layout.root(environment).profiles)
    return os.path.realpath(path).startswith(f"{writable}{os.sep}")


def directory(server: Server, environment: Mapping[str, str]) -> str:
    """Where a local server works: not in the workspace, where the agent could lay things out for it to find."""
    return _at_home(server.cwd or "~", variables(server, environment))


def _at_home(path: str, environment: Mapping[str, str]) -> str:
    """`path` with the home directory for a `~` at its beginning."""
    home = environment.get("HOME") or "/"
    return home if path == "~" else os.path.join(home, path[2:]) if path.startswith("~/") else path


def is_open(server: Server) -> bool:
    """Whether what is said to a remote server can be read on the way."""
    parts = urlsplit(server.url or "")
    return parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1")


def notice(servers: Iterable[Server]) -> str | None:
    """What is said at the start of a chat about those that are switched on; `None` if there are none."""
    known = [server for server in servers if server.enabled]
    local = [server.name for server in known if server.command is not None]
    remote = [f"{server.name} ({urlsplit(server.url).netloc})" for server in known if server.url is not None]
    parts = []
    if local:
        parts.append(f"outside the sandbox, with your rights: {', '.join(local)}")
    if remote:
        parts.append(f"over the network: {', '.join(remote)}")
    return f"MCP servers {'; '.join(parts)}." if parts else None
