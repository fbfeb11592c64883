"""What uses the space of a profile, and the one warning when its checkpoints pass `limits.checkpoints`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deepctl.domain import budget, profiles, settings
from deepctl.domain.budget import Part, Passed
from deepctl.errors import BadSetting
from deepctl.files import rmtree
from deepctl.layout import ProfilePaths, Root
from deepctl.store import prune
from tests.store.scene import Scene
from tests.support.command import InProcess

RUBBISH = "write noise.txt: " + "".join(chr(33 + (number * 7919) % 90) for number in range(3000))


@pytest.fixture
def paths(home: Path) -> ProfilePaths:
    return profiles.create(Root(str(home)), "alice")


def _take(paths: ProfilePaths, count: int, name: str = "x.pack") -> None:
    os.makedirs(paths.packs, exist_ok=True)
    Path(paths.packs, name).write_bytes(b"\0" * count)


class TestParts:
    def _parts(self, paths: ProfilePaths) -> dict[str, Part]:
        return {part.name: part for part in budget.parts(paths)}

    def test_the_biggest_comes_first_and_all_of_it_is_counted(self, paths: ProfilePaths) -> None:
        Path(paths.workspace, "deep/er").mkdir(parents=True)
        Path(paths.workspace, "deep/er/a").write_bytes(b"x" * 5000)
        Path(paths.workspace, "b").write_bytes(b"x" * 7)
        _take(paths, 100)
        found = budget.parts(paths)
        assert [part.name for part in found] == ["workspace", "other", "checkpoints"]
        assert found[0] == Part("workspace", 5007, 2, 0)
        assert found[2] == Part("checkpoints", 100, 1, 0)
        on_disk = sum(path.stat().st_size for path in Path(paths.directory).rglob("*") if path.is_file())
        assert sum(part.bytes for part in found) == on_disk

    def test_links_are_not_followed(self, paths: ProfilePaths, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/big").write_bytes(b"x" * 100_000)
        Path(paths.workspace, "link").symlink_to(tmp_path / "outside")
        Path(paths.workspace, "file").symlink_to(tmp_path / "outside/big")
        os.rmdir(paths.checkpoints)
        os.symlink(tmp_path / "outside", paths.checkpoints)
        assert sum(part.bytes for part in budget.parts(paths)) < 1000
        shutil.rmtree(paths.directory)
        os.symlink(tmp_path / "outside", paths.directory)
        assert budget.parts(paths) == [Part("other", 0, 0, 1)]

    def test_a_file_with_two_names_counts_once(self, paths: ProfilePaths) -> None:
        Path(paths.sessions, "a").mkdir()
        Path(paths.sessions, "b").mkdir()
        Path(paths.sessions, "a/log").write_bytes(b"x" * 900)
        os.link(os.path.join(paths.sessions, "a/log"), os.path.join(paths.sessions, "b/log"))
        assert self._parts(paths)["sessions"] == Part("sessions", 900, 1, 0)

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
        assert sum(part.bytes for part in budget.parts(paths)) == 0


class TestPassed:
    def test_it_is_told_once_until_they_are_below_again(self, paths: ProfilePaths) -> None:
        assert budget.passed(paths, 1000) is None
        _take(paths, 1001)
        assert budget.passed(paths, 1000) == Passed(1001, 1000)
        assert budget.passed(paths, 1000) is None
        _take(paths, 5000)
        assert budget.passed(paths, 1000) is None
        _take(paths, 1000)
        assert budget.passed(paths, 1000) is None
        _take(paths, 1001)
        assert budget.passed(paths, 1000) == Passed(1001, 1000)

    def test_another_limit_is_told_again(self, paths: ProfilePaths) -> None:
        _take(paths, 5000)
        assert budget.passed(paths, 1000) == Passed(5000, 1000)
        assert budget.passed(paths, 2000) == Passed(5000, 2000)
        assert budget.passed(paths, 2000) is None

    def test_deleting_the_cache_does_no_harm(self, paths: ProfilePaths) -> None:
        _take(paths, 5000)
        assert budget.passed(paths, 1000) is not None
        shutil.rmtree(paths.cache)
        assert budget.passed(paths, 1000) is not None
        assert budget.passed(paths, 1000) is None

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("kind", ["a FIFO", "a directory", "a link", "rubbish"])
    def test_what_is_in_its_place_is_neither_waited_for_nor_followed(
        self, paths: ProfilePaths, tmp_path: Path, kind: str
    ) -> None:
        outside = tmp_path / "outside"
        outside.write_text("1000")
        os.mkdir(paths.cache)
        place = Path(paths.cache, "budget")
        match kind:
            case "a FIFO":
                os.mkfifo(place)
            case "a directory":
                place.mkdir()
            case "a link":
                place.symlink_to(outside)
            case _:
                place.write_bytes(b"\xff" * 100)
        _take(paths, 5000)
        assert budget.passed(paths, 1000) == Passed(5000, 1000)
        assert outside.read_text() == "1000"

    def test_a_full_disk_is_no_reason_to_fail(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: object, **options: object) -> int:
            raise OSError(28, "No space left on device")

        _take(paths, 5000)
        monkeypatch.setattr(os, "write", full)
        assert budget.passed(paths, 1000) == Passed(5000, 1000)

    def test_what_counts_is_what_checkpoints_keep(self, home: Path) -> None:
        scene = Scene(home)
        assert budget.checkpoint_bytes(scene.paths) == 0
        for number in range(5):
            scene.agent("a.txt", f"{number}" * 1000)
        taken = budget.checkpoint_bytes(scene.paths)
        directory = Path(scene.paths.checkpoints)
        assert taken == sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        with scene.work() as work:
            prune.remove(work, scene.records()[:-1])
        assert 0 < budget.checkpoint_bytes(scene.paths) < taken


LIMIT = "limits.checkpoints"


class TestLimit:
    def test_its_default_and_where_it_is_set(self, paths: ProfilePaths) -> None:
        assert settings.SETTINGS["limits.checkpoints"].default == "5G"
        environment = dict(os.environ)
        assert settings.load(environment).size(LIMIT) == settings.load(environment, paths).size(LIMIT) == 5 << 30
        Path(paths.settings).write_text('[limits]\ncheckpoints = "2M"\n')
        assert settings.load(environment, paths).size(LIMIT) == 2 << 20
        Path(paths.settings).write_text("[limits]\ncheckpoints = 4096\n")
        assert settings.load(environment, paths).size(LIMIT) == 4096
        for wrong in ("lots", "0", "-1", "1T"):
            Path(paths.settings).write_text(f'[limits]\ncheckpoints = "{wrong}"\n')
            with pytest.raises(BadSetting):
                settings.load(environment, paths).size(LIMIT)


class TestCommands:
    """The warning where people see it."""

    _TOLD = "more than limits.checkpoints (2.0 KiB)"
    _HOW = "deepctl checkpoints prune --keep 50 --dry-run --user alice"

    @pytest.fixture(autouse=True)
    def alice(self, deepctl: InProcess) -> None:
        deepctl("profiles", "create", "alice").ok()
        deepctl("config", "set", "limits.checkpoints", "2K", "--user", "alice").ok()

    def test_a_turn_that_passes_it_says_so_on_stderr_once(self, deepctl: InProcess) -> None:
        first = deepctl("chat", "--user", "alice", RUBBISH).ok()
        assert first.stderr.count(self._TOLD) == 1
        assert self._HOW in first.stderr
        assert self._TOLD not in first.stdout
        assert self._TOLD not in deepctl("chat", "--user", "alice", "hello").ok().stderr

    def test_a_turn_below_it_says_nothing(self, deepctl: InProcess) -> None:
        deepctl("config", "unset", "limits.checkpoints", "--user", "alice").ok()
        assert "limits.checkpoints" not in deepctl("chat", "--user", "alice", RUBBISH).ok().stderr

    def test_with_json_it_is_a_notice_of_the_result_and_stderr_stays_empty(self, deepctl: InProcess) -> None:
        said = deepctl("chat", "--json", "--user", "alice", RUBBISH).ok()
        assert said.stderr == ""
        assert self._TOLD in said.events[-1]["notice"]
        assert self._HOW in said.events[-1]["notice"]
        assert "notice" not in deepctl("chat", "--json", "--user", "alice", "hello").ok().events[-1]

    def test_a_save_that_passes_it_says_so(self, deepctl: InProcess, home: Path) -> None:
        (home / "profiles/alice/workspace/noise").write_bytes(os.urandom(5000))
        saved = deepctl("checkpoints", "save", "--user", "alice").ok()
        assert saved.stderr.count(self._TOLD) == 1
        assert len(saved.stdout.split()) == 1
        assert self._TOLD not in deepctl("checkpoints", "save", "--user", "alice").ok().stderr

    def test_where_nobody_would_hear_it_it_is_kept_for_somebody(self, deepctl: InProcess, home: Path) -> None:
        (home / "profiles/alice/workspace/noise").write_bytes(os.urandom(5000))
        assert deepctl("checkpoints", "save", "--user", "alice", "--json").ok().stderr == ""
        assert self._TOLD in deepctl("checkpoints", "save", "--user", "alice").ok().stderr

    def test_a_limit_that_cannot_be_is_found_before_the_turn(self, deepctl: InProcess, home: Path) -> None:
        (home / "profiles/alice/profile.toml").write_text('[limits]\ncheckpoints = "lots"\n')
        refused = deepctl("chat", "--user", "alice", "write a.txt: x")
        assert refused.code == 2
        assert "limits.checkpoints" in refused.stderr
        assert not (home / "profiles/alice/workspace/a.txt").exists()
        assert deepctl("checkpoints", "save", "--user", "alice").code == 2

    def test_doctor_tells_it_every_time(self, deepctl: InProcess) -> None:
        deepctl("chat", "--user", "alice", RUBBISH).ok()
        for _ in range(2):
            checks = deepctl("doctor", "--user", "alice", "--json").ok().json["checks"]
            (check,) = [check for check in checks if check["name"] == "budget"]
            assert (check["status"], self._TOLD in check["found"], self._HOW in check["hint"]) == (
                "warning",
                True,
                True,
            )
