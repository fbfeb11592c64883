"""Markdown as it arrives: whatever the deltas, the lines are those of the whole text, and none is ever taken back."""

from __future__ import annotations

import os
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepctl.output.stream import markdown as markdown_module
from deepctl.output.stream import markdown_blocks
from deepctl.output.stream.highlight import LANGUAGES, Highlighter
from deepctl.output.stream.lines import TerminalCaps
from deepctl.output.stream.markdown import Markdown

COLOURED = TerminalCaps(colour=True, encoding="utf-8")
PLAIN = TerminalCaps(colour=False, encoding="utf-8")
SOAK = os.environ.get("DEEPCTL_SOAK") == "1"
ASCII = TerminalCaps(colour=False, encoding="ascii")

_PIECES = [
    *("some words ", "more", "漢字", "🎉", "é", "snake_case", "  ", "    ", "\t", "\\", "\\\n", "  \n"),
    *("\n", "\n\n", "\r\n", "\r", "\n\n\n"),
    *("- item", "- item\n", "* star", "+ plus\n", "1. one", "2) two\n", "10. ten\n", "   - nested\n", "      1. deep"),
    *("    - x\n", "-\n", "- a | b\n", "- [ ] task\n", "-     far\n", "100. wide\n   1. b\n"),
    *("```py\n", "```\n", "```", "````\n", "~~~\n", "  ```\n", "   ```sh\n", "```a`b\n"),
    *("def f():\n    return 1\n", '"""doc\n'),
    *("> quote", "> quote\n", "> > deep\n", ">\n", "> ```\n", "> - list\n"),
    *("| a | b |\n", "|---|--:|\n", "| 1 | `2` |\n", "a | b\n", "--|--\n", "|-\n"),
    *("# head", "## head\n", "#", "---\n", "***\n", "===\n", "- - -\n"),
    *("**bold**", "*em", "**", "_", "`code`", "`", "~~gone~~", "[x](http://y)", "[z]", "[z]: http://q\n"),
    *("![i](p.png)", "<http://a>"),
    *("&#x202e;", "&#x200f;", "\u2060", "&amp;", "\x1b[31m", "\x00", "<b>", "<div>\n", "[/red]", "[red]"),
]  # fmt: skip

texts = st.lists(st.sampled_from(_PIECES) | st.text(max_size=6), max_size=40).map("".join)


def at_once(text: str, width: int, look: TerminalCaps = COLOURED) -> list[str]:
    markdown = Markdown(look)
    markdown.feed(text)
    return [line.plain for line in markdown.finish(width)]


def in_pieces(text: str, width: int, seed: int, look: TerminalCaps = COLOURED) -> list[str]:
    """The lines of `text` cut into deltas of one to many characters, with a look at the rest after each."""
    chance = random.Random(seed)
    markdown, lines, start = Markdown(look), [], 0
    while start < len(text):
        length = chance.randint(1, chance.choice([1, 4, 30, 300]))
        markdown.feed(text[start : start + length])
        start += length
        lines += [line.plain for line in markdown.settled(width)]
        markdown.tail(width)
    return lines + [line.plain for line in markdown.finish(width)]


@given(texts, st.sampled_from([10, 20, 40, 80]), st.integers(0, 2**32), st.sampled_from([COLOURED, PLAIN, ASCII]))
def test_any_deltas_give_the_lines_of_the_whole(text: str, width: int, seed: int, look: TerminalCaps) -> None:
    assert in_pieces(text, width, seed, look) == at_once(text, width, look)


@pytest.mark.parametrize(
    "text",
    [
        "-     far | x\n--|--\n1 | 2\n",
        "- a\n- b | c\n--|--\n",
        "\\\n|-\n---\n",
        "```x | y\n--|--\n1 | 2\n",
        "   ```sh\n\t\t    x\n \t y\n",
        "1000. a\n" + "   1. b\n" * 20,
        "- a\n" * 20 + "---\n" + "- a\n" * 20,
        "text\n#\n#tag\n",
        "> a\nlazy\n\n> b\n",
    ],
)
def test_what_a_later_line_gives_another_meaning_is_not_given_out_before(text: str) -> None:
    for seed in range(5):
        assert in_pieces(text, 40, seed) == at_once(text, 40)


