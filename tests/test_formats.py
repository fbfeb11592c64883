"""Formats carry a version: a newer one is refused, an older one is read, and no number that is none ends in a crash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout
from deepctl.errors import Damaged, NewerFormat
from deepctl.files import sealed_lines
from deepctl.layout import BadVersion, Format
from deepctl.store import pack_store, trees
from deepctl.store.index_db import Cache
from tests.samples import make
from tests.support.command import InProcess

SAMPLES = {
    "early-log": "036d4708ac9baf418c405b19c06b7b7944646417bdf059ba45533287f9df1215",
    "early-packs": "cb05e9d541351c2cec1fb28a36fa1764691fc70e060d4563203906aaa67dbb7a",
    "format-1": "9fdb560cb4ce9393828b242d80ece29232efe8e6bf6823a906d7f819c50eb8fc",
    "zstd-packs": "e4fa3df2d221ee4b2a94a858e8270f9e97cd2c902d19f129d3570570d79740aa",
}
"""The SHA-256 of each sample's manifest, which has those of its files."""

NO_NUMBERS = ["1", "", "one", -1, 0, True, False, None, 1.0, [1], {}]


def _sample(name: str, home: Path) -> Path:
    """A copy of a sample as the profile alice."""
    place = home / "profiles" / "alice"
    make.unpack(name, place)
    return place


