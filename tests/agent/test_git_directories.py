"""What an agent leaves in a workspace for git, which a person runs there later, runs nothing of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.workspaces import WorkspaceTimeoutError

from deepctl import Bubblewrap, LocalBackend, NoSandbox
from deepctl.agent.approvals import Answer
from deepctl.errors import Refused
from deepctl.files.git_directories import disarm, survey
from deepctl.sandbox.policy import MOUNT
from tests.agent.test_agent import Call, _run
from tests.agent.test_approvals import NO, YES, Person, _rules

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")

_PERSON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace with a repository, with a hook and a setting of the user's own."""
    work = tmp_path / "work"
    (work / "repo").mkdir(parents=True)
    _git(work / "repo", "init", "-q")
    _git(work / "repo", "config", "user.name", "Me")
    _git(work / "repo", "config", "user.email", "me@example.com")
    _git(work / "repo", "config", "filter.mine.clean", "cat")
    hook = work / "repo" / ".git" / "hooks" / "post-checkout"
    hook.write_text("#!/bin/sh\ntrue\n")
    hook.chmod(0o755)
    return work


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=directory, env=_PERSON, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    return done.stdout + done.stderr


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is made by what must not run."""
    path = tmp_path / "owned"
    yield path
    assert not path.exists()


# Each is run in /workspace; OWN is a command that makes the canary.
ATTEMPTS = {
    "a hook": "printf '#!/bin/sh\\nOWN\\n' > repo/.git/hooks/pre-commit; chmod +x repo/.git/hooks/pre-commit",
    "another text of a hook": "echo OWN >> repo/.git/hooks/post-checkout",
    "a hook that is a link": "printf '#!/bin/sh\\nOWN\\n' > h; chmod +x h; ln -s ../../../h repo/.git/hooks/pre-commit",
    "hooks that are a link": "mkdir h; printf '#!/bin/sh\\nOWN\\n' > h/pre-commit; chmod +x h/pre-commit; "
    "rm -r repo/.git/hooks; ln -s ../../h repo/.git/hooks",
    "a monitor": "git -C repo config core.fsmonitor 'OWN;false'",
    "a monitor, written by hand": "printf '[core]fsmonitor = \"OWN;false\"\\n' >> repo/.git/config",
    "a monitor in capitals": "printf '[CORE]\\n\\tFsMonitor = OWN\\n' >> repo/.git/config",
    "a monitor on two lines": "printf '[core]\\n\\tfsmonitor = OW\\\\\\nN\\n' >> repo/.git/config",
    "another place for hooks": "mkdir h; printf '#!/bin/sh\\nOWN\\n' > h/pre-commit; chmod +x h/pre-commit; "
    "git -C repo config core.hooksPath ../h",
    "settings from elsewhere": "printf '[core]\\n\\tfsmonitor = OWN\\n' > evil; "
    "git -C repo config include.path ../../evil",
    "settings of the worktree": "git -C repo config extensions.worktreeConfig true; "
    "git -C repo config --worktree core.fsmonitor 'OWN;false'",
    "a filter": "git -C repo config filter.x.clean 'OWN;cat'; echo '* filter=x' > repo/.gitattributes",
    "an alias": "git -C repo config alias.status '!OWN'; git -C repo config alias.st '!OWN'",
    "a moved directory": "mv repo/.git x; git -C x config core.fsmonitor 'OWN;false'; mv x repo/.git",
    "a copy": "cp -r repo/.git x; git -C x config core.fsmonitor 'OWN;false'; rm -r repo/.git; mv x repo/.git",
    "a moved repository": "mv repo a; git -C a config core.fsmonitor 'OWN;false'; mv a repo",
    "one made anew": "rm -r repo; git init -q repo; git -C repo config core.fsmonitor 'OWN;false'",
    "a link to one": "git init -q x; git -C x config core.fsmonitor 'OWN;false'; rm -r repo/.git; "
    "ln -s ../x/.git repo/.git",
    "a file that names one": "git init -q x; git -C x config core.fsmonitor 'OWN;false'; rm -r repo/.git; "
    "mv x/.git odd; echo 'gitdir: ../odd' > repo/.git",
    "one in parts": "git init -q x; git -C x config core.fsmonitor 'OWN;false'; rm -r repo/.git; mkdir g; "
    "mv x/.git/HEAD g; mv x/.git c; echo ../c > g/commondir; echo 'gitdir: ../g' > repo/.git",
    "a bare one": "rm -r repo; git init -q --bare repo; git -C repo config core.bare false; "
    "git -C repo config core.worktree .; git -C repo config core.fsmonitor 'OWN;false'",
    "capitals": "rm -r repo; git init -q x; git -C x config core.fsmonitor 'OWN;false'; mkdir repo; "
    "mv x/.git repo/.GIT",
}


@pytest.fixture(scope="session")
def sandbox() -> Bubblewrap:
    try:
        Bubblewrap().check()
    except Refused:
        pytest.skip("no bubblewrap")
    return Bubblewrap()


def _sandboxed(work: Path, sandbox: Bubblewrap, *commands: str, timeout: float = 30) -> list[str]:
    """What commands print, as the agent is told it."""
    backend = LocalBackend(work, sandbox=sandbox)

    async def run() -> list[str]:
        results = [await backend.run(command, shell=True, timeout=timeout) for command in commands]
        return [result.stdout + result.stderr for result in results]

    return asyncio.run(run())


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_git_runs_nothing_that_a_sandboxed_command_left(
    work: Path, sandbox: Bubblewrap, canary: Path, attempt: str
) -> None:
    """The agent wrote `.git/config` in bubblewrap, and a person's `git status` ran it (K1.3)."""
    (said,) = _sandboxed(work, sandbox, ATTEMPTS[attempt].replace("OWN", f"touch {canary}"))
    assert "git would run programs" in said
    repo = work / "repo"
    for arguments in (
        ["status"],
        ["st"],
        ["add", "-A"],
        ["commit", "-qm", "x"],
        ["checkout", "-q", "-b", "y"],
        ["log"],
    ):
        _git(repo, *arguments)


