"""A program: an MCP server of FastMCP on 127.0.0.1 whose logins are those of FastMCP's provider in memory.

    python fastmcp_oauth_server.py SECONDS [PORT]

Access tokens are valid for SECONDS. A server that is started again at the same PORT has no clients and no tokens. The
first line of stdout is the address of the server, and each further line the path of a request. It needs the extra
`server` of `fastmcp-slim`, which `make soak-mcp` installs.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth.providers import in_memory
from fastmcp.server.dependencies import get_access_token
from mcp.server.auth.settings import ClientRegistrationOptions


def main() -> None:
    """Serve until a signal ends the process."""
    in_memory.DEFAULT_ACCESS_TOKEN_EXPIRY_SECONDS = int(sys.argv[1])
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        auth = in_memory.InMemoryOAuthProvider(
            base_url=address,
            required_scopes=["notes"],
            client_registration_options=ClientRegistrationOptions(enabled=True, valid_scopes=["notes"]),
        )
        server: FastMCP[Any] = FastMCP("closed", auth=auth)

        @server.tool
        def whoami() -> str:
            """Says what the login allows."""
            token = get_access_token()
            return f"you may use {token.scopes}" if token is not None else "there is no login"

        app = server.http_app()

        async def noted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                print(scope["path"], flush=True)
            await app(scope, receive, send)

        print(f"{address}/mcp", flush=True)
        uvicorn.Server(uvicorn.Config(noted, log_level="critical", lifespan="on", ws="none")).run(sockets=[listener])


if __name__ == "__main__":
    main()