def _contents(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def _logs(place: Path, session: str) -> list[Path]:
    return sorted((place / "sessions" / session).glob("*.jsonl"))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_what_was_written_back_then(name: str) -> None:
    written = (make.HERE / f"{name}.manifest").read_bytes()
    assert hashlib.sha256(written).hexdigest() == SAMPLES[name], "samples are never made anew: add another"
    kept = {}
    for line in written.decode().splitlines():
        _, digest, path = line.split(" ", 2)
        kept[path] = digest
    there = {str(path.relative_to(make.HERE / name)) for path in (make.HERE / name).rglob("*") if path.is_file()}
    assert there == {path for path, digest in kept.items() if digest != "-"}
    for path in there:
        assert hashlib.sha256((make.HERE / name / path).read_bytes()).hexdigest() == kept[path], path


def test_every_sample_is_tested() -> None:
    assert SAMPLES.keys() == make.SAMPLES.keys()


class TestFormat1:
    """A whole profile of 0.1.0, read, shown, rewound and continued by the code of today."""

    @pytest.fixture(autouse=True)
    def place(self, home: Path) -> Path:
        return _sample("format-1", home)

    def test_everything_is_listed_and_shown_and_nothing_is_written(self, deepctl: InProcess, place: Path) -> None:
        before = _contents(place)
        alice = ("--user", "alice", "--json")
        sessions = {one["name"]: one for one in deepctl("sessions", "list", *alice).ok().json["sessions"]}
        assert {name: one["turns"] for name, one in sessions.items()} == {"main": 4, "other": 1, "forked": 3}
        assert not any("problem" in one or one.get("damage") for one in sessions.values())
        for name in sessions:
            shown = deepctl("sessions", "show", name, *alice).ok().json
            assert shown["messages"]
            assert shown["damaged"] == []
        listed = deepctl("checkpoints", "list", "--all", *alice).ok().json
        assert listed["damaged"] == []
        kinds = {kind: sum(one["kind"] == kind for one in listed["checkpoints"]) for kind in ("manual", "rewind")}
        assert kinds == {"manual": 1, "rewind": 3}
        assert len(listed["checkpoints"]) > 15
        for one in listed["checkpoints"]:
            assert deepctl("checkpoints", "show", one["id"], *alice).ok().json["checkpoint"] == one
        good = deepctl("checkpoints", "show", "good", *alice).ok().json
        assert "notes.txt" in {file["path"] for file in good["files"]}
        assert "tea in the morning" in deepctl("memory", "show", *alice).ok().json["files"][0]["content"]
        deepctl("checkpoints", "diff", "good", *alice).ok()
        (described,) = deepctl("profiles", "list", "--json").ok().json["profiles"]
        assert (described["sessions"], "problem" in described) == (3, False)
        assert _contents(place) == before

    def test_every_byte_of_it_is_verified(self, deepctl: InProcess) -> None:
        found = deepctl("checkpoints", "verify", "--user", "alice", "--json").ok().json
        assert (found["damaged"], found["notes"]) == ([], [])
        assert found["objects"] > 20

    def test_it_is_undone_rewound_and_forked(self, deepctl: InProcess, place: Path) -> None:
        main = ("--session", "main", "--user", "alice", "--json")
        deepctl("checkpoints", "undo", *main, "--force").ok()
        assert (place / "workspace" / "notes.txt").read_text() == "three"
        assert "coffee" in (place / "workspace/.deep/memory/main/MEMORY.md").read_text()
        back = deepctl("checkpoints", "rewind", "good", *main).ok().json
        assert "large_tool_results" in " ".join(back["files"]["deleted"])
        assert (place / "workspace" / "notes.txt").read_text() == "two"
        assert (place / "workspace" / "elsewhere.txt").exists(), "another session's"
        deepctl("checkpoints", "fork", "good", "again", *main).ok()
        deepctl("checkpoints", "prune", "--keep", "1", "--user", "alice").ok()
        assert deepctl("checkpoints", "verify", "--user", "alice").code == 0

    def test_its_conversations_go_on(self, deepctl: InProcess) -> None:
        for session, turns in (("main", 4), ("other", 1), ("forked", 3)):
            said = deepctl("chat", "--user", "alice", "--session", session, "what did I say?").ok()
            assert f"can see {turns} earlier turn" in said.stdout
            assert "left out" not in said.stderr
        assert "tea in the morning" in deepctl("chat", "--user", "alice", "recall tea").ok().stdout


class TestEarlyLog:
    """The first message logs: their histories name the workspace by a path on another machine."""

    def test_a_conversation_goes_on_and_what_there_was_stays_as_it_was_written(
        self, deepctl: InProcess, home: Path
    ) -> None:
        place = _sample("early-log", home)
        (log,) = _logs(place, "main")
        before = log.read_bytes()
        assert b'"provider":"local"' in before
        shown = deepctl("sessions", "show", "main", "--user", "alice", "--json").ok().json
        assert "/tmp/deepctl-sample" not in json.dumps(shown)
        assert log.read_bytes() == before
        said = deepctl("chat", "--user", "alice", "--session", "main", "hello").ok()
        assert "can see 2 earlier turns" in said.stdout
        after = log.read_bytes()
        assert after.startswith(before), "what was written stays"
        assert b'"provider":"local"' not in after[len(before) :], "what is written now is in the form of now"
        assert deepctl("checkpoints", "verify", "--user", "alice").code == 0

    def test_the_name_of_the_workspace_is_the_one_that_agents_have(self, tmp_path: Path) -> None:
        from deepctl import LocalBackend

        entry = {"v": 1, "message": {"workspace_ref": {"provider": "local", "id": "/somewhere"}}}
        layout.bring_up(layout.LOG_FORMAT, entry, "x")
        assert entry["message"] == {"workspace_ref": LocalBackend(root_dir=str(tmp_path)).ref.__dict__}


class TestEarlyPacks:
    """The first packs, without a CRC of what is stored, and a cache of format 1."""

    @pytest.fixture(autouse=True)
    def place(self, home: Path) -> Path:
        return _sample("early-packs", home)

    def test_what_they_hold_is_read_and_rewound(self, deepctl: InProcess, place: Path) -> None:
        before = {path.name: path.read_bytes() for path in (place / "checkpoints/packs").iterdir()}
        alice = ("--user", "alice")
        files = deepctl("checkpoints", "show", "good", *alice, "--json").ok().json["files"]
        assert {"notes.txt", ".deep/memory/main/MEMORY.md"} <= {file["path"] for file in files}
        deepctl("checkpoints", "undo", "--session", "main", *alice).ok()
        assert (place / "workspace" / "more.txt").read_text() == "three"
        deepctl("checkpoints", "rewind", "good", "--session", "main", *alice).ok()
        assert not (place / "workspace" / "more.txt").exists()
        after = {path.name: path.read_bytes() for path in (place / "checkpoints/packs").iterdir()}
        assert before.items() <= after.items()

    def test_every_byte_of_them_is_verified(self, deepctl: InProcess) -> None:
        found = deepctl("checkpoints", "verify", "--user", "alice", "--json").ok().json
        assert (found["damaged"], found["notes"]) == ([], [])

    def test_a_damaged_one_is_found_out(self, place: Path) -> None:
        path = max((place / "checkpoints/packs").iterdir(), key=lambda pack: pack.stat().st_size)
        raw = path.read_bytes()
        assert pack_store.read_table(str(path))
        for position in (0, 13, len(raw) - 1, len(raw) - 20, len(raw) - 60):
            path.write_bytes(raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :])
            with pytest.raises(Damaged) as caught:
                pack_store.read_table(str(path))
            assert not isinstance(caught.value, NewerFormat), "a flipped bit is no newer format"

    def test_they_are_written_anew_in_the_form_of_now(self, deepctl: InProcess, place: Path) -> None:
        deepctl("checkpoints", "save", "--user", "alice").ok()
        deepctl("checkpoints", "prune", "--keep", "1", "--user", "alice").ok()
        sizes = [_entry_size(path) for path in (place / "checkpoints/packs").iterdir()]
        assert sizes
        assert 60 in sizes
        deepctl("checkpoints", "rewind", "good", "--session", "main", "--exact", "--user", "alice").ok()

    def test_a_cache_of_another_format_is_made_anew(self, deepctl: InProcess, place: Path) -> None:
        cache = place / "cache" / "snapshots.sqlite"
        for number in (1, 99):
            _execute(cache, f"PRAGMA user_version = {number}")
            deepctl("checkpoints", "diff", "good", "--user", "alice").ok()
            assert _execute(cache, "PRAGMA user_version") == [(number,)], "a reader writes nothing"
            deepctl("checkpoints", "save", "--user", "alice").ok()
            assert _execute(cache, "PRAGMA user_version") == [(layout.CACHE_FORMAT.current,)]
            assert _execute(cache, "SELECT count(*) FROM objects")[0][0] > 5

    def test_the_cache_of_the_sample_is_of_format_1(self, place: Path) -> None:
        path = str(place / "cache" / "snapshots.sqlite")
        assert _execute(Path(path), "PRAGMA user_version") == [(1,)]
        Cache(path).close()
        assert _execute(Path(path), "PRAGMA user_version") == [(layout.CACHE_FORMAT.current,)]


