"""Typing during a turn: the input line below the running answer, and the queue of prompts for afterwards.

A prompt_toolkit application edits the line in a thread of its own, with the buffer and the keys of the prompt. It draws
nothing: the live region of the turn draws its rows. prompt_toolkit's own way, an application that draws all lines that
change and prints the answer above them, was not taken. Its cursor is in the last of these lines, so that after a resize
it does not know how many rows are above the cursor, except in tmux; rows of the answer would stay or be erased.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from deepctl.cli import tty_modes
from deepctl.cli.repl import clusters
from deepctl.output.render import cells, clip, has_colour, printable, terminal_size
from deepctl.output.stream.lines import of_stdout

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.layout.screen import Char, Screen
    from prompt_toolkit.output import Output
    from prompt_toolkit.styles import BaseStyle

NOW = "/now"
_NOW = re.compile(rf"\s*{NOW}(?:\s+|\Z)(.*)", re.DOTALL)
_MOST_QUEUED = 5
"""The most rows of queued prompts."""
_MOST_ROWS = 12
"""The most rows of the input line, with its completion menu."""
_ROOMY_LINES = 4
"""In a window of fewer lines, an empty input line is not shown."""
_RETRY_SECONDS = 0.05
_HELD = "Enter sends them; Up takes one back."
_LEAVES = "The chat ends after that."


class PromptQueue:
    """The entries that wait for the end of the turn: prompts and commands, in the order in which they are run.

    One thread adds entries during a turn, another one takes them after it.
    """

    def __init__(self) -> None:
        self._entries: deque[str] = deque()
        self.is_held = False
        """Whether the entries wait for another Enter, because the turn was stopped or failed."""
        self.is_leaving = False
        """Whether the chat ends once the queue is empty: Ctrl-D was pressed."""
        self._is_urgent = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: str) -> bool:
        """Add what was typed during a turn; blank text is left out. Returns whether the turn must be stopped for it:
        `/now TEXT` puts TEXT before all other entries.
        """
        urgent = _NOW.match(entry)
        if urgent is not None:
            return self.hurry(urgent[1])
        if entry.strip():
            self._entries.append(entry)
        return False

    def hurry(self, entry: str) -> bool:
        """Put an entry before all others. Returns whether there is one to send at once; blank text adds none."""
        if entry.strip():
            self._entries.appendleft(entry)
        self._is_urgent = bool(self._entries)
        return self._is_urgent

    def take_back(self) -> str | None:
        """Remove the newest entry, for editing."""
        return self._entries.pop() if self._entries else None

    def next(self) -> str | None:
        """Remove the oldest entry, unless the entries are held."""
        self._is_urgent = False
        return self._entries.popleft() if self._entries and not self.is_held else None

    def stopped(self) -> bool:
        """The turn was stopped. Returns whether that was done to send an entry at once; otherwise entries are held."""
        self.is_leaving = False
        self.is_held = bool(self._entries) and not self._is_urgent
        return self._is_urgent

    def failed(self) -> None:
        """An entry failed: the following ones are held."""
        self.is_held = bool(self._entries)
        self.is_leaving = self.is_leaving and not self.is_held

    def rows(self, width: int) -> list[str]:
        """The entries as numbered rows of at most `width` cells; of many, the first and the last ones."""
        entries = list(self._entries)
        rows = [_cut(f"{number}. {_in_a_row(entry)}", width) for number, entry in enumerate(entries, 1)]
        left_out_count = len(rows) - _MOST_QUEUED + 1
        if left_out_count > 1:
            first_count = _MOST_QUEUED // 2
            rows[first_count : first_count + left_out_count] = [_cut(f"   {left_out_count} more", width)]
        if entries and self.is_held:
            rows.append(_cut(_HELD, width))
        if self.is_leaving:
            rows.append(_cut(_LEAVES, width))
        return rows


def _in_a_row(entry: str) -> str:
    return printable(" ".join(entry[:1000].split()))


def _cut(row: str, width: int) -> str:
    return row if cells(row) <= width else f"{clip(row, max(width - 1, 0))}…"


class TurnLine:
    """The input line during a turn.

    `make_application` gets an output that discards everything and knows the size of the line. `begin` is called when it
    starts, and `keep` with the keys for it that a question has taken. `redraw` is called from another thread whenever
    `rows` has changed.
    """

    def __init__(
        self,
        make_application: Callable[[Output], Application[str | None]],
        begin: Callable[[], None],
        keep: Callable[[bytes], None],
        queue: PromptQueue,
        text: Callable[[], str],
    ) -> None:
        self._application = make_application(_output(self._room))
        self._application.after_render += self._rendered
        self._begin = begin
        self._keep = keep
        self._queue = queue
        self._text = text
        self._size = (0, 0)
        self._drawn: list[str] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self.redraw: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Read keys from now on. The terminal hands them over one by one, without echo (`tty_modes.without_echo`)."""
        if self._thread is None:
            self._size = terminal_size()
            self._thread = threading.Thread(target=self._run, name="line", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Read no more keys; the typed text stays. Does nothing if no keys are read. Raises an error of the thread."""
        thread = self._thread
        if thread is None:
            return
        while thread.is_alive():
            if (loop := self._loop) is not None:
                with suppress(RuntimeError):  # the loop has just been closed
                    loop.call_soon_threadsafe(self._leave)
            thread.join(_RETRY_SECONDS)
        self._thread, self._drawn = None, []
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @contextmanager
    def away(self) -> Iterator[None]:
        """Inside this context, a question has the keyboard; the line is not shown, and its text stays."""
        is_running = self._thread is not None
        self.stop()
        with tty_modes.keeping_keys() as kept_keys:
            try:
                yield
            finally:
                self._keep(bytes(kept_keys))
                if is_running:
                    self.start()

    def rows(self, width: int, height: int) -> list[str]:
        """The queue and the line for a window, ready to be written; fewer rows than the window has."""
        if (width, height) != self._size:
            self._size = width, height
            self._application.invalidate()
        if self._thread is None or (height < _ROOMY_LINES and not self._text()):
            return []
        queue_rows = self._queue.rows(width - 1)[: max(height - _ROOMY_LINES, 0)]
        caps = of_stdout()
        dim, plain = ("\x1b[2m", "\x1b[0m") if caps.colour else ("", "")
        return [*(f"{dim}{caps.safe(row)}{plain}" for row in queue_rows), *self._drawn[: self._room()[1]]]

    def _room(self) -> tuple[int, int]:
        """Columns and rows of the line."""
        width, height = self._size
        return width, max(min(_MOST_ROWS, height // 2), 1)

    def _run(self) -> None:
        try:
            asyncio.run(self._edit())
        except EOFError:
            pass  # the terminal is closed, and SIGHUP ends the turn
        except BaseException as failure:  # raised in the thread that runs the turn
            self._failure = failure
        finally:
            self._loop = None

    async def _edit(self) -> None:
        from prompt_toolkit.application import create_app_session

        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._unexpected)
        with create_app_session(input=self._application.input, output=self._application.output):
            await self._application.run_async(pre_run=self._begin, set_exception_handler=False, handle_sigint=False)

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self._failure = error if isinstance(error, BaseException) else RuntimeError(str(context.get("message")))
        self._leave()

    def _leave(self) -> None:
        future = self._application.future
        if future is not None and not future.done():
            self._application.exit(result=None)

    def _rendered(self, application: Application[str | None]) -> None:
        screen = application.renderer.last_rendered_screen
        if screen is not None:
            position = screen.get_cursor_position(application.layout.current_window)
            cursor = (position.y, position.x) if has_colour(sys.stdout) or self._text() else None
            self._drawn = _written_rows(screen, self._room()[0], cursor, application.style)
            self.redraw()


def _output(room: Callable[[], tuple[int, int]]) -> Output:
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.output import DummyOutput

    class Nowhere(DummyOutput):
        def get_size(self) -> Size:
            columns, rows = room()
            return Size(rows, columns)

    return Nowhere()


def _written_rows(screen: Screen, columns: int, cursor: tuple[int, int] | None, style: BaseStyle | None) -> list[str]:
    """The rows of a screen as they are written to the terminal, with a reversed cell for the cursor."""
    rows = []
    for y in range(screen.height):
        cell_row = screen.data_buffer[y]
        end = max((x for x, cell in cell_row.items() if cell.char.strip()), default=-1)
        if cursor is not None and cursor[0] == y:
            end = max(end, cursor[1])
        rows.append(_written(cell_row, min(end, columns - 1), cursor[1] if cursor and cursor[0] == y else -1, style))
    while len(rows) > 1 and not rows[-1]:
        del rows[-1]
    encoding = of_stdout().encoding
    return [row.encode(encoding, "replace").decode(encoding) for row in rows]


def _written(cell_row: dict[int, Char], end: int, cursor: int, style: BaseStyle | None) -> str:
    row, before, x = "", "", 0
    while x <= end:
        cell = cell_row[x]
        attributes = _sgr(cell.style, style, is_reversed=x == cursor)
        if attributes != before:
            row += f"\x1b[0{attributes}m"
            before = attributes
        row += clusters.without_stand_ins(cell.char)
        x += max(cell.width, 1)
    return f"{row}\x1b[0m" if before else row


def _sgr(name: str, style: BaseStyle | None, *, is_reversed: bool) -> str:
    if style is None:
        return ";7" if is_reversed else ""
    attributes = style.get_attrs_for_style_str(name)
    codes = [
        (attributes.bold, 1),
        (attributes.dim, 2),
        (attributes.underline, 4),
        (bool(attributes.reverse) != is_reversed, 7),
    ]
    return "".join(f";{code}" for is_set, code in codes if is_set)


def interrupt_turn() -> None:
    """What Ctrl-C does: the kernel sends it to the process, and Python handles it in the main thread."""
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    signal.pthread_kill(main_thread, signal.SIGINT)
