"""Restoring: exactly what a tree says, and nothing else touched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.errors import Damaged
from deepctl.store import restore, trees
from tests.store.test_trees import _STEPS, Work, _edit


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    opened = Work(tmp_path)
    yield opened
    opened.cache.close()


def _back(work: Work, now: bytes, target: bytes) -> restore.RestoreResult:
    return restore.working_tree(str(work.root), work.objects).apply(list(trees.changes(work.objects, now, target)))


def test_everything_comes_back_and_what_did_not_change_is_not_touched(work: Work) -> None:
    root = work.root
    for name in ("kept", "changed", "removed", "mode", "dir/inner", "locked/inside", "to-dir", "to-link"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"{name} before")
    (root / "link").symlink_to("kept")
    (root / "empty").mkdir()
    os.chmod(root / "locked" / "inside", 0o400)
    os.chmod(root / "locked", 0o555)
    then, model = work.snapshot().tree, work.real()
    status = {name: os.lstat(root / name) for name in ("kept", "dir", "locked/inside")}

    time.sleep(0.02)
    (root / "changed").write_text("other")
    (root / "removed").unlink()
    (root / "added").write_text("new")
    (root / "added-dir").mkdir()
    (root / "added-dir" / "file").write_text("new")
    os.chmod(root / "mode", 0o755)
    os.chmod(root / "locked", 0o755)
    (root / "locked" / "more").write_text("new")
    (root / "to-dir").unlink()
    (root / "to-dir").mkdir()
    (root / "to-dir" / "file").write_text("x")
    (root / "to-link").unlink()
    (root / "to-link").symlink_to("nowhere")
    (root / "link").unlink()
    (root / "link").symlink_to("other")
    (root / "empty").rmdir()
    now, changed = work.snapshot().tree, work.real()

    done = _back(work, now, then)
    assert work.real() == model
    assert work.snapshot().tree == then
    assert done.kept_paths == []
    assert b"changed" in done.written_paths
    assert b"added-dir/file" in done.deleted_paths
    for name, before in status.items():
        after = os.lstat(root / name)
        if name != "dir":
            assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), name
    assert _back(work, then, now).kept_paths == []
    assert work.real() == changed, "and forward again"


def test_doing_it_twice_changes_nothing_the_second_time(work: Work) -> None:
    (work.root / "a").write_text("1")
    (work.root / "d").mkdir()
    (work.root / "d" / "b").write_text("2")
    then = work.snapshot().tree
    (work.root / "a").write_text("3")
    (work.root / "d" / "b").unlink()
    now = work.snapshot().tree
    _back(work, now, then)
    status = _status(work.root)
    again = _back(work, now, then)
    assert (again.written_paths, again.deleted_paths) == ([], [])
    assert _status(work.root) == status


def _status(root: Path) -> dict[Path, tuple[int, ...]]:
    """All that tells whether a file was touched; reading it may change when it was last read."""
    found = {path: os.lstat(path) for path in root.rglob("*")}
    return {
        path: (s.st_mode, s.st_ino, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in found.items()
    }


def test_a_locked_directory_that_is_to_go_goes_with_what_is_in_it(work: Work) -> None:
    then = work.snapshot().tree
    (work.root / "locked").mkdir()
    (work.root / "locked" / "file").write_text("x")
    os.chmod(work.root / "locked", 0o500)
    assert _back(work, work.snapshot().tree, then).kept_paths == []
    assert list(work.root.iterdir()) == []


def test_a_directory_with_something_unknown_in_it_stays_and_is_reported(work: Work) -> None:
    then = work.snapshot().tree
    (work.root / "d").mkdir()
    (work.root / "d" / "agents").write_text("x")
    now = work.snapshot().tree
    (work.root / "d" / "mine").write_text("not in any snapshot")
    os.mkfifo(work.root / "fifo")
    done = _back(work, now, then)
    assert done.kept_paths == [(b"d", "another entry is in its place")]
    assert sorted(path.name for path in work.root.rglob("*")) == ["d", "fifo", "mine"]


def test_links_planted_on_the_way_lead_nowhere(work: Work, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    (work.root / "d").mkdir()
    (work.root / "d" / "file").write_text("before")
    then = work.snapshot().tree
    (work.root / "d" / "file").write_text("after")
    now = work.snapshot().tree
    (work.root / "d" / "file").unlink()
    (work.root / "d").rmdir()
    (work.root / "d").symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        _back(work, now, then)
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("file", "untouched")]


def test_a_damaged_object_is_known_before_anything_is_touched(work: Work) -> None:
    (work.root / "a").write_bytes(os.urandom(200))
    (work.root / "b").write_bytes(os.urandom(200))
    then = work.snapshot().tree
    (work.root / "a").write_text("new")
    (work.root / "b").write_text("new")
    now = work.snapshot().tree
    changes = list(trees.changes(work.objects, now, then))
    first = min(work.packs.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    raw = bytearray(first.read_bytes())
    raw[300] ^= 0xFF
    first.write_bytes(bytes(raw))
    with pytest.raises(Damaged):
        restore.check_readable(work.objects, changes)
    assert (work.root / "a").read_text() == (work.root / "b").read_text() == "new"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS, _STEPS, st.integers(0, 30))
def test_any_state_comes_back_from_any_other_also_after_stopping_in_the_middle(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, list[str], list[str], bytes]],
    after: list[tuple[str, list[str], list[str], bytes]],
    stop: int,
) -> None:
    work = Work(tmp_path_factory.mktemp("restore"))
    for step in before:
        _edit(work.root, step)
    then, model = work.snapshot().tree, work.real()
    for step in after:
        _edit(work.root, step)
    now = work.snapshot().tree
    changes = list(trees.changes(work.objects, now, then))

    class Stop(Exception):
        pass

    left = stop
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "unlink", "mkdir", "rmdir", "fchmod"):
            real = getattr(os, name)

            def counted(*arguments: object, real: object = real, **options: object) -> object:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Stop
                return real(*arguments, **options)  # type: ignore[operator]

            patch.setattr(os, name, counted)
        try:
            restore.working_tree(str(work.root), work.objects).apply(changes)
        except Stop:
            pass
    restore.working_tree(str(work.root), work.objects).apply(changes)
    leftovers = [path for path in work.real() if b".deepctl-" in path]
    assert len(leftovers) <= 1, "what was being written when it stopped"
    assert {path: kept for path, kept in work.real().items() if path not in leftovers} == model
    work.cache.close()
