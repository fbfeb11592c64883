"""Whether a restore can be done, before it; and whether it was, after it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from deepctl.domain.checkpoints.objects import Objects
from deepctl.domain.checkpoints.restore import OPEN_FILE, digest_of, directory, kind_of
from deepctl.domain.checkpoints.trees import DIRECTORY, LINK, Change, Entry
from deepctl.errors import Refused


def readable(objects: Objects, changes: Iterable[Change]) -> None:
    """Read everything that `changes` need. Raises `Damaged` if something cannot be."""
    for change in changes:
        if change.after is not None and change.after.kind != DIRECTORY:
            for _ in objects.chunks(change.after.digest):
                pass


def reachable(root: str, changes: Iterable[Change]) -> None:
    """Raises `Refused` if a directory in which something is to be changed cannot be opened."""
    for above in sorted({os.path.dirname(change.path) for change in changes}):
        try:
            with directory(root, above):
                pass
        except PermissionError:
            raise Refused(
                f"{os.fsdecode(above)!r} in the workspace cannot be opened, so nothing was touched.",
                "Give yourself its permissions back (chmod u+rwx), and try again.",
                code="no_permission",
            ) from None
        except (FileNotFoundError, NotADirectoryError):
            continue  # it will be made


def unmet(root: str, objects: Objects, changes: Iterable[Change]) -> list[bytes]:
    """The paths of `changes` that are not what their `after` is."""
    found = []
    for change in changes:
        try:
            with directory(root, os.path.dirname(change.path)) as parent:
                if not _is(parent, os.path.basename(change.path), change.after, objects):
                    found.append(change.path)
        except (FileNotFoundError, NotADirectoryError):
            if change.after is not None:
                found.append(change.path)
    return found


def _is(parent: int, name: bytes, entry: Entry | None, objects: Objects) -> bool:
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return entry is None
    if entry is None or kind_of(mode) != entry.kind:
        return False
    if entry.kind == LINK:
        return os.fsencode(os.readlink(name, dir_fd=parent)) == objects.read(entry.digest)
    if stat.S_IMODE(mode) != entry.mode:
        return False
    if entry.kind == DIRECTORY:
        return True
    descriptor = os.open(name, OPEN_FILE, dir_fd=parent)
    try:
        return digest_of(descriptor, entry.size) == entry.digest
    finally:
        os.close(descriptor)
