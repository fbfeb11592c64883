"""Files of a repository that are written for agents: its AGENTS.md, and its skills, commands and agents.

They are the repository's words, and not the user's. AGENTS.md is sent to the model as such. Skills, commands and agents
are off until the user trusts their content (`deepctl projects trust`); trust is a digest of that content, so a change
turns them off again. Hooks, MCP servers, keys and rules never come from a repository: no code reads them there.

Nothing here follows a link out of the directory, and no FIFO blocks.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from deepctl.domain import project_trust
from deepctl.domain.project_trust import SKILL_FILE
from deepctl.errors import Refused
from deepctl.files.paths_beneath import DirectoryTree, OutsideTree
from deepctl.quantities import counted, size
from deepctl.unicode import as_text, one_line

AGENTS_FILE = "AGENTS.md"
MOST_BYTES = 256 * 1024
"""Bytes of a context file that is sent to the model."""

_KINDS = ("agents", "commands", "prompts", "skills")
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
    """All extensions of a repository, by path, and whether they are in force: the user trusts their content.

    `problem` is the reason why they cannot be trusted, a sentence.
    """

    found: list[Extension]
    are_trusted: bool
    problem: str | None = None


def extensions(root: str, trusted: str) -> Extensions:
    """The extensions of the repository in a directory; `trusted` is the digest of the trusted content."""
    try:
        files = project_trust.files(root)
    except Refused as error:
        return Extensions([], False, error.message)
    except OSError as error:
        return Extensions([], False, f"They cannot be read: {(error.strerror or str(error)).lower()}.")
    tree = DirectoryTree(root, follow=False)
    present = [extension for file in files if (extension := _extension(tree, file.path)) is not None]
    return Extensions(present, bool(trusted) and project_trust.digest(files) == trusted)


def _extension(tree: DirectoryTree, path: str) -> Extension | None:
    """The extension whose Markdown file is at `path`, if it is one. A skill is a directory with `SKILL.md`."""
    above, _, name = path.rpartition("/")
    is_skill = name == SKILL_FILE
    kind = next((part[:-1] for part in path.split("/")[:2] if part in _KINDS), "")
    if not is_skill and (kind == "skill" or not name.lower().endswith(".md")):
        return None
    try:
        head = tree.read(path)[:_HEAD].decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return None
    front = head[4:].partition("\n---")[0] if head.startswith("---\n") else ""
    fields = {name: value.strip("\"'") for name, value in _FIELD.findall(front)}
    usual = above.rpartition("/")[2] if is_skill else name[:-3]
    return Extension(kind, fields.get("name") or usual, path, fields.get("description", "")[:_MOST_DESCRIPTION])


def introduction(root: str, trusted: str, profile: str) -> Iterator[str]:
    """The sentences about these files of a project for the user of a profile, before its first turn."""
    agents = agents_file(root)
    if agents is not None and agents.problem is not None:
        yield f"{AGENTS_FILE} of the repository is not sent to the model: {agents.problem}."
    elif agents is not None and agents.text:
        amount = size(len(agents.text.encode()))
        yield f"{AGENTS_FILE} ({amount}) is sent to the model as the repository's text."
    present = extensions(root, trusted)
    if present.problem is not None:
        yield f"Skills, commands and agents of the repository are off. {present.problem}"
    elif present.found and not present.are_trusted:
        names = ", ".join(one_line(extension.path) for extension in present.found[:_MOST_NAMED])
        remainder = f" and {len(present.found) - _MOST_NAMED:,} more" if len(present.found) > _MOST_NAMED else ""
        reason = "Off, because of a change since you trusted them" if trusted else "Off"
        yield (
            f"{reason}: {counted(len(present.found), 'extension')} of the repository ({names}{remainder}). "
            f"`deepctl projects trust {one_line(shlex.quote(root))} --user {profile}` turns them on."
        )
