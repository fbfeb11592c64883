"""Searches of a project: they find what git would list, unless they name something else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from deepctl import LocalBackend
from deepctl.domain import projects


def _write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("needle\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    root.mkdir()
    subprocess.run(["git", "init", "-q", "-b", "main"], cwd=root, check=True)
    (root / ".gitignore").write_text("node_modules/\n*.log\n/build/\n!keep.log\n")
    _write(root, "a.js", "src/b.js", "src/build/c.js", "build/d.js", "node_modules/x/e.js", "src/node_modules/f.js")
    _write(root, "src/g.log", "src/keep.log", "[odd]*/h.js", "weird\nname/i.js")
    (root / "src" / ".gitignore").write_text("secret/\n")
    _write(root, "src/secret/j.js", "secret/k.js", ".github/l.js")
    return root


@pytest.fixture
def backend(project: Path, tmp_path: Path) -> LocalBackend:
    return LocalBackend(project, profile_dir=tmp_path / "profile")


def _glob(backend: LocalBackend, pattern: str, where: str = ".") -> list[str]:
    return anyio.run(backend.glob, pattern, where)


def _grep(backend: LocalBackend, where: str = ".", **options: Any) -> list[str]:
    async def run() -> list[str]:
        lines = await backend.grep("needle", where, options.get("names"), with_hidden=options.get("with_hidden", True))
        return sorted(line.path for line in lines)

    return anyio.run(run)


VISIBLE = [".github/l.js", "[odd]*/h.js", "a.js", "secret/k.js", "src/b.js", "src/build/c.js", "weird\nname/i.js"]


def test_what_git_ignores_is_left_out(backend: LocalBackend) -> None:
    assert _glob(backend, "*.js") == sorted(VISIBLE)
    assert _grep(backend) == sorted([f"./{path}" for path in [*VISIBLE, "src/keep.log"]])
    assert _glob(backend, "*.log") == ["src/keep.log"]
    assert _glob(backend, "HEAD") == []


def test_what_git_would_list_is_what_a_search_finds(backend: LocalBackend, project: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=project, check=True, capture_output=True, text=True
    ).stdout
    assert _glob(backend, "*") == sorted(listed.strip("\0").split("\0"))


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("node_modules", ["node_modules/x/e.js"]),
        ("node_modules/x", ["node_modules/x/e.js"]),
        ("build", ["build/d.js"]),
        ("src", ["src/b.js", "src/build/c.js"]),
        ("src/secret/j.js", ["src/secret/j.js"]),
        ("/workspace/src/secret", ["/workspace/src/secret/j.js"]),
        ("linked", ["linked/b.js", "linked/build/c.js"]),
        ("to_modules", ["to_modules/x/e.js"]),
    ],
)
def test_a_named_directory_is_searched(backend: LocalBackend, project: Path, where: str, found: list[str]) -> None:
    (project / "linked").symlink_to("src")
    (project / "to_modules").symlink_to("node_modules")
    assert _glob(backend, "*.js", where) == found
    assert _grep(backend, where, names="*.js") == found


def test_tracked_files_are_found_although_they_are_ignored(backend: LocalBackend, project: Path) -> None:
    subprocess.run(["git", "add", "-f", "build/d.js"], cwd=project, check=True)
    assert "build/d.js" in _glob(backend, "*.js")
    assert "./build/d.js" in _grep(backend)


def test_nested_repositories_are_left_out_unless_named(backend: LocalBackend, project: Path) -> None:
    subprocess.run(["git", "init", "-q", "vendor/lib"], cwd=project, check=True)
    _write(project, "vendor/lib/m.js")
    assert "vendor/lib/m.js" not in _glob(backend, "*.js")
    assert _glob(backend, "*.js", "vendor/lib") == ["vendor/lib/m.js"]


def test_ignored_directories_are_not_entered(project: Path) -> None:
    scope = projects.search_scope(str(project), "")
    assert scope.directory_names == (".git", "node_modules")
    assert not scope.covers("/src/secret/j.js")
    assert scope.covers("/secret/k.js")


def test_without_git_everything_is_searched(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    _write(root, "a.js", "node_modules/e.js")
    (root / ".gitignore").write_text("node_modules/\n")
    backend = LocalBackend(root, profile_dir=tmp_path / "profile")
    assert _glob(backend, "*.js") == ["a.js", "node_modules/e.js"]


def test_the_profile_and_private_workspaces_are_searched_whole(backend: LocalBackend, tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    (profile / ".gitignore").write_text("*.js\n")
    (profile / ".git").mkdir()
    _write(profile, "n.js")
    assert _glob(backend, "*.js", "/profile") == ["/profile/n.js"]
    assert _glob(LocalBackend(profile), "*.js") == ["n.js"]


def test_a_directory_that_cannot_be_read_or_is_a_link_ends_no_search(backend: LocalBackend, project: Path) -> None:
    (project / "loop").symlink_to(".")
    (project / "out").symlink_to(project.parent)
    os.mkfifo(project / "src" / "sub.gitignore")
    (project / "secret" / ".gitignore").symlink_to("/etc/passwd")
    (project / "shut").mkdir(mode=0)
    assert _glob(backend, "*.js") == sorted(VISIBLE)
