"""`cache/index`: what a shell needs to complete a reference, without starting Python.

One line a checkpoint, in the order they were made: id, label (or nothing) and session, separated by tabs. It is made
from the ledger and may be deleted at any time; the next change makes it anew.
"""

from __future__ import annotations

import os

from deepctl.errors import Refused
from deepctl.files import atomic
from deepctl.layout import ProfilePaths
from deepctl.store import session_catalogue
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record


def add(paths: ProfilePaths, ledger: Ledger, record: Record, session: str) -> None:
    """A checkpoint was made: add its line. Trouble with the disk costs the index, not the checkpoint."""
    try:
        descriptor = atomic.open_regular(paths.checkpoint_index, os.O_WRONLY | os.O_APPEND)
        try:
            atomic.write_all(descriptor, _line(record, ledger, session))
        finally:
            os.close(descriptor)
    except (OSError, Refused):
        _drop(paths)


def rewrite(paths: ProfilePaths, ledger: Ledger) -> None:
    """Make the index anew."""
    names = session_catalogue.by_id(paths)
    lines = [_line(record, ledger, names.get(record.session, "")) for record in ledger.records.values()]
    try:
        atomic.make_root(paths.cache)
        atomic.write_file(paths.checkpoint_index, b"".join(lines))
    except OSError:
        _drop(paths)


def refresh(paths: ProfilePaths, ledger: Ledger) -> None:
    """Make the index anew if it is not there or has not as many lines as there are checkpoints."""
    lines = _lines(paths)
    if lines is None or len(lines) != len(ledger.records):
        rewrite(paths, ledger)


def session_names(paths: ProfilePaths) -> dict[str, str]:
    """The names of sessions by the ids of their checkpoints, as far as they are known. They may be wrong."""
    words = [line.split("\t") for line in _lines(paths) or []]
    return {line[0]: line[2] for line in words if len(line) == 3}


def _lines(paths: ProfilePaths) -> list[str] | None:
    try:
        return atomic.read_file(paths.checkpoint_index).decode("utf-8", "replace").splitlines()
    except (OSError, Refused):
        return None


def _drop(paths: ProfilePaths) -> None:
    try:
        os.unlink(paths.checkpoint_index)
    except OSError:
        pass  # it is not there, or stays wrong until the disk can be written again


def _line(record: Record, ledger: Ledger, session: str) -> bytes:
    words = (record.id, ledger.labels.get(record.id, ""), session)
    return "\t".join(" ".join(word.split()) for word in words).encode(errors="replace") + b"\n"
