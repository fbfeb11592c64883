"""The setting `read_only_paths`: which paths of this machine the agent's commands may see.

A path is refused if it is a secret of the user or of the system, contains one, or lies in one: with a link in it, too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from deepctl import layout
from deepctl.domain.settings import Settings
from deepctl.errors import BadSetting, DeepctlError
from deepctl.files import key_files
from deepctl.files.paths_beneath import is_within
from deepctl.layout import Root

_SETTING = "read_only_paths"
_SYSTEM = (*key_files.SYSTEM_DIRECTORIES, "/var/run")


def resolve(settings: Settings, environment: Mapping[str, str], root: Root) -> tuple[str, ...]:
    """The absolute paths that the setting names. Raises `BadSetting` for one that must not be seen, or is missing."""
    home = os.path.realpath(os.path.expanduser("~"))
    paths = [_absolute(path, home) for path in settings.paths(_SETTING)]
    if paths:
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
    if stat.S_ISDIR(status.st_mode):
        _check_contents(path)
    elif not stat.S_ISREG(status.st_mode):
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


def _check_contents(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                    raise _refused(path, f"it contains a socket, {entry.name!r}")
    except OSError as error:
        raise _refused(path, f"it cannot be read: {error.strerror}") from None


def _refused(path: str, reason: str) -> BadSetting:
    return BadSetting(
        f"Setting {_SETTING!r} cannot contain {path!r}: {reason}.",
        f"See which file sets it: deepctl config show. Then: deepctl config set {_SETTING} …",
    )
