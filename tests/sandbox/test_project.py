"""Commands in a project: what they see, what they can change, and what is as before afterwards."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepctl import Bubblewrap, Docker, LocalBackend, NoSandbox
from deepctl.files import placeholders
from deepctl.sandbox import container
from deepctl.sandbox import project as projects
from deepctl.sandbox.policy import CACHE_MOUNT, MOUNT, PROFILE_MOUNT, Limits, ProjectMounts, Unavailable
from tests.support import docker
from tests.support.ordinary import as_ordinary

LIMITS = Limits(seconds=20, memory=256 << 20, processes=64, tmp=16 << 20, disk=64 << 20)


class Work:
    """A project with a git repository, beside the workspace of a profile."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "home" / "shop"
        self.root.mkdir(parents=True)
        self.workspace = directory / "state" / "workspace"
        self.workspace.mkdir(parents=True)
        self.cache = directory / "state" / "cache" / "packages"
        self.mounts = ProjectMounts(str(self.root), str(self.workspace), str(self.cache))

    def git(self, *words: str, where: Path | None = None) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=Al", "-c", "user.email=al@example.org", *words],
            cwd=where or self.root,
            env={"PATH": os.environ["PATH"], "HOME": str(self.workspace), "GIT_CONFIG_NOSYSTEM": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def run(self, script: str, mounts: ProjectMounts | None = None) -> tuple[int, str]:
        """The exit code of a script in the sandbox, and all that it printed."""
        mounts = mounts or self.mounts
        executor = Bubblewrap(limits=LIMITS).commands(mounts.root, mounts)
        done = asyncio.run(executor.run(["/bin/sh", "-c", script]))
        return done.exit_code, done.stdout + done.stderr

    def state(self, directory: Path | None = None) -> dict[str, tuple[str, bytes]]:
        """All that is below a directory: modes, contents and the targets of links."""
        found = {}
        top = directory or self.root
        for path in sorted(top.rglob("*")):
            status = path.lstat()
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(top))] = (stat.filemode(status.st_mode), content)
        return found


@pytest.fixture
def work(tmp_path: Path) -> Work:
    made = Work(tmp_path)
    made.git("init", "-q", "-b", "main")
    (made.root / "a.txt").write_text("one\n")
    made.git("add", "-A")
    made.git("commit", "-qm", "first")
    return made


def test_commands_start_in_the_project_under_its_own_path(work: Work) -> None:
    code, printed = work.run(
        f"pwd -P; cat {MOUNT}/a.txt; cd {MOUNT} && pwd -P; echo two > {MOUNT}/b.txt; cat {work.root}/b.txt; echo $HOME"
    )
    assert code == 0
    assert printed.splitlines() == [str(work.root), "one", str(work.root), "two", f"{PROFILE_MOUNT}/.deep/home"]
    assert (work.root / "b.txt").read_text() == "two\n"


def test_the_profile_and_the_caches_have_places_of_their_own(work: Work) -> None:
    (work.workspace / "note.txt").write_text("remembered\n")
    code, printed = work.run(f"cat {PROFILE_MOUNT}/note.txt; echo x > $PIP_CACHE_DIR || mkdir $PIP_CACHE_DIR; env")
    assert code == 0
    assert printed.startswith("remembered\n")
    assert f"XDG_CACHE_HOME={CACHE_MOUNT}\n" in printed
    assert f"npm_config_cache={CACHE_MOUNT}/npm\n" in printed
    assert os.listdir(work.cache) == ["pip"]


def test_nothing_beside_the_project_is_seen(work: Work) -> None:
    (work.root.parent / "secret").write_text("x")
    code, printed = work.run("ls -A ..; echo x > ../planted; cat ../secret")
    assert code != 0
    assert printed.splitlines()[0] == "shop"
    assert not (work.root.parent / "planted").exists()


