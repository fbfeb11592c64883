"""Attachments of a prompt: the files that a model can receive, and the parts of the message for them.

Every model receives text and listings; models that can take them receive pictures and PDFs.

Content is bounded, without keys, and limited to files that the profile's rules let the agent read without approval.
Other files are named to the model, which can read them with its tools, where the rules apply again.

The parts have metadata, or are not text, so that they do not count as text of the user.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from pydantic_ai.messages import BinaryContent, TextContent, UserContent
from pydantic_ai.models import Model

from deepctl.agent import pictures
from deepctl.agent.limits import profile_of
from deepctl.agent.mention_files import Files, MentionTarget, NoLines, outside, select
from deepctl.domain.mention_syntax import LineRange, Mention, mentions
from deepctl.domain.outside_files import OutsideFile
from deepctl.domain.permissions import Permissions, about_file
from deepctl.domain.providers import is_openais
from deepctl.quantities import counted, size
from deepctl.redaction import redact
from deepctl.store import log_file

METADATA = "attached"
"""The value of `deepctl` in the metadata of a text that belongs to a file, replaces one, or is a note for the model."""
PDF = "application/pdf"
_READ_PDF = ("anthropic", "bedrock", "google", "google-cloud")
_NAMES_OF_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")


def media_type(head: bytes) -> str | None:
    """The kind of a file by its first bytes, for the kinds that models can view; names are not used."""
    return PDF if head.startswith(b"%PDF-") else pictures.media_type(head)


def takes(model: Model, kind: str) -> bool:
    """Whether a model accepts files of a media type, as far as is known: pictures unless it is known not to.

    PDFs are for the large providers: a server that only speaks OpenAI's protocol rarely reads them.
    """
    profile = profile_of(model)
    if kind.startswith("image/"):
        return bool(profile.get("supports_image_input", True))
    if kind != PDF or not profile.get("supports_document_input", True):
        return False
    types = profile.get("supported_document_media_types")
    if types is not None and PDF not in types:
        return False
    return model.system in _READ_PDF or is_openais(model.base_url or "")


MAX_TEXT = 100 << 10
"""Bytes of text and listings that a prompt can include in total."""
MAX_PDF = 5 << 20
MAX_PICTURES = 20 << 20
"""Bytes of one PDF, and of all pictures and PDFs in a prompt, if the provider of the model accepts so much."""
MAX_FILES = 50
MAX_LISTED = 200

_MAX_MISSING, _MAX_WORD = 5, 60
"""Words that a notice lists, and characters of each."""
_NOT_THERE = "No such file, so sent unchanged"
_NOT_TYPED = "Outside the {kind}, so sent unchanged"
_COPY = "`deepctl chat --file PATH` attaches a file"
_COPY_IT = "`deepctl chat --file PATH` attaches it."

_BREAKING = ("Cc", "Zl", "Zp")
"""Unicode's categories of control characters and of line ends."""


NO_FILES: Mapping[str, OutsideFile] = {}


class Attachments(NamedTuple):
    """The result for a prompt: parts of its message, and notices for the user about files that are not sent."""

    parts: list[UserContent]
    notices: list[str]


class AttachmentReader:
    """Attaches files for one model, by one profile's rules. `environment` has the keys to remove from text."""

    def __init__(self, model: Model, permissions: Permissions, environment: Mapping[str, str]) -> None:
        self._model = model
        self._environment = environment
        self._permissions = permissions

    def attached(self, prompt: str, files: Files, outside_files: Mapping[str, OutsideFile] = NO_FILES) -> Attachments:
        """The attachments for the files that a prompt names.

        `outside_files` are those outside the workspace that the user has agreed to, or declined, by their paths in the
        prompt. Other files outside the workspace are not looked up.

        A word that names no file is sent unchanged; a notice says so if the word looks like a path.
        """
        collector = _PromptFiles(self._model, self._environment, files.kind)
        sent_parts: set[tuple[str, LineRange | None]] = set()
        missing: list[Mention] = []
        for mention in mentions(prompt):
            file = _find(mention, files, outside_files)
            if file is None:
                missing.append(mention)
                continue
            target, lines = file
            if (target.path, lines) in sent_parts:
                continue
            sent_parts.add((target.path, lines))
            if len(sent_parts) > MAX_FILES:
                collector.notices.append(f"Only the first {MAX_FILES} files of a prompt are sent with it.")
                break
            action = about_file(self._permissions, "read", target.rule_paths).action
            if target.problem is not None:
                collector.notices.append(f"{target.path} is not sent: {target.problem}.")
            elif action == "deny":
                collector.notices.append(
                    f"{target.path} is not sent: the rules of this profile do not allow reading it."
                )
            elif action == "ask" and target.real_path is None:
                collector.name_only(target, "the rules of this profile need an approval, which the agent can request")
            elif lines is not None:
                collector.take_lines(target, lines)
            else:
                collector.take(target)
        return Attachments(collector.parts, [*collector.notices, *_about_missing(missing, files)])

    def brought(
        self,
        prompt: str,
        files: Files,
        emit: Callable[[dict[str, Any]], None],
        outside_files: Mapping[str, OutsideFile] = NO_FILES,
    ) -> list[UserContent]:
        """The parts of `attached`, with the notices as events."""
        targets = self.attached(prompt, files, outside_files)
        for message in targets.notices:
            emit({"type": "notice", "message": message})
        return targets.parts


