"""The setup of a chat: its agent and its directory, from the command line, the environment and the settings files.

The directory (`ChatDirectory`) is a project, or the private workspace of the profile. It is that of `-C`, else that of
the setting `project`, until the chat continues a session of another directory.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from deepctl.agent.profile_setup import Approve, CommandSetup, SetupReader
from deepctl.cli.confirm import RuleStore, confirm
from deepctl.domain import budgets, profiles, projects, session_choice, settings
from deepctl.domain.settings import Settings
from deepctl.errors import Refused, UsageError
from deepctl.files import atomic
from deepctl.layout import ProfilePaths, Root
from deepctl.output.render import home, is_terminal
from deepctl.store import lookup
from deepctl.store import projects as stored
from deepctl.store.coverage import CoverageSettings
from deepctl.store.records import SessionRecord

if TYPE_CHECKING:
    from deepctl.agent.approver import Ask
    from deepctl.agent.chat import Chat, EphemeralChat, TurnRunner
    from deepctl.agent.models import ModelCheck
    from deepctl.agent.questions import Answerer
    from deepctl.agent.turn_engine import Options

_T = TypeVar("_T")
_Chat = TypeVar("_Chat")
_PLACES = {"environment": "$DEEPCTL_MODEL", "profile": "profile.toml", "config": "config.toml"}


class ChatParts(NamedTuple, Generic[_Chat]):
    """The parts of a running chat: the agent (`runner`), its conversation, and the sandbox choice."""

    runner: TurnRunner
    chat: _Chat
    commands: CommandSetup


class ChatSetup(NamedTuple):
    """The options of a chat from the command line, and later changes by `/model`, `/approve` and `/sandbox`.

    Making the parts imports the agent libraries and tests the sandbox, which takes a second.
    """

    name: str
    settings: Settings
    """The settings in force; the command line comes first."""
    timeout: float | None = None
    ask: Ask | None = None
    """The function that asks the person at the terminal; `None` without a terminal."""
    answerer: Answerer | None = None
    """The same for questions of the model; `None` if no person waits for them, as with `--json`."""
    chosen_by: str | None = None
    """The directory that gave the profile (`profiles use --here`); `None` if another source did."""
    profile_of_budgets: str | None = None
    """The profile whose budgets hold for a chat in memory, if `--user` names one."""
    shows_work: bool = False
    """Whether the display shows the work of tools, as in `Options`."""

    def changed(self, root: Root | None, **options: str) -> ChatSetup:
        """The same setup with other options. The settings files are read again, if there is a root."""
        flags = {**self.settings.options, **options}
        if root is None:
            return self._replace(settings=settings.without_files(os.environ, flags))
        return self._replace(settings=settings.load(os.environ, known_profile(root, self.name), flags))

    @property
    def _reader(self) -> SetupReader:
        return SetupReader(self.settings, os.environ, self.ask is not None, _load, self.timeout)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._reader.model

    @property
    def approve(self) -> Approve:
        """The result of approval requests."""
        return self._reader.approve

    def ephemeral(self) -> ChatParts[EphemeralChat]:
        """A chat in memory. The environment is read, settings files are not."""
        spending = budgets.of_chat_in_memory(os.environ, self.profile_of_budgets)
        agent_options, commands = self._reader.without_profile(spending)
        from deepctl.agent.chat import EphemeralChat

        runner = self._running(agent_options, note=None)
        return ChatParts(runner, EphemeralChat(runner), commands)

    def summarizer(self, root: Root, profile: ProfilePaths) -> TurnRunner:
        """What writes summaries of the profile's conversations."""
        return self._without_commands(root, profile, profile.windows, "The conversation has not changed.")

    def profile(self, root: Root) -> ChatParts[Chat]:
        """A chat of a profile. Raises `Refused` if its sandbox cannot be used."""
        paths = known_profile(root, self.name) or root.profile(self.name)
        agent_options, commands = self._reader.of_profile(root, paths)
        from deepctl.agent.chat import Chat

        if any(server.enabled for server in agent_options.mcp_servers):
            from deepctl.agent import mcp

            with suppress(ImportError):  # shown in the first turn
                mcp.load()
        runner = self._running(agent_options)
        return ChatParts(runner, Chat(runner), commands)

    def titler(self, root: Root, profile: ProfilePaths, model: str) -> TurnRunner:
        """What writes titles of the profile's sessions with this model."""
        return self.changed(root, model=model)._without_commands(root, profile, None, None)

    def check(self, root: Root) -> ModelCheck:
        """Send a test request to the model."""
        profile = known_profile(root, self.name) or root.profile(self.name)
        with closing(self._without_commands(root, profile, None, None)) as runner:
            return runner.check()

    def _without_commands(
        self, root: Root, profile: ProfilePaths, window_cache: str | None, note: str | None
    ) -> TurnRunner:
        """What sends requests that run no commands."""
        return self._running(self._reader.without_commands(root, profile, window_cache), note=note)

    def _running(self, agent_options: Options, note: str | None = "The conversation so far is stored.") -> TurnRunner:
        from deepctl.agent.chat import TurnRunner

        agent_options = agent_options._replace(shows_work=self.shows_work)
        try:
            return TurnRunner(agent_options, environment=os.environ, ask=self.ask, note=note, answerer=self.answerer)
        except UsageError as error:
            place = _PLACES.get(self.settings.resolve("model").source)
            if error.code != "unknown_model" or place is None:
                raise
            raise UsageError(f"{error.message} It comes from {place}.", error.hint, code=error.code) from None


