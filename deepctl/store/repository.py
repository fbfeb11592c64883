"""`Repository`: the only access to a profile's sessions, workspace and checkpoints.

Repository.open(paths)         for changes. The caller holds the profile's lock. Interrupted operations of killed
commands are finished or removed first.
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
    coverage,
    lookup,
    not_covered,
    projects,
    prune,
    records,
    repair,
    repair_report,
    reserve,
    session_catalogue,
    session_delete,
    session_reader,
    todo,
    tool_calls,
    workspaces,
)
from deepctl.store.checkpoint_store import Checkpoints, ProfileStore
from deepctl.store.coverage import DEFAULT_COVERAGE, CoverageSettings
from deepctl.store.index_db import Cache
from deepctl.store.not_covered import Look
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.pack_store import PackStore
from deepctl.store.records import (
    AGENT,
    KILLED,
    LAST_TOOL,
    OTHER,
    STOPPED,
    UNKNOWN,
    Position,
    Record,
    Rewind,
    SessionRecord,
)
from deepctl.store.session_reader import SessionReaders
from deepctl.store.tool_calls import ToolCall
from deepctl.store.trees import Report, ScratchWriter, Snapshot
from deepctl.store.workspaces import MountedProject, WorkspaceOptions

EVERY_TURN, EVERY_TOOL, MANUAL_ONLY = "every_turn", "every_tool", "manual_only"


class ProjectUnknown(Refused):
    """The directory of a session's project is known neither from `projects.json` nor from the session's record."""

    code = "project_unknown"


class SnapshotOptions(NamedTuple):
    """The settings of snapshots: the coverage of projects, whose `exclude` the workspace has too, and the function that
    receives the progress.
    """

    coverage: CoverageSettings
    report: Report | None

    def workspace(self, paths: ProfilePaths, session: SessionRecord | None) -> WorkspaceOptions:
        """The workspace of a session. Raises `Refused` if the directory of its project is unknown."""
        project = session.project if session is not None else None
        mounted = None
        if project is not None:
            root = projects.directory_of(paths, project)
            if not root:
                raise ProjectUnknown(
                    f"The directory of project {project.id} is unknown: both {layout.PROJECTS} and the record of the "
                    "session are damaged.",
                    f"`deepctl projects move {project.id} DIR` names it.",
                )
            mounted = MountedProject(project.id, root, self.coverage)
        return WorkspaceOptions(
            paths.workspace,
            self.coverage.exclude,
            self.report,
            mounted,
            lambda identity: projects.by_id(paths, identity) is not None,
        )


class ReadOnlyRepository:
    """The contents of a profile's checkpoints and its present workspace, in memory."""

    def __init__(
        self,
        paths: ProfilePaths,
        *,
        coverage: CoverageSettings = DEFAULT_COVERAGE,
        report: Report | None = None,
    ) -> None:
        self.paths = paths
        self.snapshots = SnapshotOptions(coverage, report)
        self.ledger = session_catalogue.read_ledger(paths)
        self.cache = Cache.copy_of(paths.snapshot_cache)
        self.packs = PackStore(paths.packs, self.cache)
        self.objects: ObjectReader = self.packs
        self.sink: ObjectWriter = ScratchWriter(self.objects)

    @cached_property
    def readers(self) -> SessionReaders:
        """The readers of its conversations."""
        return SessionReaders(self.paths)

    def workspace_of(self, session: SessionRecord | None) -> WorkspaceOptions:
        """The workspace of a session, with its project. Raises `Refused` if the directory of that is unknown."""
        return self.snapshots.workspace(self.paths, session)

    def present(self, session: SessionRecord | None = None) -> Snapshot:
        """The present workspace of a session. Its trees can be read from `objects`, its files in the workspace itself.

        Its directories are opened as a change of the profile would open them; otherwise this could not show the effect
        of a change.
        """
        workspace = self.workspace_of(session)
        ownership.regain(workspace.root, layout.OWN_DIRECTORIES)
        last_tree = self.ledger.states[-1].tree if self.ledger.states else ""
        return workspaces.snapshot(workspace, self.objects, self.sink, self.cache, last_tree, tidy=False)

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()


