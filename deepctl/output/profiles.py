"""How profiles look."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain.profiles import Profile
from deepctl.output.render import notice
from deepctl.output.text import ago, home, is_terminal, printable, size, table


def _document(profile: Profile) -> dict[str, Any]:
    found = profile._asdict()
    found["bytes"] = profile.bytes._asdict()
    if found["problem"] is None:
        del found["problem"]
    return found


class ProfileList(NamedTuple):
    profiles: list[Profile]

    def document(self) -> dict[str, Any]:
        return {"profiles": [_document(profile) for profile in self.profiles]}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.profiles:
            notice("There are no profiles yet; `deepctl chat --user NAME` makes one.")
            return
        table(
            ("PROFILE", "USED", "MODEL", "SESSIONS", "SIZE", "PATH"),
            [
                (
                    profile.name,
                    profile.problem or (ago(profile.last_used_at) if terminal else profile.last_used_at or "-"),
                    profile.model or "-",
                    str(profile.sessions),
                    size(profile.bytes.total) if terminal else str(profile.bytes.total),
                    home(profile.path) if terminal else profile.path,
                )
                for profile in self.profiles
            ],
        )


class ProfileShown(NamedTuple):
    profile: Profile

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile.name, "profiles": [_document(self.profile)]}

    def print(self) -> None:
        profile = self.profile
        rows = [
            ("Profile", profile.name),
            ("Path", profile.path),
            ("Created", profile.created_at or "unknown"),
            ("Last used", profile.last_used_at or "never"),
            ("Model", profile.model or "not set here"),
            ("Sessions", str(profile.sessions)),
            ("Workspace", size(profile.bytes.workspace)),
            ("Message logs", size(profile.bytes.sessions)),
            ("Checkpoints", size(profile.bytes.checkpoints)),
            ("In all", size(profile.bytes.total)),
        ]
        if profile.problem:
            rows.append(("Problem", profile.problem))
        for label, value in rows:
            print(f"{label + ':':<14}{printable(value)}")


class ProfileCreated(NamedTuple):
    name: str
    path: str

    def document(self) -> dict[str, Any]:
        return {"profile": self.name, "path": self.path, "created": True}

    def print(self) -> None:
        where = home(self.path) if is_terminal(sys.stdout) else self.path
        print(f"Created profile {self.name}: {printable(where)}")


class Path(NamedTuple):
    """A path alone, exactly as it is, for `$(…)`."""

    profile: str | None
    path: str

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path}

    def print(self) -> None:
        print(self.path)
