"""A case prepares the cause of an error in a situation and runs a real command there."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from deepctl import layout
from deepctl.cli.main import main
from deepctl.domain import profiles
from deepctl.errors import Terminated
from deepctl.files import sealed_lines
from tests.store.scene import Scene
from tests.support.command import Command, Result
from tests.support.loopback import Answer, Provider
from tests.support.terminal import Terminal

T = TypeVar("T")

_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>])")
_UNPRIVILEGED = ("--unshare-user", "--uid", "4242", "--gid", "4242", "--cap-drop", "ALL")


class _Provider(Provider):
    """A provider that tells clients not to retry, and that stops at once."""

    def __init__(self, answers: list[Answer], repeat_last: bool) -> None:
        super().__init__(answers, repeat_last)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        end = handler.end_headers

        def marked() -> None:
            handler.send_header("x-should-retry", "false")
            end()

        handler.end_headers = marked  # type: ignore[method-assign]
        super()._serve(handler)


class Situation:
    """A root for one test, in which alice can have a profile. `close` ends everything that would outlive the test."""

    def __init__(self, home: Path, place: Path, patch: pytest.MonkeyPatch, *, as_json: bool) -> None:
        self.home = home
        self.place = place
        self.patch = patch
        self.as_json = as_json
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def until_the_end(self, what: AbstractContextManager[T]) -> T:
        """Enter a context that lasts as long as the situation."""
        return self._stack.enter_context(what)

    @property
    def profile(self) -> Path:
        """The path of alice's profile, which is not created here."""
        return self.home / "profiles" / "alice"

    @property
    def workspace(self) -> Path:
        return self.profile / "workspace"

    @property
    def settings(self) -> Path:
        """Alice's own settings file."""
        return self.profile / "profile.toml"

    @property
    def config(self) -> Path:
        return self.place / "config" / "config.toml"

    def alice(self) -> Scene:
        """Alice's profile as a scene; it is created empty if it does not exist."""
        return Scene(self.home)

    def story(self) -> Scene:
        """Alice's profile with two turns of the agent, which writes `a.txt` in each."""
        scene = self.alice()
        scene.agent("a.txt", "one\n")
        scene.agent("a.txt", "two\n")
        return scene

    def configure(self, text: str) -> None:
        """Write `config.toml`."""
        self.config.parent.mkdir(exist_ok=True)
        self.config.write_text(text)

    def lock(self, name: str = "alice", command: str = "chat") -> None:
        """Hold a profile's lock until the end."""
        self.until_the_end(profiles.lock(layout.Root(str(self.home)), name, command=command))

    def provider(self, *answers: Answer, repeat_last: bool = False) -> tuple[str, str]:
        """Start a provider; returns the options that name its model."""
        server = _Provider(list(answers), repeat_last)
        server.start()
        self._stack.callback(server.stop)
        self.patch.setenv("OPENAI_BASE_URL", f"{server.address}/v1")
        self.patch.setenv("OPENAI_API_KEY", "sk-canary-0123456789abcdef")
        return ("--model", "openai-chat:loopback")

    def arguments(self, argv: Sequence[str]) -> list[str]:
        """The command line, with --json in the mode `json`."""
        if not self.as_json or "--json" in argv:
            return list(argv)
        end = argv.index("--") if "--" in argv else len(argv)
        return [*argv[:end], "--json", *argv[end:]]

    def run(self, *argv: str, stdin: bytes = b"") -> Result:
        """Run a command in this process. An end by a signal counts as 128 and its number, as in a shell."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(self.arguments(argv))
            except Terminated as ended:  # which is where a process would end itself by the signal
                code = ended.exit_code
        return Result(code, _written(out), _written(err))

    def process(self, *argv: str, prefix: Sequence[str] = (), **options: Any) -> Result:
        """Run a command in a process of its own. An end by a signal counts as 128 and its number, as in a shell."""
        running = self.start(*argv, prefix=prefix, **options)
        return self.ended(running)

    def start(self, *argv: str, prefix: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Start a command, and leave it running."""
        command = Command()
        command.argv = (*prefix, *Command.argv)  # type: ignore[assignment]
        self._stack.callback(command.stop)
        return command.start(*self.arguments(argv), **options)

    def ended(self, running: subprocess.Popen[bytes]) -> Result:
        """Wait for a command that was started."""
        out, err = running.communicate(timeout=60)
        code = running.returncode
        return Result(code if code >= 0 else 128 - code, (out or b"").decode(), (err or b"").decode())

    def confined(self, *argv: str, around: Sequence[str] = (), unprivileged: bool = False) -> Result:
        """Run a command on a changed machine: `around` are arguments of bwrap.

        With `unprivileged`, it has no right to pass over the modes of files.
        """
        prefix = ["bwrap", "--dev-bind", "/", "/", *(_UNPRIVILEGED if unprivileged else ()), *around, "--"]
        return self.process(*argv, prefix=prefix)

    def terminal(self, *argv: str) -> Terminal:
        """Start a command on a pseudo-terminal."""
        # So wide that no sentence is broken.
        terminal = Terminal(*self.arguments(argv), columns=400)
        self._stack.callback(terminal.close)
        return terminal

    def left(self, terminal: Terminal, code: int) -> Result:
        """The last output of a command on a terminal: its error and its hint."""
        lines = [line.strip() for line in terminal.screen.splitlines() if line.strip()]
        first = next((number for number, line in enumerate(lines) if line.startswith("Error: ")), len(lines))
        return Result(code, "", "".join(f"{line}\n" for line in lines[first:]))

    def seal(self, path: Path, line: dict[str, object], *, append: bool = False) -> None:
        """Write a line with a valid checksum."""
        raw = sealed_lines.seal(line)
        path.write_bytes(path.read_bytes() + raw if append else raw)


Prepare = Callable[[Situation], "Sequence[str] | Result"]


class Case(NamedTuple):
    """How a test causes an error."""

    prepare: Prepare
    modes: tuple[str, ...] = ("text", "json")
    """The modes in which the error can occur. Errors of a confirmation at a terminal do not occur with --json."""
    prints: bool = False
    """Whether the command prints output before it fails."""
    silent: bool = False
    """Whether the error is reported only with --json."""


CASES: dict[tuple[str, str], Case] = {}


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode("utf-8", "surrogateescape")


def case(
    command: str,
    cause: str,
    *,
    only: str | None = None,
    prints: bool = False,
    silent: bool = False,
) -> Callable[[Prepare], Prepare]:
    """Register the function that causes the error of one row. It returns a command line, or the result of one."""

    def register(prepare: Prepare) -> Prepare:
        assert (command, cause) not in CASES, f"two cases for {command}: {cause}"
        CASES[command, cause] = Case(prepare, (only,) if only else ("text", "json"), prints, silent)
        return prepare

    return register
