r"""Objects: bytes kept once, by their SHA-256, in immutable packs.

A pack (`packs/<id>.pack`) is `deepctl pack 1\n`, the objects one after another, a table with an entry for each, and a
trailer: the number of entries and the SHA-256 of header, table and number. Each object is stored as it is or
compressed by zlib, whichever is shorter, and checked against its hash whenever it is read; the table has a CRC-32 of
what is stored (several compressed forms can mean the same) and is checked against the trailer. So every byte is
covered. What one checkpoint adds is one pack, synced once.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from deepctl.domain.checkpoints.cache import Cache, Location
from deepctl.errors import Damaged
from deepctl.files import durable

HASH_SIZE = 32
_HEADER = b"deepctl pack 1\n"
_ENTRY = struct.Struct(">32sQQQI")
_TRAILER = struct.Struct(">Q32s8s")
_MAGIC = b"DCPACK1\n"
SUFFIX = ".pack"
_CHUNK = 1 << 20
_SMALL = 1 << 20
_TINY = 4096
_LEVEL = 1


class Stored(NamedTuple):
    """One object of a pack's table: its hash, where it lies in the pack, how long it is there and in itself.

    `crc` is the CRC-32 of what is stored.
    """

    digest: bytes
    offset: int
    stored: int
    size: int
    crc: int


class Objects:
    """The objects below `directory`, with `cache` to find them. The caller holds the lock of the profile."""

    def __init__(self, directory: str, cache: Cache) -> None:
        self.directory = directory
        self._cache = cache
        self._known: set[str] | None = None
        self._batch: Batch | None = None
        self.scratch: dict[bytes, bytes] = {}

    def names(self) -> set[str]:
        """Names of the packs that are on the disk."""
        try:
            return {name for name in os.listdir(self.directory) if name.endswith(SUFFIX)}
        except FileNotFoundError:
            return set()

    def _packs(self) -> set[str]:
        """Names of the packs that are there, all of them in the cache."""
        if self._known is None:
            there = self.names()
            cached = self._cache.packs()
            for name in cached - there:
                self._cache.drop_pack(name)
            for name in there - cached:
                try:
                    self._cache.add_pack(name, (entry[:4] for entry in self.table(name)))
                except Damaged:
                    continue  # `verify` names it; its objects are looked for elsewhere
            self._known = there
        return self._known

    def find(self, digest: bytes) -> Location | None:
        """Where an object lies, or `None` if it is not kept."""
        if self._batch is not None and (added := self._batch.find(digest)) is not None:
            return added
        packs = self._packs()
        if not packs:
            return None
        found = self._cache.find(digest)
        return found if found is not None and found.pack in packs else None

    def read(self, digest: bytes) -> bytes:
        """An object, whole. Raises `Damaged` if it is not there or not what its hash says."""
        return b"".join(self.chunks(digest))

    def chunks(self, digest: bytes) -> Iterator[bytes]:
        """An object in pieces of about a mebibyte. `Damaged` comes with the last piece at the latest."""
        if digest in self.scratch:
            yield self.scratch[digest]
            return
        location = self.find(digest)
        if location is None:
            raise Damaged(f"Object {digest.hex()[:16]} is missing from {self.directory}.")
        if self._batch is not None:
            self._batch.flush()
        path = os.path.join(self.directory, location.pack)
        descriptor = durable.open_regular(path, os.O_RDONLY)
        try:
            yield from _verified(_pieces(descriptor, location), digest, path)
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
        return read_table(os.path.join(self.directory, name))

    def is_as_stored(self, name: str, entry: Stored) -> bool:
        """Whether the bytes of an object in a pack are those that were written."""
        found = 0
        descriptor = durable.open_regular(os.path.join(self.directory, name), os.O_RDONLY)
        try:
            position, end = entry.offset, entry.offset + entry.stored
            while position < end and (piece := os.pread(descriptor, min(_CHUNK, end - position), position)):
                found = zlib.crc32(piece, found)
                position += len(piece)
        finally:
            os.close(descriptor)
        return found == entry.crc

    def remove_pack(self, name: str) -> None:
        """Delete a pack; the caller knows that nothing needs it. Nothing if it is gone already."""
        if name in self._cache.packs():
            self._cache.drop_pack(name)
        if self._known is not None:
            self._known.discard(name)
        try:
            os.unlink(os.path.join(self.directory, name))
        except FileNotFoundError:
            pass


class Sink(Protocol):
    """Where a snapshot puts what it finds: a `Batch`, or a `Scratch`."""

    def add(self, data: bytes) -> bytes:
        """Keep `data`; returns its hash."""
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

    def add(self, data: bytes) -> bytes:
        """Remember `data`; returns its hash."""
        digest = hashlib.sha256(data).digest()
        self._objects.scratch[digest] = data
        return digest

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """The hash and the size of an open file."""
        return _hashed(descriptor)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Nothing is kept, so nothing follows."""


