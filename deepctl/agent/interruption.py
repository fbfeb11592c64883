"""Stopping a turn or a command of the user: by Ctrl-C, SIGTERM, SIGHUP, or a time limit.

A signal is recorded, and cancels the running task; long work that no task can interrupt checks for it between two files
(`deepctl.cancellation`). No handler raises in the middle of other code, because that would break the event loop, and
with it the MCP servers and connections that outlive a turn.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, Protocol, TypeVar

from deepctl import cancellation
from deepctl.errors import DeepctlError, Interrupted, Terminated, TimedOut, terminate
from deepctl.files.atomic import storage_error

T = TypeVar("T")

Event = dict[str, Any]
Emit = Callable[[Event], None]
"""Receives all events of a turn."""

KEPT = "The conversation so far is stored."
"""The hint of an error that ends a turn."""
STOPPED = (Interrupted, Terminated, TimedOut)
_SAME_PRESS = 1.0
"""Seconds after a Ctrl-C in which another Ctrl-C has no effect, because it was meant for the same work."""
_CLOSING_SECONDS = 2.0
_GRACE = 2.0
"""Seconds for the cleanup of a turn after its time limit."""
_OTHERS = (signal.SIGTERM, signal.SIGHUP)


class Blocking(Protocol):
    """Runs blocking work of the store and returns its result."""

    def __call__(self, action: Callable[[], T], /) -> Awaitable[T]: ...


async def directly(action: Callable[[], T], /) -> T:
    """Run blocking work in the thread of the event loop: in the command line, nothing else needs the loop."""
    return action()


@contextmanager
def storing() -> Iterator[None]:
    """Report a failure of the disk as a storage error, not as a failure of the network or of a tool."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, KEPT) from error


class AbandonedRun(Exception):
    """The stopped task does not end. Its event loop cannot be used again."""


class Interruption:
    """Stops the work inside `watched`. `seconds` is its time limit, `note` the hint of the error.

    An application's own signal handlers stay in place.
    """

    def __init__(self, seconds: float | None = None, note: str | None = None) -> None:
        self._seconds = seconds
        self._kept = note
        self._is_watching = False
        self._caught: int | None = None
        self._caught_at = 0.0
        self._deadline: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._is_heard = True
        """Whether the event loop has run since the last signal."""
        self._is_abandoned = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside this context signals and the time limit stop the work; a nested context is the same watch."""
        if self._is_watching:
            yield
            return
        self._is_watching, self._caught = True, None
        self._deadline = time.monotonic() + self._seconds if self._seconds is not None else None
        before = _handlers()
        try:
            for number in before:
                signal.signal(number, self._signalled)
            with cancellation.stoppable(self.look):
                yield
            if self._caught not in (None, signal.SIGINT):
                raise self.reason()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._is_watching = False

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Within `watched`, for the cleanup of stopped work: only another signal, or a long duration, stops the
        cleanup.

        Without this, the reason that stopped the work would stop its cleanup too.
        """
        signal_number, deadline, self._caught = self._caught, self._deadline, None
        self._deadline = time.monotonic() + _GRACE if deadline is not None else None
        try:
            yield
        finally:
            self._stopped_by(signal_number)
            self._deadline = deadline

    @property
    def is_stopped(self) -> bool:
        """Whether there is a reason to stop the work."""
        return self._caught is not None or (self._deadline is not None and time.monotonic() >= self._deadline)

    def look(self) -> None:
        """Raise the reason to stop the work, if there is one: `Interrupted`, `Terminated` or `TimedOut`."""
        if self.is_stopped:
            raise self.reason()

    def reason(self) -> DeepctlError:
        """The reason that stopped the work."""
        if self._caught is None and self.is_stopped:
            return TimedOut(f"The turn took longer than {self._seconds:g} s and was stopped.", self._kept)
        if self._caught in (None, signal.SIGINT):
            return Interrupted("Interrupted.", self._kept)
        return Terminated(self._caught, self._kept)

    def run(self, runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
        """Run a task in an event loop.

        Raises the reason that stops the task, or `AbandonedRun` if another signal arrives before its end.
        """
        self._is_heard, self._is_abandoned = True, False
        try:
            with self.watched():
                return runner.run(self._bounded(work))
        except asyncio.CancelledError:
            if not self.is_stopped:
                raise
            raise self.reason() from None
        except RuntimeError as error:
            if not self._is_abandoned:
                raise
            raise AbandonedRun from error
        finally:
            self._task = None

    async def _bounded(self, work: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        seconds = self._deadline - time.monotonic() if self._deadline is not None else None
        with closing(work):
            self.look()
            deadline = asyncio.timeout(seconds)
            try:
                async with deadline:
                    return await work
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise self.reason() from None

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        now, is_repeat = time.monotonic(), self._caught is not None
        if is_repeat and number == signal.SIGINT and now - self._caught_at < _SAME_PRESS:
            return
        self._caught_at = now
        self._stopped_by(number)
        if is_repeat and (self._task is None or not self._is_heard):
            # Code that blocks everything has not checked for a second.
            raise KeyboardInterrupt
        if self._task is None:
            return
        self._is_heard = False
        self._task.get_loop().call_soon_threadsafe(self._cancel, self._task, is_repeat)

    def _stopped_by(self, number: int | None) -> None:
        """Record a signal; Ctrl-C has the lowest priority."""
        if self._caught is None or number not in (None, signal.SIGINT):
            self._caught = number

    def _cancel(self, task: asyncio.Task[Any], is_repeat: bool) -> None:
        self._is_heard = True
        if is_repeat:
            self._is_abandoned = True
            task.get_loop().stop()
        else:
            task.cancel()


def _handlers() -> dict[int, Any]:
    """The replaceable handlers, by signal."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, *_OTHERS)}
    default = (signal.SIG_DFL, terminate, signal.default_int_handler)
    return {number: handler for number, handler in handlers.items() if handler in default}


def close(runner: asyncio.Runner, last: Coroutine[Any, Any, object] | None = None) -> None:
    """End the tasks of an event loop, run `last` and close it. Tasks that take longer than `_CLOSING_SECONDS` are
    abandoned.
    """
    loop = runner.get_loop()
    try:
        loop.run_until_complete(_ended(last))
    finally:
        if asyncio.all_tasks(loop):
            loop.close()
        else:
            runner.close()


async def _ended(last: Coroutine[Any, Any, object] | None) -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CLOSING_SECONDS)
    if last is not None:
        await asyncio.wait_for(last, _CLOSING_SECONDS)
    # The transports of ended tasks close themselves in the next iteration.
    await asyncio.sleep(0)
