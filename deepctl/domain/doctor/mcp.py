"""MCP servers as they are configured: whether each could be started. None is, and nothing is sent anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from deepctl import distribution
from deepctl.domain import mcp_servers
from deepctl.domain.doctor.check import Check
from deepctl.domain.mcp_servers import Server
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError
from deepctl.quantities import counted

_PACKAGE = "fastmcp-slim"


def servers(environment: Mapping[str, str], in_force: Settings) -> Iterator[Check]:
    """What stands in the way of a profile's servers; nothing if it has none."""
    try:
        enabled = [server for server in in_force.mcp_servers() if server.enabled]
    except DeepctlError:
        return  # the checks of the files say what is wrong with them, and most profiles have no servers
    if not enabled:
        return
    if not _is_installed():
        how = distribution.to_install("mcp")
        yield Check("mcp", "problem", "MCP servers need packages that are not installed", how)
        return
    amiss = [check for server in enabled for check in _server(server, environment)]
    yield from amiss
    if not amiss:
        names = ", ".join(server.name for server in enabled)
        whose = "its" if len(enabled) == 1 else "their"
        found = f"{counted(len(enabled), 'server')} with {whose} own reach, not the sandbox's: {names}"
        yield Check("mcp", "ok", found)


def _server(server: Server, environment: Mapping[str, str]) -> Iterator[Check]:
    unset = mcp_servers.missing(server, environment)
    if unset:
        names = " and ".join(f"${name}" for name in unset)
        yield Check(
            "mcp",
            "problem",
            f"{server.name}: {names} {'is' if len(unset) == 1 else 'are'} not set",
            "Set it where deepctl is started, or it does without this server.",
        )
    if (problem := mcp_servers.unfit(server, environment)) is not None:
        yield Check("mcp", "problem", f"{server.name}: {problem}", "Copy it again, without anything around it.")
    if server.command is not None:
        program = mcp_servers.program(server, environment)
        if program is None:
            yield Check(
                "mcp",
                "problem",
                f"{server.name}: its command {server.command!r} was not found",
                "Is it installed, and in $PATH? A whole path works too.",
            )
        elif mcp_servers.is_where_agents_write(program, environment):
            yield Check(
                "mcp",
                "problem",
                f"{server.name}: its command lies where agents write, and could be theirs",
                "Move it out of the profiles.",
            )
        directory = mcp_servers.directory(server, environment)
        if not os.path.isdir(directory):
            yield Check(
                "mcp", "problem", f"{server.name}: its cwd {directory} is not a directory", "Make it, or change it."
            )
    elif mcp_servers.is_open(server):
        yield Check(
            "mcp",
            "warning",
            f"{server.name}: {server.target} is reached without encryption",
            "Whoever is on the way can read, and change, what goes there: use https.",
        )


def _is_installed() -> bool:
    from importlib import metadata

    try:
        metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True
