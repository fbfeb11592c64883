"""Which files a conversation is read from: a log, the logs that it continues, and of each the copy with the position.

A position in a log is an offset behind a line, and a digest of everything before it: `chained(d, line)` from line to
line, beginning with the digest of the position that the log continues, or with `START`. So a log that was restored from
a backup, cut short and continued, or replaced by another is told from the one that a position was taken in. Positions
of 0.1 have no digest; any line's end is taken for theirs.

Forks share logs by hard links. Where such a link is broken (copies, archives), the copies part; a position is looked
for in the session's own directory, then in the profile's others.

What a log continues is in its first line. It is in the ledger, or in the session's record, too, and taken from there
where that line is damaged.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from deepctl import formats
from deepctl.errors import StoreDamaged
from deepctl.files import atomic, sealed_lines
from deepctl.unicode import whole_value

SUFFIX = ".jsonl"
SESSIONS = "sessions"
START = ""
MISSING = "messages are missing at its end"
NO_ORIGIN = "what it continues cannot be told"
KNOWN_ORIGIN = "damaged; what it continues is known from elsewhere"
ANOTHER = "it is not the log that was written: something before this position is different"
NO_ENTRY = "not an entry of a message log"
_DIGEST = 32
"""Hex digits of a digest: the first half of a SHA-256."""


class LogDamage(NamedTuple):
    """One line that could not be used: which file and line, and why. `torn` marks a line cut short by a kill."""

    file: str
    line: int
    reason: str
    torn: bool


class Point(NamedTuple):
    """A position in a log: the offset in bytes behind a line, and the digest there, empty if it is not known."""

    log: str
    offset: int
    digest: str = ""


class Link(NamedTuple):
    """One log of a chain as far as it is read: its file, the lines, and the digest behind each of them.

    `is_whole` says that no line is damaged.
    """

    path: str
    lines: list[sealed_lines.Line]
    digests: list[str]
    is_whole: bool


class Chain(NamedTuple):
    """A log and those it continues, the first of all first. `lost` is why a part of it is not what was written."""

    links: list[Link]
    digest: str
    damage: list[LogDamage]
    lost: LogDamage | None


def is_id(text: str) -> bool:
    """Whether `text` can be the id of a log: a plain word, never a path."""
    return re.fullmatch(r"[0-9a-z]{1,64}", text) is not None


def log_path(directory: str, log: str) -> str:
    return os.path.join(directory, log + SUFFIX)


def chained(before: str, line: bytes) -> str:
    """The digest behind `line`, with its newline, where `before` is the digest in front of it."""
    return hashlib.sha256(before.encode() + line).hexdigest()[:_DIGEST]


def digests(raw: bytes, lines: list[sealed_lines.Line], before: str) -> list[str]:
    """The digest behind each line of a file; behind one that a kill cut short, that of the line before."""
    found = []
    start = 0
    for line in lines:
        piece, start = raw[start : line.end], line.end
        if line.problem != "cut short":
            if not piece.endswith(b"\n"):
                # Whoever appends next puts the newline there.
                piece = (piece if line.problem is None else piece[:-1]) + b"\n"
            before = chained(before, piece)
        found.append(before)
    return found


def missing(path: str) -> StoreDamaged:
    """The error for a log that is not there."""
    return StoreDamaged(f"The message log {path} is missing.")


def parsed(raw: bytes) -> Iterator[sealed_lines.Line]:
    """The lines of a log, in valid Unicode. Only escapes can stand for lone surrogates, and few logs have any."""
    lines = sealed_lines.parse(raw)
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return lines
    return (line._replace(value=whole_value(line.value)) for line in lines)


def present(line: sealed_lines.Line, path: str) -> sealed_lines.Line:
    """A line in the present format; one without the number of any is damaged. Raises `NewerFormat`."""
    if line.value is not None:
        try:
            formats.bring_up(formats.LOG, line.value, path)
        except formats.BadVersion:
            return line._replace(value=None, problem=NO_ENTRY)
    return line


class _Copy(NamedTuple):
    """A file with a log, read up to where it is wanted; `is_short` if that is not the end of a line of it."""

    path: str
    raw: bytes
    lines: list[sealed_lines.Line]
    is_short: bool
    is_whole: bool

    @property
    def has_header(self) -> bool:
        return has_header(self.lines, self.path)


_UNREADABLE = Point("", -1)


def _header_parent(line: sealed_lines.Line, path: str) -> Point | None:
    """What the first line of a log says that it continues; `_UNREADABLE` if it is not one of this log."""
    log = os.path.basename(path).removesuffix(SUFFIX)
    match line.value:
        case {"log": str(own), "parent": {"log": str(parent), "offset": int(offset)} as point} if own == log:
            digest = point.get("digest", "")
            known = is_id(parent) and isinstance(digest, str)
            return Point(parent, offset, digest) if known else _UNREADABLE
        case {"log": str(own), "parent": None} if own == log:
            return None
        case _:
            return _UNREADABLE


def _copy(path: str, end: int | None) -> _Copy:
    raw = atomic.read_file(path)
    wanted = raw if end is None else raw[:end]
    lines = [present(line, path) for line in parsed(wanted)]
    is_short = end is not None and (len(raw) < end or not lines or lines[-1].problem == "cut short")
    is_whole = all(line.problem is None or line.problem == "cut short" for line in lines)
    return _Copy(path, wanted, lines, is_short, is_whole)


def beside(directory: str) -> list[str]:
    """The directories of the profile's other sessions, of a session's directory."""
    parent, own = os.path.split(directory)
    if os.path.basename(parent) != SESSIONS:
        return []
    return [
        os.path.join(parent, name) for name in sorted(os.listdir(parent)) if name != own and not name.startswith(".")
    ]


def _copies(directory: str, log: str, end: int | None) -> Iterator[_Copy]:
    """The files with a log that differ: the session's own, then those of other sessions."""
    seen: set[tuple[int, int]] = set()
    for place in [directory, *beside(directory)]:
        path = log_path(place, log)
        try:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield _copy(path, end)
        except (FileNotFoundError, NotADirectoryError):
            continue


