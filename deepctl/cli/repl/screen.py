"""The line at a real terminal: prompt, what is typed, completions, and the toolbar under it, drawn by prompt_toolkit.

Nothing is drawn but below where the cursor stands, and no question is put to the terminal (prompt_toolkit's for the
position of the cursor would be answered into whatever reads next). Only attributes are used, no colours of our own.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deepctl.cli import tty_modes
from deepctl.cli.repl import clusters, input, redraw
from deepctl.cli.repl.completer import context
from deepctl.cli.repl.double_ctrl_c import DoubleCtrlC
from deepctl.cli.repl.drawing import Drawing, style
from deepctl.cli.repl.external_editor import edited
from deepctl.cli.repl.input import cleaned, whole
from deepctl.cli.repl.plain_input import continues, is_remembered
from deepctl.cli.repl.status import Toolbar
from deepctl.errors import Interrupted, Terminated
from deepctl.output.terminal_caps import has_colour
from deepctl.output.text import printable

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_ESCAPE_SECONDS = 0.1
_SEQUENCE_SECONDS = 0.5
_RESUMED_SECONDS = 1.0


class ScreenLine:
    """One line after the other; `read` gives what was typed."""

    def __init__(
        self,
        history: History,
        completions: Completer,
        toolbar: Callable[[], Toolbar],
        prompt: Callable[[], str],
        leaving: DoubleCtrlC,
        told: deque[str],
    ) -> None:
        self._told = told
        self._leaving = leaving
        self._descriptor = sys.stdin.fileno()
        self._before: list[object] | None = None
        self._back = 0.0
        self._keys = input.keyboard()
        self._buffer: Buffer = line_buffer(history, completions, self._send)
        self._application = self._made(toolbar, prompt, leaving)
        self._application.key_bindings = bindings(self, self._buffer, leaving)
        self._application.key_processor.before_key_press += lambda _: leaving.key()

    def _made(
        self, toolbar: Callable[[], Toolbar], prompt: Callable[[], str], leaving: DoubleCtrlC
    ) -> Application[str | None]:
        from prompt_toolkit.output import ColorDepth

        output = redraw.output(sys.stdout)
        drawing = Drawing(self._buffer, toolbar, prompt, leaving, output.get_size)
        application = redraw.application(
            layout=drawing.layout(),
            style=style(has_colour(sys.stdout)),
            color_depth=ColorDepth.DEPTH_1_BIT,
            include_default_pygments_style=False,
            reverse_vi_search_direction=True,
            terminal_size_polling_interval=None,
            input=self._keys,
            output=output,
        )
        application.ttimeoutlen = _ESCAPE_SECONDS
        application.timeoutlen = _SEQUENCE_SECONDS
        return application

    @property
    def text(self) -> str:
        """What is in the line."""
        return input.whole(self._buffer.text)

    async def read(self, text: str) -> str | None:
        """One entry, or `None` if it was stopped; the terminal is as before afterwards, however this ends.

        Raises what the keys of leaving raise, and `Terminated(SIGHUP)` if the terminal is gone.
        """
        from prompt_toolkit.document import Document

        self._before = tty_modes.attributes(self._descriptor)
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        self._application.erase_when_done = False
        try:
            input.raw(self._descriptor)
            # What was meant to follow an answer is not sent after one that was stopped.
            if input.take_typed_ahead(self._keys, self._before, send=not self._leaving.armed):
                self._application.output.write_raw("\r\x1b[K")
            self._buffer.reset(Document(input.cleaned(text)))
            self.show_told()
            return await self._application.run_async(
                pre_run=self._begin, set_exception_handler=False, handle_sigint=False
            )
        except EOFError:
            if self._keys.closed:
                raise Terminated(signal.SIGHUP) from None
            raise
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENXIO, errno.EBADF):
                raise Terminated(signal.SIGHUP) from None
            raise
        finally:
            tty_modes.set_attributes(self._descriptor, self._before)

    def _begin(self) -> None:
        """Let what was typed ahead find the history: prompt_toolkit would feed it before that is loaded."""
        from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead

        ahead = get_typeahead(self._keys)

        def feed() -> None:
            if self._application.is_done:
                store_typeahead(self._keys, ahead)
                return
            self._application.key_processor.feed_multiple(ahead)
            self._application.key_processor.process_keys()

        self._buffer.load_history_if_not_yet_loaded()
        asyncio.get_running_loop().call_soon(feed)

    def _send(self, buffer: Buffer) -> bool:
        self._application.exit(result=input.whole(buffer.text))
        return True

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """Something failed behind a key or while drawing: it ends the line like any other error."""
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
        """End `read`, which returns `None`; what is on the screen of the line goes."""
        self._leave(None)

    def ctrl_c(self) -> None:
        """SIGINT from elsewhere means what the key means."""
        from prompt_toolkit.key_binding import KeyPress
        from prompt_toolkit.keys import Keys

        context = self._application.context
        if context is not None and self._application.is_running:
            self._application.key_processor.feed(KeyPress(Keys.ControlC, "\x03"))
            context.copy().run(self._application.key_processor.process_keys)

    def refresh(self) -> None:
        """Draw anew what changed."""
        self._application.invalidate()

    def tell(self, words: str) -> None:
        """Show a line above this one."""
        self._told.append(words)
        self.show_told()

    def show_told(self) -> None:
        """Print what was told above the line."""
        if not self._told:
            return
        output = self._application.output
        redraw.erase(self._application)
        dim, plain = ("\x1b[2m", "\x1b[0m") if has_colour(sys.stdout) else ("", "")
        while self._told:
            output.write_raw(dim)
            output.write(self._told.popleft())
            output.write_raw(f"{plain}\r\n")
        output.flush()
        self._application.invalidate()

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """The terminal is somebody else's meanwhile, set as it was before."""
        redraw.erase(self._application)
        try:
            with tty_modes.plain():
                yield
        finally:
            self._back = asyncio.get_running_loop().time()
            self._draw_again()

    def resumed(self) -> None:
        """The process goes on after it was stopped: whoever had the terminal may have set it otherwise."""
        if asyncio.get_running_loop().time() - self._back > _RESUMED_SECONDS:
            self._draw_again()

    def _draw_again(self) -> None:
        input.raw(self._descriptor)
        self._application.renderer.reset()
        self._application.invalidate()