class TestZstdPacks:
    """The first packs of format 2."""

    def test_what_they_hold_is_verified_and_rewound(self, deepctl: InProcess, home: Path) -> None:
        place = _sample("zstd-packs", home)
        headers = {path.read_bytes()[:15] for path in (place / "checkpoints/packs").iterdir()}
        assert headers == {b"deepctl pack 2\n"}
        alice = ("--user", "alice", "--json")
        assert deepctl("checkpoints", "verify", *alice).ok().json["damaged"] == []
        deepctl("checkpoints", "rewind", "good", "--session", "main", *alice).ok()
        assert not (place / "workspace" / "more.txt").exists()
        deepctl("checkpoints", "rewind", "~1", "--session", "main", *alice).ok()
        assert (place / "workspace" / "notes.txt").read_text().startswith("one and the same one")


def _execute(path: Path, statement: str) -> list[Any]:
    database = sqlite3.connect(path)
    try:
        found = database.execute(statement).fetchall()
        database.commit()
    finally:
        database.close()
    return found


def _entry_size(path: Path) -> int:
    raw = path.read_bytes()
    count = int.from_bytes(raw[-48:-40], "big")
    checksum = raw[-40:-8]
    for size in (56, 60):
        table = raw[len(raw) - 48 - count * size : -48]
        if hashlib.sha256(raw[:15] + table + raw[-48:-40]).digest() == checksum:
            return size
    raise AssertionError(path)


