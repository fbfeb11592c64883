"""How rewinds, comparisons and diffs look: what changes, file by file."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.checkpoints import document, print_sentence, short
from deepctl.output.render import is_conversation, notice
from deepctl.output.terminal_caps import has_colour, is_terminal
from deepctl.output.text import printable, printable_lines, visible
from deepctl.quantities import counted
from deepctl.store.lookup import CheckpointInfo

if TYPE_CHECKING:
    from deepctl.store.diff import Comparison, FileDifference
    from deepctl.store.rewind import RewindPlan


_OVERRODE = " (what was there is in the checkpoint before this)"


class Rewound(NamedTuple):
    """A rewind, done or only foretold. `preview` has the files as they are and as they become, `undo` is a command."""

    profile: str
    dry_run: bool
    plan: RewindPlan
    target: CheckpointInfo
    safety: CheckpointInfo | None
    restored: list[bytes]
    deleted: list[bytes]
    kept: list[bytes]
    remarks: list[str]
    preview: list[FileDifference]
    undo: str = ""

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "profile": self.profile,
            "dry_run": self.dry_run,
            "rewound_to": document(self.target),
            "safety": document(self.safety) if self.safety is not None else None,
            "messages_removed": self.plan.messages_removed,
            "turns_removed": self.plan.turns_removed,
            "messages_restored": self.plan.messages_restored,
            "turns_restored": self.plan.turns_restored,
            "prompt": self.plan.undone,
            "files": {
                "restored": _names(self.restored),
                "deleted": _names(self.deleted),
                "kept": _names(self.kept),
                "conflicts": _names(self.plan.conflicts),
            },
        }
        if self.dry_run:
            found["preview"] = [_difference(one) for one in self.preview]
        return found

    def print(self) -> None:
        record = self.target.record
        label = f" ({self.target.label})" if self.target.label else ""
        if self.plan.is_nothing:
            what = "there is nothing of the agent's to take back" if self.kept else "everything is as it was"
            print_sentence(f"Nothing to do since {record.id}{label}: {what}.")
            self._print_paths()
            return
        verb = "Would rewind" if self.dry_run else "Rewound"
        if self.plan.refusal is not None:
            verb = "Would refuse to rewind"
        print_sentence(f"{verb} session {self.plan.session} to {record.id}{label}, turn {record.turn}.")
        removed = self.plan.messages_removed
        if removed:
            leave = "would leave" if self.dry_run else "left"
            turns = self.plan.turns_removed
            print_sentence(f"{counted(turns, 'turn')} ({counted(removed, 'message')}) {leave} the conversation.")
        back = self.plan.messages_restored
        if back:
            come = "would come back" if self.dry_run else "came back"
            print_sentence(f"{counted(self.plan.turns_restored, 'turn')} ({counted(back, 'message')}) {come}.")
        if self.dry_run:
            _print_preview(self.preview)
        else:
            for verb, paths in (("restored", self.restored), ("deleted", self.deleted)):
                for path in paths:
                    remark = _OVERRODE if path in self.plan.conflicts else ""
                    print_sentence(f"  {verb:<9} {visible(os.fsdecode(path))}{remark}")
        self._print_paths()
        for remark in self.remarks:
            notice(remark)
        # A conversation puts it into the line that is typed next.
        if self.plan.undone is not None and (self.dry_run or not is_conversation()):
            print("The prompt that was undone:" if not self.dry_run else "The prompt that would be undone:")
            print("\n".join(f"> {printable(line)}" for line in self.plan.undone.split("\n")))
        if self.safety is not None:
            notice(f"To undo this: `{self.undo}`. Checkpoint {self.safety.record.id} has the state from before it.")

    def _print_paths(self) -> None:
        for path in self.plan.conflicts if self.dry_run else ():
            print_sentence(f"  conflict  {visible(os.fsdecode(path))}")
        for path in self.kept:
            print_sentence(f"  kept      {visible(os.fsdecode(path))} (not as in the checkpoint, and not the agent's)")
        if self.kept and not self.plan.request.exact:
            notice("--exact changes what was kept, too.")


def _names(paths: Sequence[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in paths]


def _difference(one: FileDifference) -> dict[str, Any]:
    return {
        "path": one.path,
        "change": one.change,
        "added_lines": one.added_lines,
        "removed_lines": one.removed_lines,
        "remark": one.remark,
    }


def preview_line(one: FileDifference) -> str:
    """A file with the number of lines added and removed."""
    if one.change == "mode":
        counts = _modes(one)
    elif one.added_lines is None:
        counts = one.remark or ""
    elif any(entry is not None and entry.what == "directory" for entry in (one.before, one.after)):
        counts = "directory"
    else:
        counts = f"+{one.added_lines} -{one.removed_lines}"
    return f"{one.change:<9} {visible(one.path)}  {counts}"


def _modes(one: FileDifference) -> str:
    return f"{one.before.mode:04o} to {one.after.mode:04o}" if one.before and one.after else ""


def _print_preview(preview: Sequence[FileDifference]) -> None:
    for one in preview:
        print(f"  {preview_line(one)}")


class Compared(NamedTuple):
    """A comparison; `before` and `after` are the records of `comparison` with what lists tell of them."""

    profile: str
    comparison: Comparison
    before: CheckpointInfo
    after: CheckpointInfo | None
    stat: bool

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "from": document(self.before),
            "to": document(self.after) if self.after is not None else None,
            "files": [
                _difference(file) | ({} if self.stat else {"diff": file.diff.decode("utf-8", "surrogateescape")})
                for file in self.comparison.differences
            ],
            "turns": {
                "removed": [turn._asdict() for turn in self.comparison.turns_removed],
                "added": [turn._asdict() for turn in self.comparison.turns_added],
            },
            "remark": self.comparison.remark,
        }

    def print(self) -> None:
        if self.comparison.remark is not None:
            notice(self.comparison.remark)
        if is_terminal(sys.stdout) and not (
            self.comparison.differences or self.comparison.turns_removed or self.comparison.turns_added
        ):
            notice("Nothing differs.")
        for sign, turns in (("-", self.comparison.turns_removed), ("+", self.comparison.turns_added)):
            for turn in turns:
                print(f"# {sign} turn {turn.turn}: {printable(short(' '.join(turn.prompt.split()), 100))}")
        if self.stat:
            _print_preview(self.comparison.differences)
            return
        for file in self.comparison.differences:
            _print_difference(file)


def _print_difference(one: FileDifference) -> None:
    name = one.path if one.path.isprintable() else repr(one.path)
    if one.before is not None and one.after is not None and one.before.mode != one.after.mode:
        print(f"# {name}: mode {_modes(one)}")
    if one.change == "type" and one.before is not None and one.after is not None:
        print(f"# {name}: a {one.before.what} became a {one.after.what}")
    elif not one.diff and one.change in ("added", "deleted"):
        entry = one.after or one.before
        print(f"# {name}: {entry.what if entry else ''} {one.change}{f', {one.remark}' if one.remark else ''}")
    elif one.remark:
        print(f"# {name}: {one.remark}")
    print_diff(one.diff)


_COLOURS = {"+": "32", "-": "31", "@": "36"}


def print_diff(diff: bytes) -> None:
    """Print a diff: piped, its exact bytes; at a terminal in colours, with what could move the cursor as escapes."""
    colour = has_colour(sys.stdout)
    if not is_terminal(sys.stdout) and not colour:
        sys.stdout.flush()
        sys.stdout.buffer.write(diff)
        return
    for number, line in enumerate(diff.decode("utf-8", "surrogateescape").split("\n")[:-1]):
        code = _COLOURS.get(line[:1], "") if number > 1 else "1"
        shown = printable_lines(line)
        print(f"\x1b[{code}m{shown}\x1b[0m" if colour and code else shown)
