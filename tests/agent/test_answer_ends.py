"""Answers that are not whole: cut off at a length, refused, or stopped; against servers that speak the formats."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel

from deepctl.agent.answer_ends import finish_of
from tests.support.command import Command, InProcess
from tests.support.loopback import Provider, Text, ToolCalls, provider
from tests.support.terminal import Terminal

KINDS = {"chat": "openai-chat:gpt-4o", "responses": "openai:gpt-4o", "anthropic": "anthropic:claude-sonnet-4-6"}
CUT = {"chat": "length", "responses": "max_output_tokens", "anthropic": "max_tokens"}
FILTERED = {"chat": "content_filter", "responses": "content_filter"}
CALL = ("write_file", {"path": "a.txt", "content": "A" * 40})


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-nothing")


def _point(server: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)


def _conversation(server: Provider) -> str:
    """The messages of the last request."""
    return json.dumps(server.requests[-1].get("messages") or server.requests[-1]["input"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_answer_is_kept_and_ends_with_a_result_and_an_error(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(Text(["Half an ", "answer"], finish=CUT[kind]), Text(["The rest."])) as server:
        _point(server, monkeypatch)
        cut = deepctl("chat", "--json", "--model", KINDS[kind], "hello")
        shown = deepctl("sessions", "show").ok().stdout
        deepctl("chat", "--json", "--model", KINDS[kind], "go on").ok()
    result, error = cut.events[-2:]
    assert (result["type"], result["output"], result["finish"]) == ("result", "Half an answer", "length")
    assert (result["usage"]["output_tokens"], result["checkpoint"] is not None) == (7, True)
    assert (error["code"], error["exit_code"], error["retryable"]) == ("answer_incomplete", 7, False)
    assert "max_tokens of [model_settings] above 7" in error["hint"]
    assert cut.code == 7
    assert "Half an answer\n(not the whole answer: it reached its maximum length)" in shown
    sent = _conversation(server)
    assert sent.index("Half an answer") < sent.index("[Your last answer is not whole") < sent.index("go on")
    assert "its maximum length" in sent
    last = deepctl("sessions", "show").ok().stdout.rpartition("--- turn")[2]
    assert "not the whole answer" not in last


@pytest.mark.parametrize("kind", KINDS)
def test_a_tool_call_that_was_cut_is_not_run_and_the_conversation_goes_on(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(ToolCalls([CALL, CALL], finish=CUT[kind]), Text(["Sorry."])) as server:
        _point(server, monkeypatch)
        cut = deepctl("chat", "--json", "--model", KINDS[kind], "write")
        assert not (home / "profiles/default/workspace/a.txt").exists()
        deepctl("chat", "--json", "--model", KINDS[kind], "again").ok()
    assert [event["type"] for event in cut.events if event["type"].startswith("tool")] == []
    result, error = cut.events[-2:]
    assert (result["finish"], error["code"]) == ("length", "answer_incomplete")
    assert "in a call of write_file" in error["message"]
    assert _conversation(server).count("This call was not run") == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[], ["I was about to "]], ids=["nothing", "text"])
def test_a_refused_answer_ends_with_a_result_and_an_error(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, pieces: list[str]
) -> None:
    with provider(Text(pieces, finish=FILTERED.get(kind, "refusal")), Text(["Yes."])) as server:
        _point(server, monkeypatch)
        refused = deepctl("chat", "--json", "--model", KINDS[kind], "hello")
        shown = deepctl("sessions", "show").ok().stdout
        deepctl("chat", "--json", "--model", KINDS[kind], "another").ok()
    result, error = refused.events[-2:]
    assert result["finish"] == ("content_filter" if kind in FILTERED else "refusal")
    assert result["output"] == "".join(pieces)
    assert (refused.code, error["code"], error["retryable"]) == (7, "answer_refused", False)
    assert len(server.requests) == 2, "it is not sent again"
    assert "refused it)" in shown


@pytest.mark.parametrize("kind", ["chat", "responses"])
def test_the_text_of_a_refusal_is_shown_and_kept(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with provider(Text([], refusal="I cannot help with that."), Text(["Yes."])) as server:
        _point(server, monkeypatch)
        refused = deepctl("chat", "--model", KINDS[kind], "hello")
        deepctl("chat", "--model", KINDS[kind], "another").ok()
    assert (refused.code, refused.stdout) == (7, "I cannot help with that.\n")
    assert f"{KINDS[kind]} refused to answer." in refused.stderr
    assert "I cannot help with that." in _conversation(server)
    assert "I cannot help with that." in deepctl("sessions", "show").ok().stdout


def test_anthropics_pause_is_continued_and_is_one_answer(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Text(["Searching. "], finish="pause_turn"), Text(["Found."])) as server:
        _point(server, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS["anthropic"], "hello").ok().events[-1]
    assert (result["type"], result["finish"], len(server.requests)) == ("result", "stop", 2)
    assert result["output"].endswith("Found.")


def test_a_length_that_the_user_has_set_is_no_error(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "model_settings.max_tokens", "7").ok()
    cut = Text(["Half"], finish="length")
    with provider(cut, cut, ToolCalls([CALL], finish="length"), Text(["No"], finish="content_filter")) as server:
        _point(server, monkeypatch)
        result = deepctl("chat", "--json", "--model", KINDS["chat"], "hello").ok().events[-1]
        text = deepctl("chat", "--model", KINDS["chat"], "hello").ok()
        codes = [deepctl("chat", "--model", KINDS["chat"], "hello").code for _ in range(2)]
    notice = "The answer of openai-chat:gpt-4o was cut off at its maximum length. model_settings.max_tokens is 7."
    assert (result["type"], result["finish"], result["notice"]) == ("result", "length", notice)
    assert (text.stdout, text.stderr) == ("Half\n", f"{notice}\n")
    assert codes == [7, 7], "a tool call that was cut, and a refused answer, are errors all the same"


def test_a_person_reads_the_text_and_then_what_to_set(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Text(["Half"], finish="length")) as server:
        _point(server, monkeypatch)
        cut = deepctl("chat", "--ephemeral", "--model", KINDS["chat"], "hello")
    assert (cut.code, cut.stdout) == (7, "Half\n")
    message, hint = cut.stderr.splitlines()
    assert message == "Error: The answer of openai-chat:gpt-4o was cut off at its maximum length."
    assert hint == "Hint: Tell the agent to continue, or set max_tokens of [model_settings] above 7."


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("chat", Text(["Half"], finish="length", used=(1990, 10))),
        ("anthropic", Text(["Half"], finish="model_context_window_exceeded")),
    ],
)
def test_a_full_context_is_named_as_the_reason(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, kind: str, answer: Text
) -> None:
    deepctl("config", "set", "context_window", "2000" if kind == "chat" else "1000000").ok()
    deepctl("config", "set", "compact_at", "never").ok()
    with provider(answer) as server:
        _point(server, monkeypatch)
        error = deepctl("chat", "--json", "--model", KINDS[kind], "hello").events[-1]
    assert error["code"] == "answer_incomplete"
    assert error["hint"].startswith("The context window is full. Shorten the conversation with /compact")


def test_an_interactive_chat_goes_on_after_a_cut_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Text(["Half an"], finish="length"), Text(["The other half."])) as server:
        _point(server, monkeypatch)
        terminal = Terminal("chat", "--model", KINDS["chat"])
        try:
            terminal.prompt(name="default")
            terminal.type("hello\r")
            terminal.expect("Half an")
            terminal.expect("Hint: Tell the agent to continue")
            terminal.type("go on\r")
            terminal.expect("The other half.")
        finally:
            terminal.close()


def test_a_terminal_shows_the_notice_about_a_wanted_length_once_after_the_text(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("config", "set", "model_settings.max_tokens", "7").ok()
    with provider(Text(["Half an"], finish="length")) as server:
        _point(server, monkeypatch)
        terminal = Terminal("chat", "--model", KINDS["chat"])
        try:
            terminal.prompt(name="default")
            terminal.type("hello\r")
            terminal.expect("was cut off")
            terminal.settle()
            assert terminal.screen.count("was cut off") == 1
            assert terminal.screen.index("Half an") < terminal.screen.index("was cut off")
        finally:
            terminal.close()


@pytest.mark.parametrize("by", ["Ctrl-C", "the time limit", "SIGTERM"])
def test_a_stopped_answer_is_kept_and_marked_for_the_model(
    deepctl: InProcess, process: Command, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    is_over = threading.Event()

    def gate() -> None:
        is_over.wait(30)

    with provider(Text(["Half an ", "answer"], gate=gate), Text(["Whole."])) as server:
        _point(server, monkeypatch)
        limit = ("--timeout", "3") if by == "the time limit" else ()
        running = process.start("chat", "--json", "--model", KINDS["chat"], *limit, "hello")
        assert running.stdout is not None
        for line in running.stdout:
            if json.loads(line)["type"] == "text":
                break
        if by != "the time limit":
            running.send_signal(signal.SIGINT if by == "Ctrl-C" else signal.SIGTERM)
        assert running.wait(20) == {"Ctrl-C": 130, "SIGTERM": -signal.SIGTERM}.get(by, 124)
        is_over.set()
        shown = deepctl("sessions", "show").ok().stdout
        deepctl("chat", "--json", "--model", KINDS["chat"], "go on").ok()
    assert "Half an \n(no complete answer: interrupted" in shown
    sent = _conversation(server)
    mark = "[Your last answer is not whole: it was stopped, or the connection failed.]"
    assert sent.index("Half an ") < sent.index(mark) < sent.index("go on")


class _Remote(Model):
    """A model of a provider."""

    model_name = "remote"
    system = "remote"

    async def request(self, *arguments: Any) -> ModelResponse:
        raise NotImplementedError


@pytest.mark.parametrize("model", [TestModel(), FunctionModel(lambda messages, info: ModelResponse(parts=[]))])
def test_a_model_of_a_test_needs_no_reason_to_stop(model: Model) -> None:
    response = ModelResponse(parts=[TextPart("Whole")])
    assert finish_of(response, WrapperModel(model)) == "stop"


@pytest.mark.parametrize(
    ("reason", "details", "finish"),
    [
        ("stop", None, "stop"),
        ("tool_call", None, "stop"),
        ("length", {"finish_reason": "MAX_TOKENS"}, "length"),
        ("content_filter", {"finish_reason": "SAFETY"}, "content_filter"),
        ("content_filter", {"block_reason": "PROHIBITED_CONTENT"}, "content_filter"),
        ("content_filter", {"finish_reason": "refusal"}, "refusal"),
        ("content_filter", {"refusal": "No."}, "refusal"),
        ("error", {"finish_reason": "MALFORMED_FUNCTION_CALL"}, "ended with MALFORMED_FUNCTION_CALL"),
        ("error", None, "ended with an error"),
        (None, None, "without a reason to stop"),
    ],
)
def test_every_reason_to_stop_is_one_of_four_or_a_failure(reason: Any, details: Any, finish: str) -> None:
    response = ModelResponse(parts=[TextPart("Half")], finish_reason=reason, provider_details=details)
    if finish in ("stop", "length", "content_filter", "refusal"):
        assert finish_of(response, _Remote()) == finish
    else:
        with pytest.raises(ModelAPIError, match=finish):
            finish_of(response, _Remote())
