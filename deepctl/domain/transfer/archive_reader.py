"""Reading an archive: bytes from gzip, entries from bytes, and the three ways in which it can be invalid.

Of an archive's own claims only its limits are used: its header declares totals, and content beyond them is not read. At
most a mebibyte of content and a header are in memory.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from deepctl.domain.transfer import archive
from deepctl.domain.transfer.archive import ArchiveEntry, ArchiveHeader, Kind, Totals, raw, text
from deepctl.errors import Damaged, DeepctlError, NewerFormat, Refused, UsageError

_CHUNK = 1 << 20
_OVERHEAD = 8192
"""Average bytes of headers and manifest that an entry may take."""
_ANYWAY = 1 << 20
"""Bytes of an archive without entries."""


class ArchiveReader:
    """The archive in `file`, called `name` in errors; `header` and then `entries` are read from it once.

    Raises `UsageError` (`bad_archive`) for a file of another kind, `Damaged` for a damaged or truncated archive,
    `NewerFormat`, and `Refused` (`hostile_archive`) for an archive that deepctl would not have written.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._gzip = gzip.GzipFile(fileobj=file, mode="rb")
        self.name = name
        self._left = archive.MAX_HEADER + _ANYWAY
        self._read = 0
        self._lines = hashlib.sha256()
        self._lines_size = 0
        self._unread = 0
        self.totals = Totals(0, 0, 0)
        self.header = self._header()

    def bad(self, reason: str) -> UsageError:
        """The error for a file that is not an archive of a profile."""
        return UsageError(
            f"{self.name} is not an archive of a profile: {reason}.",
            "`deepctl profiles export FILE` writes one.",
            code="bad_archive",
        )

    def damaged(self, reason: str) -> Damaged:
        """It differs from the written archive."""
        return Damaged(f"{self.name} is damaged: {reason}.", "Nothing was imported. Copy or export it again.")

    def hostile(self, reason: str) -> DeepctlError:
        """A refusal; `Damaged` if the rest of the archive shows that the cause is damage."""
        if not self._is_intact():
            return self.damaged("its checksum does not match")
        return Refused(
            f"{self.name} is refused: {reason}. `profiles export` never writes this.",
            "Nothing was imported. Do not trust its source.",
            code="hostile_archive",
        )

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += self._some(count - len(data))
        return bytes(data)

    def _some(self, most: int) -> bytes:
        """At most `size` bytes. Raises `Damaged` if there are none."""
        if self._left <= 0:
            raise self.hostile("it contains more than its header says")
        piece = self._piece(most)
        if not piece:
            raise self.bad("it is empty") if not self._read else self.damaged("it is cut short")
        return piece

    def _piece(self, most: int) -> bytes:
        try:
            piece = self._gzip.read(min(most, _CHUNK))
        except EOFError:
            raise self.damaged("it is cut short") from None
        except gzip.BadGzipFile as error:
            raise self.damaged(str(error)) if self._read else self.bad("it is not compressed by gzip") from None
        except zlib.error:
            raise self.damaged("it cannot be decompressed") from None
        self._read += len(piece)
        self._left -= len(piece)
        return piece

    def _is_intact(self) -> bool:
        """Whether the readable rest of the archive is intact gzip data."""
        try:
            while self._left > 0 and self._piece(_CHUNK):
                pass
        except (Damaged, UsageError):
            return False
        return True

    def _header(self) -> ArchiveHeader:
        block = self._exactly(BLOCK)
        pending = [block]
        try:
            entry = read(lambda count: pending.pop() if pending else self._exactly(count))
        except TornHeader:
            if archive.HEADER.encode() in block or not self._is_intact():
                raise self.damaged("its beginning is not what was written") from None
            raise self.bad("it is no tar file") from None
        except ForeignMember:
            entry = None
        if entry is None or entry.path != archive.HEADER or entry.kind != "file":
            if not self._is_intact():
                raise self.damaged("its beginning is not what was written")
            raise self.bad("another entry is in its place")
        if entry.size > archive.MAX_HEADER:
            raise self.hostile(f"a header of {entry.size} bytes")
        line = self._exactly(entry.size + padding(entry.size))[: entry.size]
        try:
            header = archive.parse_header(line, self.name)
        except ValueError as error:
            raise self.damaged(f"its header: {error}") from None
        except NewerFormat:
            if not self._is_intact():
                raise self.damaged("its checksum does not match") from None
            raise
        self._most = archive.allowance(Totals(header.entries, header.files, header.bytes))
        self._left = self._most.bytes + self._most.entries * _OVERHEAD + _ANYWAY
        return header

    def entries(self) -> Iterator[ArchiveEntry]:
        """Every entry; the content of a file must be read by `content` before the next entry.

        When this returns, the last entry has been checked against the manifest, and the archive to its end.
        """
        while (entry := self._next()).path != archive.MANIFEST:
            self._check(entry)
            self._current = entry
            self._unread = entry.size if entry.kind == "file" else 0
            if entry.kind != "file":
                self._note(entry, hashlib.sha256(archive.raw(entry.target)).hexdigest() if entry.target else None)
            yield entry
        self._manifest(entry)

    def _next(self) -> ArchiveEntry:
        try:
            entry = read(self._exactly)
        except TornHeader as error:
            raise self.damaged(f"a header in it ({error})") from None
        except ForeignMember as error:
            raise self.hostile(f"there is {error} in it") from None
        if entry is None:
            raise self.hostile("it ends without a manifest")
        return entry

    def _check(self, entry: ArchiveEntry) -> None:
        quoted_path = ascii(entry.path[:200])
        if "\0" in entry.path + entry.target or any(part in ("", ".", "..") for part in entry.path.split("/")):
            raise self.hostile(f"there is an entry called {quoted_path}")
        if not archive.is_of_a_profile(entry.path, entry.kind):
            raise self.hostile(f"{quoted_path}, a {entry.kind}, is not part of a profile")
        if entry.path.count("/") > archive.MAX_DEPTH:
            raise self.hostile(f"more than {archive.MAX_DEPTH} nested directories")
        if entry.kind == "link" and (not entry.target or archive.leads_out(entry.path, entry.target)):
            raise self.hostile(f"the link {quoted_path} leads out of the workspace, to {entry.target[:200]!a}")
        self.totals = self.totals.with_(entry.kind, entry.size)
        if any(have > most for have, most in zip(self.totals, self._most, strict=True)):
            raise self.hostile("it contains more than its header says")

    def _note(self, entry: ArchiveEntry, digest: str | None) -> None:
        line = archive.manifest_line(entry, digest)
        self._lines.update(line)
        self._lines_size += len(line)

    def content(self) -> Iterator[bytes]:
        """The content of the file that `entries` returned last, in pieces of at most a mebibyte."""
        hasher = hashlib.sha256()
        entry = self._current
        while self._unread:
            piece = self._some(self._unread)
            self._unread -= len(piece)
            hasher.update(piece)
            yield piece
        self._exactly(padding(entry.size))
        self._note(entry, hasher.hexdigest())

    def _manifest(self, entry: ArchiveEntry) -> None:
        end = archive.manifest_end(self.totals)
        self._lines.update(end)
        if entry.kind != "file" or entry.size != self._lines_size + len(end):
            raise self.damaged("its manifest does not match its content")
        hasher = hashlib.sha256()
        bytes_left = entry.size
        while bytes_left:
            piece = self._some(bytes_left)
            bytes_left -= len(piece)
            hasher.update(piece)
        if hasher.digest() != self._lines.digest():
            raise self.damaged("its content does not match its manifest")
        self._exactly(padding(entry.size))
        self._finish()

    def _finish(self) -> None:
        """Read to the very end, where gzip's own checksum is."""
        try:
            if read(self._exactly) is not None:
                raise self.hostile("there is data after its end")
        except (TornHeader, ForeignMember):
            raise self.hostile("there is data after its end") from None
        self._left = _ANYWAY
        while piece := self._piece(_CHUNK):
            if self._left <= 0 or piece.strip(b"\0"):
                raise self.hostile("there is data after its end")


BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
"""The end of a tar file."""

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
    tarfile.XGLTYPE: "a header for all following entries",
    tarfile.GNUTYPE_LONGNAME: "a long name of GNU tar's",
    tarfile.GNUTYPE_LONGLINK: "a long name of GNU tar's",
}
_KEYS = ("path", "linkpath", "size", "mtime", "hdrcharset")
_LENGTH = re.compile(rb"[1-9][0-9]{0,6}")
_SIZE = re.compile(r"[0-9]{1,18}", re.ASCII)
_TIME = re.compile(r"(-?)([0-9]{1,11})(?:\.([0-9]{1,9}))?", re.ASCII)

ReadExactly = Callable[[int], bytes]


class TornHeader(Exception):
    """A header that no writer produces."""


class ForeignMember(Exception):
    """A member of a kind, or with a header, that archives do not have; the text follows "there is"."""


def padding(size: int) -> int:
    """The number of padding bytes after a content of `size` bytes."""
    return -size % BLOCK


def encode(entry: ArchiveEntry) -> bytes:
    """The header, or headers, of one member."""
    member = tarfile.TarInfo(entry.path)
    member.type = _TYPES[entry.kind]
    member.mode = entry.mode
    member.size = entry.size if entry.kind == "file" else 0
    member.linkname = entry.target
    seconds, nanoseconds = divmod(abs(entry.modified), 10**9)
    member.pax_headers = {"mtime": f"{'-' if entry.modified < 0 else ''}{seconds}.{nanoseconds:09d}"}
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def read(exactly: ReadExactly) -> ArchiveEntry | None:
    """The next member's header, or `None` at the end of the tar. `exactly` reads this number of bytes, or raises.

    Raises `TornHeader` and `ForeignMember`.
    """
    block = exactly(BLOCK)
    if block == END[:BLOCK]:
        if exactly(BLOCK) != block:
            raise TornHeader("its end is invalid")
        return None
    member = _parsed(block)
    records: dict[str, str] = {}
    if member.type == tarfile.XHDTYPE:
        if not 0 < member.size <= _MAX_EXTENDED:
            raise ForeignMember(f"a header of {member.size} bytes")
        records = _records(exactly(member.size + padding(member.size))[: member.size])
        member = _parsed(exactly(BLOCK))
        if member.type == tarfile.XHDTYPE:
            raise ForeignMember("a header of a header")
    return _entry(member, records)


