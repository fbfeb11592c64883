"""Files inside a workspace that somebody else may be changing."""

from __future__ import annotations

import itertools
import os
import resource
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepctl.files import atomic
from deepctl.files.paths_beneath import DirectoryTree, OutsideTree, is_within, is_within_on_disk


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    (tmp_path / "secret").write_text("secret")
    return place


@pytest.mark.parametrize("follow", [True, False])
@pytest.mark.parametrize(
    "path", ["../secret", "a/../../secret", "/etc/passwd", "link", "links/there", "absolute", "loop", "chain"]
)
def test_nothing_outside_is_read_or_written(place: Path, tmp_path: Path, path: str, follow: bool) -> None:
    (place / "a").mkdir()
    (place / "link").symlink_to("../secret")
    (place / "links").symlink_to("..")
    (place / "absolute").symlink_to(tmp_path / "secret")
    (place / "loop").symlink_to("loop")
    (place / "chain").symlink_to("a/../link")
    tree = DirectoryTree(str(place), follow=follow)
    for attempt in (
        lambda: tree.read(path),
        lambda: tree.write(path, b"overwritten"),
        lambda: tree.entry(path),
        lambda: tree.make_directory(path + "/x"),
        lambda: tree.entries(path),
    ):
        with pytest.raises((OutsideTree, FileNotFoundError, NotADirectoryError, OSError), match=r"\[Errno"):
            attempt()
    assert (tmp_path / "secret").read_text() == "secret"
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name not in ("cwd", "user")) == ["secret", "work"]


def test_links_that_stay_inside_are_followed_for_tools_and_refused_for_deepctl(place: Path) -> None:
    (place / "sub").mkdir()
    (place / "sub" / "file").write_text("text")
    (place / "to-file").symlink_to("sub/file")
    (place / "to-directory").symlink_to(place / "sub")
    follows, refuses = DirectoryTree(str(place), follow=True), DirectoryTree(str(place), follow=False)
    assert follows.read("to-file") == follows.read("to-directory/file") == b"text"
    assert follows.real_path("to-directory/file") == str(place / "sub" / "file")
    follows.write("to-file", b"new")
    assert (place / "sub" / "file").read_bytes() == b"new"
    assert (place / "to-file").is_symlink()
    for path in ("to-file", "to-directory/file"):
        with pytest.raises(OutsideTree):
            refuses.read(path)
        with pytest.raises(OutsideTree):
            refuses.read_cached(path)
        with pytest.raises(OutsideTree):
            refuses.write(path, b"x")


def test_a_fifo_or_a_device_is_an_error_and_never_a_hang(place: Path) -> None:
    os.mkfifo(place / "fifo")
    tree = DirectoryTree(str(place), follow=True)
    for read in (tree.read, tree.read_cached):
        with pytest.raises(OSError, match="not a regular file"):
            read("fifo")
    with pytest.raises(OSError, match="not a regular file"):
        tree.write("fifo", b"x")
    assert tree.entry("fifo").size is None


def test_a_write_keeps_the_mode_and_leaves_hard_links_together(place: Path) -> None:
    tree = DirectoryTree(str(place), follow=True)
    tree.write("deep/down/file", b"one")
    os.chmod(place / "deep/down/file", 0o640)
    tree.write("deep/down/file", b"two")
    assert (place / "deep/down/file").stat().st_mode & 0o777 == 0o640
    os.link(place / "deep/down/file", place / "other")
    tree.write("other", b"three")
    assert (place / "deep/down/file").read_bytes() == b"three"
    assert sorted(entry.name for entry in (place / "deep/down").iterdir()) == ["file"]


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537])
def test_a_small_file_is_read_at_once_if_it_is_in_memory(place: Path, size: int) -> None:
    content = os.urandom(size)
    (place / "file").write_bytes(content)
    tree = DirectoryTree(str(place), follow=True)
    # Some file systems cannot read without waiting.
    assert tree.read_cached("file") in ((None, content) if size <= 65_536 else (None,))
    assert tree.read("file") == content


def test_removing_a_link_leaves_what_it_leads_to(place: Path, tmp_path: Path) -> None:
    (place / "out").symlink_to(tmp_path / "user")
    (tmp_path / "user" / "kept").write_text("x")
    tree = DirectoryTree(str(place), follow=True)
    tree.remove("out")
    assert not (place / "out").is_symlink()
    assert (tmp_path / "user" / "kept").exists()
    (tmp_path / "user" / "kept").unlink()
    with pytest.raises(ValueError, match="cannot be removed"):
        tree.remove(".")


