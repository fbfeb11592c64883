"""The line at a terminal that can draw: prompt, typed text, completion menu and toolbar, by prompt_toolkit.

Everything is drawn below the cursor, and the terminal is asked nothing: the answer to a question about the cursor would
reach whatever reads next. Only attributes are used, no colours.

This is our own assembly of prompt_toolkit's parts. Its `PromptSession` was tried: see `Drawing`.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deepctl.cli import tty_modes
from deepctl.cli.repl import clusters, keys, terminal
from deepctl.cli.repl.clusters import with_stand_ins
from deepctl.cli.repl.keys import HINT, DoubleCtrlC
from deepctl.cli.repl.status import Toolbar, fit_toolbar
from deepctl.cli.repl.turn_line import PromptQueue, TurnLine, interrupt_turn
from deepctl.errors import DeepctlError, Terminated
from deepctl.output.render import cells, has_colour, printable
from deepctl.unicode import whole

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.enums import EditingMode
    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.history import History
    from prompt_toolkit.layout import Dimension, Layout
    from prompt_toolkit.output import Output

_ESCAPE_SECONDS = 0.1
_SEQUENCE_SECONDS = 0.5
_ESCAPE_WAIT_SECONDS = 0.3
"""During a turn, Esc stops the answer after this time without a key that it could belong to."""
_RESUMED_SECONDS = 1.0
_MENU_LINES = 8
_TOOLBAR_MIN_LINES = 4
"""Lines a window must have for a toolbar."""
_MAX_LINE = 20_000
"""Characters of the longest line that is drawn."""


class ScreenReader:
    """Reads one line after the other."""

    def __init__(
        self,
        history: History,
        completions: Completer,
        toolbar: Callable[[], Toolbar],
        prompt: Callable[[], str],
        double_ctrl_c: DoubleCtrlC,
        notices: deque[str],
        queue: PromptQueue,
        is_vi: Callable[[], bool],
    ) -> None:
        self._notices = notices
        self._is_vi = is_vi
        self._double_ctrl_c = double_ctrl_c
        self._queue = queue
        self._descriptor = sys.stdin.fileno()
        self._before: list[object] | None = None
        self._resumed_at = 0.0
        self._keyboard = keys.keyboard()
        self._buffer: Buffer = keys.line_buffer(history, completions, self._send)
        self._has_draft = False
        """Whether the line has text that was typed during a turn."""
        stdout = terminal.output(sys.stdout)
        view = Drawing(self._buffer, prompt, stdout.get_size, double_ctrl_c, toolbar, queue)
        self._application = self._make_application(view, stdout)
        self._application.key_bindings = keys.bindings(
            self._buffer, double_ctrl_c, queue, self._handed_over, self._tell
        )
        self._application.key_processor.before_key_press += lambda _: double_ctrl_c.key()

        self._turn_application: Application[str | None] | None = None

        def during_turn(output: Output) -> Application[str | None]:
            application = self._make_application(Drawing(self._buffer, prompt, output.get_size), output)
            application.key_bindings = keys.turn_bindings(self._buffer, queue, interrupt_turn)
            application.timeoutlen = _ESCAPE_WAIT_SECONDS
            self._turn_application = application
            return application

        def keep(typed: bytes) -> None:
            keys.store(self._keyboard, typed.decode(errors="replace"), send=False)

        self._turn_line = TurnLine(during_turn, self._feed_typed_ahead, keep, queue, lambda: self._buffer.text)

    def _make_application(self, view: Drawing, output: Output) -> Application[str | None]:
        from prompt_toolkit.output import ColorDepth

        application = terminal.application(
            layout=view.layout(),
            style=terminal.style(has_colour(sys.stdout)),
            color_depth=ColorDepth.DEPTH_1_BIT,
            include_default_pygments_style=False,
            reverse_vi_search_direction=True,
            terminal_size_polling_interval=None,
            input=self._keyboard,
            output=output,
            editing_mode=self._editing_mode(),
        )
        application.ttimeoutlen = _ESCAPE_SECONDS
        application.timeoutlen = _SEQUENCE_SECONDS
        return application

    def _editing_mode(self) -> EditingMode:
        from prompt_toolkit.enums import EditingMode

        return EditingMode.VI if self._is_vi() else EditingMode.EMACS

    @property
    def text(self) -> str:
        """The text of the line."""
        return whole(self._buffer.text)

    def turn_line(self) -> TurnLine:
        """The line for a turn that begins now."""
        if not self._has_draft:
            self._buffer.reset()
            self._has_draft = True
        if self._turn_application is not None:
            self._turn_application.editing_mode = self._editing_mode()
        return self._turn_line

    async def read(self, text: str) -> str | None:
        """One entry, or `None` if it was stopped; the terminal is as before afterwards, however this ends.

        `text` is put into the line, before text that was typed during the last turn.

        Raises what Ctrl-C and Ctrl-D raise, and `Terminated(SIGHUP)` if the terminal is gone.
        """
        from prompt_toolkit.document import Document

        self._application.editing_mode = self._editing_mode()
        typed = self._buffer.text if self._has_draft else ""
        if text or not self._has_draft:
            text = keys.clean_paste(text)
            self._buffer.reset(Document(f"{text}\n{typed}" if text and typed else text or typed))
        self._has_draft = False
        return await self._run(self._feed_typed_ahead)

    async def show(self, entry: str) -> None:
        """Draw an entry as if it had been sent from the line. The text in the line stays."""
        from prompt_toolkit.document import Document

        draft = self._buffer.document if self._has_draft else Document()
        self._buffer.reset(Document(entry))
        try:
            # It exits before a key is handled.
            await self._run(lambda: self._application.exit(result=None))
        finally:
            self._buffer.reset(draft)
            self._has_draft = True

    async def _run(self, begin: Callable[[], None]) -> str | None:
        self._before = tty_modes.attributes(self._descriptor)
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        self._application.erase_when_done = False
        try:
            keys.raw(self._descriptor)
            # After a turn that was stopped, an entry that was typed ahead is not sent by itself.
            if keys.take_typed_ahead(self._keyboard, self._before, send=not self._double_ctrl_c.armed):
                self._application.output.write_raw("\r\x1b[K")
            self.show_notices()
            return await self._application.run_async(pre_run=begin, set_exception_handler=False, handle_sigint=False)
        except EOFError:
            if self._keyboard.closed:
                raise Terminated(signal.SIGHUP) from None
            raise
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENXIO, errno.EBADF):
                raise Terminated(signal.SIGHUP) from None
            raise
        finally:
            tty_modes.set_attributes(self._descriptor, self._before)

    def _feed_typed_ahead(self) -> None:
        """Feed the keys that were typed ahead after the history is loaded: prompt_toolkit would feed them before."""
        from prompt_toolkit.application import get_app
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead

        ahead = get_typeahead(self._keyboard)
        application = get_app()

        def feed() -> None:
            if application.is_done:
                store_typeahead(self._keyboard, ahead)
                return
            application.key_processor.feed_multiple(ahead)
            application.key_processor.process_keys()

        self._buffer.load_history_if_not_yet_loaded()
        asyncio.get_running_loop().call_soon(feed)

    def _send(self, buffer: Buffer) -> bool:
        """Enter: during a turn, the text is queued; otherwise it is the entry. Returns whether it stays in the line."""
        if self._application.is_running:
            self._application.exit(result=whole(buffer.text))
            return True
        if self._queue.add(whole(buffer.text)):
            interrupt_turn()
        return False

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A failure in a key binding or while drawing ends the line like any other error."""
        error = context.get("exception")
        self._leave(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))

    def _leave(self, error: BaseException | None) -> None:
        future = self._application.future
        if future is None or future.done():
            return
        self._application.erase_when_done = error is None
        if error is None:
            self._application.exit(result=None)
        else:
            self._application.exit(exception=error)

    def stop(self) -> None:
        """End `read`, which returns `None`; the line is erased."""
        self._leave(None)

    def ctrl_c(self) -> None:
        """A SIGINT that no key sent means the same as the key."""
        from prompt_toolkit.key_binding import KeyPress
        from prompt_toolkit.keys import Keys

        context = self._application.context
        if context is not None and self._application.is_running:
            self._application.key_processor.feed(KeyPress(Keys.ControlC, "\x03"))
            context.copy().run(self._application.key_processor.process_keys)

    def refresh(self) -> None:
        """Draw what changed."""
        self._application.invalidate()

    def _tell(self, line: str) -> None:
        """Show a line above this one."""
        self._notices.append(line)
        self.show_notices()

    def show_notices(self) -> None:
        """Print the notices that were handed in above the line."""
        if not self._notices:
            return
        output = self._application.output
        terminal.erase(self._application)
        dim, plain = ("\x1b[2m", "\x1b[0m") if has_colour(sys.stdout) else ("", "")
        while self._notices:
            output.write_raw(dim)
            output.write(self._notices.popleft())
            output.write_raw(f"{plain}\r\n")
        output.flush()
        self._application.invalidate()

    @contextmanager
    def _handed_over(self) -> Iterator[None]:
        """Meanwhile another program has the terminal, set as it was before."""
        terminal.erase(self._application)
        try:
            with tty_modes.shell_mode():
                yield
        finally:
            self._resumed_at = asyncio.get_running_loop().time()
            self._draw_again()

    def resumed(self) -> None:
        """The process continues after it was stopped. Another program may have set the terminal meanwhile."""
        if asyncio.get_running_loop().time() - self._resumed_at > _RESUMED_SECONDS:
            self._draw_again()

    def _draw_again(self) -> None:
        keys.raw(self._descriptor)
        self._application.renderer.reset()
        self._application.invalidate()


