"""Errors of sessions."""

from __future__ import annotations

from tests.errors.situation import Situation, case

ALICE = ("--user", "alice")


@case("sessions show", "there is no such session")
def _(s: Situation) -> list[str]:
    s.story()
    return ["sessions", "show", "other", *ALICE]


@case("sessions show", "there is no session yet")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["sessions", "show", *ALICE]


@case("sessions show", "the name is no good name")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["sessions", "show", "a/b", *ALICE]
