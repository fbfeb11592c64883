"""`Checkpoints`: one directory of checkpoints, open for changes. Profiles and applications save and rewind with it.

A checkpoint is made in two steps: new objects go into one pack, synced and renamed into place; then one line in the
ledger makes it count. A kill between the two leaves garbage, which the next opening of the directory removes.

A rewind whose intent is in the ledger is done completely, or not at all, even after a kill. Repeating a step changes
nothing, so the next process that opens the directory finishes an interrupted rewind. A rewind that cannot be done (a
read-only directory) is undone.

`cache/index` lets a shell complete a reference without starting Python. It has one line per checkpoint, in the order of
their creation: id, label (or nothing), session, and `@` with the time and the prompt, separated by tabs. It is derived
from the ledger and may be deleted at any time; the next change writes it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from deepctl import quantities
from deepctl.errors import BadPath, Interrupted, Refused
from deepctl.files import atomic, git
from deepctl.layout import ProfilePaths
from deepctl.store import log_file, session_catalogue, tool_calls, trees, workspaces
from deepctl.store.index_db import Cache
from deepctl.store.ledger import LEDGER, MESSAGES, Ledger, LedgerWriter, read
from deepctl.store.object_store import ObjectBatch, ObjectReader, ObjectStore, ObjectWriter
from deepctl.store.pack_store import PackStore, is_uncounted
from deepctl.store.records import MOST_NOT_COVERED, OTHER, Position, Record, Rewind, new_id
from deepctl.store.restore import RestoreResult, WorkingTree
from deepctl.store.tool_calls import ToolCall
from deepctl.store.trees import DIRECTORY, ScratchWriter, Snapshot, TreeChange
from deepctl.store.workspaces import WorkspaceOptions

PACKS = "packs"
LOCK = ".lock"
"""The lock of a directory that is not in a profile."""
NOTHING_REWOUND = "Nothing was rewound; nothing has changed."
_PROMPT_LENGTH = 200
_INDEXED_PROMPT = 60
_TIME_MARK = "\t@"
"""Before the time in a line of the index. No name contains it, so that a shell can cut the line there."""


class HeadMove(Protocol):
    """The part of a rewind besides the files: the position at which a conversation continues."""

    def advance(self, intent: Rewind) -> None:
        """Continue at the target of the rewind; repeating it changes nothing."""
        ...

    def revert(self, intent: Rewind) -> None:
        """Continue as before the rewind."""
        ...


class Checkpoints:
    """The checkpoints in `directory`. The caller holds the lock of the directory, and finally closes this object.

    `cache` is the path of the cache, which is elsewhere; without one, the cache lasts as long as this object.
    `ledger_cache` is the path of the cached fold of a long ledger. `collect` says whether leftovers of killed writers
    are removed at once, and `release_reserve` frees some space on a full disk. Raises `NewerFormat`, `StorageError` or
    `OSError`.
    """

    def __init__(
        self,
        directory: str,
        *,
        cache: str = ":memory:",
        ledger_cache: str | None = None,
        collect: bool = True,
        release_reserve: Callable[[], object] = lambda: None,
    ) -> None:
        self.directory = directory
        self.release_reserve = release_reserve
        self._writer = LedgerWriter(directory, ledger_cache)
        self.cache = Cache(cache)
        self.packs = PackStore(os.path.join(directory, PACKS), self.cache, lambda: self.ledger.packs)
        self.objects: ObjectStore = self.packs
        if collect:
            self.collect()

    @property
    def ledger(self) -> Ledger:
        """The state of the ledger."""
        return self._writer.ledger

    @property
    def writer(self) -> LedgerWriter:
        """The ledger itself."""
        return self._writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def is_current(self) -> bool:
        """Whether no other process has written to the ledger, or replaced it, since this object read it."""
        try:
            return self._writer.is_current(os.stat(os.path.join(self.directory, LEDGER)))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
        self.cache.close()

    def collect(self) -> None:
        """Remove leftovers of killed and failed writers.

        A pack gets another mode after a line names it (`pack_store.UNCOUNTED`). A pack without a line but with that
        mode, or a damaged line, means that the ledger has lost lines; then nothing is deleted except packs that it
        calls removed.
        """
        self.sweep()
        if self.ledger.damage:
            return
        for name in self.strays():
            if is_uncounted(os.lstat(self.packs.path(name))):
                self.packs.remove_pack(name)

    def sweep(self) -> None:
        """Remove unfinished packs, and those that the ledger calls removed."""
        try:
            pack_names = os.listdir(self.packs.directory)
        except FileNotFoundError:
            return
        for name in pack_names:
            if name.startswith(".") and name.endswith(".tmp"):
                os.unlink(self.packs.path(name))
        for name in (self.ledger.gone - self.ledger.packs).intersection(pack_names):
            self.packs.remove_pack(name)

    def strays(self) -> set[str]:
        """The packs on the disk without a line."""
        return self.packs.names() - self.ledger.packs - self.ledger.gone

    def new_batch(self) -> ObjectBatch:
        """A batch of objects."""
        return self.objects.new_batch()

    def snapshot(self, workspace: WorkspaceOptions, sink: ObjectWriter) -> Snapshot:
        """A snapshot of the whole workspace; new objects go into `sink`."""
        return workspaces.snapshot(workspace, self.objects, sink, self.cache, self.tree, tidy=True)

    def is_unchanged(self, workspace: WorkspaceOptions) -> bool:
        """Whether a workspace is unchanged since its last snapshot."""
        with self.new_batch() as batch:
            present = self.snapshot(workspace, batch)
            batch.drop()
        return present.tree.hex() == self.tree

    def _is_changed(self, workspace: WorkspaceOptions | None, present: Snapshot, tree: str | None) -> bool:
        return present.tree.hex() != tree or self._has_head_moved(workspace)

    def _has_head_moved(self, workspace: WorkspaceOptions | None) -> bool:
        """Whether HEAD of a project is not the one of its last checkpoint: a commit may leave all files as they are.

        The author of the commit would be unknown without a checkpoint before and after it.
        """
        if workspace is None or workspace.project is None:
            return False
        records = reversed(self.ledger.records.values())
        last = next((record for record in records if record.project == workspace.project.id), None)
        head = git.head(workspace.project.root)
        return last is not None and last.git != (head._asdict() if head is not None else {})

    def save(
        self,
        position: Position,
        kind: str,
        *,
        author: str,
        workspace: WorkspaceOptions | None,
        unless_tree: str | None = None,
        id: str | None = None,
        created_at: str | None = None,
        parent: str | None = None,
        label: str = "",
        metadata: dict[str, Any] | None = None,
        unkept: list[list[str]] | None = None,
        not_covered: Sequence[str] = (),
        call: ToolCall | None = None,
    ) -> list[Record]:
        """Make a checkpoint, unless the workspace equals the tree `unless_tree`, and git's HEAD is as before.

        Only the paths of `call` are changes of the author. If other paths changed since the last snapshot, a checkpoint
        by another author precedes, at the position before the call. Returns the new checkpoints, the author's last.

        Without a workspace, only the conversation is stored. Without `id`, `created_at` and `parent`, the checkpoint
        gets a new id and the present time, and follows its session's latest. `unkept` is the reason for missing files,
        `not_covered` are changed paths that no checkpoint covers.
        """
        with self.new_batch() as batch:
            present = self.snapshot(workspace, batch) if workspace is not None else None
            others = self._others(workspace, present, batch, call)
            if others is not None and present is not None:
                is_changed = unless_tree is None or present.tree != others.tree
            else:
                is_changed = present is None or self._is_changed(workspace, present, unless_tree)
            if others is None and not is_changed:
                batch.drop()
                return []
        records: list[Record] = []
        with self.counting(batch):
            if others is not None and call is not None:
                records.append(self.record(call.before, "tool", OTHER, others, batch, workspace, parent=parent))
                self._writer.add(records[0])
            if not is_changed:
                return records
            record = self.record(position, kind, author, present, batch, workspace, parent=parent)
            if records:
                record = record._replace(pack="", added_bytes=0, parent=records[0].id)
            record = record._replace(
                id=id or record.id,
                created_at=created_at or record.created_at,
                label=label,
                metadata=metadata if metadata is not None else record.metadata,
                unkept=unkept if unkept is not None else record.unkept,
                not_covered=list(not_covered[:MOST_NOT_COVERED]),
                not_covered_count=len(not_covered),
            )
            self._writer.add(record)
        return [*records, record]

    def _others(
        self, workspace: WorkspaceOptions | None, present: Snapshot | None, sink: ObjectWriter, call: ToolCall | None
    ) -> Snapshot | None:
        """The workspace without the changes of a call, `None` if other authors have changed nothing."""
        if workspace is None or present is None or call is None or call.paths is None:
            return None
        others = tool_calls.put_back(workspace, self.objects, sink, present, self.tree, call.paths)
        return others if self._is_changed(workspace, others, self.tree) else None

    @contextmanager
    def counting(self, batch: ObjectBatch) -> Iterator[None]:
        """Inside this context, a line is written that makes the pack of `batch` count. Without that line, the pack is
        removed.
        """
        try:
            yield
        except BaseException:
            # The disk is read, because an interrupt may have arrived after the line was written, but before the call
            # returned.
            if batch.pack and batch.pack not in read(self.directory).packs:
                with suppress(OSError):  # the next command removes it
                    self.packs.remove_pack(batch.pack)
            raise
        if batch.pack:
            with suppress(OSError):  # its mode is only relevant if its line is lost
                os.chmod(self.packs.path(batch.pack), atomic.FILE_MODE)

    def record(
        self,
        position: Position,
        kind: str,
        author: str,
        present: Snapshot | None,
        batch: ObjectBatch,
        workspace: WorkspaceOptions | None,
        *,
        parent: str | None = None,
    ) -> Record:
        """The record of a checkpoint whose objects are in `batch`, which has been committed."""
        prompt = " ".join(log_file.typed_part(position.prompt)[: 4 * _PROMPT_LENGTH].split())[:_PROMPT_LENGTH]
        record = Record(
            id=new_id(),
            kind=kind,
            session=position.session,
            turn=position.turn,
            created_at=quantities.now(),
            log=position.log,
            offset=position.offset,
            digest=position.digest,
            message_count=position.message_count,
            author=author,
            parent=parent if parent is not None else self.ledger.heads.get(position.session),
            added_bytes=batch.added_bytes,
            pack=batch.pack,
            prompt=prompt,
        )
        if present is not None and workspace is not None:
            record = record._replace(
                tree=present.tree.hex(),
                files=present.files,
                bytes=present.bytes,
                unkept=[[os.fsdecode(entry.path), entry.reason] for entry in present.unkept],
                exclude=list(workspace.exclude),
            )
        if workspace is not None and workspace.project is not None:
            head = git.head(workspace.project.root)
            record = record._replace(project=workspace.project.id, git=head._asdict() if head is not None else {})
        return record

    @property
    def tree(self) -> str:
        """The tree of the last snapshot; empty if there was none."""
        return self.ledger.states[-1].tree if self.ledger.states else ""

    def apply_rewind(
        self, workspace: WorkspaceOptions, intent: Rewind, changes: list[TreeChange], head: HeadMove
    ) -> RestoreResult:
        """Execute the intent. If the workspace cannot be changed, undo it and raise `StorageError`."""
        working_tree = workspaces.working_tree(workspace, self.objects)
        result = RestoreResult([], [], [])
        try:
            if changes:
                result = working_tree.apply(changes, intent.id)
                kept_paths = {path for path, _ in result.kept_paths}
                wrong = [path for path in working_tree.unmet(changes) if path not in kept_paths]
                result.kept_paths.extend((path, "another author changed it in the meantime") for path in wrong)
            head.advance(intent)
        except (OSError, KeyboardInterrupt) as error:
            with atomic.after_commit("The rewind has begun", atomic.FINISHED_NEXT):
                self._take_back(working_tree, intent, changes, head)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted("Interrupted; nothing was rewound, and nothing has changed.") from None
            raise atomic.storage_error(error, NOTHING_REWOUND) from error
        with atomic.after_commit(rest=atomic.FINISHED_NEXT):
            self.writer.finish(intent)
        return result

    def _take_back(self, working_tree: WorkingTree, intent: Rewind, changes: list[TreeChange], head: HeadMove) -> None:
        try:
            reverse = [TreeChange(change.path, change.after, change.before) for change in changes]
            working_tree.sweep((change.path for change in changes), intent.id)
            working_tree.apply(reverse, intent.id)
            head.revert(intent)
            self.writer.abandon(intent)
        except KeyboardInterrupt:
            raise Interrupted(
                "Interrupted twice during a rewind.",
                "The next command that changes this profile finishes it; `deepctl checkpoints undo` undoes it.",
            ) from None

    def finish_rewind(self, workspace: WorkspaceOptions, intent: Rewind, head: HeadMove) -> list[str]:
        """Finish an interrupted rewind; returns notes for the user.

        A path that is neither in its old nor in its new state was edited since, and does not change. Raises
        `StorageError`, and `Damaged` if required data cannot be read.
        """
        safety = self.ledger.records[intent.safety]
        open_changes: list[TreeChange] = []
        edited_paths: list[bytes] = []
        if intent.tree:
            all_changes = list(trees.changes(self.objects, bytes.fromhex(safety.tree), bytes.fromhex(intent.tree)))
            working_tree = workspaces.working_tree(workspace, self.objects)
            working_tree.sweep((change.path for change in all_changes), intent.id)
            now = self.snapshot(workspace, ScratchWriter(self.objects)).tree
            current_changes = trees.changes(self.objects, now, bytes.fromhex(intent.tree))
            current = {change.path: change.before for change in current_changes}
            foreign_changes = [
                change for change in all_changes if not _is_ours(current.get(change.path, change.after), change)
            ]
            # A half restored .gitignore may hide a path that is as it was.
            edited_paths = working_tree.unmet(
                TreeChange(change.path, None, change.before) for change in foreign_changes
            )
            open_changes = [change for change in all_changes if change.path not in edited_paths]
            self.objects.scratch.clear()
        above = _directories_above(self.objects, safety, open_changes)
        self.apply_rewind(workspace, intent, [*above, *open_changes], head)
        notes = ["An interrupted rewind has been finished."]
        if edited_paths:
            paths = ", ".join(repr(os.fsdecode(workspace.shown(path)))[1:-1] for path in edited_paths[:5])
            notes.append(
                f"Edited since then and left unchanged: {paths}{' and more' if len(edited_paths) > 5 else ''}."
            )
        return notes


_DEPTH = 3
"""How deep a directory is searched for other stores before it becomes a store."""


def check_apart(directory: str) -> None:
    """Raises `BadPath` if the directory of a new store is inside another store, or contains one."""
    if _is_store(directory):
        return
    above = os.path.dirname(directory)
    while not _is_store(above) and above != os.path.dirname(above):
        above = os.path.dirname(above)
    if _is_store(above):
        raise BadPath(f"{directory} is inside the checkpoint store {above}.", _APART)
    below = next(filter(_is_store, _directories(directory, _DEPTH)), None)
    if below is not None:
        raise BadPath(f"{directory} contains the checkpoint store {below}.", _APART)


_APART = "Use one directory per user, beside each other, and names of users without a `/`."


def _is_store(directory: str) -> bool:
    # A file of that name alone may be of another program.
    return os.path.lexists(os.path.join(directory, LEDGER)) and any(
        os.path.lexists(os.path.join(directory, name)) for name in (LOCK, MESSAGES, PACKS)
    )


def _directories(directory: str, depth: int) -> Iterator[str]:
    """The directories below one, as far as they are readable."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for name in names:
        yield name
        if depth > 1:
            yield from _directories(name, depth - 1)


