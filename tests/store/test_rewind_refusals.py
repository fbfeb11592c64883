"""What a rewind must not touch, and what its dry run says of that: the same, as an ordinary user."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deepctl.domain.memory import changes
from deepctl.domain.memory.directory import Memory
from deepctl.errors import DeepctlError, StorageError
from deepctl.output.rewind import preview_line
from deepctl.store import lookup, trees
from deepctl.store import rewind as rewinding
from deepctl.store.repository import Repository
from deepctl.store.rewind import FilesNotKept, RewindRequest
from tests.domain.test_transfer import export
from tests.store.faults import count, failing, in_child
from tests.store.scene import Scene
from tests.support.ordinary import as_ordinary

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_WISHES: tuple[dict[str, Any], ...] = ({}, {"force": True}, {"exact": True})
NOTEBOOK = ".deep/memory/main/MEMORY.md"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "scene")
    yield made
    for directory, _, _ in os.walk(made.workspace, onerror=lambda error: None):
        os.chmod(directory, 0o700)


def _foretold(scene: Scene, reference: str, **wish: Any) -> DeepctlError | None:
    """The error with which a rewind would be refused."""
    with Repository.read_only(scene.paths) as reader:
        target = lookup.find_checkpoint(scene.paths, reader.ledger, reference, "main")
        plan = rewinding.preview(reader, scene.session(), RewindRequest(target, **wish))
    return plan.refusal


def _refused(scene: Scene, **wish: Any) -> DeepctlError:
    """The error with which a rewind of a turn is refused, which its dry run has foretold."""
    reference = "~1"
    foretold = _foretold(scene, reference, **wish)
    assert foretold is not None
    checkpoints = [record.id for record in scene.records()]
    with pytest.raises(type(foretold)) as caught:
        scene.rewind(reference, **wish)
    assert caught.value.document() == foretold.document()
    assert [record.id for record in scene.records()] == checkpoints, "nothing was done"
    return caught.value


_CLOSED: dict[str, Callable[[Path], object]] = {
    "d/a.txt": lambda root: (root / "d" / "a.txt").chmod(0),
    "d": lambda root: (root / "d").chmod(0),
    "d, which may be listed": lambda root: (root / "d").chmod(0o400),
    "d, which may be entered": lambda root: (root / "d").chmod(0o100),
}


@pytest.mark.parametrize("wish", [{"force": True}, {"exact": True, "force": True}, {"exact": True}, {}], ids=str)
@pytest.mark.parametrize("closed", _CLOSED)
def test_what_cannot_be_read_is_never_overridden(scene: Scene, closed: str, wish: dict[str, Any]) -> None:
    def story() -> None:
        scene.agent("x", "x")
        scene.agent("d/a.txt", "agent")
        scene.write("d/a.txt", "the user's")
        _CLOSED[closed](scene.workspace)
        error = _refused(scene, **wish)
        assert isinstance(error, FilesNotKept)
        assert (error.exit_code, error.paths[0][:1]) == (6, b"d")
        os.chmod(scene.workspace / "d", 0o700)
        os.chmod(scene.workspace / "d" / "a.txt", 0o600)
        assert scene.files() == {"x": "x", "d/a.txt": "the user's"}

    as_ordinary(story)


@pytest.mark.parametrize("wish", [{"force": True}, {"exact": True}], ids=str)
def test_what_cannot_be_read_is_not_replaced_by_what_was_there(scene: Scene, wish: dict[str, Any]) -> None:
    def story() -> None:
        scene.agent("a", "one")
        scene.agent("a", "two")
        scene.write("a", "the user's")
        os.chmod(scene.workspace / "a", 0)
        assert isinstance(_refused(scene, **wish), FilesNotKept)
        os.chmod(scene.workspace / "a", 0o600)
        assert scene.files() == {"a": "the user's"}
        scene.rewind("~1", **wish)
        assert scene.files() == {"a": "one"}
        scene.undo(force=True)
        assert scene.files() == {"a": "the user's"}

    as_ordinary(story)


def test_what_nobody_could_read_then_or_now_is_in_no_rewinds_way(scene: Scene) -> None:
    def story() -> None:
        scene.write("secret", "the user's")
        os.chmod(scene.workspace / "secret", 0)
        scene.agent("a", "one")
        for wish in _WISHES:
            scene.rewind("~1", **wish)
            assert not (scene.workspace / "a").exists()
            scene.undo()
        os.chmod(scene.workspace / "secret", 0o600)
        assert scene.files() == {"secret": "the user's", "a": "one"}

    as_ordinary(story)


def test_a_preview_says_of_what_cannot_be_read_that_it_cannot(scene: Scene) -> None:
    def story() -> None:
        scene.agent("made", "agent")
        scene.agent("made", "again")
        scene.write("made", "the user's")
        os.chmod(scene.workspace / "made", 0)
        for reference, change in (("~2", "deleted"), ("~1", "modified")):
            for wish in _WISHES:
                with Repository.read_only(scene.paths) as reader:
                    target = lookup.find_checkpoint(scene.paths, reader.ledger, reference, "main")
                    plan = rewinding.preview(reader, scene.session(), RewindRequest(target, **wish))
                    (line,) = map(preview_line, rewinding.differences(reader, plan))
                    assert line.split() == [change, "made", "cannot", "be", "read"], (reference, wish)
                    assert isinstance(plan.refusal, FilesNotKept)
                    assert not plan.is_nothing
                    assert plan.kept_paths == []

    as_ordinary(story)


def test_an_unreadable_file_in_the_place_of_a_directory_is_never_overridden(scene: Scene) -> None:
    def story() -> None:
        scene.agent("d/a.txt", "one")
        scene.agent("d/a.txt", "two")
        shutil.rmtree(scene.workspace / "d")
        scene.write("d", "the user's")
        os.chmod(scene.workspace / "d", 0)
        for wish in ({"force": True}, {"exact": True}):
            assert isinstance(_refused(scene, **wish), FilesNotKept)
        os.chmod(scene.workspace / "d", 0o600)
        assert scene.files() == {"d": "the user's"}

    as_ordinary(story)


def test_an_undo_never_overrides_what_cannot_be_read(scene: Scene) -> None:
    def story() -> None:
        scene.agent("x", "x")
        scene.agent("a", "agent")
        scene.rewind("~1")
        scene.write("a", "the user's")
        os.chmod(scene.workspace / "a", 0)
        with pytest.raises(FilesNotKept):
            scene.undo(force=True)
        os.chmod(scene.workspace / "a", 0o600)
        assert scene.files()["a"] == "the user's"

    as_ordinary(story)


@pytest.mark.parametrize("wish", [{"force": True}, {"exact": True}], ids=str)
def test_what_has_no_content_stays_where_it_is(scene: Scene, wish: dict[str, Any]) -> None:
    scene.write("a", "before")
    scene.write("b", "before")
    scene.agent("x", "x")
    with scene.turn("replace"):
        for name in "ab":
            scene.write(name, None)
        os.mkfifo(scene.workspace / "a")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(scene.workspace / "b"))
    done = scene.rewind("~1", **wish)
    assert {path for path, _ in done.in_the_way} == {b"a", b"b"}
    assert (scene.workspace / "a").is_fifo()


def test_what_is_too_deep_to_be_kept_is_never_overridden(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.agent("x", "x")
    scene.agent("d/e/f/a.txt", "agent")
    scene.write("d/e/f/a.txt", "the user's")
    monkeypatch.setattr(trees, "_MAX_DEPTH", 1)
    assert isinstance(_refused(scene, force=True), FilesNotKept)
    assert scene.files()["d/e/f/a.txt"] == "the user's"


def test_what_is_excluded_is_never_overridden(scene: Scene) -> None:
    scene.write("d", "before")
    scene.agent("x", "x")
    with scene.turn("replace"):
        scene.write("d", None)
    scene.write("d/kept.log", "the user's")
    with scene.work(exclude=["*.log"]) as work:
        target = lookup.find_checkpoint(scene.paths, work.ledger, "~1", "main")
        rewinding.run(work, scene.session(), RewindRequest(target, exact=True, force=True))
    assert scene.files()["d/kept.log"] == "the user's"


def test_a_directory_that_may_not_be_written_is_exit_8_in_the_dry_run_too(scene: Scene) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")

    def story() -> None:
        error = _refused(scene)
        assert isinstance(error, StorageError)
        assert error.exit_code == 8
        assert "d" in error.message

    scene.agent("x", "x")
    scene.agent("d/a.txt", "agent")
    os.chown(scene.workspace / "d", 4242, 4242)
    os.chmod(scene.workspace / "d", 0o755)
    as_ordinary(story)
    assert scene.files()["d/a.txt"] == "agent"


def test_a_directory_that_only_lacks_its_owners_rights_is_no_obstacle(scene: Scene) -> None:
    def story() -> None:
        scene.agent("x", "x")
        scene.agent("d/a.txt", "agent")
        os.chmod(scene.workspace / "d", 0o500)
        assert _foretold(scene, "~1", force=True) is None
        scene.rewind("~1", force=True)
        assert scene.files() == {"x": "x"}

    as_ordinary(story)


_OWN = ("", ".deep", ".deep/memory", ".deep/memory/main", "plans", "large_tool_results")


@pytest.mark.parametrize("mode", [0, 0o400, 0o500, 0o100])
def test_directories_that_are_deepctls_own_are_opened(scene: Scene, mode: int) -> None:
    def story() -> None:
        with scene.turn("start"):
            scene.write(NOTEBOOK, "- tea\n")
            scene.write("plans/a.md", "a plan")
            scene.write("large_tool_results/one", "a result")
            os.chmod(scene.workspace / ".deep", 0o755)
        files = scene.files()
        with scene.turn("close"):
            for name in reversed(_OWN):
                os.chmod(scene.workspace / name, mode)
        assert Memory(scene.paths).read("MEMORY.md").content == b"- tea\n"
        for name in reversed(_OWN):
            os.chmod(scene.workspace / name, mode)
        assert _foretold(scene, "~1") is None
        for name in reversed(_OWN):
            os.chmod(scene.workspace / name, mode)
        scene.rewind("~1", exact=True)
        assert scene.files() == files
        assert (scene.workspace / ".deep").stat().st_mode & 0o777 == 0o755
        os.chmod(scene.workspace / ".deep", mode)
        with scene.work() as work:
            changes.add(work, Memory(scene.paths), "MEMORY.md", b"mine")
        assert scene.files()[NOTEBOOK].endswith("mine\n")

    as_ordinary(story)


def test_an_export_has_what_is_in_a_workspace_that_was_closed(scene: Scene) -> None:
    def story() -> None:
        scene.agent("a.txt", "agent")
        scene.workspace.chmod(0)
        assert export(scene)[1].left_out == []

    as_ordinary(story)


@pytest.mark.parametrize("name", _OWN)
def test_no_directory_is_opened_through_a_link(scene: Scene, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = scene.workspace / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if name:
        place.symlink_to(outside)
        outside.chmod(0)
        with scene.work():
            pass
    else:
        (scene.workspace / "mine").mkdir(0o500)
        with scene.work():
            pass
        assert (scene.workspace / "mine").stat().st_mode & 0o777 == 0o500, "it is not ours"
    assert outside.stat().st_mode & 0o777 == (0 if name else outside.stat().st_mode & 0o777)
    outside.chmod(0o700)


_ERRORS = (errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM)


def _note(place: Path) -> Scene:
    """The agent's note, a file of both, and a note of the user's that a rewind would override."""
    made = Scene(place)
    made.write("d/link", "x")
    (made.workspace / "d" / "to").symlink_to("link")
    made.agent("x", "x")
    made.agent("d/a.txt", "agent")
    made.write("d/a.txt", "the user's note")
    return made


@pytest.mark.timeout(3600)
def test_a_machine_that_is_out_of_something_never_makes_a_note_unreadable(tmp_path: Path) -> None:
    _note(tmp_path / "story")

    def again() -> Scene:
        shutil.rmtree(tmp_path / "try", ignore_errors=True)
        shutil.copytree(tmp_path / "story", tmp_path / "try", symlinks=True)
        return Scene(tmp_path / "try")

    def rewind(scene: Scene) -> None:
        assert not scene.rewind("~1", force=True).plan.present.unkept

    scene = again()
    calls = count(lambda: rewind(scene))
    points = [(at, number) for at in range(1, calls + 1) for number in _ERRORS]
    if not _SOAK:
        points = random.Random(4).sample(points, 60)
    for at, number in points:
        scene = again()
        said = in_child(lambda: rewind(scene), at, failing(number))  # noqa: B023 (called here and now)
        where = f"{errno.errorcode[number]} at call {at} of {calls}: {said}"
        assert "\n" not in said, where
        files = scene.files()
        assert files.get("d/a.txt") in (None, "the user's note"), where
        if "d/a.txt" not in files:
            scene.undo(force=True)
            assert scene.files()["d/a.txt"] == "the user's note", where
