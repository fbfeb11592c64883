"""Notebooks that another profile shares: read-only, and only if both profiles agree.

    alice/profile.toml   [memory] read = ["team"]          alice's agent wants to read
    team/profile.toml    [memory] readers = ["alice"]      team lets it

Both settings are looked at for every turn and every read, so an agreement ends at once. Only the notebooks of the agent
`main` are shared. They are opened like a profile's own: links are not followed. `shared.json` of the reading profile
names the profiles whose notebooks it has read, because its messages may contain copies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.domain import profiles, settings
from deepctl.domain.memory.directory import Memory, Notebook
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, Refused
from deepctl.files import atomic
from deepctl.layout import SHARED_FORMAT, ProfilePaths, Root

READ, READERS = "memory.read", "memory.readers"
SEPARATOR = ":"
"""Separates the profile from the notebook in `team:MEMORY.md`. No profile's name contains it."""


class Owners(NamedTuple):
    """The profiles that share their notebooks with a profile, and for each of the others the reason why not."""

    profiles: list[ProfilePaths]
    problems: list[str]


class SharedNotebook(NamedTuple):
    """A notebook of the profile `owner`."""

    owner: str
    notebook: Notebook

    @property
    def name(self) -> str:
        """The name for the reader: `team:MEMORY.md`."""
        return f"{self.owner}{SEPARATOR}{self.notebook.name}"


def names_to_read(in_force: Settings) -> list[str]:
    """The profiles whose notebooks a profile wants to read. Raises the errors of its settings."""
    return in_force.patterns(READ)


def owners(root: Root, paths: ProfilePaths, names: Iterable[str]) -> Owners:
    """Those of the profiles called `names` that share their notebooks with the profile at `paths`. Never raises."""
    agreeing_profiles: list[ProfilePaths] = []
    problems: list[str] = []
    for name in names:
        try:
            if layout.same_name(name, paths.name):
                problems.append(f"The setting memory.read names {name}, which is this profile itself.")
            elif not profiles.exists(root, name):
                problems.append(f"The setting memory.read names {name}, but there is no profile of that name.")
            elif is_reader(owner := profiles.find(root, name), paths.name):
                agreeing_profiles.append(owner)
            else:
                problems.append(
                    f"Profile {owner.name} does not share its memory: its memory.readers does not name {paths.name}."
                )
        except (DeepctlError, OSError) as error:
            problems.append(f"The memory of {name} cannot be read: {error}")
    return Owners(agreeing_profiles, problems)


def is_reader(owner: ProfilePaths, reader: str) -> bool:
    """Whether the settings of `owner` let the profile called `reader` read. Raises the errors of these settings."""
    file = settings.read("profile", owner.settings)
    in_force = settings.without_files({})._replace(files=(file,))
    return any(layout.same_name(name, reader) for name in in_force.patterns(READERS))


def notebooks(owner: ProfilePaths) -> list[SharedNotebook]:
    """The notebooks that a profile shares, without their contents. Raises `Refused` for a link in the place of one."""
    return [SharedNotebook(owner.name, notebook) for notebook in Memory(owner).notebooks()]


def read(owner: ProfilePaths, file: str) -> SharedNotebook:
    """One notebook of a profile. Raises `BadName`, `MemoryNotFound`, and `Refused` for a link or a FIFO."""
    return SharedNotebook(owner.name, Memory(owner).read(file))


def split(file: str, names: Iterable[str]) -> tuple[str, str] | None:
    """The profile and the notebook of `team:MEMORY.md`; `None` if `file` is not a notebook of one of `names`."""
    owner, separator, name = file.strip().partition(SEPARATOR)
    if not separator:
        return None
    return next(((other_name, name) for other_name in names if layout.same_name(other_name, owner)), None)


def read_only(reader: str, owner: str) -> Refused:
    """The error for a change to a notebook of another profile."""
    return Refused(
        f"The notebooks of {owner} are read-only for {reader}.",
        f"`--user {owner}` changes them.",
        code="memory_read_only",
    )


def find(root: Root, paths: ProfilePaths, in_force: Settings, file: str) -> SharedNotebook | None:
    """The notebook `team:MEMORY.md`; `None` if the settings name no such profile.

    Raises `Refused` if the profile does not share it, and the errors of `read`.
    """
    names = names_to_read(in_force)
    if (place := split(file, names)) is None:
        return None
    result = owners(root, paths, [place[0]])
    if not result.profiles:
        raise Refused(
            result.problems[0],
            f"Both profiles must agree: `deepctl config set memory.readers {paths.name} --user {place[0]}`.",
            code="memory_not_shared",
        )
    return read(result.profiles[0], place[1])


