"""What is drawn of the line: prompt, what is typed, completions, and the toolbar under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deepctl.cli.repl.clusters import drawn, processor
from deepctl.cli.repl.double_ctrl_c import HINT, DoubleCtrlC
from deepctl.cli.repl.status import Toolbar, fitted
from deepctl.errors import DeepctlError
from deepctl.output.text import cells, printable

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.layout import Dimension, Layout
    from prompt_toolkit.styles import Style

_MENU = 8
"""Lines of the menu of completions."""
_LOWEST = 4
"""Lines a window must have for a toolbar."""
_LONGEST = 20_000
"""Characters of a line that is drawn."""


class Drawing:
    """How a line and what is around it look in a window of `size`."""

    def __init__(
        self,
        buffer: Buffer,
        toolbar: Callable[[], Toolbar],
        prompt: Callable[[], str],
        leaving: DoubleCtrlC,
        size: Callable[[], Size],
    ) -> None:
        self._buffer = buffer
        self._toolbar = toolbar
        self._prompt = prompt
        self._leaving = leaving
        self._size = size

    def layout(self) -> Layout:
        """The whole of it, with the line in focus."""
        from prompt_toolkit.buffer import Buffer
        from prompt_toolkit.filters import Condition, has_focus, is_done
        from prompt_toolkit.layout import (
            BufferControl,
            CompletionsMenu,
            ConditionalContainer,
            Dimension,
            Float,
            FloatContainer,
            FormattedTextControl,
            HSplit,
            Layout,
            SearchBufferControl,
            Window,
        )
        from prompt_toolkit.layout.margins import ConditionalMargin, ScrollbarMargin
        from prompt_toolkit.layout.processors import (
            HighlightIncrementalSearchProcessor,
            HighlightSelectionProcessor,
            ReverseSearchProcessor,
            TabsProcessor,
        )

        search = SearchBufferControl(Buffer(multiline=False), input_processors=[ReverseSearchProcessor()])
        typed = BufferControl(
            self._buffer,
            input_processors=[
                HighlightIncrementalSearchProcessor(),
                HighlightSelectionProcessor(),
                TabsProcessor(char1=" ", char2=" "),
                processor(),
            ],
            include_default_input_processors=False,
            search_buffer_control=search,
            preview_search=True,
        )
        huge = Condition(self._is_huge)
        summary = Window(FormattedTextControl(self._summary), dont_extend_height=True, wrap_lines=True)
        line = Window(typed, get_line_prefix=self._prefix, wrap_lines=True, dont_extend_height=True)
        searching = has_focus(search)
        bar = Window(FormattedTextControl(self._bar), height=1, dont_extend_height=True)
        rows = [
            ConditionalContainer(line, ~searching & ~huge),
            ConditionalContainer(summary, ~searching & huge),
            ConditionalContainer(Window(search, dont_extend_height=True), searching),
            ConditionalContainer(bar, Condition(self._has_bar) & ~is_done),
            # Room for the menu, which lies over it and over the toolbar.
            ConditionalContainer(Window(height=self._room), ~is_done),
        ]
        menu = CompletionsMenu(max_height=_MENU, scroll_offset=1, extra_filter=has_focus(self._buffer))
        scrolled = Condition(lambda: self._offered() > _MENU)
        if isinstance(menu.content, Window):
            menu.content.right_margins = [ConditionalMargin(ScrollbarMargin(), scrolled)]
        self._dimension = Dimension
        return Layout(FloatContainer(HSplit(rows), [Float(menu, xcursor=True, ycursor=True)]), line)

    def _room(self) -> Dimension:
        return self._dimension(min=0, preferred=min(_MENU, self._offered()))

    def _offered(self) -> int:
        state = self._buffer.complete_state
        return len(state.completions) if state is not None else 0

    def _is_huge(self) -> bool:
        """Whether a line in it is so long that drawing it would take seconds at every key."""
        return len(self._buffer.text) > _LONGEST and max(map(len, self._buffer.document.lines)) > _LONGEST

    def _summary(self) -> StyleAndTextTuples:
        text = self._buffer.text
        lines = f"{text.count(chr(10)) + 1:,} lines, " if "\n" in text else ""
        words = f"({lines}{len(text):,} characters: too long to be shown)"
        return [*self._prefix(0, 0), ("class:toolbar", words)]

    def _columns(self) -> int:
        return self._size().columns

    def _prefix(self, line: int, wrapped: int) -> StyleAndTextTuples:
        prompt = printable(self._prompt())
        # What leaves no room for anything is not drawn at all.
        if cells(prompt) > self._columns() // 2:
            prompt = "> "
        return [("class:prompt", drawn(prompt) if line == wrapped == 0 else " " * cells(prompt))]

    def _has_bar(self) -> bool:
        rows = self._size().rows
        return rows >= _LOWEST or (self._leaving.armed and rows > 1)

    def _bar(self) -> StyleAndTextTuples:
        # One column stays free: terminals differ in what they do after the last.
        width = self._columns() - 1
        if self._leaving.armed:
            return [("class:hint", HINT[:width])]
        if self._offered():
            return []  # the menu lies over it, and would leave ends of it
        try:
            return [("class:toolbar", drawn(fitted(self._toolbar(), width)))]
        except (DeepctlError, OSError):
            return []


def style(has_colours: bool) -> Style:
    """Attributes only. What is chosen is reversed even where there are no colours, or nobody could tell."""
    from prompt_toolkit.styles import Style

    dim, bold = ("dim", "bold") if has_colours else ("", "")
    return Style.from_dict(
        {
            "prompt": bold,
            "toolbar": dim,
            "hint": bold,
            "search": "underline",
            "incsearch.current": "underline noreverse",
            "completion-menu": "",
            "completion-menu.completion.current": "reverse",
            "completion-menu.meta.completion": dim,
            "completion-menu.meta.completion.current": "reverse",
            "scrollbar.background": "",
            "scrollbar.button": "reverse",
        }
    )