class TestSteps:
    """The mechanism, with a format of its own."""

    @pytest.fixture
    def third(self) -> Format:
        def name_became_title(entry: layout.Entry) -> None:
            entry["title"] = entry.pop("name")

        def title_is_upper_case(entry: layout.Entry) -> None:
            entry["title"] = entry["title"].upper()

        return Format("thing", 3, {1: name_became_title, 2: title_is_upper_case}, without=1)

    def test_an_entry_takes_every_step_from_its_number_on(self, third: Format) -> None:
        entries: list[layout.Entry] = [
            {"v": 1, "name": "a"},
            {"name": "a"},
            {"v": 2, "title": "a"},
            {"v": 3, "title": "A"},
        ]
        for entry in entries:
            layout.bring_up(third, entry, "x")
            assert entry["title"] == "A"
            assert entry.get("v", 3) == 3

    def test_a_newer_one_is_refused_and_stays_as_it_is(self, third: Format) -> None:
        entry = {"v": 4, "name": "a"}
        with pytest.raises(NewerFormat, match="the place is in format 4; this deepctl reads up to format 3"):
            layout.bring_up(third, entry, "the place")
        assert entry == {"v": 4, "name": "a"}

    @pytest.mark.parametrize("number", NO_NUMBERS, ids=repr)
    def test_what_is_no_number_is_damage(self, number: object) -> None:
        for form in layout.FORMATS:
            with pytest.raises(BadVersion):
                layout.bring_up(form, {form.key: number}, "x")
            assert not layout.is_newer(form, {form.key: number})

    def test_steps_are_numbered_from_1_to_now(self) -> None:
        for form in layout.FORMATS:
            assert all(1 <= step <= form.current for step in form.steps), form

    def test_a_step_for_now_leaves_what_is_in_the_form_of_now(self) -> None:
        message = {"kind": "response", "parts": [], "workspace_ref": {"provider": "deepctl", "id": "workspace"}}
        entries: list[layout.Entry] = [{"message": message}, {"message": {"workspace_ref": None}}, {"message": 5}, {}]
        for entry in entries:
            before = json.dumps(entry)
            layout.bring_up(layout.LOG_FORMAT, whole := {"v": 1, **entry}, "x")
            assert json.dumps({key: value for key, value in whole.items() if key != "v"}) == before


def _newer_session(place: Path) -> None:
    path = place / "sessions/bad/session.json"
    path.write_bytes(sealed_lines.seal({**sealed_lines.unseal(path.read_bytes()[:-1]), "v": 2}))


def _newer_log_line(place: Path) -> None:
    (path,) = _logs(place, "bad")
    path.write_bytes(path.read_bytes() + sealed_lines.seal({"v": 3, "turn": 2, "at": "x", "thing": {}}))


def _newer_log_header(place: Path) -> None:
    (path,) = _logs(place, "bad")
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(sealed_lines.seal({**sealed_lines.unseal(first[:-1]), "v": 3}) + b"".join(rest))


def _newer_ledger(place: Path) -> None:
    path = place / "checkpoints/ledger.jsonl"
    path.write_bytes(path.read_bytes() + sealed_lines.seal({"v": 3, "thing": {}}))


def _newer_settings(place: Path) -> None:
    path = place / "profile.toml"
    path.write_text(path.read_text().replace("version = 1", "version = 2"))


Make = Callable[[Path], None]


