"""The ledger of checkpoints, and which of them a person means."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepctl.errors import BadName, NewerFormat, Refused, UsageError
from deepctl.files import sealed_lines
from deepctl.store import ledger, ledger_fold
from deepctl.store.ledger import Ledger, LedgerWriter
from deepctl.store.lookup import CheckpointNotFound, resolve
from deepctl.store.records import Record, Rewind


def _record(identity: str, turn: int = 1, parent: str | None = None, session: str = "s1") -> Record:
    return Record(
        id=identity,
        kind="turn",
        session=session,
        turn=turn,
        created_at="2026-01-01T00:00:00Z",
        log="a",
        offset=turn * 100,
        message_count=turn * 2,
        parent=parent,
        author="agent",
        tree="0" * 64,
        files=1,
        bytes=2,
        added_bytes=3,
        prompt="hello",
    )


def _rewind(identity: str, safety: str, to: str) -> Rewind:
    return Rewind(identity, "2026-01-01T00:00:00Z", "s1", safety, to, "", "0" * 64, "b", to)


def _all(found: Ledger) -> dict[str, object]:
    return {key: value for key, value in vars(found).items() if key != "ends_in_removal"}


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Three turns, the first labelled."""
    directory = str(tmp_path / "checkpoints")
    writer = LedgerWriter(directory)
    parent = None
    for turn, identity in enumerate(("aaaa000000000001", "aaaa000000000002", "bbbb000000000003"), 1):
        writer.add(_record(identity, turn, parent))
        parent = identity
    writer.label("aaaa000000000001", "good")
    writer.close()
    return directory


def test_what_was_written_is_read_by_anybody(place: str) -> None:
    found = ledger.read(place)
    assert list(found.records) == ["aaaa000000000001", "aaaa000000000002", "bbbb000000000003"]
    assert found.records["aaaa000000000002"] == _record("aaaa000000000002", 2, "aaaa000000000001")
    assert found.labels == {"aaaa000000000001": "good"}
    assert found.heads == {"s1": "bbbb000000000003"}
    assert ledger.read(place + "-nowhere").records == {}


def test_the_writer_says_what_a_reader_would(place: str) -> None:
    writer = LedgerWriter(place)
    writer.label("aaaa000000000002", "Other")
    writer.label("aaaa000000000001", None)
    writer.remove(["bbbb000000000003"], {}, [], "")
    writer.begin(_record("cccc000000000004"), _rewind("r1", "cccc000000000004", "aaaa000000000001"))
    assert _all(writer.ledger) == _all(ledger.read(place))
    assert writer.ledger.unfinished is not None
    writer.finish(writer.ledger.unfinished)
    assert _all(writer.ledger) == _all(ledger.read(place))
    assert writer.ledger.unfinished is None
    assert writer.ledger.labels == {"aaaa000000000002": "Other"}
    writer.close()


@pytest.mark.parametrize("label", ["", "..", "a b", "abcd", "1234", "DEADBEEF", "x" * 65, "con"])
def test_a_bad_label_is_refused(place: str, label: str) -> None:
    writer = LedgerWriter(place)
    with pytest.raises(BadName):
        writer.label("aaaa000000000002", label)
    writer.close()
    assert ledger.read(place).labels == {"aaaa000000000001": "good"}


def test_a_label_names_one_checkpoint_in_whatever_case(place: str) -> None:
    writer = LedgerWriter(place)
    with pytest.raises(Refused):
        writer.label("aaaa000000000002", "GOOD")
    writer.label("aaaa000000000001", "Good")
    writer.close()
    assert resolve(ledger.read(place), "gOOD", None, 3).id == "aaaa000000000001"


def test_a_reference_is_an_id_then_a_label_then_a_prefix(place: str) -> None:
    found = ledger.read(place)
    assert resolve(found, "bbbb000000000003", None, 3).turn == 3
    assert resolve(found, "good", None, 3).turn == 1
    assert resolve(found, "bbbb", None, 3).turn == resolve(found, "BBBB", None, 3).turn == 3
    with pytest.raises(UsageError, match="aaaa000000000001, aaaa000000000002"):
        resolve(found, "aaaa", None, 3)
    for wrong in ("bbb", "cccc", "", "nope", "~", "~x", "../x", "bbbb000000000003x"):
        with pytest.raises(CheckpointNotFound):
            resolve(found, wrong, None, 3)


def test_turns_are_counted_back_along_the_line_of_the_session(place: str) -> None:
    found = ledger.read(place)
    head = found.heads["s1"]
    assert [resolve(found, f"~{n}", head, 3).turn for n in range(3)] == [3, 2, 1]
    for reference in ("~3", "~99"):
        with pytest.raises(CheckpointNotFound):
            resolve(found, reference, head, 3)
    with pytest.raises(CheckpointNotFound, match="nearest before it is bbbb000000000003"):
        resolve(found, "~1", head, 5)
    with pytest.raises(CheckpointNotFound):
        resolve(found, "~1", None, 3)


