"""Objects: bytes kept once, by their SHA-256, in packs, and found by a cache."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import suppress
from typing import Protocol

from deepctl.errors import Damaged, NewerFormat, StoreDamaged
from deepctl.files import atomic
from deepctl.store import packs
from deepctl.store.index_db import Cache, Location
from deepctl.store.object_batch import Batch
from deepctl.store.packs import Stored


class Objects:
    """The objects below `directory`, with `cache` to find them. The caller holds the lock of the profile.

    `counted` names the packs that something on record relies on. What only another pack has can be read, but is added
    again: that pack may be rubbish, and go. Without it, every pack counts.
    """

    def __init__(self, directory: str, cache: Cache, counted: Callable[[], Container[str]] | None = None) -> None:
        self.directory = directory
        self._cache = cache
        self._counted = counted
        self._known: set[str] | None = None
        self._generation = cache.generation
        self._is_complete = False
        self._batch: Batch | None = None
        self.scratch: dict[bytes, bytes] = {}

    @property
    def has_ledger(self) -> bool:
        """Whether a pack must be named by something to count."""
        return self._counted is not None

    def names(self) -> set[str]:
        """Names of the packs that are on the disk."""
        try:
            return {name for name in os.listdir(self.directory) if name.endswith(packs.SUFFIX)}
        except FileNotFoundError:
            return set()

    def _packs(self) -> set[str]:
        """Names of the packs that are there, all of them in the cache."""
        while self._known is None or self._generation != self._cache.generation:
            self._generation = self._cache.generation
            there = self.names()
            cached = self._cache.packs()
            if cached - there:
                self._cache.drop_packs()
                cached = set()
            self._is_complete = not cached
            for name in there - cached:
                try:
                    self._cache.add_pack(name, (entry[:4] for entry in self.table(name)))
                except NewerFormat:
                    raise  # nobody can tell what is in it, and whether more would be lost by going on
                except Damaged:
                    continue  # `verify` names it; its objects are looked for elsewhere
            self._known = there
        return self._known

    def find(self, digest: bytes) -> Location | None:
        """Where an object lies, or `None` if it is not kept."""
        if self._batch is not None and (added := self._batch.find(digest)) is not None:
            return added
        there = self._packs()
        if not there:
            return None
        found = self._cache.find(digest)
        if self._generation != self._cache.generation:
            # It has lost what it knew: made anew from the packs.
            there = self._packs()
            found = self._cache.find(digest)
        return found if found is not None and found.pack in there else None

    def _find_for_certain(self, digest: bytes) -> Location | None:
        """The same; that the cache does not know an object is no evidence that it is gone, the packs' tables are."""
        found = self.find(digest)
        if found is None and not self._is_complete:
            self.forget()
            found = self.find(digest)
        return found

    def keeps(self, digest: bytes) -> bool:
        """Whether an object is kept for certain, or about to be: whether a record may name it."""
        if self._batch is not None and self._batch.find(digest) is not None:
            return True
        found = self.find(digest)
        return found is not None and (self._counted is None or found.pack in self._counted())

    def read(self, digest: bytes) -> bytes:
        """An object, whole. Raises `Damaged` if it is not there or not what its hash says."""
        return b"".join(self.chunks(digest))

    def chunks(self, digest: bytes) -> Iterator[bytes]:
        """An object in pieces of about a mebibyte. `Damaged` comes with the last piece at the latest."""
        if digest in self.scratch:
            yield self.scratch[digest]
            return
        location = self._find_for_certain(digest)
        if location is None:
            raise StoreDamaged(f"Object {digest.hex()[:16]} is missing from {self.directory}.")
        if self._batch is not None:
            self._batch.flush()
        path = os.path.join(self.directory, location.pack)
        descriptor = atomic.open_regular(path, os.O_RDONLY)
        try:
            yield from packs.verified(packs.pieces(descriptor, location), digest, path)
        finally:
            os.close(descriptor)

    def adding(self) -> Batch:
        """A batch of objects that are added together, or not at all. They can be read from the start."""
        self._packs()
        self._batch = Batch(self)
        return self._batch

    def added(self, name: str, table: list[Stored]) -> None:
        """A batch's pack is in place."""
        self._cache.add_pack(name, (entry[:4] for entry in table))
        self._packs().add(name)

    def batch_ended(self) -> None:
        """What was in the batch is in its pack now, or nowhere."""
        self._batch = None

    def table(self, name: str) -> list[Stored]:
        """The table of one pack. Raises `Damaged`."""
        return packs.read_table(os.path.join(self.directory, name))

    def is_as_stored(self, name: str, entry: Stored) -> bool:
        """Whether the bytes of an object in a pack are those that were written."""
        found = 0
        descriptor = atomic.open_regular(os.path.join(self.directory, name), os.O_RDONLY)
        try:
            position, end = entry.offset, entry.offset + entry.stored
            while position < end and (piece := os.pread(descriptor, min(packs.CHUNK, end - position), position)):
                found = zlib.crc32(piece, found)
                position += len(piece)
        finally:
            os.close(descriptor)
        return found == entry.crc

    def forget(self) -> None:
        """Know nothing any more of where objects are; it is found out again when it is needed."""
        self._cache.forget()
        self._known = None

    def remove_pack(self, name: str) -> None:
        """Delete a pack; the caller knows that nothing needs it. Nothing if it is gone already."""
        self._known = None
        # First, as it frees the space that the cache may need.
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, name))
        if name in self._cache.packs():
            self._cache.drop_packs()


class Sink(Protocol):
    """Where a snapshot puts what it finds: a `Batch`, or a `Scratch`."""

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


class Scratch:
    """For looking at a workspace without keeping it: trees can be read as long as `objects` lives, files cannot."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._hasher = packs.Hasher()

    def add(self, data: bytes) -> bytes:
        """Remember `data`; returns its hash."""
        digest = hashlib.sha256(data).digest()
        self._objects.scratch[digest] = data
        return digest

    def has(self, digest: bytes) -> bool:
        """Whether an object can be read."""
        return digest in self._objects.scratch or self._objects.find(digest) is not None

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """The hash and the size of an open file."""
        return self._hasher.hashed(descriptor)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Nothing is kept, so nothing follows."""
