"""Commands of a backend in a project: what is set aside, what is said, and which repositories are named."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic_ai.workspaces import WorkspaceError

from deepctl import Bubblewrap, LocalBackend, NoSandbox
from deepctl.sandbox.policy import Limits


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    made = tmp_path / "shop"
    made.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=made, check=True)
    (made / "profile").mkdir()
    return made


def _backend(shop: Path, *, by_user: bool = False) -> LocalBackend:
    return LocalBackend(shop, sandbox=Bubblewrap(), profile_dir=shop.parent / "workspace", by_user=by_user)


def _run(backend: LocalBackend, command: str) -> str:
    async def run() -> str:
        result = await backend.run(command, shell=True)
        return result.stdout + result.stderr

    return asyncio.run(run())


@pytest.mark.parametrize(
    "command",
    [
        "git config user.name Eve",
        "git remote add origin /tmp/x",
        "echo x > .git/hooks/pre-commit",
        "cd .git && echo x > hooks/pre-commit",
        "cd .git && rm -f config",
        "mkdir .git/modules/x",
    ],
)
def test_a_refusal_of_settings_is_explained(shop: Path, command: str) -> None:
    assert "are read-only for commands (docs/isolation.md)" in _run(_backend(shop), command)


@pytest.mark.parametrize(
    "command",
    ["echo x > .envrc", "rm -rf .envrc", "mkdir .envrc", "echo x > .vscode/tasks.json", "echo > a; mv -T a .envrc"],
)
def test_a_refusal_of_a_protected_file_is_explained(shop: Path, command: str) -> None:
    printed = _run(_backend(shop), command)
    assert "deepctl: commands cannot change or create this protected path" in printed
    assert ("`protected`, docs/isolation.md): .vscode\n" in printed) == (".vscode" in command)


@pytest.mark.parametrize(
    "command", ["cat /none", "git status", "echo Is a directory", "mkdir profile", "rm -f /bin/sh"]
)
def test_other_failures_are_not(shop: Path, command: str) -> None:
    assert "deepctl:" not in _run(_backend(shop), command)


def test_nested_repositories_are_named_once(shop: Path) -> None:
    backend = _backend(shop)
    _run(backend, "git init -q sub && git init -q --bare b.git && mkdir -p a/b && cd a/b && git init -q && rm -rf .git")
    _run(backend, "git init -q lib && git -C lib commit -q --allow-empty -m x; rm -rf b.git")
    assert backend.take_created_repositories() == ["sub", "lib"]
    assert backend.take_created_repositories() == []
    _run(backend, "git -C sub status")
    assert backend.take_created_repositories() == []


def test_a_project_that_becomes_a_repository_is_named(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    backend = _backend(tmp_path / "plain")
    _run(backend, "git init -q")
    assert backend.take_created_repositories() == ["."]


def test_unsandboxed_commands_name_them_too(shop: Path) -> None:
    backend = LocalBackend(shop, sandbox=NoSandbox(), profile_dir=shop.parent / "workspace")
    assert "deepctl:" not in _run(backend, "git init -q sub && git -C sub config core.fsmonitor evil")
    assert backend.take_created_repositories() == ["sub"]


def test_what_is_left_in_nested_repositories_is_set_aside(shop: Path) -> None:
    printed = _run(_backend(shop), "git init -q sub && git -C sub config core.fsmonitor evil")
    assert "sub/.git/config: core.fsmonitor = evil" in printed
    assert "fsmonitor" not in (shop / "sub/.git/config").read_text()
    assert "fsmonitor" in (shop / "sub/.git/config.disabled").read_text()


def test_what_is_left_in_the_workspace_of_the_profile_is_set_aside(shop: Path) -> None:
    assert "core.pager = evil" in _run(
        _backend(shop), "git init -q /profile/r && git -C /profile/r config core.pager evil"
    )


@pytest.mark.parametrize(
    "command",
    [
        "mkdir -p evil/objects evil/refs && echo ref: refs/heads/main > evil/HEAD && "
        "printf '[core]\\n\\tfsmonitor = evil\\n' > evil/config && echo ../evil > .git/commondir",
        "git init -q --separate-git-dir evil sub && git --git-dir evil config core.fsmonitor evil",
    ],
)
def test_settings_behind_pointers_are_set_aside(shop: Path, command: str) -> None:
    printed = _run(_backend(shop), command)
    assert "evil/config: core.fsmonitor = evil" in printed


def test_the_disk_of_the_profile_is_watched_too(shop: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != os.stat(shop).st_dev
        limits = Limits(disk=16 << 20)
        backend = LocalBackend(shop, sandbox=Bubblewrap(limits=limits), profile_dir=Path(elsewhere) / "workspace")
        command = "for n in 1 2 3; do head -c 9000000 /dev/zero > /profile/$n; done; sleep 5; echo survived"
        with pytest.raises(WorkspaceError, match="more than 16 MiB were written"):
            _run(backend, command)


def _meanwhile(backend: LocalBackend, shop: Path, act: Callable[[], object]) -> str:
    async def both() -> str:
        command = asyncio.create_task(backend.run("touch began; sleep 1; echo x >> .git/config", shell=True))
        while not (shop / "began").exists():
            await asyncio.sleep(0.01)
        act()
        result = await command
        return result.stderr

    return asyncio.run(both())


def test_what_the_user_writes_meanwhile_stays(shop: Path) -> None:
    """A command cannot have written it."""

    def act() -> None:
        with (shop / ".git/config").open("a") as file:
            file.write("[core]\n\thooksPath = .husky\n")
        (shop / ".git/hooks/post-commit").write_text("#!/bin/sh\n")

    assert "moved" not in _meanwhile(_backend(shop), shop, act)
    assert (shop / ".git/config").read_text().endswith("hooksPath = .husky\n")
    assert (shop / ".git/hooks/post-commit").exists()


def test_a_file_that_the_user_replaces_meanwhile_is_looked_at(shop: Path) -> None:
    """The mount on the first file is gone, so the command can write to the new one."""

    def act() -> None:
        subprocess.run(["git", "config", "core.hooksPath", ".husky"], cwd=shop, check=True)

    assert "hookspath = .husky" in _meanwhile(_backend(shop), shop, act)
    assert "hooksPath" not in (shop / ".git/config").read_text()
    assert "hooksPath" in (shop / ".git/config.disabled").read_text()
