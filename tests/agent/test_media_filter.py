"""Pictures of a conversation: the limits of a request, refusals of a provider, and results of tools."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturn,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai_backends import StateBackend

from deepctl.agent import media_filter, pictures, request_failures
from deepctl.agent.chat import TurnRunner
from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.mentions import METADATA
from deepctl.agent.pictures import PNG, PictureLimits
from deepctl.agent.turn_engine import Options
from deepctl.errors import ModelFailed
from tests.agent.test_mentions import SENT, Alice, _anthropic, _openai
from tests.support.loopback import Answer, Status, Text, provider
from tests.support.pictures import png, whole

ANSWER = ModelResponse([TextPart("ok")])


def _picture(number: int, width: int = 4) -> BinaryContent:
    return BinaryContent(whole(Image.new("RGB", (width, 3), (number, 0, 0)), "PNG"), media_type=PNG)


def _turns(count: int, width: int = 4) -> list[ModelMessage]:
    turns: list[ModelMessage] = []
    for number in range(count):
        turns += [ModelRequest([UserPromptPart([f"see {number}", _picture(number, width)])]), ANSWER]
    return [*turns, ModelRequest([UserPromptPart("and now?")])]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def limit(**values: Any) -> None:
        base = PictureLimits("Acme", frozenset((PNG,)))
        monkeypatch.setattr(pictures, "limits_of", lambda model: base._replace(**values))

    return limit


def _sent(selection: media_filter.Selection) -> list[int]:
    """The turns whose picture is sent."""
    prompts = [part for message in selection.messages for part in message.parts if isinstance(part, UserPromptPart)]
    return [
        place
        for place, part in enumerate(prompts)
        if not isinstance(part.content, str) and any(isinstance(item, BinaryContent) for item in part.content)
    ]


def test_of_too_many_pictures_the_newest_are_sent(limits: Callable[..., None]) -> None:
    limits(pictures=2)
    selection = media_filter.selected(_turns(4), TestModel())
    assert _sent(selection) == [2, 3]
    assert (
        selection.notices
        == ["The oldest pictures of the conversation are left out: a request to Acme can include up to 2 pictures."] * 2
    )
    assert "a request to Acme can include up to 2 pictures" in str(selection.messages[0])


def test_the_pictures_of_a_request_have_a_total_size(limits: Callable[..., None]) -> None:
    limits(request_bytes=2 * max(len(_picture(number).data) for number in range(4)))
    assert _sent(media_filter.selected(_turns(4), TestModel())) == [2, 3]


def test_many_pictures_have_a_smaller_limit(limits: Callable[..., None]) -> None:
    limits(side=300, many=(2, 50))
    for count, width in ((2, 200), (3, 50)):
        selection = media_filter.selected(_turns(count, width=200), TestModel())
        widths = [
            picture.width
            for message in selection.messages
            for part in message.parts
            if isinstance(part, UserPromptPart) and not isinstance(part.content, str)
            for item in part.content
            if isinstance(item, BinaryContent) and (picture := pictures.picture_of(item.data))
        ]
        assert widths == [width] * count


def test_what_is_not_a_picture_is_left_out_and_a_wrong_type_is_corrected() -> None:
    page = BinaryContent(b"<html>not found</html>", media_type="image/png")
    jpeg = BinaryContent(_picture(1).data, media_type="image/jpeg")
    original: Any = UserPromptPart(["see", page, jpeg])
    messages = [ModelRequest([original, ToolReturnPart("t", [page, jpeg], "1")])]
    selection = media_filter.selected(messages, TestModel())
    parts: list[Any] = list(selection.messages[0].parts)
    for content in (part.content for part in parts):
        text, picture = content[-2:]
        assert "it is not a valid picture" in (text if isinstance(text, str) else text.content)
        assert (picture.media_type, picture.data) == ("image/png", jpeg.data)
    assert parts[0].content[1].metadata == {"deepctl": METADATA}
    assert selection.notices[0].startswith("A picture of the conversation is left out: it is not a valid picture")
    assert original.content[1] is page, "the log keeps the original"


# Refusals

WORDINGS = [
    # OpenAI
    (400, "You uploaded an unsupported image. Please make sure your image is valid.", "some"),
    (400, "You uploaded an unsupported image. Please make sure your image is below 20 MB in size", "some"),
    (400, "Invalid MIME type. Only image types are supported.", "some"),
    (400, "The image data you provided does not represent a valid image.", "some"),
    (400, "Invalid content type. image_url is only supported by certain models.", "all"),
    # Anthropic
    (400, "messages.7.content.2.image.source.base64.data: At least one of the image dimensions exceed max allowed "
          "size: 8000 pixels", "some"),
    (400, "messages.2.content.0.image.source.base64: image exceeds 5 MB maximum: 8259148 bytes > 5242880 "
          "bytes", "some"),
    (400, "Could not process image", "some"),
    (400, "messages.0.content.0.image.source.bytes: The image was specified using the image/jpeg media type, but the "
          "image appears to be a image/png image", "some"),
    (413, "Request exceeds the maximum size", "size"),
    # Gemini
    (400, "Provided image is not valid", "some"),
    (400, "Unable to process input image. Please retry or report in https://developers.generativeai.google/", "some"),
    (400, "Unsupported MIME type: image/gif", "some"),
    (400, "Request contains an invalid argument.", "some"),
    # Bedrock
    (400, "The model returned the following errors: The provided image does not match the specified image format.",
     "some"),
    (400, "This model doesn't support the image content block that you provided.", "all"),
    # llama.cpp
    (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", "all"),
    (500, "image input is not supported by this server", "all"),
    (400, "Failed to load image or audio file", "some"),
    (500, 'Failed to parse messages: Unsupported content part type: "image_url"', "all"),
    # Ollama
    (400, "invalid image input", "some"),
    (500, "this model is missing data required for image input", "all"),
    (400, "this model does not support image input (ref: b8bd630e)", "all"),
    (500, "Failed to create new sequence: failed to process inputs: image: unknown format", "some"),
    # vLLM
    (400, "tiny is not a multimodal model", "all"),
    (400, "At most 1 image(s) may be provided in one request.", "some"),
    (400, "Failed to load image: cannot identify image file <_io.BytesIO object at 0x7f>", "some"),
    # LM Studio, OpenRouter, DeepSeek
    (400, "Model does not support images. Please use a model that does.", "all"),
    (404, "No endpoints found that support image input", "all"),
    (400, "Failed to deserialize the JSON body: unknown variant `image_url`, expected `text`", "all"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "message", "kind"), WORDINGS)
def test_the_refusals_of_the_providers_are_known_and_not_retried(status: int, message: str, kind: str) -> None:
    for body in ({"error": {"message": message}}, {"message": message}):
        error = ModelHTTPError(status, "tiny", body)
        assert request_failures.refused_pictures(error) == kind
        assert not request_failures.is_temporary(error)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"),
        (400, "prompt is too long: 210000 tokens > 200000 maximum"),
        (400, "the request exceeds the available context size, try increasing it"),
        (400, "tools are not supported"),
        (401, "invalid x-api-key"),
        (404, "model 'tiny' not found"),
        (429, "rate limit: at most 50 images a minute"),
        (500, "internal server error"),
        (503, "The server is overloaded"),
    ],
)
def test_other_failures_are_no_refusals_of_pictures(status: int, message: str) -> None:
    error = ModelHTTPError(status, "tiny", {"error": {"message": message}})
    assert request_failures.refused_pictures(error) is None


@pytest.mark.parametrize(("kind", "urls"), SENT, ids=lambda value: str(value)[:12])
def test_a_refused_picture_is_left_out_with_a_notice_and_the_conversation_goes_on(
    alice: Alice, kind: str, urls: Any
) -> None:
    (alice.scene.workspace / "good.png").write_bytes(png(4, 4))
    (alice.scene.workspace / "bad.png").write_bytes(png(5, 5))
    script: list[Answer] = [
        Text(["A cat."]),
        Status(400, "Could not process image"),
        Text(["I see none."]),
        Text(["Yes."]),
    ]
    with provider(*script) as server:
        alice.turn(alice.running(kind, server), "see @good.png")
        events = alice.turn(alice.running(kind, server), "see @bad.png")
        alice.turn(alice.running(kind, server), "sure?")  # as another process
    assert [len(urls(body)) for body in server.requests] == [1, 2, 1, 1]
    assert urls(server.requests[3]) == urls(server.requests[0])
    assert "see @bad.png" in json.dumps(server.requests[2])
    assert "the provider of this model refused it" in json.dumps(server.requests[3])
    (notice,) = (event["message"] for event in events if event["type"] == "notice")
    assert notice == (
        "The provider of loopback refused a picture (HTTP 400: Could not process image). The request is sent again "
        "without it, and so are later requests to this model."
    )
    assert [event["type"] for event in events][-1] != "error"


def test_another_model_gets_the_picture_that_one_has_refused(alice: Alice) -> None:
    (alice.scene.workspace / "a.png").write_bytes(png(4, 4))
    refusal = Status(500, "image input is not supported - hint: you may need to provide the mmproj")
    with provider(refusal, Text(["No."]), Text(["A cat."])) as server:
        events = alice.turn(alice.running("openai-chat:blind", server), "see @a.png")
        alice.turn(alice.running("anthropic:seeing", server), "and you?")
    assert "`deepctl config set model_profile.supports_image_input false`" in json.dumps(events)
    assert [len(_openai(body)) for body in server.requests[:2]] == [1, 0]
    assert len(_anthropic(server.requests[2])) == 1


def test_a_server_without_pictures_gets_none_of_any_turn(alice: Alice) -> None:
    for name in ("a.png", "b.png"):
        (alice.scene.workspace / name).write_bytes(png(4, 4, name.encode()))
    refusal = Status(400, "tiny is not a multimodal model")
    with provider(Text(["A cat."]), refusal, Text(["No."])) as server:
        alice.turn(alice.running("anthropic:seeing", server), "see @a.png")
        events = alice.turn(alice.running("openai-chat:tiny", server), "see @b.png")
    assert [len(_openai(body)) for body in server.requests[1:]] == [2, 0]
    assert "refused 2 pictures" in str(events)


def test_a_refusal_with_status_500_is_not_retried_with_the_picture(
    alice: Alice, monkeypatch: pytest.MonkeyPatch
) -> None:
    (alice.scene.workspace / "a.png").write_bytes(png(4, 4))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    with provider(Status(500, "image input is not supported by this server"), Text(["No."])) as server:
        options = Options("openai-chat:blind", f"{server.address}/v1", retries=3)
        alice.open.append(TurnRunner(options, environment=os.environ))
        events = alice.turn(alice.open[0], "see @a.png")
    assert [len(_openai(body)) for body in server.requests] == [1, 0]
    assert not [event for event in events if event["type"] == "retry"]


def test_if_the_new_picture_is_not_the_reason_all_are_left_out_and_then_the_turn_fails(alice: Alice) -> None:
    for name in ("a.png", "b.png"):
        (alice.scene.workspace / name).write_bytes(png(4, 4, name.encode()))
    refusals = [Status(400, "Could not process image")] * 3
    with provider(Text(["A cat."]), *refusals) as server:
        running = alice.running("openai-chat:loopback", server)
        alice.turn(running, "see @a.png")
        with pytest.raises(ModelFailed):
            alice.turn(running, "see @b.png")
    assert [len(_openai(body)) for body in server.requests] == [1, 2, 1, 0]


def test_for_a_request_that_is_too_large_the_old_pictures_are_left_out_first(alice: Alice) -> None:
    for name in ("a.png", "b.png"):
        (alice.scene.workspace / name).write_bytes(png(4, 4, name.encode()))
    with provider(Text(["A cat."]), Status(413, "Request exceeds the maximum size"), Text(["Two."])) as server:
        running = alice.running("anthropic:loopback", server)
        alice.turn(running, "see @a.png")
        alice.turn(running, "see @b.png")
    assert _anthropic(server.requests[2]) == _anthropic(server.requests[1])[1:]


def test_a_refusal_in_an_imported_conversation_is_checked() -> None:
    picture = _picture(1)
    entries: list[Any] = [
        None,
        1,
        {"model": 1},
        {"model": "test:test", "files": [1, {}]},
        {"model": "test:test", "files": 7},
    ]
    for entry in entries:
        answer = ModelResponse([TextPart("ok")], metadata={media_filter.REFUSED: entry})
        messages: list[ModelMessage] = [
            ModelRequest([UserPromptPart(["see", picture])]),
            answer,
            ModelRequest([UserPromptPart("on")]),
        ]
        assert _sent(media_filter.selected(messages, TestModel())) == [0]
    answer = ModelResponse(
        [TextPart("ok")],
        metadata={media_filter.REFUSED: {"model": "test:test", "files": [media_filter.digest(picture)]}},
    )
    messages = [ModelRequest([UserPromptPart(["see", picture])]), answer, ModelRequest([UserPromptPart("on")])]
    assert _sent(media_filter.selected(messages, TestModel())) == []


# Results of tools


def test_pictures_of_tools_are_recorded_as_they_are_sent(limits: Callable[..., None]) -> None:
    limits(side=100)
    large, page = _picture(1, width=300), BinaryContent(b"<html>", media_type="image/png")
    requests: list[list[ModelMessage]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        requests.append(list(messages))
        return ANSWER if len(messages) > 1 else ModelResponse([ToolCallPart("shoot", {}, "1")])

    async def run() -> Any:
        agent = create_deep_agent(FunctionModel(answer))

        @agent.tool_plain
        def shoot() -> Any:
            return ToolReturn([large, page], content=["another", large])

        return await agent.run("go", deps=DeepAgentDeps(backend=StateBackend()))

    result = asyncio.run(run())
    contents: list[Any] = [
        part.content for message in result.all_messages() for part in message.parts if isinstance(part, ToolReturnPart)
    ]
    ((picture, text),) = contents
    assert pictures.picture_of(picture.data) == pictures.Picture(PNG, 100, 1)
    assert "it is not a valid picture" in text
    added = [
        item
        for message in requests[-1]
        for part in message.parts
        if isinstance(part, UserPromptPart) and not isinstance(part.content, str)
        for item in part.content
        if isinstance(item, BinaryContent)
    ]
    assert [pictures.picture_of(item.data) for item in added] == [pictures.Picture(PNG, 100, 1)]


@pytest.mark.parametrize("is_result", [False, True], ids=["prompt", "result"])
def test_scaling_holds_up_nothing_else_in_the_process(monkeypatch: pytest.MonkeyPatch, is_result: bool) -> None:
    has_begun, went_on = threading.Event(), threading.Event()
    waits: list[bool] = []
    fitted = pictures.fitted

    def slow(*arguments: Any) -> pictures.Fitted | pictures.Unfit:
        has_begun.set()
        waits.append(went_on.wait(5))
        return fitted(*arguments)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart("shoot", {}, "1")]) if is_result and len(messages) == 1 else ANSWER

    async def another_user() -> None:
        while not has_begun.is_set():
            await asyncio.sleep(0.01)
        went_on.set()

    async def run() -> None:
        agent = create_deep_agent(FunctionModel(answer))

        @agent.tool_plain
        def shoot() -> Any:
            return [_picture(1)]

        prompt: list[UserContent] = ["go"] if is_result else ["see", _picture(1)]
        await asyncio.gather(agent.run(prompt, deps=DeepAgentDeps(backend=StateBackend())), another_user())

    monkeypatch.setattr(pictures, "fitted", slow)
    asyncio.run(run())
    assert waits
    assert all(waits)


def test_every_agent_is_sent_only_files_that_its_model_accepts() -> None:
    requests: list[list[ModelMessage]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        requests.append(list(messages))
        return ANSWER

    agent = create_deep_agent(FunctionModel(answer))
    page = BinaryContent(b"<html>", media_type="image/png")
    asyncio.run(agent.run(["see", page], deps=DeepAgentDeps(backend=StateBackend())))
    assert "it is not a valid picture" in str(requests[0])
    assert "BinaryContent" not in str(requests[0])


@pytest.fixture
def alice(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alice]:
    made = Alice(home, monkeypatch)
    yield made
    for running in made.open:
        running.close()
