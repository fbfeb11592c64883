"""Making, importing, exporting and deleting roles.

A role is made in a hidden directory beside the others, and one rename gives it its name. A deleted role is renamed out
of sight first. The next command that changes a role removes what a kill has left.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from deepctl import layout
from deepctl.domain import portable_settings, profiles, settings, trust
from deepctl.domain.memory.directory import Memory
from deepctl.domain.roles import catalogue
from deepctl.domain.roles import role as reading
from deepctl.domain.roles.role import MEMORY, ROLE_FILE, Role
from deepctl.domain.settings import SettingsFile
from deepctl.domain.transfer.archive import OmittedPath
from deepctl.errors import NotFound, Refused, UsageError
from deepctl.files import atomic, rmtree
from deepctl.files.paths_beneath import DirectoryTree, walk
from deepctl.layout import CONTEXT_FILES, UNTRUSTED, ProfilePaths, Root
from deepctl.locks import Lock
from deepctl.redaction import Redaction

_HIDDEN = ".gone-"
"""Prefix of the name of a role that is being deleted."""


class NewRole(NamedTuple):
    """A role that was made from `origin`, a profile or a directory. `hides_shipped`: a shipped role has its name."""

    role: Role
    origin: str
    hides_shipped: bool
    redactions: int = 0
    """The number of secrets that were replaced in its notebooks and context files."""


def create(
    root: Root,
    name: str,
    paths: ProfilePaths,
    file: SettingsFile,
    description: str,
    environment: Mapping[str, str],
    wait: float,
) -> NewRole:
    """Make a role from a profile: its settings, which are in `file`, its context files and its notebooks.

    Secrets in them are replaced, or left out with their setting. Raises `Refused` if there is a role of this name.
    """
    reading.check_description(description, "--description")
    file.checked()
    tables = settings.parse_tables(file.content or b"", file.path)
    result = portable_settings.portable(tables, environment, for_other_machine=True)
    settings_left_out = [*result.left_out, *portable_settings.kept_back(paths)]
    files, left_out, redactions = _files_of(paths, environment)
    role = Role(name, "user", "", description, result.tables, None, files, settings_left_out, left_out, paths.name)
    return _store(root, role, paths.name, wait)._replace(redactions=redactions)


def _files_of(paths: ProfilePaths, environment: Mapping[str, str]) -> tuple[dict[str, bytes], list[OmittedPath], int]:
    """The context files, notebooks, skills and commands of a profile, those that cannot be part of a role, and the
    number of redacted secrets.
    """
    contents: dict[str, bytes] = {}
    left_out: list[OmittedPath] = []
    tree = DirectoryTree(paths.workspace, follow=False)
    for path in CONTEXT_FILES:
        try:
            contents[path] = tree.read(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            left_out.append(OmittedPath(f"workspace/{path}", (error.strerror or "cannot be read").lower()))
    memory = Memory(paths)
    for notebook in memory.notebooks():
        path = f"{MEMORY}/{notebook.name}"
        if reading.problem(path) is not None:
            left_out.append(OmittedPath(f"workspace/{notebook.path}", "the agent could not open it by this name"))
        else:
            contents[path] = memory.read(notebook.name).content
    with suppress(OSError):
        for agent in sorted(os.listdir(os.path.join(paths.workspace, layout.MEMORY_DIRECTORY))):
            if agent != layout.AGENT and not agent.startswith("."):
                reason = f"a role has the notebooks of the agent {layout.AGENT} only"
                left_out.append(OmittedPath(f"workspace/{layout.MEMORY_DIRECTORY}/{agent}", reason))
    profile_tree = DirectoryTree(paths.directory, follow=False)
    for directory in (layout.SKILLS, layout.COMMANDS):
        for entry in walk(os.path.join(paths.directory, directory)):
            path = f"{directory}/{entry.path}"
            if entry.is_directory:
                continue
            problem = reading.problem(path) if entry.is_file else "not a file"
            if problem is not None:
                left_out.append(OmittedPath(path, problem))
                continue
            try:
                contents[path] = profile_tree.read(path)
            except OSError as error:
                left_out.append(OmittedPath(path, (error.strerror or "cannot be read").lower()))
    files, redactions = {}, 0
    for path, content in contents.items():
        redaction = Redaction(environment)
        text = redaction.text(content.decode("utf-8", "surrogateescape"))
        files[path] = text.encode("utf-8", "surrogateescape") if redaction.secrets else content
        redactions += redaction.secrets
    return files, left_out, redactions


def take_in(root: Root, directory: str, name: str | None, environment: Mapping[str, str], wait: float) -> NewRole:
    """Import the role in a directory. Its harmless settings are in force, all others are kept apart.

    Raises `NotFound`, `UsageError` if the directory is not a role, `Refused` if there is a role of this name, and the
    errors of `role.parse`.
    """
    if not os.path.lexists(directory):
        raise NotFound(f"There is no directory {directory!r}.", code="directory_not_found")
    if not os.path.isfile(os.path.join(directory, ROLE_FILE)):
        raise UsageError(
            f"{directory} is not a role: it has no {ROLE_FILE}.", "`deepctl roles export NAME DIR` writes a role."
        )
    real_path = os.path.realpath(directory)
    if name is None:
        name = os.path.basename(real_path)
        if not layout.is_good_name(name):
            raise UsageError(f"{name!a} cannot be the name of a role.", "--as NAME gives it another name.")
    layout.check_name(name, "role")
    files, left_out = reading.read_files(real_path)
    if ROLE_FILE not in files:
        raise UsageError(
            f"{directory} is not a role: its {ROLE_FILE} is not a regular file.", "deepctl follows no links in a role."
        )
    path = os.path.join(directory, ROLE_FILE)
    text = reading.parse(files.pop(ROLE_FILE), path, environment)
    # A directory with an untrusted.toml was copied from the roles of a machine: its settings are not trusted either.
    tables = dict(text.settings.tables)
    settings_left_out = list(text.settings.left_out)
    if (raw := files.pop(UNTRUSTED, None)) is not None:
        untrusted_settings = portable_settings.portable(
            settings.parse_tables(raw, os.path.join(directory, UNTRUSTED)), environment, for_other_machine=True
        )
        tables = _merged(tables, untrusted_settings.tables)
        settings_left_out += untrusted_settings.left_out
    try:
        harmless, untrusted = trust.split(_dumped(tables), path)
    except trust.UnusableProfileFile as error:
        reason = str(error).replace("profile.toml is", "settings are").replace("profile.toml has", "settings have")
        raise Refused(
            f"{directory} is refused: {reason}.", "Nothing was imported. Do not trust its source.", code="hostile_role"
        ) from None
    in_force = settings.parse_tables(harmless, path)
    in_force.pop("version", None)
    role = Role(name, "user", "", text.description, in_force, untrusted, files, settings_left_out, left_out)
    return _store(root, role, directory, wait)


def _dumped(tables: Mapping[str, Any]) -> bytes:
    import tomlkit

    return tomlkit.dumps({"version": settings.FORMAT, **tables}).encode()


def _merged(tables: Mapping[str, Any], more_tables: Mapping[str, Any]) -> dict[str, Any]:
    both_tables = dict(tables)
    for key, value in more_tables.items():
        before = both_tables.get(key)
        both_tables[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return both_tables


def export(root: Root, role: Role, directory: str) -> None:
    """Write a role to a new directory, all of its settings in one role.toml. Raises `Refused` if it exists."""
    path = os.path.abspath(directory)
    own = os.path.join(os.path.realpath(root.path), "")
    if os.path.join(os.path.realpath(path), "").startswith(own):
        raise Refused(
            f"{directory!r} is inside deepctl's own state, where exports are not allowed.",
            "Export to another place.",
            code="inside_root",
        )
    if os.path.lexists(path):
        raise Refused(f"There is already a file {directory!r}.", "Name a new directory.", code="file_exists")
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise UsageError(f"There is no directory {parent!r}.", f"Create it first: mkdir -p {shlex.quote(parent)}")
    tables: Mapping[str, Any] = role.tables
    if role.untrusted is not None:
        untrusted = settings.parse_tables(role.untrusted, os.path.join(role.path, UNTRUSTED))
        untrusted.pop("version", None)
        tables = _merged(tables, untrusted)
    staging = os.path.join(parent, atomic.temporary_name())
    try:
        _write(staging, role.description, tables, None, role.files)
        os.rename(staging, path)
    except BaseException:
        with suppress(OSError):
            rmtree.remove_tree(staging)
        raise
    with atomic.after_commit():
        atomic.sync_directory(parent)


def delete(root: Root, name: str, wait: float) -> str:
    """Delete a role of the user; returns its name as it was. Raises `NotFound`, and `Refused` for a shipped one."""
    place = catalogue.find_own(root, name)
    with _lock(root, "roles delete", wait):
        hidden = os.path.join(root.roles, f"{_HIDDEN}{os.urandom(8).hex()}")
        try:
            os.rename(place[1], hidden)
        except FileNotFoundError:
            raise catalogue.not_found(name, []) from None
        with atomic.after_commit("The role is deleted", "The next command that changes a role deletes its files."):
            atomic.sync_directory(root.roles)
            rmtree.remove_tree(hidden)
    return place[0]


@contextmanager
def _lock(root: Root, command: str, wait: float) -> Iterator[None]:
    """The lock of the roles. Its holder removes what killed commands left."""
    profiles.make_root(root)
    atomic.make_directory(root.roles)
    catalogue.check_root(root)
    # No profile can have this name, so it cannot be confused with a profile's lock.
    with Lock(os.path.join(root.locks, ".roles"), work="changing roles", command=command, wait=wait):
        for name in os.listdir(root.roles):
            if name.startswith((layout.NEW, _HIDDEN)):
                with suppress(OSError):
                    rmtree.remove_tree(os.path.join(root.roles, name))
        yield


def _store(root: Root, role: Role, origin: str, wait: float) -> NewRole:
    """Write a new role to its place."""
    layout.check_name(role.name, "role")
    sizes = [len(content) for content in role.files.values()]
    if sizes and (max(sizes) > reading.MAX_FILE or sum(sizes) > reading.MAX_BYTES or len(sizes) > reading.MAX_FILES):
        raise reading.too_large(f"The memory and context files of {origin}")
    with _lock(root, "roles create", wait):
        place = catalogue.places(root).get(layout.folded_name(role.name))
        if place is not None and place[1] == "user":
            raise Refused(
                f"There is already a role {place[0]!r}.",
                f"`deepctl roles delete {place[0]}` deletes it.",
                code="role_exists",
            )
        staging = os.path.join(root.roles, f"{layout.NEW}{os.urandom(8).hex()}")
        path = os.path.join(root.roles, role.name)
        _write(staging, role.description, role.tables, role.untrusted, role.files, role.made_from)
        os.rename(staging, path)
        with atomic.after_commit(f"Role {role.name!r} was created"):
            atomic.sync_directory(root.roles)
    return NewRole(role._replace(path=path), origin, catalogue.is_shipped(role.name))


def _write(
    directory: str,
    description: str,
    tables: Mapping[str, Any],
    untrusted: bytes | None,
    files: Mapping[str, bytes],
    made_from: str = "",
) -> None:
    """Write a role to a new directory."""
    atomic.make_new_directory(directory)
    for path, content in files.items():
        full_path = os.path.join(directory, path)
        atomic.make_root(os.path.dirname(full_path))
        atomic.write_file(full_path, content)
    if untrusted is not None:
        atomic.write_file(os.path.join(directory, UNTRUSTED), untrusted)
    atomic.write_file(os.path.join(directory, ROLE_FILE), reading.document(description, tables, made_from))
