"""`LocalBackend`: a directory in which an agent works.

`LocalBackend` was removed from pydantic-ai-backend in 0.2.30. This one has the same interface (`root_dir`, file tools
confined to it). It uses pydantic-ai's `LocalWorkspaceBackend` for commands, `deepctl.files.paths_beneath` for files,
and `ConfinedWorkspace` around both, so that the console tools report an escape as a refusal.

In a project, there are two directories: the user's, in which the agent works, and the workspace of the profile, which
it sees as `/profile`. deepctl's own stores are in the workspace of the profile in both cases.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import posixpath
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import anyio
from pydantic_ai.exceptions import UserError
from pydantic_ai.workspaces import (
    CommandResult,
    FileEntry,
    SupportsCommands,
    SupportsFilesystem,
    SupportsRealpath,
    Workspace,
    WorkspaceBackend,
    WorkspaceCommand,
    WorkspaceError,
    WorkspaceRef,
    WorkspaceUnavailableError,
)
from pydantic_ai_backends import ConfinedWorkspace, StateBackend, WorkspacePathError
from pydantic_ai_backends.workspaces import StateWorkspaceBackend

from deepctl import layout
from deepctl.agent.sandboxes import Sandbox, listener, sandbox_missing, searcher, shell_command
from deepctl.agent.tasks import in_worker
from deepctl.agent.work_events import CHANGE_LISTENER, FileContent, bounded, present_content
from deepctl.domain import skills
from deepctl.domain.projects import WHOLE_PROJECT, SearchScope, search_scope
from deepctl.domain.skills import MountedSkill, Skill
from deepctl.files import atomic
from deepctl.files.paths_beneath import DirectoryTree, MountTable, OutsideTree
from deepctl.layout import ProfilePaths
from deepctl.sandbox.policy import MOUNT, PROFILE_MOUNT, PROTECTED, SKILLS_MOUNT, ProjectMounts, Unavailable
from deepctl.sandbox.project import CommandGuard, has_alias
from deepctl.sandbox.read_only import Bind
from deepctl.store import projects

STATE_PROVIDER = "state"
"""pydantic-ai-backend's name for workspaces that are a `StateBackend`."""

T = TypeVar("T")

BeforeChange = Callable[[str, str], Awaitable[None]]
"""Receives a directory and the path in it of a file that is about to change, both without links."""

_SEARCH = 'ulimit -t 130; ulimit -v "$1"; cd -P "$2" || exit 2; shift 2; exec "$@"'
_SEARCH_MEMORY = 2 << 30
_SEARCH_SECONDS = 120.0
_WATCH_SECONDS = 0.2
_INODE = 4096