class ProfileStore:
    """The part of a `Repository` that removing and deleting need: a profile and its checkpoints, open for changes."""

    def __init__(self, paths: ProfilePaths, store: Checkpoints) -> None:
        self.paths = paths
        self.store = store

    @property
    def ledger(self) -> Ledger:
        """The state of the ledger."""
        return self.store.ledger


def remove_leftovers(paths: ProfilePaths) -> None:
    """Remove the temporary files of killed writers beside the profile's own files."""
    session_catalogue.tidy(paths)
    for directory in (paths.directory, paths.checkpoints, paths.cache):
        try:
            entries = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.startswith(".") and entry.endswith(".tmp"):
                os.unlink(os.path.join(directory, entry))


def _is_ours(current: trees.TreeEntry | None, change: TreeChange) -> bool:
    """Whether a path is in its old state, or on the way to its new state."""
    if trees.is_same(current, change.before) or trees.is_same(current, change.after):
        return True
    if current is None:
        # An entry of another kind is removed before its replacement comes.
        return change.before is not None and change.after is not None and change.before.kind != change.after.kind
    kinds = {entry.kind for entry in (change.before, change.after) if entry is not None}
    return current.kind == DIRECTORY and DIRECTORY in kinds


def _directories_above(objects: ObjectReader, safety: Record, changes: list[TreeChange]) -> list[TreeChange]:
    """The unchanged directories above the changes: a rewind may have made them writable, and restores their modes."""
    tree = bytes.fromhex(safety.tree)
    changed_paths = {change.path for change in changes}
    directories: dict[bytes, TreeChange] = {}
    for change in changes:
        path = change.path
        while path := os.path.dirname(path):
            entry = trees.entry_at(objects, tree, path)
            if path not in changed_paths and entry is not None and entry.kind == DIRECTORY:
                directories[path] = TreeChange(path, entry, entry)
    return list(directories.values())


