"""Text that came from elsewhere is valid Unicode afterwards, and nothing else about it changes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepctl.unicode import PieceDecoder, fold, spans, whole, whole_json, whole_json_bytes, whole_value

_ANY = st.text(st.characters(categories=None))
_HALVES = st.text(st.sampled_from("a\\u\ud83d\ude00é\U0001f600"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("é 😀", "é 😀"),
        ("\ud83d\ude00", "😀"),
        ("hi \ud83d", "hi \ufffd"),
        ("\ude00 hi", "\ufffd hi"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ud83d\ude00", "\ufffd😀"),
        ("caf\udce9", "caf\ufffd"),
    ],
)
def test_halves_are_joined_and_lone_ones_replaced(text: str, expected: str) -> None:
    assert whole(text) == expected


@given(_ANY | _HALVES)
def test_every_text_can_be_encoded_and_valid_text_stays_as_it_is(text: str) -> None:
    found = whole(text)
    assert whole(found) == found.encode().decode()
    if not any("\ud800" <= one <= "\udfff" for one in text):
        assert found is text


@given(_HALVES, st.lists(st.integers(0, 30)))
def test_a_text_in_pieces_is_the_same_as_in_one(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(text)]
    pieces = PieceDecoder()
    found = [pieces.feed(text[start:end]) for start, end in itertools.pairwise(places)]
    assert "".join([*found, pieces.finish()]) == whole(text)


@settings(max_examples=40)
@given(st.recursive(_HALVES, lambda inner: st.lists(inner) | st.dictionaries(_HALVES, inner)), st.booleans())
def test_a_json_document_means_the_same_but_for_lone_halves(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    found = whole_json(text)
    found.encode()
    assert json.loads(found) == json.loads(json.dumps(whole_value(value)))
    if ascii_only:
        assert whole_json_bytes(text.encode()) == found.encode()


def test_keys_and_arguments_kept_as_json_are_texts_too() -> None:
    part = {"args": '{"a\\ud83d": "\\\\ud83d \\ud83d\\ude00"}', "k\ud83d": ["x\ude00", {"args": {"y": "\ud83d"}}]}
    assert whole_value(part) == {
        "args": '{"a\\ufffd": "\\\\ud83d \\ud83d\\ude00"}',
        "k\ufffd": ["x\ufffd", {"args": {"y": "\ufffd"}}],
    }


@pytest.mark.parametrize(
    ("text", "query", "expected"),
    [
        ("the Straße ends", "STRASSE", ["Straße"]),
        ("DIE STRASSE", "straße", ["STRASSE"]),
        ("in İstanbul", "istanbul", ["İstanbul"]),
        ("in istanbul, İSTANBUL", "İstanbul", ["istanbul", "İSTANBUL"]),
        ("a cafe\u0301 here", "CAFÉ", ["cafe\u0301"]),
        ("a café here", "cafe\u0301", ["café"]),
        ("a cafe\u0301 here", "cafe", []),
        ("ὈΔΥΣΣΕΎΣ", "ὀδυσσεύς", ["ὈΔΥΣΣΕΎΣ"]),
        ("\u1112\u1161\u11ab글", "한글", ["\u1112\u1161\u11ab글"]),
        ("odd \udcff café", "\udcff", ["\udcff"]),
        ("tea TEA", "tea", ["tea", "TEA"]),
    ],
)
def test_words_are_found_where_they_stand_however_they_are_written(text: str, query: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in spans(text, [fold(query)])] == expected


@given(_ANY, _ANY)
def test_where_a_word_is_found_can_be_told(text: str, word: str) -> None:
    wanted = fold(word)
    for start, end in spans(f"{text} {word}", [wanted]) if wanted else []:
        assert 0 <= start < end <= len(text) + 1 + len(word)
    assert fold(fold(text)) == fold(text)
