"""The report of a repair: repaired data, losses by session, and data that was put aside.

`checkpoints/lost+found/` has data that a repair could not place, and the damaged originals of files that it wrote
again. Nothing reads it. Archives leave it out; `deepctl wipe` and `deepctl memory forget --purge` empty it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import NamedTuple

from deepctl.errors import Refused
from deepctl.files import atomic, rmtree
from deepctl.layout import ProfilePaths
from deepctl.store import log_file, session_catalogue
from deepctl.store.records import Record

MISSING_SESSION = "missing session"
STRAY_PACK = "stray pack"
"""Kinds of repaired data (`RepairedItem.what`). A stray pack is a sign of lost lines, and not damaged itself."""

# Kinds of lost data (`Loss.what`).
LEDGER = "ledger"
LEDGER_LINE = "line of the ledger"
MESSAGE = "message"
EARLIER_MESSAGES = "messages before"
ALL_MESSAGES = "messages"
SESSION = "session"
CONVERSATION = "conversation of a checkpoint"
ALL_FILES = "files of a checkpoint"
FILE = "file of a checkpoint"
USAGE_LINE = "line of the usage"
USAGE = "usage"
"""The kind of a repair of `usage.jsonl`."""


class RepairedItem(NamedTuple):
    """A repaired item: its kind, its path, and its problem or its repair."""

    what: str
    path: str
    reason: str


class Loss(NamedTuple):
    """A permanent loss.

    `id` is that of the checkpoint or of the message log, or the name of the session, and `path` that of a file in the
    workspace. `sessions` are the names of the affected sessions, and `turns` the affected turns, as far as they are
    known.
    """

    what: str
    id: str
    reason: str
    sessions: list[str]
    turns: list[int]
    path: str | None = None


class Findings:
    """Collects the results of a repair of the profile at `paths`, a copy of the one in the directory `real`."""

    def __init__(self, paths: ProfilePaths, real: str) -> None:
        self._paths = paths
        self._real = real
        self.repaired: list[RepairedItem] = []
        self.lost: list[Loss] = []
        self.moved: list[str] = []

    def _path(self, path: str) -> str:
        return os.path.join(self._real, os.path.relpath(path, self._paths.directory))

    def _reason(self, reason: str) -> str:
        """The same with the paths of the profile itself, because those of the copy mean nothing to a user."""
        return reason.replace(self._paths.directory, self._real)

    def repair(self, kind: str, path: str, reason: str) -> None:
        """Record a repaired item."""
        self.repaired.append(RepairedItem(kind, self._path(path), self._reason(reason)))

    def lose(
        self, kind: str, identity: str, reason: str, sessions: Iterable[str] = (), turns: Iterable[int] = ()
    ) -> None:
        """Record a loss."""
        self.lost.append(Loss(kind, identity, self._reason(reason), list(sessions), sorted(set(turns))))

    def lose_of_log(self, kind: str, log_id: str, reason: str, turns: Iterable[int] = ()) -> None:
        """Record a loss in a message log, which several sessions may share."""
        names = session_catalogue.all_names(self._paths)
        sessions = [name for name in names if log_file.is_in(os.path.join(self._paths.sessions, name), log_id)]
        self.lose(kind, log_id, reason, sessions, turns)

    def lose_of_checkpoint(self, kind: str, record: Record, reason: str, path: str | None = None) -> None:
        """Record a loss of a checkpoint. A session that no longer exists is named by its id."""
        name = session_catalogue.by_id(self._paths).get(record.session, record.session)
        self.lost.append(Loss(kind, record.id, self._reason(reason), [name], [record.turn], path))

    def keep(self, path: str) -> None:
        """Keep the damaged original of a file that is about to be written again."""
        copy = keep_aside(self._paths, path)
        if copy is not None:
            self.moved.append(self._path(copy))

    def move(self, path: str) -> None:
        """Keep a file that has no place in the profile any more."""
        self.moved.append(self._path(move_aside(self._paths, path)))


def place_aside(paths: ProfilePaths, path: str) -> str:
    """The path of a file in `lost+found`: its own name and a part of its hash."""
    content = hashlib.sha256(atomic.read_file(path)).hexdigest()[:8]
    relative = os.path.relpath(path, paths.directory).replace("/", "-")
    return os.path.join(paths.lost_and_found, f"{relative}.{content}")


def keep_aside(paths: ProfilePaths, path: str) -> str | None:
    """Copy a file to `lost+found` unless it is there already; returns its path, `None` if there is no such file."""
    try:
        target = place_aside(paths, path)
        if not os.path.exists(target):
            atomic.make_root(paths.lost_and_found)
            atomic.write_file(target, atomic.read_file(path))
    except (FileNotFoundError, Refused):
        return None
    return target


def move_aside(paths: ProfilePaths, path: str) -> str:
    """Move a file that no record names to `lost+found`; returns its path."""
    target = place_aside(paths, path)
    atomic.make_root(paths.lost_and_found)
    os.rename(path, target)
    atomic.sync_directory(paths.lost_and_found)
    atomic.sync_directory(os.path.dirname(path))
    return target


def count_put_aside(paths: ProfilePaths) -> int:
    """The number of files in `lost+found`."""
    try:
        return len(os.listdir(paths.lost_and_found))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def empty_lost_and_found(paths: ProfilePaths) -> None:
    """Delete everything in `lost+found`."""
    if os.path.lexists(paths.lost_and_found):
        rmtree.remove_tree(paths.lost_and_found)
        atomic.sync_directory(paths.checkpoints)