READ_ONLY = {
    "config": "git config user.name Eve",
    "config by hand": "echo '[core]' >> .git/config",
    "config, removed": "rm .git/config",
    "config, replaced": "echo '[core]' > x && mv x .git/config",
    "a hook": "echo 'touch /tmp/x' > .git/hooks/pre-commit",
    "the hooks": "mv .git/hooks .git/hooks2",
    "attributes": "echo '* filter=x' > .git/info/attributes",
    "attributes behind another name": "mv .git/info .git/i && mkdir .git/info && echo > .git/info/attributes",
    "settings of a worktree": "echo > .git/config.worktree",
    "a submodule that is new": "mkdir -p .git/modules/x && echo > .git/modules/x/config",
    "all of it": "mv .git .git2",
    "all of it by another name": f"cd {MOUNT} && mv .git .git2",
    "the hooks, removed": "rm -rf .git/hooks",
    "a protected file": "echo evil > .envrc",
    "a protected file, moved there": "echo evil > x && mv -T x .envrc",
    "a protected directory": "mkdir .vscode",
    "a file in a protected directory": "mkdir -p .idea/runs && echo evil > .idea/runs/x",
    "a link in its place": "ln -sT /tmp .vscode",
}


@pytest.mark.parametrize("name", READ_ONLY)
def test_what_a_command_cannot_change(work: Work, name: str) -> None:
    before = work.state(work.root / ".git")
    code, printed = work.run(f"({READ_ONLY[name]}) && echo done")
    assert "done" not in printed, printed
    assert code != 0
    after = work.state(work.root / ".git")
    for part in ("config", "hooks", "info", "modules", "config.worktree"):
        assert [after.get(path) for path in before if path.startswith(part)] == [
            state for path, state in before.items() if path.startswith(part)
        ]
        assert (part in before) == (part in after)
    assert sorted(os.listdir(work.root)) in ([".git", "a.txt"], [".git", "a.txt", "x"])


def test_a_command_leaves_no_trace_of_what_protects(work: Work) -> None:
    before = work.state()
    assert work.run("ls -a")[1].split() == [".", "..", ".envrc", ".git", ".idea", ".vscode", "a.txt"]
    assert work.state() == before
    assert work.git("status", "--porcelain", "--ignored") == ""


def test_placeholders_are_no_files_for_git(work: Work) -> None:
    code, printed = work.run("git status --porcelain && git add -A && git status --porcelain")
    assert (code, printed) == (0, "")


def test_a_commit_works(work: Work) -> None:
    identity = "GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@b"
    code, printed = work.run(
        f"echo two > a.txt && git checkout -qb topic && {identity} git commit -qam second && git gc -q"
    )
    assert (code, printed) == (0, "")
    assert work.git("log", "--format=%s", "topic") == "second\nfirst\n"
    work.git("fsck", "--strict")


def test_a_branch_of_a_remote_can_be_checked_out(work: Work) -> None:
    work.git("clone", "-q", ".", "../origin.git", "--bare")
    work.git("branch", "feature", where=work.root.parent / "origin.git")
    work.git("remote", "add", "origin", str(work.root.parent / "origin.git"))
    work.git("fetch", "-q")
    code, printed = work.run("git checkout -q feature && git branch --show-current")
    assert (code, printed) == (0, "feature\n")


def test_protected_files_that_exist(work: Work) -> None:
    (work.root / ".envrc").write_text("export A=1\n")
    (work.root / ".vscode").mkdir()
    (work.root / ".vscode" / "tasks.json").write_text("{}")
    before = work.state()
    for attempt in ("echo x >> .envrc", "rm .envrc", "rm -r .vscode", "echo x > .vscode/tasks.json", "mv .vscode v"):
        assert work.run(attempt)[0] != 0
    assert work.run("cat .envrc .vscode/tasks.json") == (0, "export A=1\n{}")
    assert work.state() == before


def test_a_protected_path_of_several_parts(work: Work) -> None:
    mounts = work.mounts._replace(protected=("ci/deploy/key.sh", "none/at/all"))
    (work.root / "ci" / "deploy").mkdir(parents=True)
    attempts = (
        "echo x > ci/deploy/key.sh",
        "mv ci/deploy ci/d && mkdir ci/deploy && echo x > ci/deploy/key.sh",
        "mv ci c",
        "mkdir -p none/at",
    )
    for attempt in attempts:
        assert work.run(attempt, mounts)[0] != 0
    assert work.run("echo x > ci/deploy/other.sh && echo y > ci/z", mounts) == (0, "")
    assert sorted(work.state(work.root / "ci")) == ["deploy", "deploy/other.sh", "z"]


