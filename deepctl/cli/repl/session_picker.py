"""Choosing a session at the terminal: the list at the top, the last exchange of the selected one below."""

from __future__ import annotations

import sys
from functools import partial
from typing import NamedTuple

from deepctl.cli.repl.picker import Picker, PickerTexts
from deepctl.domain import session_choice
from deepctl.errors import DeepctlError, Interrupted, NoSession, UsageError
from deepctl.layout import ProfilePaths
from deepctl.output.render import ago, cells, fit, home, is_dumb, is_terminal, printable, terminal_size
from deepctl.output.sessions_transcript import exchange_lines
from deepctl.quantities import counted
from deepctl.store import session_catalogue, session_ends
from deepctl.store.session_ends import SessionEnds

_WIDE = 72
"""Cells of a line that has all values; a narrower one has the name and the title."""
_MAX_NAME = 20
_SHORTEST = 12


class _SessionChoice(NamedTuple):
    """A session; `ends` is `None` if it cannot be read, `directory` is empty for the private workspace."""

    name: str
    directory: str
    ends: SessionEnds | None

    @property
    def title(self) -> str:
        return printable(self.ends.title) if self.ends is not None else "(damaged)"

    @property
    def length(self) -> str:
        """Its turns, and the age of the last one."""
        last = self.ends.last if self.ends is not None else None
        return f"{counted(last.turn, 'turn')}, {ago(last.at)}" if last is not None else "0 turns"


def check_terminal(option: str) -> None:
    """Raises `UsageError` where the list cannot be drawn. `option` is how it was asked for."""
    if is_dumb() or not all(map(is_terminal, (sys.stdin, sys.stdout, sys.stderr))):
        raise UsageError(
            f"{option} shows a list to choose from, which needs a terminal.",
            "`deepctl sessions list` lists the sessions, and `deepctl chat --session NAME` continues one.",
        )


def pick(profile: ProfilePaths, project: str | None = None, *, is_private: bool = False) -> str:
    """Let the user choose; returns the name of the session.

    Only sessions of the project with the id `project` are shown, or with `is_private` only those of the private
    workspace. Raises `Interrupted` if the user leaves, and `NoSession` without sessions.
    """
    directories = session_choice.directories(profile)
    choices = []
    for name in session_catalogue.newest_first(profile, project):
        try:
            record = session_catalogue.find(profile, name)
            directory = directories.get(record.project.id, record.project.path) if record.project is not None else ""
            choice = _SessionChoice(name, home(directory), session_ends.read(record))
        except (DeepctlError, OSError):
            choice = _SessionChoice(name, "", None)
        if not (is_private and choice.directory):
            choices.append(choice)
    if not choices:
        raise NoSession(profile.name)
    name_width = min(_MAX_NAME, max(cells(choice.name) for choice in choices))
    texts = PickerTexts("Continue which session? (Type to filter, Enter selects, Esc leaves)", "Session? (type, Enter)")
    chosen = Picker(choices, texts, partial(_words, name_width), _preview, search=_search_text).run()
    if chosen is None:
        raise Interrupted("No session was chosen.")
    return chosen.name


def _search_text(choice: _SessionChoice) -> str:
    last = choice.ends.last if choice.ends is not None else None
    return f"{choice.name} {choice.title} {choice.directory} {last.prompt if last is not None else ''}"


def _words(name_width: int, choice: _SessionChoice, room: int) -> str:
    name = _padded(fit(choice.name, name_width), name_width)
    if room < _WIDE:
        return f"{name}  {choice.title}"
    end = f"{choice.length}{f', {printable(choice.directory)}' if choice.directory else ''}"
    title_room = max(room - name_width - 4 - cells(end), _SHORTEST)
    return f"{name}  {_padded(fit(choice.title, title_room), title_room)}  {end}"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _preview(choice: _SessionChoice) -> list[str]:
    if choice.ends is None:
        return ["This session is damaged. `deepctl checkpoints verify` shows the damage."]
    place = f"in {printable(choice.directory)}" if choice.directory else "in the private workspace"
    lines = ["", f"{choice.length}, {place}"]
    if (last := choice.ends.last) is None:
        return [*lines, "No message yet."]
    lines += exchange_lines(last.prompt, last.answer, *terminal_size())
    return [*lines, *([f"({last.problem})"] if last.problem is not None else [])]
