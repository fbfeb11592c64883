"""Pictures and PDFs of a conversation: which of them a model is sent, and in which form.

Files stay for models that accept them, within the limits of the provider (`deepctl.agent.pictures`). They are left out
of requests only, so that the conversation can continue with another model. A picture that a provider has refused is
left out of all later requests to this model: the answer to the request without it records the refusal.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequestPart,
    ModelResponse,
    ToolReturn,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from deepctl.agent import pictures
from deepctl.agent.answer_ends import marked
from deepctl.agent.mentions import takes
from deepctl.agent.message_filters import has_typed_text, replaced_in, replaced_value
from deepctl.agent.request_failures import refused_pictures
from deepctl.agent.tasks import in_worker
from deepctl.quantities import size

_T = TypeVar("_T")


class Selection(NamedTuple):
    """A conversation in the form for a model, its files in their original form, and notices for the user.

    `files` also says of each file whether it belongs to the part of the conversation that has no answer yet.
    """

    messages: list[ModelMessage]
    files: list[tuple[BinaryContent, bool]]
    notices: list[str]


def selected(messages: Sequence[ModelMessage], model: Model, refused_digests: Collection[str] = ()) -> Selection:
    """The messages for a model, with the files that it can use; `refused_digests` are those of files that it refused.

    A file that is not sent is replaced by a text with the reason. The reasons are:

    - The model does not accept this kind of file, or its provider has refused this file.
    - The file belongs to an earlier prompt without an answer. Such a file may be the reason for the missing answer, and
      would then make every later request fail.
    - It is not a picture, or exceeds a limit of the provider and cannot be scaled down.
    - The request already has as many pictures, or bytes, as the provider accepts. The oldest ones are left out.
    """
    every_refused = frozenset(refused_digests) | _refused_before(messages, model)
    choice = _FileChoice(model, every_refused)
    selection = choice.of(messages)
    many = choice.limits.many
    if many is not None and len(selection.files) > many[0]:
        selection = _FileChoice(model, every_refused, many[1]).of(messages)
    return selection


class _FileChoice:
    """Decides for each file of a conversation, the newest first, whether and in which form it is sent."""

    def __init__(self, model: Model, refused_digests: Collection[str], side: int | None = None) -> None:
        self.limits = pictures.limits_of(model)
        self._model = model
        self._refused = refused_digests
        self._side = side
        self._bytes = self.limits.request_bytes
        self._with_files = True
        self._is_new = True
        self._files: list[tuple[BinaryContent, bool]] = []
        self._notices: list[str] = []

    def of(self, messages: Sequence[ModelMessage]) -> Selection:
        messages_sent: list[ModelMessage] = []
        for message in reversed(messages):
            if isinstance(message, ModelResponse):
                # A response without parts stands for a failed request.
                self._with_files = self._with_files or bool(message.parts)
                self._is_new = self._is_new and not message.parts
                messages_sent.append(message)
                continue
            parts: list[ModelRequestPart] = []
            for part in reversed(message.parts):
                parts.append(
                    replaced_in(part, self._form) if isinstance(part, (UserPromptPart, ToolReturnPart)) else part
                )
                self._with_files = self._with_files and not has_typed_text(part)
            is_changed = any(new is not old for new, old in zip(parts[::-1], message.parts, strict=True))
            messages_sent.append(replace(message, parts=parts[::-1]) if is_changed else message)
        return Selection(messages_sent[::-1], self._files, self._notices)

    def _form(self, item: object) -> object:
        """The replacement of a file; `None` for a file that is sent as it is, and for other content."""
        if not isinstance(item, BinaryContent):
            return None
        if not takes(self._model, item.media_type):
            return _left_out(item, "this model does not accept it")
        if not self._with_files:
            return _left_out(item, "the prompt with this file was never answered")
        if self._refused and digest(item) in self._refused:
            return _left_out(item, "the provider of this model refused it")
        form = fitted(item, self.limits, self._side)
        if isinstance(form, pictures.Unfit):
            self._notices.append(f"A picture of the conversation is left out: {form.reason}.{form.action}")
            return _left_out(item, form.reason)
        problem = self._excess(form)
        if problem is not None:
            self._notices.append(f"The oldest pictures of the conversation are left out: {problem}.")
            return _left_out(item, problem)
        self._bytes -= len(form.data)
        self._files.append((item, self._is_new))
        return form if form is not item else None

    def _excess(self, item: BinaryContent) -> str | None:
        """The limit that the request would exceed with one more file."""
        if self.limits.pictures is not None and len(self._files) >= self.limits.pictures:
            return f"a request to {self.limits.provider} can include up to {self.limits.pictures:,} pictures"
        if len(item.data) > self._bytes:
            return (
                f"a request to {self.limits.provider} can include up to {size(self.limits.request_bytes)} of pictures"
            )
        return None


def _has_files(value: object) -> bool:
    """Whether a value, or a value in it, is a file."""
    if isinstance(value, Mapping):
        return any(map(_has_files, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return any(map(_has_files, value))
    return isinstance(value, BinaryContent)


def fitted(
    item: BinaryContent, limits: pictures.PictureLimits, side: int | None = None
) -> BinaryContent | pictures.Unfit:
    """A file with the type of its content and within the limits of a provider; other files than pictures are unchanged.

    See `deepctl.agent.pictures.fitted`.
    """
    if not item.media_type.startswith("image/"):
        return item
    result = pictures.fitted(item.data, limits, side)
    if isinstance(result, pictures.Unfit) or (result.data is item.data and result.media_type == item.media_type):
        return result if isinstance(result, pictures.Unfit) else item
    return BinaryContent(result.data, media_type=result.media_type, vendor_metadata=item.vendor_metadata)


async def recordable(result: _T, model: Model) -> _T:
    """The result of a tool, with its pictures in the form in which a model receives them."""
    if not isinstance(result, ToolReturn) and not _has_files(result):
        return result
    # Scaling a picture can take seconds.
    return await in_worker(_recordable, result, model)


def _recordable(result: _T, model: Model) -> _T:
    limits = pictures.limits_of(model)

    def form(item: object) -> object:
        if not isinstance(item, BinaryContent) or not takes(model, item.media_type):
            return None
        new_item = fitted(item, limits)
        if isinstance(new_item, pictures.Unfit):
            return _left_out(item, new_item.reason)
        return new_item if new_item is not item else None

    return replaced_in(result, form) if isinstance(result, ToolReturn) else replaced_value(result, form)


def _left_out(item: BinaryContent, cause: str) -> str:
    return f"(A file of type {item.media_type} is left out here: {cause}.)"


def digest(item: BinaryContent) -> str:
    """The identity of a file: the first half of the SHA-256 of its content."""
    return hashlib.sha256(item.data).hexdigest()[:32]


REFUSED = "deepctl_refused"
"""The key in the metadata of an answer: the model that refused files of the request, and the digests of the files."""


def _identity(model: Model) -> str:
    return f"{model.system}:{model.model_name}"


def _refused_before(messages: Sequence[ModelMessage], model: Model) -> frozenset[str]:
    """The digests of the files that this model has refused in a conversation, which may come from anywhere."""
    digests: set[str] = set()
    for message in messages:
        entry = (message.metadata or {}).get(REFUSED) if isinstance(message, ModelResponse) else None
        if isinstance(entry, Mapping) and entry.get("model") == _identity(model):
            files = entry.get("files")
            digests.update(name for name in files if isinstance(name, str)) if isinstance(files, list) else None
    return frozenset(digests)


class MediaFilterModel(WrapperModel):
    """A model that is sent of a conversation what it can take.

    If the provider refuses a picture, the same request is sent again without it: first without the pictures that have
    no answer yet, then without all. `notify` receives notices for the user, each once, and `reason` returns the text
    for a failure.
    """

    def __init__(
        self,
        model: Model,
        notify: Callable[[str], None] = lambda text: None,
        reason: Callable[[BaseException], str] = str,
    ) -> None:
        super().__init__(model)
        self._notify = notify
        self._reason = reason
        self._notices: set[str] = set()
        self._refused: set[str] = set()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        while True:
            selection = await self._selected(messages)
            try:
                response = await self.wrapped.request(selection.messages, model_settings, model_request_parameters)
            except ModelAPIError as error:
                if not self._leaves_out(selection, error):
                    raise
            else:
                return replace(response, metadata=self._metadata(response.metadata)) if self._refused else response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        while True:
            selection = await self._selected(messages)
            async with AsyncExitStack() as stack:
                try:
                    response = await stack.enter_async_context(
                        self.wrapped.request_stream(
                            selection.messages, model_settings, model_request_parameters, run_context
                        )
                    )
                except ModelAPIError as error:
                    if not self._leaves_out(selection, error):
                        raise
                else:
                    if self._refused:
                        response.metadata = self._metadata(response.metadata)
                    yield response
                    return

    async def _selected(self, messages: Sequence[ModelMessage]) -> Selection:
        whole = marked(messages)
        parts = [part for message in whole for part in message.parts]
        if not any(_has_files(part.content) for part in parts if isinstance(part, (UserPromptPart, ToolReturnPart))):
            return Selection(whole, [], [])
        # Scaling a picture can take seconds.
        selection = await in_worker(selected, whole, self.wrapped, frozenset(self._refused))
        for notice in selection.notices:
            if notice not in self._notices:
                self._notices.add(notice)
                self._notify(notice)
        return selection

    def _leaves_out(self, selection: Selection, error: ModelAPIError) -> bool:
        """Whether a failed request is sent again, without pictures that the provider refuses."""
        kind = refused_pictures(error)
        files = [(item, is_new) for item, is_new in selection.files if item.media_type.startswith("image/")]
        if kind is None or not files:
            return False
        # A picture with an answer has been accepted. But the conversation may continue with another model.
        suspects = [item for item, is_new in files if kind != "all" and is_new is (kind == "some")]
        suspects = suspects or [item for item, _ in files]
        self._refused.update(map(digest, suspects))
        noun, pronoun = ("a picture", "it") if len(suspects) == 1 else (f"{len(suspects)} pictures", "them")
        setting = (
            " If the model takes no pictures: `deepctl config set model_profile.supports_image_input false`."
            if kind == "all"
            else ""
        )
        self._notify(
            f"The provider of {self.model_name} refused {noun} ({self._reason(error)}). The request is sent again "
            f"without {pronoun}, and so are later requests to this model.{setting}"
        )
        return True

    def _metadata(self, metadata: dict[str, Any] | None) -> dict[str, Any]:
        return {**(metadata or {}), REFUSED: {"model": _identity(self.wrapped), "files": sorted(self._refused)}}


def with_media_filter(model: Model) -> Model:
    """A model that is sent what it can take; the same model if it already is."""
    inner: Model = model
    while isinstance(inner, WrapperModel):
        if isinstance(inner, MediaFilterModel):
            return model
        inner = inner.wrapped
    return MediaFilterModel(model)
