"""A conversation that leaves nothing behind: files, memory, plans, checkpoints and messages are in memory."""

from __future__ import annotations

from typing import Any

from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, UserContent, repair_messages
from pydantic_ai_backends import StateBackend

from deepctl.agent.assemble import DeepAgentDeps
from deepctl.agent.checkpoint_stores import InMemoryCheckpointStore
from deepctl.agent.checkpointing import RewindRequested
from deepctl.agent.running import Running
from deepctl.agent.turn import Emit, Outcome


class _Messages:
    """The record of a turn, in memory. Results of a turn that breaks off are lost with it, as its answer is."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def result(self, part: dict[str, Any]) -> None:
        """It comes again, in the message that has all of the same answer."""

    def message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)


class EphemeralChat:
    """A conversation in memory: the guide's pattern A. Nothing of it is read from or written to a disk."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._deps = DeepAgentDeps(backend=StateBackend(), checkpoint_store=InMemoryCheckpointStore())
        self._history: list[ModelMessage] = []

    def turn(self, prompt: str, emit: Emit) -> Outcome:
        """Run one turn. Raises what `Running.run` raises; what was complete by then is remembered."""
        said: str | list[UserContent] = prompt
        while True:
            record = _Messages()
            try:
                return self._running.run(self._deps, said, self._history, record, emit)
            except RewindRequested as request:
                record.messages.clear()
                self._history = request.messages
                said = request.prompt(prompt)
            finally:
                new = ModelMessagesTypeAdapter.validate_python(record.messages)
                self._history = repair_messages([*self._history, *new])
