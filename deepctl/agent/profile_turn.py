"""One turn of a profile's session: what is stored before, in the middle and at the end of the agent's run.

A `ProfileTurn` has the steps; `Chat.turn` (the command line) and `OpenProfile.run` (applications) call them in this
order. The run itself is `TurnEngine.run`.

    begin                       the state before the turn, files that the prompt mentions
    attempt, then the run
    rewind, attempt, the run    again and again if the agent rewinds the turn
    end                         the state after the turn
    break_off                   instead of `end`, after a failure or an interruption
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic_ai.messages import UserContent
from pydantic_ai.models import Model

from deepctl import layout
from deepctl.agent.backend import LocalBackend, open_backend
from deepctl.agent.checkpoints import RewindRequested, TurnCheckpoints
from deepctl.agent.factory import DeepAgentDeps
from deepctl.agent.interruption import Blocking, Emit, directly
from deepctl.agent.mention_files import DirectoryFiles
from deepctl.agent.mentions import NO_FILES
from deepctl.agent.message_filters import SentHistory, history_of
from deepctl.agent.turn import Outcome
from deepctl.agent.turn_engine import TurnEngine
from deepctl.domain.outside_files import OutsideFile
from deepctl.quantities import counted
from deepctl.store import projects, session_catalogue, session_reader, todo
from deepctl.store.log_file import MessageList
from deepctl.store.records import Position, SessionRecord
from deepctl.store.repository import Repository
from deepctl.store.session_log import LogWriter
from deepctl.store.session_reader import SessionReader


class TurnResult(NamedTuple):
    """A finished turn, the id of its last checkpoint, and notes for the user about the session's log."""

    outcome: Outcome
    session: str
    checkpoint: str | None
    notices: list[str]


class Conversation(NamedTuple):
    """A session between two turns: its stored messages, its end, and the messages for the model."""

    reader: SessionReader
    message_list: MessageList
    end: Position
    history: SentHistory

    @property
    def session(self) -> SessionRecord:
        """The session as it was read."""
        return self.reader.session


def read_conversation(work: Repository, session: str, model: Model) -> Conversation:
    """The conversation of the session called `session`, in the form for `model`."""
    reader = work.readers.of(session_catalogue.find(work.paths, session))
    message_list = reader.whole()
    end = session_reader.position(reader.session, message_list)
    reader.remember()
    return Conversation(reader, message_list, end, history_of(message_list, model))


class Attempt(NamedTuple):
    """What a run of a turn needs."""

    deps: DeepAgentDeps
    user_content: str | Sequence[UserContent]
    history: SentHistory
    record: LogWriter


