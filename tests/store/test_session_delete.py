"""Deleting a session: all of it goes, nothing else does, and a kill at any call leaves all of it or none."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from deepctl.errors import Damaged, Refused, SessionNotFound
from deepctl.files import rmtree
from deepctl.store import lookup, rewind, session_catalogue, session_delete, verify
from deepctl.store.session_catalogue import pending_deletions, put_away
from deepctl.store.session_delete import SessionDeletion
from tests.store.faults import FAULTS, in_child, points, sample
from tests.store.scene import Scene, leftovers

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 18
CANARY = "canary-in-a-prompt"


def _delete(scene: Scene, name: str = "gone") -> SessionDeletion:
    with scene.work() as work:
        deletion = session_delete.plan(work.paths, work.ledger, work.store.packs, name)
        return session_delete.delete(work, deletion)


def _plan(scene: Scene, name: str = "gone") -> SessionDeletion:
    with scene.work() as work:
        return session_delete.plan(work.paths, work.ledger, work.store.packs, name)


def _story(place: Path) -> Scene:
    """Two sessions that take turns in the same workspace; `gone` has labels, a rewind, a fork and the last word."""
    scene = Scene(place)
    scene.agent("a.txt", "one\n")
    with scene.turn(CANARY, "gone"):
        scene.write("g.txt", f"{os.urandom(2000).hex()}\n")
    scene.agent("b.txt", "two\n")
    scene.rewind("~1")
    scene.agent("a.txt", "three\n", "gone")
    with scene.work() as work:
        found = scene.session("gone")
        work.save_now(found, CANARY)
        record = lookup.find_checkpoint(scene.paths, work.ledger, "~1", "gone")
        work.fork(record, "fork")
    scene.agent("g.txt", "four\n", "gone")
    scene.rewind("~1", "gone")
    return scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return _story(tmp_path / "root")


def _files_with(scene: Scene, text: str) -> list[str]:
    return [
        str(path.relative_to(scene.paths.directory))
        for path in Path(scene.paths.directory).rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def _check_whole(scene: Scene) -> None:
    """Nothing is damaged, nothing is left lying about, and every checkpoint is read in full."""
    verified = verify.verify(scene.paths)
    assert (verified.problems, verified.notes) == ([], [])
    assert leftovers(scene.paths) == []
    assert pending_deletions(scene.paths) == {}
    found = session_catalogue.read_ledger(scene.paths)
    assert lookup.structural_damage(scene.paths, found) == []
    for record in found.records.values():
        assert len(lookup.conversation_at(scene.paths, record).messages) == record.message_count


def test_what_goes_is_told_before(scene: Scene) -> None:
    plan = _plan(scene)
    own = [record for record in scene.records() if record.session == scene.session("gone").id]
    assert (plan.session, plan.turns, plan.message_count) == ("gone", 2, 8)
    assert plan.records == own
    assert set(plan.labels.values()) == {CANARY}
    assert plan.forks == ["fork"]
    assert plan.problem is None
    assert _plan(scene) == plan, "telling changes nothing"


def test_everything_of_it_goes_and_the_workspace_stays(scene: Scene) -> None:
    plan, before = _plan(scene), scene.files()
    size = _bytes(scene)
    _delete(scene)
    assert session_catalogue.all_names(scene.paths) == ["fork", "main"]
    assert not {record.id for record in scene.records()} & {record.id for record in plan.records}
    assert session_catalogue.read_ledger(scene.paths).labels == {}
    assert scene.files() == before
    _check_whole(scene)
    assert plan.bytes > 0
    assert size - _bytes(scene) > 0


def _bytes(scene: Scene) -> int:
    places = [Path(scene.paths.sessions), Path(scene.paths.packs)]
    return sum(path.stat().st_size for place in places for path in place.rglob("*") if path.is_file())


def test_nothing_that_was_said_in_it_stays_in_any_file(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "one\n")
    with scene.turn(CANARY, "gone"):
        pass
    with scene.work() as work:
        work.save_now(scene.session("gone"), f"{CANARY}-label")
        work.label(scene.records()[0], f"{CANARY}-other")
        work.label(scene.last(), f"{CANARY}-later")
    scene.agent("a.txt", "two\n")
    assert len(_files_with(scene, CANARY)) >= 3
    _delete(scene)
    left = _files_with(scene, CANARY)
    assert {os.path.basename(path) for path in left} <= {"ledger.jsonl", "index"}, "the label of another session's"
    assert Path(scene.paths.checkpoints, "ledger.jsonl").read_text().count(CANARY) == 1
    _check_whole(scene)


def test_bytes_foretold_are_those_of_the_files_that_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("keep.txt", "kept\n")
    with scene.turn("big", "gone"):
        scene.write("big.bin", os.urandom(100_000).hex())
    scene.agent("big.bin", None, "gone")
    scene.agent("keep.txt", "still\n")
    plan, before = _plan(scene), _bytes(scene)
    assert plan.bytes > 50_000
    _delete(scene)
    assert abs(before - _bytes(scene) - plan.bytes) < 2000, "what is repacked has a frame of its own"


def test_the_other_session_is_undone_and_rewound_as_before(scene: Scene) -> None:
    with scene.work() as work:
        undone = rewind.undo_request(work.ledger, scene.session("main"))
    _delete(scene)
    done = scene.undo()
    assert done.plan.request.to == undone.to
    assert scene.files()["b.txt"] == "two\n"
    scene.undo()
    assert "b.txt" not in scene.files()
    scene.agent("c.txt", "five\n")
    scene.rewind("~1")
    assert "c.txt" not in scene.files()
    _check_whole(scene)


def test_what_the_deleted_session_changed_counts_as_somebody_elses(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "main's\n")
    scene.agent("a.txt", "the other's\n", "gone")
    scene.agent("b.txt", "the other's\n", "gone")
    scene.agent("c.txt", "main's\n")
    _delete(scene)
    with pytest.raises(rewind.RewindConflicts) as error:
        scene.rewind("~2")
    assert error.value.paths == [b"a.txt"]
    scene.rewind("~1")
    assert scene.files() == {"a.txt": "the other's\n", "b.txt": "the other's\n"}


def test_a_fork_of_it_keeps_its_conversation_and_its_checkpoints(scene: Scene) -> None:
    before = scene.prompts("fork")
    scene.agent("f.txt", "fork's\n", "fork")
    _delete(scene)
    assert scene.prompts("fork") == [*before, "write f.txt fork's\n"]
    scene.rewind("~1", "fork")
    assert scene.prompts("fork") == before
    assert "f.txt" not in scene.files()
    scene.undo("fork")
    _check_whole(scene)


def test_deleting_a_fork_leaves_what_it_was_forked_from(scene: Scene) -> None:
    before, records = scene.prompts("gone"), scene.records()
    _delete(scene, "fork")
    assert scene.prompts("gone") == before
    assert scene.records() == records
    scene.undo("gone")
    _check_whole(scene)


def test_the_only_session_goes_and_a_new_one_begins(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "one\n")
    _delete(scene, "MAIN")
    assert (session_catalogue.all_names(scene.paths), scene.records()) == ([], [])
    scene.agent("a.txt", "two\n")
    scene.rewind("~1")
    assert scene.files() == {"a.txt": "one\n"}
    _check_whole(scene)


def test_what_there_is_not_is_not_deleted(scene: Scene) -> None:
    with pytest.raises(SessionNotFound):
        _delete(scene, "nothing")
    assert sorted(session_catalogue.all_names(scene.paths)) == ["fork", "gone", "main"]


def test_what_has_changed_since_somebody_was_asked_is_not_deleted(scene: Scene) -> None:
    asked = _plan(scene)
    session_delete.check_same(asked, _plan(scene))
    scene.agent("z.txt", "more\n", "gone")
    with pytest.raises(Refused) as error:
        session_delete.check_same(asked, _plan(scene))
    assert error.value.code == "changed"


@pytest.mark.parametrize("damage", ["record", "log", "nothing left", "line"])
def test_a_damaged_session_can_be_deleted_with_its_checkpoints(scene: Scene, damage: str) -> None:
    session = scene.session("gone")
    own = {record.id for record in scene.records() if record.session == session.id}
    directory = Path(session.directory)
    if damage in ("record", "nothing left"):
        (directory / "session.json").write_bytes(b"rubbish")
    if damage in ("log", "nothing left"):
        for path in directory.glob("*.jsonl"):
            path.unlink()
    if damage == "line":
        path = directory / f"{session.log}.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"v":1', b'"v":9'))
    plan = _plan(scene)
    assert (plan.problem is not None) == (damage in ("log", "nothing left")), "a record is written anew"
    assert bool(own & {record.id for record in plan.records}) == (damage != "nothing left")
    _delete(scene)
    assert session_catalogue.all_names(scene.paths) == ["fork", "main"]
    assert bool(own & {record.id for record in scene.records()}) == (damage == "nothing left")


def test_deleting_a_copy_of_a_session_leaves_the_checkpoints_of_the_session(scene: Scene) -> None:
    records = scene.records()
    shutil.copytree(scene.session("gone").directory, os.path.join(scene.paths.sessions, "copy"))
    assert _plan(scene, "copy").records == []
    _delete(scene, "copy")
    assert scene.records() == records
    _check_whole(scene)


def test_damage_of_what_stays_keeps_contents_and_nothing_else(scene: Scene) -> None:
    for path in Path(scene.paths.packs).iterdir():
        raw = bytearray(path.read_bytes())
        raw[20] ^= 255
        path.write_bytes(bytes(raw))
    with scene.work() as work:
        work.store.packs.forget()
    packs = set(os.listdir(scene.paths.packs))
    plan = _plan(scene)
    _delete(scene)
    assert session_catalogue.all_names(scene.paths) == ["fork", "main"]
    assert not {record.id for record in scene.records()} & {record.id for record in plan.records}
    assert pending_deletions(scene.paths) == {}
    assert packs & set(os.listdir(scene.paths.packs)), "unreadable never means deletable"


def test_what_cannot_be_removed_yet_blocks_nothing_and_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene.work() as work:
        deletion = session_delete.plan(work.paths, work.ledger, work.store.packs, "gone")
        put_away(work.paths, "gone", deletion.id)

    def broken(path: str) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patched:
        patched.setattr(rmtree, "remove_tree", broken)
        with scene.work() as work:
            assert ["not been removed completely" in note for note in work.notes] == [True]
        assert pending_deletions(scene.paths)
    with scene.work() as work:
        assert work.notes == ["An interrupted deletion of a session has been finished."]
    _check_whole(scene)


class State(NamedTuple):
    """Everything that must be old or new."""

    names: tuple[str, ...]
    checkpoints: tuple[str, ...]
    labels: tuple[str, ...]
    prompts: tuple[str, ...]
    files: str


def _seen(scene: Scene) -> State:
    """What readers see, without the lock, at any time."""
    found = session_catalogue.read_ledger(scene.paths)
    names = tuple(session_catalogue.all_names(scene.paths))
    prompts = tuple(text for name in names for text in scene.prompts(name))
    return State(names, tuple(found.records), tuple(found.labels.values()), prompts, str(scene.files()))


@pytest.mark.timeout(3600)
def test_after_any_fault_the_session_is_there_or_deleted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _story(tmp_path / "story")
    old = _seen(_copy(tmp_path, "old"))
    scene = _copy(tmp_path, "new")
    every = points(lambda: _delete(scene))
    new = _seen(scene)
    assert old != new
    seen: set[State] = set()
    chosen = every if _SOAK else sample(every, "delete", _SAMPLE)
    for at, call, fault in chosen:
        scene = _copy(tmp_path, "try")
        said = in_child(lambda: _delete(scene), at, FAULTS[fault])  # noqa: B023 (called here and now)
        where = f"{fault} at call {at}, {call}: {said}"
        assert "\n" not in said, where
        assert (said == "killed") == (fault == "SIGKILL"), where
        before = _seen(scene)
        assert before in (old, new), f"{where}: readers see halves"
        damage = lookup.structural_damage(scene.paths, session_catalogue.read_ledger(scene.paths))
        assert damage == [], f"{where}: readers see damage"
        with scene.work() as work:
            assert work.ledger.records
        assert _seen(scene) == before, f"{where}: opening changed what there is"
        assert said != "done" or before == new, where
        _check_whole(scene)
        seen.add(before)
    with capfd.disabled():
        print(f" delete: {len(chosen)} of {len(every)} points tried", end="")
    assert seen == {old, new}


def _copy(tmp_path: Path, name: str) -> Scene:
    place = tmp_path / name
    if place.exists():
        shutil.rmtree(place)
    # With the hard links between a session and its fork.
    os.system(f"cp -a {tmp_path / 'story'} {place}")
    return Scene(place)


def test_a_session_that_nobody_can_tell_apart_is_not_deleted(scene: Scene) -> None:
    for name in ("gone", "fork"):
        Path(scene.session(name).directory, "session.json").write_bytes(b"rubbish")
    scene.agent("y.txt", "more\n")
    with scene.work() as work:
        try:
            plan = session_delete.plan(work.paths, work.ledger, work.store.packs, "gone")
        except Damaged:
            return
    assert {record.session for record in plan.records} <= {plan.id}


def test_what_was_said_after_a_fork_does_not_stay_in_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "one\n", "gone")
    with scene.work() as work:
        record = lookup.find_checkpoint(scene.paths, work.ledger, "~0", "gone")
        work.fork(record, "fork")
    before = scene.prompts("fork")
    with scene.turn(CANARY, "gone"):
        pass
    assert any(name.startswith("sessions/fork/") for name in _files_with(scene, CANARY)), "they share a log"
    _delete(scene)
    assert _files_with(scene, CANARY) == []
    assert scene.prompts("fork") == before
    scene.agent("f.txt", "fork's\n", "fork")
    scene.rewind("~1", "fork")
    assert scene.prompts("fork") == before
    _check_whole(scene)
