"""A chat as the command line runs it: every turn locked, run and shown."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from deepctl.cli import options
from deepctl.cli.counting import Counts
from deepctl.cli.later import Later
from deepctl.cli.options import UNNAMED
from deepctl.cli.prompts import profile_history
from deepctl.cli.starting import Commands, EphemeralEngine, ProfileEngine, Start
from deepctl.domain import attaching, budget, profiles
from deepctl.domain.checkpoints import reading
from deepctl.domain.layout import ProfilePaths, Root
from deepctl.domain.sessions import catalogue
from deepctl.errors import DeepctlError, ProfileGone, Refused
from deepctl.output.chat import Display

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from deepctl.agent.turn import Outcome
    from deepctl.agent.user_commands import Ended
    from deepctl.sandbox.holding import Sink


class Facts(NamedTuple):
    """What a person wants to see of a chat at any time. `commands` is `None` while that is being found out."""

    profile: str
    session: str | None
    model: str
    approve: str
    commands: Commands | None


class Stages(NamedTuple):
    """Who is told how far a turn has come: whatever becomes of it, this much has happened."""

    begun: Callable[[str], None] = lambda session: None
    """The session exists that it is in, of this name."""
    sent: Callable[[], None] = lambda: None
    """The prompt and what goes with it are the agent's now."""


_STAGES = Stages()
_OFFLINE = (
    "The offline model answers: it follows a few commands and is not an LLM. "
    "Choose a model with `--model NAME` or `deepctl config set model provider:name`."
)


class Talk(Protocol):
    """A chat, of a profile or of none."""

    start: Start
    display: Display
    counts: Counts

    @property
    def name(self) -> str:
        """What the prompt of the line editor says."""
        ...

    def turn(
        self, prompt: str, session: str | None, new: str | None, files: Sequence[str] = (), stages: Stages = _STAGES
    ) -> None:
        """Run one turn and show it."""
        ...

    def command(self, line: str, sink: Sink) -> Ended:
        """Run a command of the user's where the agent's run, `sink` taking what it prints as it comes.

        Raises `Refused` where there is no shell, `Interrupted`, and what the lock and the workspace raise.
        """
        ...

    def begin(self, session: str | None, new: str | None) -> str:
        """Before the first prompt of a conversation: returns where the conversation goes on."""
        ...

    def compact(self, session: str | None, focus: str | None) -> None:
        """Have the conversation summarised for the model, and show what came of it."""
        ...

    def commands(self) -> Commands:
        """What becomes of the agent's commands; waits while that is being found out."""
        ...

    def facts(self, session: str | None) -> Facts: ...

    def warm(self, done: Callable[[BaseException | None], None]) -> None:
        """Get who answers ready in a thread, which calls `done` in the end with what went wrong."""
        ...

    def introduce(self, tell: Callable[[str], None]) -> None:
        """Say once who answers, if it is no LLM, and what is special about commands."""
        ...

    def change(self, **given: str) -> None:
        """Have another model, sandbox or way of approving from now on. Raises what keeps that from working."""
        ...

    def history(self) -> History:
        """What the line editor remembers."""
        ...

    def close(self) -> None: ...


_Engine = TypeVar("_Engine", ProfileEngine, EphemeralEngine)


