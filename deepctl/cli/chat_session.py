"""A chat of the command line, with a profile or in memory: its turns, which are shown and counted, and its state."""

from __future__ import annotations

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.agent.profile_setup import CommandSetup
from deepctl.cli import options
from deepctl.cli.chat_setup import BackgroundValue, ChatDirectory, ChatParts, ChatSetup
from deepctl.domain import attachments, budgets, mention_syntax, profiles, session_choice, settings
from deepctl.domain.outside_files import OutsideFile
from deepctl.errors import Damaged, DeepctlError, Interrupted, Locked, ProfileGone, Refused, Terminated
from deepctl.layout import ProfilePaths, Root
from deepctl.output.render import ago, has_colour, home, is_terminal, notification, say, terminal_size
from deepctl.output.sessions_transcript import exchange_lines
from deepctl.output.stream.display import Display, JsonDisplay, LiveDisplay
from deepctl.quantities import counted
from deepctl.redaction import redact
from deepctl.store import session_catalogue, session_ends, session_titles
from deepctl.store.projects import lock_directory
from deepctl.store.records import SessionRecord
from deepctl.store.session_ends import SessionEnds

if TYPE_CHECKING:
    from deepctl.agent.chat import Chat, EphemeralChat
    from deepctl.agent.compaction import CompactionResult
    from deepctl.agent.turn import Outcome, TokenUsage
    from deepctl.agent.user_commands import CommandEnd
    from deepctl.domain.budgets import BudgetState, Spending
    from deepctl.domain.mcp_prompts import ServerPrompt
    from deepctl.sandbox.container import Sink

_OFFLINE = (
    "The offline model answers. It follows a few commands and is not an LLM. Choose a model with `--model NAME` "
    "or `deepctl config set model provider:name`."
)


class ChatStatus(NamedTuple):
    """The state of a chat that a person can ask for. `commands` is `None` until it is known."""

    profile: str
    session: str | None
    model: str
    approve: str
    commands: CommandSetup | None
    project: str | None = None
    """The directory of the user in which the agent works; `None` for the private workspace."""


class TurnCallbacks(NamedTuple):
    """Receives the progress of a turn: these steps have happened even if the turn fails later."""

    on_begin: Callable[[str], None] = lambda session: None
    """The session exists, under this name."""
    on_send: Callable[[], None] = lambda: None
    """The agent has received the prompt and its attachments."""
    on_wait: Callable[[str], None] | None = None
    """Called several times a second while another process works on the profile or the project, with its name and that
    process in words. Without it, the turn waits as long as `--wait` says.
    """


STAGES = TurnCallbacks()
_TITLE_PROMPT, _TITLE_ANSWER = 1000, 300
"""Characters of the first prompt and its answer that the model of titles gets."""
_WAIT_SECONDS = 0.25
NO_FILES: Mapping[str, OutsideFile] = {}


