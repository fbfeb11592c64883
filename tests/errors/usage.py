"""Errors of any command: its command line, names, profiles, and whoever else is at work."""

from __future__ import annotations

import os
import signal
import time

from deepctl.locks import APPLICATION
from tests.errors.situation import Situation, case
from tests.support.command import Result

ANY = "any command"


@case(ANY, "the command does not exist")
def _(s: Situation) -> list[str]:
    return ["nonsense"]


@case(ANY, "the command is misspelled")
def _(s: Situation) -> list[str]:
    return ["checkpoint", "list"]


@case(ANY, "the command is in a group")
def _(s: Situation) -> list[str]:
    return ["undo"]


@case(ANY, "a value begins with a dash")
def _(s: Situation) -> list[str]:
    return ["config", "set", "model_settings.presence_penalty", "-0.5"]


@case(ANY, "the option does not exist")
def _(s: Situation) -> list[str]:
    return ["profiles", "list", "--nonsense"]


@case(ANY, "the option is misspelled")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", "--usr", "alice"]


@case(ANY, "an argument is missing")
def _(s: Situation) -> list[str]:
    return ["config", "get"]


@case(ANY, "an option lacks its value")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", *(["--json"] if s.as_json else []), "--user"]


@case(ANY, "an option has a value but takes no value")
def _(s: Situation) -> list[str]:
    return ["profiles", "list", "--help=1"]


@case(ANY, "there are too many arguments")
def _(s: Situation) -> list[str]:
    return ["checkpoints", "save", "two", "words", "--user", "alice"]


@case(ANY, "a value is not one of the allowed values")
def _(s: Situation) -> list[str]:
    return ["checkpoints", "rewind", "--only", "everything"]


@case(ANY, "a value is not a number")
def _(s: Situation) -> list[str]:
    return ["checkpoints", "save", "--wait", "long"]


@case(ANY, "a number is not a whole number")
def _(s: Situation) -> list[str]:
    return ["checkpoints", "prune", "--keep", "1.5"]


@case(ANY, "a number is too small")
def _(s: Situation) -> list[str]:
    return ["checkpoints", "prune", "--keep", "0"]


@case(ANY, "a number of seconds is infinite or not a number (`nan`)")
def _(s: Situation) -> list[str]:
    return ["checkpoints", "save", "--wait", "nan"]


@case(ANY, "`--json` is before the command", only="json")
def _(s: Situation) -> list[str]:
    return ["--json", "profiles", "list"]


@case(ANY, "`$DEEPCTL_HOME` is empty")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_HOME", "")
    return ["profiles", "list"]


@case(ANY, "`$DEEPCTL_CONFIG` is empty")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_CONFIG", "")
    return ["config", "path"]


@case(ANY, "the name of the profile is empty")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", "--user", ""]


@case(ANY, "the name of the profile is too long")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", "--user", "a" * 65]


@case(ANY, "the name of the profile contains characters that are not allowed")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", "--user", "../alice"]


@case(ANY, "Windows reserves the name of the profile")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", "--user", "nul.txt"]


@case(ANY, "`$DEEPCTL_USER` is not a valid name")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_USER", "../alice")
    return ["sessions", "list"]


@case(ANY, "`$DEEPCTL_USER` is empty")
def _(s: Situation) -> list[str]:
    s.patch.setenv("DEEPCTL_USER", "")
    return ["sessions", "list"]


@case(ANY, "`default_user` in `config.toml` is not a valid name")
def _(s: Situation) -> list[str]:
    s.configure('default_user = "../alice"\n')
    return ["sessions", "list"]


@case(ANY, "the profile does not exist")
def _(s: Situation) -> list[str]:
    return ["sessions", "list", "--user", "nobody"]


@case(ANY, "the default profile does not exist")
def _(s: Situation) -> list[str]:
    return ["sessions", "list"]


@case(ANY, "the profile of the directory no longer exists")
def _(s: Situation) -> list[str]:
    s.alice()
    s.run("profiles", "use", "alice", "--here")
    s.profile.rename(s.place / "moved")
    return ["sessions", "list"]


@case(ANY, "`directories.json` is damaged")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.home / "directories.json").write_text("{")
    return ["sessions", "list"]


