"""One role: a directory with the settings, the context files and the notebooks that a new profile starts with.

    role.toml       version, description, made_from (a profile), and settings with their names in profile.toml
    untrusted.toml  imported settings that are not in force
    AGENTS.md       a context file, and so is DEEP.md
    memory/*.md     notebooks of the agent main
    skills/         skills, and commands/*.md slash commands; a new profile has them after `profiles trust`

A role never has keys, tokens, agreements between profiles, or directories of this machine
(`deepctl.domain.portable_settings`). A role may come from another person. So links are not followed, other files are
left out, and all sizes are limited.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from deepctl import layout
from deepctl.domain import portable_settings, settings
from deepctl.domain.memory import directory as memory_directory
from deepctl.domain.portable_settings import OmittedSetting, PortableSettings
from deepctl.domain.transfer.archive import OmittedPath
from deepctl.errors import BadName, BadSetting, Refused
from deepctl.files.paths_beneath import DirectoryTree, walk
from deepctl.layout import COMMANDS, CONTEXT_FILES, ROLE_FORMAT, SKILLS, UNTRUSTED
from deepctl.quantities import size

ROLE_FILE = "role.toml"
MEMORY = "memory"
MAX_FILE = 1 << 20
"""Bytes of the largest file of a role."""
MAX_BYTES = 16 << 20
MAX_FILES = 1000
_LONGEST_DESCRIPTION = 200

Source = Literal["shipped", "user"]


class Role(NamedTuple):
    """A role. `tables` are the tables of its role.toml that are settings, `untrusted` the bytes of its untrusted.toml.

    `files` are the other files by their paths in the role. `settings_left_out` and `left_out` have no effect.
    """

    name: str
    source: Source
    path: str
    description: str
    tables: Mapping[str, Any]
    untrusted: bytes | None
    files: Mapping[str, bytes]
    settings_left_out: list[OmittedSetting]
    left_out: list[OmittedPath]
    made_from: str = ""
    """The profile of this machine from which it was made; empty if it was not made from one."""

    def extensions(self) -> dict[str, bytes]:
        """Its skills and commands by their paths. Another person may have written them, so they need trust."""
        places = (f"{SKILLS}/", f"{COMMANDS}/")
        return {path: content for path, content in self.files.items() if path.startswith(places)}

    def workspace_files(self) -> dict[str, bytes]:
        """The files of a new profile, by their paths in its workspace."""
        notebooks = f"{layout.MEMORY_DIRECTORY}/{layout.AGENT}"
        return {
            path if path in CONTEXT_FILES else f"{notebooks}/{path.removeprefix(f'{MEMORY}/')}": content
            for path, content in self.files.items()
            if not path.startswith((f"{SKILLS}/", f"{COMMANDS}/"))
        }


class RoleText(NamedTuple):
    """The contents of a role.toml: the description, and the settings that a role may have."""

    description: str
    settings: PortableSettings
    made_from: str = ""


def parse(raw: bytes, path: str, environment: Mapping[str, str]) -> RoleText:
    """The contents of the role.toml at `path`. `environment` has the secrets that must not occur in a value.

    Raises `Damaged` if it is not TOML, `NewerFormat`, and `BadSetting`.
    """
    tables = settings.parse_tables(raw, path, ROLE_FORMAT)
    description = tables.pop("description", "")
    check_description(description, path)
    made_from = tables.pop("made_from", "")
    if not isinstance(made_from, str) or not layout.is_good_name(made_from):
        made_from = ""
    return RoleText(description, portable_settings.portable(tables, environment, for_other_machine=True), made_from)


def check_description(description: Any, place: str) -> None:
    """Raises `BadSetting` for a description that does not fit into a list; `place` names it."""
    if not isinstance(description, str) or len(description) > _LONGEST_DESCRIPTION or not description.isprintable():
        raise BadSetting(
            f"The description in {place} cannot be used.",
            f"It must be one line of at most {_LONGEST_DESCRIPTION} characters.",
        )


def document(description: str, tables: Mapping[str, Any], made_from: str = "") -> bytes:
    """A role.toml."""
    import tomlkit

    head = {"version": ROLE_FORMAT.current, "description": description}
    if made_from:
        head["made_from"] = made_from
    return tomlkit.dumps({**head, **tables}).encode()


def read(name: str, source: Source, path: str, environment: Mapping[str, str]) -> Role:
    """The role in a directory. Raises `BadSetting`, `Damaged`, `NewerFormat`, and `Refused` if it is too large."""
    files, left_out = read_files(path, is_trusted_place=source == "shipped")
    raw = files.pop(ROLE_FILE, b"")
    untrusted = files.pop(UNTRUSTED, None)
    text = parse(raw, os.path.join(path, ROLE_FILE), environment)
    settings.check(settings.flat(text.settings.tables, path), os.path.join(path, ROLE_FILE))
    return Role(
        name,
        source,
        path,
        text.description,
        text.settings.tables,
        untrusted,
        files,
        text.settings.left_out,
        left_out,
        text.made_from,
    )


def read_files(directory: str, *, is_trusted_place: bool = False) -> tuple[dict[str, bytes], list[OmittedPath]]:
    """The files of a role by their paths, and the entries that are not part of a role.

    An installation may consist of links, so the files of a shipped role are read with them (`is_trusted_place`). Raises
    `Refused` if there is too much.
    """
    files: dict[str, bytes] = {}
    left_out: list[OmittedPath] = []
    tree = DirectoryTree(directory, follow=False, kind="role")
    total = 0
    for path, length, kind_problem in _entries(directory, is_trusted_place):
        if (reason := kind_problem or problem(path)) is not None:
            left_out.append(OmittedPath(path, reason))
            continue
        total += length
        if length > MAX_FILE or total > MAX_BYTES or len(files) >= MAX_FILES:
            raise too_large(directory)
        try:
            if is_trusted_place:
                with open(os.path.join(directory, path), "rb") as file:
                    files[path] = file.read()
            else:
                files[path] = tree.read(path)
        except OSError as error:
            left_out.append(OmittedPath(path, (error.strerror or "cannot be read").lower()))
    return files, left_out


def too_large(directory: str) -> Refused:
    """The error for a role with too many or too large files."""
    return Refused(
        f"{directory} is too large for a role.",
        f"A role has at most {MAX_FILES:,} files, {size(MAX_FILE)} in one file and {size(MAX_BYTES)} in all.",
        code="role_too_large",
    )


def _entries(directory: str, is_trusted_place: bool) -> Iterator[tuple[str, int, str | None]]:
    """Every entry that is no directory: its path, its size, and why it cannot be part of a role."""
    if is_trusted_place:
        for place, _, names in os.walk(directory):
            for name in names:
                path = os.path.join(place, name)
                yield os.path.relpath(path, directory), os.path.getsize(path), None
        return
    for entry in walk(directory, skip=lambda path: "/" not in path and path.startswith(".")):
        if entry.is_directory and entry.status is not None:
            continue
        if entry.status is None:
            yield entry.path, 0, "cannot be read"
        else:
            yield entry.path, entry.status.st_size, None if entry.is_file else "not a file"


def problem(path: str) -> str | None:
    """Why a file is no part of a role; `None` if it is one."""
    parts = path.split("/")
    if path in (ROLE_FILE, UNTRUSTED, *CONTEXT_FILES):
        return None
    if (parts[0] == SKILLS and len(parts) > 2) or (parts[0] == COMMANDS and len(parts) == 2 and path.endswith(".md")):
        return None
    if parts[0] == MEMORY and len(parts) == 2 and path.endswith(".md"):
        try:
            memory_directory.check_new(parts[1])
        except BadName:
            return "the agent could not open a notebook of this name"
        return None
    return "not part of a role"
