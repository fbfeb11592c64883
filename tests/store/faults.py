"""Faults at a chosen point: a call to the file system before which the process is killed, or which fails, or a line of
the code at which Ctrl-C comes.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any, Protocol

CALLS = (
    "chmod", "fchmod", "fdatasync", "fsync", "ftruncate", "link", "listdir", "lstat", "mkdir", "open", "pread",
    "pwrite", "read", "readlink", "rename", "rmdir", "scandir", "stat", "symlink", "sync", "unlink", "write",
)  # fmt: skip


class Points(Protocol):
    """Counts what happens while it is installed, and makes the fault at one of them."""

    seen: int

    def installed(self) -> contextlib.AbstractContextManager[None]: ...


class Lines:
    """Counts the lines of `function`, and of all that it calls, and raises `KeyboardInterrupt` at number `at`, from 1.

    What a function returns counts as a line, too: that is where what it did can get lost.
    """

    def __init__(self, function: Callable[..., Any], at: int = 0) -> None:
        self.seen = 0
        self._code: CodeType = function.__code__
        self._at = at
        self._depth = 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While entered, every line goes through this."""
        before = sys.gettrace()
        gc.disable()  # its callbacks have lines, too, at moments that differ
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(before)
            gc.enable()

    def _called(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not self._code and not self._depth:
            return None
        self._depth += 1
        return self._within

    def _within(self, frame: FrameType, event: str, argument: object) -> Any:
        if event in ("line", "return"):
            self.seen += 1
        if event == "return":
            self._depth -= 1
        if self.seen == self._at and event in ("line", "return"):
            sys.settrace(None)
            raise KeyboardInterrupt
        return self._within


class Counter:
    """Counts the calls, notes their names, and does something right before the call number `at`, from 1.

    With `beneath`, only calls on something in that directory count; with `only`, only calls of these names.
    """

    def __init__(
        self,
        at: int = 0,
        action: Callable[[], None] | None = None,
        *,
        only: tuple[str, ...] = CALLS,
        beneath: str | None = None,
    ) -> None:
        self.seen = 0
        self.names: list[str] = []
        self._at = at
        self._action = action
        self._only = only
        self._beneath = beneath

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While entered, the calls of `os` go through this."""
        real = {name: getattr(os, name) for name in self._only}
        for name, call in real.items():
            setattr(os, name, self._counting(call))
        try:
            yield
        finally:
            for name, call in real.items():
                setattr(os, name, call)

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self._beneath is None or _is_beneath(self._beneath, arguments, options):
                self.seen += 1
                self.names.append(call.__name__)
            if self.seen == self._at and self._action is not None:
                self.seen += 1
                self._action()
            return call(*arguments, **options)

        return counted


def _is_beneath(directory: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    descriptor = options.get("dst_dir_fd", arguments[0])
    place = os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else str(arguments[0])
    return place.startswith(directory)


def count(operation: Callable[[], object], points: Points | None = None) -> int:
    """How many calls an operation makes, or how many other points there are in it."""
    counter = points or Counter()
    with counter.installed():
        operation()
    return counter.seen


def points(operation: Callable[[], object]) -> list[tuple[int, str, str]]:
    """Every fault at every call that an operation makes: the number of the call, its name, and the fault's name."""
    counter = Counter()
    with counter.installed():
        operation()
    return [(at, name, fault) for at, name in enumerate(counter.names, 1) for fault in FAULTS]


def sample(every: Sequence[tuple[int, str, str]], seed: str, size: int) -> list[tuple[int, str, str]]:
    """About `size` of these points, the same every time: each name of a call, each fault, then others.

    Different seeds take different faults for a name. `make soak` tries every point.
    """
    order = sorted(every, key=lambda point: hashlib.sha256(f"{seed} {point}".encode()).digest())
    chosen: list[tuple[int, str, str]] = []
    for kind in (1, 2):
        for point in order:
            if all(point[kind] != other[kind] for other in chosen):
                chosen.append(point)
    return sorted([*chosen, *(point for point in order if point not in chosen)][: max(size, len(chosen))])


def kill() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(number: int) -> Callable[[], None]:
    """The call fails with this error."""

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


FAULTS = {"SIGKILL": kill, "ENOSPC": failing(errno.ENOSPC), "EIO": failing(errno.EIO)}
"""What may go wrong at a call."""


def in_child(operation: Callable[[], object], at: int, action: Callable[[], None]) -> str:
    """Run an operation in a process of its own with a fault. Returns `killed`, `done` or the name of what it raised."""
    return in_child_with(operation, Counter(at, action))


def in_child_with(operation: Callable[[], object], fault: Points) -> str:
    """The same with a fault of whatever kind."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        said = "done"
        try:
            with fault.installed():
                operation()
        except BaseException as error:
            said = type(error).__name__
            if not isinstance(error, (OSError, KeyboardInterrupt)) and "deepctl" not in type(error).__module__:
                import traceback

                said += "\n" + traceback.format_exc()
        os.write(writer, said.encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said
