"""The sandboxes for a workspace's commands: none (unsandboxed), bubblewrap, or a container.

A sandbox is a value; its method `commands` returns the executor for the commands of one workspace. Only commands run in
a sandbox: file tools and deepctl's own stores work in this process, confined by `deepctl.files.paths_beneath`.

pydantic-ai returns the output of a command only at its end. `heard_by` passes the output on while the command runs, in
the context of the caller. The result of commands, and the limit of their output, are the same.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, NamedTuple, Protocol, SupportsIndex

import anyio.abc
import anyio.to_thread
from pydantic_ai.workspaces import (
    CommandResult,
    LocalWorkspaceBackend,
    Workspace,
    WorkspaceCommand,
    WorkspaceOutputLimitError,
    WorkspaceTimeoutError,
    WorkspaceUnavailableError,
)
from pydantic_ai_harness.bubblewrap_sandbox import BubblewrapWorkspace

from deepctl.agent.tasks import in_worker
from deepctl.errors import Refused
from deepctl.files.git import identity
from deepctl.files.rmtree import PrivateHome
from deepctl.sandbox import bubblewrap, cgroups, container, read_only
from deepctl.sandbox import project as projects
from deepctl.sandbox.policy import COMMAND_PATH, MOUNT, OUTPUT_BYTES, VARIABLES, Limits, ProjectMounts, Unavailable
from deepctl.sandbox.project import ProjectLayout
from deepctl.sandbox.read_only import Bind

Hear = Callable[[bytes, bytes], None]
"""Receives new output, of stdout and of stderr, in the event loop of the command. Must not raise."""

_LISTENER: ContextVar[Hear | None] = ContextVar("deepctl_listener", default=None)


@contextmanager
def heard_by(hear: Hear) -> Iterator[None]:
    """Inside this context, `hear` receives the output of commands while they run."""
    token = _LISTENER.set(hear)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Hear | None:
    """The receiver of the output of commands in this context, if there is one."""
    return _LISTENER.get()


class StreamingBackend(LocalWorkspaceBackend):
    """Commands of this machine whose output `heard_by` can pass on."""

    async def _wait_and_collect_output(
        self,
        process: anyio.abc.Process,
        stdout_buffer: bytearray,
        stderr_buffer: bytearray,
        absolute_deadline: float | None,
    ) -> int:
        hear = listener()
        if hear is None:
            return await super()._wait_and_collect_output(process, stdout_buffer, stderr_buffer, absolute_deadline)
        out = _ObservedBytes(lambda chunk: hear(chunk, b""))
        err = _ObservedBytes(lambda chunk: hear(b"", chunk))
        try:
            return await super()._wait_and_collect_output(process, out, err, absolute_deadline)
        finally:
            stdout_buffer += out
            stderr_buffer += err


if "_wait_and_collect_output" not in vars(LocalWorkspaceBackend):
    raise ImportError("deepctl does not support how this version of pydantic-ai collects the output of commands")


class _ObservedBytes(bytearray):
    """Bytes that report every addition."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        super().__init__()
        self._tell = tell

    def extend(self, data: Iterable[SupportsIndex], /) -> None:
        before = len(self)
        super().extend(data)
        self._tell(bytes(self[before:]))


class _CommandStart(NamedTuple):
    """The pipe, the control groups and the mounts of the command that is about to start."""

    alive: int
    groups: tuple[str, ...]
    layout: ProjectLayout | None


_STARTED: ContextVar[_CommandStart] = ContextVar("deepctl_started")
"""Passes the start of a command from one method of the harness' workspace to another."""


_NO_HOME = "/nonexistent"


class Executor(Protocol):
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
        """End the running commands. The executor can be used again."""


class DirectExecutor(StreamingBackend):
    """Unsandboxed commands, with a home to which no sandboxed command has written."""

    def __init__(self, root: str, home: PrivateHome, variables: Mapping[str, str]) -> None:
        super().__init__(root, env={**_unsandboxed(_NO_HOME), **variables})
        self._home = home

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        home = await in_worker(self._home.path)
        return await super().run(command, shell=shell, env={"HOME": home, **(env or {})}, timeout=timeout)

    def close(self) -> None:
        """Remove the home of the commands. Background processes continue, because there is no sandbox to end them."""
        self._home.close()


