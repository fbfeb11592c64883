r"""The local engine of `object_store`: objects in packs, found by a cache, added in batches of one pack each.

A pack (`packs/<id>.pack`) is an immutable file: `deepctl pack 2\n`, the objects one after another, a table with an
entry for each object, and a trailer: the number of entries and the SHA-256 of header, table and number. Each object is
stored unchanged or compressed, whichever is shorter, and compared with its hash whenever it is read. The table has a
CRC-32 of the stored bytes, because several compressed forms can have the same content. The trailer checks the table. So
every byte is checked.

Compressed objects are frames of Zstandard, or in packs of format 1 a stream of zlib. The first bytes distinguish the
two, because no zlib stream begins with the mark of a frame. So an object can move to another pack without being
decompressed. A large content can have several frames. A mebibyte of zeros is always the same frame, which is made once.

The first packs have no CRC in their tables; they are recognised only by a checksum that matches without it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from functools import cache, cached_property
from types import ModuleType, TracebackType
from typing import NamedTuple, Self

from deepctl import cancellation, distribution, layout
from deepctl.errors import Damaged, NewerFormat, Refused, StoreDamaged
from deepctl.files import atomic, sparse_files
from deepctl.files.sparse_files import CHUNK, ZEROS
from deepctl.store.index_db import Cache, Location

PACK_HEADER = layout.format_header(layout.PACK_FORMAT)
PACK_SUFFIX = ".pack"
_HEADER_1 = layout.format_header(layout.PACK_FORMAT, 1)
_ENTRY = struct.Struct(">32sQQQI")
_ENTRY_WITHOUT_CRC = struct.Struct(">32sQQQ")
TABLE_FORMS = (_ENTRY, _ENTRY_WITHOUT_CRC)
"""The possible forms of a table entry."""
_FORMS = ((PACK_HEADER, _ENTRY), (_HEADER_1, _ENTRY), (_HEADER_1, _ENTRY_WITHOUT_CRC))
"""The possible headers with the forms of a table entry that belong to them. All headers have the same length."""
PACK_TRAILER = struct.Struct(">Q32s8s")
_MAGIC = b"DCPACK1\n"
UNCOUNTED = 0o400
"""The mode of a pack until a line of the ledger names it: a pack that still has this mode is garbage, and not a sign of
lost lines.

