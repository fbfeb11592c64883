"""`cache/index`: what a shell needs to complete a reference, without starting Python.

One line a checkpoint, in the order they were made: id, label (or nothing) and session, separated by tabs. It is made
from the ledger and may be deleted at any time; the next change makes it anew.
"""

from __future__ import annotations

import os

from deepctl.domain.checkpoints.ledger import Ledger
from deepctl.domain.checkpoints.records import Record, is_id
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import catalogue
from deepctl.errors import Refused
from deepctl.files import durable


def add(paths: ProfilePaths, ledger: Ledger, record: Record, session: str) -> None:
    """A checkpoint was made: add its line. Trouble with the disk costs the index, not the checkpoint."""
    try:
        descriptor = durable.open_regular(paths.checkpoint_index, os.O_WRONLY | os.O_APPEND)
        try:
            durable.write_all(descriptor, _line(record, ledger, session))
        finally:
            os.close(descriptor)
    except (OSError, Refused):
        _drop(paths)


def rewrite(paths: ProfilePaths, ledger: Ledger) -> None:
    """Make the index anew."""
    names = catalogue.by_id(paths)
    lines = [f"{identity}\t\t\n".encode() for identity in lost(paths, ledger)]
    lines += [_line(record, ledger, names.get(record.session, "")) for record in ledger.records.values()]
    try:
        durable.make_root(paths.cache)
        durable.write_file(paths.checkpoint_index, b"".join(lines))
    except OSError:
        _drop(paths)


def refresh(paths: ProfilePaths, ledger: Ledger) -> None:
    """Make the index anew if it is not there or has not as many lines as there are checkpoints."""
    lines = _lines(paths)
    if lines is None or len(lines) - len(lost(paths, ledger)) != len(ledger.records):
        rewrite(paths, ledger)


def lost(paths: ProfilePaths, ledger: Ledger) -> list[str]:
    """Checkpoints that were in the index and of which the ledger says nothing: it has lost their lines.

    A checkpoint gets its line here after that in the ledger, so a kill cannot do that; damage to the ledger's end can,
    and nothing else would tell.
    """
    found = [line.partition("\t")[0] for line in _lines(paths) or []]
    known = ledger.parents.keys() | {damage.id for damage in ledger.damage}
    return [identity for identity in found if identity not in known and is_id(identity)]


def _lines(paths: ProfilePaths) -> list[str] | None:
    try:
        return durable.read_file(paths.checkpoint_index).decode("utf-8", "replace").splitlines()
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
