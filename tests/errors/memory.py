"""Errors of memory."""

from __future__ import annotations

import os

from tests.errors.situation import Situation, case

ALICE = ("--user", "alice")
SHOW = ["memory", "show", *ALICE]


@case("memory show", "the notebook does not exist")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["memory", "show", "other", *ALICE]


@case("memory show", "the name of the notebook is invalid")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["memory", "show", "../secrets", *ALICE]


@case("memory show", "the agent has no memory in this profile")
def _(s: Situation) -> list[str]:
    s.alice()
    return [*SHOW, "--agent", "other"]


@case("memory show", "the name of the agent is invalid")
def _(s: Situation) -> list[str]:
    s.alice()
    return [*SHOW, "--agent", "../main"]


@case("memory show", "the notebook is a symbolic link")
def _(s: Situation) -> list[str]:
    scene = s.alice()
    scene.write(".deep/memory/main/other.md", "x")
    (s.workspace / ".deep/memory/main/MEMORY.md").symlink_to("other.md")
    return SHOW


@case("memory show", "the notebook is a FIFO")
def _(s: Situation) -> list[str]:
    scene = s.alice()
    scene.write(".deep/memory/main/other.md", "x")
    os.mkfifo(s.workspace / ".deep/memory/main/MEMORY.md")
    return SHOW


@case("memory list", "the directory of the notebooks is a symbolic link")
def _(s: Situation) -> list[str]:
    scene = s.alice()
    scene.write(".deep/x", "x")
    (s.workspace / ".deep/memory").symlink_to(s.place)
    return ["memory", "list", *ALICE]


def _shared(s: Situation, readers: str = "alice") -> None:
    """Alice wants to read the notebooks of team, which lets `readers` read."""
    s.alice()
    s.run("profiles", "create", "team")
    s.run("config", "set", "memory.readers", readers, "--user", "team")
    s.run("config", "set", "memory.read", "team", "--user", "alice")


@case("memory show", "the other profile does not share its memory")
def _(s: Situation) -> list[str]:
    _shared(s, "bob")
    return ["memory", "show", "team:MEMORY.md", *ALICE]


@case("memory show", "the other profile of a shared notebook does not exist")
def _(s: Situation) -> list[str]:
    _shared(s)
    s.run("wipe", "--user", "team", "--yes")
    return ["memory", "show", "team:MEMORY.md", *ALICE]


@case("memory show", "`--at` with a notebook of another profile")
def _(s: Situation) -> list[str]:
    _shared(s)
    s.run("memory", "add", "x", "--user", "team")
    return ["memory", "show", "team:MEMORY.md", "--at", "~1", *ALICE]


@case("memory add", "the notebook belongs to another profile")
def _(s: Situation) -> list[str]:
    _shared(s)
    return ["memory", "add", "x", "--file", "team:MEMORY.md", *ALICE]


@case("memory edit", "the notebook belongs to another profile")
def _(s: Situation) -> list[str]:
    _shared(s)
    return ["memory", "edit", "team:MEMORY.md", *ALICE]


@case("memory forget", "the notebook belongs to another profile")
def _(s: Situation) -> list[str]:
    _shared(s)
    return ["memory", "forget", "x", "--file", "team:MEMORY.md", *ALICE]
