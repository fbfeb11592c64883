"""Repairing a profile with lost, stale or stray data, so that `verify` finds no problem afterwards.

    .repair-<random>/       the profile's own files by hard links; all steps below change whole files only
      ledger                single flipped bytes are corrected; other unreadable lines become gaps
      sessions              records and logs; a hole replaces a lost message, so that offsets stay the same
      positions             found in any copy that has them; tied again if a hole lies before them; otherwise lost
      packs                 readable objects of a damaged pack are copied; unneeded strays move to lost+found
      trees                 written without lost contents; these paths count as unkept
    usage.jsonl             corrected, or written without its unreadable lines, in one step
    a dry run ends here, and removes the directory
    .repair-… becomes .repaired                                       <- from here on the repair is done
    different files replace those of the profile, one by one
    .repaired becomes .repair-…, and is removed

The next command that opens the profile finishes the last step. No readable data is deleted: files without a place, and
the damaged originals of files that were written again, are in `checkpoints/lost+found/`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

from deepctl.errors import DeepctlError, NewerFormat, Refused
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.layout import ProfilePaths
from deepctl.store import (
    ledger,
    log_file,
    lookup,
    pack_store,
    projects,
    repack,
    repair_report,
    reserve,
    session_catalogue,
    trees,
    usage_log,
    verify,
    workspaces,
)
from deepctl.store.checkpoint_store import remove_leftovers
from deepctl.store.index_db import Cache, Location
from deepctl.store.ledger import Ledger
from deepctl.store.pack_store import PackStore, is_uncounted
from deepctl.store.projects import Project
from deepctl.store.records import BOTH, CONVERSATION, FILES
from deepctl.store.repair_logs import Amended, LogRepair, gap
from deepctl.store.repair_report import Findings, Loss, RepairedItem
from deepctl.store.trees import DIRECTORY, FILE, ScratchWriter, TreeEntry, snapshot
from deepctl.store.workspaces import MountedProject, WorkspaceOptions

MARK = ".repair"
"""Prefixes of names in a profile that an interrupted repair leaves."""
STAGING = MARK + "-"
DONE = MARK + "ed"
_OWN = ("sessions", "checkpoints")


class Repair(NamedTuple):
    """The result of a repair, done or as a preview. `problems` are those that `verify` still finds."""

    repaired: list[RepairedItem]
    lost: list[Loss]
    moved: list[str]
    problems: list[lookup.CheckpointProblem]


def repair(paths: ProfilePaths, *, dry_run: bool = False) -> Repair:
    """Repair a profile. The caller holds its lock. Raises `NewerFormat` before anything is done, and `OSError`."""
    finish(paths)
    if not dry_run:
        remove_leftovers(paths)
    verify.verify(paths)  # for `NewerFormat`
    staging_directory = os.path.join(paths.directory, STAGING + os.urandom(8).hex())
    copy = ProfilePaths(paths.name, staging_directory, paths.lock)
    with reserve.room(paths), _removed_at_last(staging_directory):
        _link(paths, copy)
        findings = Findings(copy, paths.directory)
        _ledger(copy, findings)
        after = LogRepair(copy, paths, findings).repair()
        PackRepair(copy, paths, findings, after).repair()
        problems = verify.verify(copy).problems
        _usage(paths, findings, dry_run=dry_run)
        result = Repair(
            findings.repaired, findings.lost, findings.moved, [_in(paths, copy, problem) for problem in problems]
        )
        if not dry_run and (result.repaired or result.lost or result.moved):
            atomic.sync_directory(staging_directory)
            os.rename(staging_directory, os.path.join(paths.directory, DONE))
            atomic.sync_directory(paths.directory)
            finish(paths)
    return result


@contextmanager
def _removed_at_last(directory: str) -> Iterator[None]:
    try:
        yield
    finally:
        if os.path.isdir(directory):
            rmtree.remove_tree(directory)


def _in(paths: ProfilePaths, copy: ProfilePaths, problem: lookup.CheckpointProblem) -> lookup.CheckpointProblem:
    old, new = copy.directory, paths.directory
    return problem._replace(file=problem.file.replace(old, new), reason=problem.reason.replace(old, new))


def finish(paths: ProfilePaths) -> bool:
    """Install the result of an interrupted repair, and remove leftovers of a killed one."""
    try:
        entries = os.listdir(paths.directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    for entry in entries:
        if entry.startswith(STAGING):
            rmtree.remove_tree(os.path.join(paths.directory, entry))
    if DONE not in entries:
        return False
    source = os.path.join(paths.directory, DONE)
    for name in _OWN:
        _install(os.path.join(source, name), os.path.join(paths.directory, name))
    for path in (paths.checkpoint_index, paths.snapshot_cache):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    # It is renamed before its removal: after a kill, an incomplete directory must not be installed, because that would
    # delete the data that it lacks.
    leftover = os.path.join(paths.directory, STAGING + os.urandom(8).hex())
    os.rename(source, leftover)
    atomic.sync_directory(paths.directory)
    rmtree.remove_tree(leftover)
    return True


def _install(directory: str, place: str) -> None:
    """Make the files below `place` equal to those below `directory`; the ledger first, so that it never names missing
    data.
    """
    if not os.path.isdir(directory):
        return
    atomic.make_directory(place)
    for name in sorted(os.listdir(directory), key=lambda entry: (entry != ledger.LEDGER, entry)):
        source, target = os.path.join(directory, name), os.path.join(place, name)
        if os.path.isdir(source):
            _install(source, target)
        elif not _is_same(source, target):
            _put(source, target)
    for name in set(os.listdir(place)) - set(os.listdir(directory)):
        target = os.path.join(place, name)
        if not name.startswith("."):
            rmtree.remove_tree(target)
    atomic.sync_directory(place)


def _is_same(source: str, target: str) -> bool:
    try:
        return os.path.samefile(source, target)
    except FileNotFoundError:
        return False


def _put(source: str, target: str) -> None:
    temporary_path = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.repair.tmp")
    try:
        os.unlink(temporary_path)
    except FileNotFoundError:
        pass
    log_file.share(source, temporary_path)
    os.rename(temporary_path, target)


def _link(paths: ProfilePaths, copy: ProfilePaths) -> None:
    """The profile's own files by hard links; entries that are neither file nor directory stay in the profile."""
    os.mkdir(copy.directory, atomic.DIRECTORY_MODE)
    for name in _OWN:
        _link_tree(os.path.join(paths.directory, name), os.path.join(copy.directory, name))
    atomic.make_directory(copy.checkpoints)
    atomic.make_directory(copy.sessions)


