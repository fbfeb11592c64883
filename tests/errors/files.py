"""Errors of files that a chat is given."""

from __future__ import annotations

import os

from deepctl.domain.attachments import MAX_BYTES
from tests.errors.situation import Situation, case
from tests.support.command import Result

ALICE = ("--user", "alice")


def _outside(s: Situation, name: str, content: bytes = b"content\n") -> str:
    place = s.place / "outside"
    place.mkdir()
    (place / name).write_bytes(content)
    return str(place / name)


@case("chat", "the file of `--file` does not exist")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--file", str(s.place / "none"), *ALICE]


@case("chat", "the file of `--file` is a directory")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--file", str(s.place), *ALICE]


@case("chat", "the file of `--file` is a pipe or a device")
def _(s: Situation) -> list[str]:
    path = s.place / "fifo"
    os.mkfifo(path)
    return ["chat", "hello", "--file", str(path), *ALICE]


@case("chat", "the file of `--file` is too large")
def _(s: Situation) -> list[str]:
    path = _outside(s, "huge")
    os.truncate(path, MAX_BYTES + 1)
    return ["chat", "hello", "--file", path, *ALICE]


@case("chat", "the name of the file of `--file` cannot be written in a prompt")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--file", _outside(s, "a\nb"), *ALICE]


@case("chat", "the file of `--file` cannot be read", prints=True)
def _(s: Situation) -> list[str]:
    s.alice()
    return ["chat", "hello", "--file", "/proc/self/mem", *ALICE]


@case("chat", "the disk has no space for the file of `--file`", prints=True)
def _(s: Situation) -> Result:
    path = _outside(s, "large", b"x" * (8 << 20))
    full = s.place / "full"
    full.mkdir()
    s.patch.setenv("DEEPCTL_HOME", str(full / "root"))
    command = ("chat", "hello", "--file", path, "--sandbox", "none", *ALICE)
    return s.confined(*command, around=("--size", str(4 << 20), "--tmpfs", str(full)))
