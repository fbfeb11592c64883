"""Rewinding: `preview()` returns the plan of a rewind or the reason for its refusal, `run()` does the rewind.

Both plan with the same function, for the command, its dry run, the picker, the agent's tool and applications:

    a snapshot of the workspace + the session's changes since the target -> the plan; a refusal ends the rewind here,
    and nothing is changed
    one pack (the snapshot, the trees of the goal, merged notebooks), synced
    one line of the ledger: the safety checkpoint and the intent      <- from here on the rewind will be done
    the workspace, path by path; then the session continues in a new log
    one line of the ledger: done

An undo is a rewind to the safety checkpoint of the last rewind (`request_undo`). `checkpoint_store` has the steps from
the intent on, because the next command finishes an interrupted rewind there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from deepctl.errors import Damaged, DeepctlError, NotFound, Refused, UsageError
from deepctl.files import git
from deepctl.files.atomic import storage_error
from deepctl.files.git import Commit
from deepctl.store import (
    checkpoint_store,
    diff,
    log_file,
    lookup,
    projects,
    restore,
    rewind_plan,
    session_catalogue,
    trees,
    workspaces,
)
from deepctl.store.checkpoint_store import NOTHING_REWOUND, Checkpoints, HeadMove
from deepctl.store.diff import FileDifference
from deepctl.store.ledger import Ledger
from deepctl.store.object_store import ObjectReader, ObjectWriter
from deepctl.store.records import (
    AGENT,
    BOTH,
    COMMAND,
    LAST_TOOL,
    MCP_SEPARATOR,
    Position,
    Record,
    Rewind,
    SessionRecord,
    WorkspaceState,
    new_id,
    state_author,
)
from deepctl.store.repository import ReadOnlyRepository, Repository, SessionHead
from deepctl.store.rewind_plan import Interval, RewindChanges, RewindScope, StoredRules, above, hidden_by
from deepctl.store.session_reader import SessionReader
from deepctl.store.trees import DIRECTORY, Snapshot, TreeChange
from deepctl.store.workspaces import Content, WorkspaceOptions

_SHOWN = 5
"""Maximum number of paths in the text of an error; its JSON has all."""


class RewindConflicts(Refused):
    """A rewind would lose an edit of another author; nothing has been changed."""

    code = "conflicts"

    def __init__(self, paths: Sequence[bytes], unknown: Sequence[bytes] = (), occupied: Sequence[bytes] = ()) -> None:
        names = _shown(paths)
        exception = ""
        if occupied:
            exception = f", but leaves {_shown(occupied)}: a directory is there. Move it elsewhere to restore the file"
        self.force = f"--force also undoes these changes{exception}. The safety checkpoint keeps them."
        """The sentences about `--force`, without which this error is raised."""
        reason = f"Another author changed {names} after the agent"
        if len(unknown) == len(paths):
            reason = f"The author of the changes in {names} is unknown (a turn was killed, or made no checkpoints)"
        elif len(occupied) == len(paths):
            reason = f"A directory with files of another author is in the place of {names}"
            self.force = "--force leaves this directory, and undoes the rest. Move it elsewhere to restore the file."
        super().__init__(
            f"{reason}. Nothing was rewound.",
            f"{'--dry-run lists all of them; ' if len(paths) > _SHOWN else ''}{self.force}",
        )
        self.paths = list(paths)

    def document(self) -> dict[str, object]:
        """The error as JSON, with all the paths."""
        return {**super().document(), "paths": [os.fsdecode(path) for path in self.paths]}


class FilesNotKept(Refused):
    """A rewind would change files that its safety checkpoint cannot store; nothing has been changed."""

    code = "not_kept"

    def __init__(self, paths: Sequence[bytes], reason: str) -> None:
        super().__init__(
            f"These files cannot be saved before the rewind ({reason}), so nothing was changed: {_shown(paths)}.",
            "Give yourself read and write permission (chmod u+rwX), or move the files elsewhere, and try again.",
        )
        self.paths = list(paths)

    def document(self) -> dict[str, object]:
        """The error as JSON, with all the paths."""
        return {**super().document(), "paths": [os.fsdecode(path) for path in self.paths]}


def _shown(paths: Sequence[bytes]) -> str:
    remainder = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(repr(os.fsdecode(path))[1:-1] for path in paths[:_SHOWN]) + remainder


class RewindRequest(NamedTuple):
    """The request of a rewind: the target, and the part to rewind (`only`, empty for everything).

    `force` overrides conflicts, `exact` also undoes the changes of other authors. Without `merge`, a file with changes
    by the agent and by another author is a conflict, even if they are in separate lines.
    """

    to: Record
    only: str = ""
    force: bool = False
    exact: bool = False
    merge: bool = True

    @property
    def moves_conversation(self) -> bool:
        """Whether the request includes the conversation."""
        return self.only in ("", "conversation")


class RewindPlan(NamedTuple):
    """The plan of a rewind of `workspace`. Paths are relative to it; `changes` are the changes to its files.

    `session` is the name of the session, empty for an application. `goal` is the new tree of the workspace.
    `kept_paths` differ from the checkpoint afterwards. `undone` is the first prompt that is removed. Messages
    and turns are removed from the conversation (`…_removed`), or added to it again (`…_restored`). `unread_paths` are
    paths of the changes whose present content cannot be read. `ignored_paths` stay, because the coverage rules of the
    target or of now ignore them. `merged_paths` keep the lines of other authors. `command_paths` are changed paths that
    a command changed. `occupied_paths` stay although the rewind is forced. `blocked_paths` are paths whose content
    before the session's first change was not stored: only its later changes are undone. `commits` are those of the
    session's turns that stay in git. `refusal` is the reason why the rewind is not done.
    """

    session: str
    workspace: WorkspaceOptions
    request: RewindRequest
    position: Position
    present: Snapshot
    goal: str
    changes: list[TreeChange]
    conflicts: list[bytes]
    kept_paths: list[bytes]
    unread_paths: list[bytes]
    ignored_paths: list[bytes]
    merged_paths: list[bytes]
    command_paths: list[bytes]
    occupied_paths: list[bytes]
    blocked_paths: list[bytes]
    refusal: DeepctlError | None
    messages_removed: int = 0
    turns_removed: int = 0
    messages_restored: int = 0
    turns_restored: int = 0
    undone: str | None = None
    commits: list[Commit] = []

    def check(self) -> None:
        """Raises the error of a refused rewind."""
        if self.refusal is not None:
            raise self.refusal

    def is_unread(self, path: bytes) -> bool:
        """Whether the present content of a path cannot be read, so that its author is unknown."""
        paths = {entry.path for entry in self.present.unkept if entry.is_content}
        return not paths.isdisjoint((path, *above(path)))

    @property
    def moves(self) -> bool:
        """Whether the conversation changes."""
        return bool(self.messages_removed or self.messages_restored)

    @property
    def is_nothing(self) -> bool:
        """Whether the rewind would change nothing."""
        return (
            self.refusal is None
            and not self.moves
            and not any(not trees.is_same(change.before, change.after) for change in self.changes)
        )


class RewindResult(NamedTuple):
    """A finished rewind: `safety` is its safety checkpoint, `None` if there was nothing to do.

    It lists restored paths, deleted paths, and paths that stay unchanged because an entry was in the way.
    """

    plan: RewindPlan
    safety: Record | None
    restored_paths: list[bytes]
    deleted_paths: list[bytes]
    in_the_way: list[tuple[bytes, str]]

    @property
    def remarks(self) -> list[str]:
        """Notes for the user about paths that were not restored exactly."""
        shown_path = self.plan.workspace.shown
        return [f"{os.fsdecode(shown_path(path))!r} has changed: {reason}." for path, reason in self.in_the_way]


def request_rewind(
    repository: Repository | ReadOnlyRepository,
    session: str | None,
    reference: str,
    *,
    only: str = "",
    force: bool = False,
    exact: bool = False,
    merge: bool = True,
) -> tuple[SessionRecord, RewindRequest]:
    """The session called `session`, or the one that was used last, and its rewind to the checkpoint `reference`.

    Raises `UsageError` for a checkpoint of another session, and `Refused` for `~N` if this command has just finished an
    interrupted rewind, because turns are then counted from its target.
    """
    if isinstance(repository, Repository) and repository.finished_rewind and reference.startswith("~"):
        raise Refused(
            f"{' '.join(repository.finished_rewind)} {reference} may name another checkpoint now, so nothing more "
            "was rewound.",
            "Run the command again to rewind further; `deepctl checkpoints undo` undoes the finished rewind.",
            code="rewind_finished",
        )
    paths, ledger = repository.paths, repository.ledger
    current = lookup.current_session(paths, session)
    reader = repository.readers.of(current) if reference.startswith("~") else None
    target = lookup.find_checkpoint(paths, ledger, reference, current.name, reader)
    check_session(ledger, current, target, session_catalogue.by_id(paths))
    return current, RewindRequest(target, only, force, exact, merge)


def request_undo(
    repository: Repository | ReadOnlyRepository, session: str | None, *, force: bool = False
) -> tuple[SessionRecord, RewindRequest]:
    """The session called `session`, or the one used last, and the undo of its last rewind. Raises `NotFound`."""
    current = lookup.current_session(repository.paths, session)
    _check_no_unfinished_rewind(repository.ledger)
    return current, undo_request(repository.ledger, current)._replace(force=force)


def undo_request(ledger: Ledger, session: SessionRecord) -> RewindRequest:
    """The request that undoes the last rewind of a session. Raises `NotFound`."""
    last = ledger.last_rewind(session.id)
    if last is None:
        raise NotFound(
            f"Session {session.name!r} has no rewind to undo.",
            "`undo` undoes a rewind; `deepctl checkpoints rewind '~1'` undoes a turn.",
            code="nothing_to_undo",
        )
    safety = ledger.records.get(last.safety)
    if safety is None:
        raise NotFound(
            f"The state before the last rewind, checkpoint {last.safety}, has been removed.",
            "`deepctl checkpoints list` lists the checkpoints.",
            code="nothing_to_undo",
        )
    return RewindRequest(safety, last.only)


def check_session(ledger: Ledger, session: SessionRecord, target: Record, names: dict[str, str]) -> None:
    """Raises `UsageError` if the target belongs neither to this session nor to one from which it was forked."""
    ancestors = {record.id for record in ledger.line_of(session.forked_from)}
    if target.session != session.id and target.id not in ancestors:
        session_name = names.get(target.session)
        raise UsageError(
            f"Checkpoint {target.id} belongs to another session{f', {session_name!r}' if session_name else ''}.",
            f"Add --session {session_name}."
            if session_name
            else "That session no longer exists; `deepctl checkpoints fork` still works.",
            code="other_session",
        )


def preview(
    repository: Repository | ReadOnlyRepository,
    session: SessionRecord,
    request: RewindRequest,
    *,
    position: Position | None = None,
    author: str | None = None,
) -> RewindPlan:
    """The plan of a rewind, with the reason if it would be refused. It changes nothing, and needs no lock.

    In the middle of a turn, `position` is the end of its messages so far, and `author` (`AGENT`) the author of the last
    changes. Raises `Refused` while another rewind is unfinished, and `Damaged` if required data cannot be read.
    """
    paths, ledger, objects = repository.paths, repository.ledger, repository.objects
    _check_no_unfinished_rewind(ledger)
    current = repository.readers.of(session)
    workspace = repository.workspace_of(session)
    try:
        if author is None:
            last_author = lookup.last_author(paths, ledger, repository.readers)
        else:
            last_author = state_author(author, session.id)
        return _plan(
            ledger,
            objects,
            repository.sink,
            workspace,
            repository.present(session),
            request,
            position or current.position(),
            last_author,
            content=workspaces.content(workspace, objects),
            current=current,
        )
    finally:
        if isinstance(repository, Repository):  # it stays in use; the trees of a reader are still needed
            objects.scratch.clear()


def differences(repository: ReadOnlyRepository, plan: RewindPlan) -> list[FileDifference]:
    """The files that a rewind would change, with the added and removed lines."""
    now = workspaces.content(plan.workspace, repository.objects)
    readable = [change for change in plan.changes if change.path not in plan.unread_paths]
    project = plan.workspace.project.id if plan.workspace.project is not None else ""
    files = list(diff.differences(readable, now, diff.read_from_store(repository.objects), project))
    files += [diff.unread_difference(change, project) for change in plan.changes if change.path in plan.unread_paths]
    return sorted(files, key=lambda file: os.fsencode(file.path))


def run(
    repository: Repository,
    session: SessionRecord,
    request: RewindRequest,
    *,
    position: Position | None = None,
    author: str | None = None,
) -> RewindResult:
    """Rewind a session. Raises `Refused`, `Damaged` or `StorageError`; nothing has changed then.

    `position` and `author` are those of `preview`.
    """
    if author is None:
        author = repository.between()
        session = session_catalogue.find(repository.paths, session.name)
    current = repository.readers.of(session)
    return _run(
        repository.store,
        repository.workspace_of(session),
        request,
        position or current.position(),
        author,
        SessionHead(repository, session),
        current,
    )


def run_files(
    store: Checkpoints,
    workspace: WorkspaceOptions,
    request: RewindRequest,
    position: Position,
    author: str,
    head: HeadMove,
) -> RewindResult:
    """Rewind the files of an application, which rewinds its conversation itself. Raises the errors of `run`."""
    return _run(store, workspace, request, position, author, head)


def _run(
    store: Checkpoints,
    workspace: WorkspaceOptions,
    request: RewindRequest,
    position: Position,
    author: str,
    head: HeadMove,
    current: SessionReader | None = None,
) -> RewindResult:
    """The steps of every rewind: of a session (`current` reads its conversation), or of an application's files."""
    with store.new_batch() as batch:
        present = store.snapshot(workspace, batch)
        last_author = state_author(author, position.session)
        plan = _plan(
            store.ledger, store.objects, batch, workspace, present, request, position, last_author, current=current
        )
        plan.check()
        if plan.is_nothing or (current is None and plan.goal == present.tree.hex()):
            batch.drop()
            return RewindResult(plan, None, [], [], [])
    with store.counting(batch):
        parent = store.ledger.head(current.session) if current is not None else None
        safety = store.record(position, "rewind", author, present, batch, workspace, parent=parent)
        intent = Rewind(
            id=new_id(),
            at=safety.created_at,
            session=safety.session,
            safety=safety.id,
            to=request.to.id,
            only=request.only,
            tree=plan.goal,
            log=os.urandom(8).hex() if plan.moves else position.log,
            head=request.to.id if request.moves_conversation else safety.id,
            pack=batch.pack,
            root="" if current is not None else workspace.root,
        )
        store.writer.begin(safety, intent)
    if current is not None:
        checkpoint_store.add_to_index(current.paths, store.ledger, safety, current.session.name)
    result = store.apply_rewind(workspace, intent, plan.changes, head)
    # A directory that stays because it contains a file of another author is not reported, only the file.
    deleted_paths = {change.path for change in plan.changes if change.after is None}
    in_the_way = [
        (path, reason) for path, reason in result.kept_paths if reason != restore.IN_USE or path not in deleted_paths
    ]
    return RewindResult(plan, safety, result.written_paths, result.deleted_paths, in_the_way)


