"""Wiped data is first renamed to `profiles/.wipe-…`, out of sight, and then deleted there.

- A whole profile becomes `.wipe-<8 hex>-<name>` in one step.
- Parts of a profile are renamed into `.wipe-parts-<8 hex>-<name>`, one by one: see `moving`.

The deleting process holds a kernel lock on that directory itself, so that the profile's name is free again at once, and
no two processes delete the same. An interrupted deletion is finished by the next process that takes the lock of any
profile (`profiles.FinishingLock`).
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Literal, NamedTuple, get_args

from deepctl import layout
from deepctl.errors import Interrupted, Locked, Refused, StorageError
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import IMPORT, NEW, ProfilePaths, Root
from deepctl.locks import Lock, holder
from deepctl.store import reserve

PREFIX = ".wipe-"
"""Prefixes of the names of wiped data; no profile's name has one."""
LEFTOVERS = (PREFIX, IMPORT, NEW)
"""Prefixes of the names of leftovers of killed commands among the profiles."""
_NAME = re.compile(r"\.wipe-(parts-)?[0-9a-f]{8}-(.+)", re.DOTALL)

_NEXT = "The next command that changes any profile finishes it."

Report = Callable[[int], None]


class Leftover(NamedTuple):
    """The rest of an interrupted wipe. `is_partial` means that the profile itself stays."""

    profile: str
    path: str
    is_partial: bool


class Trash(NamedTuple):
    """Wiped data that is out of sight, locked until it has been deleted."""

    root: Root
    path: str
    descriptor: int | None

    def close(self) -> None:
        """Release the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)


def leftovers(root: Root) -> list[Leftover]:
    """All wiped data that still exists, also data that another process is deleting."""
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
        if (match := _NAME.fullmatch(entry))
        and layout.is_good_name(match[2])
        and _is_own(os.path.join(root.profiles, entry))
    ]


def _is_own(path: str) -> bool:
    """Whether this user created an entry here, and others may not write to it: entries of others are ignored."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return status.st_uid == os.geteuid() and (stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022)


def unfinished_wipes(root: Root) -> list[Leftover]:
    """The remains of interrupted wipes that no process is deleting. Changes nothing."""
    return [leftover for leftover in leftovers(root) if not is_held(leftover.path)]


def is_held(path: str) -> bool:
    """Whether a process works on a directory under its lock; also true if the directory no longer exists."""
    try:
        descriptor = _held(path, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    if descriptor is not None:
        os.close(descriptor)
    return False


def put_away(root: Root, paths: ProfilePaths) -> Trash:
    """Rename a whole profile out of sight, permanently. The caller holds its lock. After an `OSError`, the profile
    still exists.
    """
    trash = Trash(root, _new_path(root, "", paths.name), _held(paths.directory, fcntl.LOCK_EX))
    try:
        os.rename(paths.directory, trash.path)
        with atomic.after_commit("The data is permanently removed from the profile", _NEXT):
            atomic.sync_directory(root.profiles)
    except BaseException:
        trash.close()
        raise
    return trash


def put_away_parts(root: Root, paths: ProfilePaths, moves: Sequence[PartMove]) -> Trash:
    """Rename parts of a profile out of sight, permanently. The caller holds its lock.

    Raises `OSError`, and `Refused` for a link in the path; nothing has changed then.
    """
    path = _new_path(root, "parts-", paths.name)
    _make_place(path, paths)
    atomic.sync_directory(root.profiles)
    trash = Trash(root, path, _held(path, fcntl.LOCK_EX))
    try:
        begin(path, paths, moves)
    except BaseException:
        trash.close()
        raise
    return trash


def _make_place(path: str, paths: ProfilePaths) -> None:
    """Create the directory `path`. On a full disk, the cache and a part of the profile's reserve are freed for it."""
    try:
        atomic.make_new_directory(path)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        reserve.empty_cache(paths)
        reserve.shrink(paths)
        atomic.make_new_directory(path)


def delete(trash: Trash, report: Report | None = None) -> int:
    """Delete wiped data, so that it stays deleted after a power cut; returns the number of deleted names.

    Raises `StorageError` or `Interrupted`.
    """
    try:
        count = rmtree.remove_tree(trash.path, report)
        atomic.sync_directory(trash.root.profiles)
        return count
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted during the deletion. The data is already removed from the profile.",
            "The next command that changes any profile finishes it.",
        ) from None
    except OSError as error:
        problem = atomic.storage_error(
            error,
            "Everything else was deleted. Make the file deletable; the next command that changes a profile "
            "deletes it. `deepctl doctor` lists what remains.",
        )
        reason = problem.message.partition(": ")[2]
        raise StorageError(f"A file cannot be deleted: {reason}", problem.hint, code=problem.code) from error
    finally:
        trash.close()


