"""A profile's agent at work: settings become a model and a backend, turns become lines of the session's log."""

from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, UserContent, repair_messages

from deepctl.agent.assemble import DeepAgentDeps
from deepctl.agent.backend import LocalBackend
from deepctl.agent.checkpointing import RewindRequested
from deepctl.agent.keeping import TurnCheckpoints
from deepctl.agent.running import Running
from deepctl.agent.turn import Emit, Outcome
from deepctl.domain.checkpoints import reading
from deepctl.domain.checkpoints.records import Position
from deepctl.domain.checkpoints.work import Work
from deepctl.domain.sessions import catalogue, log
from deepctl.domain.sessions.catalogue import Session


class Done(NamedTuple):
    """A finished turn, the id of its last checkpoint, and what the user should know about the session's log."""

    outcome: Outcome
    session: str
    checkpoint: str | None
    notices: list[str]


class Chat:
    """The agent of one profile, ready for any number of turns. Holds no lock; the caller does, for every turn."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def turn(self, work: Work, session: str, prompt: str, emit: Emit) -> Done:
        """Run one turn of a session, record it and keep its checkpoints. The caller holds the profile's lock.

        Raises `ModelFailed`, `StorageError`, `TimedOut`, `Interrupted` or `Terminated`; whatever was complete by then
        is in the log, and the state in which the turn ended is kept.
        """
        keeping = TurnCheckpoints(work, prompt, emit)
        notices: list[str] = []
        said: str | list[UserContent] = prompt
        while True:
            found = catalogue.find(work.paths, session)
            conversation = catalogue.read(found)
            before = reading.position(found, conversation)
            history, unreadable = _history(conversation)
            if said is prompt:
                keeping.started(found, before)
                notices = _notices(found.name, conversation, unreadable)
            try:
                outcome = self._attempt(keeping, found, before, said, history)
            except RewindRequested as request:
                said = request.prompt(prompt)
                continue
            latest = keeping.latest.id if keeping.latest else None
            return Done(outcome, found.name, latest, notices + keeping.unkept())

    def _attempt(
        self,
        keeping: TurnCheckpoints,
        session: Session,
        before: Position,
        said: str | list[UserContent],
        history: list[ModelMessage],
    ) -> Outcome:
        """Run a turn until it ends; raises `RewindRequested` if the agent wants it to begin again from before."""
        writer = log.Writer(session.directory, session.log, before.turn + 1)
        keeping.attempt(session, before, writer)
        try:
            with closing(LocalBackend(keeping.workspace, sandbox=self._running.options.sandbox)) as backend:
                deps = DeepAgentDeps(backend=backend, checkpoint_store=keeping)
                outcome = self._running.run(deps, said, history, writer, keeping.emit, keeping.tool_done)
        except RewindRequested as request:
            keeping.go_back(request)
            raise
        except BaseException:
            keeping.broke_off()
            raise
        finally:
            writer.close()
        keeping.ended()
        return outcome


def _history(conversation: log.Conversation) -> tuple[list[ModelMessage], int]:
    """The messages a model can be sent, repaired where a turn was killed, and how many could not be understood."""
    messages: list[ModelMessage] = []
    unreadable = 0
    for entry in conversation.messages:
        try:
            messages += ModelMessagesTypeAdapter.validate_python([entry.message])
        except ValidationError:
            unreadable += 1
    return repair_messages(messages), unreadable


def _notices(session: str, conversation: log.Conversation, unreadable: int) -> list[str]:
    notices = []
    torn = sum(damage.torn for damage in conversation.damage)
    damaged = len(conversation.damage) - torn
    if torn:
        notices.append(f"Session {session!r}: an earlier turn was cut short; the unfinished last line was cut off.")
    if damaged:
        lines = ", ".join(f"{damage.file} line {damage.line}" for damage in conversation.damage if not damage.torn)
        notices.append(f"Session {session!r}: {damaged} damaged line(s) left out: {lines}. The rest is used.")
    if unreadable:
        notices.append(f"Session {session!r}: {unreadable} message(s) could not be understood and were left out.")
    return notices
