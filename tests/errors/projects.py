"""Errors of projects: directories that cannot be one, and sessions in another directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deepctl.domain import project_trust, projects
from deepctl.layout import Root
from deepctl.locks import DirectoryLock, Lock
from tests.errors.situation import Situation, case
from tests.support.command import Result

ALICE = ("--user", "alice")
CHAT, REWIND = "chat", "checkpoints rewind"


def _directory(s: Situation, name: str = "shop") -> str:
    path = s.place / name
    path.mkdir()
    return str(path)


def _worked(s: Situation) -> str:
    """A project in which alice's session `main` works."""
    path = _directory(s)
    s.run("chat", "-C", path, "write a.txt: one", *ALICE).ok()
    return path


def _chat(directory: str | Path) -> list[str]:
    return ["chat", "-C", str(directory), "hello", *ALICE]


@case(CHAT, "`-C` with `--no-project` or `--ephemeral`")
def _(s: Situation) -> list[str]:
    return ["chat", "-C", ".", "--no-project", "hello"]


@case(CHAT, "the directory of `-C` is empty text")
def _(s: Situation) -> list[str]:
    return _chat("")


@case(CHAT, "the directory of `-C` begins with `~` and the name of no user")
def _(s: Situation) -> list[str]:
    return ["chat", "--project=~nobody-here/x", "hello", *ALICE]


@case(CHAT, "the directory of `-C` does not exist")
def _(s: Situation) -> list[str]:
    return _chat(s.place / "nothing")


@case(CHAT, "a link is in the place of the session's directory")
def _(s: Situation) -> list[str]:
    path = _worked(s)
    os.rename(path, path + "-2")
    os.symlink(path + "-2", path)
    return ["chat", "--session", "main", "hello", *ALICE]


@case(CHAT, "the directory of the session was moved")
def _(s: Situation) -> list[str]:
    path = _worked(s)
    os.rename(path, path + "-2")
    return ["chat", "--session", "main", "hello", *ALICE]


@case(CHAT, "the directory of the session was deleted")
def _(s: Situation) -> list[str]:
    shutil.rmtree(_worked(s))
    return ["chat", "--session", "main", "hello", *ALICE]


@case(REWIND, "there is no `-C`, and the profile has only sessions in projects")
def _(s: Situation) -> list[str]:
    _worked(s)
    return ["checkpoints", "rewind", "~1", *ALICE]


@case(CHAT, "the current directory was deleted")
def _(s: Situation) -> list[str]:
    gone = _directory(s, "gone")
    s.patch.chdir(gone)
    os.rmdir(gone)
    return _chat(".")


@case(CHAT, "the directory of `-C` is a file")
def _(s: Situation) -> list[str]:
    (s.place / "file").write_text("")
    return _chat(s.place / "file")


@case(CHAT, "the directory of `-C` is the root of the file system")
def _(s: Situation) -> list[str]:
    return _chat("/")


@case(CHAT, "the directory of `-C` is in a directory of the operating system")
def _(s: Situation) -> list[str]:
    return _chat("/usr/share/doc")


@case(CHAT, "the directory of `-C` is the home directory")
def _(s: Situation) -> list[str]:
    return _chat("~")


@case(CHAT, "the directory of `-C` is in a `.git`")
def _(s: Situation) -> list[str]:
    return _chat(_directory(s, ".git"))


@case(CHAT, "the directory of `-C` is a bare repository")
def _(s: Situation) -> list[str]:
    bare = _directory(s)
    for name in ("objects", "refs"):
        Path(bare, name).mkdir()
    Path(bare, "HEAD").write_text("ref: refs/heads/main\n")
    return _chat(bare)


@case(CHAT, "the directory of `-C` contains the root of deepctl's state")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_HOME", f"{_directory(s)}/state")
    return _chat(s.place / "shop")


@case(CHAT, "the directory of `-C` is in the root of deepctl's state")
def _(s: Situation) -> list[str]:
    s.alice()
    return _chat(s.workspace)


@case(CHAT, "the directory of `-C` belongs to another user")
def _(s: Situation) -> list[str]:
    if os.geteuid() != 0:
        return _chat("/mnt")
    path = _directory(s)
    os.chown(path, 4242, -1)
    return _chat(path)