class UsageTotals(NamedTuple):
    """The usage of turns so far, as in `TokenUsage`. `cost` is in USD, `None` after a turn with an unknown price.

    `context` is the share of the model's window that the conversation takes, from 0 to 1, `None` if it is unknown.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = 0.0
    context: float | None = None

    def plus(self, usage: TokenUsage, cost: float | None) -> UsageTotals:
        """The sum with one more turn; an unknown cost makes the sum unknown."""
        return self._replace(
            input_tokens=self.input_tokens + usage.input_tokens,
            cached_tokens=self.cached_tokens + usage.cached_tokens,
            output_tokens=self.output_tokens + usage.output_tokens,
            cost=self.cost + cost if self.cost is not None and cost is not None else None,
        )


class UsageCounter:
    """Counts the usage of turns by session name; the name is `None` without sessions."""

    def __init__(self) -> None:
        self.total = UsageTotals()
        """The usage of the whole chat, without a `context`."""
        self._sessions: dict[str | None, UsageTotals] = {}

    def of(self, session: str | None) -> UsageTotals:
        """The usage of the turns in one session."""
        return self._sessions.get(session, UsageTotals())

    @contextmanager
    def turn(
        self, session: str | None, usage_and_cost: Callable[[], tuple[TokenUsage, float | None]]
    ) -> Iterator[None]:
        """While entered, a turn runs; what it has used and cost by `usage_and_cost` is counted however it ends."""
        try:
            yield
        finally:
            usage, cost = usage_and_cost()
            self._add(session, usage, cost)

    def compacted(self, session: str | None, result: CompactionResult) -> None:
        """Count the usage of a summary, and its effect on the context."""
        from deepctl.agent.turn import TokenUsage

        before = self.of(session).context
        self._add(session, TokenUsage.of(result.usage), result.cost)
        self.takes(session, before * result.share if before else None)

    def takes(self, session: str | None, context: float | None) -> None:
        """The conversation takes this share of the window from now on; `None` after a rewind, when it is unknown."""
        self._sessions[session] = self.of(session)._replace(context=context)

    def _add(self, session: str | None, usage: TokenUsage, cost: float | None) -> None:
        self.total = self.total.plus(usage, cost)
        self._sessions[session] = self.of(session).plus(usage, cost)


class ChatSession(ABC):
    """A chat, with or without a profile. The lock of a profile is held only during its turns."""

    def __init__(self, setup: ChatSetup, display: Display) -> None:
        self.setup = setup
        self.display = display
        self.counts = UsageCounter()
        self._parts: BackgroundValue[ChatParts[Any]] = BackgroundValue(self._make_parts)
        self._names: tuple[str, str] | None = None
        self._introduced = False
        self._messages: set[str] = set()
        self._introducing = threading.Lock()
        self._budgets: list[BudgetState] | None = None
        self._notifies = False
        self._quiet_since = 0.0
        """When the person last had something to do, by the monotonic clock."""
        self.next_media: list[Any] = []
        """Pictures of a prompt of an MCP server, for the next turn."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The text of the prompt in the line editor."""

    @abstractmethod
    def turn(
        self,
        prompt: str,
        session: str | None,
        new: str | None,
        files: Sequence[str] = (),
        stages: TurnCallbacks = STAGES,
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> None:
        """Run one turn and show it. `files` are attached; `outside_files` are those that the prompt may name, by their
        paths in the prompt.
        """

    @abstractmethod
    def command(self, line: str, sink: Sink, session: str | None = None, new: str | None = None) -> CommandEnd:
        """Run a command of the user where the agent's commands run; `sink` receives the output as it arrives.

        The directory is that of the next turn, which would be in `session`, or begin `new`.

        Raises `Refused` if there is no shell, `Interrupted`, and the errors of the lock and the workspace.
        """

    @abstractmethod
    def begin(self, session: str | None, new: str | None) -> str:
        """Called before the first prompt of a chat: returns the session in which the chat continues."""

    @abstractmethod
    def show_last_exchange(self, session: str | None, new: str | None) -> bool:
        """Print the last exchange of the session in which the chat continues. Returns whether there is one."""

    @abstractmethod
    def compact(self, session: str | None, focus: str | None) -> None:
        """Summarise the conversation for the model, and show the result."""

    @abstractmethod
    def change(self, **fields: str) -> None:
        """Use other values of these settings from now on. Raises the errors that prevent it."""

    @property
    @abstractmethod
    def prompt_history(self) -> str | None:
        """The file with the prompts that the line editor remembers; `None` if it keeps them in memory."""

    @abstractmethod
    def _make_parts(self) -> ChatParts[Any]: ...

    def facts(self, session: str | None) -> ChatStatus:
        """The state of the chat for display."""
        if self._names is None:
            # Cached, because a line editor asks after every key.
            self._names = self.setup.model, self.setup.approve
        parts = self._parts.made
        return ChatStatus(self.setup.name, session, *self._names, parts.commands if parts is not None else None)

    def commands(self) -> CommandSetup:
        """Where the agent's commands run; waits until that is known."""
        return self._parts.get().commands

    def settings_notice(self) -> str | None:
        """The notice about settings that are not sent to the model; waits until the model is known."""
        return self._parts.get().runner.engine.settings_notice

    @property
    def window(self) -> int | None:
        """The context window of the model in tokens; `None` as long as it is unknown."""
        parts = self._parts.made
        return parts.runner.engine.window if parts is not None else None

    @property
    def budgets(self) -> list[BudgetState]:
        """The budgets, and what is spent of each, since the last turn. Cached, because a line editor asks after every
        key.
        """
        if self._budgets is None and (spending := self.spending) is not None:
            self._budgets = spending.states()
        return self._budgets or []

    @property
    def spending(self) -> Spending | None:
        """The usage of the profile; `None` as long as the model is not known."""
        parts = self._parts.made
        return parts.runner.engine.meter.spending if parts is not None else None

    @contextmanager
    def _spends(self) -> Iterator[None]:
        """While entered, requests are sent; what is left of budgets is computed again after that."""
        try:
            yield
        finally:
            self._budgets = None

    def mcp_prompts(self) -> list[ServerPrompt] | None:
        """The prompts of the running MCP servers; `None` if no server is running."""
        parts = self._parts.made
        return parts.runner.engine.mcp_prompts() if parts is not None else None

    def mcp_prompt(self, prompt: ServerPrompt, values: Mapping[str, str]) -> tuple[str, list[Any]]:
        """The text of a prompt of an MCP server, and its pictures for `next_media`. Starts the servers.

        Raises `McpServerFailed` and `Interrupted`.
        """
        content = self._parts.get().runner.mcp_prompt(prompt, values, self.display.event)
        texts = [item for item in content if isinstance(item, str)]
        return "\n".join(texts), [item for item in content if not isinstance(item, str)]

    def warm(self, callback: Callable[[BaseException | None], None]) -> None:
        """Make the parts in a thread, which calls `callback` in the end with what went wrong."""
        self._parts.begin(callback)

    def close(self) -> None:
        """Release the resources of the agent."""
        if self._parts.made is not None:
            self._parts.made.runner.close()

    def introduce(self, tell: Callable[[str], None]) -> None:
        """Print once which directory gave the profile, that an offline model answers, and notices about commands."""
        parts = self._parts.get()
        with self._introducing:
            if self._introduced:
                return
            self._introduced = True
            offline = _OFFLINE if parts.runner.engine.options.model == "offline" else None
            directory = self.setup.chosen_by
            chosen = f"The profile is {self.setup.name}, because {home(directory)} uses it." if directory else None
            for message in (chosen, offline, parts.commands.notice):
                if message is not None and message not in self._messages:
                    self._messages.add(message)
                    # A second caller continues after the notice was printed.
                    tell(message)

    def notify_of_turns(self) -> None:
        """From now on, tell of long turns and approval requests by a bell and a notification (setting `notify`)."""
        self._notifies = True
        if isinstance(self.display, LiveDisplay):
            self.display.on_question = lambda: self._ring("waits for an approval")
            self.display.on_answer = self._starts_waiting

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """While entered, a turn runs; its end is told if it was long, unless the person has stopped it."""
        self._starts_waiting()
        try:
            yield
        except (Interrupted, Terminated, KeyboardInterrupt):
            raise
        except BaseException:
            self._ring("could not finish a turn")
            raise
        self._ring("has finished a turn")

    def _starts_waiting(self) -> None:
        self._quiet_since = time.monotonic()

    def _ring(self, event: str) -> None:
        """Tell of an event, if the person has been waiting long enough."""
        in_force = self.setup.settings
        how = in_force.get("notify")
        if not self._notifies or how == "off" or not is_terminal(sys.stdout):
            return
        if time.monotonic() - self._quiet_since >= int(in_force.get("notify_after") or 0):
            text = f"deepctl: the agent of {self.name} {event}"
            self.display.ring("\a" if how == "bell" else f"\a{notification(text)}")

    def _replace_parts(self, parts: BackgroundValue[ChatParts[Any]]) -> None:
        self._parts, self._introduced, self._names, self._budgets = parts, False, None, None

    def _notice(self, message: str) -> None:
        self.display.event({"type": "notice", "message": message})

    def _started(
        self, profile: str | None, session: str | None, parts: ChatParts[Any], project: str | None = None
    ) -> None:
        commands = parts.commands
        event: dict[str, Any] = {
            "type": "start",
            "profile": profile,
            "session": session,
            "project": project,
            "model": parts.runner.engine.options.model,
            "sandbox": commands.sandbox,
            "network": commands.network,
            "questions": commands.questions,
            "notice": commands.notice,
        }
        self.display.event(event)

    def _finished(self, outcome: Outcome, session: str | None, checkpoint: str | None, notice: str | None) -> None:
        """Show the end of a turn. Raises the error of an answer that is not whole."""
        window = outcome.context.window
        self.counts.takes(session, outcome.context.tokens / window if window else None)
        document = outcome.document()
        result = {"type": "result", "output": outcome.output, "session": session, "checkpoint": checkpoint, **document}
        if notices := [text for text in (outcome.notice, notice) if text is not None]:
            result["notice"] = " ".join(notices)
        self.display.event(result)
        if outcome.failure is not None:
            raise outcome.failure


class ProfileChat(ChatSession):
    """The chat of one profile: takes the lock for every turn, and shows every turn."""

    _parts: BackgroundValue[ChatParts[Chat]]

    def __init__(
        self, setup: ChatSetup, root: Root, wait: float, display: Display, directory: ChatDirectory | None = None
    ) -> None:
        super().__init__(setup, display)
        self.root = root
        self.directory = directory or ChatDirectory(root)
        """The directory of the next turn."""
        self.wait = wait
        self._user = setup.name
        self._begun = False
        self._shown_ends: tuple[SessionRecord, SessionEnds] | None = None
        self._at: tuple[str, str] | None = None
        """Name and id of the session of the last turn."""

    def _make_parts(self) -> ChatParts[Chat]:
        return self.setup.profile(self.root)

    @property
    def name(self) -> str:
        return self._user

    def change(self, **fields: str) -> None:
        before, self.setup = self.setup, self.setup.changed(self.root, **fields)
        parts = BackgroundValue(self._make_parts)
        try:
            parts.get()
        except BaseException:
            self.setup = before
            raise
        self.close()
        self._replace_parts(parts)

    def turn(
        self,
        prompt: str,
        session: str | None,
        new: str | None,
        files: Sequence[str] = (),
        stages: TurnCallbacks = STAGES,
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> None:
        """Take the lock, run one turn and show it."""
        is_first = self._parts.made is None
        self._enter(session, new)
        parts = self._parts.get()
        with ExitStack() as locks:
            self._lock_profile(locks, stages.on_wait)
            profile = self._profile()
            # In a chat, the checkpoint settings are read again for every turn, but not the settings of the agent.
            in_force = self.setup.settings if is_first else settings.load(os.environ, profile)
            parts.runner.engine.meter.set_budgets(budgets.of_settings(in_force, profile.name))
            self._lock_directory(locks, profile, stages.on_wait)
            record = session_choice.begin(
                profile, self.directory.path, self.renamed(profile, session), new, self.display.notice
            )
            name = record.name
            self._at = name, record.id
            stages.on_begin(name)
            self.introduce(self.display.notice)
            if (hint := self.directory.hint(profile, session)) is not None:
                self.display.notice(hint)
            limit = in_force.size("limits.checkpoints")
            self._started(profile.name, name, parts, self.directory.path)
            self._introduce_project(profile, self._notice)
            with options.open_repository(profile, in_force, self.display.notice) as work:
                # An interrupted operation may have left files: it is finished first, then the user's changes are
                # recorded.
                text = prompt
                if files:
                    names = attachments.attach(profile, files, self._notice, self.directory.path)
                    text = mention_syntax.with_mentions(prompt, names)
                stages.on_send()
                media, self.next_media = self.next_media, []
                content = [text, *media] if media else text
                with self._in_turn(), self._spends(), self.counts.turn(name, parts.runner.engine.spent):
                    result = parts.chat.turn(work, name, content, self.display.event, outside_files)
            warning = options.over_budget(profile, limit)
        for message in result.notices:
            self.display.notice(message)
        title_model = in_force.get("title_model")
        if self._notifies and title_model not in (None, "offline"):
            arguments = (title_model, profile, record, result.outcome.output)
            threading.Thread(target=self._write_title, args=arguments, name="title", daemon=True).start()
        self._finished(result.outcome, result.session, result.checkpoint, warning)

    def _lock_profile(self, locks: ExitStack, on_wait: Callable[[str], None] | None) -> None:
        def lock(wait: float) -> AbstractContextManager[object]:
            return profiles.lock(self.root, self._user, command="chat", wait=wait)

        self._take(locks, lock, self._user, on_wait)

    def _lock_directory(self, locks: ExitStack, profile: ProfilePaths, on_wait: Callable[[str], None] | None) -> None:
        directory = self.directory.path

        def lock(wait: float) -> AbstractContextManager[object]:
            return lock_directory(profile, directory, wait=wait)

        self._take(locks, lock, home(directory or ""), on_wait)

    def _take(
        self,
        locks: ExitStack,
        lock: Callable[[float], AbstractContextManager[object]],
        name: str,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        """Take a lock; with `on_wait`, wait until it is free."""
        if on_wait is None:
            locks.enter_context(lock(self.wait))
            return
        while True:
            try:
                locks.enter_context(lock(_WAIT_SECONDS))
                return
            except Locked as error:
                on_wait(f"{name} is in use by another deepctl{f' (pid {error.pid})' if error.pid else ''}")

    def _write_title(self, model: str, profile: ProfilePaths, record: SessionRecord, answer: str) -> None:
        """Let a model write the title of a session, if this was its first turn. Runs in a thread, and never raises."""
        try:
            prompt = session_ends.first_prompt(record)
            last = session_ends.read(record).last
            if last is None or last.turn != 1:
                return
            start = f"{session_titles.typed(prompt)[:_TITLE_PROMPT]}\n\nAnswer: {answer[:_TITLE_ANSWER]}"
            with closing(self.setup.titler(self.root, profile, model)) as runner:
                title = runner.title(record.id, redact(start, os.environ))
            session_titles.remember(record, prompt, redact(title, os.environ))
        except Exception as error:  # of any client: the session has its first prompt as title
            if os.environ.get("DEEPCTL_DEBUG"):
                self.display.notice(f"No title: {redact(str(error), os.environ)}")

    def facts(self, session: str | None) -> ChatStatus:
        return super().facts(session)._replace(project=self.directory.path or None)

    def command(self, line: str, sink: Sink, session: str | None = None, new: str | None = None) -> CommandEnd:
        parts = self._parts.get()
        sandbox = parts.runner.engine.options.sandbox
        if sandbox is None:
            raise Refused("Commands cannot run here, because there is no sandbox for them.", parts.commands.notice)
        self._enter(session, new)
        from deepctl.agent import user_commands

        with ExitStack() as locks:
            locks.enter_context(profiles.lock(self.root, self._user, command="chat", wait=self.wait))
            profile = self._profile()
            locks.enter_context(lock_directory(profile, self.directory.path, wait=self.wait))
            with options.open_repository(profile, settings.load(os.environ, profile), self.display.notice) as work:
                # The leftovers of a killed turn are recorded first, because they are not work of the user.
                work.between()
            protected = parts.runner.engine.options.protected
            return user_commands.run(
                profile, sandbox, line, sink, project=self.directory.path or None, protected=protected
            )

    def begin(self, session: str | None, new: str | None) -> str:
        if profiles.exists(self.root, self._user):
            # Nothing is changed, so this does not wait for the lock.
            profile, self._begun = self.paths(), True
        else:
            with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
                profile = self._profile()
        self._user = profile.name
        self._enter(session, new)
        if (hint := self.directory.hint(profile, session)) is not None:
            self.display.notice(hint)
        self._introduce_project(profile, self.display.notice)
        separator = "" if new is not None else ","
        place = f"{separator} in {home(self.directory.path)}" if self.directory.path else ""
        title = self._title(profile, session, new)
        return f"{self._where(profile, session, new)}{place}, model {self.setup.model}.{title}"

    def _introduce_project(self, profile: ProfilePaths, tell: Callable[[str], None]) -> None:
        """Say once what the repository has for agents, and whether the model gets it."""
        if not self.directory.path:
            return
        from deepctl.domain import repository_files
        from deepctl.store import projects as stored

        project = stored.by_path(profile, self.directory.path)
        trusted = project.trusted if project is not None else ""
        for message in repository_files.introduction(self.directory.path, trusted, profile.name):
            if message not in self._messages:
                self._messages.add(message)
                tell(message)

    def compact(self, session: str | None, focus: str | None) -> None:
        parts = self._parts.get()
        with profiles.lock(self.root, self._user, command="chat", wait=self.wait):
            profile = self.paths()
            current = self.directory.current(profile, self.renamed(profile, session))
            in_force = settings.load(os.environ, profile)
            parts.runner.engine.meter.set_budgets(budgets.of_settings(in_force, profile.name))
            with options.open_repository(profile, in_force, self.display.notice) as work:
                result = parts.chat.compact(work, current.name, focus, self.display.event)
            self._at = current.name, current.id
        self._budgets = None
        self.counts.compacted(current.name, result)
        if result.checkpoint is not None:
            self.display.notice(f"/rewind {result.checkpoint[:8]} undoes the compaction.")

    @property
    def prompt_history(self) -> str:
        return self.paths().prompt_history

    def paths(self) -> ProfilePaths:
        """The directory of the profile. Raises `ProfileNotFound`."""
        return profiles.find(self.root, self._user)

    def _profile(self) -> ProfilePaths:
        """The profile, created for its first turn. The caller holds the lock. Raises `ProfileGone`."""
        is_new = not profiles.exists(self.root, self._user)
        if is_new and self._begun:
            raise ProfileGone(self._user)
        profile = profiles.create(self.root, self._user) if is_new else profiles.find(self.root, self._user)
        if is_new:
            self.display.notice(f"Created profile {profile.name}.")
        self._begun = True
        return profile

    def renamed(self, profile: ProfilePaths, session: str | None) -> str | None:
        """The current name of the session of the last turn; `session` unchanged for any other session."""
        if self._at is None or session != self._at[0] or session_catalogue.stored_name(profile, session) is not None:
            return session
        return session_catalogue.by_id(profile).get(self._at[1], session)

    def _enter(self, session: str | None, new: str | None) -> None:
        """Check the directory of the next turn before the model and the sandbox are loaded."""
        self.directory.begin(self.setup.settings)
        profile = self.paths() if profiles.exists(self.root, self._user) else None
        current = self.renamed(profile, session) if profile is not None else session
        # With --json, only events are shown.
        tell = self._notice if isinstance(self.display, JsonDisplay) else self.display.notice
        self.directory.enter(profile, current, new, tell)

    def _where(self, profile: ProfilePaths, session: str | None, new: str | None) -> str:
        """The session in which the chat continues, its length and its age."""
        if new is not None:
            return "A new session"
        name = self.directory.next_name(profile, session)
        last = ends.last if (ends := self._ends(profile, name)) is not None else None
        if last is None:
            return f"Session {name}, 0 turns"
        return f"Session {name}, {counted(last.turn, 'turn')}, {ago(last.at)}"

    def _title(self, profile: ProfilePaths, session: str | None, new: str | None) -> str:
        """The title of that session for the same line, unless its last prompt says the same."""
        ends = self._ends(profile, self.directory.next_name(profile, session)) if new is None else None
        if ends is None or ends.last is None or ends.title in ("", session_titles.of_prompt(ends.last.prompt)):
            return ""
        return f" Title: {ends.title}"

    def _ends(self, profile: ProfilePaths, name: str) -> SessionEnds | None:
        """The title and the last exchange of a session; `None` if it does not exist, or cannot be read."""
        if session_catalogue.stored_name(profile, name) is None:
            return None
        try:
            record = session_catalogue.find(profile, name)
            if self._shown_ends is None or self._shown_ends[0] != record:
                self._shown_ends = record, session_ends.read(record)
            return self._shown_ends[1]
        except (Damaged, OSError):
            return None  # the next turn reports it

    def show_last_exchange(self, session: str | None, new: str | None) -> bool:
        """Print the last exchange of the session in which the chat continues, and what a stopped turn has left."""
        if new is not None or not profiles.exists(self.root, self._user):
            return False
        profile = self.paths()
        name = self.directory.next_name(profile, session)
        ends, self._shown_ends = self._ends(profile, name), None
        last = ends.last if ends is not None else None
        if last is None:
            return False
        dim, reset = ("\x1b[2m", "\x1b[0m") if has_colour(sys.stderr) else ("", "")
        for line in ("", *exchange_lines(last.prompt, last.answer, *terminal_size())):
            say(f"{dim}{line}{reset}" if line else "")
        if last.problem is not None:
            record = session_catalogue.find(profile, name)
            stopped = session_ends.stopped_turn(profile, record, last, settings.load(os.environ, profile).coverage())
            if stopped is not None:
                self.display.notice(stopped.notice())
        return True


class EphemeralChatSession(ChatSession):
    """A chat without a profile. It is in memory, and is lost when it ends."""

    _parts: BackgroundValue[ChatParts[EphemeralChat]]

    @property
    def name(self) -> str:
        return self.setup.name

    def _make_parts(self) -> ChatParts[EphemeralChat]:
        return self.setup.ephemeral()

    def change(self, **fields: str) -> None:
        """Only the approval setting and the model can change; the conversation continues."""
        before, self.setup = self.setup, self.setup.changed(None, **fields)
        try:
            parts = self._make_parts()
        except BaseException:
            self.setup = before
            raise
        try:
            old = self._parts.get()
        except DeepctlError:
            # No model could answer so far, so the conversation is empty.
            self._replace_parts(BackgroundValue.of(parts))
            return
        chat = old.chat.answered_by(parts.runner)
        self._replace_parts(BackgroundValue.of(parts._replace(chat=chat)))
        old.runner.close()

    def turn(
        self,
        prompt: str,
        session: str | None,
        new: str | None,
        files: Sequence[str] = (),
        stages: TurnCallbacks = STAGES,
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> None:
        parts = self._parts.get()
        self.introduce(self.display.notice)
        self._started(None, None, parts)
        if self.spending is not None and self.spending.note is not None:
            note, self.spending.note = self.spending.note, None
            self._notice(note)
        text = mention_syntax.with_mentions(prompt, parts.chat.attach(files, self._notice)) if files else prompt
        stages.on_send()
        with self._in_turn(), self._spends(), self.counts.turn(None, parts.runner.engine.spent):
            outcome = parts.chat.turn(text, self.display.event, outside_files)
        self._finished(outcome, None, None, None)

    def command(self, line: str, sink: Sink, session: str | None = None, new: str | None = None) -> CommandEnd:
        raise Refused("This chat has no directory for commands.", "Start the chat without --ephemeral.")

    def begin(self, session: str | None, new: str | None) -> str:
        return f"Nothing in this chat is stored; model {self.setup.model}."

    def show_last_exchange(self, session: str | None, new: str | None) -> bool:
        """There is none."""
        return False

    def compact(self, session: str | None, focus: str | None) -> None:
        self.counts.compacted(None, self._parts.get().chat.compact(focus, self.display.event))

    @property
    def prompt_history(self) -> None:
        return None
