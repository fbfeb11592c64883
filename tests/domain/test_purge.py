"""A purge leaves a text in no notebook that is kept, and everything else as it was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepctl.domain.memory import changes
from deepctl.domain.memory.directory import without_lines
from deepctl.domain.purge import purge as purging
from deepctl.domain.purge import report
from deepctl.domain.purge.notebooks import LostLines, PurgeSelector, TextMatcher
from deepctl.domain.purge.purge import PurgeResult
from deepctl.domain.purge.report import PurgePlace
from deepctl.errors import Damaged, Interrupted, NotFound, Refused, StorageError
from deepctl.files import sealed_lines
from deepctl.store import ledger, pack_store, prune, rewind, session_catalogue, verify
from deepctl.store.index_db import Location
from deepctl.store.pack_store import BadStream
from deepctl.store.records import Record
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.trees import DIRECTORY, encode, walk
from tests.store.faults import FAULTS, Counter, in_child, points, sample
from tests.store.scene import Scene, leftovers

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_NOTES = ".deep/memory/main/MEMORY.md"
_RECEIPTS = ".deep/memory/.memory-operations.json"
SECRET = "the code is 4711"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "alice")


def purge(scene: Scene, text: str | bytes = SECRET, agent: str = "main", **wish: Any) -> PurgeResult:
    selector = _selector(text, agent, **wish)
    with scene.work() as work:
        return purging.purge(work, selector)


def _selector(
    text: str | bytes, agent: str = "main", *, file: str | None = None, ignore_case: bool = False
) -> PurgeSelector:
    return PurgeSelector(TextMatcher(os.fsencode(text), ignore_case), agent, file)


def foretold(scene: Scene, text: str = SECRET) -> PurgeResult:
    reader = ReadOnlyRepository(scene.paths)
    try:
        return purging.preview(reader, _selector(text))
    finally:
        reader.close()


def notes(scene: Scene, *lines: str, prompt: str = "", session: str = "main", file: str = _NOTES) -> None:
    """A turn in which the agent makes the notebook these lines, and leaves a receipt."""
    with scene.turn(prompt or f"turn {len(scene.records())}", session):
        scene.write(file, "".join(f"{line}\n" for line in lines))
        scene.write(_RECEIPTS, json.dumps([{"id": os.urandom(4).hex(), "version": "a hash of it"}]))


def objects(scene: Scene) -> dict[bytes, bytes]:
    """Every object in every pack on the disk, reachable or not."""
    found: dict[bytes, bytes] = {}
    for name in os.listdir(scene.paths.packs) if os.path.isdir(scene.paths.packs) else []:
        path = os.path.join(scene.paths.packs, name)
        with open(path, "rb") as file:
            for entry in pack_store.read_table(path):
                place = Location(name, entry.offset, entry.stored_size, entry.size)
                try:
                    found[entry.digest] = b"".join(pack_store.stored_pieces(file.fileno(), place))
                except BadStream:
                    continue  # damaged by the test
    return found


def holding(scene: Scene, text: str = SECRET) -> list[bytes]:
    """The contents in packs with the text; trees have only names."""
    found = objects(scene).items()
    return [digest for digest, data in found if text.encode() in data and not data.startswith(encode([]))]


def kept(scene: Scene, *, raw: bool = False) -> dict[str, dict[str, bytes]]:
    """What every checkpoint keeps, by its id: the content of each path; of directories and modes, a word."""
    reader = ReadOnlyRepository(scene.paths)
    found: dict[str, dict[str, bytes]] = {}
    for record in reader.ledger.records.values():
        files = found[record.id] = {}
        for path, entry in walk(reader.objects, bytes.fromhex(record.tree)):
            content = b"" if entry.kind == DIRECTORY else reader.objects.read(entry.digest)
            files[os.fsdecode(path)] = entry.kind + b" %o " % entry.mode + content
    reader.close()
    return found


def _without(files: dict[str, bytes], text: bytes, *, agent: str = "main") -> dict[str, bytes]:
    """What a purge makes of what a checkpoint keeps."""
    here = f".deep/memory/{agent}/"
    return {
        path: _line_wise(content, text) if path.startswith(here) else content
        for path, content in files.items()
        if path != _RECEIPTS
    }


def _identities(records: list[Record]) -> list[Record]:
    """Records but for what their contents are."""
    return [record._replace(tree="", files=0, bytes=0) for record in records]


def _line_wise(content: bytes, text: bytes) -> bytes:
    kind, mode, rest = content.split(b" ", 2)
    return b" ".join([kind, mode, without_lines(rest, text, ignore_case=False)])


def _check_whole(scene: Scene) -> None:
    verified = verify.verify(scene.paths)
    assert (verified.problems, verified.notes) == ([], [])
    assert leftovers(scene.paths) == []
    assert _packs(scene) == session_catalogue.read_ledger(scene.paths).packs


def _packs(scene: Scene) -> set[str]:
    return set(os.listdir(scene.paths.packs)) if os.path.isdir(scene.paths.packs) else set()


def _story(scene: Scene) -> None:
    """Notes that come and go, beside other work, in two sessions, with a rewind."""
    scene.write("mine.txt", "the user's\n")
    notes(scene, "- tea")
    notes(scene, "- tea", f"- {SECRET}")
    notes(scene, "- tea", f"- {SECRET}", "- window seats")
    with scene.work() as work:
        work.save_now(scene.session(), "good")
        work.fork(work.ledger.records[work.ledger.heads[scene.session().id]], "other")
    scene.agent("a.txt", "a" * 5000, "other")
    scene.rewind("~1")
    notes(scene, "- tea", f"- {SECRET}", "- aisle seats")
    scene.agent("b.txt", "b")


def test_nothing_that_is_kept_holds_the_text_and_everything_else_stays(scene: Scene) -> None:
    _story(scene)
    before, records, files = kept(scene), scene.records(), scene.files()
    assert len(holding(scene)) >= 3
    told = foretold(scene)
    done = purge(scene)
    assert done.workspace_lines == [LostLines("MEMORY.md", [(2, f"- {SECRET}\n".encode())])]
    assert told[:5] == done[:5]
    assert done.checkpoints == sum(SECRET.encode() in files.get(_NOTES, b"") for files in before.values())
    assert done.notebooks == 3
    assert holding(scene) == []
    assert kept(scene) == {identity: _without(files, SECRET.encode()) for identity, files in before.items()}
    del files[_RECEIPTS]
    assert scene.files() == {**files, _NOTES: "- tea\n- aisle seats\n"}
    assert _identities(scene.records()) == _identities(records)
    for after in scene.records():
        entries = [content.split(b" ", 2) for content in kept(scene)[after.id].values()]
        sizes = [len(content) for kind, _, content in entries if kind != b"d"]
        assert (after.files, after.bytes) == (len(sizes), sum(sizes))
    _check_whole(scene)


def test_rewind_undo_redo_and_fork_work_and_bring_nothing_back(scene: Scene) -> None:
    _story(scene)
    purge(scene)
    now = scene.files()
    for target in scene.records():
        if target.session == scene.session().id:
            scene.rewind(target.id, force=True)
            assert SECRET not in scene.files().get(_NOTES, "")
            done = scene.undo()
            assert scene.files() == now
            assert done.safety is not None
    with scene.work() as work:
        record = work.ledger.labelled("good")
        assert record is not None
        work.fork(record, "again")
    notes(scene, "- tea", "- aisle seats", "- new", session="again")
    assert holding(scene) == []
    _check_whole(scene)


def test_between_the_workspace_and_the_last_state_there_is_no_change_of_anybodys(scene: Scene) -> None:
    notes(scene, "- tea")
    notes(scene, "- tea", f"- {SECRET}", "- milk")
    purge(scene)
    done = scene.rewind("~1")
    assert (done.plan.conflicts, done.plan.kept_paths) == ([], [])
    assert scene.files()[_NOTES] == "- tea\n"
    scene.undo()
    assert scene.files()[_NOTES] == "- tea\n- milk\n"
    assert scene.rewind("~2", exact=True).safety is not None
    assert _NOTES not in scene.files()


def test_what_a_person_noted_meanwhile_still_is_theirs(scene: Scene) -> None:
    notes(scene, "- tea", f"- {SECRET}")
    notes(scene, "- tea", f"- {SECRET}", "- the agent's")
    scene.write(_NOTES, f"- tea\n- {SECRET}\n- the agent's\n- mine\n")
    purge(scene)
    scene.rewind("~1")
    assert scene.files()[_NOTES] == "- tea\n- mine\n"


def test_a_text_that_was_forgotten_before_is_purged_from_checkpoints(scene: Scene) -> None:
    notes(scene, "- tea", f"- {SECRET}")
    notes(scene, "- tea")
    done = purge(scene)
    assert (done.workspace_lines, done.notebooks) == ([], 1)
    assert holding(scene) == []
    _check_whole(scene)


def test_a_text_that_is_nowhere_changes_nothing(scene: Scene) -> None:
    notes(scene, "- tea", prompt=SECRET)
    scene.agent("a.txt", SECRET)
    before = _everything(scene)
    for text in (SECRET, "tea\n- more", "", "\n"):
        assert purge(scene, text).is_nothing
        assert foretold(scene, text).is_nothing
    assert _everything(scene) == before


def _everything(scene: Scene) -> dict[str, bytes]:
    """Every file of the profile but for the cache, which is no state."""
    cache = Path(scene.paths.cache)
    return {
        str(path): path.read_bytes()
        for path in sorted(Path(scene.paths.directory).rglob("*"))
        if path.is_file() and cache not in path.parents
    }


def test_the_other_agents_notebooks_are_their_own(scene: Scene) -> None:
    notes(scene, "- tea", f"- {SECRET}")
    notes(scene, f"- {SECRET}", "- theirs", file=".deep/memory/other/MEMORY.md")
    before = kept(scene)
    done = purge(scene, agent="other")
    assert [one.file for one in done.workspace_lines] == ["MEMORY.md"]
    assert kept(scene) == {one: _without(files, SECRET.encode(), agent="other") for one, files in before.items()}
    assert scene.files()[_NOTES] == f"- tea\n- {SECRET}\n"
    purge(scene)
    assert holding(scene) == []


def test_one_notebook_alone_and_those_in_directories(scene: Scene) -> None:
    notes(scene, "- tea", f"- {SECRET}")
    notes(scene, f"- {SECRET}", "- paris", file=".deep/memory/main/trips.md")
    notes(scene, f"- {SECRET}", "- deep", file=".deep/memory/main/a/b/c.md")
    purge(scene, file="trips.md")
    files = scene.files()
    assert files[".deep/memory/main/trips.md"] == "- paris\n"
    assert SECRET in files[_NOTES]
    assert SECRET in files[".deep/memory/main/a/b/c.md"]
    assert all(
        SECRET.encode() not in content
        for files in kept(scene).values()
        for path, content in files.items()
        if path.endswith("trips.md")
    )
    done = purge(scene)
    assert {one.file for one in done.workspace_lines} == {"MEMORY.md", "a/b/c.md"}
    assert holding(scene) == []
    _check_whole(scene)


def test_bytes_that_are_no_text_and_cases(scene: Scene) -> None:
    path = Path(scene.workspace / _NOTES)
    with scene.turn("notes"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\xff one\r\n\xfe\xff Two\n\xc3\x84pfel\rlast \xff")
    purge(scene, b"\xfe\xff")
    assert path.read_bytes() == b"\xff one\r\n\xc3\x84pfel\rlast \xff"
    assert purge(scene, "äpfel").is_nothing
    assert not purge(scene, "äpfel", ignore_case=True).is_nothing
    assert path.read_bytes() == b"\xff one\r\nlast \xff"
    purge(scene, b"\xff")
    assert path.read_bytes() == b""
    assert all(files.get(_NOTES, b"f 644 ") == b"f 644 " for files in kept(scene).values())
    _check_whole(scene)


def test_what_was_left_of_removed_checkpoints_goes_too(scene: Scene) -> None:
    with scene.turn("much and a note"):
        scene.write("big.bin", os.urandom(30_000).hex())
        scene.write(_NOTES, f"- {SECRET}\n")
    notes(scene, "- tea")
    with scene.work() as work:
        for record in list(work.ledger.records.values())[:-1]:
            prune.remove(work, [record])
    assert SECRET.encode() not in b"".join(b"".join(files.values()) for files in kept(scene).values())
    assert len(holding(scene)) == 1, "a pack that mostly is needed stays"
    done = purge(scene)
    assert (done.checkpoints, done.notebooks, done.leftovers) == (0, 0, 1)
    assert holding(scene) == []
    _check_whole(scene)


def test_a_notebook_that_is_as_it_was_before_the_line_came_keeps_its_content(scene: Scene) -> None:
    """The old content lies in a pack that goes, and is needed for more than before."""
    with scene.turn("both"):
        scene.write(_NOTES, "- tea\n")
        scene.write(".deep/memory/main/old.md", f"- {SECRET}\n")
    notes(scene, "- tea", f"- {SECRET}")
    before = kept(scene)
    purge(scene)
    assert kept(scene) == {one: _without(files, SECRET.encode()) for one, files in before.items()}
    _check_whole(scene)


def test_a_copy_elsewhere_stays_and_is_named(scene: Scene) -> None:
    notes(scene, f"- {SECRET}", prompt=f"remember {SECRET}")
    scene.write("copy.md", f"- {SECRET}\n")
    scene.agent("b.txt", "b")
    with scene.work() as work:
        work.save_now(scene.session(), "good")
    scene.write("copy.md", "gone\n")
    (scene.workspace / "caf\udce9 4711.txt").write_text(f"{SECRET}\n")
    Path(scene.paths.prompt_history).write_text(f"\n# now\n+remember {SECRET}\n")
    draft = changes.begin_draft(scene.paths.directory, "MEMORY.md", f"- {SECRET}\n".encode())
    done = purge(scene)
    reader = ReadOnlyRepository(scene.paths)
    found = report.places(reader, done.contents)
    reader.close()
    with_copy = sum("copy.md" in files for files in kept(scene).values())
    prompts = sum(SECRET in record.prompt for record in scene.records())
    assert set(found) == {
        PurgePlace("session", "main", 4),  # the prompt, the call and its result, the answer
        PurgePlace("file", "caf\udce9 4711.txt", 1),
        PurgePlace("checkpoint_file", "copy.md", with_copy),
        PurgePlace("ledger", "prompts", prompts),
        PurgePlace("prompt_history", "prompt_history", 1),
        PurgePlace("profile", f"{os.path.basename(draft.directory)}/MEMORY.md", 1),
    }
    assert len(holding(scene)) == 1


@pytest.mark.parametrize("text", ['say "hello" to Zoë', "back\\slash", "日本語"])
def test_messages_are_looked_through_as_what_they_say(scene: Scene, text: str) -> None:
    """A model writes a tool's arguments as JSON in JSON, with whatever escapes it likes."""
    notes(scene, f"- {text}")
    session = scene.session()
    path = os.path.join(session.directory, session.log + ".jsonl")
    call = {"part_kind": "tool-call", "tool_name": "write_memory", "args": json.dumps({"content": f"- {text}"})}
    with open(path, "ab") as file:
        entry = {"v": 1, "turn": 9, "at": "", "message": {"kind": "response", "parts": [call]}}
        file.write(sealed_lines.seal(entry) + b'{"damaged": "' + json.dumps(text)[1:-1].encode() + b'"}\n')
    done = purge(scene, text)
    reader = ReadOnlyRepository(scene.paths)
    found = report.places(reader, done.contents)
    reader.close()
    assert [one for one in found if one.place == "session"] == [PurgePlace("session", "main", 2)]


