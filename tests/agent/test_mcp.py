"""MCP servers in a chat: real ones, which a loopback provider's tool calls reach."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mcp_types
import pytest

from deepctl import distribution, layout
from deepctl.agent import approver, interruption, mcp
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest, always
from deepctl.agent.chat import Chat, EphemeralChat, TurnRunner
from deepctl.agent.turn_engine import Options
from deepctl.domain import mcp_servers, profiles
from deepctl.domain.mcp_servers import McpServer
from deepctl.errors import Interrupted
from deepctl.store import projects, rewind, session_catalogue
from deepctl.store.records import SessionProject
from deepctl.store.repository import Repository
from tests.support.command import InProcess
from tests.support.loopback import Provider, Text, ToolCalls, provider
from tests.support.mcp_http_server import mcp_server
from tests.support.template import ForkedProcess
from tests.support.terminal import Terminal

PROGRAM = str(Path(__file__).parents[1] / "support" / "mcp_stdio_server.py")
CANARY = "canary-0123456789abcdef"
Call = tuple[str, dict[str, Any]]


def _local(*args: str, **keys: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [PROGRAM, *args], **keys}


class Talk:
    """A conversation in memory, in which every prompt makes the model call these tools, an answer each."""

    def __init__(self, server: Provider, running: TurnRunner) -> None:
        self._server = server
        self.running = running
        self._chat = EphemeralChat(running)

    def turn(self, *calls: Call) -> list[dict[str, Any]]:
        """The events of a turn in which the model makes these calls, one after the other."""
        self._server._answers += [*(ToolCalls([call]) for call in calls), Text(["done"])]
        events: list[dict[str, Any]] = []
        self._chat.turn("go", events.append)
        return events

    def forget(self) -> None:
        """The answers that were not asked for."""
        self._server._answers.clear()

    def results(self, *calls: Call) -> list[tuple[bool, str]]:
        """What came of the calls, and what was told, of a turn."""
        return [(event["ok"], event["content"]) for event in self.turn(*calls) if event["type"] == "tool_result"]

    def notices(self) -> list[str]:
        """What a turn that calls nothing has to tell."""
        return [event["message"] for event in self.turn() if event["type"] == "notice"]

    def offered(self) -> dict[str, dict[str, Any]]:
        """The tools of servers that the provider was told of in the last request, by name."""
        tools = [tool["function"] for tool in self._server.requests[-1]["tools"]]
        return {tool["name"]: tool for tool in tools if "__" in tool["name"]}

    @property
    def sent(self) -> str:
        """All that the provider was ever told."""
        return json.dumps(self._server.requests)


@contextmanager
def _talk(tables: dict[str, Any], *, environment: dict[str, str] | None = None, **options: Any) -> Iterator[Talk]:
    variables = {**os.environ, "OPENAI_API_KEY": "sk-0", **(environment or {})}
    ask = options.pop("ask", None)
    chosen = {"approve": "auto", **options}
    with provider() as server:
        servers = tuple(mcp_servers.parse(tables, "config.toml").values())
        started = Options("openai-chat:loopback", f"{server.address}/v1", mcp_servers=servers, **chosen)
        running = TurnRunner(started, environment=variables, ask=ask)
        with closing(running):
            yield Talk(server, running)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    # What waiting for servers says depends on how busy the machine is.
    monkeypatch.setattr("deepctl.agent.mcp._PATIENCE", 60.0)


def _wait(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_servers_tools_are_called_by_its_name_and_theirs() -> None:
    with _talk({"one": _local("--tools", "echo,pid"), "two": _local("--tools", "echo,pid")}) as talk:
        results = talk.results(("one__echo", {"text": "hello"}), ("one__pid", {}), ("two__pid", {}))
        assert sorted(talk.offered()) == ["one__echo", "one__pid", "two__echo", "two__pid"]
        assert results[0] == (True, "hello")
        assert len({pid for _, pid in results[1:]}) == 2
        # The same processes serve the next turn.
        assert talk.results(("one__pid", {}), ("two__pid", {})) == results[1:]


def test_a_server_gets_its_variables_and_nothing_else(tmp_path: Path) -> None:
    report = tmp_path / "report"
    table = _local("--report", str(report), env={"MODE": "quiet"}, env_vars=["NAMED"], cwd=str(tmp_path))
    environment = {"NAMED": "yes", "UNNAMED": "no", "ANTHROPIC_API_KEY": CANARY, "PYTHONPATH": "/x", "LANG": "C.UTF-8"}
    with _talk({"one": table}, environment=environment) as talk:
        talk.turn()
        seen = json.loads(report.read_text())
    known = {"PATH", "HOME", "LANG", "LC_ALL", "LOGNAME", "SHELL", "TERM", "TMPDIR", "TZ", "USER"}
    shells = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
    assert set(seen["env"]) - known - shells == {"MODE", "NAMED"}
    assert CANARY not in json.dumps(seen)
    assert seen["cwd"] == str(tmp_path)
    # Neither the terminal nor its Ctrl-C reach it.
    assert seen["group"] == seen["session"] == seen["pid"]
    assert not _is_running(seen["pid"])


def test_without_a_cwd_a_server_works_in_the_home_directory(tmp_path: Path) -> None:
    with _talk({"one": _local("--report", str(tmp_path / "report"))}) as talk:
        talk.turn()
    assert json.loads((tmp_path / "report").read_text())["cwd"] == os.environ["HOME"]


def test_a_server_that_lacks_a_variable_is_left_out_and_said_once() -> None:
    table = _local(env_vars=["TOKEN_ONE", "TOKEN_TWO"])
    with _talk({"one": table, "two": _local()}, environment={"TOKEN_ONE": "x"}) as talk:
        assert talk.notices() == ["MCP server 'one' is left out: $TOKEN_TWO is not set."]
        assert talk.notices() == []
        assert sorted(talk.offered()) == ["two__echo"]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("exit", "it ended with exit code 3: ModuleNotFoundError: no module named 'cats'"),
        ("garbage", "its output is not MCP: 'Hello! I am not what you think.'"),
        ("long", "it sent a message of more than 16 MiB"),
        ("silent", "it was not ready within 3 s; it says: a server's log"),
    ],
)
def test_a_server_that_does_not_start_is_a_notice_and_tried_once_more(trouble: str, said: str) -> None:
    patience = 3 if trouble == "silent" else 20
    with _talk({"one": _local("--trouble", trouble, startup_timeout_sec=patience), "two": _local()}) as talk:
        assert talk.notices() == [f"MCP server 'one' is left out: {said}."]
        assert talk.notices() == [f"MCP server 'one' is left out: {said}. It is not started again in this chat."]
        assert talk.notices() == []
        assert talk.results(("two__echo", {"text": "here"})) == [(True, "here")]


def test_the_reason_of_npm_is_shown_and_not_the_path_of_its_log() -> None:
    lines = (
        "npm notice A newer npm exists.",
        "npm error code E404",
        "npm error 404 Not Found - GET https://registry.test/a-server",
        "npm error 404",
        "npm error A complete log of this run can be found in: /home/ann/.npm/_logs/1.log",
    )
    with _talk({"one": {"command": "/bin/sh", "args": ["-c", f"echo '{chr(10).join(lines)}' >&2; exit 1"]}}) as talk:
        (notice,) = talk.notices()
    assert notice.endswith("ended with exit code 1: npm error 404 Not Found - GET https://registry.test/a-server.")


def test_whoever_waits_for_servers_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepctl.agent.mcp._PATIENCE", 0)
    with _talk({"slow": _local(), "slower": _local()}) as talk:
        assert talk.notices() == ["Waiting for MCP servers 'slow', 'slower' to start."]
        assert talk.results(("slow__echo", {"text": "hello"})) == [(True, "hello")]
    monkeypatch.setattr("deepctl.agent.mcp._PATIENCE", 10.0)
    with _talk({"quick": _local()}) as talk:
        assert talk.notices() == []


def test_what_cannot_be_started_is_a_notice(tmp_path: Path) -> None:
    not_there = str(tmp_path / "not-there")
    with _talk({"one": {"command": "no-such-program"}, "two": _local(cwd=not_there)}) as talk:
        assert talk.notices() == [
            "MCP server 'one' is left out: its command 'no-such-program' was not found.",
            f"MCP server 'two' is left out: {not_there}: no such file or directory.",
        ]


def test_a_program_that_agents_could_have_written_is_not_started(home: Path) -> None:
    planted = home / "profiles" / "alice" / "workspace" / "server"
    planted.parent.mkdir(parents=True)
    planted.write_text(f"#!/bin/sh\ntouch {home}/escaped\n")
    planted.chmod(0o755)
    with _talk({"one": {"command": str(planted)}}) as talk:
        assert talk.notices() == [
            "MCP server 'one' is left out: its command is where agents can write, so it may be theirs."
        ]
    assert not (home / "escaped").exists()
    with _talk({"one": {"command": "sh", "args": [str(planted)]}}) as talk:
        assert talk.notices() == [
            "MCP server 'one' is left out: an argument of it is where agents can write, so it may be theirs."
        ]
    assert not (home / "escaped").exists()


def test_a_server_that_greets_before_it_speaks_properly_is_understood() -> None:
    with _talk({"one": _local("--trouble", "greets")}) as talk:
        assert talk.results(("one__echo", {"text": "hello"})) == [(True, "hello")]


def test_a_server_may_take_longer_to_start_than_a_call_of_its_tools() -> None:
    with _talk({"one": _local("--trouble", "slow", tool_timeout_sec=0.5)}) as talk:
        assert talk.results(("one__echo", {"text": "hello"})) == [(True, "hello")]


def test_what_goes_wrong_in_a_tool_is_its_result() -> None:
    table = _local("--tools", "fail,refuse,sleep,echo", tool_timeout_sec=0.5)
    with _talk({"one": table}) as talk:
        calls: list[Call] = [("one__fail", {}), ("one__refuse", {}), ("one__sleep", {"seconds": 1})]
        failed, refused, late = talk.results(*calls)
        assert failed == (False, "it does not work")
        assert refused == (False, "no such thing: ")
        assert late[0] is False
        assert late[1].startswith("MCP server 'one' did not answer within 0.5 s.")


def test_a_server_that_dies_is_a_failed_tool_and_is_there_again_at_the_next_turn() -> None:
    with _talk({"one": _local("--tools", "die,pid")}) as talk:
        ((_, before),) = talk.results(("one__pid", {}))
        died, gone = talk.results(("one__die", {}), ("one__pid", {}))
        assert died == (
            False,
            "MCP server 'one' failed: it ended with exit code 7: the last words. "
            "It is started again in the next turn; continue without it.",
        )
        assert (gone[0], gone[1][:38]) == (False, "MCP server 'one' is no longer running.")
        ((ok, after),) = talk.results(("one__pid", {}))
        assert ok
        assert after != before
        os.kill(int(after), signal.SIGKILL)
        _wait(lambda: not _is_running(int(after)))
        (notice,) = talk.notices()
        assert notice.startswith("MCP server 'one' was started again: it ended with signal 9")
        assert talk.notices() == []


def test_tools_that_are_not_wanted_or_cannot_be_described_are_left_out() -> None:
    names = "echo,fail,pid,lost,wrong,endless,pointed,odd name/with.dots"
    table = _local("--tools", names, disabled_tools=["fail", "weather"])
    chosen = _local("--tools", names, enabled_tools=["echo", "pid"], disabled_tools=["pid"])
    with _talk({"one": table, "two": chosen}) as talk:
        assert talk.notices() == [
            "MCP server 'one' has no tool weather, but its settings name it; describes the parameters of lost, wrong, "
            "endless in a way that providers do not accept, or too long; left out."
        ]
        offered = talk.offered()
        assert sorted(offered) == ["one__echo", "one__odd_name_with_dots", "one__pid", "one__pointed", "two__echo"]
        assert offered["one__pointed"]["parameters"]["properties"]["b"] == {"type": "string"}
        assert offered["one__odd_name_with_dots"]["description"] == "[31mred"
        ((ok, said),) = talk.results(("one__odd_name_with_dots", {}))
        assert (ok, said[:18]) == (True, "odd name/with.dots")


def _properties(**of: Any) -> dict[str, Any]:
    return {"type": "object", "properties": of}


def _chosen(*schemas: dict[str, Any]) -> list[str]:
    """Which of a server's tools, `t0` and on, the agent gets, if these are their parameters."""
    tools = [mcp_types.Tool(name=f"t{number}", input_schema=schema) for number, schema in enumerate(schemas)]
    # The client is imported by `mcp.load`, which keeps its own settings from it.
    mcp.load()
    from deepctl.agent.mcp_tools import tool_offer

    return list(tool_offer(McpServer("one", "config", "a-server"), tools).tools)


