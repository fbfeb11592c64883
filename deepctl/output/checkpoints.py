"""How checkpoints look."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.domain.checkpoints.reading import Listed, Problem
from deepctl.domain.sessions.log import Conversation
from deepctl.output.graph import rails
from deepctl.output.render import notice
from deepctl.output.sessions import print_conversation
from deepctl.output.text import ago, fitted, has_colour, is_terminal, printable, size, table

if TYPE_CHECKING:
    # What only some commands have; importing it takes longer than listing a thousand checkpoints.
    from deepctl.domain.checkpoints.comparing import Difference
    from deepctl.domain.checkpoints.pruning import Removal
    from deepctl.domain.checkpoints.rewinding import Outline
    from deepctl.domain.checkpoints.trees import Entry
    from deepctl.domain.checkpoints.verifying import Verified

_SHORT = 8
_PROMPT = 48


def document(listed: Listed) -> dict[str, Any]:
    """A checkpoint as JSON."""
    record = listed.record
    return {
        "id": record.id,
        "label": listed.label,
        "kind": record.kind,
        "session": listed.session,
        "turn": record.turn,
        "created_at": record.created_at,
        "message_count": record.message_count,
        "parent": listed.parent,
        "files": record.files,
        "bytes": record.bytes,
        "added_bytes": record.added_bytes,
        "prompt": record.prompt,
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return problem._asdict()


def _short(text: str, length: int = _PROMPT) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class CheckpointList(NamedTuple):
    """Newest first. `heads` are where the sessions stand. With `graph`, parents are of those in the list."""

    profile: str
    checkpoints: list[Listed]
    damaged: list[Problem]
    notes: list[str]
    heads: frozenset[str]
    graph: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "checkpoints": [document(listed) for listed in self.checkpoints],
            "damaged": [_problem(problem) for problem in self.damaged],
            "notes": self.notes,
        }

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if not self.checkpoints:
            if terminal and not self.damaged:
                notice(f"Profile {self.profile} has no checkpoints here yet; every turn of `deepctl chat` makes some.")
        elif self.graph:
            self._print_graph()
        elif terminal:
            rows = [_row_at_terminal(listed) for listed in self.checkpoints]
            columns = ("CHECKPOINT", "LABEL", "KIND", "SESSION", "TURN", "WHEN", "PROMPT")
            table(columns, rows, dispensable=("SESSION", "KIND", "WHEN"))
        else:
            table((), [_row(listed) for listed in self.checkpoints])
        for problem in self.damaged:
            notice(f"Damaged: {problem.id or 'a checkpoint'} ({problem.file}: {problem.reason}).")
        for note in self.notes:
            notice(note)

    def _print_graph(self) -> None:
        drawn = rails([(listed.record.id, listed.parent) for listed in self.checkpoints])
        for listed, (joins, lead) in zip(self.checkpoints, drawn, strict=True):
            record = listed.record
            for line in joins:
                print(line)
            label = f" ({listed.label})" if listed.label else ""
            here = f" <- {listed.session} is here" if record.id in self.heads else ""
            words = f"{record.id}{label} {record.kind} {listed.session}:{record.turn}{here} {record.prompt}"
            print(fitted(f"{lead} {printable(words).rstrip()}"))


def _row_at_terminal(listed: Listed) -> tuple[str, ...]:
    record = listed.record
    when = ago(record.created_at)
    return record.id[:_SHORT], listed.label or "", record.kind, listed.session, str(record.turn), when, record.prompt


def _row(listed: Listed) -> tuple[str, ...]:
    record = listed.record
    return (
        record.id,
        listed.label or "",
        record.kind,
        listed.session,
        str(record.turn),
        record.created_at,
        str(record.files),
        str(record.added_bytes),
        record.prompt,
    )


class CheckpointShown(NamedTuple):
    profile: str
    checkpoint: Listed
    files: list[tuple[str, Entry]]
    conversation: Conversation

    def document(self) -> dict[str, Any]:
        record = self.checkpoint.record
        return {
            "profile": self.profile,
            "checkpoint": document(self.checkpoint),
            "files": [
                {"path": path, "kind": entry.what, "mode": f"{entry.mode:04o}", "bytes": entry.size}
                for path, entry in self.files
            ],
            "unkept": [{"path": path, "reason": reason} for path, reason in record.unkept],
            "excluded": record.exclude,
            "messages": [entry._asdict() for entry in self.conversation.messages],
        }

    def print(self) -> None:
        record = self.checkpoint.record
        rows = [
            ("Checkpoint", record.id),
            ("Label", self.checkpoint.label or "none"),
            ("Kind", record.kind),
            ("Session", f"{self.checkpoint.session}, turn {record.turn}, {_counted(record.message_count, 'message')}"),
            ("Made", f"{record.created_at} ({ago(record.created_at)})"),
            ("Before it", self.checkpoint.parent or "nothing"),
            ("Files", f"{record.files} of {size(record.bytes)}, {size(record.added_bytes)} added"),
        ]
        if record.exclude:
            rows.append(("Left out", ", ".join(record.exclude)))
        for label, value in rows:
            print(f"{label + ':':<13}{printable(value)}")
        for path, reason in record.unkept:
            print(f"Not kept:    {printable(path) or 'the workspace'} ({printable(reason)})")
        print()
        for path, entry in self.files:
            print(f"{entry.kind.decode()} {entry.mode:04o} {entry.size:>10} {printable(path)}")
        print()
        print_conversation(self.conversation)


class CheckpointSaved(NamedTuple):
    profile: str
    checkpoint: Listed

    def document(self) -> dict[str, Any]:
        unkept = [{"path": path, "reason": reason} for path, reason in self.checkpoint.record.unkept]
        return {"profile": self.profile, "checkpoint": document(self.checkpoint), "unkept": unkept}

    def print(self) -> None:
        label = f" labelled {self.checkpoint.label}" if self.checkpoint.label else ""
        if is_terminal(sys.stdout):
            record = self.checkpoint.record
            print(f"Saved checkpoint {record.id}{label}: {_counted(record.files, 'file')}, {size(record.bytes)}.")
        else:
            print(self.checkpoint.record.id)
        print_unkept(self.checkpoint.record.unkept)


def print_unkept(unkept: Sequence[Sequence[str]]) -> None:
    """Say what a checkpoint could not keep."""
    for path, reason in list(unkept)[:5]:
        notice(f"Not kept: {path or 'the workspace'} ({reason}).")
    if len(unkept) > 5:
        notice(f"Not kept: {len(unkept) - 5} more; `deepctl checkpoints show` lists them.")


class Labelled(NamedTuple):
    profile: str
    checkpoint: Listed

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "checkpoint": document(self.checkpoint)}

    def print(self) -> None:
        label = self.checkpoint.label
        identity = self.checkpoint.record.id
        print(f"Checkpoint {identity} is now called {label}." if label else f"Checkpoint {identity} has no label now.")


class Rewound(NamedTuple):
    """A rewind, done or only foretold. `preview` has the files as they are and as they become."""

    profile: str
    dry_run: bool
    outline: Outline
    target: Listed
    safety: Listed | None
    restored: list[bytes]
    deleted: list[bytes]
    kept: list[bytes]
    remarks: list[str]
    preview: list[Difference]

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "rewound_to": document(self.target),
            "safety": document(self.safety) if self.safety is not None else None,
            "messages_removed": self.outline.messages_removed,
            "turns_removed": self.outline.turns_removed,
            "messages_restored": self.outline.messages_restored,
            "turns_restored": self.outline.turns_restored,
            "prompt": self.outline.undone,
            "files": {
                "restored": _names(self.restored),
                "deleted": _names(self.deleted),
                "kept": _names(self.kept),
                "conflicts": _names(self.outline.conflicts),
            },
        }
        if self.dry_run:
            found["preview"] = [_difference(one) for one in self.preview]
        return found

    def print(self) -> None:
        record = self.target.record
        label = f" ({self.target.label})" if self.target.label else ""
        if self.outline.is_nothing:
            what = "there is nothing of the agent's to take back" if self.kept else "everything is as it was"
            print(f"Nothing to do since {record.id}{label}: {what}.")
            self._print_paths()
            return
        verb = "Would rewind" if self.dry_run else "Rewound"
        print(f"{verb} session {self.outline.session.name} to {record.id}{label}, turn {record.turn}.")
        removed = self.outline.messages_removed
        if removed:
            leave = "would leave" if self.dry_run else "left"
            turns = self.outline.turns_removed
            print(f"{_counted(turns, 'turn')} ({_counted(removed, 'message')}) {leave} the conversation.")
        back = self.outline.messages_restored
        if back:
            come = "would come back" if self.dry_run else "came back"
            print(f"{_counted(self.outline.turns_restored, 'turn')} ({_counted(back, 'message')}) {come}.")
        if self.dry_run:
            _print_preview(self.preview)
        else:
            for verb, paths in (("restored", self.restored), ("deleted", self.deleted)):
                for path in paths:
                    print(f"  {verb:<9} {printable(os.fsdecode(path))}")
        self._print_paths()
        for remark in self.remarks:
            notice(remark)
        if self.outline.undone is not None:
            print("The prompt that was undone:" if not self.dry_run else "The prompt that would be undone:")
            print("\n".join(f"> {printable(line)}" for line in self.outline.undone.split("\n")))
        if self.safety is not None:
            before = self.safety.record.id
            notice(f"`deepctl checkpoints undo --user {self.profile}` takes this back; before it was {before}.")
        elif self.dry_run and self.outline.conflicts and not self.outline.wish.force:
            notice(
                "Where there is a conflict, somebody changed the file after the agent: without --force, it is refused."
            )

    def _print_paths(self) -> None:
        for path in self.outline.conflicts:
            done = "conflict  {}" if self.dry_run else "overrode  {} (what was there is in the checkpoint before this)"
            print("  " + done.format(printable(os.fsdecode(path))))
        for path in self.kept:
            print(f"  kept      {printable(os.fsdecode(path))} (not as in the checkpoint, and not the agent's)")
        if self.kept and not self.outline.wish.exact:
            notice("--exact changes what was kept, too.")


def _names(paths: Sequence[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in paths]


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "path": one.path,
        "change": one.change,
        "added_lines": one.added_lines,
        "removed_lines": one.removed_lines,
        "remark": one.remark,
    }


def preview_line(one: Difference) -> str:
    """A file with the number of lines added and removed."""
    if one.change == "mode":
        counts = _modes(one)
    elif one.added_lines is None:
        counts = one.remark or ""
    elif any(entry is not None and entry.what == "directory" for entry in (one.before, one.after)):
        counts = "directory"
    else:
        counts = f"+{one.added_lines} -{one.removed_lines}"
    return f"{one.change:<9} {printable(one.path)}  {counts}"


def _modes(one: Difference) -> str:
    return f"{one.before.mode:04o} to {one.after.mode:04o}" if one.before and one.after else ""


def _print_preview(preview: Sequence[Difference]) -> None:
    for one in preview:
        print(f"  {preview_line(one)}")


class Turn(NamedTuple):
    """A turn that only one of two conversations has."""

    turn: int
    prompt: str


class Compared(NamedTuple):
    profile: str
    before: Listed | None
    after: Listed | None
    differences: list[Difference]
    turns_removed: list[Turn]
    turns_added: list[Turn]
    stat: bool
    remark: str | None

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "from": document(self.before) if self.before is not None else None,
            "to": document(self.after) if self.after is not None else None,
            "files": [
                _difference(one) | ({} if self.stat else {"diff": "\n".join(one.lines)}) for one in self.differences
            ],
            "turns": {
                "removed": [turn._asdict() for turn in self.turns_removed],
                "added": [turn._asdict() for turn in self.turns_added],
            },
            "remark": self.remark,
        }

    def print(self) -> None:
        if self.remark is not None:
            notice(self.remark)
        for sign, turns in (("-", self.turns_removed), ("+", self.turns_added)):
            for turn in turns:
                print(f"# {sign} turn {turn.turn}: {printable(_short(' '.join(turn.prompt.split()), 100))}")
        if self.stat:
            _print_preview(self.differences)
            return
        colour = has_colour(sys.stdout)
        terminal = is_terminal(sys.stdout)
        for one in self.differences:
            _print_difference(one, colour, terminal)


def _print_difference(one: Difference, colour: bool, terminal: bool) -> None:
    name = one.path if one.path.isprintable() else repr(one.path)
    if one.before is not None and one.after is not None and one.before.mode != one.after.mode:
        print(f"# {name}: mode {_modes(one)}")
    if one.change == "type" and one.before is not None and one.after is not None:
        print(f"# {name}: a {one.before.what} became a {one.after.what}")
    elif not one.lines and one.change in ("added", "deleted"):
        entry = one.after or one.before
        print(f"# {name}: {entry.what if entry else ''} {one.change}{f', {one.remark}' if one.remark else ''}")
    elif one.remark:
        print(f"# {name}: {one.remark}")
    for number, line in enumerate(one.lines):
        shown = printable(line) if terminal else line
        code = {"+": "32", "-": "31", "@": "36"}.get(line[:1], "") if number > 1 else "1"
        print(f"\x1b[{code}m{shown}\x1b[0m" if colour and code else shown)


class Forked(NamedTuple):
    profile: str
    session: str
    checkpoint: Listed

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "session": self.session, "checkpoint": document(self.checkpoint)}

    def print(self) -> None:
        record = self.checkpoint.record
        print(f"Session {self.session} begins with the conversation of {record.id}, turn {record.turn}.")
        where = f"--user {self.profile} --session {self.session}"
        notice(f"The workspace is as it is now. `deepctl chat {where}` goes on in it.")


class Removed(NamedTuple):
    profile: str
    dry_run: bool
    removal: Removal

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "removed": [record.id for record in self.removal.records],
            "bytes": self.removal.bytes,
        }

    def print(self) -> None:
        verb = "Would remove" if self.dry_run else "Removed"
        for record in self.removal.records:
            print(f"{record.id}\t{record.kind}\t{record.created_at}\t{printable(_short(record.prompt))}")
        print(f"{verb} {_counted(len(self.removal.records), 'checkpoint')}, {size(self.removal.bytes)}.")
        if self.removal.is_blocked:
            notice(
                "Parts of what stays are damaged (`deepctl checkpoints verify` names them), so nothing else is freed."
            )


class Checked(NamedTuple):
    profile: str
    verified: Verified

    def document(self) -> dict[str, Any]:
        found = self.verified
        return {
            "profile": self.profile,
            "checkpoints": found.checkpoints,
            "objects": found.objects,
            "bytes": found.bytes,
            "damaged": [_problem(problem) for problem in found.problems],
            "notes": found.notes,
        }

    def print(self) -> None:
        found = self.verified
        for problem in found.problems:
            print(f"Damaged: {printable(problem.id or problem.file)}: {printable(problem.reason)}")
        for note in found.notes:
            notice(note)
        what = f"{_counted(found.checkpoints, 'checkpoint')} and {_counted(found.objects, 'object')}"
        verdict = f"{_counted(len(found.problems), 'problem')}." if found.problems else "nothing is damaged."
        print(f"{what}, {size(found.bytes)} read: {verdict}")


class Imported(NamedTuple):
    profile: str
    session: str
    checkpoints: list[Listed]
    damaged: list[Problem]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "session": self.session,
            "checkpoints": [document(listed) for listed in self.checkpoints],
            "damaged": [_problem(problem) for problem in self.damaged],
        }

    def print(self) -> None:
        print(f"Took over {_counted(len(self.checkpoints), 'checkpoint')} into session {self.session}.")
        for problem in self.damaged:
            notice(f"Left out: {problem.reason}")
