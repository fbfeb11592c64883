"""Files of this machine that commands can read: what they see, and what is refused."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl import Bubblewrap, NoSandbox
from deepctl.domain.settings import load
from deepctl.errors import BadSetting
from deepctl.layout import Root
from deepctl.sandbox import read_only


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user with a toolchain, keys and deepctl's files."""
    made = tmp_path / "home"
    for name in (".ssh", ".gnupg", ".aws", ".rustup", ".cargo/bin", ".config/deepctl", "root/profiles", "sock"):
        (made / name).mkdir(parents=True)
    tool = made / ".cargo" / "bin" / "tool"
    tool.write_text("#!/bin/sh\necho tool $RUSTUP_HOME\n")
    tool.chmod(0o755)
    (made / ".ssh" / "id").write_text("key")
    monkeypatch.setenv("HOME", str(made))
    monkeypatch.setenv("DEEPCTL_CONFIG", str(made / ".config/deepctl/config.toml"))
    return made


def _resolve(user: Path, *paths: str) -> tuple[str, ...]:
    settings = load(os.environ, options={"read_only_paths": ",".join(paths)})
    return read_only.resolve(settings.paths("read_only_paths"), os.environ, Root(str(user / "root")))


def _run(sandbox: Bubblewrap | NoSandbox, root: Path, script: str) -> tuple[int, str]:
    done = asyncio.run(sandbox.commands(str(root)).run(["/bin/sh", "-c", script]))
    return done.exit_code, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [Bubblewrap, NoSandbox])
def test_programs_are_behind_those_of_the_system(user: Path, kind: type[Bubblewrap | NoSandbox]) -> None:
    (user / ".cargo/bin/ls").write_text("#!/bin/sh\necho wrong\n")
    (user / ".cargo/bin/ls").chmod(0o755)
    sandbox = kind(read_only_paths=_resolve(user, "~/.rustup", "~/.cargo/bin"))
    work = user / "work"
    work.mkdir()
    assert _run(sandbox, work, "tool && ls") == (0, f"tool {user}/.rustup\n")


def test_they_are_read_only_and_nothing_beside_them_is_seen(user: Path) -> None:
    sandbox = Bubblewrap(read_only_paths=_resolve(user, "~/.cargo/bin"))
    work = user / "work"
    work.mkdir()
    code, printed = _run(sandbox, work, f"ls -A {user} {user}/.cargo; echo x > {user}/.cargo/bin/tool")
    assert code != 0
    assert printed.split("\n")[:5] == [f"{user}:", ".cargo", "", f"{user}/.cargo:", "bin"]
    assert "Read-only file system" in printed


def test_a_link_is_seen_under_both_paths(user: Path, tmp_path: Path) -> None:
    real = tmp_path / "data" / "go-1.2"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "go").write_text("#!/bin/sh\necho go\n")
    (real / "bin" / "go").chmod(0o755)
    (tmp_path / "go").symlink_to(real)
    sandbox = Bubblewrap(read_only_paths=_resolve(user, str(tmp_path / "go")))
    work = user / "work"
    work.mkdir()
    assert _run(sandbox, work, f"go; {real}/bin/go") == (0, "go\ngo\n")


REFUSED: dict[str, Callable[[Path], str]] = {
    "the home": lambda user: str(user),
    "what contains the home": lambda user: str(user.parent),
    "keys": lambda user: "~/.ssh",
    "a file in them": lambda user: "~/.ssh/id",
    "other keys": lambda user: "~/.gnupg",
    "credentials": lambda user: "~/.aws",
    "the root": lambda user: str(user / "root"),
    "a directory in the root": lambda user: str(user / "root/profiles"),
    "settings": lambda user: str(user / ".config/deepctl"),
    "what contains the settings": lambda user: "~/.config",
    "/run": lambda user: "/run",
    "a part of /proc": lambda user: "/proc/self",
    "/sys": lambda user: "/sys",
    "/dev": lambda user: "/dev",
    "what is missing": lambda user: "~/none",
    "a socket": lambda user: str(user / "sock/s"),
    "a directory with a socket": lambda user: str(user / "sock"),
    "a link to keys": lambda user: str(user / "link"),
    "a path through a link to keys": lambda user: str(user / "link/id"),
    "a link to the home": lambda user: str(user / "homelink"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_commands_must_not_see(user: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (user / "link").symlink_to(".ssh")
    (user / "homelink").symlink_to(".")
    monkeypatch.chdir(user / "sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")  # the whole path can be too long
        with pytest.raises(BadSetting, match=r"cannot contain"):
            _resolve(user, "~/.rustup", REFUSED[name](user))


@pytest.mark.parametrize("path", ["/", "~", "relative/x", "~other/x", "/opt/../root", "~/../x", "//", "$HOME/x"])
def test_what_is_no_path(user: Path, path: str) -> None:
    with pytest.raises(BadSetting, match="cannot be"):
        _resolve(user, path)


def test_no_paths(user: Path) -> None:
    assert _resolve(user, "none") == ()
    assert read_only.resolve(load(os.environ).paths("read_only_paths"), os.environ, Root(str(user))) == ()


def test_a_list_in_a_file(user: Path) -> None:
    config = user / ".config/deepctl/config.toml"
    config.write_text('read_only_paths = ["~/.rustup", "/usr/share"]\nprotected = []\nnetwork = true\n')
    settings = load(os.environ)
    root = Root(str(user / "root"))
    paths = settings.paths("read_only_paths")
    assert read_only.resolve(paths, os.environ, root) == (str(user / ".rustup"), "/usr/share")
    assert settings.paths("protected") == []
    assert settings.get("network") == "on"
