"""How the models look that can be chosen."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl import distribution
from deepctl.domain import addresses
from deepctl.domain.providers import Provider, Server, chosen_as
from deepctl.domain.settings import Value
from deepctl.output.render import notice
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import Cell, printable, table, tinted

_SOURCES = {
    "environment": "$DEEPCTL_MODEL",
    "profile": "profile.toml",
    "config": "config.toml",
    "default": "the default",
}


class Models(NamedTuple):
    """The model in force, providers, and servers of one's own; `everything`: providers that cannot be used as well."""

    profile: str | None
    model: Value
    providers: list[Provider]
    servers: list[Server]
    everything: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "model": {"value": addresses.without_passwords(self.model.value), "source": self.model.source},
            "providers": [
                {**one._asdict(), "key": one.key._asdict() if one.key is not None else None} for one in self.providers
            ],
            "servers": [{**one._asdict(), "models": list(one.models)} for one in self.servers],
        }

    def print(self) -> None:
        model = addresses.without_passwords(self.model.value) or ""
        shown = [one for one in self.providers if one.usable or self.everything]
        rows: list[tuple[str | Cell, ...]] = [
            (chosen_as(server, name), "server", server.url) for server in self.servers for name in server.models
        ]
        rows += [
            (server.kind, "server", Cell(f"{server.url}: {server.reason}", "faint"))
            for server in self.servers
            if not server.reachable
        ]
        rows += [
            (server.kind, "server", Cell(f"{server.url}: it has no models", "warning"))
            for server in self.servers
            if server.reachable and not server.models
        ]
        rows += [(one.name if one.key is None else f"{one.name}:…", "provider", _standing(one)) for one in shown]
        if not is_terminal(sys.stdout):
            table(
                ("MODEL", "KIND", "STANDING"),
                [(addresses.without_passwords(self.model.value) or "", "model", self.model.source), *rows],
            )
            return
        where = _SOURCES.get(self.model.source, self.model.source)
        print(f"{tinted(printable(model), 'strong')} answers (from {where}).\n")
        table(("MODEL", "KIND", "STANDING"), rows)
        hidden = len(self.providers) - len(shown)
        more = f" --all lists {hidden} more providers." if hidden else ""
        print()
        notice(f"`deepctl chat --model NAME` chooses one, `deepctl config set model NAME` for good.{more}")


def _standing(provider: Provider) -> Cell:
    if not provider.installed:
        if provider.extra is not None:
            return Cell(f"its client is not installed: {distribution.to_install(provider.extra)}", "faint")
        return Cell("its client is not installed", "faint")
    if provider.key is None:
        return Cell("needs neither network nor key", "")
    if provider.key.set:
        return Cell(f"${provider.key.variable} is set", "good")
    if provider.usable:
        return Cell(f"${provider.key.variable} is not set, which need not matter", "")
    return Cell(f"${provider.key.variable} is not set", "faint")