@given(texts, st.integers(0, 2**32))
def test_a_tail_and_what_is_settled_are_the_whole_as_it_is_now(text: str, seed: int) -> None:
    """At a line's end, the screen shows what it would show if the text ended there."""
    text = text.replace("\r", "")
    ends = [place for place, character in enumerate(text, 1) if character == "\n"]
    if not ends:
        return
    end = random.Random(seed).choice(ends)
    markdown = Markdown(COLOURED)
    markdown.feed(text[:end])
    lines = [line.plain for line in markdown.settled(40)] + [line.plain for line in markdown.tail(40)]
    whole = at_once(text[:end], 40)
    while lines and not lines[-1]:
        lines.pop()
    assert lines == whole


@given(texts, st.integers(0, 2**32))
def test_windows_that_change_their_width_repeat_and_lose_no_word(text: str, seed: int) -> None:
    chance = random.Random(seed)
    markdown, lines, start = Markdown(COLOURED), [], 0
    while start < len(text):
        length = chance.randint(1, 60)
        markdown.feed(text[start : start + length])
        start += length
        lines += [line.plain for line in markdown.settled(chance.choice([16, 33, 80]))]
    lines += [line.plain for line in markdown.finish(50)]
    # Tables and rules are drawn for a width; everything else only breaks elsewhere.
    if "|" not in text and "─" not in "".join(lines):
        assert _letters(lines) == _letters(at_once(text, 50))


def _letters(lines: list[str]) -> str:
    return "".join("".join(lines).replace("│", "").split())


@given(texts)
def test_nothing_that_moves_a_cursor_or_reverses_text_comes_through(text: str) -> None:
    for line in at_once(text, 40):
        assert not set(line) & {*map(chr, range(32)), "\x7f", "\u202e", "\u2066", "\u2028", "\u200f", "\u2060"}


@given(texts)
def test_in_an_ascii_locale_every_line_is_ascii(text: str) -> None:
    assert "\n".join(at_once(text, 40, ASCII)).isascii()


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("  \n\n \t\n", []),
        ("a\nb", ["a", "b"]),
        ("a\n\n\nb", ["a", "", "b"]),
        ("# One\ntext", ["One", "", "text"]),
        ("text\n===\nmore", ["text", "===", "more"]),
        ("[the bank](https://evil.example/x)", ["the bank", "(https://evil.example/x)"]),
        ("<https://a.example>", ["https://a.example"]),
        ("![a cat](cat.png)", ["a cat (cat.png)"]),
        ("[z]\n\n[z]: https://a.example", ["[z]", "", "[z]: https://a.example"]),
        ("[x](javascript:alert)", ["[x](javascript:alert)"]),
        ("<b>bold</b> [red]not red[/red]", ["<b>bold</b> [red]not red[/red]"]),
        ("a&#x202e;b", ["a\\u202eb"]),
        ("9. nine\n10. ten", ["9. nine", "10. ten"]),
        ("1. one\n1. two\n1. three", ["1. one", "2. two", "3. three"]),
        ("- a\n  - b\n    - c\n- d", ["• a", "  • b", "    • c", "• d"]),
        ("> a\n> b", ["│ a", "│ b"]),
        ("```\na\n\n\n```\nb", ["a", "", "b"]),
        ("```py\nx = 1", ["x = 1"]),
        ("````\n```\n````", ["```"]),
        ("~~~\na\r\nb\r\n~~~\r\n", ["a", "b"]),
        ("```make\nall:\n\tcc\n```", ["all:", "    cc"]),
        ("```\n" + "x" * 90 + "\n```", ["x" * 90]),
        ("a | b\n--|--\n1 | 2", ["a   b", "─────", "1   2"]),
    ],
)
def test_it_looks_like_this(text: str, lines: list[str]) -> None:
    assert at_once(text, 30) == lines


def test_without_colours_marks_stay_that_colours_would_stand_for() -> None:
    assert at_once("## Two\n`code` **bold**", 30, PLAIN) == ["## Two", "", "`code` bold"]