Packs of deepctl 0.1 had the mode of every file from the start.
"""

MAX_RATIO = 1 << 15
"""The maximum of bytes that one compressed byte becomes: a block of 4 bytes has at most 128 KiB."""
EMPTY_FRAME = b"\x50\x2a\x4d\x18\0\0\0\0"
"""A frame that every reader of Zstandard skips."""
_LEVEL = 1
"""Level 3 makes source code 4 % smaller, and takes half as much time again."""
_FRAME_MARK = b"\x28\xb5\x2f\xfd"
_MAX_WINDOW = 23
"""The binary logarithm of the memory in bytes that a frame may demand, 16 times what a frame of this level needs."""


class PackEntry(NamedTuple):
    """One object of a pack's table: its hash, its offset in the pack, its stored and its real length.

    `crc` is the CRC-32 of the stored bytes.
    """

    digest: bytes
    offset: int
    stored_size: int
    size: int
    crc: int


def stored_pieces(descriptor: int, location: Location) -> Iterator[bytes]:
    """The content of one object of an open pack, in pieces of about a mebibyte, unchecked except for its length.

    Raises `BadStream` if it is longer than its table says, because a manipulated pack must not fill the
    memory.
    """
    if location.stored_size == location.size:
        return _raw_pieces(descriptor, location, CHUNK)
    return decompressed(_raw_pieces(descriptor, location, _COMPRESSED_CHUNK), location.size)


def _raw_pieces(descriptor: int, location: Location, length: int) -> Iterator[bytes]:
    position, end = location.offset, location.offset + location.stored_size
    while position < end and (piece := os.pread(descriptor, min(length, end - position), position)):
        position += len(piece)
        yield piece


def verify_pieces(pieces: Iterator[bytes], digest: bytes, path: str) -> Iterator[bytes]:
    """The same pieces; raises `Damaged` with the last at the latest if they do not match the hash."""
    hasher = hashlib.sha256()
    try:
        for piece in pieces:
            hasher.update(piece)
            yield piece
    except BadStream:
        raise StoreDamaged(f"Object {digest.hex()[:16]} in {path} is damaged.") from None
    if hasher.digest() != digest:
        raise StoreDamaged(f"Object {digest.hex()[:16]} in {path} is damaged.")


def is_uncounted(status: os.stat_result) -> bool:
    """Whether a pack that the ledger does not name was never named: see `UNCOUNTED`."""
    return stat.S_IMODE(status.st_mode) == UNCOUNTED


def read_table(path: str) -> list[PackEntry]:
    """The table of a pack. Raises `Damaged` if header, table or trailer have changed, or `NewerFormat`."""
    descriptor = atomic.open_regular(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        header = os.pread(descriptor, len(PACK_HEADER), 0)
        trailer = os.pread(descriptor, PACK_TRAILER.size, max(0, end - PACK_TRAILER.size))
        if len(trailer) == PACK_TRAILER.size:
            for expected_header, form in _FORMS:
                table = _table(descriptor, end - PACK_TRAILER.size, trailer, expected_header, form)
                if table is None:
                    continue
                if header != expected_header:
                    raise StoreDamaged(f"The header of pack {path} is damaged.")
                return _entries(descriptor, table, form)
    finally:
        os.close(descriptor)
    # Only if no known form matches, because a flipped bit also makes another number.
    layout.check_format_header(layout.PACK_FORMAT, header, path)
    if len(trailer) != PACK_TRAILER.size:
        raise StoreDamaged(f"Pack {path} is cut short.")
    if trailer[-len(_MAGIC) :] != _MAGIC:
        raise StoreDamaged(f"Pack {path} is damaged at its end.")
    raise StoreDamaged(f"The table of pack {path} is damaged.")


def is_as_stored(descriptor: int, entry: PackEntry) -> bool:
    """Whether the bytes of an object in an open pack are intact."""
    return _crc(descriptor, entry.offset, entry.stored_size) == entry.crc


def _table(descriptor: int, end: int, trailer: bytes, header: bytes, form: struct.Struct) -> bytes | None:
    """The table that ends at `end`, if it has entries of this form and, with this header, matches the trailer."""
    count, checksum, magic = PACK_TRAILER.unpack(trailer)
    start = end - count * form.size
    if magic != _MAGIC or start < len(PACK_HEADER):
        return None
    table = os.pread(descriptor, count * form.size, start)
    return table if _table_checksum(header, table, count) == checksum else None


def _table_checksum(header: bytes, table: bytes, count: int) -> bytes:
    return hashlib.sha256(header + table + struct.pack(">Q", count)).digest()


def _entries(descriptor: int, table: bytes, form: struct.Struct) -> list[PackEntry]:
    if form is _ENTRY:
        return [PackEntry(*entry) for entry in form.iter_unpack(table)]
    # The stored bytes cannot be checked, only their content.
    return [
        PackEntry(digest, offset, stored_size, size, _crc(descriptor, offset, stored_size))
        for digest, offset, stored_size, size in form.iter_unpack(table)
    ]


def _crc(descriptor: int, position: int, length: int) -> int:
    crc, end = 0, position + length
    while position < end and (piece := os.pread(descriptor, min(CHUNK, end - position), position)):
        crc = zlib.crc32(piece, crc)
        position += len(piece)
    return crc


def table_and_trailer(table: list[PackEntry]) -> bytes:
    """The bytes after the objects of a pack: their table and the trailer."""
    entries = b"".join(_ENTRY.pack(*entry) for entry in table)
    return entries + PACK_TRAILER.pack(len(table), _table_checksum(PACK_HEADER, entries, len(table)), _MAGIC)


_SMALL = 1 << 20
_COMPRESSED_CHUNK = 1 << 16
"""Bytes of compressed data that are read at once: what is left of them after a frame is copied for the next."""
_TINY = 24
"""A content of at most this number of bytes is stored unchanged: a frame has 9 bytes before its first."""


class PackStore:
    """The objects in the packs of `directory`, with `cache` to find them. The caller holds the lock of the profile.

    `counted_packs` names the packs on which a record relies. An object that only another pack has can be read, but is
    added again, because that pack may be garbage, and be removed. Without it, every pack counts.
    """

    def __init__(self, directory: str, cache: Cache, counted_packs: Callable[[], Container[str]] | None = None) -> None:
        self.directory = directory
        self._cache = cache
        self._counted_packs = counted_packs
        self._known: set[str] | None = None
        self._generation = cache.generation
        self._is_complete = False
        self._batch: PackBatch | None = None
        self.scratch: dict[bytes, bytes] = {}

    @property
    def has_ledger(self) -> bool:
        """Whether a pack must be named by a line of the ledger to count."""
        return self._counted_packs is not None

    def names(self) -> set[str]:
        """Names of the packs that are on the disk."""
        try:
            return {name for name in os.listdir(self.directory) if name.endswith(PACK_SUFFIX)}
        except FileNotFoundError:
            return set()

    def path(self, name: str) -> str:
        """The path of a pack."""
        return os.path.join(self.directory, name)

    def _packs(self) -> set[str]:
        """Names of the packs that are on the disk, all of them in the cache."""
        while self._known is None or self._generation != self._cache.generation:
            self._generation = self._cache.generation
            present = self.names()
            indexed_packs = self._cache.packs()
            if indexed_packs - present:
                self._cache.drop_packs()
                indexed_packs = set()
            self._is_complete = not indexed_packs
            for name in present - indexed_packs:
                try:
                    self._cache.add_pack(name, (entry[:4] for entry in self.table(name)))
                except NewerFormat:
                    raise  # its content is unknown, so continuing might lose more
                except Damaged:
                    continue  # `verify` reports it; its objects are looked up elsewhere
            self._known = present
        return self._known

    def find(self, digest: bytes) -> Location | None:
        """The position of an object, or `None` if it is not stored."""
        if self._batch is not None and (new_location := self._batch.find(digest)) is not None:
            return new_location
        present = self._packs()
        if not present:
            return None
        location = self._cache.find(digest)
        if self._generation != self._cache.generation:
            # The cache was emptied: it is filled again from the packs.
            present = self._packs()
            location = self._cache.find(digest)
        return location if location is not None and location.pack in present else None

    def has(self, digest: bytes) -> bool:
        """Whether an object is stored, as far as is known without reading it."""
        return self.find(digest) is not None

    def stored(self, digests: Iterable[bytes], *, certainly: bool = False) -> set[bytes]:
        """Those of the objects that are stored, or with `certainly`, that a record may name. The open batch does not
        count.
        """
        wanted_digests = set(digests)
        present = self._packs() if wanted_digests else set()
        locations = self._cache.find_all(wanted_digests) if present else {}
        if self._generation != self._cache.generation:
            present = self._packs()
            locations = self._cache.find_all(wanted_digests)
        if certainly and self._counted_packs is not None:
            counted_packs = self._counted_packs()
            present = {pack for pack in present if pack in counted_packs}
        return {digest for digest, location in locations.items() if location.pack in present}

    def _find_for_certain(self, digest: bytes) -> Location | None:
        """Like `find`, but by the packs' tables, because an object that the cache lacks may exist."""
        location = self.find(digest)
        if location is None and not self._is_complete:
            self.forget()
            location = self.find(digest)
        return location

    def keeps(self, digest: bytes) -> bool:
        """Whether an object is certainly stored, or in the open batch, so that a record may name it."""
        if self._batch is not None and self._batch.find(digest) is not None:
            return True
        location = self.find(digest)
        return location is not None and (self._counted_packs is None or location.pack in self._counted_packs())

    def read(self, digest: bytes) -> bytes:
        """A whole object. Raises `Damaged` if it is missing or does not match its hash."""
        return b"".join(self.chunks(digest))

    def chunks(self, digest: bytes) -> Iterator[bytes]:
        """An object in pieces of about a mebibyte. `Damaged` is raised with the last piece at the latest."""
        if digest in self.scratch:
            yield self.scratch[digest]
            return
        location = self._find_for_certain(digest)
        if location is None:
            raise StoreDamaged(f"Object {digest.hex()[:16]} is missing from {self.directory}.")
        if self._batch is not None:
            self._batch.flush()
        path = self.path(location.pack)
        descriptor = atomic.open_regular(path, os.O_RDONLY)
        try:
            yield from verify_pieces(stored_pieces(descriptor, location), digest, path)
        finally:
            os.close(descriptor)

    def new_batch(self) -> PackBatch:
        """A batch of objects that are added together, or not at all. They can be read from the start."""
        self._packs()
        self._batch = PackBatch(self)
        return self._batch

    def register(self, name: str, table: list[PackEntry]) -> None:
        """Register the pack of a batch, which is in place."""
        self._cache.add_pack(name, (entry[:4] for entry in table))
        self._packs().add(name)

    def end_batch(self) -> None:
        """Forget the batch: its objects are in its pack now, or nowhere."""
        self._batch = None

    def table(self, name: str) -> list[PackEntry]:
        """The table of one pack. Raises `Damaged`."""
        return read_table(self.path(name))

    def is_as_stored(self, name: str, entry: PackEntry) -> bool:
        """Whether the bytes of an object in a pack are intact."""
        descriptor = atomic.open_regular(self.path(name), os.O_RDONLY)
        try:
            return is_as_stored(descriptor, entry)
        finally:
            os.close(descriptor)

    def forget(self) -> None:
        """Forget the positions of objects; they are read again when they are needed."""
        self._cache.forget()
        self._known = None

    def remove_pack(self, name: str) -> None:
        """Delete a pack, which the caller knows to be unneeded; a missing pack is no error."""
        self._known = None
        # The pack is deleted before the cache is changed, because the cache may need the freed space.
        with suppress(FileNotFoundError):
            os.unlink(self.path(name))
        if name in self._cache.packs():
            self._cache.drop_packs()


