"""Any story of turns, edits, rewinds, undos and forks, against a model kept in memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from deepctl.store import log_file, lookup, prune, rewind, session_catalogue, verify
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.rewind import RewindRequest
from tests.store.scene import Scene, leftovers
from tests.store.test_trees import _STEPS, Model, _edit, real

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"


class Remembered:
    """What the whole was at a checkpoint: files and prompts."""

    def __init__(self, files: Model, prompts: list[str]) -> None:
        self.files = files
        self.prompts = prompts


class Stories(RuleBasedStateMachine):
    """Nobody else edits anything here, so every rewind leads exactly to where the checkpoint was."""

    place: Path

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(self.place / os.urandom(6).hex())
        self.known: dict[str, Remembered] = {}
        self.before_rewind: dict[str, list[Remembered]] = {}
        self.sessions = ["main"]
        self.turns = 0
        self._learn()

    def _now(self, session: str) -> Remembered:
        return Remembered(real(self.scene.workspace), self.scene.prompts(session))

    def _learn(self) -> None:
        """Remember checkpoints that are new: each is of now, or was made in the turn that has just ended."""
        for record in self.scene.records():
            if record.id not in self.known and record.kind != "tool":
                session = session_catalogue.by_id(self.scene.paths)[record.session]
                self.known[record.id] = self._now(session)

    @rule(steps=_STEPS, number=st.integers(0, 5))
    def turn(self, steps: list[tuple[str, list[str], list[str], bytes]], number: int) -> None:
        session = self.sessions[number % len(self.sessions)]
        before = self._now(session)
        self.turns += 1
        known = set(self.known)
        with self.scene.turn(f"turn {self.turns}", session):
            for record in self.scene.records():
                if record.kind != "tool":
                    self.known.setdefault(record.id, before)
            for step in steps:
                _edit(self.scene.workspace, step)
        self._learn()
        assert len(self.known) > len(known)
        self.before_rewind.pop(session, None)

    @precondition(lambda self: len(self.sessions) == 1 and self.turns)
    @rule(pick=st.integers(0, 1000))
    def rewind(self, pick: int) -> None:
        target = self._pick(pick)
        if target is None:
            return
        before = self._now("main")
        untouched = _status(self.scene.workspace)
        done = self.scene.rewind(target, "main")
        wanted = self.known[target]
        after = self._now("main")
        assert (after.files, after.prompts) == (wanted.files, wanted.prompts)
        changed = {os.fsencode(path) for path in done.restored_paths + done.deleted_paths}
        for path, status in _status(self.scene.workspace).items():
            if path not in changed and path in untouched:
                assert status == untouched[path], path
        if done.safety is not None:
            self.known[done.safety.id] = before
            self.before_rewind["main"] = [before, after]

    @precondition(lambda self: "main" in self.before_rewind and len(self.sessions) == 1)
    @rule()
    def undo(self) -> None:
        before, after = self.before_rewind["main"]
        now = self._now("main")
        done = self.scene.undo()
        found = self._now("main")
        assert (found.files, found.prompts) == (before.files, before.prompts)
        assert done.safety is not None
        self.known[done.safety.id] = now
        self.before_rewind["main"] = [after, before]

    @precondition(lambda self: self.turns and len(self.sessions) < 3)
    @rule(pick=st.integers(0, 1000))
    def fork(self, pick: int) -> None:
        target = self._pick(pick)
        if target is None:
            return
        name = f"fork-{len(self.sessions)}"
        with self.scene.work() as work:
            record = work.ledger.records[target]
            work.fork(record, name)
        self.sessions.append(name)
        assert self.scene.prompts(name) == self.known[target].prompts

    @precondition(lambda self: self.turns > 2)
    @rule(keep=st.integers(1, 6))
    def prune(self, keep: int) -> None:
        with self.scene.work() as work:
            going = prune.to_prune(work.ledger, keep)
            prune.remove(work, going)
        for record in going:
            self.known.pop(record.id, None)

    def _pick(self, pick: int) -> str | None:
        there = [record.id for record in self.scene.records() if record.id in self.known]
        return there[pick % len(there)] if there else None

    @invariant()
    def no_reference_is_lost(self) -> None:
        reader = ReadOnlyRepository(self.scene.paths)
        for identity, remembered in self.known.items():
            record = reader.ledger.records[identity]
            messages = lookup.conversation_at(self.scene.paths, record).messages
            prompts = [text for entry in messages if (text := log_file.prompt(entry.message)) is not None]
            assert prompts == remembered.prompts
            assert record.tree
        reader.close()
        verified = verify.verify(self.scene.paths)
        assert verified.problems == []
        assert leftovers(self.scene.paths) == []


def _status(root: Path) -> dict[bytes, tuple[int, int]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if not path.is_dir() or path.is_symlink():
            found[os.fsencode(path.relative_to(root))] = (status.st_ino, status.st_mtime_ns)
    return found


@pytest.mark.timeout(3600)
def test_every_rewind_leads_exactly_to_where_the_checkpoint_was(tmp_path: Path) -> None:
    Stories.place = tmp_path
    chosen = settings(
        max_examples=600 if _SOAK else 25,
        stateful_step_count=25 if _SOAK else 12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Stories, settings=chosen)


@settings(max_examples=200 if _SOAK else 25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.booleans(), _STEPS), min_size=1, max_size=5))
def test_whoever_edits_what_exact_and_undo_are_exact(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[tuple[bool, list[tuple[str, list[str], list[str], bytes]]]],
) -> None:
    scene = Scene(tmp_path_factory.mktemp("exact"))
    scene.agent("first", "x")
    target, then = scene.last(), real(scene.workspace)
    for own, steps in rounds:
        if own:
            with scene.turn("agent"):
                for step in steps:
                    _edit(scene.workspace, step)
        else:
            for step in steps:
                _edit(scene.workspace, step)
    now = real(scene.workspace)
    if scene.rewind(target.id, exact=True).safety is not None:
        assert real(scene.workspace) == then
        scene.undo()
    assert real(scene.workspace) == now
    try:
        done = scene.rewind(target.id)
    except rewind.RewindConflicts:
        assert real(scene.workspace) == now, "nothing is touched where there is a conflict"
    else:
        if done.safety is not None:
            scene.undo()
        assert real(scene.workspace) == now
    assert verify.verify(scene.paths).problems == []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_forced_rewind_keeps_the_edit_it_overrides(scene: Scene) -> None:
    scene.agent("a.txt", "agent")
    scene.agent("a.txt", "agent again")
    scene.write("a.txt", "mine")
    with scene.work() as work:
        target = lookup.find_checkpoint(scene.paths, work.ledger, "~1", "main")
        with pytest.raises(rewind.RewindConflicts):
            rewind.run(work, scene.session(), RewindRequest(target))
        rewind.run(work, scene.session(), RewindRequest(target, force=True))
    assert scene.files() == {"a.txt": "agent"}
    scene.undo()
    assert scene.files() == {"a.txt": "mine"}