def test_whoever_agreed_to_other_lines_is_asked_again(scene: Scene) -> None:
    notes(scene, f"- {SECRET}")
    before = _everything(scene)
    agreed = foretold(scene, SECRET)
    for other in (agreed._replace(workspace_lines=[]), agreed._replace(checkpoint_lines=[])):
        with scene.work() as work, pytest.raises(Refused, match="Another author changed"):
            purging.purge(work, _selector(SECRET), confirmed_purge=other)
    assert _everything(scene) == before
    assert _packs(scene) == session_catalogue.read_ledger(scene.paths).packs


def test_a_link_in_the_place_of_memory_is_refused(scene: Scene, tmp_path: Path) -> None:
    notes(scene, f"- {SECRET}")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(scene.workspace / ".deep/memory/main", elsewhere)
    (scene.workspace / ".deep/memory/main").symlink_to(elsewhere)
    before = _everything(scene)
    with pytest.raises(Refused, match="link"):
        purge(scene)
    assert _everything(scene) == before
    assert SECRET in (elsewhere / "MEMORY.md").read_text()


def test_what_lies_too_deep_is_refused_before_anything_is_changed(scene: Scene) -> None:
    notes(scene, f"- {SECRET}")
    here = os.getcwd()
    try:
        os.chdir(scene.workspace / ".deep/memory/main")
        for _ in range(250):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    with pytest.raises(Refused, match="too long"):
        purge(scene)
    assert SECRET in (scene.workspace / _NOTES).read_text()
    shutil.rmtree(scene.workspace / ".deep/memory/main/d")
    purge(scene)
    assert holding(scene) == []