class Repository(ProfileStore):
    """The sessions, the workspace and the checkpoints of one profile, open for changes.

    `policy` is the policy for automatic checkpoints, `snapshots` are the settings of snapshots.
    """

    def __init__(self, paths: ProfilePaths, *, snapshots: SnapshotOptions, policy: str) -> None:
        self.notes: list[str] = []
        """Notes for the user about interrupted commands, and how they were finished."""
        self.finished_rewind: list[str] = []
        """The notes about a finished rewind."""
        self.policy = policy
        # Its removal loses nothing: a rewind brings the files back.
        atomic.make_directory(paths.workspace)
        ownership.regain(paths.workspace, layout.OWN_DIRECTORIES)
        self.snapshots = snapshots
        self._has_released_reserve = False
        store = Checkpoints(
            paths.checkpoints,
            cache=paths.snapshot_cache,
            ledger_cache=paths.ledger_cache,
            release_reserve=self._release_reserve,
        )
        super().__init__(paths, store)
        self._directories: dict[str, tuple[int, int]] = {}
        checkpoint_store.refresh_index(paths, self.ledger)

    @classmethod
    @contextmanager
    def open(
        cls,
        paths: ProfilePaths,
        *,
        coverage: CoverageSettings = DEFAULT_COVERAGE,
        policy: str = EVERY_TOOL,
        report: Report | None = None,
        frees: bool = False,
    ) -> Iterator[Repository]:
        """A profile, open for changes; `notes` describe finished operations. The caller holds the profile's lock.

        Raises `StorageError` if an interrupted operation cannot be finished. A command that `frees` space gets the
        space of the reserve, and does not wait for an interrupted rewind that finds no space.
        """
        if _has_interrupted_repair(paths):
            repair.finish(paths)
        checkpoint_store.remove_leftovers(paths)
        with reserve.room(paths) if frees and _is_nearly_full(paths) else nullcontext():
            session_catalogue.join_logs(session_catalogue.directories(paths))
            snapshots = SnapshotOptions(coverage, report)
            repository = cls(paths, snapshots=snapshots, policy=policy)
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
        paths: ProfilePaths,
        *,
        coverage: CoverageSettings = DEFAULT_COVERAGE,
        report: Report | None = None,
    ) -> Iterator[ReadOnlyRepository]:
        """A profile for reading."""
        repository = ReadOnlyRepository(paths, coverage=coverage, report=report)
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
            self.notes += _rewrite_projects(self.paths)
            self._tie()

    def _finish_rewind(self) -> list[str]:
        """Finish an interrupted rewind; returns notes for the user.

        A path that is neither in its old nor in its new state was edited since, and does not change. Raises
        `StorageError`, and `Locked` while another process works in the project.
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
            session = session_catalogue.find(self.paths, name)
            workspace = self.workspace_of(session)
            project = workspace.project
            if project is not None and not projects.is_available(project.root):
                return [self._give_up(intent, f"its project directory {project.root} is missing.")]
            with projects.lock_directory(self.paths, project.root if project is not None else None, wait=0.0):
                return self.store.finish_rewind(workspace, intent, SessionHead(self, session))
        except (Damaged, ProjectUnknown) as error:
            return [self._give_up(intent, error.message)]

    def _give_up(self, intent: Rewind, reason: str) -> str:
        self.store.writer.give_up(intent)
        return (
            f"An interrupted rewind can be neither finished nor undone: {reason} Checkpoint {intent.safety} has "
            f"the state before it, and checkpoint {intent.to} was its target."
        )

    def _tie(self) -> None:
        """Add digests to the positions that 0.1 wrote. After a failure, the next writer does it."""
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
        """The target for trees that are only compared; they can be read from `objects` until its scratch is cleared."""
        return ScratchWriter(self.store.objects)

    def workspace_of(self, session: SessionRecord | None) -> WorkspaceOptions:
        """The workspace of a session, with its project. Raises `Refused` if the directory of that is unknown."""
        return self.snapshots.workspace(self.paths, session)

    def look(self, session: SessionRecord) -> Look | None:
        """The present state of what no checkpoint of the session's project covers; `None` without a project.

        It belongs after a snapshot, whose walk it uses; `not_covered.changes` compares two of them. Without a snapshot
        after each tool call, that walk may be older than the work of the agent, so the project is walked again.
        """
        project = self.workspace_of(session).project
        if project is None:
            return None
        return not_covered.look(project.root, project.coverage, is_walked=self.policy == EVERY_TOOL)

    def coverage_problem(self, session: SessionRecord) -> str:
        """The sentence about unknown tracked files in the last snapshot of a session's project, or empty text."""
        project = self.workspace_of(session).project
        rules = coverage.walked(project.root, project.coverage) if project is not None else None
        return rules.problem_sentence if rules is not None else ""

    def present(self, session: SessionRecord | None = None) -> Snapshot:
        """A snapshot of the present workspace of a session that is not stored."""
        return self.store.snapshot(self.workspace_of(session), self.sink)

    def session(self, name: str) -> SessionRecord | None:
        """The session of that name, or `None` if it is damaged."""
        try:
            return session_catalogue.find(self.paths, name)
        except DeepctlError:
            return None

    def head(self, session: SessionRecord) -> Record | None:
        """The checkpoint at which a session stands."""
        return next(self.ledger.line(self.ledger.head(session)), None)

    def save(
        self,
        session: SessionRecord,
        kind: str,
        position: Position,
        *,
        author: str,
        label: str = "",
        id: str | None = None,
    ) -> Record:
        """Make a checkpoint of a session and of the workspace in their present state. It gets a new id without `id`."""
        return self._save(session, kind, position, author, label=label, id=id)[-1]

    def _save(
        self,
        session: SessionRecord,
        kind: str,
        position: Position,
        author: str,
        *,
        label: str = "",
        id: str | None = None,
        unless_tree: str | None = None,
        call: ToolCall | None = None,
        not_covered: Sequence[str] = (),
        stopped: str = "",
    ) -> list[Record]:
        """The same; makes no checkpoint if the workspace equals the tree `unless_tree`.

        `call` has changed it; a checkpoint with the changes of other authors may precede (`Checkpoints.save`).
        `stopped` is the reason why a turn did not end by itself.
        """
        position = _tied(session, position)
        if call is not None:
            call.before = _tied(session, call.before)
        ownership.regain(self.paths.workspace, layout.OWN_DIRECTORIES)
        workspace = self.workspace_of(session)
        if self._is_replaced(workspace) and author == AGENT:
            author = UNKNOWN
        metadata = {LAST_TOOL: call.name} if call is not None else {}
        if stopped:
            metadata[STOPPED] = stopped
        records = self.store.save(
            position,
            kind,
            author=author,
            workspace=workspace,
            parent=self.ledger.head(session),
            label=label,
            id=id,
            unless_tree=unless_tree,
            metadata=metadata or None,
            not_covered=not_covered,
            call=call,
        )
        for record in records:
            checkpoint_store.add_to_index(self.paths, self.ledger, record, session.name)
        return records

    def _is_replaced(self, workspace: WorkspaceOptions) -> bool:
        """Whether another directory is at the path of the project since the last checkpoint of this process.

        A command cannot do that in a sandbox, and everything there would count as its change.
        """
        if workspace.project is None:
            return False
        root = workspace.project.root
        try:
            status = os.stat(root)
        except OSError:
            return False  # nothing of it is stored then
        before = self._directories.get(root)
        self._directories[root] = (status.st_dev, status.st_ino)
        return before not in (None, self._directories[root])

    def save_now(self, session: SessionRecord, label: str | None = None) -> Record:
        """A checkpoint by hand, between turns. Raises `BadName` or `Refused` for the label, before anything is made."""
        if label is not None:
            self.store.writer.check_free(label)
        author = self.between()
        position = session_reader.position(session, session_catalogue.read(session))
        return self.save(session, "manual", position, author=author, label=label or "")

    def label(self, record: Record, label: str | None) -> None:
        """Set or remove the label of a checkpoint. Raises `BadName` or `Refused`."""
        self.store.writer.label(record.id, label)
        with atomic.after_commit():
            checkpoint_store.rewrite_index(self.paths, self.ledger)

    def fork(self, record: Record, name: str) -> SessionRecord:
        """Start a session with the conversation of a checkpoint. Raises `Damaged`, or `Refused` for the name."""
        if not record.log:
            raise Refused(f"Checkpoint {record.id} has no messages.", "`deepctl chat --new` starts an empty session.")
        project = projects.of_record(self.paths, record)
        chain = lookup.chain_of(self.paths, record)
        session = session_catalogue.fork(self.paths, name, chain, record.id, record.point, project)
        with suppress(Damaged):  # only the conversation is forked; it can be continued without a list
            todo.copy(self.paths, self.store.objects, record, session)
        return session

    def rename(self, old: str, new: str) -> SessionNames:
        """Rename a session, also to another spelling of its own name. A damaged session can be renamed too.

        Nothing else of a profile refers to the directory by name, so one rename is enough. Raises `BadName`,
        `SessionNotFound`, or `Refused` if the name is taken.
        """
        layout.check_name(new, "session")
        current_name = session_catalogue.stored_name(self.paths, old)
        if current_name is None:
            raise SessionNotFound(old, self.paths.name)
        existing_name = session_catalogue.stored_name(self.paths, new)
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
        return SessionNames(current_name, new)

    def settle_todo(self, owner: SessionRecord, session: SessionRecord, before: Position) -> Record | None:
        """Give the one to-do list of a profile of 0.1 to `owner`, the most recently written session.

        A turn of `session` starts at `before`, which has been stored. The move is stored as work of the owner's agent,
        so that a rewind of that work includes the list and sees no conflict.
        """
        if not todo.give(self.paths, owner) or self.policy == MANUAL_ONLY:
            return None
        if owner.id == session.id:
            return self.save(session, "tool", before._replace(turn=before.turn + 1), author=AGENT)
        return self.save(owner, "manual", session_reader.position(owner, session_catalogue.read(owner)), author=AGENT)

    def before_turn(self, session: SessionRecord, position: Position) -> list[Record]:
        """Store the state at the start of a turn, unless a checkpoint has it already. Returns the new checkpoints."""
        if self.policy == MANUAL_ONLY:
            return []
        author = self.between()
        head = self.head(session)
        is_stored = (
            head is not None
            and not head.lost
            and head.message_count == position.message_count
            and head.turn == position.turn
            # After a rewind, the last tree can differ from that of the head. A change from the last tree back to that
            # of the head must be stored, or it would count as work of the turn.
            and head.tree == self.store.tree
        )
        return self._save(session, "turn", position, author, unless_tree=self.store.tree if is_stored else None)

    def before_tool(self, session: SessionRecord, call: ToolCall) -> list[Record]:
        """Store changes by another author while no tool was running, because the model may have worked for minutes.

        A call that announces its changes needs no snapshot here: see `before_change`.
        """
        if self.policy != EVERY_TOOL or call.paths is not None:
            return []
        return self._save(session, "tool", call.before, OTHER, unless_tree=self.store.tree)

    def before_change(
        self, session: SessionRecord, call: ToolCall, position: Position, root: str, path: str
    ) -> list[Record]:
        """A call announces that it changes the file `path` of the directory `root`, a real path.

        If the last snapshot does not have the present state of that file, it is stored now, and all later changes
        belong to the call.
        """
        if self.policy != EVERY_TOOL or call.paths is None:
            return []
        paths = tool_calls.changed_paths(
            self.workspace_of(session), self.objects, self.store.tree, root, path, call.paths
        )
        if paths is not None:
            call.paths |= paths
            return []
        records = self._save_call(session, call, position)
        call.paths = None
        return records

    def after_tool(self, session: SessionRecord, call: ToolCall, position: Position) -> list[Record]:
        """Store the state after a call of a tool, if anything changed. A call without changes needs no snapshot."""
        if self.policy != EVERY_TOOL or not call.has_changes:
            return []
        return self._save_call(session, call, position)

    def _save_call(self, session: SessionRecord, call: ToolCall, position: Position) -> list[Record]:
        return self._save(session, "tool", position, AGENT, unless_tree=self.store.tree, call=call)

    def in_turn(self, *, tool_at_work: bool) -> str:
        """The author of the changes since the last snapshot, in the middle of a turn.

        The tree is stored around every tool call, so changes belong to the agent only while a tool is running. If it is
        stored only for turns, all changes of a turn belong to the agent. If it is stored only by hand, the last
        snapshot may be older than the turn.
        """
        if self.policy == MANUAL_ONLY:
            return UNKNOWN
        return AGENT if tool_at_work or self.policy != EVERY_TOOL else OTHER

    def after_turn(
        self,
        session: SessionRecord,
        position: Position,
        *,
        call: ToolCall | None = None,
        not_covered: Sequence[str] = (),
        stopped: str = "",
    ) -> list[Record]:
        """Store the state at the end of a turn, also after an interruption in the middle of a `call`.

        `not_covered` are the paths that changed during the turn and that no checkpoint covers. `stopped` is the code of
        the error that ended the turn, empty without one.
        """
        if self.policy == MANUAL_ONLY:
            return []
        if call is not None and not call.has_changes:
            call = None
        author = self.in_turn(tool_at_work=call is not None)
        return self._save(session, "turn", position, author, call=call, not_covered=not_covered, stopped=stopped)

    def between(self) -> str:
        """The author of the changes since the last snapshot, when no turn is running.

        A killed turn (`SessionReaders.has_unfinished_turn`) gets its end now. The authors of changes since its last
        checkpoint are unknown. Without automatic checkpoints, all are unknown.
        """
        author = OTHER
        for name in session_catalogue.all_names(self.paths):
            try:
                session = session_catalogue.find(self.paths, name)
                if not self.readers.has_unfinished_turn(session, self.ledger):
                    continue
                author = UNKNOWN
                conversation = session_catalogue.read(session)
                workspaces.remove_temporary_files(
                    self.workspace_of(session), conversation.messages, conversation.last_turn
                )
                if self.policy != MANUAL_ONLY:
                    position = session_reader.position(session, conversation)
                    self._save(session, "turn", position, UNKNOWN, stopped=KILLED)
                    author = OTHER
            except (Damaged, ProjectUnknown):
                continue  # no turn can be running in it
        return author


