"""The pages of the documentation: their code blocks, and a reader who runs them.

The word after a fence says what a block is:

- `sh`: commands, which run one after another. Each must succeed; `# exit 6` at the end of a line names another code.
- `console`: commands behind `$ `, each with its output at a terminal of 100 columns. In the output `…` stands for any
  text, and a line that is only `…` for any lines. Ids, ages and times may differ.
- `python`: executed. `toml`: read as the settings of a profile; `toml config.toml`: as that file.
- `text`: a figure, which has nothing to run.

`sh not run: REASON` marks commands that a test cannot run.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyte
import pytest

from docs.pictures.screen import settled
from tests.support.command import InProcess
from tests.support.terminal import Terminal

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "console", "python", "toml", "text"}
NOT_RUN = {"needs a package index", "needs a key", "opens an editor", "needs a clone with make", "needs gocryptfs"}
"""Reasons for which a block is not run."""

_BLOCK = re.compile(r"^(?P<fence>```+)(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
_PLAIN = re.compile(r"(?:(?P<before>[^|;&]+) \| )?deepctl(?P<arguments>(?: [^|;&<>$`]*)?)(?P<after> ?[|>].*)?")
"""A line that runs one command of deepctl, perhaps with a pipe or a redirection beside it."""
_TIME = re.compile(r"\b20\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?)?")
_COLUMNS = 100


class Block(NamedTuple):
    """A code block: where it begins, what it is, and its text."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def name(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        language, _, mark = match["info"].strip().partition(" ")
        found.append(Block(name(page), text.count("\n", 0, match.start()) + 1, language, mark.strip(), match["text"]))
    return found


class Reader:
    """A person who types what a page says, in a directory that has a few files and a git repository."""

    def __init__(self, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._desk = desk
        self._monkeypatch = monkeypatch
        self._deepctl = InProcess()
        desk.mkdir()
        (desk / "notes.txt").write_text("The flight is at 9.\n")
        (desk / "shot.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (desk / "trip.md").write_text("Rome in May\n")
        monkeypatch.chdir(desk)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        self._sh("git init -q && git add -N trip.md")

    def types(self, block: Block) -> None:
        """Run a block of commands, and compare what is shown."""
        if block.language == "console":
            self._transcript(block)
            return
        for line in block.text.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition(" #")
            if not command.strip() or command.startswith("#"):
                continue
            expected = re.search(r"exit (\d+)", comment)
            code, output = self._run(command.strip())
            assert code == (int(expected[1]) if expected else 0), f"{block.place}: {command}\n{output}"

    def _run(self, command: str) -> tuple[int, str]:
        """The exit code and all output of a line; deepctl runs in this process where the line allows it."""
        if command.startswith("export "):
            variable, _, value = shlex.split(command)[1].partition("=")
            self._monkeypatch.setenv(variable, value.replace("…", "a-key-of-a-test"))
            return 0, ""
        plain = _PLAIN.fullmatch(command)
        if plain is None:
            return self._sh(command)
        stdin = b""
        if plain["before"]:
            stdin = subprocess.run(["bash", "-c", plain["before"]], capture_output=True, check=False).stdout
        elif plain["arguments"].startswith(" keys set "):
            stdin = b"a-key-of-a-test\n"  # the person types it
        done = self._deepctl(*shlex.split(plain["arguments"]), stdin=stdin)
        if plain["after"] and done.code == 0:
            after = plain["after"].strip()
            code, output = self._sh(after.removeprefix("|") if after[0] == "|" else f"cat {after}", done.stdout)
            return code, output
        return done.code, done.stdout + done.stderr

    def _sh(self, command: str, stdin: str = "") -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def _transcript(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            shown = self._at_terminal(shlex.split(command, comments=True)[1:])
            assert _matches(expected, shown), f"{block.place}: `{command}` shows\n{shown}\nand not\n{expected}"

    def _at_terminal(self, arguments: list[str]) -> str:
        terminal = Terminal(*arguments, columns=_COLUMNS, rows=60)
        try:
            terminal.wait()
        finally:
            terminal.close()
        screen = pyte.Screen(_COLUMNS, 200)
        pyte.ByteStream(screen).feed(terminal.bytes)
        return "\n".join(line.rstrip() for line in screen.display).strip("\n")


def _matches(expected: str, shown: str) -> bool:
    pattern = r"\n".join(
        r"[^\0]*?" if line == "…" else re.escape(_alike(line)).replace("…", ".*?")
        for line in expected.strip("\n").splitlines()
    )
    return re.fullmatch(pattern, _alike(shown)) is not None


def _alike(text: str) -> str:
    return _TIME.sub("(time)", settled(text))
