"""A list at the terminal to choose from, with a preview of the selected choice below: checkpoints, and sessions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from deepctl.cli.repl import terminal
from deepctl.cli.repl.clusters import with_stand_ins
from deepctl.errors import DeepctlError
from deepctl.output.render import cells, fit, printable
from deepctl.unicode import fold

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding import KeyPressEvent

_T = TypeVar("_T")

_SHOWN = 12
"""Choices that are shown at once, at most."""


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
