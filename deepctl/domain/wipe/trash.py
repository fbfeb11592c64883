"""What is wiped goes here first: it is renamed to `profiles/.wipe-…`, out of everybody's sight, and deleted there.

- A whole profile becomes `.wipe-<8 hex>-<name>` in one step.
- Parts of a profile are renamed into `.wipe-parts-<8 hex>-<name>`, one by one: see `moving`.

Whoever deletes holds a kernel lock on that directory itself, so that the profile's name is free again at once, and no
two do the same. What a killed command leaves is finished by the next that takes the lock of any profile
(`FinishingLock`).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple, Self

from deepctl import names
from deepctl.domain.wipe import part_moves
from deepctl.domain.wipe.part_moves import PartMove
from deepctl.errors import Interrupted, Locked, Refused, StorageError
from deepctl.files import atomic, rmtree
from deepctl.layout import IMPORT, NEW, ProfilePaths, Root
from deepctl.locks import Lock, holder
from deepctl.store import reserve

PREFIX = ".wipe-"
"""How the names of what is out of sight begin; no profile's does."""
_NAME = re.compile(r"\.wipe-(parts-)?[0-9a-f]{8}-(.+)", re.DOTALL)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_NEXT = "The next command that changes something, in whichever profile, finishes it."

Report = Callable[[int], None]


class Leftover(NamedTuple):
    """What an interrupted wipe left to be finished. `is_partial` says that the profile itself stays."""

    profile: str
    path: str
    is_partial: bool


class Trash(NamedTuple):
    """Something out of sight, held until it has been deleted."""

    root: Root
    path: str
    descriptor: int | None

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor is not None:
            os.close(self.descriptor)


def leftovers(root: Root) -> list[Leftover]:
    """Everything that is out of sight and still there, also what somebody is just deleting."""
    return _leftovers(root, _entries(root))


def _entries(root: Root) -> list[str]:
    try:
        return sorted(os.listdir(root.profiles))
    except FileNotFoundError:
        return []


def _leftovers(root: Root, entries: list[str]) -> list[Leftover]:
    return [
        Leftover(match[2], os.path.join(root.profiles, entry), bool(match[1]))
        for entry in entries
        if (match := _NAME.fullmatch(entry)) and names.is_good(match[2]) and _is_own(os.path.join(root.profiles, entry))
    ]


def _is_own(path: str) -> bool:
    """Whether this user put something here, and others may not write to it: what they put here is not acted upon."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == os.geteuid() and (stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022)


def unfinished(root: Root) -> list[Leftover]:
    """What interrupted wipes left and nobody is at work on. Changes nothing."""
    return [leftover for leftover in leftovers(root) if not is_held(leftover.path)]


def is_held(path: str) -> bool:
    """Whether somebody is at work on a directory that is locked for that; so it is for one that is gone."""
    try:
        descriptor = _held(path, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False


def put_away(root: Root, paths: ProfilePaths) -> Trash:
    """Rename a whole profile out of sight, for good. The caller holds its lock. Raises `OSError`: then it is there."""
    trash = Trash(root, _new_path(root, "", paths.name), _held(paths.directory, fcntl.LOCK_EX))
    try:
        os.rename(paths.directory, trash.path)
        with atomic.after_commit("It is out of sight for good", _NEXT):
            atomic.sync_directory(root.profiles)
    except BaseException:
        trash.close()
        raise
    return trash


def put_away_parts(root: Root, paths: ProfilePaths, moves: Sequence[PartMove]) -> Trash:
    """Rename parts of a profile out of sight, for good. The caller holds its lock.

    Raises `OSError`, and `Refused` for a link in the way: then everything is as it was.
    """
    path = _new_path(root, "parts-", paths.name)
    _make_place(path, paths)
    atomic.sync_directory(root.profiles)
    trash = Trash(root, path, _held(path, fcntl.LOCK_EX))
    try:
        part_moves.begin(path, paths, moves)
    except BaseException:
        trash.close()
        raise
    return trash


def _make_place(path: str, paths: ProfilePaths) -> None:
    """Make the directory `path`; on a full disk, the cache and a part of the profile's reserve give way to it."""
    try:
        atomic.make_new_directory(path)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        reserve.empty_cache(paths)
        reserve.shrink(paths)
        atomic.make_new_directory(path)


