"""`FileCheckpointStore`: an application's checkpoints in a directory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from operator import is_
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter

from deepctl.agent import message_codec, tasks
from deepctl.agent.checkpoint_stores import Checkpoint, check_keep, is_labelled
from deepctl.domain import profiles
from deepctl.errors import Damaged, Locked, Refused
from deepctl.files import atomic
from deepctl.layout import Root, check_directory
from deepctl.locks import APPLICATION, Lease, Lock
from deepctl.store import log_file, lookup, message_chains, prune, pydantic_deep, session_reader
from deepctl.store import rewind as rewinding
from deepctl.store.checkpoint_store import LOCK, Checkpoints, check_apart
from deepctl.store.ledger import LEDGER, MESSAGES, newest_record, run_of
from deepctl.store.lookup import CheckpointNotFound, CheckpointProblem
from deepctl.store.message_chains import ChainEnd, MessageChains
from deepctl.store.records import AGENT, OTHER, UNKNOWN, Position, Record
from deepctl.store.workspaces import MountedProject, WorkspaceOptions
from deepctl.unicode import whole, whole_value

T = TypeVar("T")

_SESSION = "library"
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.05
_NO_DIRECTORY = "the backend has no directory on this machine"


class FileCheckpointStore:
    """Checkpoints in a directory: conversations without repetition, and the files of a workspace if there is one.

    A checkpoint is on disk when `save` returns, and a kill at any moment loses no saved checkpoint. Several objects and
    processes may use one directory: a kernel lock admits one at a time. The objects of a process share its open files
    and what was read from them, so a new object for each request costs little. The directory may be the `checkpoints`
    directory of a deepctl profile.

    Args:
        directory: The directory of the store; created (0700) if it is missing.
        cache: A file for data that can be computed again, which makes snapshots by later processes faster. It must lie
            outside of `directory`. Without it, the cache lasts as long as this process has the directory open.

    The constructor raises `BadPath`, before it creates anything, if a part of a path is empty, `.` or `..`, and if the
    directory of a new store is inside another store, or contains one: names of users that contain a `/` give such
    directories.

    Methods raise `Damaged` if required data cannot be read, `Locked` if another process holds the lock for half a
    minute, and `StorageError` or `OSError` if the disk fails.
    """

    def __init__(self, directory: str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None) -> None:
        self._directory = os.path.abspath(check_directory(directory))
        self._place = os.path.realpath(directory)
        self._cache = check_directory(cache) if cache is not None else ":memory:"
        check_apart(self._place)
        self._open = _open_directory(self._directory, self._place, self._cache)
        self._own_memory = _MessageMemory(self._open.changes)
        atomic.make_root(self._directory)

    async def save(
        self,
        checkpoint: Checkpoint,
        *,
        workspace: str | os.PathLike[str] | None = None,
        by_agent: bool | None = True,
        exclude: Sequence[str] = (),
        only_changed: bool = False,
        project: str | os.PathLike[str] | None = None,
    ) -> None:
        """Save a checkpoint; one of the same id is replaced.

        A checkpoint with files cannot be replaced without a workspace, because its files would be lost. If only the
        label differs, the stored checkpoint gets this label and keeps its files; otherwise `Refused` is raised.

        Args:
            checkpoint: The checkpoint.
            workspace: A directory whose whole contents are stored with it.
            by_agent: The author of the changes there since the last checkpoint: the agent, so that a rewind undoes
                them, or another author; `None` if the author is unknown, so that undoing them is a conflict. After a
                killed run the author is always unknown.
            exclude: Patterns of left out files, as in a .gitignore.
            only_changed: Whether to save nothing if the workspace is unchanged since the last snapshot.
            project: A project whose profile is in `workspace`: the `root_dir` of a `LocalBackend` whose `profile_dir`
                is `workspace`. Of it, the files are stored that git would list.
        """
        place = _workspace(workspace, exclude, project) if workspace is not None else None
        author = _author(by_agent)
        await self._run(lambda store: self._save(store, checkpoint, place, author, only_changed))

    async def label(self, checkpoint_id: str, label: str) -> None:
        """Give a checkpoint another label; its files and its place among the others stay.

        An empty label removes the label. Raises `CheckpointNotFound`. In the directory of a profile, raises `BadName`
        for an invalid label and `Refused` if another checkpoint has it.
        """

        def set_label(store: Checkpoints) -> None:
            if checkpoint_id in store.ledger.records:
                self._label(store, checkpoint_id, label)
                return
            checkpoint = self._get(store, checkpoint_id)
            if checkpoint is None:
                raise CheckpointNotFound(f"There is no checkpoint {checkpoint_id!r}.")
            self._save(store, replace(checkpoint, label=label), None, AGENT, False)  # pydantic-deep's becomes ours

        await self._run(set_label)

    async def get(self, checkpoint_id: str) -> Checkpoint | None:
        """The checkpoint of that id, or `None`."""
        return await self._run(lambda store: self._get(store, checkpoint_id))

    async def get_by_label(self, label: str) -> Checkpoint | None:
        """The oldest checkpoint of that label, or `None`."""

        def find(store: Checkpoints) -> Checkpoint | None:
            matches = [(at, identity) for at, identity, other_label in self._all(store) if other_label == label]
            return self._get(store, min(matches)[1]) if matches else None

        return await self._run(find)

    async def newest(self) -> Checkpoint | None:
        """The checkpoint that was saved last, or `None`. The time does not depend on the number of checkpoints."""
        return await self._run_locked(self._newest_by_end) or await self._run(self._newest)

    async def list_all(self) -> list[Checkpoint]:
        """All checkpoints, oldest first. Damaged ones are left out; `damaged` lists them."""
        return await self._run(lambda store: self._list(store)[0])

    async def damaged(self) -> list[CheckpointProblem]:
        """The unreadable items, and the reasons."""
        return await self._run(lambda store: self._list(store)[1])

    async def prune(self, keep: int) -> list[str]:
        """Remove all checkpoints but the newest `keep`, and the data that only they need; returns their ids.

        Labelled checkpoints stay: those of `save_checkpoint`, and those to which the application gave a label of its
        own. Raises `BadSetting` if `keep` is not at least 1.
        """
        check_keep(keep)

        def remove(store: Checkpoints) -> list[str]:
            records = store.ledger.records
            removed = [
                identity
                for _, identity, label in sorted(self._all(store))[:-keep]
                if not is_labelled(label, records[identity].metadata if identity in records else {})
            ]
            if removed:
                self._remove(store, removed)
            return removed

        return await self._run(remove)

    async def remove(self, checkpoint_id: str) -> bool:
        """Remove a checkpoint, also a labelled one or the newest; returns whether it existed."""
        return await self._run(lambda store: self._remove(store, [checkpoint_id]))

    async def remove_oldest(self) -> bool:
        """Remove the oldest checkpoint; returns whether there was one."""

        def remove(store: Checkpoints) -> bool:
            oldest_first = sorted(self._all(store))
            return bool(oldest_first) and self._remove(store, [oldest_first[0][1]])

        return await self._run(remove)

    async def count(self) -> int:
        """The number of checkpoints, damaged ones included."""
        return await self._run(
            lambda store: len(store.ledger.records.keys() | pydantic_deep.find(self._directory).keys())
        )

    async def clear(self) -> None:
        """Remove all checkpoints."""
        await self._run(lambda store: self._remove(store, [identity for _, identity, _ in self._all(store)]) and None)

    async def rewind(
        self,
        checkpoint_id: str,
        workspace: str | os.PathLike[str],
        *,
        force: bool = False,
        by_agent: bool | None = False,
        exclude: Sequence[str] | None = None,
    ) -> list[str]:
        """Restore the files in `workspace`: the agent's changes are undone, those of other authors stay.

        A safety checkpoint is made first. Returns the changed paths. Raises `CheckpointNotFound`, `Refused` if the
        checkpoint has no files, or `RewindConflicts` (nothing is changed) if another author changed a file after the
        agent.

        The files of a project are restored in the directory with which the checkpoint was saved.

        Args:
            checkpoint_id: The checkpoint.
            workspace: The directory.
            force: Whether conflicts are overridden.
            by_agent: The author of the changes since the last checkpoint, as in `save`.
            exclude: Patterns of files that stay unchanged, as in a .gitignore; by default those of the checkpoint.
        """

        def rewind(store: Checkpoints) -> list[str]:
            target = store.ledger.records.get(checkpoint_id)
            if target is None:
                raise CheckpointNotFound(f"There is no checkpoint {checkpoint_id!r}.")
            place = _workspace(workspace, target.exclude if exclude is None else exclude, _project_of(target))
            author = UNKNOWN if store.ledger.open_runs and not by_agent else _author(by_agent)
            return self._rewind(store, target, place, force, author)

        return await self._run(rewind)

    async def _run(self, action: Callable[[Checkpoints], T]) -> T:
        """Run a function with the store in a worker thread."""

        def with_store() -> T:
            with self._opened() as store:
                return action(store)

        return await self._run_locked(with_store)

    async def _run_locked(self, action: Callable[[], T]) -> T:
        """Run a function with the lock in a worker thread. Locks are awaited outside of it."""
        async with tasks.queue(self._place):
            deadline = time.monotonic() + _WAIT_SECONDS
            while True:
                try:
                    return await tasks.in_worker(self._at_once, action)
                except Locked as error:
                    if time.monotonic() >= deadline:
                        error.hint = "Try again later."
                        raise
                await asyncio.sleep(_POLL_SECONDS)

    def _at_once(self, action: Callable[[], T]) -> T:
        """Run a function with the lock, in this thread. Raises `Locked` if another process holds the lock."""
        if not self._open.mutex.acquire(blocking=False):
            raise Locked(f"Another thread is working on {self._directory}.")
        try:
            with self._lock():
                return action()
        finally:
            self._open.mutex.release()

    @property
    def _profile(self) -> str | None:
        """The directory of the profile whose checkpoints these are."""
        directory = os.path.dirname(self._directory)
        return directory if os.path.exists(os.path.join(directory, "profile.toml")) else None

    def _lock(self) -> Lease:
        profile = self._profile
        if profile is not None:
            name = os.path.basename(profile)
            root = Root(os.path.dirname(os.path.dirname(profile)))
            return profiles.lock(root, name, command=APPLICATION, wait=0.0)
        path = os.path.join(self._directory, LOCK)
        return Lock(path, profile=self._directory, command=APPLICATION)

    @contextmanager
    def _opened(self) -> Iterator[Checkpoints]:
        """The store; opened again if another process has written to it. It is also opened again after an error."""
        store = self._open.current_store(self._directory)
        if store is None:
            check_apart(self._place)
            store = self._open.store = Checkpoints(self._directory, cache=self._cache)
            _close_excess(self._open)
        try:
            self._recover(store)
            yield store
            self._open.note_time(self._directory)
            if len(_OPEN) > _MOST_OPEN:  # many threads have worked at once
                _close_excess(self._open)
        except BaseException:
            self._open.close()
            raise

    def _save(
        self,
        store: Checkpoints,
        checkpoint: Checkpoint,
        workspace: WorkspaceOptions | None,
        author: str,
        only_changed: bool,
    ) -> None:
        _check_id(checkpoint.id)
        if only_changed and workspace is not None and store.is_unchanged(workspace):
            return
        record = store.ledger.records.get(checkpoint.id)
        if workspace is None and record is not None and record.tree:
            if not _is_same(self._checkpoint(record, checkpoint.label), checkpoint):
                raise Refused(
                    f"Checkpoint {checkpoint.id!r} has files, which a save without a workspace would drop.",
                    "Save it with `workspace=`, or under another id. `label` changes its label only.",
                    code="has_files",
                )
            self._label(store, checkpoint.id, checkpoint.label)
            return
        place = self._keep(checkpoint)
        at = checkpoint.created_at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = pydantic_deep.find(self._directory).get(checkpoint.id)
        run = run_of(checkpoint.metadata)
        if store.ledger.open_runs - {run} and (run is None or author == OTHER):
            author = UNKNOWN
        store.save(
            Position(
                _SESSION,
                checkpoint.turn,
                place.log,
                place.offset,
                place.messages,
                message_codec.last_prompt(checkpoint.messages),
                place.point,
            ),
            "manual",
            author=author,
            workspace=workspace,
            id=checkpoint.id,
            created_at=at,
            label=whole(checkpoint.label),
            metadata=_marked(checkpoint.metadata, workspace),
            unkept=None if workspace is not None else [["", _NO_DIRECTORY]],
        )
        if old is not None:
            os.unlink(old)

    def _label(self, store: Checkpoints, identity: str, label: str) -> None:
        if store.ledger.labels.get(identity, "") == label:
            return
        # Commands name the checkpoints of a profile by their labels; those of an application need not be unique.
        set_label = store.writer.set_label if self._profile is None else store.writer.label
        set_label(identity, whole(label) or None)

    def _keep(self, checkpoint: Checkpoint) -> ChainEnd:
        """Store the conversation of a checkpoint."""
        directory = os.path.join(self._directory, MESSAGES)
        chains = self._open.messages
        if chains is None or (not self._memory.is_checked and not chains.is_unchanged()):
            chains = self._open.read_messages(directory)
        self._memory.is_checked = True
        chain, new = self._chained(chains, checkpoint.messages)
        if not chains.is_current(chain):
            chains = self._open.read_messages(directory)
            chain, new = self._chained(chains, checkpoint.messages)
        return chains.keep(chain, new, [checkpoint.turn] * len(new))

    @property
    def _memory(self) -> _MessageMemory:
        """The messages that this object has read or saved, as far as they are still those on the disk."""
        if self._own_memory.since != self._open.changes:
            self._own_memory = _MessageMemory(self._open.changes)
        return self._own_memory

    def _chained(
        self, messages: MessageChains, conversation: Sequence[ModelMessage]
    ) -> tuple[list[bytes], list[dict[str, Any]]]:
        """The digests of a conversation up to each message, and the JSON of the messages that are not stored yet.

        Messages of the last save are recognised by identity, except the last two, which may have been changed in place.
        """
        before, digests = self._memory.recent
        common_length = min(max(len(before) - 2, 0), len(conversation))
        if not all(map(is_, before[:common_length], conversation)):
            common_length = next(
                number for number in range(common_length) if before[number] is not conversation[number]
            )
        chain = digests[:common_length]
        new_messages: list[dict[str, Any]] = []
        for message in ModelMessagesTypeAdapter.dump_python(list(conversation[common_length:]), mode="json"):
            digest, whole_message = message_chains.continued(chain[-1] if chain else message_chains.START, message)
            chain.append(digest)
            new_messages.append(whole_message)
        self._memory.recent = (list(conversation), list(chain))
        known_length, _ = messages.find(chain)
        return chain, new_messages[len(new_messages) - (len(chain) - known_length) :] if known_length < len(
            chain
        ) else []

    def _all(self, store: Checkpoints) -> list[tuple[datetime, str, str]]:
        """The time of each checkpoint, its id and its label."""
        labels = store.ledger.labels
        stored_checkpoints = [
            (message_codec.time_of(record.created_at), record.id, labels.get(record.id, ""))
            for record in store.ledger.records.values()
        ]
        return stored_checkpoints + [
            (message_codec.time_of(header.created_at), header.id, header.label)
            for header in pydantic_deep.headers(self._directory)
            if header.id not in store.ledger.records
        ]

    def _list(self, store: Checkpoints) -> tuple[list[Checkpoint], list[CheckpointProblem]]:
        checkpoints: list[Checkpoint] = []
        ledger = store.ledger
        problems = [
            CheckpointProblem(damage.id, f"ledger line {damage.line}", damage.reason) for damage in ledger.damage
        ]
        for record in ledger.records.values():
            try:
                checkpoints.append(self._checkpoint(record, ledger.labels.get(record.id, "")))
            except Damaged as error:
                problems.append(CheckpointProblem(record.id, record.log + log_file.SUFFIX, error.message))
        for name, path in pydantic_deep.find(self._directory).items():
            if name not in ledger.records:
                try:
                    checkpoints.append(message_codec.import_checkpoint(path))
                except Damaged as error:
                    problems.append(CheckpointProblem(name, path, error.message))
        return sorted(checkpoints, key=lambda checkpoint: checkpoint.created_at), problems

    def _newest_by_end(self) -> Checkpoint | None:
        """The newest checkpoint if the end of the ledger names it."""
        newest = newest_record(self._directory)
        if newest is None:
            return None
        if self._open.current_store(self._directory) is None:
            self._open.close()  # the messages that were read may have changed
        return self._checkpoint(*newest)

    def _newest(self, store: Checkpoints) -> Checkpoint | None:
        record = next(reversed(store.ledger.records.values()), None)
        if record is not None:
            return self._checkpoint(record, store.ledger.labels.get(record.id, ""))
        oldest_first = sorted(self._all(store))
        return self._get(store, oldest_first[-1][1]) if oldest_first else None

    def _get(self, store: Checkpoints, identity: str) -> Checkpoint | None:
        record = store.ledger.records.get(identity)
        if record is not None:
            return self._checkpoint(record, store.ledger.labels.get(record.id, ""))
        if any(damage.id == identity for damage in store.ledger.damage):
            raise Damaged(f"Checkpoint {identity} is damaged.")
        path = pydantic_deep.find(self._directory).get(identity)
        return message_codec.import_checkpoint(path) if path is not None else None

    def _checkpoint(self, record: Record, label: str) -> Checkpoint:
        conversation = self._conversation(record)
        reason = "" if record.tree else (record.unkept[0][1] if record.unkept else _NO_DIRECTORY)
        return Checkpoint(
            record.id,
            label,
            record.turn,
            conversation,
            len(conversation),
            message_codec.time_of(record.created_at),
            _given(record.metadata),
            bool(record.tree),
            reason,
            _project_of(record),
        )

    def _conversation(self, record: Record) -> list[ModelMessage]:
        if not record.log:
            return []
        if record.session == _SESSION:
            return self._conversation_in(os.path.join(self._directory, MESSAGES), record.log, record.offset)
        sessions = os.path.join(os.path.dirname(self._directory), "sessions")
        for name in sorted(os.listdir(sessions)) if os.path.isdir(sessions) else []:
            directory = os.path.join(sessions, name)
            if os.path.exists(log_file.log_path(directory, record.log)):
                return message_codec.validate(session_reader.read_log(directory, record.log, record.offset), record.id)
        raise Damaged(f"The message log {record.log} of checkpoint {record.id} is missing.")

    def _conversation_in(self, directory: str, log: str, offset: int) -> list[ModelMessage]:
        """The messages of a log up to an offset; read messages are cached."""
        parsed = self._memory.parsed
        ends, messages = parsed.get(log, ([], []))
        if not ends or offset > ends[-1]:
            ends, messages = parsed[log] = message_codec.parse_log(directory, log)
            if not ends or offset > ends[-1]:
                raise Damaged(f"The message log {log} is damaged, or cut short.")
        return messages[: bisect_right(ends, offset)]

    def _remove(self, store: Checkpoints, identities: list[str]) -> bool:
        records = [store.ledger.records[identity] for identity in identities if identity in store.ledger.records]
        readable = {header.id for header in pydantic_deep.headers(self._directory)}
        old = pydantic_deep.find(self._directory)
        paths = [old[identity] for identity in identities if identity in readable]
        prune.remove_from(store, records)
        for path in paths:
            os.unlink(path)
        if records:
            prune.collect_messages(os.path.join(self._directory, MESSAGES), store.ledger)
            if self._profile is None:
                prune.compact(store)
            self._open.forget_messages()
        return bool(records or paths)

    def _recover(self, store: Checkpoints) -> None:
        """Finish a killed rewind. Raises `Refused` if it belongs to a profile's session."""
        intent = store.ledger.unfinished
        if intent is None:
            return
        if not intent.root:
            raise Refused(
                "A rewind of this profile was interrupted.",
                "Every command that changes the profile finishes it, such as `deepctl checkpoints save`.",
                code="interrupted_rewind",
            )
        project = _project_of(store.ledger.records.get(intent.to))
        store.finish_rewind(_workspace(intent.root, (), project), intent, _NoHead())

    def _rewind(
        self, store: Checkpoints, target: Record, workspace: WorkspaceOptions, force: bool, author: str
    ) -> list[str]:
        request = rewinding.RewindRequest(target, force=force)
        lookup.check_files(target, lookup.OTHER_CHECKPOINTS_HINT)
        if not target.tree:
            raise Refused(f"Checkpoint {target.id!r} contains only the conversation, no files.", code="no_files")
        position = Position(
            _SESSION, target.turn, target.log, target.offset, target.message_count, target.prompt, target.point
        )
        result = rewinding.run_files(store, workspace, request, position, author, _NoHead())
        return sorted(os.fsdecode(path) for path in result.restored_paths + result.deleted_paths)


