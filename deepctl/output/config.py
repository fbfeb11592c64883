"""How settings look."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.domain import mcp_servers
from deepctl.domain.addresses import without_passwords
from deepctl.domain.mcp_servers import Server
from deepctl.domain.settings import Value
from deepctl.layout import UNTRUSTED
from deepctl.output import profiles
from deepctl.output.render import notice
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import Cell, printable, table

if TYPE_CHECKING:
    from deepctl.domain.trust import Item

_SOURCES = {"default": "faint"}
_WAITS = Cell(f"{UNTRUSTED}, not in force", "warning")


class Settings(NamedTuple):
    """Every setting as it is in force, keys of the file that mean nothing, and MCP servers.

    `untrusted` came with an archive and is not in force; `problem` is why it cannot be read.
    """

    profile: str | None
    path: str
    values: list[Value]
    unknown: list[str]
    servers: list[Server] = []
    untrusted: list[Item] = []
    problem: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "path": self.path,
            "settings": [_document(value) for value in self.values],
            "unknown": self.unknown,
            "mcp_servers": [_server(server) for server in self.servers],
            "untrusted": profiles.documents(self.untrusted),
        }

    def print(self) -> None:
        rows: list[tuple[str | Cell, ...]] = [
            (
                value.key,
                "-" if value.value is None else without_passwords(value.value),
                Cell(value.source, _SOURCES.get(value.source, "")),
            )
            for value in self.values
        ]
        rows += [
            (
                f"mcp_servers.{server.name}",
                without_passwords(server.target) if server.enabled else "switched off",
                server.source,
            )
            for server in self.servers
        ]
        rows += [(key, "-", Cell("unknown setting, ignored", "warning")) for key in self.unknown]
        rows += [(item["key"], _text(item["value"]), _WAITS) for item in profiles.documents(self.untrusted)]
        table(("SETTING", "VALUE", "FROM"), rows)
        if self.untrusted:
            notice(f"What is in {UNTRUSTED} waits for `deepctl profiles trust {self.profile}`.")
        if self.problem is not None:
            notice(self.problem)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _document(value: Value) -> dict[str, Any]:
    return {**value._asdict(), "value": without_passwords(value.value)}


def _server(server: Server) -> dict[str, Any]:
    """No arguments and no headers: they may hold secrets. Of variables, the names."""
    return {
        "name": server.name,
        "source": server.source,
        "enabled": server.enabled,
        "command": without_passwords(server.command),
        "url": without_passwords(server.target) if server.url is not None else None,
        "variables": mcp_servers.named(server),
    }


class Setting(NamedTuple):
    """One setting. Piped, its value exactly as it is, but for the password of an address."""

    profile: str | None
    value: Value

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, **_document(self.value)}

    def print(self) -> None:
        text = without_passwords(self.value.value) or ""
        print(printable(text) if is_terminal(sys.stdout) else text)


class Changed(NamedTuple):
    """A setting that was set, or (`None`) taken out."""

    profile: str | None
    path: str
    key: str
    value: str | None

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path, "key": self.key, "value": without_passwords(self.value)}

    def print(self) -> None:
        where = f"profile {self.profile}" if self.profile else self.path
        change = (
            f"{self.key} = {without_passwords(self.value)!r}"
            if self.value is not None
            else f"{self.key} is no longer set"
        )
        print(f"{printable(change)} in {printable(where)}")