class PackBatch:
    """Objects being added: a context manager, whose end syncs one pack into place. An error leaves nothing."""

    def __init__(self, objects: PackStore) -> None:
        self._objects = objects
        self._table: list[PackEntry] = []
        self._new: dict[bytes, Location] = {}
        self._afterwards: list[Callable[[], None]] = []
        self.pack = ""
        """The name of the pack, once it exists."""
        self._descriptor = -1
        self._name = self._path = ""
        self._end = 0
        self._crc = 0
        self._buffer = bytearray()

    @cached_property
    def _hasher(self) -> sparse_files.Hasher:
        return sparse_files.Hasher()

    @cached_property
    def _compressor(self) -> Compressor:
        return Compressor()

    @property
    def added_bytes(self) -> int:
        """Bytes on disk that this batch takes so far."""
        return self._end

    def __enter__(self) -> Self:
        return self

    def find(self, digest: bytes) -> Location | None:
        """The position in the unfinished pack of an object that was added."""
        return self._new.get(digest)

    def has(self, digest: bytes) -> bool:
        """Whether an object is stored already, or about to be."""
        return self._objects.keeps(digest)

    def stored(self, digests: Iterable[bytes]) -> set[bytes]:
        """Those of the objects that are stored already; the batch does not count."""
        return self._objects.stored(digests, certainly=True)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Run a function once everything is in place; never after an error."""
        self._afterwards.append(action)

    def add(self, data: bytes) -> bytes:
        """Store `data`; returns its hash."""
        digest = hashlib.sha256(data).digest()
        if not self.has(digest):
            compressed_data = self._compressor.frame(data) if len(data) > _TINY else data
            start = self._begin()
            self._write(compressed_data if len(compressed_data) < len(data) else data)
            self._finish(digest, start, len(data))
        return digest

    def add_file(self, descriptor: int, size: int) -> tuple[bytes, int]:
        """Store the content of an open file of about `size` bytes; returns its hash and its real size.

        A large file is read twice (first to check whether it is new, then to store it) and never held in memory.
        """
        if size <= _SMALL:
            data = _read_all(descriptor, size)
            if len(data) <= _SMALL:
                return self.add(data), len(data)
        digest, length = self._hasher.hashed(descriptor)
        if self.has(digest):
            return digest, length
        return self._add_large(descriptor)

    def _add_large(self, descriptor: int) -> tuple[bytes, int]:
        start = self._begin()
        hashing = self._hasher.begin()
        length = 0

        def read() -> Iterator[bytes]:
            nonlocal length
            for piece in sparse_files.pieces(descriptor):
                cancellation.look()
                hashing.update(piece)
                length += len(piece)
                yield piece

        for compressed_piece in frames(read()):
            self._write(compressed_piece)
        # Stored compressed even if that is longer, because the length is only known after writing.
        digest = hashing.digest()
        self._finish(digest, start, length, is_compressed=True)
        return digest, length

    def copy(self, digest: bytes) -> None:
        """Store an object of another pack here as well. Raises `Damaged` for a damaged object."""
        for _ in self._objects.chunks(digest):
            pass
        location = self._objects.find(digest)
        if location is None or digest in self._new:
            return
        start = self._begin()
        descriptor = atomic.open_regular(self._objects.path(location.pack), os.O_RDONLY)
        try:
            position, end = location.offset, location.offset + location.stored_size
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
            self._name = f".{os.urandom(8).hex()}.tmp"
            self._path = self._objects.path(self._name)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, atomic.FILE_MODE)
            self._write(PACK_HEADER)
        self._crc = 0
        return self._end

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._buffer += data
        self._end += len(data)
        if len(self._buffer) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write buffered data to the unfinished pack, so that it can be read there."""
        if self._buffer:
            atomic.write_all(self._descriptor, bytes(self._buffer))
            self._buffer.clear()

    def _finish(self, digest: bytes, start: int, size: int, *, is_compressed: bool = False) -> None:
        stored_size = self._end - start
        if is_compressed and stored_size == size:
            # The length decides how an object is decoded; change it so that this one is decoded correctly.
            self._write(EMPTY_FRAME)
            stored_size += len(EMPTY_FRAME)
        self._new[digest] = Location(self._name, start, stored_size, size)
        self._table.append(PackEntry(digest, start, stored_size, size, self._crc))

    def drop(self) -> None:
        """Store nothing of this batch."""
        self._table, self._new, self._afterwards = [], {}, []

    def commit(self) -> None:
        """Sync the added objects into place, if there are any."""
        if self._table:
            self._seal()
        for action in self._afterwards:
            action()
        self._afterwards = []

    def _seal(self) -> None:
        self._write(table_and_trailer(self._table))
        self.flush()
        if self._objects.has_ledger:
            os.fchmod(self._descriptor, UNCOUNTED)
        os.fsync(self._descriptor)
        self.pack = os.urandom(8).hex() + PACK_SUFFIX
        os.rename(self._path, self._objects.path(self.pack))
        atomic.sync_directory(self._objects.directory)
        self._new = {}
        self._objects.register(self.pack, self._table)
        self._table = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        except BaseException:
            if self.pack:
                # No record relies on it. If it cannot be removed now, its mode tells the next command.
                with suppress(OSError):
                    self._objects.remove_pack(self.pack)
            raise
        finally:
            self._objects.end_batch()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                with suppress(OSError):  # the next command removes it
                    os.unlink(self._path)