def record(paths: ProfilePaths, owner_names: Iterable[str]) -> None:
    """Record that a profile has read the notebooks of others. The caller holds its lock.

    A damaged record is written anew: it never prevents a turn.
    """
    before = recorded(paths)
    after = sorted({*before, *map(layout.folded_name, owner_names)})
    if after != sorted(before):
        _write(paths, after)


def recorded(paths: ProfilePaths) -> list[str]:
    """The profiles whose notebooks a profile has read, in lower case; none if the record cannot be read."""
    with suppress(OSError, ValueError, RecursionError, DeepctlError):
        document = json.loads(atomic.read_file(_path(paths)))
        if isinstance(document, dict) and not layout.is_newer(SHARED_FORMAT, document):
            return [name for name in document.get("read", []) if isinstance(name, str)]
    return []


def readers_of(root: Root, owner: str) -> list[str]:
    """The profiles that have read the notebooks of `owner`."""
    return [
        name
        for name in profiles.all_names(root)
        if not layout.same_name(name, owner) and layout.folded_name(owner) in recorded(root.profile(name))
    ]


def rename(root: Root, name: str, new_name: str) -> None:
    """Let the records name a renamed profile by its new name."""
    for reader in readers_of(root, name):
        paths = root.profile(reader)
        names = {other for other in recorded(paths) if other != layout.folded_name(name)}
        _write(paths, sorted({*names, layout.folded_name(new_name)}))


def naming(root: Root, name: str) -> list[tuple[str, str]]:
    """The profiles whose settings name the profile `name`, each with the key of the setting."""
    naming_settings: list[tuple[str, str]] = []
    for other_name in profiles.all_names(root):
        file = settings.read("profile", root.profile(other_name).settings)
        in_force = settings.without_files({})._replace(files=(file,))
        for key in (READ, READERS):
            with suppress(DeepctlError, OSError):
                if any(layout.same_name(name, listed_name) for listed_name in in_force.patterns(key)):
                    naming_settings.append((other_name, key))
    return naming_settings


def _path(paths: ProfilePaths) -> str:
    return os.path.join(paths.directory, layout.SHARED)


def _write(paths: ProfilePaths, names: list[str]) -> None:
    document = {SHARED_FORMAT.key: SHARED_FORMAT.current, "read": names}
    atomic.write_file(_path(paths), json.dumps(document).encode() + b"\n")


class SharedMemory:
    """The notebooks that a profile may read, for its agent. `names` are those of its setting at the time of reading."""

    def __init__(self, root: Root, paths: ProfilePaths, names: list[str]) -> None:
        self._root = root
        self._paths = paths
        self._names = names
        self._mark = self._settings_mark()
        self._recorded = frozenset[str]()
        self.told: set[str] = set()
        """The problems that the user was told about."""

    def _settings_mark(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._paths.settings)
        except OSError:
            return ()
        return status.st_mtime_ns, status.st_size, status.st_ino

    @property
    def names(self) -> list[str]:
        """The profiles whose notebooks this one wants to read now; the settings file is read again if it changed."""
        mark = self._settings_mark()
        if mark != self._mark:
            self._mark = mark
            file = settings.read("profile", self._paths.settings)
            try:
                self._names = names_to_read(settings.without_files({})._replace(files=(file,)))
            except (DeepctlError, OSError):
                self._names = []  # an unreadable file agrees to nothing
        return self._names

    def owners(self) -> Owners:
        """The profiles that share their notebooks now."""
        names = self.names
        return owners(self._root, self._paths, names) if names else Owners([], [])

    def owner(self, name: str) -> ProfilePaths:
        """The profile called `name`, which must share its notebooks now. Raises `Refused`."""
        result = owners(self._root, self._paths, [name])
        if not result.profiles:
            raise Refused(result.problems[0], code="memory_not_shared")
        return result.profiles[0]

    def record(self, names: Iterable[str]) -> None:
        """Record that the agent has got notebooks of these profiles. The caller holds the lock of the profile."""
        new_names = frozenset(names) - self._recorded
        if new_names:
            record(self._paths, new_names)
            self._recorded |= new_names

    @property
    def reader(self) -> str:
        """The name of the profile that reads."""
        return self._paths.name
