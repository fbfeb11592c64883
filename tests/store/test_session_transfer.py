"""Exports: the same bytes back from everywhere, and whatever is wrong with one is refused before anything is made."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl.errors import BadName, Damaged, DeepctlError, NewerFormat, NotFound, Refused, UsageError
from deepctl.layout import ProfilePaths
from deepctl.redaction import Redaction
from deepctl.store import log_file, session_catalogue, session_export, session_import, session_log
from deepctl.store.session_export import ExportDocument
from tests.store.scene import Scene

ODD = 'odd \udcff \u2028 \x00 \x1b[2J ü 😀 \\ " </script>'
AT = "2026-01-02T03:04:05.678901Z"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A session with a turn that was killed, results, instructions that repeat, and everything JSON can say."""
    scene = Scene(tmp_path / "a")
    scene.agent("a.txt", "one\n")
    session = scene.session()
    writer = session_log.LogWriter(session.directory, session.log, 2)
    ask = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": ODD}], "instructions": "be kind"}
    writer.message(ask)
    values = {"z": 1, "a": [1.5, -0.0, 1e-7, 10**30, True, None, {}, []], ODD: ODD, "": ""}
    writer.message({"kind": "response", "parts": [{"part_kind": "tool-call", "tool_name": "x", "args": values}]})
    result = {"part_kind": "tool-return", "tool_name": "x", "content": values}
    writer.result(result)
    writer.message({"instructions": "be kind", "parts": [result], "kind": "request"})
    writer.close()
    writer = session_log.LogWriter(session.directory, session.log, 3)
    writer.message({**ask, "instructions": "be kinder"})
    writer.result(result)
    writer.close()
    return scene


def _exported(paths: ProfilePaths, name: str = "main") -> bytes:
    return session_export.as_json(session_export.export(paths, name)).encode()


def _parse(raw: bytes) -> ExportDocument:
    return session_import.parse(raw, "file.json")


def _import(place: Path, raw: bytes, name: str | None = None) -> ProfilePaths:
    scene = Scene(place)
    session_import.take_over(scene.paths, _parse(raw), name)
    return scene.paths


def test_an_export_comes_back_as_the_same_bytes_in_another_profile(scene: Scene, tmp_path: Path) -> None:
    raw = _exported(scene.paths)
    paths = _import(tmp_path / "b", raw)
    assert _exported(paths) == raw
    assert _exported(_import(tmp_path / "c", _exported(paths))) == raw
    before, after = (
        session_catalogue.read(scene.session()),
        session_catalogue.read(session_catalogue.find(paths, "main")),
    )
    assert after.messages == before.messages
    assert after.last_turn == before.last_turn == 3
    assert after.damage == []


def test_under_another_name_only_the_name_differs(scene: Scene, tmp_path: Path) -> None:
    raw = _exported(scene.paths)
    again = _exported(_import(tmp_path / "b", raw, "other"), "other")
    before, after = json.loads(raw), json.loads(again)
    assert after["session"].pop("name") == "other"
    del before["session"]["name"], before["sha256"], after["sha256"]
    assert after == before
    assert _exported(_import(tmp_path / "c", again, "main")) == raw


def test_an_export_is_ascii_and_says_nothing_of_this_machine(scene: Scene, tmp_path: Path) -> None:
    raw = _exported(scene.paths)
    assert raw == _exported(scene.paths)
    assert raw.isascii()
    assert raw.endswith(b"}\n")
    assert str(tmp_path).encode() not in raw
    document = json.loads(raw)
    assert list(document) == ["version", "kind", "format", "session", "messages", "damaged", "sha256"]
    assert document["damaged"] == []
    checksum = document.pop("sha256")
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical).hexdigest() == checksum, "what the documentation says"


def test_an_empty_session_is_exported_and_imported(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "a")
    session_catalogue.start(scene.paths, "empty")
    raw = _exported(scene.paths, "empty")
    paths = _import(tmp_path / "b", raw)
    assert _exported(paths, "empty") == raw


