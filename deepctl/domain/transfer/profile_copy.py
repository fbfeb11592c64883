"""Copying a profile: a new profile with the settings, the memory and the files of another one.

The copy is made in a private directory, like an import, and one rename makes it a profile. So after a kill there is a
whole copy or none. Never copied are sessions and checkpoints with everything that belongs to them (to-do lists, large
tool results, typed prompts), keys and tokens, settings that wait for trust, trust in projects, and usage. Links are
copied as links; those that may lead out of the workspace are left out.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from deepctl import layout
from deepctl.domain import portable_settings, profiles, settings
from deepctl.domain.portable_settings import OmittedSetting
from deepctl.domain.transfer.archive import ArchiveEntry, OmittedPath, Totals
from deepctl.domain.transfer.profile_export import ExportEntry, ExportWalk, pieces
from deepctl.domain.transfer.profile_import import Staging, free_bytes, is_stripped
from deepctl.domain.wipe import trash
from deepctl.errors import StorageError, UsageError
from deepctl.files import atomic, ownership
from deepctl.layout import ProfilePaths, Root

PARTS = ("settings", "memory", "files")
_WORKSPACE = "workspace"
_MEMORY = f"{_WORKSPACE}/{layout.MEMORY_DIRECTORY}"
_NO_FILES = (f"{_WORKSPACE}/{layout.OWN}", f"{_WORKSPACE}/{layout.EVICTED_DIRECTORY}")
"""Directories of a workspace that belong to sessions or to memory."""
_RECEIPTS = f"{_MEMORY}/."
"""The beginning of the paths of the memory store's own files, which belong to sessions."""
_BLOCK = 4096
"""Approximate bytes that a file system needs for an entry besides its content."""

Report = Callable[[int], None]
"""Receives the number of content bytes that have been copied."""


class ProfileCopy(NamedTuple):
    """A copy of the profile `origin`: its parts, its contents, and what was left out of them.

    `stripped` is the number of files and directories that lost a setuid, setgid or sticky bit.
    """

    paths: ProfilePaths
    origin: str
    parts: tuple[str, ...]
    totals: Totals
    left_out: list[OmittedPath]
    settings_left_out: list[OmittedSetting]
    stripped: int


def parse_parts(words: list[str] | None) -> tuple[str, ...]:
    """The parts of `--only`, in the order of `PARTS`; all of them without words. Raises `UsageError`."""
    if words is None:
        return PARTS
    names = [name.strip() for word in words for name in word.split(",") if name.strip()]
    for name in names:
        if name not in PARTS:
            raise UsageError(f"There is no part {name!r} to copy.", f"The parts are {', '.join(PARTS)}.")
    if not names:
        raise UsageError("--only names no part.", f"The parts are {', '.join(PARTS)}.")
    return tuple(part for part in PARTS if part in names)


class CopyOperation:
    """One copy of parts of a profile: `measure`, then `write`. The caller holds the lock of the profile."""

    def __init__(self, root: Root, paths: ProfilePaths, parts: tuple[str, ...]) -> None:
        self._root = root
        self._paths = paths
        self._parts = parts

    def _walk(self) -> ExportWalk:
        # No pack counts: checkpoints are not selected.
        return ExportWalk(self._paths.directory, frozenset(), self._selects)

    def _selects(self, path: str) -> bool:
        """Whether a path of the profile is copied, or contains paths that are."""
        if path == _WORKSPACE:
            return True
        if atomic.is_temporary(os.path.basename(path)) or path.startswith(_RECEIPTS):
            return False
        if _is_at_or_below(path, _MEMORY) or _MEMORY.startswith(f"{path}/"):
            return "memory" in self._parts
        if any(_is_at_or_below(path, directory) for directory in (layout.SKILLS, layout.COMMANDS)):
            return "settings" in self._parts
        is_file_part = path.startswith(f"{_WORKSPACE}/") and not any(_is_at_or_below(path, top) for top in _NO_FILES)
        return is_file_part and "files" in self._parts

    def measure(self) -> Totals:
        """What would be copied. Raises `StorageError` if the disk is too small for it."""
        ownership.regain(self._paths.workspace, layout.OWN_DIRECTORIES)
        totals = Totals(0, 0, 0)
        with self._walk() as walk:
            for item in walk.everything():
                totals = totals.with_(item.kind, item.size)
        needed, free = totals.bytes + totals.entries * _BLOCK, free_bytes(self._root)
        if needed > free:
            raise StorageError(
                f"The copy needs {needed:,} bytes on the disk of the profiles, and {free:,} are free.",
                "Nothing was copied. Free some space, or copy less: --only settings,memory",
                code="storage_enospc",
            )
        return totals

    def write(self, name: str, environment: Mapping[str, str], report: Report = lambda count: None) -> ProfileCopy:
        """Copy to the new profile `name`, whose lock the caller holds. `environment` has secrets that are left out.

        Raises `Refused` if the name is taken, the errors of a damaged profile.toml, and `OSError`; nothing was copied
        then.
        """
        profiles.check_free(self._root, name)
        profiles.make_root(self._root)
        trash.remove_half_made(self._root)
        text, settings_left_out = self._settings(name, environment)
        totals, stripped = Totals(0, 0, 0), 0
        paths = self._root.profile(name)
        with Staging(self._root) as staging, self._walk() as walk:
            for item in walk.everything():
                entry = _entry(item)
                _put(staging, walk, item, entry, _CopyProgress(report, totals.bytes))
                stripped += is_stripped(entry)
                totals = totals.with_(item.kind, item.size)
            copy = ProfilePaths(name, staging.path, paths.lock)
            for directory in (copy.workspace, copy.sessions, copy.checkpoints):
                atomic.make_directory(directory)
            settings.replace_document(copy.settings, text)
            staging.complete()
            profiles.check_free(self._root, name)
            staging.move(paths.directory)
            left_out = sorted(walk.left_out)
        return ProfileCopy(paths, self._paths.name, self._parts, totals, left_out, settings_left_out, stripped)

    def _settings(self, name: str, environment: Mapping[str, str]) -> tuple[bytes, list[OmittedSetting]]:
        """The profile.toml of the copy, and the settings that it does not have."""
        if "settings" not in self._parts:
            return settings.new_document(name, {}), []
        try:
            raw = settings.read_document(self._paths.settings)
        except FileNotFoundError:
            raw = b""
        tables = settings.parse_tables(raw, self._paths.settings)
        result = portable_settings.portable(tables, environment)
        left_out = [*result.left_out, *portable_settings.kept_back(self._paths)]
        return settings.new_document(name, result.tables), left_out


def _is_at_or_below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _entry(item: ExportEntry) -> ArchiveEntry:
    return ArchiveEntry(
        item.path, item.kind, stat.S_IMODE(item.status.st_mode), item.size, item.status.st_mtime_ns, item.target
    )


class _CopyProgress(NamedTuple):
    """Reports the bytes of one file, after the `done` bytes of other files."""

    report: Report
    done: int

    def pieces(self, descriptor: int) -> Iterator[bytes]:
        """The content of an open file."""
        done = self.done
        for piece in pieces(descriptor, os.fstat(descriptor).st_size):
            yield piece
            done += len(piece)
            self.report(done)


def _put(staging: Staging, walk: ExportWalk, item: ExportEntry, entry: ArchiveEntry, progress: _CopyProgress) -> None:
    if entry.kind == "directory":
        staging.directory(entry)
    elif entry.kind == "link":
        staging.link(entry)
    else:
        with walk.opened(item) as descriptor:
            if descriptor is not None:
                staging.file(entry, progress.pieces(descriptor))
