"""Errors of commands that move a profile: to another name, to a file, from one."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

from tests.errors.situation import Situation, case
from tests.support.command import Result

ALICE = ("--user", "alice")


@case("profiles rename", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "rename", "nobody", "somebody"]


@case("profiles rename", "a profile with this name already exists")
def _(s: Situation) -> list[str]:
    s.alice()
    assert s.run("profiles", "create", "bob").code == 0
    return ["profiles", "rename", "alice", "Bob"]


@case("profiles rename", "the new name is invalid")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["profiles", "rename", "alice", "a/b"]


@case("profiles rename", "the profile's container cannot be removed")
def _(s: Situation) -> list[str]:
    s.alice()
    with s.settings.open("a") as file:
        file.write('sandbox = "docker"\n')
    s.patch.setenv("DOCKER_HOST", f"unix://{s.place}/docker.sock")
    return ["profiles", "rename", "alice", "alicia"]


def _export(s: Situation, file: Path | str, *more: str) -> list[str]:
    s.alice()
    return ["profiles", "export", str(file), *ALICE, *more]


@case("profiles export", "FILE already exists")
def _(s: Situation) -> list[str]:
    (s.place / "there").write_text("")
    return _export(s, s.place / "there")


@case("profiles export", "FILE is a directory")
def _(s: Situation) -> list[str]:
    return _export(s, s.place)


@case("profiles export", "the directory of FILE does not exist")
def _(s: Situation) -> list[str]:
    return _export(s, s.place / "nowhere" / "alice.tgz")


@case("profiles export", "the directory of FILE is not a directory")
def _(s: Situation) -> list[str]:
    (s.place / "there").write_text("")
    return _export(s, s.place / "there" / "alice.tgz")


@case("profiles export", "FILE is not a regular file")
def _(s: Situation) -> list[str]:
    os.mkfifo(s.place / "fifo")
    return _export(s, s.place / "fifo", "--force")


@case("profiles export", "FILE would be inside deepctl's own state")
def _(s: Situation) -> list[str]:
    return _export(s, s.home / "profiles" / "alice" / "alice.tgz")


@case("profiles export", "FILE is `-`, and `--json` also needs stdout", only="json")
def _(s: Situation) -> list[str]:
    return _export(s, "-")


@case("profiles export", "FILE is `-`, and stdout is a terminal", only="text")
def _(s: Situation) -> Result:
    terminal = s.terminal(*_export(s, "-"))
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("profiles export", "FILE is `-`, and the reader of stdout ends early", only="text")
def _(s: Situation) -> Result:
    argv = _export(s, "-")
    s.workspace.joinpath("large").write_bytes(os.urandom(300_000))
    reading, writing = os.pipe()
    running = s.start(*argv, stdout=writing)
    os.close(writing)
    os.close(reading)
    return s.ended(running)


def archive(s: Situation) -> Path:
    """An archive of alice's profile."""
    s.story()
    path = s.place / "alice.tgz"
    assert s.run("profiles", "export", str(path), *ALICE).code == 0
    return path


@case("profiles import", "FILE does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(s.place / "nothing")]


@case("profiles import", "FILE is a directory")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(s.place)]


@case("profiles import", "FILE is `-`, and stdin is a terminal", only="text")
def _(s: Situation) -> Result:
    terminal = s.terminal("profiles", "import", "-")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())


@case("profiles import", "FILE is not an archive of a profile")
def _(s: Situation) -> list[str]:
    (s.place / "file").write_text("hello")
    return ["profiles", "import", str(s.place / "file")]


@case("profiles import", "FILE is damaged")
def _(s: Situation) -> list[str]:
    path = archive(s)
    path.write_bytes(path.read_bytes()[:-20])
    return ["profiles", "import", str(path), "--as", "bob"]


@case("profiles import", "FILE contains entries that an export never writes")
def _(s: Situation) -> list[str]:
    path = archive(s)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"more" * 1000))
    return ["profiles", "import", str(path), "--as", "bob"]


@case("profiles import", "a profile with this name already exists")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(archive(s))]


@case("profiles import", "the name is invalid")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(archive(s)), "--as", "a/b"]


@case("profiles import", "FILE exceeds the limits for its entries or bytes")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(archive(s)), "--as", "bob", "--max-files", "3"]


@case("profiles import", "`--max-size` is not a size")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(s.place / "file"), "--max-size", "much"]


@case("profiles import", "the disk has too little free space")
def _(s: Situation) -> Result:
    path = archive(s)
    small = s.place / "small"
    small.mkdir()
    s.patch.setenv("DEEPCTL_HOME", str(small / "root"))
    around = ("--size", "8192", "--tmpfs", str(small))
    return s.confined("profiles", "import", str(path), around=around)


def untrusted(s: Situation, text: str = 'sandbox = "none"') -> None:
    """Alice's profile, with imported settings that wait for a yes."""
    s.alice()
    (s.profile / "untrusted.toml").write_text(text)


@case("profiles import", "`--trust` is given, and there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    return ["profiles", "import", str(archive(s)), "--as", "bob", "--trust"]


@case("profiles trust", "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "trust", "nobody"]


@case("profiles trust", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    untrusted(s)
    return ["profiles", "trust", "alice"]


@case("profiles trust", "the answer is no", only="text")
def _(s: Situation) -> Result:
    untrusted(s)
    terminal = s.terminal("profiles", "trust", "alice")
    terminal.expect("[y/N]")
    terminal.type("n\r")
    return s.left(terminal, terminal.wait())


@case("profiles trust", "a settings file changes before the confirmation", only="text")
def _(s: Situation) -> Result:
    untrusted(s)
    terminal = s.terminal("profiles", "trust", "alice")
    terminal.expect("[y/N]")
    s.settings.write_text('model = "offline"\n')
    terminal.type("y\r")
    return s.left(terminal, terminal.wait())


@case("profiles trust", "an imported setting has an invalid value")
def _(s: Situation) -> list[str]:
    untrusted(s, 'sandbox = "sideways"')
    return ["profiles", "trust", "alice", "--yes"]


@case("profiles trust", "the profile has a skill with the name of an imported one")
def _(s: Situation) -> list[str]:
    s.profile.mkdir(parents=True, exist_ok=True)
    for place in ("skills", "untrusted/skills"):
        (s.settings.parent / place / "tidy").mkdir(parents=True)
    return ["profiles", "trust", "alice", "--yes"]


@case("profiles trust", "the imported time of creation is invalid")
def _(s: Situation) -> list[str]:
    untrusted(s, 'created_at = "yesterday"')
    return ["profiles", "trust", "alice", "--yes"]


@case("profiles trust", "the `profile.toml` of the archive is not TOML")
def _(s: Situation) -> list[str]:
    untrusted(s, "not = = toml")
    return ["profiles", "trust", "alice", "--yes"]
