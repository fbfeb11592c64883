"""The modes of the terminal during a turn or a command, the handling of signals, and restoring both."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deepctl.errors import Interrupted, Terminated, terminate
from deepctl.output import render
from deepctl.output.render import is_dumb

_SET_BACK = "\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[0m\x1b[J"
"""Switch off paste marks, switch on line wrap and the cursor, reset colours, and clear below the cursor."""

_shell_attributes: list[object] | None = None
"""The attributes of the terminal at the entry of the outermost `without_echo`."""


def attributes(descriptor: int) -> list[object] | None:
    """The attributes of the terminal, or `None` without a terminal."""
    try:
        return list(termios.tcgetattr(descriptor))
    except termios.error:
        return None


def set_attributes(descriptor: int, values: list[object] | None) -> None:
    """Restore the terminal. Does nothing if the terminal is gone."""
    try:
        if values is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, values)  # type: ignore[arg-type]
    except termios.error:
        pass


@contextmanager
def without_echo() -> Iterator[None]:
    """Inside this context, typed keys are not echoed and wait for the next reader. Ctrl-C stays a signal."""
    global _shell_attributes
    descriptor = sys.stdin.fileno()
    before, outer = attributes(descriptor), _shell_attributes
    try:
        _shell_attributes = outer or before
        with _set(descriptor, _hushed(before)):
            yield
    finally:
        set_attributes(descriptor, before)
        _shell_attributes = outer


@contextmanager
def _set(descriptor: int, values: list[object] | None) -> Iterator[None]:
    """Keeps these attributes inside the context, also after deepctl was stopped and the shell has changed them."""

    def again(number: int, frame: FrameType | None) -> None:
        set_attributes(descriptor, values)

    old_handler = signal.signal(signal.SIGCONT, again)
    try:
        set_attributes(descriptor, values)
        yield
    finally:
        signal.signal(signal.SIGCONT, old_handler)


def take_off_typed_ahead() -> None:
    """Erase the screen line with the keys that the terminal echoed before the first `without_echo`."""
    try:
        count = struct.unpack("i", fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, bytes(4)))[0]
    except OSError:
        return
    if count and not is_dumb():
        render.say_part("\r\x1b[K")


@contextmanager
def whole_pastes() -> Iterator[None]:
    """Inside this context the terminal marks pastes."""
    if is_dumb():
        yield
        return
    render.say_part("\x1b[?2004h")
    try:
        yield
    finally:
        render.say_part("\x1b[?2004l")


_kept_keys: bytearray | None = None
"""The keys that were typed before a question could be read; `None` if no input line waits for them."""
_READ_BYTES = 4096


@contextmanager
def keeping_keys() -> Iterator[bytearray]:
    """Inside this context, `take_unmeant_keys` keeps the keys, and does not discard them."""
    global _kept_keys
    before, _kept_keys = _kept_keys, bytearray()
    try:
        yield _kept_keys
    finally:
        _kept_keys = before


def take_unmeant_keys() -> None:
    """Take all typed keys from the terminal, because they are no answer to the question on the screen.

    Raises `OSError` or `termios.error` if the terminal is gone.
    """
    if _kept_keys is None:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        return
    while select.select([sys.stdin], [], [], 0)[0]:
        piece = os.read(sys.stdin.fileno(), _READ_BYTES)
        if not piece:
            raise OSError(errno.EIO, "The terminal is gone.")
        _kept_keys.extend(piece)


@contextmanager
def shell_mode() -> Iterator[None]:
    """Within `without_echo`: the terminal has the mode of the shell, for programs and questions that read lines."""
    if _shell_attributes is None:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = attributes(descriptor)
    try:
        with _set(descriptor, _shell_attributes):
            yield
    finally:
        set_attributes(descriptor, before)


@contextmanager
def line_question(question: str) -> Iterator[None]:
    """`shell_mode`, with a question that a line answers. Within `without_echo`, lines typed before the question are
    discarded.
    """
    # The mode is set first, because an Enter typed before that would not end a line.
    with shell_mode():
        if _shell_attributes is not None:
            try:
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
            except termios.error:
                pass  # the terminal is gone; the next read reports it
        render.say_part(question)
        yield


@contextmanager
def hidden_line(question: str) -> Iterator[None]:
    """`line_question`, without an echo of the line."""
    descriptor = sys.stdin.fileno()
    with shell_mode():
        before = attributes(descriptor)
        values = list(before) if before is not None else None
        if values is not None:
            values[3] = _flags(values, 3) & ~termios.ECHO
        try:
            with _set(descriptor, values):
                render.say_part(question)
                yield
        finally:
            set_attributes(descriptor, before)


def _flags(attributes: list[object], place: int) -> int:
    flags = attributes[place]
    assert isinstance(flags, int)
    return flags


def _hushed(before: list[object] | None) -> list[object] | None:
    if before is None:
        return None
    values = list(before)
    # Enter stays Enter for the line editor, which reads it later, and does not become Ctrl-J.
    values[0] = _flags(before, 0) & ~termios.ICRNL
    # Ctrl-C stops the turn and keeps typed text, which the line editor does not send by itself.
    no_flush = 0 if is_dumb() else termios.NOFLSH
    values[3] = _flags(before, 3) & ~(termios.ICANON | termios.ECHO) | no_flush
    # A read returns after one key.
    assert isinstance(before[6], list)
    values[6] = keys = list(before[6])
    keys[termios.VMIN], keys[termios.VTIME] = 1, 0
    # A turn that is stopped during drawing would leave the shell without a cursor.
    keys[termios.VSUSP] = b"\0"
    return values


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside this context Ctrl-C does nothing outside of the line editor and of `interruptible`.

    Otherwise a second press could end deepctl between a stopped turn and the next line.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _ignored)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within `undisturbed`: Ctrl-C raises `Interrupted` inside this context."""
    if signal.getsignal(signal.SIGINT) is not _ignored:
        yield
        return
    try:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            yield
        finally:
            _ignore()
    except KeyboardInterrupt:
        raise Interrupted("Interrupted.") from None


def _ignore() -> None:
    try:
        signal.signal(signal.SIGINT, _ignored)
    except KeyboardInterrupt:
        # A pending signal is handled before the handler changes.
        signal.signal(signal.SIGINT, _ignored)
        raise


def _ignored(number: int, frame: FrameType | None) -> None:
    # A handler, and not SIG_IGN, which started programs would inherit.
    return


@contextmanager
def terminable() -> Iterator[None]:
    """Inside this context SIGTERM and SIGHUP raise `Terminated`, so that the terminal is restored. An ignored signal
    stays ignored.

    A turn of the agent handles them itself, to end its own processes first.
    """
    descriptor = sys.stdin.fileno()
    attributes_before = attributes(descriptor)
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    caught_signals = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in caught_signals:
        signal.signal(number, terminate)
    try:
        yield
    except Terminated:
        # It may have been raised during drawing, which could not restore the terminal itself.
        set_attributes(descriptor, attributes_before)
        if not is_dumb():
            render.say_part(_SET_BACK)
        raise
    finally:
        for number in caught_signals:
            handler = before[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
