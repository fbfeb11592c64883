"""Compactions in the log: the model sees a summary and the end of the conversation, and everybody else all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepctl import layout, quantities
from deepctl.domain import profiles
from deepctl.errors import Damaged, NewerFormat
from deepctl.files import sealed_lines
from deepctl.layout import ProfilePaths, Root
from deepctl.output import sessions_transcript
from deepctl.redaction import Redaction
from deepctl.store import (
    log_file,
    session_catalogue,
    session_export,
    session_import,
    session_log,
    session_reader,
    session_search,
    transcript,
)
from deepctl.store.rewind import RewindRequest, run
from tests.store.scene import Scene

SUMMARY = {"kind": "request", "parts": [{"part_kind": "compaction", "content": "what was said of tea"}]}


def _request(text: str) -> dict[str, Any]:
    return {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": text}]}


def _result(name: str) -> dict[str, Any]:
    return {"part_kind": "tool-return", "tool_name": "ls", "tool_call_id": name, "content": name}


def _response(text: str) -> dict[str, Any]:
    return {"kind": "response", "parts": [{"part_kind": "text", "content": text}]}


def _call(name: str) -> dict[str, Any]:
    return {"kind": "response", "parts": [{"part_kind": "tool-call", "tool_name": "ls", "tool_call_id": name}]}


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / "a.jsonl").write_bytes(sealed_lines.seal(log_file.header("a")))
    return str(tmp_path)


def _write(directory: str, *entries: dict[str, Any] | int, turn: int = 1, name: str = "a") -> int:
    """Messages, results, and for each number a compaction that keeps so many; returns where the log ends."""
    writer = session_log.LogWriter(directory, name, turn)
    for entry in entries:
        if isinstance(entry, int):
            writer.compacted(SUMMARY, entry)
        elif "kind" in entry:
            writer.message(entry)
        else:
            writer.result(entry)
    writer.close()
    return writer.end


def _seen(directory: str, name: str = "a", end: int | None = None) -> list[dict[str, Any]]:
    conversation = session_reader.read_log(directory, name, end)
    return [conversation.messages[place].message for place in session_log.compacted_context(conversation).places]


def _said(directory: str) -> list[dict[str, Any]]:
    return [entry.message for entry in session_reader.read_log(directory, "a").messages]


def test_the_model_sees_the_summary_and_what_was_kept(directory: str) -> None:
    _write(directory, _request("one"), _response("1"))
    before = _write(directory, _request("two"), _response("2"), turn=2)
    _write(directory, 2, turn=2)
    _write(directory, _request("three"), turn=3)
    assert _seen(directory) == [SUMMARY, _request("two"), _response("2"), _request("three")]
    assert _said(directory) == [
        _request("one"),
        _response("1"),
        _request("two"),
        _response("2"),
        SUMMARY,
        _request("three"),
    ]
    assert _seen(directory, end=before) == _said(directory)[:4], "an earlier end of the log is before the compaction"


def test_in_the_middle_of_a_turn_its_prompt_stays_in_sight(directory: str) -> None:
    _write(directory, _request("one"), _response("1"))
    back = [{"kind": "request", "parts": [_result(str(number))]} for number in range(3)]
    entries = [one for number in range(3) for one in (_call(str(number)), _result(str(number)), back[number])]
    _write(directory, _request("long"), *entries, 2, _response("done"), turn=2)
    assert _seen(directory) == [SUMMARY, _request("long"), _call("2"), back[2], _response("done")]
    assert session_reader.read_log(directory, "a").damage == []


def test_a_prompt_that_is_kept_anyway_is_seen_once(directory: str) -> None:
    _write(directory, _request("one"), _response("1"))
    _write(directory, _request("two"), 1, _response("2"), turn=2)
    assert _seen(directory) == [SUMMARY, _request("two"), _response("2")]


def test_the_last_of_several_compactions_counts(directory: str) -> None:
    _write(directory, _request("one"), _response("1"), 1)
    _write(directory, _request("two"), _response("2"), 4, turn=2)
    assert _seen(directory) == [SUMMARY, _response("1"), _request("two"), _response("2")], "no summary of a summary"
    _write(directory, 0, turn=2)
    assert _seen(directory) == [SUMMARY]


def test_a_log_that_continues_another_keeps_its_compaction(directory: str, tmp_path: Path) -> None:
    _write(directory, _request("one"), _response("1"))
    compacted = _write(directory, _request("two"), _response("2"), 2, turn=2)
    _write(directory, _request("elsewhere"), turn=3)
    (tmp_path / "b.jsonl").write_bytes(sealed_lines.seal(log_file.header("b", log_file.Point("a", compacted))))
    _write(directory, _request("here"), turn=3, name="b")
    assert _seen(directory, "b") == [SUMMARY, _request("two"), _response("2"), _request("here")]
    _write(directory, 3, turn=3, name="b")
    assert _seen(directory, "b") == [SUMMARY, _response("2"), _request("here")]


@pytest.mark.parametrize("how", ["flipped", "torn"])
def test_a_compaction_that_is_lost_leaves_the_whole_conversation_in_sight(
    directory: str, tmp_path: Path, how: str
) -> None:
    before = _write(directory, _request("one"), _response("1"))
    _write(directory, 1)
    path = tmp_path / "a.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[:-5] if how == "torn" else raw[:before] + raw[before:].replace(b"tea", b"pea"))
    (damage,) = session_reader.read_log(directory, "a").damage
    assert (damage.line, damage.torn) == (4, how == "torn")
    assert _seen(directory) == _said(directory) == [_request("one"), _response("1")]
    _write(directory, _request("two"), turn=2)
    assert _seen(directory)[-1] == _request("two")


def test_a_line_that_is_lost_shifts_nothing_behind_it(directory: str, tmp_path: Path) -> None:
    _write(directory, _request("one"), _response("1"))
    _write(directory, _request("two"), _response("2"), 2, turn=2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"won"'))
    assert _seen(directory) == [SUMMARY, _request("two"), _response("2")]


@pytest.mark.parametrize("keeps", [-1, True, "2", None, 1.0, [1]])
def test_a_compaction_that_makes_no_sense_is_damage(directory: str, tmp_path: Path, keeps: object) -> None:
    _write(directory, _request("one"))
    entry = {"v": log_file.LOG_FORMAT, "turn": 1, "at": quantities.now(), "message": SUMMARY, "keeps": keeps}
    path = tmp_path / "a.jsonl"
    path.write_bytes(path.read_bytes() + sealed_lines.seal(entry))
    assert len(session_reader.read_log(directory, "a").damage) == 1
    assert _seen(directory) == [_request("one")]


def test_one_that_keeps_more_than_there_is_keeps_what_there_is(directory: str) -> None:
    _write(directory, _request("one"), _response("1"), 99)
    assert _seen(directory) == [SUMMARY, _request("one"), _response("1")]


def test_a_deepctl_that_knows_no_compactions_says_so(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(directory, _request("one"), _response("1"), 1)
    monkeypatch.setattr(layout, "LOG_FORMAT", layout.LOG_FORMAT._replace(current=1))
    with pytest.raises(NewerFormat):
        session_reader.read_log(directory, "a")


def test_results_whose_request_was_lost_come_before_the_summary(directory: str, tmp_path: Path) -> None:
    _write(directory, _request("one"), _call("1"), _result("1"))
    writer = session_log.LogWriter(directory, "a", 1)
    writer.compacted(SUMMARY, 1)
    writer.close()
    assert _said(directory)[-2:] == [{"kind": "request", "parts": [_result("1")]}, SUMMARY]
    assert _seen(directory) == [SUMMARY, _request("one"), {"kind": "request", "parts": [_result("1")]}]


class TestSessions:
    """A session of three turns, compacted after the second."""

    @pytest.fixture
    def scene(self, tmp_path: Path) -> Scene:
        scene = Scene(tmp_path / "a")
        scene.agent("a.txt", "one\n")
        scene.agent("a.txt", "two\n")
        self.compact(scene, 4)
        scene.agent("a.txt", "three\n")
        return scene

    def compact(self, scene: Scene, keeps: int) -> None:
        session = scene.session()
        conversation = session_catalogue.read(session)
        with scene.work() as work:
            author = work.between()
            before = session_reader.position(session, conversation)
            writer = session_log.LogWriter(session.directory, session.log, conversation.last_turn)
            writer.compacted(SUMMARY, keeps)
            writer.close()
            after = before._replace(offset=writer.end, message_count=before.message_count + 1)
            work.save(session, "manual", after, author=author)

    def seen(self, paths: ProfilePaths, name: str = "main") -> list[dict[str, Any]]:
        conversation = session_catalogue.read(session_catalogue.find(paths, name))
        return [conversation.messages[place].message for place in session_log.compacted_context(conversation).places]

    def test_a_rewind_to_before_it_brings_the_whole_conversation_back(self, scene: Scene) -> None:
        whole = [entry.message for entry in session_catalogue.read(scene.session()).messages][:8]
        turn, manual = [one for one in scene.records() if one.turn == 2 and one.kind != "tool"]
        assert (turn.message_count, manual.message_count) == (8, 9)
        compacted = self.seen(scene.paths)
        with scene.work() as work:
            run(work, scene.session(), RewindRequest(manual))
        assert self.seen(scene.paths) == [SUMMARY, *whole[4:]], "the same files and turns, still compacted"
        with scene.work() as work:
            done = run(work, scene.session(), RewindRequest(turn))
        assert done.safety is not None, "there was something to take back, though no turn was"
        assert (done.plan.messages_removed, done.plan.turns_removed) == (1, 0)
        assert self.seen(scene.paths) == whole
        scene.undo()
        assert self.seen(scene.paths) == [SUMMARY, *whole[4:]]
        with scene.work() as work:
            run(work, scene.session(), RewindRequest(scene.last()))
        assert self.seen(scene.paths) == compacted

    def test_forks_from_both_sides(self, scene: Scene) -> None:
        turn, manual = [one for one in scene.records() if one.turn == 2 and one.kind != "tool"]
        with scene.work() as work:
            work.fork(turn, "whole")
            work.fork(manual, "short")
        whole = self.seen(scene.paths, "whole")
        assert len(whole) == 8
        assert self.seen(scene.paths, "short") == [SUMMARY, *whole[4:]]

    def test_an_export_comes_back_as_the_same_bytes(self, scene: Scene, tmp_path: Path) -> None:
        raw = session_export.as_json(session_export.export(scene.paths, "main")).encode()
        paths = profiles.create(Root(str(tmp_path / "b")), "alice")
        session_import.take_over(paths, session_import.parse(raw, "x"))
        assert session_export.as_json(session_export.export(paths, "main")).encode() == raw
        assert self.seen(paths) == self.seen(scene.paths)
        short = session_export.redact(session_export.export(scene.paths, "main"), Redaction({}))
        assert short.compactions == [log_file.Compaction(8, 4)]

    def test_an_export_without_compactions_is_what_it_was_but_for_its_number(self, scene: Scene) -> None:
        document = json.loads(session_export.as_json(session_export.export(scene.paths, "main")))
        assert document["format"] == 2
        assert [set(entry) for entry in document["messages"] if "keeps" not in entry] == [
            {"turn", "at", "message"}
        ] * 12
        del document["messages"][8]["keeps"]
        document["format"] = 1
        document["sha256"] = session_export.digest(document)
        parsed = session_import.parse(json.dumps(document).encode(), "x")
        assert (len(parsed.messages), parsed.compactions) == (13, [])

    @pytest.mark.parametrize("keeps", [-1, 9, True, "4", None, 4.0])
    def test_an_export_with_a_compaction_that_makes_no_sense_is_damaged(self, scene: Scene, keeps: object) -> None:
        document = json.loads(session_export.as_json(session_export.export(scene.paths, "main")))
        document["messages"][8]["keeps"] = keeps
        document["sha256"] = session_export.digest(document)
        with pytest.raises(Damaged):
            session_import.parse(json.dumps(document).encode(), "x")

    def test_only_a_request_can_be_a_summary(self, scene: Scene) -> None:
        document = json.loads(session_export.as_json(session_export.export(scene.paths, "main")))
        document["messages"][7]["keeps"] = 1
        document["sha256"] = session_export.digest(document)
        with pytest.raises(Damaged):
            session_import.parse(json.dumps(document).encode(), "x")

    def test_a_damaged_session_with_a_compaction_can_still_be_taken_over(self, scene: Scene, tmp_path: Path) -> None:
        (path,) = Path(scene.session().directory).glob("*.jsonl")
        first, *lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if b'"keeps"' in line or b'"turn":3' in line]
        path.write_bytes(first + b"not a line\n" + b"".join(kept))
        raw = session_export.as_json(session_export.export(scene.paths, "main")).encode()
        paths = profiles.create(Root(str(tmp_path / "b")), "alice")
        session_import.take_over(paths, session_import.parse(raw, "x"))
        assert self.seen(paths) == self.seen(scene.paths)

    def test_a_transcript_has_everything_and_the_summary(
        self, scene: Scene, capsys: pytest.CaptureFixture[str]
    ) -> None:
        conversation = session_catalogue.read(scene.session())
        sessions_transcript.print_conversation(conversation)
        said = capsys.readouterr().out
        for word in ("write a.txt one", "write a.txt two", "write a.txt three", "what was said of tea"):
            assert word in said
        assert sessions_transcript.COMPACTED in said
        assert transcript.INTERRUPTED not in said, "a summary behind an answer leaves the turn a whole one"
        shown = sessions_transcript.markdown(session_export.export(scene.paths, "main"))
        assert f"*{sessions_transcript.COMPACTED}*\n\nwhat was said of tea" in shown
        assert transcript.INTERRUPTED not in shown

    def test_a_turn_that_was_cut_short_and_then_compacted_still_has_no_answer(self, scene: Scene) -> None:
        conversation = session_catalogue.read(scene.session())
        cut = [*conversation.messages[:7], conversation.messages[8]]
        assert transcript.problem(conversation.messages, 8) is None
        assert transcript.problem(cut, 7) == transcript.INTERRUPTED

    def test_a_search_finds_what_was_said_and_the_summary(self, scene: Scene) -> None:
        (found,) = session_search.search(scene.paths, session_search.words("tea")).matches
        assert (found.part, found.role, found.message, found.turn) == ("summary", "assistant", 8, 2)
        assert len(session_search.search(scene.paths, session_search.words("a.txt one")).matches) > 0

    def test_lists_count_the_summary_as_a_message_and_not_as_a_turn(self, scene: Scene) -> None:
        found = session_catalogue.summary(scene.paths, "main")
        assert (found.turns, found.message_count) == (3, 13)
