"""Carrying out a rewind that is on record: entirely, or not at all, whatever kills it in between.

What is done twice changes nothing the second time, so whoever opens the profile next finishes what a kill interrupted.
What cannot be done (a directory that may not be written) is taken back.
"""

from __future__ import annotations

import os
from typing import Protocol

from deepctl.errors import Damaged, Interrupted
from deepctl.files import atomic
from deepctl.files.atomic import storage_error
from deepctl.store import restore, restore_checks, rewind_plan, session_catalogue, trees
from deepctl.store.checkpoint_store import Checkpoints, WorkspaceOptions
from deepctl.store.object_store import ObjectReader, ScratchWriter
from deepctl.store.records import Record, Rewind
from deepctl.store.repository import Repository
from deepctl.store.session_record import Session
from deepctl.store.trees import DIRECTORY, TreeChange

NOTHING_DONE = "Nothing was rewound; everything is as it was."


class HeadMove(Protocol):
    """What moves when a rewind is carried out, beside the files."""

    def there(self, intent: Rewind) -> None:
        """Go on where the rewind leads; doing it again changes nothing."""
        ...

    def back(self, intent: Rewind) -> None:
        """Go on as before."""
        ...


class RewindIntent:
    """The session goes on in another log."""

    def __init__(self, work: Repository, session: Session) -> None:
        self._records = work.ledger.records
        self._session = session

    def there(self, intent: Rewind) -> None:
        """Go on in the log of the intent, which begins where the target stands."""
        session_catalogue.branch(self._session, intent.log, self._records[intent.to].point)

    def back(self, intent: Rewind) -> None:
        """Go on in the log there was."""
        session_catalogue.unbranch(self._session, self._records[intent.safety].log, intent.log)


def carry_out(
    store: Checkpoints, root: str, intent: Rewind, changes: list[TreeChange], conversation: HeadMove
) -> restore.Restored:
    """Do what the intent says; if the workspace cannot be changed, take back what was done and raise `StorageError`."""
    restored = restore.Restored([], [], [])
    try:
        if changes:
            restored = restore.apply(root, store.objects, changes, intent.id)
            excused = {path for path, _ in restored.kept}
            wrong = [path for path in restore_checks.unmet(root, store.objects, changes) if path not in excused]
            restored.kept.extend((path, "somebody changed it meanwhile") for path in wrong)
        conversation.there(intent)
    except (OSError, KeyboardInterrupt) as error:
        with atomic.after_commit("The rewind has begun", atomic.FINISHED_NEXT):
            _take_back(store, root, intent, changes, conversation)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("Interrupted; nothing was rewound, and everything is as it was.") from None
        raise storage_error(error, NOTHING_DONE) from error
    with atomic.after_commit(rest=atomic.FINISHED_NEXT):
        store.writer.finish(intent)
    return restored


def _take_back(
    store: Checkpoints, root: str, intent: Rewind, changes: list[TreeChange], conversation: HeadMove
) -> None:
    try:
        back = [TreeChange(change.path, change.after, change.before) for change in changes]
        restore.sweep(root, (change.path for change in changes), intent.id)
        restore.apply(root, store.objects, back, intent.id)
        conversation.back(intent)
        store.writer.abandon(intent)
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted twice, in the middle of a rewind.",
            "The next command that changes something in this profile finishes it; `deepctl checkpoints undo` takes it "
            "back.",
        ) from None


def recover(work: Repository) -> list[str]:
    """Finish the rewind that a killed command left; returns what the user should know about it.

    A path that is neither as before nor as intended was edited since and stays as it is. Raises `StorageError`.
    """
    intent = work.ledger.unfinished
    if intent is None:
        return []
    name = session_catalogue.by_id(work.paths).get(intent.session)
    if name is None:
        return [_gave_up(work, intent, "its session is gone.")]
    if intent.to not in work.ledger.records:
        return [_gave_up(work, intent, "what it led to has been removed.")]
    try:
        return finish_files(
            work.store, work.workspace, intent, RewindIntent(work, session_catalogue.find(work.paths, name))
        )
    except Damaged as error:
        return [_gave_up(work, intent, error.message)]


def _gave_up(work: Repository, intent: Rewind, reason: str) -> str:
    work.store.writer.give_up(intent)
    return (
        f"A rewind that was interrupted can be neither finished nor taken back: {reason} What was before it is "
        f"checkpoint {intent.safety}, what it led to {intent.to}."
    )


def finish_files(store: Checkpoints, workspace: WorkspaceOptions, intent: Rewind, conversation: HeadMove) -> list[str]:
    """The same for any store and workspace."""
    objects, root = store.objects, workspace.root
    safety = store.ledger.records[intent.safety]
    wanted: list[TreeChange] = []
    foreign: list[bytes] = []
    if intent.tree:
        meant = list(trees.changes(objects, bytes.fromhex(safety.tree), bytes.fromhex(intent.tree)))
        restore.sweep(root, (change.path for change in meant), intent.id)
        now = store.snapshot(workspace, ScratchWriter(objects)).tree
        current = {change.path: change.before for change in trees.changes(objects, now, bytes.fromhex(intent.tree))}
        for change in meant:
            if change.path in current and not _is_ours(current[change.path], change):
                foreign.append(change.path)
            else:
                wanted.append(change)
        objects.scratch.clear()
    carry_out(store, root, intent, [*_directories_above(objects, safety, wanted), *wanted], conversation)
    notes = ["A rewind that was interrupted has been finished."]
    if foreign:
        shown = ", ".join(repr(os.fsdecode(path))[1:-1] for path in foreign[:5])
        notes.append(f"Edited since then and left as they are: {shown}{' and more' if len(foreign) > 5 else ''}.")
    return notes


def _is_ours(current: trees.TreeEntry | None, change: TreeChange) -> bool:
    """Whether a path is as before, or on the way to what was intended."""
    if rewind_plan.same(current, change.before):
        return True
    if current is None:
        # What is of another kind goes before what replaces it comes.
        return change.before is not None and change.after is not None and change.before.kind != change.after.kind
    kinds = {entry.kind for entry in (change.before, change.after) if entry is not None}
    return current.kind == DIRECTORY and DIRECTORY in kinds


def _directories_above(objects: ObjectReader, safety: Record, changes: list[TreeChange]) -> list[TreeChange]:
    """The directories above the changes that are in none: they may have been opened up, and get their modes back."""
    tree = bytes.fromhex(safety.tree)
    known = {change.path for change in changes}
    found: dict[bytes, TreeChange] = {}
    for change in changes:
        path = change.path
        while path := os.path.dirname(path):
            entry = rewind_plan.entry_at(objects, tree, path)
            if path not in known and entry is not None and entry.kind == DIRECTORY:
                found[path] = TreeChange(path, entry, entry)
    return list(found.values())
