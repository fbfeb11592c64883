"""Temporary files that a killed file tool left in a directory that no checkpoint covers.

A snapshot removes those that it meets, but it does not enter ignored directories. The call in the log names the file
that the tool was writing, and its temporary file is beside it.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from deepctl.files import atomic
from deepctl.store import restore
from deepctl.store.log_file import Message
from deepctl.store.workspaces import WorkspaceOptions

_ALIAS = "/workspace"
"""Where tools see the project, besides its own path."""


def sweep(workspace: WorkspaceOptions, messages: Iterable[Message], turn: int) -> None:
    """Remove the temporary files beside the paths in the tool calls of a killed turn of a project."""
    project = workspace.project
    if project is None:
        return
    for directory in {posixpath.dirname(path) for path in _paths(project.root, messages, turn)}:
        with suppress(OSError), restore.directory(project.root, os.fsencode(directory)) as descriptor:
            for name in os.listdir(descriptor):
                if atomic.is_temporary(name):
                    atomic.remove_dead_temporary(descriptor, os.fsencode(name))


def _paths(root: str, messages: Iterable[Message], turn: int) -> Iterator[str]:
    """The paths in the calls of a turn, relative to the project. Other texts among them name no directory."""
    for entry in messages:
        parts = entry.message.get("parts") if entry.turn == turn else None
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict) or part.get("part_kind") != "tool-call":
                continue
            for value in _arguments(part.get("args")).values():
                if not isinstance(value, str) or "\0" in value or len(value) > 4096:
                    continue
                for place in (root, _ALIAS):
                    value = value.removeprefix(f"{place}/")
                path = posixpath.normpath(value)
                if not path.startswith(("/", "..")):
                    yield path


def _arguments(arguments: object) -> dict[str, Any]:
    """The arguments of a call, which a model may have sent as text."""
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return arguments if isinstance(arguments, dict) else {}
