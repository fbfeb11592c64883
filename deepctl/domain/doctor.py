"""Whether deepctl can do its work here: every check says what it found and, where something is amiss, what helps."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from deepctl.domain import layout, settings
from deepctl.domain.layout import ProfilePaths
from deepctl.errors import DeepctlError
from deepctl.sandbox import bubblewrap, cgroups, containers
from deepctl.sandbox.policy import Limits, Unavailable

Status = Literal["ok", "warning", "problem"]


class Check(NamedTuple):
    """One thing that was looked at. A `warning` is something to know, a `problem` something that does not work."""

    name: str
    status: Status
    found: str
    hint: str | None = None


def examine(environment: Mapping[str, str], profile: ProfilePaths | None, version: str) -> list[Check]:
    """All checks; with a profile, as its chats would find things. `version` is deepctl's own."""
    checks = [_versions(version), _root(environment)]
    try:
        checks += _sandboxes(environment, profile)
    except DeepctlError as error:
        checks.append(Check("settings", "problem", error.message, error.hint))
    return checks


def _versions(version: str) -> Check:
    return Check("versions", "ok", f"deepctl {version}, Python {platform.python_version()}, {platform.platform()}")


def _root(environment: Mapping[str, str]) -> Check:
    root = layout.root(environment)
    try:
        status = os.stat(root.path)
    except FileNotFoundError:
        return Check("root", "ok", f"{root.path}, not made yet")
    except OSError as error:
        return Check("root", "problem", f"{root.path}: {error.strerror}", "Give $DEEPCTL_HOME another directory.")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid() or mode & 0o077:
        return Check(
            "root", "problem", f"{root.path} has mode {mode:04o}, owner {status.st_uid}", "It should be yours, 0700."
        )
    return Check("root", "ok", root.path)


def _sandboxes(environment: Mapping[str, str], profile: ProfilePaths | None) -> Iterator[Check]:
    named = settings.resolve("sandbox", environment=environment, profile=profile).value or "auto"
    image = settings.resolve("docker.image", environment=environment, profile=profile).value or ""
    limits = settings.limits(environment, profile)
    problem = try_bubblewrap(environment, limits)
    if problem is None:
        yield Check("bubblewrap", "ok", "commands run in it")
        yield _limits(limits)
    else:
        status: Status = "problem" if named == "bubblewrap" else "warning"
        yield Check("bubblewrap", status, problem.reason, problem.fix)
    try:
        yield Check("docker", "ok", f"Docker {containers.check(image)} has the image {image}")
    except Unavailable as error:
        # Nobody needs it who has not asked for it.
        yield Check("docker", "problem" if named == "docker" else "ok", f"not used: {error.reason}", error.fix)
    yield _in_force(named, problem)


def try_bubblewrap(environment: Mapping[str, str], limits: Limits) -> Unavailable | None:
    """Run a command in bubblewrap. Returns what stands in the way, if anything does."""
    try:
        program = bubblewrap.find(environment, outside=(layout.root(environment).path,))
        bubblewrap.check(bubblewrap.Policy(program, None, limits, network=False))
    except Unavailable as problem:
        return problem
    return None


def _limits(limits: Limits) -> Check:
    told = f"{limits.processes} processes, {limits.memory >> 20} MiB, {limits.seconds:g} s a command"
    if cgroups.available():
        return Check("limits", "ok", told)
    if os.geteuid() == 0:
        return Check(
            "limits",
            "warning",
            f"{told}; processes and all memory together are not limited: no control group can be made",
            "Run deepctl as an ordinary user, or where /sys/fs/cgroup can be written.",
        )
    return Check("limits", "ok", f"{told}; memory for each process, not for all together")


def _in_force(named: str, problem: Unavailable | None) -> Check:
    if named == "none":
        return Check("sandbox", "warning", "none: commands run with your own rights, after a yes")
    if named == "auto" and problem is not None:
        return Check(
            "sandbox", "warning", "auto: commands are asked about one by one, without a terminal there are none"
        )
    return Check("sandbox", "ok", f"{named}: commands run in {'bubblewrap' if named == 'auto' else named}")
