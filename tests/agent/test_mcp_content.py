"""What tools and resources of MCP servers return: pictures, links, structured content, and what of it is stored."""

from __future__ import annotations

import base64
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest
from deepctl.agent.chat import Chat, TurnRunner
from deepctl.agent.turn_engine import Options
from deepctl.domain import mcp_servers, profiles
from deepctl.store import session_catalogue
from deepctl.store.repository import Repository
from tests.agent.test_mcp import CANARY, Call, _local, _talk
from tests.support.command import InProcess
from tests.support.loopback import Text, ToolCalls, provider
from tests.support.mcp_stdio_server import PICTURE


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0")
    monkeypatch.setattr("deepctl.agent.mcp._PATIENCE", 60.0)


def _pictures(request: dict[str, Any]) -> list[bytes]:
    """The pictures in a request, in their order."""
    parts = [
        part for message in request["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(";base64,")[2]) for url in urls]


def test_pictures_reach_the_model_and_all_other_content_is_text_or_described() -> None:
    table = _local("--tools", "media", env_vars=["TOKEN"])
    with _talk({"one": table}, environment={"TOKEN": CANARY}) as talk:
        ((ok, text),) = talk.results(("one__media", {}))
        request = talk._server.requests[-1]
        assert _pictures(request) == [base64.b64decode(PICTURE)] * 2
        sent = json.dumps(request)
    assert ok
    assert CANARY not in sent
    for part in (
        "first",
        "[audio/wav, 3 bytes, left out: only text, pictures and PDFs are passed on]",
        "[resource note://a]",
        "a note",
        "[resource zip://a, application/zip, 4 bytes, left out: only text, pictures and PDFs are passed on]",
        "[image/png, 10 bytes, left out: it is not valid base64]",
        "last, with [TOKEN]",
    ):
        assert json.dumps(part)[1:-1] in sent, part
        assert part in text
    assert PICTURE not in text


def test_a_model_without_pictures_gets_the_text_of_a_result() -> None:
    without = {"supports_image_input": False}
    with _talk({"one": _local("--tools", "media")}, model_profile=without) as talk:
        talk.turn(("one__media", {}))
        sent = json.dumps(talk._server.requests[-1])
        assert PICTURE not in sent
        assert sent.count("(image/png, 73 bytes) was not sent: this model cannot read images.") == 2
        assert "first" in sent


def test_a_long_text_beside_a_picture_goes_to_a_file_and_the_picture_does_not() -> None:
    with _talk({"one": _local("--tools", "wordy picture")}) as talk:
        ((_, text),) = talk.results(("one__wordy_picture", {}))
        assert _pictures(talk._server.requests[-1]) == [base64.b64decode(PICTURE)]
    assert "large_tool_results/" in text
    assert len(text) < 6_000


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", '{"sky": "blue", "degrees": 21}'),
        ('{"degrees": 21,  "sky": "blue"}', '{"degrees": 21,  "sky": "blue"}'),
        ("It is fine.", 'It is fine.\n{"sky": "blue", "degrees": 21}'),
    ],
)
def test_structured_content_reaches_the_model_once(text: str, result: str) -> None:
    with _talk({"one": _local("--tools", "forecast")}) as talk:
        assert talk.results(("one__forecast", {"text": text})) == [(True, result)]


def test_resources_are_listed_and_read_with_one_tool_which_only_servers_with_resources_have() -> None:
    tables = {
        "one": _local("--resources", env_vars=["TOKEN"]),
        "two": _local("--resources", disabled_tools=["read_resource"]),
        "none": _local(),
    }
    with _talk(tables, environment={"TOKEN": CANARY}) as talk:
        calls: list[Call] = [
            ("one__read_resource", argument)
            for argument in ({}, {"uri": "note://one"}, {"uri": "pic://cat"}, {"uri": "file:///etc/passwd"})
        ]
        listing, note, picture, missing = talk.results(*calls)
        assert listing == (
            True,
            "note://one (text/plain, 11 bytes) one: The first note.\npic://cat (image/png) cat\n"
            "note://{name} (a template) note",
        )
        assert note == (True, "the note one of [TOKEN]")
        assert missing == (False, "Resource not found")
        assert _pictures(talk._server.requests[-1]) == [base64.b64decode(PICTURE)]
        assert picture[0]
        assert sorted(talk.offered()) == ["none__echo", "one__echo", "one__read_resource", "two__echo"]


def test_reading_a_resource_needs_approval_like_a_tool() -> None:
    asked: list[ApprovalRequest] = []

    async def person(question: ApprovalRequest) -> ApprovalAnswer:
        asked.append(question)
        return ApprovalAnswer(False)

    trusted = _local("--resources", tools={"read_resource": {"approval_mode": "approve"}})
    with _talk({"one": _local("--resources"), "two": trusted}, approve="ask", ask=person) as talk:
        uri = {"uri": "note://one"}
        denied, allowed = talk.results(("one__read_resource", uri), ("two__read_resource", uri))
    assert not denied[0]
    assert allowed == (True, "the note one of ")
    assert [question.target for question in asked] == ["one__read_resource"]


def test_a_tool_that_only_runs_as_a_task_is_left_out_and_that_is_said_once() -> None:
    with _talk({"one": _local("--tools", "echo,task")}) as talk:
        assert talk.notices() == [
            "MCP server 'one' has tools that only run as tasks, which deepctl does not support: task; left out."
        ]
        assert talk.notices() == []
        assert sorted(talk.offered()) == ["one__echo"]


def test_a_picture_of_a_tool_is_stored_exported_and_imported_and_wiped(deepctl: InProcess, home: Path) -> None:
    root = layout.root(os.environ)
    profile = profiles.create(root, "alice")
    table = {"one": _local("--tools", "media", default_tools_approval_mode="approve")}
    servers = tuple(mcp_servers.parse(table, "x").values())
    with provider(ToolCalls([("one__media", {})]), Text(["done"]), Text(["again"])) as server:
        options = Options("openai-chat:loopback", f"{server.address}/v1", mcp_servers=servers)
        session_catalogue.start(profile, "main")
        for _ in range(2):
            # The second process sends the picture again from the log.
            with (
                closing(TurnRunner(options, environment=os.environ)) as running,
                profiles.lock(root, "alice", command="chat", wait=0),
                Repository.open(profiles.find(root, "alice")) as work,
            ):
                Chat(running).turn(work, "main", "go", lambda event: None)
        assert _pictures(server.requests[-1]) == [base64.b64decode(PICTURE)] * 2
    shown = deepctl("sessions", "show", "main", "--user", "alice").ok()
    assert PICTURE not in shown.stdout
    assert "first" in shown.stdout
    exported = deepctl("sessions", "export", "main", "--user", "alice").ok().stdout
    assert exported.count(PICTURE) == 2
    file = home / "session.json"
    file.write_text(exported)
    deepctl("sessions", "import", str(file), "--user", "bob").ok()
    assert deepctl("sessions", "export", "main", "--user", "bob").ok().stdout.count(PICTURE) == 2
    deepctl("wipe", "--user", "alice", "--yes").ok()
    assert not any(
        PICTURE.encode() in path.read_bytes()
        for path in Path(profile.directory).parent.rglob("alice/**/*")
        if path.is_file()
    )
