"""Objects: bytes stored once, by their SHA-256. The protocol of storage engines.

Trees, snapshots, rewinds, diffs and exports use only these protocols. `pack_store` is the engine for local files.
Operations on packs (repacking, verifying and repairing them) use that engine directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self


class ObjectReader(Protocol):
    """Objects that can be read, by their hash.

    `scratch` has further objects, only in memory: see `trees.ScratchWriter`.
    """

    @property
    def scratch(self) -> dict[bytes, bytes]:
        """Objects that are not stored, by their hash."""
        ...

    def has(self, digest: bytes) -> bool:
        """Whether an object is stored, as far as is known without reading it."""
        ...

    def stored(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the objects that are stored, as far as is known without reading them."""
        ...

    def read(self, digest: bytes) -> bytes:
        """A whole object. Raises `Damaged` if it is missing or does not match its hash."""
        ...

    def chunks(self, digest: bytes) -> Iterator[bytes]:
        """An object in pieces of about a mebibyte. `Damaged` is raised with the last piece at the latest."""
        ...


class ObjectWriter(Protocol):
    """The target of a snapshot's objects: an `ObjectBatch`, or a `trees.ScratchWriter`."""

    def add(self, data: bytes) -> bytes:
        """Store `data`; returns its hash."""
        ...

    def has(self, digest: bytes) -> bool:
        """Whether an object is stored already, or is in this batch."""
        ...

    def stored(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the objects that are stored already, by one query for all."""
        ...

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """Store the content of an open file of about `size` bytes; returns its hash and its real size."""
        ...

    def afterwards(self, action: Callable[[], None]) -> None:
        """Run a function once everything is stored; never after an error."""
        ...


class ObjectBatch(ObjectWriter, Protocol):
    """Objects that are added together, or not at all: a context manager. An error leaves nothing."""

    @property
    def pack(self) -> str:
        """The name that the ledger must contain so that the objects count; empty if there is none."""
        ...

    @property
    def added_bytes(self) -> int:
        """Bytes on disk that the batch takes so far."""
        ...

    def copy(self, digest: bytes) -> None:
        """Store an object a second time, so that its first copy may be removed. Raises `Damaged` for a damaged
        object.
        """
        ...

    def drop(self) -> None:
        """Store nothing of this batch."""
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
