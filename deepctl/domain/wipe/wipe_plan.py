"""Wiping: a whole profile, or parts of it, as a plan that is shown first and then executed.

A plan lists for every part the deleted paths and their sizes. Two plans are equal if they are about the same things and
nothing of these has changed between them. `trash` executes a plan.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from deepctl import layout
from deepctl.domain.wipe import trash
from deepctl.domain.wipe.trash import PartMove, Report, Trash
from deepctl.errors import DeepctlError, NewerFormat, Refused, StorageError, UsageError
from deepctl.files import atomic
from deepctl.files.paths_beneath import is_within
from deepctl.layout import (
    EVICTED_DIRECTORY,
    IMPORT,
    MEMORY_DIRECTORY,
    NEW,
    PLANS_DIRECTORY,
    SETTINGS,
    TODO_DIRECTORY,
    TODO_FILE,
    UNTRUSTED,
    USAGE,
    ProfilePaths,
    Root,
)
from deepctl.store import ledger, session_catalogue

if TYPE_CHECKING:
    from deepctl.domain.settings import Settings
    from deepctl.store.ledger import Ledger
    from deepctl.store.repository import ReadOnlyRepository


_TODO = (f"workspace/{TODO_FILE}", f"workspace/{TODO_DIRECTORY}")

PARTS: dict[str, tuple[str, ...]] = {
    "memory": (f"workspace/{MEMORY_DIRECTORY}",),
    "plans": (f"workspace/{PLANS_DIRECTORY}", *_TODO),
    "evicted": (f"workspace/{EVICTED_DIRECTORY}",),
    # The cache is deleted first, because its contents must not outlive their source. So are checkpoints, whose messages
    # are in logs.
    "checkpoints": ("cache", "checkpoints"),
    "sessions": ("sessions", *_TODO),
    "workspace": ("workspace",),
    "history": ("prompt_history",),
}
"""The parts that can be wiped alone, and their paths in a profile, in the order of deletion."""

_ALONG = {"sessions": ("checkpoints",), "workspace": ("memory", "plans", "evicted")}
"""Parts that are deleted along with a part: a checkpoint is a point in a conversation, and its record contains
prompts.
"""

_ANEW: dict[str, trash.Anew] = {
    "sessions": "directory",
    "checkpoints": "directory",
    "workspace": "directory",
    # Emptied instead of deleted, because the line editor of an open chat appends to it by name.
    "prompt_history": "file",
}
_DRAFTS = ".edit-"


class WipePart(NamedTuple):
    """Deleted data: its part, its absolute path, and its size."""

    part: str
    path: str
    weight: Weight


class WipePlan(NamedTuple):
    """The plan for a profile. `only` are the parts, empty for everything; `moves` are the renamed paths.

    `staging` are paths beside the profile: its stored keys, and what killed commands left of it.
    """

    profile: str
    path: str
    only: tuple[str, ...]
    parts: list[WipePart]
    moves: list[PartMove]
    staging: list[str]

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to wipe."""
        return bool(self.only) and not self.moves

    @property
    def files(self) -> int:
        """The number of deleted files, without directories."""
        return sum(part.weight.files for part in self.parts)

    @property
    def bytes(self) -> int:
        """The number of deleted bytes of content."""
        return sum(part.weight.bytes for part in self.parts)

    @property
    def entries(self) -> int:
        """The number of deleted names, directories included."""
        return sum(part.weight.files + part.weight.directories for part in self.parts)


def parse_parts(texts: Iterable[str]) -> tuple[str, ...]:
    """The selected parts; each of `texts` may name several, separated by commas. Raises `UsageError`.

    Parts that are deleted along with a part are included.
    """
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if part not in PARTS:
            raise UsageError(f"There is no part {part!r} to wipe.", f"The parts are {', '.join(PARTS)}.")
    whole = {*parts, *(extra_part for part in parts for extra_part in _ALONG.get(part, ()))}
    return tuple(part for part in PARTS if part in whole)


