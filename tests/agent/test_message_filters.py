"""No message of a conversation makes this machine fetch anything, whatever way the message came in."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import (
    BinaryContent,
    ImageUrl,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ToolReturnPart,
    UploadedFile,
    UserPromptPart,
)
from pydantic_ai.models.test import TestModel

from deepctl.agent import media_filter, mentions, message_filters
from deepctl.agent.checkpoint_stores import new_checkpoint
from deepctl.agent.file_checkpoint_store import FileCheckpointStore
from deepctl.files import sealed_lines
from deepctl.store import session_log
from deepctl.store.log_file import Message
from tests.domain.test_hostile_archives import START, Piece, directory, file, forged
from tests.support.command import InProcess, Result
from tests.support.loopback import Provider, Text, provider

AT = "2026-01-01T00:00:00.000000Z"
LOCAL = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://10.1.2.3/x.png",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00::1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://localhost/",
    "http://LOCALHOST:8080/",
    "http://localhost./",
    "http://a.localhost/",
    "http://router/",
    "http://router.lan/",
    "http://nas.local/",
    "http://metadata.google.internal/",
    "http://x.home.arpa/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1#@example.com/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com:80\\@127.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://①②⑦.0.0.1/",
    "http://127。0。0。1/",
    "http:///x",
    "http://",
    " http://example.com/",
    "http://exa\nmple.com/",
    "http://example.com:99999/",
    "//example.com/",
    "/etc/passwd",
    "file:///etc/passwd",
    "ftp://example.com/",
    "s3://bucket/key",
    "gs://bucket/key",
    "data:image/png;base64,AAAA",
    "",
]
PUBLIC = [
    "https://example.com/x.png",
    "HTTPS://Example.COM:8443/x.png?a=b#c",
    "https://example.com./x.png",
    "http://93.184.216.34/x.png",
    "http://[2606:2800:220:1:248:1893:25c8:1946]/x.png",
    "https://xn--bcher-kva.example/x.png",
]


@pytest.mark.parametrize("url", LOCAL)
def test_an_address_that_is_not_plainly_public_is_not(url: str) -> None:
    assert not message_filters.is_public(url)
    assert message_filters.reason(ImageUrl(url=url), TestModel()) is not None


@pytest.mark.parametrize("url", PUBLIC)
def test_a_public_address_is_passed_on_by_a_client_that_does_so_and_never_with_force(url: str) -> None:
    assert message_filters.is_public(url)
    assert message_filters.reason(ImageUrl(url=url), TestModel()) is None
    assert message_filters.reason(ImageUrl(url=url)) is not None, "of an unknown client nobody can tell"
    for force in (True, "allow-local"):
        assert message_filters.reason(ImageUrl(url=url, force_download=force), TestModel()) is not None
    assert message_filters.reason(UploadedFile(file_id="f", provider_name="openai"), TestModel()) is not None


def test_files_are_left_out_however_deep_they_are_and_all_else_stays_the_very_same() -> None:
    bad = ImageUrl(url="http://127.0.0.1/x.png")
    good = ImageUrl(url="https://example.com/x.png")
    model = TestModel()
    deep = ToolReturnPart("t", {"a": [good, {"b": (bad, "text")}], "c": 1}, "1")
    message = ModelRequest([UserPromptPart(["look", bad, good]), UserPromptPart("plain"), deep])
    changed, count = message_filters.without_files(message, model)
    assert count == 2
    parts: list[Any] = list(changed.parts)
    prompt, plain, returned = parts
    assert prompt.content[0] == "look"
    assert prompt.content[2] is good
    assert prompt.content[1].metadata == {"deepctl": mentions.METADATA}
    assert plain is message.parts[1]
    assert returned.content["a"][0] is good
    assert "left out" in returned.content["a"][1]["b"][0]
    assert message_filters.without_files(changed, model) == (changed, 0)
    assert message_filters.without_files(changed, model)[0] is changed


def test_a_file_in_a_tool_result_that_a_model_cannot_be_sent_is_left_out_like_one_of_a_prompt() -> None:
    video = BinaryContent(b"x", media_type="video/mp4")
    message = ModelRequest([ToolReturnPart("t", ["text", video], "1"), UserPromptPart("and now?")])
    (sent,) = media_filter.selected([message], TestModel()).messages
    returned: Any = sent.parts[0]
    assert returned.content[0] == "text"
    assert "video/mp4 is left out" in returned.content[1]


class Trap:
    """A server in this machine's own network, which must not be asked for anything."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.end_headers()
                self.wfile.write(b"\x89PNG\r\n\x1a\nsecret")

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.stop()


def _items(address: str) -> list[dict[str, Any]]:
    """Every kind of file by address, with every way to have it fetched."""
    kinds = {
        "image-url": ("png", "image/png"),
        "document-url": ("txt", "text/plain"),
        "audio-url": ("mp3", "audio/mpeg"),
    }
    kinds["video-url"] = ("mp4", "video/mp4")
    found: list[dict[str, Any]] = []
    for kind, (ending, media_type) in kinds.items():
        for force in (False, True, "allow-local"):
            url = f"{address}/{kind}-{force}.{ending}"
            found.append({"kind": kind, "url": url, "force_download": force, "media_type": media_type})
    found.append({"kind": "document-url", "url": "s3://bucket/key.pdf", "media_type": "application/pdf"})
    found.append({"kind": "uploaded-file", "file_id": "file-1", "provider_name": "openai", "media_type": "image/png"})
    return found


