"""The offer to attach pictures whose paths are pasted into a prompt."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from deepctl.cli.repl import named_files
from tests.support.loopback import Text, provider
from tests.support.pictures import png
from tests.support.terminal import Terminal

PNG = png(rest=bytes(range(256)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "my shots"
    found.mkdir()
    for name in ("a.png", "it's (1).png", "Shot 3.04\u202fPM.PNG", "100%#1?.png"):
        (found / name).write_bytes(PNG)
    (found / "text.png").write_text("no picture")
    (found / "raw").write_bytes(PNG)
    os.mkfifo(found / "fifo.png")
    (found / "dir.png").mkdir()
    return found


@pytest.mark.parametrize("name", ["a.png", "it's (1).png", "Shot 3.04\u202fPM.PNG", "100%#1?.png"])
def test_a_path_is_found_in_each_spelling_of_terminals(place: Path, name: str) -> None:
    path = str(place / name)
    quoted = "'" + path.replace("'", "'\\''") + "'"
    escaped = "".join(f"\\{character}" if character in " '()?#" else character for character in path)
    double = f'"{path}"'
    for word in (quoted, escaped, double, f"file://{quote(path)}", f"file://localhost{quote(path)}"):
        for prompt in (
            word,
            f"{word} ",
            f"isn't this {word} odd? It isn't.",
            f"see ({word}).",
            f"two\nlines {word}, ok",
        ):
            assert named_files.pictures_in(prompt) == [path], prompt
    assert named_files.pictures_in(f" {path} ") == [path]
    assert named_files.pictures_in(f"what is this?\n{path}") == [path]


def test_several_are_found_in_their_order_and_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    one, two = str(place / "a.png"), str(place / "it's (1).png")
    prompt = f"~/a.png \"{two}\" '{one}'"
    assert named_files.pictures_in(prompt) == [one, two]


@pytest.mark.parametrize(
    "prompt",
    ["a.png", "./a.png", "~/text.png", "~/raw", "~/fifo.png", "~/dir.png", "~/none.png", "@~/a.png", "http://h/a.png",
     "file://host/a.png", "file://[/a.png", "~/a.pngx", "x~/a.png", "\"~/a.png", "see\n\n<stdin>\n~/a.png\n</stdin>",
     "/", "~nobody/a.png"],
)  # fmt: skip
def test_other_words_are_no_pictures(place: Path, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.chdir(place)
    assert named_files.pictures_in(prompt) == []
    monkeypatch.chdir("/")


def test_searching_takes_linear_time() -> None:
    begun = time.monotonic()
    for piece in ("'", '"', "\\", "' ", '/"', "/a.png'", "\\' ", "/x.", "file://"):
        assert named_files.pictures_in(piece * 100_000) == []
    assert time.monotonic() - begun < 5


def _pictures(body: dict[str, Any]) -> list[bytes]:
    content = body["messages"][-1]["content"]
    return [
        base64.b64decode(item["image_url"]["url"].partition(",")[2])
        for item in (content if isinstance(content, list) else [])
        if item["type"] == "image_url"
    ]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    with provider(Text(["Fine."]), repeat_last=True) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        model = ("--model", "openai-chat:gpt-4o")
        opened = Terminal("chat", "--user", "alice", "--sandbox", "none", *model, columns=150, rows=40)
        opened.requests = server.requests  # type: ignore[attr-defined]
        yield opened
        opened.close()


def test_a_pasted_picture_is_attached_after_a_yes_and_a_no_is_remembered(
    terminal: Terminal, place: Path, home: Path
) -> None:
    question = "Attach {} (289 B) to the prompt? [y/N/never]"
    (place / "b.png").write_bytes(PNG[:-1] + b"x")
    (place / "c.png").write_bytes(PNG)
    terminal.prompt()
    terminal.type(f"\x1b[200~'{place}/a.png' \x1b[201~what is this?\r")
    terminal.expect(question.format("a.png"))
    terminal.type("y\r")
    terminal.prompt()
    terminal.type(f"and {place}/b.png\r".replace(" shots", "\\ shots"))
    terminal.expect(question.format("b.png"))
    terminal.type("\r")
    terminal.prompt()
    terminal.type(f"{place}/b.png\r")
    terminal.prompt()
    terminal.type(f"{place}/c.png\r")
    terminal.expect(question.format("c.png"))
    terminal.type("\x03")
    terminal.prompt(f"{place}/c.png")
    terminal.type("\r")
    terminal.expect(question.format("c.png"), times=2)
    terminal.type("never\r")
    terminal.prompt()
    terminal.type(f"'{place}/it'\\''s (1).png'\r")
    terminal.prompt()
    assert terminal.leave() == 0
    requests = terminal.requests  # type: ignore[attr-defined]
    assert [_pictures(body) for body in requests] == [[PNG], [], [], [], []]
    assert sorted(path.name for path in (home / "profiles/alice/workspace").glob("*.png")) == ["a.png"]