def test_a_protected_link_is_put_back(work: Work) -> None:
    (work.root / ".envrc").symlink_to("env/main")
    (work.root / "env").mkdir()
    (work.root / "env" / "main").write_text("good\n")
    assert work.run("echo evil > .envrc")[0] != 0, "what it leads to is protected"
    work.run("rm .envrc && echo evil > .envrc")
    assert os.readlink(work.root / ".envrc") == "env/main"
    assert (work.root / ".envrc").read_text() == "good\n"
    assert (work.root / ".envrc.disabled").read_text() == "evil\n"


def test_settings_of_submodules(work: Work, tmp_path: Path) -> None:
    other = tmp_path / "lib"
    other.mkdir()
    work.git("init", "-q", where=other)
    work.git("commit", "-q", "--allow-empty", "-m", "lib", where=other)
    work.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "--name", "x/lib", str(other), "vendor")
    module = work.root / ".git" / "modules" / "x" / "lib"
    before = work.state(module)
    for attempt in (
        "git -C vendor config core.fsmonitor evil",
        "echo x > .git/modules/x/lib/hooks/pre-commit",
        "mv .git/modules/x .git/modules/y",
        "mv .git/modules .git/m",
        "mkdir .git/modules/new",
    ):
        assert work.run(attempt)[0] != 0
    assert work.state(module) == before
    identity = "-c user.name=A -c user.email=a@b"
    code, printed = work.run(f"cd vendor && echo 1 > f && git add f && git {identity} commit -qm two")
    assert (code, printed) == (0, "")
    assert work.git("log", "--format=%s", where=work.root / "vendor").splitlines()[0] == "two"


def test_submodules_beyond_a_number_are_read_only(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects, "_MOST_MODULES", 2)
    for name in ("a", "b", "c"):
        module = work.root / ".git" / "modules" / name
        module.mkdir(parents=True)
        (module / "HEAD").write_text("ref: refs/heads/main\n")
    assert work.run("echo x > .git/modules/a/FETCH_HEAD; echo x > .git/modules/b/FETCH_HEAD") == (0, "")
    assert work.run("echo x > .git/modules/a/config")[0] != 0
    assert work.run("echo x > .git/modules/c/FETCH_HEAD")[0] != 0


def test_git_does_not_prune_the_worktrees_that_commands_do_not_see(work: Work) -> None:
    work.git("worktree", "add", "-q", "../tree", "-b", "side")
    work.git("worktree", "add", "-q", "inner", "-b", "inner")
    tree = work.root.parent / "tree"
    (tree / "a.txt").write_text("staged\n")
    work.git("add", "a.txt", where=tree)
    before = work.git("worktree", "list", "--porcelain")
    code, printed = work.run("git worktree prune && git gc -q --prune=now && git worktree remove inner")
    assert (code, printed) == (0, "")
    assert (
        work.git("worktree", "list", "--porcelain")
        == before.partition(f"worktree {work.root}/inner")[0] + (before.partition("branch refs/heads/inner\n\n")[2])
    )
    assert work.git("diff", "--cached", "--name-only", where=tree) == "a.txt\n"
    assert not (work.root / ".git" / "worktrees" / "tree" / "locked").exists()


def test_a_linked_worktree(work: Work) -> None:
    work.git("worktree", "add", "-q", "../tree", "-b", "side")
    tree = work.root.parent / "tree"
    mounts = work.mounts._replace(root=str(tree))
    before = work.state(work.root / ".git")
    for attempt in (
        "git config user.name Eve",
        f"echo x > {work.root}/.git/hooks/pre-commit",
        f"mv {work.root}/.git/worktrees {work.root}/.git/w",
        f"echo ../../../evil > {work.root}/.git/worktrees/tree/commondir",
        f"cat {work.root}/a.txt",
        "mv .git g",
        "echo 'gitdir: /tmp' > .git",
    ):
        assert work.run(attempt, mounts)[0] != 0, attempt
    assert work.state(work.root / ".git") == before
    code, printed = work.run(
        "echo 2 > a.txt && git -c user.name=A -c user.email=a@b commit -qam second && git status --porcelain", mounts
    )
    assert (code, printed) == (0, "")
    assert work.git("log", "--format=%s", "side") == "second\nfirst\n"


