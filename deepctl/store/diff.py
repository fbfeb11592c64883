"""The differences between two states of a workspace, by file and line, and between two checkpoints (`compare`)."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import Damaged, NotFound
from deepctl.files.atomic import is_of_machine
from deepctl.store import log_file, lookup, projects, session_catalogue, trees, workspaces
from deepctl.store.object_store import ObjectReader
from deepctl.store.records import Record, SessionRecord
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.rewind_plan import above
from deepctl.store.trees import DIRECTORY, FILE, TreeChange, TreeEntry
from deepctl.store.workspaces import Content

_LARGE = 1 << 20
_BINARY_PEEK = 8000
_MOST_COUNTED = 200
_MOST_BYTES = 4 << 20
"""The most files, and bytes of both sides, whose lines are counted at the end of a turn."""
_OWN = (b".deep/", os.fsencode(f"{layout.EVICTED_DIRECTORY}/"))
_NOTEBOOKS = os.fsencode(f"{layout.MEMORY_DIRECTORY}/")


class Turn(NamedTuple):
    """A turn that only one of two conversations has."""

    turn: int
    prompt: str


class CheckpointComparison(NamedTuple):
    """The differences between two checkpoints, or between one and the present state if `after` is `None`.

    `remark` is the reason if files are not compared.
    """

    before: Record
    after: Record | None
    differences: list[FileDifference]
    turns_removed: list[Turn]
    turns_added: list[Turn]
    remark: str | None


class FileDifference(NamedTuple):
    """One path that differs between two states.

    `change` is `added`, `deleted`, `modified`, `mode` (only the permission bits) or `type` (a file became a link, …).
    If both sides are text, lines are counted, and `diff` is a unified diff; otherwise `remark` is the reason.
    """

    path: str
    change: str
    before: TreeEntry | None
    after: TreeEntry | None
    added_lines: int | None
    removed_lines: int | None
    diff: bytes
    remark: str | None


def read_from_store(objects: ObjectReader) -> Content:
    """Reads from the store."""
    return lambda path, entry: objects.read(entry.digest)


def differences(
    changes: Iterable[TreeChange], before: Content, after: Content, project: str = ""
) -> Iterator[FileDifference]:
    """Every path that differs, in order; a new or deleted directory only if no path below it differs.

    Paths are as they are shown in a session of `project`; other projects, and coverage rules, are left out.
    """
    shown_changes = [
        change
        for change in changes
        if workspaces.is_shown(change.path, project) and not _is_dull(change) and not change.is_made_by_deepctl
    ]
    for change in without_implied(shown_changes):
        yield _difference(change, before, after, workspaces.shown(change.path, project))


def without_implied(changes: Sequence[TreeChange]) -> list[TreeChange]:
    """The changes without new and deleted directories above another changed path: that path implies them."""
    implied = {directory for change in changes for directory in above(change.path)}
    return [change for change in changes if not change.is_whole_directory or change.path not in implied]


def unread_difference(change: TreeChange, project: str = "") -> FileDifference:
    """A path whose old content cannot be read, so the difference is unknown."""
    kind = "modified" if change.after is not None else "deleted"
    name = os.fsdecode(workspaces.shown(change.path, project))
    return FileDifference(name, kind, None, change.after, None, None, b"", "cannot be read")


class LineTotals(NamedTuple):
    """The number of changed files, and of their added and removed lines; `None` if there is too much to count."""

    files: int
    added: int | None
    removed: int | None


def totals(changes: Iterable[TreeChange], content: Content, project: str = "") -> LineTotals:
    """The totals of `changes`, without deepctl's own files. Lines of binary files do not count.

    `content` reads both sides. Paths are those of a session of `project`.
    """
    shown_changes = [
        change
        for change in changes
        if not change.is_directory
        and workspaces.is_shown(change.path, project)
        and not _is_internal(change.path)
        and not _is_dull(change)
    ]
    if len(shown_changes) > _MOST_COUNTED or sum(_compared_bytes(change) for change in shown_changes) > _MOST_BYTES:
        return LineTotals(len(shown_changes), None, None)
    added = removed = 0
    for change in shown_changes:
        entries = (change.before, change.after)
        if any(entry is not None and entry.kind != FILE for entry in entries):
            continue
        before, after = (content(change.path, entry) if entry is not None else b"" for entry in entries)
        if any(b"\0" in text[:_BINARY_PEEK] for text in (before, after)):
            continue
        counts = line_counts(before, after)
        if counts is None:
            return LineTotals(len(shown_changes), None, None)
        added, removed = added + counts[0], removed + counts[1]
    return LineTotals(len(shown_changes), added, removed)


def _is_internal(path: bytes) -> bool:
    """Whether a file is deepctl's own, such as a large result. Notebooks of memory and files of a project are not."""
    is_notebook = path.startswith(_NOTEBOOKS) and path.endswith(b".md")
    return path.startswith(_OWN) and not is_notebook and workspaces.mounted(path) is None


