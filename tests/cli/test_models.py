"""`deepctl models`: what is configured, whose key is in sight, what servers of one's own offer."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deepctl.domain import env_variables, provider_keys, providers
from deepctl.domain.providers import Address
from deepctl.domain.settings import without_files
from tests.support.command import InProcess
from tests.support.loopback import Answer, Provider, Status, Text, ToolCalls, provider, stopped
from tests.support.terminal import Terminal

KEY = "sk-canary-0123456789abcdef"


class Served:
    """A server on 127.0.0.1 that answers every path alike; `asked` are the paths and the keys it was given."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.asked: list[tuple[str, str | None]] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.asked.append((self.path, self.headers["Authorization"]))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that has read enough hangs up."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def served(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Iterator[Served]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = Served(status, raw, headers or {})
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
        thread.join(5)


@contextmanager
def trickling() -> Iterator[str]:
    """A server that sends its answer a byte at a time, for ever."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def run() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        over.set()
        thread.join(5)
        listening.close()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in provider_keys.VARIABLES.values():
        for variable in names:
            monkeypatch.delenv(variable, raising=False)
    # Whatever this machine runs, it is not asked.
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")


def _provider(document: Any, name: str) -> dict[str, Any]:
    (found,) = [one for one in document["providers"] if one["name"] == name]
    return dict(found)


def test_without_anything_the_offline_model_is_what_there_is(deepctl: InProcess) -> None:
    found = deepctl("models", "--json").ok().json
    assert found["model"] == {"value": "offline", "source": "default"}
    assert [one["name"] for one in found["providers"] if one["usable"]] == ["offline", "ollama"]
    (ollama,) = found["servers"]
    assert (ollama["kind"], ollama["reachable"], ollama["models"]) == ("ollama", False, [])
    assert ollama["reason"]


def test_a_key_makes_a_provider_usable_and_is_shown_nowhere(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "")
    result = deepctl("models", "--json").ok()
    assert _provider(result.json, "anthropic") == {
        "name": "anthropic",
        "installed": True,
        "extra": None,
        "key": {"variable": "ANTHROPIC_API_KEY", "set": True, "source": "environment"},
        "usable": True,
    }
    assert not _provider(result.json, "openai")["usable"], "an empty key is none"
    for arguments in (("--json",), (), ("--all",)):
        assert KEY not in deepctl("models", *arguments).ok().stdout


def test_a_client_that_is_not_installed_is_named_with_its_extra(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(providers._MODULES, "groq", "no_such_package")
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    groq = _provider(deepctl("models", "--json").ok().json, "groq")
    assert (groq["installed"], groq["extra"], groq["usable"]) == (False, "groq", False)
    assert "'pydantic-ai-slim[groq]==" in deepctl("models", "--all").ok().stdout
    assert "groq" not in deepctl("models").ok().stdout


def test_the_models_of_ones_own_servers_are_listed(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"data": [{"id": "tiny"}, {"id": "large"}]}
    with served(own) as server, served({"models": [{"name": "llama3.2:3b"}]}) as ollama:
        monkeypatch.setenv("OLLAMA_BASE_URL", f"{ollama.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        deepctl("profiles", "create", "alice").ok()
        deepctl("config", "set", "base_url", f"{server.url}/v1", "--user", "alice").ok()
        deepctl("config", "set", "model", "openai-chat:tiny", "--user", "alice").ok()
        found = deepctl("models", "--user", "alice", "--json").ok().json
        text = deepctl("models", "--user", "alice").ok().stdout
    assert found["profile"] == "alice"
    assert found["model"] == {"value": "openai-chat:tiny", "source": "profile"}
    assert found["servers"] == [
        {"url": f"{server.url}/v1", "kind": "openai", "reachable": True, "reason": None, "models": ["tiny", "large"]},
        {"url": ollama.url, "kind": "ollama", "reachable": True, "reason": None, "models": ["llama3.2:3b"]},
    ]
    for name in ("openai-chat:tiny", "openai-chat:large", "ollama:llama3.2:3b"):
        assert name in text
    assert server.asked[0] == ("/v1/models", f"Bearer {KEY}")
    assert ollama.asked[0] == ("/api/tags", None)


def test_a_provider_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found = providers.own_servers(
        {"OPENAI_BASE_URL": "https://api.openai.com/v1", "OPENAI_API_KEY": KEY}, without_files({})
    )
    assert [address.kind for address in found] == ["ollama"]


@pytest.mark.parametrize("blank", ["", " ", "\r\n"])
def test_a_blank_key_is_none_and_a_blank_address_is_not_set(blank: str) -> None:
    environment = {"OPENAI_API_KEY": blank, "OPENAI_BASE_URL": blank, "OLLAMA_BASE_URL": blank, "VLLM_BASE_URL": blank}
    found = {one.name: one for one in providers.all_providers(environment, without_files(environment))}
    assert not found["openai"].usable
    assert not found["vllm"].usable
    assert [one.url for one in providers.own_servers(environment, without_files(environment))] == [
        "http://127.0.0.1:11434"
    ]
    assert [one.code for one in env_variables.problems(environment, "openai")] == ["bad_key"]
    assert not list(env_variables.problems(environment, "ollama"))
    two = {"GOOGLE_API_KEY": blank, "GEMINI_API_KEY": KEY}
    env_variables.prepare(two, "google")
    assert two == {"GEMINI_API_KEY": KEY}


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST": "box"}, "http://box:11434"),
        ({"OLLAMA_HOST": "box:80"}, "http://box:80"),
        ({"OLLAMA_HOST": ":8000"}, "http://127.0.0.1:8000"),
        ({"OLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:11434"),
        ({"OLLAMA_HOST": "https://box/"}, "https://box"),
        ({"OLLAMA_BASE_URL": "http://box:1/v1/", "OLLAMA_HOST": "other"}, "http://box:1"),
    ],
)
def test_where_ollama_is(environment: dict[str, str], url: str) -> None:
    assert providers.own_servers(environment, without_files(environment))[-1] == Address(url, "ollama")


@pytest.mark.parametrize(
    ("body", "status", "headers", "reason"),
    [
        (b"{", 200, {}, "not JSON"),
        (b"[" * 200_000, 200, {}, "not JSON"),
        (b"\xff", 200, {}, "not JSON"),
        ([], 200, {}, "not a list of models"),
        ({"data": "x"}, 200, {}, "not a list of models"),
        ({}, 500, {}, "HTTP 500"),
        ({}, 302, {"Location": "http://127.0.0.1:1/secret"}, "redirects to another address"),
        (b'{"data": [' + b" " * (2 << 20) + b"]}", 200, {}, "too large"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_server_that_answers_something_else_is_a_reason_and_no_error(
    body: object, status: int, headers: dict[str, str], reason: str
) -> None:
    with served(body, status, headers) as server:
        (found,) = providers.ask([Address(server.url, "openai")], 10)
    assert (found.reachable, found.models) == (False, ())
    assert reason in (found.reason or "")
    assert len(server.asked) == 1, "nothing else is asked because it says so"


@pytest.mark.parametrize("url", ["http://[", "ftp://box/", "http://", "http://box:99999", "http://127.0.0.1:9\r\nX: y"])
def test_what_is_no_address_is_a_reason_and_no_error(url: str) -> None:
    (found,) = providers.ask([Address(url, "openai")], 2)
    assert not found.reachable
    assert found.reason


def test_a_server_that_trickles_keeps_nobody() -> None:
    begun = time.monotonic()
    with trickling() as one, trickling() as other:
        found = providers.ask([Address(one, "openai"), Address(other, "ollama")], 0.4)
        assert time.monotonic() - begun < 3
    assert [server.reachable for server in found] == [False, False]


def test_names_that_are_none_are_left_out(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["good", "\x1b[2Jclear", "a\nb", "", 5, None, "x" * 1000, "\u202eevil"]
    with served({"data": [*({"id": name} for name in names), "no object"]}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        found = deepctl("models", "--json").ok().json["servers"][0]
        assert "\x1b" not in deepctl("models").ok().stdout
    assert found["models"] == ["good"]


def test_a_password_in_an_address_is_not_shown(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:hunter2@127.0.0.1:9/v1")
    for arguments in (("--json",), ()):
        assert "hunter2" not in deepctl("models", *arguments).ok().stdout


def test_a_profile_that_is_not_there_is_exit_3(deepctl: InProcess) -> None:
    assert deepctl("models", "--user", "nobody").code == 3


def test_at_a_terminal_it_says_who_answers_and_how_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    terminal = Terminal("models", columns=100)
    try:
        terminal.expect("The model is offline (from the default).")
        terminal.expect("Connection refused")
        terminal.expect("$OPENAI_API_KEY is set")
        terminal.expect("deepctl config set model NAME` permanently")
        assert terminal.wait() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("gpt-4o", "openai:gpt-4o"),
        ("GPT-4o", "openai:gpt-4o"),
        ("claude-sonnet-4-6", "anthropic:claude-sonnet-4-6"),
        ("opnai:gpt-4o", "openai:gpt-4o"),
        ("openai_chat:tiny", "openai-chat:tiny"),
        ("nonsense", None),
        ("x" * 100_000, None),
    ],
    ids=lambda name: str(name)[:20],
)
def test_a_model_without_its_provider_is_recognised(deepctl: InProcess, typed: str, meant: str | None) -> None:
    ended = deepctl("chat", "--ephemeral", "--model", typed, "hello")
    assert ended.code == 2
    assert ("Did you mean" in ended.stderr) == (meant is not None)
    if meant is not None:
        assert f"Hint: Did you mean {meant}? Models are named provider:name" in ended.stderr


def test_names_for_completion_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"DEEPCTL_MODEL": "openai:gpt-5", "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "http://192.0.2.1/v1"}
    begun = time.monotonic()
    names = [offer.name for offer in providers.known_models(environment, without_files(environment))]
    assert time.monotonic() - begun < 1
    assert names[:3] == ["openai:gpt-5", "openai-chat:", "offline"]
    assert "openai:" in names
    asked = providers.ModelServer("http://box", "ollama", True, None, ("llama",))
    assert "ollama:llama" in [
        offer.name for offer in providers.known_models(environment, without_files(environment), [asked])
    ]


def test_what_ollama_offers_answers_without_a_variable(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(Text(["Local."])) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address.removeprefix("http://"))
        assert deepctl("chat", "--model", "ollama:llama3.2", "hello").ok().stdout == "Local.\n"
    assert server.requests[0]["model"] == "llama3.2"


LS = ToolCalls([("ls", {"path": "."})])


@contextmanager
def _checked(
    monkeypatch: pytest.MonkeyPatch, deepctl: InProcess, answer: Answer
) -> Iterator[tuple[Provider, dict[str, Any]]]:
    """The server of a check, and the result."""
    with provider(answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield server, deepctl("models", "--check", "--model", "openai-chat:tiny", "--json").ok().json


def test_a_check_sends_one_request_with_a_tool(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "set", "context_window", "32768").ok()
    with _checked(monkeypatch, deepctl, LS) as (server, found):
        assert found == {
            "version": 1,
            "model": "openai-chat:tiny",
            "answers": True,
            "tools": True,
            "usage": True,
            "window": 32768,
            "hints": [],
        }
    (request,) = server.requests
    assert [tool["function"]["name"] for tool in request["tools"]] == ["ls"]
    assert len(json.dumps(request)) < 1500


@pytest.mark.parametrize(
    ("answer", "tools", "usage", "hint"),
    [
        (Text(["There is a file."]), False, True, "choose one with --model"),
        (Text(['<tool_call>\n{"name": "ls", ', '"arguments": {}}\n</tool_call>']), False, True, "--jinja"),
        (Text(['{"name": "ls", "parameters": {"path": "."}}']), False, True, "--tool-call-parser"),
        (ToolCalls(LS.calls, used=None), True, False, "max_tokens and max_cost"),
        (LS, True, True, "deepctl config set context_window TOKENS"),
    ],
)
def test_a_check_says_what_to_set(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, answer: Answer, tools: bool, usage: bool, hint: str
) -> None:
    with _checked(monkeypatch, deepctl, answer) as (_, found):
        assert (found["answers"], found["tools"], found["usage"], found["window"]) == (True, tools, usage, None)
        assert hint in "\n".join(found["hints"])


def test_a_check_warns_of_a_small_window(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "set", "context_window", "4096").ok()
    with _checked(monkeypatch, deepctl, LS) as (_, found):
        (hint,) = found["hints"]
    assert "--ctx-size" in hint
    assert "deepctl config set tools lean" in hint
    deepctl("config", "set", "tools", "lean").ok()
    with _checked(monkeypatch, deepctl, LS) as (_, found):
        assert "tools lean" not in found["hints"][0]


def _hints(deepctl: InProcess, *options: str) -> list[str]:
    hints: list[str] = deepctl("models", "--check", "--json", *options).ok().json["hints"]
    return hints


def test_a_check_says_that_the_server_does_not_list_the_model(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served({"data": [{"id": "tiny"}]}) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
        settings = without_files({})
        asked = [[*providers.hints(os.environ, settings, f"openai-chat:{name}")] for name in ("tiny", "wrong", "")]
    assert asked[0] == []
    assert asked[1] == [
        f"The server at {server.url}/v1 does not list the model 'wrong'. Its models are: openai-chat:tiny."
    ]
    assert "does not list the model ''" in asked[2][0]


def test_ollamas_tag_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with served({"models": [{"name": "llama3:latest"}]}) as server:
        environment = {"OLLAMA_HOST": server.url}
        assert [*providers.hints(environment, without_files({}), "ollama:llama3")] == []
        assert [*providers.hints(environment, without_files({}), "ollama:llama")] != []


def test_an_address_that_is_not_used_is_told(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    with provider(LS) as server:
        address = f"{server.address}/v1"
        deepctl("config", "set", "base_url", address).ok()
        assert "The offline model does not use base_url" in _hints(deepctl)[0]
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        ignored = f"$OPENAI_BASE_URL is ignored, because base_url is set: {address} (from config)."
        assert ignored in _hints(deepctl, "--model", "openai-chat:tiny")
    monkeypatch.setenv("DEEPCTL_MODEL", "openai-chat:tiny")
    told = f"at {address} (base_url; $OPENAI_BASE_URL is ignored)"
    assert told in deepctl("doctor").stdout
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/")
    assert "is ignored" not in deepctl("doctor").stdout


def test_a_server_without_models_is_named_as_its_models_are(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert "openai-chat:…\tserver\thttp://127.0.0.1:9/v1: Connection refused" in deepctl("models").ok().stdout


def test_a_check_of_a_model_without_tools_sends_none(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("config", "set", "model_profile.supports_tools", "false").ok()
    with _checked(monkeypatch, deepctl, Text(["."])) as (server, found):
        assert found["hints"][0].startswith("model_profile.supports_tools is false")
    assert "tools" not in server.requests[0]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Status(400, "registry.ollama.ai/library/m:latest does not support tools"), "model_request_refused"),
        (Status(503, "busy"), "model_provider_failed"),
        (stopped("stop"), "model_failed"),
        (None, "model_connection"),
    ],
)
def test_a_check_without_an_answer_is_exit_7(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, answer: Answer | None, code: str
) -> None:
    with provider(answer or LS) as server:
        address = server.address if answer is not None else "http://127.0.0.1:9"
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        result = deepctl("models", "--check", "--model", "openai-chat:tiny", "--json")
    assert (result.code, result.stdout) == (7, "")
    assert result.error["code"] == code
    assert len(server.requests) == (answer is not None), "a check is not repeated"


def test_a_check_in_text_has_a_line_for_each_fact(deepctl: InProcess) -> None:
    assert deepctl("models", "--check").ok().stdout.splitlines() == [
        "Model    offline",
        "Answers  yes",
        "Tools    yes",
        "Usage    yes",
        "Window   unknown",
    ]