@pytest.mark.parametrize(
    "kind", ["a repository", "a worktree of another tree", "a directory", "a submodule of another"]
)
def test_a_git_file_that_names_what_is_not_its_own(work: Work, tmp_path: Path, kind: str) -> None:
    """A repository from elsewhere names the directories of its user, so that commands would see them."""
    work.git("worktree", "add", "-q", "../tree", "-b", "side")
    target = {
        "a repository": work.root / ".git",
        "a worktree of another tree": work.root / ".git" / "worktrees" / "tree",
        "a directory": work.workspace,
        "a submodule of another": work.root / ".git" / "modules" / "m",
    }[kind]
    if kind == "a submodule of another":
        target.parent.mkdir()
        work.git("init", "-q", "--separate-git-dir", str(target), "m")
        work.git("config", "core.worktree", str(work.root / "m"), where=work.root / "m")
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / ".git").write_text(f"gitdir: {target}\n")
    mounts = work.mounts._replace(root=str(hostile))
    assert projects.git_place(str(hostile)) is None
    code, printed = work.run(f"ls {target}; echo x > {target}/planted; git status", mounts)
    assert code != 0
    assert "No such file" in printed
    assert not (target / "planted").exists()


def test_a_git_link_that_leads_out(work: Work, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / ".git").symlink_to(work.root / ".git")
    mounts = work.mounts._replace(root=str(hostile))
    assert work.run("git log", mounts)[0] != 0
    work.run("rm .git && mkdir .git", mounts)
    assert os.readlink(hostile / ".git") == str(work.root / ".git")


def test_placeholders_of_a_killed_process_are_removed_by_the_next_turn(work: Work) -> None:
    layout = projects.layout(work.mounts)
    context = placeholders.held(layout.missing)
    context.__enter__()
    placeholders._holders.clear()  # the process that held them is gone
    assert (work.root / ".envrc").is_dir()
    executor = Bubblewrap(limits=LIMITS).commands(str(work.root), work.mounts)
    assert sorted(os.listdir(work.root)) == [".git", "a.txt"]
    assert not (work.root / ".git" / "modules").exists()
    context = placeholders.held(layout.missing)
    context.__enter__()
    placeholders._holders.clear()
    assert asyncio.run(executor.run(["/bin/sh", "-c", "echo x > .envrc"])).exit_code != 0
    assert sorted(os.listdir(work.root)) == [".git", "a.txt"]


@pytest.mark.parametrize(
    "command", [".venv/bin/python -V", "/workspace/.venv/bin/tool", "PATH=$PWD/.venv/bin; cd sub && tool"]
)
def test_a_program_behind_a_link_out_of_the_sandbox_is_explained(work: Work, tmp_path: Path, command: str) -> None:
    toolchain = tmp_path / "toolchain"
    (toolchain / "bin").mkdir(parents=True)
    (toolchain / "bin" / "python3").symlink_to("/usr/bin/python3")
    programs = work.root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (work.root / "sub").mkdir()
    (programs / "python").symlink_to(toolchain / "bin" / "python3")
    (programs / "tool").write_text(f"#!{programs}/python\n")
    (programs / "tool").chmod(0o755)
    backend = LocalBackend(work.root, sandbox=Bubblewrap(limits=LIMITS), profile_dir=work.workspace)
    done = asyncio.run(backend.run(["/bin/sh", "-c", command]))
    expected = (
        f"deepctl: .venv/bin/python leads to {toolchain}/bin/python3, which commands do not see. The user can add "
        f"{toolchain} to the setting `read_only_paths`"
    )
    assert done.exit_code != 0
    assert expected in done.stderr
    sandbox = Bubblewrap(limits=LIMITS, read_only_paths=(str(toolchain),))
    backend = LocalBackend(work.root, sandbox=sandbox, profile_dir=work.workspace)
    done = asyncio.run(backend.run(["/bin/sh", "-c", ".venv/bin/python -V"]))
    assert (done.exit_code, "deepctl" in done.stderr) == (0, False)


def test_a_missing_program_is_no_reason_to_look_outside(work: Work, tmp_path: Path) -> None:
    (work.root / "link").symlink_to("/usr/bin/nothing-here")
    backend = LocalBackend(work.root, sandbox=Bubblewrap(limits=LIMITS), profile_dir=work.workspace)
    for command in ("./link", "./gone", "gone", "/opt/gone", "echo ../../x: not found; echo ./a.txt: not found; false"):
        done = asyncio.run(backend.run(["/bin/sh", "-c", command]))
        assert "deepctl" not in done.stdout + done.stderr, command


