"""A profile's agent at work: settings become a model and a backend, turns become lines of the session's log."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, UserContent, repair_messages
from pydantic_ai.workspaces import WorkspaceError

from deepctl.agent import models
from deepctl.agent.assemble import DeepAgentDeps, create_deep_agent
from deepctl.agent.backend import LocalBackend
from deepctl.agent.checkpointing import RewindRequested
from deepctl.agent.guards import Approve, Ask
from deepctl.agent.keeping import TurnCheckpoints
from deepctl.agent.turn import Emit, Outcome, run_turn
from deepctl.domain.checkpoints import reading
from deepctl.domain.checkpoints.records import Position
from deepctl.domain.checkpoints.work import Work
from deepctl.domain.sessions import catalogue, log
from deepctl.domain.sessions.catalogue import Session
from deepctl.errors import Interrupted, Refused, StorageError, Terminated, TimedOut


class Options(NamedTuple):
    """What a chat was started with, settings resolved. `timeout` is in seconds."""

    model: str
    base_url: str | None
    instructions: str | None
    sandbox: str
    approve: Approve
    timeout: float | None


class Done(NamedTuple):
    """A finished turn, the id of its last checkpoint, and what the user should know about the session's log."""

    outcome: Outcome
    session: str
    checkpoint: str | None
    notices: list[str]


class Chat:
    """The agent of one profile, ready for any number of turns. Holds no lock; the caller does, for every turn.

    Raises `UsageError` or `ModelFailed` at once if the model cannot be used, `Refused` if the sandbox cannot.
    """

    def __init__(self, options: Options, *, environment: Mapping[str, str], ask: Ask | None = None) -> None:
        if options.sandbox in ("bubblewrap", "docker"):
            raise Refused(
                f"The {options.sandbox} sandbox is not available in this version.",
                "Use --sandbox none, where commands run with your own rights, or none at all with --sandbox auto.",
                code="sandbox_unavailable",
            )
        self._options = options
        self._environment = environment
        self._model = models.resolve(options.model, base_url=options.base_url, environment=environment)
        self._agent: Agent[DeepAgentDeps, str] = create_deep_agent(
            instructions=options.instructions,
            include_execute=self.has_commands,
            approve=options.approve,
            ask=ask,
        )
        self._runner = asyncio.Runner()
        self._entered = False

    @property
    def model(self) -> str:
        """The name of the model, as it was given."""
        return self._options.model

    @property
    def has_commands(self) -> bool:
        """Whether the agent is offered a shell."""
        return self._options.sandbox == "none"

    def close(self) -> None:
        """Close what the turns left open: connections to the provider and the event loop."""
        if self._entered:
            self._runner.run(self._model.__aexit__(None, None, None))
        self._runner.close()

    def _restart(self) -> None:
        self._runner.close()
        self._runner = asyncio.Runner()
        self._entered = False

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
            outcome = self._guarded(keeping, said, history, writer)
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

    def _guarded(
        self,
        keeping: TurnCheckpoints,
        said: str | list[UserContent],
        history: list[ModelMessage],
        writer: log.Writer,
    ) -> Outcome:
        """Run a turn; whatever can go wrong with providers and workspaces becomes an error of ours."""
        try:
            backend = LocalBackend(keeping.workspace, commands=self.has_commands)
            deps = DeepAgentDeps(backend=backend, checkpoint_store=keeping)
            return self._runner.run(self._run(deps, said, history, writer, keeping))
        except RewindRequested:
            raise
        except KeyboardInterrupt:
            # After a second Ctrl-C the turn is still there, half done: let it end before its log is closed.
            self._restart()
            raise Interrupted("Interrupted; the conversation up to here is kept.") from None
        except WorkspaceError as error:
            raise StorageError(
                f"The workspace cannot be used: {error}.", "The conversation up to here is kept.", code="workspace"
            ) from error
        except Exception as error:  # every client has exceptions of its own; what is not theirs goes on
            failure = models.failure(error, self._options.model, self._environment)
            if failure is None:
                raise
            raise failure from error

    async def _run(
        self,
        deps: DeepAgentDeps,
        said: str | list[UserContent],
        history: list[ModelMessage],
        writer: log.Writer,
        keeping: TurnCheckpoints,
    ) -> Outcome:
        if not self._entered:
            await self._model.__aenter__()
            self._entered = True
        caught: list[int] = []
        with _CancelOn((signal.SIGTERM, signal.SIGHUP), caught):
            try:
                async with asyncio.timeout(self._options.timeout) as deadline:
                    return await run_turn(
                        self._agent,
                        deps,
                        said,
                        model=self._model,
                        history=history,
                        record=writer,
                        emit=keeping.emit,
                        tool_done=keeping.tool_done,
                    )
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise TimedOut(
                    f"The turn took longer than {self._options.timeout:g} s and was stopped.",
                    "The conversation up to here is kept.",
                ) from None
            except asyncio.CancelledError:
                if caught:
                    raise Terminated(caught[0]) from None
                raise


class _CancelOn:
    """While entered, these signals cancel the current task instead of ending the process at once."""

    def __init__(self, signals: tuple[signal.Signals, ...], caught: list[int]) -> None:
        self._signals = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
        self._caught = caught

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._signals = []
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            self._caught.append(number)
            task.cancel()

        for number in self._signals:
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)

    def __exit__(self, *_: object) -> None:
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)


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