def plan(root: Root, paths: ProfilePaths, only: tuple[str, ...]) -> WipePlan:
    """The plan for the parts `only`, or for the whole profile. Takes no lock and changes nothing.

    Raises `Refused` for a link in the path of a part, and for a file system that is mounted in the deleted data.
    """
    places: dict[str, str] = {}
    for part in only or PARTS:
        for place in PARTS[part]:
            places.setdefault(place, part)
    if "memory" in places.values():
        # A draft is a copy of a notebook.
        places |= {entry: "memory" for entry in sorted(os.listdir(paths.directory)) if entry.startswith(_DRAFTS)}
    if not only:
        places |= dict.fromkeys((SETTINGS, UNTRUSTED), "settings")
        places[USAGE] = "usage"
        top = {place.partition("/")[0] for place in places}
        places |= dict.fromkeys(sorted(set(os.listdir(paths.directory)) - top), "other")
    try:
        weights = weigh(paths.directory, set(places))
    except LinkInTheWay as problem:
        raise trash.link_in_the_way(problem.place, problem.link, paths.name) from None
    moves = [PartMove(place, _ANEW.get(place, "")) for place in _outermost(places) if _is_there(place, weights)]
    if not has_history(paths):
        moves = [move for move in moves if move.path not in PARTS["history"]]
    wiped_places = (
        {place for place in places if any(is_within(place, move.path) for move in moves)} if only else set(places)
    )
    parts = [
        WipePart(part, os.path.join(paths.directory, place), weights[place])
        for place, part in places.items()
        if place in wiped_places and place in weights
    ]
    staging = [] if only else _staging(root, paths)
    parts += [WipePart("keys" if path == paths.keys else "other", path, _weight(path)) for path in staging]
    _refuse_mounts(paths, [os.path.join(paths.directory, move.path) for move in moves] if only else [paths.directory])
    return WipePlan(paths.name, paths.directory, only, parts, moves if only else [], staging)


def is_rewinding(paths: ProfilePaths, only: tuple[str, ...]) -> bool:
    """Whether an interrupted rewind must be finished before parts of the profile are deleted."""
    return bool(only) and only != ("history",) and _ledger(paths).unfinished is not None


def leaves_rewound(paths: ProfilePaths, only: tuple[str, ...]) -> bool:
    """Whether rewound turns stay in message logs, where no checkpoint leads to them any more."""
    return "checkpoints" in only and "sessions" not in only and bool(_ledger(paths).rewinds)


def _ledger(paths: ProfilePaths) -> Ledger:
    """The readable description of the checkpoints. Unreadable data must not prevent a wipe."""
    from deepctl.store import ledger

    if os.path.islink(paths.checkpoints):
        return ledger.Ledger()  # a link's target does not belong to the profile
    try:
        return ledger.read(paths.checkpoints)
    except NewerFormat:
        raise  # only the later deepctl can finish an interrupted rewind
    except (DeepctlError, OSError):
        return ledger.Ledger()


class HiddenData(NamedTuple):
    """Wiped data that is out of sight and must be deleted, and the name of the removed container, if there was one."""

    trash: list[Trash]
    container: str | None


def put_away(
    root: Root, paths: ProfilePaths, wipe_plan: WipePlan, environment: Mapping[str, str], in_force: Settings
) -> HiddenData:
    """Move the planned data out of sight, permanently. The caller holds the lock, and deletes the data after releasing
    it. `in_force` are the profile's settings.

    Raises `Refused`, `UsageError` (the keyring with keys of the profile cannot be changed), `StorageError` or
    `OSError`: then nothing was removed except perhaps the container and keys.
    """
    container = None
    if not wipe_plan.only or "workspace" in wipe_plan.only:
        # Its processes would continue in a directory that is out of sight.
        from deepctl.domain.sandbox_settings import remove_container_if_any

        container = remove_container_if_any(environment, in_force, paths)
    if wipe_plan.only:
        return HiddenData([trash.put_away_parts(root, paths, wipe_plan.moves)], container)
    leftovers = []
    if os.path.lexists(paths.keys):
        from deepctl.domain import stored_keys

        stored_keys.empty_keyring(paths.keys)
    for path in wipe_plan.staging:
        with suppress(FileNotFoundError):  # another import cleans up too
            leftovers.append(trash.put_away(root, paths._replace(directory=path)))
    return HiddenData([*leftovers, trash.put_away(root, paths)], container)


def delete(trash_entries: Iterable[HiddenData], report: Report | None = None) -> None:
    """Delete wiped data; no lock is needed. A failure for one does not stop the others.

    `report` receives the number of deleted names. Raises the first `StorageError`, and `Interrupted`.
    """
    before = 0
    problem: StorageError | None = None
    for place in [place for put in trash_entries for place in put.trash]:
        try:
            before += trash.delete(place, _onwards(report, before) if report is not None else None)
        except StorageError as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _onwards(report: Report, before: int) -> Report:
    return lambda count: report(before + count)


def copies(paths: ProfilePaths, wipe_plan: WipePlan) -> CopyCounts | None:
    """The copies of the deleted data elsewhere in the profile; `None` if there can be none."""
    places = [
        place.partition("/")[2] for part in wipe_plan.only for place in PARTS[part] if place.startswith("workspace")
    ]
    if not places or wipe_plan.is_nothing or "sessions" in wipe_plan.only or os.path.islink(paths.checkpoints):
        return None
    try:
        counts = count(paths, places)
    except (DeepctlError, OSError):
        return None  # unknown, and no reason to refuse a wipe
    return counts._replace(checkpoints=0, sessions=0) if "checkpoints" in wipe_plan.only else counts


