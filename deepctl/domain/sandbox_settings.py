"""A profile's sandbox, as far as it can be described and changed without an agent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from deepctl.domain.permissions import Permissions
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, Refused
from deepctl.layout import ProfilePaths
from deepctl.sandbox import container as containers
from deepctl.sandbox.policy import Limits, Unavailable

_SOCKET = "/var/run/docker.sock"
"""The address of the Docker daemon unless `$DOCKER_HOST` names another one."""


class SandboxDescription(NamedTuple):
    """The policy for commands that the settings of a profile give."""

    profile: str
    sandbox: str
    approve: str
    network: str
    protected: list[str]
    read_only_paths: list[str]
    image: str
    container: str
    limits: Limits
    permissions: Permissions


def describe(settings: Settings, profile: ProfilePaths) -> SandboxDescription:
    """The settings in force for a profile's commands. Raises `BadSetting`."""
    return SandboxDescription(
        profile.name,
        settings.get("sandbox") or "",
        settings.get("approve") or "",
        settings.get("network") or "",
        settings.paths("protected"),
        settings.paths("read_only_paths"),
        settings.get("docker.image") or "",
        containers.container_name(profile.directory),
        settings.limits(),
        settings.permissions(),
    )


def remove_container(profile: ProfilePaths, project: str | None = None) -> tuple[str, bool]:
    """Remove the containers of a profile, or only that for the project at the path `project`.

    Returns the names, separated by commas, and whether there was one; without one, the name that it would have. The
    caller holds the profile's lock. Raises `Refused` if Docker does not answer, or if deepctl did not create the
    container of that name.
    """
    name = containers.container_name(profile.directory)
    try:
        if project is not None:
            name = containers.project_name(name, project)
            return name, containers.remove(name)
        names = containers.remove_all(name)
        return ", ".join(names) or name, bool(names)
    except Unavailable as problem:
        raise Refused(f"{problem.reason}.", problem.fix, code="sandbox_unavailable") from None


def remove_container_if_any(
    environment: Mapping[str, str], in_force: Settings, profile: ProfilePaths, project: str | None = None
) -> str | None:
    """Remove the containers of a profile that will be deleted or renamed, or of a project that it will forget.

    Returns the names, separated by commas, or `None` if there was no container. A container's name follows from the
    directory of the profile and the path of the project, so it could not be found afterwards. The caller holds the
    profile's lock. Docker is asked if there is any sign of it. `in_force` are the profile's settings.
    Raises `Refused` if Docker does not answer and they say `docker`; with other settings, a profile does not depend on
    Docker.
    """
    uses_docker = _uses_docker(in_force)
    if not (uses_docker or environment.get("DOCKER_HOST") or os.path.exists(_SOCKET)):
        return None
    try:
        name, is_removed = remove_container(profile, project)
    except Refused as problem:
        if not uses_docker:
            return None
        raise Refused(
            f"The container of profile {profile.name!r} cannot be removed: {problem.message}",
            problem.hint,
            code=problem.code,
        ) from None
    return name if is_removed else None


def _uses_docker(in_force: Settings) -> bool:
    try:
        return in_force.get("sandbox") == "docker"
    except (DeepctlError, OSError):
        return False  # unreadable settings have started no container
