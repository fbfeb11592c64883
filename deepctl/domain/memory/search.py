"""Looking for something in the notebooks of an agent."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from deepctl.domain.memory.directory import Memory
from deepctl.errors import MemoryNotFound, UsageError
from deepctl.unicode import folded, merged, spans

Span = tuple[int, int]
"""Where in a line something was found: from this character to before that one."""


class Match(NamedTuple):
    """A line of a notebook with the lines around it, all without their ends and decoded (`surrogateescape`).

    `line` is its number from 1, `spans` what of `text` was looked for, in the order of the line.
    """

    file: str
    line: int
    text: str
    before: list[str]
    after: list[str]
    spans: list[Span]


Finder = Callable[[str], list[Span] | None]
"""Tells where in a line something is; `None` if it is not in it."""


def words(query: str) -> Finder:
    """Looks for lines that have all the words, as `deepctl.unicode.folded` compares.

    Raises `UsageError` if there is none.
    """
    parts = [folded(word) for word in query.split()]
    if not parts:
        raise UsageError("The QUERY is empty.", "Give one or more words to search for.")

    def find(line: str) -> list[Span] | None:
        folded_line = folded(line)
        return spans(line, parts) if all(word in folded_line for word in parts) else None

    return find


def pattern(query: str) -> Finder:
    """Looks for lines that a regular expression of Python's `re` matches; it minds case unless it begins with `(?i)`.

    Raises `UsageError` if it is none.
    """
    if not query:
        raise UsageError("The QUERY is empty.", "Give a regular expression to search for.")
    try:
        compiled = re.compile(query)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{query!r} is not a regular expression: {error}.",
            "The syntax is that of Python's `re`. Without --regex, words are searched literally.",
            code="bad_regex",
        ) from None

    def find(line: str) -> list[Span] | None:
        return merged([match.span() for match in compiled.finditer(line)]) if compiled.search(line) else None

    return find


def search(memory: Memory, find: Finder, context: int = 0) -> list[Match]:
    """All lines in all notebooks in which `find` finds something, with up to `context` lines on both sides.

    Raises `Refused` if one cannot be read: an answer without it would look like a complete one.
    """
    matches = []
    for notebook in memory.notebooks():
        try:
            content = memory.read(notebook.name).content
        except MemoryNotFound:
            continue  # removed a moment ago
        lines = [line.decode("utf-8", "surrogateescape") for line in content.splitlines()]
        for number, text in enumerate(lines):
            spans = find(text)
            if spans is not None:
                before = lines[max(0, number - context) : number]
                after = lines[number + 1 : number + 1 + context]
                matches.append(Match(notebook.name, number + 1, text, before, after, spans))
    return matches