def add_to_index(paths: ProfilePaths, ledger: Ledger, record: Record, session: str) -> None:
    """Add the line of a new checkpoint. A disk error invalidates the index, and does not fail the checkpoint."""
    try:
        descriptor = atomic.open_regular(paths.checkpoint_index, os.O_WRONLY | os.O_APPEND)
        try:
            atomic.write_all(descriptor, _index_line(record, ledger, session))
        finally:
            os.close(descriptor)
    except (OSError, Refused):
        _drop_index(paths)


def rewrite_index(paths: ProfilePaths, ledger: Ledger) -> None:
    """Write the index again."""
    names = session_catalogue.by_id(paths)
    # A repair looks here for the name of a session whose directory is missing.
    earlier_names = indexed_session_names(paths) if any(r.session not in names for r in ledger.records.values()) else {}
    lines = [
        _index_line(record, ledger, names.get(record.session) or earlier_names.get(record.id, ""))
        for record in ledger.records.values()
    ]
    try:
        atomic.make_root(paths.cache)
        atomic.write_file(paths.checkpoint_index, b"".join(lines))
    except OSError:
        _drop_index(paths)


def refresh_index(paths: ProfilePaths, ledger: Ledger) -> None:
    """Write the index again if it is missing, has another form, or its number of lines differs from that of
    checkpoints.
    """
    lines = _index_lines(paths)
    # An earlier version of deepctl wrote neither time nor prompt.
    if lines is None or len(lines) != len(ledger.records) or (lines and _TIME_MARK not in lines[0]):
        rewrite_index(paths, ledger)


