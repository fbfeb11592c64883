"""The views of the checkpoint commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.render import (
    Cell,
    ago,
    fit,
    home,
    is_conversation,
    is_terminal,
    notice,
    print_sentence,
    printable,
    table,
    tint,
)
from deepctl.output.sessions import print_conversation
from deepctl.quantities import counted, size
from deepctl.store.log_file import MessageList
from deepctl.store.lookup import CheckpointInfo, CheckpointProblem, Listing
from deepctl.store.records import Record

if TYPE_CHECKING:
    # Only some commands need this module, and importing it takes longer than listing a thousand checkpoints.
    from deepctl.store.prune import CheckpointRemoval
    from deepctl.store.trees import TreeEntry
    from deepctl.store.verify import VerificationResult

_SHORT = 8
_PROMPT = 48


def document(info: CheckpointInfo) -> dict[str, Any]:
    """A checkpoint as JSON."""
    record = info.record
    project = {"project": info.project, "git": record.git or None} if info.project is not None else {}
    return {
        "id": record.id,
        "label": info.label,
        "kind": record.kind,
        "session": info.session,
        "turn": record.turn,
        "created_at": record.created_at,
        "message_count": record.message_count,
        "parent": info.parent,
        "files": record.files,
        "bytes": record.bytes,
        "added_bytes": record.added_bytes,
        "prompt": record.prompt,
        **project,
    }


def _problem(problem: CheckpointProblem) -> dict[str, Any]:
    return problem._asdict()


def short(text: str, length: int = _PROMPT) -> str:
    """`text`, cut to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


class CheckpointListView(NamedTuple):
    """Newest first. With `graph`, the parents of a checkpoint are those in the list."""

    profile: str
    listing: Listing
    graph: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "checkpoints": [document(info) for info in self.listing.checkpoints],
            "damaged": [_problem(problem) for problem in self.listing.damaged],
            "notes": self.listing.notes,
        }

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if not self.listing.checkpoints:
            if terminal and not self.listing.damaged:
                notice(f"Profile {self.profile} has no checkpoints here yet; every turn of a chat makes some.")
        elif self.graph:
            self._print_graph()
        elif terminal:
            columns: tuple[str, ...] = ("CHECKPOINT", "LABEL", "KIND", "SESSION", "TURN", "WHEN", "PROMPT")
            infos = self.listing.checkpoints
            rows: list[tuple[str | Cell, ...]] = [_row_at_terminal(info) for info in infos]
            if any(info.project is not None for info in infos):
                columns = (*columns[:-1], "PROJECT", "GIT", columns[-1])
                rows = [(*row[:-1], *_in_project(info), row[-1]) for row, info in zip(rows, infos, strict=True)]
            dispensable = ("GIT", "PROJECT", "SESSION", "KIND", "WHEN")
            table(columns, rows, dispensable=[name for name in dispensable if name in columns], numbers=("TURN",))
        else:
            table((), [_row(info) for info in self.listing.checkpoints])
        for problem in self.listing.damaged:
            notice(f"Damaged: {problem.id or 'a checkpoint'} ({problem.file}: {problem.reason}).")
        for note in self.listing.notes:
            notice(note)

    def _print_graph(self) -> None:
        graph = _rails([(info.record.id, info.parent) for info in self.listing.checkpoints])
        for info, (joins, lead) in zip(self.listing.checkpoints, graph, strict=True):
            record = info.record
            for line in joins:
                print(line)
            label = f" ({info.label})" if info.label else ""
            head_mark = f" <- {info.session} is here" if record.id in self.listing.heads else ""
            # As in the table: this part of an id is enough for any command.
            identity = record.id[:_SHORT] if is_terminal(sys.stdout) else record.id
            print(
                _line(
                    Cell(f"{lead} ", ""),
                    Cell(identity, "name"),
                    Cell(label, "strong"),
                    Cell(f" {record.kind}", _KINDS.get(record.kind, "")),
                    Cell(f" {info.session}:{record.turn}", ""),
                    Cell(head_mark, "strong"),
                    Cell(f"{':' if head_mark and record.prompt else ''} {record.prompt}", ""),
                )
            )


def _rails(nodes: Iterable[tuple[str, str | None]]) -> list[tuple[list[str], str]]:
    """A graph newest first, as `git log --graph` draws it: a star for each node, a rail for each line.

    For each node (its id and its parents), the lines before it and the start of its own line. A rail leads to the next
    node on it; rails that lead to the same node join before it.
    """
    awaited_ids: list[str] = []
    lines = []
    for identity, parent in nodes:
        columns = [number for number, awaited_id in enumerate(awaited_ids) if awaited_id == identity]
        if not columns:
            columns = [len(awaited_ids)]
            awaited_ids.append(identity)
        joins = []
        for column in reversed(columns[1:]):
            joins.append(_rail_line(len(awaited_ids), column, "/"))
            del awaited_ids[column]
        lines.append((joins, _rail_line(len(awaited_ids), columns[0], "*")))
        if parent is None:
            del awaited_ids[columns[0]]
        else:
            awaited_ids[columns[0]] = parent
    return lines


