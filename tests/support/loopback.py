"""Providers on 127.0.0.1: an HTTP server that speaks OpenAI's and Anthropic's streaming formats.

The formats are those of the providers' public API references (chat completions and messages, server-sent events).
A test gives the server a script, one answer a request.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Text:
    """An answer in pieces; `gate`, if given, is called before each piece but the first."""

    pieces: list[str]
    gate: Callable[[], None] | None = None

    def gated(self) -> Iterator[str]:
        """The pieces, each but the first held back until `gate` returns."""
        for number, piece in enumerate(self.pieces):
            if number and self.gate is not None:
                self.gate()
            yield piece


@dataclass
class ToolCalls:
    """An answer that calls tools: (name, arguments) each."""

    calls: list[tuple[str, dict[str, Any]]]


@dataclass
class Status:
    """An HTTP error."""

    code: int
    message: str = "no"


@dataclass
class Broken:
    """A stream that begins with `pieces` and then breaks: `cut` in the middle, `clean` end, or `json` that is none."""

    how: str
    pieces: list[str] = field(default_factory=lambda: ["Half an "])


Answer = Text | ToolCalls | Status | Broken


class Provider:
    """A running server. `requests` are the bodies and `headers` the headers it got."""

    def __init__(self, answers: list[Answer], repeat_last: bool) -> None:
        self._answers = answers
        self._repeat_last = repeat_last
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                provider._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hangs up is part of many tests, and nothing to print."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _next(self) -> Answer:
        if len(self._answers) == 1 and self._repeat_last:
            return self._answers[0]
        return self._answers.pop(0)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(body)
        self.headers.append({key.lower(): value for key, value in handler.headers.items()})
        answer = self._next()
        anthropic = handler.path.startswith("/v1/messages")
        if isinstance(answer, Status):
            error = {"type": "error", "message": answer.message, "code": None}
            raw = json.dumps({"type": "error", "error": error}).encode()
            handler.send_response(answer.code)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(raw)))
            handler.end_headers()
            handler.wfile.write(raw)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        stream = _anthropic(answer) if anthropic else _openai(answer)
        try:
            for chunk in stream:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                handler.wfile.flush()
            if isinstance(answer, Broken) and answer.how == "cut":
                handler.close_connection = True
                handler.connection.shutdown(2)
                return
            handler.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True


def _openai(answer: Answer) -> Iterator[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        document = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "loopback",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        return b"data: " + json.dumps(document).encode() + b"\n\n"

    match answer:
        case Text():
            for piece in answer.gated():
                yield chunk({"role": "assistant", "content": piece})
            yield chunk({}, "stop")
        case ToolCalls(calls=calls):
            for index, (name, arguments) in enumerate(calls):
                text = json.dumps(arguments)
                half = len(text) // 2
                call = {"index": index, "id": f"call_{name}_{index}", "type": "function"}
                yield chunk(
                    {"role": "assistant", "tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]}
                )
                for part in (text[:half], text[half:]):
                    yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
            yield chunk({}, "tool_calls")
        case Broken(how=how, pieces=pieces):
            for piece in pieces:
                yield chunk({"role": "assistant", "content": piece})
            if how == "json":
                yield b"data: {this is not JSON\n\n"
            return
        case _:
            raise AssertionError(answer)
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    yield (
        b"data: "
        + json.dumps(
            {
                "id": "1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "loopback",
                "choices": [],
                "usage": usage,
            }
        ).encode()
        + b"\n\n"
    )
    yield b"data: [DONE]\n\n"


def _anthropic(answer: Answer) -> Iterator[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "loopback",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 11, "output_tokens": 1},
    }
    yield event("message_start", message=message)
    reason = "end_turn"
    match answer:
        case Text(pieces=pieces) | Broken(pieces=pieces):
            yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            for piece in answer.gated() if isinstance(answer, Text) else pieces:
                yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
            if isinstance(answer, Broken):
                if answer.how == "json":
                    yield b"event: content_block_delta\ndata: {this is not JSON\n\n"
                return
            yield event("content_block_stop", index=0)
        case ToolCalls(calls=calls):
            reason = "tool_use"
            for index, (name, arguments) in enumerate(calls):
                block = {"type": "tool_use", "id": f"toolu_{name}_{index}", "name": name, "input": {}}
                yield event("content_block_start", index=index, content_block=block)
                text = json.dumps(arguments)
                half = len(text) // 2
                for part in (text[:half], text[half:]):
                    delta = {"type": "input_json_delta", "partial_json": part}
                    yield event("content_block_delta", index=index, delta=delta)
                yield event("content_block_stop", index=index)
        case _:
            raise AssertionError(answer)
    yield event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 7})
    yield event("message_stop")


@contextmanager
def provider(*answers: Answer, repeat_last: bool = False) -> Iterator[Provider]:
    """A server with this script, on a free port of 127.0.0.1."""
    server = Provider(list(answers), repeat_last)
    server.start()
    try:
        yield server
    finally:
        server.stop()