def test_what_is_imported_is_no_turn_that_was_killed(scene: Scene, tmp_path: Path) -> None:
    other = Scene(tmp_path / "b")
    other.agent("mine.txt", "one\n")
    other.write("mine.txt", "edited by hand\n")
    session_import.take_over(other.paths, _parse(_exported(scene.paths)), "taken")
    other.agent("more.txt", "two\n")
    other.rewind("~1")
    assert other.files() == {"mine.txt": "edited by hand\n"}
    other.agent("x.txt", "three\n", "taken")
    assert other.last().turn == 4
    other.rewind("~1", "taken")
    assert _exported(other.paths, "taken") == _exported(
        _import(tmp_path / "c", _exported(scene.paths), "taken"), "taken"
    )


def test_indentation_and_the_order_of_keys_do_no_harm(scene: Scene, tmp_path: Path) -> None:
    raw = _exported(scene.paths)
    document = json.loads(raw)
    for other in (json.dumps(document, indent=4), json.dumps(document, sort_keys=True, separators=(",", ":"))):
        assert _parse(other.encode()) == _parse(raw)
    assert _exported(_import(tmp_path / "b", json.dumps(document, indent=1).encode())) == raw


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(scene: Scene) -> None:
    raw = _exported(scene.paths)
    whole = _parse(raw)
    chosen = random.Random(1)
    same = 0
    for position in range(len(raw)):
        for bit in chosen.sample(range(8), 2):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            try:
                found = _parse(bytes(changed))
            except (Damaged, UsageError):
                continue
            same += 1
            assert session_export.as_json(found).encode() == raw, f"bit {bit} of byte {position}"
            assert repr(found) == repr(whole)
    assert same < len(raw) // 20


def test_a_cut_anywhere_is_refused(scene: Scene) -> None:
    raw = _exported(scene.paths)
    lengths = [*range(500), *range(500, len(raw) - 1, 37), *range(len(raw) - 80, len(raw) - 1)]
    for length in lengths:
        with pytest.raises((Damaged, UsageError)) as error:
            _parse(raw[:length])
        assert error.value.exit_code == (5 if length >= 40 else 2), length
    assert _parse(raw[:-1]) == _parse(raw), "its last newline is blank"