class DirectoryBackend(WorkspaceBackend, SupportsFilesystem, SupportsRealpath):
    """The files below one or two directories, as a workspace without commands.

    With links that are not followed, any link is refused: deepctl's own stores see a workspace like this.
    """

    before_change: BeforeChange | None = None

    def __init__(self, trees: MountTable) -> None:
        self._trees = trees
        self._root = trees.first.root

    async def _announce(self, path: str, *, follow: bool = True) -> None:
        """Tell that the file `path` is about to change. Without `follow`, it may itself be a link."""
        tree = self._trees.tree_of(path)
        with self._hiding():
            tree.check_writable(path)
        if self.before_change is None:
            return
        with self._hiding():
            directory, name = os.path.split(path)
            real = tree.real_path(path) if follow else os.path.join(tree.real_path(directory), name)
        if tree.prefix_of(real) is not None:  # otherwise the operation itself refuses the path
            await self.before_change(tree.root, os.path.relpath(real, tree.mount))

    @property
    def ref(self) -> WorkspaceRef:
        # It is in the message history, so it must not be a path: a moved root stays the same workspace.
        return WorkspaceRef(provider="deepctl", id="workspace")

    async def working_dir(self) -> str:
        return self._trees.first.mount

    async def _call(self, operation: Callable[[], T]) -> T:
        with self._hiding():
            return await in_worker(operation)

    @contextlib.contextmanager
    def _hiding(self) -> Iterator[None]:
        """Errors do not contain the path of the workspace on this machine, because console tools pass them to the
        model.
        """
        try:
            yield
        except OutsideTree as error:
            raise WorkspacePathError(f"{error.filename!r} is refused: {error.strerror}") from None
        except (OSError, WorkspaceError) as error:
            if isinstance(error, FileNotFoundError) and not os.path.isdir(self._root):
                raise WorkspaceUnavailableError("the workspace directory does not exist") from None
            raise error_for_model(error, self._trees) from None

    # Not in a thread, unlike work that may wait for a disk: lookups, and reads of what is in memory. They take
    # microseconds, and starting a thread takes far longer.

    async def read_bytes(self, path: str) -> bytes:
        tree = self._trees.tree_of(path)
        with self._hiding():
            content = tree.read_cached(path)
        return content if content is not None else await self._call(partial(tree.read, path))

    async def write_bytes(self, path: str, data: bytes) -> None:
        await self._announce(path)
        tree = self._trees.tree_of(path)
        await self._told(path, partial(tree.write, path, data), data)

    async def stat(self, path: str) -> FileEntry:
        with self._hiding():
            entry = self._trees.tree_of(path).entry(path)
        return FileEntry(name=os.path.basename(path), path=path, is_dir=entry.is_directory, size=entry.size)

    async def list_dir(self, path: str) -> Sequence[FileEntry]:
        tree = self._trees.tree_of(path)
        with self._hiding():
            entries = tree.few_entries(path)
        if entries is None:
            entries = await self._call(partial(tree.entries, path))
        return [
            FileEntry(name=name, path=os.path.join(path, name), is_dir=entry.is_directory, size=entry.size)
            for entry in entries
            # A name that is not UTF-8 cannot be given to a model; it is escaped, so that the others can be listed.
            for name in (entry.name.encode("utf-8", "backslashreplace").decode(),)
        ]

    async def make_dir(self, path: str) -> None:
        await self._announce(path)
        await self._call(partial(self._trees.tree_of(path).make_directory, path))

    async def remove(self, path: str) -> None:
        await self._announce(path, follow=False)
        await self._told(path, partial(self._trees.tree_of(path).remove, path), None)

    async def _told(self, path: str, operation: Callable[[], object], after: bytes | None) -> None:
        """Change the file `path`, and report the change if a display shows it."""
        tell = CHANGE_LISTENER.get()
        if tell is None:
            await self._call(operation)
            return
        tree = self._trees.tree_of(path)

        def changed() -> FileContent:
            before = present_content(tree, path)
            operation()
            return before

        before = await self._call(changed)
        tell(
            path.removeprefix(f"{self._trees.first.mount}/"),
            before,
            bounded(after) if after is not None else FileContent(None),
        )

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def realpath(self, path: str) -> str:
        with self._hiding():
            return self._trees.tree_of(path).real_path(path)


class FileLine(NamedTuple):
    """A matching line; numbers start with 1."""

    path: str
    number: int
    text: str


class _Search(NamedTuple):
    """The words of a `find` or `grep` before and after the searched path, that path, and a glob of names."""

    before: list[str]
    behind: list[str]
    where: str
    names: str

    def matches(self, path: str) -> bool:
        """Whether a single file matches, as `find -path` and `grep --include` define it."""
        return fnmatch.fnmatchcase(path if "/" in self.names else posixpath.basename(path), self.names)


