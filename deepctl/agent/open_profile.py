"""`open_profile`: a profile of the command line in an application.

A turn of an application is a turn of `deepctl chat`: the steps of `ProfileTurn`, and the run of `TurnEngine`. Steps
block, so each is awaited in a worker thread, and the run itself is in the event loop of the application. While a user
waits for a lock or a snapshot, other users go on.

The lock of the profile is held for a run or a change, never between two of them. Runs of one process queue for it in
the order of their calls, without a thread.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args, overload
from weakref import WeakKeyDictionary

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, UserContent
from pydantic_ai.models import Model

from deepctl import layout
from deepctl.agent import tasks
from deepctl.agent.backend import LocalBackend, open_backend
from deepctl.agent.checkpoints import RewindRequested
from deepctl.agent.factory import NO_MODEL, DeepAgentDeps
from deepctl.agent.file_checkpoint_store import FileCheckpointStore
from deepctl.agent.interruption import Emit, Event
from deepctl.agent.message_filters import messages_of
from deepctl.agent.model_wrappers import with_both_ways
from deepctl.agent.offline import OFFLINE
from deepctl.agent.profile_results import ProfileCheckpoint, ProfileResult, ProfileRewind, ProfileSession
from deepctl.agent.profile_setup import SetupReader
from deepctl.agent.profile_turn import ProfileTurn, TurnResult
from deepctl.agent.runs import result_event
from deepctl.agent.turn import ACTIVITY, Outcome
from deepctl.agent.turn_engine import Options, TurnEngine
from deepctl.domain import budgets, profiles, projects, session_choice, settings
from deepctl.domain.settings import Settings
from deepctl.domain.wipe import wipe_plan
from deepctl.errors import DeepctlError, Locked, UsageError
from deepctl.files.atomic import storage_error
from deepctl.layout import ProfilePaths, Root
from deepctl.locks import APPLICATION
from deepctl.store import lookup, prune, rewind, session_catalogue
from deepctl.store import projects as stored
from deepctl.store.records import SessionRecord
from deepctl.store.repository import EVERY_TOOL, Repository
from deepctl.store.rewind import RewindRequest

OutputT = TypeVar("OutputT")
T = TypeVar("T")

Part = Literal["conversation", "files", "memory"]

_POLL_SECONDS = 0.05

_OFFLINE = (
    "No model is set, so the offline model answers. It follows a few commands and is not an LLM. Choose a model with "
    "`create_deep_agent(model)`, $DEEPCTL_MODEL or the setting `model` of the profile."
)


@asynccontextmanager
async def open_profile(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    project: str | os.PathLike[str] | None = None,
    wait: float = 30.0,
) -> AsyncIterator[OpenProfile]:
    """Open a profile of the command line, to use it in an application at the same time as `deepctl` does.

    The profile is created by the first `run`, `stream` or `deps`, as by `deepctl chat`. An open profile holds no lock
    and blocks no other process, so an application may keep it open as long as it wants, or open it for each request.
    Its settings are read when it is opened; the settings of checkpoints are read again for every turn.

    Args:
        name: The name of the profile, in any case. Raises `deepctl.errors.BadName` for an invalid one.
        root: The directory with all profiles; by default `$DEEPCTL_HOME`, else that of the command line.
        project: A directory in which the agent works, as with `deepctl chat -C`; by default the directory of the
            session, then the setting `project`, then the private workspace of the profile.
        wait: The seconds to wait while another process holds the lock of the profile or of the project. After that, a
            method raises `deepctl.errors.Locked`. Runs of this process wait for each other without a limit.

    Every error of deepctl is a `deepctl.errors.DeepctlError`, with `code`, `hint`, `exit_code` and `retryable`.
    """
    profile = await tasks.in_thread(lambda: OpenProfile(name, root, project, wait))
    try:
        yield profile
    finally:
        await profile._close()


class _Work(NamedTuple):
    """What a turn or a change works on, with the lock: the profile, its settings, and the directory."""

    profile: ProfilePaths
    settings: Settings
    directory: str | None


class _Locks:
    """The locks of a turn or a change. What else is entered in `stack` ends before they are released."""

    def __init__(self, wait: float) -> None:
        self.stack = ExitStack()
        self._deadline = time.monotonic() + wait

    async def take(self, lock: Callable[[], AbstractContextManager[object]]) -> None:
        """Take a lock that does not wait itself. No thread waits for another process. Raises `Locked`."""
        while True:
            try:
                await _step(lambda: self.stack.enter_context(lock()))
                return
            except Locked as error:
                if time.monotonic() >= self._deadline:
                    error.hint = "Try again later, or wait longer: open_profile(…, wait=SECONDS)."
                    raise
            await asyncio.sleep(_POLL_SECONDS)


@dataclass(kw_only=True)
class ProfileDeps(DeepAgentDeps):
    """The deps of a profile, for runs outside of its sessions."""

    backend: LocalBackend  # the type of `deps.backend.close()`, for type checkers


class OpenProfile:
    """An open profile: see `open_profile`.

    Attributes:
        name: The name of the profile.
        paths: Its files. They exist after the first turn.
        settings: The settings in force when it was opened.
    """

    def __init__(
        self,
        name: str,
        root: str | os.PathLike[str] | None,
        project: str | os.PathLike[str] | None,
        wait: float,
    ) -> None:
        place = Root(os.path.abspath(layout.check_characters(root))) if root is not None else layout.root(os.environ)
        self._root = profiles.check_root(place)
        self._project = projects.locate(os.fspath(project)) if project is not None else None
        self._wait = wait
        is_there = profiles.exists(self._root, name)
        self.paths = profiles.find(self._root, name) if is_there else self._root.profile(name)
        self.name = self.paths.name
        self.settings = settings.load(os.environ, self.paths if is_there else None)
        self._engines: WeakKeyDictionary[asyncio.AbstractEventLoop, _Engines] = WeakKeyDictionary()
        """The engines of each event loop, because connections of a model belong to one."""

    async def _close(self) -> None:
        for loop, engines in list(self._engines.items()):
            for entry in engines.values():
                await asyncio.to_thread(entry.engine.flush_traces)
                if loop is asyncio.get_running_loop():
                    await entry.engine.close()
                else:
                    entry.engine.kill_servers()

    @overload
    async def run(
        self,
        agent: None,
        prompt: str | Sequence[UserContent],
        *,
        session: str | None = None,
        new: str | bool | None = None,
    ) -> ProfileResult[str]: ...

    @overload
    async def run(
        self,
        agent: Agent[DeepAgentDeps, OutputT],
        prompt: str | Sequence[UserContent],
        *,
        session: str | None = None,
        new: str | bool | None = None,
    ) -> ProfileResult[OutputT]: ...

    async def run(
        self,
        agent: Agent[DeepAgentDeps, Any] | None,
        prompt: str | Sequence[UserContent],
        *,
        session: str | None = None,
        new: str | bool | None = None,
    ) -> ProfileResult[Any]:
        """Run one turn of a session: the conversation continues, and is stored with checkpoints of all files.

        Rewinds that the agent asks for are done. Temporary failures of the model are retried, a long conversation is
        compacted, and limits hold as the settings of the profile say. If the caller is cancelled, the turn ends like
        after Ctrl-C in `deepctl chat`: what is complete is stored, and so is the state at the end.

        Args:
            agent: An agent of `create_deep_agent` with any output type, whose tools, instructions and approvals are its
                own. Without a model, it uses that of the profile. `None` is the agent of `deepctl chat`.
            prompt: The prompt. `@path` sends a file of the workspace along. It may contain pictures and files.
            session: The session to continue, or to start if it does not exist; by default the one that was used last,
                also by `deepctl chat`.
            new: The name of a new session, or `True` for the next free one. Raises `deepctl.errors.Refused` if the name
                is taken, and `UsageError` with `session`.

        Raises `deepctl.errors.Locked`, `ModelFailed`, `StorageError`, `Damaged` or another `DeepctlError`, and the
        exceptions of the agent's own tools.
        """
        return await tasks.finished(self._turn(agent, prompt, session, new, _ignore))

    def stream(
        self,
        agent: Agent[DeepAgentDeps, Any] | None,
        prompt: str | Sequence[UserContent],
        *,
        session: str | None = None,
        new: str | bool | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Run one turn as `run` does, and yield events as they happen. The parameters are those of `run`.

        Events are those of `deepctl.stream`, and these:

        - `{"type": "start", "profile": …, "session": …, "project": …, "model": …}`: the first one, with the lock held.
        - `{"type": "notice", "message": …}`: a sentence for the user.
        - `{"type": "retry", …}` and `{"type": "compaction", …}`, as in `deepctl chat --json`.
        - `{"type": "result", "output": …, "session": …, "checkpoint": …, "usage": …, "cost": …, "context": …,
          "finish": …}`: the last one.

        If the consumer stops early, by `aclose()` or because it is cancelled, the turn is cancelled and stored. When
        `aclose()` returns, the lock is released.
        """

        def work(emit: Emit) -> Any:
            def relevant(event: Event) -> None:
                if event is not ACTIVITY:
                    emit(event)

            return self._turn(agent, prompt, session, new, relevant)

        return tasks.streamed(work)

    async def agent(self) -> Agent[DeepAgentDeps, str]:
        """The agent of `deepctl chat` with the settings of this profile, for `agent.run(…, deps=await profile.deps())`.

        Its MCP servers run only in turns of `run` and `stream`.
        """
        engine = await _step(partial(self._engine, None, self.paths, [], self._engines_here()))
        await _step(engine.read_keys)
        return cast("Agent[DeepAgentDeps, str]", engine.agent)

    async def deps(self, session: str | None = None) -> ProfileDeps:
        """The files and checkpoints of the profile, for runs by `deepctl.run` or `Agent.run`.

        Such a run belongs to no session: its conversation is in its checkpoints only. It works in the directory of
        `session`, with the to-do list of that. Close its backend at the end: `deps.backend.close()`.
        """
        engine = await _step(partial(self._engine, None, self.paths, [], self._engines_here()))
        async with self._locked():
            work = await _step(partial(self._prepare, session, None))

        def make() -> ProfileDeps:
            record = session_choice.named(work.profile, session, None)
            options = engine.options
            backend = open_backend(work.profile, work.directory, options.sandbox, protected=options.protected)
            identity = record.id if record is not None and layout.is_good_name(record.id) else None
            return ProfileDeps(
                backend=backend, checkpoint_store=FileCheckpointStore(work.profile.checkpoints), session=identity
            )

        return await _step(make)

    async def history(self, session: str | None = None) -> list[ModelMessage]:
        """The whole conversation of a session, by default of the one that was used last; empty if there is none yet.

        Files with an address are replaced by a text, so that a history from an import makes no model and no machine
        fetch anything. Needs no lock. Raises `deepctl.errors.SessionNotFound` for an unknown `session`.
        """

        def read() -> list[ModelMessage]:
            record = self._existing(session)
            return messages_of(session_catalogue.read(record)) if record is not None else []

        return await _step(read)

    async def checkpoints(
        self, session: str | None = None, *, limit: int | None = None, tools: bool = False
    ) -> list[ProfileCheckpoint]:
        """The checkpoints, newest first: of one session, or of all. `tools` includes those of single tool calls.

        Needs no lock. Damaged ones are left out; `deepctl checkpoints verify` lists them.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"{limit} checkpoints cannot be listed.", "`limit` is at least 0; None means all.")

        def read() -> list[ProfileCheckpoint]:
            profile = self._found(session)
            if profile is None:
                return []
            infos = lookup.listing(profile, session, limit, tools=tools).checkpoints
            return [ProfileCheckpoint.of(info) for info in infos]

        return await _step(read)

    async def sessions(self) -> list[ProfileSession]:
        """The sessions, the one that was used last first. Needs no lock."""

        def read() -> list[ProfileSession]:
            profile = self._found()
            if profile is None:
                return []
            return [
                ProfileSession.of(summary) for summary in session_catalogue.summaries(profile, lookup.heads(profile))
            ]

        return await _step(read)

    async def rewind(
        self,
        reference: str = "~1",
        *,
        session: str | None = None,
        only: Part | Literal[""] = "",
        force: bool = False,
        exact: bool = False,
        merge: bool = True,
    ) -> ProfileRewind:
        """Return to a checkpoint, as `deepctl checkpoints rewind` does: conversation, files and memory.

        Args:
            reference: An id, a unique prefix of at least 4 characters, a label, or `~N` for N turns back.
            session: The session to rewind; by default the one that was used last.
            only: `conversation`, `files` or `memory`; by default all of them.
            force: Whether conflicts with changes of another author are overridden.
            exact: Whether the changes of every author are undone.
            merge: Whether text files that the agent and another author changed are merged by line.

        Raises `deepctl.errors.NotFound`, and `Refused` if another author changed a file after the agent (code
        `conflicts`); nothing has changed then.
        """
        if only and only not in get_args(Part):
            raise UsageError(f"{only!r} is no part of a checkpoint.", "`only` is conversation, files or memory.")
        request = partial(rewind.request_rewind, only=only, force=force, exact=exact, merge=merge)
        return await tasks.finished(self._rewind(lambda work, name: request(work, name, reference), session))

    async def undo(self, *, session: str | None = None, force: bool = False) -> ProfileRewind:
        """Undo the last rewind of a session, as `deepctl checkpoints undo` does. A second undo redoes it.

        Raises the errors of `rewind`, and `deepctl.errors.NotFound` (code `nothing_to_undo`).
        """
        return await tasks.finished(
            self._rewind(lambda work, name: rewind.request_undo(work, name, force=force), session)
        )

    async def prune(self, keep: int | None = None, *, older_than: timedelta | None = None) -> int:
        """Remove old checkpoints of all sessions, as `deepctl checkpoints prune` does, and return their number.

        Labelled checkpoints, the newest one, and those that can undo the last rewind of a session stay. Conversations
        and files stay, too. Nothing is removed if there is no profile yet.

        Args:
            keep: The number of the newest checkpoints that stay; those of tool calls do not count.
            older_than: Only checkpoints that are older are removed.

        Raises `UsageError` if neither is given, or `keep` is not at least 1.
        """
        if (keep is None and older_than is None) or (keep is not None and keep < 1):
            raise UsageError(f"{keep} checkpoints cannot be kept.", "`keep` is at least 1, or give `older_than`.")
        return await tasks.finished(self._prune(keep, older_than))

    async def _prune(self, keep: int | None, older_than: timedelta | None) -> int:
        if await _step(self._found) is None:
            return 0  # a lock would create the root
        oldest = datetime.now(timezone.utc) - older_than if older_than is not None else None

        def remove() -> int:
            if (profile := self._found()) is None:
                return 0
            with self._repository(profile, settings.load(os.environ, profile), frees=True) as work:
                return len(prune.remove(work, prune.to_prune(work.ledger, keep, oldest)).records)

        async with self._locked():
            return await _step(remove)

    async def wipe(self) -> None:
        """Delete the profile with everything in it, as `deepctl wipe` does. The next turn creates it anew.

        Raises `deepctl.errors.ProfileNotFound`.
        """
        await tasks.finished(self._wipe())

    async def _wipe(self) -> None:
        def put_away() -> wipe_plan.HiddenData:
            profile = profiles.locate(self._root, self.name)
            in_force = settings.load(os.environ, profile)
            if wipe_plan.is_rewinding(profile, ()):
                with self._repository(profile, in_force, frees=True):
                    pass  # an interrupted rewind is finished first, because later it would restore deleted data
            return wipe_plan.put_away(
                self._root, profile, wipe_plan.plan(self._root, profile, ()), os.environ, in_force
            )

        async with self._locked():
            trash = await _step(put_away)
        await _step(partial(wipe_plan.delete, [trash]))

    async def _rewind(
        self,
        request: Callable[[Repository, str | None], tuple[SessionRecord, RewindRequest]],
        session: str | None,
    ) -> ProfileRewind:
        async with self._locked() as locks:

            def prepare() -> tuple[Repository, SessionRecord, RewindRequest]:
                profile = profiles.find(self._root, self.name)
                in_force = settings.load(os.environ, profile)
                name = session if session is not None else session_choice.latest(profile, self._default(in_force))
                work = locks.stack.enter_context(self._repository(profile, in_force))
                return (work, *request(work, name))

            work, record, rewind_request = await _step(prepare)
            await locks.take(partial(stored.lock, work.paths, record))
            result = await _step(partial(rewind.run, work, record, rewind_request))
        return ProfileRewind.of(record.name, result)

    async def _turn(
        self,
        agent: Agent[DeepAgentDeps, Any] | None,
        prompt: str | Sequence[UserContent],
        session: str | None,
        new: str | bool | None,
        emit: Emit,
    ) -> ProfileResult[Any]:
        if session is not None and new:
            raise UsageError(
                "`session` and `new` cannot be used together.", "`session` continues a session; `new` starts one."
            )
        new_name = layout.UNNAMED if new is True else new or None
        if agent is not None and not isinstance(agent, Agent):
            raise UsageError(
                f"An agent of `create_deep_agent` is expected, not {type(agent).__name__}.",
                "`create_deep_agent(model)` makes an agent; `None` is the agent of `deepctl chat`.",
            )
        for name in (session, new if isinstance(new, str) else None):
            if name is not None:
                layout.check_name(name, "session")
        if agent is not None:
            tasks.check_event_loop(_model_of(agent))
        engines = self._engines_here()
        async with self._locked() as locks:
            place = await _step(partial(self._prepare, session, new_name))
            await locks.take(partial(stored.lock_directory, place.profile, place.directory, wait=0))

            notices: list[str] = []

            def begin() -> tuple[TurnEngine, ProfileTurn]:
                engine = self._engine(agent, place.profile, notices, engines)
                engine.meter.set_budgets(budgets.of_settings(place.settings, place.profile.name))
                record = session_choice.begin(place.profile, place.directory, session, new_name, notices.append)
                emit(
                    {
                        "type": "start",
                        "profile": place.profile.name,
                        "session": record.name,
                        "project": place.directory,
                        "model": _model_name(engine),
                    }
                )
                if _is_without_model(self.settings, agent, engine):
                    notices.append(_OFFLINE)
                work = locks.stack.enter_context(self._repository(place.profile, place.settings))
                notices.extend(work.notes)
                for notice in notices:
                    emit({"type": "notice", "message": notice})
                return engine, ProfileTurn(engine, work, record.name, prompt, emit, blocking=tasks.in_thread)

            engine, turn = await _step(begin)
            result = await self._run(engine, turn, emit)
            await self._close_excess(engines)
        return _finished(result, emit, notices)

    async def _run(self, engine: TurnEngine, turn: ProfileTurn, emit: Emit) -> TurnResult:
        """The steps of a turn; `Chat.turn` has them for the command line."""
        await _step(engine.read_keys)
        await _step(turn.begin)
        while True:
            try:
                await engine.ready(emit)
                attempt = await _step(turn.attempt)
                outcome: Outcome = await engine.run(*attempt, emit, turn.tool_done, tasks.in_thread)
            except RewindRequested as request:
                await _step(partial(turn.rewind, request))
                engine.again()
            except BaseException as error:
                failure = engine.error_of(error) if isinstance(error, Exception) else None
                await _step(partial(turn.break_off, failure or error))
                if isinstance(error, DeepctlError) or failure is None:
                    raise
                raise failure from error
            else:
                return await _step(partial(turn.end, outcome))

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[_Locks]:
        """The lock of the profile."""
        async with tasks.queue(self.paths.lock):
            locks = _Locks(self._wait)
            try:
                await locks.take(partial(profiles.lock, self._root, self.name, command=APPLICATION))
                yield locks
            finally:
                await tasks.in_thread(locks.stack.close)

    def _prepare(self, session: str | None, new: str | None) -> _Work:
        """The profile, created for its first turn, and the directory of the turn. Has the lock."""
        if not profiles.exists(self._root, self.name):
            profiles.create(self._root, self.name)
        profile = profiles.find(self._root, self.name)
        in_force = settings.load(os.environ, profile)
        record = session_choice.named(profile, session, new)
        if record is not None and self._project is not None:
            session_choice.check_directory(profile, record, self._project)
        directory = session_choice.directory_of(profile, record) if record is not None else self._default(in_force)
        if directory:
            projects.check(self._root, directory, os.environ)
        return _Work(profile, in_force, directory)

    def _default(self, in_force: Settings) -> str | None:
        """The directory of a turn without a session."""
        return self._project if self._project is not None else session_choice.of_settings(in_force)

    def _found(self, session: str | None = None) -> ProfilePaths | None:
        """The profile, if it exists. For a named session always: a missing profile has none, which is an error."""
        if profiles.exists(self._root, self.name):
            return profiles.find(self._root, self.name)
        return self.paths if session is not None else None

    def _existing(self, session: str | None) -> SessionRecord | None:
        """A session by its name, or the one that was used last, if there is one."""
        profile = self._found(session)
        if profile is None:
            return None
        if session is None:
            session = session_choice.latest(profile, self._default(self.settings))
        return session_catalogue.find(profile, session) if session is not None else None

    @staticmethod
    def _repository(
        profile: ProfilePaths, in_force: Settings, *, frees: bool = False
    ) -> AbstractContextManager[Repository]:
        policy = in_force.get("checkpoints") or EVERY_TOOL
        return Repository.open(profile, coverage=in_force.coverage(), policy=policy, frees=frees)

    def _engines_here(self) -> _Engines:
        return self._engines.setdefault(asyncio.get_running_loop(), {})

    @staticmethod
    async def _close_excess(engines: _Engines) -> None:
        """Close the engines of agents that were used least recently. No other turn uses one: this one has the lock."""
        oldest_first = [key for key, entry in engines.items() if entry.agent is not None]
        for key in oldest_first[:-_MOST_ENGINES]:
            await engines.pop(key).engine.close()

    def _engine(
        self,
        agent: Agent[DeepAgentDeps, Any] | None,
        profile: ProfilePaths,
        notices: list[str],
        engines: _Engines,
    ) -> TurnEngine:
        """The engine of an agent, made for its first turn. A notice about its commands is added to `notices` then."""
        model = _model_of(agent) if agent is not None else None
        key = id(agent), id(model)
        if (entry := engines.pop(key, None)) is not None:
            engines[key] = entry  # the last one is that of the latest turn
            return entry.engine
        reader = SetupReader(self.settings, os.environ, can_ask=False, trusts_probes=True)
        options, commands = reader.of_profile(self._root, profile)
        options = options._replace(is_at_terminal=False)
        engine = TurnEngine(options, environment=os.environ) if agent is None else _around(agent, model, options)
        engines[key] = _Engine(agent, model, engine)
        if commands.notice is not None:
            notices.append(commands.notice)
        return engine


class _Engine(NamedTuple):
    """An engine of an application's agent. The agent and its model are kept, so that no other ones get their ids."""

    agent: object
    model: object
    engine: TurnEngine