def line_buffer(history: History, completions: Completer, send: Callable[[Buffer], bool]) -> Buffer:
    """What is typed. It completes by itself where a command or a path is being typed, and nowhere else."""
    from prompt_toolkit.filters import Condition

    class Line(clusters.buffer()):  # type: ignore[misc]
        def append_to_history(self) -> None:
            if is_remembered(self.text):
                super().append_to_history()

    line: Buffer = Line(
        completer=completions,
        history=history,
        accept_handler=send,
        complete_while_typing=Condition(lambda: _completes(line)),
    )
    return line


def _completes(line: Buffer) -> bool:
    typed = context(line.document.text_before_cursor, ())
    return typed is not None


async def _insert_what_is_certain(line: Buffer) -> None:
    """The only offer, or what all have in common; where that is nothing, the menu, and then the first of it."""
    # Not the buffer's own, which does nothing while it is completing by itself.
    from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix

    document = line.document
    event = CompleteEvent(completion_requested=True)
    offered = [one async for one in line.completer.get_completions_async(document, event)]
    if line.document != document:
        return
    if len(offered) == 1:
        line.apply_completion(offered[0])
    elif common := get_common_complete_suffix(document, offered):
        line.insert_text(common, fire_event=False)
        line.start_completion()
    elif line.complete_state is not None and line.complete_state.completions:
        line.complete_next()
    elif offered:
        line.start_completion()


def bindings(screen: ScreenLine, line: Buffer, leaving: DoubleCtrlC) -> KeyBindings:
    """The keys of `line` on `screen`."""
    from prompt_toolkit.filters import has_completions, has_focus
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()
    here = has_focus(line)

    @keys.add("enter", filter=here)
    def _send(event: KeyPressEvent) -> None:
        state = line.complete_state
        if state is not None and state.complete_index is not None:
            line.complete_state = None
        elif line.document.is_cursor_at_the_end_of_line and continues(line.document.current_line_before_cursor):
            line.delete_before_cursor()
            line.newline(copy_margin=False)
        else:
            line.validate_and_handle()

    @keys.add(Keys.Vt100MouseEvent)
    def _no_mouse(event: KeyPressEvent) -> None:
        # prompt_toolkit takes a colour's escape sequence, as in a paste that is not marked as one, for a mouse.
        return

    @keys.add("escape", "enter", filter=here)
    @keys.add("c-j", filter=here)
    def _new_line(event: KeyPressEvent) -> None:
        line.newline(copy_margin=False)

    @keys.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        text = cleaned(event.data)
        if not here():
            text = text.partition("\n")[0]
        # No event: what is pasted is no beginning of a command.
        event.current_buffer.insert_text(text, fire_event=False)

    @keys.add("c-c", filter=here)
    def _ctrl_c(event: KeyPressEvent) -> None:
        if leaving.is_late():
            return
        if line.text:
            line.reset()
        elif leaving.ctrl_c():
            event.app.exit(exception=Interrupted("Interrupted."))

    @keys.add("c-d", filter=here)
    def _ctrl_d(event: KeyPressEvent) -> None:
        if line.text:
            line.delete(event.arg)
        else:
            event.app.exit(exception=EOFError())

    @keys.add("tab", filter=here)
    def _complete(event: KeyPressEvent) -> None:
        state = line.complete_state
        if state is not None and state.complete_index is not None:
            line.complete_next()
        else:
            event.app.create_background_task(_insert_what_is_certain(line))

    @keys.add("escape", filter=here & has_completions)
    def _no_completion(event: KeyPressEvent) -> None:
        line.cancel_completion()

    @keys.add("c-z", filter=here)
    def _suspend(event: KeyPressEvent) -> None:
        with screen.handed_over():
            # The whole group, as the terminal itself does.
            os.kill(0, signal.SIGTSTP)

    @keys.add("c-x", "c-e", filter=here)
    def _edit(event: KeyPressEvent) -> None:
        from prompt_toolkit.document import Document

        with screen.handed_over():
            text, failure = edited(whole(line.text))
        line.document = Document(text)
        if failure is not None:
            screen.tell(printable(failure))

    return keys