def searcher(root: str) -> StreamingBackend:
    """The backend that runs the searches of file tools."""
    return StreamingBackend(root, env=_unsandboxed(_NO_HOME))


def _unsandboxed(home: str) -> dict[str, str]:
    """The variables of an unsandboxed process. pydantic-ai's `LocalWorkspaceBackend` adds none of deepctl's own."""
    return {**VARIABLES, "HOME": home, "LC_ALL": VARIABLES["LANG"], "LC_CTYPE": VARIABLES["LANG"]}


class BubblewrapExecutor(BubblewrapWorkspace):
    """The harness' workspace with deepctl's sandbox: visible paths are listed, and deepctl is the parent of `bwrap`.

    Only the harness' `run` is used: it passes the command, and distinguishes a sandbox that cannot start from a failed
    command. Its launcher is not used: it keeps a shell between deepctl and `bwrap`, so `bwrap` outlives a killed
    deepctl, and it looks for `bwrap` in `$PATH`. Its sandbox shows the whole machine except for hidden paths.
    """

    def __init__(self, policy: bubblewrap.Policy, project: ProjectMounts | None = None) -> None:
        assert policy.workspace is not None
        super().__init__(Workspace(StreamingBackend(policy.workspace, env=_unsandboxed("/"))))
        self._policy = policy
        self._project = project

    async def _sandbox(self) -> list[str]:
        return []

    def _launch(self, bwrap: list[str], *, working_dir: str) -> list[str]:
        # `run` passes the variables of the call as `--setenv NAME VALUE`, then `--` and the command.
        split = 0
        while bwrap[split] == "--setenv":
            split += 3
        launch = _STARTED.get()
        argv, variables = bwrap[split + 1 :], bwrap[:split]
        return self._policy.command(argv, launch.alive, groups=launch.groups, variables=variables, layout=launch.layout)

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        mounted = projects.mounted(self._project) if self._project is not None else nullcontext()
        with bubblewrap.pipe() as read_end, _grouped(self._policy.limits) as groups, mounted as layout:
            token = _STARTED.set(_CommandStart(read_end, groups, layout))
            try:
                return await super().run(command, shell=shell, env=env, timeout=timeout)
            finally:
                _STARTED.reset(token)

    def close(self) -> None:
        """Every sandbox has ended with its command."""


if not {"_sandbox", "_launch"} <= vars(BubblewrapWorkspace).keys():
    raise ImportError("deepctl does not support how this version of pydantic-ai-harness starts bubblewrap")


@contextmanager
def _grouped(limits: Limits) -> Iterator[tuple[str, ...]]:
    """The control groups of a command; none if the system does not allow them."""
    if os.geteuid() != 0:
        yield ()
        return
    try:
        group = cgroups.ControlGroup(memory=limits.memory, processes=limits.processes)
    except OSError:
        yield ()  # `doctor` reports it
        return
    try:
        yield tuple(group.directories)
    finally:
        group.close()


_ALONE = """"$@"
code=$?
for process in /proc/[0-9]*; do
    id=${process#/proc/}
    case $id in 1|$$) ;; *) kill -9 "$id" 2>/dev/null ;; esac
done
exit $code
"""
"""Runs a command in a container, and ends the processes that it leaves running. In bubblewrap, the kernel ends them.

A process that evades this stays in the container, and ends with the turn. The container's own processes belong to
another user.
"""
_PARTIAL = 64 << 10


