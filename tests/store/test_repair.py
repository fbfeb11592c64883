"""A damaged profile, whatever the damage: after a repair nothing is damaged, and everything readable is there."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from deepctl.cli import checkpoints
from deepctl.domain.doctor import stored_state
from deepctl.domain.memory import history
from deepctl.errors import Damaged, DeepctlError
from deepctl.files import sealed_lines
from deepctl.output.repair import RepairView
from deepctl.store import diff, lookup, repair, repair_report, session_catalogue, session_delete, verify
from deepctl.store.log_file import Message
from deepctl.store.repository import ReadOnlyRepository, Repository
from deepctl.store.trees import DIRECTORY, walk
from tests.store import faults
from tests.store.scene import Scene

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with two sessions and a fork, rewinds, labels, and `old/`, what alice's directory was a while ago."""
    place = tmp_path_factory.mktemp("repair") / "root"
    scene = Scene(place)
    for number in range(3):
        with scene.turn(f"turn {number}"):
            scene.write("a.txt", f"version {number} " * 40)
            scene.write(f"d/{number}.bin", os.urandom(40).hex())
    scene.rewind("~1")
    scene.agent("b.txt", "after the rewind")
    scene.agent("o.txt", "other", session="other")
    with scene.work() as work:
        saved = work.save_now(scene.session(), "good")
        work.fork(saved, "fork")
    shutil.copytree(scene.paths.directory, place / "old", symlinks=True)
    scene.agent("f.txt", "fork", session="fork")
    scene.agent("b.txt", "again")
    scene.rewind("good")
    scene.agent("c.txt", "c")
    with scene.work() as work:
        work.save_now(scene.session(), "last")
    return place


class Wreck:
    """A copy of the story, to be damaged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scene = Scene(root)
        self.profile = Path(self.scene.paths.directory)
        self.checkpoints = self.profile / "checkpoints"
        self.ledger = self.checkpoints / "ledger.jsonl"
        self.size = self.checkpoints / "ledger.size"
        self.old = root / "old"

    def session(self, name: str = "main") -> Path:
        return self.profile / "sessions" / name

    def log(self, name: str = "main") -> Path:
        return self.session(name) / f"{self.scene.session(name).log}.jsonl"

    def shared(self) -> Path:
        """The log that a fork shares."""
        names = {path.name for path in self.session("fork").glob("*.jsonl")}
        return max((path for path in self.session().glob("*.jsonl") if path.name in names), key=os.path.getsize)

    def packs(self) -> list[Path]:
        return sorted((self.checkpoints / "packs").glob("*.pack"), key=os.path.getsize)

    def old_of(self, path: Path) -> Path:
        return self.old / path.relative_to(self.profile)


def flip(path: Path, part: float, by: int = 0x55, count: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    at = min(int(len(raw) * part), len(raw) - count)
    for place in range(at, at + count):
        raw[place] ^= by
    _replace(path, bytes(raw))


def cut(path: Path, part: float) -> None:
    _replace(path, path.read_bytes()[: int(path.stat().st_size * part)])


def _replace(path: Path, raw: bytes) -> None:
    """In place, as a disk does it: whatever shares the file is damaged, too."""
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(raw)
    path.chmod(mode)


def line(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    _replace(path, b"".join(lines))


def garble(path: Path, number: int) -> None:
    line(path, number, lambda one: b"#" * (len(one) // 2) + one[len(one) // 2 :])


def _part_links(wreck: Wreck) -> None:
    for path in wreck.session("fork").glob("*.jsonl"):
        raw = path.read_bytes()
        path.unlink()
        path.write_bytes(raw)


def _merged(wreck: Wreck) -> None:
    """The copy of another profile laid over this one, without its ledger."""
    for number in range(3):
        (wreck.checkpoints / "packs" / f"{number:016x}.pack").write_bytes(wreck.packs()[number].read_bytes())
    shutil.copytree(wreck.session("other"), wreck.session("bobs"))


def _older_log(wreck: Wreck) -> None:
    path = wreck.session() / wreck.shared().name
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(b"".join(raw.splitlines(keepends=True)[:3]))


def _begun_again(wreck: Wreck) -> None:
    shutil.rmtree(wreck.session())
    wreck.scene.agent("late.txt", "late")


def _cut_and_continued(wreck: Wreck) -> None:
    lines = wreck.shared().read_bytes().splitlines(keepends=True)
    said = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "elsewhere " * 40}]}
    more = [sealed_lines.seal({"v": 2, "turn": 9, "at": "2026-01-01T00:00:00Z", "message": said}) for _ in lines]
    _replace(wreck.shared(), b"".join(lines[:4] + more))


def _each(*damages: Callable[[Wreck], object]) -> Callable[[Wreck], None]:
    def do(wreck: Wreck) -> None:
        for damage in damages:
            damage(wreck)

    return do


def _unlink(paths: Iterable[Path]) -> None:
    for path in list(paths):
        path.unlink()


DAMAGES: dict[str, Callable[[Wreck], object]] = {
    "ledger: a byte flipped": lambda w: flip(w.ledger, 0.4),
    "ledger: a line garbled": lambda w: garble(w.ledger, 3),
    "ledger: the line of a rewind garbled": lambda w: garble(
        w.ledger, next(n for n, one in enumerate(w.ledger.read_bytes().splitlines()) if b'"rewind":' in one)
    ),
    "ledger: the first line garbled": lambda w: garble(w.ledger, 0),
    "ledger: cut": lambda w: cut(w.ledger, 0.5),
    "ledger: deleted": lambda w: w.ledger.unlink(),
    "ledger: emptied": lambda w: _replace(w.ledger, b""),
    "ledger: an older one": lambda w: shutil.copy(w.old_of(w.ledger), w.ledger),
    "ledger: an older one with its length": lambda w: (
        shutil.copy(w.old_of(w.ledger), w.ledger),
        shutil.copy(w.old_of(w.size), w.size),
    ),
    "ledger: a line twice": lambda w: line(w.ledger, 2, lambda one: one + one),
    "ledger: a newline flipped": lambda w: flip(w.ledger, w.ledger.read_bytes().index(b"\n") / w.ledger.stat().st_size),
    "length of the ledger: flipped": lambda w: flip(w.size, 0.3),
    "length of the ledger: deleted": lambda w: w.size.unlink(),
    "log: a byte of the first line flipped": lambda w: flip(w.log(), 0, 0x01),
    "log: the first line garbled": lambda w: garble(w.log(), 0),
    "log: the first line of a shared one garbled": lambda w: garble(w.shared(), 0),
    "log: a byte flipped": lambda w: flip(w.shared(), 0.5),
    "log: a message garbled": lambda w: garble(w.shared(), 2),
    "log: two messages garbled": _each(lambda w: garble(w.shared(), 2), lambda w: garble(w.shared(), 3)),
    "log: cut": lambda w: cut(w.shared(), 0.6),
    "log: deleted": lambda w: w.log().unlink(),
    "log: deleted in one of those that share it": lambda w: (w.session() / w.shared().name).unlink(),
    "log: emptied": lambda w: _replace(w.log(), b""),
    "log: an older one in one session": lambda w: _older_log(w),
    "log: a line twice": lambda w: line(w.shared(), 2, lambda one: one + one),
    "log: a line gone": lambda w: line(w.shared(), 2, lambda one: b""),
    "log: cut and continued": lambda w: _cut_and_continued(w),
    "log: rubbish behind its end": lambda w: _replace(w.log(), w.log().read_bytes() + b"rubbish\n{}\n"),
    "links: broken": _part_links,
    "links: broken, and one shorter": _each(_part_links, lambda w: cut(w.session("fork") / w.shared().name, 0.3)),
    "session: its record flipped": lambda w: flip(w.session() / "session.json", 0.5),
    "session: its record garbled": lambda w: _replace(w.session() / "session.json", b"rubbish\n"),
    "session: its record deleted": lambda w: (w.session() / "session.json").unlink(),
    "session: its record cut": lambda w: cut(w.session() / "session.json", 0.5),
    "session: an older record": lambda w: shutil.copy(
        w.old_of(w.session() / "session.json"), w.session() / "session.json"
    ),
    "session: both records deleted": lambda w: _unlink(w.session(n) / "session.json" for n in ("main", "fork")),
    "session: everything deleted": lambda w: shutil.rmtree(w.session()),
    "session: everything deleted, with the cache": _each(
        lambda w: shutil.rmtree(w.session()), lambda w: shutil.rmtree(w.profile / "cache")
    ),
    "session: everything deleted, and one of its name begun": lambda w: _begun_again(w),
    "session: everything deleted, and the record of the fork": _each(
        lambda w: shutil.rmtree(w.session()), lambda w: (w.session("fork") / "session.json").unlink()
    ),
    "session: all logs deleted": lambda w: _unlink(w.session("other").glob("*.jsonl")),
    "session: twice": lambda w: shutil.copytree(w.session(), w.session("again")),
    "pack: a byte flipped": lambda w: flip(w.packs()[-1], 0.3),
    "pack: the table flipped": lambda w: flip(w.packs()[-1], 0.9),
    "pack: its end flipped": lambda w: flip(w.packs()[-1], 0.999),
    "pack: its header flipped": lambda w: flip(w.packs()[-1], 0.001, 0x01),
    "pack: cut": lambda w: cut(w.packs()[-1], 0.7),
    "pack: emptied": lambda w: _replace(w.packs()[-1], b""),
    "pack: deleted": lambda w: w.packs()[-1].unlink(),
    "pack: another one in its place": lambda w: _replace(w.packs()[-1], w.packs()[-2].read_bytes()),
    "pack: twice": lambda w: shutil.copy(w.packs()[-1], w.packs()[-1].with_name("0123456789abcdef.pack")),
    "packs: all deleted": lambda w: _unlink(w.packs()),
    "profile: another copied over it": _merged,
    "profile: sessions of an older copy": _each(
        lambda w: shutil.rmtree(w.profile / "sessions"),
        lambda w: shutil.copytree(w.old / "sessions", w.profile / "sessions"),
    ),
    "profile: checkpoints of an older copy": _each(
        lambda w: shutil.rmtree(w.checkpoints),
        lambda w: shutil.copytree(w.old / "checkpoints", w.checkpoints),
    ),
}


def readable(scene: Scene) -> set[tuple[str, str, object]]:
    """Everything that can be read: files and messages of checkpoints, and messages of conversations."""
    found: set[tuple[str, str, object]] = set()
    reader = ReadOnlyRepository(scene.paths)
    for record in reader.ledger.records.values():
        try:
            entries = list(walk(reader.objects, bytes.fromhex(record.tree))) if record.tree else []
        except DeepctlError:
            entries = []
        for path, entry in entries:
            try:
                content = reader.objects.read(entry.digest) if entry.kind != DIRECTORY else b""
                found.add((record.id, os.fsdecode(path), content))
            except DeepctlError:
                continue
        try:
            messages = lookup.conversation_at(scene.paths, record).messages
        except DeepctlError:
            continue
        found |= {(record.id, "message", part) for part in _parts(messages)}
    reader.close()
    for name in session_catalogue.all_names(scene.paths):
        try:
            messages = session_catalogue.read(session_catalogue.find(scene.paths, name)).messages
        except DeepctlError:
            continue
        found |= {(name, "message", part) for part in _parts(messages)}
    return found


def _parts(messages: list[Message]) -> set[str]:
    """What was said and done; how results are put together may differ where a line is damaged."""
    return {json.dumps(part, sort_keys=True) for one in messages for part in one.message["parts"]}


def state(place: Path) -> dict[str, bytes]:
    return {str(one.relative_to(place)): one.read_bytes() for one in sorted(place.rglob("*")) if one.is_file()}


def check(wreck: Wreck) -> repair.Repair:
    scene = wreck.scene
    before = readable(scene)
    as_it_was = state(wreck.profile)
    preview = repair.repair(scene.paths, dry_run=True)
    assert state(wreck.profile) == as_it_was, "a dry run changes nothing"
    was_damaged = bool(verify.verify(scene.paths).problems)
    done = repair.repair(scene.paths)
    assert (preview.repaired, preview.lost, preview.moved) == (done.repaired, done.lost, done.moved)
    assert done.problems == []
    verified = verify.verify(scene.paths)
    assert verified.problems == []
    assert bool(done.repaired or done.lost) or not was_damaged
    assert before - readable(scene) == set()
    assert not [name for name in os.listdir(wreck.profile) if name.startswith(".")]
    again = repair.repair(scene.paths)
    assert (again.repaired, again.lost, again.moved) == ([], [], [])
    return done


@pytest.mark.parametrize("damage", list(DAMAGES)[:: 1 if _SOAK else 5])
def test_what_is_damaged_is_repaired_and_nothing_readable_is_lost(story: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(story, tmp_path / "root", symlinks=True, copy_function=_copy_with_links(story, tmp_path / "root"))
    wreck = Wreck(tmp_path / "root")
    DAMAGES[damage](wreck)
    check(wreck)
    scene = wreck.scene
    scene.agent("new.txt", "new")
    scene.rewind("~1")
    assert "new.txt" not in scene.files()
    scene.undo()
    assert scene.files()["new.txt"] == "new"
    assert verify.verify(scene.paths).problems == []


def _copy_with_links(source: Path, target: Path) -> Callable[[str, str], object]:
    """A function that copies files, and links those that are links to one another."""
    seen: dict[int, str] = {}

    def copy(one: str, to: str) -> object:
        inode = os.stat(one).st_ino
        if inode in seen:
            os.link(seen[inode], to)
            return to
        seen[inode] = to
        return shutil.copy2(one, to)

    return copy


def test_a_repair_says_what_each_session_lost_where_the_originals_are_and_what_verify_finds(
    story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(story, tmp_path / "root", symlinks=True, copy_function=_copy_with_links(story, tmp_path / "root"))
    wreck = Wreck(tmp_path / "root")
    garble(wreck.log("other"), 1)
    garble(wreck.ledger, 3)
    wreck.packs()[-1].unlink()
    paths = wreck.scene.paths
    RepairView(paths, True, repair.repair(paths, dry_run=True)).print()
    preview = capsys.readouterr().out.splitlines()
    assert preview[0].startswith("Profile alice is damaged (the list of checkpoints, message logs and packs")
    assert preview[0].endswith("A repair would fix it; the following would be lost:")
    assert preview[-1] == "Nothing has changed yet. verify after the repair: 0 problems."
    done = repair.repair(paths)
    view = RepairView(paths, False, done)
    view.print()
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].endswith("and is repaired; this is lost:")
    assert lines[-1] == "verify: 0 problems."
    other = lines[lines.index("In session other:") + 1]
    assert other.startswith("  1 message of turn 1")
    main = lines[lines.index("In session main:") + 1]
    assert re.fullmatch(r"  all files of \d+ checkpoints? of turns? [\d, to and]+: .*", main)
    assert "In an unknown session:" in lines
    assert "The workspace does not change." in said
    assert paths.lost_and_found in said
    document = view.document()
    assert document["damaged"] == []
    for path in [*document["moved"], *(one["path"] for one in document["repaired"] if one["what"] == "message log")]:
        assert os.path.exists(path), path
    message = next(one for one in document["lost"] if one["what"] == "message")
    assert (message["sessions"], message["turns"]) == (["other"], [1])
    RepairView(paths, False, repair.repair(paths)).print()
    said = capsys.readouterr().out
    assert said == "Profile alice is not damaged; there is nothing to repair.\nverify: 0 problems.\n"


def test_a_session_that_vanished_is_named_and_made_again_from_what_a_fork_shares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wreck = _with_a_fork(tmp_path)
    scene = wreck.scene
    identity, said = scene.session().id, scene.prompts()
    shutil.rmtree(wreck.session())
    (problem,) = verify.verify(scene.paths).problems
    assert problem.reason.startswith("session main is missing: it was not deleted with deepctl, and f still has 1 ")
    (check,) = [one for one in stored_state.sessions(scene.paths) if one.status != "ok"]
    assert (check.status, check.found) == ("problem", problem.reason)
    done = repair.repair(scene.paths)
    assert (done.lost, done.problems) == ([], [])
    RepairView(scene.paths, False, done).print()
    assert capsys.readouterr().out.startswith("Profile alice was damaged (a session is missing) and is repaired; noth")
    assert scene.session().id == identity
    assert scene.prompts() == said
    assert os.path.samefile(wreck.log(), wreck.session("f") / wreck.log().name)
    scene.agent("new.txt", "new")
    scene.rewind("lab")
    assert scene.prompts() == said[:1]


def test_what_a_vanished_session_said_behind_what_its_fork_shares_is_listed_as_lost(tmp_path: Path) -> None:
    wreck = _with_a_fork(tmp_path)
    scene = wreck.scene
    scene.rewind("lab")
    with scene.turn("only here"):
        scene.write("late.txt", "late")
    shutil.rmtree(wreck.session())
    done = repair.repair(scene.paths)
    assert done.problems == verify.verify(scene.paths).problems == []
    (lost,) = [one for one in done.lost if one.what == repair_report.ALL_MESSAGES]
    assert (lost.sessions, lost.turns) == (["main"], [2])
    assert {one.turns[0] for one in done.lost if one.what == repair_report.CONVERSATION} == {2}
    assert scene.prompts() == ["write a.txt 1", "write b.txt 2"]


def test_a_session_that_was_deleted_is_not_missing_though_its_fork_lives_on(tmp_path: Path) -> None:
    wreck = _with_a_fork(tmp_path)
    with wreck.scene.work() as work:
        session_delete.delete(work, session_delete.plan(work.paths, work.ledger, work.store.packs, "main"))
    assert verify.verify(wreck.scene.paths).problems == []
    done = repair.repair(wreck.scene.paths)
    assert (done.repaired, done.lost) == ([], [])
    assert session_catalogue.all_names(wreck.scene.paths) == ["f"]


@pytest.mark.parametrize(
    ("damage", "cause", "loss"),
    [
        (
            lambda w: w.ledger.unlink(),
            "the list of checkpoints",
            "all checkpoints, labels and rewinds: the ledger is m",
        ),
        (
            lambda w: cut(w.ledger, 0.6),
            "the list of checkpoints",
            "the newest checkpoints, labels and rewinds; their number",
        ),
        (lambda w: cut(w.log(), 0.9), "message logs", "the conversation of 1 checkpoint of turn 2: "),
        (lambda w: w.packs()[0].unlink(), "packs with contents of files", "all files of "),
    ],
)
def test_a_repair_names_only_what_was_damaged_and_all_that_is_lost(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Wreck], object],
    cause: str,
    loss: str,
) -> None:
    wreck = _with_a_fork(tmp_path)
    damage(wreck)
    RepairView(wreck.scene.paths, False, repair.repair(wreck.scene.paths)).print()
    said = capsys.readouterr().out
    assert said.startswith(f"Profile alice was damaged ({cause}) and is repaired; this is lost:")
    assert loss in said
    assert "not known" not in said


def test_every_view_of_a_checkpoint_says_that_its_files_are_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wreck = _with_a_fork(tmp_path)
    scene = wreck.scene
    _unlink(wreck.packs())
    repair.repair(scene.paths)
    lost = lookup.find_checkpoint(scene.paths, session_catalogue.read_ledger(scene.paths), "lab", None).id
    with Repository.read_only(scene.paths) as reader:
        view = checkpoints.checkpoint_view(reader, "lab", None)
    view.print()
    assert "Files:       lost" in capsys.readouterr().out
    document = view.document()
    assert (document["checkpoint"]["files"], document["unkept"]) == (0, [{"path": "", "reason": "its files are lost"}])
    listing = lookup.listing(scene.paths, None, None)
    assert re.match("The files of . checkpoints are lost: ", listing.notes[0])
    with Repository.read_only(scene.paths) as reader:
        remark = diff.compare(reader, "lab", None, None).remark
    assert remark == f"The files of 1 checkpoint are lost: {lost}. Only the turns are compared."
    with (
        Repository.read_only(scene.paths) as reader,
        pytest.raises(Damaged, match=f"The files of checkpoint {lost} are lo"),
    ):
        history.checkpoint_with_files(reader, "lab")


def test_a_rewind_names_exact_only_where_that_works(tmp_path: Path) -> None:
    wreck = _with_a_fork(tmp_path)
    scene = wreck.scene
    scene.agent("b.txt", "3")
    between = next(one for one in scene.records() if one.turn == 2 and one.kind == "tool")
    (wreck.checkpoints / "packs" / between.pack).unlink()
    with pytest.raises(Damaged) as caught:
        scene.rewind("lab")
    assert "`--exact`" in (caught.value.hint or "")
    scene.rewind("lab", exact=True)
    scene.undo()
    _unlink(wreck.packs())
    for exact in (False, True):
        with pytest.raises(Damaged) as caught:
            scene.rewind("lab", exact=exact)
        assert "`deepctl checkpoints repair`" in (caught.value.hint or "")


def _with_a_fork(tmp_path: Path) -> Wreck:
    """A root with a session `main` of two turns, the first labelled `lab`, and a fork `f` from there."""
    scene = Scene(tmp_path / "root")
    scene.agent("a.txt", "1")
    with scene.work() as work:
        work.fork(work.save_now(scene.session(), "lab"), "f")
    scene.agent("b.txt", "2")
    return Wreck(tmp_path / "root")


def _files(profile: Path) -> list[Path]:
    """Every file of the profile that may be damaged: all but its settings, which are a person's.

    In the order in which they were written, since their names are random.
    """
    found = (path for path in profile.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted((path for path in found if path.parent != profile), key=lambda path: os.stat(path).st_mtime_ns)


def _random_damage(wreck: Wreck, chance: random.Random) -> str:
    """Do one thing to one file, or to two; says what."""
    path, other = chance.choice(_files(wreck.profile)), chance.choice(_files(wreck.profile))
    raw = path.read_bytes()
    kind = chance.choice(("delete", "truncate", "flip", "duplicate", "swap", "older"))
    match kind:
        case "delete":
            path.unlink()
        case "truncate":
            _replace(path, raw[: chance.randrange(len(raw) + 1)])
        case "flip" if raw:
            flip(path, chance.random(), 1 << chance.randrange(8))
        case "duplicate":
            shutil.copy(path, path.with_name(f"{chance.randrange(1 << 64):016x}{path.suffix}"))
        case "swap":
            swapped = other.read_bytes()
            _replace(path, swapped)
            _replace(other, raw)
        case "older" if wreck.old_of(path).is_file():
            _replace(path, wreck.old_of(path).read_bytes())
    return f"{kind} {path.relative_to(wreck.profile)} {other.relative_to(wreck.profile) if kind == 'swap' else ''}"


def _messages_of_logs(directory: Path) -> set[str]:
    """Every message that a line which can be read has, wherever in a directory the line is."""
    found = set()
    for path in directory.rglob("*"):
        if path.is_file() and ".jsonl" in path.name:
            for one in sealed_lines.parse(path.read_bytes()):
                message = (one.value or {}).get("message")
                if isinstance(message, dict):
                    found.add(json.dumps(message.get("parts"), sort_keys=True))
    return found


def test_a_damaged_copy_of_the_record_of_a_session_is_put_aside(story: Path, tmp_path: Path) -> None:
    shutil.copytree(story, tmp_path / "root", symlinks=True, copy_function=_copy_with_links(story, tmp_path / "root"))
    wreck = Wreck(tmp_path / "root")
    for number, cut_at in enumerate((0, 30)):
        raw = wreck.session().joinpath("session.json").read_bytes()
        wreck.session().joinpath(f"{number}.json").write_bytes(b"#" + raw[1 : cut_at or None])
    assert len(check(wreck).moved) == 2


@pytest.mark.parametrize("seed", range(500 if _SOAK else 15))
def test_whatever_is_damaged_at_random_a_repair_keeps_what_is_readable_and_a_chat_goes_on(
    story: Path, tmp_path: Path, seed: int
) -> None:
    shutil.copytree(story, tmp_path / "root", symlinks=True, copy_function=_copy_with_links(story, tmp_path / "root"))
    wreck, chance = Wreck(tmp_path / "root"), random.Random(seed)
    damages = [_random_damage(wreck, chance) for _ in range(chance.randint(1, 4))]
    scene = wreck.scene
    before, said = readable(scene), _messages_of_logs(wreck.profile)
    done = repair.repair(scene.paths)
    assert (done.problems, verify.verify(scene.paths).problems) == ([], []), damages
    # Where logs have changed places, a session may have shown what is of another; that is looked for in all files.
    gone = {one for one in before - readable(scene) if one[0] not in ("main", "fork", "other")}
    assert gone == set(), damages
    assert said - _messages_of_logs(wreck.profile) == set(), damages
    RepairView(scene.paths, False, done).print()
    as_it_is = state(wreck.profile)
    again = repair.repair(scene.paths)
    assert (again.repaired, again.lost, again.moved) == ([], [], []), damages
    assert state(wreck.profile) == as_it_is, damages
    scene.agent("new.txt", "new")
    assert Path(scene.paths.workspace, "new.txt").read_text() == "new"
    assert verify.verify(scene.paths).problems == [], damages


def test_a_repair_that_is_killed_at_any_call_is_finished_by_the_next(story: Path, tmp_path: Path) -> None:
    def wrecked(name: str) -> Wreck:
        shutil.copytree(story, tmp_path / name, symlinks=True)
        wreck = Wreck(tmp_path / name)
        garble(wreck.ledger, 3)
        garble(wreck.shared(), 2)
        wreck.packs()[-1].unlink()
        return wreck

    paths = wrecked("counted").scene.paths
    calls = faults.count(lambda: repair.repair(paths))
    # In the last calls, it is put into place and what is left is removed.
    for at in range(1, calls + 1) if _SOAK else [*range(1, calls - 60, calls // 4), *range(calls - 60, calls, 10)]:
        wreck = wrecked(f"killed-{at}")
        before = readable(wreck.scene)
        faults.in_child(lambda wreck=wreck: repair.repair(wreck.scene.paths), at, faults.kill)  # type: ignore[misc]
        with wreck.scene.work():
            pass
        repair.repair(wreck.scene.paths)
        assert verify.verify(wreck.scene.paths).problems == [], at
        assert before - readable(wreck.scene) == set(), at
        shutil.rmtree(wreck.root)
