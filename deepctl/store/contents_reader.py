"""The contents of a profile's checkpoints, without changing anything: no lock, no cache written, while a chat runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from deepctl import layout
from deepctl.files import owner_access
from deepctl.layout import ProfilePaths
from deepctl.store import lookup, snapshot
from deepctl.store.checkpoint_store import excluding
from deepctl.store.index_db import Cache
from deepctl.store.object_store import ObjectReader, ScratchWriter
from deepctl.store.pack_store import PackStore
from deepctl.store.trees import encode


class ReadOnlyRepository:
    """The objects of a profile and what its workspace is now, in memory. Close it in the end."""

    def __init__(self, paths: ProfilePaths) -> None:
        self.paths = paths
        self.ledger = lookup.read_ledger(paths)
        self.cache = Cache.copy_of(paths.snapshot_cache)
        self.packs = PackStore(paths.packs, self.cache)
        self.objects: ObjectReader = self.packs
        self.sink = ScratchWriter(self.objects)

    def present(self, exclude: Sequence[str], report: snapshot.Report | None = None) -> snapshot.Snapshot:
        """The workspace as it is now. Its trees can be read from `objects`, its files in the workspace itself.

        Its directories are opened as a change of the profile would open them, or this could not tell what that does.
        """
        owner_access.regain(self.paths.workspace, layout.OWN_DIRECTORIES)
        if not os.path.isdir(self.paths.workspace):
            return snapshot.Snapshot(self.sink.add(encode([])), 0, 0, [])
        return snapshot.snapshot(
            self.paths.workspace, self.sink, self.cache, leave_out=excluding(exclude), report=report
        )

    def close(self) -> None:
        """Let go of the cache."""
        self.cache.close()
