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
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import StoreDamaged
from deepctl.files import atomic
from deepctl.store.index_db import Location

HEADER = layout.format_header(layout.PACK_FORMAT)
SUFFIX = ".pack"
CHUNK = 1 << 20
_ENTRY = struct.Struct(">32sQQQI")
_ENTRY_WITHOUT_CRC = struct.Struct(">32sQQQ")
_TRAILER = struct.Struct(">Q32s8s")
_MAGIC = b"DCPACK1\n"
_MOST = 1100
"""Bytes that zlib can make of one, about."""
UNCOUNTED = 0o400
"""The mode of a pack until a line of the ledger names it: what is left with it is rubbish, and no trace of lost lines.

Packs of deepctl 0.1 had the mode of every file from the start.
"""
_SENSELESS = 4
"""After so many entries that make no sense, what looks like a table is none."""


class PackEntry(NamedTuple):
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
    bytes_left = location.size
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
            bytes_left -= len(piece)
            if bytes_left < 0:
                raise zlib.error("longer than it should be")
            yield piece
            raw = unpacker.unconsumed_tail


def verified(pieces: Iterator[bytes], digest: bytes, path: str) -> Iterator[bytes]:
    """The same pieces; raises `Damaged` with the last at the latest if they are not what the hash says."""
    hasher = hashlib.sha256()
    try:
        for piece in pieces:
            hasher.update(piece)
            yield piece
    except zlib.error:
        raise StoreDamaged(f"Object {digest.hex()[:16]} in {path} is damaged.") from None
    if hasher.digest() != digest:
        raise StoreDamaged(f"Object {digest.hex()[:16]} in {path} is damaged.")


def is_uncounted(status: os.stat_result) -> bool:
    """Whether a pack that the ledger does not name never was named: see `UNCOUNTED`."""
    return stat.S_IMODE(status.st_mode) == UNCOUNTED


def frame_size(count: int) -> tuple[int, tuple[int, int]]:
    """The bytes of a pack with `count` objects before these, and behind them in either form of its table."""
    behind = (count * form.size + _TRAILER.size for form in (_ENTRY, _ENTRY_WITHOUT_CRC))
    return len(HEADER), (next(behind), next(behind))


def read_table(path: str) -> list[PackEntry]:
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
    layout.check_format_header(layout.PACK_FORMAT, header, path)
    if len(trailer) != _TRAILER.size:
        raise StoreDamaged(f"Pack {path} is cut short.")
    if trailer[-len(_MAGIC) :] != _MAGIC:
        raise StoreDamaged(f"Pack {path} is damaged at its end.")
    raise StoreDamaged(f"The table of pack {path} is damaged.")


def is_as_stored(descriptor: int, entry: PackEntry) -> bool:
    """Whether the bytes of an object in an open pack are those that were written."""
    return _crc(descriptor, entry.offset, entry.stored) == entry.crc


def any_table(descriptor: int) -> list[Location]:
    """Where the objects of a damaged pack may lie, by what looks like its table; each is to be checked by its hash."""
    end = os.fstat(descriptor).st_size - _TRAILER.size
    locations = []
    for form in (_ENTRY, _ENTRY_WITHOUT_CRC):
        # The number in the trailer may be what is damaged: entries are read backwards while they make sense.
        position, senseless = end - form.size, 0
        while position >= len(HEADER) and senseless < _SENSELESS:
            raw = os.pread(descriptor, form.size, position)
            _, offset, stored, size = form.unpack(raw)[:4] if len(raw) == form.size else (b"", 0, 0, 0)
            if len(HEADER) <= offset <= offset + stored <= end and size <= _MOST * max(stored, 1):
                locations.append(Location("", offset, stored, size))
            else:
                senseless += 1
            position -= form.size
    return locations


def _table(descriptor: int, end: int, trailer: bytes, form: struct.Struct) -> bytes | None:
    """The table that ends at `end`, if it has entries of this form and is what the trailer says."""
    count, checksum, magic = _TRAILER.unpack(trailer)
    start = end - count * form.size
    if magic != _MAGIC or start < len(HEADER):
        return None
    table = os.pread(descriptor, count * form.size, start)
    return table if hashlib.sha256(HEADER + table + struct.pack(">Q", count)).digest() == checksum else None


def _entries(descriptor: int, table: bytes, form: struct.Struct) -> list[PackEntry]:
    if form is _ENTRY:
        return [PackEntry(*entry) for entry in form.iter_unpack(table)]
    # What is stored cannot be checked, only what it means.
    return [
        PackEntry(digest, offset, stored, size, _crc(descriptor, offset, stored))
        for digest, offset, stored, size in form.iter_unpack(table)
    ]


def _crc(descriptor: int, position: int, length: int) -> int:
    crc, end = 0, position + length
    while position < end and (piece := os.pread(descriptor, min(CHUNK, end - position), position)):
        crc = zlib.crc32(piece, crc)
        position += len(piece)
    return crc


def tail(table: list[PackEntry]) -> bytes:
    """What follows the objects of a pack: their table and the trailer."""
    entries = b"".join(_ENTRY.pack(*entry) for entry in table)
    checksum = hashlib.sha256(HEADER + entries + struct.pack(">Q", len(table))).digest()
    return entries + _TRAILER.pack(len(table), checksum, _MAGIC)
