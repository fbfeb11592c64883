"""Opening a profile for changes: what killed commands left is finished or removed first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from deepctl.errors import DeepctlError, StorageError
from deepctl.files import atomic
from deepctl.layout import ProfilePaths
from deepctl.store import (
    log_file,
    log_positions,
    prune,
    repair,
    repair_report,
    reserve,
    rewind_recovery,
    session_catalogue,
    session_delete,
    session_record,
)
from deepctl.store.repository import EVERY_TOOL, Repository, remove_leftovers
from deepctl.store.snapshot import Report


@contextmanager
def opened(
    paths: ProfilePaths,
    *,
    exclude: Sequence[str] = (),
    policy: str = EVERY_TOOL,
    report: Report | None = None,
    frees: bool = False,
) -> Iterator[Repository]:
    """Open a profile; `notes` of what is yielded say what was left to do.

    The caller holds its lock. Raises `StorageError` if what was left cannot be finished. What `frees` space gets the
    room of the reserve, and does not wait for an interrupted rewind that finds no room.
    """
    repair.finish(paths)
    remove_leftovers(paths)
    with reserve.room(paths) if frees else nullcontext(), _open(paths, exclude, policy, report, frees) as work:
        yield work


@contextmanager
def _open(
    paths: ProfilePaths, exclude: Sequence[str], policy: str, report: Report | None, frees: bool
) -> Iterator[Repository]:
    log_file.join(session_catalogue.directories(paths))
    work = Repository(paths, exclude=exclude, policy=policy, report=report)
    try:
        work.rewound = _recovered(work, frees=frees)
        work.notes = [*work.rewound, *session_delete.recover(work)]
        if work.ledger.ends_in_removal:
            prune.collect_logs(paths, work.ledger)
        if not frees:
            reserve.hold(paths)
            work.notes += _write_records_anew(paths)
            _tie(work)
        yield work
    finally:
        work.close()


def _recovered(work: Repository, *, frees: bool) -> list[str]:
    try:
        return rewind_recovery.recover(work)
    except (OSError, StorageError) as error:
        if not frees or not atomic.is_full(error):
            raise
        return ["A rewind was interrupted and finds no room; the next command that changes something finishes it."]


def _write_records_anew(paths: ProfilePaths) -> list[str]:
    """Put the records of sessions in place that are damaged, where everything in them could be found out."""
    notes = []
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            if session.damage is not None:
                repair_report.keep_aside(paths, os.path.join(session.directory, session_record.RECORD))
                session_record.write(session)
                notes.append(f"The record of session {name!r} was damaged, and has been written anew.")
        except (DeepctlError, OSError):
            continue
    return notes


def _tie(work: Repository) -> None:
    """Tie the positions that 0.1 wrote to what stands before them. Where that fails, the next writer does it."""
    try:
        if records := log_positions.untied(work.ledger):
            work.store.writer.tie(log_positions.digests_of(work.paths, records))
    except (DeepctlError, OSError):
        pass
