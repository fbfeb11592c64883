"""Rewinding a session: what it would do (`plan`), doing it, taking it back, and finishing one that was interrupted.

    snapshot of now + what the session did since the target -> plan; conflicts end it here, with nothing touched
    one pack (now, the goal's trees, merged notebooks), synced
    one line of the ledger: the safety checkpoint and the intent      <- from here on it will be done
    the workspace, path by path; then the session goes on in a new log
    one line of the ledger: done

Whoever opens the profile next finishes what a kill interrupted. What cannot be done (a directory that may not be
written) is taken back, so a rewind is done entirely or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

from deepctl.errors import Damaged, DeepctlError, NotFound, Refused, UsageError
from deepctl.files.atomic import storage_error
from deepctl.layout import ProfilePaths
from deepctl.store import (
    completion_index,
    diff,
    log_file,
    lookup,
    restore,
    restore_checks,
    rewind_plan,
    rewind_recovery,
    session_catalogue,
    trees,
)
from deepctl.store.checkpoint_store import Checkpoints, WorkspaceOptions, excluding
from deepctl.store.contents_reader import ReadOnlyRepository
from deepctl.store.ledger import Ledger
from deepctl.store.object_store import ObjectReader, ObjectWriter, ScratchWriter
from deepctl.store.records import BOTH, Position, Record, Rewind, State, new_id, state_author
from deepctl.store.repository import Repository
from deepctl.store.rewind_plan import Interval, Plan
from deepctl.store.rewind_recovery import HeadMove, RewindIntent
from deepctl.store.session_record import Session
from deepctl.store.snapshot import Snapshot
from deepctl.store.trees import DIRECTORY, TreeChange, TreeEntry

_SHOWN = 5
"""How many paths an error names; its JSON has all."""


class Conflicts(Refused):
    """A rewind would lose somebody's edit; nothing has been touched."""

    code = "conflicts"
    force = "--force takes these back too, and the checkpoint made first keeps them."

    def __init__(self, paths: Sequence[bytes], unknown: Sequence[bytes] = ()) -> None:
        why = "Changed by somebody else after the agent"
        if len(unknown) == len(paths):
            why = "Nobody can tell who changed these (a turn was killed, or kept no checkpoints)"
        super().__init__(
            f"{why}, so nothing was touched: {_shown(paths)}.",
            f"{'--dry-run lists them all; ' if len(paths) > _SHOWN else ''}{self.force}",
        )
        self.paths = list(paths)

    def document(self) -> dict[str, object]:
        """The error as JSON, with all the paths."""
        return {**super().document(), "paths": [os.fsdecode(path) for path in self.paths]}


class NotKept(Refused):
    """A rewind would change what the checkpoint before it cannot keep; nothing has been touched."""

    code = "not_kept"

    def __init__(self, paths: Sequence[bytes], reason: str) -> None:
        super().__init__(
            f"In the workspace, these cannot be kept before they are changed ({reason}), so nothing was touched: "
            f"{_shown(paths)}.",
            "Give yourself the permissions back (chmod u+rwX), or move them out of the workspace, and try again.",
        )
        self.paths = list(paths)

    def document(self) -> dict[str, object]:
        """The error as JSON, with all the paths."""
        return {**super().document(), "paths": [os.fsdecode(path) for path in self.paths]}


