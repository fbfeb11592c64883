"""Stored conversations as pydantic-ai's messages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from pydantic import ValidationError
from pydantic_ai.messages import FileUrl, ModelMessage, ModelMessagesTypeAdapter, ModelRequest, UserPromptPart

from deepctl.agent import message_filters
from deepctl.agent.checkpoint_stores import Checkpoint
from deepctl.domain import addresses
from deepctl.errors import Damaged, Refused
from deepctl.store import log_file, pydantic_deep, session_log, session_reader
from deepctl.unicode import whole

_REASON = 100
"""Characters of the reason for an invalid message, because pydantic lists all alternatives."""


def time_of(text: str) -> datetime:
    """A time in RFC 3339; one without a zone is taken for UTC."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)


def last_prompt(conversation: Sequence[ModelMessage]) -> str:
    """The last text of the user; empty if there is none."""
    for message in reversed(conversation):
        for part in message.parts if isinstance(message, ModelRequest) else ():
            if isinstance(part, UserPromptPart):
                texts = [part.content] if isinstance(part.content, str) else part.content
                # Content that capabilities add in the user's role is not plain text.
                plain_texts = [text for text in texts if isinstance(text, str)]
                if plain_texts:
                    return whole("\n".join(plain_texts))
    return ""


def parse_log(directory: str, log_id: str) -> tuple[list[int], list[ModelMessage]]:
    """The offset after each message in a log (0 for messages of the logs that it continues), and all these messages."""
    entries = list(session_log.plain_lines(directory, log_id))
    parent_messages: list[ModelMessage] = []
    if entries and session_log.parent_of(directory, log_id) is not None:
        parent_messages = validate(session_reader.read_log(directory, log_id, entries[0].end), log_id)
    own_entries = [entry for entry in entries if entry.message is not None]
    try:
        messages = ModelMessagesTypeAdapter.validate_python([entry.message for entry in own_entries])
    except ValidationError as error:
        raise Damaged(f"The message log {log_id} has invalid messages: {error}.") from None
    return [0] * len(parent_messages) + [entry.end for entry in own_entries], parent_messages + messages


def validate(conversation: log_file.MessageList, subject: str) -> list[ModelMessage]:
    """A conversation as messages. Raises `Damaged`; `subject` names it."""
    if any(not damage.torn for damage in conversation.damage):
        raise Damaged(f"The conversation of {subject} is damaged: {conversation.damage[0].reason}.")
    try:
        return ModelMessagesTypeAdapter.validate_python([entry.message for entry in conversation.messages])
    except ValidationError as error:
        raise Damaged(f"The conversation of {subject} is invalid: {error}.") from None


def import_checkpoint(path: str) -> Checkpoint:
    """A checkpoint of pydantic-deep. Raises `Damaged`."""
    document = pydantic_deep.read(path)
    try:
        conversation = ModelMessagesTypeAdapter.validate_python(document.messages)
    except ValidationError as error:
        raise Damaged(f"The messages in {path} are invalid: {error}.") from None
    header = document.header
    return Checkpoint(
        header.id,
        header.label,
        header.turn,
        conversation,
        len(conversation),
        time_of(header.created_at),
        document.metadata,
    )


def check(messages: Sequence[dict[str, Any]], subject: str) -> None:
    """Check that a foreign conversation can be continued; `subject` names it. Raises `Damaged` or `Refused`.

    A request for files from this machine's own network is an attack. Every other file with an address is checked when
    the conversation continues (`deepctl.agent.message_filters`).
    """
    try:
        model_messages = ModelMessagesTypeAdapter.validate_python(messages)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        number = first["loc"][0] if first["loc"] else None
        place = f"message {number + 1}" if isinstance(number, int) else "a message"
        reason = first["msg"] if len(first["msg"]) <= _REASON else first["msg"][:_REASON] + "…"
        raise Damaged(f"{subject} is damaged: {place} is invalid ({reason}).", "Nothing was imported.") from None

    def refuse_local(item: object) -> None:
        if isinstance(item, FileUrl) and message_filters.is_local(item):
            raise Refused(
                f"{subject} refers to files on the network of this machine ({addresses.without_passwords(item.url)}).",
                "Nothing was imported.",
                code="local_download",
            )

    for message in model_messages:
        message_filters.replace_text(message, refuse_local)