def test_what_was_rewound_is_not_on_the_line_but_still_there(place: str) -> None:
    writer = LedgerWriter(place)
    rewind = _rewind("r1", "cccc000000000004", "aaaa000000000001")
    writer.begin(_record("cccc000000000004", 3, "bbbb000000000003"), rewind)
    assert writer.ledger.heads["s1"] == "cccc000000000004", "nothing has moved yet"
    writer.finish(rewind)
    assert writer.ledger.last_rewind("s1") == rewind
    assert [record.id for record in writer.ledger.line_of(writer.ledger.heads["s1"])] == ["aaaa000000000001"]
    writer.add(_record("dddd000000000005", 2, "aaaa000000000001"))
    writer.close()
    found = ledger.read(place)
    head = found.heads["s1"]
    assert [record.turn for record in found.line_of(head)] == [2, 1]
    assert resolve(found, "~1", head, 2).id == "aaaa000000000001"
    assert "bbbb000000000003" in found.records
    assert found.rewinds["r1"] == rewind


def test_an_abandoned_rewind_never_happened(place: str) -> None:
    writer = LedgerWriter(place)
    rewind = _rewind("r1", "cccc000000000004", "aaaa000000000001")
    writer.begin(_record("cccc000000000004", 3, "bbbb000000000003"), rewind)
    writer.abandon(rewind)
    writer.close()
    found = ledger.read(place)
    assert (found.unfinished, found.rewinds, found.last_rewind("s1")) == (None, {}, None)
    assert found.heads["s1"] == "bbbb000000000003"
    assert "cccc000000000004" not in found.records


def test_an_abandoned_rewind_leaves_a_turn_that_was_killed_open(place: str) -> None:
    writer = LedgerWriter(place)
    writer.add(_record("bbbb000000000004", 4, "bbbb000000000003")._replace(kind="tool"))
    writer.remove(["bbbb000000000004"], {}, [], "")
    rewind = _rewind("r1", "cccc000000000005", "aaaa000000000001")
    writer.begin(_record("cccc000000000005", 5, "bbbb000000000004"), rewind)
    assert (writer.ledger.open_turns, writer.ledger.ends) == (set(), {"a": 500})
    writer.abandon(rewind)
    writer.close()
    found = ledger.read(place)
    assert (found.open_turns, found.ends) == ({"a"}, {"a": 400})


def test_a_later_checkpoint_means_that_the_rewind_before_it_was_finished(place: str) -> None:
    writer = LedgerWriter(place)
    rewind = _rewind("r1", "cccc000000000004", "aaaa000000000001")
    writer.begin(_record("cccc000000000004", 3, "bbbb000000000003"), rewind)
    writer.add(_record("dddd000000000005", 2, "aaaa000000000001"))
    writer.close()
    assert ledger.read(place).unfinished is None


def test_the_line_goes_on_past_what_was_removed(place: str) -> None:
    writer = LedgerWriter(place)
    writer.remove(["aaaa000000000002"], {}, [], "")
    writer.close()
    found = ledger.read(place)
    assert [record.turn for record in found.line_of(found.heads["s1"])] == [3, 1]
    assert found.parent(found.records["bbbb000000000003"]) == "aaaa000000000001"


def test_a_flipped_byte_takes_one_line_down_and_names_its_checkpoint(place: str) -> None:
    path = Path(place) / "ledger.jsonl"
    raw = path.read_bytes()
    whole = ledger.read(place)
    randomness = random.Random(3)
    for position in randomness.sample(range(len(raw) - 1), 300):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ randomness.randrange(1, 256)]) + raw[position + 1 :])
        found = ledger.read(place)
        assert 1 <= len(found.damage) <= 2
        for identity, record in found.records.items():
            assert record == whole.records[identity]
        assert len(found.records) >= 2 - (len(found.damage) - 1)
        missing = whole.records.keys() - found.records.keys()
        if len(missing) == 1 and b'"record":{"id":"%s"' % missing.copy().pop().encode() in path.read_bytes():
            assert missing == {damage.id for damage in found.damage if damage.id}


def test_a_torn_last_line_never_happened(place: str) -> None:
    path = Path(place) / "ledger.jsonl"
    raw = path.read_bytes()
    last = raw.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(raw) - 1, 5):
        path.write_bytes(raw[:cut])
        found = ledger.read(place)
        assert (len(found.records), found.labels, found.damage) == (3, {}, [])
        writer = LedgerWriter(place)
        writer.label("aaaa000000000001", "good")
        writer.close()
        assert path.read_bytes() == raw


