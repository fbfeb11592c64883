"""From the settings of a profile to the options of its turns: model, limits, approvals and sandbox.

The agent libraries are imported only after the settings have been read, because importing them takes a second.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from deepctl.domain import budgets, env_variables, mcp_servers, provider_keys
from deepctl.domain.budgets import Spending
from deepctl.domain.mcp_servers import McpServer
from deepctl.domain.memory.shared import SharedMemory, names_to_read
from deepctl.domain.permissions import CommandPolicy, Permissions, without_sandbox
from deepctl.domain.settings import Settings
from deepctl.layout import ProfilePaths, Root
from deepctl.quantities import counted
from deepctl.sandbox import read_only
from deepctl.sandbox.container import container_name

if TYPE_CHECKING:
    from deepctl.agent.extensions import AgentExtensions
    from deepctl.agent.sandboxes import Sandbox, SandboxChoice
    from deepctl.agent.turn_engine import Options
    from deepctl.domain.keys import KeyRing

Approve = Literal["ask", "auto", "never"]


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


class SetupReader(NamedTuple):
    """Reads the options of turns from settings. `can_ask` says whether a person answers approval requests.

    `load` imports the agent libraries. The variables in `environment` that a client would misread are corrected.
    """

    settings: Settings
    environment: MutableMapping[str, str]
    can_ask: bool
    load: Callable[[], None] = lambda: None
    timeout: float | None = None
    trusts_probes: bool = False
    """Whether a sandbox that has passed a test in this process is not tested again: for applications."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.settings.get("model") or provider_keys.OFFLINE

    @property
    def approve(self) -> Approve:
        """The result of approval requests."""
        return cast("Approve", self.settings.get("approve") or "ask")

    @property
    def network(self) -> bool:
        """Whether sandboxed commands have the network."""
        return self.settings.get("network") == "on"

    def of_profile(self, root: Root, paths: ProfilePaths) -> tuple[Options, CommandSetup]:
        """The options of a profile's turns, after a test of its sandbox. Raises `Refused` if it cannot be used."""
        in_force = self.settings
        permissions, limits = in_force.permissions(), in_force.limits()
        image = in_force.get("docker.image") or ""
        servers, hooks = in_force.mcp_servers(), in_force.hooks()
        approve, network = self.approve, self.network
        allowed_commands: list[str] | None = in_force.patterns("allowed_commands")
        paths_to_read = in_force.paths("read_only_paths")
        read_only_paths = read_only.resolve(paths_to_read, self.environment, root) if paths_to_read else ()
        self._prepare(servers)
        from deepctl.agent import sandboxes

        choices: dict[str, Sandbox] = {
            "none": sandboxes.NoSandbox(limits, paths.commands_home, read_only_paths),
            "bubblewrap": sandboxes.Bubblewrap(network, limits, dict(self.environment), (root.path,), read_only_paths),
        }
        sandbox = in_force.get("sandbox") or "auto"
        if sandbox == "docker":
            name = container_name(paths.directory)
            choices[sandbox] = sandboxes.Docker(name, image, network, limits, paths.name, read_only_paths)
        key = (network, limits, image, read_only_paths, self.environment.get("DEEPCTL_BWRAP"))
        choice = sandboxes.choose(sandbox, choices, can_ask=self.can_ask, key=key if self.trusts_probes else None)
        commands = self._commands(choice, approve, permissions, image)
        if choice.problem is not None:
            # The user has not chosen to work unsandboxed, so unsandboxed commands are not allowed.
            approve = "ask" if approve == "auto" else approve
            permissions, allowed_commands = without_sandbox(permissions), None
            hooks = [hook for hook in hooks if not hook.is_sandboxed]
        options = self._options(paths.name)._replace(
            instructions=in_force.get("instructions"),
            sandbox=choice.sandbox,
            approve=approve,
            permissions=permissions,
            allowed_commands=allowed_commands,
            hooks=hooks,
            mcp_servers=servers,
            mcp_logins=paths.keys,
            mcp_prompt_cache=paths.mcp_prompts,
            profile=paths.name,
            window_cache=paths.windows,
            protected=in_force.paths("protected"),
            shared_memory=SharedMemory(root, paths, names_to_read(in_force)),
            spending=Spending(root, paths, budgets.of_settings(in_force, paths.name)),
            extensions=self._extensions(root, paths),
        )
        hook_notice = None
        if left_out_count := len(in_force.hooks()) - len(hooks):
            hook_notice = f"{counted(left_out_count, 'hook')} of [hooks] cannot run, because there is no sandbox."
        notices = [commands.notice, mcp_servers.notice(servers) if servers else None, hook_notice]
        return options, commands._replace(notice=" ".join(filter(None, notices)) or None)

    def _extensions(self, root: Root, paths: ProfilePaths) -> AgentExtensions:
        from deepctl.agent.extensions import AgentExtensions

        in_force = self.settings
        # `--no-network` is about this chat, the setting `network` about commands.
        web = "off" if in_force.options.get("network") == "off" else in_force.get("web")
        switches = {name: in_force.get(name) == "on" for name in ("subagents", "search_sessions", "ask_user")}
        return AgentExtensions(
            root,
            paths,
            **switches,
            web=cast("Literal['off', 'ask', 'auto']", web),
            web_domains=in_force.patterns("web_domains"),
        )

    def without_profile(self, spending: Spending) -> tuple[Options, CommandSetup]:
        """The options of turns in memory."""
        self._prepare(())
        options = self._options(None)._replace(base_url=None, approve=self.approve, spending=spending)
        return options, self._commands(None, self.approve, {})

    def without_commands(self, root: Root, paths: ProfilePaths, window_cache: str | None) -> Options:
        """The options of requests for a profile that run no commands, so they need no sandbox."""
        spending = Spending(root, paths, budgets.of_settings(self.settings, paths.name))
        self._prepare(())
        return self._options(paths.name)._replace(window_cache=window_cache, spending=spending)

    def _prepare(self, servers: Sequence[McpServer]) -> None:
        """Check and set the environment variables for requests, and load. Raises `UsageError` for an invalid one."""
        is_remote = any(server.enabled and server.url is not None for server in servers)
        if self.model != provider_keys.OFFLINE or is_remote:
            provider = provider_keys.provider(self.model) if self.model != provider_keys.OFFLINE else None
            has_key = provider is not None and self._keys.has_reference(provider)
            env_variables.prepare(self.environment, provider, has_key=has_key)
        self.load()

    @property
    def _keys(self) -> KeyRing:
        return self.settings.keys(self.environment)

    def _options(self, profile: str | None) -> Options:
        """The model, the limits of a turn and a conversation, and the settings of requests and tools."""
        from deepctl.agent.limits import read_limits
        from deepctl.agent.turn_engine import Options

        in_force = self.settings
        return Options(
            self.model,
            in_force.get("base_url"),
            self._keys._replace(profile=profile),
            timeout=self.timeout,
            compact_at=in_force.number("compact_at"),
            context_window=in_force.number("context_window"),
            retries=in_force.number("retries") or 0,
            limits=read_limits(in_force.resolve, profile),
            model_settings=in_force.of_table("model_settings"),
            model_profile=in_force.of_table("model_profile"),
            tools=cast("Literal['full', 'lean']", in_force.get("tools")),
            disabled_tools=in_force.patterns("disabled_tools"),
            disabled_skills=in_force.patterns("disabled_skills"),
            first_answer_timeout=in_force.number("first_answer_timeout") or 0,
            idle_timeout=in_force.number("idle_timeout") or 0,
            is_traced=in_force.get("otel") == "true",
        )

    def _commands(
        self, choice: SandboxChoice | None, approve: Approve, permissions: Permissions, image: str | None = None
    ) -> CommandSetup:
        sandbox = choice.sandbox if choice is not None else None
        network = sandbox is not None and (not sandbox.confined or self.network)
        policy = CommandPolicy(
            sandbox.name if sandbox is not None else None,
            approve,
            self.can_ask,
            network,
            permissions,
            choice.problem if choice is not None else None,
            image,
            self.settings.patterns("allowed_commands") if choice is not None else (),
        )
        if choice is None:
            # A chat in memory has no commands, and says so when a command is requested.
            return CommandSetup(
                None, network, policy.questions, None, "There is no shell here, so commands do not run."
            )
        return CommandSetup(policy.sandbox, network, policy.questions, policy.notice(), policy.sentence())
