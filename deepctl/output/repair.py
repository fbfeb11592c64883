"""The view of a repair: the damage, the losses of each session, the damaged originals, and the remaining problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.layout import MEMORY_DIRECTORY, ProfilePaths
from deepctl.output.render import print_sentence, printable, visible
from deepctl.quantities import counted
from deepctl.store import repair_report

if TYPE_CHECKING:
    from deepctl.store.repair import Repair
    from deepctl.store.repair_report import Loss

_SHORT = 8
_SHOWN = 6
"""The number of ids, turns or files in a line; --json has all."""
_DAMAGED = {
    "ledger": "the list of checkpoints",
    "session": "records of sessions",
    repair_report.MISSING_SESSION: "a session is missing",
    "message log": "message logs",
    "pack": "packs with contents of files",
    repair_report.STRAY_PACK: "packs that are not in the list of checkpoints",
    "length of the ledger": "the recorded length of the list of checkpoints",
    "position of a checkpoint": "positions of checkpoints in message logs",
    repair_report.USAGE: "the usage",
}
"""Kinds of damage."""
_FOLLOWING = (repair_report.STRAY_PACK, "length of the ledger", "position of a checkpoint")
"""Kinds that are reported only if there is no other, because they follow from others."""
_LOST_WITH = {
    repair_report.LEDGER: "ledger",
    repair_report.LEDGER_LINE: "ledger",
    repair_report.MESSAGE: "message log",
    repair_report.EARLIER_MESSAGES: "message log",
    repair_report.ALL_MESSAGES: "message log",
    repair_report.CONVERSATION: "message log",
    repair_report.SESSION: "session",
    repair_report.FILE: "pack",
    repair_report.ALL_FILES: "pack",
    repair_report.USAGE_LINE: repair_report.USAGE,
}
"""The kind of damage of a loss."""


class RepairView(NamedTuple):
    """A repair, done or as a preview."""

    paths: ProfilePaths
    dry_run: bool
    repair: Repair

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.paths.name,
            "dry_run": self.dry_run,
            "repaired": [item._asdict() for item in self.repair.repaired],
            "lost": [item._asdict() for item in self.repair.lost],
            "moved": self.repair.moved,
            "damaged": [item._asdict() for item in self.repair.problems],
        }

    def print(self) -> None:
        print_sentence(self._summary())
        for heading, lines in self._losses().items():
            print(f"\n{heading}:")
            for line in lines:
                print_sentence(f"  {line}")
        if self.repair.lost or self.repair.moved:
            print()
        if any(loss.what in (repair_report.FILE, repair_report.ALL_FILES) for loss in self.repair.lost):
            print_sentence("These files are lost only in checkpoints. The workspace does not change.")
        self._print_moved()
        problem_count = len(self.repair.problems)
        if self.dry_run:
            print_sentence(f"Nothing has changed yet. verify after the repair: {counted(problem_count, 'problem')}.")
        else:
            print_sentence(f"verify: {counted(problem_count, 'problem')}.")

    def _summary(self) -> str:
        name = self.paths.name
        kinds = {item.what for item in self.repair.repaired} | {_LOST_WITH[item.what] for item in self.repair.lost}
        if not kinds:
            return f"Profile {name} is not damaged; there is nothing to repair."
        descriptions = {kind: words for kind, words in _DAMAGED.items() if kind in kinds}
        main = [words for kind, words in descriptions.items() if kind not in _FOLLOWING]
        summary = join_words(main or list(descriptions.values()))
        if self.dry_run:
            loss = "the following would be lost:" if self.repair.lost else "nothing would be lost."
            return f"Profile {name} is damaged ({summary}). A repair would fix it; {loss}"
        loss = "this is lost:" if self.repair.lost else "nothing is lost."
        return f"Profile {name} was damaged ({summary}) and is repaired; {loss}"

    def _losses(self) -> dict[str, list[str]]:
        """The losses, in lines under the names of sessions; equal losses of several sessions are listed once."""
        groups: dict[tuple[str, ...], list[Loss]] = {}
        usage = [loss for loss in self.repair.lost if loss.what == repair_report.USAGE_LINE]
        for loss in self.repair.lost:
            if loss not in usage:
                groups.setdefault(tuple(loss.sessions), []).append(loss)
        of_usage = {"In the usage": [f"{counted(len(usage), 'line')}, of one request each"]} if usage else {}
        return of_usage | {
            self._heading(sessions): list(_lines(losses))
            for sessions, losses in sorted(groups.items(), key=lambda group: (not group[0], group[0]))
        }

    def _heading(self, sessions: tuple[str, ...]) -> str:
        if not sessions:
            return "In an unknown session"
        presence = [os.path.isdir(os.path.join(self.paths.sessions, name)) for name in sessions]
        names = [name if is_there else f"{name} (gone)" for name, is_there in zip(sessions, presence, strict=True)]
        return f"In session{'' if len(names) == 1 else 's'} {join_words([printable(name) for name in names])}"

    def _print_moved(self) -> None:
        if not self.repair.moved:
            return
        verb = "would be kept" if self.dry_run else "are kept"
        directory = printable(self.paths.lost_and_found)
        print_sentence(f"Damaged originals and leftover data {verb} in {directory}:")
        for path in dict.fromkeys(self.repair.moved):
            print(f"  {printable(os.path.basename(path))}")


def _lines(losses: list[Loss]) -> Iterator[str]:
    """One line for everything of a kind."""
    kinds: dict[str, list[Loss]] = {}
    for loss in losses:
        kinds.setdefault(loss.what, []).append(loss)
    if repair_report.LEDGER in kinds:
        kinds.pop(repair_report.LEDGER_LINE, None)
    for kind, say in _SENTENCES.items():
        if kind in kinds:
            yield from say(kinds[kind])


def _ledger_lines(losses: list[Loss]) -> Iterator[str]:
    at_end = [loss for loss in losses if loss.id == "at its end"]
    packs = [loss for loss in losses if loss.id.endswith(".pack")]
    lines = [loss for loss in losses if loss.id.startswith("line ")]
    checkpoints = [loss for loss in losses if loss not in (*at_end, *packs, *lines)]
    if checkpoints:
        yield f"{counted(len(checkpoints), 'checkpoint')} of the list: {_ids(checkpoints)}"
    if lines:
        yield (
            f"{counted(len(lines), 'line')} of the list of checkpoints. Each was a checkpoint, a label or a "
            "rewind; it is unknown which"
        )
    if at_end:
        yield "the newest checkpoints, labels and rewinds; their number is unknown"
    elif packs:
        yield f"checkpoints that the list no longer contains; {counted(len(packs), 'pack')} of their files are kept"


def _ledger(losses: list[Loss]) -> Iterator[str]:
    yield f"all checkpoints, labels and rewinds: {losses[0].reason}; the messages of sessions are not affected"


def _messages(losses: list[Loss]) -> Iterator[str]:
    yield f"{counted(len(losses), 'message')}{_turns(losses, ' of ')}; the other messages are kept"


def _earlier(losses: list[Loss]) -> Iterator[str]:
    first = [f"turn {loss.turns[0]}" for loss in losses if loss.turns]
    yield f"messages from before {join_words(first[:_SHOWN])}" if first else "messages from before the start of its log"


def _all_messages(losses: list[Loss]) -> Iterator[str]:
    turns = _turns(losses, "") or "a whole log"
    yield f"the messages of {turns}: a message log is missing; the session continues with the remaining messages"


def _session(losses: list[Loss]) -> Iterator[str]:
    yield f"everything: {losses[0].reason.rstrip('.')}; the remaining data is in lost+found"


def _conversations(losses: list[Loss]) -> Iterator[str]:
    yield (
        f"the conversation of {counted(len(losses), 'checkpoint')}{_turns(losses)}: {_ids(losses)}; "
        "`checkpoints rewind ID --only files` still works"
    )


def _all_files(losses: list[Loss]) -> Iterator[str]:
    yield (
        f"all files of {counted(len(losses), 'checkpoint')}{_turns(losses)}: {_ids(losses)}; "
        "`checkpoints rewind ID --only conversation` still works"
    )


def _files(losses: list[Loss]) -> Iterator[str]:
    paths: dict[str, list[Loss]] = {}
    for loss in losses:
        paths.setdefault(loss.path or "", []).append(loss)
    for path, group in list(paths.items())[:_SHOWN]:
        kind = "memory" if path == MEMORY_DIRECTORY or path.startswith(f"{MEMORY_DIRECTORY}/") else "file or directory"
        yield f"{kind} {visible(path)} in {counted(len(group), 'checkpoint')}{_turns(group)}: {_ids(group)}"
    if len(paths) > _SHOWN:
        yield f"{counted(len(paths) - _SHOWN, 'more file')} in checkpoints; --json lists all"


_SENTENCES: dict[str, Callable[[list[Loss]], Iterator[str]]] = {
    repair_report.SESSION: _session,
    repair_report.ALL_MESSAGES: _all_messages,
    repair_report.EARLIER_MESSAGES: _earlier,
    repair_report.MESSAGE: _messages,
    repair_report.CONVERSATION: _conversations,
    repair_report.ALL_FILES: _all_files,
    repair_report.FILE: _files,
    repair_report.LEDGER: _ledger,
    repair_report.LEDGER_LINE: _ledger_lines,
}


def _turns(losses: list[Loss], before: str = " of ") -> str:
    """The turns of a loss, as words that follow it."""
    turns = sorted({turn for loss in losses for turn in loss.turns if turn > 0})
    if not turns:
        return ""
    if len(turns) > 2 and turns[-1] - turns[0] == len(turns) - 1:
        return f"{before}turns {turns[0]} to {turns[-1]}"
    return f"{before}turn{'' if len(turns) == 1 else 's'} {join_words([str(turn) for turn in turns])}"


def _ids(losses: list[Loss]) -> str:
    ids = list(dict.fromkeys(printable(loss.id)[:_SHORT] for loss in losses))
    remainder = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + remainder


def join_words(words: list[str]) -> str:
    """Words as a list in a sentence."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])
