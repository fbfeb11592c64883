"""A rewind takes the agent's own work back, and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.store import restore, rewind_plan, trees
from deepctl.store.rewind_plan import Interval, RewindChanges
from deepctl.store.trees import ScratchWriter
from tests.store.test_trees import _STEPS, Work, _edit


class Story(Work):
    """A workspace that the agent and somebody else change in turn."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self.intervals: list[Interval] = []
        self.now = self.snapshot().tree

    def happened(self, *, own: bool) -> None:
        """Whatever changed since the last snapshot was done by the agent (`own`) or by somebody else."""
        before, self.now = self.now, self.snapshot().tree
        self.intervals.append(Interval(before, self.now, "s1" if own else ""))

    def agent(self, name: str, content: str | None) -> None:
        self._write(name, content)
        self.happened(own=True)

    def user(self, name: str, content: str | None) -> None:
        self._write(name, content)
        self.happened(own=False)

    def _write(self, name: str, content: str | None) -> None:
        path = self.root / name
        if content is None:
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def plan(self) -> RewindChanges:
        return rewind_plan.own_work(self.objects, self.intervals, self.now, "s1", ScratchWriter(self.objects))

    def rewind(self) -> list[bytes]:
        """Do it, in spite of conflicts; returns those. What comes out is what was foretold."""
        with self.objects.new_batch() as batch:
            planned = rewind_plan.own_work(self.objects, self.intervals, self.now, "s1", batch)
            foretold = trees.patch(self.objects, batch, self.now, planned.changes)
        restore.working_tree(str(self.root), self.objects).apply(planned.changes)
        assert self.snapshot().tree == foretold
        return planned.conflict_paths

    def files(self) -> dict[str, str]:
        return {str(path.relative_to(self.root)): path.read_text() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    opened = Story(tmp_path)
    yield opened
    opened.cache.close()


def test_the_agents_changes_are_taken_back_and_the_users_stay(story: Story) -> None:
    story.user("mine.txt", "first")
    story.intervals.clear()
    story.agent("a.txt", "agent")
    story.user("mine.txt", "second")
    story.agent("deep/down/b.txt", "agent")
    story.user("new.txt", "user")
    assert story.rewind() == []
    assert story.files() == {"mine.txt": "second", "new.txt": "user"}
    assert not (story.root / "deep").exists()


def test_what_the_user_wrote_before_the_agent_overwrote_it_comes_back(story: Story) -> None:
    story.agent("a.txt", "one")
    story.intervals.clear()
    story.user("a.txt", "the user's")
    story.agent("a.txt", "two")
    story.agent("a.txt", "three")
    assert story.rewind() == []
    assert story.files() == {"a.txt": "the user's"}


@pytest.mark.parametrize("later", ["the user's", None])
def test_what_somebody_changed_after_the_agent_is_a_conflict(story: Story, later: str | None) -> None:
    story.agent("a.txt", "agent")
    story.agent("b.txt", "agent")
    story.user("a.txt", later)
    if later is None:
        assert story.plan().conflict_paths == [], "it is gone, as it was before: nothing is lost"
    else:
        assert story.plan().conflict_paths == [b"a.txt"]
    story.rewind()
    assert story.files() == {}


def test_the_user_undoing_it_by_hand_is_no_conflict(story: Story) -> None:
    story.user("a.txt", "before")
    story.intervals.clear()
    story.agent("a.txt", "agent")
    story.user("a.txt", "before")
    assert story.plan() == RewindChanges([], [])


def test_damage_done_by_a_shell_command_is_taken_back_too(story: Story) -> None:
    for name in ("a.txt", "d/b.txt", "d/e/c.txt"):
        story.user(name, name)
    os.chmod(story.root / "d/b.txt", 0o600)
    story.happened(own=False)
    before = story.real()
    story.intervals.clear()
    (story.root / "a.txt").rename(story.root / "moved.txt")
    for path in sorted((story.root / "d").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (story.root / "d").rmdir()
    (story.root / "d").write_text("now a file")
    story.happened(own=True)
    assert story.rewind() == []
    assert story.real() == before


def test_a_file_of_the_users_in_a_directory_of_the_agents_keeps_the_directory(story: Story) -> None:
    story.agent("d/a.txt", "agent")
    story.user("d/mine.txt", "user")
    assert story.rewind() == []
    assert story.files() == {"d/mine.txt": "user"}


@pytest.mark.parametrize("has_users_file", [True, False])
def test_a_file_whose_place_has_a_directory_comes_back_or_is_a_conflict(story: Story, has_users_file: bool) -> None:
    story.user("place", "the user's")
    (story.root / "place").unlink()
    story.agent("place/inner", "the agent's")
    if not has_users_file:
        assert story.rewind() == []
        assert story.files() == {"place": "the user's"}
        return
    story.user("place/mine", "the user's")
    assert story.plan().conflict_paths == [b"place"]


def test_a_directory_that_somebody_took_away_is_a_conflict_for_what_was_in_it(story: Story) -> None:
    story.user("d/a.txt", "x")
    story.intervals.clear()
    story.agent("d/a.txt", None)
    (story.root / "d").rmdir()
    story.happened(own=False)
    assert story.plan().conflict_paths == [b"d/a.txt"]


def test_only_what_is_wanted_is_planned(story: Story) -> None:
    story.agent(".deep/memory/main/MEMORY.md", "- note")
    story.agent("a.txt", "agent")
    planned = rewind_plan.own_work(
        story.objects,
        story.intervals,
        story.now,
        "s1",
        ScratchWriter(story.objects),
        is_selected=lambda path: path.startswith(b".deep/memory/"),
    )
    restore.working_tree(str(story.root), story.objects).apply(planned.changes)
    assert story.files() == {"a.txt": "agent"}


_NOTEBOOK = ".deep/memory/main/MEMORY.md"


def test_a_note_added_by_hand_stays_while_the_agents_notes_go(story: Story) -> None:
    story.user(_NOTEBOOK, "- old\n")
    story.intervals.clear()
    story.agent(_NOTEBOOK, "- old\n- first of the agent\n")
    story.user(_NOTEBOOK, "# Mine\n- old\n- first of the agent\n")
    story.agent(_NOTEBOOK, "# Mine\n- old\n- first of the agent\n- second of the agent\n")
    story.user(_NOTEBOOK, "# Mine, really\n- old\n- first of the agent\n- second of the agent\n")
    assert story.rewind() == []
    assert story.files() == {_NOTEBOOK: "# Mine, really\n- old\n"}


def test_a_notebook_that_only_the_agent_began_goes_unless_somebody_wrote_into_it(story: Story) -> None:
    story.agent(_NOTEBOOK, "- agent\n")
    story.user(_NOTEBOOK, "- agent\n\n- mine\n")
    assert story.rewind() == []
    assert story.files() == {_NOTEBOOK: "\n- mine\n"}


def test_lines_that_collide_are_a_conflict(story: Story) -> None:
    story.user(_NOTEBOOK, "- old\n")
    story.intervals.clear()
    story.agent(_NOTEBOOK, "- agent\n")
    story.user(_NOTEBOOK, "- agent, corrected\n")
    assert story.plan().conflict_paths == [_NOTEBOOK.encode()]


def test_after_a_killed_turn_nobody_can_tell_so_everything_is_a_conflict(story: Story) -> None:
    story.user("a.txt", "before")
    story.intervals.clear()
    story.user("a.txt", "after")
    story.intervals[-1] = story.intervals[-1]._replace(by=None)
    assert story.plan().conflict_paths == [b"a.txt"]
    story.rewind()
    assert story.files() == {"a.txt": "before"}


def test_merged_intervals_tell_the_authors_path_by_path(story: Story) -> None:
    for name in ("agents", "users", "both"):
        story.user(name, "before")
    story.intervals.clear()
    for name in ("agents", "users", "both"):
        story.agent(name, "after")
    first, last = story.intervals[0], story.intervals[-1]
    told = [("s1", frozenset({b"agents", b"both"})), ("", frozenset({b"users", b"both"}))]
    story.intervals = [Interval(first.before, last.after, "s1", told)]
    assert story.plan().conflict_paths == [b"both"]
    story.rewind()
    assert story.files() == {"agents": "before", "users": "after", "both": "before"}


def test_what_a_snapshot_did_not_look_at_is_never_taken_back(story: Story) -> None:
    story.agent("hidden/file", "was there, but could not be read")
    story.intervals[-1] = story.intervals[-1]._replace(hidden=rewind_plan.hidden_by([["hidden", "no permission"]], ()))
    assert story.plan().blocked_paths == [b"hidden", b"hidden/file"]
    assert story.rewind() == []
    assert story.files() == {"hidden/file": "was there, but could not be read"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS, st.lists(st.tuples(st.booleans(), _STEPS), max_size=4))
def test_in_places_apart_the_agents_goes_back_exactly_and_the_users_stays_exactly(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, list[str], list[str], bytes]],
    rounds: list[tuple[bool, list[tuple[str, list[str], list[str], bytes]]]],
) -> None:
    story = Story(tmp_path_factory.mktemp("plan"))
    places = {True: story.root / "agents", False: story.root / "users"}
    for place in places.values():
        place.mkdir()
        for step in before:
            _edit(place, step)
    story.happened(own=False)
    story.intervals.clear()
    agents = {path: kept for path, kept in story.real().items() if path.startswith(b"agents")}
    for own, steps in rounds:
        for step in steps:
            _edit(places[own], step)
        story.happened(own=own)
    users = {path: kept for path, kept in story.real().items() if path.startswith(b"users")}
    assert story.rewind() == []
    assert story.real() == {**agents, **users}
    assert story.plan().conflict_paths == []
    story.cache.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS, st.lists(_STEPS, max_size=4))
def test_where_nobody_else_changed_anything_the_tree_is_the_targets(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[str, list[str], list[str], bytes]],
    rounds: list[list[tuple[str, list[str], list[str], bytes]]],
) -> None:
    story = Story(tmp_path_factory.mktemp("plan"))
    for step in before:
        _edit(story.root, step)
    story.happened(own=False)
    story.intervals.clear()
    target = story.now
    for steps in rounds:
        for step in steps:
            _edit(story.root, step)
        story.happened(own=True)
    assert story.rewind() == []
    assert story.snapshot().tree == target
    story.cache.close()
