"""docs/schemas.json describes what every command prints with `--json`: all of it, and nothing that is not there."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.command import InProcess, Result
from tests.support.prepared import prepare
from tests.support.tree import commands

_SCHEMAS = json.loads((Path(__file__).parent.parent / "docs" / "schemas.json").read_text())
_WITHOUT_JSON: frozenset[str] = frozenset()
"""Commands that print nothing a script could want as JSON."""


def _closed(schema: Any) -> Any:
    """The schema with every object closed: a key that it does not describe is an error."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    if found.get("type") == "object" and "properties" in found and found["properties"].keys() >= {"kind", "parts"}:
        return found
    if "properties" in found and "required" in found and "additionalProperties" not in found:
        found["unevaluatedProperties" if "allOf" in found else "additionalProperties"] = False
    return found


_STRICT = _closed(copy.deepcopy(_SCHEMAS))


def _check(command: str, document: Any) -> None:
    """`document` is as described; raises `ValidationError`."""
    Draft202012Validator({"$ref": f"#/$defs/{command}", "$defs": _SCHEMAS["$defs"]}).validate(document)
    Draft202012Validator({"$ref": f"#/$defs/{command}", "$defs": _open_notebook(_STRICT["$defs"])}).validate(document)


def _open_notebook(definitions: dict[str, Any]) -> dict[str, Any]:
    """Definitions that others extend by `allOf` stay open; the extension is closed."""
    for name in ("notebook",):
        definitions[name].pop("additionalProperties", None)
    return definitions


class World:
    """A profile in which something has happened, and a directory for files that commands are given."""

    def __init__(self, deepctl: InProcess, directory: Path) -> None:
        self.deepctl = deepctl
        self.directory = directory

    def run(self, *arguments: str) -> Result:
        return self.deepctl(*arguments).ok()

    def fill(self) -> None:
        self.run("chat", "--user", "alice", "remember I like tea\nwrite a.txt: one")
        self.run("chat", "--user", "alice", "write a.txt: two\nplan Trip: pack; go")
        self.run("checkpoints", "save", "good", "--user", "alice")
        self.run("chat", "--user", "alice", "write b.bin: three")

    def exported(self, *arguments: str) -> str:
        path = str(self.directory / "exported")
        self.run(*arguments, path)
        return path


