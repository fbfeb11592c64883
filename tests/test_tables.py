"""Tables fit the window, line up whatever the script, and hide nothing when they are piped."""

from __future__ import annotations

import os
import pty
import re
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len

from deepctl.output import render

_ROWS = [
    ("alice", "2 days ago", "7", "plain"),
    ("日本語の名前", "now", "12", "wide: 全角文字の題名です"),
    ("עברית", "3 weeks ago", "1", "right to left: שלום עולם"),
    ("e\u0301tude", "never", "100", "combining"),
    ("\x1b[31mred\u202eevil", "now", "0", "hostile\x07\x9b31m"),
]
_COLUMNS = ("NAME", "WHEN", "COUNT", "TITLE")


_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def _drawn(columns: int, monkeypatch: pytest.MonkeyPatch, rows: Sequence[Sequence[str]] = _ROWS) -> list[str]:
    """What is written to a terminal so wide, without what makes it bold."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    with os.fdopen(theirs, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setenv("NO_COLOR", "1")
        patch.setattr(sys, "stdout", stream)
        render.table(_COLUMNS, rows, dispensable=("WHEN",), numbers=("COUNT",))
        stream.flush()
        found = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return _STYLE.sub("", found).splitlines()


@pytest.mark.parametrize("columns", [200, 80, 60, 40, 25])
def test_no_line_is_wider_than_the_window(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _drawn(columns, monkeypatch)
    assert len(lines) == len(_ROWS) + 1
    assert max(map(cell_len, lines)) <= columns


def test_columns_line_up_whatever_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _drawn(100, monkeypatch)

    def column(line: str, word: str) -> int:
        return cell_len(line[: line.index(word)])

    start = column(lines[0], "TITLE")
    for line, row in zip(lines[1:], _ROWS, strict=True):
        assert column(line, render.printable(row[3])) == start, line
    ends = {column(line, row[2] + "  ") + len(row[2]) for line, row in zip(lines[2:3], _ROWS[1:2], strict=True)}
    assert ends == {column(lines[0], "COUNT") + len("COUNT")}, "numbers end where their heading does"


def test_nothing_that_moves_a_cursor_gets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = "\n".join(_drawn(200, monkeypatch))
    assert "\\x1b[31mred\\u202eevil" in drawn
    assert not any(character in drawn for character in "\x1b\x07\x9b\u202e")


def test_a_long_name_is_whole_where_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("n" * 64, "now", "1", "title")]
    assert "n" * 64 in _drawn(120, monkeypatch, rows)[1]
    narrow = _drawn(50, monkeypatch, rows)[1]
    assert "…" in narrow
    assert "title" in narrow


def test_piped_a_table_is_whole_and_tab_separated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w+", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setenv("COLUMNS", "20")
        patch.setattr(sys, "stdout", stream)
        render.table(_COLUMNS, [("n" * 64, "now", render.Cell("1", "bad"), "long " * 100)], dispensable=("WHEN",))
        stream.seek(0)
        assert stream.read() == "\t".join(["n" * 64, "now", "1", "long " * 100]) + "\n"


def test_colour_says_what_something_means_and_only_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert render.tint("broken", "bad") == "\x1b[31mbroken\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert render.tint("broken", "bad") == "broken"
