"""The keyboard of the line editor: key bindings, pastes, type-ahead, and double Ctrl-C."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from deepctl.cli import editor
from deepctl.cli.repl import clusters
from deepctl.cli.repl.completer import context
from deepctl.errors import Interrupted
from deepctl.output.render import printable
from deepctl.unicode import whole

if TYPE_CHECKING:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.history import History
    from prompt_toolkit.input.vt100 import Vt100Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from deepctl.cli.repl.turn_line import PromptQueue

HINT = "Ctrl-C again leaves, Ctrl-D too."
_SAME_PRESS_SECONDS = 0.7
"""Seconds after a turn was stopped in which Ctrl-C belongs to the press that stopped it."""
READ_BYTES = 65536
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_LINE_ENDS = re.compile("\r\n|[\r\u2028\u2029]")
_NEW_LINE = "\n"
"""Ctrl-J. Escape and Enter mean something else in vi mode."""
_SIGNAL_KEYS = "\x03\x1a\x1c"
"""Ctrl-C, Ctrl-Z and Ctrl-backslash."""
CTRL_D = "\x04"
_PASTE = re.compile("(\x1b\\[200~.*?(?:\x1b\\[201~|\\Z))", re.DOTALL)


class DoubleCtrlC:
    """Whether another Ctrl-C leaves. Ctrl-C on an empty line shows how to leave, and the next Ctrl-C leaves.

    Any other key in between cancels that.
    """

    def __init__(self) -> None:
        self.armed = False
        self._before = False
        self._stopped_at: float | None = None

    def stopped(self) -> None:
        """Ctrl-C has just stopped a turn or a command. The next one leaves, unless it follows at once."""
        self.armed = True
        self._stopped_at = time.monotonic()

    def key(self) -> None:
        """Must be called before a key is handled."""
        self._before, self.armed = self.armed, False

    def sent(self) -> None:
        """An entry was sent."""
        self._stopped_at = None

    def is_late(self) -> bool:
        """Called after `key`: whether this Ctrl-C belongs to the press that stopped the turn, and has no further
        effect.
        """
        if self._stopped_at is None or time.monotonic() - self._stopped_at >= _SAME_PRESS_SECONDS:
            return False
        self.armed = self._before
        return True

    def ctrl_c(self) -> bool:
        """Called after `key`, for a Ctrl-C on an empty line that is not late: whether it leaves."""
        self.armed = not self._before
        return self._before


def clean_paste(text: str) -> str:
    """Pasted text as it is inserted into the line: newlines separate lines, and invisible characters are removed."""
    return whole(_INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))


def raw(descriptor: int) -> None:
    """Set the terminal so that every key arrives at once, unchanged and without echo. Does nothing if the terminal is
    gone.
    """
    from prompt_toolkit.input.vt100 import raw_mode

    try:
        raw_mode(descriptor).__enter__()
    except termios.error:
        pass


def keyboard() -> Vt100Input:
    """The keys of stdin, `closed` when the terminal is gone. Pastes are read in large pieces.

    Hand-written, because prompt_toolkit's reader takes EIO for an interrupting signal and repeats the read forever.
    """
    from prompt_toolkit.input.posix_utils import PosixStdinReader
    from prompt_toolkit.input.vt100 import Vt100Input

    class Reader(PosixStdinReader):
        def read(self, count: int = 1024) -> str:
            if self.closed:
                return ""
            try:
                if not select.select([self.stdin_fd], [], [], 0)[0]:
                    return ""
                piece = os.read(self.stdin_fd, READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return ""
            except OSError:
                piece = b""
            self.closed = not piece
            return self._stdin_decoder.decode(piece)

    class Keyboard(Vt100Input):
        def __init__(self) -> None:
            super().__init__(sys.stdin)
            self.stdin_reader = Reader(self._fileno, encoding=sys.stdin.encoding)

        def raw_mode(self) -> AbstractContextManager[None]:
            # `raw` sets the mode at the prompt, `tty_modes.without_echo` during a turn.
            return nullcontext()

    return Keyboard()


def take_typed_ahead(keys: Vt100Input, before: list[object] | None, *, send: bool = True) -> bool:
    """Keep the type-ahead from before the terminal was raw for the line. Returns whether the terminal has echoed it.

    `before` are the attributes of the terminal at that time. Where Enter became a newline, it becomes Enter again, and
    the kernel's mark of Ctrl-D becomes that key. `send` is that of `store`.
    """
    text = ""
    while piece := keys.stdin_reader.read():
        text += piece
    if not text:
        return False
    input_flags, local_flags = (0, 0) if before is None else (before[0], before[3])
    assert isinstance(input_flags, int)
    assert isinstance(local_flags, int)
    if local_flags & termios.ICANON:
        text = text.replace("\0", CTRL_D)
    if input_flags & termios.ICRNL:
        text = _replaced(text, "\n", "\r")
    store(keys, text, send=send)
    return bool(local_flags & termios.ECHO)


def store(keys: Vt100Input, text: str, *, send: bool) -> None:
    """Keep keys for the line that is read next, except those that were meant for the turn: Ctrl-C and the like.

    Without `send`, Enter starts a new line and Ctrl-D does nothing.
    """
    from prompt_toolkit.input.typeahead import store_typeahead

    text = _replaced(text, _SIGNAL_KEYS, "")
    if not send:
        text = _replaced(text, CTRL_D, "")
        text = _replaced(text.rstrip("\r"), "\r", _NEW_LINE)
    keys.vt100_parser.feed(text)
    store_typeahead(keys, keys.flush_keys())


def _replaced(text: str, old: str, new: str) -> str:
    """`text` with each character of `old` replaced, except in pastes."""
    table = str.maketrans(dict.fromkeys(old, new))
    return "".join(part if part.startswith("\x1b[200~") else part.translate(table) for part in _PASTE.split(text))


def continues(line: str) -> bool:
    """Whether the entry continues in the next line: the line ends in a backslash that is not itself escaped."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def is_remembered(entry: str) -> bool:
    """Whether an entry goes into the history: not if it starts with a space, as in shells."""
    return bool(entry.strip()) and not entry.startswith(" ")


