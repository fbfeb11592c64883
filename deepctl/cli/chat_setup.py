"""From settings to a running agent: the command line, the environment and the settings files become an `Engine`."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar, cast

from deepctl.domain import env_variables, mcp_servers, profiles, provider_keys, read_only_paths, settings
from deepctl.domain.mcp_servers import McpServer
from deepctl.domain.permissions import CommandPolicy, Permissions, without_sandbox
from deepctl.domain.settings import Settings
from deepctl.errors import UsageError
from deepctl.layout import ProfilePaths, Root
from deepctl.sandbox.container import container_name

if TYPE_CHECKING:
    from deepctl.agent.approvals import Ask
    from deepctl.agent.chat import Chat, EphemeralChat, TurnRunner
    from deepctl.agent.models import ModelCheck
    from deepctl.agent.sandboxes import Sandbox, SandboxChoice
    from deepctl.agent.turn_engine import Options

_T = TypeVar("_T")
_Chat = TypeVar("_Chat")
Approve = Literal["ask", "auto", "never"]
_PLACES = {"environment": "$DEEPCTL_MODEL", "profile": "profile.toml", "config": "config.toml"}


class CommandSetup(NamedTuple):
    """Where the agent's commands run, and the notice about it at the start."""

    sandbox: str | None
    network: bool
    """Whether commands reach the network: unsandboxed commands do."""
    questions: str
    """The result of approval requests: `asked`, `allowed` or `denied`."""
    notice: str | None
    statement: str
    """All of it as one sentence, for display."""


class Engine(NamedTuple, Generic[_Chat]):
    """The parts of a running chat: the agent (`running`), its conversation, and the sandbox choice."""

    running: TurnRunner
    chat: _Chat
    commands: CommandSetup


class ChatSetup(NamedTuple):
    """The options of a chat from the command line, and later changes by `/model`, `/approve` and `/sandbox`.

    Making an engine imports the agent libraries and tests the sandbox, which takes a second.
    """

    name: str
    settings: Settings
    """The settings in force; the command line comes first."""
    timeout: float | None = None
    ask: Ask | None = None
    """The function that asks the person at the terminal; `None` without a terminal."""

    def changed(self, root: Root | None, **options: str) -> ChatSetup:
        """The same setup with other options. The settings files are read again, if there is a root."""
        flags = {**self.settings.options, **options}
        if root is None:
            return self._replace(settings=settings.without_files(os.environ, flags))
        return self._replace(settings=settings.load(os.environ, known_profile(root, self.name), flags))

    @property
    def model(self) -> str:
        """The model's name."""
        return self.settings.get("model") or "offline"

    @property
    def approve(self) -> Approve:
        """The result of approval requests."""
        return cast("Approve", self.settings.get("approve") or "ask")

    @property
    def network(self) -> bool:
        """Whether sandboxed commands have the network."""
        return self.settings.get("network") == "on"

    def ephemeral(self) -> Engine[EphemeralChat]:
        """A chat in memory. The environment is read, settings files are not."""
        model, approve = self.model, self.approve
        _prepare(model, ())
        _load()
        from deepctl.agent.chat import EphemeralChat
        from deepctl.agent.turn_engine import Options

        agent_options = self._bounded(Options(model, approve=approve, timeout=self.timeout), None)
        runner = self._running(agent_options, note=None)
        return Engine(runner, EphemeralChat(runner), self._commands(None, approve, {}))

    def summarizer(self, profile: ProfilePaths) -> TurnRunner:
        """What writes summaries of the profile's conversations."""
        return self._without_commands(profile.windows, "The conversation has not changed.")

    def profile(self, root: Root) -> Engine[Chat]:
        """A chat of a profile. Raises `Refused` if its sandbox cannot be used."""
        in_force, model = self.settings, self.model
        permissions, limits = in_force.permissions(), in_force.limits()
        image = in_force.get("docker.image") or ""
        servers = in_force.mcp_servers()
        approve, network = self.approve, self.network
        read_only = read_only_paths.resolve(in_force, os.environ, root)
        _prepare(model, servers)
        _load()
        from deepctl.agent import sandboxes
        from deepctl.agent.chat import Chat
        from deepctl.agent.turn_engine import Options

        if any(server.enabled for server in servers):
            from deepctl.agent import mcp

            with suppress(ImportError):  # shown in the first turn
                mcp.load()
        paths = known_profile(root, self.name) or root.profile(self.name)
        choices: dict[str, Sandbox] = {
            "none": sandboxes.NoSandbox(limits, paths.commands_home, read_only),
            "bubblewrap": sandboxes.Bubblewrap(network, limits, dict(os.environ), (root.path,), read_only),
        }
        sandbox = in_force.get("sandbox") or "auto"
        if sandbox == "docker":
            name = container_name(paths.directory)
            choices[sandbox] = sandboxes.Docker(name, image, network, limits, paths.name, read_only)
        choice = sandboxes.choose(sandbox, choices, can_ask=self.ask is not None)
        commands = self._commands(choice, approve, permissions, image)
        if choice.problem is not None:
            # The user has not chosen to work unsandboxed, so unsandboxed commands are not allowed.
            approve = "ask" if approve == "auto" else approve
            permissions = without_sandbox(permissions)
        agent_options = Options(
            model,
            in_force.get("base_url"),
            in_force.get("instructions"),
            choice.sandbox,
            approve,
            permissions,
            self.timeout,
            mcp_servers=servers,
            profile=paths.name,
            window_cache=paths.windows,
            protected=in_force.paths("protected"),
        )
        runner = self._running(self._bounded(agent_options, self.name))
        notices = [commands.notice, mcp_servers.notice(servers) if servers else None]
        return Engine(runner, Chat(runner), commands._replace(notice=" ".join(filter(None, notices)) or None))

    def check(self) -> ModelCheck:
        """Send a test request to the model."""
        with closing(self._without_commands(None, None)) as runner:
            return runner.check()

    def _without_commands(self, window_cache: str | None, note: str | None) -> TurnRunner:
        """What sends requests that run no commands, so it needs no sandbox."""
        _prepare(self.model, ())
        _load()
        from deepctl.agent.turn_engine import Options

        base_url = self.settings.get("base_url")
        agent_options = Options(self.model, base_url, timeout=self.timeout, window_cache=window_cache)
        return self._running(self._bounded(agent_options, self.name), note=note)

    def _bounded(self, agent_options: Options, profile: str | None) -> Options:
        """The same setup, with the limits of a turn and a conversation, and with the settings of requests and tools."""
        from deepctl.agent.limits import read_limits

        in_force = self.settings
        return agent_options._replace(
            compact_at=in_force.number("compact_at"),
            context_window=in_force.number("context_window"),
            retries=in_force.number("retries") or 0,
            limits=read_limits(in_force.resolve, profile),
            model_settings=in_force.of_table("model_settings"),
            model_profile=in_force.of_table("model_profile"),
            tools=cast("Literal['full', 'lean']", in_force.get("tools")),
            disabled_tools=in_force.patterns("disabled_tools"),
            first_answer_timeout=in_force.number("first_answer_timeout") or 0,
            idle_timeout=in_force.number("idle_timeout") or 0,
        )

    def _running(self, agent_options: Options, note: str | None = "The conversation so far is stored.") -> TurnRunner:
        from deepctl.agent.chat import TurnRunner

        try:
            return TurnRunner(agent_options, environment=os.environ, ask=self.ask, note=note)
        except UsageError as error:
            place = _PLACES.get(self.settings.resolve("model").source)
            if error.code != "unknown_model" or place is None:
                raise
            raise UsageError(f"{error.message} It comes from {place}.", error.hint, code=error.code) from None

    def _commands(
        self, choice: SandboxChoice | None, approve: Approve, permissions: Permissions, image: str | None = None
    ) -> CommandSetup:
        sandbox = choice.sandbox if choice is not None else None
        network = sandbox is not None and (not sandbox.confined or self.network)
        policy = CommandPolicy(
            sandbox.name if sandbox is not None else None,
            approve,
            self.ask is not None,
            network,
            permissions,
            choice.problem if choice is not None else None,
            image,
        )
        if choice is None:
            # An ephemeral chat has no commands, and says so when a command is requested.
            return CommandSetup(
                None, network, policy.questions, None, "There is no shell here, so commands do not run."
            )
        return CommandSetup(policy.sandbox, network, policy.questions, policy.notice(), policy.sentence())