def test_a_table_that_is_too_wide_for_the_window_becomes_records() -> None:
    table = "| name of it | another column | third one |\n|--|--|--|\n| a | b | c |\n| d | e | f |\n"
    assert at_once(table, 20) == [
        *("name of it: a", "another column: b", "third one: c", ""),
        *("name of it: d", "another column: e", "third one: f"),
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("".join(f"- item {number}\n" for number in range(300)), "• item 0"),
        ("".join(f"{number}. item\n" for number in range(1, 300)), "1. item"),
        ("```py\n" + "x = 1\n" * 300, "x = 1"),
        ("a\n" * 300, "a"),
        ("> a\n" * 300, "│ a"),
        ("1. x\n   ```\n" + "   code\n" * 300, "1. x"),
    ],
)
def test_a_long_block_gives_out_its_upper_lines_before_it_ends(text: str, first: str) -> None:
    markdown = Markdown(COLOURED)
    markdown.feed(text)
    lines = [line.plain for line in markdown.settled(80)]
    assert lines[0] == first
    assert len(lines) >= 298


def test_emphasis_that_is_open_keeps_its_paragraph() -> None:
    markdown = Markdown(COLOURED)
    markdown.feed("one **two\n" + "three\n" * 50)
    assert markdown.settled(80) == []
    markdown.feed("four**\n")
    assert markdown.finish(80)[0].plain == "one two"


def test_marks_of_which_nobody_knows_the_meaning_yet_are_not_shown() -> None:
    markdown = Markdown(COLOURED)
    markdown.feed("text\n\n``")
    markdown.settled(80)
    assert [line.plain for line in markdown.tail(80)] == ["text"]


def test_code_is_coloured_the_same_however_long_it_is() -> None:
    code = "def f(x):\n    return 'text'  # note\n\n\n"
    markdown = Markdown(COLOURED)
    markdown.feed("```python\n")
    lines = []
    for _ in range(200):
        markdown.feed(code)
        lines += markdown.settled(80)
    defs = [COLOURED.ansi(line) for line in lines if line.plain.startswith("def")]
    assert len(defs) == 200
    assert set(defs) == {defs[0]}
    assert "\x1b[35mdef\x1b[0m" in defs[0]


def test_a_line_of_code_costs_the_same_after_ten_thousand() -> None:
    markdown = Markdown(COLOURED)
    markdown.feed("```python\n")

    def seconds(frames: int) -> float:
        began = time.process_time()
        for _ in range(frames):
            markdown.feed("x = 'two'\n" * 20)
            markdown.settled(80)
            markdown.tail(80)
        return time.process_time() - began

    first = seconds(40)
    seconds(460)
    assert seconds(40) < 3 * first + 0.1