def _shown(paths: Sequence[bytes]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(repr(os.fsdecode(path))[1:-1] for path in paths[:_SHOWN]) + more


class RewindRequest(NamedTuple):
    """What is to be rewound: where to, `only` what (empty for everything), and whose work."""

    to: Record
    only: str = ""
    force: bool = False
    exact: bool = False


class RewindPlan(NamedTuple):
    """What a rewind does. Paths are relative to the workspace; `changes` are what is made different there.

    `kept` differ from the checkpoint and stay as they are. `undone` is the first prompt that is taken back. Messages
    and turns leave the conversation (`removed`), or come back into it (`restored`). `unread` are paths of the changes
    at which what is there cannot be read. `refusal` is why the rewind is not done.
    """

    session: Session
    wish: RewindRequest
    position: Position
    present: Snapshot
    goal: str
    changes: list[TreeChange]
    conflicts: list[bytes]
    kept: list[bytes]
    messages_removed: int
    turns_removed: int
    messages_restored: int
    turns_restored: int
    undone: str | None
    unread: list[bytes]
    refusal: DeepctlError | None = None

    def check(self) -> None:
        """Raises the error with which the rewind is refused, if it is."""
        if self.refusal is not None:
            raise self.refusal

    @property
    def moves(self) -> bool:
        """Whether the conversation changes."""
        return bool(self.messages_removed or self.messages_restored)

    @property
    def is_nothing(self) -> bool:
        """Whether everything is as it is to be already."""
        return (
            self.refusal is None
            and not self.moves
            and not any(not rewind_plan.same(change.before, change.after) for change in self.changes)
        )


class RewindResult(NamedTuple):
    """A rewind: `safety` is the checkpoint of what was before, `None` if there was nothing to do.

    Paths that were restored and deleted, and those left as they were because something was in the way.
    """

    outline: RewindPlan
    safety: Record | None
    restored: list[bytes]
    deleted: list[bytes]
    in_the_way: list[tuple[bytes, str]]


def check_session(found: Ledger, session: Session, target: Record, names: dict[str, str]) -> None:
    """Raises `UsageError` if the target is not of this session, nor of one it was forked from."""
    ancestors = {record.id for record in found.line_of(session.forked_from)}
    if target.session != session.id and target.id not in ancestors:
        other = names.get(target.session)
        raise UsageError(
            f"Checkpoint {target.id} belongs to another session{f', {other!r}' if other else ''}.",
            f"Add --session {other}." if other else "That session is gone; `deepctl checkpoints fork` still works.",
            code="other_session",
        )


class RewindFiles(NamedTuple):
    """What happens to the files: see `RewindPlan`."""

    goal: str
    plan: Plan
    kept: list[bytes]
    refusal: DeepctlError | None = None

    def check(self) -> None:
        """Raises the error with which the rewind is refused, if it is."""
        if self.refusal is not None:
            raise self.refusal


def plan_files(
    found: Ledger,
    objects: ObjectReader,
    sink: ObjectWriter,
    present: Snapshot,
    session: str,
    wish: RewindRequest,
    *,
    workspace: WorkspaceOptions,
    author: str | None,
    content: Callable[[bytes, TreeEntry], bytes] | None = None,
) -> RewindFiles:
    """Find out what a rewind of a session (by its id) does to the files, changing nothing.

    This is the one place that decides whether it may be done: for the rewind itself, for what only shows it, for the
    agent and for applications.
    `author` is who changed the workspace last: `State.by`; `content` as in `plan.own_work`. Raises `Damaged` if what it
    needs cannot be read, `Refused` if files are wanted and the checkpoint has none.
    """
    target = wish.to
    if wish.only != "conversation":
        is_both = target.lost == BOTH
        lookup.check_files(
            target, lookup.OTHER_CHECKPOINTS_HINT if is_both else "`--only conversation` goes back to its messages."
        )
    if wish.only == "conversation" or (not wish.only and not target.tree):
        return RewindFiles("", Plan([], []), [])
    if not target.tree:
        raise Refused(
            f"Checkpoint {target.id} keeps the conversation only, no files.",
            "`--only conversation` rewinds to it.",
            code="no_files",
        )
    now_hidden = rewind_plan.hidden_by([], excluding(workspace.exclude))

    def wanted(path: bytes) -> bool:
        return (not wish.only or rewind_plan.in_memory(path) == (wish.only == "memory")) and not now_hidden(path)

    unread = [one.path for one in present.unkept if one.is_content]
    now = present.tree

    def exactly() -> Plan:
        hidden = rewind_plan.hidden_by(target.unkept, excluding(target.exclude))
        made = rewind_plan.exact(objects, now, bytes.fromhex(target.tree), wanted=wanted, hidden=hidden, unseen=unread)
        restore_checks.readable(objects, made.changes)
        return made

    if wish.exact:
        planned = exactly()
    else:
        unseen = rewind_plan.hidden_by([[os.fsdecode(path), ""] for path in unread], None)
        try:
            intervals = _intervals(found, target, now, author)
            planned = rewind_plan.own_work(
                objects, intervals, now, session, sink, wanted=wanted, unseen=unseen, content=content
            )
            restore_checks.readable(objects, planned.changes)
        except Damaged as error:
            with suppress(Damaged):
                exactly()
                error.hint = "`--exact` needs only the checkpoint itself, not what happened since."
            raise
    tree = trees.patched(objects, sink, now, planned.changes)
    left = trees.changes(objects, tree, bytes.fromhex(target.tree))
    changed = {change.path for change in planned.changes}
    kept = [one.path for one in left if wanted(one.path) and one.path not in changed and not _is_directory(one)]
    # What cannot be read may well differ, and is no part of either tree.
    known = {*changed, *(os.fsencode(path) for path, _ in target.unkept)}
    kept += [path for path in unread if wanted(path) and path not in known]
    return RewindFiles(tree.hex(), planned, kept, _refusal(objects, workspace.root, present, planned, wish))


def _refusal(
    objects: ObjectReader, root: str, present: Snapshot, planned: Plan, wish: RewindRequest
) -> DeepctlError | None:
    """Why a rewind must not, or cannot, be done. `--force` and `--exact` override authors, never what is not kept."""
    effective = [change for change in planned.changes if not rewind_plan.same(change.before, change.after)]
    try:
        if planned.unsaved:
            raise NotKept(planned.unsaved, _reason(present, planned.unsaved[0]))
        if planned.conflicts and not wish.force:
            raise Conflicts(planned.conflicts, planned.unknown)
        restore_checks.saved(objects, effective)
        restore_checks.writable(root, effective)
    except DeepctlError as error:
        return error
    except OSError as error:
        return storage_error(error, rewind_recovery.NOTHING_DONE)
    return None


def _reason(present: Snapshot, path: bytes) -> str:
    return next(
        one.reason for one in present.unkept if one.is_content and (path + b"/").startswith(one.path + b"/")
    ).lower()


def outline(
    paths: ProfilePaths,
    session: Session,
    position: Position,
    present: Snapshot,
    wish: RewindRequest,
    files: RewindFiles,
) -> RewindPlan:
    """What a rewind does, to the files and to the conversation. Raises `Damaged` if that cannot be read."""
    if wish.only in ("", "conversation") and wish.to.log and not log_file.is_in(session.directory, wish.to.log):
        raise Refused(
            f"The messages of checkpoint {wish.to.id} are not part of session {session.name!r}.",
            "`deepctl checkpoints fork` begins a session with them.",
            code="other_session",
        )
    lost, found = _parted(paths, session, wish.to) if wish.only in ("", "conversation") else ([], [])
    removed, restored = _prompts(lost), _prompts(found)
    return RewindPlan(
        session,
        wish,
        position,
        present,
        files.goal,
        files.plan.changes,
        files.plan.conflicts,
        files.kept,
        len(lost),
        len(removed),
        len(found),
        len(restored),
        removed[0] if removed else None,
        files.plan.unsaved,
        files.refusal,
    )


def _prompts(messages: list[dict[str, Any]]) -> list[str]:
    return [text for message in messages if (text := session_catalogue.prompt(message)) is not None]


def _parted(paths: ProfilePaths, session: Session, target: Record) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages of the session that are not in the target's conversation, and the reverse."""
    now = [entry.message for entry in session_catalogue.read(session).messages]
    then = [entry.message for entry in lookup.conversation_at(paths, target).messages]
    shared = 0
    while shared < min(len(now), len(then)) and now[shared] == then[shared]:
        shared += 1
    return now[shared:], then[shared:]


def _is_directory(change: TreeChange) -> bool:
    return any(entry is not None and entry.kind == DIRECTORY for entry in change[1:])


def _intervals(found: Ledger, target: Record, now: bytes, author: str | None) -> list[Interval]:
    """The time since the target: from one look at the workspace to the next, and to now."""
    # The last of that id: an application may save one again.
    start = max((number for number, state in enumerate(found.states) if state.id == target.id), default=None)
    if start is None:
        raise Damaged(f"Checkpoint {target.id} has lost its place in time.", "`deepctl checkpoints verify` tells more.")
    states = [*found.states[start:], State("", now.hex(), author, [], [], [])]
    return [rewind_plan.interval(before, after) for before, after in pairwise(states)]


def preview(
    reader: ReadOnlyRepository, session: Session, wish: RewindRequest, workspace: WorkspaceOptions
) -> RewindPlan:
    """What a rewind would do, and whether it would be refused: without the lock, and without changing anything."""
    present = reader.present(workspace.exclude, workspace.report)
    files = plan_files(
        reader.ledger,
        reader.objects,
        reader.sink,
        present,
        session.id,
        wish,
        workspace=workspace,
        author=lookup.last_author(reader.paths, reader.ledger),
        content=diff.present(workspace.root, reader.objects),
    )
    return outline(
        reader.paths, session, lookup.position(session, session_catalogue.read(session)), present, wish, files
    )


def check(work: Repository, session: Session, wish: RewindRequest, author: str) -> None:
    """Raises the error with which a rewind in the middle of a turn would be refused, if it would be."""
    objects = work.store.objects
    scratch = ScratchWriter(objects)
    try:
        plan_files(
            work.ledger,
            objects,
            scratch,
            work.store.snapshot(work.workspace, scratch),
            session.id,
            wish,
            workspace=work.workspace,
            author=state_author(author, session.id),
            content=diff.present(work.workspace.root, objects),
        ).check()
    finally:
        objects.scratch.clear()


def rewind(
    work: Repository,
    session: Session,
    wish: RewindRequest,
    *,
    position: Position | None = None,
    author: str | None = None,
) -> RewindResult:
    """Rewind a session. Raises `Conflicts` or `NotKept` before anything is touched, `Damaged`, or `StorageError`.

    In the middle of a turn, `position` and `author` (`AGENT`) say how far it has come and whose work that is.
    """
    if author is None:
        author = work.between()
        session = session_catalogue.find(work.paths, session.name)
    if position is None:
        position = lookup.position(session, session_catalogue.read(session))
    by = state_author(author, session.id)
    store = work.store
    with store.new_batch() as batch:
        present = store.snapshot(work.workspace, batch)
        files = plan_files(
            work.ledger, store.objects, batch, present, session.id, wish, workspace=work.workspace, author=by
        )
        done = outline(work.paths, session, position, present, wish, files)
        done.check()
        if done.is_nothing:
            batch.drop()
            return RewindResult(done, None, [], [], [])
    with store.counting(batch):
        parent = lookup.head(work.ledger, session)
        safety = store.record(position, "rewind", author, present, batch, work.workspace, parent=parent)
        moved = os.urandom(8).hex() if done.moves else position.log
        intent = begin(store, safety, wish, done.goal, moved, batch.pack)
    completion_index.add(work.paths, work.ledger, safety, session.name)
    restored = rewind_recovery.carry_out(store, work.paths.workspace, intent, done.changes, RewindIntent(work, session))
    # A directory that stays because somebody's file is in it is no news; the file is.
    in_the_way = [(path, reason) for path, reason in restored.kept if reason != restore.IN_USE]
    return RewindResult(done, safety, restored.written, restored.deleted, in_the_way)


def rewind_files(
    store: Checkpoints,
    workspace: WorkspaceOptions,
    position: Position,
    wish: RewindRequest,
    author: str,
    conversation: HeadMove,
) -> restore.Restored | None:
    """Rewind the files of an application, whose conversation is its own; `None` if there is nothing to do.

    Raises as `rewind` does.
    """
    with store.new_batch() as batch:
        present = store.snapshot(workspace, batch)
        by = state_author(author, position.session)
        files = plan_files(
            store.ledger, store.objects, batch, present, position.session, wish, workspace=workspace, author=by
        )
        files.check()
        if present.tree.hex() == files.goal:
            batch.drop()
            return None
    with store.counting(batch):
        safety = store.record(position, "rewind", author, present, batch, workspace)
        intent = begin(store, safety, wish, files.goal, position.log, batch.pack, workspace.root)
    return rewind_recovery.carry_out(store, workspace.root, intent, files.plan.changes, conversation)


def begin(
    store: Checkpoints, safety: Record, wish: RewindRequest, goal: str, log_id: str, pack: str, root: str = ""
) -> Rewind:
    """Record the state before a rewind, and that it is about to be done."""
    head = wish.to.id if wish.only in ("", "conversation") else safety.id
    intent = Rewind(
        new_id(), safety.created_at, safety.session, safety.id, wish.to.id, wish.only, goal, log_id, head, pack, root
    )
    store.writer.begin(safety, intent)
    return intent


def undo(work: Repository, session: Session, *, force: bool = False) -> RewindResult:
    """Take the last rewind of a session back; an undo too, which does what it had undone again.

    Raises `NotFound` if there is none, or what was before it has been removed.
    """
    return rewind(work, session, undoing(work.ledger, session)._replace(force=force))


def undoing(found: Ledger, session: Session) -> RewindRequest:
    """What taking back the last rewind of a session means. Raises `NotFound`."""
    last = found.last_rewind(session.id)
    if last is None:
        raise NotFound(
            f"Session {session.name!r} has no rewind to undo.",
            "It takes back a rewind; `deepctl checkpoints rewind '~1'` goes back a turn.",
            code="nothing_to_undo",
        )
    safety = found.records.get(last.safety)
    if safety is None:
        raise NotFound(
            f"The state before the last rewind, checkpoint {last.safety}, has been removed.",
            "`deepctl checkpoints list` shows what there is.",
            code="nothing_to_undo",
        )
    return RewindRequest(safety, last.only)
