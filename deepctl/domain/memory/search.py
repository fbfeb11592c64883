"""Searching the notebooks of an agent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from deepctl.domain.memory.directory import Memory
from deepctl.errors import MemoryNotFound, UsageError
from deepctl.unicode import fold, merge, spans

Span = tuple[int, int]
"""The position of a match in a line: start and end (exclusive), in characters."""


class NotebookMatch(NamedTuple):
    """A line of a notebook with its context, all without line ends and decoded (`surrogateescape`).

    `line` is its number from 1, `spans` are the matches in `text`, in order.
    """

    file: str
    line: int
    text: str
    before: list[str]
    after: list[str]
    spans: list[Span]


Finder = Callable[[str], list[Span] | None]
"""Finds matches in a line; `None` if there are none."""


def words(query: str) -> Finder:
    """Finds lines that contain all words, compared as by `deepctl.unicode.fold`.

    Raises `UsageError` without words.
    """
    parts = [fold(word) for word in query.split()]
    if not parts:
        raise UsageError("The QUERY is empty.", "Give one or more words to search for.")

    def find(line: str) -> list[Span] | None:
        folded_line = fold(line)
        return spans(line, parts) if all(word in folded_line for word in parts) else None

    return find


def pattern(query: str) -> Finder:
    """Finds lines that match a Python regular expression; case matters unless it starts with `(?i)`.

    Raises `UsageError` if it is invalid.
    """
    if not query:
        raise UsageError("The QUERY is empty.", "Give a regular expression to search for.")
    try:
        regex = re.compile(query)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{query!r} is not a regular expression: {error}.",
            "The syntax is that of Python's `re`. Without --regex, words are searched literally.",
            code="bad_regex",
        ) from None

    def find(line: str) -> list[Span] | None:
        return merge([match.span() for match in regex.finditer(line)]) if regex.search(line) else None

    return find


def search(memory: Memory, find: Finder, context: int = 0) -> list[NotebookMatch]:
    """All lines in all notebooks in which `find` finds a match, with up to `context` lines on both sides.

    Raises `Refused` if a notebook cannot be read, because a partial answer would look complete.
    """
    matches = []
    for notebook in memory.notebooks():
        try:
            content = memory.read(notebook.name).content
        except MemoryNotFound:
            continue  # just removed
        lines = [line.decode("utf-8", "surrogateescape") for line in content.splitlines()]
        for number, text in enumerate(lines):
            spans = find(text)
            if spans is not None:
                before = lines[max(0, number - context) : number]
                after = lines[number + 1 : number + 1 + context]
                matches.append(NotebookMatch(notebook.name, number + 1, text, before, after, spans))
    return matches
