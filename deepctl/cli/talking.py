"""A chat as the command line runs it: settings become an agent, and turns are locked, run and shown."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from deepctl.cli import options
from deepctl.cli.options import UNNAMED
from deepctl.domain import profiles, settings
from deepctl.domain.layout import ProfilePaths, Root
from deepctl.domain.permissions import without_sandbox
from deepctl.domain.sessions import catalogue
from deepctl.output.chat import Display
from deepctl.sandbox.containers import container_name

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from deepctl.agent.chat import Chat
    from deepctl.agent.ephemeral import EphemeralChat
    from deepctl.agent.running import Options, Running
    from deepctl.agent.sandboxes import Choice, Sandbox

Approve = Literal["ask", "auto", "never"]


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


class Start:
    """What a chat was told on the command line, on the way to a `Talk`."""

    def __init__(self, name: str, given: Mapping[str, str | None], timeout: float | None, *, asking: bool) -> None:
        self._name = name
        self._given = given
        self._timeout = timeout
        self._asking = asking

    def ephemeral(self, display: Display) -> Talk:
        """A conversation in memory. Settings files are not read, the environment is."""

        def value(key: str) -> str | None:
            return settings.without_files(key, environment=os.environ, option=self._given.get(key)).value

        _load()
        from deepctl.agent.ephemeral import EphemeralChat
        from deepctl.agent.running import Options

        approve = cast("Approve", value("approve") or "ask")
        chosen = Options(value("model") or "offline", approve=approve, timeout=self._timeout)
        running = self._running(chosen, kept=None)
        return _EphemeralTalk(self._name, running, EphemeralChat(running), self._commands(None, approve), display)

    def profile(self, display: Display, root: Root, wait: float, *, network: bool) -> Talk:
        """A conversation of a profile. Raises `Refused` if its sandbox cannot be used."""
        known = profiles.find(root, self._name) if profiles.exists(root, self._name) else None

        def value(key: str) -> str | None:
            return settings.resolve(key, environment=os.environ, profile=known, option=self._given.get(key)).value

        permissions = settings.permissions(os.environ, known)
        limits = settings.limits(os.environ, known)
        named, model = value("sandbox") or "auto", value("model") or "offline"
        base_url, instructions, image = value("base_url"), value("instructions"), value("docker.image") or ""
        approve = cast("Approve", value("approve") or "ask")
        _load()
        from deepctl.agent import sandboxes
        from deepctl.agent.chat import Chat
        from deepctl.agent.running import Options

        paths = known or root.profile(self._name)
        offered: dict[str, Sandbox] = {
            "none": sandboxes.NoSandbox(limits),
            "bubblewrap": sandboxes.Bubblewrap(network, limits, dict(os.environ), (root.path,)),
            "docker": sandboxes.Docker(container_name(paths.directory), image, network, limits, paths.name),
        }
        chosen = sandboxes.choose(named, offered, can_ask=self._asking)
        if chosen.problem is not None:
            # Nobody has chosen to do without a sandbox, so nobody has allowed commands outside of one.
            approve = "ask" if approve == "auto" else approve
            permissions = without_sandbox(permissions)
        running = self._running(
            Options(model, base_url, instructions, chosen.sandbox, approve, permissions, self._timeout)
        )
        commands = self._commands(chosen, approve, network=network)
        return _ProfileTalk(root, self._name, running, Chat(running), commands, wait, display)

    def _running(self, chosen: Options, kept: str | None = "The conversation up to here is kept.") -> Running:
        from deepctl.agent.running import Running

        if not self._asking:
            return Running(chosen, environment=os.environ, kept=kept)
        from deepctl.cli.interactive import ask_at_terminal

        return Running(chosen, environment=os.environ, ask=ask_at_terminal, kept=kept)

    def _commands(self, chosen: Choice | None, approve: Approve, *, network: bool = False) -> Commands:
        questions = "allowed" if approve == "auto" else "asked" if approve == "ask" and self._asking else "denied"
        if chosen is None:
            return Commands(None, False, questions)
        problem = f" ({chosen.problem.reason}). {chosen.problem.fix}" if chosen.problem is not None else ""
        if chosen.sandbox is None:
            return Commands(None, False, questions, f"No shell: there is no sandbox for commands{problem}")
        notice = None
        if problem:
            notice = f"There is no sandbox for commands, so each is asked about{problem}"
        elif not chosen.sandbox.confined and questions == "denied":
            notice = "Commands outside a sandbox need a yes, and " + (
                "--approve never is none." if approve == "never" else "nobody can be asked here: they are refused."
            )
        return Commands(chosen.sandbox.name, network and chosen.sandbox.confined, questions, notice)


def _load() -> None:
    """Import the agent stack: a second, and only now that there is something to say."""
    # pydantic-ai greets new users of the library on stderr; these are not.
    os.environ.setdefault("PYDANTIC_AI_NO_BANNER", "1")
    # What the harness logs is in the tools' results too, where it belongs.
    logging.getLogger().addHandler(logging.NullHandler())
    # None of what these imports make is garbage, so looking for some meanwhile is a waste.
    gc.disable()
    import deepctl.agent.chat  # noqa: F401

    gc.freeze()
    gc.enable()


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


class _ProfileTalk(_Shown):
    """One profile's chat: the lock for every turn, and every turn shown."""

    def __init__(
        self, root: Root, user: str, running: Running, chat: Chat, commands: Commands, wait: float, display: Display
    ) -> None:
        super().__init__(running, commands, display)
        self._chat = chat
        self._root = root
        self._wait = wait
        self._user = user

    @property
    def name(self) -> str:
        return self._profile().name

    def turn(self, prompt: str, session: str | None, new: str | None) -> str:
        """Take the lock, run one turn and show it. Returns the name of the session it was in."""
        with profiles.lock(self._root, self._user, command="chat", wait=self._wait):
            profile = self._profile()
            name = _session(profile, session, new, self.display)
            self._introduce()
            self._start(profile.name, name)
            with options.opened(profile, self.display.notice) as work:
                done = self._chat.turn(work, name, prompt, self.display.event)
        for message in done.notices:
            self.display.notice(message)
        self.display.event(
            {
                "type": "result",
                "output": done.outcome.output,
                "session": done.session,
                "checkpoint": done.checkpoint,
                "usage": done.outcome.usage._asdict(),
            }
        )
        return done.session

    def begin(self, session: str | None, new: str | None) -> str:
        with profiles.lock(self._root, self._user, command="chat", wait=self._wait):
            profile = self._profile()
        self._introduce()
        return f"{_where(profile, session, new)}, model {self._running.options.model}."

    def history(self) -> History:
        from prompt_toolkit.history import FileHistory

        from deepctl.files import durable

        profile = self._profile()
        durable.make_private_file(profile.prompt_history)
        return FileHistory(profile.prompt_history)

    def _profile(self) -> ProfilePaths:
        """The profile, made if this is its first turn. The caller holds the lock."""
        if profiles.exists(self._root, self._user):
            return profiles.find(self._root, self._user)
        made = profiles.create(self._root, self._user)
        self.display.notice(f"Created profile {made.name}.")
        return made


class _EphemeralTalk(_Shown):
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
