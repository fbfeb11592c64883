"""A conversation that leaves nothing behind: files, memory, plans, checkpoints and messages are in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic_ai.messages import UserContent
from pydantic_ai_backends import StateBackend

from deepctl.agent import message_places
from deepctl.agent.checkpoint_stores import InMemoryCheckpointStore
from deepctl.agent.checkpoint_tools import RewindRequested
from deepctl.agent.compaction import Compacted
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.mention_targets import StateFiles
from deepctl.agent.turn import Emit, Outcome, to_json
from deepctl.agent.turn_runner import Running
from deepctl.domain import attachments
from deepctl.store.session_log import Compaction, Message, MessageList


class _Messages:
    """The record of a turn, in memory. Results of a turn that breaks off are lost with it, as its answer is."""

    def __init__(self, conversation: MessageList, turn: int) -> None:
        self._turn = turn
        self.conversation = conversation

    def result(self, part: dict[str, Any]) -> None:
        """It comes again, in the message that has all of the same answer."""

    def message(self, message: dict[str, Any]) -> None:
        self.conversation.messages.append(Message(self._turn, "", message))

    def compacted(self, summary: dict[str, Any], keeps: int) -> None:
        self.conversation.compactions.append(Compaction(len(self.conversation.messages), keeps))
        self.message(summary)


class EphemeralChat:
    """A conversation in memory: the guide's pattern A. Nothing of it is read from or written to a disk."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._state = StateBackend()
        self._deps = DeepAgentDeps(backend=self._state, checkpoint_store=InMemoryCheckpointStore())
        self._conversation = _of([], 0)

    def attach(self, files: Sequence[str], tell: Callable[[str], None] = lambda message: None) -> list[str]:
        """Take files of the user's into memory; returns their paths there. See `deepctl.domain.attachments.attach`."""
        contents = [attachments.content(path) for path in files]
        names = [attachments.settle(name, partial(self._take, content), tell) for name, content in contents]
        return list(dict.fromkeys(names))

    def _take(self, content: bytes, name: str, new: bool) -> bool:
        if self._state.exists(name):
            return self._state.is_file(name) and self._state.read_bytes(name) == content
        if new:
            self._state.write_bytes(name, content)
        return new

    def answered_by(self, running: Running) -> EphemeralChat:
        """The same conversation, gone on with by another agent."""
        other = EphemeralChat(running)
        other._state, other._deps, other._conversation = self._state, self._deps, self._conversation
        return other

    def turn(self, prompt: str, emit: Emit) -> Outcome:
        """Run one turn. Raises what `Running.run` raises; what was complete by then is remembered."""
        brought = self._running.attaching.brought(prompt, StateFiles(self._state), emit)
        said: str | list[UserContent] = [prompt, *brought] if brought else prompt
        turn = self._conversation.last_turn + 1
        while True:
            self._conversation = self._conversation._replace(last_turn=turn)
            record = _Messages(self._conversation, turn)
            try:
                sent = message_places.of(self._conversation, self._running.model)
                return self._running.run(self._deps, said, sent, record, emit)
            except RewindRequested as request:
                self._running.again()
                self._conversation = _of(to_json(request.messages), turn - 1)
                said = [*request.prompt(prompt), *brought]

    def compact(self, focus: str | None, emit: Emit) -> Compacted:
        """Summarise the conversation for the model: see `Chat.compact`. It cannot be taken back."""
        sent = message_places.of(self._conversation, self._running.model)
        done, shortened = self._running.compact(sent, focus, emit)
        record = _Messages(self._conversation, self._conversation.last_turn)
        record.compacted(to_json([shortened.summary])[0], sent.total - shortened.begins)
        emit(done.event())
        return done


def _of(messages: Sequence[dict[str, Any]], turn: int) -> MessageList:
    """A conversation in memory, which grows in place."""
    return MessageList([Message(turn, "", message) for message in messages], [], turn, [])