def _check_no_unfinished_rewind(ledger: Ledger) -> None:
    if ledger.unfinished is not None:
        raise Refused(
            "A rewind was interrupted, so the present state is incomplete.",
            "The next command that changes something finishes it, such as `deepctl checkpoints save`.",
            code="interrupted_rewind",
        )


def _plan(
    ledger: Ledger,
    objects: ObjectReader,
    sink: ObjectWriter,
    workspace: WorkspaceOptions,
    present: Snapshot,
    request: RewindRequest,
    position: Position,
    last_author: str | None,
    *,
    content: Content | None = None,
    current: SessionReader | None = None,
) -> RewindPlan:
    """The plan for the files and, with `current`, for a session's conversation. It changes nothing.

    This is the one place that decides whether a rewind may be done. `last_author` is the author of the last changes of
    the workspace (`WorkspaceState.by`); `content` is that of `rewind_plan.own_work`. Raises `Damaged` if required data
    cannot be read, `Refused` if the checkpoint lacks the requested part.
    """
    files = _plan_files(
        ledger, objects, sink, present, position.session, request, workspace, author=last_author, content=content
    )
    if current is not None and workspace.project is not None and isinstance(files.refusal, workspaces.ProjectGone):
        hints = projects.hint_of_missing(current.paths, workspace.project.root), files.refusal.hint
        files.refusal.hint = " ".join(hint for hint in hints if hint)
    plan = RewindPlan(
        session=current.session.name if current is not None else "",
        workspace=workspace,
        request=request,
        position=position,
        present=present,
        goal=files.goal,
        changes=files.plan.changes,
        conflicts=files.plan.conflict_paths,
        kept_paths=files.kept_paths,
        unread_paths=files.plan.unsaved_paths,
        ignored_paths=files.plan.ignored_paths,
        merged_paths=files.plan.merged_paths,
        command_paths=files.plan.command_paths,
        occupied_paths=files.plan.occupied_paths,
        blocked_paths=files.plan.blocked_paths,
        refusal=files.refusal,
        commits=_commits(ledger, workspace, request, position.session, last_author) if files.plan.changes else [],
    )
    if current is None or not request.moves_conversation:
        return plan
    if request.to.log and not log_file.is_in(current.session.directory, request.to.log):
        raise Refused(
            f"The messages of checkpoint {request.to.id} are not part of session {current.session.name!r}.",
            "`deepctl checkpoints fork` starts a session with them.",
            code="other_session",
        )
    removed_messages, restored_messages = lookup.diverging_messages(current, request.to)
    prompts_removed = _prompts(removed_messages)
    return plan._replace(
        messages_removed=len(removed_messages),
        turns_removed=len(prompts_removed),
        messages_restored=len(restored_messages),
        turns_restored=len(_prompts(restored_messages)),
        undone=prompts_removed[0] if prompts_removed else None,
    )