def _scaled(monkeypatch: pytest.MonkeyPatch, scale: int) -> int:
    """Divide the sizes from which a block is given out in pieces by `scale`, which is returned; by 1 in `make soak`."""
    scale = 1 if SOAK else scale
    for module, name in [
        (markdown_module, "_PIECE"),
        (markdown_module, "_BLOCK"),
        (markdown_module, "_LIST"),
        (markdown_blocks, "_MAX_CODE"),
    ]:
        monkeypatch.setattr(module, name, getattr(module, name) // scale)
    return scale


@pytest.mark.parametrize("sign", ["[", "*", "_", "`", "<", "![", "> ", "- ", "**a", "a_", "[](", "|", "\\", "&", "~~"])
def test_hostile_repetitions_end_in_time(sign: str) -> None:
    began = time.process_time()
    at_once(sign * 5000, 80)
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    "repeated",
    [
        *("1. a\n", "- a\n\n", "> a\n", "|x|y|\n", "word *x\n", "    a\n"),
        *("*a **b ", "`a ``b ", "word ", "- "),
    ],
)
def test_a_block_or_line_without_an_end_takes_time_in_proportion(
    repeated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = _scaled(monkeypatch, 4)
    head = "|a|b|\n|-|-|\n" if "|" in repeated else ""

    def seconds(size: int) -> float:
        markdown = Markdown(COLOURED)
        markdown.feed(head + repeated * (size // len(repeated)))
        began = time.process_time()
        markdown.settled(80)
        markdown.tail(80)
        markdown.finish(80)
        return time.process_time() - began

    # Laid out as a whole, four times the text takes sixteen times as long.
    assert seconds(60_000 // scale) < 9 * seconds(15_000 // scale) + 0.2 / scale


@pytest.mark.parametrize(
    ("head", "repeated", "tail"),
    [
        *(("|a|b|\n|-|-|\n", "|x|y|\n", ""), ("", "> a *b\n", ""), ("", "word *x\n", ""), ("", "    a\n", "")),
        *(("- a\n", "  text\n", ""), ("1. x\n   ```\n", "   code\n\n", ""), ("a\n", "word *x ", "\nb\n")),
        *(("```\n", "x" * 100, "\n" + "y\n" * 9000 + "```\n"), ("", "- a\n", ""), ("", "a\n", "b | c\n--|--\n")),
    ],
)
def test_the_rest_of_a_long_block_is_plain_and_what_follows_is_not(
    head: str, repeated: str, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = _scaled(monkeypatch, 8)
    size = (48_000 if repeated == "- a\n" else 32_000) // scale
    long = head + repeated * (size // len(repeated)) + tail
    text = f"# before\n{long}\n# after\n- *one*\n"
    whole = at_once(text, 40)
    assert whole[0] == "before"
    assert whole[-3:] == ["after", "", "• one"]
    assert len("".join(whole)) > len(long) // 5
    chance = random.Random(1)
    for most in (3000 // scale, 30_000 // scale):
        markdown, lines, start = Markdown(COLOURED), [], 0
        while start < len(text):
            length = chance.randint(1, most)
            markdown.feed(text[start : start + length])
            start += length
            lines += [line.plain for line in markdown.settled(40)]
        assert lines + [line.plain for line in markdown.finish(40)] == whole


def test_much_that_is_left_when_a_turn_breaks_off_is_given_out_as_it_is() -> None:
    markdown = Markdown(COLOURED)
    markdown.feed("- *a*\n" * 20_000)
    began = time.process_time()
    lines = [line.plain for line in markdown.break_off(80)]
    assert time.process_time() - began < 6
    assert len(lines) == 20_000
    assert (lines[0], lines[-1]) == ("• a", "- *a*")
    short = Markdown(COLOURED)
    short.feed("- *a*\n- *b")
    assert [line.plain for line in short.break_off(80)] == ["• a", "• *b"]


_HOSTILE = [
    " ",
    " x",
    "\t",
    "0",
    "0.",
    '"',
    "'",
    "\\",
    "<!--",
    "(",
    "[",
    "{",
    "<",
    "a",
    "a ",
    "a=",
    "/*",
    "`",
    "${",
    "A0-",
]


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_a_language_that_is_coloured_goes_over_hostile_lines_in_time(language: str) -> None:
    assert Highlighter(language, COLOURED)._lexer is not None
    count = 8 if SOAK else 2
    for sign in _HOSTILE:
        line = (sign * 499)[:498] + "!"
        began = time.process_time()
        Highlighter(language, COLOURED).lines([line] * count)
        assert time.process_time() - began < count / 8 + 0.1, sign


@pytest.mark.parametrize("language", ["systemd", "mcfunction", "zeek", "urbiscript", "java", "{.systemd}", "SYSTEMD"])
def test_a_language_that_nobody_has_timed_is_not_coloured(language: str) -> None:
    began = time.process_time()
    for line in (" " * 499 + "x", "0" * 499 + "z"):
        assert [shown.spans for shown in Highlighter(language, COLOURED).lines([line])] == [[]]
    assert time.process_time() - began < 1


def test_markdown_that_is_coloured_hands_its_code_to_no_other_language() -> None:
    began = time.process_time()
    at_once("````markdown\n```systemd\n" + (" " * 490 + "x\n") * 8 + "```\n````\n", 80)
    assert time.process_time() - began < 2


def test_a_line_that_is_too_long_for_colours_takes_them_from_no_other() -> None:
    lines = Highlighter("python", COLOURED).lines(["return 1", "x" * 501, "return 2"])
    assert [bool(line.spans) for line in lines] == [True, False, True]
