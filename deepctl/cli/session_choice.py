"""The session that a command works on, from `--session`, `-C` and the setting `project`.

A session belongs to the directory in which it began: a project, or the private workspace of the profile. Without
`--session`, a command works on the session that was used last in the directory of `-C`, else in that of the setting
`project`, else in the private workspace.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import NamedTuple

from deepctl.cli import options
from deepctl.domain import projects
from deepctl.domain.settings import Settings
from deepctl.errors import NotFound, UsageError
from deepctl.layout import ProfilePaths
from deepctl.store import projects as stored
from deepctl.store import session_catalogue
from deepctl.store.projects import Project
from deepctl.store.records import SessionRecord

_PRIVATE = "the private workspace of its profile"


class Target(NamedTuple):
    """What a command works on: a profile with its settings, and a session of it.

    `session` is `None` for the one that was used last in the private workspace, and if no session is needed.
    """

    profile: ProfilePaths
    settings: Settings
    session: str | None


def target(
    user: str | None, session: str | None, directory: str | None, references: Iterable[str] | None = None
) -> Target:
    """The profile of `--user`, and the session of `--session`, of `-C`, or of the setting `project`.

    With `references`, no session is needed unless one of them is `~N`. Raises `UsageError` if `--session` and `-C`
    contradict each other, and `NotFound` if the directory has no session.
    """
    profile, in_force = options.profile_and_settings(user)
    is_needed = references is None or any(reference.startswith("~") for reference in references)
    return Target(profile, in_force, chosen(profile, in_force, session, directory, is_needed=is_needed))


def chosen(
    profile: ProfilePaths, in_force: Settings, session: str | None, directory: str | None, *, is_needed: bool = True
) -> str | None:
    """The name of the session, as in `target`."""
    path = projects.locate(directory) if directory is not None else None
    if session is not None:
        if path is not None and session_catalogue.stored_name(profile, session) is not None:
            check_directory(profile, session_catalogue.find(profile, session), path)
        return session
    if path is None:
        if not is_needed:
            return None
        path = options.project_of_settings(in_force)
    if path is None:
        # `None` means the private workspace; by its name, a session of a project is not compared with another one.
        return session_catalogue.latest_session(profile) if stored.read(profile) else None
    project = stored.by_path(profile, path)
    name = session_catalogue.latest_session(profile, project.id) if project is not None else None
    if name is None:
        raise without_session(profile, path)
    return name


def project_of(profile: ProfilePaths, directory: str | None) -> Project | None:
    """The project of `-C`, `None` without it. Raises `NotFound` if the profile has no such project."""
    if directory is None:
        return None
    path = projects.locate(directory)
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
