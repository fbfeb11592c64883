"""Bad storage: a clear line, exit 8, nothing lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root; CI is root")


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tmpfs of 1 MiB as the root of state."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    monkeypatch.setenv("DEEPCTL_HOME", str(place / "root"))
    yield place
    subprocess.run(["umount", place], check=True)


@needs_root
def test_a_full_disk_is_exit_8_and_the_conversation_so_far_is_kept(process: Command, small_disk: Path) -> None:
    process("chat", "--user", "alice", "write a.txt: kept\nremember kept").ok()
    before = process("sessions", "show", "--user", "alice", "--json").ok().json["messages"]
    ballast = small_disk / "ballast"
    for command in (
        ("chat", "--user", "alice", "hello"),
        ("profiles", "create", "bob"),
        ("config", "set", "model", "x:y", "--user", "alice"),
    ):
        with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        result = process(*command)
        assert result.code == 8, (command, result)
        assert "disk is full" in result.stderr
        assert "Traceback" not in result.stderr
    for reader in (("sessions", "list"), ("memory", "show"), ("config", "show")):
        assert process(*reader, "--user", "alice").code == 0
    ballast.unlink()
    after = process("sessions", "show", "--user", "alice", "--json").ok().json
    assert after["messages"][: len(before)] == before
    assert after["damaged"] == []
    assert process("memory", "show", "--user", "alice").ok().stdout == "- kept\n"
    process("chat", "--user", "alice", "hello").ok()
    process("profiles", "create", "bob").ok()


def _fill(place: Path, *, left: int) -> Path:
    """Leave so many bytes free."""
    ballast = place / "ballast"
    free = os.statvfs(place)
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    return ballast


@needs_root
@pytest.mark.parametrize("left", [0, 4096, 12288])
def test_on_a_disk_that_is_nearly_full_nothing_is_a_bug_and_nothing_is_lost(
    process: Command, small_disk: Path, left: int
) -> None:
    process("chat", "--user", "alice", "write a.txt: kept\nremember kept").ok()
    process("chat", "--user", "alice", "write a.txt: later").ok()
    commands = (
        ("memory", "add", "a note"),
        ("memory", "forget", "kept", "--yes"),
        ("checkpoints", "rewind", "~1"),
        ("checkpoints", "prune", "--keep", "1"),
        ("chat", "write n.txt: hello"),
        ("sessions", "rename", "main", "other"),
        ("sessions", "delete", "main", "--yes"),
    )
    for command in commands:
        ballast = _fill(small_disk, left=left)
        result = process(*command, "--user", "alice")
        assert result.code in (0, 3, 8), (command, result)
        assert "Traceback" not in result.stderr
        ballast.unlink()
        process("checkpoints", "verify", "--user", "alice").ok()
    process("chat", "--user", "alice", "hello").ok()


@needs_root
def test_a_wipe_needs_no_space(process: Command, small_disk: Path) -> None:
    process("chat", "--user", "alice", "write a.txt: kept").ok()
    _fill(small_disk, left=0)
    process("wipe", "--user", "alice", "--yes").ok()
    assert sorted(path.name for path in (small_disk / "root" / "profiles").iterdir()) == []


@needs_root
def test_a_tool_that_meets_a_full_disk_fails_as_a_tool_and_keeps_the_old_file(
    process: Command, small_disk: Path
) -> None:
    process("chat", "write a.txt: old").ok()
    result = process("chat", "--json", stdin=b"write a.txt: " + b"x" * 2_000_000)
    assert result.code in (0, 8)
    assert (small_disk / "root/profiles/default/workspace/a.txt").read_text() == "old"
    assert process("chat", "hello").code == 0


@needs_root
def test_a_read_only_root_is_exit_8_for_writers_and_readers_go_on(process: Command, small_disk: Path) -> None:
    process("chat", "--user", "alice", "remember kept").ok()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for command in (
        ("chat", "--user", "alice", "hello"),
        ("profiles", "create", "bob"),
        ("chat", "--user", "carol", "hi"),
    ):
        result = process(*command, "--json")
        assert result.code == 8, (command, result)
        assert "read-only" in result.stderr + result.stdout
    assert process("memory", "show", "--user", "alice").ok().stdout == "- kept\n"
    assert process("sessions", "show", "--user", "alice").code == 0
    assert process("profiles", "list").code == 0


def test_a_root_that_is_a_file_is_exit_8(deepctl: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("DEEPCTL_HOME", str(root))
        for command in (("chat", "hello"), ("profiles", "create", "alice"), ("profiles", "list"), ("memory", "show")):
            result = deepctl(*command, "--json")
            assert result.code == 8, (command, result)
            assert "not a directory" in (result.stderr + result.stdout)
    assert (tmp_path / "file").read_text() == "not a directory"


def test_an_empty_home_variable_is_refused_rather_than_the_current_directory(
    deepctl: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPCTL_HOME", "")
    assert deepctl("profiles", "list").code == 2
