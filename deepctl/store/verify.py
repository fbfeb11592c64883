"""Reading and checking every stored byte of a profile's checkpoints and conversations."""

from __future__ import annotations

import os
from contextlib import closing
from typing import NamedTuple

from deepctl.errors import Damaged, DeepctlError, NewerFormat
from deepctl.files import atomic, sealed_lines
from deepctl.layout import PROJECTS, ProfilePaths
from deepctl.store import (
    log_file,
    lookup,
    pack_store,
    projects,
    records,
    repair_logs,
    session_catalogue,
    trees,
    usage_log,
)
from deepctl.store.index_db import Cache, Location
from deepctl.store.ledger import LEDGER, MESSAGES, Ledger
from deepctl.store.lookup import CheckpointProblem
from deepctl.store.pack_store import PackStore
from deepctl.store.trees import DIRECTORY, Report

_SENSELESS = 4
"""After this number of impossible entries, the bytes do not count as a table."""


class VerificationResult(NamedTuple):
    """The number of checked items, and the problems. `notes` are unfinished operations, which are not damage. `bytes`
    is the number of bytes read.
    """

    checkpoints: int
    objects: int
    bytes: int
    problems: list[CheckpointProblem]
    notes: list[str]


def verify(paths: ProfilePaths, report: Report | None = None) -> VerificationResult:
    """Check everything. Never raises for damage; raises `NewerFormat` for a later format.

    `report` receives the number of bytes read, out of `packed_bytes`.
    """
    ledger = session_catalogue.read_ledger(paths)
    problems = lookup.damage(paths, ledger)
    problems += [
        CheckpointProblem(None, paths.sessions, repair_logs.vanished_reason(paths, ledger, vanished))
        for vanished in repair_logs.vanished_sessions(paths, ledger)
    ]
    with closing(Cache()) as cache:
        return _verified(paths, ledger, problems, PackStore(paths.packs, cache), report)


def packed_bytes(paths: ProfilePaths) -> int:
    """The number of bytes of the packs; reading them takes almost all the time."""
    try:
        with os.scandir(paths.packs) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except FileNotFoundError:
        return 0


def _verified(
    paths: ProfilePaths, ledger: Ledger, problems: list[CheckpointProblem], objects: PackStore, report: Report | None
) -> VerificationResult:
    good: set[bytes] = set()
    size = 0
    for name in sorted(objects.names()):
        size += _pack(paths, objects, name, good, problems, _from(size, report))
    problems += _trees(paths, ledger, objects, good)
    size += _logs(paths, problems) + _usage(paths, problems)
    notes = []
    if ledger.unfinished is not None:
        notes.append("A rewind was interrupted; the next command that changes something finishes it.")
    if projects.is_damaged(paths):
        notes.append(
            f"{os.path.join(paths.directory, PROJECTS)} is damaged; the next command that changes something builds it "
            "again from the sessions."
        )
    if ledger.torn:
        notes.append(f"The last line of {os.path.join(paths.checkpoints, LEDGER)} is incomplete; it does not count.")
    return VerificationResult(len(ledger.records), len(good), size, problems, notes)


def _usage(paths: ProfilePaths, problems: list[CheckpointProblem]) -> int:
    """Check the lines of the usage; returns the bytes that were read."""
    try:
        raw = atomic.read_file(paths.usage)
    except FileNotFoundError:
        return 0
    except (DeepctlError, OSError) as error:
        problems.append(CheckpointProblem(None, paths.usage, str(error)))
        return 0
    for number, reason in usage_log.parse(raw, paths.usage).problems:
        problems.append(CheckpointProblem(None, f"{paths.usage} line {number}", reason))
    return len(raw)


def _from(start: int, report: Report | None) -> Report:
    return (lambda count: report(start + count)) if report is not None else lambda count: None


