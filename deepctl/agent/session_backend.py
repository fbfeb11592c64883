"""The directory in which the agent of a session works: the workspace of the profile, or a project."""

from __future__ import annotations

import os
from collections.abc import Sequence

from deepctl.agent.backend import LocalBackend, ProjectOptions
from deepctl.agent.sandboxes import Sandbox
from deepctl.layout import ProfilePaths
from deepctl.sandbox.policy import PROTECTED
from deepctl.store import projects


def open_backend(
    profile: ProfilePaths,
    project: str | None,
    sandbox: Sandbox | None,
    *,
    protected: Sequence[str] = PROTECTED,
    by_user: bool = False,
) -> LocalBackend:
    """The backend of a session in `project`, a directory of the user, or without one in the workspace of the profile.

    Raises `Refused`, and `NotADirectoryError` if the project is gone.
    """
    if not project:
        return LocalBackend(profile.workspace, sandbox=sandbox, by_user=by_user)
    known = projects.by_path(profile, os.path.realpath(project))
    options = ProjectOptions(tuple(protected), profile.package_cache, known.trusted if known is not None else "")
    return LocalBackend(project, sandbox=sandbox, by_user=by_user, profile_dir=profile.workspace, project=options)
