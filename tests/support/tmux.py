"""`deepctl chat` in tmux: a terminal that breaks long rows anew when its window changes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path


class Tmux:
    """A server of its own with one window, in which `deepctl chat` runs."""

    def __init__(self, place: Path, *arguments: str, size: tuple[int, int] = (100, 60)) -> None:
        program = shutil.which("tmux")
        assert program is not None, "tmux is not installed: apt install tmux"
        self._command = [program, "-S", str(place / "socket")]
        chat = [sys.executable, "-m", "deepctl", "chat", "--user", "alice", "--sandbox", "none", *arguments]
        columns, rows = map(str, size)
        self.tell("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, shlex.join(chat))

    def tell(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout

    @property
    def screen(self) -> str:
        """What is in the window."""
        return self._captured()

    @property
    def scrolled(self) -> str:
        """With what a person sees who scrolls up to the beginning."""
        return self._captured("-S", "-")

    @property
    def colours(self) -> str:
        """What is in the window, with the SGR sequences of its colours."""
        return self._captured("-e")

    def _captured(self, *which: str) -> str:
        lines = self.tell("capture-pane", "-p", *which).splitlines()
        return "\n".join(line.rstrip() for line in lines).rstrip()

    def type(self, text: str) -> None:
        self.tell("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self.tell("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self.tell("resize-window", "-x", str(columns), "-y", str(rows))

    def expect(self, text: str) -> None:
        self.match(re.escape(text))

    def match(self, pattern: str) -> None:
        """Wait until the pattern is on the screen; `^` and `$` are the ends of a row."""
        end = time.monotonic() + 30
        while re.search(pattern, self.screen, re.MULTILINE) is None:
            assert time.monotonic() < end, f"{pattern!r} is not on the screen:\n{self.screen}"
            time.sleep(0.05)

    def settled(self) -> str:
        """The screen, once it has not changed for a while."""
        end = time.monotonic() + 30
        before = None
        while before != (now := self.screen):
            assert time.monotonic() < end, f"it goes on changing:\n{now}"
            before = now
            time.sleep(0.4)
        return now

    def settled_rows(self) -> str:
        """The screen, once the number of its rows has not changed for a while: a live region has a clock."""
        end = time.monotonic() + 30
        before = ""
        while len((now := self.screen).split("\n")) != len(before.split("\n")):
            assert time.monotonic() < end, f"it goes on changing:\n{now}"
            before = now
            time.sleep(0.5)
        return now

    def close(self) -> None:
        subprocess.run([*self._command, "kill-server"], capture_output=True, check=False, timeout=30)
