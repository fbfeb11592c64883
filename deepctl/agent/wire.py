"""The shape of requests to chat-completions servers: OpenAI's protocol, as servers of open models implement it.

The chat templates of open models are stricter than the protocol. Many raise an error, or leave out text, for a second
system message, for two user messages in a row, and for a user message after a tool result. So every request has

- one system message, first, with all text that pydantic-ai sends as system messages before the conversation;
- then user and assistant messages alternately, beginning with a user message; the results of an assistant message's
  tool calls are between it and the next message;
- text contents that are strings; lists only around pictures, files and cache markers;
- the prompt as the last text of its user message.

No text is lost: a tool result without its call becomes text of the user. The shape of a message does not depend on the
messages after it, so a request begins with the bytes of the request before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    TextContent,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from deepctl.agent.chat_answers import tolerant
from deepctl.agent.message_filters import has_typed_text
from deepctl.agent.response_recorder import LastResponse

Message = dict[str, Any]
"""A message of the protocol."""

_SYSTEM_ROLES = ("system", "developer")
NO_BEGINNING = "(The messages before this answer are left out.)"
NO_ANSWER = "(no answer)"
NO_RESULT = "(There is no result of this call.)"
ORPHAN = "(The result of an earlier tool call:)"
_MAPPING, _READING = "_map_messages", "_process_streamed_response"


def with_chat_shape(model: Model, last: LastResponse | None = None) -> Model:
    """The same model; if it speaks to chat-completions servers, with requests in their shape and corrected answers.

    The models in a wrapper, or in a fallback, are found too. `model` itself is not changed. `last` is the record of the
    last response of its server.
    """
    changes: dict[str, Any] = {}
    if isinstance(model, WrapperModel):
        wrapped_model = with_chat_shape(model.wrapped)
        if wrapped_model is not model.wrapped:
            changes = {"wrapped": wrapped_model}
    elif isinstance(model, FallbackModel):
        models = [with_chat_shape(choice) for choice in model.models]
        if any(new is not old for new, old in zip(models, model.models, strict=True)):
            changes = {"models": models}
    elif _speaks_chat(model) and _MAPPING not in vars(model):
        changes = {_MAPPING: _shaped_mapping(model), _READING: _tolerant_reading(model, last)}
    if not changes:
        return model
    shaped_model = copy.copy(model)
    vars(shaped_model).update(changes)
    return shaped_model


def _speaks_chat(model: Model) -> bool:
    # By name: importing the class would import the client of OpenAI, also for the offline model.
    return any(kind.__name__ == "OpenAIChatModel" for kind in type(model).__mro__)


def _shaped_mapping(model: Model) -> Any:
    is_without_system = model.profile.get("openai_system_prompt_role") == "user"
    if is_without_system:
        # pydantic-ai takes the first prompts for system messages then, and puts the instructions after them.
        model = copy.copy(model)
        vars(model)["profile"] = {**model.profile, "openai_system_prompt_role": "system"}
    mapping = getattr(model, _MAPPING, None)
    if mapping is None:
        raise ImportError("deepctl does not support how this version of pydantic-ai maps messages to chat completions")

    async def shaped(messages: Sequence[ModelMessage], *args: Any, **options: Any) -> list[Message]:
        shape = chat_shape(await mapping([with_prompt_last(message) for message in messages], *args, **options))
        return without_system(shape) if is_without_system else shape

    return shaped


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same messages with the text of the system message at the start of the first user message.

    For chat templates without a system role: `model_profile.openai_system_prompt_role = "user"`.
    """
    if not messages or messages[0]["role"] not in _SYSTEM_ROLES:
        return list(messages)
    parts, other_messages = _parts(messages[0]), list(messages[1:])
    if other_messages and other_messages[0]["role"] == "user":
        parts += _parts(other_messages.pop(0))
    return [{"role": "user", "content": _content(parts)}, *other_messages]


def _tolerant_reading(model: Model, last: LastResponse | None) -> Any:
    original = getattr(model, _READING, None)
    if original is None:
        raise ImportError("deepctl does not support how this version of pydantic-ai reads streams of chat completions")

    async def read(*args: Any, **options: Any) -> Any:
        return tolerant(await original(*args, **options), last)

    return read


def with_prompt_last(message: ModelMessage) -> ModelMessage:
    """A request with its parts in the order of the protocol: tool results, added text, typed text.

    Added text that follows tool results becomes a part of the last result, because a user message would end the tool
    calls. Added text is `TextContent` with metadata, or no text of a user at all.
    """
    if not isinstance(message, ModelRequest):
        return message
    parts = sorted((_with_typed_text_last(part) for part in message.parts), key=_rank)
    results = [part for part in parts if isinstance(part, ToolReturnPart)]
    if results and _rank(parts[-1]) < _TYPED:
        parts = _with_text_in_results(parts)
    is_same = len(parts) == len(message.parts) and all(
        new is old for new, old in zip(parts, message.parts, strict=True)
    )
    return message if is_same else replace(message, parts=parts)


_RESULT, _ADDED, _TYPED = range(3)


def _rank(part: ModelRequestPart) -> int:
    if isinstance(part, ToolReturnPart):
        return _RESULT
    return _TYPED if has_typed_text(part) else _ADDED


def _is_added(item: UserContent) -> bool:
    return isinstance(item, TextContent) and item.metadata is not None


def _with_typed_text_last(part: ModelRequestPart) -> ModelRequestPart:
    """A prompt after the files and the context that deepctl added to it; other prompts are unchanged."""
    if not isinstance(part, UserPromptPart) or isinstance(part.content, str) or not any(map(_is_added, part.content)):
        return part
    content = sorted(part.content, key=lambda item: isinstance(item, str))
    is_same = all(new is old for new, old in zip(content, part.content, strict=True))
    return part if is_same else replace(part, content=content)


