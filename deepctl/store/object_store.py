"""Objects: bytes kept once, by their SHA-256. The protocol of whatever engine keeps them.

Trees, snapshots, rewinds, diffs and exports know objects by these protocols only. `pack_store` is the engine for local
files. What is particular to packs (repacking, verifying and repairing them) uses that engine directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self


class ObjectReader(Protocol):
    """Objects that can be read, by their hash.

    `scratch` has further objects, in memory only: see `trees.ScratchWriter`.
    """

    @property
    def scratch(self) -> dict[bytes, bytes]:
        """Objects that are not kept, by their hash."""
        ...

    def has(self, digest: bytes) -> bool:
        """Whether an object is kept, as far as is known without reading it."""
        ...

    def read(self, digest: bytes) -> bytes:
        """An object, whole. Raises `Damaged` if it is missing or not what its hash says."""
        ...

    def chunks(self, digest: bytes) -> Iterator[bytes]:
        """An object in pieces of about a mebibyte. `Damaged` comes with the last piece at the latest."""
        ...


class ObjectWriter(Protocol):
    """Where a snapshot puts its objects: an `ObjectBatch`, or a `trees.ScratchWriter`."""

    def add(self, data: bytes) -> bytes:
        """Keep `data`; returns its hash."""
        ...

    def has(self, digest: bytes) -> bool:
        """Whether an object is kept already, or about to be."""
        ...

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """Keep the content of an open file of about `size` bytes; returns its hash and its real size."""
        ...

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something once everything is kept; never, if it is not."""
        ...


class ObjectBatch(ObjectWriter, Protocol):
    """Objects that are added together, or not at all: a context manager. An error leaves nothing."""

    @property
    def pack(self) -> str:
        """What the ledger is to name so that the objects count; empty if there is no such thing, or nothing was new."""
        ...

    @property
    def added_bytes(self) -> int:
        """Bytes on disk that the batch takes so far."""
        ...

    def copy(self, digest: bytes) -> None:
        """Keep an object a second time, so that its first place may go. Raises `Damaged` for a damaged object."""
        ...

    def drop(self) -> None:
        """Keep nothing of this after all."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class ObjectStore(ObjectReader, Protocol):
    """Objects that can be read and added. The caller holds the lock of the profile."""

    def new_batch(self) -> ObjectBatch:
        """A batch of objects. They can be read from the start."""
        ...
