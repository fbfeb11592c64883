"""Errors of sessions."""

from __future__ import annotations

from tests.errors.situation import Situation, case

ALICE = ("--user", "alice")


@case("sessions show", "the session does not exist")
def _(s: Situation) -> list[str]:
    s.story()
    return ["sessions", "show", "other", *ALICE]


@case("sessions show", "the profile has no sessions")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["sessions", "show", *ALICE]


@case("sessions show", "the name is invalid")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["sessions", "show", "a/b", *ALICE]
