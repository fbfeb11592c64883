"""Drafts: the private copy of a notebook that a person edits, outside the workspace and outside /tmp.

A draft is a file in a directory of its own beside the workspace, `.edit-<random>/<FILE>`. It goes when what is in it
has found its way into the notebook, or was not changed; after a kill, or where it could not be taken over, it stays.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from deepctl.errors import Refused
from deepctl.files import atomic
from deepctl.files.rmtree import remove_tree
from deepctl.layout import ProfilePaths

PREFIX = ".edit-"


class Draft(NamedTuple):
    """A copy of a notebook: the directory made for it, and the file in it."""

    directory: str
    path: str


def begin(profile: ProfilePaths, name: str, content: bytes) -> Draft:
    """Make a draft of the notebook `name`. The directory is 0700, the file 0600."""
    directory = os.path.join(profile.directory, PREFIX + os.urandom(6).hex())
    atomic.make_new_directory(directory)
    draft = Draft(directory, os.path.join(directory, name))
    try:
        atomic.write_file(draft.path, content)
    except BaseException:
        discard(draft)
        raise
    return draft


def read(draft: Draft) -> bytes:
    """What is in a draft now. Raises `Refused` if it is gone, or is no file any more."""
    try:
        return atomic.read_file(draft.path)
    except (FileNotFoundError, NotADirectoryError):
        with suppress(OSError):
            os.rmdir(draft.directory)
        raise Refused(
            f"The editor left no file behind ({draft.path}), so nothing was changed.", code="no_draft"
        ) from None


def discard(draft: Draft) -> None:
    """Remove a draft, and what an editor left beside it."""
    remove_tree(draft.directory)


def left(profile: ProfilePaths) -> list[str]:
    """The files of all drafts of a profile, sorted: of edits that are going on, and of those that came to no end."""
    try:
        directories = sorted(entry for entry in os.listdir(profile.directory) if entry.startswith(PREFIX))
    except FileNotFoundError:
        return []
    found = []
    for directory in directories:
        place = os.path.join(profile.directory, directory)
        try:
            # What an editor keeps beside a file is hidden, or has a tilde behind its name.
            found += [
                os.path.join(place, name)
                for name in sorted(os.listdir(place))
                if not name.startswith(".") and not name.endswith("~")
            ]
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found