def test_what_the_user_had_stays(work: Path, sandbox: Bubblewrap) -> None:
    before = {path: path.read_bytes() for path in (work / "repo" / ".git").rglob("*") if path.is_file()}
    commands = ["true", "cp -r repo copy; mv repo moved", "git -C moved config core.fsmonitor x; mv moved repo"]
    said = _sandboxed(work, sandbox, *commands)
    assert ["git would run programs" in one for one in said] == [False, False, True]
    assert {path: path.read_bytes() for path in before} == before
    assert _git(work / "copy", "config", "filter.mine.clean") == "cat\n"


def test_an_agent_can_work_with_git(work: Path, sandbox: Bubblewrap) -> None:
    said = _sandboxed(
        work,
        sandbox,
        "git init -q new && cd new && git config user.name A && git config user.email a@example.com",
        "cd new && echo x > f && git add f && git commit -qm one && git switch -q -c b",
        "cd new && git branch -u master b || true",
        "git clone -q new clone && cd clone && git remote add other https://example.com/x.git && git log --oneline",
        "cd new && git worktree add -q ../tree && cd ../tree && git status",
        "rm -rf clone tree",
    )
    assert not [one for one in said if "git would run" in one or "fatal" in one], said
    assert "one" in _git(work / "new", "log", "--oneline")


def test_what_a_command_left_is_taken_away_also_when_it_is_stopped(
    work: Path, sandbox: Bubblewrap, canary: Path
) -> None:
    with pytest.raises(WorkspaceTimeoutError):
        _sandboxed(work, sandbox, f"git -C repo config core.fsmonitor 'touch {canary}'; sleep 60", timeout=1)
    _git(work / "repo", "status")


ODD = [
    "[core]\n\tfsmonitor = x\n",
    "[core] fsmonitor = x\n",
    "[core]\n\tfsmonitor = \\\nx\n",
    '[core]\n\tbare = "fal\\\nse"\n\tfsmonitor = x\n',
    "\ufeff[core]\nfsmonitor=x\n",
    "[core]\r\n\tfsmonitor = x\r\n",
    "# a \\\n[core]\nfsmonitor=x\n",
    "[core]\n\tfsmonitor\n",
    '[remote "x"]\n\turl = ext::sh -c x\n\tuploadpack = x\n\tvcs = x\n',
    '[include]\n\tpath = x\n[includeIf "gitdir:/"]\n\tpath = x\n',
    '[diff "x"]\n\ttextconv = x\n\tcommand = x\n',
    '[merge "x"]\n\tdriver = x\n[filter "x"]\n\tsmudge = x\n',
    "[core]\n\tsshCommand = x\n\teditor = x\n\tpager = x\n\thooksPath = x\n\taskPass = x\n\tgitProxy = x\n",
    "[gpg]\n\tprogram = x\n[credential]\n\thelper = x\n",
    "[sequence]\n\teditor = x\n[pager]\n\tlog = x\n[interactive]\n\tdiffFilter = x\n",
    '[uploadpack]\n\tpackObjectsHook = x\n[sendemail]\n\ttocmd = x\n[trailer "x"]\n\tcmd = x\n[web]\n\tbrowser = x\n',
    '[submodule "x"]\n\tupdate = !x\n[difftool "x"]\n\tcmd = x\n[core]\n\tworktree = /\n',
    "[core.x]\nfsmonitor = x\n[core]\n",
    '[url "x"]\n\tinsteadOf = y\n[protocol "ext"]\n\tallow = always\n[http]\n\tproxy = x\n',
]


