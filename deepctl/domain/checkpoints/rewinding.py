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
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from deepctl.domain.checkpoints import index, plan, reading, restore, trees
from deepctl.domain.checkpoints.ledger import AGENT, OTHER, Ledger, Position, Record, Rewind, State, new_id
from deepctl.domain.checkpoints.objects import Objects, Scratch, Sink
from deepctl.domain.checkpoints.plan import Interval, Plan
from deepctl.domain.checkpoints.snapshots import Snapshot
from deepctl.domain.checkpoints.store import Checkpoints, Workspace, excluding
from deepctl.domain.checkpoints.trees import DIRECTORY, Change
from deepctl.domain.checkpoints.work import Work
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import catalogue
from deepctl.domain.sessions.catalogue import Session
from deepctl.errors import Damaged, NotFound, Refused, UsageError
from deepctl.files.durable import storage_error


class Conflicts(Refused):
    """A rewind would lose somebody's edit; nothing has been touched."""

    code = "conflicts"

    def __init__(self, paths: Sequence[bytes]) -> None:
        shown = ", ".join(repr(os.fsdecode(path))[1:-1] for path in paths[:5])
        more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
        super().__init__(
            f"Changed by somebody else after the agent, so nothing was touched: {shown}{more}.",
            "--force takes these back too; the checkpoint made first keeps what is there now.",
        )
        self.paths = list(paths)


class Wish(NamedTuple):
    """What is to be rewound: where to, `only` what (empty for everything), and whose work."""

    to: Record
    only: str = ""
    force: bool = False
    exact: bool = False


class Outline(NamedTuple):
    """What a rewind does. Paths are relative to the workspace; `changes` are what is made different there.

    `kept` differ from the checkpoint and stay as they are. `undone` is the first prompt that is taken back.
    """

    session: Session
    wish: Wish
    position: Position
    present: Snapshot
    goal: str
    changes: list[Change]
    conflicts: list[bytes]
    kept: list[bytes]
    messages_removed: int
    turns_removed: int
    undone: str | None

    @property
    def moves(self) -> bool:
        """Whether the conversation changes."""
        return self.wish.only in ("", "conversation") and not self._stands_there

    @property
    def _stands_there(self) -> bool:
        target = self.wish.to
        return (target.log, target.offset) == (self.position.log, self.position.offset)

    @property
    def is_nothing(self) -> bool:
        """Whether everything is as it is to be already."""
        return not self.moves and not any(not plan.same(change.before, change.after) for change in self.changes)


class Done(NamedTuple):
    """A rewind: `safety` is the checkpoint of what was before, `None` if there was nothing to do.

    Paths that were restored and deleted, and those left as they were because something was in the way.
    """

    outline: Outline
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


class Files(NamedTuple):
    """What happens to the files: see `Outline`."""

    goal: str
    plan: Plan
    kept: list[bytes]


def plan_files(
    found: Ledger,
    objects: Objects,
    sink: Sink,
    present: Snapshot,
    session: str,
    wish: Wish,
    *,
    exclude: Sequence[str],
    author: str | None,
) -> Files:
    """Find out what a rewind of a session (by its id) does to the files, changing nothing.

    `author` is who changed the workspace last: `State.by`. Raises `Damaged` if what it needs cannot be read, `Refused`
    if files are wanted and the checkpoint has none.
    """
    target = wish.to
    if wish.only == "conversation" or (not wish.only and not target.tree):
        return Files("", Plan([], []), [])
    if not target.tree:
        raise Refused(
            f"Checkpoint {target.id} keeps the conversation only, no files.",
            "`--only conversation` rewinds to it.",
            code="no_files",
        )
    now_hidden = plan.hidden_by([], excluding(exclude))

    def wanted(path: bytes) -> bool:
        return (not wish.only or plan.in_memory(path) == (wish.only == "memory")) and not now_hidden(path)

    unseen = plan.hidden_by([[os.fsdecode(one.path), one.reason] for one in present.unkept if one.is_content], None)
    now = present.tree
    if wish.exact:
        hidden = plan.hidden_by(target.unkept, excluding(target.exclude))
        planned = plan.exact(objects, now, bytes.fromhex(target.tree), wanted=wanted, hidden=hidden, unseen=unseen)
    else:
        intervals = _intervals(found, target, now, author)
        planned = plan.own_work(objects, intervals, now, session, sink, wanted=wanted, unseen=unseen)
    restore.check(objects, planned.changes)
    tree = trees.patched(objects, sink, now, planned.changes)
    left = trees.changes(objects, tree, bytes.fromhex(target.tree))
    kept = [change.path for change in left if wanted(change.path) and not _both_directories(change)]
    return Files(tree.hex(), planned, kept)