def _pack(
    paths: ProfilePaths,
    objects: PackStore,
    name: str,
    good: set[bytes],
    problems: list[CheckpointProblem],
    tell: Report,
) -> int:
    path = os.path.join(paths.packs, name)
    try:
        table = objects.table(name)
    except NewerFormat:
        raise
    except (DeepctlError, OSError) as error:
        problems.append(CheckpointProblem(None, path, str(error)))
        return 0
    for entry in table:
        try:
            read = 0
            for piece in objects.chunks(entry.digest):
                read += len(piece)
                tell(entry.offset + entry.stored_size * read // max(1, entry.size))
            if not objects.is_as_stored(name, entry):
                raise Damaged(f"Object {entry.digest.hex()[:16]} in {path} has changed since it was written.")
        except NewerFormat:
            raise
        except (DeepctlError, OSError) as error:
            problems.append(CheckpointProblem(None, path, str(error)))
        else:
            good.add(entry.digest)
    size = os.path.getsize(path)
    if not is_tight(path, [(entry.offset, entry.stored_size) for entry in table], len(table)):
        problems.append(CheckpointProblem(None, path, "it contains unused bytes"))
    return size


def is_tight(path: str, spans: list[tuple[int, int]], count: int) -> bool:
    """Whether a pack consists only of its header, its objects one after another, its table and its trailer."""
    position = len(pack_store.PACK_HEADER)
    for offset, length in sorted(spans):
        if offset != position:
            return False
        position += length
    size = os.path.getsize(path) - position - pack_store.PACK_TRAILER.size
    return size in [count * form.size for form in pack_store.TABLE_FORMS]


def possible_objects(descriptor: int) -> list[Location]:
    """The possible positions of the objects of a damaged pack, from the bytes that look like its table. The caller
    checks each by its hash.
    """
    end = os.fstat(descriptor).st_size - pack_store.PACK_TRAILER.size
    locations = []
    for form in pack_store.TABLE_FORMS:
        # The number in the trailer may be damaged, so entries are read backwards while they are possible.
        position, senseless = end - form.size, 0
        while position >= len(pack_store.PACK_HEADER) and senseless < _SENSELESS:
            raw = os.pread(descriptor, form.size, position)
            _, offset, length, size = form.unpack(raw)[:4] if len(raw) == form.size else (b"", 0, 0, 0)
            is_inside = len(pack_store.PACK_HEADER) <= offset <= offset + length <= end
            if is_inside and size <= pack_store.MAX_RATIO * max(length, 1):
                locations.append(Location("", offset, length, size))
            else:
                senseless += 1
            position -= form.size
    return locations


def _trees(paths: ProfilePaths, ledger: Ledger, objects: PackStore, good: set[bytes]) -> list[CheckpointProblem]:
    """The checkpoints that cannot be restored in full, each named once."""
    problems = []
    verdicts: dict[bytes, str | None] = {}

    def verdict(tree: bytes) -> str | None:
        if tree not in verdicts:
            verdicts[tree] = _first_flaw(tree)
        return verdicts[tree]

    def _first_flaw(tree: bytes) -> str | None:
        if tree not in good:
            return f"the list of a directory ({tree.hex()[:16]}) is missing or damaged"
        try:
            entries = trees.decode(objects.read(tree))
        except Damaged as error:
            return error.message
        for entry in entries:
            if entry.kind == DIRECTORY:
                flaw = verdict(entry.digest)
                if flaw is not None:
                    return flaw
            elif entry.digest not in good:
                return f"the content of {os.fsdecode(entry.name)!r} is missing or damaged"
        return None

    for record in ledger.records.values():
        flaw = verdict(bytes.fromhex(record.tree)) if record.tree else None
        if flaw is not None:
            problems.append(CheckpointProblem(record.id, paths.packs, flaw))
    return problems


def _logs(paths: ProfilePaths, problems: list[CheckpointProblem]) -> int:
    size = 0
    inodes: set[tuple[int, int]] = set()
    reported_paths: set[str] = set()
    for name in session_catalogue.all_names(paths):
        directory = os.path.join(paths.sessions, name)
        record = os.path.join(directory, records.SESSION_RECORD)
        session = None
        try:
            session = session_catalogue.find(paths, name)
            if session.damage is not None:
                reported_paths.add(record)
                problems.append(CheckpointProblem(None, record, session.damage))
            lost_log = session_catalogue.read(session).lost
            if lost_log is not None:
                problems.append(CheckpointProblem(None, os.path.join(directory, lost_log.file), lost_log.reason))
        except NewerFormat:
            raise
        except (DeepctlError, OSError) as error:
            if session is None:
                reported_paths.add(record)
            problems.append(CheckpointProblem(None, directory, str(error)))
    messages_directory = os.path.join(paths.checkpoints, MESSAGES)
    places = [os.path.join(paths.sessions, name) for name in session_catalogue.all_names(paths)]
    for directory in [*places, messages_directory] if os.path.isdir(messages_directory) else places:
        for entry in sorted(os.listdir(directory)):
            path = os.path.join(directory, entry)
            status = os.lstat(path)
            if not entry.endswith((log_file.SUFFIX, ".json")) or (status.st_dev, status.st_ino) in inodes:
                continue
            inodes.add((status.st_dev, status.st_ino))
            size += status.st_size
            if path in reported_paths:
                continue
            try:
                raw = atomic.read_file(path)
            except (DeepctlError, OSError) as error:
                problems.append(CheckpointProblem(None, path, str(error)))
                continue
            if entry.endswith(".json") and not raw.endswith(b"\n"):
                problems.append(CheckpointProblem(None, path, "cut short"))
                continue
            problems += [
                CheckpointProblem(None, f"{path} line {line.number}", line.problem or "unreadable")
                for line in sealed_lines.parse(raw)
                if line.problem is not None and (line.problem != "cut short" or line.number == 1)
            ]
    return size
