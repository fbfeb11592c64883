"""Choosing a checkpoint at the terminal: the list at the top, the preview of the rewind below."""

from __future__ import annotations

import os
from functools import partial

from deepctl.cli.repl.picker import Picker, PickerTexts
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, Interrupted, NotFound
from deepctl.layout import ProfilePaths
from deepctl.output.render import Progress, ago, cells, fit, printable, visible
from deepctl.output.rewind import preview_line
from deepctl.quantities import counted
from deepctl.store import lookup, rewind
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record, SessionRecord
from deepctl.store.repository import ReadOnlyRepository, Repository
from deepctl.store.rewind import RewindConflicts, RewindRequest

_PREVIEWED = 12
_SHORTEST = 16


def pick(
    profile: ProfilePaths, in_force: Settings, session: str | None, only: str, force: bool, exact: bool, merge: bool
) -> str:
    """Let the user choose; returns the id. `in_force` are the profile's settings.

    Raises `Interrupted` if the user leaves, `NotFound` without checkpoints.
    """
    coverage = in_force.coverage()
    with Repository.read_only(profile, coverage=coverage) as reader:
        current = lookup.current_session(reader.paths, session)
        line = reader.ledger.line_of(reader.ledger.head(current))
        records = [record for record in line if record.kind != "tool"]
        if not records:
            raise NotFound(f"Session {current.name!r} has no checkpoints.", code="checkpoint_not_found")
        # The default of a script: the start of the last turn. That checkpoint may have been removed.
        try:
            began = lookup.find_checkpoint(reader.paths, reader.ledger, "~1", current.name)
        except DeepctlError:
            began = records[0]
        record = Picker(
            records,
            PickerTexts(
                f"Rewind session {current.name} to (Enter selects, Esc leaves):", "Where? (Enter selects, Esc leaves)"
            ),
            partial(_words, reader.ledger),
            partial(_preview, reader, current, (only, force, exact, merge)),
            at=next((number for number, record in enumerate(records) if record.id == began.id), 0),
        ).run()
        if record is None:
            raise Interrupted("No checkpoint was chosen, so nothing was rewound.")
        return record.id


def _words(ledger: Ledger, record: Record, room: int) -> str:
    label = ledger.labels.get(record.id)
    kind = "" if record.kind == "turn" else f" ({record.kind})"
    label_text = f" {printable(label)}" if label else ""
    before, after = f"{record.id[:8]} turn {record.turn}{kind}{label_text}, ", f", {ago(record.created_at)}"
    if not record.prompt:
        return f"{before}the beginning{after}"
    prompt = fit(printable(record.prompt), max(room - cells(f"{before}after ''{after}"), _SHORTEST))
    return f"{before}after '{prompt}'{after}"


def _preview(
    reader: ReadOnlyRepository, session: SessionRecord, options: tuple[str, bool, bool, bool], record: Record
) -> list[str]:
    with Progress("Looking") as progress:
        reader.snapshots = reader.snapshots._replace(report=progress)
        plan = rewind.preview(reader, session, RewindRequest(record, *options))
    changes = rewind.differences(reader, plan)
    files = f"{len(changes)} file{'' if len(changes) == 1 else 's'} would change"
    turns = f"{plan.turns_removed} turn{'' if plan.turns_removed == 1 else 's'} would leave the conversation"
    lines = [f"{files}, {turns}."]
    if plan.refusal is not None and not isinstance(plan.refusal, RewindConflicts):
        lines.append(f"REFUSED: {printable(plan.refusal.message)}")
    elif plan.conflicts:
        paths = ", ".join(visible(os.fsdecode(plan.workspace.shown(path))) for path in plan.conflicts[:3])
        remainder = f" and {len(plan.conflicts) - 3} more" if len(plan.conflicts) > 3 else ""
        lines.append(f"CONFLICT, needs --force: changed by another author after the agent: {paths}{remainder}")
    lines += [f"  {preview_line(change)}" for change in changes[:_PREVIEWED]]
    if len(changes) > _PREVIEWED:
        lines.append(f"  … and {len(changes) - _PREVIEWED} more")
    if plan.kept_paths:
        verbs = "differs and stays" if len(plan.kept_paths) == 1 else "differ and stay"
        lines.append(f"  {counted(len(plan.kept_paths), 'other file')} {verbs}: not changed by this session")
    return lines
