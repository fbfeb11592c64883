"""The views of MCP servers: their list, a change of it, and the report of a test. No view contains a secret."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.domain.addresses import without_passwords
from deepctl.domain.mcp_servers import McpServer
from deepctl.output.render import Cell, is_terminal, notice, printable, table
from deepctl.quantities import counted

if TYPE_CHECKING:
    from deepctl.agent.mcp import ServerReport

_MOST_ROWS = 20
"""Resources that the report of a test lists for people."""


def server_document(server: McpServer) -> dict[str, Any]:
    """No arguments and no headers, because they may contain secrets. Of variables, only the names."""
    return {
        "name": server.name,
        "source": server.source,
        "enabled": server.enabled,
        "command": without_passwords(server.command),
        "url": without_passwords(server.target) if server.url is not None else None,
        "variables": server.named_variables,
    }


class ServerListView(NamedTuple):
    """The servers of a profile, with those of config.toml; `logins` are those with stored tokens."""

    profile: str
    servers: list[McpServer]
    logins: list[str]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "servers": [{**server_document(server), "login": server.name in self.logins} for server in self.servers],
        }

    def print(self) -> None:
        if not self.servers and is_terminal(sys.stdout):
            notice(
                f"Profile {self.profile} has no MCP servers. "
                f"`deepctl mcp add NAME --user {self.profile} -- COMMAND` adds one."
            )
            return
        rows = [
            (
                server.name,
                f"{server.source}.toml",
                without_passwords(server.target) or "-",
                Cell("", "") if server.enabled else Cell("switched off", "faint"),
                "logged in" if server.name in self.logins else "",
            )
            for server in self.servers
        ]
        table(("NAME", "SOURCE", "COMMAND OR ADDRESS", "STATE", "LOGIN"), rows)


class ServerChangeView(NamedTuple):
    """A server that was added to a profile, or removed from it."""

    profile: str
    name: str
    path: str
    is_added: bool
    had_login: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "name": self.name,
            "path": self.path,
            "added": self.is_added,
            "login_deleted": self.had_login,
        }

    def print(self) -> None:
        name, path = printable(self.name), printable(self.path)
        if self.is_added:
            print(f"Added MCP server {name} in {path}")
            notice(f"`deepctl mcp test {self.name} --user {self.profile}` starts it and lists what it has.")
            return
        print(f"Removed MCP server {name} from {path}{', and its login' if self.had_login else ''}")


class ServerReportView(NamedTuple):
    """What a server has, and how long its start took."""

    profile: str
    report: ServerReport

    def document(self) -> dict[str, Any]:
        report = self.report
        return {
            "profile": self.profile,
            "name": report.server.name,
            "seconds": round(report.seconds, 3),
            "tools": [{"name": name, "tokens": tokens} for name, tokens in report.tools],
            "prompts": [
                {"name": prompt.name, "arguments": [argument.name for argument in prompt.arguments]}
                for prompt in report.prompts
            ],
            "resources": report.resources,
            "notices": report.remarks,
        }

    def print(self) -> None:
        report = self.report
        total = sum(tokens for _, tokens in report.tools)
        print(
            f"{report.server.name}: ready after {report.seconds:.1f} s; {counted(len(report.tools), 'tool')} "
            f"(about {total:,} tokens in each request), {counted(len(report.prompts), 'prompt')}, "
            f"{counted(len(report.resources), 'resource')}"
        )
        rows: list[tuple[str, str]] = [("tool", f"{name} ({tokens:,} tokens)") for name, tokens in report.tools]
        rows += [("prompt", f"/{prompt.command} {prompt.usage}".rstrip()) for prompt in report.prompts]
        rows += [("resource", uri) for uri in report.resources[:_MOST_ROWS]]
        if len(report.resources) > _MOST_ROWS:
            rows.append(("resource", f"and {len(report.resources) - _MOST_ROWS} more"))
        if rows:
            table(("KIND", "NAME"), rows)
        for remark in report.remarks:
            notice(f"{report.server.name} {remark}.")