def _read_all(descriptor: int, size: int) -> bytes:
    """The content of an open file of about `size` bytes; the beginning of it if it is much longer by now."""
    data = os.read(descriptor, size + 1)
    if len(data) == size:
        return data
    chunks = [data]
    while sum(map(len, chunks)) <= _SMALL and (chunk := os.read(descriptor, CHUNK)):
        chunks.append(chunk)
    return b"".join(chunks)


class BadStream(ValueError):
    """Data that cannot be decompressed, or not to the expected length."""


@cache
def zstd_module() -> ModuleType:
    """The module of Zstandard, loaded at its first use: a command that reads no object does not need it."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise Refused(
            "Zstandard is not installed, so checkpoints cannot be read or written.",
            "Use a CPython that was built with it."
            if sys.version_info >= (3, 14)
            else f"Install it with: {distribution.to_install_packages('backports.zstd')}",
            code="no_zstd",
        ) from None
    return zstd


class Compressor:
    """Compresses contents. One compressor is used for many, because its preparation takes longer than a small file."""

    def __init__(self) -> None:
        zstd = zstd_module()
        self._compressor = zstd.ZstdCompressor(_LEVEL)
        self._end = self._compressor.FLUSH_FRAME

    def frame(self, data: bytes) -> bytes:
        """A whole content as one frame."""
        frame: bytes = self._compressor.compress(data, self._end)
        return frame


def frames(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The compressed form of a content that comes in pieces; all its `ZEROS` cost as much as one."""
    zstd = zstd_module()
    compressor = zstd.ZstdCompressor(_LEVEL)
    is_open = False
    zeros = 0
    for piece in pieces:
        if piece is not ZEROS:
            yield compressor.compress(piece)
            is_open = True
            continue
        if is_open:
            yield compressor.flush()
        yield _frame_of_zeros()
        is_open, zeros = False, zeros + 1
    if is_open or not zeros:  # an empty content is an empty frame
        yield compressor.flush()


