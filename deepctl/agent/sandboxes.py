"""Where a workspace's commands run: on this machine as they are, in bubblewrap, or in a container.

A sandbox is a value; `commands` makes of it what runs the commands of one workspace. Only commands go there: file tools
and deepctl's own stores work in this process, confined by `deepctl.files.beneath`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import anyio.to_thread
from pydantic_ai.workspaces import (
    CommandResult,
    LocalWorkspaceBackend,
    Workspace,
    WorkspaceCommand,
    WorkspaceUnavailableError,
)
from pydantic_ai_backends import DockerSandbox
from pydantic_ai_backends.workspaces import DockerWorkspaceBackend
from pydantic_ai_harness.bubblewrap_sandbox import BubblewrapWorkspace

from deepctl.errors import Refused
from deepctl.sandbox import bubblewrap, cgroups, containers
from deepctl.sandbox.policy import HOME_DIRECTORY, MOUNT, Limits, Unavailable, environment

_GROUPS: ContextVar[tuple[str, ...]] = ContextVar("deepctl_groups", default=())
"""The control groups of the command that is being started, between two methods of the harness' workspace."""


class Runner(Protocol):
    """Runs the commands of one workspace."""

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult: ...

    def close(self) -> None:
        """End what is still running there. It can be used again."""


class Sandbox(Protocol):
    """A place for commands."""

    name: ClassVar[str]
    confined: ClassVar[bool]
    """Whether the rest of this machine is out of reach there, so that nobody needs to be asked."""

    @property
    def limits(self) -> Limits: ...

    def check(self) -> None:
        """Try it for real. Raises `Unavailable`."""

    def commands(self, root: str) -> Runner:
        """What runs the commands of the workspace at `root`. Raises `Unavailable`."""
        ...


@dataclass(frozen=True)
class NoSandbox:
    """Nothing around commands: they may do whatever this process may. Of the limits, time and disk are held."""

    limits: Limits = Limits()
    name: ClassVar[str] = "none"
    confined: ClassVar[bool] = False

    def check(self) -> None:
        """There is nothing to try."""

    def commands(self, root: str) -> Runner:
        return _Bare(root)


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
        return bubblewrap.Policy(program, root, self.limits, self.network)

    def check(self) -> None:
        bubblewrap.check(self._policy(None))

    def commands(self, root: str) -> Runner:
        return _Bubblewrapped(self._policy(root))


@dataclass(frozen=True)
class Docker:
    """One container, called `container`, for all commands of a workspace; kept for later when a chat has ended.

    The workspace is mounted in it, everything else of the image can only be read. Needs the extra `deepctl[docker]`,
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

    def commands(self, root: str) -> Runner:
        return _Contained(
            containers.Spec(
                self.container,
                self.image,
                root,
                self.network,
                self.limits.memory,
                self.limits.processes,
                self.limits.tmp,
                self.profile,
            )
        )


class _Bare(LocalWorkspaceBackend):
    def __init__(self, root: str) -> None:
        super().__init__(root, env=_exactly(environment(os.path.join(root, HOME_DIRECTORY))))

    def close(self) -> None:
        """What was started in the background goes on; there is nothing around it that could be closed."""


def _exactly(variables: Mapping[str, str]) -> dict[str, str]:
    """With these, `LocalWorkspaceBackend` passes nothing on of this process's own."""
    return {**variables, "LC_ALL": variables["LANG"], "LC_CTYPE": variables["LANG"]}


class _Bubblewrapped(BubblewrapWorkspace):
    """The harness' workspace with a sandbox of ours: what can be seen is listed, and nothing stands between us and it.

    Its `run` is what is used: how a command is given, and how a sandbox that cannot be started is told from a command
    that failed. Its launcher keeps a shell above `bwrap`, which then outlives a killed deepctl, and finds `bwrap` in
    `$PATH`; its sandbox shows the whole machine but for what is hidden.
    """

    def __init__(self, policy: bubblewrap.Policy) -> None:
        assert policy.workspace is not None
        super().__init__(Workspace(LocalWorkspaceBackend(policy.workspace, env=_exactly(environment("/")))))
        self._policy = policy

    async def _sandbox(self) -> list[str]:
        return []

    def _launch(self, bwrap: list[str], *, working_dir: str) -> list[str]:
        # `run` gives the variables of the call, `--` and the command.
        split = bwrap.index("--")
        return self._policy.command(bwrap[split + 1 :], groups=_GROUPS.get(), variables=bwrap[:split])

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        group = _group(self._policy.limits)
        token = _GROUPS.set(tuple(group.directories) if group is not None else ())
        try:
            return await super().run(command, shell=shell, env=env, timeout=timeout)
        finally:
            _GROUPS.reset(token)
            if group is not None:
                group.close()

    def close(self) -> None:
        """Every sandbox has ended with its command."""


_ALONE = """"$@"
code=$?
main=
for process in /proc/[0-9]*; do
    id=${process#/proc/}
    if [ "$id" -gt 1 ] && { [ -z "$main" ] || [ "$id" -lt "$main" ]; }; then main=$id; fi
done
for process in /proc/[0-9]*; do
    id=${process#/proc/}
    case $id in 1|"$main"|$$|"$PPID") ;; *) kill -9 "$id" 2>/dev/null ;; esac
done
exit $code
"""
"""Runs a command in a container, and ends what it leaves running: as in bubblewrap, where the kernel does.

A process that evades this stays in the container, and ends with the turn. What is spared: the container's init, its
main process (the oldest behind that), this shell and the one that started it.
"""


class _Contained:
    """A container that is opened by the first command."""

    def __init__(self, spec: containers.Spec) -> None:
        self._spec = spec
        self._held: containers.Held | None = None

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        if self._held is None:
            try:
                self._held = await anyio.to_thread.run_sync(containers.open_container, self._spec)
            except Unavailable as problem:
                raise WorkspaceUnavailableError(f"{problem.reason} {problem.fix}") from None
            self._backend = self._attached()
        finished = False
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        try:
            result = await self._backend.run(["/bin/sh", "-c", _ALONE, "sh", *argv], env=env, timeout=timeout)
            finished = True
        except WorkspaceUnavailableError:
            # Whoever ended the container: the next command may have another.
            self.close()
            raise
        finally:
            if not finished and self._held is not None:
                # The backend stops the command's process group; a child in a session of its own is not in it, and where
                # no process can be added any more, neither can the one that would stop the others.
                self._held.kill_all()
        return result

    def _attached(self) -> DockerWorkspaceBackend:
        # Never to make a container of its own: that would be on the network, with root's capabilities.
        return DockerWorkspaceBackend(
            sandbox_factory=lambda name: DockerSandbox(
                image=self._spec.image, container_name=name, work_dir=MOUNT, reattach_only=True
            ),
            container_name=self._spec.name,
        )

    def close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.close()


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


if not {"_sandbox", "_launch"} <= vars(BubblewrapWorkspace).keys():
    raise ImportError("this version of pydantic-ai-harness starts bubblewrap in a way that deepctl does not know")


def _group(limits: Limits) -> cgroups.Group | None:
    if os.geteuid() != 0:
        return None
    try:
        return cgroups.Group(memory=limits.memory, processes=limits.processes)
    except OSError:
        return None