def delete(trash: Trash, report: Report | None = None) -> int:
    """Delete what is out of sight, so that it stays deleted after a power cut; returns how many names went.

    Raises `StorageError` or `Interrupted`.
    """
    try:
        count = rmtree.remove_tree(trash.path, report)
        atomic.sync_directory(trash.root.profiles)
        return count
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted while deleting; what is wiped is out of sight already.",
            "The next command that changes something, in whichever profile, finishes it.",
        ) from None
    except OSError as error:
        problem = atomic.storage_error(
            error,
            "Everything else is gone. Once it can be deleted, the next command that changes something does it; "
            "`deepctl doctor` shows what is left.",
        )
        reason = problem.message.partition(": ")[2]
        raise StorageError(f"Something cannot be deleted: {reason}", problem.hint, code=problem.code) from error
    finally:
        trash.close()


def finish(root: Root, holding: str) -> None:
    """Finish what interrupted wipes left, and remove what is half made. The caller holds the lock of `holding`.

    What somebody else is at work on is left to them, and what cannot be finished to the next; `unfinished` has it.
    """
    entries = _entries(root)  # once: where nothing is left, this is all that it costs
    for leftover in _leftovers(root, entries):
        with suppress(OSError, Refused, StorageError, Locked):
            finish_one(root, leftover, holding)
    _remove_half_made(root, entries, holding)


def finish_one(root: Root, leftover: Leftover, holding: str) -> None:
    """The same for one; raises what stands in the way: `OSError`, `StorageError`, `Refused` or `Locked`."""
    if not leftover.is_partial:
        _delete(root, leftover)
        return
    with _owned(root, leftover.profile, holding):
        _go_on(root, leftover)


def remove_half_made(root: Root) -> None:
    """Remove the profiles that killed commands were making or importing.

    Those that are being made are left alone: who makes one holds the lock of its name, who imports one that of the
    directory. What cannot be removed is left to the next.
    """
    _remove_half_made(root, _entries(root), "")


def _remove_half_made(root: Root, entries: list[str], holding: str) -> None:
    for entry in entries:
        path = os.path.join(root.profiles, entry)
        if not entry.startswith((IMPORT, NEW)) or not _is_own(path):
            continue
        with suppress(OSError, Refused, Locked):
            if entry.startswith(IMPORT):
                descriptor = _held(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
                try:
                    rmtree.remove_tree(path)
                finally:
                    if descriptor is not None:
                        os.close(descriptor)
            elif names.is_good(name := entry.removeprefix(NEW)):
                with _owned(root, name, holding):
                    rmtree.remove_tree(path)


def half_made(root: Root) -> list[str]:
    """The paths of what that would remove. Changes nothing."""
    return [
        path
        for entry in _entries(root)
        for path in (os.path.join(root.profiles, entry),)
        if (entry.startswith((IMPORT, NEW)) and _is_own(path))
        and (
            (entry.startswith(IMPORT) and not is_held(path))
            or (
                entry.startswith(NEW)
                and names.is_good(name := entry.removeprefix(NEW))
                and holder(root.profile(name).lock) is None
            )
        )
    ]


class FinishingLock(Lock):
    """The lock of a profile; whoever gets it first finishes what killed commands left among the profiles."""

    def __init__(self, root: Root, name: str, *, command: str, wait: float) -> None:
        super().__init__(root.profile(name).lock, profile=name, command=command, wait=wait)
        self._root = root
        self._name = names.fold(name)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            finish(self._root, self._name)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self


def _owned(root: Root, profile: str, holding: str) -> AbstractContextManager[object]:
    if profile == holding:
        return nullcontext()
    return Lock(root.profile(profile).lock, profile=profile, command="wipe")


def _delete(root: Root, leftover: Leftover) -> None:
    try:
        descriptor = _held(leftover.path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    delete(Trash(root, leftover.path, descriptor))


def _go_on(root: Root, leftover: Leftover) -> None:
    """Finish renaming parts, if that was interrupted, and delete them. The profile's lock is held."""
    part_moves.go_on(leftover.path, root)
    _delete(root, leftover)


def _new_path(root: Root, kind: str, name: str) -> str:
    return os.path.join(root.profiles, f"{PREFIX}{kind}{os.urandom(4).hex()}-{names.fold(name)}")


def _held(path: str, kind: int) -> int | None:
    """A descriptor of a directory that is locked by it, `None` for what is no directory of ours.

    Raises `FileNotFoundError`, and with `LOCK_NB` `BlockingIOError` if somebody else holds it.
    """
    try:
        descriptor = os.open(path, _DIRECTORY)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass  # not every file system can lock a directory; deleting the same twice does no harm
    return descriptor
