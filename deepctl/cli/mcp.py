"""`deepctl mcp`."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepctl import distribution, redaction
from deepctl.cli import options
from deepctl.cli.options import HELP_OPTIONS
from deepctl.domain import mcp_servers, profiles, settings, stored_keys
from deepctl.domain.mcp_servers import McpServer
from deepctl.errors import BadSetting, McpServerFailed, NotFound, UsageError
from deepctl.output import mcp as views
from deepctl.output.render import is_terminal, notice, printable, say, show

if TYPE_CHECKING:
    from deepctl.agent.mcp import ServerReport
    from deepctl.domain.settings import Settings
    from deepctl.layout import ProfilePaths

app = typer.Typer(
    help="The MCP servers of a profile.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings=HELP_OPTIONS,
)

_TEXT_BROWSERS = frozenset({"elinks", "links", "links2", "lynx", "w3m", "www-browser"})

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the server.")]


@app.command("list", epilog="Example: deepctl mcp list --user alice")
def list_(user: options.User = None, as_json: options.Json = False) -> None:
    """List the MCP servers of a profile, with those of config.toml. No server is started."""
    profile, in_force = options.profile_of_chat(user)
    logins = stored_keys.logins(profile.keys) if profile is not None else []
    name = profile.name if profile is not None else options.user(user, in_force)
    show(views.ServerListView(name, in_force.mcp_servers(), logins), as_json)


@app.command(epilog="Example: deepctl mcp add github --user alice --env-var GITHUB_TOKEN -- github-mcp-server stdio")
def add(
    name: Name,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND…]", help="Program of a local server, with its arguments, after `--`."),
    ] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Address of a remote server.")] = None,
    env_var: Annotated[
        list[str] | None,
        typer.Option(
            "--env-var",
            metavar="VARIABLE",
            help="Name of a variable that a local server gets, from the keys of the profile, else from your "
            "environment. Repeatable.",
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="HEADER=VARIABLE",
            help="Header of every request to a remote server, and the variable with its value. Repeatable.",
        ),
    ] = None,
    token_var: Annotated[
        str | None,
        typer.Option(
            "--token-var", metavar="VARIABLE", help="Name of the variable with the bearer token of a remote server."
        ),
    ] = None,
    user: options.User = None,
    wait: options.Wait = 0.0,
    as_json: options.Json = False,
) -> None:
    """Add an MCP server to profile.toml. Comments in the file stay. The server is not started."""
    profile = options.existing_profile(user)
    if bool(command) == (url is not None):
        raise UsageError(
            "An MCP server needs either a COMMAND or --url.",
            "Examples: deepctl mcp add NAME -- COMMAND, or deepctl mcp add NAME --url URL",
        )
    _refuse_keys(command or [], [name, url or "", *(env_var or ()), *(header or ()), token_var or ""])
    values: dict[str, Any] = {"url": url} if url is not None else {}
    if command:
        values = {"command": command[0], "args": command[1:]} if command[1:] else {"command": command[0]}
    if env_var:
        values["env_vars"] = env_var
    if token_var is not None:
        values["bearer_token_env_var"] = token_var
    if header:
        values["env_http_headers"] = dict(map(_header, header))
    with profiles.lock(options.root(), profile.name, command="mcp add", wait=wait):
        paths = profiles.find(options.root(), profile.name)
        settings.add_server(paths.settings, name, values, paths.name)
    show(views.ServerChangeView(paths.name, name, paths.settings, is_added=True), as_json)


def _refuse_keys(command: list[str], texts: list[str]) -> None:
    """Raises `UsageError` if a text looks like a key, which settings must not contain. It is not repeated."""
    if mcp_servers.has_key(command) or any(map(redaction.looks_like_key, texts)):
        raise UsageError(
            "An argument looks like a key, and a settings file must not contain one.",
            "`deepctl keys set NAME` stores a key. Name its variable with --env-var, --header or --token-var.",
            code="key_in_settings",
        )


def _header(text: str) -> tuple[str, str]:
    header, equals, variable = text.partition("=")
    if not equals:
        raise UsageError("--header needs HEADER=VARIABLE.", "Example: --header X-Api-Key=DOCS_KEY")
    return header, variable


@app.command("test", epilog="Example: deepctl mcp test github --user alice")
def probe(name: Name, user: options.User = None, as_json: options.Json = False) -> None:
    """Start a server, list its tools, prompts and resources, and end it.

    If a remote server needs a login (OAuth), log in with the browser. The login is stored for this profile only.
    """
    profile, in_force = options.profile_and_settings(user)
    server = _find(name, profile, in_force)
    try:
        from deepctl.agent import mcp

        mcp.load()
    except ImportError:
        raise UsageError(
            "MCP servers need packages that are not installed.",
            f"Install them with: {distribution.to_install('mcp')}",
            code="mcp_packages",
        ) from None
    has_person = is_terminal(sys.stdin) and is_terminal(sys.stderr) and not as_json
    if has_person and mcp_servers.takes_login(server):
        with profiles.lock(options.root(), profile.name, command="mcp test", wait=0.0):
            stored_keys.make_directory(profile.keys)
    try:
        report = _probed(server, in_force, profile, has_person=has_person)
    except McpServerFailed as error:
        for line in [] if as_json else error.last_lines:
            say(f"{server.name}: {printable(line)}")
        raise
    show(views.ServerReportView(profile.name, report), as_json)


def _probed(server: McpServer, in_force: Settings, profile: ProfilePaths, *, has_person: bool) -> ServerReport:
    import asyncio

    from deepctl.agent.interruption import Interruption
    from deepctl.agent.mcp import McpServers

    servers = McpServers([server._replace(enabled=True)], os.environ, in_force.keys(os.environ), profile.keys)
    servers.read_keys()
    with asyncio.Runner() as runner:
        return Interruption().run(runner, servers.probe(server.name, _show_login if has_person else None))


def _show_login(address: str) -> None:
    """Show the address of a login, and open it."""
    notice("Log in with your browser. If it does not open, open this address:")
    say(printable(address))
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    # A text browser would use this terminal, also after the end of this command.
    if os.path.basename(browser.name) not in _TEXT_BROWSERS:
        # A program of $BROWSER may stay in the foreground, and its last page comes from this process.
        threading.Thread(target=browser.open, args=(address,), daemon=True).start()


@app.command(epilog="Example: deepctl mcp remove github --user alice")
def remove(name: Name, user: options.User = None, wait: options.Wait = 0.0, as_json: options.Json = False) -> None:
    """Remove an MCP server from profile.toml, and delete its login."""
    profile = options.existing_profile(user, deletes=True)
    options.say_ignored_directory(user, profile, as_json)
    with profiles.lock(options.root(), profile.name, command="mcp remove", wait=wait):
        paths = profiles.find(options.root(), profile.name)
        try:
            settings.change(paths.settings, f"{mcp_servers.TABLE}.{name}", None)
        except (BadSetting, NotFound):
            in_force = settings.load(os.environ, paths)
            raise _not_own(_find(name, paths, in_force), paths) from None
        had_login = stored_keys.forget_login(paths.keys, name)
    show(views.ServerChangeView(paths.name, name, paths.settings, is_added=False, had_login=had_login), as_json)


def _find(name: str, profile: ProfilePaths, in_force: Settings) -> McpServer:
    servers = {server.name: server for server in in_force.mcp_servers()}
    if name not in servers:
        names = f"Its servers are: {', '.join(sorted(servers))}." if servers else None
        raise NotFound(
            f"Profile {profile.name!r} has no MCP server {name!r}.",
            names or f"`deepctl mcp add {printable(name)} --user {profile.name} -- COMMAND` adds one.",
            code="mcp_server_not_found",
        )
    return servers[name]


def _not_own(server: McpServer, profile: ProfilePaths) -> NotFound:
    return NotFound(
        f"Profile {profile.name!r} has no MCP server {server.name!r} of its own: it is in config.toml, for all "
        "profiles.",
        f"`deepctl config unset {mcp_servers.TABLE}.{server.name}` removes it there.",
        code="mcp_server_not_found",
    )
