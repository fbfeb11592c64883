"""A conversation as text: at a terminal, turn by turn with long calls and results folded; or as a Markdown document.

In Markdown, prompts are quotations, and calls and results are fenced with a fence longer than any inside. Answers are
Markdown already and stay as they are, but a fence or a comment that they leave open is closed, so that it does not
swallow the rest. Control characters are shown as escapes.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from deepctl.output.render import fit, has_colour, notice, printable, printable_lines, wrapped
from deepctl.quantities import counted
from deepctl.store import log_file, transcript
from deepctl.store.log_file import Message, MessageList
from deepctl.store.transcript import TranscriptPiece

if TYPE_CHECKING:
    # What only an export has.
    from deepctl.store.session_export import ExportDocument

COMPACTED = "Compacted: from here on, the model sees this summary instead of the earlier messages."

_FOLD_LINES = 6
_FOLD_LENGTH = 400
_ON_A_LINE, _SHORT = 3, 80
_LOW = 20
"""Rows of a window below which less of the last exchange is shown."""

_HEADING, _PROMPT, _CALL, _QUIET, _FAILED, _PLAIN = "\x1b[1m", "\x1b[36m", "\x1b[33m", "\x1b[2m", "\x1b[31m", "\x1b[0m"


def print_conversation(conversation: MessageList, *, full: bool = False) -> int:
    """Print a transcript; without `full`, thinking is left out. Returns the number of shortened calls and results."""
    printer = _Printer(full=full)
    messages = conversation.messages
    for number, entry in enumerate(messages):
        if not number or entry.turn != messages[number - 1].turn:
            if number:
                print()
            printer.line(_HEADING, f"--- turn {entry.turn} · {entry.at.partition('.')[0].rstrip('Z')}Z")
        printer.message(entry.message)
        is_last = number + 1 == len(messages) or messages[number + 1].turn != entry.turn
        if is_last and (problem := transcript.problem(messages, number)) is not None:
            printer.line(_QUIET, f"({problem})")
    for damage in conversation.damage:
        notice(f"{damage.file} line {damage.line}: {damage.reason}; left out.")
    return printer.folded


class _Printer:
    """Prints pieces, and counts the shortened ones."""

    def __init__(self, *, full: bool) -> None:
        self._full = full
        self._coloured = has_colour(sys.stdout)
        self.folded = 0

    def line(self, colour: str, text: str) -> None:
        """One or more lines of safe text."""
        if self._coloured and colour:
            text = "\n".join(f"{colour}{line}{_PLAIN}" for line in text.split("\n"))
        print(text)

    def message(self, message: dict[str, Any]) -> None:
        """All parts of a message."""
        prompt_text = log_file.prompt(message)
        for piece in transcript.pieces(message):
            match piece.kind:
                case "prompt":
                    # Content in the user's role that the user did not type was added by a capability.
                    if prompt_text is not None:
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

    def _fold(self, piece: TranscriptPiece) -> str:
        text = piece.text.rstrip("\n")
        lines = text.split("\n")
        if self._full or (len(lines) <= _FOLD_LINES + 1 and len(text) <= _FOLD_LENGTH):
            return printable_lines(text)
        self.folded += 1
        excerpt = "\n".join(lines[:_FOLD_LINES])
        if len(excerpt) > _FOLD_LENGTH:
            return f"{printable_lines(excerpt[:_FOLD_LENGTH])}… ({len(text):,} characters)"
        return f"{printable_lines(excerpt)}\n… ({counted(len(lines) - _FOLD_LINES, 'more line')})"


def _joined(arguments: str) -> str:
    """Few and short arguments on one line."""
    lines = arguments.split("\n")
    line_text = ", ".join(lines)
    fits = len(lines) <= _ON_A_LINE and len(line_text) <= _SHORT and not any(line.endswith(":") for line in lines)
    return line_text if fits else arguments


def _indented(mark: str, text: str) -> str:
    return mark + text.replace("\n", "\n    ")


def exchange_lines(prompt: str, answer: str, width: int, height: int) -> list[str]:
    """The last prompt of a session and the end of the answer, in lines for a window of `width` by `height` cells."""
    is_low = height < _LOW
    prompt_lines = _wrapped_lines(prompt, width - 3)
    answer_lines = _wrapped_lines(answer, width - 3)
    shown_prompts = prompt_lines[: 1 if is_low else 2]
    if len(prompt_lines) > len(shown_prompts):
        shown_prompts[-1] = fit(f"{shown_prompts[-1]} ", width - 4).rstrip("…").rstrip() + "…"
    most = 3 if is_low else 6
    shown_answers = answer_lines[-most:]
    if len(answer_lines) > most:
        shown_answers[0] = "…"
    marks = ["> ", *["  "] * len(shown_prompts)]
    return [f"{mark}{line}" for mark, line in zip(marks, shown_prompts, strict=False)] + [
        f"  {line}".rstrip() for line in shown_answers
    ]


def _wrapped_lines(text: str, room: int) -> list[str]:
    """The lines of a text in this number of cells, without empty ones at its ends and repeated ones inside."""
    rows: list[str] = []
    for line in printable_lines(text).strip().expandtabs(4).split("\n"):
        if line.strip() or (rows and rows[-1]):
            rows += [fit(row, room) for row in wrapped(line.rstrip(), room)] if line.strip() else [""]
    return rows


_MARKDOWN_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_BACKTICKS = re.compile(r"`{3,}")


def markdown(export: ExportDocument) -> str:
    """The document, with a newline at its end."""
    turns = len({entry.turn for entry in export.messages})
    blocks = [f"# Session {export.name}", f"Started {export.created_at}; {counted(turns, 'turn')}."]
    if export.damaged:
        amount = counted(len(export.damaged), "damaged line")
        blocks.append(f"**The log of this session has {amount}. This export does not contain the lost text.**")
    messages = export.messages
    for number, entry in enumerate(messages):
        if not number or entry.turn != messages[number - 1].turn:
            blocks.append(f"## Turn {entry.turn} · {entry.at.partition('.')[0].rstrip('Z')}Z")
        blocks += _markdown_message(entry)
        is_last = number + 1 == len(messages) or messages[number + 1].turn != entry.turn
        if is_last and (problem := transcript.problem(messages, number)) is not None:
            blocks.append(f"*({problem})*")
    return "\n\n".join(blocks) + "\n"


def _markdown_message(entry: Message) -> list[str]:
    prompt_text = log_file.prompt(entry.message)
    return [
        _block(piece)
        for piece in transcript.pieces(entry.message)
        if piece.kind != "thinking" and (piece.kind != "prompt" or prompt_text is not None)
    ]


def _block(piece: TranscriptPiece) -> str:
    text = printable_lines(piece.text).replace("\r", "").strip("\n")
    match piece.kind:
        case "prompt":
            return "\n".join(f"> {line}".rstrip() for line in _closed(text).split("\n"))
        case "call":
            return f"Calls {_code(piece.tool)}" + (f":\n\n{in_fence(text)}" if text else ".")
        case "result":
            title = "Result" if piece.ok else "Failed"
            return f"{title} of {_code(piece.tool)}" + (f":\n\n{in_fence(text)}" if text else ": nothing.")
        case "summary":
            return f"*{COMPACTED}*\n\n{_closed(text)}"
        case _:
            return _closed(text)


def _code(name: str) -> str:
    return f"`{printable(name).replace('`', '')}`"


def in_fence(text: str) -> str:
    """`text` between fences that no text inside can end."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _closed(text: str) -> str:
    """Markdown with an open fence, or an open comment outside of a fence, closed."""
    fence = ""
    outer_lines: list[str] = []
    for line in text.split("\n"):
        match = _MARKDOWN_FENCE.fullmatch(line)
        if not fence:
            if match is not None and not (match[1].startswith("`") and "`" in match[2]):
                fence = match[1]
            else:
                outer_lines.append(line)
        elif match is not None and match[1].startswith(fence) and not match[2].strip():
            fence = ""
    if fence:
        return f"{text}\n{fence}"
    comment = "\n".join(outer_lines).rpartition("<!--")
    return f"{text} -->" if comment[1] and "-->" not in comment[2] else text
