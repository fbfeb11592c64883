"""`LocalBackend`: a directory as the place an agent works in.

`LocalBackend` left pydantic-ai-backend in 0.2.30. This one keeps its promise (`root_dir`, file tools confined to it)
on today's parts: pydantic-ai's `LocalWorkspaceBackend` for commands, `deepctl.files.beneath` for files, and
`ConfinedWorkspace` around both, so that the console tools report an escape as a refusal.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import anyio.to_thread
from pydantic_ai.workspaces import (
    CommandResult,
    FileEntry,
    LocalWorkspaceBackend,
    SupportsCommands,
    SupportsFilesystem,
    SupportsRealpath,
    Workspace,
    WorkspaceBackend,
    WorkspaceCommand,
    WorkspaceRef,
    WorkspaceUnavailableError,
)
from pydantic_ai_backends import ConfinedWorkspace, WorkspacePathError

from deepctl.files.beneath import Outside, Tree

T = TypeVar("T")

HOME_DIRECTORY = ".deep/home"
COMMAND_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DirectoryBackend(WorkspaceBackend, SupportsFilesystem, SupportsRealpath):
    """The files below a directory, as a workspace without commands.

    With `follow_links=False` any link is refused: the view deepctl's own stores have of a workspace.
    """

    def __init__(self, root_dir: str | os.PathLike[str], *, follow_links: bool = True) -> None:
        self._tree = Tree(os.fspath(root_dir), follow=follow_links)

    @property
    def ref(self) -> WorkspaceRef:
        # It goes into the message history, so it must not be a path: a root that is moved stays the same place.
        return WorkspaceRef(provider="deepctl", id="workspace")

    async def working_dir(self) -> str:
        return self._tree.root

    async def _call(self, operation: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(operation)
        except Outside as error:
            raise WorkspacePathError(f"{error.filename!r} is refused: {error.strerror}") from None
        except FileNotFoundError:
            if not os.path.isdir(self._tree.root):
                raise WorkspaceUnavailableError(f"the workspace directory {self._tree.root} does not exist") from None
            raise

    async def read_bytes(self, path: str) -> bytes:
        return await self._call(partial(self._tree.read, path))

    async def write_bytes(self, path: str, data: bytes) -> None:
        await self._call(partial(self._tree.write, path, data))

    async def stat(self, path: str) -> FileEntry:
        found = await self._call(partial(self._tree.entry, path))
        return FileEntry(name=os.path.basename(path), path=path, is_dir=found.is_directory, size=found.size)

    async def list_dir(self, path: str) -> Sequence[FileEntry]:
        found = await self._call(partial(self._tree.entries, path))
        return [
            FileEntry(name=name, path=os.path.join(path, name), is_dir=entry.is_directory, size=entry.size)
            for entry in found
            # A name that is not UTF-8 cannot be said to a model; escaped, the others are still listed.
            for name in (entry.name.encode("utf-8", "backslashreplace").decode(),)
        ]

    async def make_dir(self, path: str) -> None:
        await self._call(partial(self._tree.make_directory, path))

    async def remove(self, path: str) -> None:
        await self._call(partial(self._tree.remove, path))

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def realpath(self, path: str) -> str:
        return await self._call(partial(self._tree.real_path, path))


class _SearchBackend(DirectoryBackend, SupportsCommands):
    """The files, and of commands only `find` and `grep` as the console's `glob` and `grep` word them.

    Without any command those two tools would match in this process, where a pattern such as `(a+)+$` cannot be
    stopped. They are started without a shell, and what begins with a dash stays a path: `glob` with the path `-delete`
    must not become an option of `find`.
    """

    def __init__(self, root_dir: str | os.PathLike[str]) -> None:
        super().__init__(root_dir)
        self._runner = LocalWorkspaceBackend(
            self._tree.root,
            env={
                "PATH": COMMAND_PATH,
                "LANG": "C.UTF-8",
                "LC_ALL": "C.UTF-8",
                "LC_CTYPE": "C.UTF-8",
                "HOME": os.path.join(self._tree.root, HOME_DIRECTORY),
            },
        )

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        search = search_command(command)
        if search is not None:
            return await self._runner.run(search, timeout=timeout)
        return await self._run(command, shell, env, timeout)

    async def _run(
        self, command: WorkspaceCommand, shell: bool, env: Mapping[str, str] | None, timeout: float | None
    ) -> CommandResult:
        return CommandResult(exit_code=126, stdout="", stderr="Commands cannot be run in this workspace.\n")


class _CommandBackend(_SearchBackend):
    """The files with commands, which nothing confines. They get a fixed environment, none of deepctl's own."""

    def __init__(self, root_dir: str | os.PathLike[str]) -> None:
        super().__init__(root_dir)
        self._own = Tree(self._tree.root, follow=False)

    async def _run(
        self, command: WorkspaceCommand, shell: bool, env: Mapping[str, str] | None, timeout: float | None
    ) -> CommandResult:
        await self._call(partial(self._own.make_directory, HOME_DIRECTORY))
        return await self._runner.run(command, shell=shell, env=env, timeout=timeout)


def search_command(command: WorkspaceCommand) -> list[str] | None:
    """The program and arguments of a search as pydantic-ai-backend words it for a shell; `None` for anything else."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:
        return None
    match words:
        case ["find", root, "-path", pattern, "-type", "f", "2>/dev/null"]:
            return ["find", "-P", _operand(root), "-path", pattern, "-type", "f"]
        case ["grep", "-rnH", *options, "-e", pattern, root] if all(
            option.startswith(("--exclude-dir=", "--include=")) for option in options
        ):
            # A FIFO would be waited for.
            return ["grep", "-rnH", "-D", "skip", *options, "-e", pattern, "--", _operand(root)]
        case _:
            return None


def _operand(path: str) -> str:
    return f"./{path}" if path.startswith("-") else path


class LocalBackend(ConfinedWorkspace):
    """A directory of this machine as an agent's workspace, created (0700) if it is missing.

    Args:
        root_dir: The directory. File tools cannot leave it, by `..`, by an absolute path or by a link.
        commands: Whether commands can run. They run on this machine with nothing around them, in `root_dir`, with a
            fixed `PATH` and `LANG` and a `HOME` of their own, `.deep/home` in it; everything this process may do, they
            may do.

    Raises `OSError` if the directory cannot be made.
    """

    def __init__(self, root_dir: str | os.PathLike[str], *, commands: bool = False) -> None:
        os.makedirs(root_dir, mode=0o700, exist_ok=True)
        self.root_dir = os.path.realpath(root_dir)
        super().__init__(Workspace((_CommandBackend if commands else _SearchBackend)(self.root_dir)))
        self.files: WorkspaceBackend = DirectoryBackend(self.root_dir, follow_links=False)
        """The same directory for deepctl's own stores: files only, no links."""

    async def check(self, path: str) -> None:
        """Refuse a path that leads out, without telling the model where on this machine the workspace is."""
        if not await self.contains(path):
            raise WorkspacePathError(f"{path!r} is outside the workspace")
