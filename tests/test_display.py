"""What a person sees of a turn: a real process at a real pseudo-terminal, and the screen it makes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepctl.errors import StorageError
from deepctl.output.render import printable, printable_lines
from deepctl.output.stream.display import LiveDisplay, TextDisplay
from deepctl.output.stream.lines import TerminalCaps
from deepctl.output.stream.live_region import LiveRegion
from deepctl.output.stream.markdown import Markdown
from deepctl.output.stream.tool_lines import ShownCall
from deepctl.output.stream.turn_view import TurnView
from tests.support.clusters import HistoryScreen
from tests.support.template import ForkedProcess, can_fork
from tests.test_markdown import at_once, texts

# Told on stdin what to show, one JSON document a line.
_SCRIPT = """
import json, sys, time
from deepctl.output.stream.display import LiveDisplay
live = LiveDisplay()
try:
    for line in sys.stdin:
        told = json.loads(line)
        match told.pop("do", None):
            case "notice": live.notice(told["message"])
            case "details": live.details(told["number"])
            case "block": time.sleep(told["seconds"])
            case "stop": live.stop(); live.stop()
            case "raise": raise KeyboardInterrupt
            case "ask":
                with live.paused():
                    sys.stdout.write("May I? ")
                    sys.stdout.flush()
                    sys.stdin.readline()
                    print("yes")
            case None: live.event(told)
finally:
    live.stop()
"""

START = {"type": "start"}
NO_TOOL = "No tool has been called in this chat yet."
RESULT = {"type": "result", "output": "", "usage": {"input_tokens": 1, "output_tokens": 1, "requests": 1}}


def text(delta: str) -> dict[str, Any]:
    return {"type": "text", "delta": delta}


def call(identity: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": identity, "name": name, "args": arguments}


def came(identity: str, name: str, content: str, *, ok: bool = True) -> dict[str, Any]:
    return {"type": "tool_result", "id": identity, "name": name, "ok": ok, "content": content}


class Shown:
    """A display in a process of its own; `lines` is everything on the screen and above it."""

    def __init__(self, columns: int = 80, lines: int = 24, **environment: str) -> None:
        self._master, slave = pty.openpty()
        self._size(columns, lines)
        variables = {**os.environ, "TERM": "xterm-256color", **environment}
        self._process: subprocess.Popen[bytes]
        if sys.getfilesystemencoding() == "utf-8" and can_fork(variables):
            self._process = ForkedProcess((), (subprocess.PIPE, slave, slave), environment=variables, program=_SCRIPT)
        else:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=slave,
                stderr=slave,
                env={"PYTHONUTF8": "1", **variables},
            )
        os.close(slave)
        self.screen = HistoryScreen(columns, lines, history=100_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes = b""

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """Change the window, as a person drags its corner."""
        self._size(columns, lines)
        self.screen.resize(lines, columns)
        self._process.send_signal(signal.SIGWINCH)

    def tell(self, *documents: dict[str, Any]) -> None:
        """Give the process what to show."""
        assert self._process.stdin is not None
        for document in documents:
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()

    def read(self, seconds: float) -> bool:
        """Take what comes within so many seconds; whether there was something."""
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # everybody has closed the other end
            return False
        self.bytes += piece
        self._stream.feed(piece)
        return bool(piece)

    @property
    def above(self) -> list[str]:
        """What has scrolled out of the window."""
        return [_row(line, self.screen.columns) for line in self.screen.history.top]

    @property
    def lines(self) -> list[str]:
        return _stripped([*self.above, *(line.rstrip() for line in self.screen.display)])

    def expect(self, wanted: str) -> None:
        """Wait until something is on the screen."""
        end = time.monotonic() + 20
        while not any(wanted in line for line in self.lines):
            assert time.monotonic() < end, f"{wanted!r} is not on the screen:\n" + "\n".join(self.lines)
            self.read(0.1)

    def matched(self, wanted: str) -> re.Match[str]:
        """Wait until a line matches."""
        end = time.monotonic() + 20
        while not (found := re.search(wanted, "\n".join(self.lines))):
            assert time.monotonic() < end, f"{wanted!r} is not on the screen:\n" + "\n".join(self.lines)
            self.read(0.1)
        return found

    def hang_up(self) -> int:
        """Close the window and return the exit code."""
        os.close(self._master)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.tell(text("x"), RESULT, START, text("y"), RESULT)
            self._process.stdin.close()
        return self._process.wait(20)

    def end(self) -> list[str]:
        """Tell nothing more; what is on the screen when the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        end = time.monotonic() + 20
        while self._process.poll() is None or self.read(0.05):
            assert time.monotonic() < end
            self.read(0.05)
        return self.lines

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(OSError):
            os.close(self._master)


