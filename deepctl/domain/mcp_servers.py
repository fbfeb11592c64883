"""The MCP servers of a profile: the tables `[mcp_servers.NAME]` of a settings file, and what each server gets.

    [mcp_servers.github]
    command = "github-mcp-server"
    args = ["stdio"]
    env_vars = ["GITHUB_PERSONAL_ACCESS_TOKEN"]

    [mcp_servers.docs]
    url = "ADDRESS"
    bearer_token_env_var = "DOCS_TOKEN"

The keys are those of Codex's `config.toml`. A table of `profile.toml` replaces the table of that name in `config.toml`.
A misspelled key is refused, never ignored. Secrets are named in the settings, not written down: they come from
variables of the person's own environment. A local server gets the few variables that any program needs and those that
its table names, and no others.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from deepctl import layout
from deepctl.domain import projects
from deepctl.domain.addresses import address_problem, header_problem, without_passwords
from deepctl.errors import BadSetting
from deepctl.files import ownership
from deepctl.redaction import looks_like_key
from deepctl.sandbox.policy import COMMAND_PATH
from deepctl.store.records import MCP_SEPARATOR

TABLE = "mcp_servers"
"""The table of settings files that the servers are in."""

_MOST_SECONDS = 3600
# No two adjacent underscores and none at the end, so that a tool's name identifies its server; built-in tools never
# have two.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*(?:_[A-Za-z0-9-]+)*")
_LONGEST_NAME = 32
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REFERENCE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LOCAL = ("args", "cwd", "env", "env_vars")
_REMOTE = ("bearer_token_env_var", "env_http_headers", "http_headers")
_COMMON = (
    "default_tools_approval_mode",
    "disabled_tools",
    "enabled",
    "enabled_tools",
    "startup_timeout_sec",
    "tool_timeout_sec",
    "tools",
)
KEYS = tuple(sorted(("command", "url", *_LOCAL, *_REMOTE, *_COMMON)))

_ELSEWHERE = {
    "headers": "http_headers",
    "bearer_token": "bearer_token_env_var",
    "environment": "env",
    "disabled": "enabled",
    "timeout": "tool_timeout_sec",
    "startup_timeout_ms": "startup_timeout_sec",
    "approve": "default_tools_approval_mode",
    "trust": "default_tools_approval_mode",
}
"""The names of other programs for the same keys, and names with a similar meaning but another spelling."""


SEPARATOR = MCP_SEPARATOR
"""Separates the server's name from the tool's in the name for the model."""

METADATA = "deepctl_mcp"
"""The key in the metadata of an MCP tool: its `server`, its name there (`tool`), whether it needs approval (`asks`)."""

APPROVALS = ("prompt", "approve")
STARTUP_SECONDS = 10.0
TOOL_SECONDS = 60.0

PASSED_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""Variables of this process that every local server gets. It gets no others, except those that its table names."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The hosts of addresses on this machine."""

_KEY_OPTION = re.compile(r"(?i)(^|[-_])(api[-_]?key|token|secret|password|passwd)$")
_SHORTEST_KEY = 8
_SECRET_HEADER = ("auth", "key", "token", "secret", "cookie")


class McpServer(NamedTuple):
    """One MCP server: a program (`command`) or an address (`url`), or neither if it is switched off.

    Times are in seconds. `enabled_tools` is `None` for all tools. `approvals` is by tool, `approval` for the others.
    """

    name: str
    source: str
    """`config` or `profile`: the file of the table."""
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
        """The program or address without possible secrets: no arguments, and no query."""
        if self.url is None:
            return self.command or ""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    @property
    def named_variables(self) -> list[str]:
        """The variables whose values the server gets because its table names them."""
        bearer = [self.bearer_token_env_var] if self.bearer_token_env_var else []
        return list(dict.fromkeys([*self.env_vars, *bearer, *self.env_http_headers.values()]))

    def offers(self, tool: str) -> bool:
        """Whether the agent gets the server's tool `tool`."""
        return tool not in self.disabled_tools and (self.enabled_tools is None or tool in self.enabled_tools)

    def asks(self, tool: str) -> bool:
        """Whether a use of the tool needs approval."""
        return self.approvals.get(tool, self.approval) != "approve"


def has_key(arguments: Sequence[str]) -> bool:
    """Whether the arguments of a program contain a key: by its form, or by the name before it."""
    pairs = [(name, value) for name, _, value in (argument.partition("=") for argument in arguments)]
    pairs += [(name, value) for name, value in pairwise(arguments) if not value.startswith("-")]
    return any(map(looks_like_key, arguments)) or any(
        _KEY_OPTION.search(name) and len(value) >= _SHORTEST_KEY and "/" not in value for name, value in pairs
    )


