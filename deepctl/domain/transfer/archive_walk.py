"""Going over what an archive of a profile holds: its own files in the order they have to be read, then the workspace.

By descriptors, and without following links: the agent may be swapping names meanwhile. What cannot be in an archive is
listed with the reason (`Walk.left_out`). Temporary files of deepctl's own and its cache are passed over.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from deepctl.domain.transfer import archive
from deepctl.domain.transfer.archive import Kind, LeftOut
from deepctl.errors import Locked
from deepctl.layout import LOST_AND_FOUND, UNTRUSTED
from deepctl.store.snapshot import NO_CONTENT

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FIRST = ("profile.toml", "prompt_history", "ledger.jsonl", "packs", "session.json", "checkpoints", "sessions")
"""Of names in one directory of deepctl's own, these come first, in this order; `workspace` comes last."""
_PASSED_OVER = ("cache",)
_UNREADABLE = (errno.EACCES, errno.EPERM)


class Found(NamedTuple):
    """One thing that is to be in the archive; `parent` and `name` are where it can be opened, until the next one."""

    path: str
    kind: Kind
    status: os.stat_result
    parent: int
    name: bytes
    target: str = ""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.status.st_size if self.kind == "file" else len(archive.raw(self.target))


class Walk:
    """One walk over the profile in `directory`; a context manager. `packs` are those that count, `None` for all.

    Raises `Locked` if what is deepctl's own goes meanwhile, and `OSError` if it cannot be read.
    """

    def __init__(self, directory: str, packs: frozenset[str] | None) -> None:
        self._directory = directory
        self._packs = packs
        self._descriptor = -1
        self.left_out: list[LeftOut] = []

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._directory, _DIRECTORY)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def everything(self) -> Iterator[Found]:
        """Everything that is to be in the archive, a directory right before what is in it."""
        for name in _ordered(self._names(self._descriptor, "")):
            if not name.startswith(b".") and name.decode("utf-8", "replace") not in _PASSED_OVER:
                yield from self._at(self._descriptor, name, archive.text(name))

    def _names(self, descriptor: int, path: str) -> list[bytes]:
        with os.scandir(descriptor) as entries:
            return [os.fsencode(entry.name) for entry in entries]

    def _at(self, parent: int, name: bytes, path: str) -> Iterator[Found]:
        own = not path.startswith("workspace/")
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            self._missing(path, own, error)
            return
        kind = _kind(status.st_mode)
        if kind is None:
            self.left_out.append(LeftOut(path, _reason(status.st_mode)))
        elif not archive.is_of_a_profile(path, kind):
            reason = "imported settings that are not trusted" if path == UNTRUSTED else "no part of a profile"
            self.left_out.append(LeftOut(path, reason))
        elif kind == "directory":
            yield from self._below(parent, name, path, status, own)
        elif kind == "link":
            try:
                target = archive.text(os.readlink(name, dir_fd=parent))
            except OSError as error:
                self._missing(path, own, error)
                return
            if archive.leads_out(path, target):
                self.left_out.append(LeftOut(path, f"a link that leads, or may lead, out of the workspace: {target}"))
            else:
                yield Found(path, kind, status, parent, name, target)
        else:
            yield Found(path, kind, status, parent, name)

    def _below(self, parent: int, name: bytes, path: str, status: os.stat_result, own: bool) -> Iterator[Found]:
        if path.count("/") > archive.MAX_DEPTH:
            self.left_out.append(LeftOut(path, f"more than {archive.MAX_DEPTH} directories in one another"))
            return
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError as error:
            self._missing(path, own, error)
            return
        try:
            names = self._names(descriptor, path)
            yield Found(path, "directory", status, parent, name)
            in_workspace = path == "workspace" or not own
            for inner in sorted(names) if in_workspace else _ordered(names):
                if in_workspace or self._counts(path, inner):
                    yield from self._at(descriptor, inner, f"{path}/{archive.text(inner)}")
        finally:
            os.close(descriptor)

    def _counts(self, directory: str, name: bytes) -> bool:
        """Whether something of deepctl's own is more than a leftover."""
        if directory == "checkpoints/packs" and self._packs is not None:
            return archive.text(name) in self._packs
        if directory == "checkpoints" and archive.text(name) == LOST_AND_FOUND:
            return False
        return not name.startswith(b".")

    def _missing(self, path: str, own: bool, error: OSError) -> None:
        """Something is gone, or cannot be read: all right in a workspace, which is somebody else's."""
        if own and path != "workspace":
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise gone(path) from None
            error.filename = os.path.join(self._directory, path)
            raise error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return
        self.left_out.append(LeftOut(path, (error.strerror or "cannot be read").lower()))

    @contextmanager
    def opened(self, found: Found) -> Iterator[int | None]:
        """A file that was found, as a descriptor; `None` if it has gone, or cannot be read, and is in a workspace."""
        own = not found.path.startswith("workspace/")
        try:
            descriptor = os.open(found.name, _FILE, dir_fd=found.parent)
        except OSError as error:
            self._missing(found.path, own, error)
            yield None
            return
        try:
            # A FIFO could be read for ever; it was a file a moment ago.
            yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        finally:
            os.close(descriptor)


def gone(path: str) -> Locked:
    """Something of deepctl's own has gone while the profile was read."""
    return Locked(
        f"The profile changed while it was read: {path} is gone.",
        "No archive was made. Try again when the other command is done.",
        code="changed_while_read",
    )


def _ordered(names: list[bytes]) -> list[bytes]:
    known = {name.encode(): number for number, name in enumerate(_FIRST)}
    return sorted(names, key=lambda name: (name == b"workspace", known.get(name, len(known)), name))


def _kind(mode: int) -> Kind | None:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else None


def _reason(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return NO_CONTENT[0]
    return NO_CONTENT[1] if stat.S_ISSOCK(mode) else NO_CONTENT[2]
