"""An agent builds, tests and destroys a real project; a rewind and its undo restore bytes, modes and links."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.projects.sdists import PACKAGES, contents, git, repository_digest, unpack
from tests.support.command import InProcess

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = PACKAGES if _SOAK else PACKAGES[:1]

_BUILD = f"{sys.executable} -m compileall -q src && mkdir -p build && tar cf build/all.tar src && echo built"
_TEST = f"PYTHONPATH=src {sys.executable} -m pytest -q -p no:xdist -x {{}} && echo tests passed"
_SOME_TESTS = {"click": "tests/test_parser.py tests/test_formatting.py", "markupsafe": "tests/test_escape.py"}

_DESTROY = (
    "find src tests docs -type f 2>/dev/null | sort | awk 'NR % 2' | xargs rm",
    "rm -r tests latest && mkdir latest && echo x > latest/inner",
    "chmod 600 run-tests && rm dangling private && ln -s /etc/hostname private",
    "for f in $(find src -type f | head -3); do echo damaged >> $f; done; echo new > new.txt",
)


@pytest.fixture(params=_SAMPLE)
def package(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def project(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "projects"
    place.mkdir()
    return unpack(package, place)


class Agent:
    """The offline model in a project, whose commands run without a sandbox, as the user."""

    def __init__(self, deepctl: InProcess, project: Path) -> None:
        self._deepctl = deepctl
        self._project = project

    def run(self, *commands: str) -> str:
        """One turn in which the agent runs these commands; returns its answer."""
        prompt = "\n".join(f"run {command}" for command in commands)
        options = ("--user", "alice", "--sandbox", "none", "--approve", "auto", "--json")
        result = self._deepctl("chat", "-C", str(self._project), prompt, *options).ok()
        assert result.events[-1]["type"] != "error", result.events[-1]
        return result.stdout

    def checkpoints(self, *words: str) -> dict[str, object]:
        """A command about the checkpoints of the project's session; returns its JSON."""
        document: dict[str, object] = (
            self._deepctl("checkpoints", *words, "-C", str(self._project), "--user", "alice", "--json").ok().json
        )
        return document


@pytest.fixture
def agent(deepctl: InProcess, project: Path) -> Agent:
    return Agent(deepctl, project)


def test_what_a_command_destroyed_comes_back_and_git_is_as_before(
    deepctl: InProcess, agent: Agent, project: Path, package: str
) -> None:
    before, git_before = contents(project), repository_digest(project)
    status = git(project, "status", "--porcelain")
    tests = "" if _SOAK else _SOME_TESTS[package]
    answer = agent.run(_BUILD, _TEST.format(tests))
    assert "tests passed" in answer, answer
    assert contents(project) == before
    built = contents(project, ignored=True)
    assert "build/all.tar" in built
    agent.run(*_DESTROY)
    destroyed = contents(project)
    assert len(before.keys() - destroyed.keys()) > len(before) // 3
    ignored = {path: entry for path, entry in contents(project, ignored=True).items() if path not in destroyed}

    result = agent.checkpoints("rewind", "~1")
    assert contents(project) == before
    assert git(project, "status", "--porcelain") == status
    assert repository_digest(project) == git_before
    files = result["files"]
    assert isinstance(files, dict)
    assert (files["conflicts"], files["kept"]) == ([], [])
    assert set(files["commands"]) <= {*files["restored"], *files["deleted"]}
    after = {path: entry for path, entry in contents(project, ignored=True).items() if path not in before}
    assert after == ignored, "nothing that git ignores was changed"

    agent.checkpoints("undo")
    assert contents(project) == destroyed
    assert repository_digest(project) == git_before
    agent.checkpoints("undo")
    assert contents(project) == before
    assert repository_digest(project) == git_before
    assert deepctl("checkpoints", "verify", "--user", "alice", "--json").ok().json["damaged"] == []


def test_commits_of_the_agent_stay_and_are_listed(agent: Agent, project: Path) -> None:
    before = contents(project)
    commit = "git -c user.name=Agent -c user.email=agent@localhost commit --quiet --message"
    agent.run(
        f"git rm -r --quiet tests && {commit} without-tests",
        f"echo x > new.txt && git add new.txt && {commit} with-new",
        "rm -r src",
    )
    head = git(project, "rev-parse", "HEAD")
    committed, git_committed = contents(project), repository_digest(project)
    result = agent.checkpoints("rewind", "~1")
    assert contents(project) == before
    assert repository_digest(project) == git_committed
    assert git(project, "rev-parse", "HEAD") == head
    commits = result["commits"]
    assert isinstance(commits, list)
    assert [one["subject"] for one in commits] == ["with-new", "without-tests"]
    assert [one["id"] for one in commits] == git(project, "rev-list", "HEAD~2..HEAD").split()
    agent.checkpoints("undo")
    assert contents(project) == committed
    assert repository_digest(project) == git_committed