def test_notebooks_at_any_depth_that_is_kept_are_purged(scene: Scene) -> None:
    deep = ".deep/memory/main/" + "d/" * 150 + "a.md"
    notes(scene, "- tea", f"- {SECRET}", file=deep)
    done = purge(scene)
    assert scene.files()[deep] == "- tea\n"
    reader = ReadOnlyRepository(scene.paths)
    places = report.places(reader, done.contents)
    reader.close()
    assert not {"file", "checkpoint_file", "unread"} & {one.place for one in places}
    assert holding(scene) == []


def _flip(scene: Scene, wanted: Callable[[bytes], bool]) -> None:
    """Damage the one object whose content is `wanted`."""
    for name in os.listdir(scene.paths.packs):
        path = Path(scene.paths.packs, name)
        with open(path, "rb") as file:
            for entry in pack_store.read_table(str(path)):
                place = Location(name, entry.offset, entry.stored_size, entry.size)
                if wanted(b"".join(pack_store.stored_pieces(file.fileno(), place))):
                    raw = bytearray(path.read_bytes())
                    raw[entry.offset + entry.stored_size // 2] ^= 0x55
                    path.write_bytes(raw)
                    return
    raise AssertionError("there is no such object")


def test_a_damaged_notebook_stops_it_and_names_the_checkpoint_to_let_go_of(scene: Scene) -> None:
    notes(scene, "- tea")
    notes(scene, f"- {SECRET}", "- damaged")
    notes(scene, f"- {SECRET}", "- fine")
    _flip(scene, lambda data: b"- damaged" in data)
    before = _everything(scene)
    with pytest.raises(Damaged) as raised:
        purge(scene)
    assert _everything(scene) == before
    with pytest.raises(Damaged):
        foretold(scene)
    named = [record for record in scene.records() if record.id in (raised.value.hint or "")]
    assert named
    with scene.work() as work:
        prune.check_removable(work.ledger, named)
        prune.remove(work, named)
    purge(scene)
    assert holding(scene) == []
    _check_whole(scene)


def test_a_damaged_notebook_that_is_whole_in_the_workspace_is_read_there(scene: Scene) -> None:
    notes(scene, "- tea")
    notes(scene, f"- {SECRET}", "- damaged")
    before = kept(scene)
    _flip(scene, lambda data: b"- damaged" in data)
    purge(scene)
    assert kept(scene) == {one: _without(files, SECRET.encode()) for one, files in before.items()}
    _check_whole(scene)


def test_damage_that_the_newest_needs_is_named_with_what_to_change(scene: Scene) -> None:
    with scene.turn("both"):
        scene.write(_NOTES, f"- {SECRET}\n")
        scene.write("other.txt", "something else " * 50)
    _flip(scene, lambda data: data.startswith(b"something else"))
    with pytest.raises(Damaged) as raised:
        purge(scene)
    hint = raised.value.hint or ""
    assert "change 'other.txt' in the workspace, `deepctl checkpoints save`" in hint
    scene.write("other.txt", "changed")
    with scene.work() as work:
        work.save_now(scene.session())
        prune.remove(work, [record for record in work.ledger.records.values() if record.id in hint])
    purge(scene)
    assert holding(scene) == []
    _check_whole(scene)


def test_damage_that_nothing_needs_read_is_no_hindrance(scene: Scene) -> None:
    scene.agent("other.txt", "something else " * 50)
    notes(scene, f"- {SECRET}")
    _flip(scene, lambda data: data.startswith(b"something else"))
    purge(scene)
    assert holding(scene) == []
    assert [problem.id for problem in verify.verify(scene.paths).problems if problem.id]


def test_damage_in_what_has_to_be_moved_stops_it(scene: Scene) -> None:
    with scene.turn("both"):
        scene.write(_NOTES, f"- {SECRET}\n")
        scene.write("other.txt", "something else " * 50)
    scene.agent("other.txt", "fine")
    _flip(scene, lambda data: data.startswith(b"something else"))
    before = _everything(scene)
    with pytest.raises(Damaged) as raised:
        purge(scene)
    assert _everything(scene) == before
    assert "checkpoints remove" in (raised.value.hint or "")
    with scene.work() as work:
        ids = [record for record in work.ledger.records.values() if record.id in (raised.value.hint or "")]
        prune.remove(work, ids)
    purge(scene)
    assert holding(scene) == []
    _check_whole(scene)


@pytest.mark.parametrize("cut", ["end", "whole"])
def test_a_pack_that_cannot_be_read_stops_it_until_nothing_needs_it(scene: Scene, cut: str) -> None:
    notes(scene, "- tea", f"- {SECRET}")
    pack = scene.last().pack or scene.last("tool").pack
    path = Path(scene.paths.packs, pack)
    scene.agent("a.txt", "a")
    raw = path.read_bytes()
    path.write_bytes(raw[:-7] if cut == "end" else b"")
    shutil.rmtree(scene.paths.cache)
    before = _everything(scene)
    with pytest.raises(Damaged):
        purge(scene)
    assert _everything(scene) == before
    with scene.work() as work:
        (scene.workspace / _NOTES).write_text("- tea\n- anew\n")
        (scene.workspace / _RECEIPTS).unlink()
        work.save_now(scene.session())
        prune.remove(work, list(work.ledger.records.values())[:-1])
    assert pack in os.listdir(scene.paths.packs), "unreadable never means deletable"
    done = purge(scene, "anew")
    assert done.workspace_lines
    assert pack not in os.listdir(scene.paths.packs), "nothing needs it, and it may have held the text"
    _check_whole(scene)


def test_a_pack_whose_table_is_damaged_loses_nothing_where_the_cache_knows_what_is_in_it(scene: Scene) -> None:
    notes(scene, "- tea", f"- {SECRET}")
    path = Path(scene.paths.packs, scene.last("tool").pack)
    before = kept(scene)
    path.write_bytes(path.read_bytes()[:-7])
    purge(scene)
    assert kept(scene) == {one: _without(files, SECRET.encode()) for one, files in before.items()}
    assert holding(scene) == []
    _check_whole(scene)


def test_damaged_lines_of_the_ledger_stay_byte_for_byte(scene: Scene) -> None:
    for number in range(4):
        notes(scene, f"- {number}", f"- {SECRET}")
    path = Path(scene.paths.checkpoints, ledger.LEDGER)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"kind"', b'"kinD"')
    lines[5] = b"\xff\xfe nothing like it\n"
    path.write_bytes(b"".join(lines))
    before = kept(scene)
    damaged = [line.problem for line in sealed_lines.parse(path.read_bytes())]
    purge(scene)
    after = path.read_bytes().splitlines(keepends=True)
    assert (after[2], after[5]) == (lines[2], lines[5])
    assert [line.problem for line in sealed_lines.parse(path.read_bytes())][: len(damaged)] == damaged
    assert kept(scene) == {one: _without(files, SECRET.encode()) for one, files in before.items()}
    assert holding(scene) == [], "nor what belongs to the lost checkpoint"


def test_packs_that_no_line_names_keep_what_else_they_hold(scene: Scene) -> None:
    """Lines at the ledger's end were lost: what they told of is not thrown away, but for the text."""
    notes(scene, f"- {SECRET}")
    path = Path(scene.paths.checkpoints, ledger.LEDGER)
    end = len(path.read_bytes())
    with scene.turn("lost"):
        scene.write("precious.txt", "precious")
        scene.write(_NOTES, f"- {SECRET}\n- lost\n")
    scene.agent("precious2.txt", "precious as well")
    path.write_bytes(path.read_bytes()[:end])
    purge(scene)
    assert holding(scene) == []
    contents = set(objects(scene).values())
    assert {b"precious", b"precious as well"} <= contents


def test_three_hundred_checkpoints_are_read_once_each(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene.work(policy="every_turn") as work:
        session = scene.session()
        for number in range(300):
            scene.write("a.txt", f"{number}")
            scene.write(_NOTES, "".join(f"- {one}\n" for one in range(number)) + f"- {SECRET}\n")
            work.save_now(session)
    distinct = len(objects(scene))
    told: list[int] = []
    searched = []
    real = TextMatcher.is_in

    def search(self: TextMatcher, pieces: Iterable[bytes]) -> bool:
        searched.append(self)
        return real(self, pieces)

    monkeypatch.setattr(TextMatcher, "is_in", search)
    begun = time.monotonic()
    with scene.work() as work:
        done = purging.purge(work, _selector(SECRET), report=told.append)
    assert time.monotonic() - begun < 30
    assert (done.checkpoints, done.notebooks) == (300, 300)
    assert told == list(range(1, len(told) + 1))
    assert len(searched) == distinct, "every object once"
    assert holding(scene) == []
    _check_whole(scene)


def test_a_large_pack_is_not_written_anew_for_its_trees_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purging, "_LARGE", 20_000)
    notes(scene, f"- {SECRET}")
    scene.agent("big.bin", os.urandom(30_000).hex())
    large = max(os.listdir(scene.paths.packs), key=lambda name: os.path.getsize(Path(scene.paths.packs, name)))
    purge(scene)
    assert large in os.listdir(scene.paths.packs)
    assert holding(scene) == []
    _check_whole(scene)


_TEXTS = st.sampled_from(["tea", "TEA", "a", f"- {SECRET}", SECRET, "\xe4", "", "x" * 300, f"{SECRET} and tea"])
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["note", "note", "note", "file", "by hand", "rewind", "undo", "fork", "prune", "purge"]),
        st.lists(_TEXTS, max_size=4),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.timeout(3600)
