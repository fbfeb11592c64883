"""What a command prints, heard while it runs: pydantic-ai hands it over only when the command has ended.

Somebody listens with `heard_by`, in the context in which the command is run; whatever runs commands tells `listener`.
What they return, and how much a command may print, stays the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import SupportsIndex

import anyio.abc
from pydantic_ai.workspaces import LocalWorkspaceBackend

Hear = Callable[[bytes, bytes], None]
"""Takes what came on stdout and on stderr, in the event loop of the command. Must not raise."""

_LISTENER: ContextVar[Hear | None] = ContextVar("deepctl_listener", default=None)


@contextmanager
def heard_by(hear: Hear) -> Iterator[None]:
    """Meanwhile, what commands of this context print goes to `hear` as it comes."""
    token = _LISTENER.set(hear)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Hear | None:
    """Who listens to commands of this context."""
    return _LISTENER.get()


class StreamingBackend(LocalWorkspaceBackend):
    """Commands of this machine that can be listened to."""

    async def _wait_and_collect_output(
        self,
        process: anyio.abc.Process,
        stdout_buffer: bytearray,
        stderr_buffer: bytearray,
        absolute_deadline: float | None,
    ) -> int:
        hear = listener()
        if hear is None:
            return await super()._wait_and_collect_output(process, stdout_buffer, stderr_buffer, absolute_deadline)
        out = _Telling(lambda some: hear(some, b""))
        err = _Telling(lambda some: hear(b"", some))
        try:
            return await super()._wait_and_collect_output(process, out, err, absolute_deadline)
        finally:
            stdout_buffer += out
            stderr_buffer += err


if "_wait_and_collect_output" not in vars(LocalWorkspaceBackend):
    raise ImportError("this version of pydantic-ai collects the output of commands in a way that deepctl does not know")


class _Telling(bytearray):
    """Bytes that tell what is added to them."""

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        super().__init__()
        self._tell = tell

    def extend(self, added: Iterable[SupportsIndex], /) -> None:
        before = len(self)
        super().extend(added)
        self._tell(bytes(self[before:]))
