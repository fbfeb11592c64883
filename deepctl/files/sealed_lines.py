"""Sealed lines: one JSON object per line, each with its own checksum.

A line is `{...,"crc":"xxxxxxxx"}` and a newline; the CRC-32 (zlib's, in hex) covers every byte before `,"crc"`. A
damaged line affects only itself, and a line that a kill cut off can be distinguished from a changed one. `mend`
repairs lines with one changed byte.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from deepctl.files import atomic

MARK = b',"crc":"'
TAIL = len(MARK) + 8 + 2
TOO_DEEP = "nested too deeply"


class SealedLine(NamedTuple):
    """One line that was read: its number from 1, the offset in bytes after it, and its value or its problem.

    A last line that is whole except for a changed newline has both.
    """

    number: int
    end: int
    value: dict[str, Any] | None
    problem: str | None


def seal(value: dict[str, Any]) -> bytes:
    """`value`, which must be neither empty nor have a key `crc`, as a sealed line with its newline."""
    try:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Lone surrogates (names that are not UTF-8) survive only as escapes.
        body = json.dumps(value, separators=(",", ":")).encode()
    body = body[:-1]
    return body + tail(body) + b"\n"


def tail(body: bytes) -> bytes:
    """What follows the bytes of a line that its checksum covers."""
    return b'%s%08x"}' % (MARK, zlib.crc32(body))


def pad(line: bytes, by: int) -> bytes:
    """The same line, with its newline, padded by this number of blanks."""
    body = line[: -TAIL - 1] + b" " * by
    return body + tail(body) + b"\n"


def indent(line: bytes, by: int) -> bytes:
    """The same line, padded by this number of leading blanks; an incomplete line is unchanged after them."""
    if not is_whole(line.removesuffix(b"\n")):
        return b" " * by + line
    body = b" " * by + line.removesuffix(b"\n")[:-TAIL]
    return body + tail(body) + line[len(line.removesuffix(b"\n")) :]


def without_copies(raw: bytes) -> bytes:
    """The bytes of a file without repeated lines."""
    lines = [line + b"\n" for line in raw.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return b"".join(line for number, line in enumerate(lines) if number == 0 or line != lines[number - 1])


def unseal(line: bytes) -> dict[str, Any]:
    """The value of one line without its newline. Raises `ValueError` with the reason."""
    body, end = line[:-TAIL], line[-TAIL:]
    if len(line) <= TAIL or not end.startswith(MARK) or not end.endswith(b'"}'):
        raise ValueError("not a whole line")
    if end[len(MARK) : -2] != b"%08x" % zlib.crc32(body):
        raise ValueError("checksum does not match")
    try:
        value = json.loads(body + b"}")
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def is_whole(line: bytes) -> bool:
    """Whether a line without its newline is intact."""
    try:
        unseal(line)
    except ValueError:
        return False
    return True


def parse(raw: bytes) -> Iterator[SealedLine]:
    """Every line of a file's content; never raises. A last line without newline counts if it is whole."""
    whole = _all_whole(raw)
    if whole is not None:
        yield from whole
        return
    position = 0
    number = 0
    while position < len(raw):
        number += 1
        newline = raw.find(b"\n", position)
        end = len(raw) if newline < 0 else newline
        behind = end if newline < 0 else end + 1
        try:
            yield SealedLine(number, behind, unseal(raw[position:end]), None)
        except ValueError as error:
            if newline >= 0:
                yield SealedLine(number, behind, None, str(error))
            elif is_whole(raw[position : end - 1]):
                yield SealedLine(number, behind, unseal(raw[position : end - 1]), "its newline is damaged")
            else:
                yield SealedLine(number, behind, None, "cut short")
        position = behind


def end_of_whole_lines(descriptor: int) -> int:
    """The offset after the last whole line of an open file, with its newline or without it."""
    end = os.fstat(descriptor).st_size
    if not end or os.pread(descriptor, 1, end - 1) == b"\n":
        return end
    start = _last_newline(descriptor, end) + 1
    return start + whole_length(os.pread(descriptor, end - start, start))