@settings(max_examples=400 if _SOAK else 30, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS, text=st.sampled_from([SECRET, "tea", "a"]))
def test_after_any_story_a_purge_takes_the_lines_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str], int]], text: str
) -> None:
    scene = Scene(tmp_path_factory.mktemp("story"))
    for step in [*steps, ("purge", [], 0)]:
        _tell(scene, text, *step)
    _check_whole(scene)


def _tell(scene: Scene, text: str, what: str, lines: list[str], number: int) -> None:
    sessions = [record.session for record in scene.records()]
    names = ["main"] + (["other"] if os.path.exists(os.path.join(scene.paths.sessions, "other")) else [])
    session = names[number % len(names)]
    agent = "main" if number % 3 else "second"
    records = scene.records()
    match what:
        case "note":
            place = f".deep/memory/{agent}/{'sub/' if number % 5 == 0 else ''}{number % 2}.md"
            notes(scene, *lines, session=session, file=place)
        case "file":
            scene.agent(f"{number % 3}.txt", "\n".join(lines), session)
        case "by hand":
            scene.write(f".deep/memory/{agent}/0.md", "".join(f"{line}\n" for line in lines))
        case "rewind" if records:
            target = records[number % len(records)]
            if target.session == scene.session(session).id:
                scene.rewind(target.id, session, exact=True)
        case "undo" if sessions:
            try:
                scene.undo(session, force=True)
            except (rewind.RewindConflicts, NotFound):
                pass
        case "fork" if records and len(names) == 1:
            with scene.work() as work:
                if records[number % len(records)].log:
                    work.fork(records[number % len(records)], "other")
        case "prune" if records:
            with scene.work() as work:
                prune.remove(work, prune.to_prune(work.ledger, 1 + number % 4))
        case "purge":
            before, live = kept(scene), scene.files()
            purge(scene, text)
            after = kept(scene)
            wanted = {one: _without(files, text.encode()) for one, files in before.items()}
            # Where there is nothing to purge, the receipts stay, too.
            assert after in (wanted, before)
            assert wanted == after or not any(
                text.encode() in content
                for files in before.values()
                for path, content in files.items()
                if path.startswith(".deep/memory/main/")
            )
            assert _identities(scene.records()) == _identities(records)
            here = ".deep/memory/main/"
            assert {path: content for path, content in scene.files().items() if path != _RECEIPTS} == {
                path: without_lines(content.encode(), text.encode(), ignore_case=False).decode()
                if path.startswith(here)
                else content
                for path, content in live.items()
                if path != _RECEIPTS
            }
            assert {objects(scene)[one] for one in holding(scene, text)} <= _elsewhere(scene, here)


