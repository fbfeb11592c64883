"""The chat of a profile: the lock for every turn, and every turn shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepctl.cli import options
from deepctl.cli.background import Background
from deepctl.cli.chat_session import STAGES, Shown, TurnCallbacks
from deepctl.cli.chat_setup import ProfileEngine, Start
from deepctl.cli.options import UNNAMED
from deepctl.cli.prompts import profile_history
from deepctl.domain import attachments, profiles, settings
from deepctl.errors import ProfileGone, Refused
from deepctl.layout import ProfilePaths, Root
from deepctl.output.stream.turn_events import Display
from deepctl.store import lookup, session_catalogue

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from deepctl.agent.user_commands import Ended
    from deepctl.sandbox.container import Sink


class ProfileChat(Shown[ProfileEngine]):
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
        before, self.start = self.start, self.start.changed(self.root, **given)
        changed = Background(self._made)
        try:
            changed.get()
        except BaseException:
            self.start = before
            raise
        self.close()
        self._engine, self._introduced, self._named = changed, False, None

    def turn(
        self,
        prompt: str,
        session: str | None,
        new: str | None,
        files: Sequence[str] = (),
        stages: TurnCallbacks = STAGES,
    ) -> None:
        """Take the lock, run one turn and show it."""
        is_first = self._engine.made is None
        engine = self._engine.get()
        with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
            profile = self._profile()
            # In a conversation, what keeps checkpoints is read again every turn; what makes the agent is not.
            in_force = self.start.settings if is_first else settings.load(os.environ, profile)
            name = _session(profile, self.renamed(profile, session), new, self.display)
            self._at = name, session_catalogue.find(profile, name).id
            stages.begun(name)
            self.introduce(self.display.notice)
            limit = in_force.size("limits.checkpoints")
            self._started(profile.name, name, engine)
            with options.opened(profile, in_force, self.display.notice) as work:
                # What is left to finish could be files, too: first that, then the user's own.
                said = attachments.mentioned(prompt, attachments.attach(profile, files, self._notice))
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
            with options.opened(profile, settings.load(os.environ, profile), self.display.notice) as work:
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
        return f"{_where(profile, session, new)}, model {self.start.model}."

    def compact(self, session: str | None, focus: str | None) -> None:
        engine = self._engine.get()
        with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
            profile = self.paths()
            found = lookup.current_session(profile, self.renamed(profile, session))
            with options.opened(profile, settings.load(os.environ, profile), self.display.notice) as work:
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
        if self._at is None or session != self._at[0] or session_catalogue.spelled(profile, session) is not None:
            return session
        return session_catalogue.by_id(profile).get(self._at[1], session)


def _session(profile: ProfilePaths, session: str | None, new: str | None, display: Display) -> str:
    if new is not None:
        return session_catalogue.start(profile, new if new != UNNAMED else session_catalogue.free_name(profile)).name
    wanted = session if session is not None else session_catalogue.latest(profile) or session_catalogue.FIRST
    found = session_catalogue.spelled(profile, wanted)
    if found is not None:
        return found
    if session is not None:
        display.notice(f"Began session {session}.")
    return session_catalogue.start(profile, wanted).name


def _where(profile: ProfilePaths, session: str | None, new: str | None) -> str:
    """Which session the conversation goes on in, and how long it is."""
    if new is not None:
        return "A new session"
    name = session if session is not None else session_catalogue.latest(profile) or session_catalogue.FIRST
    found = session_catalogue.spelled(profile, name)
    turns = session_catalogue.summary(profile, found).turns if found else 0
    return f"Session {found or name}, {turns} turn{'' if turns == 1 else 's'}"
