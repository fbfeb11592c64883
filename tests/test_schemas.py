"""docs/schemas.json describes what every command prints with `--json`: all of it, and nothing that is not there."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.support.command import InProcess
from tests.support.loopback import Answer, Text, ToolCalls, provider
from tests.support.runs import ALICE, RUNS, World, made_world
from tests.support.tree import commands

_SCHEMAS = json.loads((Path(__file__).parent.parent / "docs" / "schemas.json").read_text())
_WITHOUT_JSON = frozenset({"help"})
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


@pytest.fixture
def world(deepctl: InProcess, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return made_world(deepctl, home, tmp_path, monkeypatch)


def test_every_command_has_a_schema_and_a_run_here() -> None:
    there = set(commands()) - _WITHOUT_JSON
    assert there <= set(_SCHEMAS["$defs"]), "commands without a schema"
    assert there == set(RUNS) - _WITHOUT_JSON, "commands that nothing here runs, or the other way round"


def test_the_schemas_are_schemas_and_all_references_lead_somewhere() -> None:
    Draft202012Validator.check_schema(_SCHEMAS)
    text = json.dumps(_SCHEMAS)
    for name in {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}:
        assert name in _SCHEMAS["$defs"], name


@pytest.mark.parametrize(
    ("command", "number"), [(command, number) for command, runs in RUNS.items() for number in range(len(runs))]
)
def test_a_document_is_as_described(world: World, command: str, number: int) -> None:
    arguments = RUNS[command][number](world)
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


def test_the_work_of_a_sub_agent_is_described_too(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-nothing")
    deepctl("config", "set", "subagents", "on").ok()
    task = ("delegate_task", {"agent_name": "explorer", "task": "look"})
    answers: list[Answer] = [ToolCalls([task]), ToolCalls([("ls", {"path": "."})]), Text(["There."]), Text(["Good."])]
    with provider(*answers) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        events = deepctl("chat", "--json", "--model", "openai-chat:gpt-4o", "hello").ok().events
    for event in events:
        _check("chat", event)
    assert [event["event"]["type"] for event in events if event["type"] == "subagent"] == [
        *("tool_call", "tool_result", "end")
    ]


def test_an_ephemeral_chat_is_described_too(deepctl: InProcess) -> None:
    for event in deepctl("chat", "--json", "--ephemeral", "hello").events:
        _check("chat", event)


def test_doctor_is_as_described_whatever_it_finds(world: World) -> None:
    found = world.deepctl("doctor", *ALICE)
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
