"""Repairing packs and trees; see `repairing`. Works in a copy, and ends with the one line that the ledger gets."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from deepctl.errors import Damaged, DeepctlError, NewerFormat
from deepctl.files import atomic, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.store import ledger, ledger_size, packs, repair_report, session_catalogue, trees, verify
from deepctl.store.index_db import Cache, Location
from deepctl.store.ledger import Ledger
from deepctl.store.object_store import ScratchWriter
from deepctl.store.pack_store import PackStore
from deepctl.store.packs import is_uncounted
from deepctl.store.records import BOTH, CONVERSATION, FILES
from deepctl.store.repair_logs import Amended
from deepctl.store.repair_report import Findings
from deepctl.store.snapshot import snapshot
from deepctl.store.trees import DIRECTORY, TreeEntry

_LOST = "its content is lost"


class _Tree(NamedTuple):
    """What a tree is without what is lost: its hash, `None` if nothing of it is left, and the paths that are lost."""

    digest: bytes | None
    lost: list[bytes]
    files: int = 0
    bytes: int = 0


class Packs:
    """The packs of the profile at `paths`, which is a copy of `real`; `amended` is what the ledger is to get told."""

    def __init__(self, paths: ProfilePaths, real: ProfilePaths, found: Findings, amended: Amended) -> None:
        self._paths = paths
        self._real = real
        self._found = found
        self._amended = amended
        self._ledger: Ledger = ledger.read(paths.checkpoints)
        self._added: list[str] = []
        self._salvage: dict[bytes, tuple[str, Location]] = {}
        self._trees: dict[bytes, _Tree] = {}

    def repair(self) -> None:
        """Repair everything, and write the line."""
        found, directory = self._ledger, self._paths.packs
        there = set(os.listdir(directory)) if os.path.isdir(directory) else set()
        there = {name for name in there if name.endswith(packs.SUFFIX)}
        least = {record.pack: record.added_bytes for record in found.records.values()}
        damaged = [
            name
            for name in sorted(there)
            if not self._is_whole(name) or os.path.getsize(os.path.join(directory, name)) < least.get(name, 0)
        ]
        for name in damaged:
            self._look_into(name)
            self._found.move(os.path.join(directory, name))
            self._found.repair("pack", os.path.join(directory, name), "damaged; what can be read of it moved on")
        gone = [*damaged, *sorted(found.packs - there)]
        for name in sorted(found.packs - there):
            self._found.repair("pack", os.path.join(directory, name), "missing; it counts no more")
        with closing(Cache()) as cache:
            objects = PackStore(directory, cache)
            self._fill(objects)
            self._records(objects)
            adopted = self._strays(objects, there - set(damaged))
        self._write([*adopted, *self._added], [name for name in gone if name in found.packs])

    def _is_whole(self, name: str) -> bool:
        """Whether every byte of a pack is what was written. Raises `NewerFormat`."""
        path = os.path.join(self._paths.packs, name)
        try:
            table = packs.read_table(path)
        except NewerFormat:
            raise
        except (DeepctlError, OSError):
            return False
        descriptor = atomic.open_regular(path, os.O_RDONLY)
        try:
            for entry in table:
                place = Location(name, *entry[1:4])
                if _hash(packs.pieces(descriptor, place)) != entry.digest or not packs.is_as_stored(descriptor, entry):
                    return False
        finally:
            os.close(descriptor)
        return verify.is_tight(path, [(entry.offset, entry.stored) for entry in table], len(table))

    def _look_into(self, name: str) -> None:
        """Find what can be read of a damaged pack: by its table, whatever its checksum says, and by the cache."""
        path = os.path.join(self._real.packs, name)
        try:
            descriptor = atomic.open_regular(path, os.O_RDONLY)
        except (OSError, DeepctlError):
            return
        try:
            places = [*packs.any_table(descriptor), *self._cached(name)]
            for location in dict.fromkeys(places):
                digest = _hash(packs.pieces(descriptor, location))
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
        """Add what is missing of what is needed, from damaged packs and from the workspace."""
        for _ in range(64):
            missing = self._missing(objects)
            contents = {one: data for one in missing if (data := self._read_salvaged(one)) is not None}
            if missing - contents.keys():
                contents |= self._in_workspace(missing - contents.keys())
            if not contents:
                break
            with objects.new_batch() as batch:
                for data in contents.values():
                    batch.add(data)
            self._added.append(batch.pack)

    def _missing(self, objects: PackStore) -> set[bytes]:
        return {one for one, is_there in self._reached(objects).items() if not is_there}

    def _reached(self, objects: PackStore) -> dict[bytes, bool]:
        """Every object that the trees consist of, as far as they can be read, and whether it is there."""
        reached: dict[bytes, bool] = {}
        pending = [bytes.fromhex(root) for root in self._roots()]
        while pending:
            tree = pending.pop()
            if tree in reached:
                continue
            reached[tree] = True
            try:
                entries = trees.decode(objects.read(tree))
            except NewerFormat:
                raise
            except Damaged:
                reached[tree] = False
                continue
            for entry in entries:
                if entry.kind == DIRECTORY:
                    pending.append(entry.digest)
                else:
                    reached[entry.digest] = objects.has(entry.digest)
        return reached

    def _read_salvaged(self, digest: bytes) -> bytes | None:
        if digest not in self._salvage:
            return None
        path, location = self._salvage[digest]
        descriptor = atomic.open_regular(path, os.O_RDONLY)
        try:
            return b"".join(packs.pieces(descriptor, location))
        finally:
            os.close(descriptor)

    def _in_workspace(self, missing: set[bytes]) -> dict[bytes, bytes]:
        """Of objects that are missing, those that the workspace has: contents of files, and lists of directories."""
        found: dict[bytes, bytes] = {}
        root = self._real.workspace
        if not os.path.isdir(root):
            return found
        with closing(Cache()) as cache:
            objects = PackStore(self._paths.packs, cache)
            snapshot(root, ScratchWriter(objects), cache)
            found |= {one: data for one, data in objects.scratch.items() if one in missing}
        for _, _, files, directory in os.fwalk(root, follow_symlinks=False):
            for name in files:
                data = _content(name, directory)
                if data is not None and (digest := hashlib.sha256(data).digest()) in missing:
                    found[digest] = data
        return found

    def _records(self, objects: PackStore) -> None:
        """Let checkpoints and states name trees that can be read in full."""
        unread = self._missing(objects)
        if not unread:
            return
        with objects.new_batch() as batch:
            made = {root: self._without(objects, batch, bytes.fromhex(root), unread) for root in set(self._roots())}
        if batch.pack:
            self._added.append(batch.pack)
        for record in self._ledger.records.values():
            tree = made.get(record.tree)
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
            tree = made.get(state.tree)
            if tree is not None and tree.digest != bytes.fromhex(state.tree) and state.id not in self._ledger.records:
                self._amended[state.id] = self._fields(tree, state.unkept) if tree.digest else {"tree": ""}

    def _fields(self, tree: _Tree, unkept: list[list[str]]) -> dict[str, Any]:
        assert tree.digest is not None
        return {"tree": tree.digest.hex(), "unkept": [*unkept, *([os.fsdecode(path), _LOST] for path in tree.lost)]}

    def _without(self, objects: PackStore, batch: Any, tree: bytes, unread: set[bytes]) -> _Tree:
        """A tree without what cannot be read."""
        if tree in self._trees:
            return self._trees[tree]
        if tree in unread:
            return self._trees.setdefault(tree, _Tree(None, []))
        kept: list[TreeEntry] = []
        lost: list[bytes] = []
        files = size = 0
        for entry in trees.decode(objects.read(tree)):
            if entry.kind != DIRECTORY:
                if entry.digest in unread:
                    lost.append(entry.name)
                    files, size = files + 1, size + entry.size
                else:
                    kept.append(entry)
                continue
            below = self._without(objects, batch, entry.digest, unread)
            files, size = files + below.files, size + below.bytes
            if below.digest is None:
                lost.append(entry.name)
            else:
                kept.append(entry._replace(digest=below.digest))
                lost += [entry.name + b"/" + path for path in below.lost]
        digest = batch.add(trees.encode(kept)) if lost else tree
        return self._trees.setdefault(tree, _Tree(digest, lost, files, size))

    def _strays(self, objects: PackStore, there: set[str]) -> list[str]:
        """Packs that no line names: they count if something needs them; otherwise they are put aside."""
        strays = there - self._ledger.packs - self._ledger.gone
        if not strays:
            return []
        named = (there & self._ledger.packs) | set(self._added)
        held = {entry.digest for name in named for entry in objects.table(name)}
        wanted = {one for one, is_there in self._reached(objects).items() if is_there} - held
        adopted = []
        unnamed = []
        for name in sorted(strays):
            path = os.path.join(self._paths.packs, name)
            digests = {entry.digest for entry in objects.table(name)}
            if digests & wanted:
                adopted.append(name)
                self._found.repair(repair_report.STRAY_PACK, path, "no line named it, and it is needed")
            elif not is_uncounted(os.lstat(path)):
                self._found.move(path)
                self._found.repair(repair_report.STRAY_PACK, path, "nothing names it, and nothing needs it")
                if digests - held:
                    unnamed.append(name)
        everybody = session_catalogue.all_names(self._paths)
        # One alone is what a command that was killed has left.
        for name in unnamed if len(unnamed) > 1 else []:
            self._found.lose(repair_report.LEDGER_LINE, name, "no checkpoint names this pack any more", everybody)
        return adopted

    def _write(self, counted: list[str], gone: list[str]) -> None:
        if not (counted or gone or self._amended):
            return
        path = os.path.join(self._paths.checkpoints, ledger.LEDGER)
        try:
            raw = atomic.read_file(path)
        except FileNotFoundError:
            raw = b""
        line = {"v": ledger.FORMAT, "repaired": self._amended, "packs": counted, "gone": gone}
        after = raw + sealed_lines.seal(line)
        atomic.write_file(path, after)
        size = os.path.join(self._paths.checkpoints, ledger_size.NAME)
        atomic.write_file(size, ledger_size.line(len(raw), is_short=False))


def _hash(pieces: Iterator[bytes]) -> bytes | None:
    seen = hashlib.sha256()
    try:
        for piece in pieces:
            seen.update(piece)
    except (zlib.error, OSError, ValueError, OverflowError):
        return None
    return seen.digest()


def _content(name: str, directory: int) -> bytes | None:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    with open(descriptor, "rb") as file:
        try:
            return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        except OSError:
            return None