def _row(line: Any, columns: int) -> str:
    # A wide character takes two cells, of which the second is empty.
    return "".join(line[column].data for column in range(columns)).rstrip()


def _stripped(lines: list[str]) -> list[str]:
    while lines and not lines[-1]:
        lines.pop()
    return lines


@contextlib.contextmanager
def shown(*documents: dict[str, Any], columns: int = 80, lines: int = 24, **environment: str) -> Iterator[Shown]:
    display = Shown(columns, lines, **environment)
    try:
        display.tell(*documents)
        yield display
    finally:
        display.close()


def test_from_the_start_on_a_line_says_what_goes_on() -> None:
    with shown(START) as display:
        display.expect("Waiting · ")
        display.expect(" s · Ctrl-C stops")
        assert display.screen.cursor.hidden
        display.tell({"type": "thinking", "delta": "Hm."})
        display.expect("Thinking · ")
        display.tell(text("Well"))
        display.expect("Writing · ")
        display.tell(call("1", "execute", command="make"))
        display.expect("Running execute · ")
        display.tell(came("1", "execute", ""), RESULT)
        assert display.end() == ["Hm.", "", "Well", "", "✓ execute  make  → no output"]
        assert not display.screen.cursor.hidden


def test_the_spinner_turns_while_the_turn_computes() -> None:
    with shown(START) as display:
        display.expect("Waiting")
        display.tell({"do": "block", "seconds": 30.0})
        seen: set[str] = set()
        end = time.monotonic() + 20
        while len(seen) < 4:
            assert time.monotonic() < end, seen
            display.read(0.05)
            seen.add(display.lines[-1][0])


def test_an_answer_is_rendered_while_it_is_written() -> None:
    with shown(START, text("# Title\n\nsome **bold** te")) as display:
        display.expect("some bold te")
        assert display.lines[:3] == ["Title", "", "some bold te"]
        display.tell(text("xt and `code`"), RESULT)
        assert display.end() == ["Title", "", "some bold text and code"]
        assert b"\x1b[1mbold\x1b[0m" in display.bytes


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50), (20, 10), (80, 2), (20, 2), (5, 1)])
def test_a_long_answer_is_whole_in_every_window(columns: int, lines: int) -> None:
    answer = (
        "".join(f"{number}. item {number}\n" for number in range(1, 301))
        + "\n```py\n"
        + "".join(f"line_{number} = 'x'\n" for number in range(60))
        + "```\n\n- a\n  - 漢字漢字漢字漢字漢字漢字\n    - 🎉 party\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        + "A paragraph of many words. " * 20
        + "\n\n```\nnever closed"
    )
    with shown(START, columns=columns, lines=lines) as display:
        for start in range(0, len(answer), 37):
            display.tell(text(answer[start : start + 37]))
            display.read(0.002)
        display.tell(RESULT)
        found = display.end()
    wanted = at_once(answer, columns)
    if columns >= 20:
        assert found == wanted
    else:  # narrower than anything is laid out: the terminal wraps
        assert "".join("".join(found).split()) == "".join("".join(wanted).split())


@given(texts, st.integers(0, 2**32), st.sampled_from([20, 40, 79]), st.sampled_from([2, 3, 5, 24]))
def test_screen_and_scrollback_are_the_answer_rendered_at_once(
    answer: str, seed: int, columns: int, lines: int
) -> None:
    """Frames at any moment, as the thread draws them."""
    chance = random.Random(seed)
    screen = HistoryScreen(columns, lines, history=10_000, ratio=0.5)
    stream = pyte.Stream(screen)
    look = TerminalCaps(colour=True, encoding="utf-8")
    turn, region, start = TurnView(look, 0.0), LiveRegion(), 0

    def frame(*, tail: bool = True) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as written:
            settled = [look.ansi(line) for line in turn.settled(columns)]
            rows = [look.ansi(row) for row in turn.tail(columns, lines)] if tail else []
            assert len(rows) < lines or lines < 2
            region.draw(settled, rows, (columns, lines))
        stream.feed(written.getvalue())

    while start < len(answer):
        length = chance.randint(1, chance.choice([1, 8, 80]))
        turn.event(text(answer[start : start + length]), 0.0, columns)
        start += length
        if chance.random() < 0.5:
            frame()
    turn.ended(columns)
    frame(tail=False)
    found = [_row(line, columns) for line in screen.history.top] + [line.rstrip() for line in screen.display]
    # What is wider than the window (code) is wrapped by the terminal; pyte knows other widths of rare characters.
    assert "".join(map(_squeezed, found)) == "".join(map(_squeezed, at_once(answer, columns)))
    if answer.isascii() and not any(mark in answer for mark in ("```", "~~~", "    ", "\t")):
        assert _stripped(found) == _stripped([line.rstrip() for line in at_once(answer, columns)])