def outline(
    paths: ProfilePaths, session: Session, position: Position, present: Snapshot, wish: Wish, files: Files
) -> Outline:
    """What a rewind does, to the files and to the conversation. Raises `Damaged` if that cannot be read."""
    lost = _lost(paths, session, wish.to) if wish.only in ("", "conversation") else []
    removed = [text for message in lost if (text := catalogue.prompt(message)) is not None]
    return Outline(
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
        removed[0] if removed else None,
    )


def _lost(paths: ProfilePaths, session: Session, target: Record) -> list[dict[str, Any]]:
    """The messages of the session that are not in the target's conversation."""
    now = [entry.message for entry in catalogue.read(session).messages]
    then = [entry.message for entry in reading.conversation_at(paths, target).messages]
    shared = 0
    while shared < min(len(now), len(then)) and now[shared] == then[shared]:
        shared += 1
    return now[shared:]


def _both_directories(change: Change) -> bool:
    return all(entry is not None and entry.kind == DIRECTORY for entry in change[1:])


def _intervals(found: Ledger, target: Record, now: bytes, author: str | None) -> list[Interval]:
    """The time since the target: from one look at the workspace to the next, and to now."""
    start = next((number for number, state in enumerate(found.states) if state.id == target.id), None)
    if start is None:
        raise Damaged(f"Checkpoint {target.id} has lost its place in time.", "`deepctl checkpoints verify` tells more.")
    states = [*found.states[start:], State("", now.hex(), author, [], [], [])]
    return [
        Interval(
            bytes.fromhex(before.tree),
            bytes.fromhex(after.tree),
            after.by,
            [(by, frozenset(map(os.fsencode, paths))) for by, paths in after.merged],
            plan.hidden_by(before.unkept, excluding(before.exclude)),
        )
        for before, after in pairwise(states)
    ]


def rewind(
    work: Work, session: Session, wish: Wish, *, position: Position | None = None, author: str | None = None
) -> Done:
    """Rewind a session. Raises `Conflicts` before anything is touched, `Damaged`, or `StorageError`.

    In the middle of a turn, `position` and `author` (`AGENT`) say how far it has come and whose work that is.
    """
    if author is None:
        author = work.between()
        session = catalogue.find(work.paths, session.name)
    if position is None:
        position = reading.position(session, catalogue.read(session))
    by = {AGENT: session.id, OTHER: ""}.get(author)
    store, exclude = work.store, work.workspace.exclude
    with store.adding() as batch:
        present = store.snapshot(work.workspace, batch)
        files = plan_files(work.ledger, store.objects, batch, present, session.id, wish, exclude=exclude, author=by)
        done = outline(work.paths, session, position, present, wish, files)
        if done.conflicts and not wish.force:
            raise Conflicts(done.conflicts)
        if done.is_nothing:
            return Done(done, None, [], [], [])
    parent = reading.head(work.ledger, session)
    safety = store.record(position, "rewind", author, present, batch, work.workspace, parent=parent)
    moved = os.urandom(8).hex() if done.moves else position.log
    intent = begin(store, safety, wish, done.goal, moved, batch.pack)
    index.add(work.paths, work.ledger, safety, session.name)
    restored = carry_out(store, work.paths.workspace, intent, done.changes, _Move(work, session))
    return Done(done, safety, restored.written, restored.deleted, restored.kept)


def begin(store: Checkpoints, safety: Record, wish: Wish, goal: str, log_id: str, pack: str) -> Rewind:
    """Record the state before a rewind, and that it is about to be done."""
    head = wish.to.id if wish.only in ("", "conversation") else safety.id
    intent = Rewind(
        new_id(), safety.created_at, safety.session, safety.id, wish.to.id, wish.only, goal, log_id, head, pack
    )
    store.writer.begin(safety, intent)
    return intent


class Conversation(Protocol):
    """What moves when a rewind is carried out, beside the files."""

    def there(self, intent: Rewind) -> None:
        """Go on where the rewind leads; doing it again changes nothing."""
        ...

    def back(self, intent: Rewind) -> None:
        """Go on as before."""
        ...