def test_a_listing_describes_links_by_what_they_lead_to_inside_only(place: Path, tmp_path: Path) -> None:
    (place / "sub").mkdir()
    (place / "in").symlink_to("sub")
    (place / "out").symlink_to(tmp_path)
    (place / "broken").symlink_to("nowhere")
    found = {entry.name: entry for entry in DirectoryTree(str(place), follow=True).entries()}
    assert found["in"].is_directory
    assert not found["out"].is_directory
    assert found["broken"].size is None


def test_a_link_swapped_in_between_check_and_use_leads_nowhere(place: Path, tmp_path: Path) -> None:
    """A second thread keeps turning a link inside out while files are read and written through it."""
    outside = tmp_path / "user"
    (outside / "file").write_text("secret")
    (place / "real").mkdir()
    (place / "real" / "file").write_text("public")
    (place / "d").symlink_to("real")
    stop = threading.Event()

    def swap() -> None:
        for target in itertools.cycle((str(outside), "real")):
            (place / "next").symlink_to(target)
            (place / "next").rename(place / "d")
            if stop.is_set():
                return

    thread = threading.Thread(target=swap)
    thread.start()
    tree = DirectoryTree(str(place), follow=True)
    seen: set[object] = set()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for attempt in (lambda: tree.read("d/file"), lambda: tree.write("d/file", b"public")):
                try:
                    seen.add(attempt())
                except OSError as error:
                    seen.add(type(error).__name__)
    finally:
        stop.set()
        thread.join()
    assert seen == {b"public", None, "OutsideTree"}
    assert (outside / "file").read_text() == "secret"
    assert [entry.name for entry in outside.iterdir()] == ["file"]
    (outside / "file").unlink()


@given(st.lists(st.sampled_from(["..", ".", "", "d", "e", "up", "self", "abs", "out"]), max_size=8))
def test_every_path_of_links_and_dots_stays_inside_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    base = tmp_path_factory.mktemp("tree")
    root = base / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "d" / "up").symlink_to("..")
    (root / "self").symlink_to(".")
    (root / "d" / "abs").symlink_to(root)
    (root / "d" / "e" / "out").symlink_to("../../..")
    path = "/".join(parts)
    ours = DirectoryTree(str(root), follow=True).real_path(path)
    kernels = os.path.realpath(root / path)
    if (kernels + "/").startswith(f"{root}/"):
        assert ours in (kernels, "/")  # stricter where a path leaves the root and comes back
    else:
        assert not (ours + "/").startswith(f"{root}/")


def test_a_write_that_fails_names_the_file_and_not_a_temporary_one(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as in_tree:
            DirectoryTree(str(tmp_path), follow=False).write("new.txt", b"x" * 4096)
        with pytest.raises(OSError, match="File too large") as outside:
            atomic.write_file(str(tmp_path / "state.json"), b"x" * 4096)
        with pytest.raises(OSError, match="too long") as long:
            atomic.write_file(str(tmp_path / ("n" * 250)), b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert in_tree.value.filename == "new.txt"
    assert outside.value.filename == str(tmp_path / "state.json")
    assert long.value.filename == str(tmp_path / ("n" * 250))
    assert {path.name for path in tmp_path.iterdir()} == {"cwd", "user"}


def test_a_path_is_within_a_directory_by_whole_names() -> None:
    assert all(is_within(path, "/a") for path in ("/a", "/a/b"))
    assert not any(is_within(path, "/a") for path in ("/ab", "/", "/A/b"))
    assert is_within("/a", "/")


def test_another_name_of_a_directory_counts_as_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system that ignores the case of letters, `.SSH` is `.ssh`; elsewhere it is another directory."""
    keys = tmp_path / ".ssh"
    keys.mkdir()
    other_name = str(tmp_path / ".SSH/new/key")
    assert is_within_on_disk(f"{keys}/new/key", str(keys))
    assert not is_within_on_disk(other_name, str(keys))
    assert not is_within_on_disk(str(tmp_path), str(keys))
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path: stat(str(path).replace(".SSH", ".ssh")))
    assert is_within_on_disk(other_name, str(keys))
