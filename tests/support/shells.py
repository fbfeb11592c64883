"""A real bash, zsh or fish at a pseudo-terminal: type, press Tab, look at the line and at the screen.

Nothing is on its PATH but programs that leave a trace when they are started.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pexpect
import pyte

from deepctl.cli.completion import FILES
from tests.support.clusters import QuickScreen

COMPLETIONS = Path(__file__).parent.parent.parent / "completions"
SHELLS = tuple(FILES)
_PROMPT = "READY>"
_MARK = "QQ"
_LIMIT = 30.0
"""Seconds after which a shell that says nothing has failed."""

_TABS = {"bash": 3, "zsh": 2, "fish": 1}
"""How often Tab is pressed for a list: one may insert what all have in common, one may only ring the bell."""

_START = {
    "bash": "PS1='READY> '; bind 'set bell-style none'; bind 'set completion-query-items 5000'; "
    "bind 'set page-completions off'; bind 'set enable-bracketed-paste off'; source {script}\n",
    "zsh": "PS1='READY> '; fpath=({directory} $fpath); autoload -Uz compinit; compinit -u -d {place}/dump\n"
    "unsetopt automenu beep; LISTMAX=5000; unset zle_bracketed_paste\n",
    "fish": "function fish_prompt; echo -n 'READY> '; end; set -g fish_autosuggestion_enabled 0\n"
    "bind \\cl 'printf \"\\e[H\\e[2J\"; commandline -f repaint'; source {script}\n",
}


def program(shell: str) -> str:
    """The path of a shell. Tests fail where one is missing: completion that nobody tried does not work."""
    found = shutil.which(shell)
    assert found is not None, f"{shell} is not installed, and its completion has to be tested: apt install {shell}"
    return found


class Screen(QuickScreen):
    """A screen that answers what a shell asks its terminal."""

    child: Any = None

    def write_process_input(self, data: str) -> None:
        self.child.send(data.encode())


class Shell:
    """One interactive shell with deepctl's completion, in a home of its own below `place`."""

    def __init__(self, name: str, place: Path, environment: dict[str, str], cwd: Path | None = None) -> None:
        self.name = name
        place.mkdir(parents=True)
        path = place / "path"
        path.mkdir()
        self.started = place / "started"
        for fake in ("deepctl", "python", "python3"):
            (path / fake).write_text(f"#!/bin/sh\necho {fake} >>{self.started}\n")
            (path / fake).chmod(0o755)
        start = place / (".zshrc" if name == "zsh" else "start")
        script = COMPLETIONS / FILES[name]
        start.write_text(_START[name].format(script=script, directory=COMPLETIONS, place=place))
        arguments = {
            "bash": ["--noprofile", "--rcfile", str(start), "-i"],
            "zsh": ["-d", "-i"],
            "fish": ["--no-config", "--init-command", f"source {start}"],
        }
        home = {"HOME": str(place), "ZDOTDIR": str(place), "PATH": str(path), "TERM": "xterm", "LANG": "C.UTF-8"}
        self._child: Any = pexpect.spawn(
            program(name),
            arguments[name],
            env={**home, **environment},
            dimensions=(100, 200),
            timeout=_LIMIT,
            cwd=str(cwd or place),
        )
        self._screen = Screen(200, 100)
        self._screen.child = self._child
        self._stream = pyte.ByteStream(self._screen)
        self._until(lambda: self.screen.rstrip().endswith(_PROMPT))

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).strip()

    def line(self, typed: str) -> str:
        """What stands on the line after `typed` and a Tab; `|` behind it marks where the cursor is."""
        self._clear()
        self._child.send(f"{typed}\t{_MARK}".encode())
        self._until(lambda: any(_MARK in line for line in self._screen.display))
        (found,) = [line for line in self._screen.display if _MARK in line]
        before, _, after = found.partition(_MARK)
        return before.removeprefix(f"{_PROMPT} ") + "|" + after.rstrip()

    def offered(self, typed: str, *expected: str) -> str:
        """The screen, once it shows all of `expected` below the line, where what fits is listed."""
        self._clear()
        self._child.send((typed + "\t" * _TABS[self.name]).encode())
        self._until(lambda: all(word in self._listed() for word in expected))
        return self._listed()

    def run(self, command: str) -> None:
        """Run a command that prints nothing."""
        self._clear()
        self._child.send(f"{command}\r".encode())
        self._until(lambda: self.screen.count(_PROMPT) == 2)

    def children(self) -> int:
        """A number that grows with every child process that has ended: their page faults (proc(5), `cminflt`)."""
        return int(Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()[8])

    def close(self) -> None:
        self._child.close(force=True)

    def _listed(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display if not line.startswith(_PROMPT))

    def _clear(self) -> None:
        self._child.send(b"\x15\x0c")
        self._until(lambda: self.screen == _PROMPT)

    def _until(self, done: Any) -> None:
        end = time.monotonic() + _LIMIT
        while not done():
            assert time.monotonic() < end, f"{self.name} did not get there:\n{self.screen}"
            try:
                self._stream.feed(self._child.read_nonblocking(65536, 0.1))
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                raise AssertionError(f"{self.name} has ended:\n{self.screen}") from None
