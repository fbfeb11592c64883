"""A rewind in a project, killed before or failing at any call to the file system: entirely old or entirely new in the
directory of the user and in the profile, nothing is lost, and `.git` never changes.

`make soak-projects` tries every call; otherwise a sample is tried, the same every time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from deepctl.store import session_catalogue, verify
from tests.store.faults import FAULTS, in_child, points, sample
from tests.store.scene import Scene, leftovers
from tests.store.test_projects import State, contents, populate

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 20


class Whole(NamedTuple):
    """Everything that must be old or new."""

    project: tuple[tuple[str, tuple[str, int, bytes]], ...]
    files: tuple[tuple[str, str], ...]
    prompts: tuple[str, ...]


class Trial:
    """One place for all trials, because a project is its path; the story is copied there again before each."""

    def __init__(self, tmp_path: Path) -> None:
        self._saved, self._here = tmp_path / "saved", tmp_path / "here"
        self.directory = self._here / "project"

    def scene(self) -> Scene:
        scene = Scene(self._here / "root")
        scene.directories["main"] = self.directory
        return scene

    def keep(self) -> None:
        self._here.rename(self._saved)

    def anew(self) -> Scene:
        if self._here.exists():
            shutil.rmtree(self._here)
        shutil.copytree(self._saved, self._here, symlinks=True)
        return self.scene()

    def story(self) -> None:
        """Two turns, in which commands change all that can be changed, and an edit of the user afterwards."""
        directory = self.directory
        directory.mkdir(parents=True)
        populate(directory)
        for name in ("objects", "refs"):  # now git accepts it as a repository
            (directory / ".git" / name).mkdir()
        (directory / "ignored").mkdir()
        (directory / "ignored" / "mine").write_text("the user's\n")
        (directory / ".gitignore").write_text("ignored/\n")
        (directory / "sub").mkdir()
        (directory / "sub" / "#b.log").write_text("the user's\n")
        scene = self.scene()
        with scene.turn("first"):
            (directory / "src" / "app.py").write_text("one\n")
            (directory / "src" / "lib.py").write_text("one\n")
            # While a rewind has changed one of the two .gitignore, these logs are ignored.
            (directory / ".gitignore").write_text("ignored/\n*.log\n")
            (directory / "sub" / ".gitignore").write_text("!*.log\n")
            (directory / "sub" / "#a.log").write_text("the agent's\n")
            (directory / "sub" / "#b.log").write_text("the agent's\n")
            scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
        with scene.turn("second"):
            shutil.rmtree(directory / "src")
            (directory / "src").write_text("a file where a directory was")
            (directory / "link").unlink()
            (directory / "link").mkdir()
            (directory / "link" / "inner").write_text("new\n")
            (directory / "bytes").write_bytes(b"short")
            (directory / "run.sh").chmod(0o644)
            (directory / "secret").unlink()
            (directory / ".git" / "HEAD").write_text("ref: refs/heads/other\n")
            scene.write(".deep/memory/main/MEMORY.md", "- tea\n- coffee\n")
        (directory / "mine").write_text("the user's\n")
        self.keep()

    def whole(self, scene: Scene) -> Whole:
        """What the next command finds."""
        with scene.work():
            pass
        files = {name: text for name, text in scene.files().items() if not name.startswith(".deep/home")}
        return Whole(tuple(contents(self.directory).items()), tuple(files.items()), tuple(scene.prompts()))


OPERATIONS: dict[str, Callable[[Scene], object]] = {
    "rewind": lambda scene: scene.rewind("~2"),
    "only files": lambda scene: scene.rewind("~2", only="files"),
    "exact": lambda scene: scene.rewind("~1", exact=True),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_after_any_fault_project_and_profile_are_entirely_old_or_entirely_new(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(tmp_path)
    trial.story()
    operation = OPERATIONS[name]
    old = trial.whole(trial.anew())
    scene = trial.anew()
    git: State = contents(trial.directory / ".git")
    every = points(lambda: operation(scene))
    new = trial.whole(scene)
    assert old != new
    seen: set[Whole] = set()
    chosen = every if _SOAK else sample(every, name, _SAMPLE)
    for at, call, fault in chosen:
        scene = trial.anew()
        said = in_child(lambda: operation(scene), at, FAULTS[fault])  # noqa: B023 (called here and now)
        where = f"{fault} at call {at}, {call}: {said}"
        assert "\n" not in said, where
        assert (said == "killed") == (fault == "SIGKILL"), where
        assert contents(trial.directory / ".git") == git, where
        found = trial.whole(scene)
        assert found in (old, new), where
        if said == "done":
            assert found == new, where
        seen.add(found)
        assert leftovers(scene.paths) == [], where
        assert not list(trial.directory.rglob(".deepctl-*")), where
        verified = verify.verify(scene.paths)
        assert (verified.problems, verified.notes) == ([], []), where
    with capfd.disabled():
        print(f" {name}: {len(chosen)} of {len(every)} points tried", end="")
    assert seen >= {old, new} or not _SOAK


def _killed(trial: Trial) -> Scene:
    """A rewind, killed while it changes the directory."""
    trial.story()
    scene = trial.anew()
    every = points(lambda: scene.rewind("~2"))
    last = [at for at, call, _ in every if call == "rename"]
    scene = trial.anew()
    assert in_child(lambda: scene.rewind("~2"), last[len(last) // 2], FAULTS["SIGKILL"]) == "killed"
    assert session_catalogue.read_ledger(scene.paths).unfinished is not None
    return scene


def test_without_its_directory_an_interrupted_rewind_blocks_no_other_session(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    scene = _killed(trial)
    trial.directory.rename(trial.directory.with_name("moved"))
    with scene.work() as work:
        assert work.ledger.unfinished is None
        (note,) = work.notes
    assert str(trial.directory) in note
    assert "can be neither finished nor undone" in note
    assert scene.prompts() == ["first", "second"]
    with scene.turn("private", "private"):
        scene.write("a", "a")


def test_an_interrupted_rewind_is_finished_where_the_project_is_now(tmp_path: Path) -> None:
    from deepctl.store import projects

    trial = Trial(tmp_path)
    scene = _killed(trial)
    moved = trial.directory.with_name("moved")
    trial.directory.rename(moved)
    projects.move(scene.paths, str(trial.directory), str(moved))
    with scene.work() as work:
        assert work.notes == ["An interrupted rewind has been finished."]
    assert (moved / "src" / "app.py").read_text() == "print('hello')\n"
    assert (moved / "sub" / "#b.log").read_text() == "the user's\n"
    assert not (moved / "sub" / "#a.log").exists()
    assert (moved / ".gitignore").read_text() == "ignored/\n"
    assert (moved / "ignored" / "mine").read_text() == "the user's\n"
    assert (moved / "mine").read_text() == "the user's\n"


def test_an_edit_after_the_kill_survives(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    scene = _killed(trial)
    (trial.directory / "bytes").write_bytes(b"edited after the kill")
    with scene.work() as work:
        assert "bytes" in " ".join(work.notes)
        assert ".deep/projects" not in " ".join(work.notes)
    assert (trial.directory / "bytes").read_bytes() == b"edited after the kill"


def test_a_half_restored_gitignore_hides_no_file_from_the_rest_of_the_rewind(tmp_path: Path) -> None:
    """Killed after one of two .gitignore was restored: a file that the other one covers is ignored at that moment."""
    trial = Trial(tmp_path)
    trial.story()
    scene = trial.anew()
    every = points(lambda: scene.rewind("~2"))
    hidden = 0
    for at in [at for at, call, fault in every if call in ("unlink", "rename") and fault == "SIGKILL"]:
        scene = trial.anew()
        assert in_child(lambda: scene.rewind("~2"), at, FAULTS["SIGKILL"]) == "killed"  # noqa: B023
        if session_catalogue.read_ledger(scene.paths).unfinished is None:
            continue
        top, log = trial.directory / ".gitignore", trial.directory / "sub" / "#b.log"
        is_hidden = "*.log" in top.read_text() and not (trial.directory / "sub" / ".gitignore").exists()
        hidden += is_hidden and log.read_text() == "the agent's\n"
        with scene.work() as work:
            assert work.notes == ["An interrupted rewind has been finished."]
        assert log.read_text() == "the user's\n"
    assert hidden
