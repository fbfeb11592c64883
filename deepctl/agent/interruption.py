"""What stops a turn, or a command of the user's: Ctrl-C, SIGTERM, SIGHUP, and the time it may take.

A signal is noted, and cancels the task that is at work; long work that no task can interrupt looks for it between two
files (`deepctl.cancellation`). No handler raises in the middle of other code: that would break the event loop, and
with it what outlives a turn, such as MCP servers and connections.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, TypeVar

from deepctl import cancellation
from deepctl.errors import DeepctlError, Interrupted, Terminated, TimedOut, terminate
from deepctl.files.atomic import storage_error

T = TypeVar("T")

Event = dict[str, Any]
Emit = Callable[[Event], None]
"""Is told of everything that happens in a turn."""

KEPT = "The conversation so far is stored."
"""The hint of an error that ends a turn."""
STOPPED = (Interrupted, Terminated, TimedOut)
_SAME_PRESS = 1.0
"""Seconds in which Ctrl-C that is pressed again is meant for what it has stopped already, which may be ending still."""
_CLOSING_SECONDS = 2.0
_GRACE = 2.0
"""Seconds that a turn may take to be put away after its time is over."""
_OTHERS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def storing() -> Iterator[None]:
    """Report a failure of the disk as such, and not as one of the network or of a tool."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, KEPT) from error


class AbandonedRun(Exception):
    """What was stopped does not end. Its event loop cannot be used again."""


class Interruption:
    """Stops what runs while `watched`. `seconds` is the time it may take, `note` the hint of the error.

    An application that has signal handlers of its own keeps them.
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
        """Whether the event loop has come round since the last signal."""
        self._is_abandoned = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Meanwhile signals and time stop what runs; entered again within, it is the same watch."""
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
        """Within `watched`, for what puts away what was stopped: only another signal stops that, or that it takes long.

        Without this it would be stopped by what has stopped the rest.
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
        """Whether anything stops the work."""
        return self._caught is not None or (self._deadline is not None and time.monotonic() >= self._deadline)

    def look(self) -> None:
        """Raise what stops the work, if anything does: `Interrupted`, `Terminated` or `TimedOut`."""
        if self.is_stopped:
            raise self.reason()

    def reason(self) -> DeepctlError:
        """What has stopped the work."""
        if self._caught is None and self.is_stopped:
            return TimedOut(f"The turn took longer than {self._seconds:g} s and was stopped.", self._kept)
        if self._caught in (None, signal.SIGINT):
            return Interrupted("Interrupted.", self._kept)
        return Terminated(self._caught, self._kept)

    def run(self, runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
        """Run something in an event loop.

        Raises what stops it, or `AbandonedRun` if another signal comes before it ends.
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
            # Whatever holds everything up has not looked for a second.
            raise KeyboardInterrupt
        if self._task is None:
            return
        self._is_heard = False
        self._task.get_loop().call_soon_threadsafe(self._cancel, self._task, is_repeat)

    def _stopped_by(self, number: int | None) -> None:
        """Note a signal; Ctrl-C counts for less than another."""
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
    """The handlers that may be replaced, by signal."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, *_OTHERS)}
    default = (signal.SIG_DFL, terminate, signal.default_int_handler)
    return {number: handler for number, handler in handlers.items() if handler in default}


def close(runner: asyncio.Runner, last: Coroutine[Any, Any, object] | None = None) -> None:
    """End what runs in an event loop, do `last` and close it. What takes longer than `_CLOSING_SECONDS` is left."""
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
    # The transports of what has ended close themselves in the next round.
    await asyncio.sleep(0)