@case(CHAT, "there is no permission to write into the directory of `-C`")
def _(s: Situation) -> Result:
    path = _directory(s)
    os.chmod(path, 0o500)
    return s.confined(*_chat(path), unprivileged=True)


@case(CHAT, "there is no permission to enter a directory above that of `-C`")
def _(s: Situation) -> Result:
    path = _directory(s)
    os.mkdir(f"{path}/inner")
    os.chmod(path, 0)
    try:
        return s.confined(*_chat(f"{path}/inner"), unprivileged=True)
    finally:
        os.chmod(path, 0o700)


@case(CHAT, "the file system of the directory of `-C` is read-only")
def _(s: Situation) -> Result:
    path = _directory(s)
    return s.confined(*_chat(path), around=("--ro-bind", path, path))


@case(CHAT, "the project is large, and there is no `--large`")
def _(s: Situation) -> list[str]:
    path = _directory(s)
    s.patch.setattr(projects, "MAX_FILES", 2)
    for name in "abc":
        Path(path, name).write_text("")
    return _chat(path)


@case(CHAT, "`--session` names a session of another directory than `-C`")
def _(s: Situation) -> list[str]:
    _worked(s)
    return ["chat", "-C", _directory(s, "other"), "--session", "main", "hello", *ALICE]


@case(CHAT, "another process works in the project, or above or in it")
def _(s: Situation) -> list[str]:
    path = _worked(s)
    root = Root(str(s.home))
    bob = root.profile("bob").lock
    s.until_the_end(Lock(bob, command="chat"))
    s.until_the_end(DirectoryLock(path, lock_file=bob))
    return _chat(path)


@case(REWIND, "no session began in the directory of `-C`")
def _(s: Situation) -> list[str]:
    s.story()
    return ["checkpoints", "rewind", "-C", _directory(s), *ALICE]


@case(REWIND, "no session began in the directory of `-C`, which is a moved project")
def _(s: Situation) -> list[str]:
    path = _worked(s)
    os.rename(path, f"{path}-2")
    return ["checkpoints", "rewind", "-C", f"{path}-2", *ALICE]


@case(REWIND, "the directory of the session is gone")
def _(s: Situation) -> list[str]:
    path = _worked(s)
    os.rename(path, f"{path}-2")
    return ["checkpoints", "rewind", "--session", "main", *ALICE]


@case("projects move", "OLD is not a project")
def _(s: Situation) -> list[str]:
    s.alice()
    return ["projects", "move", _directory(s), _directory(s, "other"), *ALICE]


@case("projects move", "NEW is another project")
def _(s: Situation) -> list[str]:
    first, second = _worked(s), _directory(s, "other")
    s.run("chat", "-C", second, "hello", *ALICE).ok()
    return ["projects", "move", first, second, *ALICE]


@case("projects forget", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    return ["projects", "forget", _worked(s), *ALICE]


def _with_skill(s: Situation) -> str:
    path = _worked(s)
    os.makedirs(f"{path}/.agents/skills")
    Path(path, ".agents/skills/SKILL.md").write_text("x")
    return path


@case("projects trust", "there is no terminal for the confirmation")
def _(s: Situation) -> list[str]:
    return ["projects", "trust", _with_skill(s), *ALICE]


@case("projects trust", "`--revoke` with `--dry-run`")
def _(s: Situation) -> list[str]:
    return ["projects", "trust", _with_skill(s), "--revoke", "--dry-run", *ALICE]


@case("projects trust", "too much needs trust")
def _(s: Situation) -> list[str]:
    s.patch.setattr(project_trust, "MAX_FILES", 0)
    return ["projects", "trust", _with_skill(s), *ALICE]


@case("config set", "the setting is only for profiles, and there is no `--user`")
def _(s: Situation) -> list[str]:
    return ["config", "set", "project", _directory(s)]


@case(CHAT, "`config.toml` has a setting that is only for profiles")
def _(s: Situation) -> list[str]:
    s.configure('project = "/tmp"\n')
    return ["chat", "hello", *ALICE]


@case(CHAT, "the setting `project` is a relative path")
def _(s: Situation) -> list[str]:
    s.alice()
    s.settings.write_text('project = "shop"\n')
    return ["chat", "hello", *ALICE]
