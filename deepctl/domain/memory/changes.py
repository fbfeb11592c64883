"""Changes of notebooks by a person, under the profile's lock, and the checkpoints of every version.

A change by hand is not part of a turn, so its checkpoint has the author `other`, and a later rewind of the agent's
turns keeps it. Changes of a killed turn are saved first as those of the turn (`Repository.between`), so that changes of
the person and of the agent are not confused.
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
    append_note,
    lines_with,
    odd_lines,
    without_lines,
)
from deepctl.errors import Damaged, DeepctlError, MemoryNotFound, NotFound, Refused, SessionNotFound
from deepctl.files import atomic
from deepctl.files.atomic import AfterCommit, storage_error
from deepctl.files.rmtree import remove_tree
from deepctl.layout import ProfilePaths
from deepctl.store import session_catalogue
from deepctl.store.diff import line_counts
from deepctl.store.line_merge import MERGED_UP_TO, take_back_lines
from deepctl.store.records import Record, SessionRecord
from deepctl.store.repository import MANUAL_ONLY, Repository
from deepctl.store.rewind_plan import hidden_by
from deepctl.store.trees import entry_at


class MemoryChange(NamedTuple):
    """A notebook after a change. `lines` are the numbers of added and removed lines, `None` if comparing takes too
    long.

    `checkpoint` contains the change, if one was made. `merged` means that another author had changed the notebook in
    the meantime; `notes` are for the user.
    """

    notebook: Notebook
    lines: tuple[int, int] | None
    checkpoint: Record | None
    merged: bool
    notes: list[str]


class Collision(Refused):
    """The person and another author changed the same lines; nothing was written."""

    code = "memory_conflict"


def add(work: Repository, memory: Memory, file: str, note: bytes) -> MemoryChange:
    """Append a note to a notebook, which is created if it does not exist. Raises like `Memory.write`."""
    session = begin(work)
    notebook = memory.find(file)
    before = notebook.content if notebook is not None else None
    return _write(work, session, memory, file, before, append_note(before or b"", note))


def replace(work: Repository, memory: Memory, file: str, base: bytes | None, new_content: bytes) -> MemoryChange:
    """Store an edit of a notebook that started from `base` (`None`: it did not exist).

    Changes by another author in the meantime are merged by line. Raises `Collision` if both changed the same lines.
    """
    session = begin(work)
    notebook = memory.find(file)
    now = notebook.content if notebook is not None else None
    if now in (base, new_content):
        return _write(work, session, memory, file, now, new_content)
    if (base is not None and now is None) or max(map(len, (base or b"", now or b"", new_content))) > MERGED_UP_TO:
        merged_content = None
    else:
        merged_content = take_back_lines(new_content, base or b"", now or b"")
    if merged_content is None:
        other_change = "removed it" if now is None else "changed the same lines"
        raise Collision(f"Another author {other_change} while you were editing {file!r}, so nothing was written.")
    return _write(work, session, memory, file, now, merged_content, is_merged=True)


def begin(work: Repository) -> SessionRecord | None:
    """Prepare a change: save the changes of a killed turn. Returns the session for the checkpoint of the change.

    `None` if there is no readable session, or if checkpoints are only made by hand.
    """
    if work.policy == MANUAL_ONLY:
        return None
    session = readable_session(work)
    if session is not None:
        work.between()
    return session


def readable_session(work: Repository) -> SessionRecord | None:
    """The session of the workspace that was used last, or another one if it is damaged or there is none; `None` if none
    is readable.
    """
    latest = session_catalogue.latest_session(work.paths)
    for name in [*([latest] if latest is not None else []), *session_catalogue.newest_first(work.paths)]:
        try:
            session = session_catalogue.find(work.paths, name)
            session_catalogue.read(session)
        except (Damaged, SessionNotFound):
            continue
        return session
    return None


def _write(
    work: Repository,
    session: SessionRecord | None,
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
    if numbers := odd_lines(after):
        notes.append(f"Line {numbers[0]} of {notebook.name} is not UTF-8: the agent sees U+FFFD for its bytes.")
    return MemoryChange(notebook, line_counts(before or b"", after), checkpoint, is_merged, notes)


def keep(work: Repository, session: SessionRecord | None) -> tuple[Record | None, list[str]]:
    """Make the checkpoint of a change. A failure does not undo the change; it becomes a note."""
    if session is None:
        return None, []
    try:
        return work.save_now(session), []
    except (DeepctlError, OSError) as error:
        return None, [f"The change was made, but its checkpoint could not be stored: {str(error).rstrip('.')}."]


DRAFT_PREFIX = ".edit-"
SETTINGS_DRAFT = "settings.toml"
"""The name of a draft of a settings file. No notebook has it."""


class Draft(NamedTuple):
    """A copy of a notebook or a settings file: its directory, and the file in it."""

    directory: str
    path: str


def begin_draft(place: str, name: str, content: bytes) -> Draft:
    """Make a draft of the notebook or settings file `name` in the directory `place`: the directory of the draft is
    0700, the file 0600.
    """
    directory = os.path.join(place, DRAFT_PREFIX + os.urandom(6).hex())
    atomic.make_new_directory(directory)
    draft = Draft(directory, os.path.join(directory, name))
    try:
        atomic.write_file(draft.path, content)
    except BaseException:
        discard_draft(draft)
        raise
    return draft


def read_draft(draft: Draft) -> bytes:
    """The content of a draft. Raises `Refused` if it no longer exists, or is not a file."""
    try:
        return atomic.read_file(draft.path)
    except (FileNotFoundError, NotADirectoryError):
        with suppress(OSError):
            os.rmdir(draft.directory)
        raise Refused(f"The editor removed the file ({draft.path}), so nothing was changed.", code="no_draft") from None


def discard_draft(draft: Draft) -> None:
    """Remove a draft, and files that an editor left beside it."""
    remove_tree(draft.directory)


def drafts_left(profile: ProfilePaths) -> list[str]:
    """The files of all drafts of a profile, sorted: of open edits and of interrupted ones."""
    try:
        directories = sorted(entry for entry in os.listdir(profile.directory) if entry.startswith(DRAFT_PREFIX))
    except FileNotFoundError:
        return []
    paths = []
    for directory in directories:
        place = os.path.join(profile.directory, directory)
        try:
            # Backup files of an editor are hidden, or have a tilde after their name.
            paths += [
                os.path.join(place, name)
                for name in sorted(os.listdir(place))
                if not name.startswith(".") and not name.endswith("~")
            ]
        except (FileNotFoundError, NotADirectoryError):
            continue
    return paths


class NotebookLine(NamedTuple):
    """A removed line: the notebook's name, the number from 1, and the whole line, its end included."""

    file: str
    line: int
    text: bytes