def finish(root: Root, lock_holder: str) -> None:
    """Finish interrupted wipes, and remove incomplete profiles. The caller holds the lock of `lock_holder`.

    Data on which another process works is skipped, and a failure is left to the next command; `unfinished_wipes` lists
    it.
    """
    entries = _entries(root)  # one call: without leftovers, this is the only cost
    for leftover in _leftovers(root, entries):
        with suppress(OSError, Refused, StorageError, Locked):
            finish_one(root, leftover, lock_holder)
    _remove_half_made(root, entries, lock_holder)


def finish_one(root: Root, leftover: Leftover, lock_holder: str) -> None:
    """The same for one; raises the error that prevents it: `OSError`, `StorageError`, `Refused` or `Locked`."""
    if not leftover.is_partial:
        _delete(root, leftover)
        return
    with _owned(root, leftover.profile, lock_holder):
        _go_on(root, leftover)


def remove_half_made(root: Root) -> None:
    """Remove the profiles that killed commands were creating or importing.

    Profiles that are still being created are skipped: a creation holds the lock of its name, an import the lock of its
    directory. A failure is left to the next command.
    """
    _remove_half_made(root, _entries(root), "")


def _remove_half_made(root: Root, entries: list[str], lock_holder: str) -> None:
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
            elif layout.is_good_name(name := entry.removeprefix(NEW)):
                with _owned(root, name, lock_holder):
                    rmtree.remove_tree(path)


def half_made(root: Root) -> list[str]:
    """The paths that the removal would delete. Changes nothing."""
    return [
        path
        for entry in _entries(root)
        for path in (os.path.join(root.profiles, entry),)
        if (entry.startswith((IMPORT, NEW)) and _is_own(path))
        and (
            (entry.startswith(IMPORT) and not is_held(path))
            or (
                entry.startswith(NEW)
                and layout.is_good_name(name := entry.removeprefix(NEW))
                and holder(root.profile(name).lock) is None
            )
        )
    ]


def _owned(root: Root, profile: str, lock_holder: str) -> AbstractContextManager[object]:
    if profile == lock_holder:
        return nullcontext()
    return Lock(root.profile(profile).lock, profile=profile, command="wipe")


