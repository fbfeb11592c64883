"""The failure of a request names whose fault it is (K3.1, K3.3, K3.5); what cannot pass is not tried again."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import socket
import threading
from collections.abc import AsyncIterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent
from pydantic_ai.exceptions import (
    ModelHTTPError,
    ModelRequestRejectedError,
    ModelServerError,
    UnexpectedModelBehavior,
)

from deepctl.agent.model_wrappers import Retries, RetryingModel
from deepctl.agent.models import resolve
from deepctl.agent.provider_errors import ModelEndpoint, failure, model_endpoint
from deepctl.agent.request_failures import is_temporary
from deepctl.agent.response_recorder import LastResponse, is_page
from deepctl.domain import addresses, env_variables
from tests.support.command import InProcess
from tests.support.loopback import Raw, Text, ToolCalls, provider

KEY = "sk-canary-0123456789abcdef"
JSON = {"Content-Type": "application/json"}
STREAM = {"Content-Type": "text/event-stream"}
PAGE = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body><p>Hello</p></body></html>"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper() in (*env_variables.PROXIES, "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def _error(deepctl: InProcess, model: str) -> dict[str, object]:
    result = deepctl("chat", "--json", "--model", model, "hello")
    event: dict[str, object] = result.events[-1]
    assert (result.code, event["type"]) == (7, "error"), result
    return event


def _point(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)


MODELS = ("openai-chat:m", "openai:m", "anthropic:m")


@pytest.mark.parametrize("blank", [" ", "\r\n"])
def test_blanks_around_a_key_and_an_address_do_not_matter(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, blank: str
) -> None:
    with provider(Text(["Hi."])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{blank}{server.address}/v1{blank}")
        monkeypatch.setenv("OPENAI_API_KEY", f"{blank}{KEY}{blank}")
        assert deepctl("chat", "--model", "openai-chat:m", "hello").ok().stdout == "Hi.\n"
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"])
def test_an_address_that_is_set_but_empty_is_not_set(variable: str) -> None:
    environment = {variable: " "}
    env_variables.prepare(environment, variable.partition("_")[0].lower())
    assert environment == {}


def test_variables_of_other_providers_and_proxies_of_offline_chats_do_not_matter(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "“…”")
    with provider(Text(["Hi."])) as server:
        _point(monkeypatch, server.address)
        deepctl("chat", "--model", "openai-chat:m", "hello").ok()
    monkeypatch.setenv("ALL_PROXY", "nonsense://x y")
    deepctl("chat", "--model", "offline", "hello").ok()


UNFIT = [
    (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set', "-call-parser"),
    (500, "tools param requires --jinja flag", "--jinja"),
    (500, "tool_choice param requires --jinja flag", "--jinja"),
    (400, "registry.ollama.ai/library/gemma:2b does not support tools", "call tools"),
    (404, "No endpoints found that support tool use. To learn more", "call tools"),
    (400, "`tool calling` is not supported with this model", "call tools"),
    (404, "No models loaded. Please load a model in the developer page.", "Load the model"),
    (404, 'model "m" not found, try pulling it first', "ollama pull"),
    (404, "model 'm' not found", "deepctl models"),
    (404, "The model `m` does not exist or you do not have access to it.", "deepctl models"),
    (400, "The requested model 'm' does not exist.", "deepctl models"),
    (404, "model: claude-9", "deepctl models"),
    (400, "m is not a valid model ID", "deepctl models"),
    (400, "Invalid model: m", "deepctl models"),
    (503, "model 'm' not found", "deepctl models"),
]
TO = model_endpoint(
    "openai-chat:m", None, "http://127.0.0.1:9/v1", {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, LastResponse()
)


def _refusal(status: int, message: str) -> ModelHTTPError:
    category = ModelServerError if status >= 500 else ModelRequestRejectedError
    body = {"message": message, "type": "error"}
    return ModelHTTPError.for_category(category, status_code=status, model_name="m", body=body)


@pytest.mark.parametrize(("status", "message", "hint"), UNFIT, ids=lambda value: str(value)[:40])
def test_a_server_or_a_model_that_is_not_set_up_is_not_asked_again_and_a_hint_says_what_helps(
    status: int, message: str, hint: str
) -> None:
    error = _refusal(status, message)
    assert not is_temporary(error)
    said = failure(error, TO)
    assert said is not None
    assert (said.exit_code, said.retryable) == (7, False)
    assert message.rstrip(".") in said.message
    assert hint in str(said.hint)


def test_llama_cpp_without_tools_is_asked_once(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"error": {"code": 500, "message": "tools param requires --jinja flag"}}).encode()
    with provider(Raw(body, 500, JSON), repeat_last=True) as server:
        _point(monkeypatch, server.address)
        assert "--jinja" in str(_error(deepctl, "openai-chat:m")["hint"])
    assert len(server.requests) == 1


def test_a_server_that_fails_is_still_asked_again() -> None:
    for message in ("oops", "the model is overloaded", "model failed to answer"):
        error = ModelHTTPError.for_category(
            ModelServerError, status_code=500, model_name="m", body={"message": message}
        )
        assert is_temporary(error), message


LOST = {
    "json": Raw(b'{"error": {"message": "out of credits, \\u001b[31msk-canary-0123456789abcdef"}}', 200, JSON),
    "json text": Raw(b'{"error": "out of credits"}', 200, JSON),
    "event": Raw(b'data: {"error": {"message": "out of credits"}}\n\n', 200, STREAM),
    "event text": Raw(b'data: {"error": "out of credits"}\n\n', 200, STREAM),
    "named event": Raw(b'event: error\ndata: {"error": {"message": "out of credits"}}\n\n', 200, STREAM),
    "old vllm": Raw(b'data: {"object": "error", "message": "out of credits", "code": 400}\n\n', 200, STREAM),
    "old llama.cpp": Raw(b'error: {"code": 400, "message": "out of credits"}\n\n', 200, STREAM),
    "detail": Raw(b'{"detail": "out of credits"}', 200, JSON),
    "details": Raw(b'{"detail": [{"loc": ["body"], "msg": "out of credits"}]}', 200, JSON),
    "message": Raw(b'{"success": false, "message": "out of credits", "data": null}', 200, JSON),
    "errors": Raw(b'{"errors": [{"message": "out of credits"}]}', 200, JSON),
    "error and text": Raw(b'{"error": true, "message": "out of credits"}', 200, JSON),
    "list": Raw(b'[{"error": {"code": 402, "message": "out of credits"}}]', 200, JSON),
    "list of texts": Raw(b'["out of credits"]', 200, JSON),
    "JSON of a text": Raw(b'"out of credits"', 200, JSON),
    "text": Raw(b"out of credits\n", 200, {"Content-Type": "text/plain"}),
    "text of no type": Raw(b"out of credits", 200, {}),
    "text of the wrong type": Raw(b"out of credits", 200, STREAM),
    "JSON of the wrong type": Raw(b'{"detail": "out of credits"}', 200, STREAM),
    "compressed": Raw(gzip.compress(b'{"detail": "out of credits"}'), 200, {**JSON, "Content-Encoding": "gzip"}),
    "event of a detail": Raw(b'data: {"detail": "out of credits"}\n\n', 200, STREAM),
    "event of a text": Raw(b"event: error\ndata: out of credits\n\n", 200, STREAM),
}


@pytest.mark.parametrize("form", LOST)
def test_the_text_of_an_error_that_comes_as_an_answer_is_found(form: str) -> None:
    last = asyncio.run(_read(LOST[form]))
    assert (last.error() or "").startswith("out of credits")
    assert last.is_no_answer


async def _read(raw: Raw) -> LastResponse:
    last = LastResponse()
    response = httpx2.Response(200, headers=raw.headers, stream=_Pieces(raw.body))
    await last.begin(response)
    async for _ in response.aiter_bytes():
        pass
    return last


NO_ERRORS = {
    "page": Raw(PAGE, 200, {"Content-Type": "text/html"}),
    "nothing": Raw(b"\n", 200, JSON),
    "whole answer": Raw(b'{"choices": [{"message": {"content": "hi"}}], "error": null}', 200, JSON),
    "answer": Raw(b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n', 200, STREAM),
    "message": Raw(b'data: {"type": "message_start", "message": {"id": "m"}}\n\ndata: {"type": "ping"}', 200, STREAM),
    "response": Raw(b'data: {"type": "response.created", "response": {"error": null}}\n\n', 200, STREAM),
    "no text": Raw(b"\xff\xfe\x00", 200, {}),
}


@pytest.mark.parametrize("form", NO_ERRORS)
def test_answers_and_pages_have_no_text_of_an_error(form: str) -> None:
    assert asyncio.run(_read(NO_ERRORS[form])).error() is None


@pytest.mark.parametrize("form", ["detail", "event of a detail"])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_the_text_of_the_server_is_shown_whatever_a_client_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, form: str, streamed: bool, model: str
) -> None:
    async def ask(address: str) -> tuple[Exception, ModelEndpoint]:
        resolved = resolve(model, base_url=None, environment=os.environ)
        agent = Agent(RetryingModel(resolved.model, Retries()))
        async with resolved.model:
            try:
                if streamed:
                    async with agent.run_stream("hello") as run:
                        await run.get_output()
                else:
                    await agent.run("hello")
            except Exception as error:  # any: that is what this is about
                return error, model_endpoint(model, None, address, os.environ, resolved.last)
        raise AssertionError("it has answered")

    with provider(LOST[form], repeat_last=True) as server:
        _point(monkeypatch, server.address)
        said = failure(*asyncio.run(ask(server.address)))
    assert said is not None
    assert "out of credits" in said.message
    assert len(server.requests) <= 2


def test_a_message_that_is_no_text_does_not_hide_the_failure() -> None:
    class Failed(ModelRequestRejectedError):
        def __str__(self) -> str:
            return None  # type: ignore[return-value]

    assert failure(Failed("m", None), TO) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS)
def test_an_empty_answer_is_called_one(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    with provider(Text([""]), repeat_last=True) as server:
        _point(monkeypatch, server.address)
        message = str(_error(deepctl, model)["message"])
    assert "empty" in message
    assert len(server.requests) == 2
    assert "(no complete answer" in deepctl("sessions", "show").ok().stdout


class _Pieces(httpx2.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 7):
            yield self.body[start : start + 7]


@pytest.mark.parametrize("model", MODELS)
def test_the_text_of_an_error_that_comes_as_an_answer_is_shown_without_keys(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    with provider(LOST["json"], repeat_last=True) as server:
        _point(monkeypatch, server.address)
        error = _error(deepctl, model)
    assert "out of credits" in str(error["message"])
    assert KEY not in json.dumps(error)


@pytest.mark.parametrize(
    ("status", "model"), [(200, "openai:m"), (200, "anthropic:m"), (404, "openai-chat:m"), (503, "openai-chat:m")]
)
def test_no_page_is_printed(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, status: int, model: str) -> None:
    deepctl("config", "set", "retries", "0").ok()
    with provider(Raw(PAGE, status, {"Content-Type": "text/html"}), repeat_last=True) as server:
        _point(monkeypatch, server.address)
        error = _error(deepctl, model)
    assert "<" not in str(error["message"])
    assert "a web page" in str(error["message"])
    assert error["retryable"] == (status >= 500)


@pytest.mark.parametrize(
    ("status", "model"),
    [
        *((status, "openai-chat:m") for status in (302, 307, 405, 410, 413, 422)),
        *((status, "anthropic:m") for status in (301, 308, 405, 413)),
    ],
)
def test_what_will_be_refused_again_is_neither_sent_again_nor_said_to_be_worth_it(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, status: int, model: str
) -> None:
    where = {"Location": "https://example.com/elsewhere"} if status < 400 else {}
    with provider(Raw(b"", status, where), repeat_last=True) as server:
        _point(monkeypatch, server.address)
        error = _error(deepctl, model)
    assert len(server.requests) == 1
    assert not error["retryable"]
    assert "rying again" not in str(error["hint"])
    assert str(status) in str(error["message"])
    assert status >= 400 or "example.com/elsewhere" in str(error["message"])


@pytest.mark.parametrize("path", ["", "/api/"])
def test_an_address_without_a_version_probably_lacks_v1(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    with provider(Raw(b"", 404), repeat_last=True) as server:
        deepctl("config", "set", "base_url", f"{server.address}{path}").ok()
        error = _error(deepctl, "openai-chat:m")
    whole = f"{server.address}{path.rstrip('/')}/v1"
    assert error["hint"] == f"The setting base_url probably lacks /v1: {whole}."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UnexpectedModelBehavior("Odd", '{"parts": [{"message": "x"}]}'), "(Odd)"),
    ],
)
def test_a_reason_to_stop_is_told_in_a_sentence_without_json(error: Exception, words: str) -> None:
    said = failure(error, TO)
    assert said is not None
    assert words in said.message
    assert "{" not in said.message
    assert said.retryable == (words == "(Odd)")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "what is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "invalid HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 8\r\n\r\ngarbage!", "decompressed"),
    ],
)
def test_an_answer_that_cannot_be_read_is_no_matter_of_the_network(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, reply: bytes, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection = listening.accept()[0]
            with connection:
                connection.recv(1)
                connection.sendall(reply)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

        serving = threading.Thread(target=answer)
        serving.start()
        _point(monkeypatch, f"http://127.0.0.1:{listening.getsockname()[1]}")
        error = _error(deepctl, "openai-chat:m")
        serving.join()
    assert words in str(error["message"])
    assert "$OPENAI_BASE_URL" in str(error["hint"])
    assert not error["retryable"]


@pytest.mark.parametrize("text", ["<h1>cloudflare</h1>", "<!-- a --><center>no</center>", " <title>403</title>"])
def test_a_fragment_of_html_is_a_page(text: str) -> None:
    assert is_page(text)
    assert not is_page(f"The tag {text} is not allowed.")
    assert not is_page("<model> is unknown")


def test_an_empty_last_answer_is_no_matter_of_retries(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(ToolCalls([("ls", {"path": "."})]), Text([""]), repeat_last=True) as server:
        _point(monkeypatch, server.address)
        error = _error(deepctl, "openai-chat:m")
    assert "is empty" in str(error["message"])
    assert "retries" not in str(error["message"])


PROXIED = [
    ({"HTTP_PROXY": "http://p:1"}, "http://a.example", "HTTP_PROXY"),
    ({"HTTP_PROXY": "http://p:1", "http_proxy": "q:2"}, "http://a.example", "http_proxy"),
    ({"HTTP_PROXY": "http://p:1"}, "https://a.example", None),
    ({"ALL_PROXY": "socks5://p:1", "HTTPS_PROXY": "http://q:2"}, "https://a.example", "HTTPS_PROXY"),
    ({"ALL_PROXY": "socks5://p:1"}, "http://a.example", "ALL_PROXY"),
    ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "b.example, a.example"}, "http://a.example", None),
    ({"ALL_PROXY": "socks5://p:1", "no_proxy": ".example"}, "http://a.example", None),
    ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "*"}, "http://a.example", None),
    ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "example"}, "http://anexample", "ALL_PROXY"),
    ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": "127.0.0.1"}, "http://127.0.0.1:8000", None),
    ({"HTTP_PROXY": " "}, "http://a.example", None),
]


@pytest.mark.parametrize(("environment", "address", "variable"), PROXIED)
def test_the_proxy_is_the_one_that_the_client_uses(
    environment: dict[str, str], address: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = env_variables.proxy_of(address, environment)
    assert (proxy.variable if proxy else None) == variable
    for name, value in environment.items():
        monkeypatch.setenv(name, value.strip())
    with httpx2.Client() as client:
        transport = client._transport_for_url(httpx2.URL(address))
        assert (transport is client._transport) == (proxy is None)


@given(
    st.one_of(
        st.text(max_size=30),
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["http://", "https://", "HTTP://", "http:/", "ftp://", ""]),
            st.text("ab.-_:[]@%19é/", max_size=20),
            st.sampled_from(["", "/v1", ":80", ":99999", "/ü", "?a=b"]),
        ),
    )
)
def test_an_address_without_a_problem_is_one_that_the_client_takes(text: str) -> None:
    if addresses.address_problem(text) is None:
        url = httpx2.URL(text)
        assert url.host
        assert url.scheme in ("http", "https")


@given(st.text(max_size=20))
def test_a_text_without_a_problem_is_one_that_a_header_takes(text: str) -> None:
    if addresses.header_problem(text) is None:
        httpx2.Headers({"Authorization": f"Bearer {text.strip()}"}).raw[0][1].decode("ascii")