class TestNewer:
    """A newer format is refused with exit 5, its file is not touched, and everything else goes on."""

    @pytest.fixture(autouse=True)
    def profiles(self, deepctl: InProcess, home: Path) -> Path:
        """The profile alice with the sessions `good` and `bad`, and bob's."""
        deepctl("chat", "--user", "bob", "hello").ok()
        deepctl("chat", "--user", "alice", "--session", "bad", "write a.txt: one").ok()
        deepctl("chat", "--user", "alice", "--session", "good", "write b.txt: one").ok()
        return home / "profiles"

    @pytest.mark.parametrize("make_newer", [_newer_session, _newer_log_line, _newer_log_header])
    def test_of_one_session(self, deepctl: InProcess, profiles: Path, make_newer: Make) -> None:
        make_newer(profiles / "alice")
        before = _contents(profiles / "alice/sessions/bad")
        refused = deepctl("sessions", "show", "bad", "--user", "alice", "--json")
        assert (refused.code, refused.error["code"]) == (5, "newer_format")
        assert "Update deepctl" in refused.error["hint"]
        talked = deepctl("chat", "--user", "alice", "--session", "bad", "hello", "--json")
        assert (talked.code, talked.events[-1]["code"]) == (5, "newer_format")
        listed = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
        assert {one["name"]: "in format " in one.get("problem", "") for one in listed} == {"bad": True, "good": False}
        deepctl("sessions", "show", "good", "--user", "alice").ok()
        deepctl("chat", "--user", "alice", "--session", "good", "hello").ok()
        deepctl("checkpoints", "list", "--user", "alice").ok()
        deepctl("chat", "--user", "bob", "hello").ok()
        assert _contents(profiles / "alice/sessions/bad") == before

    @pytest.mark.parametrize("make_newer", [_newer_ledger, _newer_settings])
    def test_of_a_profile(self, deepctl: InProcess, profiles: Path, make_newer: Make) -> None:
        make_newer(profiles / "alice")
        before = _contents(profiles / "alice")
        refused = deepctl("checkpoints", "save", "--user", "alice", "--json")
        assert (refused.code, refused.error["code"]) == (5, "newer_format")
        talked = deepctl("chat", "--user", "alice", "hello", "--json")
        assert (talked.code, talked.events[-1]["code"]) == (5, "newer_format")
        deepctl("sessions", "list", "--user", "alice").ok()
        deepctl("memory", "list", "--user", "alice").ok()
        listed = deepctl("profiles", "list", "--json").ok().json["profiles"]
        assert {one["name"]: "in format " in one.get("problem", "") for one in listed} == {"alice": True, "bob": False}
        deepctl("chat", "--user", "bob", "hello").ok()
        assert _contents(profiles / "alice") == before

    def test_of_config_toml(self, deepctl: InProcess, profiles: Path, tmp_path: Path) -> None:
        path = tmp_path / "config" / "config.toml"
        path.parent.mkdir()
        path.write_text('version = 2\nmodel = "offline"\n')
        for command in (("config", "show"), ("config", "set", "model", "x:y"), ("chat", "--user", "alice", "hello")):
            refused = deepctl(*command, "--json")
            assert refused.code == 5
            assert "newer_format" in refused.stdout + refused.stderr
        deepctl("sessions", "list", "--user", "alice").ok()
        assert path.read_text() == 'version = 2\nmodel = "offline"\n'

    def test_of_a_pack(self, deepctl: InProcess, profiles: Path) -> None:
        path = max((profiles / "alice/checkpoints/packs").iterdir(), key=lambda pack: pack.stat().st_size)
        raw = b"deepctl pack 3\n" + os.urandom(200)
        path.write_bytes(raw)
        with pytest.raises(NewerFormat, match="format 3"):
            pack_store.read_table(str(path))
        shutil.rmtree(profiles / "alice/cache")
        for command in (("checkpoints", "save"), ("checkpoints", "rewind", "~1"), ("checkpoints", "verify")):
            refused = deepctl(*command, "--user", "alice", "--json")
            assert (refused.code, refused.error["code"]) == (5, "newer_format"), command
        talked = deepctl("chat", "--user", "alice", "hello", "--json")
        assert (talked.code, talked.events[-1]["code"]) == (5, "newer_format")
        deepctl("checkpoints", "list", "--user", "alice").ok()
        deepctl("sessions", "show", "good", "--user", "alice").ok()
        deepctl("chat", "--user", "bob", "hello").ok()
        assert path.read_bytes() == raw

    @pytest.mark.parametrize("header", [b"deepctl pack 0\n", b"deepctl pack x\n", b"deepctl pack", b"\0" * 15, b""])
    def test_of_nothing_that_is_a_number(self, profiles: Path, header: bytes) -> None:
        path = next((profiles / "alice/checkpoints/packs").iterdir())
        path.write_bytes(header + os.urandom(60 if header else 0))
        with pytest.raises(Damaged) as caught:
            pack_store.read_table(str(path))
        assert not isinstance(caught.value, NewerFormat)

    def test_of_a_tree(self) -> None:
        with pytest.raises(NewerFormat):
            trees.decode(b"deepctl tree 2\nwhatever")
        for raw in (b"", b"deepctl tree 0\n", b"deepctl tree x\n", b"deepctl tree 1", b"deepctl pack 2\n"):
            with pytest.raises(Damaged) as caught:
                trees.decode(raw)
            assert not isinstance(caught.value, NewerFormat)


