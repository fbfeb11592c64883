"""Writing deepctl's own state so that a kill or a power cut leaves the old file or the new one.

Everything here is private to the user for any umask: directories 0700, files 0600.

Temporary files in a workspace are named `.deepctl-*.tmp`. They are beside the file that they replace, because a rename
is only certain to work there. Checkpoints and listings leave out every file of that name. The next writer in the
directory removes those of killed processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deepctl.errors import Refused, StorageError

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags for opening files and directories that others may replace: no link is followed, and opening does not wait for a
FIFO.
"""

_REASONS = {
    "ENOSPC": "the disk is full",
    "EDQUOT": "the disk quota is used up",
    "EROFS": "the file system is read-only",
    "EACCES": "permission denied",
    "EPERM": "not permitted",
    "EIO": "input/output error",
    "ENOTDIR": "part of the path is not a directory",
    "EEXIST": "another entry exists already",
    "EMFILE": "too many open files",
    "ENFILE": "too many open files on this machine",
    "ENOMEM": "out of memory",
    "ENAMETOOLONG": "the path is too long",
    "ENOENT": "the path does not exist",
    "ELOOP": "a symbolic link is in the way",
}

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FREE_SOME = "Free some space and try again."
"""The hint for a full disk depends on the profile: `deepctl.store.prune`."""


def is_full(error: BaseException) -> bool:
    """Whether an operation failed because the disk, or the user's quota, is full."""
    if isinstance(error, StorageError):
        return any(error.code == f"storage_{errno.errorcode[number].lower()}" for number in _FULL)
    return isinstance(error, OSError) and error.errno in _FULL


def wants_space(error: BaseException) -> bool:
    """Whether the hint of an error is to free space."""
    return isinstance(error, StorageError) and is_full(error) and (error.hint or "").endswith(_FREE_SOME)


def free_space(directory: str) -> tuple[int, int]:
    """Free bytes, and free files, on the disk of a directory."""
    status = os.statvfs(directory)
    # Some file systems have no fixed number of files, and report none.
    return status.f_bavail * status.f_frsize, status.f_favail if status.f_files else sys.maxsize


_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_of_machine(error: OSError) -> bool:
    """Whether an error concerns the machine (no memory, no descriptors, a failing disk) and not the file."""
    return error.errno in _MACHINE


def storage_error(error: OSError, outcome: str | None = None) -> StorageError:
    """An `OSError` in words: the failure, the path, and the remaining state."""
    name = errno.errorcode.get(error.errno or 0, "")
    reason = _REASONS.get(name) or (error.strerror or str(error)).lower()
    filename = error.filename
    where = f" ({os.fsdecode(filename)})" if isinstance(filename, str | bytes) else ""
    hint = outcome
    if error.errno in _FULL:
        hint = f"{outcome} {_FREE_SOME}" if outcome else _FREE_SOME
    return StorageError(f"Storage cannot be used: {reason}{where}.", hint, code=f"storage_{name.lower() or 'error'}")


class AfterCommit(StorageError):
    """The disk failed after the operation counted already: it is done, or the next command finishes it."""


NOTHING_LEFT = "Nothing needs to be repeated."
FINISHED_NEXT = "The next command that changes this profile finishes it."


@contextmanager
def after_commit(outcome: str = "It is done", rest: str = NOTHING_LEFT) -> Iterator[None]:
    """For the steps after the point from which an operation counts: an error there says so. The one place for this
    wording.

    `outcome` is the state at that point, `rest` is what happens to the remaining steps.
    """
    try:
        yield
    except OSError as error:
        problem = storage_error(error)
        reason = problem.message.partition(": ")[2]
        raise AfterCommit(f"{outcome}, but storage cannot be used: {reason}", rest, code=problem.code) from error


def make_directory(path: str) -> None:
    """Create one private directory if it does not exist. Its parent must exist."""
    try:
        os.mkdir(path, DIRECTORY_MODE)
    except FileExistsError:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            is_directory = False  # a dangling link
        if not is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
        return
    os.chmod(path, DIRECTORY_MODE)


def make_new_directory(path: str) -> None:
    """Create one new private directory; an existing entry is an error."""
    os.mkdir(path, DIRECTORY_MODE)
    os.chmod(path, DIRECTORY_MODE)