def _squeezed(line: str) -> str:
    return "".join(line.split())


def test_of_a_table_that_grows_only_the_end_is_shown_until_it_is_whole() -> None:
    rows = "".join(f"| {number} | value |\n" for number in range(30))
    with shown(START, text("| n | v |\n|---|---|\n" + rows), lines=10) as display:
        display.expect("29")
        assert display.above == []
        display.tell(text("\nend"), RESULT)
        found = display.end()
        assert found == at_once("| n | v |\n|---|---|\n" + rows + "\nend", 80)


def test_nothing_that_a_model_sends_reaches_the_terminal_as_a_command() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31m a\u202eb [red]x[/red] &#x1b; [link](http://e.example/\x1b[31m)\r\n```\n\x1b[8mhidden\n```\n"
    with shown(
        START,
        {"type": "thinking", "delta": hostile},
        text(hostile),
        call("1", "ex\x1b[2J", command=hostile, **{"\x1b[31m": 1}),
        came("1", "execute", hostile, ok=False),
        {"do": "notice", "message": hostile},
        {"type": "retry", "attempt": 1, "attempts": 3, "seconds": 0.1, "reason": hostile},
        RESULT,
        {"do": "details", "number": None},
    ) as display:
        found = "\n".join(display.end())
    assert "\\x1b[2J\\x1b]0;title" in found
    assert "\\u202e" in found
    assert "\u202e" not in found
    ours = rb"\x1b\[(\?(2026|25|7)[hl]|J|C|2K|\d+[AB]|[\d;]*m)"
    assert b"\x1b" not in re.sub(ours, b"", display.bytes)
    assert b"\x1b[8m" not in display.bytes
    assert b"\x1b[31m" not in display.bytes.split(b"hidden")[0]
    assert b"\x07" not in display.bytes


def test_links_are_written_out_and_never_hidden() -> None:
    with shown(START, text("[bank](https://evil.example)"), RESULT) as display:
        assert display.end() == ["bank (https://evil.example)"]
        assert b"\x1b]8" not in display.bytes


def test_calls_become_a_line_each_with_what_came_of_them() -> None:
    with shown(
        START,
        call("1", "execute", command="make test"),
        call("2", "read_file", path="src/a.py"),
        call("3", "made_up", number=7),
    ) as display:
        display.expect("read_file  src/a.py")
        # A call that has taken a second shows its time.
        assert re.fullmatch(r". execute  make test(  \d+ s)?", display.lines[0])
        assert display.lines[1] == "· read_file  src/a.py"
        display.tell(
            came("1", "execute", "x\n" * 12),
            came("2", "read_file", "Error: File 'src/a.py' not found.", ok=False),
            came("3", "made_up", '{"a": 1}'),
            call("4", "execute", command="false"),
            came("4", "execute", "Command failed (exit code 2):\nno rule\nmore", ok=False),
            call("5", "write_file", path="b", content="x"),
            came("5", "write_file", "Wrote 1 lines to b"),
            call("6", "grep", pattern="def", path="src"),
            came("6", "grep", "Found 3 match(es) for 'def'"),
            RESULT,
        )
        assert display.end() == [
            "✓ execute  make test  → 12 lines",
            "✗ read_file  src/a.py  → File 'src/a.py' not found.",
            '✓ made_up  7  → {"a": 1}',
            "✗ execute  false  → exit code 2: no rule",
            "✓ write_file  b  → 1 line",
            "✓ grep  def  → 3 matches",
        ]


