"""The views of roles, and of new profiles, which can start with one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.layout import UNTRUSTED
from deepctl.output import profiles as profile_views
from deepctl.output.render import Cell, home, is_terminal, notice, print_sentence, table, visible
from deepctl.quantities import counted, size

if TYPE_CHECKING:
    from deepctl.domain.portable_settings import OmittedSetting
    from deepctl.domain.roles.catalogue import RoleDescription
    from deepctl.domain.roles.changes import NewRole
    from deepctl.domain.roles.role import Role
    from deepctl.domain.transfer.archive import OmittedPath
    from deepctl.domain.trust import TrustItem

_SOURCES = {"shipped": "ships with deepctl", "user": "yours"}


class RoleListView(NamedTuple):
    roles: Sequence[RoleDescription]

    def document(self) -> dict[str, Any]:
        return {"roles": [_description_document(role) for role in self.roles]}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        rows: list[tuple[str | Cell, ...]] = [
            (role.name, Cell(role.source, "faint"), Cell(role.problem, "bad") if role.problem else role.description)
            for role in self.roles
        ]
        table(("ROLE", "SOURCE", "DESCRIPTION"), rows)
        if terminal:
            notice("`deepctl profiles create NAME --like ROLE` creates a profile that starts with a role.")


def _description_document(role: RoleDescription) -> dict[str, Any]:
    document = role._asdict()
    if role.problem is None:
        del document["problem"]
    return document


def settings_of(tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings in tables as JSON."""
    from deepctl.domain import trust

    return [{"key": item.key, "value": trust.json_value(item.value, item.place[-1])} for item in trust.items(tables)]


def keys_of(tables: Mapping[str, Any]) -> list[str]:
    """The names of the settings in tables."""
    return [item["key"] for item in settings_of(tables)]


def _files(role: Role) -> list[dict[str, Any]]:
    return [{"path": path, "bytes": len(content)} for path, content in sorted(role.files.items())]


def _omissions(role: Role) -> dict[str, Any]:
    return {
        "left_out": [entry._asdict() for entry in role.left_out],
        "settings_left_out": [item._asdict() for item in role.settings_left_out],
    }


def notice_omissions(settings_left_out: Sequence[OmittedSetting], left_out: Sequence[OmittedPath]) -> None:
    """Print on stderr what was left out."""
    for item in settings_left_out:
        notice(f"Left out: {visible(item.key)} ({item.reason})")
    profile_views.notice_left_out(left_out)


class RoleView(NamedTuple):
    """A role; `waiting` are its imported settings that are not in force."""

    role: Role
    waiting: Sequence[TrustItem]

    def document(self) -> dict[str, Any]:
        role = self.role
        return {
            "name": role.name,
            "source": role.source,
            "path": role.path,
            "description": role.description,
            "settings": settings_of(role.tables),
            "waiting": profile_views.documents(self.waiting),
            "files": _files(role),
            **_omissions(role),
        }

    def print(self) -> None:
        role = self.role
        print(f"Role:         {role.name} ({_SOURCES[role.source]})")
        print(f"Description:  {visible(role.description) or '-'}")
        path = home(role.path) if is_terminal(sys.stdout) else role.path
        print(f"Path:         {visible(path)}")
        for file in _files(role):
            print(f"File:         {visible(file['path'])}, {size(file['bytes'])}")
        for setting in settings_of(role.tables):
            if setting["key"] == "instructions" and isinstance(setting["value"], str):
                continue
            for line in _setting_lines(setting):
                print(line)
        instructions = role.tables.get("instructions")
        if isinstance(instructions, str):
            print("\nInstructions:")
            for text in instructions.strip("\n").splitlines():
                print(f"  {visible(text)}".rstrip())
        if self.waiting:
            print(f"\nNot in force, in {UNTRUSTED}:")
            for line in profile_views.lines(self.waiting):
                print(line)
        notice_omissions(role.settings_left_out, role.left_out)


def _setting_lines(setting: Mapping[str, Any]) -> Iterator[str]:
    """A setting, with one line for each rule of a list of rules."""
    value, key = setting["value"], setting["key"]
    if not (isinstance(value, dict) and isinstance(value.get("rules"), list)):
        yield _setting_line(key, value)
        return
    for name, inner in value.items():
        for item in inner if name == "rules" else [inner]:
            yield _setting_line(f"{key}.{name}", item)


