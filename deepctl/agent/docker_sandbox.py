"""A container per user for applications: `DockerSandbox`, and `SessionManager`, which makes and removes them.

Both have the interface of pydantic-ai-backend's classes of the same names. A container is made by the first command.
It has a name of its own, so that several processes of an application can serve the same user. A container that a killed
process left has ended by itself (`deepctl.sandbox.container`). It is removed when a sandbox or a manager for the same
directory starts.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import pydantic_ai_backends
from pydantic_ai.workspaces import CommandResult, WorkspaceCommand

from deepctl.agent.backend import CommandsLocalBackend
from deepctl.agent.sandboxes import Docker, sandbox_missing
from deepctl.errors import UsageError
from deepctl.files import atomic
from deepctl.files.rmtree import remove_tree
from deepctl.layout import check_directory, check_name, folded_name
from deepctl.sandbox import container
from deepctl.sandbox.policy import Limits, Unavailable

IMAGE = "python:3.12-slim"
_WORKSPACE = "workspace"
_PREFIX = "deepctl-sandbox-"
_MOST_SECONDS_BETWEEN_CLEANUPS = 60.0
_CLEANUPS_PER_TIMEOUT = 4

_RUNNING: weakref.WeakSet[DockerSandbox] = weakref.WeakSet()
"""The sandboxes of this process that have to be stopped when it ends."""


class DockerSandbox(CommandsLocalBackend):
    """A directory as an agent's workspace, with a container for its commands.

    The directory is `/workspace` in the container; everything else in the image is read-only. File tools work in this
    process, as in a `LocalBackend`.

    Args:
        root_dir: The directory; by default a temporary one, which `stop` removes.
        image: An image on this machine, because deepctl pulls none. It needs `sh`, `timeout`, `head` and `cat`.
        session_id: A name for the application; by default the name of the container.
        idle_timeout: The seconds without use after which a `SessionManager` stops the sandbox.
        network: Whether commands have Docker's default network.
        limits: The limits of commands.
        read_only_paths: Further files and directories of this machine that commands can read.

    Raises `BadPath` or `OSError` like `LocalBackend`. `start` raises `Refused` if there is no Docker daemon, no such
    image, or no package `docker`; without `start`, the first command fails.
    """

    def __init__(
        self,
        root_dir: str | os.PathLike[str] | None = None,
        *,
        image: str = IMAGE,
        session_id: str | None = None,
        idle_timeout: int = 3600,
        network: bool = False,
        limits: Limits = Limits(),
        read_only_paths: tuple[str, ...] = (),
    ) -> None:
        self._removal: weakref.finalize[Any, Any] | None = None
        if root_dir is None:
            root_dir = tempfile.mkdtemp(prefix=_PREFIX)
            self._removal = weakref.finalize(self, remove_tree, root_dir)
        real = os.path.realpath(root_dir)
        docker = Docker(
            f"{container.container_name(real)}-{os.urandom(4).hex()}",
            image,
            network,
            limits,
            profile=real,
            read_only_paths=read_only_paths,
        )
        super().__init__(root_dir, sandbox=docker)
        self.session_id = session_id if session_id is not None else docker.container
        self.idle_timeout = idle_timeout
        self.last_activity = time.time()
        """The time of the last use, in seconds since the epoch."""
        self._docker = docker
        self._commands = 0
        self._is_started = False
        self.leftovers = os.path.join(self.root_dir, "") if self._removal is None else _temporary()
        """The beginning of the directories whose ended containers `start` removes."""

    def start(self) -> None:
        """Check the daemon and the image, and remove containers that killed processes left. It may take seconds.

        Raises `Refused`.
        """
        try:
            self._docker.check()
            container.remove_ended(self.leftovers)
        except Unavailable as problem:
            raise sandbox_missing(self._docker.name, problem) from None
        os.makedirs(self.root_dir, mode=0o700, exist_ok=True)
        self._begin()

    def _begin(self) -> None:
        self._is_started = True
        _RUNNING.add(self)
        self.touch()

    def stop(self) -> None:
        """End all commands and remove the container, and a temporary directory. It can be used again, and starts then.

        If the daemon does not answer, the container ends with this process, and is removed at the next start.
        """
        self._is_started = False
        _RUNNING.discard(self)
        self.close()
        with suppress(Unavailable):
            container.remove(self._docker.container)
        if self._removal is not None:
            remove_tree(self.root_dir)

    def is_alive(self) -> bool:
        """Whether the sandbox is started. A container that ends is made again by the next command."""
        return self._is_started

    @property
    def is_running_commands(self) -> bool:
        """Whether a command runs."""
        return self._commands > 0

    def touch(self) -> None:
        """Note that the sandbox is in use."""
        self.last_activity = time.time()

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        """Run a command in the container, and make the container if there is none."""
        os.makedirs(self.root_dir, mode=0o700, exist_ok=True)
        self._begin()
        self._commands += 1
        try:
            return await super().run(command, shell=shell, env=env, timeout=timeout)
        finally:
            self._commands -= 1
            self.touch()

    async def contains(self, path: str) -> bool:
        """Whether a path leads inside the workspace. Every access to a file asks this, so it counts as use."""
        self.touch()
        return await super().contains(path)


class SessionManager(pydantic_ai_backends.SessionManager):
    """A `DockerSandbox` per user: made on first use, stopped after a time without use.

    The first `get_or_create` starts the task that stops idle sandboxes. `shutdown`, or the end of `async with`, ends it
    and removes all containers; the end of the process does the latter, too. The files of users stay.

    Args:
        workspace_root: The directory of all users: `<workspace_root>/<user>/workspace` is the workspace of one. Without
            it, a sandbox has a temporary directory.
        image: The image of all containers, as in `DockerSandbox`.
        default_idle_timeout: The seconds without use after which a sandbox is stopped.
        max_sessions: The most sandboxes at once; `get_or_create` raises pydantic-ai-backend's `SessionLimitExceeded`.
        network: Whether commands have Docker's default network.
        limits: The limits of commands.
        read_only_paths: Further files and directories of this machine that commands can read.
        on_release: Called with the name of a user after the sandbox was stopped.

    Raises `BadPath` if a part of `workspace_root` is empty, `.` or `..`.
    """

    def __init__(
        self,
        workspace_root: str | os.PathLike[str] | None = None,
        *,
        image: str = IMAGE,
        default_idle_timeout: int = 3600,
        max_sessions: int | None = None,
        network: bool = False,
        limits: Limits = Limits(),
        read_only_paths: tuple[str, ...] = (),
        on_release: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(
            self._sandbox,
            default_idle_timeout=default_idle_timeout,
            max_sessions=max_sessions,
            on_release=on_release,
            in_use=lambda name: name in self and self._sessions[name].is_running_commands,
        )
        self._root = os.path.abspath(check_directory(workspace_root)) if workspace_root is not None else None
        self._made: weakref.WeakSet[DockerSandbox] = weakref.WeakSet()
        self._options: dict[str, Any] = {
            "image": image,
            "idle_timeout": default_idle_timeout,
            "network": network,
            "limits": limits,
            "read_only_paths": read_only_paths,
        }
        self._has_swept = False

    def _sandbox(self, name: str) -> DockerSandbox:
        directory = None
        if self._root is not None:
            atomic.make_root(os.path.join(self._root, name))
            directory = os.path.join(self._root, name, _WORKSPACE)
        sandbox = DockerSandbox(directory, session_id=name, **self._options)
        if self._root is not None and not self._has_swept:
            sandbox.leftovers, self._has_swept = os.path.join(os.path.realpath(self._root), ""), True
        self._made.add(sandbox)
        return sandbox

    async def get_or_create(self, session_id: str, runtime: object = None) -> DockerSandbox:
        """The sandbox of a user, started.

        Raises `BadName` for a name that cannot be the name of a directory, before anything is created, and `Refused`
        like `DockerSandbox.start`. `Alice` and `alice` are the same user.
        """
        name = _name(session_id)
        if runtime is not None:
            raise UsageError("Runtimes of pydantic-ai-backend are not supported.", "Use SessionManager(image=…).")
        self._watch()
        sandbox: DockerSandbox = await super().get_or_create(name)
        return sandbox

    def _watch(self) -> None:
        """Start the cleanup in this event loop."""
        task = self._cleanup_task
        if task is not None and (task.done() or task.get_loop() is not asyncio.get_running_loop()):
            self._cleanup_task = task = None
        if task is None:
            seconds = min(_MOST_SECONDS_BETWEEN_CLEANUPS, self._default_idle_timeout / _CLEANUPS_PER_TIMEOUT)
            self.start_cleanup_loop(seconds)  # type: ignore[arg-type]

    async def release(self, session_id: str) -> bool:
        """Stop the sandbox of a user, and remove its container. Returns whether there was one."""
        return await super().release(_name(session_id))

    async def cleanup_idle(self, max_idle: int | None = None) -> int:
        """Stop the sandboxes that were not used for a time; returns their number."""
        count = await super().cleanup_idle(max_idle)
        # One that was stopped starts again if a run still uses it.
        current = {id(sandbox) for sandbox in self._sessions.values()}
        for sandbox in [sandbox for sandbox in self._made if id(sandbox) not in current and sandbox.is_alive()]:
            limit = max_idle if max_idle is not None else sandbox.idle_timeout
            if not sandbox.is_running_commands and time.time() - sandbox.last_activity > limit:
                await self._lifecycle(sandbox.stop)
                count += 1
        return count

    async def shutdown(self) -> int:
        """Stop all sandboxes and the cleanup; returns the number of users that had one."""
        count = await super().shutdown()
        for sandbox in [sandbox for sandbox in self._made if sandbox.is_alive()]:
            await self._lifecycle(sandbox.stop)
        return count

    def __contains__(self, session_id: str) -> bool:
        return super().__contains__(folded_name(session_id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()


def _name(user: str) -> str:
    return folded_name(check_name(user, "user"))


def _temporary() -> str:
    return os.path.join(os.path.realpath(tempfile.gettempdir()), _PREFIX)


@atexit.register
def _stop_all() -> None:
    for sandbox in list(_RUNNING):
        sandbox.stop()
