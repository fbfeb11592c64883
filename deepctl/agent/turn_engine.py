"""Turns of an agent, in the event loop of the caller.

A `TurnEngine` has an agent and its model, ready for any number of turns: limits, retries, compaction, MCP servers, and
the errors for failures. It starts no event loop and handles no signals. `deepctl.agent.chat` has the drivers of the
command line, `deepctl.agent.open_profile` those of applications.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic_ai import Agent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model
from pydantic_ai.usage import RunUsage
from pydantic_ai.workspaces import WorkspaceError

from deepctl.agent import answer_ends, compaction, models, provider_errors
from deepctl.agent.answer_ends import AnswerCut
from deepctl.agent.approver import Approve, Ask
from deepctl.agent.backend import LocalBackend
from deepctl.agent.checkpoints import Checkpointing
from deepctl.agent.compaction import CompactionResult, ShortenedHistory
from deepctl.agent.extensions import AgentExtensions, skill_capabilities
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.interruption import KEPT, Blocking, Emit, directly
from deepctl.agent.limits import (
    COMPACT_AT,
    CompactionPolicy,
    ConfiguredLimits,
    ContextUsage,
    cost,
    has_own_server,
    limits_of,
    reported_window,
    window_of,
)
from deepctl.agent.mcp import McpServers
from deepctl.agent.media_filter import MediaFilterModel
from deepctl.agent.mention_files import Files
from deepctl.agent.mentions import AttachmentReader
from deepctl.agent.message_filters import SentHistory
from deepctl.agent.metering import Meter, purpose
from deepctl.agent.model_wrappers import Retries, RetryingModel
from deepctl.agent.models import ModelCheck, ResolvedModel, resolve
from deepctl.agent.provider_errors import ModelEndpoint
from deepctl.agent.sandboxes import Sandbox
from deepctl.agent.turn import Outcome, TokenUsage, TurnRecord, run_turn
from deepctl.agent.work_events import WorkEvents
from deepctl.domain.budgets import Spending
from deepctl.domain.keys import NO_KEYS, KeyRing
from deepctl.domain.mcp_prompts import ServerPrompt
from deepctl.domain.mcp_servers import McpServer
from deepctl.domain.memory.shared import SharedMemory
from deepctl.domain.outside_files import OutsideFile
from deepctl.domain.permissions import Permissions
from deepctl.errors import DeepctlError, StorageError
from deepctl.sandbox.policy import PROTECTED

if TYPE_CHECKING:
    from deepctl.agent.hooks import CommandHooks
    from deepctl.agent.questions import Answerer
    from deepctl.agent.tracing import Tracing
    from deepctl.domain.hooks import Hook


class Options(NamedTuple):
    """The resolved settings of a chat. `timeout` is in seconds.

    `compact_at` is the share of the context window, in percent, at which conversations are compacted, `None` for never;
    `context_window` is that window in tokens, if the model's own value must not be used. `window_cache` is the file
    with the windows that servers have reported, `None` if nothing may be stored. `model_settings` and
    `model_profile` are the tables of these names in the settings, with values for pydantic-ai's types. `tools` is
    `full` or `lean`; `disabled_tools` are names of tools. `first_answer_timeout` and `idle_timeout` are in seconds.
    `keys` are the references to keys of the provider and of MCP servers.
    """

    model: str
    base_url: str | None = None
    keys: KeyRing = NO_KEYS
    instructions: str | None = None
    sandbox: Sandbox | None = None
    approve: Approve = "ask"
    permissions: Permissions = {}
    allowed_commands: Sequence[str] | None = ()
    """Kinds of commands that need no approval; `None` if no kind can be allowed."""
    hooks: Sequence[Hook] = ()
    timeout: float | None = None
    compact_at: int | None = COMPACT_AT
    context_window: int | None = None
    retries: int = 3
    limits: ConfiguredLimits = ConfiguredLimits()
    mcp_servers: Sequence[McpServer] = ()
    mcp_logins: str | None = None
    """The directory with the tokens of logins to MCP servers; `None` for no logins."""
    mcp_prompt_cache: str | None = None
    """The file for the prompts of MCP servers; `None` if nothing may be stored."""
    model_settings: Mapping[str, Any] = {}
    model_profile: Mapping[str, Any] = {}
    tools: Literal["full", "lean"] = "full"
    disabled_tools: Sequence[str] = ()
    disabled_skills: Sequence[str] = ()
    first_answer_timeout: float = 600
    idle_timeout: float = 120
    profile: str | None = None
    """The profile of the agent; an ephemeral chat has none."""
    is_at_terminal: bool = True
    """Whether a terminal shows the answers, as the instructions of the agent say."""
    shows_work: bool = False
    """Whether a display shows changes of files and the output of commands while they run (`agent.work_events`)."""
    window_cache: str | None = None
    protected: Sequence[str] = PROTECTED
    """Files of a project that only the user changes, or the agent after an approval."""
    shared_memory: SharedMemory | None = None
    """The notebooks of other profiles that the agent may read."""
    spending: Spending | None = None
    """Where requests are recorded, and the budgets; `None` if requests are not recorded."""
    extensions: AgentExtensions = AgentExtensions()
    is_traced: bool = False
    """Whether turns are traced with OpenTelemetry (`agent.tracing`)."""


class TurnEngine:
    """An agent that runs one turn after the other.

    Without an `agent`, it is that of the options, and the constructor raises `UsageError` or `ModelFailed` if the model
    cannot be used, and `BadSetting` if a rule cannot be used. An application's own `agent` has its tools, approvals and
    instructions itself, and `model` is its model. The constructor also raises `UsageError` if the model has no price
    and money is limited, for a turn or by a budget. `note` is the hint of errors that end a turn. `answerer` asks the
    user the questions of the model.
    """

    def __init__(
        self,
        options: Options,
        *,
        environment: Mapping[str, str],
        ask: Ask | None = None,
        note: str | None = KEPT,
        agent: Agent[DeepAgentDeps, Any] | None = None,
        model: Model | None = None,
        answerer: Answerer | None = None,
    ) -> None:
        self.options = options
        self._note = note
        self._environment = environment
        self._use(ResolvedModel(model, None) if model is not None else _resolve(options, environment, reads=False))
        self._shown_notices: set[str] = set()
        self._has_history = self._has_results = self._has_begun = False
        self._servers = (
            McpServers(options.mcp_servers, environment, options.keys, options.mcp_logins, options.mcp_prompt_cache)
            if options.mcp_servers
            else None
        )
        self._limits = limits_of(options.limits, self.model, options.model)
        self._tracing = _tracing() if options.is_traced else None
        self.meter = Meter(options.spending, self.model, options.model, self.traced)
        self.session_name: str | None = None
        """The name of the session of the turn, for traces."""
        self._used = RunUsage()
        self._spent = RunUsage()
        self._hooks: CommandHooks | None = None
        self._is_own_agent = agent is None
        self.agent: Agent[DeepAgentDeps, Any] = agent if agent is not None else self._own_agent(ask, answerer)
        # An agent without checkpoints of its own reports its tool calls, too.
        self._capabilities = [] if _has_checkpoints(self.agent) else [Checkpointing()]
        # An application opens and closes its own model.
        self._owns_model = model is None
        self._is_entered = False

    def _use(self, choice: ResolvedModel) -> None:
        self.model: Model = choice.model
        self._last_response, self.settings_notice, self._key, self._has_key = choice[1:]

    def read_keys(self) -> None:
        """Read the keys that only a command or a keyring has, once, before the first request. Blocks up to 10 seconds
        for each key.

        Raises `UsageError` if the key of the provider cannot be read. A key of an MCP server causes a notice.
        """
        if not self._has_key:
            self._use(_resolve(self.options, self._environment, reads=True))
            if self._is_own_agent:
                self.agent.model = self.model
        if self._servers is not None:
            self._servers.read_keys()

    def _own_agent(self, ask: Ask | None, answerer: Answerer | None) -> Agent[DeepAgentDeps, str]:
        options = self.options
        capabilities = options.extensions.capabilities(
            approve=options.approve, ask=ask, answerer=answerer, environment=self._environment
        )
        if self._servers is not None:
            capabilities.append(self._servers.capability())
        if self._tracing is not None:
            capabilities.append(self._tracing.capability())
        if options.hooks:
            from deepctl.agent.hooks import CommandHooks  # most profiles have none

            self._hooks = CommandHooks(options.hooks, self._environment)
            capabilities.append(self._hooks)
        return create_deep_agent(
            self.model,
            instructions=[_place(options), *([options.instructions] if options.instructions else [])],
            include_execute=options.sandbox is not None,
            approve=options.approve,
            ask=ask,
            permissions=options.permissions,
            allowed_commands=options.allowed_commands,
            environment=self._environment,
            tools=options.tools,
            disabled_tools=options.disabled_tools,
            context_window=options.context_window,
            shared_memory=options.shared_memory,
            capabilities=capabilities,
        )

    def mcp_prompts(self) -> list[ServerPrompt] | None:
        """The prompts of the running MCP servers; `None` if no server is running."""
        return self._servers.prompts() if self._servers is not None and self._servers.are_connected else None

    async def mcp_prompt(self, prompt: ServerPrompt, values: Mapping[str, str]) -> list[UserContent]:
        """The parts of a message with a prompt of an MCP server; `ready` has been called. Raises `McpServerFailed`."""
        assert self._servers is not None
        content = await self._servers.prompt(prompt, values)
        return [content] if isinstance(content, str) else list(content)

    async def ready(self, emit: Emit | None) -> None:
        """Open the connections of the model, and start the MCP servers if there is an `emit` for notices about them."""
        if self._owns_model and not self._is_entered:
            await self.model.__aenter__()
            self._is_entered = True
        if self._servers is not None and emit is not None:
            await self._servers.ready(emit)

    @property
    def is_open(self) -> bool:
        """Whether there is anything to close."""
        return self._is_entered or (self._servers is not None and self._servers.are_connected)

    async def close(self) -> None:
        """End the MCP servers, and close the connections of the model."""
        if self._servers is not None and self._servers.are_connected:
            await self._servers.close()
        if (work := self.leave_model()) is not None:
            await work

    def leave_model(self) -> Coroutine[Any, Any, object] | None:
        """Closes the connections of the model, if there are any. The next turn opens new ones."""
        was_entered, self._is_entered = self._is_entered, False
        return self.model.__aexit__(None, None, None) if was_entered else None

    def kill_servers(self) -> None:
        """Kill the MCP servers, because their event loop can no longer be used. The next turn starts them again."""
        if self._servers is not None:
            self._servers.kill()

    async def run(
        self,
        deps: DeepAgentDeps,
        user_content: str | Sequence[UserContent],
        history: SentHistory,
        record: TurnRecord,
        emit: Emit,
        tool_done: Callable[[str], Awaitable[None]] | None = None,
        blocking: Blocking = directly,
    ) -> Outcome:
        """Run a turn; `ready` has been called. The parameters are those of `run_turn`.

        Raises `RewindRequested` if the agent wants to start the turn again from an earlier checkpoint, and the
        exceptions of providers and workspaces: see `error_of`.
        """
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

        if self.settings_notice is not None:
            self.notify(self.settings_notice, emit)
        if self._hooks is not None:
            self._hooks.emit = emit
        meter = self.meter
        meter.session, meter.turn, meter.emit, meter.blocking = deps.session, record.turn, emit, blocking
        meter.check_prices()
        with self.traced("turn", turn=record.turn, profile=self._profile, session=self.session_name):
            return await run_turn(
                self.agent,
                deps,
                user_content,
                model=self.model,
                metered_model=meter.around(self.model),
                history=history,
                record=record,
                emit=observed,
                tool_done=tool_done,
                blocking=blocking,
                retries=self._retries(emit),
                usage_limits=self._limits,
                run_usage=run_usage,
                policy=self._policy,
                explain=self._explain,
                explain_cut=self._explain_cut,
                capabilities=[*self._capabilities, *self._skills(deps), *self._observers(observed)],
            )

    @property
    def _profile(self) -> str | None:
        """The profile, also of an engine that only writes summaries."""
        return self.options.profile or self.options.keys.profile

    @contextmanager
    def traced(self, name: str, **marks: str | int | None) -> Iterator[None]:
        """A span around work of this agent, if it is traced: see `Tracing.span`."""
        if self._tracing is None:
            yield
            return
        with self._tracing.span(name, **marks):
            yield

    def flush_traces(self) -> None:
        """Send the spans that have ended, which takes a second at most."""
        if self._tracing is not None:
            self._tracing.flush()

    def _skills(self, deps: DeepAgentDeps) -> list[AbstractCapability[Any]]:
        """The skills of the profile. An application's agent has its own."""
        if not self._is_own_agent or not isinstance(deps.backend, LocalBackend) or not deps.backend.skills:
            return []
        return skill_capabilities(deps.backend.skills)

    def _observers(self, emit: Emit) -> list[AbstractCapability[Any]]:
        return [WorkEvents(emit, dict(self._environment))] if self.options.shows_work else []

    def notify(self, message: str, emit: Emit) -> None:
        """Emit a notice, once for this object."""
        if message not in self._shown_notices:
            self._shown_notices.add(message)
            emit({"type": "notice", "message": message})

    def error_of(self, error: Exception) -> DeepctlError | None:
        """The error for an exception of the model or the workspace; `None` for any other exception."""
        if isinstance(error, WorkspaceError):
            return StorageError(f"The workspace cannot be used: {error}.", self._note, code="workspace")
        return self._explain(error)

    def attachments(
        self, prompt: str, files: Callable[[], Files], emit: Emit, outside_files: Mapping[str, OutsideFile]
    ) -> list[UserContent]:
        """The files that a prompt mentions, as parts of its message. Notices about them are emitted."""
        if "@" not in prompt:
            return []
        reader = AttachmentReader(self.model, self.options.permissions, self._environment)
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
            run_usage, self.model
        ) if run_usage.input_tokens or run_usage.output_tokens else 0.0

    async def compact(
        self, history: SentHistory, focus: str | None, emit: Emit, session: str | None = None
    ) -> tuple[CompactionResult, ShortenedHistory]:
        """Summarise a conversation between two turns; `session` is the id of its session. Raises like `run`, or
        `NotFound` if there is nothing to summarise.
        """
        self.meter.session, self.meter.turn, self.meter.emit = session, None, emit
        metered_model = self.meter.around(self.model)
        model = MediaFilterModel(RetryingModel(metered_model, self._retries(emit)), reason=self._reason)
        with purpose("compaction"), self.traced("compact", profile=self._profile, session=self.session_name):
            result, short_history = await compaction.by_hand(model, history, self._policy, focus)
        return result._replace(cost=cost(result.usage, self.model)), short_history

    async def check(self) -> ModelCheck:
        """Send a test request to the model, without retries. Raises like `run`."""
        metered_model = self.meter.around(self.model)
        model = RetryingModel(metered_model, self._retries(lambda event: None)._replace(most=0))
        with purpose("check"):
            return await models.check_model(model, self._policy, self.options.tools)

    async def title(self, text: str) -> str:
        """A title of a conversation that begins with `text`, by one request without retries. Raises like `run`."""
        with purpose("title"):
            return await models.title_of(self.meter.around(self.model), text)

    def _retries(self, emit: Emit) -> Retries:
        options = self.options
        return Retries(options.retries, emit, self._reason, options.first_answer_timeout, options.idle_timeout)

    @property
    def _policy(self) -> CompactionPolicy:
        return CompactionPolicy(self.options.compact_at, self.options.context_window, self.options.window_cache)

    @property
    def window(self) -> int | None:
        """The context window of the model in tokens, as far as it is known so far."""
        return window_of(self.model, self.options.context_window)

    @property
    def _max_tokens(self) -> int | None:
        """The maximum length of an answer in tokens that the user has set."""
        return self.options.model_settings.get("max_tokens")

    @property
    def _endpoint(self) -> ModelEndpoint:
        """The target of requests. It is needed only after a failure."""
        return provider_errors.model_endpoint(
            self.options.model,
            self.options.base_url,
            self.model.base_url or "",
            self._environment,
            self._last_response,
        )._replace(
            key=self._key,
            settings={**(self.model.settings or {})},
            is_own=has_own_server(self.model),
            window=reported_window(self.model),
            context_window=self.options.context_window,
            tools=self.options.tools,
            has_history=self._has_history,
            has_results=self._has_results,
            has_begun=self._has_begun,
        )

    def _explain(self, error: Exception) -> DeepctlError | None:
        """The error for a failure of the model; `None` for any other failure."""
        return provider_errors.failure(error, self._endpoint)

    def _explain_cut(self, cut: AnswerCut, context: ContextUsage) -> DeepctlError | str:
        """The error for an answer that is not whole; a notice if its length is the maximum that the user has set."""
        failure = answer_ends.failure_of(cut, self.options.model, context, self._max_tokens)
        if answer_ends.is_wanted(cut, self._max_tokens):
            return f"{failure.message} model_settings.max_tokens is {self._max_tokens}."
        return failure

    def _reason(self, error: BaseException) -> str:
        return provider_errors.reason(error, self._endpoint)


def _tracing() -> Tracing:
    from deepctl.agent.tracing import Tracing  # the packages of OpenTelemetry take a while

    return Tracing()


def _has_checkpoints(agent: Agent[DeepAgentDeps, Any]) -> bool:
    kinds: list[type[AbstractCapability[Any]]] = []
    agent.root_capability.apply(lambda capability: kinds.append(type(capability)))
    return Checkpointing in kinds


def _resolve(options: Options, environment: Mapping[str, str], *, reads: bool) -> ResolvedModel:
    return resolve(
        options.model,
        base_url=options.base_url,
        environment=environment,
        keys=options.keys,
        reads=reads,
        settings=options.model_settings,
        profile=options.model_profile,
    )


def _place(options: Options) -> str:
    """The instructions about the program and its display."""
    subject = f"the profile {options.profile} of deepctl" if options.profile is not None else "deepctl"
    if not options.is_at_terminal:
        return f"You are the agent of {subject}."
    return f"You are the agent of {subject}, a command-line program. A terminal shows your answers as Markdown."