def has_header(lines: list[sealed_lines.Line], path: str) -> bool:
    """Whether the first line of a log says what it continues."""
    return bool(lines) and _header_parent(lines[0], path) is not _UNREADABLE


def parent_in(lines: list[sealed_lines.Line], path: str) -> Point | None:
    """What a log continues, by its lines; `None` too where its first line cannot be read."""
    parent = _header_parent(lines[0], path) if lines else None
    return parent if parent is not _UNREADABLE else None


class _Level:
    """One log of a chain that is being put together: what is wanted of it, and the copy that is used."""

    def __init__(self, directory: str, point: Point, *, is_open: bool) -> None:
        self.point = point
        self.end = None if is_open else point.offset
        self._rest = _copies(directory, point.log, self.end)
        self._seen: list[_Copy] = []
        try:
            self.copy = next(self._fitting())
        except StopIteration:
            if not self._seen:
                raise missing(log_path(directory, point.log)) from None
            self.copy = max(self._seen, key=lambda copy: (copy.has_header, len(copy.raw)))

    def _fitting(self) -> Iterator[_Copy]:
        for copy in self._rest:
            self._seen.append(copy)
            if not copy.is_short and copy.has_header:
                yield copy

    def tie(self, before: str) -> list[str]:
        """Choose the copy that has the digest, if one has; returns the digests behind the lines of the one in use."""
        found = digests(self.copy.raw, self.copy.lines, before)
        if self.is_tied(found):
            return found
        for copy in self._fitting():
            other = digests(copy.raw, copy.lines, before)
            if other and other[-1] == self.point.digest:
                self.copy = copy
                return other
        return found

    def is_tied(self, found: list[str]) -> bool:
        """Whether the digest is the one that is wanted, if any is."""
        return not self.point.digest or (bool(found) and found[-1] == self.point.digest)


def resolve(directory: str, point: Point, *, is_open: bool = False) -> Chain:
    """The files of a conversation, up to a position in the log of a session in `directory`; `is_open`: to its end.

    Raises `Damaged` if a log is missing, and `NewerFormat` if a later deepctl wrote one.
    """
    levels: list[_Level] = []
    damage: list[LogDamage] = []
    lost: list[LogDamage] = []
    seen: set[str] = set()
    origins: dict[str, Point | None] | None = None
    while True:
        seen.add(point.log)
        level = _Level(directory, point, is_open=is_open)
        is_open = False
        levels.append(level)
        copy = level.copy
        parent = _header_parent(copy.lines[0], copy.path) if copy.lines else _UNREADABLE
        if parent is _UNREADABLE:
            from deepctl.store.session_recovery import origins_of

            origins = origins_of(directory) if origins is None else origins
            is_known = point.log in origins
            parent = origins.get(point.log)
            damage.append(LogDamage(os.path.basename(copy.path), 1, KNOWN_ORIGIN if is_known else NO_ORIGIN, False))
            if not is_known:
                lost.append(damage[-1])
        if parent is None:
            break
        if parent.log in seen:
            damage.append(LogDamage(os.path.basename(copy.path), 1, NO_ORIGIN, False))
            lost.append(damage[-1])
            break
        point = parent
    links: list[Link] = []
    before, is_sure = START, True
    for level in reversed(levels):
        found = level.tie(before)
        copy = level.copy
        is_sure = is_sure and copy.is_whole and copy.has_header
        if copy.is_short:
            lost.append(LogDamage(os.path.basename(copy.path), len(copy.lines) + 1, MISSING, False))
            damage.append(lost[-1])
        elif is_sure and not level.is_tied(found):
            lost.append(LogDamage(os.path.basename(copy.path), len(copy.lines), ANOTHER, False))
            damage.append(lost[-1])
        lines, behind = copy.lines, found
        if not copy.has_header:
            lines, behind = lines[1:], found[1:]
        links.append(Link(copy.path, lines, behind, copy.is_whole))
        before = found[-1] if found else before
    return Chain(links, before, damage, lost[0] if lost else None)


def record(point: Point) -> dict[str, Any]:
    """A position as the first line of a log names it."""
    named: dict[str, Any] = {"log": point.log, "offset": point.offset}
    if point.digest:
        named["digest"] = point.digest
    return named
