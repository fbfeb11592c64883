"""What the commands on checkpoints show that takes the contents to tell: comparisons, and what a rewind does or did."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from typing import NamedTuple

from deepctl.cli import options
from deepctl.errors import NotFound, Refused
from deepctl.layout import ProfilePaths
from deepctl.output import checkpoints as views
from deepctl.output.progress import Progress
from deepctl.output.rewind import Compared, Rewound, Turn
from deepctl.store import diff, lookup, prune, pydantic_deep_import, rewind, session_catalogue, session_log, trees
from deepctl.store.checkpoint_store import WorkspaceOptions
from deepctl.store.contents_reader import ReadOnlyRepository
from deepctl.store.diff import FileDifference
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record
from deepctl.store.repository import Repository
from deepctl.store.rewind import RewindPlan, RewindRequest, RewindResult
from deepctl.store.session_record import Session


def compared(profile: ProfilePaths, before: str | None, after: str | None, session: str | None, stat: bool) -> Compared:
    """Two checkpoints, or one and what is now; `before` is the latest if it is not given."""
    exclude, _ = options.snapshot_settings(profile)
    with closing(ReadOnlyRepository(profile)) as reader, Progress("Comparing") as progress:
        first = _from(profile, reader.ledger, before, session)
        second = lookup.find_checkpoint(profile, reader.ledger, after, session) if after is not None else None
        new = bytes.fromhex(second.tree) if second is not None else reader.present(exclude, progress).tree
        old = bytes.fromhex(first.tree)
        content = diff.kept(reader.objects)
        changed = trees.changes(reader.objects, old, new) if old and new else iter(())
        later = content if second is not None else diff.present(profile.workspace, reader.objects)
        found = list(diff.differences(changed, content, later))
        describe = lookup.describer(reader.ledger, session_catalogue.by_id(profile))
        removed, added = _turns(profile, first, second, session)
        to = describe(second) if second is not None else None
        remark = None if old and new else _without_files([first] if second is None else [first, second])
        return Compared(profile.name, describe(first), to, found, removed, added, stat, remark)


def _without_files(records: list[Record]) -> str:
    if (lost := lookup.lost_files_note(records)) is not None:
        return f"{lost} Only the turns are compared."
    return "A checkpoint that keeps no files is compared: only the turns are."


def _from(profile: ProfilePaths, found: Ledger, reference: str | None, session: str | None) -> Record:
    if reference is not None:
        return lookup.find_checkpoint(profile, found, reference, session)
    records = [record for record in found.records.values() if record.tree]
    if session is not None:
        wanted = session_catalogue.find(profile, session).id
        records = [record for record in records if record.session == wanted]
    if not records:
        raise NotFound(
            "There is no checkpoint to compare with.",
            "`deepctl checkpoints save` makes one.",
            code="checkpoint_not_found",
        )
    return records[-1]


def _turns(
    profile: ProfilePaths, first: Record, second: Record | None, session: str | None
) -> tuple[list[Turn], list[Turn]]:
    before = lookup.conversation_at(profile, first).messages
    if second is not None:
        after = lookup.conversation_at(profile, second).messages
    else:
        name = session if session is not None else session_catalogue.by_id(profile).get(first.session)
        after = session_catalogue.read(lookup.current_session(profile, name)).messages
    shared = 0
    while shared < min(len(before), len(after)) and before[shared].message == after[shared].message:
        shared += 1
    removed, added = (_prompts(messages[shared:]) for messages in (before, after))
    return removed, added


def _prompts(messages: list[session_log.Message]) -> list[Turn]:
    return [
        Turn(entry.turn, text) for entry in messages if (text := session_catalogue.prompt(entry.message)) is not None
    ]


def shown(profile: ProfilePaths, reference: str, session: str | None) -> views.CheckpointShown:
    """A checkpoint in full."""
    with closing(ReadOnlyRepository(profile)) as reader:
        record = lookup.find_checkpoint(profile, reader.ledger, reference, session)
        walked = trees.walk(reader.objects, bytes.fromhex(record.tree)) if record.tree else iter(())
        files = [(os.fsdecode(path), entry) for path, entry in walked]
        conversation = lookup.conversation_at(profile, record)
        return views.CheckpointShown(profile.name, lookup.describe(profile, reader.ledger, record), files, conversation)


def foretold_rewind(
    profile: ProfilePaths, session: str | None, reference: str, wish: tuple[str, bool, bool]
) -> Rewound:
    """What a rewind to `reference` would do."""
    with closing(ReadOnlyRepository(profile)) as reader, Progress("Looking") as progress:
        at_hand, target = _target(profile, reader.ledger, session, reference)
        _check_finished(reader)
        return _foreseen(reader, foretell(reader, at_hand, RewindRequest(target, *wish), progress))


def foretold_undo(profile: ProfilePaths, session: str | None, force: bool) -> Rewound:
    """What taking back the last rewind would do."""
    with closing(ReadOnlyRepository(profile)) as reader, Progress("Looking") as progress:
        at_hand = lookup.current_session(profile, session)
        _check_finished(reader)
        wish = rewind.undoing(reader.ledger, at_hand)._replace(force=force)
        return _foreseen(reader, foretell(reader, at_hand, wish, progress))


def _check_finished(reader: ReadOnlyRepository) -> None:
    if reader.ledger.unfinished is not None:
        raise Refused(
            "A rewind was interrupted, so what is there now is neither the one nor the other.",
            "The next command that changes something finishes it, such as `deepctl checkpoints save`.",
            code="interrupted_rewind",
        )


def _target(paths: ProfilePaths, found: Ledger, session: str | None, reference: str) -> tuple[Session, Record]:
    """The session at hand and the checkpoint in it. Raises `UsageError` for a checkpoint of another session."""
    at_hand = lookup.current_session(paths, session)
    target = lookup.find_checkpoint(paths, found, reference, at_hand.name)
    rewind.check_session(found, at_hand, target, session_catalogue.by_id(paths))
    return at_hand, target


def foretell(reader: ReadOnlyRepository, session: Session, wish: RewindRequest, progress: Progress) -> RewindPlan:
    """What a rewind would do, without the lock and without changing anything."""
    exclude, _ = options.snapshot_settings(reader.paths)
    return rewind.preview(reader, session, wish, WorkspaceOptions(reader.paths.workspace, exclude, progress))


def previewed(reader: ReadOnlyRepository, outline: RewindPlan) -> list[FileDifference]:
    """The files that a rewind would change, with the lines they would gain and lose."""
    now = diff.present(reader.paths.workspace, reader.objects)
    changes = [change for change in outline.changes if change.path not in outline.unread]
    found = list(diff.differences(changes, now, diff.kept(reader.objects)))
    unread = [diff.unread(change) for change in outline.changes if change.path in outline.unread]
    return sorted([*found, *unread], key=lambda one: os.fsencode(one.path))


def _foreseen(reader: ReadOnlyRepository, outline: RewindPlan) -> Rewound:
    changed = [change for change in outline.changes if change.before != change.after]
    return Rewound(
        reader.paths.name,
        True,
        outline,
        lookup.describe(reader.paths, reader.ledger, outline.wish.to),
        None,
        [change.path for change in changed if change.after is not None],
        [change.path for change in changed if change.after is None],
        outline.kept,
        [],
        previewed(reader, outline),
    )


def rewound(work: Repository, session: str | None, reference: str, wish: tuple[str, bool, bool]) -> Rewound:
    """Rewind, and tell what came of it.

    Raises `Refused` where a rewind that was interrupted has just been finished: turns are counted from there then.
    """
    if work.rewound and reference.startswith("~"):
        raise Refused(
            f"{' '.join(work.rewound)} So {reference} is counted from there, and nothing more was rewound.",
            "Say it again if you want to go back further; `deepctl checkpoints undo` takes back what was finished.",
            code="rewind_finished",
        )
    at_hand, target = _target(work.paths, work.ledger, session, reference)
    return _done(work, rewind.rewind(work, at_hand, RewindRequest(target, *wish)))


def undone(work: Repository, session: str | None, force: bool) -> Rewound:
    """Take the last rewind back, and tell what came of it."""
    return _done(work, rewind.undo(work, lookup.current_session(work.paths, session), force=force))


def _done(work: Repository, done: RewindResult) -> Rewound:
    describe = lookup.describer(work.ledger, session_catalogue.by_id(work.paths))
    return Rewound(
        work.paths.name,
        False,
        done.outline,
        describe(done.outline.wish.to),
        describe(done.safety) if done.safety is not None else None,
        done.restored,
        done.deleted,
        sorted({*done.outline.kept, *(path for path, _ in done.in_the_way)}),
        [f"{os.fsdecode(path)!r} is not as it was: {reason}." for path, reason in done.in_the_way],
        [],
        _undo(work.paths, done.outline.session.name),
    )


def _undo(paths: ProfilePaths, session: str) -> str:
    """The command that undoes a rewind of a session; files alone leave it where it is among the sessions."""
    command = f"deepctl checkpoints undo --user {paths.name}"
    return command if session_catalogue.latest(paths) == session else f"{command} --session {session}"


class Selection(NamedTuple):
    """Which checkpoints are to go: these of a session at hand, or what is beyond the newest `keep` and too old."""

    references: Sequence[str] = ()
    session: str | None = None
    keep: int | None = None
    older_than: datetime | None = None

    def records(self, paths: ProfilePaths, found: Ledger) -> list[Record]:
        """The checkpoints. Raises `Refused` for one that stays."""
        if self.keep is not None or self.older_than is not None:
            return prune.to_prune(found, self.keep, self.older_than)
        named = (lookup.find_checkpoint(paths, found, reference, self.session) for reference in self.references)
        records = {record.id: record for record in named}
        prune.check_removable(found, records.values())
        return list(records.values())


def foretold_removal(profile: ProfilePaths, chosen: Selection) -> views.Removed:
    """What removing would free."""
    with closing(ReadOnlyRepository(profile)) as reader, Progress("Looking", "objects read") as progress:
        records = chosen.records(profile, reader.ledger)
        return views.Removed(profile.name, True, prune.forecast(reader.ledger, reader.packs, records, progress))


def removed(work: Repository, chosen: Selection) -> views.Removed:
    """Remove, and tell what that freed."""
    records = chosen.records(work.paths, work.ledger)
    with Progress("Removing", "objects read") as progress:
        return views.Removed(work.paths.name, False, prune.remove(work, records, progress))


def taken_over(work: Repository, directory: str, session: str | None) -> views.Imported:
    """Take over what an application kept in `directory`, and tell what came of it."""
    taken = pydantic_deep_import.take_over(work, directory, session)
    describe = lookup.describer(work.ledger, session_catalogue.by_id(work.paths))
    return views.Imported(work.paths.name, taken.session, [describe(one) for one in taken.records], taken.problems)
