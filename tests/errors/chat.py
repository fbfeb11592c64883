"""Errors of a chat, but for those of models and sandboxes."""

from __future__ import annotations

import os
import signal
import threading

from tests.errors.situation import Situation, case
from tests.support.command import Result
from tests.support.loopback import Text
from tests.support.pictures import png

ALICE = ("--user", "alice")


@case("chat", "there is no prompt, and stdin is empty")
def _(s: Situation) -> list[str]:
    return ["chat"]


@case("chat", "the prompt is empty")
def _(s: Situation) -> list[str]:
    return ["chat", " "]


@case("chat", "`--json` without a prompt at a terminal", only="json")
def _(s: Situation) -> Result:
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "rb") as terminal:
        # A conversation needs a terminal on both sides, which is when it is refused; here stdout is one too.
        running = s.start("chat", stdin=terminal, stdout=theirs)
        code = running.wait(timeout=60)
        said = os.read(ours, 65536).decode()
        return Result(code, said, running.stderr.read().decode() if running.stderr else "")


@case("chat", "there is no prompt, and stdout is not a terminal", only="text")
def _(s: Situation) -> Result:
    ours, theirs = os.openpty()
    with os.fdopen(ours), os.fdopen(theirs, "rb") as terminal:
        return s.process("chat", stdin=terminal)


@case("chat", "the prompt follows `--new` and becomes its NAME")
def _(s: Situation) -> list[str]:
    return ["chat", "--new", "hello"]


@case("chat", "the word after `--new` is not a valid name")
def _(s: Situation) -> list[str]:
    return ["chat", "--new", "hello there"]


@case("chat", "the prompt is a slash command that a shell command is, too")
def _(s: Situation) -> list[str]:
    return ["chat", "/undo --force"]


@case("chat", "the prompt is a slash command of interactive chats")
def _(s: Situation) -> list[str]:
    return ["chat", "/status"]


@case("chat", "the prompt is not UTF-8")
def _(s: Situation) -> list[str]:
    return ["chat", "caf\udce9"]


@case("chat", "stdin is not UTF-8")
def _(s: Situation) -> Result:
    return s.run("chat", stdin=b"caf\xe9")


@case("chat", "stdin is a picture")
def _(s: Situation) -> Result:
    return s.run("chat", "what is this?", stdin=png())


@case("chat", "stdin cannot be read")
def _(s: Situation) -> Result:
    with open("/proc/self/mem", "rb") as unreadable:
        return s.process("chat", "hello", stdin=unreadable)


@case("chat", "`--session` and `--new` together")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--session", "main", "--new"]


@case("chat", "`--resume` or `--continue` with another choice of the session")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--continue", "--session", "main"]


@case("chat", "`--resume` without a terminal", only="text")
def _(s: Situation) -> list[str]:
    s.story()
    return ["chat", "--resume", "--user", "alice"]


@case("chat", "`--resume`, and the profile has no sessions", only="text")
def _(s: Situation) -> Result:
    s.run("profiles", "create", "alice")
    terminal = s.terminal("chat", "--resume", "--user", "alice")
    return s.left(terminal, terminal.wait())


@case("chat", "`--resume`, and no session is chosen", only="text")
def _(s: Situation) -> Result:
    s.story()
    terminal = s.terminal("chat", "--resume", "--user", "alice")
    terminal.expect("Enter selects, Esc leaves")
    terminal.type("\x1b")
    return s.left(terminal, terminal.wait())


@case("chat", "the name of the session is invalid")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--session", "a/b"]


@case("chat", "the name of the session is empty")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--session", ""]


@case("chat", "the name of the session is too long")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--session", "a" * 65]


@case("chat", "Windows reserves the name of the session")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--session", "con"]


@case("chat", "a session with the name after `--new` already exists")
def _(s: Situation) -> list[str]:
    s.story()
    return ["chat", "hello", "--user", "alice", "--new=Main"]


@case("chat", "`--ephemeral` with a session")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--ephemeral", "--new"]


@case("chat", "`--ephemeral` with a sandbox or the network")
def _(s: Situation) -> list[str]:
    return ["chat", "hello", "--ephemeral", "--network"]


@case("chat", "the turn reaches its `--timeout`", prints=True)
def _(s: Situation) -> Result:
    s.alice()
    return _waiting(s, "--timeout", "0.2")


@case("chat", "the turn of an ephemeral chat reaches its `--timeout`", prints=True)
def _(s: Situation) -> Result:
    return _waiting(s, "--timeout", "0.2", "--ephemeral")


@case("chat", "Ctrl-C in a turn", prints=True)
def _(s: Situation) -> Result:
    s.alice()
    return _waiting(s, number=signal.SIGINT)


@case("chat", "Ctrl-C in an ephemeral turn", prints=True)
def _(s: Situation) -> Result:
    return _waiting(s, "--ephemeral", number=signal.SIGINT)


@case("chat", "SIGTERM in a turn; only `--json` reports this error", prints=True, silent=True)
def _(s: Situation) -> Result:
    s.alice()
    return _waiting(s, number=signal.SIGTERM)


@case("chat", "SIGHUP in a turn; only `--json` reports this error", prints=True, silent=True)
def _(s: Situation) -> Result:
    s.alice()
    return _waiting(s, number=signal.SIGHUP)


@case("chat", "SIGTERM in an ephemeral turn; only `--json` reports this error", prints=True, silent=True)
def _(s: Situation) -> Result:
    return _waiting(s, "--ephemeral", number=signal.SIGTERM)


def _waiting(s: Situation, *options: str, number: signal.Signals | None = None) -> Result:
    """A turn whose answer begins and does not end, until time is up or a signal comes."""
    over = threading.Event()

    def gate() -> None:
        if number is not None:
            os.kill(os.getpid(), number)
        over.wait(30)

    model = s.provider(Text(["Well", " no"], gate=gate))
    who = () if "--ephemeral" in options else ALICE
    try:
        return s.run("chat", "hello", *who, *model, *options)
    finally:
        over.set()


@case("chat", "the profile is renamed or wiped during the chat", only="text")
def _(s: Situation) -> Result:
    s.alice()
    terminal = s.terminal("chat", *ALICE)
    terminal.prompt()
    s.profile.rename(s.home / "profiles" / "alicia")
    terminal.type("hello\r")
    terminal.expect("Error:")
    return s.left(terminal, terminal.wait())
