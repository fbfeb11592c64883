"""Files outside the workspace that a person names in a prompt: `@~/notes.txt`, `@/tmp/log`.

Only a prompt that is typed at a terminal can name them, after a question. Every other source of prompts passes no such
files, so nothing outside the workspace is even looked up for it.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from deepctl import layout
from deepctl.files import key_files
from deepctl.files.paths_beneath import is_within_on_disk


class OutsideFile(NamedTuple):
    """A file or directory that a prompt names: its real path, the directory that a question is about, and the reason
    why it must not be sent, without a full stop.
    """

    path: str
    directory: str
    problem: str | None = None


def find(path: str) -> OutsideFile | None:
    """The file at an absolute path, or at one that begins with `~/`; `None` if it does not exist.

    Links are resolved first: what counts is where the file is. Refused are deepctl's own state and settings, files with
    keys, and everything that is no regular file or directory.
    """
    if path != "~" and not path.startswith(("~/", "/")):
        return None
    try:
        real_path = os.path.realpath(os.path.expanduser(path), strict=True)
        mode = os.stat(real_path).st_mode
    except (OSError, ValueError):
        return None
    directory = real_path if stat.S_ISDIR(mode) else os.path.dirname(real_path)
    problem = _own(real_path) or key_files.problem(real_path, os.path.expanduser("~"))
    if problem is None and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        problem = "it is not a regular file"
    return OutsideFile(real_path, directory, problem)


def _own(real_path: str) -> str | None:
    if is_within_on_disk(real_path, os.path.realpath(layout.root(os.environ).path)):
        return "it is part of deepctl's own state"
    settings = layout.config_file(os.environ)
    directory = os.path.dirname(settings)
    if real_path == settings or (os.path.basename(directory) == "deepctl" and is_within_on_disk(real_path, directory)):
        return "it belongs to deepctl's settings"
    return None
