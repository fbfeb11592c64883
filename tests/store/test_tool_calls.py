"""Calls of file tools: one snapshot after the call tells the tool's change from what others changed before it."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deepctl.store import session_catalogue, session_reader, trees, verify, workspaces
from deepctl.store.coverage import CoverageSettings
from deepctl.store.records import AGENT, OTHER, UNKNOWN, Record
from deepctl.store.rewind import RewindConflicts
from deepctl.store.tool_calls import ToolCall
from deepctl.store.trees import ScratchWriter, Snapshot
from tests.store.faults import FAULTS, in_child, points, sample
from tests.store.scene import Scene

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "project"
    (place / "src").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "src/c.txt"):
        (place / name).write_text("the user's\n")
    return place


@pytest.fixture
def scene(tmp_path: Path, directory: Path) -> Scene:
    scene = Scene(tmp_path / "root")
    scene.directories["main"] = directory
    with scene.turn("hello"):
        pass
    return scene


@contextmanager
def counted() -> Iterator[list[str]]:
    """The walks of projects inside this context."""
    walks: list[str] = []
    real = trees.snapshot

    def snapshot(root: str, *arguments: Any, **options: Any) -> Snapshot:
        if options.get("mount"):
            walks.append(root)
        return real(root, *arguments, **options)

    with mock.patch.object(trees, "snapshot", snapshot):
        yield walks


def _write(path: Path, text: str = "the agent's\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _call(scene: Scene, path: Path, meanwhile: Callable[[], object] = lambda: None) -> int:
    """A turn with one call that writes a file, after another author has done something. Returns its number of walks."""
    with counted() as walks, scene.turn("write", tool="write_file", meanwhile=meanwhile, announces=True) as announce:
        announce(path)
        _write(path)
    return len(walks)


def _authors(scene: Scene) -> list[str]:
    """The authors of the checkpoints that were made around calls of tools."""
    return [record.author for record in scene.records() if record.kind == "tool"]


def _changes(scene: Scene, author: str) -> set[str]:
    """The paths in the project that an author changed in a call."""
    records = [record for record in scene.records() if record.tree]
    with scene.work() as work:
        return {
            os.fsdecode(place.path)
            for before, after in itertools.pairwise(records)
            if after.author == author and after.kind == "tool"
            for change in trees.changes(work.store.objects, bytes.fromhex(before.tree), bytes.fromhex(after.tree))
            if (place := workspaces.mounted(change.path)) is not None and place.path
        }


def test_a_turn_has_a_walk_for_each_call_and_two_more(scene: Scene, directory: Path) -> None:
    assert _call(scene, directory / "a.txt") == 3
    assert _call(scene, directory / "new" / "deep" / "file.txt") == 3
    assert _call(scene, scene.workspace / "plans" / "plan.md") == 3
    assert _authors(scene) == [AGENT] * 3
    with counted() as walks, scene.turn("command"):
        _write(directory / "b.txt")
    assert len(walks) == 4, "a command may change every file"


def test_a_call_that_changes_nothing_has_no_walk(scene: Scene, directory: Path) -> None:
    with counted() as walks, scene.turn("edit", tool="edit_file", announces=True):
        pass
    assert len(walks) == 2
    assert _authors(scene) == []


def test_what_the_user_changed_before_the_call_is_the_users(scene: Scene, directory: Path) -> None:
    def edit() -> None:
        (directory / "b.txt").write_text("edited\n")
        (directory / "src" / "c.txt").unlink()
        (directory / "mine").mkdir()

    assert _call(scene, directory / "a.txt", edit) == 3
    assert _authors(scene) == [OTHER, AGENT]
    assert _changes(scene, OTHER) == {"b.txt", "src/c.txt", "mine"}
    assert _changes(scene, AGENT) == {"a.txt"}
    scene.rewind("~1")
    assert (directory / "a.txt").read_text() == "the user's\n"
    assert (directory / "b.txt").read_text() == "edited\n"
    assert not (directory / "src" / "c.txt").exists()
    assert (directory / "mine").is_dir()


def test_the_users_version_of_the_file_that_the_call_changes_is_stored(scene: Scene, directory: Path) -> None:
    _call(scene, directory / "a.txt", lambda: (directory / "a.txt").write_text("edited\n"))
    assert _authors(scene) == [OTHER, AGENT]
    scene.rewind("~1")
    assert (directory / "a.txt").read_text() == "edited\n"


def test_a_changed_mode_is_a_version_too(scene: Scene, directory: Path) -> None:
    _call(scene, directory / "a.txt", lambda: (directory / "a.txt").chmod(0o600))
    scene.rewind("~1")
    assert (directory / "a.txt").stat().st_mode & 0o777 == 0o600


def test_directories_that_the_call_creates_are_its_own_and_others_are_not(scene: Scene, directory: Path) -> None:
    assert _call(scene, directory / "user" / "agent" / "new.txt", lambda: (directory / "user").mkdir()) == 3
    assert _changes(scene, AGENT) == {"user/agent", "user/agent/new.txt"}
    scene.rewind("~1")
    assert (directory / "user").is_dir()
    assert not list((directory / "user").iterdir())


def test_a_call_that_fails_half_way_leaves_no_directory_after_a_rewind(scene: Scene, directory: Path) -> None:
    def edit() -> None:
        (directory / "b.txt").write_text("edited\n")

    with scene.turn("write", tool="write_file", meanwhile=edit, announces=True) as announce:
        announce(directory / "new" / "deep" / "file.txt")
        (directory / "new" / "deep").mkdir(parents=True)
    assert _changes(scene, AGENT) == {"new", "new/deep"}
    scene.rewind("~1")
    assert not (directory / "new").exists()
    assert (directory / "b.txt").read_text() == "edited\n"


def test_a_file_that_the_user_replaced_by_a_directory_stays_one(scene: Scene, directory: Path) -> None:
    def edit() -> None:
        (directory / "a.txt").unlink()
        (directory / "a.txt").mkdir()

    _call(scene, directory / "a.txt" / "inner.txt", edit)
    scene.rewind("~1")
    assert (directory / "a.txt").is_dir()
    assert not list((directory / "a.txt").iterdir())


def test_a_directory_that_the_user_replaced_by_a_file_stays_one(scene: Scene, directory: Path) -> None:
    def edit() -> None:
        shutil.rmtree(directory / "src")
        (directory / "src").write_text("edited\n")

    _call(scene, directory / "src", edit)
    scene.rewind("~1")
    assert (directory / "src").read_text() == "edited\n"


def test_a_directory_that_the_user_deleted_is_deleted_again(scene: Scene, directory: Path) -> None:
    _call(scene, directory / "src" / "new.txt", lambda: shutil.rmtree(directory / "src"))
    scene.rewind("~1")
    assert not (directory / "src").exists()


def test_the_other_names_of_a_file_are_the_agents_changes(scene: Scene, directory: Path) -> None:
    (directory / "a.txt").unlink()
    os.link(directory / "b.txt", directory / "a.txt")
    _call(scene, directory / "a.txt")
    assert (directory / "b.txt").read_text() == "the agent's\n"
    scene.rewind("~1")
    assert (directory / "b.txt").read_text() == "the user's\n"


def _git(directory: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Alice", "-c", "user.email=alice@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def test_a_commit_of_the_user_before_the_call_is_not_the_agents(scene: Scene, directory: Path) -> None:
    _git(directory, "init")
    with scene.turn("hello"):
        pass

    def commit() -> None:
        _git(directory, "add", "--all")
        _git(directory, "commit", "--message", "mine")

    _call(scene, directory / "a.txt", commit)
    assert _authors(scene) == [OTHER, AGENT]
    assert scene.rewind("~1").plan.commits == []


def test_an_ignored_file_needs_no_further_walk(scene: Scene, directory: Path) -> None:
    _git(directory, "init")
    (directory / ".gitignore").write_text("*.log\nbuild/\n")
    (directory / "build" / "deep").mkdir(parents=True)
    for name in ("x.log", "build/deep/out.txt"):
        (directory / name).write_text("built\n")
    assert _call(scene, directory / "x.log") == 3
    assert _call(scene, directory / "build" / "deep" / "out.txt") == 3
    assert _authors(scene) == []


def test_a_file_that_the_user_no_longer_ignores_is_stored_before_the_call(scene: Scene, directory: Path) -> None:
    _git(directory, "init")
    (directory / ".gitignore").write_text("*.log\n")
    (directory / "x.log").write_text("the user's\n")
    with scene.turn("hello"):
        pass
    _call(scene, directory / "x.log", (directory / ".gitignore").unlink)
    safe = next(record for record in scene.records() if record.author == OTHER and record.kind == "tool")
    scene.rewind(safe.id)
    assert (directory / "x.log").read_text() == "the user's\n"


def test_what_the_agents_rules_ignore_is_not_deleted_by_the_user(scene: Scene, directory: Path) -> None:
    _git(directory, "init")
    with scene.turn("hello"):
        pass

    def edit() -> None:
        (directory / "b.txt").write_text("edited\n")

    with scene.turn("write", tool="write_file", meanwhile=edit, announces=True) as announce:
        announce(directory / ".gitignore")
        (directory / ".gitignore").write_text("a.txt\n")
    assert _changes(scene, OTHER) == {"b.txt"}
    assert _changes(scene, AGENT) == {".gitignore", "a.txt"}


def test_a_file_above_the_largest_size_is_not_taken_for_the_agents(scene: Scene, directory: Path) -> None:
    coverage = CoverageSettings(max_file=100)
    (directory / "a.txt").write_text("x" * 101)
    with scene.turn("hello", coverage=coverage):
        pass
    with scene.turn("write", tool="write_file", announces=True, coverage=coverage) as announce:
        announce(directory / "a.txt")
        _write(directory / "a.txt")
    assert _authors(scene) == [AGENT]
    scene.rewind("~1")
    assert (directory / "a.txt").read_text() == "the agent's\n", "its earlier content is in no checkpoint"


def test_a_file_that_the_call_makes_too_large_is_unkept_only_afterwards(scene: Scene, directory: Path) -> None:
    def edit() -> None:
        (directory / "b.txt").write_text("edited\n")

    options: dict[str, Any] = {"coverage": CoverageSettings(max_file=100), "meanwhile": edit}
    with scene.turn("write", tool="write_file", announces=True, **options) as announce:
        announce(directory / "new.txt")
        _write(directory / "new.txt", "x" * 101)
    others, end = scene.records()[-2:]
    assert (others.kind, others.author, others.unkept) == ("tool", OTHER, [])
    assert [reason for _, reason in end.unkept] == [trees.TOO_LARGE]


def test_a_second_file_of_a_call_that_the_user_has_changed_is_stored(scene: Scene, directory: Path) -> None:
    def edit() -> None:
        (directory / "b.txt").write_text("edited\n")

    with scene.turn("write", tool="write_memory", meanwhile=edit, announces=True) as announce:
        for name in ("a.txt", "b.txt", "a.txt"):
            announce(directory / name)
            _write(directory / name, f"the agent's {name}\n")
    assert _authors(scene) == [OTHER, AGENT, AGENT]
    assert _changes(scene, OTHER) == {"b.txt"}
    scene.rewind("~1")
    assert (directory / "a.txt").read_text() == "the user's\n"
    assert (directory / "b.txt").read_text() == "edited\n"


# The files of the property below: `deep/d` has no directory at first.
_NAMES = ["a.txt", "b.txt", "src/c.txt", "src/new.txt", "deep/d/e.txt", ".gitignore", "x.log"]
_STEP = st.tuples(st.sampled_from(_NAMES), st.sampled_from(["write", "delete", "mode", "link", "directory", "ignore"]))


def _step(directory: Path, name: str, way: str) -> None:
    """Something that the user does, if it is possible."""
    path = directory / name
    if way == "ignore" and not (directory / ".gitignore").is_dir():
        (directory / ".gitignore").write_text({"a.txt": "", "b.txt": "src/\n"}.get(name, f"{path.name}\n"))
    elif way == "delete" and path.is_file():
        path.unlink()
    elif way == "delete" and path.parent != directory and path.parent.is_dir():
        shutil.rmtree(path.parent)
    elif way == "mode" and path.is_file():
        path.chmod(0o755)
    elif way == "directory" and not path.is_dir() and not path.parent.is_file():
        path.unlink(missing_ok=True)
        path.mkdir(parents=True)
    elif way in ("write", "link") and not path.is_dir() and not path.parent.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        if way == "link" and not os.path.lexists(path):
            path.symlink_to("a.txt")
        elif not path.is_symlink():
            path.write_text(f"{name} edited\n")


@pytest.mark.timeout(3600)
@settings(max_examples=500 if _SOAK else 60, deadline=None, suppress_health_check=list(HealthCheck))
@example(steps=[("src/c.txt", "ignore")], names=["src/c.txt"], has_git=True)
@given(
    steps=st.lists(_STEP, max_size=5),
    names=st.lists(st.sampled_from([*_NAMES, "profile"]), min_size=1, max_size=3),
    has_git=st.booleans(),
)
def test_the_checkpoint_of_others_is_that_of_a_walk_before_the_call(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]], names: list[str], has_git: bool
) -> None:
    place = tmp_path_factory.mktemp("walk")
    scene, directory = Scene(place / "root"), place / "project"
    scene.directories["main"] = directory
    for name in ("a.txt", "b.txt", "src/c.txt", "x.log"):
        _write(directory / name, "the user's\n")
    if has_git:
        _git(directory, "init")
        (directory / ".gitignore").write_text("*.log\n")
    with scene.turn("hello"):
        pass
    last = scene.records()[-1]
    walked: list[Snapshot] = []

    def meanwhile() -> None:
        for name, way in steps:
            _step(directory, name, way)
        with scene.work() as work:
            workspace = work.workspace_of(scene.session())
            walked.append(work.store.snapshot(workspace, ScratchWriter(work.store.objects)))

    changed = set()
    with scene.turn("write", tool="write_file", meanwhile=meanwhile, announces=True) as announce:
        for name in names:
            path = scene.workspace / ".deep" / "notes" / "a.md" if name == "profile" else directory / name
            if not path.is_dir() and not path.is_symlink() and not any(above.is_file() for above in path.parents):
                announce(path)
                _write(path, f"{name} by the agent\n")
                changed.add(name)
    records = [record for record in scene.records() if record.kind == "tool"]
    others = [record for record in records if record.author == OTHER]
    (before,) = walked
    if changed and before.tree.hex() != last.tree:
        assert (others[0].tree, others[0].files, others[0].bytes) == (before.tree.hex(), before.files, before.bytes)
        assert others[0].unkept == [[os.fsdecode(path), reason] for path, reason in before.unkept]
    assert len(others) == (bool(changed) and before.tree.hex() != last.tree)
    assert verify.verify(scene.paths).problems == []


def test_killed_after_the_call_the_users_edits_are_conflicts(scene: Scene, directory: Path) -> None:
    """Nothing tells any more who changed what since the last snapshot."""

    class Killed(BaseException):
        pass

    def edit() -> None:
        (directory / "b.txt").write_text("edited\n")

    def call() -> None:
        with scene.turn("write", tool="write_file", meanwhile=edit, announces=True) as announce:
            announce(directory / "a.txt")
            _write(directory / "a.txt")
            raise Killed

    with pytest.raises(Killed):
        call()
    with pytest.raises(RewindConflicts) as caught:
        scene.rewind("~1")
    assert {path.rpartition(b"/")[2] for path in caught.value.paths} == {b"a.txt", b"b.txt"}
    assert scene.records()[-1].author == UNKNOWN
    assert (directory / "b.txt").read_text() == "edited\n"


class _Place:
    """One place for all kills, because a project is its path; the story is copied there again before each."""

    def __init__(self, tmp_path: Path) -> None:
        self._saved, self._here = tmp_path / "saved", tmp_path / "here"
        self.directory = self._here / "project"
        for name in ("a.txt", "b.txt"):
            _write(self.directory / name, "the user's\n")
        with self.scene().turn("hello"):
            pass
        self._here.rename(self._saved)

    def scene(self) -> Scene:
        scene = Scene(self._here / "root")
        scene.directories["main"] = self.directory
        return scene

    def anew(self) -> Scene:
        shutil.rmtree(self._here, ignore_errors=True)
        shutil.copytree(self._saved, self._here, symlinks=True)
        return self.scene()

    def write(self, scene: Scene, edited: str) -> None:
        """The user edits a file, and then a file tool writes one."""

        def edit() -> None:
            (self.directory / edited).write_text("edited\n")

        with scene.turn("write", tool="write_file", meanwhile=edit, announces=True) as announce:
            announce(self.directory / "a.txt")
            _write(self.directory / "a.txt")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("edited", ["a.txt", "b.txt"])
def test_a_kill_at_any_moment_of_a_call_loses_no_edit_of_the_user(tmp_path: Path, edited: str) -> None:
    place = _Place(tmp_path)
    scene = place.anew()
    every = [point for point in points(lambda: place.write(scene, edited)) if point[2] == "SIGKILL"]
    for at, call, _ in every if _SOAK else sample(every, edited, 20):
        scene = place.anew()
        # Files that changed just now are read again, so the number of calls depends on the clock.
        outcome = in_child(lambda: place.write(scene, edited), at, FAULTS["SIGKILL"])  # noqa: B023
        assert outcome in ("killed", "done")
        where = f"killed at call {at}, {call}"
        text = (place.directory / edited).read_text()
        target = next(record.id for record in scene.records() if record.turn == 1)
        result = scene.rewind(target, force=True)
        is_named = any(path.endswith(edited.encode()) for path in result.plan.conflicts)
        if text == "edited\n" and not is_named:
            assert (place.directory / edited).read_text() == "edited\n", where
        assert is_named or (place.directory / "a.txt").read_text() != "the agent's\n", where
        assert verify.verify(scene.paths).problems == [], where


def test_an_interrupted_call_has_only_its_own_changes(scene: Scene, directory: Path) -> None:
    with scene.work() as work:
        session = scene.session()
        position = session_reader.position(session, session_catalogue.read(session))
        call = ToolCall("write_file", position, set())
        (directory / "b.txt").write_text("edited\n")
        work.before_tool(session, call)
        assert work.before_change(session, call, position, str(directory), "a.txt") == []
        _write(directory / "a.txt")
        records: list[Record] = work.after_turn(session, position, call=call)
    assert [record.author for record in records] == [OTHER, AGENT]
    assert [record.kind for record in records] == ["tool", "turn"]
    assert records[1].parent == records[0].id
    assert _changes(scene, OTHER) == {"b.txt"}
