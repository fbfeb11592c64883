"""What runs the commands of one workspace: without anything around them, through bubblewrap, or in a container."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

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


class Bare(LocalWorkspaceBackend):
    def __init__(self, root: str) -> None:
        super().__init__(root, env=_exactly(environment(os.path.join(root, HOME_DIRECTORY))))

    def close(self) -> None:
        """What was started in the background goes on; there is nothing around it that could be closed."""


def _exactly(variables: Mapping[str, str]) -> dict[str, str]:
    """With these, `LocalWorkspaceBackend` passes nothing on of this process's own."""
    return {**variables, "LC_ALL": variables["LANG"], "LC_CTYPE": variables["LANG"]}


class Bubblewrapped(BubblewrapWorkspace):
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


if not {"_sandbox", "_launch"} <= vars(BubblewrapWorkspace).keys():
    raise ImportError("this version of pydantic-ai-harness starts bubblewrap in a way that deepctl does not know")


def _group(limits: Limits) -> cgroups.Group | None:
    if os.geteuid() != 0:
        return None
    try:
        return cgroups.Group(memory=limits.memory, processes=limits.processes)
    except OSError:
        return None


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


class Contained:
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
                raise WorkspaceUnavailableError(f"{problem.reason}. {problem.fix}") from None
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
