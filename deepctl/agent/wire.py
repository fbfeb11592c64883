"""Requests to chat-completions servers and their answers: OpenAI's protocol, as servers of open models implement it.

The chat templates of open models are stricter than the protocol. Many raise an error, or leave out text, for a second
system message, for two user messages in a row, and for a user message after a tool result. So every request has

- one system message, first, with all text that pydantic-ai sends as system messages before the conversation;
- then user and assistant messages alternately, beginning with a user message; the results of an assistant message's
  tool calls are between it and the next message;
- text contents that are strings; lists only around pictures, files and cache markers;
- the prompt as the last text of its user message.

No text is lost: a tool result without its call becomes text of the user. The shape of a message does not depend on the
messages after it, so a request begins with the bytes of the request before.

The chunks of a streamed answer are corrected before pydantic-ai reads them:

- Usage in several chunks is a running total, so the last one counts.
- A reason to stop that OpenAI does not have, such as `eos`, gets the closest meaning. A stream without a reason that
  ends with `[DONE]` is complete.
- The tags around thinking are found in any division into chunks. A closing tag without an opening tag ends thinking
  that began with the answer, because some chat templates write the opening tag themselves.
- Tool calls that have the same index, or the same id, are told apart.
- A content that is a list of parts becomes text and thinking, and a chunk with a message is read as one with a delta.

A tool call that comes as text is not corrected: the user gets a hint (`tool_call_hint`).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_ai.messages import (
    FinishReason,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from deepctl.agent.message_filters import has_typed_text
from deepctl.agent.response_recorder import LastResponse

Message = dict[str, Any]
"""A message of the protocol."""

_TAGS = ("<think>", "</think>")
_FINISH: dict[str, FinishReason] = {
    **dict.fromkeys(("max_tokens", "max_length", "model_length", "token_limit"), "length"),
    **dict.fromkeys(("safety", "sensitive", "recitation", "blocklist", "prohibited_content"), "content_filter"),
    **dict.fromkeys(("error", "abort", "aborted", "network_error", "insufficient_system_resource"), "error"),
}
"""Reasons to stop that mean an incomplete answer. Sources: the API references of vLLM, SGLang, DeepSeek, Mistral, Z.AI
and Google. Any other unknown reason, such as `eos` or `end_turn`, is the end of a complete answer.
"""
_QUOTES = "`'\""
_NEEDED = (
    "_validate_response",
    "_map_finish_reason",
    "_has_finish_reason",
    "_model_settings",
    "_missing_finish_reason",
)

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


def tolerant(response: Any, last: LastResponse | None) -> Any:
    """The same streamed answer of pydantic-ai's `OpenAIStreamedResponse`, with its deviations corrected.

    `last` is the record of the server's response; without it, the end of the stream is not judged here.
    """
    if not all(hasattr(response, name) for name in _NEEDED):
        raise ImportError("deepctl does not support how this version of pydantic-ai reads streams of chat completions")
    chunks, finish, get = response._validate_response, response._map_finish_reason, response.get
    tags = response._model_profile.get("thinking_tags", _TAGS)
    text, calls = _Thinking(tags), _Calls()

    async def corrected() -> AsyncIterator[Any]:
        last_chunk = None
        try:
            async for chunk in chunks():
                choice = chunk.choices[0] if chunk.choices else None
                if choice is None:
                    yield chunk
                    continue
                _correct_types(choice)
                last_chunk = chunk
                for call in choice.delta.tool_calls or ():
                    calls.correct(call)
                first, *more_pieces = (
                    text.feed(choice.delta.content) if choice.delta.content else [choice.delta.content]
                )
                if choice.finish_reason or choice.delta.tool_calls:
                    more_pieces += text.finish()
                choice.delta.content = first
                yield chunk
                for piece in more_pieces:
                    yield _text_chunk(chunk, piece)
        except Exception:
            # The connection was lost within a tag, or the server reports an error.
            for piece in text.finish():
                yield _text_chunk(last_chunk, piece)
            raise
        for piece in text.finish():
            yield _text_chunk(last_chunk, piece)
        if not response._has_finish_reason and last is not None and last.is_done:
            response._has_finish_reason = True
            response.finish_reason = response._missing_finish_reason()

    response._validate_response = corrected
    response._map_finish_reason = lambda key: finish(key) or _FINISH.get(key.lower(), "stop")
    response._model_settings = {**(response._model_settings or {}), "openai_continuous_usage_stats": True}
    response.get = lambda: _without_thinking(get(), text.unopened)
    return response


def _correct_types(choice: Any) -> None:
    """Correct a choice in place that has no delta, a list of texts as its content, or no text as its reason to stop.

    A server that does not know streams of deltas sends a whole message.
    """
    if choice.delta is None:
        from openai.types.chat.chat_completion_chunk import ChoiceDelta

        message = getattr(choice, "message", None)
        choice.delta = ChoiceDelta.construct(**message if isinstance(message, dict) else {})
    content = choice.delta.content
    if content is not None and not isinstance(content, str):
        # The types of parts are Mistral's: text, and thinking, whose value is a list of texts.
        parts = content if isinstance(content, list) else [content]
        thinking = "".join(_text_of(part.get("thinking")) for part in parts if isinstance(part, dict))
        choice.delta.content = "".join(map(_text_of, parts)) or None
        if thinking and not getattr(choice.delta, "reasoning_content", None):
            choice.delta.reasoning_content = thinking
    if choice.finish_reason is not None and not isinstance(choice.finish_reason, str):
        choice.finish_reason = str(choice.finish_reason)


def _text_of(part: Any) -> str:
    if isinstance(part, list):
        return "".join(map(_text_of, part))
    if isinstance(part, dict):
        part = part.get("text")
    return "" if part is None else str(part)


def _text_chunk(chunk: Any, text: str) -> Any:
    """A copy of `chunk` that has only this text."""
    choice = chunk.choices[0]
    delta = type(choice.delta)(content=text)
    choice = choice.model_copy(update={"delta": delta, "finish_reason": None, "logprobs": None})
    return chunk.model_copy(update={"choices": [choice], "usage": None})


class _Thinking:
    """Divides the text of an answer so that each tag of thinking is a piece of its own, and no other piece is a tag.

    pydantic-ai recognises a tag only as a whole piece. An opening tag counts at the beginning of a line, and a closing
    tag if it is not quoted.
    """

    def __init__(self, tags: tuple[str, str]) -> None:
        self._tags = tags
        self._rest = ""
        self._before: list[str] = []
        self._is_open = False
        self.unopened = ""
        """The text before a closing tag that has no opening tag."""

    def feed(self, text: str) -> list[Any]:
        """The pieces of the text so far, at least one; an incomplete tag at its end is kept for later."""
        return [*self._pieces(self._rest + text, final=False)] or [None]

    def finish(self) -> Iterator[str]:
        """The pieces that were kept."""
        yield from self._pieces(self._rest, final=True)

    def _pieces(self, text: str, *, final: bool) -> Iterator[str]:
        self._rest = ""
        while (match := self._next_tag(text)) is not None:
            yield from self._plain(text[: match.start()])
            if match[0] == self._tags[1] and not self._is_open:
                self.unopened = "".join(self._before)
            else:
                yield match[0]
                self._is_open = not self._is_open
            text = text[match.end() :]
        kept_length = 0 if final else max(_overlap(text, tag) for tag in self._tags)
        self._rest = text[len(text) - kept_length :]
        yield from self._plain(text[: len(text) - kept_length])

    def _next_tag(self, text: str) -> re.Match[str] | None:
        """The first tag that counts."""
        opening_tag, closing_tag = self._tags
        if self._is_open:
            return re.search(re.escape(closing_tag), text)
        for match in re.finditer(f"{re.escape(opening_tag)}|{re.escape(closing_tag)}", text):
            before = "".join(self._before) + text[: match.start()]
            if match[0] == opening_tag and before.rstrip(" \t")[-1:] in ("", "\n"):
                return match
            if match[0] == closing_tag and not self.unopened and before.strip() and before[-1] not in _QUOTES:
                return match
        return None

    def _plain(self, text: str) -> Iterator[str]:
        if not self._is_open:
            self._before.append(text)
        # A tag that does not count is divided.
        for piece in (text[:1], text[1:]) if text in self._tags else (text,):
            if piece:
                yield piece


def _overlap(text: str, tag: str) -> int:
    """The length of the longest end of `text` that is the beginning of `tag`."""
    return next((size for size in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:size])), 0)


def _without_thinking(response: ModelResponse, thinking: str) -> ModelResponse:
    """An answer whose text begins with this thinking, as thinking and text."""
    place = next((at for at, part in enumerate(response.parts) if isinstance(part, TextPart)), None)
    if not thinking or place is None:
        return response
    part = response.parts[place]
    assert isinstance(part, TextPart)
    if not part.content.startswith(thinking.lstrip()) and not part.content.startswith(thinking):
        return response
    length = len(thinking) if part.content.startswith(thinking) else len(thinking.lstrip())
    text = part.content[length:].lstrip()
    parts: list[ModelResponsePart] = [*response.parts]
    parts[place : place + 1] = [
        ThinkingPart(thinking.strip(), id="content", provider_name=response.provider_name),
        *([replace(part, content=text)] if text else []),
    ]
    return replace(response, parts=parts)


class _Calls:
    """Gives each tool call of an answer an index and an id of its own."""

    def __init__(self) -> None:
        self._indexes: dict[Any, int] = {}
        self._calls: list[tuple[str | None, str | None, str]] = []
        """The id, the name and the arguments so far, by index."""
        self._ids: set[str] = set()

    def correct(self, call: Any) -> None:
        """Correct one part of a call in place."""
        name = call.function.name if call.function is not None else None
        arguments = (call.function.arguments if call.function is not None else None) or ""
        if self._is_new(call, name, arguments):
            self._indexes[call.index] = len(self._calls)
            self._calls.append((call.id, name, arguments))
            call.index = self._indexes[call.index]
            if call.id:
                call.id = self._own(call.id)
            return
        index = self._indexes[call.index]
        identity, known_name, before = self._calls[index]
        self._calls[index] = (identity or call.id, known_name or name, before + arguments)
        call.index, call.id = index, None if identity else call.id
        if known_name and name == known_name:
            call.function.name = None  # it is repeated, and would be appended

    def _is_new(self, call: Any, name: str | None, arguments: str) -> bool:
        if call.index not in self._indexes:
            return True
        if not name:
            return False  # a new id in each piece of a call is a known deviation
        identity, _, before = self._calls[self._indexes[call.index]]
        if call.id and identity and call.id != identity:
            return True
        return _is_whole(before) and bool(arguments or not call.id)

    def _own(self, identity: str) -> str:
        names = (identity, *(f"{identity}-{number}" for number in range(2, len(self._calls) + 2)))
        own = next(name for name in names if name not in self._ids)
        self._ids.add(own)
        return own


def _is_whole(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


_CALL_TEXT = (
    # The marks that models of Qwen, Llama, Mistral, DeepSeek and others put before a call.
    re.compile(
        r"^\s*(<(tool_call|function_call)>|<function=\w|<invoke |<\|tool[_▁]call|<\|python_tag\|>|\[TOOL_CALLS\])",
        re.MULTILINE,
    ),
    re.compile(
        r"\A\s*(```\w*\s*)?[\[{].{0,40}?\"(name|function|tool)\"\s*:\s*\"\w+\".{0,40}?\"(arguments|parameters|args)\"\s*:",
        re.DOTALL,
    ),
)


def tool_call_hint(text: str) -> str | None:
    """A sentence for the user about an answer that is a tool call written as text; `None` for any other answer."""
    if not any(pattern.search(text) for pattern in _CALL_TEXT):
        return None
    return (
        "The model wrote a tool call as text, so nothing was done: its server does not recognise tool calls of this "
        "model. Start llama.cpp with --jinja, or vLLM with --enable-auto-tool-choice and the --tool-call-parser of the "
        "model, or choose a model that can call tools."
    )