def test_a_call_never_takes_more_than_a_row_and_keeps_its_outcome() -> None:
    with shown(
        START,
        call("1", "execute", command="echo " + "漢字" * 80),
        came("1", "execute", "x\n" * 12),
        call("2", "execute", command="echo " + "漢字" * 80),
        came("2", "execute", "Command failed (exit code 1):\n" + "long " * 80, ok=False),
        RESULT,
        columns=50,
    ) as display:
        found = display.end()
    assert len(found) == 2
    # Beginning and end of a command tell most.
    assert re.fullmatch(r"✓ execute  echo (漢字)*漢?…字?(漢字)+  → 12 lines", found[0])
    assert re.match(r"✗ execute  echo (漢字)*漢?…字?(漢字)+  → exit code 1: long", found[1])


def test_what_takes_long_says_how_long() -> None:
    with shown(START, call("1", "execute", command="sleep 2")) as display:
        display.matched(r"sleep 2  \d+ s")
        display.tell(came("1", "execute", ""), RESULT)
        (line,) = display.end()
        assert re.fullmatch(r"✓ execute  sleep 2  → no output  \d+ s", line)


def test_a_question_has_an_empty_line_and_nothing_is_drawn_over_it() -> None:
    with shown(START, text("Half a sent"), call("1", "execute", command="make"), {"do": "ask"}) as display:
        display.expect("May I?")
        assert not display.read(0.4)
        assert display.lines == ["Half a sent", "May I?"]
        assert not display.screen.cursor.hidden
        display.tell({"answer": True}, came("1", "execute", ""), RESULT)
        assert display.end() == ["Half a sent", "May I? yes", "", "✓ execute  make  → no output"]


def test_a_retry_is_counted_down_and_leaves_a_line() -> None:
    with shown(
        START, {"type": "retry", "attempt": 1, "attempts": 3, "seconds": 62.4, "reason": "HTTP 429: slow down"}
    ) as display:
        first = display.matched(r"HTTP 429: slow down: trying again in (\d+) s \(1 of 3\)")
        display.matched(rf"trying again in (?!{first[1]} )\d+ s")
        display.tell(text("Here."), RESULT)
        assert display.end() == ["HTTP 429: slow down: tried again after 62 s (1 of 3)", "", "Here."]


def test_retries_for_the_same_reason_leave_one_line() -> None:
    def retry(attempt: int, reason: str) -> dict[str, Any]:
        return {"type": "retry", "attempt": attempt, "attempts": 4, "seconds": 0.2, "reason": reason}

    with shown(START, retry(1, "HTTP 500"), retry(2, "HTTP 500"), retry(3, "HTTP 500")) as display:
        display.expect("HTTP 500: trying again now (3 of 4)")
        assert len(display.lines) == 1
        display.tell(retry(4, "HTTP 429"), text("Here."), RESULT)
        assert display.end() == [
            "HTTP 500: tried again 3 times",
            "HTTP 429: tried again after 0.2 s (4 of 4)",
            "",
            "Here.",
        ]


def test_what_else_is_worth_a_line() -> None:
    compaction = {"messages_before": 40, "messages_after": 6, "tokens_before": 120_000, "tokens_after": 9_000}
    with shown(
        START,
        {"type": "checkpoint", "id": "a", "kind": "turn"},
        {"type": "compaction", "summary": "s", **compaction},
        {"type": "notice", "message": "An MCP server did not start."},
        text("Yes."),
        {**RESULT, "usage": {"input_tokens": 1234, "output_tokens": 300}, "cost": 0.0123, "notice": "Full."},
    ) as display:
        assert display.end() == [
            "The conversation was compacted: 40 messages to 6, 120k tokens to 9.0k.",
            "An MCP server did not start.",
            "",
            "Yes.",
            "",
            "Full.",
        ]


def test_a_turn_that_breaks_off_leaves_what_came_and_a_cursor() -> None:
    with shown(START, text("- one\n- tw"), call("1", "execute", command="make"), {"do": "raise"}) as display:
        found = display.end()
        assert found[:4] == ["• one", "• tw", "", "· execute  make  → stopped"]
        assert "KeyboardInterrupt" in found[-1]
        assert not display.screen.cursor.hidden


