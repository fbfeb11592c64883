"""From settings to a running agent: the command line, the environment and the settings files become a `ChatParts`."""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from deepctl.agent.profile_setup import Approve, CommandSetup, SetupReader
from deepctl.domain import profiles, settings
from deepctl.domain.settings import Settings
from deepctl.errors import UsageError
from deepctl.layout import ProfilePaths, Root

if TYPE_CHECKING:
    from deepctl.agent.approvals import Ask
    from deepctl.agent.chat import Chat, EphemeralChat, TurnRunner
    from deepctl.agent.models import ModelCheck
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
        agent_options, commands = self._reader.without_profile()
        from deepctl.agent.chat import EphemeralChat

        runner = self._running(agent_options, note=None)
        return ChatParts(runner, EphemeralChat(runner), commands)

    def summarizer(self, profile: ProfilePaths) -> TurnRunner:
        """What writes summaries of the profile's conversations."""
        return self._without_commands(profile.windows, "The conversation has not changed.")

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

    def check(self) -> ModelCheck:
        """Send a test request to the model."""
        with closing(self._without_commands(None, None)) as runner:
            return runner.check()

    def _without_commands(self, window_cache: str | None, note: str | None) -> TurnRunner:
        """What sends requests that run no commands."""
        return self._running(self._reader.without_commands(self.name, window_cache), note=note)

    def _running(self, agent_options: Options, note: str | None = "The conversation so far is stored.") -> TurnRunner:
        from deepctl.agent.chat import TurnRunner

        try:
            return TurnRunner(agent_options, environment=os.environ, ask=self.ask, note=note)
        except UsageError as error:
            place = _PLACES.get(self.settings.resolve("model").source)
            if error.code != "unknown_model" or place is None:
                raise
            raise UsageError(f"{error.message} It comes from {place}.", error.hint, code=error.code) from None


def known_profile(root: Root, name: str) -> ProfilePaths | None:
    """The profile of that name; `None` if the chat would create it."""
    return profiles.find(root, name) if profiles.exists(root, name) else None


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
