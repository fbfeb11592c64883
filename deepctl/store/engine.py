"""Where session logs, the ledger and small documents are kept: the one place that a second engine replaces.

Everything above speaks of these protocols; local files are their only engine today. The others of the five seams are
elsewhere: objects in `object_store`, the lock in `deepctl.locks` (`Lease`), and the working tree in `checkpoint_store`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from deepctl.files import atomic, sealed_lines


class AppendedLines(Protocol):
    """A log or a ledger, open for appending; each line is durable when the call returns.

    `end` is the offset in bytes behind the last line, and `torn` how many bytes of an unfinished one were cut off on
    opening. The caller holds the lease of the profile.
    """

    torn: int
    end: int

    def is_current(self, status: os.stat_result) -> bool:
        """Whether nothing has been added by others, and it is still the one in its place."""

    def append(self, value: dict[str, Any]) -> int:
        """Write one line. Returns the offset behind it."""

    def write(self, lines: Sequence[bytes]) -> list[int]:
        """Write several sealed lines together. Returns the offset behind each."""

    def close(self) -> None:
        """Let go of it."""


class Documents(Protocol):
    """Small documents that are replaced as a whole, by their names."""

    def read(self, name: str) -> bytes:
        """The document. Raises `FileNotFoundError` if there is none, and `Refused` if something else is there."""

    def replace(self, name: str, content: bytes) -> None:
        """Put a document in place: durable when this returns, and never half of it."""


class LocalDocuments:
    """The documents in a directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def read(self, name: str) -> bytes:
        """See `Documents`."""
        return atomic.read_file(os.path.join(self._directory, name))

    def replace(self, name: str, content: bytes) -> None:
        """See `Documents`."""
        atomic.write_file(os.path.join(self._directory, name), content)


def documents(directory: str) -> Documents:
    """The documents of a session or profile, by its directory."""
    return LocalDocuments(directory)


def open_lines(path: str, size: int | None = None) -> AppendedLines:
    """A log or ledger for appending. `size` is its length if it has been read and ends with a whole line."""
    return sealed_lines.Appender(path, size)


def read_lines(path: str) -> bytes:
    """All the bytes of a log or ledger. Raises `FileNotFoundError`, or `Refused` if something else is there."""
    return atomic.read_file(path)


def write_lines(path: str, raw: bytes) -> None:
    """Begin a log, or replace a ledger, with these lines: durable when this returns, and never half of them."""
    atomic.write_file(path, raw)
