"""The message log: every complete message survives, whatever a kill or damage does to the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepctl import quantities
from deepctl.errors import Damaged, NewerFormat
from deepctl.files import sealed_lines
from deepctl.store import log_file, session_log, session_reader

ASK = {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hello"}], "instructions": "be kind"}
CALL = {"kind": "response", "parts": [{"part_kind": "tool-call", "tool_call_id": "1"}]}
ONE = {"part_kind": "tool-return", "tool_call_id": "1", "content": "first"}
TWO = {"part_kind": "tool-return", "tool_call_id": "2", "content": "second"}
BACK = {"kind": "request", "parts": [ONE, TWO], "instructions": "be kind"}
END = {"kind": "response", "parts": [{"part_kind": "text", "content": "done"}]}


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / "a.jsonl").write_bytes(sealed_lines.seal(log_file.header("a")))
    return str(tmp_path)


def _write(directory: str, *entries: dict[str, Any], turn: int = 1) -> session_log.LogWriter:
    writer = session_log.LogWriter(directory, "a", turn)
    for entry in entries:
        writer.message(entry) if "kind" in entry else writer.result(entry)
    writer.close()
    return writer


def _messages(directory: str) -> list[dict[str, Any]]:
    return [entry.message for entry in session_reader.read_log(directory, "a").messages]


def test_a_whole_turn_is_read_back_as_it_was(directory: str) -> None:
    _write(directory, ASK, CALL, ONE, TWO, BACK, END)
    assert _messages(directory) == [ASK, CALL, BACK, END]


def test_results_and_instructions_are_stored_once(directory: str, tmp_path: Path) -> None:
    _write(directory, ASK, CALL, ONE, TWO, BACK, END)
    raw = (tmp_path / "a.jsonl").read_text()
    assert raw.count("first") == raw.count("second") == raw.count("be kind") == 1


@pytest.mark.parametrize("lines", range(7))
def test_a_turn_killed_after_any_line_keeps_every_line(directory: str, tmp_path: Path, lines: int) -> None:
    _write(directory, ASK, CALL, ONE, TWO, BACK, END)
    path = tmp_path / "a.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[: lines + 1]
    path.write_bytes(b"".join(kept))
    partial = {"kind": "request", "parts": [ONE, TWO][: max(0, lines - 2)]}
    expected = [ASK, CALL][:lines] + ([partial] if lines in (3, 4) else [BACK, END][: max(0, lines - 4)])
    assert _messages(directory) == expected


def test_results_a_kill_left_stay_in_their_own_turn(directory: str) -> None:
    _write(directory, ASK, CALL, ONE)
    _write(directory, ASK, END, turn=2)
    found = session_reader.read_log(directory, "a").messages
    assert [(entry.turn, entry.message["kind"]) for entry in found] == [
        (1, "request"),
        (1, "response"),
        (1, "request"),
        (2, "request"),
        (2, "response"),
    ]
    assert found[2].message["parts"] == [ONE]


def test_a_request_put_together_differently_stands_for_itself(directory: str) -> None:
    changed = {**BACK, "parts": [TWO, ONE]}
    _write(directory, ASK, CALL, ONE, TWO, changed, END)
    assert _messages(directory) == [ASK, CALL, changed, END]


def test_a_torn_last_line_is_reported_and_cut_off_by_the_next_writer(directory: str, tmp_path: Path) -> None:
    _write(directory, ASK, END)
    path = tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    found = session_reader.read_log(directory, "a")
    assert [entry.message for entry in found.messages] == [ASK]
    assert [(damage.line, damage.torn) for damage in found.damage] == [(3, True)]
    assert _write(directory, END, turn=1).torn > 0
    found = session_reader.read_log(directory, "a")
    assert ([entry.message for entry in found.messages], found.damage) == ([ASK, END], [])


@pytest.mark.parametrize("victim", range(1, 7))
def test_a_damaged_line_is_named_and_the_rest_is_used(directory: str, tmp_path: Path, victim: int) -> None:
    _write(directory, ASK, CALL, ONE, TWO, BACK, END)
    path = tmp_path / "a.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[victim] = lines[victim].replace(b'"turn":1', b'"turn":7')
    path.write_bytes(b"".join(lines))
    found = session_reader.read_log(directory, "a")
    assert [(damage.line, damage.torn) for damage in found.damage] == [(victim + 1, False)]
    texts = str([entry.message for entry in found.messages])
    for number, word in ((1, "hello"), (2, "tool-call'"), (3, "first"), (4, "second"), (6, "done")):
        assert (word in texts) == (number != victim), word


def test_a_log_that_continues_another_begins_with_it_up_to_the_offset(directory: str, tmp_path: Path) -> None:
    writer = session_log.LogWriter(directory, "a", 1)
    writer.message(ASK)
    writer.message(END)
    offset = writer.end
    writer.close()
    _write(directory, ASK, CALL, turn=2)
    (tmp_path / "b.jsonl").write_bytes(sealed_lines.seal(log_file.header("b", log_file.Point("a", offset))))
    later = {**ASK, "parts": []}
    other = session_log.LogWriter(directory, "b", 2)
    other.message(later)
    other.close()
    assert [entry.message for entry in session_reader.read_log(directory, "b").messages] == [ASK, END, later]
    assert session_reader.read_log(directory, "b").last_turn == 2


def test_a_later_format_is_refused_and_a_missing_log_is_damage(directory: str, tmp_path: Path) -> None:
    with pytest.raises(Damaged):
        session_reader.read_log(directory, "b")
    (tmp_path / "a.jsonl").write_bytes(sealed_lines.seal({**log_file.header("a"), "v": log_file.LOG_FORMAT + 1}))
    with pytest.raises(NewerFormat):
        session_reader.read_log(directory, "a")


def test_text_that_is_not_utf8_is_replaced_where_it_is_written_and_where_an_old_log_has_it(directory: str) -> None:
    odd, valid = (
        {**END, "parts": [{"part_kind": "text", "content": f"name {one}\u2028 end"}]} for one in ("\udcff", "\ufffd")
    )
    _write(directory, ASK, odd)
    assert _messages(directory)[-1] == valid
    with open(log_file.log_path(directory, "a"), "ab") as file:
        file.write(sealed_lines.seal({"v": log_file.LOG_FORMAT, "turn": 2, "at": quantities.now(), "message": odd}))
    assert _messages(directory)[-1] == valid


def test_a_log_that_lost_what_another_continues_is_damaged(tmp_path: Path) -> None:
    first = log_file.log_path(str(tmp_path), "a")
    Path(first).write_bytes(sealed_lines.seal(log_file.header("a")))
    writer = session_log.LogWriter(str(tmp_path), "a", 1)
    writer.message({"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "hello"}]})
    end = writer.end
    writer.close()
    Path(log_file.log_path(str(tmp_path), "b")).write_bytes(
        sealed_lines.seal(log_file.header("b", log_file.Point("a", end)))
    )
    assert session_reader.read_log(str(tmp_path), "b").damage == []
    whole = Path(first).read_bytes()
    for cut in (whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 30):
        Path(first).write_bytes(whole[:cut])
        found = session_reader.read_log(str(tmp_path), "b")
        assert found.messages == []
        assert log_file.MISSING in {damage.reason for damage in found.damage}
