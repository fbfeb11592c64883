"""`deepctl mcp`: the list, changes of profile.toml, the test of a server, and logins to remote servers."""

from __future__ import annotations

import json
import os
import queue
import stat
import sys
import threading
import urllib.request
import webbrowser
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.cli import mcp as commands
from deepctl.domain import profiles, stored_keys
from deepctl.layout import ProfilePaths
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider
from tests.support.mcp_oauth_server import Provider, oauth_server
from tests.support.terminal import Terminal

PROGRAM = str(Path(__file__).parents[1] / "support" / "mcp_stdio_server.py")
_KEY = "sk-" + "a1b2c3d4" * 4


@pytest.fixture
def alice(home: Path) -> ProfilePaths:
    return profiles.create(layout.root(os.environ), "alice")


def test_a_server_is_added_listed_tested_and_removed_and_the_file_keeps_its_comments(
    deepctl: InProcess, alice: ProfilePaths
) -> None:
    file = Path(alice.settings)
    file.write_text(f'{file.read_text()}# mine\n[limits]\nmemory = "1G"  # enough\n')
    before = file.read_text()
    options = ("--tools", "echo,task", "--resources", "--prompts")
    deepctl("mcp", "add", "one", "--user", "alice", "--", sys.executable, PROGRAM, *options).ok()
    assert file.read_text().startswith(before)
    listed = deepctl("mcp", "list", "--user", "alice", "--json").ok().json
    assert listed["servers"] == [
        {
            "name": "one",
            "source": "profile",
            "enabled": True,
            "command": sys.executable,
            "url": None,
            "variables": [],
            "login": False,
        }
    ]
    report = deepctl("mcp", "test", "one", "--user", "alice", "--json").ok().json
    assert [tool["name"] for tool in report["tools"]] == ["one__echo", "one__read_resource"]
    assert report["prompts"] == [{"name": "review", "arguments": ["path", "style"]}, {"name": "see", "arguments": []}]
    assert report["resources"] == ["note://one", "pic://cat"]
    assert report["notices"] == ["has tools that only run as tasks, which deepctl does not support: task; left out"]
    deepctl("mcp", "remove", "one", "--user", "alice").ok()
    assert "mcp_servers.one" not in file.read_text()
    assert file.read_text().startswith(before)


def test_a_failed_test_shows_the_last_lines_of_the_server(deepctl: InProcess, alice: ProfilePaths) -> None:
    deepctl("mcp", "add", "bad", "--user", "alice", "--", sys.executable, PROGRAM, "--trouble", "exit").ok()
    failed = deepctl("mcp", "test", "bad", "--user", "alice")
    assert failed.code == 7
    assert failed.stderr.startswith("bad: Traceback\nbad: ModuleNotFoundError: no module named 'cats'\nError: ")
    error = deepctl("mcp", "test", "bad", "--user", "alice", "--json").error
    assert (error["code"], error["exit_code"]) == ("mcp_server", 7)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--", "server", _KEY),
        ("--", "server", "--api-key", "abcdefgh"),
        ("--", "server", "--token=abcdefgh"),
        ("--url", "http://127.0.0.1/mcp", "--token-var", _KEY),
        ("--url", "http://127.0.0.1/mcp", "--header", f"X-Key={_KEY}"),
    ],
)
def test_a_key_in_an_argument_is_refused_and_not_repeated(
    deepctl: InProcess, alice: ProfilePaths, arguments: tuple[str, ...]
) -> None:
    before = Path(alice.settings).read_text()
    result = deepctl("mcp", "add", "one", "--user", "alice", *arguments)
    assert result.code == 2
    assert "keys set" in result.stderr
    assert "abcdefgh" not in result.stderr
    assert _KEY not in result.stderr
    assert Path(alice.settings).read_text() == before


