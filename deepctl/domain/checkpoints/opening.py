"""Opening a profile for changes: what killed commands left is finished or removed first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deepctl.domain import reserve
from deepctl.domain.checkpoints import carrying, pruning
from deepctl.domain.checkpoints.snapshots import Report
from deepctl.domain.checkpoints.work import EVERY_TOOL, Work, remove_leftovers
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import deleting
from deepctl.errors import StorageError
from deepctl.files import durable


@contextmanager
def opened(
    paths: ProfilePaths,
    *,
    exclude: Sequence[str] = (),
    policy: str = EVERY_TOOL,
    report: Report | None = None,
    frees: bool = False,
) -> Iterator[Work]:
    """Open a profile; `notes` of what is yielded say what was left to do.

    The caller holds its lock. Raises `StorageError` if what was left cannot be finished. What `frees` space gets the
    room of the reserve, and does not wait for an interrupted rewind that finds no room.
    """
    remove_leftovers(paths)
    if frees:
        reserve.make_room(paths)
    work = Work(paths, exclude=exclude, policy=policy, report=report)
    try:
        work.rewound = _recovered(work, frees=frees)
        work.notes = [*work.rewound, *deleting.recover(work)]
        if work.ledger.ends_in_removal:
            pruning.collect_logs(paths, work.ledger)
        if not frees:
            reserve.hold(paths)
        yield work
    finally:
        work.close()


def _recovered(work: Work, *, frees: bool) -> list[str]:
    try:
        return carrying.recover(work)
    except (OSError, StorageError) as error:
        if not frees or not durable.is_full(error):
            raise
        return ["A rewind was interrupted and finds no room; the next command that changes something finishes it."]