def _find(
    mention: Mention, files: Files, outside_files: Mapping[str, OutsideFile]
) -> tuple[MentionTarget, LineRange | None] | None:
    for path, lines in mention.readings:
        target = files.find(path)
        if target is not None:
            return target, lines
        if path in outside_files:
            return outside(path, outside_files[path]), lines
    return None


def _about_missing(missing: Sequence[Mention], files: Files) -> list[str]:
    """Notices about words that look like paths and name no file."""
    notices = []
    for leads_out, reason in ((False, _NOT_THERE), (True, _NOT_TYPED)):
        words = [
            _shortened(mention.text)
            for mention in missing
            if files.leads_out(mention.readings[-1].path) == leads_out and _looks_like_path(mention, files)
        ]
        if words:
            words = list(dict.fromkeys(words))
            ellipsis = ", …" if len(words) > _MAX_MISSING else ""
            notices.append(f"{reason.format(kind=files.kind)}: {', '.join(words[:_MAX_MISSING])}{ellipsis} ({_COPY})")
    return notices


def _looks_like_path(mention: Mention, files: Files) -> bool:
    if mention.looks_like_path:
        return True
    # `@src/nothing` is a path if there is a directory `src`. `@types/node` is a package.
    directory, slash, _ = mention.readings[-1].path.partition("/")
    return bool(directory and slash) and files.find(directory) is not None


def _shortened(word: str) -> str:
    return word if len(word) <= _MAX_WORD else f"{word[:_MAX_WORD]}…"