def missing_variables(server: McpServer, environment: Mapping[str, str]) -> list[str]:
    """The named variables that are not set, or empty."""
    return [name for name in server.named_variables if not environment.get(name, "").strip()]


def unfit_variable(server: McpServer, environment: Mapping[str, str]) -> str | None:
    """The first variable that cannot be a header, and why; `None` if all are valid."""
    bearer = [server.bearer_token_env_var] if server.bearer_token_env_var else []
    for name in (*bearer, *server.env_http_headers.values()):
        if (problem := header_problem(environment.get(name, ""))) is not None:
            return f"${name} cannot be used: it {problem}"
    return None


def secrets(server: McpServer, environment: Mapping[str, str]) -> dict[str, str]:
    """Certain secrets, whatever their name: the values of headers, by name."""
    values = {name: value for name, value in server.http_headers.items() if _is_secret(name)}
    variables_of_headers = [*server.env_http_headers.values(), server.bearer_token_env_var or ""]
    return {**values, **{name: environment[name] for name in variables_of_headers if environment.get(name)}}


def _is_secret(header: str) -> bool:
    return any(word in header.lower() for word in _SECRET_HEADER)


def variables(server: McpServer, environment: Mapping[str, str]) -> dict[str, str]:
    """All the variables that a local server gets."""
    inherited = {name: environment[name] for name in (*PASSED_ON, *server.env_vars) if name in environment}
    return {"PATH": COMMAND_PATH, **inherited, **server.env}


def headers(server: McpServer, environment: Mapping[str, str]) -> dict[str, str]:
    """The headers of every request to a remote server, besides those of HTTP and the protocol."""
    values = {
        **server.http_headers,
        **{name: environment[source].strip() for name, source in server.env_http_headers.items()},
    }
    if server.bearer_token_env_var is not None:
        values["Authorization"] = f"Bearer {environment[server.bearer_token_env_var].strip()}"
    return values


def program(server: McpServer, environment: Mapping[str, str]) -> str | None:
    """The file of a local server's command; `None` if there is no executable one."""
    given_environment = variables(server, environment)
    # A relative path would depend on the current directory, and could belong to another user.
    path = os.pathsep.join(place for place in given_environment["PATH"].split(os.pathsep) if os.path.isabs(place))
    return shutil.which(_at_home(server.command or "", given_environment), path=path)


def where_agents_write(server: McpServer, program: str, environment: Mapping[str, str]) -> str | None:
    """The files of a local server that an agent could replace, and so leave its sandbox."""
    if is_where_agents_write(program, environment):
        return "its command"
    where = directory(server, environment)
    if is_where_agents_write(where, environment):
        return "its cwd"
    # An argument may be a script for an interpreter: as a path, or after the name of an option.
    words = [part for argument in server.args for part in (argument, argument.partition("=")[2])]
    paths = [os.path.join(where, _at_home(part, variables(server, environment))) for part in words]
    # The argument is not named, because arguments could be secrets.
    is_any = any(is_where_agents_write(path, environment, is_argument=True) for path in paths)
    return "an argument of it" if is_any else None


def is_where_agents_write(path: str, environment: Mapping[str, str], *, is_argument: bool = False) -> bool:
    """Whether a path leads through deepctl's profiles, or through a project of one of them.

    A directory in a project may be an argument, because servers for repositories need it.
    """
    root = layout.root(environment)
    steps = [os.path.realpath(path), *ownership.entries_on(path)]

    def leads_through(directory: str) -> bool:
        return any(step.startswith(f"{os.path.realpath(directory)}{os.sep}") for step in steps)

    if leads_through(root.profiles):
        return True
    if is_argument and os.path.isdir(path):
        return False
    return any(leads_through(project) or os.path.realpath(path) == project for project in projects.paths_of_all(root))


def directory(server: McpServer, environment: Mapping[str, str]) -> str:
    """The working directory of a local server: not the workspace, where the agent could plant files."""
    return _at_home(server.cwd or "~", variables(server, environment))


def _at_home(path: str, environment: Mapping[str, str]) -> str:
    """`path` with the home directory for a leading `~`."""
    home = environment.get("HOME") or "/"
    return home if path == "~" else os.path.join(home, path[2:]) if path.startswith("~/") else path


def is_open(server: McpServer) -> bool:
    """Whether the connection to a remote server is unencrypted."""
    parts = urlsplit(server.url or "")
    return parts.scheme == "http" and parts.hostname not in LOOPBACK