def test_a_directory_of_the_user_is_no_placeholder(work: Work) -> None:
    (work.root / ".vscode").mkdir(mode=0o755)
    (work.root / ".idea").mkdir(mode=0o1777)
    (work.root / ".idea").chmod(0o1777)
    work.run("true")
    assert (work.root / ".vscode").is_dir()
    assert (work.root / ".idea").is_dir()


@pytest.mark.parametrize("place", ["/tmp", "/usr", "/", "/profile", "/profile/x", "/var"])
def test_a_project_where_commands_expect_something_else(work: Work, place: str) -> None:
    with pytest.raises(Unavailable, match="meaning of its own"):
        Bubblewrap().commands(place, work.mounts._replace(root=place))


def test_a_protected_path_that_leads_out(work: Work) -> None:
    with pytest.raises(Unavailable, match="leads out"):
        Bubblewrap().commands(str(work.root), work.mounts._replace(protected=("../x",)))


def test_a_readable_path_in_the_project_is_none_that_a_command_could_replace_by_a_link(work: Work) -> None:
    (work.root.parent / ".ssh").mkdir()
    (work.root.parent / ".ssh" / "id").write_text("key")
    (work.root / "tools").mkdir()
    sandbox = Bubblewrap(limits=LIMITS, read_only_paths=(str(work.root / "tools"),))
    executor = sandbox.commands(str(work.root), work.mounts)
    asyncio.run(executor.run(["/bin/sh", "-c", "rmdir tools && ln -s ../.ssh tools"]))
    assert "key" not in asyncio.run(executor.run(["/bin/sh", "-c", "cat tools/id"])).stdout


def test_a_project_below_workspace_has_no_alias() -> None:
    assert projects.has_alias("/home/al/workspace")
    assert not projects.has_alias(MOUNT)
    assert not projects.has_alias(f"{MOUNT}/shop")


def test_virtual_environments_and_worktrees_work_on_both_sides(work: Work) -> None:
    script = (
        "python3 -m venv --without-pip .venv && echo 'raise SystemExit(__file__)' > .venv/bin/tool.py && "
        f"git worktree add -q {MOUNT}/side -b side && .venv/bin/python .venv/bin/tool.py"
    )
    assert work.run(script) == (1, f"{work.root}/.venv/bin/tool.py\n")
    python = work.root / ".venv" / "bin" / "python"
    prefix = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert prefix.stdout == f"{work.root}/.venv\n"
    assert work.git("status", "--porcelain", where=work.root / "side") == ""
    (work.root / "side" / "a.txt").write_text("two\n")
    work.git("commit", "-qam", "outside", where=work.root / "side")
    assert work.run("cd side && git log --format=%s") == (0, "outside\nfirst\n")


def test_a_git_directory_of_another_user_needs_no_placeholders(work: Work) -> None:
    """What the user cannot create, a command cannot create either."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (work.root / ".git", *(work.root / ".git").rglob("*")):
        os.lchown(path, 12345, 12345)

    def attempts() -> None:
        assert work.run("cat .git/HEAD; echo x > b.txt") == (0, "ref: refs/heads/main\n")
        assert work.run("echo x > .git/config.worktree")[0] != 0
        assert work.run("echo x > .envrc")[0] != 0

    as_ordinary(attempts)


def test_an_ordinary_user(work: Work) -> None:
    def attempts() -> None:
        assert work.run("echo x > .envrc")[0] != 0
        assert work.run("git config a.b c")[0] != 0
        assert work.run("echo x > b.txt && cat b.txt") == (0, "x\n")

    subjects: list[Callable[[], object]] = [attempts]
    for subject in subjects:
        as_ordinary(subject)
    assert sorted(os.listdir(work.root)) == [".git", "a.txt", "b.txt"]


def test_unsandboxed_commands_work_in_the_project(work: Work) -> None:
    work.git("config", "user.name", "Al Shop")
    work.git("config", "user.email", "al@example.org")
    executor = NoSandbox(limits=LIMITS).commands(str(work.root), work.mounts)
    done = asyncio.run(executor.run(["/bin/sh", "-c", "pwd -P; echo $PIP_CACHE_DIR; git var GIT_AUTHOR_IDENT"]))
    executor.close()
    place, cache, author = done.stdout.splitlines()
    assert (place, cache) == (str(work.root), f"{work.cache}-unsandboxed/pip"), "sandboxed commands write to another"
    assert author.startswith("Al Shop <al@example.org> ")


def test_commits_have_the_identity_of_the_user(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    home = work.root.parent
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Al Home\n\temail = home@example.org\n[author]\n\tname = Al Author\n"
    )
    work.git("config", "user.email", "shop@example.org")
    assert work.run("echo 2 > a.txt && git commit -qam second") == (0, "")
    assert work.git("log", "-1", "--format=%an %ae %cn %ce") == "Al Author shop@example.org Al Home shop@example.org\n"


# In a container


@pytest.fixture
def contained(work: Work) -> Iterator[Callable[[str], tuple[int, str]]]:
    docker.require()
    name = container.container_name(str(work.workspace.parent))
    executor = Docker(name, docker.IMAGE, limits=LIMITS).commands(str(work.root), work.mounts)

    def run(script: str) -> tuple[int, str]:
        done = asyncio.run(executor.run(["/bin/sh", "-c", script]))
        return done.exit_code, done.stdout + done.stderr

    yield run
    executor.close()
    assert container.remove_all(name) == [container.project_name(name, str(work.root))]
    assert sorted(os.listdir(work.root))[0] == ".git", "no placeholder is left"


def test_in_a_container(work: Work, contained: Callable[[str], tuple[int, str]]) -> None:
    (work.workspace / "note.txt").write_text("remembered\n")
    code, printed = contained(
        f"pwd -P; cat {MOUNT}/a.txt {PROFILE_MOUNT}/note.txt; echo two > {MOUNT}/b.txt; cat {work.root}/b.txt; "
        "echo $HOME; mkdir $PIP_CACHE_DIR"
    )
    assert (code, printed.splitlines()) == (
        0,
        [str(work.root), "one", "remembered", "two", f"{PROFILE_MOUNT}/.deep/home"],
    )
    assert os.listdir(work.cache) == ["pip"]


def test_what_a_command_cannot_change_in_a_container(work: Work, contained: Callable[[str], tuple[int, str]]) -> None:
    before = work.state(work.root / ".git")
    for place in (str(work.root), MOUNT):
        for name, attempt in READ_ONLY.items():
            if "git config" in attempt:
                continue  # there is no git in the image
            code, printed = contained(f"cd {place} && ({attempt}) && echo done")
            assert "done" not in printed, (place, name, printed)
            assert code != 0
    after = work.state(work.root / ".git")
    assert {path: after.get(path) for path in before} == before
    assert contained(f"cd {work.root} && echo kept > .git/COMMIT_EDITMSG && rm -f x && ls -A")[1].split() == [
        *(".envrc", ".git", ".idea", ".vscode", "a.txt"),
    ]


def test_a_container_follows_what_is_to_be_protected(work: Work, contained: Callable[[str], tuple[int, str]]) -> None:
    assert contained("echo x >> .git/config")[0] != 0
    work.git("config", "a.b", "c")  # puts another file in the place of the first one
    assert contained("echo x >> .git/config")[0] != 0
    (work.root / ".git" / "modules" / "m").parent.rmdir()
    (work.root / ".git" / "modules" / "m").mkdir(parents=True)
    (work.root / ".git" / "modules" / "m" / "HEAD").write_text("ref: refs/heads/main\n")
    assert contained("echo x > .git/modules/m/config")[0] != 0
    assert contained("echo x > .git/modules/m/FETCH_HEAD") == (0, "")


def test_a_profile_has_a_container_for_each_project(work: Work, contained: Callable[[str], tuple[int, str]]) -> None:
    assert contained("true") == (0, "")
    name = container.container_name(str(work.workspace.parent))
    other = Docker(name, docker.IMAGE, limits=LIMITS).commands(str(work.workspace))
    assert asyncio.run(other.run(["/bin/sh", "-c", f"ls -A {MOUNT}; ls {work.root}"])).exit_code != 0
    other.close()
    assert docker.exists(name)
    assert container.remove(name)
    assert docker.exists(container.project_name(name, str(work.root)))