def _delete(root: Root, leftover: Leftover) -> None:
    try:
        descriptor = _held(leftover.path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    delete(Trash(root, leftover.path, descriptor))


def _go_on(root: Root, leftover: Leftover) -> None:
    """Finish an interrupted renaming of parts, and delete them. The profile's lock is held."""
    go_on(leftover.path, root)
    _delete(root, leftover)


def _new_path(root: Root, kind: str, name: str) -> str:
    return os.path.join(root.profiles, f"{PREFIX}{kind}{os.urandom(4).hex()}-{layout.folded_name(name)}")


def _held(path: str, kind: int) -> int | None:
    """A descriptor of a directory, with its lock; `None` if it is not a directory of deepctl.

    Raises `FileNotFoundError`, the errors of a machine without resources, and with `LOCK_NB` `BlockingIOError` if
    another process holds the lock.
    """
    try:
        descriptor = os.open(path, atomic.OPEN_DIRECTORY)
    except FileNotFoundError:
        raise
    except OSError as error:
        if atomic.is_full(error) or atomic.is_of_machine(error):
            raise  # it may be held, so its data must stay
        return None
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        pass  # not every file system can lock a directory; deleting the same data twice does no harm
    return descriptor


FORMAT = 1

_PLAN = "plan"

Anew = Literal["", "directory", "file"]


class PartMove(NamedTuple):
    """One moved path: its path in the profile, and its empty, private replacement."""

    path: str
    anew: Anew = ""


def begin(place: str, paths: ProfilePaths, moves: Sequence[PartMove]) -> None:
    """Move parts of a profile into the empty directory `place`. The caller holds the profile's lock.

    Raises `OSError`, and `Refused` for a link in the path; nothing has changed then, and `place` is removed.
    """
    status = os.stat(paths.directory)
    plan = {
        "v": FORMAT,
        "profile": paths.name,
        "identity": [status.st_dev, status.st_ino],
        "moves": [list(move) for move in moves],
    }
    try:
        _write(os.path.join(place, _PLAN), paths, sealed_lines.seal(plan))
    except OSError:
        with suppress(OSError):
            rmtree.remove_tree(place)
        if os.path.lexists(os.path.join(place, _PLAN)):
            with atomic.after_commit("The wipe has begun", _NEXT):
                raise
        raise
    _carry_out(place, paths, moves)


def _write(path: str, paths: ProfilePaths, plan: bytes) -> None:
    """Write the plan; on a full disk, into the profile's reserve."""
    try:
        atomic.write_file(path, plan)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        try:
            reserve.lend(paths, path, plan)
        except OSError:
            reserve.empty_cache(paths)  # deepctl 0.1 had no reserve
            atomic.write_file(path, plan)


def go_on(place: str, root: Root) -> None:
    """Finish an interrupted move in `place`, if there is one. The caller holds the profile's lock.

    Raises the errors of `begin`, and `Refused` for a later format.
    """
    try:
        plan = _read(place)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    paths = root.profile(plan["profile"])
    moves = [PartMove(str(path), anew) for path, anew in plan["moves"]]
    _carry_out(place, paths, moves if _is_same(paths, plan["identity"]) else [])


def _read(place: str) -> dict[str, Any]:
    """The plan. Raises `ValueError` if it is invalid, and `Refused` for a later format."""
    # After the first line there may be old bytes of the reserve.
    plan = sealed_lines.unseal(atomic.read_file(os.path.join(place, _PLAN)).partition(b"\n")[0])
    match plan:
        case {"v": int(version)} if version > FORMAT:
            raise Refused(f"{place} was created by a later deepctl.", "Update deepctl. It was not changed.")
        case {"profile": str(profile), "identity": list(), "moves": list(moves)} if layout.is_good_name(
            profile
        ) and all(map(_is_move, moves)):
            return plan
        case _:
            raise ValueError("not a plan")


def _is_move(move: object) -> bool:
    """Whether a value in a plan is a path in the profile with its replacement."""
    match move:
        case [str(path), str(anew)]:
            return anew in get_args(Anew) and not {"", ".", ".."} & set(path.split("/"))
    return False


def _is_same(paths: ProfilePaths, identity: list[int]) -> bool:
    """Whether the profile is still the one of the plan, and not another of the same name."""
    try:
        status = os.lstat(paths.directory)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and [status.st_dev, status.st_ino] == identity


def _carry_out(path: str, paths: ProfilePaths, moves: Sequence[PartMove]) -> None:
    """Execute the plan, and remove it; finished steps are skipped. Either all of it is done, or nothing and an error is
    raised.
    """
    trash = os.open(path, atomic.OPEN_DIRECTORY)
    try:
        if moves:
            profile = os.open(paths.directory, atomic.OPEN_DIRECTORY)
            try:
                _move_all(profile, trash, paths, moves)
            except (OSError, Refused):
                # If that fails too, the plan stays, and the next holder of the lock continues.
                with atomic.after_commit("The wipe has begun", _NEXT):
                    _move_back(profile, trash, moves)
                    rmtree.remove_tree(path)
                raise
            finally:
                os.close(profile)
        # Data that is created in these places from now on does not belong to the plan.
        with atomic.after_commit("The data is permanently removed from the profile", _NEXT):
            os.fsync(trash)
            reserve.give_back(paths, os.path.join(path, _PLAN))
            os.fsync(trash)
    finally:
        os.close(trash)


def _move_all(profile: int, trash: int, paths: ProfilePaths, moves: Sequence[PartMove]) -> None:
    for number, move in enumerate(moves):
        with _parent(profile, move.path, paths.name) as parent:
            if parent is None:
                continue
            if not _exists(str(number), trash):
                with suppress(FileNotFoundError):
                    rmtree.move_entry(parent, os.path.basename(move.path), trash, str(number))
            _make_anew(os.path.join(paths.directory, move.path), move.anew)
            os.fsync(parent)


def _make_anew(path: str, kind: Anew) -> None:
    """Create the empty replacement of a moved path. On a full disk it stays missing, and is created when it is
    needed.
    """
    try:
        if kind == "directory":
            atomic.make_directory(path)
        elif kind == "file":
            atomic.make_private_file(path)
    except OSError as error:
        if not atomic.is_full(error):
            raise


def _move_back(profile: int, trash: int, moves: Sequence[PartMove]) -> None:
    for number, move in reversed(list(enumerate(moves))):
        if _exists(str(number), trash):
            with _parent(profile, move.path, "") as parent:
                if parent is None:
                    raise FileNotFoundError(move.path)
                # An empty directory that was created in its place is removed.
                os.rename(str(number), os.path.basename(move.path), src_dir_fd=trash, dst_dir_fd=parent)
                os.fsync(parent)


@contextmanager
def _parent(profile: int, path: str, name: str) -> Iterator[int | None]:
    """The parent directory of a path of a profile, in which its owner may write; `None` if it does not exist."""
    open_directories: list[tuple[int, int | None]] = []
    directory = profile
    try:
        for part in path.split("/")[:-1]:
            try:
                mode = os.stat(part, dir_fd=directory, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    raise link_in_the_way(path, part, name)
                is_closed = mode & 0o700 != 0o700
                if is_closed:
                    rmtree.allow(directory, part)
                directory = os.open(part, atomic.OPEN_DIRECTORY, dir_fd=directory)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            open_directories.append((directory, stat.S_IMODE(mode) if is_closed else None))
        yield directory
    finally:
        for descriptor, old_mode in reversed(open_directories):
            if old_mode is not None:
                os.fchmod(descriptor, old_mode)
            os.close(descriptor)


def link_in_the_way(path: str, part: str, name: str) -> Refused:
    """The error for a link in the place of a directory of a profile."""
    return Refused(
        f"{part} is a symbolic link, so deepctl does not follow it to {path} of profile {name!r}.",
        "Find out what created it, and remove it. `--only workspace` removes the link with everything else.",
        code="link",
    )


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
