"""Traces with OpenTelemetry: what a real OTLP receiver gets, and what happens without one."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.support.command import Command
from tests.support.loopback import Stalled, Status, Text, ToolCalls, provider

pytestmark = pytest.mark.usefixtures("home")
KEY = "sk-canary-0123456789abcdef"
HEADER = "collector-canary-0123456789"
SECRETS = (KEY, HEADER, "a private prompt", "secret.txt", "its contents", "The answer is private")


class Received(NamedTuple):
    """A span as the collector got it."""

    name: str
    attributes: dict[str, Any]
    parent: str | None
    service: str
    id: bytes
    parent_id: bytes


class Collector:
    """An OTLP receiver on the loopback."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[str | None] = []
        bodies, headers = self.bodies, self.headers

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                headers.append(self.headers.get("x-token"))
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self) -> list[Received]:
        raw = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (service,) = [
                    one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
                ]
                raw += [(span, service) for scope in resource.scope_spans for span in scope.spans]
        names = {span.span_id: span.name for span, _ in raw}
        return [
            Received(
                span.name,
                {one.key: _value(one.value) for one in span.attributes},
                names.get(span.parent_span_id),
                by,
                span.span_id,
                span.parent_span_id,
            )
            for span, by in raw
        ]


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    opened = Collector()
    yield opened
    opened.close()


@contextmanager
def _traced(monkeypatch: pytest.MonkeyPatch, endpoint: str, *answers: Any) -> Iterator[tuple[str, ...]]:
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-token={HEADER}")
        yield ("chat", "--user", "alice", "--model", "openai-chat:gpt-4o", "--sandbox", "none", "--approve", "never")


WRITES = ToolCalls([("write_file", {"path": "secret.txt", "content": "its contents"})])


