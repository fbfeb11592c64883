"""Rewinds where several things meet: links, gaps, damage, failures in between, and somebody else in the way."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from deepctl.errors import Damaged, Interrupted, Refused
from deepctl.store import ledger, lookup, prune, rewind, session_catalogue, verify
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.rewind import RewindConflicts
from tests.store.faults import Counter, in_child, kill
from tests.store.scene import Scene

NOTEBOOK = ".deep/memory/main/MEMORY.md"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "scene")


def _whole(scene: Scene) -> None:
    verified = verify.verify(scene.paths)
    assert (verified.problems, verified.notes) == ([], [])


@pytest.mark.parametrize("only", ["files", "memory"])
@pytest.mark.parametrize("undone", [False, True])
def test_turns_back_means_where_the_turn_began_whatever_was_rewound_in_between(
    scene: Scene, only: str, undone: bool
) -> None:
    with scene.turn("first"):
        scene.write("a.txt", "one")
        scene.write(NOTEBOOK, "- apples\n")
    with scene.turn("second"):
        scene.write("b.txt", "x")
        scene.write(NOTEBOOK, "- apples\n- pears\n")
    scene.rewind("~1", only=only)
    if undone:
        scene.undo()
    before = scene.files()
    with scene.turn("hello"):
        pass
    scene.rewind("~1")
    assert scene.files() == before
    assert scene.prompts() == ["first", "second"]


def test_a_hard_link_that_leads_out_keeps_its_mode(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("hello\n")
    outside.chmod(0o600)
    scene.write("a", "hello\n")
    (scene.workspace / "a").chmod(0o644)
    scene.agent("x", "x")
    with scene.turn("link"):
        (scene.workspace / "a").unlink()
        os.link(outside, scene.workspace / "a")
    scene.rewind("~1")
    assert outside.stat().st_mode & 0o777 == 0o600
    assert (scene.workspace / "a").stat().st_mode & 0o777 == 0o644


def test_a_file_in_a_directory_that_stands_where_a_file_was_is_never_touched(scene: Scene) -> None:
    scene.write("p", "a file")
    scene.agent("x", "x")
    with scene.turn("replace"):
        (scene.workspace / "p").unlink()
        scene.write("p/agents", "agent")
    scene.write("p/mine", "mine")
    stopped = in_child(lambda: scene.rewind("~1", force=True), _calls(scene) - 12, kill)
    assert stopped == "killed"
    scene.write("p/mine", "mine, edited")
    with scene.work():
        pass
    assert scene.files() == {"x": "x", "p/mine": "mine, edited"}
    scene.undo()
    assert scene.files()["p/mine"] == "mine, edited"
    _whole(scene)


def _calls(scene: Scene) -> int:
    """How many calls to the file system a rewind makes here, found out in a copy."""
    import shutil
    import tempfile

    from tests.store.faults import count

    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(Path(scene.paths.directory).parent.parent, Path(place) / "copy", symlinks=True)
        copy = Scene(Path(place) / "copy")
        return count(lambda: copy.rewind("~1", force=True))


def test_a_checkpoint_whose_line_could_not_be_written_leaves_nothing_that_others_rely_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.agent("x", "x")
    scene.write("a.txt", "precious")
    with scene.work() as work:
        real = ledger.LedgerWriter.add

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ledger.LedgerWriter, "add", fails)
        with pytest.raises(OSError, match="No space"):
            work.save_now(scene.session())
        monkeypatch.setattr(ledger.LedgerWriter, "add", real)
        saved = work.save_now(scene.session())
    scene.write("a.txt", "changed")
    scene.agent("y", "y")
    scene.rewind(saved.id, exact=True)
    assert scene.files()["a.txt"] == "precious"
    _whole(scene)


def test_next_to_a_damaged_line_nobody_can_tell_whose_an_edit_is(scene: Scene) -> None:
    scene.write("f", "v1")
    scene.agent("a.txt", "1")
    target = scene.last()
    scene.write("f", "the user's")
    scene.agent("b.txt", "2")
    path = Path(scene.paths.checkpoints) / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    after = next(number for number, line in enumerate(lines) if target.id.encode() in line) + 1
    number = next(number for number in range(after, len(lines)) if b'"author":"other"' in lines[number])
    lines[number] = lines[number].replace(b'"author":"other"', b'"author":"othar"')
    path.write_bytes(b"".join(lines))
    with pytest.raises(RewindConflicts):
        scene.rewind(target.id)
    assert scene.files()["f"] == "the user's"


def test_after_the_newest_was_removed_its_author_is_still_known(scene: Scene) -> None:
    scene.agent("x", "x")
    target = scene.last()
    scene.write("f", "the user's")
    with scene.work() as work:
        work.save_now(scene.session())
        newest = list(work.ledger.records.values())[-1]
        prune.remove(work, [newest])
    scene.agent("g", "agent")
    scene.rewind(target.id)
    assert scene.files() == {"x": "x", "f": "the user's"}
    _whole(scene)


def test_what_a_prune_joined_still_tells_yours_from_the_agents(scene: Scene) -> None:
    scene.agent("a.txt", "start")
    with scene.work() as work:
        work.label(scene.last(), "start")
    for number in range(3):
        scene.write(f"mine-{number}", "mine")
        scene.agent(f"agents-{number}", "agent")
    with scene.work() as work:
        prune.remove(work, prune.to_prune(work.ledger, 1))
    scene.rewind("start")
    assert set(scene.files()) == {"a.txt", "mine-0", "mine-1", "mine-2"}
    _whole(scene)


def test_lines_of_a_notebook_are_never_glued_together(scene: Scene) -> None:
    scene.write(NOTEBOOK, "a")
    scene.agent("x", "x")
    scene.agent(NOTEBOOK, "a\n- agent\n")
    scene.write(NOTEBOOK, "a\n- agent\n- my note\n")
    scene.rewind("~1")
    assert scene.files()[NOTEBOOK] == "a\n- my note\n"


def test_a_file_comes_back_into_a_directory_that_is_gone(scene: Scene) -> None:
    scene.agent("x", "x")
    scene.agent("d/x", "agent")
    scene.write("d/y", "the user's")
    scene.agent("z", "z")
    with scene.turn("remove"):
        for name in ("x", "y"):
            (scene.workspace / "d" / name).unlink()
        (scene.workspace / "d").rmdir()
    scene.rewind("~3")
    assert scene.files() == {"x": "x", "d/y": "the user's"}
    _whole(scene)


def test_memory_alone_comes_back_after_its_directory_went(scene: Scene) -> None:
    import shutil

    scene.agent(NOTEBOOK, "- note\n")
    with scene.turn("remove"):
        shutil.rmtree(scene.workspace / ".deep")
    scene.rewind("~1", only="memory")
    assert scene.files() == {NOTEBOOK: "- note\n"}


def test_a_fifo_in_the_place_of_a_directory_is_kept_and_said(scene: Scene) -> None:
    scene.agent("d/x", "agent")
    with scene.turn("replace"):
        (scene.workspace / "d" / "x").unlink()
        (scene.workspace / "d").rmdir()
        os.mkfifo(scene.workspace / "d")
    done = scene.rewind("~1")
    assert {path for path, _ in done.in_the_way} == {b"d", b"d/x"}
    _whole(scene)


def test_where_somebody_put_a_link_force_puts_the_directory_back(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "x").write_text("untouched")
    scene.write("d/x", "before")
    scene.agent("a", "a")
    scene.agent("d/x", "agent")
    (scene.workspace / "d" / "x").unlink()
    (scene.workspace / "d").rmdir()
    (scene.workspace / "d").symlink_to(outside)
    with pytest.raises(RewindConflicts):
        scene.rewind("~1")
    scene.rewind("~1", force=True)
    assert scene.files()["d/x"] == "before"
    assert (outside / "x").read_text() == "untouched"
    scene.undo()
    assert (scene.workspace / "d").is_symlink()


def test_a_fork_is_not_rewound_to_messages_that_it_does_not_have(scene: Scene) -> None:
    scene.agent("a", "1")
    first = scene.last()
    scene.agent("b", "2")
    with scene.work() as work:
        forked = work.fork(first, "forked")
        os.unlink(os.path.join(forked.directory, f"{first.log}.jsonl"))
        with pytest.raises((Refused, Damaged)):
            rewind.run(work, forked, rewind.RewindRequest(first))
    assert session_catalogue.stored_name(scene.paths, "forked") == "forked"


def test_a_damaged_tree_in_between_leaves_exact(scene: Scene) -> None:
    for number in range(3):
        scene.agent("d/a.txt", f"version {number} " * 50)
    target, between = scene.records()[2], scene.records()[3]
    os.unlink(os.path.join(scene.paths.packs, between.pack))
    with pytest.raises(Damaged) as caught:
        scene.rewind(target.id)
    assert "--exact" in (caught.value.hint or "")
    scene.rewind(target.id, exact=True)
    assert scene.files()["d/a.txt"].startswith("version 0")
    with scene.work() as work:
        prune.remove(work, [between])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE directories SET tree = zeroblob(32)",
        "UPDATE directories SET files = substr(files, 1, length(files) - 3)",
        "UPDATE objects SET offset = offset + 1",
        "UPDATE objects SET pack = 'x.pack'",
        "DELETE FROM objects",
        "DROP TABLE directories",
    ],
)
def test_a_damaged_cache_is_found_out(scene: Scene, statement: str) -> None:
    scene.agent("d/a.txt", "one")
    scene.agent("d/b.txt", "two")
    database = sqlite3.connect(scene.paths.snapshot_cache)
    with database:
        database.execute(statement)
    database.close()
    scene.write("d/c.txt", "mine")
    scene.agent("e.txt", "three")
    reader = ReadOnlyRepository(scene.paths)
    for record in reader.ledger.records.values():
        lookup.conversation_at(scene.paths, record)
    reader.close()
    _whole(scene)
    scene.rewind("~1")
    assert scene.files() == {"d/a.txt": "one", "d/b.txt": "two", "d/c.txt": "mine"}


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_something_else_in_the_place_of_the_cache_is_no_obstacle(scene: Scene, kind: str) -> None:
    import shutil

    scene.agent("a.txt", "one")
    shutil.rmtree(scene.paths.cache)
    if kind == "file":
        Path(scene.paths.cache).write_text("x")
    else:
        os.makedirs(scene.paths.snapshot_cache)
    scene.agent("b.txt", "two")
    scene.rewind("~1")
    assert scene.files() == {"a.txt": "one"}
    _whole(scene)


def test_directories_deeper_than_anybody_needs_are_reported(scene: Scene) -> None:
    place = os.open(scene.workspace, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    scene.agent("a.txt", "one")
    assert "nested directories" in scene.last().unkept[0][1]
    scene.agent("a.txt", "two")
    scene.rewind("~1")
    assert (scene.workspace / "a.txt").read_text() == "one"


def test_a_rewind_that_can_neither_be_finished_nor_taken_back_does_not_lock_the_profile(scene: Scene) -> None:
    scene.agent("a.txt", "one " * 50)
    scene.agent("a.txt", "two " * 50)
    first_pack = scene.records()[1].pack
    assert in_child(lambda: scene.rewind("~1"), _calls(scene) - 12, kill) == "killed"
    os.unlink(os.path.join(scene.paths.packs, first_pack))
    with scene.work() as work:
        assert work.notes
    scene.agent("b.txt", "on we go")
    assert session_catalogue.read_ledger(scene.paths).unfinished is None


def test_the_last_line_of_a_ledger_that_is_lost_costs_no_contents(scene: Scene) -> None:
    scene.agent("a.txt", "one")
    scene.agent("a.txt", "precious " * 50)
    path = Path(scene.paths.checkpoints) / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-2]))
    assert lookup.structural_damage(scene.paths, session_catalogue.read_ledger(scene.paths))
    kept = set(os.listdir(scene.paths.packs))
    with scene.work():
        pass
    assert set(os.listdir(scene.paths.packs)) == kept
    path.write_bytes(whole)
    _whole(scene)


@pytest.mark.parametrize("call", range(1, 8))
def test_ctrl_c_in_the_middle_of_a_rewind_takes_it_back(scene: Scene, call: int) -> None:
    for number in range(3):
        with scene.turn(f"turn {number}"):
            for name in "abcd":
                scene.write(f"{name}/file.txt", f"{name}{number}")
    before = (scene.files(), scene.prompts(), len(scene.records()))

    def interrupt() -> None:
        raise KeyboardInterrupt

    counter = Counter(call, interrupt, only=("rename", "fsync", "fchmod"), beneath=str(scene.workspace))
    with counter.installed(), pytest.raises(Interrupted, match="nothing was rewound"):
        scene.rewind("~2")
    assert (scene.files(), scene.prompts(), len(scene.records())) == before
    _whole(scene)
    scene.rewind("~2")
    assert scene.files()["a/file.txt"] == "a0"
