"""Prompts of MCP servers as slash commands, in the real program."""

from __future__ import annotations

import base64
import json
import os
import sys
from contextlib import closing
from pathlib import Path

import pytest

from deepctl import layout
from deepctl.domain import mcp_prompts, profiles
from deepctl.domain.mcp_prompts import PromptArgument, ServerPrompt
from deepctl.domain.mcp_servers import McpServer
from deepctl.errors import UsageError
from tests.support.command import InProcess
from tests.support.loopback import Text, provider
from tests.support.mcp_stdio_server import PICTURE
from tests.support.terminal import Terminal

PROGRAM = str(Path(__file__).parents[1] / "support" / "mcp_stdio_server.py")
REVIEW = ServerPrompt("one", "review", "", (PromptArgument("path", is_required=True), PromptArgument("style")))


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("a.py", {"path": "a.py"}),
        ("a.py short and friendly", {"path": "a.py", "style": "short and friendly"}),
        ("'my file.py' short", {"path": "my file.py", "style": "short"}),
        ("style=short a.py", {"path": "a.py", "style": "short"}),
        ("path=a.py", {"path": "a.py"}),
        ("other=a.py", {"path": "other=a.py"}),
    ],
)
def test_arguments_are_given_in_order_or_by_name(line: str, values: dict[str, str]) -> None:
    assert REVIEW.values("/review", line) == values


def test_a_single_argument_is_the_whole_line() -> None:
    assert ServerPrompt("one", "ask", "", (PromptArgument("what"),)).values("/ask", 'it\'s "so"') == {
        "what": 'it\'s "so"'
    }


@pytest.mark.parametrize(("line", "message"), [("", "/review needs path."), ("path=a style=b c", "unexpected: c")])
def test_wrong_arguments_are_an_error_with_the_usage(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        REVIEW.values("/review", line)
    assert caught.value.hint == "Usage: /review PATH [STYLE]"


def test_the_cache_has_prompts_of_servers_that_have_not_changed(tmp_path: Path) -> None:
    path = str(tmp_path / "cache" / "mcp-prompts")
    server = McpServer("one", "profile", "a-server")
    mcp_prompts.store(path, server, [REVIEW])
    assert mcp_prompts.stored(path, [server]) == [REVIEW]
    assert mcp_prompts.stored(path, [server._replace(args=("--other",))]) == []
    assert mcp_prompts.stored(path, [server._replace(enabled=False)]) == []
    Path(path).write_text('{"one": {"table": 3, "prompts": [5]}, "two"')
    assert mcp_prompts.stored(path, [server]) == []


def test_two_servers_with_one_name_of_a_prompt_have_two_commands() -> None:
    two = REVIEW._replace(server="two")
    assert mcp_prompts.by_command([REVIEW, two]) == {"review": REVIEW, "two-review": two}


def test_a_prompt_is_a_slash_command_with_its_pictures_and_completion_starts_no_server(
    deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profiles.create(layout.root(os.environ), "alice")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    report = tmp_path / "report"
    arguments = [PROGRAM, "--prompts", "--report", str(report)]
    with Path(profile.settings).open("a") as file:
        file.write(f"[mcp_servers.one]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps(arguments)}\n")
    commands = Path(profile.directory) / "commands"
    commands.mkdir()
    (commands / "see.md").write_text("A command of the profile.")
    with provider(*(Text([f"answer {number}"]) for number in range(1, 4))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        options = ("chat", "--user", "alice", "--model", "openai-chat:loopback")
        with closing(Terminal(*options)) as terminal:
            terminal.expect("model openai-chat:loopback")
            assert not report.exists()
            terminal.type("hello\r")
            terminal.expect("answer 1")
            terminal.type("/review a.py\r")
            terminal.expect("Sending the prompt review of MCP server one.")
            terminal.expect("answer 2")
            terminal.type("/mcp:see\r")
            terminal.expect("Sending the prompt see")
            terminal.expect("answer 3")
            terminal.type("/quit\r")
            assert terminal.wait() == 0
        review, see = (request["messages"] for request in server.requests[1:3])
        report.unlink()
        with closing(Terminal(*options)) as terminal:
            terminal.expect("model openai-chat:loopback")
            terminal.type("/help review\r")
            terminal.expect("/review PATH [STYLE]")
            terminal.type("/revi\t")
            terminal.expect("alice> /review")
            terminal.type("\x15")
            terminal.type("/quit\r")
            assert terminal.wait() == 0
        assert not report.exists()
    text = json.dumps(review[-1]["content"])
    assert "review {" in text.replace('\\\\"', '"')
    assert "root:" not in json.dumps(review)
    pictures = [part for part in see[-1]["content"] if part["type"] == "image_url"]
    assert base64.b64decode(pictures[0]["image_url"]["url"].partition(",")[2]) == base64.b64decode(PICTURE)
    shown = deepctl("sessions", "show", "--user", "alice").ok().stdout
    assert "/mcp:see" in shown
    assert PICTURE not in shown


def test_a_script_can_use_a_prompt_of_a_server_that_has_run(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles.create(layout.root(os.environ), "alice")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    deepctl("mcp", "add", "one", "--user", "alice", "--", sys.executable, PROGRAM, "--prompts").ok()
    with provider(Text(["done"]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        for prompt in ("hello", "/review a.py"):
            deepctl("chat", "--user", "alice", "--model", "openai-chat:loopback", prompt).ok()
        failed = deepctl("chat", "--user", "alice", "--model", "openai-chat:loopback", "/review")
        last = json.dumps(server.requests[-1]["messages"][-1])
    assert "review {" in last
    assert failed.code == 2
    assert "/review needs path." in failed.stderr
