"""Answers of chat-completions servers: deviations from OpenAI's protocol that servers of open models have.

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

import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

from pydantic_ai.messages import FinishReason, ModelResponse, ModelResponsePart, TextPart, ThinkingPart

from deepctl.agent.response_recorder import LastResponse

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
