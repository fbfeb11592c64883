"""The cache of facts that are slow to compute: the positions of objects, and the trees of unchanged directories.

The cache is a SQLite file. It may be deleted at any time, and is deleted if it cannot be read or written. Its contents
are always checked: an object is compared with its hash when it is read, and a directory with the status of its files.
Every error of SQLite is handled here: a command without its cache takes longer, but does not fail. Killing a writer
leaves the file intact (SQLite's rollback journal). A power cut may damage it, so it is only a cache.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, TypeVar
from urllib.parse import quote

from deepctl import layout
from deepctl.errors import Refused
from deepctl.files import atomic

T = TypeVar("T")

_FORMAT = layout.CACHE_FORMAT.current
_PARAMETERS = 500
"""Values in one query; every SQLite allows 999."""
_FAILURES = (sqlite3.Error, OSError, Refused)
"""The errors of SQLite, of the disk, or of another entry in the place of the file."""
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
    """The position of an object: its pack, the offset and length there, and the length of its content, in bytes."""

    pack: str
    offset: int
    stored_size: int
    size: int


_MEMORY = ":memory:"


def _is_file(path: str) -> bool:
    """Whether SQLite may open the file: it would wait for a FIFO, and no signal would end the wait."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _object_sum(digest: bytes, pack: str, offset: int, stored_size: int, size: int) -> int:
    return zlib.crc32(b"%s %s %d %d %d" % (digest, pack.encode(), offset, stored_size, size))


def _directory_sum(path: bytes, key: bytes | None, tree: bytes, files: bytes) -> int:
    return zlib.crc32(files, zlib.crc32(b"%s %s %s" % (path, key or b"", tree)))


