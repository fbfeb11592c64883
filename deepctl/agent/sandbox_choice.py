"""Where a workspace's commands run: on this machine as they are, in bubblewrap, or in a container.

A sandbox is a value; `commands` makes of it what runs the commands of one workspace. Only commands go there: file tools
and deepctl's own stores work in this process, confined by `deepctl.files.paths_beneath`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from deepctl.agent.executors import BubblewrapExecutor, ContainerExecutor, DirectExecutor, Executor
from deepctl.errors import Refused
from deepctl.files.private_home import PrivateHome
from deepctl.sandbox import bubblewrap
from deepctl.sandbox import container as containers
from deepctl.sandbox.policy import Limits, Unavailable


class Sandbox(Protocol):
    """A place for commands."""

    name: ClassVar[str]
    confined: ClassVar[bool]
    """Whether the rest of this machine is out of reach there, so that nobody needs to be asked."""

    @property
    def limits(self) -> Limits: ...

    def check(self) -> None:
        """Try it for real. Raises `Unavailable`."""

    def commands(self, root: str) -> Executor:
        """What runs the commands of the workspace at `root`. Raises `Unavailable`."""
        ...


@dataclass(frozen=True)
class NoSandbox:
    """Nothing around commands: they may do whatever this process may. Of the limits, time and disk are held.

    `home` is a directory that becomes their `HOME`, emptied before; without it, it is a temporary one.
    """

    limits: Limits = Limits()
    home: str | None = None
    name: ClassVar[str] = "none"
    confined: ClassVar[bool] = False

    def check(self) -> None:
        """There is nothing to try."""

    def commands(self, root: str) -> Executor:
        return DirectExecutor(root, PrivateHome(self.home))


@dataclass(frozen=True)
class Bubblewrap:
    """A bubblewrap sandbox for every command; what runs there sees the workspace and the system's programs only.

    With `network`, commands reach whatever this machine reaches, services on its own loopback included.
    """

    network: bool = False
    limits: Limits = Limits()
    variables: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """Where `$DEEPCTL_BWRAP` is looked up. None of them reach a command."""
    outside: tuple[str, ...] = ()
    """Directories below which agents write, and no `bwrap` is taken from. The workspace always is one."""
    name: ClassVar[str] = "bubblewrap"
    confined: ClassVar[bool] = True

    def _policy(self, root: str | None) -> bubblewrap.Policy:
        program = bubblewrap.find(self.variables, outside=(*self.outside, *([root] if root is not None else [])))
        home = self.variables.get("HOME")
        hidden = (*self.outside, *([home] if home else []))
        return bubblewrap.Policy(program, root, self.limits, self.network, hidden)

    def check(self) -> None:
        bubblewrap.check(self._policy(None))

    def commands(self, root: str) -> Executor:
        return BubblewrapExecutor(self._policy(root))


@dataclass(frozen=True)
class Docker:
    """One container, called `container`, for all commands of a workspace; kept for later when a chat has ended.

    The workspace is mounted in it, everything else of the image can only be read. Needs the extra `docker`,
    and an image that is there: none is pulled. What commands leave running ends with the turn.
    """

    container: str
    image: str = "python:3.12-slim"
    network: bool = False
    limits: Limits = Limits()
    profile: str = ""
    name: ClassVar[str] = "docker"
    confined: ClassVar[bool] = True

    def check(self) -> None:
        containers.check(self.image)

    def commands(self, root: str) -> Executor:
        return ContainerExecutor(
            containers.Spec(
                self.container,
                self.image,
                root,
                self.network,
                self.limits.memory,
                self.limits.processes,
                self.limits.disk,
                self.limits.tmp,
                self.profile,
            )
        )


class Choice(NamedTuple):
    """Where a chat's commands run: nowhere if `sandbox` is `None`. `problem` says why not in bubblewrap."""

    sandbox: Sandbox | None
    problem: Unavailable | None = None


def refused(name: str, problem: Unavailable) -> Refused:
    """The error of a sandbox that was asked for and is not there."""
    return Refused(f"The {name} sandbox cannot be used: {problem.reason}.", problem.fix, code="sandbox_unavailable")


def choose(name: str, offered: Mapping[str, Sandbox], *, can_ask: bool) -> Choice:
    """The sandbox called `name` of those offered, tried for real. Raises `Refused` if it is not there.

    `auto` is bubblewrap. Where that does not work, nobody decides to do without but a person: commands run on this
    machine as it is if `can_ask`, when each will be asked about, and not at all if not.
    """
    if name != "auto":
        try:
            offered[name].check()
        except Unavailable as problem:
            raise refused(name, problem) from None
        return Choice(offered[name])
    try:
        offered["bubblewrap"].check()
    except Unavailable as problem:
        return Choice(offered["none"] if can_ask else None, problem)
    return Choice(offered["bubblewrap"])
