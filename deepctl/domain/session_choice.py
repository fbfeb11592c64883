"""The session that a command or a turn works on, from `--session`, `-C` and the setting `project`.

A session belongs to the directory in which it began: a project, or the private workspace of the profile. Without
`--session`, a command works on the session that was used last in the directory of `-C`, else in that of the setting
`project`, else in the private workspace.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable

from deepctl.domain.settings import Settings
from deepctl.errors import NotFound, UsageError
from deepctl.layout import UNNAMED, ProfilePaths
from deepctl.store import projects as stored
from deepctl.store import session_catalogue
from deepctl.store.projects import Project
from deepctl.store.records import SessionProject, SessionRecord

_PRIVATE = "the private workspace of its profile"


def _located(directory: str) -> str:
    """See `deepctl.domain.projects.locate`, whose module most commands do not need: they have no project."""
    from deepctl.domain import projects

    return projects.locate(directory)


def chosen(
    profile: ProfilePaths, in_force: Settings, session: str | None, directory: str | None, *, is_needed: bool = True
) -> str | None:
    """The name of the session; `None` for the one that was used last in the private workspace, and if none is needed.

    Raises `UsageError` if `session` and `directory` contradict each other, and `NotFound` if the directory has no
    session.
    """
    path = _located(directory) if directory is not None else None
    if session is not None:
        if path is not None and session_catalogue.stored_name(profile, session) is not None:
            check_directory(profile, session_catalogue.find(profile, session), path)
        return session
    if path is None:
        if not is_needed:
            return None
        path = of_settings(in_force)
    if path is None:
        # `None` means the private workspace; by its name, a session of a project is not compared with another one.
        return session_catalogue.latest_session(profile) if stored.read(profile) else None
    project = stored.by_path(profile, path)
    name = session_catalogue.latest_session(profile, project.id) if project is not None else None
    if name is None:
        raise without_session(profile, path)
    return name


def begin(
    profile: ProfilePaths, path: str | None, session: str | None, new: str | None, tell: Callable[[str], None]
) -> SessionRecord:
    """The session of the next turn, which is started if it does not exist. The caller holds the profile's lock.

    `path` is the directory of the turn, `new` the name of a new session. `tell` receives a notice. Raises `Refused` if
    the name `new` is taken.
    """
    project = stored.ensure(profile, path) if path else None
    belongs_to = SessionProject(project.id, project.path) if project is not None else None
    if new is not None:
        name = new if new != UNNAMED else session_catalogue.free_name(profile)
        return session_catalogue.start(profile, name, belongs_to)
    name = next_name(profile, path, session)
    if session_catalogue.stored_name(profile, name) is not None:
        return session_catalogue.find(profile, name)
    if session is not None:
        tell(f"Started session {session}.")
    return session_catalogue.start(profile, name, belongs_to)


def next_name(profile: ProfilePaths, path: str | None, session: str | None) -> str:
    """The name of the session that the next turn in a directory continues or starts."""
    name = session if session is not None else latest(profile, path) or session_catalogue.first_name(profile)
    return session_catalogue.stored_name(profile, name) or name


def latest(profile: ProfilePaths, path: str | None) -> str | None:
    """The session that was used last in a directory; `None` is the private workspace."""
    if not path:
        return session_catalogue.latest_session(profile)
    project = stored.by_path(profile, path)
    return session_catalogue.latest_session(profile, project.id) if project is not None else None


def named(profile: ProfilePaths, session: str | None, new: str | None) -> SessionRecord | None:
    """The session that was named; `None` if none was, or if it does not exist."""
    if session is None or new is not None or session_catalogue.stored_name(profile, session) is None:
        return None
    return session_catalogue.find(profile, session)


def of_settings(in_force: Settings) -> str | None:
    """The real path of the setting `project`; `None` if it is not set. Raises `BadSetting`."""
    value = in_force.get("project")
    return _located(value) if value is not None else None


def project_of(profile: ProfilePaths, directory: str | None) -> Project | None:
    """The project of `-C`, `None` without it. Raises `NotFound` if the profile has no such project."""
    if directory is None:
        return None
    path = _located(directory)
    project = stored.by_path(profile, path)
    if project is None:
        raise without_session(profile, path)
    return project


def check_directory(profile: ProfilePaths, session: SessionRecord, path: str | None) -> None:
    """Raises `UsageError` if a session does not work in `path`; `None` is the private workspace."""
    own = directory_of(profile, session)
    if own != path:
        raise UsageError(
            f"Session {session.name!r} works in {own or _PRIVATE}, not in {path or _PRIVATE}.",
            "A session stays in the directory in which it began. Leave out --session, or the other option.",
            code="other_directory",
        )


def directory_of(profile: ProfilePaths, session: SessionRecord) -> str | None:
    """The directory of a session's project, `None` for a session in the private workspace; empty if it is unknown."""
    return stored.directory_of(profile, session.project) if session.project is not None else None


def directories(profile: ProfilePaths) -> dict[str, str]:
    """The directories of the projects of a profile, by their ids."""
    return {project.id: project.path for project in stored.read(profile)}


def without_session(profile: ProfilePaths, path: str) -> NotFound:
    """The error for a directory in which no session of the profile began."""
    if (old_path := moved_here(profile, path)) is not None:
        hint = f"It seems to be {old_path}, which was moved: `{stored.command_to_move(profile.name, old_path, path)}`."
    else:
        hint = f"`deepctl chat -C {shlex.quote(path)} --user {profile.name}` starts one."
    return NotFound(f"Profile {profile.name!r} has no session in {path}.", hint, code="session_not_found")


def moved_here(profile: ProfilePaths, path: str) -> str | None:
    """The directory of a missing project that has the device and the inode of `path`, as after `mv`."""
    projects_here = stored.read(profile)
    if any(project.path == path for project in projects_here):
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return next(
        (project.path for project in projects_here if stored.was_moved(project.path, project[2:4], status)), None
    )