@cache
def _frame_of_zeros() -> bytes:
    return Compressor().frame(ZEROS)


def decompressed(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The content of a compressed object in pieces of at most a mebibyte. The first of `pieces` has its first 4 bytes.

    Raises `BadStream` for data that cannot be decompressed and for more than `size` bytes, because a manipulated pack
    must not fill the memory. A shorter content is no error here: it has another hash.
    """
    source = iter(pieces)
    first = next(source, b"")
    unpack = _from_frames if first.startswith(_FRAME_MARK) else _from_zlib
    bytes_left = size
    for piece in unpack(first, source, size):
        bytes_left -= len(piece)
        if bytes_left < 0:
            raise BadStream("longer than it should be")
        yield piece


def _from_zlib(raw: bytes, rest: Iterator[bytes], size: int) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    try:
        while raw and not unpacker.eof:
            yield unpacker.decompress(raw, CHUNK)
            raw = unpacker.unconsumed_tail or next(rest, b"")
    except zlib.error as error:
        raise BadStream(str(error)) from None


def _from_frames(raw: bytes, rest: Iterator[bytes], size: int) -> Iterator[bytes]:
    zstd = zstd_module()
    options = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW}
    limit = min(CHUNK, size + 1)
    # Each frame costs time, whatever it contains. A writer ends a frame only around a mebibyte of zeros.
    frames_left = 2 * (size // CHUNK) + 2
    try:
        while raw:
            if not frames_left:
                raise BadStream("more frames than it should have")
            frames_left -= 1
            frame = zstd.ZstdDecompressor(options=options)
            while not frame.eof:
                if frame.needs_input and not (raw := raw or next(rest, b"")):
                    return
                piece = frame.decompress(raw, limit)
                raw = b""
                if piece:
                    yield piece
            raw = frame.unused_data or next(rest, b"")
    except zstd.ZstdError as error:
        raise BadStream(str(error)) from None
