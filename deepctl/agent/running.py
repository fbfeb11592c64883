"""A model and an agent, ready for turns: the event loop they run in, and what their failures are called."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, UserContent
from pydantic_ai.workspaces import WorkspaceError

from deepctl.agent import models
from deepctl.agent.approvals import Approve, Ask
from deepctl.agent.assemble import DeepAgentDeps, create_deep_agent
from deepctl.agent.checkpointing import RewindRequested
from deepctl.agent.sandboxes import Sandbox
from deepctl.agent.turn import KEPT, Emit, Outcome, Record, run_turn
from deepctl.domain.permissions import Permissions
from deepctl.errors import Interrupted, StorageError, Terminated, TimedOut


class Options(NamedTuple):
    """What a chat was started with, settings resolved. `timeout` is in seconds."""

    model: str
    base_url: str | None = None
    instructions: str | None = None
    sandbox: Sandbox | None = None
    approve: Approve = "ask"
    permissions: Permissions = {}
    timeout: float | None = None


class Running:
    """An agent that runs one turn after the other.

    Raises `UsageError` or `ModelFailed` at once if the model cannot be used, `BadSetting` if a rule cannot.
    """

    def __init__(
        self,
        options: Options,
        *,
        environment: Mapping[str, str],
        ask: Ask | None = None,
        kept: str | None = KEPT,
    ) -> None:
        self.options = options
        self._kept = kept
        self._environment = environment
        self._model = models.resolve(options.model, base_url=options.base_url, environment=environment)
        self._agent: Agent[DeepAgentDeps, str] = create_deep_agent(
            instructions=options.instructions,
            include_execute=options.sandbox is not None,
            approve=options.approve,
            ask=ask,
            permissions=options.permissions,
            environment=environment,
        )
        self._runner = asyncio.Runner()
        self._entered = False

    def close(self) -> None:
        """Close what the turns left open: connections to the provider and the event loop."""
        if self._entered:
            self._runner.run(self._model.__aexit__(None, None, None))
        self._runner.close()

    def _restart(self) -> None:
        self._runner.close()
        self._runner = asyncio.Runner()
        self._entered = False

    def run(
        self,
        deps: DeepAgentDeps,
        said: str | Sequence[UserContent],
        history: list[ModelMessage],
        record: Record,
        emit: Emit,
        tool_done: Callable[[str], None] = lambda name: None,
    ) -> Outcome:
        """Run a turn; whatever can go wrong with providers and workspaces becomes an error of ours.

        Raises `RewindRequested` if the agent wants it to begin again from before.
        """
        try:
            return self._runner.run(self._run(deps, said, history, record, emit, tool_done))
        except RewindRequested:
            raise
        except KeyboardInterrupt:
            # After a second Ctrl-C the turn is still there, half done: let it end before its log is closed.
            self._restart()
            raise Interrupted("Interrupted.", self._kept) from None
        except WorkspaceError as error:
            raise StorageError(f"The workspace cannot be used: {error}.", self._kept, code="workspace") from error
        except Exception as error:  # every client has exceptions of its own; what is not theirs goes on
            failure = models.failure(error, self.options.model, self._environment)
            if failure is None:
                raise
            raise failure from error

    async def _run(
        self,
        deps: DeepAgentDeps,
        said: str | Sequence[UserContent],
        history: list[ModelMessage],
        record: Record,
        emit: Emit,
        tool_done: Callable[[str], None],
    ) -> Outcome:
        if not self._entered:
            await self._model.__aenter__()
            self._entered = True
        caught: list[int] = []
        with _CancelOn((signal.SIGTERM, signal.SIGHUP), caught):
            try:
                async with asyncio.timeout(self.options.timeout) as deadline:
                    return await run_turn(
                        self._agent,
                        deps,
                        said,
                        model=self._model,
                        history=history,
                        record=record,
                        emit=emit,
                        tool_done=tool_done,
                    )
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise TimedOut(
                    f"The turn took longer than {self.options.timeout:g} s and was stopped.",
                    self._kept,
                ) from None
            except asyncio.CancelledError:
                if caught:
                    raise Terminated(caught[0], self._kept) from None
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
