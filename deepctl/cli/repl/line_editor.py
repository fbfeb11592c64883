"""The line editor of a conversation: one entry at a time, with history, completion and a line that says how things are.

Everything that draws is on the main thread, within `read`. Other threads hand in what they have to say (`tell`, `fail`,
`refresh`), which comes up at once, or in the next `read`. However `read` ends, the terminal is as it was before.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from deepctl.cli.repl.completer import CandidateSource, completer
from deepctl.cli.repl.double_ctrl_c import DoubleCtrlC
from deepctl.cli.repl.status import Toolbar
from deepctl.errors import Interrupted, Terminated
from deepctl.output import terminal_caps
from deepctl.output.text import printable, wrapped

if TYPE_CHECKING:
    from prompt_toolkit.history import History


class _Line(Protocol):
    """A line at a terminal of some kind. Everything is called on the loop that `read` runs on."""

    @property
    def text(self) -> str: ...

    async def read(self, text: str) -> str | None: ...

    def stop(self) -> None: ...

    def ctrl_c(self) -> None: ...

    def resumed(self) -> None: ...

    def refresh(self) -> None: ...

    def show_told(self) -> None: ...


class Editor:
    """Reads entries at the terminal. `left_over` is what was in the line when `read` ended without an entry."""

    def __init__(
        self, history: History, candidates: CandidateSource, toolbar: Callable[[], Toolbar], prompt: Callable[[], str]
    ) -> None:
        self.left_over = ""
        self._leaving = DoubleCtrlC()
        self._told: deque[str] = deque()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line = self._made(history, candidates, toolbar, prompt)

    def _made(
        self, history: History, candidates: CandidateSource, toolbar: Callable[[], Toolbar], prompt: Callable[[], str]
    ) -> _Line:
        if terminal_caps.is_dumb():
            from deepctl.cli.repl.plain_input import PlainLine, is_remembered

            def remember(entry: str) -> None:
                if is_remembered(entry):
                    history.append_string(entry)

            return PlainLine(remember, lambda: printable(prompt()), self._leaving, self._told)
        from deepctl.cli.repl.screen import ScreenLine

        return ScreenLine(history, completer(candidates), toolbar, prompt, self._leaving, self._told)

    def stopped(self) -> None:
        """Ctrl-C has just stopped what ran: another one leaves, and what was typed meanwhile is not sent by itself."""
        self._leaving.stopped()

    def read(self, text: str = "") -> str:
        """One entry, which may have many lines; `text` is put into the line first.

        Raises `EOFError` for Ctrl-D on an empty line, `Interrupted` for the second Ctrl-C, `Terminated` for SIGTERM and
        SIGHUP and when the terminal is gone, and what `fail` was given.
        """
        self.left_over = text
        self._raise_failure()
        while True:
            try:
                with asyncio.Runner() as runner:
                    entry = runner.run(self._read(text))
                break
            except KeyboardInterrupt:
                # It came before the line had the signals, and means what it means there.
                self._leaving.key()
                if self._leaving.is_late():
                    continue
                if not self.left_over and self._leaving.ctrl_c():
                    raise Interrupted("Interrupted.") from None
                text = self.left_over = ""
        self._raise_failure()
        if entry is None:
            raise EOFError
        self.left_over = ""
        self._leaving.sent()
        return entry

    async def _read(self, text: str) -> str | None:
        loop = asyncio.get_running_loop()
        with self._signals(loop):
            self._loop = loop
            if self._failure is not None:
                return None
            try:
                return await self._line.read(text)
            finally:
                self._loop = None
                self.left_over = self._line.text

    @contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Signals do what they mean for a line. One that is ignored, as by nohup, stays so."""
        wanted: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGINT: self._line.ctrl_c,
            signal.SIGCONT: self._line.resumed,
            signal.SIGTERM: lambda: self._end(Terminated(signal.SIGTERM)),
            signal.SIGHUP: lambda: self._end(Terminated(signal.SIGHUP)),
        }
        before = {number: signal.getsignal(number) for number in wanted}
        taken = [number for number in wanted if before[number] is not signal.SIG_IGN]
        for number in taken:
            loop.add_signal_handler(number, wanted[number])
        try:
            yield
        finally:
            try:
                _give_back(loop, taken, before)
            except KeyboardInterrupt:
                # Between the one handler and the other: too late for the line, too early for what comes next.
                _give_back(loop, taken, before)

    def _end(self, error: BaseException) -> None:
        self._failure = error
        self._line.stop()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def tell(self, line: str) -> None:
        """Show a line above the prompt, from any thread; between two reads, in the next one. What is typed stays."""
        self._told.extend(wrapped(printable(part), sys.stdout) for part in line.split("\n"))
        self._soon(self._line.show_told)

    def take_pending(self) -> list[str]:
        """Take back what was handed in since the last `read` and is still to be shown: its lines."""
        lines: list[str] = []
        while self._told:
            lines += self._told.popleft().split("\n")
        return lines

    def fail(self, error: BaseException) -> None:
        """End `read` by raising `error`, from any thread: now, or at once in the next one."""
        self._failure = error
        self._soon(self._line.stop)

    def refresh(self) -> None:
        """Draw the toolbar anew, from any thread."""
        self._soon(self._line.refresh)

    def _soon(self, call: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:
                pass  # the line has just been sent: what was handed in comes up in the next


def _give_back(
    loop: asyncio.AbstractEventLoop, taken: Sequence[signal.Signals], before: Mapping[signal.Signals, Any]
) -> None:
    for number in taken:
        loop.remove_signal_handler(number)
        handler = before[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
