"""Filters of the messages for a model: left out files are replaced by a text. The log keeps the original messages.

- Files by address. A conversation may come from an import, an archive, another program's checkpoints or an application.
  Its content must not make this machine fetch an address, nor give access to its network. So a file by address stays
  only if the client of the model passes the address on unchanged, and the address is on the public internet.
  References to files in a provider's storage never stay: they belong to the owner of the key. The provider, or your own
  server, fetches the addresses that it receives. A public name can lead to a private address; this is not checked,
  because the check would need a lookup of the name.
- Pictures and PDFs: see `deepctl.agent.media_filter`.

A history is the conversation's context (`deepctl.store.session_log`) as pydantic-ai's messages, repaired after a
killed turn. Repairing joins messages, and a compaction in the middle of a turn replaces them, so the place of a
message in the conversation does not follow from its place in the history. The places are stored separately, by the
identity of the messages.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_ai.messages import (
    AudioUrl,
    DocumentUrl,
    FileUrl,
    ImageUrl,
    InstructionBaselinePart,
    InstructionDeltaPart,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequestPart,
    ModelResponse,
    TextContent,
    UploadedFile,
    UserPromptPart,
    VideoUrl,
    repair_messages,
)
from pydantic_ai.models import Model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RequestUsage

from deepctl.agent.limits import bounded_usage
from deepctl.agent.mentions import METADATA
from deepctl.store import log_file, session_log

_T = TypeVar("_T")

_PASSED_ON: dict[str, tuple[type[FileUrl], ...]] = {
    "OpenAIChatModel": (ImageUrl,),
    "OpenAIResponsesModel": (ImageUrl, DocumentUrl),
    "AnthropicModel": (ImageUrl, DocumentUrl),
    # These models have no client that could fetch a file.
    "FunctionModel": (ImageUrl, DocumentUrl, AudioUrl, VideoUrl),
    "TestModel": (ImageUrl, DocumentUrl, AudioUrl, VideoUrl),
}
"""The files that the clients of pydantic-ai 2.62 send as an address, by class; they fetch or refuse all other files."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_LAST_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_PRIVATE_NAMES = frozenset(
    ("arpa", "corp", "home", "internal", "intranet", "invalid", "lan", "local", "localdomain", "localhost", "private")
)
"""Top-level names that lead to no public address."""
_EMBEDDING = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""IPv6 networks in which the last 32 bits of an address are an IPv4 address (RFC 6052, RFC 8215)."""


def without_files(message: ModelMessage, model: Model | None) -> tuple[ModelMessage, int]:
    """A message without the files by address that `model` may not receive, and the number of left out files.

    Each file is replaced by a text with the reason.
    """
    count = 0

    def instead(item: object) -> str | None:
        nonlocal count
        problem = reason(item, model) if isinstance(item, FileUrl | UploadedFile) else None
        count += problem is not None
        return f"(A file with an address is left out here: {problem}.)" if problem is not None else None

    return replace_text(message, instead), count


def replace_text(message: ModelMessage, instead: Callable[[object], object]) -> ModelMessage:
    """A message whose values, at any depth of its parts, are replaced by what `instead` returns, except `None`."""
    parts = [replaced_in(part, instead) for part in message.parts]
    is_changed = any(new is not old for new, old in zip(parts, message.parts, strict=True))
    return replace(message, parts=parts) if is_changed else message  # type: ignore[arg-type]


def replaced_in(part: _T, instead: Callable[[object], object]) -> _T:
    """One part with its values replaced, as in `replace_text`."""
    if not is_dataclass(part):
        return part

    def text(value: object) -> object:
        replacement = instead(value)
        if not isinstance(replacement, str) or not isinstance(part, UserPromptPart):
            return replacement
        # The metadata shows that the user did not type this text.
        return TextContent(replacement, metadata={"deepctl": METADATA})

    changes = {}
    for field in fields(part):
        old = getattr(part, field.name)
        new = replaced_value(old, text)
        if field.init and new is not old:
            changes[field.name] = new
    return replace(part, **changes) if changes else part  # type: ignore[type-var]


def replaced_value(value: Any, text: Callable[[object], object]) -> Any:
    """One value, or the values in it, replaced as in `replace_text`."""
    new = text(value)
    if new is not None:
        return new
    if isinstance(value, Mapping):
        copy = {key: replaced_value(item, text) for key, item in value.items()}
        return copy if any(copy[key] is not item for key, item in value.items()) else value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        items = [replaced_value(item, text) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def reason(item: FileUrl | UploadedFile, model: Model | None = None) -> str | None:
    """The reason why a model may not receive a file by its address; `None` if it may. Without a model, there is one."""
    if isinstance(item, UploadedFile):
        return "it is in the storage of a provider"
    if item.force_download:
        return "this machine would have to fetch it"
    if not is_public(item.url):
        return "its address is not on the public internet"
    if not _is_passed_on(item, model):
        return "this machine would have to fetch it for this model"
    return None


def is_local(item: FileUrl | UploadedFile) -> bool:
    """Whether a message requests a file that only this machine's own network has."""
    return isinstance(item, FileUrl) and item.force_download == "allow-local"


