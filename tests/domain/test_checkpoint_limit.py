"""What uses the space of a profile, and the one warning when its checkpoints pass `limits.checkpoints`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from deepctl.domain import profiles, settings
from deepctl.errors import BadSetting
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


class TestPassed:
    def test_it_is_told_once_until_they_are_below_again(self, paths: ProfilePaths) -> None:
        assert profiles.passed_limit(paths, 1000) is None
        _take(paths, 1001)
        assert profiles.passed_limit(paths, 1000) == 1001
        assert profiles.passed_limit(paths, 1000) is None
        _take(paths, 5000)
        assert profiles.passed_limit(paths, 1000) is None
        _take(paths, 1000)
        assert profiles.passed_limit(paths, 1000) is None
        _take(paths, 1001)
        assert profiles.passed_limit(paths, 1000) == 1001

    def test_another_limit_is_told_again(self, paths: ProfilePaths) -> None:
        _take(paths, 5000)
        assert profiles.passed_limit(paths, 1000) == 5000
        assert profiles.passed_limit(paths, 2000) == 5000
        assert profiles.passed_limit(paths, 2000) is None

    def test_deleting_the_cache_does_no_harm(self, paths: ProfilePaths) -> None:
        _take(paths, 5000)
        assert profiles.passed_limit(paths, 1000) is not None
        shutil.rmtree(paths.cache)
        assert profiles.passed_limit(paths, 1000) is not None
        assert profiles.passed_limit(paths, 1000) is None

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
        assert profiles.passed_limit(paths, 1000) == 5000
        assert outside.read_text() == "1000"

    def test_a_full_disk_is_no_reason_to_fail(self, paths: ProfilePaths, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*arguments: object, **options: object) -> int:
            raise OSError(28, "No space left on device")

        _take(paths, 5000)
        monkeypatch.setattr(os, "write", full)
        assert profiles.passed_limit(paths, 1000) == 5000

    def test_what_counts_is_what_checkpoints_keep(self, home: Path) -> None:
        scene = Scene(home)
        assert profiles.checkpoint_bytes(scene.paths) == 0
        for number in range(5):
            scene.agent("a.txt", f"{number}" * 1000)
        taken = profiles.checkpoint_bytes(scene.paths)
        directory = Path(scene.paths.checkpoints)
        assert taken == sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        with scene.work() as work:
            prune.remove(work, scene.records()[:-1])
        assert 0 < profiles.checkpoint_bytes(scene.paths) < taken


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
