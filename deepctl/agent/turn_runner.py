"""A model and an agent, ready for turns: the event loop they run in, and what their failures are called."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from pydantic_ai import Agent
from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model
from pydantic_ai.usage import RunUsage
from pydantic_ai.workspaces import WorkspaceError

from deepctl.agent import compaction, interruption, models, provider_errors
from deepctl.agent.approvals import Approve, Ask
from deepctl.agent.checkpoint_tools import RewindRequested
from deepctl.agent.compaction import COMPACT_AT, Compacted, Policy, Shortened
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.interruption import Abandoned, Interruption
from deepctl.agent.limits import Limits, cost, limits_of
from deepctl.agent.mcp import McpServers
from deepctl.agent.mentions import Attaching
from deepctl.agent.message_places import History
from deepctl.agent.retries import Retries, RetryingModel
from deepctl.agent.sandboxes import Sandbox
from deepctl.agent.turn import KEPT, Emit, Outcome, TurnRecord, Usage, run_turn
from deepctl.domain.mcp_servers import Server
from deepctl.domain.permissions import Permissions
from deepctl.errors import DeepctlError, StorageError

_T = TypeVar("_T")


class Options(NamedTuple):
    """What a chat was started with, settings resolved. `timeout` is in seconds.

    `compact_at` is the share of the context window, in percent, at which conversations are compacted, `None` for never;
    `context_window` is that window in tokens, if the model is not to be asked.
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
    limits: Limits = Limits()
    mcp_servers: Sequence[Server] = ()


class Running:
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
        kept: str | None = KEPT,
    ) -> None:
        self.options = options
        self._kept = kept
        self._environment = environment
        resolved = models.resolve(options.model, base_url=options.base_url, environment=environment)
        self._model = resolved.model
        self._asked = provider_errors.asked(
            options.model, options.base_url, self._model.base_url or "", environment, resolved.last
        )
        self._servers = McpServers(options.mcp_servers, environment)
        self.attaching = Attaching(self._model, options.permissions, environment)
        self._limits = limits_of(options.limits, self._model, options.model)
        self._used = RunUsage()
        self._spent = RunUsage()
        self._agent: Agent[DeepAgentDeps, str] = create_deep_agent(
            instructions=options.instructions,
            include_execute=options.sandbox is not None,
            approve=options.approve,
            ask=ask,
            permissions=options.permissions,
            environment=environment,
            capabilities=[self._servers.capability()],
        )
        self._runner = asyncio.Runner()
        self._entered = False
        self.stops = Interruption(options.timeout, kept)
        """What stops a turn. Whoever does more for it than `run` does enters `watched` around all of it."""

    def close(self) -> None:
        """Close what the turns left open: MCP servers, connections to the provider and the event loop."""
        if self._servers.are_connected:
            self._runner.run(self._servers.close())
        if self._entered:
            self._runner.run(self._model.__aexit__(None, None, None))
        self._runner.close()

    def _restart(self) -> None:
        """Go on with another event loop: in the old one something does not end."""
        old, self._runner = self._runner, asyncio.Runner()
        entered, self._entered = self._entered, False
        self._servers.kill()
        # A signal that comes now has nothing left to stop, and the turn is over in any case. Every client has
        # exceptions of its own.
        with suppress(Exception):
            interruption.close(old, self._model.__aexit__(None, None, None) if entered else None)

    def run(
        self,
        deps: DeepAgentDeps,
        said: str | Sequence[UserContent],
        history: History,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], None] = lambda name: None,
    ) -> Outcome:
        """Run a turn; whatever can go wrong with providers and workspaces becomes an error of ours.

        Raises `RewindRequested` if the agent wants it to begin again from before.
        """
        used, self._used = self._used, RunUsage()
        self._spent = used
        return self._guarded(self._run(deps, said, history, record, emit, tool_done, used))

    @property
    def model(self) -> Model:
        """The model that answers."""
        return self._model

    def again(self) -> None:
        """What comes next is the same turn, begun again, and counts against the same limits."""
        self._used = self._spent

    def spent(self) -> tuple[Usage, float | None]:
        """What was used since this was asked last, however the turn ended, and what it cost in USD, if that is known.

        What a turn began anew after a rewind of the agent's has used is counted with the whole turn.
        """
        used, self._spent = self._spent, RunUsage()
        usage = Usage(used.input_tokens, used.output_tokens, used.requests)
        return usage, cost(used, self._model) if used.input_tokens or used.output_tokens else 0.0

    def compact(self, history: History, focus: str | None, emit: Emit) -> tuple[Compacted, Shortened]:
        """Summarise a conversation between two turns. Raises as `run` does, or `NotFound` if that makes no sense."""
        sent = RetryingModel(self._model, Retries(self.options.retries, emit, self._reason))
        done, shortened = self._guarded(compaction.by_hand(sent, history, self._policy, focus))
        return done._replace(cost=cost(done.usage, self._model)), shortened

    @property
    def _policy(self) -> Policy:
        return Policy(self.options.compact_at, self.options.context_window)

    def _explain(self, error: Exception) -> DeepctlError | None:
        """What a failure of the model is called; `None` for whatever else went wrong."""
        return provider_errors.failure(error, self._asked)

    def _guarded(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self.stops.run(self._runner, self._entering(work))
        except (Abandoned, KeyboardInterrupt):
            self._restart()
            raise self.stops.reason() from None
        except DeepctlError:
            raise
        except WorkspaceError as error:
            raise StorageError(f"The workspace cannot be used: {error}.", self._kept, code="workspace") from error
        except RewindRequested:
            raise
        except Exception as error:  # every client has exceptions of its own; what is not theirs goes on
            if self.stops.is_stopped:
                raise self.stops.reason() from error
            failure = self._explain(error)
            if failure is None:
                raise
            raise failure from error
        finally:
            if inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
                work.close()  # it was stopped before it began

    async def _run(
        self,
        deps: DeepAgentDeps,
        said: str | Sequence[UserContent],
        history: History,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], None],
        used: RunUsage,
    ) -> Outcome:
        await self._servers.ready(emit)
        return await run_turn(
            self._agent,
            deps,
            said,
            model=self._model,
            history=history,
            record=record,
            emit=emit,
            tool_done=tool_done,
            retries=Retries(self.options.retries, emit, self._reason),
            usage_limits=self._limits,
            used=used,
            policy=self._policy,
            explain=self._explain,
        )

    async def _entering(self, work: Coroutine[Any, Any, _T]) -> _T:
        if not self._entered:
            await self._model.__aenter__()
            self._entered = True
        return await work

    def _reason(self, error: BaseException) -> str:
        return provider_errors.reason(error, self._asked)
