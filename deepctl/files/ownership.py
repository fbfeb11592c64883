"""Whether a path is safe from other users of this machine, as in sshd's StrictModes, and restoring the user's own
permissions.

A user who may write to a directory may replace its entries: by a link, or by a file that names data to delete. So a
path counts as safe if it belongs to the user or root, no other user may write to it, and the same holds for every
directory above it. Directories above that others may write to are safe with the sticky bit (`/tmp`), because only the
owner can replace an entry there. Links on the path are followed if they belong to the user or root.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from deepctl.errors import StorageError

_MOST_LINKS = 40


class Finding(NamedTuple):
    """The reason why a path is unsafe, and the remedy."""

    problem: str
    help: str
    code: str = "unsafe_root"


_WHAT = "Find out what created it."
OWN_ROOT = "Set $DEEPCTL_HOME to a directory of your own."


def check(path: str, *below: str) -> None:
    """Raise `StorageError` if a directory, one above it, or one of `below` in it is unsafe. Missing ones are safe."""
    finding = examine(path, *below)
    if finding is not None:
        raise StorageError(f"{finding.problem}.", finding.help, code=finding.code)


def examine(path: str, *below: str) -> Finding | None:
    """The first reason why it is unsafe; `None` if it is safe, as far as the files are accessible."""
    trusted_users = _trusted()
    try:
        for directory in _above(path):
            status = os.lstat(directory)
            # Before the modes, because the mode of a device or a file must not be changed.
            finding = _no_directory(directory, status, OWN_ROOT)
            finding = finding or _foreign(directory, status, trusted_users | _unmapped())
            if finding is None and not stat.S_ISLNK(status.st_mode) and not status.st_mode & stat.S_ISVTX:
                finding = _writable(directory, status)
            if finding is not None:
                return finding
        for directory in (path, *(os.path.join(path, name) for name in below)):
            try:
                status = os.lstat(directory)
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(status.st_mode) and os.path.isdir(directory):
                leads = f"Set $DEEPCTL_HOME to the target of the link: {os.path.realpath(directory)}"
                return Finding(f"{directory} is a symbolic link", leads if directory == path else _WHAT)
            finding = _no_directory(directory, status, OWN_ROOT if directory == path else _WHAT)
            finding = finding or _foreign(directory, status, trusted_users) or _writable(directory, status)
            if finding is not None:
                return finding
    except OSError:
        # The later use of the path reports the error better.
        return None
    return None


def entries_on(path: str) -> Iterator[str]:
    """The entries through which a path leads, as far as they exist: directories, links, and what is at its end.

    A user who may replace one of them decides what the path leads to. Each is named without a link above it.
    """
    with suppress(OSError):
        yield from _above(os.path.join(path, "_"))


def _above(path: str) -> Iterator[str]:
    """The directories and links on a path, from the top, without the path itself."""
    prefix, links = "/", 0
    yield prefix
    pending = os.path.abspath(path).strip("/").split("/")[::-1]
    while len(pending) > 1:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            prefix = os.path.dirname(prefix)
            continue
        entry = os.path.join(prefix, name)
        yield entry
        if stat.S_ISLNK(os.lstat(entry).st_mode):
            links += 1
            if links > _MOST_LINKS:
                return
            target = os.readlink(entry)
            prefix = "/" if target.startswith("/") else prefix
            pending += target.split("/")[::-1]
        else:
            prefix = entry


def _trusted() -> set[int]:
    # In a container's user namespace, root's files may have another owner number; the owner of `/` decides.
    return {0, os.geteuid(), os.lstat("/").st_uid}


@lru_cache
def _unmapped() -> set[int]:
    """The number that all users unknown to a container's user namespace have, root included."""
    try:
        with open("/proc/self/uid_map") as ranges, open("/proc/sys/kernel/overflowuid") as number:
            is_whole = ranges.readline().split() == ["0", "0", "4294967295"]
            return set() if is_whole else {int(number.read())}
    except OSError:
        return set()


