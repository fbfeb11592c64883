"""Patterns of rules: `*` stops at a slash, `**` does not, `?` is one character, `[…]` one of several.

The language is pydantic-ai-backend's. Its own matcher is not used: there `.` stops at a newline, and `$` stands before
one, so that a path with a newline in it passes a rule, or takes another's.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import lru_cache


def pieces(pattern: str) -> Iterator[str]:
    """`**/`, `**`, `*`, `?`, whole classes, and single characters."""
    at = 0
    while at < len(pattern):
        length = 1
        if pattern.startswith("**", at):
            length = 3 if pattern.startswith("**/", at) else 2
        elif pattern[at] == "[":
            length = _class_length(pattern, at)
        yield pattern[at : at + length]
        at += length


def _class_length(pattern: str, start: int) -> int:
    """The length of the class that begins at `start`; 1 if it has no end and is a bracket."""
    end = start + 1
    if pattern[end : end + 1] in ("!", "^"):
        end += 1
    end = pattern.find("]", end + 1)
    return 1 if end < 0 else end + 1 - start


def character_class(piece: str) -> str:
    """A class as `re` has it."""
    return f"[^{piece[2:]}" if piece[1] in "!^" else piece


_FIXED = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@lru_cache(maxsize=512)
def glob(pattern: str) -> re.Pattern[str]:
    """A pattern to be matched with `fullmatch`. Raises `re.error` if one of its classes means nothing."""
    written = (
        _FIXED.get(piece) or (character_class(piece) if len(piece) > 1 else re.escape(piece))
        for piece in pieces(pattern)
    )
    return re.compile("".join(written), re.DOTALL)


def bad_class(pattern: str) -> str | None:
    """The first `[…]` of a pattern that means nothing."""
    for piece in pieces(pattern):
        if len(piece) > 1 and piece.startswith("["):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    re.compile(character_class(piece))
            except (re.error, FutureWarning):
                return piece
    return None


def matches(pattern: str, text: str) -> bool:
    """Whether the whole text matches."""
    return glob(pattern).fullmatch(text) is not None