def line_buffer(history: History, completions: Completer, send: Callable[[Buffer], bool]) -> Buffer:
    """The buffer of the line. Completion starts by itself only where a command or a path is typed."""
    from prompt_toolkit.filters import Condition

    class Line(clusters.buffer()):  # type: ignore[misc]
        def append_to_history(self) -> None:
            if is_remembered(self.text):
                super().append_to_history()

    line: Buffer = Line(
        completer=completions,
        history=history,
        accept_handler=send,
        complete_while_typing=Condition(lambda: context(line.document.text_before_cursor, ()) is not None),
    )
    return line


async def _complete_common_part(line: Buffer) -> None:
    """Insert the only candidate, or the common beginning of all. If that is empty, open the menu, then choose in it."""
    # Not the method of the buffer, which does nothing during a completion that started by itself.
    from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix

    document = line.document
    event = CompleteEvent(completion_requested=True)
    completions = [completion async for completion in line.completer.get_completions_async(document, event)]
    if line.document != document:
        return
    if len(completions) == 1:
        line.apply_completion(completions[0])
    elif common := get_common_complete_suffix(document, completions):
        line.insert_text(common, fire_event=False)
        line.start_completion()
    elif line.complete_state is not None and line.complete_state.completions:
        line.complete_next()
    elif completions:
        line.start_completion()


