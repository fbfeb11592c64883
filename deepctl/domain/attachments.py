"""Files of the user that go into the workspace with a prompt.

`attach` copies files of the user into a workspace, all of them or none, under new names. A copy never gets a name that
has a meaning for deepctl.
"""

from __future__ import annotations

import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import UsageError
from deepctl.files import atomic
from deepctl.files.paths_beneath import DirectoryTree
from deepctl.layout import ProfilePaths
from deepctl.quantities import size
from deepctl.sandbox.policy import PROFILE_MOUNT

_MAX_NAME = 255

_OWN = frozenset({".deep", layout.PLANS_DIRECTORY, layout.EVICTED_DIRECTORY})
_TOLD = frozenset(map(str.casefold, layout.CONTEXT_FILES))

Tell = Callable[[str], None]


def check(files: Sequence[str]) -> None:
    """Check before any change that these files can be attached. Raises `UsageError`."""
    for path in files:
        with open_source(path):
            pass


def content(path: str) -> tuple[str, bytes]:
    """Name and content of a file that is attached without a workspace directory. Raises `UsageError`."""
    with open_source(path) as source:
        return source.name, b"".join(chunks(source))


def attach(
    profile: ProfilePaths, files: Sequence[str], tell: Tell = lambda message: None, project: str | None = None
) -> list[str]:
    """Copy files into the workspace of a profile; returns their paths there. The caller holds the profile's lock.

    Files of the workspace, or of `project`, the directory in which the session works, are not copied. A copy never goes
    into a project; the workspace is `/profile` there.

    A copy is a regular file with mode 0600, or 0700 if the original is executable. If the workspace has another file of
    the same name, the copy gets a free name and `tell` is called; if it has the same file, nothing is copied. Raises
    `UsageError` for an unreadable file and `StorageError` without space; nothing is copied then.
    """
    names = {path: _name_inside(path, profile.workspace, project) for path in files}
    check([path for path in files if names[path] is not None])
    with ExitStack() as stack:
        copies = {path: stack.enter_context(stage(profile, path)) for path in names if names[path] is None}
        if not copies:
            return _unique(names[path] for path in files)
        try:
            atomic.make_directory(profile.workspace)
            workspace = Workspace(profile.workspace)
        except OSError as error:
            raise atomic.storage_error(error, NOTHING) from error
        stack.callback(workspace.close)
        try:
            for path, copy in copies.items():
                name = settle(copy.name, partial(workspace.take, copy), tell)
                names[path] = name if project is None else f"{PROFILE_MOUNT}/{name}"
            workspace.sync()
        except BaseException as error:
            workspace.clear()
            if isinstance(error, OSError):
                raise atomic.storage_error(error, NOTHING) from error
            raise
        return _unique(names[path] for path in files)


def _unique(names: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(name for name in names if name is not None))


def _name_inside(path: str, workspace: str, project: str | None) -> str | None:
    """The name of a file that a session already has; `None` for any other file."""
    real_path = os.path.realpath(path)
    roots = [(workspace, "")] if project is None else [(project, ""), (workspace, f"{PROFILE_MOUNT}/")]
    for root, prefix in roots:
        relative = os.path.relpath(real_path, os.path.realpath(root))
        if not relative.startswith("../") and relative not in ("..", ".") and _is_sayable(relative):
            return prefix + relative
    return None


def settle(name: str, take: Callable[[str, bool], bool], tell: Tell) -> str:
    """Find a name for a file. `take` takes a name if it is free or has the same content, and returns whether it did.

    With `False`, `take` only checks for the same content, because the name has a meaning for deepctl.
    """
    meaning = _meaning(name)
    for candidate in _candidates(name):
        if take(candidate, candidate != name or meaning is None):
            break
    if candidate != name:
        reason = meaning or "The workspace already has another file of that name"
        tell(f"{reason}: the copy of {name} is called {candidate}.")
    return candidate


def _meaning(name: str) -> str | None:
    folded_name = name.casefold()
    if folded_name in _TOLD:
        return f"{name} would give the agent instructions in every conversation"
    return f"{name} is reserved for deepctl" if folded_name in _OWN else None


def _candidates(name: str) -> Iterator[str]:
    yield name
    stem, suffix = os.path.splitext(name)
    if len(os.fsencode(suffix)) > _MAX_NAME // 2:
        stem, suffix = name, ""
    for number in count(2):
        ending = f"-{number}{suffix}"
        room = _MAX_NAME - len(ending.encode())
        yield stem.encode()[:room].decode(errors="ignore") + ending


MAX_BYTES = 100 << 20
"""Bytes of a copied file."""
NOTHING = "Nothing was copied."