class Cache:
    """The cache at `path`, opened for writing; without a path, a cache in memory.

    No method fails because of the cache: an error of SQLite, or of the disk below it, drops all contents, and the cache
    continues empty. It continues in memory if the disk does not accept a new file. After an error, `generation` is
    larger, so that callers can notice the loss. The caller holds the lock of the profile, if there is a path.
    """

    def __init__(self, path: str = _MEMORY) -> None:
        self._path = path
        self.generation = 0
        try:
            self._database = _opened(self._path)
        except _FAILURES:
            self._begin_anew()

    @classmethod
    def copy_of(cls, path: str) -> Cache:
        """The contents of the cache at `path`, in memory: for readers, who change nothing and hold no lock."""
        cache = cls()
        if not _is_file(path):
            return cache
        try:
            # `mode=ro` fails if a killed writer left a journal; the cache is empty then.
            source = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)
            try:
                (version,) = source.execute("PRAGMA user_version").fetchone()
                if version == _FORMAT:
                    source.backup(cache._database)
            finally:
                source.close()
        except sqlite3.Error:
            cache.close()
            return cls()
        return cache

    def forget(self) -> None:
        """Drop all contents and start again."""
        self.close()
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Continue empty. A new file on the disk is tried only once, because every attempt fails on a full disk."""
        self.generation += 1
        if self._path != _MEMORY:
            # A file that cannot be deleted stays, as after a kill: it is older than the packs, and checked against
            # them.
            for suffix in ("-journal", ""):
                with suppress(OSError):
                    os.unlink(self._path + suffix)
            if self.generation == 1:
                with suppress(*_FAILURES):
                    self._database = _opened(self._path)
                    return
            self._path = _MEMORY
        self._database = _opened(_MEMORY)

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self._database.close()

    def _guarded(self, operation: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """The result of an operation on the database; `otherwise` if it fails, and the cache is then emptied."""
        try:
            return operation(self._database)
        except _FAILURES:
            self.forget()
            return otherwise

    def _changed(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """Make a change completely, or empty the cache."""

        def transaction(database: sqlite3.Connection) -> None:
            database.execute("BEGIN")
            change(database)
            database.execute("COMMIT")

        self._guarded(transaction, None)

    def packs(self) -> set[str]:
        """The packs whose objects are in the cache."""
        return self._guarded(lambda database: {name for (name,) in database.execute("SELECT name FROM packs")}, set())

    def add_pack(self, name: str, objects: Iterable[tuple[bytes, int, int, int]]) -> None:
        """Remember the objects of a pack: hash, offset, stored length and size of each."""
        rows = (
            (digest, name, offset, stored_size, size, _object_sum(digest, name, offset, stored_size, size))
            for digest, offset, stored_size, size in objects
        )

        def add(database: sqlite3.Connection) -> None:
            database.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)", rows)
            database.execute("INSERT OR REPLACE INTO packs VALUES (?)", (name,))

        self._changed(add)

    def drop_packs(self) -> None:
        """A pack was removed: drop all its objects, and the trees of directories.

        Its objects may also be in another pack, but only one position of an object is stored.
        """

        def drop(database: sqlite3.Connection) -> None:
            for table in ("directories", "objects", "packs"):
                database.execute(f"DELETE FROM {table}")

        self._changed(drop)

    def find(self, digest: bytes) -> Location | None:
        """The position of an object, or `None` if the cache does not have it."""

        def row(database: sqlite3.Connection) -> Location | None:
            row = database.execute(
                "SELECT pack, offset, stored, size, sum FROM objects WHERE hash = ?", (digest,)
            ).fetchone()
            if row is not None and _object_sum(digest, *row[:4]) != row[4]:
                raise sqlite3.DatabaseError("a row is not as it was written")
            return Location(*row[:4]) if row is not None else None

        return self._guarded(row, None)

    def find_all(self, digests: Iterable[bytes]) -> dict[bytes, Location]:
        """The positions of those of the objects that the cache has."""
        wanted_digests = list(digests)

        def rows(database: sqlite3.Connection) -> dict[bytes, Location]:
            locations: dict[bytes, Location] = {}
            for start in range(0, len(wanted_digests), _PARAMETERS):
                part = wanted_digests[start : start + _PARAMETERS]
                places = ",".join("?" * len(part))
                for digest, *row in database.execute(
                    f"SELECT hash, pack, offset, stored, size, sum FROM objects WHERE hash IN ({places})", part
                ):
                    if _object_sum(digest, *row[:4]) != row[4]:
                        raise sqlite3.DatabaseError("a row is not as it was written")
                    locations[digest] = Location(*row[:4])
            return locations

        return self._guarded(rows, {})

    def locations(self, pack: str) -> list[Location]:
        """The positions of the objects of a pack."""
        return self._guarded(
            lambda database: [
                Location(*row)
                for row in database.execute("SELECT pack, offset, stored, size FROM objects WHERE pack = ?", (pack,))
            ],
            [],
        )

    def directories(self, mount: bytes = b"", mounts: bytes = b"") -> dict[bytes, tuple[bytes | None, bytes]]:
        """The key and the tree of every stored directory at or below `mount`, by path.

        Without `mount`, the directories below `mounts` are left out.
        """
        where, directory = (
            ("path = ? OR path > ? AND path < ?", mount) if mount else ("NOT (path > ? AND path < ?)", mounts)
        )
        bounds = (directory + b"/", directory + b"0")  # "0" follows "/"
        return self._guarded(
            lambda database: {
                path: (key, tree)
                for path, key, tree in database.execute(
                    f"SELECT path, key, tree FROM directories WHERE {where}", (mount, *bounds) if mount else bounds
                )
            },
            {},
        )

    def files(self, path: bytes) -> bytes | None:
        """The stored files of one directory; nothing if the row is damaged."""
        row = self._guarded(
            lambda database: database.execute(
                "SELECT key, tree, files, sum FROM directories WHERE path = ?", (path,)
            ).fetchone(),
            None,
        )
        return row[2] if row is not None and _directory_sum(path, *row[:3]) == row[3] else None

    def put_directories(
        self, rows: Iterable[tuple[bytes, bytes | None, bytes, bytes]], old_paths: Iterable[bytes]
    ) -> None:
        """Store directories (path, key, tree, files), and drop those that no longer exist."""

        def put(database: sqlite3.Connection) -> None:
            database.executemany(
                "INSERT OR REPLACE INTO directories VALUES (?, ?, ?, ?, ?)",
                [(*row, _directory_sum(*row)) for row in rows],
            )
            database.executemany("DELETE FROM directories WHERE path = ?", [(path,) for path in old_paths])

        self._changed(put)


def _opened(path: str) -> sqlite3.Connection:
    """The database at `path`, with its tables; tables of another format are dropped."""
    if path != _MEMORY:
        atomic.make_root(os.path.dirname(path))
        atomic.make_private_file(path)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA synchronous = OFF")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != _FORMAT:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f'DROP TABLE "{table}"')
            database.executescript(_SCHEMA)
            database.execute(f"PRAGMA user_version = {_FORMAT}")
    except BaseException:
        database.close()
        raise
    return database