def _commits(
    ledger: Ledger, workspace: WorkspaceOptions, request: RewindRequest, session: str, last_author: str | None
) -> list[Commit]:
    """The commits on HEAD, newest first, that turns of a session made since the target.

    They are those between two checkpoints with the session as the author. None if git cannot tell.
    """
    project = workspace.project
    if project is None or request.only == "memory" or not request.to.git:
        return []
    records = [record for record in ledger.records.values() if record.project == project.id and record.git]
    try:
        steps = records[records.index(request.to) :]
    except ValueError:
        return []
    head = git.head(project.root)
    if head is None:
        return []
    authors = [state_author(record.author, record.session) for record in steps[1:]]
    heads = [record.git["head"] for record in steps]
    own_steps = [
        (old, new)
        for (old, new), author in zip(pairwise([*heads, head.head]), [*authors, last_author], strict=True)
        if author == session and old != new
    ]
    if not own_steps:
        return []
    try:
        since = datetime.fromisoformat(request.to.created_at).timestamp()
        own = {
            commit.id for old, new in own_steps for commit in git.commits_between(project.root, old, new, since=since)
        }
        return [commit for commit in git.commits_between(project.root, heads[0], head.head) if commit.id in own]
    except git.GitFailed:
        return []


def _prompts(messages: list[dict[str, Any]]) -> list[str]:
    return [text for message in messages if (text := log_file.prompt(message)) is not None]


