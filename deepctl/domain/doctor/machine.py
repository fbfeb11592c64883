"""What is the same for all profiles: versions, the root, config.toml, the disk."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator, Mapping

from deepctl import distribution
from deepctl.domain import profiles
from deepctl.domain.doctor.check import Check, some, told
from deepctl.domain.doctor.leftovers import KNOWN
from deepctl.domain.doctor.settings_files import settings_file
from deepctl.domain.settings import SettingsFile
from deepctl.files import ownership
from deepctl.layout import Root
from deepctl.quantities import counted, size

PACKAGES = (
    "pydantic-ai-slim",
    "pydantic-ai-backend",
    "pydantic-ai-harness",
    "pydantic",
    "openai",
    "anthropic",
    "typer",
    "rich",
    "prompt-toolkit",
    "tomlkit",
    "pathspec",
    "platformdirs",
)
"""What deepctl needs: the agent's, then the command line's."""

_LITTLE = 512 << 20
_FEW = 1000


def versions(version: str) -> Iterator[Check]:
    """Versions: of deepctl, Python, the system and of packages, none of which is imported for it."""
    yield Check(
        "versions",
        "ok",
        f"deepctl {version} ({distribution.NAME}), Python {platform.python_version()}, {platform.platform()}",
    )
    from importlib import metadata

    found, missing = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        yield Check("packages", "problem", f"not installed: {', '.join(missing)}", "Install deepctl anew.")
    else:
        yield Check("packages", "ok", ", ".join(found))


def namesakes(environment: Mapping[str, str]) -> Iterator[Check]:
    """Other things called deepctl: distributions beside this one, and programs that a shell would find."""
    for other in distribution.namesakes():
        again = f"{distribution.to_uninstall(other.name)}, then install {distribution.NAME} again."
        if distribution.is_predecessor(other):
            what = f"{other.name} {other.version} is this program under its old name, and shares its files"
        else:
            what = f"{other.name} {other.version} is another product, and its command has the same name"
        yield Check("namesakes", "problem", what, f"Uninstall it first: {again}")
    for path in distribution.foreign_commands(environment.get("PATH", "")):
        yield Check(
            "namesakes",
            "warning",
            f"{path} is another program called {distribution.COMMAND}",
            "Which of the two a shell starts is decided by the order of the directories in $PATH.",
        )


def root(found: Root) -> Iterator[Check]:
    """The root and the directories in it: there, the user's own, and nobody else's to look into."""
    try:
        status = os.stat(found.path)
    except FileNotFoundError:
        yield Check("root", "ok", f"{found.path}, not made yet")
        return
    except OSError as error:
        yield Check("root", "problem", told(error), "Give $DEEPCTL_HOME another directory.")
        return
    unsafe = ownership.examine(found.path, *profiles.ROOT_PARTS)
    if unsafe is not None:
        yield Check("root", "problem", unsafe.problem, unsafe.help)
        yield from _inside(found)
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o777 != 0o700:
        yield Check(
            "root",
            "problem",
            f"{found.path} has mode {mode:04o}, owner {status.st_uid}",
            f"It should be yours alone: chmod 700 {found.path}",
        )
    elif not os.access(found.path, os.R_OK | os.W_OK | os.X_OK):
        yield Check("root", "problem", f"{found.path} cannot be read and written", "Is it on a read-only disk?")
    else:
        yield Check("root", "ok", found.path)
    yield from _inside(found)


def _inside(found: Root) -> Iterator[Check]:
    for name, path in (("profiles", found.profiles), ("locks", found.locks)):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield Check(name, "problem", f"{path} is not a directory of its own", "Find out what put it there.")
            continue
        with os.scandir(path) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
        loose = stat.S_IMODE(status.st_mode) & 0o077 != 0
        if name == "locks":
            odd = [entry.name for entry in there if not entry.is_file(follow_symlinks=False)]
            loose = loose or any(entry.stat(follow_symlinks=False).st_mode & 0o077 for entry in there)
        else:
            odd = [entry.name for entry in there if not (entry.name[:1].isalnum() or entry.name.startswith(KNOWN))]
        if loose:
            yield Check(name, "warning", f"others may look into {path}", "Take it from them: chmod -R go-rwx on it.")
        if odd:
            yield Check(name, "warning", f"in {path}, not deepctl's: {some(odd)}", "Find out what put that there.")


def config(file: SettingsFile) -> Iterator[Check]:
    """config.toml: whether it is there and can be used."""
    yield from settings_file("config", file, "config unset KEY")


def disk(found: Root) -> Iterator[Check]:
    """How much space is left where the root is, or will be."""
    path = found.path
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    status = os.statvfs(path)
    free, all_of_it = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    if not all_of_it:
        yield Check("disk", "ok", f"the file system of {path} does not tell")
        return
    room = f"{size(free)} of {size(all_of_it)} free"
    if status.f_flag & os.ST_RDONLY:
        yield Check("disk", "problem", f"{room}, read-only", "Nothing can be kept there.")
    elif free < _LITTLE:
        yield Check("disk", "warning", room, "A turn that cannot be kept ends. Free some space.")
    elif status.f_files and status.f_favail < _FEW:
        yield Check(
            "disk", "warning", f"{room}, but room for {counted(status.f_favail, 'file')} only", "Remove some files."
        )
    else:
        yield Check("disk", "ok", room)