class _PromptFiles:
    """The files of one prompt, within its size limits. `kind` is that of `Files`."""

    def __init__(self, model: Model, environment: Mapping[str, str], kind: str) -> None:
        self._kind = kind
        self._model = model
        self._environment = environment
        self._text = MAX_TEXT
        self._limits = pictures.limits_of(model)
        self._bytes = min(MAX_PICTURES, self._limits.request_bytes)
        self._count = self._limits.pictures
        self.parts: list[UserContent] = []
        self.notices: list[str] = []

    def take(self, target: MentionTarget) -> None:
        """Send a file or directory, or only its name."""
        try:
            if target.is_directory:
                self._listing(target)
                return
            kind = media_type(target.read(pictures.HEAD))
            if kind == PDF:
                self._pdf(target)
                return
            if kind is not None:
                self._picture(target, kind)
                return
            whole = target.read(self._text + 1)
        except OSError as error:
            self.notices.append(f"{target.path} is not sent: {(error.strerror or str(error)).lower()}.")
            return
        text = _as_text(whole)
        if text is None:
            self.name_only(target, "it is not text")
        elif len(whole) > self._text:
            self.name_only(target, f"a prompt can include up to {size(MAX_TEXT)} of text")
        else:
            self._text -= len(whole)
            if target.path.lower().endswith(_NAMES_OF_PICTURES):
                self.notices.append(f"{target.path} is not a picture: it is sent as text.")
            self._add(target, redact(text, self._environment))

    def take_lines(self, target: MentionTarget, lines: LineRange) -> None:
        """Send lines of a text file."""
        name = f"{target.path}:{lines}"
        try:
            kind = None if target.is_directory else media_type(target.read(pictures.HEAD))
            if kind is not None:
                raise NoLines(f"a {'PDF' if kind == PDF else 'picture'} has no lines")
            selection = select(target, lines, self._text)
        except NoLines as problem:
            self.notices.append(f"{name} is not sent: {problem}.")
            return
        except OSError as error:
            self.notices.append(f"{name} is not sent: {(error.strerror or str(error)).lower()}.")
            return
        named_target = target._replace(path=f"{target.path}:{selection.lines}", size=len(selection.data))
        text = _as_text(selection.data)
        if text is None:
            self.notices.append(f"{name} is not sent: it is not text, so it has no lines.")
        elif len(selection.data) > self._text:
            self.name_only(target._replace(path=name), f"a prompt can include up to {size(MAX_TEXT)} of text")
        else:
            self._text -= len(selection.data)
            if lines.last is not None and selection.lines != lines:
                self.notices.append(
                    f"{name} is sent as {named_target.path}: the file has {counted(selection.lines.last or 0, 'line')}."
                )
            self._add(named_target, redact(text, self._environment))

    def _listing(self, target: MentionTarget) -> None:
        entries = target.entries(MAX_LISTED)
        lines = [
            f"{_escaped_name(entry.name)}/"
            if entry.is_directory
            else f"{_escaped_name(entry.name)} ({_amount(entry.size)})"
            for entry in entries.first_entries
        ]
        if entries.more_count:
            lines.append(f"… and {entries.more_count:,} more")
        text = redact("\n".join(lines) or "(empty)", self._environment)
        if len(text.encode()) > self._text:
            self.name_only(target, f"a prompt can include up to {size(MAX_TEXT)} of text")
            return
        self._text -= len(text.encode())
        self._add(target, text, kind="directory")

    def _pdf(self, target: MentionTarget) -> None:
        if not takes(self._model, PDF):
            self.name_only(target, f"model {self._model.model_name} takes no PDFs")
        elif target.size > MAX_PDF:
            self.name_only(target, f"a PDF can have up to {size(MAX_PDF)}")
        else:
            self._add_binary(target, target.read(MAX_PDF), PDF, "It is next.")

    def _picture(self, target: MentionTarget, kind: str) -> None:
        if not takes(self._model, kind):
            self.name_only(target, f"model {self._model.model_name} takes no pictures")
        elif target.size > pictures.MAX_SOURCE:
            self.name_only(target, f"a picture can have up to {size(pictures.MAX_SOURCE)}, before it is scaled down")
        elif self._count == 0:
            limit = f"up to {self._limits.pictures} pictures"
            self.name_only(target, f"a request to {self._limits.provider} can include {limit}")
        else:
            result = pictures.fitted(target.read(pictures.MAX_SOURCE), self._limits)
            if isinstance(result, pictures.Unfit):
                self.name_only(target, result.reason, result.action)
                return
            change = f", {result.change}" if result.change is not None else ""
            is_sent = self._add_binary(target, result.data, result.media_type, f"It is next{change}.")
            if is_sent and self._count is not None:
                self._count -= 1
            if is_sent and change:
                self.notices.append(f"{target.path} is sent{change}. The file is not changed.")

    def _add_binary(self, target: MentionTarget, data: bytes, kind: str, text: str) -> bool:
        """Send a picture or PDF, or only its name if the prompt has too many bytes; returns whether it is sent."""
        if len(data) > self._bytes:
            limit = min(MAX_PICTURES, self._limits.request_bytes)
            self.name_only(target, f"a prompt can include up to {size(limit)} of pictures")
            return False
        self._bytes -= len(data)
        self._add(target, text, kind=kind)
        self.parts.append(BinaryContent(data, media_type=kind))
        return True

    def name_only(self, target: MentionTarget, reason: str, action: str = "") -> None:
        """Give the model only the path and the size, and tell the user, who is also told the `action`."""
        if target.real_path is not None:
            # The agent could do nothing with the path.
            self.notices.append(f"{target.path} is not sent: {reason}.{action} {_COPY_IT}")
            return
        amount = "directory" if target.is_directory else size(target.size)
        self.notices.append(f"Only the path of {target.path} ({amount}) is sent: {reason}.{action}")
        self._add(target, f"Its content is left out: {reason}. Use your tools if you need it.", kind="path")

    def _add(self, target: MentionTarget, text: str, kind: str = "text") -> None:
        if target.real_path is not None:
            amount = "" if target.is_directory else f" ({size(target.size)})"
            self.notices.append(f"{target.path}{amount} is sent. It is outside the {self._kind}.")
        path = escape(redact(_escaped_name(target.path), self._environment))
        content = log_file.escaped_tags(text) or "(empty)"
        metadata = {"deepctl": METADATA, "path": _escaped_name(target.path), "bytes": target.size, "kind": kind}
        self.parts.append(
            TextContent(f'<attached-file path="{path}" kind="{kind}">\n{content}\n</attached-file>', metadata=metadata)
        )


def _as_text(data: bytes) -> str | None:
    """Bytes as text; an incomplete character at the end is left out."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_cut_short = error.start >= len(data) - 3 and error.reason == "unexpected end of data"
        return data[: error.start].decode("utf-8-sig") if is_cut_short else None


def _escaped_name(name: str) -> str:
    """A name in a form for a model: bytes that are not UTF-8, and line ends, are escaped."""
    plain = name.encode("utf-8", "backslashreplace").decode()
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _BREAKING else character
        for character in plain
    )


def _amount(count: int | None) -> str:
    return "not a regular file" if count is None else size(count)
