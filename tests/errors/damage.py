"""Errors of what is kept and has been damaged, or written by a later deepctl."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from pathlib import Path

from deepctl.files import sealed_lines
from deepctl.store import pack_store
from tests.errors.checkpoints import on
from tests.errors.situation import Situation, case
from tests.store.faults import Counter
from tests.store.scene import Scene
from tests.support.command import Result

ANY = "any command"
MAIN = ("sessions", "show", "main", "--user", "alice")


def _pack(s: Situation) -> tuple[Path, str]:
    """The pack that the oldest checkpoint with content of its own brought, and the checkpoint's id."""
    scene = s.story()
    first = next(record for record in scene.records() if record.pack)
    return s.profile / "checkpoints" / "packs" / first.pack, first.id


def _log(s: Situation) -> Path:
    """The one message log of alice's one session."""
    s.story()
    (found,) = (s.profile / "sessions" / "main").glob("*.jsonl")
    return found


def _flip(path: Path, *places: int) -> None:
    raw = bytearray(path.read_bytes())
    for place in places:
        raw[place] ^= 0xFF
    path.write_bytes(raw)


def spoil(pack: Path) -> None:
    """Damage every object in a pack."""
    _flip(pack, *{entry.offset for entry in pack_store.read_table(str(pack)) if entry.stored_size})


@case("checkpoints list", "the ledger has the format of a later deepctl")
def _(s: Situation) -> list[str]:
    s.story()
    s.seal(s.profile / "checkpoints" / "ledger.jsonl", {"v": 99}, append=True)
    return on("list")


@case("checkpoints show", "the pack with the contents of the checkpoint is missing")
def _(s: Situation) -> list[str]:
    pack, identity = _pack(s)
    pack.unlink()
    return on("show", identity)


@case("checkpoints show", "the contents of the checkpoint are damaged")
def _(s: Situation) -> list[str]:
    pack, identity = _pack(s)
    spoil(pack)
    return on("show", identity)


@case("checkpoints show", "the message log of the checkpoint is missing")
def _(s: Situation) -> list[str]:
    scene = s.story()
    identity = scene.last().id
    shutil.rmtree(s.profile / "sessions" / "main")
    return on("show", identity)


@case("checkpoints show", "the message log of the checkpoint is cut short")
def _(s: Situation) -> list[str]:
    log = _log(s)
    log.write_bytes(log.read_bytes()[:-40])
    return on("show", Scene(s.home).last().id)


@case("checkpoints show", "the reference from the message log to the previous log is damaged")
def _(s: Situation) -> list[str]:
    first = _log(s)
    scene = Scene(s.home)
    scene.rewind("~1")
    scene.agent("b.txt", "x\n")
    (after,) = set(first.parent.glob("*.jsonl")) - {first}
    _flip(after, 5)
    ledger = s.profile / "checkpoints" / "ledger.jsonl"
    _flip(ledger, ledger.read_bytes().index(b'"rewind":{'))
    return on("show", scene.last().id)


@case("checkpoints show", "the message log was replaced by another log")
def _(s: Situation) -> list[str]:
    log = _log(s)
    assert s.run("checkpoints", "save", "--user", "alice").code == 0
    identity = Scene(s.home).last("manual").id
    first, second, *rest = log.read_bytes().splitlines(keepends=True)
    value = sealed_lines.unseal(second[:-1])
    value["at"] = value["at"].replace("2", "1")
    log.write_bytes(first + sealed_lines.seal(value) + b"".join(rest))
    return on("show", identity)


def _repaired(s: Situation, lost: str) -> str:
    """A checkpoint that a repair found a part of lost."""
    scene = s.story()
    identity = scene.last().id
    fields = {"lost": lost} | ({"tree": ""} if lost == "files" else {})
    repaired = {"v": 2, "repaired": {identity: fields}, "packs": [], "gone": []}
    s.seal(s.profile / "checkpoints" / "ledger.jsonl", repaired, append=True)
    return identity


@case("checkpoints fork", "a repair recorded that the messages of the checkpoint are lost")
def _(s: Situation) -> list[str]:
    return on("fork", _repaired(s, "conversation"), "other")


@case("checkpoints rewind", "a repair recorded that the files of the checkpoint are lost")
def _(s: Situation) -> list[str]:
    return on("rewind", _repaired(s, "files"))


@case("memory show", "a repair recorded that the files of the checkpoint are lost")
def _(s: Situation) -> list[str]:
    return ["memory", "show", "--at", _repaired(s, "files"), "--user", "alice"]


@case("checkpoints rewind", "contents that the rewind needs, and files of the checkpoint, are missing")
def _(s: Situation) -> list[str]:
    s.story()
    for pack in (s.profile / "checkpoints" / "packs").iterdir():
        pack.unlink()
    return on("rewind", "~1")


@case("checkpoints verify", "stored data is damaged", prints=True)
def _(s: Situation) -> list[str]:
    scene = s.story()
    for record in scene.records()[-2:]:
        if record.pack:
            spoil(s.profile / "checkpoints" / "packs" / record.pack)
    return on("verify")


@case("checkpoints rewind", "contents that the rewind needs are damaged")
def _(s: Situation) -> list[str]:
    scene = s.story()
    scene.agent("a.txt", "three\n")
    record = next(record for record in scene.records() if record.turn == 2 and record.kind == "tool")
    spoil(s.profile / "checkpoints" / "packs" / record.pack)
    return on("rewind", "~2")


@case("checkpoints rewind", "the stored contents of a file that the rewind would change are damaged")
def _(s: Situation) -> list[str]:
    s.story()
    for pack in (s.profile / "checkpoints" / "packs").iterdir():
        wanted = hashlib.sha256(b"two\n").digest()
        _flip(pack, *(entry.offset for entry in pack_store.read_table(str(pack)) if entry.digest == wanted))
    return on("rewind", "~1", "--force")


@case("checkpoints rewind", "Ctrl-C while the rewind changes files")
def _(s: Situation) -> Result:
    s.story()
    interrupt = Counter(1, lambda: signal.raise_signal(signal.SIGINT), only=("rename",), beneath=str(s.workspace))
    with interrupt.installed():
        return s.run(*on("rewind", "~1"))


@case("checkpoints fork", "the checkpoint has no messages")
def _(s: Situation) -> list[str]:
    s.alice()
    place = s.place / "foreign"
    place.mkdir()
    one = {"id": "one", "label": "one", "turn": 0, "messages": [], "created_at": "2026-01-01T00:00:00Z"}
    (place / "one.json").write_text(json.dumps(one))
    assert s.run("checkpoints", "import", str(place), "--user", "alice").code == 0
    return on("fork", "one", "other")


@case("sessions show", "the record of the session is damaged, and there are several message logs")
def _(s: Situation) -> list[str]:
    log = _log(s)
    (log.parent / "0000.jsonl").write_bytes(log.read_bytes())
    (log.parent / "session.json").write_text("rubbish")
    (s.profile / "checkpoints" / "ledger.jsonl").unlink()
    return list(MAIN)


@case("sessions show", "the record of the session has the format of a later deepctl")
def _(s: Situation) -> list[str]:
    log = _log(s)
    s.seal(log.parent / "session.json", {"v": 99})
    return list(MAIN)


@case("sessions show", "the message log has the format of a later deepctl")
def _(s: Situation) -> list[str]:
    s.seal(_log(s), {"v": 99}, append=True)
    return list(MAIN)


@case("sessions show", "the message log is missing")
def _(s: Situation) -> list[str]:
    _log(s).unlink()
    return list(MAIN)