def takes_login(server: McpServer) -> bool:
    """Whether OAuth may log in to a remote server: its table has no credentials."""
    names = [*server.http_headers, *server.env_http_headers]
    return server.url is not None and server.bearer_token_env_var is None and not any(map(_is_secret, names))


def notice(servers: Iterable[McpServer]) -> str | None:
    """The notice about enabled servers at the start of a chat; `None` if there are none."""
    enabled = [server for server in servers if server.enabled]
    local = [server.name for server in enabled if server.command is not None]
    remote = [f"{server.name} ({urlsplit(server.url).netloc})" for server in enabled if server.url is not None]
    parts = []
    if local:
        parts.append(f"outside the sandbox, with your rights: {', '.join(local)}")
    if remote:
        parts.append(f"over the network: {', '.join(remote)}")
    return f"MCP servers {'; '.join(parts)}." if parts else None


def parse(tables: object, where: str, source: str = "config") -> dict[str, McpServer]:
    """The servers of a settings file, by name. Raises `BadSetting`, naming the table and the key."""
    if not isinstance(tables, dict):
        raise BadSetting(
            f"{TABLE!r} in {where} must be a table of servers.",
            f'Example: [{TABLE}.docs], then: command = "docs-server".',
        )
    return {name: _server(name, table, where, source) for name, table in tables.items()}


def _server(name: str, table: object, where: str, source: str) -> McpServer:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise BadSetting(
            f"{name!r} in {where} is not a valid name of an MCP server.",
            f"It has 1 to {_LONGEST_NAME} letters, digits, dashes and single underscores, and begins with a "
            "letter. Its tools are called NAME__TOOL.",
        )
    keys = _Keys(f"[{TABLE}.{name}] in {where}", table)
    command, url, enabled = keys.text("command"), keys.text("url"), keys.flag("enabled")
    if command is not None and url is not None:
        raise keys.bad("has both command and url", "A server is a program or an address. Remove one of them.")
    if command is None and url is None and enabled:
        raise keys.bad("has neither command nor url", 'Add one of them, or switch the server off: "enabled = false".')
    if command is not None or url is not None:
        keys.refuse(*(_REMOTE if command is not None else _LOCAL), of="url" if command is not None else "command")
    server = McpServer(
        name,
        source,
        command=_checked_command(keys, command),
        args=keys.texts("args"),
        cwd=_checked_directory(keys),
        env=_literal(keys, "env", "env_vars", keys.texts_by("env", _VARIABLE)),
        env_vars=keys.names("env_vars"),
        url=_checked_url(keys, url),
        http_headers=_literal(keys, "http_headers", "env_http_headers", keys.texts_by("http_headers", _HEADER)),
        env_http_headers=keys.texts_by("env_http_headers", _HEADER),
        bearer_token_env_var=keys.text("bearer_token_env_var"),
        enabled=enabled,
        enabled_tools=keys.texts("enabled_tools") if "enabled_tools" in keys.table else None,
        disabled_tools=keys.texts("disabled_tools"),
        startup_timeout=keys.seconds("startup_timeout_sec", STARTUP_SECONDS),
        tool_timeout=keys.seconds("tool_timeout_sec", TOOL_SECONDS),
        approval=keys.one_of("default_tools_approval_mode", APPROVALS),
        approvals=_approvals(keys),
    )
    for variable in [*server.env_http_headers.values(), server.bearer_token_env_var or "X"]:
        keys.check_variable(variable)
    for value in server.http_headers.values():
        if not value.isprintable() or not value.isascii():
            raise keys.bad("has a header that cannot be sent", "Headers must be printable ASCII.")
    return server


def _checked_command(keys: _Keys, command: str | None) -> str | None:
    if command is not None and "/" in command and not command.startswith(("/", "~/")):
        raise keys.bad(
            f"cannot have command = {command!r}", "It must be the name of a program in $PATH, or begin with / or ~/."
        )
    return command


def _checked_directory(keys: _Keys) -> str | None:
    cwd = keys.text("cwd")
    if cwd is not None and cwd != "~" and not cwd.startswith(("/", "~/")):
        raise keys.bad(f"cannot have cwd = {cwd!r}", "It must begin with / or ~/.")
    return cwd


def _checked_url(keys: _Keys, url: str | None) -> str | None:
    if url is None:
        return None
    url = url.strip()
    if (problem := address_problem(url)) is not None:
        raise keys.bad(
            f"has a url that cannot be used: it {problem}", "It must be an address such as http://127.0.0.1:8000/mcp."
        )
    if "@" in urlsplit(url).netloc:
        raise keys.bad(
            "has a password in its url",
            "Put it into a variable, and name the variable in bearer_token_env_var or env_http_headers.",
        )
    return url