class _Move:
    """The session goes on in another log."""

    def __init__(self, work: Work, session: Session) -> None:
        self._records = work.ledger.records
        self._session = session

    def there(self, intent: Rewind) -> None:
        """Go on in the log of the intent, which begins where the target stands."""
        target = self._records[intent.to]
        catalogue.branch(self._session, intent.log, target.log, target.offset)

    def back(self, intent: Rewind) -> None:
        """Go on in the log there was."""
        catalogue.unbranch(self._session, self._records[intent.safety].log, intent.log)


def undo(work: Work, session: Session, *, force: bool = False) -> Done:
    """Take the last rewind of a session back; an undo too, which does what it had undone again.

    Raises `NotFound` if there is none, or what was before it has been removed.
    """
    return rewind(work, session, undoing(work.ledger, session)._replace(force=force))


def undoing(found: Ledger, session: Session) -> Wish:
    """What taking back the last rewind of a session means. Raises `NotFound`."""
    last = found.last_rewind(session.id)
    if last is None:
        raise NotFound(f"Session {session.name!r} has no rewind to undo.", code="nothing_to_undo")
    safety = found.records.get(last.safety)
    if safety is None:
        raise NotFound(
            f"The state before the last rewind, checkpoint {last.safety}, has been removed.",
            "`deepctl checkpoints list` shows what there is.",
            code="nothing_to_undo",
        )
    return Wish(safety, last.only)


def carry_out(
    store: Checkpoints, root: str, intent: Rewind, changes: list[Change], conversation: Conversation
) -> restore.Restored:
    """Do what the intent says; if the workspace cannot be changed, take back what was done and raise `StorageError`."""
    restored = restore.Restored([], [], [])
    try:
        if changes:
            restored = restore.apply(root, store.objects, changes, intent.id)
            excused = {path for path, _ in restored.kept}
            wrong = [path for path in restore.unmet(root, store.objects, changes) if path not in excused]
            restored.kept.extend((path, "somebody changed it meanwhile") for path in wrong)
        conversation.there(intent)
    except OSError as error:
        back = [Change(change.path, change.after, change.before) for change in changes]
        restore.sweep(root, (change.path for change in changes), intent.id)
        restore.apply(root, store.objects, back, intent.id)
        conversation.back(intent)
        store.writer.abandon(intent)
        raise storage_error(error, "Nothing was rewound; everything is as it was.") from error
    store.writer.finish(intent)
    return restored


def recover(work: Work) -> list[str]:
    """Finish the rewind that a killed command left; returns what the user should know about it.

    A path that is neither as before nor as intended was edited since and stays as it is. Raises `StorageError`.
    """
    intent = work.ledger.unfinished
    if intent is None:
        return []
    name = catalogue.by_id(work.paths).get(intent.session)
    if name is None:
        raise Damaged("A rewind was interrupted, and its session is gone.", "`deepctl checkpoints verify` tells more.")
    return finish_files(work.store, work.workspace, intent, _Move(work, catalogue.find(work.paths, name)))


def finish_files(store: Checkpoints, workspace: Workspace, intent: Rewind, conversation: Conversation) -> list[str]:
    """The same for any store and workspace."""
    objects, root = store.objects, workspace.root
    safety = store.ledger.records[intent.safety]
    wanted: list[Change] = []
    foreign: list[bytes] = []
    if intent.tree:
        meant = list(trees.changes(objects, bytes.fromhex(safety.tree), bytes.fromhex(intent.tree)))
        restore.sweep(root, (change.path for change in meant), intent.id)
        now = store.snapshot(workspace, Scratch(objects)).tree
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


def _is_ours(current: trees.Entry | None, change: Change) -> bool:
    """Whether a path is as before, or on the way to what was intended."""
    if plan.same(current, change.before):
        return True
    if current is None:
        # What is of another kind goes before what replaces it comes.
        return change.before is not None and change.after is not None and change.before.kind != change.after.kind
    kinds = {entry.kind for entry in (change.before, change.after) if entry is not None}
    return current.kind == DIRECTORY and DIRECTORY in kinds


def _directories_above(objects: Objects, safety: Record, changes: list[Change]) -> list[Change]:
    """The directories above the changes that are in none: they may have been opened up, and get their modes back."""
    tree = bytes.fromhex(safety.tree)
    known = {change.path for change in changes}
    found: dict[bytes, Change] = {}
    for change in changes:
        path = change.path
        while path := os.path.dirname(path):
            entry = plan.entry_at(objects, tree, path)
            if path not in known and entry is not None and entry.kind == DIRECTORY:
                found[path] = Change(path, entry, entry)
    return list(found.values())