def _link_tree(source: str, target: str) -> None:
    try:
        entries = list(os.scandir(source))
    except FileNotFoundError:
        return
    atomic.make_directory(target)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _link_tree(entry.path, os.path.join(target, entry.name))
        elif not entry.name.endswith(".tmp"):
            log_file.share(entry.path, os.path.join(target, entry.name))


def _usage(paths: ProfilePaths, findings: Findings, *, dry_run: bool) -> None:
    """Correct lines of the usage, and remove those that stay unreadable. This changes one file, and needs no copy."""
    with usage_log.lock(paths):
        repaired = usage_log.repaired(paths)
        if repaired is None:
            return
        raw, report = repaired
        findings.repaired.append(RepairedItem(repair_report.USAGE, paths.usage, report.reason))
        for number, reason in report.lost:
            findings.lose(repair_report.USAGE_LINE, f"line {number}", reason)
        findings.moved.append(repair_report.place_aside(paths, paths.usage))
        if not dry_run:
            repair_report.keep_aside(paths, paths.usage)
            atomic.write_file(paths.usage, raw)


def _ledger(paths: ProfilePaths, findings: Findings) -> None:
    """Make every line of the ledger readable; an unreadable line becomes a gap."""
    path = os.path.join(paths.checkpoints, ledger.LEDGER)
    try:
        before = atomic.read_file(path)
    except FileNotFoundError:
        before = b""
    size_known = log_file.read_ledger_size(paths.checkpoints)
    is_short = size_known.is_short or len(before) < size_known.size
    raw = sealed_lines.without_copies(sealed_lines.mend(before))
    if not raw.endswith(b"\n"):
        raw = raw[: raw.rfind(b"\n") + 1]
    while damage := ledger.parse(raw, path).damage:
        damage_by_line = {line_damage.line: line_damage for line_damage in damage}
        lines = []
        start = 0
        for line in sealed_lines.parse(raw):
            piece, start = raw[start : line.end], line.end
            line_damage = damage_by_line.get(line.number)
            if line_damage is not None:
                piece = gap(line_damage.id)
                findings.lose(repair_report.LEDGER_LINE, line_damage.id or f"line {line.number}", line_damage.reason)
            lines.append(piece)
        raw = b"".join(lines)
    if is_short:
        raw += gap(None)
        everybody = session_catalogue.all_names(paths)
        if before:
            findings.lose(repair_report.LEDGER_LINE, "at its end", "lines are missing at its end", everybody)
        else:
            findings.lose(repair_report.LEDGER, "all", "the ledger is missing or empty", everybody)
    raw = sealed_lines.without_copies(raw)
    if raw != before:
        findings.keep(path)
        atomic.write_file(path, raw)
        findings.repair("ledger", path, "damaged lines are mended, or are gaps now")
    size = os.path.join(paths.checkpoints, log_file.LEDGER_SIZE)
    if size_known.problem is not None:
        findings.repair("length of the ledger", size, size_known.problem)
    if raw != before or size_known.problem is not None:
        atomic.write_file(size, log_file.ledger_size_line(log_file.start_of_last_line(raw), is_short=False))


