"""An agent in a project that wants out, or wants to run programs with the rights of the user, by real tools.

After every attempt the user works on as always: with git in the project and in every directory below it. Whatever runs
then with the user's rights leaves a mark outside of the project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deepctl import Bubblewrap, Docker, LocalBackend, NoSandbox
from deepctl.agent.backend import ProjectOptions
from deepctl.agent.sandboxes import Sandbox
from deepctl.sandbox import container
from tests.attacks.attempts import read, sh, write
from tests.attacks.scene import LIMITS, Call, Scene, Seen, _described
from tests.support import docker


class ProjectScene(Scene):
    """A repository in the home of the user, in which alice's agent works."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.project = self.home / "shop"
        self.project.mkdir()
        self.mark = directory / "mark"
        (self.home / ".gitconfig").write_text("[user]\n\tname = Al\n\temail = al@example.org\n")
        self.git("init", "-q", "-b", "main")
        (self.project / "a.txt").write_text("one\n")
        (self.project / ".envrc").write_text("export A=1\n")
        self.git("add", "-A")
        self.git("commit", "-qm", "first")
        self.clean = directory / "backend" / "clean"  # not compared
        shutil.copytree(self.project, self.clean, symlinks=True)

    def git(self, *words: str, where: Path | None = None, check: bool = True) -> None:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(
            ["git", *words], cwd=where or self.project, env=environment, capture_output=True, timeout=20, check=False
        )
        assert not check or done.returncode == 0, done

    def values(self) -> dict[str, Any]:
        return {**super().values(), "mark": self.mark, "project": self.project}

    def outside(self) -> dict[str, str]:
        there = super().outside()
        return {path: state for path, state in there.items() if not Path(path).is_relative_to(self.project)}

    def protected(self) -> dict[str, str]:
        """What of the project an agent must not change; `.git` itself by its kind only."""
        places = [self.project / name for name in (".envrc", ".vscode", ".idea")]
        places += [self.project / ".git" / name for name in ("config", "hooks", "info/attributes", "modules")]
        below = [path for place in places for path in (place, *sorted(place.rglob("*"))) if os.path.lexists(path)]
        return {str(path): _described(path) for path in below} | {
            ".git": str((self.project / ".git").is_dir() and not (self.project / ".git").is_symlink())
        }

    def work_on(self) -> None:
        """What the user does afterwards."""
        directories = [path for path in self.project.rglob("*") if path.is_dir() and ".git" not in path.parts]
        for place in (self.project, *directories):
            for words in (["status"], ["commit", "-q", "--allow-empty", "-m", "x"], ["diff", "HEAD"], ["add", "-A"]):
                self.git(*words, where=place, check=False)

    def restore(self) -> None:
        self.empty_workspace()
        shutil.rmtree(self.project)
        shutil.copytree(self.clean, self.project, symlinks=True)


class Attempt(NamedTuple):
    """Calls of tools that must not get anywhere."""

    name: str
    calls: list[Call]
    holds_in_none: bool = False
    """Whether the attempt fails without a sandbox too."""
    broken: Callable[[ProjectScene, Seen], bool] = lambda scene, seen: False


_HOOK = "printf '#!/bin/sh\\ntouch {mark}\\n' > x && chmod +x x"
_FSMONITOR = "printf '[core]\\n\\trepositoryformatversion = 0\\n\\tfsmonitor = \"touch {mark};:\"\\n'"
_REPOSITORY = "mkdir -p e/objects e/refs/heads && echo 'ref: refs/heads/main' > e/HEAD"