class ForgottenLines(NamedTuple):
    """The removed lines. `before` is the checkpoint with the lines, `after` the one without, `session` their session.

    `undoable` says whether `before` contains them; it does not if checkpoints leave the notebooks out.
    """

    lines: list[NotebookLine]
    before: Record
    after: Record | None
    session: str
    undoable: bool
    notes: list[str]


class TextNotFound(NotFound):
    code = "memory_text_not_found"


def lines_to_forget(memory: Memory, request: ForgetRequest) -> list[NotebookLine]:
    """The lines to be removed. Raises `TextNotFound` if there are none, `MemoryNotFound` if there is no such file."""
    lines = _lines(_read(memory, request), request)
    if lines:
        return lines
    where = f"in {request.file!r}" if request.file is not None else "in the notebooks"
    hint = "`deepctl memory search` finds lines by their words."
    if not request.ignore_case and _lines(_read(memory, request), request._replace(ignore_case=True)):
        hint = "It exists with other upper and lower case letters: --ignore-case removes these lines too."
    raise TextNotFound(f"No line {where} contains {os.fsdecode(request.text)!r}.", hint)


def _read(memory: Memory, request: ForgetRequest) -> list[Notebook]:
    """The selected notebooks, with their content."""
    if request.file is not None:
        return [memory.read(request.file)]
    notebooks = []
    for notebook in memory.notebooks():
        try:
            notebooks.append(memory.read(notebook.name))
        except MemoryNotFound:
            continue  # just removed
    return notebooks


def _lines(notebooks: list[Notebook], request: ForgetRequest) -> list[NotebookLine]:
    return [
        NotebookLine(notebook.name, number, line)
        for notebook in notebooks
        for number, line in lines_with(notebook.content, request.text, ignore_case=request.ignore_case)
    ]


def can_undo(memory: Memory, exclude: list[str]) -> bool:
    """Whether checkpoints contain the notebooks, so that forgotten lines can be restored."""
    return not hidden_by([], exclude)(os.fsencode(memory.path(layout.NOTEBOOK)), False)


def forget(
    work: Repository, memory: Memory, request: ForgetRequest, expected_lines: list[NotebookLine]
) -> ForgottenLines:
    """Remove the lines from the notebooks. A checkpoint is made first, in session `main` if there is none.

    `expected_lines` are the lines that the user has confirmed. Raises `Refused` if other lines would be removed now. In
    that case, or if the first checkpoint cannot be made, nothing was changed.
    """
    notebooks = _read(memory, request)
    if _lines(notebooks, request) != expected_lines:
        raise Refused(
            "Another author changed the notebooks in the meantime, so nothing was done.",
            "Run the command again to see what it would remove now.",
            code="memory_changed",
        )
    session = readable_session(work) or session_catalogue.start(work.paths, session_catalogue.first_name(work.paths))
    before = work.save_now(session)
    file_names = {line.file for line in expected_lines}
    affected_notebooks = [notebook for notebook in notebooks if notebook.name in file_names]
    is_undoable = can_undo(memory, list(work.snapshots.coverage.exclude))
    if is_undoable:
        _check_kept(work, before, affected_notebooks)
    names: list[str] = []
    late: AfterCommit | None = None
    try:
        for notebook in affected_notebooks:
            after = without_lines(notebook.content, request.text, ignore_case=request.ignore_case)
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
    return ForgottenLines(expected_lines, before, last, session.name, is_undoable, notes)


def undo_command(profile: str, result: ForgottenLines) -> str | None:
    """The command that restores the memory; `None` if it cannot be undone."""
    if not result.undoable:
        return None
    # The checkpoint's session is named, because the current session may be another one by then.
    where = f"--user {profile} --session {result.session}"
    return f"deepctl checkpoints rewind {result.before.id} --only memory --exact {where}"


def _check_kept(work: Repository, record: Record, notebooks: list[Notebook]) -> None:
    """Raises `MemoryChanged` unless a checkpoint contains these notebooks as they were read."""
    for notebook in notebooks:
        entry = entry_at(work.store.objects, bytes.fromhex(record.tree), os.fsencode(notebook.path))
        if entry is None or entry.digest != hashlib.sha256(notebook.content).digest():
            raise MemoryChanged(notebook.name)
