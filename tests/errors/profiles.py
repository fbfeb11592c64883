"""Errors of profiles, and of `doctor`, which looks at one."""

from __future__ import annotations

from tests.errors.situation import Situation, case


@case("profiles create", "a profile with this name already exists")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "create", "Alice"]


@case("profiles create", "the name is invalid")
def _(s: Situation) -> list[str]:
    return ["profiles", "create", "a b"]


@case("profiles show", "NAME and `--user` are different profiles")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "show", "alice", "--user", "bob"]


@case("profiles show", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "show", "nobody"]


@case("doctor", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["doctor", "--user", "nobody"]
