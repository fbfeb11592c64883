"""`Batch`: objects that are added together, as one pack, or not at all."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deepctl import cancellation
from deepctl.files import atomic, sparse_files
from deepctl.store.index_db import Location
from deepctl.store.ledger import UNCOUNTED
from deepctl.store.packs import CHUNK, HEADER, SUFFIX, Hasher, Packer, Stored, tail

if TYPE_CHECKING:
    from deepctl.store.object_store import Objects

_SMALL = 1 << 20
_TINY = 4096
_LEVEL = 1


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
        self._hasher = Hasher()

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
        return self._objects.keeps(digest)

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
        digest, length = self._hasher.hashed(descriptor)
        if self.has(digest):
            return digest, length
        return self._add_large(descriptor)

    def _add_large(self, descriptor: int) -> tuple[bytes, int]:
        start = self._begin()
        stored = self._hasher.begin()
        length = 0
        packer = Packer(_LEVEL)
        for chunk in sparse_files.pieces(descriptor):
            cancellation.look()
            stored.update(chunk)
            length += len(chunk)
            self._write(packer.compress(chunk))
        self._write(packer.finish())
        # Kept compressed even if that is longer: which it is can only be known when it has been written.
        digest = stored.digest()
        self._finish(digest, start, length, compressed=True)
        return digest, length

    def copy(self, digest: bytes) -> None:
        """Keep an object that lies in another pack here as well. Raises `Damaged` if it is not what it should be."""
        for _ in self._objects.chunks(digest):
            pass
        location = self._objects.find(digest)
        if location is None or digest in self._new:
            return
        start = self._begin()
        descriptor = atomic.open_regular(os.path.join(self._objects.directory, location.pack), os.O_RDONLY)
        try:
            position, end = location.offset, location.offset + location.stored
            while position < end:
                piece = os.pread(descriptor, min(CHUNK, end - position), position)
                self._write(piece)
                position += len(piece)
        finally:
            os.close(descriptor)
        self._finish(digest, start, location.size)

    def _begin(self) -> int:
        if self._descriptor < 0:
            atomic.make_root(self._objects.directory)
            self._path = os.path.join(self._objects.directory, f".{os.urandom(8).hex()}.tmp")
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, atomic.FILE_MODE)
            self._write(HEADER)
        self._crc = 0
        return self._end

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._buffer += data
        self._end += len(data)
        if len(self._buffer) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is in memory to the unfinished pack, so that it can be read there."""
        if self._buffer:
            atomic.write_all(self._descriptor, bytes(self._buffer))
            self._buffer.clear()

    def _finish(self, digest: bytes, start: int, size: int, *, compressed: bool = False) -> None:
        stored = self._end - start
        if compressed and stored == size:
            # The length tells how an object is stored; make this one tell the truth.
            self._write(b"\0")
            stored += 1
        self._new[digest] = Location(os.path.basename(self._path), start, stored, size)
        self._table.append(Stored(digest, start, stored, size, self._crc))

    def drop(self) -> None:
        """Keep nothing of this after all."""
        self._table, self._new, self._afterwards = [], {}, []

    def commit(self) -> None:
        """Sync what was added into place; nothing if nothing was."""
        if self._table:
            self._seal()
        for action in self._afterwards:
            action()
        self._afterwards = []

    def _seal(self) -> None:
        self._write(tail(self._table))
        self.flush()
        if self._objects.has_ledger:
            os.fchmod(self._descriptor, UNCOUNTED)
        os.fsync(self._descriptor)
        self.pack = os.urandom(8).hex() + SUFFIX
        os.rename(self._path, os.path.join(self._objects.directory, self.pack))
        atomic.sync_directory(self._objects.directory)
        self._new = {}
        self._objects.added(self.pack, self._table)
        self._table = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        except BaseException:
            if self.pack:
                # Nothing may rely on it. Where it cannot be removed now, its mode tells the next command.
                with suppress(OSError):
                    self._objects.remove_pack(self.pack)
            raise
        finally:
            self._objects.batch_ended()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                with suppress(OSError):  # the next command removes it
                    os.unlink(self._path)


def _compressed(data: bytes) -> bytes:
    if len(data) > _TINY:
        return zlib.compress(data, _LEVEL)
    # Making ready zlib's usual tables takes longer than compressing a small file; these are an eighth of them.
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, 12, 5)
    return packer.compress(data) + packer.flush()


def _read_all(descriptor: int) -> bytes:
    chunks = []
    while chunk := os.read(descriptor, CHUNK):
        chunks.append(chunk)
        if len(chunks) > 1 and sum(map(len, chunks)) > _SMALL:
            break
    return b"".join(chunks)
