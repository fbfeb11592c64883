"""A conversation as people read it: turn by turn, with long calls and results folded."""

from __future__ import annotations

import sys
from typing import Any

from deepctl.output.render import notice
from deepctl.output.text import has_colour, printable, printable_lines
from deepctl.quantities import counted
from deepctl.store import session_log, transcript
from deepctl.store.session_log import MessageList
from deepctl.store.transcript import Piece

INTERRUPTED = "(no whole answer: interrupted, failed, or still at work)"
COMPACTED = "Compacted: from here on the model sees this summary instead of what was said first."

_FOLD_LINES = 6
_FOLD_LENGTH = 400
_ON_A_LINE, _SHORT = 3, 80

_HEADING, _PROMPT, _CALL, _QUIET, _FAILED, _PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[33m", "\x1b[2m", "\x1b[31m", "\x1b[0m"


def print_conversation(conversation: MessageList, *, full: bool = False) -> int:
    """Print a transcript; without `full`, thoughts are left out. Returns how many calls and results were folded."""
    printer = _Printer(full=full)
    messages = conversation.messages
    for number, entry in enumerate(messages):
        if not number or entry.turn != messages[number - 1].turn:
            if number:
                print()
            printer.line(_HEADING, f"--- turn {entry.turn} · {entry.at.partition('.')[0].rstrip('Z')}Z")
        printer.message(entry.message)
        is_last = number + 1 == len(messages) or messages[number + 1].turn != entry.turn
        if is_last and not transcript.is_answered(messages, number):
            printer.line(_QUIET, INTERRUPTED)
    for damage in conversation.damage:
        notice(f"{damage.file} line {damage.line}: {damage.reason}; left out.")
    return printer.folded


class _Printer:
    """Prints pieces, and counts what it folds."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._coloured = has_colour(sys.stdout)
        self.folded = 0

    def line(self, colour: str, text: str) -> None:
        """One or more lines of which the text is safe."""
        if self._coloured and colour:
            text = "\n".join(f"{colour}{line}{_PLAIN}" for line in text.split("\n"))
        print(text)

    def message(self, message: dict[str, Any]) -> None:
        """All of a message."""
        typed = session_log.prompt(message)
        for piece in transcript.pieces(message):
            match piece.kind:
                case "prompt":
                    # What is in the user's role but is not what the user typed was added by a capability.
                    if typed is not None:
                        self.line(_PROMPT, "\n".join(f"> {line}" for line in printable_lines(piece.text).split("\n")))
                case "text":
                    self.line("", printable_lines(piece.text))
                case "summary":
                    self.line(_QUIET, _indented("  ≡ ", f"{COMPACTED}\n{self._fold(piece)}"))
                case "thinking":
                    if self._full:
                        self.line(_QUIET, _indented("  ~ ", printable_lines(piece.text)))
                case "call":
                    self.line(_CALL, _indented(f"  → {printable(piece.tool)} ", _joined(self._fold(piece))).rstrip())
                case "result":
                    colour = _QUIET if piece.ok else _FAILED
                    mark = f"  {'←' if piece.ok else '✗'} {printable(piece.tool)}: "
                    self.line(colour, _indented(mark, self._fold(piece)).rstrip())

    def _fold(self, piece: Piece) -> str:
        text = piece.text.rstrip("\n")
        lines = text.split("\n")
        if self._full or (len(lines) <= _FOLD_LINES + 1 and len(text) <= _FOLD_LENGTH):
            return printable_lines(text)
        self.folded += 1
        shown = "\n".join(lines[:_FOLD_LINES])
        if len(shown) > _FOLD_LENGTH:
            return f"{printable_lines(shown[:_FOLD_LENGTH])}… ({len(text):,} characters)"
        return f"{printable_lines(shown)}\n… ({counted(len(lines) - _FOLD_LINES, 'more line')})"


def _joined(arguments: str) -> str:
    """Few and short arguments on one line."""
    lines = arguments.split("\n")
    one = ", ".join(lines)
    fits = len(lines) <= _ON_A_LINE and len(one) <= _SHORT and not any(line.endswith(":") for line in lines)
    return one if fits else arguments


def _indented(mark: str, text: str) -> str:
    return mark + text.replace("\n", "\n    ")
