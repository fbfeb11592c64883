"""The setting `read_only_paths`: files and directories of this machine that commands can read, such as toolchains.

A path is refused if it is a secret of the user or of the system, contains one, or lies in one: with a link in it, too.
The others get mounts in a sandbox, and variables.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import BadSetting, DeepctlError
from deepctl.files import key_files
from deepctl.files.paths_beneath import is_within
from deepctl.layout import Root
from deepctl.sandbox.policy import COMMAND_PATH

_SETTING = "read_only_paths"
_SYSTEM = (*key_files.SYSTEM_DIRECTORIES, "/var/run")
_HOMES = {".rustup": "RUSTUP_HOME", ".pyenv": "PYENV_ROOT", ".rbenv": "RBENV_ROOT", ".volta": "VOLTA_HOME"}
"""Directories that programs look for in `$HOME` unless a variable names them: `$HOME` is another one for commands."""


class Bind(NamedTuple):
    """A directory or a file of this machine, and its path for commands."""

    source: str
    target: str
    writable: bool = True


def resolve(values: Sequence[str], environment: Mapping[str, str], root: Root) -> tuple[str, ...]:
    """The absolute paths of the setting's values. Raises `BadSetting` for one that must not be seen or is missing."""
    home = os.path.realpath(os.path.expanduser("~"))
    paths = [_absolute(path, home) for path in values]
    secrets = _secrets(environment, root, home)
    for path in paths:
        _check(path, secrets, home)
    return tuple(dict.fromkeys(paths))


def _absolute(path: str, home: str) -> str:
    return os.path.normpath(os.path.join(home, path[2:]) if path.startswith("~/") else path)


def _secrets(environment: Mapping[str, str], root: Root, home: str) -> dict[str, str]:
    """The paths that commands must not see, and what they are."""
    secrets = dict.fromkeys(_SYSTEM, "it is part of the system")
    secrets |= {os.path.join(home, name): "it has keys of yours" for name in key_files.DIRECTORIES}
    secrets[root.path] = "it is the directory of deepctl"
    try:
        config = layout.config_file(environment)
    except DeepctlError:
        return secrets
    secrets[config] = "it has settings of deepctl"
    if os.path.basename(os.path.dirname(config)) == "deepctl":
        secrets[os.path.dirname(config)] = secrets[config]
    return secrets


def _check(path: str, secrets: Mapping[str, str], home: str) -> None:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _refused(path, f"it cannot be read: {error.strerror}") from None
    if stat.S_ISSOCK(status.st_mode):
        raise _refused(path, "it is a socket")
    is_directory = stat.S_ISDIR(status.st_mode)
    if not (is_directory or stat.S_ISREG(status.st_mode)):
        raise _refused(path, "it is neither a directory nor a file")
    for spelling in {path, os.path.realpath(path)}:
        if is_within(home, spelling):
            raise _refused(path, "it contains your home directory")
        for secret, reason in secrets.items():
            for place in {secret, os.path.realpath(secret)}:
                if is_within(spelling, place):
                    raise _refused(path, reason)
                if is_within(place, spelling):
                    raise _refused(path, f"it contains {secret}: {reason}")
    if is_directory:
        _check_contents(path)


def _check_contents(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                is_socket = False
                with suppress(FileNotFoundError):  # it was deleted during the listing
                    is_socket = stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
                if is_socket:
                    raise _refused(path, f"it contains a socket, {entry.name!r}")
    except OSError as error:
        raise _refused(path, f"it cannot be read: {error.strerror}") from None


def _refused(path: str, reason: str) -> BadSetting:
    return BadSetting(
        f"Setting {_SETTING!r} cannot contain {path!r}: {reason}.",
        f"See which file sets it: deepctl config show. Then: deepctl config set {_SETTING} …",
    )


def binds(paths: Sequence[str], writable: Sequence[str] = ()) -> tuple[Bind, ...]:
    """The mounts of read-only paths: under the path that was given, and under the one it has behind links.

    Paths in the `writable` directories of the same commands are left out.
    """
    real = {path: os.path.realpath(path) for path in paths}
    targets = {
        target: source
        for path, source in real.items()
        for target in (path, source)
        if not any(source == place or source.startswith(f"{place}/") for place in writable)
    }
    return tuple(Bind(targets[target], target, False) for target in sorted(targets, key=lambda path: path.count("/")))


def variables(paths: Sequence[str]) -> dict[str, str]:
    """`PATH` with the programs of these directories behind those of the system, and their other variables."""
    homes = {_HOMES[name]: path for path in paths if (name := os.path.basename(path)) in _HOMES}
    return {"PATH": ":".join([COMMAND_PATH, *_programs(paths)]), **homes}


def _programs(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        own = path if os.path.basename(path) == "bin" else os.path.join(path, "bin")
        # A colon would end the path in the variable.
        if os.path.isdir(own) and ":" not in own:
            yield own