def _rail_line(count: int, special: int, sign: str) -> str:
    return " ".join(sign if number == special else "|" for number in range(count))


_KINDS = {"manual": "good", "rewind": "warning", "tool": "faint"}


def _line(*pieces: Cell) -> str:
    """The pieces as one line that fits, each in its colour if colours are on."""
    safe = [piece._replace(text=printable(piece.text)) for piece in pieces]
    plain_text = fit("".join(piece.text for piece in safe).rstrip())
    text_drawn = ""
    for piece in safe:
        text, plain_text = plain_text[: len(piece.text)], plain_text[len(piece.text) :]
        text_drawn += tint(text, piece.meaning) if text and piece.meaning else text
    return text_drawn + plain_text


def _row_at_terminal(info: CheckpointInfo) -> tuple[str | Cell, ...]:
    record = info.record
    return (
        record.id[:_SHORT],
        Cell(info.label or "", "strong"),
        Cell(record.kind, _KINDS.get(record.kind, "")),
        info.session,
        str(record.turn),
        Cell(ago(record.created_at), "faint"),
        record.prompt,
    )


def _in_project(info: CheckpointInfo) -> tuple[str | Cell, ...]:
    """The name of the project's directory, and the start of git's HEAD."""
    name = os.path.basename(info.project) if info.project is not None else ""
    return name, Cell((info.record.git.get("head") or "")[:_SHORT], "faint")


def _row(info: CheckpointInfo) -> tuple[str, ...]:
    record = info.record
    return (
        record.id,
        info.label or "",
        record.kind,
        info.session,
        str(record.turn),
        record.created_at,
        str(record.files),
        str(record.added_bytes),
        record.prompt,
    )


class CheckpointView(NamedTuple):
    profile: str
    checkpoint: CheckpointInfo
    files: list[tuple[str, TreeEntry]]
    conversation: MessageList

    def document(self) -> dict[str, Any]:
        record = self.checkpoint.record
        return {
            "profile": self.profile,
            "checkpoint": document(self.checkpoint),
            "files": [
                {"path": path, "kind": entry.what, "mode": f"{entry.mode:04o}", "bytes": entry.size}
                for path, entry in self.files
            ],
            "unkept": [{"path": path, "reason": reason} for path, reason in _unkept(record)],
            "excluded": record.exclude,
            "not_covered": record.not_covered,
            "not_covered_count": record.not_covered_count,
            "messages": [entry._asdict() for entry in self.conversation.messages],
        }

    def print(self) -> None:
        record = self.checkpoint.record
        rows = [
            ("Checkpoint", record.id),
            ("Label", self.checkpoint.label or "none"),
            ("Kind", record.kind),
            ("Session", f"{self.checkpoint.session}, turn {record.turn}, {counted(record.message_count, 'message')}"),
            ("Made", f"{record.created_at} ({ago(record.created_at)})"),
            ("Before it", self.checkpoint.parent or "nothing"),
            ("Files", _files(record)),
        ]
        if record.exclude:
            rows.append(("Left out", ", ".join(record.exclude)))
        if self.checkpoint.project is not None:
            rows.append(("Project", home(self.checkpoint.project)))
        if record.git:
            rows.append(("Git", f"{record.git['head'] or 'no commit'}, {record.git['branch'] or 'no branch'}"))
        for label, value in rows:
            print(f"{label + ':':<13}{printable(value)}")
        for path, reason in shown_unkept(record):
            print(f"Not stored:  {printable(path) or 'the workspace'} ({printable(reason)})")
        for path in record.not_covered:
            print(f"Not covered: {printable(path)}")
        if (remainder := record.not_covered_count - len(record.not_covered)) > 0:
            print(f"Not covered: {counted(remainder, 'other path')}")
        print()
        for path, entry in self.files:
            print(f"{entry.kind.decode()} {entry.mode:04o} {entry.size:>10} {printable(path)}")
        print()
        print_conversation(self.conversation)


def _files(record: Record) -> str:
    if record.has_lost_files:
        return "lost; a repair could not recover them"
    return f"{record.files} of {size(record.bytes)}, {size(record.added_bytes)} added"


def _unkept(record: Record) -> list[list[str]]:
    if record.has_lost_files:
        return [["", "its files are lost"]]
    return shown_unkept(record)


def shown_unkept(record: Record) -> list[list[str]]:
    """The unkept entries of a checkpoint, with their paths as the user sees them."""
    if not record.project or not record.unkept:
        return record.unkept
    from deepctl.store import workspaces

    return workspaces.shown_unkept(record)


class CheckpointSaveView(NamedTuple):
    profile: str
    checkpoint: CheckpointInfo

    def document(self) -> dict[str, Any]:
        unkept = [{"path": path, "reason": reason} for path, reason in shown_unkept(self.checkpoint.record)]
        return {"profile": self.profile, "checkpoint": document(self.checkpoint), "unkept": unkept}

    def print(self) -> None:
        label = f" labelled {self.checkpoint.label}" if self.checkpoint.label else ""
        if is_terminal(sys.stdout):
            record = self.checkpoint.record
            print_sentence(
                f"Saved checkpoint {record.id}{label}: {counted(record.files, 'file')}, {size(record.bytes)}."
            )
        else:
            print(self.checkpoint.record.id)
        print_unkept(shown_unkept(self.checkpoint.record))


