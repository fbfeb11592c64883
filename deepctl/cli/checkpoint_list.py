"""What `deepctl checkpoints list` shows; it needs none of the contents, and imports nothing that takes long."""

from __future__ import annotations

from deepctl.layout import ProfilePaths
from deepctl.output import checkpoints as views
from deepctl.store import lookup, session_catalogue
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record


def listed(
    profile: ProfilePaths, session: str | None, limit: int | None, *, tools: bool, graph: bool
) -> views.CheckpointList:
    """The newest `limit` checkpoints, of one session or of all, with or without those made after single tool calls."""
    wanted = session_catalogue.find(profile, session).id if session is not None else None
    found = lookup.read_ledger(profile)
    describe = lookup.describer(found, session_catalogue.by_id(profile))
    records = [
        record
        for record in reversed(found.records.values())
        if (tools or record.kind != "tool") and wanted in (None, record.session)
    ][:limit]
    shown = {record.id for record in records}
    described = [describe(record) for record in records]
    if graph:
        described = [one._replace(parent=_shown_parent(found, one.record, shown)) for one in described]
    notes = (
        ["A rewind was interrupted; the next command that changes something finishes it."] if found.unfinished else []
    )
    if (lost := lookup.lost_files_note(records)) is not None:
        notes.append(lost)
    damaged = lookup.structural_damage(profile, found)
    return views.CheckpointList(profile.name, described, damaged, notes, frozenset(found.heads.values()), graph)


def _shown_parent(found: Ledger, record: Record, shown: set[str]) -> str | None:
    return next((one.id for one in found.line(record.parent) if one.id in shown), None)
