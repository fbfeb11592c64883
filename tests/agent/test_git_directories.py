"""What an agent leaves in a workspace for git, which a person runs there later, runs nothing of it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.workspaces import WorkspaceTimeoutError

from deepctl import Bubblewrap, LocalBackend, NoSandbox
from deepctl.agent import user_commands
from deepctl.agent.approver import ApprovalAnswer
from deepctl.errors import Refused
from deepctl.files import git_settings
from deepctl.files.git_directories import GitSurvey, additions, describe, set_aside, survey
from deepctl.layout import ProfilePaths
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


def _disarm(before: GitSurvey) -> list[str]:
    """What is set aside, as it is named."""
    added = additions(before)
    set_aside(added)
    return describe(before, added)


def _listed(config: Path) -> list[str]:
    """The settings of a file, as the installed git reads it."""
    done = subprocess.run(
        ["git", "config", "--file", config, "--no-includes", "--list", "-z"], cwd="/", env=_PERSON, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return [one.decode("utf-8", "surrogateescape") for one in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("text", ODD)
def test_a_configuration_has_no_setting_afterwards_that_is_not_known_to_be_harmless(work: Path, text: str) -> None:
    before = survey(str(work), MOUNT)
    _git(work, "init", "-q", "new")
    config = work / "new" / ".git" / "config"
    made = _listed(config)
    with open(config, "a") as file:
        file.write(text)
    named = _disarm(before)
    assert named
    assert all(one.startswith("new/.git/config: ") for one in named)
    listed = _listed(config)
    assert listed[: len(made)] == made
    assert set(listed[len(made) :]) <= {"core.bare\nfalse"}
    assert _disarm(before) == []


KEPT = {
    '[branch "a#b"]\n\tremote = origin\n\tmerge = "refs/heads/a#b"\n': 2,
    '[user]\n\tname = "Doe; Jane"\n\temail = \\"x\\" # odd\n[core]\tabbrev = 8 ; more\r\n\tsymlinks\r\n': 4,
    "[commit]\n\tgpgsign = false\n[tag]\n\tgpgsign = false\n[receive]\n\tdenyNonFastforwards\n": 3,
    "[core]\n\tsparseCheckout = true\n\tsparseCheckoutCone = true\n[index]\n\tsparse = true\n": 3,
    "[http]\n\tpostBuffer = 1\n[gc]\n\tauto = 0\n[pack]\n\twindowMemory = 1m\n[fetch]\n\tprune = true\n": 4,
    '[http "https://example.com"]\n\tpostBuffer = 1\n[gc "refs/x"]\n\treflogExpire = never\n': 2,
    "[pull]\n\trebase = true\n\tff = only\n[push]\n\tdefault = current\n[init]\n\tdefaultBranch = main\n": 4,
    '[color]\n\tui = auto\n[color "diff"]\n\tmeta = "blue \\"x\\""\n[advice]\n\tdetachedHead = false\n': 3,
    '[diff]\n\tcolorMoved = zebra\n[merge]\n\tconflictStyle = zdiff3\n[rerere]\n\tenabled\n[diff "x"]\n\tbinary\n': 4,
    '[remote "a \\"b\\" ]"]\n\turl = ssh://[::1]/x\n\tpushurl = me@example.com:x.git\n\tfetch = +refs/*:refs/x/*\n': 3,
    '[submodule "x"]\n\turl = ../x\n\tupdate = rebase\n[pager]\n\tlog = false\n[core]\n\tfsmonitor = false\n': 4,
    "[fsck]\n\tzeroPaddedFilemode = warn\n[receive.fsck]\n\tbadDate = ignore\n[core.x]\n\t[core] bare = false\n": 3,
    "\ufeff# a\n;b\n[user] name = A \\\n  B\n[branch.b]merge=x\n": 2,
}


@pytest.mark.parametrize("text", KEPT)
def test_settings_that_run_nothing_stay(work: Path, text: str) -> None:
    before = survey(str(work), MOUNT)
    _git(work, "init", "-q", "new")
    for name in ("config", "config.worktree"):
        (work / "new" / ".git" / name).write_bytes(text.encode())
        assert len(_listed(work / "new" / ".git" / name)) == KEPT[text]
    assert _disarm(before) == []


def test_only_the_offending_settings_are_taken_out_and_they_are_kept_beside_it(work: Path) -> None:
    """One of them took back all that a command, or a person meanwhile, did to the file."""
    config = work / "repo" / ".git" / "config"
    before = survey(str(work), MOUNT)
    listed = _listed(config)
    _git(work / "repo", "remote", "add", "up", "../c")
    with open(config, "a") as file:
        file.write("# a note\n[alias] st = \\\n !x\n\tok = y # z\n[core]\n\teditor = vim\n\tabbrev = 8 \n[user]")
    assert _disarm(before) == [
        r"repo/.git/config: alias.st = !x",
        r"repo/.git/config: alias.ok = y",
        r"repo/.git/config: core.editor = vim",
    ]
    assert _listed(config) == [
        *listed,
        "remote.up.url\n../c",
        "remote.up.fetch\n+refs/heads/*:refs/remotes/up/*",
        "core.abbrev\n8",
    ]
    assert "# a note\n" in config.read_text()
    aside = config.with_name("config.disabled")
    assert _listed(aside) == ["alias.st\n!x", "alias.ok\ny", "core.editor\nvim"]
    for value in ("vim", "emacs"):
        _git(work / "repo", "config", "core.editor", value)
        assert _disarm(before) == [f"repo/.git/config: core.editor = {value}"]
    assert _listed(aside) == ["alias.st\n!x", "alias.ok\ny", "core.editor\nvim", "core.editor\nemacs"]


def test_what_a_setting_has_replaced_is_put_back_in_its_place(work: Path) -> None:
    config = work / "repo" / ".git" / "config"
    _git(work / "repo", "remote", "add", "origin", "https://example.com/x")
    with open(config, "a") as file:
        file.write("[include]\n\tpath = a\n\tpath = b\n[core] editor = vim\n")
    before = survey(str(work), MOUNT)
    listed = _listed(config)
    for name, value in (
        ("remote.origin.url", "ext::sh -c x"),
        ("filter.mine.clean", "x"),
        ("core.editor", "x"),
    ):
        _git(work / "repo", "config", name, value)
    _git(work / "repo", "config", "--replace-all", "include.path", "x")
    assert len(_disarm(before)) == 4
    assert _listed(config) == listed
    assert _disarm(before) == []


def test_a_hook_that_was_changed_is_put_back_and_the_change_is_kept(work: Path) -> None:
    hooks = work / "repo" / ".git" / "hooks"
    (hooks / "pre-push").symlink_to("../../mine")
    before = survey(str(work), MOUNT)
    for _ in range(2):
        for name in ("post-checkout", "pre-push"):
            (hooks / name).unlink()
            (hooks / name).write_text("x")
        assert _disarm(before) == ["repo/.git/hooks/post-checkout", "repo/.git/hooks/pre-push"]
    assert sorted(path.name for path in hooks.iterdir() if path.suffix != ".sample") == [
        *("post-checkout", "post-checkout.disabled", "pre-push", "pre-push.disabled")
    ]
    assert (hooks / "post-checkout").read_text() == "#!/bin/sh\ntrue\n"
    assert os.access(hooks / "post-checkout", os.X_OK)
    assert os.readlink(hooks / "pre-push") == "../../mine"
    assert (hooks / "pre-push.disabled").read_text() == "x"


ADDRESSES = {
    "ext::sh -c x": False,
    "EXT::sh -c x": False,
    "fd::7": False,
    "::x": False,
    "-oProxyCommand=x": False,
    "ssh://-oProxyCommand=x/y": False,
    "hg://example.com/x": False,
    "https://example.com/a::b": True,
    "git@example.com:x": True,
    "../a:b": True,
    "/a/b": True,
    "C:/x": True,
    "origin": True,
    ".": True,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_names_a_program_is_taken_out_wherever_git_takes_one(work: Path, address: str) -> None:
    names = ["remote.x.url", "remote.x.pushurl", "branch.x.remote", "branch.x.pushRemote", "remote.pushDefault"]
    names += ["submodule.x.url"]
    before = survey(str(work), MOUNT)
    for name in names:
        section, _, key = name.rpartition(".")
        section, _, subsection = section.partition(".")
        with open(work / "repo" / ".git" / "config", "a") as file:
            file.write(f'[{section}{subsection and f" {chr(34)}{subsection}{chr(34)}"}]\n\t{key} = "{address}"\n')
    assert len(_disarm(before)) == (0 if ADDRESSES[address] else len(names))


PLACES = {
    "a worktree's": "repo/.git/worktrees/t/config.worktree",
    "a submodule's": "repo/.git/modules/a/modules/config/config",
    "a bare one's": "deep/er/bare.git/config",
    "a renamed one's": "repo/git-of-repo/config",
    "one among objects": "repo/.git/objects/a/config",
}


@pytest.mark.parametrize("place", PLACES)
def test_every_settings_file_that_git_reads_is_looked_at(work: Path, place: str) -> None:
    before = survey(str(work), MOUNT)
    config = work / PLACES[place]
    (config.parent / "objects").mkdir(parents=True)
    (config.parent / "refs").mkdir()
    (config.parent / "HEAD").write_text("ref: refs/heads/x\n")
    (config.parent / "commondir").write_text(".\n")
    config.write_text("[core]\n\tfsmonitor = x\n\tabbrev = 8\n")
    if place == "one among objects":  # by two steps
        (work / "tree").mkdir()
        (work / "tree" / ".git").write_text("gitdir: ../repo/.git/objects/b\n")
        (work / "repo" / ".git" / "objects" / "b").mkdir()
        (work / "repo" / ".git" / "objects" / "b" / "HEAD").write_text("ref: refs/heads/x\n")
        (work / "repo" / ".git" / "objects" / "b" / "commondir").write_text("../a\n")
    assert _disarm(before) == [f"{PLACES[place]}: core.fsmonitor = x"]
    assert _listed(config) == ["core.abbrev\n8"]


LEADING_OUT = {
    "gitdir: /etc\n": [".git"],
    "gitdir:../repo/.git\n": [".git"],
    " gitdir: ../repo/.git\n": [".git"],
    "gitdir: ../repo/.git \n": [],
    "gitdir: ../repo/.git\r\n": [],
    "gitdir: ../repo/.git\0\n": [".git"],
}


@pytest.mark.parametrize("text", LEADING_OUT)
def test_a_git_file_is_read_as_git_reads_it(work: Path, text: str) -> None:
    before = survey(str(work), MOUNT)
    (work / "t").mkdir()
    (work / "t" / ".git").write_bytes(text.encode())
    assert _disarm(before) == [f"t/{name}" for name in LEADING_OUT[text]]


def test_what_git_reads_behind_a_link_is_not_passed_over(work: Path) -> None:
    (work / "g").mkdir()
    (work / "g" / "HEAD").write_text("ref: refs/heads/x\n")
    (work / "pointer").write_text("gitdir: /etc\n")
    before = survey(str(work), MOUNT)
    (work / ".git").symlink_to("pointer")
    (work / "g" / "commondir").symlink_to("../pointer")
    assert _disarm(before) == [".git", "g/commondir"]


def test_a_tree_is_looked_up_again_when_a_link_in_its_path_has_changed(work: Path, tmp_path: Path) -> None:
    (work / "inside").mkdir()
    (work / "link").symlink_to("inside")
    _git(work / "repo", "config", "core.worktree", "../../link")
    before = survey(str(work), MOUNT)
    assert _disarm(before) == []
    (work / "link").unlink()
    (work / "link").symlink_to(tmp_path)
    assert _disarm(before) == ["repo/.git/config: core.worktree = ../../link"]


@pytest.mark.parametrize(
    "content", [b"\0" * 100, b"[core]\n\tx = " + b"y" * (1 << 20), b"[core]\nbare = fal\0se\n", b'k="a\\\n' * 100_000]
)
def test_a_file_that_is_not_read_whole_is_set_aside(work: Path, content: bytes) -> None:
    config = work / "repo" / ".git" / "config"
    listed = _listed(config)
    before = survey(str(work), MOUNT)
    config.write_bytes(content)
    assert _disarm(before)
    if len(content) > 1 << 20:
        assert _listed(config) == listed
        assert config.with_name("config.disabled").read_bytes() == content
    else:
        assert b"\0" not in config.read_bytes()
        assert _disarm(before) == []


_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_PIECES = [
    *(
        "[core]",
        "[CORE]\n",
        "[a.b]",
        '[remote "x y"]',
        '[r "a\\"b\\\\c"]',
        "[]",
        "[",
        "]",
        "\n",
        "\r\n",
        "\r",
        "\t",
        " ",
    ),
    *("=", "key", "Key-1", "1x", "k = v\n", "\\", "\\\n", '"', '" "', "#", ";", "\u00e9", "\\n", "\\t", "\\b", "\\x"),
    *("\v", "\f", ".", "\ufeff", "include", "path", "=x\n", "=x\\\n"),
]


def test_settings_are_read_as_git_reads_them(tmp_path: Path) -> None:
    draw = random.Random(7)
    config = tmp_path / "config"
    read = 0
    for _ in range(20_000 if _SOAK else 60):
        text = draw.choice(["[core]\n", "\ufeff[core]k="]) + "".join(draw.choices(_PIECES, k=draw.randint(1, 8)))
        config.write_bytes(text.encode())
        ours = list(git_settings.parse_settings(git_settings.decode(text.encode())))
        if any(not setting.name for setting in ours):
            with pytest.raises(AssertionError):
                _listed(config)
            continue
        read += 1
        expected = [name if value is None else f"{name}\n{value}" for name, value, *_ in ours]
        assert _listed(config) == expected, repr(text)
    assert read > 10


RUNNING = """
    alias.x branch.x.mergeOptions browser.x.cmd bundle.x.uri commit.template core.alternateRefsCommand
    core.askPass core.attributesFile core.editor core.excludesFile core.fsmonitor core.gitProxy core.hooksPath
    core.pager core.protectHFS core.protectNTFS core.sshCommand core.worktree credential.helper
    credential.https://x.helper diff.external diff.orderFile diff.tool diff.x.command diff.x.textconv
    difftool.x.cmd difftool.x.path fetch.fsck.skipList filter.x.clean filter.x.process filter.x.smudge
    format.signatureFile fsck.skipList fsmonitor.socketDir gc.recentObjectsHook gpg.program
    gpg.ssh.defaultKeyCommand gpg.x509.program guitool.x.cmd help.browser http.cookieFile http.extraHeader
    http.proxy http.sslKey http.sslVerify http.https://x.proxy i18n.logOutputEncoding imap.tunnel include.path
    includeIf.gitdir:/.path init.templateDir instaweb.httpd interactive.diffFilter mailmap.file man.x.cmd
    merge.tool merge.x.driver mergetool.x.cmd mergetool.x.path pager.log protocol.allow protocol.ext.allow
    pull.octopus pull.twohead rebase.instructionFormat receive.procReceiveRefs remote.x.proxy
    remote.x.receivepack remote.x.uploadpack remote.x.vcs safe.directory sendemail.smtpServer sendemail.toCmd
    sendemail.x.ccCmd sequence.editor submodule.x.update tar.x.command trace2.eventTarget trailer.x.cmd
    trailer.x.command uploadpack.packObjectsHook url.x.insteadOf url.x.pushInsteadOf web.browser unknown.x
    unknown.x.y core.unknown remote.x.unknown fsmonitor
