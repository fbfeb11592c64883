"""A profile at work: its sessions, its workspace and its checkpoints together, under the profile's lock.

Opening it first finishes what a killed command left: see `recovery`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from deepctl import layout
from deepctl.errors import Damaged, DeepctlError, Refused
from deepctl.files import atomic, owner_access
from deepctl.layout import ProfilePaths
from deepctl.store import completion_index, lookup, reserve, session_catalogue, todo
from deepctl.store.checkpoint_store import Checkpoints, WorkspaceOptions
from deepctl.store.ledger import Ledger
from deepctl.store.records import AGENT, OTHER, UNKNOWN, Position, Record
from deepctl.store.session_record import Session
from deepctl.store.snapshot import Report

EVERY_TURN, EVERY_TOOL, MANUAL_ONLY = "every_turn", "every_tool", "manual_only"


class Repository:
    """The checkpoints of one profile, open for changes. The caller holds the lock and closes this in the end.

    `policy` says when checkpoints are made without being asked for, `exclude` what of the workspace is left out.
    """

    def __init__(
        self,
        paths: ProfilePaths,
        *,
        exclude: Sequence[str] = (),
        policy: str = EVERY_TOOL,
        report: Report | None = None,
    ) -> None:
        self.paths = paths
        self.notes: list[str] = []
        """What the user should know about what a killed command left, and was done about it."""
        self.rewound: list[str] = []
        """Those of them about a rewind that was finished."""
        self.policy = policy
        # Whoever took it away takes nothing with it: a rewind brings the files back.
        atomic.make_directory(paths.workspace)
        owner_access.regain(paths.workspace, layout.OWN_DIRECTORIES)
        self.workspace = WorkspaceOptions(paths.workspace, exclude, report)
        self.store = Checkpoints(
            paths.checkpoints, cache=paths.snapshot_cache, release_reserve=lambda: reserve.release(paths)
        )
        completion_index.refresh(paths, self.ledger)

    @property
    def ledger(self) -> Ledger:
        """What checkpoints there are."""
        return self.store.ledger

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    def session(self, name: str) -> Session | None:
        """The session of that name, or `None` if it is damaged."""
        try:
            return session_catalogue.find(self.paths, name)
        except DeepctlError:
            return None

    def head(self, session: Session) -> Record | None:
        """The checkpoint at which a session stands."""
        return next(self.ledger.line(lookup.head(self.ledger, session)), None)

    def save(self, session: Session, kind: str, position: Position, *, author: str, **fields: Any) -> Record:
        """Make a checkpoint of a session as it stands and of the workspace as it is."""
        saved = self._save(session, kind, position, author, **fields)
        assert saved is not None
        return saved

    def _save(self, session: Session, kind: str, position: Position, author: str, **fields: Any) -> Record | None:
        fields.setdefault("parent", lookup.head(self.ledger, session))
        position = lookup.with_digest(session, position)
        owner_access.regain(self.paths.workspace, layout.OWN_DIRECTORIES)
        saved = self.store.save(position, kind, author=author, workspace=self.workspace, **fields)
        if saved is not None:
            completion_index.add(self.paths, self.ledger, saved, session.name)
        return saved

    def save_now(self, session: Session, label: str | None = None) -> Record:
        """A checkpoint by hand, between turns. Raises `BadName` or `Refused` for the label, before anything is made."""
        if label is not None:
            self.store.writer.check_free(label)
        author = self.between()
        position = lookup.position(session, session_catalogue.read(session))
        return self.save(session, "manual", position, author=author, label=label or "")

    def label(self, record: Record, label: str | None) -> None:
        """Name a checkpoint, or take its name away. Raises `BadName` or `Refused`."""
        self.store.writer.label(record.id, label)
        with atomic.after_commit():
            completion_index.rewrite(self.paths, self.ledger)

    def fork(self, record: Record, name: str) -> Session:
        """Begin a session with the conversation of a checkpoint. Raises `Damaged`, or `Refused` for the name."""
        if not record.log:
            raise Refused(f"Checkpoint {record.id} has no messages.", "`deepctl chat --new` begins an empty session.")
        forked = session_catalogue.fork(self.paths, name, lookup.chain_of(self.paths, record), record.id, record.point)
        with suppress(Damaged):  # the conversation is what is forked; it can be gone on with without a list
            todo.copy(self.paths, self.store.objects, record, forked)
        return forked

    def settle_todo(self, owner: Session, session: Session, before: Position) -> Record | None:
        """Give the one to-do list of a profile of 0.1 to `owner`, the session that was written to last.

        A turn of `session` begins at `before`, which has been kept. The move is kept as work of the owner's agent, so
        that a rewind of what that has written takes the list along and sees no conflict.
        """
        if not todo.give(self.paths, owner) or self.policy == MANUAL_ONLY:
            return None
        if owner.id == session.id:
            return self.save(session, "tool", before._replace(turn=before.turn + 1), author=AGENT)
        return self.save(owner, "manual", lookup.position(owner, session_catalogue.read(owner)), author=AGENT)

    def before_turn(self, session: Session, position: Position) -> Record | None:
        """Keep the state in which a turn begins, if it is not that of a checkpoint already."""
        if self.policy == MANUAL_ONLY:
            return None
        author = self.between()
        head = self.head(session)
        if (
            head is not None
            and not head.lost
            and head.message_count == position.message_count
            and head.turn == position.turn
        ):
            # Not the tree that was seen last: after rewinding only files, that is not the head's.
            return self._save(session, "turn", position, author, wanted=lambda tree: tree != head.tree)
        return self._save(session, "turn", position, author)

    def before_tool(self, session: Session, position: Position) -> Record | None:
        """Keep what somebody else changed while no tool was at work: the model may have thought for minutes."""
        if self.policy != EVERY_TOOL:
            return None
        known = self.store.tree
        return self._save(session, "tool", position, OTHER, wanted=lambda tree: tree != known)

    def after_tool(self, session: Session, position: Position) -> Record | None:
        """Keep the state after a tool call, if it changed anything."""
        if self.policy != EVERY_TOOL:
            return None
        known = self.store.tree
        return self._save(session, "tool", position, AGENT, wanted=lambda tree: tree != known)

    def in_turn(self, *, tool_at_work: bool) -> str:
        """Whose what changed since the last look is, in the middle of a turn.

        The tree is kept around every tool call, so it is the agent's only while a tool is at work; where it is kept for
        turns only, all of a turn is the agent's. Where it is kept by hand only, the last look may have been long before
        the turn.
        """
        if self.policy == MANUAL_ONLY:
            return UNKNOWN
        return AGENT if tool_at_work or self.policy != EVERY_TOOL else OTHER

    def after_turn(self, session: Session, position: Position, *, tool_at_work: bool = False) -> Record | None:
        """Keep the state in which a turn ends, in the middle of a tool if it was broken off there."""
        if self.policy == MANUAL_ONLY:
            return None
        return self._save(session, "turn", position, self.in_turn(tool_at_work=tool_at_work))

    def between(self) -> str:
        """Who changed the workspace since it was last looked at, when no turn is at work.

        A turn that was killed (`reading.goes_on`) gets its end now, and what changed since its last checkpoint cannot
        be told apart. Where no checkpoints are made by themselves, nothing can.
        """
        author = OTHER
        for name in session_catalogue.all_names(self.paths):
            try:
                session = session_catalogue.find(self.paths, name)
                if not lookup.has_unfinished_turn(session, self.ledger):
                    continue
                author = UNKNOWN
                if self.policy != MANUAL_ONLY:
                    ended = lookup.position(session, session_catalogue.read(session))
                    self._save(session, "turn", ended, UNKNOWN)
                    author = OTHER
            except Damaged:
                continue  # no turn can be at work in it
        return author


def remove_leftovers(paths: ProfilePaths) -> None:
    """Remove the temporary files that killed writers left beside the profile's own."""
    session_catalogue.tidy(paths)
    for directory in (paths.directory, paths.checkpoints, paths.cache):
        try:
            entries = os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.startswith(".") and entry.endswith(".tmp"):
                os.unlink(os.path.join(directory, entry))
