"""The pieces of a conversation as text, for transcripts and for searching.

Text that capabilities add in the user's role (memory snapshots) and instructions for the model are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from deepctl.quantities import size
from deepctl.store import log_file
from deepctl.store.log_file import Message

Role = Literal["user", "assistant", "tool"]
Kind = Literal["prompt", "text", "thinking", "call", "result", "summary"]


class TranscriptPiece(NamedTuple):
    """One prompt, piece of an answer, tool call, result, or summary of a compaction.

    `tool` is the tool's name, `ok` whether it succeeded.
    """

    role: Role
    kind: Kind
    text: str
    tool: str = ""
    ok: bool = True


def pieces(message: dict[str, Any]) -> Iterator[TranscriptPiece]:
    """The pieces of one message, in order; pieces without text are left out, except for calls and results."""
    for part in log_file.parts(message):
        piece = _piece(part)
        if piece is not None and (piece.text or piece.tool):
            yield piece


def is_answer(message: dict[str, Any]) -> bool:
    """Whether a turn that ends with this message is complete."""
    calls = any(part.get("part_kind") == "tool-call" for part in log_file.parts(message))
    is_whole = message.get("state") != "interrupted" and message.get("finish_reason") not in _CUT
    has_text = any(piece.kind != "thinking" for piece in pieces(message))
    return message.get("kind") == "response" and is_whole and has_text and not calls


def problem(messages: Sequence[Message], place: int) -> str | None:
    """The reason why the turn that ends at `place` is not complete, for people; `None` if it is complete.

    Summaries of compactions at its end are ignored, and so are the results of calls that were not run.
    """
    turn = messages[place].turn
    while place and messages[place - 1].turn == turn and _is_summary(messages[place].message):
        place -= 1
    if is_answer(messages[place].message):
        return None
    before = [entry.message for entry in messages[: place + 1] if entry.turn == turn]
    reasons = [message.get("finish_reason") for message in before if message.get("kind") == "response"]
    return _CUT.get(str(reasons[-1]), INTERRUPTED) if reasons else INTERRUPTED


INTERRUPTED = "no complete answer: interrupted, failed, or still running"
_CUT = {
    "length": "not the whole answer: it reached its maximum length",
    "content_filter": "not the whole answer: the model or the content filter of its provider refused it",
}
"""By the reason to stop of an answer that is not whole, its description for people."""


def _is_summary(message: dict[str, Any]) -> bool:
    kinds = {part.get("part_kind") for part in log_file.parts(message)}
    return message.get("kind") == "request" and kinds == {"compaction"}


def _piece(part: dict[str, Any]) -> TranscriptPiece | None:
    match part.get("part_kind"):
        case "user-prompt":
            return TranscriptPiece("user", "prompt", _prompt(part.get("content")))
        case "text":
            return TranscriptPiece("assistant", "text", as_text(part.get("content")))
        case "compaction":
            return TranscriptPiece("assistant", "summary", as_text(part.get("content")))
        case "thinking":
            return TranscriptPiece("assistant", "thinking", as_text(part.get("content")))
        case "tool-call" | "builtin-tool-call" | "native-tool-call":
            return TranscriptPiece("assistant", "call", as_text(_parsed(part.get("args"))), _tool(part))
        case "tool-return" | "builtin-tool-return" | "native-tool-return":
            ok = part.get("outcome", "success") == "success"
            return TranscriptPiece("tool", "result", _result(part.get("content")), _tool(part), ok)
        case "retry-prompt":
            return TranscriptPiece("tool", "result", as_text(part.get("content")), _tool(part), ok=False)
        case "file":
            return TranscriptPiece("assistant", "text", _item(part.get("content")))
        case _:
            return None


def _tool(part: dict[str, Any]) -> str:
    return str(part.get("tool_name") or "?")


def _prompt(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(text for item in content if (text := _item(item)))
    return content if isinstance(content, str) else ""


def _result(content: object) -> str:
    """The result of a tool; files in a list are described, as in a prompt."""
    if isinstance(content, list) and any(isinstance(item, dict) and item.get("kind") == "binary" for item in content):
        return "\n".join(_item(item) or as_text(item) for item in content)
    return as_text(content)


def _item(item: object) -> str:
    """One item of a prompt: its text, or a description of a picture or another file."""
    match item:
        case str():
            return item
        case {"kind": "text-content", "metadata": {"deepctl": "attached", "path": str(path), "kind": "text"} as about}:
            return f"[{path}{_of_size(about.get('bytes'))}]"
        case {"kind": "text-content", "metadata": dict()}:
            return ""  # text of a capability
        case {"kind": "text-content", "content": str(text)}:
            return text
        case {"kind": "binary", "media_type": str(media), "data": str(data)}:
            noun = "image" if media.startswith("image/") else media
            return f"[{noun}{_of_size(len(data.rstrip('=')) * 3 // 4)}]"
        case {"url": str(url)}:
            return f"[{url}]"
        case {"kind": str(kind)}:
            return f"[{kind}]"
        case _:
            return ""


def _of_size(value: object) -> str:
    return f", {size(value)}" if isinstance(value, int) else ""


def _parsed(arguments: object) -> object:
    """The arguments of a call, which models send as JSON in a string."""
    if isinstance(arguments, str):
        try:
            return json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
    return arguments


def as_text(value: object) -> str:
    """A value for people: text unchanged, an object as one line per key, everything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value:
        return "\n".join(_line(str(key), inner) for key, inner in value.items())
    return "" if value is None or value == {} else json.dumps(value, ensure_ascii=False)


def _line(key: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{key}:\n{text}" if "\n" in text else f"{key}: {text}"
