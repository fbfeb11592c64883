"""The checkpoints of one turn of a profile's session: made as it goes, and reached by its agent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pydantic_ai import RunContext

from deepctl import layout
from deepctl.agent.checkpoint_capability import READ_ONLY_TOOLS, RewindRequested
from deepctl.agent.interruption import STOPPED, Emit, storing
from deepctl.errors import DeepctlError, Refused
from deepctl.quantities import counted
from deepctl.store import lookup, rewind, session_log
from deepctl.store.records import Position, Record
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindRequest
from deepctl.store.session_record import Session

_SHOWN = 50
_UNKEPT_SHOWN = 3


class TurnCheckpoints:
    """Keeps a turn. `attempt` begins it, and begins it again after the agent has rewound it."""

    def __init__(self, work: Repository, prompt: str, emit: Emit) -> None:
        self._work = work
        self._prompt = prompt
        self.emit = emit
        self.workspace = work.paths.workspace
        self._rewound: set[str] = set()
        self._first: Record | None = None
        self._at_work = False
        self._evicted = 0
        self.latest: Record | None = None

    def attempt(self, session: Session, before: Position, writer: session_log.LogWriter) -> None:
        """The turn begins, or begins again, where the conversation stands at `before`."""
        self._session = session
        self._before = before
        self._writer = writer
        self._is_over = False
        self._at_work = False

    def started(self, session: Session, before: Position) -> None:
        """Keep the state before the turn."""
        self._first = self._work.head(session)
        self._tell(self._work.before_turn(session, before))

    async def tool_starts(self, ctx: RunContext[Any], name: str) -> None:
        """Keep the state before a tool call that can change something, if somebody else has changed it."""
        self._evicted = self._last_eviction()
        if name not in READ_ONLY_TOOLS:
            with storing(), self._stoppable():
                self._tell(self._work.before_tool(self._session, self._position()))
            self._at_work = True

    def tool_done(self, name: str) -> None:
        """Keep the state after a tool call that could have changed something."""
        self._at_work = False
        if name not in READ_ONLY_TOOLS or self._evicted != self._last_eviction():
            with storing(), self._stoppable():
                self._tell(self._work.after_tool(self._session, self._position()))

    def _last_eviction(self) -> int:
        """When a result was last put into a file, in nanoseconds: reading can be what changes the workspace, too."""
        try:
            return os.lstat(os.path.join(self.workspace, layout.EVICTED_DIRECTORY)).st_mtime_ns
        except OSError:
            return 0

    def ended(self) -> None:
        """Keep the state after the turn, unless it came to nothing or has been rewound."""
        if self._writer.count and not self._is_over:
            with self._stoppable():
                self._end()

    def _end(self) -> None:
        self._tell(self._work.after_turn(self._session, self._position(), tool_at_work=self._at_work))

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """What is stopped in here leaves the turn as it stands; what is half done counts for nothing.

        In a workspace full of giants, to do it again would take as long.
        """
        try:
            yield
        except STOPPED:
            self._is_over = True
            raise

    def unkept(self) -> list[str]:
        """What the last checkpoint could not keep and the turn's first did not name, for the user."""
        at_start = self._first.unkept if self._first is not None else []
        new = [entry for entry in (self.latest.unkept if self.latest is not None else []) if entry not in at_start]
        return [f"Not kept in checkpoints: {path} ({reason})." for path, reason in new[:_UNKEPT_SHOWN]]

    def broke_off(self) -> None:
        """The same for a turn that failed. What went wrong there is told; not that its end could not be kept."""
        try:
            self.ended()
        except (DeepctlError, OSError):
            pass  # the next command finds the turn without its end, and knows what that means

    def _position(self) -> Position:
        before, writer = self._before, self._writer
        return Position(
            before.session,
            writer.turn,
            self._session.log,
            writer.end,
            before.message_count + writer.count,
            self._prompt,
            writer.point,
        )

    def _tell(self, record: Record | None) -> None:
        if record is not None:
            self.latest = record
            self.emit({"type": "checkpoint", "id": record.id, "kind": record.kind})

    async def save_labelled(self, ctx: RunContext[Any], label: str) -> str:
        """Make a checkpoint in the middle of the turn."""
        self._work.store.writer.check_free(label)
        with storing():
            author = self._work.in_turn(tool_at_work=False)
            record = self._work.save(self._session, "manual", self._position(), author=author, label=label)
        self._tell(record)
        return record.id

    async def describe_all(self, ctx: RunContext[Any]) -> list[str]:
        """The session's checkpoints that led here, oldest first."""
        ledger = self._work.ledger
        line = ledger.line_of(lookup.head(ledger, self._session))[:_SHOWN]
        return [
            f"{record.id} {ledger.labels.get(record.id, '')} turn {record.turn}, "
            f"{counted(record.message_count, 'message')}, {counted(record.files, 'file')}, "
            f"{record.created_at}: {record.prompt[:60]}"
            for record in reversed(line)
        ]

    async def rewind(self, ctx: RunContext[Any], reference: str, reason: str) -> NoReturn:
        """End the turn, to go back; refused if that would lose an edit, or for the second time."""
        work = self._work
        target = lookup.find_checkpoint(work.paths, work.ledger, reference, self._session.name)
        rewind.check_session(work.ledger, self._session, target, {})
        if target.id in self._rewound:
            raise Refused(f"You have rewound to {target.id} once for this request already. Go on from here.")
        rewind.preview(
            work,
            self._session,
            RewindRequest(target),
            position=self._position(),
            author=work.in_turn(tool_at_work=True),
        ).check()
        self._rewound.add(target.id)
        raise RewindRequested(target.id, work.ledger.labels.get(target.id, ""), [], reason)

    def go_back(self, request: RewindRequested) -> None:
        """Do what the agent asked for."""
        self._is_over = True
        target = self._work.ledger.records[request.checkpoint_id]
        author = self._work.in_turn(tool_at_work=True)
        result = rewind.run(self._work, self._session, RewindRequest(target), position=self._position(), author=author)
        self._tell(result.safety)
