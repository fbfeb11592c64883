"""The fold of the start of a long ledger, in `cache/ledger`, so that a list need not apply every line.

The file is apart from the SQLite cache (`index_db`), because opening SQLite takes too long for a list of checkpoints.
The fold is used only if the ledger starts with the bytes from which it was made (`Fold`), and only ledgers of at least
`SMALLEST_LEDGER` bytes have one.
"""

from __future__ import annotations

import gc
import hashlib
import marshal
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from deepctl.errors import Refused
from deepctl.files import atomic, sealed_lines
from deepctl.store.log_file import Point
from deepctl.store.records import Record, Rewind, WorkspaceState

_VERSION = 2
"""The version of a fold file; it changes with every change of the meaning of ledger lines."""
SMALLEST_LEDGER = 64 << 10
"""Bytes of a ledger that are read very fast, so a fold may lack fewer bytes than this."""
_LACKS = 16
"""A fold may also lack this fraction of the ledger."""


class Fold(NamedTuple):
    """The fold of the first `size` bytes of a ledger, which are whole lines: the values of a `Ledger`."""

    size: int
    lines: int
    values: dict[str, Any]


def is_due(path: str, size: int) -> bool:
    """Whether the fold at `path` lacks a large part of a ledger of this size."""
    try:
        fold_size = int(_header(atomic.read_file(path))["size"])
    except (OSError, Refused, ValueError, KeyError, TypeError):
        return True
    return not 0 <= size - fold_size < max(SMALLEST_LEDGER, size // _LACKS)


def read(path: str, ledger: bytes) -> Fold | None:
    """The fold at `path` if it belongs to the first bytes of this ledger."""
    try:
        raw = atomic.read_file(path)
        header = _header(raw)
        body = memoryview(raw)[raw.index(b"\n") + 1 :]
        size, lines = int(header["size"]), int(header["lines"])
        is_same = header["digest"] == hashlib.sha256(memoryview(ledger)[:size]).hexdigest()
        if not 0 < size <= len(ledger) or not is_same or header["body"] != zlib.crc32(body):
            return None
        with _no_collection():
            return Fold(size, lines, _unfolded(marshal.loads(body)))
    except (OSError, Refused, ValueError, KeyError, TypeError, EOFError):
        return None


def write(path: str, ledger: bytes, values: dict[str, Any]) -> None:
    """Write the fold of a whole ledger. A disk error loses only the fold."""
    with suppress(OSError, Refused, ValueError):
        body = marshal.dumps(_folded(values))
        header = {
            "v": _VERSION,
            "marshal": marshal.version,
            "size": len(ledger),
            "lines": ledger.count(b"\n"),
            "digest": hashlib.sha256(ledger).hexdigest(),
            "body": zlib.crc32(body),
        }
        atomic.make_root(os.path.dirname(path))
        atomic.replace_unsynced(path, sealed_lines.seal(header) + body)


def packed_states(states: Iterable[WorkspaceState]) -> bytes:
    """States of a workspace as a fold has them."""
    return marshal.dumps([tuple(state) for state in states])


def states_in(packed: bytes) -> list[WorkspaceState]:
    """The states from the result of `packed_states`."""
    return [WorkspaceState._make(state) for state in marshal.loads(packed)]


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection inside this context: while many values are created and none is dropped, it takes longer
    than creating them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _header(raw: bytes) -> dict[str, Any]:
    """The first line of a fold file. Raises `ValueError` if it is not of this version."""
    header = sealed_lines.unseal(raw[: raw.find(b"\n")])
    if (header.get("v"), header.get("marshal")) != (_VERSION, marshal.version):
        raise ValueError("of another version")
    return header


_TABLES: dict[str, type[Record | Rewind]] = {
    "records": Record,
    "removed": Record,
    "_abandoned": Record,
    "rewinds": Rewind,
}


def _folded(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a `Ledger` in types that `marshal` supports."""
    return {
        **values,
        **{name: [tuple(row) for row in values[name].values()] for name in _TABLES},
        "origins": {key: point and tuple(point) for key, point in values["origins"].items()},
        "unfinished": values["unfinished"] and tuple(values["unfinished"]),
    }


def _unfolded(plain: dict[str, Any]) -> dict[str, Any]:
    tables = {name: [kind._make(row) for row in plain[name]] for name, kind in _TABLES.items()}
    return {
        **plain,
        **{name: {row.id: row for row in rows} for name, rows in tables.items()},
        "origins": {key: point and Point._make(point) for key, point in plain["origins"].items()},
        "unfinished": plain["unfinished"] and Rewind._make(plain["unfinished"]),
    }
