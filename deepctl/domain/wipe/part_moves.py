"""Moving parts of a profile into another directory: all of them or none, also after a kill.

    plan, sealed -> each part renamed, and made anew if it has to be -> plan removed

Whoever comes next goes on where the plan is still there; what has been moved is not moved again. The plan is removed
while the profile's lock is held, so that what is made in the same places later is not taken for what was meant. Nothing
here follows a link.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple, get_args

from deepctl import names
from deepctl.errors import Refused
from deepctl.files import atomic, rmtree, sealed_lines
from deepctl.layout import ProfilePaths, Root
from deepctl.store import reserve

FORMAT = 1

_PLAN = "plan"
_NEXT = "The next command that changes something, in whichever profile, finishes it."
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Anew = Literal["", "directory", "file"]


class PartMove(NamedTuple):
    """One thing that goes: its path in the profile, and what is made in its place, empty and private."""

    path: str
    anew: Anew = ""


def begin(place: str, paths: ProfilePaths, moves: Sequence[PartMove]) -> None:
    """Move parts of a profile into the empty directory `place`. The caller holds the profile's lock.

    Raises `OSError`, and `Refused` for a link in the way: then everything is as it was, and `place` is gone.
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
    """Write the plan; on a full disk, the profile's reserve becomes it."""
    try:
        atomic.write_file(path, plan)
    except OSError as error:
        if not atomic.is_full(error):
            raise
        try:
            reserve.lend(paths, path, plan)
        except OSError:
            reserve.empty_cache(paths)  # deepctl 0.1 held nothing back
            atomic.write_file(path, plan)


def go_on(place: str, root: Root) -> None:
    """Finish what was begun in `place` and interrupted, if anything was. The caller holds the profile's lock.

    Raises what `begin` does, and `Refused` for a later format.
    """
    try:
        plan = _read(place)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    paths = root.profile(plan["profile"])
    moves = [PartMove(str(path), anew) for path, anew in plan["moves"]]
    _carry_out(place, paths, moves if _is_same(paths, plan["identity"]) else [])


def _read(place: str) -> dict[str, Any]:
    """The plan. Raises `ValueError` if it is none, and `Refused` for a later format."""
    # Behind the first line there may be what else was in the reserve.
    plan = sealed_lines.unseal(atomic.read_file(os.path.join(place, _PLAN)).partition(b"\n")[0])
    match plan:
        case {"v": int(version)} if version > FORMAT:
            raise Refused(f"{place} was made by a later deepctl.", "Update deepctl. It has not been touched.")
        case {"profile": str(profile), "identity": list(), "moves": list(moves)} if names.is_good(profile) and all(
            map(_is_move, moves)
        ):
            return plan
        case _:
            raise ValueError("not a plan")


def _is_move(found: object) -> bool:
    """Whether something in a plan is a path in the profile and what is made in its place."""
    match found:
        case [str(path), str(anew)]:
            return anew in get_args(Anew) and not {"", ".", ".."} & set(path.split("/"))
    return False


def _is_same(paths: ProfilePaths, identity: list[int]) -> bool:
    """Whether the profile is still the one that was to lose parts, and not another of the same name."""
    try:
        status = os.lstat(paths.directory)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and [status.st_dev, status.st_ino] == identity


def _carry_out(path: str, paths: ProfilePaths, moves: Sequence[PartMove]) -> None:
    """Do what the plan says, and remove it; what is done already is left alone. All of it, or nothing and an error."""
    trash = os.open(path, _DIRECTORY)
    try:
        if moves:
            profile = os.open(paths.directory, _DIRECTORY)
            try:
                _move_all(profile, trash, paths, moves)
            except (OSError, Refused):
                # Should that fail, too, the plan stays, and whoever takes the lock next goes on.
                with atomic.after_commit("The wipe has begun", _NEXT):
                    _move_back(profile, trash, moves)
                    rmtree.remove_tree(path)
                raise
            finally:
                os.close(profile)
        # What is made in these places from now on is not meant any more.
        with atomic.after_commit("It is out of sight for good", _NEXT):
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
    """Make something empty in the place of what went. On a full disk it is missing, and whoever needs it makes it."""
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
                # An empty directory that has been made in its place gives way.
                os.rename(str(number), os.path.basename(move.path), src_dir_fd=trash, dst_dir_fd=parent)
                os.fsync(parent)


@contextmanager
def _parent(profile: int, path: str, name: str) -> Iterator[int | None]:
    """The directory above a path of a profile, which its owner may write meanwhile; `None` if there is none."""
    opened: list[tuple[int, int | None]] = []
    here = profile
    try:
        for part in path.split("/")[:-1]:
            try:
                mode = os.stat(part, dir_fd=here, follow_symlinks=False).st_mode
                if stat.S_ISLNK(mode):
                    raise link_in_the_way(path, part, name)
                is_closed = mode & 0o700 != 0o700
                if is_closed:
                    rmtree.allow(here, part)
                here = os.open(part, _DIRECTORY, dir_fd=here)
            except (FileNotFoundError, NotADirectoryError):
                yield None
                return
            opened.append((here, stat.S_IMODE(mode) if is_closed else None))
        yield here
    finally:
        for descriptor, was in reversed(opened):
            if was is not None:
                os.fchmod(descriptor, was)
            os.close(descriptor)


def link_in_the_way(path: str, part: str, name: str) -> Refused:
    """The error for a directory of a profile in whose place there is a link."""
    return Refused(
        f"{part} is a symbolic link, and so is not followed to {path} of profile {name!r}.",
        "Find out what put it there, and remove it; `--only workspace` removes the link with everything else.",
        code="link",
    )


def _exists(name: str, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
