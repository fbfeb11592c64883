"""Profiles: finding, creating and describing the private directory of a user, and the limit of its checkpoints."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

from deepctl import layout, quantities
from deepctl.domain import settings
from deepctl.errors import DeepctlError, ProfileNotFound, Refused
from deepctl.files import atomic, ownership, rmtree
from deepctl.files.paths_beneath import walk
from deepctl.layout import ProfilePaths, Root
from deepctl.locks import Lease, Lock
from deepctl.store import ledger

ROOT_PARTS = ("profiles", "locks", "keys")
"""The directories of a root, by name."""


class PartCounts(NamedTuple):
    """One count for each part of a profile, of files or of bytes in them.

    `memory`, `plans` and `evicted` are in the workspace, and included in its count; `total` is the count of all parts.
    """

    workspace: int = 0
    sessions: int = 0
    checkpoints: int = 0
    total: int = 0
    memory: int = 0
    plans: int = 0
    evicted: int = 0
    cache: int = 0
    prompt_history: int = 0


class Profile(NamedTuple):
    """One profile as lists show it. Times are RFC 3339 in UTC; `problem` is the reason why a part could not be read."""

    name: str
    path: str
    created_at: str | None
    last_used_at: str | None
    model: str | None
    sessions: int
    checkpoints: int
    bytes: PartCounts
    files: PartCounts
    problem: str | None = None


def find(root: Root, name: str) -> ProfilePaths:
    """The profile called `name`, in any case. Raises `BadName`, `ProfileNotFound` or `Refused`."""
    paths = locate(root, name)
    _check_parts(paths)
    return paths


def locate(root: Root, name: str) -> ProfilePaths:
    """The same without checks of its parts, for commands that delete it, links included."""
    layout.check_name(name)
    entry = _lookup(root, name)
    if entry is None:
        raise ProfileNotFound(name)
    return entry


def exists(root: Root, name: str) -> bool:
    """Whether there is a profile of that name, in any case."""
    layout.check_name(name)
    return _lookup(root, name) is not None


def _lookup(root: Root, name: str) -> ProfilePaths | None:
    paths = root.profile(name)
    if not os.path.lexists(paths.directory):
        folded_name = layout.folded_name(name)
        existing_name = next((entry for entry in _entries(root) if layout.folded_name(entry) == folded_name), None)
        if existing_name is None:
            return None
        paths = root.profile(existing_name)
    _check_directory(paths)
    return paths


def _check_directory(paths: ProfilePaths) -> None:
    status = os.lstat(paths.directory)
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        raise Refused(
            f"Profile {paths.name!r} is {kind}: {paths.directory}.",
            "A profile must be a directory, and not a link or another file.",
        )
    if status.st_uid != os.geteuid():
        raise Refused(
            f"Profile {paths.name!r} belongs to another user of this machine (uid {status.st_uid}).",
            "Set $DEEPCTL_HOME to a directory of your own.",
        )
    ownership.check(paths.directory)


def _check_parts(paths: ProfilePaths) -> None:
    for part in ("workspace", "sessions", "checkpoints"):
        if os.path.islink(os.path.join(paths.directory, part)):
            raise Refused(
                f"The {part} of profile {paths.name!r} are a symbolic link."
                if part != "workspace"
                else f"The workspace of profile {paths.name!r} is a symbolic link.",
                "All state of a profile must be in its own directory. Find out what created the link.",
            )


def _entries(root: Root) -> list[str]:
    return sorted(entry for entry in _listed(root) if entry[:1].isalnum())


def _listed(root: Root) -> list[str]:
    try:
        return os.listdir(root.profiles)
    except FileNotFoundError:
        return []


def all_names(root: Root) -> list[str]:
    """The names of all profiles, sorted; other entries are left out."""
    return [entry for entry in _entries(root) if os.path.isdir(os.path.join(root.profiles, entry))]


class FinishingLock(Lock):
    """The lock of a profile. The first holder finishes interrupted commands among the profiles."""

    def __init__(self, root: Root, name: str, *, command: str, wait: float) -> None:
        super().__init__(root.profile(name).lock, profile=name, command=command, wait=wait)
        self._root = root
        self._name = layout.folded_name(name)

    def __enter__(self) -> Self:
        from deepctl.domain.wipe import trash  # commands that only read do not need it

        super().__enter__()
        try:
            if any(entry.startswith(trash.LEFTOVERS) for entry in _listed(self._root)):
                trash.finish(self._root, self._name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self


def lock(root: Root, name: str, *, command: str, wait: float = 0.0) -> Lease:
    """The lock of the profile called `name`, which need not exist yet. `wait` is in seconds.

    The first holder finishes interrupted wipes of any profile.
    """
    layout.check_name(name)
    make_root(root)
    return FinishingLock(root, name, command=command, wait=wait)


def check_root(root: Root) -> Root:
    """The root, if no other user of this machine can write into it. Raises `StorageError`."""
    ownership.check(root.path, *ROOT_PARTS)
    return root


def make_root(root: Root) -> None:
    """Create the directories above all profiles. Raises `StorageError` if other users may write there."""
    atomic.make_root(root.path)
    atomic.make_directory(root.profiles)
    atomic.make_directory(root.locks)
    check_root(root)  # another process may have been faster


class ProfileSeed(NamedTuple):
    """What a new profile starts with: the tables of its profile.toml, the bytes of its untrusted.toml, and files by
    their paths in the workspace. `extensions` are skills and commands by their paths, which are not in force.
    """

    tables: Mapping[str, Any] = {}
    untrusted: bytes | None = None
    files: Mapping[str, bytes] = {}
    extensions: Mapping[str, bytes] = {}


EMPTY = ProfileSeed()


def create(root: Root, name: str, seed: ProfileSeed = EMPTY) -> ProfilePaths:
    """Create a profile. The caller holds its lock. Raises `Refused` if it exists."""
    check_new(root, name)
    make_root(root)
    staging = os.path.join(root.profiles, layout.NEW + layout.folded_name(name))
    # Under the lock, anything there was left by a killed `create` of the same profile.
    rmtree.make_anew(staging)
    for part in ("workspace", "sessions", "checkpoints"):
        atomic.make_directory(os.path.join(staging, part))
    files = {f"workspace/{path}": content for path, content in seed.files.items()}
    files |= {f"{layout.UNTRUSTED_FILES}/{path}": content for path, content in seed.extensions.items()}
    for path, content in files.items():
        full_path = os.path.join(staging, path)
        atomic.make_root(os.path.dirname(full_path))
        atomic.write_file(full_path, content)
    if seed.untrusted is not None:
        settings.replace_document(os.path.join(staging, layout.UNTRUSTED), seed.untrusted)
    settings.replace_document(os.path.join(staging, layout.SETTINGS), settings.new_document(name, seed.tables))
    from deepctl.store import usage_log  # commands that only read do not need it

    usage_log.begin(staging)
    paths = root.profile(name)
    discard_old_keys(paths)
    os.rename(staging, paths.directory)
    with atomic.after_commit(f"Profile {name!r} was created"):
        atomic.sync_directory(root.profiles)
    return paths


def check_new(root: Root, name: str) -> None:
    """Raises `Refused` if there is a profile called `name`, with the command that uses it."""
    if (entry := _lookup(root, layout.check_name(name))) is not None:
        raise Refused(
            _taken(entry.name, name),
            f"`deepctl chat --user {entry.name}` uses it.",
            code="profile_exists",
        )


def discard_old_keys(paths: ProfilePaths) -> None:
    """Delete keys of an earlier profile of the same name, before a profile is created."""
    if os.path.lexists(paths.keys):
        from deepctl.domain import stored_keys

        stored_keys.discard(paths.keys)


def check_free(root: Root, name: str, *, by: ProfilePaths | None = None) -> None:
    """Raises `Refused` if there is a profile called `name`, except the profile `by` itself in another case."""
    entry = _lookup(root, layout.check_name(name))
    if entry is not None and (by is None or entry.name == name or not layout.same_name(name, by.name)):
        raise Refused(
            _taken(entry.name, name),
            "`deepctl profiles list` lists the profiles.",
            code="profile_exists",
        )


def _taken(existing: str, name: str) -> str:
    return (
        f"There is already a profile {existing!r}{'' if existing == name else '; upper and lower case are the same'}."
    )


def rename(root: Root, paths: ProfilePaths, name: str) -> ProfilePaths:
    """Rename a profile, in one step. The caller holds the locks of both names. Raises `Refused` if the new name is
    taken.
    """
    check_free(root, name, by=paths)
    new_paths = root.profile(name)
    if paths.keys != new_paths.keys:
        discard_old_keys(new_paths)
    has_keys = os.path.lexists(paths.keys) and paths.keys != new_paths.keys
    if has_keys:
        from deepctl.domain import stored_keys

        stored_keys.copy_for_rename(paths.keys, new_paths.keys)
    os.rename(paths.directory, new_paths.directory)
    with atomic.after_commit():
        atomic.sync_directory(root.profiles)
        if has_keys:
            stored_keys.discard(paths.keys)
    return new_paths


def describe(paths: ProfilePaths) -> Profile:
    """The description of a profile for lists and `profiles show`. Never raises for damage inside it."""
    values: Mapping[str, object] = {}
    try:
        _check_directory(paths)
        _check_parts(paths)
        values = settings.read("profile", paths.settings).checked()
        problem = None
    except (Refused, OSError) as error:
        return Profile(paths.name, paths.directory, None, None, None, 0, 0, PartCounts(), PartCounts(), str(error))
    except DeepctlError as error:
        problem = error.message
    checkpoints = 0
    try:
        checkpoints = len(ledger.read(paths.checkpoints, paths.ledger_cache).records)
    except (DeepctlError, OSError) as error:
        problem = str(error)
    created_at = values.get("created_at")
    model = values.get("model")
    size, files = _measured(paths.directory)
    return Profile(
        paths.name,
        paths.directory,
        created_at if isinstance(created_at, str) and quantities.is_time(created_at) else None,
        _last_used(paths),
        model if isinstance(model, str) else None,
        _count(paths.sessions),
        checkpoints,
        size,
        files,
        problem,
    )


def _count(directory: str) -> int:
    try:
        return sum(1 for entry in os.listdir(directory) if entry[:1].isalnum())
    except OSError:
        return 0


_WITHIN = {
    f"workspace/{layout.MEMORY_DIRECTORY}/": "memory",
    f"workspace/{layout.PLANS_DIRECTORY}/": "plans",
    f"workspace/{layout.EVICTED_DIRECTORY}/": "evicted",
}
"""The paths of the parts of a workspace with counts of their own."""


def _measured(directory: str) -> tuple[PartCounts, PartCounts]:
    """Bytes and files of the parts of a profile."""
    size, files = Counter[str](), Counter[str]()
    for path, status in _files(directory):
        # The reserve takes space, but is not cached data.
        part_names = ["total", path.partition("/")[0] if path != layout.RESERVE else "reserve"]
        if part_names[1] == "workspace":
            part_names += [part for start, part in _WITHIN.items() if path.startswith(start)]
        for part in part_names:
            size[part] += status.st_size
            files[part] += 1
    return (
        PartCounts._make(size[part] for part in PartCounts._fields),
        PartCounts._make(files[part] for part in PartCounts._fields),
    )


def _files(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below a directory and its status; unreadable files are left out."""
    return ((entry.path, entry.status) for entry in walk(directory) if entry.status is not None and entry.is_file)