def _is_passed_on(item: FileUrl, model: Model | None) -> bool:
    while isinstance(model, WrapperModel):
        model = model.wrapped
    kinds = [_PASSED_ON[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in _PASSED_ON]
    if not kinds or not isinstance(item, kinds[0]):
        return False
    if isinstance(item, DocumentUrl) and type(model).__name__ not in ("FunctionModel", "TestModel"):
        try:
            # Other documents are fetched, and sent as text.
            return item.media_type == "application/pdf"
        except ValueError:
            return False
    return True


def is_public(url: str) -> bool:
    """Whether an address has the scheme http or https, and its host is on the public internet, judged by its text.

    An address with unusual characters is not public, because a client may parse it differently.
    """
    if not url.isascii() or not url.isprintable() or re.search(r'[\s\\"<>^`{|}]', url):
        return False
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or "%" in parts.netloc:
        return False
    try:
        return _is_global(ipaddress.ip_address(host))
    except ValueError:
        return _is_public_name(host.removesuffix("."))


def _is_public_name(host: str) -> bool:
    labels = host.split(".")
    return (
        len(labels) > 1
        and len(host) < 254
        and all(_LABEL.fullmatch(label) for label in labels)
        and _LAST_LABEL.fullmatch(labels[-1]) is not None
        and labels[-1] not in _PRIVATE_NAMES
    )


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and (address in _EMBEDDING[0] or address in _EMBEDDING[1]):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_global(inner)
    return address.is_global and not address.is_multicast


def has_typed_text(part: ModelRequestPart) -> bool:
    """Whether a part contains typed text: plain text. Text that capabilities add has metadata."""
    return isinstance(part, UserPromptPart) and (
        isinstance(part.content, str) or any(isinstance(item, str) for item in part.content)
    )


MAX_UNANSWERED = 4_000
"""The characters of prompts without an answer that are sent again, besides the last one of several in a row."""


class SentHistory(NamedTuple):
    """The messages for a model. `places` has the places of unchanged messages of the conversation, by their `id`.

    From the place `begins` on, only messages without an answer are left out. `total` is the number of messages of the
    conversation, `unreadable` the number of invalid messages that are missing here, and `left_out` the number of files
    by address that are missing here. `unanswered` is the number of prompts at the end that are missing here.
    """

    messages: list[ModelMessage]
    places: Mapping[int, int] = {}
    begins: int = 0
    total: int = 0
    unreadable: int = 0
    left_out: int = 0
    unanswered: int = 0


def history_of(conversation: log_file.MessageList, model: Model | None = None) -> SentHistory:
    """The history with which a conversation continues, in a form that `model` may receive.

    This function checks the messages of conversations from any origin.
    """
    context = session_log.compacted_context(conversation)
    placed_messages: list[tuple[int, ModelMessage]] = []
    unreadable = left_out = 0
    for place in context.places:
        try:
            (message,) = ModelMessagesTypeAdapter.validate_python([conversation.messages[place].message])
        except ValidationError:
            unreadable += 1
            continue
        message, count = without_files(message, model)
        left_out += count
        before = context.summary is not None and place < context.summary
        message = _bounded(message)
        placed_messages.append((place, without_usage(message) if before else message))
    placed_messages, unanswered = _without_failed_prompts(placed_messages, conversation)
    messages = repair_messages([message for _, message in placed_messages])
    identities = {id(message) for message in messages}
    places = {
        id(message): place
        for place, message in placed_messages
        if id(message) in identities and place >= context.begins and place != context.summary
    }
    return SentHistory(messages, places, context.begins, len(conversation.messages), unreadable, left_out, unanswered)


def messages_of(conversation: log_file.MessageList) -> list[ModelMessage]:
    """A whole conversation, for display or for another agent: without invalid messages and files by address."""
    messages: list[ModelMessage] = []
    for entry in conversation.messages:
        with suppress(ValidationError):
            messages += ModelMessagesTypeAdapter.validate_python([entry.message])
    return [without_files(message, None)[0] for message in messages]


def _without_failed_prompts(
    placed_messages: list[tuple[int, ModelMessage]], conversation: log_file.MessageList
) -> tuple[list[tuple[int, ModelMessage]], int]:
    """The messages without those of some failed turns, and the number of failed turns at the end that are left out.

    A prompt whose turn failed before any answer is sent with the next prompt, which may refer to it. Of several failed
    turns in a row, the last one is sent, and earlier ones if their prompts are short and differ from later ones: a
    prompt that is too long would otherwise make every later turn fail. What is sent follows from the log alone.
    """
    turns = [list(group) for _, group in groupby(placed_messages, lambda entry: conversation.messages[entry[0]].turn)]
    kept_turns: list[list[tuple[int, ModelMessage]]] = []
    later_prompts: list[str] = []
    count, is_at_end = 0, True
    for turn in reversed(turns):
        if not all(_is_unanswered(message) for _, message in turn):
            later_prompts, is_at_end = [], False
            kept_turns.append(turn)
            continue
        text = "\n".join(log_file.prompt(conversation.messages[place].message) or "" for place, _ in turn)
        is_short = len("".join(later_prompts[1:])) + len(text) <= MAX_UNANSWERED
        if not later_prompts or (is_short and text not in later_prompts):
            later_prompts.append(text)
            kept_turns.append(turn)
        else:
            count += is_at_end
    return [entry for turn in reversed(kept_turns) for entry in turn], count


def _is_unanswered(message: ModelMessage) -> bool:
    """Whether a message is a prompt, or stands for a failed request: a response without parts."""
    if isinstance(message, ModelResponse):
        return not message.parts
    # pydantic-ai puts its record of the instructions into the first request, and adds it again if that is left out.
    return all(
        isinstance(part, UserPromptPart | InstructionBaselinePart | InstructionDeltaPart) for part in message.parts
    )


def without_usage(message: ModelMessage) -> ModelMessage:
    """The same without the tokens that its provider counted, because that request had more messages before it."""
    return replace(message, usage=RequestUsage()) if isinstance(message, ModelResponse) else message


def _bounded(message: ModelMessage) -> ModelMessage:
    # The usage in the log may be older than its bound, or imported. A history that names another workspace would not be
    # continued in this one.
    if not isinstance(message, ModelResponse):
        return message
    # pydantic-ai refuses a prompt after a suspended answer, which an imported conversation can end with.
    state = "interrupted" if message.state == "suspended" else message.state
    return replace(message, usage=bounded_usage(message.usage), workspace_ref=None, state=state)


def is_prompt(message: ModelMessage) -> bool:
    """Whether a message contains text that the user typed."""
    return log_file.prompt(ModelMessagesTypeAdapter.dump_python([message], mode="json")[0]) is not None


class Places:
    """The places of a turn's messages in the conversation, during the turn.

    A message is referenced as long as its place is known, so no other object can have its `id`.
    """

    def __init__(self, history: SentHistory) -> None:
        self._places = {
            id(message): (message, history.places[id(message)])
            for message in history.messages
            if id(message) in history.places
        }
        self._first = history.total
        self._asked: list[ModelMessage] = []
        self.begins = history.begins
        self.total = history.total

    def add(self, message: ModelMessage) -> None:
        """One more message has been recorded."""
        if not self._asked:
            self._asked = [message]
        self._places[id(message)] = (message, self.total)
        self.total += 1

    def compacted(self, begins: int, before: Sequence[ModelMessage], tail: Sequence[ModelMessage]) -> None:
        """Messages before the place `begins` are no longer sent; `tail` replaces the last messages of `before`."""
        places = [self._place(message) for message in before[len(before) - len(tail) :]]
        self._places = {
            id(message): (message, place) for message, place in zip(tail, places, strict=True) if place is not None
        }
        self.begins = begins

    def summarized(self) -> None:
        """The summary has been recorded; no message of the turn has its place."""
        self.total += 1

    def prompt_before(self, begins: int) -> list[ModelMessage]:
        """The prompt of the turn, if it is before place `begins`."""
        return self._asked if begins > self._first else []

    def begin_of(self, messages: Sequence[ModelMessage], cut: int) -> int | None:
        """The place in the conversation of the first message from `cut` on; `None` if it is unknown."""
        for index in range(cut, -1, -1):
            place = self._place(messages[index])
            if place is not None:
                # Requests are joined with requests, so the message before them is the answer that they follow.
                # Unrecorded messages come after all recorded ones.
                return place if index == cut else place + 1
        return None

    def _place(self, message: ModelMessage) -> int | None:
        entry = self._places.get(id(message))
        return entry[1] if entry is not None else None
