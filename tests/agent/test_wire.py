"""The shape of requests to chat-completions servers: of any history, from the command line and from the library."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai_backends import StateBackend

from deepctl.agent.factory import DeepAgentDeps, create_deep_agent
from deepctl.agent.offline import offline_model
from deepctl.agent.wire import NO_ANSWER, NO_BEGINNING, NO_RESULT, ORPHAN, chat_shape, with_chat_shape
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider

Messages = list[dict[str, Any]]
PICTURE = BinaryContent(b"\x89PNG\r\n\x1a\n0", media_type="image/png")
MEMORY = {"origin": "pydantic-ai-harness.memory.v1"}
FILE = {"deepctl": "attached"}


def assert_shape(messages: Sequence[dict[str, Any]], system: str = "system") -> None:
    """A system message at most, first; user and assistant messages alternately; the results of all calls."""
    roles = [message["role"] for message in messages]
    assert system not in roles[1:]
    conversation = list(messages[1:] if roles[:1] == [system] else messages)
    turns: list[str] = []
    while conversation:
        message = conversation.pop(0)
        content = message.get("content")
        if message["role"] == "assistant":
            calls = [call["id"] for call in message.get("tool_calls") or []]
            answers = [conversation.pop(0) for _ in calls]
            assert [answer["role"] for answer in answers] == ["tool"] * len(calls), roles
            assert [answer["tool_call_id"] for answer in answers] == calls
            assert calls or content or len(message) > 2
            follows = conversation[0]["role"] if conversation else "assistant"
            # An answer to tool results follows them.
            assert not calls or follows == "assistant", roles
            if calls and conversation:
                continue
        else:
            assert message["role"] == "user", roles
            assert content
            if isinstance(content, list):
                assert any(part["type"] != "text" for part in content), "a list of texts"
        turns.append(message["role"])
    assert turns == [role for role, _ in zip(itertools.cycle(("user", "assistant")), turns, strict=False)], roles


_NUMBERS = itertools.count(2)


def _new_text() -> st.SearchStrategy[str]:
    """Texts that occur nowhere else, and empty ones."""
    return st.sampled_from(["", "word"]).map(lambda text: text and f"{text}-{next(_NUMBERS)}-")


_IDS = st.sampled_from(["a", "b", "c"])
_CALL = st.fixed_dictionaries({"id": _IDS, "function": st.fixed_dictionaries({"name": _new_text()})})
_CONTENT = st.one_of(
    _new_text(),
    st.lists(
        st.one_of(
            st.fixed_dictionaries({"type": st.just("text"), "text": _new_text()}),
            st.just({"type": "image_url", "image_url": {"url": "picture"}}),
        ),
        max_size=3,
    ),
)
_MESSAGE = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": _new_text()}),
    st.fixed_dictionaries({"role": st.just("user"), "content": _CONTENT}),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.one_of(st.none(), _new_text())},
        optional={"tool_calls": st.lists(_CALL, max_size=3), "reasoning_content": _new_text()},
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": _IDS, "content": _new_text()}),
)


def _words(value: object) -> list[str]:
    return re.findall("word-[0-9]+-", json.dumps(value))


@settings(max_examples=150, deadline=None)
@given(st.lists(_MESSAGE, max_size=12))
def test_any_messages_get_the_shape_and_no_text_is_lost(messages: Messages) -> None:
    before = json.dumps(messages)
    shape = chat_shape(messages)
    assert json.dumps(messages) == before, "the messages are not changed"
    # The first role of the system messages is kept.
    system = shape[0]["role"] if shape and shape[0]["role"] == "developer" else "system"
    assert_shape(shape, system)
    assert sorted(_words(shape)) == sorted(_words(messages))
    assert chat_shape(shape) == shape


@settings(max_examples=100, deadline=None)
@given(st.lists(_MESSAGE, max_size=8))
def test_text_of_the_users_stays_in_its_order(messages: Messages) -> None:
    said = [word for message in messages if message["role"] == "user" for word in _words(message)]
    assert [word for word in _words(chat_shape(messages)) if word in said] == said


_ADDED = st.builds(lambda text: UserPromptPart([TextContent(text, metadata=MEMORY)]), _new_text())
_PROMPT = st.one_of(
    st.builds(UserPromptPart, _new_text()),
    st.builds(
        lambda text, file: UserPromptPart([text, TextContent(file, metadata=FILE), PICTURE]), _new_text(), _new_text()
    ),
)
_RETURN = st.builds(lambda text, at: ToolReturnPart("ls", text, tool_call_id=at), _new_text(), _IDS)
_REQUEST = st.builds(
    lambda parts: ModelRequest(parts=parts),
    st.lists(st.one_of(st.builds(SystemPromptPart, _new_text()), _PROMPT, _ADDED, _RETURN), max_size=4),
)
_RESPONSE = st.builds(
    lambda parts: ModelResponse(parts=parts),
    st.lists(
        st.one_of(
            st.builds(TextPart, _new_text()),
            st.builds(ThinkingPart, _new_text()),
            st.builds(lambda text, at: ToolCallPart("ls", {"path": text}, tool_call_id=at), _new_text(), _IDS),
        ),
        max_size=3,
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(_REQUEST, _RESPONSE), max_size=8), _new_text())
def test_any_history_is_sent_in_the_shape(history: list[ModelMessage], prompt: str) -> None:
    prompt = prompt or "word-0-"
    added = UserPromptPart([TextContent("word-1-", metadata=MEMORY)])
    history = [*history, ModelRequest(parts=[UserPromptPart(prompt), added])]
    sent = _sent(history)
    assert_shape(sent)
    assert set(_words(ModelMessagesTypeAdapter.dump_python(history, mode="json"))) == set(_words(sent))
    assert sent[-1]["role"] == "user"
    last = sent[-1]["content"]
    text = last if isinstance(last, str) else last[-1]["text"]
    assert text.endswith(f"word-1-\n\n{prompt}")


def _model(profile: OpenAIModelProfile | None = None) -> Model:
    return with_chat_shape(
        OpenAIChatModel("m", provider=OpenAIProvider("http://127.0.0.1:9/v1", api_key="k"), profile=profile)
    )


_MODEL = _model()


def _sent(history: list[ModelMessage], profile: OpenAIModelProfile | None = None) -> Messages:
    model: Any = _model(profile) if profile else _MODEL
    parameters = ModelRequestParameters()
    return asyncio.run(model._map_messages(model.prepare_messages(history, parameters), parameters))


def test_a_history_of_an_older_version_is_sent_in_the_present_shape() -> None:
    """It has memory in a part after the prompt, and several system messages."""
    call = ToolCallPart("ls", {}, tool_call_id="a")
    history: list[ModelMessage] = [
        ModelRequest(
            parts=[
                SystemPromptPart("You are one."),
                SystemPromptPart("You are two."),
                UserPromptPart("first"),
                UserPromptPart([TextContent("<memory>m</memory>", metadata=MEMORY)]),
            ]
        ),
        ModelResponse(parts=[TextPart("one"), call]),
        ModelRequest(
            parts=[
                ToolReturnPart("ls", "a.txt", tool_call_id="a"),
                UserPromptPart([TextContent("<reminder/>", metadata=MEMORY)]),
            ]
        ),
        ModelResponse(parts=[TextPart("two")]),
        ModelRequest(parts=[UserPromptPart(["look", TextContent("<file/>", metadata=FILE), PICTURE])]),
        ModelResponse(parts=[]),
        ModelRequest(parts=[UserPromptPart("again")]),
    ]
    assert _sent(history) == [
        {"role": "system", "content": "You are one.\n\nYou are two."},
        {"role": "user", "content": "<memory>m</memory>\n\nfirst"},
        {
            "role": "assistant",
            "content": "one",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "ls", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "a.txt\n\n<reminder/>"},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<file/>"},
                {"type": "image_url", "image_url": {"url": PICTURE.data_uri}},
                {"type": "text", "text": "look\n\nagain"},
            ],
        },
    ]


USER, TOOL = {"role": "user", "content": "u"}, {"role": "tool", "tool_call_id": "a", "content": "t"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]}
ANSWER = {"role": "assistant", "content": "x"}
MARKED = {"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("messages", "shape"),
    [
        ([ANSWER, USER], [{"role": "user", "content": NO_BEGINNING}, ANSWER, USER]),
        ([USER, CALL, TOOL, USER], [USER, CALL, TOOL, {"role": "assistant", "content": NO_ANSWER}, USER]),
        ([USER, CALL, ANSWER], [USER, {**CALL, "content": "x"}, {**TOOL, "content": NO_RESULT}]),
        ([USER, CALL, USER, TOOL], [USER, CALL, TOOL, {"role": "assistant", "content": NO_ANSWER}, USER]),
        ([USER, TOOL], [{"role": "user", "content": f"u\n\n{ORPHAN}\nt"}]),
        (
            [USER, CALL, TOOL, TOOL],
            [USER, CALL, TOOL, {**ANSWER, "content": NO_ANSWER}, {**USER, "content": f"{ORPHAN}\nt"}],
        ),
        ([USER, {"role": "system", "content": "s"}], [{"role": "user", "content": "u\n\n<system>\ns\n</system>"}]),
        (
            [USER, {**ANSWER, "reasoning": "r"}, {**ANSWER, "reasoning": "q"}],
            [USER, {"role": "assistant", "content": "x\n\nx", "reasoning": "r\n\nq"}],
        ),
        # The text before a cache marker is joined with it, and stays the same when the marker has moved on.
        (
            [USER, {**USER, "content": [MARKED]}, USER],
            [{**USER, "content": [{**MARKED, "text": "u\n\nu"}, {"type": "text", "text": "u"}]}],
        ),
        ([], []),
    ],
)  # fmt: skip
def test_what_has_no_place_in_the_shape_is_kept_as_text(messages: Messages, shape: Messages) -> None:
    assert chat_shape(messages) == shape


def test_two_calls_with_one_id_have_their_own_results() -> None:
    calls = {"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}
    results = [{"role": "tool", "tool_call_id": name, "content": text} for name, text in ("a1", "a2", "b1")]
    assert [message["content"] for message in chat_shape([USER, calls, *results])[2:]] == ["1", "1", "2"]


def test_without_a_role_for_the_system_its_text_opens_the_first_prompt() -> None:
    profile = OpenAIModelProfile(openai_system_prompt_role="user")
    history: list[ModelMessage] = [
        ModelRequest(parts=[SystemPromptPart("You are one."), UserPromptPart("hello")]),
        ModelResponse(parts=[TextPart("hi")]),
        ModelRequest(parts=[UserPromptPart("bye")]),
    ]
    assert _sent(history, profile) == [
        {"role": "user", "content": "You are one.\n\nhello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "bye"},
    ]


def test_models_in_wrappers_and_fallbacks_have_the_shape_and_the_given_one_is_unchanged() -> None:
    model = OpenAIChatModel("m", provider=OllamaProvider("http://127.0.0.1:9/v1"))
    wrapper = FallbackModel(WrapperModel(model), offline_model())
    shaped = with_chat_shape(wrapper)
    assert isinstance(shaped, FallbackModel)
    assert isinstance(shaped.models[0], WrapperModel)
    assert "_map_messages" in vars(shaped.models[0].wrapped)
    assert with_chat_shape(shaped) is shaped
    assert "_map_messages" not in vars(model)
    assert isinstance(wrapper.models[0], WrapperModel)
    assert wrapper.models[0].wrapped is model
    offline = offline_model()
    assert with_chat_shape(offline) is offline
    assert isinstance(shaped.models[1], FunctionModel)


@pytest.mark.parametrize("kind", ["openai-chat:m", "ollama:m"])
def test_the_command_line_sends_the_shape(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    calls = ToolCalls([("write_memory", {"content": "Alice likes tea."}), ("ls", {"path": "."})])
    with provider(calls, Text(["Noted."]), Text(["Tea."]), Text(["Bye."])) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OLLAMA_BASE_URL", f"{server.address}/v1")
        for prompt in ("I like tea", "what do I like", "goodbye"):
            deepctl("chat", "--model", kind, prompt).ok()
    ends = ("I like tea", None, "what do I like", "goodbye")
    for request, end in zip(server.requests, ends, strict=True):
        assert request["messages"][0]["role"] == "system"
        assert_shape(request["messages"])
        if end is not None:
            assert request["messages"][-1]["content"].endswith(end)


def test_the_library_sends_the_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Text(["Hi."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        agent = create_deep_agent("openai-chat:m", instructions=["Be brief.", lambda ctx: "Be kind."])
        deps = DeepAgentDeps(backend=StateBackend())

        async def stream(ctx: object, events: AsyncIterable[object]) -> None:
            async for _ in events:
                pass

        async def two_turns() -> None:
            first = await agent.run("hello", deps=deps, event_stream_handler=stream)
            await agent.run("bye", deps=deps, message_history=first.all_messages(), event_stream_handler=stream)

        asyncio.run(two_turns())
    for request in server.requests:
        assert_shape(request["messages"])
    assert "Be brief." in server.requests[0]["messages"][0]["content"]
    assert "Be kind." in server.requests[0]["messages"][0]["content"]
    assert server.requests[1]["messages"][-1]["content"].endswith("bye")


def test_every_parameter_of_a_tool_has_a_type_and_its_whole_definition(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with provider(Text(["Hi."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        deepctl("chat", "--ephemeral", "--model", "openai-chat:m", "hello").ok()
    parameters = [tool["function"]["parameters"] for tool in server.requests[0]["tools"]]
    assert len(parameters) > 5
    schemas = [schema for tool in parameters for schema in _schemas(tool)]
    assert [schema for schema in schemas if not isinstance(schema.get("type"), str)] == []
    assert "$ref" not in json.dumps(parameters)


def _schemas(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A schema, and those of its properties and items."""
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return [schema, *(deeper for one in inner for deeper in _schemas(one))]
