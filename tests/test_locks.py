"""One writer a profile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepctl.errors import Locked
from deepctl.locks import Lock, holder

_HOLD = """
import sys, time
from deepctl.locks import Lock
with Lock(sys.argv[1], profile="alice", command="chat"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "locks" / "alice")


def _hold(path: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_at_once_and_told_who_holds_it(path: str) -> None:
    with _hold(path) as process:
        began = time.monotonic()
        with (
            pytest.raises(Locked, match=rf"pid {process.pid}, `deepctl chat`, since 20"),
            Lock(path, profile="alice", command="x"),
        ):
            pass
        assert time.monotonic() - began < 1
        process.kill()


def test_a_killed_holder_leaves_no_lock(path: str) -> None:
    with _hold(path) as process:
        process.kill()
        process.wait()
        with Lock(path, profile="alice", command="x"):
            assert holder(path) is not None
    assert holder(path) is None


def test_waiting_gets_the_lock_when_the_holder_is_done(path: str) -> None:
    with _hold(path) as process:
        began = time.monotonic()
        with pytest.raises(Locked), Lock(path, profile="alice", command="x", wait=0.3):
            pass
        assert 0.25 < time.monotonic() - began < 5
        process.kill()
        with Lock(path, profile="alice", command="x", wait=10):
            pass


def test_the_lock_file_is_private_and_a_link_in_its_place_is_refused(path: str, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with Lock(path, profile="alice", command="x"):
            assert os.stat(path).st_mode & 0o777 == 0o600
    finally:
        os.umask(previous)
    os.unlink(path)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    os.symlink(victim, path)
    with pytest.raises(Exception, match="not a regular file"), Lock(path, profile="alice", command="x"):
        pass
    assert victim.read_text() == "kept"
