"""Searching the conversations of a profile's sessions. Changes nothing; damage affects only its own session."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from deepctl.errors import DeepctlError, UsageError
from deepctl.layout import ProfilePaths
from deepctl.store import session_catalogue, transcript
from deepctl.store.log_file import Message
from deepctl.store.transcript import Role, TranscriptPiece
from deepctl.unicode import fold, spans


class SearchPattern(NamedTuple):
    """The searched text: the folded words `all_of` must be in the same message. `spans` returns the matches in a line,
    and so selects the shown lines.
    """

    all_of: list[str]
    spans: Callable[[str], list[tuple[int, int]]]


class SessionMatch(NamedTuple):
    """A matching line: `line` is its number, from 1, in its prompt, answer, call or result.

    `message` is the place of its message in the session, from 0; `before` and `after` are lines around it, and `spans`
    the ranges of the matches in it, in characters.
    """

    session: str
    turn: int
    at: str
    role: Role
    message: int
    part: str
    tool: str
    line: int
    text: str
    before: list[str]
    after: list[str]
    spans: list[tuple[int, int]]


class SessionProblem(NamedTuple):
    """A session that could not be searched, or only partly."""

    session: str
    reason: str


class SessionSearchResult(NamedTuple):
    """The matches; `more` says that there are more than the limit."""

    matches: list[SessionMatch]
    more: bool
    damaged: list[SessionProblem]


def words(query: str) -> SearchPattern:
    """All words of `query`, as `deepctl.unicode.fold` compares. Raises `UsageError` if there are none."""
    query_words = query.split()
    if not query_words:
        raise UsageError("The query is empty.", "Give one or more words: deepctl sessions search 'window seat'")
    folded_words = [fold(word) for word in query_words]

    def where(line: str) -> list[tuple[int, int]]:
        folded_line = fold(line)
        return (
            (spans(line, folded_words) or [(0, len(line))]) if any(word in folded_line for word in folded_words) else []
        )

    return SearchPattern(folded_words, where)


def expression(query: str) -> SearchPattern:
    """A regular expression, matched line by line. Raises `UsageError` if it is not valid."""
    if not query:
        raise UsageError(
            "The query is empty.", "Give a regular expression: deepctl sessions search --regex 'tea|coffee'"
        )
    try:
        regex = re.compile(query)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"{query!r} is not a regular expression: {error}.",
            "The syntax is that of Python's `re`. Without --regex, words are searched literally.",
            code="bad_regex",
        ) from None
    return SearchPattern([], lambda line: [match.span() for match in regex.finditer(line)])


def search(
    paths: ProfilePaths,
    pattern: SearchPattern,
    *,
    session: str | None = None,
    project: str | None = None,
    role: Role | None = None,
    context: int = 0,
    limit: int | None = None,
    running_session: str | None = None,
    report: Callable[[int], None] = lambda count: None,
) -> SessionSearchResult:
    """Search one session, those of a project, or all, the one that was used last first; each from its start to its end.

    `context` is the number of lines before and after a match, and `report` receives the number of finished sessions.
    The last turn of the session called `running_session` is left out. Raises `SessionNotFound` if there is no session
    called `session`.
    """
    problems: list[SessionProblem] = []
    names = (
        session_catalogue.newest_first(paths, project)
        if session is None
        else [session_catalogue.find(paths, session).name]
    )
    all_matches = _matches(paths, names, pattern, role, context, problems, running_session, report)
    matches = list(all_matches if limit is None else islice(all_matches, limit))
    has_more = limit is not None and next(all_matches, None) is not None
    return SessionSearchResult(matches, has_more, problems)


def _matches(
    paths: ProfilePaths,
    names: list[str],
    pattern: SearchPattern,
    role: Role | None,
    context: int,
    problems: list[SessionProblem],
    running_session: str | None,
    report: Callable[[int], None],
) -> Iterator[SessionMatch]:
    for count, name in enumerate(names):
        report(count)
        try:
            conversation = session_catalogue.read(session_catalogue.find(paths, name))
        except (DeepctlError, OSError) as error:
            problems.append(SessionProblem(name, str(error)))
            continue
        losses = [damage for damage in conversation.damage if not damage.torn]
        if losses:
            where = ", ".join(f"{os.path.basename(damage.file)} line {damage.line}" for damage in losses[:5])
            problems.append(
                SessionProblem(name, f"Damaged lines were left out: {where}{', …' if len(losses) > 5 else ''}.")
            )
        for number, entry in enumerate(conversation.messages):
            if name == running_session and entry.turn == conversation.last_turn:
                break
            pieces = [piece for piece in transcript.pieces(entry.message) if role in (None, piece.role)]
            texts = [fold(_whole(piece)) for piece in pieces] if pattern.all_of else []
            if all(any(word in text for text in texts) for word in pattern.all_of):
                for piece in pieces:
                    yield from _lines(name, number, entry, piece, pattern.spans, context)


def _whole(piece: TranscriptPiece) -> str:
    """The searched text of a piece: the name of the tool is part of a call, but not of its result."""
    if piece.kind != "call":
        return piece.text
    return f"{piece.tool}\n{piece.text}" if piece.text else piece.tool


def _lines(
    session: str,
    number: int,
    entry: Message,
    piece: TranscriptPiece,
    where: Callable[[str], list[tuple[int, int]]],
    context: int,
) -> Iterator[SessionMatch]:
    lines = _whole(piece).split("\n")
    for position, line in enumerate(lines):
        ranges = where(line)
        if ranges:
            yield SessionMatch(
                session,
                entry.turn,
                entry.at,
                piece.role,
                number,
                piece.kind,
                piece.tool,
                position + 1,
                line,
                lines[max(0, position - context) : position],
                lines[position + 1 : position + 1 + context],
                ranges,
            )
