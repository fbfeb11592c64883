"""`Repository`: the one way into a profile's sessions, workspace and checkpoints.

Repository.open(paths)         for changes. The caller holds the profile's lock. What a killed command left is finished
or removed first.
Repository.read_only(paths)    for reading: no lock, no cache written, also while a chat runs
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import Damaged, DeepctlError, Refused, SessionNotFound, StorageError
from deepctl.files import atomic, ownership
from deepctl.layout import ProfilePaths
from deepctl.store import (
    checkpoint_store,
    lookup,
    prune,
    records,
    repair,
    repair_report,
    reserve,
    session_catalogue,
    session_delete,
    session_reader,
    todo,
    trees,
)
from deepctl.store.checkpoint_store import Checkpoints, ProfileStore, WorkspaceOptions
from deepctl.store.index_db import Cache
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.pack_store import PackStore
from deepctl.store.records import AGENT, OTHER, UNKNOWN, Position, Record, Rewind, Session
from deepctl.store.session_reader import SessionReaders
from deepctl.store.trees import Report, ScratchWriter, Snapshot, encode

EVERY_TURN, EVERY_TOOL, MANUAL_ONLY = "every_turn", "every_tool", "manual_only"


class ReadOnlyRepository:
    """The contents of a profile's checkpoints and its workspace as it is now, in memory."""

    def __init__(self, paths: ProfilePaths, *, exclude: Sequence[str] = (), report: Report | None = None) -> None:
        self.paths = paths
        self.workspace = WorkspaceOptions(paths.workspace, exclude, report)
        self.ledger = session_catalogue.read_ledger(paths)
        self.cache = Cache.copy_of(paths.snapshot_cache)
        self.packs = PackStore(paths.packs, self.cache)
        self.objects: ObjectReader = self.packs
        self.sink: ObjectWriter = ScratchWriter(self.objects)

    @cached_property
    def readers(self) -> SessionReaders:
        """The readers of its conversations."""
        return SessionReaders(self.paths)

    def present(self) -> Snapshot:
        """The workspace as it is now. Its trees can be read from `objects`, its files in the workspace itself.

        Its directories are opened as a change of the profile would open them, or this could not tell what that does.
        """
        ownership.regain(self.workspace.root, layout.OWN_DIRECTORIES)
        if not os.path.isdir(self.workspace.root):
            return Snapshot(self.sink.add(encode([])), 0, 0, [])
        return trees.snapshot(
            self.workspace.root,
            self.sink,
            self.cache,
            leave_out=trees.excluding(self.workspace.exclude),
            report=self.workspace.report,
        )

    def close(self) -> None:
        """Let go of the cache."""
        self.cache.close()


