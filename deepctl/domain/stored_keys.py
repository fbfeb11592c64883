"""The keys that `deepctl keys set` stores: in the keyring of the desktop, or in `<root>/keys/<profile>/NAME`.

They are beside the profiles, so that no export and no copy of a profile contains them. A key in the keyring has an
empty file `NAME.keyring` there. The directory has the profile's name in lower case, like its lock. The tokens of logins
to MCP servers are there too, as `SERVER.oauth`.

A rename copies the keys to the new name first, and a new profile starts without keys, so that after a kill no profile
has another one's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from deepctl.domain import key_sources
from deepctl.domain.key_sources import KeyProblem
from deepctl.errors import Refused, UsageError
from deepctl.files import atomic, rmtree

_MARK = ".keyring"
_LOGIN = ".oauth"
_ENTRY = re.compile(r"([A-Z][A-Z0-9_]*)(\.keyring)?")


class StoredKey(NamedTuple):
    """A stored key: its name, and the path of its file, which is empty if the key is in the keyring."""

    name: str
    path: str
    is_in_keyring: bool


def listed(directory: str) -> list[StoredKey]:
    """The stored keys of the profile whose keys are in `directory`, sorted by name."""
    try:
        entries = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = [match for entry in entries if (match := _ENTRY.fullmatch(entry)) is not None]
    return [StoredKey(match[1], os.path.join(directory, match[0]), bool(match[2])) for match in matches]


def service(directory: str, name: str) -> str:
    """The service of a stored key in the keyring."""
    return f"deepctl/{os.path.basename(directory)}/{name}"


def store(directory: str, name: str, text: str, *, in_keyring: bool) -> str:
    """Store a key, instead of an earlier one. Returns its place. The caller holds the profile's lock.

    Raises `UsageError` if the keyring cannot be changed, and `Refused` if the directory is a link; nothing has changed
    then.
    """
    make_directory(directory)
    if in_keyring:
        _change(directory, name, text)
    path = os.path.join(directory, name)
    atomic.commit_file(path + _MARK if in_keyring else path, b"" if in_keyring else text.encode() + b"\n")
    forget(directory, name, keeps_keyring=in_keyring, keeps_file=not in_keyring)
    return service(directory, name) if in_keyring else path


def make_directory(directory: str) -> None:
    """Create the directory for the keys of a profile. Raises `Refused` if it is a link."""
    if os.path.islink(directory):
        raise Refused(f"{directory} is a symbolic link.", "Find out what created it, and remove it.")
    atomic.make_directory(os.path.dirname(directory))
    atomic.make_directory(directory)


def login_file(directory: str, server: str) -> str:
    """The file with the tokens of a login to an MCP server."""
    return os.path.join(directory, server + _LOGIN)


def logins(directory: str) -> list[str]:
    """The MCP servers to which there is a login."""
    try:
        entries = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [entry.removesuffix(_LOGIN) for entry in entries if entry.endswith(_LOGIN) and not entry.startswith(".")]


def write_login(path: str, data: bytes) -> None:
    """Replace the tokens of a login. Creates no directory: after a wipe, a login of a killed chat must not return."""
    atomic.commit_file(path, data)


def forget_login(directory: str, server: str) -> bool:
    """Delete the tokens of a login. Returns whether there was one."""
    try:
        os.unlink(login_file(directory, server))
    except FileNotFoundError:
        return False
    atomic.sync_directory(directory)
    return True


def forget(directory: str, name: str, *, keeps_keyring: bool = False, keeps_file: bool = False) -> bool:
    """Delete a stored key. Returns whether there was one. Raises `UsageError` if the keyring cannot be changed."""
    was_there = False
    for key in listed(directory):
        if key.name != name or (keeps_keyring if key.is_in_keyring else keeps_file):
            continue
        if key.is_in_keyring:
            _change(directory, name, None)
        os.unlink(key.path)
        was_there = True
    if was_there:
        atomic.sync_directory(directory)
    return was_there


def _change(directory: str, name: str, text: str | None) -> None:
    try:
        key_sources.change_keyring(service(directory, name), name, text)
    except KeyProblem as problem:
        raise UsageError(f"{name} {problem}.", problem.hint, code="keyring") from None


def empty_keyring(directory: str) -> None:
    """Delete the keys of a profile from the keyring. Raises `UsageError` if the keyring cannot be changed."""
    for key in listed(directory):
        if key.is_in_keyring:
            forget(directory, key.name, keeps_file=True)


def discard(directory: str) -> None:
    """Delete keys that an earlier profile of the same name left. The caller creates a profile, with its lock."""
    if not os.path.lexists(directory):
        return
    with suppress(UsageError):
        empty_keyring(directory)
    rmtree.remove_tree(directory)


def copy_for_rename(old: str, new: str) -> None:
    """Copy the stored keys to the directory for a new name. Nothing else has changed if this raises."""
    keys, servers = listed(old), logins(old)
    if old == new or not (keys or servers):
        return
    discard(new)
    try:
        for key in keys:
            text = _text(old, key)
            store(new, key.name, text, in_keyring=key.is_in_keyring)
        if servers:
            make_directory(new)
        for server in servers:
            write_login(login_file(new, server), atomic.read_file(login_file(old, server)))
    except BaseException:
        with suppress(UsageError, OSError):
            discard(new)
        raise


def _text(directory: str, key: StoredKey) -> str:
    if not key.is_in_keyring:
        return atomic.read_file(key.path).decode().removesuffix("\n")
    try:
        return key_sources.of_keyring(service(directory, key.name), key.name)
    except KeyProblem as problem:
        raise Refused(
            f"The stored key {key.name} cannot be moved: it {problem}.", problem.hint, code="keyring"
        ) from None


def orphans(keys: str, names: set[str]) -> Iterator[str]:
    """The directories in `keys` of profiles that do not exist. `names` are those of the profiles in lower case."""
    with suppress(OSError):
        yield from sorted(os.path.join(keys, entry) for entry in os.listdir(keys) if entry not in names)
