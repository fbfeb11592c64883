"""What comes from the keyboard: keys, pastes, what was typed too early, and that the terminal is gone."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit.input.vt100 import Vt100Input

_READ = 65536
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_BROKEN = re.compile("[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n|[\r\u2028\u2029]")
_NEW_LINE = "\x1b\r"
_ENDING = "\x03\x1a\x1c"
"""Ctrl-C, Ctrl-Z and Ctrl-backslash."""
CTRL_D = "\x04"
_PASTE = re.compile("(\x1b\\[200~.*?(?:\x1b\\[201~|\\Z))", re.DOTALL)


def cleaned(text: str) -> str:
    """What is pasted, as it is put into the line: newlines end its lines, and nothing in it is unseen."""
    return whole(_UNSEEN.sub("", _LINE_ENDS.sub("\n", text)))


def whole(text: str) -> str:
    """`text` with bytes that are no text replaced, so that it can be written anywhere."""
    return _BROKEN.sub("\ufffd", text)


def raw(descriptor: int) -> None:
    """Every key comes at once, as it is, and none is shown; nothing if the terminal is gone."""
    from prompt_toolkit.input.vt100 import raw_mode

    try:
        raw_mode(descriptor).__enter__()
    except termios.error:
        pass


def keyboard() -> Vt100Input:
    """Keys of stdin, which is `closed` once the terminal is gone; pastes are read in large pieces.

    prompt_toolkit's own takes EIO for a signal that came in between, and tries again for ever.
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
                piece = os.read(self.stdin_fd, _READ)
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

    return Keyboard()


def take_typed_ahead(keys: Vt100Input, before: list[object] | None, *, send: bool = True) -> bool:
    """Keep what was typed before the terminal was raw for the line; returns whether the terminal has shown some of it.

    `before` is how the terminal was set then: where it turned Enter into a newline, it is Enter again, and its mark of
    Ctrl-D is that key. Without `send`, Enter does not send what was typed, but begins a new line, and Ctrl-D does
    nothing.
    """
    from prompt_toolkit.input.typeahead import store_typeahead

    text = ""
    while piece := keys.stdin_reader.read():
        text += piece
    if not text:
        return False
    flags, shown = (0, 0) if before is None else (before[0], before[3])
    assert isinstance(flags, int)
    assert isinstance(shown, int)
    if shown & termios.ICANON:
        text = text.replace("\0", CTRL_D)
    # These were for what ran then, and did nothing to it.
    text = _replaced(text, _ENDING, "")
    if flags & termios.ICRNL:
        text = _replaced(text, "\n", "\r")
    if not send:
        text = _replaced(text, CTRL_D, "")
        text = _replaced(text.rstrip("\r"), "\r", _NEW_LINE)
    keys.vt100_parser.feed(text)
    store_typeahead(keys, keys.flush_keys())
    return bool(shown & termios.ECHO)


def _replaced(text: str, old: str, new: str) -> str:
    """`text` with each character of `old` replaced, but in what was pasted."""
    table = str.maketrans(dict.fromkeys(old, new))
    return "".join(part if part.startswith("\x1b[200~") else part.translate(table) for part in _PASTE.split(text))