def _elsewhere(scene: Scene, here: str) -> set[bytes]:
    """Every content that a checkpoint, or the state after a rewind, keeps elsewhere than below `here`."""
    reader = ReadOnlyRepository(scene.paths)
    trees = {state.tree for state in reader.ledger.states} | {one.tree for one in reader.ledger.records.values()}
    found = {
        reader.objects.read(entry.digest)
        for tree in trees
        for path, entry in walk(reader.objects, bytes.fromhex(tree))
        if not os.fsdecode(path).startswith(here)
    }
    reader.close()
    return found


_SAMPLE = 24


@pytest.mark.timeout(3600)
def test_after_any_fault_checkpoints_are_entirely_as_they_were_or_entirely_purged(tmp_path: Path) -> None:
    _story(Scene(tmp_path / "story"))
    before, live = kept(Scene(tmp_path / "story")), Scene(tmp_path / "story").files()
    wanted = {one: _without(files, SECRET.encode()) for one, files in before.items()}
    purge(_copy(tmp_path, "first"))  # so that nothing has to be imported any more
    counted = _copy(tmp_path, "count")
    every = points(lambda: purge(counted))
    seen = set()
    for at, call, fault in every if _SOAK else sample(every, "purge", _SAMPLE):
        scene = _copy(tmp_path, "try")
        said = in_child(lambda: purge(scene), at, FAULTS[fault])  # noqa: B023 (called here and now)
        where = f"{fault} at call {at}, {call}: {said}"
        assert "\n" not in said, where
        assert (said == "killed") == (fault == "SIGKILL"), where
        found = kept(scene)
        assert found in (before, wanted), where
        if said == "done":
            assert found == wanted, where
        with scene.work():
            pass
        assert kept(scene) == found, where
        if found == wanted:
            assert holding(scene) == [], where
            assert SECRET not in scene.files()[_NOTES], where
        for path in live.keys() - {_NOTES, _RECEIPTS}:
            assert scene.files()[path] == live[path], where
        _check_whole(scene)
        purge(scene)
        assert kept(scene) == wanted, where
        assert holding(scene) == [], where
        seen.add(found == wanted)
    assert seen == {True, False}


