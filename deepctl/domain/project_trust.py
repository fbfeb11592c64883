"""What of a project needs trust: skills, commands and the like, which tell the agent or the user's shell what to do.

A repository can bring them, so they are off until the user has seen them (`projects trust`). The user trusts their
content: a digest of all of them, which another checkout or an edit changes. Hooks, MCP servers, keys and rules never
come from a project, so they need no trust.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from deepctl.errors import Refused
from deepctl.files.paths_beneath import DirectoryTree, WalkEntry, walk

OWNERS = (".deepctl", ".agents", ".claude")
"""The directories of a project with files for agents, the one with the highest priority first."""
_KINDS = ("agents", "commands", "prompts", "skills")
PLACES = tuple(f"{owner}/{kind}" for owner in sorted(OWNERS) for kind in _KINDS)
"""The directories of a project whose content needs trust."""
SKILLS, SKILL_FILE = "skills", "SKILL.md"
"""Each directory below this one with this file needs trust, too. The others may have nothing to do with agents."""

MAX_FILES = 1000
MAX_BYTES = 16 << 20
"""Files and bytes that can be trusted at once: what a person cannot look through is not trusted by one answer."""


class TrustedFile(NamedTuple):
    """A file that needs trust: its path in the project, its size in bytes, and the digest of its content and mode.

    A symbolic link has the size and the digest of its target's name. Another kind of file has no digest.
    """

    path: str
    bytes: int
    digest: str


def files(directory: str) -> list[TrustedFile]:
    """The files of a project that need trust, by their paths. Raises `Refused` if there are too many, and `OSError`."""
    tree = DirectoryTree(directory, follow=False)
    trusted_files: list[TrustedFile] = []
    total = 0
    for path, entry in _entries(directory):
        assert entry.status is not None
        total += entry.status.st_size
        if len(trusted_files) == MAX_FILES or total > MAX_BYTES:
            raise Refused(
                f"{directory} has too much that needs trust: more than {MAX_FILES} files, or {MAX_BYTES >> 20} MiB.",
                f"Remove what is not needed from {', '.join(sorted(OWNERS))}.",
                code="too_large",
            )
        trusted_files.append(TrustedFile(path, entry.status.st_size, _digest(tree, path, entry)))
    return trusted_files


def _entries(directory: str) -> Iterator[tuple[str, WalkEntry]]:
    """Everything that is no directory in the places; a place that is a link is left out, as its readers do."""
    for place in (*PLACES, *_skills(directory)):
        way = [os.path.join(directory, *place.split("/")[:count]) for count in (1, 2)]
        if any(os.path.islink(path) for path in way):
            continue
        for entry in walk(way[-1]):
            if not entry.is_directory and entry.status is not None:
                yield f"{place}/{entry.path}", entry


def _skills(directory: str) -> list[str]:
    """The skills in the directory `skills` of a project."""
    try:
        names = sorted(os.listdir(os.path.join(directory, SKILLS)))
    except OSError:
        return []
    return [f"{SKILLS}/{name}" for name in names if os.path.lexists(os.path.join(directory, SKILLS, name, SKILL_FILE))]


def _digest(tree: DirectoryTree, path: str, entry: WalkEntry) -> str:
    assert entry.status is not None
    mode = entry.status.st_mode
    if stat.S_ISLNK(mode):
        content = b"link\0" + os.fsencode(os.readlink(entry.name, dir_fd=entry.parent))
    elif stat.S_ISREG(mode):
        content = b"run\0" if mode & 0o111 else b"file\0"
        content += tree.read(path)
    else:
        return ""
    return hashlib.sha256(content).hexdigest()


def digest(files: list[TrustedFile]) -> str:
    """The digest of all files that need trust; empty if there are none."""
    if not files:
        return ""
    whole = hashlib.sha256()
    for file in files:
        name = os.fsencode(file.path)
        whole.update(b"%d\0%s%s\n" % (len(name), name, file.digest.encode()))
    return whole.hexdigest()


def is_trusted(directory: str, trusted: str) -> bool:
    """Whether all files of a project that need trust are those with the digest `trusted`."""
    try:
        return bool(trusted) and digest(files(directory)) == trusted
    except (OSError, Refused):
        return False