class ContainerExecutor:
    """Runs commands in a container, which the first command opens.

    In a project, the mounts depend on its files. If these have changed, the next command opens another container.
    """

    def __init__(
        self,
        spec: container.Spec,
        variables: Mapping[str, str],
        read_only_binds: tuple[Bind, ...] = (),
        project: ProjectMounts | None = None,
    ) -> None:
        self._spec = spec
        self._variables = variables
        self._read_only = read_only_binds
        self._project = project
        self._held: container.RunningContainer | None = None
        self._mounted = ExitStack()
        """Keeps the placeholders of the project while the container is open."""
        self._made_for: object = None

    def _open(self) -> container.RunningContainer:
        """The container, after opening it again if the project needs other mounts. Runs in a thread."""
        now = projects.layout(self._project) if self._project is not None else None
        made_for = (now, projects.file_identities(now)) if now is not None else None
        if self._held is not None and made_for != self._made_for:
            self.close()
        if self._held is None:
            spec = self._spec
            if self._project is not None:
                now = self._mounted.enter_context(projects.mounted(self._project))
                spec = spec._replace(binds=(*self._read_only, *projects.doubled(now)), start=now.root)
            elif self._read_only:
                spec = spec._replace(binds=(*self._read_only, Bind(spec.workspace, MOUNT)))
            self._held = container.open_container(spec)
            self._made_for = made_for
        return self._held

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        output = _CapturedOutput(_in_this_loop(listener()))
        code: int | None = None
        try:
            lease = await anyio.to_thread.run_sync(self._open, limiter=_own_thread())
            with anyio.move_on_after(timeout) as deadline:
                code = await anyio.to_thread.run_sync(
                    lease.execute,
                    ["/bin/sh", "-c", _ALONE, "sh", *argv],
                    {**VARIABLES, **self._variables, **(env or {})},
                    output.add,
                    abandon_on_cancel=True,
                    limiter=_own_thread(),
                )
        except Unavailable as problem:
            # Another process may have ended the container; the next command may have another one.
            self.close()
            raise WorkspaceUnavailableError(f"{problem.reason}. {problem.fix}") from None
        finally:
            if code is None:
                self._kill_all()
        stdout, stderr = output.text(None if code is not None else _PARTIAL)
        if deadline.cancelled_caught:
            message = f"the command took longer than {timeout:g} s and was ended"
            raise WorkspaceTimeoutError(message, stdout=stdout, stderr=stderr)
        if output.is_full:
            message = f"the command printed more than {OUTPUT_BYTES} bytes and was ended"
            raise WorkspaceOutputLimitError(message, limit=OUTPUT_BYTES, stdout=stdout, stderr=stderr)
        if code is None:
            raise WorkspaceUnavailableError("the container ended while the command was running")
        return CommandResult(exit_code=code, stdout=stdout, stderr=stderr)

    def _kill_all(self) -> None:
        try:
            if self._held is not None:
                self._held.kill_all()
        except Unavailable:
            self.close()

    def close(self) -> None:
        container_held, self._held = self._held, None
        if container_held is not None:
            with suppress(Unavailable):  # the daemon has ended, and no other process can end the commands there
                container_held.close()
        self._mounted.close()


def _own_thread() -> anyio.CapacityLimiter:
    """A thread for work as long as a command, outside of the threads that all users of an application share."""
    return anyio.CapacityLimiter(1)


def _in_this_loop(hear: Hear | None) -> Hear | None:
    """`hear` in a form that another thread can call."""
    if hear is None:
        return None
    loop = asyncio.get_running_loop()

    def told(out: bytes, err: bytes) -> None:
        loop.call_soon_threadsafe(hear, out, err)

    return told


class _CapturedOutput:
    """The output of a command. A thread fills it; it is read after the thread has ended or has been abandoned."""

    def __init__(self, hear: Hear | None) -> None:
        self._hear = hear
        self._streams = (bytearray(), bytearray())

    @property
    def is_full(self) -> bool:
        return sum(map(len, self._streams)) > OUTPUT_BYTES

    def add(self, out: bytes, err: bytes) -> bool:
        self._streams[0].extend(out)
        self._streams[1].extend(err)
        if self._hear is not None:
            self._hear(out, err)
        return not self.is_full

    def text(self, most: int | None) -> tuple[str, str]:
        out, err = (bytes(stream[:most]).decode("utf-8", "replace") for stream in self._streams)
        return out, err


