"""The task that a sub-agent works on, for the code that must know whose call a tool call is.

A sub-agent is the same agent in a run of its own, so all of its tools, approvals and limits are the same objects. The
current `Delegation` is what differs: a name, fewer tools, and other instructions. It is a context variable, because the
run of a sub-agent is inside a tool call of its parent, and nothing passes an argument through.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from deepctl.agent.interruption import Emit
from deepctl.errors import DeepctlError

PARENT_TOOLS = frozenset(
    {"ask_user", "delegate_task", "list_checkpoints", "rewind_to", "save_checkpoint", "save_plan", "write_plan"}
)
"""The tools that no sub-agent has: those for the user, for the to-do list and for the checkpoints of the whole turn,
and the one that starts another sub-agent.
"""


class Delegation(NamedTuple):
    """The task of a running sub-agent: its name, and the id of the tool call of its parent.

    `tools` are the only tools that it has, `None` for all of its parent; it never has one of `disabled`, and none of
    `PARENT_TOOLS`.
    """

    agent: str
    call_id: str
    tools: frozenset[str] | None = None
    disabled: frozenset[str] = frozenset()

    def offers(self, tool: str) -> bool:
        """Whether the sub-agent has a tool."""
        if tool in PARENT_TOOLS or tool in self.disabled:
            return False
        return self.tools is None or tool in self.tools


class TurnObserver(NamedTuple):
    """Receives the work of the sub-agents of a turn.

    `emit` receives the events, and `tool_done` the name of a tool after it has ended and before the next one starts.
    `explain` returns the error for an exception of the model, `None` for any other.
    """

    emit: Emit
    tool_done: Callable[[str], Awaitable[None]] | None
    explain: Callable[[Exception], DeepctlError | None]


_DELEGATION: ContextVar[Delegation | None] = ContextVar("deepctl_delegation", default=None)
_OBSERVER: ContextVar[TurnObserver | None] = ContextVar("deepctl_turn_observer", default=None)


def current() -> Delegation | None:
    """The task of the sub-agent that runs here; `None` in a run of the agent itself."""
    return _DELEGATION.get()


def agent_name() -> str:
    """The name of the sub-agent that runs here; empty in a run of the agent itself."""
    task = _DELEGATION.get()
    return task.agent if task is not None else ""


def observer() -> TurnObserver | None:
    """The observer of the turn; `None` in a run without one, such as `agent.run` of an application."""
    return _OBSERVER.get()


@contextmanager
def working_on(delegation: Delegation) -> Iterator[None]:
    """Inside this context, runs are those of a sub-agent."""
    token = _DELEGATION.set(delegation)
    try:
        yield
    finally:
        _DELEGATION.reset(token)


@contextmanager
def observed_by(turn_observer: TurnObserver) -> Iterator[None]:
    """Inside this context, `turn_observer` receives the work of sub-agents."""
    token = _OBSERVER.set(turn_observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)