@pytest.mark.parametrize(
    "schema",
    [
        _properties(a={"type": [{"a": number} for number in range(3900)]}),
        {"type": "object", "required": [[{"a": number}] for number in range(1200)]},
        _properties(a={"dependencies": {"b": [{"a": number} for number in range(1900)]}}),
        _properties(a={"dependentRequired": {"b": [None, *range(3900)]}}),
        _properties(a={"type": "string", "pattern": "".join(f"(?i:[{chr(256 + n)}-\uffff])" for n in range(500))}),
        _properties(a={"patternProperties": {"".join(f"[{chr(256 + n)}ఀ-\uffff]" for n in range(900)): {}}}),
        _properties(a={"allOf": [{}] * 200}, b={"allOf": [{"$ref": "#/properties/a"}] * 200}),
        _properties(a={"type": "string", "pattern": "a{99999999999999999999}"}),
    ],
    ids=["type", "required", "dependencies", "dependentRequired", "pattern", "patternProperties", "$ref", "repetition"],
)
def test_a_tool_whose_parameters_would_take_long_to_check_is_left_out_at_once(schema: dict[str, Any]) -> None:
    before = time.process_time()
    assert _chosen(schema, _properties(a={"type": ["string", "null"]})) == ["one__t1"]
    assert time.process_time() - before < 0.5