_Engines = dict[tuple[int, int], _Engine]
_MOST_ENGINES = 8
"""Engines that an open profile keeps for agents of the application, which may make one for each request."""


def _model_of(agent: Agent[DeepAgentDeps, Any]) -> Model | str | None:
    """The model of an application's agent, or that of `agent.override`; `None` if it has none."""
    override = agent._override_model.get()
    model = override.value if override is not None else agent.model
    return model if model is not NO_MODEL else None


def _is_without_model(in_force: Settings, agent: Agent[DeepAgentDeps, Any] | None, engine: TurnEngine) -> bool:
    """Whether the offline model answers because neither the application nor the profile has chosen a model."""
    has_chosen = in_force.resolve("model").source != "default"
    has_own = agent is not None and _model_of(agent) is not None
    return engine.options.model == OFFLINE and not has_chosen and not has_own


def _model_name(engine: TurnEngine) -> str:
    """The name of the model as a setting has it: pydantic-ai's id of the offline model is `offline:offline`."""
    name = engine.options.model
    return OFFLINE if name == f"{OFFLINE}:{OFFLINE}" else name


def _around(agent: Agent[DeepAgentDeps, Any], model: Model | str | None, options: Options) -> TurnEngine:
    """The engine of an application's agent. Its own model comes before that of the profile."""
    options = options._replace(mcp_servers=(), permissions={})
    if model is None:
        return TurnEngine(options, environment=os.environ, agent=agent)
    options = options._replace(base_url=None, model_settings={}, model_profile={})
    if not isinstance(model, Model):
        return TurnEngine(options._replace(model=model), environment=os.environ, agent=agent)
    model = with_both_ways(model)
    return TurnEngine(options._replace(model=model.model_id), environment=os.environ, agent=agent, model=model)


def _ignore(event: Event) -> None:
    """Receives events that no consumer reads."""


async def _step(action: Callable[[], T]) -> T:
    """Run a blocking step in a worker thread. An error of the disk is a `StorageError`."""
    try:
        return await tasks.in_thread(action)
    except OSError as error:
        raise storage_error(error) from error


def _finished(result: TurnResult, emit: Emit, earlier_notices: list[str]) -> ProfileResult[Any]:
    """Report the end of a turn. Raises the error of an answer that is not whole."""
    outcome = result.outcome
    notices = [*earlier_notices, *result.notices, *([outcome.notice] if outcome.notice is not None else [])]
    for notice in result.notices:
        emit({"type": "notice", "message": notice})
    fields = {key: value for key, value in outcome.document().items() if key not in ("output", "usage")}
    event = result_event(outcome.output, outcome.usage, session=result.session, checkpoint=result.checkpoint, **fields)
    emit(event | ({"notice": outcome.notice} if outcome.notice is not None else {}))
    if outcome.failure is not None:
        raise outcome.failure
    return ProfileResult(
        outcome.output,
        result.session,
        result.checkpoint,
        outcome.usage,
        outcome.cost,
        list(outcome.messages),
        notices,
    )
