"""`LocalBackend`: a directory as the place an agent works in.

`LocalBackend` left pydantic-ai-backend in 0.2.30. This one keeps its promise (`root_dir`, file tools confined to it)
on today's parts: pydantic-ai's `LocalWorkspaceBackend` for commands, `deepctl.files.beneath` for files, and
`ConfinedWorkspace` around both, so that the console tools report an escape as a refusal.
"""

from __future__ import annotations

import os
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
        return WorkspaceRef(provider="local", id=self._tree.root)

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
            FileEntry(name=entry.name, path=os.path.join(path, entry.name), is_dir=entry.is_directory, size=entry.size)
            for entry in found
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


class _CommandBackend(DirectoryBackend, SupportsCommands):
    """The same with commands, which nothing confines. They get a fixed environment, none of deepctl's own."""

    def __init__(self, root_dir: str | os.PathLike[str], *, home: str) -> None:
        super().__init__(root_dir)
        self._home = home
        self._runner = LocalWorkspaceBackend(
            self._tree.root,
            env={"PATH": COMMAND_PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "LC_CTYPE": "C.UTF-8", "HOME": home},
        )

    async def run(
        self,
        command: WorkspaceCommand,
        *,
        shell: bool = False,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> CommandResult:
        await anyio.to_thread.run_sync(partial(os.makedirs, self._home, mode=0o700, exist_ok=True))
        return await self._runner.run(command, shell=shell, env=env, timeout=timeout)


class LocalBackend(ConfinedWorkspace):
    """A directory of this machine as an agent's workspace, created (0700) if it is missing.

    Args:
        root_dir: The directory. File tools cannot leave it, by `..`, by an absolute path or by a link.
        commands: Whether commands can run. They run on this machine with nothing around them, in `root_dir`, with a
            fixed `PATH` and `LANG` and `HOME` set to `home`; everything this process may do, they may do.
        home: The `HOME` of commands, made when the first one runs; `.deep/home` in the root by default.

    Raises `OSError` if the directory cannot be made.
    """

    def __init__(
        self, root_dir: str | os.PathLike[str], *, commands: bool = False, home: str | os.PathLike[str] | None = None
    ) -> None:
        os.makedirs(root_dir, mode=0o700, exist_ok=True)
        self.root_dir = os.path.realpath(root_dir)
        backend = (
            _CommandBackend(self.root_dir, home=os.fspath(home or os.path.join(self.root_dir, HOME_DIRECTORY)))
            if commands
            else DirectoryBackend(self.root_dir)
        )
        super().__init__(Workspace(backend))
        self.files: WorkspaceBackend = DirectoryBackend(self.root_dir, follow_links=False)
        """The same directory for deepctl's own stores: files only, no links."""

    async def check(self, path: str) -> None:
        """Refuse a path that leads out, without telling the model where on this machine the workspace is."""
        if not await self.contains(path):
            raise WorkspacePathError(f"{path!r} is outside the workspace")
