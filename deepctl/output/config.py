"""How settings look."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain import mcp_servers
from deepctl.domain.mcp_servers import Server
from deepctl.domain.settings import Value
from deepctl.output.text import Cell, is_terminal, printable, table

_SOURCES = {"default": "faint"}


class Settings(NamedTuple):
    """Every setting as it is in force, keys of the file that mean nothing, and MCP servers."""

    profile: str | None
    path: str
    values: list[Value]
    unknown: list[str]
    servers: list[Server] = []

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "path": self.path,
            "settings": [value._asdict() for value in self.values],
            "unknown": self.unknown,
            "mcp_servers": [_server(server) for server in self.servers],
        }

    def print(self) -> None:
        rows: list[tuple[str | Cell, ...]] = [
            (value.key, "-" if value.value is None else value.value, Cell(value.source, _SOURCES.get(value.source, "")))
            for value in self.values
        ]
        rows += [
            (f"mcp_servers.{server.name}", server.target if server.enabled else "switched off", server.source)
            for server in self.servers
        ]
        rows += [(key, "-", Cell("unknown setting, ignored", "warning")) for key in self.unknown]
        table(("SETTING", "VALUE", "FROM"), rows)


def _server(server: Server) -> dict[str, Any]:
    """No arguments and no headers: they may hold secrets. Of variables, the names."""
    return {
        "name": server.name,
        "source": server.source,
        "enabled": server.enabled,
        "command": server.command,
        "url": server.target if server.url is not None else None,
        "variables": mcp_servers.named(server),
    }


class Setting(NamedTuple):
    """One setting. Piped, its value exactly as it is."""

    profile: str | None
    value: Value

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, **self.value._asdict()}

    def print(self) -> None:
        text = self.value.value or ""
        print(printable(text) if is_terminal(sys.stdout) else text)


class Changed(NamedTuple):
    """A setting that was set, or (`None`) taken out."""

    profile: str | None
    path: str
    key: str
    value: str | None

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path, "key": self.key, "value": self.value}

    def print(self) -> None:
        where = f"profile {self.profile}" if self.profile else self.path
        change = f"{self.key} = {self.value!r}" if self.value is not None else f"{self.key} is no longer set"
        print(f"{printable(change)} in {printable(where)}")
