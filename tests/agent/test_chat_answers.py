"""Deviations of chat-completions servers from OpenAI's protocol, against servers on 127.0.0.1 that have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart

from deepctl.agent.message_filters import history_of
from deepctl.agent.turn import to_json
from deepctl.store.log_file import Message, MessageList
from tests.support.command import InProcess, Result
from tests.support.loopback import Raw, Text, provider

STREAM = {"Content-Type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")


def _chunk(finish: str | None = None, usage: int | None = None, **delta: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    document["choices"] = [{"index": 0, "delta": delta, "finish_reason": finish}]
    if usage is not None:
        document["usage"] = {"prompt_tokens": 100, "completion_tokens": usage, "total_tokens": 100 + usage}
    return document


def _stream(*chunks: dict[str, Any] | bytes, end: bytes = DONE) -> Raw:
    body = [chunk if isinstance(chunk, bytes) else b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    return Raw(b"".join(body) + end, headers=STREAM)


def _call(index: int | None, name: str | None, arguments: str, identity: str | None = None) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"arguments": arguments}}
    if name is not None:
        call["function"]["name"] = name
    if identity is not None:
        call |= {"id": identity, "type": "function"}
    return call if index is None else {**call, "index": index}


def _ask(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, *answers: Raw | Text) -> tuple[Result, list[Any]]:
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        result = deepctl("chat", "--json", "--model", "openai-chat:m", "hello")
    return result, server.requests


def _of(result: Result, kind: str, key: str) -> str:
    return "".join(event[key] for event in result.events if event["type"] == kind)


def test_of_several_usages_the_last_one_counts(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = [_chunk(content=text, usage=number) for number, text in enumerate("abc", 1)]
    result, _ = _ask(deepctl, monkeypatch, _stream(*chunks, _chunk("stop", 4)))
    usage = result.ok().events[-1]["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["requests"]) == (100, 4, 1)


def test_an_answer_without_usage_has_none_and_no_known_cost(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = _ask(deepctl, monkeypatch, _stream(_chunk(content="Hi."), _chunk("stop")))
    last = result.ok().events[-1]
    assert last["usage"] == {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "requests": 1}
    assert (last["output"], last["cost"]) == ("Hi.", None)


USAGES: list[Any] = [
    {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    {"prompt_tokens": "5", "completion_tokens": "x", "total_tokens": 1},
    {"prompt_tokens": -5, "completion_tokens": -1, "total_tokens": -6},
]


@pytest.mark.parametrize("usage", USAGES)
def test_usage_in_another_form_is_unknown_and_causes_no_warning(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, usage: Any
) -> None:
    result, _ = _ask(deepctl, monkeypatch, _stream(_chunk(content="Hi."), {**_chunk("stop"), "usage": usage}))
    last = result.ok().events[-1]
    assert (last["output"], last["usage"]["input_tokens"], last["cost"]) == ("Hi.", 0, None)
    assert (result.stderr, _of(result, "notice", "message")) == ("", "")
    assert [str(warning.message) for warning in recwarn.list] == []


def _choice(**choice: Any) -> dict[str, Any]:
    return {**_chunk(), "choices": [{"index": 0, **choice}]}


PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}, {"type": "text", "text": "Hi."}]
OTHER_TYPES = {
    "a list of texts": [
        _chunk(content=[{"type": "text", "text": "Hi"}, {"type": "text", "text": "."}]),
        _chunk("stop"),
    ],
    "a list with thinking": [_chunk(content=PARTS), _chunk("stop")],
    "no delta at the end": [_chunk(content="Hi."), _choice(delta=None, finish_reason="stop")],
    "no delta, only a message": [_choice(message={"role": "assistant", "content": "Hi."}, finish_reason="stop")],
    "a number as its end": [
        _chunk(content="Hi."),
        _choice(delta={}, finish_reason=0),
        _choice(delta={}, finish_reason=1),
    ],
}


@pytest.mark.parametrize("form", OTHER_TYPES)
def test_an_answer_with_fields_of_other_types_is_read(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    result, requests = _ask(deepctl, monkeypatch, _stream(*OTHER_TYPES[form]))
    assert (result.ok().events[-1]["output"], len(requests)) == ("Hi.", 1)
    assert _of(result, "thinking", "delta") == ("Hm" if "thinking" in form else "")


def test_an_answer_that_cannot_be_read_is_a_failure_of_the_server(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = _ask(deepctl, monkeypatch, _stream(_chunk(content="Hi."), {**_chunk("stop"), "usage": [1]}))
    assert (result.code, result.events[-1]["code"]) == (7, "model_failed")
    assert "not in the form of its protocol" in result.events[-1]["message"]


@pytest.mark.parametrize("finish", [None, "", "eos", "end_turn", "STOP"])
def test_an_answer_with_any_end_is_whole(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, finish: str) -> None:
    result, _ = _ask(deepctl, monkeypatch, _stream(_chunk(content="Hi."), _chunk(finish)))
    last = result.ok().events[-1]
    assert (last["output"], last["finish"]) == ("Hi.", "stop")


@pytest.mark.parametrize(
    ("finish", "end", "code"),
    [
        (None, b"", "model_failed"),
        ("max_tokens", DONE, "answer_incomplete"),
        ("SAFETY", DONE, "answer_refused"),
        ("abort", DONE, "model_failed"),
    ],
)
def test_an_answer_that_is_cut_off_is_not_whole(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, finish: str | None, end: bytes, code: str
) -> None:
    result, _ = _ask(deepctl, monkeypatch, _stream(_chunk(content="Hi."), _chunk(finish), end=end))
    error = result.events[-1]
    assert (result.code, error["type"], error["code"]) == (7, "error", code), error


THOUGHT = "<think>I ponder.</think>\n\nThe answer is < 4 </b>."


@pytest.mark.parametrize("size", range(1, 10))
def test_thinking_is_found_in_any_split(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    pieces = [THOUGHT[start : start + size] for start in range(0, len(THOUGHT), size)]
    result, _ = _ask(deepctl, monkeypatch, Text(pieces))
    assert _of(result.ok(), "thinking", "delta") == "I ponder."
    assert _of(result, "text", "delta").strip() == "The answer is < 4 </b>."
    assert result.events[-1]["output"].strip() == "The answer is < 4 </b>."


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_a_lone_closing_tag_ends_the_thinking(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    whole = "I ponder.\n</think>\n\nThe answer."
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    with provider(Text(pieces), Text(["Bye."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        result = deepctl("chat", "--json", "--model", "openai-chat:m", "hello").ok()
        deepctl("chat", "--model", "openai-chat:m", "bye").ok()
    assert result.events[-1]["output"] == "The answer."
    assert "</think>" not in _of(result, "text", "delta")
    (answer,) = [message for message in server.requests[1]["messages"] if message["role"] == "assistant"]
    assert answer["content"].endswith("The answer.")
    assert answer["content"].count("</think>") == answer["content"].count("<think>")
    assert "I ponder." in deepctl("sessions", "show", "--json").ok().stdout


@pytest.mark.parametrize(
    "text", ["Use `</think>` and `<think>`.", "Say <think> aloud", "</think>", "a <thin", "x\n<thi"]
)
@pytest.mark.parametrize("size", [1, 7, 100])
def test_tags_that_the_answer_is_about_stay(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    result, _ = _ask(deepctl, monkeypatch, Text(pieces))
    assert result.ok().events[-1]["output"] == text
    assert _of(result, "text", "delta") == text


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_thinking(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    thinking = [_chunk(None, None, **{field: text}) for text in ("I ", "ponder.")]
    result, _ = _ask(deepctl, monkeypatch, _stream(*thinking, _chunk(content="Hi."), _chunk("stop")))
    assert _of(result.ok(), "thinking", "delta") == "I ponder."
    assert result.events[-1]["output"] == "Hi."


WRITE = [json.dumps({"path": f"{name}.txt", "content": name}) for name in "ab"]
CALLS = {
    "one index": [[_call(0, "write_file", WRITE[0], "a")], [_call(0, "write_file", WRITE[1], "b")]],
    "one index in one chunk": [[_call(0, "write_file", WRITE[0], "a"), _call(0, "write_file", WRITE[1], "b")]],
    "one index, in pieces": [
        [_call(0, "write_file", "", "a")],
        [_call(0, None, WRITE[0][:9])],
        [_call(0, None, WRITE[0][9:])],
        [_call(0, "write_file", "", "b")],
        [_call(0, None, WRITE[1][:9])],
        [_call(0, None, WRITE[1][9:])],
    ],
    "one index, no ids": [[_call(0, "write_file", WRITE[0])], [_call(0, "write_file", WRITE[1])]],
    "no index": [[_call(None, "write_file", WRITE[0], "a"), _call(None, "write_file", WRITE[1], "b")]],
    "no ids": [[_call(0, "write_file", WRITE[0]), _call(1, "write_file", WRITE[1])]],
    "empty ids": [[_call(0, "write_file", WRITE[0], ""), _call(1, "write_file", WRITE[1], "")]],
    "one id": [[_call(0, "write_file", WRITE[0], "x")], [_call(1, "write_file", WRITE[1], "x")]],
    "one id and one index": [[_call(0, "write_file", WRITE[0], "x")], [_call(0, "write_file", WRITE[1], "x")]],
    "another id in each piece": [
        [_call(0, "write_file", WRITE[0][:9], "a")],
        [_call(0, None, WRITE[0][9:], "b")],
        [_call(1, "write_file", WRITE[1][:9], "c")],
        [_call(1, None, WRITE[1][9:], "d")],
    ],
    "name and id in each piece": [
        [_call(0, "write_file", WRITE[0][:9], "a")],
        [_call(0, "write_file", WRITE[0][9:], "a")],
        [_call(1, "write_file", WRITE[1][:9], "b")],
        [_call(1, "write_file", WRITE[1][9:], "b")],
    ],
}


@pytest.mark.parametrize("form", CALLS)
@pytest.mark.parametrize("finish", ["tool_calls", "stop"])
def test_two_calls_are_two_calls_with_ids_of_their_own(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, form: str, finish: str
) -> None:
    calls = _stream(*[_chunk(tool_calls=part) for part in CALLS[form]], _chunk(finish))
    result, requests = _ask(deepctl, monkeypatch, calls, Text(["Done."]))
    result.ok()
    for name in "ab":
        assert (home / f"profiles/default/workspace/{name}.txt").read_text() == name
    sent = [call["id"] for message in requests[1]["messages"] for call in message.get("tool_calls", ())]
    answered = [message["tool_call_id"] for message in requests[1]["messages"] if message["role"] == "tool"]
    assert sent == answered
    assert len(set(sent)) == 2
    assert all(sent)


AS_TEXT = [
    '<tool_call>\n{"name": "ls", "arguments": {"path": "."}}\n</tool_call>',
    '{"name": "ls", "parameters": {"path": "."}}',
    '```json\n{"type": "function", "name": "ls", "arguments": {}}\n```',
    '[TOOL_CALLS][{"name": "ls", "arguments": {}}]',
    "Let me look.\n<function=ls><parameter=path>.</parameter></function>",
    "<|python_tag|>ls.call(path='.')",
]


@pytest.mark.parametrize("text", AS_TEXT)
def test_a_tool_call_that_comes_as_text_is_called_one(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    result, _ = _ask(deepctl, monkeypatch, Text([text]))
    notices = _of(result.ok(), "notice", "message")
    assert "tool call as text" in notices
    assert "--jinja" in notices
    assert result.events[-1]["output"] == text


@pytest.mark.parametrize("text", ["Hi.", '{"name": "Alice", "age": 4}', "A `<tool_call>` is a tag."])
def test_other_answers_are_not_taken_for_tool_calls(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    result, _ = _ask(deepctl, monkeypatch, Text([text]))
    assert "tool call" not in _of(result.ok(), "notice", "message")


def _events(*events: dict[str, Any]) -> Raw:
    text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Raw(text.encode(), headers=STREAM)


_MESSAGE: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": []}
_RESPONSE = {"id": "r", "object": "response", "created_at": 1, "model": "m", "output": [], "tools": []}
_ERROR = {"type": "api_error", "code": "server_error", "message": "out of credits"}
ERRORS_LATER = {
    "anthropic:m": _events(
        {"type": "message_start", "message": {**_MESSAGE, "usage": {"input_tokens": 1, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Half"}},
        {"type": "error", "error": _ERROR},
    ),
    "openai:m": _events(
        {"type": "response.created", "sequence_number": 0, "response": {**_RESPONSE, "status": "in_progress"}},
        {
            "type": "response.output_text.delta",
            "sequence_number": 1,
            "item_id": "i",
            "output_index": 0,
            "content_index": 0,
            "delta": "Half",
            "logprobs": [],
        },
        {
            "type": "response.failed",
            "sequence_number": 2,
            "response": {**_RESPONSE, "status": "failed", "error": _ERROR},
        },
    ),
}


@pytest.mark.parametrize("model", ERRORS_LATER)
def test_an_error_within_an_answer_of_another_protocol_is_shown(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    with provider(ERRORS_LATER[model]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
        result = deepctl("chat", "--json", "--model", model, "hello")
    event = result.events[-1]
    assert (result.code, event["type"]) == (7, "error")
    assert "out of credits" in event["message"]
    assert "Half" in deepctl("sessions", "show").ok().stdout


@pytest.mark.parametrize(
    "error",
    [
        b'data: {"error": {"message": "out of credits", "code": 402}}\n\n',
        b'data: {"error": "out of credits"}\n\n',
        b'event: error\ndata: {"error": {"message": "out of credits"}}\n\n',
        b'error: {"code": 500, "message": "out of credits"}\n\n',
    ],
)
def test_an_error_after_the_beginning_of_an_answer_is_shown(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, error: bytes
) -> None:
    result, requests = _ask(deepctl, monkeypatch, _stream(_chunk(content="Half"), error, end=b""))
    event = result.events[-1]
    assert (result.code, event["type"]) == (7, "error")
    assert "out of credits" in event["message"]
    assert len(requests) == 1
    assert "Half" in deepctl("sessions", "show").ok().stdout


def test_a_session_goes_on_whose_last_answer_was_stored_as_suspended() -> None:
    messages: list[ModelMessage] = [
        ModelRequest.user_text_prompt("hello"),
        ModelResponse([TextPart("Half")], state="suspended"),
    ]
    conversation = MessageList([Message(1, "", value) for value in to_json(messages)], [], 1, [])
    assert history_of(conversation).messages[-1].state == "interrupted"
