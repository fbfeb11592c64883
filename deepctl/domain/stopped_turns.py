"""A last turn that did not end by itself: why, and what a rewind of it would take back."""

from __future__ import annotations

from contextlib import suppress
from itertools import takewhile
from typing import NamedTuple

from deepctl import locks
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError
from deepctl.layout import ProfilePaths
from deepctl.quantities import counted
from deepctl.store import lookup, session_catalogue, transcript
from deepctl.store.records import KILLED, STOPPED, SessionRecord
from deepctl.store.session_ends import LastExchange
from deepctl.store.session_reader import SessionReaders

_REASONS = {
    KILLED: "its process was killed",
    "interrupted": "it was stopped with Ctrl-C",
    "terminated": "its process was ended",
    "timeout": "it reached its time limit",
    "budget": "a budget was reached",
    "idle_timeout": "the model sent nothing for too long",
    "storage": "the storage could not be used",
    "model_connection": "the connection to the model failed",
    "model_rate_limited": "the provider limits the number of requests",
}
"""The reasons by the code of the error."""
_FAILED = "the model or its provider failed"
_UNKNOWN = "it was interrupted or failed"


class StoppedTurn(NamedTuple):
    """A turn that did not end by itself. `undo` is the id of the checkpoint before it, `None` without one.

    `files` is the number of files that a rewind to there would change, `None` if that cannot be told. `needs_force`
    means that another author may have changed them too.
    """

    reason: str
    undo: str | None = None
    files: int | None = None
    needs_force: bool = False

    def notice(self) -> str:
        """The sentences for a chat."""
        start = f"The last turn is not complete: {self.reason}."
        if self.undo is None:
            return f"{start} /retry sends its prompt again."
        command = f"/rewind {self.undo[:8]}"
        if not self.files:
            changes = " No file differs from before it." if self.files == 0 else ""
            return f"{start}{changes} {command} takes it back; /retry also sends its prompt again."
        files = f"{counted(self.files, 'file')} differ{'s' if self.files == 1 else ''} from before it"
        if self.needs_force:
            return (
                f"{start} {files}; some may be your changes. {command} --dry-run lists them, and {command} --force "
                "takes it back."
            )
        return f"{start} {files}; {command} takes it back."


def of_session(
    paths: ProfilePaths, session: SessionRecord, exchange: LastExchange, in_force: Settings
) -> StoppedTurn | None:
    """What is known of the last turn, which is not complete; `None` while it is running. Takes no lock."""
    checkpoints = session_catalogue.read_ledger(paths)
    if SessionReaders(paths).has_unfinished_turn(session, checkpoints):
        if locks.holder(paths.lock) is not None:
            return None
        reason = _REASONS[KILLED]
    else:
        records = checkpoints.line(checkpoints.head(session))
        own = takewhile(lambda record: record.turn >= exchange.turn, records)
        reason = _reason(next((code for record in own if (code := record.metadata.get(STOPPED))), None), exchange)
    with suppress(DeepctlError, OSError):
        return _with_changes(paths, session, in_force, StoppedTurn(reason))
    return StoppedTurn(reason)


def _reason(code: object, exchange: LastExchange) -> str:
    if isinstance(code, str):
        return _REASONS.get(code, _FAILED)
    # 0.1 stored no reason, and without automatic checkpoints there is no place for one.
    return _UNKNOWN if exchange.problem in (None, transcript.INTERRUPTED) else exchange.problem


def _with_changes(paths: ProfilePaths, session: SessionRecord, in_force: Settings, stopped: StoppedTurn) -> StoppedTurn:
    """With the changes since the checkpoint before the turn. Raises the errors of a preview."""
    from deepctl.store import rewind  # only for such a turn
    from deepctl.store.repository import Repository

    with Repository.read_only(paths, coverage=in_force.coverage()) as reader:
        target = lookup.find_checkpoint(paths, reader.ledger, "~1", session.name, reader.readers.of(session))
        stopped = stopped._replace(undo=target.id)
        with suppress(DeepctlError, OSError):
            plan = rewind.preview(reader, session, rewind.RewindRequest(target))
            return stopped._replace(files=len(plan.changes), needs_force=bool(plan.conflicts))
        return stopped