def whole_length(raw: bytes) -> int:
    """The same offset in the content of a file."""
    start = raw.rfind(b"\n") + 1
    line = raw[start:]
    if not line or is_whole(line):
        return len(raw)
    return len(raw) - 1 if is_whole(line[:-1]) else start


def _whole_in(path: str) -> int:
    descriptor = atomic.open_regular(path, os.O_RDONLY)
    try:
        return end_of_whole_lines(descriptor)
    finally:
        os.close(descriptor)


def _last_newline(descriptor: int, end: int) -> int:
    position = end
    while position > 0:
        start = max(0, position - 65536)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline
        position = start
    return -1


def _all_whole(raw: bytes) -> list[SealedLine] | None:
    """Every line of an intact file, decoded at once, which takes half the time; else `None`."""
    if not raw.endswith(b"\n"):
        return None
    lines = raw[:-1].split(b"\n")
    for line in lines:
        if line[-2:] != b'"}' or line[-TAIL:-10] != MARK or line[-10:-2] != b"%08x" % zlib.crc32(line[:-TAIL]):
            return None
    try:
        values = json.loads(b"[%s]" % b",".join(lines))
    except (ValueError, RecursionError):
        return None
    if len(values) != len(lines) or not all(isinstance(value, dict) for value in values):
        return None
    result = []
    end = 0
    for number, (line, value) in enumerate(zip(lines, values, strict=True), 1):
        end += len(line) + 1
        del value["crc"]
        result.append(SealedLine(number, end, value, None))
    return result


class Appender:
    """A file of sealed lines, open for appending; every `append` is on disk when it returns.

    Opening cuts off an incomplete last line that a kill left; `torn` is the number of removed bytes. The caller holds
    the lock of the profile.

    `size` is the length of a file that has been read and ends with a whole line; such a file is not read again.
    """

    def __init__(self, path: str, size: int | None = None) -> None:
        self.path = path
        self._descriptor = atomic.open_regular(path, os.O_RDWR if size is None else os.O_WRONLY)
        status = os.fstat(self._descriptor)
        if size is not None and status.st_size != size:
            os.close(self._descriptor)
            self._descriptor = atomic.open_regular(path, os.O_RDWR)
            status, size = os.fstat(self._descriptor), None
        self._identity = status.st_dev, status.st_ino
        self.end = status.st_size
        self.torn = 0
        if size is None:
            self._mend()

    def _mend(self) -> None:
        if not self.end or os.pread(self._descriptor, 1, self.end - 1) == b"\n":
            return
        start = end_of_whole_lines(self._descriptor)
        if start and os.pread(self._descriptor, 1, start - 1) != b"\n":
            # Only the newline is missing or changed: the line itself is whole and stays.
            os.pwrite(self._descriptor, b"\n", start)
            self.end = start + 1
        else:
            self.torn = self.end - start
            os.ftruncate(self._descriptor, start)
            self.end = start
        os.fsync(self._descriptor)

    def is_current(self, status: os.stat_result) -> bool:
        """Whether `status`, of the present file at the path, is that of this file, without lines added by others."""
        return (status.st_dev, status.st_ino, status.st_size) == (*self._identity, self.end)

    def append(self, value: dict[str, Any]) -> int:
        """Write one line and sync it. Returns the offset after it.

        A failed line leaves no trace, unless the disk does not allow to remove it.
        """
        return self.extend([value])[0]

    def extend(self, values: Sequence[dict[str, Any]]) -> list[int]:
        """Write several lines and sync them together. Returns the offset after each."""
        return self.write([seal(value) for value in values])

    def write(self, lines: Sequence[bytes]) -> list[int]:
        """The same for lines that are sealed already."""
        raw = b"".join(lines)
        start = self.end
        try:
            offset = 0
            while offset < len(raw):
                offset += os.pwrite(self._descriptor, raw[offset:], start + offset)
            os.fdatasync(self._descriptor) if hasattr(os, "fdatasync") else os.fsync(self._descriptor)
            self.end = start + len(raw)
        except BaseException as error:
            # Also for an interrupt: the next write must not overwrite this.
            try:
                os.ftruncate(self._descriptor, self.end)
            except OSError:
                self.end = _whole_in(self.path)  # it exists, and stays
            if isinstance(error, OSError):
                error.filename = self.path
            raise
        return list(itertools.accumulate(map(len, lines), initial=start))[1:]

    def close(self) -> None:
        with suppress(OSError):  # every line has been synced
            os.close(self._descriptor)