class Batch:
    """Objects being added: a context manager, whose end syncs one pack into place. An error leaves nothing."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._table: list[Stored] = []
        self._new: dict[bytes, Location] = {}
        self._afterwards: list[Callable[[], None]] = []
        self.pack = ""
        """The name of the pack, once there is one."""
        self._descriptor = -1
        self._path = ""
        self._end = 0
        self._crc = 0
        self._buffer = bytearray()

    @property
    def added_bytes(self) -> int:
        """Bytes on disk that this batch takes so far."""
        return self._end

    def __enter__(self) -> Self:
        return self

    def find(self, digest: bytes) -> Location | None:
        """Where in the unfinished pack an object lies, if it is one that was added."""
        return self._new.get(digest)

    def has(self, digest: bytes) -> bool:
        """Whether an object is kept already, or about to be."""
        return self._objects.find(digest) is not None

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do something once everything is in place; never, if it is not."""
        self._afterwards.append(action)

    def add(self, data: bytes) -> bytes:
        """Keep `data`; returns its hash."""
        digest = hashlib.sha256(data).digest()
        if not self.has(digest):
            packed = _compressed(data)
            start = self._begin()
            self._write(packed if len(packed) < len(data) else data)
            self._finish(digest, start, len(data))
        return digest

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """Keep the content of an open file of about `size` bytes; returns its hash and its real size.

        A large file is read twice (is it new? then store it) and never held in memory.
        """
        if size <= _SMALL:
            data = _read_all(descriptor)
            if len(data) <= _SMALL:
                return self.add(data), len(data)
            os.lseek(descriptor, 0, os.SEEK_SET)
        digest, length = _hashed(descriptor)
        if self.has(digest):
            return digest, length
        os.lseek(descriptor, 0, os.SEEK_SET)
        return self._add_large(descriptor)

    def _add_large(self, descriptor: int) -> tuple[bytes, int]:
        start = self._begin()
        stored = hashlib.sha256()
        length = 0
        packer = zlib.compressobj(_LEVEL)
        while chunk := os.read(descriptor, _CHUNK):
            stored.update(chunk)
            length += len(chunk)
            self._write(packer.compress(chunk))
        self._write(packer.flush())
        # Kept compressed even if that is longer: which it is can only be known when it has been written.
        self._finish(stored.digest(), start, length, compressed=True)
        return stored.digest(), length

    def copy(self, digest: bytes) -> None:
        """Keep an object that lies in another pack here as well. Raises `Damaged` if it is not what it should be."""
        for _ in self._objects.chunks(digest):
            pass
        location = self._objects.find(digest)
        if location is None or digest in self._new:
            return
        start = self._begin()
        descriptor = durable.open_regular(os.path.join(self._objects.directory, location.pack), os.O_RDONLY)
        try:
            position, end = location.offset, location.offset + location.stored
            while position < end:
                piece = os.pread(descriptor, min(_CHUNK, end - position), position)
                self._write(piece)
                position += len(piece)
        finally:
            os.close(descriptor)
        self._finish(digest, start, location.size)

    def _begin(self) -> int:
        if self._descriptor < 0:
            durable.make_root(self._objects.directory)
            self._path = os.path.join(self._objects.directory, f".{os.urandom(8).hex()}.tmp")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, durable.FILE_MODE)
            self._write(_HEADER)
        self._crc = 0
        return self._end

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._buffer += data
        self._end += len(data)
        if len(self._buffer) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory to the unfinished pack, so that it can be read there."""
        if self._buffer:
            durable.write_all(self._descriptor, bytes(self._buffer))
            self._buffer.clear()

    def _finish(self, digest: bytes, start: int, size: int, *, compressed: bool = False) -> None:
        stored = self._end - start
        if compressed and stored == size:
            # The length tells how an object is stored; make this one tell the truth.
            self._write(b"\0")
            stored += 1
        self._new[digest] = Location(os.path.basename(self._path), start, stored, size)
        self._table.append(Stored(digest, start, stored, size, self._crc))

    def commit(self) -> None:
        """Sync what was added into place; nothing if nothing was."""
        if self._table:
            self._seal()
        for action in self._afterwards:
            action()
        self._afterwards = []

    def _seal(self) -> None:
        table = b"".join(_ENTRY.pack(*entry) for entry in self._table)
        count = struct.pack(">Q", len(self._table))
        checksum = hashlib.sha256(_HEADER + table + count).digest()
        self._write(table + _TRAILER.pack(len(self._table), checksum, _MAGIC))
        self.flush()
        os.fsync(self._descriptor)
        self.pack = os.urandom(8).hex() + SUFFIX
        os.rename(self._path, os.path.join(self._objects.directory, self.pack))
        durable.sync_directory(self._objects.directory)
        self._new = {}
        self._objects.added(self.pack, self._table)
        self._table = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self._objects.batch_ended()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                try:
                    os.unlink(self._path)
                except FileNotFoundError:
                    pass


def _compressed(data: bytes) -> bytes:
    if len(data) > _TINY:
        return zlib.compress(data, _LEVEL)
    # Making ready zlib's usual tables takes longer than compressing a small file; these are an eighth of them.
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 12, 5)
    return packer.compress(data) + packer.flush()


def _hashed(descriptor: int) -> tuple[bytes, int]:
    seen = hashlib.sha256()
    length = 0
    while chunk := os.read(descriptor, _CHUNK):
        seen.update(chunk)
        length += len(chunk)
    return seen.digest(), length


def _read_all(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, _CHUNK):
        chunks.append(chunk)
        if len(chunks) > 1 and sum(map(len, chunks)) > _SMALL:
            break
    return b"".join(chunks)


def _pieces(descriptor: int, location: Location) -> Iterator[bytes]:
    unpacker = zlib.decompressobj() if location.stored != location.size else None
    position, end = location.offset, location.offset + location.stored
    while position < end:
        raw = os.pread(descriptor, min(_CHUNK, end - position), position)
        if not raw:
            return
        position += len(raw)
        if unpacker is None:
            yield raw
            continue
        while raw and not unpacker.eof:
            yield unpacker.decompress(raw, _CHUNK)
            raw = unpacker.unconsumed_tail


def _verified(pieces: Iterator[bytes], digest: bytes, path: str) -> Iterator[bytes]:
    seen = hashlib.sha256()
    try:
        for piece in pieces:
            seen.update(piece)
            yield piece
    except zlib.error:
        raise Damaged(f"Object {digest.hex()[:16]} in {path} is damaged.") from None
    if seen.digest() != digest:
        raise Damaged(f"Object {digest.hex()[:16]} in {path} is damaged.")


def frame_size(count: int) -> tuple[int, int]:
    """The bytes of a pack with `count` objects before and behind these."""
    return len(_HEADER), count * _ENTRY.size + _TRAILER.size


def read_table(path: str) -> list[Stored]:
    """The table of a pack. Raises `Damaged` if header, table or trailer are not what they were."""
    descriptor = durable.open_regular(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        trailer = os.pread(descriptor, _TRAILER.size, max(0, end - _TRAILER.size))
        if len(trailer) != _TRAILER.size:
            raise Damaged(f"Pack {path} is cut short.")
        count, checksum, magic = _TRAILER.unpack(trailer)
        start = end - _TRAILER.size - count * _ENTRY.size
        if magic != _MAGIC or start < len(_HEADER):
            raise Damaged(f"Pack {path} is damaged at its end.")
        table = os.pread(descriptor, count * _ENTRY.size, start)
        header = os.pread(descriptor, len(_HEADER), 0)
    finally:
        os.close(descriptor)
    if hashlib.sha256(header + table + struct.pack(">Q", count)).digest() != checksum:
        raise Damaged(f"The table of pack {path} is damaged.")
    return [Stored(*entry) for entry in _ENTRY.iter_unpack(table)]
