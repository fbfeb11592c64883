"""Limits that hold for root, who is not bound by `ulimit -u`: a control group for each command.

Both versions of the kernel's interface, at its usual place. Only root can create a group there. Where root cannot
either (in many containers), commands run without a group, and `available` returns false. Source:
`Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst` of Linux.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import time
from typing import NamedTuple

_ROOT = "/sys/fs/cgroup"
_PREFIX = "deepctl-"
_TRIES = 200
_PAUSE = 0.001
_numbers = itertools.count()


class _Control(NamedTuple):
    """A file of a controller, with its names in both versions."""

    controller: str
    first: tuple[str, ...]
    second: tuple[str, ...]


_MEMORY = _Control("memory", ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), ("memory.max",))
_PROCESSES = _Control("pids", ("pids.max",), ("pids.max",))


@functools.cache
def _unified() -> bool:
    return os.path.exists(os.path.join(_ROOT, "cgroup.controllers"))


def _parents() -> dict[str, _Control]:
    if _unified():
        return {_ROOT: _MEMORY._replace(second=(*_MEMORY.second, *_PROCESSES.second))}
    return {os.path.join(_ROOT, limit.controller): limit for limit in (_MEMORY, _PROCESSES)}


def available() -> bool:
    """Whether this process can limit a command by control groups."""
    try:
        ControlGroup(memory=1 << 30, processes=16).close()
    except OSError:
        return False
    return True


class ControlGroup:
    """A control group, or one per controller, for one command. Raises `OSError` if it cannot be created."""

    def __init__(self, *, memory: int, processes: int) -> None:
        self.directories: list[str] = []
        name = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        try:
            for parent, control in _parents().items():
                _remove_left(parent)
                directory = os.path.join(parent, name)
                os.mkdir(directory)
                self.directories.append(directory)
                for file in control.second if _unified() else control.first:
                    value = processes if file == "pids.max" else memory
                    if file != "memory.memsw.limit_in_bytes" or os.path.exists(os.path.join(directory, file)):
                        _write(os.path.join(directory, file), str(value))
                if _unified() and os.path.exists(os.path.join(directory, "memory.swap.max")):
                    _write(os.path.join(directory, "memory.swap.max"), "0")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Remove it, after a short wait for its last processes. A remaining one is left to a later process."""
        for _ in range(_TRIES):
            self.directories = [directory for directory in self.directories if not _removed(directory)]
            if not self.directories:
                return
            time.sleep(_PAUSE)


def _write(path: str, text: str) -> None:
    # Never created: in a directory that is not a control group the file is missing, and that is an error.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _remove_left(parent: str) -> None:
    """Remove empty groups whose process has ended."""
    for name in os.listdir(parent):
        number = name.removeprefix(_PREFIX).partition("-")[0]
        if name.startswith(_PREFIX) and number.isdigit() and not os.path.exists(f"/proc/{number}"):
            _removed(os.path.join(parent, name))


def _removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except OSError as error:
        return error.errno != errno.EBUSY
    return True
