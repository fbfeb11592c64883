"""Tasks and threads of applications: what a run starts, and what of it goes on after the caller was cancelled.

A run is a task of its own. If its caller is cancelled, by asyncio or by a cancel scope of anyio, or stops reading its
events, the run is cancelled once, and the caller waits until the run has stored its end.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple, Unpack
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary, ref

import anyio
import anyio.to_thread
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from deepctl.agent.interruption import Emit, Event
from deepctl.errors import UsageError

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


_RUNS: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakSet[asyncio.Task[Any]]] = WeakKeyDictionary()
"""The runs of each event loop, and the changes of profiles."""


def _start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(work)
    _RUNS.setdefault(asyncio.get_running_loop(), WeakSet()).add(task)
    return task


async def end_runs() -> None:
    """Cancel all runs of this event loop, and wait until they have stored their ends: for the end of an application.

    A web server cancels the requests that take too long at its end, but does not wait for them. The process may then
    end before the last checkpoint of a turn is stored. So call this function at the end of the application's lifespan.
    The runs are those of `deepctl.run`, `deepctl.stream` and of open profiles, and so are rewinds. They raise
    `asyncio.CancelledError` where they were called.
    """
    current = asyncio.current_task()
    await asyncio.gather(*[_ended(task) for task in _RUNS.get(asyncio.get_running_loop(), ()) if task is not current])


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """The result of work in a task of its own."""
    task = _start(work)
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

    task = _start(work(emit))
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


_MODEL_LOOP = "_deepctl_event_loop"
"""The attribute of a provider, or of a model without one, with a reference to the event loop that uses it."""
_MODEL_LOOP_LOCK = threading.Lock()


def check_event_loop(model: Model | str | None) -> None:
    """Raise `UsageError` if another event loop, which is running, uses this model. Otherwise it belongs to this one.

    Two event loops cannot share the connections of a model. pydantic-ai's lock around them is one of anyio, so a loop
    that waits for it is never woken by another loop: the request would wait for ever, outside of every time limit.
    A model without connections (`TestModel`, `FunctionModel`) has no provider and may be used anywhere.
    """
    loop = asyncio.get_running_loop()
    for owner in _with_connections(model):
        with _MODEL_LOOP_LOCK:
            reference = vars(owner).get(_MODEL_LOOP)
            user = reference() if reference is not None else None
            if user is not None and user is not loop and user.is_running():
                assert isinstance(model, Model)
                raise UsageError(
                    f"The model {model.model_name!r} is in use in another event loop of this process.",
                    "A model object belongs to one event loop. Give create_deep_agent() the name of the model, make "
                    "an agent and a model in each thread, or run all turns in one event loop.",
                    code="event_loop",
                )
            vars(owner)[_MODEL_LOOP] = ref(loop)


def _with_connections(model: object) -> list[object]:
    """The providers of a model, and the models with a lock of their own."""
    if isinstance(model, WrapperModel):
        return _with_connections(model.wrapped)
    if isinstance(model, FallbackModel):
        return [model, *(owner for choice in model.models for owner in _with_connections(choice))]
    provider = model.provider if isinstance(model, Model) else None
    return [provider] if provider is not None else []
