"""Searching sessions: what is found, where, and what damage does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepctl.errors import SessionNotFound, UsageError
from deepctl.layout import ProfilePaths
from deepctl.store import log_file, session_catalogue, session_log, session_search
from deepctl.store.session_search import SessionMatch, SessionSearchResult
from tests.store.scene import Scene

_IMAGE = "https://tea.example.org/x.png"

MESSAGES: list[tuple[int, dict[str, Any]]] = [
    (1, {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "I want Tea\nand a cake\nwith cream"}]}),
    (
        1,
        {
            "kind": "response",
            "parts": [
                {"part_kind": "thinking", "content": "Tea, probably green"},
                {"part_kind": "text", "content": "Which tea?"},
                {"part_kind": "tool-call", "tool_name": "brew", "args": '{"kind": "oolong", "note": "line\\ntwo"}'},
            ],
        },
    ),
    (
        1,
        {
            "kind": "request",
            "parts": [
                {"part_kind": "tool-return", "tool_name": "brew", "content": {"cup": "oolong is ready", "n": 3}},
                {"part_kind": "retry-prompt", "tool_name": "brew", "content": "kettle is broken"},
            ],
        },
    ),
    (
        2,
        {
            "kind": "request",
            "parts": [
                {
                    "part_kind": "user-prompt",
                    "content": [{"kind": "text-content", "content": "<memory>tea", "metadata": {"id": "memory"}}],
                }
            ],
            "instructions": "tea is what instructions say",
        },
    ),
    (2, {"kind": "response", "parts": [{"part_kind": "text", "content": "STRASSE tea (green|black) " + "x" * 500}]}),
]


@pytest.fixture
def paths(tmp_path: Path) -> ProfilePaths:
    scene = Scene(tmp_path)
    for name in ("old", "new"):
        session = session_catalogue.start(scene.paths, name)
        for turn, message in MESSAGES if name == "old" else MESSAGES[:1]:
            writer = session_log.LogWriter(session.directory, session.log, turn)
            writer.message(message)
            writer.close()
    return scene.paths


def _search(paths: ProfilePaths, query: str, **options: Any) -> SessionSearchResult:
    return session_search.search(paths, session_search.words(query), **options)


def _places(matches: list[SessionMatch]) -> list[tuple[str, int, str, int]]:
    return [(match.session, match.message, match.part, match.line) for match in matches]


def test_words_are_found_in_prompts_answers_thoughts_calls_and_results(paths: ProfilePaths) -> None:
    found = _search(paths, "tea", session="old")
    assert _places(found.matches) == [
        ("old", 0, "prompt", 1),
        ("old", 1, "thinking", 1),
        ("old", 1, "text", 1),
        ("old", 4, "text", 1),
    ], "memory and instructions are not what was said"
    assert [match.turn for match in found.matches] == [1, 1, 1, 2]
    (call, result) = _search(paths, "oolong", session="old").matches
    assert (call.part, call.tool, call.text, call.role) == ("call", "brew", "kind: oolong", "assistant")
    assert (result.part, result.tool, result.text, result.role) == ("result", "brew", "cup: oolong is ready", "tool")
    assert _places(_search(paths, "kettle").matches) == [("old", 2, "result", 1)]
    assert _places(_search(paths, "brew").matches) == [("old", 1, "call", 1)], "a tool is named by its call"


def test_all_words_must_be_in_the_message_and_each_line_with_one_is_shown(paths: ProfilePaths) -> None:
    found = _search(paths, "cream TEA", session="old").matches
    assert _places(found) == [("old", 0, "prompt", 1), ("old", 0, "prompt", 3)]
    assert [match.text[slice(*match.spans[0])] for match in found] == ["Tea", "cream"]
    assert _search(paths, "cream oolong").matches == []


def test_sessions_come_the_latest_first_and_limits_say_that_there_is_more(paths: ProfilePaths) -> None:
    found = _search(paths, "tea")
    assert [match.session for match in found.matches] == ["new", "old", "old", "old", "old"]
    assert not found.more
    assert [_search(paths, "tea", limit=limit).more for limit in (1, 4, 5, 6)] == [True, True, False, False]
    assert _search(paths, "tea", limit=2).matches == found.matches[:2]


@pytest.mark.parametrize(("role", "parts"), [("user", {"prompt"}), ("assistant", {"thinking", "text", "call"})])
def test_roles_choose(paths: ProfilePaths, role: Any, parts: set[str]) -> None:
    assert {match.part for match in _search(paths, "e", role=role).matches} == parts
    assert {match.part for match in _search(paths, "oolong", role="tool").matches} == {"result"}
    assert _search(paths, "tea brew", role="user").matches == [], "words of another role do not count"


def test_context_is_lines_around_and_stops_at_the_ends(paths: ProfilePaths) -> None:
    (match,) = _search(paths, "cake", session="old", context=1).matches
    assert (match.before, match.text, match.after) == (["I want Tea"], "and a cake", ["with cream"])
    (match,) = _search(paths, "cake", session="old", context=9).matches
    assert (match.before, match.after) == (["I want Tea"], ["with cream"])
    (match,) = _search(paths, "two", context=1).matches
    assert (match.before, match.line, match.after) == (["line"], 5, [])


def test_a_regular_expression_is_matched_line_by_line_and_minds_case(paths: ProfilePaths) -> None:
    def places(query: str) -> list[tuple[str, int, str, int]]:
        return _places(session_search.search(paths, session_search.expression(query), session="old").matches)

    assert places(r"^and.*cake$") == [("old", 0, "prompt", 2)]
    assert places(r"\bTea\b") == [("old", 0, "prompt", 1), ("old", 1, "thinking", 1)]
    assert len(places(r"(?i)\btea\b")) == 4
    assert places(r"Tea\s+and") == []
    assert places(r"\(green\|black\)") == [("old", 4, "text", 1)]


def test_words_are_no_expressions_and_know_letters_of_other_languages(paths: ProfilePaths) -> None:
    assert len(_search(paths, "(green|black)").matches) == 1
    assert _search(paths, "t.a").matches == []
    assert len(_search(paths, "strasse").matches) == 1


@pytest.mark.parametrize("query", ["", "  \t\n "])
def test_an_empty_query_is_refused(query: str) -> None:
    with pytest.raises(UsageError):
        session_search.words(query)


@pytest.mark.parametrize("query", ["", "(", "*a", "[z-a]", "(?P<1>a)", "a{99999999999999999999}", "(" * 5000])
def test_what_is_no_expression_is_refused(query: str) -> None:
    with pytest.raises(UsageError):
        session_search.expression(query)


def test_damage_is_named_and_the_rest_is_searched(paths: ProfilePaths) -> None:
    session = session_catalogue.find(paths, "old")
    path = Path(log_file.log_path(session.directory, session.log))
    path.write_bytes(path.read_bytes().replace(b"cake", b"cafe"))
    Path(paths.sessions, "broken").mkdir()
    found = _search(paths, "tea")
    assert {problem.session for problem in found.damaged} == {"old", "broken"}
    assert sorted(match.session for match in found.matches) == ["new", "old", "old", "old"]
    assert "line 2" in next(problem.reason for problem in found.damaged if problem.session == "old")


def test_a_session_that_is_not_there_is_an_error_and_none_at_all_is_not(paths: ProfilePaths, tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound):
        _search(paths, "tea", session="nothing")
    assert _search(Scene(tmp_path / "empty").paths, "tea") == SessionSearchResult([], False, [])


def test_messages_of_odd_shapes_do_no_harm(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    session = session_catalogue.start(scene.paths, "odd")
    writer = session_log.LogWriter(session.directory, session.log, 1)
    parts: list[Any] = [
        "tea",
        {"part_kind": "text", "content": 5},
        {"part_kind": "text", "content": None},
        {
            "part_kind": "user-prompt",
            "content": [5, None, {"kind": "binary", "media_type": "tea", "data": "AAAA"}],
        },
        {"part_kind": "user-prompt", "content": [{"kind": "image-url", "url": _IMAGE}]},
        {"part_kind": "tool-call", "tool_name": ["tea"], "args": "{not json tea"},
        {"part_kind": "tool-return", "content": [["tea"], {"a": {"b": "tea"}}]},
        {"part_kind": "tool-return"},
        {},
    ]
    writer.message({"kind": "request", "parts": parts})
    writer.close()
    found = _search(scene.paths, "tea").matches
    assert [match.text for match in found] == [
        "[tea, 3 B]",
        "[https://tea.example.org/x.png]",
        "['tea']",
        "{not json tea",
        '[["tea"], {"a": {"b": "tea"}}]',
    ]
