"""Which files outside the workspace a typed prompt can name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepctl.domain import outside_files


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of a user with state, settings and files."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DEEPCTL_HOME", str(home / "state"))
    monkeypatch.setenv("DEEPCTL_CONFIG", str(home / ".config/deepctl/config.toml"))
    for name in (
        "docs/a b.txt", "docs/.env.example", "docs/app.env", "docs/.env", "docs/.env.local", "docs/.envrc",
        "docs/server.PEM", "docs/id_rsa", "docs/id_rsa.pub", "docs/.npmrc", ".netrc", ".ssh/config", ".aws/credentials",
        ".gnupg/x", ".config/gh/hosts.yml", ".config/deepctl/config.toml", ".config/deepctl/other", ".config/other/x",
        "state/profiles/alice/profile.toml", "state/profiles/bob/workspace/a.txt", "keys/one", ".sshx/y",
    ):  # fmt: skip
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    os.mkfifo(home / "docs/fifo")
    return home


@pytest.mark.parametrize(
    "name",
    ["docs/a b.txt", "docs/.env.example", "docs/app.env", "docs/id_rsa.pub", "docs", ".config/other/x", ".sshx/y",
     "docs/../docs/a b.txt", ".config", ""],
)  # fmt: skip
def test_an_ordinary_file_or_directory_can_be_named(user: Path, name: str) -> None:
    real = os.path.normpath(user / name)
    for path in (f"~/{name}", f"{user}/{name}"):
        found = outside_files.find(path)
        assert found == (real, real if os.path.isdir(real) else os.path.dirname(real), None)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (".ssh/config", "~/.ssh is a directory for keys"),
        (".ssh", "~/.ssh is a directory for keys"),
        (".aws/credentials", "~/.aws is a directory for keys"),
        (".gnupg/x", "~/.gnupg is a directory for keys"),
        (".config/gh/hosts.yml", "~/.config/gh is a directory for keys"),
        *((f"docs/{name}", "a file of that name usually has keys")
          for name in (".env", ".env.local", ".envrc", "server.PEM", "id_rsa", ".npmrc", "../.netrc")),
        (".config/deepctl/config.toml", "it belongs to deepctl's settings"),
        (".config/deepctl/other", "it belongs to deepctl's settings"),
        ("state", "it is part of deepctl's own state"),
        ("state/profiles/alice/profile.toml", "it is part of deepctl's own state"),
        ("state/profiles/bob/workspace/a.txt", "it is part of deepctl's own state"),
        ("docs/fifo", "it is not a regular file"),
    ],
)  # fmt: skip
def test_keys_and_deepctls_own_files_cannot_also_not_through_a_link(user: Path, name: str, problem: str) -> None:
    (user / "docs/link").symlink_to(user / name)
    (user / "docs/up").symlink_to((user / name).parent)
    for path in (f"~/{name}", f"{user}/{name}", "~/docs/link", f"~/docs/up/{os.path.basename(name)}"):
        found = outside_files.find(path)
        assert found is not None
        assert found.problem == problem, path


def test_a_directory_for_keys_that_is_a_link_is_one_where_it_leads(user: Path) -> None:
    (user / ".kube").symlink_to(user / "keys")
    for path in ("~/.kube/one", "~/keys/one"):
        found = outside_files.find(path)
        assert found is not None
        assert found.problem == "~/.kube is a directory for keys"


@pytest.mark.parametrize("path", ["/proc/self/environ", "/dev/null", "/dev/tty", "/sys/kernel"])
def test_the_state_of_the_system_cannot(user: Path, path: str) -> None:
    found = outside_files.find(path)
    assert found is None or (found.problem or "").endswith(("belongs to the system", "it is not a regular file"))


@pytest.mark.parametrize("path", ["~/none", "/none/at/all", "docs/a b.txt", "~root/x", "~docs", "", "/\0", "../x"])
def test_what_is_not_there_or_not_absolute_is_nothing(user: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user)
    assert outside_files.find(path) is None
