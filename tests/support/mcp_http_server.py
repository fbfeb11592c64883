"""An MCP server over streamable HTTP on 127.0.0.1, written from the protocol's public description."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class McpServer:
    """A running server with the tool `whoami`. `headers` are those of every request; `status` is answered if set.

    The tool says `said`, if that is set. `output` is the output schema of the tool, which returns text only.
    """

    def __init__(self, elsewhere: str | None = None) -> None:
        self.headers: list[dict[str, str]] = []
        self.status: int | None = None
        self.said: str | None = None
        self.output: dict[str, Any] | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.headers.append({key.lower(): value for key, value in self.headers.items()})
                if server.status is not None:
                    self._answer(server.status, {"error": "no"})
                elif elsewhere is not None:
                    self.send_response(307)
                    self.send_header("Location", elsewhere)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self._reply(message)

            def do_GET(self) -> None:
                self._answer(405, {})

            def do_DELETE(self) -> None:
                self._answer(200, {})

            def _reply(self, message: dict[str, Any]) -> None:
                if "id" not in message:
                    self._answer(202, None)
                    return
                reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
                match message["method"]:
                    case "initialize":
                        reply["result"] = {
                            "protocolVersion": message["params"]["protocolVersion"],
                            "capabilities": {"tools": {}},
                            "serverInfo": {"name": "test", "version": "1"},
                        }
                    case "tools/list":
                        schema = {"type": "object", "properties": {}}
                        tool = {"name": "whoami", "description": "Who.", "inputSchema": schema}
                        if server.output is not None:
                            tool["outputSchema"] = server.output
                        reply["result"] = {"tools": [tool]}
                    case "tools/call":
                        said = self.headers.get("Authorization", "nobody")
                        text = server.said if server.said is not None else f"you are {said}"
                        reply["result"] = {"content": [{"type": "text", "text": text}]}
                    case _:
                        reply["error"] = {"code": -32601, "message": "no such method"}
                self._answer(200, reply)

            def _answer(self, status: int, document: dict[str, Any] | None) -> None:
                raw = b"" if document is None else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that hangs up is part of many tests, and nothing to print."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/mcp"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextmanager
def mcp_server(elsewhere: str | None = None) -> Iterator[McpServer]:
    """A server on a free port of 127.0.0.1; with `elsewhere`, one that sends everybody there."""
    server = McpServer(elsewhere)
    try:
        yield server
    finally:
        server.stop()
