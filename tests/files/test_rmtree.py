"""Removing a directory: all of it goes, nothing else does."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl.files import rmtree
from deepctl.files.rmtree import move_entry, remove_entry, remove_tree
from tests.support.ordinary import as_ordinary


def test_everything_goes_and_what_links_lead_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "a" / "out").symlink_to(outside)
    (tree / "file-out").symlink_to(outside / "kept")
    os.link(outside / "kept", tree / "hard")
    os.mkfifo(tree / "fifo")
    (tree / "a" / "locked").mkdir()
    (tree / "a" / "locked" / "inner").write_text("x")
    os.chmod(tree / "a" / "locked", 0)
    counted: list[int] = []
    assert remove_tree(str(tree), counted.append) == 10
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"
    assert counted == sorted(counted)
    assert remove_tree(str(tree)) == 0, "nothing is left to do"


def test_names_of_any_bytes_and_sockets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in (b"new\nline", b"\xff\xfe", b"\x1b[31m", b" ", b"-rf", b"x" * 255):
        (tree / os.fsdecode(name)).mkdir()
        (tree / os.fsdecode(name) / os.fsdecode(name)).write_bytes(b"")
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert remove_tree(str(tree)) == 14
    assert not tree.exists()


def test_a_link_goes_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "kept").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    assert remove_tree(str(tmp_path / "link")) == 1
    assert (tmp_path / "target" / "kept").exists()
    assert not os.path.lexists(tmp_path / "link")


def _make_deep(place: Path, depth: int, mode: int = 0o755) -> None:
    way = [os.open(place, os.O_RDONLY)]
    for _ in range(depth):
        os.mkdir("d", dir_fd=way[-1])
        way.append(os.open("d", os.O_RDONLY, dir_fd=way[-1]))
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=way[-1]))
    for descriptor in reversed(way[1:]):
        os.fchmod(descriptor, mode)
    for descriptor in way:
        os.close(descriptor)


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


@pytest.mark.parametrize("mode", [0, 0o500, 0o300, 0o100, 0o400])
def test_no_mode_of_a_directory_keeps_an_ordinary_user_from_removing_it(tmp_path: Path, mode: int) -> None:
    _make_deep(tmp_path, 150, mode)

    def remove() -> None:
        with pytest.raises(PermissionError):
            os.mkdir(tmp_path / "d" / "d" / "new") if mode & 0o200 == 0 else os.listdir(tmp_path / "d")
        assert remove_tree(str(tmp_path / "d")) == 151

    as_ordinary(remove)
    assert not (tmp_path / "d").exists()


def test_a_directory_that_may_not_be_written_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "one" / "closed").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    os.chmod(tmp_path / "one" / "closed", 0o500)

    def move() -> None:
        one, other = os.open(tmp_path / "one", os.O_RDONLY), os.open(tmp_path / "other", os.O_RDONLY)
        with pytest.raises(PermissionError):
            os.rename("closed", "moved", src_dir_fd=one, dst_dir_fd=other)
        move_entry(one, "closed", other, "moved")

    as_ordinary(move)
    assert (tmp_path / "other" / "moved").is_dir()


def test_a_file_that_may_not_be_moved_says_so(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_text("x")
    os.chmod(tmp_path / "one", 0o500)

    def move() -> None:
        one, other = os.open(tmp_path / "one", os.O_RDONLY), os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(PermissionError):
            move_entry(one, "file", other, "moved")

    as_ordinary(move)
    assert (tmp_path / "one" / "file").exists()


def _failing_on(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """A call that the system refuses for one name, as it does for an immutable file."""

    def call(path: str, **options: Any) -> Any:
        if path == name:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        return real(path, **options)

    return call


def test_what_cannot_go_is_named_and_everything_else_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b/c", "d"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for file in ("one", "two"):
            (tmp_path / "tree" / name / file).write_text("x")
    (tmp_path / "tree" / "b" / "c" / "immutable").write_text("x")
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", _failing_on("immutable", os.unlink))
        with pytest.raises(PermissionError) as raised:
            remove_tree(str(tmp_path / "tree"))
    assert raised.value.filename == str(tmp_path / "tree" / "b" / "c" / "immutable")
    left = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "tree").rglob("*"))
    assert left == ["tree/b", "tree/b/c", "tree/b/c/immutable"]
    assert remove_tree(str(tmp_path / "tree")) == 4


def test_an_interruption_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyboardInterrupt):
        remove_tree(str(tmp_path / "a"), interrupt)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_goes_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(50):
        (tree / str(number)).mkdir(parents=True)
        (tree / str(number) / "file").write_text("x")

    def interfere(count: int) -> None:
        for entry in tree.iterdir():
            for inner in entry.iterdir():
                inner.unlink()
            entry.rmdir()

    remove_tree(str(tree), interfere)
    assert not tree.exists()


def test_what_is_made_meanwhile_goes_too(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    made = 0

    def interfere(count: int) -> None:
        nonlocal made
        if made < 20:
            made += 1
            (tree / "a").mkdir(exist_ok=True)
            (tree / "a" / str(made)).mkdir()
            (tree / str(made)).write_text("x")

    remove_tree(str(tree), interfere)
    assert not tree.exists()


def test_somebody_who_never_stops_making_files_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()

    def make(count: int) -> None:
        (tree / f"{count}").write_text("x")

    with pytest.raises(OSError, match="not empty"):
        remove_tree(str(tree), make)


def test_a_directory_swapped_for_a_link_meanwhile_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "kept").write_text("kept")
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").write_text("x")
    opened = rmtree._opened

    def swapping(parent: int, name: str) -> int:
        if name == "inner" and not (tree / "inner").is_symlink():
            os.rename(tree / "inner", tree / "elsewhere")
            (tree / "inner").symlink_to(outside)
        return opened(parent, name)

    monkeypatch.setattr(rmtree, "_opened", swapping)
    remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").read_text() == "kept"
    assert (outside / "inner").is_dir()


def test_names_that_are_swapped_all_the_time_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in range(20):
        (outside / str(number)).write_text("kept")
    stop = threading.Event()
    places = [tmp_path / "tree" / str(number) for number in range(200)]
    for place in places:
        place.mkdir(parents=True)
        (place / "file").write_text("x")

    def swap() -> None:
        while not stop.is_set():
            for place in places:
                try:
                    os.rename(place, f"{place}.away")
                    place.symlink_to(outside)
                except OSError:
                    continue

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for _ in range(3):
            with contextlib.suppress(OSError):
                remove_tree(str(tmp_path / "tree"))
    finally:
        stop.set()
        swapping.join()
    remove_tree(str(tmp_path / "tree"))
    assert not (tmp_path / "tree").exists()
    assert len(list(outside.iterdir())) == 20


def test_an_entry_is_removed_beneath_a_descriptor(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        assert remove_entry(parent, "a") == 2
        assert remove_entry(parent, "a") == 0
    finally:
        os.close(parent)
