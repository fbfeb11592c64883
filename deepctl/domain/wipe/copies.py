"""What of a workspace's parts is still in checkpoints and conversations when these parts are wiped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from deepctl.errors import DeepctlError
from deepctl.layout import ProfilePaths
from deepctl.store import ledger, session_catalogue, trees
from deepctl.store.contents_reader import ReadOnlyRepository
from deepctl.store.rewind_plan import entry_at


class Copies(NamedTuple):
    """How many checkpoints hold something at the places looked for, and of how many sessions; `logs` are all sessions.

    Messages may quote anything: nobody can tell from which of them something has not been read.
    """

    checkpoints: int
    sessions: int
    logs: int


def count(paths: ProfilePaths, places: Iterable[str]) -> Copies:
    """Look for copies of `places`, which are paths in the workspace, the empty one all of it. Changes nothing."""
    wanted = [os.fsencode(place) for place in places]
    logs = len(session_catalogue.all_names(paths))
    records = [record for record in ledger.read(paths.checkpoints).records.values() if record.tree]
    if not records:
        return Copies(0, 0, logs)
    reader = ReadOnlyRepository(paths)
    try:
        trees_of = {record.tree for record in records}
        holding = {tree for tree in trees_of if _holds(reader, bytes.fromhex(tree), wanted)}
    finally:
        reader.close()
    found = [record for record in records if record.tree in holding]
    return Copies(len(found), len({record.session for record in found}), logs)


def _holds(reader: ReadOnlyRepository, tree: bytes, places: Iterable[bytes]) -> bool:
    """Whether a checkpoint's tree has something at one of the places; where it cannot be read, it may have."""
    try:
        for place in places:
            entry = entry_at(reader.objects, tree, place) if place else None
            directory = tree if not place else entry.digest if entry and entry.kind == trees.DIRECTORY else None
            if trees.decode(reader.objects.read(directory)) if directory is not None else entry is not None:
                return True
    except DeepctlError:
        return True
    return False