class _SearchBackend(DirectoryBackend):
    """The files, and searches of them by `find` and `grep`, without commands.

    A pattern that is matched in this process could block the event loop and could not be stopped. The searches start in
    the directory itself, which no other process can replace meanwhile. A path with a leading dash stays a path: `glob`
    with the path `-delete` must not become an option of `find`.
    """

    def __init__(self, trees: MountTable) -> None:
        super().__init__(trees)
        self._searcher = searcher(self._root)
        self._is_project = trees.first.kind == "project"

    async def paths(self, pattern: str, where: str) -> list[str]:
        """The files below `where` whose path matches `pattern` as in `find`; none if it is not accessible."""
        name_pattern = f"*/{pattern.removeprefix('**/')}"
        with self._hiding():
            scope = await self._scope(where)
            pruned = [word for name in scope.directory_names for word in ("-o", "-name", _literal(name))][1:]
            prune = ["-type", "d", "(", *pruned, ")", "-prune", "-o"] if pruned else []
            behind = [*prune, "-path", name_pattern, "-type", "f", "!", "-name", atomic.TEMPORARY_PATTERN, "-print0"]
            result, name = await self._run_search(_Search(["find", "-P"], behind, where, name_pattern))
        below = [path[len(name) :] for path in result.stdout.split("\0") if path]
        return sorted(str(PurePosixPath(f"{where}{path}")) for path in below if scope.covers(path))

    async def lines(self, pattern: str, where: str, names: str | None, *, with_hidden: bool) -> list[FileLine]:
        """The lines below `where` that match an extended regular expression, in files whose name matches `names`.

        `with_hidden` includes hidden directories. Files that are not text are skipped, and FIFOs, which would block.
        Raises `WorkspaceError` if `where` is not accessible.
        """
        # The second is for BSD's grep, which compares the path and not the name.
        options = [] if with_hidden else ["--exclude-dir=.[!./]*", "--exclude-dir=*/.[!.]*"]
        words = [
            "grep",
            # GNU's grep also searches files that match no pattern, unless the first pattern is one of --include.
            *([f"--include={names}"] if names else []),
            f"--exclude={atomic.TEMPORARY_PATTERN}",
            "-rnHZIE",
            "-D",
            "skip",
            *options,
            "-e",
            pattern,
            "--",
        ]
        with self._hiding():
            scope = await self._scope(where)
            words[1:1] = [f"--exclude-dir={_literal(name)}" for name in scope.directory_names]
            result, name = await self._run_search(_Search(words, [], where, names or "*"))
        if result.exit_code > 1 and not result.stdout:
            raise WorkspaceError(result.stderr.strip() or f"grep ended with {result.exit_code}")
        lines = [line._replace(path=line.path[len(name) :]) for line in _lines(result.stdout)]
        return [line._replace(path=f"{where}{line.path}") for line in lines if scope.covers(line.path)]

    async def _scope(self, where: str) -> SearchScope:
        """The part of the project that a search below `where` looks at."""
        tree = self._trees.first
        if not self._is_project or self._trees.tree_of(where) is not tree:
            return WHOLE_PROJECT
        real = tree.real_path(where)
        if real == "/":
            return WHOLE_PROJECT  # the search itself refuses it
        return await self._call(partial(search_scope, tree.root, os.path.relpath(real, tree.mount)))

    async def _run_search(self, search: _Search) -> tuple[CommandResult, str]:
        """The output of a search, and the name of the searched path."""
        with contextlib.ExitStack() as stack:
            try:
                # As in every other tool: `..` before links.
                where = posixpath.normpath(search.where)
                tree = self._trees.tree_of(where)
                descriptor, is_directory = await self._call(lambda: stack.enter_context(tree.opened(where)))
            except OSError as error:
                return CommandResult(exit_code=2, stdout="", stderr=f"{error.strerror or error}\n"), ""
            before = search.before
            if not is_directory:
                # Its name is in the pattern, but the search has none, so it is matched here.
                if not search.matches(where):
                    return CommandResult(exit_code=1, stdout="", stderr=""), ""
                if before[0] == "find":
                    return CommandResult(exit_code=0, stdout=f"{search.where}\0", stderr=""), search.where
                before = [word for word in before if not word.startswith("--include=")]
            place = f"/proc/{os.getpid()}/fd/{descriptor}"
            if not os.path.exists(place):
                place = os.path.join(tree.root, os.path.relpath(tree.real_path(where), tree.mount))  # macOS has none
            # The name is not passed to `grep`, because `grep -r` follows a link in its arguments.
            directory, name = (place, ".") if is_directory else (self._root, place)
            words = [str(_SEARCH_MEMORY // 1024), directory, *before, name, *search.behind]
            result = await self._searcher.run(["/bin/sh", "-c", _SEARCH, "sh", *words], timeout=_SEARCH_SECONDS)
        return result, name


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", name)


def _lines(output: str) -> list[FileLine]:
    """The output of `grep -nHZ`: a name, NUL, a number, a colon, a line. A name may contain colons and newlines."""
    lines: list[FileLine] = []
    at = 0
    while (end := output.find("\0", at)) >= 0:
        newline = output.find("\n", end)
        newline = len(output) if newline < 0 else newline
        number, _, text = output[end + 1 : newline].partition(":")
        if number.isdecimal():
            lines.append(FileLine(output[at:end], int(number), text))
        at = newline + 1
    return lines


class _CommandBackend(_SearchBackend, SupportsCommands):
    """The files with commands, in a sandbox or unsandboxed. Commands get a fixed environment, without deepctl's own."""

    def __init__(
        self,
        trees: MountTable,
        own: DirectoryTree,
        sandbox: Sandbox,
        by_user: bool,
        project: ProjectMounts | None,
        read_only_binds: tuple[Bind, ...] = (),
    ) -> None:
        super().__init__(trees)
        self._own = own
        self._is_confined = sandbox.confined
        self._limits = sandbox.limits
        self._project = project
        self._by_user = by_user
        self.runner = sandbox.commands(self._root, project, read_only_binds)

    @cached_property
    def guard(self) -> CommandGuard:
        """What looks at the directories around each command: made for the first one."""
        return CommandGuard(self._root, self._project, confined=self._is_confined, by_user=self._by_user)

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        if isinstance(command, str) and shell:
            command, shell = shell_command(command), False
        with self._hiding():
            return await self._run(command, shell, env, timeout)

    async def _run(
        self, command: WorkspaceCommand, shell: bool, env: Mapping[str, str] | None, timeout: float | None
    ) -> CommandResult:
        if self._is_confined:
            await self._call(partial(self._own.make_directory, layout.HOME_DIRECTORY))
        if self.guard.is_idle:
            return await self._watched(command, shell, env, timeout)
        before = await self._call(self.guard.before)
        notice = output = ""
        try:
            result = await self._watched(command, shell, env, timeout)
            output = f"{result.stdout}\n{result.stderr}"
        finally:
            # Also after an interruption, because git run by a person would run the leftovers.
            with anyio.CancelScope(shield=True):
                notice = await self._call(partial(self.guard.after, before, output))
                if notice and (hear := listener()) is not None:
                    hear(b"", notice.encode())
        return replace(result, stderr=f"{result.stderr}{notice}") if notice else result

    async def _watched(
        self, command: WorkspaceCommand, shell: bool, env: Mapping[str, str] | None, timeout: float | None
    ) -> CommandResult:
        """Run it, and end it when it uses too much disk space."""
        seconds = min(timeout or self._limits.seconds, self._limits.seconds)
        before = self._used()
        result: CommandResult | None = None
        try:
            async with anyio.create_task_group() as tasks:

                async def watch() -> None:
                    while self._used() - before <= self._limits.disk:
                        await anyio.sleep(_WATCH_SECONDS)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(watch)
                result = await self.runner.run(command, shell=shell, env=env, timeout=seconds)
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        if result is None:
            raise WorkspaceError(
                f"the command was ended: more than {self._limits.disk >> 20} MiB were written while it ran"
            )
        return result

    def _used(self) -> int:
        """Bytes in use on the disks of the workspace and of the profile, by any process; even an empty file counts."""
        disks = {os.stat(directory).st_dev: os.statvfs(directory) for directory in (self._root, self._own.root)}
        return sum(
            (status.f_blocks - status.f_bfree) * status.f_frsize + (status.f_files - status.f_ffree) * _INODE
            for status in disks.values()
        )


class ProjectOptions(NamedTuple):
    """What holds in a project besides its directories.

    `protected` are patterns of files that file tools change only after an approval, relative to the project.
    `package_cache` is the directory of package caches of commands. `trusted` is the digest of the content of the
    repository's extensions that the user trusts (`deepctl.domain.repository_files`), empty if nothing is trusted.
    """

    protected: tuple[str, ...] = PROTECTED
    package_cache: str | None = None
    trusted: str = ""


_PROJECT = ProjectOptions()


class LocalBackend(ConfinedWorkspace):
    """A directory of this machine as an agent's workspace, created (0700) if it is missing.

    Args:
        root_dir: The directory. File tools cannot leave it, by `..`, by an absolute path or by a link. They know it as
            `/workspace`, too.
        sandbox: The place where commands run: `Bubblewrap()`, `Docker(…)`, or `NoSandbox()` (unsandboxed). Without one
            there are no commands. Commands get a fixed `PATH` and `LANG`, and a `HOME` of their own: `.deep/home` in
            the workspace, or with `NoSandbox()` an empty directory that `close` removes.
        by_user: Whether a person types the commands. Files that they leave for git are then reported, and not moved.
        profile_dir: The directory of the agent's own files, created (0700) if it is missing. With it, `root_dir` is a
            project: an existing directory of the user. Memory, plans, to-do lists, large results and the home of
            commands are in `profile_dir`, which file tools know as `/profile`. File tools then name the project by its
            own path, and reach nothing outside of the two directories. A link never leads from one into the other.
        project: More about the project.
        skills: The skills of the agent. Those outside of a project are in directories that only can be read, called
            `/skills/profile` and `/skills/root`; unsandboxed commands find them under their own paths.

    Raises `BadPath`, before anything is created, if a part of a path is empty, `.` or `..`; `OSError` if a directory
    cannot be created, `NotADirectoryError` if a project is no directory, `Refused` if
    the sandbox is not available.
    """

    if not TYPE_CHECKING:
        # Every `Workspace` has the method. Without commands, this one must not satisfy `SupportsCommands`.
        run = None

    def __new__(cls, root_dir: str | os.PathLike[str] = "", *, sandbox: Sandbox | None = None, **options: Any) -> Self:
        has_commands = cls is LocalBackend and sandbox is not None
        return super().__new__(CommandsLocalBackend if has_commands else cls)  # type: ignore[return-value]

    def __init__(
        self,
        root_dir: str | os.PathLike[str],
        *,
        sandbox: Sandbox | None = None,
        by_user: bool = False,
        profile_dir: str | os.PathLike[str] | None = None,
        project: ProjectOptions = _PROJECT,
        skills: Sequence[Skill] = (),
    ) -> None:
        layout.check_directory(root_dir)
        layout.check_directory(profile_dir if profile_dir is not None else root_dir)
        if profile_dir is not None and not os.path.isdir(root_dir):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(root_dir))
        own_dir = os.fspath(root_dir if profile_dir is None else profile_dir)
        os.makedirs(own_dir, mode=0o700, exist_ok=True)
        self.root_dir = os.path.realpath(root_dir)
        self.profile_dir = os.path.realpath(profile_dir) if profile_dir is not None else None
        """The workspace of the profile, if `root_dir` is a project."""
        self.project = project
        self.sandbox = sandbox
        # Unsandboxed commands see no mounts.
        is_mounted = sandbox is None or sandbox.confined
        self.skills = tuple(_mounted(skill, is_mounted) for skill in skills)
        """The skills of the agent."""
        libraries = {
            mounted.skill.library: posixpath.dirname(mounted.directory)
            for mounted in self.skills
            if mounted.skill.source != "project"
        }
        self._trees = _trees(os.fspath(root_dir), self.profile_dir, libraries)
        own = DirectoryTree(own_dir, follow=False, mount=MOUNT if profile_dir is None else PROFILE_MOUNT)
        try:
            mounted = None
            if self.profile_dir is not None:
                mounted = ProjectMounts(self.root_dir, self.profile_dir, project.package_cache, project.protected)
            inner = (
                _SearchBackend(self._trees)
                if sandbox is None
                else _CommandBackend(
                    self._trees,
                    own,
                    sandbox,
                    by_user,
                    mounted,
                    tuple(Bind(directory, mount, False) for directory, mount in libraries.items()),
                )
            )
        except Unavailable as problem:
            raise sandbox_missing(sandbox.name if sandbox is not None else "none", problem) from None
        super().__init__(Workspace(inner))
        self._searcher = inner
        self._runner = inner.runner if isinstance(inner, _CommandBackend) else None
        self.files = DirectoryBackend(MountTable(own))
        """The directory of deepctl's own stores: files only, no links."""
        self.project_files = (
            DirectoryBackend(MountTable(_project_tree(os.fspath(root_dir), follow=False)))
            if profile_dir is not None
            else None
        )
        """The project in the same way, if `root_dir` is one."""

    @property
    def trees(self) -> MountTable:
        """The directories by their absolute paths, as file tools know them."""
        return self._trees

    async def grep(self, pattern: str, where: str, names: str | None, *, with_hidden: bool) -> list[FileLine]:
        """Lines that match an extended regular expression. Raises `WorkspaceError`, also for a path outside."""
        await self.check(where)
        return await self._searcher.lines(pattern, where, names, with_hidden=with_hidden)

    async def glob(self, pattern: str, where: str) -> list[str]:
        """The files below `where` that match `pattern` at any depth, sorted. Raises `WorkspaceError`, like `grep`."""
        where = "." if where.strip() in ("", "/") else where
        await self.check(where)
        return await self._searcher.paths(pattern, where)

    def announce_changes(self, before_change: BeforeChange) -> None:
        """From now on, call `before_change` before each change of a file by a method of the workspace, not by commands.

        If it raises an error, the file is not changed.
        """
        for backend in (self._searcher, self.files, self.project_files):
            if backend is not None:
                backend.before_change = before_change

    def take_created_repositories(self) -> list[str]:
        """The nested repositories that commands of a project created since the last call, relative to the project."""
        if self.profile_dir is None or not isinstance(self._searcher, _CommandBackend):
            return []
        return self._searcher.guard.take_created()

    def close(self) -> None:
        """End the background processes of commands, if the sandbox can: in a container. It can be used again."""
        if self._runner is not None:
            self._runner.close()

    async def working_dir(self) -> str:
        return self._trees.first.mount

    async def contains(self, path: str) -> bool:
        """Whether `path`, relative to the workspace or absolute, leads inside it."""
        return await self._searcher.realpath(await self.resolve(path)) != "/"

    async def check(self, path: str) -> None:
        """Refuse a path outside the workspace; the error does not contain the workspace's path on this machine."""
        if not await self.contains(path):
            raise WorkspacePathError(f"{path!r} is outside the {self._trees.first.kind}")


class CommandsLocalBackend(LocalBackend):
    """A `LocalBackend` with a sandbox."""

    if not TYPE_CHECKING:
        run = ConfinedWorkspace.run


def workspace_of(backend: object) -> Workspace:
    """The tools' view of a backend. Accepts a `LocalBackend`, a `StateBackend` or any workspace backend."""
    if isinstance(backend, Workspace):
        return backend
    if isinstance(backend, StateBackend):
        reference = WorkspaceRef(provider=STATE_PROVIDER, id=STATE_PROVIDER)
        return Workspace(StateWorkspaceBackend({reference.id: backend}, ref=reference))
    if isinstance(backend, WorkspaceBackend):
        return Workspace(backend)
    raise UserError(f"{type(backend).__name__} is not a backend that an agent can work in.")


def files_of(workspace: Workspace) -> Workspace:
    """The view of deepctl's own stores: files only, and no links."""
    return Workspace(workspace.files) if isinstance(workspace, LocalBackend) else workspace


def own_path(workspace: object, path: str) -> str:
    """A path of deepctl's own stores in the form in which file tools know it."""
    is_project = isinstance(workspace, LocalBackend) and workspace.profile_dir is not None
    return posixpath.join(PROFILE_MOUNT, path) if is_project else path


def failure_in_words(failure: str | Exception, workspace: object) -> str:
    """The text about a failure in `workspace` for the model. On other backends, its paths are not changed."""
    if not isinstance(workspace, LocalBackend):
        return str(failure)
    if isinstance(failure, str):
        return text_for_model(failure, workspace.trees)
    return str(error_for_model(failure, workspace.trees))


def _project_tree(root: str, *, follow: bool) -> DirectoryTree:
    """A project, which keeps its own path, because stack traces, virtual environments and worktrees contain it."""
    aliases = (MOUNT,) if has_alias(os.path.realpath(root)) else ()
    return DirectoryTree(root, follow=follow, aliases=aliases, kind="project")


def _mounted(skill: Skill, is_mounted: bool) -> MountedSkill:
    library = f"{SKILLS_MOUNT}/{skill.source}" if is_mounted and skill.source != "project" else skill.library
    return MountedSkill(skill, posixpath.join(library, skill.name))


def _trees(root: str, profile_dir: str | None, libraries: Mapping[str, str]) -> MountTable:
    """The directories of an agent: its workspace or its project, and `libraries` of skills by their mounts."""
    skills = [
        DirectoryTree(directory, follow=True, mount=mount, kind="skills directory", read_only=True)
        for directory, mount in libraries.items()
    ]
    if profile_dir is None:
        return MountTable(DirectoryTree(root, follow=True, mount=MOUNT, reserved=layout.PROJECTS_DIRECTORY), *skills)
    return MountTable(
        _project_tree(root, follow=True),
        DirectoryTree(profile_dir, follow=True, mount=PROFILE_MOUNT, reserved=layout.PROJECTS_DIRECTORY),
        *skills,
    )


def text_for_model(text: str, trees: MountTable) -> str:
    """`text` with each directory by its name in the table. Names beside a directory lose the directory above them."""
    for tree in trees.trees:
        if tree.root != tree.mount and tree.root in text:
            text = re.sub(rf"(?<![\w./-]){re.escape(tree.root)}(?!\.?[\w-])", tree.mount, text)
    for tree in trees.trees:
        parent, name = os.path.split(tree.root)
        if parent.rstrip("/") and parent in text:
            # A project is called by its own path, which begins with the directory above it.
            own = rf"(?!{re.escape(name)}(?!\.?[\w-]))" if tree.root == tree.mount else ""
            text = re.sub(rf"(?<![\w./-]){re.escape(parent)}/{own}", "", text)
    return text


def error_for_model(error: Exception, trees: MountTable) -> Exception:
    """The same error in a form for the model. A name outside the directories of the workspace is left out.

    The name may be a `Path`, which `OSError` shows in Python's notation.
    """
    if not isinstance(error, OSError) or error.errno is None:
        error.args = tuple(
            text_for_model(argument, trees) if isinstance(argument, str) else argument for argument in error.args
        )
        return error
    reason = error.strerror or os.strerror(error.errno)
    if not isinstance(error.filename, (str, bytes, os.PathLike)):
        return OSError(error.errno, reason)
    name = text_for_model(os.fsdecode(error.filename), trees)
    is_here = not os.path.isabs(name) or any(tree.prefix_of(name) is not None for tree in trees.trees)
    return OSError(error.errno, reason, name) if is_here else OSError(error.errno, reason)


def open_backend(
    profile: ProfilePaths,
    project: str | None,
    sandbox: Sandbox | None,
    *,
    protected: Sequence[str] = PROTECTED,
    by_user: bool = False,
    disabled_skills: Collection[str] = (),
) -> LocalBackend:
    """The backend of a session in `project`, a directory of the user, or without one in the workspace of the profile.

    It has the skills that are there now, except `disabled_skills`. Raises `Refused`, and `NotADirectoryError` if the
    project is gone.
    """
    stored_project = projects.by_path(profile, os.path.realpath(project)) if project else None
    trusted = stored_project.trusted if stored_project is not None else ""
    libraries = skills.libraries(profile.root, profile, os.path.realpath(project) if project else None, trusted)
    in_force = [skill for skill in skills.read(libraries, disabled_skills) if skill.enabled]
    if not project:
        return LocalBackend(profile.workspace, sandbox=sandbox, by_user=by_user, skills=in_force)
    options = ProjectOptions(tuple(protected), profile.package_cache, trusted)
    return LocalBackend(
        project, sandbox=sandbox, by_user=by_user, profile_dir=profile.workspace, project=options, skills=in_force
    )
