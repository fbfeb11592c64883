"""The projects of a profile: directories of the user in which sessions work.

A project is identified by the real path of its directory. `projects.json` in the profile is one sealed line with all of
them. The id of a project is the name of its tree in checkpoints (`deepctl.store.workspaces`), so it survives `move`. A
damaged or missing document is built again from the records of the sessions.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.errors import DeepctlError, Locked, NotFound, Refused
from deepctl.files import atomic, placeholders, sealed_lines
from deepctl.layout import ProfilePaths
from deepctl.locks import DirectoryLock
from deepctl.store import log_file, session_catalogue
from deepctl.store.records import Record, SessionProject, SessionRecord, is_project_id

_UNAVAILABLE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ENODEV,
    errno.EHOSTDOWN,
)
"""Errors of a directory that is missing, not accessible, or on a file system that is."""


class Project(NamedTuple):
    """A directory of the user: its id, its real path, and its device, inode and git remote when it was last used.

    `origin` is that of `git.origin`. The path is empty if it is unknown. `trusted` is the digest of the content that
    the user trusts (`projects trust`), empty if nothing is trusted. Device and inode are 0 if they are unknown.
    """

    id: str
    path: str
    device: int = 0
    inode: int = 0
    trusted: str = ""
    origin: str = ""


def read(paths: ProfilePaths) -> list[Project]:
    """The projects of a profile, in the order of their first use. Raises `NewerFormat`."""
    try:
        return _read(paths)
    except (FileNotFoundError, NotADirectoryError, *_DAMAGE):
        return _of_sessions(paths)


_DAMAGE = (Refused, ValueError, KeyError, TypeError)


def _read(paths: ProfilePaths) -> list[Project]:
    raw = log_file.documents(paths.directory).read(layout.PROJECTS)
    document = sealed_lines.unseal(raw.rstrip(b"\n"))
    layout.bring_up(layout.PROJECTS_FORMAT, document, os.path.join(paths.directory, layout.PROJECTS))
    return [_project(entry) for entry in document["projects"]]


def is_damaged(paths: ProfilePaths) -> bool:
    """Whether there is a document that cannot be read. Raises `NewerFormat`."""
    try:
        _read(paths)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except _DAMAGE:
        return True
    return False


def rewrite(paths: ProfilePaths) -> None:
    """Write the document again, from the records of the sessions if it is damaged. The caller holds the lock."""
    _write(paths, read(paths))


def _project(entry: object) -> Project:
    match entry:
        case {
            "id": str(identity),
            "path": str(path),
            "device": int(device),
            "inode": int(inode),
            "trusted": str(trusted),
        } if is_project_id(identity) and (os.path.isabs(path) or not path):
            origin = entry.get("origin", "") if isinstance(entry, dict) else ""
            return Project(identity, path, device, inode, trusted, origin if isinstance(origin, str) else "")
        case _:
            raise ValueError("not a project")


def _of_sessions(paths: ProfilePaths) -> list[Project]:
    """The projects that the records of the sessions name. Nothing in them is trusted.

    The path is empty if the records are damaged too, so that only the ledger knows the id.
    """
    projects: dict[str, Project] = {}
    # The session that was used last has the newest path.
    for name in reversed(session_catalogue.newest_first(paths)):
        try:
            project = session_catalogue.find(paths, name).project
        except (DeepctlError, OSError):
            continue
        if project is not None and (project.path or project.id not in projects):
            projects[project.id] = Project(project.id, project.path)
    return list(projects.values())


def by_id(paths: ProfilePaths, identity: str) -> Project | None:
    """The project with that id."""
    return next((project for project in read(paths) if project.id == identity), None)


def by_path(paths: ProfilePaths, real_path: str) -> Project | None:
    """The project in the directory `real_path`, which contains no link."""
    return next((project for project in read(paths) if project.path == real_path), None)


def _origin(directory: str) -> str:
    """See `deepctl.files.git.origin`, whose module commands without a project do not need."""
    from deepctl.files import git

    return git.origin(directory)


def ensure(paths: ProfilePaths, real_path: str) -> Project:
    """The project in the directory `real_path`; it is added if it is new. The caller holds the profile's lock.

    Raises `OSError` if there is no such directory.
    """
    status, origin = os.stat(real_path), _origin(real_path)
    projects = read(paths)
    for number, project in enumerate(projects):
        if project.path == real_path:
            current = project._replace(device=status.st_dev, inode=status.st_ino, origin=origin)
            if current != project:
                projects[number] = current
                _write(paths, projects)
            return current
    new_project = Project(os.urandom(4).hex(), real_path, status.st_dev, status.st_ino, origin=origin)
    _write(paths, [*projects, new_project])
    return new_project


def difference(project: Project) -> str:
    """The clause why the directory of a project seems to be another one than at its last use; empty if it does not.

    The device does not count: it changes when a disk is mounted again.
    """
    try:
        inode = os.stat(project.path).st_ino
    except OSError:
        return ""
    if project.inode and inode != project.inode:
        return "it was made anew"
    origin = _origin(project.path)
    return "its git remote origin is another one" if project.origin and origin and origin != project.origin else ""


def move(paths: ProfilePaths, old: str, new_path: str) -> Project:
    """Give the project `old`, a path or an id, the directory `new_path`. The caller holds the profile's lock.

    Raises `NotFound`, `Refused` if another project has that directory, or `OSError` if there is no such directory.
    """
    projects = read(paths)
    number = next((number for number, project in enumerate(projects) if old in (project.path, project.id)), None)
    if number is None:
        raise unknown(paths, old)
    if any(project.path == new_path and project is not projects[number] for project in projects):
        raise Refused(
            f"{new_path} is already a project of profile {paths.name!r}.",
            f"`deepctl projects forget {shlex.quote(new_path)} --user {paths.name}` deletes the sessions that began "
            "there.",
            code="project_exists",
        )
    status = os.stat(new_path)
    new_project = projects[number]._replace(path=new_path, device=status.st_dev, inode=status.st_ino)
    projects[number] = new_project
    _write(paths, projects)
    return new_project


def forget(paths: ProfilePaths, identity: str) -> None:
    """Remove a project from the list; its directory and its checkpoints stay. The caller holds the profile's lock."""
    _write(paths, [project for project in read(paths) if project.id != identity])