class ProfileTurn:
    """The steps of one turn. The caller holds the profile's lock until the turn has ended.

    Each step blocks; steps run one after another, in any thread. `blocking` runs what is stored in the middle of a run.
    `emit` receives the events of all steps. `outside_files` are the files outside the workspace that the prompt may
    name, by their paths in the prompt: see `deepctl.domain.outside_files`.

    Steps raise `DeepctlError`.
    """

    def __init__(
        self,
        engine: TurnEngine,
        work: Repository,
        session: str,
        prompt: str | Sequence[UserContent],
        emit: Emit,
        *,
        blocking: Blocking = directly,
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> None:
        self._engine = engine
        self._work = work
        self._session = session
        self._prompt: list[UserContent] = [prompt] if isinstance(prompt, str) else list(prompt)
        self._outside_files = outside_files
        self._text = "\n".join(item for item in self._prompt if isinstance(item, str))
        self._checkpoints = TurnCheckpoints(work, self._text, emit, blocking)
        self._emit = emit
        self._notices: list[str] = []
        self._file_parts: list[UserContent] = []
        self._backend: LocalBackend | None = None
        self._writer: LogWriter | None = None

    def begin(self) -> None:
        """Read the conversation, store the state before the turn, and read the files that the prompt mentions."""
        work, checkpoints = self._work, self._checkpoints
        # Checked before the turn stores anything, because that makes its session the most recently written one.
        has_old_list = os.path.lexists(os.path.join(work.paths.workspace, layout.TODO_FILE))
        owner = todo.old_lists_owner(work.paths, work.ledger) if has_old_list else None
        self._conversation = self._read()
        session, end = self._conversation.session, self._conversation.end
        checkpoints.started(session, end)
        if problem := work.coverage_problem(session):
            self._engine.notify(problem, self._emit)
        if owner is not None:
            work.settle_todo(owner, session, end)
        self._notices = _notices(self._conversation)
        self._file_parts = self._engine.attachments(self._text, self._files, self._emit, self._outside_files)
        self._user_content = self._content(self._prompt)

    def _read(self) -> Conversation:
        return read_conversation(self._work, self._session, self._engine.model)

    def _files(self) -> DirectoryFiles:
        """The files that the prompt can mention."""
        paths = self._work.paths
        return DirectoryFiles(paths.workspace, projects.directory_of_session(paths, self._conversation.session))

    def _content(self, prompt: list[UserContent]) -> str | list[UserContent]:
        items = [*prompt, *self._file_parts]
        return items[0] if len(items) == 1 and isinstance(items[0], str) else items

    def attempt(self) -> Attempt:
        """Prepare a run: the log, the backend and the checkpoints of the turn."""
        reader, _, before, history = self._conversation
        session, options = reader.session, self._engine.options
        self._engine.session_name = session.name
        self._writer = LogWriter.after(reader, before.turn + 1)
        self._checkpoints.attempt(session, before, self._writer)
        project = self._work.workspace_of(session).project
        directory = project.root if project is not None else None
        self._backend = open_backend(
            self._work.paths,
            directory,
            options.sandbox,
            protected=options.protected,
            disabled_skills=options.disabled_skills,
        )
        deps = DeepAgentDeps(
            backend=self._backend,
            checkpoint_store=self._checkpoints,
            session=session.id if layout.is_good_name(session.id) else None,
        )
        return Attempt(deps, self._user_content, history, self._writer)

    async def tool_done(self, name: str) -> None:
        """In the run: a tool has returned, and its result is recorded."""
        await self._checkpoints.tool_done(name)

    def rewind(self, request: RewindRequested) -> None:
        """Instead of `end`: do the rewind that the agent asked for. `attempt` starts the turn again from there."""
        self._close()
        self._checkpoints.go_back(request)
        self._user_content = self._content(request.prompt(self._prompt))
        self._conversation = self._read()

    def break_off(self, error: BaseException) -> None:
        """Instead of `end`: store the state after a run that `error` ended, which is reported, and no other error."""
        self._close()
        if self._writer is not None:
            self._checkpoints.broke_off(error)
            self._tell_work()
        # A turn that ends has these in its result.
        for note in self._checkpoints.unkept():
            self._emit({"type": "notice", "message": note})

    def end(self, outcome: Outcome) -> TurnResult:
        """Store the state after the turn."""
        self._close()
        self._checkpoints.ended()
        self._tell_work()
        latest = self._checkpoints.latest.id if self._checkpoints.latest else None
        notices = self._notices + self._checkpoints.unkept()
        return TurnResult(outcome, self._conversation.session.name, latest, notices)

    def _tell_work(self) -> None:
        """Tell a display what the turn has changed, and how it is taken back."""
        if self._engine.options.shows_work and (work := self._checkpoints.work()) is not None:
            self._emit(
                {
                    "type": "work",
                    **work._asdict(),
                    "profile": self._work.paths.name,
                    # Without -C, commands continue the last session of the private workspace.
                    "session": self._conversation.session.name if self._conversation.session.project else None,
                }
            )

    def _close(self) -> None:
        """End the commands of the run, and close the log."""
        backend, self._backend = self._backend, None
        try:
            if backend is not None:
                self._checkpoints.created_repositories += backend.take_created_repositories()
                backend.close()
        finally:
            if self._writer is not None:
                self._writer.close()


def _notices(conversation: Conversation) -> list[str]:
    session, damage, history = conversation.session.name, conversation.message_list.damage, conversation.history
    notices = []
    torn_count = sum(line.torn for line in damage)
    damaged_count = len(damage) - torn_count
    if torn_count:
        notices.append(f"Session {session!r}: an earlier turn was interrupted; its incomplete last line was removed.")
    if damaged_count:
        lines = ", ".join(f"{line.file} line {line.line}" for line in damage if not line.torn)
        notices.append(
            f"Session {session!r}: {counted(damaged_count, 'damaged line')} left out: {lines}. The rest is used."
        )
    if history.unreadable:
        notices.append(f"Session {session!r}: {counted(history.unreadable, 'invalid message')} left out.")
    if history.left_out:
        notices.append(
            f"Session {session!r}: {counted(history.left_out, 'file')} with an address left out; deepctl fetches "
            "no files for a stored conversation."
        )
    if history.unanswered:
        notices.append(
            f"Session {session!r}: {counted(history.unanswered, 'earlier prompt')} without an answer not sent again; "
            "`sessions show` has the text."
        )
    return notices
