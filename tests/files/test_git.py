"""Git repositories: HEAD and branch are those of git, and no repository makes deepctl run a program."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from deepctl.files import git
from deepctl.files.git import Commit, GitFailed, GitHead

_WHO = ("-c", "user.name=Alice", "-c", "user.email=alice@example.com", "-c", "init.defaultBranch=main")


def run(root: Path, *arguments: str) -> str:
    """The output of git, as a person runs it."""
    command = ["git", *_WHO, "-c", "commit.gpgSign=false", "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    run(root, "init", "-q")
    return root


def commit(root: Path, message: str) -> str:
    (root / "file.txt").write_text(message)
    run(root, "add", "-A")
    run(root, "commit", "-q", "--allow-empty-message", "-m", message)
    return run(root, "rev-parse", "HEAD")


def test_head_and_branch_are_those_of_git(root: Path) -> None:
    assert git.head(str(root)) == GitHead("", "main")
    first = commit(root, "one")
    assert git.head(str(root)) == GitHead(first, "main")
    run(root, "checkout", "-q", "-b", "topic/a.b")
    second = commit(root, "two")
    assert git.head(str(root)) == GitHead(second, "topic/a.b")
    run(root, "pack-refs", "--all")
    assert not (root / ".git/refs/heads/main").exists()
    assert git.head(str(root)) == GitHead(second, "topic/a.b")
    third = commit(root, "three")  # a file precedes the packed references
    assert git.head(str(root)) == GitHead(third, "topic/a.b")
    (root / "below").mkdir()
    assert git.head(str(root / "below")) == GitHead(third, "topic/a.b")
    run(root, "checkout", "-q", "--detach", first)
    assert git.head(str(root)) == GitHead(first, "")
    run(root, "checkout", "-q", "--orphan", "new")
    assert git.head(str(root)) == GitHead("", "new")
    run(root, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    run(root, "symbolic-ref", "HEAD", "refs/heads/alias")
    assert git.head(str(root)) == GitHead(first, "alias")


def test_a_linked_worktree_and_a_submodule_have_their_own_head(root: Path, tmp_path: Path) -> None:
    first = commit(root, "one")
    linked = tmp_path / "linked"
    run(root, "worktree", "add", "-q", "-b", "side", str(linked))
    second = commit(linked, "two")
    assert (linked / ".git").is_file()
    for pack in (False, True):
        if pack:
            run(root, "pack-refs", "--all")
        assert git.head(str(linked)) == GitHead(second, "side")
        assert git.head(str(root)) == GitHead(first, "main")
    place = git.worktree(str(linked))
    assert place is not None
    assert (place.top, place.common) == (str(linked), str(root / ".git"))
    assert place.directory == str(root / ".git/worktrees/linked")
    other = tmp_path / "other"
    other.mkdir()
    run(other, "init", "-q")
    commit(other, "outer")
    run(other, "submodule", "--quiet", "add", str(root), "inner")
    assert (other / "inner/.git").is_file()
    assert git.head(str(other / "inner")) == GitHead(first, "main")


def test_what_git_does_not_take_for_a_repository_is_none(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert git.worktree(str(tmp_path / "plain")) is None
    assert git.head(str(tmp_path / "plain")) is None
    for number, content in enumerate((None, b"", b"gitdir: ", b"gitdir: nowhere\n", b"gitdir: \0\n", b"x" * (2 << 20))):
        directory = tmp_path / str(number)
        directory.mkdir()
        if content is None:
            (directory / ".git").mkdir()
        else:
            (directory / ".git").write_bytes(content)
        assert git.worktree(str(directory)) is None
        assert not git.is_nested(str(directory / ".git"))
    os.mkfifo(tmp_path / "plain" / ".git")
    assert git.worktree(str(tmp_path / "plain")) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ref: refs/heads/../../../secret\n",
        b"ref: refs/heads/x\0y\n",
        b"nonsense\n",
        b"ref: HEAD\n",
        b"ref: /etc/passwd\n",
        b"f" * 39 + b"\n",
    ],
)
def test_a_damaged_head_is_none(root: Path, content: bytes) -> None:
    commit(root, "one")
    (root / ".git" / "secret").write_text("a" * 40)
    (root / ".git" / "HEAD").write_bytes(content)
    assert git.head(str(root)) is None


def test_references_that_lead_in_a_circle_or_hang_are_none(root: Path) -> None:
    commit(root, "one")
    (root / ".git/refs/heads/main").write_text("ref: refs/heads/main\n")
    assert git.head(str(root)) is None
    (root / ".git/refs/heads/main").unlink()
    os.mkfifo(root / ".git/refs/heads/main")
    assert git.head(str(root)) == GitHead("", "main")
    (root / ".git/HEAD").unlink()
    os.mkfifo(root / ".git/HEAD")
    assert git.head(str(root)) is None


def test_the_commits_between_two_heads(root: Path) -> None:
    first = commit(root, "one")
    second = commit(root, "two ü\n\nand more")
    third = commit(root, "")
    assert git.commits_between(str(root), first, third) == [Commit(third, ""), Commit(second, "two ü")]
    assert git.commits_between(str(root), third, first) == []
    assert [commit.id for commit in git.commits_between(str(root), "", second)] == [second, first]
    assert git.commits_between(str(root), first, "") == []
    assert git.commits_between(str(root), first, third, since=time.time() + 60) == []
    for wrong in ("--all", "HEAD", "main; rm", first[:39]):
        with pytest.raises(GitFailed, match="is not the hash"):
            git.commits_between(str(root), first, wrong)
    with pytest.raises(GitFailed, match="bad object"):
        git.commits_between(str(root), first, "0" * 39 + "1")


def test_no_program_of_a_repository_is_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is started by git as a person runs it, or was in some version."""
    first = commit(root, "one")
    second = commit(root, "two")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    for name in ("core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "gpg.program", "diff.external"):
        run(root, "config", name, str(trap))
    run(root, "config", "filter.x.clean", str(trap))
    run(root, "config", "filter.x.process", str(trap))
    run(root, "config", "log.showSignature", "true")
    run(root, "config", "alias.ls-files", f"!{trap}")
    run(root, "config", "pager.rev-list", str(trap))
    (root / ".git/info").mkdir(exist_ok=True)
    (root / ".git/info/attributes").write_text("* filter=x diff=x\n")
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction"):
        os.symlink(trap, root / ".git/hooks" / hook)
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_PAGER", "GIT_EXTERNAL_DIFF", "GIT_EXEC_PATH", "GIT_CONFIG_COUNT"):
        monkeypatch.setenv(name, str(trap))
    binaries = root / "bin"
    binaries.mkdir()
    os.symlink(trap, binaries / "git")
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    (root / "file.txt").write_text("changed")
    index = (root / ".git/index").read_bytes()
    assert git.run(str(root), "ls-files", "-z", "-m", "-o") == b"bin/git\0file.txt\0"
    assert [commit.id for commit in git.commits_between(str(root), first, second)] == [second]
    assert not (tmp_path / "sprung").exists()
    assert (root / ".git/index").read_bytes() == index


def test_a_failure_has_the_reason_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GitFailed, match="not a git repository"):
        git.run(str(tmp_path), "ls-files")
    with pytest.raises(GitFailed, match="cannot be started"):
        git.run(str(tmp_path / "nowhere"), "ls-files")
    monkeypatch.setattr(git, "_SECONDS", 0.05)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(GitFailed, match=r"hash-object did not end within 0.05 s"):
        git.run(str(tmp_path), "hash-object", "--no-filters", "fifo")
    monkeypatch.setattr(git, "program", lambda: None)
    with pytest.raises(GitFailed, match="git is not installed"):
        git.run(str(tmp_path), "ls-files")
