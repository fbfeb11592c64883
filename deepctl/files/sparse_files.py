"""Files with holes: read without reading the holes, and written with them.

A piece of `CHUNK` zeros is always the very object `ZEROS`, so that a reader can tell it by its identity.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

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
                data_end = None  # at the end, or where nobody can tell: what there is is read
        length = CHUNK if data_end is None else min(CHUNK, data_end - position)
        piece = os.pread(descriptor, length, position)
        if not piece:
            return
        position += len(piece)
        yield ZEROS if piece == ZEROS else piece


def _seek(descriptor: int, position: int, what: int) -> int:
    """Where the next data, or the next hole, begins; the end of the file if there is none before it."""
    try:
        return os.lseek(descriptor, position, what)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return max(position, os.fstat(descriptor).st_size)
        return position  # this file system does not tell


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
