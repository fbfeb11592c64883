"""Chats: an agent that answers, and conversations with it.

A `TurnRunner` has a model and an agent ready for any number of turns, with their event loop, and translates their
failures into errors. A `Chat` belongs to a profile: its turns become lines of the session's log. An `EphemeralChat` is
in memory, and is not stored.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic_ai import Agent
from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model
from pydantic_ai.usage import RunUsage
from pydantic_ai.workspaces import WorkspaceError
from pydantic_ai_backends import StateBackend

from deepctl import layout
from deepctl.agent import answer_ends, compaction, interruption, models, provider_errors, windows
from deepctl.agent.answer_ends import AnswerCut
from deepctl.agent.approvals import Approve, Ask
from deepctl.agent.backend import LocalBackend, open_backend
from deepctl.agent.checkpoint_stores import InMemoryCheckpointStore
from deepctl.agent.checkpoints import RewindRequested, TurnCheckpoints
from deepctl.agent.compaction import CompactionResult, ShortenedHistory
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.interruption import KEPT, AbandonedRun, Emit, Interruption, storing
from deepctl.agent.limits import (
    COMPACT_AT,
    CompactionPolicy,
    ConfiguredLimits,
    ContextUsage,
    cost,
    limits_of,
    window_of,
)
from deepctl.agent.mcp import McpServers
from deepctl.agent.media_filter import MediaFilterModel
from deepctl.agent.mention_files import DirectoryFiles, Files, StateFiles
from deepctl.agent.mentions import NO_FILES, AttachmentReader
from deepctl.agent.message_filters import SentHistory, history_of
from deepctl.agent.model_wrappers import Retries, RetryingModel
from deepctl.agent.models import ModelCheck, resolve, warnings_told
from deepctl.agent.provider_errors import ModelEndpoint
from deepctl.agent.sandboxes import Sandbox
from deepctl.agent.turn import Outcome, TokenUsage, TurnRecord, run_turn, to_json
from deepctl.domain import attachments
from deepctl.domain.mcp_servers import McpServer
from deepctl.domain.outside_files import OutsideFile
from deepctl.domain.permissions import Permissions
from deepctl.errors import DeepctlError, StorageError
from deepctl.quantities import counted
from deepctl.sandbox.policy import PROTECTED
from deepctl.store import projects, session_catalogue, session_log, session_reader, todo
from deepctl.store.log_file import Compaction, Message, MessageList
from deepctl.store.records import Position, SessionRecord
from deepctl.store.repository import Repository
from deepctl.store.session_reader import SessionReader

_T = TypeVar("_T")


class Options(NamedTuple):
    """The resolved settings of a chat. `timeout` is in seconds.

    `compact_at` is the share of the context window, in percent, at which conversations are compacted, `None` for never;
    `context_window` is that window in tokens, if the model's own value must not be used. `window_cache` is the file
    with the windows that servers have reported, `None` if nothing may be stored. `model_settings` and
    `model_profile` are the tables of these names in the settings, with values for pydantic-ai's types. `tools` is
    `full` or `lean`; `disabled_tools` are names of tools. `first_answer_timeout` and `idle_timeout` are in seconds.
    """

    model: str
    base_url: str | None = None
    instructions: str | None = None
    sandbox: Sandbox | None = None
    approve: Approve = "ask"
    permissions: Permissions = {}
    timeout: float | None = None
    compact_at: int | None = COMPACT_AT
    context_window: int | None = None
    retries: int = 3
    limits: ConfiguredLimits = ConfiguredLimits()
    mcp_servers: Sequence[McpServer] = ()
    model_settings: Mapping[str, Any] = {}
    model_profile: Mapping[str, Any] = {}
    tools: Literal["full", "lean"] = "full"
    disabled_tools: Sequence[str] = ()
    first_answer_timeout: float = 600
    idle_timeout: float = 120
    profile: str | None = None
    """The profile of the agent; an ephemeral chat has none."""
    window_cache: str | None = None
    protected: Sequence[str] = PROTECTED
    """Files of a project that only the user changes, or the agent after an approval."""


class TurnRunner:
    """An agent that runs one turn after the other.

    Raises `UsageError` or `ModelFailed` at once if the model cannot be used, or has no price and money is limited, and
    `BadSetting` if a rule cannot be used.
    """

    def __init__(
        self,
        options: Options,
        *,
        environment: Mapping[str, str],
        ask: Ask | None = None,
        note: str | None = KEPT,
    ) -> None:
        self.options = options
        self._kept = note
        self._environment = environment
        self._model, self._last_response, self._not_sent = resolve(
            options.model,
            base_url=options.base_url,
            environment=environment,
            settings=options.model_settings,
            profile=options.model_profile,
        )
        self._told: set[str] = set()
        self._has_history = self._has_results = self._has_begun = False
        self._servers = McpServers(options.mcp_servers, environment) if options.mcp_servers else None
        self._limits = limits_of(options.limits, self._model, options.model)
        self._used = RunUsage()
        self._spent = RunUsage()
        self._agent: Agent[DeepAgentDeps, str] = create_deep_agent(
            instructions=[_place(options.profile), *([options.instructions] if options.instructions else [])],
            include_execute=options.sandbox is not None,
            approve=options.approve,
            ask=ask,
            permissions=options.permissions,
            environment=environment,
            tools=options.tools,
            disabled_tools=options.disabled_tools,
            context_window=options.context_window,
            capabilities=[self._servers.capability()] if self._servers is not None else [],
        )
        self._runner = asyncio.Runner()
        self._entered = False
        self.stops = Interruption(options.timeout, note)
        """Stops a turn. Code that does more for a turn than `run` enters `watched` around all of it."""

    def close(self) -> None:
        """Close the resources of the turns: MCP servers, connections to the provider and the event loop."""
        if self._servers is not None and self._servers.are_connected:
            self._runner.run(self._servers.close())
        if self._entered:
            self._runner.run(self._model.__aexit__(None, None, None))
        self._runner.close()

    def _restart(self) -> None:
        """Continue with another event loop, because a task in the old one does not end."""
        old, self._runner = self._runner, asyncio.Runner()
        was_entered, self._entered = self._entered, False
        if self._servers is not None:
            self._servers.kill()
        # A signal at this point has nothing left to stop, and the turn is over in any case. Every client has its own
        # exceptions.
        with suppress(Exception):
            interruption.close(old, self._model.__aexit__(None, None, None) if was_entered else None)

    def run(
        self,
        deps: DeepAgentDeps,
        user_content: str | Sequence[UserContent],
        history: SentHistory,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], None] = lambda name: None,
    ) -> Outcome:
        """Run a turn; every failure of providers and workspaces becomes a `DeepctlError`.

        Raises `RewindRequested` if the agent wants to start the turn again from an earlier checkpoint.
        """

        def tell(message: str) -> None:
            if message not in self._told:
                self._told.add(message)
                emit({"type": "notice", "message": message})

        run_usage, self._used = self._used, RunUsage()
        self._spent = run_usage
        self._has_history, self._has_results, self._has_begun = bool(history.messages), False, False

        def observed(event: dict[str, Any]) -> None:
            # An answer begins with these events, and a tool runs after the end of one.
            if event["type"] in ("text", "thinking"):
                self._has_begun = True
            elif event["type"] in ("tool_call", "tool_result"):
                self._has_begun = False
                self._has_results = self._has_results or event["type"] == "tool_result"
            emit(event)

        if self._not_sent is not None:
            tell(self._not_sent)
        turn = run_turn(
            self._agent,
            deps,
            user_content,
            model=self._model,
            history=history,
            record=record,
            emit=observed,
            tool_done=tool_done,
            retries=self._retries(emit),
            usage_limits=self._limits,
            run_usage=run_usage,
            policy=self._policy,
            explain=self._explain,
            explain_cut=self._explain_cut,
        )
        with warnings_told(tell):
            return self._guarded(turn, emit)

    @property
    def settings_notice(self) -> str | None:
        """The notice about settings that are not sent to the model, if there are any."""
        return self._not_sent

    @property
    def model(self) -> Model:
        """The model of the turns."""
        return self._model

    def attachments(
        self, prompt: str, files: Callable[[], Files], emit: Emit, outside_files: Mapping[str, OutsideFile]
    ) -> list[UserContent]:
        """The files that a prompt mentions, as parts of its message. Notices about them are emitted."""
        if "@" not in prompt:
            return []
        reader = AttachmentReader(self._model, self.options.permissions, self._environment)
        return reader.brought(prompt, files(), emit, outside_files)

    def again(self) -> None:
        """The following work is the same turn, started again, and counts against the same limits."""
        self._used = self._spent

    def spent(self) -> tuple[TokenUsage, float | None]:
        """The usage since the last call of this method, and its cost in USD if known; failed turns count too.

        The usage of an attempt that the agent rewound counts with the whole turn.
        """
        run_usage, self._spent = self._spent, RunUsage()
        return TokenUsage.of(run_usage), cost(
            run_usage, self._model
        ) if run_usage.input_tokens or run_usage.output_tokens else 0.0

    def compact(self, history: SentHistory, focus: str | None, emit: Emit) -> tuple[CompactionResult, ShortenedHistory]:
        """Summarise a conversation between two turns. Raises like `run`, or `NotFound` if there is nothing to
        summarise.
        """
        model = MediaFilterModel(RetryingModel(self._model, self._retries(emit)), reason=self._reason)
        with warnings_told(lambda message: emit({"type": "notice", "message": message})):
            result, short_history = self._guarded(compaction.by_hand(model, history, self._policy, focus))
        return result._replace(cost=cost(result.usage, self._model)), short_history

    def _retries(self, emit: Emit) -> Retries:
        options = self.options
        return Retries(options.retries, emit, self._reason, options.first_answer_timeout, options.idle_timeout)

    def check(self) -> ModelCheck:
        """Send a test request to the model, without retries. Raises like `run`."""
        model = RetryingModel(self._model, self._retries(lambda event: None)._replace(most=0))
        with warnings_told(lambda message: None):
            return self._guarded(models.check_model(model, self._policy, self.options.tools))

    @property
    def _policy(self) -> CompactionPolicy:
        return CompactionPolicy(self.options.compact_at, self.options.context_window, self.options.window_cache)

    @property
    def window(self) -> int | None:
        """The context window of the model in tokens, as far as it is known so far."""
        return window_of(self._model, self.options.context_window)

    @property
    def _max_tokens(self) -> int | None:
        """The maximum length of an answer in tokens that the user has set."""
        return self.options.model_settings.get("max_tokens")

    @property
    def _asked(self) -> ModelEndpoint:
        """The target of requests. It is needed only after a failure."""
        return provider_errors.model_endpoint(
            self.options.model,
            self.options.base_url,
            self._model.base_url or "",
            self._environment,
            self._last_response,
        )._replace(
            settings={**(self._model.settings or {})},
            is_own=windows.is_own(self._model),
            window=windows.known(self._model),
            context_window=self.options.context_window,
            tools=self.options.tools,
            has_history=self._has_history,
            has_results=self._has_results,
            has_begun=self._has_begun,
        )

    def _explain(self, error: Exception) -> DeepctlError | None:
        """The error for a failure of the model; `None` for any other failure."""
        return provider_errors.failure(error, self._asked)

    def _explain_cut(self, cut: AnswerCut, context: ContextUsage) -> DeepctlError | str:
        """The error for an answer that is not whole; a notice if its length is the maximum that the user has set."""
        failure = answer_ends.failure_of(cut, self.options.model, context, self._max_tokens)
        if answer_ends.is_wanted(cut, self._max_tokens):
            return f"{failure.message} model_settings.max_tokens is {self._max_tokens}."
        return failure

    def _guarded(self, work: Coroutine[Any, Any, _T], emit: Emit | None = None) -> _T:
        """Run a task with the model, and with the MCP servers if there is an `emit` for their notices."""
        try:
            return self.stops.run(self._runner, self._ready(work, emit))
        except (AbandonedRun, KeyboardInterrupt):
            self._restart()
            raise self.stops.reason() from None
        except DeepctlError:
            raise
        except WorkspaceError as error:
            raise StorageError(f"The workspace cannot be used: {error}.", self._kept, code="workspace") from error
        except RewindRequested:
            raise
        except Exception as error:  # every client has its own exceptions; other ones are raised again
            if self.stops.is_stopped:
                raise self.stops.reason() from error
            failure = self._explain(error)
            if failure is None:
                raise
            raise failure from error
        finally:
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()  # it was stopped before it started

    async def _ready(self, work: Coroutine[Any, Any, _T], emit: Emit | None) -> _T:
        if not self._entered:
            await self._model.__aenter__()
            self._entered = True
        if self._servers is not None and emit is not None:
            await self._servers.ready(emit)
        return await work

    def _reason(self, error: BaseException) -> str:
        return provider_errors.reason(error, self._asked)


def _place(profile: str | None) -> str:
    """The instructions about the program and its display."""
    subject = f"the profile {profile} of deepctl" if profile is not None else "deepctl"
    return f"You are the agent of {subject}, a command-line program. A terminal shows your answers as Markdown."


class TurnResult(NamedTuple):
    """A finished turn, the id of its last checkpoint, and notes for the user about the session's log."""

    outcome: Outcome
    session: str
    checkpoint: str | None
    notices: list[str]


