"""How the work of a turn is drawn: changes of files, output of commands, the to-do list, thinking and the last line."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from deepctl.cli.repl.command_names import CommandNames
from deepctl.output import render
from deepctl.output.render import cells
from deepctl.output.stream.checklist import Checklist
from deepctl.output.stream.display import JsonDisplay, LiveDisplay, TextDisplay
from deepctl.output.stream.file_diff import PREVIEW_ROWS, FileDiff
from deepctl.output.stream.lines import TerminalCaps
from deepctl.output.stream.thinking import FoldedThinking
from deepctl.output.stream.tool_lines import ShownCall
from deepctl.output.stream.turn_summary import TurnSummary, with_undo
from deepctl.output.stream.turn_view import TurnView
from tests.test_display import NO_TOOL, RESULT, START, call, came, shown, text

PLAIN = TerminalCaps(colour=False, encoding="utf-8")
COLOURED = TerminalCaps(colour=True, encoding="utf-8")
UNDO = "`deepctl checkpoints rewind 0123abcd --user alice`"


def change(identity: str, path: str, before: str | None, after: str | None, remark: str = "") -> dict[str, Any]:
    return {"type": "change", "id": identity, "path": path, "before": before, "after": after, "remark": remark}


def command(identity: str) -> dict[str, Any]:
    return {"type": "command", "id": identity}


def output(identity: str, lines: str, partial: str = "") -> dict[str, Any]:
    return {"type": "output", "id": identity, "lines": lines, "partial": partial}


def work(files: int, added: int | None, removed: int | None) -> dict[str, Any]:
    counts = {"files": files, "added_lines": added, "removed_lines": removed}
    return {"type": "work", **counts, "checkpoint": "0123abcd89ef", "profile": "alice", "session": None}


def plan(identity: str, *statuses: str) -> dict[str, Any]:
    items = [{"content": f"step {number}", "status": status} for number, status in enumerate(statuses, 1)]
    return call(identity, "write_plan", items=items)


def numbered(*numbers: int, word: str = "line") -> str:
    return "".join(f"{word} {number}\n" for number in numbers)


def plain(rows: list[Text]) -> list[str]:
    return [row.plain for row in rows]


def preview(before: str | None, after: str | None, width: int = 40, more: str = "") -> list[str]:
    return plain(FileDiff("a", before, after).preview(PLAIN, width, more))


def test_a_change_has_numbers_signs_and_context() -> None:
    lines = numbered(*range(1, 13))
    assert preview(lines, lines.replace("line 5\n", "five\nand\n").replace("line 11\n", "")) == [
        "    3   line 3",
        "    4   line 4",
        "    5 - line 5",
        "    5 + five",
        "    6 + and",
        "    7   line 6",
        "    8   line 7",
        "      ⋯",
        "   10   line 9",
        "   11   line 10",
        "   11 - line 11",
        "   12   line 12",
    ]


def test_colours_mark_a_change_and_signs_do_where_there_are_none() -> None:
    rows = FileDiff("a", "old\n", "new\n").preview(COLOURED, 40, "")
    assert [COLOURED.ansi(row) for row in rows] == [
        "\x1b[2m   1 \x1b[0m\x1b[31m- \x1b[0m\x1b[31mold\x1b[0m",
        "\x1b[2m   1 \x1b[0m\x1b[32m+ \x1b[0m\x1b[32mnew\x1b[0m",
    ]
    assert [PLAIN.ansi(row) for row in rows] == ["   1 - old", "   1 + new"]


def test_no_color_means_no_colours_at_all() -> None:
    events = (call("1", "edit_file", path="a"), change("1", "a", "a\n", "b\n"), came("1", "edit_file", "Edited"))
    thought = {"type": "thinking", "delta": "Hm."}
    with shown(
        START, thought, *events, plan("2", "completed"), came("2", "write_plan", ""), RESULT, NO_COLOR="1"
    ) as display:
        found = display.end()
    assert found[2:5] == ["✓ edit_file  a  → +1 -1", "   1 - a", "   1 + b"]
    assert re.search(rb"\x1b\[[\d;]*m", display.bytes) is None


def test_of_a_long_change_old_and_new_lines_are_seen_and_the_others_counted() -> None:
    rows = preview(numbered(*range(1, 41)), numbered(*range(1, 51), word="new"), more=" (/details)")
    assert len(rows) == 11
    assert [row[5] for row in rows[:-1]] == ["-"] * 5 + ["+"] * 5
    assert rows[-1] == "   … 80 more lines (/details)"


def test_details_have_every_line_whole() -> None:
    before, after = numbered(*range(1, 41)), numbered(*range(1, 51), word="a long line that does not fit into a row")
    rows = plain(FileDiff("src/a.py", before, after).details(PLAIN, 40))
    assert rows[0] == "   src/a.py: +50 -40"
    assert "".join("".join(rows[1:]).split()).count("alonglinethatdoesnotfitintoarow") == 50
    assert all(cells(row) <= 40 for row in rows)


@pytest.mark.parametrize(
    ("before", "after", "remark", "outcome"),
    [
        ("a\n", "a\nb\n", "", "+1"),
        ("a\nb\n", "a\n", "", "-1"),
        (None, "a\nb\n", "", "new file, +2"),
        (None, "", "", "new file"),
        ("a\n", None, "", "deleted, -1"),
        ("a\n", "a\n", "", "unchanged"),
        ("a\nb\n", "a\nb", "", "only the line endings change"),
        ("", "", "binary", "binary"),
        (None, "", "too large to compare", "new file, too large to compare"),
        (numbered(*range(1600)), numbered(*range(1600), word="x"), "", "too many lines to compare"),
        # Without a carriage return in each line, for what a file of Windows has in all of them.
        ("a\r\nb\r\n", "a\r\nc\r\n", "", "+1 -1"),
    ],
)
def test_the_outcome_of_a_change(before: str | None, after: str | None, remark: str, outcome: str) -> None:
    diff = FileDiff("a", before, after, remark)
    assert diff.outcome() == outcome
    assert not any("\\x0d" in row for row in plain(diff.preview(PLAIN, 80, "")))


_LINES = st.text(st.sampled_from("ab\n漢\x1b\t🎉\r"), max_size=120)


@given(_LINES, _LINES, st.sampled_from([10, 20, 33, 40, 80]))
def test_a_preview_fits_and_its_lines_are_those_of_the_files(before: str, after: str, width: int) -> None:
    diff = FileDiff("a", before, after)
    rows = diff.preview(PLAIN, width, "")
    assert len(rows) <= PREVIEW_ROWS
    assert all(cells(row.plain) <= width and "\x1b" not in row.plain and "\r" not in row.plain for row in rows)
    if not diff.remark and (diff.added or 0) + (diff.removed or 0) <= PREVIEW_ROWS:
        # A few lines have numbers of one digit.
        signs = [line.ljust(6)[5] for line in plain(diff.preview(PLAIN, 400, ""))] if len(after + before) < 9 else []
        assert signs.count("+") == (diff.added if signs else 0)
        assert signs.count("-") == (diff.removed if signs else 0)


def test_a_huge_change_takes_no_time() -> None:
    began = time.process_time()
    for before, after in [
        ("", numbered(*range(100_000))),
        ("x" * 1_000_000, "漢" * 300_000),
        (
            "".join(f"{number % 150}\n" for number in range(1400)),
            "".join(f"{number % 149}\n" for number in range(1400)),
        ),
    ]:
        diff = FileDiff("a", before, after)
        diff.preview(COLOURED, 80, "")
        diff.outcome()
    assert time.process_time() - began < 3


def test_a_change_stands_under_its_call_and_nothing_in_it_reaches_the_terminal_as_a_command() -> None:
    hostile = "x\x1b[2J\x1b]0;title\x07\u202e\n"
    with shown(
        START,
        call("1", "edit_file", path="a.txt", old_string="b", new_string=hostile),
        change("1", "a.txt", "a\nb\nc\n", f"a\n{hostile}c\n"),
        came("1", "edit_file", "Edited a.txt: replaced 1 occurrence(s)"),
        call("2", "write_file", path="b", content="x"),
        change("2", "b", None, "x"),
        came("2", "write_file", "Error: no", ok=False),
        work(1, 1, 1),
        {**RESULT, "cost": 0.034},
        {"do": "details", "number": 1},
    ) as display:
        found = display.end()
    diff = ["   1   a", "   2 - b", "   2 + x\\x1b[2J\\x1b]0;title\\x07\\u202e", "   3   c"]
    assert found == [
        "✓ edit_file  a.txt  → +1 -1",
        *diff,
        "✗ write_file  b  → no",
        "",
        "1 file changed, +1 -1 · $0.03 · `deepctl checkpoints rewind 0123abcd --user",
        "alice` takes it back",
        "",
        "1. ✓ edit_file",
        "   path: a.txt",
        "   a.txt: +1 -1",
        *diff,
        "   → Edited a.txt: replaced 1 occurrence(s)",
    ]
    assert b"\x1b[2J" not in display.bytes
    assert b"\x07" not in display.bytes


def test_a_change_that_was_just_approved_is_not_shown_again() -> None:
    with shown(START, call("1", "edit_file", path="a"), {"do": "ask"}) as display:
        display.expect("May I?")
        display.tell({"answer": True}, change("1", "a", "a\n", "b\n"), came("1", "edit_file", "Edited"), RESULT)
        assert display.end() == ["May I? yes", "✓ edit_file  a  → +1 -1", "", "1 file changed, +1 -1"]


def test_a_turn_that_is_stopped_says_what_it_leaves() -> None:
    calls = (call("1", "execute", command="make"), call("2", "execute", command="make test"))
    with shown(START, *calls, command("1"), output("1", "compiles\n", "links")) as display:
        display.matched(r"execute  make  \d+ s")
        assert "· execute  make test" in display.lines
        display.tell(work(1, 2, 0), {"do": "stop"})
        found = display.end()
    assert re.fullmatch(r"· execute  make  → stopped  \d+ s", found[0])
    assert found[1:5] == ["  │ compiles", "  │ links", "· execute  make test  → not started", ""]
    assert "".join(found[5:]).startswith("1 file changed, +2 -0 · 1 command · `deepctl checkpoints")


def test_the_last_lines_of_a_command_are_seen_while_it_runs() -> None:
    with shown(
        START, call("1", "execute", command="make"), command("1"), output("1", numbered(*range(1, 8)), "half")
    ) as display:
        display.expect("│ half")
        assert display.lines[1:6] == [f"  │ {line}" for line in ("line 4", "line 5", "line 6", "line 7", "half")]
        display.tell(output("1", "half a line\n", "50 %\x1b[31m red\x1b[0m\x1b[2J"))
        display.expect("│ 50 % red")
        assert "half a line" in display.lines[4]
        display.tell(came("1", "execute", numbered(*range(1, 9))), output("1", "late\n"), RESULT)
        assert display.end() == ["✓ execute  make  → 8 lines", "", "1 command"]
        assert b"\x1b[2J" not in display.bytes


def test_much_output_costs_little_and_its_end_is_kept() -> None:
    made = ShownCall("execute", {"command": "make"}, 0.0)
    began = time.process_time()
    for number in range(50_000):
        made.printed(f"line {number} {'x' * 60}\n", "")
    assert plain(made.output_rows(PLAIN, 14, 2)) == ["  │ line 4999…", "  │ line 4999…"]
    assert time.process_time() - began < 2
    made.ended(True, "cut", 1.0)
    rows = plain(made.details(1, PLAIN, 80))
    assert rows[-2].startswith("     line 49999 x")
    assert 10_000 < len(rows) < 20_000


def test_details_have_the_output_that_the_result_was_cut_of() -> None:
    with shown(
        START,
        call("1", "execute", command="make"),
        output("1", numbered(*range(100))),
        came("1", "execute", "line 0\n[cut]"),
        RESULT,
        {"do": "details", "number": 1},
        lines=150,
    ) as display:
        found = display.end()
    assert found[-105:-101] == ["   command: make", "   output:", "     line 0", "     line 1"]
    assert found[-3:] == ["   →", "     line 0", "     [cut]"]


def test_the_to_do_list_is_one_list_that_changes_in_place() -> None:
    with shown(START, plan("1", "in_progress", "pending"), came("1", "write_plan", "ok")) as display:
        display.expect("☐ step 2")
        assert display.lines[:3] == ["To-do list: 0 of 2 done", "  ▸ step 1", "  ☐ step 2"]
        display.tell(text("On it."), call("2", "execute", command="make"), command("2"), output("2", "one\n"))
        display.expect("│ one")
        display.tell(came("2", "execute", "one"), plan("3", "completed", "in_progress"), came("3", "write_plan", "ok"))
        display.expect("▸ step 2")
        assert "\n".join(display.lines).count("step 1") == 1
        display.tell(plan("4", "completed"), came("4", "write_plan", "Error: no", ok=False), RESULT)
        found = display.end()
        assert found[:3] == ["On it.", "", "✓ execute  make  → one"]
        assert found[3].startswith("✗ write_plan")
        assert found[4:] == ["", "To-do list: 1 of 2 done", "  ✓ step 1", "  ▸ step 2", "", "1 command"]


@pytest.mark.parametrize("room", range(8))
def test_in_a_small_window_the_list_begins_with_the_first_open_step(room: int) -> None:
    steps = Checklist([(f"step {number}", "completed" if number < 4 else "pending") for number in range(9)])
    rows = plain(steps.rows(PLAIN, 30, room))
    assert len(rows) <= room
    assert len(steps.rows(PLAIN, 30)) == 10
    if room >= 4:
        assert rows[0] == "To-do list: 4 of 9 done"
        assert rows[1] == "  ☐ step 4"
        assert rows[-1] == f"  … {9 - room + 2} more"


@pytest.mark.parametrize("items", [None, "no list", [1], [{"status": 3}], [{"content": ["x\x1b"], "status": "?"}]])
def test_a_list_of_any_form_is_no_failure(items: object) -> None:
    made = Checklist.of({"items": items})
    rows = plain(made.rows(PLAIN, 20)) if made is not None else []
    assert not any("\x1b" in row for row in rows)


def test_thinking_is_seen_while_it_lasts_and_then_folded() -> None:
    thought = numbered(*range(1, 10), word="thought")
    with shown(START, {"type": "thinking", "delta": thought}) as display:
        display.expect("thought 9")
        assert display.lines[:4] == ["thought 6", "thought 7", "thought 8", "thought 9"]
        display.tell(text("So."), RESULT, {"do": "details", "number": None}, {"do": "details", "number": 1})
        found = display.end()
    assert found[0].startswith("Thought")
    assert found[0].endswith("9 lines; /details shows it.")
    assert found[1:6] == ["", "So.", "", "Thinking", "  thought 1"]
    assert found[-2:] == ["Tokens of the last turn: 1 in, 1 out.", NO_TOOL]
    assert b"\x1b[2mthought 9\x1b[0m" in display.bytes


def test_long_thinking_costs_the_same_to_draw() -> None:
    thinking = FoldedThinking(PLAIN, 0.0)
    thinking.feed("word " * 200_000, 1.0)
    began = time.process_time()
    for _ in range(20):
        assert len(thinking.tail(80)) == 4
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("events", "cost", "line"),
    [
        ([work(0, 0, 0)], 0.5, ""),
        ([work(1, 3, 0)], None, f"1 file changed, +3 -0 · {UNDO} takes it back"),
        ([work(1200, None, None), "command"], 1.5, f"1,200 files changed · 1 command · $1.50 · {UNDO} takes it back"),
        ([work(0, 0, 0), "command", "command"], 0.0, "2 commands"),
        ([change("1", "a", "a\n", "b\n"), change("2", "a", "b\n", "c\nd\n")], None, "1 file changed, +3 -2"),
    ],
)
def test_the_last_line(events: list[Any], cost: float | None, line: str) -> None:
    summary = TurnSummary()
    for event in events:
        if event == "command":
            summary.command_started()
        elif event["type"] == "work":
            summary.work(with_undo(event))
        else:
            summary.changed(FileDiff.of(event))
    assert summary.line(cost, " · ") == line


def test_the_command_that_takes_a_turn_back_has_the_name_of_its_place() -> None:
    event = {**work(1, 1, 0), "session": "shop"}
    assert with_undo(event)["undo"] == f"{UNDO[:-1]} --session shop`"
    with render.conversing(CommandNames({("checkpoints", "rewind"): "/rewind"}, "alice").reword):
        assert with_undo(event)["undo"] == "/rewind 0123abcd"


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 15, 24])
@pytest.mark.parametrize("width", [20, 40, 120])
def test_what_goes_on_fits_every_window_with_the_running_call_in_it(width: int, height: int) -> None:
    view = TurnView(PLAIN, time.monotonic())
    events = [
        plan("1", *["completed"] * 3, "in_progress", *["pending"] * 20),
        came("1", "write_plan", "ok"),
        *(call(str(number), "execute", command=f"make part{number}") for number in range(2, 12)),
        output("2", numbered(*range(1, 30), word="漢字" * 30)),
    ]
    for event in events:
        view.event(event, time.monotonic(), width)
    rows = plain(view.tail(width, height))
    assert len(rows) <= max(height - 1, 1)
    assert all(cells(row) <= width for row in rows)
    if height >= 5:
        assert any("execute" in row for row in rows)
        assert any(row.startswith("To-do list") for row in rows)
    if height >= 15:
        assert sum("│" in row for row in rows) >= 1
        assert any("waiting" in row for row in rows)


def test_events_of_work_are_no_part_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    display = JsonDisplay()
    for event in (change("1", "a", "a", "b"), command("1"), output("1", "x"), work(1, 1, 1), {"type": "activity"}):
        display.event(event)
    assert capsys.readouterr().out == ""
    assert not display.shows_work
    assert LiveDisplay.shows_work


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def turn(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What one turn writes to stderr."""

    def play(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        display = TextDisplay()
        for event in (
            plan("0", "completed", "pending"),
            came("0", "write_plan", "ok"),
            call("1", "edit_file", path="a"),
            change("1", "a\x1b[2J", "a\n", "b\n"),
            came("1", "edit_file", "ok"),
            work(1, 1, 1),
            {**RESULT, "cost": 0.02},
        ):
            display.event(event)
        display.close()
        return stream.getvalue()

    return play


def test_one_turn_at_a_terminal_shows_its_changes_list_and_summary(
    turn: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert turn(_Terminal()).splitlines()[-7:] == [
        "✓ edit_file  a  → +1 -1",
        "   1 - a",
        "   1 + b",
        "To-do list: 1 of 2 done",
        "  ✓ step 1",
        "  ☐ step 2",
        f"1 file changed, +1 -1, $0.02, {UNDO} takes it back.",
    ]


def test_one_turn_does_not_repeat_a_change_that_was_just_approved(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    display = TextDisplay()
    display.event(call("1", "edit_file", path="a"))
    with display.paused():
        pass
    display.event(change("1", "a", "a\n", "b\n"))
    display.event(came("1", "edit_file", "ok"))
    display.event(call("2", "edit_file", path="a"))
    for event in (change("2", "a", "b\n", "c\n"), came("2", "edit_file", "ok"), RESULT):
        display.event(event)
    assert stream.getvalue().splitlines() == [
        "✓ edit_file  a  → +1 -1",
        *("✓ edit_file  a  → +1 -1", "   1 - b", "   1 + c"),
        "1 file changed, +2 -2.",
    ]


def test_one_turn_tells_that_a_command_runs_and_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    display = TextDisplay()
    display.event(call("1", "execute", command="make \x1b[2J"))
    display.event({"type": "command", "id": "1"})
    assert stream.getvalue() == "· execute  make \\x1b[2J\n"
    display.event(came("1", "execute", "one\ntwo"))
    assert stream.getvalue().splitlines()[1:] == ["✓ execute  make \\x1b[2J  → 2 lines"]


def test_one_turn_without_a_terminal_shows_nothing_of_it(turn: Callable[..., str]) -> None:
    assert turn(io.StringIO()) == ""


def test_a_sub_agent_has_one_line_and_its_calls_in_the_details() -> None:
    inner: list[dict[str, Any]] = [call("i1", "grep", pattern="tea"), came("i1", "grep", "Found 3 match(es) for tea")]
    end = {"type": "end", "seconds": 1.0, "usage": {}, "cost": 0.25}
    events = [
        call("c1", "delegate_task", agent_name="explorer", task="Find\nthe \x1b[2J tea."),
        *({"type": "subagent", "id": "c1", "agent": "explorer", "event": event} for event in (*inner, end)),
        came("c1", "delegate_task", "It is in a.txt.\nAnd in b.txt."),
        {"type": "subagent", "id": "unknown", "agent": "x", "event": end},
    ]
    view = TurnView(PLAIN, time.monotonic())
    for event in events[:2]:
        view.event(event, time.monotonic(), 80)
    assert "  │ · grep  tea" in [row.plain for row in view.tail(80, 20)]
    for event in events[2:]:
        view.event(event, time.monotonic(), 80)
    rows = [row.plain for row in view.settled(80)]
    assert rows == ["✓ delegate_task  explorer: Find the \\x1b[2J tea.  → 1 call, 2 lines, $0.25"]
    (shown_call,) = view.parts
    assert isinstance(shown_call, ShownCall)
    assert "     ✓ grep  tea  → 3 matches" in [row.plain for row in shown_call.details(1, PLAIN, 80)]