def known_profile(root: Root, name: str) -> ProfilePaths | None:
    """The profile of that name; `None` if the chat would create it."""
    return profiles.find(root, name) if profiles.exists(root, name) else None


def _prepare(model: str, servers: Sequence[McpServer]) -> None:
    """Check and set the environment variables for requests. Raises `UsageError` for an invalid one."""
    is_remote = any(server.enabled and server.url is not None for server in servers)
    if model != provider_keys.OFFLINE or is_remote:
        env_variables.prepare(os.environ, None if model == provider_keys.OFFLINE else provider_keys.provider(model))


def _load() -> None:
    """Import the agent libraries. This takes a second, so it happens only when there is a prompt."""
    # pydantic-ai prints a greeting for new users of the library on stderr, which users of deepctl do not need.
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")
    # The log messages of the harness are also in the results of the tools.
    logging.getLogger().addHandler(logging.NullHandler())
    # These imports create no garbage, so garbage collection would only take time.
    gc.disable()
    import deepctl.agent.chat  # noqa: F401

    gc.freeze()
    gc.enable()


class BackgroundValue(Generic[_T]):
    """A value that is computed once: in a thread if that was started, else on first use."""

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[_T] | None = None
        self._failed: BaseException | None = None

    def begin(self, callback: Callable[[BaseException | None], None]) -> None:
        """Make it in a thread, which calls `callback` in the end, with what making it raised.

        The process can end without waiting for the thread.
        """

        def run() -> None:
            failure = None
            try:
                self.get()
            except BaseException as error:
                failure = error
            callback(failure)

        threading.Thread(target=run, daemon=True).start()

    @classmethod
    def of(cls, value: _T) -> BackgroundValue[_T]:
        """A value that is computed already."""
        background = cls(lambda: value)
        background.get()
        return background

    @property
    def made(self) -> _T | None:
        """The value if it is computed already."""
        return self._made[0] if self._made is not None else None

    def get(self) -> _T:
        """The value, after waiting for it. Raises the error of its computation every time."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            if self._made is None:
                try:
                    self._made = (self._make(),)
                except BaseException as error:
                    self._failed = error
                    raise
            return self._made[0]
