"""Whose a change was: killed turns, stretches of time that a removal joined, and turns whose beginning is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepctl.store import lookup, prune, session_catalogue, session_delete, session_reader
from deepctl.store.lookup import CheckpointNotFound
from deepctl.store.records import UNKNOWN
from deepctl.store.repository import EVERY_TURN, MANUAL_ONLY
from deepctl.store.rewind import RewindConflicts
from tests.store.scene import Scene
from tests.support.command import InProcess
from tests.support.ordinary import as_ordinary

NOTEBOOK = ".deep/memory/main/MEMORY.md"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "scene")


def _conflicts(scene: Scene, reference: str, **wish: Any) -> list[str]:
    before = scene.files()
    with pytest.raises(RewindConflicts) as caught:
        scene.rewind(reference, **wish)
    assert scene.files() == before, "nothing is touched"
    return [path.decode() for path in caught.value.paths]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_what_a_turn_changed_that_was_killed_in_any_of_its_calls_is_a_conflict(scene: Scene, calls: int) -> None:
    scene.agent("x", "x")

    def write(number: int) -> Callable[[], None]:
        return lambda: scene.write(f"{number}.txt", "changed")

    scene.killed_turn("several", *map(write, range(calls)))
    assert _conflicts(scene, "~1") == [f"{calls - 1}.txt"]
    scene.rewind("~1", force=True)
    assert scene.files() == {"x": "x"}
    assert scene.prompts() == ["write x x"]


def test_a_killed_turn_is_one_whatever_is_done_next(scene: Scene) -> None:
    scene.agent("x", "x")
    start = scene.last().id
    scene.killed_turn("several", lambda: scene.write("a", "a"), lambda: scene.write("b", "b"))
    scene.write("mine", "mine")
    scene.agent("y", "y")
    scene.write("later", "later")
    scene.agent("z", "z")
    assert _conflicts(scene, start) == ["b", "mine"]


def test_a_killed_turn_is_one_after_its_checkpoints_were_removed(scene: Scene) -> None:
    scene.agent("x", "x")
    start = scene.last().id
    scene.killed_turn("several", lambda: scene.write("a", "a"), lambda: scene.write("b", "b"))
    with scene.work() as work:
        prune.remove(work, [record for record in work.ledger.records.values() if record.kind == "tool"])
    assert _conflicts(scene, start) == ["b"]


def test_a_turn_that_has_its_end_is_not_a_killed_one_whatever_is_removed(scene: Scene) -> None:
    scene.agent("x", "x")
    with scene.turn("two calls"):
        scene.write("a", "a")
    scene.write("mine", "mine")
    scene.agent("b", "b", "other")
    with scene.work() as work:
        assert not work.ledger.open_turns
        ends = [record for record in work.ledger.records.values() if record.kind == "turn"][:-1]
        prune.remove(work, ends)
        assert work.between() != UNKNOWN
        assert not [record for record in work.ledger.records.values() if record.author == UNKNOWN]
    assert scene.files() == {"x": "x", "a": "a", "mine": "mine", "b": "b"}


def test_a_session_that_was_rewound_into_a_turn_has_no_killed_one(scene: Scene) -> None:
    scene.agent("x", "x")
    with scene.turn("two calls"):
        scene.write("a", "a")
    scene.rewind(scene.last("tool").id)
    scene.write("mine", "mine")
    scene.rewind("~1")
    assert scene.files() == {"x": "x", "mine": "mine"}


def test_without_checkpoints_of_their_own_what_turns_change_is_never_taken_for_the_agents(scene: Scene) -> None:
    scene.agent("x", "x")
    start = scene.last().id
    scene.write("mine", "before the turn")
    with scene.work(policy=MANUAL_ONLY) as work:
        session = scene.session()
        author = work.in_turn(tool_at_work=True)
        work.save(session, "manual", session_reader.position(session, session_catalogue.read(session)), author=author)
    assert _conflicts(scene, start) == ["mine"]


def _joined_by_prune(scene: Scene) -> None:
    with scene.work() as work:
        prune.remove(work, prune.to_prune(work.ledger, 1))


def _joined_one_by_one(scene: Scene) -> None:
    newest = scene.records()[-1].id
    while True:
        with scene.work() as work:
            left = [
                one for one in work.ledger.records.values() if one.id != newest and one.id not in work.ledger.labels
            ]
            if not left:
                return
            prune.remove(work, left[len(left) // 2 :][:1])


def _joined_by_deleting_a_session(scene: Scene) -> None:
    with scene.work() as work:
        plan = session_delete.plan(scene.paths, work.ledger, work.store.packs, "other")
        session_delete.delete(work, plan)
        prune.remove(work, prune.to_prune(work.ledger, 1))


_JOINED = [_joined_by_prune, _joined_one_by_one, _joined_by_deleting_a_session]


def _labelled(scene: Scene, label: str = "keep") -> None:
    with scene.work() as work:
        work.save_now(scene.session(), label)


@pytest.mark.parametrize("join", _JOINED)
@pytest.mark.parametrize("name", [NOTEBOOK, "file.txt"])
def test_a_note_of_the_users_survives_the_removal_of_the_checkpoints_around_it(
    scene: Scene, join: Callable[[Scene], None], name: str
) -> None:
    scene.agent("x", "x")
    scene.agent("y", "y", "other")
    _labelled(scene)
    scene.agent(name, "- AGENT1\n")
    scene.write(name, "- AGENT1\n- USERNOTE\n")
    with scene.work() as work:
        work.save_now(scene.session("other"))
    scene.agent(name, "- AGENT1\n- USERNOTE\n- AGENT2\n")
    join(scene)
    assert _conflicts(scene, "keep") == [name]


def test_what_the_agent_alone_noted_is_taken_back_after_a_removal_too(scene: Scene) -> None:
    scene.agent("x", "x")
    _labelled(scene)
    scene.agent(NOTEBOOK, "- AGENT1\n")
    scene.write("mine", "mine")
    scene.agent(NOTEBOOK, "- AGENT1\n- AGENT2\n")
    _joined_by_prune(scene)
    scene.write(NOTEBOOK, "- AGENT1\n- AGENT2\n- USERNOTE\n")
    scene.rewind("keep")
    assert scene.files() == {"x": "x", "mine": "mine", NOTEBOOK: "- USERNOTE\n"}


def test_removing_twice_forgets_no_author(scene: Scene) -> None:
    scene.agent("x", "x")
    _labelled(scene)
    scene.agent("shared", "agent")
    scene.write("shared", "agent, and the user")
    scene.agent("a", "a")
    _joined_by_prune(scene)
    scene.agent("b", "b")
    scene.agent("c", "c")
    _joined_by_prune(scene)
    assert _conflicts(scene, "keep") == ["shared"]


@pytest.mark.parametrize("join", [False, True])
def test_with_checkpoints_of_turns_a_note_after_a_killed_turn_is_not_the_agents(scene: Scene, join: bool) -> None:
    with scene.turn("one", policy=EVERY_TURN):
        scene.write("x", "x")
    _labelled(scene)
    scene.killed_turn("two", lambda: scene.write(NOTEBOOK, "- AGENT\n"), policy=EVERY_TURN)
    scene.write(NOTEBOOK, "- AGENT\n- USERNOTE\n")
    with scene.turn("three", policy=EVERY_TURN):
        scene.write("y", "y")
    if join:
        _joined_by_prune(scene)
    assert NOTEBOOK in _conflicts(scene, "keep")


def test_a_purge_forgets_no_author(deepctl: InProcess, home: Path) -> None:
    scene = Scene(home)
    scene.agent("x", "x")
    _labelled(scene)
    scene.agent(NOTEBOOK, "- AGENT1\n")
    scene.write(NOTEBOOK, "- AGENT1\n- USERNOTE\n")
    scene.agent(NOTEBOOK, "- AGENT1\n- USERNOTE\n- AGENT2\n")
    _joined_by_prune(scene)
    deepctl("memory", "forget", "AGENT2", "--purge", "--yes", "--user", "alice").ok()
    assert _conflicts(scene, "keep") == [NOTEBOOK]


def test_what_nobody_saw_between_two_looks_is_not_the_agents_after_a_removal(scene: Scene) -> None:
    scene.write("f", "the user's")
    scene.agent("x", "x")
    _labelled(scene)
    with scene.work(exclude=["f"]) as work:
        work.save_now(scene.session())
    scene.write("f", "the user's, edited")
    with scene.turn("agent"):
        scene.write("f", "agent")
    scene.agent("y", "y")
    _joined_by_prune(scene)
    assert _conflicts(scene, "keep") == ["f"]


def test_what_could_not_be_read_for_a_while_is_not_the_agents_after_a_removal(scene: Scene) -> None:
    def story() -> None:
        path = scene.workspace / "f"
        scene.write("f", "the user's")
        scene.agent("x", "x")
        _labelled(scene)
        with scene.turn("close"):
            path.chmod(0)
        path.chmod(0o600)
        scene.write("f", "the user's, edited")
        path.chmod(0)
        with scene.turn("open"):
            path.chmod(0o644)
        _joined_by_prune(scene)
        assert _conflicts(scene, "keep") == ["f"]

    as_ordinary(story)


def test_turns_back_are_refused_where_the_checkpoint_of_that_time_was_removed(scene: Scene) -> None:
    scene.agent("a", "1")
    end = scene.last()
    scene.write("mine", "mine")
    scene.agent("b", "2")
    after = scene.last()
    began = next(record for record in scene.records() if record.turn == 1 and record.parent == end.id)
    with scene.work() as work:
        prune.remove(work, [began])
    with pytest.raises(CheckpointNotFound, match=f"removed.*before it is {end.id}, the nearest after it is {after.id}"):
        scene.rewind("~1", exact=True)
    assert scene.files() == {"a": "1", "mine": "mine", "b": "2"}
    with scene.work() as work:
        found = lookup.find_checkpoint(scene.paths, work.ledger, "~0", "main")
        assert found.id == after.id
    scene.rewind(end.id)
    assert scene.files() == {"a": "1", "mine": "mine"}


def test_turns_back_mean_another_checkpoint_of_the_very_same_state(scene: Scene) -> None:
    scene.agent("a", "1")
    with scene.work() as work:
        first, second = work.save_now(scene.session()), work.save_now(scene.session())
    scene.agent("b", "2")
    with scene.work() as work:
        prune.remove(work, [second])
        assert lookup.find_checkpoint(scene.paths, work.ledger, "~1", "main").id == first.id


def test_what_the_user_brings_back_after_a_rewind_is_not_work_of_the_next_turn(scene: Scene) -> None:
    """The workspace then has the tree of the head, but not that of the end of the rewind."""
    scene.agent("x", "x")
    scene.write("mine", "mine")
    scene.agent("y", "y")
    scene.write("mine", None)
    scene.rewind("~1")
    scene.write("mine", "mine")
    scene.agent("z", "z")
    scene.undo()
    assert scene.files() == {"x": "x", "mine": "mine", "y": "y"}
