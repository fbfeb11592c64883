"""One writer a profile."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepctl.errors import Locked
from deepctl.locks import DirectoryLock, Lock, holder

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


_WORK = """
import sys, time
from deepctl.locks import DirectoryLock, Lock
with Lock(sys.argv[1], profile="bob", command="chat"), DirectoryLock(sys.argv[2], lock_file=sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def _work(lock_file: str, directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK, lock_file, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        ("a", "a", r"working in \S+/p/a \(pid"),
        ("a/b/c", "a", r"working in \S+/p/a/b/c, which is in \S+/p/a \(pid"),
        ("a", "a/b/c", r"working in \S+/p/a, which contains \S+/p/a/b/c \(pid"),
    ],
)
@pytest.mark.parametrize("root", ["locks", "other-root/locks"])
def test_no_two_work_in_one_directory_nor_above_each_other(
    path: str, tmp_path: Path, theirs: str, ours: str, message: str, root: str
) -> None:
    (tmp_path / "p" / "a" / "b" / "c").mkdir(parents=True)
    directory = str(tmp_path / "p" / ours)
    with _work(str(tmp_path / root / "bob"), tmp_path / "p" / theirs) as process:
        with Lock(path, profile="alice", command="x"), pytest.raises(Locked) as caught:
            with DirectoryLock(directory, lock_file=path):
                pass
        if root == "locks":
            assert re.search(f"{message} {process.pid}, `deepctl chat`, since 20", caught.value.message)
        elif Path("/proc/locks").exists():
            # Another root: only the kernel knows who it is, and not which of the directories it is.
            assert f"(pid {process.pid})" in caught.value.message
        process.kill()
        process.wait()
        with Lock(path, profile="alice", command="x"), DirectoryLock(directory, lock_file=path):
            found = holder(path)
            assert found is not None
            assert found.directory == directory


def test_neighbouring_directories_and_those_above_that_are_closed_do_not_conflict(path: str, tmp_path: Path) -> None:
    for name in ("a", "ab"):
        (tmp_path / "p" / name).mkdir(parents=True)
    with _work(str(tmp_path / "locks" / "bob"), tmp_path / "p" / "a") as process:
        os.chmod(tmp_path / "p", 0o100)
        try:
            with Lock(path, profile="alice", command="x"), DirectoryLock(str(tmp_path / "p" / "ab"), lock_file=path):
                pass
        finally:
            os.chmod(tmp_path / "p", 0o700)
        process.kill()


def test_a_directory_lock_waits(path: str, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with _work(str(tmp_path / "locks" / "bob"), tmp_path / "p") as process:
        threading.Timer(0.3, process.kill).start()
        with Lock(path, profile="alice", command="x"):
            with DirectoryLock(str(tmp_path / "p"), lock_file=path, wait=20):
                pass


def test_a_file_system_without_locks_of_directories_is_no_error(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    with Lock(path, profile="alice", command="x"):

        def refuse(descriptor: int, operation: int) -> None:
            raise OSError(errno.EBADF, "Bad file descriptor")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with DirectoryLock(str(tmp_path / "p"), lock_file=path):
            pass


def test_a_directory_that_is_gone_or_a_link_is_not_locked(path: str, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "p")
    for name in ("gone", "link"):
        with Lock(path, profile="alice", command="x"), pytest.raises(OSError, match=name):
            with DirectoryLock(str(tmp_path / name), lock_file=path):
                pass


def test_a_second_lock_of_the_same_profile_and_process_does_nothing(path: str, tmp_path: Path) -> None:
    (tmp_path / "p" / "inner").mkdir(parents=True)
    with Lock(path, profile="alice", command="x"), DirectoryLock(str(tmp_path / "p" / "inner"), lock_file=path):
        with DirectoryLock(str(tmp_path / "p"), lock_file=path):
            pass
        # The first one is still held.
        other = str(tmp_path / "locks" / "bob")
        with Lock(other, profile="bob", command="x"), pytest.raises(Locked, match="inner"):
            with DirectoryLock(str(tmp_path / "p" / "inner"), lock_file=other):
                pass
