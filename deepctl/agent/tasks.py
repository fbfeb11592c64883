"""Tasks and threads of applications: what a run starts, and what of it goes on after the caller was cancelled.

A run is a task of its own. If its caller is cancelled, by asyncio or by a cancel scope of anyio, or stops reading its
events, the run is cancelled once, and the caller waits until the run has stored its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio
import anyio.to_thread

from deepctl.agent.interruption import Emit, Event

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


_QUEUES: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, asyncio.Lock]] = WeakKeyDictionary()


def queue(path: str) -> asyncio.Lock:
    """The queue of the event loop for the lock at `path`, in the order of arrival.

    Otherwise many requests of one user would make all worker threads wait for one lock, and all other users for these.
    """
    queues = _QUEUES.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
    return queues.setdefault(path, asyncio.Lock())


_WORKERS: WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter] = WeakKeyDictionary()
_MOST_WORKERS = 40


async def in_worker(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Run blocking work in one of deepctl's worker threads.

    They are not anyio's own ones. A web framework runs the request handlers of an application in those, and handlers
    that wait for a run would leave no thread to the run.
    """
    loop = asyncio.get_running_loop()
    workers = _WORKERS.get(loop)
    if workers is None:
        workers = _WORKERS[loop] = anyio.CapacityLimiter(_MOST_WORKERS)
    return await anyio.to_thread.run_sync(function, *args, limiter=workers)


async def in_thread(action: Callable[[], T], /) -> T:
    """Run blocking work in a worker thread. A cancelled caller waits for its end too: the work is not stopped."""
    worker = asyncio.ensure_future(in_worker(action))
    cancelled: asyncio.CancelledError | None = None
    while not worker.done():
        try:
            await asyncio.wait([worker])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        worker.exception()  # otherwise asyncio would report an unread error
        raise cancelled
    return worker.result()


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of work in a task of its own."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task])
    finally:
        await _ended(task)
    return task.result()


async def streamed(work: Callable[[Emit], Coroutine[Any, Any, object]]) -> AsyncGenerator[Event, None]:
    """The events of work in a task of its own. Raises its error after the last event.

    The work may emit events from any thread.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    def emit(event: Event) -> None:
        if threading.get_ident() == thread:
            events.put_nowait(event)
        else:
            loop.call_soon_threadsafe(events.put_nowait, event)

    task = asyncio.create_task(work(emit))
    task.add_done_callback(lambda task: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
    finally:
        await _ended(task)
    task.result()


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task that has not ended, and wait for its end."""
    if task.done():
        return
    if not task.cancelling():
        task.cancel()
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue  # the caller is cancelled already
    if not task.cancelled():
        task.exception()  # otherwise asyncio would report an unread error