def _compared_bytes(change: TreeChange) -> int:
    return sum(entry.size for entry in (change.before, change.after) if entry is not None)


def _is_dull(change: TreeChange) -> bool:
    _, before, after = change
    return before is not None and after is not None and before[:2] == after[:2] and before.digest == after.digest


def _difference(change: TreeChange, before: Content, after: Content, shown_path: bytes) -> FileDifference:
    path, old, new = change
    name = os.fsdecode(shown_path)
    kind = _change(old, new)
    if kind == "mode" or DIRECTORY in (old and old.kind, new and new.kind):
        return FileDifference(name, kind, old, new, 0, 0, b"", None)
    remark: str | None = None
    if any(entry is not None and entry.size > _LARGE for entry in (old, new)):
        remark = "too large to compare line by line"
    else:
        try:
            texts = [side(path, entry) if entry is not None else None for side, entry in ((before, old), (after, new))]
        except (Damaged, OSError) as error:
            if isinstance(error, OSError) and is_of_machine(error):
                raise
            remark = str(error)
        else:
            if any(text is not None and b"\0" in text[:_BINARY_PEEK] for text in texts):
                remark = "binary files differ"
            elif (text_diff := unified(name, *texts)) is not None:
                return FileDifference(name, kind, old, new, *text_diff, None)
            else:
                remark = "too many lines to compare"
    return FileDifference(name, kind, old, new, None, None, b"", remark)


def _change(before: TreeEntry | None, after: TreeEntry | None) -> str:
    if before is None:
        return "added"
    if after is None:
        return "deleted"
    if before.kind != after.kind:
        return "type"
    return "modified" if before.digest != after.digest and before.kind != DIRECTORY else "mode"


def compare(
    repository: ReadOnlyRepository, before: str | None, after: str | None, session: str | None
) -> CheckpointComparison:
    """Compare two checkpoints, or one and the present state; `before` defaults to the latest.

    References count in the session called `session`, or in the session that was used last. Raises `NotFound` and
    `Damaged`.
    """
    paths, objects = repository.paths, repository.objects
    first = _first(repository, before, session)
    second = lookup.find_checkpoint(paths, repository.ledger, after, session) if after is not None else None
    owner = _owner(repository, first)
    workspace = repository.workspace_of(owner)
    new = bytes.fromhex(second.tree) if second is not None else repository.present(owner).tree
    old = bytes.fromhex(first.tree)
    files = list(
        differences(
            trees.changes(objects, old, new) if old and new else (),
            read_from_store(objects),
            read_from_store(objects) if second is not None else workspaces.content(workspace, objects),
            first.project if owner is not None else "",
        )
    )
    turns_removed, turns_added = _turns(repository, first, second, session)
    remark = None if old and new else _no_files_remark([first] if second is None else [first, second])
    return CheckpointComparison(first, second, files, turns_removed, turns_added, remark)


def _owner(repository: ReadOnlyRepository, record: Record) -> SessionRecord | None:
    """A session that works where a checkpoint was made, for the present state; `None` for the workspace alone."""
    project = projects.of_record(repository.paths, record)
    return SessionRecord("", "", record.session, "", "", project=project) if project is not None else None


