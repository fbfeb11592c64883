"""One file of a message log: its name, its lines, and positions in it.

A log is `<id>.jsonl` in a session's directory, a file of sealed lines. Its first line names the position in another log
that it continues, or none.

A position is an offset behind a line, and a digest of everything before it: `chained(d, line)` from line to line,
beginning with the digest of the position that the log continues, or with `START`. So a log that was restored from a
backup, cut short and continued, or replaced by another is told from the one that a position was taken in. Positions of
0.1 have no digest; any line's end is taken for theirs.

Forks share logs by hard links. A copy or an archive makes several files of one log, and each of them would then be
written to alone. So where one has all of another, `join` gives the other name the same file again. Nothing is lost by
that, because a log is only ever appended to.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from deepctl import layout
from deepctl.errors import Refused, StoreDamaged
from deepctl.files import atomic, sealed_lines
from deepctl.unicode import whole_value

SUFFIX = ".jsonl"
SESSIONS = "sessions"
START = ""
"""The digest in front of the first line of a log that continues no other."""
MISSING = "messages are missing at its end"
NO_ORIGIN = "what it continues cannot be told"
KNOWN_ORIGIN = "damaged; what it continues is known from elsewhere"
ANOTHER = "it is not the log that was written: something before this position is different"
NO_ENTRY = "not an entry of a message log"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)
"""Why a file system makes no hard link."""
_DIGEST = 32
"""Hex digits of a digest: the first half of a SHA-256."""
_STAGING = ".link."


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

    def document(self) -> dict[str, Any]:
        """The position as the first line of a log names it."""
        entry: dict[str, Any] = {"log": self.log, "offset": self.offset}
        return {**entry, "digest": self.digest} if self.digest else entry


UNREADABLE = Point("", -1)
"""What a log continues where its first line cannot be read."""


def is_id(text: str) -> bool:
    """Whether `text` can be the id of a log: a plain word, never a path."""
    return re.fullmatch(r"[0-9a-z]{1,64}", text) is not None


def log_path(directory: str, log: str) -> str:
    return os.path.join(directory, log + SUFFIX)


def is_in(directory: str, log: str) -> bool:
    """Whether a session's directory has this log."""
    return is_id(log) and os.path.exists(log_path(directory, log))


def logs_in(directory: str) -> list[str]:
    """The ids of the logs in a session's directory, sorted."""
    names = (entry.removesuffix(SUFFIX) for entry in os.listdir(directory) if entry.endswith(SUFFIX))
    return sorted(name for name in names if is_id(name))


def siblings(directory: str) -> list[str]:
    """The directories of the profile's other sessions, of a session's directory."""
    parent, own = os.path.split(directory)
    if os.path.basename(parent) != SESSIONS:
        return []
    return [
        os.path.join(parent, name) for name in sorted(os.listdir(parent)) if name != own and not name.startswith(".")
    ]


def missing(path: str) -> StoreDamaged:
    """The error for a log that is not there."""
    return StoreDamaged(f"The message log {path} is missing.")


def chained(before: str, line: bytes) -> str:
    """The digest behind `line`, with its newline, where `before` is the digest in front of it."""
    return hashlib.sha256(before.encode() + line).hexdigest()[:_DIGEST]


def digests(raw: bytes, lines: list[sealed_lines.Line], before: str) -> list[str]:
    """The digest behind each line of a file; behind one that a kill cut short, that of the line before."""
    behind = []
    start = 0
    for line in lines:
        piece, start = raw[start : line.end], line.end
        if line.problem != "cut short":
            if not piece.endswith(b"\n"):
                # The next writer puts the newline there.
                piece = (piece if line.problem is None else piece[:-1]) + b"\n"
            before = chained(before, piece)
        behind.append(before)
    return behind


def parse(raw: bytes) -> Iterator[sealed_lines.Line]:
    """The lines of a log, in valid Unicode. Only escapes can stand for lone surrogates, and few logs have any."""
    lines = sealed_lines.parse(raw)
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return lines
    return (line._replace(value=whole_value(line.value)) for line in lines)


def upgraded(line: sealed_lines.Line, path: str) -> sealed_lines.Line:
    """A line in the present format; one without the number of any is damaged. Raises `NewerFormat`."""
    if line.value is not None:
        try:
            layout.bring_up(layout.LOG_FORMAT, line.value, path)
        except layout.BadVersion:
            return line._replace(value=None, problem=NO_ENTRY)
    return line


def header_parent(line: sealed_lines.Line, path: str) -> Point | None:
    """What the first line of a log says that it continues; `UNREADABLE` if it is not one of this log."""
    log = os.path.basename(path).removesuffix(SUFFIX)
    match line.value:
        case {"log": str(own), "parent": {"log": str(parent), "offset": int(offset)} as point} if own == log:
            digest = point.get("digest", "")
            return Point(parent, offset, digest) if is_id(parent) and isinstance(digest, str) else UNREADABLE
        case {"log": str(own), "parent": None} if own == log:
            return None
        case _:
            return UNREADABLE


def has_header(lines: list[sealed_lines.Line], path: str) -> bool:
    """Whether the first line of a log says what it continues."""
    return bool(lines) and header_parent(lines[0], path) is not UNREADABLE


def parent_in(lines: list[sealed_lines.Line], path: str) -> Point | None:
    """What a log continues, by its lines; `None` too where its first line cannot be read."""
    parent = header_parent(lines[0], path) if lines else None
    return parent if parent is not UNREADABLE else None


def share(source: str, target: str) -> None:
    """Give a file another name; where there are no hard links, a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copy2(source, target, follow_symlinks=False)


def join(directories: Iterable[str]) -> list[str]:
    """Let sessions share again what is one log; returns the paths that are other files now.

    Where the file system has no hard links, nothing is done. The caller holds the profile's lock.
    """
    joined: list[str] = []
    for paths in parted(directories).values():
        try:
            joined += _joined(paths)
        except (OSError, Refused):
            continue
    return joined


def parted(directories: Iterable[str]) -> dict[str, list[str]]:
    """The logs that are in several of the directories as different files: their paths by their names."""
    inodes: dict[str, dict[str, int]] = {}
    for directory in directories:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and is_id(entry.name.removesuffix(SUFFIX)):
                        inodes.setdefault(entry.name, {})[entry.path] = entry.inode()
        except (FileNotFoundError, NotADirectoryError):
            continue
    return {name: sorted(paths) for name, paths in inodes.items() if len(set(paths.values())) > 1}


def _joined(paths: list[str]) -> list[str]:
    """Give these paths the longest of their files, where it begins with all that the others have."""
    longest = max(paths, key=lambda path: os.lstat(path).st_size)
    inode = os.lstat(longest).st_ino
    whole: bytes | None = None
    joined: list[str] = []
    for path in paths:
        if os.lstat(path).st_ino == inode:
            continue
        staged = os.path.join(os.path.dirname(path), f"{_STAGING}{os.path.basename(path)}.tmp")
        try:
            os.unlink(staged)
        except FileNotFoundError:
            pass
        try:
            os.link(longest, staged)
        except OSError as error:
            if error.errno in NO_LINKS or error.errno == errno.ENOSPC:
                return joined
            raise
        whole = whole if whole is not None else atomic.read_file(longest)
        if whole.startswith(atomic.read_file(path)):
            os.rename(staged, path)
            atomic.sync_directory(os.path.dirname(path))
            joined.append(path)
        else:
            os.unlink(staged)
    return joined
