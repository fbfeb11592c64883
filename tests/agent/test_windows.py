"""Context windows: asked of one's own servers, and what happens where a conversation does not fit into one."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import exceptions

from deepctl.agent import limits
from deepctl.agent.chat import EphemeralChat, TurnRunner
from deepctl.agent.limits import ConfiguredLimits, window_of
from deepctl.agent.models import resolve
from deepctl.agent.offline import SUMMARISE
from deepctl.agent.provider_errors import ModelEndpoint, failure
from deepctl.agent.request_failures import is_temporary
from deepctl.agent.response_recorder import LastResponse
from deepctl.agent.turn_engine import Options
from deepctl.errors import ModelFailed
from deepctl.layout import ProfilePaths
from deepctl.store import log_file
from tests.agent.test_compaction import Alice, _flat, _is_summary, _provided, _text
from tests.agent.test_compaction import paths as paths
from tests.support.command import InProcess
from tests.support.loopback import Answer, Provider, Raw, Status, Text, ToolCalls

NAME = "m"
VLLM = {"/v1/models": {"data": [{"id": "other", "max_model_len": 1}, {"id": NAME, "max_model_len": 16384}]}}
LLAMA = {
    "/v1/models": {"data": [{"id": "file.gguf", "meta": {"n_ctx_train": 131072}}]},
    "/props": {"default_generation_settings": {"n_ctx": 8192}, "total_slots": 4},
}
LM_STUDIO = {
    "/v1/models": {"data": [{"id": NAME, "object": "model"}]},
    "/api/v0/models": {
        "data": [{"id": NAME, "state": "loaded", "max_context_length": 131072, "loaded_context_length": 4096}]
    },
}
UNLOADED = {"/api/v0/models": {"data": [{"id": NAME, "state": "not-loaded", "max_context_length": 131072}]}}
OLLAMA = {"/api/ps": {"models": [{"name": "m:latest", "model": "m:latest", "context_length": 4096}]}}


class Answering:
    """A server with JSON documents by path; `asked` are the paths it was asked for, with their queries."""

    def __init__(self, documents: dict[str, Any]) -> None:
        self.documents = documents
        self.asked: list[str] = []
        self.keys: set[str | None] = set()
        self.delay = 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                outer.keys.add(self.headers["Authorization"])
                time.sleep(outer.delay)
                document = outer.documents.get(self.path.partition("?")[0])
                raw = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(200 if document is not None else 404)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that gives up is part of a test."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def _answering(documents: dict[str, Any]) -> Iterator[Answering]:
    found = Answering(documents)
    thread = threading.Thread(target=found.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
        thread.join(5)


def _model(server: Answering, name: str = f"openai-chat:{NAME}") -> Any:
    environment = {**os.environ, "OLLAMA_BASE_URL": server.address}
    return resolve(name, base_url=f"{server.address}/v1", environment=environment).model


def _ask(model: Any, cache: str | None = None) -> int | None:
    return asyncio.run(limits.ask_window(model, cache))


class TestAsking:
    @pytest.fixture(autouse=True)
    def key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")

    @pytest.mark.parametrize(
        ("documents", "window"),
        [
            (VLLM, 16384),
            (LLAMA, 8192),
            (LM_STUDIO, 4096),
            (OLLAMA, 4096),
            (UNLOADED, None),
            ({"/api/ps": {"models": []}}, None),
            ({}, None),
            ({"/v1/models": b"<html>", "/props": b"[" * 100_000, "/api/ps": b"\xff"}, None),
            ({"/v1/models": b" " * (2 << 20), "/api/ps": OLLAMA["/api/ps"]}, 4096),
            (
                {"/v1/models": [], "/props": {"default_generation_settings": None}, "/api/v0/models": {"data": [3]}},
                None,
            ),
            ({"/props": {"default_generation_settings": {"n_ctx": True}}}, None),
            ({"/props": {"default_generation_settings": {"n_ctx": 10**12}}}, None),
            ({"/props": {"default_generation_settings": {"n_ctx": "8192"}}}, None),
        ],
    )
    def test_each_kind_of_server_is_understood_and_no_other(
        self, documents: dict[str, Any], window: int | None
    ) -> None:
        with _answering(documents) as server:
            assert _ask(_model(server)) == window
            assert window_of(_model(server)) == window
            assert window_of(_model(server), 9000) == 9000, "the setting comes first"
            assert server.keys == {"Bearer sk-canary-0123456789abcdef"}

    def test_ollama_is_asked_for_its_loaded_models_only(self) -> None:
        with _answering({**LLAMA, **OLLAMA}) as server:
            assert _ask(_model(server, "ollama:m")) == 4096
            assert server.asked == ["/api/ps"]
            assert _ask(_model(server, "ollama:m:4b")) is None, "another model is not loaded"

    def test_llama_cpp_does_not_load_a_model_for_it(self) -> None:
        with _answering(LLAMA) as server:
            _ask(_model(server, "openai-chat:a/b&c"))
            assert "/props?model=a%2Fb%26c&autoload=false" in server.asked

    def test_it_is_asked_once_an_hour_and_a_file_remembers_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache = str(tmp_path / "windows")
        with _answering(LLAMA) as server:
            model = _model(server)
            assert [_ask(model, cache) for _ in range(3)] == [8192] * 3
            assert len(server.asked) == 2
            assert os.stat(cache).st_mode & 0o777 == 0o600
            monkeypatch.setattr(limits, "_known_windows", {})  # another process
            assert _ask(model, cache) == 8192
            assert len(server.asked) == 2
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + limits.WINDOW_FRESH + 1)
            server.documents = {"/props": {"default_generation_settings": {"n_ctx": 4096}}}
            assert _ask(model, cache) == 4096
            server.documents = {}
            monkeypatch.setattr(time, "time", lambda: now + 3 * limits.WINDOW_FRESH)
            assert _ask(model, cache) == 4096, "the model is not loaded now; it had this window"

    def test_a_damaged_cache_is_ignored_and_nothing_is_written_without_one(self, tmp_path: Path) -> None:
        place = tmp_path / "cache"
        place.mkdir()
        (place / "windows").write_text('[["a"], 3, ["http://x", "m", -5, 1e99]]')
        with _answering(LLAMA) as server:
            assert _ask(_model(server), str(place / "windows")) == 8192
        assert len(json.loads((place / "windows").read_text())) == 1
        with _answering(LLAMA) as server:
            assert _ask(_model(server), str(place / "none" / "windows")) == 8192, "it cannot be stored"
            assert _ask(_model(server)) == 8192
        assert os.listdir(place) == ["windows"]

    def test_a_server_that_says_nothing_is_asked_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with _answering({}) as server:
            model = _model(server)
            for _ in range(4):
                assert _ask(model) is None
            assert len(server.asked) == 2 * 4
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + 301)
            server.documents = OLLAMA
            assert _ask(model) == 4096

    def test_a_slow_server_costs_two_seconds_at_most(self) -> None:
        with _answering(VLLM) as server:
            server.delay = 5
            began = time.monotonic()
            assert _ask(_model(server)) is None
            assert time.monotonic() - began < 4

    def test_no_provider_is_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
        monkeypatch.setattr(limits, "_asked", None)
        for name in ("openai:gpt-5", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-6", "offline"):
            model = resolve(name, base_url=None, environment={"OPENAI_API_KEY": "x"}).model
            assert _ask(model) is None
            assert not limits.has_own_server(model)

    def test_a_proxy_is_used_as_for_requests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        address = "http://models.test"
        with _answering({f"{address}/models": VLLM["/v1/models"]}) as proxy:
            for name in ("http_proxy", "HTTP_PROXY"):
                monkeypatch.setenv(name, proxy.address)
            monkeypatch.setenv("no_proxy", "")
            model = resolve(f"openai-chat:{NAME}", base_url=address, environment=os.environ).model
            assert _ask(model) == 16384


def _overflow(message: str, **fields: Any) -> Raw:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", **fields}})
    return Raw(body.encode(), 400, {"Content-Type": "application/json"})


WORDINGS = [
    "This model's maximum context length is 8192 tokens. However, you requested 9100 tokens (8100 in the messages).",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "prompt is too long: 208310 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, decrease input length",
    "the request exceeds the available context size, try increasing it",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "request (14429 tokens) exceeds the available context size (8192 tokens), try increasing it",
    "Context size has been exceeded.",
    "Requested tokens (2285) exceed context window of 2048",
    "The decoder prompt (length 5000) is longer than the maximum model length of 4096.",
    "the input length exceeds the context length",
    "prompt too long; exceeded max context length by 4 tokens",
    "Trying to keep the first 10136 tokens when context the overflows. However, the model is loaded with context "
    "length of only 7866 tokens, which is not enough. Try to load the model with a larger context length",
    "Cannot truncate prompt with n_keep (15028) >= n_ctx (7424)",
    "The number of tokens to keep from the initial prompt is greater than the context length",
    "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
    "Input is too long for requested model.",
    "litellm.ContextWindowExceededError: litellm.BadRequestError: Error code 400",
    "This endpoint's maximum context length is 32768 tokens. However, you requested about 42832 tokens.",
    "Please reduce the length of the messages or completion.",
    "The input (516368 tokens) is longer than the model's context length (262144 tokens).",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "Prompt contains 140000 tokens and 0 draft tokens, too large for model with 131072 maximum context length",
]

OTHERS = [
    "Unsupported parameter: context.",
    "Invalid 'messages[0].content': string too long. Expected a string with maximum length 1048576.",
    "max_tokens: 64000 > 32000, which is the maximum allowed number of output tokens for this model",
    "image exceeds 5 MB maximum: 6291456 bytes > 5242880 bytes",
    "The long context beta is not yet available for this subscription.",
    "Rate limit reached on tokens per minute (TPM): Limit 30000, Used 28000, Requested 4000.",
]

TO = ModelEndpoint("openai-chat:m", "http://127.0.0.1:1/v1", "base_url", {}, LastResponse())


def _http(status: int, message: str, **fields: Any) -> exceptions.ModelHTTPError:
    return exceptions.ModelHTTPError.for_category(
        fields.pop("category", None), status_code=status, model_name="m", body={"message": message, **fields}
    )


class TestWordings:
    @pytest.mark.parametrize("message", WORDINGS)
    @pytest.mark.parametrize("status", [400, 413, 422, 500])
    def test_it_is_an_overflow(self, message: str, status: int) -> None:
        error = _http(status, message)
        found = failure(error, TO._replace(has_history=True))
        assert found is not None
        assert (found.code, found.exit_code, found.retryable) == ("context_overflow", 7, False)
        assert all(word in str(found.hint) for word in ("context_window", "sessions compact", "tools lean"))
        assert not is_temporary(error)

    def test_the_hint_has_only_what_has_an_effect(self) -> None:
        there = TO._replace(is_own=True, window=4096, tools="lean")
        hint = str(getattr(failure(_http(400, WORDINGS[0]), there), "hint", ""))
        assert "larger window, which is 4096 tokens now" in hint
        assert not any(word in hint for word in ("context_window", "lean", "compact", "--new"))
        hint = str(getattr(failure(_http(400, WORDINGS[0]), there._replace(context_window=9000)), "hint", ""))
        assert "context_window (9000)" in hint
        assert "Set context_window" not in hint

    @pytest.mark.parametrize("message", OTHERS)
    def test_it_is_none(self, message: str) -> None:
        found = failure(_http(400, message), TO)
        assert found is not None
        assert found.code != "context_overflow"

    def test_a_limit_of_a_minute_is_none_whatever_it_says(self) -> None:
        error = _http(429, WORDINGS[0], category=exceptions.ModelRateLimitError)
        found = failure(error, TO)
        assert found is not None
        assert found.code == "model_rate_limited"

    def test_openrouter_passes_on_what_it_got(self) -> None:
        raw = json.dumps({"error": {"message": WORDINGS[2]}})
        found = failure(_http(400, "Provider returned error", metadata={"raw": raw}), TO)
        assert found is not None
        assert found.code == "context_overflow"


def _said(text: str) -> Text:
    """An answer of a server that does not report usage, so that tokens are estimated."""
    return Text([text], used=None)


def _overflowing(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, *answers: Answer, **options: Any) -> Any:
    given: dict[str, Any] = {"context_window": None, "compact_at": 80, **options}
    return _provided(paths, monkeypatch, *answers, **given)


class TestOverflow:
    """A server that refuses a request because it is too long: a compaction, and one more try."""

    @pytest.mark.parametrize("refusal", [_overflow(WORDINGS[4]), Status(413), Status(500, WORDINGS[4])], ids=repr)
    def test_the_turn_goes_on_with_a_summary(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, refusal: Answer
    ) -> None:
        answers: list[Answer] = [
            _said("first"),
            _said("second"),
            refusal,
            _said("the gist"),
            _said("third"),
            _said("fourth"),
        ]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            alice.say(f"one {'x' * 900}")
            alice.say("two")
            done = alice.say("three")
            assert done.outcome.output == "third"
            assert len(alice.compactions()) == 1
            assert "does not fit" in alice.notices()
            _, _, refused, summary, again = server.requests
            assert _is_summary(summary)
            assert "xxx" in _text(refused)
            assert "xxx" not in _text(again)
            assert _text(again).count("three") == 1
            assert "the gist" in _text(again)
            (asked,) = [message for message in again["messages"] if "three" in json.dumps(message)]
            assert asked is again["messages"][-1]
            assert asked["content"].endswith("\n\nthree"), "the prompt is the last text of the user"
            assert asked["content"].count('<context kind="environment">') == 1, "its context is sent again"
            alice.say("four")
            before, after = _flat(again), _flat(server.requests[-1])
            assert after[: len(before)] == before, "another process goes on with what was sent the second time"
        conversation = alice.conversation()
        assert conversation.damage == []
        assert len(conversation.compactions) == 1
        said = [one.message["parts"][-1].get("content") for one in conversation.messages]
        assert sum("three" in json.dumps(text) for text in said) == 1

    def test_in_the_middle_of_a_turn_too(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = [
            ToolCalls([("write_file", {"path": f"f{number}.txt", "content": "y" * 900})], used=None)
            for number in range(3)
        ]
        answers: list[Answer] = [
            _said("first"),
            *calls,
            _overflow(WORDINGS[0]),
            _said("gist"),
            _said("done"),
            _said("next"),
        ]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            alice.say(f"one {'x' * 900}")
            assert alice.say("write them").outcome.output == "done"
            assert _text(server.requests[-1]).count("write them") == 1
            assert "xxx" not in _text(server.requests[-1])
            alice.say("go on")
            before, after = _flat(server.requests[-2]), _flat(server.requests[-1])
            assert after[: len(before)] == before
        assert len(alice.conversation().compactions) == 1
        assert len(list(Path(paths.workspace).glob("f*.txt"))) == 3

    def test_no_summary_is_paid_for_if_only_the_prompt_of_the_turn_could_be_summarised(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The prompt stays, so a summary would only be sent besides it."""
        answers: list[Answer] = [ToolCalls([("ls", {"path": "."})]), _overflow(WORDINGS[0]), _said("no gist")]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            with pytest.raises(ModelFailed) as raised:
                alice.say("one")
            assert raised.value.code == "context_overflow"
            assert not any(map(_is_summary, server.requests))
        assert alice.compactions() == []

    def test_a_short_prompt_whose_turn_failed_is_not_summarised(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _overflowing(paths, monkeypatch, *[_overflow(WORDINGS[0])] * 4) as (alice, server):
            for prompt in (f"one {'x' * 100}", f"two {'y' * 100}", "three"):
                with pytest.raises(ModelFailed):
                    alice.say(prompt)
            assert not any(map(_is_summary, server.requests))
        assert alice.compactions() == []

    def test_it_is_tried_once_more_only(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        refusal = _overflow(WORDINGS[0])
        answers: list[Answer] = [_said("first"), _said("second"), refusal, _said("gist"), refusal, _said("never")]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            alice.say(f"one {'x' * 900}")
            alice.say("two")
            with pytest.raises(ModelFailed) as raised:
                alice.say("three")
            assert raised.value.code == "context_overflow"
            assert len(server.requests) == 5

    def test_where_nothing_can_be_left_out_nothing_is_tried(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _overflowing(paths, monkeypatch, _overflow(WORDINGS[0]), _said("never")) as (alice, server):
            with pytest.raises(ModelFailed) as raised:
                alice.say("x" * 9000)
            assert raised.value.code == "context_overflow"
            assert len(server.requests) == 1
        assert alice.compactions() == []

    @pytest.mark.parametrize(("length", "window"), [(9000, 4000), (9000, 100_000), (500, 4000), (500, None)])
    def test_a_large_context_file_is_named(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, length: int, window: int | None
    ) -> None:
        """A refused request is longer than the window, even if the setting is larger."""
        (Path(paths.workspace) / "DEEP.md").write_text("word " * (length // 5))
        options = {"context_window": window, "compact_at": None}
        with (
            _overflowing(paths, monkeypatch, _overflow(WORDINGS[0]), **options) as (alice, _),
            pytest.raises(ModelFailed) as raised,
        ):
            alice.say("hello")
        assert raised.value.code == "context_overflow"
        assert str(raised.value.hint).startswith("DEEP.md takes more than a quarter") == (length == 9000)
        setting = f"If context_window ({window})" if window is not None else "Set context_window"
        assert setting in str(raised.value.hint)

    def test_without_compaction_nothing_is_tried(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: list[Answer] = [_said("first"), _said("second"), _overflow(WORDINGS[0]), _said("never")]
        with _overflowing(paths, monkeypatch, *answers, compact_at=None) as (alice, server):
            alice.say("one")
            alice.say("two")
            with pytest.raises(ModelFailed):
                alice.say("three")
            assert len(server.requests) == 3

    def test_where_the_summary_does_not_fit_either_the_beginning_is_left_out(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusal = _overflow(WORDINGS[0])
        answers: list[Answer] = [*[_said(f"answer {number}") for number in range(4)], refusal, refusal, _said("done")]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            for number in range(4):
                alice.say(f"prompt {number} {'word ' * 1500}")
            assert alice.say("the last").outcome.output == "done"
            sent = _text(server.requests[-1])
            assert "prompt 0" not in sent
            assert "left out here" in sent
            assert "the last" in sent
        assert "could not be summarised" in alice.notices()


def _long(alice: Alice, server: Provider, turns: int) -> None:
    server._answers = [_said(f"answer {number}") for number in range(turns)]
    alice.options = alice.options._replace(compact_at=None)
    for number in range(turns):
        alice.say(f"prompt {number} {'word ' * 400}")
    alice.options = alice.options._replace(compact_at=80)
    server.requests.clear()


class TestPieces:
    """A history that is longer than the window, as after a change to a smaller model."""

    def test_a_long_history_is_summarised_in_pieces_that_fit(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _provided(paths, monkeypatch, context_window=4000) as (alice, server):
            _long(alice, server, 12)
            server._answers = _Pieces(server)
            assert alice.say("and now?").outcome.output == "done"
            summaries = [request for request in server.requests if _is_summary(request)]
            assert len(summaries) >= 3
            for number, request in enumerate(summaries):
                assert len(_text(request)) / 4 < 4000 * 0.75
                assert ("previous-summary" in _text(request)) == bool(number)
                assert f"gist {number - 1}" in _text(request) or not number
            told = "".join(map(_text, summaries))
            assert all(f"prompt {number} " in told for number in range(11)), "every message is in one of them"
            assert f"gist {len(summaries) - 1}" in _text(server.requests[-1])
        (event,) = alice.compactions()
        assert event["summary"] == f"gist {len(summaries) - 1}"

    def test_if_one_piece_fails_the_turn_goes_on_without_a_summary(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _provided(paths, monkeypatch, context_window=4000) as (alice, server):
            _long(alice, server, 12)
            server._answers = [_said("gist"), Status(500), _said("done")]
            assert alice.say("and now?").outcome.output == "done"
            assert "prompt 0 " not in _text(server.requests[-1])
            assert "left out here" in _text(server.requests[-1])
            assert "gist" not in _text(server.requests[-1])

    def test_a_prompt_longer_than_a_piece_is_divided(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _provided(paths, monkeypatch, context_window=4000) as (alice, server):
            _long(alice, server, 1)
            server._answers = [_said("a"), _said("b")]
            alice.options = alice.options._replace(compact_at=None)
            alice.say(f"begin {'é' * 12000} end")
            alice.say("word " * 900)
            alice.options = alice.options._replace(compact_at=80)
            server.requests.clear()
            server._answers = _Pieces(server)
            alice.say("and now?")
            summaries = [_text(request) for request in server.requests if _is_summary(request)]
            assert all(len(text.encode().decode("unicode_escape").encode()) / 4 < 3500 for text in summaries)
            assert sum("begin" in text for text in summaries) == 1
            assert sum(" end" in text for text in summaries) == 1

    def test_results_of_tools_are_dropped_first(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        with _provided(paths, monkeypatch, context_window=4000) as (alice, server):
            alice.options = alice.options._replace(compact_at=None)
            calls = [
                ToolCalls([("write_file", {"path": f"f{number}.txt", "content": f"secret{number} " * 200})], used=None)
                for number in range(8)
            ]
            server._answers = [*calls, _said("written"), _said("b")]
            alice.say("write them all, please")
            alice.say("short")
            alice.options = alice.options._replace(compact_at=80)
            server.requests.clear()
            server._answers = _Pieces(server)
            alice.say("and now?")
            (summary,) = [_text(request) for request in server.requests if _is_summary(request)]
            assert "write them all" in summary
            assert "secret" not in summary
            assert "cleared" in summary


class _Pieces(list[Answer]):
    """Numbered summaries for requests that ask for one, and then an answer."""

    def __init__(self, server: Provider, *first: Answer) -> None:
        super().__init__(first)
        self._server = server
        self._count = 0

    def __len__(self) -> int:
        return 2

    def pop(self, index: Any = 0) -> Answer:
        if super().__len__():
            return super().pop(index)
        if SUMMARISE not in json.dumps(self._server.requests[-1]):
            return _said("done")
        self._count += 1
        return _said(f"gist {self._count - 1}")


class TestCutPrompts:
    """Ollama cuts a prompt that is too long, and says nothing."""

    def _notices(self, used: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
        from tests.support.loopback import provider

        events: list[dict[str, Any]] = []
        with provider(Text(["hello"], used=used)) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            monkeypatch.setenv("OPENAI_API_KEY", "x")
            given = Options("openai-chat:m", compact_at=80, limits=ConfiguredLimits(), **options)
            with closing(TurnRunner(given, environment=os.environ, note=None)) as running:
                EphemeralChat(running).turn(f"hello {'word ' * 4000}", events.append)
        return "\n".join(event["message"] for event in events if event["type"] == "notice")

    @pytest.mark.parametrize(("used", "window"), [((2048, 5), 100_000), ((2048, 5), None), ((3900, 5), 4096)])
    def test_it_is_said(self, used: tuple[int, int], window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        notices = self._notices(used, monkeypatch, context_window=window)
        assert f"{used[0]:,}" in notices
        assert "num_ctx" in notices
        assert "context_window" in notices

    @pytest.mark.parametrize("used", [(5900, 5), (20_000, 5), (11, 7), (0, 0), None])
    def test_other_numbers_are_no_reason(self, used: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "whole prompt" not in self._notices(used, monkeypatch, context_window=100_000)


def test_tools_count_where_the_server_reports_no_usage(paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    with _provided(paths, monkeypatch, Text(["first"], used=None), context_window=100_000) as (alice, server):
        tokens = alice.say("hello").outcome.context.tokens
        assert tokens > len(json.dumps(server.requests[0]["tools"])) / 4 * 0.7


@pytest.mark.parametrize("setting", [6000, None])
def test_one_large_file_does_not_fill_a_small_window(
    paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch, setting: int | None
) -> None:
    async def asked(model: Any, key: Any) -> int | None:
        return 6000

    monkeypatch.setattr(limits, "_asked", asked)
    (Path(paths.workspace) / "notes.txt").write_text("a line of a file\n" * 700)
    reading = ToolCalls([("read_file", {"path": "notes.txt"})], used=(3000, 20))
    with _provided(paths, monkeypatch, reading, _said("done"), context_window=setting, compact_at=80) as (
        alice,
        server,
    ):
        assert alice.say("read notes.txt").outcome.output == "done"
        (result,) = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "tool"]
        assert "large_tool_results/" in result
        assert len(result) < 4500
        system = [message for message in server.requests[-1]["messages"] if message["role"] == "system"]
        assert system == [message for message in server.requests[0]["messages"] if message["role"] == "system"]
        assert "a quarter of your context window" in json.dumps(system)


def test_an_ephemeral_chat_writes_no_cache_and_a_profile_does(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.loopback import provider

    with provider(Text(["hello"]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")

        async def asked(model: Any, key: Any) -> int | None:
            return 8192

        monkeypatch.setattr(limits, "_asked", asked)
        deepctl("chat", "--ephemeral", "--model", "openai-chat:m", "hello").ok()
        assert not list(home.rglob("windows"))
        monkeypatch.setattr(limits, "_known_windows", {})
        events = deepctl("chat", "--json", "--user", "alice", "--model", "openai-chat:m", "hello").ok().events
        assert events[-1]["context"]["window"] == 8192
        (cache,) = home.rglob("windows")
        assert cache.parent.name == "cache"


def test_the_error_of_an_overflow_is_one_for_scripts(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.loopback import provider

    with provider(_overflow(WORDINGS[0]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "x")
        result = deepctl("chat", "--json", "--model", "openai-chat:m", "hello")
    assert result.code == 7
    assert result.events[-1]["code"] == "context_overflow"


LONG = "x" * 4001
"""Text that makes a prompt too long to be sent again with other prompts without an answer."""


class TestFailedPrompts:
    """A prompt whose turn failed before any answer is sent with the next one, and stays in the log."""

    def _fails(self, alice: Alice, prompt: str) -> None:
        with pytest.raises(ModelFailed):
            alice.say(prompt)

    def test_they_do_not_pile_up(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        failing = [Status(500)] * 3
        answers: list[Answer] = [_said("first"), *failing, _said("second"), _said("third"), Status(500), _said("last")]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            alice.say("prompt-0")
            for number in range(1, 4):
                self._fails(alice, f"prompt-{number} {LONG}")
            done = alice.say("prompt-4")
            assert any("2 earlier prompts" in notice for notice in done.notices)
            assert alice.say("prompt-5").notices == []
            self._fails(alice, "prompt-6")
            assert alice.say("prompt-7").notices == []
            sent = [
                [number for number in range(8) if f"prompt-{number}" in _text(request)] for request in server.requests
            ]
            assert sent == [
                [0],
                [0, 1],
                [0, 1, 2],
                [0, 2, 3],
                [0, 3, 4],
                [0, 3, 4, 5],
                [0, 3, 4, 5, 6],
                [0, 3, 4, 5, 6, 7],
            ]
            before, after = _flat(server.requests[4]), _flat(server.requests[5])
            assert after[: len(before)] == before
        conversation = alice.conversation()
        assert [text for one in conversation.messages if (text := log_file.prompt(one.message))] == [
            f"prompt-{number}{f' {LONG}' if number in (1, 2, 3) else ''}" for number in range(8)
        ]

    def test_short_ones_are_all_sent_and_a_repeated_one_once(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _overflowing(paths, monkeypatch, *[Status(500)] * 4, _said("done")) as (alice, server):
            for prompt in ("use the blue one", "are you there?", "are you there?", f"{LONG} at last"):
                self._fails(alice, prompt)
            done = alice.say("go on")
            sent = _text(server.requests[-1])
            assert [sent.count(text) for text in ("the blue one", "are you there?", "at last", "go on")] == [1, 1, 1, 1]
            assert any("1 earlier prompt " in notice for notice in done.notices)

    def test_the_first_prompt_of_a_session_is_no_exception(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its request also has the record of the instructions, and the context, which the next request has instead."""
        with _overflowing(paths, monkeypatch, *[Status(500)] * 3, _said("done")) as (alice, server):
            for number in range(3):
                self._fails(alice, f"prompt-{number} {LONG}")
            alice.say("prompt-3")
            sent = _text(server.requests[-1])
            assert [number for number in range(4) if f"prompt-{number}" in sent] == [2, 3]
            assert sent.count("Date: ") == 1
            assert server.requests[-1]["messages"][0] == server.requests[0]["messages"][0]

    def test_one_that_is_too_long_does_not_stop_the_next(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refusal = _overflow(WORDINGS[0])
        answers: list[Answer] = [_said("first"), refusal, _said("gist"), refusal]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            alice.say("prompt-0")
            self._fails(alice, f"prompt-1 {'x' * 90_000}")
            server._answers = _Pieces(server, refusal)
            assert alice.say("prompt-2").outcome.output == "done"
            assert "xxx" not in _text(server.requests[-1])
            assert "prompt-2" in _text(server.requests[-1])

    def test_a_compaction_after_them_keeps_the_places(
        self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers: list[Answer] = [_said("first"), *[Status(500)] * 3, _said("second"), _said("gist"), _said("third")]
        with _overflowing(paths, monkeypatch, *answers) as (alice, server):
            alice.say("prompt-0")
            for number in range(1, 4):
                self._fails(alice, f"prompt-{number}")
            alice.say("prompt-4")
            alice.compact()
            alice.say("prompt-5")
            sent = _text(server.requests[-1])
            assert "gist" in sent
            assert "prompt-0" not in sent
            assert "prompt-4" in sent
