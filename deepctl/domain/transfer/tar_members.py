"""Members of a tar file as bytes: written by the standard library, read by as little as archives of ours need.

`tarfile` reads whatever any tar ever wrote: sparse files, GNU's long names, global headers, extended headers of any
size into memory. What others send is better read by something that knows nothing else: a header of 512 bytes (parsed
by `TarInfo.frombuf`) which may be preceded by one extended header of bounded size with keys that are known.

Source of the format: POSIX.1-2001, `pax`, "pax Interchange Format".
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable

from deepctl.domain.transfer.archive import Entry, Kind, raw, text

BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
"""What a tar file ends with."""

_MAX_EXTENDED = 128 << 10
_MAGIC = b"ustar\x0000"
_TYPES: dict[Kind, bytes] = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
_KINDS: dict[bytes, Kind] = {value: kind for kind, value in _TYPES.items()}
_OTHERS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.XGLTYPE: "a header for everything that follows",
    tarfile.GNUTYPE_LONGNAME: "a long name of GNU tar's",
    tarfile.GNUTYPE_LONGLINK: "a long name of GNU tar's",
}
_KEYS = ("path", "linkpath", "size", "mtime", "hdrcharset")
_LENGTH = re.compile(rb"[1-9][0-9]{0,6}")
_SIZE = re.compile(r"[0-9]{1,18}", re.ASCII)
_TIME = re.compile(r"(-?)([0-9]{1,11})(?:\.([0-9]{1,9}))?", re.ASCII)

ReadExactly = Callable[[int], bytes]


class Torn(Exception):
    """A header that is not as anybody wrote it."""


class Foreign(Exception):
    """A member of a kind, or with a header, that archives do not have: what it is, to follow "there is"."""


def padding(size: int) -> int:
    """How many bytes follow a content of `size` bytes, up to the end of its last block."""
    return -size % BLOCK


def encode(entry: Entry) -> bytes:
    """The header, or headers, of one member."""
    member = tarfile.TarInfo(entry.path)
    member.type = _TYPES[entry.kind]
    member.mode = entry.mode
    member.size = entry.size if entry.kind == "file" else 0
    member.linkname = entry.target
    seconds, rest = divmod(abs(entry.modified), 10**9)
    member.pax_headers = {"mtime": f"{'-' if entry.modified < 0 else ''}{seconds}.{rest:09d}"}
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def read(exactly: ReadExactly) -> Entry | None:
    """The next member's header, or `None` at the end of the tar. `exactly` reads so many bytes, or raises.

    Raises `Torn` and `Foreign`.
    """
    block = exactly(BLOCK)
    if block == END[:BLOCK]:
        if exactly(BLOCK) != block:
            raise Torn("its end is not one")
        return None
    member = _parsed(block)
    extended: dict[str, str] = {}
    if member.type == tarfile.XHDTYPE:
        if not 0 < member.size <= _MAX_EXTENDED:
            raise Foreign(f"a header of {member.size} bytes")
        extended = _records(exactly(member.size + padding(member.size))[: member.size])
        member = _parsed(exactly(BLOCK))
        if member.type == tarfile.XHDTYPE:
            raise Foreign("a header of a header")
    return _entry(member, extended)


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Torn(str(error)) from None
    if block[257:265] != _MAGIC:
        raise Foreign("a member in another tar format")
    return member


def _records(data: bytes) -> dict[str, str]:
    """The records of an extended header: `<length> <key>=<value>` and a newline each."""
    found: dict[str, str] = {}
    position = 0
    while position < len(data):
        digits = _LENGTH.match(data, position)
        end = position + int(digits[0]) if digits else 0
        record = data[position:end]
        prefix, _, rest = record.partition(b" ")
        key, equals, value = rest.partition(b"=")
        if digits is None or end > len(data) or prefix != digits[0] or not equals or not value.endswith(b"\n"):
            raise Torn("an extended header is damaged")
        name = text(key)
        if name not in _KEYS or name in found or b"\0" in value:
            raise Foreign(f"a header that says {name[:40]!r}")
        found[name] = text(value[:-1])
        position = end
    return found


def _entry(member: tarfile.TarInfo, extended: dict[str, str]) -> Entry:
    kind = _KINDS.get(member.type)
    if kind is None:
        raise Foreign(_OTHERS.get(member.type, f"a member of type {member.type!r}"))
    size = member.size
    if "size" in extended:
        if not _SIZE.fullmatch(extended["size"]):
            raise Foreign("a size that is none")
        size = int(extended["size"])
    if size < 0 or (size and kind != "file"):
        raise Foreign("a size that cannot be")
    modified = int(member.mtime) * 10**9
    if "mtime" in extended:
        time = _TIME.fullmatch(extended["mtime"])
        if time is None:
            raise Foreign("a time that is none")
        modified = int(time[2]) * 10**9 + int((time[3] or "").ljust(9, "0"))
        modified = -modified if time[1] else modified
    if abs(modified) >= 10**20:
        raise Foreign("a time that cannot be")
    path = extended.get("path", member.name)
    target = extended.get("linkpath", member.linkname)
    if kind == "directory":
        path = path.removesuffix("/")
    if kind == "link":
        size = len(raw(target))
    elif target:
        raise Foreign("a link's target where there is no link")
    return Entry(path, kind, member.mode, size, modified, target)
