"""Opening a profile for changes: what killed commands left is finished or removed first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from deepctl.domain.checkpoints import carrying, pruning
from deepctl.domain.checkpoints.snapshots import Report
from deepctl.domain.checkpoints.work import EVERY_TOOL, Work, remove_leftovers
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import deleting


@contextmanager
def opened(
    paths: ProfilePaths,
    *,
    exclude: Sequence[str] = (),
    policy: str = EVERY_TOOL,
    report: Report | None = None,
) -> Iterator[Work]:
    """Open a profile; `notes` of what is yielded say what was left to do.

    The caller holds its lock. Raises `StorageError` if what was left cannot be finished.
    """
    remove_leftovers(paths)
    work = Work(paths, exclude=exclude, policy=policy, report=report)
    try:
        work.rewound = carrying.recover(work)
        work.notes = [*work.rewound, *deleting.recover(work)]
        if work.ledger.ends_in_removal:
            pruning.collect_logs(paths, work.ledger)
        yield work
    finally:
        work.close()
