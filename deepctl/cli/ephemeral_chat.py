"""The chat of nobody, which is gone when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepctl.cli.background import Background
from deepctl.cli.chat_session import STAGES, Shown, TurnCallbacks
from deepctl.cli.chat_setup import EphemeralEngine, Start
from deepctl.domain import attachments
from deepctl.errors import DeepctlError, Refused
from deepctl.output.stream.turn_events import Display

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from deepctl.agent.user_commands import Ended
    from deepctl.sandbox.container import Sink


class EphemeralChatSession(Shown[EphemeralEngine]):
    """A chat of nobody, which is gone when it ends."""

    def __init__(self, start: Start, display: Display) -> None:
        super().__init__(start, None, display)
        self.name = start.name

    def _made(self) -> EphemeralEngine:
        return self.start.ephemeral()

    def change(self, **given: str) -> None:
        """Only the way of approving and the model can change; the conversation goes on."""
        before, self.start = self.start, self.start.changed(None, **given)
        try:
            changed = self.start.ephemeral()
        except BaseException:
            self.start = before
            raise
        try:
            old = self._engine.get()
        except DeepctlError:
            # Nobody could answer so far, so nothing has been said.
            self._engine, self._introduced, self._named = Background(lambda: changed), False, None
            self._engine.get()
            return
        engine = EphemeralEngine(changed.running, old.chat.answered_by(changed.running), changed.commands)
        self._engine, self._introduced, self._named = Background(lambda: engine), False, None
        self._engine.get()
        old.running.close()

    def turn(
        self,
        prompt: str,
        session: str | None,
        new: str | None,
        files: Sequence[str] = (),
        stages: TurnCallbacks = STAGES,
    ) -> None:
        engine = self._engine.get()
        self.introduce(self.display.notice)
        self._started(None, None, engine)
        said = attachments.mentioned(prompt, engine.chat.attach(files, self._notice))
        stages.sent()
        with self.counts.turn(None, engine.running.spent):
            outcome = engine.chat.turn(said, self.display.event)
        self._finished(outcome, None, None, None)

    def command(self, line: str, sink: Sink) -> Ended:
        raise Refused("This conversation has no directory for commands.", "Without --ephemeral there is one.")

    def begin(self, session: str | None, new: str | None) -> str:
        return f"Nothing of this is kept; model {self.start.model}."

    def compact(self, session: str | None, focus: str | None) -> None:
        self.counts.compacted(None, self._engine.get().chat.compact(focus, self.display.event))

    def history(self) -> History:
        from prompt_toolkit.history import InMemoryHistory

        return InMemoryHistory()


def _sum(one: float | None, other: float | None) -> float | None:
    """Of two prices, if both are known."""
    return one + other if one is not None and other is not None else None