def _with_text_in_results(parts: Sequence[ModelRequestPart]) -> list[ModelRequestPart]:
    """Tool results and added parts, with the texts of the latter at the end of the last result if that has no files."""
    results = [part for part in parts if isinstance(part, ToolReturnPart)]
    last, other_parts, texts = results[-1], [], []
    for part in parts[len(results) :]:
        if isinstance(part, UserPromptPart) and all(isinstance(item, TextContent) for item in part.content):
            texts += [item.content for item in part.content if isinstance(item, TextContent)]
        else:
            other_parts.append(part)
    if not texts or last.files:
        return list(parts)
    whole = "\n\n".join([text for text in (last.model_response_str(), *texts) if text])
    return [*results[:-1], replace(last, content=whole), *other_parts]  # type: ignore[arg-type]


def chat_shape(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Messages of the protocol in the shape that this module describes.

    Messages without content and calls are left out. A call without a result gets one that says so. System messages
    within the conversation become text of the user in `<system>` tags, as pydantic-ai writes it for other providers.
    """
    system: list[Message] = []
    entries: list[Message] = []
    results: dict[int, list[Message]] = {}  # by the place of the assistant message in `entries`
    for original in messages:
        message = dict(original)
        role = message["role"]
        if role in _SYSTEM_ROLES and "content" in message and not entries:
            system.append(message)
        elif role in _SYSTEM_ROLES and "content" in message:
            _add(entries, results, {"role": "user", "content": f"<system>\n{_text(message)}\n</system>"})
        elif role == "tool":
            place = next((at for at in range(len(entries) - 1, -1, -1) if entries[at]["role"] == "assistant"), -1)
            if place >= 0 and _is_awaited(entries[place], results.setdefault(place, []), message):
                results[place].append(message)
            else:
                _add(entries, results, {"role": "user", "content": f"{ORPHAN}\n{_text(message)}"})
        else:
            _add(entries, results, message)
    shape: list[Message] = []
    if any(_parts(message) for message in system):
        shape.append({**system[0], "content": _content([part for message in system for part in _parts(message)])})
    for place, entry in enumerate(entries):
        if entry["role"] == "assistant" and place == 0:
            shape.append({"role": "user", "content": NO_BEGINNING})
        elif entry["role"] == "user" and shape and shape[-1]["role"] == "tool":
            shape.append({"role": "assistant", "content": NO_ANSWER})
        shape.append(entry)
        if entry.get("tool_calls"):
            shape += _answers(entry, results.get(place, []))
    return shape


def _add(entries: list[Message], results: Mapping[int, Sequence[Message]], message: Message) -> None:
    """Add a message, or its contents to the last one if that has the same role and no results yet."""
    last = entries[-1] if entries else None
    if "content" in message and message["role"] == "user":
        message["content"] = _content(_parts(message))
    if not any(value for key, value in message.items() if key != "role"):
        return
    if last is None or last["role"] != message["role"] or results.get(len(entries) - 1):
        entries.append(message)
        return
    entries[-1] = {**last, **{key: _merged(key, last.get(key), value) for key, value in message.items()}}


def _merged(key: str, before: Any, after: Any) -> Any:
    if key == "role" or not before:
        return after
    if not after:
        return before
    if key == "content":
        return _content([*_parts({"content": before}), *_parts({"content": after})])
    if isinstance(before, str) and isinstance(after, str):
        return f"{before}\n\n{after}"
    return [*before, *after] if isinstance(before, list) and isinstance(after, list) else after


def _is_awaited(assistant: Message, results: Sequence[Message], result: Message) -> bool:
    """Whether a call of an assistant message has the id of a result, and fewer results than calls have this id."""
    identity = result.get("tool_call_id")
    calls = sum(call.get("id") == identity for call in assistant.get("tool_calls") or ())
    return bool(sum(entry.get("tool_call_id") == identity for entry in results) < calls)


def _answers(assistant: Message, results: Sequence[Message]) -> list[Message]:
    """The results in the order of the calls; a call without a result gets a text that says so."""
    rest = list(results)
    answers = []
    for call in assistant["tool_calls"]:
        answer = next((result for result in rest if result.get("tool_call_id") == call.get("id")), None)
        if answer is None:
            answer = {"role": "tool", "tool_call_id": call.get("id"), "content": NO_RESULT}
        else:
            rest.remove(answer)
        answers.append(answer)
    return answers


def _parts(message: Mapping[str, Any]) -> list[Message]:
    """The parts of a content in the form of a list, without empty texts."""
    content = message.get("content")
    if not content:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [part for part in content if part.get("type") != "text" or part.get("text")]


def _content(parts: Sequence[Message]) -> str | list[Message]:
    """A content with neighbouring texts joined by an empty line: a string if it is only one text.

    A text with a cache marker ends there, so the next text is another part.
    """
    joined_parts: list[Message] = []
    for part in parts:
        last = joined_parts[-1] if joined_parts else None
        if part.get("type") == "text" and last is not None and last.keys() == {"type", "text"}:
            joined_parts[-1] = {**part, "text": f"{last['text']}\n\n{part['text']}"}
        else:
            joined_parts.append(part)
    if not joined_parts:
        return ""
    return (
        joined_parts[0]["text"]
        if len(joined_parts) == 1 and joined_parts[0].keys() == {"type", "text"}
        else joined_parts
    )


def _text(message: Mapping[str, Any]) -> str:
    return "\n\n".join(part.get("text") or "" for part in _parts(message))