def set_trusted(paths: ProfilePaths, identity: str, digest: str) -> None:
    """Trust the content with that digest, or nothing if it is empty. The caller holds the profile's lock."""
    projects = read(paths)
    _write(paths, [project._replace(trusted=digest) if project.id == identity else project for project in projects])


def _write(paths: ProfilePaths, projects: Iterable[Project]) -> None:
    document = {"v": layout.PROJECTS_FORMAT.current, "projects": [project._asdict() for project in projects]}
    log_file.documents(paths.directory).replace(layout.PROJECTS, sealed_lines.seal(document))


def unknown(paths: ProfilePaths, path: str) -> NotFound:
    """The error for a directory that is no project of the profile."""
    return NotFound(
        f"{path} is not a project of profile {paths.name!r}.",
        f"`deepctl projects list --user {paths.name}` lists the projects.",
        code="project_not_found",
    )


def directory_of(paths: ProfilePaths, project: SessionProject) -> str:
    """The directory of a project; empty if it is unknown. `projects.json` is newer than a session's record."""
    current = by_id(paths, project.id)
    return (current.path if current is not None else "") or project.path


def directory_of_session(paths: ProfilePaths, session: SessionRecord) -> str | None:
    """The directory in which a session works; `None` for the workspace of the profile, or if it is unknown."""
    return directory_of(paths, session.project) or None if session.project is not None else None


def lock(profile: ProfilePaths, session: SessionRecord, *, wait: float = 0.0) -> AbstractContextManager[object]:
    """The lock of the directory in which a session works; nothing for the private workspace.

    A directory that is gone is not locked: a rewind of the conversation still works. The caller holds the lock of the
    profile. `wait` is in seconds. Raises `Locked`.
    """
    return lock_directory(
        profile, directory_of(profile, session.project) if session.project is not None else None, wait=wait
    )


