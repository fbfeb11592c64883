"""Changes that no checkpoint covers are named: ignored files, excluded trees, nested repositories, large files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepctl.store import coverage, not_covered, trees
from deepctl.store.coverage import CoverageSettings
from deepctl.store.index_db import Cache
from deepctl.store.not_covered import Look, NotCovered
from deepctl.store.pack_store import PackStore
from deepctl.store.trees import ScratchWriter
from tests.store.test_coverage import init, write

SETTINGS = CoverageSettings(max_file=1000)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    root = init(tmp_path / "project")
    write(root, ".gitignore", text=".env\nnode_modules/\n*.o\ndist/\n")
    write(root, "a.py", ".env", "node_modules/x/a.js", "node_modules/x/b.js", "src/a.o", "src/b.o", "src/c.c")
    init(root / "nested")
    write(root, "nested/x", "nested/.git/other")
    write(root, "large", text="x" * 1001)
    return root


def snapshot(root: Path) -> None:
    """What the store does: a snapshot, whose rules are remembered."""
    cache = Cache()
    rules = coverage.read_rules(str(root), SETTINGS)
    sink = ScratchWriter(PackStore(str(root / "nowhere"), cache))
    trees.snapshot(str(root), sink, cache, leave_out=rules.top(), max_file=SETTINGS.max_file)
    coverage.remember(str(root), rules)
    cache.close()


def look(root: Path, limit: int = 100) -> Look:
    snapshot(root)
    return not_covered.look(str(root), SETTINGS, limit)


def test_what_changed_is_named(root: Path) -> None:
    before = look(root)
    assert not_covered.changes(before, look(root)) == NotCovered([], [])
    write(root, "a.py", "src/c.c", "new.py", "nested/.git/other", text="covered, or of git")
    assert not_covered.changes(before, look(root)) == NotCovered([], [])
    write(root, ".env", "node_modules/x/a.js", "nested/x", text="changed")
    write(root, "node_modules/y/new.js", "dist/one/two", "src/d.o")
    write(root, "large", text="y" * 1001)
    (root / "node_modules/x/b.js").unlink()
    (root / "src/a.o").unlink()
    (root / "src/b.o").chmod(0o755)
    assert not_covered.changes(before, look(root)).paths == [
        *(b".env", b"dist/", b"large", b"nested/x"),
        *(b"node_modules/x/a.js", b"node_modules/x/b.js", b"node_modules/y", b"node_modules/y/new.js"),
        *(b"src/a.o", b"src/b.o", b"src/d.o"),
    ]


def test_an_edit_of_the_same_size_and_time_is_noticed(root: Path) -> None:
    before = look(root)
    status = (root / ".env").stat()
    write(root, ".env", text="y")
    os.utime(root / ".env", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not_covered.changes(before, look(root)).paths == [b".env"]


def test_a_directory_with_too_many_entries_is_not_looked_at_and_hides_no_other(root: Path) -> None:
    before = look(root, 30)
    for number in range(100):
        write(root, f"node_modules/{number}")
    write(root, ".env", "src/a.o", text="changed")
    after = look(root, 30)
    assert not_covered.changes(before, after) == NotCovered([b".env", b"src/a.o"], [b"node_modules"])
    assert not_covered.changes(after, before) == NotCovered([b".env", b"src/a.o"], [b"node_modules"])
    assert sum(map(len, after.tops.values())) <= 30


def test_it_takes_few_entries_of_many_large_directories(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        for name in range(20):
            write(root, f"{number}/dist/{name}")
    snapshot(root)
    asked: list[bytes] = []
    entries = not_covered._entries

    def counted(root: bytes, top: bytes, is_directory: bool) -> object:
        for entry in entries(root, top, is_directory):
            asked.append(entry[0])
            yield entry

    monkeypatch.setattr(not_covered, "_entries", counted)
    seen = not_covered.look(str(root), SETTINGS, 50)
    assert len(asked) <= 100 + len(seen.unseen)
    assert len(seen.unseen) > 190


def test_without_a_snapshot_the_project_is_walked(root: Path) -> None:
    expected = look(root)
    coverage.remember("/elsewhere", coverage.read_rules("/", SETTINGS))
    walked = not_covered.look(str(root), SETTINGS, 100)
    assert walked == expected


def test_what_is_new_since_the_last_snapshot_is_seen_if_the_project_is_walked_again(root: Path) -> None:
    before = look(root)
    write(root, "dist/x", "later/node_modules/x")
    after = not_covered.look(str(root), SETTINGS, 100, is_walked=False)
    assert not_covered.changes(before, after).paths == [b"dist/", b"later/node_modules/"]


def test_no_link_is_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    os.symlink(tmp_path / "outside", root / "node_modules" / "link")
    os.symlink(tmp_path / "outside", root / "dist")
    os.symlink(tmp_path / "outside", root / "link.o")
    entries = {path for top in look(root).tops.values() for path in top}
    assert {b"node_modules/link", b"link.o"} <= entries
    assert not {path for path in entries if b"secret" in path}