"""


def test_settings_that_name_programs_files_or_servers_are_not_harmless_and_most_others_are() -> None:
    def is_harmless(name: str) -> bool:
        section, _, rest = name.partition(".")
        subsection, dot, key = rest.rpartition(".")
        name = f"{section.lower()}.{subsection}{dot}{key.lower()}"
        return git_settings.is_harmless(git_settings.GitSetting(name, "x", 0, 0, ""), "/nowhere", "/else")

    assert [name for name in RUNNING.split() if is_harmless(name)] == []
    known = _git(Path("/"), "help", "--config").replace("<name>", "x").split()
    assert len([name for name in known if is_harmless(name)]) > 300


def test_what_a_line_of_the_persons_own_leaves_stays_and_is_named(work: Path, sandbox: Bubblewrap) -> None:
    """`!git config core.editor vim` was taken back, and no message said so."""
    printed = bytearray()

    def sink(out: bytes, err: bytes) -> bool:
        printed.extend(out + err)
        return True

    line = "cd repo && git config core.editor vim && echo true > .git/hooks/pre-commit"
    workspace = work.rename(work.with_name("workspace"))
    profile = ProfilePaths("alice", str(workspace.parent), "")
    assert user_commands.run(profile, sandbox, line, sink).code == 0
    assert printed.decode().count("deepctl: ") == 1
    assert "repo/.git/config: core.editor = vim; repo/.git/hooks/pre-commit" in printed.decode()
    assert _git(workspace / "repo", "config", "core.editor") == "vim\n"
    (said,) = _sandboxed(workspace, sandbox, "git -C repo config core.abbrev 8")
    assert "deepctl" not in said
    assert (workspace / "repo" / ".git" / "hooks" / "pre-commit").exists()


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
def test_a_file_of_gits_is_changed_after_a_question_only(links: Path, answer: ApprovalAnswer | None) -> None:
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