def test_what_references_repeat_does_not_make_a_schema_too_large() -> None:
    long = {"type": "string", "description": "x" * 20_000}
    again = {"$ref": "#/properties/a"}
    assert _chosen(_properties(a=long, b=again), _properties(a=long, b=again, c=again, d=again)) == ["one__t0"]


def test_a_server_whose_tools_have_too_many_parameters_together_gives_those_before() -> None:
    many = _properties(**{f"p{number}": {"enum": list(range(90))} for number in range(40)})
    assert _chosen(*[many] * 10) == ["one__t0", "one__t1", "one__t2", "one__t3", "one__t4"]


def test_names_that_are_made_the_same_are_told_apart_and_fit_a_provider() -> None:
    long = "x" * 80
    with _talk({"one": _local("--tools", f"a.b,a/b,{long}1,{long}2")}) as talk:
        talk.turn()
        names = list(talk.offered())
        assert len(set(names)) == 4
        assert all(len(name) <= 64 for name in names)
        said = [content.partition(" of ")[0] for _, content in talk.results(*((name, {}) for name in names))]
        assert sorted(said) == sorted(["a.b", "a/b", f"{long}1", f"{long}2"])


def test_a_server_with_too_many_tools_gives_the_first_of_them() -> None:
    with _talk({"one": _local("--tools", ",".join(f"t{number}" for number in range(150)))}) as talk:
        assert talk.notices() == [
            "MCP server 'one' has 150 tools; only the first 100 are used. Select tools with enabled_tools."
        ]
        assert len(talk.offered()) == 100