class _Shown(Generic[_Engine]):
    """What all chats have: who answers, and how the start and the end of a turn are shown."""

    def __init__(self, start: Start, root: Root | None, display: Display) -> None:
        self.start = start
        self._engine: Later[_Engine] = Later(self._made)
        self._root = root
        self.display = display
        self.counts = Counts()
        self._named: tuple[str, str] | None = None
        self._introduced = False
        self._said: set[str] = set()
        self._introducing = threading.Lock()

    def _finished(self, outcome: Outcome, session: str | None, checkpoint: str | None, notice: str | None) -> None:
        """Show the end of a turn."""
        window = outcome.context.window
        self.counts.takes(session, outcome.context.tokens / window if window else None)
        document = outcome.document()
        result = {"type": "result", "output": outcome.output, "session": session, "checkpoint": checkpoint, **document}
        if notice is not None:
            self.display.notice(notice)
            result["notice"] = notice
        self.display.event(result)

    def _made(self) -> _Engine:
        raise NotImplementedError

    def facts(self, session: str | None) -> Facts:
        if self._named is None:
            # Kept, because a line editor asks with every key.
            self._named = self.start.model(self._root), self.start.approve(self._root)
        engine = self._engine.made
        return Facts(self.start.name, session, *self._named, engine.commands if engine is not None else None)

    def commands(self) -> Commands:
        return self._engine.get().commands

    def warm(self, done: Callable[[BaseException | None], None]) -> None:
        self._engine.begin(done)

    def close(self) -> None:
        if self._engine.made is not None:
            self._engine.made.running.close()

    def introduce(self, tell: Callable[[str], None]) -> None:
        engine = self._engine.get()
        with self._introducing:
            if self._introduced:
                return
            self._introduced = True
            offline = _OFFLINE if engine.running.options.model == "offline" else None
            for message in (offline, engine.commands.notice):
                if message is not None and message not in self._said:
                    self._said.add(message)
                    # Whoever comes second goes on when it has been said.
                    tell(message)

    def _notice(self, message: str) -> None:
        self.display.event({"type": "notice", "message": message})

    def _started(self, profile: str | None, session: str | None, engine: ProfileEngine | EphemeralEngine) -> None:
        event: dict[str, Any] = {
            "type": "start",
            "profile": profile,
            "session": session,
            "model": engine.running.options.model,
            **engine.commands._asdict(),
        }
        self.display.event(event)


class ProfileTalk(_Shown[ProfileEngine]):
    """One profile's chat: the lock for every turn, and every turn shown."""

    def __init__(self, start: Start, root: Root, wait: float, display: Display) -> None:
        super().__init__(start, root, display)
        self.root = root
        self.wait = wait
        self._user = start.name
        self._begun = False
        self._at: tuple[str, str] | None = None
        """Name and id of the session that the last turn was in."""

    def _made(self) -> ProfileEngine:
        return self.start.profile(self.root)

    @property
    def name(self) -> str:
        return self._user

    def change(self, **given: str) -> None:
        before, self.start = self.start, self.start.changed(**given)
        changed = Later(self._made)
        try:
            changed.get()
        except BaseException:
            self.start = before
            raise
        self.close()
        self._engine, self._introduced, self._named = changed, False, None

    def turn(
        self, prompt: str, session: str | None, new: str | None, files: Sequence[str] = (), stages: Stages = _STAGES
    ) -> None:
        """Take the lock, run one turn and show it."""
        engine = self._engine.get()
        with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
            profile = self._profile()
            name = _session(profile, self.renamed(profile, session), new, self.display)
            self._at = name, catalogue.find(profile, name).id
            stages.begun(name)
            self.introduce(self.display.notice)
            limit = budget.limit(os.environ, profile)
            self._started(profile.name, name, engine)
            with options.opened(profile, self.display.notice) as work:
                # What is left to finish could be files, too: first that, then the user's own.
                said = attaching.mentioned(prompt, attaching.attach(profile, files, self._notice))
                stages.sent()
                with self.counts.turn(name, engine.running.spent):
                    done = engine.chat.turn(work, name, said, self.display.event)
            warning = options.over_budget(profile, limit)
        for message in done.notices:
            self.display.notice(message)
        self._finished(done.outcome, done.session, done.checkpoint, warning)

    def command(self, line: str, sink: Sink) -> Ended:
        engine = self._engine.get()
        sandbox = engine.running.options.sandbox
        if sandbox is None:
            raise Refused("Commands cannot be run here: there is no sandbox for them.", engine.commands.notice)
        from deepctl.agent import user_commands

        with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
            profile = self._profile()
            with options.opened(profile, self.display.notice) as work:
                # What a killed turn left is kept first: it is no work of the user's.
                work.between()
            return user_commands.run(profile.workspace, sandbox, line, sink)

    def begin(self, session: str | None, new: str | None) -> str:
        if profiles.exists(self.root, self._user):
            # Nothing is changed, so nobody is waited for.
            profile, self._begun = self.paths(), True
        else:
            with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
                profile = self._profile()
        self._user = profile.name
        return f"{_where(profile, session, new)}, model {self.start.model(self.root)}."

    def compact(self, session: str | None, focus: str | None) -> None:
        engine = self._engine.get()
        with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
            profile = self.paths()
            found = reading.session_at_hand(profile, self.renamed(profile, session))
            with options.opened(profile, self.display.notice) as work:
                done = engine.chat.compact(work, found.name, focus, self.display.event)
            self._at = found.name, found.id
        self.counts.compacted(found.name, done)
        if done.checkpoint is not None:
            self.display.notice(f"/rewind {done.checkpoint[:8]} takes it back.")

    def history(self) -> History:
        return profile_history(self.paths().prompt_history)

    def paths(self) -> ProfilePaths:
        """Where the profile is. Raises `ProfileNotFound`."""
        return profiles.find(self.root, self._user)

    def _profile(self) -> ProfilePaths:
        """The profile, made if this is its first turn. The caller holds the lock. Raises `ProfileGone`."""
        is_new = not profiles.exists(self.root, self._user)
        if is_new and self._begun:
            raise ProfileGone(self._user)
        found = profiles.create(self.root, self._user) if is_new else profiles.find(self.root, self._user)
        if is_new:
            self.display.notice(f"Created profile {found.name}.")
        self._begun = True
        return found

    def renamed(self, profile: ProfilePaths, session: str | None) -> str | None:
        """What the session of the last turn is called by now; `session` as it is otherwise."""
        if self._at is None or session != self._at[0] or catalogue.spelled(profile, session) is not None:
            return session
        return catalogue.by_id(profile).get(self._at[1], session)