class Repository(ProfileStore):
    """The sessions, the workspace and the checkpoints of one profile, open for changes.

    `policy` says when checkpoints are made without being asked for, `exclude` what of the workspace is left out.
    """

    def __init__(self, paths: ProfilePaths, *, exclude: Sequence[str], policy: str, report: Report | None) -> None:
        self.notes: list[str] = []
        """What the user should know about what a killed command left, and was done about it."""
        self.finished_rewind: list[str] = []
        """Those of them about a rewind that was finished."""
        self.policy = policy
        # Whoever took it away takes nothing with it: a rewind brings the files back.
        atomic.make_directory(paths.workspace)
        ownership.regain(paths.workspace, layout.OWN_DIRECTORIES)
        self.workspace = WorkspaceOptions(paths.workspace, exclude, report)
        self._has_released_reserve = False
        store = Checkpoints(
            paths.checkpoints,
            cache=paths.snapshot_cache,
            ledger_cache=paths.ledger_cache,
            release_reserve=self._release_reserve,
        )
        super().__init__(paths, store)
        checkpoint_store.refresh_index(paths, self.ledger)

    @classmethod
    @contextmanager
    def open(
        cls,
        paths: ProfilePaths,
        *,
        exclude: Sequence[str] = (),
        policy: str = EVERY_TOOL,
        report: Report | None = None,
        frees: bool = False,
    ) -> Iterator[Repository]:
        """A profile, open for changes; `notes` say what was left to finish. The caller holds the profile's lock.

        Raises `StorageError` if what was left cannot be finished. What `frees` space gets the room of the reserve, and
        does not wait for an interrupted rewind that finds no room.
        """
        if _has_interrupted_repair(paths):
            repair.finish(paths)
        checkpoint_store.remove_leftovers(paths)
        with reserve.room(paths) if frees and _is_nearly_full(paths) else nullcontext():
            session_catalogue.join_logs(session_catalogue.directories(paths))
            repository = cls(paths, exclude=exclude, policy=policy, report=report)
            try:
                repository._finish_interrupted(frees)
                yield repository
            finally:
                repository.store.close()
                if frees and repository._has_released_reserve:
                    reserve.take_back(paths)

    @staticmethod
    @contextmanager
    def read_only(
        paths: ProfilePaths, *, exclude: Sequence[str] = (), report: Report | None = None
    ) -> Iterator[ReadOnlyRepository]:
        """A profile for reading."""
        repository = ReadOnlyRepository(paths, exclude=exclude, report=report)
        try:
            yield repository
        finally:
            repository.close()

    def _finish_interrupted(self, frees: bool) -> None:
        try:
            self.finished_rewind = self._finish_rewind()
        except (OSError, StorageError) as error:
            if not frees or not atomic.is_full(error):
                raise
            self.finished_rewind = [
                "A rewind was interrupted, and there is no space to finish it. The next command that changes "
                "something finishes it."
            ]
        self.notes = list(self.finished_rewind)
        if session_catalogue.pending_deletions(self.paths):
            self.notes += session_delete.recover(self)
        if self.ledger.ends_in_removal:
            prune.collect_logs(self.paths, self.ledger)
        if not frees:
            if not _is_reserve_whole(self.paths):
                reserve.hold(self.paths)
            self.notes += _rewrite_session_records(self.paths)
            self._tie()

    def _finish_rewind(self) -> list[str]:
        """Finish the rewind that a killed command left; returns what the user should know about it.

        A path that is neither as before nor as intended was edited since and stays as it is. Raises `StorageError`.
        """
        intent = self.ledger.unfinished
        if intent is None:
            return []
        name = session_catalogue.by_id(self.paths).get(intent.session)
        if name is None:
            return [self._give_up(intent, "its session no longer exists.")]
        if intent.to not in self.ledger.records:
            return [self._give_up(intent, "its target checkpoint has been removed.")]
        try:
            head = SessionHead(self, session_catalogue.find(self.paths, name))
            return self.store.finish_rewind(self.workspace, intent, head)
        except Damaged as error:
            return [self._give_up(intent, error.message)]

    def _give_up(self, intent: Rewind, reason: str) -> str:
        self.store.writer.give_up(intent)
        return (
            f"An interrupted rewind can be neither finished nor undone: {reason} Checkpoint {intent.safety} has "
            f"the state before it, and checkpoint {intent.to} was its target."
        )

    def _tie(self) -> None:
        """Tie the positions that 0.1 wrote to what stands before them. Where that fails, the next writer does it."""
        with suppress(DeepctlError, OSError):
            if records := self.ledger.untied():
                self.store.writer.tie(lookup.digests_of(self.paths, records))

    def _release_reserve(self) -> None:
        self._has_released_reserve |= reserve.release(self.paths)

    @cached_property
    def readers(self) -> SessionReaders:
        """The readers of its conversations."""
        return SessionReaders(self.paths)

    @property
    def objects(self) -> ObjectReader:
        """The contents of the checkpoints."""
        return self.store.objects

    @property
    def sink(self) -> ObjectWriter:
        """Where trees go that are only looked at; they can be read from `objects` until its scratch is cleared."""
        return ScratchWriter(self.store.objects)

    def present(self) -> Snapshot:
        """The workspace as it is now, without keeping it."""
        return self.store.snapshot(self.workspace, self.sink)

    def session(self, name: str) -> Session | None:
        """The session of that name, or `None` if it is damaged."""
        try:
            return session_catalogue.find(self.paths, name)
        except DeepctlError:
            return None

    def head(self, session: Session) -> Record | None:
        """The checkpoint at which a session stands."""
        return next(self.ledger.line(self.ledger.head(session)), None)

    def save(
        self,
        session: Session,
        kind: str,
        position: Position,
        *,
        author: str,
        label: str = "",
        id: str | None = None,
    ) -> Record:
        """Make a checkpoint of a session as it stands and of the workspace as it is. It gets a new id without `id`."""
        record = self._save(session, kind, position, author, label=label, id=id)
        assert record is not None
        return record

    def _save(
        self,
        session: Session,
        kind: str,
        position: Position,
        author: str,
        *,
        label: str = "",
        id: str | None = None,
        unless_tree: str | None = None,
    ) -> Record | None:
        """The same; makes no checkpoint if the workspace is the tree `unless_tree`."""
        if position.log and not position.digest:
            position = lookup.with_digest(session, position)
        ownership.regain(self.paths.workspace, layout.OWN_DIRECTORIES)
        record = self.store.save(
            position,
            kind,
            author=author,
            workspace=self.workspace,
            parent=self.ledger.head(session),
            label=label,
            id=id,
            unless_tree=unless_tree,
        )
        if record is not None:
            checkpoint_store.add_to_index(self.paths, self.ledger, record, session.name)
        return record

    def save_now(self, session: Session, label: str | None = None) -> Record:
        """A checkpoint by hand, between turns. Raises `BadName` or `Refused` for the label, before anything is made."""
        if label is not None:
            self.store.writer.check_free(label)
        author = self.between()
        position = session_reader.position(session, session_catalogue.read(session))
        return self.save(session, "manual", position, author=author, label=label or "")

    def label(self, record: Record, label: str | None) -> None:
        """Name a checkpoint, or take its name away. Raises `BadName` or `Refused`."""
        self.store.writer.label(record.id, label)
        with atomic.after_commit():
            checkpoint_store.rewrite_index(self.paths, self.ledger)

    def fork(self, record: Record, name: str) -> Session:
        """Begin a session with the conversation of a checkpoint. Raises `Damaged`, or `Refused` for the name."""
        if not record.log:
            raise Refused(f"Checkpoint {record.id} has no messages.", "`deepctl chat --new` starts an empty session.")
        session = session_catalogue.fork(self.paths, name, lookup.chain_of(self.paths, record), record.id, record.point)
        with suppress(Damaged):  # the conversation is what is forked; it can be gone on with without a list
            todo.copy(self.paths, self.store.objects, record, session)
        return session

    def rename(self, old: str, new: str) -> Renamed:
        """Rename a session; to another spelling of its own name, too. A damaged session has a name like any other.

        Nothing else of a profile points at the directory by name, so one rename is enough. Raises `BadName`,
        `SessionNotFound`, or `Refused` if the name is taken.
        """
        layout.check_name(new, "session")
        current_name = session_catalogue.spelled(self.paths, old)
        if current_name is None:
            raise SessionNotFound(old, self.paths.name)
        existing_name = session_catalogue.spelled(self.paths, new)
        target = os.path.join(self.paths.sessions, new)
        if existing_name not in (None, current_name) or (existing_name is None and os.path.lexists(target)):
            raise Refused(
                f"There is already a session {existing_name or new!r}.",
                f"`deepctl sessions list --user {self.paths.name}` lists the sessions.",
                code="session_exists",
            )
        if current_name != new:
            os.rename(os.path.join(self.paths.sessions, current_name), target)
            with atomic.after_commit():
                atomic.sync_directory(self.paths.sessions)
                checkpoint_store.rewrite_index(self.paths, self.ledger)
        return Renamed(current_name, new)

    def settle_todo(self, owner: Session, session: Session, before: Position) -> Record | None:
        """Give the one to-do list of a profile of 0.1 to `owner`, the session that was written to last.

        A turn of `session` begins at `before`, which has been kept. The move is kept as work of the owner's agent, so
        that a rewind of what that has written takes the list along and sees no conflict.
        """
        if not todo.give(self.paths, owner) or self.policy == MANUAL_ONLY:
            return None
        if owner.id == session.id:
            return self.save(session, "tool", before._replace(turn=before.turn + 1), author=AGENT)
        return self.save(owner, "manual", session_reader.position(owner, session_catalogue.read(owner)), author=AGENT)

    def before_turn(self, session: Session, position: Position) -> Record | None:
        """Keep the state in which a turn begins, if it is not that of a checkpoint already."""
        if self.policy == MANUAL_ONLY:
            return None
        author = self.between()
        head = self.head(session)
        if (
            head is not None
            and not head.lost
            and head.message_count == position.message_count
            and head.turn == position.turn
        ):
            # Not the tree that was seen last: after rewinding only files, that is not the head's.
            return self._save(session, "turn", position, author, unless_tree=head.tree)
        return self._save(session, "turn", position, author)

    def before_tool(self, session: Session, position: Position) -> Record | None:
        """Keep what somebody else changed while no tool was at work: the model may have thought for minutes."""
        if self.policy != EVERY_TOOL:
            return None
        return self._save(session, "tool", position, OTHER, unless_tree=self.store.tree)

    def after_tool(self, session: Session, position: Position) -> Record | None:
        """Keep the state after a tool call, if it changed anything."""
        if self.policy != EVERY_TOOL:
            return None
        return self._save(session, "tool", position, AGENT, unless_tree=self.store.tree)

    def in_turn(self, *, tool_at_work: bool) -> str:
        """Whose what changed since the last look is, in the middle of a turn.

        The tree is kept around every tool call, so it is the agent's only while a tool is at work; where it is kept for
        turns only, all of a turn is the agent's. Where it is kept by hand only, the last look may have been long before
        the turn.
        """
        if self.policy == MANUAL_ONLY:
            return UNKNOWN
        return AGENT if tool_at_work or self.policy != EVERY_TOOL else OTHER

    def after_turn(self, session: Session, position: Position, *, tool_at_work: bool = False) -> Record | None:
        """Keep the state in which a turn ends, in the middle of a tool if it was broken off there."""
        if self.policy == MANUAL_ONLY:
            return None
        return self._save(session, "turn", position, self.in_turn(tool_at_work=tool_at_work))

    def between(self) -> str:
        """Who changed the workspace since it was last looked at, when no turn is at work.

        A turn that was killed (`SessionReaders.has_unfinished_turn`) gets its end now. What changed since its last
        checkpoint cannot be told apart. Where no checkpoints are made by themselves, nothing can.
        """
        author = OTHER
        for name in session_catalogue.all_names(self.paths):
            try:
                session = session_catalogue.find(self.paths, name)
                if not self.readers.has_unfinished_turn(session, self.ledger):
                    continue
                author = UNKNOWN
                if self.policy != MANUAL_ONLY:
                    position = session_reader.position(session, session_catalogue.read(session))
                    self._save(session, "turn", position, UNKNOWN)
                    author = OTHER
            except Damaged:
                continue  # no turn can be at work in it
        return author