def bindings(
    line: Buffer,
    double_ctrl_c: DoubleCtrlC,
    queue: PromptQueue,
    handed_over: Callable[[], AbstractContextManager[None]],
    tell: Callable[[str], None],
) -> KeyBindings:
    """The keys of `line` at the prompt, beyond those of prompt_toolkit's Emacs and vi modes.

    Within `handed_over` another program has the terminal; `tell` shows a line above the prompt.
    """
    from prompt_toolkit.filters import emacs_mode, has_focus

    keys = _shared_bindings(line, queue)
    is_focused = has_focus(line)

    # In vi mode, Escape followed by Enter leaves the insert mode and sends the entry.
    @keys.add("escape", "enter", filter=is_focused & emacs_mode)
    def _new_line(event: KeyPressEvent) -> None:
        line.newline(copy_margin=False)

    @keys.add("c-c", filter=is_focused)
    def _ctrl_c(event: KeyPressEvent) -> None:
        if double_ctrl_c.is_late():
            return
        if line.text:
            line.reset()
        elif double_ctrl_c.ctrl_c():
            event.app.exit(exception=Interrupted("Interrupted."))

    @keys.add("c-d", filter=is_focused)
    def _ctrl_d(event: KeyPressEvent) -> None:
        if line.text:
            line.delete(event.arg)
        else:
            event.app.exit(exception=EOFError())

    @keys.add("c-z", filter=is_focused)
    def _suspend(event: KeyPressEvent) -> None:
        with handed_over():
            # The whole process group, as the terminal does.
            os.kill(0, signal.SIGTSTP)

    @keys.add("c-x", "c-e", filter=is_focused)
    def _edit(event: KeyPressEvent) -> None:
        from prompt_toolkit.document import Document

        with handed_over():
            text, failure = editor.edit_text(whole(line.text))
        line.document = Document(clean_paste(text))
        if failure is not None:
            tell(printable(failure))

    return keys


def turn_bindings(line: Buffer, queue: PromptQueue, interrupt: Callable[[], None]) -> KeyBindings:
    """The keys of `line` during a turn, which `interrupt` stops. The kernel handles Ctrl-C."""
    from prompt_toolkit.filters import Condition, emacs_mode, has_completions, has_focus

    keys = _shared_bindings(line, queue)
    is_focused = has_focus(line)
    # In vim mode, Esc leaves the insert mode.
    stops_by_escape = emacs_mode & Condition(lambda: not line.text)

    @keys.add("escape", filter=is_focused & ~has_completions & stops_by_escape)
    def _stop(event: KeyPressEvent) -> None:
        interrupt()

    @keys.add("escape", "enter", filter=is_focused & emacs_mode)
    def _now(event: KeyPressEvent) -> None:
        text = whole(line.text)
        if text.strip():
            line.append_to_history()
        line.reset()
        if queue.hurry(text):
            interrupt()

    @keys.add("c-d", filter=is_focused)
    def _leave(event: KeyPressEvent) -> None:
        if line.text:
            line.delete(event.arg)
        else:
            queue.is_leaving = True

    @keys.add("c-z")
    def _no_suspend(event: KeyPressEvent) -> None:
        return

    return keys


def _shared_bindings(line: Buffer, queue: PromptQueue) -> KeyBindings:
    """The keys that edit `line`."""
    from prompt_toolkit.document import Document
    from prompt_toolkit.filters import Condition, emacs_mode, has_completions, has_focus
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()
    is_focused = has_focus(line)

    @keys.add("enter", filter=is_focused)
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

    @keys.add("c-j", filter=is_focused)
    def _new_line(event: KeyPressEvent) -> None:
        line.newline(copy_margin=False)

    @keys.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        text = clean_paste(event.data)
        if not is_focused():
            text = text.partition("\n")[0]
        # Without the event that starts completion, because a paste is not a command that is being typed.
        event.current_buffer.insert_text(text, fire_event=False)

    @keys.add("up", filter=is_focused & Condition(lambda: not line.text and len(queue) > 0))
    def _take_back(event: KeyPressEvent) -> None:
        entry = queue.take_back()
        if entry is not None:
            line.document = Document(entry)

    @keys.add("tab", filter=is_focused)
    def _complete(event: KeyPressEvent) -> None:
        state = line.complete_state
        if state is not None and state.complete_index is not None:
            line.complete_next()
        else:
            event.app.create_background_task(_complete_common_part(line))

    @keys.add("escape", filter=is_focused & has_completions & emacs_mode)
    def _no_completion(event: KeyPressEvent) -> None:
        line.cancel_completion()

    return keys
