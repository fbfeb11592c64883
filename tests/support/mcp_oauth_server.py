"""An MCP server on 127.0.0.1 that needs OAuth, made of the server and the authorization routes of the MCP SDK."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from mcp.server.auth.provider import AccessToken, AuthorizationCode, AuthorizationParams, RefreshToken
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken


class Provider:
    """Clients, codes and tokens in memory. Every login succeeds, or is declined with `declines`."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}
        self.seconds = 3600
        """The life of an access token."""
        self.refreshed = 0
        self.declines = False

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id is not None
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        assert client.client_id is not None
        if self.declines:
            return f"{params.redirect_uri}?error=access_denied&state={params.state}"
        code = secrets.token_urlsafe(16)
        self.codes[code] = AuthorizationCode(
            code=code,
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        return f"{params.redirect_uri}?code={code}&state={params.state}"

    async def load_authorization_code(self, client: Any, authorization_code: str) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(self, client: Any, authorization_code: AuthorizationCode) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._tokens(authorization_code.client_id)

    async def load_refresh_token(self, client: Any, refresh_token: str) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(self, client: Any, refresh_token: RefreshToken, scopes: list[str]) -> OAuthToken:
        del self.refresh[refresh_token.token]
        self.refreshed += 1
        return self._tokens(refresh_token.client_id)

    async def load_access_token(self, token: str) -> AccessToken | None:
        access = self.access.get(token)
        return access if access is not None and (access.expires_at or 0) > time.time() else None

    async def revoke_token(self, token: Any) -> None:
        pass

    def _tokens(self, client_id: str) -> OAuthToken:
        access, refresh = f"access-{secrets.token_hex(16)}", f"refresh-{secrets.token_hex(16)}"
        expires_at = int(time.time()) + self.seconds
        self.access[access] = AccessToken(token=access, client_id=client_id, scopes=[], expires_at=expires_at)
        self.refresh[refresh] = RefreshToken(token=refresh, client_id=client_id, scopes=[])
        return OAuthToken(access_token=access, refresh_token=refresh, expires_in=self.seconds)


@contextmanager
def oauth_server() -> Iterator[tuple[str, Provider]]:
    """A running server with the tool `whoami`: its address, and its tokens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        provider = Provider()
        server = MCPServer(
            "closed",
            auth_server_provider=provider,  # type: ignore[arg-type]
            auth=AuthSettings(
                issuer_url=address,  # type: ignore[arg-type]
                resource_server_url=f"{address}/mcp",  # type: ignore[arg-type]
                validate_token_resource=False,
                client_registration_options=ClientRegistrationOptions(enabled=True),
            ),
        )

        @server.tool()
        def whoami() -> str:
            """Says who it is."""
            return "you are logged in"

        config = uvicorn.Config(server.streamable_http_app(), log_level="critical", lifespan="on", ws="none")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield f"{address}/mcp", provider
        finally:
            running.should_exit = True
            thread.join(10)
