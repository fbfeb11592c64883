"""Where commands of agents run: whether bubblewrap and Docker work, and what a profile makes of that."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from deepctl import layout
from deepctl.domain.command_policy import CommandPolicy
from deepctl.domain.doctor.check import Check, Status
from deepctl.domain.permissions import Permissions
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError
from deepctl.sandbox import bubblewrap, cgroups, container
from deepctl.sandbox.policy import Limits, Unavailable


class Choice(NamedTuple):
    """What settings say of commands."""

    named: str
    image: str
    limits: Limits


def choice(settings: Settings) -> Choice:
    """What the settings say of commands. Raises `DeepctlError`."""
    return Choice(settings.get("sandbox") or "auto", settings.get("docker.image") or "", settings.limits())


class Sandboxes:
    """What was found out about bubblewrap and Docker, each once however many profiles there are."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._bubblewrap: list[Unavailable | None] = []
        self._docker: dict[str, str | Unavailable] = {}

    def bubblewrap(self, limits: Limits) -> Unavailable | None:
        """Run a command in bubblewrap. Returns what stands in the way, if anything does."""
        if not self._bubblewrap:
            try:
                program = bubblewrap.find(self._environment, outside=(layout.root(self._environment).path,))
                bubblewrap.check(bubblewrap.Policy(program, None, limits, network=False))
            except Unavailable as problem:
                self._bubblewrap.append(problem)
            else:
                self._bubblewrap.append(None)
        return self._bubblewrap[0]

    def docker(self, image: str) -> str | Unavailable:
        """The version of Docker that has `image`, or what stands in the way."""
        if image not in self._docker:
            try:
                self._docker[image] = container.check(image)
            except Unavailable as problem:
                self._docker[image] = problem
        return self._docker[image]

    def machine(self, settings: Settings) -> Iterator[Check]:
        """What this machine has, tried with the limits and the image that the settings name."""
        try:
            found = choice(settings)
        except DeepctlError:
            # The check of that file says what is wrong with it.
            yield Check("sandbox", "warning", "not tried: the settings cannot be used", "Correct them first.")
            return
        problem = self.bubblewrap(found.limits)
        if problem is None:
            yield Check("bubblewrap", "ok", "commands run in it")
            yield _limits(found.limits)
        else:
            status: Status = "problem" if found.named == "bubblewrap" else "warning"
            yield Check("bubblewrap", status, problem.reason, problem.fix)
        docker = self.docker(found.image)
        if isinstance(docker, str):
            yield Check("docker", "ok", f"Docker {docker} has the image {found.image}")
        else:
            # Nobody needs it who has not asked for it.
            wanted = found.named == "docker"
            yield Check("docker", "problem" if wanted else "ok", f"not used: {docker.reason}", docker.fix)

    def in_force(self, settings: Settings) -> Iterator[Check]:
        """Where the commands of a profile run. Raises `DeepctlError` if its settings cannot be used."""
        named, image, limits = choice(settings)
        approve, permissions = "ask", Permissions()
        with suppress(DeepctlError):  # the check of that file says what is wrong with it
            approve = settings.get("approve") or "ask"
            permissions = settings.permissions()
        policy = CommandPolicy(named, approve, permissions=permissions)
        problem = None
        if named == "docker":
            docker = self.docker(image)
            problem = docker if isinstance(docker, Unavailable) else None
            policy = policy._replace(image=image)
        elif named != "none":
            problem = self.bubblewrap(limits)
            policy = policy._replace(sandbox="bubblewrap")
        if problem is not None and named != "auto":
            yield Check("sandbox", "problem", f"{named}: {problem.reason}", problem.fix)
            return
        if problem is not None:
            policy = policy._replace(sandbox="none", problem=problem)
        status: Status = "warning" if policy.unsandboxed else "ok"
        yield Check("sandbox", status, f"{named}: {policy.statement()}")


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
