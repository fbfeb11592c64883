"""A profile's sandbox, as far as it can be told and changed without an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from deepctl.domain import settings
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.permissions import Permissions
from deepctl.errors import Refused
from deepctl.sandbox import containers
from deepctl.sandbox.policy import Limits, Unavailable


class Described(NamedTuple):
    """What the settings of a profile make of its agent's commands."""

    profile: str
    sandbox: str
    approve: str
    image: str
    container: str
    limits: Limits
    permissions: Permissions


def describe(environment: Mapping[str, str], profile: ProfilePaths) -> Described:
    """The settings in force for a profile's commands. Raises `BadSetting`."""

    def value(key: str) -> str:
        return settings.resolve(key, environment=environment, profile=profile).value or ""

    return Described(
        profile.name,
        value("sandbox"),
        value("approve"),
        value("docker.image"),
        containers.container_name(profile.directory),
        settings.limits(environment, profile),
        settings.permissions(environment, profile),
    )


def remove_container(profile: ProfilePaths) -> tuple[str, bool]:
    """Remove a profile's container; its name, and whether there was one. The caller holds the profile's lock.

    Raises `Refused` if Docker cannot be asked, or a container of that name is somebody else's.
    """
    name = containers.container_name(profile.directory)
    try:
        return name, containers.remove(name)
    except Unavailable as problem:
        raise Refused(f"{problem.reason}.", problem.fix, code="sandbox_unavailable") from None