def test_results_are_text_without_secrets_and_large_ones_go_to_a_file() -> None:
    tools = _local("--tools", "env,picture,big,refuse", env={"API_KEY": "of-the-table-" + CANARY}, env_vars=["TOKEN"])
    with _talk({"one": tools}, environment={"TOKEN": CANARY}) as talk:
        calls: list[Call] = [("one__env", {"name": "TOKEN"}), ("one__env", {"name": "API_KEY"}), ("one__refuse", {})]
        assert talk.results(*calls) == [(True, "[TOKEN]"), (True, "[API_KEY]"), (False, "no such thing: [TOKEN]")]
        picture, big = talk.results(("one__picture", {}), ("one__big", {"lines": 9000}))
        assert picture[1] == (
            "a cat\n[image/png, 3 bytes, left out: only text, pictures and PDFs are passed on]\n"
            "[resource file:///cat.png cat]"
        )
        assert "large_tool_results/" in big[1]
        assert len(big[1]) < 5_000
        assert CANARY not in talk.sent


def test_results_are_not_checked_against_the_output_schema_of_their_server() -> None:
    with mcp_server() as remote:
        remote.output = {"type": "object", "required": ["a"]}
        tables = {"here": _local("--tools", "pattern", tool_timeout_sec=2), "there": {"url": remote.url}}
        with _talk(tables) as talk:
            results = talk.results(("here__pattern", {}), ("there__whoami", {}))
            structured = json.dumps({"a": "a" * 24 + "b"})
            assert results == [(True, f"some text\n{structured}"), (True, "you are nobody")]


