"""What takes long says how far it is, to people only."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pyte
import pytest

from deepctl.output.render import BYTES, Progress
from deepctl.store.repository import Repository
from tests.store.scene import Scene


class _Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(("terminal", "passed", "shown"), [(True, 5.0, True), (True, 0.5, False), (False, 5.0, False)])
def test_a_snapshot_counts_files_at_a_terminal_once_it_takes_longer_than_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, passed: float, shown: bool
) -> None:
    scene = Scene(tmp_path)
    for number in range(200):
        scene.write(f"f{number}", str(number))
    screen = _Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    began = time.monotonic()
    with Progress("Looking") as progress, Repository.read_only(scene.paths, report=progress) as reader:
        monkeypatch.setattr(time, "monotonic", lambda: began + passed)
        reader.present()
    written = screen.getvalue()
    assert ("64 files read" in written) == shown
    assert bool(written) == shown
    terminal_screen = pyte.Screen(80, 5)
    pyte.Stream(terminal_screen).feed(written.replace("\n", "\r\n"))
    assert not "".join(terminal_screen.display).strip(), "the line is gone when it is done"


def test_a_total_that_is_known_is_told_and_bytes_are_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen(True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    began = time.monotonic()
    with Progress("Exporting", BYTES, total=4 << 20) as progress:
        monkeypatch.setattr(time, "monotonic", lambda: began + 5)
        progress(1 << 20)
    assert "1.0 MiB of 4.0 MiB" in screen.getvalue()
