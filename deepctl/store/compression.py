"""The compressed form of an object: frames of Zstandard, or a stream of zlib in the packs of format 1.

The first bytes distinguish the two, because no zlib stream begins with the mark of a frame. So an object can move to
another pack without being decompressed.

A large content can have several frames. A mebibyte of zeros is always the same frame, which is made once.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from types import ModuleType

from deepctl import distribution
from deepctl.errors import Refused
from deepctl.files.sparse_files import CHUNK, ZEROS

MAX_RATIO = 1 << 15
"""The maximum of bytes that one compressed byte becomes: a block of 4 bytes has at most 128 KiB."""
EMPTY_FRAME = b"\x50\x2a\x4d\x18\0\0\0\0"
"""A frame that every reader of Zstandard skips."""
_LEVEL = 1
"""Level 3 makes source code 4 % smaller, and takes half as much time again."""
_FRAME_MARK = b"\x28\xb5\x2f\xfd"
_MAX_WINDOW = 23
"""The binary logarithm of the memory in bytes that a frame may demand, 16 times what a frame of this level needs."""


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
