"""Patterns of rules: `*` stops at a slash, `**` does not, `?` is one character, `[…]` one of several.

The language is pydantic-ai-backend's. Its own matcher is not used: there `.` stops at a newline and `$` matches before
one, so that a path with a newline escapes a rule, or matches the wrong one.
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
    """The length of the class that starts at `start`; 1 if it has no end and is a plain bracket."""
    end = start + 1
    if pattern[end : end + 1] in ("!", "^"):
        end += 1
    end = pattern.find("]", end + 1)
    return 1 if end < 0 else end + 1 - start


def character_class(piece: str) -> str:
    """A class in the syntax of `re`."""
    return f"[^{piece[2:]}" if piece[1] in "!^" else piece


def bad_class(pattern: str) -> str | None:
    """The first invalid `[…]` of a pattern."""
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
    """Whether the whole text matches. Raises `re.error` if a class of the pattern is invalid."""
    return _machine(pattern).accepts(text)


class _Machine:
    """A pattern as states that are all followed at once: each is a bit, and stands for the next piece.

    The time is linear in the length of the text, for any pattern. `re` tries one way after the other. For a few stars
    and a long path, which an agent can choose, this takes hours.
    """

    def __init__(self, pattern: str) -> None:
        self._singles: list[tuple[int, str]] = []
        self._any_stays = self._no_slash_stays = self._no_slash_moves = self._slash_moves = 0
        self._skips_one = self._skips_two = 0
        at = 0
        for piece in pieces(pattern):
            bit = 1 << at
            if piece == "**/":
                # Nothing, or the next state, which accepts anything and moves on at a slash.
                self._skips_one |= bit
                self._skips_two |= bit
                self._any_stays |= bit << 1
                self._slash_moves |= bit << 1
                at += 1
            elif piece in ("**", "*"):
                self._skips_one |= bit
                self._any_stays |= bit if piece == "**" else 0
                self._no_slash_stays |= bit if piece == "*" else 0
            elif piece == "?":
                self._no_slash_moves |= bit
            else:
                self._singles.append((bit, piece))
            at += 1
        self._end = 1 << at
        self._classes = {piece: re.compile(character_class(piece)) for _, piece in self._singles if len(piece) > 1}
        self._known: dict[str, tuple[int, int]] = {}

    def accepts(self, text: str) -> bool:
        states = self._with_skipped(1)
        for character in text:
            stays, moves = self._known.get(character) or self._steps(character)
            states = self._with_skipped(states & stays | (states & moves) << 1)
            if not states:
                return False
        return bool(states & self._end)

    def _with_skipped(self, states: int) -> int:
        while True:
            next_states = states | (states & self._skips_one) << 1 | (states & self._skips_two) << 2
            if next_states == states:
                return states
            states = next_states

    def _steps(self, character: str) -> tuple[int, int]:
        """The states that a character does not change, and those from which it leads to the next."""
        is_slash = character == "/"
        stays = self._any_stays | (0 if is_slash else self._no_slash_stays)
        moves = self._slash_moves if is_slash else self._no_slash_moves
        for bit, piece in self._singles:
            if piece == character or (piece in self._classes and self._classes[piece].match(character)):
                moves |= bit
        self._known[character] = stays, moves
        return stays, moves


@lru_cache(maxsize=512)
def _machine(pattern: str) -> _Machine:
    return _Machine(pattern)