class _FilesPlan(NamedTuple):
    """The part of a `RewindPlan` about the files."""

    goal: str
    plan: RewindChanges
    kept_paths: list[bytes]
    refusal: DeepctlError | None = None


def _plan_files(
    ledger: Ledger,
    objects: ObjectReader,
    sink: ObjectWriter,
    present: Snapshot,
    session: str,
    request: RewindRequest,
    workspace: WorkspaceOptions,
    *,
    author: str | None,
    content: Content | None,
) -> _FilesPlan:
    """The plan for the files in a rewind of `session` (an id)."""
    target = request.to
    if request.only != "conversation":
        is_both = target.lost == BOTH
        lookup.check_files(
            target, lookup.OTHER_CHECKPOINTS_HINT if is_both else "`--only conversation` restores its messages."
        )
    if request.only == "conversation" or (not request.only and not target.tree):
        return _FilesPlan("", RewindChanges([], []), [])
    if not target.tree:
        raise Refused(
            f"Checkpoint {target.id} contains only the conversation, no files.",
            "`--only conversation` rewinds to it.",
            code="no_files",
        )
    rules = StoredRules(objects)
    scope = RewindScope(rules, workspace, target, present, request.only)
    unread_paths = [entry.path for entry in present.unkept if entry.is_content]
    now = present.tree

    def exactly() -> RewindChanges:
        exact_plan = rewind_plan.exact(
            objects,
            now,
            bytes.fromhex(target.tree),
            is_selected=scope.selects,
            is_hidden=rules.hidden(bytes.fromhex(target.tree), target.unkept, target.exclude),
            is_ignored=scope.ignores,
            unread_paths=unread_paths,
        )
        restore.check_readable(objects, exact_plan.changes)
        return exact_plan

    if request.exact:
        file_plan = exactly()
    else:
        is_unread = hidden_by([[os.fsdecode(path), ""] for path in unread_paths], ())
        try:
            intervals = _intervals(ledger, target, present, workspace, author, rules)
            file_plan = rewind_plan.own_work(
                objects,
                intervals,
                now,
                session,
                sink,
                is_selected=scope.selects,
                is_ignored=scope.ignores,
                is_unseen=lambda path: is_unread(path, False),
                content=content,
                merge=request.merge,
            )
            restore.check_readable(objects, file_plan.changes)
        except Damaged as error:
            with suppress(Damaged):
                exactly()
                error.hint = "`--exact` still works: it needs the checkpoint, but no later history."
            raise
    if workspace.project is not None and target.kind == "rewind":
        paths = _paths_of_commands(objects, ledger, target, session)
        effective = {change.path for change in file_plan.changes if not trees.is_same(change.before, change.after)}
        file_plan = file_plan._replace(command_paths=sorted({*file_plan.command_paths, *(paths & effective)}))
    tree = trees.patch(objects, sink, now, file_plan.changes)
    all_changes = trees.changes(objects, tree, bytes.fromhex(target.tree))
    changed_paths = {change.path for change in file_plan.changes}
    blocked_paths = set(file_plan.blocked_paths)
    kept_paths = [
        entry.path
        for entry in all_changes
        if scope.selects(entry.path)
        and (entry.path not in changed_paths or entry.path in blocked_paths)
        and not _is_directory(entry)
        and not scope.ignores(entry.path, False)
    ]
    # Unreadable files may differ, and are in neither of the trees.
    known_paths = {*changed_paths, *(os.fsencode(path) for path, _ in target.unkept)}
    kept_paths += [path for path in unread_paths if scope.selects(path) and path not in known_paths]
    return _FilesPlan(tree.hex(), file_plan, kept_paths, _refusal(objects, workspace, present, file_plan, request))