class TestNoNumber:
    """A number that is none is damage: said, contained, never a crash."""

    @pytest.fixture(autouse=True)
    def place(self, deepctl: InProcess, home: Path) -> Path:
        deepctl("chat", "--user", "alice", "--session", "bad", "write a.txt: one").ok()
        deepctl("chat", "--user", "alice", "--session", "good", "write b.txt: one").ok()
        return home / "profiles/alice"

    def test_in_a_log(self, deepctl: InProcess, place: Path) -> None:
        (path,) = _logs(place, "bad")
        raw = path.read_bytes()
        for number in NO_NUMBERS:
            line = {"v": number, "turn": 9, "at": "x", "message": {"kind": "request", "parts": []}}
            path.write_bytes(raw + sealed_lines.seal(line))
            shown = deepctl("sessions", "show", "bad", "--user", "alice", "--json").ok().json
            assert [damage["reason"] for damage in shown["damaged"]] == ["not an entry of a message log"], number
        first, *rest = raw.splitlines(keepends=True)
        path.write_bytes(sealed_lines.seal({**sealed_lines.unseal(first[:-1]), "v": True}) + b"".join(rest))
        shown = deepctl("sessions", "show", "bad", "--user", "alice", "--json").ok().json
        assert shown["messages"]
        assert shown["damaged"]

    def test_in_the_record_of_a_session(self, deepctl: InProcess, place: Path) -> None:
        path = place / "sessions/bad/session.json"
        record = sealed_lines.unseal(path.read_bytes()[:-1])
        for number in NO_NUMBERS:
            path.write_bytes(sealed_lines.seal({**record, "v": number}))
            assert deepctl("sessions", "show", "bad", "--user", "alice").code == 0, "by its only log"
        shutil.copy(_logs(place, "bad")[0], place / "sessions/bad/aaaa.jsonl")
        assert deepctl("sessions", "show", "bad", "--user", "alice").code == 0, "by the ledger"
        (place / "checkpoints/ledger.jsonl").rename(place / "ledger.jsonl")
        assert deepctl("sessions", "show", "bad", "--user", "alice").code == 5
        (place / "ledger.jsonl").rename(place / "checkpoints/ledger.jsonl")
        deepctl("chat", "--user", "alice", "--session", "good", "hello").ok()

    def test_in_the_ledger(self, deepctl: InProcess, place: Path) -> None:
        path = place / "checkpoints/ledger.jsonl"
        raw = path.read_bytes()
        for number in NO_NUMBERS:
            path.write_bytes(raw + sealed_lines.seal({"v": number, "label": {"id": "x", "label": "y"}}))
            listed = deepctl("checkpoints", "list", "--user", "alice", "--json").ok().json
            assert [one["reason"] for one in listed["damaged"]] == ["not an entry of a ledger"], number
            assert listed["checkpoints"]

    @pytest.mark.parametrize("text", ['"1"', "-1", "0", "true", "1.0", "[1]", "1979-05-27"])
    def test_in_settings(self, deepctl: InProcess, place: Path, text: str) -> None:
        path = place / "profile.toml"
        path.write_text(re.sub("^version = 1$", f"version = {text}", path.read_text(), flags=re.MULTILINE))
        before = path.read_bytes()
        for command in (("config", "show"), ("config", "set", "model", "offline"), ("chat", "hello")):
            refused = deepctl(*command, "--user", "alice")
            assert refused.code == 5, command
            assert "profile.toml has version = " in refused.stderr
        deepctl("sessions", "list", "--user", "alice").ok()
        assert path.read_bytes() == before


class TestSettingsWithoutANumber:
    """A settings file that a person wrote has no number, and is in format 1, whatever the format is by then."""

    def test_is_read_and_changed_and_gets_none(self, deepctl: InProcess, home: Path) -> None:
        deepctl("profiles", "create", "alice").ok()
        path = home / "profiles/alice/profile.toml"
        path.write_text('# mine\nmodel = "offline"\n')
        assert deepctl("config", "get", "model", "--user", "alice").ok().stdout == "offline\n"
        deepctl("config", "set", "approve", "never", "--user", "alice").ok()
        assert path.read_text() == '# mine\nmodel = "offline"\napprove = "never"\n'

    def test_is_brought_up_when_it_is_next_written(
        self, deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rename(entry: layout.Entry) -> None:
            if "modell" in entry:
                entry["model"] = entry.pop("modell")

        later = layout.SETTINGS_FORMAT._replace(current=2, steps={1: rename})
        deepctl("profiles", "create", "alice").ok()
        path = home / "profiles/alice/profile.toml"
        path.write_text('# mine\nmodell = "x:y"\n')
        monkeypatch.setattr(layout, "SETTINGS_FORMAT", later)
        assert deepctl("config", "get", "model", "--user", "alice").ok().stdout == "x:y\n"
        assert path.read_text() == '# mine\nmodell = "x:y"\n', "reading writes nothing"
        deepctl("config", "set", "approve", "never", "--user", "alice").ok()
        text = path.read_text()
        assert text.startswith("# mine\n")
        assert 'model = "x:y"' in text
        assert "version = 2" in text
        assert deepctl("config", "get", "model", "--user", "alice").ok().stdout == "x:y\n"