def test_a_turn_is_a_trace_without_its_content(
    process: Command, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    process("profiles", "create", "alice").ok()
    process("config", "set", "otel", "true", "--user", "alice").ok()
    with _traced(monkeypatch, collector.address, WRITES, Text(["The answer is private."])) as chat:
        done = process(*chat, "a private prompt").ok()
    assert done.stdout == "The answer is private.\n"
    assert "otel" not in done.stderr.lower()
    spans = collector.spans()
    (turn,) = [span for span in spans if span.name == "turn"]
    assert turn.parent is None
    (tool,) = [span for span in spans if span.attributes.get("gen_ai.tool.name") == "write_file"]
    requests = [span for span in spans if span.attributes.get("gen_ai.operation.name") == "chat"]
    assert [span.attributes["gen_ai.usage.input_tokens"] for span in requests] == [11, 11]
    (run,) = [span for span in spans if span.attributes.get("gen_ai.operation.name") == "invoke_agent"]
    assert (run.parent, requests[0].parent) == ("turn", run.name)
    assert tool.parent in {span.name for span in spans}
    marks = {"deepctl.profile": "alice", "deepctl.session": "main", "deepctl.turn": 1}
    for span in spans:
        assert {key: value for key, value in span.attributes.items() if key.startswith("deepctl.")} == marks
        assert span.service == "deepctl"
    assert set(collector.headers) == {HEADER}
    everything = b"".join(collector.bodies).decode(errors="replace") + json.dumps(
        [span.attributes for span in spans], default=str
    )
    for secret in SECRETS:
        assert secret not in everything, secret


def test_the_spans_of_a_sub_agent_are_below_the_call_of_its_turn(
    process: Command, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    process("config", "set", "otel", "true").ok()
    process("config", "set", "subagents", "on").ok()
    task = ToolCalls([("delegate_task", {"agent_name": "self", "task": "a private prompt"})])
    answers = (task, WRITES, Text(["The answer is private."]), Text(["The answer is private."]))
    with _traced(monkeypatch, collector.address, *answers) as chat:
        process(*chat, "a private prompt").ok()
    spans = collector.spans()
    by_id = {span.id: span for span in spans}

    def path(span: Received) -> list[str]:
        """What kind of work the span and the spans above it are."""
        above = by_id.get(span.parent_id)
        kind = str(span.attributes.get("gen_ai.tool.name") or span.attributes.get("gen_ai.operation.name", span.name))
        return [*(path(above) if above is not None else []), kind]

    paths = ["/".join(path(span)) for span in spans]
    inside = "turn/invoke_agent/delegate_task/invoke_agent"
    assert paths.count(f"{inside}/chat") == 2
    assert paths.count(f"{inside}/write_file") == 1
    assert paths.count("turn/invoke_agent/chat") == 2
    assert {span.attributes["deepctl.turn"] for span in spans} == {1}
    for secret in SECRETS:
        assert secret.encode() not in b"".join(collector.bodies), secret


def test_a_failure_is_marked_and_its_text_left_out(
    process: Command, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    process("config", "set", "otel", "true").ok()
    refused = Status(401, f"The key {KEY} is wrong: a private prompt")
    with _traced(monkeypatch, collector.address, refused) as chat:
        assert process(*chat, "a private prompt").code == 7
    spans = collector.spans()
    (turn,) = [span for span in spans if span.name == "turn"]
    assert turn.attributes["error.type"]
    assert turn.service == "ours"
    for secret in SECRETS:
        assert secret.encode() not in b"".join(collector.bodies), secret


def test_a_summary_has_a_span(process: Command, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    process("config", "set", "otel", "true").ok()
    answers = [Text([f"answer {number} " * 40]) for number in range(6)]
    with _traced(monkeypatch, collector.address, *answers, Text(["A summary."])) as chat:
        for number in range(6):
            process(*chat, f"prompt {number}").ok()
        process("config", "set", "model", "openai-chat:gpt-4o").ok()
        compacted = process("sessions", "compact", "--user", "alice")
    assert compacted.code == 0, compacted.stderr
    spans = collector.spans()
    (summary,) = [span for span in spans if span.name == "summary"]
    assert summary.parent is not None
    assert (summary.attributes["deepctl.profile"], summary.attributes["deepctl.session"]) == ("alice", "main")


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_a_dead_collector_delays_by_a_second_at_most_and_fails_nothing(
    process: Command, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if kind == "silent":
            silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        seconds = {}
        for value in ("false", "true"):
            process("config", "set", "otel", value).ok()
            with _traced(monkeypatch, endpoint, Text(["Hello."])) as chat:
                began = time.monotonic()
                done = process(*chat, "hello").ok()
                seconds[value] = time.monotonic() - began
            assert done.stdout == "Hello.\n"
            assert "otel" not in done.stderr.lower()
    # The rest is the import of the packages, on a machine with other work.
    assert seconds["true"] - seconds["false"] < 3


def test_ctrl_c_stops_the_turn_and_its_spans_arrive(
    process: Command, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    process("config", "set", "otel", "true").ok()
    with _traced(monkeypatch, collector.address, Stalled(["Half an "])) as chat:
        running = process.start(*chat, "a private prompt")
        assert running.stdout is not None
        assert running.stdout.read(4)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
    assert "turn" in [span.name for span in collector.spans()]


def test_variables_alone_turn_nothing_on(
    process: Command, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider"),
        ("OTEL_SDK_DISABLED", "false"),
    ):
        monkeypatch.setenv(name, value)
    with _traced(monkeypatch, collector.address, Text(["Hello."])) as chat:
        process(*chat, "hello").ok()
    assert collector.bodies == []


def test_without_the_setting_no_package_of_it_is_imported(home: Path) -> None:
    script = (
        "import sys\nfrom deepctl.cli.main import main\n"
        "assert main(['chat', '--user', 'alice', '--sandbox', 'none', 'hello']) == 0\n"
        "names = [name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter',"
        " 'deepctl.agent.tracing'))]\nassert names == [], names\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
