"""Published MCP servers, which deepctl starts and whose tools a loopback provider's answers call.

Two are in every run. With DEEPCTL_SOAK=1 (`make soak-mcp`), also `fetch`, and three of Node, which the target installs.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.domain import profiles
from tests.agent.test_mcp import Talk, _is_running, _talk, _wait
from tests.agent.test_mcp_content import _pictures
from tests.support.command import InProcess
from tests.support.loopback import Provider, Text, ToolCalls, provider
from tests.support.terminal import Terminal

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_INSTALLED = Path(sys.prefix) / "mcp-servers"
_OF_NODE = _INSTALLED / "node_modules" / ".bin"
_PAGE = Path(__file__).parents[2] / "docs" / "mcp.md"
_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    monkeypatch.setattr("deepctl.agent.mcp._PATIENCE", 60.0)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The tables of the servers, by name. `filesystem` and `git` have a directory of the test."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("the first line\n")
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", str(repository)], check=True)
    for key, value in {"user.name": "Alice", "user.email": "alice@example.test"}.items():
        subprocess.run(["git", "-C", str(repository), "config", key, value], check=True)
    servers = {
        "git": _python("git", "--repository", str(repository)),
        "time": _python("time", "--local-timezone", "Europe/Berlin"),
    }
    if _SOAK:
        # With a node on its path, it would let npm install a package.
        environment = {"HOME": str(tmp_path), "PATH": str(tmp_path)}
        servers |= {
            "fetch": {**_python("fetch", "--ignore-robots-txt", "--allow-private-ips"), "env": environment},
            "everything": _node("everything"),
            "filesystem": _node("filesystem", str(tmp_path / "files")),
            "memory": {**_node("memory"), "env": {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")}},
        }
    return {name: {**table, "startup_timeout_sec": 60} for name, table in servers.items()}


def _python(name: str, *args: str) -> dict[str, Any]:
    return {"command": str(Path(sys.prefix) / "bin" / f"mcp-server-{name}"), "args": list(args)}


def _node(name: str, *args: str) -> dict[str, Any]:
    program = _OF_NODE / f"mcp-server-{name}"
    assert program.exists(), f"{program}: `make soak-mcp` installs it"
    return {"command": str(program), "args": list(args)}


def _package(name: str) -> tuple[str, str]:
    """The package of a server, and its installed version."""
    if name in ("fetch", "git", "time"):
        return f"mcp-server-{name}", importlib.metadata.version(f"mcp-server-{name}")
    package = f"@modelcontextprotocol/server-{name}"
    return package, json.loads((_INSTALLED / "node_modules" / package / "package.json").read_text())["version"]


def _result(talk: Talk, tool: str, **arguments: Any) -> str:
    """The text of a call that succeeds."""
    ((ok, text),) = talk.results((tool, arguments))
    assert ok, text
    return text


@contextmanager
def _page(text: str) -> Iterator[str]:
    """The address of a web page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_repository_and_the_time(tables: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    repository = str(tmp_path / "repository")
    (tmp_path / "repository" / "b.txt").write_text("a line\n")
    with _talk({name: tables[name] for name in ("git", "time")}) as talk:
        assert talk.notices() == []
        assert "b.txt" in _result(talk, "git__git_status", repo_path=repository)
        _result(talk, "git__git_add", repo_path=repository, files=["b.txt"])
        _result(talk, "git__git_commit", repo_path=repository, message="Add b")
        assert "Add b" in _result(talk, "git__git_log", repo_path=repository)
        assert talk.results(("git__git_status", {"repo_path": "/etc"}))[0][0] is False
        converted = _result(
            talk,
            "time__convert_time",
            source_timezone="Asia/Tokyo",
            time="12:00",
            target_timezone="Asia/Kolkata",
        )
        assert "08:30:00+05:30" in converted
    log = subprocess.run(
        ["git", "-C", repository, "log", "--format=%an %s"], check=True, capture_output=True, text=True
    )
    assert log.stdout == "Alice Add b\n"


def test_the_commands_know_these_servers(tables: dict[str, dict[str, Any]], deepctl: InProcess) -> None:
    deepctl("profiles", "create", "alice").ok()
    for name, table in tables.items():
        deepctl("mcp", "add", name, "--user", "alice", "--", table["command"], *table["args"]).ok()
    listed = deepctl("mcp", "list", "--user", "alice", "--json").ok().json["servers"]
    assert [server["name"] for server in listed] == sorted(tables)
    for name in tables if _SOAK else ("time",):
        report = deepctl("mcp", "test", name, "--user", "alice", "--json").ok().json
        assert report["tools"], name
        assert all(name_of.startswith(f"{name}__") for name_of in (tool["name"] for tool in report["tools"]))
        package, version = _package(name)
        tokens = sum(tool["tokens"] for tool in report["tools"])
        row = f"| `{package}` | {version} | {len(report['tools'])} | {tokens:,} |"
        print(row)
        # Another version may have other tools, and only the soak has the versions of the page.
        assert row in _PAGE.read_text() or not (_SOAK or version in _PAGE.read_text())
    for name in tables:
        deepctl("mcp", "remove", name, "--user", "alice").ok()
    assert deepctl("mcp", "list", "--user", "alice", "--json").ok().json["servers"] == []


def _configure(tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Give profile alice these servers."""
    profile = profiles.create(layout.root(os.environ), "alice")
    with Path(profile.settings).open("a") as file:
        for name, table in tables.items():
            file.write(f"[mcp_servers.{name}]\n")
            for key, value in table.items():
                text = f"{{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in value.items())} }}" if key == "env" else ""
                file.write(f"{key} = {text or json.dumps(value)}\n")


def _servers_of(process: int) -> dict[str, int]:
    """The process ids of the servers that a process has started, by their names."""
    servers = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
                words = (directory / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            names = [word.rpartition(b"mcp-server-")[2].decode() for word in words if b"mcp-server-" in word]
            if parent in _family(process) and names:
                servers[names[0]] = int(directory.name)
    return servers


def _family(process: int) -> set[int]:
    """A process and its descendants."""
    members = {process}
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            members |= _family(int(child))
    return members


if _SOAK:

    def test_the_server_with_everything(tables: dict[str, dict[str, Any]]) -> None:
        with _talk({"everything": tables["everything"]}) as talk:
            (notice,) = talk.notices()
            assert "has tools that only run as tasks" in notice
            assert _result(talk, "everything__get-sum", a=2, b=3) == "The sum of 2 and 3 is 5."
            image = _result(talk, "everything__get-tiny-image")
            assert "[image, " in image
            (picture,) = _pictures(talk._server.requests[-1])
            assert picture.startswith(_PNG)
            assert base64.b64encode(picture).decode() not in image
            _result(talk, "everything__get-annotated-message", messageType="success", includeImage=True)
            assert len(_pictures(talk._server.requests[-1])) == 2
            links = _result(talk, "everything__get-resource-links", count=3)
            assert links.count("[resource demo://resource/dynamic/") == 3
            reference = _result(talk, "everything__get-resource-reference", resourceType="Text", resourceId=1)
            assert "This is a plaintext resource" in reference
            forecast = json.loads(_result(talk, "everything__get-structured-content", location="Chicago"))
            assert set(forecast) == {"temperature", "conditions", "humidity"}
            assert "demo://resource/static/document/features.md" in _result(talk, "everything__read_resource")
            page = _result(talk, "everything__read_resource", uri="demo://resource/static/document/features.md")
            assert "# Everything Server" in page
            assert talk.results(("everything__read_resource", {"uri": "demo://resource/none"}))[0][0] is False
            environment = json.loads(_result(talk, "everything__get-env"))
            assert "OPENAI_API_KEY" not in environment

    def test_a_turn_of_the_program_uses_all_servers(
        tables: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _configure(tables)
        graph = {"entities": [{"name": "alice", "entityType": "person", "observations": ["likes kumquat"]}]}
        with _page("<html><body><article><p>Kumquats ripen in winter.</p></article></body></html>") as address:
            calls: list[tuple[str, dict[str, Any], str]] = [
                ("git__git_status", {"repo_path": str(tmp_path / "repository")}, "On branch main"),
                ("time__get_current_time", {"timezone": "Asia/Kolkata"}, "+05:30"),
                ("fetch__fetch", {"url": address}, "Kumquats ripen in winter."),
                ("everything__get-tiny-image", {}, "Here's the image you requested"),
                ("everything__get-resource-links", {"count": 2}, "[resource demo://resource/dynamic/"),
                ("everything__read_resource", {"uri": "demo://resource/dynamic/text/1"}, "plaintext"),
                ("filesystem__read_text_file", {"path": str(tmp_path / "files" / "a.txt")}, "the first line"),
                ("memory__create_entities", graph, "likes kumquat"),
            ]
            answers = [ToolCalls([(tool, arguments)]) for tool, arguments, _ in calls]
            with provider(*answers, Text(["the end"])) as server:
                monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
                with closing(_chat("use everything")) as terminal:
                    terminal.expect("the end")
                    assert terminal.wait() == 0
        offered = {tool["function"]["name"].partition("__")[0] for tool in server.requests[0]["tools"]}
        assert offered >= set(tables)
        messages = server.requests[-1]["messages"]
        results = [_text_of(message) for message in messages if message["role"] == "tool"]
        for (tool, _, text), result in zip(calls, results, strict=True):
            assert text in result, f"{tool}: {result}"
        (picture,) = _pictures(server.requests[-1])
        assert picture.startswith(_PNG)

    @pytest.mark.parametrize(
        ("name", "arguments", "reason"),
        [
            ("filesystem", ["/no/such/directory"], "None of the specified directories are accessible"),
            ("git", ["--repository", "/etc"], "/etc is not a valid Git repository"),
            ("time", ["--local-timezone", "Mars/Base"], "'Mars/Base': not a known IANA timezone name"),
            ("fetch", ["--frobnicate"], "unrecognized arguments: --frobnicate"),
        ],
    )
    def test_a_server_that_refuses_its_arguments_is_left_out_with_its_reason(
        name: str, arguments: list[str], reason: str, deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = _node(name, *arguments) if name == "filesystem" else _python(name, *arguments)
        _configure({name: {**table, "startup_timeout_sec": 60}})
        tested = deepctl("mcp", "test", name, "--user", "alice")
        assert tested.code == 7
        assert reason in tested.stderr.rpartition("Error: MCP server")[2]
        with provider(Text(["hello"])) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            chat = deepctl("chat", "--user", "alice", "--model", "openai-chat:loopback", "go").ok()
        (notice,) = [line for line in chat.stderr.splitlines() if "is left out" in line]
        assert reason in notice

    def test_wrong_arguments_of_tools_resources_and_prompts_are_named(
        tables: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with _talk({name: tables[name] for name in ("everything", "time")}) as talk:
            wrong = talk.results(
                ("everything__get-sum", {"a": "x"}),
                ("everything__read_resource", {"uri": "demo://none"}),
                ("time__get_current_time", {"timezone": "Mars/Base"}),
            )
        assert [ok for ok, _ in wrong] == [False] * 3
        for (_, text), part in zip(wrong, ("expected number", "demo://none", "Mars/Base"), strict=True):
            assert part in text
        _configure({"everything": tables["everything"]})
        with provider(Text(["begun"])) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            with closing(_chat()) as terminal:
                terminal.expect("alice>")
                terminal.type("hello\r")
                terminal.expect("begun")
                terminal.expect("alice>", 2)
                terminal.type("/args-prompt\r")
                terminal.expect("Usage: /args-prompt CITY [STATE]")
                terminal.type("/resource-prompt Text x\r")
                terminal.expect(
                    "MCP server 'everything' did not return its prompt 'resource-prompt': Invalid resourceId"
                )
                terminal.type("/quit\r")
                assert terminal.wait() == 0
            assert len(server.requests) == 1

    def test_a_page_is_fetched(tables: dict[str, dict[str, Any]]) -> None:
        paragraph = "Kumquats ripen in winter. " * 20
        html = f"<html><body><article><h1>Fruit</h1><p>{paragraph}</p></article></body></html>"
        with _talk({"fetch": tables["fetch"]}) as talk, _page(html) as address:
            assert "Kumquats ripen in winter." in _result(talk, "fetch__fetch", url=address)

    def test_files_and_a_graph_of_memory(tables: dict[str, dict[str, Any]], tmp_path: Path) -> None:
        entity = {"name": "alice", "entityType": "person", "observations": ["likes kumquat"]}
        path = str(tmp_path / "files" / "a.txt")
        with _talk({name: tables[name] for name in ("filesystem", "memory")}) as talk:
            assert talk.notices() == []
            assert _result(talk, "filesystem__read_text_file", path=path) == "the first line\n"
            edits = [{"oldText": "first", "newText": "second"}]
            assert "+the second line" in _result(talk, "filesystem__edit_file", path=path, edits=edits)
            ((ok, text),) = talk.results(("filesystem__read_text_file", {"path": "/etc/passwd"}))
            assert (ok, "Access denied" in text) == (False, True)
            _result(talk, "memory__create_entities", entities=[entity])
            assert "likes kumquat" in _result(talk, "memory__read_resource", uri="memory://knowledge-graph")
        assert Path(path).read_text() == "the second line\n"
        with _talk({"memory": tables["memory"]}) as talk:
            assert "likes kumquat" in _result(talk, "memory__read_graph")

    def test_prompts_are_slash_commands(tables: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        _configure({"everything": tables["everything"]})
        with provider(Text(["begun"]), Text(["done"]), Text(["again"])) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            with closing(_chat()) as terminal:
                terminal.expect("alice>")
                terminal.type("hello\r")
                terminal.expect("begun")
                terminal.expect("alice>", 2)
                terminal.type("/args-prompt Paris state=Texas\r")
                terminal.expect("done")
                terminal.expect("alice>", 3)
                terminal.type("/resource-prompt Text 1\r")
                terminal.expect("again")
                terminal.type("/quit\r")
                assert terminal.wait() == 0
            assert "weather in Paris, Texas" in _last_prompt(server, 1)
            assert "This is a plaintext resource" in _last_prompt(server, 2)

    def test_processes_survive_three_ctrl_c_and_a_dead_one_is_started_again(
        tables: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _configure(tables)
        long = ToolCalls([("everything__trigger-long-running-operation", {"duration": 60, "steps": 60})])
        total = ToolCalls([("everything__get-sum", {"a": 20, "b": 22})])
        answers = (long, long, long, long, Text(["at once"]), total, Text(["done"]), total, Text(["the end"]))
        with provider(Text(["begun"]), *answers) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
            with closing(_chat()) as terminal:
                terminal.expect("alice>")
                terminal.type("hello\r")
                terminal.expect("begun")
                before = _servers_of(terminal.process.pid)
                assert sorted(before) == sorted(tables)
                for number in range(1, 4):
                    terminal.expect("alice>", number + 1)
                    terminal.type(f"prompt {number}\r")
                    terminal.expect("everything__trigger-long-running-operation", number)
                    terminal.type("\x03")
                    terminal.expect("Stopped; completed steps are kept.", number)
                terminal.expect("alice>", 5)
                terminal.type("prompt 4\r")
                terminal.expect("everything__trigger-long-running-operation", 4)
                terminal.type("/now what is the time?\r")
                terminal.expect("at once")
                assert _servers_of(terminal.process.pid) == before
                terminal.expect("alice>", 7)
                os.kill(before["everything"], signal.SIGKILL)
                _wait(lambda: not _is_running(before["everything"]))
                terminal.type("how many?\r")
                terminal.expect("MCP server 'everything' was started again: it ended with signal 9")
                terminal.expect("done")
                terminal.expect("alice>", 8)
                terminal.type("once more\r")
                terminal.expect("the end")
                after = _servers_of(terminal.process.pid)
                terminal.type("/quit\r")
                assert terminal.wait() == 0
            assert {**after, "everything": 0} == {**before, "everything": 0}
            assert after["everything"] != before["everything"]
            assert not any(map(_is_running, after.values()))
            results = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "tool"]
        assert results[-1] == "The sum of 20 and 22 is 42."

    def _chat(*prompt: str) -> Terminal:
        return Terminal("chat", "--user", "alice", "--model", "openai-chat:loopback", "--approve", "auto", *prompt)

    def _text_of(message: Mapping[str, Any]) -> str:
        content = message["content"]
        return content if isinstance(content, str) else json.dumps(content)

    def _last_prompt(server: Provider, request: int) -> str:
        return _text_of(server.requests[request]["messages"][-1])
