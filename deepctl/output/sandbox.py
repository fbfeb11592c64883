"""How a profile's sandbox looks."""

from __future__ import annotations

from typing import Any, NamedTuple

from deepctl.domain.addresses import without_passwords
from deepctl.domain.sandbox_settings import Described
from deepctl.output.text import printable
from deepctl.quantities import size


class Shown(NamedTuple):
    """Where commands run, and what they may."""

    described: Described

    def document(self) -> dict[str, Any]:
        found = self.described
        return {
            **found._asdict(),
            "image": without_passwords(found.image),
            "limits": found.limits._asdict(),
            "permissions": {
                operation: {"default": rules.default, "rules": [rule._asdict() for rule in rules.rules]}
                for operation, rules in found.permissions.items()
            },
        }

    def print(self) -> None:
        found = self.described
        limits = found.limits
        rows = [
            ("Profile", found.profile),
            ("Sandbox", found.sandbox),
            ("Questions", found.approve),
            ("Time", f"{limits.seconds:g} s a command"),
            ("Memory", size(limits.memory)),
            ("Processes", str(limits.processes)),
            ("/tmp", size(limits.tmp)),
            ("Disk", f"{size(limits.disk)} a command"),
        ]
        if found.sandbox == "docker":
            rows += [("Image", without_passwords(found.image)), ("Container", found.container)]
        for operation, rules in found.permissions.items():
            rows.append((f"Rules: {operation}", f"else {rules.default}" if rules.default else "else as usual"))
            rows += [("", f"{rule.action}  {rule.pattern}") for rule in rules.rules]
        behind = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:<{behind}}  {printable(value)}")


class Removed(NamedTuple):
    """A container that was removed, if there was one."""

    profile: str
    container: str
    removed: bool

    def document(self) -> dict[str, Any]:
        return self._asdict()

    def print(self) -> None:
        if self.removed:
            print(f"Removed the container {self.container} of {printable(self.profile)}.")
        else:
            print(f"{printable(self.profile)} has no container.")
