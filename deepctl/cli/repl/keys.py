"""What the keys of the line editor do, beyond what prompt_toolkit's Emacs keys do."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from deepctl.cli.repl import clusters
from deepctl.cli.repl.completer import wanted
from deepctl.cli.repl.double_ctrl_c import DoubleCtrlC
from deepctl.cli.repl.external_editor import edited
from deepctl.cli.repl.input import cleaned, whole
from deepctl.cli.repl.plain_input import continues
from deepctl.errors import Interrupted
from deepctl.output.text import printable

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from deepctl.cli.repl.screen import ScreenLine


def is_remembered(entry: str) -> bool:
    """Whether an entry goes into the history: not if it begins with a space, as in shells."""
    return bool(entry.strip()) and not entry.startswith(" ")


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
    want = wanted(line.document.text_before_cursor, ())
    return want is not None


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
