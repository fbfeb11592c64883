r"""Objects: bytes kept once, by their SHA-256, in immutable packs.

A pack (`packs/<id>.pack`) is `deepctl pack 1\n`, the objects one after another, a table with an entry for each, and a
trailer: the number of entries and the SHA-256 of header, table and number. Each object is stored as it is or
compressed by zlib, whichever is shorter, and checked against its hash whenever it is read; the table against the
trailer. So every byte is covered. What one checkpoint adds is one pack, synced once.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from deepctl.domain.checkpoints.cache import Cache, Location
from deepctl.errors import Damaged
from deepctl.files import durable

HASH_SIZE = 32
_HEADER = b"deepctl pack 1\n"
_ENTRY = struct.Struct(">32sQQQ")
_TRAILER = struct.Struct(">Q32s8s")
_MAGIC = b"DCPACK1\n"
_SUFFIX = ".pack"
_CHUNK = 1 << 20
_SMALL = 1 << 20
_TINY = 4096
_LEVEL = 1


class Stored(NamedTuple):
    """One object of a pack's table: its hash, where it lies in the pack and how long it is there and in itself."""

    digest: bytes
    offset: int
    stored: int
    size: int


class Objects:
    """The objects below `directory`, with `cache` to find them. The caller holds the lock of the profile."""

    def __init__(self, directory: str, cache: Cache) -> None:
        self.directory = directory
        self._cache = cache
        self._known: set[str] | None = None

    def _packs(self) -> set[str]:
        """Names of the packs that are there, all of them in the cache."""
        if self._known is None:
            durable.make_root(self.directory)
            there = {name for name in os.listdir(self.directory) if name.endswith(_SUFFIX)}
            cached = self._cache.packs()
            for name in cached - there:
                self._cache.drop_pack(name)
            for name in there - cached:
                try:
                    self._cache.add_pack(name, read_table(os.path.join(self.directory, name)))
                except Damaged:
                    continue  # `verify` names it; its objects are looked for elsewhere
            self._known = there
        return self._known

    def find(self, digest: bytes) -> Location | None:
        """Where an object lies, or `None` if it is not kept."""
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
        location = self.find(digest)
        if location is None:
            raise Damaged(f"Object {digest.hex()[:16]} is missing from {self.directory}.")
        path = os.path.join(self.directory, location.pack)
        descriptor = durable.open_regular(path, os.O_RDONLY)
        try:
            yield from _verified(_pieces(descriptor, location), digest, path)
        finally:
            os.close(descriptor)

    def adding(self) -> Batch:
        """A batch of objects that are added together, or not at all."""
        self._packs()
        return Batch(self)

    def added(self, name: str, table: list[Stored]) -> None:
        """A batch's pack is in place."""
        self._cache.add_pack(name, table)
        self._packs().add(name)


class Batch:
    """Objects being added: a context manager, whose end syncs one pack into place. An error leaves nothing."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._table: list[Stored] = []
        self._new: set[bytes] = set()
        self._descriptor = -1
        self._path = ""
        self._end = 0
        self._buffer = bytearray()

    @property
    def added_bytes(self) -> int:
        """Bytes on disk that this batch takes so far."""
        return self._end

    def __enter__(self) -> Self:
        return self

    def has(self, digest: bytes) -> bool:
        """Whether an object is kept already, or about to be."""
        return digest in self._new or self._objects.find(digest) is not None

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
        seen = hashlib.sha256()
        length = 0
        while chunk := os.read(descriptor, _CHUNK):
            seen.update(chunk)
            length += len(chunk)
        if self.has(seen.digest()):
            return seen.digest(), length
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

    def _begin(self) -> int:
        if self._descriptor < 0:
            self._path = os.path.join(self._objects.directory, f".{os.urandom(8).hex()}.tmp")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, durable.FILE_MODE)
            self._write(_HEADER)
        return self._end

    def _write(self, data: bytes) -> None:
        self._buffer += data
        self._end += len(data)
        if len(self._buffer) >= _CHUNK:
            durable.write_all(self._descriptor, bytes(self._buffer))
            self._buffer.clear()

    def _finish(self, digest: bytes, start: int, size: int, *, compressed: bool = False) -> None:
        stored = self._end - start
        if compressed and stored == size:
            # The length tells how an object is stored; make this one tell the truth.
            self._write(b"\0")
            stored += 1
        self._new.add(digest)
        self._table.append(Stored(digest, start, stored, size))

    def commit(self) -> None:
        """Sync what was added into place; nothing if nothing was."""
        if not self._table:
            return
        table = b"".join(_ENTRY.pack(*entry) for entry in self._table)
        count = struct.pack(">Q", len(self._table))
        checksum = hashlib.sha256(_HEADER + table + count).digest()
        self._write(table + _TRAILER.pack(len(self._table), checksum, _MAGIC))
        durable.write_all(self._descriptor, bytes(self._buffer))
        self._buffer.clear()
        os.fsync(self._descriptor)
        name = os.urandom(8).hex() + _SUFFIX
        os.rename(self._path, os.path.join(self._objects.directory, name))
        durable.sync_directory(self._objects.directory)
        self._objects.added(name, self._table)
        self._table = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
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
