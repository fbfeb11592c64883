"""A walk goes over everything below a directory, follows nothing, and names what it cannot look into."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepctl.files import paths_beneath as walking
from deepctl.files.paths_beneath import WalkEntry, walk


def _paths(root: Path) -> list[str]:
    return [entry.path for entry in walk(str(root))]


def test_names_come_in_order_and_directories_before_what_is_in_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b/inner").mkdir(parents=True)
    for name in ("c", "a", "b/z", "b/inner/x"):
        (root / name).write_text(name)
    assert _paths(root) == ["a", "b", "b/inner", "b/inner/x", "b/z", "c"]
    assert [entry.path for entry in walk(str(root)) if entry.is_file] == ["a", "b/inner/x", "b/z", "c"]


def test_links_are_named_and_not_followed_and_what_is_skipped_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    root = tmp_path / "root"
    (root / "left out").mkdir(parents=True)
    (root / "left out/file").write_text("x")
    (root / "link").symlink_to("../outside")
    assert [entry.path for entry in walk(str(root), lambda path: path == "left out")] == ["link"]
    (root / "again").symlink_to(tmp_path / "root")
    assert [entry.path for entry in walk(str(root / "again"))] == [""], "the root itself is no link either"


def test_a_missing_root_has_nothing_and_what_is_too_deep_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _paths(tmp_path / "missing") == []
    (tmp_path / "root/1/2/3/4").mkdir(parents=True)
    monkeypatch.setattr(walking, "MAX_DEPTH", 2)
    entries = list(walk(str(tmp_path / "root")))
    assert [entry.path for entry in entries] == ["1", "1/2", "1/2/3", "1/2/3"]
    assert [entry.path for entry in entries if entry.status is None] == ["1/2/3"]


def test_a_directory_that_becomes_a_link_meanwhile_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("x")
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    entries: list[WalkEntry] = []
    for entry in walk(str(root)):
        entries.append(entry)
        if entry.status is not None:
            (root / "d").rmdir()
            (root / "d").symlink_to("../outside")
    assert [(entry.path, entry.status is None) for entry in entries] == [("d", False), ("d", True)]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    before = len(os.listdir("/dev/fd"))
    generator = walk(str(tmp_path))
    for _ in range(3):
        next(generator)
    del generator  # which closes it
    assert len(os.listdir("/dev/fd")) == before
