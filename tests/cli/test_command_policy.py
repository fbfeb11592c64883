"""`doctor`, the start of a chat and its conversation say the same of commands, and that is what happens (K3.7)."""

from __future__ import annotations

import os
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest

from deepctl.agent.approvals import Answer, Question
from deepctl.cli.starting import Start
from deepctl.domain import layout
from deepctl.domain.command_policy import CommandPolicy
from deepctl.domain.permissions import Rule, Rules
from tests.support.command import InProcess

MISSING = "/nonexistent/bwrap"
APPROVE = ("ask", "auto", "never")
PLACES = ("auto", "auto, missing", "bubblewrap", "none")

UNASKED = "commands run unsandboxed, with your own rights and the network, without asking"
ASKED = "commands run unsandboxed, with your own rights and the network, and each is asked about"
NEVER = "commands are refused: unsandboxed, each needs a yes, and `approve` is `never`"
NOBODY = "commands are refused: unsandboxed, each needs a yes, and there is no terminal to ask at"
NO_SHELL = "no shell: there is no sandbox for commands, and no terminal at which to ask about them"
CONFINED = "commands run in bubblewrap, without the network"


def _doctor_says(approve: str, place: str) -> str:
    if place == "none":
        return {"auto": UNASKED, "never": NEVER}.get(approve, f"{ASKED}; without a terminal they are refused")
    if place == "auto, missing":
        return NEVER if approve == "never" else f"{ASKED}; without a terminal they are refused"
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
        start = Start("alice", {}, network=network, ask=_refusing)
        engine = start.profile(layout.root(os.environ))
        with closing(engine.running):
            assert _begins(engine.commands.notice, _chat_says(approve, place, terminal=True))
            assert engine.commands.network == (network and place in ("auto", "bubblewrap"))


async def _refusing(question: Question) -> Answer:
    return Answer(False)


def _begins(notice: str | None, said: str | None) -> bool:
    if notice is None or said is None:
        return notice == said
    return notice.lower().startswith(f"{said.lower()}.")


def test_rules_of_a_profile_are_mentioned_where_they_decide() -> None:
    allowing = {"execute": Rules(None, (Rule("git status", "allow"),))}
    policy = CommandPolicy("none", "never", True)
    assert "rules" not in policy.statement()
    assert policy._replace(permissions=allowing).statement().endswith("; rules of [permissions] come first")
    assert policy._replace(permissions={"execute": Rules("ask")}).statement() == policy.statement()


def test_a_container_is_named_with_its_image_and_its_network() -> None:
    policy = CommandPolicy("docker", "auto", image="python:3.12-slim")
    assert policy.statement() == "commands run in a container of python:3.12-slim, without the network"
    assert policy._replace(network=True).statement().endswith("with the network")
    assert policy.notice() is None
