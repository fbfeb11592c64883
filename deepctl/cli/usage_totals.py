"""What the turns of a chat took: tokens, money, and the model's context, altogether and in each session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deepctl.agent.compaction import Compacted
    from deepctl.agent.turn import Usage


class Used(NamedTuple):
    """What turns took so far. `cost` is in USD, `None` once a price was not known.

    `context` is the share of the model's window that the conversation takes by now, from 0 to 1, `None` where it is not
    known.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = 0.0
    context: float | None = None

    def plus(self, sent: int, received: int, cost: float | None) -> Used:
        """The same and a turn more; a cost that is not known makes the sum unknown."""
        return self._replace(
            input_tokens=self.input_tokens + sent,
            output_tokens=self.output_tokens + received,
            cost=self.cost + cost if self.cost is not None and cost is not None else None,
        )


class Counts:
    """Counts what the turns take. Sessions are known by name, `None` where there are none."""

    def __init__(self) -> None:
        self.total = Used()
        """Of the whole chat. Its `context` is nobody's."""
        self._sessions: dict[str | None, Used] = {}

    def of(self, session: str | None) -> Used:
        """What the turns in one session took."""
        return self._sessions.get(session, Used())

    @contextmanager
    def turn(self, session: str | None, spent: Callable[[], tuple[Usage, float | None]]) -> Iterator[None]:
        """While entered, a turn runs; what it has used and cost by `spent` is counted however it ends."""
        try:
            yield
        finally:
            usage, cost = spent()
            self._add(session, usage.input_tokens, usage.output_tokens, cost)

    def compacted(self, session: str | None, done: Compacted) -> None:
        """Count what a summary took, and what it made of the context."""
        before = self.of(session).context
        self._add(session, done.usage.input_tokens, done.usage.output_tokens, done.cost)
        shorter = before * done.tokens_after / done.tokens_before if before and done.tokens_before else None
        self.takes(session, shorter)

    def takes(self, session: str | None, context: float | None) -> None:
        """A conversation takes this share of the window from now on; nobody knows which after a rewind."""
        self._sessions[session] = self.of(session)._replace(context=context)

    def _add(self, session: str | None, sent: int, received: int, cost: float | None) -> None:
        self.total = self.total.plus(sent, received, cost)
        self._sessions[session] = self.of(session).plus(sent, received, cost)