def _no_directory(path: str, status: os.stat_result, help: str) -> Finding | None:
    """A path that exists and is neither a directory nor a link to one; a dangling link is reported elsewhere."""
    is_link = stat.S_ISLNK(status.st_mode)
    if stat.S_ISDIR(status.st_mode) or (is_link and (os.path.isdir(path) or not os.path.exists(path))):
        return None
    return Finding(f"{path} is not a directory", help, "storage_enotdir")


def _foreign(path: str, status: os.stat_result, trusted_users: set[int]) -> Finding | None:
    if status.st_uid in trusted_users:
        return None
    return Finding(f"{path} belongs to another user of this machine (uid {status.st_uid})", OWN_ROOT)


def _writable(path: str, status: os.stat_result) -> Finding | None:
    """Whether others may write to it. The bits of a link have no meaning."""
    if stat.S_ISLNK(status.st_mode):
        return None
    by_group = status.st_mode & stat.S_IWGRP and (not _is_own_group(status.st_gid) or _has_acl(path))
    if not by_group and not status.st_mode & stat.S_IWOTH:
        return None
    mode = stat.S_IMODE(status.st_mode)
    return Finding(
        f"Other users of this machine may write to {path} (mode {mode:04o})",
        f"Remove their permission: chmod go-w {shlex.quote(path)}",
    )


@lru_cache
def _is_own_group(group: int) -> bool:
    """Whether the user is the only member of a group, as far as this machine knows; root does not count."""
    import grp
    import pwd

    user = os.geteuid()
    try:
        members = grp.getgrgid(group).gr_mem
    except KeyError:
        if group not in (os.getegid(), *os.getgroups()):
            return False
        members = []
    everyone = pwd.getpwall()
    user_ids = {0, user}
    if any(person.pw_uid not in user_ids for person in everyone if person.pw_gid == group):
        return False
    uids = {person.pw_name: person.pw_uid for person in everyone}
    return all(uids.get(name) in user_ids for name in members)


def _has_acl(path: str) -> bool:
    """Whether the group bits are the mask of an access control list."""
    try:
        return hasattr(os, "getxattr") and bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False


_PLACE = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_OWNER = 0o700


def regain(root: str, below: Iterable[str]) -> None:
    """Give the owner read, write and search permission on the directory `root` and on those below it, if they exist.

    A path that ends in `/*` stands for every directory in one. Links are never followed. A failure is left to the code
    that needs the permission.
    """
    try:
        top = _entered(None, root)
    except OSError:
        return
    try:
        for path in below:
            _regain(top, path.split("/"))
    finally:
        os.close(top)


def _regain(parent: int, parts: list[str]) -> None:
    try:
        if parts[0] == "*":
            names = os.listdir(directory := os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent))
            os.close(directory)
        else:
            names = parts[:1]
    except OSError:
        return
    for name in names:
        try:
            descriptor = _entered(parent, name)
        except OSError:
            continue  # missing, or not a directory
        try:
            if parts[1:]:
                _regain(descriptor, parts[1:])
        finally:
            os.close(descriptor)


def _entered(parent: int | None, name: str) -> int:
    """An open directory whose owner may use it. Raises `OSError`."""
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    mode = stat.S_IMODE(status.st_mode)
    is_closed = stat.S_ISDIR(status.st_mode) and mode & _OWNER != _OWNER and status.st_uid == os.geteuid()
    if is_closed and not hasattr(os, "O_PATH"):
        os.chmod(name, mode | _OWNER, dir_fd=parent, follow_symlinks=False)
    descriptor = os.open(name, _PLACE, dir_fd=parent)
    if is_closed and hasattr(os, "O_PATH"):
        # By the descriptor's name, because a link may have replaced the path, but not the open directory.
        try:
            os.chmod(f"/proc/self/fd/{descriptor}", mode | _OWNER)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor
