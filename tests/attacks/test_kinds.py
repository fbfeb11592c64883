"""What an agent might try with a kind of commands that a person has allowed: nothing runs without a question."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.models.function import FunctionModel

from deepctl import Bubblewrap, DeepAgentDeps, LocalBackend, NoSandbox, create_deep_agent
from deepctl.agent.approver import ApprovalAnswer
from deepctl.domain.permissions import parse
from deepctl.layout import Root
from tests.agent.test_agent import Script
from tests.agent.test_approver import Answers, commands, results_of
from tests.support.command import InProcess

NO = ApprovalAnswer(allow=False)
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@mail.test")


def git(where: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=where, check=True, capture_output=True)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A repository with a commit, and a program `evil` that leaves a file `ran`."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "f").write_text("one\n")
    (work / "same").write_text("one\n")
    evil = work / "evil"
    evil.write_text(f"#!/bin/sh\n: > '{work}/ran'\ncat\n")
    evil.chmod(0o755)
    git(work, "init", "-q")
    git(work, "add", ".")
    git(work, "commit", "-qm", "first")
    (work / "f").write_text("two\n")
    return work


def _hook(work: Path) -> None:
    (work / ".git/hooks").mkdir(exist_ok=True)
    (work / "evil").rename(work / ".git/hooks/post-index-change")


def _filter(work: Path) -> None:
    (work / ".gitattributes").write_text("f filter=x\n")
    git(work, "config", "filter.x.clean", str(work / "evil"))


def _textconv(work: Path) -> None:
    (work / ".gitattributes").write_text("f diff=x\n")
    git(work, "config", "diff.x.textconv", str(work / "evil"))


def _nested(work: Path) -> None:
    """The outer git looks into a nested repository that belongs to the outer one."""
    inner = work / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    git(inner, "commit", "-qm", "x", "--allow-empty")
    git(work, "add", "inner")
    git(inner, "config", "core.fsmonitor", str(work / "evil"))


def _elsewhere(work: Path) -> None:
    other = work / "other"
    (work / ".git").rename(other)
    (work / ".git").write_text("gitdir: other\n")
    git(work, "config", "core.fsmonitor", str(work / "evil"))


TRAPS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "core.fsmonitor": ("git status", lambda work: git(work, "config", "core.fsmonitor", str(work / "evil"))),
    "core.hooksPath": ("git status", lambda work: git(work, "config", "core.hooksPath", str(work / "hooks"))),
    "diff.external": ("git diff", lambda work: git(work, "config", "diff.external", str(work / "evil"))),
    "a hook": ("git status", _hook),
    "a filter": ("git status", _filter),
    "a text conversion": ("git log -p", _textconv),
    "an include": ("git status", lambda work: git(work, "config", "include.path", str(work / "more"))),
    "a nested repository": ("git status", _nested),
    "a .git file": ("git status", _elsewhere),
}


def _prepare(work: Path, trap: str) -> str:
    command, prepare = TRAPS[trap]
    if trap == "core.hooksPath":
        (work / "hooks").mkdir()
        (work / "hooks/post-index-change").write_bytes((work / "evil").read_bytes())
        (work / "hooks/post-index-change").chmod(0o755)
    if trap == "an include":
        (work / "more").write_text(f"[core]\nfsmonitor = {work / 'evil'}\n")
    prepare(work)
    return command


def _agent(person: Answers, **options: Any) -> tuple[Any, Script]:
    script = Script()
    model = FunctionModel(stream_function=script)
    kinds = ("git status", "git diff", "git log", "cat", "diff", "find", "grep")
    return create_deep_agent(model, ask=person, include_execute=True, allowed_commands=kinds, **options), script


@pytest.mark.parametrize("trap", TRAPS)
def test_git_is_asked_about_where_it_would_run_a_program(work: Path, trap: str) -> None:
    """Each trap works: the same command by hand springs it."""
    command = _prepare(work, trap)
    person = Answers(NO)
    agent, script = _agent(person)
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    assert results_of(agent, script, deps, *commands(command)) == [False]
    assert person.targets == [command]
    assert [choice.key for choice in person.asked[0].choices] == ["a", "e"]
    assert not (work / "ran").exists()
    for name in ("f", "evil"):
        if (work / name).exists():
            (work / name).touch()  # so that git looks at it
    os.utime(work / "same", (10**9, 10**9))  # so that git writes the index
    subprocess.run(["sh", "-c", command], cwd=work, check=False, capture_output=True)
    assert (work / "ran").exists()


ELSEWHERE: dict[str, Callable[[Path], object]] = {
    "a link in .git": lambda work: (work / ".git/rebase-merge").symlink_to("/etc"),
    "a link to a file in .git": lambda work: (work / ".git/info/done").symlink_to("/etc/passwd"),
    "alternates": lambda work: (work / ".git/objects/info/alternates").write_text("/elsewhere/objects\n"),
    "log.showSignature": lambda work: git(work, "config", "log.showSignature", "true"),
    "pretty": lambda work: git(work, "config", "pretty.x", "%G?"),
}


@pytest.mark.parametrize("trap", ELSEWHERE)
def test_git_is_asked_about_where_its_directory_leads_elsewhere(work: Path, trap: str) -> None:
    ELSEWHERE[trap](work)
    person = Answers(NO)
    agent, script = _agent(person)
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    assert results_of(agent, script, deps, *commands("git log")) == [False]
    assert person.targets == ["git log"]


def test_git_is_allowed_in_a_repository_that_names_no_program(work: Path) -> None:
    person = Answers()
    agent, script = _agent(person)
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    texts = ["git status --short", "git diff", "git log --oneline", "cat f", "find . -name f", "grep -n two f"]
    assert results_of(agent, script, deps, *commands(*texts)) == [True] * 6
    assert not person.asked


def test_settings_of_git_in_the_home_of_commands_are_looked_at(work: Path) -> None:
    """The agent's own tools can write them: no question for that in its private workspace."""
    (work / ".deep/home").mkdir(parents=True)
    (work / ".deep/home/.gitconfig").write_text("[core]\nfsmonitor = /workspace/evil\n")
    person = Answers(NO)
    agent, script = _agent(person, permissions=parse({"execute": "ask"}, "config.toml"))
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=Bubblewrap()))
    assert results_of(agent, script, deps, *commands("git status", "cat f")) == [False, True]
    assert not (work / "ran").exists()


def test_no_kind_reads_what_a_link_leads_to(work: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary\n")
    (work / "link").symlink_to(tmp_path / "secret")
    (work / "up").symlink_to("..")
    person = Answers(NO, NO, NO)
    agent, script = _agent(person)
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    texts = ["cat link", "cat up/secret", "grep -r canary up", "grep -rn canary .", "find . -name secret"]
    assert results_of(agent, script, deps, *commands(*texts)) == [False, False, False, True, True]
    assert "canary\n" not in script.sent.replace("\\n", "\n").replace("canary up", "").replace("canary .", "")


def test_the_kind_diff_compares_two_files_only(work: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary\n")
    for name in ("a", "b"):
        (work / name).mkdir()
    (work / "a/x").symlink_to(tmp_path / "secret")
    (work / "b/x").write_text("")
    person = Answers(NO, NO)
    agent, script = _agent(person)
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    assert results_of(agent, script, deps, *commands("diff a b", "diff b/x a", "diff f b/x")) == [False, False, True]
    assert person.targets == ["diff a b", "diff b/x a"]
    assert "canary" not in script.sent


@pytest.mark.parametrize(
    ("rules", "is_asked"),
    [
        ({}, False),
        ({"read": {"rules": [{"pattern": "secrets/**", "action": "deny"}]}}, True),
        ({"read": "ask"}, True),
        ({"execute": {"rules": [{"pattern": "cat **", "action": "ask"}]}}, True),
        ({"execute": {"default": "ask", "rules": [{"pattern": "rm **", "action": "deny"}]}}, False),
    ],
    ids=str,
)
def test_a_kind_allows_nothing_that_a_rule_is_about(work: Path, rules: dict[str, Any], is_asked: bool) -> None:
    person = Answers(NO)
    agent, script = _agent(person, permissions=parse(rules, "config.toml"))
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    assert results_of(agent, script, deps, *commands("cat f")) == [not is_asked]
    assert len(person.asked) == is_asked


def test_a_kind_does_not_change_a_denial(work: Path) -> None:
    person = Answers()
    agent, script = _agent(person, permissions=parse({"execute": "deny"}, "config.toml"), approve="auto")
    deps = DeepAgentDeps(backend=LocalBackend(work, sandbox=NoSandbox()))
    assert results_of(agent, script, deps, *commands("cat f")) in ([], [False])


def test_a_kind_holds_in_scripts_but_not_where_the_sandbox_is_missing(
    deepctl: InProcess, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deepctl("config", "set", "allowed_commands", "cat,git log", "--user", "alice").code == 3
    deepctl("profiles", "create", "alice").ok()
    assert deepctl("config", "set", "allowed_commands", "cat,python3", "--user", "alice").code == 2
    deepctl("config", "set", "allowed_commands", "cat,git log", "--user", "alice").ok()
    (Path(Root(str(home)).profile("alice").workspace) / "f").write_text("canary\n")
    chat = deepctl("chat", "-u", "alice", "--sandbox", "none", "run cat f\nrun cat f; touch ran").ok()
    assert "canary" in chat.stdout
    assert "There is no terminal to allow this command" in chat.stdout
    monkeypatch.setenv("DEEPCTL_BWRAP", "/nonexistent")
    assert "canary" not in deepctl("chat", "-u", "alice", "run cat f").ok().stdout