def _parsed(block: bytes) -> tarfile.TarInfo:
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise TornHeader(str(error)) from None
    if block[257:265] != _MAGIC:
        raise ForeignMember("a member in another tar format")
    return member


def _records(data: bytes) -> dict[str, str]:
    """The records of an extended header: `<length> <key>=<value>` and a newline each."""
    records: dict[str, str] = {}
    position = 0
    while position < len(data):
        digits = _LENGTH.match(data, position)
        end = position + int(digits[0]) if digits else 0
        record = data[position:end]
        prefix, _, rest = record.partition(b" ")
        key, equals, value = rest.partition(b"=")
        if digits is None or end > len(data) or prefix != digits[0] or not equals or not value.endswith(b"\n"):
            raise TornHeader("an extended header is damaged")
        name = text(key)
        if name not in _KEYS or name in records or b"\0" in value:
            raise ForeignMember(f"a header that says {name[:40]!r}")
        records[name] = text(value[:-1])
        position = end
    return records


def _entry(member: tarfile.TarInfo, records: dict[str, str]) -> ArchiveEntry:
    kind = _KINDS.get(member.type)
    if kind is None:
        raise ForeignMember(_OTHERS.get(member.type, f"a member of type {member.type!r}"))
    size = member.size
    if "size" in records:
        if not _SIZE.fullmatch(records["size"]):
            raise ForeignMember("an invalid size")
        size = int(records["size"])
    if size < 0 or (size and kind != "file"):
        raise ForeignMember("an impossible size")
    modified_at = int(member.mtime) * 10**9
    if "mtime" in records:
        time = _TIME.fullmatch(records["mtime"])
        if time is None:
            raise ForeignMember("an invalid time")
        modified_at = int(time[2]) * 10**9 + int((time[3] or "").ljust(9, "0"))
        modified_at = -modified_at if time[1] else modified_at
    if abs(modified_at) >= 10**20:
        raise ForeignMember("an impossible time")
    path = records.get("path", member.name)
    target = records.get("linkpath", member.linkname)
    if kind == "directory":
        path = path.removesuffix("/")
    if kind == "link":
        size = len(raw(target))
    elif target:
        raise ForeignMember("the target of a link on an entry that is not a link")
    return ArchiveEntry(path, kind, member.mode, size, modified_at, target)