def print_unkept(unkept: Sequence[Sequence[str]]) -> None:
    """Print the files that a checkpoint could not store."""
    for path, reason in list(unkept)[:5]:
        notice(f"Not stored: {path or 'the workspace'} ({reason}).")
    if len(unkept) > 5:
        notice(f"Not stored: {len(unkept) - 5} more; `deepctl checkpoints show` lists them.")


class CheckpointLabelView(NamedTuple):
    profile: str
    checkpoint: CheckpointInfo

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "checkpoint": document(self.checkpoint)}

    def print(self) -> None:
        label = self.checkpoint.label
        identity = self.checkpoint.record.id
        print_sentence(
            f"Checkpoint {identity} now has the label {label}."
            if label
            else f"Checkpoint {identity} no longer has a label."
        )


class CheckpointForkView(NamedTuple):
    profile: str
    session: str
    checkpoint: CheckpointInfo

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "session": self.session, "checkpoint": document(self.checkpoint)}

    def print(self) -> None:
        record = self.checkpoint.record
        print_sentence(f"Session {self.session} starts with the conversation of {record.id}, turn {record.turn}.")
        workspace_note = "The workspace did not change."
        if is_conversation():
            # A chat continues in the new session by itself, and says so.
            notice(workspace_note)
        else:
            notice(f"{workspace_note} `deepctl chat --user {self.profile} --session {self.session}` continues it.")


class CheckpointRemovalView(NamedTuple):
    profile: str
    dry_run: bool
    removal: CheckpointRemoval

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "removed": [record.id for record in self.removal.records],
            "bytes": self.removal.bytes,
            "left": [record.id for record in self.removal.records_left],
            "bytes_left": self.removal.bytes_left,
        }

    def print(self) -> None:
        if not self.removal.records and not self.removal.bytes:
            print("Nothing to remove.")
        elif not self.removal.records:
            print_sentence(
                f"There are no checkpoints to remove; freed {size(self.removal.bytes)} from earlier removals."
            )
        else:
            self._print_removed()
        if self.removal.is_blocked and self.removal.records:
            notice(
                "Some of the remaining data is damaged (`deepctl checkpoints verify` lists it), so no other "
                "space is freed."
            )
        if self.removal.records_left:
            not_removed = counted(len(self.removal.records_left), "checkpoint")
            notice(f"The disk is full: {not_removed} could not be removed yet. Run the same command again to continue.")
        if self.removal.bytes_left:
            notice(
                f"The disk is full: {size(self.removal.bytes_left)} more can be freed only by writing new packs. "
                "Free some space elsewhere; the next prune or remove does it."
            )

    def _print_removed(self) -> None:
        for record in reversed(self.removal.records) if not is_terminal(sys.stdout) else ():
            print("\t".join([record.id, record.kind, record.created_at, printable(record.prompt)]))
        if is_terminal(sys.stdout):
            rows = [
                (
                    record.id[:_SHORT],
                    Cell(record.kind, _KINDS.get(record.kind, "")),
                    ago(record.created_at),
                    record.prompt,
                )
                for record in reversed(self.removal.records)
            ]
            table(("CHECKPOINT", "KIND", "WHEN", "PROMPT"), rows)
        count_text = counted(len(self.removal.records), "checkpoint")
        amount = size(self.removal.bytes)
        print_sentence(
            f"Would remove {count_text} and free {amount}."
            if self.dry_run
            else f"Removed {count_text} and freed {amount}."
        )


class VerificationView(NamedTuple):
    profile: str
    result: VerificationResult

    def document(self) -> dict[str, Any]:
        result = self.result
        return {
            "profile": self.profile,
            "checkpoints": result.checkpoints,
            "objects": result.objects,
            "bytes": result.bytes,
            "damaged": [_problem(problem) for problem in result.problems],
            "notes": result.notes,
        }

    def print(self) -> None:
        result = self.result
        for problem in result.problems:
            print(f"Damaged: {printable(problem.id or problem.file)}: {printable(problem.reason)}")
        for note in result.notes:
            notice(note)
        summary = f"{counted(result.checkpoints, 'checkpoint')} and {counted(result.objects, 'object')}"
        verdict = f"{counted(len(result.problems), 'problem')}." if result.problems else "nothing is damaged."
        print_sentence(f"{summary}, {size(result.bytes)} read: {verdict}")


class CheckpointImportView(NamedTuple):
    profile: str
    session: str
    checkpoints: list[CheckpointInfo]
    damaged: list[CheckpointProblem]

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "session": self.session,
            "checkpoints": [document(info) for info in self.checkpoints],
            "damaged": [_problem(problem) for problem in self.damaged],
        }

    def print(self) -> None:
        print_sentence(f"Imported {counted(len(self.checkpoints), 'checkpoint')} into session {self.session}.")
        for problem in self.damaged:
            notice(f"Left out: {problem.reason}")
