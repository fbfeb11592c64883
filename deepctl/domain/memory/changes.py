"""Changes that a person makes to the notebooks, under the profile's lock, and the checkpoints that keep every version.

A change by hand is no part of a turn, so the checkpoint that holds it has the author `other`, and a later rewind of the
agent's turns keeps it. Changes that a killed turn left are saved as the turn's first (`Repository.between`): they must
not be taken for the person's, nor the person's for the agent's.
"""

from __future__ import annotations

from typing import NamedTuple

from deepctl import notebook_text
from deepctl.domain.memory.directory import Memory, Notebook
from deepctl.errors import Damaged, DeepctlError, Refused, SessionNotFound
from deepctl.store import rewind_plan, session_catalogue
from deepctl.store.notebook_merge import take_back
from deepctl.store.records import Record
from deepctl.store.repository import MANUAL_ONLY, Repository
from deepctl.store.session_record import Session


class MemoryChange(NamedTuple):
    """A notebook as it is now. `lines` is how many came and went, `None` where that would take too long to tell.

    `checkpoint` keeps it, if one was made; `merged` says that it had been changed by somebody else meanwhile, `notes`
    what the user should know beside.
    """

    notebook: Notebook
    lines: tuple[int, int] | None
    checkpoint: Record | None
    merged: bool
    notes: list[str]


class Collision(Refused):
    """The person and somebody else changed the same lines; nothing has been written."""

    code = "memory_conflict"


def add(work: Repository, memory: Memory, file: str, note: bytes) -> MemoryChange:
    """Append a note to a notebook, which is made if there is none. Raises as `Memory.write`."""
    session = begin(work)
    found = memory.find(file)
    before = found.content if found is not None else None
    return _write(work, session, memory, file, before, notebook_text.appended(before or b"", note))


def replace(work: Repository, memory: Memory, file: str, base: bytes | None, edited: bytes) -> MemoryChange:
    """Make a notebook what somebody edited it to, who had begun with `base` (`None`: it did not exist).

    What others changed meanwhile is merged by line. Raises `Collision` if both changed the same lines.
    """
    session = begin(work)
    found = memory.find(file)
    now = found.content if found is not None else None
    if now in (base, edited):
        return _write(work, session, memory, file, now, edited)
    if (base is not None and now is None) or max(
        map(len, (base or b"", now or b"", edited))
    ) > rewind_plan.MERGED_UP_TO:
        merged = None
    else:
        merged = take_back(edited, base or b"", now or b"")
    if merged is None:
        what = "removed it" if now is None else "changed the same lines"
        raise Collision(f"Somebody else {what} while you were editing {file!r}, so nothing was written.")
    return _write(work, session, memory, file, now, merged, merged=True)


def begin(work: Repository) -> Session | None:
    """Get ready for a change: keep what a killed turn left. Returns the session whose checkpoint is to keep the change.

    `None` where there is no session that can be read, or checkpoints are only made by hand.
    """
    if work.policy == MANUAL_ONLY:
        return None
    session = at_hand(work)
    if session is not None:
        work.between()
    return session


def at_hand(work: Repository) -> Session | None:
    """The session written to last, or any other if that is damaged; `None` if there is none that can be read."""
    latest = session_catalogue.latest(work.paths)
    for name in [latest, *session_catalogue.all_names(work.paths)] if latest is not None else []:
        try:
            session = session_catalogue.find(work.paths, name)
            session_catalogue.read(session)
        except (Damaged, SessionNotFound):
            continue
        return session
    return None


def _write(
    work: Repository,
    session: Session | None,
    memory: Memory,
    file: str,
    before: bytes | None,
    after: bytes,
    *,
    merged: bool = False,
) -> MemoryChange:
    if before == after:
        found = memory.read(file)
        return MemoryChange(found, (0, 0), None, merged, [])
    notebook = memory.write(file, after, expected=before)
    checkpoint, notes = keep(work, session)
    if odd := notebook_text.odd_lines(after):
        notes.append(f"Line {odd[0]} of {notebook.name} is not UTF-8: the agent sees U+FFFD for its bytes.")
    return MemoryChange(notebook, notebook_text.counts(before or b"", after), checkpoint, merged, notes)


def keep(work: Repository, session: Session | None) -> tuple[Record | None, list[str]]:
    """A checkpoint of a change that has been made. Failing to make one does not undo the change: it is said."""
    if session is None:
        return None, []
    try:
        return work.save_now(session), []
    except (DeepctlError, OSError) as error:
        return None, [f"The change is made, but no checkpoint of it could be kept: {str(error).rstrip('.')}."]
