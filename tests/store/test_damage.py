"""One byte flipped, or a file cut, anywhere in what is kept: the damage is named, contained, and never restored."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from deepctl.errors import DeepctlError
from deepctl.store import log_file, lookup, records, session_catalogue, verify
from deepctl.store.repository import ReadOnlyRepository
from deepctl.store.trees import DIRECTORY, walk
from tests.store.scene import Scene

_SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
_OFFSETS = 400 if _SOAK else 12


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("damage") / "root"
    scene = Scene(place)
    for number in range(4):
        with scene.turn(f"turn {number}"):
            scene.write("a.txt", f"version {number} " * 40)
            scene.write(f"d/{number}.bin", os.urandom(40).hex())
    scene.rewind("~1")
    with scene.work() as work:
        work.save_now(scene.session(), "good")
    return place


def _kept_files(place: Path) -> list[Path]:
    profile = place / "profiles" / "alice"
    kept = [*(profile / "checkpoints").rglob("*"), *(profile / "sessions").rglob("*")]
    return sorted(path.relative_to(place) for path in kept if path.is_file() and path.stat().st_size)


def _contents(scene: Scene) -> dict[str, tuple[dict[bytes, bytes], list[str]] | None]:
    """What every checkpoint holds, `None` for those that say that they are damaged."""
    found: dict[str, tuple[dict[bytes, bytes], list[str]] | None] = {}
    reader = ReadOnlyRepository(scene.paths)
    for record in reader.ledger.records.values():
        try:
            files = {
                path: reader.objects.read(entry.digest)
                for path, entry in walk(reader.objects, bytes.fromhex(record.tree))
                if entry.kind != DIRECTORY
            }
            conversation = lookup.conversation_at(scene.paths, record)
            texts = [text for entry in conversation.messages if (text := log_file.prompt(entry.message)) is not None]
            found[record.id] = (files, texts)
            if conversation.damage:
                found[record.id] = None
        except DeepctlError:
            found[record.id] = None
    reader.close()
    return found


def _damaged(raw: bytes, at: int, how: str, randomness: random.Random) -> bytes:
    if how == "cut":
        return raw[:at]
    return raw[:at] + bytes([raw[at] ^ randomness.randrange(1, 256)]) + raw[at + 1 :]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_anywhere_is_named_and_nothing_wrong_is_ever_read(
    story: Path, tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    randomness = random.Random(how)
    whole = _contents(Scene(story))
    assert None not in whole.values()
    points = 0
    for file in _kept_files(story):
        size = (story / file).stat().st_size
        for at in sorted(randomness.sample(range(size), min(size, _OFFSETS))):
            points += 1
            place = tmp_path / "copy"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(story, place, symlinks=True)
            scene = Scene(place)
            (place / file).write_bytes(_damaged((story / file).read_bytes(), at, how, randomness))
            where = f"{file} at {at}: {how}"
            verified = verify.verify(scene.paths)
            is_torn = how == "cut" and file.name.endswith(".jsonl") and _is_a_kills_work(story / file, at)
            assert verified.problems or is_torn, where
            for identity, found in _contents(scene).items():
                assert found is None or found == whole[identity], f"{where}: {identity}"
            listed = lookup.structural_damage(scene.paths, session_catalogue.read_ledger(scene.paths))
            if file.name == "ledger.jsonl" and not is_torn:
                assert listed, where
    with capfd.disabled():
        print(f" {points} places damaged", end="")


def _is_a_kills_work(path: Path, at: int) -> bool:
    """Whether a file cut there looks as a kill leaves it: only what was written last is missing."""
    lines = path.read_bytes().splitlines(keepends=True)
    return len(lines) > 1 and at >= path.stat().st_size - len(lines[-1])


@pytest.mark.parametrize("file", ["ledger.jsonl", "pack", "log"])
def test_all_else_still_works(story: Path, tmp_path: Path, file: str) -> None:
    place = tmp_path / "copy"
    shutil.copytree(story, place, symlinks=True)
    scene = Scene(place)
    kept = {
        "ledger.jsonl": scene.paths.checkpoints + "/ledger.jsonl",
        "pack": min(
            (os.path.join(scene.paths.packs, name) for name in os.listdir(scene.paths.packs)), key=os.path.getmtime
        ),
        "log": str(max(Path(scene.session().directory).glob("*.jsonl"), key=os.path.getsize)),
    }[file]
    raw = bytearray(Path(kept).read_bytes())
    raw[len(raw) // 3] ^= 0x55
    Path(kept).write_bytes(bytes(raw))
    scene.agent("new.txt", "new")
    scene.rewind("~1")
    assert "new.txt" not in scene.files()
    scene.undo()
    assert scene.files()["new.txt"] == "new"
    assert Path(kept).exists()
    assert verify.verify(scene.paths).problems
    packs = len(os.listdir(scene.paths.packs))
    scene.agent("newer.txt", "x")
    assert len(os.listdir(scene.paths.packs)) >= packs, "unreadable never means deletable"


@pytest.mark.parametrize("others", ["whole", "gone"])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damage_to_the_record_of_a_session_is_one_problem(story: Path, tmp_path: Path, how: str, others: str) -> None:
    shutil.copytree(story, tmp_path / "copy", symlinks=True)
    scene = Scene(tmp_path / "copy")
    record = Path(scene.session().directory) / records.SESSION_RECORD
    raw = record.read_bytes()
    if others == "gone":
        # Nothing tells what stood in the record, which is another message.
        shutil.rmtree(scene.paths.checkpoints)
        for log in record.parent.glob("*.jsonl"):
            log.unlink()
    before = len(verify.verify(scene.paths).problems)
    for at in range(0, len(raw), 9) if how == "flip" else range(1, len(raw), 9):
        record.write_bytes(_damaged(raw, at, how, random.Random(at)))
        found = [problem for problem in verify.verify(scene.paths).problems if str(record.parent) in problem.file]
        assert len(found) == 1, (at, found)
    record.write_bytes(raw[:-1] + b"x")
    assert len(verify.verify(scene.paths).problems) == max(before, 1)
    record.write_bytes(raw[:-1])
    assert len(verify.verify(scene.paths).problems) == before + 1
