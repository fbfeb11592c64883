"""What would free space for a profile: how the hint of an error ends that comes of a full disk."""

from __future__ import annotations

import os
from contextlib import closing, suppress

from deepctl.errors import DeepctlError
from deepctl.layout import ProfilePaths, Root
from deepctl.store import prune
from deepctl.store.contents_reader import ReadOnlyRepository

_KEPT = (20, 1)
"""How many checkpoints stay, in the order in which it is looked whether removing the others frees anything."""


def advice(root: Root, paths: ProfilePaths | None) -> str | None:
    """A command that frees space and needs none itself; `None` where nothing is stored that could go."""
    if paths is not None:
        with suppress(DeepctlError, OSError), closing(ReadOnlyRepository(paths)) as reader:
            for keep in _KEPT:
                records = prune.to_prune(reader.ledger, keep)
                if prune.forecast(reader.ledger, reader.packs, records).bytes:
                    return f"`deepctl checkpoints prune --keep {keep} --user {paths.name}` needs none itself."
    with suppress(OSError):
        if any(entry[:1].isalnum() for entry in os.listdir(root.profiles)):
            return (
                "`deepctl profiles list` shows what takes it; `deepctl wipe --only PARTS` and "
                "`deepctl sessions delete` need none themselves."
            )
    return None
