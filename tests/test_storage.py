"""Bad storage: a clear line, exit 8, nothing lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Command, InProcess

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"

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
def test_a_full_disk_is_exit_8_and_the_conversation_so_far_is_kept(deepctl: InProcess, small_disk: Path) -> None:
    deepctl("chat", "--user", "alice", "write a.txt: kept\nremember kept").ok()
    before = deepctl("sessions", "show", "--user", "alice", "--json").ok().json["messages"]
    ballast = small_disk / "ballast"
    for command in (
        ("chat", "--user", "alice", "hello"),
        ("profiles", "create", "bob"),
        ("config", "set", "model", "x:y", "--user", "alice"),
    ):
        with open(ballast, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        result = deepctl(*command)
        assert result.code == 8, (command, result)
        assert "disk is full" in result.stderr
        assert "Traceback" not in result.stderr
    for reader in (("sessions", "list"), ("memory", "show"), ("config", "show")):
        assert deepctl(*reader, "--user", "alice").code == 0
    ballast.unlink()
    after = deepctl("sessions", "show", "--user", "alice", "--json").ok().json
    assert after["messages"][: len(before)] == before
    assert after["damaged"] == []
    assert deepctl("memory", "show", "--user", "alice").ok().stdout == "- kept\n"
    deepctl("chat", "--user", "alice", "hello").ok()
    deepctl("profiles", "create", "bob").ok()


def _fill(place: Path, *, left: int) -> Path:
    """Leave so many bytes free."""
    ballast = place / "ballast"
    free = os.statvfs(place)
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    return ballast


@needs_root
@pytest.mark.parametrize("left", [0, 4096, 12288])
def test_on_a_disk_that_is_nearly_full_nothing_is_a_bug_and_nothing_is_lost(
    deepctl: InProcess, small_disk: Path, left: int
) -> None:
    deepctl("chat", "--user", "alice", "write a.txt: kept\nremember kept").ok()
    deepctl("chat", "--user", "alice", "write a.txt: later").ok()
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
        result = deepctl(*command, "--user", "alice")
        assert result.code in (0, 3, 8), (command, result)
        assert "Traceback" not in result.stderr
        ballast.unlink()
        deepctl("checkpoints", "verify", "--user", "alice").ok()
    deepctl("chat", "--user", "alice", "hello").ok()


def _mounted(place: Path, options: str) -> Path:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    return place


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tmpfs of 3 MiB and 400 files with a profile on it, which has something for every command to do."""
    place = _mounted(tmp_path / "disk", "size=3m,nr_inodes=400")
    monkeypatch.setenv("DEEPCTL_HOME", str(place / "root"))
    yield place
    subprocess.run(["umount", place], check=True)


def _tell_a_story(deepctl: InProcess) -> None:
    deepctl("chat", "write a.txt: kept\nremember kept").ok()
    for number in range(6):
        deepctl("chat", f"write a.txt: {os.urandom(20000).hex()}\nwrite {number}.txt: {number}").ok()
    deepctl("chat", "--new", "other", "write o.txt: other").ok()
    deepctl("chat", "--session", "main", "write a.txt: last").ok()
    deepctl("checkpoints", "rewind", "~1", "--session", "main").ok()
    deepctl("sessions", "export", "main", "--format", "json", "--output", _EXPORT).ok()


_EXPORT = "../export.json"
"""Outside of the current directory, which has to stay empty."""
_FREEING = (
    ("checkpoints", "prune", "--keep", "2"),
    ("checkpoints", "remove", "~2"),
    ("sessions", "delete", "other", "--yes"),
    ("wipe", "--only", "memory,plans", "--yes"),
    ("wipe", "--only", "sessions", "--yes"),
)
_OTHERS = (
    ("chat", "\n".join(f"write n{number}.txt: {'x' * 400}{number}" for number in range(8))),
    ("checkpoints", "rewind", "~2", "--session", "main", "--force"),
    ("checkpoints", "undo", "--session", "main"),
    ("checkpoints", "save", "here"),
    ("checkpoints", "label", "~1", "there"),
    ("memory", "add", "a note"),
    ("memory", "forget", "kept", "--purge", "--yes"),
    ("sessions", "rename", "other", "another"),
    ("sessions", "import", _EXPORT, "--as", "imported"),
)


def _fill_with_files(place: Path) -> list[Path]:
    """Leave no room for another file."""
    made = []
    with contextlib.suppress(OSError):
        for number in range(1000):
            path = place / f"file-{number}"
            path.touch()
            made.append(path)
    return made