def _refusal(
    objects: ObjectReader,
    workspace: WorkspaceOptions,
    present: Snapshot,
    plan: RewindChanges,
    request: RewindRequest,
) -> DeepctlError | None:
    """The reason against a rewind, or `None`. `--force` and `--exact` override authors, but never unkept files."""
    effective = [change for change in plan.changes if not trees.is_same(change.before, change.after)]
    shown_paths = partial(map, workspace.shown)
    try:
        workspaces.check_available(workspace, plan.changes)
        if plan.unsaved_paths:
            reason = _reason(present, plan.unsaved_paths[0])
            raise FilesNotKept(list(shown_paths(plan.unsaved_paths)), reason)
        if plan.conflict_paths and not request.force:
            paths = plan.conflict_paths, plan.unknown_paths, plan.occupied_paths
            raise RewindConflicts(*(list(shown_paths(each)) for each in paths))
        restore.check_saved(objects, effective, workspace.shown)
        workspaces.working_tree(workspace, objects).check_writable(effective)
    except DeepctlError as error:
        return error
    except OSError as error:
        return storage_error(error, NOTHING_REWOUND)
    return None


def _reason(present: Snapshot, path: bytes) -> str:
    return next(
        unkept.reason for unkept in present.unkept if unkept.is_content and (path + b"/").startswith(unkept.path + b"/")
    ).lower()