class Renamed(NamedTuple):
    """The names of a session before and now."""

    before: str
    now: str


class SessionHead:
    """What a rewind moves beside the files: the session goes on in another log (`checkpoint_store.HeadMove`)."""

    def __init__(self, repository: ProfileStore, session: Session) -> None:
        self._records = repository.ledger.records
        self._session = session

    def advance(self, intent: Rewind) -> None:
        """Go on in the log of the intent, which begins where the target stands."""
        session_catalogue.branch(self._session, intent.log, self._records[intent.to].point)

    def revert(self, intent: Rewind) -> None:
        """Go on in the log there was."""
        session_catalogue.unbranch(self._session, self._records[intent.safety].log, intent.log)


# What these tell is rarely so, and the modules that deal with it need not be run to find out that it is not.


def _has_interrupted_repair(paths: ProfilePaths) -> bool:
    try:
        return any(name.startswith(repair.MARK) for name in os.listdir(paths.directory))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_nearly_full(paths: ProfilePaths) -> bool:
    try:
        free, files = atomic.free_space(paths.directory)
    except OSError:
        return False
    return free < reserve.SIZE or files < reserve.FEW_FILES


def _is_reserve_whole(paths: ProfilePaths) -> bool:
    try:
        return os.lstat(paths.reserve).st_size == reserve.SIZE
    except OSError:
        return False


def _rewrite_session_records(paths: ProfilePaths) -> list[str]:
    """Rewrite the records of sessions that are damaged, where everything in them could be found out."""
    notes = []
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            if session.damage is not None:
                repair_report.keep_aside(paths, os.path.join(session.directory, records.SESSION_RECORD))
                session_catalogue.write_record(session)
                notes.append(f"The record of session {name!r} was damaged and has been written again.")
        except (DeepctlError, OSError):
            continue
    return notes