def is_available(root: str) -> bool:
    """Whether the directory of a project is there. A link on its path makes it another directory.

    Raises `OSError` if the machine fails, because the directory may be there then.
    """
    try:
        if os.path.realpath(root, strict=True) != root:
            return False
        os.stat(os.path.join(root, "."))
        os.close(os.open(root, atomic.OPEN_DIRECTORY))
    except OSError as error:
        if error.errno not in _UNAVAILABLE:
            raise
        return False
    return True


@contextmanager
def lock_directory(profile: ProfilePaths, directory: str | None, *, wait: float) -> Iterator[None]:
    """The same for the directory of a project; nothing for `None`, and for a project whose directory is unknown.

    What a killed command left there for its mounts is removed.
    """
    if not directory or not is_available(directory):
        yield
        return
    with DirectoryLock(directory, lock_file=profile.lock, wait=wait):
        placeholders.sweep(directory)
        yield


def sweep_all(profile: ProfilePaths) -> None:
    """Remove what killed commands left in the projects of a profile, except in those in which another process works.

    The caller holds the lock of the profile.
    """
    for project in read(profile):
        with suppress(Locked, OSError), lock_directory(profile, project.path, wait=0.0):
            pass  # taking the lock does it


def of_record(paths: ProfilePaths, record: Record) -> SessionProject | None:
    """The project of a checkpoint's session; `None` if it is private, or its directory is unknown.

    Imported sessions are private, although their checkpoints name a project.
    """
    if not record.project:
        return None
    name = session_catalogue.by_id(paths).get(record.session)
    if name is not None:
        with suppress(DeepctlError, OSError):
            project = session_catalogue.find(paths, name).project
            if project is None:
                return None
            return project._replace(path=directory_of(paths, project))
    current = by_id(paths, record.project)
    return SessionProject(current.id, current.path) if current is not None and current.path else None


def was_moved(path: str, identity: tuple[int, int], status: os.stat_result) -> bool:
    """Whether the directory with this `status` may be the one that was at `path`, where it is no more.

    `identity` are device and inode of the project when it was last used. They only suggest it: a new directory can get
    the inode of a deleted one.
    """
    is_same = identity == (status.st_dev, status.st_ino) and stat.S_ISDIR(status.st_mode)
    return is_same and _is_gone(path)


def _is_gone(path: str) -> bool:
    """Whether nothing is at a path that was a real path, or a link leads elsewhere."""
    return not os.path.lexists(path) or os.path.realpath(path) != path


def moved_to(project: Project, projects: Iterable[Project]) -> str | None:
    """A directory with the device and the inode of a missing project: beside it or the end of a link in its place,
    above the current directory, or beside another project. It is only a suggestion.
    """
    if not project.inode or not _is_gone(project.path):
        return None
    used_paths = {candidate.path for candidate in projects}
    places = [os.path.dirname(project.path), os.path.dirname(os.path.realpath(project.path))]
    places += [os.path.dirname(candidate.path) for candidate in projects]
    with suppress(OSError):
        above = os.path.realpath(os.getcwd())
        while above != "/":
            above = os.path.dirname(above)
            places.append(above)
    for place in dict.fromkeys(places):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if entry.inode() == project.inode and entry.path not in used_paths:
                    status = entry.stat(follow_symlinks=False)
                    if was_moved(project.path, (project.device, project.inode), status):
                        return entry.path
    return None


def command_to_move(profile: str, old: str, new: str) -> str:
    """The command that gives a project another directory; `profile` is a name, empty for the profile in force."""
    user = f" --user {profile}" if profile else ""
    return f"deepctl projects move {shlex.quote(old)} {shlex.quote(new)}{user}"


def now_at(paths: ProfilePaths, path: str) -> str | None:
    """The directory that may be the project of the missing directory `path` now (`moved_to`)."""
    projects = read(paths)
    project = next((project for project in projects if project.path == path), None)
    return moved_to(project, projects) if project is not None else None


def hint_of_missing(paths: ProfilePaths, path: str) -> str | None:
    """The next step if the directory `path` of a project is missing; `None` if it is there, or no project."""
    if by_path(paths, path) is None or not _is_gone(path):
        return None
    new = now_at(paths, path)
    if new is not None:
        return f"It may be {new} now: `{command_to_move(paths.name, path, new)}`."
    return f"If you have moved it: `{command_to_move(paths.name, path, 'DIR')}`, with its new directory."
