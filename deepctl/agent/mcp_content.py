"""What MCP servers return, in the form for a model: text, pictures and PDFs, and a description of everything else.

The type of a file is that of its content, because a server can declare any type. Pictures are in the form of the server
here; `deepctl.agent.media_filter` fits them to the model, and leaves them out for a model without pictures.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mcp_types
from pydantic_ai.messages import BinaryContent

from deepctl.agent import pictures
from deepctl.agent.mentions import MAX_PDF, PDF, media_type
from deepctl.quantities import size
from deepctl.sandbox.policy import OUTPUT_BYTES

Content = str | list[str | BinaryContent]
"""Text, or texts and files in the order of the server."""
Hide = Callable[[str], str]
"""Removes the secrets of a server from a text."""

MAX_FILES = 20
"""Files of one result; the others are described."""


def of_result(result: mcp_types.CallToolResult, hide: Hide) -> Content:
    """The result of a tool. Structured content that the other content does not already contain is appended as JSON."""
    items = [_of_block(block) for block in result.content]
    if (extra := _structured(result)) is not None:
        items.append(extra)
    return _content(items, hide)


def of_resource(
    contents: Sequence[mcp_types.TextResourceContents | mcp_types.BlobResourceContents], hide: Hide
) -> Content:
    """The contents of a resource that was read."""
    return _content([_of_resource(part) for part in contents], hide)


def of_messages(messages: Sequence[mcp_types.PromptMessage], hide: Hide) -> Content:
    """The messages of a prompt, in one message of the user. Messages of the assistant are marked as such."""
    items: list[str | BinaryContent] = []
    for message in messages:
        if message.role == "assistant":
            items.append("(An example of the answer:)")
        items.append(_of_block(message.content))
    return _content(items, hide)


def text_of(content: Content) -> str:
    """The text of some content, without its files."""
    return content if isinstance(content, str) else "\n".join(item for item in content if isinstance(item, str))


def _content(items: Iterable[str | BinaryContent], hide: Hide) -> Content:
    """Texts joined between files, without secrets, and together at most as long as the output of a command."""
    parts: list[str | BinaryContent] = []
    room, left_out, files = OUTPUT_BYTES, 0, 0
    for item in items:
        if isinstance(item, BinaryContent):
            files += 1
            if files <= MAX_FILES:
                parts.append(item)
                continue
            item = _described(item.media_type, len(item.data), f"a result can have {MAX_FILES} files")
        text = hide(item)
        left_out += max(0, len(text) - room)
        text = text[:room]
        room -= len(text)
        if parts and isinstance(parts[-1], str):
            parts[-1] += f"\n{text}" if text or room else ""
        else:
            parts.append(text)
    if left_out:
        parts.append(f"[{left_out} more characters are left out]")
    if any(isinstance(part, BinaryContent) for part in parts):
        return [part for part in parts if part != ""]
    return "\n".join(part for part in parts if isinstance(part, str))


def _of_block(block: mcp_types.ContentBlock) -> str | BinaryContent:
    match block:
        case mcp_types.TextContent():
            return block.text
        case mcp_types.ImageContent() | mcp_types.AudioContent():
            return _file(block.data, block.mime_type)
        case mcp_types.ResourceLink():
            return f"[resource {described(block)}]"
        case mcp_types.EmbeddedResource():
            return _of_resource(block.resource, is_embedded=True)
        case _:
            return f"[{block.type}, left out: deepctl does not support it]"


def _of_resource(
    resource: mcp_types.TextResourceContents | mcp_types.BlobResourceContents, *, is_embedded: bool = False
) -> str | BinaryContent:
    if isinstance(resource, mcp_types.TextResourceContents):
        return f"[resource {resource.uri}]\n{resource.text}" if is_embedded else resource.text
    return _file(resource.blob, resource.mime_type or "application/octet-stream", f"resource {resource.uri}, ")


def _file(data: str, declared_type: str, name: str = "") -> str | BinaryContent:
    """A picture or a PDF; a description of any other file, and of data that is not one."""
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return _described(f"{name}{declared_type}", len(data), "it is not valid base64")
    kind = media_type(raw[: pictures.HEAD])
    if kind is None:
        return _described(f"{name}{declared_type}", len(raw), "only text, pictures and PDFs are passed on")
    if kind == PDF:
        problem = f"a PDF can have up to {size(MAX_PDF)}" if len(raw) > MAX_PDF else None
    else:
        problem = None if pictures.picture_of(raw) is not None else "it is not a valid picture"
    if problem is not None:
        return _described(f"{name}{kind}", len(raw), problem)
    return BinaryContent(raw, media_type=kind)


def _described(name: str, length: int, reason: str) -> str:
    return f"[{name}, {length} bytes, left out: {reason}]"


def described(resource: mcp_types.Resource | mcp_types.ResourceLink) -> str:
    """A resource in one line: its address, and what its server says about it."""
    facts = [resource.mime_type or "", f"{resource.size} bytes" if resource.size is not None else ""]
    title = resource.title or resource.name
    words = [f"{resource.uri}", f"({', '.join(filter(None, facts))})" if any(facts) else ""]
    about = ": ".join(filter(None, [title if title != str(resource.uri) else "", resource.description or ""]))
    line = " ".join(filter(None, words))
    return " ".join(f"{line} {about}".split()) if about else line


def _structured(result: mcp_types.CallToolResult) -> str | None:
    """The structured content as JSON; `None` if there is none, or if the text says the same.

    Servers repeat it as text for clients that know no structured content.
    """
    value: Any = result.structured_content
    if value is None:
        return None
    texts = [block.text for block in result.content if isinstance(block, mcp_types.TextContent)]
    try:
        forms = (value, [value], *_wrapped(value))
        if "\n".join(texts) in forms or texts in forms or _parsed(texts) in forms:
            return None
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return None if texts else "[structured content, left out: it is nested too deeply]"


def _wrapped(value: Any) -> list[Any]:
    """The value that a table with one entry wraps, in the forms that its text can have."""
    if not isinstance(value, dict) or len(value) != 1:
        return []
    [inner] = value.values()
    return [inner, [inner]]


def _parsed(texts: Sequence[str]) -> list[Any]:
    if sum(map(len, texts)) > OUTPUT_BYTES:
        return list(texts)
    values: list[Any] = []
    for text in texts:
        try:
            values.append(json.loads(text))
        except ValueError:
            values.append(text)
    return values
