r"""Packs: immutable files that objects are kept in.

A pack (`packs/<id>.pack`) is `deepctl pack 1\n`, the objects one after another, a table with an entry for each, and a
trailer: the number of entries and the SHA-256 of header, table and number. Each object is stored as it is or
compressed by zlib, whichever is shorter, and checked against its hash whenever it is read; the table has a CRC-32 of
what is stored (several compressed forms can mean the same) and is checked against the trailer. So every byte is
covered.

The first packs have no CRC in their tables; nothing else tells them apart than that their checksum fits.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from deepctl import cancellation, formats
from deepctl.errors import StoreDamaged
from deepctl.files import atomic, sparse_files
from deepctl.store.index_db import Location

HEADER = formats.header(formats.PACK)
SUFFIX = ".pack"
CHUNK = 1 << 20
_ENTRY = struct.Struct(">32sQQQI")
_ENTRY_WITHOUT_CRC = struct.Struct(">32sQQQ")
_TRAILER = struct.Struct(">Q32s8s")
_MAGIC = b"DCPACK1\n"
_MOST = 1100
"""Bytes that zlib can make of one, about."""
_SENSELESS = 4
"""After so many entries that make no sense, what looks like a table is none."""


class Stored(NamedTuple):
    """One object of a pack's table: its hash, where it lies in the pack, how long it is there and in itself.

    `crc` is the CRC-32 of what is stored.
    """

    digest: bytes
    offset: int
    stored: int
    size: int
    crc: int


def pieces(descriptor: int, location: Location) -> Iterator[bytes]:
    """The content of one object of an open pack, in pieces of about a mebibyte, unchecked but for its length.

    Raises `zlib.error` where it is longer than its table says: a pack that was tampered with must not fill the memory.
    """
    left = location.size
    unpacker = zlib.decompressobj() if location.stored != location.size else None
    position, end = location.offset, location.offset + location.stored
    while position < end:
        raw = os.pread(descriptor, min(CHUNK, end - position), position)
        if not raw:
            return
        position += len(raw)
        if unpacker is None:
            yield raw
            continue
        while raw and not unpacker.eof:
            piece = unpacker.decompress(raw, CHUNK)
            left -= len(piece)
            if left < 0:
                raise zlib.error("longer than it should be")
            yield piece
            raw = unpacker.unconsumed_tail


def verified(pieces: Iterator[bytes], digest: bytes, path: str) -> Iterator[bytes]:
    """The same pieces; raises `Damaged` with the last at the latest if they are not what the hash says."""
    seen = hashlib.sha256()
    try:
        for piece in pieces:
            seen.update(piece)
            yield piece
    except zlib.error:
        raise StoreDamaged(f"Object {digest.hex()[:16]} in {path} is damaged.") from None
    if seen.digest() != digest:
        raise StoreDamaged(f"Object {digest.hex()[:16]} in {path} is damaged.")


def frame_size(count: int) -> tuple[int, tuple[int, int]]:
    """The bytes of a pack with `count` objects before these, and behind them in either form of its table."""
    behind = (count * form.size + _TRAILER.size for form in (_ENTRY, _ENTRY_WITHOUT_CRC))
    return len(HEADER), (next(behind), next(behind))


def read_table(path: str) -> list[Stored]:
    """The table of a pack. Raises `Damaged` if header, table or trailer are not what they were, or `NewerFormat`."""
    descriptor = atomic.open_regular(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        header = os.pread(descriptor, len(HEADER), 0)
        trailer = os.pread(descriptor, _TRAILER.size, max(0, end - _TRAILER.size))
        if len(trailer) == _TRAILER.size:
            for form in (_ENTRY, _ENTRY_WITHOUT_CRC):
                table = _table(descriptor, end - _TRAILER.size, trailer, form)
                if table is None:
                    continue
                if header != HEADER:
                    raise StoreDamaged(f"The header of pack {path} is damaged.")
                return _entries(descriptor, table, form)
    finally:
        os.close(descriptor)
    # Only where nothing of it is ours: a flipped bit makes another number, too.
    formats.check_header(formats.PACK, header, path)
    if len(trailer) != _TRAILER.size:
        raise StoreDamaged(f"Pack {path} is cut short.")
    if trailer[-len(_MAGIC) :] != _MAGIC:
        raise StoreDamaged(f"Pack {path} is damaged at its end.")
    raise StoreDamaged(f"The table of pack {path} is damaged.")


def is_as_stored(descriptor: int, entry: Stored) -> bool:
    """Whether the bytes of an object in an open pack are those that were written."""
    return _crc(descriptor, entry.offset, entry.stored) == entry.crc


def any_table(descriptor: int) -> list[Location]:
    """Where the objects of a damaged pack may lie, by what looks like its table; each is to be checked by its hash."""
    end = os.fstat(descriptor).st_size - _TRAILER.size
    found = []
    for form in (_ENTRY, _ENTRY_WITHOUT_CRC):
        # The number in the trailer may be what is damaged: entries are read backwards while they make sense.
        position, senseless = end - form.size, 0
        while position >= len(HEADER) and senseless < _SENSELESS:
            raw = os.pread(descriptor, form.size, position)
            _, offset, stored, size = form.unpack(raw)[:4] if len(raw) == form.size else (b"", 0, 0, 0)
            if len(HEADER) <= offset <= offset + stored <= end and size <= _MOST * max(stored, 1):
                found.append(Location("", offset, stored, size))
            else:
                senseless += 1
            position -= form.size
    return found


def _table(descriptor: int, end: int, trailer: bytes, form: struct.Struct) -> bytes | None:
    """The table that ends at `end`, if it has entries of this form and is what the trailer says."""
    count, checksum, magic = _TRAILER.unpack(trailer)
    start = end - count * form.size
    if magic != _MAGIC or start < len(HEADER):
        return None
    table = os.pread(descriptor, count * form.size, start)
    return table if hashlib.sha256(HEADER + table + struct.pack(">Q", count)).digest() == checksum else None


def _entries(descriptor: int, table: bytes, form: struct.Struct) -> list[Stored]:
    if form is _ENTRY:
        return [Stored(*entry) for entry in form.iter_unpack(table)]
    # What is stored cannot be checked, only what it means.
    return [
        Stored(digest, offset, stored, size, _crc(descriptor, offset, stored))
        for digest, offset, stored, size in form.iter_unpack(table)
    ]


def _crc(descriptor: int, position: int, length: int) -> int:
    found, end = 0, position + length
    while position < end and (piece := os.pread(descriptor, min(CHUNK, end - position), position)):
        found = zlib.crc32(piece, found)
        position += len(piece)
    return found


def tail(table: list[Stored]) -> bytes:
    """What follows the objects of a pack: their table and the trailer."""
    entries = b"".join(_ENTRY.pack(*entry) for entry in table)
    checksum = hashlib.sha256(HEADER + entries + struct.pack(">Q", len(table))).digest()
    return entries + _TRAILER.pack(len(table), checksum, _MAGIC)


class Hasher:
    """Hashes open files; the zeros that files begin with are hashed once for all of them."""

    def __init__(self) -> None:
        self._after_zeros = [hashlib.sha256()]

    def hashed(self, descriptor: int) -> tuple[bytes, int]:
        """The hash and the length of an open file."""
        length = 0
        hashing = self.begin()
        for piece in sparse_files.pieces(descriptor):
            cancellation.look()
            hashing.update(piece)
            length += len(piece)
        return hashing.digest(), length

    def begin(self) -> Hashing:
        """The hash of a content that comes in pieces."""
        return Hashing(self)

    def after_zeros(self, count: int) -> hashlib._Hash:
        """A hash that has seen so many times `sparse.ZEROS`."""
        known = self._after_zeros
        while len(known) <= min(count, _MOST_ZEROS):
            cancellation.look()
            known.append(known[-1].copy())
            known[-1].update(sparse_files.ZEROS)
        seen = known[min(count, _MOST_ZEROS)].copy()
        for _ in range(count - _MOST_ZEROS):
            cancellation.look()
            seen.update(sparse_files.ZEROS)
        return seen


_MOST_ZEROS = 4096
"""Mebibytes of zeros at a file's beginning up to which the hash is remembered."""


