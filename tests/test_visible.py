"""Nothing invisible hides in what a person decides about, and nothing is taken out of ordinary text."""

from __future__ import annotations

import pytest

from deepctl.output.render import cells, clip, fit, printable, printable_lines, visible

_IGNORABLE = (
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x2800, 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), 0xE0001, 0xE0020, 0xE007F),
    *(0xE0100, 0xE01EF, 0xE0FFF),
)


@pytest.mark.parametrize("code", _IGNORABLE, ids=hex)
def test_an_invisible_character_is_shown_where_a_person_decides(code: int) -> None:
    shown = visible(f"rm a{chr(code)}b")
    assert chr(code) not in shown
    assert f"{code:x}" in shown


@pytest.mark.parametrize(
    "text", ["☺\ufe0f 1\ufe0f\u20e3", "👨\u200d👩\u200d👧", "می\u200cخواهم", "👍🏽 🇯🇵", "葛\U000e0100"]
)
def test_emoji_and_letters_of_ordinary_text_stay_together(text: str) -> None:
    assert printable_lines(text) == text
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("é…", 2),
        ("日本", 4),
        ("🇯🇵", 2),
        ("👨\u200d👩\u200d👧", 2),
        ("1\ufe0f\u20e3", 2),
        ("e\u0301\u0323", 1),
        ("👍🏽", 2),
    ],
)
def test_a_text_is_as_wide_as_a_person_sees_it_and_is_never_cut_within_a_character(text: str, width: int) -> None:
    assert cells(text) == width
    line = f"ab{text}cd"
    for room in range(width + 5):
        beginning, end = clip(line, room), clip(line, room, from_end=True)
        assert line.startswith(beginning)
        assert line.endswith(end)
        assert max(cells(beginning), cells(end), cells(fit(line, max(room, 1)))) <= max(room, 1)
        for piece in (beginning, end):
            assert text in piece or not set(text) & set(piece) or text in ("é…", "日本")
