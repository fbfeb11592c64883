"""What uses the space of a profile, part by part."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deepctl.domain import profiles
from deepctl.domain.doctor.stored_state import DiskUsage, disk_usage
from deepctl.files import rmtree
from deepctl.layout import ProfilePaths, Root


@pytest.fixture
def paths(home: Path) -> ProfilePaths:
    return profiles.create(Root(str(home)), "alice")


def _take(paths: ProfilePaths, count: int, name: str = "x.pack") -> None:
    os.makedirs(paths.packs, exist_ok=True)
    Path(paths.packs, name).write_bytes(b"\0" * count)


class TestDiskUsage:
    def _parts(self, paths: ProfilePaths) -> dict[str, DiskUsage]:
        return {part.name: part for part in disk_usage(paths)}

    def test_the_biggest_comes_first_and_all_of_it_is_counted(self, paths: ProfilePaths) -> None:
        Path(paths.workspace, "deep/er").mkdir(parents=True)
        Path(paths.workspace, "deep/er/a").write_bytes(b"x" * 5000)
        Path(paths.workspace, "b").write_bytes(b"x" * 7)
        _take(paths, 100)
        found = disk_usage(paths)
        assert [part.name for part in found] == ["workspace", "other", "checkpoints"]
        assert found[0] == DiskUsage("workspace", 5007, 2, 0)
        assert found[2] == DiskUsage("checkpoints", 100, 1, 0)
        on_disk = sum(path.stat().st_size for path in Path(paths.directory).rglob("*") if path.is_file())
        assert sum(part.bytes for part in found) == on_disk

    def test_links_are_not_followed(self, paths: ProfilePaths, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/big").write_bytes(b"x" * 100_000)
        Path(paths.workspace, "link").symlink_to(tmp_path / "outside")
        Path(paths.workspace, "file").symlink_to(tmp_path / "outside/big")
        os.rmdir(paths.checkpoints)
        os.symlink(tmp_path / "outside", paths.checkpoints)
        assert sum(part.bytes for part in disk_usage(paths)) < 1000
        shutil.rmtree(paths.directory)
        os.symlink(tmp_path / "outside", paths.directory)
        assert disk_usage(paths) == [DiskUsage("other", 0, 0, 1)]

    def test_a_file_with_two_names_counts_once(self, paths: ProfilePaths) -> None:
        Path(paths.sessions, "a").mkdir()
        Path(paths.sessions, "b").mkdir()
        Path(paths.sessions, "a/log").write_bytes(b"x" * 900)
        os.link(os.path.join(paths.sessions, "a/log"), os.path.join(paths.sessions, "b/log"))
        assert self._parts(paths)["sessions"] == DiskUsage("sessions", 900, 1, 0)

    @pytest.mark.timeout(20)
    def test_nothing_odd_is_waited_for_or_too_much(self, paths: ProfilePaths) -> None:
        os.mkfifo(os.path.join(paths.workspace, "fifo"))
        for number in range(1500):
            os.mkdir(os.path.join(paths.workspace, f"d{number}"))
        Path(paths.workspace, "d7/a").write_bytes(b"x" * 10)
        here = os.open(paths.workspace, os.O_RDONLY)
        try:
            for _ in range(1500):
                os.mkdir("d", dir_fd=here)
                below = os.open("d", os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = below
        finally:
            os.close(here)
        before = len(os.listdir("/proc/self/fd"))
        workspace = self._parts(paths)["workspace"]
        assert (workspace.bytes, workspace.files) == (10, 1)
        assert workspace.unread == 1, "what is deeper than anybody needs"
        assert len(os.listdir("/proc/self/fd")) == before
        rmtree.remove_tree(paths.workspace)  # it is too deep for pytest

    def test_a_profile_that_is_gone_takes_nothing(self, paths: ProfilePaths) -> None:
        shutil.rmtree(paths.directory)
        assert sum(part.bytes for part in disk_usage(paths)) == 0