def _is_directory(change: TreeChange) -> bool:
    return any(entry is not None and entry.kind == DIRECTORY for entry in change[1:])


def _intervals(
    ledger: Ledger,
    target: Record,
    present: Snapshot,
    workspace: WorkspaceOptions,
    author: str | None,
    rules: StoredRules,
) -> list[Interval]:
    """The intervals since the target: from one snapshot of the workspace to the next, and to the present state."""
    # The last state of that id counts, because an application may save an id again.
    start = max((number for number, state in enumerate(ledger.states) if state.id == target.id), default=None)
    if start is None:
        raise Damaged(
            f"Checkpoint {target.id} has lost its position in the history.", "`deepctl checkpoints verify` shows more."
        )
    states = [*ledger.states[start:], WorkspaceState("", present.tree.hex(), author, [], [], [])]
    return [
        rewind_plan.interval(before, after, rules)._replace(is_command=_is_command(ledger.records.get(after.id)))
        for before, after in pairwise(states)
    ]


def _paths_of_commands(objects: ObjectReader, ledger: Ledger, safety: Record, session: str) -> set[bytes]:
    """The paths that commands of a session changed in the turns that a rewind undid, for the undo of that rewind.

    `safety` is the safety checkpoint of that rewind, or of an undo of it. Empty if their history is removed or damaged.
    """
    undone_rewinds = {rewind.safety: rewind for rewind in ledger.rewinds.values()}
    first = safety
    while (rewind := undone_rewinds.get(first.id)) is not None and rewind.to in ledger.records:
        first = ledger.records[rewind.to]
    ids = [state.id for state in ledger.states]
    paths: set[bytes] = set()
    with suppress(Damaged, ValueError):
        for before, after in pairwise(ledger.states[ids.index(first.id) : ids.index(safety.id) + 1]):
            if after.by == session and _is_command(ledger.records.get(after.id)):
                changes = trees.changes(objects, bytes.fromhex(before.tree), bytes.fromhex(after.tree))
                paths.update(change.path for change in changes)
    return paths


def _is_command(record: Record | None) -> bool:
    """Whether a command of the agent, or a tool of an MCP server, ran before this checkpoint: both can take long."""
    if record is None or record.author != AGENT:
        return False
    tool = record.metadata.get(LAST_TOOL, "")
    return tool == COMMAND or MCP_SEPARATOR in tool