def _copy(tmp_path: Path, name: str) -> Scene:
    place = tmp_path / name
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(tmp_path / "story", place, symlinks=True)
    return Scene(place)


def test_killed_before_the_packs_went_the_next_command_removes_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(tmp_path / "story")
    _story(scene)
    old = set(os.listdir(scene.paths.packs))

    def stop(store: object, gone: list[str]) -> None:
        assert len(gone) > 1
        raise KeyboardInterrupt

    monkeypatch.setattr(purging, "_clean_up", stop)
    with pytest.raises(KeyboardInterrupt):
        purge(scene)
    assert old < set(os.listdir(scene.paths.packs))
    assert verify.verify(scene.paths).problems == []
    # Neither a lost line nor a damaged one keeps what the ledger calls gone.
    with open(scene.paths.checkpoint_index, "a") as file:
        file.write(f"{'0123456789abcdef'}\t\tmain\n")
    with scene.work():
        pass
    assert set(os.listdir(scene.paths.packs)) == session_catalogue.read_ledger(scene.paths).packs
    assert holding(scene) == []


def test_an_error_after_the_ledger_is_in_place_says_so_and_loses_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    _story(scene)
    before = kept(scene)
    real = os.rename
    failed = []

    def rename(source: Any, target: Any, **options: Any) -> None:
        real(source, target, **options)
        if str(target).endswith(ledger.LEDGER):
            failed.append(target)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(StorageError) as raised:
            purge(scene)
    assert failed
    assert "are purged" in (raised.value.hint or "")
    with scene.work():
        pass
    assert kept(scene) == {one: _without(files, SECRET.encode()) for one, files in before.items()}
    assert holding(scene) == []
    _check_whole(scene)


def test_ctrl_c_says_how_far_it_came(scene: Scene) -> None:
    _story(scene)

    def interrupt() -> None:
        raise KeyboardInterrupt

    before = kept(scene)
    said = set()
    for at in range(1, 8):
        with Counter(at, interrupt, only=("rename",)).installed():
            try:
                purge(scene)
            except Interrupted as error:
                said.add(error.message)
            except KeyboardInterrupt:
                said.add("")
        if kept(scene) != before:
            break
    assert any("did not change" in one for one in said)
    purge(scene)
    assert holding(scene) == []
    _check_whole(scene)
