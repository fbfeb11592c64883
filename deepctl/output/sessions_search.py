"""How what was found in sessions looks: lines with the match in colour at a terminal, rows of fields elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from deepctl.output.render import notice
from deepctl.output.text import ago, has_colour, is_terminal, printable, terminal_width
from deepctl.store.session_search import Found, Match

_HEADING, _FOUND, _QUIET, _PLAIN = "\x1b[36m", "\x1b[1;31m", "\x1b[2m", "\x1b[0m"
_INDENT = 2
_NUMBER = 5


class SessionMatches(NamedTuple):
    """What was found for a query."""

    profile: str
    query: str
    found: Found

    def document(self) -> dict[str, Any]:
        return {
            "profile": self.profile,
            "query": self.query,
            "matches": [
                {key: value for key, value in match._asdict().items() if key != "spans"} for match in self.found.matches
            ],
            "more": self.found.more,
            "damaged": [problem._asdict() for problem in self.found.damaged],
        }

    def print(self) -> None:
        if is_terminal(sys.stdout):
            self._print_at_terminal()
        else:
            sys.stdout.write("".join(map(_rows, _grouped(self.found.matches))))
        for problem in self.found.damaged:
            notice(f"Session {problem.session} is damaged: {problem.reason}")

    def _print_at_terminal(self) -> None:
        if not self.found.matches:
            notice(f"Nothing in the sessions of profile {self.profile} matches.")
        coloured = has_colour(sys.stdout)
        for count, matches in enumerate(_grouped(self.found.matches)):
            print(("\n" if count else "") + _coloured(_HEADING if coloured else "", _heading(matches[0])))
            last = None
            for line in _lines(matches):
                if last is not None and line.number > last + 1:
                    print(_coloured(_QUIET if coloured else "", f"{'⋮':>{_INDENT + _NUMBER}}"))
                last = line.number
                print(_drawn(line, coloured))
        if self.found.more:
            notice("There is more; a larger --limit shows it.")


class _Line(NamedTuple):
    """A line that is shown: one that was found has `spans`, one around it has none."""

    number: int
    text: str
    spans: list[tuple[int, int]] | None


def _grouped(matches: list[Match]) -> Iterator[list[Match]]:
    """Matches that are in the same prompt, answer, call or result, one after the other."""
    group: list[Match] = []
    for match in matches:
        if group and (match.line <= group[-1].line or match[:7] != group[-1][:7]):
            yield group
            group = []
        group.append(match)
    if group:
        yield group


def _lines(matches: list[Match]) -> list[_Line]:
    """The lines of a group, each once, in order."""
    found: dict[int, _Line] = {}
    for match in matches:
        for number, text in enumerate(match.before, match.line - len(match.before)):
            found.setdefault(number, _Line(number, text, None))
        for number, text in enumerate(match.after, match.line + 1):
            found.setdefault(number, _Line(number, text, None))
        found[match.line] = _Line(match.line, match.text, match.spans)
    return [found[number] for number in sorted(found)]


def _heading(match: Match) -> str:
    who = {
        "call": f"call of {match.tool}",
        "result": f"result of {match.tool}",
        "thinking": "assistant, thinking",
        "summary": "summary of what was said before",
    }
    return printable(f"{match.session} · turn {match.turn} · {ago(match.at)} · {who.get(match.part, match.role)}")


def _coloured(colour: str, text: str) -> str:
    return f"{colour}{text}{_PLAIN}" if colour else text


def _drawn(line: _Line, coloured: bool) -> str:
    room = max(20, (terminal_width() or 1 << 30) - _INDENT - _NUMBER - 2)
    quiet = _QUIET if coloured else ""
    number = _coloured(quiet, f"{line.number:>{_INDENT + _NUMBER}}")
    if line.spans is None:
        return f"{number}  {_coloured(quiet, _cut(line.text, room))}"
    return f"{number}  {_marked(line.text, line.spans, room, coloured)}"


def _cut(text: str, room: int) -> str:
    shown = printable(text[: room + 1])
    return shown if len(shown) <= room else shown[: room - 1] + "…"


def _marked(text: str, spans: list[tuple[int, int]], room: int, coloured: bool) -> str:
    """The line, cut around its first match if it does not fit, with the matches in colour."""
    start = max(0, spans[0][0] - room // 3) if len(text) > room else 0
    end = start + room - 2 * (len(text) > room)
    pieces = ["…" if start else ""]
    position = start
    for begin, stop in spans:
        if begin >= end:
            break
        if begin < stop:
            pieces.append(printable(text[position:begin]))
            pieces.append(_coloured(_FOUND if coloured else "", printable(text[begin : min(stop, end)])))
            position = min(stop, end)
    pieces.append(printable(text[position:end]))
    pieces.append("…" if end < len(text) else "")
    return "".join(pieces)


def _rows(matches: list[Match]) -> str:
    """Session, turn, time, role, number of the line and the line; the number of a line around it ends in a dash."""
    first = matches[0]
    place = (first.session, str(first.turn), first.at, first.role)
    rows = [(*place, f"{line.number}{'' if line.spans is not None else '-'}", line.text) for line in _lines(matches)]
    return "".join("\t".join(printable(cell) for cell in row) + "\n" for row in rows)
