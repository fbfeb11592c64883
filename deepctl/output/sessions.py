"""How sessions look."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from deepctl.domain.sessions.catalogue import Summary, parts, prompt
from deepctl.domain.sessions.log import Conversation
from deepctl.output.render import notice
from deepctl.output.text import ago, is_terminal, printable, printable_lines, table

_FOLD_AT = 200


def _document(session: Summary) -> dict[str, Any]:
    found = session._asdict()
    for key in ("problem", "damage"):
        if not found[key]:
            del found[key]
    return found


class SessionList(NamedTuple):
    profile: str
    sessions: list[Summary]

    def document(self) -> dict[str, Any]:
        return {"profile": self.profile, "sessions": [_document(session) for session in self.sessions]}

    def print(self) -> None:
        terminal = is_terminal(sys.stdout)
        if terminal and not self.sessions:
            notice(f"Profile {self.profile} has no sessions yet; `deepctl chat --user {self.profile}` starts one.")
            return
        table(
            ("SESSION", "UPDATED", "TURNS", "TITLE"),
            [
                (
                    session.name,
                    ago(session.updated_at) if terminal else session.updated_at or "-",
                    str(session.turns),
                    f"(damaged: {session.problem})" if session.problem else session.title,
                )
                for session in self.sessions
            ],
        )


class SessionShown(NamedTuple):
    """A whole conversation: in JSON every message as pydantic-ai wrote it, as text a transcript."""

    profile: str
    summary: Summary
    conversation: Conversation

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "sessions": [_document(self.summary)],
            "messages": [entry._asdict() for entry in self.conversation.messages],
            "damaged": [damage._asdict() for damage in self.conversation.damage],
        }

    def print(self) -> None:
        print_conversation(self.conversation)


def print_conversation(conversation: Conversation) -> None:
    """Print a transcript, turn by turn."""
    messages = conversation.messages
    for number, entry in enumerate(messages):
        if not number or entry.turn != messages[number - 1].turn:
            print(f"{chr(10) if number else ''}--- turn {entry.turn} · {entry.at.partition('.')[0]}Z")
        typed = prompt(entry.message)
        if typed is not None:
            print("\n".join(f"> {line}" for line in printable_lines(typed).split("\n")))
        for part in parts(entry.message):
            line = _part(part)
            if line is not None:
                print(line)
        is_last = number + 1 == len(messages) or messages[number + 1].turn != entry.turn
        if is_last and not _is_answer(entry.message):
            print("(no whole answer: interrupted, failed, or still at work)")
    for damage in conversation.damage:
        notice(f"{damage.file} line {damage.line}: {damage.reason}; left out.")


def _is_answer(message: dict[str, Any]) -> bool:
    calls = any(part.get("part_kind") == "tool-call" for part in parts(message))
    return message.get("kind") == "response" and message.get("state") != "interrupted" and not calls


def _part(part: dict[str, Any]) -> str | None:
    match part.get("part_kind"):
        case "text":
            return printable_lines(str(part.get("content", "")))
        case "tool-call":
            return f"  → {printable(str(part.get('tool_name')))} {_folded(part.get('args'))}"
        case "tool-return":
            mark = "←" if part.get("outcome", "success") == "success" else "✗"
            return f"  {mark} {_folded(part.get('content'))}"
        case _:
            return None


def _folded(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    shown = printable(text)
    return shown if len(shown) <= _FOLD_AT else f"{shown[:_FOLD_AT]}… ({len(text)} characters)"