@pytest.mark.parametrize("text", ODD)
def test_a_configuration_has_no_setting_afterwards_that_is_not_known_to_be_harmless(work: Path, text: str) -> None:
    before = survey(str(work), MOUNT)
    _git(work, "init", "-q", "new")
    with open(work / "new" / ".git" / "config", "a") as file:
        file.write(text)
    assert disarm(before) == ["new/.git/config"]
    listed = _git(work / "new", "config", "--file", ".git/config", "--list")
    assert {line.split(".")[0] for line in listed.splitlines()} <= {"core", "remote"}
    assert "x" not in [line.partition("=")[2] for line in listed.splitlines()]
    assert not [line for line in listed.splitlines() if line.startswith(("core.fsmonitor", "core.worktree", "remote."))]
    assert disarm(before) == []


FILES = [
    ".git/hooks/pre-commit",
    ".git/config",
    ".git",
    "repo/.git/config",
    "repo/.git/hooks/new",
    "repo/.git/info/attributes",
    "./repo/x/../.git/config",
    "/workspace/repo/.git/config",
    "repo/.GIT/config",
    "deep/er/.Git/hooks/x",
    "link/config",
    "hook",
    "bare/config",
    "bare/hooks/x",
    "half/HEAD",
    "repo/.g\u200cit/config",
    "repo/git~1/config",
]


@pytest.fixture
def links(work: Path) -> Path:
    (work / "link").symlink_to("repo/.git")
    (work / "hook").symlink_to("repo/.git/hooks/post-checkout")
    _git(work, "init", "-q", "--bare", "bare")
    (work / "half" / "objects").mkdir(parents=True)
    (work / "half" / "refs").mkdir()
    return work


@pytest.mark.parametrize("answer", [None, NO, YES])
def test_a_file_of_gits_is_changed_after_a_question_only(links: Path, answer: Answer | None) -> None:
    """`write_file .git/hooks/pre-commit` needed none (K1.3)."""
    before = _state(links)
    person = Person(*[answer] * len(FILES)) if answer is not None else None
    calls: list[Call] = [("write_file", {"path": path, "content": "x"}) for path in FILES]
    for approve in ("ask", "never") if person is None else ("ask",):
        results, _ = _run(LocalBackend(links), calls, ask=person, approve=approve)
        assert all((result.outcome == "failed") is (answer is not YES) for result in results) or answer is YES
    if answer is not YES:
        assert _state(links) == before
    if person is not None:
        assert len(person.asked) == len(FILES)


def _state(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_an_edit_of_gits_is_asked_about_and_other_files_are_not(links: Path) -> None:
    edit = {"old_string": "true", "new_string": "false"}
    results, _ = _run(
        LocalBackend(links),
        [("edit_file", {"path": "repo/.git/hooks/post-checkout", **edit}), ("edit_file", {"path": "hook", **edit})],
        [
            ("write_file", {"path": path, "content": "true"})
            for path in (
                ".gitignore",
                "repo/.gitattributes",
                "repo/.github/x",
                "hooks/pre-commit",
                "config",
                "git/config",
            )
        ],
        [("read_file", {"path": "repo/.git/config"})],
    )
    assert [result.outcome for result in results] == ["failed"] * 2 + ["success"] * 7


@pytest.mark.parametrize(
    ("rules", "outcome"),
    [
        ({"write": "allow"}, "failed"),
        ({"write": {"rules": [{"pattern": "**", "action": "allow"}]}}, "failed"),
        ({"write": {"rules": [{"pattern": "repo/.git/info/*", "action": "allow"}]}}, "success"),
    ],
)
def test_a_rule_that_names_it_allows_a_file_of_gits(work: Path, rules: dict[str, Any], outcome: str) -> None:
    results, _ = _run(
        LocalBackend(work), [("write_file", {"path": "repo/.git/info/x", "content": "x"})], permissions=_rules(**rules)
    )
    assert results[0].outcome == outcome


HOMES = [".gitconfig", ".bashrc", ".profile", ".ssh/config", ".npmrc", ".config/git/config", ".config/pip/pip.conf"]


def test_a_command_outside_a_sandbox_finds_nothing_that_one_inside_wrote_home(work: Path, sandbox: Bubblewrap) -> None:
    """`.deep/home` was the home of both (K1.3)."""
    write = "; ".join(f'mkdir -p "$HOME/$(dirname {name})"; echo x > "$HOME/{name}"' for name in HOMES)
    _sandboxed(work, sandbox, write)
    assert (work / ".deep" / "home" / ".gitconfig").exists()
    backend = LocalBackend(work, sandbox=NoSandbox())
    results, _ = _run(
        backend,
        *[[("execute", {"command": one})] for one in ('echo "$HOME"; find "$HOME"', "echo y > ~/kept", "cat ~/kept")],
        include_execute=True,
        approve="auto",
    )
    home, *there = str(results[0].content).splitlines()
    assert there == [home]
    assert home not in (os.environ["HOME"], str(work / ".deep" / "home"))
    assert not home.startswith(str(work))
    assert str(results[2].content) == "y\n"
    assert os.stat(home).st_mode & 0o777 == 0o700
    backend.close()
    assert not os.path.exists(home)
