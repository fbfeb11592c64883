"""A session as a Markdown document that is read anywhere.

Prompts are quotations, calls and results are fenced with a fence longer than any inside. Answers are Markdown already
and stay as they are, but a fence or a comment they leave open is closed, so that it does not swallow what follows.
Control characters are shown as escapes.
"""

from __future__ import annotations

import re

from deepctl.output.sessions_transcript import COMPACTED, INTERRUPTED
from deepctl.output.text import printable, printable_lines
from deepctl.quantities import counted
from deepctl.store import session_log, transcript
from deepctl.store.session_export import ExportDocument
from deepctl.store.session_log import Message
from deepctl.store.transcript import Piece

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_RUN = re.compile(r"`{3,}")


def markdown(export: ExportDocument) -> str:
    """The document, with a newline at its end."""
    turns = len({entry.turn for entry in export.messages})
    blocks = [f"# Session {export.name}", f"Began {export.created_at}; {counted(turns, 'turn')}."]
    if export.damaged:
        lost = counted(len(export.damaged), "damaged line")
        blocks.append(f"**Its log has {lost}; what was there is not here.**")
    messages = export.messages
    for number, entry in enumerate(messages):
        if not number or entry.turn != messages[number - 1].turn:
            blocks.append(f"## Turn {entry.turn} · {entry.at.partition('.')[0].rstrip('Z')}Z")
        blocks += _message(entry)
        is_last = number + 1 == len(messages) or messages[number + 1].turn != entry.turn
        if is_last and not transcript.is_answered(messages, number):
            blocks.append(f"*{INTERRUPTED}*")
    return "\n\n".join(blocks) + "\n"


def _message(entry: Message) -> list[str]:
    typed = session_log.prompt(entry.message)
    return [
        _block(piece)
        for piece in transcript.pieces(entry.message)
        if piece.kind != "thinking" and (piece.kind != "prompt" or typed is not None)
    ]


def _block(piece: Piece) -> str:
    text = printable_lines(piece.text).replace("\r", "").strip("\n")
    match piece.kind:
        case "prompt":
            return "\n".join(f"> {line}".rstrip() for line in _closed(text).split("\n"))
        case "call":
            return f"Calls {_code(piece.tool)}" + (f":\n\n{fenced(text)}" if text else ".")
        case "result":
            what = "Result" if piece.ok else "Failed"
            return f"{what} of {_code(piece.tool)}" + (f":\n\n{fenced(text)}" if text else ": nothing.")
        case "summary":
            return f"*{COMPACTED}*\n\n{_closed(text)}"
        case _:
            return _closed(text)


def _code(name: str) -> str:
    return f"`{printable(name).replace('`', '')}`"


def fenced(text: str) -> str:
    """`text` between fences that nothing inside can end."""
    longest = max((len(found) for found in _RUN.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _closed(text: str) -> str:
    """Markdown with what it leaves open closed: a fence, or a comment outside of one."""
    fence = ""
    outside: list[str] = []
    for line in text.split("\n"):
        found = _FENCE.fullmatch(line)
        if not fence:
            if found is not None and not (found[1].startswith("`") and "`" in found[2]):
                fence = found[1]
            else:
                outside.append(line)
        elif found is not None and found[1].startswith(fence) and not found[2].strip():
            fence = ""
    if fence:
        return f"{text}\n{fence}"
    left = "\n".join(outside).rpartition("<!--")
    return f"{text} -->" if left[1] and "-->" not in left[2] else text