@case(ANY, "the profile is a symbolic link")
def _(s: Situation) -> list[str]:
    s.alice()
    s.profile.rename(s.place / "moved")
    s.profile.symlink_to(s.place / "moved")
    return ["sessions", "list", "--user", "alice"]


@case(ANY, "the profile is not a directory")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.home / "profiles" / "bob").write_text("")
    return ["sessions", "list", "--user", "bob"]


@case(ANY, "other users may write to the root, or to a directory in or above it")
def _(s: Situation) -> list[str]:
    s.alice()
    s.home.chmod(0o1777)
    return ["sessions", "list", "--user", "alice"]


@case(ANY, "the root, or a directory in or above it, belongs to another user")
def _(s: Situation) -> Result:
    s.alice()
    if os.geteuid() == 0:
        os.chown(s.home, 4242, 4242)
        return s.confined("sessions", "list", "--user", "alice")
    # Root's, which is unknown there.
    return s.confined("sessions", "list", "--user", "alice", around=("--ro-bind", "/usr", str(s.home)))


@case(ANY, "the root is a symbolic link")
def _(s: Situation) -> list[str]:
    (s.place / "elsewhere").mkdir()
    s.home.symlink_to("elsewhere")
    return ["profiles", "create", "alice"]


@case(ANY, "a directory in the root is a symbolic link")
def _(s: Situation) -> list[str]:
    s.home.mkdir()
    (s.place / "elsewhere").mkdir()
    (s.home / "profiles").symlink_to(s.place / "elsewhere")
    return ["profiles", "create", "alice"]


@case(ANY, "the profile belongs to another user")
def _(s: Situation) -> Result:
    s.alice()
    if os.geteuid() == 0:
        os.chown(s.profile, 4242, 4242)
        return s.confined("sessions", "list", "--user", "alice")
    # Root's.
    return s.confined("sessions", "list", "--user", "alice", around=("--ro-bind", "/usr", str(s.profile)))


@case(ANY, "the workspace is a symbolic link")
def _(s: Situation) -> list[str]:
    s.alice()
    s.workspace.rmdir()
    s.workspace.symlink_to(s.place)
    return ["sessions", "list", "--user", "alice"]


@case(ANY, "`sessions` or `checkpoints` is a symbolic link")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.profile / "sessions").rmdir()
    (s.profile / "sessions").symlink_to(s.place)
    return ["sessions", "list", "--user", "alice"]


@case(ANY, "another process is working on the profile")
def _(s: Situation) -> list[str]:
    s.story()
    s.lock()
    return ["checkpoints", "save", "--user", "alice", "--wait", "0.1"]


@case(ANY, "an application works on the profile")
def _(s: Situation) -> list[str]:
    s.story()
    s.lock(command=APPLICATION)
    return ["checkpoints", "save", "--user", "alice", "--wait", "0.1"]


@case(ANY, "a file of the profile is not a regular file")
def _(s: Situation) -> list[str]:
    s.alice()
    s.settings.unlink()
    os.mkfifo(s.settings)
    return ["config", "get", "model", "--user", "alice"]


@case(ANY, "the lock is not a regular file")
def _(s: Situation) -> list[str]:
    s.alice()
    (s.home / "locks").mkdir(exist_ok=True)
    (s.home / "locks" / "alice").symlink_to(s.place / "elsewhere")
    return ["checkpoints", "save", "--user", "alice"]


@case(ANY, "Ctrl-C")
def _(s: Situation) -> Result:
    s.story()
    s.lock()
    running = s.start("checkpoints", "save", "--user", "alice", "--wait", "60")
    until_waiting(s, running.pid)
    running.send_signal(signal.SIGINT)
    return s.ended(running)


def until_waiting(s: Situation, process: int) -> None:
    """Until it has opened the lock's file."""
    lock = str(s.home / "locks" / "alice")
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for descriptor in os.listdir(f"/proc/{process}/fd"):
            try:
                if os.readlink(f"/proc/{process}/fd/{descriptor}") == lock:
                    return
            except OSError:
                continue
        time.sleep(0.01)
    raise AssertionError("it does not wait for the lock")


@case(ANY, "stdout is full")
def _(s: Situation) -> Result:
    s.alice()
    with open("/dev/full", "wb") as full:
        return s.process("profiles", "list", stdout=full)