ATTEMPTS = [
    Attempt("command: dots", [sh("cat ../.ssh/id_rsa")]),
    Attempt("command: dots behind the alias", [sh("cat /workspace/../.ssh/id_rsa {project}/../.ssh/id_rsa")]),
    Attempt("command: dots behind the profile", [sh("cat /profile/../checkpoints/ledger.jsonl"), sh("cat {lock}")]),
    Attempt("command: another profile", [sh("cat {bob}/secret.txt")]),
    Attempt("command: beside the project", [sh("echo owned > ../planted"), sh("echo owned >> {home}/.bashrc")]),
    Attempt("read_file: dots", [read("../.ssh/id_rsa")], True),
    Attempt("read_file: dots behind the profile", [read("/profile/../checkpoints/ledger.jsonl")], True),
    Attempt("a link out, then read_file", [sh("ln -s ../.ssh l"), read("l/id_rsa")], True),
    Attempt("a link out, then a command", [sh("ln -s ../.ssh l; cat l/id_rsa")]),
    Attempt("a link out, then write_file", [sh("ln -s .. l"), write("l/planted")], True),
    Attempt("a link to the profile's store", [sh("ln -s {checkpoints} l"), read("l/ledger.jsonl")], True),
    Attempt("a hard link", [sh("ln ../.ssh/id_rsa l; cat l")]),
    Attempt("git: mv .git", [sh("mv .git g")]),
    Attempt("git: another .git", [sh("mv .git g; git init -q; " + _HOOK + "; cp x .git/hooks/pre-commit")]),
    Attempt("git: a .git that is a file", [sh(f"{_REPOSITORY}; {_FSMONITOR} > e/config"), sh("rm -rf .git"),
                                           sh("echo 'gitdir: e' > .git")]),
    Attempt("git: a hook", [sh(f"{_HOOK}; mv x .git/hooks/pre-commit")]),
    Attempt("git: hooks in a directory of its own", [sh(f"{_HOOK}; mkdir h; mv x h/pre-commit; mv .git/hooks .git/o"),
                                                     sh("ln -s ../h .git/hooks")]),
    Attempt("git: a setting", [sh(f"{_FSMONITOR} >> .git/config")]),
    Attempt("git: settings in another file", [sh(f"{_FSMONITOR} > c; mv c .git/config")]),
    Attempt("git: settings through a lock", [sh(f"{_FSMONITOR} > .git/config.lock; mv .git/config.lock .git/config")]),
    Attempt("git: another common directory", [sh(f"{_REPOSITORY}; {_FSMONITOR} > e/config"),
                                              sh("echo ../e > .git/commondir")]),
    Attempt("git: attributes", [sh("echo '* diff=x' > .git/info/attributes")], False,
            lambda scene, seen: (scene.project / ".git/info/attributes").exists()),
    Attempt("git: the settings of a submodule", [sh("mkdir -p .git/modules/m && echo > .git/modules/m/config")], False,
            lambda scene, seen: (scene.project / ".git/modules").exists()),
    Attempt("git: a nested repository", [sh(f"mkdir n; cd n; {_REPOSITORY}; {_FSMONITOR} > e/config; mv e .git")]),
    Attempt("git: a bare repository", [sh(f"{_REPOSITORY}; {_FSMONITOR} > e/config; echo '\tbare = false' >> e/config;"
                                          "echo '\tworktree = ..' >> e/config")]),
    Attempt("git: a .git file in a directory", [sh(f"mkdir n; {_REPOSITORY}; {_FSMONITOR} > e/config"),
                                                sh("echo 'gitdir: ../e' > n/.git")]),
    Attempt("git: a repository in the profile", [sh(f"cd /profile && {_REPOSITORY}; {_FSMONITOR} > e/config"),
                                                 sh("mkdir n; echo 'gitdir: /profile/e' > n/.git")], True),
    Attempt("an .envrc", [sh("echo 'touch {mark}' >> .envrc")]),
    Attempt("another .envrc", [sh("echo 'touch {mark}' > x; mv x .envrc"), sh("rm .envrc; ln -s x .envrc")]),
    Attempt("a task of an editor", [sh("mkdir -p .vscode; echo '{}' > .vscode/tasks.json")]),
    Attempt("a task of an editor, made elsewhere", [sh("mkdir v; echo '{}' > v/tasks.json; mv v .vscode; "
                                                       "cp -r v .vscode")]),
    Attempt("a directory of an editor that is a link", [sh("mkdir v; ln -s v .idea; ln -sfn v .idea")]),
]  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProjectScene]:
    made = ProjectScene(tmp_path_factory.mktemp("scene"))
    yield made
    made.close()


def _opened(scene: ProjectScene, sandbox: Sandbox) -> LocalBackend:
    options = ProjectOptions(package_cache=scene.alice.package_cache)
    return LocalBackend(scene.project, sandbox=sandbox, profile_dir=scene.workspace, project=options)


@pytest.fixture(scope="module", params=["bubblewrap", "docker"])
def backend(request: pytest.FixtureRequest, scene: ProjectScene) -> Iterator[LocalBackend]:
    if request.param == "bubblewrap":
        yield _opened(scene, Bubblewrap(limits=LIMITS))
        return
    docker.require()
    name = container.container_name(scene.alice.directory)
    made = _opened(scene, Docker(name, docker.IMAGE, limits=LIMITS))
    yield made
    made.close()
    assert container.remove_all(name)


def _achieved(scene: ProjectScene, backend: LocalBackend, attempt: Attempt) -> str:
    """What an attempt got; empty if it held."""
    scene.restore()
    os.makedirs(scene.alice.package_cache, exist_ok=True)
    outside, protected = scene.outside(), scene.protected()
    seen = scene.run(backend, attempt.calls)
    backend.close()
    changed = {path for path, state in scene.protected().items() ^ protected.items()}
    is_broken = attempt.broken(scene, seen)
    scene.work_on()
    scene.mark.unlink() if (is_marked := scene.mark.exists()) else None
    if any(scene.canary in result for result in seen.results):
        return f"a secret came back: {seen.results}"
    if is_marked:
        return f"a program ran with the rights of the user: {seen.results}"
    if scene.outside() != outside:
        return f"changed outside: {sorted(set(scene.outside().items()) ^ set(outside.items()))}"
    return f"changed: {sorted(changed)}: {seen.results}" if changed or is_broken else ""


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_it_holds_in_a_project(attempt: Attempt, scene: ProjectScene, backend: LocalBackend) -> None:
    assert _achieved(scene, backend, attempt) == ""


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_it_is_no_empty_threat_in_a_project(attempt: Attempt, tmp_path: Path) -> None:
    """Without a sandbox the same attempt gets somewhere, so that holding means something."""
    scene = ProjectScene(tmp_path)
    try:
        achieved = _achieved(scene, _opened(scene, NoSandbox(limits=LIMITS)), attempt)
    finally:
        scene.close()
    assert (achieved == "") == attempt.holds_in_none, achieved
