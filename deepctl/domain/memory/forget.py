"""Forgetting: the lines of notebooks that hold a text go, between two checkpoints.

Which lines go is decided in one place, `notebooks.lines_with`, and told by `foreseen` before anything is done.
Forgetting is undone by a rewind of memory to the checkpoint made first. That checkpoint and the conversations still
have the text.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from deepctl import layout, notebook_text
from deepctl.domain.memory.changes import at_hand, keep
from deepctl.domain.memory.directory import Memory, MemoryChanged, Notebook, file_name
from deepctl.errors import DeepctlError, MemoryNotFound, NotFound, Refused, UsageError
from deepctl.files.atomic import AfterCommit, storage_error
from deepctl.store import session_catalogue
from deepctl.store.checkpoint_store import excluding
from deepctl.store.records import Record
from deepctl.store.repository import Repository
from deepctl.store.rewind_plan import entry_at, hidden_by


class ForgetRequest(NamedTuple):
    """What is to be forgotten: every line with the literal `text`, in all notebooks or in `file` alone."""

    text: bytes
    file: str | None = None
    ignore_case: bool = False


class Line(NamedTuple):
    """A line that goes: the notebook's name, the number from 1, and the whole line, its end included."""

    file: str
    line: int
    text: bytes


class Forgotten(NamedTuple):
    """What went. `before` is the checkpoint that has the lines, `after` the one without, and `session` theirs.

    `undoable` says whether `before` has them: not if the notebooks are left out of checkpoints.
    """

    lines: list[Line]
    before: Record
    after: Record | None
    session: str
    undoable: bool
    notes: list[str]


class TextNotFound(NotFound):
    code = "memory_text_not_found"


def wish(text: str, file: str | None, *, ignore_case: bool) -> ForgetRequest:
    """A wish. Raises `UsageError` for a text that every line, or none, would hold, and `BadName`."""
    if not text.strip():
        raise UsageError("The TEXT is empty.", "Give what the lines to forget have in them.")
    encoded = os.fsencode(text)
    if encoded.splitlines() != [encoded]:
        raise UsageError("The TEXT goes over several lines.", "Forget them one by one.")
    return ForgetRequest(encoded, file_name(file) if file is not None else None, ignore_case)


def foreseen(memory: Memory, wanted: ForgetRequest) -> list[Line]:
    """The lines that would go. Raises `TextNotFound` if there are none, `MemoryNotFound` if there is no such file."""
    found = _lines(_read(memory, wanted), wanted)
    if found:
        return found
    where = f"in {wanted.file!r}" if wanted.file is not None else "in the notebooks"
    hint = "`deepctl memory search` finds lines by their words."
    if not wanted.ignore_case and _lines(_read(memory, wanted), wanted._replace(ignore_case=True)):
        hint = "It is there in another case: --ignore-case forgets that, too."
    raise TextNotFound(f"{os.fsdecode(wanted.text)!r} is on no line {where}.", hint)


def _read(memory: Memory, wanted: ForgetRequest) -> list[Notebook]:
    """The notebooks that are meant, with their content."""
    if wanted.file is not None:
        return [memory.read(wanted.file)]
    found = []
    for notebook in memory.notebooks():
        try:
            found.append(memory.read(notebook.name))
        except MemoryNotFound:
            continue  # removed a moment ago
    return found


def _lines(found: list[Notebook], wanted: ForgetRequest) -> list[Line]:
    return [
        Line(notebook.name, number, line)
        for notebook in found
        for number, line in notebook_text.lines_with(notebook.content, wanted.text, ignore_case=wanted.ignore_case)
    ]


def undoable(memory: Memory, exclude: list[str]) -> bool:
    """Whether checkpoints keep the notebooks, so that what is forgotten can be brought back."""
    return not hidden_by([], excluding(exclude))(os.fsencode(memory.path(layout.NOTEBOOK)))


def forget(work: Repository, memory: Memory, wanted: ForgetRequest, expected: list[Line]) -> Forgotten:
    """Take the lines out of the notebooks. A checkpoint is made first, in session `main` if there is none.

    `expected` is what the user has agreed to. Raises `Refused` if something else would go by now, and then, or if the
    first checkpoint cannot be made, nothing has been touched.
    """
    found = _read(memory, wanted)
    if _lines(found, wanted) != expected:
        raise Refused(
            "The notebooks were changed by somebody else meanwhile, so nothing was done.",
            "Say it again to see what would go now.",
            code="memory_changed",
        )
    session = at_hand(work) or session_catalogue.start(work.paths, _free(work))
    before = work.save_now(session)
    affected = {line.file for line in expected}
    doomed = [notebook for notebook in found if notebook.name in affected]
    kept = undoable(memory, list(work.workspace.exclude))
    if kept:
        _check_kept(work, before, doomed)
    done: list[str] = []
    late: AfterCommit | None = None
    try:
        for notebook in doomed:
            after = notebook_text.without(notebook.content, wanted.text, ignore_case=wanted.ignore_case)
            try:
                memory.write(notebook.name, after, expected=notebook.content)
            except AfterCommit as error:
                late = error
            done.append(notebook.name)
    except (DeepctlError, OSError) as error:
        problem = error if isinstance(error, DeepctlError) else storage_error(error)
        if done:
            problem.message += f" Lines are gone already from {', '.join(done)}."
            problem.hint = f"Checkpoint {before.id} has them."
        raise problem from error
    last, notes = keep(work, session)
    if late is not None:
        raise late
    return Forgotten(expected, before, last, session.name, kept, notes)


def undo_command(profile: str, done: Forgotten) -> str | None:
    """What to type to make memory what it was before; `None` where nothing does."""
    if not done.undoable:
        return None
    # The checkpoint's session is named: the one at hand may be another by then.
    where = f"--user {profile} --session {done.session}"
    return f"deepctl checkpoints rewind {done.before.id} --only memory --exact {where}"


def _free(work: Repository) -> str:
    taken = session_catalogue.spelled(work.paths, session_catalogue.FIRST)
    return session_catalogue.FIRST if taken is None else session_catalogue.free_name(work.paths)


def _check_kept(work: Repository, record: Record, doomed: list[Notebook]) -> None:
    """Raises `MemoryChanged` unless a checkpoint has these notebooks as they were read."""
    for notebook in doomed:
        entry = entry_at(work.store.objects, bytes.fromhex(record.tree), os.fsencode(notebook.path))
        if entry is None or entry.digest != hashlib.sha256(notebook.content).digest():
            raise MemoryChanged(notebook.name)
