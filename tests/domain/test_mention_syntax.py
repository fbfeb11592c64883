"""Which words of a prompt name files, and which lines of them."""

from __future__ import annotations

import time

import pytest

from deepctl.domain import mention_syntax
from deepctl.domain.mention_syntax import LineRange, mentions

NAMED = [
    ("read @notes.txt", ["notes.txt"]),
    ("@a and @b/c.py", ["a", "b/c.py"]),
    ("in (@a) or [@b], said '@c'", ["a)", "b],", "c'"]),
    ('@"my notes.txt" and @"b"', ["my notes.txt", "b"]),
    ("first\n@second", ["second"]),
    ("mail alice@example.org", []),
    ("a@b @ c", []),
    ("path/@scope", []),
    ('@"never closed', []),
    ("look at @a\n\n<stdin>\n@b\n</stdin>", ["a"]),
]


@pytest.mark.parametrize(("prompt", "paths"), NAMED)
def test_a_path_behind_an_at_sign_that_begins_a_word_is_a_mention(prompt: str, paths: list[str]) -> None:
    assert [mention.readings[0].path for mention in mentions(prompt)] == paths


@pytest.mark.parametrize("word", ["notes.txt.", "notes.txt,", "notes.txt)?!", "notes.txt's"])
def test_punctuation_behind_a_mention_may_be_the_sentences(word: str) -> None:
    (mention,) = mentions(f"see @{word}")
    assert mention.readings[0] == (word, None)
    assert ("notes.txt", None) in mention.readings
    assert mention.text == "@notes.txt"


def test_a_word_of_thousands_of_dots_is_looked_for_a_few_times_only() -> None:
    (mention,) = mentions(f"see @notes.txt{'.' * 4000}")
    assert len(mention.readings) == 8


def test_an_ellipsis_is_no_directory() -> None:
    (mention,) = mentions("@...")
    assert mention == ([("...", None)], False)


@pytest.mark.parametrize(
    "name", ["a.txt", "a b.txt", "-x", "é.txt", "a.", 'a "b"', "a:10", "x\u202fAM.png", "it's", "(a)", ".env", "a,b"]
)
def test_what_is_mentioned_is_found_again(name: str) -> None:
    prompt = mention_syntax.with_mentions("What is this?", [name])
    assert prompt.startswith("What is this?\n\n@")
    (mention,) = mentions(prompt)
    assert name in [reading.path for reading in mention.readings]


def test_a_file_that_is_mentioned_already_is_not_mentioned_again() -> None:
    assert mention_syntax.with_mentions("see @a.txt.", ["a.txt"]) == "see @a.txt."


def test_a_mention_is_added_before_what_was_piped_in() -> None:
    prompt = mention_syntax.with_mentions("why?\n\n<stdin>\ntext\n</stdin>", ["a.txt"])
    assert prompt == "why?\n\n@a.txt\n\n<stdin>\ntext\n</stdin>"
    assert [mention.readings[0].path for mention in mentions(prompt)] == ["a.txt"]


def test_looking_for_mentions_takes_linear_time_and_stops_at_a_bound() -> None:
    begun = time.monotonic()
    assert len(mentions("@a " * 100_000)) == mention_syntax.MAX_MENTIONS
    assert not mention_syntax.only_mentions("@a" * 100_000 + '"')
    assert not mention_syntax.only_mentions("@a " * 100_000 + '"')
    assert mentions('@"' * 100_000 + "@" * 100_000) is not None
    assert mentions("@" + "\\ " * 100_000) == []
    assert mention_syntax.typed('@"' * 100_000 + "\\ @a" * 100_000) is not None
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("word", "path"),
    [
        (r"@my\ dir/f.txt", "my dir/f.txt"),
        (r"@my\ dir/f.txt.", "my dir/f.txt"),
        (r"(@a\(1\).txt)", "a(1).txt"),
        (r"@it\'s\ \"so\".txt", 'it\'s "so".txt'),
        (r"@back\\slash", r"back\slash"),
        (r"@back\slash", r"back\slash"),
    ],
)
def test_a_backslash_takes_the_next_character_as_it_is(word: str, path: str) -> None:
    (mention,) = mentions(f"see {word} and go on")
    assert path in [reading.path for reading in mention.readings]


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        ("@notes.txt:10", LineRange(10, 10)),
        ("@notes.txt:10-20", LineRange(10, 20)),
        ("@notes.txt:10-", LineRange(10, None)),
        ("@notes.txt:20-10", LineRange(20, 10)),
        ("@notes.txt:0", LineRange(0, 0)),
        ("@notes.txt#L10", LineRange(10, 10)),
        ("@notes.txt#L10-L20", LineRange(10, 20)),
        ("@notes.txt#L10-20", LineRange(10, 20)),
        ("@notes.txt:10:5", LineRange(10, 10)),
        ("@notes.txt:10:5:", LineRange(10, 10)),
        ("(@notes.txt:10-20).", LineRange(10, 20)),
        ("@notes.txt:10,", LineRange(10, 10)),
        ('@"notes.txt":10-20', LineRange(10, 20)),
        ('@"notes.txt"#L7', LineRange(7, 7)),
        ('@"notes.txt":', None),
        ("@notes.txt:", None),
        ("@notes.txt:x", None),
        ("@notes.txt:-5", None),
        ("@notes.txt:1234567890", None),
    ],
)
def test_lines_are_behind_the_path(word: str, lines: LineRange | None) -> None:
    (mention,) = mentions(f"see {word}")
    assert [reading.lines for reading in mention.readings if reading.path == "notes.txt"] in (
        [[lines]] if lines else [[], [None]]
    )


def test_a_name_that_ends_like_lines_comes_first() -> None:
    (mention,) = mentions("@notes.txt:10")
    assert list(mention.readings) == [("notes.txt:10", None), ("notes.txt", LineRange(10, 10))]


@pytest.mark.parametrize(
    "word",
    ["@notes.txt", "@src/a.py:3", "@./x", "@../x", "@~/x", "@~", "@/etc/hosts", '@"a b"', r"@a\ b", "@.env",
     "@Makefile",     "@docs/README", "@shot.PNG", "@/Users/me/x"],
)  # fmt: skip
def test_a_path_looks_like_one(word: str) -> None:
    assert [mention.looks_like_path for mention in mentions(f"see {word}.")] == [True]


@pytest.mark.parametrize(
    "word",
    ["@alice", "@dataclass", "@app.route('/x')", "@pytest.fixture", "@functools.cache", "@types/node", "@babel/core",
     "@components/button", "@/components/Button", "@1.2.3", "@example.org", "@", "@...", "@media", "@user:10"],
)  # fmt: skip
def test_a_decorator_a_package_and_a_name_do_not(word: str) -> None:
    assert [mention.looks_like_path for mention in mentions(f"see {word} there")] in ([False], [])
