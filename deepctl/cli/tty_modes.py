"""The terminal while a turn or a command runs: how it is set, what signals mean, and that it is set back."""

from __future__ import annotations

import fcntl
import signal
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deepctl.errors import Interrupted, Terminated, terminate
from deepctl.output import render, terminal_caps
from deepctl.quantities import counted

_SET_BACK = "\x1b[?2004l\x1b[?7h\x1b[?25h\x1b[0m\x1b[J"
"""Pastes are not marked, long lines wrap, there is a cursor, nothing is coloured, and nothing is below the cursor."""

_found: list[object] | None = None
"""How the terminal was set when the outermost `quiet` was entered."""


def attributes(descriptor: int) -> list[object] | None:
    """How the terminal is set, or `None` where there is none (any more)."""
    try:
        return list(termios.tcgetattr(descriptor))
    except termios.error:
        return None


def set_attributes(descriptor: int, wanted: list[object] | None) -> None:
    """Set the terminal again as it was; nothing if it is gone."""
    try:
        if wanted is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, wanted)  # type: ignore[arg-type]
    except termios.error:
        pass


@contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile nothing that is typed is shown, and it waits for whoever reads next. Ctrl-C stays a signal."""
    global _found
    descriptor = sys.stdin.fileno()
    before, outer = attributes(descriptor), _found
    try:
        _found = outer or before
        with _set(descriptor, _hushed(before)):
            yield
    finally:
        set_attributes(descriptor, before)
        _found = outer


@contextmanager
def _set(descriptor: int, wanted: list[object] | None) -> Iterator[None]:
    """Meanwhile the terminal is set so, also after deepctl was stopped and the shell has set it to its own taste."""

    def again(number: int, frame: FrameType | None) -> None:
        set_attributes(descriptor, wanted)

    resumed = signal.signal(signal.SIGCONT, again)
    try:
        set_attributes(descriptor, wanted)
        yield
    finally:
        signal.signal(signal.SIGCONT, resumed)


def typed_ahead() -> str:
    """How much has been typed within `quiet` and waits for whoever reads next, in a few words; nothing if none has."""
    try:
        count = struct.unpack("i", fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, bytes(4)))[0]
    except OSError:
        return ""
    return f"{counted(count, 'byte')} typed ahead" if count else ""


def take_off_typed_ahead() -> None:
    """Take what was typed and shown before there was a `quiet` off the line of the screen that it is on."""
    if typed_ahead() and not terminal_caps.is_dumb():
        render.say_part("\r\x1b[K")


@contextmanager
def whole_pastes() -> Iterator[None]:
    """Meanwhile a block that is pasted is marked as one, for the line editor that reads it later."""
    if terminal_caps.is_dumb():
        yield
        return
    render.say_part("\x1b[?2004h")
    try:
        yield
    finally:
        render.say_part("\x1b[?2004l")


@contextmanager
def plain() -> Iterator[None]:
    """Within `quiet`: meanwhile the terminal is as it was for the shell, for whoever takes lines, or all of it."""
    if _found is None:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = attributes(descriptor)
    try:
        with _set(descriptor, _found):
            yield
    finally:
        set_attributes(descriptor, before)


@contextmanager
def asked(question: str) -> Iterator[None]:
    """`plain`, with a question that a line answers. Within `quiet`, what was typed before it could be read does not."""
    # The mode first: Enter, typed a moment before it is set, would not end a line.
    with plain():
        if _found is not None:
            try:
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
            except termios.error:
                pass  # the terminal is gone, which reading from it finds out
        render.say_part(question)
        yield


def _flags(attributes: list[object], place: int) -> int:
    flags = attributes[place]
    assert isinstance(flags, int)
    return flags


def _hushed(before: list[object] | None) -> list[object] | None:
    if before is None:
        return None
    wanted = list(before)
    # Enter stays what it is for the line editor, which reads it later: not a Ctrl-J.
    wanted[0] = _flags(before, 0) & ~termios.ICRNL
    # Ctrl-C stops what runs, not what is being typed; the line editor sees to it that this is not sent by itself.
    kept = 0 if terminal_caps.is_dumb() else termios.NOFLSH
    wanted[3] = _flags(before, 3) & ~(termios.ICANON | termios.ECHO) | kept
    # One key is enough to be read, and none is waited for.
    assert isinstance(before[6], list)
    wanted[6] = keys = list(before[6])
    keys[termios.VMIN], keys[termios.VTIME] = 1, 0
    # A turn that is stopped in mid-drawing would leave the shell without a cursor.
    keys[termios.VSUSP] = b"\0"
    return wanted


@contextmanager
def undisturbed() -> Iterator[None]:
    """Meanwhile Ctrl-C does nothing but to what asks for it: the line editor, and what is `interruptible`.

    Somebody who presses it twice would otherwise end deepctl in the moment between what was stopped and the next line.
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
    """Within `undisturbed`: meanwhile Ctrl-C raises `Interrupted`."""
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
        # It was on its way, and is handled before its handler is another one.
        signal.signal(signal.SIGINT, _ignored)
        raise


def _ignored(number: int, frame: FrameType | None) -> None:
    # A handler, and not SIG_IGN, which programs that are started would inherit.
    return


@contextmanager
def terminable() -> Iterator[None]:
    """Meanwhile SIGTERM and SIGHUP raise `Terminated`, so that the terminal is set back. One that is ignored stays so.

    A turn of the agent takes them over, to end what it has started first.
    """
    descriptor = sys.stdin.fileno()
    attributes_before = attributes(descriptor)
    wanted = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in wanted}
    taken = [number for number in wanted if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, terminate)
    try:
        yield
    except Terminated:
        # It may have come in the middle of whatever draws, and kept that from putting things back itself.
        set_attributes(descriptor, attributes_before)
        if not terminal_caps.is_dumb():
            render.say_part(_SET_BACK)
        raise
    finally:
        for number in taken:
            handler = before[number]
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
