"""A login to an MCP server of FastMCP, in the real program. `make soak-mcp` installs the server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deepctl import layout
from deepctl.domain import profiles
from tests.agent.test_mcp import _wait
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider
from tests.support.terminal import Terminal

_PROGRAM = str(Path(__file__).parents[1] / "support" / "fastmcp_oauth_server.py")
_SECONDS = 8
"""The life of access tokens: long enough for a chat, because this provider deletes the refresh token of one that has
expired when it is used.
"""
_PACKAGES = Path(sys.prefix) / "mcp-servers" / "python"


def test_a_login_is_made_refreshed_and_made_again_after_the_server_has_forgotten_it(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser.py"
    browser.write_text("import sys, urllib.request\nurllib.request.urlopen(sys.argv[1], timeout=20).read()\n")
    monkeypatch.setenv("BROWSER", f"{sys.executable} {browser} %s")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    profile = profiles.create(layout.root(os.environ), "alice")
    requests = tmp_path / "requests"
    with _fastmcp(requests, _SECONDS) as address:
        with Path(profile.settings).open("a") as file:
            file.write(f"[mcp_servers.closed]\nurl = {json.dumps(address)}\n")
        assert deepctl("mcp", "test", "closed", "--user", "alice", "--json").error["code"] == "mcp_login"
        _log_in()
        before = requests.read_text().count("/token")
        time.sleep(_SECONDS + 0.5)
        assert _whoami(deepctl, monkeypatch) == ["you may use ['notes']"]
        assert requests.read_text().count("/token") > before
    with _fastmcp(requests, 3600, address):
        assert _whoami(deepctl, monkeypatch) == []
        _log_in()
        before = requests.read_text().count("/token")
        assert _whoami(deepctl, monkeypatch) == ["you may use ['notes']"]
        assert requests.read_text().count("/token") == before


@contextmanager
def _fastmcp(requests: Path, seconds: int, address: str = "") -> Iterator[str]:
    """The address of a running server whose access tokens are valid for `seconds`. It writes its requests."""
    port = [str(urlsplit(address).port)] if address else []
    with requests.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, _PROGRAM, str(seconds), *port],
            stdout=file,
            env={**os.environ, "PYTHONPATH": str(_PACKAGES)},
        )
    try:
        _wait(lambda: "\n" in requests.read_text() or server.poll() is not None, 60)
        address = requests.read_text().splitlines()[0]
        _wait(lambda: _listens(address))
        yield address
    finally:
        server.terminate()
        server.wait(20)


def _listens(address: str) -> bool:
    with closing(socket.socket()) as caller:
        return caller.connect_ex(("127.0.0.1", urlsplit(address).port or 0)) == 0


def _log_in() -> None:
    with closing(Terminal("mcp", "test", "closed", "--user", "alice")) as terminal:
        terminal.expect("closed__whoami")
        assert terminal.wait() == 0


def _whoami(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the tool of the server says in a chat; empty if the server is left out because it needs a login."""
    with provider(ToolCalls([("closed__whoami", {})]), Text(["done"])) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{model.address}/v1")
        options = ("--user", "alice", "--json", "--approve", "auto", "--model", "openai-chat:loopback")
        events = deepctl("chat", *options, "go").ok().events
    if any(event["type"] == "notice" and "it needs a login" in event["message"] for event in events):
        return []
    return [event["content"] for event in events if event["type"] == "tool_result"]
