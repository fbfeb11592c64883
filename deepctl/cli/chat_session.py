"""What every chat of the command line has: who answers, how a turn is shown and counted, and how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from deepctl.cli.background import Background
from deepctl.cli.chat_setup import Commands, EphemeralEngine, ProfileEngine, Start
from deepctl.cli.usage_totals import Counts
from deepctl.layout import Root
from deepctl.output.stream.turn_events import Display

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from deepctl.agent.turn import Outcome
    from deepctl.agent.user_commands import Ended
    from deepctl.sandbox.container import Sink


class ChatStatus(NamedTuple):
    """What a person wants to see of a chat at any time. `commands` is `None` while that is being found out."""

    profile: str
    session: str | None
    model: str
    approve: str
    commands: Commands | None


class TurnCallbacks(NamedTuple):
    """Who is told how far a turn has come: whatever becomes of it, this much has happened."""

    begun: Callable[[str], None] = lambda session: None
    """The session exists that it is in, of this name."""
    sent: Callable[[], None] = lambda: None
    """The prompt and what goes with it are the agent's now."""


STAGES = TurnCallbacks()
_OFFLINE = (
    "The offline model answers: it follows a few commands and is not an LLM. "
    "Choose a model with `--model NAME` or `deepctl config set model provider:name`."
)


class ChatSession(Protocol):
    """A chat, of a profile or of none."""

    start: Start
    display: Display
    counts: Counts

    @property
    def name(self) -> str:
        """What the prompt of the line editor says."""
        ...

    def turn(
        self,
        prompt: str,
        session: str | None,
        new: str | None,
        files: Sequence[str] = (),
        stages: TurnCallbacks = STAGES,
    ) -> None:
        """Run one turn and show it."""
        ...

    def command(self, line: str, sink: Sink) -> Ended:
        """Run a command of the user's where the agent's run, `sink` taking what it prints as it comes.

        Raises `Refused` where there is no shell, `Interrupted`, and what the lock and the workspace raise.
        """
        ...

    def begin(self, session: str | None, new: str | None) -> str:
        """Before the first prompt of a conversation: returns where the conversation goes on."""
        ...

    def compact(self, session: str | None, focus: str | None) -> None:
        """Have the conversation summarised for the model, and show what came of it."""
        ...

    def commands(self) -> Commands:
        """What becomes of the agent's commands; waits while that is being found out."""
        ...

    def facts(self, session: str | None) -> ChatStatus: ...

    def warm(self, done: Callable[[BaseException | None], None]) -> None:
        """Get who answers ready in a thread, which calls `done` in the end with what went wrong."""
        ...

    def introduce(self, tell: Callable[[str], None]) -> None:
        """Say once who answers, if it is no LLM, and what is special about commands."""
        ...

    def change(self, **given: str) -> None:
        """Have another model, sandbox or way of approving from now on. Raises what keeps that from working."""
        ...

    def history(self) -> History:
        """What the line editor remembers."""
        ...

    def close(self) -> None: ...


_Engine = TypeVar("_Engine", ProfileEngine, EphemeralEngine)


class Shown(Generic[_Engine]):
    """What all chats have: who answers, and how the start and the end of a turn are shown."""

    def __init__(self, start: Start, root: Root | None, display: Display) -> None:
        self.start = start
        self._engine: Background[_Engine] = Background(self._made)
        self._root = root
        self.display = display
        self.counts = Counts()
        self._named: tuple[str, str] | None = None
        self._introduced = False
        self._said: set[str] = set()
        self._introducing = threading.Lock()

    def _finished(self, outcome: Outcome, session: str | None, checkpoint: str | None, notice: str | None) -> None:
        """Show the end of a turn."""
        window = outcome.context.window
        self.counts.takes(session, outcome.context.tokens / window if window else None)
        document = outcome.document()
        result = {"type": "result", "output": outcome.output, "session": session, "checkpoint": checkpoint, **document}
        if notice is not None:
            self.display.notice(notice)
            result["notice"] = notice
        self.display.event(result)

    def _made(self) -> _Engine:
        raise NotImplementedError

    def facts(self, session: str | None) -> ChatStatus:
        if self._named is None:
            # Kept, because a line editor asks with every key.
            self._named = self.start.model, self.start.approve
        engine = self._engine.made
        return ChatStatus(self.start.name, session, *self._named, engine.commands if engine is not None else None)

    def commands(self) -> Commands:
        return self._engine.get().commands

    def warm(self, done: Callable[[BaseException | None], None]) -> None:
        self._engine.begin(done)

    def close(self) -> None:
        if self._engine.made is not None:
            self._engine.made.running.close()

    def introduce(self, tell: Callable[[str], None]) -> None:
        engine = self._engine.get()
        with self._introducing:
            if self._introduced:
                return
            self._introduced = True
            offline = _OFFLINE if engine.running.options.model == "offline" else None
            for message in (offline, engine.commands.notice):
                if message is not None and message not in self._said:
                    self._said.add(message)
                    # Whoever comes second goes on when it has been said.
                    tell(message)

    def _notice(self, message: str) -> None:
        self.display.event({"type": "notice", "message": message})

    def _started(self, profile: str | None, session: str | None, engine: ProfileEngine | EphemeralEngine) -> None:
        commands = engine.commands
        event: dict[str, Any] = {
            "type": "start",
            "profile": profile,
            "session": session,
            "model": engine.running.options.model,
            "sandbox": commands.sandbox,
            "network": commands.network,
            "questions": commands.questions,
            "notice": commands.notice,
        }
        self.display.event(event)
