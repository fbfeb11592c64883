"""Patterns of rules: what they match, and that no pattern and no path takes long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepctl.domain import globs


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("*.sql", ["a.sql", ".sql", "a\nb.sql"], ["a/b.sql", "a.sql\n", "a.sqlx"]),
        ("**/*.sql", ["a.sql", "b/a.sql", "c/b/a.sql", "/a.sql"], ["a.sql/b"]),
        ("**.sql", ["a.sql", "b/a.sql"], ["sql"]),
        ("a/**", ["a/", "a/b/c"], ["a", "b/a/"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("?[a-c][!x]", ["1bz", "éa/"], ["/bz", "1dz", "1bx", "1b"]),
        ("[", ["["], [""]),
        ("", [""], ["a"]),
    ],
)
def test_what_patterns_match(pattern: str, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not globs.matches(pattern, text)] == []
    assert [text for text in bad if globs.matches(pattern, text)] == []


_AS_RE = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@given(st.text("ab/*?[]!-\n", max_size=12), st.text("ab/-\n", max_size=12))
def test_it_is_what_an_expression_would_match(pattern: str, text: str) -> None:
    if globs.bad_class(pattern) is not None:
        return
    expression = "".join(
        _AS_RE.get(piece) or (globs.character_class(piece) if len(piece) > 1 else re.escape(piece))
        for piece in globs.pieces(pattern)
    )
    assert globs.matches(pattern, text) == bool(re.fullmatch(expression, text, re.DOTALL))


@pytest.mark.parametrize("pattern", ["*.*.*.*.*.sql", "**a**a**a**a**a**b", "**/a/**/a/**/a/**/b", "a" + "*a" * 30])
def test_no_path_that_an_agent_chooses_takes_long(pattern: str) -> None:
    for text in ("." * 5_000, "a" * 5_000, "a/" * 2_500):
        assert globs.matches(pattern, text + "\0") is False
