"""How a wipe looks: what goes, or went, part by part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepctl.domain.wipe.wipe_plan import WipePart, WipePlan
from deepctl.output.render import notice
from deepctl.output.text import printable, visible
from deepctl.quantities import counted, size

if TYPE_CHECKING:
    from deepctl.domain.wipe.copies import Copies


class Wiped(NamedTuple):
    """The wipe of one profile, done or only foretold.

    `copies` are those that stay elsewhere, `None` where that is no question. `leaves_rewound` says that turns that were
    rewound stay in message logs, `history_stays` that what was typed stays in the prompt history, `is_default` that
    the settings name the profile, `rewinding` that a rewind has to be finished first. What was `seen` before is not
    listed again.
    """

    plan: WipePlan
    dry_run: bool
    copies: Copies | None = None
    container: str | None = None
    history_stays: bool = False
    is_default: bool = False
    rewinding: bool = False
    leaves_rewound: bool = False
    seen: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.plan.profile,
            "dry_run": self.dry_run,
            "removed": [_document(part) for part in self.plan.parts],
            "files": self.plan.files,
            "bytes": self.plan.bytes,
            "container": self.container,
            "copies": self.copies._asdict() if self.copies is not None else None,
            "notes": self._notes(),
        }

    def print(self) -> None:
        name = printable(self.plan.profile)
        if self.plan.is_nothing:
            print(f"There is nothing to wipe: profile {name} has no {' and no '.join(self.plan.only)}.")
        elif self.seen:
            print(f"Wiped {_what(self.plan)}: {counted(self.plan.files, 'file')}, {size(self.plan.bytes)}.")
        else:
            print(f"{'Would wipe' if self.dry_run else 'Wiped'} {_what(self.plan)}:")
            for line in _lines(self.plan):
                print(line)
        if self.container is not None:
            print(f"Removed the container {self.container}.")
        for note in [] if self.seen else self._notes():
            notice(note)

    def announce(self) -> list[str]:
        """What a person reads before the question whether to go on."""
        what = f"{'Parts of p' if self.plan.only else 'P'}rofile {printable(self.plan.profile)}"
        verb = "are" if self.plan.only else "is"
        return [f"{what} {verb} about to be wiped:", *_lines(self.plan), *self._replace(dry_run=True)._notes()]

    def _notes(self) -> list[str]:
        return [*self._about_what_goes(), *self._about_what_stays()]

    def _about_what_goes(self) -> list[str]:
        notes = []
        if "sessions" in self.plan.only and any(part.part == "checkpoints" for part in self.plan.parts):
            notes.append("Checkpoints go with the sessions: each is a point in a conversation and holds its prompt.")
        if uncounted := sum(part.weight.uncounted for part in self.plan.parts):
            what = "A directory" if uncounted == 1 else f"{uncounted:,} directories"
            notes.append(f"{what} could not be looked into; what is there goes, too, and is not counted.")
        if self.rewinding:
            notes.append("A rewind was interrupted; it is finished before anything is removed.")
        return notes

    def _about_what_stays(self) -> list[str]:
        notes = []
        profile = printable(self.plan.profile)
        stays = "Still there: " if not self.dry_run else "What stays: "
        if self.copies is not None and (self.copies.checkpoints or self.copies.logs):
            found = self.copies
            held = []
            if found.checkpoints:
                held.append(
                    f"copies in {counted(found.checkpoints, 'checkpoint')} of {counted(found.sessions, 'session')}"
                )
            if found.logs:
                held.append(f"whatever messages of {counted(found.logs, 'session')} quote of it")
            notes.append(f"{stays}{', and '.join(held)}; `deepctl wipe --only sessions --user {profile}` removes both.")
        if self.leaves_rewound:
            notes.append(f"{stays}turns that were rewound, in message logs; `--only sessions` removes them.")
        if self.history_stays:
            notes.append(f"{stays}what was typed, in the prompt history; `--only history` removes it.")
        if self.is_default:
            notes.append(f"The settings still name {profile}: `deepctl config unset default_user` takes that out.")
        return notes


class AllWiped(NamedTuple):
    """The wipe of every profile."""

    profiles: Sequence[Wiped]
    dry_run: bool

    def document(self) -> dict[str, Any]:
        return {
            "dry_run": self.dry_run,
            "profiles": [one.document() for one in self.profiles],
            "files": sum(one.plan.files for one in self.profiles),
            "bytes": sum(one.plan.bytes for one in self.profiles),
        }

    def print(self) -> None:
        if not self.profiles:
            print("There is nothing to wipe: there are no profiles.")
        for one in self.profiles:
            one.print()


class Finished(NamedTuple):
    """An earlier wipe, which had been interrupted and is done now."""

    profile: str

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "dry_run": False,
            "removed": [],
            "files": 0,
            "bytes": 0,
            "container": None,
            "copies": None,
            "notes": [self._sentence],
        }

    @property
    def _sentence(self) -> str:
        return f"Finished the wipe of profile {printable(self.profile)}, which had been interrupted."

    def print(self) -> None:
        print(self._sentence)


def _document(part: WipePart) -> dict[str, Any]:
    weight = part.weight
    found: dict[str, Any] = {"part": part.part, "path": part.path, "files": weight.files, "bytes": weight.bytes}
    if weight.uncounted:
        found["uncounted"] = weight.uncounted
    return found


def _what(plan: WipePlan) -> str:
    return f"{'parts of ' if plan.only else ''}profile {printable(plan.profile)}"


def _lines(plan: WipePlan) -> list[str]:
    """A line a part, but for those with nothing in them, and one for all."""
    shown = [part for part in plan.parts if part.weight.files or part.weight.uncounted]
    rows = [
        (_label(part, plan), counted(part.weight.files, "file"), size(part.weight.bytes), _path(part, plan))
        for part in shown
    ]
    if len(rows) > 1:
        rows.append(("in all", counted(plan.files, "file"), size(plan.bytes), ""))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]


def _label(part: WipePart, plan: WipePlan) -> str:
    """Its part, but for the cache, which goes with the checkpoints and is not of them alone."""
    return "cache" if part.path == os.path.join(plan.path, "cache") else part.part


def _path(part: WipePart, plan: WipePlan) -> str:
    """A path as it is called in the profile."""
    shown = visible(part.path.removeprefix(f"{plan.path}{os.sep}"))
    is_rest = any(other.path.startswith(f"{part.path}{os.sep}") for other in plan.parts)
    return f"{shown} (all the rest)" if is_rest else shown
