"""A profile's agent at work: settings become a model and a backend, turns become lines of the session's log."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import ValidationError
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, repair_messages
from pydantic_ai.workspaces import WorkspaceError

from deepctl.agent import models
from deepctl.agent.assemble import DeepAgentDeps, create_deep_agent
from deepctl.agent.backend import LocalBackend
from deepctl.agent.guards import Approve, Ask
from deepctl.agent.turn import Emit, Outcome, run_turn
from deepctl.domain.layout import ProfilePaths
from deepctl.domain.sessions import catalogue, log
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
    """A finished turn, and what the user should know about the session's log."""

    outcome: Outcome
    session: str
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

    def turn(self, profile: ProfilePaths, session: str, prompt: str, emit: Emit) -> Done:
        """Run one turn of a session and record it. The caller holds the profile's lock.

        Raises `ModelFailed`, `StorageError`, `TimedOut`, `Interrupted` or `Terminated`; whatever was complete by then
        is in the log.
        """
        found = catalogue.find(profile, session)
        conversation = catalogue.read(found)
        history, unreadable = _history(conversation)
        writer = log.Writer(found.directory, found.log, conversation.last_turn + 1)
        notices = _notices(found.name, conversation, unreadable)
        try:
            backend = LocalBackend(profile.workspace, commands=self.has_commands)
            outcome = self._runner.run(self._run(DeepAgentDeps(backend=backend), prompt, history, writer, emit))
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
        finally:
            writer.close()
        return Done(outcome, found.name, notices)

    async def _run(
        self, deps: DeepAgentDeps, prompt: str, history: list[ModelMessage], writer: log.Writer, emit: Emit
    ) -> Outcome:
        if not self._entered:
            await self._model.__aenter__()
            self._entered = True
        caught: list[int] = []
        with _CancelOn((signal.SIGTERM, signal.SIGHUP), caught):
            try:
                async with asyncio.timeout(self._options.timeout) as deadline:
                    return await run_turn(
                        self._agent, deps, prompt, model=self._model, history=history, record=writer, emit=emit
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