def has_history(paths: ProfilePaths) -> bool:
    """Whether a profile has a prompt history."""
    try:
        return os.lstat(paths.prompt_history).st_size > 0
    except FileNotFoundError:
        return False


def _outermost(places: Iterable[str]) -> list[str]:
    all_places = list(places)
    return [
        place
        for place in all_places
        if not any(place != ancestor and is_within(place, ancestor) for ancestor in all_places)
    ]


def _is_there(place: str, weights: Mapping[str, Weight]) -> bool:
    """Whether a path has contents; an empty directory counts as nothing."""
    weights_below = [weight for path, weight in weights.items() if is_within(path, place)]
    return (
        any(weight.files or weight.uncounted for weight in weights_below)
        or sum(weight.directories for weight in weights_below) > 1
    )


def _staging(root: Root, paths: ProfilePaths) -> list[str]:
    """Paths beside the profile: an incomplete creation of it, incomplete imports of any profile, its stored keys."""
    staging_paths = []
    for entry in sorted(os.listdir(root.profiles)):
        path = os.path.join(root.profiles, entry)
        if entry == NEW + layout.folded_name(paths.name) or (entry.startswith(IMPORT) and not trash.is_held(path)):
            staging_paths.append(path)
    if os.path.lexists(paths.keys):
        staging_paths.append(paths.keys)
    return staging_paths


def _weight(path: str) -> Weight:
    if os.path.isdir(path) and not os.path.islink(path):
        return weigh(path, {""})[""]
    status = os.lstat(path)
    return Weight(1, status.st_size, 0, 0, status.st_ctime_ns)


def _refuse_mounts(paths: ProfilePaths, places: list[str]) -> None:
    """A mounted file system does not belong to the profile, but deleting would descend into it."""
    for place in places:
        for point in mounts(place):
            raise Refused(
                f"A file system is mounted at {point}, inside the data to be wiped of profile {paths.name!r}.",
                f"Unmount it first: umount {point}",
                code="mounted",
            )


class CopyCounts(NamedTuple):
    """The number of checkpoints with data at these paths, and of their sessions; `logs` counts all sessions.

    Messages may quote any file, so every session may contain a quotation.
    """

    checkpoints: int
    sessions: int
    logs: int


def count(paths: ProfilePaths, places: Iterable[str]) -> CopyCounts:
    """Search for copies of `places`, which are paths in the workspace; the empty path is the whole workspace. Changes
    nothing.
    """
    raw_places = [os.fsencode(place) for place in places]
    logs = len(session_catalogue.all_names(paths))
    records = [record for record in ledger.read(paths.checkpoints).records.values() if record.tree]
    if not records:
        return CopyCounts(0, 0, logs)
    # Not above: a wipe without checkpoints needs no database.
    from deepctl.store.repository import ReadOnlyRepository

    reader = ReadOnlyRepository(paths)
    try:
        trees_of = {record.tree for record in records}
        tree_ids = {tree for tree in trees_of if _holds(reader, bytes.fromhex(tree), raw_places)}
    finally:
        reader.close()
    holding_records = [record for record in records if record.tree in tree_ids]
    return CopyCounts(len(holding_records), len({record.session for record in holding_records}), logs)


def _holds(reader: ReadOnlyRepository, tree: bytes, places: Iterable[bytes]) -> bool:
    """Whether a checkpoint's tree has data at one of the paths; an unreadable tree may have."""
    from deepctl.store import trees
    from deepctl.store.trees import entry_at

    try:
        for place in places:
            entry = entry_at(reader.objects, tree, place) if place else None
            directory = tree if not place else entry.digest if entry and entry.kind == trees.DIRECTORY else None
            if trees.decode(reader.objects.read(directory)) if directory is not None else entry is not None:
                return True
    except DeepctlError:
        return True
    return False


_MAX_DEPTH = 200
"""Maximum number of open directories; deeper data is not counted."""
_OCTAL = re.compile(rb"\\([0-7]{3})")


class LinkInTheWay(Exception):
    """A symbolic link is in the place of a directory on the path."""

    def __init__(self, link: str, place: str) -> None:
        super().__init__(link, place)
        self.link = link
        self.place = place


class Weight(NamedTuple):
    """How much there is at a place.

    `files` counts everything but directories, `bytes` the content of regular files. `uncounted` are directories that
    cannot be looked into. `newest` is when anything there changed last, in nanoseconds since the epoch.
    """

    files: int = 0
    bytes: int = 0
    directories: int = 0
    uncounted: int = 0
    newest: int = 0


