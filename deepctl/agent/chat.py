"""Chats of the command line: conversations with an agent, stopped by signals and a time limit.

A `TurnRunner` is the event loop of an engine. A `Chat` belongs to a profile: its turns become lines of the session's
log. An `EphemeralChat` is in memory, and is not stored.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_ai.messages import UserContent

from deepctl.agent import interruption
from deepctl.agent.approver import Ask
from deepctl.agent.checkpoint_stores import InMemoryCheckpointStore
from deepctl.agent.checkpoints import RewindRequested
from deepctl.agent.compaction import CompactionResult, ShortenedHistory
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.interruption import KEPT, AbandonedRun, Emit, Interruption, storing
from deepctl.agent.mention_files import StateFiles
from deepctl.agent.mentions import NO_FILES
from deepctl.agent.message_filters import SentHistory, history_of
from deepctl.agent.models import ModelCheck, warnings_told
from deepctl.agent.profile_turn import ProfileTurn, TurnResult, read_conversation
from deepctl.agent.turn import Outcome, TurnRecord, to_json
from deepctl.agent.turn_engine import Options, TurnEngine
from deepctl.agent.work_events import ReportingState
from deepctl.domain import attachments
from deepctl.domain.mcp_prompts import ServerPrompt
from deepctl.domain.outside_files import OutsideFile
from deepctl.errors import DeepctlError
from deepctl.store import session_log
from deepctl.store.log_file import Compaction, Message, MessageList
from deepctl.store.repository import Repository

if TYPE_CHECKING:
    from deepctl.agent.questions import Answerer

_T = TypeVar("_T")


class TurnRunner:
    """The event loop of an engine: runs its turns until signals and the time limit stop them.

    `note` is the hint of errors that end a turn. Raises the errors of `TurnEngine`.
    """

    def __init__(
        self,
        options: Options,
        *,
        environment: Mapping[str, str],
        ask: Ask | None = None,
        note: str | None = KEPT,
        answerer: Answerer | None = None,
    ) -> None:
        self.engine = TurnEngine(options, environment=environment, ask=ask, note=note, answerer=answerer)
        self._runner = asyncio.Runner()
        self.stops = Interruption(options.timeout, note)
        """Stops a turn. Code that does more for a turn than `run` enters `watched` around all of it."""

    def close(self) -> None:
        """Close the resources of the turns: MCP servers, connections to the provider and the event loop."""
        if self.engine.is_open:
            self._runner.run(self.engine.close())
        self._runner.close()
        self.engine.flush_traces()

    def _restart(self) -> None:
        """Continue with another event loop, because a task in the old one does not end."""
        old, self._runner = self._runner, asyncio.Runner()
        self.engine.kill_servers()
        last = self.engine.leave_model()
        # A signal at this point has nothing left to stop, and the turn is over in any case. Every client has its own
        # exceptions.
        with suppress(Exception):
            interruption.close(old, last)

    def run(
        self,
        deps: DeepAgentDeps,
        user_content: str | Sequence[UserContent],
        history: SentHistory,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], Awaitable[None]] | None = None,
    ) -> Outcome:
        """Run a turn; every failure of providers and workspaces becomes a `DeepctlError`.

        Raises `RewindRequested` if the agent wants to start the turn again from an earlier checkpoint.
        """
        turn = self.engine.run(deps, user_content, history, record, emit, tool_done)
        with warnings_told(lambda message: self.engine.notify(message, emit)):
            return self._guarded(turn, emit)

    def compact(
        self, history: SentHistory, focus: str | None, emit: Emit, session: str | None = None
    ) -> tuple[CompactionResult, ShortenedHistory]:
        """Summarise a conversation between two turns; `session` is the id of its session. Raises like `run`, or
        `NotFound` if there is nothing to summarise.
        """
        with warnings_told(lambda message: emit({"type": "notice", "message": message})):
            return self._guarded(self.engine.compact(history, focus, emit, session))

    def check(self) -> ModelCheck:
        """Send a test request to the model, without retries. Raises like `run`."""
        with warnings_told(lambda message: None):
            return self._guarded(self.engine.check())

    def mcp_prompt(self, prompt: ServerPrompt, values: Mapping[str, str], emit: Emit) -> list[UserContent]:
        """The parts of a message with a prompt of an MCP server. Starts the servers. Raises `McpServerFailed`."""
        with warnings_told(lambda message: emit({"type": "notice", "message": message})):
            return self._guarded(self.engine.mcp_prompt(prompt, values), emit)

    def title(self, session: str, text: str) -> str:
        """A title of the session with this id, whose conversation begins with `text`. Raises like `run`.

        It can run in another thread than the turns of another runner.
        """
        self.engine.meter.session, self.engine.meter.turn = session, 1
        return self._guarded(self.engine.title(text))

    def _guarded(self, work: Coroutine[Any, Any, _T], emit: Emit | None = None) -> _T:
        """Run a task with the model, and with the MCP servers if there is an `emit` for their notices."""
        try:
            with self.stops.watched():
                self.engine.read_keys()
                return self.stops.run(self._runner, self._ready(work, emit))
        except (AbandonedRun, KeyboardInterrupt):
            self._restart()
            raise self.stops.reason() from None
        except (DeepctlError, RewindRequested):
            raise
        except Exception as error:  # every client has its own exceptions; other ones are raised again
            if self.stops.is_stopped:
                raise self.stops.reason() from error
            failure = self.engine.error_of(error)
            if failure is None:
                raise
            raise failure from error
        finally:
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()  # it was stopped before it started

    async def _ready(self, work: Coroutine[Any, Any, _T], emit: Emit | None) -> _T:
        await self.engine.ready(emit)
        return await work


class Chat:
    """The agent of one profile, ready for any number of turns. Holds no lock; the caller does, for every turn."""

    def __init__(self, runner: TurnRunner) -> None:
        self._runner = runner

    def turn(
        self,
        work: Repository,
        session: str,
        prompt: str | Sequence[UserContent],
        emit: Emit,
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> TurnResult:
        """Run one turn of a session, record it and make its checkpoints. The caller holds the profile's lock.

        Raises `ModelFailed`, `StorageError`, `TimedOut`, `Interrupted` or `Terminated`; complete messages are then in
        the log, and the state at the end of the turn is stored.
        """
        runner = self._runner
        turn = ProfileTurn(runner.engine, work, session, prompt, emit, outside_files=outside_files)
        with runner.stops.watched():
            # Before the turn stores anything.
            runner.engine.read_keys()
            turn.begin()
            while True:
                try:
                    outcome = runner.run(*turn.attempt(), emit, turn.tool_done)
                except RewindRequested as request:
                    turn.rewind(request)
                    runner.engine.again()
                except BaseException as error:
                    with runner.stops.ending():
                        turn.break_off(error)
                    raise
                else:
                    return turn.end(outcome)

    def compact(self, work: Repository, session: str, focus: str | None, emit: Emit) -> CompactionResult:
        """Summarise a session's conversation for the model; `focus` is the most important subject of the summary.

        Nothing is removed from the session, and a checkpoint of the state before it can be restored. The caller holds
        the profile's lock. Raises `NotFound` if there is nothing to summarise, and the errors of `turn`; nothing has
        changed then.
        """
        reader, message_list, before, history = read_conversation(work, session, self._runner.engine.model)
        record = reader.session
        self._runner.engine.session_name = record.name
        result, short_history = self._runner.compact(history, focus, emit, record.id)
        author, head = work.between(), work.head(record)
        if head is None or (head.log, head.offset) != (before.log, before.offset):
            head = work.save(record, "manual", before, author=author)
            emit({"type": "checkpoint", "id": head.id, "kind": head.kind})
        with closing(session_log.LogWriter.after(reader, message_list.last_turn)) as writer, storing():
            writer.compacted(to_json([short_history.summary])[0], len(message_list.messages) - short_history.begins)
            after = before._replace(offset=writer.end, tied=writer.point, message_count=before.message_count + 1)
        emit(result.event())
        last = work.save(record, "manual", after, author=author)
        emit({"type": "checkpoint", "id": last.id, "kind": last.kind})
        return result._replace(checkpoint=head.id)


class _TurnMessages:
    """The record of a turn, in memory. After an interruption, its incomplete results and answer are lost."""

    def __init__(self, conversation: MessageList, turn: int) -> None:
        self.turn = turn
        self.conversation = conversation

    def result(self, part: dict[str, Any]) -> None:
        """Nothing to record: the message with all results of the same answer contains this result again."""

    def message(self, message: dict[str, Any]) -> None:
        self.conversation.messages.append(Message(self.turn, "", message))

    def compacted(self, summary: dict[str, Any], keeps: int) -> None:
        self.conversation.compactions.append(Compaction(len(self.conversation.messages), keeps))
        self.message(summary)


class EphemeralChat:
    """A conversation in memory: the guide's pattern A. It is never read from or written to a disk."""

    def __init__(self, runner: TurnRunner) -> None:
        self._runner = runner
        self._state = ReportingState()
        self._deps = DeepAgentDeps(backend=self._state, checkpoint_store=InMemoryCheckpointStore())
        self._conversation = _conversation_of([], 0)

    def attach(self, files: Sequence[str], tell: Callable[[str], None] = lambda message: None) -> list[str]:
        """Copy files of the user into memory; returns their paths there. See `deepctl.domain.attachments.attach`."""
        contents = [attachments.content(path) for path in files]
        names = [attachments.settle(name, partial(self._take, content), tell) for name, content in contents]
        return list(dict.fromkeys(names))

    def _take(self, content: bytes, name: str, new: bool) -> bool:
        if self._state.exists(name):
            return self._state.is_file(name) and self._state.read_bytes(name) == content
        if new:
            self._state.write_bytes(name, content)
        return new

    def answered_by(self, runner: TurnRunner) -> EphemeralChat:
        """The same conversation, continued by another agent."""
        chat = EphemeralChat(runner)
        chat._state, chat._deps, chat._conversation = self._state, self._deps, self._conversation
        return chat

    def turn(self, prompt: str, emit: Emit, outside_files: Mapping[str, OutsideFile] = NO_FILES) -> Outcome:
        """Run one turn; `outside_files` are as in `Chat.turn`.

        Raises the errors of `TurnRunner.run`; complete messages are kept.
        """
        file_parts = self._runner.engine.attachments(prompt, partial(StateFiles, self._state), emit, outside_files)
        user_content: str | list[UserContent] = [prompt, *file_parts] if file_parts else prompt
        turn = self._conversation.last_turn + 1
        while True:
            self._conversation = self._conversation._replace(last_turn=turn)
            record = _TurnMessages(self._conversation, turn)
            try:
                history = history_of(self._conversation, self._runner.engine.model)
                return self._runner.run(self._deps, user_content, history, record, emit)
            except RewindRequested as request:
                self._runner.engine.again()
                self._conversation = _conversation_of(to_json(request.messages), turn - 1)
                user_content = [*request.prompt(prompt), *file_parts]

    def compact(self, focus: str | None, emit: Emit) -> CompactionResult:
        """Summarise the conversation for the model: see `Chat.compact`. It cannot be undone."""
        history = history_of(self._conversation, self._runner.engine.model)
        result, short_history = self._runner.compact(history, focus, emit)
        record = _TurnMessages(self._conversation, self._conversation.last_turn)
        record.compacted(to_json([short_history.summary])[0], history.total - short_history.begins)
        emit(result.event())
        return result


def _conversation_of(messages: Sequence[dict[str, Any]], turn: int) -> MessageList:
    """A conversation in memory, which grows in place."""
    return MessageList([Message(turn, "", message) for message in messages], [], turn, [])
