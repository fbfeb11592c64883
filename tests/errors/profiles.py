"""Errors of profiles, and of `doctor`, which looks at one."""

from __future__ import annotations

from tests.errors.situation import Situation, case


@case("profiles create", "there is a profile of that name")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "create", "Alice"]


@case("profiles create", "the name is no good name")
def _(s: Situation) -> list[str]:
    return ["profiles", "create", "a b"]


@case("profiles show", "NAME and `--user` are not the same")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "show", "alice", "--user", "bob"]


@case("profiles show", "there is no such profile")
def _(s: Situation) -> list[str]:
    return ["profiles", "show", "nobody"]


@case("doctor", "there is no such profile")
def _(s: Situation) -> list[str]:
    return ["doctor", "--user", "nobody"]
