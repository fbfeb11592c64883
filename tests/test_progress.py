"""What takes long says how far it is, to people only."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from deepctl.domain.checkpoints.reader import Reader
from deepctl.output.progress import Progress
from tests.domain.scene import Scene


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
    began = time.monotonic()
    reader = Reader(scene.paths)
    with Progress("Looking") as progress:
        monkeypatch.setattr(time, "monotonic", lambda: began + passed)
        reader.present((), progress)
    reader.close()
    written = screen.getvalue()
    assert ("Looking: 64 files read" in written) == shown
    assert written.endswith("\r\x1b[K") == shown, "the line is gone when it is done"
    assert bool(written) == shown
