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


@case("profiles use", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "use", "nobody", "--here"]


@case("profiles use", "NAME is missing")
def _(s: Situation) -> list[str]:
    return ["profiles", "use"]


@case("profiles use", "`--here` and `-C` together")
def _(s: Situation) -> list[str]:
    return ["profiles", "use", "alice", "--here", "-C", "."]


@case("profiles use", "the directory does not exist")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "use", "alice", "-C", "nowhere"]


@case("profiles use", "`--forget` without a directory")
def _(s: Situation) -> list[str]:
    return ["profiles", "use", "--forget"]


@case("profiles use", "`--forget` with a NAME")
def _(s: Situation) -> list[str]:
    return ["profiles", "use", "alice", "--here", "--forget"]


@case("profiles use", "`--forget`, and the directory has no profile")
def _(s: Situation) -> list[str]:
    return ["profiles", "use", "--here", "--forget"]


@case("profiles use", "`--forget`, and only a directory above has a profile")
def _(s: Situation) -> list[str]:
    s.alice()
    s.run("profiles", "use", "alice", "-C", "..")
    return ["profiles", "use", "--here", "--forget"]


@case("profiles copy", "FROM does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "copy", "nobody", "bob"]


@case("profiles copy", "a profile called TO already exists")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "copy", "alice", "Alice"]


@case("profiles copy", "TO is not a valid name")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "copy", "alice", "a/b"]


@case("profiles copy", "the part does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "copy", "alice", "bob", "--only", "memory,sessions"]


@case("profiles copy", "`--only` names no part")
def _(s: Situation) -> list[str]:
    return ["profiles", "copy", "alice", "bob", "--only", ","]


@case("profiles copy", "the `profile.toml` of FROM is not TOML")
def _(s: Situation) -> list[str]:
    s.alice()
    s.settings.write_text("model = \n")
    return ["profiles", "copy", "alice", "bob"]


@case("profiles copy", "the disk has too little free space")
def _(s: Situation) -> list[str]:
    s.alice()
    with (s.workspace / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    return ["profiles", "copy", "alice", "bob"]