def test_after_a_stop_notices_still_come_and_the_next_turn_begins_anew() -> None:
    with shown(START, text("one"), {"do": "stop"}, {"do": "notice", "message": "Between."}) as display:
        display.tell(START, text("two"), RESULT, {"do": "details", "number": None})
        assert display.end() == ["one", "Between.", "two", "", NO_TOOL, "Tokens of the last turn: 1 in, 1 out."]


def test_an_event_that_comes_when_no_turn_runs_leaves_no_live_line_behind() -> None:
    with shown({"type": "notice", "message": "So."}, START, text("one"), {"do": "stop"}, text("late")) as display:
        display.expect("late")
        # What was drawn of it while it came may still be drawn anew, once.
        assert any(not display.read(0.3) for _ in range(10)), "it goes on"
        assert display.lines == ["So.", "one", "late"]
        assert not display.screen.cursor.hidden


def test_a_frame_is_only_computed_anew_when_something_came() -> None:
    answer = Markdown(TerminalCaps(colour=True, encoding="utf-8"))
    answer.feed("| a | b |\n|---|---|\n| 1 | 2 |\n")
    answer.settled(80)
    assert answer.tail(80) is answer.tail(80)
    assert answer.tail(60) is not answer.tail(80)
    before = answer.tail(80)
    answer.feed("| 3 | 4 |\n")
    answer.settled(80)
    assert len(answer.tail(80)) == len(before) + 1


def test_details_are_everything_of_the_last_turns_calls() -> None:
    with shown(
        START,
        call("1", "execute", command="make\ntest"),
        came("1", "execute", "one\n" + "word " * 20 + "\n"),
        call("2", "save_plan", title="T", steps=["a"]),
        came("2", "save_plan", "Error: \x1bno", ok=False),
        RESULT,
        {"do": "details", "number": None},
        {"do": "details", "number": 2},
        {"do": "details", "number": 3},
        columns=40,
    ) as display:
        found = display.end()[3:]
    second = ["2. ✗ save_plan", "   title: T", "   steps:", "     [", '       "a"', "     ]", "   → Error: \\x1bno"]
    assert found == [
        *("1. ✓ execute", "   command:", "     make", "     test", "   →", "     one"),
        *("     word word word word word word word", "     word word word word word word word"),
        "     word word word word word word",
        *second,
        "Tokens of the last turn: 1 in, 1 out.",
        *second,
        "The last turn with tool calls made 2",
        "calls, so there is no number 3.",
    ]


def test_details_are_those_of_the_last_turn_that_called_tools() -> None:
    tools = (call("1", "execute", command="make"), came("1", "execute", "done\n"))
    with shown(START, *tools, RESULT, START, text("No tools."), RESULT, {"do": "details", "number": None}) as display:
        found = display.end()
    # What the turn without tools took is not what this one did.
    assert found[-4:] == ["", "1. ✓ execute", "   command: make", "   → done"]


def test_no_color_means_no_colours_at_all() -> None:
    with shown(
        START,
        text("# A\n**b** `c`\n```py\ndef f(): 1\n"),
        call("1", "x", a=1),
        came("1", "x", "y"),
        RESULT,
        NO_COLOR="1",
    ) as display:
        found = display.end()
        assert found == ["# A", "", "b `c`", "", "def f(): 1", "", "✓ x  1  → y"]
        assert re.search(rb"\x1b\[[\d;]*m", display.bytes) is None


def test_an_ascii_locale_gets_ascii() -> None:
    with shown(
        START,
        text("- é 漢\n\n> q\n\n---\n\n| a |\n|---|\n| é |\n"),
        call("1", "x", a="é"),
        came("1", "x", "ü"),
        RESULT,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
    ) as display:
        found = display.end()
    assert "\n".join(found).isascii()
    assert found[0] == "* \\xe9 \\u6f22"
    assert "+ x  \\xe9  -> \\xfc" in found
    assert not any("Error" in line for line in found)


