"""Errors of the place where state is kept. The machine around the command is another: bubblewrap makes it so."""

from __future__ import annotations

import os

from tests.errors.situation import Situation, case
from tests.support.command import Result

ANY = "any command"
SAVE = ("checkpoints", "save", "--user", "alice")


@case(ANY, "the disk is full")
def _(s: Situation) -> Result:
    s.alice()
    full = s.place / "full"
    full.mkdir()
    s.patch.setenv("DEEPCTL_HOME", str(full / "root"))
    return s.confined("profiles", "create", "bob", around=("--size", "4096", "--tmpfs", str(full)))


@case(ANY, "the file system is read-only")
def _(s: Situation) -> Result:
    s.alice()
    return s.confined(*SAVE, around=("--ro-bind", str(s.home), str(s.home)))


@case(ANY, "there is no permission to enter a directory")
def _(s: Situation) -> Result:
    s.alice()
    s.home.chmod(0)
    try:
        return s.confined("sessions", "list", "--user", "alice", unprivileged=True)
    finally:
        s.home.chmod(0o700)


@case(ANY, "the root, or a path above it, is not a directory")
def _(s: Situation) -> list[str]:
    s.home.write_text("")
    return ["profiles", "create", "alice"]


@case(ANY, "a directory in the root was replaced by a file")
def _(s: Situation) -> list[str]:
    s.home.mkdir()
    (s.home / "locks").write_text("")
    return ["profiles", "create", "alice"]


@case(ANY, "a path above `$DEEPCTL_CONFIG` is not a directory")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_CONFIG", "/dev/null/config.toml")
    return ["config", "get", "model"]


@case(ANY, "symbolic links form a loop")
def _(s: Situation) -> list[str]:
    s.home.symlink_to(s.home)
    return ["profiles", "list"]


@case(ANY, "the root cannot be created at its path")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_HOME", "/proc/x")
    return ["profiles", "create", "alice"]


@case(ANY, "a symbolic link has no target")
def _(s: Situation) -> list[str]:
    s.home.symlink_to(s.place / "nowhere")
    return ["profiles", "create", "alice"]


@case(ANY, "the path is too long")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_HOME", f"{s.home}/{'a' * 300}")
    return ["profiles", "create", "alice"]


@case(ANY, "`$DEEPCTL_CONFIG` is not a regular file")
def _(s: Situation) -> list[str]:
    s.configure("")
    s.config.unlink()
    s.config.mkdir()
    return ["config", "get", "model"]


@case(ANY, "a file would exceed the limit for the size of files")
def _(s: Situation) -> Result:
    s.alice()
    s.workspace.joinpath("large").write_bytes(os.urandom(200_000))
    return s.process(*SAVE, prefix=("sh", "-c", 'ulimit -f 100; exec "$@"', "sh"))


@case(ANY, "the process has reached the limit for open files")
def _(s: Situation) -> Result:
    s.alice()
    return s.process(*SAVE, prefix=("sh", "-c", 'ulimit -n 5; exec "$@"', "sh"))