def _is_same(stored: Checkpoint, checkpoint: Checkpoint) -> bool:
    """Whether a stored checkpoint is the same as one that an application has, but for what the store sets."""
    times = [item.created_at.astimezone(timezone.utc) for item in (stored, checkpoint)]
    if (stored.turn, stored.metadata, times[0]) != (checkpoint.turn, whole_value(checkpoint.metadata), times[1]):
        return False
    dumps = [ModelMessagesTypeAdapter.dump_json(whole_value(item.messages)) for item in (stored, checkpoint)]
    return dumps[0] == dumps[1]


_MARKS = "deepctl"
"""The key in the metadata of a record with the store's own data: the directory of a project, and a value that the
application has under the same key.
"""


def _marked(metadata: dict[str, Any], workspace: WorkspaceOptions | None) -> dict[str, Any]:
    """The metadata of a record, from that of an application."""
    marks: dict[str, Any] = {}
    if workspace is not None and workspace.project is not None:
        marks["project_dir"] = workspace.project.root
    if _MARKS in metadata:
        marks["given"] = metadata[_MARKS]
    return whole_value({**metadata, _MARKS: marks} if marks else dict(metadata))


def _given(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an application, from that of a record."""
    marks = metadata.get(_MARKS)
    if not isinstance(marks, dict):
        return dict(metadata)
    own = {key: value for key, value in metadata.items() if key != _MARKS}
    return {**own, _MARKS: marks["given"]} if "given" in marks else own


def _project_of(record: Record | None) -> str | None:
    """The directory of the project whose files a checkpoint has."""
    marks = record.metadata.get(_MARKS) if record is not None and record.project else None
    return marks.get("project_dir") if isinstance(marks, dict) else None


def _workspace(
    directory: str | os.PathLike[str], exclude: Sequence[str], project: str | os.PathLike[str] | None
) -> WorkspaceOptions:
    mounted = None
    if project is not None:
        root = os.path.realpath(project)
        # An application has no list of projects, so that the id depends on the path alone.
        mounted = MountedProject(hashlib.sha256(os.fsencode(root)).hexdigest()[:8], root)
    return WorkspaceOptions(os.path.abspath(directory), exclude, project=mounted)


class _MessageMemory:
    """Messages that one object has read or saved: a new object reads and checks them again.

    `since` is the number of changes (`_OpenStore.changes`) before they were read.
    """

    def __init__(self, since: int) -> None:
        self.since = since
        self.recent: tuple[list[ModelMessage], list[bytes]] = ([], [])
        """The conversation of the last save, and the digests up to each message."""
        self.parsed: dict[str, tuple[list[int], list[ModelMessage]]] = {}
        """The messages of logs, and the offset after each."""
        self.is_checked = False
        """Whether the logs were as this process knows them when this object first saved a conversation."""


class _OpenStore:
    """The open files of a directory and the digests of its messages, for all objects of this process. `mutex` admits
    one thread.
    """

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.store: Checkpoints | None = None
        self.messages: MessageChains | None = None
        self._time = 0
        self.changes = 0
        """How often others have changed the logs, or messages were removed."""

    def __del__(self) -> None:
        self.close()

    def current_store(self, directory: str) -> Checkpoints | None:
        """The open store, `None` if there is none, or if another process has written to it, which closes it."""
        if self.store is not None and not (self.store.is_current() and self._time == _time_of_ledger(directory)):
            self.close()
        return self.store

    def note_time(self, directory: str) -> None:
        """The ledger is as this process has read or written it."""
        self._time = _time_of_ledger(directory)

    def read_messages(self, directory: str) -> MessageChains:
        """Read the digests of all stored conversations."""
        if self.messages is not None:
            self.forget_messages()
        self.messages = MessageChains(directory)
        return self.messages

    def forget_messages(self) -> None:
        """The logs have changed."""
        self.messages = None
        self.changes += 1

    @property
    def message_count(self) -> int:
        """The number of messages whose digests are in memory."""
        chains = self.messages
        return len(chains) if chains is not None else 0

    def close(self) -> None:
        """Close the files and forget what was read; the next operation opens them again."""
        if self.store is not None:
            self.store.close()
        self.store = None
        self.forget_messages()

    def close_if_idle(self) -> bool:
        """Close the files unless a thread is working."""
        if not self.mutex.acquire(blocking=False):
            return False
        try:
            self.close()
        finally:
            self.mutex.release()
        return True

    def is_useful(self) -> bool:
        """Whether the store is open, and no other process has changed or deleted it."""
        store = self.store
        return store is not None and store.is_current()


_MOST_OPEN = 200
"""Stores of a process with an open file. The usual limit of a process is 1,024 open files."""
_MOST_MESSAGES = 100_000
"""Messages of open stores, whose digests take about 600 bytes each."""
_DIRECTORIES: WeakValueDictionary[tuple[int, str, str, str], _OpenStore] = WeakValueDictionary()
"""The open directories by process, path, real path and cache."""
_OPEN: list[_OpenStore] = []
"""Those that were opened, the latest one last. They stay open when an application forgets its object."""
_OPEN_LOCK = threading.Lock()
_DIRECTORIES_LOCK = threading.Lock()


def _time_of_ledger(directory: str) -> int:
    return os.stat(os.path.join(directory, LEDGER)).st_mtime_ns


def _open_directory(directory: str, place: str, cache: str) -> _OpenStore:
    with _DIRECTORIES_LOCK:
        # A forked process must not use the files of the other one.
        return _DIRECTORIES.setdefault((os.getpid(), directory, place, cache), _OpenStore())


def _close_excess(latest: _OpenStore) -> None:
    """Close the stores that were opened first, if more than `_MOST_OPEN` are open or have more than `_MOST_MESSAGES`
    messages, and those that were deleted. An application may have many users, and few of them are working at once.
    """
    with _OPEN_LOCK:
        still_open = [latest]
        message_count = latest.message_count
        for directory in reversed(_OPEN):
            if directory is latest or directory.store is None:
                continue
            message_count += directory.message_count
            has_room = len(still_open) < _MOST_OPEN and message_count <= _MOST_MESSAGES
            if (has_room and directory.is_useful()) or not directory.close_if_idle():
                still_open.append(directory)
        _OPEN[:] = reversed(still_open)


class _NoHead:
    """An application's conversation is its own, so only the files change."""

    def advance(self, intent: object) -> None:
        pass

    def revert(self, intent: object) -> None:
        pass


def _author(by_agent: bool | None) -> str:
    return {True: AGENT, False: OTHER, None: UNKNOWN}[by_agent]


def _check_id(identity: str) -> None:
    if not identity or len(identity) > 200 or not identity.isprintable():
        raise Refused(f"{identity[:40]!r} is not a valid checkpoint id.", code="bad_id")
