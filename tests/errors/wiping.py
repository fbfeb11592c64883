"""Errors of `wipe`."""

from __future__ import annotations

import os

import pytest

from tests.errors.situation import Situation, case
from tests.support.command import Result

WIPE = ["wipe", "--user", "alice"]
DONE = [*WIPE, "--yes"]


@case("wipe", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    s.story()
    return WIPE


@case("wipe", "the answer is no", only="text")
def _(s: Situation) -> Result:
    return _answered(s, "no")


@case("wipe", "the profile changes before the confirmation", only="text")
def _(s: Situation) -> Result:
    return _answered(s, "alice", changed=True)


def _answered(s: Situation, answer: str, *, changed: bool = False) -> Result:
    s.story()
    terminal = s.terminal(*WIPE)
    terminal.expect("type alice to continue")
    if changed:
        (s.workspace / "new").write_text("x")
    terminal.type(f"{answer}\r")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("wipe", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return DONE


@case("wipe", "the profile is named without `--user`")
def _(s: Situation) -> list[str]:
    return ["wipe", "carol"]


@case("wipe", "`--all` and `--user` together")
def _(s: Situation) -> list[str]:
    return [*DONE, "--all"]


@case("wipe", "the part does not exist")
def _(s: Situation) -> list[str]:
    s.alice()
    return [*DONE, "--only", "memory,dreams"]


@case("wipe", "the path of a part contains a symbolic link")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.workspace / ".deep").symlink_to(s.place)
    return [*DONE, "--only", "memory"]


@case("wipe", "a file system is mounted in the profile")
def _(s: Situation) -> Result:
    s.alice()
    (s.workspace / "d").mkdir()
    return s.confined(*DONE, around=("--tmpfs", str(s.workspace / "d")))


@case("wipe", "a file of the profile cannot be deleted")
def _(s: Situation) -> Result:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory to somebody else")
    s.alice()
    (s.workspace / "d").mkdir()
    (s.workspace / "d" / "a.txt").write_text("x")
    os.chown(s.workspace / "d", 12345, 12345)
    return s.confined(*DONE, unprivileged=True)


@case("wipe", "the profile's container cannot be removed")
def _(s: Situation) -> list[str]:
    s.alice()
    with s.settings.open("a") as file:
        file.write('sandbox = "docker"\n')
    s.patch.setenv("DOCKER_HOST", f"unix://{s.place}/docker.sock")
    return DONE


@case("wipe", "a later deepctl has started to wipe the profile")
def _(s: Situation) -> list[str]:
    s.alice()
    left = s.home / "profiles" / ".wipe-parts-00000000-alice"
    s.profile.rename(left)
    s.seal(left / "plan", {"v": 99, "profile": "alice"})
    return DONE