class EphemeralTalk(_Shown[EphemeralEngine]):
    """A chat of nobody, which is gone when it ends."""

    def __init__(self, start: Start, display: Display) -> None:
        super().__init__(start, None, display)
        self.name = start.name

    def _made(self) -> EphemeralEngine:
        return self.start.ephemeral()

    def change(self, **given: str) -> None:
        """Only the way of approving and the model can change; the conversation goes on."""
        before, self.start = self.start, self.start.changed(**given)
        try:
            changed = self.start.ephemeral()
        except BaseException:
            self.start = before
            raise
        try:
            old = self._engine.get()
        except DeepctlError:
            # Nobody could answer so far, so nothing has been said.
            self._engine, self._introduced, self._named = Later(lambda: changed), False, None
            self._engine.get()
            return
        engine = EphemeralEngine(changed.running, old.chat.answered_by(changed.running), changed.commands)
        self._engine, self._introduced, self._named = Later(lambda: engine), False, None
        self._engine.get()
        old.running.close()

    def turn(
        self, prompt: str, session: str | None, new: str | None, files: Sequence[str] = (), stages: Stages = _STAGES
    ) -> None:
        engine = self._engine.get()
        self.introduce(self.display.notice)
        self._started(None, None, engine)
        said = attaching.mentioned(prompt, engine.chat.attach(files, self._notice))
        stages.sent()
        with self.counts.turn(None, engine.running.spent):
            outcome = engine.chat.turn(said, self.display.event)
        self._finished(outcome, None, None, None)

    def command(self, line: str, sink: Sink) -> Ended:
        raise Refused("This conversation has no directory for commands.", "Without --ephemeral there is one.")

    def begin(self, session: str | None, new: str | None) -> str:
        return f"Nothing of this is kept; model {self.start.model(None)}."

    def compact(self, session: str | None, focus: str | None) -> None:
        self.counts.compacted(None, self._engine.get().chat.compact(focus, self.display.event))

    def history(self) -> History:
        from prompt_toolkit.history import InMemoryHistory

        return InMemoryHistory()


def _sum(one: float | None, other: float | None) -> float | None:
    """Of two prices, if both are known."""
    return one + other if one is not None and other is not None else None


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
