"""The line editor of a chat: reads one entry at a time, with history, completion and a toolbar.

All drawing happens in the main thread, within `read`. Other threads pass notices and errors in (`tell`, `fail`,
`refresh`), which take effect at once, or in the next `read`. `read` always restores the terminal when it ends.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Protocol

from deepctl.cli import tty_modes
from deepctl.cli.repl.completer import CandidateSource, completer
from deepctl.cli.repl.keys import CTRL_D, HINT, READ_BYTES, DoubleCtrlC, continues, is_remembered
from deepctl.cli.repl.screen import ScreenReader
from deepctl.cli.repl.status import Toolbar
from deepctl.cli.repl.turn_line import PromptQueue, TurnLine
from deepctl.errors import Interrupted, Refused, Terminated
from deepctl.files import atomic
from deepctl.output.render import is_dumb, printable, wrap
from deepctl.unicode import whole

if TYPE_CHECKING:
    from prompt_toolkit.history import History


class LineReader(Protocol):
    """Reads a line at a terminal. Its methods are called in the event loop of `read`."""

    @property
    def text(self) -> str: ...

    async def read(self, text: str) -> str | None: ...

    async def show(self, entry: str) -> None: ...

    def turn_line(self) -> TurnLine | None: ...

    def stop(self) -> None: ...

    def ctrl_c(self) -> None: ...

    def resumed(self) -> None: ...

    def refresh(self) -> None: ...

    def show_notices(self) -> None: ...


class Editor:
    """Reads entries at the terminal. `left_over` is the text of the line when `read` ended without an entry."""

    def __init__(
        self,
        history: History,
        candidates: CandidateSource,
        toolbar: Callable[[], Toolbar],
        prompt: Callable[[], str],
        is_vi: Callable[[], bool] = lambda: False,
    ) -> None:
        self.left_over = ""
        self.queue = PromptQueue()
        """The entries that were typed during a turn."""
        self._double_ctrl_c = DoubleCtrlC()
        self._notices: deque[str] = deque()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = self._make_reader(history, candidates, toolbar, prompt, is_vi)

    def _make_reader(
        self,
        history: History,
        candidates: CandidateSource,
        toolbar: Callable[[], Toolbar],
        prompt: Callable[[], str],
        is_vi: Callable[[], bool],
    ) -> LineReader:
        if is_dumb():

            def remember(entry: str) -> None:
                if is_remembered(entry):
                    history.append_string(entry)

            return DumbReader(remember, lambda: printable(prompt()), self._double_ctrl_c, self._notices)
        return ScreenReader(
            history, completer(candidates), toolbar, prompt, self._double_ctrl_c, self._notices, self.queue, is_vi
        )

    def turn_line(self) -> TurnLine | None:
        """The input line for a turn that begins; `None` on a dumb terminal."""
        return self._reader.turn_line()

    def show(self, entry: str) -> None:
        """Draw an entry of the queue as if it had been sent from the line."""
        with asyncio.Runner() as runner:
            runner.run(self._reader.show(entry))

    def stopped(self) -> None:
        """Ctrl-C has just stopped a turn: the next Ctrl-C leaves, and type-ahead is not sent by itself."""
        self._double_ctrl_c.stopped()

    def read(self, text: str = "") -> str:
        """One entry, which may have many lines; `text` is put into the line first.

        Raises `EOFError` for Ctrl-D on an empty line, `Interrupted` for the second Ctrl-C, `Terminated` for SIGTERM and
        SIGHUP and when the terminal is gone, and the errors that `fail` was given.
        """
        self.left_over = text
        self._raise_failure()
        while True:
            try:
                with asyncio.Runner() as runner:
                    entry = runner.run(self._read(text))
                break
            except KeyboardInterrupt:
                # It arrived before the line handled the signals, and means the same as the key.
                self._double_ctrl_c.key()
                if self._double_ctrl_c.is_late():
                    continue
                if not self.left_over and self._double_ctrl_c.ctrl_c():
                    raise Interrupted("Interrupted.") from None
                text = self.left_over = ""
        self._raise_failure()
        if entry is None:
            raise EOFError
        self.left_over = ""
        self._double_ctrl_c.sent()
        return entry

    async def _read(self, text: str) -> str | None:
        loop = asyncio.get_running_loop()
        with self._signals(loop):
            self._loop = loop
            if self._failure is not None:
                return None
            try:
                return await self._reader.read(text)
            finally:
                self._loop = None
                self.left_over = self._reader.text

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """The line handles the signals inside this context. A signal that is ignored, as by nohup, stays ignored."""
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGINT: self._reader.ctrl_c,
            signal.SIGCONT: self._reader.resumed,
            signal.SIGTERM: lambda: self._end(Terminated(signal.SIGTERM)),
            signal.SIGHUP: lambda: self._end(Terminated(signal.SIGHUP)),
        }
        before = {number: signal.getsignal(number) for number in handlers}
        numbers = [number for number in handlers if before[number] is not signal.SIG_IGN]
        for number in numbers:
            loop.add_signal_handler(number, handlers[number])
        try:
            yield
        finally:
            try:
                _restore_handlers(loop, numbers, before)
            except KeyboardInterrupt:
                # Raised between the two handlers: too late for the line, too early for the next code.
                _restore_handlers(loop, numbers, before)

    def _end(self, error: BaseException) -> None:
        self._failure = error
        self._reader.stop()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def tell(self, line: str) -> None:
        """Show a line above the prompt, from any thread. Between two reads, the next read shows it. The typed text
        stays.
        """
        self._notices.extend(wrap(printable(part), sys.stdout) for part in line.split("\n"))
        self._call_soon(self._reader.show_notices)

    def take_pending(self) -> list[str]:
        """Remove the lines that were passed in since the last `read` and are not shown yet."""
        lines: list[str] = []
        while self._notices:
            lines += self._notices.popleft().split("\n")
        return lines

    def fail(self, error: BaseException) -> None:
        """End `read` by raising `error`, from any thread: now, or at the start of the next `read`."""
        self._failure = error
        self._call_soon(self._reader.stop)

    def refresh(self) -> None:
        """Draw the toolbar again, from any thread."""
        self._call_soon(self._reader.refresh)

    def _call_soon(self, call: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:
                pass  # the line has just been sent, so the next one shows it


def _restore_handlers(
    loop: asyncio.AbstractEventLoop, numbers: Sequence[signal.Signals], before: Mapping[signal.Signals, Any]
) -> None:
    for number in numbers:
        loop.remove_signal_handler(number)
        handler = before[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class DumbReader:
    """Reads entries at a dumb terminal (`TERM=dumb`): the kernel edits the lines, and nothing is drawn.

    A backslash at the end of a line continues the entry in the next one.
    """

    def __init__(
        self,
        remember: Callable[[str], None],
        prompt: Callable[[], str],
        double_ctrl_c: DoubleCtrlC,
        notices: deque[str],
    ) -> None:
        self._remember = remember
        self._prompt = prompt
        self._double_ctrl_c = double_ctrl_c
        self._notices = notices
        self._descriptor = sys.stdin.fileno()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._typed = ""
        self._entry: list[str] = []
        self._ended: asyncio.Future[str | None] | None = None

    @property
    def text(self) -> str:
        """The entry so far, as far as the kernel has handed it over."""
        return "\n".join([*self._entry, self._typed])

    async def read(self, text: str) -> str | None:
        """One entry, or `None` if it was stopped. `text` is shown, because this editor cannot put it into the line."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._entry = []
        if text:
            self._write("Text to copy into the prompt:\n")
            for line in text.split("\n"):
                self._write(f"  {printable(line)}\n")
        if self._double_ctrl_c.armed:
            self._write(f"{HINT}\n")
        self._write(self._take_notices() + self._prompt())
        self._take()
        if not self._ended.done():
            loop.add_reader(self._descriptor, self._ready)
        try:
            return await self._ended
        finally:
            loop.remove_reader(self._descriptor)
            self._ended = None

    def _ready(self) -> None:
        try:
            piece = os.read(self._descriptor, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(Terminated(signal.SIGHUP))
            return
        if not piece:
            if not self._typed and not self._entry:
                self._write("\n")
                self._end(EOFError())
            elif tty_modes.attributes(self._descriptor) is None:
                self._end(Terminated(signal.SIGHUP))
            return
        self._typed += self._decoder.decode(piece).replace("\r\n", "\n").replace("\r", "\n")
        self._take()

    def _take(self) -> None:
        """Take typed lines until the entry is complete."""
        if self._typed.startswith(CTRL_D) and not self._entry:
            # Typed during a turn, when it was an ordinary character for the kernel.
            self._typed = self._typed.lstrip(CTRL_D)
            self._write("\n")
            self._end(EOFError())
            return
        while "\n" in self._typed:
            line, _, self._typed = self._typed.partition("\n")
            self._double_ctrl_c.key()
            if continues(line):
                self._entry.append(line[:-1])
                continue
            entry = whole("\n".join([*self._entry, line]))
            self._entry = []
            self._remember(entry)
            self._end(entry)
            return

    def _end(self, outcome: str | BaseException | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if isinstance(outcome, BaseException):
            self._ended.set_exception(outcome)
        else:
            self._ended.set_result(outcome)

    async def show(self, entry: str) -> None:
        """Nothing is queued here."""

    def turn_line(self) -> None:
        """There is no line that could change during a turn."""

    def stop(self) -> None:
        """End `read`, which returns `None`."""
        self._end(None)

    def ctrl_c(self) -> None:
        """Ctrl-C. The kernel has dropped the typed part of the line, and does not report whether there was any."""
        self._double_ctrl_c.key()
        was_typed = bool(self._entry or self._typed)
        self._entry, self._typed = [], ""
        if not self._double_ctrl_c.is_late() and not was_typed and self._double_ctrl_c.ctrl_c():
            self._write("\n")
            self._end(Interrupted("Interrupted."))
            return
        self._write(f"\n{HINT}\n{self._prompt()}" if self._double_ctrl_c.armed else f"\n{self._prompt()}")

    def resumed(self) -> None:
        """The process continues after it was stopped."""
        self._write(self._prompt())

    def refresh(self) -> None:
        """Nothing is drawn here."""

    def show_notices(self) -> None:
        """Print the notices that were passed in, and the prompt after them."""
        lines = self._take_notices()
        if lines:
            self._write(f"\n{lines}{self._prompt()}")

    def _take_notices(self) -> str:
        lines = ""
        while self._notices:
            lines += f"{self._notices.popleft()}\n"
        return lines

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:
            self._end(Terminated(signal.SIGHUP))


LONGEST_ENTRY = 64 << 10
"""Bytes of the longest entry that is written. Longer entries are available until the chat ends."""
_READ_HISTORY = 2 << 20
"""Bytes that are read from the end of the file."""


def prompt_history(path: str | None) -> History:
    """What the line editor remembers: the prompts in the file `path`, or without one those of this conversation.

    The form is that of prompt_toolkit's `FileHistory`. The file is never made anew, so that a profile that was wiped
    stays wiped, and never read or written through a link. However long it is, reading it takes the same time: only its
    end is read, and very long entries are not written to it.
    """
    from prompt_toolkit.history import InMemoryHistory

    return InMemoryHistory() if path is None else _file_history(path)


def _file_history(path: str) -> History:
    from prompt_toolkit.history import History

    class FileHistory(History):
        def load_history_strings(self) -> Iterable[str]:
            try:
                return _history_entries(_history_end(path))[::-1]
            except (OSError, Refused):
                return []

        def store_string(self, string: str) -> None:
            with suppress(OSError, Refused):
                _append_to_history(path, string)

    atomic.make_private_file(path)
    return FileHistory()


def _history_end(path: str) -> bytes:
    """The last bytes of the file, from the start of an entry."""
    with open(atomic.open_regular(path, os.O_RDONLY), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _READ_HISTORY))
        content = file.read(_READ_HISTORY)
    return content if size <= _READ_HISTORY else content[content.find(b"\n#") + 1 :]


def _history_entries(content: bytes) -> list[str]:
    """The entries, oldest first; equal neighbours count once."""
    entries: list[str] = []
    lines: list[str] = []
    for line in [*content.decode(errors="replace").split("\n"), ""]:
        if line.startswith("+"):
            lines.append(line[1:])
        elif lines:
            entry = "\n".join(lines)
            if not entries or entries[-1] != entry:
                entries.append(entry)
            lines = []
    return entries


def _append_to_history(path: str, prompt: str) -> None:
    """Add a prompt, through no link."""
    at = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    lines = "".join(f"+{line}\n" for line in prompt.split("\n"))
    entry = f"\n# {at}\n{lines}".encode(errors="replace")
    if len(entry) > LONGEST_ENTRY:
        return
    descriptor = atomic.open_regular(path, os.O_WRONLY | os.O_APPEND)
    try:
        atomic.write_all(descriptor, entry)
    finally:
        os.close(descriptor)
