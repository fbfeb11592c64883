"""Files with holes: read without reading the holes, hashed cheaply, and written with holes.

A piece of `CHUNK` zeros is always the same object `ZEROS`, so that a reader can recognise it by identity.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator

from deepctl import cancellation
from deepctl.files import atomic

CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
_LEAST = 64 << 10
"""Bytes of the shortest run of zeros that becomes a hole."""


def pieces(descriptor: int) -> Iterator[bytes]:
    """The content of an open regular file from its beginning, in pieces of at most a mebibyte."""
    position = 0
    data_end: int | None = 0
    while True:
        if data_end is not None and position >= data_end:
            data = _seek(descriptor, position, os.SEEK_DATA)
            while position < data:
                length = min(CHUNK, data - position)
                position += length
                yield ZEROS if length == CHUNK else ZEROS[:length]
            data_end = _seek(descriptor, position, os.SEEK_HOLE)
            if data_end <= position:
                data_end = None  # at the end, or if it is unknown: the rest is read
        length = CHUNK if data_end is None else min(CHUNK, data_end - position)
        piece = os.pread(descriptor, length, position)
        if not piece:
            return
        position += len(piece)
        yield ZEROS if piece == ZEROS else piece


def _seek(descriptor: int, position: int, whence: int) -> int:
    """The offset of the next data, or the next hole; the end of the file if there is none before it."""
    try:
        return os.lseek(descriptor, position, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return max(position, os.fstat(descriptor).st_size)
        return position  # this file system does not report it


def write(descriptor: int, content: Iterable[bytes]) -> None:
    """Write pieces to an empty file; long runs of zeros become holes."""
    length = 0
    for piece in content:
        if len(piece) >= _LEAST and piece == (ZEROS if len(piece) == CHUNK else bytes(len(piece))):
            os.lseek(descriptor, len(piece), os.SEEK_CUR)
        else:
            atomic.write_all(descriptor, piece)
        length += len(piece)
    os.ftruncate(descriptor, length)


class Hasher:
    """Hashes open files; zeros at the start of files are hashed once for all of them."""

    def __init__(self) -> None:
        self._after_zeros = [hashlib.sha256()]

    def hashed(self, descriptor: int) -> tuple[bytes, int]:
        """The hash and the length of an open file."""
        length = 0
        hashing = self.begin()
        for piece in pieces(descriptor):
            cancellation.look()
            hashing.update(piece)
            length += len(piece)
        return hashing.digest(), length

    def begin(self) -> ContentHash:
        """The hash of a content that comes in pieces."""
        return ContentHash(self)

    def after_zeros(self, count: int) -> hashlib._Hash:
        """A hash that has processed `ZEROS` this many times."""
        hashers = self._after_zeros
        while len(hashers) <= min(count, _MOST_ZEROS):
            cancellation.look()
            hashers.append(hashers[-1].copy())
            hashers[-1].update(ZEROS)
        hasher = hashers[min(count, _MOST_ZEROS)].copy()
        for _ in range(count - _MOST_ZEROS):
            cancellation.look()
            hasher.update(ZEROS)
        return hasher


_MOST_ZEROS = 4096
"""Mebibytes of zeros at a file's start up to which the hash is cached."""


class ContentHash:
    """The hash of one content: see `Hasher`."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._zeros = 0
        self._seen: hashlib._Hash | None = None

    def update(self, piece: bytes) -> None:
        """Process the next piece."""
        if self._seen is None and piece is ZEROS:
            self._zeros += 1
        else:
            self._begun().update(piece)

    def digest(self) -> bytes:
        """The hash of all pieces."""
        return self._begun().digest()

    def _begun(self) -> hashlib._Hash:
        if self._seen is None:
            self._seen = self._hasher.after_zeros(self._zeros)
        return self._seen