def _tied(session: SessionRecord, position: Position) -> Position:
    return lookup.with_digest(session, position) if position.log and not position.digest else position


class SessionNames(NamedTuple):
    """The names of a session before and after."""

    before: str
    now: str


class SessionHead:
    """The part of a session's rewind besides the files: it continues in another log (`checkpoint_store.HeadMove`)."""

    def __init__(self, repository: ProfileStore, session: SessionRecord) -> None:
        self._records = repository.ledger.records
        self._session = session

    def advance(self, intent: Rewind) -> None:
        """Continue in the log of the intent, which starts at the position of the target."""
        session_catalogue.branch(self._session, intent.log, self._records[intent.to].point)

    def revert(self, intent: Rewind) -> None:
        """Continue in the log before the rewind."""
        session_catalogue.unbranch(self._session, self._records[intent.safety].log, intent.log)


# These states are rare, so they are checked here, without calling the modules that handle them.


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


def _rewrite_projects(paths: ProfilePaths) -> list[str]:
    """Build a damaged list of projects again from the records of the sessions. Returns notes for the user."""
    with suppress(DeepctlError, OSError):
        if projects.is_damaged(paths):
            repair_report.keep_aside(paths, os.path.join(paths.directory, layout.PROJECTS))
            projects.rewrite(paths)
            return [
                "The list of projects was damaged and has been built again from the sessions. What a repository brings "
                "is not trusted any more."
            ]
    return []


def _rewrite_session_records(paths: ProfilePaths) -> list[str]:
    """Rewrite damaged records of sessions if all fields are known from other files. Returns notes for the user."""
    notes = []
    for name in session_catalogue.all_names(paths):
        try:
            session = session_catalogue.find(paths, name)
            if session.damage is not None:
                repair_report.keep_aside(paths, os.path.join(session.directory, records.SESSION_RECORD))
                if (project := session.project) is not None:
                    session = session._replace(project=project._replace(path=projects.directory_of(paths, project)))
                session_catalogue.write_record(session)
                notes.append(f"The record of session {name!r} was damaged and has been written again.")
        except (DeepctlError, OSError):
            continue
    return notes
