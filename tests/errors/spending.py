"""Errors of `usage`."""

from __future__ import annotations

from tests.errors.situation import Situation, case


@case("usage", "`--all` and `--user` together")
def _(s: Situation) -> list[str]:
    return ["usage", "--all", "--user", "alice"]


@case("usage", "`--csv` and `--json` together", only="json")
def _(s: Situation) -> list[str]:
    return ["usage", "--csv", "--user", "alice"]


@case("usage", "`--since` is not an age")
def _(s: Situation) -> list[str]:
    return ["usage", "--since", "yesterday"]


@case("usage", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["usage", "--user", "alice"]


@case("usage", "the usage has the format of a later deepctl")
def _(s: Situation) -> list[str]:
    s.story()
    s.seal(s.profile / "usage.jsonl", {"v": 99}, append=True)
    return ["usage", "--user", "alice"]
