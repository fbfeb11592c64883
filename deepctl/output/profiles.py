"""How profiles look."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from deepctl.domain.addresses import without_passwords
from deepctl.domain.profiles import Profile
from deepctl.output.render import notice
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import Cell, ago, home, printable, table
from deepctl.quantities import size


def _document(profile: Profile) -> dict[str, Any]:
    found = profile._asdict()
    found["model"] = without_passwords(profile.model)
    found["bytes"] = profile.bytes._asdict()
    found["files"] = profile.files._asdict()
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
                    Cell(profile.problem, "bad")
                    if profile.problem
                    else Cell(ago(profile.last_used_at) if terminal else profile.last_used_at or "-", "faint"),
                    without_passwords(profile.model) or "-",
                    str(profile.sessions),
                    size(profile.bytes.total) if terminal else str(profile.bytes.total),
                    home(profile.path) if terminal else profile.path,
                )
                for profile in self.profiles
            ],
            dispensable=("MODEL", "SESSIONS"),
            numbers=("SESSIONS", "SIZE"),
        )


class ProfileShown(NamedTuple):
    profile: Profile

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile.name, "profiles": [_document(self.profile)]}

    def print(self) -> None:
        profile = self.profile

        def part(name: str) -> str:
            count = getattr(profile.files, name)
            return f"{size(getattr(profile.bytes, name))} in {count:,} {'file' if count == 1 else 'files'}"

        rows = [
            ("Profile", profile.name),
            ("Path", profile.path),
            ("Created", profile.created_at or "unknown"),
            ("Last used", profile.last_used_at or "never"),
            ("Model", without_passwords(profile.model) or "not set here"),
            ("Workspace", part("workspace")),
            ("  memory", part("memory")),
            ("  plans", part("plans")),
            ("  evicted", part("evicted")),
            ("Sessions", f"{profile.sessions}; {part('sessions')}"),
            ("Checkpoints", f"{profile.checkpoints}; {part('checkpoints')}"),
            ("Cache", part("cache")),
            ("Prompts", part("prompt_history")),
            ("In all", part("total")),
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


class ProfileRenamed(NamedTuple):
    """A profile that has another name now; `container` was removed, and `naming` still means the old name."""

    before: str
    name: str
    path: str
    container: str | None
    naming: list[str]

    @property
    def notes(self) -> list[str]:
        """What is left to do."""
        change = f"; `deepctl config set default_user {self.name}` changes that"
        return [f"{place} is still {self.before}{'' if place[0] == '$' else change}." for place in self.naming]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.name,
            "path": self.path,
            "from": self.before,
            "container": self.container,
            "notes": self.notes,
        }

    def print(self) -> None:
        print(f"Renamed {self.before} to {self.name}.")
        if self.container is not None:
            notice(f"Removed its container {self.container}; the next chat makes another.")
        for note in self.notes:
            notice(note)


class Path(NamedTuple):
    """A path alone, exactly as it is, for `$(…)`."""

    profile: str | None
    path: str

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "path": self.path}

    def print(self) -> None:
        print(self.path)
