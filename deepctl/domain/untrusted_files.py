"""Imported skills and commands that need trust: the directory `untrusted` of a profile, with `skills` and `commands`.

No other code reads them there. `profiles trust` moves each into the directory of the same name in the profile, by one
rename. So after a kill, each of them is in force or not.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import NamedTuple

from deepctl.errors import DeepctlError, Refused
from deepctl.files import atomic
from deepctl.files.paths_beneath import DirectoryTree, walk
from deepctl.layout import COMMANDS, SKILLS, ProfilePaths

_RISKS = {
    SKILLS: "the agent follows it, and can run its files in the sandbox",
    COMMANDS: "its text is sent as your prompt when you type its name",
}


class UntrustedFile(NamedTuple):
    """A skill or a command that is not in force: its kind, its name, and the name of its file or directory.

    `problem` is the reason why it cannot be put into force.
    """

    kind: str
    name: str
    entry: str
    problem: DeepctlError | None = None

    @property
    def risk(self) -> str:
        """The possible consequence."""
        return _RISKS[self.kind]


def set_apart(paths: ProfilePaths) -> None:
    """Take the skills and commands of a new profile out of force."""
    for kind in _RISKS:
        with suppress(FileNotFoundError):
            source = os.path.join(paths.directory, kind)
            if not os.listdir(source):
                continue
            atomic.make_directory(paths.untrusted_files)
            os.rename(source, os.path.join(paths.untrusted_files, kind))


def waiting(paths: ProfilePaths) -> list[UntrustedFile]:
    """The skills and commands of a profile that are not in force."""
    result: list[UntrustedFile] = []
    for kind in _RISKS:
        try:
            entries = sorted(os.listdir(os.path.join(paths.untrusted_files, kind)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            name = entry.removesuffix(".md") if kind == COMMANDS else entry
            problem = None
            place = os.path.join(kind, entry)
            if os.path.lexists(os.path.join(paths.directory, place)):
                problem = Refused(
                    f"The profile has {place} already.",
                    f"Rename one of them; the imported one is in {paths.untrusted_files}.",
                    code="exists",
                )
            result.append(UntrustedFile(kind, name, entry, problem))
    return result


def digest(paths: ProfilePaths) -> str:
    """The digest of the names and contents of all of them; empty if there are none."""
    tree = DirectoryTree(paths.untrusted_files, follow=False)
    whole = hashlib.sha256()
    is_empty = True
    for entry in walk(paths.untrusted_files):
        is_empty = False
        mode = entry.status.st_mode if entry.status is not None else 0
        whole.update(b"%d\0%s%o\0" % (len(os.fsencode(entry.path)), os.fsencode(entry.path), mode))
        if entry.is_file:
            # A skill may bring a file of any size.
            with tree.opened(entry.path) as (descriptor, _), open(descriptor, "rb", closefd=False) as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return "" if is_empty else whole.hexdigest()


def put_into_force(paths: ProfilePaths, files: list[UntrustedFile]) -> None:
    """Move these into force. The caller holds the profile's lock. Raises `OSError`."""
    for file in files:
        target = os.path.join(paths.directory, file.kind)
        atomic.make_directory(target)
        if not os.path.lexists(os.path.join(target, file.entry)):
            os.rename(os.path.join(paths.untrusted_files, file.kind, file.entry), os.path.join(target, file.entry))
            atomic.sync_directory(target)
    remove_empty(paths)


def remove_empty(paths: ProfilePaths) -> None:
    """Remove the directories of what waits, if nothing does: a kill can leave them."""
    for directory in (*(os.path.join(paths.untrusted_files, kind) for kind in _RISKS), paths.untrusted_files):
        with suppress(OSError):  # it has others, or does not exist
            os.rmdir(directory)
