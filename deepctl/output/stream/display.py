"""Displays of a turn: live at a terminal, as plain text, or as one JSON event per line.

The live display draws in its own thread, so that the spinner turns while the turn computes or waits. The turn only
queues its events, which is cheap. At most twelve frames are drawn per second, and fewer if drawing takes long. If
stdout cannot be written, the next call of `event` raises the error.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol

from deepctl.errors import StorageError
from deepctl.output import render
from deepctl.output.render import is_terminal, printable_lines, terminal_size, with_command_names
from deepctl.output.stream.lines import of_stdout
from deepctl.quantities import counted

if TYPE_CHECKING:
    from deepctl.output.stream.live_region import LiveRegion
    from deepctl.output.stream.thinking import FoldedThinking
    from deepctl.output.stream.tool_lines import ShownCall
    from deepctl.output.stream.turn_summary import PlainWork
    from deepctl.output.stream.turn_view import TurnView

_FRAME_SECONDS = 1 / 12
_KEY_SECONDS = 1 / 60
_REST_FACTOR = 8
"""After a frame, the thread rests for this multiple of the processor time of the frame."""


_WORK = ("activity", "change", "command", "output", "work")
"""Events for people only: they are no part of the JSON output."""


class Display(Protocol):
    """Shows the events of a turn. `shows_work` says whether it shows changes of files and the work of commands."""

    shows_work: bool

    def event(self, event: Mapping[str, Any]) -> None:
        """Show one event as it happens."""
        ...

    def notice(self, message: str) -> None:
        """Show a message that is not part of the answer."""
        ...

    def ring(self, sequence: str) -> None:
        """Send a bell or a notification to the terminal. Only the live display has one."""
        ...

    def close(self) -> None:
        """Restore the screen, however the turn ended."""
        ...


class JsonDisplay:
    """NDJSON: one event per line, flushed at once; the last is a `result` or an `error`."""

    shows_work = False

    def event(self, event: Mapping[str, Any]) -> None:
        if event["type"] not in _WORK:
            render.write(json.dumps(event) + "\n")

    def notice(self, message: str) -> None:
        """Prints only events."""

    def ring(self, sequence: str) -> None:
        """There is no terminal."""

    def close(self) -> None:
        """Every event is already a whole line."""


class TextDisplay:
    """The answer on stdout as it arrives; notices, and the work of tools if that is a terminal, on stderr."""

    def __init__(self) -> None:
        self._clean: Callable[[str], str] = printable_lines if is_terminal(sys.stdout) else str
        self.shows_work = is_terminal(sys.stderr)
        self._work: PlainWork | None = None
        if self.shows_work:
            from deepctl.output.stream.turn_summary import PlainWork

            self._work = PlainWork()
        self._at_line_start = True
        self._waiting = ""

    def event(self, event: Mapping[str, Any]) -> None:
        match event["type"]:
            case "text":
                self._write(event["delta"])
            case "compaction":
                from deepctl.output.stream.turn_view import compacted

                self.notice(compacted(event))
            case "notice":
                self.notice(event["message"])
            case "waiting" if event["message"] != self._waiting:
                self._waiting = event["message"]
                self.notice(f"{self._waiting}: waiting, Ctrl-C to stop waiting.")
            case "start":
                self._waiting = ""
            case "tool_result" | "result":
                self._end_line()
                if event.get("notice"):
                    self.notice(event["notice"])
        if self._work is not None and event["type"] in self._work.kinds:
            self._end_line()
            self._work.event(event)

    def _write(self, text: str) -> None:
        render.write(self._clean(text))
        self._at_line_start = text.endswith("\n")

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def notice(self, message: str) -> None:
        self._end_line()
        render.notice(message)

    def ring(self, sequence: str) -> None:
        """A dumb terminal, or a turn from a shell, is left alone."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context, an approval request is shown."""
        self._end_line()
        if self._work is not None:
            self._work.asked()
        yield

    def close(self) -> None:
        self._end_line()
        if self._work is not None:
            self._work.end()


class InputLine(Protocol):
    """A line below the answer in which the person types, with prompts that wait. Another thread changes it."""

    redraw: Callable[[], None]
    """Is called when the rows have changed."""

    def rows(self, width: int, height: int) -> list[str]:
        """Fewer rows than the window has, ready to be written."""

    def away(self) -> AbstractContextManager[None]:
        """Inside this context a question has the keyboard."""