def weigh(directory: str, places: set[str]) -> dict[str, Weight]:
    """How much there is at each of the places that there are, by their paths relative to `directory`.

    Places may lie in one another; everything is counted once, at the innermost, and the empty path is the directory
    itself. Raises `LinkInTheWay`, and `OSError` for the directory itself.
    """
    walk = _WeightWalk(places)
    walk.go(os.open(directory, atomic.OPEN_DIRECTORY), "", "" if "" in places else None, 0)
    return {place: Weight(*tally) for place, tally in walk.tallies.items()}


class _WeightWalk:
    def __init__(self, places: set[str]) -> None:
        self.tallies: dict[str, list[int]] = {}
        self._places = places
        self._above = {place[: match.start()] for place in places for match in re.finditer("/", place)} | {""}

    def go(self, descriptor: int, path: str | None, place: str | None, depth: int) -> None:
        """Count an open directory, and close it. `path` is what it is called where places may lie in it."""
        try:
            if place is not None:
                tally = self._tally(place)
                tally[2] += 1
                tally[4] = max(tally[4], os.fstat(descriptor).st_ctime_ns)
            if path in self._above:
                below = self._among_places(descriptor, path, place)
            else:
                assert place is not None
                below = [(name, None, place) for name in self._plain(descriptor, place)]
            for name, inner_path, inner_place in below:
                inner = self._opened(descriptor, name, depth + 1)
                if inner is None:
                    self._uncounted(inner_path, inner_place)
                else:
                    self.go(inner, inner_path, inner_place, depth + 1)
        finally:
            os.close(descriptor)

    def _opened(self, parent: int, name: str, depth: int) -> int | None:
        try:
            return os.open(name, atomic.OPEN_DIRECTORY, dir_fd=parent) if depth <= _MAX_DEPTH else None
        except OSError:
            return None

    def _tally(self, place: str) -> list[int]:
        return self.tallies.setdefault(place, [0, 0, 0, 0, 0])

    def _uncounted(self, path: str | None, place: str | None) -> None:
        """A directory cannot be looked into, so the places in it are unknown."""
        affected_places = {
            affected_place
            for affected_place in self._places
            if path is not None and affected_place.startswith(f"{path}/")
        }
        for affected_place in affected_places | ({place} if place is not None else set()):
            self._tally(affected_place)[3] += 1

    def _plain(self, descriptor: int, place: str) -> list[str]:
        """Count what is in a directory that has no places in it; returns the directories in it."""
        below = []
        files = size = newest = 0
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                    continue
                files += 1
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone, or in a directory that may be listed and not entered
                if stat.S_ISREG(status.st_mode):
                    size += status.st_size
                if status.st_ctime_ns > newest:
                    newest = status.st_ctime_ns
        tally = self._tally(place)
        tally[0] += files
        tally[1] += size
        tally[4] = max(tally[4], newest)
        return below

    def _count(self, place: str, entry: os.DirEntry[str]) -> None:
        tally = self._tally(place)
        tally[0] += 1
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            tally[1] += status.st_size if stat.S_ISREG(status.st_mode) else 0
            tally[4] = max(tally[4], status.st_ctime_ns)

    def _among_places(self, descriptor: int, path: str, place: str | None) -> list[tuple[str, str | None, str | None]]:
        """The same for one that has; each directory with its path and the place it belongs to."""
        below: list[tuple[str, str | None, str | None]] = []
        with os.scandir(descriptor) as entries:
            for entry in entries:
                entry_path = f"{path}/{entry.name}" if path else entry.name
                entry_place = entry_path if entry_path in self._places else place
                leads_on = entry_path in self._above
                if entry.is_dir(follow_symlinks=False):
                    if entry_place is not None or leads_on:
                        below.append((entry.name, entry_path if leads_on else None, entry_place))
                elif entry_place is not None:
                    self._count(entry_place, entry)
                elif leads_on and entry.is_symlink():
                    raise LinkInTheWay(
                        entry_path, min(inner for inner in self._places if inner.startswith(f"{entry_path}/"))
                    )
        return below


def mounts(directory: str) -> list[str]:
    """The paths at or below a directory at which something is mounted, where the system tells (Linux)."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            raw = file.read()
    except OSError:
        return []
    real = os.fsencode(os.path.realpath(directory))
    if real not in raw and b"\\" not in raw:
        return []
    points = [_OCTAL.sub(lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4]) for line in raw.splitlines()]
    return sorted(
        os.fsdecode(point) for point in set(points) if point == real or point.startswith(real.rstrip(b"/") + b"/")
    )
