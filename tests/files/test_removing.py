"""Removing a directory: all of it goes, nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

from deepctl.files.removing import remove_tree


def test_everything_goes_and_what_links_lead_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "a" / "out").symlink_to(outside)
    (tree / "file-out").symlink_to(outside / "kept")
    os.mkfifo(tree / "fifo")
    (tree / "a" / "locked").mkdir()
    (tree / "a" / "locked" / "inner").write_text("x")
    os.chmod(tree / "a" / "locked", 0)
    counted: list[int] = []
    assert remove_tree(str(tree), counted.append) == 9
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"
    assert counted == sorted(counted)
    assert remove_tree(str(tree)) == 0, "nothing is left to do"


def test_a_link_goes_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    assert remove_tree(str(tmp_path / "link")) == 1
    assert (tmp_path / "target" / "kept").exists()
    assert not os.path.lexists(tmp_path / "link")


def test_depth_does_not_matter(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptor)
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)
    assert remove_tree(str(tmp_path / "d")) == 3001
    assert not (tmp_path / "d").exists()


def test_what_goes_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(50):
        (tree / str(number)).mkdir(parents=True)
        (tree / str(number) / "file").write_text("x")

    def interfere(count: int) -> None:
        for entry in tree.iterdir():
            for inner in entry.iterdir():
                inner.unlink()

    remove_tree(str(tree), interfere)
    assert not tree.exists()
