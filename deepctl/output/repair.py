"""How a repair looks: what was damaged, what each session lost, where damaged originals are, and what is left."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.layout import MEMORY_DIRECTORY, ProfilePaths
from deepctl.output.text import print_sentence, printable, visible
from deepctl.quantities import counted
from deepctl.store import repair_report

if TYPE_CHECKING:
    from deepctl.store.repair import Repair
    from deepctl.store.repair_report import Lost

_SHORT = 8
_SHOWN = 6
"""How many ids, turns or files a line names; --json has all."""
_DAMAGED = {
    "ledger": "the list of checkpoints",
    "session": "records of sessions",
    repair_report.MISSING_SESSION: "a session is missing",
    "message log": "message logs",
    "pack": "packs with contents of files",
    repair_report.STRAY_PACK: "packs that no line of the list of checkpoints names",
    "length of the ledger": "the noted length of the list of checkpoints",
    "position of a checkpoint": "places of checkpoints in message logs",
}
"""What may be damaged."""
_FOLLOWING = (repair_report.STRAY_PACK, "length of the ledger", "position of a checkpoint")
"""Of these, what is only told where there is nothing else: it follows from the others."""
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
}
"""What was damaged where something is lost."""


class Repaired(NamedTuple):
    """A repair, done or only foretold."""

    paths: ProfilePaths
    dry_run: bool
    done: Repair

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.paths.name,
            "dry_run": self.dry_run,
            "repaired": [one._asdict() for one in self.done.repaired],
            "lost": [one._asdict() for one in self.done.lost],
            "moved": self.done.moved,
            "damaged": [one._asdict() for one in self.done.problems],
        }

    def print(self) -> None:
        print_sentence(self._summary())
        for heading, lines in self._losses().items():
            print(f"\n{heading}:")
            for line in lines:
                print_sentence(f"  {line}")
        if self.done.lost or self.done.moved:
            print()
        if any(one.what in (repair_report.FILE, repair_report.ALL_FILES) for one in self.done.lost):
            print_sentence("These files are lost in checkpoints only. The workspace stays as it is.")
        self._print_moved()
        left = len(self.done.problems)
        if self.dry_run:
            print_sentence(f"Nothing has changed yet. After the repair, verify: {counted(left, 'problem')}.")
        else:
            print_sentence(f"verify: {counted(left, 'problem')}.")

    def _summary(self) -> str:
        name = self.paths.name
        kinds = {one.what for one in self.done.repaired} | {_LOST_WITH[one.what] for one in self.done.lost}
        if not kinds:
            return f"Profile {name} is not damaged; there is nothing to repair."
        known = {kind: words for kind, words in _DAMAGED.items() if kind in kinds}
        main = [words for kind, words in known.items() if kind not in _FOLLOWING]
        damaged = listed(main or list(known.values()))
        if self.dry_run:
            loss = "this would be lost:" if self.done.lost else "nothing would be lost."
            return f"Profile {name} is damaged ({damaged}). A repair would mend it; {loss}"
        loss = "this is lost:" if self.done.lost else "nothing is lost."
        return f"Profile {name} was damaged ({damaged}) and is repaired; {loss}"

    def _losses(self) -> dict[str, list[str]]:
        """What is lost, in lines under the names of sessions; what all of several sessions lost is told once."""
        groups: dict[tuple[str, ...], list[Lost]] = {}
        for one in self.done.lost:
            groups.setdefault(tuple(one.sessions), []).append(one)
        return {
            self._heading(sessions): list(_lines(lost))
            for sessions, lost in sorted(groups.items(), key=lambda group: (not group[0], group[0]))
        }

    def _heading(self, sessions: tuple[str, ...]) -> str:
        if not sessions:
            return "In a session that is not known"
        there = [os.path.isdir(os.path.join(self.paths.sessions, name)) for name in sessions]
        names = [name if is_there else f"{name} (gone)" for name, is_there in zip(sessions, there, strict=True)]
        return f"In session{'' if len(names) == 1 else 's'} {listed([printable(name) for name in names])}"

    def _print_moved(self) -> None:
        if not self.done.moved:
            return
        verb = "would be kept" if self.dry_run else "are kept"
        directory = printable(self.paths.lost_and_found)
        print_sentence(f"Damaged originals, and what has no place any more, {verb} in {directory}:")
        for path in dict.fromkeys(self.done.moved):
            print(f"  {printable(os.path.basename(path))}")


def _lines(lost: list[Lost]) -> Iterator[str]:
    """One line for everything of a kind."""
    kinds: dict[str, list[Lost]] = {}
    for one in lost:
        kinds.setdefault(one.what, []).append(one)
    if repair_report.LEDGER in kinds:
        kinds.pop(repair_report.LEDGER_LINE, None)
    for what, say in _SENTENCES.items():
        if what in kinds:
            yield from say(kinds[what])


def _ledger_lines(lost: list[Lost]) -> Iterator[str]:
    at_end = [one for one in lost if one.id == "at its end"]
    packs = [one for one in lost if one.id.endswith(".pack")]
    lines = [one for one in lost if one.id.startswith("line ")]
    known = [one for one in lost if one not in (*at_end, *packs, *lines)]
    if known:
        yield f"{counted(len(known), 'checkpoint')}, gone from the list: {_ids(known)}"
    if lines:
        yield (
            f"{counted(len(lines), 'line')} of the list of checkpoints; each was a checkpoint, a label or a rewind, "
            "and which one cannot be told"
        )
    if at_end:
        yield "the newest checkpoints, labels and rewinds; how many cannot be told"
    elif packs:
        yield f"checkpoints that are not in the list any more; {counted(len(packs), 'pack')} of their files are kept"


def _ledger(lost: list[Lost]) -> Iterator[str]:
    yield f"all checkpoints, labels and rewinds: {lost[0].reason}; the messages of sessions are not in it"


def _messages(lost: list[Lost]) -> Iterator[str]:
    yield f"{counted(len(lost), 'message')}{_turns(lost, ' of ')}; the others are there"


def _earlier(lost: list[Lost]) -> Iterator[str]:
    first = [f"turn {one.turns[0]}" for one in lost if one.turns]
    yield f"messages from before {listed(first[:_SHOWN])}" if first else "messages from before its log began"


def _all_messages(lost: list[Lost]) -> Iterator[str]:
    what = _turns(lost, "") or "a whole log"
    yield f"the messages of {what}: a message log is missing; the session goes on with what is left"


def _session(lost: list[Lost]) -> Iterator[str]:
    yield f"everything: {lost[0].reason.rstrip('.')}; what there is of it is in lost+found"


def _conversations(lost: list[Lost]) -> Iterator[str]:
    yield (
        f"the conversation of {counted(len(lost), 'checkpoint')}{_turns(lost)}: {_ids(lost)}; "
        "`checkpoints rewind ID --only files` still works"
    )


def _all_files(lost: list[Lost]) -> Iterator[str]:
    yield (
        f"all files of {counted(len(lost), 'checkpoint')}{_turns(lost)}: {_ids(lost)}; "
        "`checkpoints rewind ID --only conversation` still works"
    )


def _files(lost: list[Lost]) -> Iterator[str]:
    paths: dict[str, list[Lost]] = {}
    for one in lost:
        paths.setdefault(one.path or "", []).append(one)
    for path, those in list(paths.items())[:_SHOWN]:
        what = "memory" if path == MEMORY_DIRECTORY or path.startswith(f"{MEMORY_DIRECTORY}/") else "file or directory"
        yield f"{what} {visible(path)} in {counted(len(those), 'checkpoint')}{_turns(those)}: {_ids(those)}"
    if len(paths) > _SHOWN:
        yield f"{counted(len(paths) - _SHOWN, 'more file')} in checkpoints; --json names them all"


_SENTENCES: dict[str, Callable[[list[Lost]], Iterator[str]]] = {
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


def _turns(lost: list[Lost], before: str = " of ") -> str:
    """The turns of what is lost, as words that follow it."""
    turns = sorted({turn for one in lost for turn in one.turns if turn > 0})
    if not turns:
        return ""
    if len(turns) > 2 and turns[-1] - turns[0] == len(turns) - 1:
        return f"{before}turns {turns[0]} to {turns[-1]}"
    return f"{before}turn{'' if len(turns) == 1 else 's'} {listed([str(turn) for turn in turns])}"


def _ids(lost: list[Lost]) -> str:
    ids = list(dict.fromkeys(printable(one.id)[:_SHORT] for one in lost))
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


def listed(words: list[str]) -> str:
    """Words as a sentence lists them."""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])