@needs_root
@pytest.mark.parametrize("left", [0, 4, 16, 32, 64, "no files"] if _SOAK else [0, "no files"])
def test_on_a_full_disk_every_command_works_or_says_so_and_nothing_is_damaged(
    deepctl: InProcess, disk: Path, tmp_path: Path, left: int | str
) -> None:
    """`left` is what is free, in KiB. What frees space succeeds; afterwards everything that is kept is whole."""
    _tell_a_story(deepctl)
    untouched = tmp_path / "untouched"
    shutil.copytree(disk / "root", untouched, symlinks=True)
    for command in (*_FREEING, *_OTHERS):
        shutil.rmtree(disk / "root")
        shutil.copytree(untouched, disk / "root", symlinks=True)
        ballast = _fill_with_files(disk) if left == "no files" else [_fill(disk, left=1024 * int(left))]
        result = deepctl(*command)
        assert result.code in ((0,) if command in _FREEING else (0, 8)), (command, result)
        if result.code == 8:
            said = deepctl(*command, "--json")
            assert said.code in (0, 3, 6, 8), said
            problem = result.stderr
            assert "full" in problem, (command, result)
            assert "Free some space" in problem or "It is done" in problem or "finishes it" in problem, (
                command,
                result,
            )
        for path in ballast:
            path.unlink()
        deepctl("checkpoints", "verify").ok()
        deepctl("doctor").ok()
        deepctl("chat", "write after.txt: after").ok()
        deepctl("checkpoints", "verify").ok()


@needs_root
def test_a_turn_that_fills_the_disk_leaves_nothing_that_counts_as_damage(deepctl: InProcess, disk: Path) -> None:
    deepctl("chat", "hello").ok()
    ballast = _fill(disk, left=24 * 1024)
    lines = "\n".join(f"write f{number}.txt: {os.urandom(3000).hex()}" for number in range(8))
    result = deepctl("chat", lines, "--json")
    assert result.code == 8, result
    error = result.events[-1]
    assert (error["code"], error["retryable"]) == ("storage_enospc", False)
    assert "`deepctl wipe --only PARTS`" in error["hint"], "pruning would free nothing: all of it is still there"
    deepctl("checkpoints", "verify").ok()
    ballast.unlink()
    deepctl("checkpoints", "verify").ok()
    deepctl("doctor").ok()
    deepctl("chat", "hello").ok()
    deepctl("checkpoints", "verify").ok()


@needs_root
def test_at_0_bytes_prune_drops_what_is_dead_and_says_what_is_left(deepctl: InProcess, disk: Path) -> None:
    for number in range(8):
        prompt = [f"write big{number}-{part}.bin: {os.urandom(9000).hex()}" for part in range(4)]
        deepctl("chat", "\n".join([*prompt, "run true", f"write keep{number}.bin: {os.urandom(20).hex()}"])).ok()
    reserve = disk / "root/profiles/default/cache/reserve"
    assert reserve.stat().st_size == 64 * 1024
    assert reserve.stat().st_blocks * 512 >= 64 * 1024, "really allocated"
    for path in (disk / "root/profiles/default/workspace").glob("big*"):
        path.unlink()
    deepctl("checkpoints", "save").ok()
    ballast = _fill(disk, left=0)
    done = deepctl("checkpoints", "prune", "--keep", "1", "--json").ok().json
    assert done["left"] == []
    assert done["bytes"] > 100_000
    assert reserve.stat().st_size == 64 * 1024, "what was released is taken back"
    reserve.unlink()
    deepctl("checkpoints", "verify").ok()
    ballast.unlink()
    deepctl("memory", "add", "a note").ok()
    assert reserve.stat().st_size == 64 * 1024, "the next writer makes it anew"
    deepctl("doctor").ok()


