"""Memory: the Markdown notebooks that a profile's agent keeps in its workspace.

They lie where the agent can reach them, so they are opened without following a link (`deepctl.files.beneath`).
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from deepctl.domain import layout, names
from deepctl.domain.profiles import timestamp
from deepctl.errors import BadName, MemoryNotFound, Refused
from deepctl.files.beneath import Outside, Tree


class Notebook(NamedTuple):
    """One memory file. `path` is relative to the workspace, `size` in bytes, `modified_at` RFC 3339 in UTC."""

    name: str
    path: str
    size: int
    modified_at: str
    content: bytes = b""


class Memory:
    """The notebooks of one agent of a profile."""

    def __init__(self, profile: layout.ProfilePaths, agent: str = layout.AGENT) -> None:
        self.agent = names.check(agent, "agent")
        self._profile = profile
        self._directory = posixpath.join(layout.MEMORY_DIRECTORY, self.agent)
        self._tree = Tree(profile.workspace, follow=False)

    def notebooks(self) -> list[Notebook]:
        """All notebooks, sorted by name, without their content; none if there are none. Links are left out."""
        try:
            entries = self._tree.entries(self._directory)
        except (FileNotFoundError, NotADirectoryError):
            self._check_agent()
            return []
        except OSError as error:
            raise self._refused(error) from None
        return [
            Notebook(entry.name, posixpath.join(self._directory, entry.name), entry.size, timestamp(entry.modified))
            for entry in entries
            if entry.size is not None and entry.name.endswith(".md") and not entry.name.startswith(".")
        ]

    def read(self, file: str) -> Notebook:
        """One notebook, whole; `.md` may be left out. Raises `MemoryNotFound`, or `Refused` for a link or a FIFO."""
        name = _file_name(file)
        path = posixpath.join(self._directory, name)
        try:
            content = self._tree.read(path)
            modified = self._tree.entry(path).modified
        except (FileNotFoundError, NotADirectoryError):
            self._check_agent()
            raise MemoryNotFound(
                f"Profile {self._profile.name!r} has no memory file {name!r}.",
                f"`deepctl memory list --user {self._profile.name}` shows those there are.",
            ) from None
        except OSError as error:
            raise self._refused(error) from None
        return Notebook(name, path, len(content), timestamp(modified), content)

    def _check_agent(self) -> None:
        """The agent that every profile has may have noted nothing yet; any other is known by its notes."""
        if self.agent != layout.AGENT:
            raise MemoryNotFound(
                f"Profile {self._profile.name!r} has no agent {self.agent!r} with a memory.",
                f"The agent is called {layout.AGENT!r} unless an application named it otherwise.",
            )

    def _refused(self, error: OSError) -> Refused:
        reason = error.strerror or str(error)
        return Refused(
            f"Memory of profile {self._profile.name!r} cannot be read: {error.filename}: {reason}.",
            "deepctl follows no links in a workspace. Look at what was put there."
            if isinstance(error, Outside)
            else None,
            code="memory_refused",
        )


def _file_name(file: str) -> str:
    name = file if file.endswith(".md") else f"{file}.md"
    if "/" in name or "\0" in name or name.startswith(".") or name == ".md":
        raise BadName(f"{file!a} cannot be the name of a memory file.", "Give the name alone, such as MEMORY.md.")
    return name