def test_the_tools_of_a_server_that_says_they_changed_are_others_from_the_next_turn_on() -> None:
    with _talk(
        {"one": _local("--tools", "more"), "two": _local("--tools", "pid,fail", "--trouble", "changes")}
    ) as talk:
        talk.turn(("one__more", {}))
        assert sorted(talk.offered()) == ["one__more", "two__pid"]
        assert talk.results(("one__echo", {"text": "hello"})) == [(True, "hello")]
        assert sorted(talk.offered()) == ["one__echo", "one__more", "two__fail", "two__pid"]


def test_a_server_outlives_a_turn_that_ctrl_c_stopped_and_is_told_of_what_was_cancelled() -> None:
    with _talk({"one": _local("--tools", "pid,interrupt,cancelled")}) as talk:
        ((_, before),) = talk.results(("one__pid", {}))
        for _ in range(2):
            with pytest.raises(Interrupted):
                talk.turn(("one__interrupt", {"pid": os.getpid()}))
            talk.forget()
        ((ok, after),) = talk.results(("one__cancelled", {}))
    assert (ok, after) == (True, f"2 in {before}")


def test_a_server_that_does_not_end_with_its_turn_is_ended_by_another_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_PRESS", 0.0)

    async def stubborn() -> None:
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(30)

    monkeypatch.setattr(interruption, "_CLOSING_SECONDS", 0.1)
    with _talk({"one": _local("--tools", "pid")}) as talk:
        ((_, before),) = talk.results(("one__pid", {}))
        with pytest.raises(Interrupted):
            talk.running._guarded(stubborn())
        _wait(lambda: not _is_running(int(before)))
        ((ok, after),) = talk.results(("one__pid", {}))
    assert ok
    assert after != before


def test_everything_a_server_started_ends_with_the_chat(tmp_path: Path) -> None:
    report = tmp_path / "report"
    with _talk({"one": _local("--report", str(report), "--child", "--trouble", "stays")}) as talk:
        talk.turn()
        seen = json.loads(report.read_text())
        assert _is_running(seen["pid"])
        assert _is_running(seen["child"])
    assert not _is_running(seen["pid"])
    _wait(lambda: not _is_running(seen["child"]))