def _variables(paths: tuple[str, ...], project: ProjectMounts | None, *, is_mounted: bool = True) -> dict[str, str]:
    """The variables for read-only paths and of a project. `is_mounted` is whether its mounts exist: in a sandbox."""
    variables = read_only.variables(paths) if paths else {}
    if project is None:
        return variables
    return {**variables, **(projects.variables(project) if is_mounted else {}), **identity(project.root)}


def _binds(paths: tuple[str, ...], root: str | None, project: ProjectMounts | None) -> tuple[Bind, ...]:
    """The mounts of read-only paths, without those that commands see and can replace by links."""
    if not paths:
        return ()
    writable = [path for path in (root, project.workspace if project is not None else None) if path is not None]
    return read_only.binds(paths, writable)


class Sandbox(Protocol):
    """A place where commands run."""

    name: ClassVar[str]
    confined: ClassVar[bool]
    """Whether commands cannot reach the rest of this machine, so that they need no approval."""

    @property
    def limits(self) -> Limits: ...

    def check(self) -> None:
        """Run a test in the sandbox. Raises `Unavailable`."""

    def commands(
        self, root: str, project: ProjectMounts | None = None, read_only_binds: tuple[Bind, ...] = ()
    ) -> Executor:
        """The executor for the commands of the workspace at `root`, or of a project, whose path `root` is then.

        `read_only_binds` are further mounts that commands cannot change; unsandboxed commands have none.

        Raises `Unavailable`.
        """
        ...


@dataclass(frozen=True)
class NoSandbox:
    """Unsandboxed commands: they have the rights of this process. Only the limits of time and disk apply.

    `home` is a directory that is emptied and becomes their `HOME`; without it, `HOME` is a temporary directory.
    """

    limits: Limits = Limits()
    home: str | None = None
    read_only_paths: tuple[str, ...] = ()
    """Directories of programs that are on `PATH` behind those of the system."""
    name: ClassVar[str] = "none"
    confined: ClassVar[bool] = False

    def check(self) -> None:
        """Without a sandbox, there is nothing to test."""

    def commands(
        self, root: str, project: ProjectMounts | None = None, read_only_binds: tuple[Bind, ...] = ()
    ) -> Executor:
        variables = _variables(self.read_only_paths, project, is_mounted=False)
        if project is not None and (cache := projects.unsandboxed_cache(project)) is not None:
            variables |= projects.cache_variables(cache)
        return DirectExecutor(root, PrivateHome(self.home), variables)


@dataclass(frozen=True)
class Bubblewrap:
    """A bubblewrap sandbox for every command; commands see only the workspace and the system's programs.

    With `network`, commands have the network of this machine, including services on its loopback address.
    """

    network: bool = False
    limits: Limits = Limits()
    variables: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    """The variables that may contain `$DEEPCTL_BWRAP`. Commands receive none of them."""
    outside: tuple[str, ...] = ()
    """Directories to which agents write, so that no `bwrap` below them is used. The workspace is always one of them."""
    read_only_paths: tuple[str, ...] = ()
    """Further files and directories that commands can read. Their programs are on `PATH` behind those of the system."""
    name: ClassVar[str] = "bubblewrap"
    confined: ClassVar[bool] = True

    def _policy(
        self, root: str | None, project: ProjectMounts | None = None, read_only_binds: tuple[Bind, ...] = ()
    ) -> bubblewrap.Policy:
        program = bubblewrap.find(
            self.variables, excluded_directories=(*self.outside, *([root] if root is not None else []))
        )
        if project is not None:
            projects.prepare(project)
        home = self.variables.get("HOME")
        hidden_directories = (*self.outside, *([home] if home else []))
        return bubblewrap.Policy(
            program,
            root,
            self.limits,
            self.network,
            hidden_directories,
            (*_binds(self.read_only_paths, root, project), *read_only_binds),
            _variables(self.read_only_paths, project),
        )

    def check(self) -> None:
        bubblewrap.check(self._policy(None))

    def commands(
        self, root: str, project: ProjectMounts | None = None, read_only_binds: tuple[Bind, ...] = ()
    ) -> Executor:
        return BubblewrapExecutor(self._policy(root, project, read_only_binds), project)


