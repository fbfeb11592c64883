"""How notices and errors name commands: as a shell knows them, unless whoever runs the command has names of its own.

Everything below says `deepctl checkpoints undo --user alice`, in backquotes. A conversation, where that is `/undo`,
says so once, and all that is told meanwhile in this thread is reworded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_reword: ContextVar[Callable[[str], str] | None] = ContextVar("reword", default=None)


@contextmanager
def conversing(reword: Callable[[str], str]) -> Iterator[None]:
    """Meanwhile it is in a conversation that things are told, and `reword` gives them the names of its commands."""
    token = _reword.set(reword)
    try:
        yield
    finally:
        _reword.reset(token)


def is_conversation() -> bool:
    """Whether what is told is told in a conversation."""
    return _reword.get() is not None


def worded(text: str) -> str:
    """`text` with the commands named as they are where it is told."""
    reword = _reword.get()
    return reword(text) if reword is not None else text
