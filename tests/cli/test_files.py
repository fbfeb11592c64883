"""`deepctl chat --file`, and `@path` in a prompt, as users have them: what is copied, sent, said, kept, given away."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import Command, InProcess
from tests.support.loopback import Provider, Text, provider
from tests.support.pictures import png

KEY = "sk-canary-0123456789abcdef"
ALICE = ("--user", "alice")
PNG = png(rest=bytes(range(256)) * 4)


@pytest.fixture
def workspace(home: Path) -> Path:
    return home / "profiles/alice/workspace"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "documents"
    found.mkdir()
    return found


def _openai(server: Provider, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return ("--model", "openai-chat:loopback")


def _pictures(body: dict[str, Any]) -> list[bytes]:
    return [
        base64.b64decode(item["image_url"]["url"].partition(",")[2])
        for message in body["messages"]
        if isinstance(message["content"], list)
        for item in message["content"]
        if item["type"] == "image_url"
    ]


def test_a_file_is_copied_and_shown_to_the_model(
    deepctl: InProcess, place: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "my shot.png").write_bytes(PNG)
    (place / "notes.txt").write_text("do this\n")
    monkeypatch.chdir(place)
    with provider(Text(["A cat."])) as server:
        model = _openai(server, monkeypatch)
        result = deepctl("chat", *ALICE, *model, "--file", "my shot.png", "-f", "./notes.txt", "what is this?").ok()
    assert result.stdout == "A cat.\n"
    assert result.stderr == "Created profile alice.\n"
    assert _pictures(server.requests[0]) == [PNG]
    assert "do this" in json.dumps(server.requests[0])
    assert (workspace / "my shot.png").read_bytes() == PNG
    assert stat.S_IMODE((workspace / "notes.txt").stat().st_mode) == 0o600
    shown = deepctl("sessions", "show", *ALICE).ok().stdout
    for line in ("> what is this?", '> @"my shot.png" @notes.txt', "> [image, 1.0 KiB]", "> [notes.txt, 8 B]"):
        assert line in shown.splitlines()
    assert deepctl("sessions", "list", *ALICE, "--json").ok().json["sessions"][0]["title"] == "what is this?"
    monkeypatch.chdir("/")


def test_another_name_is_told_as_an_event(deepctl: InProcess, place: Path, workspace: Path) -> None:
    deepctl("chat", *ALICE, "write a.txt: theirs").ok()
    (place / "a.txt").write_text("mine\n")
    events = deepctl("chat", *ALICE, "--json", "--file", str(place / "a.txt"), "read a-2.txt").ok().events
    notice = "The workspace already has another file of that name: the copy of a.txt is called a-2.txt."
    assert [event["message"] for event in events if event["type"] == "notice"] == [notice]
    assert [event["type"] for event in events][:2] == ["start", "notice"]
    assert "mine" in events[-1]["output"]
    assert (workspace / "a.txt").read_text() == "theirs"
    said = deepctl("chat", *ALICE, "--file", str(place / "a.txt"), "hello").ok()
    assert notice in said.stderr.splitlines()


def test_a_rewind_of_the_turn_leaves_the_users_file(deepctl: InProcess, place: Path, workspace: Path) -> None:
    deepctl("chat", *ALICE, "hello").ok()
    (place / "a.txt").write_text("mine\n")
    deepctl("chat", *ALICE, "--file", str(place / "a.txt"), "write b.txt: the agent's").ok()
    deepctl("checkpoints", "rewind", *ALICE).ok()
    assert sorted(path.name for path in workspace.glob("?.txt")) == ["a.txt"]


@pytest.mark.parametrize("bad", ["none.txt", ".", "/dev/zero", "fifo", "/dev/stdin"])
def test_one_file_that_cannot_be_had_stops_everything_before_it_begins(
    deepctl: InProcess, home: Path, place: Path, bad: str
) -> None:
    (place / "good.txt").write_text("good")
    os.mkfifo(place / "fifo")
    path = str(place / bad)
    result = deepctl("chat", *ALICE, "--file", str(place / "good.txt"), "--file", path, "hello")
    assert result.code == 2
    assert result.stdout == ""
    assert repr(path) in result.stderr
    assert not home.exists(), "not even a profile has been made"


def test_what_a_session_refuses_is_refused_before_files_are_copied(
    deepctl: InProcess, place: Path, workspace: Path
) -> None:
    deepctl("chat", *ALICE, "hello").ok()
    (place / "a.txt").write_text("mine\n")
    assert deepctl("chat", *ALICE, "--new=main", "--file", str(place / "a.txt"), "hello").code == 6
    assert not (workspace / "a.txt").exists()


def test_an_ephemeral_chat_has_the_file_and_leaves_nothing(deepctl: InProcess, home: Path, place: Path) -> None:
    (place / "a.txt").write_text("mine\n")
    result = deepctl("chat", "--ephemeral", "--file", str(place / "a.txt"), "read a.txt").ok()
    assert "mine" in result.stdout
    assert not home.exists()


def test_what_is_piped_in_names_no_files(deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deepctl("chat", *ALICE, "write secret.txt: hidden words\nwrite open.txt: shown words").ok()
    deepctl("sessions", "delete", "main", "--yes", *ALICE).ok()
    with provider(Text(["Fine."])) as server:
        model = _openai(server, monkeypatch)
        deepctl("chat", *ALICE, *model, "see @open.txt", stdin=b"read @secret.txt and @open.txt\n").ok()
    sent = json.dumps(server.requests[0])
    assert "shown words" in sent
    assert "hidden words" not in sent


def test_what_the_rules_deny_is_not_sent_and_the_user_is_told(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepctl("chat", *ALICE, "write private.txt: hidden words").ok()
    deepctl("sessions", "delete", "main", "--yes", *ALICE).ok()
    with open(home / "profiles/alice/profile.toml", "a") as settings:
        settings.write('\n[permissions.read]\nrules = [{ pattern = "private*", action = "deny" }]\n')
    with provider(Text(["Fine."])) as server:
        result = deepctl("chat", *ALICE, *_openai(server, monkeypatch), "see @private.txt").ok()
    assert "hidden words" not in json.dumps(server.requests[0])
    assert result.stderr == "private.txt is not sent: the rules of this profile do not allow reading it.\n"


def test_a_prompt_from_a_script_reads_nothing_outside_the_workspace_and_says_so(
    deepctl: InProcess, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "a.txt").write_text("hidden words")
    monkeypatch.setenv("HOME", str(place))
    with provider(Text(["Fine."]), repeat_last=True) as server:
        model = _openai(server, monkeypatch)
        for how in ((), ("--ephemeral",)):
            events = deepctl("chat", *ALICE, *model, *how, "--json", f"see @~/a.txt and @{place}/a.txt").ok().events
            (notice,) = (event["message"] for event in events if event["type"] == "notice" and "@~" in event["message"])
            assert notice.startswith("Outside the workspace, so sent unchanged: @~/a.txt")
        assert "hidden words" not in json.dumps(server.requests)


def test_a_large_picture_survives_everything_that_is_done_with_a_session(
    deepctl: InProcess, home: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = png(rest=os.urandom((2 << 20) - 33))
    (place / "large.png").write_bytes(picture)
    with provider(Text(["Large."]), Text(["Yes."]), Text(["Again."])) as server:
        model = _openai(server, monkeypatch)
        deepctl("chat", *ALICE, *model, "--file", str(place / "large.png"), "remember tea?").ok()
        deepctl("chat", *ALICE, *model, "really?").ok()
        assert "> [image, 2.0 MiB]" in deepctl("sessions", "show", *ALICE).ok().stdout
        assert len(deepctl("sessions", "show", "--full", *ALICE).ok().stdout) < 5000
        assert len(deepctl("sessions", "export", "--format", "markdown", *ALICE).ok().stdout) < 5000
        matches = deepctl("sessions", "search", "tea", *ALICE, "--json").ok().json["matches"]
        assert [match["text"] for match in matches] == ["remember tea?"]

        export = place / "session.json"
        for options in ((), ("--redact",)):
            deepctl("sessions", "export", *ALICE, *options, "--output", str(export), "--force").ok()
            deepctl("sessions", "import", str(export), "--user", "bob", "--as", f"copy{len(options)}").ok()
        before, after = (
            [entry["message"] for entry in deepctl("sessions", "show", *who, "--json").ok().json["messages"]]
            for who in (ALICE, ("copy0", "--user", "bob"))
        )
        assert before == after
        deepctl("chat", "--user", "bob", "--session", "copy1", *model, "and now?").ok()
    assert [_pictures(body) for body in server.requests] == [[picture]] * 3
    archive = str(place / "alice.tar.gz")
    deepctl("profiles", "export", archive, *ALICE).ok()
    deepctl("profiles", "import", archive, "--as", "carol").ok()
    assert "[image, 2.0 MiB]" in deepctl("sessions", "show", "--user", "carol").ok().stdout
    assert deepctl("checkpoints", "verify", *ALICE).code == 0
    deepctl("memory", "add", "tea is green", *ALICE).ok()
    deepctl("memory", "forget", "tea is green", "--purge", "--yes", *ALICE).ok()
    deepctl("checkpoints", "rewind", *ALICE).ok()
    deepctl("checkpoints", "undo", *ALICE).ok()
    assert "[image, 2.0 MiB]" in deepctl("sessions", "show", *ALICE).ok().stdout


def test_ctrl_c_while_a_file_is_copied_leaves_nothing_of_it(
    process: Command, home: Path, place: Path, workspace: Path
) -> None:
    with open(place / "large", "wb") as file:
        file.truncate(100 << 20)
    process("chat", *ALICE, "hello").ok()
    files = [option for _ in range(40) for option in ("--file", str(place / "large"))]
    running = process.start("chat", *ALICE, *files, "hello")
    until = time.monotonic() + 30
    while not list((home / "profiles/alice").glob(".attach-*")) and time.monotonic() < until:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    assert running.wait(30) == 130
    assert list((home / "profiles/alice").glob(".attach-*")) == []
    assert not (workspace / "large").exists()
