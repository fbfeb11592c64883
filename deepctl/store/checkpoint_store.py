"""`Checkpoints`: one directory of them, open for changes. The plain, synchronous core of everything that saves any.

A checkpoint is made in two steps: what is new goes into one pack, synced and renamed into place; then one line in the
ledger makes it count. What a kill leaves between the two is rubbish, and opening the directory again collects it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NamedTuple, Self

from deepctl.files import atomic
from deepctl.store import prompt_tags, snapshot
from deepctl.store.index_db import Cache
from deepctl.store.ledger import LEDGER, Ledger, LedgerWriter, read
from deepctl.store.object_store import ObjectBatch, ObjectStore, ObjectWriter
from deepctl.store.pack_store import PackStore
from deepctl.store.packs import is_uncounted
from deepctl.store.records import Position, Record, new_id
from deepctl.store.snapshot import LeaveOut, Report, Snapshot

PACKS = "packs"
_PROMPT_LENGTH = 200


class WorkspaceOptions(NamedTuple):
    """The directory that is kept, the patterns of what is left out, and who is told how far a long snapshot is."""

    root: str
    exclude: Sequence[str] = ()
    report: Report | None = None


def now() -> str:
    """The time, RFC 3339 in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def excluding(patterns: Sequence[str]) -> LeaveOut | None:
    """Which paths the patterns of `snapshot.exclude` leave out; they mean what they mean in a .gitignore."""
    if not patterns:
        return None
    from pathspec import GitIgnoreSpec

    spec = GitIgnoreSpec.from_lines(patterns)
    return lambda path, is_directory: spec.match_file(os.fsdecode(path) + ("/" if is_directory else ""))


class Checkpoints:
    """The checkpoints in `directory`. The caller holds the lock that guards it, and closes this in the end.

    `cache` is the path of the cache, which lies elsewhere; without one, it lasts as long as this object. `collect` says
    whether what killed writers left is removed at once, and `release_reserve` makes some room on a full disk.
    Raises `NewerFormat`, `StorageError` or `OSError`.
    """

    def __init__(
        self,
        directory: str,
        *,
        cache: str = ":memory:",
        collect: bool = True,
        release_reserve: Callable[[], object] = lambda: None,
    ) -> None:
        self.directory = directory
        self.release_reserve = release_reserve
        self._writer = LedgerWriter(directory)
        self.cache = Cache(cache)
        self.packs = PackStore(os.path.join(directory, PACKS), self.cache, lambda: self.ledger.packs)
        self.objects: ObjectStore = self.packs
        if collect:
            self.collect()

    @property
    def ledger(self) -> Ledger:
        """What there is."""
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
        """Whether nobody else has written to the ledger since, or put another in its place."""
        try:
            return self._writer.is_current(os.stat(os.path.join(self.directory, LEDGER)))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let go of the files."""
        self._writer.close()
        self.cache.close()

    def collect(self) -> None:
        """Remove what killed and failed writers left.

        A pack gets another mode once a line names it (`packs.UNCOUNTED`). One without a line and with that mode, or a
        damaged line, mean that the ledger has lost something: then nothing is deleted but what it calls gone itself.
        """
        self.sweep()
        if self.ledger.damage:
            return
        for name in self.strays():
            if is_uncounted(os.lstat(self.packs.path(name))):
                self.packs.remove_pack(name)

    def sweep(self) -> None:
        """Remove unfinished packs, and those that the ledger calls gone."""
        try:
            found = os.listdir(self.packs.directory)
        except FileNotFoundError:
            return
        for name in found:
            if name.startswith(".") and name.endswith(".tmp"):
                os.unlink(self.packs.path(name))
        for name in (self.ledger.gone - self.ledger.packs).intersection(found):
            self.packs.remove_pack(name)

    def strays(self) -> set[str]:
        """The packs on the disk that no line names."""
        return self.packs.names() - self.ledger.packs - self.ledger.gone

    def new_batch(self) -> ObjectBatch:
        """A batch of objects."""
        return self.objects.new_batch()

    def snapshot(self, workspace: WorkspaceOptions, sink: ObjectWriter) -> Snapshot:
        """The whole of a workspace; what is new of it goes into `sink`."""
        return snapshot.snapshot(
            workspace.root,
            sink,
            self.cache,
            leave_out=excluding(workspace.exclude),
            report=workspace.report,
            tidy=True,
        )

    def save(
        self,
        position: Position,
        kind: str,
        *,
        author: str,
        workspace: WorkspaceOptions | None,
        wanted: Callable[[str], bool] = lambda tree: True,
        **fields: Any,
    ) -> Record | None:
        """Make a checkpoint; none if `wanted` says of the workspace's tree that there need be none.

        Without a workspace, only the conversation is kept. `fields` are further fields of the `Record`; `None` leaves
        one as it is.
        """
        with self.new_batch() as batch:
            taken = self.snapshot(workspace, batch) if workspace is not None else None
            if taken is not None and not wanted(taken.tree.hex()):
                batch.drop()
                return None
        with self.counting(batch):
            record = self.record(position, kind, author, taken, batch, workspace, **fields)
            self._writer.add(record)
        return record

    @contextmanager
    def counting(self, batch: ObjectBatch) -> Iterator[None]:
        """While entered, a line is written that makes the pack of `batch` count. Without that line, the pack goes."""
        try:
            yield
        except BaseException:
            # The disk is asked: an interrupt may have come when the line was there and nothing here knew of it.
            if batch.pack and batch.pack not in read(self.directory).packs:
                with suppress(OSError):  # the next command removes it
                    self.packs.remove_pack(batch.pack)
            raise
        if batch.pack:
            with suppress(OSError):  # only if its line is lost does it matter
                os.chmod(self.packs.path(batch.pack), atomic.FILE_MODE)

    def record(
        self,
        position: Position,
        kind: str,
        author: str,
        taken: Snapshot | None,
        batch: ObjectBatch,
        workspace: WorkspaceOptions | None,
        **fields: Any,
    ) -> Record:
        """The record of a checkpoint whose objects are in `batch`, which has been committed."""
        prompt = " ".join(prompt_tags.said(position.prompt)[: 4 * _PROMPT_LENGTH].split())[:_PROMPT_LENGTH]
        record = Record(
            id=new_id(),
            kind=kind,
            session=position.session,
            turn=position.turn,
            created_at=now(),
            log=position.log,
            offset=position.offset,
            digest=position.digest,
            message_count=position.message_count,
            author=author,
            parent=self.ledger.heads.get(position.session),
            added_bytes=batch.added_bytes,
            pack=batch.pack,
            prompt=prompt,
        )
        if taken is not None and workspace is not None:
            record = record._replace(
                tree=taken.tree.hex(),
                files=taken.files,
                bytes=taken.bytes,
                unkept=[[os.fsdecode(one.path), one.reason] for one in taken.unkept],
                exclude=list(workspace.exclude),
            )
        return record._replace(**{key: value for key, value in fields.items() if value is not None})

    @property
    def tree(self) -> str:
        """What the workspace was when it was last looked at; empty if it never was."""
        return self.ledger.states[-1].tree if self.ledger.states else ""