def _setting_line(key: str, value: Any) -> str:
    return f"Setting:      {visible(key)} = {visible(json.dumps(value, ensure_ascii=False))}"


class NewRoleView(NamedTuple):
    """A role that was made or imported; `waiting` are its imported settings that are not in force."""

    new_role: NewRole
    waiting: Sequence[TrustItem]

    def document(self) -> dict[str, Any]:
        role = self.new_role.role
        return {
            "name": role.name,
            "path": role.path,
            "from": self.new_role.origin,
            "description": role.description,
            "settings": keys_of(role.tables),
            "waiting": profile_views.documents(self.waiting),
            "files": _files(role),
            **_omissions(role),
            "redacted": self.new_role.redactions,
            "hides_shipped": self.new_role.hides_shipped,
        }

    def print(self) -> None:
        role = self.new_role.role
        path = home(role.path) if is_terminal(sys.stdout) else role.path
        print_sentence(f"Created role {role.name}: {visible(path)}")
        settings = keys_of(role.tables)
        notice(f"It has these settings: {', '.join(map(visible, settings))}." if settings else "It has no settings.")
        if role.files:
            notice(f"It has these files: {', '.join(visible(path) for path in sorted(role.files))}.")
        if self.new_role.redactions:
            notice(f"{counted(self.new_role.redactions, 'secret')} in its files was replaced by [redacted].")
        notice_omissions(role.settings_left_out, role.left_out)
        if self.new_role.hides_shipped:
            notice(f"It hides the role {role.name} that ships with deepctl.")
        if self.waiting:
            notice(
                f"Not in force: {', '.join(visible(item.key) for item in self.waiting)}. `deepctl roles show "
                f"{role.name}` shows these settings. In a profile, `deepctl profiles trust` puts them into force."
            )


class RoleExportView(NamedTuple):
    """A role that was written to the directory `path`."""

    role: Role
    path: str

    def document(self) -> dict[str, Any]:
        files = _files(self.role)
        return {
            "name": self.role.name,
            "path": self.path,
            "files": files,
            "bytes": sum(file["bytes"] for file in files),
        }

    def print(self) -> None:
        print_sentence(f"Exported role {self.role.name} to {visible(self.path)}.")
        notebooks = sorted(path for path in self.role.files if path.startswith("memory/"))
        if notebooks:
            notice(f"It contains notebooks: {', '.join(map(visible, notebooks))}. Read them before you share the role.")


class RoleDeletionView(NamedTuple):
    """A deleted role; `is_shipped`: the shipped role of this name counts again."""

    name: str
    path: str
    is_shipped: bool

    def document(self) -> dict[str, Any]:
        return {"name": self.name, "path": self.path, "shipped": self.is_shipped}

    def print(self) -> None:
        print_sentence(f"Deleted role {self.name}.")
        if self.is_shipped:
            notice(f"The role {self.name} that ships with deepctl is visible again.")


class ProfileCreationView(NamedTuple):
    """A new profile; `role` is what it started with; `waiting` settings of it are not in force."""

    name: str
    path: str
    role: Role | None = None
    waiting: Sequence[TrustItem] = ()

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"profile": self.name, "path": self.path, "created": True, "role": None}
        if self.role is None:
            return document
        return {
            **document,
            "role": self.role.name,
            "settings": keys_of(self.role.tables),
            "waiting": profile_views.documents(self.waiting),
            "files": sorted(self.role.workspace_files()),
        }

    def print(self) -> None:
        where = home(self.path) if is_terminal(sys.stdout) else self.path
        like = f" like role {self.role.name}" if self.role is not None else ""
        print(f"Created profile {self.name}{like}: {visible(where)}")
        if self.role is None:
            return
        if settings := keys_of(self.role.tables):
            notice(f"It has these settings: {', '.join(map(visible, settings))}.")
        if files := sorted(self.role.workspace_files()):
            notice(f"It has these files: {', '.join(map(visible, files))}.")
        if self.role.extensions():
            notice(f"Its skills and slash commands are not in force; `deepctl profiles trust {self.name}` names them.")
        notice_omissions(self.role.settings_left_out, self.role.left_out)
        if self.waiting:
            notice(
                f"Not in force: {', '.join(visible(item.key) for item in self.waiting)}. `deepctl profiles trust "
                f"{self.name}` shows these settings, asks, and puts them into force."
            )
