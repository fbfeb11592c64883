"""Changes that a person makes to the notebooks, under the profile's lock, and the checkpoints that keep every version.

A change by hand is no part of a turn, so the checkpoint that holds it has the author `other`, and a later rewind of the
agent's turns keeps it. Changes that a killed turn left are saved as the turn's first (`Repository.between`): they must
not be taken for the person's, nor the person's for the agent's.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.domain.memory.directory import (
    ForgetRequest,
    Memory,
    MemoryChanged,
    Notebook,
    appended,
    lines_with,
    odd_lines,
    without,
)
from deepctl.errors import Damaged, DeepctlError, MemoryNotFound, NotFound, Refused, SessionNotFound
from deepctl.files import atomic
from deepctl.files.atomic import AfterCommit, storage_error
from deepctl.files.rmtree import remove_tree
from deepctl.layout import ProfilePaths
from deepctl.store import rewind_plan, session_catalogue
from deepctl.store.diff import line_counts
from deepctl.store.records import Record, Session
from deepctl.store.repository import MANUAL_ONLY, Repository
from deepctl.store.rewind_plan import hidden_by, take_back_lines
from deepctl.store.trees import entry_at, excluding


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
    notebook = memory.find(file)
    before = notebook.content if notebook is not None else None
    return _write(work, session, memory, file, before, appended(before or b"", note))


def replace(work: Repository, memory: Memory, file: str, base: bytes | None, edited: bytes) -> MemoryChange:
    """Make a notebook what somebody edited it to, who had begun with `base` (`None`: it did not exist).

    What others changed meanwhile is merged by line. Raises `Collision` if both changed the same lines.
    """
    session = begin(work)
    notebook = memory.find(file)
    now = notebook.content if notebook is not None else None
    if now in (base, edited):
        return _write(work, session, memory, file, now, edited)
    if (base is not None and now is None) or max(
        map(len, (base or b"", now or b"", edited))
    ) > rewind_plan.MERGED_UP_TO:
        merged = None
    else:
        merged = take_back_lines(edited, base or b"", now or b"")
    if merged is None:
        other_change = "removed it" if now is None else "changed the same lines"
        raise Collision(f"Another author {other_change} while you were editing {file!r}, so nothing was written.")
    return _write(work, session, memory, file, now, merged, is_merged=True)


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
    is_merged: bool = False,
) -> MemoryChange:
    if before == after:
        current = memory.read(file)
        return MemoryChange(current, (0, 0), None, is_merged, [])
    notebook = memory.write(file, after, expected_content=before)
    checkpoint, notes = keep(work, session)
    if odd := odd_lines(after):
        notes.append(f"Line {odd[0]} of {notebook.name} is not UTF-8: the agent sees U+FFFD for its bytes.")
    return MemoryChange(notebook, line_counts(before or b"", after), checkpoint, is_merged, notes)


def keep(work: Repository, session: Session | None) -> tuple[Record | None, list[str]]:
    """A checkpoint of a change that has been made. Failing to make one does not undo the change: it is said."""
    if session is None:
        return None, []
    try:
        return work.save_now(session), []
    except (DeepctlError, OSError) as error:
        return None, [f"The change was made, but its checkpoint could not be stored: {str(error).rstrip('.')}."]


DRAFT_PREFIX = ".edit-"


class Draft(NamedTuple):
    """A copy of a notebook: the directory made for it, and the file in it."""

    directory: str
    path: str


def begin_draft(profile: ProfilePaths, name: str, content: bytes) -> Draft:
    """Make a draft of the notebook `name`. The directory is 0700, the file 0600."""
    directory = os.path.join(profile.directory, DRAFT_PREFIX + os.urandom(6).hex())
    atomic.make_new_directory(directory)
    draft = Draft(directory, os.path.join(directory, name))
    try:
        atomic.write_file(draft.path, content)
    except BaseException:
        discard_draft(draft)
        raise
    return draft


def read_draft(draft: Draft) -> bytes:
    """What is in a draft now. Raises `Refused` if it is gone, or is no file any more."""
    try:
        return atomic.read_file(draft.path)
    except (FileNotFoundError, NotADirectoryError):
        with suppress(OSError):
            os.rmdir(draft.directory)
        raise Refused(f"The editor left no file ({draft.path}), so nothing was changed.", code="no_draft") from None


def discard_draft(draft: Draft) -> None:
    """Remove a draft, and what an editor left beside it."""
    remove_tree(draft.directory)


def drafts_left(profile: ProfilePaths) -> list[str]:
    """The files of all drafts of a profile, sorted: of edits that are going on, and of those that came to no end."""
    try:
        directories = sorted(entry for entry in os.listdir(profile.directory) if entry.startswith(DRAFT_PREFIX))
    except FileNotFoundError:
        return []
    paths = []
    for directory in directories:
        place = os.path.join(profile.directory, directory)
        try:
            # What an editor keeps beside a file is hidden, or has a tilde behind its name.
            paths += [
                os.path.join(place, name)
                for name in sorted(os.listdir(place))
                if not name.startswith(".") and not name.endswith("~")
            ]
        except (FileNotFoundError, NotADirectoryError):
            continue
    return paths


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


def foreseen(memory: Memory, request: ForgetRequest) -> list[Line]:
    """The lines that would go. Raises `TextNotFound` if there are none, `MemoryNotFound` if there is no such file."""
    lines = _lines(_read(memory, request), request)
    if lines:
        return lines
    where = f"in {request.file!r}" if request.file is not None else "in the notebooks"
    hint = "`deepctl memory search` finds lines by their words."
    if not request.ignore_case and _lines(_read(memory, request), request._replace(ignore_case=True)):
        hint = "It exists in another case: --ignore-case forgets it too."
    raise TextNotFound(f"No line {where} contains {os.fsdecode(request.text)!r}.", hint)


def _read(memory: Memory, request: ForgetRequest) -> list[Notebook]:
    """The notebooks that are meant, with their content."""
    if request.file is not None:
        return [memory.read(request.file)]
    notebooks = []
    for notebook in memory.notebooks():
        try:
            notebooks.append(memory.read(notebook.name))
        except MemoryNotFound:
            continue  # removed a moment ago
    return notebooks


def _lines(notebooks: list[Notebook], request: ForgetRequest) -> list[Line]:
    return [
        Line(notebook.name, number, line)
        for notebook in notebooks
        for number, line in lines_with(notebook.content, request.text, ignore_case=request.ignore_case)
    ]


def undoable(memory: Memory, exclude: list[str]) -> bool:
    """Whether checkpoints keep the notebooks, so that what is forgotten can be brought back."""
    return not hidden_by([], excluding(exclude))(os.fsencode(memory.path(layout.NOTEBOOK)))


def forget(work: Repository, memory: Memory, request: ForgetRequest, expected_lines: list[Line]) -> Forgotten:
    """Take the lines out of the notebooks. A checkpoint is made first, in session `main` if there is none.

    `expected_lines` are what the user has agreed to. Raises `Refused` if something else would go by now, and then, or
    if the first checkpoint cannot be made, nothing has been touched.
    """
    notebooks = _read(memory, request)
    if _lines(notebooks, request) != expected_lines:
        raise Refused(
            "Another author changed the notebooks in the meantime, so nothing was done.",
            "Run the command again to see what it would remove now.",
            code="memory_changed",
        )
    session = at_hand(work) or session_catalogue.start(work.paths, _free(work))
    before = work.save_now(session)
    file_names = {line.file for line in expected_lines}
    affected_notebooks = [notebook for notebook in notebooks if notebook.name in file_names]
    is_undoable = undoable(memory, list(work.workspace.exclude))
    if is_undoable:
        _check_kept(work, before, affected_notebooks)
    names: list[str] = []
    late: AfterCommit | None = None
    try:
        for notebook in affected_notebooks:
            after = without(notebook.content, request.text, ignore_case=request.ignore_case)
            try:
                memory.write(notebook.name, after, expected_content=notebook.content)
            except AfterCommit as error:
                late = error
            names.append(notebook.name)
    except (DeepctlError, OSError) as error:
        problem = error if isinstance(error, DeepctlError) else storage_error(error)
        if names:
            problem.message += f" Lines have already been removed from {', '.join(names)}."
            problem.hint = f"Checkpoint {before.id} contains them."
        raise problem from error
    last, notes = keep(work, session)
    if late is not None:
        raise late
    return Forgotten(expected_lines, before, last, session.name, is_undoable, notes)


def undo_command(profile: str, result: Forgotten) -> str | None:
    """What to type to make memory what it was before; `None` where nothing does."""
    if not result.undoable:
        return None
    # The checkpoint's session is named: the one at hand may be another by then.
    where = f"--user {profile} --session {result.session}"
    return f"deepctl checkpoints rewind {result.before.id} --only memory --exact {where}"


def _free(work: Repository) -> str:
    existing_name = session_catalogue.spelled(work.paths, session_catalogue.FIRST)
    return session_catalogue.FIRST if existing_name is None else session_catalogue.free_name(work.paths)


def _check_kept(work: Repository, record: Record, notebooks: list[Notebook]) -> None:
    """Raises `MemoryChanged` unless a checkpoint has these notebooks as they were read."""
    for notebook in notebooks:
        entry = entry_at(work.store.objects, bytes.fromhex(record.tree), os.fsencode(notebook.path))
        if entry is None or entry.digest != hashlib.sha256(notebook.content).digest():
            raise MemoryChanged(notebook.name)
