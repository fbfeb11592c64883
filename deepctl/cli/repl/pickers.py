"""Choosing a checkpoint or a session at the terminal: the list at the top, a preview of the selected one below."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from deepctl.cli.repl import terminal
from deepctl.cli.repl.clusters import with_stand_ins
from deepctl.domain import session_choice
from deepctl.domain.settings import Settings
from deepctl.errors import DeepctlError, Interrupted, NoSession, NotFound, UsageError
from deepctl.layout import ProfilePaths
from deepctl.output.render import (
    Progress,
    ago,
    cells,
    fit,
    home,
    is_dumb,
    is_terminal,
    printable,
    terminal_size,
    visible,
)
from deepctl.output.rewind import preview_line
from deepctl.output.sessions_transcript import exchange_lines
from deepctl.quantities import counted
from deepctl.store import lookup, rewind, session_catalogue, session_ends
from deepctl.store.ledger import Ledger
from deepctl.store.records import Record, SessionRecord
from deepctl.store.repository import ReadOnlyRepository, Repository
from deepctl.store.rewind import RewindConflicts, RewindRequest
from deepctl.store.session_ends import SessionEnds
from deepctl.unicode import fold

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyPressEvent

_T = TypeVar("_T")

_SHOWN = 12
"""Choices that are shown at once, at most."""
_PREVIEWED = 12
_SHORTEST_PROMPT = 16
_WIDE = 72
"""Cells of a line that has all values; a narrower one has the name and the title."""
_MAX_NAME = 20
_SHORTEST_TITLE = 12


def pick_checkpoint(
    profile: ProfilePaths, in_force: Settings, session: str | None, only: str, force: bool, exact: bool, merge: bool
) -> str:
    """Let the user choose; returns the id. `in_force` are the profile's settings.

    Raises `Interrupted` if the user leaves, `NotFound` without checkpoints.
    """
    coverage = in_force.coverage()
    with Repository.read_only(profile, coverage=coverage) as reader:
        current = lookup.current_session(reader.paths, session)
        line = reader.ledger.line_of(reader.ledger.head(current))
        records = [record for record in line if record.kind != "tool"]
        if not records:
            raise NotFound(f"Session {current.name!r} has no checkpoints.", code="checkpoint_not_found")
        # The default of a script: the start of the last turn. That checkpoint may have been removed.
        try:
            began = lookup.find_checkpoint(reader.paths, reader.ledger, "~1", current.name)
        except DeepctlError:
            began = records[0]
        record = Picker(
            records,
            PickerTexts(
                f"Rewind session {current.name} to (Enter selects, Esc leaves):", "Where? (Enter selects, Esc leaves)"
            ),
            partial(_checkpoint_line, reader.ledger),
            partial(_changes, reader, current, (only, force, exact, merge)),
            at=next((number for number, record in enumerate(records) if record.id == began.id), 0),
        ).run()
        if record is None:
            raise Interrupted("No checkpoint was chosen, so nothing was rewound.")
        return record.id


def _checkpoint_line(ledger: Ledger, record: Record, room: int) -> str:
    label = ledger.labels.get(record.id)
    kind = "" if record.kind == "turn" else f" ({record.kind})"
    label_text = f" {printable(label)}" if label else ""
    before, after = f"{record.id[:8]} turn {record.turn}{kind}{label_text}, ", f", {ago(record.created_at)}"
    if not record.prompt:
        return f"{before}the beginning{after}"
    prompt = fit(printable(record.prompt), max(room - cells(f"{before}after ''{after}"), _SHORTEST_PROMPT))
    return f"{before}after '{prompt}'{after}"


def _changes(
    reader: ReadOnlyRepository, session: SessionRecord, options: tuple[str, bool, bool, bool], record: Record
) -> list[str]:
    with Progress("Looking") as progress:
        reader.snapshots = reader.snapshots._replace(report=progress)
        plan = rewind.preview(reader, session, RewindRequest(record, *options))
    changes = rewind.differences(reader, plan)
    files = f"{len(changes)} file{'' if len(changes) == 1 else 's'} would change"
    turns = f"{plan.turns_removed} turn{'' if plan.turns_removed == 1 else 's'} would leave the conversation"
    lines = [f"{files}, {turns}."]
    if plan.refusal is not None and not isinstance(plan.refusal, RewindConflicts):
        lines.append(f"REFUSED: {printable(plan.refusal.message)}")
    elif plan.conflicts:
        paths = ", ".join(visible(os.fsdecode(plan.workspace.shown(path))) for path in plan.conflicts[:3])
        remainder = f" and {len(plan.conflicts) - 3} more" if len(plan.conflicts) > 3 else ""
        lines.append(f"CONFLICT, needs --force: changed by another author after the agent: {paths}{remainder}")
    lines += [f"  {preview_line(change)}" for change in changes[:_PREVIEWED]]
    if len(changes) > _PREVIEWED:
        lines.append(f"  … and {len(changes) - _PREVIEWED} more")
    if plan.kept_paths:
        verbs = "differs and stays" if len(plan.kept_paths) == 1 else "differ and stay"
        lines.append(f"  {counted(len(plan.kept_paths), 'other file')} {verbs}: not changed by this session")
    return lines


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


def pick_session(profile: ProfilePaths, project: str | None = None, *, is_private: bool = False) -> str:
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
    target = Picker(choices, texts, partial(_session_line, name_width), _last_exchange, search=_search_text).run()
    if target is None:
        raise Interrupted("No session was chosen.")
    return target.name


def _search_text(choice: _SessionChoice) -> str:
    last = choice.ends.last if choice.ends is not None else None
    return f"{choice.name} {choice.title} {choice.directory} {last.prompt if last is not None else ''}"


def _session_line(name_width: int, choice: _SessionChoice, room: int) -> str:
    name = _padded(fit(choice.name, name_width), name_width)
    if room < _WIDE:
        return f"{name}  {choice.title}"
    end = f"{choice.length}{f', {printable(choice.directory)}' if choice.directory else ''}"
    title_room = max(room - name_width - 4 - cells(end), _SHORTEST_TITLE)
    return f"{name}  {_padded(fit(choice.title, title_room), title_room)}  {end}"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))


def _last_exchange(choice: _SessionChoice) -> list[str]:
    if choice.ends is None:
        return ["This session is damaged. `deepctl checkpoints verify` shows the damage."]
    place = f"in {printable(choice.directory)}" if choice.directory else "in the private workspace"
    lines = ["", f"{choice.length}, {place}"]
    if (last := choice.ends.last) is None:
        return [*lines, "No message yet."]
    lines += exchange_lines(last.prompt, last.answer, *terminal_size())
    return [*lines, *([f"({last.problem})"] if last.problem is not None else [])]


class PickerTexts(NamedTuple):
    """The heading of a list, and a shorter one for a narrow window."""

    heading: str
    short_heading: str


class Picker(Generic[_T]):
    """One choice of several. Arrow keys move, Enter selects, Escape and Ctrl-C leave.

    `words` returns the line of a choice for a number of cells, `preview` the lines below the list; both are printable.
    With `search`, what is typed is a filter: the choices stay whose text contains all words. Without it, j and k move
    and q leaves. `at` is the place of the first selection.
    """

    def __init__(
        self,
        choices: Sequence[_T],
        texts: PickerTexts,
        words: Callable[[_T, int], str],
        preview: Callable[[_T], list[str]],
        *,
        at: int = 0,
        search: Callable[[_T], str] | None = None,
    ) -> None:
        self._all = list(choices)
        self._choices = self._all
        self._texts = texts
        self._words = words
        self._preview_of = preview
        self._at = at
        self._search = search
        self._filter = ""
        self._previews: dict[int, list[str]] = {}

    def run(self) -> _T | None:
        """The choice of the person; `None` if the person leaves."""
        from prompt_toolkit.application import Application
        from prompt_toolkit.input import create_input
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.layout import FormattedTextControl, HSplit, Layout, Window

        keys = KeyBindings()

        def move(by: int) -> None:
            self._at = max(0, min(len(self._choices) - 1, self._at + by))

        far = len(self._all)
        steps = {"up": -1, "down": 1, "pageup": -_SHOWN, "pagedown": _SHOWN, "home": -far, "end": far}
        steps |= {"c-p": -1, "c-n": 1} if self._search is not None else {"k": -1, "j": 1}
        for key, step in steps.items():
            keys.add(key)(lambda event, step=step: move(step))

        @keys.add("enter")
        def _take(event: KeyPressEvent) -> None:
            if self._choices:
                event.app.exit(result=str(self._at))

        def leave(event: KeyPressEvent) -> None:
            event.app.exit(result=None)

        keys.add("escape", eager=True)(leave)
        for key in ("c-c", "c-d") if self._search is not None else ("q", "c-c", "c-d"):
            keys.add(key)(leave)
        if self._search is not None:
            self._add_filter_keys(keys)
        choices = Window(
            FormattedTextControl(self._fragments, focusable=True, show_cursor=False), dont_extend_height=True
        )
        preview = Window(FormattedTextControl(self._preview), dont_extend_height=True, wrap_lines=False)
        application: Application[str | None] = Application(
            layout=Layout(HSplit([choices, preview])),
            key_bindings=keys,
            # Not below the prompt: a terminal that breaks long rows anew would leave some of them after a resize.
            full_screen=True,
            # No polling task: SIGTERM could be raised inside such a task, and would then end only the task.
            terminal_size_polling_interval=None,
            input=create_input(sys.stdin),
            output=terminal.output(sys.stderr),
        )
        place = application.run()
        return None if place is None else self._choices[int(place)]

    def _add_filter_keys(self, keys: object) -> None:
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.keys import Keys

        assert isinstance(keys, KeyBindings)

        @keys.add(Keys.Any)
        @keys.add(Keys.BracketedPaste)
        def _type(event: KeyPressEvent) -> None:
            self._narrow(self._filter + "".join(filter(str.isprintable, event.data)))

        @keys.add("backspace")
        def _erase(event: KeyPressEvent) -> None:
            self._narrow(self._filter[:-1])

        @keys.add("c-u")
        @keys.add("c-w")
        def _clear(event: KeyPressEvent) -> None:
            self._narrow("")

    def _narrow(self, text: str) -> None:
        """Only the choices that contain all words of `text` stay; the selected one stays selected if it is one."""
        assert self._search is not None
        selected = self._choices[self._at] if self._choices else None
        self._filter = text
        words = fold(text).split()
        self._choices = [choice for choice in self._all if all(word in fold(self._search(choice)) for word in words)]
        self._at = next((place for place, choice in enumerate(self._choices) if choice is selected), 0)

    def _fragments(self) -> StyleAndTextTuples:
        heading = self._texts.heading if cells(self._texts.heading) <= _room() else self._texts.short_heading
        fragments: StyleAndTextTuples = [("bold", f"{fit(heading, _room())}\n")]
        if self._filter:
            count = f"{len(self._choices)} of {len(self._all)}"
            typed = fit(f"Filter: {with_stand_ins(printable(self._filter))}", _room() - cells(count) - 2)
            fragments.append(("", f"{typed}  {count}\n"))
        height = self._height()
        first = max(0, min(self._at - height // 2, len(self._choices) - height))
        for number in range(first, min(first + height, len(self._choices))):
            words = self._words(self._choices[number], _room() - 2)
            is_selected = number == self._at
            line = fit(f"{'>' if is_selected else ' '} {words}", _room())
            fragments.append(("reverse" if is_selected else "", f"{with_stand_ins(line)}\n"))
        return fragments

    def _height(self) -> int:
        """The number of choices that fit: at most half of the screen."""
        return max(1, min(_SHOWN, _rows() // 2 - 1 - bool(self._filter)))

    def _preview(self) -> StyleAndTextTuples:
        if not self._choices:
            return [("", "None of them. Backspace removes the last character.")]
        room = max(1, _rows() - self._height() - 2 - bool(self._filter))
        lines = [fit(line, _room()) for line in self._lines(self._choices[self._at])]
        text = "\n".join(lines if len(lines) <= room else [*lines[: room - 1], "  …"])
        return [("", with_stand_ins(text))]

    def _lines(self, choice: _T) -> list[str]:
        key = id(choice)
        if key not in self._previews:
            try:
                self._previews[key] = self._preview_of(choice)
            except (DeepctlError, OSError) as error:
                self._previews[key] = [f"This one cannot be shown: {printable(str(error))}"]
        return self._previews[key]


def _rows() -> int:
    from prompt_toolkit.application import get_app

    return get_app().output.get_size().rows


def _room() -> int:
    """The number of cells of a line. The last cell stays free, because some terminals start a new line there."""
    from prompt_toolkit.application import get_app

    return get_app().output.get_size().columns - 1
