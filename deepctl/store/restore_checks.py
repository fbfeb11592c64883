"""Whether a restore can be done, before it; and whether it was, after it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from deepctl.errors import Damaged
from deepctl.store.object_store import ObjectReader
from deepctl.store.restore import OPEN_FILE, digest_of, directory, kind_of
from deepctl.store.trees import DIRECTORY, LINK, TreeChange, TreeEntry


def readable(objects: ObjectReader, changes: Iterable[TreeChange]) -> None:
    """Read everything that `changes` need. Raises `Damaged` if something cannot be."""
    for change in changes:
        if change.after is not None and change.after.kind != DIRECTORY:
            for _ in objects.chunks(change.after.digest):
                pass


def saved(objects: ObjectReader, changes: Iterable[TreeChange]) -> None:
    """Read what the changes replace, as far as it is kept already. Raises `Damaged` if something cannot be."""
    for change in changes:
        before = change.before
        if before is None or before.kind == DIRECTORY or not objects.has(before.digest):
            continue
        try:
            for _ in objects.chunks(before.digest):
                pass
        except Damaged as error:
            error.hint = f"Move {os.fsdecode(change.path)!r} out of the workspace: what it is now could not be kept."
            raise


def writable(root: str, changes: Iterable[TreeChange]) -> None:
    """Raises `OSError` if a directory in which something is to be changed may not be written, nor be made so."""
    for above in sorted({os.path.dirname(change.path) for change in changes}):
        try:
            with directory(root, above) as descriptor:
                _check_writable(descriptor, os.path.join(os.fsencode(root), above))
        except (FileNotFoundError, NotADirectoryError):
            continue  # it will be made


def _check_writable(descriptor: int, path: bytes) -> None:
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    if os.access(".", os.W_OK | os.X_OK, dir_fd=descriptor, effective_ids=os.access in os.supports_effective_ids):
        return
    status = os.fstat(descriptor)
    # What the owner has taken from himself is given back while things are restored.
    if status.st_uid != os.geteuid() or status.st_mode & 0o300 == 0o300:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def unmet(root: str, objects: ObjectReader, changes: Iterable[TreeChange]) -> list[bytes]:
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


def _is(parent: int, name: bytes, entry: TreeEntry | None, objects: ObjectReader) -> bool:
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
