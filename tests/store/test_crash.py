"""Killed before, or failing at, any call to the file system, or interrupted at any line that makes something count:
entirely old or entirely new, and nothing lost.

`make soak` tries every call; otherwise a sample is tried, the same every time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from deepctl.store import ledger, log_chain, log_file, lookup, prune, session_catalogue, verify
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.trees import DIRECTORY, walk
from tests.store.faults import FAULTS, Lines, count, in_child, in_child_with, points, sample
from tests.store.scene import Scene, leftovers

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 16


class State(NamedTuple):
    """Everything that must be old or new: the workspace, the conversation, and which checkpoints there are."""

    tree: str
    prompts: tuple[str, ...]
    kinds: tuple[str, ...]


def _story(place: Path) -> Scene:
    """Four turns, a rewind and one more turn, with something for every kind of restoring to do."""
    scene = Scene(place)
    scene.write("mine.txt", "the user's\n")
    with scene.turn("first"):
        scene.write("a.txt", "one\n")
        scene.write("d/b.txt", "two\n")
        scene.write(".deep/memory/main/MEMORY.md", "- tea\n")
    with scene.turn("second"):
        scene.write("a.txt", "changed\n")
        scene.write("d/b.txt", None)
        (scene.workspace / "d").rmdir()
        (scene.workspace / "d").write_text("a file where a directory was")
        scene.write("new/deep/c.txt", "three\n")
        (scene.workspace / "link").symlink_to("a.txt")
    scene.agent("e.txt", "four\n")
    scene.rewind("~1")
    with scene.turn("last"):
        scene.write("f.txt", "five\n")
        os.chmod(scene.workspace / "a.txt", 0o600)
    scene.write("mine.txt", "the user's, edited\n")
    return scene


def _save(scene: Scene) -> None:
    with scene.work() as work:
        work.save_now(scene.session(), "by-hand")


def _prune(scene: Scene) -> None:
    with scene.work() as work:
        prune.remove(work, prune.to_prune(work.ledger, 2))


def _remove(scene: Scene) -> None:
    with scene.work() as work:
        prune.remove(work, [next(iter(work.ledger.records.values()))])


OPERATIONS: dict[str, Callable[[Scene], object]] = {
    "save": _save,
    "rewind": lambda scene: scene.rewind("~2"),
    "undo": lambda scene: scene.undo(),
    "prune": _prune,
    "remove": _remove,
}


def _state(scene: Scene) -> State:
    """What the next command that takes the lock finds."""
    tree = scene.tree()
    return State(tree, tuple(scene.prompts()), tuple(record.kind for record in scene.records()))


def _check_readable(scene: Scene, identities: set[str]) -> None:
    """A fresh reader, which takes no lock and finishes nothing, reads these checkpoints in full."""
    reader = ReadOnlyRepository(scene.paths)
    for identity in identities & reader.ledger.records.keys():
        record = reader.ledger.records[identity]
        for _, entry in walk(reader.objects, bytes.fromhex(record.tree)):
            if entry.kind != DIRECTORY:
                reader.objects.read(entry.digest)
        assert len(lookup.conversation_at(scene.paths, record).messages) == record.message_count
    reader.close()


def _check_nothing_is_left(scene: Scene) -> None:
    found = session_catalogue.read_ledger(scene.paths)
    assert leftovers(scene.paths) == []
    assert {name for name in os.listdir(scene.paths.packs) if not name.startswith(".")} == found.packs
    assert found.unfinished is None
    named = {record.log for record in found.records.values()} | {scene.session().log}
    logs = {name.removesuffix(".jsonl") for name in os.listdir(scene.session().directory) if name.endswith(".jsonl")}
    chains = {one for log in named & logs for one in _chain(scene, log)}
    assert logs <= chains
    verified = verify.verify(scene.paths)
    assert (verified.problems, verified.notes) == ([], [])


def _chain(scene: Scene, log: str) -> list[str]:
    directory = scene.session().directory
    found = log_chain.resolve(directory, log_file.Point(log, 0), is_open=True)
    return [os.path.basename(link.path).removesuffix(log_file.SUFFIX) for link in found.links]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_after_any_fault_the_profile_is_entirely_old_or_entirely_new(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    operation = OPERATIONS[name]
    _story(tmp_path / "story")
    earlier = {record.id for record in Scene(tmp_path / "story").records()}
    old = _state(_copy(tmp_path, "old"))
    scene = _copy(tmp_path, "new")
    every = points(lambda: operation(scene))
    new = _state(scene)
    assert old != new
    seen: set[State] = set()
    chosen = every if _SOAK else sample(every, name, _SAMPLE)
    for at, call, fault in chosen:
        scene = _copy(tmp_path, "try")
        said = in_child(lambda: operation(scene), at, FAULTS[fault])  # noqa: B023 (called here and now)
        where = f"{fault} at call {at}, {call}: {said}"
        assert "\n" not in said, where
        assert (said == "killed") == (fault == "SIGKILL"), where
        removed = set() if name not in ("prune", "remove") else {record.id for record in scene.records()} ^ earlier
        _check_readable(scene, earlier - removed)
        found = _state(scene)
        assert found in (old, new), where
        if said == "done":
            assert found == new, where
        seen.add(found)
        _check_nothing_is_left(scene)
    with capfd.disabled():
        print(f" {name}: {len(chosen)} of {len(every)} points tried", end="")
    assert seen >= {old, new} or not _SOAK


@pytest.mark.parametrize("name", OPERATIONS)
def test_after_ctrl_c_at_any_line_that_makes_something_count(name: str, tmp_path: Path) -> None:
    operation = OPERATIONS[name]
    _story(tmp_path / "story")
    earlier = {record.id for record in Scene(tmp_path / "story").records()}
    old = _state(_copy(tmp_path, "old"))
    scene = _copy(tmp_path, "new")
    counting = ledger.LedgerWriter._append
    lines = range(1, count(lambda: operation(scene), Lines(counting)) + 1)
    new = _state(scene)
    assert len(lines) > 50
    seen: set[State] = set()
    for at in lines if _SOAK else lines[:: len(lines) // _SAMPLE]:
        scene = _copy(tmp_path, "try")
        said = in_child_with(lambda: operation(scene), Lines(counting, at))  # noqa: B023 (called here and now)
        assert said in ("KeyboardInterrupt", "Interrupted"), (at, said)
        removed = set() if name not in ("prune", "remove") else {record.id for record in scene.records()} ^ earlier
        _check_readable(scene, earlier - removed)
        seen.add(_state(scene))
        _check_nothing_is_left(scene)
    assert seen == {old, new}


def _copy(tmp_path: Path, name: str) -> Scene:
    place = tmp_path / name
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(tmp_path / "story", place, symlinks=True)
    return Scene(place)


def test_the_story_itself_is_as_it_should_be(tmp_path: Path) -> None:
    scene = _story(tmp_path)
    assert scene.prompts() == ["first", "second", "last"]
    assert scene.files()["a.txt"] == "changed\n"
    assert session_catalogue.latest_session(scene.paths) == "main"
    _check_readable(scene, {record.id for record in scene.records()})
    _check_nothing_is_left(scene)