def test_a_window_that_grows_loses_and_repeats_nothing() -> None:
    words = [f"word{number}" for number in range(400)]
    with shown(START, columns=40, lines=20) as display:
        for number, word in enumerate(words):
            display.tell(text(word + ("\n\n" if number % 20 == 19 else " ")))
            if number % 100 == 25:
                display.resize(50 + number // 10, 22 + number // 10)
                display.expect(word)
        display.tell(RESULT)
        assert " ".join(display.end()).split() == words


def test_a_window_that_becomes_narrower_leaves_no_rows_behind() -> None:
    words = [f"word{number}" for number in range(60)]
    with shown(START, text(" ".join(words)), columns=100) as display:
        display.expect("word59")
        for columns in range(95, 35, -10):
            display.resize(columns, 24)
            display.tell(text(" more"))
            display.read(0.15)
        display.tell(RESULT)
        assert " ".join(display.end()).split() == words + ["more"] * 6


def test_an_unchanged_row_is_not_written_again() -> None:
    with shown(START, text("a paragraph that stays as it is")) as display:
        display.expect("stays as it is")
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            display.read(0.1)
        assert display.bytes.count(b"stays as it is") == 1


def test_every_frame_is_one_synchronized_update() -> None:
    with shown(START, *[text(f"line {number}\n\n") for number in range(50)], RESULT) as display:
        display.end()
        outside = re.sub(rb"\x1b\[\?2026h.*?\x1b\[\?2026l", b"", display.bytes, flags=re.S)
        assert outside.strip() == b""
        # tmux takes this for clearing the screen when it comes at its top, and keeps the frame in its history.
        assert b"\r\x1b[J" not in display.bytes


def test_a_window_that_is_closed_ends_nothing_with_a_traceback() -> None:
    with shown(START, text("some")) as display:
        display.expect("some")
        assert display.hang_up() in (0, 1)


def test_a_stdout_that_cannot_be_written_is_an_error_of_the_next_event(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        live = LiveDisplay()
        os.close(master)
        live.event(START)
        with pytest.raises(StorageError, match="stdout cannot be written"):  # noqa: PT012 - it is noticed some frames on
            for _ in range(100):
                live.event(text("x"))
                time.sleep(0.05)
        live.stop()
        live.stop()


def test_a_reader_that_has_left_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        os.close(reading)
        live = LiveDisplay()
        live.event(START)
        live.event(text("x"))
        time.sleep(0.2)
        live.event(RESULT)
        live.stop()


def test_importing_the_display_loads_neither_rich_nor_the_agent_stack() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import deepctl.output.stream.display, sys; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"rich", "markdown_it", "pygments", "pydantic_ai"} & {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("padding", [" " * 420, "\n" * 5000, "\t " * 9000, "x" * 500])
def test_nothing_pushes_the_end_of_a_command_out_of_sight_without_a_sign(padding: str) -> None:
    shown = ShownCall("execute", {"command": f"ls{padding}; evil"}, 0.0).about()
    assert shown == ("ls" + "x" * 198 + "…" + "x" * 194 + "; evil" if "x" in padding else "ls ; evil")
    assert ShownCall("execute", {"command": "ls" + " " * 30_000 + "; evil"}, 0.0).about() == "ls … ; evil"


@pytest.mark.parametrize("unseen", [*"\u200e\u200f\u061c\u2060\ufeff\xad\u202e\u2066", "\U000e0001", "\U000e007f"])
def test_what_nobody_sees_is_shown_as_an_escape(unseen: str) -> None:
    for shown in (
        printable(f"a{unseen}b"),
        printable_lines(f"a{unseen}b"),
        TerminalCaps(True, "utf-8").safe(f"a{unseen}b"),
    ):
        assert shown.isascii()
        assert f"{ord(unseen):x}" in shown
    family = "\U0001f468\u200d\U0001f469"
    assert printable(family) == printable_lines(family) == family


@pytest.mark.parametrize(
    ("count", "shown"), [(10**400, "over 1,000,000,000k"), (-(10**400), "0"), (-5, "0"), (None, "0"), (1234, "1.2k")]
)
def test_a_count_of_tokens_that_cannot_be_is_no_failure(count: int | None, shown: str) -> None:
    turn = TurnView(TerminalCaps(False, "utf-8"), 0.0)
    usage = {"input_tokens": count, "output_tokens": 1}
    turn.event({**RESULT, "usage": usage, "cost": 0.5}, 0.0, 80)
    assert turn.usage == f"{shown} in, 1 out, $0.50"
    assert turn.settled(80) == []


def test_a_plain_display_reports_a_compaction_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    compaction = {"messages_before": 40, "messages_after": 6, "tokens_before": 120_000, "tokens_after": 9_000}
    TextDisplay().event({"type": "compaction", "summary": "s", **compaction})
    assert capsys.readouterr() == ("", "The conversation was compacted: 40 messages to 6, 120k tokens to 9.0k.\n")
