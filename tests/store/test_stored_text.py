"""Whatever is stored: nothing of it reaches a terminal as it is, and no time or number in it ends a command as a bug.

`make soak` puts every hostile value in every place of a profile's files, `make test` some of them in some places.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deepctl import quantities
from deepctl.files import sealed_lines
from deepctl.output.render import ago
from deepctl.store import ledger
from tests.support.command import InProcess

_SCHEMAS = json.loads((Path(__file__).parents[2] / "docs" / "schemas.json").read_text())["$defs"]
_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
EVIL = "\x1b]0;x\x07\x9b31m\u202e\n"
BAD_TIMES = (
    "",
    "soon",
    "2026-13-45T99:99:99Z",
    "2026-02-30T00:00:00Z",
    "2026-01-01\x1b00:00:00Z",
    "2026-01-01T00:00:00",
    "2026-01-01T00:00:00+99:00",
    "0000-01-01T00:00:00Z",
    "२०२६-01-01T00:00:00Z",
    "2026-01-01T00:00:00Z\n",
)
_VALUES: dict[type, tuple[Any, ...]] = {
    str: (EVIL, *BAD_TIMES[2:5], 5, None, [EVIL], {EVIL: EVIL}),
    int: (EVIL, True, -1, 10**400, None, [], {}),
}
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("sessions", "list"),
    ("sessions", "show"),
    ("sessions", "search", "o"),
    ("sessions", "export"),
    ("checkpoints", "list", "--all"),
    ("checkpoints", "list", "--all", "--graph"),
    ("checkpoints", "show", "good"),
    ("checkpoints", "diff", "~1"),
    ("checkpoints", "prune", "--keep", "1", "--dry-run"),
    ("checkpoints", "prune", "--older-than", "1d", "--dry-run"),
    ("checkpoints", "rewind", "~1", "--dry-run"),
    ("checkpoints", "verify"),
    ("memory", "history"),
    ("memory", "show", "--at", "~1"),
    ("profiles", "show"),
    ("doctor",),
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
_OFTEN = re.compile(
    r"ledger (record|rewind) (created_at|at|id|kind|session|prompt|tree|turn|unkept|label)"
    r"|session (created_at|id|forked_from)|log \w* *(at|turn)$|log .*(tool_name|model_name|content|timestamp)$"
)
"""What is tried in any case: times, ids, kinds, and text that commands print."""

Place = tuple[str, Path, int, tuple[Any, ...]]


@pytest.fixture
def profile(deepctl: InProcess, home: Path) -> Path:
    """A profile with turns, tools, a labelled checkpoint, a rewind, a fork and a note by hand."""
    for arguments in (
        ("chat", "remember tea\nwrite a.txt: one"),
        ("chat", "write a.txt: two\nplan Trip: pack"),
        ("checkpoints", "save", "good"),
        ("chat", "run ls"),
        ("checkpoints", "rewind", "~1"),
        ("checkpoints", "fork", "good", "other"),
        ("memory", "add", "coffee"),
        ("chat", "write b.txt: three"),
    ):
        deepctl(*arguments, "--user", "alice").ok()
    return home / "profiles" / "alice"


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, one in items:
        yield from _leaves(one, (*path, key))


def _places(profile: Path) -> dict[str, Place]:
    """One place of every kind in the files of a profile, by what it is called."""
    found: dict[str, Place] = {}
    for path in (profile / "checkpoints" / ledger.LEDGER, *sorted(profile.glob("sessions/*/*"))):
        kind = {ledger.LEDGER: "ledger", "session.json": "session"}.get(path.name, "log")
        for number, line in enumerate(path.read_bytes().splitlines()):
            entry = sealed_lines.unseal(line)
            for place, value in _leaves(entry):
                if type(value) in _VALUES:
                    parts = entry.get("message", {}).get("parts", [])
                    part = parts[place[2]]["part_kind"] if place[:2] == ("message", "parts") and parts else ""
                    name = " ".join([kind, *(str(key) for key in place if not isinstance(key, int)), part]).strip()
                    found.setdefault(name, (name, path.relative_to(profile), number, place))
    return found


def _with(raw: bytes, number: int, place: tuple[Any, ...], value: Any) -> bytes:
    lines = raw.splitlines(keepends=True)
    entry = inner = sealed_lines.unseal(lines[number].rstrip(b"\n"))
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    lines[number] = sealed_lines.seal(entry)
    return b"".join(lines)


def _complaints(deepctl: InProcess, commands: tuple[tuple[str, ...], ...]) -> Iterator[str]:
    for command in commands:
        for more in ((), ("--json",)) if command[:2] != ("sessions", "export") else ((),):
            result = deepctl(*command, *more, "--user", "alice")
            said = result.stdout + result.stderr
            if result.code == 1 or "This is a bug" in said:
                yield f"{command} {more}: {said[-300:]}"
            if control := _CONTROL.search(said):
                yield f"{command} {more}: {control[0]!r} in {said[max(control.start() - 60, 0) :][:120]!r}"
            if more and result.stdout:
                name = " ".join(command[:2]) if " ".join(command[:2]) in _SCHEMAS else command[0]
                schema = Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": _SCHEMAS})
                yield from (
                    f"{command}: {error.message[:200]}" for error in schema.iter_errors(json.loads(result.stdout))
                )


def test_hostile_values_are_shown_escaped_and_end_no_command_as_a_bug(
    deepctl: InProcess, profile: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(profile, kept)
    chosen = random.Random(5)
    complaints: list[str] = []
    places = _places(kept)
    assert sum(_OFTEN.search(name) is not None for name in places) > 20
    for name, file, number, place in places.values():
        values: tuple[Any, ...] = _VALUES[type(_at(kept / file, number, place))]
        commands = COMMANDS
        if not _SOAK:
            if not _OFTEN.search(name):
                continue
            values = (values[0], chosen.choice(values[1:]))
            commands = tuple(chosen.sample(COMMANDS, 4))
        for value in values:
            (profile / file).write_bytes(_with((kept / file).read_bytes(), number, place, value))
            complaints += [f"{name} = {str(value)[:40]!r}: {one}" for one in _complaints(deepctl, commands)]
        shutil.copyfile(kept / file, profile / file)
    assert complaints == []


def _at(path: Path, number: int, place: tuple[Any, ...]) -> Any:
    value: Any = sealed_lines.unseal(path.read_bytes().splitlines()[number])
    for key in place:
        value = value[key]
    return value


@pytest.mark.parametrize(
    "where", ["ledger record created_at", "ledger rewind at", "session created_at", "log at"], ids=str
)
def test_a_time_that_is_none_is_an_unknown_one_for_every_command(deepctl: InProcess, profile: Path, where: str) -> None:
    for path in profile.rglob("*.json*"):
        if "checkpoints" in path.parts or "sessions" in path.parts:
            path.write_bytes(b"".join(_changed(line, where) for line in path.read_bytes().splitlines()))
    assert list(_complaints(deepctl, COMMANDS)) == []
    for command in COMMANDS:
        # A log whose line has changed is another log: what leads to a position in it is refused.
        allowed = (0, 5, 6) if where.startswith("log") else (0, 6)
        assert deepctl(*command, "--user", "alice").code in allowed, command
    listed = deepctl("checkpoints", "list", "--all", "--user", "alice", "--json").ok().json["checkpoints"]
    sessions = deepctl("sessions", "list", "--user", "alice", "--json").ok().json["sessions"]
    unknown = [one["created_at"] for one in (sessions if where.startswith("session") else listed)]
    if where in ("ledger record created_at", "session created_at"):
        assert set(unknown) == {quantities.UNKNOWN_TIME}
    old = deepctl("checkpoints", "prune", "--older-than", "1d", "--dry-run", "--user", "alice", "--json").ok().json
    assert old["removed"] == [], "a checkpoint of an unknown age is not old"
    deepctl("chat", "--user", "alice", "write c.txt: four").ok()
    if where.startswith("log"):
        deepctl("checkpoints", "repair", "--user", "alice").ok()
    deepctl("checkpoints", "verify", "--user", "alice").ok()
    exported = deepctl("sessions", "export", "--user", "alice").ok().stdout
    deepctl("sessions", "import", "-", "--as", "again", "--user", "alice", stdin=exported.encode()).ok()


def _changed(line: bytes, where: str) -> bytes:
    entry = sealed_lines.unseal(line)
    kind, *place = where.split()
    inner = entry.get(place[0]) if len(place) == 2 else entry
    fits = {"ledger": "record" in entry, "session": "created_at" in entry, "log": "turn" in entry}[kind]
    if fits and isinstance(inner, dict):
        inner[place[-1]] = "2026-13-45\x1b[31mT99:99:99Z"
    return sealed_lines.seal(entry)


@pytest.mark.parametrize("text", BAD_TIMES)
def test_what_is_no_time_is_told_from_one(text: str) -> None:
    assert not quantities.is_time(text)
    assert quantities.known_time(text) == quantities.UNKNOWN_TIME
    assert quantities.known_time(5) == quantities.UNKNOWN_TIME


@pytest.mark.parametrize("text", ["2026-01-31T09:30:00Z", "2026-01-31T09:30:00.123456Z", "9999-12-31T23:59:59Z"])
def test_a_time_stays_as_it_is(text: str) -> None:
    assert quantities.known_time(text) == text
    assert ago(text)
    assert ago(quantities.UNKNOWN_TIME) == "unknown"