@pytest.fixture
def world(deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("VISUAL", "sed -i s/tea/coffee/")
    made = World(deepctl, tmp_path)
    prepare(home, "schemas", made.fill)
    return made


_Runs = dict[str, list[Callable[[World], tuple[str, ...]]]]
_A = ("--user", "alice", "--json")


def _say(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    return lambda world: (*arguments, *_A)


def _after(*before: str) -> Callable[..., Callable[[World], tuple[str, ...]]]:
    """A run after another command has done its work."""

    def then(*arguments: str) -> Callable[[World], tuple[str, ...]]:
        def run(world: World) -> tuple[str, ...]:
            world.run(*before, "--user", "alice")
            return (*arguments, *_A)

        return run

    return then


def _foreign_store(world: World) -> tuple[str, ...]:
    """What pydantic-deep would have kept: one checkpoint that can be read, and one that cannot."""
    directory = world.directory / "foreign"
    directory.mkdir()
    kept = {"id": "0-1", "label": "turn-1", "turn": 1, "created_at": "2026-01-01T10:00:00+00:00", "metadata": {}}
    said = {
        "kind": "request",
        "parts": [{"part_kind": "user-prompt", "content": "hi", "timestamp": kept["created_at"]}],
    }
    (directory / "0-1.json").write_text(json.dumps({**kept, "message_count": 1, "messages": [said]}))
    (directory / "bad.json").write_text("{")
    return ("checkpoints", "import", str(directory), *_A)


def _damaged_profile(world: World) -> tuple[str, ...]:
    """A repair that has something to mend, to lose and to put aside."""
    path = Path(os.environ["DEEPCTL_HOME"]) / "profiles" / "alice" / "checkpoints" / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"#" * 40 + lines[0][40:] + b"".join(lines[1:]))
    return ("checkpoints", "repair", *_A)


def _untrusted(*arguments: str) -> Callable[[World], tuple[str, ...]]:
    """A run in a profile with imported settings that wait for a yes."""

    def run(world: World) -> tuple[str, ...]:
        waiting = Path(os.environ["DEEPCTL_HOME"], "profiles", "alice", "untrusted.toml")
        waiting.write_text('sandbox = "none"\n[mcp_servers.h]\ncommand = "x"\nstartup_timeout_sec = 1.5\n')
        return (*arguments, *_A)

    return run


_RUNS: _Runs = {
    "checkpoints list": [_say("checkpoints", "list"), _say("checkpoints", "list", "--all", "--graph")],
    "checkpoints show": [_say("checkpoints", "show", "good")],
    "checkpoints diff": [
        _say("checkpoints", "diff"),
        _say("checkpoints", "diff", "~2"),
        _say("checkpoints", "diff", "~2", "good", "--stat"),
    ],
    "checkpoints save": [_say("checkpoints", "save"), _say("checkpoints", "save", "named")],
    "checkpoints label": [_say("checkpoints", "label", "~1", "before"), _say("checkpoints", "label", "good", "")],
    "checkpoints rewind": [
        _say("checkpoints", "rewind"),
        _say("checkpoints", "rewind", "~2", "--dry-run"),
        _say("checkpoints", "rewind", "~1", "--only", "files", "--exact"),
    ],
    "checkpoints undo": [
        _after("checkpoints", "rewind")("checkpoints", "undo"),
        _after("checkpoints", "rewind")("checkpoints", "undo", "--dry-run"),
    ],
    "checkpoints fork": [_say("checkpoints", "fork", "good", "other")],
    "checkpoints remove": [_say("checkpoints", "remove", "~2", "--dry-run"), _say("checkpoints", "remove", "~2")],
    "checkpoints prune": [_say("checkpoints", "prune", "--keep", "1", "--older-than", "1d")],
    "checkpoints verify": [_say("checkpoints", "verify")],
    "checkpoints repair": [_say("checkpoints", "repair", "--dry-run"), _damaged_profile],
    "checkpoints import": [_foreign_store],
    "sessions list": [_say("sessions", "list")],
    "sessions show": [_say("sessions", "show"), _say("sessions", "show", "--full")],
    "sessions rename": [_say("sessions", "rename", "main", "first")],
    "sessions delete": [
        _say("sessions", "delete", "main", "--dry-run"),
        _say("sessions", "delete", "main", "--yes"),
        _after("checkpoints", "fork", "good", "other")("sessions", "delete", "main", "--yes"),
    ],
    "sessions search": [
        _say("sessions", "search", "tea"),
        _say("sessions", "search", "tw.", "--regex", "-C", "1", "--role", "tool"),
        _say("sessions", "search", "nothing-like-it"),
    ],
    "sessions export": [
        _say("sessions", "export"),
        _say("sessions", "export", "--format", "markdown", "--redact"),
        lambda world: ("sessions", "export", "--output", str(world.directory / "out.json"), "--redact", *_A),
    ],
    "sessions import": [
        lambda world: (
            "sessions",
            "import",
            world.exported("sessions", "export", "--user", "alice", "--output"),
            "--as",
            "again",
            *_A,
        )
    ],
    "memory show": [_say("memory", "show"), _say("memory", "show", "--at", "good")],
    "memory list": [_say("memory", "list")],
    "memory add": [_say("memory", "add", "by hand"), _say("memory", "add", "x", "--file", "trip")],
    "memory edit": [_say("memory", "edit")],
    "memory search": [_say("memory", "search", "tea", "-C", "1")],
    "memory forget": [
        _say("memory", "forget", "tea", "--dry-run"),
        _say("memory", "forget", "tea", "--yes"),
        _say("memory", "forget", "tea", "--purge", "--dry-run"),
        _say("memory", "forget", "tea", "--purge", "--yes"),
    ],
    "memory history": [_say("memory", "history"), _after("memory", "add", "x")("memory", "history")],
    "memory diff": [_say("memory", "diff"), _say("memory", "diff", "~3"), _say("memory", "diff", "~2", "good")],
    "profiles list": [lambda world: ("profiles", "list", "--json")],
    "profiles show": [_say("profiles", "show")],
    "profiles create": [lambda world: ("profiles", "create", "bob", "--json")],
    "profiles rename": [lambda world: ("profiles", "rename", "alice", "bob", "--json")],
    "profiles export": [
        lambda world: ("profiles", "export", str(world.directory / "archive"), *_A),
    ],
    "profiles import": [
        lambda world: (
            "profiles",
            "import",
            world.exported("profiles", "export", "--user", "alice"),
            "--as",
            "bob",
            "--json",
        ),
    ],
    "profiles trust": [_say("profiles", "trust"), _untrusted("profiles", "trust", "--yes")],
    "wipe": [
        _say("wipe", "--dry-run"),
        _say("wipe", "--yes"),
        _say("wipe", "--only", "memory,plans", "--yes"),
        lambda world: ("wipe", "--all", "--dry-run", "--json"),
    ],
    "profiles path": [_say("profiles", "path")],
    "sandbox show": [_say("sandbox", "show")],
    "sandbox remove": [],  # needs Docker: tests/sandbox/test_containers.py
    "models": [_say("models"), lambda world: ("models", "--all", "--json")],
    "config show": [_say("config", "show"), _untrusted("config", "show"), lambda world: ("config", "show", "--json")],
    "config get": [_say("config", "get", "model")],
    "config set": [_say("config", "set", "model", "offline"), _say("config", "set", "limits.processes", "99")],
    "config unset": [_after("config", "set", "model", "offline")("config", "unset", "model")],
    "config path": [_say("config", "path"), lambda world: ("config", "path", "--json")],
    "doctor": [],  # below: it may find something
    "chat": [],  # below: it prints several
}


def test_every_command_has_a_schema_and_a_run_here() -> None:
    there = set(commands()) - _WITHOUT_JSON
    assert there <= set(_SCHEMAS["$defs"]), "commands without a schema"
    assert there == set(_RUNS), "commands that nothing here runs, or the other way round"


def test_the_schemas_are_schemas_and_all_references_lead_somewhere() -> None:
    Draft202012Validator.check_schema(_SCHEMAS)
    text = json.dumps(_SCHEMAS)
    for name in {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}:
        assert name in _SCHEMAS["$defs"], name


@pytest.mark.parametrize(
    ("command", "number"), [(command, number) for command, runs in _RUNS.items() for number in range(len(runs))]
)
def test_a_document_is_as_described(world: World, command: str, number: int) -> None:
    arguments = _RUNS[command][number](world)
    assert " ".join(arguments).startswith(command)
    result = world.run(*arguments)
    assert not result.stderr, "with --json, nothing else is said"
    _check(command, result.json)


def test_events_of_a_chat_are_as_described(world: World) -> None:
    result = world.deepctl("chat", "--json", "--user", "alice", "write c.txt: x\nread nothing")
    types = set()
    for event in result.events:
        _check("chat", event)
        types.add(event["type"])
    assert types == {"start", "text", "tool_call", "tool_result", "checkpoint", "result"}
    failed = world.deepctl("chat", "--json", "--user", "alice", "--model", "nonsense:x", "hello")
    _check("chat", failed.events[-1])
    assert failed.events[-1]["type"] == "error"


def test_an_ephemeral_chat_is_described_too(deepctl: InProcess) -> None:
    for event in deepctl("chat", "--json", "--ephemeral", "hello").events:
        _check("chat", event)


def test_doctor_is_as_described_whatever_it_finds(world: World) -> None:
    found = world.deepctl("doctor", *_A)
    assert found.code in (0, 5)
    _check("doctor", found.json)


@pytest.mark.parametrize(
    "arguments",
    [
        ("profiles", "show", "nobody", "--json"),
        ("checkpoints", "rewind", "nothing", "--user", "alice", "--json"),
        ("config", "set", "modle", "x", "--json"),
        ("sessions", "show", "--user", "..", "--json"),
    ],
)
def test_errors_are_as_described(world: World, arguments: tuple[str, ...]) -> None:
    _check("error", {"error": world.deepctl(*arguments).error})


def test_a_key_that_is_not_described_does_not_pass() -> None:
    from jsonschema import ValidationError

    path = {"version": 1, "profile": "alice", "path": os.sep}
    _check("profiles path", path)
    for wrong in ({**path, "more": 1}, {"version": 1, "profile": "alice"}, {**path, "version": 2}):
        with pytest.raises(ValidationError):
            _check("profiles path", wrong)