def test_a_later_format_is_refused_and_senseless_lines_are_named(place: str) -> None:
    path = Path(place) / "ledger.jsonl"
    raw = path.read_bytes()
    path.write_bytes(
        raw + sealed_lines.seal({"v": 1, "record": {"id": 5}}) + sealed_lines.seal({"v": 1, "rewound": "unknown"})
    )
    found = ledger.read(place)
    assert [damage.reason for damage in found.damage] == ["not an entry of a ledger"] * 2
    assert len(found.records) == 3
    path.write_bytes(raw + sealed_lines.seal({"v": 3, "record": {}}))
    with pytest.raises(NewerFormat):
        ledger.read(place)


@pytest.fixture
def everything(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ledger with a line of every kind, of which folds are kept however short it is."""
    monkeypatch.setattr(ledger_fold, "SMALLEST_LEDGER", 1)
    writer = LedgerWriter(place)
    first, second = "aaaa000000000001", "aaaa000000000002"
    writer.add(_record("bbbb000000000004", 4, "bbbb000000000003")._replace(kind="tool", author="other", label="four"))
    for number, (identity, end) in enumerate((("r1", "finish"), ("r2", "abandon"), ("r3", "give_up"), ("r4", ""))):
        rewind = _rewind(identity, f"cccc00000000000{number}", first)._replace(pack=f"{number}.pack")
        writer.begin(_record(rewind.safety, 4, "bbbb000000000004")._replace(unkept=[["a", "a FIFO"]]), rewind)
        if end:
            getattr(writer, end)(rewind)
    writer.add(_record("dddd000000000005", 2, first, session="s2")._replace(metadata={"run": "x", "to": [1.5, None]}))
    writer.remove([second], {"bbbb000000000003": [("s1", ["a", "b"]), (None, [])]}, ["0.pack"], "9.pack")
    writer.tie({first: "d" * 32, "bbbb000000000003": ""})
    writer._append({"gap": None})
    writer._append({"repaired": {first: {"lost": "files"}, "bbbb000000000004": {"tree": ""}}, "packs": [], "gone": []})
    writer.label(first, None)
    writer.close()
    return place


def _values(found: Ledger) -> dict[str, object]:
    """All that a ledger says, with the states that a fold keeps for later."""
    return {**vars(found), "states": found.states, "_states": [], "_folded_states": b""}


def _folds(place: str) -> Iterator[tuple[str, bytes, Ledger]]:
    """The ledger, and for every line the fold of what ends there, written beside it."""
    path, cache = Path(place) / "ledger.jsonl", f"{place}/fold"
    raw = path.read_bytes()
    ends = [number + 1 for number, byte in enumerate(raw) if byte == ord("\n")]
    for end in ends:
        ledger_fold.write(cache, raw[:end], ledger.parse(raw[:end], str(path)).values())
        yield cache, raw, ledger.parse(raw, str(path))


def test_a_fold_and_the_lines_behind_it_are_the_ledger(everything: str) -> None:
    for cache, raw, whole in _folds(everything):
        fold = ledger_fold.read(cache, raw)
        assert fold is not None
        assert _values(ledger.parse(raw, "", fold)) == _values(whole)
        assert _values(ledger.read(everything, cache)) == _values(whole)


def test_a_fold_is_used_for_no_other_bytes(everything: str) -> None:
    path = Path(everything) / "ledger.jsonl"
    randomness = random.Random(4)
    for cache, raw, _ in _folds(everything):
        position = randomness.randrange(len(raw) - 1)
        for other in (
            raw[:position] + bytes([raw[position] ^ randomness.randrange(1, 256)]) + raw[position + 1 :],
            raw[:position],
            raw.split(b"\n", 1)[1],
        ):
            path.write_bytes(other)
            assert _values(ledger.read(everything, cache)) == _values(ledger.read(everything))
        path.write_bytes(raw)


def test_a_changed_byte_of_a_fold_changes_nothing(everything: str) -> None:
    cache, _, whole = list(_folds(everything))[-3]
    raw = Path(cache).read_bytes()
    for position in range(0, len(raw), 7):
        for changed in (raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :], raw[:position]):
            Path(cache).write_bytes(changed)
            assert _values(ledger.read(everything, cache)) == _values(whole)


def test_a_writer_leaves_a_fold_and_removes_it_before_words_go(everything: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "ledger"
    writer = LedgerWriter(everything, str(cache))
    writer.label("bbbb000000000003", "secret-word")
    writer.close()
    assert b"secret-word" in cache.read_bytes()
    writer = LedgerWriter(everything, str(cache))
    writer.replace(writer.content().replace(b"hello", b"HELLO"))
    assert not cache.exists()
    writer.close()
    assert _values(ledger.read(everything, str(cache))) == _values(ledger.read(everything))


def test_a_short_ledger_has_no_fold(place: str, tmp_path: Path) -> None:
    LedgerWriter(place, str(tmp_path / "fold")).close()
    assert not (tmp_path / "fold").exists()