def _last_used(paths: ProfilePaths) -> str | None:
    newest = max((status.st_mtime for _, status in _files(paths.sessions)), default=None)
    return None if newest is None else quantities.time_at(newest)


def checkpoint_bytes(paths: ProfilePaths) -> int:
    """The bytes that the checkpoints of a profile take: contents and ledger. Two directories are listed."""
    total = 0
    for directory in (paths.packs, paths.checkpoints):
        try:
            with os.scandir(directory) as entries:
                total += sum(
                    entry.stat(follow_symlinks=False).st_size
                    for entry in entries
                    if entry.is_file(follow_symlinks=False)
                )
        except OSError:
            continue  # no checkpoints yet; commands that read them report damage
    return total


def passed_limit(paths: ProfilePaths, limit: int) -> int | None:
    """The bytes of all checkpoints, if they are more than `limit` and the user has not been warned; else `None`.

    `limits.checkpoints` refuses and deletes nothing. The user is warned once, until the checkpoints take less again or
    the limit changes. `cache/budget` has the limit of the last warning, so deleting the cache may repeat it; so may a
    disk that cannot be written. The caller holds the profile's lock and gives the warning.
    """
    size = checkpoint_bytes(paths)
    marker = os.path.join(paths.cache, "budget")
    if size <= limit:
        with suppress(OSError):
            os.unlink(marker)
        return None
    if _warned_limit(marker) == limit:
        return None
    with suppress(OSError):
        atomic.make_root(paths.cache)
        atomic.write_file(marker, b"%d\n" % limit)
    return size


def _warned_limit(path: str) -> int | None:
    try:
        return int(atomic.read_file(path)[:32])
    except (OSError, ValueError, Refused):
        return None
