"""Files of a repository that are written for agents: its AGENTS.md, and its skills, commands and agents.

They are the repository's words, and not the user's. AGENTS.md is sent to the model as such. Skills, commands and agents
are off until the user trusts their content (`deepctl projects trust`); trust is a digest of that content, so a change
turns them off again. Hooks, MCP servers, keys and rules never come from a repository: no code reads them there.

Nothing here follows a link out of the directory, and no FIFO blocks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from deepctl.domain.memory.directory import as_text
from deepctl.files.paths_beneath import DirectoryTree, OutsideTree, WalkEntry, walk
from deepctl.quantities import counted, size

AGENTS_FILE = "AGENTS.md"
MOST_BYTES = 256 * 1024
"""Bytes of a context file that is sent to the model."""

_OWNERS = (".agents", ".claude", ".deepctl")
_PLACES = {
    **{f"{owner}/{kind}s": kind for owner in _OWNERS for kind in ("skill", "command", "agent")},
    "skills": "skill",
}
"""The directories with extensions, and the kind of extension in each."""
_SKILL = "SKILL.md"
_MOST_FILES = 2000
_MOST_TOTAL = 32 << 20
_MOST_NAMED = 5
_HEAD = 4096
_FIELD = re.compile(r"^(name|description):[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_MOST_DESCRIPTION = 300


class RepositoryText(NamedTuple):
    """The AGENTS.md of a repository: its text, or the reason why it is not sent, a clause."""

    text: str
    problem: str | None = None


def agents_file(root: str) -> RepositoryText | None:
    """The AGENTS.md in a directory, `None` if there is none. A link to a Markdown file in the directory is followed."""
    tree = DirectoryTree(root, follow=True)
    try:
        entry = tree.entry(AGENTS_FILE)
        real = tree.real_path(AGENTS_FILE)
        if not real.lower().endswith(".md") or "/.git/" in real:
            return RepositoryText("", "it is a link to a file that is not Markdown")
        if entry.size is None:
            return RepositoryText("", "it is not a regular file")
        if entry.size > MOST_BYTES:
            return RepositoryText("", f"it has more than {size(MOST_BYTES)}")
        return RepositoryText(as_text(tree.read(AGENTS_FILE)).strip("\r\n"))
    except (FileNotFoundError, NotADirectoryError):
        return RepositoryText("", "it is a link to nothing") if os.path.lexists(f"{root}/{AGENTS_FILE}") else None
    except OutsideTree:
        return RepositoryText("", "it is a link out of the directory")
    except OSError as error:
        return RepositoryText("", (error.strerror or "it cannot be read").lower())


class Extension(NamedTuple):
    """A skill, a command or an agent of a repository. `path` is its Markdown file, relative to the repository."""

    kind: str
    name: str
    path: str
    description: str


class Extensions(NamedTuple):
    """All extensions of a repository, by path. `digest` stands for the content of all their files.

    `problem` is the reason why they cannot be trusted, a clause.
    """

    found: list[Extension]
    digest: str
    problem: str | None = None

    def are_trusted(self, trusted: str) -> bool:
        """Whether the content is the one that the user trusts."""
        return bool(self.found) and self.problem is None and self.digest == trusted


def extensions(root: str) -> Extensions:
    """The extensions of the repository in a directory. Directories that cannot be read are left out."""
    found: list[Extension] = []
    total, count = hashlib.sha256(), 0
    bytes_left = _MOST_TOTAL
    problem = None
    for place, kind in _PLACES.items():
        base = _inside(root, place)
        if base is None:
            continue
        for entry in walk(base):
            if entry.status is None or entry.is_directory:
                continue
            path = f"{place}/{entry.path}"
            count, bytes_left = count + 1, bytes_left - (entry.status.st_size if entry.is_file else 0)
            if count > _MOST_FILES or bytes_left < 0:
                problem = f"there are more than {_MOST_FILES:,} files or {size(_MOST_TOTAL)} of them"
                break
            content = _content(entry)
            for part in (os.fsencode(path), content):
                total.update(b"%d:" % len(part))
                total.update(part)
            if entry.is_file and _is_extension(kind, entry):
                found.append(_described(kind, path, content))
    return Extensions(sorted(found, key=lambda extension: extension.path), total.hexdigest(), problem)


def _inside(root: str, place: str) -> str | None:
    """A directory below `root` without a link in its path."""
    path = root
    for part in place.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path) or not os.path.isdir(path):
            return None
    return path


def _is_extension(kind: str, entry: WalkEntry) -> bool:
    """Whether a file is the Markdown file of an extension. A skill is a directory with `SKILL.md`."""
    if kind == "skill":
        return entry.name == _SKILL and entry.path.count("/") >= 1
    return entry.name.lower().endswith(".md")


def _content(entry: WalkEntry) -> bytes:
    """The mode and the content of a file, or the target of a link."""
    assert entry.status is not None
    begins = b"%o " % entry.status.st_mode
    try:
        if not entry.is_file:
            return begins + os.fsencode(os.readlink(entry.name, dir_fd=entry.parent))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(entry.name, flags, dir_fd=entry.parent)
        with open(descriptor, "rb") as file:
            return begins + file.read(_MOST_TOTAL)
    except OSError:
        return begins


def _described(kind: str, path: str, content: bytes) -> Extension:
    head = content[:_HEAD].decode("utf-8", "replace").partition(" ")[2].replace("\r\n", "\n")
    front = head[4:].partition("\n---")[0] if head.startswith("---\n") else ""
    fields = {name: value.strip("\"'") for name, value in _FIELD.findall(front)}
    usual = path.removesuffix(f"/{_SKILL}").rpartition("/")[2].removesuffix(".md")
    return Extension(kind, fields.get("name") or usual, path, fields.get("description", "")[:_MOST_DESCRIPTION])


def introduction(root: str, trusted: str) -> Iterator[str]:
    """The sentences about these files of a project for the user, before its first turn."""
    agents = agents_file(root)
    if agents is not None and agents.problem is not None:
        yield f"{AGENTS_FILE} of the repository is not sent to the model: {agents.problem}."
    elif agents is not None and agents.text:
        amount = size(len(agents.text.encode()))
        yield f"{AGENTS_FILE} ({amount}) is sent to the model as the repository's text."
    present = extensions(root)
    if present.found and not present.are_trusted(trusted):
        names = ", ".join(printable(extension.path) for extension in present.found[:_MOST_NAMED])
        more = f" and {len(present.found) - _MOST_NAMED:,} more" if len(present.found) > _MOST_NAMED else ""
        reason = "Off, because of a change since you trusted them" if trusted else "Off"
        yield (
            f"{reason}: {counted(len(present.found), 'extension')} of the repository ({names}{more}). "
            "`deepctl projects trust` turns them on."
        )


def printable(name: str) -> str:
    """A name on one line."""
    plain = name.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)
