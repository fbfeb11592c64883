"""`doctor`, the start of a chat and its conversation say the same of commands, and that is what happens (K3.7)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ToolCallPart

from deepctl import layout
from deepctl.agent.approvals import Approvals
from deepctl.agent.approver import ApprovalAnswer, ApprovalRequest
from deepctl.agent.backend import LocalBackend, workspace_of
from deepctl.agent.chat import Chat
from deepctl.cli.chat_setup import ChatParts, ChatSetup
from deepctl.domain.doctor.machine import Sandboxes
from deepctl.domain.permissions import CommandPolicy, Rule, Rules
from deepctl.domain.settings import Settings, load
from deepctl.sandbox import bubblewrap
from tests.support.command import InProcess

MISSING = "/nonexistent/bwrap"
APPROVE = ("ask", "auto", "never")
PLACES = ("auto", "auto, missing", "bubblewrap", "none")

UNASKED = "commands run unsandboxed, with your rights and the network, without approval requests"
ASKED = "commands run unsandboxed, with your rights and the network, each after an approval request"
NEVER = "commands are refused, because each unsandboxed command needs an approval, and `approve` is `never`"
NOBODY = "commands are refused, because each unsandboxed command needs an approval, and there is no terminal"
NO_SHELL = "no shell: there is no sandbox for commands, and no terminal for approval requests"
CONFINED = "commands run in bubblewrap, without the network"


def _doctor_says(approve: str, place: str) -> str:
    if place == "none":
        return {"auto": UNASKED, "never": NEVER}.get(
            approve, f"{ASKED}; without a terminal, approval requests are refused"
        )
    if place == "auto, missing":
        return NEVER if approve == "never" else f"{ASKED}; without a terminal there is no shell"
    return CONFINED


def _chat_says(approve: str, place: str, terminal: bool) -> str | None:
    if place == "none":
        return {"auto": UNASKED, "never": NEVER}.get(approve, ASKED if terminal else NOBODY)
    if place == "auto, missing":
        if not terminal:
            return NO_SHELL
        return NEVER if approve == "never" else ASKED
    return None


def _set(deepctl: InProcess, monkeypatch: pytest.MonkeyPatch, approve: str, place: str) -> str:
    if place.endswith("missing"):
        monkeypatch.setenv("DEEPCTL_BWRAP", MISSING)
    sandbox = place.partition(",")[0]
    deepctl("profiles", "create", "alice").ok()
    deepctl("config", "set", "approve", approve, "--user", "alice").ok()
    deepctl("config", "set", "sandbox", sandbox, "--user", "alice").ok()
    return sandbox


@pytest.mark.parametrize(("approve", "place"), list(product(APPROVE, PLACES)))
def test_doctor_and_the_start_of_a_chat_say_what_happens(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, approve: str, place: str
) -> None:
    sandbox = _set(deepctl, monkeypatch, approve, place)
    checks = deepctl("doctor", "--json", "--user", "alice").json["checks"]
    (check,) = [one for one in checks if one["name"] == "sandbox" and one["profile"] == "alice"]
    assert check["found"] == f"{sandbox}: {_doctor_says(approve, place)}"
    assert check["status"] == ("ok" if place in ("auto", "bubblewrap") else "warning")

    start = deepctl("chat", "--json", "--user", "alice", "run touch made").ok().events[0]
    said = _chat_says(approve, place, terminal=False)
    assert _begins(start["notice"], said)
    made = (home / "profiles" / "alice" / "workspace" / "made").exists()
    assert made == (said in (None, UNASKED))
    assert (start["questions"] == "allowed") == (approve == "auto" and place != "auto, missing")


@pytest.mark.parametrize(("approve", "place"), list(product(APPROVE, PLACES)))
def test_a_conversation_says_the_same_where_a_person_can_be_asked(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, approve: str, place: str
) -> None:
    _set(deepctl, monkeypatch, approve, place)
    for network in (False, True):
        in_force = _in_force()._replace(options={"network": "on" if network else "off"})
        start = ChatSetup("alice", in_force, ask=_refusing)
        parts = start.profile(layout.root(os.environ))
        with closing(parts.runner):
            if network and place in ("bubblewrap", "auto"):
                assert parts.commands.notice == "Commands run in bubblewrap, with the network."
            else:
                assert _begins(parts.commands.notice, _chat_says(approve, place, terminal=True))
            assert parts.commands.network == (network or place in ("none", "auto, missing"))


async def _refusing(question: ApprovalRequest) -> ApprovalAnswer:
    return ApprovalAnswer(False)


def _begins(notice: str | None, said: str | None) -> bool:
    if notice is None or said is None:
        return notice == said
    return notice.lower().startswith(f"{said.lower()}.")


COMMANDS = {"": "touch free", "allows": "echo one", "asks about": "cat two", "denies": "rm three", "cannot tell": "$X"}
"""A command of each kind, by the word of the statement that tells what rules do with it."""
ALLOWED, ASKED_ABOUT, DENIED = (
    f'{{ pattern = "{pattern}", action = "{action}" }}'
    for pattern, action in (("echo **", "allow"), ("cat **", "ask"), ("rm **", "deny"))
)
EXECUTE = [
    *('"allow"', '"ask"', '"deny"', '{ default = "allow" }'),
    *(f"{{ rules = [{rules}] }}" for rules in (ALLOWED, ASKED_ABOUT, DENIED)),
    *(
        f'{{ default = "{default}", rules = [{ALLOWED}, {ASKED_ABOUT}, {DENIED}] }}'
        for default in ("allow", "ask", "deny")
    ),
    f'{{ default = "deny", rules = [{ASKED_ABOUT}] }}',
]


def _said(statement: str, kind: str) -> str:
    """What a statement says becomes of a command: `run`, `asked` or `refused`."""
    usual, *others = statement.removeprefix("where no rule of [permissions] applies, ").split("; ")
    for other in others:
        if kind and other.startswith("what a rule ") and kind in other:
            assert statement.startswith("where no rule")
            said = other.partition(kind)[2]
            if "refused" in said:
                return "refused"
            return "asked" if "is asked about" in said or "after an approval" in said else "run"
    if usual.startswith(("commands are refused", "no shell")):
        return "refused"
    return "asked" if usual.endswith("each after an approval request") else "run"


async def _outcomes(parts: ChatParts[Chat], root: Path) -> dict[str, str]:
    return {kind: await _outcome(parts, root, command) for kind, command in COMMANDS.items()}


async def _outcome(parts: ChatParts[Chat], root: Path, command: str) -> str:
    """What becomes of a command, up to where a shell would get it."""
    options, asked = parts.runner.engine.options, list[ApprovalRequest]()
    if options.sandbox is None:
        return "refused"

    async def ask(question: ApprovalRequest) -> ApprovalAnswer:
        asked.append(question)
        return ApprovalAnswer(True)

    terminal = ask if parts.commands.questions == "asked" else None
    approvals = Approvals(options.approve, terminal, options.permissions)
    workspace = workspace_of(LocalBackend(root, sandbox=options.sandbox))
    call = ToolCallPart("execute", {"command": command})
    try:
        await approvals.before_tool_execute(
            cast("Any", SimpleNamespace(workspace=workspace, deps=None)),
            call=call,
            tool_def=cast("Any", None),
            args={"command": command},
        )
    except ToolFailed:
        assert not asked
        return "refused"
    return "asked" if asked else "run"


def _in_force() -> Settings:
    return load(os.environ, layout.root(os.environ).profile("alice"))


def _chat_parts(home: Path) -> Iterator[tuple[ChatParts[Chat], str, bool]]:
    """With every kind of rules, at a terminal and without one; what `doctor` says goes with it."""
    root = layout.root(os.environ)
    settings = home / "profiles" / "alice" / "profile.toml"
    written = settings.read_text()
    tried = Sandboxes(os.environ)
    for execute in EXECUTE:
        settings.write_text(f"{written}\n[permissions]\nexecute = {execute}\n")
        (check,) = tried.in_force(_in_force())
        for terminal in (True, False):
            parts = ChatSetup("alice", _in_force(), ask=_refusing if terminal else None).profile(root)
            with closing(parts.runner):
                yield parts, check.found.partition(": ")[2], terminal


@pytest.mark.parametrize(("approve", "place"), list(product(APPROVE, PLACES[1:])))
def test_what_is_said_with_rules_is_what_happens(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch, approve: str, place: str
) -> None:
    _set(deepctl, monkeypatch, approve, place)
    if place == "bubblewrap":
        monkeypatch.setattr(bubblewrap, "check", lambda policy: None)  # no command gets there
    at_terminal: dict[str, str] = {}
    for parts, doctor, terminal in _chat_parts(home):
        statement = parts.commands.statement
        statement = statement[:1].lower() + statement[1:-1]
        outcomes = asyncio.run(_outcomes(parts, home / "profiles" / "alice" / "workspace"))
        assert {kind: _said(statement, kind) for kind in COMMANDS} == outcomes, statement
        notice = parts.commands.notice
        if notice is None:
            assert outcomes[""] != "refused"
            assert "unsandboxed" not in statement
        else:
            assert notice.startswith(parts.commands.statement)
        if terminal:
            at_terminal = outcomes
            assert {kind: _said(doctor, kind) for kind in COMMANDS} == outcomes, doctor
        else:
            assert ("without a terminal" in doctor) == (outcomes != at_terminal), doctor
            assert ("there is no shell" in doctor) == (statement.startswith("no shell") and outcomes != at_terminal)


@pytest.mark.parametrize(
    ("execute", "approve", "runs"),
    [
        ('{ default = "allow" }', "never", True),
        ('"allow"', "ask", True),
        (f"{{ rules = [{ALLOWED}] }}", "never", True),
        ('{ default = "deny" }', "auto", False),
    ],
)
def test_a_chat_without_a_sandbox_says_what_its_rules_make_of_a_command(
    deepctl: InProcess, home: Path, execute: str, approve: str, runs: bool
) -> None:
    deepctl("config", "set", "sandbox", "none").ok()
    with open(os.environ["DEEPCTL_CONFIG"], "a") as settings:
        settings.write(f"\n[permissions]\nexecute = {execute}\n")
    events = deepctl("chat", "--json", "--approve", approve, "run echo hi").ok().events
    told = events[0]["notice"].lower()
    assert _said(told.rstrip("."), "allows" if "rules" in execute else "") == ("run" if runs else "refused")
    assert ("unsandboxed, with your rights and the network, without approval requests" in told) == runs
    assert events[0]["network"]
    assert any(event["type"] == "tool_result" and "hi" in event["content"] for event in events) == runs


def test_rules_that_change_nothing_are_not_mentioned() -> None:
    policy = CommandPolicy("none", "never", True)
    assert policy._replace(permissions={"execute": Rules("ask")}).statement() == policy.statement()
    asking = {"execute": Rules(None, (Rule("git status", "ask"),))}
    assert policy._replace(permissions=asking).statement() == policy.statement()


def test_a_container_is_named_with_its_image_and_its_network() -> None:
    policy = CommandPolicy("docker", "auto", image="python:3.12-slim")
    assert policy.statement() == "commands run in a container of python:3.12-slim, without the network"
    assert policy._replace(network=True).statement().endswith("with the network")
    assert policy.notice() is None