def _refill(place: Path) -> None:
    """What another process does that fills every byte that is freed."""
    with open(place / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


_PARTS = ("history", "evicted", "plans", "memory", "checkpoints", "sessions", "workspace")
_AGAIN_AND_AGAIN: dict[str, list[tuple[str, ...]]] = {
    "prune": [("checkpoints", "prune", "--keep", str(keep)) for keep in (9, 7, 5, 3, 1)],
    "remove": [("checkpoints", "remove", f"~{number}", "--session", "main") for number in range(2, 6)],
    "delete": [("sessions", "delete", name, "--yes") for name in ("other", "main")],
    "wipe parts": [("wipe", "--only", part, "--yes") for part in _PARTS],
    "repair": [("checkpoints", "repair")] * 2,
    "all": [
        ("checkpoints", "prune", "--keep", "5"),
        ("wipe", "--only", "memory", "--yes"),
        ("sessions", "delete", "other", "--yes"),
        ("wipe", "--only", "sessions", "--yes"),
        ("wipe", "--yes"),
    ],
}


@needs_root
@pytest.mark.parametrize("has_reserve", [True, False] if _SOAK else [True])
def test_what_frees_space_works_again_and_again_on_a_disk_that_is_kept_full(
    deepctl: InProcess, disk: Path, tmp_path: Path, has_reserve: bool
) -> None:
    _tell_a_story(deepctl)
    if not has_reserve:  # as on a root of deepctl 0.1
        (disk / "root/profiles/default/cache/reserve").unlink()
    untouched = tmp_path / "untouched"
    shutil.copytree(disk / "root", untouched, symlinks=True)
    for name, commands in _AGAIN_AND_AGAIN.items():
        shutil.rmtree(disk / "root")
        shutil.copytree(untouched, disk / "root", symlinks=True)
        for command in commands:
            _refill(disk)
            result = deepctl(*command)
            assert result.code == 0, (name, command, result)
        (disk / "ballast").unlink()
        if name != "all":
            deepctl("checkpoints", "verify").ok()
        deepctl("doctor").ok()


@needs_root
def test_wiping_parts_takes_not_one_new_byte(deepctl: InProcess, disk: Path) -> None:
    """Whatever the reserve gave away, a process that waits for it would have taken."""
    deepctl("chat", "remember kept\nplan A: b").ok()
    reserve = disk / "root/profiles/default/cache/reserve"
    before = reserve.stat().st_ino
    for part in ("plans", "memory"):
        _refill(disk)
        deepctl("wipe", "--only", part, "--yes").ok()
        assert (reserve.stat().st_ino, reserve.stat().st_size) == (before, 64 * 1024)
        assert b"workspace" not in reserve.read_bytes(), "what was written into it is gone"


@needs_root
def test_the_hint_on_a_full_disk_names_what_frees_space(deepctl: InProcess, disk: Path) -> None:
    deepctl("profiles", "create", "bob").ok()
    deepctl("memory", "add", "a note", "--user", "bob").ok()
    _refill(disk)
    hint = deepctl("config", "set", "model", "x:y", "--user", "bob", "--json").error["hint"]
    assert "prune" not in hint
    assert "`deepctl wipe --only PARTS`" in hint
    (disk / "ballast").unlink()
    for number in range(3):
        deepctl("chat", f"write a.txt: {number}", "--user", "bob").ok()
    _refill(disk)
    hint = deepctl("config", "set", "model", "x:y", "--user", "bob", "--json").error["hint"]
    assert "`deepctl checkpoints prune --keep 1 --user bob`" in hint
    deepctl("checkpoints", "prune", "--keep", "1", "--user", "bob").ok()
    _refill(disk)
    assert "prune" not in deepctl("config", "set", "model", "x:y", "--user", "bob", "--json").error["hint"]


@needs_root
def test_what_is_written_anew_is_left_where_there_is_no_room_for_it(deepctl: InProcess, disk: Path) -> None:
    """One pack holds mostly what is dead and 160 KB that stay, which do not fit into what is free."""
    deepctl("chat", "hello").ok()
    workspace = disk / "root/profiles/default/workspace"
    (workspace / "stays").write_bytes(os.urandom(160_000))
    (workspace / "goes").write_bytes(os.urandom(1_000_000))
    deepctl("checkpoints", "save").ok()
    (workspace / "goes").unlink()
    deepctl("checkpoints", "save").ok()
    ballast = _fill(disk, left=0)
    done = deepctl("checkpoints", "prune", "--keep", "1", "--json").ok().json
    assert done["bytes_left"] > 900_000
    assert "writing new packs" in deepctl("checkpoints", "prune", "--keep", "1").ok().stderr
    deepctl("checkpoints", "verify").ok()
    ballast.unlink()
    freed = deepctl("checkpoints", "prune", "--keep", "1", "--json").ok().json
    assert freed["bytes"] > 900_000
    assert freed["bytes_left"] == 0
    deepctl("checkpoints", "verify").ok()


@needs_root
def test_a_wipe_needs_no_space(process: Command, small_disk: Path) -> None:
    process("chat", "--user", "alice", "write a.txt: kept").ok()
    _fill(small_disk, left=0)
    process("wipe", "--user", "alice", "--yes").ok()
    assert sorted(path.name for path in (small_disk / "root" / "profiles").iterdir()) == []


@needs_root
def test_a_tool_that_meets_a_full_disk_fails_as_a_tool_and_keeps_the_old_file(
    deepctl: InProcess, small_disk: Path
) -> None:
    deepctl("chat", "write a.txt: old").ok()
    result = deepctl("chat", "--json", stdin=b"write a.txt: " + b"x" * 2_000_000)
    assert result.code in (0, 8)
    assert (small_disk / "root/profiles/default/workspace/a.txt").read_text() == "old"
    assert deepctl("chat", "hello").code == 0


@needs_root
def test_a_read_only_root_is_exit_8_for_writers_and_readers_go_on(deepctl: InProcess, small_disk: Path) -> None:
    deepctl("chat", "--user", "alice", "remember kept").ok()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for command in (
        ("chat", "--user", "alice", "hello"),
        ("profiles", "create", "bob"),
        ("chat", "--user", "carol", "hi"),
    ):
        result = deepctl(*command, "--json")
        assert result.code == 8, (command, result)
        assert "read-only" in result.stderr + result.stdout
    assert deepctl("memory", "show", "--user", "alice").ok().stdout == "- kept\n"
    assert deepctl("sessions", "show", "--user", "alice").code == 0
    assert deepctl("profiles", "list").code == 0


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