def test_an_exchanged_line_or_byte_of_text_is_refused(scene: Scene) -> None:
    lines = _exported(scene.paths).split(b"\n")
    for wrong in (
        [lines[0], *lines[2:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:2], *lines[1:]],
    ):
        with pytest.raises(Damaged):
            _parse(b"\n".join(wrong))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "bad_file"),
        (b"hello", "bad_file"),
        (b"\xff\xfe{}", "bad_file"),
        (b"\x89PNG\r\n\x1a\n", "bad_file"),
        (b"{}", "bad_file"),
        (b"[]", "bad_file"),
        (b"null", "bad_file"),
        (b'"deepctl session"', "bad_file"),
        (b'{"kind": "something else"}', "bad_file"),
        (b'{"version": 1, "profile": "a", "sessions": [], "messages": []}', "bad_file"),
        (b"[" * 100_000, "bad_file"),
        (b'{"a":' * 100_000, "bad_file"),
        (b'{"kind": "deepctl session"', "damaged"),
        (b'{"kind": "deepctl session"}', "damaged"),
        (b'{"kind": "deepctl session", "a": \xff}', "damaged"),
        (b'{"kind": "deepctl session", "kind": "deepctl session"}', "damaged"),
        (b'{"kind": "deepctl session", "version": 2}', "newer_format"),
        (b'{"kind": "deepctl session", "version": 1, "format": 3}', "newer_format"),
        (b'{"kind": "deepctl session", "version": true, "format": 1}', "damaged"),
        (b'{"kind": "deepctl session", "version": 1, "format": "1"}', "damaged"),
        (b'{"kind": "deepctl session", "a": ' + b"[" * 100_000, "damaged"),
        (b'{"kind": "deepctl session", "a": NaN}', "damaged"),
        (b'{"kind": "deepctl session", "a": -Infinity}', "damaged"),
        (b'{"kind": "deepctl session", "a": 1e999}', "damaged"),
        (b'{"kind": "deepctl session", "a": ' + b"9" * 5000 + b"}", "damaged"),
        (b'{"kind": "deepctl session", "a": [' + b"[]," * 8_000_001 + b"0]}", "damaged"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_what_is_no_export_is_told_from_what_is_a_damaged_one(raw: bytes, code: str) -> None:
    with pytest.raises(DeepctlError) as error:
        _parse(raw)
    assert error.value.code == code
    assert error.value.exit_code == (2 if code == "bad_file" else 5)
    assert error.value.message.startswith("file.json is ")


def _sealed(document: dict[str, Any]) -> bytes:
    """A document made by hand, with the checksum that fits."""
    return json.dumps({**document, "sha256": session_export.digest(document)}).encode()


def _document() -> dict[str, Any]:
    message = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hello"}]}
    return {
        "version": 1,
        "kind": "deepctl session",
        "format": 1,
        "session": {"name": "main", "created_at": AT},
        "messages": [{"turn": 1, "at": AT, "message": message}, {"turn": 2, "at": AT, "message": message}],
        "damaged": [],
    }


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a path for a name": lambda it: it["session"].update(name="../x"),
    "an empty name": lambda it: it["session"].update(name=""),
    "a name that is none": lambda it: it["session"].update(name=["main"]),
    "a device for a name": lambda it: it["session"].update(name="nul.txt"),
    "a long name": lambda it: it["session"].update(name="a" * 65),
    "no time": lambda it: it["session"].update(created_at="yesterday"),
    "an impossible time": lambda it: it["session"].update(created_at="2026-13-01T00:00:00Z"),
    "a time with a newline": lambda it: it["session"].update(created_at=f"{AT}\n"),
    "a key too many": lambda it: it.update(more=1),
    "a key too many of the session": lambda it: it["session"].update(id="x"),
    "a key too many of a message": lambda it: it["messages"][0].update(results=1),
    "a key too few": lambda it: it.pop("damaged"),
    "no list of messages": lambda it: it.update(messages={}),
    "a message that is none": lambda it: it["messages"].append("hello"),
    "a message of another kind": lambda it: it["messages"][0]["message"].update(kind="system"),
    "a message without parts": lambda it: it["messages"][0]["message"].pop("parts"),
    "turns that go back": lambda it: it["messages"].reverse(),
    "a turn below zero": lambda it: it["messages"][0].update(turn=-1),
    "a turn that is true": lambda it: it["messages"][0].update(turn=True),
    "a turn that is half": lambda it: it["messages"][0].update(turn=1.0),
    "a huge turn": lambda it: it["messages"][1].update(turn=10**18),
    "a message at no time": lambda it: it["messages"][0].update(at=""),
    "deep nesting": lambda it: it["messages"][0]["message"].update(deep=_nested(300)),
    "damage that is none": lambda it: it["damaged"].append("x"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_document_made_by_hand_is_held_to_the_same(name: str, tmp_path: Path) -> None:
    document = _document()
    _parse(_sealed(document))
    HOSTILE[name](document)
    with pytest.raises(Damaged):
        _parse(_sealed(document))
    assert not tmp_path.joinpath("profiles").exists()


def test_too_many_messages_and_too_many_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_import, "MAX_MESSAGES", 1)
    with pytest.raises(Damaged, match="more than 1 messages"):
        _parse(_sealed(_document()))
    monkeypatch.setattr(session_import, "MAX_BYTES", 10)
    with pytest.raises(UsageError, match="more than 10 bytes"):
        _parse(_sealed(_document()))


def test_a_name_that_is_taken_is_refused_in_whatever_case(scene: Scene) -> None:
    raw = _exported(scene.paths)
    for name in (None, "main", "MAIN"):
        with pytest.raises(Refused) as error:
            session_import.take_over(scene.paths, _parse(raw), name)
        assert error.value.code == "session_exists"
        assert "--as" in str(error.value.hint)
    with pytest.raises(BadName):
        session_import.take_over(scene.paths, _parse(raw), "../x")
    assert os.listdir(scene.paths.sessions) == ["main"]


def test_damage_is_said_in_the_export_and_by_the_import(scene: Scene, tmp_path: Path) -> None:
    session = scene.session()
    path = Path(log_file.log_path(session.directory, session.log))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"turn":1', b'"turn":7')
    path.write_bytes(b"".join(lines))
    export = session_export.export(scene.paths, "main")
    assert [one.line for one in export.damaged] == [3]
    assert "line 3" in (session_export.lost_note(export) or "")
    raw = session_export.as_json(export).encode()
    assert [one["line"] for one in json.loads(raw)["damaged"]] == [3]
    other = Scene(tmp_path / "b")
    assert session_import.take_over(other.paths, _parse(raw)).lost == 1
    assert session_catalogue.read(other.session()).messages == export.messages


def test_a_last_line_that_a_kill_cut_short_is_no_damage(scene: Scene) -> None:
    raw = _exported(scene.paths)
    session = scene.session()
    with open(log_file.log_path(session.directory, session.log), "ab") as file:
        file.write(b'{"v":1,"turn":3,"at":"x","mess')
    assert _exported(scene.paths) == raw


def test_numbers_that_json_does_not_have_are_exported_as_null(scene: Scene, tmp_path: Path) -> None:
    session = session_catalogue.start(scene.paths, "numbers")
    writer = session_log.LogWriter(session.directory, session.log, 1)
    writer.message({"kind": "request", "parts": [], "a": [float("nan"), float("inf"), 1.0]})
    writer.close()
    raw = _exported(scene.paths, "numbers")
    assert json.loads(raw)["messages"][0]["message"]["a"] == [None, None, 1.0]
    assert _exported(_import(tmp_path / "b", raw), "numbers") == raw


def test_a_redacted_export_is_an_export(scene: Scene, tmp_path: Path) -> None:
    key = "ghp_" + "a1" * 20
    with scene.turn(f"use {key} in /home/alice/x"):
        pass
    session_catalogue.start(scene.paths, "sk-a1b2c3d4e5f6g7h8i9j0k")
    redaction = Redaction({"HOME": "/srv/me", "A_SECRET": "be kinder"})
    raw = session_export.as_json(session_export.redact(session_export.export(scene.paths, "main"), redaction)).encode()
    assert key.encode() not in raw
    assert b"/home/alice" not in raw
    assert b"be kinder" not in raw
    assert b"be kind" in raw
    assert redaction.secrets > 3
    assert redaction.homes > 1
    assert _exported(_import(tmp_path / "b", raw)) == raw
    assert (
        session_export.redact(session_export.export(scene.paths, "sk-a1b2c3d4e5f6g7h8i9j0k"), redaction).name
        == "redacted"
    )


def test_a_file_is_written_whole_and_private_and_never_over_another(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    mask = os.umask(0)
    try:
        assert session_export.write(str(target), b"one", replace=False) == str(target)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(Refused) as error:
        session_export.write(str(target), b"two", replace=False)
    assert error.value.code == "file_exists"
    assert target.read_bytes() == b"one"
    session_export.write(str(target), b"two", replace=True)
    assert target.read_bytes() == b"two"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_name_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    for replace in (False, True):
        session_export.write(str(tmp_path / ("ü" * 127)), b"x", replace=replace)


def test_what_is_no_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "fifo"):
        with pytest.raises(Refused):
            session_export.write(str(tmp_path / name), b"x", replace=False)
        with pytest.raises(Refused):
            session_export.write(str(tmp_path / name), b"x", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "secret").read_text() == "mine"
    for name in ("", str(tmp_path), f"{tmp_path}/", f"{tmp_path}/new/", f"{tmp_path}/no/such/x"):
        for replace in (True, False):
            with pytest.raises(UsageError):
                session_export.write(name, b"x", replace=replace)


def test_a_file_system_without_links_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", source)

    monkeypatch.setattr(os, "link", refused)
    session_export.write(str(tmp_path / "x"), b"one", replace=False)
    assert (tmp_path / "x").read_bytes() == b"one"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        session_import.read(str(tmp_path / "nothing"))
    for name in (str(tmp_path), "a\0b"):
        with pytest.raises(UsageError):
            session_import.read(name)


def test_later_formats_are_refused_whatever_else_is_in_them() -> None:
    document = {**_document(), "format": 3, "new": {}, "messages": "elsewhere"}
    with pytest.raises(NewerFormat):
        _parse(json.dumps(document).encode())