def _browser(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    """A person at the terminal, whose browser follows the address of the login at once."""

    def visit(address: str) -> None:
        shown.append(address)
        threading.Thread(target=lambda: urllib.request.urlopen(address, timeout=10).read(), daemon=True).start()

    monkeypatch.setattr(commands, "_show_login", visit)
    monkeypatch.setattr(commands, "is_terminal", lambda stream: True)


def _tokens(alice: ProfilePaths) -> str:
    return Path(stored_keys.login_file(alice.keys, "closed")).read_text()


def _expire(path: Path, tokens: Provider) -> None:
    """An hour passes."""
    entries = json.loads(path.read_text())
    for key, entry in entries.items():
        if "expiry" in key:
            entry["value"]["expires_at"] = 1
    path.write_text(json.dumps(entries))
    tokens.access.clear()


def _use(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The events of a chat whose model uses the tool of the server."""
    with provider(ToolCalls([("closed__whoami", {})]), Text(["done"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        chat = deepctl(
            "chat", "--user", "alice", "--json", "--approve", "auto", "--model", "openai-chat:loopback", "go"
        ).ok()
        for token in ("access-", "refresh-"):
            assert token not in json.dumps(server.requests)
    return chat.events


def _said(events: list[dict[str, Any]]) -> list[str]:
    return [event["content"] for event in events if event["type"] == "tool_result"]


def test_a_login_is_made_by_a_test_at_the_terminal_and_used_and_refreshed_by_chats(
    deepctl: InProcess, alice: ProfilePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    shown: list[str] = []
    with oauth_server() as (url, tokens):
        deepctl("mcp", "add", "closed", "--user", "alice", "--url", url).ok()
        error = deepctl("mcp", "test", "closed", "--user", "alice", "--json").error
        assert (error["code"], error["exit_code"]) == ("mcp_login", 6)
        assert "`deepctl mcp test closed`" in error["message"]
        (notice,) = [
            event["message"]
            for event in _use(deepctl, monkeypatch)
            if event["type"] == "notice" and "login" in event["message"]
        ]
        assert notice == (
            "MCP server 'closed' is left out: it needs a login: `deepctl mcp test closed` at a terminal logs in."
        )
        assert not tokens.clients
        with monkeypatch.context() as patch:
            _browser(patch, shown)
            report = deepctl("mcp", "test", "closed", "--user", "alice").ok()
        assert "closed__whoami" in report.stdout
        assert len(shown) == 1
        assert "redirect_uri=http%3A%2F%2F127.0.0.1%3A" in shown[0]
        path = Path(stored_keys.login_file(alice.keys, "closed"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        before, count = _tokens(alice), tokens.refreshed
        _expire(path, tokens)
        assert _said(_use(deepctl, monkeypatch)) == ["you are logged in"]
        assert tokens.refreshed == count + 1
        assert _tokens(alice) != before
        # Without another refresh.
        assert _said(_use(deepctl, monkeypatch)) == ["you are logged in"]
        assert tokens.refreshed == count + 1
        # The server ends the token before its time.
        tokens.access.clear()
        assert _said(_use(deepctl, monkeypatch)) == ["you are logged in"]
        assert tokens.refreshed == count + 2
        assert deepctl("mcp", "list", "--user", "alice", "--json").ok().json["servers"][0]["login"] is True

        archive = tmp_path / "alice.deepctl"
        deepctl("profiles", "export", str(archive), "--user", "alice").ok()
        secrets = [*tokens.access, *tokens.refresh]
        inside = [file for file in Path(alice.directory).rglob("*") if file.is_file()]
        for file in [archive, *inside]:
            assert not any(secret.encode() in file.read_bytes() for secret in secrets)
        deepctl("profiles", "rename", "alice", "ann").ok()
        assert not path.exists()
        root = layout.root(os.environ)
        assert stored_keys.logins(profiles.find(root, "ann").keys) == ["closed"]
        deepctl("profiles", "rename", "ann", "alice").ok()

        tokens.access.clear()
        tokens.refresh.clear()
        notices = [event["message"] for event in _use(deepctl, monkeypatch) if event["type"] == "notice"]
        assert any("it needs a login" in message for message in notices), notices
    removed = deepctl("mcp", "remove", "closed", "--user", "alice", "--json").ok().json
    assert removed["login_deleted"] is True
    assert stored_keys.logins(alice.keys) == []


def test_the_page_of_a_login_is_shown_in_a_browser_that_stays_in_the_foreground(
    alice: ProfilePaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    browser = tmp_path / "browser.py"
    browser.write_text(
        "import sys, urllib.request\n"
        "page = urllib.request.urlopen(sys.argv[1], timeout=20).read()\n"
        f"open({str(tmp_path / 'page')!r}, 'wb').write(page)\n"
    )
    monkeypatch.setenv("BROWSER", f"{sys.executable} {browser} %s")
    with oauth_server() as (url, _):
        with Path(alice.settings).open("a") as file:
            file.write(f"[mcp_servers.closed]\nurl = {json.dumps(url)}\n")
        with closing(Terminal("mcp", "test", "closed", "--user", "alice")) as terminal:
            terminal.expect("closed__whoami")
            assert terminal.wait() == 0
    assert (tmp_path / "page").read_text() == "You are logged in. You can close this page."
    assert stored_keys.logins(alice.keys) == ["closed"]


@pytest.mark.parametrize(("name", "opens"), [("firefox", True), ("/usr/bin/lynx", False), ("", False)])
def test_a_text_browser_is_not_started_and_the_address_is_always_shown(
    name: str, opens: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(webbrowser.GenericBrowser, "open", lambda browser, address: opened.put(address))

    def get() -> webbrowser.GenericBrowser:
        if not name:
            raise webbrowser.Error("no browser")
        return webbrowser.GenericBrowser(name)

    monkeypatch.setattr(webbrowser, "get", get)
    threads = threading.active_count()
    commands._show_login("https://login.test/")
    if opens:
        assert opened.get(timeout=10) == "https://login.test/"
    else:
        assert threading.active_count() == threads
        assert opened.empty()
    assert "https://login.test/" in capsys.readouterr().err


def test_a_declined_login_is_an_error_and_stores_no_tokens(
    deepctl: InProcess, alice: ProfilePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with oauth_server() as (url, tokens):
        tokens.declines = True
        deepctl("mcp", "add", "closed", "--user", "alice", "--url", url).ok()
        _browser(monkeypatch, [])
        failed = deepctl("mcp", "test", "closed", "--user", "alice")
    assert failed.code == 7
    assert "its login failed: the login was declined (access_denied)" in failed.stderr
    assert not tokens.access


def test_a_wipe_deletes_the_logins_of_a_profile(deepctl: InProcess, alice: ProfilePaths) -> None:
    stored_keys.make_directory(alice.keys)
    stored_keys.write_login(stored_keys.login_file(alice.keys, "closed"), b"{}")
    deepctl("wipe", "--user", "alice", "--yes").ok()
    assert not os.path.lexists(alice.keys)
    with pytest.raises(OSError, match="No such file"):
        stored_keys.write_login(stored_keys.login_file(alice.keys, "closed"), b"{}")
