"""Profiles: finding, making and describing one user's private directory."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import NamedTuple

from deepctl.domain import names, settings
from deepctl.domain.checkpoints import ledger
from deepctl.domain.layout import ProfilePaths, Root
from deepctl.errors import DeepctlError, ProfileNotFound, Refused
from deepctl.files import durable
from deepctl.locks import Lock

_STAGING = ".new-"


class Bytes(NamedTuple):
    """Space a profile takes, in bytes of file content."""

    workspace: int
    sessions: int
    checkpoints: int
    total: int


class Profile(NamedTuple):
    """One profile as lists show it. Times are RFC 3339 in UTC; `problem` says why part of it could not be read."""

    name: str
    path: str
    created_at: str | None
    last_used_at: str | None
    model: str | None
    sessions: int
    checkpoints: int
    bytes: Bytes
    problem: str | None = None


def find(root: Root, name: str) -> ProfilePaths:
    """The profile called `name`, in whatever case. Raises `BadName`, `ProfileNotFound` or `Refused`."""
    names.check(name)
    found = _lookup(root, name)
    if found is None:
        raise ProfileNotFound(name)
    return found


def exists(root: Root, name: str) -> bool:
    """Whether there is a profile of that name, in whatever case."""
    names.check(name)
    return _lookup(root, name) is not None


def _lookup(root: Root, name: str) -> ProfilePaths | None:
    paths = root.profile(name)
    if not os.path.lexists(paths.directory):
        folded = names.fold(name)
        spelled = next((entry for entry in _entries(root) if names.fold(entry) == folded), None)
        if spelled is None:
            return None
        paths = root.profile(spelled)
    _check_directory(paths)
    return paths


def _check_directory(paths: ProfilePaths) -> None:
    status = os.lstat(paths.directory)
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        raise Refused(f"Profile {paths.name!r} is {kind}: {paths.directory}.", "A profile is a directory of its own.")
    if status.st_uid != os.geteuid():
        raise Refused(
            f"Profile {paths.name!r} belongs to another user of this machine (uid {status.st_uid}).",
            "Set $DEEPCTL_HOME to a root of your own.",
        )

    for part in ("workspace", "sessions", "checkpoints"):
        if os.path.islink(os.path.join(paths.directory, part)):
            raise Refused(
                f"The {part} of profile {paths.name!r} are a symbolic link."
                if part != "workspace"
                else f"The workspace of profile {paths.name!r} is a symbolic link.",
                "Everything of a profile lies in its own directory. Find out what put the link there.",
            )


def _entries(root: Root) -> list[str]:
    try:
        found = os.listdir(root.profiles)
    except FileNotFoundError:
        return []
    return sorted(entry for entry in found if entry[:1].isalnum())


def all_names(root: Root) -> list[str]:
    """The names of all profiles, sorted; whatever else lies there is left out."""
    return [entry for entry in _entries(root) if os.path.isdir(os.path.join(root.profiles, entry))]


def lock(root: Root, name: str, *, command: str, wait: float = 0.0) -> Lock:
    """The lock of the profile called `name`, which need not exist yet. `wait` is in seconds."""
    names.check(name)
    make_root(root)
    return Lock(root.profile(name).lock, profile=name, command=command, wait=wait)


def make_root(root: Root) -> None:
    """Make the directories above all profiles."""
    durable.make_root(root.path)
    durable.make_directory(root.profiles)
    durable.make_directory(root.locks)


def create(root: Root, name: str) -> ProfilePaths:
    """Make a profile. The caller holds its lock. Raises `Refused` if there is one already."""
    if (found := _lookup(root, names.check(name))) is not None:
        raise Refused(
            f"There is a profile {found.name!r} already; names differ in more than case.",
            f"`deepctl chat --user {found.name}` uses it.",
            code="profile_exists",
        )
    make_root(root)
    staging = os.path.join(root.profiles, _STAGING + names.fold(name))
    # Under the lock, whatever lies there is what a killed `create` of the same profile left.
    shutil.rmtree(staging, ignore_errors=True)
    durable.make_directory(staging)
    for part in ("workspace", "sessions", "checkpoints"):
        durable.make_directory(os.path.join(staging, part))
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = (
        f"# Settings of the deepctl profile {name}. `deepctl config set KEY VALUE --user {name}` changes them.\n"
        f'version = {settings.FORMAT}\ncreated_at = "{now}"\n'
    )
    durable.write_file(os.path.join(staging, "profile.toml"), text.encode())
    paths = root.profile(name)
    os.rename(staging, paths.directory)
    durable.sync_directory(root.profiles)
    return paths


def describe(paths: ProfilePaths) -> Profile:
    """What lists and `profiles show` tell of a profile. Never raises for damage inside it."""
    found: dict[str, object] = {}
    try:
        _check_directory(paths)
        found = settings.read(paths.settings)
        problem = None
    except (Refused, OSError) as error:
        return Profile(paths.name, paths.directory, None, None, None, 0, 0, Bytes(0, 0, 0, 0), str(error))
    except DeepctlError as error:
        problem = error.message
    checkpoints = 0
    try:
        checkpoints = len(ledger.read(paths.checkpoints).records)
    except (DeepctlError, OSError) as error:
        problem = str(error)
    created = found.get("created_at")
    model = found.get("model")
    parts = {entry: _size(os.path.join(paths.directory, entry)) for entry in os.listdir(paths.directory)}
    return Profile(
        paths.name,
        paths.directory,
        created if isinstance(created, str) else None,
        _last_used(paths),
        model if isinstance(model, str) else None,
        _count(paths.sessions),
        checkpoints,
        Bytes(parts.get("workspace", 0), parts.get("sessions", 0), parts.get("checkpoints", 0), sum(parts.values())),
        problem,
    )


def _count(directory: str) -> int:
    try:
        return sum(1 for entry in os.listdir(directory) if entry[:1].isalnum())
    except OSError:
        return 0


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 200


def _files(path: str) -> Iterator[os.stat_result]:
    """The status of every regular file at or below `path`, links not followed, what cannot be read left out."""
    try:
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            yield status
        if not stat.S_ISDIR(status.st_mode):
            return
    except OSError:
        return
    # By descriptors: the agent may put a link, or a FIFO, in the place of a directory meanwhile.
    try:
        pending = [(os.open(path, _DIRECTORY), 0)]
    except OSError:
        return
    while pending:
        descriptor, depth = pending.pop()
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    if entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False)
                    elif entry.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                        pending.append((os.open(entry.name, _DIRECTORY, dir_fd=descriptor), depth + 1))
        except OSError:
            pass  # what cannot be read is left out
        finally:
            os.close(descriptor)


def _size(path: str) -> int:
    return sum(status.st_size for status in _files(path))


def _last_used(paths: ProfilePaths) -> str | None:
    newest = max((status.st_mtime for status in _files(paths.sessions)), default=None)
    return None if newest is None else timestamp(newest)


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