def conversation(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A turn that has them in its prompt, in a tool's result, and deep in one."""
    call = {"part_kind": "tool-call", "tool_name": "read_file", "args": {}, "tool_call_id": "c"}
    returned = {
        "part_kind": "tool-return",
        "tool_name": "read_file",
        "tool_call_id": "c",
        "content": {"files": items, "deep": [{"er": items}]},
    }
    return [
        {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": ["look at these", *items]}]},
        {"kind": "response", "parts": [call]},
        {"kind": "request", "parts": [returned]},
        {"kind": "response", "parts": [{"part_kind": "text", "content": "I looked."}]},
    ]


def session_of(messages: list[dict[str, Any]], created_at: str = AT, at: str = AT) -> list[Piece]:
    """A session of an archive, with these messages; `at` is when its logs say they were written."""
    first, head = "a" * 16, "b" * 16
    raw = sealed_lines.seal({"v": 2, "log": first, "parent": None, "at": at})
    raw += b"".join(session_log.lines([Message(1, at, message) for message in messages]))
    parent = {"log": first, "offset": len(raw)}
    record = {"v": 1, "id": "c" * 32, "created_at": created_at, "log": head}
    return [
        directory("sessions/main"),
        file("sessions/main/session.json", sealed_lines.seal(record)),
        file(f"sessions/main/{first}.jsonl", raw),
        file(f"sessions/main/{head}.jsonl", sealed_lines.seal({"v": 2, "log": head, "parent": parent, "at": at})),
    ]


class Door:
    """The ways by which a conversation comes into the profile `bob`."""

    def __init__(self, deepctl: InProcess, home: Path, place: Path) -> None:
        self.deepctl = deepctl
        self.home = home
        self.place = place

    def archive(self, messages: list[dict[str, Any]]) -> None:
        pieces = list(START)
        pieces[4:4] = session_of(messages)
        (self.place / "a.tgz").write_bytes(forged(pieces))
        self.deepctl("profiles", "import", str(self.place / "a.tgz"), "--as", "bob").ok()

    def session(self, messages: list[dict[str, Any]]) -> None:
        from deepctl.store import session_export

        export = session_export.ExportDocument("main", AT, [Message(1, AT, message) for message in messages])
        (self.place / "main.json").write_text(session_export.as_json(export))
        self.deepctl("sessions", "import", str(self.place / "main.json"), "-u", "bob").ok()

    def pydantic_deep(self, messages: list[dict[str, Any]]) -> None:
        (self.place / "foreign").mkdir()
        kept = {"id": "0-1", "label": "x", "turn": 1, "created_at": AT, "metadata": {}, "messages": messages}
        (self.place / "foreign" / "0-1.json").write_text(json.dumps({**kept, "message_count": len(messages)}))
        self.deepctl("profiles", "create", "bob").ok()
        self.deepctl("checkpoints", "import", str(self.place / "foreign"), "-u", "bob").ok()

    def library(self, messages: list[dict[str, Any]]) -> None:
        self.deepctl("profiles", "create", "bob").ok()
        store = FileCheckpointStore(self.home / "profiles" / "bob" / "checkpoints")
        asyncio.run(store.save(new_checkpoint("kept", 1, ModelMessagesTypeAdapter.validate_python(messages))))
        self.deepctl("checkpoints", "fork", "kept", "main", "-u", "bob").ok()


@pytest.fixture
def door(deepctl: InProcess, home: Path, tmp_path: Path) -> Door:
    return Door(deepctl, home, tmp_path)


MODELS = ("openai-chat:loopback", "openai-responses:loopback", "anthropic:loopback")


def _chat(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, server: Provider, model: str) -> Result:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.address)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-none")
    return deepctl("chat", "-u", "bob", "--model", model, "and now?")


@pytest.mark.parametrize("way", ["archive", "session", "pydantic_deep", "library"])
def test_nothing_is_fetched_for_a_conversation_whatever_way_it_came_in(
    door: Door, trap: Trap, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    items = _items(trap.address)
    if way == "session":
        # It refuses this at once.
        items = [item for item in items if item.get("force_download") != "allow-local"]
    enter: Callable[[list[dict[str, Any]]], None] = getattr(door, way)
    enter(conversation(items))
    for model in MODELS if way == "archive" else MODELS[:1]:
        with provider(Text(["Fine."])) as server:
            said = _chat(door.deepctl, monkeypatch, server, model).ok()
        (sent,) = server.requests
        assert json.dumps(sent).count("left out here") == 3 * len(items)
        assert trap.address not in json.dumps(sent)
        assert "look at these" in json.dumps(sent)
        assert f"{3 * len(items)} files with an address left out" in said.stderr
    assert trap.requests == []


def test_a_picture_of_the_public_internet_is_still_passed_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    address = "https://example.com/x.png"
    item = {"kind": "image-url", "url": address, "media_type": "image/png"}
    door.session(conversation([item]))
    for model in MODELS:
        with provider(Text(["Fine."])) as server:
            said = _chat(door.deepctl, monkeypatch, server, model).ok()
        assert address in json.dumps(server.requests)
        assert "with an address" not in said.stderr


def test_a_document_that_a_client_would_fetch_itself_is_left_out_for_that_client(
    door: Door, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        {"kind": "document-url", "url": "https://example.com/x.txt", "media_type": "text/plain"},
        {"kind": "audio-url", "url": "https://example.com/x.mp3", "media_type": "audio/mpeg"},
        {"kind": "video-url", "url": "https://example.com/x.mp4", "media_type": "video/mp4"},
    ]
    door.session(conversation(items))
    for model in MODELS:
        with provider(Text(["Fine."])) as server:
            _chat(door.deepctl, monkeypatch, server, model).ok()
        assert json.dumps(server.requests).count("left out here") == 9


def test_a_conversation_that_names_another_workspace_goes_on(door: Door) -> None:
    messages = conversation([])
    messages[1]["workspace_ref"] = {"provider": "elsewhere", "id": "x"}
    door.session(messages)
    door.deepctl("chat", "-u", "bob", "hello").ok()
