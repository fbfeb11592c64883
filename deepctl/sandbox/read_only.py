"""Directories of this machine that commands can read, such as toolchains: their mounts, and the variables for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from deepctl.sandbox.policy import COMMAND_PATH

_HOMES = {".rustup": "RUSTUP_HOME", ".pyenv": "PYENV_ROOT", ".rbenv": "RBENV_ROOT", ".volta": "VOLTA_HOME"}
"""Directories that programs look for in `$HOME` unless a variable names them: `$HOME` is another one for commands."""


class Bind(NamedTuple):
    """A directory or a file of this machine, and its path for commands."""

    source: str
    target: str
    writable: bool = True


def binds(paths: Sequence[str], writable: Sequence[str] = ()) -> tuple[Bind, ...]:
    """The mounts of read-only paths: under the path that was given, and under the one it has behind links.

    Paths in the `writable` directories of the same commands are left out.
    """
    real = {path: os.path.realpath(path) for path in paths}
    targets = {
        target: source
        for path, source in real.items()
        for target in (path, source)
        if not any(source == place or source.startswith(f"{place}/") for place in writable)
    }
    return tuple(Bind(targets[target], target, False) for target in sorted(targets, key=lambda path: path.count("/")))


def variables(paths: Sequence[str]) -> dict[str, str]:
    """`PATH` with the programs of these directories behind those of the system, and their other variables."""
    if not paths:
        return {}
    homes = {_HOMES[name]: path for path in paths if (name := os.path.basename(path)) in _HOMES}
    return {"PATH": ":".join([COMMAND_PATH, *_programs(paths)]), **homes}


def _programs(paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        own = path if os.path.basename(path) == "bin" else os.path.join(path, "bin")
        # A colon would end the path in the variable.
        if os.path.isdir(own) and ":" not in own:
            yield own