def make_root(path: str) -> None:
    """Create a root and its missing parents; new directories are private, existing ones keep their mode."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    for directory in reversed(missing):
        make_directory(directory)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte, with as many calls as necessary."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Make an `OSError` name the target file instead of the temporary file."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = path, None
        raise


def write_file(path: str, data: bytes) -> None:
    """Replace a whole file: temporary name, fsync, rename, fsync of the directory.

    Source of the order of steps: restic's local backend (`internal/backend/local`, Save).
    """
    with naming(path):
        _replace(path, data)
    sync_directory(os.path.dirname(path))


def commit_file(path: str, data: bytes) -> None:
    """The same for a write that completes an operation: an error after the rename says that it is done."""
    with naming(path):
        _replace(path, data)
    with after_commit():
        sync_directory(os.path.dirname(path))


def replace_unsynced(path: str, data: bytes) -> None:
    """Replace a file of the cache: readers find the old file or the new one; a power cut may leave neither."""
    with naming(path):
        _replace(path, data, is_synced=False)


def _replace(path: str, data: bytes, *, is_synced: bool = True) -> None:
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".{os.path.basename(path)}.{os.urandom(4).hex()}.tmp")
    descriptor = os.open(temporary, CREATE_NEW, FILE_MODE)
    try:
        try:
            os.fchmod(descriptor, FILE_MODE)
            write_all(descriptor, data)
            if is_synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except BaseException:
        _unlink_if_there(temporary)
        raise


def _unlink_if_there(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def read_file(path: str) -> bytes:
    """The whole content of a regular file of deepctl's own; a link or a FIFO in its place is refused.

    Raises `FileNotFoundError` if it does not exist, and `Refused` if it is of another kind.
    """
    descriptor = open_regular(path, os.O_RDONLY)
    with open(descriptor, "rb") as file:
        return file.read()


def open_regular(path: str, flags: int) -> int:
    """A descriptor of a regular file. Never follows a link, and never waits for the other end of a FIFO."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise Refused(
                f"{path} is not a regular file.", "deepctl created a file there; find out what replaced it."
            ) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path} is not a regular file.", "deepctl created a file there; find out what replaced it.")
    return descriptor


def make_private_file(path: str) -> None:
    """Create an empty private file if it does not exist, for a library that appends to it by name."""
    descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
    os.fchmod(descriptor, FILE_MODE)
    os.close(descriptor)


TEMPORARY_PATTERN = ".deepctl-*.tmp"
"""The names, as a shell pattern."""
_OURS = re.compile(rb"\.deepctl-([0-9a-z]+-)?[0-9a-f]{12}\.tmp")


def temporary_name(mark: str = "") -> str:
    """A name for a temporary file; `mark` identifies the files of one operation."""
    return f"{temporary_prefix(mark)}{os.urandom(6).hex()}.tmp"


def temporary_prefix(mark: str = "") -> str:
    """The prefix of temporary files: of one mark, or of all."""
    return f".deepctl-{mark}-" if mark else ".deepctl-"


def is_temporary(name: str | bytes) -> bool:
    """Whether a file of this name is skipped."""
    raw = os.fsencode(name)
    return raw.startswith(b".deepctl-") and raw.endswith(b".tmp")


def hold_temporary(descriptor: int) -> None:
    """Mark an open temporary file as being written, until it is closed or its writer is killed."""
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_dead_temporary(directory: int, name: bytes) -> None:
    """Remove a temporary file of deepctl from an open directory, if its writer has ended.

    It must have a name of deepctl, belong to the user and have no other name; links are never followed. A file that
    cannot be removed stays.
    """
    with suppress(OSError):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not _OURS.fullmatch(name) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            return
        is_file = stat.S_ISREG(status.st_mode)
        if stat.S_ISLNK(status.st_mode) or (is_file and not _is_held(directory, name, status)):
            os.unlink(name, dir_fd=directory)


def _is_held(directory: int, name: bytes, status: os.stat_result) -> bool:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags | (os.O_RDONLY if status.st_mode & 0o400 else os.O_WRONLY), dir_fd=directory)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not os.path.samestat(status, os.fstat(descriptor))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
