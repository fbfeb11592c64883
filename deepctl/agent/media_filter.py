"""Pictures and PDFs: how they are told from other files, which models can be sent them, and what is sent instead.

The log keeps them as they were attached. What a model cannot take is left out of requests only, so that a conversation
can go on with another model, and back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequestPart,
    ModelResponse,
    TextContent,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from deepctl.agent import file_url_filter
from deepctl.agent.file_url_filter import METADATA

__all__ = ["HEAD", "METADATA", "PDF", "MediaFilterModel", "media_type", "sendable", "takes"]

HEAD = 16
"""Bytes that tell what a file is."""
PDF = "application/pdf"
_READ_PDF = ("anthropic", "bedrock", "google", "google-cloud")
_OPENAI = "api.openai.com"


def media_type(head: bytes) -> str | None:
    """What the first bytes of a file say it is, of what models look at; names say nothing.

    Source: the formats' own signatures (PNG, JPEG, GIF87a and GIF89a, the RIFF header of WebP, PDF).
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    return PDF if head.startswith(b"%PDF-") else None


def takes(model: Model, kind: str) -> bool:
    """Whether a model can be sent files of a media type, as far as is known: pictures unless it is known not to see.

    PDFs are for the large providers: a server that merely speaks OpenAI's language rarely reads them.
    """
    profile = model.profile
    if kind.startswith("image/"):
        return profile.get("supports_image_input", True)
    if kind != PDF or not profile.get("supports_document_input", True):
        return False
    known = profile.get("supported_document_media_types")
    if known is not None and PDF not in known:
        return False
    return model.system in _READ_PDF or urlsplit(model.base_url or "").hostname == _OPENAI


def sendable(messages: Sequence[ModelMessage], model: Model) -> list[ModelMessage]:
    """A conversation, the prompt that is to be answered last, as a model can be sent it.

    Files are left out that the model cannot take, and those of earlier prompts that nobody ever answered: they may be
    why, and would then keep the conversation from ever going on.
    """
    sent: list[ModelMessage] = []
    wanted = True
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            # One without parts stands for a request that failed.
            wanted = wanted or bool(message.parts)
            sent.append(message)
            continue
        parts: list[ModelRequestPart] = []
        for part in reversed(message.parts):
            parts.append(_without(part, model, wanted=wanted))
            wanted = wanted and not _is_prompt(part)
        changed = any(one is not other for one, other in zip(parts[::-1], message.parts, strict=True))
        sent.append(replace(message, parts=parts[::-1]) if changed else message)
    return sent[::-1]


def _without(part: ModelRequestPart, model: Model, *, wanted: bool) -> ModelRequestPart:
    if isinstance(part, ToolReturnPart):
        return file_url_filter.replaced_in(part, lambda value: _left_out(value, model, wanted=True))
    if not isinstance(part, UserPromptPart) or isinstance(part.content, str):
        return part
    content = [_item(item, model, wanted=wanted) for item in part.content]
    changed = any(one is not other for one, other in zip(content, part.content, strict=True))
    return replace(part, content=content) if changed else part


def _item(item: UserContent, model: Model, *, wanted: bool) -> UserContent:
    text = _left_out(item, model, wanted=wanted)
    return TextContent(text, metadata={"deepctl": METADATA}) if text is not None else item


def _left_out(item: object, model: Model, *, wanted: bool) -> str | None:
    """What stands for a file that is not sent; `None` for one that is, and for what is no file."""
    if not isinstance(item, BinaryContent) or (wanted and takes(model, item.media_type)):
        return None
    why = "this model cannot be sent it" if wanted else "nobody answered the prompt that brought it"
    return f"(A file of type {item.media_type} is left out here: {why}.)"


def _is_prompt(part: ModelRequestPart) -> bool:
    """Whether a part has something typed: plain text, where what capabilities add has metadata."""
    return isinstance(part, UserPromptPart) and (
        isinstance(part.content, str) or any(isinstance(item, str) for item in part.content)
    )


class MediaFilterModel(WrapperModel):
    """A model that is sent of a conversation what it can take."""

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        return await self.wrapped.request(sendable(messages, self.wrapped), model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        async with self.wrapped.request_stream(
            sendable(messages, self.wrapped), model_settings, model_request_parameters, run_context
        ) as response:
            yield response