def indexed_session_names(paths: ProfilePaths) -> dict[str, str]:
    """The names of sessions by the ids of their checkpoints, as far as they are known. They may be outdated."""
    words = [line.split("\t") for line in _index_lines(paths) or []]
    return {line[0]: line[2] for line in words if len(line) >= 3}


def _index_lines(paths: ProfilePaths) -> list[str] | None:
    try:
        return atomic.read_file(paths.checkpoint_index).decode("utf-8", "replace").splitlines()
    except (OSError, Refused):
        return None


def _drop_index(paths: ProfilePaths) -> None:
    try:
        os.unlink(paths.checkpoint_index)
    except OSError:
        pass  # it is missing, or stays wrong until the disk is writable again


def _index_line(record: Record, ledger: Ledger, session: str) -> bytes:
    words = (record.id, ledger.labels.get(record.id, ""), session)
    prompt = "".join(character if character.isprintable() else " " for character in record.prompt)
    about = f"{_local_time(record.created_at)}  {' '.join(prompt.split())[:_INDEXED_PROMPT]}".rstrip()
    line = "\t".join(" ".join(word.split()) for word in words) + _TIME_MARK + about
    return line.encode(errors="replace") + b"\n"


def _local_time(at: str) -> str:
    """A time of a record to the minute, in the time zone of this machine: a shell cannot convert it."""
    try:
        return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return ""
