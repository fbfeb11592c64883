"""Providers on 127.0.0.1: an HTTP server that speaks OpenAI's and Anthropic's streaming formats.

The formats are those of the providers' public API references (chat completions, responses and messages, server-sent
events).
A test gives the server a script, one answer a request.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Text:
    """An answer in pieces; `gate`, if given, is called before each piece but the first.

    `used` is the tokens it says were sent and received; with `None` it says nothing of that. `cached` is how many of
    those sent it says were in its cache, where it says so. `finish` is the reason to stop in the words of the format,
    by default that of a whole answer; `refusal` is the text of a refusal of OpenAI. `thinking` comes before the
    pieces, in chat completions only; the gate is called after each piece of it.
    """

    pieces: list[str]
    gate: Callable[[], None] | None = None
    used: tuple[int, int] | None = (11, 7)
    finish: str | None = None
    refusal: str = ""
    cached: int | None = None
    thinking: list[str] = field(default_factory=list)

    def gated(self) -> Iterator[str]:
        """The pieces, each but the first held back until `gate` returns."""
        for number, piece in enumerate(self.pieces):
            if number and self.gate is not None:
                self.gate()
            yield piece


@dataclass
class ToolCalls:
    """An answer that calls tools: (name, arguments) each.

    With `finish`, a reason to stop in the words of the format, the arguments of the last call break off in the middle.
    """

    calls: list[tuple[str, dict[str, Any]]]
    used: tuple[int, int] | None = (11, 7)
    finish: str | None = None

    def pieces(self) -> Iterator[tuple[int, str, list[str]]]:
        """Number, name and arguments in two pieces of each call; the second is missing where the answer was cut."""
        for number, (name, arguments) in enumerate(self.calls):
            text = json.dumps(arguments)
            half = len(text) // 2
            is_cut = self.finish is not None and number + 1 == len(self.calls)
            yield number, name, [text[:half]] if is_cut else [text[:half], text[half:]]


@dataclass
class Status:
    """An HTTP error."""

    code: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Broken:
    """A stream that begins with `pieces` and then breaks: `cut` in the middle, `clean` end, or `json` that is none.

    With `reset`, the connection is reset before any of the response; with `refused`, a request that was accepted turns
    out to be one too many before any of the answer.
    """

    how: str
    pieces: list[str] = field(default_factory=lambda: ["Half an "])


@dataclass
class Stalled:
    """A stream that begins with `pieces` and then does not go on, until the client hangs up.

    With `pings`, it sends the pings of its format meanwhile; without `headers`, not even the head of the response.
    """

    pieces: list[str]
    pings: bool = False
    headers: bool = True


@dataclass
class Raw:
    """A response as it is, whatever the path."""

    body: bytes
    code: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def stopped(reason: str) -> Raw:
    """A stream of chat completions that has no text, and that reason to end."""
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": reason}
    document = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    body = b"data: " + json.dumps(document).encode() + b"\n\ndata: [DONE]\n\n"
    return Raw(body, headers={"Content-Type": "text/event-stream"})


Answer = Text | ToolCalls | Status | Broken | Stalled | Raw


class Provider:
    """A running server. `requests` are the bodies and `headers` the headers it got.

    `exchanges` are both of each request, which several clients at once would otherwise mix up.
    """

    def __init__(self, answers: list[Answer], repeat_last: bool) -> None:
        self._answers = answers
        self._repeat_last = repeat_last
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.exchanges: list[tuple[dict[str, Any], dict[str, str]]] = []
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
        # The seconds between two looks at whether it is to end, which each test would wait for.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _answer(self, body: dict[str, Any]) -> Answer:
        """The answer to a request."""
        return self._next()

    def _next(self) -> Answer:
        if len(self._answers) == 1 and self._repeat_last:
            return self._answers[0]
        return self._answers.pop(0)

    def _hold(self, handler: BaseHTTPRequestHandler, ping: bytes) -> None:
        """Send only `ping`, every tenth of a second, until the client hangs up."""
        handler.close_connection = True
        while not select.select([handler.connection], [], [], 0.1)[0]:
            handler.wfile.write(ping)
            handler.wfile.flush()

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.requests.append(body)
        self.headers.append(headers)
        self.exchanges.append((body, headers))
        answer = self._answer(body)
        if isinstance(answer, Raw):
            handler.send_response(answer.code)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(answer.body)
            return
        write = _FORMATS[handler.path.partition("?")[0]]
        model = body["model"]
        if isinstance(answer, Broken) and answer.how == "reset":
            handler.close_connection = True
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The handler's files hold the socket open as well, and would end it in good order.
            handler.rfile.detach()
            os.close(handler.connection.detach())
            return
        if isinstance(answer, Status):
            error = {"type": "error", "message": answer.message, "code": None}
            raw = json.dumps({"type": "error", "error": error}).encode()
            handler.send_response(answer.code)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(raw)))
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(raw)
            return
        if isinstance(answer, Stalled) and not answer.headers:
            self._hold(handler, b"")
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            for chunk in write(answer, model):
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                handler.wfile.flush()
            if isinstance(answer, Stalled):
                ping = b'event: ping\ndata: {"type": "ping"}\n\n' if write is _anthropic else b": keep-alive\n\n"
                self._hold(handler, b"%x\r\n%s\r\n" % (len(ping), ping) if answer.pings else b"")
                return
            if isinstance(answer, Broken) and answer.how == "cut":
                handler.close_connection = True
                handler.connection.shutdown(2)
                return
            handler.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True


def _openai(answer: Answer, model: str) -> Iterator[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        document = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        return b"data: " + json.dumps(document).encode() + b"\n\n"

    match answer:
        case Text():
            for piece in answer.thinking:
                yield chunk({"role": "assistant", "reasoning_content": piece})
                if answer.gate is not None:
                    answer.gate()
            for piece in answer.gated():
                yield chunk({"role": "assistant", "content": piece})
            if answer.refusal:
                yield chunk({"role": "assistant", "refusal": answer.refusal})
            yield chunk({}, answer.finish or "stop")
        case ToolCalls():
            for index, name, parts in answer.pieces():
                call = {"index": index, "id": f"call_{name}_{index}", "type": "function"}
                yield chunk(
                    {"role": "assistant", "tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]}
                )
                for part in parts:
                    yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
            yield chunk({}, answer.finish or "tool_calls")
        case Broken(how="refused"):
            error = {"message": "too busy", "type": "server_error", "code": "server_error", "param": None}
            yield b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
            return
        case Stalled(pieces=pieces):
            for piece in pieces:
                yield chunk({"role": "assistant", "content": piece})
            return
        case Broken(how=how, pieces=pieces):
            for piece in pieces:
                yield chunk({"role": "assistant", "content": piece})
            if how == "json":
                yield b"data: {this is not JSON\n\n"
            return
        case _:
            raise AssertionError(answer)
    if answer.used is not None:
        sent, received = answer.used
        usage: dict[str, Any] = {
            "prompt_tokens": sent,
            "completion_tokens": received,
            "total_tokens": sent + received,
        }
        if isinstance(answer, Text) and answer.cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": answer.cached}
        last = {
            "id": "1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": model,
            "choices": [],
            "usage": usage,
        }
        yield b"data: " + json.dumps(last).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _responses(answer: Answer, model: str) -> Iterator[bytes]:
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> bytes:
        document = {"type": kind, "sequence_number": next(numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(document)}\n\n".encode()

    response: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": model,
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
    }
    yield event("response.created", response=response)
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    item = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    match answer:
        case Text(pieces=pieces) | Broken(pieces=pieces) | Stalled(pieces=pieces):
            if isinstance(answer, Broken) and answer.how == "refused":
                error = {"code": "server_error", "message": "too busy"}
                yield event("response.failed", response={**response, "status": "failed", "error": error})
                return
            part = {"type": "output_text", "text": "", "annotations": []}
            yield event("response.output_item.added", output_index=0, item=message)
            yield event("response.content_part.added", **item, part=part)
            for piece in answer.gated() if isinstance(answer, Text) else pieces:
                yield event("response.output_text.delta", **item, delta=piece, logprobs=[])
            if not isinstance(answer, Text):
                if isinstance(answer, Broken) and answer.how == "json":
                    yield b"data: {this is not JSON\n\n"
                return
            whole = {**part, "text": "".join(pieces)}
            yield event("response.output_text.done", **item, text=whole["text"], logprobs=[])
            yield event("response.content_part.done", **item, part=whole)
            if answer.refusal:
                yield event("response.refusal.delta", **item, delta=answer.refusal)
                yield event("response.refusal.done", **item, refusal=answer.refusal)
            outputs = [{**message, "status": "completed", "content": [whole]}]
            yield event("response.output_item.done", output_index=0, item=outputs[0])
        case ToolCalls():
            outputs = []
            for index, name, parts in answer.pieces():
                call = {"id": f"fc_{index}", "type": "function_call", "call_id": f"call_{name}_{index}", "name": name}
                text = "".join(parts)
                outputs.append({**call, "arguments": text, "status": "completed"})
                yield event("response.output_item.added", output_index=index, item={**call, "arguments": ""})
                place = {"item_id": call["id"], "output_index": index}
                yield event("response.function_call_arguments.delta", **place, delta=text)
                if len(parts) == 1:
                    break
                yield event("response.function_call_arguments.done", **place, arguments=text, name=name)
                yield event("response.output_item.done", output_index=index, item=outputs[-1])
        case _:
            raise AssertionError(answer)
    done = {**response, "status": "completed", "output": outputs}
    if answer.used is not None:
        sent, received = answer.used
        done["usage"] = {
            "input_tokens": sent,
            "input_tokens_details": {"cached_tokens": answer.cached or 0 if isinstance(answer, Text) else 0},
            "output_tokens": received,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sent + received,
        }
    if answer.finish is not None:
        done |= {"status": "incomplete", "incomplete_details": {"reason": answer.finish}}
        yield event("response.incomplete", response=done)
        return
    yield event("response.completed", response=done)


def _anthropic(answer: Answer, model: str) -> Iterator[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    if isinstance(answer, Broken) and answer.how == "refused":
        yield event("error", error={"type": "overloaded_error", "message": "too busy"})
        return
    sent, received = (answer.used if isinstance(answer, (Text, ToolCalls)) else None) or (11, 7)
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": sent, "output_tokens": 1},
    }
    if isinstance(answer, Text) and answer.cached is not None:
        # Anthropic does not count cached tokens among the others.
        message["usage"] |= {"input_tokens": sent - answer.cached, "cache_read_input_tokens": answer.cached}
    yield event("message_start", message=message)
    reason = "end_turn"
    match answer:
        case Text(pieces=pieces) | Broken(pieces=pieces) | Stalled(pieces=pieces):
            yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
            for piece in answer.gated() if isinstance(answer, Text) else pieces:
                yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
            if not isinstance(answer, Text):
                if isinstance(answer, Broken) and answer.how == "json":
                    yield b"event: content_block_delta\ndata: {this is not JSON\n\n"
                return
            yield event("content_block_stop", index=0)
            reason = answer.finish or reason
        case ToolCalls():
            reason = answer.finish or "tool_use"
            for index, name, parts in answer.pieces():
                block = {"type": "tool_use", "id": f"toolu_{name}_{index}", "name": name, "input": {}}
                yield event("content_block_start", index=index, content_block=block)
                for part in parts:
                    delta = {"type": "input_json_delta", "partial_json": part}
                    yield event("content_block_delta", index=index, delta=delta)
                yield event("content_block_stop", index=index)
        case _:
            raise AssertionError(answer)
    yield event(
        "message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": received}
    )
    yield event("message_stop")


_FORMATS = {"/v1/chat/completions": _openai, "/v1/responses": _responses, "/v1/messages": _anthropic}
"""By path, how an answer to it is written."""


@contextmanager
def provider(*answers: Answer, repeat_last: bool = False) -> Iterator[Provider]:
    """A server with this script, on a free port of 127.0.0.1."""
    server = Provider(list(answers), repeat_last)
    server.start()
    try:
        yield server
    finally:
        server.stop()