@dataclass(frozen=True)
class Docker:
    """One container, called `container`, for all commands of a workspace; it is kept after the end of a chat. Each
    project has another one.

    The workspace is mounted in it; everything else in the image is read-only. It needs the extra `docker` and an image
    on this machine, because deepctl pulls none. Processes that commands leave running end with the turn.
    """

    container: str
    image: str = "python:3.12-slim"
    network: bool = False
    limits: Limits = Limits()
    profile: str = ""
    read_only_paths: tuple[str, ...] = ()
    """Further files and directories of this machine that commands can read, as in `Bubblewrap`."""
    name: ClassVar[str] = "docker"
    confined: ClassVar[bool] = True

    def check(self) -> None:
        container.check(self.image)

    def commands(
        self, root: str, project: ProjectMounts | None = None, read_only_binds: tuple[Bind, ...] = ()
    ) -> Executor:
        if project is not None:
            projects.prepare(project)
        return ContainerExecutor(
            container.Spec(
                container.project_name(self.container, root) if project is not None else self.container,
                self.image,
                root,
                self.network,
                self.limits.memory,
                self.limits.processes,
                self.limits.disk,
                self.limits.tmp,
                self.profile,
            ),
            _variables(self.read_only_paths, project),
            (*_binds(self.read_only_paths, root, project), *read_only_binds),
            project,
        )


def system_of(sandbox: Sandbox) -> str:
    """The operating system and the shell of a sandbox's commands, for the model."""
    if isinstance(sandbox, Docker):
        return f"Linux in a container of {sandbox.image}, with bash if it is there, else sh"
    return f"{_this_system()}, with {'bash' if shutil.which('bash', path=COMMAND_PATH) else 'sh'}"


@cache
def _this_system() -> str:
    """The operating system of this machine: bubblewrap shows its programs, and unsandboxed commands use them."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.platform(aliased=True, terse=True)  # macOS
    return f"{name}, {platform.machine()}"


_SHELL = 'command -v bash >/dev/null && exec bash --norc --noprofile -c "$1"; exec sh -c "$1"'


def shell_command(text: str) -> list[str]:
    """The words that run a command of the model, in the shell that `system_of` names."""
    return ["/bin/sh", "-c", _SHELL, "sh", text]


class SandboxChoice(NamedTuple):
    """The sandbox of a chat; with `None`, it has no commands. `problem` is the reason why it is not bubblewrap."""

    sandbox: Sandbox | None
    problem: Unavailable | None = None


def sandbox_missing(name: str, problem: Unavailable) -> Refused:
    """The error for a requested sandbox that is not available."""
    return Refused(f"The {name} sandbox cannot be used: {problem.reason}.", problem.fix, code="sandbox_unavailable")


_WORKING: set[object] = set()
"""The keys of sandboxes that have passed a test in this process."""


def choose(name: str, sandboxes: Mapping[str, Sandbox], *, can_ask: bool, key: object | None = None) -> SandboxChoice:
    """The sandbox called `name` among `sandboxes`, after a test. Raises `Refused` if it is not available.

    With a `key`, a sandbox of the same key that has passed a test in this process is not tested again.

    `auto` is bubblewrap. If bubblewrap does not work, only a person may allow commands without it: with `can_ask`,
    commands run unsandboxed, and each needs approval; otherwise there are no commands.
    """
    sandbox = sandboxes["bubblewrap" if name == "auto" else name]
    if key is None or (sandbox.name, key) not in _WORKING:
        try:
            sandbox.check()
        except Unavailable as problem:
            if name != "auto":
                raise sandbox_missing(name, problem) from None
            return SandboxChoice(sandboxes["none"] if can_ask else None, problem)
        if key is not None:
            _WORKING.add((sandbox.name, key))
    return SandboxChoice(sandbox)