_CHAT = """
import os, sys, time
from deepctl.agent.chat import EphemeralChat
from deepctl.agent.chat import TurnRunner
from deepctl.agent.turn_engine import Options
from deepctl.domain import mcp_servers
tables = {"one": {"command": sys.executable, "args": sys.argv[1:]}}
servers = tuple(mcp_servers.parse(tables, "x").values())
running = TurnRunner(Options("offline", mcp_servers=servers), environment=os.environ)
EphemeralChat(running).turn("hello", lambda event: None)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "trouble"),
    [(signal.SIGKILL, ""), (signal.SIGKILL, "stays"), (signal.SIGTERM, "stays")],
    ids=["killed", "killed, and it stays", "ended, and it stays"],
)
def test_whatever_ends_deepctl_ends_its_servers(tmp_path: Path, how: signal.Signals, trouble: str) -> None:
    report = tmp_path / "report"
    arguments = [PROGRAM, "--report", str(report), "--child", "--trouble", trouble]
    streams = (subprocess.DEVNULL, subprocess.PIPE, subprocess.PIPE)
    running = ForkedProcess(arguments, streams, environment=os.environ, program=_CHAT)
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        seen = json.loads(report.read_text())
        assert _is_running(seen["pid"])
        running.send_signal(how)
        assert running.wait(10) == -how
        _wait(lambda: not _is_running(seen["pid"]) and not _is_running(seen["child"]))
        # Nothing that a server says reaches the terminal.
        assert running.stderr is not None
        assert b"a server's log" not in running.stderr.read()


def test_a_remote_server_gets_its_headers_and_no_others_secrets() -> None:
    with mcp_server() as remote:
        table = {
            "url": remote.url,
            "bearer_token_env_var": "WORD",
            "http_headers": {"X-Plain": "plain"},
            "env_http_headers": {"X-From": "FROM"},
        }
        environment = {"WORD": CANARY, "FROM": "somewhere", "OTHER_TOKEN": "other-secret"}
        with _talk({"one": table}, environment=environment) as talk:
            assert talk.results(("one__whoami", {})) == [(True, "you are Bearer [WORD]")]
            assert CANARY not in talk.sent
        for headers in remote.headers:
            assert headers["authorization"] == f"Bearer {CANARY}"
            assert (headers["x-plain"], headers["x-from"]) == ("plain", "somewhere")
            assert "other-secret" not in str(headers)


def test_a_remote_server_that_is_gone_is_a_failed_tool_and_that_is_back_is_used_again() -> None:
    with mcp_server() as remote, _talk({"one": {"url": remote.url}}) as talk:
        assert talk.results(("one__whoami", {})) == [(True, "you are nobody")]
        remote.status = 503
        ((ok, said),) = talk.results(("one__whoami", {}))
        assert not ok
        assert said.startswith("MCP server 'one' failed: it answered with HTTP status 503. ")
        assert len(talk.notices()) == 1
        remote.status = None
        assert talk.results(("one__whoami", {})) == [(True, "you are nobody")]


def test_a_remote_server_that_refuses_or_is_not_there_is_a_notice() -> None:
    with mcp_server() as remote:
        remote.status = 401
        closed = remote.url.replace("/mcp", "").rpartition(":")[0] + ":1/mcp"
        with _talk({"one": {"url": remote.url}, "two": {"url": closed}}) as talk:
            one, two = sorted(talk.notices())
            assert one == (
                "MCP server 'one' is left out: it needs a login: `deepctl mcp test one` at a terminal logs in."
            )
            assert two.startswith("MCP server 'two' is left out: ")
            assert "connect" in two


def test_a_remote_server_cannot_send_secrets_on_to_another() -> None:
    with mcp_server() as thief, mcp_server(elsewhere=thief.url) as remote:
        table = {"url": remote.url, "env_http_headers": {"X-Api-Key": "KEY"}}
        with _talk({"one": table}, environment={"KEY": CANARY}) as talk:
            assert len(talk.notices()) == 1
        assert thief.headers == []


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Content-Type": "application/json"}, "it sent a message of more than 16 MiB"),
        (
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            "it sent compressed data without being asked",
        ),
        (
            {"Content-Type": "text/event-stream", "Content-Encoding": "deflate"},
            "it sent compressed data without being asked",
        ),
    ],
)
def test_a_remote_server_that_sends_without_end_or_what_becomes_much_is_a_notice(
    headers: dict[str, str], said: str
) -> None:
    asked: list[str | None] = []

    class Endless(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Accept-Encoding"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # deepctl has hung up
                while True:
                    self.wfile.write(b" " * (1 << 20))

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as remote:
        threading.Thread(target=remote.serve_forever, args=(0.02,), daemon=True).start()
        table = {"url": f"http://127.0.0.1:{remote.server_address[1]}/mcp", "http_headers": {"accept-encoding": "gzip"}}
        try:
            with _talk({"one": {**table, "startup_timeout_sec": 5}}) as talk:
                assert talk.notices() == [f"MCP server 'one' is left out: {said}."]
        finally:
            remote.shutdown()
    assert set(asked) == {"identity"}


class _Person:
    def __init__(self, *answers: ApprovalAnswer) -> None:
        self._answers = list(answers)
        self.asked: list[ApprovalRequest] = []

    async def __call__(self, question: ApprovalRequest) -> ApprovalAnswer:
        self.asked.append(question)
        return self._answers.pop(0)


def test_each_tool_is_asked_about_until_the_answer_is_always() -> None:
    person = _Person(
        ApprovalAnswer(False, word="not now"),
        ApprovalAnswer(True),
        ApprovalAnswer(True, always=True),
        ApprovalAnswer(True),
    )
    hello: Call = ("one__echo", {"text": "hello"})
    with _talk({"one": _local("--tools", "echo,pid")}, approve="ask", ask=person) as talk:
        no, yes, by_always, unasked = talk.results(hello, hello, hello, hello)
        assert no == (False, "The user did not allow this tool; it was not used. The reason: not now")
        assert [yes, by_always, unasked] == [(True, "hello")] * 3
        talk.turn(("one__pid", {}))
    assert person.asked[0] == ApprovalRequest(
        "mcp", "one__echo", '{\n  "text": "hello"\n}', choices=(always("this tool"),)
    )
    assert [question.target for question in person.asked] == ["one__echo"] * 3 + ["one__pid"]


@pytest.mark.parametrize("approve", ["ask", "never"])
def test_where_nobody_says_yes_only_approved_tools_are_used(approve: approver.Approve) -> None:
    trusted = _local(
        "--tools", "echo,pid", default_tools_approval_mode="approve", tools={"pid": {"approval_mode": "prompt"}}
    )
    with _talk({"one": _local(), "two": trusted}, approve=approve) as talk:
        calls: list[Call] = [("one__echo", {"text": "a"}), ("two__echo", {"text": "b"}), ("two__pid", {})]
        results = talk.results(*calls)
        assert [ok for ok, _ in results] == [False, True, False]


def test_what_a_server_does_to_the_workspace_is_kept_and_can_be_rewound(home: Path) -> None:
    root = layout.root(os.environ)
    profile = profiles.create(root, "alice")
    written = Path(profile.workspace) / "by-server.txt"
    table = {"one": _local("--tools", "write", default_tools_approval_mode="approve")}
    servers = tuple(mcp_servers.parse(table, "x").values())
    with provider(ToolCalls([("one__write", {"path": str(written)})]), Text(["done"])) as server:
        options = Options("openai-chat:loopback", f"{server.address}/v1", mcp_servers=servers)
        events: list[dict[str, Any]] = []
        with closing(TurnRunner(options, environment=os.environ)) as running, _work(root) as work:
            name = session_catalogue.start(profile, "main").name
            Chat(running).turn(work, name, "go", events.append)
    assert written.exists()
    assert [event["kind"] for event in events if event["type"] == "checkpoint"] == ["turn", "tool", "turn"]


def test_a_rewind_lists_what_a_server_changed_in_a_project_like_changes_of_commands(home: Path, tmp_path: Path) -> None:
    root = layout.root(os.environ)
    profile = profiles.create(root, "alice")
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "a.txt").write_text("mine\n")
    table = {"one": _local("--tools", "write", default_tools_approval_mode="approve")}
    servers = tuple(mcp_servers.parse(table, "x").values())
    call = ToolCalls([("one__write", {"path": str(shop / "a.txt")})])
    with provider(call, Text(["done"])) as server:
        options = Options("openai-chat:loopback", f"{server.address}/v1", mcp_servers=servers)
        with closing(TurnRunner(options, environment=os.environ)) as running, _work(root) as work:
            project = projects.ensure(profile, str(shop))
            session = session_catalogue.start(profile, "main", SessionProject(project.id, project.path))
            Chat(running).turn(work, session.name, "go", lambda event: None)
            assert (shop / "a.txt").read_text() == "by a server\n"
            session, request = rewind.request_rewind(work, "main", "~1")
            result = rewind.run(work, session, request)
    assert (shop / "a.txt").read_text() == "mine\n"
    assert [path.rpartition(b"/")[2] for path in result.plan.command_paths] == [b"a.txt"]


@contextmanager
def _work(root: layout.Root) -> Iterator[Any]:
    with (
        profiles.lock(root, "alice", command="chat", wait=0),
        Repository.open(profiles.find(root, "alice")) as work,
    ):
        yield work


def test_without_the_extra_a_notice_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepctl.agent.mcp_client", None)
    with _talk({"one": _local(), "off": {"enabled": False}}) as talk:
        how = distribution.to_install("mcp")
        assert talk.notices() == [f"MCP servers need packages that are not installed ({how}): one."]
        assert talk.notices() == []


_IMPORTS = """
import sys, os
from deepctl.agent.chat import EphemeralChat
from deepctl.agent.chat import TurnRunner
from deepctl.agent.turn_engine import Options
running = TurnRunner(Options("offline"), environment=os.environ)
EphemeralChat(running).turn("hello", lambda event: None)
running.close()
print(*[name for name in ("fastmcp", "mcp") if name in sys.modules])
if sys.argv[1:]:
    os.environ["FASTMCP_LOG_LEVEL"] = "no such level"
    from deepctl.agent import mcp
    mcp.load()
    import fastmcp, logging
    print(fastmcp.settings.log_enabled, logging.getLogger("fastmcp").handlers, os.environ["FASTMCP_LOG_LEVEL"])