def _no_files_remark(records: list[Record]) -> str:
    if (lost_note := lookup.lost_files_note(records)) is not None:
        return f"{lost_note} Only the turns are compared."
    return "A checkpoint without files is compared, so only the turns are compared."


def _first(repository: ReadOnlyRepository, reference: str | None, session: str | None) -> Record:
    paths, ledger = repository.paths, repository.ledger
    if reference is not None:
        return lookup.find_checkpoint(paths, ledger, reference, session)
    records = [record for record in ledger.records.values() if record.tree]
    if session is not None:
        session_id = session_catalogue.find(paths, session).id
        records = [record for record in records if record.session == session_id]
    if not records:
        raise NotFound(
            "There is no checkpoint to compare with.",
            "`deepctl checkpoints save` makes one.",
            code="checkpoint_not_found",
        )
    return records[-1]


def _turns(
    repository: ReadOnlyRepository, first: Record, second: Record | None, session: str | None
) -> tuple[list[Turn], list[Turn]]:
    paths = repository.paths
    before = lookup.conversation_at(paths, first).messages
    if second is not None:
        after = lookup.conversation_at(paths, second).messages
    else:
        name = session if session is not None else session_catalogue.by_id(paths).get(first.session)
        after = session_catalogue.read(lookup.current_session(paths, name)).messages
    common_length = lookup.shared_length(before, after)
    turns_removed, turns_added = (_prompts(messages[common_length:]) for messages in (before, after))
    return turns_removed, turns_added


def _prompts(messages: list[log_file.Message]) -> list[Turn]:
    return [Turn(entry.turn, text) for entry in messages if (text := log_file.prompt(entry.message)) is not None]


MANY_LINES = 20_000
"""Two texts with more lines than this together are not compared line by line: it would take too long."""


def line_counts(before: bytes, after: bytes) -> tuple[int, int] | None:
    """The numbers of added and removed lines; `None` if there are too many lines to compare."""
    old, new = split_lines(before), split_lines(after)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    old, new = old[start : len(old) - end], new[start : len(new) - end]
    if not old or not new:
        return len(new), len(old)
    if len(old) + len(new) > MANY_LINES:
        return None
    additions = deletions = 0
    for tag, i, j, k, m in SequenceMatcher(None, old, new).get_opcodes():
        if tag != "equal":
            deletions += j - i
            additions += m - k
    return additions, deletions


def split_lines(content: bytes) -> list[bytes]:
    """The lines as `diff` and `patch` define them: only a newline ends one."""
    lines = content.split(b"\n")
    last = lines.pop()
    return [line + b"\n" for line in lines] + ([last] if last else [])


class UnifiedDiff(NamedTuple):
    """The numbers of added and removed lines, and the diff."""

    added: int
    removed: int
    diff: bytes


def unified(path: str, before: bytes | None, after: bytes | None) -> UnifiedDiff | None:
    """The diff of two contents of `path` (`None` for no file); `None` if there are too many lines to compare."""
    old, new = split_lines(before or b""), split_lines(after or b"")
    if len(old) + len(new) > MANY_LINES:
        return None
    labels = (_quoted_path(f"a/{path}") if before is not None else b"/dev/null", _quoted_path(f"b/{path}"))
    if after is None:
        labels = labels[0], b"/dev/null"
    pieces: list[bytes] = []
    additions = deletions = 0
    for number, line in enumerate(difflib.diff_bytes(difflib.unified_diff, old, new, *labels)):
        if number > 1:
            additions += line.startswith(b"+")
            deletions += line.startswith(b"-")
        pieces.append(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n")
    return UnifiedDiff(additions, deletions, b"".join(pieces))


def _quoted_path(path: str) -> bytes:
    """A path in the heading of a diff, quoted as `patch` and `git apply` read it."""
    raw = os.fsencode(path)
    if path.isascii() and path.isprintable() and '"' not in path and "\\" not in path:
        return raw + b"\t" if b" " in raw else raw
    text = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in raw)
    return f'"{text}"'.encode()