def _literal(keys: _Keys, key: str, named_key: str, values: dict[str, str]) -> dict[str, str]:
    """A literal value. Raises `BadSetting` for a value with a variable, because deepctl does not expand it."""
    for name, value in values.items():
        reference = _REFERENCE.fullmatch(value)
        if reference:
            variable = reference[1] or reference[2]
            example = f'{named_key} = ["{variable}"]' if key == "env" else f'{named_key} = {{ {name} = "{variable}" }}'
            raise keys.bad(
                f"has {name} = {value!r} in {key}, but deepctl expands no variable there", f"Write: {example}."
            )
    return values


def _approvals(keys: _Keys) -> dict[str, str]:
    tools = keys.table.get("tools", {})
    if not isinstance(tools, dict):
        raise keys.bad("has tools that are not a table", 'Example: tools.search.approval_mode = "approve".')
    approvals = {}
    for tool, table in tools.items():
        inner = _Keys(f"{keys.place}, tool {tool!r},", table, keys=("approval_mode",))
        approvals[tool] = inner.one_of("approval_mode", APPROVALS)
    return approvals


class _Keys:
    """One table, read key by key. Every method raises `BadSetting` that names the table and the key."""

    def __init__(self, place: str, table: object, keys: tuple[str, ...] = KEYS) -> None:
        self.place = place
        if not isinstance(table, dict):
            raise self.bad(f"must be a table, not {table!r}", f"Its keys are: {', '.join(keys)}.")
        self.table: dict[str, Any] = table
        for key in table:
            if key not in keys:
                raise self.bad(f"has an unknown key {key!r}", _nearest(key, keys))

    def bad(self, problem: str, hint: str) -> BadSetting:
        return BadSetting(without_passwords(f"{self.place} {problem}."), hint)

    def refuse(self, *names: str, of: str) -> None:
        for key in names:
            if key in self.table:
                raise self.bad(
                    f"has {key}, which can only be used with {of}", f"Remove it, or give the server its {of}."
                )

    def text(self, key: str) -> str | None:
        value = self.table.get(key)
        if key in self.table and (not isinstance(value, str) or not value or "\0" in value):
            raise self.bad(f"needs text for {key}, not {value!r}", "Text must be in quotes and not empty.")
        return value

    def flag(self, key: str) -> bool:
        value = self.table.get(key, True)
        if not isinstance(value, bool):
            raise self.bad(f"needs true or false for {key}, not {value!r}", "Without quotes.")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) and "\0" not in text for text in value):
            raise self.bad(f"needs a list of texts for {key}", f'Example: {key} = ["one", "two"].')
        return tuple(value)

    def names(self, key: str) -> tuple[str, ...]:
        """Several names of environment variables."""
        variables = self.texts(key)
        for variable in variables:
            self.check_variable(variable)
        return variables

    def check_variable(self, variable: str) -> None:
        if not _VARIABLE.fullmatch(variable):
            # It may be the secret itself.
            raise self.bad("needs the name of a variable", "Give the name in quotes, without $.")

    def texts_by(self, key: str, names: re.Pattern[str]) -> dict[str, str]:
        value = self.table.get(key, {})
        if not isinstance(value, dict) or not all(
            isinstance(item, str) and "\0" not in item for item in value.values()
        ):
            raise self.bad(f"needs a table of texts for {key}", f'Example: {key} = {{ NAME = "text" }}.')
        for name in value:
            if not names.fullmatch(name):
                raise self.bad(f"has an invalid name in {key}: {name!r}", "Check the spelling.")
        return value

    def seconds(self, key: str, usual: float) -> float:
        value = self.table.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_SECONDS:
            raise self.bad(
                f"cannot have {key} = {value!r}", f"It must be a number of seconds, at most {_MOST_SECONDS}."
            )
        return float(value)

    def one_of(self, key: str, choices: tuple[str, ...]) -> str:
        value = self.table.get(key, choices[0])
        if value not in choices:
            raise self.bad(f"cannot have {key} = {value!r}", f"It must be one of: {', '.join(choices)}.")
        return str(value)


def _nearest(key: str, keys: tuple[str, ...]) -> str:
    from difflib import get_close_matches

    synonym = _ELSEWHERE.get(key)
    near = [synonym] if synonym in keys else get_close_matches(key, keys, 1)
    return f"Did you mean {near[0]!r}?" if near else f"Keys are: {', '.join(keys)}."