class _Conversation(NamedTuple):
    """A session at the start of a turn: its stored messages, its end, and the messages for the model."""

    reader: SessionReader
    message_list: MessageList
    end: Position
    history: SentHistory

    @property
    def session(self) -> SessionRecord:
        """The session as it was read."""
        return self.reader.session


class Chat:
    """The agent of one profile, ready for any number of turns. Holds no lock; the caller does, for every turn."""

    def __init__(self, runner: TurnRunner) -> None:
        self._runner = runner
        self._told: set[str] = set()

    def turn(
        self,
        work: Repository,
        session: str,
        prompt: str,
        emit: Emit,
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> TurnResult:
        """Run one turn of a session, record it and make its checkpoints. The caller holds the profile's lock.

        `outside_files` are the files outside the workspace that the prompt may name, by their paths in the prompt: see
        `deepctl.domain.outside_files`.

        Raises `ModelFailed`, `StorageError`, `TimedOut`, `Interrupted` or `Terminated`; complete messages are then in
        the log, and the state at the end of the turn is stored.
        """
        with self._runner.stops.watched():
            # Checked before the turn stores anything, because that makes its session the most recently written one.
            has_old_list = os.path.lexists(os.path.join(work.paths.workspace, layout.TODO_FILE))
            owner = todo.old_lists_owner(work.paths, work.ledger) if has_old_list else None
            checkpoints = TurnCheckpoints(work, prompt, emit)
            conversation = self._read(work, session)
            checkpoints.started(conversation.session, conversation.end)
            if (problem := work.coverage_problem(conversation.session)) and problem not in self._told:
                self._told.add(problem)
                emit({"type": "notice", "message": problem})
            if owner is not None:
                work.settle_todo(owner, conversation.session, conversation.end)
            notices = _notices(conversation)
            files = partial(_files, work, conversation.session)
            file_parts = self._runner.attachments(prompt, files, emit, outside_files)
            user_content = [prompt, *file_parts] if file_parts else prompt
            while True:
                try:
                    outcome = self._attempt(work, checkpoints, conversation, user_content)
                    break
                except RewindRequested as request:
                    self._runner.again()
                    user_content = [*request.prompt(prompt), *file_parts]
                    conversation = self._read(work, session)
            latest = checkpoints.latest.id if checkpoints.latest else None
            return TurnResult(outcome, conversation.session.name, latest, notices + checkpoints.unkept())

    def _read(self, work: Repository, session: str) -> _Conversation:
        reader = work.readers.of(session_catalogue.find(work.paths, session))
        conversation = reader.whole()
        end = session_reader.position(reader.session, conversation)
        reader.remember()
        return _Conversation(reader, conversation, end, history_of(conversation, self._runner.model))

    def compact(self, work: Repository, session: str, focus: str | None, emit: Emit) -> CompactionResult:
        """Summarise a session's conversation for the model; `focus` is the most important subject of the summary.

        Nothing is removed from the session, and a checkpoint of the state before it can be restored. The caller holds
        the profile's lock. Raises `NotFound` if there is nothing to summarise, and the errors of `turn`; nothing has
        changed then.
        """
        reader, conversation, before, history = self._read(work, session)
        record = reader.session
        result, short_history = self._runner.compact(history, focus, emit)
        author, head = work.between(), work.head(record)
        if head is None or (head.log, head.offset) != (before.log, before.offset):
            head = work.save(record, "manual", before, author=author)
            emit({"type": "checkpoint", "id": head.id, "kind": head.kind})
        with closing(session_log.LogWriter.after(reader, conversation.last_turn)) as writer, storing():
            writer.compacted(to_json([short_history.summary])[0], len(conversation.messages) - short_history.begins)
            after = before._replace(offset=writer.end, tied=writer.point, message_count=before.message_count + 1)
        emit(result.event())
        last = work.save(record, "manual", after, author=author)
        emit({"type": "checkpoint", "id": last.id, "kind": last.kind})
        return result._replace(checkpoint=head.id)

    def _backend(self, work: Repository, session: SessionRecord) -> LocalBackend:
        options = self._runner.options
        project = work.workspace_of(session).project
        directory = project.root if project is not None else None
        return open_backend(work.paths, directory, options.sandbox, protected=options.protected)

    def _attempt(
        self,
        work: Repository,
        checkpoints: TurnCheckpoints,
        conversation: _Conversation,
        user_content: str | list[UserContent],
    ) -> Outcome:
        """Run a turn to its end; raises `RewindRequested` if the agent wants to start it again from an earlier
        checkpoint.
        """
        reader, _, before, history = conversation
        session = reader.session
        writer = session_log.LogWriter.after(reader, before.turn + 1)
        checkpoints.attempt(session, before, writer)
        try:
            with closing(self._backend(work, session)) as backend:
                deps = DeepAgentDeps(
                    backend=backend,
                    checkpoint_store=checkpoints,
                    session=session.id if layout.is_good_name(session.id) else None,
                )
                try:
                    outcome = self._runner.run(
                        deps, user_content, history, writer, checkpoints.emit, checkpoints.tool_done
                    )
                finally:
                    checkpoints.created_repositories += backend.take_created_repositories()
        except RewindRequested as request:
            checkpoints.go_back(request)
            raise
        except BaseException:
            with self._runner.stops.ending():
                checkpoints.broke_off()
            # A turn that ends has these in its result.
            for note in checkpoints.unkept():
                checkpoints.emit({"type": "notice", "message": note})
            raise
        finally:
            writer.close()
        checkpoints.ended()
        return outcome


def _files(work: Repository, session: SessionRecord) -> DirectoryFiles:
    """The files that prompts of a session can mention."""
    return DirectoryFiles(work.paths.workspace, projects.directory_of_session(work.paths, session))


def _notices(conversation: _Conversation) -> list[str]:
    session, damage, history = conversation.session.name, conversation.message_list.damage, conversation.history
    notices = []
    torn_count = sum(line.torn for line in damage)
    damaged_count = len(damage) - torn_count
    if torn_count:
        notices.append(f"Session {session!r}: an earlier turn was interrupted; its incomplete last line was removed.")
    if damaged_count:
        lines = ", ".join(f"{line.file} line {line.line}" for line in damage if not line.torn)
        notices.append(
            f"Session {session!r}: {counted(damaged_count, 'damaged line')} left out: {lines}. The rest is used."
        )
    if history.unreadable:
        notices.append(f"Session {session!r}: {counted(history.unreadable, 'invalid message')} left out.")
    if history.left_out:
        notices.append(
            f"Session {session!r}: {counted(history.left_out, 'file')} with an address left out; deepctl fetches "
            "no files for a stored conversation."
        )
    if history.unanswered:
        notices.append(
            f"Session {session!r}: {counted(history.unanswered, 'earlier prompt')} without an answer not sent again; "
            "`sessions show` has the text."
        )
    return notices


class _TurnMessages:
    """The record of a turn, in memory. After an interruption, its incomplete results and answer are lost."""

    def __init__(self, conversation: MessageList, turn: int) -> None:
        self._turn = turn
        self.conversation = conversation

    def result(self, part: dict[str, Any]) -> None:
        """Nothing to record: the message with all results of the same answer contains this result again."""

    def message(self, message: dict[str, Any]) -> None:
        self.conversation.messages.append(Message(self._turn, "", message))

    def compacted(self, summary: dict[str, Any], keeps: int) -> None:
        self.conversation.compactions.append(Compaction(len(self.conversation.messages), keeps))
        self.message(summary)


class EphemeralChat:
    """A conversation in memory: the guide's pattern A. It is never read from or written to a disk."""

    def __init__(self, runner: TurnRunner) -> None:
        self._runner = runner
        self._state = StateBackend()
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
        file_parts = self._runner.attachments(prompt, partial(StateFiles, self._state), emit, outside_files)
        user_content: str | list[UserContent] = [prompt, *file_parts] if file_parts else prompt
        turn = self._conversation.last_turn + 1
        while True:
            self._conversation = self._conversation._replace(last_turn=turn)
            record = _TurnMessages(self._conversation, turn)
            try:
                history = history_of(self._conversation, self._runner.model)
                return self._runner.run(self._deps, user_content, history, record, emit)
            except RewindRequested as request:
                self._runner.again()
                self._conversation = _conversation_of(to_json(request.messages), turn - 1)
                user_content = [*request.prompt(prompt), *file_parts]

    def compact(self, focus: str | None, emit: Emit) -> CompactionResult:
        """Summarise the conversation for the model: see `Chat.compact`. It cannot be undone."""
        history = history_of(self._conversation, self._runner.model)
        result, short_history = self._runner.compact(history, focus, emit)
        record = _TurnMessages(self._conversation, self._conversation.last_turn)
        record.compacted(to_json([short_history.summary])[0], history.total - short_history.begins)
        emit(result.event())
        return result


def _conversation_of(messages: Sequence[dict[str, Any]], turn: int) -> MessageList:
    """A conversation in memory, which grows in place."""
    return MessageList([Message(turn, "", message) for message in messages], [], turn, [])