"""


def test_the_client_is_imported_only_for_servers_and_reads_no_settings_of_its_own(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FASTMCP_LOG_ENABLED=true\nFASTMCP_LOG_LEVEL=nonsense\n")
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, "load"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["", "False [] no such level"]


def test_two_profiles_have_different_servers_and_an_ephemeral_chat_has_none(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: profiles.create(layout.root(os.environ), name) for name in ("alice", "bob")}
    for name, profile in paths.items():
        Path(profile.settings).write_text(
            f"[mcp_servers.of_{name}]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps([PROGRAM])}\n"
        )
    with provider(Text(["done"]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        start: list[dict[str, Any]] = []
        for arguments in (["--user", "alice"], ["--user", "bob"], ["--user", "alice", "--ephemeral"]):
            chat = deepctl("chat", *arguments, "--json", "--model", "openai-chat:loopback", "hello").ok()
            start.append(chat.events[0])
        tools = [[tool["function"]["name"] for tool in request["tools"]] for request in server.requests]
    assert [[name for name in names if "__" in name] for names in tools] == [["of_alice__echo"], ["of_bob__echo"], []]
    assert start[0]["notice"] == "MCP servers outside the sandbox, with your rights: of_alice."
    assert start[2]["notice"] is None


def test_a_person_at_the_terminal_is_shown_what_a_tool_is_to_be_used_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profiles.create(layout.root(os.environ), "alice")
    Path(profile.settings).write_text(
        f"[mcp_servers.one]\ncommand = {json.dumps(sys.executable)}\nargs = {json.dumps([PROGRAM])}\n"
    )
    with provider(ToolCalls([("one__echo", {"text": "a secret\x1b[2J"})]), Text(["done"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        with closing(Terminal("chat", "--user", "alice", "--model", "openai-chat:loopback", "go")) as terminal:
            terminal.expect("Allow it?")
            shown = terminal.screen
            terminal.type("y")
            assert terminal.wait() == 0
    assert "one__echo" in shown
    assert '"text": "a secret\\u001b[2J"' in shown
    results = [message for message in server.requests[1]["messages"] if message["role"] == "tool"]
    assert results[0]["content"] == "a secret\x1b[2J"


def test_a_token_that_no_header_can_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCS_TOKEN", "“token”")
    table = {"url": "http://127.0.0.1:9/mcp", "bearer_token_env_var": "DOCS_TOKEN"}
    with _talk({"docs": table}) as talk:
        (notice,) = talk.notices()
    assert "is left out: $DOCS_TOKEN cannot be used: it contains the character “" in notice


def test_a_servers_process_survives_three_ctrl_c_of_a_conversation(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = profiles.create(layout.root(os.environ), "alice")
    table = _local("--tools", "sleep,cancelled", "--report", str(tmp_path / "report"), "--child")
    with Path(profile.settings).open("a") as file:
        file.write(f"[mcp_servers.one]\ncommand = {json.dumps(table['command'])}\nargs = {json.dumps(table['args'])}\n")
    long = ToolCalls([("one__sleep", {"seconds": 0.5})])
    count = ToolCalls([("one__cancelled", {})])
    with provider(Text(["begun"]), long, long, long, count, Text(["done"])) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        options = ("chat", "--user", "alice", "--model", "openai-chat:loopback", "--approve", "auto")
        with closing(Terminal(*options)) as terminal:
            terminal.expect("alice>")
            terminal.type("hello\r")
            terminal.expect("begun")
            before = json.loads((tmp_path / "report").read_text())
            for number in range(1, 4):
                # What is typed before the end of a stopped turn stays in the line.
                terminal.expect("alice>", number + 1)
                terminal.type(f"prompt {number}\r")
                terminal.expect("one__sleep", number)
                terminal.type("\x03")
                terminal.expect("Stopped; completed steps are kept.", number)
            assert _is_running(before["pid"])
            assert _is_running(before["child"])
            terminal.expect("alice>", 5)
            terminal.type("how many?\r")
            terminal.expect("done")
            terminal.type("/quit\r")
            assert terminal.wait() == 0
        results = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "tool"]
    assert results[-1] == f"3 in {before['pid']}"
    assert json.loads((tmp_path / "report").read_text())["pid"] == before["pid"]
    _wait(lambda: not _is_running(before["pid"]) and not _is_running(before["child"]))