class LiveDisplay:
    """The display of a chat at a terminal."""

    shows_work = True

    def __init__(self) -> None:
        self._line: InputLine | None = None
        self._is_changed = threading.Event()
        """Whether a frame must be drawn at once."""
        self._queue: deque[tuple[Mapping[str, Any], float]] = deque()
        self._drawing = threading.RLock()
        self._turn: TurnView | None = None
        self._region: LiveRegion | None = None
        self._end = threading.Event()
        self._paused = False
        self._failure: BaseException | None = None
        self._parts: list[ShownCall | FoldedThinking] = []
        self._usage = ""
        self._is_between_turns = False
        self.on_question: Callable[[], None] = lambda: None
        """Called before an approval request is shown."""
        self.on_answer: Callable[[], None] = lambda: None
        """Called after it was answered."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Show one event: `start` begins the live lines, `result` ends them."""
        self._check()
        match event["type"]:
            case "start":
                self._begin()
            case "error":
                self.stop()
            case kind:
                if kind == "notice":
                    event = {**event, "message": with_command_names(event["message"])}
                elif kind == "work":
                    from deepctl.output.stream.turn_summary import with_undo

                    event = with_undo(event)
                # Events without a running turn, as from `/compact`, are shown at once. Only a retry, and waiting for
                # another process, are shown until the next event or `close`, so that several have one line.
                is_alone = self._turn is None or self._is_between_turns
                if self._turn is None:
                    self._begin()
                self._is_between_turns = is_alone
                self._queue.append((event, time.monotonic()))
                if (is_alone and kind not in ("retry", "waiting")) or kind == "result":
                    self._finish(after="" if is_alone else "\n")
                    self._check()

    def notice(self, message: str) -> None:
        """Show a message that is not part of the answer: above the live lines, or on stderr if no turn runs."""
        if self._turn is None:
            render.notice(message)
        else:
            self._queue.append(({"type": "notice", "message": with_command_names(message)}, time.monotonic()))

    def show_line(self, line: InputLine | None) -> None:
        """From now on, draw this line below the answer of a turn."""
        self._line = line
        if line is not None:
            line.redraw = self._is_changed.set

    def ring(self, sequence: str) -> None:
        """Between two frames. A closed terminal is reported by the next frame."""
        with self._drawing, suppress(StorageError):
            render.write(sequence)

    def stop(self) -> None:
        """End the live lines, however the turn ended. Settled lines stay on the screen."""
        self._finish()

    def close(self) -> None:
        """The same as `close`."""
        self.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context nothing is drawn, and the cursor is at the start of an empty line."""
        if self._turn is None or self._paused:
            yield
            return
        with self._line.away() if self._line is not None else nullcontext():
            with self._drawing:
                self._paused = True
                self._draw(tail=False)
                self._turn.asked()
            self.on_question()
            began = time.monotonic()
            try:
                yield
            finally:
                self.on_answer()
                with self._drawing:
                    self._paused = False
                    if self._turn is not None:
                        self._turn.waited(time.monotonic() - began)

    def details(self, number: int | None = None) -> None:
        """Print the thinking, and the full arguments, changes and results of the last turn with tool calls or thinking,
        or only of its call `number`.

        Without `number`, also print the usage, if this was the last turn or no turn has called a tool.
        """
        from deepctl.output.stream.thinking import FoldedThinking

        calls = sum(not isinstance(part, FoldedThinking) for part in self._parts)
        if not self._parts or (number is not None and not calls):
            render.notice("No tool has been called in this chat yet.")
            self._show_usage(number)
            return
        if number is not None and not 1 <= number <= calls:
            render.notice(
                f"The last turn with tool calls made {counted(calls, 'call')}, so there is no number {number}."
            )
            return
        caps, (width, _) = of_stdout(), terminal_size()
        place = 0
        for part in self._parts:
            if isinstance(part, FoldedThinking):
                rows = part.details(width) if number is None else []
            else:
                place += 1
                rows = part.details(place, caps, width) if number in (None, place) else []
            if not render.write("".join(f"{caps.ansi(row)}\n" for row in rows)):
                return
        self._show_usage(number)

    def _show_usage(self, number: int | None) -> None:
        if number is None and self._usage:
            render.notice(f"Tokens of the last turn: {self._usage}.")

    def _check(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _begin(self) -> None:
        from deepctl.output.stream.live_region import LiveRegion
        from deepctl.output.stream.turn_view import TurnView

        self._finish()
        self._is_between_turns = False
        self._failure = None
        self._paused = False
        self._queue.clear()
        self._region = LiveRegion()
        self._turn = TurnView(of_stdout(), time.monotonic())
        self._end = threading.Event()
        threading.Thread(target=self._keep_drawing, args=(self._end,), name="display", daemon=True).start()

    def _keep_drawing(self, end: threading.Event) -> None:
        pause = 0.0
        while not end.is_set():
            if self._is_changed.wait(pause):
                # A key is shown soon, but several keys are one frame.
                end.wait(min(pause, _KEY_SECONDS))
            self._is_changed.clear()
            began = time.thread_time()
            with self._drawing:
                if end.is_set():
                    return
                if not self._paused:
                    try:
                        self._draw()
                    except BaseException as failure:  # raised in the thread that hands the events over
                        self._failure = failure
                        return
            pause = max(_FRAME_SECONDS, (time.thread_time() - began) * _REST_FACTOR)

    def _draw(self, *, tail: bool = True, settle_all: bool = False) -> None:
        """Draw a frame. The caller holds the lock."""
        turn, region = self._turn, self._region
        assert turn is not None
        assert region is not None
        size = width, height = terminal_size()
        while self._queue:
            turn.event(*self._queue.popleft(), width)
        if settle_all:
            turn.ended(width)
        caps = of_stdout()
        lines = [caps.ansi(line) for line in turn.settled(width)]
        rows = []
        if tail:
            below = self._line.rows(width, height) if self._line is not None else []
            rows = [*(caps.ansi(row) for row in turn.tail(width, height - len(below))), *below]
        region.draw(lines, rows, size)

    def _finish(self, after: str = "") -> None:
        """Print the remaining lines and end the live lines. Never raises, because the end of the turn is more
        important.
        """
        if self._turn is None:
            return
        self._end.set()
        self._is_changed.set()
        with self._drawing:
            if self._turn is None:
                return
            try:
                self._draw(tail=False, settle_all=True)
                render.write(after)
                sys.stdout.flush()
            except BaseException as failure:
                self._failure = failure
                with suppress(StorageError):
                    render.write("\x1b[?25h\x1b[?7h")
            finally:
                turn = self._turn
                # `details` shows one turn.
                self._usage = turn.usage if turn.parts or not self._parts else ""
                self._parts = turn.parts or self._parts
                self._turn = self._region = None
