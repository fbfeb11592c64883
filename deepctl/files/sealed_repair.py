"""Sealed lines in which a single byte is another one: the checksum tells which, and what it was.

A CRC-32 finds every change of one byte, and for each there is only one place and value that explains it. What more
than one byte of a line has changed in is not mended here. Source of the method: the CRC is linear, so the difference
between the checksum that a line has and the one it should have is that of the changed byte, shifted by the bytes
behind it; shifting it back byte by byte finds the place.
"""

from __future__ import annotations

import zlib

from deepctl.files import sealed_lines

_POLYNOMIAL = 0xEDB88320


def _table() -> list[int]:
    found = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        found.append(value)
    return found


_SHIFT = _table()
_BACK = {value >> 24: index for index, value in enumerate(_SHIFT)}
_CHANGES = {value: byte for byte, value in enumerate(_SHIFT)}


def mended(raw: bytes) -> bytes:
    """The bytes of a file of sealed lines with every line mended that one changed byte explains; as long as before.

    Where a line's newline was changed, two lines look like one; where a byte became a newline, one looks like two.
    """
    lines = [line + b"\n" for line in raw.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    if not lines[-1]:
        lines.pop()
    found: list[bytes] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        following = lines[number + 1] if number + 1 < len(lines) else None
        if sealed_lines.is_whole(line.removesuffix(b"\n")):
            found.append(line)
        elif (one := _mended_line(line.removesuffix(b"\n"))) is not None:
            found.append(one + line[len(one) :])
        elif (two := _parted(line)) is not None:
            found.append(two)
        elif following is not None and (joined := _joined(line[:-1], following.removesuffix(b"\n"))) is not None:
            found.append(joined + (line + following)[len(joined) :])
            number += 1
        else:
            found.append(line)
        number += 1
    return b"".join(found)


def _mended_line(line: bytes) -> bytes | None:
    if len(line) <= sealed_lines.TAIL:
        return None
    body, tail = line[: -sealed_lines.TAIL], line[-sealed_lines.TAIL :]
    expected = sealed_lines.tail(body)
    if sum(a != b for a, b in zip(tail, expected, strict=True)) == 1:
        return _if_whole(body + expected)
    try:
        wanted = int(tail[-10:-2], 16)
    except ValueError:
        return None
    difference = zlib.crc32(body) ^ wanted
    for place in range(len(body) - 1, -1, -1):
        if difference in _CHANGES:
            changed = bytes([body[place] ^ _CHANGES[difference]])
            return _if_whole(body[:place] + changed + body[place + 1 :] + tail)
        index = _BACK[difference >> 24]
        difference = ((difference ^ _SHIFT[index]) << 8 | index) & 0xFFFFFFFF
    return None


def _parted(line: bytes) -> bytes | None:
    """Two lines whose newline became another byte."""
    start = 0
    while (mark := line.find(sealed_lines.MARK, start)) >= 0:
        end = mark + sealed_lines.TAIL
        if sealed_lines.is_whole(line[:end]) and sealed_lines.is_whole(line[end + 1 :].removesuffix(b"\n")):
            return line[:end] + b"\n" + line[end + 1 :]
        start = mark + 1
    last = line.removesuffix(b"\n")
    if len(last) == len(line) and sealed_lines.is_whole(last[:-1]):
        return last[:-1] + b"\n"  # the last newline of the file
    return None


def _joined(first: bytes, second: bytes) -> bytes | None:
    """One line in which a byte became a newline."""
    for byte in range(256):
        joined = first + bytes([byte]) + second
        if byte != 0x0A and sealed_lines.is_whole(joined):
            return joined
    return None


def _if_whole(line: bytes) -> bytes | None:
    return line if sealed_lines.is_whole(line) else None
