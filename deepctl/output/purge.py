"""How a purge looks: what went, and where the text still stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.output.memory_changes import LinesForgotten, line_shown
from deepctl.output.render import notice, say
from deepctl.output.terminal_caps import is_terminal
from deepctl.output.text import printable, printable_lines
from deepctl.quantities import counted

if TYPE_CHECKING:
    from deepctl.domain.memory.forget import ForgetRequest
    from deepctl.domain.purge.purge import Purged
    from deepctl.domain.purge.report import Place

_SHOWN = 20


def _text(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def question(purged: Purged) -> str:
    """What to ask before a purge."""
    return f"Purge {_summary(purged)}, for good?"


def _summary(purged: Purged) -> str:
    lines = sum(len(one.lines) for one in purged.live)
    parts = [f"{counted(lines, 'line')} in {counted(len(purged.live), 'notebook')}"] if lines else []
    if purged.notebooks:
        versions = counted(purged.notebooks, "version")
        parts.append(f"{versions} of notebooks in {counted(purged.checkpoints, 'checkpoint')}")
    if purged.leftovers:
        parts.append(f"{counted(purged.leftovers, 'content')} that removed checkpoints left")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


_WORDS = {
    "session": ("session {}", "message"),
    "application": ("an application's conversation {}", "message"),
    "file": ("file {}", ""),
    "checkpoint_file": ("file {} in checkpoints", "checkpoint"),
    "prompt_history": ("what was typed ({})", "line"),
    "settings": ("settings ({})", "line"),
    "profile": ("{} in the profile's directory", ""),
    "unread": ("{} cannot be read in full, so it may be there", ""),
}
_LEDGER = {"prompts": "beginnings of prompts", "labels": "labels", "other": "paths and other notes"}


def _shown(place: Place) -> str:
    if place.place == "ledger":
        return f"{_LEDGER[place.name]} in the list of checkpoints: {counted(place.times, 'line')}"
    words, unit = _WORDS[place.place]
    many = f": {counted(place.times, unit)}" if unit else ""
    return f"{words.format(printable(place.name))}{many}"


class LinesPurged(NamedTuple):
    """What was purged, or would be (`dry_run`). `is_shown` says that the user has seen the lines already."""

    profile: str
    agent: str
    wish: ForgetRequest
    purged: Purged
    places: list[Place]
    dry_run: bool
    is_shown: bool = False

    def document(self) -> dict[str, Any]:
        purged = self.purged
        return {
            **self._lines().document(),
            "dry_run": self.dry_run,
            "notes": self._notes(),
            "purged": {
                "checkpoints": purged.checkpoints,
                "notebooks": purged.notebooks,
                "leftovers": purged.leftovers,
                "lines": [{"file": file, "text": _text(line)} for file, line in purged.kept],
            },
            "still_in": [{"place": one.place, "name": one.name, "count": one.times} for one in self.places],
        }

    def _lines(self) -> LinesForgotten:
        from deepctl.domain.memory.forget import Line

        lines = [Line(found.file, number, text) for found in self.purged.live for number, text in found.lines]
        return LinesForgotten(self.profile, self.agent, self.wish, lines, None, None)

    def _notes(self) -> list[str]:
        return [f"Pack {name} cannot be read in full, and stays; it may hold the text." for name in self.purged.unread]

    def tell(self) -> None:
        """Say on stderr what would go, before a question."""
        self._lines().tell()
        for line in self._only_kept():
            say(line)

    def _only_kept(self) -> list[str]:
        """Lines that are in checkpoints and no more in the workspace."""
        live = {(found.file, text) for found in self.purged.live for _, text in found.lines}
        kept = dict.fromkeys((file, _text(line)) for file, line in self.purged.kept if (file, line) not in live)
        return [f"{printable(file)} in checkpoints: {printable_lines(text)}" for file, text in kept]

    def print(self) -> None:
        if not self.is_shown or not is_terminal(sys.stdout):
            for found in self.purged.live:
                for number, text in found.lines:
                    print(line_shown(found.file, number, _text(text)))
            for line in self._only_kept():
                print(line)
        print(f"{'Would purge' if self.dry_run else 'Purged'} {_summary(self.purged)}.")
        for note in self._notes():
            notice(note)
        if self.places:
            print("It would still be in:" if self.dry_run else "It still is in:")
        for place in self.places[:_SHOWN]:
            print(f"  {_shown(place)}")
        if len(self.places) > _SHOWN:
            notice(f"And in {counted(len(self.places) - _SHOWN, 'more place')}; --json names them all.")
        if not self.dry_run:
            notice("The blocks of deleted files are not overwritten: that is the disk's business, and its backups'.")
