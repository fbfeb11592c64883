"""Changes to notebooks by hand: whose they are, what a rewind makes of them, and that nothing is lost on the way."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deepctl.domain.memory import changes, history
from deepctl.domain.memory.changes import Collision, ForgottenLines, MemoryChange
from deepctl.domain.memory.directory import Memory, MemoryChanged, forget_request
from deepctl.errors import Refused
from deepctl.store import session_log
from deepctl.store.records import OTHER
from deepctl.store.repository import Repository
from tests.store.faults import count, failing, in_child, kill
from tests.store.scene import Scene, leftovers

_PLACE = ".deep/memory/main/MEMORY.md"
_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_SAMPLE = 18


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "root")


def _content(scene: Scene, place: str = _PLACE) -> bytes:
    return (scene.workspace / place).read_bytes()


def _add(scene: Scene, note: bytes, file: str = "MEMORY.md", **options: str) -> MemoryChange:
    with scene.work(**options) as work:
        return changes.add(work, Memory(scene.paths), file, note)


def _replace(scene: Scene, base: bytes | None, edited: bytes) -> MemoryChange:
    with scene.work() as work:
        return changes.replace(work, Memory(scene.paths), "MEMORY.md", base, edited)


def _forget(scene: Scene, text: str, file: str | None = None) -> ForgottenLines:
    memory = Memory(scene.paths)
    wish = forget_request(text, file, ignore_case=False)
    lines = changes.lines_to_forget(memory, wish)
    with scene.work() as work:
        return changes.forget(work, memory, wish, lines)


def _remember(scene: Scene, note: str) -> None:
    """A turn in which the agent appends a note."""
    with scene.turn(f"remember {note}"):
        (scene.workspace / _PLACE).parent.mkdir(parents=True, exist_ok=True)
        with open(scene.workspace / _PLACE, "a") as file:
            file.write(f"- {note}\n")


# Whose a change by hand is


@pytest.mark.parametrize("policy", ["every_tool", "every_turn"])
@pytest.mark.parametrize("note", [b"by hand", b"crlf\r\nsecond \xff line\r\n"])
def test_a_note_by_hand_outlives_a_rewind_of_the_agents_turns_byte_for_byte(
    scene: Scene, note: bytes, policy: str
) -> None:
    _remember(scene, "one")
    _add(scene, note, policy=policy)
    before = _content(scene)
    _remember(scene, "two")
    assert _content(scene) == before + b"- two\n"
    scene.rewind("~1")
    assert _content(scene) == before


def test_a_note_by_hand_after_the_agents_outlives_their_rewind(scene: Scene) -> None:
    _remember(scene, "one")
    _remember(scene, "two")
    change = _add(scene, b"by hand")
    assert change.checkpoint is not None
    assert (change.checkpoint.kind, change.checkpoint.author) == ("manual", OTHER)
    scene.rewind("~1")
    assert _content(scene) == b"- one\nby hand\n"
    scene.undo()
    assert _content(scene) == b"- one\n- two\nby hand\n"


def test_a_note_after_a_killed_turn_is_the_users_and_the_turn_the_agents(scene: Scene) -> None:
    _remember(scene, "one")
    session = scene.session()
    writer = session_log.LogWriter(session.directory, session.log, 2)
    writer.message({"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "killed"}]})
    writer.close()
    (scene.workspace / "half-done.txt").write_text("half")
    change = _add(scene, b"by hand")
    *_, ended, by_hand = scene.records()
    assert (ended.kind, ended.author) == ("turn", "unknown")
    assert (by_hand, by_hand.author) == (change.checkpoint, OTHER)
    with Repository.read_only(scene.paths) as reader:
        at_end = history.notebook_at(reader, Memory(scene.paths), "MEMORY.md", ended)
    assert at_end.content == b"- one\n"


def test_without_a_session_or_where_checkpoints_are_made_by_hand_a_note_makes_none(scene: Scene) -> None:
    assert _add(scene, b"first").checkpoint is None
    assert scene.records() == []
    _remember(scene, "one")
    before = scene.records()
    assert _add(scene, b"second", policy="manual_only").checkpoint is None
    assert scene.records() == before
    assert _content(scene) == b"first\n- one\nsecond\n"


def test_a_note_is_kept_where_the_latest_session_is_damaged(scene: Scene) -> None:
    _remember(scene, "one")
    with scene.turn("other", "second"):
        pass
    broken = scene.session("second")
    Path(broken.directory, "session.json").write_bytes(b"garbage\n")
    for name in ("a", "b"):
        Path(broken.directory, f"{name * 16}.jsonl").write_bytes(b"")
    change = _add(scene, b"by hand")
    assert change.checkpoint is not None
    # Its record was made anew from the ledger.
    assert change.checkpoint.session == broken.id


# Editing


@pytest.mark.parametrize(
    ("base", "edited", "now", "merged"),
    [
        (b"a\nb\nc\n", b"A\nb\nc\n", b"a\nb\nC\n", b"A\nb\nC\n"),
        (b"a\nb\nc\n", b"a\nb\nc\nmine\n", b"a\nb\nc\ntheirs\n", b"a\nb\nc\nmine\ntheirs\n"),
        (b"a\r\nb\r\n", b"a\r\nmine\xff\r\nb\r\n", b"a\r\nb\r\ntheirs", b"a\r\nmine\xff\r\nb\r\ntheirs"),
        (None, b"mine\n", b"theirs\n", b"mine\ntheirs\n"),
        (b"a\n", b"same\n", b"same\n", b"same\n"),
    ],
)
def test_an_edit_is_merged_with_what_others_did_meanwhile(
    scene: Scene, base: bytes | None, edited: bytes, now: bytes, merged: bytes
) -> None:
    _remember(scene, "one")
    (scene.workspace / _PLACE).write_bytes(now)
    change = _replace(scene, base, edited)
    assert _content(scene) == merged
    assert change.merged == (merged not in (edited, now))


@pytest.mark.parametrize("now", [b"a\nTHEIRS\nc\n", None])
def test_an_edit_of_lines_that_somebody_else_changed_is_refused(scene: Scene, now: bytes | None) -> None:
    _remember(scene, "one")
    path = scene.workspace / _PLACE
    path.unlink() if now is None else path.write_bytes(now)
    before = scene.records()
    with pytest.raises(Collision):
        _replace(scene, b"a\nb\nc\n", b"a\nMINE\nc\n")
    assert (path.read_bytes() if path.exists() else None) == now
    assert scene.records() == before


# Forgetting


def test_what_was_forgotten_comes_back_byte_for_byte(scene: Scene) -> None:
    _remember(scene, "one")
    odd = b"tea\r\nkept \xff\r\n \x0ctea\xfe\n\nlast tea"
    (scene.workspace / _PLACE).write_bytes(odd)
    (scene.workspace / ".deep/memory/main/trip.md").write_bytes(b"tea")
    (scene.workspace / "tea.txt").write_text("tea")
    done = _forget(scene, "tea")
    assert [(line.file, line.line) for line in done.lines] == [
        ("MEMORY.md", 1),
        ("MEMORY.md", 3),
        ("MEMORY.md", 5),
        ("trip.md", 1),
    ]
    assert _content(scene) == b"kept \xff\r\n\n"
    assert _content(scene, ".deep/memory/main/trip.md") == b""
    assert _content(scene, "tea.txt") == b"tea"
    assert done.undoable
    scene.rewind(done.before.id, only="memory", exact=True)
    assert _content(scene) == odd
    assert _content(scene, ".deep/memory/main/trip.md") == b"tea"


def test_forgetting_begins_a_session_where_there_is_none(scene: Scene) -> None:
    _add(scene, b"tea")
    done = _forget(scene, "tea")
    assert done.session == "main"
    assert [record.id for record in scene.records()] == [done.before.id, done.after.id if done.after else None]
    scene.rewind(done.before.id, only="memory", exact=True)
    assert _content(scene) == b"tea\n"


def test_nothing_is_forgotten_that_the_user_has_not_seen(scene: Scene) -> None:
    _add(scene, b"tea")
    memory = Memory(scene.paths)
    wish = forget_request("tea", None, ignore_case=False)
    seen = changes.lines_to_forget(memory, wish)
    _add(scene, b"more tea")
    with scene.work() as work, pytest.raises(Refused) as refused:
        changes.forget(work, memory, wish, seen)
    assert refused.value.code == "memory_changed"
    assert _content(scene) == b"tea\nmore tea\n"
    assert scene.records() == []


def test_a_notebook_that_changes_while_the_checkpoint_is_made_stays(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    _add(scene, b"tea")
    memory = Memory(scene.paths)
    wish = forget_request("tea", None, ignore_case=False)
    with scene.work() as work:
        save_now = work.save_now

        def disturbed(*arguments: object) -> object:
            (scene.workspace / _PLACE).write_bytes(b"tea\nby an editor\n")
            return save_now(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(work, "save_now", disturbed)
        with pytest.raises(MemoryChanged):
            changes.forget(work, memory, wish, changes.lines_to_forget(memory, wish))
    assert _content(scene) == b"tea\nby an editor\n"


def test_forgetting_says_so_where_checkpoints_leave_memory_out(scene: Scene) -> None:
    _add(scene, b"tea")
    memory = Memory(scene.paths)
    wish = forget_request("tea", None, ignore_case=False)
    assert not changes.can_undo(memory, [".deep/"])
    with scene.work(exclude=[".deep/"]) as work:
        done = changes.forget(work, memory, wish, changes.lines_to_forget(memory, wish))
    assert not done.undoable
    assert changes.undo_command("alice", done) is None
    assert _content(scene) == b""


# Killed, or failing, at any call to the file system


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("story")
    scene = Scene(place)
    _remember(scene, "tea")
    (scene.workspace / ".deep/memory/main/trip.md").write_bytes(b"Lisbon\r\ntea")
    return place


OPERATIONS: dict[str, Callable[[Scene], object]] = {
    "add": lambda scene: _add(scene, b"by hand"),
    "edit": lambda scene: _replace(scene, b"", b"edited\n"),
    "forget": lambda scene: _forget(scene, "tea"),
}
NEW: dict[str, tuple[bytes, bytes]] = {
    "add": (b"- tea\nby hand\n", b"Lisbon\r\ntea"),
    "edit": (b"- tea\nedited\n", b"Lisbon\r\ntea"),
    "forget": (b"", b"Lisbon\r\n"),
}
_OLD = (b"- tea\n", b"Lisbon\r\ntea")
FAULTS: dict[str, Callable[[], None]] = {
    "killed": kill,
    "disk full": failing(errno.ENOSPC),
    "broken": failing(errno.EIO),
}


def _both(scene: Scene) -> tuple[bytes, bytes]:
    return _content(scene), _content(scene, ".deep/memory/main/trip.md")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_notebook_is_old_or_new_whatever_goes_wrong(story: Path, tmp_path: Path, name: str, fault: str) -> None:
    operation = OPERATIONS[name]
    place = tmp_path / "root"
    shutil.copytree(story, place, symlinks=True)
    calls = count(lambda: operation(Scene(place)))
    assert _both(Scene(place)) == NEW[name]
    chosen = range(1, calls + 1) if _SOAK else sorted(random.Random(name).sample(range(1, calls + 1), _SAMPLE))
    seen = set()
    for at in chosen:
        shutil.rmtree(place)
        shutil.copytree(story, place, symlinks=True)
        scene = Scene(place)
        said = in_child(lambda: operation(Scene(place)), at, FAULTS[fault])
        assert "\n" not in said, said
        left = _both(scene)
        seen.add(left == NEW[name])
        assert left[0] in (_OLD[0], NEW[name][0]), (at, said)
        assert left[1] in (_OLD[1], NEW[name][1]), (at, said)
        if said == "done":
            assert left == NEW[name], at
        if left != _OLD and name == "forget":
            # The checkpoint made first has every line.
            first = next(record for record in scene.records() if record.kind == "manual")
            scene.rewind(first.id, only="memory", exact=True)
            assert _both(scene) == _OLD, at
        scene.tree()  # opens the profile, which removes what was left
        assert leftovers(scene.paths) == [], at
    assert seen == {True, False}