class Drawing:
    """How the line and what is around it look in a window of `size`.

    Hand-written, because `PromptSession` has a fixed layout. It hides the toolbar if it does not know the height below
    the cursor, which only the terminal could tell. It reserves eight lines for the completion menu, however few
    completions there are, and leaves the toolbar below these lines until the entry is sent.
    """

    def __init__(
        self,
        buffer: Buffer,
        prompt: Callable[[], str],
        size: Callable[[], Size],
        double_ctrl_c: DoubleCtrlC | None = None,
        toolbar: Callable[[], Toolbar] | None = None,
        queue: PromptQueue | None = None,
    ) -> None:
        """During a turn, there is neither a toolbar nor a queue here, and Ctrl-C does not leave."""
        self._buffer = buffer
        self._toolbar = toolbar
        self._prompt = prompt
        self._double_ctrl_c = double_ctrl_c
        self._size = size
        self._queue = queue

    def layout(self) -> Layout:
        """The layout, with the line in focus."""
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
        line_control = BufferControl(
            self._buffer,
            input_processors=[
                HighlightIncrementalSearchProcessor(),
                HighlightSelectionProcessor(),
                TabsProcessor(char1=" ", char2=" "),
                clusters.processor(),
            ],
            include_default_input_processors=False,
            search_buffer_control=search,
            preview_search=True,
        )
        huge = Condition(self._is_huge)
        summary = Window(FormattedTextControl(self._summary), dont_extend_height=True, wrap_lines=True)
        line = Window(line_control, get_line_prefix=self._prefix, wrap_lines=True, dont_extend_height=True)
        is_searching = has_focus(search)
        bar = Window(FormattedTextControl(self._bar), height=1, dont_extend_height=True)
        queue = Window(FormattedTextControl(self._queued), dont_extend_height=True)
        rows = [
            ConditionalContainer(queue, Condition(lambda: bool(self._queue)) & ~is_done),
            ConditionalContainer(line, ~is_searching & ~huge),
            ConditionalContainer(summary, ~is_searching & huge),
            ConditionalContainer(Window(search, dont_extend_height=True), is_searching),
            ConditionalContainer(bar, Condition(self._has_bar) & ~is_done),
            # Room for the menu, which covers it and the toolbar.
            ConditionalContainer(Window(height=self._room), ~is_done),
        ]
        menu = CompletionsMenu(max_height=_MENU_LINES, scroll_offset=1, extra_filter=has_focus(self._buffer))
        is_scrolled = Condition(lambda: self._completion_count() > _MENU_LINES)
        if isinstance(menu.content, Window):
            menu.content.right_margins = [ConditionalMargin(ScrollbarMargin(), is_scrolled)]
        self._dimension = Dimension
        return Layout(FloatContainer(HSplit(rows), [Float(menu, xcursor=True, ycursor=True)]), line)

    def _queued(self) -> StyleAndTextTuples:
        """The entries that wait for Enter."""
        rows = self._queue.rows(self._columns() - 1) if self._queue is not None else []
        return [("class:toolbar", with_stand_ins("\n".join(rows[: max(self._size().rows - _TOOLBAR_MIN_LINES, 0)])))]

    def _room(self) -> Dimension:
        return self._dimension(min=0, preferred=min(_MENU_LINES, self._completion_count()))

    def _completion_count(self) -> int:
        state = self._buffer.complete_state
        return len(state.completions) if state is not None else 0

    def _is_huge(self) -> bool:
        """Whether a line is so long that drawing it would take seconds at every key."""
        return len(self._buffer.text) > _MAX_LINE and max(map(len, self._buffer.document.lines)) > _MAX_LINE

    def _summary(self) -> StyleAndTextTuples:
        text = self._buffer.text
        lines = f"{text.count(chr(10)) + 1:,} lines, " if "\n" in text else ""
        words = f"({lines}{len(text):,} characters: too long to be shown)"
        return [*self._prefix(0, 0), ("class:toolbar", words)]

    def _columns(self) -> int:
        return self._size().columns

    def _prefix(self, line: int, row: int) -> StyleAndTextTuples:
        prompt = printable(self._prompt())
        # A prompt that leaves no room is shortened.
        if cells(prompt) > self._columns() // 2:
            prompt = "> "
        return [("class:prompt", with_stand_ins(prompt) if line == row == 0 else " " * cells(prompt))]

    def _has_bar(self) -> bool:
        rows = self._size().rows
        return self._toolbar is not None and (rows >= _TOOLBAR_MIN_LINES or (self._has_hint() and rows > 1))

    def _has_hint(self) -> bool:
        return self._double_ctrl_c is not None and self._double_ctrl_c.armed

    def _bar(self) -> StyleAndTextTuples:
        # One column stays free: terminals differ in what they do after the last.
        width = self._columns() - 1
        if self._has_hint():
            return [("class:hint", HINT[:width])]
        if self._toolbar is None or self._completion_count():
            return []  # the menu covers it, but not its end
        mode = _vi_mode()
        try:
            bar = fit_toolbar(self._toolbar(), width - len(mode))
        except (DeepctlError, OSError):
            bar = ""
        return [("class:hint", mode[:width]), ("class:toolbar", with_stand_ins(bar))]


def _vi_mode() -> str:
    """The mode of vi in which the line is, with the gap before the rest of the toolbar; empty in Emacs mode."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.enums import EditingMode
    from prompt_toolkit.filters import vi_insert_mode, vi_replace_mode, vi_selection_mode

    if get_app().editing_mode != EditingMode.VI:
        return ""
    modes = {"VISUAL": vi_selection_mode, "INSERT": vi_insert_mode, "REPLACE": vi_replace_mode}
    return f"{next((name for name, is_on in modes.items() if is_on()), 'NORMAL')}   "
