"""What can be looked up faster than found out: where objects lie, and which directories have not changed.

A SQLite file that may be deleted at any time, and is, by itself, when it cannot be read. Nothing in it is believed
without a check: an object is compared with its hash when it is read, and a directory with its files' status.
Killing a writer leaves it whole (SQLite's rollback journal); a power cut may not, which is why it is only a cache.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import zlib
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

from deepctl.domain import formats
from deepctl.errors import Refused
from deepctl.files import durable

_FORMAT = formats.CACHE.current
_SCHEMA = """
CREATE TABLE packs (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE objects (
    hash BLOB PRIMARY KEY, pack TEXT NOT NULL, offset INTEGER NOT NULL, stored INTEGER NOT NULL, size INTEGER NOT NULL,
    sum INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE directories (
    path BLOB PRIMARY KEY, key BLOB, tree BLOB NOT NULL, files BLOB NOT NULL, sum INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Location(NamedTuple):
    """Where an object lies: its pack, the offset and length in it, and the length of its content, in bytes."""

    pack: str
    offset: int
    stored: int
    size: int


_MEMORY = ":memory:"


def _is_file(path: str) -> bool:
    """Whether SQLite may open it: for a FIFO it would wait, and no signal would end that."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _object_sum(digest: bytes, pack: str, offset: int, stored: int, size: int) -> int:
    return zlib.crc32(b"%s %s %d %d %d" % (digest, pack.encode(), offset, stored, size))


def _directory_sum(path: bytes, key: bytes | None, tree: bytes, files: bytes) -> int:
    return zlib.crc32(files, zlib.crc32(b"%s %s %s" % (path, key or b"", tree)))


class Cache:
    """The cache at `path`, opened for writing; without one, a cache that is gone when it is closed.

    The caller holds the lock of the profile, if there is a path.
    """

    def __init__(self, path: str = _MEMORY) -> None:
        self._path = path
        try:
            self._open()
        except sqlite3.DatabaseError:
            self.forget()
        except (OSError, Refused):
            # Something else is in its place. It can be done without.
            self._path = _MEMORY
            self._open()

    @classmethod
    def copy_of(cls, path: str) -> Cache:
        """What the cache at `path` knows, in memory: for readers, who change nothing and hold no lock."""
        copied = cls()
        if not _is_file(path):
            return copied
        try:
            # `mode=ro` fails where a killed writer left a journal: then nothing is known.
            source = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
            try:
                (version,) = source.execute("PRAGMA user_version").fetchone()
                if version == _FORMAT:
                    source.backup(copied._database)
            finally:
                source.close()
        except sqlite3.Error:
            copied.close()
            return cls()
        return copied

    def _open(self) -> None:
        if self._path != _MEMORY:
            durable.make_root(os.path.dirname(self._path))
            durable.make_private_file(self._path)
        self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            self._database.execute("PRAGMA synchronous = OFF")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version != _FORMAT:
                for (table,) in self._database.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table'"
                ).fetchall():
                    self._database.execute(f'DROP TABLE "{table}"')
                self._database.executescript(_SCHEMA)
                self._database.execute(f"PRAGMA user_version = {_FORMAT}")
        except BaseException:
            self._database.close()
            raise

    def forget(self) -> None:
        """Throw everything away and begin anew."""
        self.close()
        if self._path == _MEMORY:
            self._open()
            return
        for suffix in ("", "-journal"):
            try:
                os.unlink(self._path + suffix)
            except FileNotFoundError:
                pass
        try:
            self._open()
        except sqlite3.Error:
            # The disk may be full. It can be done without.
            self._path = _MEMORY
            self._open()

    def close(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()

    def packs(self) -> set[str]:
        """The packs whose objects are in the cache."""
        return {name for (name,) in self._database.execute("SELECT name FROM packs")}

    def add_pack(self, name: str, objects: Iterable[tuple[bytes, int, int, int]]) -> None:
        """Remember the objects of a pack: hash, offset, stored length and size of each."""
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)",
            (
                (digest, name, offset, stored, size, _object_sum(digest, name, offset, stored, size))
                for digest, offset, stored, size in objects
            ),
        )
        self._database.execute("INSERT OR REPLACE INTO packs VALUES (?)", (name,))
        self._database.execute("COMMIT")

    def drop_packs(self) -> None:
        """A pack is gone: forget them all, and the trees of directories.

        What was in it may be in another, too, and only one place of an object is known.
        """
        self._database.execute("BEGIN")
        for table in ("directories", "objects", "packs"):
            self._database.execute(f"DELETE FROM {table}")
        self._database.execute("COMMIT")

    def find(self, digest: bytes) -> Location | None:
        """Where an object lies, or `None` if the cache does not know it. Raises `sqlite3.DatabaseError` if damaged."""
        row = self._database.execute(
            "SELECT pack, offset, stored, size, sum FROM objects WHERE hash = ?", (digest,)
        ).fetchone()
        if row is None:
            return None
        if _object_sum(digest, *row[:4]) != row[4]:
            raise sqlite3.DatabaseError("a row is not as it was written")
        return Location(*row[:4])

    def directories(self) -> dict[bytes, tuple[bytes | None, bytes]]:
        """The key and the tree of every directory that was seen, by path."""
        rows = self._database.execute("SELECT path, key, tree FROM directories")
        return {path: (key, tree) for path, key, tree in rows}

    def files(self, path: bytes) -> bytes | None:
        """What is known of the files of one directory; nothing if it is not as it was written."""
        row = self._database.execute("SELECT key, tree, files, sum FROM directories WHERE path = ?", (path,)).fetchone()
        return row[2] if row is not None and _directory_sum(path, *row[:3]) == row[3] else None

    def put_directories(self, rows: Iterable[tuple[bytes, bytes | None, bytes, bytes]], gone: Iterable[bytes]) -> None:
        """Remember directories (path, key, tree, files), and forget those that are gone."""
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT OR REPLACE INTO directories VALUES (?, ?, ?, ?, ?)", ((*row, _directory_sum(*row)) for row in rows)
        )
        self._database.executemany("DELETE FROM directories WHERE path = ?", ((path,) for path in gone))
        self._database.execute("COMMIT")
