"""The target file of an export, which is written completely or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from deepctl.errors import Refused, UsageError
from deepctl.files import atomic
from deepctl.layout import Root

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES)


def absolute(path: str) -> str:
    """`path` as an absolute path. Links stay, and so does `..`, which may follow one."""
    full_path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    return full_path if ".." in path.split("/") else os.path.normpath(full_path)


def check(root: Root, path: str, *, force: bool) -> None:
    """Raises `UsageError` or `Refused` if an export to `path` is not possible; with `force`, a regular file may be
    replaced.
    """
    _check_directory(path)
    root_prefix = os.path.join(os.path.realpath(root.path), "")
    if os.path.join(os.path.realpath(os.path.dirname(path)), "").startswith(root_prefix):
        raise Refused(
            f"{path!r} is inside deepctl's own state, where exports are not allowed.",
            "Export to another place.",
            code="inside_root",
        )
    _check_name(path, force)


def _check_directory(path: str) -> None:
    if not os.path.basename(path) or os.path.isdir(path):
        raise UsageError(f"{path!r} is a directory, not a file.", "FILE must be the path of the export file.")
    directory = os.path.dirname(absolute(path))
    existing_path = directory
    while not os.path.lexists(existing_path):
        existing_path = os.path.dirname(existing_path)
    if not os.path.isdir(existing_path):
        raise UsageError(f"{existing_path!r} is not a directory.", "Export to another place.")
    if existing_path != directory:
        raise UsageError(f"There is no directory {directory!r}.", f"Create it first: mkdir -p {shlex.quote(directory)}")


def _check_name(path: str, force: bool) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise Refused(
            f"{path!r} is not a regular file, so it is not replaced.", "`-` means stdout.", code="file_exists"
        )
    if not force:
        raise _exists(path)


def _exists(path: str) -> Refused:
    return Refused(f"There is already a file {path!r}.", "--force replaces it.", code="file_exists")


@contextmanager
def open_target(path: str, *, force: bool) -> Iterator[BinaryIO]:
    """A private file that becomes `path` at the end, synced; an error leaves nothing, and `path` unchanged.

    Raises the errors of `check`, except for a path inside the root, also for an entry that was created in the meantime.
    """
    _check_directory(path)
    _check_name(path, force)
    directory, name = os.path.split(path)
    directory = directory or "."
    stem = _stem(name)
    _remove_stale(directory, stem)
    temporary, descriptor = _temporary(directory, stem)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            _put(temporary, path, force)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    atomic.sync_directory(directory)


def _stem(name: str) -> str:
    """The prefix of temporary files for `name`, shortened so that the rest fits."""
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return f".{name}."


def _temporary(directory: str, stem: str) -> tuple[str, int]:
    """A new file, locked while it is open, so that it can be distinguished from a leftover."""
    while True:
        path = os.path.join(directory, f"{stem}{os.urandom(8).hex()}.deepctl-export")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError:
            return path, descriptor  # no file locks here: no other process can lock the file, and then remove it
        else:
            if os.fstat(descriptor).st_nlink:
                return path, descriptor
        os.close(descriptor)


def _remove_stale(directory: str, stem: str) -> None:
    """Remove leftovers of killed exports to the same file."""
    pattern = re.compile(re.escape(stem) + r"[0-9a-f]{16}\.deepctl-export")
    for entry in os.listdir(directory):
        if not pattern.fullmatch(entry):
            continue
        path = os.path.join(directory, entry)
        # Belongs to another user, or no longer exists.
        with suppress(OSError, Refused):
            descriptor = atomic.open_regular(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)


def _put(temporary: str, path: str, force: bool) -> None:
    # A link or a FIFO that was created in the meantime is not replaced.
    _check_name(path, force)
    if not force:
        try:
            # Unlike a rename, it does not replace an entry that another process created in the meantime.
            os.link(temporary, path)
        except FileExistsError:
            raise _exists(path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):
                raise _exists(path) from None
        else:
            os.unlink(temporary)
            return
    os.rename(temporary, path)