_CHUNK = 1 << 20
_UNSAYABLE = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, surrogates (bytes that are not UTF-8) and line ends."""
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EXDEV)


class Source(NamedTuple):
    """An open file of the user; `name` is the name of its copy."""

    path: str
    name: str
    descriptor: int
    executable: bool


class StagedFile(NamedTuple):
    """A complete copy outside the workspace, ready to be linked into it."""

    name: str
    path: str
    executable: bool


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """Open a file of the user; links to it are followed. Raises `UsageError`."""
    try:
        # Checked before opening, because opening some devices has an effect.
        _check_kind(path, os.stat(path).st_mode)
        name = _checked_name(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"There is no file {path!r}.",
            "The path is relative to the current directory.",
            code="file_not_found",
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        status = os.fstat(descriptor)
        _check_kind(path, status.st_mode)
        if status.st_size > MAX_BYTES:
            raise _too_large(path, status.st_size)
        yield Source(path, name, descriptor, bool(status.st_mode & 0o111))
    finally:
        os.close(descriptor)


def _check_kind(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UsageError(
            f"{path!r} is a directory.", "Only files can be attached; several are possible.", code="bad_file"
        )
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"{path!r} is not a regular file.",
            "Save it as a regular file first, or pipe it in: … | deepctl chat",
            code="bad_file",
        )


def _checked_name(path: str) -> str:
    """The name of the copy. The model sees this name, and the prompt has it."""
    name = os.path.basename(path)
    if not _is_sayable(name):
        raise UsageError(
            f"{name!r} cannot be named in a prompt, because it contains control characters, or is not UTF-8.",
            "Rename it first.",
            code="bad_file",
        )
    return name


def _is_sayable(name: str) -> bool:
    return not any(unicodedata.category(character) in _UNSAYABLE for character in name)


def _unreadable(path: str, error: OSError) -> UsageError:
    return UsageError(f"{path!r} cannot be read: {(error.strerror or str(error)).lower()}.", code="file_unreadable")


def _too_large(path: str, byte_count: int) -> UsageError:
    return UsageError(
        f"{path!r} has {size(byte_count)}; a file of up to {size(MAX_BYTES)} can be attached.",
        "Copy it into the workspace yourself; `deepctl profiles path` prints the directory of the profile.",
        code="file_too_large",
    )


def chunks(source: Source) -> Iterator[bytes]:
    """The content of a file, piece by piece. Raises `UsageError`."""
    total = 0
    while True:
        try:
            chunk = os.read(source.descriptor, _CHUNK)
        except OSError as error:
            raise _unreadable(source.path, error) from None
        if not chunk:
            return
        total += len(chunk)
        if total > MAX_BYTES:
            raise _too_large(source.path, total)  # the file is growing
        yield chunk


@contextmanager
def stage(profile: ProfilePaths, path: str) -> Iterator[StagedFile]:
    """A temporary copy in the profile. In the workspace, a copy that a kill leaves would look like a file of the
    user.
    """
    copy = os.path.join(profile.directory, f".attach-{os.urandom(6).hex()}.tmp")
    try:
        with open_source(path) as source:
            try:
                _write(copy, source, None)
            except OSError as error:
                raise atomic.storage_error(error, NOTHING) from error
            whole = StagedFile(source.name, copy, source.executable)
        yield whole
    finally:
        with suppress(OSError):
            os.unlink(copy)


def _write(path: str, source: Source, directory: int | None) -> None:
    """Write a new file and sync it; no file remains if this fails."""
    flags = atomic.CREATE_NEW
    descriptor = os.open(path, flags, atomic.FILE_MODE, dir_fd=directory)
    try:
        try:
            os.fchmod(descriptor, atomic.DIRECTORY_MODE if source.executable else atomic.FILE_MODE)
            for chunk in chunks(source):
                atomic.write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        os.unlink(path, dir_fd=directory)
        raise


class Workspace:
    """The top directory of a workspace, by its descriptor, and the files added to it."""

    def __init__(self, root: str) -> None:
        self._tree = DirectoryTree(root, follow=False)
        self._descriptor = os.open(root, atomic.OPEN_DIRECTORY)
        self._put: list[str] = []

    def take(self, copy: StagedFile, name: str, new: bool) -> bool:
        """Give a copy this name if the name is free and `new` is true, or find the same content there."""
        if new:
            try:
                self._link(copy, name)
            except FileExistsError:
                pass
            else:
                self._put.append(name)
                return True
        return self._is_same(copy, name)

    def _link(self, copy: StagedFile, name: str) -> None:
        try:
            os.link(copy.path, name, dst_dir_fd=self._descriptor, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            descriptor = os.open(copy.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _write(name, Source(copy.path, name, descriptor, copy.executable), self._descriptor)
            finally:
                os.close(descriptor)

    def _is_same(self, copy: StagedFile, name: str) -> bool:
        try:
            with self._tree.opened(name) as (descriptor, is_directory), open(copy.path, "rb") as staged_file:
                if is_directory or os.fstat(descriptor).st_size != os.fstat(staged_file.fileno()).st_size:
                    return False
                while chunk := staged_file.read(_CHUNK):
                    if not _reads(descriptor, chunk):
                        return False
                return True
        except OSError:
            return False  # a link, a FIFO or an unreadable file counts as another file

    def sync(self) -> None:
        """Make the names durable."""
        os.fsync(self._descriptor)

    def clear(self) -> None:
        """Remove the added files again."""
        for name in self._put:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def _reads(descriptor: int, reference: bytes) -> bool:
    view = memoryview(reference)
    while view:
        length = os.read(descriptor, len(view))
        if not length or view[: len(length)] != length:
            return False
        view = view[len(length) :]
    return True