class Hashing:
    """The hash of one content: see `Hasher`."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._zeros = 0
        self._seen: hashlib._Hash | None = None

    def update(self, piece: bytes) -> None:
        """Go on with the next piece."""
        if self._seen is None and piece is sparse_files.ZEROS:
            self._zeros += 1
        else:
            self._begun().update(piece)

    def digest(self) -> bytes:
        """The hash of what there was."""
        return self._begun().digest()

    def _begun(self) -> hashlib._Hash:
        if self._seen is None:
            self._seen = self._hasher.after_zeros(self._zeros)
        return self._seen


class Packer:
    """Compresses a content that comes in pieces, as zlib does, but `sparse.ZEROS` only once.

    A full flush lets what follows refer to nothing before it, so that the same bytes can stand for zeros anywhere.
    """

    def __init__(self, level: int) -> None:
        self._packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._sum = zlib.adler32(b"")
        self._is_flushed = True
        self._begin = _ZLIB_HEADER

    def compress(self, piece: bytes) -> bytes:
        """What of the compressed content comes next."""
        begin, self._begin = self._begin, b""
        if piece is not sparse_files.ZEROS:
            self._sum = zlib.adler32(piece, self._sum)
            self._is_flushed = False
            return begin + self._packer.compress(piece)
        # What Adler-32 makes of zeros: the first half stays, and is added to the second for each.
        low, high = self._sum & 0xFFFF, self._sum >> 16
        self._sum = (high + len(piece) * low) % 65521 << 16 | low
        flushed = b"" if self._is_flushed else self._packer.flush(zlib.Z_FULL_FLUSH)
        self._is_flushed = True
        return begin + flushed + _packed_zeros()

    def finish(self) -> bytes:
        """The end of the compressed content."""
        return self._begin + self._packer.flush() + self._sum.to_bytes(4, "big")


_ZLIB_HEADER = b"\x78\x01"


@cache
def _packed_zeros() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(sparse_files.ZEROS) + packer.flush(zlib.Z_FULL_FLUSH)