def known_profile(root: Root, name: str) -> ProfilePaths | None:
    """The profile of that name; `None` if the chat would create it."""
    return profiles.find(root, name) if profiles.exists(root, name) else None


def allowed_for_good(root: Root, name: str) -> RuleStore:
    """Stores what a person allows in settings of the profile: kinds of commands in `allowed_commands`, and domains in
    `web_domains`.

    It is used during a turn, which holds the lock of the profile.
    """

    def setting_of(choice: str) -> str:
        return "web_domains" if choice.startswith("domain ") else "allowed_commands"

    def give(choice: str) -> None:
        paths, key = known_profile(root, name) or root.profile(name), setting_of(choice)
        value = settings.load(os.environ, paths).patterns(key)
        settings.change(paths.settings, key, ",".join(dict.fromkeys([*value, choice.partition(" ")[2]])))

    def hint(choice: str) -> str:
        key = setting_of(choice)
        command = f"deepctl config unset {key} --user {shlex.quote(name)}"
        return f"The setting {key} in profile.toml gets it. `{command}` removes all of them."

    return RuleStore(hint, give)


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


_HINTED = "hinted"
_MOST_HINTED = 100
"""The file in the cache with the directories that were hinted at, and how many of them it remembers."""


class ChatDirectory:
    """`option` is the value of `-C`. `is_private` means that the chat starts in the private workspace (`--no-project`).
    A large project needs a confirmation, or `is_large`. `is_script` means that a script reads the output: there are no
    questions and no hints.
    """

    def __init__(
        self,
        root: Root,
        option: str | None = None,
        *,
        is_private: bool = False,
        is_large: bool = False,
        is_script: bool = False,
    ) -> None:
        self.path: str | None = projects.locate(option) if option is not None else None
        """The real path of the project, or `None`."""
        self._root = root
        self._is_given = option is not None or is_private
        self._is_large = is_large
        self._is_script = is_script
        self._is_settled = self._is_given
        self._has_entered = False
        self._admitted: set[str] = set()
        self._coverage = CoverageSettings()
        self._is_hinted = False

    def begin(self, in_force: Settings) -> None:
        """Use the setting `project` if no directory was named. Raises `BadSetting`."""
        if not self._is_settled:
            self.path, self._is_settled = session_choice.of_settings(in_force), True
        self._coverage = in_force.coverage()

    def enter(
        self, profile: ProfilePaths | None, session: str | None, new: str | None, tell: Callable[[str], None]
    ) -> None:
        """Move to the directory of the next turn, and check it. Takes no lock; `profile` is `None` if it is new.

        The size of a new project is told, and a large one is asked about. Raises the errors of `projects.check`,
        `UsageError` if a named session works in another directory than `-C`, and `Refused`.
        """
        if profile is not None and self._is_given and not self._has_entered:
            record = session_choice.named(profile, session, new)
            if record is not None:
                session_choice.check_directory(profile, record, self.path)
        path = self.next_path(profile, session, new)
        if path:
            projects.check(self._root, path, os.environ, profile)
            if path not in self._admitted:
                known = stored.by_path(profile, path) if profile is not None else None
                if known is None:
                    self._measure(profile, path, tell)
                elif profile is not None and (difference := stored.difference(known)):
                    command = f"deepctl projects forget {shlex.quote(path)} --user {profile.name} --dry-run"
                    tell(
                        f"{home(path)} seems to be another directory than at the last turn: {difference}. Its sessions "
                        f"and checkpoints are those of the earlier one. `{command}` lists them; --new starts another "
                        "session."
                    )
                self._admitted.add(path)
        self.path, self._has_entered = path, True

    def next_path(self, profile: ProfilePaths | None, session: str | None, new: str | None) -> str | None:
        """The directory of the next turn: that of the session, if it exists and is not the one that was used last."""
        record = session_choice.named(profile, session, new) if profile is not None else None
        return session_choice.directory_of(profile, record) if profile is not None and record is not None else self.path

    def _measure(self, profile: ProfilePaths | None, path: str, tell: Callable[[str], None]) -> None:
        if profile is not None and (old := session_choice.moved_here(profile, path)) is not None:
            command = stored.command_to_move(profile.name, old, path)
            tell(f"This seems to be {old}, which was moved. `{command}` keeps its sessions.")
        project_size = projects.measure(projects.covered_sizes(path, self._coverage))
        if not project_size.is_large or self._is_large:
            tell(f"The first checkpoint of {home(path)} contains {project_size}.")
            return
        if self._is_script or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
            raise Refused(
                f"{path} has {project_size}, and every checkpoint of it would look at all of them.",
                "--large works there all the same. Files that git ignores do not count.",
                code="project_large",
            )
        confirm(f"{path} has {project_size}. Make a checkpoint of all of them?", yes=False, as_json=False)

    def follow(self, profile: ProfilePaths, session: str | None, new: str | None) -> None:
        """Move to the directory of the next turn without a check, which is that of the turn."""
        self.path = self.next_path(profile, session, new)

    def current(self, profile: ProfilePaths, session: str | None) -> SessionRecord:
        """The session that the next turn would continue. Raises `NotFound` if there is none yet."""
        name = session if session is not None else session_choice.latest(profile, self.path)
        if name is None:
            raise session_choice.without_session(profile, self.path) if self.path else lookup.without_session(profile)
        return lookup.current_session(profile, name)

    def next_name(self, profile: ProfilePaths, session: str | None) -> str:
        """The name of the session that the next turn continues or starts."""
        return session_choice.next_name(profile, self.path, session)

    def hint(self, profile: ProfilePaths, session: str | None) -> str | None:
        """How to work in the current directory, if it looks like another project; once for each directory."""
        if self._is_given or self._is_hinted or self._is_script or session is not None:
            return None
        self._is_hinted = True
        hinted_paths = _hinted(profile)
        with suppress(OSError):
            if os.path.realpath(os.getcwd()) in hinted_paths:
                return None
        path = projects.looks_like_one(self._root, os.environ)
        if path is None or (self.path and f"{path}/".startswith(f"{self.path}/")):
            return None
        _remember(profile, [*hinted_paths, path])
        command = f"deepctl chat -C . --user {shlex.quote(profile.name)}"
        return f"The agent does not work in the current directory. `{command}` lets it."


def _hinted(profile: ProfilePaths) -> list[str]:
    """The directories that were hinted at, the oldest first."""
    with suppress(OSError, ValueError, Refused):
        entries = json.loads(atomic.read_file(os.path.join(profile.cache, _HINTED)))
        return [entry for entry in entries if isinstance(entry, str)]
    return []


def _remember(profile: ProfilePaths, paths: Sequence[str]) -> None:
    with suppress(OSError):
        atomic.make_root(profile.cache)
        atomic.replace_unsynced(os.path.join(profile.cache, _HINTED), json.dumps(paths[-_MOST_HINTED:]).encode())
