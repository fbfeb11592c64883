"""How changes to notebooks look: a note added, an edit, lines forgotten."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.memory import document
from deepctl.output.render import notice, say
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import printable, printable_lines

if TYPE_CHECKING:
    from deepctl.domain.memory.changes import MemoryChange
    from deepctl.domain.memory.directory import Notebook
    from deepctl.domain.memory.forget import ForgetRequest, Forgotten, Line


class Added(NamedTuple):
    profile: str
    agent: str
    change: MemoryChange

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "agent": self.agent,
            "file": document(self.change.notebook),
            "checkpoint": self.change.checkpoint.id if self.change.checkpoint is not None else None,
            "notes": self.change.notes,
        }

    def print(self) -> None:
        print(f"Noted in {printable(self.change.notebook.name)}.")
        for note in self.change.notes:
            notice(note)


class Edited(NamedTuple):
    """An edit; `change` is `None` if the person changed nothing, and `notebook` then if there is none still."""

    profile: str
    agent: str
    name: str
    notebook: Notebook | None
    change: MemoryChange | None
    notes: list[str]

    def document(self) -> dict[str, Any]:
        change = self.change
        added, removed = (change.lines or (None, None)) if change is not None else (0, 0)
        return {
            "profile": self.profile,
            "agent": self.agent,
            "file": document(self.notebook) if self.notebook is not None else None,
            "changed": change is not None,
            "merged": change is not None and change.merged,
            "added_lines": added,
            "removed_lines": removed,
            "checkpoint": change.checkpoint.id if change is not None and change.checkpoint is not None else None,
            "notes": self.notes,
        }

    def print(self) -> None:
        name = printable(self.name)
        if self.change is None:
            notice(f"{self.name} was not changed.")
        else:
            lines = f" (+{self.change.lines[0]} -{self.change.lines[1]})" if self.change.lines is not None else ""
            print(f"Changed {name}{lines}.")
            if self.change.merged:
                notice("It had been changed by somebody else meanwhile: both changes are in it.")
        for note in self.notes:
            notice(note)


def _text(line: bytes) -> str:
    """A line of a notebook without its end."""
    return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def line_shown(name: str, number: int, text: str) -> str:
    """A line of a notebook and where it is, with nothing in it that could command a terminal."""
    return f"{printable(name)}:{number}: {printable_lines(text)}"


class LinesForgotten(NamedTuple):
    """The lines that went, or would (`forgotten` is `None`). `is_shown` says that the user has seen them already."""

    profile: str
    agent: str
    wish: ForgetRequest
    lines: list[Line]
    forgotten: Forgotten | None
    undo: str | None
    is_shown: bool = False

    def document(self) -> dict[str, Any]:
        done = self.forgotten
        return {
            "profile": self.profile,
            "agent": self.agent,
            "dry_run": done is None,
            "text": self.wish.text.decode("utf-8", "surrogateescape"),
            "removed": [{"file": one.file, "line": one.line, "text": _text(one.text)} for one in self.lines],
            "checkpoint": done.before.id if done is not None else None,
            "after": done.after.id if done is not None and done.after is not None else None,
            "undo": self.undo,
            "notes": done.notes if done is not None else [],
        }

    def tell(self) -> None:
        """Say on stderr what would go, before a question."""
        for one in self.lines:
            say(line_shown(one.file, one.line, _text(one.text)))

    def print(self) -> None:
        if not self.is_shown or not is_terminal(sys.stdout):
            for one in self.lines:
                print(line_shown(one.file, one.line, _text(one.text)))
        count = len(self.lines)
        files = len({one.file for one in self.lines})
        verb = "Forgot" if self.forgotten is not None else "Would forget"
        where = f"{files} notebook{'' if files == 1 else 's'}"
        print(f"{verb} {count} line{'' if count == 1 else 's'} in {where}.")
        if self.forgotten is None:
            return
        for note in self.forgotten.notes:
            notice(note)
        if self.undo is not None:
            notice("Checkpoints and conversations still have the text. To make memory what it was before:")
            notice(f"  {self.undo}")
        else:
            notice("Checkpoints leave the notebooks out (snapshot.exclude), so nothing brings the lines back.")
