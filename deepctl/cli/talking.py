"""A chat as the command line runs it: every turn locked, run and shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from deepctl.cli import options
from deepctl.cli.options import UNNAMED
from deepctl.cli.prompts import profile_history
from deepctl.domain import budget, profiles
from deepctl.domain.layout import ProfilePaths, Root
from deepctl.domain.sessions import catalogue
from deepctl.errors import ProfileGone
from deepctl.output.chat import Display

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from deepctl.agent.chat import Chat
    from deepctl.agent.ephemeral import EphemeralChat
    from deepctl.agent.running import Running


class Talk(Protocol):
    """A chat, of a profile or of none."""

    display: Display

    @property
    def name(self) -> str:
        """What the prompt of the line editor says."""
        ...

    def turn(self, prompt: str, session: str | None, new: str | None) -> str | None:
        """Run one turn and show it. Returns the name of the session it was in, if there are sessions."""
        ...

    def begin(self, session: str | None, new: str | None) -> str:
        """Before the first prompt of a conversation: says who answers; returns where the conversation goes on."""
        ...

    def history(self) -> History:
        """What the line editor remembers."""
        ...

    def close(self) -> None: ...


class Commands(NamedTuple):
    """What becomes of the agent's commands: where they run, and what is said about it at the start."""

    sandbox: str | None
    network: bool
    questions: str
    """What happens to what needs a yes: `asked`, `allowed` or `denied`."""
    notice: str | None = None


class _Shown:
    """What all chats show: who answers, and the start and the end of a turn."""

    def __init__(self, running: Running, commands: Commands, display: Display) -> None:
        self._running = running
        self._commands = commands
        self.display = display
        self._introduced = False

    def close(self) -> None:
        self._running.close()

    def _introduce(self) -> None:
        """Say once who answers, if it is no LLM, and what is special about commands."""
        if self._introduced:
            return
        self._introduced = True
        if self._running.options.model == "offline":
            self.display.notice(
                "The offline model answers: it follows a few commands and is not an LLM. "
                "Choose a model with --model or `deepctl config set model provider:name`."
            )
        if self._commands.notice is not None:
            self.display.notice(self._commands.notice)

    def _start(self, profile: str | None, session: str | None) -> None:
        event: dict[str, Any] = {
            "type": "start",
            "profile": profile,
            "session": session,
            "model": self._running.options.model,
            **self._commands._asdict(),
        }
        self.display.event(event)


class ProfileTalk(_Shown):
    """One profile's chat: the lock for every turn, and every turn shown."""

    def __init__(
        self, root: Root, user: str, running: Running, chat: Chat, commands: Commands, wait: float, display: Display
    ) -> None:
        super().__init__(running, commands, display)
        self._chat = chat
        self._root = root
        self._wait = wait
        self._user = user
        self._begun = False
        self._at: tuple[str, str] | None = None
        """Name and id of the session that the last turn was in."""

    @property
    def name(self) -> str:
        return self._user

    def turn(self, prompt: str, session: str | None, new: str | None) -> str:
        """Take the lock, run one turn and show it. Returns the name of the session it was in."""
        with profiles.lock(self._root, self._user, command="chat", wait=self._wait):
            profile = self._profile()
            name = _session(profile, self._renamed(profile, session), new, self.display)
            self._introduce()
            limit = budget.limit(os.environ, profile)
            self._start(profile.name, name)
            with options.opened(profile, self.display.notice) as work:
                done = self._chat.turn(work, name, prompt, self.display.event)
            warning = options.over_budget(profile, limit)
            self._at = done.session, catalogue.find(profile, done.session).id
        for message in done.notices:
            self.display.notice(message)
        result: dict[str, Any] = {
            "type": "result",
            "output": done.outcome.output,
            "session": done.session,
            "checkpoint": done.checkpoint,
            "usage": done.outcome.usage._asdict(),
        }
        if warning is not None:
            self.display.notice(warning)
            result["notice"] = warning
        self.display.event(result)
        return done.session

    def begin(self, session: str | None, new: str | None) -> str:
        with profiles.lock(self._root, self._user, command="chat", wait=self._wait):
            profile = self._profile()
            self._user = profile.name
        self._introduce()
        return f"{_where(profile, session, new)}, model {self._running.options.model}."

    def history(self) -> History:
        return profile_history(profiles.find(self._root, self._user).prompt_history)

    def _profile(self) -> ProfilePaths:
        """The profile, made if this is its first turn. The caller holds the lock. Raises `ProfileGone`."""
        is_new = not profiles.exists(self._root, self._user)
        if is_new and self._begun:
            raise ProfileGone(self._user)
        found = profiles.create(self._root, self._user) if is_new else profiles.find(self._root, self._user)
        if is_new:
            self.display.notice(f"Created profile {found.name}.")
        self._begun = True
        return found

    def _renamed(self, profile: ProfilePaths, session: str | None) -> str | None:
        """What the session of the last turn is called by now; `session` as it is otherwise."""
        if self._at is None or session != self._at[0] or catalogue.spelled(profile, session) is not None:
            return session
        return catalogue.by_id(profile).get(self._at[1], session)


class EphemeralTalk(_Shown):
    """A chat of nobody, which is gone when it ends."""

    def __init__(self, name: str, running: Running, chat: EphemeralChat, commands: Commands, display: Display) -> None:
        super().__init__(running, commands, display)
        self._chat = chat
        self.name = name

    def turn(self, prompt: str, session: str | None, new: str | None) -> None:
        self._introduce()
        self._start(None, None)
        outcome = self._chat.turn(prompt, self.display.event)
        self.display.event(
            {
                "type": "result",
                "output": outcome.output,
                "session": None,
                "checkpoint": None,
                "usage": outcome.usage._asdict(),
            }
        )

    def begin(self, session: str | None, new: str | None) -> str:
        self._introduce()
        return f"Nothing of this is kept; model {self._running.options.model}."

    def history(self) -> History:
        from prompt_toolkit.history import InMemoryHistory

        return InMemoryHistory()


def _session(profile: ProfilePaths, session: str | None, new: str | None, display: Display) -> str:
    if new is not None:
        return catalogue.start(profile, new if new != UNNAMED else catalogue.free_name(profile)).name
    wanted = session if session is not None else catalogue.latest(profile) or catalogue.FIRST
    found = catalogue.spelled(profile, wanted)
    if found is not None:
        return found
    if session is not None:
        display.notice(f"Began session {session}.")
    return catalogue.start(profile, wanted).name


def _where(profile: ProfilePaths, session: str | None, new: str | None) -> str:
    """Which session the conversation goes on in, and how long it is."""
    if new is not None:
        return "A new session"
    name = session if session is not None else catalogue.latest(profile) or catalogue.FIRST
    found = catalogue.spelled(profile, name)
    turns = catalogue.summary(profile, found).turns if found else 0
    return f"Session {found or name}, {turns} turn{'' if turns == 1 else 's'}"