# Repair of a single changed byte. A CRC-32 finds every change of one byte, and for each there is only one place and
# value that explains it. The CRC is linear: the difference between the stored and the correct checksum of a line is the
# checksum of the changed byte, shifted by the bytes after it. Shifting it back byte by byte finds the place.
_POLYNOMIAL = 0xEDB88320


def _table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_SHIFT = _table()
_BACK = {value >> 24: index for index, value in enumerate(_SHIFT)}
_CHANGES = {value: byte for byte, value in enumerate(_SHIFT)}


def mend(raw: bytes) -> bytes:
    """The bytes of a file of sealed lines with every line repaired that one changed byte explains; the length is the
    same.

    With a changed newline, two lines look like one; with a byte changed into a newline, one line looks like two.
    """
    lines = [line + b"\n" for line in raw.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    result: list[bytes] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        next_line = lines[number + 1] if number + 1 < len(lines) else None
        if is_whole(line.removesuffix(b"\n")):
            result.append(line)
        elif (good_line := _mended_line(line.removesuffix(b"\n"))) is not None:
            result.append(good_line + line[len(good_line) :])
        elif (pair := _parted(line)) is not None:
            result.append(pair)
        elif next_line is not None and (repaired_line := _joined(line[:-1], next_line.removesuffix(b"\n"))) is not None:
            result.append(repaired_line + (line + next_line)[len(repaired_line) :])
            number += 1
        else:
            result.append(line)
        number += 1
    return b"".join(result)


def _mended_line(line: bytes) -> bytes | None:
    if len(line) <= TAIL:
        return None
    body, own_tail = line[:-TAIL], line[-TAIL:]
    expected_tail = tail(body)
    if sum(a != b for a, b in zip(own_tail, expected_tail, strict=True)) == 1:
        return _if_whole(body + expected_tail)
    try:
        checksum = int(own_tail[-10:-2], 16)
    except ValueError:
        return None
    difference = zlib.crc32(body) ^ checksum
    for place in range(len(body) - 1, -1, -1):
        if difference in _CHANGES:
            changed_byte = bytes([body[place] ^ _CHANGES[difference]])
            return _if_whole(body[:place] + changed_byte + body[place + 1 :] + own_tail)
        index = _BACK[difference >> 24]
        difference = ((difference ^ _SHIFT[index]) << 8 | index) & 0xFFFFFFFF
    return None


def _parted(line: bytes) -> bytes | None:
    """Two lines whose newline was changed."""
    start = 0
    while (mark := line.find(MARK, start)) >= 0:
        end = mark + TAIL
        if is_whole(line[:end]) and is_whole(line[end + 1 :].removesuffix(b"\n")):
            return line[:end] + b"\n" + line[end + 1 :]
        start = mark + 1
    last = line.removesuffix(b"\n")
    if len(last) == len(line) and is_whole(last[:-1]):
        return last[:-1] + b"\n"  # the last newline of the file
    return None


def _joined(first: bytes, second: bytes) -> bytes | None:
    """One line in which a byte was changed into a newline."""
    for byte in range(256):
        candidate = first + bytes([byte]) + second
        if byte != 0x0A and is_whole(candidate):
            return candidate
    return None


def _if_whole(line: bytes) -> bytes | None:
    return line if is_whole(line) else None