_LOST = "its content is lost"


class _RepairedTree(NamedTuple):
    """A tree without lost data: its hash, `None` if nothing of it is left, and the lost paths."""

    digest: bytes | None
    lost: list[bytes]
    files: int = 0
    bytes: int = 0


class PackRepair:
    """The packs of the profile at `paths`, a copy of `real`; `amendments` are the corrections for the ledger."""

    def __init__(self, paths: ProfilePaths, real: ProfilePaths, findings: Findings, amendments: Amended) -> None:
        self._paths = paths
        self._real = real
        self._found = findings
        self._amended = amendments
        self._ledger: Ledger = ledger.read(paths.checkpoints)
        self._added: list[str] = []
        self._salvage: dict[bytes, tuple[str, Location]] = {}
        self._trees: dict[bytes, _RepairedTree] = {}

    def repair(self) -> None:
        """Repair everything, and write the line."""
        checkpoint_ledger, directory = self._ledger, self._paths.packs
        present = set(os.listdir(directory)) if os.path.isdir(directory) else set()
        present = {name for name in present if name.endswith(pack_store.PACK_SUFFIX)}
        least = {record.pack: record.added_bytes for record in checkpoint_ledger.records.values()}
        damaged_packs = [
            name
            for name in sorted(present)
            if not self._is_whole(name) or os.path.getsize(os.path.join(directory, name)) < least.get(name, 0)
        ]
        for name in damaged_packs:
            self._look_into(name)
            self._found.move(os.path.join(directory, name))
            self._found.repair("pack", os.path.join(directory, name), "damaged; the readable part of it was moved")
        old_packs = [*damaged_packs, *sorted(checkpoint_ledger.packs - present)]
        for name in sorted(checkpoint_ledger.packs - present):
            self._found.repair("pack", os.path.join(directory, name), "missing; it no longer counts")
        with closing(Cache()) as cache:
            objects = PackStore(directory, cache)
            self._fill(objects)
            self._records(objects)
            adopted_packs = self._strays(objects, present - set(damaged_packs))
        self._write([*adopted_packs, *self._added], [name for name in old_packs if name in checkpoint_ledger.packs])

    def _is_whole(self, name: str) -> bool:
        """Whether every byte of a pack is intact. Raises `NewerFormat`."""
        path = os.path.join(self._paths.packs, name)
        try:
            table = pack_store.read_table(path)
        except NewerFormat:
            raise
        except (DeepctlError, OSError):
            return False
        descriptor = atomic.open_regular(path, os.O_RDONLY)
        try:
            for entry in table:
                place = Location(name, *entry[1:4])
                if _hash(pack_store.stored_pieces(descriptor, place)) != entry.digest:
                    return False
                if not pack_store.is_as_stored(descriptor, entry):
                    return False
        finally:
            os.close(descriptor)
        return verify.is_tight(path, [(entry.offset, entry.stored_size) for entry in table], len(table))

    def _look_into(self, name: str) -> None:
        """Find the readable objects of a damaged pack: by its table, even with a wrong checksum, and by the cache."""
        path = os.path.join(self._real.packs, name)
        try:
            descriptor = atomic.open_regular(path, os.O_RDONLY)
        except (OSError, DeepctlError):
            return
        try:
            places = [*verify.possible_objects(descriptor), *self._cached(name)]
            for location in dict.fromkeys(places):
                digest = _hash(pack_store.stored_pieces(descriptor, location))
                if digest is not None:
                    self._salvage.setdefault(digest, (path, location))
        finally:
            os.close(descriptor)

    def _cached(self, name: str) -> Iterator[Location]:
        with closing(Cache.copy_of(self._real.snapshot_cache)) as cache:
            yield from cache.locations(name)

    def _roots(self) -> Iterable[str]:
        yield from (record.tree for record in self._ledger.records.values() if record.tree)
        yield from (state.tree for state in self._ledger.states if state.tree)

    def _fill(self, objects: PackStore) -> None:
        """Add missing objects that are needed, from damaged packs and from the workspace."""
        for _ in range(64):
            missing = self._missing(objects)
            contents = {digest: data for digest in missing if (data := self._read_salvaged(digest)) is not None}
            if missing - contents.keys():
                contents |= self._in_workspace(missing - contents.keys())
            if not contents:
                break
            with objects.new_batch() as batch:
                for data in contents.values():
                    batch.add(data)
            self._added.append(batch.pack)

    def _missing(self, objects: PackStore) -> set[bytes]:
        """The objects of the trees, as far as they can be read, that are missing or unreadable."""
        digests, unreadable = self._reachable(objects)
        return unreadable | {digest for digest in digests if not objects.has(digest)}

    def _reachable(self, objects: PackStore) -> tuple[set[bytes], set[bytes]]:
        return repack.reachable(objects, map(bytes.fromhex, self._roots()))

    def _read_salvaged(self, digest: bytes) -> bytes | None:
        if digest not in self._salvage:
            return None
        path, location = self._salvage[digest]
        descriptor = atomic.open_regular(path, os.O_RDONLY)
        try:
            return b"".join(pack_store.stored_pieces(descriptor, location))
        finally:
            os.close(descriptor)

    def _in_workspace(self, missing: set[bytes]) -> dict[bytes, bytes]:
        """The missing objects that the workspace has: contents of files, and lists of directories."""
        contents: dict[bytes, bytes] = {}
        root = self._real.workspace
        if not os.path.isdir(root):
            return contents
        with closing(Cache()) as cache:
            objects = PackStore(self._paths.packs, cache)
            snapshot(root, ScratchWriter(objects), cache)
            contents |= {key: data for key, data in objects.scratch.items() if key in missing}
        for _, _, files, directory in os.fwalk(root, follow_symlinks=False):
            for name in files:
                data = _content(name, directory)
                if data is not None and (digest := hashlib.sha256(data).digest()) in missing:
                    contents[digest] = data
        for project in projects.read(self._real):
            if missing - contents.keys() and projects.is_available(project.path):
                contents |= self._in_project(project, missing)
        return contents

    def _in_project(self, project: Project, missing: set[bytes]) -> dict[bytes, bytes]:
        """The missing objects that the covered files of a project have."""
        workspace = WorkspaceOptions(self._real.workspace, project=MountedProject(project.id, project.path))
        tree = DirectoryTree(project.path, follow=False)
        contents: dict[bytes, bytes] = {}
        with closing(Cache()) as cache:
            objects = PackStore(self._paths.packs, cache)
            present = workspaces.snapshot(workspace, objects, ScratchWriter(objects), cache, "", tidy=False)
            contents |= {key: data for key, data in objects.scratch.items() if key in missing}
            for path, entry in trees.walk(objects, present.tree):
                place = workspaces.mounted(path)
                if entry.kind != FILE or entry.digest not in missing or place is None or not place.path:
                    continue
                with suppress(OSError, Refused):
                    data = tree.read(os.fsdecode(place.path))
                    if hashlib.sha256(data).digest() == entry.digest:
                        contents[entry.digest] = data
        return contents

    def _records(self, objects: PackStore) -> None:
        """Make checkpoints and states name trees that can be read completely."""
        missing_digests = self._missing(objects)
        if not missing_digests:
            return
        with objects.new_batch() as batch:
            new_trees = {
                root: self._without(objects, batch, bytes.fromhex(root), missing_digests) for root in set(self._roots())
            }
        if batch.pack:
            self._added.append(batch.pack)
        for record in self._ledger.records.values():
            tree = new_trees.get(record.tree)
            if tree is None or tree.digest == bytes.fromhex(record.tree):
                continue
            fields = self._amended.setdefault(record.id, {})
            if tree.digest is None:
                is_both = CONVERSATION in (fields.get("lost"), record.lost)
                fields |= {"tree": "", "lost": BOTH if is_both else FILES}
                self._found.lose_of_checkpoint(repair_report.ALL_FILES, record, "the list of its files is lost")
                continue
            fields |= self._fields(tree, record.unkept)
            fields |= {"files": record.files - tree.files, "bytes": max(0, record.bytes - tree.bytes)}
            for path in tree.lost:
                self._found.lose_of_checkpoint(repair_report.FILE, record, _LOST, os.fsdecode(path))
        for state in self._ledger.states:
            tree = new_trees.get(state.tree)
            if tree is not None and tree.digest != bytes.fromhex(state.tree) and state.id not in self._ledger.records:
                self._amended[state.id] = self._fields(tree, state.unkept) if tree.digest else {"tree": ""}

    def _fields(self, tree: _RepairedTree, unkept: list[list[str]]) -> dict[str, Any]:
        assert tree.digest is not None
        return {"tree": tree.digest.hex(), "unkept": [*unkept, *([os.fsdecode(path), _LOST] for path in tree.lost)]}

    def _without(self, objects: PackStore, batch: Any, tree: bytes, missing_digests: set[bytes]) -> _RepairedTree:
        """A tree without its unreadable parts."""
        if tree in self._trees:
            return self._trees[tree]
        if tree in missing_digests:
            return self._trees.setdefault(tree, _RepairedTree(None, []))
        entries: list[TreeEntry] = []
        lost_paths: list[bytes] = []
        files = size = 0
        for entry in trees.decode(objects.read(tree)):
            if entry.kind != DIRECTORY:
                if entry.digest in missing_digests:
                    lost_paths.append(entry.name)
                    files, size = files + 1, size + entry.size
                else:
                    entries.append(entry)
                continue
            below = self._without(objects, batch, entry.digest, missing_digests)
            files, size = files + below.files, size + below.bytes
            if below.digest is None:
                lost_paths.append(entry.name)
            else:
                entries.append(entry._replace(digest=below.digest))
                lost_paths += [entry.name + b"/" + path for path in below.lost]
        digest = batch.add(trees.encode(entries)) if lost_paths else tree
        return self._trees.setdefault(tree, _RepairedTree(digest, lost_paths, files, size))

    def _strays(self, objects: PackStore, present: set[str]) -> list[str]:
        """Packs without a line: they count if they are needed; otherwise they are put aside."""
        strays = present - self._ledger.packs - self._ledger.gone
        if not strays:
            return []
        named_packs = (present & self._ledger.packs) | set(self._added)
        indexed_digests = {entry.digest for name in named_packs for entry in objects.table(name)}
        needed = self._reachable(objects)[0] - indexed_digests
        adopted_packs = []
        unnamed_packs = []
        for name in sorted(strays):
            path = os.path.join(self._paths.packs, name)
            digests = {entry.digest for entry in objects.table(name)}
            if digests & needed:
                adopted_packs.append(name)
                self._found.repair(repair_report.STRAY_PACK, path, "no line named it, and it is needed")
            elif not is_uncounted(os.lstat(path)):
                self._found.move(path)
                self._found.repair(repair_report.STRAY_PACK, path, "unused: no line names it")
                if digests - indexed_digests:
                    unnamed_packs.append(name)
        everybody = session_catalogue.all_names(self._paths)
        # A single pack without a line is a leftover of a killed command.
        for name in unnamed_packs if len(unnamed_packs) > 1 else []:
            self._found.lose(repair_report.LEDGER_LINE, name, "no checkpoint names this pack any more", everybody)
        return adopted_packs

    def _write(self, packs: list[str], old_packs: list[str]) -> None:
        if not (packs or old_packs or self._amended):
            return
        path = os.path.join(self._paths.checkpoints, ledger.LEDGER)
        try:
            raw = atomic.read_file(path)
        except FileNotFoundError:
            raw = b""
        line = {"v": ledger.FORMAT, "repaired": self._amended, "packs": packs, "gone": old_packs}
        after = raw + sealed_lines.seal(line)
        atomic.write_file(path, after)
        size = os.path.join(self._paths.checkpoints, log_file.LEDGER_SIZE)
        atomic.write_file(size, log_file.ledger_size_line(len(raw), is_short=False))


def _hash(pieces: Iterator[bytes]) -> bytes | None:
    hasher = hashlib.sha256()
    try:
        for piece in pieces:
            hasher.update(piece)
    except (OSError, ValueError, OverflowError):  # also `compression.BadStream`
        return None
    return hasher.digest()


def _content(name: str, directory: int) -> bytes | None:
    try:
        descriptor = os.open(name, atomic.OPEN_FILE, dir_fd=directory)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        try:
            return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        except OSError:
            return None
